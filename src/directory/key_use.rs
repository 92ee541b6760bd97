//! When each API key was last used, by the hour.
//!
//! A request leaves one word in memory the first time that its key is used in an hour; it waits for nothing. What was
//! left is written down every [`WRITE_EVERY`] and at the end, so a key costs at most one write in an hour. Nearly all are
//! due at the beginning of an hour, so they are written in pieces that others come between, and beside the catalogue: no
//! other node's change waits for them. A killed process takes along what it had not written: the key's next use makes up
//! for it.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use super::handle::{Handle, Parts, Refused};
use super::registrar::{Message, State};
use crate::domain::api_key::hour_of;
use crate::domain::time::Timestamp;
use crate::store::{StoreError, api_key};

/// How often uses are written down.
const WRITE_EVERY: Duration = Duration::from_secs(60);
/// Uses that are written in one transaction.
pub(super) const PIECE_USES_MAX: usize = 1_000;

/// The hours in which keys were last used. Only keys that opened something are in here, so keys that are made up take no
/// room.
#[derive(Debug, Default)]
pub(super) struct KeyUses {
    hours: RwLock<HashMap<String, AtomicI64>>,
    /// Keys whose hour is not written down.
    waiting: Mutex<BTreeSet<String>>,
}

impl KeyUses {
    /// What the control database knows, at the start.
    pub(super) fn load(&self, uses: Vec<(String, Timestamp)>) {
        let hours = uses.into_iter().map(|(id, at)| (id, AtomicI64::new(at.0))).collect();
        *self.hours.write().unwrap_or_else(PoisonError::into_inner) = hours;
    }

    fn note(&self, id: &str, now: Timestamp) {
        let hour = hour_of(now).0;
        let hours = self.hours.read().unwrap_or_else(PoisonError::into_inner);
        let earlier = hours.get(id).map(|known| known.fetch_max(hour, Ordering::Relaxed));
        drop(hours);
        match earlier {
            Some(earlier) if earlier >= hour => return,
            Some(_) => {}
            None => {
                let mut hours = self.hours.write().unwrap_or_else(PoisonError::into_inner);
                let known = hours.entry(id.to_owned()).or_default();
                if known.fetch_max(hour, Ordering::Relaxed) >= hour {
                    return;
                }
            }
        }
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
    }

    fn last(&self, id: &str) -> Option<Timestamp> {
        let hours = self.hours.read().unwrap_or_else(PoisonError::into_inner);
        hours.get(id).map(|hour| Timestamp(hour.load(Ordering::Relaxed)))
    }

    fn take(&self) -> Vec<(String, Timestamp)> {
        let ids = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        ids.into_iter().filter_map(|id| self.last(&id).map(|at| (id, at))).collect()
    }

    fn put_back(&self, uses: &[(String, Timestamp)]) {
        let ids = uses.iter().map(|(id, _)| id.clone());
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).extend(ids);
    }
}

/// Writes uses down for as long as there is a directory.
pub(super) fn keep_writing(parts: Weak<Parts>) {
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(WRITE_EVERY).await;
            let Some(parts) = parts.upgrade() else { return };
            Handle::of(parts).write_key_uses().await;
        }
    });
}

impl Handle {
    /// This key has just opened something.
    pub fn note_key_use(&self, id: &str) {
        self.index().uses.note(id, self.parts().clock.now());
    }

    /// The hour in which a key was last used.
    #[must_use]
    pub fn key_last_used(&self, id: &str) -> Option<Timestamp> {
        self.index().uses.last(id)
    }

    /// Writes down the uses so far, a piece at a time. What cannot be written waits for the next time.
    pub(super) async fn write_key_uses(&self) {
        let uses = self.index().uses.take();
        for (number, piece) in uses.chunks(PIECE_USES_MAX).enumerate() {
            let uses_of_piece = piece.to_vec();
            if let Err(error) = self.register(|reply| Message::NoteKeyUses { uses: uses_of_piece, reply }).await {
                let left = &uses[number * PIECE_USES_MAX..];
                tracing::warn!(%error, keys = left.len(), "when API keys were last used could not be written down");
                self.index().uses.put_back(left);
                return;
            }
        }
    }
}

impl State {
    /// Writes a piece of uses down. No record of the chain speaks of it: nothing was changed by anybody. Nor is it a change
    /// of the catalogue, so it needs none of the others to stand still.
    pub(super) async fn note_key_uses(&mut self, uses: &[(String, Timestamp)]) -> Result<(), Refused> {
        let connection = self.connection().await?;
        let noted = async {
            connection.begin().await?;
            api_key::note_uses(connection, uses).await?;
            connection.commit().await
        };
        match noted.await {
            Ok(()) => Ok(()),
            Err(StoreError::Retryable(reason)) => {
                self.give_up().await;
                Err(Refused::Unavailable(reason))
            }
            Err(error) => Err(self.doubt(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::MICROS_PER_HOUR;

    #[test]
    fn a_key_waits_to_be_written_once_in_an_hour() {
        let uses = KeyUses::default();
        let hour = Timestamp(7 * MICROS_PER_HOUR);
        uses.load(vec![("old".into(), hour)]);
        for minute in 0..60 {
            uses.note("new", hour.plus_micros(minute * 60_000_000));
            uses.note("old", hour.plus_micros(minute * 60_000_000));
        }
        assert_eq!(uses.take(), [("new".to_owned(), hour)], "the other one was known");
        assert_eq!(uses.take(), []);
        let next = hour.plus_micros(MICROS_PER_HOUR);
        uses.note("old", next.plus_micros(1));
        uses.note("old", hour);
        let taken = uses.take();
        assert_eq!((taken.as_slice(), uses.last("old")), ([("old".to_owned(), next)].as_slice(), Some(next)));
        uses.note("new", next);
        uses.put_back(&taken);
        let both = ["new", "old"].map(|id| (id.to_owned(), next));
        assert_eq!(uses.take(), both);
        uses.note("old", next.plus_micros(MICROS_PER_HOUR));
        uses.put_back(&both);
        let later = [("new".to_owned(), next), ("old".to_owned(), next.plus_micros(MICROS_PER_HOUR))];
        assert_eq!(uses.take(), later, "each once, however long it could not be written");
        assert_eq!(uses.last("never"), None);
    }
}
