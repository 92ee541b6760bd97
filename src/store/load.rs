//! A tenant's books, as a new owner takes them over, or as anybody may read them.

use std::sync::Arc;

use super::StoreError;
use super::audit::hash_at;
use super::connection::Row;
use super::database::Connection;
use super::{flag, gateway, notice, organization, policy, posting, provider, quota, usage};
use crate::domain::books::{Books, Posting};
use crate::domain::chain::{Entry, EntryOutcome, Hash, Head};
use crate::domain::ids::TenantId;
use crate::domain::period;
use crate::domain::reconcile::Terms;
use crate::domain::routing::Routing;
use crate::domain::time::Timestamp;
use crate::fault;

const SELECT_BOOKS: &str = "SELECT tenant, epoch, version, time_zone, next_position, latest_event_at, head_seq,
    head_hash, events, failures, requests, prompt_tokens, cache_read_tokens, cache_write_tokens, completion_tokens,
    reasoning_tokens, unclassified_tokens, cost_nano_usd,
    COALESCE((SELECT MAX(position) FROM usage_ledger), 0), COALESCE((SELECT MAX(seq) FROM audit_record), 0)
    FROM books WHERE id = 1";
const NEXT_EPOCH: &str = "UPDATE books SET epoch = epoch + 1 WHERE id = 1";

/// How a tenant is opened by a new owner.
#[derive(Debug, Clone)]
pub struct Opening {
    pub tenant: TenantId,
    pub retention_micros: i64,
    pub routing: Arc<Routing>,
    /// How the books are compared with a gateway's.
    pub reconcile: Terms,
    pub now: Timestamp,
    pub salt_seed: [u8; 32],
    /// The head the catalogue remembers; the chain must hold it.
    pub witnessed: Head,
}

/// Makes the caller the owner: from the commit of this on, postings of earlier epochs are refused. Leaves a record in
/// the chain, and returns the books with the counters of all running periods.
///
/// # Errors
/// [`StoreError::Untrusted`] when the books are another tenant's, contradict themselves, or their chain is not the one
/// that was witnessed.
pub async fn take_over(connection: &mut Connection, opening: Opening) -> Result<Books, StoreError> {
    connection.begin().await?;
    match take_over_within(connection, opening).await {
        Ok(books) => {
            fault::point("owner.before");
            connection.commit().await?;
            fault::point("owner.after");
            Ok(books)
        }
        Err(error) => {
            // The reason is worth more than whether the rollback was polite: a lost connection rolls back, too.
            let _ = connection.rollback().await;
            Err(error)
        }
    }
}

/// The books as they are committed, without taking them over, with the counters of all stored periods.
///
/// # Errors
/// As [`take_over`].
pub async fn read_books(connection: &mut Connection, tenant: TenantId) -> Result<Books, StoreError> {
    read(connection, tenant, Timestamp(i64::MIN)).await
}

async fn take_over_within(connection: &mut Connection, opening: Opening) -> Result<Books, StoreError> {
    // First of all, for it waits for what an earlier owner is committing, and keeps others from committing: what is read
    // after it is what there is. Whether these are the books to claim is seen then, and nothing is claimed if they are not.
    connection.execute(NEXT_EPOCH, &[]).await?;
    let mut books = read(connection, opening.tenant, opening.now).await?;
    check_witness(connection, books.head, opening.witnessed).await?;
    books.retention_micros = opening.retention_micros;
    books.routing = opening.routing;
    books.comparison.terms = opening.reconcile;
    let mut counters = Vec::new();
    for missing in books.missing_now(opening.now) {
        let counter = quota::counter(connection, &books, &missing, books.next_position).await?;
        counters.push((missing.key(), counter));
    }
    books.learn(counters, opening.now);
    let mut posting = Posting::open(&books, opening.now, opening.salt_seed);
    posting.records_entry(Entry {
        actor: "system".into(),
        action: "owner.changed".into(),
        target: format!("tenant:{}", books.tenant),
        outcome: EntryOutcome::Success,
        request_id: String::new(),
        payload: serde_json::json!({ "epoch": books.epoch }).to_string(),
    });
    posting.close();
    posting::write(connection, &books, &posting).await?;
    Ok(posting.books)
}

/// Counters of periods that end after `since`, and everything else.
async fn read(connection: &mut Connection, tenant: TenantId, since: Timestamp) -> Result<Books, StoreError> {
    let Some(row) = connection.fetch_one_optional(SELECT_BOOKS, &[]).await? else {
        return Err(StoreError::Untrusted(format!("there are no books of {tenant}")));
    };
    let mut books = books_at(&row, tenant)?;
    check_head(connection, books.head).await?;
    books.quotas = quota::all(connection).await?;
    books.counters = quota::running(connection, since).await?;
    quota::read_recent(connection, &mut books).await?;
    books.firing = notice::firing(connection).await?;
    books.comparison.progress = gateway::progress(connection).await?;
    books.told = notice::told(connection).await?;
    books.organization = Arc::new(organization::load(connection).await?);
    books.policies = Arc::new(policy::load(connection).await?);
    books.flags = flag::load(connection).await?;
    books.providers = Arc::new(provider::load(connection).await?);
    Ok(books)
}

fn books_at(row: &Row, tenant: TenantId) -> Result<Books, StoreError> {
    let untrusted = |text: String| Err(StoreError::Untrusted(text));
    let owner = row.text(0)?;
    if owner != tenant.to_string() {
        return untrusted(format!("these are the books of {owner}, not of {tenant}"));
    }
    let zone = row.parsed(3, period::time_zone)?;
    let mut books = Books::new(tenant, zone, i64::MAX);
    books.epoch = row.int(1)?;
    books.version = row.int(2)?;
    books.next_position = row.int(4)?;
    books.latest_event_at = Timestamp(row.int(5)?);
    books.head = Head { seq: row.int(6)?, hash: Hash(row.array(7)?) };
    books.lifetime = usage::totals_at(row, 8)?;
    let (last_position, last_seq) = (row.int(18)?, row.int(19)?);
    if books.next_position <= last_position {
        return untrusted(format!("the ledger goes on to {last_position}, past the books' {}", books.next_position));
    }
    if books.head.seq != last_seq {
        return untrusted(format!("the chain ends at {last_seq}, the books' head is {}", books.head.seq));
    }
    Ok(books)
}

/// The books' head must be the hash of the chain's last record.
async fn check_head(connection: &mut Connection, head: Head) -> Result<(), StoreError> {
    if hash_at(connection, head.seq).await? == Some(head.hash) {
        return Ok(());
    }
    Err(StoreError::Untrusted("another chain: its last record is not the books' head".into()))
}

/// The chain must hold the head that the catalogue remembers: a restored copy is behind it, a swapped one is another.
async fn check_witness(connection: &mut Connection, head: Head, witnessed: Head) -> Result<(), StoreError> {
    if head.seq < witnessed.seq {
        return Err(StoreError::Untrusted(format!(
            "behind: the chain ends at {}, and {} was witnessed",
            head.seq, witnessed.seq
        )));
    }
    if hash_at(connection, witnessed.seq).await? == Some(witnessed.hash) {
        return Ok(());
    }
    Err(StoreError::Untrusted(format!("another chain: record {} is not the one that was witnessed", witnessed.seq)))
}
