//! The second proof: how many requests the gateway says it passed on, against the calls of the ledger.

use super::finding::{Cause, Evidence, Found};
use super::join::{Join, consumed, ended_micros};
use super::reading::{ServedBy, Source};
use super::requests::number;
use super::tolerance;
use super::window::{Books, Judged, LedgerCall};
use super::{Proof, Terms, Verdict};

/// So many windows before this one are counted together with it.
pub(super) const CARRIED_WINDOWS_MAX: usize = 288;

/// The two counts of a window, and how far edges may move them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) gateway: i64,
    pub(super) ledger: i64,
    pub(super) tolerance: i64,
}

/// Counts `calls` of the ledger against the meter of `source`.
pub(super) fn counts(
    books: &Books<'_>,
    joined: &Join<'_>,
    calls: &[&LedgerCall],
    source: Source,
    terms: &Terms,
) -> Counts {
    let window = books.window;
    let gateway = books.metered.iter().filter(|one| one.source == source).map(|one| one.amount).sum();
    let ledger = number(calls.iter().filter(|call| window.contains(call.occurred_at)).count());
    let apart = terms.poll_micros + tolerance::FLUSH_MICROS + terms.skew_micros;
    // With an access log the requests under way at an edge are known, without one they are assumed.
    let (apart, in_flight) = match books.sources.contains(&Source::AccessLog) {
        true => (apart, in_flight(joined, window.start.0).max(in_flight(joined, window.end.0))),
        false => (apart + tolerance::REQUEST_MICROS_ASSUMED, 0),
    };
    let at_edges = tolerance::at_edges(calls.iter().copied(), window, apart, terms);
    let tolerance = tolerance::of(i64::max(gateway, ledger), window, apart, at_edges, in_flight);
    Counts { gateway, ledger, tolerance }
}

/// Requests that were passed on and under way at this instant.
fn in_flight(joined: &Join<'_>, at_micros: i64) -> i64 {
    let passed_on = joined.own.iter().filter(|request| request.served_by == ServedBy::Upstream);
    number(passed_on.filter(|request| request.started_at.0 < at_micros && at_micros <= ended_micros(request)).count())
}

/// Calls that must each have been one request: successes, and failures that consumed something and were not tried again.
pub(super) fn calls_of<'a>(books: &Books<'a>) -> Vec<&'a LedgerCall> {
    use crate::domain::usage::Status;
    use std::collections::HashSet;
    let successes = books.calls.iter().filter(|call| call.status == Status::Success);
    let succeeded: HashSet<&str, ahash::RandomState> = successes.map(|call| call.call_id.as_str()).collect();
    let was_tried_again = |call: &LedgerCall| {
        call.status == Status::Failure && !call.call_id.is_empty() && succeeded.contains(call.call_id.as_str())
    };
    books.calls.iter().filter(|call| consumed(call) && !was_tried_again(call)).collect()
}

/// The verdict by counts, and what is suspected: together with the windows before, if those have it.
///
/// `earlier` are verdicts of this proof, newest first. What edges move out of one window they move into the next, so
/// over many windows no more may differ than over one: a loss that hides below the tolerance of each adds up here.
pub(super) fn judge(books: &Books<'_>, counts: Counts, earlier: &[Judged]) -> (Judged, Option<Found>) {
    let mut reasons: Vec<_> =
        books.interruptions.iter().filter(|one| one.source == Source::Metrics).map(|one| one.reason).collect();
    reasons.sort_unstable();
    reasons.dedup();
    let mut judged = Judged {
        proof: Proof::Cumulative,
        window: books.window,
        verdict: if reasons.is_empty() { Verdict::Matched } else { Verdict::Unproven },
        gateway: counts.gateway,
        ledger: counts.ledger,
        tolerance: counts.tolerance,
        reasons,
    };
    if judged.verdict == Verdict::Unproven {
        return (judged, None);
    }
    let apart = |counts: &Counts| counts.gateway.saturating_sub(counts.ledger).saturating_abs() > counts.tolerance;
    let carried = carry(counts, earlier, judged.window.start.0);
    let Some(counts) = [counts, carried].into_iter().find(apart) else { return (judged, None) };
    judged.verdict = Verdict::Drift;
    let cause = if counts.gateway > counts.ledger { Cause::LostInLedger } else { Cause::BypassedGateway };
    let found = Found {
        cause,
        proof: Proof::Cumulative,
        window: books.window,
        gateway: counts.gateway,
        ledger: counts.ledger,
        count: counts.gateway.saturating_sub(counts.ledger).saturating_abs(),
        evidence: Evidence::default(),
    };
    (judged, Some(found))
}

/// This window and those before it that matched, back to the last that did not.
fn carry(counts: Counts, earlier: &[Judged], start: i64) -> Counts {
    let before = earlier.iter().filter(|one| one.proof == Proof::Cumulative && one.window.end.0 <= start);
    let matched = before.take_while(|one| one.verdict == Verdict::Matched).take(CARRIED_WINDOWS_MAX);
    let mut sum = counts;
    for one in matched {
        sum.gateway = sum.gateway.saturating_add(one.gateway);
        sum.ledger = sum.ledger.saturating_add(one.ledger);
        sum.tolerance = sum.tolerance.max(one.tolerance);
    }
    let all = i64::max(sum.gateway, sum.ledger);
    sum.tolerance = sum.tolerance.saturating_add(all / tolerance::RELATIVE_PARTS);
    sum
}
