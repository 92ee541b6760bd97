//! Tenants under load: senders that never give up, and an oracle that knows what they sent.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use platform_api::clock;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::api::Api;
use super::bus::Bus;
use super::database::Database;
use super::events::Envelope;
use super::oracle::Oracle;
use super::receiver::Receiver;
use super::{Daemon, Tenant, eventually};

const USERS: usize = 5;
/// How long a sender goes on before it says that it is in vain. Longer than any fault lasts.
const PERSISTENCE: Duration = Duration::from_secs(180);

/// A tenant under load, and what is known about it.
#[derive(Debug, Clone)]
pub struct Target {
    pub tenant: Tenant,
    pub oracle: Arc<Oracle>,
}

impl Target {
    /// Onboards a tenant with several quotas at once, and limits that are crossed on the way.
    pub async fn onboard(daemon: &Daemon, name: &str) -> Target {
        let tenant = daemon.onboard(name).await;
        tenant.put_quotas(quotas()).await;
        Target { tenant, oracle: Arc::new(Oracle::default()) }
    }

    /// Everything that was sent is in the books, once, with all that follows from it, and the pager was told.
    pub async fn check(&self, daemon: &Daemon, pager: Option<&Receiver>) {
        eventually("every event in the ledger", || async {
            let mut database = Database::of_tenant(daemon, &self.tenant.id).await;
            let counted = database.number("SELECT COUNT(*) FROM usage_ledger").await;
            (counted >= self.oracle.count() as i64).then_some(())
        })
        .await;
        self.oracle.check(daemon, &self.tenant).await;
        if let Some(pager) = pager {
            self.every_alert_was_told_once(daemon, pager).await;
        }
    }

    /// Q3: each alert reached the pager, under one id, however often it was sent.
    pub async fn every_alert_was_told_once(&self, daemon: &Daemon, pager: &Receiver) {
        let mut database = Database::of_tenant(daemon, &self.tenant.id).await;
        let ids = database.words("SELECT id FROM alert").await;
        let expected: BTreeSet<String> = ids.iter().map(|row| format!("{}-fired", row[0])).collect();
        eventually("every alert at the pager", || async {
            let told = pager.taken();
            let ours: BTreeSet<String> = told.iter().map(|one| one.header("webhook-id").to_owned()).collect();
            expected.is_subset(&ours).then_some(())
        })
        .await;
        for one in pager.received() {
            let (id, alert) = (one.header("webhook-id"), one.body["data"]["alertId"].as_str().unwrap());
            assert!(id.starts_with(alert), "{id} tells of {alert}");
        }
    }
}

/// Senders at work.
pub struct Load {
    fire: Arc<AtomicBool>,
    posted: Arc<AtomicUsize>,
    senders: JoinSet<()>,
}

impl Load {
    /// Feeds every target over HTTP, and over NATS if there is a bus.
    pub fn on(targets: &[Target], bus: Option<&Bus>) -> Load {
        let (fire, posted) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let mut senders = JoinSet::new();
        for target in targets {
            senders.spawn(send_over_http(target.clone(), fire.clone(), posted.clone()));
            if let Some(bus) = bus {
                senders.spawn(send_over_nats(bus.clone(), target.clone(), fire.clone()));
            }
        }
        Load { fire, posted, senders }
    }

    /// Waits until as many more batches have been answered with a receipt: the daemon works.
    pub async fn progresses(&self, batches: usize) {
        let before = self.posted.load(Ordering::SeqCst);
        eventually("batches to be counted", || async {
            (self.posted.load(Ordering::SeqCst) >= before + batches).then_some(())
        })
        .await;
    }

    /// Ends every sender once what it has begun is counted.
    pub async fn stop(mut self) {
        self.fire.store(false, Ordering::SeqCst);
        while let Some(sent) = self.senders.join_next().await {
            sent.expect("a sender ends well");
        }
    }
}

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

/// Publishes as a gateway does: some events twice, some on the tenant's own subject, each until the stream has it.
async fn send_over_nats(bus: Bus, target: Target, fire: Arc<AtomicBool>) {
    let tenant = &target.tenant.id;
    while fire.load(Ordering::SeqCst) {
        let event = an_event(tenant);
        target.oracle.sends(&event);
        let subject = if chance(2) { format!("{}.{tenant}", bus.subject) } else { bus.subject.clone() };
        for _ in 0..if chance(6) { between(2, 4) } else { 1 } {
            let publish = || bus.try_publish(&subject, event.json().to_string().into_bytes());
            let sequence = persistently("an event that the stream takes", publish).await;
            target.oracle.published(sequence, &event);
        }
        sleep(Duration::from_millis(between(5, 40))).await;
    }
}

/// Posts batches as a careful client does: until an answer says that they are counted.
async fn send_over_http(target: Target, fire: Arc<AtomicBool>, posted: Arc<AtomicUsize>) {
    while fire.load(Ordering::SeqCst) {
        let mut batch: Vec<Envelope> = (0..between(1, 20)).map(|_| an_event(&target.tenant.id)).collect();
        batch.iter().for_each(|event| target.oracle.sends(event));
        if chance(4) {
            batch.push(batch[0].clone());
        }
        post_until_counted(&target.tenant.api, &batch).await;
        if chance(10) {
            // The same id with another body, after the first was counted.
            let mut other = batch[0].clone();
            other.prompt_tokens += 1;
            target.oracle.conflicts(&other.event_id);
            post_until_counted(&target.tenant.api, &[other]).await;
        }
        posted.fetch_add(1, Ordering::SeqCst);
        sleep(Duration::from_millis(between(10, 60))).await;
    }
}

pub async fn post_until_counted(api: &Api, batch: &[Envelope]) {
    let body = Value::Array(batch.iter().map(Envelope::json).collect()).to_string().into_bytes();
    persistently("a batch that is counted", || async {
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

async fn persistently<T, Asked>(awaited: &str, mut ask: impl FnMut() -> Asked) -> T
where
    Asked: Future<Output = Option<T>>,
{
    let began = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(began.elapsed() < PERSISTENCE, "tried {PERSISTENCE:?} in vain: {awaited}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// A number from `least` up to, and without, `most`.
pub fn between(least: u64, most: u64) -> u64 {
    least + u64::from_le_bytes(clock::random_bytes()) % (most - least)
}

/// One time in `of`.
pub fn chance(of: u64) -> bool {
    between(0, of) == 0
}
