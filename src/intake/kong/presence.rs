//! Whether we were there to take the gateway's access log.
//!
//! Kong keeps what it could not post for a while (by default a minute) and then drops it. Whoever was away for longer has
//! lost records, and a call without a record is no bypass for that: the tenants are told that time, those that are awake at
//! once, others when they wake. What shows that we were there is a mark in the control database: while that cannot be
//! written, no log can be taken either.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::readings::{Owed, Readings};
use crate::clock::Clock;
use crate::directory::handle::Handle as Directory;
use crate::domain::ids::TenantId;
use crate::domain::reconcile::reading::{Interruption, InterruptionReason, Source};
use crate::domain::stream::Checkpoint;
use crate::domain::time::{MICROS_PER_HOUR, MICROS_PER_SECOND, Timestamp};

/// Name of the mark.
const MARK: &str = "gateway.kong.log";
/// Time between two marks.
const EVERY: Duration = Duration::from_secs(10);
/// Whoever is away for less loses nothing: the gateway brings it again.
const AWAY_MICROS: i64 = 40 * MICROS_PER_SECOND;
/// For so long a tenant that wakes is told of it.
const TOLD_MICROS: i64 = MICROS_PER_HOUR;

/// Marks that we are here, and tells when we were not.
pub struct Presence {
    directory: Directory,
    clock: Clock,
    /// The last mark.
    marked_at: Option<Timestamp>,
    absence: Option<Absence>,
    owed: Owed<Directory>,
}

struct Absence {
    from: Timestamp,
    until: Timestamp,
    told: HashSet<TenantId, ahash::RandomState>,
}

impl Presence {
    #[must_use]
    pub fn new(clock: Clock, directory: Directory) -> Presence {
        let owed = Owed::new(directory.clone());
        Presence { directory, clock, marked_at: None, absence: None, owed }
    }

    /// Works until asked to stop.
    pub async fn run(mut self, stopping: CancellationToken) {
        let mut turns = tokio::time::interval(EVERY);
        turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while stopping.run_until_cancelled(turns.tick()).await.is_some() {
            if stopping.run_until_cancelled(self.look()).await.is_none() {
                return;
            }
        }
    }

    /// Marks the present, and tells who has not heard yet how long we were away.
    pub async fn look(&mut self) {
        let now = self.clock.now();
        if self.marked_at.is_none() {
            // One that cannot be read now is read with the next look.
            let Ok(mark) = self.directory.checkpoint(MARK).await else { return };
            self.marked_at = mark.map(|mark| Timestamp(mark.at_nanos / 1_000));
        }
        let mark = Checkpoint {
            stream: MARK.to_owned(),
            created_nanos: 0,
            sequence: 0,
            at_nanos: now.0.saturating_mul(1_000),
            hash: None,
        };
        if self.directory.keep_checkpoint(mark, Vec::new()).await.is_err() {
            return;
        }
        if let Some(from) = self.marked_at.replace(now).filter(|from| now.0.saturating_sub(from.0) > AWAY_MICROS) {
            tracing::info!(%from, "nobody was there to take kong's log");
            self.absence = Some(Absence { from, until: now, told: HashSet::default() });
        }
        self.absence.take_if(|absence| now.0.saturating_sub(absence.until.0) > TOLD_MICROS);
        if let Some(absence) = &mut self.absence {
            for (tenant, _) in self.owed.readings().awake() {
                if absence.told.insert(tenant) {
                    let (from, until) = (absence.from, absence.until);
                    let (source, reason) = (Source::AccessLog, InterruptionReason::Gap);
                    self.owed.interruption(tenant, Interruption { source, from, until, reason });
                }
            }
        }
        self.owed.settle().await;
    }
}
