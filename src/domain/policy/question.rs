//! What is asked: may this subject do this to that, here and now?

use std::borrow::Cow;
use std::net::IpAddr;

use serde_json::{Map, Value};

use super::attribute::{Attribute, Source};
use super::condition::{Relation, World};
use crate::domain::comparison::{Atom, Seen};
use crate::domain::ids::GroupId;
use crate::domain::organization::Organization;
use crate::domain::organization::group::Member;
use crate::domain::organization::role::Holder;
use crate::domain::organization::user::User;
use crate::domain::tenant::Role;

/// Whom a question is about, as the tenant's books know it.
#[derive(Debug, Clone, Default)]
pub struct Subject<'a> {
    /// `user`, `apiKey`, or whatever a gateway calls its own.
    pub kind: &'a str,
    /// The books' id of a user, whichever name it was called by; of anything else what it was called.
    pub id: Cow<'a, str>,
    /// The books know it, it is active, or it is none of theirs to know.
    pub is_known: bool,
    pub user: Option<&'a User>,
    pub api_key: Option<&'a str>,
    /// Names of all its roles, built-in and of the tenant's own.
    pub roles: Vec<&'a str>,
    /// All groups it is in, directly or through others.
    pub groups: Vec<GroupId>,
}

impl<'a> Subject<'a> {
    /// A user of the tenant's. One that is inactive is nobody.
    #[must_use]
    pub fn of_user(people: &'a Organization, user: &'a User) -> Subject<'a> {
        let id = Cow::Owned(user.id.to_string());
        if !user.profile.active {
            return Subject { kind: "user", id, ..Subject::default() };
        }
        Subject {
            kind: "user",
            id,
            is_known: true,
            user: Some(user),
            api_key: None,
            roles: people.roles_of_user(user.id).into_iter().collect(),
            groups: people.all_groups_of(Member::User(user.id)).into_iter().collect(),
        }
    }

    /// An API key of the tenant's, with its own role and those it was given.
    #[must_use]
    pub fn of_key(people: &'a Organization, key: &'a str, holder: &'a Holder, own: Option<Role>) -> Subject<'a> {
        let mut roles: Vec<&str> = own.map(Role::name).into_iter().collect();
        roles.extend(people.roles_of(holder).map(|(role, _)| role));
        Subject { kind: "apiKey", id: key.into(), is_known: true, api_key: Some(key), roles, ..Subject::default() }
    }

    /// Whoever a gateway calls so: a user by its id, its name or its external id. Of what is no user and no API key, the
    /// books know nothing, and need not.
    #[must_use]
    pub fn called(people: &'a Organization, kind: &'a str, id: &'a str) -> Subject<'a> {
        match kind {
            "user" => match people.user_called(id) {
                Some(user) => Subject::of_user(people, user),
                None => Subject { kind, id: id.into(), ..Subject::default() },
            },
            // Keys are asked for with `of_key`; one that is not there is nobody.
            "apiKey" => Subject { kind, id: id.into(), ..Subject::default() },
            _ => Subject { kind, id: id.into(), is_known: true, ..Subject::default() },
        }
    }

    /// Has it the built-in administrator's role?
    #[must_use]
    pub fn is_administrator(&self) -> bool {
        self.roles.contains(&Role::Admin.name())
    }

    fn see(&'a self, name: &str) -> Option<Seen<'a>> {
        let profile = self.user.map(|user| &user.profile);
        let text = |text: Option<&'a str>| text.map(Seen::text);
        match name {
            "type" => Some(Seen::text(self.kind)),
            "id" => Some(Seen::text(&self.id)),
            "roles" => Some(Seen::Many(self.roles.iter().map(|role| Atom::Text(role)).collect())),
            "userName" => text(profile.map(|profile| profile.user_name.as_str())),
            "displayName" => text(profile.map(|profile| profile.display_name.as_str())),
            "externalId" => text(profile.and_then(|profile| profile.external_id.as_deref())),
            "email" => text(profile.and_then(|profile| {
                let primary = profile.emails.iter().find(|email| email.primary);
                primary.or(profile.emails.first()).map(|email| email.value.as_str())
            })),
            name => profile.and_then(|profile| profile.attributes.get(name)).map(Seen::from),
        }
    }
}

/// What a question says of its surroundings.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Of the request, where it is our own door's.
    pub ip: Option<IpAddr>,
    /// Whom a service acts for.
    pub on_behalf_of: Option<String>,
    /// When it is asked, in RFC 3339.
    pub time: String,
}

/// A question.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    pub subject: Subject<'a>,
    /// The resource's type, in a permission the object.
    pub object: &'a str,
    pub action: &'a str,
    pub resource_id: Option<&'a str>,
    /// What whoever asks says of each. What we know ourselves stands above it.
    pub said: &'a Said,
    pub surroundings: &'a Texts,
}

/// What whoever asks says of subject, resource, action and context.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Said {
    pub subject: Map<String, Value>,
    pub resource: Map<String, Value>,
    pub action: Map<String, Value>,
    pub context: Map<String, Value>,
}

/// [`Surroundings`] as texts, to be looked at.
#[derive(Debug, Clone, Default)]
pub struct Texts {
    ip: Option<String>,
    on_behalf_of: Option<String>,
    time: String,
}

impl From<Surroundings> for Texts {
    fn from(surroundings: Surroundings) -> Texts {
        let Surroundings { ip, on_behalf_of, time } = surroundings;
        Texts { ip: ip.map(|ip| ip.to_canonical().to_string()), on_behalf_of, time }
    }
}

/// Answers whether relations hold.
pub trait Relations {
    /// `None` when it could not be asked for.
    fn holds(&self, tuple: &Tuple) -> Option<bool>;
}

/// A relation between one subject and one object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// `type:id`.
    pub subject: String,
    pub relation: String,
    /// `type:id`.
    pub object: String,
}

/// A question, with whom to ask for relations.
pub struct Asked<'a> {
    pub question: &'a Question<'a>,
    pub relations: &'a dyn Relations,
}

impl World for Asked<'_> {
    fn see<'a>(&'a self, attribute: &'a Attribute) -> Option<Seen<'a>> {
        let (question, name) = (self.question, attribute.name.as_str());
        let said = |said: &'a Map<String, Value>| said.get(name).and_then(Seen::of);
        match attribute.source {
            Source::Subject => question.subject.see(name).or_else(|| said(&question.said.subject)),
            Source::Resource => match name {
                "type" => Some(Seen::text(question.object)),
                "id" => question.resource_id.map(Seen::text),
                _ => said(&question.said.resource),
            },
            Source::Action => match name {
                "name" => Some(Seen::text(question.action)),
                _ => said(&question.said.action),
            },
            Source::Context => said(&question.said.context).or_else(|| {
                let texts = question.surroundings;
                match name {
                    "ip" => texts.ip.as_deref().map(Seen::text),
                    "onBehalfOf" => texts.on_behalf_of.as_deref().map(Seen::text),
                    "time" => Some(Seen::text(&texts.time)),
                    _ => None,
                }
            }),
        }
    }

    fn relates(&self, relation: &Relation) -> Option<bool> {
        let question = self.question;
        let object = match (&relation.object, question.resource_id) {
            (Some(object), _) => object.clone(),
            (None, Some(id)) => format!("{}:{id}", question.object),
            // Without an object there is nothing that it could be related to.
            (None, None) => return Some(false),
        };
        let subject = format!("{}:{}", question.subject.kind, question.subject.id);
        self.relations.holds(&Tuple { subject, relation: relation.relation.clone(), object })
    }
}
