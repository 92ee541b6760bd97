//! Single events that are watched: from the moment each was due to be published until a look-up shows it.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::events;
use crate::figures::Latencies;
use crate::link::{Link, Wire, request};
use crate::pace::{Pace, micros_since};
use crate::plant::{Plant, Tenant, call, quotas};

/// Whose events are watched.
const USER: &str = "watched";
/// Their quota's limit: small enough that one event makes it the tightest.
const LIMIT: u64 = 1_000_000;
/// How long an event may stay unseen.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two rounds of look-ups: what is measured is good to this, and a look-up.
const PAUSE: Duration = Duration::from_micros(100);

/// Gives a tenant the quota by which its events are watched, and `more`.
pub(crate) async fn prepare(plant: &Plant, tenant: &Tenant, more: Vec<Value>) -> anyhow::Result<()> {
    let mut all = quotas();
    all.push(json!({"scope": {"type": "user", "id": USER}, "metric": "requests", "period": "total", "limit": LIMIT,
        "thresholds": [100], "enforcement": "alert"}));
    all.extend(more);
    let mut link = Link::to(&plant.address).await?;
    let path = format!("/v1/quotas/{}", tenant.id);
    call(&mut link, "PUT", &path, &tenant.key, Some(&json!({"quotas": all}))).await?;
    Ok(())
}

/// Publishes `rate` events a second, by turns for each tenant, for `took`; how long each was on its way.
pub(crate) async fn over_the_stream(
    plant: &Plant,
    tenants: &[Tenant],
    rate: f64,
    took: Duration,
) -> anyhow::Result<Latencies> {
    let client = async_nats::connect(&plant.surroundings.nats).await.context("connecting to NATS")?;
    let (sent, published) = channel();
    let subjects: Vec<(String, Tenant)> =
        tenants.iter().map(|tenant| (format!("{}.{}", plant.subject(), tenant.id), tenant.clone())).collect();
    let runtime = tokio::runtime::Handle::current();
    let publishing = std::thread::spawn(move || {
        let pace = Pace::share(rate, 1, 0, Instant::now(), took);
        for (due, (at, (subject, tenant))) in pace.moments().zip(subjects.iter().enumerate().cycle()) {
            runtime.block_on(client.publish(subject.clone(), events::of_user(tenant, USER)))?;
            sent.send((at, due)).context("nobody watches")?;
        }
        runtime.block_on(client.flush())?;
        anyhow::Ok(())
    });
    let (address, tenants) = (plant.address.clone(), tenants.to_vec());
    let seen = tokio::task::spawn_blocking(move || watch(&address, &tenants, &published)).await?;
    publishing.join().map_err(|_| anyhow::anyhow!("the publisher panicked"))??;
    seen
}

/// One tenant's events that have not been seen.
struct Watched {
    question: Vec<u8>,
    due: VecDeque<Instant>,
    seen: u64,
}

fn watch(address: &str, tenants: &[Tenant], published: &Receiver<(usize, Instant)>) -> anyhow::Result<Latencies> {
    let mut wire = Wire::to(address)?;
    let mut watched: Vec<Watched> = Vec::new();
    for tenant in tenants {
        let path = format!("/v1/quotas/{}/decision?userId={USER}", tenant.id);
        let question = request("GET", &path, &tenant.key, None);
        // An earlier phase may have left some.
        let seen = counted(&mut wire, &question)?.unwrap_or(0);
        watched.push(Watched { question, due: VecDeque::new(), seen });
    }
    let (mut micros, mut moved, mut over) = (Vec::new(), Instant::now(), false);
    while !over || watched.iter().any(|one| !one.due.is_empty()) {
        over |= take(published, &mut watched);
        for one in watched.iter_mut().filter(|one| !one.due.is_empty()) {
            let Some(counted) = counted(&mut wire, &one.question)? else { continue };
            while one.seen < counted {
                let due = one.due.pop_front().context("more was counted than was sent")?;
                micros.push(micros_since(due));
                (one.seen, moved) = (one.seen + 1, Instant::now());
            }
        }
        ensure!(moved.elapsed() < PATIENCE, "events stayed unseen for {PATIENCE:?}");
        std::thread::sleep(PAUSE);
    }
    Ok(Latencies::of(micros))
}

/// Notes what has been published; is it all?
fn take(published: &Receiver<(usize, Instant)>, watched: &mut [Watched]) -> bool {
    loop {
        match published.try_recv() {
            Ok((at, due)) => watched[at].due.push_back(due),
            Err(error) => return error == TryRecvError::Disconnected,
        }
    }
}

/// How many of the watched user's events are counted; `None` while the tenant is being opened.
fn counted(wire: &mut Wire, question: &[u8]) -> anyhow::Result<Option<u64>> {
    let answer = wire.send(question)?;
    if answer.status == 503 {
        return Ok(None);
    }
    let remaining = answer.json()?["remaining"].as_u64().context("a decision without what remains")?;
    // Before the first event another quota is as tight.
    Ok(Some(LIMIT.saturating_sub(remaining)))
}

/// Posts `rate` single events a second, by turns for each tenant, for `took`; how long each took to be counted.
pub(crate) fn over_http(plant: &Plant, tenants: &[Tenant], rate: f64, took: Duration) -> anyhow::Result<Latencies> {
    let began = Instant::now();
    let many = tenants.len() as u32;
    let (done, all) = channel();
    for (at, tenant) in (0..many).zip(tenants) {
        let (address, tenant, done) = (plant.address.clone(), tenant.clone(), done.clone());
        let pace = Pace::share(rate, many, at, began, took);
        std::thread::spawn(move || done.send(post(&address, &tenant, pace)));
    }
    drop(done);
    let mut micros = Vec::new();
    for theirs in all {
        micros.extend(theirs?);
    }
    Ok(Latencies::of(micros))
}

fn post(address: &str, tenant: &Tenant, pace: Pace) -> anyhow::Result<Vec<u32>> {
    let mut wire = Wire::to(address)?;
    let mut micros = Vec::new();
    for due in pace.moments() {
        let event = events::of_user(tenant, USER);
        let answer = wire.send(&request("POST", "/v1/usage/events", &tenant.key, Some(&event)))?;
        ensure!(answer.json()?["accepted"] == 1, "an event was not counted");
        micros.push(micros_since(due));
    }
    Ok(micros)
}
