//! `/v1/tenants/{id}/usage`: reports, and pages of the ledger.

use poem_openapi::param::{Path, Query};
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::authorize::Ask;
use super::document::Tag;
use super::problem::{FieldProblem, Problem};
use super::reply::Reply;
use super::view::{AmountsView, JsonObject, SubjectView, instant, page_limit, parse_instant};
use crate::domain::period::{PeriodKind, Window};
use crate::domain::report::{Dimension, LedgerQuery, LedgerRow, UsageQuery, UsageRow};
use crate::domain::time::{MICROS_PER_DAY, Timestamp};
use crate::domain::usage::{Flags, Kind, LABEL_BYTES_MAX, Status, Subject};

/// Longest time one report may span, by granularity, in days.
const REPORT_DAYS_MAX: [(PeriodKind, i64); 3] =
    [(PeriodKind::Hour, 92), (PeriodKind::Day, 1_100), (PeriodKind::Month, 4_000)];

pub(super) struct Usage;

#[OpenApi(tag = "Tag::Usage")]
impl Usage {
    /// Report usage
    ///
    /// Sums by hour, day or month of the tenant's calendar, and by the dimensions asked for.
    #[oai(path = "/v1/tenants/:id/usage", method = "get", operation_id = "reportUsage")]
    #[allow(clippy::too_many_arguments, reason = "each is a documented parameter")]
    async fn report(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "id")]
        _id: Path<String>,
        /// RFC 3339: the first instant of the report.
        from: Query<String>,
        /// RFC 3339: the first instant after the report.
        to: Query<String>,
        /// `hour`, `day` or `month`; `day` when absent. At most 92 days by hour, 1100 by day, 4000 by month.
        granularity: Query<Option<String>>,
        /// Any of `user`, `group`, `apiKey`, `model` and `provider`, separated by commas.
        #[oai(name = "groupBy")]
        group_by: Query<Option<String>>,
    ) -> Result<Reply<UsageReport>, Problem> {
        let query = report_query(&from, &to, granularity.0.as_deref(), group_by.0.as_deref())?;
        let time_zone = ask.row()?.time_zone;
        let rows = ask.handle().await?.usage_report(query.clone()).await??;
        Ok(Reply::new(UsageReport::of(&query, time_zone, &rows)))
    }

    /// Page through the ledger, newest first
    #[oai(path = "/v1/tenants/:id/usage/events", method = "get", operation_id = "listUsageEvents")]
    #[allow(clippy::too_many_arguments, reason = "each is a documented parameter")]
    async fn ledger(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "id")]
        _id: Path<String>,
        /// Items of the page, from 1 to 500; 50 when absent.
        limit: Query<Option<String>>,
        /// `nextCursor` of the page before.
        cursor: Query<Option<String>>,
        /// RFC 3339: only events that occurred from here on.
        from: Query<Option<String>>,
        /// RFC 3339: only events that occurred before.
        to: Query<Option<String>>,
        /// Only this user's.
        #[oai(name = "userId")]
        user_id: Query<Option<String>>,
        /// Only this group's.
        #[oai(name = "groupId")]
        group_id: Query<Option<String>>,
        /// Only this gateway key's.
        #[oai(name = "apiKeyId")]
        api_key_id: Query<Option<String>>,
        /// Only this model's.
        model: Query<Option<String>>,
        /// Only this provider's.
        provider: Query<Option<String>>,
    ) -> Result<Reply<LedgerPage>, Problem> {
        let limit = page_limit(limit.0.as_deref())?;
        let before = ask.open(cursor.0.as_deref(), |text| text.parse::<i64>().ok())?;
        let window = ledger_window(from.0.as_deref(), to.0.as_deref())?;
        let subject = Subject {
            user: label("userId", user_id.0)?,
            group: label("groupId", group_id.0)?,
            api_key: label("apiKeyId", api_key_id.0)?,
            model: label("model", model.0)?,
            provider: label("provider", provider.0)?,
        };
        let page = ask.handle().await?.ledger(LedgerQuery { before, limit, window, subject }).await??;
        Ok(Reply::new(LedgerPage {
            items: page.items.iter().map(LedgerRowView::of).collect(),
            next_cursor: page.next.map(|next| ask.seal(&next.to_string())),
        }))
    }
}

pub(super) fn report_query(
    from: &str,
    to: &str,
    granularity: Option<&str>,
    group_by: Option<&str>,
) -> Result<UsageQuery, Problem> {
    let window = Window { start: parse_instant("from", from)?, end: parse_instant("to", to)? };
    let granularity = match granularity {
        None => PeriodKind::Day,
        Some(name) => PeriodKind::from_name(name)
            .filter(|kind| REPORT_DAYS_MAX.iter().any(|(known, _)| known == kind))
            .ok_or_else(|| Problem::parameter("granularity", "must be hour, day or month"))?,
    };
    let mut dimensions = Vec::new();
    for name in group_by.into_iter().flat_map(|names| names.split(',')) {
        let dimension = Dimension::from_name(name)
            .ok_or_else(|| Problem::parameter("groupBy", "must be user, group, apiKey, model or provider"))?;
        if dimensions.contains(&dimension) {
            return Err(Problem::parameter("groupBy", "names a dimension twice"));
        }
        dimensions.push(dimension);
    }
    let days_max = REPORT_DAYS_MAX.iter().find(|(kind, _)| *kind == granularity).map_or(0, |(_, days)| *days);
    check_order(window)?;
    if window.end.0 - window.start.0 > days_max * MICROS_PER_DAY {
        let message = format!("must be at most {days_max} days after from at this granularity");
        return Err(Problem::field("?to", message));
    }
    Ok(UsageQuery { window, granularity, group_by: dimensions })
}

fn check_order(window: Window) -> Result<(), Problem> {
    if window.start < window.end { Ok(()) } else { Err(Problem::field("?to", "must be after from")) }
}

fn ledger_window(from: Option<&str>, to: Option<&str>) -> Result<Option<Window>, Problem> {
    if from.is_none() && to.is_none() {
        return Ok(None);
    }
    let start = from.map_or(Ok(Timestamp(0)), |text| parse_instant("from", text))?;
    let end = to.map_or(Ok(Timestamp::MAX), |text| parse_instant("to", text))?;
    let window = Window { start, end };
    check_order(window).map(|()| Some(window))
}

fn label(name: &str, value: Option<String>) -> Result<String, Problem> {
    let value = value.unwrap_or_default();
    if value.len() > LABEL_BYTES_MAX {
        let message = format!("must be at most {LABEL_BYTES_MAX} bytes");
        return Err(Problem::fields(vec![FieldProblem { pointer: format!("?{name}"), message }]));
    }
    Ok(value)
}

/// Sums of usage.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct UsageReport {
    from: String,
    to: String,
    granularity: String,
    group_by: Vec<String>,
    time_zone: String,
    rows: Vec<UsageRowView>,
}

/// One row of a report: a period, the dimensions asked for, and sums.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "UsageRow", rename_all = "camelCase")]
pub(super) struct UsageRowView {
    period_start: String,
    period_end: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    api_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    provider: Option<String>,
    events: i64,
    failures: i64,
    amounts: AmountsView,
}

impl UsageReport {
    fn of(query: &UsageQuery, time_zone: String, rows: &[UsageRow]) -> UsageReport {
        let row = |row: &UsageRow| {
            let of = |dimension: Dimension| {
                query.group_by.contains(&dimension).then(|| dimension.of(&row.subject).to_owned())
            };
            UsageRowView {
                period_start: instant(row.window.start),
                period_end: instant(row.window.end),
                user: of(Dimension::User),
                group: of(Dimension::Group),
                api_key: of(Dimension::ApiKey),
                model: of(Dimension::Model),
                provider: of(Dimension::Provider),
                events: row.totals.events,
                failures: row.totals.failures,
                amounts: AmountsView::of(&row.totals.amounts),
            }
        };
        UsageReport {
            from: instant(query.window.start),
            to: instant(query.window.end),
            granularity: query.granularity.name().to_owned(),
            group_by: query.group_by.iter().map(|dimension| dimension.name().to_owned()).collect(),
            time_zone,
            rows: rows.iter().map(row).collect(),
        }
    }
}

/// A page of the ledger.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct LedgerPage {
    items: Vec<LedgerRowView>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

/// One counted event.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "LedgerEvent", rename_all = "camelCase")]
pub(super) struct LedgerRowView {
    source: String,
    event_id: String,
    occurred_at: String,
    recorded_at: String,
    /// `delta`, `cumulative` for a statement that was not added, or `adjustment` for an adjusting entry, whose amounts may
    /// be negative.
    kind: String,
    /// `success` or `failure`.
    status: String,
    subject: SubjectView,
    call_type: String,
    amounts: AmountsView,
    /// `unpriced`, `cacheHit`, `totalDiffers`.
    flags: Vec<String>,
    details: JsonObject,
}

fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Delta => "delta",
        Kind::Cumulative => "cumulative",
        Kind::Adjustment => "adjustment",
    }
}

impl LedgerRowView {
    fn of(row: &LedgerRow) -> LedgerRowView {
        let event = &row.event;
        let flags = [
            (Flags::UNPRICED, "unpriced"),
            (Flags::CACHE_HIT, "cacheHit"),
            (Flags::TOTAL_DIFFERS, "totalDiffers"),
            (Flags::UNDATED, "undated"),
        ];
        LedgerRowView {
            source: event.source.clone(),
            event_id: event.event_id.clone(),
            occurred_at: instant(event.occurred_at),
            recorded_at: instant(row.recorded_at),
            kind: kind_word(event.kind).to_owned(),
            status: if event.status == Status::Success { "success" } else { "failure" }.to_owned(),
            subject: SubjectView::of(&event.subject),
            call_type: event.call_type.clone(),
            amounts: AmountsView::of(&event.amounts),
            flags: flags.iter().filter(|(flag, _)| event.flags.has(*flag)).map(|(_, name)| (*name).into()).collect(),
            details: JsonObject::stored(&event.details),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_s_question_is_malformed_400_or_out_of_range_422() {
        let (from, to) = ("2026-11-01T00:00:00Z", "2026-11-02T00:00:00+01:00");
        let query = report_query(from, to, Some("hour"), Some("user,model")).unwrap();
        assert_eq!(query.group_by, [Dimension::User, Dimension::Model]);
        assert_eq!(report_query(from, to, None, None).unwrap().granularity, PeriodKind::Day);
        for (from, to, granularity, group_by, status) in [
            ("yesterday", to, None, None, 400),
            (from, "", None, None, 400),
            (from, to, Some("minute"), None, 400),
            (from, to, Some("week"), None, 400),
            (from, to, None, Some("planet"), 400),
            (from, to, None, Some(""), 400),
            (from, to, None, Some("user,user"), 400),
            (to, from, None, None, 422),
            (from, from, None, None, 422),
            (from, "2027-11-02T00:00:00Z", Some("hour"), None, 422),
            (from, "2036-11-02T00:00:00Z", Some("day"), None, 422),
        ] {
            let problem = report_query(from, to, granularity, group_by).unwrap_err();
            assert_eq!(problem.code.status(), status, "{from} {to} {granularity:?} {group_by:?}");
        }
    }

    #[test]
    fn a_row_names_the_dimensions_asked_for_and_no_others() {
        let query = report_query("2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z", None, Some("model")).unwrap();
        let subject = Subject { model: "gpt-4o".into(), ..Subject::default() };
        let row = UsageRow { window: query.window, subject, totals: crate::domain::usage::Totals::default() };
        let view = serde_json::to_value(UsageReport::of(&query, "UTC".into(), &[row])).unwrap();
        assert_eq!(view["rows"][0]["model"], "gpt-4o");
        assert!(view["rows"][0].get("user").is_none());
        assert_eq!(view["rows"][0]["amounts"]["costUsd"], "0");
    }
}
