//! The daemon under load: the real binary as a child, with everything it needs of its own.

use std::fmt::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::{Instant, sleep};

use crate::figures::Group;
use crate::link::{Link, request};
use crate::{StoreKind, Surroundings};

/// How long starting and ending may take.
const PATIENCE: Duration = Duration::from_secs(60);

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
    /// Starts a daemon; with `nats` it reads a stream of its own.
    pub(crate) async fn start(store: StoreKind, nats: bool, surroundings: &Surroundings) -> anyhow::Result<Plant> {
        let word = format!("load{}", std::process::id());
        let folder = std::env::temp_dir().join(format!("platform-api-{word}"));
        std::fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        let beside = std::env::current_exe()?.with_file_name("platform-api");
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut plant = Plant {
            address: format!("127.0.0.1:{port}"),
            store,
            key: format!("{word}-bootstrap-key-0123456789abcdef"),
            word,
            tenants: Vec::new(),
            surroundings: surroundings.clone(),
            folder,
            binary: surroundings.binary.clone().unwrap_or(beside),
            child: None,
        };
        if store == StoreKind::Postgres {
            plant.administer(&format!("CREATE DATABASE \"{}\" TEMPLATE template0 ENCODING 'UTF8'", plant.word)).await?;
        }
        std::fs::write(plant.config_file(), plant.config(nats))?;
        plant.launch().await?;
        Ok(plant)
    }

    fn config_file(&self) -> PathBuf {
        self.folder.join("platform-api.toml")
    }

    fn config(&self, nats: bool) -> String {
        let store = match self.store {
            StoreKind::Sqlite => format!("sqlite:{}", self.data().display()),
            StoreKind::Postgres => self.database_url(&self.word),
        };
        let mut toml = String::new();
        let (listen, key, word) = (&self.address, &self.key, &self.word);
        let _ = writeln!(toml, "[http]\nlisten = \"{listen}\"\n[store]\nurl = \"{store}\"");
        let _ = writeln!(
            toml,
            "[auth]\nbootstrap_key = \"{key}\"\nkey_pepper = \"{word}-pepper-0123456789abcdef-0123456789\""
        );
        if nats {
            let _ = writeln!(toml, "[nats]\nurl = \"{}\"\nstream = \"{}\"", self.surroundings.nats, self.stream());
            let _ = writeln!(toml, "consumer = \"{word}\"\nsubject = \"{}\"", self.subject());
            let _ = writeln!(toml, "alert_subject = \"{word}.alert\"\nalert_stream = \"{word}_ALERTS\"");
        }
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
        let server = self.surroundings.postgres.rsplit_once('/').map_or("", |(server, _)| server);
        format!("{server}/{name}")
    }

    pub(crate) fn ledger_database(&self, tenant: &Tenant) -> String {
        match self.store {
            StoreKind::Postgres => self.database_url(&format!("tenant_{}", tenant.id)),
            StoreKind::Sqlite => self.data().join("tenants").join(format!("{}.db", tenant.id)).display().to_string(),
        }
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

    /// Onboards `count` tenants with two quotas each, neither of which is ever reached.
    pub(crate) async fn onboard(&mut self, count: u32) -> anyhow::Result<()> {
        let mut link = Link::to(&self.address).await?;
        for at in 0..count {
            let team = format!("{}-team-{at}", self.word);
            let body = json!({"name": format!("Load {at}"), "timeZone": "Europe/Berlin",
                "externalIds": [{"source": "litellm", "kind": "team", "id": team}]});
            let made = call(&mut link, "POST", "/v1/tenants", &self.key, Some(&body)).await?;
            let text = |value: &Value| value.as_str().map(str::to_owned).with_context(|| format!("onboarded: {made}"));
            let (id, key) = (text(&made["tenant"]["id"])?, text(&made["adminApiKey"]["key"])?);
            let quota = |metric, period| {
                json!({"scope": {"type": "tenant"}, "metric": metric, "period": period, "limit": 1_000_000_000_000_i64,
                    "thresholds": [50, 80, 100], "enforcement": "block"})
            };
            let quotas = json!({"quotas": [quota("requests", "total"), quota("tokens", "day")]});
            call(&mut link, "PUT", &format!("/v1/quotas/{id}"), &key, Some(&quotas)).await?;
            self.tenants.push(Tenant { id, team, key });
        }
        Ok(())
    }

    /// Events counted so far, as the tenants' quotas tell, and their tokens.
    pub(crate) async fn counted(&self, link: &mut Link) -> anyhow::Result<(i64, i64)> {
        let mut sums = (0, 0);
        for tenant in &self.tenants {
            let path = format!("/v1/quotas/{}", tenant.id);
            let told = call(link, "GET", &path, &tenant.key, None).await?;
            let used = |at: usize| told["quotas"][at]["used"].as_i64().with_context(|| format!("no usage in {told}"));
            sums = (sums.0 + used(0)?, sums.1 + used(1)?);
        }
        Ok(sums)
    }

    pub(crate) fn daemon(&self) -> Group {
        Group::Process(self.child.as_ref().map_or(0, Child::id))
    }

    /// The Postgres processes that serve our databases.
    pub(crate) fn backends(&self) -> Group {
        let tenants = self.tenants.iter().map(|tenant| format!("tenant_{} ", tenant.id));
        Group::Named(tenants.chain([format!(" {} ", self.word)]).collect())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Ends the daemon and deletes what was made for it.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        let halted = self.halt().await;
        if self.store == StoreKind::Postgres {
            let tenants = self.tenants.iter().map(|tenant| format!("tenant_{}", tenant.id));
            for name in tenants.chain([self.word.clone(), format!("{}_yard", self.word)]) {
                self.administer(&format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)")).await?;
            }
        }
        if let Ok(client) = async_nats::connect(&self.surroundings.nats).await {
            // They are absent in a run without NATS.
            let jetstream = async_nats::jetstream::new(client);
            let _ = jetstream.delete_stream(self.stream()).await;
            let _ = jetstream.delete_stream(format!("{}_ALERTS", self.word)).await;
        }
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
