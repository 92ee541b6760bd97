//! Usage events from JetStream: pulled, counted, and acknowledged after the commit.
//!
//! One durable consumer for the node. Each pull takes what is there, is counted in a task of its own (one call per
//! tenant, all tenants at once), and acknowledges its messages one by one; several pulls are in flight while earlier
//! ones commit. A tenant that cannot take its events costs a negative acknowledgement with a delay, and nobody else
//! anything. What can never be counted is quarantined, and acknowledged too.
//!
//! Acknowledgements and stream sequences are hints: the tenant's ledger decides what was counted. So a lost
//! acknowledgement, a lost connection and a stream that went backwards all end in the same way: the messages come
//! again, and are known.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::{self, AckKind, Context, Message};
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt};
use secrecy::ExposeSecret;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use super::arrival::{self, Arrival, Format, Item, Limits, READ_INLINE_BYTES_MAX, Reading, Reporter};
use super::record::{Consignment, Recorder, Settled};
use super::stream_terms::{self, Terms, Watch};
use super::{cloudevents, text};
use crate::clock::{self, Clock};
use crate::config;
use crate::domain::books::Cursor;
use crate::domain::ids::TenantId;
use crate::domain::time::Timestamp;
use crate::domain::usage::Refusal;
use crate::fault;
use crate::telemetry;

/// How long a connection attempt and each question to JetStream may take.
const NATS_TIMEOUT: Duration = Duration::from_secs(5);
/// First delay before the stream is tried again; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// How often the stream is looked at: has it gone backwards, how much is waiting?
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// How long an idle pull stays open at the server, and how often the server says that it is alive.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
const PULL_HEARTBEAT: Duration = Duration::from_secs(5);
/// A pull ends when it has this many bytes, so that long events do not pile up.
const PULL_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How many full pulls are counted at once, at most. The room is counted in messages, so that what arrives in small
/// pieces gathers into large commits all the same.
const PULLS_IN_FLIGHT_MAX: usize = 8;
/// A pull takes the room of one more message for each of these bytes.
const MESSAGE_BYTES: usize = 16 * 1024;
/// How long a message waits for room in its tenant before it is sent back.
const PATIENCE: Duration = Duration::from_millis(250);
/// A message that comes back again and again waits up to this many times `nats.nak_delay_ms`.
const NAK_DELAYS_MAX: i64 = 30;
/// How long the last acknowledgement may take when we leave.
const LAST_ACK_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether the stream is being read; for health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamHealth {
    Connected,
    Disconnected {
        since: Timestamp,
        /// For a person; without secrets.
        reason: String,
    },
}

/// Reads the usage stream until it is told to stop.
pub struct UsageStream {
    nats: config::Nats,
    clock: Clock,
    worker: Arc<Worker>,
    health: watch::Sender<StreamHealth>,
}

/// Why a session with the stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("NATS cannot be reached: {0}")]
    Unreachable(String),
    /// A person has to change the stream or our settings.
    #[error("{0}")]
    Refused(String),
    #[error("the connection was lost")]
    Disconnected,
    #[error("the stream could not be read: {0}")]
    Broken(String),
    #[error("the stream went backwards; its consumer was made anew, and what was counted is recognised")]
    WentBackwards,
}

impl UsageStream {
    #[must_use]
    pub fn new(nats: config::Nats, recorder: Recorder, clock: Clock) -> UsageStream {
        let reason = "not connected yet".to_owned();
        let (health, _) = watch::channel(StreamHealth::Disconnected { since: clock.now(), reason });
        let worker = Arc::new(Worker {
            limits: recorder.limits(Format::Events),
            recorder,
            subject: nats.subject.clone(),
            nak_delay: config::millis(nats.nak_delay_ms),
        });
        UsageStream { nats, clock, worker, health }
    }

    /// Follows whether the stream is being read.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<StreamHealth> {
        self.health.subscribe()
    }

    /// Reads until `stop`; then takes nothing new, lets what is in flight commit, acknowledges it and returns. Never
    /// gives up otherwise: whatever goes wrong is tried again with backoff while the health says so.
    pub async fn run(self, stop: CancellationToken) {
        let mut seen = Watch::default();
        let mut in_flight = JoinSet::new();
        let mut backoff = BACKOFF_MIN;
        while !stop.is_cancelled() {
            match self.session(&stop, &mut seen, &mut in_flight).await {
                Ok(()) => break,
                Err(ended) => {
                    if *self.health.borrow() == StreamHealth::Connected {
                        backoff = BACKOFF_MIN;
                    }
                    self.report(&ended);
                }
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(jittered(backoff)) => {}
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
        finish(in_flight).await;
        let reason = "stopped".to_owned();
        self.health.send_replace(StreamHealth::Disconnected { since: self.clock.now(), reason });
    }

    fn report(&self, ended: &Ended) {
        metrics::gauge!("platform_api_stream_connected").set(0.0);
        match ended {
            Ended::Refused(_) => tracing::error!(reason = %ended, "the usage stream cannot be read"),
            _ => tracing::warn!(reason = %ended, "the usage stream is not being read"),
        }
        let reason = ended.to_string();
        let now = self.clock.now();
        self.health.send_if_modified(|health| match health {
            StreamHealth::Disconnected { reason: known, .. } if *known == reason => false,
            // The first moment counts, whatever else goes wrong afterwards.
            StreamHealth::Disconnected { reason: known, .. } => {
                *known = reason;
                true
            }
            StreamHealth::Connected => {
                *health = StreamHealth::Disconnected { since: now, reason };
                true
            }
        });
    }

    /// One connection, from beginning to end. `Ok` when told to stop.
    async fn session(
        &self,
        stop: &CancellationToken,
        seen: &mut Watch,
        in_flight: &mut JoinSet<Option<Message>>,
    ) -> Result<(), Ended> {
        let (context, mut lost) = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            connected = connect(&self.nats) => connected?,
        };
        let terms = Terms::of(&self.nats);
        let (stream, consumer) = stream_terms::agree(&context, &terms).await?;
        stream_terms::check(&stream, &terms, seen).await?;
        let mut messages = consumer
            .stream()
            .max_messages_per_batch(self.nats.pull_messages)
            .expires(PULL_EXPIRES)
            .heartbeat(PULL_HEARTBEAT)
            .messages()
            .await
            .map_err(|error| Ended::Broken(error.to_string()))?;
        self.health.send_replace(StreamHealth::Connected);
        metrics::gauge!("platform_api_stream_connected").set(1.0);
        tracing::info!(stream = terms.stream, consumer = terms.consumer, "reading the usage stream");

        let pulls = (self.nats.ack_pending_max / self.nats.pull_messages).clamp(1, PULLS_IN_FLIGHT_MAX);
        let room = Arc::new(Semaphore::new(pulls * self.nats.pull_messages));
        let mut check = tokio::time::interval(CHECK_INTERVAL);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                _ = lost.changed() => return Err(Ended::Disconnected),
                Some(_) = in_flight.join_next(), if !in_flight.is_empty() => {}
                _ = check.tick() => stream_terms::check(&stream, &terms, seen).await?,
                (permit, pull) = take(&room, &mut messages, self.nats.pull_messages) => {
                    let Pull { messages, failed } = pull;
                    if !messages.is_empty() {
                        let worker = self.worker.clone();
                        let span = tracing::info_span!("usage_pull", messages = messages.len());
                        // A pull has many senders; the first that tells its trace stands for all.
                        if let Some(traceparent) = messages.iter().find_map(traceparent) {
                            telemetry::parent_from_traceparent(&span, traceparent);
                        }
                        in_flight.spawn(async move {
                            let last = worker.count(messages).await;
                            drop(permit);
                            last
                        }.instrument(span));
                    }
                    if let Some(reason) = failed {
                        return Err(Ended::Broken(reason));
                    }
                }
            }
        }
    }
}

/// The trace a message belongs to, if its sender says.
fn traceparent(message: &Message) -> Option<&str> {
    Some(message.headers.as_ref()?.get("traceparent")?.as_str())
}

async fn connect(nats: &config::Nats) -> Result<(Context, watch::Receiver<()>), Ended> {
    // Fails when a provider is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (sender, lost) = watch::channel(());
    let client = async_nats::ConnectOptions::new()
        .name("platform-api")
        .connection_timeout(NATS_TIMEOUT)
        .event_callback(move |event| {
            if matches!(event, async_nats::Event::Disconnected | async_nats::Event::Closed) {
                sender.send_replace(());
            }
            std::future::ready(())
        })
        .connect(servers(nats)?)
        .await
        // The kind and not the error: the latter may quote the address, and an address may hold a password.
        .map_err(|error| Ended::Unreachable(error.kind().to_string()))?;
    let context = jetstream::ContextBuilder::new().timeout(NATS_TIMEOUT).build(client);
    Ok((context, lost))
}

/// One server, or several separated by commas.
fn servers(nats: &config::Nats) -> Result<Vec<async_nats::ServerAddr>, Ended> {
    let url = nats.url.as_ref().ok_or_else(|| Ended::Refused("nats.url is not set".to_owned()))?;
    let servers = url.expose_secret().split(',').map(|one| one.trim().parse()).collect::<Result<_, _>>();
    servers.map_err(|_| Ended::Refused("nats.url: not the URL of a NATS server".to_owned()))
}

/// What one pull brought.
struct Pull {
    messages: Vec<Message>,
    /// Why nothing comes after these.
    failed: Option<String>,
}

impl Pull {
    /// The room it takes, besides that which was there for its first message.
    fn further(&self, bytes: usize) -> usize {
        (self.messages.len() + bytes / MESSAGE_BYTES).saturating_sub(1)
    }
}

/// Waits for room and for a first message, then takes what else is there already and has room.
async fn take(
    room: &Arc<Semaphore>,
    messages: &mut pull::Stream,
    messages_max: usize,
) -> (Option<tokio::sync::OwnedSemaphorePermit>, Pull) {
    let mut permit = room.clone().acquire_owned().await.ok();
    // Nobody else takes room, so there is never less of it than now.
    let free = room.available_permits();
    let mut pull = Pull { messages: Vec::new(), failed: None };
    let mut bytes = 0;
    let mut next = messages.next().await;
    loop {
        match next {
            Some(Ok(message)) => {
                bytes += message.length;
                pull.messages.push(message);
            }
            Some(Err(error)) => pull.failed = Some(error.to_string()),
            None => pull.failed = Some("it ended".to_owned()),
        }
        let full = pull.messages.len() >= messages_max || bytes >= PULL_BYTES_MAX || pull.further(bytes) >= free;
        if pull.failed.is_some() || full {
            break;
        }
        match messages.next().now_or_never() {
            Some(more) => next = more,
            None => break,
        }
    }
    let further = u32::try_from(pull.further(bytes).min(free)).unwrap_or(u32::MAX);
    let more = room.clone().try_acquire_many_owned(further).ok();
    if let (Some(permit), Some(more)) = (permit.as_mut(), more) {
        permit.merge(more);
    }
    (permit, pull)
}

/// Waits until everything in flight is committed and acknowledged. Acknowledgements are not answered by the server;
/// the last one is sent again in a way that is, so that all before it have arrived when we leave.
async fn finish(mut in_flight: JoinSet<Option<Message>>) {
    let mut last = None;
    while let Some(done) = in_flight.join_next().await {
        last = done.ok().flatten().or(last);
    }
    let Some(message) = last else { return };
    if tokio::time::timeout(LAST_ACK_TIMEOUT, message.double_ack()).await.is_err() {
        tracing::info!("the last acknowledgement was not confirmed; some messages may come again");
    }
}

/// Between half of `delay` and all of it, so that many nodes do not come back at once.
fn jittered(delay: Duration) -> Duration {
    let [random] = clock::random_bytes::<1>();
    delay / 2 + (delay / 2) * u32::from(random) / 255
}

/// Counts pulls.
struct Worker {
    recorder: Recorder,
    limits: Limits,
    subject: String,
    nak_delay: Duration,
}

impl Worker {
    /// Counts and acknowledges; the last acknowledged message.
    async fn count(self: Arc<Worker>, messages: Vec<Message>) -> Option<Message> {
        metrics::histogram!("platform_api_stream_pull_messages").record(messages.len() as f64);
        let (messages, consignments) = self.clone().read(messages).await?;
        if fault::is_planted("ack-before-commit") {
            join_all(messages.iter().map(|message| message.ack())).await;
        }
        let settled = self.recorder.settle(consignments).await;
        fault::point("ack.before");
        let mut last = None;
        for (message, settled) in messages.into_iter().zip(settled) {
            if self.answer(&message, &settled).await {
                last = Some(message);
            }
        }
        fault::point("ack.after");
        last
    }

    /// One consignment per message; `None` when the runtime is shutting down, and the messages come again.
    async fn read(self: Arc<Worker>, messages: Vec<Message>) -> Option<(Vec<Message>, Vec<Consignment>)> {
        let started = tokio::time::Instant::now();
        let bytes: usize = messages.iter().map(|message| message.payload.len()).sum();
        let read = move || {
            let consignments = messages.iter().map(|message| self.consignment(message)).collect();
            (messages, consignments)
        };
        let read =
            if bytes <= READ_INLINE_BYTES_MAX { Some(read()) } else { tokio::task::spawn_blocking(read).await.ok() };
        metrics::histogram!("platform_api_usage_parse_seconds").record(started.elapsed().as_secs_f64());
        read
    }

    fn consignment(&self, message: &Message) -> Consignment {
        let headers = message.headers.iter().flat_map(|headers| headers.iter());
        let pairs = headers
            .flat_map(|(name, values)| values.iter().map(move |value| (AsRef::<str>::as_ref(name), value.as_str())));
        let body = cloudevents::structured(pairs, message.payload.clone());
        let arrival = Arrival {
            origin: format!("nats:{}", text::printable(&message.subject, 256)),
            format: Format::Events,
            request_id: String::new(),
            patience: PATIENCE,
        };
        let cursor = message.info().ok().map(|info| Cursor {
            stream: info.stream.to_owned(),
            sequence: i64::try_from(info.stream_sequence).unwrap_or(i64::MAX),
        });
        let reporter = reporter(&message.subject, &self.subject);
        let mut items = items(&body, self.limits);
        if fault::is_planted("dedupe-by-sequence") {
            let sequence = cursor.as_ref().map_or(0, |cursor| cursor.sequence);
            let read = items.iter_mut().filter_map(|item| item.reading.as_mut().ok());
            read.for_each(|parsed| parsed.event.source = format!("{sequence}"));
        }
        Consignment { items, reporter, arrival: Arc::new(arrival), cursor }
    }

    /// Acknowledges a message all of whose items are settled, sends it back otherwise. True when acknowledged.
    async fn answer(&self, message: &Message, settled: &[Settled]) -> bool {
        let later = settled.iter().find_map(|settled| match settled {
            Settled::Later(not_now) => Some(not_now),
            Settled::Done(_) => None,
        });
        let answered = match later {
            None => message.ack().await,
            Some(not_now) => {
                metrics::counter!("platform_api_stream_naks_total", "cause" => not_now.why.name()).increment(1);
                let delivered = message.info().map_or(1, |info| info.delivered);
                message.ack_with(AckKind::Nak(Some(nak_delay(self.nak_delay, delivered)))).await
            }
        };
        if let Err(error) = &answered {
            // It comes again after the server's patience, and is recognised.
            tracing::debug!(%error, "a message could not be acknowledged");
        }
        answered.is_ok() && later.is_none()
    }
}

/// Longer with each delivery: a frozen tenant's backlog must not be delivered every second.
fn nak_delay(delay: Duration, delivered: i64) -> Duration {
    delay * u32::try_from(delivered.clamp(1, NAK_DELAYS_MAX)).unwrap_or(1)
}

/// A message's items. One that is too long, or holds too many, is one item to be quarantined.
fn items(body: &Bytes, limits: Limits) -> Vec<Item> {
    let refused = |problem| vec![Item { raw: body.clone(), reading: Err(problem) }];
    if body.len() > limits.event_bytes_max {
        let problem = format!("{} bytes, at most {} are allowed", body.len(), limits.event_bytes_max);
        return refused(text::unreadable(Refusal::Oversized, problem));
    }
    match arrival::read(body, Format::Events, limits) {
        Ok(Reading { items, .. }) if items.is_empty() => refused(text::malformed("an empty array")),
        Ok(Reading { items, .. }) => items,
        Err(too_many) => refused(text::unreadable(Refusal::Oversized, too_many.to_string())),
    }
}

/// Who speaks on this subject: the platform, or the tenant whose id is its last token. A token that is no id stands
/// for the nil id, which no tenant has, so that its messages are quarantined.
fn reporter(subject: &str, base: &str) -> Reporter {
    match subject.strip_prefix(base).and_then(|rest| rest.strip_prefix('.')) {
        Some(token) => Reporter::Tenant(token.parse().unwrap_or(TenantId(Uuid::nil()))),
        None => Reporter::Platform,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { events_max: 2, event_bytes_max: 100 };

    #[test]
    fn the_subject_says_who_speaks() {
        let tenant: TenantId = "6f1c9f0e-2f6b-4c0c-9d39-3f3a1c2b4d5e".parse().unwrap();
        let nobody = Reporter::Tenant(TenantId(Uuid::nil()));
        for (subject, expected) in [
            ("quota.updated", Reporter::Platform),
            ("quota.updated.6f1c9f0e-2f6b-4c0c-9d39-3f3a1c2b4d5e", Reporter::Tenant(tenant)),
            ("quota.updated.acme", nobody),
            ("quota.updated.", nobody),
        ] {
            assert_eq!(reporter(subject, "quota.updated"), expected, "{subject}");
        }
    }

    #[test]
    fn a_message_is_never_without_items() {
        let long = format!("{{\"pad\":\"{}\"}}", "x".repeat(200));
        for (body, reason) in [
            ("[]", Refusal::Malformed),
            ("", Refusal::Malformed),
            ("garbage", Refusal::Malformed),
            ("[{},{},{}]", Refusal::Oversized),
            (long.as_str(), Refusal::Oversized),
        ] {
            let items = items(&Bytes::copy_from_slice(body.as_bytes()), LIMITS);
            assert_eq!(items.len(), 1, "{body}");
            assert_eq!(items[0].raw, body.as_bytes());
            assert_eq!(items[0].reading.as_ref().unwrap_err().reason, reason, "{body}");
        }
    }

    #[test]
    fn delays_grow_and_end() {
        let delay = Duration::from_secs(1);
        assert_eq!(nak_delay(delay, 1), delay);
        assert_eq!(nak_delay(delay, 7), 7 * delay);
        assert_eq!(nak_delay(delay, i64::MAX), 30 * delay);
        for _ in 0..100 {
            assert!((delay / 2..=delay).contains(&jittered(delay)));
        }
    }
}
