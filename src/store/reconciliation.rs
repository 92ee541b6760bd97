//! How the ledger compares with what gateways say, as rows: verdicts, findings, and what has to be compared again.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

use super::StoreError;
use super::connection::{Bulk, Column, Row};
use super::database::Connection;
use super::failure;
use super::usage::{amounts_at, position_floor, status_from_name};
use crate::domain::books::Posting;
use crate::domain::ids::{AlertId, FindingId};
use crate::domain::period::Window;
use crate::domain::reconcile::finding::{Cause, Finding, Found, Status};
use crate::domain::reconcile::lifecycle::Age;
use crate::domain::reconcile::reading::InterruptionReason;
use crate::domain::reconcile::report::{FindingPage, FindingQuery, Verdicts, WindowPage, WindowQuery};
use crate::domain::reconcile::window::{Judged, LedgerCall};
use crate::domain::reconcile::{Proof, Verdict};
use crate::domain::time::{MICROS_PER_DAY, Timestamp};
use crate::domain::usage::{FUTURE_TOLERANCE_MICROS, Flags};

/// Adjusting entries and statements of running counters are no calls.
const SELECT_CALLS: &str = "SELECT position, occurred_at, status, flags, requests, prompt_tokens, cache_read_tokens,
    cache_write_tokens, completion_tokens, reasoning_tokens, unclassified_tokens, cost_nano_usd, details
    FROM usage_ledger WHERE position >= $1 AND occurred_at >= $2 AND occurred_at < $3 AND kind = 'delta'
    ORDER BY position LIMIT $4";
const SELECT_FIRST_CALL: &str = "SELECT COALESCE(MIN(occurred_at), 0) FROM usage_ledger
    WHERE position >= $1 AND occurred_at >= $2 AND kind = 'delta'";

static WRITE_WINDOWS: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new(
        "INSERT INTO reconciliation_window (window_start, proof, window_end, verdict, gateway, ledger, tolerance,
            reasons, judged_at)",
        &["BIGINT", "TEXT", "BIGINT", "TEXT", "BIGINT", "BIGINT", "BIGINT", "TEXT", "BIGINT"],
        "ON CONFLICT (window_start, proof) DO UPDATE SET window_end = excluded.window_end,
            verdict = excluded.verdict, gateway = excluded.gateway, ledger = excluded.ledger,
            tolerance = excluded.tolerance, reasons = excluded.reasons, judged_at = excluded.judged_at",
    )
});
const SELECT_JUDGED: &str = "SELECT window_start, window_end, proof, verdict, gateway, ledger, tolerance, reasons,
    judged_at FROM reconciliation_window WHERE window_start < $1 ORDER BY window_start DESC, proof LIMIT $2";
const SELECT_JUDGED_NEXT: &str = "SELECT window_start, window_end, proof, verdict, gateway, ledger, tolerance, reasons,
    judged_at FROM reconciliation_window WHERE window_start >= $1 ORDER BY window_start, proof LIMIT $2";
const SELECT_LAST: &str = "SELECT window_start, window_end, proof, verdict, gateway, ledger, tolerance, reasons,
    judged_at FROM reconciliation_window WHERE proof = $1 ORDER BY window_start DESC LIMIT 1";
const SELECT_WINDOWS: &str = "SELECT window_start, window_end, proof, verdict, gateway, ledger, tolerance, reasons,
    judged_at FROM reconciliation_window WHERE window_start >= $1 AND window_start < $2
    AND ($3 = '' OR proof = $3) AND ($4 = '' OR verdict = $4)
    AND (window_start < $5 OR (window_start = $5 AND proof > $6)) ORDER BY window_start DESC, proof LIMIT $7";

static WRITE_FINDINGS: LazyLock<Bulk> = LazyLock::new(|| {
    Bulk::new(
        "INSERT INTO finding (id, cause, proof, window_start, window_end, gateway, ledger, amount, evidence, status,
            opened_at, changed_at, changed_by, reason, adjustment)",
        &[
            "TEXT", "TEXT", "TEXT", "BIGINT", "BIGINT", "BIGINT", "BIGINT", "BIGINT", "TEXT", "TEXT", "BIGINT",
            "BIGINT", "TEXT", "TEXT", "BIGINT",
        ],
        "ON CONFLICT (id) DO UPDATE SET proof = excluded.proof, gateway = excluded.gateway,
            ledger = excluded.ledger, amount = excluded.amount, evidence = excluded.evidence,
            status = excluded.status, opened_at = excluded.opened_at, changed_at = excluded.changed_at,
            changed_by = excluded.changed_by, reason = excluded.reason, adjustment = excluded.adjustment",
    )
});
/// The columns of a finding, in the order of [`finding_at`].
macro_rules! finding {
    ($rest:literal) => {
        concat!(
            "SELECT id, cause, proof, window_start, window_end, gateway, ledger, amount, evidence, status, opened_at,
            changed_at, changed_by, reason, adjustment FROM finding ",
            $rest
        )
    };
}
const SELECT_FINDING: &str = finding!("WHERE id = $1");
const SELECT_BETWEEN: &str = finding!("WHERE window_start >= $1 AND window_start < $2 ORDER BY window_start, cause");
const SELECT_FINDINGS: &str = finding!(
    "WHERE ($1 = '' OR status = $1) AND ($2 = '' OR cause = $2)
    AND (window_start < $3 OR (window_start = $3 AND cause > $4)) ORDER BY window_start DESC, cause LIMIT $5"
);
const SELECT_OPEN_BEFORE: &str = finding!(
    "WHERE status IN ('open', 'acknowledged') AND cause = $1 AND window_start < $2 ORDER BY window_start DESC LIMIT $3"
);
const SELECT_OPEN: &str = "SELECT id FROM finding WHERE status IN ('open', 'acknowledged') AND window_start >= $1
    AND cause = $2 ORDER BY window_start DESC LIMIT $3";
const COUNT_OPEN: &str = "SELECT cause,
    CAST(SUM(CASE WHEN opened_at > $1 THEN 1 ELSE 0 END) AS BIGINT),
    CAST(SUM(CASE WHEN opened_at <= $1 AND opened_at > $2 THEN 1 ELSE 0 END) AS BIGINT),
    CAST(SUM(CASE WHEN opened_at <= $2 AND opened_at > $3 THEN 1 ELSE 0 END) AS BIGINT),
    CAST(SUM(CASE WHEN opened_at <= $3 THEN 1 ELSE 0 END) AS BIGINT)
    FROM finding WHERE status IN ('open', 'acknowledged') GROUP BY cause ORDER BY cause";

const SELECT_AGAIN: &str = "SELECT window_start, due_at, times FROM reconciliation_again WHERE due_at <= $1
    ORDER BY window_start LIMIT $2";
const DONE_AGAIN: &str = "DELETE FROM reconciliation_again WHERE window_start = $1 AND due_at = $2";
/// What has come meanwhile makes it due as it said.
const LOOK_AGAIN: &str = "INSERT INTO reconciliation_again (window_start, due_at, times) VALUES ($1, $2, $3)
    ON CONFLICT (window_start) DO NOTHING";
const SELECT_NEXT_AGAIN: &str = "SELECT COALESCE(MIN(due_at), 0) FROM reconciliation_again";
const SELECT_ALERT: &str = "SELECT 1 FROM alert WHERE id = $1";

/// A window that is compared again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Again {
    pub start: Timestamp,
    pub due: Timestamp,
    /// How often it has been compared.
    pub times: u32,
}

/// Calls that occurred in `window`; `None` when there are more than `most`.
///
/// # Errors
/// [`StoreError`].
pub async fn calls(
    connection: &mut Connection,
    window: Window,
    most: usize,
) -> Result<Option<Vec<LedgerCall>>, StoreError> {
    let floor = position_floor(connection, window.start.plus_micros(-FUTURE_TOLERANCE_MICROS)).await?;
    let values = [floor.into(), window.start.into(), window.end.into(), (most as i64 + 1).into()];
    let rows = connection.fetch(SELECT_CALLS, &values).await?;
    if rows.len() > most {
        return Ok(None);
    }
    rows.iter().map(call_at).collect::<Result<_, _>>().map(Some)
}

/// Calls that occurred in `window` and stand behind `position`, in the order of the ledger; at most `most`.
///
/// # Errors
/// [`StoreError`].
pub async fn calls_after(
    connection: &mut Connection,
    window: Window,
    position: i64,
    most: usize,
) -> Result<Vec<LedgerCall>, StoreError> {
    let from = match position {
        0 => position_floor(connection, window.start.plus_micros(-FUTURE_TOLERANCE_MICROS)).await?,
        position => position + 1,
    };
    let values = [from.into(), window.start.into(), window.end.into(), (most as i64).into()];
    let rows = connection.fetch(SELECT_CALLS, &values).await?;
    rows.iter().map(call_at).collect()
}

/// When the first call occurred that occurred at `since` or later.
///
/// # Errors
/// [`StoreError`].
pub async fn first_call(connection: &mut Connection, since: Timestamp) -> Result<Option<Timestamp>, StoreError> {
    let floor = position_floor(connection, since.plus_micros(-FUTURE_TOLERANCE_MICROS)).await?;
    let row = connection.fetch_one_optional(SELECT_FIRST_CALL, &[floor.into(), since.into()]).await?;
    Ok(row.map(|row| row.int(0)).transpose()?.filter(|at| *at != 0).map(Timestamp))
}

/// Verdicts on windows that begin before `before`, newest first.
///
/// # Errors
/// [`StoreError`].
pub async fn judged(connection: &mut Connection, before: Timestamp, most: usize) -> Result<Vec<Judged>, StoreError> {
    let rows = connection.fetch(SELECT_JUDGED, &[before.into(), (most as i64).into()]).await?;
    rows.iter().map(judged_at).collect()
}

/// Verdicts on windows that begin at `from` or later, oldest first.
///
/// # Errors
/// [`StoreError`].
pub async fn judged_next(connection: &mut Connection, from: Timestamp, most: usize) -> Result<Vec<Judged>, StoreError> {
    let rows = connection.fetch(SELECT_JUDGED_NEXT, &[from.into(), (most as i64).into()]).await?;
    rows.iter().map(judged_at).collect()
}

/// The last verdict of each proof, with when it was given.
///
/// # Errors
/// [`StoreError`].
pub async fn last_judged(connection: &mut Connection) -> Result<Verdicts, StoreError> {
    let mut last = Vec::new();
    for proof in Proof::ALL {
        if let Some(row) = connection.fetch_one_optional(SELECT_LAST, &[proof.name().into()]).await? {
            last.push((judged_at(&row)?, Timestamp(row.int(8)?)));
        }
    }
    Ok(last)
}

/// Verdicts, newest window first.
///
/// # Errors
/// [`StoreError`].
pub async fn windows(connection: &mut Connection, query: &WindowQuery) -> Result<WindowPage, StoreError> {
    let (before, after) = query.after.map_or((i64::MAX, ""), |(start, proof)| (start.0, proof.name()));
    let values = [
        query.window.start.into(),
        query.window.end.into(),
        query.proof.map_or("", Proof::name).into(),
        query.verdict.map_or("", Verdict::name).into(),
        before.into(),
        after.into(),
        (query.limit as i64 + 1).into(),
    ];
    let rows = connection.fetch(SELECT_WINDOWS, &values).await?;
    let one = |row: &Row| Ok((judged_at(row)?, Timestamp(row.int(8)?)));
    let items: Verdicts = rows.iter().take(query.limit).map(one).collect::<Result<_, StoreError>>()?;
    let next = items.last().filter(|_| rows.len() > query.limit).map(|(one, _)| (one.window.start, one.proof));
    Ok(WindowPage { items, next })
}

/// Findings, newest window first.
///
/// # Errors
/// [`StoreError`].
pub async fn findings(connection: &mut Connection, query: &FindingQuery) -> Result<FindingPage, StoreError> {
    let (before, after) = query.after.map_or((i64::MAX, ""), |(start, cause)| (start.0, cause.name()));
    let values = [
        query.status.map_or("", Status::name).into(),
        query.cause.map_or("", Cause::name).into(),
        before.into(),
        after.into(),
        (query.limit as i64 + 1).into(),
    ];
    let rows = connection.fetch(SELECT_FINDINGS, &values).await?;
    let items: Vec<Finding> = rows.iter().take(query.limit).map(finding_at).collect::<Result<_, _>>()?;
    let next = items.last().filter(|_| rows.len() > query.limit).map(|one| (one.found.window.start, one.found.cause));
    Ok(FindingPage { items, next })
}

/// # Errors
/// [`StoreError`].
pub async fn finding(connection: &mut Connection, id: FindingId) -> Result<Option<Finding>, StoreError> {
    let row = connection.fetch_one_optional(SELECT_FINDING, &[id.to_string().into()]).await?;
    row.map(|row| finding_at(&row)).transpose()
}

/// Findings of the windows that begin in `window`.
///
/// # Errors
/// [`StoreError`].
pub async fn findings_in(connection: &mut Connection, window: Window) -> Result<Vec<Finding>, StoreError> {
    let rows = connection.fetch(SELECT_BETWEEN, &[window.start.into(), window.end.into()]).await?;
    rows.iter().map(finding_at).collect()
}

/// Open findings of a cause that begin at `since` or later, newest first.
///
/// # Errors
/// [`StoreError`].
pub async fn open_findings(
    connection: &mut Connection,
    cause: Cause,
    since: Timestamp,
    most: usize,
) -> Result<Vec<FindingId>, StoreError> {
    let values = [since.into(), cause.name().into(), (most as i64).into()];
    let rows = connection.fetch(SELECT_OPEN, &values).await?;
    rows.iter().map(|row| row.parsed(0, |text| text.parse().ok())).collect()
}

/// Open findings of a cause whose windows begin before `before`, newest first.
///
/// # Errors
/// [`StoreError`].
pub async fn open_before(
    connection: &mut Connection,
    cause: Cause,
    before: Timestamp,
    most: usize,
) -> Result<Vec<Finding>, StoreError> {
    let values = [cause.name().into(), before.into(), (most as i64).into()];
    connection.fetch(SELECT_OPEN_BEFORE, &values).await?.iter().map(finding_at).collect()
}

/// How many findings are open, by cause and age.
///
/// # Errors
/// [`StoreError`].
pub async fn count_open(
    connection: &mut Connection,
    now: Timestamp,
) -> Result<BTreeMap<Cause, [(Age, i64); 4]>, StoreError> {
    let ago = |days: i64| now.plus_micros(-days * MICROS_PER_DAY).into();
    let mut open = BTreeMap::new();
    for row in connection.fetch(COUNT_OPEN, &[ago(1), ago(7), ago(30)]).await? {
        let counts = [row.int(1)?, row.int(2)?, row.int(3)?, row.int(4)?];
        let ages = [0, 1, 2, 3].map(|at| (Age::ALL[at], counts[at]));
        open.insert(row.parsed(0, Cause::from_name)?, ages);
    }
    Ok(open)
}

/// Windows that are due to be compared again.
///
/// # Errors
/// [`StoreError`].
pub async fn due_again(connection: &mut Connection, now: Timestamp, most: usize) -> Result<Vec<Again>, StoreError> {
    let rows = connection.fetch(SELECT_AGAIN, &[now.into(), (most as i64).into()]).await?;
    let one = |row: &Row| {
        let times = u32::try_from(row.int(2)?).map_err(|_| failure::unreadable("a number of comparisons"))?;
        Ok(Again { start: Timestamp(row.int(0)?), due: Timestamp(row.int(1)?), times })
    };
    rows.iter().map(one).collect()
}

/// A window was compared again as it was due; one that something has come for since stays due.
///
/// # Errors
/// [`StoreError`].
pub async fn done_again(connection: &mut Connection, start: Timestamp, due: Timestamp) -> Result<(), StoreError> {
    connection.execute(DONE_AGAIN, &[start.into(), due.into()]).await?;
    Ok(())
}

/// A window is to be compared again.
///
/// # Errors
/// [`StoreError`].
pub async fn look_again(connection: &mut Connection, again: Again) -> Result<(), StoreError> {
    connection.execute(LOOK_AGAIN, &[again.start.into(), again.due.into(), i64::from(again.times).into()]).await?;
    Ok(())
}

/// When the first window is to be compared again.
///
/// # Errors
/// [`StoreError`].
pub async fn next_again(connection: &mut Connection) -> Result<Option<Timestamp>, StoreError> {
    let row = connection.fetch_one_optional(SELECT_NEXT_AGAIN, &[]).await?;
    Ok(row.map(|row| row.int(0)).transpose()?.filter(|at| *at != 0).map(Timestamp))
}

/// Has an alert with this id ever fired?
///
/// # Errors
/// [`StoreError`].
pub async fn has_fired(connection: &mut Connection, id: AlertId) -> Result<bool, StoreError> {
    Ok(connection.fetch_one_optional(SELECT_ALERT, &[id.to_string().into()]).await?.is_some())
}

/// Writes the verdicts and findings of a posting.
pub(super) async fn write(connection: &mut Connection, posting: &Posting) -> Result<(), StoreError> {
    let judged = &posting.gateway.judged;
    let reasons: Vec<String> =
        judged.iter().map(|one| one.reasons.iter().map(|reason| reason.name()).collect::<Vec<_>>().join(",")).collect();
    let columns = [
        Column::Ints(judged.iter().map(|one| one.window.start.0).collect()),
        Column::Texts(judged.iter().map(|one| one.proof.name()).collect()),
        Column::Ints(judged.iter().map(|one| one.window.end.0).collect()),
        Column::Texts(judged.iter().map(|one| one.verdict.name()).collect()),
        Column::Ints(judged.iter().map(|one| one.gateway).collect()),
        Column::Ints(judged.iter().map(|one| one.ledger).collect()),
        Column::Ints(judged.iter().map(|one| one.tolerance).collect()),
        Column::Texts(reasons.iter().map(String::as_str).collect()),
        Column::Ints(vec![posting.now().0; judged.len()]),
    ];
    connection.execute_bulk(&WRITE_WINDOWS, &columns).await?;
    write_findings(connection, posting.gateway.findings.values().collect()).await
}

async fn write_findings(connection: &mut Connection, findings: Vec<&Finding>) -> Result<(), StoreError> {
    let ids: Vec<String> = findings.iter().map(|one| one.id.to_string()).collect();
    // A struct of texts and numbers always serializes.
    let evidence: Vec<String> =
        findings.iter().map(|one| serde_json::to_string(&one.found.evidence).unwrap_or_default()).collect();
    let ints = |of: fn(&Finding) -> i64| Column::Ints(findings.iter().map(|one| of(one)).collect());
    let columns = [
        Column::Texts(ids.iter().map(String::as_str).collect()),
        Column::Texts(findings.iter().map(|one| one.found.cause.name()).collect()),
        Column::Texts(findings.iter().map(|one| one.found.proof.name()).collect()),
        ints(|one| one.found.window.start.0),
        ints(|one| one.found.window.end.0),
        ints(|one| one.found.gateway),
        ints(|one| one.found.ledger),
        ints(|one| one.found.count),
        Column::Texts(evidence.iter().map(String::as_str).collect()),
        Column::Texts(findings.iter().map(|one| one.status.name()).collect()),
        ints(|one| one.opened_at.0),
        ints(|one| one.changed_at.0),
        Column::Texts(findings.iter().map(|one| one.changed_by.as_str()).collect()),
        Column::Texts(findings.iter().map(|one| one.reason.as_str()).collect()),
        ints(|one| one.adjustment),
    ];
    connection.execute_bulk(&WRITE_FINDINGS, &columns).await?;
    Ok(())
}

/// What the comparison needs of an event's details.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Ids {
    call_id: String,
    request_id: String,
    correlation_id: String,
}

fn call_at(row: &Row) -> Result<LedgerCall, StoreError> {
    // Details that are no object, or have other things under these names, name no request.
    let ids: Ids = serde_json::from_str(&row.text(12)?).unwrap_or_default();
    Ok(LedgerCall {
        position: row.int(0)?,
        call_id: if ids.call_id.is_empty() { ids.request_id } else { ids.call_id },
        request_id: ids.correlation_id,
        occurred_at: Timestamp(row.int(1)?),
        status: row.parsed(2, status_from_name)?,
        flags: Flags(row.int(3)?),
        amounts: amounts_at(row, 4)?,
    })
}

fn judged_at(row: &Row) -> Result<Judged, StoreError> {
    let reasons = row.text(7)?;
    let known = |name: &str| InterruptionReason::from_name(name).ok_or_else(|| failure::unreadable(name));
    Ok(Judged {
        proof: row.parsed(2, Proof::from_name)?,
        window: Window { start: Timestamp(row.int(0)?), end: Timestamp(row.int(1)?) },
        verdict: row.parsed(3, Verdict::from_name)?,
        gateway: row.int(4)?,
        ledger: row.int(5)?,
        tolerance: row.int(6)?,
        reasons: reasons.split(',').filter(|name| !name.is_empty()).map(known).collect::<Result<_, _>>()?,
    })
}

fn finding_at(row: &Row) -> Result<Finding, StoreError> {
    Ok(Finding {
        id: row.parsed(0, |text| text.parse().ok())?,
        found: Found {
            cause: row.parsed(1, Cause::from_name)?,
            proof: row.parsed(2, Proof::from_name)?,
            window: Window { start: Timestamp(row.int(3)?), end: Timestamp(row.int(4)?) },
            gateway: row.int(5)?,
            ledger: row.int(6)?,
            count: row.int(7)?,
            evidence: row.parsed(8, |text| serde_json::from_str(text).ok())?,
        },
        status: row.parsed(9, Status::from_name)?,
        opened_at: Timestamp(row.int(10)?),
        changed_at: Timestamp(row.int(11)?),
        changed_by: row.text(12)?,
        reason: row.text(13)?,
        adjustment: row.int(14)?,
    })
}
