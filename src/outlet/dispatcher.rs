//! Finds what is due and hands it to the lanes; records how it ended. One task per node.
//!
//! A tenant is visited when it has committed, when a retry is due, when one of its alerts is to end, in a round over all
//! open tenants every few seconds, and when the directory has opened it and it owes or fires something: the directory
//! opens those that did when a node ended, even if nobody asks for them. Visits and settlements run
//! beside each other, so one tenant that is slow delays no other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::desk::{DUE_MAX, Desk, Found, Missed, Offered, Recorded, Visit};
use super::lane::{Lane, Settled, Work};
use crate::clock::Clock;
use crate::directory::handle::{Absent, Handle as Directory};
use crate::domain::ids::TenantId;
use crate::domain::notice::Attempt;
use crate::fault;

/// Tenants visited at the same time.
const VISITS_MAX: usize = 16;
/// How often the agenda is looked at when nothing else happens.
const TICK: Duration = Duration::from_millis(100);
/// How often every open tenant is visited, in case a hint was lost.
pub(super) const ROUND: Duration = Duration::from_secs(5);
/// Alerts of one repetition message.
const REPEAT_ALERTS_MAX: usize = 200;
/// How long to wait before attempts are recorded that could not be.
const RECORD_PAUSE: Duration = Duration::from_millis(500);

/// The courier.
pub(super) struct Dispatcher {
    directory: Directory,
    clock: Clock,
    lanes: HashMap<String, Lane>,
    settled: mpsc::Receiver<Settled>,
    desk: Desk,
    visits: JoinSet<Visit>,
    recordings: JoinSet<Recorded>,
    next_repeat: HashMap<String, Instant>,
    next_round: Instant,
}

impl Dispatcher {
    pub(super) fn new(
        directory: Directory,
        clock: Clock,
        lanes: Vec<Lane>,
        settled: mpsc::Receiver<Settled>,
    ) -> Dispatcher {
        let now = Instant::now();
        let next_repeat = lanes.iter().filter_map(|lane| Some((lane.name.clone(), now + lane.repeat?))).collect();
        Dispatcher {
            directory,
            clock,
            lanes: lanes.into_iter().map(|lane| (lane.name.clone(), lane)).collect(),
            settled,
            desk: Desk::default(),
            visits: JoinSet::new(),
            recordings: JoinSet::new(),
            next_repeat,
            next_round: now,
        }
    }

    /// Works until asked to stop, then records how the sends under way ended.
    pub(super) async fn run(mut self, mut hints: mpsc::Receiver<TenantId>, stopping: CancellationToken) {
        if self.lanes.is_empty() {
            return;
        }
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut hinting = true;
        loop {
            self.send_visitors();
            tokio::select! {
                () = stopping.cancelled() => break,
                hint = hints.recv(), if hinting => match hint {
                    Some(tenant) => self.desk.visit(tenant),
                    None => hinting = false,
                },
                Some(settled) = self.settled.recv() => self.settle(settled),
                Some(visit) = self.visits.join_next() => match visit {
                    Ok(visit) => self.welcome(visit),
                    Err(error) => tracing::error!(%error, "a visit ended unexpectedly"),
                },
                Some(recorded) = self.recordings.join_next() => self.recorded(recorded.ok()),
                _ = tick.tick() => self.look_around(),
            }
        }
        self.visits.abort_all();
        self.finish().await;
    }

    /// The lanes end by themselves when they have finished what was under way.
    async fn finish(mut self) {
        loop {
            tokio::select! {
                settled = self.settled.recv() => match settled {
                    Some(settled) => self.settle(settled),
                    None => break,
                },
                Some(recorded) = self.recordings.join_next() => self.recorded(recorded.ok()),
            }
        }
        while let Some(recorded) = self.recordings.join_next().await {
            self.recorded(recorded.ok());
        }
    }

    // ---- finding what is due ----

    fn look_around(&mut self) {
        let now = Instant::now();
        self.desk.advance(self.clock.now());
        if now >= self.next_round {
            self.next_round = now + ROUND;
            for tenant in self.directory.open_tenants() {
                self.desk.visit(tenant.tenant());
            }
        }
        let due: Vec<String> =
            self.next_repeat.iter().filter(|(_, at)| now >= **at).map(|(name, _)| name.clone()).collect();
        for name in due {
            self.repeat(&name, now);
        }
    }

    fn send_visitors(&mut self) {
        while self.visits.len() < VISITS_MAX {
            let Some(tenant) = self.desk.next_visit() else { return };
            self.visits.spawn(visit(self.directory.clone(), tenant));
        }
    }

    fn welcome(&mut self, visit: Visit) {
        let lanes = &self.lanes;
        let tenant = visit.tenant;
        self.desk.welcome(visit, self.clock.now(), |parcel| {
            let Some(lane) = lanes.get(&parcel.delivery.channel) else { return Offered::NoLane };
            match lane.queue.try_send(Work::Deliver(Box::new(parcel))) {
                Ok(()) => Offered::Taken,
                Err(_) => Offered::NoRoom,
            }
        });
        self.record(tenant);
    }

    // ---- recording how it ended ----

    fn settle(&mut self, settled: Settled) {
        let tenant = settled.tenant;
        self.desk.settle(tenant, settled.attempt);
        self.record(tenant);
    }

    fn record(&mut self, tenant: TenantId) {
        if let Some(attempts) = self.desk.next_recording(tenant) {
            self.recordings.spawn(record(self.directory.clone(), tenant, attempts));
        }
    }

    fn recorded(&mut self, recorded: Option<Recorded>) {
        // `record` has nothing in it that could panic; without a tenant there is nothing to tidy up.
        let Some(recorded) = recorded else { return };
        let tenant = recorded.tenant;
        if recorded.done {
            fault::point("outbox.marked");
        }
        self.desk.recorded(recorded);
        self.record(tenant);
    }

    // ---- repeating what fires ----

    fn repeat(&mut self, name: &str, now: Instant) {
        let Some(lane) = self.lanes.get(name) else { return };
        let Some(every) = lane.repeat else { return };
        self.next_repeat.insert(name.to_owned(), now + every);
        let wall = self.clock.now();
        self.desk.leave(|tenant| self.directory.is_elsewhere(tenant));
        let mut firing = self.desk.firing(name, wall);
        while !firing.is_empty() {
            let part = firing.drain(..firing.len().min(REPEAT_ALERTS_MAX)).collect();
            // A lane without room is behind; the next repetition is not far.
            let _ = lane.queue.try_send(Work::Repeat(Arc::new(part)));
        }
    }
}

/// Asks for what fires before what is due: a resolution that comes between the two is seen.
async fn visit(directory: Directory, tenant: TenantId) -> Visit {
    let found = async {
        let handle = directory.return_to(tenant).await.map_err(Missed::Absent)?;
        let firing = handle.firing().await.map_err(|error| Missed::Silent(error.to_string()))?;
        let due = handle.due(DUE_MAX).await.map_err(|error| Missed::Silent(error.to_string()))?;
        Ok(Found { firing, due: due.map_err(|error| Missed::Silent(error.to_string()))? })
    };
    Visit { tenant, found: found.await }
}

async fn record(directory: Directory, tenant: TenantId, attempts: Vec<Attempt>) -> Recorded {
    let done = match directory.return_to(tenant).await {
        Ok(handle) => handle.settle(attempts.clone()).await.is_ok(),
        // The new owner finds the delivery owed, and makes it again under the same id.
        Err(Absent::Unknown | Absent::Elsewhere { .. }) => true,
        Err(Absent::ComeBack { .. } | Absent::Frozen) => false,
    };
    if !done {
        tracing::debug!(%tenant, attempts = attempts.len(), "attempts could not be recorded yet");
        tokio::time::sleep(RECORD_PAUSE).await;
    }
    Recorded { tenant, attempts, done }
}
