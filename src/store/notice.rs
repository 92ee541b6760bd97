//! Alerts and the outbox, as questions.

use std::collections::HashMap;

use super::StoreError;
use super::connection::Row;
use super::database::Connection;
use super::quota;
use crate::domain::ids::AlertId;
use crate::domain::notice::{
    Acknowledgement, Alert, AlertKind, AlertSubject, BudgetBurn, Delivery, Event, Message, Outcome, QuotaThreshold,
    RETRY_DELAY_MICROS_MAX, ReconciliationDrift,
};
use crate::domain::period::Window;
use crate::domain::report::{AlertPage, AlertQuery, MessagePage, MessagePosition, MessageQuery};
use crate::domain::routing::{Reached, Told};
use crate::domain::time::Timestamp;

const SELECT_PAGE: &str = "SELECT id, quota_id, scope_kind, scope_id, metric, period, limit_amount, thresholds,
    enforcement, period_start, period_end, threshold, used, fired_at, resolved_at, kind, details,
    acknowledged_at, acknowledged_by FROM alert
    WHERE fired_at < $1 OR (fired_at = $1 AND id < $2) ORDER BY fired_at DESC, id DESC LIMIT $3";

const SELECT_FIRING: &str = "SELECT id, quota_id, scope_kind, scope_id, metric, period, limit_amount, thresholds,
    enforcement, period_start, period_end, threshold, used, fired_at, resolved_at, kind, details,
    acknowledged_at, acknowledged_by FROM alert
    WHERE resolved_at = 0 ORDER BY fired_at, id";

/// That an alert is acknowledged or over is told to a channel only after the channel knows that it fired; that it is over,
/// after it knows of the acknowledgement too.
const SELECT_DUE: &str = "SELECT alert.id, alert.quota_id, alert.scope_kind, alert.scope_id, alert.metric,
    alert.period, alert.limit_amount, alert.thresholds, alert.enforcement, alert.period_start, alert.period_end,
    alert.threshold, alert.used, alert.fired_at, alert.resolved_at, alert.kind, alert.details,
    alert.acknowledged_at, alert.acknowledged_by,
    outbox.event, outbox.channel, outbox.attempts, outbox.next_attempt_at
    FROM outbox JOIN alert ON alert.id = outbox.alert_id
    WHERE outbox.settled_at = 0 AND (outbox.next_attempt_at <= $1
        OR (outbox.next_attempt_at > $2 AND outbox.next_attempt_at > outbox.held_until))
    AND (outbox.event = 'fired' OR NOT EXISTS (SELECT 1 FROM outbox AS earlier
        WHERE earlier.alert_id = outbox.alert_id
        AND (earlier.event = 'fired' OR (earlier.event = 'acknowledged' AND outbox.event = 'resolved'))
        AND earlier.channel = outbox.channel AND earlier.settled_at = 0))
    ORDER BY outbox.next_attempt_at, outbox.created_at, outbox.alert_id, outbox.channel LIMIT $3";

/// Which channels the firing alerts were owed to.
const SELECT_TOLD: &str = "SELECT outbox.alert_id, outbox.channel, outbox.held_until, outbox.outcome
    FROM outbox JOIN alert ON alert.id = outbox.alert_id
    WHERE alert.resolved_at = 0 AND outbox.event = 'fired'
    ORDER BY outbox.alert_id, outbox.created_at, outbox.channel";

const SELECT_ALERT: &str = "SELECT id, quota_id, scope_kind, scope_id, metric, period, limit_amount, thresholds,
    enforcement, period_start, period_end, threshold, used, fired_at, resolved_at, kind, details,
    acknowledged_at, acknowledged_by FROM alert WHERE id = $1";

/// The outbox by age, newest first; an empty word asks for all of them.
const SELECT_MESSAGES: &str = "SELECT outbox.alert_id, alert.kind, outbox.event, outbox.channel, outbox.created_at,
    outbox.attempts, outbox.outcome, outbox.settled_at, outbox.next_attempt_at, outbox.reason
    FROM outbox JOIN alert ON alert.id = outbox.alert_id
    WHERE outbox.created_at >= $1 AND outbox.created_at < $2
    AND ($3 = '' OR outbox.channel = $3) AND ($4 = '' OR outbox.outcome = $4)
    AND (outbox.created_at < $5 OR (outbox.created_at = $5 AND (outbox.alert_id < $6
        OR (outbox.alert_id = $6 AND (outbox.event < $7 OR (outbox.event = $7 AND outbox.channel < $8))))))
    ORDER BY outbox.created_at DESC, outbox.alert_id DESC, outbox.event DESC, outbox.channel DESC LIMIT $9";

/// What waits for something earlier is due no sooner than that is.
const SELECT_OWED: &str = "SELECT COUNT(*), COALESCE(MIN(CASE WHEN outbox.event = 'fired' OR NOT EXISTS (
        SELECT 1 FROM outbox AS earlier WHERE earlier.alert_id = outbox.alert_id
        AND (earlier.event = 'fired' OR (earlier.event = 'acknowledged' AND outbox.event = 'resolved'))
        AND earlier.channel = outbox.channel AND earlier.settled_at = 0)
        THEN outbox.next_attempt_at ELSE NULL END), 0)
    FROM outbox WHERE outbox.settled_at = 0";

/// What a tenant owes to its channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owed {
    /// Deliveries, due or not.
    pub count: i64,
    /// When the first of them is due; long ago when nothing is owed.
    pub due_at: Timestamp,
}

/// The history of alerts, newest first.
///
/// # Errors
/// [`StoreError`].
pub async fn alerts(connection: &mut Connection, query: &AlertQuery) -> Result<AlertPage, StoreError> {
    let (at, id) = match query.before {
        Some((at, id)) => (at.0, AlertId(id).to_string()),
        None => (i64::MAX, String::new()),
    };
    let fetched = i64::try_from(query.limit.saturating_add(1)).unwrap_or(i64::MAX);
    let rows = connection.fetch(SELECT_PAGE, &[at.into(), id.into(), fetched.into()]).await?;
    let items: Vec<Alert> = rows.iter().take(query.limit).map(alert_at).collect::<Result<_, _>>()?;
    let next = items.last().filter(|_| rows.len() > query.limit).map(|alert| (alert.fired_at, alert.id.0));
    Ok(AlertPage { items, next })
}

/// One alert, firing or not.
///
/// # Errors
/// [`StoreError`].
pub async fn alert(connection: &mut Connection, id: AlertId) -> Result<Option<Alert>, StoreError> {
    let row = connection.fetch_one_optional(SELECT_ALERT, &[id.to_string().into()]).await?;
    row.as_ref().map(alert_at).transpose()
}

/// What was owed to the channels and what became of it, newest first.
///
/// # Errors
/// [`StoreError`].
pub async fn messages(connection: &mut Connection, query: &MessageQuery) -> Result<MessagePage, StoreError> {
    let (at, alert, event, channel) = match &query.before {
        Some(MessagePosition { at, alert, event, channel }) => {
            (at.0, alert.to_string(), event.name(), channel.as_str())
        }
        None => (i64::MAX, String::new(), "", ""),
    };
    let fetched = i64::try_from(query.limit.saturating_add(1)).unwrap_or(i64::MAX);
    let values = [
        query.window.start.into(),
        query.window.end.into(),
        query.channel.as_deref().unwrap_or_default().into(),
        query.outcome.map_or("", Outcome::name).into(),
        at.into(),
        alert.into(),
        event.into(),
        channel.into(),
        fetched.into(),
    ];
    let rows = connection.fetch(SELECT_MESSAGES, &values).await?;
    let items: Vec<Message> = rows.iter().take(query.limit).map(message_at).collect::<Result<_, _>>()?;
    let next = items.last().filter(|_| rows.len() > query.limit).map(|last| MessagePosition {
        at: last.created_at,
        alert: last.alert,
        event: last.event,
        channel: last.channel.clone(),
    });
    Ok(MessagePage { items, next })
}

/// Deliveries that are due at `now`, those that wait longest first. One that is due later than any delay would make it
/// was put off by a clock that has been set back since, and is due as well, unless it is held until the quiet hours end.
///
/// # Errors
/// [`StoreError`].
pub async fn due(connection: &mut Connection, now: Timestamp, limit: usize) -> Result<Vec<Delivery>, StoreError> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let beyond = now.plus_micros(RETRY_DELAY_MICROS_MAX);
    connection.fetch(SELECT_DUE, &[now.into(), beyond.into(), limit.into()]).await?.iter().map(delivery_at).collect()
}

/// How many deliveries are owed, and when the first of them is due.
///
/// # Errors
/// [`StoreError`].
pub async fn owed(connection: &mut Connection) -> Result<Owed, StoreError> {
    match connection.fetch_one_optional(SELECT_OWED, &[]).await? {
        Some(row) => Ok(Owed { count: row.int(0)?, due_at: Timestamp(row.int(1)?) }),
        None => Ok(Owed { count: 0, due_at: Timestamp(0) }),
    }
}

/// Alerts that have not been resolved, oldest first.
pub(super) async fn firing(connection: &mut Connection) -> Result<Vec<Alert>, StoreError> {
    connection.fetch(SELECT_FIRING, &[]).await?.iter().map(alert_at).collect()
}

/// The channels that the firing alerts were owed to, by alert.
pub(super) async fn told(connection: &mut Connection) -> Result<HashMap<AlertId, Vec<Told>>, StoreError> {
    let mut told: HashMap<AlertId, Vec<Told>> = HashMap::new();
    for row in connection.fetch(SELECT_TOLD, &[]).await? {
        let alert = row.parsed(0, |text| text.parse::<AlertId>().ok())?;
        let reached = row.parsed(3, reached)?;
        told.entry(alert).or_default().push(Told {
            channel: row.text(1)?,
            held_until: Timestamp(row.int(2)?),
            reached,
        });
    }
    Ok(told)
}

fn reached(outcome: &str) -> Option<Reached> {
    match outcome {
        "owed" => Some(Reached::NotYet),
        "delivered" => Some(Reached::Delivered),
        "gaveUp" | "withdrawn" => Some(Reached::GivenUp),
        _ => None,
    }
}

/// An alert from its nineteen columns.
fn alert_at(row: &Row) -> Result<Alert, StoreError> {
    let period = Window { start: Timestamp(row.int(9)?), end: Timestamp(row.int(10)?) };
    let used = row.int(12)?;
    let subject = match row.parsed(15, AlertKind::from_name)? {
        AlertKind::QuotaThreshold => AlertSubject::QuotaThreshold(QuotaThreshold {
            quota: quota::quota_at(row, 1)?,
            period_start: period.start,
            period_end: period.reset_at(),
            threshold: quota::threshold_at(row, 11)?,
            used,
        }),
        AlertKind::BudgetBurn => AlertSubject::BudgetBurn(BudgetBurn {
            quota: quota::quota_at(row, 1)?,
            period_start: period.start,
            period_end: period.reset_at(),
            used,
            exhausted_at: row.parsed(16, |text| text.parse().ok().map(Timestamp))?,
        }),
        // No books hold one.
        AlertKind::Test => AlertSubject::Test(row.text(16)?),
        AlertKind::ReconciliationDrift => AlertSubject::ReconciliationDrift(ReconciliationDrift {
            cause: row.text(1)?,
            window_start: period.start,
            windows: row.int(6)?,
            difference: used,
            summary: row.text(16)?,
        }),
    };
    Ok(Alert {
        id: row.parsed(0, |text| text.parse::<AlertId>().ok())?,
        subject,
        fired_at: Timestamp(row.int(13)?),
        resolved_at: instant_at(row, 14)?,
        acknowledged: match instant_at(row, 17)? {
            Some(at) => Some(Acknowledgement { by: row.text(18)?, at }),
            None => None,
        },
    })
}

fn delivery_at(row: &Row) -> Result<Delivery, StoreError> {
    Ok(Delivery {
        alert: alert_at(row)?,
        event: row.parsed(19, Event::from_name)?,
        channel: row.text(20)?,
        attempts: row.int(21)?,
        next_attempt_at: Timestamp(row.int(22)?),
    })
}

fn message_at(row: &Row) -> Result<Message, StoreError> {
    let outcome = row.parsed(6, Outcome::from_name)?;
    Ok(Message {
        alert: row.parsed(0, |text| text.parse::<AlertId>().ok())?,
        kind: row.parsed(1, AlertKind::from_name)?,
        event: row.parsed(2, Event::from_name)?,
        channel: row.text(3)?,
        created_at: Timestamp(row.int(4)?),
        attempts: row.int(5)?,
        outcome,
        settled_at: instant_at(row, 7)?,
        next_attempt_at: instant_at(row, 8)?.filter(|_| outcome == Outcome::Owed),
        reason: row.text(9)?,
    })
}

/// An instant that is 0 when there is none.
fn instant_at(row: &Row, column: usize) -> Result<Option<Timestamp>, StoreError> {
    Ok(Some(row.int(column)?).filter(|at| *at != 0).map(Timestamp))
}
