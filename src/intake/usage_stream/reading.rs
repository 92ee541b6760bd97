//! From messages to each tenant's part of them.

use std::collections::HashMap;

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

/// What arrived at once.
#[derive(Debug)]
pub(super) struct Pull {
    pub(super) number: u64,
    pub(super) since: Instant,
    pub(super) span: Span,
    pub(super) deliveries: Vec<Delivery>,
    /// Of all payloads.
    pub(super) bytes: usize,
}

/// A pull, read.
#[derive(Debug)]
pub(super) struct Sorted {
    pub(super) pull: u64,
    /// Messages and payload bytes that were read.
    pub(super) messages: usize,
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
        let sorted = if pull.bytes <= READ_INLINE_BYTES_MAX {
            Some(self.sort_now(pull, now))
        } else {
            tokio::task::spawn_blocking(move || self.sort_now(pull, now)).await.ok()
        };
        metrics::histogram!("platform_api_usage_parse_seconds").record(started.elapsed().as_secs_f64());
        sorted
    }

    fn sort_now(&self, pull: Pull, now: Timestamp) -> Sorted {
        let Pull { number, since, span, deliveries, bytes } = pull;
        let mut sorted = Sorted {
            pull: number,
            messages: deliveries.len(),
            message_bytes: bytes,
            parts: Vec::new(),
            refused: Vec::new(),
            items: 0,
            bytes: 0,
        };
        let mut places: HashMap<TenantId, usize, ahash::RandomState> = HashMap::default();
        let mut items = Vec::new();
        for delivery in deliveries {
            let reporter = self.reporter(&delivery.subject);
            read_items(&mut items, &delivery.body(), self.limits);
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
                        let part = sorted.part_of(tenant, (since, &span), &mut places);
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
            let mut items = Vec::new();
            read_items(&mut items, &Bytes::copy_from_slice(body.as_bytes()), LIMITS);
            assert_eq!(items.len(), 1, "{body}");
            assert_eq!(items[0].raw, body.as_bytes());
            assert_eq!(items[0].reading.as_ref().unwrap_err().reason, reason, "{body}");
        }
    }
}
