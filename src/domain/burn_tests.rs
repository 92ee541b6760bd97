//! Budgets that burn: rates, estimates, and the alert that tells of them once.

use std::sync::Arc;

use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::books::{BatchCounts, Books, Posting};
use super::burn::{Burning, Recent};
use super::chain::{Entry, EntryOutcome};
use super::ids::QuotaId;
use super::notice::{AlertKind, AlertSubject, BURN_MARK, Event};
use super::period::{PeriodKind, ROLLUP_MICROS, Window, rollup_start};
use super::properties_tests::{config, tenant};
use super::quota::{Enforcement, Metric, Quota, Scope};
use super::routing::Routing;
use super::time::{MICROS_PER_DAY, MICROS_PER_HOUR, MICROS_PER_MINUTE, Timestamp};
use super::usage::{Amounts, Flags, Kind, Status, Subject, UsageEvent};

const SPAN: i64 = 2 * MICROS_PER_HOUR;

fn noon() -> Timestamp {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

fn quota(period: PeriodKind, limit: i64) -> Quota {
    Quota {
        id: QuotaId(uuid::Uuid::from_u128(1)),
        scope: Scope::Tenant,
        metric: Metric::Tokens,
        period,
        limit,
        thresholds: vec![100],
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

fn books(quota: Quota) -> Books {
    let mut books = Books::new(tenant(), TimeZone::UTC, 30 * MICROS_PER_DAY);
    books.quotas = vec![quota];
    books.routing = Arc::new(Routing { burn_span_micros: SPAN, ..Routing::all(vec!["pager".into()]) });
    books
}

fn posted(books: &Books, now: Timestamp, change: impl FnOnce(&mut Posting)) -> Posting {
    let mut posting = Posting::open(books, now, [7; 32]);
    change(&mut posting);
    posting.close();
    posting
}

fn used(books: &Books, now: Timestamp, tokens: i64) -> Posting {
    let event = event(now, tokens);
    posted(books, now, |posting| {
        let counts = BatchCounts { attempted: 1, ..BatchCounts::default() };
        posting.usage(&[&event], &[(event.key(), event.body_hash())], counts, "r-1");
    })
}

fn told(posting: &Posting) -> Vec<(AlertKind, Event)> {
    posting.owed.iter().map(|one| (one.alert.kind(), one.event)).collect()
}

const FIRED: [(AlertKind, Event); 1] = [(AlertKind::BudgetBurn, Event::Fired)];
const RESOLVED: [(AlertKind, Event); 1] = [(AlertKind::BudgetBurn, Event::Resolved)];

#[test]
fn an_estimate_is_what_is_left_by_the_rate_of_the_last_hour() {
    let daily = quota(PeriodKind::Day, 1_000);
    let posting = used(&books(daily.clone()), noon(), 200);
    // 200 an hour, 800 left.
    let exhausted = Some(noon().plus_micros(4 * MICROS_PER_HOUR));
    assert_eq!(posting.books.exhausts_at(&daily, noon()), exhausted);
    assert_eq!(posting.books.standings(noon())[0].exhausts_at, exhausted);
    assert_eq!(posting.books.decide(&Subject::default(), noon()).tightest.unwrap().exhausts_at, None);
    // At 70 an hour it lasts beyond midnight.
    let slow = used(&books(daily.clone()), noon(), 70);
    assert_eq!(slow.books.exhausts_at(&daily, noon()), None);
    // The last fifteen minutes of the quarter in which it was used go by, and half of them.
    let later = noon().plus_micros(MICROS_PER_HOUR + ROLLUP_MICROS / 2);
    assert_eq!(posting.books.exhausts_at(&daily, later), Some(later.plus_micros(8 * MICROS_PER_HOUR)));
    assert_eq!(posting.books.exhausts_at(&daily, noon().plus_micros(MICROS_PER_HOUR + ROLLUP_MICROS)), None);
}

#[test]
fn a_period_that_has_just_begun_has_no_rate_and_a_minute_never() {
    let hourly = quota(PeriodKind::Hour, 1_000);
    let minutes = |count: i64| noon().plus_micros(count * MICROS_PER_MINUTE);
    let posting = used(&books(hourly.clone()), minutes(14), 300);
    assert_eq!(posting.books.exhausts_at(&hourly, minutes(14)), None);
    // 300 in twenty minutes: 700 last for 46 minutes and two thirds, which is after the hour; 600 would not.
    assert_eq!(posting.books.exhausts_at(&hourly, minutes(20)), None);
    let more = used(&posting.books, minutes(20), 300);
    assert_eq!(more.books.exhausts_at(&hourly, minutes(20)), Some(Timestamp(minutes(33).0 + 20_000_000)));
    let minutely = quota(PeriodKind::Minute, 1_000);
    let posting = used(&books(minutely.clone()), noon(), 900);
    assert_eq!(posting.books.exhausts_at(&minutely, noon()), None);
}

#[test]
fn a_burn_fires_once_and_is_over_when_the_rate_has_fallen() {
    let fired = used(&books(quota(PeriodKind::Day, 1_000)), noon(), 400);
    assert_eq!(told(&fired), FIRED);
    let AlertSubject::BudgetBurn(burn) = &fired.fired[0].subject else { panic!("a burn") };
    assert_eq!((burn.used, burn.exhausted_at), (400, noon().plus_micros(3 * MICROS_PER_HOUR / 2)));
    assert!(fired.counters.values().all(|counter| counter.fired == [BURN_MARK]));

    let again = used(&fired.books, noon().plus_micros(MICROS_PER_MINUTE), 10);
    assert_eq!(told(&again), [], "it fires already");
    // 410 in the hour and 590 left: at half that rate it lasts 2.9 hours, still below three.
    let due = again.books.next_roll().unwrap();
    let half = noon().plus_micros(MICROS_PER_HOUR + ROLLUP_MICROS / 2);
    assert!(half < due && due < noon().plus_micros(MICROS_PER_HOUR + ROLLUP_MICROS), "{due}");
    assert!(!again.books.needs_roll(due.plus_micros(-1)) && again.books.needs_roll(due));
    assert_eq!(told(&posted(&again.books, due.plus_micros(-1), Posting::roll)), []);
    let over = posted(&again.books, due, Posting::roll);
    assert_eq!(told(&over), RESOLVED);
    assert_eq!(told(&posted(&over.books, due, Posting::roll)), []);

    let faster = used(&over.books, due.plus_micros(MICROS_PER_MINUTE), 300);
    assert_eq!(told(&faster), [], "never twice in a period");
    let tomorrow = noon().plus_micros(MICROS_PER_DAY);
    assert_eq!(told(&used(&faster.books, tomorrow, 500)), FIRED, "another period");
}

#[test]
fn the_first_events_of_a_quota_and_a_long_breath_alert_nobody() {
    let alerts = |limit, tokens| told(&used(&books(quota(PeriodKind::Total, limit)), noon(), tokens)).len();
    // A third used in an hour: two hours are left, which is not below two.
    assert_eq!((alerts(300, 100), alerts(299, 100)), (0, 1));
    let mut early = books(quota(PeriodKind::Total, 10_000));
    early.routing = Arc::new(Routing { burn_span_micros: 100 * MICROS_PER_HOUR, ..Routing::all(vec!["pager".into()]) });
    assert_eq!(told(&used(&early, noon(), 499)), []);
    assert_eq!(told(&used(&early, noon(), 500)), FIRED);
    let mut off = books(quota(PeriodKind::Total, 100));
    off.routing = Arc::new(Routing::all(vec!["pager".into()]));
    assert_eq!(told(&used(&off, noon(), 99)), []);
}

#[test]
fn a_burn_is_over_when_the_quota_is_exhausted_or_its_period() {
    let fired = used(&books(quota(PeriodKind::Day, 1_000)), noon(), 600);
    let exhausted = used(&fired.books, noon(), 400);
    assert_eq!(told(&exhausted), [(AlertKind::QuotaThreshold, Event::Fired), RESOLVED[0]]);

    let late = Timestamp(noon().0 + 12 * MICROS_PER_HOUR - 30 * MICROS_PER_MINUTE);
    let fired = used(&books(quota(PeriodKind::Day, 1_000)), late, 900);
    assert_eq!(told(&fired), FIRED);
    let midnight = fired.books.next_roll().unwrap();
    assert!(midnight <= noon().plus_micros(MICROS_PER_DAY / 2));
    assert_eq!(told(&posted(&fired.books, midnight, Posting::roll)), RESOLVED);
}

#[test]
fn a_limit_that_moves_fires_and_resolves() {
    let entry = || Entry {
        actor: "platform".into(),
        action: "quotas.replaced".into(),
        target: "tenant:t".into(),
        outcome: EntryOutcome::Success,
        request_id: "r-1".into(),
        payload: "{}".into(),
    };
    let set = |books: &Books, quotas: Vec<Quota>| {
        posted(books, noon(), |posting| posting.replace_quotas(quotas, Vec::new(), entry()))
    };
    let calm = used(&books(quota(PeriodKind::Total, 1_000)), noon(), 100);
    assert_eq!(told(&calm), []);
    let lowered = set(&calm.books, vec![quota(PeriodKind::Total, 250)]);
    assert_eq!(told(&lowered), FIRED);
    let barely_raised = set(&lowered.books, vec![quota(PeriodKind::Total, 400)]);
    assert_eq!(told(&barely_raised), [], "three hours are not above three");
    let raised = set(&barely_raised.books, vec![quota(PeriodKind::Total, 401)]);
    assert_eq!(told(&raised), RESOLVED);
    assert_eq!(told(&set(&raised.books, vec![quota(PeriodKind::Total, 150)])), []);
    assert_eq!(told(&set(&lowered.books, vec![])), RESOLVED, "the quota is gone");
}

fn some_usage() -> impl Strategy<Value = Vec<(i64, i64)>> {
    prop::collection::vec((-4 * MICROS_PER_HOUR..MICROS_PER_HOUR, -20_i64..1_000), 0..40)
}

proptest! {
    #![proptest_config(config(256))]

    /// In whatever order and batches usage comes, what is remembered is what a recount finds.
    #[test]
    fn what_is_recent_is_a_recount(usage in some_usage(), cut in 0_usize..40) {
        let mut one_by_one = Recent::default();
        let mut latest = Timestamp(0);
        for (offset, amount) in &usage {
            let at = noon().plus_micros(*offset);
            latest = latest.max(at);
            one_by_one.add(rollup_start(at), *amount);
            one_by_one.forget(latest);
        }
        let (mut first, mut second) = (Recent::default(), Recent::default());
        for (index, (offset, amount)) in usage.iter().enumerate().rev() {
            let half = if index < cut { &mut first } else { &mut second };
            half.add(rollup_start(noon().plus_micros(*offset)), *amount);
        }
        second.merge(&first);
        second.forget(latest);
        prop_assert_eq!(one_by_one, second);
    }

    /// While nothing is counted an estimate only moves away, and an alert's end is the first instant that ends it.
    #[test]
    fn time_alone_only_lets_the_rate_fall(
        usage in some_usage(),
        begun in 0..3 * MICROS_PER_HOUR,
        (used, limit) in (0_i64..900, 1_i64..5_000),
        steps in prop::collection::vec(0..30 * MICROS_PER_MINUTE, 1..8),
    ) {
        let mut recent = Recent::default();
        usage.iter().for_each(|(offset, amount)| recent.add(rollup_start(noon().plus_micros(*offset)), *amount));
        let start = noon().plus_micros(-begun - ROLLUP_MICROS);
        let window = Window { start, end: start.plus_micros(MICROS_PER_DAY) };
        let burning = Burning { window, limit, used, recent: &recent };
        let over = burning.over_from(SPAN, noon());
        prop_assert!(burning.is_over(SPAN, over));
        prop_assert!(over == noon() || !burning.is_over(SPAN, over.plus_micros(-1)));
        let (mut now, mut before) = (noon(), burning.exhausts_at(noon()));
        for step in steps {
            now = now.plus_micros(step);
            let next = burning.exhausts_at(now);
            prop_assert!(next.unwrap_or(Timestamp::MAX) >= before.unwrap_or(Timestamp::MAX));
            prop_assert_eq!(burning.is_over(SPAN, now), now >= over);
            before = next;
        }
    }

    /// More usage never lets a budget last longer, and a higher limit never shorter.
    #[test]
    fn more_usage_is_sooner(used in 1_i64..500, more in 1_i64..400, higher in 0_i64..1_000) {
        let at = |used: i64, limit: i64| {
            let mut recent = Recent::default();
            recent.add(rollup_start(noon()), used);
            Burning { window: Window::TOTAL, limit, used, recent: &recent }.exhausts_at(noon()).unwrap()
        };
        prop_assert!(at(used + more, 1_000) <= at(used, 1_000));
        prop_assert!(at(used, 1_000 + higher) >= at(used, 1_000));
    }
}
