//! Rows that are left over or differ, as findings with what a person needs to follow them up.

use super::class;
use super::finding::{Cause, EVIDENCE_IDS_MAX, Evidence, Found};
use super::join::{Pair, median_offset};
use super::reading::GatewayRequest;
use super::requests::number;
use super::window::LedgerCall;
use super::{Proof, Terms};
use crate::domain::period::Window;
use crate::domain::time::MICROS_PER_SECOND;
use crate::domain::usage::Status;

/// Fewer pairs than these say nothing about clocks.
pub(super) const SKEW_PAIRS_MIN: usize = 3;
/// Two ways to multiply tokens by a price may differ by this much in the end.
const COST_ROUNDING_NANOS: i64 = 2;

/// Requests without a call: what they used is what the gateway counted of them, if it did.
pub(super) fn lost_in_ledger(window: Window, requests: &[&GatewayRequest]) -> Option<Found> {
    (!requests.is_empty()).then(|| of_requests(Cause::LostInLedger, window, requests))
}

/// Calls without a request.
pub(super) fn bypassed(window: Window, calls: &[&LedgerCall]) -> Option<Found> {
    (!calls.is_empty()).then(|| of_calls(Cause::BypassedGateway, window, calls))
}

/// Calls beyond the one that each request made.
pub(super) fn duplicate(window: Window, calls: &[&LedgerCall]) -> Option<Found> {
    (!calls.is_empty()).then(|| of_calls(Cause::Duplicate, window, calls))
}

/// Both sides of it: requests with this tenant's credential in another's name, and calls that another's requests made
/// in this tenant's name.
pub(super) fn mismatch(window: Window, requests: &[&GatewayRequest], calls: &[&LedgerCall]) -> Option<Found> {
    if requests.is_empty() && calls.is_empty() {
        return None;
    }
    let by_request = of_requests(Cause::TenantMismatch, window, requests);
    let by_call = of_calls(Cause::TenantMismatch, window, calls);
    let both = |one: &[String], other: &[String]| kept(one.iter().chain(other).map(String::as_str));
    let evidence = Evidence {
        request_ids: both(&by_request.evidence.request_ids, &by_call.evidence.request_ids),
        call_ids: both(&by_request.evidence.call_ids, &by_call.evidence.call_ids),
        ledger_positions: by_call.evidence.ledger_positions,
        differences: class::differences(&counted(requests), &sum(calls)),
        ..Evidence::default()
    };
    Some(Found { ledger: by_call.ledger, count: by_request.count + by_call.count, evidence, ..by_request })
}

/// Pairs that state other amounts, class by class, as far as the gateway counted that class.
pub(super) fn mispriced(window: Window, pairs: &[&Pair<'_>]) -> Option<Found> {
    let (mut gateway, mut ledger) = ([0_i64; class::COUNT], [0_i64; class::COUNT]);
    let mut told = [false; class::COUNT];
    let mut differing: Vec<&Pair<'_>> = Vec::new();
    for pair in pairs.iter().filter(|pair| pair.is_sure && pair.call.status == Status::Success) {
        let ours = class::of_amounts(&pair.call.amounts);
        let mut differs = false;
        for (class, stated) in differing_classes(pair) {
            gateway[class] = gateway[class].saturating_add(stated);
            ledger[class] = ledger[class].saturating_add(ours[class]);
            (told[class], differs) = (true, true);
        }
        if differs {
            differing.push(pair);
        }
    }
    let classes = (0..class::COUNT).filter(|class| told[*class]);
    let count = number(differing.len());
    (count > 0).then(|| Found {
        cause: Cause::Mispriced,
        proof: Proof::Requests,
        window,
        gateway: count,
        ledger: count,
        count,
        evidence: Evidence {
            request_ids: kept(differing.iter().map(|pair| pair.request.request_id.as_str())),
            call_ids: kept(differing.iter().map(|pair| pair.call.call_id.as_str())),
            ledger_positions: positions(differing.iter().map(|pair| pair.call)),
            differences: classes.map(|class| class::difference(class, &gateway, &ledger)).collect(),
            ..Evidence::default()
        },
    })
}

/// The classes in which the ledger has another amount than the gateway states. A sender that states only a total has no
/// classes of tokens to compare.
fn differing_classes(pair: &Pair<'_>) -> impl Iterator<Item = (usize, i64)> {
    let stated = pair.request.counted.map_or([None; class::COUNT], |counted| class::of_count(&counted));
    let ours = class::of_amounts(&pair.call.amounts);
    let has_classes = pair.call.amounts.unclassified_tokens == 0;
    let differs = move |class: usize, stated: i64| {
        let apart = stated.saturating_sub(ours[class]).saturating_abs();
        if class == class::COST { apart > COST_ROUNDING_NANOS } else { has_classes && apart > 0 }
    };
    let stated = stated.into_iter().enumerate().filter_map(|(class, stated)| Some((class, stated?)));
    stated.filter(move |(class, stated)| differs(*class, *stated))
}

/// The clocks, by the middle of all pairs: a call cannot have occurred before its request began, or after it ended.
pub(super) fn clock_skew(window: Window, pairs: &[&Pair<'_>], terms: &Terms) -> Option<Found> {
    let offset = median_offset(pairs.iter().copied())?;
    let sure = pairs.iter().filter(|pair| pair.is_sure).count();
    (sure >= SKEW_PAIRS_MIN && offset.saturating_abs() > terms.skew_micros).then(|| Found {
        cause: Cause::ClockSkew,
        proof: Proof::Requests,
        window,
        gateway: number(sure),
        ledger: number(sure),
        count: number(sure),
        evidence: Evidence { skew_millis: Some(offset / (MICROS_PER_SECOND / 1_000)), ..Evidence::default() },
    })
}

/// A finding about requests of the gateway.
pub(super) fn of_requests(cause: Cause, window: Window, requests: &[&GatewayRequest]) -> Found {
    Found {
        cause,
        proof: Proof::Requests,
        window,
        gateway: number(requests.len()),
        ledger: 0,
        count: number(requests.len()),
        evidence: Evidence {
            request_ids: kept(requests.iter().map(|request| request.request_id.as_str())),
            call_ids: kept(requests.iter().map(|request| request.call_id.as_str())),
            differences: class::differences(&counted(requests), &[0; class::COUNT]),
            ..Evidence::default()
        },
    }
}

/// A finding about calls in the ledger, with what they amount to.
fn of_calls(cause: Cause, window: Window, calls: &[&LedgerCall]) -> Found {
    Found {
        cause,
        proof: Proof::Requests,
        window,
        gateway: 0,
        ledger: number(calls.len()),
        count: number(calls.len()),
        evidence: Evidence {
            request_ids: kept(calls.iter().map(|call| call.request_id.as_str())),
            call_ids: kept(calls.iter().map(|call| call.call_id.as_str())),
            ledger_positions: positions(calls.iter().copied()),
            differences: class::differences(&[0; class::COUNT], &sum(calls)),
            ..Evidence::default()
        },
    }
}

fn counted(requests: &[&GatewayRequest]) -> [i64; class::COUNT] {
    let counted = requests.iter().filter_map(|request| request.counted);
    total(counted.map(|counted| class::of_count(&counted).map(|stated| stated.unwrap_or(0))))
}

fn sum(calls: &[&LedgerCall]) -> [i64; class::COUNT] {
    total(calls.iter().map(|call| class::of_amounts(&call.amounts)))
}

fn total(rows: impl Iterator<Item = [i64; class::COUNT]>) -> [i64; class::COUNT] {
    rows.fold([0; class::COUNT], |mut sum, row| {
        for (slot, amount) in sum.iter_mut().zip(row) {
            *slot = slot.saturating_add(amount);
        }
        sum
    })
}

fn kept<'a>(ids: impl Iterator<Item = &'a str>) -> Vec<String> {
    ids.filter(|id| !id.is_empty()).take(EVIDENCE_IDS_MAX).map(str::to_owned).collect()
}

fn positions<'a>(calls: impl Iterator<Item = &'a LedgerCall>) -> Vec<i64> {
    calls.map(|call| call.position).take(EVIDENCE_IDS_MAX).collect()
}
