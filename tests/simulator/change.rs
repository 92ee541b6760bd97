//! What administrators ask for, again and again until they are answered: another set of quotas, another calendar, a
//! record in the chain.

use platform_api::domain::chain::{Entry, EntryOutcome};
use platform_api::domain::ids::{QuotaId, TenantId};
use platform_api::domain::period::PeriodKind;
use platform_api::domain::quota::{Enforcement, Metric, Quota, Scope, Standing};
use platform_api::domain::request::{Answer, Idempotency, Request};
use platform_api::tenant::message::{ChangeRefused, QuotaDraft, ReplaceQuotas};
use platform_api::tenant::work::Work;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use uuid::Uuid;

use super::dice::Dice;
use super::ground::Ground;
use super::home::Home;

/// How long an administrator waits for an answer.
const PATIENCE_MICROS: i64 = 25_000_000;
const ZONES: [&str; 6] =
    ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "America/Santiago"];

#[derive(Debug, Clone)]
enum Wish {
    Quotas(Vec<QuotaDraft>),
    Zone(&'static str),
    Record,
}

enum Answered {
    Quotas(oneshot::Receiver<Result<Answer<Vec<Standing>>, ChangeRefused>>),
    Zone(oneshot::Receiver<Result<(), ChangeRefused>>),
    Record(oneshot::Receiver<()>),
}

/// One change somebody wants.
pub struct Change {
    pub tenant: TenantId,
    /// The idempotency key, and the request id in the chain.
    pub key: String,
    wish: Wish,
    waits: Option<(Answered, i64)>,
    pub not_before: i64,
    /// It was made; the chain must say so exactly once.
    pub made: bool,
    pub over: bool,
}

impl Change {
    pub fn draw(dice: &mut Dice, tenant: TenantId, number: usize, known: &[Quota]) -> Change {
        let wish = match dice.below(6) {
            0 => Wish::Zone(dice.pick(&ZONES)),
            1 => Wish::Record,
            _ => Wish::Quotas(quotas(dice, known)),
        };
        let key = format!("change-{number}");
        Change { tenant, key, wish, waits: None, not_before: 0, made: false, over: false }
    }

    /// The first set of quotas of a tenant.
    pub fn first(dice: &mut Dice, tenant: TenantId, number: usize) -> Change {
        let wish = Wish::Quotas(quotas(dice, &[]));
        Change { tenant, key: format!("change-{number}"), wish, waits: None, not_before: 0, made: false, over: false }
    }

    pub fn is_waiting(&self) -> bool {
        self.waits.is_some()
    }

    pub fn action(&self) -> &'static str {
        match self.wish {
            Wish::Quotas(_) => "quotas.replaced",
            Wish::Zone(_) => "timeZone.changed",
            Wish::Record => "access.denied",
        }
    }

    /// Asks the tenant's keeper.
    pub fn ask(&mut self, home: &mut Home, now: platform_api::domain::time::Timestamp, true_now: i64) {
        let until = true_now + PATIENCE_MICROS;
        let entry = Entry {
            actor: "platform".into(),
            action: self.action().into(),
            target: format!("tenant:{}", self.tenant),
            outcome: EntryOutcome::Success,
            request_id: self.key.clone(),
            payload: "{}".into(),
        };
        let (work, answered) = match self.wish.clone() {
            Wish::Quotas(quotas) => {
                let (reply, answer) = oneshot::channel();
                let idempotency = Some(Idempotency { key: self.key.clone(), body_hash: [7; 32] });
                let request = Request { actor: "platform".into(), request_id: self.key.clone(), idempotency };
                let change = ReplaceQuotas { quotas, request, now, render: |_| "{}".into() };
                (Work::Replace { change, reply: reply.into() }, Answered::Quotas(answer))
            }
            Wish::Zone(name) => {
                let (reply, answer) = oneshot::channel();
                let (name, once) = (name.to_owned(), self.key.clone());
                (Work::ChangeTimeZone { name, entry, once, now, reply: reply.into() }, Answered::Zone(answer))
            }
            Wish::Record => {
                let (reply, answer) = oneshot::channel();
                let once = Some(self.key.clone());
                (Work::Append { entry, once, now, reply: reply.into() }, Answered::Record(answer))
            }
        };
        home.queue.push(work);
        self.waits = Some((answered, until));
    }

    /// Looks for an answer; without one in time, the change is asked for again.
    pub fn hear(&mut self, ground: &mut Ground) {
        let Some((answered, until)) = &mut self.waits else { return };
        let answer = match answered {
            Answered::Quotas(answer) => answer.try_recv().map(|answer| match answer {
                Ok(Answer::Fresh(_)) => "change: quotas replaced",
                Ok(Answer::Replayed(_)) => "change: quotas asked for twice under one key",
                Err(ChangeRefused::RolledBack) => "change: rolled back",
                Err(_) => "",
            }),
            Answered::Zone(answer) => answer.try_recv().map(|answer| match answer {
                Ok(()) => "change: time zone",
                Err(ChangeRefused::RolledBack) => "change: rolled back",
                Err(_) => "",
            }),
            Answered::Record(answer) => answer.try_recv().map(|()| "change: record appended"),
        };
        match answer {
            Err(TryRecvError::Empty) if ground.now < *until => return,
            Err(_) => {}
            Ok(how) => {
                if !how.is_empty() {
                    ground.coverage.saw(how);
                }
                ground.tell(format_args!("{} of {}: {how}", self.key, self.tenant));
                self.over = how != "change: rolled back";
                self.made = self.over && !how.is_empty();
            }
        }
        self.waits = None;
        self.not_before = ground.now + 1_000_000;
    }
}

/// A set of quotas that a few events cross.
fn quotas(dice: &mut Dice, known: &[Quota]) -> Vec<QuotaDraft> {
    let mut drafts: Vec<QuotaDraft> = Vec::new();
    for _ in 0..1 + dice.below(4) {
        let scope = match dice.below(5) {
            0 => Scope::User("ada".into()),
            1 => Scope::Group("red".into()),
            2 => Scope::Model("large".into()),
            _ => Scope::Tenant,
        };
        let metric = dice.pick(&Metric::ALL);
        let limit = match metric {
            Metric::Requests => dice.between(1, 30),
            Metric::Cost => dice.between(1, 60_000_000),
            _ => dice.between(1, 8_000),
        };
        let mut thresholds: Vec<u16> = (0..dice.below(4)).map(|_| dice.pick(&[1, 33, 50, 80, 100, 101, 250])).collect();
        thresholds.sort_unstable();
        thresholds.dedup();
        let mut id = QuotaId(Uuid::from_u64_pair(dice.next(), dice.next()));
        // Sometimes a quota goes on under its id with another meaning.
        let named = !known.is_empty() && dice.chance(0.3);
        if named {
            id = known[dice.below(known.len())].id;
        }
        let quota = Quota {
            id,
            scope,
            metric,
            period: dice.pick(&PeriodKind::ALL),
            limit,
            thresholds,
            enforcement: dice.pick(&[Enforcement::Alert, Enforcement::Block]),
        };
        let same = |other: &QuotaDraft| {
            other.quota.id == id
                || (&other.quota.scope, other.quota.metric, other.quota.period)
                    == (&quota.scope, quota.metric, quota.period)
        };
        if !drafts.iter().any(same) {
            drafts.push(QuotaDraft { quota, named });
        }
    }
    // Sometimes the same set with other limits.
    if !known.is_empty() && dice.chance(0.3) {
        let raised =
            |quota: &Quota| QuotaDraft { quota: Quota { limit: quota.limit * 2, ..quota.clone() }, named: true };
        return known.iter().map(raised).collect();
    }
    drafts
}
