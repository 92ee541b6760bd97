//! One connection, from its consumer to its end: pulls, has them read, counted and parked by tasks of their own, and
//! acknowledges the floor. The loop itself only moves things about; it waits for nothing but the next of them.

use std::time::Duration;

use async_nats::jetstream::message::Acker;
use async_nats::jetstream::stream::Stream;
use async_nats::jetstream::{Context, Message};
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument;

use super::counting::{CallEnded, Counter};
use super::deliveries::{Delivered, Deliveries};
use super::floor::Floor;
use super::lanes::{Bounds, Lanes};
use super::part::Settled;
use super::poison::{self, Standstill};
use super::reading::{Delivery, Pull, Reader, Sorted, span_of};
use super::resume::{self, Beginning, Look, News, Progress, nanos, note_gaps, number};
use super::room::Room;
use super::terms::Terms;
use super::{Ended, LAST_ACK_TIMEOUT};
use crate::config;
use crate::directory::handle::Handle as Directory;
use crate::domain::stream::{Checkpoint, Gap, hash};
use crate::fault;

/// How often the stream is looked at: is it the same, how much is waiting?
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often lanes are looked over.
const SWEEP_EVERY: Duration = Duration::from_millis(100);
/// How often the control database learns where we are, when we have moved.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(500);
/// When nothing could be read for this long, what is stuck is parked.
const PRESSURE_AFTER: Duration = Duration::from_secs(1);
/// How long calls may take when we leave.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);
/// How much longer than a tenant is waited for before its events are parked a session waits that is to be short.
const PARKED_WITHIN: Duration = Duration::from_secs(5);
/// A process that did not run for this long was frozen, perhaps: another node may read by now.
const FROZEN_AFTER: Duration = Duration::from_secs(5);
/// How long an idle pull stays open at the server, so how long one does whose reader was frozen; and how often the server
/// says that it is alive.
pub(super) const PULL_EXPIRES: Duration = Duration::from_secs(10);
const PULL_HEARTBEAT: Duration = Duration::from_secs(5);
/// A pull ends when it has this many bytes, so that long events do not pile up: here, or in the client, which asks for the
/// next while the last is being taken, and so has up to twice as many.
const PULL_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What the server counts beside a message itself: its subject, and where to acknowledge it.
const ENVELOPE_BYTES_MAX: usize = 64 * 1024;

/// What a session is given.
pub(super) struct Given<'a> {
    pub(super) nats: &'a config::Nats,
    pub(super) terms: &'a Terms,
    pub(super) reader: Reader,
    pub(super) directory: Directory,
    pub(super) progress: &'a mut Progress,
    /// Outlive the session: what is being committed is committed.
    pub(super) tasks: &'a mut JoinSet<()>,
    pub(super) standstill: &'a mut Standstill,
}

/// What is delivered; an error is the last of it.
type Messages = BoxStream<'static, Result<Message, String>>;

pub(super) struct Session<'a> {
    given: Given<'a>,
    context: Context,
    stream: Stream,
    messages: Messages,
    /// Behind these messages stands one that ends sessions.
    is_short: bool,
    counter: Counter,
    deliveries: Deliveries,
    floor: Floor<End>,
    lanes: Lanes,
    room: Room,
    tell: mpsc::UnboundedSender<Event>,
    /// As many as there are tasks, so bounded by the room.
    events: mpsc::UnboundedReceiver<Event>,
    under_way: usize,
    /// The last message that was acknowledged.
    acknowledged: Option<(u64, Acker)>,
    full_since: Option<Instant>,
    looking: bool,
    /// The last checkpoint could not be kept.
    unkept: bool,
    kept_at: Instant,
    _closed: DropGuard,
}

/// What is known of the last message of a pull.
struct End {
    position: Checkpoint,
    /// `None` when no message stands there: those up to it are gone.
    acker: Option<Acker>,
    /// Messages that were gone before the pull, or between its messages.
    gaps: Vec<Gap>,
}

/// What a task tells when it is done; `None` when it gave up, because we are closed.
enum Event {
    Sorted(Option<Sorted>),
    Called(CallEnded),
    Parked(CallEnded),
    Kept(Option<Settled>),
    Looked(Result<Look, Ended>),
    /// A checkpoint is kept, or could not be, and why; [`Progress`] has been told which.
    CheckpointKept(Result<(), Ended>),
}

/// What was there to be taken.
struct Taken {
    messages: Vec<Message>,
    bytes: usize,
    /// Why nothing comes after these.
    failed: Option<String>,
}

impl<'a> Session<'a> {
    /// Agrees with the server on where to read on.
    pub(super) async fn begin(context: Context, given: Given<'a>) -> Result<Session<'a>, Ended> {
        let Given { terms, nats, .. } = given;
        let mut beginning = resume::begin(&context, terms, &given.directory, given.progress).await?;
        let looked_at = nats.pull_messages.saturating_mul(2);
        let found = poison::search(&context, given.standstill, &given.reader, given.progress, looked_at).await?;
        if found.put_aside {
            beginning = resume::begin(&context, terms, &given.directory, given.progress).await?;
        }
        let Beginning { stream, consumer, read_to } = beginning;
        given.standstill.begins(consumer.cached_info().num_pending);
        let broken = |error: &dyn std::fmt::Display| Ended::Broken(error.to_string());
        // The longest message has to fit: one that does not would never come, nor anything after it.
        let longest = context.client().server_info().max_payload.saturating_add(ENVELOPE_BYTES_MAX);
        let bytes_max = PULL_BYTES_MAX.max(longest);
        let messages: Messages = if let Some(before) = found.before {
            // One pull, and none behind it.
            let pull = consumer.batch().max_messages(before.min(nats.pull_messages)).max_bytes(bytes_max);
            let pulled = pull.expires(PULL_EXPIRES).messages().await.map_err(|error| broken(&error))?;
            pulled.map(|next| next.map_err(|error| error.to_string())).boxed()
        } else {
            let pulls = consumer.stream().max_messages_per_batch(nats.pull_messages).max_bytes_per_batch(bytes_max);
            let pulled = pulls.expires(PULL_EXPIRES).heartbeat(PULL_HEARTBEAT).messages().await;
            pulled.map_err(|error| broken(&error))?.map(|next| next.map_err(|error| error.to_string())).boxed()
        };
        let Terms { stream: name, consumer, reader, .. } = terms;
        tracing::info!(stream = name, consumer, %reader, read_to, "reading the usage stream");
        let closed = CancellationToken::new();
        let counter = Counter { reader: given.reader.clone(), stream: terms.stream.clone(), closed: closed.clone() };
        let (tell, events) = mpsc::unbounded_channel();
        let bounds = Bounds {
            share_events: given.nats.in_flight_events / 2,
            park_after: config::millis(given.nats.park_after_ms),
        };
        Ok(Session {
            room: Room::new(given.nats.in_flight_events, given.nats.in_flight_bytes),
            lanes: Lanes::new(bounds),
            deliveries: Deliveries::after(read_to),
            given,
            context,
            stream,
            messages,
            counter,
            floor: Floor::default(),
            tell,
            events,
            under_way: 0,
            acknowledged: None,
            full_since: None,
            is_short: found.before.is_some(),
            looking: false,
            unkept: false,
            kept_at: Instant::now(),
            _closed: closed.drop_guard(),
        })
    }

    /// Reads until told to stop, which is `Ok`; what is in flight is committed and acknowledged then.
    pub(super) async fn run(mut self, lost: watch::Receiver<()>, stop: &CancellationToken) -> Result<(), Ended> {
        match self.read(lost, stop).await {
            Ok(()) => {
                self.leave().await;
                self.rise().await;
                self.confirm().await;
                Ok(())
            }
            // Whatever ended it may come again with the next message: what came before it is not lost for that. Nothing is
            // acknowledged: that might arrive after the next consumer of this name is made, and be taken for its own.
            Err(ended @ (Ended::Disconnected | Ended::Undelivered(_))) => {
                self.leave().await;
                self.pass();
                Err(ended)
            }
            Err(ended) => Err(ended),
        }
    }

    async fn read(&mut self, mut lost: watch::Receiver<()>, stop: &CancellationToken) -> Result<(), Ended> {
        let mut look = interval(LOOK_EVERY);
        let mut sweep = interval(SWEEP_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ran_at = Instant::now();
        // Of a session that is to be short: why nothing more comes, and until when what has come is waited for.
        let mut over: Option<(Ended, Instant)> = None;
        while !stop.is_cancelled() {
            // Swept far more often than this. Before anything is counted, whose turn it is has to be found out.
            let ran_before = std::mem::replace(&mut ran_at, Instant::now());
            if ran_at - ran_before >= FROZEN_AFTER {
                return Err(Ended::Broken("this process did not run for a while".to_owned()));
            }
            if let Some((ended, _)) = over.take_if(|(_, until)| self.floor.messages() == 0 || ran_at >= *until) {
                return Err(ended);
            }
            self.start_calls();
            let (most, bytes_max) = self.most();
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                _ = lost.changed(), if !self.is_short => return Err(Ended::Disconnected),
                Some(event) = self.events.recv() => self.hear(event)?,
                Some(joined) = self.given.tasks.join_next(), if !self.given.tasks.is_empty() => done(joined)?,
                _ = sweep.tick() => self.sweep(),
                _ = look.tick() => self.look(),
                taken = take(&mut self.messages, most, bytes_max), if most > 0 && over.is_none() => {
                    self.given.standstill.sees_something();
                    match self.pulled(taken).await {
                        Err(ended @ Ended::Undelivered(_)) if self.is_short => {
                            let parked = config::millis(self.given.nats.park_after_ms) + PARKED_WITHIN;
                            over = Some((ended, Instant::now() + parked));
                            self.lanes.run_out();
                        }
                        pulled => pulled?,
                    }
                }
            }
            self.rise().await;
        }
        Ok(())
    }

    /// Messages and bytes that may be pulled now.
    fn most(&mut self) -> (usize, usize) {
        let nats = self.given.nats;
        let unacknowledged = nats.ack_pending_max.saturating_sub(self.floor.messages());
        let most = self.room.free_events().min(nats.pull_messages).min(unacknowledged);
        if most > 0 {
            self.full_since = None;
        } else {
            self.full_since.get_or_insert_with(Instant::now);
        }
        (most, self.room.free_bytes().min(PULL_BYTES_MAX))
    }

    /// Lets a task do what would keep us from the rest.
    fn spawn(&mut self, task: impl Future<Output = Event> + Send + 'static) {
        self.under_way += 1;
        let tell = self.tell.clone();
        self.given.tasks.spawn(async move {
            let _ = tell.send(task.await);
        });
    }

    async fn pulled(&mut self, taken: Taken) -> Result<(), Ended> {
        let Taken { messages, bytes, failed } = taken;
        let mut deliveries = Vec::with_capacity(messages.len());
        let mut gaps = Vec::new();
        let mut end = None;
        for message in messages {
            let info = message.info().map_err(|error| Ended::Broken(format!("a message without numbers: {error}")))?;
            let (sequence, at) = (info.stream_sequence, nanos(info.published.unix_timestamp_nanos()));
            match self.deliveries.next(info.consumer_sequence, sequence) {
                Err(missing) => return Err(Ended::Undelivered(missing.to_string())),
                Ok(Delivered::Again) => self.again(&message, sequence).await,
                Ok(Delivered::New { gap }) => {
                    gaps.extend(gap);
                    let async_nats::Message { subject, reply, payload, headers, .. } = message.message;
                    end = Some((at, reply));
                    deliveries.push(Delivery { subject, headers, payload, sequence });
                }
            }
        }
        if let (Some((at_nanos, reply)), Some(last)) = (end, deliveries.last()) {
            let hash = Some(hash(at_nanos, &last.subject, &last.payload));
            let position = self.position(last.sequence, at_nanos, hash);
            let acker = Acker::new(self.context.clone(), reply);
            if fault::is_planted("ack-before-commit") {
                let _ = acker.ack().await;
                let _ = resume::keep(&self.given.directory, &position, &[]).await;
            }
            let items_max = deliveries.iter().map(|delivery| delivery.items_max(self.given.reader.limits)).sum();
            self.room.take(items_max, bytes);
            let number = self.floor.open(deliveries.len(), End { position, acker: Some(acker), gaps });
            let span = span_of(&deliveries);
            self.sort(Pull { number, since: Instant::now(), span, deliveries, items_max, bytes });
        }
        match failed {
            Some(reason) => Err(Ended::Undelivered(reason)),
            None => Ok(()),
        }
    }

    /// A message came again. What is in flight is acknowledged in its turn; what was acknowledged is once more.
    async fn again(&mut self, message: &Message, sequence: u64) {
        if self.acknowledged.as_ref().is_some_and(|(acknowledged, _)| sequence <= *acknowledged) {
            let _ = message.ack().await;
        }
    }

    fn position(&self, sequence: u64, at_nanos: i64, hash: Option<[u8; 32]>) -> Checkpoint {
        let created_nanos = self.given.progress.position.as_ref().map_or(0, |position| position.created_nanos);
        Checkpoint {
            stream: self.given.terms.stream.clone(),
            created_nanos,
            sequence: number(sequence),
            at_nanos,
            hash,
        }
    }

    fn sort(&mut self, pull: Pull) {
        metrics::histogram!("platform_api_stream_pull_messages").record(pull.deliveries.len() as f64);
        let (reader, span) = (self.given.reader.clone(), pull.span.clone());
        self.spawn(async move { Event::Sorted(reader.sort(pull).await) }.instrument(span));
    }

    fn start_calls(&mut self) {
        while let Some(call) = self.lanes.next(Instant::now()) {
            let counter = self.counter.clone();
            // What gathered for one call may belong to many pulls; the oldest stands for all.
            let span = call.parts.first().map_or_else(tracing::Span::none, |part| part.span.clone());
            self.spawn(async move { Event::Called(counter.call(call).await) }.instrument(span));
        }
    }

    fn hear(&mut self, event: Event) -> Result<(), Ended> {
        self.heard(event)?;
        while let Ok(event) = self.events.try_recv() {
            self.heard(event)?;
        }
        Ok(())
    }

    fn heard(&mut self, event: Event) -> Result<(), Ended> {
        self.under_way -= 1;
        match event {
            Event::Sorted(Some(sorted)) => self.sorted(sorted),
            Event::Sorted(None) => return Err(Ended::Broken("the runtime is ending".into())),
            Event::Called(CallEnded { tenant, settled, back }) => {
                self.lanes.ended(tenant, settled.items, back, Instant::now());
                self.settle(&settled);
            }
            Event::Parked(CallEnded { tenant, settled, back }) => {
                self.lanes.take_back(tenant, back, Instant::now());
                self.settle(&settled);
            }
            Event::Kept(settled) => self.settle(&settled.unwrap_or_default()),
            Event::Looked(look) => {
                self.looking = false;
                self.looked(look?)?;
            }
            Event::CheckpointKept(result) => {
                let _ = self.given.progress.wait_for_keeping().now_or_never();
                self.tell_of_keeping(result);
            }
        }
        Ok(())
    }

    /// A pull was read: hands its parts to their lanes, and what nobody can count to the quarantine.
    fn sorted(&mut self, sorted: Sorted) {
        self.floor.read(sorted.pull, sorted.items);
        self.room.leave(sorted.items_max, sorted.message_bytes);
        self.room.take(sorted.items, sorted.bytes);
        for (tenant, part) in sorted.parts {
            self.lanes.offer(tenant, part);
        }
        if !sorted.refused.is_empty() {
            let counter = self.counter.clone();
            let (pull, rows) = (sorted.pull, sorted.refused);
            self.spawn(async move { Event::Kept(counter.refuse(pull, rows).await) });
        }
    }

    fn settle(&mut self, settled: &Settled) {
        for (pull, items) in &settled.pulls {
            self.floor.settle(*pull, *items);
        }
        self.room.leave(settled.items, settled.bytes);
    }

    /// Acknowledges what has been settled, and remembers how far that is.
    async fn rise(&mut self) {
        if !self.pass() {
            return;
        }
        let Some((_, acker)) = &self.acknowledged else { return };
        fault::point("ack.before");
        if let Err(error) = acker.ack().await {
            // They come again after the server's patience, and are recognised.
            tracing::debug!(%error, "the floor could not be acknowledged");
        }
        fault::point("ack.after");
    }

    /// Remembers how far everything is settled; true when that is something to acknowledge.
    fn pass(&mut self) -> bool {
        let mut passed = false;
        for end in self.floor.rise() {
            note_gaps(&self.given.terms.stream, &end.gaps);
            self.given.progress.gaps.extend(end.gaps);
            if let Some(acker) = end.acker {
                self.acknowledged = Some((u64::try_from(end.position.sequence).unwrap_or(0), acker));
            }
            self.given.progress.position = Some(end.position);
            passed = true;
        }
        passed
    }

    fn sweep(&mut self) {
        let now = Instant::now();
        let pressure = self.full_since.is_some_and(|since| now - since >= PRESSURE_AFTER);
        self.lanes.may_park(self.given.reader.recorder.may_park());
        for (tenant, parts) in self.lanes.sweep(pressure, now) {
            let counter = self.counter.clone();
            self.spawn(async move { Event::Parked(counter.park(tenant, parts).await) });
        }
        self.room.tell();
        if now - self.kept_at >= CHECKPOINT_EVERY {
            self.kept_at = now;
            self.keep_checkpoint();
        }
    }

    fn keep_checkpoint(&mut self) {
        let Some(News { checkpoint, gaps, kept }) = self.given.progress.begin_keeping() else { return };
        let directory = self.given.directory.clone();
        self.spawn(async move {
            let result = resume::keep(&directory, &checkpoint, &gaps).await;
            // Not the event alone: this session may end before it hears, and the next has to know.
            let _ = kept.send(result.is_ok());
            Event::CheckpointKept(result)
        });
    }

    /// Tries are two a second: one line when they begin to fail, and one when that is over.
    fn tell_of_keeping(&mut self, result: Result<(), Ended>) {
        match (result, std::mem::take(&mut self.unkept)) {
            (Ok(()), true) => tracing::info!("the stream's checkpoint is kept again"),
            (Ok(()), false) => {}
            (Err(error), was_unkept) => {
                if !was_unkept {
                    tracing::warn!(%error, "the stream's checkpoint cannot be kept; what is read since would be read again");
                }
                self.unkept = true;
            }
        }
    }

    fn look(&mut self) {
        if self.looking {
            return;
        }
        let (stream, terms) = (self.stream.clone(), self.given.terms.clone());
        let (context, position) = (self.context.clone(), self.given.progress.position.clone());
        self.looking = true;
        self.spawn(async move { Event::Looked(resume::look(&context, &stream, &terms, position.as_ref()).await) });
    }

    fn looked(&mut self, look: Look) -> Result<(), Ended> {
        if let Some(anomaly) = look.anomaly {
            return Err(Ended::NotTheSame(anomaly));
        }
        if let Some(gap) = self.deliveries.begins(look.first_sequence, look.delivered) {
            let at_nanos = self.given.progress.position.as_ref().map_or(0, |position| position.at_nanos);
            let position = Checkpoint { sequence: gap.to, ..self.position(0, at_nanos, None) };
            let pull = self.floor.open(0, End { position, acker: None, gaps: vec![gap] });
            self.floor.read(pull, 0);
        }
        Ok(())
    }

    /// Takes nothing new, and lets what is in flight commit.
    async fn leave(&mut self) {
        self.lanes.close();
        let settled = async {
            loop {
                self.start_calls();
                // A look may wait for an answer that does not come any more.
                if self.under_way == usize::from(self.looking) {
                    break;
                }
                match self.events.recv().await {
                    // It says nothing about what is in flight.
                    Some(Event::Looked(_)) => {
                        self.under_way -= 1;
                        self.looking = false;
                    }
                    Some(event) => {
                        if self.heard(event).is_err() {
                            break;
                        }
                    }
                    None => break,
                }
            }
        };
        if timeout(LEAVE_TIMEOUT, settled).await.is_err() {
            tracing::info!("not everything in flight was committed in time; it comes again");
        }
    }

    /// Acknowledgements are not answered by the server; the last one is sent again in a way that is.
    async fn confirm(&mut self) {
        let Some((_, acker)) = &self.acknowledged else { return };
        if !matches!(timeout(LAST_ACK_TIMEOUT, acker.double_ack()).await, Ok(Ok(()))) {
            tracing::info!("the last acknowledgement was not confirmed; some messages may come again");
        }
    }
}

/// A task that panicked leaves its part unsettled: only a new session brings it again.
fn done(joined: Result<(), tokio::task::JoinError>) -> Result<(), Ended> {
    joined.map_err(|error| Ended::Broken(format!("a task failed: {error}")))
}

/// Waits for a first message, then takes what else is there already and has room.
async fn take(messages: &mut Messages, most: usize, bytes_max: usize) -> Taken {
    let mut taken = Taken { messages: Vec::new(), bytes: 0, failed: None };
    let mut next = messages.next().await;
    loop {
        match next {
            Some(Ok(message)) => {
                taken.bytes += message.payload.len();
                taken.messages.push(message);
            }
            Some(Err(error)) => taken.failed = Some(error),
            None => taken.failed = Some("it ended".to_owned()),
        }
        if taken.failed.is_some() || taken.messages.len() >= most || taken.bytes >= bytes_max {
            return taken;
        }
        match messages.next().now_or_never() {
            Some(more) => next = more,
            None => return taken,
        }
    }
}
