//! Whose turn it is to read: of all the nodes on a stream, one.
//!
//! A session makes the consumer anew, which ends the session of whoever had it: two readers would end each other's without
//! end. So a node that finds another reading stands by. The server knows whether anybody reads: a reader has a pull waiting
//! there, or is being given messages. A pull is gone with the connection it came by, and after [`PULL_EXPIRES`] in any case,
//! so a reader that was killed is succeeded soon, and one that is frozen not much later. No clock is compared and nothing
//! is leased: should two nodes take a turn at once, one of them loses its session, finds the other and stands by; what both
//! have read, the ledgers recognise.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::Ended;
use super::session::PULL_EXPIRES;
use super::terms::{Terms, reader_of};

/// How patient who stands by is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    look_every: Duration,
    /// A reader that has asked for nothing and moved nothing for this long is succeeded. One whose tenants' databases all
    /// hang does neither, and is no worse off if somebody else tries.
    idle: Duration,
    /// When nobody else is meant to read, a reader that is there for longer than any pull of a dead process lasts belongs to
    /// somebody else.
    stranger: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        let stranger = PULL_EXPIRES + Duration::from_secs(5);
        Patience { look_every: Duration::from_secs(1), idle: Duration::from_secs(5), stranger }
    }
}

/// What a process knows of the other readers.
#[derive(Debug)]
pub(super) struct Turn {
    /// No other node can have our databases.
    alone: bool,
    /// Is this the first time that we look? A process that was just started may take the turn of the one before it without
    /// waiting; later on a consumer that rests between two pulls is somebody's who is alive.
    first: bool,
    patience: Patience,
}

/// A consumer, as far as it tells whether anybody reads with it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Trace {
    reader: Option<Uuid>,
    delivered: u64,
    acknowledged: u64,
}

/// A look at the consumer.
#[derive(Debug)]
struct Look {
    trace: Trace,
    /// Somebody waits for messages.
    is_waited_at: bool,
}

impl Turn {
    pub(super) fn new(alone: bool, patience: Patience) -> Turn {
        Turn { alone, first: true, patience }
    }

    /// Waits until nobody else reads; `stand_by` hears of who does, at each look.
    ///
    /// # Errors
    /// [`Ended`]: the server cannot be asked, or somebody reads who is none of our nodes.
    pub(super) async fn wait(
        &mut self,
        context: &Context,
        terms: &Terms,
        mut stand_by: impl FnMut(Option<Uuid>),
    ) -> Result<(), Ended> {
        let began = Instant::now();
        let mut rests: Option<(Trace, Instant)> = None;
        while let Some(Look { trace, is_waited_at }) = look(context, terms).await? {
            let since = match rests.take() {
                Some((before, since)) if before == trace && !is_waited_at => since,
                _ => Instant::now(),
            };
            let rested = !is_waited_at && (self.first || since.elapsed() >= self.patience.idle);
            self.first = false;
            if rested || trace.reader == Some(terms.reader) {
                break;
            }
            if self.alone && began.elapsed() >= self.patience.stranger {
                return Err(Ended::Refused(format!(
                    "somebody else reads with consumer {} of stream {}, who cannot be a node of this installation: name \
                     another consumer in nats.consumer",
                    terms.consumer, terms.stream
                )));
            }
            stand_by(trace.reader);
            rests = Some((trace, since));
            sleep(self.patience.look_every).await;
        }
        self.first = false;
        Ok(())
    }
}

/// The consumer; `None` when there is none.
async fn look(context: &Context, terms: &Terms) -> Result<Option<Look>, Ended> {
    let stream = context.get_stream_no_info(&terms.stream).await;
    let stream = stream.map_err(|error| Ended::Refused(format!("nats.stream: {error}")))?;
    let info = match stream.consumer_info(&terms.consumer).await {
        Ok(info) => info,
        Err(error) => match error.kind() {
            ConsumerInfoErrorKind::NotFound | ConsumerInfoErrorKind::StreamNotFound => return Ok(None),
            _ => return Err(Ended::Broken(format!("the consumer's state: {error}"))),
        },
    };
    let trace = Trace {
        reader: reader_of(&info.config),
        delivered: info.delivered.consumer_sequence,
        acknowledged: info.ack_floor.consumer_sequence,
    };
    Ok(Some(Look { trace, is_waited_at: info.num_waiting > 0 }))
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::consumer::pull;
    use async_nats::jetstream::consumer::{DeliverPolicy, PullConsumer};
    use async_nats::jetstream::stream::Stream;
    use futures_util::StreamExt;

    use super::super::{StreamHealth, terms};
    use super::*;
    use crate::clock;
    use crate::domain::stream::Checkpoint;
    use crate::intake::node_test::Node;
    use crate::intake::stream_test::{Bus, PATIENCE, Reading};

    const QUICK: Patience = Patience {
        look_every: Duration::from_millis(50),
        idle: Duration::from_millis(500),
        stranger: Duration::from_secs(3),
    };

    struct Place {
        bus: Bus,
        stream: Stream,
        us: Terms,
    }

    impl Place {
        async fn open() -> Place {
            let bus = Bus::open().await;
            let us = Terms::of(&bus.nats, clock::new_id());
            let stream = terms::agree(&bus.context, &us).await.unwrap();
            Place { bus, stream, us }
        }

        fn another(&self) -> Terms {
            Terms::of(&self.bus.nats, clock::new_id())
        }

        async fn consumer_of(&self, reader: &Terms) -> PullConsumer {
            terms::make_consumer(&self.stream, reader, DeliverPolicy::All).await.unwrap()
        }

        /// Who was stood by for until it was our turn, which has to come.
        async fn wait(&self, turn: &mut Turn) -> Result<Vec<Option<Uuid>>, Ended> {
            let mut readers = Vec::new();
            let wait = turn.wait(&self.bus.context, &self.us, |reader| readers.push(reader));
            tokio::time::timeout(PATIENCE, wait).await.expect("an end")?;
            readers.dedup();
            Ok(readers)
        }
    }

    /// A pull that waits at the server for this long.
    async fn pull(consumer: &PullConsumer, expires: Duration) -> pull::Batch {
        let batch = consumer.batch().max_messages(10).expires(expires).messages().await.unwrap();
        let waits = async {
            while consumer.get_info().await.unwrap().num_waiting == 0 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waits).await.expect("the pull waits");
        batch
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_nobody_reads_with_is_taken_at_once() {
        let place = Place::open().await;
        let patient = Patience { idle: PATIENCE * 2, ..QUICK };
        // No consumer, one that somebody left, our own of a session before, also while its pull waits.
        assert_eq!(place.wait(&mut Turn::new(false, patient)).await.unwrap(), []);
        let _left = place.consumer_of(&place.another()).await;
        let mut turn = Turn::new(false, patient);
        assert_eq!(place.wait(&mut turn).await.unwrap(), []);
        let ours = place.consumer_of(&place.us).await;
        let _waiting = pull(&ours, Duration::from_secs(60)).await;
        assert_eq!(place.wait(&mut turn).await.unwrap(), []);
        place.bus.close().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_reader_is_stood_by_for_until_its_last_pull_is_over() {
        let place = Place::open().await;
        let reader = place.another();
        let theirs = place.consumer_of(&reader).await;
        let began = Instant::now();
        let mut batch = pull(&theirs, Duration::from_secs(2)).await;
        let mut turn = Turn::new(false, QUICK);
        assert_eq!(place.wait(&mut turn).await.unwrap(), [Some(reader.reader)]);
        // The pull's two seconds, and the rest after it.
        assert!(began.elapsed() >= Duration::from_millis(2_400), "{:?}", began.elapsed());
        assert!(batch.next().await.is_none());
        place.bus.close().await;
    }

    /// Nothing waits when it looks, and yet somebody is at work: between its pulls, or before its first.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_reader_that_moves_is_stood_by_for_though_no_pull_waits() {
        let place = Place::open().await;
        let reader = place.another();
        let theirs = place.consumer_of(&reader).await;
        for _ in 0..20 {
            place.bus.publish("", "{}").await;
        }
        let mut turn = Turn::new(false, QUICK);
        turn.first = false;
        let work = async {
            for _ in 0..20 {
                let mut one = theirs.fetch().max_messages(1).messages().await.unwrap();
                one.next().await.unwrap().unwrap();
                sleep(Duration::from_millis(100)).await;
            }
            Instant::now()
        };
        let wait = async {
            let readers = place.wait(&mut turn).await.unwrap();
            (readers, Instant::now())
        };
        let (worked, (readers, taken)) = tokio::join!(work, wait);
        assert_eq!(readers, [Some(reader.reader)]);
        assert!(taken > worked, "taken while it was at work");
        place.bus.close().await;
    }

    /// What the other has read meanwhile is not missed, though the stream has forgotten it since.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_takes_over_goes_on_where_the_other_had_come_to() {
        let (node, place) = (Node::open().await, Place::open().await);
        let mut reading = Reading::begin(&node, &place.bus);
        reading.connected().await;
        place.bus.publish_events("first", node.acme, 0..5).await;
        let kept = async {
            loop {
                let kept = node.directory.checkpoint(&place.us.stream).await.unwrap();
                if let Some(kept) = kept.filter(|kept| kept.sequence == 5) {
                    break kept;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let kept = tokio::time::timeout(PATIENCE, kept).await.expect("a checkpoint");

        let theirs = place.consumer_of(&place.another()).await;
        let _last = pull(&theirs, Duration::from_secs(3)).await;
        reading.until(|health| matches!(health, StreamHealth::StandingBy { .. })).await;
        place.bus.publish_events("theirs", node.acme, 0..5).await;
        let read = Checkpoint { sequence: 10, hash: None, ..kept };
        node.directory.keep_checkpoint(read, Vec::new()).await.unwrap();
        place.stream.purge().await.unwrap();

        reading.connected().await;
        place.bus.publish_events("last", node.acme, 0..1).await;
        place.bus.settled().await;
        assert_eq!(node.records("ingest.gap").await, Vec::<serde_json::Value>::new());
        assert_eq!(node.totals(node.acme).await.events, 6);
        reading.end().await;
        place.bus.close().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn where_nobody_else_can_be_a_stranger_is_named() {
        let place = Place::open().await;
        let theirs = place.consumer_of(&place.another()).await;
        // Of a process that is gone, for all that is known.
        let batch = pull(&theirs, Duration::from_secs(1)).await;
        let patient = Patience { idle: Duration::ZERO, ..QUICK };
        assert!(place.wait(&mut Turn::new(true, patient)).await.is_ok());
        drop(batch);
        let _stays = pull(&theirs, Duration::from_secs(60)).await;
        let refused = place.wait(&mut Turn::new(true, patient)).await.unwrap_err().to_string();
        assert!(refused.contains("consumer intake-test") && refused.contains("nats.consumer"), "{refused}");
        place.bus.close().await;
    }
}
