//! How far a tenant's books have been compared with a gateway's, and what a posting keeps of what the gateway says.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::digest;

use super::Terms;
use super::meter::{self, Series, window_start};
use super::reading::{GatewayRequest, Interruption, MeterReading, Role, Source};
use crate::domain::books::Posting;
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::time::Timestamp;
use crate::domain::usage::FUTURE_TOLERANCE_MICROS;

/// The part of a tenant's committed state that is about gateways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Comparison {
    pub terms: Terms,
    /// `None` while no gateway has said anything about this tenant: there is nothing to compare, and nothing to pay.
    pub progress: Option<Progress>,
}

/// How far the comparison has come; the one row of the tenant's database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Since when each source speaks about this tenant, in the order of [`Source::ALL`].
    pub since: [Option<Timestamp>; 3],
    /// End of the latest window that anything was stated about.
    pub heard_until: Timestamp,
    /// Every window that ends by then has been judged.
    pub settled_until: Timestamp,
    /// When windows that have changed since they were judged are judged again.
    pub again_at: Option<Timestamp>,
}

impl Progress {
    /// Since when `source` speaks.
    #[must_use]
    pub fn since(&self, source: Source) -> Option<Timestamp> {
        self.since[place(source)]
    }

    /// Sources that spoke during the whole of a window that begins at `start`.
    #[must_use]
    pub fn sources_at(&self, start: Timestamp) -> Vec<Source> {
        let spoke = |source: &Source| self.since(*source).is_some_and(|since| since <= start);
        Source::ALL.into_iter().filter(spoke).collect()
    }
}

fn place(source: Source) -> usize {
    match source {
        Source::AccessLog => 0,
        Source::Metrics => 1,
        Source::Limiter => 2,
    }
}

impl Comparison {
    /// Notes that `source` speaks from `from` on, if it has not spoken before.
    fn begin(&mut self, source: Source, from: Timestamp) {
        let first = self.progress.is_none();
        let progress = self.progress.get_or_insert_default();
        if first {
            // The window in which a source begins to speak is not whole, so the next one is the first.
            progress.settled_until = window_start(from.plus_micros(self.terms.window_micros - 1), &self.terms);
        }
        progress.since[place(source)].get_or_insert(from);
    }

    /// Notes that something was stated about `at`. A clock that runs ahead does not keep a tenant waiting for it.
    fn hear(&mut self, at: Timestamp, now: Timestamp) {
        let at = at.min(now.plus_micros(FUTURE_TOLERANCE_MICROS));
        let end = window_start(at, &self.terms).plus_micros(self.terms.window_micros);
        if let Some(progress) = &mut self.progress {
            progress.heard_until = progress.heard_until.max(end);
        }
    }
}

/// Rows about gateways that go with a posting.
#[derive(Debug, Clone, Default)]
pub struct GatewayRows {
    /// Meters as they stand now, whole.
    pub series: BTreeMap<(Source, String), Series>,
    /// What is added to the windows' meters, and whether any of it is a lower bound.
    pub increases: BTreeMap<(Timestamp, Source), (i64, bool)>,
    pub interruptions: Vec<Interruption>,
    /// Routes on which the limiter was seen to work.
    pub routes: BTreeSet<String>,
    /// The comparison's progress has changed.
    pub progressed: bool,
}

impl GatewayRows {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.series.is_empty() && self.interruptions.is_empty() && !self.progressed
    }
}

/// What finds a request that is sent again: six bytes of the millisecond in which it began, then fourteen of SHA-256 over
/// its id and role. Unlike an event's key this one believes the time, which comes from the gateway and not from whoever
/// made the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestKey(pub [u8; 20]);

impl RequestKey {
    /// The least key that a request which began at `at` or later can have.
    #[must_use]
    pub fn floor(at: Timestamp) -> RequestKey {
        let mut key = [0; 20];
        let millis = u64::try_from(at.0.div_euclid(1_000)).unwrap_or(0).min((1 << 48) - 1);
        key[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
        RequestKey(key)
    }
}

impl GatewayRequest {
    #[must_use]
    pub fn key(&self) -> RequestKey {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(&[u8::from(self.role == Role::Claimed)]);
        context.update(self.request_id.as_bytes());
        let mut key = RequestKey::floor(self.started_at);
        key.0[6..].copy_from_slice(&context.finish().as_ref()[..14]);
        key
    }

    /// Bytes this request keeps in memory while it waits.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<GatewayRequest>() + self.request_id.len() + self.call_id.len() + self.route.len()
    }
}

impl Posting {
    /// Keeps what follows from requests that were `new`, of a batch of so many: one record for them all, because they
    /// are as many as the ledger's rows, and can be proved by their digest as those are.
    pub fn gateway_requests(&mut self, new: &[&GatewayRequest], offered: usize, request_id: &str) {
        let Some(first) = new.iter().map(|request| request.started_at).min() else { return };
        let before = self.books.comparison.progress;
        self.books.comparison.begin(Source::AccessLog, first);
        let now = self.now();
        let mut context = digest::Context::new(&digest::SHA256);
        for request in new {
            context.update(&request.key().0);
            self.books.comparison.hear(request.started_at, now);
            if request.limited && !request.route.is_empty() && !self.gateway.routes.contains(&request.route) {
                self.gateway.routes.insert(request.route.clone());
            }
        }
        self.gateway.progressed |= self.books.comparison.progress != before;
        let digest: String = context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let payload = serde_json::json!({
            "requests": new.len(),
            "repeated": offered - new.len(),
            "digest": digest,
        });
        self.records_entry(Entry {
            actor: "system".into(),
            action: "gateway.recorded".into(),
            target: format!("tenant:{}", self.books.tenant),
            outcome: EntryOutcome::Success,
            request_id: request_id.into(),
            payload: payload.to_string(),
        });
    }

    /// Reads meters, given those of them that are `known`. Readings leave no record: they come every few seconds and are
    /// evidence, not a change; what is found by them has its record.
    pub fn gateway_readings(&mut self, known: &[Series], readings: &[MeterReading], interruptions: &[Interruption]) {
        let before = self.books.comparison.progress;
        let (terms, now) = (self.books.comparison.terms, self.now());
        for reading in readings {
            let key = (reading.source, reading.series.clone());
            let stored = || known.iter().find(|one| one.source == key.0 && one.series == key.1);
            let last = self.gateway.series.get(&key).or_else(stored);
            let (series, increase, interruption) = meter::advance(last, reading, &terms);
            self.gateway.series.insert(key, series);
            self.gateway.interruptions.extend(interruption);
            self.books.comparison.begin(reading.source, reading.at);
            if let Some(increase) = increase {
                let sum = self.gateway.increases.entry((increase.window_start, increase.source)).or_default();
                sum.0 = sum.0.saturating_add(increase.amount);
                sum.1 |= increase.lower_bound;
                self.books.comparison.hear(reading.at, now);
            }
        }
        self.gateway.interruptions.extend(interruptions.iter().cloned());
        self.gateway.progressed |= self.books.comparison.progress != before;
    }
}
