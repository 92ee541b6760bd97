//! Which role may do what: Casbin with a fixed matcher, asked once for every question there can be.
//!
//! The matcher knows equality only, so a pair of object and action that no rule names is denied to everybody and the
//! questions that can be answered with yes are the pairs in the rules. All of them are put to the enforcer when the
//! policy is read; afterwards a decision is a look into a map.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use casbin::{CoreApi, DefaultModel, Enforcer, MgmtApi, StringAdapter};
use futures_util::FutureExt;

use crate::domain::policy::ceiling::BuiltIn;
use crate::domain::tenant::Role;

const MODEL: &str = include_str!("../../config/access_model.conf");
const RULES: &str = include_str!("../../config/access_policy.csv");

/// One rule: this role may do this action to this object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    pub role: Role,
    pub object: String,
    pub action: String,
}

/// Why the rules cannot be used. The daemon does not start without them.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unusable {
    #[error("the access policy cannot be read: {0}")]
    Unreadable(String),
    /// A rule that is not `role, object, action` with a role we have.
    #[error("not a rule of the access policy: {0}")]
    NotARule(String),
}

/// The decisions of one policy.
#[derive(Debug, Clone)]
pub struct Policy {
    rules: Vec<Rule>,
    /// Object → action → the roles that may.
    decisions: HashMap<String, HashMap<String, Vec<Role>>>,
}

impl Policy {
    /// The policy this program was built with.
    ///
    /// # Errors
    /// [`Unusable`], when the model or a rule is malformed.
    pub fn built_in() -> Result<Policy, Unusable> {
        Policy::read(MODEL, RULES)
    }

    fn read(model: &str, rules: &str) -> Result<Policy, Unusable> {
        let enforcer = enforcer(model, rules)?;
        let rules = rules_of(&enforcer)?;
        let mut decisions = HashMap::<String, HashMap<String, Vec<Role>>>::new();
        for Rule { object, action, .. } in &rules {
            let allowed = Role::ALL.into_iter().filter(|role| decide(&enforcer, role.name(), object, action)).collect();
            decisions.entry(object.clone()).or_default().insert(action.clone(), allowed);
        }
        Ok(Policy { rules, decisions })
    }

    /// May this role do `action` to `object`? What no rule names, nobody may.
    #[must_use]
    pub fn allows(&self, role: Role, object: &str, action: &str) -> bool {
        self.decisions
            .get(object)
            .and_then(|actions| actions.get(action))
            .is_some_and(|allowed| allowed.contains(&role))
    }

    /// What the roles may do, for rules of tenants' own to stand beside.
    #[must_use]
    pub fn built_in_rights(&self) -> BuiltIn {
        BuiltIn::of(self.rules.iter().map(|rule| (rule.role, rule.object.as_str(), rule.action.as_str())))
    }

    /// Every rule, in the order of the file.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

/// Casbin's constructors are async for adapters that do IO; from text they are ready at once.
fn enforcer(model: &str, rules: &str) -> Result<Enforcer, Unusable> {
    let unreadable = |error: casbin::Error| Unusable::Unreadable(error.to_string());
    let waits = || Unusable::Unreadable("reading from text does not wait".into());
    let model = DefaultModel::from_str(model).now_or_never().ok_or_else(waits)?.map_err(unreadable)?;
    Enforcer::new(model, StringAdapter::new(rules)).now_or_never().ok_or_else(waits)?.map_err(unreadable)
}

fn rules_of(enforcer: &Enforcer) -> Result<Vec<Rule>, Unusable> {
    let rule = |row: Vec<String>| match row.as_slice() {
        [role, object, action] if !object.is_empty() && !action.is_empty() => match Role::from_name(role) {
            Some(role) => Ok(Rule { role, object: object.clone(), action: action.clone() }),
            None => Err(Unusable::NotARule(row.join(", "))),
        },
        _ => Err(Unusable::NotARule(row.join(", "))),
    };
    enforcer.get_policy().into_iter().map(rule).collect()
}

/// The enforcer's verdict. An empty subject would match the empty rule Casbin evaluates when it has none; an error or
/// a panic is a denial.
fn decide(enforcer: &Enforcer, role: &str, object: &str, action: &str) -> bool {
    if role.is_empty() {
        return false;
    }
    match catch_unwind(AssertUnwindSafe(|| enforcer.enforce((role, object, action)))) {
        Ok(Ok(allowed)) => allowed,
        Ok(Err(error)) => {
            tracing::error!(%error, object, action, "access decision failed and is a denial");
            false
        }
        Err(_) => {
            tracing::error!(object, action, "access decision panicked and is a denial");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The table of the product, written down a second time and by hand: object, action, the roles besides
    /// `platformAdmin`.
    const EXPECTED: &[(&str, &str, &[Role])] = &[
        ("tenants", "create", &[]),
        ("tenants", "list", &[]),
        ("tenants", "read", &[Role::Admin]),
        ("tenants", "amend", &[]),
        ("tenants", "suspend", &[]),
        ("tenants", "reactivate", &[]),
        ("tenants", "archive", &[]),
        ("apiKeys", "create", &[Role::Admin]),
        ("apiKeys", "list", &[Role::Admin]),
        ("apiKeys", "read", &[Role::Admin]),
        ("apiKeys", "change", &[Role::Admin]),
        ("apiKeys", "rotate", &[Role::Admin]),
        ("apiKeys", "revoke", &[Role::Admin]),
        ("usage", "report", &[Role::Admin, Role::Reporter]),
        ("usage", "read", &[Role::Admin, Role::Reader, Role::Developer, Role::Analyst]),
        ("quotas", "read", &[Role::Admin, Role::Reader, Role::Reporter, Role::Developer, Role::Analyst]),
        ("quotas", "replace", &[Role::Admin]),
        ("decision", "read", &[Role::Admin, Role::Reader, Role::Reporter, Role::Developer]),
        ("alerts", "read", &[Role::Admin, Role::Reader, Role::Developer, Role::Analyst]),
        ("alerts", "acknowledge", &[Role::Admin]),
        ("channels", "read", &[]),
        ("channels", "test", &[]),
        ("audit", "read", &[Role::Admin, Role::Reader]),
        ("audit", "verify", &[Role::Admin, Role::Reader]),
        ("gatewayLog", "report", &[Role::Reporter]),
        ("reconciliation", "read", &[Role::Admin, Role::Reader, Role::Analyst]),
        ("findings", "acknowledge", &[Role::Admin]),
        ("findings", "explain", &[]),
        ("findings", "settle", &[]),
        ("rateLimits", "read", &[Role::Admin, Role::Reporter, Role::Reader, Role::Developer]),
        ("features", "evaluate", &[Role::Admin, Role::Reader, Role::Reporter, Role::Developer, Role::Analyst]),
        ("flags", "read", &[Role::Admin, Role::Reader]),
        ("flags", "put", &[Role::Admin]),
        ("flags", "delete", &[Role::Admin]),
        ("kongSync", "read", &[]),
        ("providers", "create", &[Role::Admin]),
        ("providers", "read", &[Role::Admin, Role::Reader]),
        ("providers", "change", &[Role::Admin]),
        ("providers", "delete", &[Role::Admin]),
        ("providers", "test", &[Role::Admin]),
        ("providerSecrets", "put", &[Role::Admin]),
        ("providerSecrets", "delete", &[Role::Admin]),
        ("providerSecrets", "lease", &[Role::Reporter]),
        ("providerPolicy", "read", &[Role::Admin, Role::Reporter, Role::Reader]),
        ("providerPolicy", "replace", &[Role::Admin]),
        ("quarantine", "read", &[Role::Admin]),
        ("quarantine", "replay", &[]),
        ("jobs", "submit", &[Role::Admin]),
        ("jobs", "read", &[Role::Admin]),
        ("jobs", "cancel", &[Role::Admin]),
        ("users", "create", &[Role::Admin]),
        ("users", "read", &[Role::Admin]),
        ("users", "change", &[Role::Admin]),
        ("users", "delete", &[Role::Admin]),
        ("groups", "create", &[Role::Admin]),
        ("groups", "read", &[Role::Admin, Role::Reader]),
        ("groups", "change", &[Role::Admin]),
        ("groups", "delete", &[Role::Admin]),
        ("roleAssignments", "create", &[Role::Admin]),
        ("roleAssignments", "read", &[Role::Admin, Role::Reader]),
        ("roleAssignments", "delete", &[Role::Admin]),
        ("roles", "create", &[Role::Admin]),
        ("roles", "read", &[Role::Admin, Role::Reader]),
        ("roles", "change", &[Role::Admin]),
        ("roles", "delete", &[Role::Admin]),
        ("policies", "create", &[Role::Admin]),
        ("policies", "read", &[Role::Admin, Role::Reader]),
        ("policies", "change", &[Role::Admin]),
        ("policies", "delete", &[Role::Admin]),
        ("policies", "try", &[Role::Admin]),
        ("access", "explain", &[Role::Admin]),
        ("permissions", "grant", &[Role::Admin]),
        ("access", "evaluate", &[Role::Admin, Role::Reporter, Role::Developer]),
        ("access", "search", &[Role::Admin, Role::Reporter]),
        ("platformAdmins", "create", &[]),
        ("platformAdmins", "read", &[]),
        ("platformAdmins", "delete", &[]),
    ];

    #[test]
    fn each_role_may_do_exactly_what_the_table_says() {
        let policy = Policy::built_in().unwrap();
        for (object, action, roles) in EXPECTED {
            for role in Role::ALL {
                let expected = role == Role::PlatformAdmin || roles.contains(&role);
                assert_eq!(policy.allows(role, object, action), expected, "{role:?} {object} {action}");
            }
        }
        let pairs = |pairs: Vec<(&str, &str)>| {
            pairs.into_iter().map(|(a, b)| (a.to_owned(), b.to_owned())).collect::<BTreeSet<_>>()
        };
        let written = policy.rules().iter().map(|rule| (rule.object.as_str(), rule.action.as_str())).collect();
        assert_eq!(pairs(written), pairs(EXPECTED.iter().map(|(object, action, _)| (*object, *action)).collect()));
    }

    #[test]
    fn the_map_agrees_with_the_enforcer_on_every_object_and_action() {
        let enforcer = enforcer(MODEL, RULES).unwrap();
        let policy = Policy::built_in().unwrap();
        let strange = ["", "*", "p", "тенант"];
        let objects: BTreeSet<&str> = EXPECTED.iter().map(|(object, ..)| *object).chain(strange).collect();
        let actions: BTreeSet<&str> = EXPECTED.iter().map(|(_, action, _)| *action).chain(strange).collect();
        for role in Role::ALL {
            for object in &objects {
                for action in &actions {
                    let by_enforcer = decide(&enforcer, role.name(), object, action);
                    assert_eq!(policy.allows(role, object, action), by_enforcer, "{role:?} {object} {action}");
                }
            }
        }
    }

    #[test]
    fn an_empty_role_is_denied_even_by_an_empty_policy() {
        let enforcer = enforcer(MODEL, "").unwrap();
        assert!(!decide(&enforcer, "", "", ""));
        assert!(!decide(&enforcer, "admin", "", ""));
        assert!(Policy::read(MODEL, "").unwrap().rules().is_empty());
    }

    #[test]
    fn a_rule_with_an_unknown_role_or_a_missing_column_stops_the_start() {
        for rules in ["p, root, tenants, read", "p, admin, tenants", "p, admin, tenants, ", "p, admin, a, b, c"] {
            assert!(Policy::read(MODEL, rules).is_err(), "{rules}");
        }
        assert!(Policy::read("not a model", RULES).is_err());
    }

    #[test]
    fn a_matcher_that_panics_or_errs_denies() {
        let errs = MODEL.replace("r.role == p.role", "nothing(r.role)");
        let policy = Policy::read(&errs, RULES).unwrap();
        assert!(!policy.allows(Role::PlatformAdmin, "tenants", "read"));
        // Casbin's keyMatch slices by byte, and panics within a character.
        let panics = MODEL.replace("r.role == p.role", r#"keyMatch("aé", "ab*")"#);
        let enforcer = enforcer(&panics, RULES).unwrap();
        let asked = catch_unwind(AssertUnwindSafe(|| enforcer.enforce(("admin", "tenants", "read"))));
        assert!(asked.is_err(), "this matcher was to panic");
        assert!(!decide(&enforcer, "admin", "tenants", "read"));
    }
}
