//! What tenants cost: memory and time of those that rest, of those that are open, of onboarding one and of starting with
//! all of them; and what an event costs among many.
//!
//! Tenants that rest are rows of the catalogue: they are written in bulk, each with a key and an external id, and have no
//! database, which nothing asks for while they rest. The open ones are onboarded through the API like any other.

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use tokio::time::Instant;

use crate::events::{self, Ids, Payload};
use crate::figures::{Grid, Latencies};
use crate::link::{Link, request};
use crate::plant::{Plant, Setup, StoreKind};
use crate::profile::Profile;
use crate::send::Requests;
use crate::{Surroundings, truth};

/// Events by which the cost of one is measured, for ten tenants.
const EVENTS: u64 = 100_000;
const BATCH: u64 = 500;
/// How long memory may settle.
const SETTLING: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Args)]
pub(crate) struct Tenants {
    /// Tenants that rest, a row for each number.
    #[arg(long, value_delimiter = ',', default_value = "0,10000,100000", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    registered: Vec<u32>,
    /// Tenants that are onboarded and opened besides.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(10..=5_000))]
    open: u32,
    #[arg(long, value_enum, default_value_t = StoreKind::Sqlite)]
    store: StoreKind,
}

pub(crate) async fn run(tenants: &Tenants, surroundings: &Surroundings) -> anyhow::Result<()> {
    let mut grid = Grid::new(&[
        "resting",
        "start ms",
        "RSS MB",
        "bytes each",
        "open",
        "KB each",
        "onboarding p50 ms",
        "p99 ms",
        "CPU µs/event",
    ]);
    let mut alone = None;
    for registered in &tenants.registered {
        let mut plant =
            Plant::start(Setup { open_max: tenants.open + 1, ..Setup::of(tenants.store) }, surroundings).await?;
        let outcome = measured(&mut plant, tenants, *registered, &mut alone).await;
        grid.row(plant.finish(outcome).await?);
    }
    grid.print();
    Ok(())
}

/// `alone` is the memory of a daemon without resting tenants, once a row has measured it.
async fn measured(
    plant: &mut Plant,
    tenants: &Tenants,
    registered: u32,
    alone: &mut Option<f64>,
) -> anyhow::Result<Vec<String>> {
    let mut onboarding = Vec::new();
    for _ in 0..tenants.open {
        let began = Instant::now();
        plant.onboard(1).await?;
        onboarding.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
    let onboarding = Latencies::of(onboarding);

    plant.halt().await?;
    register(plant, registered).await?;
    let began = Instant::now();
    plant.launch().await?;
    let start = began.elapsed();
    tokio::time::sleep(SETTLING).await;
    let before = plant.resident()?;
    open(plant).await?;
    tokio::time::sleep(SETTLING).await;
    let opened = (plant.resident()? - before) / f64::from(tenants.open);
    let cost = cost(plant).await?;

    // What starting took is given back by now; the same tenants are open and have done the same in every row.
    tokio::time::sleep(SETTLING).await;
    let whole = plant.resident()?;
    let dash = || "-".to_owned();
    let (each, opened) = match registered {
        0 => {
            *alone = Some(whole);
            (dash(), format!("{:.0}", opened / 1e3))
        }
        _ => (alone.map_or_else(dash, |alone| format!("{:.0}", (whole - alone) / f64::from(registered))), dash()),
    };
    Ok(vec![
        registered.to_string(),
        start.as_millis().to_string(),
        format!("{:.1}", whole / 1e6),
        each,
        tenants.open.to_string(),
        opened,
        format!("{:.1}", f64::from(onboarding.at(0.5)) / 1e3),
        format!("{:.1}", f64::from(onboarding.at(0.99)) / 1e3),
        cost,
    ])
}

/// Asks each tenant for something.
async fn open(plant: &Plant) -> anyhow::Result<()> {
    let mut link = Link::to(&plant.address).await?;
    for tenant in &plant.tenants {
        let question = request("GET", &format!("/v1/quotas/{}", tenant.id), &tenant.key, None);
        while link.send(&question).await?.status == 503 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Ok(())
}

/// CPU of an event that is for one of ten tenants.
async fn cost(plant: &mut Plant) -> anyhow::Result<String> {
    let all = plant.tenants.clone();
    plant.tenants.truncate(10);
    let made = events::make(Payload::Compact, Ids::V7, &plant.tenants, EVENTS)?;
    let requests = Requests::of(plant, Payload::Compact, &made, BATCH);
    let profile = Profile::start(plant, false).await?;
    requests.post(plant, 8).await?;
    let spent = profile.end(plant).await?;
    plant.tenants = all;
    eprintln!("{}", truth::verify(plant, EVENTS).await?);
    Ok(spent.cpu_each(EVENTS))
}

/// Writes `count` resting tenants into the catalogue, past the daemon.
async fn register(plant: &Plant, count: u32) -> anyhow::Result<()> {
    if count == 0 {
        return Ok(());
    }
    let (series, hex, hash) = match plant.store {
        StoreKind::Postgres => (
            format!("series AS (SELECT i FROM generate_series(1, {count}) AS i)"),
            "lpad(to_hex(i), 12, '0')",
            "decode(repeat('00', 32), 'hex')",
        ),
        StoreKind::Sqlite => (
            format!("RECURSIVE series(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM series WHERE i < {count})"),
            "printf('%012x', i)",
            "zeroblob(32)",
        ),
    };
    let id = format!("'00000000-0000-7000-8000-' || {hex}");
    let into = [
        format!(
            "tenant (id, name, slug, tier, time_zone, lifecycle, settings, created_at, updated_at, head_seq,
             head_hash, awake) WITH {series} SELECT {id}, 'Resting ' || i, 'resting-' || i, 'standard', 'UTC',
             'active', '{{}}', 0, 0, 0, {hash}, 0 FROM series"
        ),
        format!(
            "external_id (source, kind, id, tenant_id) WITH {series}
             SELECT 'litellm', 'team', 'resting-' || i, {id} FROM series"
        ),
        format!(
            "api_key (id, tenant_id, name, role, hash, created_at, revoked_at) WITH {series}
             SELECT {hex}, {id}, 'admin', 'admin', {hash}, 0, 0 FROM series"
        ),
    ];
    for rows in into {
        let sql = AssertSqlSafe(format!("INSERT INTO {rows}"));
        match plant.store {
            StoreKind::Postgres => {
                let mut catalogue = PgConnection::connect(&plant.database_url(&plant.word)).await?;
                sqlx::raw_sql(sql).execute(&mut catalogue).await.context("registering")?;
            }
            StoreKind::Sqlite => {
                let file = plant.data().join("control.db");
                let mut catalogue = SqliteConnectOptions::new().filename(file).connect().await?;
                sqlx::raw_sql(sql).execute(&mut catalogue).await.context("registering")?;
                catalogue.close().await?;
            }
        }
    }
    Ok(())
}
