//! One daemon: its clock, its tenants' slots, what it has in its hands from the stream and over HTTP, its outlets.
//!
//! The slots, the queues, the writers, the desk, the parsers and the attribution are the real ones. What is written here
//! is only what ties them together and would be tasks, channels and timers elsewhere.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use platform_api::directory::handle::Absent;
use platform_api::directory::slot::{Backoff, Slot};
use platform_api::domain::books::Books;
use platform_api::domain::ids::TenantId;
use platform_api::domain::notice::Attempt;
use platform_api::domain::time::{MICROS_PER_SECOND, Timestamp};
use platform_api::outlet::desk::{DUE_MAX, Found, Recorded};
use platform_api::store::StoreError;
use platform_api::tenant::work::Work;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::consignment::Consignment;
use super::courier::{Courier, channels};
use super::ground::{Ground, Shared, lock};
use super::home::{Home, Step};
use super::session::Session;
use super::town::Town;

const BACKOFF: Backoff = Backoff { first_ms: 100, most_ms: 60_000 };
const IDLE_MICROS: i64 = 120 * MICROS_PER_SECOND;

type Opening = Pin<Box<dyn Future<Output = (Session, Result<(Books, i64), StoreError>)>>>;

/// Attempts being recorded in a tenant's outbox.
struct Recording {
    tenant: TenantId,
    attempts: Vec<Attempt>,
    answer: Option<oneshot::Receiver<()>>,
    /// Another node has the tenant, and records what it does itself.
    elsewhere: bool,
}

pub struct Node {
    pub number: usize,
    /// What its clock shows more than the true time.
    pub clock_ahead: i64,
    /// It believes that the tenants are its own.
    pub believes: bool,
    pub frozen_until: i64,
    pub slots: BTreeMap<TenantId, Slot>,
    pub homes: BTreeMap<TenantId, Home>,
    openings: BTreeMap<TenantId, Opening>,
    /// Tenants that rest, and when time alone changes their books.
    unsettled: BTreeMap<TenantId, Timestamp>,
    pub consignments: Vec<Consignment>,
    pub courier: Courier,
    recordings: Vec<Recording>,
    ground: Shared<Ground>,
}

impl Node {
    pub fn new(number: usize, clock_ahead: i64, ground: &Shared<Ground>) -> Node {
        let receivers = lock(ground).plan.receivers;
        Node {
            number,
            clock_ahead,
            believes: true,
            frozen_until: 0,
            slots: BTreeMap::new(),
            homes: BTreeMap::new(),
            openings: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            consignments: Vec::new(),
            courier: Courier::new(receivers),
            recordings: Vec::new(),
            ground: ground.clone(),
        }
    }

    pub fn now(&self) -> Timestamp {
        Timestamp(lock(&self.ground).now + self.clock_ahead)
    }

    // ---- tenants ----

    /// The tenant's home; one that rests is opened, and whoever asked comes back.
    pub fn find(&mut self, tenant: TenantId, town: &Town) -> Result<&mut Home, Absent> {
        let now = self.now();
        match self.slots.get(&tenant) {
            Some(Slot::Open { .. }) => {}
            Some(Slot::BackingOff { until, .. }) => {
                return Err(Absent::ComeBack { after_ms: ((until.0 - now.0) / 1_000).max(100) as u64 });
            }
            Some(slot @ Slot::Yielded { failures, .. }) if slot.may_be_taken_back(now, BACKOFF) => {
                self.slots.insert(tenant, Slot::Starting { failures: *failures });
                self.open(tenant, town);
                return Err(Absent::ComeBack { after_ms: 100 });
            }
            Some(Slot::Yielded { until, .. }) => {
                return Err(Absent::Elsewhere { after_ms: ((until.0 - now.0) / 1_000).max(100) as u64 });
            }
            Some(Slot::Frozen { .. }) => return Err(Absent::Frozen),
            Some(Slot::Starting { .. }) => return Err(Absent::ComeBack { after_ms: 100 }),
            None => {
                self.slots.insert(tenant, Slot::Starting { failures: 0 });
                self.open(tenant, town);
                return Err(Absent::ComeBack { after_ms: 100 });
            }
        }
        self.homes.get_mut(&tenant).ok_or(Absent::ComeBack { after_ms: 100 })
    }

    fn open(&mut self, tenant: TenantId, town: &Town) {
        let mut session = Session::connect(&town.vaults[&tenant], &self.ground);
        let witnessed = town.witnessed(tenant);
        let (now, channels) = (self.now(), channels(lock(&self.ground).plan.receivers));
        let opening = async move {
            let result = session.take_over(channels, now, witnessed).await;
            (session, result)
        };
        self.openings.insert(tenant, Box::pin(opening));
    }

    /// One step of a tenant that is being opened.
    pub fn step_opening(&mut self, tenant: TenantId, town: &mut Town) {
        let Some(opening) = self.openings.get_mut(&tenant) else { return };
        let Poll::Ready((session, result)) = opening.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
            return;
        };
        self.openings.remove(&tenant);
        let now = self.now();
        match result {
            Ok((books, owed)) => {
                town.witness(tenant, books.head);
                town.awake.insert(tenant);
                self.unsettled.remove(&tenant);
                let slot =
                    self.slots.get(&tenant).map_or(Slot::Open { since: now, failures: 0 }, |slot| slot.opened(now));
                self.slots.insert(tenant, slot);
                if owed > 0 || !books.firing.is_empty() {
                    self.courier.desk.visit(tenant);
                }
                let mut ground = lock(&self.ground);
                ground.coverage.saw("owner: taken over");
                ground.tell(format_args!("node {} opened {tenant} with epoch {}", self.number, books.epoch));
                let home = Home::new(session, books, owed, now, &ground);
                self.homes.insert(tenant, home);
            }
            Err(error) => {
                lock(&self.ground).coverage.saw("owner: taking over failed");
                self.failed(tenant, &error);
            }
        }
    }

    /// One step of an open tenant's writer.
    pub fn step_home(&mut self, tenant: TenantId, town: &mut Town) {
        let Some(home) = self.homes.get_mut(&tenant) else { return };
        match home.step(&self.ground) {
            Step::Waits => {}
            Step::Answered { committed } => {
                let mut ground = lock(&self.ground);
                ground.tell(format_args!(
                    "node {} answers for {tenant}, version {}, committed {committed}",
                    self.number, home.books.version
                ));
                if committed {
                    self.courier.desk.visit(tenant);
                }
            }
            Step::Failed(error) => {
                let mut ground = lock(&self.ground);
                if matches!(error, StoreError::Unknown(_)) {
                    ground.coverage.saw("writer: outcome unknown");
                }
                drop(ground);
                self.homes.remove(&tenant);
                self.failed(tenant, &error);
            }
        }
        if self.homes.get(&tenant).is_some_and(|home| home.leaving && home.queue.is_idle()) {
            self.leave(tenant, town);
            lock(&self.ground).coverage.saw("owner: drained");
        }
    }

    /// A tenant that has nothing left to do is gone; it is woken after a start if it owes or fires something.
    fn leave(&mut self, tenant: TenantId, town: &mut Town) {
        let Some(home) = self.homes.remove(&tenant) else { return };
        self.slots.remove(&tenant);
        self.unsettled.extend(home.books.next_roll().map(|at| (tenant, at)));
        town.witness(tenant, home.books.head);
        if home.owed <= 0 && home.books.firing.is_empty() {
            town.awake.remove(&tenant);
        }
    }

    /// Opens the tenants that were awake when the last node ended.
    pub fn wake(&mut self, town: &Town) {
        for tenant in &town.awake {
            let _ = self.find(*tenant, town).is_ok();
        }
    }

    fn failed(&mut self, tenant: TenantId, error: &StoreError) {
        let now = self.now();
        let mut ground = lock(&self.ground);
        ground.tell(format_args!("node {}: {tenant} failed: {error}", self.number));
        let before = self.slots.get(&tenant).cloned().unwrap_or(Slot::Starting { failures: 0 });
        let slot = match error {
            StoreError::Missing(_) | StoreError::Untrusted(_) => {
                ground.coverage.saw("tenant: frozen");
                Slot::Frozen { reason: error.to_string() }
            }
            StoreError::Fenced => {
                ground.coverage.saw("tenant: yielded to another node");
                before.yielded(now, BACKOFF)
            }
            _ => before.failed(now, BACKOFF),
        };
        self.slots.insert(tenant, slot);
    }

    /// What the supervisor does four times a second.
    pub fn sweep(&mut self, town: &mut Town) {
        let now = self.now();
        let mut rested = Vec::new();
        for (tenant, home) in &mut self.homes {
            if home.books.needs_roll(now) {
                home.queue.roll(now);
            }
            let idle = now.0 - home.heard_at.0 >= IDLE_MICROS && home.queue.is_idle();
            if idle && home.owed == 0 && !home.leaving {
                rested.push(*tenant);
                continue;
            }
            town.witness(*tenant, home.books.head);
            // The round over open tenants, in case a hint was lost.
            self.courier.desk.visit(*tenant);
        }
        for tenant in rested {
            self.leave(tenant, town);
            lock(&self.ground).coverage.saw("owner: rested");
        }
        let unsettled: Vec<TenantId> =
            self.unsettled.iter().filter(|(_, at)| **at <= now).map(|(tenant, _)| *tenant).collect();
        for tenant in unsettled {
            self.unsettled.remove(&tenant);
            let _ = self.find(tenant, town).is_ok();
            lock(&self.ground).coverage.saw("owner: woken by time");
        }
        let due: Vec<TenantId> =
            self.slots.iter().filter(|(_, slot)| slot.is_due(now, BACKOFF)).map(|(tenant, _)| *tenant).collect();
        for tenant in due {
            let failures = self.slots[&tenant].failures();
            self.slots.insert(tenant, Slot::Starting { failures });
            self.open(tenant, town);
        }
    }

    /// Every tenant commits what is waiting, and leaves.
    pub fn drain(&mut self, town: &mut Town) {
        for home in self.homes.values_mut() {
            home.queue.leave();
            home.leaving = true;
        }
        let tenants: Vec<TenantId> = self.homes.keys().copied().collect();
        for tenant in tenants {
            self.step_home(tenant, town);
        }
    }

    pub fn opening(&self) -> impl Iterator<Item = TenantId> {
        self.openings.keys().copied()
    }

    // ---- outlets ----

    /// Walks, sends, or records: one thing a courier does.
    pub fn step_courier(&mut self, town: &Town) {
        let now = self.now();
        let choice = lock(&self.ground).dice.below(4);
        match choice {
            0 => {
                self.courier.desk.advance(now);
                if let Some(tenant) = self.courier.desk.next_visit() {
                    let found = self.look(tenant, town);
                    self.courier.visited(tenant, found);
                }
            }
            1 => {
                let tenant = self.courier.welcome(&mut lock(&self.ground), now);
                tenant.into_iter().for_each(|tenant| self.record_next(tenant, town));
            }
            2 => {
                let tenants = self.courier.work(&mut lock(&self.ground), now);
                tenants.into_iter().for_each(|tenant| self.record_next(tenant, town));
            }
            _ => self.end_recordings(town),
        }
    }

    fn look(&mut self, tenant: TenantId, town: &Town) -> Result<Found, Absent> {
        let now = self.now();
        let home = self.find(tenant, town)?;
        let firing = home.books.firing_and_told();
        let due =
            if home.owed > 0 { lock(&town.vaults[&tenant]).database.tables.due(now, DUE_MAX) } else { Vec::new() };
        Ok(Found { firing, due })
    }

    fn record_next(&mut self, tenant: TenantId, town: &Town) {
        let Some(attempts) = self.courier.desk.next_recording(tenant) else { return };
        let now = self.now();
        let found = self.find(tenant, town);
        let elsewhere = matches!(found, Err(Absent::Elsewhere { .. }));
        let answer = found.ok().map(|home| {
            let (reply, answer) = oneshot::channel();
            home.queue.push(Work::Settle { attempts: attempts.clone(), now, reply: reply.into() });
            answer
        });
        self.recordings.push(Recording { tenant, attempts, answer, elsewhere });
    }

    fn end_recordings(&mut self, town: &Town) {
        let mut ended = Vec::new();
        self.recordings.retain_mut(|recording| {
            let done = match recording.answer.as_mut().map(oneshot::Receiver::try_recv) {
                Some(Err(TryRecvError::Empty)) => return true,
                Some(Ok(())) => true,
                Some(Err(TryRecvError::Closed)) => false,
                None => recording.elsewhere,
            };
            let (tenant, attempts) = (recording.tenant, std::mem::take(&mut recording.attempts));
            ended.push(Recorded { tenant, attempts, done });
            false
        });
        for recorded in ended {
            let tenant = recorded.tenant;
            self.courier.desk.recorded(recorded);
            self.record_next(tenant, town);
        }
    }

    pub fn is_frozen(&self, tenant: TenantId) -> bool {
        matches!(self.slots.get(&tenant), Some(Slot::Frozen { .. }))
    }

    pub fn is_idle(&self) -> bool {
        let now = self.now();
        self.consignments.is_empty()
            && self.recordings.iter().all(|recording| self.is_frozen(recording.tenant))
            && self.openings.is_empty()
            && self.courier.is_idle()
            && self.homes.values().all(|home| home.queue.is_idle() && home.books.knows_running(now))
    }
}
