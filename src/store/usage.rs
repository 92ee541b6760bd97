//! The ledger and its rollups, as questions.

use super::StoreError;
use super::connection::Row;
use super::database::Connection;
use super::database::Value;
use crate::domain::books::RollupKey;
use crate::domain::ledger_proof::ProvenRow;
use crate::domain::period::Window;
use crate::domain::report::{Dimension, LedgerQuery, LedgerRow, Page, UsageQuery};
use crate::domain::time::{CLOCK_STEP_MICROS, Timestamp};
use crate::domain::usage::{
    Amounts, BodyHash, EventKey, FUTURE_TOLERANCE_MICROS, Flags, Kind, Status, Subject, Totals, UsageEvent,
};

/// Most sums that one report may read: what ten thousand report rows may come from, and no more than memory allows.
pub const ROLLUPS_MAX: usize = 250_000;

/// Dimensions that are not asked for ($3 to $7 are 0) are summed over.
const SELECT_ROLLUPS: &str = "SELECT start_at,
    CASE WHEN $3 = 1 THEN user_id ELSE '' END,
    CASE WHEN $4 = 1 THEN group_id ELSE '' END,
    CASE WHEN $5 = 1 THEN api_key_id ELSE '' END,
    CASE WHEN $6 = 1 THEN model ELSE '' END,
    CASE WHEN $7 = 1 THEN provider ELSE '' END,
    CAST(SUM(events) AS BIGINT),
    CAST(SUM(failures) AS BIGINT),
    CAST(SUM(requests) AS BIGINT),
    CAST(SUM(prompt_tokens) AS BIGINT),
    CAST(SUM(cache_read_tokens) AS BIGINT),
    CAST(SUM(cache_write_tokens) AS BIGINT),
    CAST(SUM(completion_tokens) AS BIGINT),
    CAST(SUM(reasoning_tokens) AS BIGINT),
    CAST(SUM(unclassified_tokens) AS BIGINT),
    CAST(SUM(cost_nano_usd) AS BIGINT)
    FROM usage_rollup WHERE start_at >= $1 AND start_at < $2
    GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 1 LIMIT $8";

const SELECT_LEDGER: &str = "SELECT position, recorded_at, source, event_id, occurred_at, kind, status,
    user_id, group_id, api_key_id, model, provider, call_type, requests, prompt_tokens, cache_read_tokens,
    cache_write_tokens, completion_tokens, reasoning_tokens, unclassified_tokens, cost_nano_usd, flags, details
    FROM usage_ledger
    WHERE position < $1 AND position >= $2 AND occurred_at >= $3 AND occurred_at < $4
    AND ($5 = '' OR user_id = $5) AND ($6 = '' OR group_id = $6) AND ($7 = '' OR api_key_id = $7)
    AND ($8 = '' OR model = $8) AND ($9 = '' OR provider = $9)
    ORDER BY position DESC LIMIT $10";

const SELECT_PROVEN: &str = "SELECT position, recorded_at, source, event_id, occurred_at, kind, status,
    user_id, group_id, api_key_id, model, provider, call_type, requests, prompt_tokens, cache_read_tokens,
    cache_write_tokens, completion_tokens, reasoning_tokens, unclassified_tokens, cost_nano_usd, flags, details,
    event_key, body_hash FROM usage_ledger WHERE position <= $1 ORDER BY position DESC LIMIT $2";

const SELECT_ROLLUPS_AFTER: &str =
    "SELECT start_at, user_id, group_id, api_key_id, model, provider, events, failures, requests,
    prompt_tokens, cache_read_tokens, cache_write_tokens, completion_tokens, reasoning_tokens, unclassified_tokens,
    cost_nano_usd FROM usage_rollup
    WHERE (start_at, user_id, group_id, api_key_id, model, provider) > ($1, $2, $3, $4, $5, $6)
    ORDER BY start_at, user_id, group_id, api_key_id, model, provider LIMIT $7";

const SELECT_NEXT: &str =
    "SELECT position, recorded_at FROM usage_ledger WHERE position >= $1 ORDER BY position LIMIT 1";
const SELECT_LAST: &str = "SELECT COALESCE(MAX(position), 0) FROM usage_ledger";

/// Sums by quarter of an hour and by the dimensions asked for, oldest first.
///
/// # Errors
/// [`StoreError`]; [`StoreError::Wrong`] when there are more than [`ROLLUPS_MAX`], because a part would be a lie.
pub async fn rollups(
    connection: &mut Connection,
    query: &UsageQuery,
) -> Result<Vec<(Timestamp, Subject, Totals)>, StoreError> {
    let mut values: Vec<Value> = vec![query.window.start.into(), query.window.end.into()];
    values.extend(Dimension::ALL.map(|dimension| Value::Int(i64::from(query.group_by.contains(&dimension)))));
    values.push(Value::Int(ROLLUPS_MAX as i64 + 1));
    let rows = connection.fetch(SELECT_ROLLUPS, &values).await?;
    if rows.len() > ROLLUPS_MAX {
        return Err(StoreError::Wrong(format!("the report would be made of more than {ROLLUPS_MAX} sums")));
    }
    rows.iter().map(|row| Ok((Timestamp(row.int(0)?), subject_at(row, 1)?, totals_at(row, 6)?))).collect()
}

/// Rows of the ledger, newest first.
///
/// # Errors
/// [`StoreError`].
pub async fn page(connection: &mut Connection, query: &LedgerQuery) -> Result<Page<LedgerRow>, StoreError> {
    let floor = match query.window {
        Some(window) => position_floor(connection, window.start.plus_micros(-FUTURE_TOLERANCE_MICROS)).await?,
        None => 0,
    };
    let window = query.window.unwrap_or(Window { start: Timestamp(i64::MIN), end: Timestamp(i64::MAX) });
    let fetched = i64::try_from(query.limit.saturating_add(1)).unwrap_or(i64::MAX);
    let subject = &query.subject;
    let values: [Value; 10] = [
        query.before.unwrap_or(i64::MAX).into(),
        floor.into(),
        window.start.into(),
        window.end.into(),
        subject.user.as_str().into(),
        subject.group.as_str().into(),
        subject.api_key.as_str().into(),
        subject.model.as_str().into(),
        subject.provider.as_str().into(),
        fetched.into(),
    ];
    let rows = connection.fetch(SELECT_LEDGER, &values).await?;
    let items: Vec<LedgerRow> = rows.iter().take(query.limit).map(ledger_row).collect::<Result<_, _>>()?;
    let next = items.last().filter(|_| rows.len() > query.limit).map(|row| row.position);
    Ok(Page { items, next })
}

/// The rows at `last` and before, newest first, with the identities that are stored with them.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn proven(connection: &mut Connection, last: i64, limit: usize) -> Result<Vec<ProvenRow>, StoreError> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = connection.fetch(SELECT_PROVEN, &[last.into(), limit.into()]).await?;
    let row = |row: &Row| {
        let identity = (EventKey(row.array(23)?), BodyHash(row.array(24)?));
        Ok(ProvenRow { row: ledger_row(row)?, identity })
    };
    rows.iter().map(row).collect()
}

/// Rollups in the order of their keys, after one of them; at most `limit`.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn rollups_after(
    connection: &mut Connection,
    after: Option<&RollupKey>,
    limit: usize,
) -> Result<Vec<(RollupKey, Totals)>, StoreError> {
    let nobody = Subject::default();
    let (start, subject) = after.map_or((i64::MIN, &nobody), |key| (key.start.0, &key.subject));
    let values = [
        start.into(),
        subject.user.as_str().into(),
        subject.group.as_str().into(),
        subject.api_key.as_str().into(),
        subject.model.as_str().into(),
        subject.provider.as_str().into(),
        i64::try_from(limit).unwrap_or(i64::MAX).into(),
    ];
    let rows = connection.fetch(SELECT_ROLLUPS_AFTER, &values).await?;
    let rollup = |row: &Row| {
        let key = RollupKey { start: Timestamp(row.int(0)?), subject: subject_at(row, 1)? };
        Ok((key, totals_at(row, 6)?))
    };
    rows.iter().map(rollup).collect()
}

/// A position before which nothing was recorded at `instant` or later. The ledger has no index by time and needs none:
/// it is clustered by arrival, so a few look-ups by position find the time. An event is recorded no earlier than five
/// minutes before it claims to occur, which makes this a floor for questions about when events occurred, too.
pub(super) async fn position_floor(connection: &mut Connection, instant: Timestamp) -> Result<i64, StoreError> {
    let earliest = instant.plus_micros(-CLOCK_STEP_MICROS);
    let last = connection.fetch_one_optional(SELECT_LAST, &[]).await?.map_or(Ok(0), |row| row.int(0))?;
    let (mut low, mut high) = (0, last + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        match connection.fetch_one_optional(SELECT_NEXT, &[middle.into()]).await? {
            Some(row) if row.int(1)? < earliest.0 => low = row.int(0)? + 1,
            _ => high = middle,
        }
    }
    Ok(low)
}

/// Totals from their ten columns, the first of which is at `first`.
pub(super) fn totals_at(row: &Row, first: usize) -> Result<Totals, StoreError> {
    Ok(Totals { events: row.int(first)?, failures: row.int(first + 1)?, amounts: amounts_at(row, first + 2)? })
}

pub(super) fn amounts_at(row: &Row, first: usize) -> Result<Amounts, StoreError> {
    let mut numbers = [0; 8];
    for (offset, number) in numbers.iter_mut().enumerate() {
        *number = row.int(first + offset)?;
    }
    Ok(Amounts::from_array(numbers))
}

pub(super) fn subject_at(row: &Row, first: usize) -> Result<Subject, StoreError> {
    Ok(Subject {
        user: row.text(first)?,
        group: row.text(first + 1)?,
        api_key: row.text(first + 2)?,
        model: row.text(first + 3)?,
        provider: row.text(first + 4)?,
    })
}

fn ledger_row(row: &Row) -> Result<LedgerRow, StoreError> {
    let event = UsageEvent {
        source: row.text(2)?,
        event_id: row.text(3)?,
        occurred_at: Timestamp(row.int(4)?),
        kind: row.parsed(5, kind_from_name)?,
        status: row.parsed(6, status_from_name)?,
        subject: subject_at(row, 7)?,
        call_type: row.text(12)?,
        amounts: amounts_at(row, 13)?,
        flags: Flags(row.int(21)?),
        details: row.text(22)?,
    };
    Ok(LedgerRow { position: row.int(0)?, recorded_at: Timestamp(row.int(1)?), event })
}

pub(super) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Delta => "delta",
        Kind::Cumulative => "cumulative",
        Kind::Adjustment => "adjustment",
    }
}

fn kind_from_name(name: &str) -> Option<Kind> {
    [Kind::Delta, Kind::Cumulative, Kind::Adjustment].into_iter().find(|kind| kind_name(*kind) == name)
}

pub(super) fn status_name(status: Status) -> &'static str {
    match status {
        Status::Success => "success",
        Status::Failure => "failure",
    }
}

pub(super) fn status_from_name(name: &str) -> Option<Status> {
    [Status::Success, Status::Failure].into_iter().find(|status| status_name(*status) == name)
}
