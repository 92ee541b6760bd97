//! What proving costs: the poller's load on Redis as tenants grow, a reading beside a usage event, and comparing a window.

use std::future::Future;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use clap::Args;
use futures_util::{StreamExt, TryStreamExt};
use platform_api::clock::Clock;
use platform_api::config;
use platform_api::directory::{self, handle::NewKey, handle::NewTenant};
use platform_api::domain::reconcile::Terms;
use platform_api::domain::reconcile::meter::window_start;
use platform_api::domain::reconcile::progress::Progress;
use platform_api::domain::reconcile::reading::{EVERY_ROUTE, MeterReading, Source};
use platform_api::domain::request::{Answer, Request};
use platform_api::domain::routing::Routing;
use platform_api::domain::tenant::Role;
use platform_api::domain::time::{MICROS_PER_DAY, MICROS_PER_SECOND, Timestamp};
use platform_api::domain::usage::{Amounts, Flags, Kind, Status, Subject, UsageEvent};
use platform_api::store::database::Store;
use platform_api::tenant::handle::{Handle, Origin};
use secrecy::SecretString;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::cpu::{Cpu, Group};
use crate::figures::Grid;
use crate::limiter::{self, Server};

/// Tenants that are told at once, as the daemon does.
const AT_ONCE: usize = 8;
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Args)]
pub(crate) struct Reconcile {
    /// Tenants whose counters are in Redis, a row for each number.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000", value_parser = clap::value_parser!(u32).range(10..=100_000))]
    tenants: Vec<u32>,
    /// Tenants on SQLite that take readings and events, a row for each number.
    #[arg(long, value_delimiter = ',', default_value = "50", value_parser = clap::value_parser!(u32).range(10..=100_000))]
    measured: Vec<u32>,
    /// Of them open at once; with more, they take turns.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(10..=1_000))]
    open: u32,
    /// Readings, and events, for each of them: a second apart, within one window.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(2..=140))]
    rounds: u32,
    #[arg(long, env = "TEST_REDIS_SERVER_BIN", default_value = "redis-server")]
    redis_server: String,
}

/// A folder that is deleted in the end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) async fn run(reconcile: &Reconcile) -> anyhow::Result<()> {
    let folder = Folder(std::env::temp_dir().join(format!("platform-api-reconcile{}", std::process::id())));
    std::fs::create_dir(&folder.0)?;
    let mut grid = Grid::new(&limiter::COLUMNS);
    {
        let server = Server::start(&reconcile.redis_server, &folder.0).await?;
        for tenants in &reconcile.tenants {
            grid.row(limiter::row(&server, *tenants).await?);
        }
    }
    let mut costs = Grid::new(&COLUMNS);
    for tenants in &reconcile.measured {
        costs.row(measured(&folder, *tenants, reconcile).await?);
    }
    grid.print();
    println!();
    costs.print();
    Ok(())
}

/// The names of the second table's columns.
const COLUMNS: [&str; 9] = [
    "tenants",
    "open at once",
    "CPU µs/reading",
    "CPU µs/event",
    "reading ÷ event",
    "CPU µs/window compared",
    "CPU ms/tenant made, opened, rested",
    "kB/tenant in memory",
    "kB/tenant on disk",
];

/// The clock that the tenants go by, and where they live.
struct Stage {
    folder: PathBuf,
    terms: Terms,
    clock: Clock,
    directory: directory::handle::Handle,
}

/// CPU in microseconds, of all turns together.
#[derive(Debug, Default)]
struct Costs {
    homes: f64,
    readings: f64,
    events: f64,
    compared: f64,
    windows: f64,
}

/// So many tenants, in turns: those of one turn are made and opened, are told and count and are compared, and rest when those
/// of the next are opened. Time goes on from turn to turn.
async fn measured(folder: &Folder, tenants: u32, reconcile: &Reconcile) -> anyhow::Result<Vec<String>> {
    let (terms, open) = (Terms::default(), reconcile.open.min(tenants));
    let mut base = window_start(Clock::system().now(), &terms);
    let stage = Stage::open(folder.0.join(format!("data{tenants}")), open, base, terms).await?;
    let mut costs = Costs::default();
    let mut half: Option<(f64, u32)> = None;
    for first in (0..tenants).step_by(open as usize) {
        stage.clock.set(base);
        let turn = Turn::begin(&stage, first..tenants.min(first + open), &mut costs).await?;
        turn.measure(base, i64::from(reconcile.rounds), &mut costs).await?;
        base = window_start(stage.clock.now().plus_micros(terms.window_micros), &terms);
        let done = tenants.min(first + open);
        if half.is_none() && done * 2 >= tenants && done < tenants {
            // By now everything is as large as the open ones make it; what comes on top is of tenants that rest.
            half = Some((resident_kilobytes(), done));
        }
        if (first / open + 1).is_multiple_of(20) {
            eprintln!("{done} of {tenants} tenants");
        }
    }
    let memory = half.map_or("-".into(), |(resident, done)| {
        format!("{:.1}", (resident_kilobytes() - resident) / f64::from(tenants - done))
    });
    stage.directory.drain(PATIENCE).await;
    let disk = kilobytes_of(&stage.folder);
    let told = f64::from(tenants) * f64::from(reconcile.rounds);
    Ok(vec![
        tenants.to_string(),
        open.to_string(),
        format!("{:.0}", costs.readings / told),
        format!("{:.0}", costs.events / told),
        format!("{:.2}", costs.readings / costs.events.max(1.0)),
        format!("{:.0}", costs.compared / costs.windows),
        format!("{:.1}", costs.homes / 1_000.0 / f64::from(tenants)),
        memory,
        format!("{:.0}", disk / f64::from(tenants)),
    ])
}

/// Tenants that are open together.
struct Turn<'a> {
    stage: &'a Stage,
    tenants: Vec<Handle>,
}

impl Turn<'_> {
    /// Makes and opens them; those of the turn before rest for it.
    async fn begin<'a>(stage: &'a Stage, numbers: Range<u32>, costs: &mut Costs) -> anyhow::Result<Turn<'a>> {
        let cpu = own();
        let made = futures_util::stream::iter(numbers.map(|at| stage.tenant(at))).buffer_unordered(AT_ONCE);
        let tenants = made.try_collect().await?;
        costs.homes += micros(&cpu);
        Ok(Turn { stage, tenants })
    }

    async fn measure(&self, base: Timestamp, rounds: i64, costs: &mut Costs) -> anyhow::Result<()> {
        // Once unmeasured, so that every meter is known and every statement prepared.
        self.each(|tenant| tell(tenant, 0, base)).await?;
        self.each(|tenant| count(tenant, 0, base)).await?;
        let cpu = own();
        for round in 1..=rounds {
            let now = base.plus_micros(round * MICROS_PER_SECOND);
            self.stage.clock.set(now);
            self.each(|tenant| tell(tenant, round, now)).await?;
        }
        costs.readings += micros(&cpu);
        let cpu = own();
        for round in 1..=rounds {
            let now = base.plus_micros((rounds + round) * MICROS_PER_SECOND);
            self.stage.clock.set(now);
            self.each(|tenant| count(tenant, round, now)).await?;
        }
        costs.events += micros(&cpu);
        self.compare(base, rounds + 1, costs).await
    }

    /// CPU of comparing each tenant's windows.
    async fn compare(&self, base: Timestamp, round: i64, costs: &mut Costs) -> anyhow::Result<()> {
        let (clock, terms) = (&self.stage.clock, &self.stage.terms);
        let second = base.plus_micros(terms.window_micros + MICROS_PER_SECOND);
        clock.set(second);
        self.each(|tenant| tell(tenant, round, second)).await?;
        self.each(|tenant| count(tenant, round, second)).await?;
        let end = base.plus_micros(2 * terms.window_micros);
        let mut before = 0;
        for tenant in &self.tenants {
            before += progress(tenant).await?.settled_until.0;
        }
        let cpu = own();
        clock.set(end.plus_micros(terms.settle_micros + MICROS_PER_SECOND));
        let (began, mut after) = (Instant::now(), 0);
        for tenant in &self.tenants {
            loop {
                let settled = progress(tenant).await?.settled_until;
                if settled >= end {
                    after += settled.0;
                    break;
                }
                ensure!(began.elapsed() < PATIENCE, "nothing was compared");
                sleep(Duration::from_millis(100)).await;
            }
        }
        costs.compared += micros(&cpu);
        let windows = (after - before) / terms.window_micros;
        ensure!(windows > 0, "nothing was left to compare");
        costs.windows += windows as f64;
        Ok(())
    }

    /// Does something with every tenant, several at once.
    async fn each<'a, F>(&'a self, what: impl Fn(&'a Handle) -> F) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        futures_util::stream::iter(self.tenants.iter().map(what)).buffer_unordered(AT_ONCE).try_collect().await
    }
}

async fn progress(tenant: &Handle) -> anyhow::Result<Progress> {
    let overview = tenant.reconciliation().await?.map_err(|error| anyhow!("{error:?}"))?;
    overview.progress.context("nothing is compared")
}

impl Stage {
    async fn open(folder: PathBuf, open: u32, now: Timestamp, terms: Terms) -> anyhow::Result<Stage> {
        let url = SecretString::from(format!("sqlite:{}", folder.display()));
        let store = Store::open(&config::Store { url, ..config::Store::default() }).await?;
        let settings = directory::Settings {
            tenants: config::Tenants { idle_ms: 86_400_000, open_max: open as usize + 1, ..config::Tenants::default() },
            retention_micros: 400 * MICROS_PER_DAY,
            routing: Arc::new(Routing::all(Vec::new())),
            reconcile: terms,
            lease_micros: config::Jobs::default().lease_micros(),
        };
        let clock = Clock::held_at(now);
        let (hints, mut committed) = mpsc::channel(16);
        tokio::spawn(async move { while committed.recv().await.is_some() {} });
        let directory = directory::open(store, settings, clock.clone(), hints).await?;
        Ok(Stage { folder, terms, clock, directory })
    }

    /// A new tenant, open.
    async fn tenant(&self, at: u32) -> anyhow::Result<Handle> {
        let new = NewTenant {
            name: format!("Load {at}"),
            slug: None,
            tier: "standard".into(),
            time_zone: "Europe/Berlin".into(),
            external_ids: Vec::new(),
            settings: "{}".into(),
        };
        let key = NewKey { id: format!("key-{at}"), hash: [7; 32], name: "admin".into(), role: Role::Admin };
        let made = self.directory.onboard(new, key, Request::system(), |made| made.tenant.slug.clone()).await;
        let Answer::Fresh(made) = made.map_err(|error| anyhow!("onboarding: {error:?}"))? else {
            anyhow::bail!("onboarded before")
        };
        let began = Instant::now();
        loop {
            match self.directory.find(made.tenant.id).await {
                Ok(handle) => return Ok(handle),
                Err(error) => ensure!(began.elapsed() < PATIENCE, "opening: {error:?}"),
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Of this process, in memory.
fn resident_kilobytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or_default()
}

/// Of everything in a folder.
fn kilobytes_of(folder: &Path) -> f64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0.0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(about) if about.is_dir() => kilobytes_of(&entry.path()),
        Ok(about) => about.len() as f64 / 1_024.0,
        Err(_) => 0.0,
    };
    entries.flatten().map(size).sum()
}

/// One reading, in a message and a commit of its own, as the poller tells it.
async fn tell(tenant: &Handle, value: i64, at: Timestamp) -> anyhow::Result<()> {
    let reading = MeterReading {
        source: Source::Limiter,
        series: format!("{EVERY_ROUTE}/{}", tenant.tenant()),
        epoch: (at.0.div_euclid(MICROS_PER_DAY) * MICROS_PER_DAY / 1_000).to_string(),
        value,
        at,
        from_zero: true,
        lower_bound: false,
    };
    Ok(tenant.gateway_readings(vec![reading], Vec::new()).await?)
}

/// One usage event, in a message and a commit of its own.
async fn count(tenant: &Handle, round: i64, at: Timestamp) -> anyhow::Result<()> {
    let event = UsageEvent {
        source: "loadtest".into(),
        event_id: format!("event-{round}"),
        occurred_at: at,
        kind: Kind::Delta,
        status: Status::Success,
        subject: Subject { user: "ada".into(), model: "gpt-4o".into(), ..Subject::default() },
        call_type: "acompletion".into(),
        amounts: Amounts { requests: 1, prompt_tokens: 100, completion_tokens: 20, ..Amounts::default() },
        flags: Flags::default(),
        details: String::new(),
    };
    let origin = Origin { cursor: None, request_id: String::new() };
    tenant.record(vec![event], origin, PATIENCE).await?;
    Ok(())
}

fn own() -> Cpu {
    Cpu::start(vec![("own", Group::Process(std::process::id()))])
}

fn micros(cpu: &Cpu) -> f64 {
    cpu.used().iter().map(|(_, seconds)| seconds * 1e6).sum()
}
