//! What gateways say, as rows: requests, meters, interruptions, and how far they have been compared.

use std::collections::{BTreeSet, HashSet};
use std::sync::LazyLock;

use super::StoreError;
use super::connection::{Bulk, Column, Row};
use super::database::Connection;
use super::reconciliation;
use crate::domain::amount::NanoUsd;
use crate::domain::books::Posting;
use crate::domain::period::Window;
use crate::domain::reconcile::Proof;
use crate::domain::reconcile::meter::Series;
use crate::domain::reconcile::progress::{Progress, RequestKey};
use crate::domain::reconcile::reading::{
    GatewayCount, GatewayRequest, Interruption, InterruptionReason, Role, ServedBy, Source,
};
use crate::domain::reconcile::window::Metered;
use crate::domain::time::{MICROS_PER_HOUR, Timestamp};

const CLAIMED: i64 = 1;
const BY_GATEWAY: i64 = 2;
const AUTHENTICATED: i64 = 4;
const LIMITED: i64 = 8;
const CLAIMS_OTHER: i64 = 16;
/// A request that began longer ago is not looked for when it ended: no answer of a model takes so long.
pub const UNDER_WAY_MICROS_MAX: i64 = MICROS_PER_HOUR;
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
    requests_proven, cumulative_proven, attempts_proven, heard_until, settled_until, again_at)
    VALUES (1, $1, $2, $3, $4, $5, $6, $7, $8, $9)
    ON CONFLICT (id) DO UPDATE SET access_log_since = excluded.access_log_since,
    metrics_since = excluded.metrics_since, limiter_since = excluded.limiter_since,
    requests_proven = excluded.requests_proven, cumulative_proven = excluded.cumulative_proven,
    attempts_proven = excluded.attempts_proven, heard_until = excluded.heard_until,
    settled_until = excluded.settled_until, again_at = excluded.again_at";
const SELECT_PROGRESS: &str = "SELECT access_log_since, metrics_since, limiter_since, requests_proven,
    cumulative_proven, attempts_proven, heard_until, settled_until, again_at FROM reconciliation WHERE id = 1";
static DISTURB: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new(
        "INSERT INTO reconciliation_again (window_start, due_at, times)",
        &["BIGINT", "BIGINT", "BIGINT"],
        "ON CONFLICT (window_start) DO UPDATE SET due_at = excluded.due_at, times = excluded.times",
    )
});

const SELECT_REQUESTS: &str = "SELECT started_at, duration, status, flags, prompt_tokens, completion_tokens,
    cached_tokens, reasoning_tokens, cost_nano_usd, request_id, call_id, route FROM gateway_request
    WHERE request_key >= $1 AND request_key < $2 ORDER BY request_key LIMIT $3";
/// Those that began before and had not ended.
const SELECT_UNDER_WAY: &str = "SELECT started_at, duration, status, flags, prompt_tokens, completion_tokens,
    cached_tokens, reasoning_tokens, cost_nano_usd, request_id, call_id, route FROM gateway_request
    WHERE request_key >= $1 AND request_key < $2 AND started_at + duration >= $3 ORDER BY request_key LIMIT $4";
const SELECT_FIRST_REQUEST: &str =
    "SELECT started_at FROM gateway_request WHERE request_key >= $1 ORDER BY request_key LIMIT 1";
const SELECT_FIRST_METER: &str =
    "SELECT window_start FROM gateway_meter WHERE window_start >= $1 ORDER BY window_start LIMIT 1";
const SELECT_METERS: &str = "SELECT window_start, source, amount, lower_bound FROM gateway_meter
    WHERE window_start >= $1 AND window_start < $2 ORDER BY window_start, source";
const SELECT_INTERRUPTIONS: &str = "SELECT until_at, from_at, source, reason FROM gateway_interruption
    WHERE until_at >= $1 AND from_at < $2 ORDER BY until_at, source, reason, from_at LIMIT 1000";
const SELECT_ROUTES: &str = "SELECT route FROM gateway_route ORDER BY route LIMIT 1000";

const FORGET_REQUESTS: &str = "DELETE FROM gateway_request WHERE request_key IN
    (SELECT request_key FROM gateway_request WHERE request_key < $1 ORDER BY request_key LIMIT $2)";
const FORGET_METERS: &str = "DELETE FROM gateway_meter WHERE window_start IN
    (SELECT window_start FROM gateway_meter WHERE window_start < $1 ORDER BY window_start LIMIT 1000)";
const FORGET_INTERRUPTIONS: &str = "DELETE FROM gateway_interruption WHERE until_at IN
    (SELECT until_at FROM gateway_interruption WHERE until_at < $1 ORDER BY until_at LIMIT 1000)";
const FORGET_WINDOWS: &str = "DELETE FROM reconciliation_window WHERE window_start IN
    (SELECT window_start FROM reconciliation_window WHERE window_start < $1 ORDER BY window_start LIMIT 1000)";

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

/// Requests that were under way in `window`, if they began at most [`UNDER_WAY_MICROS_MAX`] before; `None` when there are
/// more than `most`.
///
/// # Errors
/// [`StoreError`].
pub async fn requests(
    connection: &mut Connection,
    window: Window,
    most: usize,
) -> Result<Option<Vec<GatewayRequest>>, StoreError> {
    let (from, until) = (RequestKey::floor(window.start), RequestKey::floor(window.end));
    let values = [from.0.as_slice().into(), until.0.as_slice().into(), (most as i64 + 1).into()];
    let mut rows = connection.fetch(SELECT_REQUESTS, &values).await?;
    let earliest = RequestKey::floor(window.start.plus_micros(-UNDER_WAY_MICROS_MAX));
    let values =
        [earliest.0.as_slice().into(), from.0.as_slice().into(), window.start.into(), (most as i64 + 1).into()];
    rows.extend(connection.fetch(SELECT_UNDER_WAY, &values).await?);
    if rows.len() > most {
        return Ok(None);
    }
    rows.iter().map(request_at).collect::<Result<_, _>>().map(Some)
}

/// When the first request began that began at `since` or later.
///
/// # Errors
/// [`StoreError`].
pub async fn first_request(connection: &mut Connection, since: Timestamp) -> Result<Option<Timestamp>, StoreError> {
    let floor = RequestKey::floor(since);
    let row = connection.fetch_one_optional(SELECT_FIRST_REQUEST, &[floor.0.as_slice().into()]).await?;
    row.map(|row| row.int(0).map(Timestamp)).transpose()
}

/// The first window from `since` on in which a meter counted anything.
///
/// # Errors
/// [`StoreError`].
pub async fn first_meter(connection: &mut Connection, since: Timestamp) -> Result<Option<Timestamp>, StoreError> {
    let row = connection.fetch_one_optional(SELECT_FIRST_METER, &[since.into()]).await?;
    row.map(|row| row.int(0).map(Timestamp)).transpose()
}

/// What the meters counted in windows that begin in `window`.
///
/// # Errors
/// [`StoreError`].
pub async fn meters(connection: &mut Connection, window: Window) -> Result<Vec<(Timestamp, Metered)>, StoreError> {
    let rows = connection.fetch(SELECT_METERS, &[window.start.into(), window.end.into()]).await?;
    let one = |row: &Row| {
        let source = row.parsed(1, Source::from_name)?;
        let metered = Metered { source, amount: row.int(2)?, lower_bound: row.int(3)? == 1 };
        Ok((Timestamp(row.int(0)?), metered))
    };
    rows.iter().map(one).collect()
}

/// Interruptions that touch `window`.
///
/// # Errors
/// [`StoreError`].
pub async fn interruptions(connection: &mut Connection, window: Window) -> Result<Vec<Interruption>, StoreError> {
    let rows = connection.fetch(SELECT_INTERRUPTIONS, &[window.start.into(), window.end.into()]).await?;
    let one = |row: &Row| {
        Ok(Interruption {
            until: Timestamp(row.int(0)?),
            from: Timestamp(row.int(1)?),
            source: row.parsed(2, Source::from_name)?,
            reason: row.parsed(3, InterruptionReason::from_name)?,
        })
    };
    rows.iter().map(one).collect()
}

/// Routes on which the limiter has been seen to work.
///
/// # Errors
/// [`StoreError`].
pub async fn routes(connection: &mut Connection) -> Result<Vec<String>, StoreError> {
    connection.fetch(SELECT_ROUTES, &[]).await?.iter().map(|row| row.text(0)).collect()
}

/// Forgets requests that began before `horizon`, at most `most` of them, and what else is as old, at most a thousand
/// rows of each kind.
///
/// # Errors
/// [`StoreError`].
pub async fn forget(connection: &mut Connection, horizon: Timestamp, most: usize) -> Result<(), StoreError> {
    let floor = RequestKey::floor(horizon);
    connection.execute(FORGET_REQUESTS, &[floor.0.as_slice().into(), (most as i64).into()]).await?;
    for sql in [FORGET_METERS, FORGET_INTERRUPTIONS, FORGET_WINDOWS] {
        connection.execute(sql, &[horizon.into()]).await?;
    }
    Ok(())
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
        proven: [known(3)?, known(4)?, known(5)?],
        heard_until: at(6)?,
        settled_until: at(7)?,
        again_at: known(8)?,
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
    let again = &rows.disturbed;
    let columns = [
        Column::Ints(again.keys().map(|start| start.0).collect()),
        Column::Ints(again.values().map(|due| due.0).collect()),
        Column::Ints(vec![0; again.len()]),
    ];
    connection.execute_bulk(&DISTURB, &columns).await?;
    reconciliation::write(connection, posting).await?;
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
    let [requests, cumulative, attempts] = Proof::ALL.map(|proof| known(progress.proven(proof)));
    let values = [
        access_log,
        metrics,
        limiter,
        requests,
        cumulative,
        attempts,
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

fn request_at(row: &Row) -> Result<GatewayRequest, StoreError> {
    let flags = row.int(3)?;
    let has = |bit: i64| flags & bit != 0;
    let counted = |index: usize| row.int(index).map(|count| Some(count).filter(|count| *count != NOT_COUNTED));
    let counts = GatewayCount {
        prompt_tokens: counted(4)?,
        completion_tokens: counted(5)?,
        cached_tokens: counted(6)?,
        reasoning_tokens: counted(7)?,
        cost: counted(8)?.map(NanoUsd),
    };
    Ok(GatewayRequest {
        request_id: row.text(9)?,
        call_id: row.text(10)?,
        started_at: Timestamp(row.int(0)?),
        duration_micros: row.int(1)?,
        role: if has(CLAIMED) { Role::Claimed } else { Role::Own },
        route: row.text(11)?,
        status: row.int(2)?,
        served_by: if has(BY_GATEWAY) { ServedBy::Gateway } else { ServedBy::Upstream },
        authenticated: has(AUTHENTICATED),
        limited: has(LIMITED),
        claims_other: has(CLAIMS_OTHER),
        counted: Some(counts).filter(|counts| *counts != GatewayCount::default()),
    })
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
