//! What was not counted, why, and whether another try counted it. In the control database.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use uuid::Uuid;

use super::StoreError;
use super::connection::{Bulk, Column, Row};
use super::database::Connection;
use crate::domain::ids::TenantId;
use crate::domain::report::{Page, Quarantined};
use crate::domain::time::Timestamp;
use crate::domain::usage::Refusal;

static INSERT: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new(
        "INSERT INTO quarantine (id, tenant_id, reason, detail, origin, format, digest, body, received_at,
            last_received_at, arrivals, replayed_at, left_out_bytes, body_bytes)",
        &[
            "TEXT", "TEXT", "TEXT", "TEXT", "TEXT", "TEXT", "BYTEA", "BYTEA", "BIGINT", "BIGINT", "BIGINT", "BIGINT",
            "BIGINT", "BIGINT",
        ],
        // It waits for what it was refused for last, unless it is counted already.
        "ON CONFLICT (digest) DO UPDATE SET arrivals = quarantine.arrivals + excluded.arrivals,
            last_received_at = excluded.last_received_at,
            left_out_bytes = quarantine.left_out_bytes + excluded.left_out_bytes,
            tenant_id = CASE WHEN quarantine.replayed_at = 0 THEN excluded.tenant_id ELSE quarantine.tenant_id END,
            reason = CASE WHEN quarantine.replayed_at = 0 THEN excluded.reason ELSE quarantine.reason END,
            detail = CASE WHEN quarantine.replayed_at = 0 THEN excluded.detail ELSE quarantine.detail END",
    )
});

const SELECT_PAGE: &str =
    "SELECT id, tenant_id, reason, detail, origin, format, digest, body, received_at, replayed_at, arrivals, left_out_bytes
    FROM quarantine WHERE ($1 = '' OR tenant_id = $1) AND ($2 = '' OR reason = $2) AND ($3 = '' OR id < $3)
    ORDER BY id DESC LIMIT $4";
const SELECT_ONE: &str =
    "SELECT id, tenant_id, reason, detail, origin, format, digest, body, received_at, replayed_at, arrivals, left_out_bytes
    FROM quarantine WHERE id = $1";
const WAITING_CENSUS: &str = "SELECT tenant_id, CAST(COUNT(*) AS BIGINT) FROM quarantine
    WHERE replayed_at = 0 AND reason IN ('TENANT_FROZEN', 'TENANT_UNAVAILABLE') GROUP BY tenant_id ORDER BY tenant_id";
const WAITING_SIZES: &str = "SELECT body_bytes FROM quarantine
    WHERE tenant_id = $1 AND replayed_at = 0 AND reason IN ('TENANT_FROZEN', 'TENANT_UNAVAILABLE')
    ORDER BY id LIMIT $2";
const SELECT_WAITING: &str =
    "SELECT id, tenant_id, reason, detail, origin, format, digest, body, received_at, replayed_at, arrivals, left_out_bytes
    FROM quarantine
    WHERE tenant_id = $1 AND replayed_at = 0 AND reason IN ('TENANT_FROZEN', 'TENANT_UNAVAILABLE')
    ORDER BY id LIMIT $2";
/// What neither waits nor was counted in the end, and has a body. The index `quarantine_kept` has all that this reads.
pub(super) const KEPT: &str =
    "SELECT CAST(COUNT(*) AS BIGINT), CAST(COALESCE(SUM(body_bytes), 0) AS BIGINT) FROM quarantine
    WHERE tenant_id = $1 AND replayed_at = 0 AND left_out_bytes = 0
    AND reason NOT IN ('TENANT_FROZEN', 'TENANT_UNAVAILABLE')";
const FORGET: &str = "DELETE FROM quarantine WHERE id IN (SELECT id FROM quarantine WHERE last_received_at < $1
    AND NOT (replayed_at = 0 AND reason IN ('TENANT_FROZEN', 'TENANT_UNAVAILABLE')) ORDER BY last_received_at LIMIT $2)";
/// It has waited until now, so its age begins anew.
const REFUSE_AGAIN: &str =
    "UPDATE quarantine SET reason = $2, detail = $3, last_received_at = $4 WHERE id = $1 AND replayed_at = 0";
/// The ledger has it: its body is given up.
const MARK_REPLAYED: &str = "UPDATE quarantine SET replayed_at = $2, body = SUBSTR(body, 1, 0), body_bytes = 0
    WHERE id = $1 AND replayed_at = 0";

/// What one tenant has in quarantine, or what is of no tenant: events that are kept whole, and bytes of their bodies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    pub events: u64,
    pub bytes: u64,
}

/// Keeps what could not be counted. The same digest again is the same row, with so many more arrivals.
///
/// # Errors
/// [`StoreError`].
pub async fn insert<R: Borrow<Quarantined> + Sync>(connection: &mut Connection, rows: &[R]) -> Result<(), StoreError> {
    // One statement may touch a row once only.
    let mut distinct: BTreeMap<[u8; 32], (&Quarantined, [i64; 2])> = BTreeMap::new();
    for row in rows {
        let row: &Quarantined = row.borrow();
        let (_, [arrivals, left_out_bytes]) = distinct.entry(row.digest).or_insert((row, [0, 0]));
        *arrivals += row.arrivals;
        *left_out_bytes += row.left_out_bytes;
    }
    let (rows, sums): (Vec<&Quarantined>, Vec<[i64; 2]>) = distinct.into_values().unzip();
    let ids: Vec<String> = rows.iter().map(|row| row.id.to_string()).collect();
    let tenants: Vec<String> =
        rows.iter().map(|row| row.tenant.map(|tenant| tenant.to_string()).unwrap_or_default()).collect();
    let columns = [
        Column::Texts(ids.iter().map(String::as_str).collect()),
        Column::Texts(tenants.iter().map(String::as_str).collect()),
        Column::Texts(rows.iter().map(|row| row.reason.code()).collect()),
        Column::Texts(rows.iter().map(|row| row.detail.as_str()).collect()),
        Column::Texts(rows.iter().map(|row| row.origin.as_str()).collect()),
        Column::Texts(rows.iter().map(|row| row.format.as_str()).collect()),
        Column::Bytes(rows.iter().map(|row| row.digest.as_slice()).collect()),
        Column::Bytes(rows.iter().map(|row| row.body.as_slice()).collect()),
        Column::Ints(rows.iter().map(|row| row.received_at.0).collect()),
        Column::Ints(rows.iter().map(|row| row.received_at.0).collect()),
        Column::Ints(sums.iter().map(|[arrivals, _]| *arrivals).collect()),
        Column::Ints(rows.iter().map(|row| row.replayed_at.map_or(0, |at| at.0)).collect()),
        Column::Ints(sums.iter().map(|[_, left_out_bytes]| *left_out_bytes).collect()),
        Column::Ints(rows.iter().map(|row| i64::try_from(row.body.len()).unwrap_or(i64::MAX)).collect()),
    ];
    connection.execute_bulk(&INSERT, &columns).await?;
    Ok(())
}

/// What counts against the share of `tenant`, or of all that is of no tenant.
///
/// # Errors
/// [`StoreError`].
pub async fn kept(connection: &mut Connection, tenant: Option<TenantId>) -> Result<Kept, StoreError> {
    let tenant = tenant.map(|tenant| tenant.to_string()).unwrap_or_default();
    let Some(row) = connection.fetch_one_optional(KEPT, &[tenant.into()]).await? else { return Ok(Kept::default()) };
    let number = |index| row.int(index).map(|number| u64::try_from(number).unwrap_or(0));
    Ok(Kept { events: number(0)?, bytes: number(1)? })
}

/// Forgets at most `limit` rows that came last, or were refused again, before `before`; answers how many. What waits for
/// its tenant stays.
///
/// # Errors
/// [`StoreError`].
pub async fn forget(connection: &mut Connection, before: Timestamp, limit: i64) -> Result<u64, StoreError> {
    connection.execute(FORGET, &[before.into(), limit.into()]).await
}

/// Newest first. `tenant: None` sees all; `reason` filters.
///
/// # Errors
/// [`StoreError`].
pub async fn page(
    connection: &mut Connection,
    tenant: Option<TenantId>,
    reason: Option<Refusal>,
    before: Option<Uuid>,
    limit: usize,
) -> Result<Page<Quarantined, Uuid>, StoreError> {
    let fetched = i64::try_from(limit.saturating_add(1)).unwrap_or(i64::MAX);
    let values = [
        tenant.map(|tenant| tenant.to_string()).unwrap_or_default().into(),
        reason.map(Refusal::code).unwrap_or_default().into(),
        before.map(|id| id.to_string()).unwrap_or_default().into(),
        fetched.into(),
    ];
    let rows = connection.fetch(SELECT_PAGE, &values).await?;
    let items: Vec<Quarantined> = rows.iter().take(limit).map(row_at).collect::<Result<_, _>>()?;
    let next = items.last().filter(|_| rows.len() > limit).map(|row| row.id);
    Ok(Page { items, next })
}

/// # Errors
/// [`StoreError`].
pub async fn one(connection: &mut Connection, id: Uuid) -> Result<Option<Quarantined>, StoreError> {
    let row = connection.fetch_one_optional(SELECT_ONE, &[id.to_string().into()]).await?;
    row.as_ref().map(row_at).transpose()
}

/// Another try counted it, and its body is given up. Marking again changes nothing.
///
/// # Errors
/// [`StoreError`].
pub async fn mark_replayed(connection: &mut Connection, id: Uuid, at: Timestamp) -> Result<(), StoreError> {
    connection.execute(MARK_REPLAYED, &[id.to_string().into(), at.into()]).await?;
    Ok(())
}

/// How many rows wait for which tenant.
///
/// # Errors
/// [`StoreError`].
pub async fn waiting_census(connection: &mut Connection) -> Result<Vec<(TenantId, i64)>, StoreError> {
    let rows = connection.fetch(WAITING_CENSUS, &[]).await?;
    rows.iter().map(|row| Ok((row.parsed(0, |text| text.parse().ok())?, row.int(1)?))).collect()
}

/// The oldest rows that wait for a tenant: at most `limit`, and no more bytes than `bytes_max`, but at least one.
///
/// # Errors
/// [`StoreError`].
pub async fn waiting(
    connection: &mut Connection,
    tenant: TenantId,
    limit: usize,
    bytes_max: i64,
) -> Result<Vec<Quarantined>, StoreError> {
    let tenant = tenant.to_string();
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut bytes = 0;
    let mut fitting: i64 = 0;
    for row in connection.fetch(WAITING_SIZES, &[tenant.as_str().into(), limit.into()]).await? {
        bytes += row.int(0)?;
        if fitting > 0 && bytes > bytes_max {
            break;
        }
        fitting += 1;
    }
    let rows = connection.fetch(SELECT_WAITING, &[tenant.as_str().into(), fitting.into()]).await?;
    rows.iter().map(row_at).collect()
}

/// Another try refused it for another reason, for which nothing has to be waited for.
///
/// # Errors
/// [`StoreError`].
pub async fn refuse_again(
    connection: &mut Connection,
    id: Uuid,
    reason: Refusal,
    detail: &str,
    at: Timestamp,
) -> Result<(), StoreError> {
    connection.execute(REFUSE_AGAIN, &[id.to_string().into(), reason.code().into(), detail.into(), at.into()]).await?;
    Ok(())
}

fn row_at(row: &Row) -> Result<Quarantined, StoreError> {
    let tenant = row.text(1)?;
    Ok(Quarantined {
        id: row.parsed(0, |text| Uuid::try_parse(text).ok())?,
        tenant: if tenant.is_empty() { None } else { Some(row.parsed(1, |text| text.parse().ok())?) },
        reason: row.parsed(2, Refusal::from_code)?,
        detail: row.text(3)?,
        origin: row.text(4)?,
        format: row.text(5)?,
        digest: row.array(6)?,
        body: row.bytes(7)?,
        received_at: Timestamp(row.int(8)?),
        replayed_at: Some(row.int(9)?).filter(|at| *at != 0).map(Timestamp),
        arrivals: row.int(10)?,
        left_out_bytes: row.int(11)?,
    })
}
