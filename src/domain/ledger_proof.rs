//! Does the ledger hold what the chain says was counted?
//!
//! Every commit of usage leaves a record: the position it ended at, how many events it counted, and a digest of who they
//! are and what they say, in the ledger's order. The chain cannot be changed unnoticed, so with it neither can the rows of
//! the ledger, nor the sums and the rollups that were made of them.

use aws_lc_rs::digest;
use serde::Deserialize;

use super::grouping;
use super::report::LedgerRow;
use super::rollup_proof::Fold;
use super::usage::{BodyHash, EventKey, Identity, Totals, UsageEvent};

/// The action of the records that are looked at.
pub const COUNTED: &str = "usage.committed";

/// What a record says was counted.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    /// Events that were new.
    pub events: usize,
    /// No row of the ledger stood behind this position then.
    pub last_position: i64,
    digest: String,
}

impl Statement {
    /// Reads the payload of a record of what was [`COUNTED`]. `None` for one that nobody of ours has written.
    #[must_use]
    pub fn read(payload: &str) -> Option<Statement> {
        serde_json::from_str(payload).ok()
    }
}

/// A row of the ledger, and the identity that is stored with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvenRow {
    pub row: LedgerRow,
    pub identity: Identity,
}

/// Goes through the ledger beside the chain, from the first record on.
#[derive(Debug, Clone)]
pub struct LedgerProof {
    /// Where the last statement ended.
    end: i64,
    totals: Totals,
    rollups: Fold,
}

impl LedgerProof {
    /// Of no statement. The `secret` is that of the rollups' [`Fold`].
    #[must_use]
    pub fn new(secret: [u8; 32]) -> LedgerProof {
        LedgerProof { end: 0, totals: Totals::default(), rollups: Fold::new(secret) }
    }

    /// Checks the next statement. `rows` are those that stand at its last position or before, newest first: as many as it
    /// counted, and one more if there is one.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn check(&mut self, statement: &Statement, rows: &[ProvenRow]) -> Result<(), &'static str> {
        let Some((counted, earlier)) = rows.split_at_checked(statement.events) else {
            return Err("the ledger lacks events that this record counted");
        };
        let is_known = |row: &ProvenRow| row.row.position <= self.end;
        if counted.last().is_some_and(is_known) {
            return Err("the ledger lacks events that this record counted");
        }
        if earlier.first().is_some_and(|row| !is_known(row)) {
            return Err("the ledger holds events that no record counted");
        }
        let mut context = digest::Context::new(&digest::SHA256);
        for ProvenRow { row, identity } in counted.iter().rev() {
            if row.event.identity() != *identity {
                return Err("an event in the ledger is not what it was when this record counted it");
            }
            let (EventKey(key), BodyHash(body)) = identity;
            context.update(key);
            context.update(body);
            self.totals = self.totals.checked_add(&Totals::of(&row.event)).ok_or("the ledger's sums overflow")?;
        }
        let events: Vec<&UsageEvent> = counted.iter().map(|counted| &counted.row.event).collect();
        for (key, totals) in grouping::group(&events) {
            self.rollups.add(key.start, &key.subject, &totals);
        }
        if super::books::hex(context.finish().as_ref()) != statement.digest {
            return Err("the events in the ledger are not those that this record counted");
        }
        self.end = statement.last_position;
        Ok(())
    }

    /// Do the sums that the books showed at the end of the chain come from the rows that were checked?
    #[must_use]
    pub fn sums_to(&self, lifetime: &Totals) -> bool {
        self.totals == *lifetime
    }

    /// Are these the rollups of the rows that were checked?
    #[must_use]
    pub fn rolls_up_to(&self, rollups: &Fold) -> bool {
        self.rollups.equals(rollups)
    }

    /// Does the ledger go on at `next_position`, where the last statement ended? What stands between was counted by none.
    #[must_use]
    pub fn ends_before(&self, next_position: i64) -> bool {
        self.end.checked_add(1) == Some(next_position)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::properties_tests::an_event;
    use crate::domain::time::Timestamp;
    use crate::domain::usage::UsageEvent;

    fn noon() -> Timestamp {
        "2026-11-20T12:00:00Z".parse().unwrap()
    }

    fn row(position: i64, event: &UsageEvent) -> ProvenRow {
        let row = LedgerRow { position, recorded_at: noon(), event: event.clone() };
        ProvenRow { identity: event.identity(), row }
    }

    /// What the record of a commit of these rows says.
    fn statement(rows: &[ProvenRow]) -> Statement {
        let bytes: Vec<u8> =
            rows.iter().flat_map(|row| [&row.identity.0.0[..], &row.identity.1.0[..]].concat()).collect();
        let digest = digest::digest(&digest::SHA256, &bytes);
        let last_position = rows.last().map_or(0, |row| row.row.position);
        Statement { events: rows.len(), last_position, digest: crate::domain::books::hex(digest.as_ref()) }
    }

    /// Rows as a store hands them over for a statement.
    fn handed(ledger: &[ProvenRow], statement: &Statement) -> Vec<ProvenRow> {
        let there = ledger.iter().rev().filter(|row| row.row.position <= statement.last_position);
        there.take(statement.events + 1).cloned().collect()
    }

    fn proof(ledger: &[ProvenRow], statements: &[Statement]) -> Result<LedgerProof, (usize, &'static str)> {
        let mut proof = LedgerProof::new([7; 32]);
        for (at, statement) in statements.iter().enumerate() {
            proof.check(statement, &handed(ledger, statement)).map_err(|reason| (at, reason))?;
        }
        Ok(proof)
    }

    /// Commits of one event or more, at positions with gaps where an event was known.
    fn a_history() -> impl Strategy<Value = Vec<Vec<ProvenRow>>> {
        let commit = prop::collection::vec((an_event(noon()), 1_i64..3), 1..5);
        prop::collection::vec(commit, 1..5).prop_map(|commits| {
            let mut position = 0;
            let mut number = 0;
            let mut next = |(event, step): (UsageEvent, i64)| {
                position += step;
                number += 1;
                row(position, &UsageEvent { event_id: format!("event-{number}"), ..event })
            };
            commits.into_iter().map(|commit| commit.into_iter().map(&mut next).collect()).collect()
        })
    }

    proptest! {
        #[test]
        fn a_ledger_that_nobody_touched_is_proven_to_its_sums(history in a_history()) {
            let statements: Vec<Statement> = history.iter().map(|rows| statement(rows)).collect();
            let ledger: Vec<ProvenRow> = history.concat();
            let mut sums = Totals::default();
            ledger.iter().for_each(|row| sums.add(&Totals::of(&row.row.event)));
            let proven = proof(&ledger, &statements).unwrap();
            prop_assert!(proven.sums_to(&sums));
            let mut rollups = Fold::new([7; 32]);
            let events: Vec<&UsageEvent> = ledger.iter().map(|row| &row.row.event).collect();
            prop_assert!(!proven.rolls_up_to(&rollups));
            for (key, totals) in grouping::group(&events) {
                rollups.add(key.start, &key.subject, &totals);
            }
            prop_assert!(proven.rolls_up_to(&rollups));
            let last = ledger.last().map_or(0, |row| row.row.position);
            prop_assert!([last, last + 1, last + 2].map(|next| proven.ends_before(next)) == [false, true, false]);
            sums.amounts.cost.0 += 1;
            prop_assert!(!proven.sums_to(&sums));
        }

        /// Whatever is changed, the first statement that counted it names it, and no earlier one.
        #[test]
        fn a_change_is_named_by_the_record_that_counted_what_was_changed(
            history in a_history(), which in any::<prop::sample::Index>(), how in 0_u8..6,
        ) {
            let statements: Vec<Statement> = history.iter().map(|rows| statement(rows)).collect();
            let mut ledger: Vec<ProvenRow> = history.concat();
            let at = which.index(ledger.len());
            let position = ledger[at].row.position;
            let expected = statements.iter().position(|one| one.last_position >= position).unwrap();
            match how {
                0 => ledger[at].row.event.amounts.prompt_tokens += 1,
                1 => ledger[at].row.event.event_id.push('x'),
                // Its identity is made to fit.
                2 => {
                    ledger[at].row.event.amounts.cost.0 += 1;
                    ledger[at].identity = ledger[at].row.event.identity();
                }
                3 => ledger[at].identity.0.0[0] ^= 1,
                4 => drop(ledger.remove(at)),
                _ => {
                    let mut more = ledger[at].clone();
                    more.row.event.event_id.push('x');
                    more.identity = more.row.event.identity();
                    ledger.insert(at, more);
                }
            }
            let (named, reason) = proof(&ledger, &statements).expect_err("a change");
            prop_assert_eq!(named, expected, "{}", reason);
        }
    }

    #[test]
    fn a_record_of_another_form_says_nothing() {
        let said = Statement { events: 1, last_position: 7, digest: "a1".into() };
        let payload = r#"{"events":1,"lastPosition":7,"digest":"a1","costUsd":"0.1"}"#;
        assert_eq!(Statement::read(payload), Some(said));
        assert_eq!(Statement::read(r#"{"events":-1,"lastPosition":1,"digest":""}"#), None);
        assert_eq!(Statement::read("{}"), None);
    }
}
