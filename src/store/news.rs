//! What has changed in the catalogue, for other nodes on the same control database.
//!
//! Every change moves one version and leaves it at the thing that was changed. A node that has seen a version asks for what
//! came after it, and gets each thing once, however often it changed.

use super::StoreError;
use super::database::Connection;

const MOVE: &str = "UPDATE catalogue_version SET version = version + 1 WHERE id = 1";
const NOTE: &str = "INSERT INTO catalogue_news (kind, id, version)
    SELECT $1, $2, version FROM catalogue_version WHERE id = 1
    ON CONFLICT (kind, id) DO UPDATE SET version = excluded.version";
const SELECT_VERSION: &str = "SELECT version FROM catalogue_version WHERE id = 1";
/// Changes nothing, and holds the row: until the transaction ends nobody else changes anything.
const CLAIM: &str = "UPDATE catalogue_version SET version = version WHERE id = 1 AND version = $1";
const SELECT_SINCE: &str = "SELECT kind, id, version FROM catalogue_news WHERE version > $1 ORDER BY version LIMIT $2";

/// Things that one question answers.
pub const NEWS_MAX: usize = 1_000;

/// What kind of thing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tenant,
    ApiKey,
    PlatformAdmin,
    Flag,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Tenant, Kind::ApiKey, Kind::PlatformAdmin, Kind::Flag];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Tenant => "tenant",
            Kind::ApiKey => "apiKey",
            Kind::PlatformAdmin => "platformAdmin",
            Kind::Flag => "flag",
        }
    }

    fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Something that has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    pub kind: Kind,
    pub id: String,
    pub version: i64,
}

/// Something is changed, in the transaction that changes it.
///
/// # Errors
/// [`StoreError`].
pub async fn note(connection: &mut Connection, kind: Kind, id: &str) -> Result<(), StoreError> {
    connection.execute(MOVE, &[]).await?;
    connection.execute(NOTE, &[kind.name().into(), id.into()]).await?;
    Ok(())
}

/// The version of the last change.
///
/// # Errors
/// [`StoreError`].
pub async fn version(connection: &mut Connection) -> Result<i64, StoreError> {
    let row = connection.fetch_one_optional(SELECT_VERSION, &[]).await?;
    row.map_or(Ok(0), |row| row.int(0))
}

/// Is `version` still the last one? Then it stays so until the transaction ends.
///
/// # Errors
/// [`StoreError`].
pub async fn claim(connection: &mut Connection, version: i64) -> Result<bool, StoreError> {
    Ok(connection.execute(CLAIM, &[version.into()]).await? == 1)
}

/// What has changed after `version`, in the order of the changes; at most [`NEWS_MAX`].
///
/// # Errors
/// [`StoreError`].
pub async fn since(connection: &mut Connection, version: i64) -> Result<Vec<News>, StoreError> {
    let most = i64::try_from(NEWS_MAX).unwrap_or(i64::MAX);
    let rows = connection.fetch(SELECT_SINCE, &[version.into(), most.into()]).await?;
    rows.iter()
        .map(|row| Ok(News { kind: row.parsed(0, Kind::from_name)?, id: row.text(1)?, version: row.int(2)? }))
        .collect()
}
