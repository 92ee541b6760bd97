//! The first proof: each request of the access log with its call in the ledger. Tolerance zero.

use super::finding::{Cause, Difference, Evidence, Found};
use super::join::{Join, Pair, Surplus, consumed, ended_micros, median_offset};
use super::reading::{GatewayRequest, InterruptionReason, ServedBy, Source};
use super::window::{Books, Judged, LedgerCall};
use super::{Proof, Terms, Verdict};
use crate::domain::amount::NanoUsd;
use crate::domain::usage::{Amounts, Status};

/// Fewer pairs than these say nothing about clocks.
pub(super) const SKEW_PAIRS_MIN: usize = 3;
/// Two ways to multiply tokens by a price may differ by this much in the end.
pub(super) const COST_ROUNDING_NANOS: i64 = 2;

/// The names of the classes in [`Difference::class`], in the order in which they are told.
pub(super) const CLASSES: [&str; 7] = [
    "promptTokens",
    "completionTokens",
    "cacheReadTokens",
    "cacheWriteTokens",
    "reasoningTokens",
    "unclassifiedTokens",
    "costNanoUsd",
];

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
    let mut reasons = doubts(books, joined);
    let window = books.window;
    let pairs = || joined.pairs.iter().filter(|pair| window.contains(pair.request.started_at));
    let lost = || joined.lost.iter().copied().filter(|request| window.contains(request.started_at));
    let surplus = |why: Surplus| {
        let of_window = joined.surplus.iter().filter(move |(call, _)| window.contains(call.occurred_at));
        of_window.filter(move |(_, known)| *known == why).map(|(call, _)| *call)
    };
    // Clocks further apart than what is looked at around a window: its edges cannot be joined.
    let apart = joined.offset_micros.saturating_abs() > terms.slack_micros
        || (joined.pairs.is_empty() && interrupted_by(books, Source::AccessLog, InterruptionReason::ClockSkew));
    let mut found = Vec::new();
    if apart && (!joined.lost.is_empty() || !joined.surplus.is_empty()) {
        reasons.push(InterruptionReason::ClockSkew);
    } else {
        // A request that ended beyond what is seen of the ledger may have its call there.
        let horizon = window.end.0.saturating_add(terms.slack_micros).saturating_sub(terms.skew_micros);
        let (seen, beyond): (Vec<_>, Vec<_>) = lost().partition(|request| ended_micros(request) <= horizon);
        if !beyond.is_empty() {
            reasons.push(InterruptionReason::Gap);
        }
        let unknown: Vec<&LedgerCall> = surplus(Surplus::Unknown).collect();
        let heard = !books.interruptions.iter().any(|one| breaks_the_log(one.source, one.reason));
        if !unknown.is_empty() && (!heard || witness == Witness::PassedOn) {
            reasons.push(if heard { InterruptionReason::Gap } else { log_reason(books) });
        } else {
            found.extend(bypassed(&unknown, books));
        }
        let (mismatched, missing): (Vec<_>, Vec<_>) = seen.into_iter().partition(|request| request.claims_other);
        found.extend(lost_in_ledger(&missing, books));
        found.extend(mismatch(&mismatched, &surplus(Surplus::Mismatch).collect::<Vec<_>>(), books));
        found.extend(duplicate(&surplus(Surplus::Duplicate).collect::<Vec<_>>(), books));
    }
    found.extend(mispriced(pairs(), books));
    let is_drift = !found.is_empty();
    found.extend(clock_skew(pairs(), books, terms));
    let counted = pairs().filter(|pair| pair.counts()).count();
    let unjoinable = || joined.unjoinable.iter();
    let unjoinable_requests =
        unjoinable().filter(|pair| pair.counts() && window.contains(pair.request.started_at)).count();
    let unjoinable_calls = unjoinable().filter(|pair| window.contains(pair.call.occurred_at)).count();
    let in_surplus = joined.surplus.iter().filter(|(call, _)| window.contains(call.occurred_at)).count();
    reasons.sort_unstable();
    reasons.dedup();
    let whole = reasons.is_empty();
    let verdict = match (is_drift, whole) {
        (true, _) => Verdict::Drift,
        (false, false) => Verdict::Unproven,
        (false, true) => Verdict::Matched,
    };
    let judged = Judged {
        proof: Proof::Requests,
        window,
        verdict,
        gateway: number(counted + unjoinable_requests + lost().count()),
        ledger: number(counted + unjoinable_calls + in_surplus),
        tolerance: 0,
        reasons: if verdict == Verdict::Unproven { reasons } else { Vec::new() },
    };
    ByRequest { judged, found, whole }
}

/// Requests that the limiter should have seen and did not, whoever answered them.
///
/// A gateway may refuse a request before its limiter has a look (an access list, a quota), so a refusal without the
/// limiter's headers says something only while the limiter's store is known to have been away; and an error of the
/// gateway itself let nothing through.
pub(super) fn fail_open(books: &Books<'_>, joined: &Join<'_>, terms: &Terms) -> Option<Found> {
    let limiter_was_away = |request: &GatewayRequest| {
        books.interruptions.iter().any(|one| {
            one.source == Source::Limiter
                && one.from.0.saturating_sub(terms.skew_micros) <= request.started_at.0
                && request.started_at.0 <= one.until.0.saturating_add(terms.skew_micros)
        })
    };
    let let_through = |request: &GatewayRequest| match request.served_by {
        ServedBy::Upstream => true,
        ServedBy::Gateway => match request.status {
            ..400 => true,
            400..500 => limiter_was_away(request),
            _ => false,
        },
    };
    let passed_by: Vec<&GatewayRequest> = (joined.own.iter().copied())
        .filter(|request| books.window.contains(request.started_at))
        .filter(|request| request.authenticated && !request.limited)
        .filter(|request| books.limited_routes.contains(&request.route))
        .filter(|request| let_through(request))
        .collect();
    let has_call = |pair: &&Pair<'_>| {
        books.window.contains(pair.request.started_at)
            && pair.request.authenticated
            && !pair.request.limited
            && books.limited_routes.contains(&pair.request.route)
            && consumed(pair.call)
    };
    let calls = joined.pairs.iter().filter(has_call).count();
    (!passed_by.is_empty()).then(|| Found {
        cause: Cause::FailOpen,
        proof: Proof::Requests,
        window: books.window,
        gateway: number(passed_by.len()),
        ledger: number(calls),
        count: number(passed_by.len()),
        evidence: Evidence { request_ids: request_ids(&passed_by), ..Evidence::default() },
    })
}

/// Why the log may not be whole.
fn doubts(books: &Books<'_>, joined: &Join<'_>) -> Vec<InterruptionReason> {
    // Clocks that are apart do not matter to what is joined by ids.
    let of_log = books.interruptions.iter().filter(|one| one.source == Source::AccessLog);
    let mut reasons: Vec<InterruptionReason> =
        of_log.map(|one| one.reason).filter(|reason| *reason != InterruptionReason::ClockSkew).collect();
    let in_window = |pair: &&Pair<'_>| {
        books.window.contains(pair.request.started_at) || books.window.contains(pair.call.occurred_at)
    };
    if joined.unjoinable.iter().any(|pair| in_window(&pair)) {
        reasons.push(InterruptionReason::NoCommonId);
    }
    reasons
}

/// May records of the log be missing because of this? A gateway that was started again may have lost its queue.
fn breaks_the_log(source: Source, reason: InterruptionReason) -> bool {
    match source {
        Source::AccessLog => reason != InterruptionReason::ClockSkew,
        Source::Metrics | Source::Limiter => reason == InterruptionReason::GatewayRestarted,
    }
}

fn log_reason(books: &Books<'_>) -> InterruptionReason {
    let reasons = books.interruptions.iter().filter(|one| breaks_the_log(one.source, one.reason));
    reasons.map(|one| one.reason).min().unwrap_or(InterruptionReason::Gap)
}

fn interrupted_by(books: &Books<'_>, source: Source, reason: InterruptionReason) -> bool {
    books.interruptions.iter().any(|one| one.source == source && one.reason == reason)
}

fn lost_in_ledger(lost: &[&GatewayRequest], books: &Books<'_>) -> Option<Found> {
    (!lost.is_empty()).then(|| Found {
        cause: Cause::LostInLedger,
        proof: Proof::Requests,
        window: books.window,
        gateway: number(lost.len()),
        ledger: 0,
        count: number(lost.len()),
        evidence: Evidence {
            request_ids: request_ids(lost),
            call_ids: kept(lost.iter().map(|request| request.call_id.as_str())),
            differences: differences(counted_by_gateway(lost), [0; 7]),
            ..Evidence::default()
        },
    })
}

fn bypassed(calls: &[&LedgerCall], books: &Books<'_>) -> Option<Found> {
    (!calls.is_empty()).then(|| of_calls(Cause::BypassedGateway, calls, 0, books))
}

/// Both sides of it: requests with this tenant's credential in another's name, and calls that another's requests made
/// in this tenant's name.
fn mismatch(requests: &[&GatewayRequest], calls: &[&LedgerCall], books: &Books<'_>) -> Option<Found> {
    if requests.is_empty() && calls.is_empty() {
        return None;
    }
    let mut found = of_calls(Cause::TenantMismatch, calls, number(requests.len()), books);
    found.count = number(requests.len() + calls.len());
    found.evidence.differences = differences(counted_by_gateway(requests), sum(calls));
    let mut ids = request_ids(requests);
    ids.append(&mut found.evidence.request_ids);
    ids.truncate(super::finding::EVIDENCE_IDS_MAX);
    found.evidence.request_ids = ids;
    Some(found)
}

/// Calls beyond the one that each request made.
fn duplicate(calls: &[&LedgerCall], books: &Books<'_>) -> Option<Found> {
    (!calls.is_empty()).then(|| of_calls(Cause::Duplicate, calls, 0, books))
}

/// A finding about calls in the ledger, with what they amount to.
fn of_calls(cause: Cause, calls: &[&LedgerCall], gateway: i64, books: &Books<'_>) -> Found {
    Found {
        cause,
        proof: Proof::Requests,
        window: books.window,
        gateway,
        ledger: number(calls.len()),
        count: number(calls.len()),
        evidence: Evidence {
            request_ids: kept(calls.iter().map(|call| call.request_id.as_str())),
            call_ids: kept(calls.iter().map(|call| call.call_id.as_str())),
            ledger_positions: positions(calls.iter().copied()),
            differences: differences([0; 7], sum(calls)),
            ..Evidence::default()
        },
    }
}

/// Pairs that state other amounts, class by class, as far as the gateway counted that class.
fn mispriced<'a>(pairs: impl Iterator<Item = &'a Pair<'a>>, books: &Books<'_>) -> Option<Found> {
    let (mut gateway, mut ledger) = ([0_i64; 7], [0_i64; 7]);
    let mut differing: Vec<&Pair<'_>> = Vec::new();
    let mut classes = [false; 7];
    for pair in pairs.filter(|pair| pair.call.status == Status::Success) {
        let (theirs, ours) = (stated(pair), classes_of(&pair.call.amounts));
        let mut differs = false;
        for class in 0..CLASSES.len() {
            let Some(stated) = theirs[class] else { continue };
            let allowed = if CLASSES[class] == "costNanoUsd" { COST_ROUNDING_NANOS } else { 0 };
            if stated.saturating_sub(ours[class]).saturating_abs() > allowed {
                gateway[class] = gateway[class].saturating_add(stated);
                ledger[class] = ledger[class].saturating_add(ours[class]);
                (classes[class], differs) = (true, true);
            }
        }
        if differs {
            differing.push(pair);
        }
    }
    let requests: Vec<&GatewayRequest> = differing.iter().map(|pair| pair.request).collect();
    (!differing.is_empty()).then(|| Found {
        cause: Cause::Mispriced,
        proof: Proof::Requests,
        window: books.window,
        gateway: number(differing.len()),
        ledger: number(differing.len()),
        count: number(differing.len()),
        evidence: Evidence {
            request_ids: request_ids(&requests),
            call_ids: kept(differing.iter().map(|pair| pair.call.call_id.as_str())),
            ledger_positions: positions(differing.iter().map(|pair| pair.call)),
            differences: (0..CLASSES.len())
                .filter(|class| classes[*class])
                .map(|class| difference(class, gateway[class], ledger[class]))
                .collect(),
            skew_millis: None,
        },
    })
}

/// What the gateway counted of a pair, in the order of [`CLASSES`]. A sender that states only a total has no classes
/// to compare, and a gateway without prices states a cost of zero.
fn stated(pair: &Pair<'_>) -> [Option<i64>; 7] {
    let Some(counted) = pair.request.counted else { return [None; 7] };
    let cost = counted.cost.filter(|cost| cost.0 > 0).map(|NanoUsd(nanos)| nanos);
    if pair.call.amounts.unclassified_tokens > 0 {
        return [None, None, None, None, None, None, cost];
    }
    [
        counted.prompt_tokens,
        counted.completion_tokens,
        counted.cached_tokens,
        None,
        counted.reasoning_tokens,
        None,
        cost,
    ]
}

/// The clocks, by the middle of all pairs: a call cannot have occurred before its request began, or after it ended.
fn clock_skew<'a>(pairs: impl Iterator<Item = &'a Pair<'a>>, books: &Books<'_>, terms: &Terms) -> Option<Found> {
    let pairs: Vec<&Pair<'_>> = pairs.collect();
    let offset = median_offset(pairs.iter().copied())?;
    (pairs.len() >= SKEW_PAIRS_MIN && offset.saturating_abs() > terms.skew_micros).then(|| Found {
        cause: Cause::ClockSkew,
        proof: Proof::Requests,
        window: books.window,
        gateway: number(pairs.len()),
        ledger: number(pairs.len()),
        count: number(pairs.len()),
        evidence: Evidence { skew_millis: Some(offset / 1_000), ..Evidence::default() },
    })
}

fn counted_by_gateway(requests: &[&GatewayRequest]) -> [i64; 7] {
    let mut sum = [0_i64; 7];
    for counted in requests.iter().filter_map(|request| request.counted) {
        let stated = [
            counted.prompt_tokens,
            counted.completion_tokens,
            counted.cached_tokens,
            None,
            counted.reasoning_tokens,
            None,
            counted.cost.map(|NanoUsd(nanos)| nanos),
        ];
        for (slot, stated) in sum.iter_mut().zip(stated) {
            *slot = slot.saturating_add(stated.unwrap_or(0));
        }
    }
    sum
}

fn sum(calls: &[&LedgerCall]) -> [i64; 7] {
    let mut sum = [0_i64; 7];
    for call in calls {
        for (slot, amount) in sum.iter_mut().zip(classes_of(&call.amounts)) {
            *slot = slot.saturating_add(amount);
        }
    }
    sum
}

fn classes_of(amounts: &Amounts) -> [i64; 7] {
    [
        amounts.prompt_tokens,
        amounts.completion_tokens,
        amounts.cache_read_tokens,
        amounts.cache_write_tokens,
        amounts.reasoning_tokens,
        amounts.unclassified_tokens,
        amounts.cost.0,
    ]
}

fn differences(gateway: [i64; 7], ledger: [i64; 7]) -> Vec<Difference> {
    let differs = |class: &usize| gateway[*class] != ledger[*class];
    (0..CLASSES.len()).filter(differs).map(|class| difference(class, gateway[class], ledger[class])).collect()
}

fn difference(class: usize, gateway: i64, ledger: i64) -> Difference {
    Difference { class: CLASSES[class].to_owned(), gateway, ledger }
}

fn request_ids(requests: &[&GatewayRequest]) -> Vec<String> {
    kept(requests.iter().map(|request| request.request_id.as_str()))
}

fn kept<'a>(ids: impl Iterator<Item = &'a str>) -> Vec<String> {
    ids.filter(|id| !id.is_empty()).take(super::finding::EVIDENCE_IDS_MAX).map(str::to_owned).collect()
}

fn positions<'a>(calls: impl Iterator<Item = &'a LedgerCall>) -> Vec<i64> {
    calls.map(|call| call.position).take(super::finding::EVIDENCE_IDS_MAX).collect()
}

pub(super) fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
