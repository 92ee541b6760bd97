//! The rules of the books one by one, at their edges; `books_tests` has them all at once.

use std::sync::Arc;

use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::amount::NanoUsd;
use super::books::{BatchCounts, Books, Counter, CounterKey, Cursor, Missing, Posting};
use super::chain::{Entry, EntryOutcome, Record};
use super::ids::QuotaId;
use super::notice::{Acknowledgement, Alert, Attempt, AttemptResult, Delivery, Event, ReconciliationDrift};
use super::period::{self, PeriodKind, Window};
use super::properties_tests::tenant;
use super::quota::{Enforcement, Level, Metric, Quota, Scope};
use super::request::Request;
use super::routing::{Escalation, QuietHours, Route, Routing};
use super::time::{MICROS_PER_DAY, MICROS_PER_HOUR, MICROS_PER_MINUTE, Timestamp};
use super::usage::{Amounts, BodyHash, EventKey, Flags, Kind, Refusal, Status, Subject, Totals, UsageEvent};

const RETENTION_MICROS: i64 = 30 * MICROS_PER_DAY;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn noon() -> Timestamp {
    at("2026-11-20T12:00:00Z")
}

fn quota(id: u128, limit: i64, thresholds: &[u16]) -> Quota {
    Quota {
        id: QuotaId(uuid::Uuid::from_u128(id)),
        scope: Scope::Tenant,
        metric: Metric::Tokens,
        period: PeriodKind::Hour,
        limit,
        thresholds: thresholds.to_vec(),
        enforcement: Enforcement::Block,
    }
}

fn event(occurred_at: Timestamp, tokens: i64) -> UsageEvent {
    UsageEvent {
        source: "test".into(),
        event_id: format!("at-{}", occurred_at.0),
        occurred_at,
        kind: Kind::Delta,
        status: Status::Success,
        subject: Subject::default(),
        call_type: String::new(),
        amounts: Amounts { requests: 1, prompt_tokens: tokens, ..Amounts::default() },
        flags: Flags::default(),
        details: String::new(),
    }
}

fn entry(action: &str) -> Entry {
    Entry {
        actor: "platform".into(),
        action: action.into(),
        target: "tenant:t".into(),
        outcome: EntryOutcome::Success,
        request_id: "r-1".into(),
        payload: "{}".into(),
    }
}

fn books(quotas: Vec<Quota>) -> Books {
    let mut books = Books::new(tenant(), TimeZone::UTC, RETENTION_MICROS);
    books.quotas = quotas;
    books.routing = Arc::new(Routing::all(vec!["pager".into(), "webhook".into()]));
    books
}

fn open(books: &Books, now: Timestamp) -> Posting {
    Posting::open(books, now, [7; 32])
}

/// Counts `events` in one batch, with every missing counter at zero.
fn count(posting: &mut Posting, events: &[UsageEvent]) {
    let events: Vec<&UsageEvent> = events.iter().collect();
    for missing in posting.missing_for_usage(&events) {
        posting.supply(missing.key(), Counter::new(missing.window));
    }
    let keys: Vec<_> = events.iter().map(|event| (event.key(), event.body_hash())).collect();
    let counts = BatchCounts { attempted: events.len() as i64, ..BatchCounts::default() };
    posting.usage(&events, &keys, counts, "r-1");
}

/// The books after `events` were counted and committed at `now`.
fn after(books: &Books, now: Timestamp, events: &[UsageEvent]) -> Books {
    let mut posting = open(books, now);
    count(&mut posting, events);
    posting.close();
    posting.books
}

fn hour(text: &str) -> Window {
    period::window(PeriodKind::Hour, at(text), &TimeZone::UTC)
}

fn key(quota: &Quota, window: Window) -> CounterKey {
    CounterKey { quota: quota.id, period_start: window.start }
}

fn payload(record: &Record) -> Value {
    serde_json::from_str(&record.payload).unwrap()
}

fn actions(posting: &Posting) -> Vec<&str> {
    posting.records.iter().map(|record| record.action.as_str()).collect()
}

fn thresholds(alerts: &[Alert]) -> Vec<u16> {
    alerts.iter().filter_map(Alert::reached).map(|reached| reached.threshold).collect()
}

fn quotas_of(alerts: &[Alert]) -> Vec<QuotaId> {
    alerts.iter().filter_map(Alert::reached).map(|reached| reached.quota.id).collect()
}

// ---- what may be counted ----

#[test]
fn an_event_is_admitted_from_the_horizon_to_five_minutes_ahead() {
    let books = books(vec![]);
    let admit =
        |offset: i64| books.admit(&event(noon().plus_micros(offset), 1), &Totals::default(), noon()).map(|_| ());
    assert_eq!(admit(0), Ok(()));
    assert_eq!(admit(-RETENTION_MICROS), Ok(()));
    assert_eq!(admit(-RETENTION_MICROS - 1), Err(Refusal::TooOld));
    assert_eq!(admit(5 * MICROS_PER_MINUTE), Ok(()));
    assert_eq!(admit(5 * MICROS_PER_MINUTE + 1), Err(Refusal::FromTheFuture));
}

#[test]
fn an_event_that_would_overflow_a_sum_is_not_admitted() {
    let mut books = books(vec![]);
    books.lifetime.amounts.prompt_tokens = i64::MAX - 10;
    let admit = |pending: &Totals, tokens| books.admit(&event(noon(), tokens), pending, noon());
    let ten = admit(&Totals::default(), 10).unwrap();
    assert_eq!((ten.events, ten.amounts.prompt_tokens), (1, 10));
    assert_eq!(admit(&Totals::default(), 11), Err(Refusal::AmountOverflow));
    assert_eq!(admit(&ten, 1), Err(Refusal::AmountOverflow), "what is pending counts as well");
    let most = Totals { events: i64::MAX, ..Totals::default() };
    assert_eq!(admit(&most, 0), Err(Refusal::AmountOverflow));
}

// ---- standings ----

#[test]
fn a_standing_is_what_is_left_of_the_running_period() {
    let quotas = vec![quota(1, 100, &[50]), Quota { period: PeriodKind::Total, ..quota(2, 30, &[]) }];
    let books = after(&books(quotas), noon(), &[event(noon(), 60)]);
    let [hour, total] = &books.standings(noon())[..] else { panic!("two quotas") };
    assert_eq!((hour.used, hour.remaining, hour.level), (60, 40, Level::Warning));
    assert_eq!((hour.period_start, hour.reset_at), (noon(), Some(at("2026-11-20T13:00:00Z"))));
    assert_eq!((total.used, total.remaining, total.level), (60, 0, Level::Exceeded));
    assert_eq!((total.period_start, total.reset_at), (Timestamp(0), None));
    let later = &books.standings(at("2026-11-20T13:00:00Z"))[0];
    assert_eq!((later.used, later.remaining, later.level), (0, 100, Level::Ok));
}

#[test]
fn time_changes_the_books_when_the_first_alert_s_period_ends() {
    let minute = Quota { period: PeriodKind::Minute, ..quota(2, 10, &[50]) };
    let total = Quota { period: PeriodKind::Total, ..quota(3, 10, &[50]) };
    let quiet = books(vec![quota(1, 10, &[50]), minute, total.clone()]);
    assert_eq!(quiet.next_roll(), None);
    let loud = after(&quiet, noon(), &[event(noon(), 6)]);
    assert_eq!(loud.firing.len(), 3);
    assert_eq!(loud.next_roll(), Some(at("2026-11-20T12:01:00Z")));
    assert_eq!(after(&books(vec![total]), noon(), &[event(noon(), 6)]).next_roll(), None, "all time never ends");
}

// ---- what must be read first ----

#[test]
fn a_counter_is_known_when_nothing_in_the_ledger_is_as_young_as_its_period() {
    let quota = quota(1, 100, &[]);
    let mut books = books(vec![quota.clone()]);
    let running = Missing { quota, window: hour("2026-11-20T12:00:00Z"), recount: false };
    books.latest_event_at = at("2026-11-20T11:59:59.999999Z");
    assert_eq!(books.missing_now(noon()), []);
    books.latest_event_at = noon();
    assert_eq!(books.missing_now(noon()), std::slice::from_ref(&running));
    books.latest_event_at = at("2026-11-20T12:59:00Z");
    assert_eq!(books.missing_now(noon()), std::slice::from_ref(&running));
    books.counters.insert(running.key(), Counter { used: 1, ..Counter::new(running.window) });
    assert_eq!(books.missing_now(noon()), []);
}

#[test]
fn a_period_that_senders_clocks_have_begun_is_read_as_well() {
    let mut books = books(vec![quota(1, 100, &[])]);
    let now = at("2026-11-20T12:58:00Z");
    books.latest_event_at = at("2026-11-20T13:00:00Z");
    let starts = |books: &Books| -> Vec<Timestamp> {
        books.missing_now(now).iter().map(|missing| missing.window.start).collect()
    };
    assert_eq!(starts(&books), [noon(), at("2026-11-20T13:00:00Z")]);
    books.latest_event_at = at("2026-11-20T12:59:59.999999Z");
    assert_eq!(starts(&books), [noon()]);
    // Nobody's clock is believed to be more than five minutes ahead of ours, which may have been set back by an hour.
    books.quotas[0].period = PeriodKind::Minute;
    books.latest_event_at = at("2026-11-20T18:00:00Z");
    let minutes: Vec<Timestamp> = (0..=65).map(|minute| now.plus_micros(minute * MICROS_PER_MINUTE)).collect();
    assert_eq!(starts(&books), minutes);
}

/// Books that were loaded at `now`, when nothing had to be read.
fn loaded(quotas: Vec<Quota>, now: Timestamp) -> Books {
    let mut books = books(quotas);
    books.learn(Vec::new(), now);
    books
}

#[test]
fn a_period_that_was_over_when_the_books_were_loaded_is_not_known() {
    let mut books = loaded(vec![quota(1, 100, &[])], noon());
    books.latest_event_at = noon();
    assert!(books.knows_running(noon()) && books.knows_running(at("2026-11-20T17:00:00Z")));
    let set_back = at("2026-11-20T11:59:59Z");
    assert!(!books.knows_running(set_back) && books.needs_roll(set_back));
    let window = hour("2026-11-20T11:00:00Z");
    let [missing] = &books.missing_now(set_back)[..1] else { panic!("one quota") };
    assert_eq!(missing.window, window);
    books.learn(vec![(missing.key(), Counter { used: 7, ..Counter::new(window) })], set_back);
    assert!(books.knows_running(set_back) && !books.needs_roll(set_back));
    assert_eq!(books.standings(set_back)[0].used, 7);
}

#[test]
fn a_quota_that_is_new_knows_nothing_of_the_period_before() {
    let (old, new) = (quota(1, 100, &[]), quota(2, 100, &[]));
    let before = loaded(vec![old.clone()], at("2026-11-20T10:30:00Z"));
    let before = after(&before, at("2026-11-20T11:58:00Z"), &[event(at("2026-11-20T11:58:00Z"), 1)]);
    let mut posting = open(&before, noon());
    posting.replace_quotas(vec![old, new], Vec::new(), entry("quota.replaced"));
    posting.close();
    assert!(posting.books.knows_running(noon()));
    assert!(!posting.books.knows_running(at("2026-11-20T11:59:40Z")), "what the new one counts then was not recounted");
    assert!(before.knows_running(at("2026-11-20T11:59:40Z")));
}

#[test]
fn what_is_forgotten_is_not_known() {
    let quota = Quota { period: PeriodKind::Minute, ..quota(1, 100, &[]) };
    let books = after(&loaded(vec![quota], noon()), noon(), &[event(noon(), 5)]);
    let later = after(&books, at("2026-11-20T12:30:00Z"), &[event(at("2026-11-20T12:30:00Z"), 1)]);
    assert!(later.knows_running(at("2026-11-20T12:21:00Z")), "counters are kept for ten minutes");
    assert!(!later.knows_running(noon()));
    assert!(books.knows_running(noon()));
    assert_eq!(books.standings(noon())[0].used, 5);
}

#[test]
fn a_stretch_that_was_not_read_to_its_end_is_known_as_far_as_it_was_read() {
    let mut books = books(vec![Quota { period: PeriodKind::Minute, ..quota(1, 100, &[]) }]);
    books.latest_event_at = at("2026-11-20T18:00:00Z");
    books.learn(Vec::new(), noon());
    assert!(books.knows_running(at("2026-11-20T13:05:59Z")));
    assert!(!books.knows_running(at("2026-11-20T13:06:00Z")));
    assert!(books.knows_running(at("2026-11-20T18:01:00Z")), "nothing in the ledger is as young");
}

#[test]
fn a_batch_needs_the_counters_that_it_will_add_to() {
    let user = Quota { scope: Scope::User("u".into()), ..quota(1, 100, &[]) };
    let minute = Quota { period: PeriodKind::Minute, ..quota(2, 100, &[]) };
    let model = Quota { scope: Scope::Model("m".into()), period: PeriodKind::Minute, ..quota(3, 100, &[]) };
    let mut books = books(vec![user.clone(), minute.clone(), model]);
    books.latest_event_at = at("2026-11-20T12:30:00Z");
    let subject = Subject { user: "u".into(), ..Subject::default() };
    let events = ["2026-11-20T11:10:00Z", "2026-11-20T11:10:30Z", "2026-11-20T12:20:00Z"]
        .map(|text| UsageEvent { subject: subject.clone(), ..event(at(text), 1) });
    let posting = open(&books, noon());
    let mut needed: Vec<(QuotaId, Timestamp)> = posting
        .missing_for_usage(&events.each_ref())
        .iter()
        .map(|missing| (missing.quota.id, missing.window.start))
        .collect();
    needed.sort();
    assert_eq!(
        needed,
        [
            (user.id, at("2026-11-20T11:00:00Z")),
            (user.id, at("2026-11-20T12:00:00Z")),
            (minute.id, at("2026-11-20T11:10:00Z")),
            (minute.id, at("2026-11-20T12:20:00Z")),
        ]
    );
}

// ---- counting ----

#[test]
fn a_batch_moves_every_sum_by_what_it_holds() {
    let per_hour = quota(1, 1_000, &[]);
    let per_minute = Quota { period: PeriodKind::Minute, ..quota(2, 1_000, &[]) };
    let requests = Quota { metric: Metric::Requests, ..quota(3, 1_000, &[]) };
    let before = books(vec![per_hour.clone(), per_minute.clone(), requests.clone()]);
    let late = at("2026-11-20T12:10:30Z");
    let mut posting = open(&before, noon());
    count(&mut posting, &[event(noon(), 5), event(late, 7)]);
    count(&mut posting, &[event(noon().plus_micros(1), 11)]);
    let used =
        |quota: &Quota, start: &str| posting.counters[&CounterKey { quota: quota.id, period_start: at(start) }].used;
    assert_eq!(used(&per_hour, "2026-11-20T12:00:00Z"), 23);
    assert_eq!(used(&per_minute, "2026-11-20T12:00:00Z"), 16);
    assert_eq!(used(&per_minute, "2026-11-20T12:10:00Z"), 7);
    assert_eq!(used(&requests, "2026-11-20T12:00:00Z"), 3);
    let rollups: Vec<_> =
        posting.rollups.iter().map(|(key, totals)| (key.start, totals.amounts.prompt_tokens)).collect();
    assert_eq!(rollups, [(noon(), 23)]);
    assert_eq!((posting.books.lifetime.events, posting.books.lifetime.amounts.prompt_tokens), (3, 23));
    assert_eq!(posting.books.latest_event_at, late);
    assert_eq!(posting.books.next_position, before.next_position + 3);
    assert_eq!(actions(&posting), ["usage.committed", "usage.committed"]);
}

#[test]
fn positions_are_used_up_by_what_was_offered() {
    let before = books(vec![]);
    let mut posting = open(&before, noon());
    posting.usage(&[], &[], BatchCounts { attempted: 3, duplicates: 2, conflicts: 1 }, "");
    assert_eq!(posting.books.next_position, before.next_position + 3);
    assert_eq!(posting.books.latest_event_at, before.latest_event_at);
    posting.usage(&[], &[], BatchCounts { attempted: 4, ..BatchCounts::default() }, "");
    assert_eq!(posting.books.next_position, before.next_position + 7);
}

#[test]
fn a_batch_is_recorded_with_its_sums_and_a_digest_of_its_rows() {
    let mut posting = open(&books(vec![]), noon());
    let mut failed = event(noon(), 5);
    failed.status = Status::Failure;
    failed.amounts.completion_tokens = 7;
    failed.amounts.unclassified_tokens = 11;
    failed.amounts.cost = NanoUsd(135_000);
    let key = (EventKey([1; 20]), BodyHash([2; 16]));
    posting.usage(&[&failed], &[key], BatchCounts { attempted: 4, duplicates: 2, conflicts: 1 }, "r-9");
    let record = &posting.records[0];
    assert_eq!(record.action, "usage.committed");
    assert_eq!(
        payload(record),
        json!({
            "events": 1, "failures": 1, "duplicates": 2, "conflicts": 1, "lastPosition": 4, "requests": 1,
            "promptTokens": 5, "completionTokens": 7, "unclassifiedTokens": 11, "costUsd": "0.000135",
            "digest": "68802acd312c78cd85ff7d6064860e5d977654308b6975e64edac11971e9477a",
        })
    );
    let canonical: Value = serde_json::from_slice(&record.bytes).unwrap();
    assert_eq!(canonical["actor"], "system");
    assert_eq!(canonical["target"], format!("tenant:{}", tenant()));
    assert_eq!(canonical["requestId"], "r-9");
    assert_eq!(canonical["outcome"], "success");
}

// ---- alerts ----

#[test]
fn a_threshold_fires_once_when_it_is_reached() {
    let quota = quota(1, 100, &[50, 80, 100]);
    let mut posting = open(&books(vec![quota.clone()]), noon());
    count(&mut posting, &[event(noon(), 49)]);
    assert_eq!(thresholds(&posting.fired), [0_u16; 0]);
    count(&mut posting, &[event(noon().plus_micros(1), 31)]);
    assert_eq!(thresholds(&posting.fired), [50, 80]);
    count(&mut posting, &[event(noon().plus_micros(2), 40)]);
    assert_eq!(thresholds(&posting.fired), [50, 80, 100]);
    assert_eq!(posting.books.firing, posting.fired);

    let last = &posting.fired[2];
    assert_eq!(last.id, Alert::id_for(tenant(), &quota, noon(), 100));
    let reached = last.reached().unwrap();
    assert_eq!((reached.period_start, reached.period_end), (noon(), Some(at("2026-11-20T13:00:00Z"))));
    assert_eq!((reached.used, last.fired_at, last.resolved_at), (120, noon(), None));
    assert_eq!(reached.quota, quota);
    let written = &posting.counters[&key(&quota, hour("2026-11-20T12:00:00Z"))];
    assert_eq!((written.used, &written.fired[..]), (120, &[50, 80, 100][..]));
}

#[test]
fn an_alert_is_owed_to_every_channel_and_recorded() {
    let mut posting = open(&books(vec![quota(1, 100, &[50])]), noon());
    count(&mut posting, &[event(noon(), 60)]);
    let alert = posting.fired[0].clone();
    let owed = |channel: &str| Delivery {
        alert: alert.clone(),
        event: Event::Fired,
        channel: channel.into(),
        attempts: 0,
        next_attempt_at: noon(),
    };
    assert_eq!(posting.owed, [owed("pager"), owed("webhook")]);
    assert_eq!(actions(&posting), ["alert.fired", "usage.committed"]);
    let expected = json!({
        "quotaId": quotas_of(&posting.fired)[0], "periodStart": "2026-11-20T12:00:00.000Z", "threshold": 50, "limit": 100, "used": 60,
    });
    assert_eq!(payload(&posting.records[0]), expected);
    let canonical: Value = serde_json::from_slice(&posting.records[0].bytes).unwrap();
    assert_eq!(canonical["target"], format!("alert:{}", alert.id));
    assert_eq!((&canonical["actor"], &canonical["requestId"]), (&json!("system"), &json!("")));
}

#[test]
fn an_alert_is_acknowledged_once_by_whoever_is_first() {
    let firing = after(&books(vec![quota(1, 100, &[50])]), noon(), &[event(noon(), 60)]);
    let id = firing.firing[0].id;
    let by = |actor: &str| Request { actor: actor.into(), ..Request::system() };
    let mut posting = open(&firing, noon());
    let alert = posting.acknowledge_alert(id, &by("user:ada")).unwrap();
    assert_eq!(alert.acknowledged, Some(Acknowledgement { by: "user:ada".into(), at: noon() }));
    assert_eq!(
        owed(&posting),
        [(Event::Acknowledged, "pager", noon()), (Event::Acknowledged, "webhook", noon())],
        "it fires on, and whoever was told is told this"
    );
    assert_eq!(posting.books.firing.first(), Some(&alert));
    assert_eq!(actions(&posting), ["alert.acknowledged"]);
    // In the same posting and in a later one, it has been said.
    assert_eq!(posting.acknowledge_alert(id, &by("user:bob")), Some(alert.clone()));
    let mut again = open(&posting.books, noon());
    assert_eq!(again.acknowledge_alert(id, &by("user:bob")), Some(alert));
    assert!(again.is_empty() && again.owed.is_empty() && posting.owed.len() == 2);
    let mut over = open(&posting.books, at("2026-11-20T13:00:00Z"));
    over.roll();
    assert_eq!(over.acknowledge_alert(id, &by("user:bob")), None);
}

#[test]
fn an_alert_is_resolved_when_its_period_ends_and_not_before() {
    let firing = after(&books(vec![quota(1, 100, &[50])]), noon(), &[event(noon(), 60)]);
    let end = at("2026-11-20T13:00:00Z");
    let mut early = open(&firing, end.plus_micros(-1));
    early.roll();
    assert!(early.is_empty() && early.owed.is_empty());
    assert_eq!(early.books.firing, firing.firing);

    let mut due = open(&firing, end);
    due.roll();
    assert_eq!(due.books.firing, []);
    assert_eq!(due.resolved, [Alert { resolved_at: Some(end), ..firing.firing[0].clone() }]);
    assert_eq!(
        due.owed.iter().map(|one| (one.event, one.channel.as_str())).collect::<Vec<_>>(),
        [(Event::Resolved, "pager"), (Event::Resolved, "webhook"),]
    );
    assert!(due.owed.iter().all(|one| one.alert.resolved_at == Some(end) && one.next_attempt_at == end));
    assert_eq!(actions(&due), ["alert.resolved"]);
}

#[test]
fn a_late_event_fires_and_resolves_at_once() {
    let mut posting = open(&books(vec![quota(1, 100, &[50])]), noon());
    count(&mut posting, &[event(at("2026-11-20T10:30:00Z"), 60)]);
    assert_eq!(actions(&posting), ["alert.fired", "alert.resolved", "usage.committed"]);
    assert_eq!(posting.fired.len(), 1);
    assert_eq!(posting.resolved.len(), 1);
    assert_eq!(posting.books.firing, []);
}

#[test]
fn a_drift_fires_once_and_lasts_until_it_is_said_to_be_over() {
    let drift = ReconciliationDrift {
        cause: "lostInLedger".into(),
        window_start: at("2026-11-20T10:00:00Z"),
        windows: 3,
        difference: 7,
        summary: "7 requests are missing".into(),
    };
    let alert = Alert::drift(tenant(), drift, noon());
    let mut posting = open(&books(vec![]), noon());
    posting.fire_alert(alert.clone());
    posting.fire_alert(alert.clone());
    assert_eq!((&posting.fired[..], posting.owed.len()), (&[alert.clone()][..], 2));
    assert_eq!(actions(&posting), ["alert.fired"]);
    assert_eq!(payload(&posting.records[0])["cause"], "lostInLedger");
    posting.close();

    // Neither time nor other quotas end it.
    let later = noon().plus_micros(MICROS_PER_DAY);
    let mut posting = open(&posting.books, later);
    posting.roll();
    posting.replace_quotas(vec![quota(1, 100, &[50])], vec![], entry("quota.replaced"));
    assert_eq!((posting.books.firing.len(), posting.books.next_roll()), (1, None));
    posting.resolve_alert(alert.id);
    posting.resolve_alert(alert.id);
    assert_eq!(posting.resolved, [Alert { resolved_at: Some(later), ..alert }]);
    assert_eq!(actions(&posting), ["quota.replaced", "alert.resolved"]);
    assert!(posting.owed.iter().all(|one| one.event == Event::Resolved) && posting.owed.len() == 2);
}

/// Books of one quota whose warnings go to chat, and to the pager when chat is not reached within a minute.
fn routed(quiet_hours: Option<QuietHours>) -> Books {
    let mut books = books(vec![quota(1, 100, &[50])]);
    let escalation = Some(Escalation { to: "pager".into(), after_micros: MICROS_PER_MINUTE });
    let route = Route { channels: vec!["chat".into()], escalation, quiet_hours, ..Route::default() };
    books.routing = Arc::new(Routing { routes: vec![route], ..Routing::all(vec!["pager".into(), "chat".into()]) });
    books
}

fn owed(posting: &Posting) -> Vec<(Event, &str, Timestamp)> {
    posting.owed.iter().map(|one| (one.event, one.channel.as_str(), one.next_attempt_at)).collect()
}

fn tried(books: &Books, now: Timestamp, result: AttemptResult) -> Posting {
    let mut posting = open(books, now);
    let alert = books.firing[0].id;
    posting.attempt(Attempt { alert, event: Event::Fired, channel: "chat".into(), at: now, result });
    posting.roll();
    posting
}

#[test]
fn an_alert_that_reaches_nobody_in_time_is_owed_to_the_second_channel_once() {
    let mut posting = open(&routed(None), noon());
    count(&mut posting, &[event(noon(), 60)]);
    assert_eq!(owed(&posting), [(Event::Fired, "chat", noon())]);
    let (firing, late) = (posting.books, noon().plus_micros(MICROS_PER_MINUTE));
    assert_eq!(firing.next_roll(), Some(late));

    let retry = || AttemptResult::Retry { at: late.plus_micros(1), reason: "timed out".into() };
    let early = tried(&firing, late.plus_micros(-1), retry());
    assert_eq!(owed(&early), []);
    let escalated = tried(&early.books, late, retry());
    assert_eq!(owed(&escalated), [(Event::Fired, "pager", late)]);
    assert_eq!(actions(&escalated), ["alert.escalated"]);
    let again = tried(&escalated.books, late.plus_micros(MICROS_PER_MINUTE), retry());
    assert_eq!((owed(&again), actions(&again)), (vec![], vec![]));
    // Time alone brings it about, too; whoever was told hears the end.
    let mut alone = open(&firing, late);
    alone.roll();
    assert_eq!(owed(&alone), owed(&escalated));
    let end = at("2026-11-20T13:00:00Z");
    let mut over = open(&alone.books, end);
    over.roll();
    assert_eq!(owed(&over), [(Event::Resolved, "chat", end), (Event::Resolved, "pager", end)]);
    assert!(over.books.told.is_empty());

    let gave_up = tried(&firing, noon(), AttemptResult::GaveUp { reason: "answered 410".into() });
    assert_eq!(owed(&gave_up), [(Event::Fired, "pager", noon())], "there is nothing to wait for");
    let reached = tried(&firing, noon(), AttemptResult::Delivered);
    let mut later = open(&reached.books, late);
    later.roll();
    assert_eq!((owed(&later), reached.books.next_roll()), (vec![], Some(end)));
}

#[test]
fn a_warning_of_the_night_is_owed_in_the_morning_and_withdrawn_if_it_is_over_by_then() {
    let quiet = QuietHours::read("UTC", "11:00", "14:00", &[]).unwrap();
    let mut posting = open(&routed(Some(quiet)), noon());
    count(&mut posting, &[event(noon(), 60)]);
    let morning = at("2026-11-20T14:00:00Z");
    assert_eq!(owed(&posting), [(Event::Fired, "chat", morning)]);
    assert_eq!(posting.owed[0].held_until(noon()), morning);
    let end = at("2026-11-20T13:00:00Z");
    assert_eq!(posting.books.next_roll(), Some(end), "its time begins in the morning");

    let mut over = open(&posting.books, end);
    over.roll();
    assert_eq!((owed(&over), actions(&over)), (vec![], vec!["alert.resolved"]));
    let [withdrawn] = &over.attempts[..] else { panic!("{:?}", over.attempts) };
    assert_eq!((withdrawn.channel.as_str(), &withdrawn.result), ("chat", &AttemptResult::Withdrawn));
}

// ---- quotas and calendar ----

#[test]
fn a_quota_is_recounted_when_it_counts_something_else() {
    let old = quota(1, 100, &[50]);
    let books = books(vec![quota(9, 1, &[]), old.clone()]);
    let asked = |new: Quota| open(&books, noon()).missing_for_quotas(&[new]);
    let judged_anew = Quota { limit: 7, thresholds: vec![1], enforcement: Enforcement::Alert, ..old.clone() };
    assert_eq!(asked(judged_anew), []);
    for new in [
        Quota { scope: Scope::User("u".into()), ..old.clone() },
        Quota { metric: Metric::Requests, ..old.clone() },
        quota(2, 100, &[50]),
    ] {
        let window = hour("2026-11-20T12:00:00Z");
        assert_eq!(asked(new.clone()), [Missing { quota: new, window, recount: true }]);
    }
    let daily = Quota { period: PeriodKind::Day, ..old.clone() };
    let window = period::window(PeriodKind::Day, noon(), &TimeZone::UTC);
    assert_eq!(asked(daily.clone()), [Missing { quota: daily, window, recount: true }]);

    let zone = period::time_zone("Asia/Kathmandu").unwrap();
    let moved: Vec<Window> = open(&books, noon()).missing_for_time_zone(&zone).iter().map(|one| one.window).collect();
    assert_eq!(moved, [period::window(PeriodKind::Hour, noon(), &zone); 2]);
}

#[test]
fn a_new_set_of_quotas_replaces_the_old_one() {
    let (kept, gone, new) = (quota(1, 100, &[50]), quota(2, 100, &[50]), quota(3, 100, &[50]));
    let before = after(&books(vec![kept.clone(), gone.clone()]), noon(), &[event(noon(), 60)]);
    assert_eq!(before.firing.len(), 2);
    let mut posting = open(&before, noon());
    let window = hour("2026-11-20T12:00:00Z");
    let recounted = (key(&new, window), Counter { used: 60, ..Counter::new(window) });
    posting.replace_quotas(vec![kept.clone(), new.clone()], vec![recounted], entry("quota.replaced"));
    assert_eq!(posting.books.quotas, [kept.clone(), new.clone()]);
    assert_eq!(posting.quotas.as_deref(), Some(&[kept.clone(), new.clone()][..]));
    assert_eq!(posting.void_counters, [gone.id, new.id]);
    let counted: std::collections::BTreeSet<QuotaId> = posting.books.counters.keys().map(|key| key.quota).collect();
    assert_eq!(counted, [kept.id, new.id].into());
    assert_eq!(posting.books.counters[&key(&kept, window)].used, 60, "an edited quota keeps what it has used");
    assert_eq!(quotas_of(&posting.resolved), [gone.id]);
    assert_eq!(quotas_of(&posting.fired), [new.id]);
    assert_eq!(actions(&posting), ["quota.replaced", "alert.resolved", "alert.fired"]);
    assert_eq!(posting.counters[&key(&new, window)].fired, [50], "what is written knows what has fired");
}

#[test]
fn what_was_counted_in_this_posting_under_another_meaning_is_forgotten() {
    let old = quota(1, 1_000, &[]);
    let new = Quota { metric: Metric::Requests, ..old.clone() };
    let mut posting = open(&books(vec![old.clone()]), noon());
    let late = at("2026-11-20T11:30:00Z");
    count(&mut posting, &[event(noon(), 60), event(late, 60)]);
    assert_eq!(posting.counters.len(), 2);
    let running = hour("2026-11-20T12:00:00Z");
    let recounted = (key(&new, running), Counter { used: 1, ..Counter::new(running) });
    posting.replace_quotas(vec![new.clone()], vec![recounted.clone()], entry("quota.replaced"));
    assert_eq!(posting.counters.iter().collect::<Vec<_>>(), [(&recounted.0, &recounted.1)]);
    assert_eq!(posting.books.counters, [recounted].into());
    let missing = posting.missing_for_usage(&[&event(late, 1), &event(noon(), 1)]);
    assert_eq!(missing, [Missing { quota: new, window: hour("2026-11-20T11:00:00Z"), recount: true }]);
}

/// An alert holds while its quota has the threshold and the counter is at or past it.
#[test]
fn an_alert_follows_its_limit() {
    let quota = quota(1, 100, &[50]);
    let firing = after(&books(vec![quota.clone()]), noon(), &[event(noon(), 60)]);
    let resolved_under = |new: Quota| {
        let mut posting = open(&firing, noon());
        posting.replace_quotas(vec![new], vec![], entry("quota.replaced"));
        assert_eq!(posting.books.firing.len() + posting.resolved.len(), 1);
        assert_eq!(posting.fired.len(), 0, "it has fired in this period");
        posting.resolved.len() == 1
    };
    assert!(!resolved_under(Quota { limit: 10, ..quota.clone() }));
    assert!(!resolved_under(Quota { limit: 120, ..quota.clone() }), "60 of 120 is half");
    assert!(resolved_under(Quota { limit: 121, ..quota.clone() }), "60 of 121 is less than half");
    assert!(resolved_under(Quota { thresholds: vec![51], limit: 200, ..quota.clone() }));
    assert!(resolved_under(Quota { id: QuotaId(uuid::Uuid::from_u128(5)), limit: 1_000, ..quota }));
}

#[test]
fn lower_limits_fire_in_periods_that_are_not_over() {
    let quota = quota(1, 1_000, &[50]);
    let noon_hour = hour("2026-11-20T12:00:00Z");
    let fired_at = |now: Timestamp| {
        let used = after(&books(vec![quota.clone()]), noon(), &[event(noon(), 60)]);
        let mut posting = open(&used, now);
        let lower = Quota { limit: 100, ..quota.clone() };
        posting.replace_quotas(vec![lower], vec![], entry("quota.replaced"));
        thresholds(&posting.fired)
    };
    assert_eq!(fired_at(noon()), [50]);
    assert_eq!(fired_at(noon_hour.end.plus_micros(-1)), [50]);
    assert_eq!(fired_at(noon_hour.end), [0_u16; 0]);
}

#[test]
fn another_calendar_counts_every_quota_anew() {
    let quota = quota(1, 100, &[50]);
    let before = after(&books(vec![quota.clone()]), noon(), &[event(noon(), 60)]);
    let zone = period::time_zone("Asia/Kathmandu").unwrap();
    let mut posting = open(&before, noon());
    let window = period::window(PeriodKind::Hour, noon(), &zone);
    let recounted = (key(&quota, window), Counter { used: 60, ..Counter::new(window) });
    posting.change_time_zone("Asia/Kathmandu", zone.clone(), vec![recounted], entry("tenant.amended"));
    assert_eq!(posting.books.time_zone, zone);
    assert_eq!(posting.time_zone.as_deref(), Some("Asia/Kathmandu"));
    assert_eq!(posting.void_counters, [quota.id]);
    assert_eq!(posting.books.counters.keys().copied().collect::<Vec<_>>(), [key(&quota, window)]);
    assert_eq!(actions(&posting), ["tenant.amended", "alert.resolved", "alert.fired"]);
}

// ---- the rest ----

#[test]
fn a_posting_is_empty_until_there_is_something_to_write() {
    let firing = after(&books(vec![quota(1, 100, &[50])]), noon(), &[event(noon(), 60)]);
    let later = at("2026-11-20T13:00:00Z");
    assert!(open(&firing, later).is_empty());
    assert_eq!(open(&firing, later).now(), later);
    let attempt = Attempt {
        alert: firing.firing[0].id,
        event: Event::Fired,
        channel: "pager".into(),
        at: later,
        result: AttemptResult::Delivered,
    };
    let not_empty: [&dyn Fn(&mut Posting); 4] = [
        &|posting| posting.records_entry(entry("access.denied")),
        &|posting| posting.attempt(attempt.clone()),
        &|posting| posting.advance(Cursor { stream: "usage".into(), sequence: 1 }),
        &|posting| posting.roll(),
    ];
    for change in not_empty {
        let mut posting = open(&firing, later);
        change(&mut posting);
        assert!(!posting.is_empty());
    }
    let mut posting = open(&firing, later);
    posting.attempt(attempt.clone());
    assert_eq!(posting.attempts, [attempt]);
}

#[test]
fn a_cursor_never_goes_back() {
    let mut posting = open(&books(vec![]), noon());
    for (stream, sequence) in [("a", 5), ("a", 9), ("a", 7), ("b", 1)] {
        posting.advance(Cursor { stream: stream.into(), sequence });
    }
    assert_eq!(posting.cursors, [("a".to_owned(), 9), ("b".to_owned(), 1)].into());
}

#[test]
fn records_are_linked_in_order_each_with_a_salt_of_its_own() {
    let mut before = books(vec![]);
    before.head.seq = 41;
    let mut posting = open(&before, noon());
    posting.records_entry(entry("one.done"));
    posting.records_entry(entry("two.done"));
    let [one, two] = &posting.records[..] else { panic!("two records") };
    assert_eq!((one.seq, two.seq), (42, 43));
    assert_eq!((posting.books.head.seq, posting.books.head.hash), (43, two.hash));
    let prev: Value = serde_json::from_slice(&two.bytes).unwrap();
    assert_eq!(prev["prev"], one.hash.to_string());
    assert_ne!(one.salt, two.salt);
    let mut other = Posting::open(&before, noon(), [8; 32]);
    other.records_entry(entry("one.done"));
    assert_ne!(other.records[0].salt, one.salt, "the salt is not to be guessed");
}

#[test]
fn a_closed_posting_forgets_counters_ten_minutes_after_their_period() {
    let quota = quota(1, 100, &[]);
    let before = after(&books(vec![quota.clone()]), noon(), &[event(noon(), 60)]);
    assert_eq!(before.version, 1);
    let kept_at = |now: Timestamp| {
        let mut posting = open(&before, now);
        posting.close();
        assert_eq!(posting.books.version, 2);
        posting.books.counters.len()
    };
    let end = at("2026-11-20T13:00:00Z");
    assert_eq!(kept_at(end.plus_micros(10 * MICROS_PER_MINUTE - 1)), 1);
    assert_eq!(kept_at(end.plus_micros(10 * MICROS_PER_MINUTE)), 0);
    assert_eq!(kept_at(end.plus_micros(MICROS_PER_HOUR)), 0);
}
