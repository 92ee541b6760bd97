//! Moments at which something is due, whatever became of what was due before: a latency that counts from its due moment
//! does not leave out what was waited for.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// Every `every`, from `first`, until `end`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) first: Instant,
    pub(crate) every: Duration,
    pub(crate) end: Instant,
}

impl Pace {
    /// `rate` a second for all of `many` together, evenly offset; this is the one at `at`.
    pub(crate) fn share(rate: f64, many: u32, at: u32, began: Instant, took: Duration) -> Pace {
        let every = Duration::from_secs_f64(f64::from(many) / rate);
        Pace { first: began + every.mul_f64(f64::from(at) / f64::from(many)), every, end: began + took }
    }

    /// Every due moment, each given when it has come. To be used by a thread of its own.
    pub(crate) fn moments(self) -> impl Iterator<Item = Instant> {
        // The kernel rounds sleeping up by 50 µs otherwise, which would be counted as the server's.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let due = std::iter::successors(Some(self.first), move |due| Some(*due + self.every));
        due.take_while(move |due| *due < self.end).inspect(|due| {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        })
    }
}

pub(crate) fn micros_since(due: Instant) -> u32 {
    u32::try_from(due.elapsed().as_micros()).unwrap_or(u32::MAX)
}
