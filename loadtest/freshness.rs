//! How old an answer is under load: from publishing an event to a look-up that shows it, and from the event that crosses
//! a threshold to its alert at a receiver.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::figures::{Grid, Latencies, per_second};
use crate::pace::Pace;
use crate::plant::{Plant, Setup, StoreKind, Tenant};
use crate::steady::Steady;
use crate::{Surroundings, events, send, served, truth, watch};

/// Single events a second that are watched.
const WATCHED_PER_SECOND: f64 = 100.0;
/// Thresholds that are crossed in each step.
const ALERTS: usize = 200;
/// Events by which saturation is found.
const SATURATING: u64 = 200_000;
/// How long an alert may take.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Args)]
pub(crate) struct Freshness {
    /// Events a second beside, a row for each; `half` of what this run finds to be the most.
    #[arg(long, value_delimiter = ',', default_value = "100,5000,20000,half")]
    loads: Vec<Load>,
    /// Seconds of each row.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=300))]
    seconds: u64,
    #[arg(long, value_enum, default_value_t = StoreKind::Postgres)]
    store: StoreKind,
}

#[derive(Debug, Clone, Copy)]
enum Load {
    Rate(f64),
    Half,
}

impl std::str::FromStr for Load {
    type Err = String;

    fn from_str(text: &str) -> Result<Load, String> {
        match (text, text.parse::<f64>()) {
            ("half", _) => Ok(Load::Half),
            (_, Ok(rate)) if (1.0..=1e6).contains(&rate) => Ok(Load::Rate(rate)),
            _ => Err("neither `half` nor a number of events a second".into()),
        }
    }
}

/// When each user's alert came.
type Arrivals = Arc<Mutex<HashMap<usize, Instant>>>;

pub(crate) async fn run(freshness: &Freshness, surroundings: &Surroundings) -> anyhow::Result<()> {
    let arrivals = Arrivals::default();
    let noted = arrivals.clone();
    let receiver = served::each(move |body| {
        note(&noted, body);
        "{}".into()
    });
    let toml = format!(
        "[[notify.channels]]\ntype = \"webhook\"\nname = \"receiver\"\nurl = \"http://{}/alerts\"\n\
         secret = \"whsec_bG9hZHRlc3QtbG9hZHRlc3QtbG9hZHRlc3QtMzI=\"\nallow_private_addresses = true\n",
        receiver.await?
    );
    let mut plant = Plant::start(Setup { nats: true, toml, ..Setup::of(freshness.store) }, surroundings).await?;
    let outcome = measured(&mut plant, freshness, &arrivals).await;
    plant.finish(outcome).await?.print();
    Ok(())
}

async fn measured(plant: &mut Plant, freshness: &Freshness, arrivals: &Arrivals) -> anyhow::Result<Grid> {
    let mut grid = Grid::new(&[
        "events/s beside",
        "watched",
        "visible p50 ms",
        "p99 ms",
        "p99.9 ms",
        "alerts",
        "received p50 ms",
        "p99 ms",
        "p99.9 ms",
    ]);
    let took = Duration::from_secs(freshness.seconds);
    let mut sent = 0;
    let mut most = None;
    for load in &freshness.loads {
        let rate = match load {
            Load::Rate(rate) => *rate,
            Load::Half => {
                if most.is_none() {
                    (most, sent) = (Some(saturation(plant, sent).await?), sent + SATURATING);
                }
                most.unwrap_or(0.0) / 2.0
            }
        };
        plant.onboard(1).await?;
        let tenant = plant.tenants.last().context("a tenant")?.clone();
        sent += step(plant, &tenant, rate, took, arrivals, &mut grid).await?;
        truth::committed(plant, sent, tokio::time::Instant::now()).await?;
        eprintln!("{}", truth::verify(plant, sent).await?);
    }
    Ok(grid)
}

/// The most events a second over the stream, with a tenant of its own.
async fn saturation(plant: &mut Plant, sent: u64) -> anyhow::Result<f64> {
    plant.onboard(1).await?;
    let tenant = plant.tenants.last().context("a tenant")?.clone();
    let made = events::make(events::Payload::Compact, events::Ids::V7, std::slice::from_ref(&tenant), SATURATING)?;
    let subject = format!("{}.{}", plant.subject(), tenant.id);
    let began = tokio::time::Instant::now();
    send::publish_to(plant, &made, &[subject], 8).await?;
    let took = truth::committed(plant, sent + SATURATING, began).await?;
    Ok(per_second(SATURATING, took))
}

/// One row; how many events were sent.
async fn step(
    plant: &Plant,
    tenant: &Tenant,
    rate: f64,
    took: Duration,
    arrivals: &Arrivals,
    grid: &mut Grid,
) -> anyhow::Result<u64> {
    let crossed = (0..ALERTS).map(|user| {
        json!({"scope": {"type": "user", "id": name(user)}, "metric": "requests", "period": "total", "limit": 1,
            "thresholds": [100], "enforcement": "alert"})
    });
    watch::prepare(plant, tenant, crossed.collect()).await?;
    arrivals.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let beside = Steady::publish(plant, tenant, rate, took)?;
    let crossing = cross(plant, tenant, took);
    let one = std::slice::from_ref(tenant);
    let (visible, due) = tokio::join!(watch::over_the_stream(plant, one, WATCHED_PER_SECOND, took), crossing);
    let (visible, due) = (visible?, due?);
    let sent = beside.end()?;
    let received = received(arrivals, &due).await?;
    let millis = |latencies: &Latencies, share| format!("{:.2}", f64::from(latencies.at(share)) / 1e3);
    let mut cells = vec![format!("{:.0}", per_second(sent, took)), visible.count().to_string()];
    cells.extend([0.5, 0.99, 0.999].map(|share| millis(&visible, share)));
    cells.push(received.count().to_string());
    cells.extend([0.5, 0.99, 0.999].map(|share| millis(&received, share)));
    grid.row(cells);
    Ok(sent + visible.count() + due.len() as u64)
}

/// Publishes the events that cross, evenly over `took`; when each was due.
async fn cross(plant: &Plant, tenant: &Tenant, took: Duration) -> anyhow::Result<Vec<Instant>> {
    let client = async_nats::connect(&plant.surroundings.nats).await.context("connecting to NATS")?;
    let (tenant, subject) = (tenant.clone(), format!("{}.{}", plant.subject(), tenant.id));
    let runtime = tokio::runtime::Handle::current();
    let crossing = tokio::task::spawn_blocking(move || {
        let pace = Pace::share(ALERTS as f64 / took.as_secs_f64(), 1, 0, Instant::now(), took);
        let mut moments = Vec::new();
        for (user, due) in (0..ALERTS).zip(pace.moments()) {
            runtime.block_on(client.publish(subject.clone(), events::of_user(&tenant, &name(user))))?;
            moments.push(due);
        }
        runtime.block_on(client.flush())?;
        anyhow::Ok(moments)
    });
    crossing.await?
}

/// Waits for every alert; how long each took.
async fn received(arrivals: &Arrivals, due: &[Instant]) -> anyhow::Result<Latencies> {
    let began = Instant::now();
    loop {
        let came = arrivals.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if came.len() >= due.len() {
            let took = due.iter().enumerate().filter_map(|(user, due)| Some(came.get(&user)?.duration_since(*due)));
            return Ok(Latencies::of(took.map(|took| u32::try_from(took.as_micros()).unwrap_or(u32::MAX)).collect()));
        }
        ensure!(began.elapsed() < PATIENCE, "{} of {} alerts came", came.len(), due.len());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn name(user: usize) -> String {
    format!("crossing-{user}")
}

/// Notes whose alert this is; the first delivery counts.
fn note(arrivals: &Arrivals, body: &str) {
    let now = Instant::now();
    let told: Value = serde_json::from_str(body).unwrap_or_default();
    let user = told["data"]["quota"]["scope"]["id"].as_str().and_then(|id| id.strip_prefix("crossing-"));
    if let Some(user) = user.and_then(|user| user.parse().ok()) {
        arrivals.lock().unwrap_or_else(PoisonError::into_inner).entry(user).or_insert(now);
    }
}
