//! `/v1/groups`: groups of a tenant's people, and who is in them.

use std::sync::Arc;

use poem_openapi::param::{Header, Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::authorize::Ask;
use super::body::{Strict, nullable, present};
use super::document::Tag;
use super::people::{
    attributes, attributes_patch, home, id, id_parameter, page, people, text_parameter, truth_parameter,
};
use super::precondition;
use super::problem::{Code, FieldProblem, Problem};
use super::reply::Reply;
use super::view::{JsonObject, instant, page_limit};
use crate::clock;
use crate::domain::ids::{GroupId, UserId};
use crate::domain::organization::group::{Group, Member, Profile, ProfilePatch};
use crate::domain::organization::{Flaw, Organization};
use crate::domain::request::Answer;
use crate::json::objects;
use crate::tenant::organization::{AddMembers, CreateGroup, DeleteGroup, EditGroup, GroupEdit, RemoveMember};

/// Members that one request may add.
const MEMBERS_MAX: usize = 1_000;

pub(super) struct Groups;

#[OpenApi(tag = "Tag::Organization")]
impl Groups {
    /// Add a group
    ///
    /// Without members. The answer's ETag is the group's version.
    #[oai(path = "/v1/groups", method = "post", operation_id = "createGroup")]
    async fn create(
        &self,
        ask: Ask,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<GroupInput>,
    ) -> Result<Reply<GroupView, 201>, Problem> {
        let profile = body.0.profile(true)?;
        let id = GroupId(clock::new_id());
        let change = CreateGroup { id, profile, limits: ask.api.people };
        Ok(reply(home(&ask).await?.change(change, ask.change(), |done| render(done)).await??))
    }

    /// Page through the groups, oldest first
    ///
    /// Filters apply all at once.
    #[oai(path = "/v1/groups", method = "get", operation_id = "listGroups")]
    #[allow(clippy::too_many_arguments, reason = "each is a documented parameter")]
    async fn list(
        &self,
        ask: Ask,
        /// The one with this name, in whatever case.
        #[oai(name = "displayName")]
        display_name: Query<Option<String>>,
        /// The one that an identity provider calls so.
        #[oai(name = "externalId")]
        external_id: Query<Option<String>>,
        /// `true` or `false`.
        active: Query<Option<String>>,
        /// Only groups that this user is in itself.
        user: Query<Option<String>>,
        /// Only those whose name begins like this, in whatever case.
        prefix: Query<Option<String>>,
        /// Items of the page, from 1 to 500; 50 when absent.
        limit: Query<Option<String>>,
        /// `nextCursor` of the page before.
        cursor: Query<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<GroupPage>, Problem> {
        let filter = Filter {
            name: text_parameter("displayName", display_name.0.as_deref())?,
            external_id: text_parameter("externalId", external_id.0.as_deref())?,
            active: truth_parameter("active", active.0.as_deref())?,
            user: id_parameter("user", user.0.as_deref())?,
            prefix: text_parameter("prefix", prefix.0.as_deref())?,
        };
        let limit = page_limit(limit.0.as_deref())?;
        let after = ask.open(cursor.0.as_deref(), |text| text.parse().ok())?;
        let people = people(&ask).await?;
        let (found, more) = filter.page(&people, after, limit);
        let next = found.last().filter(|_| more).map(|group| ask.seal(&group.id.to_string()));
        let items = found.into_iter().map(|group| GroupView::of(group)).collect();
        Ok(Reply::new(GroupPage { items, next_cursor: next }))
    }

    /// Read a group
    ///
    /// The answer's ETag is what `If-Match` of a change takes.
    #[oai(path = "/v1/groups/:id", method = "get", operation_id = "getGroup")]
    async fn get(
        &self,
        ask: Ask,
        /// The group's id.
        #[oai(name = "id")]
        group: Path<String>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<GroupView>, Problem> {
        let people = people(&ask).await?;
        let group = found(&people, &group)?;
        Ok(Reply::new(GroupView::of(group)).tagged(group.version))
    }

    /// Replace a group's profile
    ///
    /// Its members stay. `active` must be said, so that no group comes back by being forgotten.
    #[oai(path = "/v1/groups/:id", method = "put", operation_id = "replaceGroup")]
    async fn replace(
        &self,
        ask: Ask,
        /// The group's id.
        #[oai(name = "id")]
        group: Path<String>,
        /// The ETag that was read, or `*`.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<GroupInput>,
    ) -> Result<Reply<GroupView>, Problem> {
        let edit = GroupEdit::Replace(body.0.profile(false)?);
        change(&ask, &group, edit).await
    }

    /// Change some of a group's profile
    ///
    /// A merge patch (RFC 7396). A group that is not active gives its members no roles, passes on none of those above it,
    /// and gateways are told to deny what is done in its name, from the next request on.
    #[oai(path = "/v1/groups/:id", method = "patch", operation_id = "patchGroup")]
    async fn patch(
        &self,
        ask: Ask,
        /// The group's id.
        #[oai(name = "id")]
        group: Path<String>,
        /// The ETag that was read, or `*`.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<GroupPatch>,
    ) -> Result<Reply<GroupView>, Problem> {
        let edit = GroupEdit::Patch(body.0.patch()?);
        change(&ask, &group, edit).await
    }

    /// Delete a group
    ///
    /// With its memberships and roles; its members stay. Answers the group as it was.
    #[oai(path = "/v1/groups/:id", method = "delete", operation_id = "deleteGroup")]
    async fn delete(
        &self,
        ask: Ask,
        /// The group's id.
        #[oai(name = "id")]
        group: Path<String>,
        /// The ETag that was read, or `*`.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<GroupView>, Problem> {
        let expected = precondition::required(&ask)?;
        let change = DeleteGroup { id: id(&group, Code::GroupNotFound)?, expected };
        let answer = ask.gives(change, |done| render(done)).await??;
        Ok(Reply::of(answer, |done| GroupView::of(&done)))
    }

    /// Page through a group's members
    ///
    /// Those who are in it themselves: users first.
    #[oai(path = "/v1/groups/:id/members", method = "get", operation_id = "listGroupMembers")]
    async fn members(
        &self,
        ask: Ask,
        /// The group's id.
        #[oai(name = "id")]
        group: Path<String>,
        /// Items of the page, from 1 to 500; 50 when absent.
        limit: Query<Option<String>>,
        /// `nextCursor` of the page before.
        cursor: Query<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<MemberPage>, Problem> {
        let limit = page_limit(limit.0.as_deref())?;
        let after = ask.open(cursor.0.as_deref(), |text| {
            let (kind, id) = text.split_once('|')?;
            Member::from_parts(kind, id)
        })?;
        let people = people(&ask).await?;
        let group = found(&people, &group)?;
        let (members, more) = page(people.members_of(group.id, after), limit);
        let next = members.last().filter(|_| more);
        let next_cursor = next.map(|member| ask.seal(&format!("{}|{}", member.kind(), member.id())));
        let items = members.into_iter().map(MemberView::of).collect();
        Ok(Reply::new(MemberPage { items, next_cursor }).tagged(group.version))
    }

    /// Add members to a group
    ///
    /// Users and groups, all or none; those who are in it already stay. Groups are nested at most 8 deep and never in a
    /// circle. Answers the group, whose version has grown. `If-Match` may be given. What the group gives its members, by
    /// its roles, by policies and by those of the groups that it is in, the caller must be allowed itself, unless it may
    /// `permissions:grant`.
    #[oai(path = "/v1/groups/:id/members", method = "post", operation_id = "addGroupMembers")]
    async fn add(
        &self,
        ask: Ask,
        /// The group's id.
        #[oai(name = "id")]
        group: Path<String>,
        /// The ETag that was read.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<MembersInput>,
    ) -> Result<Reply<GroupView>, Problem> {
        let expected = precondition::optional(&ask)?;
        let members = body.0.checked()?;
        let group = id(&group, Code::GroupNotFound)?;
        let change = AddMembers { group, members, expected, limits: ask.api.people };
        Ok(reply(ask.gives(change, |done| render(done)).await??))
    }

    /// Take a member out of a group
    ///
    /// Answers the group, whose version has grown. `If-Match` may be given.
    #[oai(path = "/v1/groups/:id/members/:memberId", method = "delete", operation_id = "removeGroupMember")]
    async fn remove(
        &self,
        ask: Ask,
        /// The group's id.
        #[oai(name = "id")]
        group: Path<String>,
        /// The id of the user or group that is in it.
        #[oai(name = "memberId")]
        member: Path<String>,
        /// The ETag that was read.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<GroupView>, Problem> {
        let expected = precondition::optional(&ask)?;
        let handle = home(&ask).await?;
        let group = id(&group, Code::GroupNotFound)?;
        let user = Member::User(id(&member, Code::MemberNotFound)?);
        // No id is both a user's and a group's.
        let is_user = handle.organization()?.is_member(group, user);
        let member = if is_user { user } else { Member::Group(id(&member, Code::MemberNotFound)?) };
        let change = RemoveMember { group, member, expected, limits: ask.api.people };
        Ok(reply(ask.gives(change, |done| render(done)).await??))
    }
}

async fn change(ask: &Ask, group: &str, edit: GroupEdit) -> Result<Reply<GroupView>, Problem> {
    let expected = precondition::required(ask)?;
    let id = id(group, Code::GroupNotFound)?;
    let change = EditGroup { id, edit, expected, limits: ask.api.people };
    Ok(reply(ask.gives(change, |done| render(done)).await??))
}

fn reply<const STATUS: u16>(answer: Answer<Arc<Group>>) -> Reply<GroupView, STATUS> {
    let version = match &answer {
        Answer::Fresh(done) => Some(done.version),
        Answer::Replayed(_) => None,
    };
    let reply = Reply::of(answer, |done| GroupView::of(&done));
    match version {
        Some(version) => reply.tagged(version),
        None => reply,
    }
}

fn render(group: &Group) -> String {
    serde_json::to_string(&GroupView::of(group)).unwrap_or_default()
}

fn found<'a>(people: &'a Organization, text: &str) -> Result<&'a Arc<Group>, Problem> {
    people.group(id(text, Code::GroupNotFound)?).ok_or_else(|| Problem::new(Code::GroupNotFound))
}

struct Filter<'a> {
    name: Option<&'a str>,
    external_id: Option<&'a str>,
    active: Option<bool>,
    user: Option<UserId>,
    prefix: Option<&'a str>,
}

impl Filter<'_> {
    /// Looks through the fewest that may pass.
    fn page<'p>(&self, people: &'p Organization, after: Option<GroupId>, limit: usize) -> (Vec<&'p Arc<Group>>, bool) {
        let is_after = |id: &GroupId| after.is_none_or(|after| *id > after);
        let passes = |group: &&Arc<Group>| is_after(&group.id) && self.passes(people, group);
        if let Some(name) = self.name {
            return page(people.group_named(name).into_iter().filter(passes), limit);
        }
        if let Some(external_id) = self.external_id {
            return page(people.group_of_external_id(external_id).into_iter().filter(passes), limit);
        }
        if let Some(user) = self.user {
            let groups = people.groups_of(Member::User(user)).filter_map(|group| people.group(group));
            return page(groups.filter(passes), limit);
        }
        if let Some(prefix) = self.prefix {
            let ids = people.groups_with_prefix(prefix);
            return page(ids.iter().filter_map(|id| people.group(*id)).filter(passes), limit);
        }
        page(people.groups_after(after).filter(passes), limit)
    }

    fn passes(&self, people: &Organization, group: &Arc<Group>) -> bool {
        let is_named = |name: &str| people.group_named(name).is_some_and(|named| named.id == group.id);
        let begins = |prefix: &str| group.profile.display_name.to_lowercase().starts_with(&prefix.to_lowercase());
        self.name.is_none_or(is_named)
            && self.external_id.is_none_or(|id| group.profile.external_id.as_deref() == Some(id))
            && self.active.is_none_or(|active| group.profile.active == active)
            && self.user.is_none_or(|user| people.is_member(group.id, Member::User(user)))
            && self.prefix.is_none_or(begins)
    }
}

/// Everything about a group that may be set.
#[derive(Debug, Default, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct GroupInput {
    /// Unique in the tenant, in whatever case: 1 to 256 bytes.
    display_name: String,
    /// What an identity provider calls it; unique in the tenant.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    external_id: Option<String>,
    /// Up to 1000 bytes.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    description: Option<String>,
    /// At most 50: texts of up to 256 bytes, whole numbers, booleans, or lists of up to 50 of these.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    attributes: Option<JsonObject>,
    /// `true` when absent from a new group; required when a group is replaced.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    active: Option<bool>,
}

impl GroupInput {
    fn profile(self, is_new: bool) -> Result<Profile, Problem> {
        let mut flaws = Vec::new();
        if self.active.is_none() && !is_new {
            flaws.push(Flaw::new("/active", "is required"));
        }
        let profile = Profile {
            attributes: attributes(self.attributes.as_ref(), &mut flaws),
            display_name: self.display_name,
            external_id: self.external_id,
            description: self.description,
            active: self.active.unwrap_or(true),
        };
        flaws.extend(profile.flaws());
        if flaws.is_empty() { Ok(profile) } else { Err(Problem::flaws(flaws)) }
    }
}

/// What to change of a group: absent fields stay, `null` takes away.
#[derive(Debug, Default, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct GroupPatch {
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    display_name: Option<String>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    external_id: Option<Option<String>>,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    description: Option<Option<String>>,
    /// Merged by name; an attribute that is `null` is taken away.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    attributes: Option<Option<JsonObject>>,
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    active: Option<bool>,
}

impl GroupPatch {
    fn patch(self) -> Result<ProfilePatch, Problem> {
        let mut flaws = Vec::new();
        let patch = ProfilePatch {
            attributes: attributes_patch(self.attributes.as_ref(), &mut flaws),
            display_name: self.display_name,
            external_id: self.external_id,
            description: self.description,
            active: self.active,
        };
        if flaws.is_empty() { Ok(patch) } else { Err(Problem::flaws(flaws)) }
    }
}

/// Somebody who is in a group.
#[derive(Debug, Clone, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "Member", rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct MemberView {
    /// `user` or `group`.
    #[serde(rename = "type")]
    #[oai(rename = "type")]
    kind: String,
    id: String,
}

impl MemberView {
    fn of(member: Member) -> MemberView {
        MemberView { kind: member.kind().to_owned(), id: member.id() }
    }
}

/// Who is to be in a group.
#[derive(Debug, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct MembersInput {
    /// 1 to 1000.
    #[serde(deserialize_with = "objects")]
    members: Vec<MemberView>,
}

impl MembersInput {
    fn checked(self) -> Result<Vec<Member>, Problem> {
        if !(1..=MEMBERS_MAX).contains(&self.members.len()) {
            return Err(Problem::field("/members", format!("must be 1 to {MEMBERS_MAX}")));
        }
        let mut problems = Vec::new();
        let mut members = Vec::with_capacity(self.members.len());
        for (at, view) in self.members.iter().enumerate() {
            match Member::from_parts(&view.kind, &view.id) {
                Some(member) => members.push(member),
                None => {
                    let is_kind = ["user", "group"].contains(&view.kind.as_str());
                    let (field, message) = if is_kind {
                        ("id", "not a UUID in its hyphenated form")
                    } else {
                        ("type", "must be user or group")
                    };
                    let pointer = format!("/members/{at}/{field}");
                    problems.push(FieldProblem { pointer, message: message.into() });
                }
            }
        }
        if problems.is_empty() { Ok(members) } else { Err(Problem::fields(problems)) }
    }
}

/// A page of members.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct MemberPage {
    items: Vec<MemberView>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

/// A group.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "Group", rename_all = "camelCase", example)]
pub(super) struct GroupView {
    id: String,
    display_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    external_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    description: Option<String>,
    attributes: JsonObject,
    active: bool,
    /// Its ETag, between quotation marks; grows when its members change, too.
    version: i64,
    created_at: String,
    updated_at: String,
}

impl GroupView {
    fn of(group: &Group) -> GroupView {
        let Group { id, profile, version, created_at, updated_at } = group;
        GroupView {
            id: id.to_string(),
            display_name: profile.display_name.clone(),
            external_id: profile.external_id.clone(),
            description: profile.description.clone(),
            attributes: JsonObject(profile.attributes.object()),
            active: profile.active,
            version: *version,
            created_at: instant(*created_at),
            updated_at: instant(*updated_at),
        }
    }
}

/// A page of groups.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct GroupPage {
    items: Vec<GroupView>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

impl Example for GroupInput {
    fn example() -> GroupInput {
        let description = Some("Everybody who trains models".into());
        GroupInput { display_name: "Research".into(), description, ..GroupInput::default() }
    }
}

impl Example for GroupPatch {
    fn example() -> GroupPatch {
        GroupPatch { active: Some(false), ..GroupPatch::default() }
    }
}

impl Example for MembersInput {
    fn example() -> MembersInput {
        let id = "0199a8b2-5c00-7abc-8def-0123456789ab".into();
        MembersInput { members: vec![MemberView { kind: "user".into(), id }] }
    }
}

impl Example for GroupView {
    fn example() -> GroupView {
        let input = GroupInput::example();
        GroupView {
            id: "0199a8b2-5c00-7abc-8def-0123456789ac".into(),
            display_name: input.display_name,
            external_id: None,
            description: input.description,
            attributes: JsonObject::default(),
            active: true,
            version: 1,
            created_at: "2026-11-20T15:37:12.345Z".into(),
            updated_at: "2026-11-20T15:37:12.345Z".into(),
        }
    }
}
