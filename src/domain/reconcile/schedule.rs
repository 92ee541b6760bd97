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
