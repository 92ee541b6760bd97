//! A tenant's own roles and policies as rows: read whole when the tenant is opened, written one change at a time.

use super::connection::Row;
use super::database::Connection;
use super::{StoreError, failure};
use crate::domain::ids::PolicyId;
use crate::domain::policy::books::PolicyBooks;
use crate::domain::policy::role::TenantRole;
use crate::domain::policy::statement::Policy;

const SELECT_ROLES: &str = "SELECT definition FROM policy_role ORDER BY name";
const SELECT_POLICIES: &str = "SELECT definition FROM policy ORDER BY id";
const SELECT_VERSION: &str = "SELECT version FROM policy_version WHERE id = 1";

const PUT_ROLE: &str = "INSERT INTO policy_role (name, version, definition, updated_at) VALUES ($1, $2, $3, $4)
    ON CONFLICT (name) DO UPDATE SET version = excluded.version, definition = excluded.definition,
    updated_at = excluded.updated_at";
const DELETE_ROLE: &str = "DELETE FROM policy_role WHERE name = $1";
const PUT_POLICY: &str = "INSERT INTO policy (id, version, definition, updated_at) VALUES ($1, $2, $3, $4)
    ON CONFLICT (id) DO UPDATE SET version = excluded.version, definition = excluded.definition,
    updated_at = excluded.updated_at";
const DELETE_POLICY: &str = "DELETE FROM policy WHERE id = $1";
const SET_VERSION: &str = "UPDATE policy_version SET version = $1 WHERE id = 1";

/// All of them.
///
/// # Errors
/// [`StoreError`]; a definition that cannot be read is not passed over, since it may be one that denies.
pub async fn load(connection: &mut Connection) -> Result<PolicyBooks, StoreError> {
    let version = match connection.fetch(SELECT_VERSION, &[]).await?.first() {
        Some(row) => row.int(0)?,
        None => return Err(failure::unreadable("the version of the policies")),
    };
    let roles = connection.fetch(SELECT_ROLES, &[]).await?;
    let roles: Vec<TenantRole> = roles.iter().map(definition).collect::<Result<_, _>>()?;
    let policies = connection.fetch(SELECT_POLICIES, &[]).await?;
    let policies: Vec<Policy> = policies.iter().map(definition).collect::<Result<_, _>>()?;
    Ok(PolicyBooks::stored(version, roles, policies))
}

fn definition<T: serde::de::DeserializeOwned>(row: &Row) -> Result<T, StoreError> {
    row.parsed(0, |text| serde_json::from_str(text).ok())
}

fn json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Unwritable(error.to_string()))
}

/// Writes a role over the one that has its name, and the version of all.
///
/// # Errors
/// [`StoreError`].
pub async fn put_role(connection: &mut Connection, role: &TenantRole, version: i64) -> Result<(), StoreError> {
    let row = [role.name.as_str().into(), role.version.into(), json(role)?.into(), role.updated_at.into()];
    connection.execute(PUT_ROLE, &row).await?;
    set_version(connection, version).await
}

/// # Errors
/// [`StoreError`].
pub async fn delete_role(connection: &mut Connection, name: &str, version: i64) -> Result<(), StoreError> {
    connection.execute(DELETE_ROLE, &[name.into()]).await?;
    set_version(connection, version).await
}

/// Writes a policy over the one that has its id, and the version of all.
///
/// # Errors
/// [`StoreError`].
pub async fn put_policy(connection: &mut Connection, policy: &Policy, version: i64) -> Result<(), StoreError> {
    let row = [policy.id.to_string().into(), policy.version.into(), json(policy)?.into(), policy.updated_at.into()];
    connection.execute(PUT_POLICY, &row).await?;
    set_version(connection, version).await
}

/// # Errors
/// [`StoreError`].
pub async fn delete_policy(connection: &mut Connection, id: PolicyId, version: i64) -> Result<(), StoreError> {
    connection.execute(DELETE_POLICY, &[id.to_string().into()]).await?;
    set_version(connection, version).await
}

async fn set_version(connection: &mut Connection, version: i64) -> Result<(), StoreError> {
    connection.execute(SET_VERSION, &[version.into()]).await.map(drop)
}
