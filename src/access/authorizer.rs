//! Decisions by what a tenant has laid down: one engine for each version of its policies, made when it is first needed.
//!
//! The same function decides for our own door, for gateways that ask over AuthZEN, and for whoever wants to know why. It
//! looks at the books that were last published, so a change holds from the next question on.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use futures_util::future::join_all;

use super::engine::{Decided, Engine, Reason};
use super::openfga::OpenFga;
use super::policy::{self, Unusable};
use crate::clock::Clock;
use crate::directory;
use crate::directory::handle::Absent;
use crate::domain::api_key::ApiKey;
use crate::domain::ids::TenantId;
use crate::domain::organization::Organization;
use crate::domain::organization::role::Holder;
use crate::domain::policy::books::PolicyBooks;
use crate::domain::policy::ceiling::BuiltIn;
use crate::domain::policy::question::{Question, Relations, Said, Subject, Surroundings, Texts, Tuple};
use crate::domain::policy::set::{Outcome, PolicySet, RuleName};
use crate::domain::policy::statement::Effect;
use crate::domain::tenant::Role;

/// Tenants whose engines are kept at once, besides those that are open.
const ENGINES_MAX: usize = 1_024;
/// Relations that one question may ask for; with more, none of them is known.
const RELATIONS_MAX: usize = 20;

/// Decides for every tenant.
pub struct Authorizer {
    built_in: Arc<BuiltIn>,
    directory: directory::handle::Handle,
    /// For tenants that have nothing of their own.
    plain: Arc<Engine>,
    engines: RwLock<HashMap<TenantId, Made>>,
    openfga: Option<OpenFga>,
    clock: Clock,
}

/// An engine, with the books that it is made of: by whoever comes first, and the others wait for it.
type Made = (Arc<PolicyBooks>, Arc<OnceLock<Result<Arc<Engine>, Unusable>>>);

/// What a tenant's decisions are made by, of one commit.
#[derive(Clone)]
pub struct Authority {
    pub tenant: TenantId,
    pub people: Arc<Organization>,
    pub policies: Arc<PolicyBooks>,
    engine: Arc<Engine>,
}

impl Authority {
    /// The rules that decide.
    #[must_use]
    pub fn set(&self) -> &PolicySet {
        self.engine.set()
    }
}

/// A question as a gateway asks it.
#[derive(Debug, Clone, PartialEq)]
pub struct Inquiry {
    pub subject_type: String,
    pub subject_id: String,
    pub action: String,
    pub resource_type: String,
    /// Absent for a list, or something new.
    pub resource_id: Option<String>,
    pub said: Said,
}

/// Why a decision is what it is.
#[derive(Debug, Clone)]
pub struct Explained {
    pub decided: Decided,
    /// The tenant's books know the subject, and it is active; or it is of a kind they do not keep.
    pub is_known: bool,
    pub roles: Vec<String>,
    pub groups: Vec<String>,
    /// Of each rule that is about the subject and speaks of the action.
    pub rules: Vec<(RuleName, String, Effect, Outcome)>,
}

impl Authorizer {
    /// # Errors
    /// [`Unusable`].
    pub fn new(
        policy: &policy::Policy,
        openfga: Option<OpenFga>,
        directory: directory::handle::Handle,
        clock: Clock,
    ) -> Result<Authorizer, Unusable> {
        let built_in = Arc::new(policy.built_in_rights());
        let plain = Arc::new(Engine::new(PolicySet::new(&PolicyBooks::default(), built_in.clone()))?);
        Ok(Authorizer { built_in, directory, plain, engines: RwLock::default(), openfga, clock })
    }

    /// What the built-in roles may do.
    #[must_use]
    pub fn built_in(&self) -> &Arc<BuiltIn> {
        &self.built_in
    }

    /// What this tenant's decisions are made by now. Waits only for a tenant that is not open.
    ///
    /// # Errors
    /// [`Absent`]: not knowing is never a pass.
    pub async fn of(&self, tenant: TenantId) -> Result<Authority, Absent> {
        let handle = self.directory.find(tenant).await?;
        let (people, policies) = handle.policies().map_err(|_| Absent::ComeBack { after_ms: 1_000 })?;
        let engine = if policies.is_empty() { Ok(self.plain.clone()) } else { self.engine(tenant, &policies) };
        let engine = engine.map_err(|error| {
            tracing::error!(%tenant, %error, "a tenant's policies cannot be used");
            Absent::ComeBack { after_ms: 1_000 }
        })?;
        Ok(Authority { tenant, people, policies, engine })
    }

    /// The same tenant with other policies, which decide for nobody.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn proposed(&self, authority: &Authority, policies: PolicyBooks) -> Result<Authority, Unusable> {
        let engine = Arc::new(Engine::new(PolicySet::new(&policies, self.built_in.clone()))?);
        Ok(Authority { policies: Arc::new(policies), engine, ..authority.clone() })
    }

    pub(super) fn engine(&self, tenant: TenantId, policies: &Arc<PolicyBooks>) -> Result<Arc<Engine>, Unusable> {
        let place = self.place(tenant, policies);
        let made = || Engine::new(PolicySet::new(policies, self.built_in.clone())).map(Arc::new);
        place.get_or_init(made).clone()
    }

    /// Where the engine of these books is, or will be.
    fn place(&self, tenant: TenantId, policies: &Arc<PolicyBooks>) -> Arc<OnceLock<Result<Arc<Engine>, Unusable>>> {
        let of_these = |engines: &HashMap<TenantId, Made>| {
            engines.get(&tenant).filter(|(of, _)| Arc::ptr_eq(of, policies)).map(|(_, place)| place.clone())
        };
        let known = of_these(&self.engines.read().unwrap_or_else(PoisonError::into_inner));
        if let Some(place) = known {
            return place;
        }
        let mut engines = self.engines.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = of_these(&engines) {
            return place;
        }
        if engines.len() >= ENGINES_MAX {
            // Books that nobody else holds are those of a tenant that has left, or of an older version.
            engines.retain(|_, (of, _)| Arc::strong_count(of) > 1);
        }
        if engines.len() >= ENGINES_MAX {
            engines.clear();
        }
        let place = Arc::<OnceLock<_>>::default();
        engines.insert(tenant, (policies.clone(), place.clone()));
        place
    }

    /// Decides a question of our own door's.
    pub(super) async fn judge(&self, authority: &Authority, question: &Question<'_>) -> Decided {
        let relations = self.relations(authority, question).await;
        let decided = authority.engine.decide(question, &relations);
        count("own", &decided);
        decided
    }

    /// Decides what a gateway asks.
    pub async fn decide(&self, authority: &Authority, inquiry: &Inquiry) -> Decided {
        let (holder, texts) = self.surroundings(inquiry);
        let question = self.question(authority, inquiry, &holder, &texts);
        let relations = self.relations(authority, &question).await;
        let decided = authority.engine.decide(&question, &relations);
        count("authzen", &decided);
        decided
    }

    /// Decides, and tells what each rule made of it.
    pub async fn explain(&self, authority: &Authority, inquiry: &Inquiry) -> Explained {
        let (holder, texts) = self.surroundings(inquiry);
        let question = self.question(authority, inquiry, &holder, &texts);
        let relations = self.relations(authority, &question).await;
        let decided = authority.engine.decide(&question, &relations);
        let subject = &question.subject;
        let mut roles: Vec<String> = subject.roles.iter().map(|role| (*role).to_owned()).collect();
        roles.sort_unstable();
        roles.dedup();
        let set = authority.set();
        let told = |trace: crate::domain::policy::set::Trace| {
            let rule = set.rule(trace.rule)?;
            Some((rule.name.clone(), rule.title.clone(), rule.effect, trace.outcome))
        };
        Explained {
            is_known: subject.is_known,
            roles,
            groups: subject.groups.iter().map(ToString::to_string).collect(),
            rules: set.traced(&question, &relations).into_iter().filter_map(told).collect(),
            decided,
        }
    }

    fn surroundings(&self, inquiry: &Inquiry) -> (Holder, Texts) {
        let holder = Holder::ApiKey(inquiry.subject_id.clone());
        let now = Surroundings { time: self.clock.now().to_string(), ..Surroundings::default() };
        (holder, Texts::from(now))
    }

    fn question<'a>(
        &self,
        authority: &'a Authority,
        inquiry: &'a Inquiry,
        holder: &'a Holder,
        texts: &'a Texts,
    ) -> Question<'a> {
        let people = &authority.people;
        let subject = match inquiry.subject_type.as_str() {
            "apiKey" => self.key_subject(authority, inquiry, holder),
            kind => Subject::called(people, kind, &inquiry.subject_id),
        };
        Question {
            subject,
            object: &inquiry.resource_type,
            action: &inquiry.action,
            resource_id: inquiry.resource_id.as_deref(),
            said: &inquiry.said,
            surroundings: texts,
        }
    }

    /// A key of this tenant's that may be used, and whose scopes leave it what is asked about. Any other is nobody.
    fn key_subject<'a>(&self, authority: &'a Authority, inquiry: &'a Inquiry, holder: &'a Holder) -> Subject<'a> {
        let (id, now) = (inquiry.subject_id.as_str(), self.clock.now());
        let is_usable = |key: &ApiKey| key.tenant == authority.tenant && key.ended(now).is_none();
        let is_left = |key: &ApiKey| key.terms.leave(&inquiry.resource_type, &inquiry.action);
        let own = self.directory.api_key(id).filter(|key| is_usable(key) && is_left(key));
        match own {
            Some(key) => {
                let role = Some(key.role).filter(|role| *role != Role::PlatformAdmin);
                Subject::of_key(&authority.people, id, holder, role)
            }
            None => Subject::called(&authority.people, "apiKey", id),
        }
    }

    /// Asks for every relation that a question turns on.
    async fn relations(&self, authority: &Authority, question: &Question<'_>) -> Known {
        if !authority.set().has_relations() {
            return Known::default();
        }
        let wanted = {
            let wanted = Wanted::default();
            // Nothing is decided by this: it only shows what would be asked for.
            authority.engine.look(question, &wanted);
            wanted.0.into_inner()
        };
        let Some(openfga) = self.openfga.as_ref().filter(|_| wanted.len() <= RELATIONS_MAX) else {
            return Known::default();
        };
        let ask = |tuple: Tuple| async move {
            let holds = openfga.holds(authority.tenant, &tuple).await;
            (tuple, holds)
        };
        Known(join_all(wanted.into_iter().map(ask)).await.into_iter().collect())
    }
}

/// Notes what is asked for, and knows nothing: what is not known decides nothing, so everything else is looked at.
#[derive(Default)]
struct Wanted(RefCell<BTreeSet<Tuple>>);

impl Relations for Wanted {
    fn holds(&self, tuple: &Tuple) -> Option<bool> {
        self.0.borrow_mut().insert(tuple.clone());
        None
    }
}

/// What was found out. What was not is not known.
#[derive(Debug, Default)]
pub(super) struct Known(HashMap<Tuple, Option<bool>>);

impl Relations for Known {
    fn holds(&self, tuple: &Tuple) -> Option<bool> {
        self.0.get(tuple).copied().flatten()
    }
}

fn count(door: &'static str, decided: &Decided) {
    let decision = if decided.allowed { "allow" } else { "deny" };
    metrics::counter!("platform_api_policy_decisions_total", "door" => door, "decision" => decision).increment(1);
}

/// The policy that denies, if one does.
pub(super) fn denying(decided: &Decided) -> Option<String> {
    match &decided.reason {
        Reason::DeniedBy(name) => Some(name.id()),
        _ => None,
    }
}
