//! Two books that must agree: what a gateway says it passed on, against what the ledger counted.
//!
//! [`reading`] is what a gateway states: one record per request (its access log), and running meters (its metrics, and
//! the counters of its rate limiter). [`meter`] turns a running meter into what it counted within each window, and knows
//! when that cannot be known. [`window`] compares one settled window, and gives a verdict per proof:
//!
//! | proof | compares | can say |
//! |---|---|---|
//! | [`Proof::Requests`] | each request of the access log with its call in the ledger, by id | exactly which is missing, on which side |
//! | [`Proof::Cumulative`] | the increase of the gateway's own count of proxied successes | how many, within a tolerance |
//! | [`Proof::Attempts`] | the limiter's attempts, which must not be fewer than the ledger's calls | that something went past the limiter |
//!
//! The gateway's own counts and the limiter's are compared in `cumulative` and `attempts`, within a `tolerance`; requests
//! in `requests`, on what `join` makes of the rows, with the `evidence` of what is left over. [`schedule`] says which
//! windows are due.
//!
//! A verdict is *matched*, *drift* or *unproven*. Unproven (a reset, a gap, a missing setting) is never booked as drift
//! and never as a match. What a drift consists of are [`finding`]s: one for each cause and window, with its evidence, open
//! until the books agree, or until a person explains or settles it ([`lifecycle`]). [`progress`] is how far all that has
//! come.

mod attempts;
pub mod class;
mod cumulative;
mod evidence;
mod fail_open;
pub mod finding;
mod join;
pub mod lifecycle;
pub mod meter;
pub mod pass;
pub mod progress;
pub mod reading;
#[cfg(test)]
mod replay_tests;
pub mod report;
mod requests;
pub mod schedule;
pub mod tally;
mod tolerance;
pub mod window;
#[cfg(test)]
mod window_tests;
#[cfg(test)]
mod world_tests;

use self::reading::Source;
use super::time::{MICROS_PER_DAY, MICROS_PER_MINUTE, MICROS_PER_SECOND};

/// The three comparisons. What they can and cannot prove differs; see the table above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Proof {
    Requests,
    Cumulative,
    Attempts,
}

impl Proof {
    pub const ALL: [Proof; 3] = [Proof::Requests, Proof::Cumulative, Proof::Attempts];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Proof::Requests => "requests",
            Proof::Cumulative => "cumulative",
            Proof::Attempts => "attempts",
        }
    }

    /// What it needs to be heard.
    #[must_use]
    pub fn source(self) -> Source {
        match self {
            Proof::Requests => Source::AccessLog,
            Proof::Cumulative => Source::Metrics,
            Proof::Attempts => Source::Limiter,
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Proof> {
        Proof::ALL.into_iter().find(|proof| proof.name() == name)
    }
}

/// What one comparison of one window came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    Matched,
    Drift,
    /// It cannot be known; never a match, never a drift.
    Unproven,
}

impl Verdict {
    pub const ALL: [Verdict; 3] = [Verdict::Matched, Verdict::Drift, Verdict::Unproven];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Matched => "matched",
            Verdict::Drift => "drift",
            Verdict::Unproven => "unproven",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Verdict> {
        Verdict::ALL.into_iter().find(|verdict| verdict.name() == name)
    }
}

/// How windows are cut, when they are judged, and what is tolerated. All times in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Width of a window; whole minutes that divide an hour, so that the limiter's minutes never straddle two.
    pub window_micros: i64,
    /// A window is judged this long after it ended: the longest request, the gateway's log queue and the event's way
    /// into the ledger.
    pub settle_micros: i64,
    /// How far apart the two books may date the same request.
    pub slack_micros: i64,
    /// Time between two looks at a meter.
    pub poll_micros: i64,
    /// How far the gateway's clock may be from ours before it is told.
    pub skew_micros: i64,
    /// Consecutive windows in which a cause must be found before it alerts.
    pub persistence: usize,
    /// How long a gateway's requests, meters and verdicts are kept; findings are kept for good.
    pub keep_micros: i64,
    /// Which sources are listened to, in the order of [`Source::ALL`]. One that nobody listens to any more has not counted
    /// nothing: its proof is not given.
    pub listened_to: [bool; 3],
}

impl Terms {
    #[must_use]
    pub fn listens_to(&self, source: Source) -> bool {
        self.listened_to[source as usize]
    }
}

impl Default for Terms {
    fn default() -> Terms {
        Terms {
            window_micros: 5 * MICROS_PER_MINUTE,
            settle_micros: 3 * MICROS_PER_MINUTE,
            slack_micros: 2 * MICROS_PER_MINUTE,
            poll_micros: 15 * MICROS_PER_SECOND,
            skew_micros: 2 * MICROS_PER_SECOND,
            persistence: 2,
            keep_micros: 35 * MICROS_PER_DAY,
            listened_to: [true; 3],
        }
    }
}
