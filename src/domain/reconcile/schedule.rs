//! Which windows are due for comparison, and when a window with open findings is looked at again.

use super::Terms;
use super::meter::window_start;
use crate::domain::period::Window;
use crate::domain::time::{MICROS_PER_DAY, Timestamp};

/// Most windows that one pass compares.
pub const WINDOWS_PER_PASS_MAX: usize = 12;
/// A window is not looked at again when it is older than this.
pub const LOOK_AGAIN_MICROS_MAX: i64 = MICROS_PER_DAY;

/// What one pass has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// To be compared, oldest first; at most [`WINDOWS_PER_PASS_MAX`].
    pub windows: Vec<Window>,
    /// Everything before it is settled once these have been compared. Idle windows in between have no verdict.
    pub settled_until: Timestamp,
}

/// The windows that have settled by `now` and are not compared yet.
///
/// `next_activity` is when something happened next, at or after `settled_until`, on either side; the idle windows before
/// it are skipped. None if nothing did.
#[must_use]
pub fn next_windows(settled_until: Timestamp, now: Timestamp, next_activity: Option<Timestamp>, terms: &Terms) -> Due {
    let settled = window_start(now.plus_micros(-terms.settle_micros), terms);
    if settled <= settled_until {
        return Due { windows: Vec::new(), settled_until };
    }
    let from = next_activity.map_or(settled, |at| window_start(at, terms));
    let mut windows = Vec::new();
    // A mark that is no edge (the terms have changed) is rounded down: a window compared twice is compared alike.
    let mut start = from.max(window_start(settled_until, terms)).min(settled);
    while start < settled && windows.len() < WINDOWS_PER_PASS_MAX {
        let end = start.plus_micros(terms.window_micros);
        windows.push(Window { start, end });
        start = end;
    }
    Due { windows, settled_until: start }
}

/// When a window with open findings is compared again, after it has been compared `times` times: each time twice as long
/// after its end, the last time after a day. `None` when that has been.
#[must_use]
pub fn compared_again_at(window: Window, times: u32, terms: &Terms) -> Option<Timestamp> {
    let delay = |times: u32| {
        let factor = 1_i64.checked_shl(times).filter(|factor| *factor > 0).unwrap_or(i64::MAX);
        terms.settle_micros.max(1).saturating_mul(factor).min(LOOK_AGAIN_MICROS_MAX)
    };
    let is_last = times > 0 && delay(times - 1) >= LOOK_AGAIN_MICROS_MAX;
    (!is_last).then(|| window.end.plus_micros(delay(times)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::properties_tests::config;
    use crate::domain::time::{MICROS_PER_HOUR, MICROS_PER_MINUTE};
    use proptest::prelude::*;

    fn noon() -> Timestamp {
        "2026-11-20T12:00:00Z".parse().unwrap()
    }

    fn at(minute: i64) -> Timestamp {
        noon().plus_micros(minute * MICROS_PER_MINUTE)
    }

    fn due(settled_until: i64, now: i64, next_activity: Option<i64>) -> (Vec<i64>, i64) {
        let minutes = |to: Timestamp| (to.0 - noon().0) / MICROS_PER_MINUTE;
        let due = next_windows(at(settled_until), at(now), next_activity.map(at), &Terms::default());
        (due.windows.iter().map(|window| minutes(window.start)).collect(), minutes(due.settled_until))
    }

    #[test]
    fn a_window_is_due_when_it_has_settled() {
        // Five minutes and three to settle.
        assert_eq!(due(0, 7, Some(1)), (vec![], 0));
        assert_eq!(due(0, 8, Some(1)), (vec![0], 5));
        assert_eq!(due(5, 8, Some(6)), (vec![], 5));
        assert_eq!(due(0, 13, Some(1)), (vec![0, 5], 10));
        // A mark in the future is left where it is.
        assert_eq!(due(60, 13, Some(1)), (vec![], 60));
    }

    #[test]
    fn idle_windows_are_skipped() {
        assert_eq!(due(0, 68, Some(52)), (vec![50, 55, 60], 65));
        assert_eq!(due(0, 68, None), (vec![], 65));
        // What happened next has not settled yet.
        assert_eq!(due(0, 68, Some(66)), (vec![], 65));
        // Activity before the mark was compared.
        assert_eq!(due(50, 68, Some(3)), (vec![50, 55, 60], 65));
    }

    #[test]
    fn a_pass_is_bounded_and_the_next_goes_on() {
        let (windows, until) = due(0, 1_000, Some(0));
        assert_eq!((windows.len(), until), (WINDOWS_PER_PASS_MAX, 60));
        assert_eq!(due(until, 1_000, Some(until)).0[0], 60);
    }

    #[test]
    fn a_window_with_open_findings_is_looked_at_again_ever_later() {
        let window = Window { start: at(0), end: at(5) };
        let after = |times| compared_again_at(window, times, &Terms::default()).map(|at| at.0 - window.end.0);
        let minutes: Vec<i64> = (0..9).map(|times| after(times).unwrap() / MICROS_PER_MINUTE).collect();
        assert_eq!(minutes, [3, 6, 12, 24, 48, 96, 192, 384, 768]);
        assert_eq!(after(9), Some(24 * MICROS_PER_HOUR));
        assert_eq!([10, 63, 64, u32::MAX].map(after), [None; 4]);
    }

    proptest! {
        #![proptest_config(config(256))]

        /// Pass after pass, windows tile time from the mark to what has settled, but for idle ones; none twice.
        #[test]
        fn passes_compare_each_busy_window_once(
            mut busy in prop::collection::vec(0_i64..2_000, 0..20),
            now in 0_i64..2_100,
        ) {
            busy.sort_unstable();
            let (mut mark, mut compared) = (0, Vec::new());
            loop {
                let next = busy.iter().copied().find(|minute| *minute >= mark);
                let (windows, until) = due(mark, now, next);
                prop_assert!(windows.len() <= WINDOWS_PER_PASS_MAX);
                compared.extend(windows);
                if until == mark {
                    break;
                }
                mark = until;
            }
            prop_assert!(compared.is_sorted_by(|one, other| one < other));
            for minute in busy {
                let start = minute / 5 * 5;
                prop_assert_eq!(compared.contains(&start), start + 8 <= now, "{}", minute);
            }
        }
    }
}
