//! One message for one channel, and the words all channels share.

use serde::Serialize;
use serde_json::{Value, json};

use crate::domain::amount::NanoUsd;
use crate::domain::ids::TenantId;
use crate::domain::notice::{Alert, Delivery, Event};
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
            Event::Resolved => alert.resolved_at.unwrap_or(alert.fired_at),
        }
    }

    /// `quota.alert.fired` or `quota.alert.resolved`.
    pub(super) fn kind(&self) -> String {
        format!("quota.alert.{}", self.delivery.event.name())
    }

    /// The facts of the alert as every JSON message states them.
    pub(super) fn data(&self) -> Data {
        Data::of(self.tenant, &self.delivery.alert)
    }
}

/// What a receiver learns about an alert. Money is a decimal string of US dollars, every other amount an integer.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Data {
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

impl Data {
    fn of(tenant: TenantId, alert: &Alert) -> Data {
        let quota = &alert.quota;
        Data {
            alert_id: alert.id.to_string(),
            tenant_id: tenant.to_string(),
            quota: QuotaData {
                id: quota.id.to_string(),
                scope: scope(&quota.scope),
                metric: quota.metric.name(),
                period: quota.period.name(),
                limit: amount(quota.metric, quota.limit),
                enforcement: quota.enforcement.name(),
            },
            threshold: alert.threshold,
            used: amount(quota.metric, alert.used),
            limit: amount(quota.metric, quota.limit),
            severity: alert.severity().name(),
            period_start: alert.period_start,
            reset_at: alert.period_end,
            fired_at: alert.fired_at,
            resolved_at: alert.resolved_at,
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

/// One line for people: which tenant has used how much of which quota.
pub(super) fn summary(tenant: TenantId, alert: &Alert) -> String {
    let quota = &alert.quota;
    let (metric, period) = (quota.metric.name(), quota.period.name());
    let whose = match &quota.scope {
        Scope::Tenant => String::new(),
        named => format!(" for {}", scope_text(named)),
    };
    format!("Tenant {tenant} has used {}% of its {metric} quota per {period}{whose}", alert.threshold)
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
        Alert {
            id: Alert::id_for(tenant, &quota, fired_at, 80),
            period_start: fired_at,
            period_end: Some(fired_at.plus_micros(crate::domain::time::MICROS_PER_DAY)),
            threshold: 80,
            used: 812_000,
            fired_at,
            resolved_at: None,
            quota,
        }
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
}
