//! Committed standings in Redis, for gateways that read Redis rather than REST.
//!
//! Key: `<redis.key_prefix><tenantId>` (default prefix `platform-api:standings:`), a string with a time to live of
//! `redis.ttl_ms`. Value: one JSON document, always of a single commit:
//!
//! ```json
//! {
//!   "tenantId": "0199…", "epoch": 3, "version": 4711, "at": "2026-11-20T15:37:12.345Z",
//!   "decision": "allow",
//!   "quotas": [{
//!     "id": "0199…", "scope": {"type": "user", "id": "alice"}, "metric": "cost", "period": "month",
//!     "enforcement": "block", "limit": "100", "used": "80.000135", "remaining": "19.999865",
//!     "standing": "warning", "resetAt": "2026-12-01T00:00:00.000Z"
//!   }]
//! }
//! ```
//!
//! `decision` (`allow`, `warn`, `deny`) is what the quotas of scope `tenant` say, and `deny` for a suspended tenant; for
//! narrower scopes a gateway looks at `quotas`. Money is a decimal string of US dollars, everything else an integer.
//! `resetAt` is `null` for a quota over all time. (`epoch`, `version`) grow with each commit. The document follows a
//! commit within a fraction of a second and is refreshed while the tenant is open; it disappears when the tenant rests
//! or Redis cannot be reached, and a gateway that finds no key asks `GET /v1/quotas/{tenantId}/decision`. A period that
//! ends is in the document with the next refresh, so a reader past `resetAt` counts from zero.
//!
//! Nothing depends on Redis: down means an entry in the health report. It is read in one place only: a node that does not know
//! yet that another has the tenant by now replaces no newer document by an older one, while that is there.

use std::collections::HashSet;
use std::time::Duration;

use redis::IntoConnectionInfo;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::State;
use super::parcel::{amount, scope};
use crate::clock::Clock;
use crate::config;
use crate::directory::handle::Handle as Directory;
use crate::domain::books::Books;
use crate::domain::ids::TenantId;
use crate::domain::quota::{Standing, Verdict};
use crate::domain::tenant::Lifecycle;
use crate::domain::time::Timestamp;
use crate::domain::usage::Subject;

/// Writes a document unless a newer one is there. The first fields of ours say how new it is; what is not ours is replaced.
const SET_UNLESS_NEWER: &str = r#"
local known = redis.call('GET', KEYS[1])
if known then
    local epoch, version = string.match(known, '"epoch":(%d+),"version":(%d+)')
    epoch, version = tonumber(epoch or -1), tonumber(version or -1)
    if epoch > tonumber(ARGV[3]) or (epoch == tonumber(ARGV[3]) and version > tonumber(ARGV[4])) then
        return 0
    end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"#;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Tenants written with one command sequence.
const BATCH_MAX: usize = 64;
/// Commits of one tenant within this time become one write.
const GATHER: Duration = Duration::from_millis(50);
/// How long Redis is left alone after a failure.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a mirrored standing is refreshed within its time to live.
const REFRESHES_PER_TTL: u64 = 3;

/// Writes standings to Redis.
pub(super) struct Mirror {
    directory: Directory,
    clock: Clock,
    writer: Writer,
    health: watch::Sender<State>,
    /// Tenants whose document is older than their books. Bounded by the number of tenants.
    dirty: HashSet<TenantId>,
}

/// What is written for a tenant, and how new it is.
struct Page {
    tenant: TenantId,
    epoch: i64,
    version: i64,
    document: String,
}

/// The connection, and what a key looks like.
struct Writer {
    redis: ConnectionManager,
    key_prefix: String,
    ttl_ms: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    tenant_id: String,
    epoch: i64,
    version: i64,
    at: Timestamp,
    decision: &'static str,
    quotas: Vec<QuotaDocument>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct QuotaDocument {
    id: String,
    scope: Value,
    metric: &'static str,
    period: &'static str,
    enforcement: &'static str,
    limit: Value,
    used: Value,
    remaining: Value,
    standing: &'static str,
    reset_at: Option<Timestamp>,
}

/// What is wrong with the configured URL, if anything.
pub(super) fn problem(redis: &config::Redis) -> Option<String> {
    let url = redis.url.as_ref()?;
    let wrong = redis::Client::open(url.expose_secret()).is_err();
    wrong.then(|| "must be a redis:// or rediss:// URL".into())
}

impl Mirror {
    /// `None` when no Redis is configured. Connects with the first write.
    pub(super) fn open(redis: &config::Redis, directory: Directory, clock: Clock) -> Result<Option<Mirror>, String> {
        let Some(writer) = Writer::open(redis)? else { return Ok(None) };
        let (health, _) = watch::channel(State::Unknown);
        Ok(Some(Mirror { directory, clock, writer, health, dirty: HashSet::new() }))
    }

    pub(super) fn health(&self) -> watch::Receiver<State> {
        self.health.subscribe()
    }

    /// Works until asked to stop. What is not written then runs out by itself.
    pub(super) async fn run(mut self, mut hints: mpsc::Receiver<TenantId>, stopping: CancellationToken) {
        let mut refresh = tokio::time::interval(Duration::from_millis(self.writer.ttl_ms / REFRESHES_PER_TTL));
        refresh.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut hinting = true;
        let mut write_at = Instant::now();
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                hint = hints.recv(), if hinting => match hint {
                    Some(tenant) => drop(self.dirty.insert(tenant)),
                    None => hinting = false,
                },
                _ = refresh.tick() => {
                    self.dirty.extend(self.directory.open_tenants().iter().map(crate::tenant::handle::Handle::tenant));
                    if self.dirty.is_empty() {
                        self.ping().await;
                    }
                },
                () = tokio::time::sleep_until(write_at), if !self.dirty.is_empty() => {
                    let pause = if self.write_some().await { GATHER } else { PAUSE };
                    write_at = Instant::now() + pause;
                }
            }
        }
    }

    /// Writes a batch of the dirty tenants; false when Redis does not take it. They are then still dirty.
    async fn write_some(&mut self) -> bool {
        let tenants: Vec<TenantId> = self.dirty.iter().take(BATCH_MAX).copied().collect();
        let mut described = JoinSet::new();
        // A tenant that rests is not woken for its document.
        for handle in self.directory.open_tenants() {
            if tenants.contains(&handle.tenant()) {
                described.spawn(async move { handle.describe().await.map(|description| description.books) });
            }
        }
        let mut documents = Vec::with_capacity(tenants.len());
        while let Some(answer) = described.join_next().await {
            if let Ok(Ok(books)) = answer {
                documents.extend(self.page(&books));
            }
        }
        if !documents.is_empty() && !self.write(&documents).await {
            return false;
        }
        for tenant in tenants {
            self.dirty.remove(&tenant);
        }
        true
    }

    async fn write(&mut self, documents: &[Page]) -> bool {
        let result = self.writer.set(documents).await;
        let (written, word) = (result.is_ok(), if result.is_ok() { "ok" } else { "failed" });
        let count = u64::try_from(documents.len()).unwrap_or(u64::MAX);
        metrics::counter!("platform_api_mirror_writes_total", "result" => word).increment(count);
        self.report(result);
        written
    }

    /// Keeps the health report true while there is nothing to write.
    async fn ping(&mut self) {
        let answer = redis::cmd("PING").query_async::<()>(&mut self.writer.redis).await;
        self.report(answer);
    }

    fn report(&self, result: Result<(), redis::RedisError>) {
        let was_up = !matches!(*self.health.borrow(), State::Down { .. });
        match result {
            Ok(()) => {
                if !was_up {
                    tracing::info!("redis is up again");
                }
                self.health.send_replace(State::Up);
            }
            Err(error) => {
                // The error's kind, not its text: the text may quote what the server says.
                let reason = if error.is_timeout() { "timed out".into() } else { error.category().to_string() };
                if was_up {
                    tracing::warn!(reason, "redis is down; standings are not mirrored");
                }
                self.health.send_replace(State::Down { reason });
            }
        }
    }

    /// None while a period runs whose usage is not known: it must not pass for unused. The next round asks again.
    fn page(&self, books: &Books) -> Option<Page> {
        let now = self.clock.now();
        if !books.knows_running(now) {
            return None;
        }
        let suspended =
            self.directory.tenant(books.tenant).is_some_and(|tenant| tenant.lifecycle == Lifecycle::Suspended);
        let document = document(books, suspended, now);
        Some(Page { tenant: books.tenant, epoch: books.epoch, version: books.version, document })
    }
}

impl Writer {
    fn open(redis: &config::Redis) -> Result<Option<Writer>, String> {
        let Some(url) = &redis.url else { return Ok(None) };
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
        let (key_prefix, ttl_ms) = (redis.key_prefix.clone(), redis.ttl_ms);
        Ok(Some(Writer { redis: manager.map_err(unusable)?, key_prefix, ttl_ms }))
    }

    async fn set(&mut self, pages: &[Page]) -> Result<(), redis::RedisError> {
        let mut commands = redis::pipe();
        for page in pages {
            let key = format!("{}{}", self.key_prefix, page.tenant);
            commands.cmd("EVAL").arg(SET_UNLESS_NEWER).arg(1).arg(key);
            commands.arg(&page.document).arg(self.ttl_ms).arg(page.epoch).arg(page.version).ignore();
        }
        commands.query_async(&mut self.redis).await
    }
}

fn document(books: &Books, suspended: bool, now: Timestamp) -> String {
    // The empty subject is covered by the quotas of the tenant itself, and by no other.
    let verdict = books.decide(&Subject::default(), now).verdict;
    let decision = if suspended { Verdict::Deny } else { verdict };
    let document = Document {
        tenant_id: books.tenant.to_string(),
        epoch: books.epoch,
        version: books.version,
        at: now,
        decision: decision.name(),
        quotas: books.standings(now).iter().map(quota_document).collect(),
    };
    serde_json::to_string(&document).unwrap_or_default()
}

fn quota_document(standing: &Standing) -> QuotaDocument {
    let quota = &standing.quota;
    QuotaDocument {
        id: quota.id.to_string(),
        scope: scope(&quota.scope),
        metric: quota.metric.name(),
        period: quota.period.name(),
        enforcement: quota.enforcement.name(),
        limit: amount(quota.metric, quota.limit),
        used: amount(quota.metric, standing.used),
        remaining: amount(quota.metric, standing.remaining),
        standing: standing.level.name(),
        reset_at: standing.reset_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::books::{Counter, CounterKey};
    use crate::domain::ids::QuotaId;
    use crate::domain::period::{self, PeriodKind};
    use crate::domain::quota::{Enforcement, Metric, Quota, Scope};
    use redis::AsyncCommands;
    use serde_json::json;

    fn books(now: Timestamp) -> Books {
        let zone = jiff::tz::TimeZone::UTC;
        let mut books = Books::new(TenantId(crate::clock::new_id()), zone.clone(), i64::MAX);
        books.version = 7;
        for (metric, limit, used, scope) in [
            (Metric::Cost, 100_000_000_000, 80_000_135_000, Scope::Tenant),
            (Metric::Tokens, 1_000, 2_000, Scope::User("alice".into())),
        ] {
            let quota = Quota {
                id: QuotaId(crate::clock::new_id()),
                scope,
                metric,
                period: PeriodKind::Month,
                limit,
                thresholds: vec![80],
                enforcement: Enforcement::Block,
            };
            let window = period::window(quota.period, now, &zone);
            let key = CounterKey { quota: quota.id, period_start: window.start };
            books.counters.insert(key, Counter { used, fired: vec![80], ..Counter::new(window) });
            books.quotas.push(quota);
        }
        books
    }

    #[test]
    fn a_document_is_what_the_page_above_says() {
        let now: Timestamp = "2026-11-20T15:37:12.345Z".parse().unwrap();
        let books = books(now);
        let read: Value = serde_json::from_str(&document(&books, false, now)).unwrap();
        assert_eq!(read["decision"], "warn", "alice's quota says nothing about the tenant");
        assert_eq!((&read["version"], &read["at"]), (&json!(7), &json!("2026-11-20T15:37:12.345Z")));
        let cost = &read["quotas"][0];
        let amounts = (&cost["limit"], &cost["used"], &cost["remaining"]);
        assert_eq!(amounts, (&json!("100"), &json!("80.000135"), &json!("19.999865")));
        assert_eq!((&cost["standing"], &cost["resetAt"]), (&json!("warning"), &json!("2026-12-01T00:00:00.000Z")));
        let tokens = &read["quotas"][1];
        assert_eq!((&tokens["used"], &tokens["remaining"]), (&json!(2_000), &json!(0)));
        assert_eq!(tokens["scope"], json!({"type": "user", "id": "alice"}));
        let read: Value = serde_json::from_str(&document(&books, true, now)).unwrap();
        assert_eq!(read["decision"], "deny", "a suspended tenant");
    }

    #[tokio::test]
    async fn documents_arrive_with_a_time_to_live() {
        let url = std::env::var("TEST_REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379/".into());
        let key_prefix = format!("outlet-test-{}:", crate::clock::new_id());
        let settings = config::Redis { url: Some(url.clone().into()), key_prefix: key_prefix.clone(), ttl_ms: 60_000 };
        let mut writer = Writer::open(&settings).unwrap().unwrap();
        let tenant = TenantId(crate::clock::new_id());
        let page = |epoch, version, document: &str| Page { tenant, epoch, version, document: document.into() };
        writer.set(&[page(0, 1, "{}"), page(0, 2, "{\"version\":2}")]).await.unwrap();

        let mut reader = redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
        let key = format!("{key_prefix}{tenant}");
        let stored: String = reader.get(&key).await.unwrap();
        let left_ms: i64 = reader.pttl(&key).await.unwrap();
        let _: () = reader.del(&key).await.unwrap();
        assert_eq!(stored, "{\"version\":2}");
        assert!((1..=60_000).contains(&left_ms), "{left_ms}");
    }

    /// Nor does it lengthen the time to live of the newer one.
    #[tokio::test]
    async fn who_has_lost_a_tenant_replaces_nothing_that_is_newer() {
        let url = std::env::var("TEST_REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379/".into());
        let key_prefix = format!("outlet-test-{}:", crate::clock::new_id());
        let settings = |ttl_ms| config::Redis { url: Some(url.clone().into()), key_prefix: key_prefix.clone(), ttl_ms };
        let [mut heir, mut deposed] = [60_000, 600_000].map(|ttl_ms| Writer::open(&settings(ttl_ms)).unwrap().unwrap());
        let mut reader = redis::Client::open(url.clone()).unwrap().get_multiplexed_async_connection().await.unwrap();
        let now: Timestamp = "2026-11-20T15:37:12.345Z".parse().unwrap();
        let mut books = books(now);
        let tenant = books.tenant;
        let mut page = |epoch, version| {
            (books.epoch, books.version) = (epoch, version);
            Page { tenant, epoch, version, document: document(&books, false, now) }
        };
        let [older, newer, next, last] = [(4, 9), (5, 7), (5, 8), (12, 1)].map(|(epoch, version)| page(epoch, version));
        let key = format!("{key_prefix}{tenant}");
        for (by_heir, page, is_written) in [
            (true, &newer, true),
            (false, &older, false),
            (true, &next, true),
            (false, &newer, false),
            (true, &last, true),
            (false, &next, false),
        ] {
            let writer = if by_heir { &mut heir } else { &mut deposed };
            writer.set(std::slice::from_ref(page)).await.unwrap();
            let stored: String = reader.get(&key).await.unwrap();
            assert_eq!(stored == page.document, is_written, "epoch {}, version {}", page.epoch, page.version);
        }
        let stored: String = reader.get(&key).await.unwrap();
        let left_ms: i64 = reader.pttl(&key).await.unwrap();
        let _: () = reader.del(&key).await.unwrap();
        assert_eq!(stored, last.document);
        assert!((1..=60_000).contains(&left_ms), "{left_ms}");
    }

    #[tokio::test]
    async fn a_redis_that_is_down_is_an_error_soon_and_a_poor_url_at_start() {
        let settings = |url: &str| config::Redis { url: Some(url.into()), ..config::Redis::default() };
        let mut writer = Writer::open(&settings("redis://127.0.0.1:1/")).unwrap().unwrap();
        let began = Instant::now();
        let tenant = TenantId(crate::clock::new_id());
        assert!(writer.set(&[Page { tenant, epoch: 0, version: 0, document: "{}".into() }]).await.is_err());
        assert!(began.elapsed() < Duration::from_secs(30));
        assert!(problem(&settings("http://user:secret@host/")).is_some_and(|problem| !problem.contains("secret")));
        assert_eq!(problem(&settings("rediss://user:secret@cache.example.com:6380/1")), None);
    }
}
