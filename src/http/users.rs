//! `/v1/users`: a tenant's people.

use std::sync::Arc;

use poem_openapi::param::{Header, Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::authorize::Ask;
use super::body::{Strict, nullable, present, present_objects};
use super::document::Tag;
use super::people::{attributes, attributes_patch, id, id_parameter, page, people, text_parameter, truth_parameter};
use super::precondition;
use super::problem::{Code, Problem};
use super::reply::Reply;
use super::view::{JsonObject, instant, page_limit};
use crate::clock;
use crate::domain::ids::{GroupId, UserId};
use crate::domain::organization::group::Member;
use crate::domain::organization::user::{Email, IssuedSubject, Profile, ProfilePatch, User};
use crate::domain::organization::{Flaw, Organization};
use crate::domain::request::Answer;
use crate::tenant::organization::{CreateUser, DeleteUser, EditUser, UserEdit};

pub(super) struct Users;

#[OpenApi(tag = "Tag::Organization")]
impl Users {
    /// Add a user
    ///
    /// The answer's ETag is the user's version. What policies give by an attribute, the user is given with it.
    #[oai(path = "/v1/users", method = "post", operation_id = "createUser")]
    async fn create(
        &self,
        ask: Ask,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<UserInput>,
    ) -> Result<Reply<UserView, 201>, Problem> {
        subjects_are_free(&ask, body.0.subjects.as_deref()).await?;
        let profile = body.0.profile(true)?;
        let id = UserId(clock::new_id());
        let change = CreateUser { id, profile, limits: ask.api.people };
        Ok(reply(ask.gives(change, |done| render(done)).await??))
    }

    /// Page through the users, oldest first
    ///
    /// Filters apply all at once.
    #[oai(path = "/v1/users", method = "get", operation_id = "listUsers")]
    #[allow(clippy::too_many_arguments, reason = "each is a documented parameter")]
    async fn list(
        &self,
        ask: Ask,
        /// The one with this name, in whatever case.
        #[oai(name = "userName")]
        user_name: Query<Option<String>>,
        /// The one whom an identity provider calls so.
        #[oai(name = "externalId")]
        external_id: Query<Option<String>>,
        /// `true` or `false`.
        active: Query<Option<String>>,
        /// Only members of this group itself.
        group: Query<Option<String>>,
        /// Only those whose user name begins like this, in whatever case.
        prefix: Query<Option<String>>,
        /// Items of the page, from 1 to 500; 50 when absent.
        limit: Query<Option<String>>,
        /// `nextCursor` of the page before.
        cursor: Query<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<UserPage>, Problem> {
        let filter = Filter {
            user_name: text_parameter("userName", user_name.0.as_deref())?,
            external_id: text_parameter("externalId", external_id.0.as_deref())?,
            active: truth_parameter("active", active.0.as_deref())?,
            group: id_parameter("group", group.0.as_deref())?,
            prefix: text_parameter("prefix", prefix.0.as_deref())?,
        };
        let limit = page_limit(limit.0.as_deref())?;
        let after = ask.open(cursor.0.as_deref(), |text| text.parse().ok())?;
        let people = people(&ask).await?;
        let (found, more) = filter.page(&people, after, limit);
        let next = found.last().filter(|_| more).map(|user| ask.seal(&user.id.to_string()));
        Ok(Reply::new(UserPage {
            items: found.into_iter().map(|user| UserView::of(user)).collect(),
            next_cursor: next,
        }))
    }

    /// Read a user
    ///
    /// The answer's ETag is what `If-Match` of a change takes.
    #[oai(path = "/v1/users/:id", method = "get", operation_id = "getUser")]
    async fn get(
        &self,
        ask: Ask,
        /// The user's id.
        #[oai(name = "id")]
        user: Path<String>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<UserView>, Problem> {
        let people = people(&ask).await?;
        let user = people.user(id(&user, Code::UserNotFound)?).ok_or_else(|| Problem::new(Code::UserNotFound))?;
        Ok(Reply::new(UserView::of(user)).tagged(user.version))
    }

    /// Replace a user's profile
    ///
    /// What the body does not have is gone; `active` must be said, so that nobody comes back by being forgotten. Something is
    /// handed out by letting a user back in, by an attribute that a policy looks at, and by taking away whose tokens mean
    /// the user.
    #[oai(path = "/v1/users/:id", method = "put", operation_id = "replaceUser")]
    async fn replace(
        &self,
        ask: Ask,
        /// The user's id.
        #[oai(name = "id")]
        user: Path<String>,
        /// The ETag that was read, or `*`.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<UserInput>,
    ) -> Result<Reply<UserView>, Problem> {
        subjects_are_free(&ask, body.0.subjects.as_deref()).await?;
        let edit = UserEdit::Replace(body.0.profile(false)?);
        change(&ask, &user, edit).await
    }

    /// Change some of a user's profile
    ///
    /// A merge patch (RFC 7396): what is absent stays, `null` takes away, lists are replaced whole, attributes are merged
    /// by name. `active: false` deactivates: the user's tokens are refused, and gateways are told to deny, from the next
    /// request on. Something is handed out by letting a user back in, by an attribute that a policy looks at, and by taking
    /// away whose tokens mean the user.
    #[oai(path = "/v1/users/:id", method = "patch", operation_id = "patchUser")]
    async fn patch(
        &self,
        ask: Ask,
        /// The user's id.
        #[oai(name = "id")]
        user: Path<String>,
        /// The ETag that was read, or `*`.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<UserPatch>,
    ) -> Result<Reply<UserView>, Problem> {
        subjects_are_free(&ask, body.0.subjects.as_deref()).await?;
        let edit = UserEdit::Patch(body.0.patch()?);
        change(&ask, &user, edit).await
    }

    /// Delete a user
    ///
    /// With memberships, roles and personal data. The tokens of somebody who is deleted are judged by what they claim;
    /// deactivate whoever is not to come back. Answers the user as it was.
    #[oai(path = "/v1/users/:id", method = "delete", operation_id = "deleteUser")]
    async fn delete(
        &self,
        ask: Ask,
        /// The user's id.
        #[oai(name = "id")]
        user: Path<String>,
        /// The ETag that was read, or `*`.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<UserView>, Problem> {
        let expected = precondition::required(&ask)?;
        let change = DeleteUser { id: id(&user, Code::UserNotFound)?, expected };
        let answer = ask.gives(change, |done| render(done)).await??;
        Ok(Reply::of(answer, |done| UserView::of(&done)))
    }
}

/// Whose tokens mean a user decides who is that user: nothing for a key with scopes to say.
async fn subjects_are_free(ask: &Ask, given: Option<&[SubjectPair]>) -> Result<(), Problem> {
    match given {
        None | Some([]) => Ok(()),
        Some(_) => ask.without_scopes("A key with scopes says of nobody whose tokens mean them.").await,
    }
}

async fn change(ask: &Ask, user: &str, edit: UserEdit) -> Result<Reply<UserView>, Problem> {
    let expected = precondition::required(ask)?;
    let id = id(user, Code::UserNotFound)?;
    let change = EditUser { id, edit, expected, limits: ask.api.people };
    Ok(reply(ask.gives(change, |done| render(done)).await??))
}

fn reply<const STATUS: u16>(answer: Answer<Arc<User>>) -> Reply<UserView, STATUS> {
    let version = match &answer {
        Answer::Fresh(done) => Some(done.version),
        Answer::Replayed(_) => None,
    };
    let reply = Reply::of(answer, |done| UserView::of(&done));
    match version {
        Some(version) => reply.tagged(version),
        None => reply,
    }
}

fn render(user: &User) -> String {
    serde_json::to_string(&UserView::of(user)).unwrap_or_default()
}

struct Filter<'a> {
    user_name: Option<&'a str>,
    external_id: Option<&'a str>,
    active: Option<bool>,
    group: Option<GroupId>,
    prefix: Option<&'a str>,
}

impl Filter<'_> {
    /// Looks through the fewest that may pass: one by its name, the members of a group, or those with a prefix.
    fn page<'p>(&self, people: &'p Organization, after: Option<UserId>, limit: usize) -> (Vec<&'p Arc<User>>, bool) {
        let is_after = |id: &UserId| after.is_none_or(|after| *id > after);
        let passes = |user: &&Arc<User>| is_after(&user.id) && self.passes(people, user);
        if let Some(name) = self.user_name {
            return page(people.user_named(name).into_iter().filter(passes), limit);
        }
        if let Some(external_id) = self.external_id {
            return page(people.user_of_external_id(external_id).into_iter().filter(passes), limit);
        }
        if let Some(group) = self.group {
            let members = people.members_of(group, after.map(Member::User)).filter_map(|member| match member {
                Member::User(id) => people.user(id),
                Member::Group(_) => None,
            });
            return page(members.filter(passes), limit);
        }
        if let Some(prefix) = self.prefix {
            let ids = people.users_with_prefix(prefix);
            return page(ids.iter().filter_map(|id| people.user(*id)).filter(passes), limit);
        }
        page(people.users_after(after).filter(passes), limit)
    }

    fn passes(&self, people: &Organization, user: &Arc<User>) -> bool {
        let is_named = |name: &str| people.user_named(name).is_some_and(|named| named.id == user.id);
        self.user_name.is_none_or(is_named)
            && self.external_id.is_none_or(|id| user.profile.external_id.as_deref() == Some(id))
            && self.active.is_none_or(|active| user.profile.active == active)
            && self.group.is_none_or(|group| people.is_member(group, Member::User(user.id)))
            && self
                .prefix
                .is_none_or(|prefix| user.profile.user_name.to_lowercase().starts_with(&prefix.to_lowercase()))
    }
}

/// An address.
#[derive(Debug, Clone, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "Email", rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct EmailView {
    /// At most 254 bytes.
    value: String,
    /// `work` or `home`, say.
    #[serde(rename = "type", default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(rename = "type", skip_serializing_if_is_none)]
    kind: Option<String>,
    /// At most one is; `false` when absent.
    #[serde(default)]
    #[oai(default)]
    primary: bool,
}

/// Whom an issuer's tokens mean.
#[derive(Debug, Clone, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "IssuedSubject", rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SubjectPair {
    /// `iss`, exactly.
    issuer: String,
    /// `sub`.
    subject: String,
}

impl SubjectPair {
    fn all(given: Option<Vec<SubjectPair>>) -> Vec<IssuedSubject> {
        let one = |SubjectPair { issuer, subject }| IssuedSubject { issuer: issuer.into(), subject: subject.into() };
        given.unwrap_or_default().into_iter().map(one).collect()
    }
}

impl EmailView {
    fn all(given: Option<Vec<EmailView>>) -> Vec<Email> {
        let one = |EmailView { value, kind, primary }| Email { value, kind, primary };
        given.unwrap_or_default().into_iter().map(one).collect()
    }
}

/// Everything about a user that may be set.
#[derive(Debug, Default, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct UserInput {
    /// Unique in the tenant, in whatever case: 1 to 256 bytes.
    user_name: String,
    /// The user name when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    display_name: Option<String>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    given_name: Option<String>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    family_name: Option<String>,
    /// At most ten.
    #[serde(default, deserialize_with = "present_objects", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    emails: Option<Vec<EmailView>>,
    /// What an identity provider calls it; unique in the tenant.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    external_id: Option<String>,
    /// Whose tokens mean this user; at most ten, each of one user of the tenant. Not for a key with scopes to say.
    #[serde(default, deserialize_with = "present_objects", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    subjects: Option<Vec<SubjectPair>>,
    /// At most 50: texts of up to 256 bytes, whole numbers, booleans, or lists of up to 50 of these.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    attributes: Option<JsonObject>,
    /// `true` when absent from a new user; required when a user is replaced.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    active: Option<bool>,
}

impl UserInput {
    /// Every problem of every field at once.
    fn profile(self, is_new: bool) -> Result<Profile, Problem> {
        let mut flaws = Vec::new();
        if self.active.is_none() && !is_new {
            flaws.push(Flaw::new("/active", "is required"));
        }
        let profile = Profile {
            display_name: self.display_name.unwrap_or_else(|| self.user_name.clone()),
            user_name: self.user_name,
            given_name: self.given_name,
            family_name: self.family_name,
            emails: EmailView::all(self.emails),
            external_id: self.external_id,
            subjects: SubjectPair::all(self.subjects),
            attributes: attributes(self.attributes.as_ref(), &mut flaws),
            active: self.active.unwrap_or(true),
        };
        flaws.extend(profile.flaws());
        if flaws.is_empty() { Ok(profile) } else { Err(Problem::flaws(flaws)) }
    }
}

/// What to change of a user: absent fields stay, `null` takes away.
#[derive(Debug, Default, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct UserPatch {
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    user_name: Option<String>,
    /// `null`: the user name again.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    display_name: Option<Option<String>>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    given_name: Option<Option<String>>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    family_name: Option<Option<String>>,
    #[serde(default, deserialize_with = "present_objects", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    emails: Option<Vec<EmailView>>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    external_id: Option<Option<String>>,
    #[serde(default, deserialize_with = "present_objects", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    subjects: Option<Vec<SubjectPair>>,
    /// Merged by name; an attribute that is `null` is taken away.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    attributes: Option<Option<JsonObject>>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    active: Option<bool>,
}

impl UserPatch {
    fn patch(self) -> Result<ProfilePatch, Problem> {
        let mut flaws = Vec::new();
        let patch = ProfilePatch {
            attributes: attributes_patch(self.attributes.as_ref(), &mut flaws),
            user_name: self.user_name,
            display_name: self.display_name,
            given_name: self.given_name,
            family_name: self.family_name,
            emails: self.emails.map(|emails| EmailView::all(Some(emails))),
            external_id: self.external_id,
            subjects: self.subjects.map(|subjects| SubjectPair::all(Some(subjects))),
            active: self.active,
        };
        if flaws.is_empty() { Ok(patch) } else { Err(Problem::flaws(flaws)) }
    }
}

/// A user.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "User", rename_all = "camelCase", example)]
pub(super) struct UserView {
    id: String,
    user_name: String,
    display_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    given_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    family_name: Option<String>,
    emails: Vec<EmailView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    external_id: Option<String>,
    subjects: Vec<SubjectPair>,
    attributes: JsonObject,
    active: bool,
    /// Its ETag, between quotation marks.
    version: i64,
    created_at: String,
    updated_at: String,
}

impl UserView {
    fn of(user: &User) -> UserView {
        let User { id, profile, version, created_at, updated_at } = user;
        let email = |one: &Email| EmailView { value: one.value.clone(), kind: one.kind.clone(), primary: one.primary };
        let subject =
            |one: &IssuedSubject| SubjectPair { issuer: one.issuer.to_string(), subject: one.subject.to_string() };
        UserView {
            id: id.to_string(),
            user_name: profile.user_name.clone(),
            display_name: profile.display_name.clone(),
            given_name: profile.given_name.clone(),
            family_name: profile.family_name.clone(),
            emails: profile.emails.iter().map(email).collect(),
            external_id: profile.external_id.clone(),
            subjects: profile.subjects.iter().map(subject).collect(),
            attributes: JsonObject(profile.attributes.object()),
            active: profile.active,
            version: *version,
            created_at: instant(*created_at),
            updated_at: instant(*updated_at),
        }
    }
}

/// A page of users.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct UserPage {
    items: Vec<UserView>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

impl Example for UserInput {
    fn example() -> UserInput {
        UserInput {
            user_name: "jane@example.com".into(),
            display_name: Some("Jane Doe".into()),
            external_id: Some("00u1a2b3".into()),
            subjects: Some(vec![SubjectPair { issuer: "https://id.example.com".into(), subject: "00u1a2b3".into() }]),
            ..UserInput::default()
        }
    }
}

impl Example for UserPatch {
    fn example() -> UserPatch {
        UserPatch { active: Some(false), ..UserPatch::default() }
    }
}

impl Example for UserView {
    fn example() -> UserView {
        let profile = UserInput::example();
        UserView {
            id: "0199a8b2-5c00-7abc-8def-0123456789ab".into(),
            user_name: profile.user_name,
            display_name: "Jane Doe".into(),
            given_name: Some("Jane".into()),
            family_name: Some("Doe".into()),
            emails: vec![EmailView { value: "jane@example.com".into(), kind: Some("work".into()), primary: true }],
            external_id: profile.external_id,
            subjects: profile.subjects.unwrap_or_default(),
            attributes: JsonObject::default(),
            active: true,
            version: 1,
            created_at: "2026-11-20T15:37:12.345Z".into(),
            updated_at: "2026-11-20T15:37:12.345Z".into(),
        }
    }
}
