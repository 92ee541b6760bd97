//! The counters of Kong's rate limiter, read from its Redis: the third proof. They count attempts.
//!
//! Only SCAN, MGET, PTTL and INFO are ever sent, on a connection of our own. One poll looks at a bounded number of names, so
//! that many tenants make a pass longer and no poll heavier; when a pass is complete, the tenants are told. Of the periods
//! that a limiter counts by, the longest-lived is the meter: a minute's counter dies when its window closes, and what is
//! read of it last is a lower bound.
//!
//! A counter that falls, one whose time to live rises, one that is gone before its time, and a Redis with another `run_id`
//! have each begun anew. What was counted and lost then nobody will know, so the time since the last good look is marked.

use std::collections::HashMap;
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{IntoConnectionInfo, RedisError};
use secrecy::ExposeSecret;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::health::{Health, Standing};
use super::limiter_key::{Counts, LimiterKey};
use super::limiter_watch::Watch;
use super::readings::{CONSUMER, CUSTOM_ID, Cadence, Owed, Readings, owner_of};
use super::rounds::{self, Looker};
use crate::clock::Clock;
use crate::config::{self, LimitBy};
use crate::domain::ids::TenantId;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const NAMES: &str = "ratelimit:*";
/// Names that Redis looks through for one answer.
const SCAN_COUNT: usize = 1_000;
/// What Kong makes ids of without a database: names below this one.
const KONG_NAMESPACE: Uuid = Uuid::from_u128(0xfd02_801f_0957_4a15_a55a_c8d9_606f_30b5);

/// Looks at the counters, again and again.
pub struct Counters<R> {
    redis: ConnectionManager,
    limit_by: LimitBy,
    every: Duration,
    names_max: usize,
    clock: Clock,
    watch: Watch,
    /// Where the next poll goes on; 0 begins a pass.
    cursor: u64,
    /// Consumers' ids as Kong makes them of usernames.
    consumers: HashMap<String, TenantId, ahash::RandomState>,
    owed: Owed<R>,
    health: watch::Sender<Health>,
    missing: Vec<&'static str>,
}

/// What Redis says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Server {
    run_id: String,
    policy: String,
    role: String,
}

impl Server {
    fn parse(info: &str) -> Server {
        let said = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().trim().to_owned()
        };
        Server { run_id: said("run_id"), policy: said("maxmemory_policy"), role: said("role") }
    }
}

/// What is wrong with the configured URL, if anything.
#[must_use]
pub fn problem(url: &secrecy::SecretString) -> Option<String> {
    redis::Client::open(url.expose_secret()).is_err().then(|| "must be a redis:// or rediss:// URL".into())
}

impl<R: Readings> Counters<R> {
    /// `None` when no Redis is configured. Connects with the first poll.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn open(
        kong: &config::KongRedis,
        reconcile: &config::Reconcile,
        clock: Clock,
        readings: R,
    ) -> Result<Option<Counters<R>>, String> {
        let Some(url) = &kong.url else { return Ok(None) };
        let unusable = |_| "gateway.kong.redis.url: must be a redis:// or rediss:// URL".to_owned();
        // Fails when a provider is installed already, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let at = url.expose_secret().into_connection_info().map_err(unusable)?;
        let at = at.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let settings = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT))
            .set_number_of_retries(1);
        let manager = redis::Client::open(at).and_then(|client| client.get_connection_manager_lazy(settings));
        Ok(Some(Counters {
            redis: manager.map_err(unusable)?,
            limit_by: kong.limit_by,
            every: config::millis(kong.poll_ms),
            names_max: kong.poll_keys_max,
            watch: Watch::new(clock.now(), Cadence::new(reconcile, kong.poll_ms)),
            clock,
            cursor: 0,
            consumers: HashMap::default(),
            owed: Owed::new(readings),
            health: watch::channel(Health::unknown("proof: attempts; not asked yet")).0,
            missing: Vec::new(),
        }))
    }

    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Works until asked to stop.
    pub async fn run(self, stopping: CancellationToken) {
        let every = self.every;
        rounds::run(self, every, stopping).await;
    }

    /// Tells what has been seen and not been told yet.
    pub async fn hand_over(&mut self) {
        self.watch.hand_over(&mut self.owed);
        self.owed.settle().await;
    }

    /// One poll; tells the tenants when a pass is complete.
    pub async fn look(&mut self) {
        let was_down = self.health.borrow().standing == Standing::Down;
        let looked = self.poll().await;
        let result = if looked.is_ok() { "ok" } else { "failed" };
        metrics::counter!("platform_api_kong_looks_total", "source" => "limiter", "result" => result).increment(1);
        match looked {
            Ok(()) if was_down => tracing::info!("kong's redis answers again"),
            Ok(()) => {}
            Err(error) => {
                // The error's kind, not its text: the text may quote what the server says.
                let reason = if error.is_timeout() { "timed out".into() } else { error.category().to_string() };
                if !was_down {
                    tracing::warn!(reason, "kong's redis does not answer");
                }
                self.cursor = 0;
                self.watch.miss(self.clock.now(), &mut self.owed);
                self.health.send_replace(Health::of(Standing::Down, "attempts", &[], &[format!("redis: {reason}")]));
            }
        }
        self.owed.settle().await;
    }

    async fn poll(&mut self) -> Result<(), RedisError> {
        let info: String = redis::cmd("INFO").query_async(&mut self.redis).await?;
        let server = Server::parse(&info);
        if self.cursor == 0 && self.limit_by == LimitBy::Consumer {
            let usernames = self.owed.readings().usernames();
            self.consumers = usernames.into_iter().map(|(name, tenant)| (consumer_id(&name), tenant)).collect();
        }
        self.watch.begin(&server.run_id, self.clock.now(), &mut self.owed);
        let mut looked_through = 0;
        while looked_through < self.names_max {
            let mut scan = redis::cmd("SCAN");
            scan.arg(self.cursor).arg("MATCH").arg(NAMES).arg("COUNT").arg(SCAN_COUNT);
            let (cursor, names): (u64, Vec<Vec<u8>>) = scan.query_async(&mut self.redis).await?;
            looked_through += SCAN_COUNT.max(names.len());
            self.read(names).await?;
            self.cursor = cursor;
            if cursor == 0 {
                self.watch.complete(self.clock.now(), &mut self.owed);
                self.tell(&server);
                break;
            }
        }
        Ok(())
    }

    /// Reads the counters among `names` that are a tenant's.
    async fn read(&mut self, names: Vec<Vec<u8>>) -> Result<(), RedisError> {
        let mut ours = Vec::new();
        for name in names.into_iter().filter_map(|name| String::from_utf8(name).ok()) {
            let Some(key) = LimiterKey::parse(&name).filter(|key| key.counts == Counts::Requests) else { continue };
            match self.owner(key.identifier) {
                Some(tenant) => ours.push((name, tenant)),
                None => self.watch.strange += 1,
            }
        }
        if ours.is_empty() {
            return Ok(());
        }
        let mut commands = redis::pipe();
        commands.cmd("MGET").arg(ours.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());
        for (name, _) in &ours {
            commands.cmd("PTTL").arg(name.as_str());
        }
        let mut answers: Vec<redis::Value> = commands.query_async(&mut self.redis).await?;
        let at = self.clock.now();
        let times = answers.split_off(answers.len().min(1));
        let values: Vec<Option<String>> = match answers.pop() {
            Some(values) => redis::from_redis_value(values)?,
            None => Vec::new(),
        };
        for (((name, tenant), value), ttl) in ours.into_iter().zip(values).zip(times) {
            // It died between the two questions, or it is no counter.
            let Some(value) = value.and_then(|value| value.parse::<i64>().ok()).filter(|value| *value >= 0) else {
                continue;
            };
            let ttl_ms: i64 = redis::from_redis_value(ttl)?;
            self.watch.see(&name, tenant, value, ttl_ms, at, &mut self.owed);
        }
        Ok(())
    }

    fn owner(&self, identifier: &str) -> Option<TenantId> {
        match self.limit_by {
            LimitBy::Header => owner_of(self.owed.readings(), &[(CUSTOM_ID, Some(identifier))]),
            LimitBy::Consumer => self
                .consumers
                .get(identifier)
                .copied()
                .or_else(|| owner_of(self.owed.readings(), &[(CONSUMER, Some(identifier))])),
        }
    }

    fn tell(&mut self, server: &Server) {
        let mut missing = self.watch.missing();
        if server.run_id.is_empty() {
            missing.push("INFO for this user of Redis");
        }
        if !["", "noeviction"].contains(&server.policy.as_str()) {
            missing.push("maxmemory-policy noeviction");
        }
        if server.role == "slave" {
            missing.push("the primary Redis (this is a replica, which is behind)");
        }
        let standing = if missing.is_empty() { Standing::Up } else { Standing::Degraded };
        if missing != self.missing {
            tracing::info!(missing = missing.join(", "), "what kong's limiter does not say");
        }
        self.health.send_replace(Health::of(standing, "attempts", &missing, &[]));
        self.missing = missing;
    }
}

impl<R: Readings> Looker for Counters<R> {
    async fn look(&mut self) {
        Counters::look(self).await;
    }

    async fn hand_over(&mut self) {
        Counters::hand_over(self).await;
    }
}

/// The id that Kong gives a consumer without a database.
fn consumer_id(username: &str) -> String {
    named_id(named_id(KONG_NAMESPACE, "consumers"), username).to_string()
}

/// RFC 9562, version 5.
fn named_id(namespace: Uuid, name: &str) -> Uuid {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(namespace.as_bytes());
    context.update(name.as_bytes());
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(context.finish().as_ref()).for_each(|(byte, hashed)| *byte = *hashed);
    uuid::Builder::from_sha1_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::super::readings::USERNAME;
    use super::super::readings::tests::Listeners;
    use super::*;
    use crate::domain::reconcile::reading::InterruptionReason;
    use crate::domain::time::MICROS_PER_DAY;
    use secrecy::SecretString;

    const ACME: TenantId = TenantId(Uuid::from_u128(0x1111_1111_1111_4111_8111_1111_1111_1111));

    fn listeners() -> Listeners {
        Listeners { names: vec![(USERNAME, "tenant-acme", ACME)], ..Listeners::default() }
    }

    #[test]
    fn a_consumer_s_id_follows_from_its_name() {
        assert_eq!(consumer_id("tenant-acme"), "f4a42282-4bdf-5b7f-be57-9bf4f4be0c98");
        assert_eq!(consumer_id("tenant-globex"), "20ae577d-fde6-5943-87b8-0b6fb0787308");
    }

    /// A Redis of our own, which ends with the test.
    struct Private {
        port: u16,
        _folder: tempfile::TempDir,
        child: Option<tokio::process::Child>,
    }

    impl Private {
        /// `None` where no server is installed and none is demanded.
        async fn start() -> Option<Private> {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut private = Private { port, _folder: tempfile::tempdir().unwrap(), child: None };
            private.run().await?;
            Some(private)
        }

        async fn run(&mut self) -> Option<()> {
            let Ok(binary) = std::env::var("TEST_REDIS_SERVER_BIN") else {
                eprintln!("TEST_REDIS_SERVER_BIN is not set: not checked");
                return None;
            };
            let mut command = tokio::process::Command::new(binary);
            command.args(["--bind", "127.0.0.1", "--save", "", "--port", &self.port.to_string()]);
            command.current_dir(self._folder.path()).stdout(std::process::Stdio::null()).kill_on_drop(true);
            self.child = Some(command.spawn().unwrap());
            while tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Some(())
        }

        fn url(&self) -> String {
            format!("redis://127.0.0.1:{}/", self.port)
        }

        async fn say(&self, command: &[&str]) {
            let client = redis::Client::open(self.url()).unwrap();
            let mut connection = client.get_multiplexed_async_connection().await.unwrap();
            let mut said = redis::cmd(command[0]);
            for word in &command[1..] {
                said.arg(*word);
            }
            said.query_async::<redis::Value>(&mut connection).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_real_redis_is_read_emptied_and_started_again() {
        let Some(mut redis) = Private::start().await else { return };
        let listeners = listeners();
        let kong = config::KongRedis { url: Some(SecretString::from(redis.url())), ..config::KongRedis::default() };
        let clock = Clock::system();
        let mut counters =
            Counters::open(&kong, &config::Reconcile::default(), clock.clone(), listeners.clone()).unwrap().unwrap();
        let today = clock.now().0.div_euclid(MICROS_PER_DAY) * MICROS_PER_DAY / 1_000;
        let name = format!("ratelimit:r:s:{ACME}:{today}:day");
        counters.look().await;
        assert!(counters.health().borrow().detail.contains("there are no counters"));
        redis.say(&["SET", &name, "5", "EX", "80000"]).await;
        redis.say(&["SET", "ratelimit:r:s:stranger:1795219200000:day", "9", "EX", "80000"]).await;
        for _ in 0..3 {
            counters.look().await;
        }
        let values = |listeners: &Listeners| {
            listeners.heard_by(ACME).readings.iter().map(|reading| reading.value).collect::<Vec<_>>()
        };
        let resets = |listeners: &Listeners| {
            let heard = listeners.heard_by(ACME).interruptions;
            heard.iter().filter(|one| one.reason == InterruptionReason::LimiterReset).count()
        };
        assert_eq!((values(&listeners), resets(&listeners)), (vec![5], 0));
        assert!(listeners.heard_by(ACME).readings[0].from_zero);
        assert_eq!(counters.health().borrow().standing, Standing::Up, "{:?}", counters.health().borrow());

        redis.say(&["FLUSHALL"]).await;
        counters.look().await;
        redis.say(&["SET", &name, "2", "EX", "86400"]).await;
        counters.look().await;
        counters.hand_over().await;
        assert_eq!((values(&listeners), resets(&listeners)), (vec![5, 5, 0, 2], 1));

        redis.child.take().unwrap().kill().await.unwrap();
        counters.look().await;
        assert_eq!(counters.health().borrow().standing, Standing::Down);
        redis.run().await.unwrap();
        redis.say(&["SET", &name, "7", "EX", "86400"]).await;
        // The first answer may still be the broken connection's.
        while counters.health().borrow().standing == Standing::Down {
            counters.look().await;
        }
        counters.look().await;
        counters.hand_over().await;
        assert_eq!((values(&listeners), resets(&listeners)), (vec![5, 5, 0, 2, 7], 2));
    }

    /// What is sent, as Redis itself lists it: reading, and nothing else.
    #[tokio::test]
    async fn nothing_is_ever_written() {
        let Some(redis) = Private::start().await else { return };
        let name = format!("ratelimit:r:s:{ACME}:1795219200000:day");
        redis.say(&["SET", &name, "5", "EX", "80000"]).await;
        redis.say(&["CONFIG", "RESETSTAT"]).await;
        let kong = config::KongRedis { url: Some(SecretString::from(redis.url())), ..config::KongRedis::default() };
        let mut counters =
            Counters::open(&kong, &config::Reconcile::default(), Clock::system(), listeners()).unwrap().unwrap();
        for _ in 0..2 {
            counters.look().await;
        }
        let stats: String = redis::cmd("INFO").arg("commandstats").query_async(&mut counters.redis).await.unwrap();
        let names: Vec<&str> = (stats.lines())
            .filter_map(|line| line.strip_prefix("cmdstat_")?.split(':').next())
            .filter(|name| !name.starts_with("client") && !name.starts_with("config") && *name != "hello")
            .collect();
        for name in &names {
            assert!(["info", "scan", "mget", "pttl"].contains(name), "{names:?}");
        }
        assert!(names.len() == 4, "{names:?}");
    }
}
