//! Tenants under fire: usage over NATS and HTTP that goes on whatever happens to the daemon, and oracles that know all
//! of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use platform_api::clock;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::api::Api;
use super::bus::Bus;
use super::database::Database;
use super::events::Envelope;
use super::oracle::Oracle;
use super::receiver::Receiver;
use super::{Daemon, Setup, Tenant, eventually};

const USERS: u64 = 5;
/// How late an event may be, in milliseconds: its minutes and hours are over, and their alerts fire all the same.
const LATE_MS_MAX: u64 = 36 * 3_600_000;

/// A tenant under fire, and what is known about it.
#[derive(Debug, Clone)]
pub struct Target {
    pub tenant: Tenant,
    pub oracle: Arc<Oracle>,
}

/// The senders, while they send.
pub struct Fire {
    pub targets: Vec<Target>,
    pub bus: Bus,
    pager: Receiver,
    burning: Arc<AtomicBool>,
    senders: JoinSet<()>,
}

/// A daemon that can be set on fire, its stream and its pager.
pub fn setup(setup: Setup, pager: &Receiver) -> Setup {
    // Whatever is acknowledged is looked for in the ledger, so a slow machine must not park anything in quarantine.
    let setup = setup.with("NATS__PARK_AFTER_MS", 120_000);
    setup.with_nats().with_section(&pager.channel("pager")).with("NATS__ACK_WAIT_MS", 1_500)
}

impl Fire {
    /// Onboards a tenant of each name, and lights the fire.
    pub async fn on(daemon: &Daemon, pager: &Receiver, names: &[&str]) -> Fire {
        let mut fire = Fire::laid(daemon, pager, names).await;
        fire.light();
        fire
    }

    /// How many events of all tenants were acknowledged over HTTP.
    pub fn acknowledged(&self) -> usize {
        self.targets.iter().map(|target| target.oracle.acknowledgements()).sum()
    }

    /// The same, without lighting it.
    pub async fn laid(daemon: &Daemon, pager: &Receiver, names: &[&str]) -> Fire {
        let mut targets = Vec::new();
        for name in names {
            let tenant = daemon.onboard(name).await;
            tenant.put_quotas(quotas()).await;
            targets.push(Target { tenant, oracle: Arc::new(Oracle::default()) });
        }
        let bus = daemon.bus().await;
        Fire { targets, bus, pager: pager.clone(), burning: Arc::default(), senders: JoinSet::new() }
    }

    pub fn light(&mut self) {
        self.burning = Arc::new(AtomicBool::new(true));
        for Target { tenant, oracle } in &self.targets {
            let burning = &self.burning;
            self.senders.spawn(send_over_nats(self.bus.clone(), tenant.id.clone(), oracle.clone(), burning.clone()));
            self.senders.spawn(send_over_http(tenant.clone(), oracle.clone(), burning.clone()));
        }
    }

    /// What holds in the databases that a dead daemon left behind.
    pub async fn check_remains(&self, daemon: &Daemon) {
        let acked = self.bus.acked().await;
        for target in &self.targets {
            let mut database = Database::of_tenant(daemon, &target.tenant.id).await;
            target.oracle.check_remains(&mut database, acked).await;
        }
    }

    /// Ends the fire, lets the daemon count everything, and checks every invariant.
    pub async fn quench(&mut self, daemon: &Daemon) {
        self.burning.store(false, Ordering::SeqCst);
        while let Some(sent) = self.senders.join_next().await {
            sent.expect("a sender ends well");
        }
        self.check(daemon).await;
    }

    /// Checks every invariant, when nobody sends and everything is counted.
    pub async fn check(&self, daemon: &Daemon) {
        daemon.drained(&self.bus).await;
        for Target { tenant, oracle } in &self.targets {
            let tenant = tenant.at(daemon);
            oracle.check(daemon, &tenant).await;
            every_alert_was_told_once(daemon, &tenant, &self.pager).await;
        }
    }

    /// One event of a tenant, over NATS.
    pub async fn publish_to(&self, target: &Target) {
        let event = an_event(&target.tenant.id);
        target.oracle.sends(&event);
        let sequence = self.bus.publish(&event.json()).await;
        target.oracle.published(sequence, &event);
    }

    /// How many events were sent, by tenant.
    pub fn events(&self) -> Vec<usize> {
        self.targets.iter().map(|target| target.oracle.count()).collect()
    }
}

/// Several quotas at once; limits that are crossed on the way, one of them again with each late event.
pub fn quotas() -> Value {
    json!([
        {"scope": {"type": "tenant"}, "metric": "tokens", "period": "month", "limit": 20_000,
         "thresholds": [1, 10, 50, 80, 100, 200], "enforcement": "block"},
        {"scope": {"type": "user", "id": "user-1"}, "metric": "requests", "period": "total", "limit": 200,
         "thresholds": [10, 50, 100], "enforcement": "alert"},
        {"scope": {"type": "model", "id": "gpt-4.1"}, "metric": "cost", "period": "month", "limit": "1.5",
         "thresholds": [5, 50, 100], "enforcement": "alert"},
        {"scope": {"type": "tenant"}, "metric": "completionTokens", "period": "minute", "limit": 15,
         "thresholds": [100], "enforcement": "alert"},
    ])
}

pub fn an_event(tenant: &str) -> Envelope {
    let mut event = Envelope::new(tenant).tokens(between(1, 40) as i64, between(0, 20) as i64);
    event.user = format!("user-{}", between(0, USERS));
    event.cost = between(0, 5_000_000) as i64;
    if chance(10) {
        event.occurred_at = event.occurred_at.plus_micros(-(between(0, LATE_MS_MAX) as i64) * 1_000);
    }
    event
}

/// Publishes as a gateway does: some events twice, some on the tenant's own subject.
async fn send_over_nats(bus: Bus, tenant: String, oracle: Arc<Oracle>, burning: Arc<AtomicBool>) {
    while burning.load(Ordering::SeqCst) {
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
        sleep(Duration::from_millis(between(0, 40))).await;
    }
}

/// Posts batches as a careful client does: until an answer says that they are counted.
async fn send_over_http(tenant: Tenant, oracle: Arc<Oracle>, burning: Arc<AtomicBool>) {
    while burning.load(Ordering::SeqCst) {
        let mut batch: Vec<Envelope> = (0..between(1, 12)).map(|_| an_event(&tenant.id)).collect();
        batch.iter().for_each(|event| oracle.sends(event));
        if chance(4) {
            batch.push(batch[0].clone());
        }
        post_until_counted(&tenant.api, &batch).await;
        oracle.acknowledged(&batch);
        if chance(10) {
            // The same id with another body, after the first was counted.
            let mut other = batch[0].clone();
            other.prompt_tokens += 1;
            oracle.conflicts(&other.event_id);
            post_until_counted(&tenant.api, &[other]).await;
        }
        sleep(Duration::from_millis(between(0, 60))).await;
    }
}

/// A body of events.
pub fn body(batch: &[Envelope]) -> Vec<u8> {
    Value::Array(batch.iter().map(Envelope::json).collect()).to_string().into_bytes()
}

pub async fn post_until_counted(api: &Api, batch: &[Envelope]) {
    let body = body(batch);
    eventually("a batch that is counted", || async {
        let headers = [("content-type", "application/json")];
        let answer = api.try_raw(Method::POST, "/v1/usage/events", &headers, body.clone()).await.ok()?;
        match answer.status {
            200 => Some(()),
            503 => None,
            _ => panic!("L3: events that nothing is wrong with were refused: {} {}", answer.status, answer.text),
        }
    })
    .await;
}

/// Q3: each alert is owed to the pager, and reached it under one id, however often the daemon died in between.
pub async fn every_alert_was_told_once(daemon: &Daemon, tenant: &Tenant, pager: &Receiver) {
    let mut database = Database::of_tenant(daemon, &tenant.id).await;
    let fired: BTreeSet<String> = database.words("SELECT id FROM alert").await.into_iter().flatten().collect();
    let owed = database.words("SELECT alert_id FROM outbox WHERE event = 'fired'").await;
    assert!(fired.len() >= 3, "the fire crossed thresholds: {fired:?}");
    assert_eq!(fired, owed.into_iter().flatten().collect(), "Q3: alerts, and what is owed to the pager");
    eventually("every alert at the pager", || async {
        let told: BTreeSet<String> = pager.received().iter().map(alert_of).collect();
        fired.is_subset(&told).then_some(())
    })
    .await;
    let ours = |id: &String| fired.iter().any(|alert| id.starts_with(alert));
    let told = pager.received().into_iter().filter(|one| one.body["type"] == "quota.alert.fired");
    let keys: BTreeSet<String> = told.map(|one| one.header("webhook-id").to_owned()).filter(ours).collect();
    let expected: BTreeSet<String> = fired.iter().map(|alert| format!("{alert}-fired")).collect();
    assert_eq!(keys, expected, "Q3: the keys by which the pager knows our alerts");
}

fn alert_of(one: &super::receiver::Received) -> String {
    one.body["data"]["alertId"].as_str().expect("an alert").to_owned()
}

/// A number from `least` up to, and without, `most`.
pub fn between(least: u64, most: u64) -> u64 {
    least + u64::from_le_bytes(clock::random_bytes()) % (most - least)
}

/// One time in `of`.
pub fn chance(of: u64) -> bool {
    between(0, of) == 0
}
