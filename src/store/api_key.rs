//! API keys, in the control database: their hashes, what narrows them, and the hour each was last used in.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::StoreError;
use super::catalogue::one_row;
use super::connection::{Bulk, Column};
use super::database::{Connection, Row, Value};
use super::news::{self, Kind};
use crate::domain::api_key::{ApiKey, Previous, Terms};
use crate::domain::rate_limit::{Class, Policy};
use crate::domain::tenant::Role;
use crate::domain::time::Timestamp;

const SELECT: &str = "SELECT id, tenant_id, name, role, hash, created_at, revoked_at, scopes, expires_at, rate_limits,
    previous_hash, previous_until, version FROM api_key ORDER BY id";
const SELECT_ONE: &str =
    "SELECT id, tenant_id, name, role, hash, created_at, revoked_at, scopes, expires_at, rate_limits,
    previous_hash, previous_until, version FROM api_key WHERE id = $1";
const INSERT: &str = "INSERT INTO api_key (id, tenant_id, name, role, hash, created_at, revoked_at, scopes, expires_at,
    rate_limits, previous_hash, previous_until, version) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)";
const UPDATE: &str = "UPDATE api_key SET name = $2, hash = $3, scopes = $4, expires_at = $5, rate_limits = $6,
    previous_hash = $7, previous_until = $8, version = $9 WHERE id = $1";
/// A key that is revoked stays revoked at the instant it was.
const REVOKE: &str = "UPDATE api_key SET revoked_at = $2 WHERE id = $1 AND revoked_at = 0";
const SELECT_USES: &str = "SELECT id, last_used_at FROM api_key WHERE last_used_at > 0";
/// Never backwards: nodes write for themselves.
static NOTE_USES: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new(
        "WITH given (id, used_at) AS (",
        &["TEXT", "BIGINT"],
        ") UPDATE api_key SET last_used_at = given.used_at FROM given
            WHERE api_key.id = given.id AND api_key.last_used_at < given.used_at",
    )
});
/// As [`NOTE_USES`], on Postgres, where several nodes do it at the same time: all of them lock rows in one order, so that
/// none waits for another in a circle.
static NOTE_USES_IN_ORDER: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new(
        "WITH given (id, used_at) AS (",
        &["TEXT", "BIGINT"],
        "), late AS (SELECT api_key.id, given.used_at FROM api_key JOIN given ON given.id = api_key.id
                WHERE api_key.last_used_at < given.used_at ORDER BY api_key.id FOR NO KEY UPDATE OF api_key)
            UPDATE api_key SET last_used_at = late.used_at FROM late
            WHERE api_key.id = late.id AND api_key.last_used_at < late.used_at",
    )
});

/// A limit as it is written down.
#[derive(Serialize, Deserialize)]
struct Limit {
    class: String,
    quota: u32,
    window_seconds: u32,
    burst: u32,
}

/// Every key, by id.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn all(connection: &mut Connection) -> Result<Vec<ApiKey>, StoreError> {
    connection.fetch(SELECT, &[]).await?.iter().map(key_at).collect()
}

/// One key.
///
/// # Errors
/// [`StoreError`].
pub async fn one(connection: &mut Connection, id: &str) -> Result<Option<ApiKey>, StoreError> {
    connection.fetch_one_optional(SELECT_ONE, &[id.into()]).await?.map(|row| key_at(&row)).transpose()
}

/// # Errors
/// [`StoreError`].
pub async fn insert(connection: &mut Connection, key: &ApiKey) -> Result<(), StoreError> {
    let [previous_hash, previous_until] = previous(key);
    let values = [
        key.id.as_str().into(),
        key.tenant.to_string().into(),
        key.name.as_str().into(),
        key.role.name().into(),
        key.hash.as_slice().into(),
        key.created_at.into(),
        key.revoked_at.unwrap_or(Timestamp(0)).into(),
        scopes(&key.terms),
        key.terms.expires_at.unwrap_or(Timestamp(0)).into(),
        limits(&key.terms),
        previous_hash,
        previous_until,
        key.version.into(),
    ];
    connection.execute(INSERT, &values).await?;
    news::note(connection, Kind::ApiKey, &key.id).await
}

/// Writes what may change of a key, but not its revocation.
///
/// # Errors
/// [`StoreError`]; [`StoreError::Wrong`] when there is no such key.
pub async fn update(connection: &mut Connection, key: &ApiKey) -> Result<(), StoreError> {
    let [previous_hash, previous_until] = previous(key);
    let values = [
        key.id.as_str().into(),
        key.name.as_str().into(),
        key.hash.as_slice().into(),
        scopes(&key.terms),
        key.terms.expires_at.unwrap_or(Timestamp(0)).into(),
        limits(&key.terms),
        previous_hash,
        previous_until,
        key.version.into(),
    ];
    let updated = connection.execute(UPDATE, &values).await?;
    one_row(updated, "API key")?;
    news::note(connection, Kind::ApiKey, &key.id).await
}

/// Revoking again changes nothing.
///
/// # Errors
/// [`StoreError`].
pub async fn revoke(connection: &mut Connection, id: &str, at: Timestamp) -> Result<(), StoreError> {
    connection.execute(REVOKE, &[id.into(), at.into()]).await?;
    news::note(connection, Kind::ApiKey, id).await
}

/// When keys were last used; those that never were are not there.
///
/// # Errors
/// [`StoreError`].
pub async fn uses(connection: &mut Connection) -> Result<Vec<(String, Timestamp)>, StoreError> {
    let rows = connection.fetch(SELECT_USES, &[]).await?;
    rows.iter().map(|row| Ok((row.text(0)?, Timestamp(row.int(1)?)))).collect()
}

/// Writes down when keys were used, each named once; an earlier time than the one that is known changes nothing.
///
/// # Errors
/// [`StoreError`].
pub async fn note_uses(connection: &mut Connection, uses: &[(String, Timestamp)]) -> Result<(), StoreError> {
    let bulk = if connection.is_postgres() { &NOTE_USES_IN_ORDER } else { &NOTE_USES };
    let ids = uses.iter().map(|(id, _)| id.as_str()).collect();
    let instants = uses.iter().map(|(_, at)| at.0).collect();
    connection.execute_bulk(bulk, &[Column::Texts(ids), Column::Ints(instants)]).await?;
    Ok(())
}

fn scopes(terms: &Terms) -> Value {
    // Texts always serialize.
    serde_json::to_string(&terms.scopes).unwrap_or_default().into()
}

fn limits(terms: &Terms) -> Value {
    let one = |(class, policy): &(Class, Policy)| Limit {
        class: class.name().into(),
        quota: policy.quota(),
        window_seconds: policy.window_seconds(),
        burst: policy.burst(),
    };
    let limits: Vec<Limit> = terms.limits.iter().map(one).collect();
    serde_json::to_string(&limits).unwrap_or_default().into()
}

fn previous(key: &ApiKey) -> [Value; 2] {
    match &key.previous {
        Some(previous) => [previous.hash.as_slice().into(), previous.until.into()],
        None => [Value::NullBytes, Timestamp(0).into()],
    }
}

fn key_at(row: &Row) -> Result<ApiKey, StoreError> {
    let some = |at: i64| Some(at).filter(|at| *at != 0).map(Timestamp);
    let previous = match row.optional_bytes(10)? {
        Some(_) => Some(Previous { hash: row.array(10)?, until: Timestamp(row.int(11)?) }),
        None => None,
    };
    let terms = Terms {
        scopes: row.parsed(7, |text| serde_json::from_str(text).ok())?,
        expires_at: some(row.int(8)?),
        limits: row
            .parsed(9, |text| serde_json::from_str::<Vec<Limit>>(text).ok()?.into_iter().map(limit).collect())?,
    };
    Ok(ApiKey {
        id: row.text(0)?,
        tenant: row.parsed(1, |text| text.parse().ok())?,
        name: row.text(2)?,
        role: row.parsed(3, Role::from_name)?,
        hash: row.array(4)?,
        terms,
        previous,
        version: row.int(12)?,
        created_at: Timestamp(row.int(5)?),
        revoked_at: some(row.int(6)?),
    })
}

fn limit(stored: Limit) -> Option<(Class, Policy)> {
    let policy = Policy::new(stored.quota, stored.window_seconds, stored.burst).ok()?;
    Some((Class::from_name(&stored.class)?, policy))
}
