//! Nodes counting together: what each has admitted is added up in Redis.
//!
//! One script per round, for all buckets that have something to tell: one reading of Redis's clock, everything or nothing.
//! It loads itself again when Redis has forgotten it. A round whose answer is lost is not repeated: what it may have told
//! must not count twice.

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{IntoConnectionInfo, RedisError};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::buckets::Owing;
use super::{Limiter, Sharing};
use crate::clock::ticks;
use crate::config::{self, millis};
use crate::domain::rate_limit::Nanos;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_millis(250);
/// Buckets told with one script: Redis does nothing else meanwhile.
const BUCKETS_MAX: usize = 256;
/// How often full buckets are forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How long Redis is left alone after a failure.
const PAUSE: Duration = Duration::from_secs(1);
/// How often Redis is asked whether it is there while there is nothing to tell.
const PING_EVERY: Duration = Duration::from_secs(5);
/// A debt is at most so many bursts: a Redis whose clock is set back must not refuse for hours.
const DEBT_BURSTS_MAX: i64 = 8;

/// Adds to each key what was admitted, and answers how far each is from full, in microseconds. ARGV has three for a key:
/// what was admitted, how long ago that began, and the most it may be from full.
///
/// A number of Lua is exact up to 2^53, which microseconds since 1970 reach in the year 2255.
const SCRIPT: &str = "\
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local told = {}
for at, key in ipairs(KEYS) do
  local owed, age, most = tonumber(ARGV[3 * at - 2]), tonumber(ARGV[3 * at - 1]), tonumber(ARGV[3 * at])
  local arrival = tonumber(redis.call('GET', key)) or 0
  arrival = math.min(math.max(arrival, now - age) + owed, now + most)
  local ahead = math.max(arrival - now, 0)
  redis.call('SET', key, string.format('%.0f', arrival), 'PX', math.ceil(ahead / 1000) + 1)
  told[at] = ahead
end
return told
";

/// Keeps the buckets: forgets the full ones and, where nodes count together, tells Redis and listens.
pub struct Settlement {
    limiter: Limiter,
    every: Duration,
    redis: Option<Script>,
}

/// A connection, and what Redis calls our script.
struct Script {
    redis: ConnectionManager,
    digest: Option<String>,
}

impl Settlement {
    /// Connects with the first round.
    ///
    /// # Errors
    /// When the URL of Redis cannot be used.
    pub fn open(limits: &config::RateLimits, redis: &config::Redis, limiter: Limiter) -> Result<Settlement, String> {
        let is_shared = *limiter.sharing().borrow() != Sharing::Local;
        let url = redis.url.as_ref().filter(|_| is_shared);
        let redis = url.map(Script::open).transpose()?;
        let every = if redis.is_some() { millis(limits.settle_ms) } else { SWEEP_EVERY };
        Ok(Settlement { limiter, every, redis })
    }

    /// Works until asked to stop. What was not told then is forgotten.
    pub async fn run(mut self, stopping: CancellationToken) {
        let mut turns = tokio::time::interval(self.every);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut sweep_at, mut ask_at) = (Instant::now(), Instant::now());
        while stopping.run_until_cancelled(turns.tick()).await.is_some() {
            if Instant::now() >= sweep_at {
                let left = self.limiter.0.buckets.sweep(ticks());
                metrics::gauge!("platform_api_rate_limit_buckets").set(left as f64);
                sweep_at = Instant::now() + SWEEP_EVERY;
            }
            let Some(redis) = &mut self.redis else { continue };
            let asked = ticks();
            // While Redis is away this is dropped: it is not told afterwards.
            let owing = self.limiter.0.buckets.owing(asked);
            let is_down = *self.limiter.0.sharing.borrow() == Sharing::Fallback;
            if (owing.is_empty() || is_down) && Instant::now() < ask_at {
                continue;
            }
            let Some(settled) = stopping.run_until_cancelled(redis.settle(&owing, asked)).await else { return };
            ask_at = Instant::now() + if settled.is_ok() { PING_EVERY } else { PAUSE };
            self.limiter.report(settled);
        }
    }
}

impl Limiter {
    /// One line when something has changed; the metric says it all the time.
    fn report(&self, settled: Result<(), RedisError>) {
        let word = if settled.is_ok() { "ok" } else { "failed" };
        metrics::counter!("platform_api_rate_limit_settlements_total", "result" => word).increment(1);
        metrics::gauge!("platform_api_rate_limit_fallback").set(if settled.is_ok() { 0.0 } else { 1.0 });
        let was_down = *self.0.sharing.borrow() == Sharing::Fallback;
        match settled {
            Ok(()) => {
                if was_down {
                    tracing::info!("redis is up again; nodes share their rate limits");
                }
                self.0.sharing.send_replace(Sharing::Shared);
            }
            Err(error) => {
                // The error's kind, not its text: the text may quote what the server says.
                let reason = if error.is_timeout() { "timed out".into() } else { error.category().to_string() };
                if !was_down {
                    tracing::warn!(reason, "redis is down; each node limits rates for itself");
                }
                self.0.sharing.send_replace(Sharing::Fallback);
            }
        }
    }
}

impl Script {
    fn open(url: &SecretString) -> Result<Script, String> {
        let unusable = |_| "redis.url: must be a redis:// or rediss:// URL".to_owned();
        // Fails when a provider is installed already, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let at = url.expose_secret().into_connection_info().map_err(unusable)?;
        let at = at.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let settings = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT))
            .set_number_of_retries(1);
        let manager = redis::Client::open(at).and_then(|client| client.get_connection_manager_lazy(settings));
        Ok(Script { redis: manager.map_err(unusable)?, digest: None })
    }

    /// Tells what is owing, and takes over what the others have admitted; with nothing to tell, asks whether Redis is there.
    async fn settle(&mut self, owing: &[Owing], asked: Nanos) -> Result<(), RedisError> {
        if owing.is_empty() {
            return redis::cmd("PING").query_async::<()>(&mut self.redis).await;
        }
        for some in owing.chunks(BUCKETS_MAX) {
            let ahead = self.tell(some).await?;
            for (one, micros) in some.iter().zip(ahead) {
                one.bucket.adopt(micros.saturating_mul(1_000), asked);
            }
        }
        Ok(())
    }

    async fn tell(&mut self, owing: &[Owing]) -> Result<Vec<i64>, RedisError> {
        let told = self.call(owing).await;
        match told {
            // Nothing was done: the script is unknown since a restart or a SCRIPT FLUSH.
            Err(error) if error.code() == Some("NOSCRIPT") => {
                self.digest = None;
                self.call(owing).await
            }
            told => told,
        }
    }

    async fn call(&mut self, owing: &[Owing]) -> Result<Vec<i64>, RedisError> {
        let digest = match &self.digest {
            Some(digest) => digest.clone(),
            None => {
                let loaded: String = redis::cmd("SCRIPT").arg("LOAD").arg(SCRIPT).query_async(&mut self.redis).await?;
                self.digest.insert(loaded).clone()
            }
        };
        let mut command = redis::cmd("EVALSHA");
        command.arg(digest).arg(owing.len());
        for one in owing {
            command.arg(one.bucket.key());
        }
        for one in owing {
            let most = one.capacity_micros.saturating_mul(DEBT_BURSTS_MAX);
            command.arg(one.micros).arg(one.age_micros).arg(most);
        }
        command.query_async(&mut self.redis).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Limit, RateLimits, TierLimits};
    use crate::domain::ids::TenantId;
    use crate::domain::rate_limit::{Class, Standing};

    fn url() -> SecretString {
        std::env::var("TEST_REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379/".into()).into()
    }

    /// A node with its own buckets, told to Redis when the test says so.
    struct Node {
        limiter: Limiter,
        script: Script,
        tenant: TenantId,
    }

    impl Node {
        fn take(&self) -> Standing {
            let policy = self.limiter.tier(None).policy(Class::Read).unwrap();
            let judged = self.limiter.judge(Class::Read, [Some(policy), None], Some(self.tenant), "apiKey:a");
            judged.unwrap().1
        }

        async fn settle(&mut self) {
            let asked = ticks();
            let owing = self.limiter.0.buckets.owing(asked);
            self.script.settle(&owing, asked).await.unwrap();
        }
    }

    fn nodes(count: usize) -> Vec<Node> {
        let read = Some(Limit { quota: 60, window_seconds: 3_600, burst: Some(10) });
        let limits = RateLimits {
            key_prefix: format!("rate-test-{}:", crate::clock::new_id()),
            default: TierLimits { read, ..TierLimits::default() },
            ..RateLimits::default()
        };
        let tenant = TenantId(crate::clock::new_id());
        let node = |_| Node { limiter: Limiter::new(&limits, true), script: Script::open(&url()).unwrap(), tenant };
        (0..count).map(node).collect()
    }

    #[tokio::test]
    async fn nodes_take_over_what_the_others_have_admitted() {
        let [mut one, mut other] = nodes(2).try_into().ok().unwrap();
        assert_eq!([0; 6].map(|_| one.take().remaining), [9, 8, 7, 6, 5, 4]);
        one.settle().await;
        assert_eq!(other.take().remaining, 9, "it has not asked yet");
        other.settle().await;
        assert_eq!(other.take().remaining, 2);
        other.settle().await;
        one.settle().await;
        assert_eq!(one.take().remaining, 3, "it had nothing to tell, so it has not heard");
        one.settle().await;
        assert_eq!(one.take().remaining, 0);
        assert!(!one.take().admitted);
    }

    #[tokio::test]
    async fn what_was_admitted_too_much_is_waited_for_and_no_longer_than_eight_bursts() {
        let mut nodes = nodes(12);
        for node in &nodes {
            assert!((0..10).all(|_| node.take().admitted) && !node.take().admitted);
        }
        for node in &mut nodes {
            node.settle().await;
        }
        let minutes = |standing: Standing| (!standing.admitted).then_some(standing.wait_seconds().div_ceil(60));
        assert_eq!(minutes(nodes[0].take()), Some(1), "the first was alone when it told");
        assert_eq!(minutes(nodes[1].take()), Some(11));
        assert_eq!(minutes(nodes[11].take()), Some(71), "eight bursts of ten, and one burst is no debt");
    }

    #[tokio::test]
    async fn a_script_that_redis_has_forgotten_is_loaded_again() {
        let mut node = nodes(1).remove(0);
        node.script.digest = Some("0".repeat(40));
        assert_eq!(node.take().remaining, 9);
        node.settle().await;
        assert_eq!(node.script.digest.as_ref().map(String::len), Some(40));
        assert_eq!(node.take().remaining, 8);
    }

    #[tokio::test]
    async fn alone_a_node_is_as_exact_with_redis_as_without() {
        let mut node = nodes(1).remove(0);
        for _ in 0..10 {
            assert!(node.take().admitted);
            let asked = ticks();
            let owing = node.limiter.0.buckets.owing(asked);
            let before = owing[0].bucket.arrival();
            node.script.settle(&owing, asked).await.unwrap();
            assert_eq!(owing[0].bucket.arrival(), before, "settling has cost something");
        }
    }

    #[test]
    fn a_wrong_url_is_told_without_it() {
        let told = Script::open(&"http://user:s3cret@redis".into()).err().unwrap();
        assert!(told.starts_with("redis.url: ") && !told.contains("s3cret"), "{told}");
    }
}
