//! Events from the sender to the commit, counted exactly, and the yardsticks beside it.

use std::time::Duration;

use anyhow::ensure;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use tokio::time::Instant;

use crate::Surroundings;
use crate::events::{self, Ids, Payload};
use crate::figures::{Grid, per_second};
use crate::plant::{BATCH_EVENTS_MAX, Plant, Setup, StoreKind};
use crate::profile::{Profile, Spent};
use crate::send::{self, Requests};
use crate::{truth, yardstick};

/// Open SQLite tenants cost little; Postgres has 100 connections as a rule.
const OPEN_MAX_SQLITE: u32 = 1_000;
/// Plain SQL takes a connection for each tenant.
const YARDSTICK_TENANTS_MAX: u32 = 50;
/// What TigerBeetle has published for a machine of this size: transfers a second by transfers in one request.
const TIGERBEETLE: [(u64, f64); 3] = [(8_189, 129_915.0), (1_000, 100_059.0), (100, 13_832.0)];

#[derive(Debug, Clone, Args)]
pub(crate) struct Ingest {
    #[arg(long, value_enum, default_value_t = Via::Nats)]
    via: Via,
    #[arg(long, value_enum, default_value_t = StoreKind::Postgres)]
    store: StoreKind,
    /// Tenants that the events are for, by turns; several numbers make a sweep, a row for each.
    #[arg(long, visible_alias = "sweep", value_delimiter = ',', default_value = "1",
          value_parser = clap::value_parser!(u32).range(1..=1_000))]
    tenants: Vec<u32>,
    /// Events of each row.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..=5_000_000))]
    events: u64,
    #[arg(long, value_enum, default_value_t = Payload::Compact)]
    payload: Payload,
    /// UUIDv7 event ids (in the order of time) or UUIDv4 (random). LiteLLM's ids begin with their time either way.
    #[arg(long, value_enum, default_value_t = Ids::V7)]
    ids: Ids,
    /// Events of one HTTP request; several numbers make a sweep.
    #[arg(long, value_delimiter = ',', default_value = "500",
          value_parser = clap::value_parser!(u64).range(1..=BATCH_EVENTS_MAX))]
    batch: Vec<u64>,
    /// HTTP requests, or thousands of unacknowledged publishes, under way at once.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    in_flight: u32,
    /// Publish everything while the daemon is down, then time how it works the backlog off (NATS only).
    #[arg(long)]
    backlog: bool,
    /// Count system calls with strace, which slows the daemon down: rates are then not comparable.
    #[arg(long)]
    profile: bool,
    /// Leave the yardsticks out.
    #[arg(long)]
    alone: bool,
    /// `tenants.open_max` of the daemon; 60 on Postgres and 1,000 on SQLite if unset. On Postgres each is a connection.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=2_000))]
    open_max: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Via {
    Nats,
    Http,
}

/// One row of a sweep.
#[derive(Debug, Clone, Copy)]
struct Step {
    tenants: u32,
    batch: u64,
}

pub(crate) async fn run(ingest: &Ingest, surroundings: &Surroundings) -> anyhow::Result<()> {
    ensure!(!ingest.backlog || ingest.via == Via::Nats, "only a stream keeps a backlog");
    eprintln!("{ingest:?}");
    let mut grid = Grid::new(&[
        "tenants",
        "batch",
        "events/s",
        "took s",
        "limit",
        "commits",
        "events each",
        "ms each",
        "B written/event",
        "CPU µs/event",
        "syscalls/1000",
        "fsyncs",
        "% of SQL",
        "% of drain (groups)",
        "% of TigerBeetle",
    ]);
    // A stream's reader chooses its own batches.
    let batches = if ingest.via == Via::Http { ingest.batch.as_slice() } else { &[0] };
    for tenants in &ingest.tenants {
        for batch in batches {
            grid.row(step(ingest, Step { tenants: *tenants, batch: *batch }, surroundings).await?);
        }
    }
    grid.print();
    Ok(())
}

/// A daemon of its own for each row, so that no row has the books of another.
async fn step(ingest: &Ingest, step: Step, surroundings: &Surroundings) -> anyhow::Result<Vec<String>> {
    let mut setup = Setup { nats: ingest.via == Via::Nats, ..Setup::of(ingest.store) };
    if ingest.store == StoreKind::Sqlite {
        setup.open_max = OPEN_MAX_SQLITE;
    }
    setup.open_max = ingest.open_max.unwrap_or(setup.open_max);
    let mut plant = Plant::start(setup, surroundings).await?;
    let outcome = measured(&mut plant, ingest, step).await;
    plant.finish(outcome).await
}

async fn measured(plant: &mut Plant, ingest: &Ingest, step: Step) -> anyhow::Result<Vec<String>> {
    plant.onboard(step.tenants).await?;
    let events = events::make(ingest.payload, ingest.ids, &plant.tenants, ingest.events)?;
    eprintln!("{} events of {} bytes", ingest.events, events::mean_bytes(&events)?);
    if ingest.store == StoreKind::Postgres {
        plant.administer("CHECKPOINT").await?;
    }
    let (took, spent) = count(plant, ingest, step, &events).await?;
    eprintln!("{}", truth::verify(plant, ingest.events).await?);
    let alone = ingest.alone || step.tenants > YARDSTICK_TENANTS_MAX;
    let yardsticks = if alone { Yardsticks::default() } else { Yardsticks::measure(plant, ingest).await? };
    Ok(row(ingest, step, took, &spent, &yardsticks))
}

/// Sends everything; how long that took to the last commit, and what it cost.
async fn count(plant: &mut Plant, ingest: &Ingest, step: Step, events: &[Bytes]) -> anyhow::Result<(Duration, Spent)> {
    if ingest.backlog {
        plant.halt().await?;
        send::publish(plant, events, ingest.in_flight).await?;
        let began = Instant::now();
        plant.launch().await?;
        let profile = Profile::start(plant, ingest.profile).await?;
        let took = truth::committed(plant, ingest.events, began).await?;
        return Ok((took, profile.end(plant).await?));
    }
    let requests = (ingest.via == Via::Http).then(|| Requests::of(plant, ingest.payload, events, step.batch));
    let profile = Profile::start(plant, ingest.profile).await?;
    let began = Instant::now();
    match requests {
        Some(requests) => requests.post(plant, ingest.in_flight).await?,
        None => send::publish(plant, events, ingest.in_flight).await?,
    }
    let took = truth::committed(plant, ingest.events, began).await?;
    Ok((took, profile.end(plant).await?))
}

/// What the same rows and messages take without the daemon.
#[derive(Default)]
struct Yardsticks {
    sql: Option<Duration>,
    drain: Option<Duration>,
    drain_in_groups: Option<Duration>,
}

impl Yardsticks {
    async fn measure(plant: &Plant, ingest: &Ingest) -> anyhow::Result<Yardsticks> {
        eprintln!("measuring plain SQL with the same rows and keys");
        let sql = match ingest.store {
            StoreKind::Postgres => yardstick::copy(plant).await?,
            StoreKind::Sqlite => yardstick::insert(plant).await?,
        };
        let mut yardsticks = Yardsticks { sql: Some(sql), ..Yardsticks::default() };
        if ingest.via == Via::Nats {
            eprintln!("measuring bare consumers");
            yardsticks.drain = Some(yardstick::drain(plant, ingest.events, false).await?);
            yardsticks.drain_in_groups = Some(yardstick::drain(plant, ingest.events, true).await?);
        }
        Ok(yardsticks)
    }
}

fn row(ingest: &Ingest, step: Step, took: Duration, spent: &Spent, yardsticks: &Yardsticks) -> Vec<String> {
    let rate = per_second(ingest.events, took);
    let of = |other: Option<Duration>| {
        other.map_or("-".into(), |other| format!("{:.0}", other.as_secs_f64() / took.as_secs_f64() * 100.0))
    };
    let published = TIGERBEETLE.iter().find(|(batch, _)| *batch == step.batch);
    let syscall = |read: fn(crate::profile::Syscalls) -> f64| {
        spent.syscalls.map_or("-".into(), |counted| format!("{:.0}", read(counted)))
    };
    let thousands = ingest.events as f64 / 1_000.0;
    vec![
        step.tenants.to_string(),
        if step.batch == 0 { "-".into() } else { step.batch.to_string() },
        format!("{rate:.0}"),
        format!("{:.2}", took.as_secs_f64()),
        spent.limit(took),
        format!("{:.0}", spent.commits),
        format!("{:.0}", spent.events / spent.commits.max(1.0)),
        format!("{:.1}", spent.commit_ms),
        format!("{:.0}", spent.written_bytes / ingest.events as f64),
        spent.cpu_each(ingest.events),
        spent.syscalls.map_or("-".into(), |counted| format!("{:.0}", counted.all as f64 / thousands)),
        syscall(|counted| counted.fsyncs as f64),
        of(yardsticks.sql),
        format!("{} ({})", of(yardsticks.drain), of(yardsticks.drain_in_groups)),
        published.map_or("-".into(), |(_, theirs)| format!("{:.0}", rate / theirs * 100.0)),
    ]
}
