//! What looking at the rate limiter's counters costs Redis and us, beside a plain client that reads the same keys.

use std::collections::HashSet;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use platform_api::clock::{Clock, new_id};
use platform_api::config::{self, LimitBy};
use platform_api::domain::ids::TenantId;
use platform_api::domain::reconcile::reading::{Interruption, MeterReading};
use platform_api::domain::tenant::ExternalId;
use platform_api::domain::time::{MICROS_PER_DAY, MICROS_PER_MINUTE};
use platform_api::intake::kong::counters::Counters;
use platform_api::intake::kong::limiter_key::NOBODY;
use platform_api::intake::kong::readings::{Forgotten, Readings, Seen, WithConsumers};
use redis::aio::MultiplexedConnection;
use secrecy::SecretString;
use tokio::time::{Instant, sleep};

use crate::cpu::{Cpu, Group};

const PATIENCE: Duration = Duration::from_secs(20);
/// Names that Redis looks through for one answer, as the poller asks.
const SCAN_COUNT: usize = 1_000;
/// Tenants that are looked at in one measurement, over all its cycles: enough for the kernel's CPU clock.
const LOOKED_AT: usize = 100_000;
/// A minute's counter must outlive a measurement; twice its period is the longest that Kong ever lets it live.
const MINUTE_SECONDS: u64 = 119;

/// A Redis of our own, on a free port, which ends with this.
pub(crate) struct Server {
    port: u16,
    child: Child,
}

impl Server {
    pub(crate) async fn start(binary: &str, folder: &Path) -> anyhow::Result<Server> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(binary);
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()]);
        command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("starting {binary}"))?;
        let server = Server { port, child };
        let began = Instant::now();
        while server.connect().await.is_err() {
            ensure!(began.elapsed() < PATIENCE, "Redis is not ready");
            sleep(Duration::from_millis(20)).await;
        }
        Ok(server)
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    async fn connect(&self) -> anyhow::Result<MultiplexedConnection> {
        Ok(redis::Client::open(self.url())?.get_multiplexed_async_connection().await?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tenants in memory, who take whatever they are told.
#[derive(Clone)]
struct Listeners(std::sync::Arc<HashSet<TenantId>>);

impl Readings for Listeners {
    fn tenant(&self, id: TenantId) -> Option<TenantId> {
        self.0.get(&id).copied()
    }

    fn owner(&self, _: &[ExternalId]) -> Option<TenantId> {
        None
    }

    fn usernames(&self) -> Vec<(String, TenantId)> {
        Vec::new()
    }

    fn awake(&self) -> WithConsumers {
        Vec::new()
    }

    async fn take(&self, _: TenantId, _: Vec<MeterReading>, _: Vec<Interruption>) -> bool {
        true
    }

    async fn recall(&self, _: &str) -> Result<Option<Seen>, Forgotten> {
        Ok(None)
    }

    async fn remember(&self, _: &str, _: Seen) {}
}

/// What Redis has counted since it was started.
#[derive(Debug, Clone, Copy)]
struct Counted {
    commands: f64,
    scans: f64,
    infos: f64,
    bytes_in: f64,
    bytes_out: f64,
}

impl Counted {
    async fn by(connection: &mut MultiplexedConnection) -> anyhow::Result<Counted> {
        let info: String = redis::cmd("INFO").arg("all").query_async(connection).await?;
        let number = |name: &str| -> f64 {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|text| text.trim().parse().ok()).unwrap_or(0.0)
        };
        let calls = |name: &str| -> f64 {
            let line =
                info.lines().find_map(|line| line.strip_prefix("cmdstat_")?.strip_prefix(name)?.strip_prefix(':'));
            let calls = line.and_then(|line| line.strip_prefix("calls=")?.split(',').next()?.parse().ok());
            calls.unwrap_or(0.0)
        };
        let commands = ["scan", "mget", "pttl", "info"].map(calls).iter().sum();
        Ok(Counted {
            commands,
            scans: calls("scan"),
            infos: calls("info"),
            bytes_in: number("total_net_input_bytes"),
            bytes_out: number("total_net_output_bytes"),
        })
    }
}

/// What one cycle over all keys took.
#[derive(Debug, Clone, Copy)]
struct Cycle {
    commands: f64,
    scans: f64,
    infos: f64,
    bytes_in: f64,
    bytes_out: f64,
    redis_micros: f64,
    own_micros: f64,
}

/// Measures between two moments.
struct Meter {
    before: Counted,
    cpu: Cpu,
}

impl Meter {
    async fn start(server: &Server, connection: &mut MultiplexedConnection) -> anyhow::Result<Meter> {
        let before = Counted::by(connection).await?;
        let groups = vec![("redis", Group::Process(server.child.id())), ("own", Group::Process(std::process::id()))];
        Ok(Meter { before, cpu: Cpu::start(groups) })
    }

    /// All of it; the question that the meter itself asks is not counted.
    async fn end(self, connection: &mut MultiplexedConnection) -> anyhow::Result<Cycle> {
        let used = self.cpu.used();
        let micros = |at: usize| used.get(at).map_or(0.0, |(_, seconds)| seconds * 1e6);
        let (before, after) = (self.before, Counted::by(connection).await?);
        Ok(Cycle {
            commands: after.commands - before.commands - 1.0,
            scans: after.scans - before.scans,
            infos: after.infos - before.infos - 1.0,
            bytes_in: after.bytes_in - before.bytes_in,
            bytes_out: after.bytes_out - before.bytes_out,
            redis_micros: micros(0),
            own_micros: micros(1),
        })
    }
}

impl Cycle {
    fn each(self, cycles: f64) -> Cycle {
        Cycle {
            commands: self.commands / cycles,
            scans: self.scans / cycles,
            infos: self.infos / cycles,
            bytes_in: self.bytes_in / cycles,
            bytes_out: self.bytes_out / cycles,
            redis_micros: self.redis_micros / cycles,
            own_micros: self.own_micros / cycles,
        }
    }
}

/// The names of a row's columns.
pub(crate) const COLUMNS: [&str; 13] = [
    "tenants",
    "commands/cycle",
    "INFO",
    "commands/tenant",
    "B to Redis/tenant",
    "B from Redis/tenant",
    "without INFO",
    "Redis CPU µs/tenant",
    "CPU µs/tenant",
    "commands ÷ plain",
    "bytes ÷ plain",
    "Redis CPU ÷ plain",
    "CPU ÷ plain",
];

/// One row: so many tenants, with a minute's and a day's counter each.
pub(crate) async fn row(server: &Server, tenants: u32) -> anyhow::Result<Vec<String>> {
    let ids: HashSet<TenantId> = (0..tenants).map(|_| TenantId(new_id())).collect();
    let mut connection = server.connect().await?;
    let count = ids.len();
    let cycles = (LOOKED_AT / count).clamp(5, 500);

    plant(&mut connection, &ids).await?;
    plain(&mut connection, count).await?;
    let meter = Meter::start(server, &mut connection).await?;
    for _ in 0..cycles {
        plain(&mut connection, count).await?;
    }
    let yard = meter.end(&mut connection).await?.each(cycles as f64);

    plant(&mut connection, &ids).await?;
    let kong = config::KongRedis {
        url: Some(SecretString::from(server.url())),
        limit_by: LimitBy::Header,
        ..config::KongRedis::default()
    };
    let listeners = Listeners(std::sync::Arc::new(ids));
    let opened = Counters::open(&kong, &config::Reconcile::default(), Clock::system(), listeners);
    let mut counters = opened.map_err(anyhow::Error::msg)?.context("no poller")?;
    // A cycle may take more than one look; the first tells every meter, which no later one does.
    let looks = (yard.scans * SCAN_COUNT as f64 / kong.poll_keys_max as f64).ceil().max(1.0) as usize;
    for _ in 0..looks {
        counters.look().await;
    }
    let meter = Meter::start(server, &mut connection).await?;
    for _ in 0..cycles * looks {
        counters.look().await;
    }
    let ours = meter.end(&mut connection).await?;
    // Each pass over the same keys takes as many SCANs as the plain client's.
    let ours = ours.each(ours.scans / yard.scans);
    ensure!(ours.infos > 0.0 && ours.commands > f64::from(tenants), "the poller has not looked: {ours:?}");
    let info: String = redis::cmd("INFO").query_async(&mut connection).await?;
    Ok(cells(tenants, &ours, &yard, info.len() as f64))
}

fn cells(tenants: u32, ours: &Cycle, yard: &Cycle, info: f64) -> Vec<String> {
    let each = |amount: f64| format!("{:.2}", amount / f64::from(tenants));
    let ratio = |ours: f64, plain: f64| if plain > 0.0 { format!("{:.2}", ours / plain) } else { "-".into() };
    vec![
        tenants.to_string(),
        format!("{:.0}", ours.commands),
        format!("{:.0}", ours.infos),
        each(ours.commands),
        each(ours.bytes_in),
        each(ours.bytes_out),
        each(ours.bytes_out - ours.infos * info),
        each(ours.redis_micros),
        each(ours.own_micros),
        ratio(ours.commands, yard.commands),
        ratio(ours.bytes_in + ours.bytes_out, yard.bytes_in + yard.bytes_out),
        ratio(ours.redis_micros, yard.redis_micros),
        ratio(ours.own_micros, yard.own_micros),
    ]
}

/// A minute's and a day's counter for each tenant, and nothing else.
async fn plant(connection: &mut MultiplexedConnection, tenants: &HashSet<TenantId>) -> anyhow::Result<()> {
    redis::cmd("FLUSHALL").query_async::<()>(connection).await?;
    let now = Clock::system().now().0;
    let start = |width: i64| now.div_euclid(width) * width / 1_000;
    let (minute, day) = (start(MICROS_PER_MINUTE), start(MICROS_PER_DAY));
    let all: Vec<&TenantId> = tenants.iter().collect();
    for some in all.chunks(SCAN_COUNT) {
        let mut commands = redis::pipe();
        for tenant in some {
            let name = |start: i64, period: &str| format!("ratelimit:{NOBODY}:{NOBODY}:{tenant}:{start}:{period}");
            commands.cmd("SET").arg(name(minute, "minute")).arg(7).arg("EX").arg(MINUTE_SECONDS).ignore();
            commands.cmd("SET").arg(name(day, "day")).arg(1_234).arg("EX").arg(86_400).ignore();
        }
        commands.query_async::<()>(connection).await?;
    }
    Ok(())
}

/// The same questions with nothing around them: SCAN, then MGET and PTTL in one pipeline.
async fn plain(connection: &mut MultiplexedConnection, tenants: usize) -> anyhow::Result<()> {
    let (mut cursor, mut seen) = (0_u64, 0);
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg("ratelimit:*").arg("COUNT").arg(SCAN_COUNT);
        let (next, names): (u64, Vec<String>) = scan.query_async(connection).await?;
        if !names.is_empty() {
            let mut commands = redis::pipe();
            commands.cmd("MGET").arg(&names);
            for name in &names {
                commands.cmd("PTTL").arg(name);
            }
            let answers: Vec<redis::Value> = commands.query_async(connection).await?;
            seen += answers.len().saturating_sub(1);
        }
        cursor = next;
        if cursor == 0 {
            ensure!(seen >= 2 * tenants, "{seen} counters of {tenants} tenants: some have died");
            return Ok(());
        }
    }
}
