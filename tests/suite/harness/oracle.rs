//! What was sent, and what must therefore be in the books: invariants L1 to L6, Q2, Q3, A1 and A3, checked from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use platform_api::domain::amount::NanoUsd;
use platform_api::domain::period::{self, PeriodKind};
use platform_api::domain::quota::{Metric, Scope};
use platform_api::domain::time::Timestamp;
use platform_api::domain::usage::{Amounts, Subject};
use serde_json::Value;

use super::database::Database;
use super::events::Envelope;
use super::{Daemon, Tenant};

const QUARTER: i64 = 15 * 60 * 1_000_000;

/// Everything one tenant's senders know they have sent, each identity once.
#[derive(Debug, Default)]
pub struct Oracle {
    sent: Mutex<BTreeMap<String, Envelope>>,
    /// Event ids that the daemon has said it counted.
    acknowledged: Mutex<BTreeSet<String>>,
    /// Stream sequence → event id.
    published: Mutex<BTreeMap<i64, String>>,
    /// Event ids whose second body must be kept as a conflict.
    conflicts: Mutex<BTreeSet<String>>,
}

/// One quota as the daemon describes it, read back into the words of the domain.
#[derive(Debug)]
struct Limit {
    id: String,
    scope: Scope,
    metric: Metric,
    period: PeriodKind,
    limit: i64,
    thresholds: Vec<i64>,
    used: i64,
}

impl Oracle {
    /// This event has been accepted, or will be sent until it is.
    pub fn sends(&self, event: &Envelope) {
        self.sent.lock().unwrap().insert(event.event_id.clone(), event.clone());
    }

    pub fn published(&self, sequence: u64, event: &Envelope) {
        self.published.lock().unwrap().insert(sequence as i64, event.event_id.clone());
    }

    /// How many events the daemon has answered that it counted.
    pub fn acknowledgements(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// The daemon has answered that these are counted.
    pub fn acknowledged(&self, events: &[Envelope]) {
        self.acknowledged.lock().unwrap().extend(events.iter().map(|event| event.event_id.clone()));
    }

    pub fn conflicts(&self, event_id: &str) {
        self.conflicts.lock().unwrap().insert(event_id.to_owned());
    }

    pub fn events(&self) -> Vec<Envelope> {
        self.sent.lock().unwrap().values().cloned().collect()
    }

    pub fn count(&self) -> usize {
        self.sent.lock().unwrap().len()
    }

    /// Every invariant, once nothing is on its way any more.
    pub async fn check(&self, daemon: &Daemon, tenant: &Tenant) {
        let zone = period::time_zone(tenant.document["timeZone"].as_str().unwrap_or("UTC")).expect("a zone");
        let mut database = Database::of_tenant(daemon, &tenant.id).await;
        self.check_ledger(&mut database).await;
        check_sums(&mut database).await;
        self.check_conflicts(&mut database).await;
        self.check_cursor(&mut database).await;
        self.check_report(tenant).await;
        self.check_quotas(&mut database, tenant, &zone).await;
        check_chain(&mut database, tenant).await;
    }

    /// What holds at any moment, also of a daemon that was just killed: L1, L2, L6, and of L3 that whatever was
    /// acknowledged is in the ledger, over HTTP and up to `acked`, where the consumer's acknowledgements end. Ask for
    /// `acked` before this reads the database.
    pub async fn check_remains(&self, database: &mut Database, acked: u64) {
        database.hold_still().await;
        check_sums(database).await;
        let rows = database.words("SELECT event_id FROM usage_ledger").await;
        let ids: BTreeSet<&String> = rows.iter().flatten().collect();
        assert_eq!(ids.len(), rows.len(), "L2: an event is in the ledger twice");
        self.check_acknowledged(&ids, acked);
        self.check_cursor(database).await;
    }

    /// L3, the half of it that holds at any moment.
    fn check_acknowledged(&self, ids: &BTreeSet<&String>, acked: u64) {
        let acknowledged = self.acknowledged.lock().unwrap();
        let lost: Vec<&String> = acknowledged.iter().filter(|id| !ids.contains(id)).collect();
        assert!(lost.is_empty(), "L3: answered with success, and lost: {lost:?}");
        let published = self.published.lock().unwrap();
        let lost: Vec<&String> =
            published.range(..=acked as i64).map(|(_, id)| id).filter(|id| !ids.contains(id)).collect();
        assert!(lost.is_empty(), "L3: acknowledged to the stream, and lost: {lost:?}");
    }

    /// L2 and L3: what was sent is in the ledger once, as it was sent, and nothing else is.
    pub async fn check_ledger(&self, database: &mut Database) {
        let rows = database
            .words(
                "SELECT event_id, user_id, model, CAST(prompt_tokens AS TEXT), CAST(completion_tokens AS TEXT), \
                 CAST(cost_nano_usd AS TEXT), CAST(occurred_at AS TEXT) FROM usage_ledger ORDER BY position",
            )
            .await;
        let mut counted: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for mut row in rows {
            let id = row.remove(0);
            assert!(counted.insert(id.clone(), row).is_none(), "L2: {id} is in the ledger twice");
        }
        let sent = self.sent.lock().unwrap();
        let lost: Vec<&String> = sent.keys().filter(|id| !counted.contains_key(*id)).collect();
        assert!(lost.is_empty(), "L3: {} of {} events are lost: {lost:?}", lost.len(), sent.len());
        for (id, row) in &counted {
            let event = sent.get(id).unwrap_or_else(|| panic!("L3: {id} was never sent"));
            let numbers = [event.prompt_tokens, event.completion_tokens, event.cost, event.occurred_at.0];
            let mut expected = vec![event.user.clone(), event.model.clone()];
            expected.extend(numbers.map(|number| number.to_string()));
            assert_eq!(*row, expected, "{id} was changed on its way");
        }
    }

    /// L3: the second body of an event that came twice is kept.
    async fn check_conflicts(&self, database: &mut Database) {
        let kept = database.words("SELECT event_id FROM usage_conflict").await;
        let kept: BTreeSet<String> = kept.into_iter().flatten().collect();
        assert_eq!(kept, *self.conflicts.lock().unwrap(), "conflicts");
    }

    /// L6: the message that the cursor names is in the books. Also true of a daemon that was just killed.
    pub async fn check_cursor(&self, database: &mut Database) {
        for row in database.numbers("SELECT sequence FROM stream_cursor").await {
            let published = self.published.lock().unwrap().get(&row[0]).cloned();
            let Some(id) = published else { continue };
            let ids = database.words("SELECT event_id FROM usage_ledger").await;
            assert!(ids.iter().flatten().any(|known| *known == id), "L6: the cursor is ahead of {id}");
        }
    }

    /// L8: the report by user is the sum of what was sent.
    async fn check_report(&self, tenant: &Tenant) {
        let events = self.events();
        let Some(first) = events.iter().map(|event| event.occurred_at).min() else { return };
        let last = events.iter().map(|event| event.occurred_at).max().unwrap_or(first);
        let from = Timestamp(first.0.div_euclid(QUARTER) * QUARTER);
        let to = Timestamp(last.0.div_euclid(QUARTER) * QUARTER + QUARTER);
        let rows = tenant.report(&format!("?from={from}&to={to}&granularity=month&groupBy=user")).await;
        let mut reported: BTreeMap<String, (i64, i64)> = BTreeMap::new();
        for row in &rows {
            let slot = reported.entry(text(row, "user")).or_default();
            slot.0 += number(row, "events");
            slot.1 += number(&row["amounts"], "totalTokens");
        }
        let mut expected: BTreeMap<String, (i64, i64)> = BTreeMap::new();
        for event in &events {
            let slot = expected.entry(event.user.clone()).or_default();
            slot.0 += 1;
            slot.1 += event.total();
        }
        assert_eq!(reported, expected, "L8: the report");
    }

    /// L1 and L5 for counters, Q2 for alerts: recounted from what was sent. Holds for quotas that were set before the
    /// events and not changed since.
    async fn check_quotas(&self, database: &mut Database, tenant: &Tenant, zone: &jiff::tz::TimeZone) {
        let limits: Vec<Limit> = tenant.quotas().await.iter().map(Limit::read).collect();
        let events = self.events();
        let mut expected_counters: BTreeMap<(String, i64), i64> = BTreeMap::new();
        for limit in &limits {
            for event in events.iter().filter(|event| limit.scope.covers(&subject(event))) {
                let window = period::window(limit.period, event.occurred_at, zone);
                let amount = limit.metric.of(&amounts(event));
                *expected_counters.entry((limit.id.clone(), window.start.0)).or_default() += amount;
            }
        }
        // A period without usage may have a row of zero.
        let rows = database
            .words("SELECT quota_id, CAST(period_start AS TEXT), CAST(used AS TEXT) FROM counter WHERE used <> 0")
            .await;
        let stored = rows.iter().map(|row| ((row[0].clone(), row[1].parse().unwrap()), row[2].parse().unwrap()));
        expected_counters.retain(|_, used| *used != 0);
        assert_eq!(stored.collect::<BTreeMap<(String, i64), i64>>(), expected_counters, "L1: counters");

        let now = super::events::now();
        for limit in &limits {
            let window = period::window(limit.period, now, zone);
            let used = expected_counters.get(&(limit.id.clone(), window.start.0)).copied().unwrap_or(0);
            // A boundary may pass between the answer and this line, but not for quotas of a day or longer.
            if matches!(limit.period, PeriodKind::Month | PeriodKind::Total) {
                assert_eq!(limit.used, used, "L8: {limit:?}");
            }
        }
        let mut expected_alerts = BTreeSet::new();
        for limit in &limits {
            for ((id, start), used) in expected_counters.iter().filter(|((id, _), _)| *id == limit.id) {
                let reached =
                    |percent: &&i64| i128::from(*used) * 100 >= i128::from(limit.limit) * i128::from(**percent);
                expected_alerts
                    .extend(limit.thresholds.iter().filter(reached).map(|percent| (id.clone(), *start, *percent)));
            }
        }
        let rows =
            database.words("SELECT quota_id, CAST(period_start AS TEXT), CAST(threshold AS TEXT) FROM alert").await;
        let fired: Vec<(String, i64, i64)> =
            rows.iter().map(|row| (row[0].clone(), row[1].parse().unwrap(), row[2].parse().unwrap())).collect();
        assert_eq!(fired.len(), expected_alerts.len(), "Q2: as many alerts as thresholds that were reached");
        assert_eq!(fired.into_iter().collect::<BTreeSet<_>>(), expected_alerts, "Q2: alerts");
    }
}

/// L1: ledger, rollups and lifetime are one sum; every rollup is the sum of its own events.
async fn check_sums(database: &mut Database) {
    let ledger = database
        .numbers(
            "SELECT COUNT(*), CAST(COALESCE(SUM(requests), 0) AS BIGINT), CAST(COALESCE(SUM(prompt_tokens), 0) AS BIGINT), \
             CAST(COALESCE(SUM(completion_tokens), 0) AS BIGINT), CAST(COALESCE(SUM(cost_nano_usd), 0) AS BIGINT) \
             FROM usage_ledger",
        )
        .await;
    let rollups = database
        .numbers(
            "SELECT CAST(COALESCE(SUM(events), 0) AS BIGINT), CAST(COALESCE(SUM(requests), 0) AS BIGINT), \
             CAST(COALESCE(SUM(prompt_tokens), 0) AS BIGINT), CAST(COALESCE(SUM(completion_tokens), 0) AS BIGINT), \
             CAST(COALESCE(SUM(cost_nano_usd), 0) AS BIGINT) FROM usage_rollup",
        )
        .await;
    let lifetime =
        database.numbers("SELECT events, requests, prompt_tokens, completion_tokens, cost_nano_usd FROM books").await;
    assert_eq!(ledger, rollups, "L1: ledger and rollups");
    assert_eq!(ledger, lifetime, "L1: ledger and lifetime");
    let differing = database
        .number(
            "SELECT COUNT(*) FROM usage_rollup AS rollup LEFT JOIN (\
             SELECT occurred_at / 900000000 * 900000000 AS start_at, user_id, group_id, api_key_id, model, provider, \
             COUNT(*) AS events, CAST(SUM(cost_nano_usd) AS BIGINT) AS cost FROM usage_ledger \
             GROUP BY 1, 2, 3, 4, 5, 6) AS recount \
             ON recount.start_at = rollup.start_at AND recount.user_id = rollup.user_id \
             AND recount.group_id = rollup.group_id AND recount.api_key_id = rollup.api_key_id \
             AND recount.model = rollup.model AND recount.provider = rollup.provider \
             WHERE recount.events IS NULL OR recount.events <> rollup.events OR recount.cost <> rollup.cost_nano_usd",
        )
        .await;
    assert_eq!(differing, 0, "L1, L5: rollups that are not the sum of their events");
}

/// A1 and A3: the chain recomputes, and its usage records add up to the ledger.
async fn check_chain(database: &mut Database, tenant: &Tenant) {
    let verdict = tenant.verify().await;
    Tenant::holds(&verdict);
    let payloads = database.words("SELECT payload FROM audit_record WHERE action = 'usage.committed'").await;
    let events: i64 =
        payloads.iter().map(|row| number(&serde_json::from_str(&row[0]).expect("payloads are JSON"), "events")).sum();
    assert_eq!(events, database.number("SELECT COUNT(*) FROM usage_ledger").await, "A3: usage records");
    let alerts = database.number("SELECT COUNT(*) FROM audit_record WHERE action = 'alert.fired'").await;
    assert_eq!(alerts, database.number("SELECT COUNT(*) FROM alert").await, "A3: alert records");
}

impl Limit {
    fn read(quota: &Value) -> Limit {
        let metric = Metric::from_name(&text(quota, "metric")).expect("a metric");
        let amount = |name: &str| match metric {
            Metric::Cost => text(quota, name).parse::<NanoUsd>().expect("money").0,
            _ => number(quota, name),
        };
        let scope_id = quota["scope"]["id"].as_str().unwrap_or_default();
        let thresholds = quota["thresholds"].as_array().expect("a list").iter().map(|at| at.as_i64().expect("percent"));
        Limit {
            id: text(quota, "id"),
            scope: Scope::from_parts(&text(&quota["scope"], "type"), scope_id).expect("a scope"),
            metric,
            period: PeriodKind::from_name(&text(quota, "period")).expect("a period"),
            limit: amount("limit"),
            thresholds: thresholds.collect(),
            used: amount("used"),
        }
    }
}

fn subject(event: &Envelope) -> Subject {
    Subject {
        user: event.user.clone(),
        group: event.group.clone(),
        api_key: String::new(),
        model: event.model.clone(),
        provider: event.provider.clone(),
    }
}

fn amounts(event: &Envelope) -> Amounts {
    Amounts {
        requests: 1,
        prompt_tokens: event.prompt_tokens,
        completion_tokens: event.completion_tokens,
        cost: NanoUsd(event.cost),
        ..Amounts::default()
    }
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}")).to_owned()
}

fn number(value: &Value, name: &str) -> i64 {
    value[name].as_i64().unwrap_or_else(|| panic!("no {name} in {value}"))
}
