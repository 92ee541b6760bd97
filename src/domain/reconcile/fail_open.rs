//! Requests that went past the limiter.

use super::Terms;
use super::evidence;
use super::finding::{Cause, Found};
use super::join::{Join, consumed};
use super::reading::{GatewayRequest, InterruptionReason, ServedBy, Source};
use super::requests::number;
use super::window::Books;

/// Requests that the limiter should have seen and did not, whoever answered them. `gateway` are all of them, `ledger`
/// those that made a call. That is no difference between the two books.
///
/// A gateway may refuse a request before its limiter has a look (an access list, a quota), so a refusal without the
/// limiter's headers says something only while the limiter's store is known to have been away; and an error of the
/// gateway itself let nothing through.
pub(super) fn find(books: &Books<'_>, joined: &Join<'_>, terms: &Terms) -> Option<Found> {
    let went_past = |request: &GatewayRequest| {
        books.window.contains(request.started_at)
            && request.authenticated
            && !request.limited
            && books.limited_routes.contains(&request.route)
            && was_let_through(request, books, terms)
    };
    let requests: Vec<&GatewayRequest> = joined.own.iter().copied().filter(|request| went_past(request)).collect();
    let calls = joined.pairs.iter().filter(|pair| consumed(pair.call) && went_past(pair.request)).count();
    let mut found = evidence::of_requests(Cause::FailOpen, books.window, &requests);
    found.ledger = number(calls);
    // What they used is in the ledger, if they used anything.
    found.evidence.differences.clear();
    (!requests.is_empty()).then_some(found)
}

fn was_let_through(request: &GatewayRequest, books: &Books<'_>, terms: &Terms) -> bool {
    let limiter_was_away = || {
        // A clock that is wrong stops no limiter.
        let was_away = |reason| matches!(reason, InterruptionReason::Gap | InterruptionReason::LimiterReset);
        let of_limiter = books.interruptions.iter().filter(|one| one.source == Source::Limiter && was_away(one.reason));
        of_limiter.into_iter().any(|one| {
            one.from.plus_micros(-terms.skew_micros) <= request.started_at
                && request.started_at <= one.until.plus_micros(terms.skew_micros)
        })
    };
    match request.served_by {
        ServedBy::Upstream => true,
        ServedBy::Gateway => match request.status {
            ..400 => true,
            400..500 => limiter_was_away(),
            _ => false,
        },
    }
}
