//! Load and comparison runs against the real binary, on this machine alone.
//!
//! Each run starts its own `platform-api serve` with its own data, databases and stream, sends it what it was told to,
//! checks that every event was counted exactly once, measures its yardsticks (plain SQL, a bare JetStream consumer,
//! nginx, itself alone) in the same minutes, and ends everything it started. Progress goes to stderr, the table to
//! stdout.

#![allow(clippy::disallowed_methods, reason = "what measures reads the clock")]

mod asker;
mod authorize;
mod cpu;
mod decide;
mod events;
mod figures;
mod flood;
mod freshness;
mod growth;
mod ingest;
mod issuer;
mod limiter;
mod link;
mod nginx;
mod noisy;
mod organization;
mod pace;
mod parse;
mod plant;
mod profile;
mod progress;
mod reconcile;
mod send;
mod served;
mod steady;
mod tenants;
mod truth;
mod watch;
mod yardstick;

use std::fmt;

use clap::{Args, Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "Load and comparison runs against platform-api", version)]
struct Command {
    #[command(subcommand)]
    run: Run,
    #[command(flatten)]
    surroundings: Surroundings,
}

#[derive(Debug, Subcommand)]
enum Run {
    /// Counts events end to end, against plain SQL and a bare JetStream consumer.
    Ingest(ingest::Ingest),
    /// Asks for decisions over kept-alive connections, against nginx with a static answer of the same size.
    Decide(decide::Decide),
    /// Reads bodies, against a general reader of JSON and a mere look at every byte. Needs no daemon.
    Parse(parse::Parse),
    /// How old an answer is: from publishing to visible in a look-up, and from a crossed threshold to its alert.
    Freshness(freshness::Freshness),
    /// What tenants cost: memory, onboarding, the cold start, and an event among many tenants against few.
    Tenants(tenants::Tenants),
    /// Quiet tenants beside one that floods, against themselves alone.
    Noisy(noisy::Noisy),
    /// Look-ups, reports and ingestion as a tenant's ledger grows.
    Growth(growth::Growth),
    /// What the proof costs: looking at the limiter's counters, readings, comparisons. Needs no daemon, but a Redis binary.
    Reconcile(reconcile::Reconcile),
    /// A tenant with very many people: opening it, its memory, and look-ups, against plain SQL.
    Organization(organization::People),
    /// Decides by a tenant's policies, as kept and by plain Casbin. Needs no daemon.
    Authorize(authorize::Authorize),
}

/// Where things are.
#[derive(Debug, Clone, Args)]
struct Surroundings {
    /// The daemon's binary; the one beside this one by default.
    #[arg(long, global = true)]
    binary: Option<std::path::PathBuf>,
    /// An administrator's URL of a Postgres server.
    #[arg(
        long,
        global = true,
        env = "TEST_POSTGRES_URL",
        default_value = "postgres://postgres@127.0.0.1:5432/postgres"
    )]
    postgres: String,
    #[arg(long, global = true, env = "TEST_NATS_URL", default_value = "nats://127.0.0.1:4222")]
    nats: String,
}

/// How many a second; `None` for as many as there can be.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rate(Option<f64>);

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        match text {
            "max" => Ok(Rate(None)),
            _ => match text.parse::<f64>() {
                Ok(rate) if rate > 0.0 && rate <= 1e6 => Ok(Rate(Some(rate))),
                _ => Err("neither `max` nor a number a second".into()),
            },
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(rate) => write!(formatter, "{rate}/s"),
            None => formatter.write_str("max"),
        }
    }
}

fn main() -> anyhow::Result<()> {
    let command = Command::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let run = async {
            let surroundings = &command.surroundings;
            match command.run {
                Run::Ingest(ingest) => ingest::run(&ingest, surroundings).await,
                Run::Decide(decide) => decide::run(&decide, surroundings).await,
                Run::Parse(parse) => parse::run(parse),
                Run::Freshness(freshness) => freshness::run(&freshness, surroundings).await,
                Run::Tenants(tenants) => tenants::run(&tenants, surroundings).await,
                Run::Noisy(noisy) => noisy::run(&noisy, surroundings).await,
                Run::Growth(growth) => growth::run(&growth, surroundings).await,
                Run::Reconcile(reconcile) => reconcile::run(&reconcile).await,
                Run::Organization(people) => organization::run(&people, surroundings).await,
                Run::Authorize(authorize) => authorize::run(&authorize),
            }
        };
        // Dropped in the middle, a run ends its processes and deletes its folder.
        let ended = tokio::select! {
            ended = run => ended,
            reason = platform_api::daemon::stop_signal() => reason.and_then(|name| anyhow::bail!("stopped by {name}")),
        };
        plant::clear(&command.surroundings).await?;
        ended
    })
}
