//! PagerDuty's Events API v2: `POST <url>/v2/enqueue` with `trigger`, `acknowledge` or `resolve`.
//!
//! The dedup key is the alert's id, which is a function of tenant, quota, period and threshold: however often a trigger
//! is sent, there is one incident, and its resolution finds it.

use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;

use super::egress::{self, Failure};
use super::parcel::{Data, Parcel, scope_text, summary};
use crate::domain::notice::{Alert, AlertSubject, BudgetBurn, Event, QuotaThreshold, Severity};
use crate::domain::quota::Quota;
use crate::domain::time::Timestamp;

/// Where the Events API is, unless a site's own address is configured (`https://events.eu.pagerduty.com`).
pub(super) const DEFAULT_URL: &str = "https://events.pagerduty.com";
/// Letters and digits of an integration key.
const ROUTING_KEY_CHARS: usize = 32;

/// One integration of one PagerDuty service.
pub(super) struct PagerDuty {
    client: reqwest::Client,
    url: String,
    routing_key: SecretString,
    public_url: Option<String>,
}

#[derive(Serialize)]
struct Body<'a> {
    routing_key: &'a str,
    event_action: &'static str,
    dedup_key: String,
    client: &'static str,
    payload: Payload,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    links: Vec<Link>,
}

#[derive(Serialize)]
struct Payload {
    summary: String,
    source: String,
    severity: &'static str,
    timestamp: Timestamp,
    component: String,
    group: String,
    class: String,
    custom_details: Data,
}

#[derive(Serialize)]
struct Link {
    href: String,
    text: &'static str,
}

/// What is wrong with an integration key, if anything.
pub(super) fn routing_key_problem(key: &SecretString) -> Option<String> {
    let key = key.expose_secret();
    let plain = key.len() == ROUTING_KEY_CHARS && key.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (!plain).then(|| format!("must be the {ROUTING_KEY_CHARS} letters and digits of an Events API v2 integration key"))
}

impl PagerDuty {
    pub(super) fn open(
        url: &str,
        routing_key: &SecretString,
        allow_private: bool,
        public_url: Option<String>,
    ) -> Result<PagerDuty, String> {
        let url = format!("{}/v2/enqueue", url.trim_end_matches('/'));
        Ok(PagerDuty { client: egress::client(allow_private)?, url, routing_key: routing_key.clone(), public_url })
    }

    pub(super) async fn send(&self, parcel: &Parcel) -> Result<(), Failure> {
        let alert = &parcel.delivery.alert;
        let Place { component, group, class } = place(alert);
        let link = |base: &String| Link {
            href: format!("{}/v1/quotas/{}/alerts", base.trim_end_matches('/'), parcel.tenant),
            text: "Alerts of this tenant",
        };
        let body = Body {
            routing_key: self.routing_key.expose_secret(),
            event_action: match parcel.delivery.event {
                Event::Fired => "trigger",
                Event::Acknowledged => "acknowledge",
                Event::Resolved => "resolve",
            },
            dedup_key: alert.id.to_string(),
            client: "platform-api",
            payload: Payload {
                summary: summary(parcel.tenant, alert),
                source: format!("tenant:{}", parcel.tenant),
                severity: match alert.severity() {
                    Severity::Warning => "warning",
                    Severity::Critical => "critical",
                },
                timestamp: parcel.occurred_at(),
                component,
                group,
                class,
                custom_details: parcel.data(),
            },
            links: self.public_url.iter().map(link).collect(),
        };
        egress::send_strictly(self.client.post(&self.url).json(&body)).await
    }
}

/// What PagerDuty groups incidents by.
struct Place {
    component: String,
    group: String,
    class: String,
}

fn place(alert: &Alert) -> Place {
    let of = |quota: &Quota, class: String| Place {
        component: format!("quota:{}", quota.id),
        group: scope_text(&quota.scope),
        class,
    };
    match &alert.subject {
        AlertSubject::QuotaThreshold(QuotaThreshold { quota, .. }) => {
            of(quota, format!("{} per {}", quota.metric.name(), quota.period.name()))
        }
        AlertSubject::BudgetBurn(BudgetBurn { quota, .. }) => {
            of(quota, format!("burn of {} per {}", quota.metric.name(), quota.period.name()))
        }
        AlertSubject::Test(channel) => {
            Place { component: "channel".into(), group: channel.clone(), class: "test".into() }
        }
        AlertSubject::ReconciliationDrift(drift) => {
            Place { component: "reconciliation".into(), group: drift.cause.clone(), class: "drift".into() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::quota::Metric;
    use crate::outlet::parcel::samples;
    use crate::outlet::receiver::Receiver;

    const KEY: &str = "0123456789abcdef0123456789ABCDEF";

    #[test]
    fn an_integration_key_is_checked_without_being_shown() {
        assert_eq!(routing_key_problem(&SecretString::from(KEY)), None);
        for key in ["", "0123", "0123456789abcdef0123456789abcde!", "0123456789abcdef0123456789abcdef0"] {
            let problem = routing_key_problem(&SecretString::from(key)).unwrap();
            assert!(key.is_empty() || !problem.contains(key), "{problem}");
        }
    }

    #[tokio::test]
    async fn an_incident_is_triggered_once_and_resolved_by_the_same_key() {
        let receiver = Receiver::start(["500 Oops", "202 Accepted"]).await;
        let base = Some("https://platform.example.com/".into());
        let pager = PagerDuty::open(&receiver.url("/"), &SecretString::from(KEY), true, base).unwrap();
        let at: Timestamp = "2026-11-20T10:00:00Z".parse().unwrap();
        let fired = samples::parcel("pager", Event::Fired, Metric::Cost, at);
        let with = |event| {
            let mut parcel = fired.clone();
            parcel.delivery.event = event;
            parcel
        };
        let (acknowledged, resolved) = (with(Event::Acknowledged), with(Event::Resolved));
        assert_eq!(pager.send(&fired).await, Err(Failure::passing("answered 500")));
        assert_eq!(pager.send(&fired).await, Ok(()));
        assert_eq!(pager.send(&acknowledged).await, Ok(()));
        assert_eq!(pager.send(&resolved).await, Ok(()));
        let requests = receiver.requests();
        let bodies: Vec<serde_json::Value> =
            requests.iter().map(|request| serde_json::from_str(&request.body).unwrap()).collect();
        assert_eq!(requests[0].line, "POST /v2/enqueue HTTP/1.1");
        let actions: Vec<&str> = bodies.iter().map(|body| body["event_action"].as_str().unwrap()).collect();
        assert_eq!(actions, ["trigger", "trigger", "acknowledge", "resolve"]);
        for body in &bodies {
            assert_eq!(body["routing_key"], KEY);
            assert_eq!(body["dedup_key"], fired.delivery.alert.id.to_string());
            assert_eq!(body["payload"]["custom_details"]["tenantId"], fired.tenant.to_string());
            let href = format!("https://platform.example.com/v1/quotas/{}/alerts", fired.tenant);
            assert_eq!(body["links"][0]["href"], href);
        }
    }

    #[tokio::test]
    async fn what_pagerduty_calls_wrong_is_not_sent_again() {
        let receiver = Receiver::start(["400 Bad Request", "429 Slow\r\nretry-after: 3"]).await;
        let pager = PagerDuty::open(&receiver.url(""), &SecretString::from(KEY), true, None).unwrap();
        let parcel = samples::parcel("pager", Event::Fired, Metric::Tokens, Timestamp(0));
        assert!(matches!(pager.send(&parcel).await, Err(Failure::Final { .. })));
        let slow = Failure::Passing { reason: "answered 429".into(), after: std::time::Duration::from_secs(3) };
        assert_eq!(pager.send(&parcel).await, Err(slow));
    }
}
