//! Kong's own counts of what it passed on, read from each of its nodes: the second proof.
//!
//! A node counts only its own traffic, so each is asked by itself, and each is a meter by itself. Its counts begin at zero
//! with each start, at which it draws another `node_id`: that is the epoch. A series appears with its first request, so one
//! that was not there at the last look of the same epoch was zero then. What a node counted between the last look and its
//! end nobody will know; the tenants are told which time that is.
//!
//! A tenant that nobody uses is not woken by a meter that does not move: before a meter that has moved is told, so is the
//! last look at which it had not. A tenant that is awake and has a consumer is told that none of its requests was passed on,
//! before the first is: what stands in its ledger then came another way. And every tenant that is awake is told that a node
//! was started again, because records of its access log may be lost with it, whoever's they were; which node ran is kept in the
//! control database, so that one that was started again while we were away is noticed, too.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::BytesMut;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::exposition::{self, Exposition};
use super::health::{Health, Standing};
use super::readings::{Cadence, LastTold, Owed, Readings, Seen, USERNAME, owner_of};
use super::rounds::{self, Looker};
use crate::clock::Clock;
use crate::config;
use crate::domain::ids::TenantId;
use crate::domain::reconcile::reading::{
    Interruption, InterruptionReason, MeterReading, READING_TEXT_BYTES_MAX, Source,
};
use crate::domain::time::{MICROS_PER_HOUR, MICROS_PER_SECOND, Timestamp};
use crate::intake::text;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest exposition that is read.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// For so long after a node's start a tenant that wakes is told of it; what it then still learns about was long settled.
const RESTART_TOLD_MICROS: i64 = MICROS_PER_HOUR;
/// Starts of one node that are remembered for that.
const RESTARTS_MAX: usize = 16;
/// The `Date` header has whole seconds.
const DATE_MICROS: i64 = MICROS_PER_SECOND;

/// Looks at every node, again and again.
pub struct Scraper<R> {
    nodes: Vec<Node>,
    client: reqwest::Client,
    every: Duration,
    cadence: Cadence,
    skew_micros: i64,
    /// The services whose requests the ledger should know of; all, if none is named.
    services: Vec<String>,
    clock: Clock,
    owed: Owed<R>,
    health: watch::Sender<Health>,
}

/// One node of Kong.
struct Node {
    name: String,
    url: String,
    watch: Watch,
    /// What is wrong with it, if anything.
    problem: Option<String>,
    /// What it does not say.
    missing: Vec<&'static str>,
}

/// One answer of a node.
struct Answer {
    exposition: Exposition,
    /// How far its clock is from ours, as far as one can tell.
    skew_micros: Option<i64>,
}

impl<R: Readings> Scraper<R> {
    /// # Errors
    /// When no client can be made.
    pub fn new(
        kong: &config::Kong,
        reconcile: &config::Reconcile,
        clock: Clock,
        readings: R,
    ) -> Result<Scraper<R>, reqwest::Error> {
        // Fails when a provider is installed already, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = reqwest::Client::builder()
            .user_agent(concat!("platform-api/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .build()?;
        let node = |node: &config::KongNode| Node {
            name: node.name.clone(),
            url: node.url.clone(),
            watch: Watch::new(&node.name, clock.now()),
            problem: None,
            missing: Vec::new(),
        };
        Ok(Scraper {
            nodes: kong.metrics.nodes.iter().map(node).collect(),
            client,
            every: config::millis(kong.metrics.scrape_ms),
            cadence: Cadence::new(reconcile, kong.metrics.scrape_ms),
            skew_micros: reconcile.terms().skew_micros,
            services: kong.llm_services.clone(),
            clock,
            owed: Owed::new(readings),
            health: watch::channel(Health::unknown("proof: cumulative; not asked yet")).0,
        })
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
        self.nodes.iter_mut().for_each(|node| node.watch.hand_over(&mut self.owed));
        self.owed.settle().await;
    }

    /// Looks at every node once, at all of them at the same time, and tells the tenants.
    pub async fn look(&mut self) {
        self.recall().await;
        let asked = self.nodes.iter().map(|node| ask(&self.client, &node.url, &self.services, &self.clock));
        let answers = futures_util::future::join_all(asked).await;
        for (node, answered) in self.nodes.iter_mut().zip(answers) {
            let problem = match answered {
                Ok((answer, at)) => {
                    metrics::counter!("platform_api_kong_looks_total", "source" => "metrics", "result" => "ok")
                        .increment(1);
                    node.missing = missing(&answer.exposition);
                    let skew = answer.skew_micros.filter(|skew| skew.abs() > self.skew_micros + DATE_MICROS);
                    node.watch.look(&answer.exposition, at, skew.is_some(), &self.cadence, &mut self.owed);
                    let lost = answer.exposition.errors > 0;
                    let skewed = skew.map(|skew| format!("its clock is off by {} s", skew / MICROS_PER_SECOND));
                    skewed.or_else(|| lost.then(|| "it has lost metrics (nginx_metric_errors_total)".into()))
                }
                Err(reason) => {
                    let result = "failed";
                    metrics::counter!("platform_api_kong_looks_total", "source" => "metrics", "result" => result)
                        .increment(1);
                    node.watch.miss(self.clock.now(), &self.cadence, &mut self.owed);
                    Some(reason.to_owned())
                }
            };
            if node.problem != problem {
                match &problem {
                    Some(problem) => {
                        tracing::warn!(node = node.name, problem, "kong's metrics are not as they should be")
                    }
                    None => tracing::info!(node = node.name, "kong's metrics are as they should be again"),
                }
            }
            node.problem = problem;
        }
        self.owed.settle().await;
        self.remember().await;
        self.tell();
    }

    /// Which nodes ran when anybody last looked, be it before our own start: one that was started again while we were away
    /// has lost what waited in its log's queue.
    async fn recall(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| matches!(node.watch.before, Before::Unread)) {
            // What cannot be read now is read with the next look.
            if let Ok(seen) = self.owed.readings().recall(&node.name).await {
                node.watch.before = Before::Read(seen);
            }
        }
    }

    async fn remember(&self) {
        for node in &self.nodes {
            let (Some(id), Some(at)) = (&node.watch.node_id, node.watch.looked_at) else { continue };
            if matches!(node.watch.before, Before::Read(_)) && node.watch.missed_at.is_none() {
                self.owed.readings().remember(&node.name, Seen { node: digest_of(id), at }).await;
            }
        }
    }

    fn tell(&self) {
        let problems: Vec<String> =
            (self.nodes.iter()).filter_map(|node| Some(format!("{}: {}", node.name, node.problem.as_ref()?))).collect();
        let mut missing: Vec<&str> = self.nodes.iter().flat_map(|node| node.missing.iter().copied()).collect();
        missing.sort_unstable();
        missing.dedup();
        let silent = self.nodes.iter().filter(|node| node.watch.missed_at.is_some()).count();
        let standing = match (silent, problems.len() + missing.len()) {
            (0, 0) => Standing::Up,
            (silent, _) if silent == self.nodes.len() => Standing::Down,
            _ => Standing::Degraded,
        };
        self.health.send_replace(Health::of(standing, "cumulative", &missing, &problems));
    }
}

impl<R: Readings> Looker for Scraper<R> {
    async fn look(&mut self) {
        Scraper::look(self).await;
    }

    async fn hand_over(&mut self) {
        Scraper::hand_over(self).await;
    }
}

/// Settings without which a node does not say what is needed.
fn missing(exposition: &Exposition) -> Vec<&'static str> {
    let mut missing = Vec::new();
    if exposition.node_id.is_none() {
        missing.push("a Kong that says its node_id");
    }
    if !exposition.counts_requests {
        missing.push("the prometheus plugin with status_code_metrics (or a first request)");
    } else if !exposition.names_consumers {
        missing.push("the prometheus plugin with per_consumer, and a plugin that authenticates consumers");
    }
    missing
}

async fn ask(
    client: &reqwest::Client,
    url: &str,
    services: &[String],
    clock: &Clock,
) -> Result<(Answer, Timestamp), &'static str> {
    let (asked_at, started) = (clock.now(), Instant::now());
    // What the client says of a failure quotes the address, which may hold a password.
    let response = client.get(url).send().await.map_err(|error| match error.is_timeout() {
        true => "it does not answer in time",
        false => "it cannot be reached",
    })?;
    let at = clock.now();
    let heard_after = i64::try_from(started.elapsed().as_micros()).unwrap_or(0);
    if !response.status().is_success() {
        return Err("it does not answer with its metrics");
    }
    let date = response.headers().get("date").and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok()).map(|date| date.timestamp().as_microsecond());
    // Between our asking and our hearing, and anywhere within its second.
    let middle = asked_at.0.saturating_add(heard_after / 2);
    let skew_micros = date.map(|date| date.saturating_add(DATE_MICROS / 2).saturating_sub(middle));
    let body = gather(response).await?;
    let exposition = exposition::read_of(&String::from_utf8_lossy(&body), services);
    Ok((Answer { exposition, skew_micros }, at))
}

async fn gather(mut response: reqwest::Response) -> Result<BytesMut, &'static str> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|_| "its answer breaks off")? {
        if body.len() + chunk.len() > BODY_BYTES_MAX {
            return Err("its answer is too long");
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// An id of any length, in one that has always the same.
fn digest_of(id: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, id.as_bytes()).as_ref());
    bytes
}

/// What was known of a node before our own start.
enum Before {
    Unread,
    /// Nothing, once it has been compared with the node that runs.
    Read(Option<Seen>),
}

/// What is known of one node's counts.
struct Watch {
    name: String,
    before: Before,
    /// When we began to look.
    since: Timestamp,
    node_id: Option<String>,
    /// The last good look.
    looked_at: Option<Timestamp>,
    /// The last look that failed, since the last good one.
    missed_at: Option<Timestamp>,
    /// The last look before the node's clock went wrong.
    right_at: Option<Timestamp>,
    restarts: VecDeque<Restart>,
    consumers: HashMap<String, Meter, ahash::RandomState>,
}

/// The node was started again, between these two looks.
struct Restart {
    from: Timestamp,
    until: Timestamp,
    told: HashSet<TenantId, ahash::RandomState>,
}

/// What one consumer's requests came to.
#[derive(Default)]
struct Meter {
    routes: BTreeMap<String, i64>,
    /// How often a count fell although the node was not started again.
    falls: u32,
    /// It has counted while it was nobody's.
    strange: bool,
    /// Whose it is.
    tenant: Option<TenantId>,
    told: LastTold,
}

impl Watch {
    fn new(name: &str, since: Timestamp) -> Watch {
        Watch {
            name: name.to_owned(),
            before: Before::Unread,
            since,
            node_id: None,
            looked_at: None,
            missed_at: None,
            right_at: None,
            restarts: VecDeque::new(),
            consumers: HashMap::default(),
        }
    }

    /// A look that failed. No window is judged in the belief that nothing was counted in it: each is marked before it ends.
    fn miss<R: Readings>(&mut self, at: Timestamp, cadence: &Cadence, owed: &mut Owed<R>) {
        let before = self.missed_at.replace(at).or(self.looked_at);
        if cadence.is_last(at) || before.is_none_or(|before| cadence.window(before) != cadence.window(at)) {
            self.mark(Source::Metrics, self.heard_until(cadence), at, InterruptionReason::Gap, owed);
        }
    }

    /// When the node was last heard, if need be before our own start; where nobody knows, what was judged by our start is
    /// not doubted.
    fn heard_until(&self, cadence: &Cadence) -> Timestamp {
        let before = match &self.before {
            Before::Read(Some(seen)) => Some(seen.at),
            Before::Unread | Before::Read(None) => None,
        };
        self.looked_at.or(before).unwrap_or_else(|| cadence.not_judged_at(self.since))
    }

    /// Marks a time for everybody whose meters are read here, or who may be compared.
    fn mark<R: Readings>(
        &self,
        source: Source,
        from: Timestamp,
        until: Timestamp,
        reason: InterruptionReason,
        owed: &mut Owed<R>,
    ) {
        let told = self.consumers.values().filter(|meter| meter.told.is_some());
        owed.interrupt(told.filter_map(|meter| meter.tenant), Interruption { source, from, until, reason });
    }

    /// A look that did not fail: what it says goes to the tenants whose it is.
    fn look<R: Readings>(
        &mut self,
        exposition: &Exposition,
        at: Timestamp,
        skewed: bool,
        cadence: &Cadence,
        owed: &mut Owed<R>,
    ) {
        let Some(node_id) = &exposition.node_id else { return self.miss(at, cadence, owed) };
        let restarted = self.node_id.as_ref().is_some_and(|known| known != node_id);
        if restarted {
            for meter in self.consumers.values_mut() {
                (meter.routes, meter.falls) = (BTreeMap::new(), 0);
            }
        }
        let awake = owed.readings().awake();
        self.expect(exposition, &awake);
        if self.missed_at.take().is_some() {
            self.mark(Source::Metrics, self.heard_until(cadence), at, InterruptionReason::Gap, owed);
        }
        self.read(exposition, node_id, at, cadence, owed);
        self.tell_of_clocks(at, skewed, cadence, owed);
        if let (Some(from), true) = (self.looked_at, restarted) {
            self.restarts.push_back(Restart { from, until: at, told: HashSet::default() });
        }
        if let Before::Read(before) = &mut self.before
            && let Some(seen) = before.take().filter(|seen| seen.node != digest_of(node_id))
        {
            self.restarts.push_back(Restart { from: seen.at.min(at), until: at, told: HashSet::default() });
        }
        self.tell_of_restart(&awake, at, owed);
        self.node_id = Some(node_id.clone());
        self.looked_at = Some(at);
    }

    /// Notes whose consumers are to be read: those that were counted, and those of tenants that may be compared.
    fn expect(&mut self, exposition: &Exposition, awake: &[(TenantId, Vec<String>)]) {
        let counted = exposition.proxied.keys();
        // Where no consumer is named, nothing is said of any of them.
        let silent = awake.iter().filter(|_| exposition.names_consumers).flat_map(|(_, names)| names);
        for consumer in counted.chain(silent) {
            if !self.consumers.contains_key(consumer) {
                self.consumers.insert(consumer.clone(), Meter::default());
            }
        }
    }

    fn read<R: Readings>(
        &mut self,
        exposition: &Exposition,
        node_id: &str,
        at: Timestamp,
        cadence: &Cadence,
        owed: &mut Owed<R>,
    ) {
        // Whatever appears now was zero when we last looked: in this epoch, or because this epoch had not begun.
        let watched = self.node_id.is_some();
        for (consumer, meter) in &mut self.consumers {
            let nothing = BTreeMap::new();
            let lost = meter.advance(exposition.proxied.get(consumer).unwrap_or(&nothing));
            let Some(tenant) = owner_of(owed.readings(), &[(USERNAME, Some(consumer))]) else {
                (meter.strange, meter.tenant, meter.told) = (true, None, LastTold::default());
                continue;
            };
            meter.tenant = Some(tenant);
            if let (Some(from), true) = (self.looked_at, lost) {
                let (source, reason) = (Source::Metrics, InterruptionReason::Gap);
                owed.interruption(tenant, Interruption { source, from, until: at, reason });
            }
            let epoch = match meter.falls {
                0 => node_id.to_owned(),
                falls => format!("{node_id}/{falls}"),
            };
            let series = format!("{}/{consumer}", self.name);
            let reading = MeterReading {
                source: Source::Metrics,
                series: text::shortened(&series, READING_TEXT_BYTES_MAX).into_owned(),
                epoch: text::shortened(&epoch, READING_TEXT_BYTES_MAX).into_owned(),
                value: meter.routes.values().fold(0, |sum, count| sum.saturating_add(*count)),
                at,
                from_zero: watched && !std::mem::take(&mut meter.strange),
                lower_bound: false,
            };
            meter.told.tell(reading, at, self.looked_at, cadence, |reading| owed.reading(tenant, reading));
        }
    }

    /// Marks the time in which the node's clock is wrong: when that begins, in each window, and when it is over.
    fn tell_of_clocks<R: Readings>(&mut self, at: Timestamp, skewed: bool, cadence: &Cadence, owed: &mut Owed<R>) {
        let before = self.right_at;
        self.right_at = if skewed { before.or(self.looked_at).or(Some(at)) } else { None };
        let is_due = before.is_none() || !skewed || cadence.is_last(at);
        if let (Some(from), true) = (before.or(self.right_at), is_due) {
            for source in [Source::AccessLog, Source::Limiter] {
                self.mark(source, from, at, InterruptionReason::ClockSkew, owed);
            }
        }
    }

    fn tell_of_restart<R: Readings>(&mut self, awake: &[(TenantId, Vec<String>)], now: Timestamp, owed: &mut Owed<R>) {
        let surplus = self.restarts.len().saturating_sub(RESTARTS_MAX);
        self.restarts.drain(..surplus);
        self.restarts.retain(|restart| now.0.saturating_sub(restart.until.0) <= RESTART_TOLD_MICROS);
        for restart in &mut self.restarts {
            let (source, from, until) = (Source::Metrics, restart.from, restart.until);
            for (tenant, _) in awake.iter().filter(|(tenant, _)| restart.told.insert(*tenant)) {
                let reason = InterruptionReason::GatewayRestarted;
                owed.interruption(*tenant, Interruption { source, from, until, reason });
            }
        }
    }

    /// Tells what is still held, because nobody will look again.
    fn hand_over<R: Readings>(&mut self, owed: &mut Owed<R>) {
        for meter in self.consumers.values_mut() {
            if let Some(tenant) = meter.tenant {
                meter.told.hand_over(|reading| owed.reading(tenant, reading));
            }
        }
    }
}

impl Meter {
    /// Takes the counts of one look; true when some that were there are gone, as when Kong's memory for them is full.
    fn advance(&mut self, routes: &BTreeMap<String, i64>) -> bool {
        let fell = routes.iter().any(|(route, count)| self.routes.get(route).is_some_and(|known| count < known));
        if fell {
            self.falls = self.falls.saturating_add(1);
            self.routes.clone_from(routes);
            return false;
        }
        let gone = self.routes.keys().any(|route| !routes.contains_key(route));
        for (route, count) in routes {
            self.routes.insert(route.clone(), *count);
        }
        gone
    }
}

#[cfg(test)]
#[path = "scraper_test.rs"]
mod tests;
