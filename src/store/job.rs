//! Background work. In the control database.

use super::StoreError;
use super::database::{Connection, Row};
use crate::domain::ids::JobId;
use crate::domain::job::{self, Draft, Job, JobFilter, Progress, State};
use crate::domain::report::Page;
use crate::domain::time::Timestamp;

const INSERT: &str =
    "INSERT INTO job (id, kind, tenant_id, unique_key, arguments, run_at, every_micros, attempts_max, actor,
    request_id, state, attempts, lease, lease_until, cancel_requested, progress_done, progress_total, note, checkpoint,
    result, error, created_at, started_at, finished_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13,
    $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24)";
/// Only as long as it stands as it was read: another node may have been faster. What another node has asked to end meanwhile
/// stays asked.
const UPDATE: &str = "UPDATE job SET run_at = $4, state = $5, attempts = $6, lease = $7, lease_until = $8,
    cancel_requested = CASE WHEN cancel_requested = 1 THEN cancel_requested ELSE $9 END, progress_done = $10, progress_total = $11, note = $12, checkpoint = $13, result = $14,
    error = $15, started_at = $16, finished_at = $17, arguments = $18, every_micros = $19 WHERE id = $1 AND lease = $2 AND state = $3";
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, kind, tenant_id, unique_key, arguments, run_at, every_micros, attempts_max, actor, request_id,
                state, attempts, lease, lease_until, cancel_requested, progress_done, progress_total, note, checkpoint,
                result, error, created_at, started_at, finished_at FROM job ",
            $rest
        )
    };
}
const SELECT_ONE: &str = select!("WHERE id = $1");
const SELECT_BY_KEY: &str = select!("WHERE unique_key = $1 AND unique_key <> '' AND finished_at = 0");
const SELECT_WAITING: &str = select!(
    "WHERE state = 'waiting' AND run_at <= $1 AND CASE WHEN kind = 'tenant.finishChange' THEN 1 ELSE 0 END = $3
        ORDER BY run_at, id LIMIT $2"
);
const SELECT_LEASED: &str = select!(
    "WHERE state = 'running' AND (lease_until <= $1 OR lease_until > $4)
        AND CASE WHEN kind = 'tenant.finishChange' THEN 1 ELSE 0 END = $3 ORDER BY lease_until, id LIMIT $2"
);
const SELECT_PAGE: &str = select!(
    "WHERE ($1 = '' OR tenant_id = $1) AND ($2 = '' OR state = $2) AND ($3 = '' OR kind = $3) AND ($4 = '' OR id < $4)
        ORDER BY id DESC LIMIT $5"
);
const NEXT_WAITING: &str = "SELECT run_at FROM job WHERE state = 'waiting'
    AND CASE WHEN kind = 'tenant.finishChange' THEN 1 ELSE 0 END = $1 ORDER BY run_at LIMIT 1";
const NEXT_LEASED: &str = "SELECT lease_until FROM job WHERE state = 'running'
    AND CASE WHEN kind = 'tenant.finishChange' THEN 1 ELSE 0 END = $1 ORDER BY lease_until LIMIT 1";
/// Each half by its own index: what has ended is most of the table.
const CENSUS: &str =
    "SELECT state, kind, CAST(COUNT(*) AS BIGINT) FROM job WHERE state = 'running' GROUP BY state, kind
    UNION ALL SELECT state, kind, CAST(COUNT(*) AS BIGINT) FROM job WHERE state = 'waiting' GROUP BY state, kind
    ORDER BY 1, 2";
const LET_GO: &str = "UPDATE job SET lease_until = 0 WHERE state = 'running' AND lease_until > 0";
/// A bounded piece: the oldest that ended before the instant.
const FORGET: &str = "DELETE FROM job WHERE id IN
    (SELECT id FROM job WHERE finished_at > 0 AND finished_at < $1 ORDER BY finished_at LIMIT $2)";

/// # Errors
/// [`StoreError`].
pub async fn insert(connection: &mut Connection, job: &Job) -> Result<(), StoreError> {
    let draft = &job.draft;
    let values = [
        job.id.to_string().into(),
        draft.kind.as_str().into(),
        draft.tenant.map(|tenant| tenant.to_string()).unwrap_or_default().into(),
        draft.key.as_deref().unwrap_or_default().into(),
        draft.arguments.as_str().into(),
        draft.run_at.into(),
        draft.every_micros.into(),
        draft.attempts_max.into(),
        draft.actor.as_str().into(),
        draft.request_id.as_str().into(),
        job.state.name().into(),
        job.attempts.into(),
        job.lease.into(),
        job.lease_until.into(),
        i64::from(job.cancel_requested).into(),
        job.progress.done.into(),
        job.progress.total.unwrap_or(-1).into(),
        job.progress.note.as_str().into(),
        job.checkpoint.as_str().into(),
        job.result.as_str().into(),
        job.error.as_str().into(),
        job.created_at.into(),
        job.started_at.into(),
        job.finished_at.into(),
    ];
    connection.execute(INSERT, &values).await?;
    Ok(())
}

/// Writes a job that was changed from `before`; false when somebody else has changed it since.
///
/// # Errors
/// [`StoreError`].
pub async fn update(connection: &mut Connection, before: &Job, job: &Job) -> Result<bool, StoreError> {
    let values = [
        job.id.to_string().into(),
        before.lease.into(),
        before.state.name().into(),
        job.draft.run_at.into(),
        job.state.name().into(),
        job.attempts.into(),
        job.lease.into(),
        job.lease_until.into(),
        i64::from(job.cancel_requested).into(),
        job.progress.done.into(),
        job.progress.total.unwrap_or(-1).into(),
        job.progress.note.as_str().into(),
        job.checkpoint.as_str().into(),
        job.result.as_str().into(),
        job.error.as_str().into(),
        job.started_at.into(),
        job.finished_at.into(),
        job.draft.arguments.as_str().into(),
        job.draft.every_micros.into(),
    ];
    Ok(connection.execute(UPDATE, &values).await? == 1)
}

/// # Errors
/// [`StoreError`].
pub async fn one(connection: &mut Connection, id: JobId) -> Result<Option<Job>, StoreError> {
    let row = connection.fetch_one_optional(SELECT_ONE, &[id.to_string().into()]).await?;
    row.as_ref().map(job_at).transpose()
}

/// The unfinished job with this key.
///
/// # Errors
/// [`StoreError`].
pub async fn by_key(connection: &mut Connection, key: &str) -> Result<Option<Job>, StoreError> {
    let row = connection.fetch_one_optional(SELECT_BY_KEY, &[key.into()]).await?;
    row.as_ref().map(job_at).transpose()
}

/// Jobs to be looked at, the rests of changes or everything else: first those whose workers are lost, then those whose time
/// has come, oldest first.
///
/// # Errors
/// [`StoreError`].
pub async fn due(
    connection: &mut Connection,
    now: Timestamp,
    changes: bool,
    limit: usize,
) -> Result<Vec<Job>, StoreError> {
    let limit_rows = i64::try_from(limit).unwrap_or(i64::MAX);
    let values = [now.into(), limit_rows.into(), i64::from(changes).into(), job::no_lease_beyond(now).into()];
    let mut rows = connection.fetch(SELECT_LEASED, &values).await?;
    rows.extend(connection.fetch(SELECT_WAITING, &values[..3]).await?);
    rows.iter().take(limit).map(job_at).collect()
}

/// When one of the same is due next, if any is unfinished.
///
/// # Errors
/// [`StoreError`].
pub async fn next_due(connection: &mut Connection, changes: bool) -> Result<Option<Timestamp>, StoreError> {
    let mut next = None;
    for sql in [NEXT_WAITING, NEXT_LEASED] {
        let row = connection.fetch_one_optional(sql, &[i64::from(changes).into()]).await?;
        let at = row.map(|row| row.int(0)).transpose()?.map(Timestamp);
        next = [next, at].into_iter().flatten().min();
    }
    Ok(next)
}

/// Newest first, before `before`.
///
/// # Errors
/// [`StoreError`].
pub async fn page(
    connection: &mut Connection,
    filter: &JobFilter,
    before: Option<JobId>,
    limit: usize,
) -> Result<Page<Job, JobId>, StoreError> {
    let fetched = i64::try_from(limit.saturating_add(1)).unwrap_or(i64::MAX);
    let values = [
        filter.tenant.map(|tenant| tenant.to_string()).unwrap_or_default().into(),
        filter.state.map(State::name).unwrap_or_default().into(),
        filter.kind.as_deref().unwrap_or_default().into(),
        before.map(|id| id.to_string()).unwrap_or_default().into(),
        fetched.into(),
    ];
    let rows = connection.fetch(SELECT_PAGE, &values).await?;
    let items: Vec<Job> = rows.iter().take(limit).map(job_at).collect::<Result<_, _>>()?;
    let next = items.last().filter(|_| rows.len() > limit).map(|job| job.id);
    Ok(Page { items, next })
}

/// How many jobs of which kind wait and run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    pub state: State,
    pub kind: String,
    pub count: i64,
}

/// # Errors
/// [`StoreError`].
pub async fn census(connection: &mut Connection) -> Result<Vec<Tally>, StoreError> {
    let rows = connection.fetch(CENSUS, &[]).await?;
    rows.iter()
        .map(|row| Ok(Tally { state: row.parsed(0, State::from_name)?, kind: row.text(1)?, count: row.int(2)? }))
        .collect()
}

/// Whoever holds a job is gone for sure, so its lease is over now; answers how many were held.
///
/// # Errors
/// [`StoreError`].
pub async fn let_go(connection: &mut Connection) -> Result<u64, StoreError> {
    connection.execute(LET_GO, &[]).await
}

/// Forgets at most `limit` jobs that ended before `before`; answers how many.
///
/// # Errors
/// [`StoreError`].
pub async fn forget(connection: &mut Connection, before: Timestamp, limit: i64) -> Result<u64, StoreError> {
    connection.execute(FORGET, &[before.into(), limit.into()]).await
}

fn job_at(row: &Row) -> Result<Job, StoreError> {
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let tenant = some(row.text(2)?);
    let total = row.int(16)?;
    Ok(Job {
        id: row.parsed(0, |text| text.parse().ok())?,
        draft: Draft {
            kind: row.text(1)?,
            tenant: match tenant {
                None => None,
                Some(_) => Some(row.parsed(2, |text| text.parse().ok())?),
            },
            key: some(row.text(3)?),
            arguments: row.text(4)?,
            run_at: Timestamp(row.int(5)?),
            every_micros: row.int(6)?,
            attempts_max: row.int(7)?,
            actor: row.text(8)?,
            request_id: row.text(9)?,
        },
        state: row.parsed(10, State::from_name)?,
        attempts: row.int(11)?,
        lease: row.int(12)?,
        lease_until: Timestamp(row.int(13)?),
        cancel_requested: row.int(14)? != 0,
        progress: Progress { done: row.int(15)?, total: (total >= 0).then_some(total), note: row.text(17)? },
        checkpoint: row.text(18)?,
        result: row.text(19)?,
        error: row.text(20)?,
        created_at: Timestamp(row.int(21)?),
        started_at: Timestamp(row.int(22)?),
        finished_at: Timestamp(row.int(23)?),
    })
}
