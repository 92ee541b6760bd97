//! A Kong that is made up: traffic of several tenants, second by second from a seed, as its access log, its metrics and its
//! limiter would tell of it, and what the models' proxy would report. Faults are planted, and what must be found is known.

use std::collections::BTreeMap;

use platform_api::domain::amount::NanoUsd;
use platform_api::domain::ids::TenantId;
use platform_api::domain::reconcile::Terms;
use platform_api::domain::reconcile::finding::Cause;
use platform_api::domain::reconcile::meter::window_start;
use platform_api::domain::time::{MICROS_PER_MINUTE, MICROS_PER_SECOND, Timestamp};
use platform_api::domain::usage::{Amounts, Flags, Kind, Status, Subject, UsageEvent};
use serde_json::{Value, json};

use super::Engine;
use super::stage::{Key, Stage};

const CHAT: &str = "ebf0e26f-46e3-5b76-a219-86cc80fb573d";
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";
/// 2026-11-21T00:00:00Z and a little: nothing begins at an edge of anything.
const BEGIN: i64 = 1_795_219_200 + 7;
/// Seconds between two looks, two bodies of the log, and two reports of the proxy.
const EVERY: i64 = 5;

/// What a member does, about every other second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// Calls that are served, and a refusal or a hit of the cache now and then.
    Plain,
    /// Hardly anything else than refusals of all kinds and hits of the cache.
    Refused,
    /// As plain, but on a route that has no limiter.
    Unlimited,
    /// Streams of more than two minutes.
    Long,
    /// As plain, but for these seconds.
    Pausing {
        from: i64,
        until: i64,
    },
    /// As plain, beside calls that go past the gateway.
    Bypassing,
    /// It has never used the gateway.
    NeverHere,
    /// As plain; some of its calls never reach the ledger, some reach it twice.
    Losing,
    Doubling,
    /// One call a minute is lost.
    LosingSlowly,
    /// As plain; some of its requests name another member, and are counted as that one's.
    Spoofing {
        as_member: usize,
    },
    /// Nothing at all.
    Idle,
}

/// What is done to the gateway or to its Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    FlushRedis,
    KillRedis,
    StartRedis,
    RestartGateway,
    /// Its metrics cannot be reached, or can again.
    MetricsAway,
    MetricsBack,
    /// The gateway's clock is so many seconds ahead.
    Clock(i64),
    /// Our own receivers die between two looks, and begin anew.
    KillReceivers,
    /// Our whole node is away, and what Kong cannot post is lost; or it is back.
    NodeAway,
    NodeBack,
}

pub struct Member {
    pub id: TenantId,
    pub name: &'static str,
    habit: Habit,
}

struct Counter {
    value: i64,
    expires: i64,
}

/// A request that has been passed on, or refused, and has not ended.
struct UnderWay {
    ends: Timestamp,
    member: usize,
    route: &'static str,
    code: i64,
    by_kong: bool,
    known: bool,
    record: Value,
}

pub struct Lab {
    pub stage: Stage,
    pub members: Vec<Member>,
    /// What must be found: how many, by member, window and cause.
    pub planted: BTreeMap<(usize, Timestamp, Cause), i64>,
    random: u64,
    now: Timestamp,
    logs: bool,
    faults: Vec<(i64, Fault)>,
    redis_is_up: bool,
    metrics_are_up: bool,
    node_is_away: bool,
    clock_ahead: i64,
    lives: usize,
    counts: BTreeMap<(String, &'static str, bool, i64), i64>,
    limiter: BTreeMap<String, Counter>,
    under_way: Vec<UnderWay>,
    log: Vec<Value>,
    reports: Vec<(usize, UsageEvent)>,
    number: u64,
}

impl Lab {
    pub fn terms() -> Terms {
        Terms { window_micros: MICROS_PER_MINUTE, poll_micros: EVERY * MICROS_PER_SECOND, ..Terms::default() }
    }

    pub async fn open(engine: Engine, seed: u64, habits: &[(&'static str, Habit)], faults: &[(i64, Fault)]) -> Lab {
        let now = Timestamp(BEGIN * MICROS_PER_SECOND);
        let change = |kong: &mut platform_api::config::Kong| {
            (kong.metrics.scrape_ms, kong.llm_services) = (EVERY as u64 * 1_000, vec!["litellm".into()]);
        };
        let mut stage = Stage::open(engine, Lab::terms(), now, change).await;
        let mut members = Vec::new();
        for (name, habit) in habits {
            let id = stage.onboard(name, &[("username", name)]).await;
            members.push(Member { id, name, habit: *habit });
        }
        Lab {
            stage,
            members,
            planted: BTreeMap::new(),
            random: seed,
            now,
            logs: true,
            faults: faults.to_vec(),
            redis_is_up: true,
            metrics_are_up: true,
            node_is_away: false,
            clock_ahead: 0,
            lives: 1,
            counts: BTreeMap::new(),
            limiter: BTreeMap::new(),
            under_way: Vec::new(),
            log: Vec::new(),
            reports: Vec::new(),
            number: 0,
        }
    }

    /// As if http-log were not configured.
    pub fn without_log(mut self) -> Lab {
        self.logs = false;
        self
    }

    /// So many seconds of traffic, then nothing until all of it has settled.
    pub async fn run(&mut self, seconds: i64) {
        for second in 0..seconds {
            for fault in self.faults.iter().filter(|(at, _)| *at == second).map(|(_, fault)| *fault).collect::<Vec<_>>()
            {
                self.inflict(fault).await;
            }
            // The first looks come before anything else, so that what appears is known to be new.
            if second > 2 * EVERY && second < seconds - 10 {
                (0..self.members.len()).for_each(|member| self.behave(member, second));
            }
            self.now = self.now.plus_micros(MICROS_PER_SECOND);
            self.end_requests();
            if self.node_is_away {
                continue;
            }
            self.stage.pass(self.now).await;
            if second % EVERY == EVERY - 1 {
                self.report().await;
                self.look().await;
            }
        }
        while !self.under_way.is_empty() {
            self.now = self.now.plus_micros(EVERY * MICROS_PER_SECOND);
            self.end_requests();
            self.stage.pass(self.now).await;
            self.report().await;
            self.look().await;
        }
        self.stage.pass(self.now.plus_micros(26 * 60 * MICROS_PER_MINUTE)).await;
    }

    async fn inflict(&mut self, fault: Fault) {
        match fault {
            Fault::FlushRedis => self.limiter.clear(),
            Fault::KillRedis => {
                self.stage.kill_redis().await;
                self.redis_is_up = false;
            }
            Fault::StartRedis => {
                self.stage.start_redis().await;
                self.limiter.clear();
                self.redis_is_up = true;
            }
            Fault::RestartGateway => {
                // What was in its queue, its memory and its hands is gone; the calls it has made are made.
                self.counts.clear();
                self.log.clear();
                for one in std::mem::take(&mut self.under_way) {
                    let id = one.record["request"]["id"].as_str().unwrap_or_default().to_owned();
                    let cut_off = self.reports.iter_mut().filter(|(_, report)| report.details.contains(&id));
                    cut_off.for_each(|(_, report)| report.occurred_at = self.now);
                }
                self.lives += 1;
            }
            Fault::MetricsAway => self.metrics_are_up = false,
            Fault::MetricsBack => self.metrics_are_up = true,
            Fault::KillReceivers => self.stage.forget(),
            Fault::NodeAway => self.node_is_away = true,
            Fault::NodeBack => {
                self.node_is_away = false;
                self.log.clear();
                self.stage.restart(self.now).await;
            }
            Fault::Clock(seconds) => self.clock_ahead = seconds * MICROS_PER_SECOND,
        }
    }

    /// SplitMix64: the same seed, the same traffic.
    fn below(&mut self, most: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % most
    }

    fn behave(&mut self, member: usize, second: i64) {
        // Whatever a member does, the others see the same dice.
        let (acts, odd, kind) = (self.below(2) == 0, self.below(6) == 0, self.below(5));
        let habit = self.members[member].habit;
        match habit {
            Habit::Idle => return,
            Habit::Pausing { from, until } if (from..until).contains(&second) => return,
            Habit::LosingSlowly if second % 6 != 0 => return,
            Habit::LosingSlowly => {
                let lost = second % 60 == 30;
                self.serve(member, member, CHAT, if lost { Some(Cause::LostInLedger) } else { None });
                return;
            }
            _ if !acts => return,
            _ => {}
        }
        match (habit, odd) {
            (Habit::Refused, false) => return self.refuse(member, kind),
            (Habit::NeverHere, _) => return self.call_past_the_gateway(member, false),
            (Habit::Bypassing, true) => self.call_past_the_gateway(member, true),
            (Habit::Losing, true) => return self.serve(member, member, CHAT, Some(Cause::LostInLedger)),
            (Habit::Doubling, true) => return self.serve(member, member, CHAT, Some(Cause::Duplicate)),
            (Habit::Spoofing { as_member }, true) => {
                return self.serve(member, as_member, CHAT, Some(Cause::TenantMismatch));
            }
            (Habit::Unlimited, _) => return self.serve(member, member, "batch", None),
            (_, true) => return self.refuse(member, kind),
            _ => {}
        }
        self.serve(member, member, CHAT, None);
    }

    fn plant(&mut self, member: usize, at: Timestamp, cause: Cause) {
        *self.planted.entry((member, window_start(at, &Lab::terms()), cause)).or_default() += 1;
    }

    fn new_id(&mut self) -> String {
        self.number += 1;
        format!("{:016x}", self.number)
    }

    /// A call that is served, in the name of `named`.
    fn serve(&mut self, member: usize, named: usize, route: &'static str, fault: Option<Cause>) {
        let id = self.new_id();
        let started = self.now.plus_micros(self.below(1_000_000) as i64);
        let length = match self.members[member].habit {
            Habit::Long => 150 * MICROS_PER_SECOND,
            _ => 100_000 + self.below(1_900_000) as i64,
        };
        let limited = route == CHAT && self.attempt(started, named);
        if route == CHAT && !limited {
            self.plant(member, started.plus_micros(self.clock_ahead), Cause::FailOpen);
        }
        let ends = started.plus_micros(length / 1_000 * 1_000);
        self.begin(&id, member, named, route, (200, false), limited, (started, ends));
        let report = report(&id, &id, ends);
        match fault {
            Some(Cause::LostInLedger) => {
                self.plant(member, started, Cause::LostInLedger);
                return;
            }
            Some(Cause::Duplicate) => {
                self.plant(member, ends, Cause::Duplicate);
                self.reports.push((member, UsageEvent { event_id: format!("again-{id}"), ..report.clone() }));
            }
            Some(Cause::TenantMismatch) => {
                self.plant(member, started, Cause::TenantMismatch);
                self.plant(named, ends, Cause::TenantMismatch);
            }
            _ => {}
        }
        self.reports.push((named, report));
    }

    fn call_past_the_gateway(&mut self, member: usize, by_its_side: bool) {
        let id = self.new_id();
        let at = self.now;
        if by_its_side {
            self.plant(member, at, Cause::BypassedGateway);
        }
        self.reports.push((member, report(&format!("direct-{id}"), "", at)));
    }

    /// Denied by the limiter, by an access list before it, or for want of a key; or a hit of the gateway's cache; or a page
    /// of another service, which the ledger knows nothing of.
    ///
    /// While the limiter is away nobody can say whether a refusal came before it, so there is no such refusal then.
    fn refuse(&mut self, member: usize, kind: u64) {
        let kind = if kind == 1 && self.limiter_is_in_doubt() { 3 } else { kind };
        let id = self.new_id();
        let started = self.now.plus_micros(self.below(1_000_000) as i64);
        let (code, by_kong, reaches_limiter) =
            [(429, true, true), (403, true, false), (401, true, false), (200, true, true), (200, false, false)]
                [kind as usize];
        let limited = reaches_limiter && self.attempt(started, member);
        if reaches_limiter && !limited {
            self.plant(member, started.plus_micros(self.clock_ahead), Cause::FailOpen);
        }
        let route = if by_kong { CHAT } else { "console" };
        let ends = started.plus_micros(3_000);
        self.begin(&id, member, member, route, (code, by_kong), limited, (started, ends));
    }

    fn limiter_is_in_doubt(&self) -> bool {
        let second = (self.now.0 / MICROS_PER_SECOND) - BEGIN;
        let is_near = |(at, fault): &(i64, Fault)| {
            matches!(fault, Fault::KillRedis | Fault::StartRedis | Fault::FlushRedis)
                && (at - second).abs() <= 3 * EVERY
        };
        !self.redis_is_up || self.faults.iter().any(is_near)
    }

    /// The limiter counts an attempt, unless its store is away.
    fn attempt(&mut self, at: Timestamp, named: usize) -> bool {
        if !self.redis_is_up {
            return false;
        }
        let identifier = self.members[named].id;
        for (period, seconds) in [("minute", 60), ("day", 86_400)] {
            let width = seconds * MICROS_PER_SECOND;
            let start = (at.0 + self.clock_ahead).div_euclid(width) * width / 1_000;
            let name = format!("ratelimit:{CHAT}:{NOBODY}:{identifier}:{start}:{period}");
            let counter = self.limiter.entry(name).or_insert(Counter { value: 0, expires: at.0 + width });
            counter.value += 1;
        }
        true
    }

    #[expect(clippy::too_many_arguments, reason = "each is a column of the gateway's record")]
    fn begin(
        &mut self,
        id: &str,
        member: usize,
        named: usize,
        route: &'static str,
        (code, by_kong): (i64, bool),
        limited: bool,
        (started, ends): (Timestamp, Timestamp),
    ) {
        let known = code != 401;
        let mut answered = serde_json::Map::new();
        if !by_kong && route != "console" {
            answered.insert("x-litellm-call-id".into(), json!(id));
        }
        if limited {
            answered.insert("x-ratelimit-remaining-minute".into(), json!("7"));
        }
        let mut record = json!({
            "request": {"id": format!("kong-{id}"), "headers": {"x-tenant-id": self.members[named].id.to_string()}},
            "response": {"status": code, "headers": answered},
            "latencies": {"request": (ends.0 - started.0) / 1_000},
            "route": {"name": route},
            "service": {"name": if route == "console" { "console" } else { "litellm" }},
            "started_at": (started.0 + self.clock_ahead) / 1_000,
            "source": if by_kong { "kong" } else { "upstream" },
        });
        if known {
            record["consumer"] = json!({"username": self.members[member].name});
        }
        self.under_way.push(UnderWay { ends, member, route, code, by_kong, known, record });
    }

    /// A request is counted, and logged, when it has ended.
    fn end_requests(&mut self) {
        let now = self.now;
        let (ended, under_way) = std::mem::take(&mut self.under_way).into_iter().partition(|one| one.ends <= now);
        self.under_way = under_way;
        for one in ended {
            let consumer = if one.known { self.members[one.member].name } else { "" };
            *self.counts.entry((consumer.to_owned(), one.route, one.by_kong, one.code)).or_default() += 1;
            self.log.push(one.record);
        }
    }

    /// The gateway posts its queue, the proxy reports what has ended.
    async fn report(&mut self) {
        let log = std::mem::take(&mut self.log);
        if self.logs && !log.is_empty() {
            let received = self.stage.log(&log).await;
            assert!(received.rejected.is_empty(), "{received:?}");
        }
        let now = self.now;
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.reports).into_iter().partition(|(_, one)| one.occurred_at <= now);
        self.reports = later;
        let mut by_member: BTreeMap<usize, Vec<UsageEvent>> = BTreeMap::new();
        for (member, event) in due {
            by_member.entry(member).or_default().push(event);
        }
        for (member, events) in by_member {
            self.stage.count(self.members[member].id, events).await;
        }
    }

    async fn look(&mut self) {
        self.stage.mark().await;
        let date = self.now.plus_micros(self.clock_ahead);
        let body = self.metrics_are_up.then(|| self.exposition());
        self.stage.scrape(body, Some(date)).await;
        if !self.redis_is_up {
            return self.stage.poll_in_vain().await;
        }
        let now = self.now.0;
        self.limiter.retain(|_, counter| counter.expires > now);
        let key = |(name, counter): (&String, &Counter)| Key {
            name: name.clone(),
            value: counter.value,
            ttl_ms: (counter.expires - now).div_euclid(1_000).max(1),
        };
        let keys: Vec<Key> = self.limiter.iter().map(key).collect();
        self.stage.poll(&keys).await;
    }

    fn exposition(&self) -> String {
        let mut text = format!("kong_node_info{{node_id=\"node-{}\",version=\"3.9.1\"}} 1\n", self.lives);
        for ((consumer, route, by_kong, code), count) in &self.counts {
            let (source, service) =
                (if *by_kong { "kong" } else { "service" }, if *route == "console" { "console" } else { "litellm" });
            text.push_str(&format!(
                "kong_http_requests_total{{service=\"{service}\",route=\"{route}\",code=\"{code}\",source=\"{source}\",\
                 workspace=\"default\",consumer=\"{consumer}\"}} {count}\n"
            ));
        }
        text
    }

    pub fn member(&self, name: &str) -> TenantId {
        self.members.iter().find(|member| member.name == name).unwrap().id
    }

    /// What was found of each member, of these causes, is what was planted: by window, cause and number.
    pub async fn finds_what_was_planted(&self, causes: &[Cause]) {
        for (at, member) in self.members.iter().enumerate() {
            // The window in which the gateway begins to speak is not whole, and not compared.
            let first = window_start(Timestamp(BEGIN * MICROS_PER_SECOND), &Lab::terms());
            let is_compared = |start: Timestamp, cause: Cause| start > first && causes.contains(&cause);
            let planted =
                self.planted.iter().filter(|((of, start, cause), _)| *of == at && is_compared(*start, *cause));
            let planted: Vec<_> =
                planted.map(|((_, start, cause), count)| (start.0 / MICROS_PER_SECOND, *cause, *count)).collect();
            let told = self.stage.told(member.id).await;
            let found = told.iter().filter(|one| causes.contains(&one.1));
            let found: Vec<_> = found.map(|(start, cause, count, _)| (*start, *cause, *count)).collect();
            assert_eq!(found, planted, "{}", member.name);
        }
    }

    /// Causes that were found of a member, each once.
    pub async fn causes(&self, name: &str) -> Vec<Cause> {
        let mut causes: Vec<Cause> = self.stage.told(self.member(name)).await.iter().map(|one| one.1).collect();
        causes.sort_unstable();
        causes.dedup();
        causes
    }
}

/// What the proxy says of a call, which it knows by the gateway's id if it came that way.
fn report(call_id: &str, request: &str, at: Timestamp) -> UsageEvent {
    let request = if request.is_empty() { String::new() } else { format!("kong-{request}") };
    UsageEvent {
        source: "litellm".into(),
        event_id: format!("event-{call_id}"),
        occurred_at: at,
        kind: Kind::Delta,
        status: Status::Success,
        subject: Subject { user: "ada".into(), model: "gpt-5".into(), ..Subject::default() },
        call_type: "acompletion".into(),
        amounts: Amounts {
            requests: 1,
            prompt_tokens: 10,
            completion_tokens: 5,
            cost: NanoUsd(900),
            ..Amounts::default()
        },
        flags: Flags::default(),
        details: json!({"callId": call_id, "correlationId": request}).to_string(),
    }
}
