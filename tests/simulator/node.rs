//! One daemon: its clock, its tenants' slots, what it has in its hands from the stream and over HTTP, its outlets.
//!
//! The slots, the queues, the writers, the desk, the parsers and the attribution are the real ones. What is written here
//! is only what ties them together and would be tasks, channels and timers elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use platform_api::directory::handle::Absent;
use platform_api::directory::heartbeat::{BEAT_EVERY, BEATS_PER_REVIEW, Detector};
use platform_api::directory::slot::{Backoff, Slot};
use platform_api::domain::books::Books;
use platform_api::domain::ids::{NodeId, TenantId};
use platform_api::domain::notice::Attempt;
use platform_api::domain::time::{MICROS_PER_SECOND, Timestamp};
use platform_api::outlet::desk::{DUE_MAX, Found, Recorded};
use platform_api::store::StoreError;
use platform_api::store::catalogue::Note;
use platform_api::store::node::Held;
use platform_api::tenant::work::Work;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::consignment::Consignment;
use super::courier::{Courier, channels};
use super::ground::{Ground, Shared, lock};
use super::home::{Home, Step};
use super::planted::Planted;
use super::session::Session;
use super::town::Town;

const BACKOFF: Backoff = Backoff { first_ms: 100, most_ms: 60_000 };
const IDLE_MICROS: i64 = 120 * MICROS_PER_SECOND;
const BEAT_EVERY_MICROS: i64 = BEAT_EVERY.as_micros() as i64;

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
    id: NodeId,
    detector: Detector,
    /// When it beats next, by true time: it goes by a clock that nobody sets.
    beats_at: i64,
    review_in: u32,
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
    /// Tenants that rest and are to be come back to, with the heads of their chains.
    resting: BTreeMap<TenantId, i64>,
    /// Tenants that are to be opened because somebody has asked.
    asked: BTreeSet<TenantId>,
    /// Tenants that were another node's, and are to be opened here.
    owing: BTreeSet<TenantId>,
    /// Tenants that were here, and that another node has by now.
    elsewhere: BTreeSet<TenantId>,
    pub consignments: Vec<Consignment>,
    pub courier: Courier,
    recordings: Vec<Recording>,
    ground: Shared<Ground>,
}

impl Node {
    pub fn new(number: usize, clock_ahead: i64, ground: &Shared<Ground>) -> Node {
        let id = lock(ground).new_node();
        let receivers = lock(ground).plan.receivers;
        Node {
            number,
            id,
            detector: Detector::default(),
            beats_at: 0,
            review_in: 0,
            clock_ahead,
            believes: true,
            frozen_until: 0,
            slots: BTreeMap::new(),
            homes: BTreeMap::new(),
            openings: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            resting: BTreeMap::new(),
            asked: BTreeSet::new(),
            owing: BTreeSet::new(),
            elsewhere: BTreeSet::new(),
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
    pub fn find(&mut self, tenant: TenantId, town: &mut Town) -> Result<&mut Home, Absent> {
        self.visit(tenant, true, town)
    }

    /// The same for what is to be done there without being asked, unless another node has it.
    fn return_to(&mut self, tenant: TenantId, town: &mut Town) -> Result<&mut Home, Absent> {
        if self.elsewhere.contains(&tenant) {
            return Err(Absent::Elsewhere { after_ms: 0 });
        }
        self.visit(tenant, false, town)
    }

    fn visit(&mut self, tenant: TenantId, asked: bool, town: &mut Town) -> Result<&mut Home, Absent> {
        let now = self.now();
        if asked && matches!(self.slots.get(&tenant), None | Some(Slot::Starting { .. } | Slot::BackingOff { .. })) {
            self.asked.insert(tenant);
        }
        match self.slots.get(&tenant) {
            Some(Slot::Open { .. }) => {}
            Some(Slot::BackingOff { until, .. }) => {
                return Err(Absent::ComeBack { after_ms: ((until.0 - now.0) / 1_000).max(100) as u64 });
            }
            Some(slot @ Slot::Yielded { failures, .. }) if slot.may_be_taken_back(now, BACKOFF) => {
                self.slots.insert(tenant, Slot::Starting { failures: *failures });
                self.open(tenant, asked, town);
                return Err(Absent::ComeBack { after_ms: 100 });
            }
            Some(Slot::Yielded { until, .. }) => {
                return Err(Absent::Elsewhere { after_ms: ((until.0 - now.0) / 1_000).max(100) as u64 });
            }
            Some(Slot::Frozen { .. }) => return Err(Absent::Frozen),
            Some(Slot::Starting { .. }) => return Err(Absent::ComeBack { after_ms: 100 }),
            None => {
                self.slots.insert(tenant, Slot::Starting { failures: 0 });
                self.open(tenant, asked, town);
                return Err(Absent::ComeBack { after_ms: 100 });
            }
        }
        self.homes.get_mut(&tenant).ok_or(Absent::ComeBack { after_ms: 100 })
    }

    fn open(&mut self, tenant: TenantId, asked: bool, town: &mut Town) {
        self.owing.remove(&tenant);
        let Some(witnessed) = town.hold(tenant, self.id, asked) else {
            lock(&self.ground).coverage.saw("owner: left to the node that holds it");
            self.forget(tenant);
            return self.failed(tenant, &StoreError::Fenced);
        };
        let mut session = Session::connect(&town.vaults[&tenant], &self.ground);
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
                town.remember(tenant, Note { head: books.head, awake: true, opened: true }, self.id);
                self.unsettled.remove(&tenant);
                self.resting.remove(&tenant);
                self.owing.remove(&tenant);
                self.asked.remove(&tenant);
                self.elsewhere.remove(&tenant);
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
        let (next_roll, head) = (home.books.next_roll(), home.books.head);
        self.unsettled.extend(next_roll.map(|at| (tenant, at)));
        let comes_back = home.owed > 0 || next_roll.is_some() || !home.books.firing.is_empty();
        if comes_back {
            self.resting.insert(tenant, head.seq);
        }
        if home.owed > 0 {
            self.owing.insert(tenant);
        }
        town.remember(tenant, Note { head, awake: comes_back, opened: false }, self.id);
    }

    /// It starts: from here on it may hold tenants.
    pub fn start(&mut self, town: &mut Town) {
        town.beat(self.id);
    }

    /// One beat now and then, and a look at the others.
    fn beat(&mut self, town: &mut Town) {
        let now = lock(&self.ground).now;
        if now < self.beats_at {
            return;
        }
        self.beats_at = now + BEAT_EVERY_MICROS;
        for last in self.detector.look(&town.beat(self.id)) {
            town.strike_off(last);
        }
        if !lock(&self.ground).plants(Planted::OrphansForgotten) {
            let taken = town.take_up(self.id);
            if !taken.is_empty() {
                lock(&self.ground).coverage.saw("owner: taken up from a node that is gone");
            }
            self.take_up(&taken);
        }
        if self.review_in == 0 {
            self.take_up(&town.held(self.id));
        }
        self.review_in = self.review_in.checked_sub(1).unwrap_or(BEATS_PER_REVIEW - 1);
    }

    fn take_up(&mut self, held: &[Held]) {
        for Held { tenant, head_seq, is_orphan } in held {
            let home = self.homes.get(tenant).map(|home| home.books.head.seq);
            let known = home.or(self.resting.get(tenant).copied());
            if !is_orphan && known.is_some_and(|known| known >= *head_seq) {
                continue;
            }
            match self.slots.get(tenant) {
                Some(Slot::Starting { .. } | Slot::BackingOff { .. } | Slot::Frozen { .. }) => continue,
                Some(Slot::Open { .. }) => {
                    lock(&self.ground).coverage.saw("owner: taken up, and open here as it was before");
                    self.give_up(*tenant);
                }
                _ => {}
            }
            self.elsewhere.remove(tenant);
            self.resting.insert(*tenant, known.unwrap_or(*head_seq).max(*head_seq));
            self.owing.insert(*tenant);
        }
    }

    /// A look at what other nodes have noted of the tenants that are open here, or rest.
    fn look_at_chains(&mut self, town: &Town) {
        let is_longer = |tenant: &TenantId, seq: i64| town.witnessed(*tenant).seq > seq;
        let open = self.homes.iter().filter(|(tenant, home)| is_longer(tenant, home.books.head.seq));
        let open: Vec<TenantId> = open.map(|(tenant, _)| *tenant).collect();
        let resting = self.resting.iter().filter(|(tenant, seq)| is_longer(tenant, **seq));
        let resting: Vec<TenantId> = resting.map(|(tenant, _)| *tenant).collect();
        for tenant in open {
            lock(&self.ground).coverage.saw("owner: given up without a commit");
            self.give_up(tenant);
        }
        for tenant in resting.into_iter().filter(|tenant| !self.slots.contains_key(tenant)).collect::<Vec<_>>() {
            self.forget(tenant);
        }
    }

    /// It is another node's to come back to.
    fn forget(&mut self, tenant: TenantId) {
        self.resting.remove(&tenant);
        self.owing.remove(&tenant);
        self.unsettled.remove(&tenant);
        self.elsewhere.insert(tenant);
    }

    fn give_up(&mut self, tenant: TenantId) {
        self.homes.remove(&tenant);
        self.failed(tenant, &StoreError::Fenced);
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
                self.asked.remove(&tenant);
                self.elsewhere.insert(tenant);
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
            town.remember(*tenant, Note { head: home.books.head, awake: true, opened: false }, self.id);
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
            let _ = self.visit(tenant, false, town).is_ok();
            lock(&self.ground).coverage.saw("owner: woken by time");
        }
        self.beat(town);
        // Who does not look whose the books are, does not find out this way either.
        if !lock(&self.ground).plants(Planted::MissingEpochCheck) {
            self.look_at_chains(town);
        }
        let may_open =
            |tenant: &&TenantId| self.slots.get(tenant).is_none_or(|slot| slot.may_be_taken_back(now, BACKOFF));
        for tenant in self.owing.iter().filter(may_open).copied().collect::<Vec<_>>() {
            let _ = self.visit(tenant, false, town).is_ok();
        }
        let due: Vec<TenantId> =
            self.slots.iter().filter(|(_, slot)| slot.is_due(now, BACKOFF)).map(|(tenant, _)| *tenant).collect();
        for tenant in due {
            let failures = self.slots[&tenant].failures();
            self.slots.insert(tenant, Slot::Starting { failures });
            self.open(tenant, self.asked.contains(&tenant), town);
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
    pub fn step_courier(&mut self, town: &mut Town) {
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

    fn look(&mut self, tenant: TenantId, town: &mut Town) -> Result<Found, Absent> {
        let now = self.now();
        let home = self.return_to(tenant, town)?;
        let firing = home.books.firing_and_told();
        let due =
            if home.owed > 0 { lock(&town.vaults[&tenant]).database.tables.due(now, DUE_MAX) } else { Vec::new() };
        Ok(Found { firing, due })
    }

    fn record_next(&mut self, tenant: TenantId, town: &mut Town) {
        let Some(attempts) = self.courier.desk.next_recording(tenant) else { return };
        let now = self.now();
        let found = self.return_to(tenant, town);
        let elsewhere = matches!(found, Err(Absent::Elsewhere { .. }));
        let answer = found.ok().map(|home| {
            let (reply, answer) = oneshot::channel();
            home.queue.push(Work::Settle { attempts: attempts.clone(), now, reply: reply.into() });
            answer
        });
        self.recordings.push(Recording { tenant, attempts, answer, elsewhere });
    }

    fn end_recordings(&mut self, town: &mut Town) {
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
            && self.homes.values().all(|home| home.queue.is_idle() && !home.books.needs_roll(now))
    }
}
