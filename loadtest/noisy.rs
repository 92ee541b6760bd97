//! Quiet tenants beside one that sends a hundred times as much, against the same tenants alone.

use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::figures::{Grid, Latencies, per_second};
use crate::plant::{Plant, Setup, StoreKind, Tenant};
use crate::steady::Steady;
use crate::{Surroundings, truth, watch};

#[derive(Debug, Clone, Args)]
pub(crate) struct Noisy {
    /// How events come; both, a pair of rows for each.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "nats,http")]
    via: Vec<Via>,
    #[arg(long, value_enum, default_value_t = StoreKind::Postgres)]
    store: StoreKind,
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=55))]
    quiet: u32,
    /// Events a second of each quiet tenant.
    #[arg(long, default_value_t = 5.0)]
    rate: f64,
    /// How many times as much the noisy one sends.
    #[arg(long, default_value_t = 100.0)]
    times: f64,
    /// Seconds of each row.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=300))]
    seconds: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Via {
    Nats,
    Http,
}

pub(crate) async fn run(noisy: &Noisy, surroundings: &Surroundings) -> anyhow::Result<()> {
    let mut plant = Plant::start(Setup { nats: true, ..Setup::of(noisy.store) }, surroundings).await?;
    let outcome = measured(&mut plant, noisy).await;
    plant.finish(outcome).await?.print();
    Ok(())
}

async fn measured(plant: &mut Plant, noisy: &Noisy) -> anyhow::Result<Grid> {
    plant.onboard(noisy.quiet + 1).await?;
    let (loud, quiet) = plant.tenants.split_first().context("tenants")?;
    for tenant in quiet {
        watch::prepare(plant, tenant, Vec::new()).await?;
    }
    let mut grid = Grid::new(&[
        "via",
        "quiet events/s",
        "noisy events/s",
        "counted",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
        "p99 / alone",
    ]);
    let mut sent = 0;
    for via in &noisy.via {
        let mut alone = None;
        for times in [0.0, noisy.times] {
            eprintln!("{via:?}, noisy times {times}");
            let (latencies, beside) = phase(plant, quiet, loud, *via, noisy, times).await?;
            sent += latencies.count() + beside;
            let p99 = f64::from(latencies.at(0.99));
            let cells = row(*via, noisy, &latencies, beside, p99 / *alone.get_or_insert(p99));
            grid.row(cells);
        }
    }
    truth::committed(plant, sent, tokio::time::Instant::now()).await?;
    eprintln!("{}", truth::verify(plant, sent).await?);
    Ok(grid)
}

/// The quiet tenants' latencies, and how many events the noisy one sent.
async fn phase(
    plant: &Plant,
    quiet: &[Tenant],
    loud: &Tenant,
    via: Via,
    noisy: &Noisy,
    times: f64,
) -> anyhow::Result<(Latencies, u64)> {
    let took = Duration::from_secs(noisy.seconds);
    let (all, much) = (noisy.rate * quiet.len() as f64, noisy.rate * times);
    let beside = match via {
        _ if times == 0.0 => None,
        Via::Nats => Some(Steady::publish(plant, loud, much, took)?),
        Via::Http => Some(Steady::post(plant, loud, much, took)?),
    };
    let latencies = match via {
        Via::Nats => watch::over_the_stream(plant, quiet, all, took).await?,
        Via::Http => tokio::task::block_in_place(|| watch::over_http(plant, quiet, all, took))?,
    };
    Ok((latencies, beside.map(Steady::end).transpose()?.unwrap_or(0)))
}

fn row(via: Via, noisy: &Noisy, latencies: &Latencies, beside: u64, ratio: f64) -> Vec<String> {
    let took = Duration::from_secs(noisy.seconds);
    let mut cells = vec![
        format!("{via:?}").to_lowercase(),
        format!("{:.0}", per_second(latencies.count(), took)),
        format!("{:.0}", per_second(beside, took)),
        latencies.count().to_string(),
    ];
    cells.extend([0.5, 0.99, 0.999, 1.0].map(|share| format!("{:.2}", f64::from(latencies.at(share)) / 1e3)));
    cells.push(format!("{ratio:.2}"));
    cells
}
