//! A tenant's people as rows: read whole when the tenant is opened, written one change at a time.

use super::connection::{Row, Value};
use super::database::Connection;
use super::{StoreError, failure};
use crate::domain::ids::{GroupId, RoleAssignmentId, UserId};
use crate::domain::organization::attributes::Attributes;
use crate::domain::organization::group::{self, Group, Member};
use crate::domain::organization::role::{Holder, RoleAssignment};
use crate::domain::organization::user::{self, IssuedSubject, User};
use crate::domain::organization::{Limits, Organization, Refusal, folded};
use crate::domain::time::Timestamp;

const SELECT_USERS: &str = "SELECT id, user_name, display_name, given_name, family_name, external_id, emails,
    attributes, active, version, created_at, updated_at FROM organization_user ORDER BY id";
const SELECT_SUBJECTS: &str = "SELECT user_id, issuer, subject FROM organization_subject ORDER BY user_id, ordinal";
const SELECT_GROUPS: &str =
    "SELECT id, display_name, external_id, description, attributes, active, version, created_at,
    updated_at FROM organization_group ORDER BY id";
const SELECT_MEMBERS: &str = "SELECT group_id, member_kind, member_id FROM organization_member";
const SELECT_ASSIGNMENTS: &str = "SELECT id, role, holder_kind, holder_id, created_at FROM role_assignment ORDER BY id";

const INSERT_USER: &str =
    "INSERT INTO organization_user (id, user_name, name_key, display_name, given_name, family_name,
    external_id, emails, attributes, active, version, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)";
const UPDATE_USER: &str = "UPDATE organization_user SET user_name = $2, name_key = $3, display_name = $4,
    given_name = $5, family_name = $6, external_id = $7, emails = $8, attributes = $9, active = $10, version = $11,
    created_at = $12, updated_at = $13 WHERE id = $1";
const DELETE_USER: &str = "DELETE FROM organization_user WHERE id = $1";
const INSERT_SUBJECT: &str =
    "INSERT INTO organization_subject (issuer, subject, user_id, ordinal) VALUES ($1, $2, $3, $4)";
const DELETE_SUBJECTS: &str = "DELETE FROM organization_subject WHERE user_id = $1";

const INSERT_GROUP: &str = "INSERT INTO organization_group (id, display_name, name_key, external_id, description,
    attributes, active, version, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
const UPDATE_GROUP: &str = "UPDATE organization_group SET display_name = $2, name_key = $3, external_id = $4,
    description = $5, attributes = $6, active = $7, version = $8, created_at = $9, updated_at = $10 WHERE id = $1";
const DELETE_GROUP: &str = "DELETE FROM organization_group WHERE id = $1";

const INSERT_MEMBER: &str =
    "INSERT INTO organization_member (group_id, member_kind, member_id, added_at) VALUES ($1, $2, $3, $4)";
const DELETE_MEMBER: &str =
    "DELETE FROM organization_member WHERE group_id = $1 AND member_kind = $2 AND member_id = $3";
const DELETE_MEMBERS_OF: &str = "DELETE FROM organization_member WHERE group_id = $1";
const DELETE_MEMBERSHIPS: &str = "DELETE FROM organization_member WHERE member_kind = $1 AND member_id = $2";

const INSERT_ASSIGNMENT: &str =
    "INSERT INTO role_assignment (id, role, holder_kind, holder_id, created_at) VALUES ($1, $2, $3, $4, $5)";
const DELETE_ASSIGNMENT: &str = "DELETE FROM role_assignment WHERE id = $1";
const DELETE_ASSIGNMENTS_OF: &str = "DELETE FROM role_assignment WHERE holder_kind = $1 AND holder_id = $2";

/// What is stored was judged when it was written; a limit that was lowered since does not lose anybody.
const UNLIMITED: Limits =
    Limits { users: usize::MAX, groups: usize::MAX, members: usize::MAX, role_assignments: usize::MAX };

/// Everybody.
///
/// # Errors
/// [`StoreError::Untrusted`] when rows contradict each other.
pub(super) async fn load(connection: &mut Connection) -> Result<Organization, StoreError> {
    let mut organization = Organization::default();
    let subjects = connection.fetch(SELECT_SUBJECTS, &[]).await?;
    let mut subjects = subjects.iter().map(subject_at).peekable();
    for row in connection.fetch(SELECT_USERS, &[]).await? {
        let mut user = user_at(&row)?;
        // Both come in the order of users' ids.
        while let Some(next) = subjects.next_if(|next| next.as_ref().map_or(true, |(owner, _)| *owner == user.id)) {
            user.profile.subjects.push(next?.1);
        }
        organization.put_user(user, &UNLIMITED).map_err(contradiction)?;
    }
    for row in connection.fetch(SELECT_GROUPS, &[]).await? {
        organization.put_group(group_at(&row)?, &UNLIMITED).map_err(contradiction)?;
    }
    for row in connection.fetch(SELECT_MEMBERS, &[]).await? {
        let id = row.text(2)?;
        let group = row.parsed(0, |text| text.parse::<GroupId>().ok())?;
        let member = row.parsed(1, |kind| Member::from_parts(kind, &id))?;
        organization.join(group, &[member], &UNLIMITED).map_err(contradiction)?;
    }
    for row in connection.fetch(SELECT_ASSIGNMENTS, &[]).await? {
        organization.assign(assignment_at(&row)?, &UNLIMITED).map_err(contradiction)?;
    }
    Ok(organization)
}

fn contradiction(refusal: Refusal) -> StoreError {
    failure::unreadable(&format!("the organization: {refusal:?}"))
}

fn user_at(row: &Row) -> Result<User, StoreError> {
    let profile = user::Profile {
        user_name: row.text(1)?,
        display_name: row.text(2)?,
        given_name: row.optional_text(3)?,
        family_name: row.optional_text(4)?,
        external_id: row.optional_text(5)?,
        emails: row.parsed(6, |text| serde_json::from_str(text).ok())?,
        subjects: Vec::new(),
        attributes: row.parsed(7, read_attributes)?,
        active: row.int(8)? == 1,
    };
    Ok(User {
        id: row.parsed(0, |text| text.parse().ok())?,
        profile,
        version: row.int(9)?,
        created_at: Timestamp(row.int(10)?),
        updated_at: Timestamp(row.int(11)?),
    })
}

fn subject_at(row: &Row) -> Result<(UserId, IssuedSubject), StoreError> {
    let owner = row.parsed(0, |text| text.parse().ok())?;
    Ok((owner, IssuedSubject { issuer: row.text(1)?.into(), subject: row.text(2)?.into() }))
}

fn group_at(row: &Row) -> Result<Group, StoreError> {
    let profile = group::Profile {
        display_name: row.text(1)?,
        external_id: row.optional_text(2)?,
        description: row.optional_text(3)?,
        attributes: row.parsed(4, read_attributes)?,
        active: row.int(5)? == 1,
    };
    Ok(Group {
        id: row.parsed(0, |text| text.parse().ok())?,
        profile,
        version: row.int(6)?,
        created_at: Timestamp(row.int(7)?),
        updated_at: Timestamp(row.int(8)?),
    })
}

fn assignment_at(row: &Row) -> Result<RoleAssignment, StoreError> {
    let holder = row.text(3)?;
    Ok(RoleAssignment {
        id: row.parsed(0, |text| text.parse().ok())?,
        role: row.text(1)?,
        holder: row.parsed(2, |kind| Holder::from_parts(kind, &holder))?,
        created_at: Timestamp(row.int(4)?),
    })
}

fn read_attributes(text: &str) -> Option<Attributes> {
    serde_json::from_str(text).ok()
}

fn json(value: &impl serde::Serialize) -> Result<Value, StoreError> {
    let text = serde_json::to_string(value).map_err(|error| StoreError::Unwritable(error.to_string()))?;
    Ok(text.into())
}

fn optional(text: Option<&String>) -> Value {
    text.map_or(Value::NullText, |text| text.clone().into())
}

fn user_values(user: &User) -> Result<[Value; 13], StoreError> {
    let profile = &user.profile;
    Ok([
        user.id.to_string().into(),
        profile.user_name.clone().into(),
        folded(&profile.user_name).as_ref().into(),
        profile.display_name.clone().into(),
        optional(profile.given_name.as_ref()),
        optional(profile.family_name.as_ref()),
        optional(profile.external_id.as_ref()),
        json(&profile.emails)?,
        json(&profile.attributes)?,
        i64::from(profile.active).into(),
        user.version.into(),
        user.created_at.into(),
        user.updated_at.into(),
    ])
}

/// # Errors
/// [`StoreError`].
pub async fn insert_user(connection: &mut Connection, user: &User) -> Result<(), StoreError> {
    connection.execute(INSERT_USER, &user_values(user)?).await?;
    insert_subjects(connection, user).await
}

/// # Errors
/// [`StoreError`].
pub async fn update_user(connection: &mut Connection, user: &User) -> Result<(), StoreError> {
    connection.execute(UPDATE_USER, &user_values(user)?).await?;
    connection.execute(DELETE_SUBJECTS, &[user.id.to_string().into()]).await?;
    insert_subjects(connection, user).await
}

async fn insert_subjects(connection: &mut Connection, user: &User) -> Result<(), StoreError> {
    for (ordinal, one) in (0_i64..).zip(&user.profile.subjects) {
        let values =
            [one.issuer.as_ref().into(), one.subject.as_ref().into(), user.id.to_string().into(), ordinal.into()];
        connection.execute(INSERT_SUBJECT, &values).await?;
    }
    Ok(())
}

/// With its subjects, memberships and roles.
///
/// # Errors
/// [`StoreError`].
pub async fn delete_user(connection: &mut Connection, id: UserId) -> Result<(), StoreError> {
    connection.execute(DELETE_SUBJECTS, &[id.to_string().into()]).await?;
    forget(connection, &Member::User(id), &Holder::User(id)).await?;
    connection.execute(DELETE_USER, &[id.to_string().into()]).await?;
    Ok(())
}

async fn forget(connection: &mut Connection, member: &Member, holder: &Holder) -> Result<(), StoreError> {
    connection.execute(DELETE_MEMBERSHIPS, &[member.kind().into(), member.id().into()]).await?;
    connection.execute(DELETE_ASSIGNMENTS_OF, &[holder.kind().into(), holder.id().into()]).await?;
    Ok(())
}

fn group_values(group: &Group) -> Result<[Value; 10], StoreError> {
    let profile = &group.profile;
    Ok([
        group.id.to_string().into(),
        profile.display_name.clone().into(),
        folded(&profile.display_name).as_ref().into(),
        optional(profile.external_id.as_ref()),
        optional(profile.description.as_ref()),
        json(&profile.attributes)?,
        i64::from(profile.active).into(),
        group.version.into(),
        group.created_at.into(),
        group.updated_at.into(),
    ])
}

/// # Errors
/// [`StoreError`].
pub async fn insert_group(connection: &mut Connection, group: &Group) -> Result<(), StoreError> {
    connection.execute(INSERT_GROUP, &group_values(group)?).await.map(drop)
}

/// # Errors
/// [`StoreError`].
pub async fn update_group(connection: &mut Connection, group: &Group) -> Result<(), StoreError> {
    connection.execute(UPDATE_GROUP, &group_values(group)?).await.map(drop)
}

/// With its members, memberships and roles.
///
/// # Errors
/// [`StoreError`].
pub async fn delete_group(connection: &mut Connection, id: GroupId) -> Result<(), StoreError> {
    connection.execute(DELETE_MEMBERS_OF, &[id.to_string().into()]).await?;
    forget(connection, &Member::Group(id), &Holder::Group(id)).await?;
    connection.execute(DELETE_GROUP, &[id.to_string().into()]).await?;
    Ok(())
}

/// # Errors
/// [`StoreError`].
pub async fn insert_members(
    connection: &mut Connection,
    group: GroupId,
    members: &[Member],
    now: Timestamp,
) -> Result<(), StoreError> {
    for member in members {
        let values = [group.to_string().into(), member.kind().into(), member.id().into(), now.into()];
        connection.execute(INSERT_MEMBER, &values).await?;
    }
    Ok(())
}

/// # Errors
/// [`StoreError`].
pub async fn delete_member(connection: &mut Connection, group: GroupId, member: Member) -> Result<(), StoreError> {
    let values = [group.to_string().into(), member.kind().into(), member.id().into()];
    connection.execute(DELETE_MEMBER, &values).await.map(drop)
}

/// # Errors
/// [`StoreError`].
pub async fn insert_assignment(connection: &mut Connection, assignment: &RoleAssignment) -> Result<(), StoreError> {
    let RoleAssignment { id, role, holder, created_at } = assignment;
    let values =
        [id.to_string().into(), role.clone().into(), holder.kind().into(), holder.id().into(), (*created_at).into()];
    connection.execute(INSERT_ASSIGNMENT, &values).await.map(drop)
}

/// # Errors
/// [`StoreError`].
pub async fn delete_assignment(connection: &mut Connection, id: RoleAssignmentId) -> Result<(), StoreError> {
    connection.execute(DELETE_ASSIGNMENT, &[id.to_string().into()]).await.map(drop)
}
