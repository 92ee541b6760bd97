//! Who administers the platform, in the control database.

use super::StoreError;
use super::database::{Connection, Row};
use super::news::{self, Kind};
use crate::domain::ids::PlatformAdminId;
use crate::domain::platform_admin::PlatformAdmin;
use crate::domain::time::Timestamp;

const SELECT: &str = "SELECT id, issuer, subject, name, created_at FROM platform_admin ORDER BY id";
const SELECT_ONE: &str = "SELECT id, issuer, subject, name, created_at FROM platform_admin WHERE id = $1";
const INSERT: &str = "INSERT INTO platform_admin (id, issuer, subject, name, created_at) VALUES ($1, $2, $3, $4, $5)";
const DELETE: &str = "DELETE FROM platform_admin WHERE id = $1";

/// All of them.
///
/// # Errors
/// [`StoreError`].
pub async fn all(connection: &mut Connection) -> Result<Vec<PlatformAdmin>, StoreError> {
    connection.fetch(SELECT, &[]).await?.iter().map(admin_at).collect()
}

/// One of them.
///
/// # Errors
/// [`StoreError`].
pub async fn one(connection: &mut Connection, id: &str) -> Result<Option<PlatformAdmin>, StoreError> {
    connection.fetch_one_optional(SELECT_ONE, &[id.into()]).await?.map(|row| admin_at(&row)).transpose()
}

/// # Errors
/// [`StoreError`].
pub async fn insert(connection: &mut Connection, admin: &PlatformAdmin) -> Result<(), StoreError> {
    let PlatformAdmin { id, issuer, subject, name, created_at } = admin;
    let values = [
        id.to_string().into(),
        issuer.clone().into(),
        subject.clone().into(),
        name.clone().into(),
        (*created_at).into(),
    ];
    connection.execute(INSERT, &values).await?;
    news::note(connection, Kind::PlatformAdmin, &admin.id.to_string()).await
}

/// # Errors
/// [`StoreError`].
pub async fn delete(connection: &mut Connection, id: PlatformAdminId) -> Result<(), StoreError> {
    connection.execute(DELETE, &[id.to_string().into()]).await?;
    news::note(connection, Kind::PlatformAdmin, &id.to_string()).await
}

fn admin_at(row: &Row) -> Result<PlatformAdmin, StoreError> {
    Ok(PlatformAdmin {
        id: row.parsed(0, |text| text.parse().ok())?,
        issuer: row.text(1)?,
        subject: row.text(2)?,
        name: row.text(3)?,
        created_at: Timestamp(row.int(4)?),
    })
}
