//! Where usage streams have been read to. In the control database.

use super::StoreError;
use super::database::Connection;
use crate::domain::stream::Checkpoint;

const SELECT: &str = "SELECT stream, created_nanos, sequence, at_nanos, hash FROM stream_checkpoint WHERE stream = $1";
/// Also backwards: a stream that was made anew begins again.
const KEEP: &str = "INSERT INTO stream_checkpoint (stream, created_nanos, sequence, at_nanos, hash)
    VALUES ($1, $2, $3, $4, $5) ON CONFLICT (stream) DO UPDATE SET created_nanos = excluded.created_nanos,
    sequence = excluded.sequence, at_nanos = excluded.at_nanos, hash = excluded.hash";

/// # Errors
/// [`StoreError`].
pub async fn checkpoint(connection: &mut Connection, stream: &str) -> Result<Option<Checkpoint>, StoreError> {
    let Some(row) = connection.fetch_one_optional(SELECT, &[stream.into()]).await? else { return Ok(None) };
    let hash = row.bytes(4)?;
    Ok(Some(Checkpoint {
        stream: row.text(0)?,
        created_nanos: row.int(1)?,
        sequence: row.int(2)?,
        at_nanos: row.int(3)?,
        hash: if hash.is_empty() { None } else { Some(row.array(4)?) },
    }))
}

/// # Errors
/// [`StoreError`].
pub async fn keep(connection: &mut Connection, checkpoint: &Checkpoint) -> Result<(), StoreError> {
    let hash: &[u8] = checkpoint.hash.as_ref().map_or(&[], |hash| hash);
    let values = [
        checkpoint.stream.as_str().into(),
        checkpoint.created_nanos.into(),
        checkpoint.sequence.into(),
        checkpoint.at_nanos.into(),
        hash.into(),
    ];
    connection.execute(KEEP, &values).await?;
    Ok(())
}
