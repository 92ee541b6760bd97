//! How far two counts may differ although nothing is missing.
//!
//! A meter is read between two polls and a request takes its time, so calls close to an edge of a window are counted in
//! it by one book and beside it by the other. A percentage alone would hide small tenants whole, and floods on large
//! ones; so the tolerance is what can have happened at the edges, by the measured rate and by the calls that are seen
//! there, and a small part for what never stops.

use super::Terms;
use super::requests::number;
use crate::domain::period::Window;
use crate::domain::time::{MICROS_PER_SECOND, Timestamp};

/// Never less than this many requests.
pub(super) const REQUESTS_MIN: i64 = 3;
/// One part in so many, besides.
pub(super) const RELATIVE_PARTS: i64 = 200;
/// The gateway's workers add up their counts this often.
pub(super) const FLUSH_MICROS: i64 = MICROS_PER_SECOND;
/// How long a request is assumed to be under way where no access log says it.
pub(super) const REQUEST_MICROS_ASSUMED: i64 = 10 * MICROS_PER_SECOND;

/// By how much two counts of about `count` may differ, given how far they may date a request apart and how many calls
/// are seen that close to an edge.
pub(super) fn of(count: i64, window: Window, apart_micros: i64, at_edges: i64) -> i64 {
    let width = i128::from(window.end.0.saturating_sub(window.start.0).max(1));
    let moved = (2 * i128::from(count.max(0)) * i128::from(apart_micros.max(0)) + width - 1) / width;
    let moved = i64::try_from(moved).unwrap_or(i64::MAX);
    moved.max(at_edges).max(REQUESTS_MIN).saturating_add(count.max(0) / RELATIVE_PARTS)
}

/// The most of `all` that are seen within reach of one edge of the window.
pub(super) fn at_edges(all: &[Timestamp], window: Window, apart_micros: i64, terms: &Terms) -> i64 {
    let near = |edge: Timestamp| {
        let reach = edge.plus_micros(-apart_micros)..=edge.plus_micros(terms.skew_micros);
        number(all.iter().filter(|at| reach.contains(at)).count())
    };
    near(window.start).max(near(window.end))
}
