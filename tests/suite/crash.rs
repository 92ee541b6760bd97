//! The real binary, killed without warning while NATS and HTTP feed it. Afterwards every invariant holds against an
//! oracle that knows what was sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use platform_api::clock;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::harness::api::Api;
use crate::harness::bus::Bus;
use crate::harness::database::Database;
use crate::harness::events::Envelope;
use crate::harness::oracle::Oracle;
use crate::harness::receiver::Receiver;
use crate::harness::{Daemon, Engine, Setup, Tenant, eventually};

const KILLS: usize = 26;
/// How long the daemon lives before it is killed, in milliseconds: from its first breath to the middle of its work.
const LIFE_MS: (u64, u64) = (40, 700);
const USERS: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_on_sqlite_nothing_is_lost_or_counted_twice() {
    killed_at_any_moment(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_on_postgres_nothing_is_lost_or_counted_twice() {
    killed_at_any_moment(Engine::Postgres).await;
}

/// A tenant under fire, and what is known about it.
struct Target {
    tenant: Tenant,
    oracle: Arc<Oracle>,
}

async fn killed_at_any_moment(engine: Engine) {
    let pager = Receiver::start().await;
    let setup = Setup::on(engine).with_nats().with_section(&pager.channel("pager")).with("NATS__ACK_WAIT_MS", 2_000);
    let mut daemon = setup.start().await;
    let bus = daemon.bus().await;
    let mut targets = Vec::new();
    for name in ["Acme", "Globex"] {
        let tenant = daemon.onboard(name).await;
        tenant.put_quotas(quotas()).await;
        targets.push(Target { tenant, oracle: Arc::new(Oracle::default()) });
    }

    let fire = Arc::new(AtomicBool::new(true));
    let mut senders = JoinSet::new();
    for target in &targets {
        let (tenant, oracle) = (&target.tenant, &target.oracle);
        senders.spawn(send_over_nats(bus.clone(), tenant.id.clone(), oracle.clone(), fire.clone()));
        senders.spawn(send_over_http(tenant.clone(), oracle.clone(), fire.clone()));
    }
    let mut lives = Vec::new();
    for _ in 0..KILLS {
        let life = Duration::from_millis(between(LIFE_MS.0, LIFE_MS.1));
        sleep(life).await;
        daemon.kill().await;
        lives.push(life.as_millis());
        for target in &targets {
            // L6 holds in what a dead daemon left behind.
            let mut database = Database::of_tenant(&daemon, &target.tenant.id).await;
            target.oracle.check_cursor(&mut database).await;
        }
        // Killed while it starts, too: only now and then do we wait until it is up.
        daemon.spawn();
        if chance(3) {
            daemon.ready().await;
        }
    }
    daemon.ready().await;
    fire.store(false, Ordering::SeqCst);
    while let Some(sent) = senders.join_next().await {
        sent.expect("a sender ends well");
    }

    daemon.drained(&bus).await;
    for Target { tenant, oracle } in &targets {
        let all_there = || async {
            let mut database = Database::of_tenant(&daemon, &tenant.id).await;
            let counted = database.number("SELECT COUNT(*) FROM usage_ledger").await;
            (counted >= oracle.count() as i64).then_some(())
        };
        eventually("every event in the ledger", all_there).await;
        oracle.check(&daemon, tenant).await;
        every_alert_was_told_once(&daemon, tenant, &pager).await;
    }
    let sums: Vec<usize> = targets.iter().map(|target| target.oracle.count()).collect();
    daemon.terminate().await;
    let verdict = daemon.verify_offline().await;
    assert!(verdict.status.success(), "A1: {}", String::from_utf8_lossy(&verdict.stdout));
    println!("{engine}: {KILLS} kills after {lives:?} ms, {sums:?} events, 0 violations");
}

/// Several quotas at once; limits that are crossed on the way.
fn quotas() -> Value {
    json!([
        {"scope": {"type": "tenant"}, "metric": "tokens", "period": "month", "limit": 20_000,
         "thresholds": [1, 10, 50, 80, 100, 200], "enforcement": "block"},
        {"scope": {"type": "user", "id": "user-1"}, "metric": "requests", "period": "total", "limit": 200,
         "thresholds": [10, 50, 100], "enforcement": "alert"},
        {"scope": {"type": "model", "id": "gpt-4.1"}, "metric": "cost", "period": "month", "limit": "1.5",
         "thresholds": [5, 50, 100], "enforcement": "alert"},
        {"scope": {"type": "tenant"}, "metric": "completionTokens", "period": "minute", "limit": 50,
         "thresholds": [100], "enforcement": "alert"},
    ])
}

fn an_event(tenant: &str) -> Envelope {
    let mut event = Envelope::new(tenant).tokens(between(1, 40) as i64, between(0, 20) as i64);
    event.user = format!("user-{}", between(0, USERS as u64));
    event.cost = between(0, 5_000_000) as i64;
    // Some are late: they belong to minutes and hours that are over.
    if chance(5) {
        event.occurred_at = event.occurred_at.plus_micros(-(between(0, 5_400_000) as i64) * 1_000);
    }
    event
}

/// Publishes as a gateway does: some events twice, some on the tenant's own subject.
async fn send_over_nats(bus: Bus, tenant: String, oracle: Arc<Oracle>, fire: Arc<AtomicBool>) {
    while fire.load(Ordering::SeqCst) {
        let event = an_event(&tenant);
        oracle.sends(&event);
        for _ in 0..if chance(6) { between(2, 4) } else { 1 } {
            let sequence = if chance(2) {
                bus.publish_for(&tenant, &event.json()).await
            } else {
                bus.publish(&event.json()).await
            };
            oracle.published(sequence, &event);
        }
        sleep(Duration::from_millis(between(0, 12))).await;
    }
}

/// Posts batches as a careful client does: until an answer says that they are counted.
async fn send_over_http(tenant: Tenant, oracle: Arc<Oracle>, fire: Arc<AtomicBool>) {
    while fire.load(Ordering::SeqCst) {
        let mut batch: Vec<Envelope> = (0..between(1, 30)).map(|_| an_event(&tenant.id)).collect();
        batch.iter().for_each(|event| oracle.sends(event));
        if chance(4) {
            batch.push(batch[0].clone());
        }
        post_until_counted(&tenant.api, &batch).await;
        if chance(10) {
            // The same id with another body, after the first was counted.
            let mut other = batch[0].clone();
            other.prompt_tokens += 1;
            oracle.conflicts(&other.event_id);
            post_until_counted(&tenant.api, &[other]).await;
        }
        sleep(Duration::from_millis(between(0, 30))).await;
    }
}

async fn post_until_counted(api: &Api, batch: &[Envelope]) {
    let body = Value::Array(batch.iter().map(Envelope::json).collect()).to_string().into_bytes();
    eventually("a batch that is counted", || async {
        let headers = [("content-type", "application/json")];
        let answer = api.try_raw(Method::POST, "/v1/usage/events", &headers, body.clone()).await.ok()?;
        match answer.status {
            200 => Some(()),
            503 => None,
            _ => panic!("{} {}", answer.status, answer.text),
        }
    })
    .await;
}

/// Q3: each alert reached the pager, under one id, however often the daemon died in between.
async fn every_alert_was_told_once(daemon: &Daemon, tenant: &Tenant, pager: &Receiver) {
    let mut database = Database::of_tenant(daemon, &tenant.id).await;
    let ids = database.words("SELECT id FROM alert").await;
    let expected: std::collections::BTreeSet<String> = ids.iter().map(|row| format!("{}-fired", row[0])).collect();
    assert!(expected.len() >= 8, "the fire crossed thresholds: {expected:?}");
    let told = || async {
        let ids = pager.received().iter().map(|one| one.header("webhook-id").to_owned()).collect::<Vec<_>>();
        let ours: std::collections::BTreeSet<String> = ids.into_iter().filter(|id| expected.contains(id)).collect();
        (ours == expected).then_some(())
    };
    eventually("every alert at the pager", told).await;
    for one in pager.received() {
        let (id, alert) = (one.header("webhook-id"), one.body["data"]["alertId"].as_str().unwrap());
        assert!(id.starts_with(alert), "{id} tells of {alert}");
    }
}

/// A number from `least` up to, and without, `most`.
fn between(least: u64, most: u64) -> u64 {
    least + u64::from_le_bytes(clock::random_bytes()) % (most - least)
}

/// One time in `of`.
fn chance(of: u64) -> bool {
    between(0, of) == 0
}
