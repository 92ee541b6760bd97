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
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::health::{Health, Standing};
use super::limiter_key::{Counts, LimiterKey, NOBODY, Period};
use super::readings::{CONSUMER, CUSTOM_ID, Cadence, LastTold, Owed, Readings, owner_of};
use crate::clock::Clock;
use crate::config::{self, LimitBy};
use crate::domain::ids::TenantId;
use crate::domain::reconcile::reading::{
    EVERY_ROUTE, Interruption, InterruptionReason, MeterReading, READING_TEXT_BYTES_MAX, Source,
};
use crate::domain::time::{MICROS_PER_DAY, MICROS_PER_SECOND, Timestamp};
use crate::intake::text;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const NAMES: &str = "ratelimit:*";
/// Names that Redis looks through for one answer.
const SCAN_COUNT: usize = 1_000;
/// Counters that are kept in mind; a limiter with more has tenants that are not watched, and the health report says so.
const COUNTERS_MAX: usize = 500_000;
/// A time to live that grew by less is a matter of clocks.
const TTL_ROSE_MICROS: i64 = 2 * MICROS_PER_SECOND;
/// A meter that was not seen for so long is forgotten, and with it which of its periods was the longest.
const FORGOTTEN_MICROS: i64 = 2 * MICROS_PER_DAY;
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
        kong: &config::Kong,
        reconcile: &config::Reconcile,
        clock: Clock,
        readings: R,
    ) -> Result<Option<Counters<R>>, String> {
        let Some(url) = &kong.redis_url else { return Ok(None) };
        let unusable = |_| "gateway.kong.redis_url: must be a redis:// or rediss:// URL".to_owned();
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
    pub async fn run(mut self, stopping: CancellationToken) {
        let mut turns = tokio::time::interval(self.every);
        turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while stopping.run_until_cancelled(turns.tick()).await.is_some() {
            if stopping.run_until_cancelled(self.look()).await.is_none() {
                break;
            }
        }
        self.hand_over().await;
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

/// What is known of the counters.
struct Watch {
    run_id: String,
    since: Timestamp,
    /// Complete passes under this run of Redis.
    passes: u64,
    completed_at: Option<Timestamp>,
    /// When the pass that runs began.
    began_at: Timestamp,
    /// The last poll that failed, since the last complete pass.
    missed_at: Option<Timestamp>,
    cadence: Cadence,
    counters: HashMap<String, Counter, ahash::RandomState>,
    meters: HashMap<String, Meter, ahash::RandomState>,
    /// Names of this pass that are no tenant's, and such that live longer than Kong lets them.
    strange: usize,
    immortal: usize,
    /// Counters of this pass that there was no room for.
    surplus: usize,
}

/// One counter, of one period.
struct Counter {
    meter: String,
    period: Period,
    epoch: String,
    end: Timestamp,
    value: i64,
    expires: i64,
    seen_at: Timestamp,
    seen_in: u64,
    from_zero: bool,
}

/// What one plugin counts for one identifier, by the best of its periods.
struct Meter {
    tenant: TenantId,
    period: Period,
    since_pass: u64,
    seen_at: Timestamp,
    told: LastTold,
}

impl Watch {
    fn new(since: Timestamp, cadence: Cadence) -> Watch {
        Watch {
            run_id: String::new(),
            since,
            passes: 0,
            completed_at: None,
            began_at: since,
            missed_at: None,
            cadence,
            counters: HashMap::default(),
            meters: HashMap::default(),
            strange: 0,
            immortal: 0,
            surplus: 0,
        }
    }

    /// A poll begins, at a Redis with this run.
    fn begin<R: Readings>(&mut self, run_id: &str, now: Timestamp, owed: &mut Owed<R>) {
        self.began_at = now;
        if self.run_id != run_id {
            if !self.run_id.is_empty() {
                self.interrupt(now, InterruptionReason::LimiterReset, owed);
                // What of its counters is left is seen by the pass that begins: it may have kept them.
                self.missed_at = None;
            }
            run_id.clone_into(&mut self.run_id);
        }
    }

    /// A poll that failed. No window is judged in the belief that nothing was counted in it: each is marked before it ends.
    fn miss<R: Readings>(&mut self, at: Timestamp, owed: &mut Owed<R>) {
        let before = self.missed_at.replace(at).or(self.completed_at);
        let cadence = self.cadence;
        if cadence.is_last(at) || before.is_none_or(|before| cadence.window(before) != cadence.window(at)) {
            self.interrupt(at, InterruptionReason::Gap, owed);
        }
    }

    /// Marks the time since the last complete pass, for everybody who is watched.
    fn interrupt<R: Readings>(&self, until: Timestamp, reason: InterruptionReason, owed: &mut Owed<R>) {
        let from = self.completed_at.unwrap_or(self.since);
        let mut tenants: Vec<TenantId> = self.meters.values().map(|meter| meter.tenant).collect();
        tenants.sort_unstable();
        tenants.dedup();
        for tenant in tenants {
            owed.interruption(tenant, Interruption { source: Source::Limiter, from, until, reason });
        }
    }

    fn see<R: Readings>(
        &mut self,
        name: &str,
        tenant: TenantId,
        value: i64,
        ttl_ms: i64,
        at: Timestamp,
        owed: &mut Owed<R>,
    ) {
        let Some(key) = LimiterKey::parse(name) else { return };
        // Gone since (-2), or without an end (-1).
        if ttl_ms == -2 {
            return;
        }
        let kept_micros = key.period.kept_micros();
        let is_immortal = ttl_ms < 0 || ttl_ms / 1_000 > 2 * (kept_micros / MICROS_PER_SECOND);
        self.immortal += usize::from(is_immortal);
        let expires = at.0.saturating_add(ttl_ms.clamp(0, 2 * kept_micros / 1_000).saturating_mul(1_000));
        let (passes, began_at) = (self.passes, self.began_at);
        let meter_name = match (key.route, key.service) {
            (NOBODY, NOBODY) => format!("{EVERY_ROUTE}/{}", text::shortened(key.identifier, 128)),
            (route, service) => format!("{route}/{service}/{}", text::shortened(key.identifier, 128)),
        };
        if let Some(known) = self.counters.get_mut(name) {
            let rose = !is_immortal && expires > known.expires.saturating_add(TTL_ROSE_MICROS);
            // Where there is a longer period, a minute that begins anew loses nothing.
            let counts = self.meters.get(&known.meter).is_none_or(|meter| meter.period == known.period);
            if counts && (value < known.value || rose) {
                let (from, reason) = (known.seen_at, InterruptionReason::LimiterReset);
                owed.interruption(tenant, Interruption { source: Source::Limiter, from, until: at, reason });
            }
            (known.value, known.expires, known.seen_at, known.seen_in) = (value, expires, at, passes);
        } else if self.counters.len() < COUNTERS_MAX {
            let counter = Counter {
                meter: meter_name.clone(),
                period: key.period,
                epoch: key.epoch(),
                end: key.end(),
                value,
                expires,
                seen_at: at,
                seen_in: passes,
                // A whole pass had not found it, or its period began while we were watching.
                from_zero: passes > 0 || key.start >= self.since,
            };
            self.counters.insert(name.to_owned(), counter);
        } else {
            self.surplus += 1;
            return;
        }
        let meter = self.meters.entry(meter_name).or_insert_with(|| Meter {
            tenant,
            period: key.period,
            since_pass: passes,
            seen_at: began_at,
            told: LastTold::default(),
        });
        if meter.tenant != tenant {
            (meter.tenant, meter.told) = (tenant, LastTold::default());
        }
        meter.seen_at = at;
        if key.period.worth() > meter.period.worth() {
            (meter.period, meter.told) = (key.period, LastTold::default());
        }
    }

    /// A pass is complete: what moved is told.
    ///
    /// Kong counts each period with a command of its own, so a minute may be seen before its day: a meter without a longer
    /// period is told from the second pass on.
    fn complete<R: Readings>(&mut self, now: Timestamp, owed: &mut Owed<R>) {
        if self.missed_at.take().is_some() {
            self.interrupt(now, InterruptionReason::Gap, owed);
        }
        let mut moved: Vec<&Counter> = (self.counters.values())
            .filter(|counter| counter.seen_in == self.passes)
            .filter(|counter| {
                let meter = self.meters.get(&counter.meter);
                meter.is_some_and(|meter| {
                    let is_known = meter.since_pass < self.passes || !meter.period.is_lower_bound();
                    meter.period == counter.period && is_known
                })
            })
            .collect();
        moved.sort_unstable_by(|one, other| (&one.meter, one.end).cmp(&(&other.meter, other.end)));
        // Of two periods that are read together the older one is told first, and then not again.
        for counter in moved {
            let Some(meter) = self.meters.get_mut(&counter.meter) else { continue };
            let last = Timestamp(counter.end.0.saturating_sub(1));
            let reading = MeterReading {
                source: Source::Limiter,
                series: {
                    let series = format!("{}/{}", counter.meter, counter.period.name());
                    text::shortened(&series, READING_TEXT_BYTES_MAX).into_owned()
                },
                epoch: counter.epoch.clone(),
                value: counter.value,
                at: counter.seen_at.min(last),
                from_zero: counter.from_zero,
                lower_bound: counter.period.is_lower_bound(),
            };
            if meter.told.is_past(&reading) {
                continue;
            }
            let tenant = meter.tenant;
            let (looked_at, cadence) = (self.completed_at, self.cadence);
            meter.told.tell(reading, now, looked_at, &cadence, |reading| owed.reading(tenant, reading));
        }
        self.lose(now, owed);
        for meter in self.meters.values_mut() {
            let tenant = meter.tenant;
            meter.told.tell_due(now, &self.cadence, |reading| owed.reading(tenant, reading));
        }
        let passes = self.passes;
        self.counters.retain(|_, counter| counter.seen_in == passes || counter.end > now);
        let forgotten = Timestamp(now.0.saturating_sub(FORGOTTEN_MICROS));
        self.meters.retain(|_, meter| meter.seen_at > forgotten);
        self.completed_at = Some(now);
        self.passes += 1;
    }

    /// A counter that a complete pass did not find although it had time to live: the store was emptied, or has dropped it.
    /// It stands at zero, so that what it counts from now on is known to be new.
    fn lose<R: Readings>(&mut self, now: Timestamp, owed: &mut Owed<R>) {
        let (passes, cadence, looked_at) = (self.passes, self.cadence, self.completed_at);
        let is_lost = |counter: &Counter| {
            counter.seen_in != passes && counter.expires > now.0.saturating_add(TTL_ROSE_MICROS) && counter.end > now
        };
        let lost: Vec<Counter> = self.counters.extract_if(|_, counter| is_lost(counter)).map(|(_, one)| one).collect();
        for counter in lost {
            let known = self.meters.get_mut(&counter.meter);
            let Some(meter) = known.filter(|meter| meter.period == counter.period) else { continue };
            let tenant = meter.tenant;
            let (source, from, reason) = (Source::Limiter, counter.seen_at, InterruptionReason::LimiterReset);
            owed.interruption(tenant, Interruption { source, from, until: now, reason });
            if let Some(last) = meter.told.newest().filter(|last| last.epoch == counter.epoch).cloned() {
                let nothing = MeterReading { value: 0, at: now.min(Timestamp(counter.end.0 - 1)), ..last };
                meter.told.tell(nothing, now, looked_at, &cadence, |reading| owed.reading(tenant, reading));
            }
        }
    }

    /// Tells what is still held, because nobody will look again.
    fn hand_over<R: Readings>(&mut self, owed: &mut Owed<R>) {
        for meter in self.meters.values_mut() {
            let tenant = meter.tenant;
            meter.told.hand_over(|reading| owed.reading(tenant, reading));
        }
    }

    /// Settings without which the counters do not say what is needed; of the pass that is complete.
    fn missing(&mut self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        let strange = std::mem::take(&mut self.strange);
        if self.meters.is_empty() {
            missing.push(match strange {
                0 => "rate-limiting with policy redis (there are no counters)",
                _ => "limit_by a tenant's header or consumer (no counter is a tenant's)",
            });
        }
        if self.meters.values().any(|meter| meter.period.is_lower_bound()) {
            missing.push("a high day limit beside the minute, as a meter (a minute is only a lower bound)");
        }
        if std::mem::take(&mut self.immortal) > 0 {
            missing.push("sync_rate -1 (some counters live longer than their period)");
        }
        if std::mem::take(&mut self.surplus) > 0 {
            missing.push("fewer counters (not all are watched)");
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::super::readings::USERNAME;
    use super::super::readings::tests::{Listeners, cadence};
    use super::*;
    use secrecy::SecretString;

    const RECON: &str = include_str!("../../../tests/fixtures/kong/recon/redis-polls.tsv");
    const ACME: TenantId = TenantId(Uuid::from_u128(0x1111_1111_1111_4111_8111_1111_1111_1111));
    const GLOBEX: TenantId = TenantId(Uuid::from_u128(0x2222_2222_2222_4222_8222_2222_2222_2222));
    const DAY: &str = "ratelimit:r:s:11111111-1111-4111-8111-111111111111:1795219200000:day";
    const MINUTE: &str = "ratelimit:r:s:11111111-1111-4111-8111-111111111111:1795220880000:minute";
    const BEGIN: i64 = 1_795_220_890;

    fn listeners() -> Listeners {
        let names = vec![(USERNAME, "tenant-acme", ACME), (USERNAME, "tenant-globex", GLOBEX)];
        Listeners { names, ..Listeners::default() }
    }

    fn second(second: i64) -> Timestamp {
        Timestamp(second * MICROS_PER_SECOND)
    }

    /// A run of the store, and its counters: name, value, time to live in seconds.
    type Pass<'a> = (&'a str, &'a [(&'a str, i64, i64)]);

    /// Passes five seconds apart.
    async fn passed(passes: &[Pass<'_>]) -> Listeners {
        let listeners = listeners();
        let (mut watch, mut owed) = (Watch::new(second(BEGIN), cadence()), Owed::new(listeners.clone()));
        for (at, (run, counters)) in (0..).zip(passes) {
            let now = second(BEGIN + at * 5);
            watch.begin(run, now, &mut owed);
            for (name, value, ttl) in *counters {
                watch.see(name, ACME, *value, ttl * 1_000, now, &mut owed);
            }
            watch.complete(now, &mut owed);
        }
        watch.hand_over(&mut owed);
        owed.settle().await;
        listeners
    }

    fn told(listeners: &Listeners) -> Vec<(i64, i64, bool, bool)> {
        let heard = listeners.heard_by(ACME).readings;
        let row =
            |one: &MeterReading| (one.at.0 / MICROS_PER_SECOND - BEGIN, one.value, one.from_zero, one.lower_bound);
        heard.iter().map(row).collect()
    }

    #[tokio::test]
    async fn the_day_is_the_meter_where_there_is_one_and_a_minute_is_a_lower_bound() {
        let both: &[_] = &[(DAY, 5, 80_000), (MINUTE, 5, 40)];
        let later: &[_] = &[(DAY, 7, 79_990), (MINUTE, 7, 30)];
        let day = passed(&[("a", both), ("a", both), ("a", later)]).await;
        assert_eq!(told(&day), [(0, 5, false, false), (10, 7, false, false)]);
        assert_eq!(day.heard_by(ACME).readings[0].epoch, "1795219200000");
        // The minute was seen first.
        let minute = passed(&[("a", &[]), ("a", &both[1..]), ("a", both), ("a", later)]).await;
        assert_eq!(told(&minute), [(10, 5, true, false), (15, 7, true, false)]);
        let alone = passed(&[("a", &[]), ("a", &both[1..]), ("a", &[(MINUTE, 5, 35)])]).await;
        assert_eq!(told(&alone), [(10, 5, true, true)]);
    }

    /// A minute's counter dies, and what was seen of it last is told with its window all the same.
    #[tokio::test]
    async fn a_counter_that_is_gone_is_told_when_its_window_ends() {
        let listeners = listeners();
        let (mut watch, mut owed) = (Watch::new(second(BEGIN), cadence()), Owed::new(listeners.clone()));
        let mut told_by = Vec::new();
        for at in (0..60).map(|look| look * 5) {
            let now = second(BEGIN + at);
            watch.begin("a", now, &mut owed);
            // Of minute 1795220880, which ends ten seconds before the window does.
            if (10..50).contains(&at) {
                watch.see(MINUTE, ACME, at, (50 - at) * 1_000, now, &mut owed);
            }
            watch.complete(now, &mut owed);
            owed.settle().await;
            told_by.push((at, told(&listeners).last().map(|one| one.1)));
        }
        // Told at once when it is first told, then with the last look of the window in which it was seen.
        let last = told_by.iter().find(|(_, value)| *value == Some(45)).map(|(at, _)| *at);
        let ends = (second(BEGIN).0 / MICROS_PER_SECOND / 300 + 1) * 300 - BEGIN;
        assert!(last.is_some_and(|at| ends - 15 <= at && at < ends), "{last:?} of {ends}: {told_by:?}");
    }

    #[tokio::test]
    async fn a_fall_a_rising_time_to_live_and_another_run_are_resets() {
        let reset = |listeners: &Listeners| {
            let heard = listeners.heard_by(ACME).interruptions;
            let row = |one: &Interruption| {
                assert_eq!((one.source, one.reason), (Source::Limiter, InterruptionReason::LimiterReset));
                ((one.from.0 / MICROS_PER_SECOND) - BEGIN, (one.until.0 / MICROS_PER_SECOND) - BEGIN)
            };
            heard.iter().map(row).collect::<Vec<_>>()
        };
        let steady: &[_] = &[(DAY, 5, 80_000)];
        let grown: &[_] = &[(DAY, 9, 79_995)];
        assert_eq!(reset(&passed(&[("a", steady), ("a", grown)]).await), []);
        assert_eq!(reset(&passed(&[("a", grown), ("a", &[(DAY, 5, 79_990)])]).await), [(0, 5)]);
        assert_eq!(reset(&passed(&[("a", steady), ("a", &[(DAY, 9, 86_399)])]).await), [(0, 5)]);
        // It is gone before its time: that is when it was lost, whenever it comes back.
        let gone = passed(&[("a", steady), ("a", &[]), ("a", &[(DAY, 1, 86_399)])]).await;
        assert_eq!(reset(&gone), [(0, 5)]);
        assert_eq!(told(&gone).iter().map(|one| one.1).collect::<Vec<_>>(), [5, 0, 1]);
        // One that dies in its time is none that was lost.
        assert_eq!(reset(&passed(&[("a", &[(MINUTE, 5, 4)]), ("a", &[]), ("a", &[])]).await), []);
        assert_eq!(reset(&passed(&[("a", steady), ("b", grown)]).await), [(0, 5)]);
    }

    /// Each epoch's last value in the captured run is told, in order, and the loss of Redis is marked.
    #[tokio::test]
    async fn the_captured_run_is_told_with_its_reset() {
        let listeners = listeners();
        let (mut watch, mut owed) = (Watch::new(second(1_795_220_880), cadence()), Owed::new(listeners.clone()));
        let mut last: HashMap<String, (i64, i64)> = HashMap::new();
        let mut polls: Vec<(f64, Vec<Vec<&str>>)> = Vec::new();
        for line in RECON.lines().filter(|line| !line.starts_with('#')) {
            let cells: Vec<&str> = line.split('\t').collect();
            let at: f64 = cells[0].split(' ').next().unwrap().parse().unwrap();
            if polls.last().is_none_or(|(poll, _)| (poll - at).abs() > 0.1) {
                polls.push((at, Vec::new()));
            }
            polls.last_mut().unwrap().1.push(cells);
        }
        for (at, rows) in polls {
            let now = Timestamp((at * 1e6) as i64);
            if rows.iter().any(|row| row.join(" ").contains("ERROR")) {
                watch.miss(now, &mut owed);
                continue;
            }
            let run = if at < 1_795_221_012.0 { "first" } else { "second" };
            watch.begin(run, now, &mut owed);
            for row in rows.iter().filter(|row| row.len() == 4 && row[1].contains(&ACME.to_string())) {
                let (value, ttl) = (row[2].parse().unwrap(), row[3].parse().unwrap());
                watch.see(row[1], ACME, value, ttl, now, &mut owed);
                let key = LimiterKey::parse(row[1]).unwrap();
                if run == "second" && key.period == Period::Day {
                    last.insert(key.epoch(), (value, 0));
                }
            }
            watch.complete(now, &mut owed);
        }
        watch.hand_over(&mut owed);
        owed.settle().await;
        let told = listeners.heard_by(ACME);
        assert!(told.interruptions.iter().any(|one| one.reason == InterruptionReason::LimiterReset));
        for (epoch, (value, _)) in last {
            let days = told.readings.iter().filter(|reading| reading.epoch == epoch && !reading.lower_bound);
            assert_eq!(days.max_by_key(|reading| reading.at).map(|reading| reading.value), Some(value), "{epoch}");
        }
        let mut at = HashMap::new();
        for reading in &told.readings {
            let before = at.insert(reading.series.clone(), reading.at);
            assert!(before.is_none_or(|before| before <= reading.at), "{reading:?}");
        }
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
        let kong = config::Kong { redis_url: Some(SecretString::from(redis.url())), ..config::Kong::default() };
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
        let kong = config::Kong { redis_url: Some(SecretString::from(redis.url())), ..config::Kong::default() };
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
