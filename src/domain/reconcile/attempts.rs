//! The third proof: the limiter counted at least as many attempts as the ledger has calls.
//!
//! More attempts than calls are normal: whatever was denied, cached or failed. Fewer mean that something went past the
//! limiter, or that its counters were lost. Which calls went over a route that has a limiter only a whole access log says,
//! unless the limiter counts on every route; otherwise fewer attempts prove nothing.

use super::cumulative::{self, Counts, Dated};
use super::finding::{Cause, Evidence, Found};
use super::join::Join;
use super::reading::{EVERY_ROUTE, InterruptionReason, Source};
use super::window::{Books, Judged};
use super::{Proof, Verdict};

/// What the other proofs say about calls that the limiter did not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Others {
    /// This many were found to have gone past it.
    pub(super) explained: i64,
    pub(super) rest: Rest,
}

/// What they say about any more of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// Each came through the gateway, by its own request.
    Joined,
    /// The gateway says that it passed on as many as the ledger has.
    PassedOn,
    Unknown,
}

/// Calls that the limiter should have counted: those of requests on routes without a limiter are left out.
pub(super) fn calls_of<'a>(books: &Books<'a>, joined: &Join<'a>) -> Vec<Dated<'a>> {
    let mut calls = cumulative::dated(books, joined, Source::Limiter);
    if counts_on_every_route(books) {
        return calls;
    }
    calls.retain(|call| {
        call.request.is_none_or(|request| request.limited || books.limited_routes.contains(&request.route))
    });
    calls
}

fn counts_on_every_route(books: &Books<'_>) -> bool {
    books.limited_routes.iter().any(|route| route == EVERY_ROUTE)
}

pub(super) fn judge(books: &Books<'_>, counts: Counts, others: Others) -> (Judged, Option<Found>) {
    let mut reasons: Vec<_> =
        books.interruptions.iter().filter(|one| one.source == Source::Limiter).map(|one| one.reason).collect();
    let missing = counts.ledger.saturating_sub(counts.gateway);
    let is_short = |explained: i64| missing.saturating_sub(explained) > counts.tolerance;
    let lower_bound = books.metered.iter().any(|one| one.source == Source::Limiter && one.lower_bound);
    let mut cause = reasons.contains(&InterruptionReason::LimiterReset).then_some(Cause::LimiterReset);
    let mut verdict = Verdict::Matched;
    if reasons.is_empty() && is_short(0) {
        match others.rest {
            _ if lower_bound => reasons.push(InterruptionReason::LowerBound),
            _ if !is_short(others.explained) => verdict = Verdict::Drift,
            // None of these went past the limiter: its counters were lost.
            Rest::Joined => {
                reasons.push(InterruptionReason::LimiterReset);
                cause = Some(Cause::LimiterReset);
            }
            _ if !counts_on_every_route(books) => reasons.push(InterruptionReason::RoutesUnknown),
            Rest::PassedOn => (verdict, cause) = (Verdict::Drift, Some(Cause::FailOpen)),
            Rest::Unknown => (verdict, cause) = (Verdict::Drift, Some(Cause::Unaccounted)),
        }
    }
    if !reasons.is_empty() {
        verdict = Verdict::Unproven;
    }
    reasons.sort_unstable();
    reasons.dedup();
    let judged = Judged {
        proof: Proof::Attempts,
        window: books.window,
        verdict,
        gateway: counts.gateway,
        ledger: counts.ledger,
        tolerance: counts.tolerance,
        reasons,
    };
    let count = match cause {
        // What was lost is unknown: the finding is about all that can no longer be proven.
        Some(Cause::LimiterReset) => i64::max(counts.gateway, counts.ledger),
        _ => missing.saturating_sub(others.explained).max(0),
    };
    let found = cause.filter(|_| count > 0).map(|cause| Found {
        cause,
        proof: Proof::Attempts,
        window: books.window,
        gateway: counts.gateway,
        ledger: counts.ledger,
        count,
        evidence: Evidence::default(),
    });
    (judged, found)
}
