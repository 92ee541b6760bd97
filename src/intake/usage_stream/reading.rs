//! From messages to each tenant's part of them.

use std::collections::HashMap;
use std::sync::Arc;

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use tokio::time::Instant;
use tracing::Span;
use uuid::Uuid;

use super::part::{Part, Piece};
use crate::domain::ids::TenantId;
use crate::domain::report::Quarantined;
use crate::domain::time::Timestamp;
use crate::domain::usage::{Refusal, UsageEvent};
use crate::fault;
use crate::intake::arrival::{self, Format, Item, Limits, READ_INLINE_BYTES_MAX, Reporter};
use crate::intake::record::{Arrived, Recorder, Rejection};
use crate::intake::tally::is_from_litellm;
use crate::intake::{cloudevents, quarantine, text};
use crate::telemetry;

/// A message, without what only its acknowledgement needs.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) subject: Subject,
    pub(super) headers: Option<HeaderMap>,
    pub(super) payload: Bytes,
    pub(super) sequence: u64,
}

/// Items of one message that are no events, above which they are kept as one: the message.
const GARBAGE_MAX: usize = 100;
/// The shortest item of an array, `{}`, and what divides it from the next.
const ITEM_BYTES_MIN: usize = 3;

/// What arrived at once.
#[derive(Debug)]
pub(super) struct Pull {
    pub(super) number: u64,
    pub(super) since: Instant,
    pub(super) span: Span,
    pub(super) deliveries: Vec<Delivery>,
    /// As many items as these may become.
    pub(super) items_max: usize,
    /// Of all payloads.
    pub(super) bytes: usize,
}

/// A pull, read.
#[derive(Debug)]
pub(super) struct Sorted {
    pub(super) pull: u64,
    /// Items that there might have been, and payload bytes that were read.
    pub(super) items_max: usize,
    pub(super) message_bytes: usize,
    pub(super) parts: Vec<(TenantId, Part)>,
    /// What nobody can count.
    pub(super) refused: Vec<Quarantined>,
    pub(super) items: usize,
    pub(super) bytes: usize,
}

/// Reads messages.
#[derive(Clone)]
pub(super) struct Reader {
    pub(super) recorder: Recorder,
    pub(super) limits: Limits,
    /// The subject of the platform's own messages.
    pub(super) subject: String,
}

impl Reader {
    /// `None` when the runtime is shutting down.
    pub(super) async fn sort(self, pull: Pull) -> Option<Sorted> {
        let started = Instant::now();
        let now = self.recorder.now();
        let pull = Arc::new(pull);
        let mut sorted = self.sort_somewhere(&pull, now).await;
        // Who is unknown here may have been made by another node a moment ago.
        if sorted.as_ref().is_some_and(Sorted::has_unowned) && self.recorder.directory().catch_up().await {
            sorted = self.sort_somewhere(&pull, now).await;
        }
        metrics::histogram!("platform_api_usage_parse_seconds").record(started.elapsed().as_secs_f64());
        sorted
    }

    async fn sort_somewhere(&self, pull: &Arc<Pull>, now: Timestamp) -> Option<Sorted> {
        if pull.bytes <= READ_INLINE_BYTES_MAX {
            return Some(self.sort_now(pull, now));
        }
        let (reader, pull) = (self.clone(), pull.clone());
        tokio::task::spawn_blocking(move || reader.sort_now(&pull, now)).await.ok()
    }

    fn sort_now(&self, pull: &Pull, now: Timestamp) -> Sorted {
        let (since, span) = (pull.since, &pull.span);
        let mut sorted = Sorted {
            pull: pull.number,
            items_max: pull.items_max,
            message_bytes: pull.bytes,
            parts: Vec::new(),
            refused: Vec::new(),
            items: 0,
            bytes: 0,
        };
        let mut places: HashMap<TenantId, usize, ahash::RandomState> = HashMap::default();
        let mut items = Vec::new();
        for delivery in &pull.deliveries {
            let reporter = self.reporter(&delivery.subject);
            let body = delivery.body();
            read_items(&mut items, &body, self.limits);
            gather_garbage(&mut items, &body);
            for item in items.drain(..) {
                sorted.items += 1;
                sorted.bytes += item.raw.len();
                match self.recorder.attributed(Arrived { reading: item.reading, reporter, at: now }) {
                    Ok((tenant, mut event)) => {
                        if fault::is_planted("dedupe-by-sequence") {
                            event.source = delivery.sequence.to_string();
                        }
                        let piece = Piece {
                            raw: item.raw,
                            subject: delivery.subject.clone(),
                            sequence: delivery.sequence,
                            from_litellm: is_from_litellm(&event),
                        };
                        let part = sorted.part_of(tenant, (since, span), &mut places);
                        part.pieces.push(piece);
                        part.events.push(event);
                    }
                    Err(rejection) => {
                        sorted.refused.push(self.row(&delivery.subject, &item.raw, &rejection, now));
                    }
                }
            }
        }
        sorted
    }

    /// The events of a part whose events were given away; `None` if they cannot be read again.
    pub(super) fn read_again(&self, part: &Part) -> Option<Vec<UsageEvent>> {
        let read = |piece: &Piece| {
            let read = arrival::read_item(&piece.raw, Format::Events, self.limits.event_bytes_max);
            read.ok().map(|parsed| parsed.event)
        };
        part.pieces.iter().map(read).collect()
    }

    /// A row for the quarantine.
    pub(super) fn row(&self, subject: &Subject, raw: &Bytes, rejection: &Rejection, now: Timestamp) -> Quarantined {
        let origin = format!("nats:{}", text::printable(subject, 256));
        quarantine::row(&origin, Format::Events, self.reporter(subject), raw, rejection, now)
    }

    fn reporter(&self, subject: &Subject) -> Reporter {
        reporter(subject, &self.subject)
    }
}

impl Sorted {
    fn has_unowned(&self) -> bool {
        self.refused.iter().any(|row| row.reason == Refusal::UnknownTenant)
    }

    fn part_of(
        &mut self,
        tenant: TenantId,
        (since, span): (Instant, &Span),
        places: &mut HashMap<TenantId, usize, ahash::RandomState>,
    ) -> &mut Part {
        let at = *places.entry(tenant).or_insert_with(|| {
            self.parts.push((
                tenant,
                Part {
                    pull: self.pull,
                    since,
                    span: span.clone(),
                    pieces: Vec::new(),
                    events: Vec::new(),
                    copied: false,
                },
            ));
            self.parts.len() - 1
        });
        &mut self.parts[at].1
    }
}

impl Delivery {
    /// The payload, or the one structured event that a binary CloudEvent is.
    fn body(&self) -> Bytes {
        let Some(headers) = &self.headers else { return self.payload.clone() };
        let pairs = headers
            .iter()
            .flat_map(|(name, values)| values.iter().map(move |value| (AsRef::<str>::as_ref(name), value.as_str())));
        cloudevents::structured(pairs, self.payload.clone())
    }

    /// As many items as it may hold: memory is taken for each of them.
    pub(super) fn items_max(&self, limits: Limits) -> usize {
        match self.payload.trim_ascii_start().first() {
            Some(b'[') => (self.payload.len() / ITEM_BYTES_MIN).clamp(1, limits.events_max.max(1)),
            _ => 1,
        }
    }

    /// The trace it belongs to, if its sender says.
    fn traceparent(&self) -> Option<&str> {
        Some(self.headers.as_ref()?.get("traceparent")?.as_str())
    }
}

/// A pull has many senders; the first that tells its trace stands for all.
pub(super) fn span_of(deliveries: &[Delivery]) -> Span {
    let span = tracing::info_span!("usage_pull", messages = deliveries.len());
    if let Some(traceparent) = deliveries.iter().find_map(Delivery::traceparent) {
        telemetry::parent_from_traceparent(&span, traceparent);
    }
    span
}

/// Reads a message's items to the end of `items`. One that is too long, or holds too many, is one item to be quarantined.
fn read_items(items: &mut Vec<Item>, body: &Bytes, limits: Limits) {
    let refused = |problem| Item { raw: body.clone(), reading: Err(problem) };
    if body.len() > limits.event_bytes_max {
        let problem = format!("{} bytes, at most {} are allowed", body.len(), limits.event_bytes_max);
        items.push(refused(text::unreadable(Refusal::Oversized, problem)));
        return;
    }
    let before = items.len();
    match arrival::read_into(items, body, Format::Events, limits) {
        Ok(_) if items.len() == before => items.push(refused(text::malformed("an empty array"))),
        Ok(_) => {}
        Err(too_many) => items.push(refused(text::unreadable(Refusal::Oversized, too_many.to_string()))),
    }
}

/// A message full of what is no event is kept once, as it came, and not a hundred times its length in pieces.
fn gather_garbage(items: &mut Vec<Item>, body: &Bytes) {
    let is_garbage = |item: &Item| matches!(&item.reading, Err(problem) if problem.reason == Refusal::Malformed);
    let count = items.iter().filter(|item| is_garbage(item)).count();
    if count <= GARBAGE_MAX {
        return;
    }
    let first = items.iter().find_map(|item| item.reading.as_ref().err().map(|problem| problem.detail.clone()));
    items.retain(|item| !is_garbage(item));
    let problem = format!("{count} items of this message are no events; the first: {}", first.unwrap_or_default());
    items.push(Item { raw: body.clone(), reading: Err(text::malformed(problem)) });
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
    use crate::intake::node_test::event;

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
    fn a_message_full_of_garbage_is_kept_once_and_its_events_are_counted() {
        let limits = Limits { events_max: 5_000, event_bytes_max: 1 << 20 };
        let read = |garbage: usize| {
            let event = event("1", Some(TenantId(Uuid::from_u128(7))), 1);
            let body = format!("[{}{event}]", "{},".repeat(garbage));
            let mut items = Vec::new();
            let bytes = Bytes::from(body.clone());
            read_items(&mut items, &bytes, limits);
            gather_garbage(&mut items, &bytes);
            (body, items)
        };
        assert_eq!(read(GARBAGE_MAX).1.len(), GARBAGE_MAX + 1);
        let (body, items) = read(GARBAGE_MAX + 1);
        assert_eq!(items.len(), 2);
        assert!(items[0].reading.is_ok(), "{:?}", items[0].reading);
        assert_eq!(items[1].raw, body.as_bytes());
        let problem = items[1].reading.as_ref().unwrap_err();
        assert!(problem.detail.starts_with("101 items of this message are no events; the first: "), "{problem:?}");
    }

    #[test]
    fn an_array_takes_the_room_of_as_many_as_it_may_hold() {
        let items_max = |payload: &'static str| {
            let payload = Bytes::from_static(payload.as_bytes());
            let delivery = Delivery { subject: Subject::from("s"), headers: None, payload, sequence: 1 };
            delivery.items_max(Limits { events_max: 4, event_bytes_max: 100 })
        };
        assert_eq!(
            [" [{},{},{}]", "[]", "[{},{},{},{},{},{},{}]", "{\"a\":[{},{}]}", ""].map(items_max),
            [3, 1, 4, 1, 1]
        );
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
            let mut items = Vec::new();
            read_items(&mut items, &Bytes::copy_from_slice(body.as_bytes()), LIMITS);
            assert_eq!(items.len(), 1, "{body}");
            assert_eq!(items[0].raw, body.as_bytes());
            assert_eq!(items[0].reading.as_ref().unwrap_err().reason, reason, "{body}");
        }
    }
}
