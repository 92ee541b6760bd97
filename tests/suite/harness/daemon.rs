//! The real binary, started with a configuration of its own, and killed at will.

use std::fmt::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::sync::Mutex;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Duration, sleep, timeout};

use super::api::Api;
use super::bus::{Bus, Names};
use super::tenant::Tenant;
use super::{Engine, PATIENCE, database, process, services};

pub const BINARY: &str = env!("CARGO_BIN_EXE_platform-api");
pub const BOOTSTRAP_KEY: &str = "suite-bootstrap-key-0123456789abcdef";
pub const PEPPER: &str = "suite-pepper-0123456789abcdef-0123456789";

/// What a daemon is started with.
#[derive(Debug, Clone)]
pub struct Setup {
    engine: Engine,
    /// Where the Postgres server is: for the tests, and for the daemon, which may reach it through a proxy.
    admin_url: String,
    server_url: String,
    nats_url: Option<String>,
    redis_url: Option<String>,
    /// Where SQLite keeps its files; in the daemon's own folder when absent.
    data: Option<PathBuf>,
    /// More TOML, table by table.
    sections: Vec<String>,
    /// More lines of `[http]`.
    http: String,
    environment: Vec<(String, String)>,
    /// Mistakes that every process makes.
    planted: String,
}

impl Setup {
    pub fn on(engine: Engine) -> Setup {
        Setup {
            engine,
            admin_url: services::postgres_url(),
            server_url: services::postgres_url(),
            nats_url: None,
            redis_url: None,
            data: None,
            sections: Vec::new(),
            http: String::new(),
            environment: Vec::new(),
            planted: String::new(),
        }
    }

    /// Another Postgres server than everybody's, and the address at which the daemon finds it.
    pub fn on_server(mut self, admin_url: &str, server_url: &str) -> Setup {
        (self.admin_url, self.server_url) = (admin_url.to_owned(), server_url.to_owned());
        self
    }

    pub fn with_nats(self) -> Setup {
        self.with_nats_at(services::nats_url())
    }

    pub fn with_nats_at(mut self, url: String) -> Setup {
        self.nats_url = Some(url);
        self
    }

    pub fn with_redis(self) -> Setup {
        self.with_redis_at(services::redis_url())
    }

    pub fn with_redis_at(mut self, url: String) -> Setup {
        self.redis_url = Some(url);
        self
    }

    /// SQLite's files in this folder.
    pub fn with_data(mut self, folder: &Path) -> Setup {
        self.data = Some(folder.to_owned());
        self
    }

    /// A variable that is no setting: `LD_PRELOAD`.
    pub fn with_variable(mut self, name: &str, value: &str) -> Setup {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// TOML that stands by itself: `[[notify.channels]]`, `[[auth.issuers]]`.
    pub fn with_section(mut self, toml: &str) -> Setup {
        self.sections.push(toml.to_owned());
        self
    }

    /// Settings of `[http]`, as lines.
    pub fn with_http(mut self, toml: &str) -> Setup {
        self.http.push_str(toml);
        self
    }

    /// One setting, as the environment writes it: `TENANTS__IDLE_MS`.
    pub fn with(mut self, name: &str, value: impl ToString) -> Setup {
        self.environment.push((format!("PLATFORM_API__{name}"), value.to_string()));
        self
    }

    /// A mistake that every process of this daemon makes: see `src/fault.rs`.
    pub fn planting(mut self, mistake: &str) -> Setup {
        self.planted = format!("{mistake}=return");
        self
    }

    pub async fn start(self) -> Daemon {
        let mut daemon = Daemon::prepare(self).await;
        daemon.restart().await;
        daemon
    }
}

/// A daemon under test. Its data, databases and streams end with it.
pub struct Daemon {
    pub engine: Engine,
    pub folder: TempDir,
    pub names: Names,
    pub redis_prefix: String,
    /// Called with the platform administrator's key.
    pub platform: Api,
    setup: Setup,
    control_database: String,
    tenants: Mutex<Vec<String>>,
    child: Option<Child>,
    is_peer: bool,
}

impl Daemon {
    /// Everything but the process.
    pub async fn prepare(setup: Setup) -> Daemon {
        let control_database = format!("suite_{}", services::unique());
        if setup.engine == Engine::Postgres {
            database::create(&setup.admin_url, &control_database).await;
        }
        let names = Names::unique(setup.nats_url.as_deref().unwrap_or_default());
        Daemon::node(setup, control_database, names, false)
    }

    /// Another node, on the same databases and streams, which do not end with it.
    pub fn peer(&self) -> Daemon {
        assert_eq!(self.engine, Engine::Postgres, "files have one owner");
        Daemon::node(self.setup.clone(), self.control_database.clone(), self.names.clone(), true)
    }

    fn node(setup: Setup, control_database: String, names: Names, is_peer: bool) -> Daemon {
        let folder = tempfile::Builder::new().prefix("platform-api-suite").tempdir().expect("a temporary folder");
        let base = format!("http://127.0.0.1:{}", services::free_port());
        let daemon = Daemon {
            engine: setup.engine,
            folder,
            names,
            redis_prefix: format!("suite:{}:", services::unique()),
            platform: Api::at(&base).with(BOOTSTRAP_KEY),
            setup,
            control_database,
            tenants: Mutex::default(),
            child: None,
            is_peer,
        };
        std::fs::write(daemon.config_file(), daemon.config()).expect("the folder is ours");
        daemon
    }

    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("platform-api.toml")
    }

    pub fn store_url(&self) -> String {
        match self.engine {
            Engine::Sqlite => format!("sqlite:{}", self.data().display()),
            Engine::Postgres => services::database_url(&self.setup.server_url, &self.control_database),
        }
    }

    pub fn control_database(&self) -> &str {
        &self.control_database
    }

    /// A database of the server, as the tests reach it.
    pub fn database_url(&self, name: &str) -> String {
        services::database_url(&self.setup.admin_url, name)
    }

    pub fn admin_url(&self) -> &str {
        &self.setup.admin_url
    }

    /// Where SQLite keeps its files.
    pub fn data(&self) -> PathBuf {
        self.setup.data.clone().unwrap_or_else(|| self.folder.path().join("data"))
    }

    /// Where SQLite keeps a tenant's books.
    pub fn tenant_file(&self, tenant: &str) -> PathBuf {
        self.data().join("tenants").join(format!("{tenant}.db"))
    }

    fn config(&self) -> String {
        let mut toml = String::new();
        let listen = self.platform.base().trim_start_matches("http://");
        let _ = writeln!(toml, "[http]\nlisten = \"{listen}\"\n{}", self.setup.http);
        let _ = writeln!(toml, "[store]\nurl = \"{}\"\nconnections_max = 13\nreaders_max = 3", self.store_url());
        let _ = writeln!(toml, "[tenants]\nopen_max = 8\nrestart_backoff_ms = 50");
        let _ = writeln!(toml, "[auth]\nbootstrap_key = \"{BOOTSTRAP_KEY}\"\nkey_pepper = \"{PEPPER}\"");
        let _ = writeln!(toml, "[vault]\nkek_file = \"kek\"");
        let _ = writeln!(toml, "[telemetry]\nlog = \"info,platform_api=debug\"\nlog_format = \"json\"");
        if self.setup.nats_url.is_some() {
            let Names { url, subject, stream, consumer, alert_subject, alert_stream } = &self.names;
            let _ = writeln!(toml, "[nats]\nurl = \"{url}\"\nstream = \"{stream}\"");
            let _ = writeln!(toml, "consumer = \"{consumer}\"\nsubject = \"{subject}\"");
            let _ = writeln!(toml, "alert_subject = \"{alert_subject}\"\nalert_stream = \"{alert_stream}\"");
        }
        if let Some(url) = &self.setup.redis_url {
            let _ = writeln!(toml, "[redis]\nurl = \"{url}\"");
            let _ = writeln!(toml, "key_prefix = \"{}\"", self.redis_prefix);
            // The platform's own buckets are named alike everywhere.
            let _ = writeln!(toml, "[rate_limits]\nkey_prefix = \"{}rates:\"", self.redis_prefix);
        }
        self.setup.sections.iter().for_each(|section| toml.push_str(section));
        toml
    }

    /// A command of the binary with this daemon's configuration.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.current_dir(self.folder.path()).args(arguments).kill_on_drop(true);
        clean_environment(&mut command);
        command.envs(self.setup.environment.iter().cloned());
        command
    }

    pub async fn run(&self, arguments: &[&str]) -> Output {
        timeout(PATIENCE, self.command(arguments).output()).await.expect("the command ends").expect("the binary runs")
    }

    /// Starts the process, and waits for nothing.
    pub fn spawn(&mut self) {
        self.spawn_armed("");
    }

    /// The same with points at which the process dies or stops, and mistakes it makes: see `src/fault.rs`.
    pub fn spawn_armed(&mut self, points: &str) {
        assert!(self.child.is_none(), "the daemon runs already");
        let log = std::fs::File::options().create(true).append(true).open(self.log_file()).expect("a log file");
        let config = self.config_file();
        let mut command = self.command(&["serve", "--config", config.to_str().expect("a plain path")]);
        command.env("FAILPOINTS", [&self.setup.planted, points].join(";"));
        let output = log.try_clone().expect("a second handle");
        self.child = Some(command.stdin(Stdio::null()).stdout(output).stderr(log).spawn().expect("the binary starts"));
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Starts the process and waits until it is ready.
    pub async fn restart(&mut self) {
        self.spawn();
        self.ready().await;
    }

    pub async fn ready(&mut self) {
        let began = tokio::time::Instant::now();
        let api = self.platform.anonymous();
        loop {
            if let Some(status) = self.child.as_mut().expect("the daemon runs").try_wait().expect("our child") {
                panic!("the daemon ended while starting: {status}\n{}", self.log_tail());
            }
            let asked = api.try_raw(reqwest::Method::GET, "/health/ready", &[], Vec::new());
            if asked.await.is_ok_and(|answer| answer.status == 200) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "not ready\n{}", self.log_tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGKILL: no warning, no farewell.
    pub async fn kill(&mut self) {
        let mut child = self.child.take().expect("the daemon runs");
        child.kill().await.expect("a process of ours");
    }

    /// Waits for the process to die at the point it is armed with.
    ///
    /// # Panics
    /// When it does not, naming the point: nothing led there.
    pub async fn dies_at(&mut self, point: &str) {
        let mut child = self.child.take().expect("the daemon runs");
        let Ok(ended) = timeout(PATIENCE, child.wait()).await else {
            panic!("{point} was never reached\n{}", self.log_tail());
        };
        let status = ended.expect("our child");
        assert_eq!(status.signal(), Some(9), "{point}: ended with {status}\n{}", self.log_tail());
    }

    /// Sends the process a signal: `TERM`, `STOP`, `CONT`.
    pub async fn signal(&self, signal: &str) {
        process::signal(self.process(), signal).await;
    }

    /// The running process.
    pub fn process(&self) -> u32 {
        self.child.as_ref().and_then(Child::id).expect("the daemon runs")
    }

    /// Has it stopped in the middle of what it was doing?
    pub fn is_frozen(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process())).expect("a process of ours");
        stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T'))
    }

    /// SIGTERM; the status it ends with.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal("TERM").await;
        let mut child = self.child.take().expect("the daemon runs");
        timeout(PATIENCE, child.wait()).await.expect("it ends when asked to").expect("our child")
    }

    /// SIGTERM, and a clean end.
    pub async fn terminate(&mut self) {
        let status = self.stop().await;
        assert!(status.success(), "ended with {status}\n{}", self.log_tail());
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    pub async fn bus(&self) -> Bus {
        Bus::of(&self.names).await
    }

    /// Provisions a tenant with these words besides its name.
    pub async fn onboard_as(&self, mut body: Value, name: &str) -> Tenant {
        body["name"] = json!(name);
        let answer = self.platform.post("/v1/tenants", &body).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        let tenant = Tenant::of(&self.platform, &answer.body);
        self.remember(&tenant.id);
        tenant
    }

    pub async fn onboard(&self, name: &str) -> Tenant {
        self.onboard_as(json!({}), name).await
    }

    /// So that its database is dropped at the end.
    pub fn remember(&self, tenant: &str) {
        self.tenants.lock().unwrap().push(tenant.to_owned());
    }

    /// `platform-api audit verify`; whether it found every chain whole.
    pub async fn verify_offline(&self) -> Output {
        let config = self.config_file();
        self.run(&["audit", "verify", "--config", config.to_str().expect("a plain path")]).await
    }

    /// Waits until the stream has nothing for us.
    pub async fn drained(&self, bus: &Bus) {
        let empty = async {
            while bus.backlog().await > 0 {
                sleep(Duration::from_millis(50)).await;
            }
        };
        if timeout(PATIENCE, empty).await.is_err() {
            let metrics = self.platform.anonymous().get("/metrics").await.text;
            let metrics: Vec<&str> = metrics.lines().filter(|line| line.starts_with("platform_api_stream")).collect();
            panic!("the stream is not read to its end: {}\n{}", bus.standing().await, metrics.join("\n"));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the daemon on {} last said ----\n{}", self.engine, self.log_tail());
        }
        let (child, names) = (self.child.take(), self.names.clone());
        let tenants = std::mem::take(&mut *self.tenants.lock().unwrap());
        let databases = (self.engine == Engine::Postgres && !self.is_peer).then(|| self.control_database.clone());
        let (nats, admin_url) = (self.setup.nats_url.is_some() && !self.is_peer, self.setup.admin_url.clone());
        // A runtime of its own: this one may be unwinding.
        let ending = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                if let Some(mut child) = child {
                    let _ = child.kill().await;
                }
                if let Some(control) = databases {
                    database::drop_all(&admin_url, &control, &tenants).await;
                }
                if nats {
                    names.delete().await;
                }
            });
        });
        let _ = ending.join();
    }
}

/// No setting of whoever runs the tests.
pub fn clean_environment(command: &mut Command) {
    for (name, _) in std::env::vars() {
        if name == "FAILPOINTS" || name.starts_with("PLATFORM_API__") || name.to_ascii_lowercase().ends_with("_proxy") {
            command.env_remove(name);
        }
    }
}

/// The project's own folder.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
