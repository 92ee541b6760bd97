//! Feature flags as rows. The table is the same in the control database and in each tenant's; exposures are a tenant's.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::StoreError;
use super::database::Connection;
use super::failure;
use crate::domain::flag::ledger::{Exposure, FlagBooks, Variant};
use crate::domain::flag::{Flag, FlagSet};
use crate::domain::time::Timestamp;

const SELECT_ALL: &str = "SELECT definition FROM flag ORDER BY flag_key";
const PUT: &str = "INSERT INTO flag (flag_key, version, definition, updated_at) VALUES ($1, $2, $3, $4)
    ON CONFLICT (flag_key) DO UPDATE SET version = excluded.version, definition = excluded.definition,
    updated_at = excluded.updated_at";
const DELETE: &str = "DELETE FROM flag WHERE flag_key = $1";

const SELECT_EXPOSURES: &str = "SELECT flag_key, variant, served, first_at, last_at FROM flag_exposure";
const PUT_EXPOSURE: &str = "INSERT INTO flag_exposure (flag_key, variant, served, first_at, last_at)
    VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (flag_key, variant) DO UPDATE SET served = excluded.served, last_at = excluded.last_at";
const DELETE_EXPOSURES: &str = "DELETE FROM flag_exposure WHERE flag_key = $1";

const SELECT_DOCUMENT: &str = "SELECT body, fetched_at FROM flag_document WHERE source = $1";
const PUT_DOCUMENT: &str = "INSERT INTO flag_document (source, body, fetched_at) VALUES ($1, $2, $3)
    ON CONFLICT (source) DO UPDATE SET body = excluded.body, fetched_at = excluded.fetched_at";

/// Every flag of this database.
///
/// # Errors
/// [`StoreError`].
pub async fn all(connection: &mut Connection) -> Result<FlagSet, StoreError> {
    let rows = connection.fetch(SELECT_ALL, &[]).await?;
    let read = |text: String| serde_json::from_str::<Flag>(&text).map_err(|_| failure::unreadable("a feature flag"));
    let flags: Vec<Flag> = rows.iter().map(|row| read(row.text(0)?)).collect::<Result<_, _>>()?;
    Ok(FlagSet::of(flags))
}

/// A tenant's flags and exposures.
pub(super) async fn load(connection: &mut Connection) -> Result<Arc<FlagBooks>, StoreError> {
    let flags = all(connection).await?;
    let mut exposures = BTreeMap::new();
    for row in connection.fetch(SELECT_EXPOSURES, &[]).await? {
        let variant = Variant { flag: row.text(0)?, variant: row.text(1)? };
        let (first_at, last_at) = (Timestamp(row.int(3)?), Timestamp(row.int(4)?));
        exposures.insert(variant, Exposure { count: row.int(2)?, first_at, last_at });
    }
    Ok(Arc::new(FlagBooks { flags, exposures }))
}

/// Writes a flag over the one that has its key.
///
/// # Errors
/// [`StoreError`].
pub async fn put(connection: &mut Connection, flag: &Flag) -> Result<(), StoreError> {
    let definition = serde_json::to_string(flag).map_err(|error| StoreError::Unwritable(error.to_string()))?;
    let row = [flag.key.as_str().into(), flag.version.into(), definition.as_str().into(), flag.updated_at.into()];
    connection.execute(PUT, &row).await?;
    Ok(())
}

/// Deletes a flag.
///
/// # Errors
/// [`StoreError`].
pub async fn delete(connection: &mut Connection, key: &str) -> Result<(), StoreError> {
    connection.execute(DELETE, &[key.into()]).await?;
    Ok(())
}

/// Forgets how often a tenant's flag was served.
///
/// # Errors
/// [`StoreError`].
pub async fn delete_exposures(connection: &mut Connection, key: &str) -> Result<(), StoreError> {
    connection.execute(DELETE_EXPOSURES, &[key.into()]).await?;
    Ok(())
}

/// Writes counts, whole.
///
/// # Errors
/// [`StoreError`].
pub async fn put_exposures(connection: &mut Connection, rows: &[(Variant, Exposure)]) -> Result<(), StoreError> {
    for (variant, exposure) in rows {
        let row = [
            variant.flag.as_str().into(),
            variant.variant.as_str().into(),
            exposure.count.into(),
            exposure.first_at.into(),
            exposure.last_at.into(),
        ];
        connection.execute(PUT_EXPOSURE, &row).await?;
    }
    Ok(())
}

/// What another service last said, and when.
///
/// # Errors
/// [`StoreError`].
pub async fn document(connection: &mut Connection, source: &str) -> Result<Option<(String, Timestamp)>, StoreError> {
    let row = connection.fetch_one_optional(SELECT_DOCUMENT, &[source.into()]).await?;
    row.map(|row| Ok((row.text(0)?, Timestamp(row.int(1)?)))).transpose()
}

/// Keeps what another service says.
///
/// # Errors
/// [`StoreError`].
pub async fn put_document(
    connection: &mut Connection,
    source: &str,
    body: &str,
    fetched_at: Timestamp,
) -> Result<(), StoreError> {
    connection.execute(PUT_DOCUMENT, &[source.into(), body.into(), fetched_at.into()]).await?;
    Ok(())
}
