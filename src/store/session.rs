//! Sessions of browsers, what may be used once, and passwords. In the control database.

use super::StoreError;
use super::database::{Connection, Row};
use crate::domain::ids::{TenantId, UserId};
use crate::domain::session::{SecretHash, Session, Whose};
use crate::domain::time::Timestamp;

const INSERT: &str = "INSERT INTO session (id, issuer, subject, provider_session, secret, previous, rotated_at,
    rotations, created_at, idle_until, ends_at, document) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
const INSERT_SECRET: &str = "INSERT INTO session_secret (secret, session_id) VALUES ($1, $2)";
const SELECT: &str = "SELECT s.id, s.issuer, s.subject, s.provider_session, s.secret, s.previous, s.rotated_at,
    s.rotations, s.created_at, s.idle_until, s.ends_at, s.document
    FROM session_secret k JOIN session s ON s.id = k.session_id WHERE k.secret = $1";
/// Only as long as nobody else was faster.
const UPDATE: &str = "UPDATE session SET secret = $3, previous = $4, rotated_at = $5, rotations = $6, idle_until = $7,
    document = $8, provider_session = $9 WHERE id = $1 AND secret = $2";
const OF_SUBJECT: &str = "SELECT id FROM session WHERE issuer = $1 AND subject = $2";
const OF_PROVIDER: &str =
    "SELECT id FROM session WHERE issuer = $1 AND provider_session = $2 AND ($3 = '' OR subject = $3)";
const OVER: &str = "SELECT id FROM session WHERE ends_at <= $1 ORDER BY ends_at LIMIT $2";
const DELETE: &str = "DELETE FROM session WHERE id = $1";
const DELETE_SECRETS: &str = "DELETE FROM session_secret WHERE session_id = $1";
const USE_ONCE: &str = "INSERT INTO used_once (name, until_at) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
const SELECT_USED: &str = "SELECT until_at FROM used_once WHERE name = $1";
const FORGET_USED: &str = "DELETE FROM used_once WHERE name IN
    (SELECT name FROM used_once WHERE until_at <= $1 ORDER BY until_at LIMIT $2)";
const PUT_PASSWORD: &str = "INSERT INTO local_password (user_id, tenant_id, hash, changed_at) VALUES ($1, $2, $3, $4)
    ON CONFLICT (user_id) DO UPDATE SET tenant_id = $2, hash = $3, changed_at = $4";
const REHASH_PASSWORD: &str = "UPDATE local_password SET hash = $4 WHERE user_id = $1 AND tenant_id = $2 AND hash = $3";
const CHANGE_PASSWORD: &str = "UPDATE local_password SET hash = $4, changed_at = $5
    WHERE user_id = $1 AND tenant_id = $2 AND hash = $3";
const DELETE_PASSWORD: &str = "DELETE FROM local_password WHERE user_id = $1 AND tenant_id = $2";
const SELECT_PASSWORD: &str = "SELECT hash FROM local_password WHERE user_id = $1 AND tenant_id = $2";

/// # Errors
/// [`StoreError`].
pub async fn insert(connection: &mut Connection, session: &Session) -> Result<(), StoreError> {
    let Session { id, issuer, subject, provider_session, secret, previous, .. } = session;
    let values = [
        id.to_string().into(),
        issuer.clone().into(),
        subject.clone().into(),
        provider_session.clone().into(),
        secret.as_slice().into(),
        previous.as_slice().into(),
        session.rotated_at.into(),
        session.rotations.into(),
        session.created_at.into(),
        session.idle_until.into(),
        session.ends_at.into(),
        session.document.clone().into(),
    ];
    connection.execute(INSERT, &values).await?;
    connection.execute(INSERT_SECRET, &[secret.as_slice().into(), id.to_string().into()]).await.map(drop)
}

/// The session that this secret is or was of.
///
/// # Errors
/// [`StoreError`].
pub async fn find(connection: &mut Connection, secret: &SecretHash) -> Result<Option<Session>, StoreError> {
    let row = connection.fetch_one_optional(SELECT, &[secret.as_slice().into()]).await?;
    row.as_ref().map(session_at).transpose()
}

/// Writes a session that was made of the one with the secret `before`; false when another was faster.
///
/// # Errors
/// [`StoreError`].
pub async fn update(connection: &mut Connection, before: &SecretHash, session: &Session) -> Result<bool, StoreError> {
    let id = session.id.to_string();
    let values = [
        id.clone().into(),
        before.as_slice().into(),
        session.secret.as_slice().into(),
        session.previous.as_slice().into(),
        session.rotated_at.into(),
        session.rotations.into(),
        session.idle_until.into(),
        session.document.clone().into(),
        session.provider_session.clone().into(),
    ];
    if connection.execute(UPDATE, &values).await? == 0 {
        return Ok(false);
    }
    if session.secret != *before {
        connection.execute(INSERT_SECRET, &[session.secret.as_slice().into(), id.into()]).await?;
    }
    Ok(true)
}

/// Ends sessions; answers how many.
///
/// # Errors
/// [`StoreError`].
pub async fn end(connection: &mut Connection, whose: &Whose) -> Result<u64, StoreError> {
    let ids = match whose {
        Whose::One(id) => vec![id.to_string()],
        Whose::Subject { issuer, subject } => {
            ids(connection, OF_SUBJECT, &[issuer.clone().into(), subject.clone().into()]).await?
        }
        Whose::Provider { issuer, provider_session, subject } => {
            let subject = subject.clone().unwrap_or_default();
            ids(connection, OF_PROVIDER, &[issuer.clone().into(), provider_session.clone().into(), subject.into()])
                .await?
        }
    };
    delete(connection, ids).await
}

/// Forgets a piece of the sessions that are over at `now`.
///
/// # Errors
/// [`StoreError`].
pub async fn forget(connection: &mut Connection, now: Timestamp, limit: i64) -> Result<(), StoreError> {
    let over = ids(connection, OVER, &[now.into(), limit.into()]).await?;
    delete(connection, over).await.map(drop)
}

/// Forgets a piece of what was used and need not be known at `now` any more.
///
/// # Errors
/// [`StoreError`].
pub async fn forget_used(connection: &mut Connection, now: Timestamp, limit: i64) -> Result<(), StoreError> {
    connection.execute(FORGET_USED, &[now.into(), limit.into()]).await.map(drop)
}

/// Is this the first use? Nothing else is known of the name until `until`.
///
/// # Errors
/// [`StoreError`].
pub async fn use_once(connection: &mut Connection, name: &str, until: Timestamp) -> Result<bool, StoreError> {
    Ok(connection.execute(USE_ONCE, &[name.into(), until.into()]).await? == 1)
}

/// # Errors
/// [`StoreError`].
pub async fn is_used(connection: &mut Connection, name: &str) -> Result<bool, StoreError> {
    Ok(connection.fetch_one_optional(SELECT_USED, &[name.into()]).await?.is_some())
}

/// # Errors
/// [`StoreError`].
pub async fn put_password(
    connection: &mut Connection,
    tenant: TenantId,
    user: UserId,
    hash: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    let values = [user.to_string().into(), tenant.to_string().into(), hash.into(), now.into()];
    connection.execute(PUT_PASSWORD, &values).await.map(drop)
}

/// Another hash in the place of `before`; answers how many there were.
///
/// # Errors
/// [`StoreError`].
pub async fn rehash_password(
    connection: &mut Connection,
    tenant: TenantId,
    user: UserId,
    (before, hash): (&str, &str),
) -> Result<u64, StoreError> {
    let values = [user.to_string().into(), tenant.to_string().into(), before.into(), hash.into()];
    connection.execute(REHASH_PASSWORD, &values).await
}

/// Another password in the place of the one with the hash `before`; answers how many had it.
///
/// # Errors
/// [`StoreError`].
pub async fn change_password(
    connection: &mut Connection,
    tenant: TenantId,
    user: UserId,
    (before, hash): (&str, &str),
    now: Timestamp,
) -> Result<u64, StoreError> {
    let values = [user.to_string().into(), tenant.to_string().into(), before.into(), hash.into(), now.into()];
    connection.execute(CHANGE_PASSWORD, &values).await
}

/// Answers how many there were.
///
/// # Errors
/// [`StoreError`].
pub async fn delete_password(connection: &mut Connection, tenant: TenantId, user: UserId) -> Result<u64, StoreError> {
    connection.execute(DELETE_PASSWORD, &[user.to_string().into(), tenant.to_string().into()]).await
}

/// The hash of a person's password.
///
/// # Errors
/// [`StoreError`].
pub async fn password(
    connection: &mut Connection,
    tenant: TenantId,
    user: UserId,
) -> Result<Option<String>, StoreError> {
    let values = [user.to_string().into(), tenant.to_string().into()];
    connection.fetch_one_optional(SELECT_PASSWORD, &values).await?.map(|row| row.text(0)).transpose()
}

async fn ids(
    connection: &mut Connection,
    sql: &'static str,
    values: &[super::database::Value],
) -> Result<Vec<String>, StoreError> {
    connection.fetch(sql, values).await?.iter().map(|row| row.text(0)).collect()
}

async fn delete(connection: &mut Connection, ids: Vec<String>) -> Result<u64, StoreError> {
    let mut ended = 0;
    for id in ids {
        connection.execute(DELETE_SECRETS, &[id.clone().into()]).await?;
        ended += connection.execute(DELETE, &[id.into()]).await?;
    }
    Ok(ended)
}

fn session_at(row: &Row) -> Result<Session, StoreError> {
    Ok(Session {
        id: row.parsed(0, |text| text.parse().ok())?,
        issuer: row.text(1)?,
        subject: row.text(2)?,
        provider_session: row.text(3)?,
        secret: row.array(4)?,
        previous: row.array(5)?,
        rotated_at: Timestamp(row.int(6)?),
        rotations: row.int(7)?,
        created_at: Timestamp(row.int(8)?),
        idle_until: Timestamp(row.int(9)?),
        ends_at: Timestamp(row.int(10)?),
        document: row.text(11)?,
    })
}
