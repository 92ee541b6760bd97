//! Load and comparison runs against the real binary, on this machine alone.
//!
//! Each run starts its own `platform-api serve` with its own data, databases and stream, sends it what it was told to,
//! checks that every event was counted exactly once, measures its yardsticks (plain SQL, a bare JetStream consumer,
//! nginx) in the same minutes, and ends everything it started. Progress goes to stderr, the table to stdout.

mod decide;
mod events;
mod figures;
mod ingest;
mod link;
mod nginx;
mod parse;
mod plant;
mod yardstick;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    Ingest(Ingest),
    /// Asks for decisions over kept-alive connections, against nginx with a static answer of the same size.
    Decide(Decide),
    /// Reads bodies, against a general reader of JSON and a mere look at every byte. Needs no daemon.
    Parse(Parse),
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

#[derive(Debug, Clone, Args)]
struct Ingest {
    #[arg(long, value_enum, default_value_t = Via::Nats)]
    via: Via,
    #[arg(long, value_enum, default_value_t = StoreKind::Postgres)]
    store: StoreKind,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=50))]
    tenants: u32,
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..=5_000_000))]
    events: u64,
    #[arg(long, value_enum, default_value_t = Payload::Compact)]
    payload: Payload,
    /// UUIDv7 event ids (in the order of time) or UUIDv4 (random). LiteLLM's ids begin with their time either way.
    #[arg(long, value_enum, default_value_t = Ids::V7)]
    ids: Ids,
    /// Events of one HTTP request.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=5_000))]
    batch: u64,
    /// HTTP requests, or thousands of unacknowledged publishes, under way at once.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    in_flight: u32,
    /// Publish everything while the daemon is down, then time how it works the backlog off (NATS only).
    #[arg(long)]
    backlog: bool,
}

#[derive(Debug, Clone, Args)]
struct Decide {
    /// `max`, or requests a second, sent on schedule whatever the answers do.
    #[arg(long, default_value = "max")]
    rate: Rate,
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    connections: u32,
    /// Seconds of each round.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=300))]
    seconds: u64,
    /// Rounds of ours and of nginx, by turns; the median is told.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    #[arg(long, value_enum, default_value_t = StoreKind::Sqlite)]
    store: StoreKind,
    /// Send If-None-Match with the last ETag, as a gateway that caches does.
    #[arg(long)]
    conditional: bool,
    /// Beside a flood of events for the same tenant over HTTP.
    #[arg(long)]
    while_ingesting: bool,
    /// Leave nginx out.
    #[arg(long)]
    alone: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Via {
    Nats,
    Http,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StoreKind {
    Postgres,
    Sqlite,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Payload {
    /// The platform envelope, about 350 bytes.
    Compact,
    /// LiteLLM's payload as captured, about 16 kB.
    Litellm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ids {
    V7,
    V4,
}

#[derive(Debug, Clone, Copy, Args)]
struct Parse {
    /// Seconds for each kind of body.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
}

/// Requests a second; `None` for as many as there can be.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rate(Option<f64>);

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        match text {
            "max" => Ok(Rate(None)),
            _ => match text.parse::<f64>() {
                Ok(rate) if rate > 0.0 && rate <= 1e6 => Ok(Rate(Some(rate))),
                _ => Err("neither `max` nor a number of requests a second".into()),
            },
        }
    }
}

fn main() -> anyhow::Result<()> {
    let command = Command::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let run = async {
            match command.run {
                Run::Ingest(ingest) => ingest::run(&ingest, &command.surroundings).await,
                Run::Decide(decide) => decide::run(&decide, &command.surroundings).await,
                Run::Parse(parse) => parse::run(parse),
            }
        };
        // Dropped in the middle, a run still ends its processes and deletes its folder.
        tokio::select! {
            ended = run => ended,
            reason = platform_api::daemon::stop_signal() => anyhow::bail!("stopped by {}", reason?),
        }
    })
}
