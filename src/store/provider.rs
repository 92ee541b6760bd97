//! A tenant's providers as rows: read whole when the tenant is opened, written one change at a time. What is secret comes
//! and goes sealed.

use super::connection::{Row, Value};
use super::database::Connection;
use super::{StoreError, failure};
use crate::domain::ids::ProviderId;
use crate::domain::provider::policy::Policy;
use crate::domain::provider::{Lease, Profile, Provider, ProviderBooks, ProviderKind};
use crate::domain::secret::{Sealed, Shown, StoredSecret, WrappedKey};
use crate::domain::time::Timestamp;

const SELECT_PROVIDERS: &str =
    "SELECT provider.id, name, kind, base_url, region, api_version, active, provider.version,
    secret_versions, created_at, updated_at, provider_secret.id, COALESCE(provider_secret.version, 0),
    COALESCE(data_key_version, 0), nonce, ciphertext, last_four, fingerprint, COALESCE(set_at, 0)
    FROM provider LEFT JOIN provider_secret ON provider_secret.provider_id = provider.id ORDER BY provider.id";
const SELECT_KEYS: &str = "SELECT version, kek, wrapped, created_at FROM data_key ORDER BY version";
const SELECT_POLICY: &str =
    "SELECT egress_hosts, models, failover, version, updated_at FROM provider_policy WHERE id = 1";

const PUT_PROVIDER: &str = "INSERT INTO provider (id, name, kind, base_url, region, api_version, active, version,
    secret_versions, created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
    ON CONFLICT (id) DO UPDATE SET name = excluded.name, base_url = excluded.base_url, region = excluded.region,
    api_version = excluded.api_version, active = excluded.active, version = excluded.version,
    secret_versions = excluded.secret_versions, updated_at = excluded.updated_at";
const DELETE_PROVIDER: &str = "DELETE FROM provider WHERE id = $1";

const PUT_SECRET: &str = "INSERT INTO provider_secret (provider_id, id, version, data_key_version, nonce, ciphertext,
    last_four, fingerprint, set_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
    ON CONFLICT (provider_id) DO UPDATE SET id = excluded.id, version = excluded.version,
    data_key_version = excluded.data_key_version, nonce = excluded.nonce, ciphertext = excluded.ciphertext,
    last_four = excluded.last_four, fingerprint = excluded.fingerprint, set_at = excluded.set_at";
const DELETE_SECRET: &str = "DELETE FROM provider_secret WHERE provider_id = $1";
const BUMP_WITH_SECRET: &str =
    "UPDATE provider SET version = version + 1 WHERE id IN (SELECT provider_id FROM provider_secret)";
const DELETE_SECRETS: &str = "DELETE FROM provider_secret";

const INSERT_KEY: &str = "INSERT INTO data_key (version, kek, wrapped, created_at) VALUES ($1, $2, $3, $4)";
const UPDATE_KEY: &str = "UPDATE data_key SET kek = $2, wrapped = $3 WHERE version = $1";
const DELETE_KEY: &str = "DELETE FROM data_key WHERE version = $1";
const DELETE_KEYS: &str = "DELETE FROM data_key";
const SELECT_DESTROYED: &str = "SELECT at FROM keys_destroyed WHERE id = 1";
const INSERT_DESTROYED: &str = "INSERT INTO keys_destroyed (id, at) VALUES (1, $1) ON CONFLICT (id) DO NOTHING";
/// What is deleted is overwritten, not only forgotten; the write-ahead log is emptied with its next checkpoint.
const ERASE: &str = "PRAGMA secure_delete = ON";
const DO_NOT_ERASE: &str = "PRAGMA secure_delete = OFF";

const INSERT_LEASE: &str =
    "INSERT INTO provider_lease (id, provider_id, secret_version, actor, purpose, model, granted_at,
    expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
const FORGET_LEASES: &str = "DELETE FROM provider_lease WHERE expires_at < $1";

const PUT_POLICY: &str = "INSERT INTO provider_policy (id, egress_hosts, models, failover, version, updated_at)
    VALUES (1, $1, $2, $3, $4, $5)
    ON CONFLICT (id) DO UPDATE SET egress_hosts = excluded.egress_hosts, models = excluded.models,
    failover = excluded.failover, version = excluded.version, updated_at = excluded.updated_at";

/// Everything of a tenant's providers.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn load(connection: &mut Connection) -> Result<ProviderBooks, StoreError> {
    let providers = connection.fetch(SELECT_PROVIDERS, &[]).await?;
    let providers = providers.iter().map(provider_at).collect::<Result<Vec<_>, _>>()?;
    let keys = connection.fetch(SELECT_KEYS, &[]).await?;
    let keys = keys.iter().map(key_at).collect::<Result<Vec<_>, _>>()?;
    let policy = connection.fetch_one_optional(SELECT_POLICY, &[]).await?;
    let policy = policy.as_ref().map_or_else(|| Ok(Policy::default()), policy_at)?;
    let is_destroyed = connection.fetch_one_optional(SELECT_DESTROYED, &[]).await?.is_some();
    Ok(ProviderBooks::of(providers, keys, policy, is_destroyed))
}

fn provider_at(row: &Row) -> Result<Provider, StoreError> {
    let profile = Profile {
        name: row.text(1)?,
        kind: row.parsed(2, ProviderKind::from_name)?,
        base_url: row.optional_text(3)?,
        region: row.optional_text(4)?,
        api_version: row.optional_text(5)?,
        active: row.int(6)? == 1,
    };
    let secret = if row.optional_text(11)?.is_some() { Some(secret_at(row)?) } else { None };
    Ok(Provider {
        id: row.parsed(0, |text| text.parse().ok())?,
        profile,
        version: row.int(7)?,
        secret_versions: row.int(8)?,
        created_at: Timestamp(row.int(9)?),
        updated_at: Timestamp(row.int(10)?),
        secret,
    })
}

fn secret_at(row: &Row) -> Result<StoredSecret, StoreError> {
    Ok(StoredSecret {
        id: row.parsed(11, |text| text.parse().ok())?,
        version: row.int(12)?,
        sealed: Sealed { data_key: row.int(13)?, nonce: row.array(14)?, ciphertext: row.bytes(15)? },
        shown: Shown { last_four: row.text(16)?, fingerprint: row.text(17)? },
        set_at: Timestamp(row.int(18)?),
    })
}

fn key_at(row: &Row) -> Result<WrappedKey, StoreError> {
    let created_at = Timestamp(row.int(3)?);
    Ok(WrappedKey { version: row.int(0)?, kek: row.text(1)?, wrapped: row.bytes(2)?, created_at })
}

fn policy_at(row: &Row) -> Result<Policy, StoreError> {
    Ok(Policy {
        egress: row.parsed(0, |text| serde_json::from_str(text).ok())?,
        models: row.parsed(1, |text| serde_json::from_str(text).ok())?,
        failover: row.parsed(2, |text| serde_json::from_str(text).ok())?,
        version: row.int(3)?,
        updated_at: Timestamp(row.int(4)?),
    })
}

fn optional(text: Option<&String>) -> Value {
    text.map_or(Value::NullText, |text| text.clone().into())
}

/// Writes a provider over the one that has its id, without its secret.
///
/// # Errors
/// [`StoreError`].
pub async fn put(connection: &mut Connection, provider: &Provider) -> Result<(), StoreError> {
    let Provider { id, profile, version, created_at, updated_at, secret_versions, .. } = provider;
    let values = [
        id.to_string().into(),
        profile.name.clone().into(),
        profile.kind.name().into(),
        optional(profile.base_url.as_ref()),
        optional(profile.region.as_ref()),
        optional(profile.api_version.as_ref()),
        i64::from(profile.active).into(),
        (*version).into(),
        (*secret_versions).into(),
        (*created_at).into(),
        (*updated_at).into(),
    ];
    connection.execute(PUT_PROVIDER, &values).await.map(drop)
}

/// With its secret.
///
/// # Errors
/// [`StoreError`].
pub async fn delete(connection: &mut Connection, id: ProviderId) -> Result<(), StoreError> {
    delete_secret(connection, id).await?;
    connection.execute(DELETE_PROVIDER, &[id.to_string().into()]).await.map(drop)
}

/// Writes a secret over the one that its provider has.
///
/// # Errors
/// [`StoreError`].
pub async fn put_secret(
    connection: &mut Connection,
    provider: ProviderId,
    secret: &StoredSecret,
) -> Result<(), StoreError> {
    let StoredSecret { id, version, sealed, shown, set_at } = secret;
    let values = [
        provider.to_string().into(),
        id.to_string().into(),
        (*version).into(),
        sealed.data_key.into(),
        sealed.nonce.as_slice().into(),
        sealed.ciphertext.as_slice().into(),
        shown.last_four.clone().into(),
        shown.fingerprint.clone().into(),
        (*set_at).into(),
    ];
    connection.execute(PUT_SECRET, &values).await.map(drop)
}

/// # Errors
/// [`StoreError`].
pub async fn delete_secret(connection: &mut Connection, provider: ProviderId) -> Result<(), StoreError> {
    connection.execute(DELETE_SECRET, &[provider.to_string().into()]).await.map(drop)
}

/// # Errors
/// [`StoreError`].
pub async fn insert_key(connection: &mut Connection, key: &WrappedKey) -> Result<(), StoreError> {
    let values = [key.version.into(), key.kek.clone().into(), key.wrapped.as_slice().into(), key.created_at.into()];
    connection.execute(INSERT_KEY, &values).await.map(drop)
}

/// # Errors
/// [`StoreError`].
pub async fn rewrap_key(connection: &mut Connection, key: &WrappedKey) -> Result<(), StoreError> {
    let values = [key.version.into(), key.kek.clone().into(), key.wrapped.as_slice().into()];
    connection.execute(UPDATE_KEY, &values).await.map(drop)
}

/// # Errors
/// [`StoreError`].
pub async fn delete_keys(connection: &mut Connection, versions: &[i64]) -> Result<(), StoreError> {
    erase(connection, true).await?;
    for version in versions {
        connection.execute(DELETE_KEY, &[(*version).into()]).await?;
    }
    erase(connection, false).await
}

/// Every data key and every ciphertext goes, and that they went is written down.
///
/// # Errors
/// [`StoreError`].
pub async fn destroy(connection: &mut Connection, now: Timestamp) -> Result<(), StoreError> {
    erase(connection, true).await?;
    connection.execute(BUMP_WITH_SECRET, &[]).await?;
    connection.execute(DELETE_SECRETS, &[]).await?;
    connection.execute(DELETE_KEYS, &[]).await?;
    connection.execute(INSERT_DESTROYED, &[now.into()]).await?;
    erase(connection, false).await
}

/// From now on SQLite overwrites what it deletes, or does not. On Postgres, vacuuming does, in its own time.
async fn erase(connection: &mut Connection, yes: bool) -> Result<(), StoreError> {
    if connection.is_postgres() {
        return Ok(());
    }
    connection.fetch(if yes { ERASE } else { DO_NOT_ERASE }, &[]).await.map(drop)
}

/// Keeps a lease, and forgets those that ended before `before`.
///
/// # Errors
/// [`StoreError`].
pub async fn insert_lease(connection: &mut Connection, lease: &Lease, before: Timestamp) -> Result<(), StoreError> {
    let values = [
        lease.id.to_string().into(),
        lease.provider.to_string().into(),
        lease.secret_version.into(),
        lease.actor.clone().into(),
        lease.purpose.clone().into(),
        optional(lease.model.as_ref()),
        lease.granted_at.into(),
        lease.expires_at.into(),
    ];
    connection.execute(INSERT_LEASE, &values).await?;
    connection.execute(FORGET_LEASES, &[before.into()]).await.map(drop)
}

/// # Errors
/// [`StoreError`].
pub async fn put_policy(connection: &mut Connection, policy: &Policy) -> Result<(), StoreError> {
    let json = |value: Result<String, serde_json::Error>| value.map_err(|_| failure::unreadable("a policy"));
    let values = [
        json(serde_json::to_string(&policy.egress))?.into(),
        json(serde_json::to_string(&policy.models))?.into(),
        json(serde_json::to_string(&policy.failover))?.into(),
        policy.version.into(),
        policy.updated_at.into(),
    ];
    connection.execute(PUT_POLICY, &values).await.map(drop)
}
