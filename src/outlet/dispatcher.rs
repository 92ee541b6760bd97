//! Finds what is due and hands it to the lanes; records how it ended. One task per node.
//!
//! A tenant is visited when it has committed, when a retry is due, when one of its alerts is to end, in a round over all
//! open tenants every few seconds, and when the directory has opened it and it owes or fires something: after a start the
//! directory opens those that did when the node ended, even if nobody else asks for them. Visits and settlements run
//! beside each other, so one tenant that is slow delays no other.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::agenda::Agenda;
use super::lane::{Lane, Settled, Work};
use super::parcel::Parcel;
use crate::clock::Clock;
use crate::directory::handle::{Absent, Handle as Directory};
use crate::domain::ids::{AlertId, TenantId};
use crate::domain::notice::{Alert, Attempt, AttemptResult, Delivery, Event};
use crate::domain::time::{MICROS_PER_MINUTE, MICROS_PER_SECOND, Timestamp};
use crate::fault;

/// Deliveries asked for in one visit.
const DUE_MAX: usize = 256;
/// Tenants visited at the same time.
const VISITS_MAX: usize = 16;
/// How often the agenda is looked at when nothing else happens.
const TICK: Duration = Duration::from_millis(100);
/// How often every open tenant is visited, in case a hint was lost.
pub(super) const ROUND: Duration = Duration::from_secs(5);
/// Alerts of one repetition message.
const REPEAT_ALERTS_MAX: usize = 200;
/// When a tenant that did not answer is visited again.
const PAUSE_MICROS: i64 = 2 * MICROS_PER_SECOND;
/// When a tenant is visited again that a person has to look at first.
const FROZEN_PAUSE_MICROS: i64 = MICROS_PER_MINUTE;
/// When a message is offered again to a channel that has no room for it.
const BUSY_PAUSE_MICROS: i64 = 2 * MICROS_PER_SECOND;
/// How long to wait before attempts are recorded that could not be.
const RECORD_PAUSE: Duration = Duration::from_millis(500);

/// One alert's messages to one channel, of which at most one is under way. The outbox holds back that an alert is over
/// until it is settled that it fired.
type Thread = (AlertId, String);

/// What a visitor brings back.
struct Visit {
    tenant: TenantId,
    found: Result<Found, Missed>,
}

struct Found {
    firing: Vec<Alert>,
    due: Vec<Delivery>,
}

/// Why a visit found nothing out.
enum Missed {
    Absent(Absent),
    /// The tenant is there, and did not answer.
    Silent(String),
}

/// The courier's desk.
pub(super) struct Dispatcher {
    directory: Directory,
    clock: Clock,
    lanes: HashMap<String, Lane>,
    settled: mpsc::Receiver<Settled>,
    agenda: Agenda,
    visits: JoinSet<Visit>,
    /// Tenants whose outbox was settled while a visitor was reading it: what that visitor brings may be delivered already.
    outdated: HashSet<TenantId>,
    under_way: HashSet<Thread>,
    /// Attempts to record, by tenant; one recording per tenant at a time.
    unrecorded: HashMap<TenantId, Vec<Attempt>>,
    recording: HashSet<TenantId>,
    recordings: JoinSet<Recorded>,
    /// What fires, as of the last visit; a tenant that rests keeps its entry, for its alerts fire on.
    firing: HashMap<TenantId, Vec<Alert>>,
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
            agenda: Agenda::default(),
            visits: JoinSet::new(),
            outdated: HashSet::new(),
            under_way: HashSet::new(),
            unrecorded: HashMap::new(),
            recording: HashSet::new(),
            recordings: JoinSet::new(),
            firing: HashMap::new(),
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
                    Some(tenant) => self.agenda.soon(tenant),
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
        self.agenda.advance(self.clock.now());
        if now >= self.next_round {
            self.next_round = now + ROUND;
            for tenant in self.directory.open_tenants() {
                self.agenda.soon(tenant.tenant());
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
            let Some(tenant) = self.agenda.next() else { return };
            self.visits.spawn(visit(self.directory.clone(), tenant));
        }
    }

    fn welcome(&mut self, visit: Visit) {
        let Visit { tenant, found } = visit;
        let outdated = self.outdated.remove(&tenant);
        let now = self.clock.now();
        match found {
            Ok(found) => {
                self.remember(tenant, found.firing, now);
                // An outdated list would deliver again what was settled meanwhile; the next visit is on the agenda.
                if !outdated {
                    self.hand_out(tenant, found.due, now);
                }
            }
            Err(Missed::Absent(Absent::Unknown)) => drop(self.firing.remove(&tenant)),
            Err(Missed::Absent(Absent::ComeBack { after_ms })) => {
                let after = i64::try_from(after_ms.saturating_mul(1_000)).unwrap_or(PAUSE_MICROS);
                self.agenda.at(tenant, now.plus_micros(after.max(PAUSE_MICROS)));
            }
            Err(Missed::Absent(Absent::Frozen)) => self.agenda.at(tenant, now.plus_micros(FROZEN_PAUSE_MICROS)),
            Err(Missed::Silent(reason)) => {
                tracing::debug!(%tenant, reason, "the outbox could not be read yet");
                self.agenda.at(tenant, now.plus_micros(PAUSE_MICROS));
            }
        }
        self.agenda.finished(tenant);
    }

    /// Keeps what fires, and comes back when the first of it is to end, which wakes a tenant that rests.
    fn remember(&mut self, tenant: TenantId, firing: Vec<Alert>, now: Timestamp) {
        if let Some(end) = firing.iter().filter_map(|alert| alert.period_end).min() {
            self.agenda.at(tenant, end.max(now).plus_micros(MICROS_PER_SECOND));
        }
        if firing.is_empty() {
            self.firing.remove(&tenant);
        } else {
            self.firing.insert(tenant, firing);
        }
    }

    fn hand_out(&mut self, tenant: TenantId, due: Vec<Delivery>, now: Timestamp) {
        let full_page = due.len() >= DUE_MAX;
        for delivery in due {
            let thread = (delivery.alert.id, delivery.channel.clone());
            if self.under_way.contains(&thread) {
                continue;
            }
            if delivery.event == Event::Resolved {
                self.forget_firing(tenant, delivery.alert.id);
            }
            let Some(lane) = self.lanes.get(&delivery.channel) else {
                let parcel = Parcel { tenant, delivery };
                let reason = "no channel of this name is configured".into();
                let result = super::schedule::after_failure(&parcel, now, reason, Duration::MAX);
                self.put_off(tenant, &parcel.delivery, now, result);
                continue;
            };
            match lane.queue.try_send(Work::Deliver(Box::new(Parcel { tenant, delivery }))) {
                Ok(()) => drop(self.under_way.insert(thread)),
                // The next round offers it again, unless messages to a slow channel fill the page and hide the others.
                Err(TrySendError::Full(Work::Deliver(parcel))) if full_page => {
                    let (at, reason) = (now.plus_micros(BUSY_PAUSE_MICROS), "the channel is busy".into());
                    self.put_off(tenant, &parcel.delivery, now, AttemptResult::Retry { at, reason });
                }
                Err(_) => self.agenda.at(tenant, now.plus_micros(BUSY_PAUSE_MICROS)),
            }
        }
    }

    /// Records an attempt that was not made.
    fn put_off(&mut self, tenant: TenantId, delivery: &Delivery, now: Timestamp, result: AttemptResult) {
        let (alert, event, channel) = (delivery.alert.id, delivery.event, delivery.channel.clone());
        self.under_way.insert((alert, channel.clone()));
        self.settle(Settled { tenant, attempt: Attempt { alert, event, channel, at: now, result } });
    }

    // ---- recording how it ended ----

    fn settle(&mut self, settled: Settled) {
        self.unrecorded.entry(settled.tenant).or_default().push(settled.attempt);
        self.record(settled.tenant);
    }

    fn record(&mut self, tenant: TenantId) {
        if self.recording.contains(&tenant) {
            return;
        }
        let Some(attempts) = self.unrecorded.remove(&tenant) else { return };
        self.recording.insert(tenant);
        self.recordings.spawn(record(self.directory.clone(), tenant, attempts));
    }

    fn recorded(&mut self, recorded: Option<Recorded>) {
        // `record` has nothing in it that could panic; without a tenant there is nothing to tidy up.
        let Some(Recorded { tenant, attempts, done }) = recorded else { return };
        self.recording.remove(&tenant);
        if done {
            fault::point("outbox.marked");
            for attempt in attempts {
                self.close(tenant, attempt);
            }
            if self.agenda.is_visiting(tenant) {
                self.outdated.insert(tenant);
            }
            // Something may have waited for these threads.
            self.agenda.soon(tenant);
        } else {
            // Until it is recorded the same message must not be sent again; nothing new is due before that either.
            self.unrecorded.entry(tenant).or_default().splice(..0, attempts);
        }
        self.record(tenant);
    }

    fn close(&mut self, tenant: TenantId, attempt: Attempt) {
        self.under_way.remove(&(attempt.alert, attempt.channel));
        if let AttemptResult::Retry { at, .. } = attempt.result {
            self.agenda.at(tenant, at);
        }
    }

    // ---- repeating what fires ----

    fn repeat(&mut self, name: &str, now: Instant) {
        let Some(lane) = self.lanes.get(name) else { return };
        let Some(every) = lane.repeat else { return };
        self.next_repeat.insert(name.to_owned(), now + every);
        let wall = self.clock.now();
        let mut firing: VecDeque<(TenantId, Alert)> = self
            .firing
            .iter()
            .flat_map(|(tenant, alerts)| alerts.iter().map(|alert| (*tenant, alert.clone())))
            .filter(|(_, alert)| alert.period_end.is_none_or(|end| end > wall))
            .collect();
        while !firing.is_empty() {
            let part = firing.drain(..firing.len().min(REPEAT_ALERTS_MAX)).collect();
            // A lane without room is behind; the next repetition is not far.
            let _ = lane.queue.try_send(Work::Repeat(Arc::new(part)));
        }
    }

    fn forget_firing(&mut self, tenant: TenantId, alert: AlertId) {
        if let Some(firing) = self.firing.get_mut(&tenant) {
            firing.retain(|known| known.id != alert);
        }
    }
}

/// Asks for what fires before what is due: a resolution that comes between the two is seen.
async fn visit(directory: Directory, tenant: TenantId) -> Visit {
    let found = async {
        let handle = directory.find(tenant).await.map_err(Missed::Absent)?;
        let firing = handle.firing().await.map_err(|error| Missed::Silent(error.to_string()))?;
        let due = handle.due(DUE_MAX).await.map_err(|error| Missed::Silent(error.to_string()))?;
        Ok(Found { firing, due: due.map_err(|error| Missed::Silent(error.to_string()))? })
    };
    Visit { tenant, found: found.await }
}

/// How recording a tenant's attempts ended.
struct Recorded {
    tenant: TenantId,
    attempts: Vec<Attempt>,
    /// Recorded, or there is no tenant any more.
    done: bool,
}

async fn record(directory: Directory, tenant: TenantId, attempts: Vec<Attempt>) -> Recorded {
    let done = match directory.find(tenant).await {
        Ok(handle) => handle.settle(attempts.clone()).await.is_ok(),
        Err(Absent::Unknown) => true,
        Err(Absent::ComeBack { .. } | Absent::Frozen) => false,
    };
    if !done {
        tracing::debug!(%tenant, attempts = attempts.len(), "attempts could not be recorded yet");
        tokio::time::sleep(RECORD_PAUSE).await;
    }
    Recorded { tenant, attempts, done }
}
