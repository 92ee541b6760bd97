//! Who has which role.

use crate::domain::ids::{GroupId, RoleAssignmentId, UserId};
use crate::domain::time::Timestamp;

/// A role, given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleAssignment {
    pub id: RoleAssignmentId,
    /// A role's name: a built-in one's, or one of the tenant's own.
    pub role: String,
    pub holder: Holder,
    pub created_at: Timestamp,
}

/// Who can have a role. A group's is its members'.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    User(UserId),
    Group(GroupId),
    /// The key's public id.
    ApiKey(String),
}

impl Holder {
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Holder::User(_) => "user",
            Holder::Group(_) => "group",
            Holder::ApiKey(_) => "apiKey",
        }
    }

    /// Its id as text.
    #[must_use]
    pub fn id(&self) -> String {
        match self {
            Holder::User(id) => id.to_string(),
            Holder::Group(id) => id.to_string(),
            Holder::ApiKey(id) => id.clone(),
        }
    }

    #[must_use]
    pub fn from_parts(kind: &str, id: &str) -> Option<Holder> {
        match kind {
            "user" => id.parse().ok().map(Holder::User),
            "group" => id.parse().ok().map(Holder::Group),
            "apiKey" => Some(Holder::ApiKey(id.to_owned())),
            _ => None,
        }
    }
}
