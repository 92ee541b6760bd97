//! `[jobs]`: background work.

use serde::Deserialize;

use crate::domain::job::LEASE_MICROS_MAX;

/// Background work.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Jobs {
    /// Jobs that one daemon runs at once.
    pub at_once: usize,
    /// A worker that is not heard of for this long has lost its job to another one.
    pub lease_ms: u64,
    /// How often what need not be kept is forgotten.
    pub housekeeping_every_ms: u64,
    /// How often every audit chain is verified.
    pub verify_every_ms: u64,
    /// How long jobs that have ended are shown.
    pub keep_days: u32,
    /// How long an `Idempotency-Key` is known.
    pub keep_answers_days: u32,
    /// How long events are kept in quarantine, other than those that wait for their tenant.
    pub keep_quarantine_days: u32,
}

impl Default for Jobs {
    fn default() -> Jobs {
        Jobs {
            at_once: 4,
            lease_ms: 30_000,
            housekeeping_every_ms: 3_600_000,
            verify_every_ms: 7 * 24 * 3_600_000,
            keep_days: 30,
            keep_answers_days: 7,
            keep_quarantine_days: 90,
        }
    }
}

impl Jobs {
    /// [`lease_ms`](Jobs::lease_ms), as the books count time.
    #[must_use]
    pub fn lease_micros(&self) -> i64 {
        i64::try_from(self.lease_ms).unwrap_or(i64::MAX / 1_000).saturating_mul(1_000)
    }

    /// Everything that is wrong with it.
    pub(super) fn problems(&self) -> Vec<String> {
        let checks = [
            ((1..=64).contains(&self.at_once), "jobs.at_once: must be from 1 to 64"),
            (
                (1_000_000..=LEASE_MICROS_MAX).contains(&self.lease_micros()),
                "jobs.lease_ms: must be from 1000 to 3600000",
            ),
            (self.housekeeping_every_ms >= 1_000, "jobs.housekeeping_every_ms: must be at least 1000"),
            (self.verify_every_ms >= 1_000, "jobs.verify_every_ms: must be at least 1000"),
            (self.keep_days > 0, "jobs.keep_days: must be at least 1"),
            (self.keep_answers_days > 0, "jobs.keep_answers_days: must be at least 1"),
            (self.keep_quarantine_days > 0, "jobs.keep_quarantine_days: must be at least 1"),
        ];
        checks.iter().filter(|(holds, _)| !holds).map(|(_, problem)| (*problem).to_owned()).collect()
    }
}
