//! What proving costs: the poller's load on Redis as tenants grow, a reading beside a usage event, and comparing a window.

use std::future::Future;
use std::path::PathBuf;
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
/// Readings, and events, for each tenant: a second apart, within one window.
const ROUNDS: i64 = 40;
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Args)]
pub(crate) struct Reconcile {
    /// Tenants whose counters are in Redis, a row for each number.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000", value_parser = clap::value_parser!(u32).range(10..=100_000))]
    tenants: Vec<u32>,
    /// Tenants on SQLite that take readings and events.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(10..=1_000))]
    open: u32,
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
    let mut costs = Grid::new(&["open", "CPU µs/reading", "CPU µs/event", "reading ÷ event", "CPU µs/window compared"]);
    costs.row(measured(&folder, reconcile.open).await?);
    grid.print();
    println!();
    costs.print();
    Ok(())
}

/// The tenants, and the clock that they go by.
struct Stage {
    tenants: Vec<Handle>,
    clock: Clock,
    directory: directory::handle::Handle,
}

async fn measured(folder: &Folder, open: u32) -> anyhow::Result<Vec<String>> {
    let terms = Terms::default();
    let base = window_start(Clock::system().now(), &terms);
    let stage = staged(folder, open, base, terms).await?;

    // Once unmeasured, so that every meter is known and every statement prepared.
    stage.each(|tenant| tell(tenant, 0, base)).await?;
    stage.each(|tenant| count(tenant, 0, base)).await?;
    let cpu = own();
    for round in 1..=ROUNDS {
        let now = base.plus_micros(round * MICROS_PER_SECOND);
        stage.clock.set(now);
        stage.each(|tenant| tell(tenant, round, now)).await?;
    }
    let readings = micros(&cpu);
    let cpu = own();
    for round in 1..=ROUNDS {
        let now = base.plus_micros((ROUNDS + round) * MICROS_PER_SECOND);
        stage.clock.set(now);
        stage.each(|tenant| count(tenant, round, now)).await?;
    }
    let events = micros(&cpu);
    let compared = compared(&stage, base, &terms).await?;
    stage.directory.drain(PATIENCE).await;

    let whole = f64::from(open) * ROUNDS as f64;
    Ok(vec![
        open.to_string(),
        format!("{:.0}", readings / whole),
        format!("{:.0}", events / whole),
        format!("{:.2}", readings / events.max(1.0)),
        format!("{compared:.0}"),
    ])
}

/// CPU of one comparison of one tenant's window.
async fn compared(stage: &Stage, base: Timestamp, terms: &Terms) -> anyhow::Result<f64> {
    let second = base.plus_micros(terms.window_micros + MICROS_PER_SECOND);
    stage.clock.set(second);
    stage.each(|tenant| tell(tenant, ROUNDS + 1, second)).await?;
    stage.each(|tenant| count(tenant, ROUNDS + 1, second)).await?;
    let end = base.plus_micros(2 * terms.window_micros);
    let mut before = 0;
    for tenant in &stage.tenants {
        before += progress(tenant).await?.settled_until.0;
    }
    let cpu = own();
    stage.clock.set(end.plus_micros(terms.settle_micros + MICROS_PER_SECOND));
    let (began, mut after) = (Instant::now(), 0);
    for tenant in &stage.tenants {
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
    let windows = (after - before) / terms.window_micros;
    ensure!(windows > 0, "nothing was left to compare");
    Ok(micros(&cpu) / windows as f64)
}

async fn progress(tenant: &Handle) -> anyhow::Result<Progress> {
    let overview = tenant.reconciliation().await?.map_err(|error| anyhow!("{error:?}"))?;
    overview.progress.context("nothing is compared")
}

async fn staged(folder: &Folder, open: u32, now: Timestamp, terms: Terms) -> anyhow::Result<Stage> {
    let url = SecretString::from(format!("sqlite:{}", folder.0.join("data").display()));
    let store = Store::open(&config::Store { url, ..config::Store::default() }).await?;
    let settings = directory::Settings {
        tenants: config::Tenants { idle_ms: 86_400_000, open_max: open as usize + 1, ..config::Tenants::default() },
        retention_micros: 400 * MICROS_PER_DAY,
        routing: Arc::new(Routing::all(Vec::new())),
        reconcile: terms,
    };
    let clock = Clock::held_at(now);
    let (hints, mut committed) = mpsc::channel(16);
    tokio::spawn(async move { while committed.recv().await.is_some() {} });
    let directory = directory::open(store, settings, clock.clone(), hints).await?;
    let mut tenants = Vec::new();
    for at in 0..open {
        let new = NewTenant {
            name: format!("Load {at}"),
            slug: None,
            tier: "standard".into(),
            time_zone: "Europe/Berlin".into(),
            external_ids: Vec::new(),
            settings: "{}".into(),
        };
        let key = NewKey { id: format!("key-{at}"), hash: [7; 32], name: "admin".into(), role: Role::Admin };
        let made = directory.onboard(new, key, Request::system(), |made| made.tenant.slug.clone()).await;
        let Answer::Fresh(made) = made.map_err(|error| anyhow!("onboarding: {error:?}"))? else {
            anyhow::bail!("onboarded before")
        };
        let began = Instant::now();
        let handle = loop {
            match directory.find(made.tenant.id).await {
                Ok(handle) => break handle,
                Err(error) => ensure!(began.elapsed() < PATIENCE, "opening: {error:?}"),
            }
            sleep(Duration::from_millis(5)).await;
        };
        tenants.push(handle);
    }
    Ok(Stage { tenants, clock, directory })
}

impl Stage {
    /// Does something with every tenant, several at once.
    async fn each<'a, F>(&'a self, what: impl Fn(&'a Handle) -> F) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        futures_util::stream::iter(self.tenants.iter().map(what)).buffer_unordered(AT_ONCE).try_collect().await
    }
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
