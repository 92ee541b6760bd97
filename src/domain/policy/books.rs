//! A tenant's roles and policies, judged and changed here, purely.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ceiling::BuiltIn;
use super::role::{self, RoleTerms, TenantRole};
use super::statement::{Policy, PolicyTerms, Subject};
use super::{ENTRIES_TOTAL_MAX, Expected, Flaw, POLICIES_MAX, ROLES_MAX, Refusal};
use crate::domain::ids::PolicyId;
use crate::domain::organization::{Organization, folded};
use crate::domain::tenant::Role;
use crate::domain::time::Timestamp;

/// What the books know of a tenant's own roles and policies. A copy shares what it does not change.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PolicyBooks {
    /// Grows with every change of any of them.
    pub version: i64,
    roles: BTreeMap<String, Arc<TenantRole>>,
    policies: BTreeMap<PolicyId, Arc<Policy>>,
}

/// What is left of a thing that is gone, or what there is of it now.
pub type Changed<T> = Result<Arc<T>, Refusal>;

impl PolicyBooks {
    /// As they were stored; what is stored was judged when it was written.
    #[must_use]
    pub fn stored(version: i64, roles: Vec<TenantRole>, policies: Vec<Policy>) -> PolicyBooks {
        PolicyBooks {
            version,
            roles: roles.into_iter().map(|role| (role.name.clone(), Arc::new(role))).collect(),
            policies: policies.into_iter().map(|policy| (policy.id, Arc::new(policy))).collect(),
        }
    }

    /// Has the tenant nothing of its own?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.roles.is_empty() && self.policies.is_empty()
    }

    #[must_use]
    pub fn role(&self, name: &str) -> Option<&Arc<TenantRole>> {
        self.roles.get(name)
    }

    /// In the order of their names.
    pub fn roles(&self) -> impl Iterator<Item = &Arc<TenantRole>> {
        self.roles.values()
    }

    #[must_use]
    pub fn policy(&self, id: PolicyId) -> Option<&Arc<Policy>> {
        self.policies.get(&id)
    }

    /// In the order of their ids, which is that of their making.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// Is there such a role, built-in or of the tenant's own, that a tenant may give?
    #[must_use]
    pub fn knows_role(&self, name: &str) -> bool {
        let built_in = Role::from_name(name).is_some_and(|role| role != Role::PlatformAdmin);
        built_in || self.roles.contains_key(name)
    }

    /// A role that was not there.
    ///
    /// # Errors
    /// [`Refusal::Flawed`], [`Refusal::BuiltIn`], [`Refusal::Taken`] or [`Refusal::Full`].
    pub fn create_role(
        &mut self,
        name: &str,
        terms: RoleTerms,
        built_in: &BuiltIn,
        now: Timestamp,
    ) -> Changed<TenantRole> {
        let mut flaws: Vec<Flaw> = role::name_flaw(name).into_iter().collect();
        flaws.extend(terms.flaws(built_in));
        if !flaws.is_empty() {
            return Err(Refusal::Flawed(flaws));
        }
        if role::is_built_in(name) {
            return Err(Refusal::BuiltIn);
        }
        if self.roles.keys().any(|known| folded(known) == folded(name)) {
            return Err(Refusal::Taken { pointer: "/name".into() });
        }
        if self.roles.len() >= ROLES_MAX {
            return Err(Refusal::Full { what: "roles", most: ROLES_MAX });
        }
        self.has_room_for_role(&terms, 0)?;
        let role = TenantRole { name: name.to_owned(), terms, version: 1, created_at: now, updated_at: now };
        Ok(self.keep_role(role))
    }

    /// A role with other terms. One that stays as it was is left alone.
    ///
    /// # Errors
    /// [`Refusal::BuiltIn`], [`Refusal::UnknownRole`], [`Refusal::Stale`], [`Refusal::Flawed`] or [`Refusal::Full`].
    pub fn replace_role(
        &mut self,
        name: &str,
        terms: RoleTerms,
        expected: &Expected,
        built_in: &BuiltIn,
        now: Timestamp,
    ) -> Changed<TenantRole> {
        let before = self.role_for_change(name, expected)?;
        let flaws = terms.flaws(built_in);
        if !flaws.is_empty() {
            return Err(Refusal::Flawed(flaws));
        }
        if before.terms == terms {
            return Ok(before);
        }
        self.has_room_for_role(&terms, before.terms.permissions.len())?;
        let role = TenantRole { terms, version: before.version + 1, updated_at: now, ..before.as_ref().clone() };
        Ok(self.keep_role(role))
    }

    /// A role less. One that is given to somebody, or that a policy speaks of, stays.
    ///
    /// # Errors
    /// [`Refusal::BuiltIn`], [`Refusal::UnknownRole`], [`Refusal::Stale`] or [`Refusal::InUse`].
    pub fn remove_role(&mut self, name: &str, expected: &Expected, people: &Organization) -> Changed<TenantRole> {
        let role = self.role_for_change(name, expected)?;
        let named = |policy: &Arc<Policy>| {
            policy.terms.subjects.iter().any(|subject| matches!(subject, Subject::Role(own) if own == name))
        };
        if people.assignments_after(None).any(|given| given.role == name) || self.policies().any(named) {
            return Err(Refusal::InUse);
        }
        self.roles.remove(name);
        self.version += 1;
        Ok(role)
    }

    fn role_for_change(&self, name: &str, expected: &Expected) -> Changed<TenantRole> {
        match self.roles.get(name) {
            None if role::is_built_in(name) => Err(Refusal::BuiltIn),
            None => Err(Refusal::UnknownRole),
            Some(role) if !expected.is(role.version) => Err(Refusal::Stale),
            Some(role) => Ok(role.clone()),
        }
    }

    /// `instead_of` entries are given up; whoever does not add to them always may.
    fn has_room_for_role(&self, terms: &RoleTerms, instead_of: usize) -> Result<(), Refusal> {
        let others = self.roles().map(|role| role.terms.permissions.len()).sum::<usize>() - instead_of;
        has_room("permissions of roles", others, terms.permissions.len(), instead_of)
    }

    fn has_room_for_policy(&self, terms: &PolicyTerms, instead_of: usize) -> Result<(), Refusal> {
        let others = self.policies().map(|policy| entries(&policy.terms)).sum::<usize>() - instead_of;
        has_room("permissions, subjects and resources of policies", others, entries(terms), instead_of)
    }

    fn keep_role(&mut self, role: TenantRole) -> Arc<TenantRole> {
        let role = Arc::new(role);
        self.roles.insert(role.name.clone(), role.clone());
        self.version += 1;
        role
    }

    /// A policy that was not there.
    ///
    /// # Errors
    /// [`Refusal::Flawed`], [`Refusal::Taken`] or [`Refusal::Full`].
    pub fn create_policy(
        &mut self,
        id: PolicyId,
        terms: PolicyTerms,
        judge: &Judge<'_>,
        now: Timestamp,
    ) -> Changed<Policy> {
        self.check(id, &terms, judge)?;
        if self.policies.len() >= POLICIES_MAX {
            return Err(Refusal::Full { what: "policies", most: POLICIES_MAX });
        }
        self.has_room_for_policy(&terms, 0)?;
        Ok(self.keep_policy(Policy { id, terms, version: 1, created_at: now, updated_at: now }))
    }

    /// A policy with other terms. One that stays as it was is left alone.
    ///
    /// # Errors
    /// [`Refusal::UnknownPolicy`], [`Refusal::Stale`], [`Refusal::Flawed`], [`Refusal::Taken`] or [`Refusal::Full`].
    pub fn replace_policy(
        &mut self,
        id: PolicyId,
        terms: PolicyTerms,
        expected: &Expected,
        judge: &Judge<'_>,
        now: Timestamp,
    ) -> Changed<Policy> {
        let before = self.policy_for_change(id, expected)?;
        self.check(id, &terms, judge)?;
        if before.terms == terms {
            return Ok(before);
        }
        self.has_room_for_policy(&terms, entries(&before.terms))?;
        let policy = Policy { terms, version: before.version + 1, updated_at: now, ..before.as_ref().clone() };
        Ok(self.keep_policy(policy))
    }

    /// A policy less.
    ///
    /// # Errors
    /// [`Refusal::UnknownPolicy`] or [`Refusal::Stale`].
    pub fn remove_policy(&mut self, id: PolicyId, expected: &Expected) -> Changed<Policy> {
        let policy = self.policy_for_change(id, expected)?;
        self.policies.remove(&id);
        self.version += 1;
        Ok(policy)
    }

    fn policy_for_change(&self, id: PolicyId, expected: &Expected) -> Changed<Policy> {
        match self.policies.get(&id) {
            None => Err(Refusal::UnknownPolicy),
            Some(policy) if !expected.is(policy.version) => Err(Refusal::Stale),
            Some(policy) => Ok(policy.clone()),
        }
    }

    fn keep_policy(&mut self, policy: Policy) -> Arc<Policy> {
        let policy = Arc::new(policy);
        self.policies.insert(policy.id, policy.clone());
        self.version += 1;
        policy
    }

    fn check(&self, id: PolicyId, terms: &PolicyTerms, judge: &Judge<'_>) -> Result<(), Refusal> {
        let mut flaws = terms.flaws(judge.built_in);
        for (at, subject) in terms.subjects.iter().enumerate() {
            let known = match subject {
                Subject::Role(name) => self.knows_role(name),
                Subject::User(id) => judge.people.user(*id).is_some(),
                Subject::Group(id) => judge.people.group(*id).is_some(),
                // Known at the door.
                Subject::ApiKey(_) | Subject::Everybody => true,
            };
            if !known {
                let message = format!("the tenant has no {} with this id", subject.kind());
                flaws.push(Flaw::new(format!("/subjects/{at}/id"), message));
            }
        }
        if !flaws.is_empty() {
            return Err(Refusal::Flawed(flaws));
        }
        let name = folded(&terms.name);
        if self.policies().any(|other| other.id != id && folded(&other.terms.name) == name) {
            return Err(Refusal::Taken { pointer: "/name".into() });
        }
        Ok(())
    }
}

/// What there is to look at in a policy.
fn entries(terms: &PolicyTerms) -> usize {
    terms.permissions.len() + terms.subjects.len() + terms.resources.len()
}

fn has_room(what: &'static str, others: usize, new: usize, instead_of: usize) -> Result<(), Refusal> {
    if new > instead_of && others + new > ENTRIES_TOTAL_MAX {
        return Err(Refusal::Full { what, most: ENTRIES_TOTAL_MAX });
    }
    Ok(())
}

/// What a policy is judged by besides itself.
#[derive(Debug, Clone, Copy)]
pub struct Judge<'a> {
    pub built_in: &'a BuiltIn,
    pub people: &'a Organization,
}
