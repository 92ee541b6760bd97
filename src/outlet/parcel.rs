//! One message for one channel, and the words all channels share.

use serde::Serialize;
use serde_json::{Value, json};

use crate::domain::amount::NanoUsd;
use crate::domain::ids::TenantId;
use crate::domain::notice::{
    Alert, AlertKind, AlertSubject, BudgetBurn, Delivery, Event, QuotaThreshold, ReconciliationDrift,
};
use crate::domain::quota::{Metric, Quota, Scope};
use crate::domain::time::Timestamp;

/// A delivery together with the tenant whose outbox it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel {
    pub tenant: TenantId,
    pub delivery: Delivery,
}

impl Parcel {
    /// When what it tells became true.
    pub(super) fn occurred_at(&self) -> Timestamp {
        let alert = &self.delivery.alert;
        match self.delivery.event {
            Event::Fired => alert.fired_at,
            Event::Acknowledged => alert.acknowledged.as_ref().map_or(alert.fired_at, |one| one.at),
            Event::Resolved => alert.resolved_at.unwrap_or(alert.fired_at),
        }
    }

    /// As `quota.alert.fired` or `reconciliation.drift.resolved`.
    pub(super) fn kind(&self) -> String {
        let about = match self.delivery.alert.kind() {
            AlertKind::QuotaThreshold => "quota.alert",
            AlertKind::BudgetBurn => "quota.burn",
            AlertKind::ReconciliationDrift => "reconciliation.drift",
            AlertKind::Test => "test",
        };
        format!("{about}.{}", self.delivery.event.name())
    }

    /// The facts of the alert as every JSON message states them.
    pub(super) fn data(&self) -> Data {
        Data::of(self.tenant, &self.delivery.alert)
    }
}

/// What a receiver learns about an alert. Money is a decimal string of US dollars, every other amount an integer.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(super) enum Data {
    Threshold(ThresholdData),
    Burn(BurnData),
    Drift(DriftData),
    Test(TestData),
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ThresholdData {
    alert_id: String,
    tenant_id: String,
    quota: QuotaData,
    /// Percent of the limit.
    threshold: u16,
    /// When the threshold was reached.
    used: Value,
    limit: Value,
    severity: &'static str,
    period_start: Timestamp,
    /// `null` for a quota over all time.
    reset_at: Option<Timestamp>,
    fired_at: Timestamp,
    resolved_at: Option<Timestamp>,
    #[serde(flatten)]
    acknowledged: AcknowledgedData,
}

/// Nothing has happened.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TestData {
    alert_id: String,
    test: bool,
    channel: String,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BurnData {
    alert_id: String,
    tenant_id: String,
    quota: QuotaData,
    /// When it was foreseen that the quota will not last.
    used: Value,
    limit: Value,
    exhausted_at: Timestamp,
    severity: &'static str,
    period_start: Timestamp,
    /// `null` for a quota over all time.
    reset_at: Option<Timestamp>,
    fired_at: Timestamp,
    resolved_at: Option<Timestamp>,
    #[serde(flatten)]
    acknowledged: AcknowledgedData,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DriftData {
    alert_id: String,
    tenant_id: String,
    cause: String,
    /// The start of the first window that disagrees.
    window_start: Timestamp,
    windows: i64,
    /// In requests.
    difference: i64,
    summary: String,
    severity: &'static str,
    fired_at: Timestamp,
    resolved_at: Option<Timestamp>,
    #[serde(flatten)]
    acknowledged: AcknowledgedData,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct QuotaData {
    id: String,
    scope: Value,
    metric: &'static str,
    period: &'static str,
    limit: Value,
    enforcement: &'static str,
}

/// Who looks at it; nothing while nobody does.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct AcknowledgedData {
    #[serde(skip_serializing_if = "Option::is_none")]
    acknowledged_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    acknowledged_by: Option<String>,
}

impl AcknowledgedData {
    fn of(alert: &Alert) -> AcknowledgedData {
        let acknowledged = alert.acknowledged.as_ref();
        AcknowledgedData {
            acknowledged_at: acknowledged.map(|one| one.at),
            acknowledged_by: acknowledged.map(|one| one.by.clone()),
        }
    }
}

impl Data {
    fn of(tenant: TenantId, alert: &Alert) -> Data {
        match &alert.subject {
            AlertSubject::QuotaThreshold(reached) => Data::Threshold(ThresholdData::of(tenant, alert, reached)),
            AlertSubject::BudgetBurn(burn) => Data::Burn(BurnData::of(tenant, alert, burn)),
            AlertSubject::Test(channel) => {
                Data::Test(TestData { alert_id: alert.id.to_string(), test: true, channel: channel.clone() })
            }
            AlertSubject::ReconciliationDrift(drift) => Data::Drift(DriftData::of(tenant, alert, drift)),
        }
    }
}

impl ThresholdData {
    fn of(tenant: TenantId, alert: &Alert, reached: &QuotaThreshold) -> ThresholdData {
        let quota = &reached.quota;
        ThresholdData {
            alert_id: alert.id.to_string(),
            tenant_id: tenant.to_string(),
            quota: QuotaData::of(quota),
            threshold: reached.threshold,
            used: amount(quota.metric, reached.used),
            limit: amount(quota.metric, quota.limit),
            severity: alert.severity().name(),
            period_start: reached.period_start,
            reset_at: reached.period_end,
            fired_at: alert.fired_at,
            resolved_at: alert.resolved_at,
            acknowledged: AcknowledgedData::of(alert),
        }
    }
}

impl BurnData {
    fn of(tenant: TenantId, alert: &Alert, burn: &BudgetBurn) -> BurnData {
        let quota = &burn.quota;
        BurnData {
            alert_id: alert.id.to_string(),
            tenant_id: tenant.to_string(),
            quota: QuotaData::of(quota),
            used: amount(quota.metric, burn.used),
            limit: amount(quota.metric, quota.limit),
            exhausted_at: burn.exhausted_at,
            severity: alert.severity().name(),
            period_start: burn.period_start,
            reset_at: burn.period_end,
            fired_at: alert.fired_at,
            resolved_at: alert.resolved_at,
            acknowledged: AcknowledgedData::of(alert),
        }
    }
}

impl DriftData {
    fn of(tenant: TenantId, alert: &Alert, drift: &ReconciliationDrift) -> DriftData {
        DriftData {
            alert_id: alert.id.to_string(),
            tenant_id: tenant.to_string(),
            cause: drift.cause.clone(),
            window_start: drift.window_start,
            windows: drift.windows,
            difference: drift.difference,
            summary: drift.summary.clone(),
            severity: alert.severity().name(),
            fired_at: alert.fired_at,
            resolved_at: alert.resolved_at,
            acknowledged: AcknowledgedData::of(alert),
        }
    }
}

impl QuotaData {
    fn of(quota: &Quota) -> QuotaData {
        QuotaData {
            id: quota.id.to_string(),
            scope: scope(&quota.scope),
            metric: quota.metric.name(),
            period: quota.period.name(),
            limit: amount(quota.metric, quota.limit),
            enforcement: quota.enforcement.name(),
        }
    }
}

/// An amount in its metric's JSON form.
pub(super) fn amount(metric: Metric, value: i64) -> Value {
    match metric {
        Metric::Cost => json!(NanoUsd(value)),
        Metric::Tokens | Metric::PromptTokens | Metric::CompletionTokens | Metric::Requests => json!(value),
    }
}

/// A scope in its JSON form.
pub(super) fn scope(scope: &Scope) -> Value {
    match scope {
        Scope::Tenant => json!({"type": "tenant"}),
        named => json!({"type": named.kind(), "id": named.id()}),
    }
}

/// `tenant`, or as `user:alice`.
pub(super) fn scope_text(scope: &Scope) -> String {
    match scope {
        Scope::Tenant => "tenant".into(),
        named => format!("{}:{}", named.kind(), named.id()),
    }
}

/// One line for people: which tenant has used how much of which quota, or what else there is to know.
pub(super) fn summary(tenant: TenantId, alert: &Alert) -> String {
    match &alert.subject {
        AlertSubject::QuotaThreshold(reached) => {
            format!("Tenant {tenant} has used {}% of its {}", reached.threshold, quota_text(&reached.quota))
        }
        AlertSubject::BudgetBurn(burn) => {
            let quota = quota_text(&burn.quota);
            format!("Tenant {tenant} will have used up its {quota} by {} at the present rate", burn.exhausted_at)
        }
        AlertSubject::Test(channel) => format!("TEST of the channel {channel}: nothing has happened"),
        AlertSubject::ReconciliationDrift(drift) => format!("Tenant {tenant}: {}", drift.summary),
    }
}

/// As `cost quota per month for user:alice`.
fn quota_text(quota: &Quota) -> String {
    let (metric, period) = (quota.metric.name(), quota.period.name());
    match &quota.scope {
        Scope::Tenant => format!("{metric} quota per {period}"),
        named => format!("{metric} quota per {period} for {}", scope_text(named)),
    }
}

/// What a person reads under the summary, by name.
pub(super) fn facts(alert: &Alert) -> Vec<(&'static str, String)> {
    let acknowledged = alert.acknowledged.as_ref().map(|one| ("Acknowledged by", one.by.clone()));
    subject_facts(alert).into_iter().chain(acknowledged).collect()
}

fn subject_facts(alert: &Alert) -> Vec<(&'static str, String)> {
    let resets = |end: Option<Timestamp>| end.map_or_else(|| "never".to_owned(), |end| end.to_string());
    match &alert.subject {
        AlertSubject::QuotaThreshold(QuotaThreshold { quota, used, period_end, .. }) => vec![
            ("Used", amount_text(quota, *used)),
            ("Limit", amount_text(quota, quota.limit)),
            ("Scope", scope_text(&quota.scope)),
            ("Resets", resets(*period_end)),
        ],
        AlertSubject::BudgetBurn(BudgetBurn { quota, used, period_end, exhausted_at, .. }) => vec![
            ("Used", amount_text(quota, *used)),
            ("Limit", amount_text(quota, quota.limit)),
            ("Scope", scope_text(&quota.scope)),
            ("Used up", exhausted_at.to_string()),
            ("Resets", resets(*period_end)),
        ],
        AlertSubject::Test(channel) => vec![("Channel", channel.clone())],
        AlertSubject::ReconciliationDrift(drift) => vec![
            ("Cause", drift.cause.clone()),
            ("Since", drift.window_start.to_string()),
            ("Windows", drift.windows.to_string()),
            ("Difference", format!("{} requests", drift.difference)),
        ],
    }
}

/// An amount for people, with its unit.
pub(super) fn amount_text(quota: &Quota, value: i64) -> String {
    match quota.metric {
        Metric::Cost => format!("{} USD", NanoUsd(value)),
        Metric::Tokens => format!("{value} tokens"),
        Metric::PromptTokens => format!("{value} prompt tokens"),
        Metric::CompletionTokens => format!("{value} completion tokens"),
        Metric::Requests => format!("{value} requests"),
    }
}

#[cfg(test)]
pub(super) mod samples {
    use super::*;
    use crate::domain::ids::QuotaId;
    use crate::domain::period::PeriodKind;
    use crate::domain::quota::Enforcement;

    /// A daily quota's alert at 80 percent, fired at `fired_at`, ending a day after.
    pub(crate) fn alert(tenant: TenantId, metric: Metric, fired_at: Timestamp) -> Alert {
        let quota = Quota {
            id: QuotaId(crate::clock::new_id()),
            scope: Scope::User("alice".into()),
            metric,
            period: PeriodKind::Day,
            limit: 1_000_000,
            thresholds: vec![80],
            enforcement: Enforcement::Block,
        };
        let reached = QuotaThreshold {
            period_start: fired_at,
            period_end: Some(fired_at.plus_micros(crate::domain::time::MICROS_PER_DAY)),
            threshold: 80,
            used: 812_000,
            quota,
        };
        Alert::threshold(tenant, reached, fired_at)
    }

    /// The threshold that a sample tells of.
    pub(crate) fn reached(alert: &mut Alert) -> &mut QuotaThreshold {
        match &mut alert.subject {
            AlertSubject::QuotaThreshold(reached) => reached,
            other => panic!("{other:?}"),
        }
    }

    /// The other kinds: a burn of the same quota, and a drift.
    pub(crate) fn others(tenant: TenantId, fired_at: Timestamp) -> [Alert; 2] {
        let mut threshold = alert(tenant, Metric::Tokens, fired_at);
        let QuotaThreshold { quota, period_start, period_end, used, .. } = reached(&mut threshold).clone();
        let exhausted_at = fired_at.plus_micros(crate::domain::time::MICROS_PER_HOUR);
        let burn = BudgetBurn { quota, period_start, period_end, used, exhausted_at };
        let drift = ReconciliationDrift {
            cause: "lostInLedger".into(),
            window_start: fired_at.plus_micros(-crate::domain::time::MICROS_PER_HOUR),
            windows: 3,
            difference: 7,
            summary: "7 requests passed the gateway and are not in the ledger".into(),
        };
        [Alert::burn(tenant, burn, fired_at), Alert::drift(tenant, drift, fired_at)]
    }

    pub(crate) fn parcel(channel: &str, event: Event, metric: Metric, at: Timestamp) -> Parcel {
        let tenant = TenantId(crate::clock::new_id());
        let delivery = Delivery {
            alert: alert(tenant, metric, at),
            event,
            channel: channel.into(),
            attempts: 0,
            next_attempt_at: at,
        };
        Parcel { tenant, delivery }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_a_string_and_tokens_are_numbers() {
        let at: Timestamp = "2026-11-20T10:00:00Z".parse().unwrap();
        let cost = serde_json::to_value(samples::parcel("c", Event::Fired, Metric::Cost, at).data()).unwrap();
        assert_eq!(cost["used"], "0.000812");
        assert_eq!(cost["quota"]["limit"], "0.001");
        let tokens = serde_json::to_value(samples::parcel("c", Event::Fired, Metric::Tokens, at).data()).unwrap();
        assert_eq!(tokens["used"], 812_000);
        assert_eq!(tokens["quota"]["scope"], json!({"type": "user", "id": "alice"}));
        assert_eq!(tokens["resetAt"], "2026-11-21T10:00:00.000Z");
        assert_eq!(tokens["severity"], "warning");
    }

    #[test]
    fn every_kind_of_alert_has_a_form_of_its_own() {
        let at: Timestamp = "2026-11-20T10:00:00Z".parse().unwrap();
        let mut parcel = samples::parcel("c", Event::Resolved, Metric::Tokens, at);
        let [burn, drift] = samples::others(parcel.tenant, at);
        assert_eq!(parcel.kind(), "quota.alert.resolved");

        parcel.delivery.alert = burn;
        assert_eq!(parcel.kind(), "quota.burn.resolved");
        let data = serde_json::to_value(parcel.data()).unwrap();
        assert_eq!((&data["used"], &data["exhaustedAt"]), (&json!(812_000), &json!("2026-11-20T11:00:00.000Z")));
        assert_eq!(data["quota"]["metric"], "tokens");

        parcel.delivery.alert = drift;
        assert_eq!(parcel.kind(), "reconciliation.drift.resolved");
        let data = serde_json::to_value(parcel.data()).unwrap();
        let expected = json!({
            "alertId": parcel.delivery.alert.id, "tenantId": parcel.tenant, "cause": "lostInLedger",
            "windowStart": "2026-11-20T09:00:00.000Z", "windows": 3, "difference": 7,
            "summary": "7 requests passed the gateway and are not in the ledger", "severity": "critical",
            "firedAt": "2026-11-20T10:00:00.000Z", "resolvedAt": null,
        });
        assert_eq!(data, expected);
    }
}
