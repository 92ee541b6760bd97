//! What the directory may see of a tenant without asking: published by the keeper, read by the sweep.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;

use crate::domain::books::Books;
use crate::domain::time::{MICROS_PER_MINUTE, Timestamp};
use crate::store::notice::Owed;

/// A clock that differs by more than this has been set back.
pub(crate) const SET_BACK_MICROS: i64 = MICROS_PER_MINUTE;

/// Committed books and signs of life. Written by one tenant's keeper and handle.
#[derive(Debug)]
pub struct Pulse {
    books: ArcSwap<Books>,
    heard_at: AtomicI64,
    waiting_events: AtomicUsize,
    /// When the oldest work that waits arrived; 0 when nothing waits.
    oldest_waiting_at: AtomicI64,
    /// Outbox rows that are not settled.
    owed: AtomicI64,
    /// When the first of them is due, or earlier; 0 when nobody knows.
    due_at: AtomicI64,
    committing: AtomicBool,
}

impl Pulse {
    pub(crate) fn new(books: Arc<Books>, now: Timestamp, owed: Owed) -> Pulse {
        Pulse {
            books: ArcSwap::new(books),
            heard_at: AtomicI64::new(now.0),
            waiting_events: AtomicUsize::new(0),
            oldest_waiting_at: AtomicI64::new(0),
            owed: AtomicI64::new(owed.count),
            due_at: AtomicI64::new(owed.due_at.0),
            committing: AtomicBool::new(false),
        }
    }

    /// The books of the last commit that was adopted.
    #[must_use]
    pub fn books(&self) -> Arc<Books> {
        self.books.load_full()
    }

    /// When somebody last asked or reported something.
    #[must_use]
    pub fn heard_at(&self) -> Timestamp {
        Timestamp(self.heard_at.load(Ordering::Relaxed))
    }

    /// Usage events that wait for a commit.
    #[must_use]
    pub fn waiting_events(&self) -> usize {
        self.waiting_events.load(Ordering::Relaxed)
    }

    /// How long the oldest waiting work has waited at `now`, in microseconds.
    #[must_use]
    pub fn oldest_waiting_micros(&self, now: Timestamp) -> i64 {
        match self.oldest_waiting_at.load(Ordering::Relaxed) {
            0 => 0,
            since => (now.0 - since).max(0),
        }
    }

    /// Messages to channels that have not been delivered.
    #[must_use]
    pub fn owed(&self) -> i64 {
        self.owed.load(Ordering::Relaxed)
    }

    /// When the first of what is owed is due. It may be later than this by now, and never earlier.
    #[must_use]
    pub fn due_at(&self) -> Timestamp {
        Timestamp(self.due_at.load(Ordering::Relaxed))
    }

    #[must_use]
    pub fn committing(&self) -> bool {
        self.committing.load(Ordering::Relaxed)
    }

    /// Has nobody asked or reported anything for this long? What was heard in a future that is not to come was long ago.
    #[must_use]
    pub fn is_quiet(&self, now: Timestamp, idle_micros: i64) -> bool {
        let since = now.0 - self.heard_at().0;
        since >= idle_micros || since < -SET_BACK_MICROS
    }

    pub(crate) fn hear(&self, now: Timestamp) {
        let known = self.heard_at.load(Ordering::Relaxed);
        // Callers overtake each other by little; a clock that was set back is believed.
        if now.0 > known || now.0 < known - SET_BACK_MICROS {
            self.heard_at.store(now.0, Ordering::Relaxed);
        }
    }

    /// What was `committed` may have made something due at once.
    pub(crate) fn adopt(&self, books: Arc<Books>, owed_more: i64, committed: bool) {
        self.books.store(books);
        self.owed.fetch_add(owed_more, Ordering::Relaxed);
        if committed {
            self.due_at.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn waiting(&self, events: usize, oldest: Option<Timestamp>, committing: bool) {
        self.waiting_events.store(events, Ordering::Relaxed);
        self.oldest_waiting_at.store(oldest.map_or(0, |at| at.0), Ordering::Relaxed);
        self.committing.store(committing, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use uuid::Uuid;

    use super::*;
    use crate::domain::ids::TenantId;
    use crate::domain::time::MICROS_PER_HOUR;

    const IDLE: i64 = 2 * MICROS_PER_MINUTE;

    fn heard_at(now: Timestamp) -> Pulse {
        Pulse::new(
            Arc::new(Books::new(TenantId(Uuid::nil()), TimeZone::UTC, MICROS_PER_HOUR)),
            now,
            Owed { count: 0, due_at: Timestamp(0) },
        )
    }

    #[test]
    fn a_tenant_is_quiet_once_nobody_was_heard_for_long_enough() {
        let now = Timestamp(10 * MICROS_PER_HOUR);
        let pulse = heard_at(now);
        assert!(!pulse.is_quiet(now.plus_micros(IDLE - 1), IDLE));
        assert!(pulse.is_quiet(now.plus_micros(IDLE), IDLE));
        pulse.hear(now.plus_micros(IDLE));
        assert!(!pulse.is_quiet(now.plus_micros(IDLE), IDLE));
    }

    /// Otherwise every tenant that is open would keep its place until the old time has come again.
    #[test]
    fn a_clock_that_was_set_back_makes_quiet_who_is_not_heard_and_nobody_else() {
        let now = Timestamp(10 * MICROS_PER_HOUR);
        let back = now.plus_micros(-MICROS_PER_HOUR);
        let (silent, used) = (heard_at(now), heard_at(now));
        used.hear(back);
        assert!(silent.is_quiet(back, IDLE));
        assert!(!used.is_quiet(back, IDLE));
        assert!(used.is_quiet(back.plus_micros(IDLE), IDLE));
    }

    #[test]
    fn who_is_overtaken_by_another_caller_sets_nothing_back() {
        let now = Timestamp(10 * MICROS_PER_HOUR);
        let pulse = heard_at(now);
        pulse.hear(now.plus_micros(-1));
        assert_eq!(pulse.heard_at(), now);
        assert!(!pulse.is_quiet(now.plus_micros(-1), IDLE));
    }
}
