//! Groups, and who is in them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{action_of, organization, record};
use crate::domain::books::Posting;
use crate::domain::ids::GroupId;
use crate::domain::organization::group::{Group, Member, Profile, ProfilePatch};
use crate::domain::organization::{Expected, Limits, Refusal};
use crate::domain::request::Request;
use crate::store::database::Connection;
use crate::store::{StoreError, organization as rows};
use crate::tenant::task::{Change, Halt};

/// A new group, without members.
#[derive(Debug)]
pub struct CreateGroup {
    pub id: GroupId,
    pub profile: Profile,
    pub limits: Limits,
}

impl Change for CreateGroup {
    type Done = Arc<Group>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<Group>, Halt<Refusal>> {
        let now = posting.now();
        let group = Group { id: self.id, profile: self.profile.clone(), version: 1, created_at: now, updated_at: now };
        let group = organization(posting).put_group(group, &self.limits).map_err(Halt::Refused)?;
        rows::insert_group(database, &group).await?;
        let payload = json!({ "active": group.profile.active });
        record(posting, request, "group.created", target(group.id), payload);
        Ok(group)
    }
}

/// What is to become of a group's profile.
#[derive(Debug, Clone)]
pub enum GroupEdit {
    Replace(Profile),
    Patch(ProfilePatch),
}

impl GroupEdit {
    /// The profile as it will be.
    pub(in crate::tenant) fn of(&self, profile: &Profile) -> Profile {
        match self {
            GroupEdit::Replace(new) => new.clone(),
            GroupEdit::Patch(patch) => profile.patched(patch),
        }
    }
}

/// A group with another profile. One that stays as it was is left alone.
#[derive(Debug)]
pub struct EditGroup {
    pub id: GroupId,
    pub edit: GroupEdit,
    pub expected: Expected,
    pub limits: Limits,
}

impl Change for EditGroup {
    type Done = Arc<Group>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<Group>, Halt<Refusal>> {
        let before = found(posting, self.id, &self.expected).map_err(Halt::Refused)?;
        let profile = self.edit.of(&before.profile);
        let changed = before.profile.changed(&profile);
        if changed.is_empty() {
            return Ok(before);
        }
        let group = Group { profile, ..next(&before, posting) };
        let group = organization(posting).put_group(group, &self.limits).map_err(Halt::Refused)?;
        rows::update_group(database, &group).await?;
        let action = action_of(&changed, group.profile.active, "group");
        let payload = json!({ "fields": changed, "version": group.version });
        record(posting, request, &action, target(group.id), payload);
        Ok(group)
    }
}

/// A group less, with its memberships and roles. Its members stay.
#[derive(Debug)]
pub struct DeleteGroup {
    pub id: GroupId,
    pub expected: Expected,
}

impl Change for DeleteGroup {
    type Done = Arc<Group>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<Group>, Halt<Refusal>> {
        found(posting, self.id, &self.expected).map_err(Halt::Refused)?;
        let group = organization(posting).remove_group(self.id).map_err(Halt::Refused)?;
        rows::delete_group(database, self.id).await?;
        record(posting, request, "group.deleted", target(self.id), json!({ "version": group.version }));
        Ok(group)
    }
}

/// Members more. Those who are in it already stay.
#[derive(Debug)]
pub struct AddMembers {
    pub group: GroupId,
    pub members: Vec<Member>,
    pub expected: Expected,
    pub limits: Limits,
}

impl Change for AddMembers {
    type Done = Arc<Group>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<Group>, Halt<Refusal>> {
        let before = found(posting, self.group, &self.expected).map_err(Halt::Refused)?;
        let joined = organization(posting).join(self.group, &self.members, &self.limits).map_err(Halt::Refused)?;
        if joined.is_empty() {
            return Ok(before);
        }
        rows::insert_members(database, self.group, &joined, posting.now()).await?;
        let payload = json!({ "members": joined.iter().map(named).collect::<Vec<_>>() });
        let noted = ("group.membersAdded", payload);
        let group = stepped(database, posting, request, &before, noted, &self.limits).await?;
        Ok(group)
    }
}

/// A member less.
#[derive(Debug)]
pub struct RemoveMember {
    pub group: GroupId,
    pub member: Member,
    pub expected: Expected,
    pub limits: Limits,
}

impl Change for RemoveMember {
    type Done = Arc<Group>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<Group>, Halt<Refusal>> {
        let before = found(posting, self.group, &self.expected).map_err(Halt::Refused)?;
        organization(posting).expel(self.group, self.member).map_err(Halt::Refused)?;
        rows::delete_member(database, self.group, self.member).await?;
        let payload = json!({ "members": [named(&self.member)] });
        let noted = ("group.memberRemoved", payload);
        let group = stepped(database, posting, request, &before, noted, &self.limits).await?;
        Ok(group)
    }
}

fn target(group: GroupId) -> String {
    format!("group:{group}")
}

pub(super) fn named(member: &Member) -> Value {
    json!({ "type": member.kind(), "id": member.id() })
}

/// The group, if it is the one that the caller has seen.
fn found(posting: &Posting, id: GroupId, expected: &Expected) -> Result<Arc<Group>, Refusal> {
    let group = posting.books.organization.group(id).ok_or(Refusal::UnknownGroup)?;
    if expected.is(group.version) { Ok(group.clone()) } else { Err(Refusal::Stale) }
}

/// The same group at its next version.
fn next(group: &Group, posting: &Posting) -> Group {
    Group { version: group.version + 1, updated_at: posting.now(), ..group.clone() }
}

/// Counts a change of a group's members as a change of the group, and records it.
async fn stepped(
    database: &mut Connection,
    posting: &mut Posting,
    request: &Request,
    before: &Group,
    (action, payload): (&str, Value),
    limits: &Limits,
) -> Result<Arc<Group>, StoreError> {
    let after = next(before, posting);
    let group = match organization(posting).put_group(after, limits) {
        Ok(group) => group,
        // It differs from what was there by its version alone, so this cannot be; nothing may be left half done.
        Err(refusal) => return Err(StoreError::Unwritable(format!("a group that was there is refused: {refusal:?}"))),
    };
    rows::update_group(database, &group).await?;
    record(posting, request, action, target(group.id), payload);
    Ok(group)
}
