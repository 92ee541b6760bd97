//! `/v1/quotas/{tenantId}`: limits, how they stand, and the history of alerts.

use poem_openapi::param::{Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::authorize::Ask;
use super::body::{Strict, present};
use super::document::Tag;
use super::problem::{FieldProblem, Problem};
use super::reply::Reply;
use super::view::{Amount, ScopeView, StandingView, instant, page_limit};
use crate::clock;
use crate::domain::ids::QuotaId;
use crate::domain::notice::{Alert, AlertSubject};
use crate::domain::period::PeriodKind;
use crate::domain::quota::{
    DEFAULT_THRESHOLDS, Enforcement, Metric, QUOTAS_MAX, Quota, Scope, Standing, THRESHOLD_PERCENT_MAX, THRESHOLDS_MAX,
};
use crate::domain::report::AlertQuery;
use crate::domain::time::Timestamp;
use crate::domain::usage::LABEL_BYTES_MAX;
use crate::json::{object, objects};
use crate::tenant::message::QuotaDraft;

/// The largest limit, in tokens, requests or nano-US-dollars: far from where sums leave their integers.
const LIMIT_MAX: i64 = 1_000_000_000_000_000_000;

pub(super) struct Quotas;

#[OpenApi(tag = "Tag::Quotas")]
impl Quotas {
    /// Read the quotas and how they stand
    #[oai(path = "/v1/quotas/:tenantId", method = "get", operation_id = "getQuotas")]
    async fn get(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "tenantId")]
        _id: Path<String>,
    ) -> Result<Reply<QuotaList>, Problem> {
        let standings = ask.handle().await?.standings()?;
        Ok(Reply::new(QuotaList::of(&standings)))
    }

    /// Replace the set of quotas
    ///
    /// A quota keeps its id, its usage and its alerts when the new set names its id, or without an id has the same
    /// scope, metric and period. What the set does not have is gone.
    #[oai(path = "/v1/quotas/:tenantId", method = "put", operation_id = "replaceQuotas")]
    async fn replace(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "tenantId")]
        _id: Path<String>,
        body: Strict<ReplaceQuotas>,
    ) -> Result<Reply<QuotaList>, Problem> {
        let drafts = body.0.checked(|| QuotaId(clock::new_id()))?;
        let answer = ask.handle().await?.replace_quotas(drafts, ask.change(), render).await??;
        Ok(Reply::of(answer, |standings| QuotaList::of(&standings)))
    }

    /// Page through the alerts, newest first
    #[oai(path = "/v1/quotas/:tenantId/alerts", method = "get", operation_id = "listAlerts")]
    async fn alerts(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "tenantId")]
        _id: Path<String>,
        /// Items of the page, from 1 to 500; 50 when absent.
        limit: Query<Option<String>>,
        /// `nextCursor` of the page before.
        cursor: Query<Option<String>>,
    ) -> Result<Reply<AlertPage>, Problem> {
        let limit = page_limit(limit.0.as_deref())?;
        let before = ask.open(cursor.0.as_deref(), alert_position)?;
        let page = ask.handle().await?.alerts(AlertQuery { before, limit }).await??;
        Ok(Reply::new(AlertPage {
            items: page.items.iter().map(AlertView::of).collect(),
            next_cursor: page.next.map(|(at, id)| ask.seal(&format!("{}|{id}", at.0))),
        }))
    }
}

fn alert_position(text: &str) -> Option<(Timestamp, Uuid)> {
    let (at, id) = text.split_once('|')?;
    Some((Timestamp(at.parse().ok()?), id.parse().ok()?))
}

fn render(standings: &[Standing]) -> String {
    serde_json::to_string(&QuotaList::of(standings)).unwrap_or_default()
}

/// The quotas and how they stand.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example)]
pub(super) struct QuotaList {
    quotas: Vec<StandingView>,
}

impl QuotaList {
    fn of(standings: &[Standing]) -> QuotaList {
        QuotaList { quotas: standings.iter().map(StandingView::of).collect() }
    }
}

/// A new set of quotas.
#[derive(Debug, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct ReplaceQuotas {
    /// At most 500; no two with the same scope, metric and period.
    #[serde(deserialize_with = "objects")]
    quotas: Vec<QuotaInput>,
}

/// One quota of a new set.
#[derive(Debug, Clone, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "Quota", rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct QuotaInput {
    /// Id of a quota the tenant has.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    id: Option<String>,
    #[serde(deserialize_with = "object")]
    scope: ScopeView,
    /// `tokens`, `promptTokens`, `completionTokens`, `cost` or `requests`.
    metric: String,
    /// `minute`, `hour`, `day`, `week`, `month` or `total`, in the tenant's time zone.
    period: String,
    /// Above zero.
    limit: Amount,
    /// Up to ten different whole percents from 1 to 1000; 50, 80 and 100 when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    thresholds: Option<Vec<i64>>,
    /// `alert` or `block`; `alert` when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    enforcement: Option<String>,
}

impl ReplaceQuotas {
    /// Every problem of every quota at once.
    pub(super) fn checked(self, new_id: impl Fn() -> QuotaId) -> Result<Vec<QuotaDraft>, Problem> {
        let mut problems = Vec::new();
        if self.quotas.len() > QUOTAS_MAX {
            return Err(Problem::field("/quotas", format!("must be at most {QUOTAS_MAX}")));
        }
        let mut drafts: Vec<QuotaDraft> = Vec::with_capacity(self.quotas.len());
        for (at, input) in self.quotas.into_iter().enumerate() {
            let mut wrong = |field: &str, message: String| {
                problems.push(FieldProblem { pointer: format!("/quotas/{at}{field}"), message });
            };
            let Some(draft) = input.checked(&new_id, &mut wrong) else { continue };
            let twin = |other: &QuotaDraft| {
                let (one, other) = (&draft.quota, &other.quota);
                (&one.scope, one.metric, one.period) == (&other.scope, other.metric, other.period)
            };
            if drafts.iter().any(twin) {
                wrong("", "another quota has the same scope, metric and period".into());
            }
            if draft.named && drafts.iter().any(|other| other.quota.id == draft.quota.id) {
                wrong("/id", "another quota has the same id".into());
            }
            drafts.push(draft);
        }
        if problems.is_empty() { Ok(drafts) } else { Err(Problem::fields(problems)) }
    }
}

impl QuotaInput {
    fn checked(self, new_id: impl Fn() -> QuotaId, wrong: &mut impl FnMut(&str, String)) -> Option<QuotaDraft> {
        let id = match &self.id {
            None => Some(new_id()),
            Some(text) => text.parse().inspect_err(|_| wrong("/id", "not a UUID".into())).ok(),
        };
        let scope = self.checked_scope(wrong);
        let metric = Metric::from_name(&self.metric);
        if metric.is_none() {
            wrong("/metric", "must be tokens, promptTokens, completionTokens, cost or requests".into());
        }
        let period = PeriodKind::from_name(&self.period);
        if period.is_none() {
            wrong("/period", "must be minute, hour, day, week, month or total".into());
        }
        let limit = metric.and_then(|metric| {
            let read = self.limit.read(metric).inspect_err(|message| wrong("/limit", message.clone())).ok()?;
            let fits = (1..=LIMIT_MAX).contains(&read);
            if !fits {
                wrong("/limit", "must be above zero and at most 10^18 tokens, requests or nano-US-dollars".into());
            }
            fits.then_some(read)
        });
        let thresholds = self.checked_thresholds(wrong);
        let enforcement = match self.enforcement.as_deref() {
            None | Some("alert") => Some(Enforcement::Alert),
            Some("block") => Some(Enforcement::Block),
            Some(_) => {
                wrong("/enforcement", "must be alert or block".into());
                None
            }
        };
        let quota = Quota {
            id: id?,
            scope: scope?,
            metric: metric?,
            period: period?,
            limit: limit?,
            thresholds: thresholds?,
            enforcement: enforcement?,
        };
        Some(QuotaDraft { quota, named: self.id.is_some() })
    }

    fn checked_scope(&self, wrong: &mut impl FnMut(&str, String)) -> Option<Scope> {
        let ScopeView { kind, id } = &self.scope;
        match (kind.as_str(), id.as_deref()) {
            ("tenant", Some(_)) => wrong("/scope/id", "must be absent for tenant".into()),
            ("tenant", None) => return Some(Scope::Tenant),
            ("group" | "user" | "apiKey" | "model" | "provider", None | Some("")) => {
                wrong("/scope/id", "is required".into());
            }
            (_, Some(id)) if id.len() > LABEL_BYTES_MAX => {
                wrong("/scope/id", format!("must be at most {LABEL_BYTES_MAX} bytes"));
            }
            (kind, Some(id)) => match Scope::from_parts(kind, id) {
                Some(scope) => return Some(scope),
                None => wrong("/scope/type", "must be tenant, group, user, apiKey, model or provider".into()),
            },
            (_, None) => wrong("/scope/type", "must be tenant, group, user, apiKey, model or provider".into()),
        }
        None
    }

    fn checked_thresholds(&self, wrong: &mut impl FnMut(&str, String)) -> Option<Vec<u16>> {
        let Some(given) = &self.thresholds else { return Some(DEFAULT_THRESHOLDS.to_vec()) };
        if given.len() > THRESHOLDS_MAX {
            wrong("/thresholds", format!("must be at most {THRESHOLDS_MAX}"));
            return None;
        }
        let mut thresholds = Vec::with_capacity(given.len());
        for (at, percent) in given.iter().enumerate() {
            match u16::try_from(*percent) {
                Ok(percent) if !(1..=THRESHOLD_PERCENT_MAX).contains(&percent) => {
                    wrong(&format!("/thresholds/{at}"), format!("must be from 1 to {THRESHOLD_PERCENT_MAX}"));
                }
                Ok(percent) if thresholds.contains(&percent) => {
                    wrong(&format!("/thresholds/{at}"), "is there twice".into());
                }
                Ok(percent) => thresholds.push(percent),
                Err(_) => wrong(&format!("/thresholds/{at}"), format!("must be from 1 to {THRESHOLD_PERCENT_MAX}")),
            }
        }
        thresholds.sort_unstable();
        (thresholds.len() == given.len()).then_some(thresholds)
    }
}

/// Something on-call was told, once. Members that its kind does not have are absent.
#[derive(Debug, Default, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "Alert", rename_all = "camelCase")]
pub(super) struct AlertView {
    id: String,
    /// `quotaThreshold`, `budgetBurn` or `reconciliationDrift`.
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    quota_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    scope: Option<ScopeView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    metric: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    period: Option<String>,
    /// The limit when it fired.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    limit: Option<Amount>,
    /// Percent of the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    threshold: Option<u16>,
    /// `warning`; `critical` for a threshold from 100 percent on, and for a drift.
    severity: String,
    /// Usage when it fired.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    used: Option<Amount>,
    /// When a budget that burns too fast would be used up.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    exhausted_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    period_start: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    period_end: Option<String>,
    /// Of a drift.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    cause: Option<String>,
    /// The first window of a drift.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    window_start: Option<String>,
    /// Of a drift, in one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    summary: Option<String>,
    fired_at: String,
    /// Absent while it fires.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    resolved_at: Option<String>,
    /// Since when somebody looks at it; absent while nobody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    acknowledged_at: Option<String>,
    /// Who was the first to say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    acknowledged_by: Option<String>,
}

impl AlertView {
    pub(super) fn of(alert: &Alert) -> AlertView {
        let view = match &alert.subject {
            AlertSubject::QuotaThreshold(reached) => AlertView {
                threshold: Some(reached.threshold),
                used: Some(Amount::new(reached.quota.metric, reached.used)),
                period_start: Some(instant(reached.period_start)),
                period_end: reached.period_end.map(instant),
                ..AlertView::about(&reached.quota)
            },
            AlertSubject::BudgetBurn(burn) => AlertView {
                used: Some(Amount::new(burn.quota.metric, burn.used)),
                exhausted_at: Some(instant(burn.exhausted_at)),
                period_start: Some(instant(burn.period_start)),
                period_end: burn.period_end.map(instant),
                ..AlertView::about(&burn.quota)
            },
            AlertSubject::Test(_) => AlertView::default(),
            AlertSubject::ReconciliationDrift(drift) => AlertView {
                cause: Some(drift.cause.clone()),
                window_start: Some(instant(drift.window_start)),
                summary: Some(drift.summary.clone()),
                ..AlertView::default()
            },
        };
        AlertView {
            id: alert.id.to_string(),
            kind: alert.kind().name().to_owned(),
            severity: alert.severity().name().to_owned(),
            fired_at: instant(alert.fired_at),
            resolved_at: alert.resolved_at.map(instant),
            acknowledged_at: alert.acknowledged.as_ref().map(|one| instant(one.at)),
            acknowledged_by: alert.acknowledged.as_ref().map(|one| one.by.clone()),
            ..view
        }
    }

    fn about(quota: &Quota) -> AlertView {
        AlertView {
            quota_id: Some(quota.id.to_string()),
            scope: Some(ScopeView::of(&quota.scope)),
            metric: Some(quota.metric.name().to_owned()),
            period: Some(quota.period.name().to_owned()),
            limit: Some(Amount::new(quota.metric, quota.limit)),
            ..AlertView::default()
        }
    }
}

/// A page of alerts.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct AlertPage {
    items: Vec<AlertView>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

impl Example for ReplaceQuotas {
    fn example() -> ReplaceQuotas {
        let quota = |scope: (&str, Option<&str>), metric: &str, period: &str, limit, enforcement: &str| QuotaInput {
            id: None,
            scope: ScopeView { kind: scope.0.into(), id: scope.1.map(Into::into) },
            metric: metric.into(),
            period: period.into(),
            limit: Amount(limit),
            thresholds: Some(vec![50, 80, 100]),
            enforcement: Some(enforcement.into()),
        };
        ReplaceQuotas {
            quotas: vec![
                quota(("tenant", None), "cost", "month", json!("2500.00"), "alert"),
                quota(("user", Some("ada")), "tokens", "day", json!(1_000_000), "block"),
            ],
        }
    }
}

impl Example for QuotaList {
    fn example() -> QuotaList {
        QuotaList {
            quotas: vec![StandingView {
                id: "0199a8b2-5c00-7abc-8def-0123456789ad".into(),
                scope: ScopeView { kind: "tenant".into(), id: None },
                metric: "cost".into(),
                period: "month".into(),
                limit: Amount(json!("2500")),
                thresholds: vec![50, 80, 100],
                enforcement: "alert".into(),
                used: Amount(json!("1310.25")),
                remaining: Amount(json!("1189.75")),
                standing: "warning".into(),
                period_start: "2026-10-31T23:00:00.000Z".into(),
                reset_at: Some("2026-11-30T23:00:00.000Z".into()),
                exhausts_at: Some("2026-11-28T06:30:00.000Z".into()),
            }],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn checked(quotas: Value) -> Result<Vec<QuotaDraft>, Vec<String>> {
        let body: ReplaceQuotas = serde_json::from_value(json!({ "quotas": quotas })).unwrap();
        body.checked(|| QuotaId(Uuid::nil())).map_err(|problem| {
            let fields = problem.details["fields"].as_array().unwrap();
            fields.iter().map(|field| field["pointer"].as_str().unwrap().to_owned()).collect()
        })
    }

    fn quota(change: Value) -> Value {
        let mut quota = json!({"scope": {"type": "tenant"}, "metric": "tokens", "period": "day", "limit": 10});
        quota.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        quota
    }

    #[test]
    fn a_quota_is_read_with_its_defaults() {
        let drafts = checked(json!([
            quota(json!({})),
            quota(json!({
                "scope": {"type": "user", "id": "ada"}, "metric": "cost", "limit": "2.5", "thresholds": [90, 10],
                "enforcement": "block"
            }))
        ]))
        .unwrap();
        assert_eq!(drafts[0].quota.thresholds, DEFAULT_THRESHOLDS);
        assert_eq!((drafts[0].quota.enforcement, drafts[0].named), (Enforcement::Alert, false));
        assert_eq!(drafts[1].quota.thresholds, [10, 90]);
        assert_eq!(drafts[1].quota.limit, 2_500_000_000);
        assert_eq!(drafts[1].quota.scope, Scope::User("ada".into()));
        assert_eq!(checked(json!([])).unwrap(), []);
    }

    #[test]
    fn each_wrong_field_is_pointed_at() {
        let long = "x".repeat(257);
        for (change, pointer) in [
            (json!({"id": "7"}), "/quotas/0/id"),
            (json!({"scope": {"type": "galaxy"}}), "/quotas/0/scope/type"),
            (json!({"scope": {"type": "galaxy", "id": "x"}}), "/quotas/0/scope/type"),
            (json!({"scope": {"type": "tenant", "id": "x"}}), "/quotas/0/scope/id"),
            (json!({"scope": {"type": "user"}}), "/quotas/0/scope/id"),
            (json!({"scope": {"type": "user", "id": ""}}), "/quotas/0/scope/id"),
            (json!({"scope": {"type": "user", "id": long}}), "/quotas/0/scope/id"),
            (json!({"metric": "joules"}), "/quotas/0/metric"),
            (json!({"period": "fortnight"}), "/quotas/0/period"),
            (json!({"limit": 0}), "/quotas/0/limit"),
            (json!({"limit": -5}), "/quotas/0/limit"),
            (json!({"limit": 1.5}), "/quotas/0/limit"),
            (json!({"limit": "10"}), "/quotas/0/limit"),
            (json!({"metric": "cost", "limit": 10}), "/quotas/0/limit"),
            (json!({"metric": "cost", "limit": "0"}), "/quotas/0/limit"),
            (json!({"limit": 1_000_000_000_000_000_001_i64}), "/quotas/0/limit"),
            (json!({"thresholds": [0]}), "/quotas/0/thresholds/0"),
            (json!({"thresholds": [50, 1001]}), "/quotas/0/thresholds/1"),
            (json!({"thresholds": [50, 50]}), "/quotas/0/thresholds/1"),
            (json!({"thresholds": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]}), "/quotas/0/thresholds"),
            (json!({"enforcement": "pray"}), "/quotas/0/enforcement"),
        ] {
            assert_eq!(checked(json!([quota(change.clone())])), Err(vec![pointer.to_owned()]), "{change}");
        }
    }

    #[test]
    fn all_problems_come_together_and_twins_are_found() {
        let both = json!([quota(json!({"metric": "joules", "period": "never"})), quota(json!({"limit": 0}))]);
        assert_eq!(checked(both).unwrap_err(), ["/quotas/0/metric", "/quotas/0/period", "/quotas/1/limit"]);
        assert_eq!(checked(json!([quota(json!({})), quota(json!({"limit": 99}))])).unwrap_err(), ["/quotas/1"]);
        let many: Vec<Value> =
            (0..=QUOTAS_MAX).map(|at| quota(json!({"scope": {"type": "user", "id": at.to_string()}}))).collect();
        assert_eq!(checked(json!(many)).unwrap_err(), ["/quotas"]);
    }

    #[test]
    fn an_alert_s_position_survives_its_cursor() {
        let position = (Timestamp(1_790_000_000_123_456), Uuid::from_u128(7));
        assert_eq!(alert_position(&format!("{}|{}", position.0.0, position.1)), Some(position));
        for bad in ["", "|", "1|", "x|00000000-0000-0000-0000-000000000007"] {
            assert_eq!(alert_position(bad), None, "{bad}");
        }
    }
}
