//! Alerts leave the house: each threshold once, to every channel, whatever fails or dies in between.

use std::collections::BTreeSet;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::harness::events::token_quota;
use crate::harness::receiver::{Received, Receiver, SECRET};
use crate::harness::{Daemon, Engine, Setup, Tenant, eventually, on_both, services};

async fn cross_every_threshold(tenant: &Tenant) {
    tenant.put_quotas(json!([token_quota(100, "month")])).await;
    for _ in 0..10 {
        tenant.post_events(&[tenant.event().tokens(15, 0)]).await;
    }
}

async fn told(receiver: &Receiver, count: usize) -> Vec<Received> {
    eventually("the receiver to be told", || async {
        let ids: BTreeSet<String> = taken(receiver).iter().map(|one| one.header("webhook-id").to_owned()).collect();
        (ids.len() >= count).then_some(())
    })
    .await;
    receiver.received()
}

/// What the receiver has taken, that is, answered with 2xx.
fn taken(receiver: &Receiver) -> Vec<Received> {
    receiver.received().into_iter().filter(|one| (200..300).contains(&one.status)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_told_of_each_threshold_once_and_can_check_who_tells_it() {
    on_both(|engine| async move {
        let receiver = Receiver::start().await;
        let daemon = Setup::on(engine).with_section(&receiver.channel("pager")).start().await;
        let tenant = daemon.onboard("Acme").await;
        cross_every_threshold(&tenant).await;
        let received = told(&receiver, 3).await;
        // More usage of the same period tells nothing new.
        tenant.post_events(&[tenant.event().tokens(500, 0)]).await;
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        assert_eq!(receiver.received().len(), 3, "{received:?}");

        let key = STANDARD.decode(SECRET.trim_start_matches("whsec_")).unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let mut thresholds = BTreeSet::new();
        for one in &received {
            let (id, sent_at) = (one.header("webhook-id"), one.header("webhook-timestamp"));
            let signed = [format!("{id}.{sent_at}.").as_bytes(), &one.bytes].concat();
            let signature = one.header("webhook-signature").strip_prefix("v1,").expect("version 1");
            hmac::verify(&key, &signed, &STANDARD.decode(signature).unwrap()).expect("signed with our secret");
            assert_eq!(one.body["type"], "quota.alert.fired");
            assert_eq!(one.body["data"]["tenantId"], Value::String(tenant.id.clone()));
            thresholds.insert(one.body["data"]["threshold"].as_i64().unwrap());
        }
        assert_eq!(thresholds, [50, 80, 100].into());
        // The history says the same.
        let history = tenant.alerts().await;
        assert_eq!(history.len(), 3);
        assert!(history.iter().all(|alert| alert["resolvedAt"].is_null()));
        // Raising the limit ends them, and the receiver hears of it.
        tenant.put_quotas(json!([token_quota(1_000_000, "month")])).await;
        let received = told(&receiver, 6).await;
        assert_eq!(received.iter().filter(|one| one.body["type"] == "quota.alert.resolved").count(), 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_fails_is_told_again_under_the_same_id() {
    on_both(|engine| async move {
        let receiver = Receiver::start().await;
        receiver.will_answer(&[500, 503, 429]);
        let daemon = Setup::on(engine).with_section(&receiver.channel("pager")).start().await;
        let tenant = daemon.onboard("Acme").await;
        let mut quota = token_quota(10, "month");
        quota["thresholds"] = json!([100]);
        tenant.put_quotas(json!([quota])).await;
        tenant.post_events(&[tenant.event()]).await;
        let received = told(&receiver, 1).await;
        let ids: BTreeSet<&str> = received.iter().map(|one| one.header("webhook-id")).collect();
        assert_eq!((received.len(), ids.len()), (4, 1), "three refusals, then taken");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_that_was_owed_when_the_daemon_died_is_delivered_by_the_next_one() {
    on_both(|engine| async move {
        let receiver = Receiver::start().await;
        receiver.will_answer(&[500; 6]);
        let mut daemon = Setup::on(engine).with_section(&receiver.channel("pager")).start().await;
        let tenant = daemon.onboard("Acme").await;
        cross_every_threshold(&tenant).await;
        // Nothing was taken yet, and nobody asks for the tenant after this.
        daemon.kill().await;
        assert!(taken(&receiver).len() < 3);
        daemon.restart().await;
        let received = told(&receiver, 3).await;
        let ids: BTreeSet<&str> = received.iter().map(|one| one.header("webhook-id")).collect();
        assert_eq!(ids.len(), 3);
        assert_eq!(tenant.alerts().await.len(), 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_on_a_private_address_is_refused_at_the_start_unless_it_is_allowed() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let channel = |name: &str, host: &str| {
        format!(
            "[[notify.channels]]\ntype = \"webhook\"\nname = \"{name}\"\nurl = \"https://{host}:{port}/\"\n\
             secret = \"{SECRET}\"\n"
        )
    };
    for host in ["localhost", "[::ffff:127.0.0.1]", "127.0.0.1", "2130706433", "0x7f.1", "169.254.169.254", "[::1]"] {
        let daemon = Daemon::prepare(Setup::on(Engine::Sqlite).with_section(&channel("pager", host))).await;
        let config = daemon.config_file();
        let output = daemon.run(&["serve", "--config", config.to_str().unwrap()]).await;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains("notify.channels[0].url"), "{host}: {told}");
        assert!(!told.contains(SECRET), "{told}");
    }
    let called = tokio::time::timeout(std::time::Duration::from_millis(10), listener.accept()).await;
    assert!(called.is_err(), "127.0.0.1 was called");
}

#[tokio::test(flavor = "multi_thread")]
async fn alertmanager_shows_what_fires_and_forgets_what_is_over() {
    let url = services::alertmanager_url().expect("TEST_ALERTMANAGER_URL names a running Alertmanager");
    let channel = format!(
        "[[notify.channels]]\ntype = \"alertmanager\"\nname = \"oncall\"\nurl = \"{url}\"\nrepeat_ms = 1000\n\
         allow_private_addresses = true\n"
    );
    on_both(|engine| {
        let (channel, url) = (channel.clone(), url.clone());
        async move {
            let daemon = Setup::on(engine).with_section(&channel).start().await;
            let tenant = daemon.onboard("Acme").await;
            cross_every_threshold(&tenant).await;
            let firing = |count: usize| {
                let (url, id) = (url.clone(), tenant.id.clone());
                async move {
                    let filter = format!("{url}/api/v2/alerts?active=true&filter=tenant%3D%22{id}%22");
                    let alerts: Vec<Value> = reqwest::get(filter).await.ok()?.json().await.ok()?;
                    let ours = alerts.iter().filter(|alert| alert["labels"].to_string().contains(&id)).count();
                    (ours == count).then_some(alerts)
                }
            };
            let alerts = eventually("three alerts in Alertmanager", || firing(3)).await;
            for alert in &alerts {
                assert_eq!(alert["labels"]["tenant"], Value::String(tenant.id.clone()), "{alert}");
                assert!(!alert["annotations"]["summary"].as_str().unwrap().is_empty(), "{alert}");
            }
            tenant.put_quotas(json!([token_quota(1_000_000, "month")])).await;
            eventually("no alert in Alertmanager", || firing(0)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_are_published_on_nats_under_a_stable_id() {
    on_both(|engine| async move {
        let channel = "[[notify.channels]]\ntype = \"nats\"\nname = \"bus\"\n";
        let mut daemon = Setup::on(engine).with_nats().with_section(channel).start().await;
        let bus = daemon.bus().await;
        let tenant = daemon.onboard("Acme").await;
        cross_every_threshold(&tenant).await;
        daemon.kill().await;
        daemon.restart().await;
        let published = eventually("three alerts on the stream", || async {
            let alerts = bus.alerts().await;
            (alerts.len() >= 3).then_some(alerts)
        })
        .await;
        let ids: BTreeSet<String> = published.iter().map(|(id, _)| id.clone().expect("a message id")).collect();
        assert_eq!((published.len(), ids.len()), (3, 3));
        for (id, alert) in published {
            assert_eq!(alert["tenantId"], Value::String(tenant.id.clone()));
            assert_eq!(alert["eventId"], Value::String(id.unwrap()));
            assert_eq!(alert["payload"]["type"], "quota.alert.fired", "{alert}");
        }
    })
    .await;
}
