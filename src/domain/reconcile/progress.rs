//! How far a tenant's books have been compared with a gateway's, and what a posting keeps of what the gateway says.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::digest;

use super::finding::Finding;
use super::join::ended_micros;
use super::meter::{self, Series, window_start};
use super::reading::{EVERY_ROUTE, GatewayRequest, Interruption, InterruptionReason, MeterReading, Role, Source};
use super::window::Judged;
use super::{Proof, Terms};
use crate::domain::books::Posting;
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::ids::FindingId;
use crate::domain::time::Timestamp;
use crate::domain::usage::FUTURE_TOLERANCE_MICROS;

/// Windows that are judged again because of one interruption: a day of five minutes each.
const INTERRUPTED_WINDOWS_MAX: usize = 288;

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
    /// When the first of the windows that are to be compared again is due.
    pub again_at: Option<Timestamp>,
    /// Until when each proof has proven anything, in the order of [`Proof::ALL`].
    pub proven: [Option<Timestamp>; 3],
}

impl Progress {
    /// Since when `source` speaks.
    #[must_use]
    pub fn since(&self, source: Source) -> Option<Timestamp> {
        self.since[source as usize]
    }

    /// Sources that spoke during the whole of a window that begins at `start`.
    #[must_use]
    pub fn sources_at(&self, start: Timestamp) -> Vec<Source> {
        let spoke = |source: &Source| self.since(*source).is_some_and(|since| since <= start);
        Source::ALL.into_iter().filter(spoke).collect()
    }
}

impl Progress {
    /// Until when `proof` has proven anything.
    #[must_use]
    pub fn proven(&self, proof: Proof) -> Option<Timestamp> {
        self.proven[proof as usize]
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
        progress.since[source as usize].get_or_insert(from);
    }

    /// Windows that something at `at` belongs to, and that are judged already, or might be at this very moment. A
    /// comparison looks a little beyond its window, so there may be two.
    #[must_use]
    pub fn disturbed(&self, at: Timestamp, now: Timestamp) -> Vec<Timestamp> {
        let (Some(progress), terms) = (self.progress, &self.terms) else { return Vec::new() };
        let since = progress.since.iter().flatten().min().copied().unwrap_or(now);
        let horizon = progress.settled_until.max(window_start(now.plus_micros(-terms.settle_micros), terms));
        let oldest = since.max(now.plus_micros(-terms.keep_micros));
        let first = window_start(at.plus_micros(-terms.slack_micros), terms);
        let last = at.plus_micros(terms.slack_micros);
        let starts = std::iter::successors(Some(first), |start| Some(start.plus_micros(terms.window_micros)));
        let known = starts.take_while(|start| *start <= last && *start < horizon);
        known.filter(|start| *start >= oldest).collect()
    }

    /// When there is something to compare next, given when the ledger's latest event occurred.
    #[must_use]
    pub fn next(&self, latest_event_at: Timestamp) -> Option<Timestamp> {
        let progress = self.progress?;
        let active = progress.heard_until > progress.settled_until || latest_event_at >= progress.settled_until;
        let settled = progress.settled_until.plus_micros(self.terms.window_micros + self.terms.settle_micros);
        active.then_some(settled).into_iter().chain(progress.again_at).min()
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
    /// Judged windows that something has come for, and when they are compared again.
    pub disturbed: BTreeMap<Timestamp, Timestamp>,
    /// Verdicts to write, and findings, whole.
    pub judged: Vec<Judged>,
    pub findings: BTreeMap<FindingId, Finding>,
}

impl GatewayRows {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.series.is_empty() && self.interruptions.is_empty() && !self.progressed && self.judged.is_empty()
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
    /// Notes that something came for `at`: if its window was judged, it is judged again.
    pub fn disturb(&mut self, at: Timestamp) {
        let now = self.now();
        let due = now.plus_micros(self.books.comparison.terms.settle_micros);
        for start in self.books.comparison.disturbed(at, now) {
            if self.gateway.disturbed.insert(start, due).is_none() {
                self.look_again_at(due);
            }
        }
    }

    /// The windows that are to be compared again have been looked through: the first is due at `next`, besides those that
    /// this posting has disturbed itself.
    pub fn look_again_only_at(&mut self, next: Option<Timestamp>) {
        let next = next.into_iter().chain(self.gateway.disturbed.values().copied()).min();
        if let Some(progress) = &mut self.books.comparison.progress
            && progress.again_at != next
        {
            progress.again_at = next;
            self.gateway.progressed = true;
        }
    }

    /// Notes that a window is compared again at `due`.
    pub fn look_again_at(&mut self, due: Timestamp) {
        if let Some(progress) = &mut self.books.comparison.progress
            && progress.again_at.is_none_or(|at| due < at)
        {
            progress.again_at = Some(due);
            self.gateway.progressed = true;
        }
    }

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
            self.disturb(request.started_at);
            self.disturb(Timestamp(ended_micros(request)));
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

    /// As [`disturb`](Posting::disturb), of what counts in the window of `at` alone.
    fn disturb_if_judged(&mut self, at: Timestamp) {
        let (comparison, now) = (&self.books.comparison, self.now());
        let start = window_start(at, &comparison.terms);
        if comparison.disturbed(at, now).contains(&start) {
            self.disturb(at);
        }
    }

    /// Keeps when nothing could be known. While no gateway has said anything, there is nothing to doubt.
    fn interrupt(&mut self, interruptions: &[Interruption]) {
        if self.books.comparison.progress.is_none() {
            return;
        }
        for one in interruptions {
            let width = self.books.comparison.terms.window_micros.max(1);
            let windows = std::iter::successors(Some(one.from), |at| Some(at.plus_micros(width)));
            let touched: Vec<Timestamp> =
                windows.take_while(|at| *at < one.until).take(INTERRUPTED_WINDOWS_MAX).collect();
            for at in touched.into_iter().chain([one.until]) {
                self.disturb_if_judged(at);
            }
        }
        self.gateway.interruptions.extend(interruptions.iter().cloned());
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
            let ahead = last.filter(|last| last.at > now.plus_micros(terms.skew_micros));
            let from = window_start(reading.at, &terms);
            // Read by a clock that was set back since: what it has counted, it has counted, but nobody knows when. Of another
            // life of the meter not even that is known.
            let dated = ahead.map(|last| Series { at: from, ..last.clone() });
            let (series, increase, interruption) = match &dated {
                Some(dated) if dated.epoch != reading.epoch => {
                    meter::advance(None, &MeterReading { from_zero: false, ..reading.clone() }, &terms)
                }
                dated => meter::advance(dated.as_ref().or(last), reading, &terms),
            };
            self.gateway.series.insert(key, series);
            self.gateway.interruptions.extend(interruption);
            if dated.is_some() {
                let (source, until, reason) = (reading.source, reading.at, InterruptionReason::ClockSkew);
                self.gateway.interruptions.push(Interruption { source, from, until, reason });
            }
            self.books.comparison.begin(reading.source, reading.at);
            if reading.source == Source::Limiter && reading.series.starts_with(EVERY_ROUTE) {
                self.gateway.routes.insert(EVERY_ROUTE.to_owned());
            }
            if let Some(increase) = increase {
                self.disturb_if_judged(increase.window_start);
                let sum = self.gateway.increases.entry((increase.window_start, increase.source)).or_default();
                sum.0 = sum.0.saturating_add(increase.amount);
                sum.1 |= increase.lower_bound;
                self.books.comparison.hear(reading.at, now);
            }
        }
        self.interrupt(interruptions);
        self.gateway.progressed |= self.books.comparison.progress != before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::books::Books;
    use crate::domain::properties_tests::{berlin, noon, tenant};
    use crate::domain::time::MICROS_PER_MINUTE;

    fn reading(source: Source, series: &str, value: i64, minute: i64) -> MeterReading {
        MeterReading {
            source,
            series: series.to_owned(),
            epoch: "7".to_owned(),
            value,
            at: noon().plus_micros(minute * MICROS_PER_MINUTE),
            from_zero: true,
            lower_bound: false,
        }
    }

    fn gap() -> Interruption {
        let (from, until) = (noon().plus_micros(-20 * MICROS_PER_MINUTE), noon());
        Interruption { source: Source::Metrics, from, until, reason: InterruptionReason::Gap }
    }

    /// Everybody is told when the gateway is started again, also who has never used one.
    #[test]
    fn an_interruption_of_nothing_is_not_kept() {
        let mut posting = Posting::open(&Books::new(tenant(), berlin(), 0), noon(), [7; 32]);
        posting.gateway_readings(&[], &[], &[gap()]);
        assert!(posting.gateway.is_empty());
        posting.gateway_readings(&[], &[reading(Source::Metrics, "one", 0, 0)], &[gap()]);
        assert_eq!(posting.gateway.interruptions, [gap()]);
        assert!(posting.gateway.disturbed.is_empty(), "nothing has been judged");
    }

    /// Until the old time had come again, it was told nothing, and the ledger had more than the gateway.
    #[test]
    fn a_meter_is_read_on_when_the_clock_was_set_back() {
        let books = Books::new(tenant(), berlin(), 0);
        let read = |now: i64, known: &[Series], value: i64| {
            let mut posting = Posting::open(&books, noon().plus_micros(now * MICROS_PER_MINUTE), [7; 32]);
            posting.gateway_readings(known, &[reading(Source::Metrics, "one", value, now)], &[]);
            posting.gateway
        };
        let known: Vec<Series> = read(61, &[], 5).series.into_values().collect();
        let rows = read(1, &known, 12);
        let amounts: Vec<(Timestamp, i64)> = rows.increases.iter().map(|((at, _), sum)| (*at, sum.0)).collect();
        assert_eq!(amounts, [(noon(), 7)]);
        assert_eq!(
            rows.series.values().map(|one| (one.value, one.at)).collect::<Vec<_>>(),
            [(12, noon().plus_micros(MICROS_PER_MINUTE))]
        );
        let skew = |one: &Interruption| (one.from, one.until, one.reason);
        let told: Vec<_> = rows.interruptions.iter().map(skew).collect();
        assert_eq!(told, [(noon(), noon().plus_micros(MICROS_PER_MINUTE), InterruptionReason::ClockSkew)]);
        // A day that has not begun yet, and the one that runs.
        let tomorrow = Series { source: Source::Limiter, epoch: "86400000".into(), ..known[0].clone() };
        let mut posting = Posting::open(&books, noon().plus_micros(MICROS_PER_MINUTE), [7; 32]);
        let today = MeterReading { epoch: "0".into(), ..reading(Source::Limiter, "one", 400, 1) };
        posting.gateway_readings(&[tomorrow], &[today], &[]);
        let rows = posting.gateway;
        assert!(rows.increases.is_empty(), "{rows:?}");
        assert_eq!(rows.series.values().map(|one| (one.epoch.as_str(), one.value)).collect::<Vec<_>>(), [("0", 400)]);
        // What comes late is old, and no more than that.
        let rows = read(61, &known, 12);
        assert_eq!(rows.interruptions, []);
    }

    #[test]
    fn a_limiter_of_every_route_is_known_by_its_series() {
        let mut posting = Posting::open(&Books::new(tenant(), berlin(), 0), noon(), [7; 32]);
        posting.gateway_readings(&[], &[reading(Source::Limiter, "route/service/acme/day", 3, 0)], &[]);
        assert!(posting.gateway.routes.is_empty());
        posting.gateway_readings(&[], &[reading(Source::Limiter, "*/acme/day", 3, 1)], &[]);
        assert_eq!(posting.gateway.routes, BTreeSet::from([EVERY_ROUTE.to_owned()]));
    }

    /// What is told in time disturbs nobody: a look at the meters is no reason to judge anything again.
    #[test]
    fn only_what_comes_late_has_a_window_judged_again() {
        let mut books = Books::new(tenant(), berlin(), 0);
        let start = window_start(noon(), &books.comparison.terms);
        let minutes = |minutes: i64| start.plus_micros(minutes * MICROS_PER_MINUTE);
        books.comparison.progress =
            Some(Progress { since: [Some(minutes(-60)); 3], settled_until: minutes(0), ..Progress::default() });
        let disturbed = |now: i64, readings: &[MeterReading], interruptions: &[Interruption]| {
            let mut posting = Posting::open(&books, minutes(now), [7; 32]);
            posting.gateway_readings(&[], readings, interruptions);
            posting.gateway.disturbed.keys().map(|at| (at.0 - start.0) / MICROS_PER_MINUTE).collect::<Vec<_>>()
        };
        let at = |minute: i64| MeterReading { at: minutes(minute), ..reading(Source::Metrics, "one", 5, 0) };
        assert_eq!(disturbed(4, &[at(4)], &[]), [0_i64; 0]);
        assert!(disturbed(4, &[at(-7)], &[]).contains(&-10));
        let over = |from: i64, until: i64| Interruption { from: minutes(from), until: minutes(until), ..gap() };
        assert_eq!(disturbed(4, &[], &[over(3, 4)]), [0_i64; 0]);
        let late = disturbed(4, &[], &[over(-14, 4)]);
        assert!([-15, -10, -5].iter().all(|start| late.contains(start)), "{late:?}");
    }
}
