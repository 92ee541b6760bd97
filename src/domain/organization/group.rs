//! A group of people and of other groups.

use super::attributes::{Attributes, AttributesPatch};
use super::{Flaw, name_flaw};
use crate::domain::ids::{GroupId, UserId};
use crate::domain::time::Timestamp;

/// Bytes of a description.
pub const DESCRIPTION_BYTES_MAX: usize = 1_000;

/// A group, with what the tenant's books say about when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub id: GroupId,
    pub profile: Profile,
    /// Grows with every change, its members' included, from 1: its ETag.
    pub version: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Everything about a group that may be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Unique in the tenant, in whatever case.
    pub display_name: String,
    /// What an identity provider calls it; unique in the tenant.
    pub external_id: Option<String>,
    pub description: Option<String>,
    pub attributes: Attributes,
    /// Gives its members nothing, when not.
    pub active: bool,
}

/// What to change of a profile; `None` leaves it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProfilePatch {
    pub display_name: Option<String>,
    pub external_id: Option<Option<String>>,
    pub description: Option<Option<String>>,
    /// `Some(None)`: none of them.
    pub attributes: Option<Option<AttributesPatch>>,
    pub active: Option<bool>,
}

/// Who can be in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Member {
    User(UserId),
    Group(GroupId),
}

impl Member {
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Member::User(_) => "user",
            Member::Group(_) => "group",
        }
    }

    /// Its id as text.
    #[must_use]
    pub fn id(self) -> String {
        match self {
            Member::User(id) => id.to_string(),
            Member::Group(id) => id.to_string(),
        }
    }

    #[must_use]
    pub fn from_parts(kind: &str, id: &str) -> Option<Member> {
        match kind {
            "user" => id.parse().ok().map(Member::User),
            "group" => id.parse().ok().map(Member::Group),
            _ => None,
        }
    }
}

impl Profile {
    /// A profile that says no more than a name.
    #[must_use]
    pub fn named(display_name: &str) -> Profile {
        Profile {
            display_name: display_name.to_owned(),
            external_id: None,
            description: None,
            attributes: Attributes::default(),
            active: true,
        }
    }

    /// Everything that is wrong with it by itself.
    #[must_use]
    pub fn flaws(&self) -> Vec<Flaw> {
        let mut flaws = Vec::new();
        flaws.extend(name_flaw("/displayName", &self.display_name));
        flaws.extend(self.external_id.as_deref().and_then(|id| name_flaw("/externalId", id)));
        if self.description.as_ref().is_some_and(|text| text.is_empty() || text.len() > DESCRIPTION_BYTES_MAX) {
            flaws.push(Flaw::new("/description", format!("must be 1 to {DESCRIPTION_BYTES_MAX} bytes")));
        }
        flaws.extend(self.attributes.flaws());
        flaws
    }

    #[must_use]
    pub fn patched(&self, patch: &ProfilePatch) -> Profile {
        let mut profile = self.clone();
        if let Some(name) = &patch.display_name {
            profile.display_name.clone_from(name);
        }
        if let Some(id) = &patch.external_id {
            profile.external_id.clone_from(id);
        }
        if let Some(text) = &patch.description {
            profile.description.clone_from(text);
        }
        if let Some(attributes) = &patch.attributes {
            profile.attributes = match attributes {
                Some(patch) => profile.attributes.patched(patch),
                None => Attributes::default(),
            };
        }
        profile.active = patch.active.unwrap_or(profile.active);
        profile
    }

    /// The names of the fields in which another profile differs, as documents write them.
    #[must_use]
    pub fn changed(&self, other: &Profile) -> Vec<&'static str> {
        let mut changed = Vec::new();
        let mut compare = |name, same: bool| {
            if !same {
                changed.push(name);
            }
        };
        compare("displayName", self.display_name == other.display_name);
        compare("externalId", self.external_id == other.external_id);
        compare("description", self.description == other.description);
        compare("attributes", self.attributes == other.attributes);
        compare("active", self.active == other.active);
        changed
    }
}
