//! Where reading goes on: the checkpoint against the stream as it is now.
//!
//! NATS 2.9 acknowledges a publish before it is on disk, so a stream can lose its tail, be made anew or be restored from
//! an earlier copy; a durable consumer then waits for sequences that have been used already, and new events are skipped
//! in silence. So the consumer's own memory is never trusted. What was read last is compared with what stands there
//! now ([`Checkpoint::judge`]); a stream that is not the same is read again from ten minutes before the checkpoint, and
//! the ledgers recognise what they know. Whatever is found is recorded in the platform's audit chain, in the
//! transaction that moves the checkpoint: once.

use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, PullConsumer};
use async_nats::jetstream::stream::{self, Stream};
use async_nats::jetstream::{Context, ErrorCode};
use serde_json::json;
use tokio::sync::oneshot;

use super::Ended;
use super::stored::{self, Unread};
use super::terms::{self, Terms};
use crate::directory::handle::Handle as Directory;
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::stream::{Anomaly, Checkpoint, Gap, Seen, Verdict, hash};

/// How far before the checkpoint a stream is read again that is not the same.
const OVERLAP: Duration = Duration::from_secs(10 * 60);

/// What is remembered from one session to the next.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Everything up to here is settled. Ahead of the checkpoint that is kept, never of what is committed.
    pub(super) position: Option<Checkpoint>,
    /// Passed, and not recorded yet.
    pub(super) gaps: Vec<Gap>,
    /// What the control database has.
    pub(super) kept: Option<Checkpoint>,
    keeping: Option<Keeping>,
}

/// What is being kept; that may take longer than the session that began it lasts.
#[derive(Debug)]
struct Keeping {
    checkpoint: Checkpoint,
    /// How many of the gaps are recorded with it.
    gaps: usize,
    kept: oneshot::Receiver<bool>,
}

/// A checkpoint to keep, with the gaps that belong to it, and whom to tell whether it is kept.
#[derive(Debug)]
pub(super) struct News {
    pub(super) checkpoint: Checkpoint,
    pub(super) gaps: Vec<Gap>,
    pub(super) kept: oneshot::Sender<bool>,
}

/// Where a session begins.
pub(super) struct Beginning {
    pub(super) stream: Stream,
    pub(super) consumer: PullConsumer,
    /// The message before the first that will be delivered, unless messages are gone.
    pub(super) read_to: u64,
}

/// A look at the stream and the consumer.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) first_sequence: u64,
    /// The consumer's count of deliveries.
    pub(super) delivered: u64,
    pub(super) anomaly: Option<Anomaly>,
}

impl Progress {
    /// Is there something that the control database does not know?
    fn is_news(&self) -> bool {
        !self.gaps.is_empty() || self.position != self.kept
    }

    /// What to keep; nothing while something is being kept. It stays news until it is kept.
    pub(super) fn begin_keeping(&mut self) -> Option<News> {
        if self.keeping.is_some() {
            return None;
        }
        let checkpoint = self.position.clone().filter(|_| self.is_news())?;
        let (tell, kept) = oneshot::channel();
        self.keeping = Some(Keeping { checkpoint: checkpoint.clone(), gaps: self.gaps.len(), kept });
        Some(News { checkpoint, gaps: self.gaps.clone(), kept: tell })
    }

    /// Waits until what is being kept is kept, or could not be.
    pub(super) async fn wait_for_keeping(&mut self) {
        let Some(keeping) = &mut self.keeping else { return };
        // Whoever was to tell and did not has failed.
        let kept = (&mut keeping.kept).await.unwrap_or(false);
        if let Some(Keeping { checkpoint, gaps, .. }) = self.keeping.take().filter(|_| kept) {
            self.gaps.drain(..gaps);
            self.kept = Some(checkpoint);
        }
    }

    /// Keeps what is not kept yet, when we leave.
    pub(super) async fn keep_last(mut self, directory: &Directory) {
        self.wait_for_keeping().await;
        if let Some(checkpoint) = self.position.as_ref().filter(|_| self.is_news())
            && let Err(error) = keep(directory, checkpoint, &self.gaps).await
        {
            tracing::warn!(%error, "the last checkpoint could not be kept; some messages are read again");
        }
    }
}

/// Keeps a checkpoint, and records gaps with it.
pub(super) async fn keep(directory: &Directory, checkpoint: &Checkpoint, gaps: &[Gap]) -> Result<(), Ended> {
    let entries = gap_entry(&checkpoint.stream, gaps).into_iter().collect();
    directory.keep_checkpoint(checkpoint.clone(), entries).await.map_err(|error| Ended::Broken(error.to_string()))
}

/// Agrees with the server on the stream, finds out whether it is still the same, and makes the consumer.
pub(super) async fn begin(
    context: &Context,
    terms: &Terms,
    directory: &Directory,
    progress: &mut Progress,
) -> Result<Beginning, Ended> {
    let stream = terms::agree(context, terms).await?;
    progress.wait_for_keeping().await;
    if progress.position.is_none() {
        let kept = directory.checkpoint(&terms.stream).await;
        progress.kept = kept.map_err(|error| Ended::Broken(error.to_string()))?;
        progress.position = progress.kept.clone();
    }
    let info = stream.get_info().await.map_err(|error| Ended::Broken(format!("the stream's state: {error}")))?;
    let Some(position) = progress.position.clone() else {
        return begin_at_all(context, stream, terms, &info, progress).await;
    };
    match position.judge(&seen(context, &info, &position).await?) {
        Verdict::Same => begin_after(stream, terms, sequence(position.sequence)).await,
        Verdict::Lost(gap) => {
            let after = Checkpoint { sequence: gap.to, hash: None, ..position };
            // Told once it is kept: otherwise it is found again.
            let gaps = [&progress.gaps[..], &[gap]].concat();
            keep(directory, &after, &gaps).await?;
            note_gaps(&terms.stream, &[gap]);
            progress.gaps.clear();
            (progress.position, progress.kept) = (Some(after.clone()), Some(after));
            begin_after(stream, terms, sequence(gap.to)).await
        }
        Verdict::Another(anomaly) => {
            let policy = again_from(anomaly, &position, &info);
            let consumer = terms::make_consumer(&stream, terms, policy).await?;
            let read_to = consumer.cached_info().delivered.stream_sequence;
            let hash = hash_at(context, &info, read_to).await?;
            let anew = Checkpoint { created_nanos: created(&info), sequence: number(read_to), hash, ..position };
            let mut entries: Vec<Entry> = gap_entry(&terms.stream, &progress.gaps).into_iter().collect();
            entries.push(anomaly_entry(anomaly, progress.position.as_ref(), &anew, &info));
            note_anomaly(anomaly, &anew, &info);
            let kept = directory.keep_checkpoint(anew.clone(), entries).await;
            kept.map_err(|error| Ended::Broken(error.to_string()))?;
            progress.gaps.clear();
            (progress.position, progress.kept) = (Some(anew.clone()), Some(anew));
            Ok(Beginning { stream, consumer, read_to })
        }
    }
}

/// Nobody has read this stream: all of it.
async fn begin_at_all(
    context: &Context,
    stream: Stream,
    terms: &Terms,
    info: &stream::Info,
    progress: &mut Progress,
) -> Result<Beginning, Ended> {
    let consumer = terms::make_consumer(&stream, terms, DeliverPolicy::All).await?;
    let read_to = consumer.cached_info().delivered.stream_sequence;
    progress.position = Some(Checkpoint {
        stream: terms.stream.clone(),
        created_nanos: created(info),
        sequence: number(read_to),
        at_nanos: created(info),
        hash: hash_at(context, info, read_to).await?,
    });
    Ok(Beginning { stream, consumer, read_to })
}

async fn begin_after(stream: Stream, terms: &Terms, read_to: u64) -> Result<Beginning, Ended> {
    let policy = DeliverPolicy::ByStartSequence { start_sequence: read_to.saturating_add(1) };
    let consumer = terms::make_consumer(&stream, terms, policy).await?;
    Ok(Beginning { stream, consumer, read_to })
}

/// From where a stream that is not the same is read: from some time before the checkpoint, or all of it where that
/// proves nothing.
fn again_from(anomaly: Anomaly, position: &Checkpoint, info: &stream::Info) -> DeliverPolicy {
    let ends = nanos(info.state.last_timestamp.unix_timestamp_nanos());
    let from = position.at_nanos.saturating_sub(i64::try_from(OVERLAP.as_nanos()).unwrap_or(i64::MAX));
    if anomaly == Anomaly::MadeAnew || ends < from {
        return DeliverPolicy::All;
    }
    let back = u64::try_from(ends - from).unwrap_or(0);
    DeliverPolicy::ByStartTime { start_time: info.state.last_timestamp - Duration::from_nanos(back) }
}

/// Looks whether the stream is still the one that was read up to `position`.
///
/// # Errors
/// Whatever kept us from looking.
pub(super) async fn look(
    context: &Context,
    stream: &Stream,
    terms: &Terms,
    position: Option<&Checkpoint>,
) -> Result<Look, Ended> {
    let unasked = |what: &str, error: &dyn std::fmt::Display| Ended::Undelivered(format!("{what}: {error}"));
    // The consumer first: what arrives between the two questions must not make it look ahead of the stream.
    let consumer =
        stream.consumer_info(&terms.consumer).await.map_err(|error| unasked("the consumer's state", &error))?;
    let info = stream.get_info().await.map_err(|error| unasked("the stream's state", &error))?;
    if terms::reader_of(&consumer.config).is_some_and(|reader| reader != terms.reader) {
        return Err(Ended::Broken("another node reads it by now".to_owned()));
    }
    // More is acknowledged than was delivered: an acknowledgement for the consumer that had this name before came late, from a
    // connection that was lost or a node that was frozen. The server ignores ours until they are as many.
    if consumer.ack_floor.consumer_sequence > consumer.delivered.consumer_sequence {
        return Err(Ended::Broken("somebody else has acknowledged to our consumer".to_owned()));
    }
    metrics::gauge!("platform_api_stream_pending_messages").set(consumer.num_pending as f64);
    metrics::gauge!("platform_api_stream_ack_pending_messages").set(consumer.num_ack_pending as f64);
    // And again, now that we know where the stream begins: what was delivered meanwhile, and is gone since, is on its way
    // to us.
    let after = stream.consumer_info(&terms.consumer).await.map_err(|error| unasked("the consumer's state", &error))?;
    let mut anomaly = None;
    if let Some(position) = position
        && let Verdict::Another(found) = position.judge(&seen(context, &info, position).await?)
    {
        anomaly = Some(found);
    } else if consumer.ack_floor.stream_sequence > info.state.last_sequence {
        anomaly = Some(Anomaly::ConsumerAhead);
    }
    Ok(Look { first_sequence: info.state.first_sequence, delivered: after.delivered.consumer_sequence, anomaly })
}

async fn seen(context: &Context, info: &stream::Info, position: &Checkpoint) -> Result<Seen, Ended> {
    Ok(Seen {
        created_nanos: created(info),
        first_sequence: number(info.state.first_sequence),
        last_sequence: number(info.state.last_sequence),
        at_checkpoint: hash_at(context, info, sequence(position.sequence)).await?,
    })
}

/// The hash of the message at a place of the stream; `None` when nothing stands there.
async fn hash_at(context: &Context, info: &stream::Info, place: u64) -> Result<Option<[u8; 32]>, Ended> {
    if place == 0 || !(info.state.first_sequence..=info.state.last_sequence).contains(&place) {
        return Ok(None);
    }
    match stored::at(context, &info.config.name, place).await {
        Ok(message) => Ok(Some(hash(message.at_nanos, message.subject(), &message.payload))),
        Err(Unread::Absent) => Ok(None),
        // The server cannot read it any more: not what was read.
        Err(Unread::Refused(error)) if !is_passing(error.error_code()) => {
            tracing::warn!(stream = info.config.name, sequence = place, %error, "the message that was read last cannot be read");
            Ok(Some([0; 32]))
        }
        Err(error) => Err(Ended::Broken(format!("the message at the checkpoint: {error}"))),
    }
}

/// Does the server say that it cannot answer now, rather than anything about what it holds?
fn is_passing(code: ErrorCode) -> bool {
    const PASSING: [ErrorCode; 7] = [
        ErrorCode::CLUSTER_NOT_AVAILABLE,
        ErrorCode::CLUSTER_NOT_LEADER,
        ErrorCode::INSUFFICIENT_RESOURCES,
        ErrorCode::JETSTREAM_NOT_ENABLED,
        ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT,
        ErrorCode::STREAM_NOT_FOUND,
        ErrorCode::STREAM_OFFLINE,
    ];
    PASSING.contains(&code)
}

/// Tells that messages were gone before anybody read them.
pub(super) fn note_gaps(stream: &str, gaps: &[Gap]) {
    for gap in gaps {
        let messages = gap.messages();
        metrics::counter!("platform_api_stream_lost_messages_total").increment(u64::try_from(messages).unwrap_or(0));
        tracing::error!(
            stream,
            from = gap.from,
            to = gap.to,
            messages,
            "messages of the usage stream are gone that were never read; compare with the senders' own books"
        );
    }
}

fn note_anomaly(anomaly: Anomaly, anew: &Checkpoint, info: &stream::Info) {
    metrics::counter!("platform_api_stream_anomalies_total", "kind" => anomaly.name()).increment(1);
    tracing::error!(
        stream = anew.stream,
        first_sequence = info.state.first_sequence,
        last_sequence = info.state.last_sequence,
        reading_after = anew.sequence,
        reason = anomaly.explanation(),
        "the usage stream is not what was read; it is read again, and what was counted is recognised"
    );
}

/// One record for all gaps that were passed since the last.
fn gap_entry(stream: &str, gaps: &[Gap]) -> Option<Entry> {
    let (first, last) = (gaps.first()?, gaps.last()?);
    let messages: i64 = gaps.iter().map(|gap| gap.messages()).sum();
    let payload = json!({ "from": first.from, "to": last.to, "messages": messages, "gaps": gaps.len() });
    Some(entry("ingest.gap", stream, &payload))
}

fn anomaly_entry(anomaly: Anomaly, position: Option<&Checkpoint>, anew: &Checkpoint, info: &stream::Info) -> Entry {
    let payload = json!({
        "kind": anomaly.name(),
        "readTo": position.map(|position| position.sequence),
        "firstSequence": info.state.first_sequence,
        "lastSequence": info.state.last_sequence,
        "readAgainAfter": anew.sequence,
    });
    entry("ingest.anomaly", &anew.stream, &payload)
}

fn entry(action: &str, stream: &str, payload: &serde_json::Value) -> Entry {
    Entry {
        actor: "system".into(),
        action: action.into(),
        target: format!("stream:{stream}"),
        outcome: EntryOutcome::Success,
        request_id: String::new(),
        payload: payload.to_string(),
    }
}

fn created(info: &stream::Info) -> i64 {
    nanos(info.created.unix_timestamp_nanos())
}

/// Nanoseconds as we keep them: until the year 2262.
pub(super) fn nanos(nanos: i128) -> i64 {
    i64::try_from(nanos).unwrap_or(i64::MAX)
}

/// A sequence as we keep it.
pub(super) fn number(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}

pub(super) fn sequence(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream;
    use futures_util::StreamExt;

    use super::super::deliveries::Deliveries;
    use super::*;
    use crate::clock;
    use crate::intake::node_test::Node;
    use crate::intake::stream_test::{Bus, PATIENCE};

    /// A stream of five messages, of which the first `purged` are gone, and nobody has read any.
    async fn stream(bus: &Bus, purged: u64) -> (Stream, Progress) {
        let stream = terms::agree(&bus.context, &Terms::of(&bus.nats, clock::new_id())).await.unwrap();
        for _ in 0..5 {
            bus.publish("", "garbage").await;
        }
        // Up to the first means all.
        if purged > 0 {
            stream.purge().sequence(purged + 1).await.unwrap();
        }
        let info = stream.get_info().await.unwrap();
        let position = Checkpoint {
            stream: bus.nats.stream.clone(),
            created_nanos: created(&info),
            sequence: 0,
            at_nanos: created(&info),
            hash: None,
        };
        let progress = Progress { kept: Some(position.clone()), position: Some(position), ..Progress::default() };
        (stream, progress)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn messages_that_are_gone_are_recorded_once_however_often_that_is_tried() {
        let node = Node::open().await;
        let bus = Bus::open().await;
        let (_, mut progress) = stream(&bus, 3).await;
        let terms = Terms::of(&bus.nats, clock::new_id());
        node.directory.drain(PATIENCE).await;
        for _ in 0..3 {
            let begun = begin(&bus.context, &terms, &node.directory, &mut progress).await;
            assert!(begun.is_err(), "the control database cannot be written");
        }
        let node = node.reopened(|_| {}).await;
        let begun = begin(&bus.context, &terms, &node.directory, &mut progress).await.unwrap();
        assert_eq!(begun.read_to, 3);
        let records = node.records("ingest.gap").await;
        assert_eq!(records, [json!({ "from": 1, "to": 3, "messages": 3, "gaps": 1 })]);
        bus.close().await;
    }

    #[test]
    fn a_server_that_cannot_answer_says_nothing_about_its_messages() {
        assert!([ErrorCode::CLUSTER_NOT_AVAILABLE, ErrorCode::STREAM_OFFLINE].map(is_passing).iter().all(|is| *is));
        assert!(!is_passing(ErrorCode::STREAM_STORE_FAILED));
    }

    #[tokio::test]
    async fn a_gap_is_not_forgotten_when_the_session_ends_before_it_hears_that_it_could_not_be_recorded() {
        let position = Checkpoint { stream: "S".into(), created_nanos: 0, sequence: 9, at_nanos: 0, hash: None };
        let gap = Gap { from: 3, to: 4 };
        let mut progress = Progress { position: Some(position.clone()), gaps: vec![gap], ..Progress::default() };
        let lost = progress.begin_keeping().expect("news");
        assert_eq!(lost.gaps, [gap]);
        assert!(progress.begin_keeping().is_none(), "one at a time");
        drop(lost);
        progress.wait_for_keeping().await;
        let News { kept, gaps, .. } = progress.begin_keeping().expect("it was not kept");
        assert_eq!(gaps, [gap]);
        // Passed while the first was being recorded.
        let later = Gap { from: 7, to: 7 };
        progress.gaps.push(later);
        kept.send(true).unwrap();
        progress.wait_for_keeping().await;
        assert_eq!((progress.gaps.as_slice(), progress.kept), ([later].as_slice(), Some(position)));
    }

    /// The consumer delivers five messages, and they are purged, between our question about it and ours about the stream.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn messages_on_their_way_to_us_are_not_gone() {
        let bus = Bus::open().await;
        let terms = Terms::of(&bus.nats, clock::new_id());
        let (stream, _) = stream(&bus, 0).await;
        let consumer = terms::make_consumer(&stream, &terms, DeliverPolicy::All).await.unwrap();
        let client = async_nats::connect(bus.url()).await.unwrap();
        let prefix = format!("relay{}", clock::new_id().simple());
        let mut questions = client.subscribe(format!("{prefix}.>")).await.unwrap();
        client.flush().await.unwrap();
        let (relay, relayed, purged) = (client.clone(), prefix.clone(), stream.clone());
        let relay = tokio::spawn(async move {
            let mut asked = false;
            while let Some(question) = questions.next().await {
                let api = question.subject.replacen(&relayed, "$JS.API", 1);
                if asked && api.contains("STREAM.INFO") {
                    let mut delivered = consumer.fetch().max_messages(5).messages().await.unwrap();
                    while delivered.next().await.is_some() {}
                    purged.purge().await.unwrap();
                    asked = false;
                }
                asked = asked || api.contains("CONSUMER.INFO");
                let answer = relay.request(api, question.payload).await.unwrap();
                relay.publish(question.reply.unwrap(), answer.payload).await.unwrap();
            }
        });
        let through = jetstream::with_prefix(client, &prefix);
        let stream = through.get_stream(&terms.stream).await.unwrap();
        let look = look(&through, &stream, &terms, None).await.unwrap();
        // By the first answer there were none.
        assert_eq!((look.first_sequence, look.delivered), (6, 5));
        assert_eq!(Deliveries::after(0).begins(look.first_sequence, look.delivered), None, "{look:?}");
        relay.abort();
        bus.close().await;
    }
}
