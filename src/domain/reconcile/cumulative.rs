//! The second proof: how many requests the gateway says it passed on, against the calls of the ledger.

use std::collections::{HashMap, HashSet};

use super::finding::{Cause, Evidence, Found};
use super::join::{Join, consumed, ended_micros, is_due};
use super::reading::{GatewayRequest, InterruptionReason, Source};
use super::requests::number;
use super::tolerance;
use super::window::{Books, Judged, LedgerCall};
use super::{Proof, Terms, Verdict};
use crate::domain::period::Window;
use crate::domain::time::Timestamp;
use crate::domain::usage::Status;

/// So many windows before this one are counted together with it.
pub(super) const CARRIED_WINDOWS_MAX: usize = 288;

/// The two counts of a window, and how far edges may move them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) gateway: i64,
    pub(super) ledger: i64,
    pub(super) tolerance: i64,
}

impl Counts {
    /// What the gateway counted and the ledger has not; negative, if the ledger has more.
    fn missing(&self) -> i64 {
        self.gateway.saturating_sub(self.ledger)
    }

    fn are_apart(&self) -> bool {
        self.missing().saturating_abs() > self.tolerance
    }
}

/// A call of the ledger, and when the gateway counted it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dated<'a> {
    pub(super) request: Option<&'a GatewayRequest>,
    pub(super) at: Timestamp,
}

/// Calls that must each have been one request that was passed on with success: by the join, or else successes, and failures
/// that consumed something and were not tried again. A call whose request is known is dated by it, at the end of the request or at its start, since it is counted then.
pub(super) fn dated<'a>(books: &Books<'a>, joined: &Join<'a>, source: Source) -> Vec<Dated<'a>> {
    let requests: HashMap<i64, &GatewayRequest, ahash::RandomState> =
        joined.pairs.iter().chain(&joined.unjoinable).map(|pair| (pair.call.position, pair.request)).collect();
    let successes = books.calls.iter().filter(|call| call.status == Status::Success);
    let succeeded: HashSet<&str, ahash::RandomState> = successes.map(|call| call.call_id.as_str()).collect();
    let was_tried_again = |call: &LedgerCall| {
        call.status == Status::Failure && !call.call_id.is_empty() && succeeded.contains(call.call_id.as_str())
    };
    let of_call = |call: &'a LedgerCall| {
        let request = requests.get(&call.position).copied();
        let at = match (request, source) {
            (None, _) => call.occurred_at,
            (Some(request), Source::Limiter) => request.started_at,
            (Some(request), Source::Metrics | Source::AccessLog) => Timestamp(ended_micros(request)),
        };
        Dated { request, at }
    };
    let counts = |call: &&LedgerCall| match requests.get(&call.position) {
        Some(request) => is_due(request) || consumed(call),
        None => consumed(call) && !was_tried_again(call),
    };
    books.calls.iter().filter(counts).map(of_call).collect()
}

/// When the requests ended that the log says were passed on with success.
pub(super) fn passed_on(joined: &Join<'_>) -> Vec<Timestamp> {
    let due = joined.own.iter().filter(|request| is_due(request));
    due.map(|request| Timestamp(ended_micros(request))).collect()
}

/// Counts what another book dates `at` these times against the meter of `source`.
pub(super) fn counts(books: &Books<'_>, at: &[Timestamp], source: Source, terms: &Terms) -> Counts {
    let window = books.window;
    let of_source = books.metered.iter().filter(|one| one.source == source);
    let gateway = of_source.fold(0_i64, |sum, one| sum.saturating_add(one.amount));
    let ledger = number(at.iter().filter(|at| window.contains(**at)).count());
    let mut apart = terms.poll_micros + tolerance::FLUSH_MICROS + terms.skew_micros;
    if !books.sources.contains(&Source::AccessLog) {
        // Nothing says when the request of a call began and ended.
        apart += tolerance::REQUEST_MICROS_ASSUMED;
    }
    let at_edges = tolerance::at_edges(at, window, apart, terms);
    let tolerance = tolerance::of(i64::max(gateway, ledger), window, apart, at_edges);
    Counts { gateway, ledger, tolerance }
}

/// The verdict by counts, and what is suspected: together with the windows before, if those have it.
///
/// `earlier` are verdicts, newest first. What edges move out of one window they move into the next, so over many windows
/// no more may differ than over one: a loss that hides below the tolerance of each adds up here. `logged` are the
/// counts of the log, if it is whole; then there is nothing to add up, and a finding only of what the log did not see.
pub(super) fn judge(
    books: &Books<'_>,
    counts: Counts,
    logged: Option<Counts>,
    earlier: &[Judged],
) -> (Judged, Option<Found>) {
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
    let mut added_up = None;
    let suspect = match logged {
        // More requests than the gateway counted: its counts were lost, and no call went past it.
        Some(logged) if logged.are_apart() && logged.missing() < 0 => {
            (judged.verdict, judged.reasons) = (Verdict::Unproven, vec![InterruptionReason::Gap]);
            return (judged, None);
        }
        // What the log saw is found by the join, if anything is missing.
        Some(logged) => Some(logged).filter(Counts::are_apart),
        None => {
            let (carried, windows) = carry(counts, earlier, judged.window.start);
            added_up = Some(windows).filter(|_| !counts.are_apart());
            [counts, carried].into_iter().find(Counts::are_apart)
        }
    };
    if suspect.is_some() || counts.are_apart() {
        judged.verdict = Verdict::Drift;
    }
    (judged, suspect.map(|counts| suspected(books, counts, added_up)))
}

/// Where the ledger has more, counts alone do not say whether calls came another way or stand in it twice.
fn suspected(books: &Books<'_>, counts: Counts, added_up: Option<i64>) -> Found {
    Found {
        cause: if counts.missing() > 0 { Cause::LostInLedger } else { Cause::Unaccounted },
        proof: Proof::Cumulative,
        window: books.window,
        gateway: counts.gateway,
        ledger: counts.ledger,
        count: counts.missing().saturating_abs(),
        evidence: Evidence { windows: added_up, ..Evidence::default() },
    }
}

/// This window and those before it that matched by counts alone, back to the last that did not; and how many they are.
fn carry(counts: Counts, earlier: &[Judged], start: Timestamp) -> (Counts, i64) {
    let by_request = earlier.iter().filter(|one| one.proof == Proof::Requests && one.verdict != Verdict::Unproven);
    let by_request: HashSet<Window, ahash::RandomState> = by_request.map(|one| one.window).collect();
    let before = earlier.iter().filter(|one| one.proof == Proof::Cumulative && one.window.end <= start);
    let matched = before.take_while(|one| one.verdict == Verdict::Matched && !by_request.contains(&one.window));
    let (mut sum, mut windows) = (counts, 1);
    for one in matched.take(CARRIED_WINDOWS_MAX) {
        sum.gateway = sum.gateway.saturating_add(one.gateway);
        sum.ledger = sum.ledger.saturating_add(one.ledger);
        sum.tolerance = sum.tolerance.max(one.tolerance);
        windows += 1;
    }
    let all = i64::max(sum.gateway, sum.ledger);
    sum.tolerance = sum.tolerance.saturating_add(all / tolerance::RELATIVE_PARTS);
    (sum, windows)
}
