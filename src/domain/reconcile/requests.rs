//! The first proof: each request of the access log with its call in the ledger. Tolerance zero.

use super::evidence;
use super::finding::Found;
use super::join::{Join, Pair, Surplus, ended_micros};
use super::reading::{GatewayRequest, InterruptionReason, Source};
use super::window::{Books, Judged, LedgerCall};
use super::{Proof, Terms, Verdict};
use crate::domain::period::Window;

/// What another proof says about requests of which no record is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Witness {
    /// Nothing, or not enough.
    Silent,
    /// The gateway passed on as many requests as the ledger has calls: records of the log were lost.
    PassedOn,
}

/// What the join says of a window.
#[derive(Debug)]
pub(super) struct ByRequest {
    pub(super) judged: Judged,
    /// At most one for each cause.
    pub(super) found: Vec<Found>,
    /// Nothing is missing from the log, as far as is known: what is neither matched nor found did not come this way.
    pub(super) whole: bool,
}

/// The verdict, and a finding for each cause.
pub(super) fn judge(books: &Books<'_>, joined: &Join<'_>, witness: Witness, terms: &Terms) -> ByRequest {
    let rows = Rows::of(books.window, joined);
    let mut reasons = doubts(books, &rows);
    let mut found = match cannot_be_told(books, joined, terms) {
        true => {
            reasons.push(InterruptionReason::ClockSkew);
            Vec::new()
        }
        false => missing(books, joined, &rows, witness, terms, &mut reasons),
    };
    found.extend(evidence::mispriced(books.window, &rows.pairs));
    let is_drift = !found.is_empty();
    found.extend(evidence::clock_skew(books.window, &rows.pairs, terms));
    reasons.sort_unstable();
    reasons.dedup();
    let whole = reasons.is_empty();
    let verdict = match (is_drift, whole) {
        (true, _) => Verdict::Drift,
        (false, false) => Verdict::Unproven,
        (false, true) => Verdict::Matched,
    };
    let (gateway, ledger) = rows.counts();
    let reasons = if verdict == Verdict::Unproven { reasons } else { Vec::new() };
    let judged =
        Judged { proof: Proof::Requests, window: books.window, verdict, gateway, ledger, tolerance: 0, reasons };
    ByRequest { judged, found, whole }
}

/// What of the join belongs to the window: a request by its start, a call without a request by when it occurred.
struct Rows<'j, 'a> {
    window: Window,
    pairs: Vec<&'j Pair<'a>>,
    lost: Vec<&'a GatewayRequest>,
    surplus: Vec<(&'a LedgerCall, Surplus)>,
    unjoinable: Vec<&'j Pair<'a>>,
}

impl<'j, 'a> Rows<'j, 'a> {
    fn of(window: Window, joined: &'j Join<'a>) -> Rows<'j, 'a> {
        let began = |request: &GatewayRequest| window.contains(request.started_at);
        let occurred = |call: &LedgerCall| window.contains(call.occurred_at);
        Rows {
            window,
            pairs: joined.pairs.iter().filter(|pair| began(pair.request)).collect(),
            lost: joined.lost.iter().copied().filter(|request| began(request)).collect(),
            surplus: joined.surplus.iter().copied().filter(|(call, _)| occurred(call)).collect(),
            unjoinable: (joined.unjoinable.iter()).filter(|pair| began(pair.request) || occurred(pair.call)).collect(),
        }
    }

    fn surplus(&self, why: Surplus) -> Vec<&'a LedgerCall> {
        self.surplus.iter().filter(|(_, known)| *known == why).map(|(call, _)| *call).collect()
    }

    /// Requests that were passed on with success, and calls. They are equal where all are matched.
    fn counts(&self) -> (i64, i64) {
        let matched = self.pairs.iter().filter(|pair| pair.counts()).count();
        let began = |pair: &&&Pair<'_>| pair.counts() && self.window.contains(pair.request.started_at);
        let occurred = |pair: &&&Pair<'_>| self.window.contains(pair.call.occurred_at);
        let gateway = matched + self.lost.len() + self.unjoinable.iter().filter(began).count();
        let ledger = matched + self.surplus.len() + self.unjoinable.iter().filter(occurred).count();
        (number(gateway), number(ledger))
    }
}

/// Are the clocks so far apart that the edges of what is seen around a window cannot be joined, and is something left?
fn cannot_be_told(books: &Books<'_>, joined: &Join<'_>, terms: &Terms) -> bool {
    // The other half of the slack is for requests that take their time.
    let apart = joined.offset_micros.saturating_abs() > terms.slack_micros / 2;
    let is_said = || books.interruptions.iter().any(|one| one.source == Source::AccessLog && is_skew(one.reason));
    let something_is_left = !joined.lost.is_empty() || !joined.surplus.is_empty();
    something_is_left && (apart || (joined.pairs.is_empty() && is_said()))
}

/// What is left on either side, as findings; what cannot be held against anybody, as reasons.
fn missing(
    books: &Books<'_>,
    joined: &Join<'_>,
    rows: &Rows<'_, '_>,
    witness: Witness,
    terms: &Terms,
    reasons: &mut Vec<InterruptionReason>,
) -> Vec<Found> {
    let window = books.window;
    // A request that ended beyond what is seen of the ledger, by its clock, may have its call there.
    let seen_until = window.end.0.saturating_add(terms.slack_micros).saturating_sub(terms.skew_micros);
    let is_seen = |request: &&GatewayRequest| ended_micros(request).saturating_sub(joined.offset_micros) <= seen_until;
    let (seen, beyond): (Vec<_>, Vec<_>) = rows.lost.iter().copied().partition(is_seen);
    if !beyond.is_empty() {
        reasons.push(InterruptionReason::Gap);
    }
    let (mismatched, lost): (Vec<_>, Vec<_>) = seen.into_iter().partition(|request| request.claims_other);
    let mut unknown = rows.surplus(Surplus::Unknown);
    if let Some(reason) = lost_records(books, witness).filter(|_| !unknown.is_empty()) {
        reasons.push(reason);
        unknown.clear();
    }
    let found = [
        evidence::lost_in_ledger(window, &lost),
        evidence::bypassed(window, &unknown),
        evidence::mismatch(window, &mismatched, &rows.surplus(Surplus::Mismatch)),
        evidence::duplicate(window, &rows.surplus(Surplus::Duplicate)),
    ];
    found.into_iter().flatten().collect()
}

/// Why the log may not be whole, whatever was matched. Clocks that are apart do not matter to what is joined by ids.
fn doubts(books: &Books<'_>, rows: &Rows<'_, '_>) -> Vec<InterruptionReason> {
    let of_log = books.interruptions.iter().filter(|one| one.source == Source::AccessLog);
    let mut reasons: Vec<InterruptionReason> =
        of_log.map(|one| one.reason).filter(|reason| !is_skew(*reason)).collect();
    if !rows.unjoinable.is_empty() {
        reasons.push(InterruptionReason::NoCommonId);
    }
    reasons
}

/// Why a call without a record may have had one: the log was interrupted, the gateway was started again with records in
/// its queue, or its own counts say that it passed the call on.
fn lost_records(books: &Books<'_>, witness: Witness) -> Option<InterruptionReason> {
    let breaks = |source: Source, reason: InterruptionReason| match source {
        Source::AccessLog => !is_skew(reason),
        Source::Metrics | Source::Limiter => reason == InterruptionReason::GatewayRestarted,
    };
    let broken = books.interruptions.iter().filter(|one| breaks(one.source, one.reason)).map(|one| one.reason).min();
    broken.or((witness == Witness::PassedOn).then_some(InterruptionReason::Gap))
}

fn is_skew(reason: InterruptionReason) -> bool {
    reason == InterruptionReason::ClockSkew
}

pub(super) fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
