//! The books against a naive recount: whatever order things happen in, a counter is the sum over the ledger.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::amount::NanoUsd;
use super::books::{BatchCounts, Books, Counter, CounterKey, Missing, Posting, RollupKey};
use super::burn::Recent;
use super::chain::{Entry, EntryOutcome, Stored, Verifier};
use super::ids::{AlertId, QuotaId, TenantId};
use super::notice::{Alert, Event};
use super::period::{self, PeriodKind, Window};
use super::properties_tests::config;
use super::quota::{Enforcement, Metric, Quota, Scope};
use super::routing::Routing;
use super::time::{
    CLOCK_STEP_MICROS, MICROS_PER_DAY, MICROS_PER_HOUR, MICROS_PER_MINUTE, MICROS_PER_SECOND, Timestamp,
};
use super::usage::{
    Amounts, EventKey, FUTURE_TOLERANCE_MICROS, Flags, Kind, Refusal, Status, Subject, Totals, UsageEvent,
};

const RETENTION_MICROS: i64 = 40 * MICROS_PER_DAY;
const CHANNELS: [&str; 2] = ["pager", "webhook"];
/// Zones whose clocks change within the simulated time, and one whose hours begin at a quarter.
const ZONES: [&str; 5] = ["UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/Santiago", "Asia/Kathmandu"];
/// Days on which Berlin, Lord Howe and Santiago move their clocks.
const BEGINNINGS: [&str; 4] =
    ["2026-10-24T20:00:00Z", "2026-10-03T12:00:00Z", "2026-09-05T23:30:00Z", "2026-03-28T22:45:00Z"];

/// One thing that happens to a tenant.
#[derive(Debug, Clone)]
enum Step {
    /// These events of the pool arrive, together, perhaps again.
    Usage(Vec<usize>),
    /// Time passes, or the clock is set back.
    Wait(i64),
    Quotas(Vec<Quota>),
    Zone(usize),
    /// What was gathered so far is committed.
    Commit,
    /// The daemon is killed and loads again.
    Restart,
    Roll,
}

/// What a database would hold, kept the simplest way there is.
#[derive(Debug, Default)]
struct Database {
    ledger: Vec<UsageEvent>,
    keys: BTreeSet<EventKey>,
    counters: BTreeMap<CounterKey, Counter>,
    rollups: BTreeMap<RollupKey, Totals>,
    alerts: BTreeMap<AlertId, Alert>,
    owed: BTreeSet<String>,
    quotas: Vec<Quota>,
    chain: Vec<Stored>,
    version: i64,
}

impl Database {
    fn recount(&self, quota: &Quota, window: Window, events: &[UsageEvent]) -> i64 {
        let counts = |event: &&UsageEvent| window.contains(event.occurred_at) && quota.scope.covers(&event.subject);
        events.iter().filter(counts).map(|event| quota.metric.of(&event.amounts)).sum()
    }

    fn recent(&self, quota: &Quota, window: Window) -> Recent {
        let mut recent = Recent::default();
        let latest = self.ledger.iter().map(|event| event.occurred_at).max().unwrap_or(Timestamp(0));
        let longer = self.ledger.iter().filter(|_| quota.period != PeriodKind::Minute);
        for event in longer.filter(|event| window.contains(event.occurred_at) && quota.scope.covers(&event.subject)) {
            recent.add(period::rollup_start(event.occurred_at), quota.metric.of(&event.amounts));
        }
        recent.forget(latest);
        recent
    }

    /// Of committed alerts: a database knows nothing of those that the posting in the making has fired.
    fn fired(&self, key: CounterKey) -> Vec<u16> {
        marks_of(self.alerts.values(), key).collect()
    }

    /// Answers as the store does: the stored counter if it still counts the same, else a recount of the ledger.
    fn answer(&self, missing: &Missing) -> (CounterKey, Counter) {
        let key = missing.key();
        let stored = self.counters.get(&key).filter(|_| !missing.recount).map(|counter| counter.used);
        let used = stored.unwrap_or_else(|| self.recount(&missing.quota, missing.window, &self.ledger));
        let recent = self.recent(&missing.quota, missing.window);
        (key, Counter { window: missing.window, used, fired: self.fired(key), recent })
    }

    fn load(&self, zone: &TimeZone, now: Timestamp) -> Books {
        let mut books = Books::new(tenant(), zone.clone(), RETENTION_MICROS);
        books.routing = Arc::new(Routing::all(CHANNELS.map(String::from).to_vec()));
        books.quotas = self.quotas.clone();
        books.version = self.version;
        books.firing = self.alerts.values().filter(|alert| alert.resolved_at.is_none()).cloned().collect();
        // Nothing is ever settled here, and nobody is told later than the others.
        let told = |alert: &Alert| (alert.id, books.routing.told(tenant(), alert, alert.fired_at));
        books.told = books.firing.iter().map(told).collect();
        books.lifetime = sum(self.ledger.iter());
        books.latest_event_at = self.ledger.iter().map(|event| event.occurred_at).max().unwrap_or_default();
        books.next_position = self.ledger.len() as i64 + 1;
        let mut verifier = Verifier::new(&tenant().to_string());
        self.chain.iter().for_each(|link| drop(verifier.check(link).unwrap()));
        books.head = verifier.head();
        self.teach(&mut books, now);
        books
    }

    /// Whatever runs at `now` is read, as after loading and after a clock that was set back.
    fn teach(&self, books: &mut Books, now: Timestamp) {
        let counters = books.missing_now(now).iter().map(|missing| self.answer(missing)).collect();
        books.learn(counters, now);
    }

    fn commit(&mut self, posting: &Posting) {
        self.counters.retain(|key, _| !posting.void_counters.contains(&key.quota));
        self.counters.extend(posting.counters.clone());
        for (key, totals) in &posting.rollups {
            self.rollups.entry(key.clone()).or_default().add(totals);
        }
        for alert in &posting.fired {
            assert!(self.alerts.insert(alert.id, alert.clone()).is_none(), "an alert fired twice: {alert:?}");
        }
        for alert in &posting.resolved {
            let known = self.alerts.get_mut(&alert.id).unwrap();
            assert!(known.resolved_at.is_none(), "an alert was resolved twice: {alert:?}");
            known.resolved_at = alert.resolved_at;
        }
        for delivery in &posting.owed {
            assert!(self.owed.insert(format!("{}@{}", delivery.id(), delivery.channel)), "owed twice: {delivery:?}");
        }
        if let Some(quotas) = &posting.quotas {
            self.quotas = quotas.clone();
        }
        self.chain.extend(posting.records.iter().map(|record| Stored {
            seq: record.seq,
            bytes: record.bytes.clone(),
            hash: record.hash.0,
            payload: Some(record.payload.clone()),
            salt: Some(record.salt.to_vec()),
        }));
        self.version = posting.books.version;
    }
}

/// A tenant living through its steps, and the naive model that watches it.
struct Life {
    database: Database,
    committed: Books,
    open: Option<Posting>,
    zone: TimeZone,
    now: Timestamp,
    /// The latest that the clock has shown.
    latest: Timestamp,
    pool: Vec<UsageEvent>,
    /// (quota, period, threshold) that must have an alert by now.
    expected: BTreeSet<(QuotaId, Timestamp, u16)>,
}

impl Life {
    fn new(now: Timestamp, pool: Vec<UsageEvent>) -> Life {
        let zone = TimeZone::UTC;
        let database = Database::default();
        let committed = database.load(&zone, now);
        Life { database, committed, open: None, zone, now, latest: now, pool, expected: BTreeSet::new() }
    }

    fn posting(&mut self) -> Posting {
        self.open.take().unwrap_or_else(|| Posting::open(&self.committed, self.now, [7; 32]))
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Usage(picks) => self.usage(picks),
            Step::Wait(micros) => {
                self.commit();
                // Set back by more than an hour, some of what was counted would be out of sight.
                self.now = self.now.plus_micros(*micros).max(self.latest.plus_micros(-CLOCK_STEP_MICROS));
                self.latest = self.latest.max(self.now);
                if !self.committed.knows_running(self.now) {
                    self.database.teach(&mut self.committed, self.now);
                    assert!(self.committed.knows_running(self.now));
                }
                self.check_standings();
            }
            Step::Quotas(quotas) => self.replace(quotas),
            Step::Zone(pick) => self.move_to(ZONES[*pick]),
            Step::Commit => self.commit(),
            Step::Restart => {
                // What was not committed is lost, and so is what the model expected of it.
                self.commit();
                self.committed = self.database.load(&self.zone, self.now);
                self.check();
            }
            Step::Roll => {
                let mut posting = self.posting();
                posting.roll();
                self.open = Some(posting);
                self.commit();
                let over = |alert: &&Alert| alert.period_end().is_some_and(|end| end <= self.now);
                assert_eq!(self.committed.firing.iter().find(over), None);
            }
        }
    }

    fn usage(&mut self, picks: &[usize]) {
        let mut posting = self.posting();
        let (mut pending, mut new, mut duplicates) = (Totals::default(), Vec::new(), 0);
        for pick in picks {
            let event = self.pool[pick % self.pool.len()].clone();
            match posting.books.admit(&event, &pending, posting.now()) {
                Ok(_) if !self.database.keys.insert(event.key()) => duplicates += 1,
                Ok(with_it) => {
                    pending = with_it;
                    new.push(event);
                }
                Err(Refusal::FromTheFuture) => {
                    assert!(event.occurred_at.0 > self.now.0 + FUTURE_TOLERANCE_MICROS);
                }
                Err(Refusal::TooOld) => assert!(event.occurred_at.0 < self.now.0 - RETENTION_MICROS),
                Err(refusal) => panic!("{refusal:?}"),
            }
        }
        let events: Vec<&UsageEvent> = new.iter().collect();
        for missing in posting.missing_for_usage(&events) {
            let (key, counter) = self.database.answer(&missing);
            posting.supply(key, counter);
        }
        let keys: Vec<_> = events.iter().map(|event| (event.key(), event.body_hash())).collect();
        let counts = BatchCounts { attempted: picks.len() as i64, duplicates, conflicts: 0 };
        posting.usage(&events, &keys, counts, "");
        self.database.ledger.extend(new.iter().cloned());
        for quota in posting.books.quotas.clone() {
            for event in new.iter().filter(|event| quota.scope.covers(&event.subject)) {
                self.expect(&quota, period::window(quota.period, event.occurred_at, &self.zone));
            }
        }
        self.open = Some(posting);
    }

    fn replace(&mut self, quotas: &[Quota]) {
        let mut posting = self.posting();
        let recounted = self.answers(posting.missing_for_quotas(quotas));
        posting.replace_quotas(quotas.to_vec(), recounted, entry("quota.replaced"));
        assert_eq!(posting.books.quotas, quotas);
        self.expect_unfinished(&posting);
        self.open = Some(posting);
    }

    fn move_to(&mut self, name: &str) {
        let mut posting = self.posting();
        let zone = period::time_zone(name).unwrap();
        let recounted = self.answers(posting.missing_for_time_zone(&zone));
        posting.change_time_zone(name, zone.clone(), recounted, entry("tenant.amended"));
        self.zone = zone;
        assert_eq!(posting.books.time_zone, self.zone);
        self.expect_unfinished(&posting);
        self.open = Some(posting);
    }

    /// A recount sees the ledger rows of the open transaction, whatever the stored counters say.
    fn answers(&self, missing: Vec<Missing>) -> Vec<(CounterKey, Counter)> {
        let recount = |missing: &Missing| {
            let used = self.database.recount(&missing.quota, missing.window, &self.database.ledger);
            let key = missing.key();
            let recent = self.database.recent(&missing.quota, missing.window);
            (key, Counter { window: missing.window, used, fired: self.database.fired(key), recent })
        };
        missing.iter().map(recount).collect()
    }

    /// An alert is due for every threshold that the naive recount of this window has reached.
    fn expect(&mut self, quota: &Quota, window: Window) {
        let used = self.database.recount(quota, window, &self.database.ledger);
        let reached = quota.thresholds.iter().filter(|percent| used >= quota.threshold_amount(**percent));
        self.expected.extend(reached.map(|percent| (quota.id, window.start, *percent)));
    }

    /// A change of quotas or calendar judges every period that is not over.
    fn expect_unfinished(&mut self, posting: &Posting) {
        for quota in posting.books.quotas.clone() {
            for window in self.unfinished(&quota) {
                self.expect(&quota, window);
            }
        }
    }

    /// The running period, and later ones in which something already occurred: senders' clocks run ahead.
    fn unfinished(&self, quota: &Quota) -> BTreeSet<Window> {
        let of = |at| period::window(quota.period, at, &self.zone);
        let ahead = self.database.ledger.iter().map(|event| event.occurred_at).filter(|at| *at > self.now).map(of);
        ahead.chain([of(self.now)]).collect()
    }

    fn commit(&mut self) {
        let Some(mut posting) = self.open.take() else { return };
        posting.close();
        self.database.commit(&posting);
        self.committed = posting.books;
        self.check();
    }

    /// L1, L5, Q2 and A1, after every commit.
    fn check(&self) {
        let books = &self.committed;
        assert_eq!(books.lifetime, sum(self.database.ledger.iter()));
        for (key, counter) in books.counters.iter().chain(&self.database.counters) {
            let quota = books.quotas.iter().find(|quota| quota.id == key.quota).unwrap();
            assert_eq!(counter.window, period::window(quota.period, key.period_start, &self.zone));
            let used = self.database.recount(quota, counter.window, &self.database.ledger);
            assert_eq!(counter.used, used, "{quota:?} in {:?}", counter.window);
            if books.counters.contains_key(key) {
                let recent = self.database.recent(quota, counter.window);
                assert_eq!(books.counters[key].recent, recent, "{quota:?} in {:?}", counter.window);
            }
        }
        for (key, counter) in &books.counters {
            let stored: BTreeSet<u16> = counter.fired.iter().copied().collect();
            let alerts = self.alerts_of(*key);
            assert_eq!(stored, alerts, "thresholds a counter remembers: {counter:?}");
            assert_eq!(stored.len(), counter.fired.len());
        }
        for (key, counter) in &self.database.counters {
            let written: BTreeSet<u16> = counter.fired.iter().copied().collect();
            assert_eq!(written, self.alerts_of(*key), "thresholds a written counter remembers: {counter:?}");
        }
        self.check_rollups();
        self.check_alerts();
        self.check_standings();
        let mut verifier = Verifier::new(&tenant().to_string());
        self.database.chain.iter().for_each(|link| drop(verifier.check(link).unwrap()));
        assert_eq!(verifier.head(), books.head);
    }

    fn alerts_of(&self, key: CounterKey) -> BTreeSet<u16> {
        marks_of(self.database.alerts.values(), key).collect()
    }

    fn check_rollups(&self) {
        let mut naive: HashMap<RollupKey, Totals> = HashMap::new();
        for event in &self.database.ledger {
            let start = Timestamp(event.occurred_at.0 - event.occurred_at.0.rem_euclid(15 * MICROS_PER_MINUTE));
            naive.entry(RollupKey { start, subject: event.subject.clone() }).or_default().add(&Totals::of(event));
        }
        assert_eq!(self.database.rollups.clone().into_iter().collect::<HashMap<_, _>>(), naive);
    }

    fn check_alerts(&self) {
        let alerts = self.database.alerts.values();
        let have: BTreeSet<_> = alerts.clone().filter_map(Alert::mark).collect();
        assert_eq!(have, self.expected, "alerts, and thresholds that were reached");
        let firing: BTreeSet<AlertId> =
            alerts.clone().filter(|alert| alert.resolved_at.is_none()).map(|alert| alert.id).collect();
        assert_eq!(firing, self.committed.firing.iter().map(|alert| alert.id).collect());
        let events = alerts.flat_map(|alert| {
            let resolved = alert.resolved_at.map(|_| Event::Resolved);
            [Some(Event::Fired), resolved].into_iter().flatten().map(|event| (alert.id, event.name()))
        });
        let owed = events.flat_map(|(id, event)| CHANNELS.map(|channel| format!("{id}-{event}@{channel}")));
        assert_eq!(owed.collect::<BTreeSet<_>>(), self.database.owed);
    }

    /// L8: what is answered now is what the ledger says now, also when only time has passed since the last commit.
    fn check_standings(&self) {
        for standing in self.committed.standings(self.now) {
            let window = period::window(standing.quota.period, self.now, &self.zone);
            let used = self.database.recount(&standing.quota, window, &self.database.ledger);
            assert_eq!(standing.used, used, "{:?} at {} in {window:?}", standing.quota, self.now);
        }
    }
}

fn tenant() -> TenantId {
    TenantId(uuid::Uuid::from_u128(0xA))
}

fn entry(action: &str) -> Entry {
    Entry {
        actor: "platform".into(),
        action: action.into(),
        target: String::new(),
        outcome: EntryOutcome::Success,
        request_id: String::new(),
        payload: "{}".into(),
    }
}

fn sum<'a>(events: impl Iterator<Item = &'a UsageEvent>) -> Totals {
    let mut sum = Totals::default();
    events.for_each(|event| sum.add(&Totals::of(event)));
    sum
}

fn name(kind: &str, pick: u8) -> String {
    if pick == 0 { String::new() } else { format!("{kind}-{pick}") }
}

fn an_event() -> impl Strategy<Value = UsageEvent> {
    let offset = prop_oneof![
        8 => -3 * MICROS_PER_HOUR..3 * MICROS_PER_HOUR,
        4 => -2 * MICROS_PER_DAY..4 * MICROS_PER_DAY,
        // On the second: what a boundary of a period looks like.
        4 => (-8_i64..8).prop_map(|quarters| quarters * 15 * MICROS_PER_MINUTE),
        1 => -45 * MICROS_PER_DAY..45 * MICROS_PER_DAY,
    ];
    (offset, 0_u8..3, 0_u8..2, 0_u8..2, 1_i64..60, 0_i64..60, any::<bool>()).prop_map(
        |(offset, user, group, model, prompt, completion, success)| UsageEvent {
            source: "test".into(),
            event_id: String::new(),
            occurred_at: Timestamp(offset),
            kind: Kind::Delta,
            status: if success { Status::Success } else { Status::Failure },
            subject: Subject {
                user: name("user", user),
                group: name("group", group),
                api_key: String::new(),
                model: name("model", model),
                provider: String::new(),
            },
            call_type: String::new(),
            amounts: Amounts {
                requests: 1,
                prompt_tokens: prompt,
                completion_tokens: completion,
                cost: NanoUsd(prompt * 10),
                ..Amounts::default()
            },
            flags: Flags::default(),
            details: String::new(),
        },
    )
}

/// A set of quotas whose ids stay the same from one set to the next.
fn quotas() -> impl Strategy<Value = Vec<Quota>> {
    let scope = prop::sample::select(vec![
        Scope::Tenant,
        Scope::User("user-1".into()),
        Scope::User("user-2".into()),
        Scope::Group("group-1".into()),
        Scope::Model("model-1".into()),
    ]);
    let metric = prop::sample::select(Metric::ALL.to_vec());
    let kind = prop::sample::select(PeriodKind::ALL.to_vec());
    let thresholds = prop::collection::btree_set(prop::sample::select(vec![1_u16, 50, 80, 100, 300]), 1..4);
    let quota = (scope, metric, kind, 1_i64..600, thresholds);
    prop::collection::btree_map(1_u128..6, quota, 0..5).prop_map(|set| {
        set.into_iter()
            .map(|(id, (scope, metric, period, limit, thresholds))| Quota {
                id: QuotaId(uuid::Uuid::from_u128(id)),
                scope,
                metric,
                period,
                limit,
                thresholds: thresholds.into_iter().collect(),
                enforcement: Enforcement::Block,
            })
            .collect()
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => prop::collection::vec(0_usize..1_000, 1..8).prop_map(Step::Usage),
        3 => (0..20 * MICROS_PER_MINUTE).prop_map(Step::Wait),
        1 => (0..2 * MICROS_PER_DAY).prop_map(Step::Wait),
        2 => (-90 * MICROS_PER_MINUTE..0).prop_map(Step::Wait),
        3 => quotas().prop_map(Step::Quotas),
        1 => (0..ZONES.len()).prop_map(Step::Zone),
        6 => Just(Step::Commit),
        1 => Just(Step::Restart),
        2 => Just(Step::Roll),
    ]
}

proptest! {
    #![proptest_config(config(600))]

    /// Duplicates, any order, late and early events, edited quotas, another calendar, restarts: the books are what a
    /// recount of the ledger says, and each threshold has one alert per period.
    #[test]
    fn any_life_equals_a_naive_recount(
        beginning in prop::sample::select(BEGINNINGS.to_vec()),
        mut pool in prop::collection::vec(an_event(), 1..40),
        first in quotas(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let now: Timestamp = beginning.parse().unwrap();
        for (number, event) in pool.iter_mut().enumerate() {
            event.event_id = format!("event-{number}");
            event.occurred_at = now.plus_micros(event.occurred_at.0);
        }
        let mut life = Life::new(now, pool);
        life.take(&Step::Quotas(first));
        for step in &steps {
            life.take(step);
        }
        life.take(&Step::Commit);
    }

    /// The order of arrival leaves no trace in any sum.
    #[test]
    fn order_does_not_matter(
        mut pool in prop::collection::vec(an_event(), 1..30),
        first in quotas(),
        shuffled in prop::collection::vec(0_usize..1_000, 0..60),
    ) {
        let now: Timestamp = BEGINNINGS[0].parse().unwrap();
        for (number, event) in pool.iter_mut().enumerate() {
            event.event_id = format!("event-{number}");
            event.occurred_at = now.plus_micros(event.occurred_at.0.min(MICROS_PER_SECOND));
        }
        let everything: Vec<usize> = (0..pool.len()).collect();
        let mut at_once = Life::new(now, pool.clone());
        let mut piecemeal = Life::new(now, pool);
        for life in [&mut at_once, &mut piecemeal] {
            life.take(&Step::Quotas(first.clone()));
        }
        at_once.take(&Step::Usage(everything.clone()));
        for pick in shuffled {
            piecemeal.take(&Step::Usage(vec![pick]));
            piecemeal.take(&Step::Commit);
        }
        piecemeal.take(&Step::Usage(everything.into_iter().rev().collect()));
        at_once.take(&Step::Commit);
        piecemeal.take(&Step::Commit);
        prop_assert_eq!(&at_once.database.rollups, &piecemeal.database.rollups);
        let sums = |life: &Life| -> Vec<(CounterKey, i64)> {
            life.database.counters.iter().map(|(key, counter)| (*key, counter.used)).collect()
        };
        prop_assert_eq!(sums(&at_once), sums(&piecemeal));
        prop_assert_eq!(at_once.expected, piecemeal.expected);
    }
}

/// What the alerts of a counter have marked as told.
fn marks_of<'a>(alerts: impl Iterator<Item = &'a Alert>, key: CounterKey) -> impl Iterator<Item = u16> {
    let of_key = move |(quota, start, mark)| ((quota, start) == (key.quota, key.period_start)).then_some(mark);
    alerts.filter_map(Alert::mark).filter_map(of_key)
}
