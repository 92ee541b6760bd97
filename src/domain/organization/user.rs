//! A person of a tenant.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::attributes::{Attributes, AttributesPatch};
use super::{Flaw, NAME_BYTES_MAX, name_flaw};
use crate::domain::ids::UserId;
use crate::domain::time::Timestamp;

/// Addresses of one person.
pub const EMAILS_MAX: usize = 10;
/// Bytes of an address, after RFC 5321.
pub const EMAIL_BYTES_MAX: usize = 254;
/// Pairs of issuer and subject of one person.
pub const SUBJECTS_MAX: usize = 10;
/// Bytes of an issuer.
pub const ISSUER_BYTES_MAX: usize = 512;
/// OpenID Connect Core 2: a subject has at most 255 characters.
pub const SUBJECT_BYTES_MAX: usize = 255;
/// Bytes of an address's type.
const KIND_BYTES_MAX: usize = 32;

/// A person, with what the tenant's books say about when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub id: UserId,
    pub profile: Profile,
    /// Grows with every change, from 1: its ETag.
    pub version: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// Everything about a person that may be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Unique in the tenant, in whatever case.
    pub user_name: String,
    pub display_name: String,
    pub given_name: Option<String>,
    pub family_name: Option<String>,
    pub emails: Vec<Email>,
    /// What an identity provider calls it; unique in the tenant.
    pub external_id: Option<String>,
    /// Whom tokens speak of when they mean this person; each belongs to one person of the tenant.
    pub subjects: Vec<IssuedSubject>,
    pub attributes: Attributes,
    /// Refused wherever it is known, when not.
    pub active: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Email {
    pub value: String,
    /// `work` or `home`, say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    pub primary: bool,
}

/// A subject is only unique at its issuer. Sorted by subject first: a gateway names the subject alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IssuedSubject {
    pub subject: Arc<str>,
    pub issuer: Arc<str>,
}

/// What to change of a profile; `None` leaves it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProfilePatch {
    pub user_name: Option<String>,
    /// `Some(None)`: the user name again.
    pub display_name: Option<Option<String>>,
    pub given_name: Option<Option<String>>,
    pub family_name: Option<Option<String>>,
    pub emails: Option<Vec<Email>>,
    pub external_id: Option<Option<String>>,
    pub subjects: Option<Vec<IssuedSubject>>,
    /// `Some(None)`: none of them.
    pub attributes: Option<Option<AttributesPatch>>,
    pub active: Option<bool>,
}

impl Profile {
    /// A profile that says no more than a name.
    #[must_use]
    pub fn named(user_name: &str) -> Profile {
        Profile {
            user_name: user_name.to_owned(),
            display_name: user_name.to_owned(),
            given_name: None,
            family_name: None,
            emails: Vec::new(),
            external_id: None,
            subjects: Vec::new(),
            attributes: Attributes::default(),
            active: true,
        }
    }

    /// Everything that is wrong with it by itself.
    #[must_use]
    pub fn flaws(&self) -> Vec<Flaw> {
        let mut flaws = Vec::new();
        flaws.extend(name_flaw("/userName", &self.user_name));
        flaws.extend(name_flaw("/displayName", &self.display_name));
        for (pointer, name) in
            [("/givenName", &self.given_name), ("/familyName", &self.family_name), ("/externalId", &self.external_id)]
        {
            flaws.extend(name.as_deref().and_then(|name| name_flaw(pointer, name)));
        }
        flaws.extend(self.email_flaws());
        flaws.extend(self.subject_flaws());
        flaws.extend(self.attributes.flaws());
        flaws
    }

    fn email_flaws(&self) -> Vec<Flaw> {
        let mut flaws = Vec::new();
        if self.emails.len() > EMAILS_MAX {
            flaws.push(Flaw::new("/emails", format!("must be at most {EMAILS_MAX}")));
        }
        for (at, email) in self.emails.iter().enumerate() {
            if !is_address(&email.value) {
                flaws.push(Flaw::new(format!("/emails/{at}/value"), "must be an address such as jane@example.com"));
            }
            if email.kind.as_ref().is_some_and(|kind| !fits(kind, KIND_BYTES_MAX)) {
                flaws.push(Flaw::new(format!("/emails/{at}/type"), format!("must be 1 to {KIND_BYTES_MAX} bytes")));
            }
        }
        if self.emails.iter().filter(|email| email.primary).count() > 1 {
            flaws.push(Flaw::new("/emails", "only one address is the primary one"));
        }
        flaws
    }

    fn subject_flaws(&self) -> Vec<Flaw> {
        let mut flaws = Vec::new();
        if self.subjects.len() > SUBJECTS_MAX {
            flaws.push(Flaw::new("/subjects", format!("must be at most {SUBJECTS_MAX}")));
        }
        for (at, one) in self.subjects.iter().enumerate() {
            if !fits(&one.issuer, ISSUER_BYTES_MAX) {
                flaws.push(Flaw::new(
                    format!("/subjects/{at}/issuer"),
                    format!("must be 1 to {ISSUER_BYTES_MAX} bytes"),
                ));
            }
            if !fits(&one.subject, SUBJECT_BYTES_MAX) {
                let message = format!("must be 1 to {SUBJECT_BYTES_MAX} bytes");
                flaws.push(Flaw::new(format!("/subjects/{at}/subject"), message));
            }
            if self.subjects.iter().take(at).any(|other| other == one) {
                flaws.push(Flaw::new(format!("/subjects/{at}"), "is there twice"));
            }
        }
        flaws
    }

    #[must_use]
    pub fn patched(&self, patch: &ProfilePatch) -> Profile {
        let mut profile = self.clone();
        if let Some(name) = &patch.user_name {
            profile.user_name.clone_from(name);
        }
        if let Some(name) = &patch.display_name {
            profile.display_name = name.clone().unwrap_or_else(|| profile.user_name.clone());
        }
        let set = |field: &mut Option<String>, patch: &Option<Option<String>>| {
            if let Some(value) = patch {
                field.clone_from(value);
            }
        };
        set(&mut profile.given_name, &patch.given_name);
        set(&mut profile.family_name, &patch.family_name);
        set(&mut profile.external_id, &patch.external_id);
        if let Some(emails) = &patch.emails {
            profile.emails.clone_from(emails);
        }
        if let Some(subjects) = &patch.subjects {
            profile.subjects.clone_from(subjects);
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
        compare("userName", self.user_name == other.user_name);
        compare("displayName", self.display_name == other.display_name);
        compare("givenName", self.given_name == other.given_name);
        compare("familyName", self.family_name == other.family_name);
        compare("emails", self.emails == other.emails);
        compare("externalId", self.external_id == other.external_id);
        compare("subjects", self.subjects == other.subjects);
        compare("attributes", self.attributes == other.attributes);
        compare("active", self.active == other.active);
        changed
    }
}

fn fits(text: &str, bytes_max: usize) -> bool {
    !text.is_empty() && text.len() <= bytes_max && !text.chars().any(char::is_control)
}

/// Something before and after one `@`, without space: who may be reached there is the mail server's to know.
fn is_address(text: &str) -> bool {
    let parts = text.split_once('@').filter(|(local, domain)| !local.is_empty() && !domain.is_empty());
    let one = parts.is_some_and(|(_, domain)| !domain.contains('@'));
    one && text.len() <= EMAIL_BYTES_MAX && !text.chars().any(|c| c.is_control() || c.is_whitespace())
}

const _: () = assert!(NAME_BYTES_MAX >= EMAIL_BYTES_MAX, "an address may be a user name");
