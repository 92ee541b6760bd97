//! Quotas as rows, and a counter that is not in memory.

use super::StoreError;
use super::connection::Row;
use super::database::Connection;
use super::usage;
use crate::domain::books::{Books, Counter, CounterKey, Missing};
use crate::domain::burn::{self, Recent};
use crate::domain::ids::QuotaId;
use crate::domain::period::{self, PeriodKind, Window};
use crate::domain::quota::{Enforcement, Metric, Quota, Scope};
use crate::domain::time::Timestamp;
use crate::domain::usage::FUTURE_TOLERANCE_MICROS;

const SELECT_QUOTAS: &str = "SELECT id, scope_kind, scope_id, metric, period, limit_amount, thresholds, enforcement
    FROM quota ORDER BY ordinal";

const SELECT_COUNTER: &str = "SELECT used FROM counter WHERE quota_id = $1 AND period_start = $2 AND period_end = $3";

const SELECT_FIRED: &str = "SELECT threshold FROM alert WHERE quota_id = $1 AND period_start = $2 ORDER BY threshold";

/// The sums of the rollups that begin in [$1, $2) and that the scope ($3, $4) covers.
const SUM_ROLLUPS: &str = "SELECT
    CAST(COALESCE(SUM(events), 0) AS BIGINT),
    CAST(COALESCE(SUM(failures), 0) AS BIGINT),
    CAST(COALESCE(SUM(requests), 0) AS BIGINT),
    CAST(COALESCE(SUM(prompt_tokens), 0) AS BIGINT),
    CAST(COALESCE(SUM(cache_read_tokens), 0) AS BIGINT),
    CAST(COALESCE(SUM(cache_write_tokens), 0) AS BIGINT),
    CAST(COALESCE(SUM(completion_tokens), 0) AS BIGINT),
    CAST(COALESCE(SUM(reasoning_tokens), 0) AS BIGINT),
    CAST(COALESCE(SUM(unclassified_tokens), 0) AS BIGINT),
    CAST(COALESCE(SUM(cost_nano_usd), 0) AS BIGINT)
    FROM usage_rollup
    WHERE start_at >= $1 AND start_at < $2
    AND $4 = CASE $3 WHEN 'tenant' THEN '' WHEN 'group' THEN group_id WHEN 'user' THEN user_id
        WHEN 'apiKey' THEN api_key_id WHEN 'model' THEN model WHEN 'provider' THEN provider END";

/// The rollups that begin in [$1, $2) and that the scope ($3, $4) covers, by quarter of an hour.
const SUM_QUARTERS: &str = "SELECT start_at,
    CAST(SUM(requests) AS BIGINT),
    CAST(SUM(prompt_tokens) AS BIGINT),
    CAST(SUM(cache_read_tokens) AS BIGINT),
    CAST(SUM(cache_write_tokens) AS BIGINT),
    CAST(SUM(completion_tokens) AS BIGINT),
    CAST(SUM(reasoning_tokens) AS BIGINT),
    CAST(SUM(unclassified_tokens) AS BIGINT),
    CAST(SUM(cost_nano_usd) AS BIGINT)
    FROM usage_rollup
    WHERE start_at >= $1 AND start_at < $2
    AND $4 = CASE $3 WHEN 'tenant' THEN '' WHEN 'group' THEN group_id WHEN 'user' THEN user_id
        WHEN 'apiKey' THEN api_key_id WHEN 'model' THEN model WHEN 'provider' THEN provider END
    GROUP BY start_at ORDER BY start_at";

/// The latest rollups, each for itself.
const SELECT_QUARTERS: &str =
    "SELECT start_at, user_id, group_id, api_key_id, model, provider, requests, prompt_tokens,
    cache_read_tokens, cache_write_tokens, completion_tokens, reasoning_tokens, unclassified_tokens, cost_nano_usd
    FROM usage_rollup WHERE start_at >= $1";

/// The same over the ledger's rows at positions [$5, $6), for periods shorter than a rollup.
const SUM_LEDGER: &str = "SELECT
    COUNT(*),
    CAST(COALESCE(SUM(CASE status WHEN 'failure' THEN 1 ELSE 0 END), 0) AS BIGINT),
    CAST(COALESCE(SUM(requests), 0) AS BIGINT),
    CAST(COALESCE(SUM(prompt_tokens), 0) AS BIGINT),
    CAST(COALESCE(SUM(cache_read_tokens), 0) AS BIGINT),
    CAST(COALESCE(SUM(cache_write_tokens), 0) AS BIGINT),
    CAST(COALESCE(SUM(completion_tokens), 0) AS BIGINT),
    CAST(COALESCE(SUM(reasoning_tokens), 0) AS BIGINT),
    CAST(COALESCE(SUM(unclassified_tokens), 0) AS BIGINT),
    CAST(COALESCE(SUM(cost_nano_usd), 0) AS BIGINT)
    FROM usage_ledger
    WHERE position >= $5 AND position < $6 AND occurred_at >= $1 AND occurred_at < $2
    AND $4 = CASE $3 WHEN 'tenant' THEN '' WHEN 'group' THEN group_id WHEN 'user' THEN user_id
        WHEN 'apiKey' THEN api_key_id WHEN 'model' THEN model WHEN 'provider' THEN provider END";

/// The counter that the books lack: the stored one if it counts this very period, otherwise recounted. Of the ledger,
/// only rows before `before_position` count: the running batch is already in it, and will be added by the posting.
///
/// # Errors
/// [`StoreError`].
pub async fn counter(
    connection: &mut Connection,
    books: &Books,
    missing: &Missing,
    before_position: i64,
) -> Result<Counter, StoreError> {
    debug_assert!(before_position <= books.next_position);
    let used = match stored(connection, missing).await? {
        Some(used) => used,
        None => recount(connection, missing, before_position).await?,
    };
    let key = [missing.quota.id.to_string().into(), missing.window.start.into()];
    let fired = connection.fetch(SELECT_FIRED, &key).await?.iter().map(threshold).collect::<Result<_, _>>()?;
    let recent = recent(connection, missing, books.latest_event_at).await?;
    Ok(Counter { window: missing.window, used, fired, recent })
}

/// What the counter has counted lately.
async fn recent(connection: &mut Connection, missing: &Missing, latest: Timestamp) -> Result<Recent, StoreError> {
    let Missing { quota, window, .. } = missing;
    let from = window.start.max(burn::horizon(latest));
    let mut recent = Recent::default();
    if quota.period == PeriodKind::Minute || from >= window.end {
        return Ok(recent);
    }
    let values = [from.into(), window.end.into(), quota.scope.kind().into(), quota.scope.id().into()];
    for row in connection.fetch(SUM_QUARTERS, &values).await? {
        recent.add(Timestamp(row.int(0)?), quota.metric.of(&usage::amounts_at(&row, 1)?));
    }
    Ok(recent)
}

/// The same for every counter of the books: one statement, however many quotas there are.
pub(super) async fn read_recent(connection: &mut Connection, books: &mut Books) -> Result<(), StoreError> {
    let longer: Vec<Quota> = books.quotas.iter().filter(|quota| quota.period != PeriodKind::Minute).cloned().collect();
    if longer.is_empty() {
        return Ok(());
    }
    for row in connection.fetch(SELECT_QUARTERS, &[burn::horizon(books.latest_event_at).into()]).await? {
        let (start, subject) = (Timestamp(row.int(0)?), usage::subject_at(&row, 1)?);
        let amounts = usage::amounts_at(&row, 6)?;
        for quota in longer.iter().filter(|quota| quota.scope.covers(&subject)) {
            let window = period::window(quota.period, start, &books.time_zone);
            let key = CounterKey { quota: quota.id, period_start: window.start };
            if let Some(counter) = books.counters.get_mut(&key) {
                counter.recent.add(start, quota.metric.of(&amounts));
            }
        }
    }
    Ok(())
}

async fn stored(connection: &mut Connection, missing: &Missing) -> Result<Option<i64>, StoreError> {
    if missing.recount {
        return Ok(None);
    }
    let key = [missing.quota.id.to_string().into(), missing.window.start.into(), missing.window.end.into()];
    connection.fetch_one_optional(SELECT_COUNTER, &key).await?.map(|row| row.int(0)).transpose()
}

async fn recount(connection: &mut Connection, missing: &Missing, before_position: i64) -> Result<i64, StoreError> {
    let Missing { quota, window, .. } = missing;
    let mut values = vec![window.start.into(), window.end.into(), quota.scope.kind().into(), quota.scope.id().into()];
    let row = if quota.period == PeriodKind::Minute {
        let earliest = window.start.plus_micros(-FUTURE_TOLERANCE_MICROS);
        values.push(usage::position_floor(connection, earliest).await?.into());
        values.push(before_position.into());
        connection.fetch_one_optional(SUM_LEDGER, &values).await?
    } else {
        connection.fetch_one_optional(SUM_ROLLUPS, &values).await?
    };
    let totals = row.map(|row| usage::totals_at(&row, 0)).transpose()?.unwrap_or_default();
    Ok(quota.metric.of(&totals.amounts))
}

/// The tenant's quotas in the order they were given.
pub(super) async fn all(connection: &mut Connection) -> Result<Vec<Quota>, StoreError> {
    connection.fetch(SELECT_QUOTAS, &[]).await?.iter().map(|row| quota_at(row, 0)).collect()
}

/// A quota from its eight columns, the first of which is at `first`.
pub(super) fn quota_at(row: &Row, first: usize) -> Result<Quota, StoreError> {
    let scope_id = row.text(first + 2)?;
    Ok(Quota {
        id: row.parsed(first, |text| text.parse::<QuotaId>().ok())?,
        scope: row.parsed(first + 1, |kind| Scope::from_parts(kind, &scope_id))?,
        metric: row.parsed(first + 3, Metric::from_name)?,
        period: row.parsed(first + 4, PeriodKind::from_name)?,
        limit: row.int(first + 5)?,
        thresholds: row.parsed(first + 6, parse_thresholds)?,
        enforcement: row.parsed(first + 7, Enforcement::from_name)?,
    })
}

/// Thresholds as they are stored: percent, separated by commas.
pub(super) fn thresholds_text(thresholds: &[u16]) -> String {
    thresholds.iter().map(u16::to_string).collect::<Vec<_>>().join(",")
}

fn parse_thresholds(text: &str) -> Option<Vec<u16>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(',').map(|percent| percent.parse().ok()).collect()
}

/// A threshold from the first column.
fn threshold(row: &Row) -> Result<u16, StoreError> {
    threshold_at(row, 0)
}

pub(super) fn threshold_at(row: &Row, index: usize) -> Result<u16, StoreError> {
    u16::try_from(row.int(index)?).map_err(|_| super::failure::unreadable("a threshold"))
}

/// Counters whose period ends after `now`, with the thresholds that have an alert.
pub(super) const SELECT_RUNNING: &str =
    "SELECT quota_id, period_start, period_end, used FROM counter WHERE period_end > $1";
pub(super) const SELECT_RUNNING_FIRED: &str = "SELECT counter.quota_id, counter.period_start, alert.threshold
    FROM counter JOIN alert ON alert.quota_id = counter.quota_id AND alert.period_start = counter.period_start
    WHERE counter.period_end > $1 ORDER BY alert.threshold";

/// Reads [`SELECT_RUNNING`] and [`SELECT_RUNNING_FIRED`].
pub(super) async fn running(
    connection: &mut Connection,
    now: Timestamp,
) -> Result<std::collections::HashMap<CounterKey, Counter>, StoreError> {
    let key_at = |row: &Row| -> Result<CounterKey, StoreError> {
        let quota = row.parsed(0, |text| text.parse::<QuotaId>().ok())?;
        Ok(CounterKey { quota, period_start: Timestamp(row.int(1)?) })
    };
    let mut counters = std::collections::HashMap::new();
    for row in connection.fetch(SELECT_RUNNING, &[now.into()]).await? {
        let key = key_at(&row)?;
        let window = Window { start: key.period_start, end: Timestamp(row.int(2)?) };
        counters.insert(key, Counter { used: row.int(3)?, ..Counter::new(window) });
    }
    for row in connection.fetch(SELECT_RUNNING_FIRED, &[now.into()]).await? {
        if let Some(counter) = counters.get_mut(&key_at(&row)?) {
            counter.fired.push(threshold_at(&row, 2)?);
        }
    }
    Ok(counters)
}
