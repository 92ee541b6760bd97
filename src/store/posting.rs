//! The hot transaction: events into the ledger, and everything a posting says, under the writer's epoch.
//!
//! The writer begins, calls these, and commits. An event is counted once because its key is unique here, and nowhere
//! else is that decided.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::StoreError;
use super::connection::{Bulk, Column, Guarded, Value};
use super::database::Connection;
use super::quota::thresholds_text;
use super::usage::{kind_name, status_name};
use super::{failure, gateway};
use crate::domain::books::{Books, Posting};
use crate::domain::notice::{Acknowledgement, Alert, AlertSubject, Attempt, AttemptResult, BURN_MARK};
use crate::domain::quota::Quota;
use crate::domain::sorting::Inserted;
use crate::domain::time::Timestamp;
use crate::domain::usage::{Identity, Totals, UsageEvent};
use crate::fault;

/// The ledger and its columns, in the order of [`ledger_columns`].
macro_rules! ledger {
    () => {
        "usage_ledger (position, event_key, body_hash, source, event_id, occurred_at, recorded_at, kind, status, user_id,
            group_id, api_key_id, model, provider, call_type, requests, prompt_tokens, cache_read_tokens,
            cache_write_tokens, completion_tokens, reasoning_tokens, unclassified_tokens, cost_nano_usd, flags, details)"
    };
}

static INSERT_EVENTS: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new(
        concat!("INSERT INTO ", ledger!()),
        &[
            "BIGINT", "BYTEA", "BYTEA", "TEXT", "TEXT", "BIGINT", "BIGINT", "TEXT", "TEXT", "TEXT", "TEXT", "TEXT",
            "TEXT", "TEXT", "TEXT", "BIGINT", "BIGINT", "BIGINT", "BIGINT", "BIGINT", "BIGINT", "BIGINT", "BIGINT",
            "BIGINT", "TEXT",
        ],
        "ON CONFLICT (event_key) DO NOTHING",
    )
});

const COPY_EVENTS: &str = concat!("COPY ", ledger!(), " FROM STDIN (FORMAT binary)");
/// Fewer rows than this are inserted: COPY takes a round trip more, and is parsed anew each time.
const COPY_ROWS_MIN: usize = 64;

const SELECT_EPOCH: &str = "SELECT epoch FROM books WHERE id = 1";

const SELECT_POSITIONS: &str = "SELECT position FROM usage_ledger WHERE position >= $1 AND position < $2";

static SELECT_BODIES: LazyLock<Bulk> =
    LazyLock::new(|| Bulk::new("SELECT event_key, body_hash FROM usage_ledger WHERE event_key IN (", &["BYTEA"], ")"));

static INSERT_CONFLICTS: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new(
        "INSERT INTO usage_conflict (event_key, body_hash, source, event_id, recorded_at, body)",
        &["BYTEA", "BYTEA", "TEXT", "TEXT", "BIGINT", "TEXT"],
        "ON CONFLICT (event_key, body_hash) DO NOTHING",
    )
});

const UPDATE_BOOKS: &str = "UPDATE books SET version = $2, next_position = $3, latest_event_at = $4, head_seq = $5,
    head_hash = $6, time_zone = CASE WHEN $7 = '' THEN time_zone ELSE $7 END, events = $8, failures = $9,
    requests = $10, prompt_tokens = $11, cache_read_tokens = $12, cache_write_tokens = $13, completion_tokens = $14,
    reasoning_tokens = $15, unclassified_tokens = $16, cost_nano_usd = $17 WHERE id = 1 AND epoch = $1";

static DELETE_COUNTERS: LazyLock<Bulk> =
    LazyLock::new(|| Bulk::new("DELETE FROM counter WHERE quota_id IN (", &["TEXT"], ")"));

static WRITE_COUNTERS: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new(
        "INSERT INTO counter (quota_id, period_start, period_end, used)",
        &["TEXT", "BIGINT", "BIGINT", "BIGINT"],
        "ON CONFLICT (quota_id, period_start) DO UPDATE SET period_end = excluded.period_end, used = excluded.used",
    )
});

static ADD_ROLLUPS: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new(
        "INSERT INTO usage_rollup (start_at, user_id, group_id, api_key_id, model, provider, events, failures,
            requests, prompt_tokens, cache_read_tokens, cache_write_tokens, completion_tokens, reasoning_tokens,
            unclassified_tokens, cost_nano_usd)",
        &[
            "BIGINT", "TEXT", "TEXT", "TEXT", "TEXT", "TEXT", "BIGINT", "BIGINT", "BIGINT", "BIGINT", "BIGINT",
            "BIGINT", "BIGINT", "BIGINT", "BIGINT", "BIGINT",
        ],
        "ON CONFLICT (start_at, user_id, group_id, api_key_id, model, provider) DO UPDATE SET
            events = usage_rollup.events + excluded.events,
            failures = usage_rollup.failures + excluded.failures,
            requests = usage_rollup.requests + excluded.requests,
            prompt_tokens = usage_rollup.prompt_tokens + excluded.prompt_tokens,
            cache_read_tokens = usage_rollup.cache_read_tokens + excluded.cache_read_tokens,
            cache_write_tokens = usage_rollup.cache_write_tokens + excluded.cache_write_tokens,
            completion_tokens = usage_rollup.completion_tokens + excluded.completion_tokens,
            reasoning_tokens = usage_rollup.reasoning_tokens + excluded.reasoning_tokens,
            unclassified_tokens = usage_rollup.unclassified_tokens + excluded.unclassified_tokens,
            cost_nano_usd = usage_rollup.cost_nano_usd + excluded.cost_nano_usd",
    )
});

const ALERT_HEAD: &str = "INSERT INTO alert (id, quota_id, scope_kind, scope_id, metric, period, limit_amount,
    thresholds, enforcement, period_start, period_end, threshold, used, fired_at, resolved_at, kind, details)";
const ALERT_TYPES: [&str; 17] = [
    "TEXT", "TEXT", "TEXT", "TEXT", "TEXT", "TEXT", "BIGINT", "TEXT", "TEXT", "BIGINT", "BIGINT", "BIGINT", "BIGINT",
    "BIGINT", "BIGINT", "TEXT", "TEXT",
];
/// A second alert for the same subject is refused by the table: that would be a bug.
static INSERT_ALERTS: LazyLock<Bulk> = LazyLock::new(|| Bulk::new(ALERT_HEAD, &ALERT_TYPES, ""));
static RESOLVE_ALERTS: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new(ALERT_HEAD, &ALERT_TYPES, "ON CONFLICT (id) DO UPDATE SET resolved_at = excluded.resolved_at")
});

static INSERT_OWED: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new(
        "INSERT INTO outbox (alert_id, event, channel, created_at, attempts, next_attempt_at, settled_at, outcome,
            reason, held_until)",
        &["TEXT", "TEXT", "TEXT", "BIGINT", "BIGINT", "BIGINT", "BIGINT", "TEXT", "TEXT", "BIGINT"],
        "",
    )
});

/// The first who acknowledges counts.
const ACKNOWLEDGE_ALERT: &str = "UPDATE alert SET acknowledged_at = $2, acknowledged_by = $3
    WHERE id = $1 AND acknowledged_at = 0";

/// What is settled stays so, whatever a late attempt says.
const UPDATE_ATTEMPT: &str = "UPDATE outbox SET attempts = attempts + $8, next_attempt_at = $4, settled_at = $5,
    outcome = $6, reason = $7 WHERE alert_id = $1 AND event = $2 AND channel = $3 AND settled_at = 0";

const DELETE_QUOTAS: &str = "DELETE FROM quota";
static INSERT_QUOTAS: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new(
        "INSERT INTO quota (id, ordinal, scope_kind, scope_id, metric, period, limit_amount, thresholds,
            enforcement)",
        &["TEXT", "BIGINT", "TEXT", "TEXT", "TEXT", "TEXT", "BIGINT", "TEXT", "TEXT"],
        "",
    )
});

static INSERT_RECORDS: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new(
        "INSERT INTO audit_record (seq, at, action, bytes, hash, payload, salt)",
        &["BIGINT", "BIGINT", "TEXT", "BYTEA", "BYTEA", "TEXT", "BYTEA"],
        "",
    )
});

static ADVANCE_CURSORS: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new(
        "INSERT INTO stream_cursor (stream, sequence)",
        &["TEXT", "BIGINT"],
        "ON CONFLICT (stream) DO UPDATE SET sequence = CASE WHEN excluded.sequence > stream_cursor.sequence
            THEN excluded.sequence ELSE stream_cursor.sequence END",
    )
});

/// What nearly every commit writes. The books come first: they are the check that we are still the owner, and the lock
/// that keeps a new owner waiting.
static WRITE_BOOKS: LazyLock<Guarded> = LazyLock::new(|| {
    let rows: Vec<&'static Bulk> = vec![&WRITE_COUNTERS, &ADD_ROLLUPS, &INSERT_RECORDS, &ADVANCE_CURSORS];
    Guarded::new(UPDATE_BOOKS, 17, rows)
});

/// What is expected of the events that are offered to the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expecting {
    /// All of them are new. A wrong guess costs the transaction; a right one is the cheapest way in.
    New,
    /// Some may be known.
    Any,
}

/// Offers `events` to the ledger at positions from `first_position` on, in order; answers what became of each. The keys
/// are distinct, and no row stands at those positions.
///
/// # Errors
/// [`StoreError`]; [`StoreError::Known`] when it was `expecting` new events, and one was known.
pub async fn insert_events(
    connection: &mut Connection,
    first_position: i64,
    recorded_at: Timestamp,
    events: &[&UsageEvent],
    keys: &[Identity],
    expecting: Expecting,
) -> Result<Vec<Inserted>, StoreError> {
    give_way().await;
    let columns = ledger_columns(first_position, recorded_at, events, keys);
    // SQLite learns of a known key for nothing, and has nothing cheaper to offer.
    if expecting == Expecting::New && connection.is_postgres() && events.len() >= COPY_ROWS_MIN {
        connection.copy(COPY_EVENTS, &columns).await?;
        return Ok(vec![Inserted::New; events.len()]);
    }
    let inserted = connection.execute_bulk(&INSERT_EVENTS, &columns).await?;
    // The usual case: every key was new, and there is nothing to ask.
    if inserted == events.len() as u64 || fault::is_planted("duplicates-counted") {
        return Ok(vec![Inserted::New; events.len()]);
    }
    let mut outcomes = vec![Inserted::Duplicate; events.len()];
    let range = [first_position.into(), (first_position + events.len() as i64).into()];
    for row in connection.fetch(SELECT_POSITIONS, &range).await? {
        let offset = usize::try_from(row.int(0)? - first_position).unwrap_or(usize::MAX);
        if let Some(outcome) = outcomes.get_mut(offset) {
            *outcome = Inserted::New;
        }
    }
    find_conflicts(connection, keys, &mut outcomes).await?;
    Ok(outcomes)
}

/// Tells those of the `outcomes` that are not new apart: the ledger has the same body, or another.
async fn find_conflicts(
    connection: &mut Connection,
    keys: &[Identity],
    outcomes: &mut [Inserted],
) -> Result<(), StoreError> {
    let known = keys.iter().zip(outcomes.iter()).filter(|(_, outcome)| **outcome != Inserted::New);
    let known: Vec<&[u8]> = known.map(|((key, _), _)| key.0.as_slice()).collect();
    let mut bodies: HashMap<[u8; 20], [u8; 16]> = HashMap::with_capacity(known.len());
    for row in connection.fetch_bulk(&SELECT_BODIES, &[Column::Bytes(known)]).await? {
        bodies.insert(row.array(0)?, row.array(1)?);
    }
    for ((key, body), outcome) in keys.iter().zip(outcomes) {
        if *outcome != Inserted::New && bodies.get(&key.0) != Some(&body.0) {
            *outcome = Inserted::Conflict;
        }
    }
    Ok(())
}

/// Keeps events whose key is known with another body, whole. The same conflict again is the same row.
///
/// # Errors
/// [`StoreError`].
pub async fn keep_conflicts(
    connection: &mut Connection,
    recorded_at: Timestamp,
    conflicts: &[(&UsageEvent, Identity)],
) -> Result<(), StoreError> {
    let bodies: Vec<String> = conflicts.iter().map(|(event, _)| body_text(event)).collect();
    let columns = [
        Column::Bytes(conflicts.iter().map(|(_, (key, _))| key.0.as_slice()).collect()),
        Column::Bytes(conflicts.iter().map(|(_, (_, body))| body.0.as_slice()).collect()),
        Column::Texts(conflicts.iter().map(|(event, _)| event.source.as_str()).collect()),
        Column::Texts(conflicts.iter().map(|(event, _)| event.event_id.as_str()).collect()),
        Column::Ints(vec![recorded_at.0; conflicts.len()]),
        Column::Texts(bodies.iter().map(String::as_str).collect()),
    ];
    connection.execute_bulk(&INSERT_CONFLICTS, &columns).await?;
    Ok(())
}

/// Writes everything `posting` says. `before` are the books it started from, whose epoch must still be the database's.
/// Answers how many deliveries were owed and are settled by it: one that was settled before does not count again.
///
/// # Errors
/// [`StoreError::Fenced`] when another owner has taken over; [`StoreError::Unwritable`] when a sum has left its range.
pub async fn write(connection: &mut Connection, before: &Books, posting: &Posting) -> Result<i64, StoreError> {
    give_way().await;
    if posting.overflows {
        return Err(failure::unwritable("a sum of usage leaves its range"));
    }
    delete_void_counters(connection, posting).await?;
    write_books(connection, before, posting).await?;
    fault::point("audit.appended");
    write_quotas(connection, posting).await?;
    let settled = write_notices(connection, posting).await?;
    gateway::write(connection, posting).await?;
    if fault::is_planted("counter-outside-transaction") {
        connection.commit().await?;
        connection.begin().await?;
        connection.execute_bulk(&WRITE_COUNTERS, &counter_columns(posting, &counter_quotas(posting))).await?;
    }
    Ok(settled)
}

/// Asks whether the owner of the books `before` still is the owner. A statement that went wrong may have met what another
/// owner has written.
///
/// # Errors
/// [`StoreError::Fenced`] when another owner has taken over.
pub async fn check_owner(connection: &mut Connection, before: &Books) -> Result<(), StoreError> {
    if fault::is_planted("epoch-unchecked") || epoch(connection).await? == before.epoch {
        Ok(())
    } else {
        Err(StoreError::Fenced)
    }
}

async fn epoch(connection: &mut Connection) -> Result<i64, StoreError> {
    let row = connection.fetch_one_optional(SELECT_EPOCH, &[]).await?;
    row.ok_or_else(|| StoreError::Untrusted("there are no books".into()))?.int(0)
}

/// Between two steps that take a full unit's events a millisecond each: a decision may be waiting for this thread.
async fn give_way() {
    tokio::task::yield_now().await;
}

/// Before the books, which write such counters anew, and no statement may write a row twice. Only a change of quotas or
/// of the calendar makes counters void.
async fn delete_void_counters(connection: &mut Connection, posting: &Posting) -> Result<(), StoreError> {
    let void: Vec<String> = posting.void_counters.iter().map(ToString::to_string).collect();
    let void = [Column::Texts(void.iter().map(String::as_str).collect())];
    connection.execute_bulk(&DELETE_COUNTERS, &void).await?;
    Ok(())
}

/// The books, and every row that almost every commit brings with them.
async fn write_books(connection: &mut Connection, before: &Books, posting: &Posting) -> Result<(), StoreError> {
    let books = &posting.books;
    let owned = if fault::is_planted("epoch-unchecked") { epoch(connection).await? } else { before.epoch };
    let mut values: Vec<Value> = vec![
        owned.into(),
        books.version.into(),
        books.next_position.into(),
        books.latest_event_at.into(),
        books.head.seq.into(),
        books.head.hash.0.as_slice().into(),
        posting.time_zone.as_deref().unwrap_or_default().into(),
    ];
    values.extend(books.lifetime.to_array().map(Value::Int));
    let outside = fault::is_planted("counter-outside-transaction");
    let quotas = if outside { Vec::new() } else { counter_quotas(posting) };
    let rows =
        [counter_columns(posting, &quotas), rollup_columns(posting), record_columns(posting), cursor_columns(posting)];
    if connection.execute_guarded(&WRITE_BOOKS, &values, &rows).await? { Ok(()) } else { Err(StoreError::Fenced) }
}

fn counter_quotas(posting: &Posting) -> Vec<String> {
    posting.counters.keys().map(|key| key.quota.to_string()).collect()
}

/// `quotas` are the ids of the counters' quotas, as texts.
fn counter_columns<'a>(posting: &Posting, quotas: &'a [String]) -> Vec<Column<'a>> {
    vec![
        Column::Texts(quotas.iter().map(String::as_str).collect()),
        Column::Ints(posting.counters.keys().map(|key| key.period_start.0).collect()),
        Column::Ints(posting.counters.values().map(|counter| counter.window.end.0).collect()),
        Column::Ints(posting.counters.values().map(|counter| counter.used).collect()),
    ]
}

fn rollup_columns(posting: &Posting) -> Vec<Column<'_>> {
    let keys = || posting.rollups.keys();
    let mut columns = vec![
        Column::Ints(keys().map(|key| key.start.0).collect()),
        Column::Texts(keys().map(|key| key.subject.user.as_str()).collect()),
        Column::Texts(keys().map(|key| key.subject.group.as_str()).collect()),
        Column::Texts(keys().map(|key| key.subject.api_key.as_str()).collect()),
        Column::Texts(keys().map(|key| key.subject.model.as_str()).collect()),
        Column::Texts(keys().map(|key| key.subject.provider.as_str()).collect()),
    ];
    let sums: Vec<[i64; 10]> = posting.rollups.values().map(Totals::to_array).collect();
    columns.extend((0..10).map(|at| Column::Ints(sums.iter().map(|sum| sum[at]).collect())));
    columns
}

fn record_columns(posting: &Posting) -> Vec<Column<'_>> {
    let records = &posting.records;
    vec![
        Column::Ints(records.iter().map(|record| record.seq).collect()),
        Column::Ints(records.iter().map(|record| record.at.0).collect()),
        Column::Texts(records.iter().map(|record| record.action.as_str()).collect()),
        Column::Bytes(records.iter().map(|record| record.bytes.as_slice()).collect()),
        Column::Bytes(records.iter().map(|record| record.hash.0.as_slice()).collect()),
        Column::Texts(records.iter().map(|record| record.payload.as_str()).collect()),
        Column::Bytes(records.iter().map(|record| record.salt.as_slice()).collect()),
    ]
}

fn cursor_columns(posting: &Posting) -> Vec<Column<'_>> {
    vec![
        Column::Texts(posting.cursors.keys().map(String::as_str).collect()),
        Column::Ints(posting.cursors.values().copied().collect()),
    ]
}

async fn write_quotas(connection: &mut Connection, posting: &Posting) -> Result<(), StoreError> {
    let Some(quotas) = &posting.quotas else { return Ok(()) };
    connection.execute(DELETE_QUOTAS, &[]).await?;
    let quotas: Vec<&Quota> = quotas.iter().collect();
    let texts = QuotaTexts::of(&quotas);
    let mut columns = texts.columns(&quotas);
    columns.insert(1, Column::Ints((0..quotas.len() as i64).collect()));
    connection.execute_bulk(&INSERT_QUOTAS, &columns).await?;
    Ok(())
}

/// How many deliveries it settles.
async fn write_notices(connection: &mut Connection, posting: &Posting) -> Result<i64, StoreError> {
    write_alerts(connection, &INSERT_ALERTS, &posting.fired).await?;
    write_alerts(connection, &RESOLVE_ALERTS, &posting.resolved).await?;
    for alert in &posting.acknowledged {
        if let Some(Acknowledgement { by, at }) = &alert.acknowledged {
            let values = [alert.id.to_string().into(), (*at).into(), by.as_str().into()];
            connection.execute(ACKNOWLEDGE_ALERT, &values).await?;
        }
    }
    let owed = &posting.owed;
    let alerts: Vec<String> = owed.iter().map(|delivery| delivery.alert.id.to_string()).collect();
    let columns = [
        Column::Texts(alerts.iter().map(String::as_str).collect()),
        Column::Texts(owed.iter().map(|delivery| delivery.event.name()).collect()),
        Column::Texts(owed.iter().map(|delivery| delivery.channel.as_str()).collect()),
        Column::Ints(vec![posting.now().0; owed.len()]),
        Column::Ints(owed.iter().map(|delivery| delivery.attempts).collect()),
        Column::Ints(owed.iter().map(|delivery| delivery.next_attempt_at.0).collect()),
        Column::Ints(vec![0; owed.len()]),
        Column::Texts(vec!["owed"; owed.len()]),
        Column::Texts(vec![""; owed.len()]),
        Column::Ints(owed.iter().map(|delivery| delivery.held_until(posting.now()).0).collect()),
    ];
    if !fault::is_planted("outbox-not-written") {
        connection.execute_bulk(&INSERT_OWED, &columns).await?;
    }
    let mut settled = 0;
    for attempt in &posting.attempts {
        settled += update_attempt(connection, attempt).await?;
    }
    Ok(settled)
}

async fn write_alerts(connection: &mut Connection, bulk: &'static Bulk, alerts: &[Alert]) -> Result<(), StoreError> {
    let rows: Vec<AlertRow<'_>> = alerts.iter().map(AlertRow::of).collect();
    let texts = |of: for<'a> fn(&'a AlertRow<'_>) -> &'a str| Column::Texts(rows.iter().map(of).collect());
    let ints = |of: fn(&AlertRow<'_>) -> i64| Column::Ints(rows.iter().map(of).collect());
    let columns = [
        texts(|row| &row.id),
        texts(|row| &row.quota),
        texts(|row| row.scope_kind),
        texts(|row| row.scope_id),
        texts(|row| row.metric),
        texts(|row| row.period),
        ints(|row| row.limit),
        texts(|row| &row.thresholds),
        texts(|row| row.enforcement),
        ints(|row| row.period_start.0),
        ints(|row| row.period_end.unwrap_or(Timestamp::MAX).0),
        ints(|row| i64::from(row.threshold)),
        ints(|row| row.used),
        ints(|row| row.fired_at.0),
        ints(|row| row.resolved_at.map_or(0, |at| at.0)),
        texts(|row| row.kind),
        texts(|row| &row.details),
    ];
    connection.execute_bulk(bulk, &columns).await?;
    Ok(())
}

/// An alert as the table has it, whatever it is about.
#[derive(Default)]
struct AlertRow<'a> {
    id: String,
    kind: &'static str,
    quota: String,
    scope_kind: &'static str,
    scope_id: &'a str,
    metric: &'static str,
    period: &'static str,
    limit: i64,
    thresholds: String,
    enforcement: &'static str,
    period_start: Timestamp,
    period_end: Option<Timestamp>,
    threshold: u16,
    used: i64,
    details: String,
    fired_at: Timestamp,
    resolved_at: Option<Timestamp>,
}

impl<'a> AlertRow<'a> {
    fn of(alert: &'a Alert) -> AlertRow<'a> {
        let row = match &alert.subject {
            AlertSubject::QuotaThreshold(reached) => AlertRow {
                period_start: reached.period_start,
                period_end: reached.period_end,
                threshold: reached.threshold,
                used: reached.used,
                ..AlertRow::about(&reached.quota)
            },
            AlertSubject::BudgetBurn(burn) => AlertRow {
                period_start: burn.period_start,
                period_end: burn.period_end,
                threshold: BURN_MARK,
                used: burn.used,
                details: burn.exhausted_at.0.to_string(),
                ..AlertRow::about(&burn.quota)
            },
            AlertSubject::Test(_) => AlertRow::default(),
            AlertSubject::ReconciliationDrift(drift) => AlertRow {
                quota: drift.cause.clone(),
                period_start: drift.window_start,
                limit: drift.windows,
                used: drift.difference,
                details: drift.summary.clone(),
                ..AlertRow::default()
            },
        };
        AlertRow {
            id: alert.id.to_string(),
            kind: alert.kind().name(),
            fired_at: alert.fired_at,
            resolved_at: alert.resolved_at,
            ..row
        }
    }

    fn about(quota: &'a Quota) -> AlertRow<'a> {
        AlertRow {
            quota: quota.id.to_string(),
            scope_kind: quota.scope.kind(),
            scope_id: quota.scope.id(),
            metric: quota.metric.name(),
            period: quota.period.name(),
            limit: quota.limit,
            thresholds: thresholds_text(&quota.thresholds),
            enforcement: quota.enforcement.name(),
            ..AlertRow::default()
        }
    }
}

/// 1 when the delivery was owed and is settled now.
async fn update_attempt(connection: &mut Connection, attempt: &Attempt) -> Result<i64, StoreError> {
    let (next, settled, outcome, reason) = match &attempt.result {
        AttemptResult::Delivered => (attempt.at, attempt.at, "delivered", ""),
        AttemptResult::Retry { at, reason } => (*at, Timestamp(0), "owed", reason.as_str()),
        AttemptResult::GaveUp { reason } => (attempt.at, attempt.at, "gaveUp", reason.as_str()),
        AttemptResult::Withdrawn => (attempt.at, attempt.at, "withdrawn", ""),
    };
    let made = i64::from(attempt.result != AttemptResult::Withdrawn);
    let values = [
        attempt.alert.to_string().into(),
        attempt.event.name().into(),
        attempt.channel.as_str().into(),
        next.into(),
        settled.into(),
        outcome.into(),
        reason.into(),
        made.into(),
    ];
    let found = connection.execute(UPDATE_ATTEMPT, &values).await?;
    Ok(if matches!(attempt.result, AttemptResult::Retry { .. }) { 0 } else { found as i64 })
}

/// The columns of a quota that need a text made for them.
struct QuotaTexts {
    ids: Vec<String>,
    thresholds: Vec<String>,
}

impl QuotaTexts {
    fn of(quotas: &[&Quota]) -> QuotaTexts {
        QuotaTexts {
            ids: quotas.iter().map(|quota| quota.id.to_string()).collect(),
            thresholds: quotas.iter().map(|quota| thresholds_text(&quota.thresholds)).collect(),
        }
    }

    /// The eight columns of a quota, in the order of its table.
    fn columns<'a>(&'a self, quotas: &[&'a Quota]) -> Vec<Column<'a>> {
        vec![
            Column::Texts(self.ids.iter().map(String::as_str).collect()),
            Column::Texts(quotas.iter().map(|quota| quota.scope.kind()).collect()),
            Column::Texts(quotas.iter().map(|quota| quota.scope.id()).collect()),
            Column::Texts(quotas.iter().map(|quota| quota.metric.name()).collect()),
            Column::Texts(quotas.iter().map(|quota| quota.period.name()).collect()),
            Column::Ints(quotas.iter().map(|quota| quota.limit).collect()),
            Column::Texts(self.thresholds.iter().map(String::as_str).collect()),
            Column::Texts(quotas.iter().map(|quota| quota.enforcement.name()).collect()),
        ]
    }
}

fn ledger_columns<'a>(
    first_position: i64,
    recorded_at: Timestamp,
    events: &[&'a UsageEvent],
    keys: &'a [Identity],
) -> Vec<Column<'a>> {
    let texts = |of: fn(&'a UsageEvent) -> &'a str| Column::Texts(events.iter().map(|event| of(event)).collect());
    let mut columns = vec![
        Column::Ints((first_position..).take(events.len()).collect()),
        Column::Bytes(keys.iter().map(|(key, _)| key.0.as_slice()).collect()),
        Column::Bytes(keys.iter().map(|(_, body)| body.0.as_slice()).collect()),
        texts(|event| &event.source),
        texts(|event| &event.event_id),
        Column::Ints(events.iter().map(|event| event.occurred_at.0).collect()),
        Column::Ints(vec![recorded_at.0; events.len()]),
        texts(|event| kind_name(event.kind)),
        texts(|event| status_name(event.status)),
        texts(|event| &event.subject.user),
        texts(|event| &event.subject.group),
        texts(|event| &event.subject.api_key),
        texts(|event| &event.subject.model),
        texts(|event| &event.subject.provider),
        texts(|event| &event.call_type),
    ];
    let amounts: Vec<[i64; 8]> = events.iter().map(|event| event.amounts.to_array()).collect();
    columns.extend((0..8).map(|at| Column::Ints(amounts.iter().map(|numbers| numbers[at]).collect())));
    columns.push(Column::Ints(events.iter().map(|event| event.flags.0).collect()));
    columns.push(texts(|event| &event.details));
    columns
}

/// The whole event as JSON, for whoever has to decide which of two bodies was right.
fn body_text(event: &UsageEvent) -> String {
    let amounts = &event.amounts;
    serde_json::json!({
        "occurredAt": event.occurred_at.0,
        "kind": kind_name(event.kind),
        "status": status_name(event.status),
        "user": event.subject.user,
        "group": event.subject.group,
        "apiKey": event.subject.api_key,
        "model": event.subject.model,
        "provider": event.subject.provider,
        "callType": event.call_type,
        "requests": amounts.requests,
        "promptTokens": amounts.prompt_tokens,
        "cacheReadTokens": amounts.cache_read_tokens,
        "cacheWriteTokens": amounts.cache_write_tokens,
        "completionTokens": amounts.completion_tokens,
        "reasoningTokens": amounts.reasoning_tokens,
        "unclassifiedTokens": amounts.unclassified_tokens,
        "costUsd": amounts.cost,
        "flags": event.flags.0,
        "details": event.details,
    })
    .to_string()
}
