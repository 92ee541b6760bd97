//! How fast a budget burns, and when it would be used up at the rate of the last hour.

use super::period::{ROLLUP_MICROS, Window, rollup_start};
use super::time::{CLOCK_STEP_MICROS, MICROS_PER_HOUR, Timestamp};
use super::usage::FUTURE_TOLERANCE_MICROS;

/// The rate is that of so much time before now.
const RATE_MICROS: i64 = MICROS_PER_HOUR;
/// No rate is told of a period that began more recently than this: its first events are no trend.
const HISTORY_MICROS_MIN: i64 = ROLLUP_MICROS;
/// Usage that is longer than this before the newest event plays no part in a rate: senders' clocks run ahead of ours, and
/// ours may have been set back.
const REMEMBERED_MICROS: i64 = RATE_MICROS + FUTURE_TOLERANCE_MICROS + CLOCK_STEP_MICROS;
/// Below this part of its limit a quota alerts of no burn: the first events of a new period would.
const ALERT_USED_PERCENT_MIN: i128 = 5;

/// What a counter has counted lately, by quarter of an hour.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recent(Vec<(Timestamp, i64)>);

/// Quarters that begin earlier play no part in a rate when the newest event of the ledger occurred at `latest`.
#[must_use]
pub fn horizon(latest: Timestamp) -> Timestamp {
    rollup_start(latest.plus_micros(-REMEMBERED_MICROS))
}

impl Recent {
    /// Adds usage, in the metric's unit, to the quarter that begins at `start`.
    pub fn add(&mut self, start: Timestamp, amount: i64) {
        match self.0.binary_search_by_key(&start, |(known, _)| *known) {
            Ok(found) => {
                let sum = self.0[found].1.saturating_add(amount);
                if sum == 0 {
                    self.0.remove(found);
                } else {
                    self.0[found].1 = sum;
                }
            }
            Err(place) if amount != 0 => self.0.insert(place, (start, amount)),
            Err(_) => (),
        }
    }

    /// Adds what the other holds.
    pub fn merge(&mut self, other: &Recent) {
        other.0.iter().for_each(|(start, amount)| self.add(*start, *amount));
    }

    /// Forgets what is before the [`horizon`].
    pub fn forget(&mut self, latest: Timestamp) {
        let horizon = horizon(latest);
        self.0.retain(|(start, _)| *start >= horizon);
    }

    /// When no rate is left unless more is counted.
    #[must_use]
    pub fn fades_at(&self) -> Option<Timestamp> {
        self.0.last().map(|(start, _)| start.plus_micros(ROLLUP_MICROS + RATE_MICROS))
    }

    /// The usage of the hour before `now`, times the width of a quarter. Of the oldest quarter counts the share that lies
    /// in that hour, so that without new usage this never grows.
    fn within_hour(&self, now: Timestamp) -> i128 {
        let from = now.plus_micros(-RATE_MICROS);
        let share = |(start, amount): &(Timestamp, i64)| {
            let inside = start.plus_micros(ROLLUP_MICROS).0.saturating_sub(from.0).clamp(0, ROLLUP_MICROS);
            i128::from((*amount).max(0)) * i128::from(inside)
        };
        self.0.iter().map(share).sum()
    }
}

/// A quota's usage in one period.
#[derive(Debug, Clone, Copy)]
pub struct Burning<'a> {
    pub window: Window,
    pub limit: i64,
    pub used: i64,
    pub recent: &'a Recent,
}

impl Burning<'_> {
    /// When nothing is left, at the rate of the last hour or, if that is shorter, of the period so far. `None` when that
    /// is not before the period's end, when nothing is left already, and when the period has just begun.
    #[must_use]
    pub fn exhausts_at(&self, now: Timestamp) -> Option<Timestamp> {
        let covered = now.0.saturating_sub(self.window.start.0).min(RATE_MICROS);
        let recent = self.recent.within_hour(now);
        if covered < HISTORY_MICROS_MIN || recent == 0 || self.used >= self.limit {
            return None;
        }
        let remaining = i128::from(self.limit) - i128::from(self.used);
        // At most 2^64 · 2^32 · 2^30: far from where these integers end.
        let left = (remaining * i128::from(covered) * i128::from(ROLLUP_MICROS) + recent - 1) / recent;
        let at = Timestamp(i64::try_from(i128::from(now.0) + left).ok()?);
        (at < self.window.end && at.to_jiff().is_some()).then_some(at)
    }

    /// When nothing is left, if that deserves an alert: it is less than `span` from now, in microseconds, and enough is
    /// used.
    #[must_use]
    pub fn alerts(&self, span: i64, now: Timestamp) -> Option<Timestamp> {
        let is_begun = i128::from(self.used) * 100 >= i128::from(self.limit) * ALERT_USED_PERCENT_MIN;
        self.exhausts_at(now).filter(|at| is_begun && at.0 - now.0 < span)
    }

    /// Does what was once short last again, by half as much more than `span`? So a rate that swings a little does not
    /// resolve. A quota that is exhausted burns no more: its threshold tells of that.
    #[must_use]
    pub fn is_over(&self, span: i64, now: Timestamp) -> bool {
        self.exhausts_at(now).is_none_or(|at| at.0 - now.0 > span.saturating_add(span / 2))
    }

    /// The first instant from `since` on at which it [is over](Burning::is_over) unless more is counted: time alone only
    /// lets the rate fall.
    #[must_use]
    pub fn over_from(&self, span: i64, since: Timestamp) -> Timestamp {
        let (mut not_before, mut over) = (since, self.recent.fades_at().map_or(since, |at| at.max(since)));
        while not_before < over {
            let middle = Timestamp(not_before.0 + (over.0 - not_before.0) / 2);
            if self.is_over(span, middle) {
                over = middle;
            } else {
                not_before = middle.plus_micros(1);
            }
        }
        over
    }
}
