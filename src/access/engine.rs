//! A tenant's decisions: Casbin under a fixed matcher, asked once for every question that there turns out to be.
//!
//! A question first becomes the set of rules that apply to it ([`PolicySet::applied`]): whose subject it is, which
//! resource, what conditions make of attributes. What Casbin then says is a function of the object, the action and that
//! set alone, so it is kept with them for as long as the policies stay what they are. A new version is a new engine.
//! Casbin costs about a microsecond for each rule; what it has said once costs a look into a map.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock};

use casbin::{CoreApi, DefaultModel, Enforcer, StringAdapter};
use futures_util::FutureExt;

use super::policy::Unusable;
use crate::domain::policy::question::{Question, Relations};
use crate::domain::policy::set::{Candidates, PolicySet, RuleName};
use crate::domain::policy::statement::Effect;

const MODEL: &str = include_str!("../../config/tenant_policy_model.conf");

/// Pairs of object and action that are remembered. A gateway may ask for any; then all are forgotten.
const PAIRS_MAX: usize = 128;
/// Sets of rules that are remembered for each of them.
const SETS_MAX: usize = 256;

/// Why it was decided so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// By the first of the rules that allow it.
    AllowedBy(RuleName),
    /// By the first of the policies that deny it.
    DeniedBy(RuleName),
    /// No rule allows it.
    NothingApplies,
    /// Casbin could not be asked: never a permission.
    Failed,
}

impl Reason {
    /// The word for it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Reason::AllowedBy(_) => "allowed",
            Reason::DeniedBy(_) => "deniedByPolicy",
            Reason::NothingApplies => "nothingApplies",
            Reason::Failed => "failed",
        }
    }
}

/// A decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    pub allowed: bool,
    pub reason: Reason,
    /// Of the tenant's policies that it was made by.
    pub version: i64,
}

/// Decides by the rules of one tenant at one version.
pub struct Engine {
    set: PolicySet,
    enforcer: Enforcer,
    pairs: RwLock<Pairs>,
}

/// Object → action → what is known of the pair.
type Pairs = HashMap<Box<str>, HashMap<Box<str>, Arc<Pair>>>;

/// What is known of one pair of object and action.
struct Pair {
    candidates: Candidates,
    decided: RwLock<HashMap<Box<[u32]>, bool>>,
}

impl Engine {
    /// # Errors
    /// [`Unusable`], when Casbin does not read the model or the rules.
    pub fn new(set: PolicySet) -> Result<Engine, Unusable> {
        let enforcer = enforcer(&rows(&set))?;
        Ok(Engine { set, enforcer, pairs: RwLock::default() })
    }

    /// The rules it decides by.
    #[must_use]
    pub fn set(&self) -> &PolicySet {
        &self.set
    }

    /// Decides, by what Casbin said of such a question before, if it was asked.
    #[must_use]
    pub fn decide(&self, question: &Question<'_>, relations: &dyn Relations) -> Decided {
        let pair = self.pair(question.object, question.action);
        let applied = self.set.applied(&pair.candidates, question, relations);
        let allowed = pair.decided(&applied, || self.enforce(&applied, question.object, question.action));
        Decided { allowed: allowed == Some(true), reason: self.reason(allowed, &applied), version: self.set.version }
    }

    /// Looks for the rules that would apply, and decides nothing: for who wants to know which relations it takes.
    pub(super) fn look(&self, question: &Question<'_>, relations: &dyn Relations) {
        let pair = self.pair(question.object, question.action);
        drop(self.set.applied(&pair.candidates, question, relations));
    }

    /// Decides without anything that was kept: every rule is looked at, and Casbin matches objects and actions. This is
    /// what [`decide`](Engine::decide) must agree with, and what it is measured against.
    #[must_use]
    pub fn decide_plainly(&self, question: &Question<'_>, relations: &dyn Relations) -> bool {
        let holding = self.set.holding(question, relations);
        self.enforce(&holding, question.object, question.action) == Some(true)
    }

    /// Pairs of object and action that it remembers.
    #[cfg(test)]
    pub(super) fn pairs_kept(&self) -> usize {
        self.pairs.read().unwrap_or_else(PoisonError::into_inner).values().map(HashMap::len).sum()
    }

    fn reason(&self, allowed: Option<bool>, applied: &[u32]) -> Reason {
        let first = |effect: Effect| {
            let rules = applied.iter().filter_map(|number| self.set.rule(*number));
            rules.filter(|rule| rule.effect == effect).map(|rule| rule.name.clone()).next()
        };
        match allowed {
            None => Reason::Failed,
            Some(true) => first(Effect::Allow).map_or(Reason::NothingApplies, Reason::AllowedBy),
            Some(false) => first(Effect::Deny).map_or(Reason::NothingApplies, Reason::DeniedBy),
        }
    }

    fn pair(&self, object: &str, action: &str) -> Arc<Pair> {
        let known = self.pairs.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(pair) = known.get(object).and_then(|actions| actions.get(action)) {
            return pair.clone();
        }
        drop(known);
        let pair = Pair { candidates: self.set.candidates(object, action), decided: RwLock::default() };
        let pair = Arc::new(pair);
        let mut known = self.pairs.write().unwrap_or_else(PoisonError::into_inner);
        if known.values().map(HashMap::len).sum::<usize>() >= PAIRS_MAX {
            known.clear();
        }
        known.entry(object.into()).or_default().insert(action.into(), pair.clone());
        pair
    }

    /// Casbin's verdict on a question that these rules hold for; `None` when it has none. Without a rule there is nothing to
    /// ask: with no policy at all, Casbin evaluates an empty one.
    fn enforce(&self, rules: &[u32], object: &str, action: &str) -> Option<bool> {
        if rules.is_empty() {
            return Some(false);
        }
        metrics::counter!("platform_api_policy_engine_questions_total").increment(1);
        let rules: Vec<String> = rules.iter().map(u32::to_string).collect();
        match catch_unwind(AssertUnwindSafe(|| self.enforcer.enforce((rules, object, action)))) {
            Ok(Ok(allowed)) => Some(allowed),
            Ok(Err(error)) => {
                tracing::error!(%error, "a tenant's access decision failed and is a denial");
                None
            }
            Err(_) => {
                tracing::error!("a tenant's access decision panicked and is a denial");
                None
            }
        }
    }
}

impl Pair {
    /// What was decided for this set of rules, or is decided now. A failure is not kept.
    fn decided(&self, applied: &[u32], decide: impl FnOnce() -> Option<bool>) -> Option<bool> {
        let kept = self.decided.read().unwrap_or_else(PoisonError::into_inner).get(applied).copied();
        if kept.is_some() {
            return kept;
        }
        let decided = decide()?;
        let mut kept = self.decided.write().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= SETS_MAX {
            kept.clear();
        }
        kept.insert(applied.into(), decided);
        Some(decided)
    }
}

/// The rules as Casbin reads them: a number, an object, an action and an effect a line. Patterns have names of letters and
/// digits, so no line holds more than was meant.
fn rows(set: &PolicySet) -> String {
    let mut rows = String::new();
    for (number, rule) in set.rules().iter().enumerate() {
        for pattern in &rule.permissions {
            let (object, action) = (pattern.object().unwrap_or("*"), pattern.action().unwrap_or("*"));
            rows.push_str(&format!("p, {number}, {object}, {action}, {}\n", rule.effect.name()));
        }
    }
    rows
}

/// Casbin's constructors are async for adapters that do IO; from text they are ready at once.
fn enforcer(rows: &str) -> Result<Enforcer, Unusable> {
    let unreadable = |error: casbin::Error| Unusable::Unreadable(error.to_string());
    let waits = || Unusable::Unreadable("reading from text does not wait".into());
    let model = DefaultModel::from_str(MODEL).now_or_never().ok_or_else(waits)?.map_err(unreadable)?;
    Enforcer::new(model, StringAdapter::new(rows)).now_or_never().ok_or_else(waits)?.map_err(unreadable)
}
