//! The only reader of time, and the only source of randomness below the doors.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::domain::time::Timestamp;

/// Tells the time. The system's in the daemon; a test may hold it still.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    /// Microseconds of a clock that only its owner moves; `None` for the system's clock.
    held: Option<Arc<AtomicI64>>,
}

impl Clock {
    #[must_use]
    pub fn system() -> Clock {
        Clock::default()
    }

    /// A clock that stands at `now` until [`set`](Clock::set) moves it.
    #[must_use]
    pub fn held_at(now: Timestamp) -> Clock {
        Clock { held: Some(Arc::new(AtomicI64::new(now.0))) }
    }

    /// Moves a held clock; does nothing to the system's.
    pub fn set(&self, now: Timestamp) {
        if let Some(held) = &self.held {
            held.store(now.0, Ordering::SeqCst);
        }
    }

    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the system's clock")]
    pub fn now(&self) -> Timestamp {
        match &self.held {
            Some(held) => Timestamp(held.load(Ordering::SeqCst)),
            None => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
            }
        }
    }
}

/// Nanoseconds on a clock that is never set back, from somewhere in the past: for measuring how long, not when.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one place that reads the system's clock")]
pub fn ticks() -> i64 {
    static BEGAN: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    i64::try_from(BEGAN.elapsed().as_nanos()).unwrap_or(i64::MAX)
}

/// Random bytes from the operating system.
///
/// # Panics
/// When the operating system has no randomness to give, in which case no secret made here would be one.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[allow(clippy::expect_used, reason = "a daemon without randomness must not go on")]
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system provides randomness");
    bytes
}

/// A new time-ordered id (UUIDv7).
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one place that makes ids")]
pub fn new_id() -> Uuid {
    Uuid::now_v7()
}
