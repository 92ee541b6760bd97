//! What must hold after every run: sent = quotas' usage = rows of the ledgers = rollups, for events and tokens, and every
//! chain holds.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::events::TOKENS;
use crate::link::{Link, request};
use crate::plant::{Plant, Tenant};
use crate::progress::Progress;
use crate::yardstick::Ledger;

/// How long nothing may be committed before the run is given up.
const STALL: Duration = Duration::from_secs(60);
/// How often the daemon is asked how far it is: rarely enough to cost nothing.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Waits until the daemon has committed `events` since its start; how long that took since `began`.
pub(crate) async fn committed(plant: &Plant, events: u64, began: Instant) -> anyhow::Result<Duration> {
    let mut progress = Progress::of("counting", events);
    let (mut best, mut moved) = (0, Instant::now());
    loop {
        let counted = Metrics::of(plant).await?.sum("platform_api_commit_events_sum") as u64;
        if counted >= events {
            return Ok(began.elapsed());
        }
        if counted > best {
            (best, moved) = (counted, Instant::now());
        }
        progress.at(counted);
        ensure!(moved.elapsed() < STALL, "nothing was committed for {STALL:?} after {counted} of {events}");
        sleep(LOOK_EVERY).await;
    }
}

/// Fails unless every one of `sent` events, all of which have the usual tokens, was counted once in all books.
pub(crate) async fn verify(plant: &Plant, sent: u64) -> anyhow::Result<String> {
    let mut link = Link::to(&plant.address).await?;
    let mut progress = Progress::of("verifying", plant.tenants.len() as u64);
    let mut sums = [(0, 0); 3];
    for (at, tenant) in plant.tenants.iter().enumerate() {
        for (sum, (events, tokens)) in sums.iter_mut().zip(books(plant, tenant, &mut link).await?) {
            *sum = (sum.0 + events, sum.1 + tokens);
        }
        progress.at(at as u64);
    }
    let expected = (sent as i64, sent as i64 * TOKENS);
    let [quotas, ledgers, rollups] = sums;
    ensure!(
        sums.iter().all(|sum| *sum == expected),
        "{expected:?} events and tokens were sent; quotas say {quotas:?}, ledgers {ledgers:?}, rollups {rollups:?}"
    );
    let chains = plant.tenants.len();
    Ok(format!("exact: sent = quotas = ledgers = rollups = {sent} events; {chains} chains hold"))
}

/// Events and tokens of one tenant: by its quotas, its ledger and its rollups.
async fn books(plant: &Plant, tenant: &Tenant, link: &mut Link) -> anyhow::Result<[(i64, i64); 3]> {
    let quotas = patient(link, &format!("/v1/quotas/{}", tenant.id), tenant).await?;
    let used = |at: usize| quotas["quotas"][at]["used"].as_i64().with_context(|| format!("no usage in {quotas}"));
    let verdict = patient(link, "/v1/audit/verify", tenant).await?;
    ensure!(verdict["holds"] == true, "a chain does not hold: {verdict}");
    let mut ledger = Ledger::open(plant, tenant).await?;
    Ok([(used(0)?, used(1)?), ledger.rows().await?, ledger.rollups().await?])
}

/// Asks again while the tenant is being opened.
async fn patient(link: &mut Link, path: &str, tenant: &Tenant) -> anyhow::Result<Value> {
    let (question, began) = (request("GET", path, &tenant.key, None), Instant::now());
    loop {
        let answer = link.send(&question).await?;
        if answer.status != 503 || began.elapsed() > STALL {
            return answer.json().with_context(|| path.to_owned());
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The daemon's own metrics at one moment.
pub(crate) struct Metrics(String);

impl Metrics {
    pub(crate) async fn of(plant: &Plant) -> anyhow::Result<Metrics> {
        let mut link = Link::to(&plant.address).await?;
        let question = request("GET", "/metrics", "", None);
        let answer = tokio::time::timeout(STALL, link.send(&question)).await??;
        Ok(Metrics(String::from_utf8_lossy(answer.body).into_owned()))
    }

    /// The sum over all series that begin with `name`.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        let lines = self.0.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}
