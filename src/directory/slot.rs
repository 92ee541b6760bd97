//! What a tenant's place may be. Pure: events in, the next state and what to do out.
//!
//! ```text
//! (resting) --find--> Starting --opened--> Open --rests--> (resting)
//!                        |                  | fails
//!                        | fails            v
//!                        +-----------> BackingOff --time--> Starting
//!                        | is another node's now
//!                        +-----------> Yielded --time, find--> Starting
//!                        | cannot be trusted
//!                        v
//!                     Frozen
//! ```
//! A tenant without a slot rests.

use crate::domain::time::Timestamp;

/// How long a tenant must have been open for its next failure to count as the first.
pub const HEALTHY_MICROS: i64 = 60_000_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// Waiting for a place or being opened. `failures` came in a row before.
    Starting {
        failures: u32,
    },
    Open {
        since: Timestamp,
        failures: u32,
    },
    /// Failed; opened again at `until`.
    BackingOff {
        until: Timestamp,
        failures: u32,
    },
    /// Another node has taken it over. It is opened again when somebody asks for it here or the other node is gone, and not
    /// before `until`: two nodes that are both asked take turns, longer ones each time, and neither waits for a person.
    Yielded {
        until: Timestamp,
        failures: u32,
    },
    /// Its database cannot be trusted. Only a person, and a restart, thaws it.
    Frozen {
        reason: String,
    },
}

/// First delay and longest delay before a failed tenant is opened again.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    pub first_ms: u64,
    pub most_ms: u64,
}

impl Backoff {
    fn micros(self, failures: u32) -> i64 {
        let doubled = self.first_ms.saturating_mul(1_u64 << failures.saturating_sub(1).min(30));
        i64::try_from(doubled.min(self.most_ms)).unwrap_or(i64::MAX / 1_000) * 1_000
    }

    fn is_over(self, until: Timestamp, now: Timestamp) -> bool {
        let longest = self.micros(u32::MAX);
        !(1..=longest).contains(&(until.0 - now.0))
    }
}

impl Slot {
    /// The tenant was opened.
    pub fn opened(&self, now: Timestamp) -> Slot {
        Slot::Open { since: now, failures: self.failures() }
    }

    /// Opening it, or the open tenant, failed.
    pub fn failed(&self, now: Timestamp, backoff: Backoff) -> Slot {
        let failures = self.failures_with_this_one(now);
        Slot::BackingOff { until: now.plus_micros(backoff.micros(failures)), failures }
    }

    /// Another node has taken it over.
    pub fn yielded(&self, now: Timestamp, backoff: Backoff) -> Slot {
        let failures = self.failures_with_this_one(now);
        Slot::Yielded { until: now.plus_micros(backoff.micros(failures)), failures }
    }

    fn failures_with_this_one(&self, now: Timestamp) -> u32 {
        let before = match self {
            Slot::Open { since, .. } if now.0 - since.0 >= HEALTHY_MICROS => 0,
            other => other.failures(),
        };
        before.saturating_add(1)
    }

    /// Time has come to open it again. So it has when there is longer to wait than there ever was: the clock was set back.
    pub fn is_due(&self, now: Timestamp, backoff: Backoff) -> bool {
        matches!(self, Slot::BackingOff { until, .. } if backoff.is_over(*until, now))
    }

    /// It was yielded to another node, and may be taken back by now.
    pub fn may_be_taken_back(&self, now: Timestamp, backoff: Backoff) -> bool {
        matches!(self, Slot::Yielded { until, .. } if backoff.is_over(*until, now))
    }

    pub fn failures(&self) -> u32 {
        match self {
            Slot::Starting { failures }
            | Slot::Open { failures, .. }
            | Slot::BackingOff { failures, .. }
            | Slot::Yielded { failures, .. } => *failures,
            Slot::Frozen { .. } => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { first_ms: 100, most_ms: 1_000 };

    fn delay(slot: &Slot, now: Timestamp) -> i64 {
        match slot {
            Slot::BackingOff { until, .. } => until.0 - now.0,
            other => panic!("{other:?} is not backing off"),
        }
    }

    #[test]
    fn the_delay_doubles_up_to_its_cap_and_is_forgotten_after_health() {
        let now = Timestamp(0);
        let mut slot = Slot::Starting { failures: 0 };
        for expected_ms in [100, 200, 400, 800, 1_000, 1_000] {
            let failed = slot.failed(now, BACKOFF);
            assert_eq!(delay(&failed, now), expected_ms * 1_000);
            assert!(!failed.is_due(now, BACKOFF));
            assert!(failed.is_due(now.plus_micros(expected_ms * 1_000), BACKOFF));
            assert!(failed.is_due(now.plus_micros(-3_600_000_000), BACKOFF), "the clock was set back");
            slot = Slot::Starting { failures: failed.failures() };
        }
        let Slot::Yielded { until, failures } = slot.yielded(now, BACKOFF) else { panic!("not yielded") };
        assert_eq!((until.0, failures), (1_000_000, 7));
        let yielded = slot.yielded(now, BACKOFF);
        assert!(!yielded.is_due(until, BACKOFF), "time alone does not open it again");
        assert!(yielded.may_be_taken_back(until, BACKOFF) && !yielded.may_be_taken_back(now, BACKOFF));
        let open = slot.opened(now);
        let soon = open.failed(now.plus_micros(HEALTHY_MICROS - 1), BACKOFF);
        assert_eq!(soon.failures(), 7);
        let late = now.plus_micros(HEALTHY_MICROS);
        assert_eq!(delay(&open.failed(late, BACKOFF), late), 100_000);
    }
}
