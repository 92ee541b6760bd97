//! One settled window: the two books side by side.

use std::collections::BTreeMap;

use super::attempts::{self, Others};
use super::cumulative::{self, Counts};
use super::finding::{Cause, Found};
use super::join::{self, Join, Surplus};
use super::reading::{GatewayRequest, Interruption, InterruptionReason, Source};
use super::requests::{self, Witness};
use super::{Proof, Terms, Verdict};
use crate::domain::period::Window;
use crate::domain::time::Timestamp;
use crate::domain::usage::{Amounts, Flags, Status};

/// One row of the ledger, as far as the comparison needs it. Adjusting entries and cumulative statements are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerCall {
    pub position: i64,
    /// LiteLLM's `litellm_call_id`, or the sender's `requestId`; empty if it stated none. Retries and fallbacks of one
    /// call share it; a client may choose it, so several calls may, too.
    pub call_id: String,
    /// The gateway's request id, if the sender passed it on (`correlationId`); empty if not.
    pub request_id: String,
    pub occurred_at: Timestamp,
    pub status: Status,
    pub flags: Flags,
    pub amounts: Amounts,
}

/// What a source's meters counted in a window, summed over its series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metered {
    pub source: Source,
    pub amount: i64,
    /// At least one of the meters states a lower bound only.
    pub lower_bound: bool,
}

/// Everything the comparison of one window looks at.
#[derive(Debug, Clone, Copy)]
pub struct Books<'a> {
    pub window: Window,
    /// Requests that began in the window, or within `slack` of it, in any order.
    pub requests: &'a [GatewayRequest],
    /// Calls that occurred in the window, or within `slack` of it, in any order.
    pub calls: &'a [LedgerCall],
    /// At most one for each source; none for a source that counted nothing.
    pub metered: &'a [Metered],
    /// Those that touch the window.
    pub interruptions: &'a [Interruption],
    /// Sources that speak about this tenant at all: a proof without its source is not given.
    pub sources: &'a [Source],
    /// Routes on which the limiter has ever been seen to work.
    pub limited_routes: &'a [String],
}

/// The verdict of one proof on one window; a row of the tenant's database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    pub proof: Proof,
    pub window: Window,
    pub verdict: Verdict,
    /// What the gateway says: requests passed on, or attempts.
    pub gateway: i64,
    /// What the ledger says: calls.
    pub ledger: i64,
    /// By how much they may differ.
    pub tolerance: i64,
    /// Why it is unproven; empty otherwise.
    pub reasons: Vec<InterruptionReason>,
}

/// Compares: at most one verdict for each proof whose source speaks, and at most one finding for each cause. Both come in
/// the order of [`Proof::ALL`] and [`Cause::ALL`].
#[must_use]
pub fn compare(books: &Books<'_>, terms: &Terms) -> (Vec<Judged>, Vec<Found>) {
    compare_after(&[], books, terms)
}

/// Compares, and counts together with the windows before: `earlier` are their verdicts, newest first. What each of them
/// hides below its tolerance adds up, while what only moved over an edge comes back.
#[must_use]
pub fn compare_after(earlier: &[Judged], books: &Books<'_>, terms: &Terms) -> (Vec<Judged>, Vec<Found>) {
    let speaks = |source: Source| books.sources.contains(&source);
    let requests = if speaks(Source::AccessLog) { books.requests } else { &[] };
    let interruptions: Vec<Interruption> =
        books.interruptions.iter().filter(|one| touches(one, books.window)).cloned().collect();
    let books = &Books { requests, interruptions: &interruptions, ..*books };
    let joined = join::join(books, terms);
    let calls = cumulative::calls_of(books);
    let passed_on = speaks(Source::Metrics).then(|| cumulative::counts(books, &joined, &calls, Source::Metrics, terms));
    let mut judged = Vec::new();
    let mut found: BTreeMap<Cause, Found> = BTreeMap::new();
    // What is known request by request comes first; the same cause is not told again by counts.
    let mut tell = |one: Found| {
        found.entry(one.cause).or_insert(one);
    };
    let by_requests = speaks(Source::AccessLog).then(|| {
        let witness = passed_on.map_or(Witness::Silent, |counts| witness(books, &joined, counts));
        let (verdict, findings) = requests::judge(books, &joined, witness, terms);
        judged.push(verdict.clone());
        let gone_past = requests::fail_open(books, &joined, terms);
        let explained =
            findings.iter().chain(&gone_past).filter(|one| one.cause.is_past_the_limiter()).map(|one| one.ledger).sum();
        findings.into_iter().chain(gone_past).for_each(&mut tell);
        (verdict, explained)
    });
    let proven = by_requests.as_ref().filter(|(verdict, _)| verdict.verdict != Verdict::Unproven);
    let mut by_counts = None;
    if let Some(counts) = passed_on {
        let (mut verdict, suspected) = cumulative::judge(books, counts, earlier);
        match suspected {
            // Each call was seen to come through the gateway: the gateway lost counts, and no call went past it.
            Some(one) if one.cause == Cause::BypassedGateway && proven.is_some() => {
                verdict.verdict = Verdict::Unproven;
                verdict.reasons = vec![InterruptionReason::Gap];
            }
            Some(one) => tell(one),
            None => {}
        }
        by_counts = Some(verdict.verdict);
        judged.push(verdict);
    }
    if speaks(Source::Limiter) {
        let calls = attempts::calls_of(books, &joined, &calls);
        let counts = cumulative::counts(books, &joined, &calls, Source::Limiter, terms);
        let others = match (proven, by_counts) {
            (Some((_, explained)), _) => Others::Explained(*explained),
            (None, Some(Verdict::Matched)) => Others::PassedOn,
            (None, _) => Others::Silent,
        };
        let (verdict, suspected) = attempts::judge(books, counts, others);
        suspected.into_iter().for_each(&mut tell);
        judged.push(verdict);
    }
    (judged, found.into_values().collect())
}

/// Does what the gateway counted prove that requests are missing from its log, rather than from its traffic?
fn witness(books: &Books<'_>, joined: &Join<'_>, counts: Counts) -> Witness {
    let of_window = joined.surplus.iter().filter(|(call, _)| books.window.contains(call.occurred_at));
    let unknown = of_window.filter(|(_, why)| *why == Surplus::Unknown).count();
    let interrupted = books.interruptions.iter().any(|one| one.source == Source::Metrics);
    let tells_them_apart = requests::number(unknown) > counts.tolerance;
    match !interrupted && tells_them_apart && counts.gateway >= counts.ledger.saturating_sub(counts.tolerance) {
        true => Witness::PassedOn,
        false => Witness::Silent,
    }
}

fn touches(one: &Interruption, window: Window) -> bool {
    one.from < window.end && (one.until > window.start || one.from >= window.start)
}
