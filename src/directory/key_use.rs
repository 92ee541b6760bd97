//! When each API key was last used, by the hour.
//!
//! A request leaves one word in memory the first time that its key is used in an hour; it waits for nothing. What was
//! left is written down every [`WRITE_EVERY`] and at the end, so a key costs at most one write in an hour. A killed process
//! takes along what it had not written: the key's next use makes up for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use super::handle::{Handle, Parts};
use super::task::{Change, Halt, untold};
use crate::domain::api_key::hour_of;
use crate::domain::chain::Entry;
use crate::domain::request::Request;
use crate::domain::time::Timestamp;
use crate::store::api_key;
use crate::store::database::Connection;

/// How often uses are written down.
const WRITE_EVERY: Duration = Duration::from_secs(60);

/// The hours in which keys were last used. Only keys that opened something are in here, so keys that are made up take no
/// room.
#[derive(Debug, Default)]
pub(super) struct KeyUses {
    hours: RwLock<HashMap<String, AtomicI64>>,
    /// Keys whose hour is not written down.
    waiting: Mutex<Vec<String>>,
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
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
    }

    fn last(&self, id: &str) -> Option<Timestamp> {
        let hours = self.hours.read().unwrap_or_else(PoisonError::into_inner);
        hours.get(id).map(|hour| Timestamp(hour.load(Ordering::Relaxed)))
    }

    fn take(&self) -> Vec<(String, Timestamp)> {
        let ids = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        ids.into_iter().filter_map(|id| self.last(&id).map(|at| (id, at))).collect()
    }

    fn put_back(&self, uses: Vec<(String, Timestamp)>) {
        let ids = uses.into_iter().map(|(id, _)| id);
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

    /// Writes down the uses so far. What cannot be written waits for the next time.
    pub(super) async fn write_key_uses(&self) {
        let uses = self.index().uses.take();
        if uses.is_empty() {
            return;
        }
        if let Err(error) = self.change(NoteKeyUses(uses.clone()), Request::system(), untold).await {
            tracing::warn!(%error, keys = uses.len(), "when API keys were last used could not be written down");
            self.index().uses.put_back(uses);
        }
    }
}

/// Uses of keys that are written down. No record of the chain speaks of it: nothing was changed by anybody.
#[derive(Debug)]
struct NoteKeyUses(Vec<(String, Timestamp)>);

impl Change for NoteKeyUses {
    type Done = ();
    type Refused = std::convert::Infallible;

    async fn apply(
        &self,
        connection: &mut Connection,
        _: &mut Vec<Entry>,
        _: &Request,
        _: Timestamp,
    ) -> Result<(), Halt<Self::Refused>> {
        for (id, at) in &self.0 {
            api_key::note_use(connection, id, *at).await?;
        }
        Ok(())
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
        uses.put_back(taken.clone());
        assert_eq!(uses.take(), taken);
        assert_eq!(uses.last("never"), None);
    }
}
