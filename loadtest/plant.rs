//! The daemon under load: the real binary as a child, with everything it needs of its own.

use std::collections::HashSet;
use std::fmt::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures_util::StreamExt;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::{Instant, sleep};

use crate::Surroundings;
use crate::cpu::Group;
use crate::link::{Link, request};
use crate::progress::Progress;

/// How long starting and ending may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// The daemon's own default.
const OPEN_MAX: u32 = 60;
/// Connections to the database besides those of open tenants, as the daemon's own defaults leave.
const CONNECTIONS_BESIDES: u32 = 20;
/// Tenants that are onboarded at once.
const ONBOARDING: u32 = 8;
/// How many compact events the longest batch has, with room for its bytes.
pub(crate) const BATCH_EVENTS_MAX: u64 = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum StoreKind {
    Postgres,
    Sqlite,
}

/// What kind of daemon a run needs.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) store: StoreKind,
    /// It reads a stream of its own.
    pub(crate) nats: bool,
    /// Tenants that may be open at once.
    pub(crate) open_max: u32,
    /// More configuration.
    pub(crate) toml: String,
}

impl Setup {
    pub(crate) fn of(store: StoreKind) -> Setup {
        Setup { store, nats: false, open_max: OPEN_MAX, toml: String::new() }
    }
}

/// A running daemon and what belongs to it. [`Plant::end`] deletes all of it.
pub(crate) struct Plant {
    pub(crate) address: String,
    pub(crate) store: StoreKind,
    pub(crate) word: String,
    pub(crate) key: String,
    pub(crate) tenants: Vec<Tenant>,
    pub(crate) surroundings: Surroundings,
    folder: PathBuf,
    binary: PathBuf,
    child: Option<Child>,
}

#[derive(Debug, Clone)]
pub(crate) struct Tenant {
    pub(crate) id: String,
    /// The LiteLLM team that is theirs.
    pub(crate) team: String,
    pub(crate) key: String,
}

impl Plant {
    /// Starts a daemon.
    pub(crate) async fn start(setup: Setup, surroundings: &Surroundings) -> anyhow::Result<Plant> {
        let word = word();
        let folder = std::env::temp_dir().join(format!("platform-api-{word}"));
        std::fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        let beside = std::env::current_exe()?.with_file_name("platform-api");
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut plant = Plant {
            address: format!("127.0.0.1:{port}"),
            store: setup.store,
            key: format!("{word}-bootstrap-key-0123456789abcdef"),
            word,
            tenants: Vec::new(),
            surroundings: surroundings.clone(),
            folder,
            binary: surroundings.binary.clone().unwrap_or(beside),
            child: None,
        };
        if plant.store == StoreKind::Postgres {
            plant.administer(&format!("CREATE DATABASE \"{}\" TEMPLATE template0 ENCODING 'UTF8'", plant.word)).await?;
        }
        std::fs::write(plant.config_file(), plant.config(&setup))?;
        plant.launch().await?;
        Ok(plant)
    }

    fn config_file(&self) -> PathBuf {
        self.folder.join("platform-api.toml")
    }

    fn config(&self, setup: &Setup) -> String {
        let store = match self.store {
            StoreKind::Sqlite => format!("sqlite:{}", self.data().display()),
            StoreKind::Postgres => self.database_url(&self.word),
        };
        let mut toml = String::new();
        let (listen, key, word, open_max) = (&self.address, &self.key, &self.word, setup.open_max);
        let _ = writeln!(toml, "[http]\nlisten = \"{listen}\"\n[intake]\nbatch_events_max = {BATCH_EVENTS_MAX}");
        let connections = open_max + CONNECTIONS_BESIDES;
        let _ = writeln!(toml, "[store]\nurl = \"{store}\"\nconnections_max = {connections}");
        let _ = writeln!(toml, "[tenants]\nopen_max = {open_max}");
        // One credential asks here as often as it can.
        let _ = writeln!(toml, "[rate_limits.default]");
        for class in ["read", "write", "admin", "ingest"] {
            let _ = writeln!(toml, "{class} = {{ quota = 0 }}");
        }
        let _ = writeln!(
            toml,
            "[auth]\nbootstrap_key = \"{key}\"\nkey_pepper = \"{word}-pepper-0123456789abcdef-0123456789\""
        );
        if setup.nats {
            let _ = writeln!(toml, "[nats]\nurl = \"{}\"\nstream = \"{}\"", self.surroundings.nats, self.stream());
            let _ = writeln!(toml, "consumer = \"{word}\"\nsubject = \"{}\"", self.subject());
            let _ = writeln!(toml, "alert_subject = \"{word}.alert\"\nalert_stream = \"{word}_ALERTS\"");
        }
        toml.push_str(&setup.toml);
        toml
    }

    pub(crate) fn stream(&self) -> String {
        format!("{}_USAGE", self.word)
    }

    pub(crate) fn subject(&self) -> String {
        format!("{}.quota.updated", self.word)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// A folder of its own for whatever a run needs besides.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn database_url(&self, name: &str) -> String {
        database_url(&self.surroundings, name)
    }

    pub(crate) fn ledger_database(&self, tenant: &Tenant) -> String {
        match self.store {
            StoreKind::Postgres => self.database_url(&format!("tenant_{}", tenant.id)),
            StoreKind::Sqlite => self.data().join("tenants").join(format!("{}.db", tenant.id)).display().to_string(),
        }
    }

    /// One number from a Postgres database.
    pub(crate) async fn ask(&self, url: &str, sql: &'static str) -> anyhow::Result<i64> {
        let mut server = PgConnection::connect(url).await.context("connecting to Postgres")?;
        Ok(sqlx::query_scalar(sql).fetch_one(&mut server).await?)
    }

    pub(crate) async fn administer(&self, sql: &str) -> anyhow::Result<()> {
        let mut server = PgConnection::connect(&self.surroundings.postgres).await.context("connecting to Postgres")?;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut server).await.with_context(|| sql.to_owned())?;
        server.close().await?;
        Ok(())
    }

    /// Starts the process and waits until it is ready.
    pub(crate) async fn launch(&mut self) -> anyhow::Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.join("log"))?;
        let mut command = Command::new(&self.binary);
        command.arg("serve").arg("--config").arg(self.config_file()).current_dir(&self.folder);
        // No setting of whoever runs this.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PLATFORM_API__")) {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("starting {}", self.binary.display()))?;
        self.child = Some(child);
        let began = Instant::now();
        loop {
            let ended = self.child.as_mut().map(Child::try_wait).transpose()?.flatten();
            if let Some(status) = ended {
                bail!("the daemon ended while starting ({status}):\n{}", self.log());
            }
            let question = request("GET", "/health/ready", "", None);
            if let Ok(mut link) = Link::to(&self.address).await
                && link.send(&question).await.is_ok_and(|answer| answer.status == 200)
            {
                return Ok(());
            }
            ensure!(began.elapsed() < PATIENCE, "the daemon is not ready:\n{}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGTERM, and waits for the end.
    pub(crate) async fn halt(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let sent = Command::new("kill").arg(child.id().to_string()).status()?;
        ensure!(sent.success(), "the daemon could not be told to end");
        let began = Instant::now();
        while child.try_wait()?.is_none() {
            if began.elapsed() > PATIENCE {
                child.kill()?;
                child.wait()?;
                bail!("the daemon did not end when told to");
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Onboards `count` more tenants with two quotas each, neither of which is ever reached.
    pub(crate) async fn onboard(&mut self, count: u32) -> anyhow::Result<()> {
        let first = self.tenants.len() as u32;
        let mut progress = Progress::of("onboarding", u64::from(count));
        let mut onboarding = futures_util::stream::iter(first..first + count)
            .map(|at| newcomer(self.address.clone(), self.key.clone(), format!("{}-team-{at}", self.word)))
            .buffered(ONBOARDING as usize);
        let mut made = Vec::new();
        while let Some(tenant) = onboarding.next().await {
            made.push(tenant?);
            progress.at(made.len() as u64);
        }
        drop(onboarding);
        self.tenants.extend(made);
        Ok(())
    }

    pub(crate) fn daemon(&self) -> Group {
        Group::Process(self.process())
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// The Postgres processes that serve our databases.
    pub(crate) fn backends(&self) -> Group {
        let tenants = self.tenants.iter().map(|tenant| format!("tenant_{} ", tenant.id));
        Group::Named(tenants.chain([format!(" {} ", self.word)]).collect())
    }

    /// The daemon's memory in bytes, as the kernel counts it.
    pub(crate) fn resident(&self) -> anyhow::Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.process()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1_024.0)
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Ends everything, and tells why where the run failed.
    pub(crate) async fn finish<T>(self, outcome: anyhow::Result<T>) -> anyhow::Result<T> {
        if outcome.is_err() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
        let ended = self.end().await;
        let done = outcome?;
        ended.map(|()| done)
    }

    /// Ends the daemon and deletes what was made for it.
    async fn end(mut self) -> anyhow::Result<()> {
        let halted = self.halt().await;
        let surroundings = self.surroundings.clone();
        drop(self);
        clear(&surroundings).await?;
        halted
    }
}

impl Drop for Plant {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// What everything that this process makes is called after.
fn word() -> String {
    format!("load{}", std::process::id())
}

/// Deletes what plants of this process have left in Postgres and NATS, also those that were interrupted.
pub(crate) async fn clear(surroundings: &Surroundings) -> anyhow::Result<()> {
    let word = word();
    if let Ok(mut server) = PgConnection::connect(&surroundings.postgres).await {
        for name in left(&mut server, surroundings, &word).await? {
            let sql = format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)");
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut server).await?;
        }
    }
    if let Ok(client) = async_nats::connect(&surroundings.nats).await {
        // They are absent after a run without NATS.
        let jetstream = async_nats::jetstream::new(client);
        let _ = jetstream.delete_stream(format!("{word}_USAGE")).await;
        let _ = jetstream.delete_stream(format!("{word}_ALERTS")).await;
    }
    Ok(())
}

/// Databases of this process that exist: its tenants', as its catalogue names them, the yardstick's, and last the
/// catalogue's, without which nobody would know the others.
async fn left(server: &mut PgConnection, surroundings: &Surroundings, word: &str) -> anyhow::Result<Vec<String>> {
    let existing: Vec<String> = sqlx::query_scalar("SELECT datname FROM pg_database").fetch_all(server).await?;
    if !existing.iter().any(|name| name == word) {
        return Ok(Vec::new());
    }
    let mut catalogue = PgConnection::connect(&database_url(surroundings, word)).await?;
    let tenants: Option<Vec<String>> =
        sqlx::query_scalar("SELECT 'tenant_' || id FROM tenant").fetch_all(&mut catalogue).await.ok();
    catalogue.close().await?;
    let ours: HashSet<String> = tenants.unwrap_or_default().into_iter().chain([format!("{word}_yard")]).collect();
    let mut left: Vec<String> = existing.into_iter().filter(|name| ours.contains(name)).collect();
    left.push(word.to_owned());
    Ok(left)
}

fn database_url(surroundings: &Surroundings, name: &str) -> String {
    let server = surroundings.postgres.rsplit_once('/').map_or("", |(server, _)| server);
    format!("{server}/{name}")
}

/// A new tenant with its quotas.
async fn newcomer(address: String, key: String, team: String) -> anyhow::Result<Tenant> {
    let mut link = Link::to(&address).await?;
    let body = json!({"name": format!("Load {team}"), "timeZone": "Europe/Berlin",
        "externalIds": [{"source": "litellm", "kind": "team", "id": team}]});
    let made = call(&mut link, "POST", "/v1/tenants", &key, Some(&body)).await?;
    let text = |value: &Value| value.as_str().map(str::to_owned).with_context(|| format!("onboarded: {made}"));
    let tenant = Tenant { id: text(&made["tenant"]["id"])?, team, key: text(&made["adminApiKey"]["key"])? };
    let quotas = json!({"quotas": quotas()});
    call(&mut link, "PUT", &format!("/v1/quotas/{}", tenant.id), &tenant.key, Some(&quotas)).await?;
    Ok(tenant)
}

/// What every tenant has: requests and tokens, by which its events are counted.
pub(crate) fn quotas() -> Vec<Value> {
    let quota = |metric, period| {
        json!({"scope": {"type": "tenant"}, "metric": metric, "period": period, "limit": 1_000_000_000_000_i64,
            "thresholds": [50, 80, 100], "enforcement": "block"})
    };
    vec![quota("requests", "total"), quota("tokens", "total")]
}

/// One call of the API that has to succeed.
pub(crate) async fn call(
    link: &mut Link,
    method: &str,
    path: &str,
    key: &str,
    body: Option<&Value>,
) -> anyhow::Result<Value> {
    let body = body.map(Value::to_string);
    let sent = request(method, path, key, body.as_deref().map(str::as_bytes));
    link.send(&sent).await?.json().with_context(|| format!("{method} {path}"))
}
