//! Configuration: one struct per room; file, then environment; validated once, every error at once.
//!
//! Environment overrides are `PLATFORM_API__<SECTION>__<KEY>`, as in `PLATFORM_API__HTTP__LISTEN=0.0.0.0:8082`.
//! Secrets are [`SecretString`]: no Debug or error output shows them.

mod authorization;
mod envoy;
mod flagsmith;
mod gateway;
mod http;
mod issuer;
mod jobs;
mod kong_admin;
mod litellm;
mod login;
mod nats;
mod organization;
mod rate_limits;
mod routes;
mod vault;

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

pub use authorization::{Authorization, OpenFga, SubjectIds};
pub use envoy::{Envoy, EnvoyKeys, OnUnknown};
pub use flagsmith::Flagsmith;
pub use gateway::{Gateway, Kong, KongAccessLog, KongMetrics, KongNode, KongRedis, LimitBy};
pub use http::{Cors, Http, ProxyHeader};
pub use issuer::{Introspection, Issuer, LoginClient};
pub use jobs::Jobs;
pub use kong_admin::{KongAdmin, KongMode};
pub use litellm::LiteLlm;
pub use login::{Local, Login};
pub use nats::{Nats, nats_login};
pub use organization::Organization;
pub use rate_limits::{Limit, RateLimits, TierLimits};
pub use routes::{QuietHours, Route};
pub use vault::{KekKind, Vault};

use crate::domain::reconcile::Terms;
use crate::domain::report::Share;
use crate::domain::time::MICROS_PER_DAY;

/// Everything, with defaults that run on the embedded database with nothing installed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub http: Http,
    pub store: Store,
    pub tenants: Tenants,
    pub organization: Organization,
    pub intake: Intake,
    pub nats: Nats,
    pub redis: Redis,
    pub auth: Auth,
    pub authorization: Authorization,
    pub rate_limits: RateLimits,
    pub envoy: Envoy,
    pub flagsmith: Flagsmith,
    pub notify: Notify,
    pub reconcile: Reconcile,
    pub gateway: Gateway,
    pub jobs: Jobs,
    pub vault: Vault,
    pub litellm: LiteLlm,
    pub telemetry: Telemetry,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// `sqlite:<directory>`, or `postgres://…` naming the control database.
    pub url: SecretString,
    /// Connections this node may hold open, tenants' and readers' together.
    pub connections_max: usize,
    /// Connections of those that slow reads (reports, pages, verification) may use at once.
    pub readers_max: usize,
    pub statement_timeout_ms: u64,
    /// How often a node asks what others have changed in the catalogue. Of files there is one owner, who need not ask.
    pub catalogue_poll_ms: u64,
}

impl Default for Store {
    fn default() -> Store {
        Store {
            url: SecretString::from("sqlite:./data"),
            connections_max: 80,
            readers_max: 16,
            statement_timeout_ms: 15_000,
            catalogue_poll_ms: 250,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tenants {
    /// Tenants open at once; the least recently used idle ones rest first.
    pub open_max: usize,
    /// Tenants being opened at once.
    pub opening_max: usize,
    /// A tenant without messages for this long rests.
    pub idle_ms: u64,
    /// Usage events a tenant may have waiting.
    pub permits_events: usize,
    /// Bytes of usage events a tenant may have waiting.
    pub permits_bytes: usize,
    /// Most events of one commit.
    pub commit_events_max: usize,
    /// First delay before a failed tenant is opened again; doubles up to `restart_backoff_max_ms`.
    pub restart_backoff_ms: u64,
    pub restart_backoff_max_ms: u64,
}

impl Default for Tenants {
    fn default() -> Tenants {
        Tenants {
            open_max: 60,
            opening_max: 8,
            idle_ms: 120_000,
            permits_events: 20_000,
            permits_bytes: 64 * 1024 * 1024,
            commit_events_max: 5_000,
            restart_backoff_ms: 100,
            restart_backoff_max_ms: 5_000,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Intake {
    /// Events that occurred longer ago are quarantined.
    pub retention_days: u32,
    /// Events of one request to `POST /v1/usage/events`.
    pub batch_events_max: usize,
    /// Longest single event, in bytes of JSON.
    pub event_bytes_max: usize,
    /// How long HTTP ingestion waits for a saturated tenant.
    pub patience_ms: u64,
    /// How long LiteLLM's callback, which does not come back, waits. What its tenant cannot take by then is parked.
    pub litellm_patience_ms: u64,
    /// Events that may wait in quarantine for tenants that cannot take them, for all tenants of the platform together.
    pub parked_events_max: u64,
    /// Events in quarantine, and bytes of them, that are kept whole for one tenant, and for all that is of no tenant. Further
    /// ones are only counted. What waits for its tenant is not among them.
    pub quarantine_events_max: u64,
    pub quarantine_bytes_max: u64,
}

impl Intake {
    /// One tenant's share of the quarantine.
    #[must_use]
    pub fn quarantine_share(&self) -> Share {
        Share { events_max: self.quarantine_events_max, bytes_max: self.quarantine_bytes_max }
    }
}

impl Default for Intake {
    fn default() -> Intake {
        Intake {
            retention_days: 400,
            batch_events_max: 5_000,
            event_bytes_max: 8 * 1024 * 1024,
            patience_ms: 250,
            litellm_patience_ms: 10_000,
            parked_events_max: 1_000_000,
            quarantine_events_max: 100_000,
            quarantine_bytes_max: 1024 * 1024 * 1024,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Redis {
    /// `redis://…`; without it no mirror, and each node limits rates for itself.
    pub url: Option<SecretString>,
    /// Prefix of the mirrored keys: `<prefix><tenantId>`.
    pub key_prefix: String,
    /// A mirrored standing that is not refreshed disappears after this long.
    pub ttl_ms: u64,
}

impl Default for Redis {
    fn default() -> Redis {
        Redis { url: None, key_prefix: "platform-api:standings:".into(), ttl_ms: 60_000 }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Auth {
    /// The platform administrator's key.
    pub bootstrap_key: Option<SecretString>,
    /// Key of the API keys' hashes; made and kept beside the data when absent.
    pub key_pepper: Option<SecretString>,
    /// Where a pepper that was made is kept; the SQLite directory when absent.
    pub key_pepper_file: Option<PathBuf>,
    /// Failures within a minute, from one address with one credential, after which a failure is answered with 429.
    pub failures_per_credential_max: u32,
    /// The same from one address with whatever credentials.
    pub failures_per_source_max: u32,
    pub issuers: Vec<Issuer>,
    pub login: Login,
    pub local: Local,
}

impl Default for Auth {
    fn default() -> Auth {
        Auth {
            bootstrap_key: None,
            key_pepper: None,
            key_pepper_file: None,
            failures_per_credential_max: 100,
            failures_per_source_max: 1_000,
            issuers: Vec::new(),
            login: Login::default(),
            local: Local::default(),
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Notify {
    pub channels: Vec<Channel>,
    /// Which alerts go to which of them; all to all when there is none.
    pub routes: Vec<Route>,
    /// Base of links in messages, as `https://platform.example.com`.
    pub public_url: Option<String>,
    /// An alert fires, once per quota and period, when a quota will be exhausted sooner than this at the rate of its last
    /// hour and 5 % of it are used; 0, the default, for no such alert. It is over when the quota lasts half as long again.
    pub burn_alert_ms: u64,
}

/// One place alerts go to. The name is stable: what is owed is owed to it.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Channel {
    /// Alertmanager's API v2; `url` without `/api/v2/alerts`.
    Alertmanager {
        name: String,
        url: String,
        /// How often a firing alert is posted again.
        #[serde(default = "repeat_ms")]
        repeat_ms: u64,
        #[serde(default)]
        allow_private_addresses: bool,
    },
    /// A webhook in Standard Webhooks form.
    Webhook {
        name: String,
        url: String,
        /// `whsec_…`, base64 of the signing key.
        secret: SecretString,
        #[serde(default)]
        allow_private_addresses: bool,
    },
    /// JetStream, on `nats.alert_subject`.
    Nats { name: String },
    /// PagerDuty's Events API v2.
    PagerDuty {
        name: String,
        /// The integration key of a service.
        routing_key: SecretString,
        /// Without `/v2/enqueue`; PagerDuty's own in the US when absent.
        url: Option<String>,
        #[serde(default)]
        allow_private_addresses: bool,
    },
    /// Mail over SMTP, by way of a relay.
    Email {
        name: String,
        host: String,
        /// 587, 465 with `tls = "implicit"`, 25 with `tls = "none"` when absent.
        port: Option<u16>,
        #[serde(default)]
        tls: EmailTls,
        /// PEM certificates of the authorities to trust besides the system's, for a relay of one's own.
        ca_file: Option<PathBuf>,
        #[serde(default)]
        allow_private_addresses: bool,
        user: Option<String>,
        password: Option<SecretString>,
        from: String,
        to: Vec<String>,
    },
    /// A Slack incoming webhook.
    Slack {
        name: String,
        /// Whoever knows it may post.
        url: SecretString,
        #[serde(default)]
        allow_private_addresses: bool,
    },
}

/// How a mail relay is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmailTls {
    /// Begins in the clear, and goes on only after STARTTLS.
    #[default]
    Starttls,
    /// TLS from the first byte.
    Implicit,
    /// In the clear, for a relay on this machine.
    None,
}

fn repeat_ms() -> u64 {
    60_000
}

impl Channel {
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Channel::Alertmanager { name, .. }
            | Channel::Webhook { name, .. }
            | Channel::Nats { name }
            | Channel::PagerDuty { name, .. }
            | Channel::Email { name, .. }
            | Channel::Slack { name, .. } => name,
        }
    }
}

/// How the ledger is compared with what a gateway says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reconcile {
    /// Width of a window: whole minutes that divide an hour.
    pub window_ms: u64,
    /// A window is judged this long after it ended: the longest request, the gateway's log queue, and the event's way here.
    pub settle_ms: u64,
    /// How far apart the gateway and the ledger may date the same request.
    pub slack_ms: u64,
    /// Time between two looks at a meter.
    pub poll_ms: u64,
    /// How far the gateway's clock may be from ours before it is told.
    pub skew_ms: u64,
    /// Consecutive windows in which a cause must be found before it alerts.
    pub persistence: usize,
    /// How long a gateway's requests, meters and verdicts are kept.
    pub keep_days: u32,
}

impl Default for Reconcile {
    fn default() -> Reconcile {
        Reconcile {
            window_ms: 300_000,
            settle_ms: 180_000,
            slack_ms: 120_000,
            poll_ms: 15_000,
            skew_ms: 2_000,
            persistence: 2,
            keep_days: 35,
        }
    }
}

impl Reconcile {
    #[must_use]
    pub fn terms(&self) -> Terms {
        let micros = |millis: u64| i64::try_from(millis).unwrap_or(i64::MAX).saturating_mul(1_000);
        Terms {
            window_micros: micros(self.window_ms),
            settle_micros: micros(self.settle_ms),
            slack_micros: micros(self.slack_ms),
            poll_micros: micros(self.poll_ms),
            skew_micros: micros(self.skew_ms),
            persistence: self.persistence,
            keep_micros: i64::from(self.keep_days) * MICROS_PER_DAY,
            listened_to: [true; 3],
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// `tracing` filter, as `info,platform_api=debug`.
    pub log: String,
    /// `json`, `text`, or `auto`: text on a terminal.
    pub log_format: String,
    /// OTLP/HTTP traces go to `<endpoint>/v1/traces`; off without it.
    pub otlp_endpoint: Option<String>,
    /// On SIGTERM, how long everything may take.
    pub shutdown_ms: u64,
}

impl Default for Telemetry {
    fn default() -> Telemetry {
        Telemetry {
            log: "info,sqlx=warn,async_nats=warn,poem=warn".into(),
            log_format: "auto".into(),
            otlp_endpoint: None,
            shutdown_ms: 25_000,
        }
    }
}

/// Why the configuration cannot be used: every reason, not the first one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration cannot be used:\n  - {}", problems.join("\n  - "))]
pub struct Invalid {
    pub problems: Vec<String>,
}

impl Config {
    /// Reads `file` if given, then the environment, and validates.
    ///
    /// # Errors
    /// [`Invalid`], naming every problem by its key. No value of a secret appears in it.
    pub fn load(file: Option<&Path>) -> Result<Config, Invalid> {
        let text = match file {
            Some(path) => std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))?,
            None => String::new(),
        };
        let environment = config::Environment::with_prefix("PLATFORM_API").prefix_separator("__").separator("__");
        Config::read(&text, Some(environment.try_parsing(true)))
    }

    /// Reads TOML, and over it the environment, and validates.
    ///
    /// # Errors
    /// As [`load`](Config::load).
    pub fn read(toml: &str, environment: Option<config::Environment>) -> Result<Config, Invalid> {
        let file = config::File::from_str(toml, config::FileFormat::Toml);
        let sources = config::Config::builder().add_source(file);
        let sources = environment.into_iter().fold(sources, |sources, over| sources.add_source(over));
        let unreadable = |error: config::ConfigError| Invalid { problems: vec![without_source(&error.to_string())] };
        let sources = sources.build().map_err(unreadable)?;
        let problems = moved(&sources);
        if !problems.is_empty() {
            return Err(Invalid { problems });
        }
        sources.try_deserialize::<Config>().map_err(unreadable)?.validated()
    }

    /// # Errors
    /// [`Invalid`], with every problem.
    pub fn validated(self) -> Result<Config, Invalid> {
        let mut problems = Vec::new();
        let mut check = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        let url = self.store.url.expose_secret();
        let known = ["sqlite:", "postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme));
        check(known, "store.url: must begin with sqlite: or postgres://");
        check(url != "sqlite:", "store.url: sqlite: needs a directory, such as sqlite:./data");
        check((10..=1_000).contains(&self.store.catalogue_poll_ms), "store.catalogue_poll_ms: must be from 10 to 1000");
        check(self.store.readers_max > 0, "store.readers_max: must be above zero");
        check(
            self.tenants.open_max > 0
                && self.tenants.open_max + self.store.readers_max + 2 <= self.store.connections_max,
            "tenants.open_max: must be above zero, and with store.readers_max and 2 for the control database fit into store.connections_max",
        );
        check(self.tenants.opening_max > 0, "tenants.opening_max: must be above zero");
        check(self.tenants.commit_events_max > 0, "tenants.commit_events_max: must be above zero");
        check(
            self.tenants.permits_events >= self.tenants.commit_events_max,
            "tenants.permits_events: must not be below tenants.commit_events_max",
        );
        check(
            u32::try_from(self.tenants.permits_bytes / 1024).is_ok_and(|kib| kib > 0),
            "tenants.permits_bytes: must be from 1 KiB to 4 TiB",
        );
        check(
            self.notify.burn_alert_ms == 0 || (60_000..=31 * 86_400_000).contains(&self.notify.burn_alert_ms),
            "notify.burn_alert_ms: must be 0, or from 60000 to 2678400000",
        );
        check((1..=3_650).contains(&self.intake.retention_days), "intake.retention_days: must be from 1 to 3650");
        check(
            (1..=100_000).contains(&self.intake.batch_events_max),
            "intake.batch_events_max: must be from 1 to 100000",
        );
        check(
            (1..=1_000_000_000).contains(&self.intake.parked_events_max),
            "intake.parked_events_max: must be from 1 to 1000000000",
        );
        check(
            (1..=10_000_000).contains(&self.intake.quarantine_events_max),
            "intake.quarantine_events_max: must be from 1 to 10000000",
        );
        check(self.intake.quarantine_bytes_max > 0, "intake.quarantine_bytes_max: must be above zero");
        check(
            self.nats.pull_messages > 0 && self.nats.pull_messages <= self.nats.ack_pending_max,
            "nats.pull_messages: must be above zero and not above nats.ack_pending_max",
        );
        check(self.nats.in_flight_events > 0, "nats.in_flight_events: must be above zero");
        check(self.nats.in_flight_bytes > 0, "nats.in_flight_bytes: must be above zero");
        let minutes = self.reconcile.window_ms / 60_000;
        check(
            minutes > 0 && 60 % minutes == 0 && self.reconcile.window_ms.is_multiple_of(60_000),
            "reconcile.window_ms: must be whole minutes that divide an hour",
        );
        let day = 86_400_000;
        check(
            [self.reconcile.settle_ms, self.reconcile.slack_ms, self.reconcile.poll_ms, self.reconcile.skew_ms]
                .iter()
                .all(|setting| *setting <= day),
            "reconcile: settle_ms, slack_ms, poll_ms and skew_ms must not be above a day",
        );
        check((1..=1_000).contains(&self.reconcile.persistence), "reconcile.persistence: must be from 1 to 1000");
        check((1..=3_650).contains(&self.reconcile.keep_days), "reconcile.keep_days: must be from 1 to 3650");
        self.gateway.kong.check(&mut check);
        check(self.redis.ttl_ms >= 1_000, "redis.ttl_ms: must be at least 1000");
        check(
            ["auto", "json", "text"].contains(&self.telemetry.log_format.as_str()),
            "telemetry.log_format: must be auto, json or text",
        );
        if let Some(key) = &self.auth.bootstrap_key {
            check(key.expose_secret().len() >= 24, "auth.bootstrap_key: must have at least 24 characters");
        }
        if let Some(pepper) = &self.auth.key_pepper {
            check(pepper.expose_secret().len() >= 32, "auth.key_pepper: must have at least 32 characters");
        }
        let stored_beside_data = url.starts_with("sqlite:") || self.auth.key_pepper_file.is_some();
        check(
            self.auth.key_pepper.is_some() || stored_beside_data,
            "auth.key_pepper: must be set (or auth.key_pepper_file) when the store is Postgres",
        );
        let mut names = std::collections::BTreeSet::new();
        for (at, channel) in self.notify.channels.iter().enumerate() {
            let name = channel.name();
            let plain = !name.is_empty()
                && name.len() <= 64
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
            check(plain, &format!("notify.channels[{at}].name: must be 1 to 64 letters, digits, - or _"));
            check(names.insert(name), &format!("notify.channels[{at}].name: {name} is used twice"));
            if let Channel::Alertmanager { url, .. } | Channel::Webhook { url, .. } = channel {
                let web = url.starts_with("https://") || url.starts_with("http://");
                check(web, &format!("notify.channels[{at}].url: must be an http:// or https:// URL"));
            }
            if let Channel::Nats { .. } = channel {
                check(self.nats.url.is_some(), &format!("notify.channels[{at}]: needs nats.url"));
            }
        }
        problems.extend(issuer::problems(&self.auth.issuers));
        problems.extend(self.auth.login_problems());
        problems.extend(self.notify.route_problems());
        problems.extend(self.http.problems());
        problems.extend(self.organization.problems());
        problems.extend(self.authorization.problems());
        problems.extend(self.rate_limits.problems());
        problems.extend(self.envoy.problems());
        problems.extend(self.jobs.problems());
        problems.extend(self.flagsmith.problems());
        problems.extend(self.vault.problems());
        problems.extend(self.litellm.problems());
        if problems.is_empty() { Ok(self) } else { Err(Invalid { problems }) }
    }

    /// How far back an event may have occurred.
    #[must_use]
    pub fn retention_micros(&self) -> i64 {
        i64::from(self.intake.retention_days) * crate::domain::time::MICROS_PER_DAY
    }
}

/// Settings by a name of before, with that of now. A table is told only when none of its settings is.
fn moved(sources: &config::Config) -> Vec<String> {
    let mut problems: Vec<String> = Vec::new();
    for (before, now) in gateway::MOVED {
        let told = problems.iter().any(|problem| problem.starts_with(&format!("{before}.")));
        if !told && sources.get::<config::Value>(before).is_ok() {
            problems.push(format!("{before}: is called {now} now"));
        }
    }
    problems
}

/// A syntax error without the line it quotes, which may hold a secret.
fn without_source(error: &str) -> String {
    let ours: Vec<&str> = error.lines().filter(|line| !line.contains('|')).collect();
    ours.join(": ")
}

fn unreadable(path: &Path, error: &std::io::Error) -> Invalid {
    Invalid { problems: vec![format!("{}: {error}", path.display())] }
}

/// Is it an https:// URL, or an http:// one of this very machine?
fn is_trusted_url(text: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(text) else { return false };
    match url.scheme() {
        "https" => url.host_str().is_some(),
        "http" => matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]")),
        _ => false,
    }
}

/// Milliseconds of a setting as a duration.
#[must_use]
pub fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert!(Config::default().validated().is_ok());
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let mut config = Config::default();
        config.http.listen = "nowhere".into();
        config.store.url = SecretString::from("mysql://root:secret@db");
        config.tenants.open_max = 0;
        config.intake.parked_events_max = 0;
        config.auth.bootstrap_key = Some(SecretString::from("short"));
        let problems = config.validated().unwrap_err().problems;
        for key in ["http.listen", "store.url", "tenants.open_max", "intake.parked_events_max", "auth.bootstrap_key"] {
            assert!(problems.iter().any(|problem| problem.starts_with(key)), "{key}: {problems:?}");
        }
        assert!(
            !problems.iter().any(|problem| problem.contains("secret") || problem.contains("short")),
            "{problems:?}"
        );
    }

    #[test]
    fn the_commented_example_is_the_defaults() {
        let read =
            Config::load(Some(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/config/platform-api.toml")))).unwrap();
        assert_eq!(format!("{read:?}"), format!("{:?}", Config::default()));
    }

    #[test]
    fn only_this_machine_may_speak_without_tls() {
        for url in ["https://id.example.com", "http://127.0.0.1:4000/x", "http://localhost", "http://[::1]:1"] {
            assert!(is_trusted_url(url), "{url}");
        }
        for url in ["http://127.0.0.1.evil.example", "http://id.example.com", "ftp://127.0.0.1", "", "localhost"] {
            assert!(!is_trusted_url(url), "{url}");
        }
    }
}
