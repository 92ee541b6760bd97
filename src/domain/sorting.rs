//! One unit's usage events, sorted: which are refused, which are offered to the ledger, which only repeat another.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::books::Books;
use super::time::Timestamp;
use super::usage::{EventKey, Identity, Outcome, Totals, UsageEvent};

/// What the ledger made of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Inserted {
    New,
    /// Known with the same body.
    Duplicate,
    /// Known with another body.
    Conflict,
}

/// Which events are offered to the ledger, and which repeat another event of the same unit.
pub struct Sorting<'a> {
    /// The first event of each identity.
    pub first: Vec<&'a UsageEvent>,
    pub first_keys: Vec<Identity>,
    /// For each offered event: where it stands in the unit.
    first_at: Vec<usize>,
    /// For each event that repeats an offered one: where it stands, which it repeats, and its key and body.
    repeats: Vec<(usize, usize, Identity)>,
    /// For each event, in order.
    pub outcomes: Vec<Outcome>,
}

impl<'a> Sorting<'a> {
    /// Admits and sorts `events`, whose `identities` are these, given the committed `books`, at `now`.
    #[must_use]
    pub fn of(events: &[&'a UsageEvent], identities: &[Identity], books: &Books, now: Timestamp) -> Sorting<'a> {
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
        for (at, (event, (key, body))) in events.iter().zip(identities).enumerate() {
            match books.admit(event, &pending, now) {
                Ok(with_it) => pending = with_it,
                Err(refusal) => {
                    sorting.outcomes.push(Outcome::Refused(refusal));
                    continue;
                }
            }
            sorting.outcomes.push(Outcome::Accepted);
            match known.entry(*key) {
                Entry::Occupied(first) => sorting.repeats.push((at, *first.get(), (*key, *body))),
                Entry::Vacant(slot) => {
                    slot.insert(sorting.first.len());
                    sorting.first.push(event);
                    sorting.first_keys.push((*key, *body));
                    sorting.first_at.push(at);
                }
            }
        }
        sorting
    }

    /// Gives every event its outcome, now that the ledger has spoken about the first of each identity.
    pub fn settle(&mut self, inserted: &[Inserted]) {
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

    /// Those of `events` that the ledger knows with another body.
    #[must_use]
    pub fn conflicts(&self, events: &[&'a UsageEvent]) -> Vec<(&'a UsageEvent, Identity)> {
        let first = self.first_at.iter().zip(&self.first_keys).map(|(at, keys)| (*at, *keys));
        let repeats = self.repeats.iter().map(|(at, _, keys)| (*at, *keys));
        let conflicting = first.chain(repeats).filter(|(at, _)| self.outcomes[*at] == Outcome::Conflict);
        conflicting.map(|(at, identity)| (events[at], identity)).collect()
    }
}
