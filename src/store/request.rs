//! Answers kept for idempotency keys: the same table in the control database and in each tenant's.

use super::StoreError;
use super::database::Connection;
use crate::domain::time::Timestamp;

const FIND: &str = "SELECT body_hash, answer FROM request WHERE idempotency_key = $1";
const KEEP: &str = "INSERT INTO request (idempotency_key, body_hash, answer, at) VALUES ($1, $2, $3, $4)";
/// Whoever was first has answered.
const KEEP_FIRST: &str = "INSERT INTO request (idempotency_key, body_hash, answer, at) VALUES ($1, $2, $3, $4)
    ON CONFLICT (idempotency_key) DO NOTHING";
/// What a crash may ask for again has no age: `once` keys stay.
const FORGET: &str = "DELETE FROM request WHERE idempotency_key IN (SELECT idempotency_key FROM request
    WHERE at < $1 AND idempotency_key NOT LIKE 'once %' ORDER BY at LIMIT $2)";

/// The body's hash and the answer given under `key`, if any.
///
/// # Errors
/// [`StoreError`].
pub async fn find(connection: &mut Connection, key: &str) -> Result<Option<([u8; 32], String)>, StoreError> {
    let row = connection.fetch_one_optional(FIND, &[key.into()]).await?;
    row.map(|row| Ok((row.array(0)?, row.text(1)?))).transpose()
}

/// Keeps an answer, in the transaction of the change it answers.
///
/// # Errors
/// [`StoreError`].
pub async fn keep(
    connection: &mut Connection,
    key: &str,
    body_hash: &[u8; 32],
    answer: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    connection.execute(KEEP, &[key.into(), body_hash.as_slice().into(), answer.into(), now.into()]).await?;
    Ok(())
}

/// Keeps an answer to a change that is made, unless there is one: a change is finished whatever was answered.
///
/// # Errors
/// [`StoreError`].
pub async fn keep_first(
    connection: &mut Connection,
    key: &str,
    body_hash: &[u8; 32],
    answer: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    connection.execute(KEEP_FIRST, &[key.into(), body_hash.as_slice().into(), answer.into(), now.into()]).await?;
    Ok(())
}

/// Forgets at most `limit` answers that were kept before `before`; answers how many.
///
/// # Errors
/// [`StoreError`].
pub async fn forget(connection: &mut Connection, before: Timestamp, limit: i64) -> Result<u64, StoreError> {
    connection.execute(FORGET, &[before.into(), limit.into()]).await
}
