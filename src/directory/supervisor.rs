//! The supervisor: owns the slots; opens, restarts, rests and drains tenants. It never awaits a database itself.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::join_all;
use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, ActorStatus, RpcReplyPort, SupervisionEvent};
use tokio::sync::mpsc;

use super::Settings;
use super::crowd::{Caller, queue_up};
use super::handle::{Absent, Census};
use super::index::Index;
use super::neighbours::hold;
use super::registrar;
use super::slot::{Backoff, Slot};
use crate::clock::{self, Clock};
use crate::domain::chain::Head;
use crate::domain::ids::TenantId;
use crate::domain::notice::RETRY_DELAY_MICROS_MAX;
use crate::domain::reconcile::Proof;
use crate::domain::time::{MICROS_PER_SECOND, Timestamp};
use crate::store::catalogue::Note;
use crate::store::database::Store;
use crate::store::load::{self, Opening};
use crate::store::node::Held;
use crate::store::{StoreError, notice};
use crate::tenant::handle::{Bounds, Handle as Home};
use crate::tenant::keeper::{self, Keeper};
use crate::tenant::message::{Life, Message as TenantMessage, Reconciliation};
use crate::tenant::pulse::{Pulse, SET_BACK_MICROS};

/// How often slots and open tenants are looked over.
const SWEEP_EVERY: Duration = Duration::from_millis(250);
/// Sweeps between two notes of how long each chain is.
const SWEEPS_PER_NOTE: u32 = 120;
/// How long a tenant that owes something and made room stays away, at least; at most the longest delay of a delivery.
const AWAY_MICROS_MIN: i64 = 30 * MICROS_PER_SECOND;
/// How long a tenant may take to commit what is waiting when the daemon ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a tenant is asked to leave whose books another node keeps by now.
pub(super) const TAKEN: &str = "another node has taken it over";

/// Doorbells of the open tenants: written by the supervisor, read by everybody.
#[derive(Debug, Default)]
pub(super) struct Homes {
    open: RwLock<HashMap<TenantId, Home, ahash::RandomState>>,
    /// Tenants that another node has, as far as was noticed here.
    elsewhere: RwLock<HashSet<TenantId, ahash::RandomState>>,
    census: Mutex<Census>,
}

impl Homes {
    pub(super) fn get(&self, tenant: TenantId) -> Option<Home> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&tenant).cloned()
    }

    pub(super) fn all(&self) -> Vec<Home> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) fn census(&self) -> Census {
        *self.census.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has another node a tenant that was ours?
    pub(super) fn is_elsewhere(&self, tenant: TenantId) -> bool {
        self.elsewhere.read().unwrap_or_else(PoisonError::into_inner).contains(&tenant)
    }

    pub(super) fn leave_to_another(&self, tenant: TenantId) {
        self.elsewhere.write().unwrap_or_else(PoisonError::into_inner).insert(tenant);
    }

    pub(super) fn come_home(&self, tenant: TenantId) {
        self.elsewhere.write().unwrap_or_else(PoisonError::into_inner).remove(&tenant);
    }

    fn put(&self, home: Home) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(home.tenant(), home);
    }

    fn remove(&self, tenant: TenantId) -> Option<Home> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&tenant)
    }
}

#[derive(Clone)]
pub(super) struct Birth {
    pub(super) store: Store,
    pub(super) settings: Settings,
    pub(super) clock: Clock,
    pub(super) hints: mpsc::Sender<TenantId>,
    pub(super) homes: Arc<Homes>,
    pub(super) index: Arc<Index>,
    pub(super) registrar: ActorRef<registrar::Message>,
}

#[derive(Debug)]
pub(super) enum Message {
    /// The tenant's doorbell, opened if it rests.
    Find {
        tenant: TenantId,
        caller: Caller,
    },
    /// They may owe something from before our start, or what a node that is gone owed: opened in their turn, behind whoever is
    /// asked for.
    TakeUp {
        held: Vec<Held>,
    },
    /// From the task that opened a tenant.
    Opened {
        tenant: TenantId,
        result: Result<Home, StoreError>,
    },
    /// The answer to a look: other nodes have written to these tenants' chains, up to this record.
    Taken {
        tenants: Vec<(TenantId, i64)>,
    },
    Sweep,
    /// Every tenant commits what is waiting and leaves; answered when all are gone.
    Drain {
        reply: RpcReplyPort<()>,
    },
}

pub(super) struct Supervisor;

pub(super) struct State {
    pub(super) birth: Birth,
    pub(super) slots: HashMap<TenantId, Slot>,
    tenants: HashMap<ActorId, TenantId>,
    pub(super) waiting: HashMap<TenantId, Vec<Caller>>,
    /// Tenants that are to be opened because a guest has come, who need not wait any more.
    asked: HashSet<TenantId>,
    /// Tenants to open, in the order they were asked for.
    pub(super) queue: VecDeque<TenantId>,
    opening: usize,
    drained: Option<RpcReplyPort<()>>,
    pub(super) sweeps: u32,
    swept_at: Timestamp,
    noted: HashMap<TenantId, Head>,
    /// Since when somebody waits for a place and gets none.
    pub(super) crowded_since: Option<Timestamp>,
    /// Who was asked to leave for that, and has not left.
    pub(super) leaving: HashSet<TenantId>,
    /// A look at what other nodes have taken is under way.
    pub(super) looking: bool,
    /// Tenants that rest, and when their books are due: to be compared, or because time alone changes them.
    pub(super) unsettled: HashMap<TenantId, Timestamp>,
    /// Tenants that made room while they owed something, and when they come back for it.
    pub(super) owing: HashMap<TenantId, Timestamp>,
    /// Tenants that rest and that somebody has to come back to, or to tell about; each with the head of its chain.
    pub(super) resting: HashMap<TenantId, i64>,
    /// Nothing is compared before: what came while we were away comes in first, and who was not heard is known.
    compares_from: Timestamp,
}

impl Actor for Supervisor {
    type Msg = Message;
    type State = State;
    type Arguments = Birth;

    async fn pre_start(&self, myself: ActorRef<Message>, birth: Birth) -> Result<State, ActorProcessingErr> {
        myself.send_after(SWEEP_EVERY, || Message::Sweep);
        Ok(State {
            compares_from: birth.clock.now().plus_micros(birth.settings.reconcile.settle_micros),
            birth,
            slots: HashMap::new(),
            tenants: HashMap::new(),
            waiting: HashMap::new(),
            asked: HashSet::new(),
            queue: VecDeque::new(),
            opening: 0,
            drained: None,
            sweeps: 0,
            swept_at: Timestamp(0),
            noted: HashMap::new(),
            crowded_since: None,
            leaving: HashSet::new(),
            looking: false,
            unsettled: HashMap::new(),
            owing: HashMap::new(),
            resting: HashMap::new(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Find { tenant, caller } => state.find(tenant, Some(caller)),
            Message::TakeUp { held } => state.take_up(&held),
            Message::Opened { tenant, result } => state.opened(tenant, result),
            Message::Taken { tenants } => state.taken(&tenants),
            Message::Sweep => {
                state.sweep();
                state.look(&myself);
                myself.send_after(SWEEP_EVERY, || Message::Sweep);
            }
            Message::Drain { reply } => state.drain(reply),
        }
        state.open_next(&myself);
        Ok(())
    }

    /// ractor's default stops the supervisor when a child stops; ours knows what each end means.
    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Message>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(cell, _, reason) => match reason.as_deref() {
                Some(keeper::RESTED | keeper::DRAINED) => state.left(cell.get_id()),
                Some(TAKEN) => state.ended(cell.get_id(), TAKEN, Some(&StoreError::Fenced)),
                _ => state.ended(cell.get_id(), "it was stopped", None),
            },
            SupervisionEvent::ActorFailed(cell, error) => {
                state.ended(cell.get_id(), &error.to_string(), error.downcast_ref::<StoreError>());
            }
            _ => {}
        }
        state.open_next(&myself);
        state.answer_drain();
        Ok(())
    }
}

/// What is answered about a tenant that was yielded to another node.
fn elsewhere(slot: &Slot, now: Timestamp) -> Absent {
    let until = if let Slot::Yielded { until, .. } = slot { *until } else { now };
    Absent::Elsewhere { after_ms: u64::try_from((until.0 - now.0) / 1_000).unwrap_or(0).max(100) }
}

/// Does opening it again promise nothing until a person has looked?
fn is_final(error: &StoreError) -> bool {
    matches!(error, StoreError::Missing(_) | StoreError::Untrusted(_))
}

impl State {
    fn find(&mut self, tenant: TenantId, caller: Option<Caller>) {
        let now = self.birth.clock.now();
        if caller.as_ref().is_some_and(|caller| caller.is_guest) && self.is_to_open(&tenant, now) {
            self.asked.insert(tenant);
        }
        let answer = match self.slots.get(&tenant) {
            _ if self.drained.is_some() => Err(Absent::ComeBack { after_ms: 1_000 }),
            Some(Slot::Open { .. }) => match self.birth.homes.get(tenant) {
                Some(home) => Ok(home),
                None => Err(Absent::ComeBack { after_ms: 100 }),
            },
            Some(Slot::BackingOff { until, .. }) => {
                Err(Absent::ComeBack { after_ms: u64::try_from((until.0 - now.0) / 1_000).unwrap_or(0).max(100) })
            }
            Some(Slot::Frozen { .. }) => Err(Absent::Frozen),
            Some(slot @ Slot::Yielded { failures, .. }) if slot.may_be_taken_back(now, self.backoff()) => {
                let failures = *failures;
                self.start(tenant, failures, caller);
                return;
            }
            Some(slot @ Slot::Yielded { .. }) => Err(elsewhere(slot, now)),
            Some(Slot::Starting { .. }) => {
                queue_up(self.waiting.entry(tenant).or_default(), caller);
                return;
            }
            None => {
                self.start(tenant, 0, caller);
                return;
            }
        };
        if let Some(caller) = caller {
            caller.answer(answer);
        }
    }

    /// Is it on its way here, or will it be if somebody asks?
    fn is_to_open(&self, tenant: &TenantId, now: Timestamp) -> bool {
        match self.slots.get(tenant) {
            None | Some(Slot::Starting { .. } | Slot::BackingOff { .. }) => true,
            Some(Slot::Open { .. } | Slot::Frozen { .. }) => false,
            Some(slot @ Slot::Yielded { .. }) => slot.may_be_taken_back(now, self.backoff()),
        }
    }

    fn start(&mut self, tenant: TenantId, failures: u32, caller: Option<Caller>) {
        self.owing.remove(&tenant);
        self.slots.insert(tenant, Slot::Starting { failures });
        self.queue.push_back(tenant);
        queue_up(self.waiting.entry(tenant).or_default(), caller);
    }

    /// Opens queued tenants while there are places; asks idle tenants to rest when there are none.
    fn open_next(&mut self, myself: &ActorRef<Message>) {
        let settings = &self.birth.settings.tenants;
        while self.opening < settings.opening_max && !self.queue.is_empty() && self.drained.is_none() {
            if self.tenants.len() + self.opening >= settings.open_max {
                self.make_room();
                return;
            }
            // Who is asked for comes before who is only woken.
            let next = self.queue.iter().position(|tenant| self.is_asked_for(tenant)).unwrap_or(0);
            let Some(tenant) = self.queue.remove(next) else { return };
            self.crowded_since = None;
            self.opening += 1;
            let birth = self.birth.clone();
            let supervisor = myself.clone();
            let asked = self.asked.contains(&tenant);
            tokio::spawn(async move {
                let result = Box::pin(open(&birth, tenant, asked, &supervisor)).await;
                let _ = supervisor.cast(Message::Opened { tenant, result });
            });
        }
    }

    fn opened(&mut self, tenant: TenantId, result: Result<Home, StoreError>) {
        self.opening = self.opening.saturating_sub(1);
        let now = self.birth.clock.now();
        match result {
            Ok(home) if home.actor().get_status() != ActorStatus::Stopped => {
                let slot =
                    self.slots.get(&tenant).map_or(Slot::Open { since: now, failures: 0 }, |slot| slot.opened(now));
                self.slots.insert(tenant, slot);
                self.tenants.insert(home.actor().get_id(), tenant);
                self.unsettled.remove(&tenant);
                self.resting.remove(&tenant);
                self.owing.remove(&tenant);
                self.asked.remove(&tenant);
                self.note(&home, true, true);
                self.birth.homes.put(home.clone());
                self.answer(tenant, &Ok(home.clone()));
                if self.drained.is_some() {
                    drain_all(vec![home]);
                }
            }
            Ok(_) => self.failed(tenant, "it ended while it was opened", None),
            // A guest has come meanwhile.
            Err(StoreError::Fenced) if self.asked.contains(&tenant) => self.queue.push_back(tenant),
            Err(StoreError::Fenced) => {
                tracing::info!(%tenant, "another node holds the tenant: left to it");
                self.forget(tenant);
                self.yield_to_another(tenant);
            }
            Err(error) => self.failed(tenant, &error.to_string(), Some(&error)),
        }
        if self.queue.is_empty() {
            self.call_back(now);
        }
        self.answer_drain();
    }

    /// A tenant that has nothing left to do is gone. One that still owes something has made room, and comes back for it.
    fn left(&mut self, actor: ActorId) {
        let Some(tenant) = self.tenants.remove(&actor) else { return };
        self.leaving.remove(&tenant);
        // Somebody asked for it while it was leaving.
        let is_awaited = self.is_asked_for(&tenant);
        if let Some(home) = self.birth.homes.remove(tenant) {
            // The outlets must hear of what it owes and what fires, even after a restart: wake it then.
            let books = home.pulse().books();
            let owes = home.pulse().owed() > 0;
            if owes && !is_awaited {
                self.owing.insert(tenant, back_at(home.pulse().due_at(), self.birth.clock.now()));
            }
            // What time alone changes, such as the end of a burn, is told though nobody uses it.
            let unsettled =
                [books.comparison.next(books.latest_event_at), books.next_roll()].into_iter().flatten().min();
            self.unsettled.extend(unsettled.map(|at| (tenant, at)));
            let comes_back = owes || unsettled.is_some() || !books.firing.is_empty();
            if comes_back {
                self.resting.insert(tenant, books.head.seq);
            }
            self.note(&home, comes_back, false);
        }
        self.slots.remove(&tenant);
        self.noted.remove(&tenant);
        if is_awaited {
            self.slots.insert(tenant, Slot::Starting { failures: 0 });
            self.queue.push_back(tenant);
        }
    }

    fn ended(&mut self, actor: ActorId, reason: &str, error: Option<&StoreError>) {
        let Some(tenant) = self.tenants.remove(&actor) else { return };
        self.leaving.remove(&tenant);
        self.birth.homes.remove(tenant);
        self.failed(tenant, reason, error);
    }

    fn failed(&mut self, tenant: TenantId, reason: &str, error: Option<&StoreError>) {
        let now = self.birth.clock.now();
        metrics::counter!("platform_api_tenant_restarts_total").increment(1);
        if error.is_some_and(is_final) {
            tracing::error!(%tenant, reason, "tenant is frozen: its database needs a person");
            self.asked.remove(&tenant);
            self.slots.insert(tenant, Slot::Frozen { reason: reason.to_owned() });
            self.answer(tenant, &Err(Absent::Frozen));
            return;
        }
        if let Some(StoreError::Fenced) = error {
            tracing::warn!(%tenant, "another node has taken the tenant over");
            return self.yield_to_another(tenant);
        }
        let before = self.slots.get(&tenant).map_or(Slot::Starting { failures: 0 }, Clone::clone);
        let slot = before.failed(now, self.backoff());
        if let Some(StoreError::Wrong(_)) = error {
            let failures = slot.failures();
            tracing::error!(%tenant, reason, failures, "the database refuses the tenant's statements: opened again later");
        } else {
            tracing::warn!(%tenant, reason, failures = slot.failures(), "tenant failed and is opened again later");
        }
        let after_ms = match &slot {
            Slot::BackingOff { until, .. } => u64::try_from((until.0 - now.0) / 1_000).unwrap_or(0),
            _ => 0,
        };
        self.slots.insert(tenant, slot);
        self.answer(tenant, &Err(Absent::ComeBack { after_ms }));
    }

    fn yield_to_another(&mut self, tenant: TenantId) {
        let now = self.birth.clock.now();
        self.asked.remove(&tenant);
        self.birth.homes.leave_to_another(tenant);
        let before = self.slots.get(&tenant).map_or(Slot::Starting { failures: 0 }, Clone::clone);
        let slot = before.yielded(now, self.backoff());
        self.answer(tenant, &Err(elsewhere(&slot, now)));
        self.slots.insert(tenant, slot);
    }

    fn backoff(&self) -> Backoff {
        let settings = &self.birth.settings.tenants;
        Backoff { first_ms: settings.restart_backoff_ms, most_ms: settings.restart_backoff_max_ms }
    }

    fn answer(&mut self, tenant: TenantId, answer: &Result<Home, Absent>) {
        for caller in self.waiting.remove(&tenant).unwrap_or_default() {
            caller.answer(answer.clone());
        }
    }

    /// Remembers in the catalogue how long the tenant's chain is, so that a restored database is noticed.
    fn note(&mut self, home: &Home, awake: bool, opened: bool) {
        let (tenant, head) = (home.tenant(), home.pulse().books().head);
        self.noted.insert(tenant, head);
        let note = Note { head, awake, opened };
        let _ = self.birth.registrar.cast(registrar::Message::Remember { tenant, note });
    }

    fn sweep(&mut self) {
        let now = self.birth.clock.now();
        self.sweeps = self.sweeps.wrapping_add(1);
        let homes = self.birth.homes.all();
        if now.0 < self.swept_at.0 - SET_BACK_MICROS {
            tracing::warn!(before = %self.swept_at, %now, "the clock was set back: tenants read what runs again");
        }
        self.swept_at = now;
        for home in &homes {
            self.look_over(home, now);
        }
        if self.sweeps.is_multiple_of(SWEEPS_PER_NOTE) {
            let grown = homes.iter().filter(|home| self.noted.get(&home.tenant()) != Some(&home.pulse().books().head));
            for home in grown.cloned().collect::<Vec<_>>() {
                self.note(&home, true, false);
            }
        }
        self.call_back(now);
        let backoff = self.backoff();
        let due: Vec<(TenantId, u32)> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.is_due(now, backoff))
            .map(|(tenant, slot)| (*tenant, slot.failures()))
            .collect();
        for (tenant, failures) in due {
            self.slots.insert(tenant, Slot::Starting { failures });
            self.queue.push_back(tenant);
        }
        self.publish(&homes, now);
    }

    /// Opens tenants that owe something or whose books time has changed, the first due first; no more than a few wait for a
    /// place at a time, so that they keep nobody out who is asked for: at a month's end all may be due at once.
    pub(super) fn call_back(&mut self, now: Timestamp) {
        let is_called = |tenant: &&TenantId| !self.is_asked_for(tenant);
        let called = self.queue.iter().filter(is_called).count();
        let room = self.birth.settings.tenants.opening_max.saturating_sub(called);
        if room == 0 || (self.owing.is_empty() && self.unsettled.is_empty()) {
            return;
        }
        let backoff = self.backoff();
        let may_open = |tenant| self.slots.get(tenant).is_none_or(|slot| slot.may_be_taken_back(now, backoff));
        let owing = self.owing.iter().filter(|(tenant, at)| is_back(**at, now) && may_open(tenant));
        let unsettled = self.unsettled.iter().filter(|(_, at)| **at <= now);
        let mut due: Vec<(Timestamp, TenantId)> = owing.chain(unsettled).map(|(tenant, at)| (*at, *tenant)).collect();
        due.sort_unstable();
        for (_, tenant) in due.into_iter().take(room) {
            self.unsettled.remove(&tenant);
            self.find(tenant, None);
        }
    }

    fn look_over(&self, home: &Home, now: Timestamp) {
        let pulse = home.pulse();
        if pulse.books().needs_roll(now) {
            let _ = home.actor().cast(TenantMessage::Life(Life::Roll { now }));
        }
        let books = pulse.books();
        let next = books.comparison.next(books.latest_event_at);
        // Longer to wait than there ever was: the clock was set back.
        let settle_micros = self.birth.settings.reconcile.settle_micros;
        let waits = (1..=settle_micros).contains(&(self.compares_from.0 - now.0));
        if !waits && next.is_some_and(|at| at <= now) {
            let _ = home.actor().cast(TenantMessage::Reconciliation(Reconciliation::Tick { now }));
        }
        let idle_micros = i64::try_from(self.birth.settings.tenants.idle_ms).unwrap_or(i64::MAX / 1_000) * 1_000;
        if pulse.is_quiet(now, idle_micros) && pulse.owed() == 0 && pulse.waiting_events() == 0 {
            let _ = home.actor().cast(TenantMessage::Life(Life::Rest { now, idle_micros }));
        }
    }

    /// How long nothing has been proven, for each proof, in the tenant of the open ones where that is longest.
    fn publish_proofs(homes: &[Home], now: Timestamp) {
        for proof in Proof::ALL {
            let age = |home: &Home| {
                let books = home.pulse().books();
                let (progress, source) = (books.comparison.progress?, proof.source());
                // What was never proven is as old as the source that should have proven it.
                let proven = progress.proven(proof).or(progress.since(source))?;
                if !books.comparison.terms.listens_to(source) {
                    return None;
                }
                // While nothing happens there is nothing to prove.
                let until =
                    if books.comparison.next(books.latest_event_at).is_some() { now } else { progress.settled_until };
                Some((until.0 - proven.0).max(0))
            };
            let oldest = homes.iter().filter_map(age).max().unwrap_or(0);
            metrics::gauge!("platform_api_reconcile_proof_age_seconds", "proof" => proof.name())
                .set(oldest as f64 / 1e6);
        }
    }

    fn publish(&self, homes: &[Home], now: Timestamp) {
        Self::publish_proofs(homes, now);
        let count = |wanted: fn(&Slot) -> bool| self.slots.values().filter(|slot| wanted(slot)).count();
        let census = Census {
            registered: self.birth.index.count(),
            open: homes.len(),
            starting: count(|slot| matches!(slot, Slot::Starting { .. })),
            backing_off: count(|slot| matches!(slot, Slot::BackingOff { .. } | Slot::Yielded { .. })),
            frozen: count(|slot| matches!(slot, Slot::Frozen { .. })),
        };
        *self.birth.homes.census.lock().unwrap_or_else(PoisonError::into_inner) = census;
        let states = [
            ("registered", census.registered),
            ("open", census.open),
            ("starting", census.starting),
            ("backing_off", census.backing_off),
            ("frozen", census.frozen),
        ];
        for (state, count) in states {
            metrics::gauge!("platform_api_tenants", "state" => state).set(count as f64);
        }
        let waiting: usize = homes.iter().map(|home| home.pulse().waiting_events()).sum();
        let oldest = homes.iter().map(|home| home.pulse().oldest_waiting_micros(now)).max().unwrap_or(0);
        let free = homes.iter().map(Home::free_events).min().unwrap_or(self.birth.settings.tenants.permits_events);
        metrics::gauge!("platform_api_waiting_events").set(waiting as f64);
        metrics::gauge!("platform_api_oldest_waiting_seconds").set(oldest as f64 / 1e6);
        metrics::gauge!("platform_api_permits_free_events").set(free as f64);
    }

    fn drain(&mut self, reply: RpcReplyPort<()>) {
        self.drained = Some(reply);
        self.queue.clear();
        for (_, waiting) in self.waiting.drain() {
            for caller in waiting {
                caller.answer(Err(Absent::ComeBack { after_ms: 1_000 }));
            }
        }
        drain_all(self.birth.homes.all());
        self.answer_drain();
    }

    /// Answers the drain once every tenant has left.
    fn answer_drain(&mut self) {
        if self.drained.is_some() && self.tenants.is_empty() && self.opening == 0 {
            // The flag stays: nobody is opened any more. Only the port is used up.
            if let Some(reply) = self.drained.replace(ractor::concurrency::oneshot().0.into()) {
                let _ = reply.send(());
            }
        }
    }
}

/// When a tenant that made room comes back for what it owes: when that is due, but not at once, and not so late that it would
/// matter if somebody had erred about it.
fn back_at(due_at: Timestamp, now: Timestamp) -> Timestamp {
    due_at.clamp(now.plus_micros(AWAY_MICROS_MIN), now.plus_micros(RETRY_DELAY_MICROS_MAX))
}

/// Has the time come? So it has when there is longer to wait than there ever was: the clock was set back.
fn is_back(at: Timestamp, now: Timestamp) -> bool {
    !(1..=RETRY_DELAY_MICROS_MAX).contains(&(at.0 - now.0))
}

/// Asks each to commit and leave; their ends arrive as supervision events.
pub(super) fn drain_all(homes: Vec<Home>) {
    tokio::spawn(async move {
        join_all(homes.iter().map(|home| home.ask(DRAIN_TIMEOUT, |reply| TenantMessage::Life(Life::Drain { reply }))))
            .await;
    });
}

/// Opens a tenant: its database, its books, its pair of actors.
async fn open(
    birth: &Birth,
    tenant: TenantId,
    asked: bool,
    supervisor: &ActorRef<Message>,
) -> Result<Home, StoreError> {
    let settings = &birth.settings;
    let now = birth.clock.now();
    let mut connection = birth.store.open_tenant(tenant).await?;
    let opening = Opening {
        tenant,
        retention_micros: settings.retention_micros,
        routing: settings.routing.clone(),
        reconcile: settings.reconcile,
        now,
        salt_seed: clock::random_bytes(),
        witnessed: hold(birth, tenant, asked).await?,
    };
    let books = Arc::new(load::take_over(&mut connection, opening).await?);
    let owed = notice::owed(&mut connection).await?;
    let pulse = Arc::new(Pulse::new(books.clone(), now, owed));
    let born = keeper::Birth {
        connection,
        books,
        pulse: pulse.clone(),
        store: birth.store.clone(),
        hints: birth.hints.clone(),
        commit_events_max: settings.tenants.commit_events_max,
    };
    let (actor, _) = Actor::spawn_linked(None, Keeper, born, supervisor.get_cell())
        .await
        .map_err(|error| StoreError::Retryable(format!("the keeper did not start: {error}")))?;
    let bounds = Bounds {
        events: settings.tenants.permits_events,
        kibibytes: settings.tenants.permits_bytes / 1024,
        message_events: settings.tenants.commit_events_max,
    };
    // Before anybody is told to visit it.
    birth.homes.come_home(tenant);
    if owed.count > 0 || !pulse.books().firing.is_empty() {
        let _ = birth.hints.try_send(tenant);
    }
    Ok(Home::new(tenant, actor, birth.clock.clone(), bounds, pulse))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::MICROS_PER_MINUTE;

    #[test]
    fn a_tenant_comes_back_when_its_delivery_is_due() {
        let now = Timestamp(1_000 * MICROS_PER_MINUTE);
        let after = |micros: i64| back_at(now.plus_micros(micros), now).0 - now.0;
        assert_eq!(back_at(Timestamp(0), now).0 - now.0, AWAY_MICROS_MIN, "nobody knows");
        assert_eq!([after(1), after(7 * MICROS_PER_MINUTE)], [AWAY_MICROS_MIN, 7 * MICROS_PER_MINUTE]);
        assert_eq!(after(600 * MICROS_PER_MINUTE), RETRY_DELAY_MICROS_MAX);
        let at = back_at(Timestamp(0), now);
        assert!(!is_back(at, now) && is_back(at, at));
        assert!(is_back(at, now.plus_micros(-60 * MICROS_PER_MINUTE)), "the clock was set back");
    }
}
