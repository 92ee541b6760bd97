//! A budget that burns too fast: foreseen, told once, and over when it lasts again.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::events::token_quota;
use crate::harness::receiver::Receiver;
use crate::harness::{Setup, Tenant, eventually, on_both};

/// What the receiver was told, each message once however often it came.
fn told(receiver: &Receiver) -> BTreeSet<(String, String)> {
    let name = |body: &Value| body["type"].as_str().unwrap_or_default().to_owned();
    receiver.taken().iter().map(|one| (name(&one.body), one.header("webhook-id").to_owned())).collect()
}

async fn told_of(receiver: &Receiver, kind: &str) {
    eventually("the receiver to be told", || async {
        told(receiver).iter().any(|(told, _)| told == kind).then_some(())
    })
    .await;
}

/// All time has no first quarter of an hour, in which no rate would be known.
async fn limit(tenant: &Tenant, limit: i64) -> Value {
    let mut quota = token_quota(limit, "total");
    quota["thresholds"] = json!([100]);
    tenant.put_quotas(json!([quota])).await;
    tenant.quotas().await[0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burn_is_told_once_across_a_restart_and_resolved_when_the_budget_lasts_again() {
    on_both(|engine| async move {
        let receiver = Receiver::start().await;
        let notify = format!("[notify]\nburn_alert_ms = 7200000\n{}", receiver.channel("pager"));
        let mut daemon = Setup::on(engine).with_section(&notify).start().await;
        let tenant = daemon.onboard("Acme").await;
        let quiet = limit(&tenant, 1_000).await;
        assert!(quiet["exhaustsAt"].is_null(), "{quiet}");
        // 600 in the last hour, 400 left: forty minutes.
        tenant.post_events(&[tenant.event().tokens(600, 0)]).await;
        told_of(&receiver, "quota.burn.fired").await;
        assert!(tenant.quotas().await[0]["exhaustsAt"].is_string());

        daemon.kill().await;
        daemon.restart().await;
        let known = tenant.quotas().await[0].clone();
        assert!(known["exhaustsAt"].is_string(), "the rate is known after a restart: {known}");
        tenant.post_events(&[tenant.event().tokens(10, 0)]).await;
        let lasting = limit(&tenant, 1_000_000).await;
        assert_eq!(lasting["used"], 610);
        told_of(&receiver, "quota.burn.resolved").await;
        // In the same period it is not told again.
        limit(&tenant, 1_000).await;
        tenant.post_events(&[tenant.event().tokens(10, 0)]).await;
        let alerts = tenant.alerts().await;
        assert_eq!(alerts.len(), 1, "{alerts:?}");
        assert_eq!(alerts[0]["kind"], "budgetBurn");
        assert!(alerts[0]["resolvedAt"].is_string() && alerts[0]["exhaustedAt"].is_string(), "{alerts:?}");
        assert_eq!(told(&receiver).len(), 2);
    })
    .await;
}
