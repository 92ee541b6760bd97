//! What of our own API a tenant's roles and policies may give.
//!
//! A tenant gives what one of its built-in roles may do, and no more: the platform's objects are never a tenant's to give.
//! Nor is what makes others mightier, for whoever may do that can raise himself: roles, policies and role assignments, API
//! keys, who is a user and who is in a group are changed by the tenant's built-in administrator alone. What is no object of
//! ours is the tenant's own affair.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::domain::permission::Pattern;
use crate::domain::tenant::Role;

/// Objects whose changes make others mightier.
const RESERVED: &[&str] = &["apiKeys", "groups", "permissions", "policies", "roleAssignments", "roles", "users"];
/// What may be given of those all the same: looking at them.
const HARMLESS: &[&str] = &["list", "read"];
/// Objects that no policy takes away from the built-in administrator, who could not undo it.
const KEPT: &[&str] = &["permissions", "policies", "roles"];

/// What the built-in roles may do, as object and action.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuiltIn {
    /// Of each role of a tenant.
    rights: Vec<(Role, Vec<(String, String)>)>,
    /// Object → actions that a tenant may give.
    givable: HashMap<String, HashSet<String>>,
    /// Object → every action that it has.
    own: HashMap<String, HashSet<String>>,
}

impl BuiltIn {
    /// Of every rule that there is: role, object, action.
    #[must_use]
    pub fn of<'a>(rules: impl IntoIterator<Item = (Role, &'a str, &'a str)>) -> BuiltIn {
        let mut built_in = BuiltIn::default();
        let mut rights: HashMap<Role, Vec<(String, String)>> = HashMap::new();
        for (role, object, action) in rules {
            built_in.own.entry(object.to_owned()).or_default().insert(action.to_owned());
            if role == Role::PlatformAdmin {
                continue;
            }
            rights.entry(role).or_default().push((object.to_owned(), action.to_owned()));
            if !RESERVED.contains(&object) || HARMLESS.contains(&action) {
                built_in.givable.entry(object.to_owned()).or_default().insert(action.to_owned());
            }
        }
        let of_a_tenant = Role::OF_A_TENANT.into_iter();
        built_in.rights = of_a_tenant.map(|(role, _)| (role, rights.remove(&role).unwrap_or_default())).collect();
        built_in
    }

    /// Each role of a tenant with what it may do.
    pub fn rights(&self) -> impl Iterator<Item = (Role, &[(String, String)])> {
        self.rights.iter().map(|(role, rights)| (*role, rights.as_slice()))
    }

    /// May a tenant's own role or policy give this?
    #[must_use]
    pub fn is_givable(&self, object: &str, action: &str) -> bool {
        match self.givable.get(object) {
            Some(actions) => actions.contains(action),
            None => !self.own.contains_key(object),
        }
    }

    /// Why this pattern gives nothing that a tenant may give, if so. A wildcard over objects gives what may be given.
    #[must_use]
    pub fn refuses(&self, pattern: &Pattern) -> Option<&'static str> {
        let object = pattern.object()?;
        let actions = self.own.get(object)?;
        let given = match pattern.action() {
            Some(action) if !actions.contains(action) => return Some("this object has no such action"),
            Some(action) => self.is_givable(object, action),
            None => actions.iter().any(|action| self.is_givable(object, action)),
        };
        (!given).then_some("is the platform's or the built-in administrator's alone, and not a tenant's to give")
    }

    /// May this role of a tenant do this?
    #[must_use]
    pub fn may(&self, role: Role, object: &str, action: &str) -> bool {
        let is_it = |(own, of_it): &(String, String)| own == object && of_it == action;
        self.rights.iter().any(|(known, rights)| *known == role && rights.iter().any(is_it))
    }

    /// Is it an object of ours?
    #[must_use]
    pub fn knows(&self, object: &str) -> bool {
        self.own.contains_key(object)
    }

    /// Every object and action that any role of a tenant may do, in the order of their names.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.rights.iter().flat_map(|(_, rights)| rights);
        let pairs: BTreeSet<(&str, &str)> = all.map(|(object, action)| (object.as_str(), action.as_str())).collect();
        pairs.into_iter()
    }

    /// Every action that is known of an object of ours.
    pub fn actions<'a>(&'a self, object: &str) -> impl Iterator<Item = &'a str> {
        self.own.get(object).into_iter().flatten().map(String::as_str)
    }
}

/// May no policy take this from the built-in administrator?
#[must_use]
pub fn is_kept(object: &str) -> bool {
    KEPT.contains(&object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built_in() -> BuiltIn {
        BuiltIn::of([
            (Role::PlatformAdmin, "tenants", "create"),
            (Role::Admin, "usage", "read"),
            (Role::Reporter, "gatewayLog", "report"),
            (Role::Admin, "roles", "change"),
            (Role::Admin, "roles", "read"),
            (Role::PlatformAdmin, "findings", "settle"),
            (Role::Admin, "findings", "acknowledge"),
        ])
    }

    #[test]
    fn a_tenant_gives_what_its_own_roles_may_and_nothing_that_makes_mightier() {
        for (object, action, givable) in [
            ("usage", "read", true),
            ("gatewayLog", "report", true),
            ("roles", "read", true),
            ("roles", "change", false),
            ("tenants", "create", false),
            ("findings", "settle", false),
            ("findings", "acknowledge", true),
            ("usage", "forge", false),
            ("invoice", "pay", true),
        ] {
            assert_eq!(built_in().is_givable(object, action), givable, "{object} {action}");
        }
    }

    #[test]
    fn a_permission_that_could_give_nothing_is_refused_when_it_is_written() {
        for (pattern, refused) in [
            ("usage:read", false),
            ("usage:*", false),
            ("usage:forge", true),
            ("tenants:create", true),
            ("tenants:*", true),
            ("findings:*", false),
            ("roles:change", true),
            ("roles:*", false),
            ("*:*", false),
            ("*:create", false),
            ("invoice:pay", false),
        ] {
            assert_eq!(built_in().refuses(&pattern.parse().unwrap()).is_some(), refused, "{pattern}");
        }
    }
}
