//! `/scim/v2`: identity providers keep a tenant's users and groups (SCIM 2.0, RFC 7644).
//!
//! [`crate::scim`] knows the documents; the changes are those that `/v1/users` and `/v1/groups` make. A patch is judged by the
//! version that it was applied to: when somebody was faster it is applied again, unless the client named a version.

use std::sync::Arc;

use poem::Response;
use poem::http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::authorize::{Ask, unauthenticated};
use super::body;
use super::people::{id, people};
use super::precondition::{self, tag};
use super::problem::{Code, Form, Problem};
use crate::access::Wish;
use crate::clock;
use crate::domain::ids::{GroupId, UserId};
use crate::domain::organization::group::Group;
use crate::domain::organization::user::User;
use crate::domain::organization::{Expected, Organization, Refusal};
use crate::domain::request::Answer;
use crate::scim::filter::Filter;
use crate::scim::{Document, Kind, Resource, Wrong, group, is_shown, kept, member, patch, projected, schema, user};
use crate::tenant::organization::{CreateUser, DeleteGroup, DeleteUser, EditUser, ShapeGroup, UserEdit};
use crate::tenant::task::{Declined, untold};

/// How often a change is applied again to what somebody else has made meanwhile.
const TRIES: usize = 8;
const LIST: &str = "urn:ietf:params:scim:api:messages:2.0:ListResponse";

/// Answers whatever is asked below `/scim/v2`.
pub(super) async fn answer(ask: &Ask, path: &str) -> Result<Response, Problem> {
    let id = path.rsplit('/').next().unwrap_or_default();
    let answered = match ask.operation.id {
        "scimGetServiceProviderConfig" => Ok(written(StatusCode::OK, &schema::service_provider())),
        "scimListResourceTypes" => Ok(everything(schema::resource_types())),
        "scimGetResourceType" => described(schema::resource_types(), id),
        "scimListSchemas" => Ok(everything(schema::schemas())),
        "scimGetSchema" => described(schema::schemas(), &id.replace("%3A", ":").replace("%3a", ":")),
        "scimListUsers" => list(ask, Resource::User).await,
        "scimListGroups" => list(ask, Resource::Group).await,
        "scimSearch" => search(ask).await,
        "scimGetUser" => get_user(ask, id).await,
        "scimGetGroup" => get_group(ask, id).await,
        "scimCreateUser" => create_user(ask).await,
        "scimCreateGroup" => create_group(ask).await,
        "scimReplaceUser" | "scimPatchUser" => change_user(ask, id).await,
        "scimReplaceGroup" | "scimPatchGroup" => change_group(ask, id).await,
        "scimDeleteUser" => delete_user(ask, id).await,
        "scimDeleteGroup" => delete_group(ask, id).await,
        _ => Err(Problem::new(Code::NotFound)),
    };
    answered.map_err(in_its_words)
}

/// The protocol has one status for what is wrong with a value.
fn in_its_words(problem: Problem) -> Problem {
    if problem.code != Code::ValidationFailed {
        return problem;
    }
    let first = &problem.details["fields"][0];
    let text = |name: &str| first[name].as_str().unwrap_or_default();
    Problem::new(Code::InvalidValue).saying(format!("{}: {}", text("pointer"), text("message")))
}

impl From<Wrong> for Problem {
    fn from(wrong: Wrong) -> Problem {
        let code = match wrong.kind {
            Kind::InvalidFilter => Code::InvalidFilter,
            Kind::InvalidPath => Code::InvalidPath,
            Kind::InvalidSyntax => Code::MalformedJson,
            Kind::InvalidValue => Code::InvalidValue,
            Kind::NoTarget => Code::NoTarget,
            Kind::Mutability => Code::ReadOnlyAttribute,
        };
        Problem::new(code).saying(wrong.detail)
    }
}

// ---- discovery ----

fn everything(resources: Vec<Value>) -> Response {
    let count = resources.len();
    written(StatusCode::OK, &listed(count, 1, resources))
}

fn described(resources: Vec<Value>, id: &str) -> Result<Response, Problem> {
    let found = resources.into_iter().find(|resource| resource["id"] == id);
    found.map(|found| written(StatusCode::OK, &found)).ok_or_else(|| Problem::new(Code::NotFound))
}

fn listed(total: usize, start: usize, resources: Vec<Value>) -> Value {
    json!({
        "schemas": [LIST],
        "totalResults": total,
        "startIndex": start,
        "itemsPerPage": resources.len(),
        "Resources": resources,
    })
}

// ---- reading ----

fn parameter<'a>(ask: &'a Ask, name: &str) -> Option<&'a str> {
    ask.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// A whole number in the query; what is below `least` is `least`, as the protocol has it.
fn number(ask: &Ask, name: &str, least: usize, absent: usize) -> Result<usize, Problem> {
    let Some(text) = parameter(ask, name) else { return Ok(absent) };
    let number: i64 = text.parse().map_err(|_| Problem::parameter(name, "must be a whole number"))?;
    Ok(usize::try_from(number).unwrap_or(least).max(least))
}

fn shown(ask: &Ask, document: Document) -> Value {
    Value::Object(projected(document, parameter(ask, "attributes"), parameter(ask, "excludedAttributes")))
}

/// A group; its members, who may be very many, only where somebody wants to know.
fn group_document(people: &Organization, group: &Group, with_members: bool) -> Document {
    let members = with_members.then(|| people.members_of(group.id, None));
    group::document(group, members.into_iter().flatten())
}

/// Are the members of a group in what this request is answered with?
fn shows_members(ask: &Ask) -> bool {
    is_shown("members", parameter(ask, "attributes"), parameter(ask, "excludedAttributes"))
}

async fn list(ask: &Ask, resource: Resource) -> Result<Response, Problem> {
    let filter = parameter(ask, "filter").map(Filter::parse).transpose()?;
    let start = number(ask, "startIndex", 1, 1)?;
    let count = number(ask, "count", 0, schema::COUNT_DEFAULT)?.min(schema::COUNT_MAX);
    let people = people(ask).await?;
    let (total, found) = match resource {
        Resource::User => {
            let one = filter.as_ref().and_then(|filter| only_user(&people, filter));
            match one {
                Some(one) => page(one.into_iter(), sift(None, &user_document), user_document, start, count),
                None => {
                    page(people.users_after(None), sift(filter.as_ref(), &user_document), user_document, start, count)
                }
            }
        }
        Resource::Group => {
            let one = filter.as_ref().and_then(|filter| only_group(&people, filter));
            let document = |group: &Arc<Group>| group_document(&people, group, shows_members(ask));
            let judged = |group: &Arc<Group>| judged_group(&people, group, filter.as_ref());
            match one {
                Some(one) => page(one.into_iter(), sift(None, &judged), document, start, count),
                None => page(people.groups_after(None), sift(filter.as_ref(), &judged), document, start, count),
            }
        }
    };
    let found = found.into_iter().map(|document| shown(ask, document)).collect();
    Ok(written(StatusCode::OK, &listed(total, start, found)))
}

fn user_document(user: &Arc<User>) -> Document {
    user::document(user)
}

/// Whom a filter names, where it says no more than that: the question before each user that is made.
fn only_user<'a>(people: &'a Organization, filter: &Filter) -> Option<Option<&'a Arc<User>>> {
    if let Some(name) = filter.only_equals("userName") {
        return Some(people.user_named(name));
    }
    if let Some(external_id) = filter.only_equals("externalId") {
        return Some(people.user_of_external_id(external_id));
    }
    filter.only_equals("id").map(|id| people.user(id.parse().ok()?))
}

fn only_group<'a>(people: &'a Organization, filter: &Filter) -> Option<Option<&'a Arc<Group>>> {
    if let Some(name) = filter.only_equals("displayName") {
        return Some(people.group_named(name));
    }
    if let Some(external_id) = filter.only_equals("externalId") {
        return Some(people.group_of_external_id(external_id));
    }
    filter.only_equals("id").map(|id| people.group(id.parse().ok()?))
}

/// What a filter looks at of a group.
fn judged_group(people: &Organization, group: &Group, filter: Option<&Filter>) -> Document {
    group_document(people, group, filter.is_some_and(|filter| filter.names("members")))
}

/// Whether one passes, when there is a filter, judged by what it looks at.
fn sift<T>(filter: Option<&Filter>, judged: &impl Fn(&T) -> Document) -> Option<impl Fn(&T) -> bool> {
    filter.map(|filter| move |one: &T| filter.holds(&judged(one)))
}

/// How many pass, and the documents of one page of them.
fn page<'a, T: 'a>(
    all: impl Iterator<Item = &'a T>,
    passes: Option<impl Fn(&T) -> bool>,
    document: impl Fn(&T) -> Document,
    start: usize,
    count: usize,
) -> (usize, Vec<Document>) {
    let (mut total, mut found) = (0, Vec::new());
    for one in all {
        if passes.as_ref().is_none_or(|passes| passes(one)) {
            total += 1;
            if total >= start && found.len() < count {
                found.push(document(one));
            }
        }
    }
    (total, found)
}

/// Users first, then groups, if the caller may see those: a query with its parameters in the body.
async fn search(ask: &Ask) -> Result<Response, Problem> {
    let given = given(ask)?;
    let invalid = |name: &str| Problem::new(Code::InvalidValue).saying(format!("{name} is not of the right kind"));
    let number = |name: &str, least: usize, absent: usize| -> Result<usize, Problem> {
        let given = member(&given, name).filter(|value| !value.is_null());
        let Some(value) = given else { return Ok(absent) };
        let number = value.as_i64().ok_or_else(|| invalid(name))?;
        Ok(usize::try_from(number).unwrap_or(least).max(least))
    };
    let names = |name: &str| -> Result<Option<String>, Problem> {
        match member(&given, name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(names)) => {
                let names: Option<Vec<&str>> = names.iter().map(Value::as_str).collect();
                names.map(|names| Some(names.join(","))).ok_or_else(|| invalid(name))
            }
            Some(_) => Err(invalid(name)),
        }
    };
    let filter = match member(&given, "filter") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(Filter::parse(text)?),
        Some(_) => return Err(invalid("filter")),
    };
    let start = number("startIndex", 1, 1)?;
    let count = number("count", 0, schema::COUNT_DEFAULT)?.min(schema::COUNT_MAX);
    let (only, without) = (names("attributes")?, names("excludedAttributes")?);
    let people = people(ask).await?;
    let passes = sift(filter.as_ref(), &user_document);
    let (mut total, mut found) = page(people.users_after(None), passes, user_document, start, count);
    if sees_groups(ask).await? {
        let with_members = is_shown("members", only.as_deref(), without.as_deref());
        let document = |group: &Arc<Group>| group_document(&people, group, with_members);
        let judged = |group: &Arc<Group>| judged_group(&people, group, filter.as_ref());
        let (from, left) = (start.saturating_sub(total).max(1), count - found.len());
        let (more, groups) = page(people.groups_after(None), sift(filter.as_ref(), &judged), document, from, left);
        total += more;
        found.extend(groups);
    }
    let shown = |document| Value::Object(projected(document, only.as_deref(), without.as_deref()));
    Ok(written(StatusCode::OK, &listed(total, start, found.into_iter().map(shown).collect())))
}

/// May whoever asks list groups, by the tenant's policies as well?
async fn sees_groups(ask: &Ask) -> Result<bool, Problem> {
    let Some(mut caller) = ask.admitted.caller.clone() else { return Ok(false) };
    let wish = Wish { object: "groups", action: "read", id: None, source: ask.source };
    let judged = ask.api.gate.judge(&mut caller, &wish).await.map_err(|away| unauthenticated(&away))?;
    Ok(judged.allowed)
}

async fn get_user(ask: &Ask, text: &str) -> Result<Response, Problem> {
    let people = people(ask).await?;
    let user = people.user(id(text, Code::UserNotFound)?).ok_or_else(|| Problem::new(Code::UserNotFound))?;
    Ok(resource(ask, StatusCode::OK, Resource::User, user::document(user), user.version))
}

async fn get_group(ask: &Ask, text: &str) -> Result<Response, Problem> {
    let people = people(ask).await?;
    let group = people.group(id(text, Code::GroupNotFound)?).ok_or_else(|| Problem::new(Code::GroupNotFound))?;
    let document = group_document(&people, group, shows_members(ask));
    Ok(resource(ask, StatusCode::OK, Resource::Group, document, group.version))
}

// ---- changing ----

fn given(ask: &Ask) -> Result<Document, Problem> {
    body::read::<Document>(&ask.body).map_err(in_its_words)
}

/// The document as the request will have it.
fn changed(ask: &Ask, mut before: Document, of: Resource) -> Result<Document, Problem> {
    let given = given(ask)?;
    if ask.operation.id.starts_with("scimPatch") {
        patch::apply(&mut before, &given, of)?;
        return Ok(before);
    }
    Ok(kept(&given, of))
}

/// The version that a change is applied to, if it is one that the client has named.
fn pinned(expected: &Expected, version: i64) -> Result<Expected, Problem> {
    if expected.is(version) { Ok(Expected::OneOf(vec![version])) } else { Err(Problem::new(Code::PreconditionFailed)) }
}

async fn create_user(ask: &Ask) -> Result<Response, Problem> {
    let profile = user::profile(&kept(&given(ask)?, Resource::User), None)?;
    let id = UserId(clock::new_id());
    let change = CreateUser { id, profile, limits: ask.api.people };
    match ask.gives(change, |done| done.id.to_string()).await?? {
        Answer::Fresh(done) => {
            Ok(resource(ask, StatusCode::CREATED, Resource::User, user::document(&done), done.version))
        }
        Answer::Replayed(id) => get_user(ask, &id).await,
    }
}

async fn change_user(ask: &Ask, text: &str) -> Result<Response, Problem> {
    let expected = precondition::optional(ask)?;
    let id: UserId = id(text, Code::UserNotFound)?;
    for tries in 1.. {
        let people = people(ask).await?;
        let before = people.user(id).ok_or_else(|| Problem::new(Code::UserNotFound))?;
        let document = changed(ask, user::document(before), Resource::User)?;
        let edit = UserEdit::Replace(user::profile(&document, Some(&before.profile))?);
        let expected = pinned(&expected, before.version)?;
        let change = EditUser { id, edit, expected, limits: ask.api.people };
        match ask.gives(change, |done| done.id.to_string()).await? {
            Err(Declined::Refused(Refusal::Stale)) if tries < TRIES => {}
            Err(declined) => return Err(declined.into()),
            Ok(Answer::Fresh(done)) => {
                return Ok(resource(ask, StatusCode::OK, Resource::User, user::document(&done), done.version));
            }
            Ok(Answer::Replayed(id)) => return get_user(ask, &id).await,
        }
    }
    Err(Problem::new(Code::PreconditionFailed))
}

async fn create_group(ask: &Ask) -> Result<Response, Problem> {
    let document = kept(&given(ask)?, Resource::Group);
    let profile = group::profile(&document, None)?;
    let members = group::members(&document, &*people(ask).await?)?.into_iter().collect();
    let id = GroupId(clock::new_id());
    let change = ShapeGroup { id, profile, members, expected: None, limits: ask.api.people };
    let status = match ask.gives(change, |done| done.id.to_string()).await?? {
        Answer::Fresh(done) => return shaped(ask, StatusCode::CREATED, &done).await,
        Answer::Replayed(id) => id,
    };
    get_group(ask, &status).await
}

async fn change_group(ask: &Ask, text: &str) -> Result<Response, Problem> {
    let expected = precondition::optional(ask)?;
    let id: GroupId = id(text, Code::GroupNotFound)?;
    for tries in 1.. {
        let people = people(ask).await?;
        let before = people.group(id).ok_or_else(|| Problem::new(Code::GroupNotFound))?;
        let document = changed(ask, group_document(&people, before, true), Resource::Group)?;
        let profile = group::profile(&document, Some(&before.profile))?;
        let members = group::members(&document, &people)?.into_iter().collect();
        let expected = Some(pinned(&expected, before.version)?);
        let change = ShapeGroup { id, profile, members, expected, limits: ask.api.people };
        match ask.gives(change, |done| done.id.to_string()).await? {
            Err(Declined::Refused(Refusal::Stale)) if tries < TRIES => {}
            Err(declined) => return Err(declined.into()),
            Ok(Answer::Fresh(done)) => return shaped(ask, StatusCode::OK, &done).await,
            Ok(Answer::Replayed(id)) => return get_group(ask, &id).await,
        }
    }
    Err(Problem::new(Code::PreconditionFailed))
}

/// A group that was just written, with the members it has now.
async fn shaped(ask: &Ask, status: StatusCode, group: &Group) -> Result<Response, Problem> {
    let people = people(ask).await?;
    let group = people.group(group.id).map_or(group, |group| group);
    Ok(resource(ask, status, Resource::Group, group_document(&people, group, shows_members(ask)), group.version))
}

async fn delete_user(ask: &Ask, text: &str) -> Result<Response, Problem> {
    let expected = precondition::optional(ask)?;
    let change = DeleteUser { id: id(text, Code::UserNotFound)?, expected };
    ask.gives(change, untold).await??;
    Ok(Response::builder().status(StatusCode::NO_CONTENT).finish())
}

async fn delete_group(ask: &Ask, text: &str) -> Result<Response, Problem> {
    let expected = precondition::optional(ask)?;
    let change = DeleteGroup { id: id(text, Code::GroupNotFound)?, expected };
    ask.gives(change, untold).await??;
    Ok(Response::builder().status(StatusCode::NO_CONTENT).finish())
}

// ---- answers ----

fn written(status: StatusCode, body: &Value) -> Response {
    Response::builder().status(status).content_type(Form::Scim.media()).body(body.to_string())
}

fn resource(ask: &Ask, status: StatusCode, of: Resource, document: Document, version: i64) -> Response {
    let location = document.get("id").and_then(Value::as_str).map(|id| of.location(id));
    let mut response = written(status, &shown(ask, document));
    let headers = response.headers_mut();
    let location = location.and_then(|location| HeaderValue::from_str(&location).ok());
    if let Some(location) = location.filter(|_| status == StatusCode::CREATED) {
        headers.insert(header::LOCATION, location);
    }
    if let Ok(tag) = HeaderValue::from_str(&tag(version)) {
        headers.insert(header::ETAG, tag);
    }
    response
}
