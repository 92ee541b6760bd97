//! What gateways say, as rows: requests, meters, interruptions, and how far they have been compared.

use std::collections::{BTreeSet, HashSet};
use std::sync::LazyLock;

use super::StoreError;
use super::connection::{Bulk, Column, Row};
use super::database::Connection;
use crate::domain::books::Posting;
use crate::domain::reconcile::meter::Series;
use crate::domain::reconcile::progress::{Progress, RequestKey};
use crate::domain::reconcile::reading::{GatewayRequest, Interruption, Role, ServedBy, Source};
use crate::domain::time::Timestamp;

const CLAIMED: i64 = 1;
const BY_GATEWAY: i64 = 2;
const AUTHENTICATED: i64 = 4;
const LIMITED: i64 = 8;
const CLAIMS_OTHER: i64 = 16;
/// A count that the gateway did not make.
const NOT_COUNTED: i64 = -1;

static INSERT_REQUESTS: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new(
        "INSERT INTO gateway_request (request_key, started_at, duration, recorded_at, status, flags, prompt_tokens,
            completion_tokens, cached_tokens, reasoning_tokens, cost_nano_usd, request_id, call_id, route)",
        &[
            "BYTEA", "BIGINT", "BIGINT", "BIGINT", "BIGINT", "BIGINT", "BIGINT", "BIGINT", "BIGINT", "BIGINT",
            "BIGINT", "TEXT", "TEXT", "TEXT",
        ],
        "ON CONFLICT (request_key) DO NOTHING RETURNING request_key",
    )
});

static SELECT_SERIES: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new("SELECT source, series, epoch, value, at FROM gateway_series WHERE series IN (", &["TEXT"], ")")
});

static WRITE_SERIES: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new(
        "INSERT INTO gateway_series (source, series, epoch, value, at)",
        &["TEXT", "TEXT", "TEXT", "BIGINT", "BIGINT"],
        "ON CONFLICT (source, series) DO UPDATE SET epoch = excluded.epoch, value = excluded.value, at = excluded.at",
    )
});

static ADD_METERS: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new(
        "INSERT INTO gateway_meter (window_start, source, amount, lower_bound)",
        &["BIGINT", "TEXT", "BIGINT", "BIGINT"],
        "ON CONFLICT (window_start, source) DO UPDATE SET amount = gateway_meter.amount + excluded.amount,
            lower_bound = CASE WHEN excluded.lower_bound = 1 THEN 1 ELSE gateway_meter.lower_bound END",
    )
});

static INSERT_INTERRUPTIONS: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new(
        "INSERT INTO gateway_interruption (until_at, from_at, source, reason)",
        &["BIGINT", "BIGINT", "TEXT", "TEXT"],
        "ON CONFLICT (until_at, source, reason, from_at) DO NOTHING",
    )
});

static INSERT_ROUTES: LazyLock<Bulk> =
    LazyLock::new(|| Bulk::new("INSERT INTO gateway_route (route)", &["TEXT"], "ON CONFLICT (route) DO NOTHING"));

const WRITE_PROGRESS: &str = "INSERT INTO reconciliation (id, access_log_since, metrics_since, limiter_since,
    heard_until, settled_until, again_at) VALUES (1, $1, $2, $3, $4, $5, $6)
    ON CONFLICT (id) DO UPDATE SET access_log_since = excluded.access_log_since,
    metrics_since = excluded.metrics_since, limiter_since = excluded.limiter_since,
    heard_until = excluded.heard_until, settled_until = excluded.settled_until, again_at = excluded.again_at";
const SELECT_PROGRESS: &str = "SELECT access_log_since, metrics_since, limiter_since, heard_until, settled_until,
    again_at FROM reconciliation WHERE id = 1";

/// Keeps requests; answers for each, in order, whether it is new.
///
/// # Errors
/// [`StoreError`].
pub async fn insert_requests(
    connection: &mut Connection,
    recorded_at: Timestamp,
    requests: &[GatewayRequest],
) -> Result<Vec<bool>, StoreError> {
    let keys: Vec<RequestKey> = requests.iter().map(GatewayRequest::key).collect();
    // No statement may meet a row twice; the first of those that are the same stands for all.
    let mut seen = HashSet::with_capacity(keys.len());
    let first: Vec<bool> = keys.iter().map(|key| seen.insert(*key)).collect();
    let at: Vec<usize> = (0..requests.len()).filter(|at| first[*at]).collect();
    let ints = |of: fn(&GatewayRequest) -> i64| Column::Ints(at.iter().map(|at| of(&requests[*at])).collect());
    let columns = [
        Column::Bytes(at.iter().map(|at| keys[*at].0.as_slice()).collect()),
        ints(|request| request.started_at.0),
        ints(|request| request.duration_micros),
        Column::Ints(vec![recorded_at.0; at.len()]),
        ints(|request| request.status),
        ints(flags),
        ints(|request| request.counted.and_then(|count| count.prompt_tokens).unwrap_or(NOT_COUNTED)),
        ints(|request| request.counted.and_then(|count| count.completion_tokens).unwrap_or(NOT_COUNTED)),
        ints(|request| request.counted.and_then(|count| count.cached_tokens).unwrap_or(NOT_COUNTED)),
        ints(|request| request.counted.and_then(|count| count.reasoning_tokens).unwrap_or(NOT_COUNTED)),
        ints(|request| request.counted.and_then(|count| count.cost).map_or(NOT_COUNTED, |cost| cost.0)),
        Column::Texts(at.iter().map(|at| requests[*at].request_id.as_str()).collect()),
        Column::Texts(at.iter().map(|at| requests[*at].call_id.as_str()).collect()),
        Column::Texts(at.iter().map(|at| requests[*at].route.as_str()).collect()),
    ];
    let mut new: HashSet<[u8; 20]> = HashSet::with_capacity(at.len());
    for row in connection.fetch_bulk(&INSERT_REQUESTS, &columns).await? {
        new.insert(row.array(0)?);
    }
    Ok(keys.iter().zip(first).map(|(key, first)| first && new.contains(&key.0)).collect())
}

/// Meters of these names, as they were last seen.
///
/// # Errors
/// [`StoreError`].
pub async fn series(connection: &mut Connection, names: &BTreeSet<&str>) -> Result<Vec<Series>, StoreError> {
    let names = [Column::Texts(names.iter().copied().collect())];
    connection.fetch_bulk(&SELECT_SERIES, &names).await?.iter().map(series_at).collect()
}

/// How far the comparison has come; `None` while no gateway has said anything.
///
/// # Errors
/// [`StoreError`].
pub async fn progress(connection: &mut Connection) -> Result<Option<Progress>, StoreError> {
    let Some(row) = connection.fetch_one_optional(SELECT_PROGRESS, &[]).await? else { return Ok(None) };
    let at = |index: usize| row.int(index).map(Timestamp);
    let known = |index: usize| at(index).map(|at| Some(at).filter(|at| at.0 != 0));
    Ok(Some(Progress {
        since: [known(0)?, known(1)?, known(2)?],
        heard_until: at(3)?,
        settled_until: at(4)?,
        again_at: known(5)?,
    }))
}

/// Writes what a posting says about gateways.
pub(super) async fn write(connection: &mut Connection, posting: &Posting) -> Result<(), StoreError> {
    let rows = &posting.gateway;
    let meters = || rows.series.values();
    let columns = [
        Column::Texts(meters().map(|series| series.source.name()).collect()),
        Column::Texts(meters().map(|series| series.series.as_str()).collect()),
        Column::Texts(meters().map(|series| series.epoch.as_str()).collect()),
        Column::Ints(meters().map(|series| series.value).collect()),
        Column::Ints(meters().map(|series| series.at.0).collect()),
    ];
    connection.execute_bulk(&WRITE_SERIES, &columns).await?;
    let columns = [
        Column::Ints(rows.increases.keys().map(|(start, _)| start.0).collect()),
        Column::Texts(rows.increases.keys().map(|(_, source)| source.name()).collect()),
        Column::Ints(rows.increases.values().map(|(amount, _)| *amount).collect()),
        Column::Ints(rows.increases.values().map(|(_, lower_bound)| i64::from(*lower_bound)).collect()),
    ];
    connection.execute_bulk(&ADD_METERS, &columns).await?;
    write_interruptions(connection, &rows.interruptions).await?;
    let routes = [Column::Texts(rows.routes.iter().map(String::as_str).collect())];
    connection.execute_bulk(&INSERT_ROUTES, &routes).await?;
    if let (true, Some(progress)) = (rows.progressed, posting.books.comparison.progress) {
        write_progress(connection, &progress).await?;
    }
    Ok(())
}

async fn write_interruptions(connection: &mut Connection, interruptions: &[Interruption]) -> Result<(), StoreError> {
    let columns = [
        Column::Ints(interruptions.iter().map(|one| one.until.0).collect()),
        Column::Ints(interruptions.iter().map(|one| one.from.0).collect()),
        Column::Texts(interruptions.iter().map(|one| one.source.name()).collect()),
        Column::Texts(interruptions.iter().map(|one| one.reason.name()).collect()),
    ];
    connection.execute_bulk(&INSERT_INTERRUPTIONS, &columns).await?;
    Ok(())
}

async fn write_progress(connection: &mut Connection, progress: &Progress) -> Result<(), StoreError> {
    let known = |at: Option<Timestamp>| at.map_or(0, |at| at.0).into();
    let [access_log, metrics, limiter] = Source::ALL.map(|source| known(progress.since(source)));
    let values = [
        access_log,
        metrics,
        limiter,
        progress.heard_until.into(),
        progress.settled_until.into(),
        known(progress.again_at),
    ];
    connection.execute(WRITE_PROGRESS, &values).await?;
    Ok(())
}

fn flags(request: &GatewayRequest) -> i64 {
    let bits = [
        (request.role == Role::Claimed, CLAIMED),
        (request.served_by == ServedBy::Gateway, BY_GATEWAY),
        (request.authenticated, AUTHENTICATED),
        (request.limited, LIMITED),
        (request.claims_other, CLAIMS_OTHER),
    ];
    bits.into_iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum()
}

fn series_at(row: &Row) -> Result<Series, StoreError> {
    Ok(Series {
        source: row.parsed(0, Source::from_name)?,
        series: row.text(1)?,
        epoch: row.text(2)?,
        value: row.int(3)?,
        at: Timestamp(row.int(4)?),
    })
}
