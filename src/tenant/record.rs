//! The usage part of a unit of work: admit, insert, learn what is new, count it.

use super::ledger::Ledger;
use super::message::Batch;
use crate::domain::books::{BatchCounts, Books, Posting};
use crate::domain::sorting::{Inserted, Sorting};
use crate::domain::usage::{Identity, Outcome, UsageEvent};
use crate::store::StoreError;
use crate::store::posting::Expecting;

/// Counts the events of `batches` in the open transaction and answers one outcome per event, batch by batch.
///
/// # Errors
/// [`StoreError`]; the transaction is then of no use.
pub(crate) async fn record(
    ledger: &mut impl Ledger,
    before: &Books,
    posting: &mut Posting,
    batches: &[&Batch],
    expecting: Expecting,
) -> Result<Vec<Vec<Outcome>>, StoreError> {
    let events: Vec<&UsageEvent> = batches.iter().flat_map(|batch| &batch.events).collect();
    let identities: Vec<Identity> = batches.iter().flat_map(|batch| &batch.identities).copied().collect();
    let offered = Offered { events: &events, identities: &identities, expecting };
    let request_id = match batches {
        [only] => only.request_id.as_str(),
        _ => "",
    };
    let outcomes = record_events(ledger, before, posting, &offered, request_id).await?;
    for cursor in batches.iter().filter_map(|batch| batch.cursor.clone()) {
        posting.advance(cursor);
    }
    let mut outcomes = outcomes.into_iter();
    Ok(batches.iter().map(|batch| outcomes.by_ref().take(batch.events.len()).collect()).collect())
}

/// Usage events, who they are, and what is expected of them.
pub(crate) struct Offered<'a> {
    pub(crate) events: &'a [&'a UsageEvent],
    pub(crate) identities: &'a [Identity],
    pub(crate) expecting: Expecting,
}

/// Counts the events that are `offered` in the open transaction and answers one outcome per event.
///
/// # Errors
/// [`StoreError`]; the transaction is then of no use.
pub(crate) async fn record_events(
    ledger: &mut impl Ledger,
    before: &Books,
    posting: &mut Posting,
    offered: &Offered<'_>,
    request_id: &str,
) -> Result<Vec<Outcome>, StoreError> {
    let Offered { events, identities, expecting } = *offered;
    let mut sorting = Sorting::of(events, identities, before, posting.now());
    let (first, keys) = (&sorting.first, &sorting.first_keys);
    let inserted = ledger.insert_events(before.next_position, posting.now(), first, keys, expecting).await?;
    sorting.settle(&inserted);

    let new: Vec<usize> = (0..sorting.first.len()).filter(|at| inserted[*at] == Inserted::New).collect();
    let new_events: Vec<&UsageEvent> = new.iter().map(|at| sorting.first[*at]).collect();
    let new_keys: Vec<Identity> = new.iter().map(|at| sorting.first_keys[*at]).collect();
    let conflicts = sorting.conflicts(events);
    ledger.keep_conflicts(posting.now(), &conflicts).await?;

    if !new_events.is_empty() || !conflicts.is_empty() {
        for missing in posting.missing_for_usage(&new_events) {
            let counter = ledger.counter(&posting.books, &missing, before.next_position).await?;
            posting.supply(missing.key(), counter);
        }
        let counts = BatchCounts {
            // Positions are taken only by a batch that is written.
            attempted: if new_events.is_empty() { 0 } else { sorting.first.len() as i64 },
            duplicates: sorting.outcomes.iter().filter(|outcome| **outcome == Outcome::Duplicate).count() as i64,
            conflicts: conflicts.len() as i64,
        };
        posting.usage(&new_events, &new_keys, counts, request_id);
    }
    Ok(sorting.outcomes)
}
