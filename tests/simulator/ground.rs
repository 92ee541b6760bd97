//! What every part of one world stands on: chance, time, the plan, the story, and the first rule that was broken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use platform_api::domain::books::Books;
use platform_api::domain::ids::{AlertId, NodeId, QuotaId, TenantId};
use platform_api::domain::time::Timestamp;
use platform_api::domain::usage::UsageEvent;
use uuid::Uuid;

use super::checks;
use super::coverage::Coverage;
use super::dice::Dice;
use super::plan::{Fault, Plan};
use super::planted::Planted;
use super::sender::{Draft, tenant_id};
use super::trace::Trace;

/// Shared between the world and the database sessions that the code under test holds. One thread; the lock is there
/// because the code under test may move between threads elsewhere.
pub type Shared<T> = Arc<Mutex<T>>;

pub fn share<T>(value: T) -> Shared<T> {
    Arc::new(Mutex::new(value))
}

pub fn lock<T>(shared: &Shared<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct Ground {
    pub dice: Dice,
    pub plan: Plan,
    pub trace: Trace,
    pub coverage: Coverage,
    pub planted: Option<Planted>,
    /// True time, in microseconds. Every node has a clock of its own.
    pub now: i64,
    /// While it is true, faults strike.
    pub storm: bool,
    /// While it is true, no receiver answers.
    pub silence: bool,
    /// The first invariant that did not hold.
    pub broken: Option<String>,
    /// Every event anybody sent.
    pub sent: Vec<Draft>,
    /// Stream sequence → events it has ever carried.
    pub published: BTreeMap<i64, Vec<usize>>,
    /// Every alert that ever fired.
    pub alerts: BTreeMap<TenantId, BTreeSet<(QuotaId, Timestamp, u16)>>,
    /// What receivers have accepted: alert, event, channel.
    pub received: BTreeSet<(AlertId, &'static str, String)>,
    /// Nodes that were ever started.
    pub nodes: u128,
    /// Planted: books that are shown before they are committed.
    pub leaked: BTreeMap<TenantId, Books>,
}

impl Ground {
    pub fn new(seed: u64, planted: Option<Planted>, told: bool) -> Ground {
        let mut dice = Dice::new(seed);
        let plan = Plan::draw(&mut dice);
        // 2026, at any hour: summer time begins and ends in some worlds.
        let now = 1_767_225_600_000_000 + dice.between(60 * 86_400, 350 * 86_400) * 1_000_000;
        Ground {
            dice,
            plan,
            trace: Trace::new(told),
            coverage: Coverage::default(),
            planted,
            now,
            storm: true,
            silence: false,
            broken: None,
            sent: Vec::new(),
            published: BTreeMap::new(),
            alerts: BTreeMap::new(),
            received: BTreeSet::new(),
            nodes: 0,
            leaked: BTreeMap::new(),
        }
    }

    /// The next node that is started.
    pub fn new_node(&mut self) -> NodeId {
        self.nodes += 1;
        NodeId(Uuid::from_u128(self.nodes))
    }

    /// The event somebody sent that this row is.
    pub fn sent_as(&self, tenant: TenantId, event: &UsageEvent) -> Option<Draft> {
        self.sent.iter().find(|draft| tenant_id(draft.tenant) == tenant && checks::is(event, draft)).cloned()
    }

    pub fn tell(&mut self, line: std::fmt::Arguments<'_>) {
        self.trace.tell(self.now, line);
    }

    /// Does the fault strike now?
    pub fn strikes(&mut self, fault: Fault) -> bool {
        let rate = self.plan.rate(fault);
        let struck = self.storm && rate > 0.0 && self.dice.chance(rate);
        if struck {
            self.coverage.saw(fault.name());
            self.tell(format_args!("{}", fault.name()));
        }
        struck
    }

    pub fn plants(&self, planted: Planted) -> bool {
        self.planted == Some(planted)
    }

    /// Notes that an invariant does not hold; the first one counts.
    pub fn violated(&mut self, rule: &str, what: std::fmt::Arguments<'_>) {
        self.tell(format_args!("VIOLATED {rule}: {what}"));
        self.broken.get_or_insert_with(|| format!("{rule}: {what}"));
    }

    pub fn require(&mut self, holds: bool, rule: &str, what: impl FnOnce() -> String) {
        if !holds {
            self.violated(rule, format_args!("{}", what()));
        }
    }
}
