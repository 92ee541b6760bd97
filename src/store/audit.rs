//! The chain as rows: pages, verification, and the platform's own chain in the control database.

use tokio_util::sync::CancellationToken;

use super::connection::Row;
use super::database::Connection;
use super::{StoreError, usage};
use crate::clock;
use crate::domain::chain::{Broken, Hash, Head, Record, Stored, Verifier};
use crate::domain::ids::TenantId;
use crate::domain::ledger_proof::{COUNTED, LedgerProof, Statement};
use crate::domain::report::{ChainQuery, ChainReport, Page};
use crate::domain::rollup_proof::Fold;
use crate::domain::time::Timestamp;
use crate::domain::usage::Totals;

/// The name of the platform's chain.
pub const PLATFORM_CHAIN: &str = "platform";

/// Records, and rollups, read at once by a verification.
const VERIFY_RECORDS: usize = 1_000;
const VERIFY_ROLLUPS: usize = 5_000;

const SELECT_PAGE: &str =
    "SELECT seq, at, bytes, hash, payload, salt FROM audit_record WHERE seq > $1 ORDER BY seq LIMIT $2";
const SELECT_PLATFORM_HEAD: &str = "SELECT head_seq, head_hash FROM platform WHERE id = 1";
const SELECT_BOOKS_HEAD: &str = "SELECT head_seq, head_hash FROM books WHERE id = 1";
/// The head, the sums that go with it, and how many events stand in the ledger that it does not know.
const SELECT_BOOKS_PROMISE: &str = "SELECT head_seq, head_hash, events, failures, requests, prompt_tokens,
    cache_read_tokens, cache_write_tokens, completion_tokens, reasoning_tokens, unclassified_tokens, cost_nano_usd,
    next_position, (SELECT COUNT(*) FROM usage_ledger WHERE position < 1 OR position >= books.next_position)
    FROM books WHERE id = 1";
const SELECT_PLATFORM_ENDS: &str = "SELECT COALESCE((SELECT head_seq FROM platform WHERE id = 1), 0),
    COALESCE((SELECT MAX(seq) FROM audit_record), 0)";
const SELECT_BOOKS_ENDS: &str = "SELECT COALESCE((SELECT head_seq FROM books WHERE id = 1), 0),
    COALESCE((SELECT MAX(seq) FROM audit_record), 0)";
const SELECT_HASH: &str = "SELECT hash FROM audit_record WHERE seq = $1";
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
    recompute(connection, chain, &mut Verifier::new(chain), promised, None).await
}

/// A tenant's chain, and whether its ledger, its sums and each of its rollups are what the chain says was counted.
#[derive(Debug, Clone, Copy)]
pub struct Books<'a> {
    pub tenant: TenantId,
    /// A head that somebody has seen, who does not live in the tenant's database.
    pub witness: Head,
    /// Nobody waits for the answer any more.
    pub stop: &'a CancellationToken,
}

/// Recomputes a tenant's chain as [`verify`] does, and with it everything that was counted.
///
/// # Errors
/// [`StoreError`]; what does not hold is an answer, not an error.
pub async fn verify_books(connection: &mut Connection, books: Books<'_>) -> Result<ChainReport, StoreError> {
    let chain = books.tenant.to_string();
    let (secret, mut verifier) = (clock::random_bytes(), Verifier::new(&chain));
    let mut proof = Proof { ledger: LedgerProof::new(secret), books };
    let promised = promise(connection).await?.head;
    let report = recompute(connection, &chain, &mut verifier, promised, Some(&mut proof)).await?;
    if report.broken.is_some() {
        return Ok(report);
    }
    // That may have taken long. What the rollups are at one moment is compared with what the chain says up to then.
    connection.begin_snapshot().await?;
    let there = standing(connection, secret, books.stop).await;
    connection.rollback().await?;
    let (promise, rollups) = there?;
    let report = recompute(connection, &chain, &mut verifier, promise.head, Some(&mut proof)).await?;
    if report.broken.is_some() {
        return Ok(report);
    }
    let reason = if promise.head.seq < books.witness.seq {
        "the chain ends before a record that was seen"
    } else if promise.beyond > 0 || !proof.ledger.ends_before(promise.next_position) {
        "the ledger holds events that no record counted"
    } else if !proof.ledger.sums_to(&promise.lifetime) {
        "the books' sums are not those of the ledger"
    } else if !proof.ledger.rolls_up_to(&rollups) {
        "the rollups are not the sums of the ledger's events"
    } else {
        return Ok(report);
    };
    Ok(ChainReport { head: promise.head, broken: Some(Broken { seq: promise.head.seq, reason }) })
}

/// What the books say of the chain and the ledger.
struct Promise {
    head: Head,
    lifetime: Totals,
    next_position: i64,
    /// Events that stand in the ledger where the books know none.
    beyond: i64,
}

async fn promise(connection: &mut Connection) -> Result<Promise, StoreError> {
    let Some(row) = connection.fetch_one_optional(SELECT_BOOKS_PROMISE, &[]).await? else {
        return Err(StoreError::Untrusted("there are no books".into()));
    };
    Ok(Promise {
        head: Head { seq: row.int(0)?, hash: Hash(row.array(1)?) },
        lifetime: usage::totals_at(&row, 2)?,
        next_position: row.int(12)?,
        beyond: row.int(13)?,
    })
}

/// What the books say, and the rollups that they have then. Within a snapshot.
async fn standing(
    connection: &mut Connection,
    secret: [u8; 32],
    stop: &CancellationToken,
) -> Result<(Promise, Fold), StoreError> {
    let promise = promise(connection).await?;
    let (mut rollups, mut after) = (Fold::new(secret), None);
    loop {
        let page = usage::rollups_after(connection, after.as_ref(), VERIFY_ROLLUPS).await?;
        page.iter().for_each(|(key, totals)| rollups.add(key.start, &key.subject, totals));
        if page.len() < VERIFY_ROLLUPS {
            return Ok((promise, rollups));
        }
        check_wanted(stop)?;
        after = page.into_iter().last().map(|(key, _)| key);
    }
}

/// Does anybody wait for the answer still?
fn check_wanted(stop: &CancellationToken) -> Result<(), StoreError> {
    if stop.is_cancelled() { Err(StoreError::Retryable("nobody waits for the answer".into())) } else { Ok(()) }
}

/// What is checked beside a tenant's chain.
struct Proof<'a> {
    ledger: LedgerProof,
    books: Books<'a>,
}

impl Proof<'_> {
    /// Checks what a record that holds says about the ledger; answers what is wrong.
    async fn look(
        &mut self,
        connection: &mut Connection,
        action: &str,
        link: &Stored,
    ) -> Result<Option<&'static str>, StoreError> {
        check_wanted(self.books.stop)?;
        let witness = self.books.witness;
        if link.seq == witness.seq && link.hash != witness.hash.0 {
            return Ok(Some("the record is not the one that was seen"));
        }
        if action != COUNTED {
            return Ok(None);
        }
        // Nobody is named in it, so nothing of ours erases it; without it the sums would be beyond proof.
        let Some(payload) = &link.payload else { return Ok(Some("what the record counted was erased")) };
        let Some(statement) = Statement::read(payload) else {
            return Ok(Some("the record does not say what was counted"));
        };
        let rows = usage::proven(connection, statement.last_position, statement.events.saturating_add(1)).await?;
        Ok(self.ledger.check(&statement, &rows).err())
    }
}

/// Goes on with a chain up to the head that is promised.
async fn recompute(
    connection: &mut Connection,
    chain: &str,
    verifier: &mut Verifier,
    promised: Head,
    mut proof: Option<&mut Proof<'_>>,
) -> Result<ChainReport, StoreError> {
    while verifier.head().seq < promised.seq {
        let query = ChainQuery { after: verifier.head().seq, limit: VERIFY_RECORDS };
        let records = page(connection, query).await?.items;
        if records.is_empty() {
            return Ok(report(verifier, Some("the chain ends before the books' head")));
        }
        for link in records.iter().map(|record| &record.link).filter(|link| link.seq <= promised.seq) {
            let head = verifier.head();
            let action = match verifier.check(link) {
                Ok(action) => action,
                Err(broken) => return Ok(ChainReport { head, broken: Some(broken) }),
            };
            let Some(proof) = &mut proof else { continue };
            if let Some(reason) = proof.look(connection, &action, link).await? {
                return Ok(ChainReport { head, broken: Some(Broken { seq: link.seq, reason }) });
            }
        }
        if records.last().is_some_and(|record| record.link.seq >= promised.seq) && verifier.head().seq < promised.seq {
            return Ok(report(verifier, Some("the record is missing")));
        }
    }
    if verifier.head() != promised {
        return Ok(report(verifier, Some("the last record is not the books' head")));
    }
    let sql = if chain == PLATFORM_CHAIN { SELECT_PLATFORM_ENDS } else { SELECT_BOOKS_ENDS };
    let Some(ends) = connection.fetch_one_optional(sql, &[]).await? else { return Ok(report(verifier, None)) };
    let goes_on = ends.int(0)? != ends.int(1)?;
    Ok(report(verifier, goes_on.then_some("the chain goes on after the books' head")))
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

/// The head of the platform's chain, which must go on from `known`, a head that was seen before.
///
/// # Errors
/// [`StoreError::Untrusted`] when it does not: the end of the chain was cut off or written anew.
pub async fn head_after(connection: &mut Connection, known: Head) -> Result<Head, StoreError> {
    let head = head(connection).await?;
    let goes_on = head == known || head.seq > known.seq && hash_at(connection, known.seq).await? == Some(known.hash);
    if goes_on {
        Ok(head)
    } else {
        let problem = format!("the platform's audit chain does not go on from record {}, which was seen", known.seq);
        Err(StoreError::Untrusted(problem))
    }
}

/// The hash of a record that is there; the empty chain's for number 0.
pub(super) async fn hash_at(connection: &mut Connection, seq: i64) -> Result<Option<Hash>, StoreError> {
    if seq == 0 {
        return Ok(Some(Hash::NONE));
    }
    let row = connection.fetch_one_optional(SELECT_HASH, &[seq.into()]).await?;
    row.map(|row| row.array(0).map(Hash)).transpose()
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
