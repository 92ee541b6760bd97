//! One tenant whose ledger grows: look-ups, reports, pages of the ledger and ingestion at each size.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use platform_api::clock::Clock;
use platform_api::domain::time::MICROS_PER_DAY;
use tokio::time::Instant;

use crate::asker::Question;
use crate::events::{self, Ids, Payload};
use crate::figures::{Grid, Latencies, per_second};
use crate::link::{Link, request};
use crate::plant::{Plant, Setup, StoreKind, Tenant};
use crate::progress::Progress;
use crate::send::Requests;
use crate::{Surroundings, truth};

/// Events that are made and sent at once.
const BLOCK: u64 = 100_000;
const BATCH: u64 = 2_000;
const IN_FLIGHT: u32 = 8;
/// How often a report and a page are asked for.
const TIMES: u64 = 50;
const DECIDING: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Args)]
pub(crate) struct Growth {
    /// Sizes of the ledger, a row for each; filled by ingestion at full rate.
    #[arg(long, value_delimiter = ',', default_value = "100000,1000000,10000000")]
    rows: Vec<u64>,
    #[arg(long, value_enum, default_value_t = StoreKind::Postgres)]
    store: StoreKind,
}

pub(crate) async fn run(growth: &Growth, surroundings: &Surroundings) -> anyhow::Result<()> {
    let mut plant = Plant::start(Setup::of(growth.store), surroundings).await?;
    let outcome = measured(&mut plant, growth).await;
    plant.finish(outcome).await?.print();
    Ok(())
}

async fn measured(plant: &mut Plant, growth: &Growth) -> anyhow::Result<Grid> {
    plant.onboard(1).await?;
    let tenant = plant.tenants.first().context("a tenant")?.clone();
    let mut grid = Grid::new(&[
        "rows",
        "MB",
        "last 100,000 events/s",
        "decision p50 µs",
        "p99 µs",
        "report p50 ms",
        "p99 ms",
        "first page p50 ms",
        "p99 ms",
        "pages on p50 ms",
        "p99 ms",
    ]);
    let mut sent = 0;
    for rows in &growth.rows {
        let rate = fill(plant, &tenant, &mut sent, *rows).await?;
        eprintln!("{}", truth::verify(plant, sent).await?);
        grid.row(row(plant, &tenant, sent, rate).await?);
    }
    Ok(grid)
}

/// Sends until there are `rows`; how fast the last block was counted.
async fn fill(plant: &Plant, tenant: &Tenant, sent: &mut u64, rows: u64) -> anyhow::Result<f64> {
    let mut progress = Progress::of(format!("filling to {rows}"), rows);
    let mut rate = 0.0;
    while *sent < rows {
        let count = BLOCK.min(rows - *sent);
        let block = events::make(Payload::Compact, Ids::V7, std::slice::from_ref(tenant), count)?;
        let requests = Requests::of(plant, Payload::Compact, &block, BATCH);
        let began = Instant::now();
        requests.post(plant, IN_FLIGHT).await?;
        rate = per_second(count, began.elapsed());
        *sent += count;
        progress.at(*sent);
    }
    Ok(rate)
}

async fn row(plant: &Plant, tenant: &Tenant, rows: u64, rate: f64) -> anyhow::Result<Vec<String>> {
    let base = format!("/v1/tenants/{}/usage", tenant.id);
    let decisions = decisions(plant, tenant).await?;
    let now = Clock::system().now();
    let (from, to) = (now.plus_micros(-MICROS_PER_DAY), now.plus_micros(MICROS_PER_DAY));
    let report = format!("{base}?from={from}&to={to}&granularity=hour&groupBy=model,group");
    let reports = repeated(plant, tenant, |_| report.clone()).await?;
    let page = format!("{base}/events?limit=100");
    let first = repeated(plant, tenant, |_| page.clone()).await?;
    let further = repeated(plant, tenant, |next| match next {
        Some(cursor) => format!("{page}&cursor={cursor}"),
        None => page.clone(),
    });
    let further = further.await?;
    let millis = |latencies: &Latencies, share| format!("{:.2}", f64::from(latencies.at(share)) / 1e3);
    let mut cells = vec![rows.to_string(), megabytes(plant, tenant).await?, format!("{rate:.0}")];
    cells.extend([0.5, 0.99].map(|share| decisions.at(share).to_string()));
    for latencies in [&reports, &first, &further] {
        cells.extend([0.5, 0.99].map(|share| millis(latencies, share)));
    }
    Ok(cells)
}

/// One connection asks again and again.
async fn decisions(plant: &Plant, tenant: &Tenant) -> anyhow::Result<Latencies> {
    let path = format!("/v1/quotas/{}/decision?userId=user-1&model=gpt-4o", tenant.id);
    let question = Question {
        address: plant.address.clone(),
        request: Arc::new(request("GET", &path, &tenant.key, None)),
        connections: 1,
        rate: None,
        took: DECIDING,
    };
    Ok(tokio::task::spawn_blocking(move || question.ask()).await??.latencies)
}

/// Asks for what `path` makes of the last answer's cursor.
async fn repeated(plant: &Plant, tenant: &Tenant, path: impl Fn(Option<&str>) -> String) -> anyhow::Result<Latencies> {
    let mut link = Link::to(&plant.address).await?;
    let (mut micros, mut cursor) = (Vec::new(), None::<String>);
    for _ in 0..TIMES {
        let question = request("GET", &path(cursor.as_deref()), &tenant.key, None);
        let began = Instant::now();
        let answer = link.send(&question).await?;
        micros.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
        cursor = answer.json()?["nextCursor"].as_str().map(str::to_owned);
    }
    Ok(Latencies::of(micros))
}

/// How large the tenant's database is.
async fn megabytes(plant: &Plant, tenant: &Tenant) -> anyhow::Result<String> {
    let place = plant.ledger_database(tenant);
    let bytes = match plant.store {
        StoreKind::Sqlite => std::fs::metadata(&place)?.len() as i64,
        StoreKind::Postgres => plant.ask(&place, "SELECT pg_database_size(current_database())").await?,
    };
    Ok(format!("{}", bytes / 1_000_000))
}
