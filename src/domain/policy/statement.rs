//! A policy: it allows or denies somebody something, under a condition.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ceiling::BuiltIn;
use super::condition::Condition;
use super::role::permission_flaws;
use super::{Flaw, NAMED_MAX, PERMISSIONS_MAX, TEXT_BYTES_MAX, description_flaw, name_flaw};
use crate::domain::ids::{GroupId, PolicyId, UserId, lower_case_uuid};
use crate::domain::permission::Pattern;
use crate::domain::tenant::Role;
use crate::domain::time::Timestamp;

/// What a policy does where it applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    Allow,
    /// Whatever else allows it.
    Deny,
}

impl Effect {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Effect::Allow => "allow",
            Effect::Deny => "deny",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Effect> {
        [Effect::Allow, Effect::Deny].into_iter().find(|effect| effect.name() == name)
    }
}

/// Whom a policy is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", content = "id", rename_all = "camelCase")]
pub enum Subject {
    /// Everybody whom the tenant knows, and whatever a gateway asks about that is no user and no API key.
    Everybody,
    /// Who has this role, built-in or of the tenant's own.
    Role(String),
    User(UserId),
    /// Its members, and those of groups in it.
    Group(GroupId),
    /// The key's public id.
    ApiKey(String),
}

impl Subject {
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Subject::Everybody => "everybody",
            Subject::Role(_) => "role",
            Subject::User(_) => "user",
            Subject::Group(_) => "group",
            Subject::ApiKey(_) => "apiKey",
        }
    }

    /// Its id as text; everybody has none.
    #[must_use]
    pub fn id(&self) -> Option<String> {
        match self {
            Subject::Everybody => None,
            Subject::Role(id) | Subject::ApiKey(id) => Some(id.clone()),
            Subject::User(id) => Some(id.to_string()),
            Subject::Group(id) => Some(id.to_string()),
        }
    }

    /// # Errors
    /// The field that is wrong, and what it must be.
    pub fn from_parts(kind: &str, id: Option<&str>) -> Result<Subject, (&'static str, &'static str)> {
        let uuid = ("id", "not a UUID in its hyphenated form");
        match (kind, id) {
            ("everybody", None) => Ok(Subject::Everybody),
            ("everybody", Some(_)) => Err(("id", "everybody has no id")),
            ("role", Some(name)) => {
                // An alias is written as the role it stands for.
                let canonical = Role::from_alias(name).map_or_else(|| name.to_owned(), |role| role.name().to_owned());
                Ok(Subject::Role(canonical))
            }
            ("user", Some(id)) => id.parse().map(Subject::User).map_err(|_| uuid),
            ("group", Some(id)) => id.parse().map(Subject::Group).map_err(|_| uuid),
            ("apiKey", Some(id)) => Ok(Subject::ApiKey(id.to_owned())),
            ("role" | "user" | "group" | "apiKey", None) => Err(("id", "is required")),
            _ => Err(("type", "must be everybody, role, user, group or apiKey")),
        }
    }
}

/// Which resources, written `type/id`; `*` on either side stands for every one, and at the end of an id for every ending.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResourcePattern {
    /// `None` is every type.
    kind: Option<String>,
    id: IdPattern,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum IdPattern {
    /// Those without an id as well: a list, something new.
    Any,
    Exactly(String),
    Beginning(String),
}

/// The text is not `type/id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a resource is written type/id, without blanks; * stands for every type, every id, or every ending of an id")]
pub struct NotAResource;

impl ResourcePattern {
    /// A UUID is the same in either case.
    #[must_use]
    pub fn covers(&self, kind: &str, id: Option<&str>) -> bool {
        let of_kind = self.kind.as_deref().is_none_or(|own| own == kind);
        let lower = id.and_then(lower_case_uuid);
        let begins = |own: &str, id: &str| id.starts_with(own) || (lower.is_some() && begins_in_either_case(id, own));
        let id = lower.as_deref().or(id);
        of_kind
            && match (&self.id, id) {
                (IdPattern::Any, _) => true,
                (IdPattern::Exactly(own), Some(id)) => own == id,
                (IdPattern::Beginning(own), Some(id)) => begins(own, id),
                (_, None) => false,
            }
    }

    /// The one thing of this type that it stands for.
    #[must_use]
    pub fn named(&self, kind: &str) -> Option<&str> {
        match &self.id {
            IdPattern::Exactly(id) if self.kind.as_deref().is_none_or(|own| own == kind) => Some(id),
            _ => None,
        }
    }
}

fn begins_in_either_case(text: &str, start: &str) -> bool {
    text.get(..start.len()).is_some_and(|beginning| beginning.eq_ignore_ascii_case(start))
}

impl FromStr for ResourcePattern {
    type Err = NotAResource;

    fn from_str(text: &str) -> Result<ResourcePattern, NotAResource> {
        let (kind, id) = text.split_once('/').ok_or(NotAResource)?;
        let word = |text: &str| {
            let plain = !text.chars().any(|letter| letter.is_whitespace() || letter.is_control());
            !text.is_empty() && text.len() <= TEXT_BYTES_MAX && plain && !text.contains('*')
        };
        let kind = match kind {
            "*" => None,
            kind if word(kind) => Some(kind.to_owned()),
            _ => return Err(NotAResource),
        };
        let id = match id.strip_suffix('*') {
            Some("") => IdPattern::Any,
            Some(start) if word(start) => IdPattern::Beginning(start.to_owned()),
            None if word(id) => IdPattern::Exactly(lower_case_uuid(id).unwrap_or_else(|| id.to_owned())),
            _ => return Err(NotAResource),
        };
        Ok(ResourcePattern { kind, id })
    }
}

impl fmt::Display for ResourcePattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.as_deref().unwrap_or("*");
        match &self.id {
            IdPattern::Any => write!(out, "{kind}/*"),
            IdPattern::Exactly(id) => write!(out, "{kind}/{id}"),
            IdPattern::Beginning(start) => write!(out, "{kind}/{start}*"),
        }
    }
}

impl TryFrom<String> for ResourcePattern {
    type Error = NotAResource;

    fn try_from(text: String) -> Result<ResourcePattern, NotAResource> {
        text.parse()
    }
}

impl From<ResourcePattern> for String {
    fn from(pattern: ResourcePattern) -> String {
        pattern.to_string()
    }
}

/// A policy as its tenant keeps it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    pub id: PolicyId,
    #[serde(flatten)]
    pub terms: PolicyTerms,
    /// Grows with every change, from 1: its ETag.
    pub version: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Everything about a policy that may be set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyTerms {
    /// Unique in the tenant.
    pub name: String,
    pub description: String,
    pub effect: Effect,
    pub subjects: Vec<Subject>,
    pub permissions: Vec<Pattern>,
    /// Every resource, when there is none.
    pub resources: Vec<ResourcePattern>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<Condition>,
    /// Counts for nothing, when not.
    pub enabled: bool,
}

impl PolicyTerms {
    /// Everything that is wrong with it by itself. What a policy denies may be anything.
    #[must_use]
    pub fn flaws(&self, built_in: &BuiltIn) -> Vec<Flaw> {
        let mut flaws: Vec<Flaw> = name_flaw("/name", &self.name).into_iter().collect();
        flaws.extend(description_flaw(&self.description));
        if self.subjects.is_empty() || self.subjects.len() > NAMED_MAX {
            flaws.push(Flaw::new("/subjects", format!("must be 1 to {NAMED_MAX}")));
        }
        match self.effect {
            Effect::Allow => flaws.extend(permission_flaws(&self.permissions, built_in)),
            Effect::Deny if self.permissions.is_empty() || self.permissions.len() > PERMISSIONS_MAX => {
                flaws.push(Flaw::new("/permissions", format!("must be 1 to {PERMISSIONS_MAX}")));
            }
            Effect::Deny => {}
        }
        if self.resources.len() > NAMED_MAX {
            flaws.push(Flaw::new("/resources", format!("must be at most {NAMED_MAX}")));
        }
        flaws
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_covered_by_its_type_and_the_beginning_of_its_id() {
        for (pattern, kind, id, covers) in [
            ("*/*", "model", Some("gpt"), true),
            ("*/*", "model", None, true),
            ("model/*", "model", None, true),
            ("model/*", "file", Some("gpt"), false),
            ("model/gpt*", "model", Some("gpt-4.1"), true),
            ("model/gpt*", "model", Some("claude"), false),
            ("model/gpt*", "model", None, false),
            ("model/gpt", "model", Some("gpt-4"), false),
            ("file/a/b", "file", Some("a/b"), true),
            ("*/gpt", "model", Some("gpt"), true),
        ] {
            let read: ResourcePattern = pattern.parse().unwrap();
            assert_eq!(read.covers(kind, id), covers, "{pattern} {kind} {id:?}");
            assert_eq!(read.to_string(), pattern);
        }
        for text in ["", "model", "/", "model/", "/x", "mod*/x", "model/*x", "model/a*b*", "a b/c", "model/a b"] {
            assert_eq!(text.parse::<ResourcePattern>(), Err(NotAResource), "{text}");
        }
    }

    #[test]
    fn a_uuid_is_the_same_in_either_case() {
        let id = "0199a8b2-5c00-7abc-8def-0123456789ab";
        let upper = id.to_uppercase();
        for pattern in [format!("user/{id}"), format!("user/{upper}"), "user/0199A8*".into(), "user/0199a8*".into()] {
            let read: ResourcePattern = pattern.parse().unwrap();
            assert!(read.covers("user", Some(id)) && read.covers("user", Some(&upper)), "{pattern}");
        }
        let read: ResourcePattern = "model/GPT*".parse().unwrap();
        assert!(!read.covers("model", Some("gpt")), "other names are not");
        assert_eq!(format!("user/{upper}").parse::<ResourcePattern>().unwrap().to_string(), format!("user/{id}"));
    }

    #[test]
    fn a_subject_is_told_by_its_kind_and_id_and_survives_storage() {
        let id = "0199a8b2-5c00-7abc-8def-0123456789ab";
        for (kind, given) in [
            ("everybody", None),
            ("role", Some("auditors")),
            ("user", Some(id)),
            ("group", Some(id)),
            ("apiKey", Some("k")),
        ] {
            let subject = Subject::from_parts(kind, given).unwrap();
            assert_eq!((subject.kind(), subject.id().as_deref()), (kind, given));
            let stored = serde_json::to_string(&subject).unwrap();
            assert_eq!(serde_json::from_str::<Subject>(&stored).unwrap(), subject, "{stored}");
        }
        assert_eq!(Subject::from_parts("role", Some("service")), Ok(Subject::Role("reporter".into())));
        for (kind, given, field) in [
            ("everybody", Some("x"), "id"),
            ("user", Some("x"), "id"),
            ("group", None, "id"),
            ("robot", Some("x"), "type"),
        ] {
            assert_eq!(Subject::from_parts(kind, given).unwrap_err().0, field, "{kind}");
        }
    }
}
