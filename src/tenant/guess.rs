//! Whether the next unit's events are taken for new before the ledger has said so.
//!
//! A tenant has one writer, so an event that is known has come before, over a sender that repeats itself or a stream that
//! delivers again. That is rare, and comes in runs: a guess that was wrong is not made again until the run is over.

use crate::domain::usage::Outcome;
use crate::store::posting::Expecting;

/// Commits in a row without a known event that end a run.
const CLEAN_COMMITS: u32 = 8;

#[derive(Debug, Default)]
pub struct Guess {
    /// Commits without a known event that are still to come before events are taken for new again.
    doubt: u32,
}

impl Guess {
    pub(crate) fn expecting(&self) -> Expecting {
        if self.doubt == 0 { Expecting::New } else { Expecting::Any }
    }

    /// An event was known, whatever was expected.
    pub(crate) fn was_wrong(&mut self) {
        self.doubt = CLEAN_COMMITS;
    }

    /// Learns from what became of a commit's events, batch by batch.
    pub(crate) fn learn(&mut self, outcomes: &[Vec<Outcome>]) {
        let known = |outcome: &Outcome| matches!(outcome, Outcome::Duplicate | Outcome::Conflict);
        if outcomes.iter().flatten().any(known) {
            self.was_wrong();
        } else if !outcomes.is_empty() {
            self.doubt = self.doubt.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubt_lasts_as_long_as_known_events_come() {
        let mut guess = Guess::default();
        assert_eq!(guess.expecting(), Expecting::New);
        guess.was_wrong();
        for _ in 1..CLEAN_COMMITS {
            guess.learn(&[vec![Outcome::Accepted]]);
            assert_eq!(guess.expecting(), Expecting::Any);
        }
        guess.learn(&[vec![Outcome::Accepted], vec![Outcome::Duplicate]]);
        for _ in 0..CLEAN_COMMITS {
            // A commit without events says nothing.
            guess.learn(&[]);
            assert_eq!(guess.expecting(), Expecting::Any);
            guess.learn(&[vec![Outcome::Accepted]]);
        }
        assert_eq!(guess.expecting(), Expecting::New);
    }
}
