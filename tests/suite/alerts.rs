//! Alerts leave the house: each threshold once, to every channel, whatever fails or dies in between.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::harness::database::Database;
use crate::harness::events::token_quota;
use crate::harness::postbox::Postbox;
use crate::harness::receiver::{ROUTING_KEY, Received, Receiver, SECRET, actions, pagerduty_at};
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
        assert_eq!(receiver.ids().len(), 3, "{received:?}");

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
        let resolved = received.iter().filter(|one| one.body["type"] == "quota.alert.resolved");
        assert_eq!(resolved.map(|one| one.header("webhook-id")).collect::<BTreeSet<_>>().len(), 3);
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
        let statuses: Vec<u16> = received.iter().take(4).map(|one| one.status).collect();
        assert_eq!((statuses, receiver.ids().len()), (vec![500, 503, 429, 200], 1), "three refusals, then taken");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_that_was_owed_when_the_daemon_died_is_delivered_by_the_next_one() {
    on_both(|engine| async move {
        let receiver = Receiver::start().await;
        receiver.will_answer(&[500; 500]);
        let mut daemon = Setup::on(engine).with_section(&receiver.channel("pager")).start().await;
        let tenant = daemon.onboard("Acme").await;
        cross_every_threshold(&tenant).await;
        // Nothing was taken yet, and nobody asks for the tenant after this.
        daemon.kill().await;
        assert!(taken(&receiver).is_empty());
        receiver.is_well();
        daemon.restart().await;
        let received = told(&receiver, 3).await;
        let ids: BTreeSet<&str> = received.iter().map(|one| one.header("webhook-id")).collect();
        assert_eq!(ids.len(), 3);
        assert_eq!(tenant.alerts().await.len(), 3);
    })
    .await;
}

/// The pager is down, and more tenants owe it something than may be open at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_down_keeps_no_tenant_out() {
    on_both(|engine| async move {
        let receiver = Receiver::start().await;
        receiver.will_answer(&[500; 100_000]);
        let setup = Setup::on(engine).with("TENANTS__OPEN_MAX", 2).with_section(&receiver.channel("pager"));
        let daemon = setup.start().await;
        let mut tenants = Vec::new();
        for name in ["Acme", "Globex", "Initech", "Umbrella"] {
            tenants.push(daemon.onboard(name).await);
        }
        let mut events = 0;
        for tenant in &tenants {
            tenant.put_quotas(json!([token_quota(100, "month")])).await;
        }
        // All of them owe from the first round on, and each is opened again and again.
        for _ in 0..2 {
            for tenant in &tenants {
                tenant.post_events(&[tenant.event().tokens(120, 0)]).await;
                events += 1;
            }
        }
        assert!(receiver.taken().is_empty());
        receiver.is_well();
        told(&receiver, 3 * tenants.len()).await;
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        // One whose answer came too late is told again, by the same id.
        let repeated = daemon.log().contains("timed out");
        assert_eq!(receiver.ids().len(), 3 * tenants.len());
        assert!(repeated || receiver.taken().len() == 3 * tenants.len(), "once each");
        let mut counted = 0;
        for tenant in &tenants {
            counted += Database::of_tenant(&daemon, &tenant.id).await.number("SELECT COUNT(*) FROM usage_ledger").await;
        }
        assert_eq!(counted, events);
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

/// A port on which somebody accepts, reads what comes and never answers, until `stop`; then connections break.
struct Hanging {
    port: u16,
    asked: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Hanging {
    async fn start() -> Hanging {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, asked) = (listener.local_addr().unwrap().port(), Arc::<AtomicUsize>::default());
        let counting = asked.clone();
        let task = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                // Held back from the answer, not from the reading: the request has arrived.
                let _ = stream.read(&mut [0; 4_096]).await;
                held.push(stream);
                counting.fetch_add(1, Ordering::Relaxed);
            }
        });
        Hanging { port, asked, task }
    }

    async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_hangs_holds_up_no_other_and_is_told_once_afterwards() {
    let (hanging, well) = (Hanging::start().await, Receiver::start().await);
    let sections = format!("{}{}", pagerduty_at("pager", hanging.port), well.channel("chat"));
    let daemon = Setup::on(Engine::Sqlite).with_section(&sections).start().await;
    let (acme, globex) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
    cross_every_threshold(&acme).await;
    eventually("somebody to hang on it", || async { (hanging.asked.load(Ordering::Relaxed) > 0).then_some(()) }).await;
    // It hangs, and what is for others, of this tenant and of another one, goes its way.
    cross_every_threshold(&globex).await;
    told(&well, 6).await;
    assert_eq!(daemon.platform.get("/v1/notification-channels").await.ok()["items"][0]["delivered"], 0);
    let port = hanging.port;
    hanging.stop().await;
    let pager = Receiver::start_at(port).await;
    let incidents = eventually("every incident", || async {
        let told = actions(&pager);
        (told.len() >= 6).then_some(told)
    })
    .await;
    let alerts: BTreeSet<String> = [acme.alerts().await, globex.alerts().await]
        .concat()
        .iter()
        .map(|alert| alert["id"].as_str().unwrap().to_owned())
        .collect();
    assert!(incidents.iter().all(|(action, _)| action == "trigger"), "{incidents:?}");
    assert_eq!(incidents.iter().map(|(_, key)| key.clone()).collect::<BTreeSet<_>>(), alerts);
    // All six are settled, and nobody is told twice.
    let path = format!("/v1/quotas/{}/deliveries", acme.id);
    eventually("nothing to be owed", || async {
        let history = acme.api.pages(&path, 50).await;
        history.iter().all(|one| one["outcome"] == "delivered").then_some(())
    })
    .await;
    assert_eq!((actions(&pager).into_iter().collect::<BTreeSet<_>>().len(), well.ids().len()), (6, 6));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_reaches_pagerduty_whoever_dies_and_the_history_shows_it() {
    on_both(|engine| async move {
        let receiver = Receiver::start().await;
        let mut daemon = Setup::on(engine).with_section(&receiver.pagerduty("pager")).start().await;
        let tenant = daemon.onboard("Acme").await;
        let mut quota = token_quota(10, "month");
        quota["thresholds"] = json!([100]);
        tenant.put_quotas(json!([quota])).await;
        tenant.post_events(&[tenant.event().tokens(15, 0)]).await;
        eventually("the incident", || async { (actions(&receiver).len() == 1).then_some(()) }).await;
        let alert = tenant.alerts().await[0].clone();
        let id = alert["id"].as_str().unwrap().to_owned();
        assert!(alert["acknowledgedAt"].is_null(), "{alert}");

        // It is refused a few times, the daemon dies with it, and the next one delivers it.
        receiver.will_answer(&[500; 3]);
        let path = format!("/v1/quotas/{}/alerts/{id}/acknowledge", tenant.id);
        let acknowledged = tenant.api.call(Method::POST, &path, None).await.ok();
        assert!(!acknowledged["acknowledgedBy"].as_str().unwrap().is_empty(), "{acknowledged}");
        eventually("a refused acknowledgement", || async {
            let refused = receiver.received().into_iter().filter(|one| one.body["event_action"] == "acknowledge");
            (refused.count() > 0).then_some(())
        })
        .await;
        daemon.kill().await;
        daemon.restart().await;
        eventually("the acknowledgement", || async { (actions(&receiver).len() >= 2).then_some(()) }).await;
        let again = tenant.api.patiently(Method::POST, &path, None).await.ok();
        assert_eq!(again, acknowledged, "who was first counts");
        assert_eq!(tenant.alerts().await[0]["acknowledgedBy"], acknowledged["acknowledgedBy"]);

        tenant.put_quotas(json!([token_quota(1_000_000, "month")])).await;
        eventually("the resolution", || async { (actions(&receiver).len() >= 3).then_some(()) }).await;
        let told = actions(&receiver);
        let words: Vec<&str> = told.iter().map(|(action, _)| action.as_str()).collect();
        assert_eq!(words, ["trigger", "acknowledge", "resolve"]);
        assert!(told.iter().all(|(_, key)| *key == id), "{told:?}");
        tenant.api.call(Method::POST, &path, None).await.refused(409, "ALERT_OVER");

        let deliveries = format!("/v1/quotas/{}/deliveries", tenant.id);
        let history = eventually("three settled messages", || async {
            let history = tenant.api.pages(&deliveries, 2).await;
            history.iter().all(|one| one["outcome"] == "delivered").then_some(history)
        })
        .await;
        let events: Vec<&str> = history.iter().map(|one| one["event"].as_str().unwrap()).collect();
        assert_eq!(events, ["resolved", "acknowledged", "fired"]);
        assert!(history[1]["attempts"].as_i64().unwrap() >= 2, "{}", history[1]);
        let filtered = |query: &str| format!("{deliveries}?{query}");
        assert_eq!(tenant.api.get(&filtered("outcome=gaveUp")).await.ok()["items"], json!([]));
        assert_eq!(tenant.api.get(&filtered("channel=chat")).await.ok()["items"], json!([]));
        tenant.api.get(&filtered("outcome=lost")).await.refused(400, "INVALID_PARAMETER");
        tenant.api.get(&filtered("cursor=x")).await.refused(400, "INVALID_CURSOR");

        // Nobody else's alert, no alert at all, and nobody who may only read.
        let other = daemon.onboard("Globex").await;
        let unknown = format!("/v1/quotas/{}/alerts/{id}/acknowledge", other.id);
        other.api.call(Method::POST, &unknown, None).await.refused(404, "ALERT_NOT_FOUND");
        other.api.call(Method::POST, &path, None).await.refused(404, "TENANT_NOT_FOUND");
        tenant.issue_key("reader").await.1.call(Method::POST, &path, None).await.refused(403, "FORBIDDEN");
        let malformed = format!("/v1/quotas/{}/alerts/seven/acknowledge", tenant.id);
        tenant.api.call(Method::POST, &malformed, None).await.refused(404, "ALERT_NOT_FOUND");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_is_shown_without_its_secrets_and_tried_without_leaving_anything_open() {
    on_both(|engine| async move {
        let (hook, pager) = (Receiver::start().await, Receiver::start().await);
        let (chat, mail) = (Receiver::start().await, Postbox::start().await);
        let alertmanager = services::alertmanager_url().expect("TEST_ALERTMANAGER_URL names a running Alertmanager");
        let sections = format!(
            "{}{}{}[[notify.channels]]\ntype = \"slack\"\nname = \"chat\"\nurl = \"http://127.0.0.1:{}/hook\"\n\
             allow_private_addresses = true\n[[notify.channels]]\ntype = \"alertmanager\"\nname = \"oncall\"\n\
             url = \"{alertmanager}\"\nallow_private_addresses = true\n",
            hook.channel("hook"),
            pager.pagerduty("pager"),
            mail.channel("mail"),
            chat.port,
        );
        let daemon = Setup::on(engine).with_section(&sections).start().await;
        let shown = daemon.platform.get("/v1/notification-channels").await;
        assert!(!shown.text.contains(SECRET) && !shown.text.contains(ROUTING_KEY), "{}", shown.text);
        let shown = shown.ok();
        assert_eq!((&shown["items"][0]["id"], &shown["items"][0]["kind"]), (&json!("hook"), &json!("webhook")));
        assert_eq!(shown["items"][1]["circuit"], "closed");

        let path = |channel: &str| format!("/v1/notification-channels/{channel}/test");
        let tested = daemon.platform.call(Method::POST, &path("pager"), None).await.ok();
        assert_eq!(tested["outcome"], "delivered", "{tested}");
        let told = actions(&pager);
        assert_eq!(told.iter().map(|(action, _)| action.as_str()).collect::<Vec<_>>(), ["trigger", "resolve"]);
        assert!(told.iter().all(|(_, key)| *key == tested["testId"]), "{told:?}");

        for (channel, kind) in [("chat", "slack"), ("mail", "email"), ("oncall", "alertmanager")] {
            let tested = daemon.platform.call(Method::POST, &path(channel), None).await.ok();
            assert_eq!(tested["outcome"], "delivered", "{kind}: {tested}");
        }
        assert_eq!(chat.received().len(), 1);
        assert!(chat.received()[0].body["text"].as_str().is_some_and(|text| !text.is_empty()));
        let mails = mail.mails();
        assert!(mails.len() == 1 && mails[0].contains("To: on-call@example.com"), "{mails:?}");
        let alerts = format!("{alertmanager}/api/v2/alerts?filter=alertname%3D%22ChannelTest%22");
        eventually("the test in Alertmanager", || async {
            let alerts: Vec<Value> = reqwest::get(&alerts).await.ok()?.json().await.ok()?;
            alerts.iter().any(|alert| alert["labels"]["channel"] == "oncall").then_some(())
        })
        .await;

        hook.will_answer(&[302]);
        let keyed = [("idempotency-key", "try-the-hook")];
        let hooked = path("hook");
        let post = || daemon.platform.raw(Method::POST, &hooked, &keyed, Vec::new());
        let first = post().await;
        let first = first.ok();
        assert_eq!((&first["outcome"], hook.strayed()), (&json!("failed"), 0), "{first}");
        assert!(first["error"].as_str().unwrap().contains("302"), "{first}");
        assert_eq!(post().await.ok(), first, "the same key is the same test");
        assert_eq!(hook.received().len(), 1);
        assert_eq!(hook.received()[0].body["type"], "test.fired");
        // On a slow machine the pause may be over before the next one comes.
        let refused = eventually("a test too many", || async {
            let answer = daemon.platform.call(Method::POST, &path("hook"), None).await;
            (answer.status != 200).then_some(answer)
        });
        refused.await.refused(429, "TESTED_TOO_OFTEN");
        daemon.platform.call(Method::POST, &path("nobody"), None).await.refused(404, "CHANNEL_NOT_FOUND");
        let audit = daemon.platform.get("/v1/audit?limit=500").await.ok();
        let records = audit["items"].as_array().unwrap().iter();
        let tested = records.filter(|one| one["record"]["action"] == "channel.tested").count();
        assert_eq!(tested, 4 + hook.received().len(), "{audit}");
        let tenant = daemon.onboard("Acme").await;
        tenant.api.call(Method::POST, &path("pager"), None).await.refused(403, "FORBIDDEN");
        assert!(tenant.alerts().await.is_empty());
    })
    .await;
}
