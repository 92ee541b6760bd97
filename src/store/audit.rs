//! The chain as rows: pages, verification, and the platform's own chain in the control database.

use super::StoreError;
use super::connection::Row;
use super::database::Connection;
use crate::domain::chain::{Broken, Hash, Head, Record, Stored, Verifier};
use crate::domain::report::{ChainQuery, ChainReport, Page};
use crate::domain::time::Timestamp;

/// The name of the platform's chain.
pub const PLATFORM_CHAIN: &str = "platform";

/// Records read at once by a verification.
const VERIFY_RECORDS: usize = 1_000;

const SELECT_PAGE: &str =
    "SELECT seq, at, bytes, hash, payload, salt FROM audit_record WHERE seq > $1 ORDER BY seq LIMIT $2";
const SELECT_PLATFORM_HEAD: &str = "SELECT head_seq, head_hash FROM platform WHERE id = 1";
const SELECT_BOOKS_HEAD: &str = "SELECT head_seq, head_hash FROM books WHERE id = 1";
const SELECT_PLATFORM_ENDS: &str = "SELECT COALESCE((SELECT head_seq FROM platform WHERE id = 1), 0),
    COALESCE((SELECT MAX(seq) FROM audit_record), 0)";
const SELECT_BOOKS_ENDS: &str = "SELECT COALESCE((SELECT head_seq FROM books WHERE id = 1), 0),
    COALESCE((SELECT MAX(seq) FROM audit_record), 0)";
const INSERT_RECORD: &str = "INSERT INTO audit_record (seq, at, action, bytes, hash, payload, salt)
    VALUES ($1, $2, $3, $4, $5, $6, $7)";
const INSERT_HEAD: &str =
    "INSERT INTO platform (id, head_seq, head_hash) VALUES (1, $1, $2) ON CONFLICT (id) DO NOTHING";
const UPDATE_HEAD: &str = "UPDATE platform SET head_seq = $1, head_hash = $2
    WHERE id = 1 AND head_seq = $3 AND head_hash = $4";

/// One record of a chain with when it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    pub at: Timestamp,
    pub link: Stored,
}

/// Records after `query.after`, oldest first.
///
/// # Errors
/// [`StoreError`].
pub async fn page(connection: &mut Connection, query: ChainQuery) -> Result<Page<StoredRecord>, StoreError> {
    let fetched = i64::try_from(query.limit.saturating_add(1)).unwrap_or(i64::MAX);
    let rows = connection.fetch(SELECT_PAGE, &[query.after.into(), fetched.into()]).await?;
    let items: Vec<StoredRecord> = rows.iter().take(query.limit).map(record_at).collect::<Result<_, _>>()?;
    let next = items.last().filter(|_| rows.len() > query.limit).map(|record| record.link.seq);
    Ok(Page { items, next })
}

/// Recomputes a chain from its first record to its head. Records that are committed meanwhile are left for next time.
///
/// # Errors
/// [`StoreError`]; a broken chain is an answer, not an error.
pub async fn verify(connection: &mut Connection, chain: &str) -> Result<ChainReport, StoreError> {
    let promised = head_of(connection, chain).await?;
    let mut verifier = Verifier::new(chain);
    while verifier.head().seq < promised.seq {
        let query = ChainQuery { after: verifier.head().seq, limit: VERIFY_RECORDS };
        let records = page(connection, query).await?.items;
        if records.is_empty() {
            return Ok(report(&verifier, Some("the chain ends before the books' head")));
        }
        let wanted = records.iter().filter(|record| record.link.seq <= promised.seq);
        for record in wanted {
            if let Err(broken) = verifier.check(&record.link) {
                return Ok(ChainReport { head: verifier.head(), broken: Some(broken) });
            }
        }
        if records.last().is_some_and(|record| record.link.seq >= promised.seq) && verifier.head().seq < promised.seq {
            return Ok(report(&verifier, Some("the record is missing")));
        }
    }
    if verifier.head() != promised {
        return Ok(report(&verifier, Some("the last record is not the books' head")));
    }
    let sql = if chain == PLATFORM_CHAIN { SELECT_PLATFORM_ENDS } else { SELECT_BOOKS_ENDS };
    let Some(ends) = connection.fetch_one_optional(sql, &[]).await? else { return Ok(report(&verifier, None)) };
    let goes_on = ends.int(0)? != ends.int(1)?;
    Ok(report(&verifier, goes_on.then_some("the chain goes on after the books' head")))
}

/// Appends to the platform's chain, in the transaction of what it records. `head` is the record before.
///
/// # Errors
/// [`StoreError::Fenced`] when `head` is not the chain's head: somebody else has appended.
pub async fn append(connection: &mut Connection, head: Head, record: &Record) -> Result<(), StoreError> {
    let new = [record.seq.into(), record.hash.0.as_slice().into()];
    let moved = if head == Head::EMPTY {
        connection.execute(INSERT_HEAD, &new).await?
    } else {
        let [seq, hash] = new;
        connection.execute(UPDATE_HEAD, &[seq, hash, head.seq.into(), head.hash.0.as_slice().into()]).await?
    };
    if moved != 1 {
        return Err(StoreError::Fenced);
    }
    let row = [
        record.seq.into(),
        record.at.into(),
        record.action.as_str().into(),
        record.bytes.as_slice().into(),
        record.hash.0.as_slice().into(),
        record.payload.as_str().into(),
        record.salt.as_slice().into(),
    ];
    connection.execute(INSERT_RECORD, &row).await?;
    Ok(())
}

/// The head of the platform's chain.
///
/// # Errors
/// [`StoreError`].
pub async fn head(connection: &mut Connection) -> Result<Head, StoreError> {
    head_of(connection, PLATFORM_CHAIN).await
}

async fn head_of(connection: &mut Connection, chain: &str) -> Result<Head, StoreError> {
    let sql = if chain == PLATFORM_CHAIN { SELECT_PLATFORM_HEAD } else { SELECT_BOOKS_HEAD };
    match connection.fetch_one_optional(sql, &[]).await? {
        Some(row) => Ok(Head { seq: row.int(0)?, hash: Hash(row.array(1)?) }),
        None => Ok(Head::EMPTY),
    }
}

fn report(verifier: &Verifier, reason: Option<&'static str>) -> ChainReport {
    let head = verifier.head();
    ChainReport { head, broken: reason.map(|reason| Broken { seq: head.seq + 1, reason }) }
}

fn record_at(row: &Row) -> Result<StoredRecord, StoreError> {
    let link = Stored {
        seq: row.int(0)?,
        bytes: row.bytes(2)?,
        hash: row.array(3)?,
        payload: row.optional_text(4)?,
        salt: row.optional_bytes(5)?,
    };
    Ok(StoredRecord { at: Timestamp(row.int(1)?), link })
}
