//! The usage part of a unit of work: admit, insert, learn what is new, count it.

use std::collections::HashMap;

use super::message::Batch;
use crate::domain::books::{BatchCounts, Books, Posting};
use crate::domain::usage::{BodyHash, EventKey, Outcome, Totals, UsageEvent};
use crate::store::database::Connection;
use crate::store::posting::{self, Inserted};
use crate::store::{StoreError, quota};

/// Counts the events of `batches` in the open transaction and answers one outcome per event, batch by batch.
///
/// # Errors
/// [`StoreError`]; the transaction is then of no use.
pub(crate) async fn record(
    connection: &mut Connection,
    before: &Books,
    posting: &mut Posting,
    batches: &[&Batch],
) -> Result<Vec<Vec<Outcome>>, StoreError> {
    let events: Vec<&UsageEvent> = batches.iter().flat_map(|batch| &batch.events).collect();
    let request_id = match batches {
        [only] => only.request_id.as_str(),
        _ => "",
    };
    let outcomes = record_events(connection, before, posting, &events, request_id).await?;
    for cursor in batches.iter().filter_map(|batch| batch.cursor.clone()) {
        posting.advance(cursor);
    }
    let mut outcomes = outcomes.into_iter();
    Ok(batches.iter().map(|batch| outcomes.by_ref().take(batch.events.len()).collect()).collect())
}

/// Counts `events` in the open transaction and answers one outcome per event.
///
/// # Errors
/// [`StoreError`]; the transaction is then of no use.
pub(crate) async fn record_events(
    connection: &mut Connection,
    before: &Books,
    posting: &mut Posting,
    events: &[&UsageEvent],
    request_id: &str,
) -> Result<Vec<Outcome>, StoreError> {
    let mut sorting = Sorting::of(events, before, posting);
    let inserted =
        posting::insert_events(connection, before.next_position, posting.now(), &sorting.first, &sorting.first_keys)
            .await?;
    sorting.settle(&inserted);

    let new: Vec<usize> = (0..sorting.first.len()).filter(|at| inserted[*at] == Inserted::New).collect();
    let new_events: Vec<&UsageEvent> = new.iter().map(|at| sorting.first[*at]).collect();
    let new_keys: Vec<(EventKey, BodyHash)> = new.iter().map(|at| sorting.first_keys[*at]).collect();
    let conflicts = sorting.conflicts(events);
    posting::keep_conflicts(connection, posting.now(), &conflicts).await?;

    if !new_events.is_empty() || !conflicts.is_empty() {
        for missing in posting.missing_for_usage(&new_events) {
            let counter = quota::counter(connection, &posting.books, &missing, before.next_position).await?;
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

/// Which events are offered to the ledger, and which repeat another event of the same unit.
struct Sorting<'a> {
    /// The first event of each identity.
    first: Vec<&'a UsageEvent>,
    first_keys: Vec<(EventKey, BodyHash)>,
    /// For each offered event: where it stands in the unit.
    first_at: Vec<usize>,
    /// For each event that repeats an offered one: where it stands, which it repeats, and its key and body.
    repeats: Vec<(usize, usize, (EventKey, BodyHash))>,
    outcomes: Vec<Outcome>,
}

impl<'a> Sorting<'a> {
    fn of(events: &[&'a UsageEvent], books: &Books, posting: &Posting) -> Sorting<'a> {
        let mut sorting = Sorting {
            first: Vec::with_capacity(events.len()),
            first_keys: Vec::with_capacity(events.len()),
            first_at: Vec::with_capacity(events.len()),
            repeats: Vec::new(),
            outcomes: Vec::with_capacity(events.len()),
        };
        let mut known: HashMap<EventKey, usize, ahash::RandomState> =
            HashMap::with_capacity_and_hasher(events.len(), ahash::RandomState::new());
        let mut pending = Totals::default();
        for (at, event) in events.iter().enumerate() {
            match books.admit(event, &pending, posting.now()) {
                Ok(with_it) => pending = with_it,
                Err(refusal) => {
                    sorting.outcomes.push(Outcome::Refused(refusal));
                    continue;
                }
            }
            sorting.outcomes.push(Outcome::Accepted);
            let key = event.key();
            let body = event.body_hash();
            match known.get(&key) {
                Some(first) => sorting.repeats.push((at, *first, (key, body))),
                None => {
                    known.insert(key, sorting.first.len());
                    sorting.first.push(event);
                    sorting.first_keys.push((key, body));
                    sorting.first_at.push(at);
                }
            }
        }
        sorting
    }

    /// Gives every event its outcome, now that the ledger has spoken about the first of each identity.
    fn settle(&mut self, inserted: &[Inserted]) {
        for (at, found) in self.first_at.iter().zip(inserted) {
            self.outcomes[*at] = match found {
                Inserted::New => Outcome::Accepted,
                Inserted::Duplicate => Outcome::Duplicate,
                Inserted::Conflict => Outcome::Conflict,
            };
        }
        for (at, first, (_, body)) in &self.repeats {
            let same = *body == self.first_keys[*first].1;
            // The ledger's body is the first one's, unless that one was a conflict itself; then a repeat that differs
            // from it is kept as a conflict too, which loses nothing and counts nothing.
            self.outcomes[*at] = match (inserted[*first], same) {
                (Inserted::New | Inserted::Duplicate, true) => Outcome::Duplicate,
                _ => Outcome::Conflict,
            };
        }
    }

    fn conflicts(&self, events: &[&'a UsageEvent]) -> Vec<(&'a UsageEvent, EventKey, BodyHash)> {
        let first = self.first_at.iter().zip(&self.first_keys).map(|(at, keys)| (*at, *keys));
        let repeats = self.repeats.iter().map(|(at, _, keys)| (*at, *keys));
        let conflicting = first.chain(repeats).filter(|(at, _)| self.outcomes[*at] == Outcome::Conflict);
        conflicting.map(|(at, (key, body))| (events[at], key, body)).collect()
    }
}
