//! One settled window: the two books side by side.

use std::collections::BTreeMap;

use super::attempts::{self, Others, Rest};
use super::cumulative::{self, Counts, Dated};
use super::fail_open;
use super::finding::{Cause, Found};
use super::join::{self, Join, Surplus};
use super::reading::{GatewayRequest, Interruption, InterruptionReason, Source};
use super::requests::{self, ByRequest, Witness};
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
    /// Requests that were under way in the window, or within `slack` of it, in any order. One that began before that and
    /// ended within is needed, too: its call is dated by its end.
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
    let interruptions = touching(books);
    let books = &Books { requests, interruptions: &interruptions, ..*books };
    let joined = join::join(books, terms);
    let counts_of = |calls: &[Dated<'_>], source| {
        let at: Vec<Timestamp> = calls.iter().map(|call| call.at).collect();
        cumulative::counts(books, &at, source, terms)
    };
    let passed_on = speaks(Source::Metrics)
        .then(|| counts_of(&cumulative::dated(books, &joined, Source::Metrics), Source::Metrics));
    let by_request = speaks(Source::AccessLog).then(|| {
        let witness = passed_on.map_or(Witness::Silent, |counts| witness(books, &joined, counts));
        requests::judge(books, &joined, witness, terms)
    });
    let whole = by_request.as_ref().filter(|by_request| by_request.whole);
    let fail_open = speaks(Source::AccessLog).then(|| fail_open::find(books, &joined, terms)).flatten();
    let by_count = passed_on.map(|counts| {
        let log = whole.map(|_| cumulative::counts(books, &cumulative::passed_on(&joined), Source::Metrics, terms));
        cumulative::judge(books, counts, log, earlier)
    });
    let by_attempt = speaks(Source::Limiter).then(|| {
        let counts = counts_of(&attempts::calls_of(books, &joined), Source::Limiter);
        let found = by_request.iter().flat_map(|by_request| &by_request.found).chain(&fail_open);
        let rest = if whole.is_some() { Rest::Joined } else { rest_by_count(by_count.as_ref()) };
        let others = Others { explained: past_the_limiter(found), rest };
        attempts::judge(books, counts, others)
    });
    tell(by_request, fail_open, [by_count, by_attempt])
}

/// Compares by counts alone, where there are too many requests and calls to be joined one by one. `calls_at` is what a
/// [`Tally`](super::tally::Tally) came to; of `books` neither the requests nor the calls are looked at.
#[must_use]
pub fn compare_counts(
    earlier: &[Judged],
    books: &Books<'_>,
    calls_at: &[Timestamp],
    terms: &Terms,
) -> (Vec<Judged>, Vec<Found>) {
    let interruptions = touching(books);
    // The log is there, and says nothing of when a request began and ended, because nobody can look at all of it.
    let sources: Vec<Source> = books.sources.iter().copied().filter(|source| *source != Source::AccessLog).collect();
    let counted = &Books { requests: &[], calls: &[], interruptions: &interruptions, sources: &sources, ..*books };
    let counts =
        |source: Source| sources.contains(&source).then(|| cumulative::counts(counted, calls_at, source, terms));
    let by_count = counts(Source::Metrics).map(|counts| cumulative::judge(counted, counts, None, earlier));
    let by_attempt = counts(Source::Limiter).map(|counts| {
        let others = Others { explained: 0, rest: rest_by_count(by_count.as_ref()) };
        attempts::judge(counted, counts, others)
    });
    let (by_counts, found) = tell(None, None, [by_count, by_attempt]);
    let of_log = books.sources.contains(&Source::AccessLog).then(|| too_many(Proof::Requests, books.window));
    (of_log.into_iter().chain(by_counts).collect(), found)
}

/// The verdict on a window in which there is more than the proof can look at.
#[must_use]
pub fn too_many(proof: Proof, window: Window) -> Judged {
    let (verdict, reasons) = (Verdict::Unproven, vec![InterruptionReason::TooMany]);
    Judged { proof, window, verdict, gateway: 0, ledger: 0, tolerance: 0, reasons }
}

/// What the gateway's own counts say of calls that the limiter did not count.
fn rest_by_count(by_count: Option<&(Judged, Option<Found>)>) -> Rest {
    match by_count {
        Some((judged, _)) if judged.verdict == Verdict::Matched => Rest::PassedOn,
        _ => Rest::Unknown,
    }
}

/// Calls that no limiter has counted, by what was found.
fn past_the_limiter<'a>(found: impl Iterator<Item = &'a Found>) -> i64 {
    found.filter(|one| one.cause.is_past_the_limiter()).map(|one| one.ledger).sum()
}

/// All verdicts, and one finding for each cause: what is known request by request is not told again by counts.
fn tell(
    by_request: Option<ByRequest>,
    fail_open: Option<Found>,
    by_counts: [Option<(Judged, Option<Found>)>; 2],
) -> (Vec<Judged>, Vec<Found>) {
    let mut judged = Vec::new();
    let mut all = Vec::new();
    if let Some(by_request) = by_request {
        judged.push(by_request.judged);
        all.extend(by_request.found);
    }
    all.extend(fail_open);
    for (verdict, suspected) in by_counts.into_iter().flatten() {
        judged.push(verdict);
        all.extend(suspected);
    }
    let mut found: BTreeMap<Cause, Found> = BTreeMap::new();
    for one in all {
        found.entry(one.cause).or_insert(one);
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

fn touching(books: &Books<'_>) -> Vec<Interruption> {
    books.interruptions.iter().filter(|one| touches(one, books.window)).cloned().collect()
}

fn touches(one: &Interruption, window: Window) -> bool {
    one.from < window.end && (one.until > window.start || one.from >= window.start)
}
