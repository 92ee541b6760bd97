//! One node in this process, at a time that the story tells: Kong's real receivers, a real Redis, real tenants and their
//! databases. Only the clock is given, so that minutes of traffic pass in seconds and every instant is the recorded one.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use platform_api::clock::Clock;
use platform_api::config::{self, Kong, KongNode};
use platform_api::directory::handle::{Handle as Directory, NewKey, NewTenant};
use platform_api::directory::{self, Settings};
use platform_api::domain::ids::TenantId;
use platform_api::domain::period::Window;
use platform_api::domain::reconcile::finding::{Cause, Finding, Status};
use platform_api::domain::reconcile::report::{FindingQuery, WindowQuery};
use platform_api::domain::reconcile::window::Judged;
use platform_api::domain::reconcile::{Proof, Terms, Verdict};
use platform_api::domain::request::{Answer, Request};
use platform_api::domain::routing::Routing;
use platform_api::domain::tenant::{ExternalId, Role};
use platform_api::domain::time::Timestamp;
use platform_api::domain::usage::{Outcome, UsageEvent};
use platform_api::intake::arrival::Reporter;
use platform_api::intake::kong::counters::Counters;
use platform_api::intake::kong::health::Standing;
use platform_api::intake::kong::log_receiver::{LogReceiver, Received};
use platform_api::intake::kong::presence::Presence;
use platform_api::intake::kong::scraper::Scraper;
use platform_api::store::database::Store;
use platform_api::tenant::handle::{Handle as Home, Origin};
use secrecy::SecretString;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::database::{self, Database};
use super::servers::Server;
use super::{Engine, PATIENCE, eventually, services};

/// Findings and verdicts of one tenant in one story.
const MOST: usize = 1_000;

/// A counter of the limiter: its name, its value, and how long it has to live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    pub name: String,
    pub value: i64,
    pub ttl_ms: i64,
}

/// What Kong's `/metrics` answers; nothing while the node is away.
#[derive(Debug, Default)]
struct Metrics {
    body: Option<String>,
    /// The node's own clock, in microseconds, if it says it.
    date: Option<i64>,
}

/// The node, and Kong as it appears to it.
pub struct Stage {
    pub clock: Clock,
    pub terms: Terms,
    store: Store,
    /// Nothing is compared until so long after.
    opened_at: Timestamp,
    presence: Presence,
    engine: Engine,
    folder: TempDir,
    control: String,
    directory: Directory,
    receiver: LogReceiver,
    kong: Kong,
    scraper: Scraper<Directory>,
    counters: Counters<Directory>,
    redis: Server,
    metrics: Arc<Mutex<Metrics>>,
    tenants: Vec<TenantId>,
}

impl Stage {
    pub async fn open(engine: Engine, terms: Terms, now: Timestamp, change: impl FnOnce(&mut Kong)) -> Stage {
        let folder = TempDir::new().unwrap();
        let control = format!("suite_{}", services::unique());
        let url = match engine {
            Engine::Sqlite => format!("sqlite:{}", folder.path().join("data").display()),
            Engine::Postgres => {
                database::create(&services::postgres_url(), &control).await;
                services::database_url(&services::postgres_url(), &control)
            }
        };
        let clock = Clock::held_at(now);
        let store = config::Store { url: SecretString::from(url), ..config::Store::default() };
        let store = Store::open(&store).await.unwrap();
        let directory = open(store.clone(), &terms, &clock).await;
        let (redis, metrics) = (Server::redis().await, Arc::<Mutex<Metrics>>::default());
        let node = KongNode { name: "one".into(), url: serve(metrics.clone()).await };
        let mut kong = Kong::default();
        kong.redis.url = Some(SecretString::from(redis.url("redis")));
        kong.metrics.nodes = vec![node];
        change(&mut kong);
        let (scraper, counters) = watch(&kong, &terms, &clock, &directory);
        let receiver = LogReceiver::new(directory.clone(), PATIENCE).of_services(&kong.llm_services);
        let tenants = Vec::new();
        let presence = Presence::new(clock.clone(), directory.clone());
        Stage {
            clock,
            terms,
            store,
            opened_at: now,
            presence,
            engine,
            folder,
            control,
            directory,
            receiver,
            kong,
            scraper,
            counters,
            redis,
            metrics,
            tenants,
        }
    }

    /// The receivers die, with all that they had in mind, and begin anew.
    pub fn forget(&mut self) {
        (self.scraper, self.counters) = watch(&self.kong, &self.terms, &self.clock, &self.directory);
    }

    /// The node ends, and is started again now.
    pub async fn restart(&mut self, now: Timestamp) {
        self.directory.drain(PATIENCE).await;
        self.clock.set(now);
        self.opened_at = now;
        self.directory = open(self.store.clone(), &self.terms, &self.clock).await;
        self.receiver = LogReceiver::new(self.directory.clone(), PATIENCE).of_services(&self.kong.llm_services);
        self.presence = Presence::new(self.clock.clone(), self.directory.clone());
        self.forget();
    }

    /// The node marks that it is there.
    pub async fn mark(&mut self) {
        self.presence.look().await;
    }

    /// A tenant, and what Kong calls it.
    pub async fn onboard(&mut self, name: &str, ids: &[(&str, &str)]) -> TenantId {
        let external =
            |(kind, id): &(&str, &str)| ExternalId { source: "kong".into(), kind: (*kind).into(), id: (*id).into() };
        let new = NewTenant {
            name: name.into(),
            slug: None,
            tier: "standard".into(),
            time_zone: "UTC".into(),
            external_ids: ids.iter().map(external).collect(),
            settings: "{}".into(),
        };
        let key = NewKey { id: format!("key-{name}"), hash: [7; 32], name: "admin".into(), role: Role::Admin };
        let answer = self.directory.onboard(new, key, Request::system(), |_| String::new()).await.unwrap();
        let Answer::Fresh(onboarded) = answer else { panic!("replayed") };
        self.tenants.push(onboarded.tenant.id);
        onboarded.tenant.id
    }

    /// It is `at` now, and everything that was due by then has been compared.
    pub async fn at(&self, at: Timestamp) {
        self.clock.set(at);
        if at < self.compares_from() {
            return;
        }
        for tenant in &self.tenants {
            let home = self.home(*tenant).await;
            eventually("what is due to be compared", || async {
                let books = home.pulse().books();
                let next = books.comparison.next(books.latest_event_at);
                next.is_none_or(|next| next > at).then_some(())
            })
            .await;
        }
    }

    /// Time goes on until `until`, and stops wherever something is due, so that nothing is compared later than it would be.
    pub async fn pass(&self, until: Timestamp) {
        loop {
            let mut next = until;
            for tenant in &self.tenants {
                let books = self.home(*tenant).await.pulse().books();
                let due = books.comparison.next(books.latest_event_at).map(|at| at.max(self.compares_from()));
                next = due.map_or(next, |at| at.min(next));
            }
            self.at(next.max(self.clock.now())).await;
            if next >= until {
                return;
            }
        }
    }

    fn compares_from(&self) -> Timestamp {
        self.opened_at.plus_micros(self.terms.settle_micros)
    }

    /// Kong posts a body of its access log.
    pub async fn log(&self, records: &[Value]) -> Received {
        let body = Bytes::from(serde_json::to_vec(records).unwrap());
        self.receiver.receive(body, Reporter::Platform, "r-1").await.unwrap()
    }

    /// What the models' proxy reports.
    pub async fn count(&self, tenant: TenantId, events: Vec<UsageEvent>) {
        let expected = events.len();
        let outcomes = self.home(tenant).await.record(events, Origin::default(), PATIENCE).await.unwrap();
        let accepted = outcomes.iter().filter(|outcome| **outcome == Outcome::Accepted).count();
        assert_eq!(accepted, expected, "{outcomes:?}");
    }

    /// One look at Kong's metrics; `None` while it is away.
    pub async fn scrape(&mut self, body: Option<String>, date: Option<Timestamp>) {
        *self.metrics.lock().unwrap() = Metrics { body, date: date.map(|date| date.0) };
        self.scraper.look().await;
    }

    /// One look at the limiter's counters, which stand so.
    pub async fn poll(&mut self, keys: &[Key]) {
        let mut connection = services::redis_at(&self.redis.url("redis")).await;
        let mut commands = redis::pipe();
        commands.cmd("FLUSHALL").ignore();
        for key in keys {
            commands.cmd("SET").arg(&key.name).arg(key.value).arg("PX").arg(key.ttl_ms).ignore();
        }
        commands.query_async::<()>(&mut connection).await.unwrap();
        self.counters.look().await;
        // A connection to a Redis that was started again is only found to be broken when it is used.
        while self.counters.health().borrow().standing == Standing::Down {
            self.counters.look().await;
        }
    }

    /// A look at a Redis that is away.
    pub async fn poll_in_vain(&mut self) {
        self.counters.look().await;
        assert_eq!(self.counters.health().borrow().standing, Standing::Down);
    }

    pub async fn kill_redis(&mut self) {
        self.redis.kill().await;
    }

    pub async fn start_redis(&mut self) {
        self.redis.start().await;
    }

    pub async fn home(&self, tenant: TenantId) -> Home {
        eventually("the tenant", || async { self.directory.find(tenant).await.ok() }).await
    }

    /// Oldest window first.
    pub async fn findings(&self, tenant: TenantId) -> Vec<Finding> {
        let query = FindingQuery { status: None, cause: None, after: None, limit: MOST };
        let mut found = eventually("the findings", || async {
            self.home(tenant).await.findings(query).await.ok().map(|answer| answer.unwrap().items)
        })
        .await;
        found.sort_by_key(|finding| (finding.found.window, finding.found.cause));
        found
    }

    /// (window, cause, how many, status) of each.
    pub async fn told(&self, tenant: TenantId) -> Vec<(i64, Cause, i64, Status)> {
        let one = |finding: &Finding| {
            let found = &finding.found;
            (found.window.start.0 / 1_000_000, found.cause, found.count, finding.status)
        };
        self.findings(tenant).await.iter().map(one).collect()
    }

    /// Oldest first.
    pub async fn judged(&self, tenant: TenantId, proof: Proof) -> Vec<Judged> {
        let window = Window { start: Timestamp(0), end: Timestamp::MAX };
        let query = WindowQuery { window, proof: Some(proof), verdict: None, after: None, limit: MOST };
        let page = eventually("the windows", || async {
            self.home(tenant).await.compared_windows(query).await.ok().map(Result::unwrap)
        })
        .await;
        page.items.into_iter().rev().map(|(judged, _)| judged).collect()
    }

    pub async fn verdicts(&self, tenant: TenantId, proof: Proof) -> Vec<Verdict> {
        self.judged(tenant, proof).await.iter().map(|one| one.verdict).collect()
    }

    /// Nothing is held against this tenant, by any proof.
    pub async fn is_clean(&self, tenant: TenantId) {
        let found = self.findings(tenant).await;
        let drift: Vec<_> = found.iter().filter(|one| one.found.cause.is_drift()).collect();
        assert!(drift.is_empty(), "{drift:?}");
        for proof in Proof::ALL {
            let judged = self.judged(tenant, proof).await;
            assert!(judged.iter().all(|one| one.verdict != Verdict::Drift), "{judged:?}");
        }
        let books = self.home(tenant).await.pulse().books();
        assert!(books.firing.is_empty(), "{:?}", books.firing);
    }

    /// The tenant's database, by plain SQL.
    pub async fn database(&self, tenant: TenantId) -> Database {
        match self.engine {
            Engine::Sqlite => Database::of_file(&self.folder.path().join(format!("data/tenants/{tenant}.db"))).await,
            Engine::Postgres => {
                let url = services::database_url(&services::postgres_url(), &format!("tenant_{tenant}"));
                Database::at(&url).await
            }
        }
    }

    pub async fn close(self) {
        drop((self.scraper, self.counters, self.receiver, self.presence));
        self.directory.drain(PATIENCE).await;
        drop((self.directory, self.store));
        if self.engine == Engine::Postgres {
            let names: Vec<String> = self.tenants.iter().map(TenantId::to_string).collect();
            database::drop_all(&services::postgres_url(), &self.control, &names).await;
        }
    }
}

async fn open(store: Store, terms: &Terms, clock: &Clock) -> Directory {
    let settings = Settings {
        tenants: config::Tenants { idle_ms: 86_400_000, ..config::Tenants::default() },
        retention_micros: config::Config::default().retention_micros(),
        routing: Arc::new(Routing::all(vec!["test".into()])),
        reconcile: *terms,
        lease_micros: config::Jobs::default().lease_micros(),
    };
    let (hints, mut heard) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move { while heard.recv().await.is_some() {} });
    directory::open(store, settings, clock.clone(), hints).await.unwrap()
}

fn watch(
    kong: &Kong,
    terms: &Terms,
    clock: &Clock,
    directory: &Directory,
) -> (Scraper<Directory>, Counters<Directory>) {
    let window_ms = u64::try_from(terms.window_micros / 1_000).unwrap();
    let reconcile = config::Reconcile { window_ms, ..config::Reconcile::default() };
    let scraper = Scraper::new(kong, &reconcile, clock.clone(), directory.clone()).unwrap();
    (scraper, Counters::open(&kong.redis, &reconcile, clock.clone(), directory.clone()).unwrap().unwrap())
}

/// Plays a node's Status API. By hand, because a server of a library would say the true date.
async fn serve(metrics: Arc<Mutex<Metrics>>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1_024];
            let _ = stream.read(&mut request).await;
            let answer = {
                let metrics = metrics.lock().unwrap();
                let date = metrics.date.map_or_else(String::new, |at| format!("date: {}\r\n", http_date(at)));
                match &metrics.body {
                    Some(body) => {
                        let length = body.len();
                        format!("HTTP/1.1 200 OK\r\n{date}connection: close\r\ncontent-length: {length}\r\n\r\n{body}")
                    }
                    None => "HTTP/1.1 503 Away\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_owned(),
                }
            };
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    format!("http://{address}/metrics")
}

fn http_date(micros: i64) -> String {
    let at = jiff::Timestamp::from_microsecond(micros).unwrap();
    jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&at).unwrap()
}
