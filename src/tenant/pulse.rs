//! What the directory may see of a tenant without asking: published by the keeper, read by the sweep.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;

use crate::domain::books::Books;
use crate::domain::time::Timestamp;
use crate::store::notice::Owed;

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

    pub(crate) fn hear(&self, now: Timestamp) {
        self.heard_at.fetch_max(now.0, Ordering::Relaxed);
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
