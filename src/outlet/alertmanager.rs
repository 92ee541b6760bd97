//! Prometheus Alertmanager, API v2: `POST <url>/api/v2/alerts`.
//!
//! Alertmanager knows an alert by its labels and forgets it unless it is posted again, so the labels hold only what
//! never changes while an alert lives (no usage figures), and firing alerts are posted again on a timer. The period's
//! start is a label: an alert of a past period that is resolved late must not resolve the running period's. A resolved
//! alert is posted with `endsAt`.

use serde::Serialize;

use super::egress::{self, Failure};
use super::parcel::{Parcel, amount_text, scope_text, summary};
use crate::domain::ids::TenantId;
use crate::domain::notice::{Alert, AlertSubject, BudgetBurn, Event, QuotaThreshold};
use crate::domain::time::Timestamp;

/// A firing alert that is not posted again ends after this many repeats, as Prometheus does it.
const REPEATS_UNTIL_END: u64 = 4;

/// One Alertmanager.
pub(super) struct Alertmanager {
    client: reqwest::Client,
    url: String,
    repeat_ms: u64,
    public_url: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Posted {
    labels: Labels,
    annotations: Annotations,
    starts_at: Timestamp,
    ends_at: Timestamp,
    #[serde(rename = "generatorURL", skip_serializing_if = "Option::is_none")]
    generator_url: Option<String>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Labels {
    Threshold {
        alertname: &'static str,
        tenant: String,
        quota: String,
        scope: String,
        metric: &'static str,
        period: &'static str,
        period_start: Timestamp,
        threshold: String,
        severity: &'static str,
    },
    Burn {
        alertname: &'static str,
        tenant: String,
        quota: String,
        scope: String,
        metric: &'static str,
        period: &'static str,
        period_start: Timestamp,
        severity: &'static str,
    },
    Test {
        alertname: &'static str,
        channel: String,
        severity: &'static str,
    },
    Drift {
        alertname: &'static str,
        tenant: String,
        cause: String,
        window_start: Timestamp,
        severity: &'static str,
    },
}

#[derive(Serialize)]
struct Annotations {
    summary: String,
    description: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    acknowledged_by: Option<String>,
}

impl Alertmanager {
    pub(super) fn open(
        url: &str,
        repeat_ms: u64,
        allow_private: bool,
        public_url: Option<String>,
    ) -> Result<Alertmanager, String> {
        let url = format!("{}/api/v2/alerts", url.trim_end_matches('/'));
        let public_url = public_url.map(|base| base.trim_end_matches('/').to_owned());
        Ok(Alertmanager { client: egress::client(allow_private)?, url, repeat_ms, public_url })
    }

    pub(super) async fn send(&self, parcel: &Parcel, now: Timestamp) -> Result<(), Failure> {
        let alert = &parcel.delivery.alert;
        let posted = match parcel.delivery.event {
            // Alertmanager knows no acknowledgement; the same alert is posted with who it was.
            Event::Fired | Event::Acknowledged => self.posted(parcel.tenant, alert, self.firing_until(alert, now)),
            Event::Resolved => self.posted(parcel.tenant, alert, alert.resolved_at.unwrap_or(now)),
        };
        self.post(&[posted]).await
    }

    /// Posts alerts that still fire.
    pub(super) async fn repeat(&self, firing: &[(TenantId, Alert)], now: Timestamp) -> Result<(), Failure> {
        let posted: Vec<Posted> =
            firing.iter().map(|(tenant, alert)| self.posted(*tenant, alert, self.firing_until(alert, now))).collect();
        self.post(&posted).await
    }

    async fn post(&self, posted: &[Posted]) -> Result<(), Failure> {
        egress::send(self.client.post(&self.url).json(posted)).await
    }

    fn firing_until(&self, alert: &Alert, now: Timestamp) -> Timestamp {
        let lasts_ms = self.repeat_ms.saturating_mul(REPEATS_UNTIL_END);
        let lasts_micros = i64::try_from(lasts_ms.saturating_mul(1_000)).unwrap_or(i64::MAX);
        // It may have been resolved before we could say that it fired.
        alert.resolved_at.unwrap_or_else(|| now.plus_micros(lasts_micros).min(Timestamp::MAX))
    }

    fn posted(&self, tenant: TenantId, alert: &Alert, ends_at: Timestamp) -> Posted {
        Posted {
            labels: labels(tenant, alert),
            annotations: Annotations {
                summary: summary(tenant, alert),
                description: description(alert),
                acknowledged_by: alert.acknowledged.as_ref().map(|one| one.by.clone()),
            },
            starts_at: alert.fired_at,
            // Alertmanager refuses an alert that ends before it starts.
            ends_at: ends_at.max(alert.fired_at.plus_micros(1_000)),
            generator_url: self.public_url.as_ref().map(|base| format!("{base}/v1/quotas/{tenant}/alerts")),
        }
    }
}

/// What never changes while the alert lives.
fn labels(tenant: TenantId, alert: &Alert) -> Labels {
    let (tenant, severity) = (tenant.to_string(), alert.severity().name());
    match &alert.subject {
        AlertSubject::QuotaThreshold(QuotaThreshold { quota, period_start, threshold, .. }) => Labels::Threshold {
            alertname: "QuotaThresholdReached",
            tenant,
            quota: quota.id.to_string(),
            scope: scope_text(&quota.scope),
            metric: quota.metric.name(),
            period: quota.period.name(),
            period_start: *period_start,
            threshold: threshold.to_string(),
            severity,
        },
        AlertSubject::BudgetBurn(BudgetBurn { quota, period_start, .. }) => Labels::Burn {
            alertname: "BudgetBurn",
            tenant,
            quota: quota.id.to_string(),
            scope: scope_text(&quota.scope),
            metric: quota.metric.name(),
            period: quota.period.name(),
            period_start: *period_start,
            severity,
        },
        AlertSubject::Test(channel) => Labels::Test { alertname: "ChannelTest", channel: channel.clone(), severity },
        AlertSubject::ReconciliationDrift(drift) => Labels::Drift {
            alertname: "ReconciliationDrift",
            tenant,
            cause: drift.cause.clone(),
            window_start: drift.window_start,
            severity,
        },
    }
}

fn description(alert: &Alert) -> String {
    let reset = |end: Option<Timestamp>| end.map_or("never".into(), |end| end.to_string());
    match &alert.subject {
        AlertSubject::QuotaThreshold(QuotaThreshold { quota, used, period_start, period_end, .. }) => format!(
            "{} of {} were used when the threshold was reached; the period started at {period_start} and resets: {}",
            amount_text(quota, *used),
            amount_text(quota, quota.limit),
            reset(*period_end),
        ),
        AlertSubject::BudgetBurn(BudgetBurn { quota, used, period_start, period_end, exhausted_at }) => format!(
            "{} of {} were used; at the rate of the minutes before, nothing is left at {exhausted_at}; \
             the period started at {period_start} and resets: {}",
            amount_text(quota, *used),
            amount_text(quota, quota.limit),
            reset(*period_end),
        ),
        AlertSubject::Test(_) => "somebody asks whether this channel works; it is over by itself".to_owned(),
        AlertSubject::ReconciliationDrift(drift) => format!(
            "the ledger and the gateway disagreed by {} requests in {} windows since {}",
            drift.difference, drift.windows, drift.window_start,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::domain::quota::Metric;
    use crate::domain::time::MICROS_PER_SECOND;
    use crate::outlet::parcel::samples;
    use std::process::Stdio;
    use std::time::Duration;

    /// A real Alertmanager of our own, on a private port, in a temporary folder.
    struct Server {
        url: String,
        _process: tokio::process::Child,
        _folder: tempfile::TempDir,
    }

    impl Server {
        async fn start() -> Server {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("alertmanager.yml");
            std::fs::write(&file, "route: {receiver: none}\nreceivers: [{name: none}]\n").unwrap();
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let process = tokio::process::Command::new("prometheus-alertmanager")
                .arg(format!("--config.file={}", file.display()))
                .arg(format!("--storage.path={}", folder.path().join("data").display()))
                .arg(format!("--web.listen-address=127.0.0.1:{port}"))
                .arg("--cluster.listen-address=")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()
                .expect("prometheus-alertmanager is installed (apt-get install prometheus-alertmanager)");
            let server = Server { url: format!("http://127.0.0.1:{port}"), _process: process, _folder: folder };
            for _ in 0..1_800 {
                let ready = reqwest::get(format!("{}/-/ready", server.url)).await;
                if ready.is_ok_and(|answer| answer.status().is_success()) {
                    return server;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            panic!("alertmanager did not become ready");
        }

        async fn alerts(&self) -> Vec<serde_json::Value> {
            reqwest::get(format!("{}/api/v2/alerts", self.url)).await.unwrap().json().await.unwrap()
        }
    }

    #[tokio::test]
    async fn on_call_sees_an_alert_while_it_fires_and_not_after() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let server = Server::start().await;
        let url = Some("https://platform.example.com/".into());
        let alertmanager = Alertmanager::open(&server.url, 60_000, true, url).unwrap();
        let now = Clock::system().now();
        let mut parcel =
            samples::parcel("on-call", Event::Fired, Metric::Cost, now.plus_micros(-10 * MICROS_PER_SECOND));
        alertmanager.send(&parcel, now).await.unwrap();
        let alert = parcel.delivery.alert.clone();
        alertmanager.repeat(&[(parcel.tenant, alert)], now).await.unwrap();

        let alerts = server.alerts().await;
        assert_eq!(alerts.len(), 1, "a repeated alert is the same alert: {alerts:?}");
        let labels = &alerts[0]["labels"];
        assert_eq!(labels["alertname"], "QuotaThresholdReached");
        assert_eq!(labels["tenant"], parcel.tenant.to_string());
        assert_eq!((&labels["scope"], &labels["threshold"]), (&"user:alice".into(), &"80".into()));
        assert_eq!(labels["severity"], "warning");
        let description = alerts[0]["annotations"]["description"].as_str().unwrap();
        assert!(description.starts_with("0.000812 USD of 0.001 USD"), "{description}");
        let link = format!("https://platform.example.com/v1/quotas/{}/alerts", parcel.tenant);
        assert_eq!(alerts[0]["generatorURL"], link);

        parcel.delivery.event = Event::Resolved;
        parcel.delivery.alert.resolved_at = Some(Clock::system().now());
        alertmanager.send(&parcel, Clock::system().now()).await.unwrap();
        assert_eq!(server.alerts().await, Vec::<serde_json::Value>::new());
    }

    #[tokio::test]
    async fn burns_and_drifts_are_alerts_of_their_own() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let server = Server::start().await;
        let alertmanager = Alertmanager::open(&server.url, 60_000, true, None).unwrap();
        let now = Clock::system().now();
        let tenant = TenantId(crate::clock::new_id());
        let firing = samples::others(tenant, now.plus_micros(-MICROS_PER_SECOND)).map(|alert| (tenant, alert));
        alertmanager.repeat(&firing, now).await.unwrap();
        let alerts = server.alerts().await;
        let labels = |name: &str| {
            let found = alerts.iter().find(|alert| alert["labels"]["alertname"] == name);
            found.map(|alert| alert["labels"].clone()).unwrap_or_else(|| panic!("no {name} in {alerts:?}"))
        };
        assert_eq!(labels("BudgetBurn")["metric"], "tokens");
        let drift = labels("ReconciliationDrift");
        assert_eq!((&drift["cause"], &drift["severity"]), (&"lostInLedger".into(), &"critical".into()));
    }

    #[tokio::test]
    async fn a_late_resolution_of_a_past_period_leaves_the_running_one_alone() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let server = Server::start().await;
        let alertmanager = Alertmanager::open(&server.url, 60_000, true, None).unwrap();
        let now = Clock::system().now();
        let running = samples::parcel("on-call", Event::Fired, Metric::Tokens, now.plus_micros(-MICROS_PER_SECOND));
        let mut past = running.clone();
        past.delivery.event = Event::Resolved;
        samples::reached(&mut past.delivery.alert).period_start = now.plus_micros(-crate::domain::time::MICROS_PER_DAY);
        past.delivery.alert.resolved_at = Some(now);
        alertmanager.send(&running, now).await.unwrap();
        alertmanager.send(&past, now).await.unwrap();
        assert_eq!(server.alerts().await.len(), 1);
    }
}
