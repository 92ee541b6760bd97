//! All rules of a tenant, compiled: the built-in roles, its own roles and its policies, and which of them apply to a
//! question.
//!
//! A rule is a number here. That the rules with these numbers apply is all that whoever decides is told: what tenants have
//! written (names, attributes, values) never gets there.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::books::PolicyBooks;
use super::ceiling::{BuiltIn, is_kept};
use super::condition::{Condition, Truth};
use super::question::{Asked, Question, Relations};
use super::statement::{Effect, ResourcePattern, Subject};
use crate::domain::ids::{GroupId, PolicyId, UserId};
use crate::domain::permission::Pattern;
use crate::domain::tenant::Role;

/// What a rule is called.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RuleName {
    BuiltIn(Role),
    /// A role of the tenant's own.
    Role(String),
    Policy(PolicyId),
}

impl RuleName {
    /// `role` or `policy`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            RuleName::BuiltIn(_) | RuleName::Role(_) => "role",
            RuleName::Policy(_) => "policy",
        }
    }

    /// The role's name, or the policy's id.
    #[must_use]
    pub fn id(&self) -> String {
        match self {
            RuleName::BuiltIn(role) => role.name().to_owned(),
            RuleName::Role(name) => name.clone(),
            RuleName::Policy(id) => id.to_string(),
        }
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.kind(), self.id())
    }
}

/// One rule.
#[derive(Debug, Clone)]
pub struct Rule {
    pub name: RuleName,
    /// For people.
    pub title: String,
    pub effect: Effect,
    pub permissions: Vec<Pattern>,
    subjects: Vec<Subject>,
    resources: Vec<ResourcePattern>,
    condition: Option<Condition>,
}

impl Rule {
    fn covers(&self, object: &str, action: &str) -> bool {
        self.permissions.iter().any(|pattern| pattern.covers(object, action))
    }

    fn is_about(&self, question: &Question<'_>) -> bool {
        let subject = &question.subject;
        subject.is_known
            && self.subjects.iter().any(|about| match about {
                Subject::Everybody => true,
                Subject::Role(name) => subject.roles.contains(&name.as_str()),
                Subject::User(id) => subject.user.is_some_and(|user| user.id == *id),
                Subject::Group(id) => subject.groups.contains(id),
                Subject::ApiKey(id) => subject.api_key == Some(id.as_str()),
            })
    }

    fn is_of(&self, question: &Question<'_>) -> bool {
        let of = |pattern: &ResourcePattern| pattern.covers(question.object, question.resource_id);
        self.resources.is_empty() || self.resources.iter().any(of)
    }

    fn truth(&self, asked: &Asked<'_>) -> Truth {
        self.condition.as_ref().map_or(Truth::True, |condition| condition.truth(asked))
    }

    /// Does it count, given what is known of its condition? What could not be asked for allows nothing and denies.
    fn counts(&self, truth: Truth) -> bool {
        match self.effect {
            Effect::Allow => truth == Truth::True,
            Effect::Deny => matches!(truth, Truth::True | Truth::Unavailable),
        }
    }
}

/// The rules that speak of one pair of object and action, by whom they are about.
#[derive(Debug, Default)]
pub struct Candidates {
    everybody: Vec<u32>,
    roles: HashMap<String, Vec<u32>>,
    users: HashMap<UserId, Vec<u32>>,
    groups: HashMap<GroupId, Vec<u32>>,
    api_keys: HashMap<String, Vec<u32>>,
}

impl Candidates {
    /// Numbers that are kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let named = self.roles.values().chain(self.users.values()).chain(self.groups.values());
        self.everybody.len() + named.chain(self.api_keys.values()).map(Vec::len).sum::<usize>()
    }

    /// Numbers of the rules that are about a subject, ascending.
    fn about(&self, question: &Question<'_>) -> Vec<u32> {
        let subject = &question.subject;
        if !subject.is_known {
            return Vec::new();
        }
        let mut found = self.everybody.clone();
        let mut add = |more: Option<&Vec<u32>>| found.extend(more.into_iter().flatten());
        subject.roles.iter().for_each(|role| add(self.roles.get(*role)));
        subject.groups.iter().for_each(|group| add(self.groups.get(group)));
        add(subject.user.and_then(|user| self.users.get(&user.id)));
        add(subject.api_key.and_then(|key| self.api_keys.get(key)));
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// What one rule makes of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    pub rule: u32,
    pub outcome: Outcome,
}

/// How far a rule got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Applies,
    /// It is the tenant's, and gives what no tenant may give.
    AboveCeiling,
    /// It would take from the administrator what nobody takes.
    Kept,
    OtherResource,
    /// With the pointer to the part of the condition that does not hold.
    ConditionFails {
        pointer: String,
        truth: Truth,
    },
}

/// The rules of one tenant at one version of its books.
#[derive(Debug, Clone)]
pub struct PolicySet {
    /// Of the tenant's books.
    pub version: i64,
    rules: Vec<Rule>,
    built_in: Arc<BuiltIn>,
    has_relations: bool,
}

impl PolicySet {
    /// Compiles a tenant's books, with the built-in roles.
    #[must_use]
    pub fn new(books: &PolicyBooks, built_in: Arc<BuiltIn>) -> PolicySet {
        let pattern = |(object, action): &(String, String)| format!("{object}:{action}").parse().ok();
        let mut rules: Vec<Rule> = built_in
            .rights()
            .map(|(role, rights)| Rule {
                name: RuleName::BuiltIn(role),
                title: role.name().to_owned(),
                effect: Effect::Allow,
                permissions: rights.iter().filter_map(pattern).collect(),
                subjects: vec![Subject::Role(role.name().to_owned())],
                resources: Vec::new(),
                condition: None,
            })
            .collect();
        rules.extend(books.roles().map(|role| Rule {
            name: RuleName::Role(role.name.clone()),
            title: role.name.clone(),
            effect: Effect::Allow,
            permissions: role.terms.permissions.clone(),
            subjects: vec![Subject::Role(role.name.clone())],
            resources: Vec::new(),
            condition: None,
        }));
        rules.extend(books.policies().filter(|policy| policy.terms.enabled).map(|policy| {
            let terms = policy.terms.clone();
            Rule {
                name: RuleName::Policy(policy.id),
                title: terms.name,
                effect: terms.effect,
                permissions: terms.permissions,
                subjects: terms.subjects,
                resources: terms.resources,
                condition: terms.condition,
            }
        }));
        let has_relations = rules.iter().filter_map(|rule| rule.condition.as_ref()).any(Condition::has_relation);
        PolicySet { version: books.version, rules, built_in, has_relations }
    }

    /// Every rule; its place is its number.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    #[must_use]
    pub fn rule(&self, number: u32) -> Option<&Rule> {
        self.rules.get(usize::try_from(number).ok()?)
    }

    /// Does any condition ask for a relation?
    #[must_use]
    pub fn has_relations(&self) -> bool {
        self.has_relations
    }

    /// The rules that speak of this action on this object.
    #[must_use]
    pub fn candidates(&self, object: &str, action: &str) -> Candidates {
        let mut candidates = Candidates::default();
        for (number, rule) in (0_u32..).zip(&self.rules) {
            if !rule.covers(object, action) || self.is_above(rule, object, action) {
                continue;
            }
            for subject in &rule.subjects {
                let numbers = match subject {
                    Subject::Everybody => &mut candidates.everybody,
                    Subject::Role(name) => candidates.roles.entry(name.clone()).or_default(),
                    Subject::User(id) => candidates.users.entry(*id).or_default(),
                    Subject::Group(id) => candidates.groups.entry(*id).or_default(),
                    Subject::ApiKey(id) => candidates.api_keys.entry(id.clone()).or_default(),
                };
                // Whoever is named twice by one rule is about it once.
                if numbers.last() != Some(&number) {
                    numbers.push(number);
                }
            }
        }
        candidates
    }

    /// Numbers of the rules among the candidates that apply to a question, ascending. `candidates` must be those of the
    /// question's object and action.
    #[must_use]
    pub fn applied(&self, candidates: &Candidates, question: &Question<'_>, relations: &dyn Relations) -> Vec<u32> {
        let asked = Asked { question, relations };
        let mut numbers = candidates.about(question);
        numbers.retain(|number| {
            let applies =
                |rule: &Rule| !is_kept_from(rule, question) && rule.is_of(question) && rule.counts(rule.truth(&asked));
            self.rule(*number).is_some_and(applies)
        });
        numbers
    }

    /// The same without an index, whatever object and action the rules speak of: for who matches those himself.
    #[must_use]
    pub fn holding(&self, question: &Question<'_>, relations: &dyn Relations) -> Vec<u32> {
        let asked = Asked { question, relations };
        let holds = |rule: &Rule| {
            rule.is_about(question)
                && !self.is_above(rule, question.object, question.action)
                && !is_kept_from(rule, question)
                && rule.is_of(question)
                && rule.counts(rule.truth(&asked))
        };
        (0_u32..).zip(&self.rules).filter(|(_, rule)| holds(rule)).map(|(number, _)| number).collect()
    }

    /// What each rule that is about the subject and speaks of the action makes of a question.
    #[must_use]
    pub fn traced(&self, question: &Question<'_>, relations: &dyn Relations) -> Vec<Trace> {
        let asked = Asked { question, relations };
        let of = |rule: &Rule| {
            if self.is_above(rule, question.object, question.action) {
                return Outcome::AboveCeiling;
            }
            if is_kept_from(rule, question) {
                return Outcome::Kept;
            }
            if !rule.is_of(question) {
                return Outcome::OtherResource;
            }
            if rule.counts(rule.truth(&asked)) {
                return Outcome::Applies;
            }
            let blamed = rule.condition.as_ref().and_then(|condition| condition.blame(&asked));
            let (pointer, truth) = blamed.unwrap_or((String::new(), Truth::False));
            Outcome::ConditionFails { pointer, truth }
        };
        let speaking = (0_u32..)
            .zip(&self.rules)
            .filter(|(_, rule)| rule.covers(question.object, question.action) && rule.is_about(question));
        speaking.map(|(rule, of_rule)| Trace { rule, outcome: of(of_rule) }).collect()
    }

    /// Actions on this object that any rule names, sorted. Those that only a wildcard stands for have no name.
    #[must_use]
    pub fn actions_on(&self, object: &str) -> Vec<String> {
        let named = self.rules.iter().flat_map(|rule| &rule.permissions);
        let of_it = named.filter(|pattern| pattern.object().is_none_or(|own| own == object));
        let mut actions: Vec<String> = of_it.filter_map(|pattern| pattern.action().map(str::to_owned)).collect();
        actions.extend(self.built_in.actions(object).map(str::to_owned));
        actions.sort_unstable();
        actions.dedup();
        actions
    }

    /// Ids of this type that any rule names in full.
    pub fn resources_of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a str> {
        self.rules.iter().flat_map(|rule| &rule.resources).filter_map(move |pattern| pattern.named(kind))
    }

    fn is_above(&self, rule: &Rule, object: &str, action: &str) -> bool {
        let gives = rule.effect == Effect::Allow && !matches!(rule.name, RuleName::BuiltIn(_));
        gives && !self.built_in.is_givable(object, action)
    }
}

/// An administrator who has shut himself out of the policies could not let himself in again.
fn is_kept_from(rule: &Rule, question: &Question<'_>) -> bool {
    rule.effect == Effect::Deny && is_kept(question.object) && question.subject.is_administrator()
}
