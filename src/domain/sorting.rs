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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::domain::properties_tests::{an_event, tenant};
    use crate::domain::time::MICROS_PER_DAY;
    use crate::domain::usage::Refusal;
    use jiff::tz::TimeZone;
    use proptest::prelude::*;

    fn noon() -> Timestamp {
        "2026-11-20T12:00:00Z".parse().unwrap()
    }

    fn books() -> Books {
        Books::new(tenant(), TimeZone::UTC, MICROS_PER_DAY)
    }

    /// A unit in which ids repeat, with the same body and with others, and some events are out of their time.
    fn a_unit() -> impl Strategy<Value = Vec<UsageEvent>> {
        let event = (an_event(noon()), 0_u8..6, 0_i64..2).prop_map(|(event, id, tokens)| {
            let mut event = UsageEvent { event_id: format!("event-{id}"), ..event };
            event.amounts.prompt_tokens = tokens;
            event
        });
        prop::collection::vec(event, 0..20).prop_map(|events| {
            // Events of one id differ in their tokens alone, so that some of them are true repetitions.
            let mut first: BTreeMap<String, UsageEvent> = BTreeMap::new();
            let alike = |event: UsageEvent| {
                let tokens = event.amounts.prompt_tokens;
                let mut event = first.entry(event.event_id.clone()).or_insert(event).clone();
                event.amounts.prompt_tokens = tokens;
                event
            };
            events.into_iter().map(alike).collect()
        })
    }

    fn identities(events: &[&UsageEvent]) -> Vec<Identity> {
        events.iter().map(|event| event.identity()).collect()
    }

    proptest! {
        /// L3: every event has one outcome, and it is the one that a ledger which takes them one by one gives.
        #[test]
        fn a_unit_is_settled_as_if_its_events_came_one_by_one(
            events in a_unit(),
            stored in prop::collection::btree_map((0_u8..6).prop_map(|id| format!("event-{id}")), 0_i64..2, 0..4),
        ) {
            let of_unit: Vec<&UsageEvent> = events.iter().collect();
            let mut sorting = Sorting::of(&of_unit, &identities(&of_unit), &books(), noon());
            let inserted: Vec<Inserted> = sorting
                .first
                .iter()
                .map(|event| match stored.get(&event.event_id) {
                    None => Inserted::New,
                    Some(tokens) if *tokens == event.amounts.prompt_tokens => Inserted::Duplicate,
                    Some(_) => Inserted::Conflict,
                })
                .collect();
            sorting.settle(&inserted);

            let mut ledger: BTreeMap<&str, i64> = stored.iter().map(|(id, tokens)| (id.as_str(), *tokens)).collect();
            let mut unit_began_with_conflict: BTreeMap<&str, bool> = BTreeMap::new();
            let mut expected = Vec::new();
            for event in &events {
                let (id, tokens) = (event.event_id.as_str(), event.amounts.prompt_tokens);
                if let Err(refusal) = books().admit(event, &Totals::default(), noon()) {
                    expected.push(Outcome::Refused(refusal));
                    continue;
                }
                let outcome = match ledger.get(id) {
                    None => Outcome::Accepted,
                    Some(known) if *known == tokens => Outcome::Duplicate,
                    Some(_) => Outcome::Conflict,
                };
                ledger.entry(id).or_insert(tokens);
                // Behind a conflict of its own unit, an event is kept rather than compared with what is stored.
                let behind_a_conflict = *unit_began_with_conflict.entry(id).or_insert(outcome == Outcome::Conflict);
                expected.push(if behind_a_conflict { Outcome::Conflict } else { outcome });
            }
            prop_assert_eq!(&sorting.outcomes, &expected);

            let conflicts: Vec<_> = sorting.conflicts(&of_unit).into_iter().map(|(_, (key, body))| (key, body.0)).collect();
            let with_outcome = of_unit.iter().zip(&expected).filter(|(_, outcome)| **outcome == Outcome::Conflict);
            let mut due: Vec<_> = with_outcome.map(|(event, _)| (event.key(), event.body_hash().0)).collect();
            let mut kept = conflicts;
            due.sort();
            kept.sort();
            prop_assert_eq!(kept, due);
        }

        /// Each identity is offered once, as its first event, with its own key and body.
        #[test]
        fn an_identity_is_offered_once(events in a_unit()) {
            let of_unit: Vec<&UsageEvent> = events.iter().collect();
            let sorting = Sorting::of(&of_unit, &identities(&of_unit), &books(), noon());
            let admitted = |event: &&UsageEvent| books().admit(event, &Totals::default(), noon()).is_ok();
            let mut seen = std::collections::BTreeSet::new();
            let first: Vec<&UsageEvent> =
                events.iter().filter(admitted).filter(|event| seen.insert(event.event_id.clone())).collect();
            prop_assert_eq!(&sorting.first, &first);
            let keys: Vec<_> = first.iter().map(|event| (event.key(), event.body_hash())).collect();
            prop_assert_eq!(&sorting.first_keys, &keys);
        }
    }

    /// What is pending in the unit counts against the lifetime sum, so that a unit cannot overflow it as a whole.
    #[test]
    fn a_unit_that_would_overflow_is_refused_from_there_on() {
        let mut books = books();
        books.lifetime.amounts.prompt_tokens = i64::MAX - 5;
        let event = |id: &str| {
            let mut event = UsageEvent {
                source: "test".into(),
                event_id: id.into(),
                occurred_at: noon(),
                kind: crate::domain::usage::Kind::Delta,
                status: crate::domain::usage::Status::Success,
                subject: Default::default(),
                call_type: String::new(),
                amounts: Default::default(),
                flags: Default::default(),
                details: String::new(),
            };
            event.amounts.prompt_tokens = 3;
            event
        };
        let (one, two) = (event("one"), event("two"));
        let sorting = Sorting::of(&[&one, &two], &identities(&[&one, &two]), &books, noon());
        assert_eq!(sorting.outcomes, [Outcome::Accepted, Outcome::Refused(Refusal::AmountOverflow)]);
    }
}
