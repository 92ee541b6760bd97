//! What became of events, added up, so that metrics are touched once for many of them.

use super::litellm;
use super::record::ItemOutcome;
use crate::domain::usage::{Outcome, UsageEvent};

/// Sums of one batch; told to the metrics when they are complete.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) accepted: u64,
    pub(super) duplicate: u64,
    pub(super) conflict: u64,
    pub(super) refused: u64,
    pub(super) unavailable: u64,
    /// Duplicates that LiteLLM sent.
    pub(super) surplus: u64,
}

impl Tally {
    /// Adds a tenant's answer; `from_litellm` says who sent the event.
    pub(super) fn outcome(&mut self, outcome: Outcome, from_litellm: bool) {
        match outcome {
            Outcome::Accepted => self.accepted += 1,
            Outcome::Duplicate => {
                self.duplicate += 1;
                self.surplus += u64::from(from_litellm);
            }
            Outcome::Conflict => self.conflict += 1,
            Outcome::Refused(_) => self.refused += 1,
        }
    }

    /// As [`outcome`](Tally::outcome), for an item that was answered.
    pub(super) fn item(&mut self, outcome: &ItemOutcome, from_litellm: bool) {
        match outcome {
            ItemOutcome::Accepted => self.outcome(Outcome::Accepted, from_litellm),
            ItemOutcome::Duplicate => self.outcome(Outcome::Duplicate, from_litellm),
            ItemOutcome::Conflict => self.outcome(Outcome::Conflict, from_litellm),
            ItemOutcome::Rejected { .. } | ItemOutcome::Parked { .. } => self.refused += 1,
        }
    }

    /// Tells the metrics, under the bounded name of a door: `http`, `nats`, `replay`.
    pub(super) fn tell(self, door: &'static str) {
        for (outcome, events) in [
            ("accepted", self.accepted),
            ("duplicate", self.duplicate),
            ("conflict", self.conflict),
            ("refused", self.refused),
            ("unavailable", self.unavailable),
        ] {
            if events > 0 {
                metrics::counter!("platform_api_usage_events_total", "outcome" => outcome, "door" => door)
                    .increment(events);
            }
        }
        if self.surplus > 0 {
            metrics::counter!("platform_api_litellm_surplus_copies_total").increment(self.surplus);
        }
    }
}

/// Did LiteLLM send it?
pub(super) fn is_from_litellm(event: &UsageEvent) -> bool {
    event.source == litellm::SOURCE
}
