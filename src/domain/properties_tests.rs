//! What the property tests of these rooms share, and the properties that hold across rooms.

use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::amount::NanoUsd;
use super::books::{Books, Counter, Posting};
use super::ids::{QuotaId, TenantId};
use super::period::{self, PeriodKind, Window};
use super::quota::{self, Enforcement, Level, Metric, Quota, Scope};
use super::report;
use super::time::{MICROS_PER_DAY, MICROS_PER_HOUR, Timestamp};
use super::usage::{Amounts, Flags, Kind, Status, Subject, Totals, UsageEvent};

/// How long a property is searched: `cases` cases, unless `PROPTEST_CASES` asks for a longer or shorter search.
pub(super) fn config(cases: u32) -> ProptestConfig {
    let asked = |name| std::env::var(name).ok()?.parse().ok();
    ProptestConfig {
        cases: asked("PROPTEST_CASES").unwrap_or(cases),
        max_shrink_iters: asked("PROPTEST_MAX_SHRINK_ITERS").unwrap_or(20_000),
        ..ProptestConfig::default()
    }
}

fn word(kind: &'static str) -> impl Strategy<Value = String> {
    (0_u8..3).prop_map(move |pick| if pick == 0 { String::new() } else { format!("{kind}-{pick}") })
}

/// Few enough words that subjects meet each other and the scopes of [`a_quota`].
pub(super) fn a_subject() -> impl Strategy<Value = Subject> {
    (word("user"), word("group"), word("key"), word("model"), word("provider"))
        .prop_map(|(user, group, api_key, model, provider)| Subject { user, group, api_key, model, provider })
}

fn a_scope() -> impl Strategy<Value = Scope> {
    prop::sample::select(vec![
        Scope::Tenant,
        Scope::User("user-1".into()),
        Scope::Group("group-1".into()),
        Scope::ApiKey("key-1".into()),
        Scope::Model("model-1".into()),
        Scope::Provider("provider-1".into()),
    ])
}

pub(super) fn a_quota() -> impl Strategy<Value = Quota> {
    let thresholds = prop::collection::btree_set(prop::sample::select(vec![1_u16, 50, 80, 100, 300]), 0..4);
    (
        any::<u128>(),
        a_scope(),
        prop::sample::select(Metric::ALL.to_vec()),
        prop::sample::select(PeriodKind::ALL.to_vec()),
        1_i64..1_000,
        thresholds,
        prop::sample::select(vec![Enforcement::Alert, Enforcement::Block]),
    )
        .prop_map(|(id, scope, metric, period, limit, thresholds, enforcement)| Quota {
            id: QuotaId(uuid::Uuid::from_u128(id)),
            scope,
            metric,
            period,
            limit,
            thresholds: thresholds.into_iter().collect(),
            enforcement,
        })
}

pub(super) fn some_amounts() -> impl Strategy<Value = Amounts> {
    prop::array::uniform8(0_i64..100).prop_map(Amounts::from_array)
}

/// An event that occurs within two days of `around`.
pub(super) fn an_event(around: Timestamp) -> impl Strategy<Value = UsageEvent> {
    let span = 2 * MICROS_PER_DAY;
    (0_u16..500, -span..span, a_subject(), some_amounts(), any::<bool>()).prop_map(
        move |(id, offset, subject, amounts, success)| UsageEvent {
            source: "test".into(),
            event_id: format!("event-{id}"),
            occurred_at: around.plus_micros(offset),
            kind: Kind::Delta,
            status: if success { Status::Success } else { Status::Failure },
            subject,
            call_type: String::new(),
            amounts,
            flags: Flags::default(),
            details: String::new(),
        },
    )
}

pub(super) fn tenant() -> TenantId {
    TenantId(uuid::Uuid::from_u128(0xA))
}

/// Totals of events, added one number at a time.
pub(super) fn total_of<'a>(events: impl IntoIterator<Item = &'a UsageEvent>) -> Totals {
    events.into_iter().fold(Totals::default(), |sum, event| Totals {
        events: sum.events + 1,
        failures: sum.failures + i64::from(event.status == Status::Failure),
        amounts: Amounts {
            requests: sum.amounts.requests + event.amounts.requests,
            prompt_tokens: sum.amounts.prompt_tokens + event.amounts.prompt_tokens,
            cache_read_tokens: sum.amounts.cache_read_tokens + event.amounts.cache_read_tokens,
            cache_write_tokens: sum.amounts.cache_write_tokens + event.amounts.cache_write_tokens,
            completion_tokens: sum.amounts.completion_tokens + event.amounts.completion_tokens,
            reasoning_tokens: sum.amounts.reasoning_tokens + event.amounts.reasoning_tokens,
            unclassified_tokens: sum.amounts.unclassified_tokens + event.amounts.unclassified_tokens,
            cost: NanoUsd(sum.amounts.cost.0 + event.amounts.cost.0),
        },
    })
}

pub(super) fn noon() -> Timestamp {
    "2026-10-25T12:00:00Z".parse().unwrap()
}

pub(super) fn berlin() -> TimeZone {
    period::time_zone("Europe/Berlin").unwrap()
}

/// Books that have counted `events` under `quotas`, all at [`noon`].
fn books_of(events: &[UsageEvent], quotas: Vec<Quota>) -> Books {
    let mut books = Books::new(tenant(), berlin(), 40 * MICROS_PER_DAY);
    books.quotas = quotas;
    let mut posting = Posting::open(&books, noon(), [7; 32]);
    let events: Vec<&UsageEvent> = events.iter().collect();
    for missing in posting.missing_for_usage(&events) {
        posting.supply(missing.key(), Counter::new(missing.window));
    }
    posting.usage(&events, &[], Default::default(), "");
    posting.close();
    posting.books
}

fn used(quota: &Quota, window: Window, events: &[UsageEvent]) -> i64 {
    let counts = |event: &&UsageEvent| window.contains(event.occurred_at) && quota.scope.covers(&event.subject);
    quota.metric.of(&total_of(events.iter().filter(counts)).amounts)
}

fn numbered(quotas: Vec<Quota>) -> Vec<Quota> {
    let id = |number: usize| QuotaId(uuid::Uuid::from_u128(number as u128));
    quotas.into_iter().enumerate().map(|(number, quota)| Quota { id: id(number), ..quota }).collect()
}

proptest! {
    /// Q1: a decision can be computed again by anybody who has the limits and the ledger, and by nothing else.
    #[test]
    fn a_decision_is_a_function_of_limits_and_ledger(
        events in prop::collection::vec(an_event(noon()), 0..30),
        quotas in prop::collection::vec(a_quota(), 0..8).prop_map(numbered),
        subject in a_subject(),
        later in 0..36 * MICROS_PER_HOUR,
    ) {
        let now = noon().plus_micros(later);
        let events: Vec<UsageEvent> = events.into_iter().filter(|event| event.occurred_at <= noon()).collect();
        let books = books_of(&events, quotas.clone());
        let recomputed: Vec<(QuotaId, i64, i64, Level)> = quotas
            .iter()
            .map(|quota| {
                let used = used(quota, period::window(quota.period, now, &berlin()), &events);
                (quota.id, used, (quota.limit - used).max(0), quota::level(quota, used))
            })
            .collect();
        let standings = books.standings(now);
        let stated: Vec<_> = standings.iter().map(|one| (one.quota.id, one.used, one.remaining, one.level)).collect();
        prop_assert_eq!(stated, recomputed);
        for standing in &standings {
            let window = period::window(standing.quota.period, now, &berlin());
            prop_assert_eq!((standing.period_start, standing.reset_at), (window.start, window.reset_at()));
        }
        // When a quota will be used up is an estimate, which no decision is made by.
        let matching = standings
            .into_iter()
            .filter(|standing| standing.quota.scope.covers(&subject))
            .map(|standing| quota::Standing { exhausts_at: None, ..standing })
            .collect();
        prop_assert_eq!(books.decide(&subject, now), quota::judge(matching, books.version));
    }

    /// L1: whatever calendar a report uses, its rows add up to the ledger, and each row to its part of it.
    #[test]
    fn a_report_adds_up_to_the_ledger(
        events in prop::collection::vec(an_event(noon()), 0..40),
        granularity in prop::sample::select(vec![PeriodKind::Hour, PeriodKind::Day, PeriodKind::Month]),
    ) {
        let mut posting = Posting::open(&Books::new(tenant(), berlin(), 0), noon(), [7; 32]);
        let counted: Vec<&UsageEvent> = events.iter().collect();
        posting.usage(&counted, &[], Default::default(), "");
        let rollups = posting.rollups.into_iter().map(|(key, totals)| (key.start, key.subject, totals));
        let rows = report::fold(rollups, granularity, &berlin()).unwrap();
        let mut known = std::collections::BTreeSet::new();
        for row in &rows {
            prop_assert!(known.insert((row.window, row.subject.clone())), "a row appears twice: {:?}", row);
            prop_assert_eq!(row.window, period::window(granularity, row.window.start, &berlin()));
            let of_row = |event: &&UsageEvent| row.window.contains(event.occurred_at) && row.subject == event.subject;
            prop_assert_eq!(row.totals, total_of(events.iter().filter(of_row)));
        }
        let events_in_rows: i64 = rows.iter().map(|row| row.totals.events).sum();
        prop_assert_eq!(events_in_rows, events.len() as i64);
        prop_assert_eq!(posting.books.lifetime, total_of(&events));
    }
}
