//! Roles of a tenant's own: named sets of permissions.

use serde::{Deserialize, Serialize};

use super::ceiling::BuiltIn;
use super::{Flaw, PERMISSIONS_MAX, description_flaw};
use crate::domain::permission::Pattern;
use crate::domain::tenant::Role;
use crate::domain::time::Timestamp;

/// Bytes of a role's name.
pub const NAME_BYTES_MAX: usize = 64;

/// A role as its tenant keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantRole {
    /// Unique in the tenant, and no built-in role's.
    pub name: String,
    #[serde(flatten)]
    pub terms: RoleTerms,
    /// Grows with every change, from 1: its ETag.
    pub version: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Everything about a role that may be set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoleTerms {
    pub description: String,
    pub permissions: Vec<Pattern>,
}

impl RoleTerms {
    /// Everything that is wrong with it.
    #[must_use]
    pub fn flaws(&self, built_in: &BuiltIn) -> Vec<Flaw> {
        let mut flaws: Vec<Flaw> = description_flaw(&self.description).into_iter().collect();
        flaws.extend(permission_flaws(&self.permissions, built_in));
        flaws
    }
}

/// What is wrong with a list of permissions that a tenant gives.
pub(super) fn permission_flaws(permissions: &[Pattern], built_in: &BuiltIn) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    if permissions.is_empty() || permissions.len() > PERMISSIONS_MAX {
        flaws.push(Flaw::new("/permissions", format!("must be 1 to {PERMISSIONS_MAX}")));
    }
    for (at, pattern) in permissions.iter().enumerate() {
        let refused = built_in.refuses(pattern);
        flaws.extend(refused.map(|why| Flaw::new(format!("/permissions/{at}"), why)));
    }
    flaws
}

/// What is wrong with the name of a new role.
#[must_use]
pub fn name_flaw(name: &str) -> Option<Flaw> {
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !begins || !plain || name.len() > NAME_BYTES_MAX {
        let message = format!("must be 1 to {NAME_BYTES_MAX} letters, digits, -, _ or ., and begin with a letter");
        return Some(Flaw::new("/name", message));
    }
    None
}

/// Is this, in whatever case, what one of the roles is called that every tenant has?
#[must_use]
pub fn is_built_in(name: &str) -> bool {
    let known = |role: Role| role.name().eq_ignore_ascii_case(name);
    Role::ALL.into_iter().any(known) || Role::ALIASES.iter().any(|(alias, _)| alias.eq_ignore_ascii_case(name))
}
