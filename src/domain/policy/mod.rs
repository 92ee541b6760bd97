//! Who may do what in a tenant, as the tenant lays it down: roles of its own and policies, which are data and never
//! expressions.
//!
//! - [`role`]: a named set of permissions, given by role assignments. [`statement`]: a policy, which allows or denies.
//! - [`condition`] on [`attribute`]s of the subject, the resource, the action and the context; [`network`]s of addresses.
//! - [`books`]: a tenant's roles and policies, with the version that every change moves on.
//! - [`set`]: all of it compiled, with the built-in roles; [`question`]: what is asked. [`set::PolicySet::applied`] turns a
//!   question into the rules that apply to it, so that whoever decides (Casbin, in `access`) sees booleans only.
//! - [`ceiling`]: what of our own API a tenant may give at all. [`giver`]: what of that a credential may hand out.
//!
//! What nobody allows is denied, and what one policy denies no other allows.

pub mod attribute;
pub mod books;
pub mod ceiling;
pub mod condition;
pub mod giver;
#[cfg(test)]
mod giver_tests;
pub mod network;
pub mod question;
pub mod role;
pub mod set;
pub mod statement;
#[cfg(test)]
mod tests;

pub use super::organization::{Expected, Flaw};

/// Roles of a tenant's own.
pub const ROLES_MAX: usize = 200;
/// Policies of one tenant.
pub const POLICIES_MAX: usize = 2_000;
/// Permissions of one role, and of one policy.
pub const PERMISSIONS_MAX: usize = 200;
/// Subjects, and resources, of one policy.
pub const NAMED_MAX: usize = 100;
/// Permissions of all of a tenant's own roles together; permissions, subjects and resources of all of its policies. A
/// question that was not asked before looks at all of them.
pub const ENTRIES_TOTAL_MAX: usize = 20_000;
/// Bytes of a description.
pub const DESCRIPTION_BYTES_MAX: usize = 1_024;
/// Bytes of a name, and of a text in a condition.
pub const TEXT_BYTES_MAX: usize = 256;

/// Why a change is not made. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    UnknownRole,
    UnknownPolicy,
    /// It has changed since the caller saw it.
    Stale,
    Flawed(Vec<Flaw>),
    /// Another one has this name.
    Taken {
        pointer: String,
    },
    /// There are as many as there may be.
    Full {
        what: &'static str,
        most: usize,
    },
    /// One of the roles that every tenant has: they are not a tenant's to change.
    BuiltIn,
    /// The role is given to somebody, or a policy speaks of it.
    InUse,
}

/// What a name must be: for people and for logs.
fn name_flaw(pointer: &str, name: &str) -> Option<Flaw> {
    let fits = !name.trim().is_empty() && name.len() <= TEXT_BYTES_MAX && !name.chars().any(char::is_control);
    (!fits).then(|| Flaw::new(pointer, format!("must be 1 to {TEXT_BYTES_MAX} bytes without control characters")))
}

fn description_flaw(text: &str) -> Option<Flaw> {
    let fits = text.len() <= DESCRIPTION_BYTES_MAX && !text.contains('\0');
    (!fits).then(|| Flaw::new("/description", format!("must be at most {DESCRIPTION_BYTES_MAX} bytes")))
}
