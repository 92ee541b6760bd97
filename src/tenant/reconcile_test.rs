//! A tenant's books compared with a gateway's, from the rows of both to what people are told, on both engines.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusBuilder;

use super::guess::Guess;
use super::message::{ChangeRefused, GatewayBatch, GatewayReadings, Permits, TreatFinding};
use super::reconcile::{self, LIMITS, Limits};
use super::work::{Reply, Unit, Work};
use super::writer;
use crate::domain::adjustment::Adjustment;
use crate::domain::amount::NanoUsd;
use crate::domain::books::Books;
use crate::domain::ids::FindingId;
use crate::domain::notice::AlertSubject;
use crate::domain::period::{PeriodKind, Window};
use crate::domain::quota::{Metric, Scope};
use crate::domain::reconcile::finding::{Cause, Finding, Status};
use crate::domain::reconcile::lifecycle::Age;
use crate::domain::reconcile::meter::window_start;
use crate::domain::reconcile::pass::Treatment;
use crate::domain::reconcile::reading::{
    GatewayRequest, Interruption, InterruptionReason, MeterReading, Role, ServedBy, Source,
};
use crate::domain::reconcile::report::{FindingQuery, WindowQuery};
use crate::domain::reconcile::{Proof, Verdict};
use crate::domain::request::{Answer, Idempotency, Request};
use crate::domain::time::{MICROS_PER_DAY, MICROS_PER_MINUTE, MICROS_PER_SECOND, Timestamp};
use crate::domain::usage::{Amounts, Kind, Subject, UsageEvent};
use crate::store::database::{Connection, Store};
use crate::store::tests::harness::{House, NOW, event, quota_of, set_quotas};
use crate::store::{load, reconciliation, usage};

crate::store::tests::conformance!(
    a_clean_tenant_stays_clean,
    too_many_to_be_joined_are_compared_by_their_counts,
    a_source_that_nobody_listens_to_any_more_proves_nothing,
    what_is_missing_on_either_side_is_found_and_resolved_when_it_comes,
    a_pass_that_is_taken_twice_changes_nothing_twice,
    a_drift_that_persists_alerts_once_and_is_over_when_it_is_dealt_with,
    a_drift_that_is_found_in_the_wrong_order_alerts_all_the_same,
    a_drift_that_is_found_in_the_wrong_order_alerts_however_idle_the_time_between_was,
    a_person_settles_a_finding_with_an_adjusting_entry,
    an_adjusting_entry_takes_no_sum_below_zero,
    meters_that_count_more_than_the_ledger_are_told,
    what_the_limiter_lost_is_resolved_when_it_counts_again,
    a_meter_that_is_told_late_has_its_window_judged_again,
    a_long_request_is_joined_where_it_ended,
    lists_of_findings_and_windows_are_complete,
    what_is_old_is_forgotten,
    time_in_which_nothing_happened_is_skipped,
    what_a_pass_finds_is_counted,
);

const EVERYTHING: Window = Window { start: Timestamp(0), end: Timestamp::MAX };

/// One tenant with its writer, at a time of its own.
struct Side {
    _store: Store,
    connection: Connection,
    books: Arc<Books>,
    guess: Guess,
    now: Timestamp,
    /// Start of the first window that is compared.
    first: Timestamp,
    limits: Limits,
}

impl Side {
    /// A tenant whose gateway has begun to speak one window before the first one.
    async fn of(house: &House) -> Side {
        let (store, connection, books) = house.owner().await;
        let first = window_start(NOW, &books.comparison.terms);
        let books = Arc::new(books);
        let mut side =
            Side { _store: store, connection, books, guess: Guess::default(), now: NOW, first, limits: LIMITS };
        let early = first.plus_micros(-MICROS_PER_MINUTE);
        side.now = early;
        side.pass_on(&["early"], early).await;
        side
    }

    /// An instant in the numbered window.
    fn at(&self, window: i64, seconds: i64) -> Timestamp {
        let width = self.books.comparison.terms.window_micros;
        self.first.plus_micros(window * width + seconds * MICROS_PER_SECOND)
    }

    async fn work(&mut self, work: Vec<Work>) -> Vec<Reply> {
        let unit = Unit { books: self.books.clone(), work };
        let written = writer::write(&mut self.connection, &mut self.guess, unit).await.unwrap();
        self.books = written.books;
        written.answers
    }

    async fn pass_on(&mut self, ids: &[&str], at: Timestamp) -> Vec<bool> {
        self.keep(ids.iter().map(|id| request(id, at)).collect()).await
    }

    async fn keep(&mut self, requests: Vec<GatewayRequest>) -> Vec<bool> {
        let batch = GatewayBatch { requests, request_id: "r".into(), now: self.now, permits: Permits::none() };
        let (reply, _) = ractor::concurrency::oneshot();
        let answers = self.work(vec![Work::GatewayRequests { batch, reply: reply.into() }]).await;
        match answers.into_iter().next() {
            Some(Reply::Requests { new, .. }) => new,
            other => panic!("{other:?}"),
        }
    }

    async fn read_meter(&mut self, value: i64, at: Timestamp) {
        let reading = MeterReading {
            source: Source::Metrics,
            series: "node-1".into(),
            epoch: "one".into(),
            value,
            at,
            from_zero: true,
            lower_bound: false,
        };
        self.read_meters(vec![reading], Vec::new()).await;
    }

    async fn read_meters(&mut self, readings: Vec<MeterReading>, interruptions: Vec<Interruption>) {
        self.now = readings.iter().map(|reading| reading.at).fold(self.now, Timestamp::max);
        let readings = GatewayReadings { readings, interruptions, now: self.now, permits: Permits::none() };
        let (reply, _) = ractor::concurrency::oneshot();
        self.work(vec![Work::GatewayReadings { readings, reply: reply.into() }]).await;
    }

    async fn count(&mut self, ids: &[&str], at: Timestamp) {
        self.now = self.now.max(at);
        let events = ids.iter().map(|id| call(id, at)).collect();
        let work = super::writer_test::record_at(events, self.now);
        self.work(vec![work]).await;
    }

    /// The next pass, `minutes` after the end of the numbered window.
    async fn compare(&mut self, window: i64, minutes: i64) {
        self.now = self.at(window + 1, minutes * 60);
        let pass = reconcile::pass_within(self.limits, &mut self.connection, &self.books, self.now).await.unwrap();
        self.work(vec![Work::Reconcile { pass, now: self.now }]).await;
        // What is in memory is what is stored.
        let stored = load::read_books(&mut self.connection, self.books.tenant).await.unwrap();
        assert_eq!(stored.comparison.progress, self.books.comparison.progress);
        assert_eq!((stored.lifetime, stored.head), (self.books.lifetime, self.books.head));
    }

    async fn findings(&mut self) -> Vec<Finding> {
        let query = FindingQuery { status: None, cause: None, after: None, limit: 100 };
        reconciliation::findings(&mut self.connection, &query).await.unwrap().items
    }

    /// (cause, status, count) of every finding.
    async fn told(&mut self) -> Vec<(Cause, Status, i64)> {
        let findings = self.findings().await;
        findings.iter().map(|one| (one.found.cause, one.status, one.found.count)).collect()
    }

    async fn verdicts(&mut self) -> Vec<(Proof, Verdict, i64, i64)> {
        let query = WindowQuery { window: EVERYTHING, proof: None, verdict: None, after: None, limit: 100 };
        let page = reconciliation::windows(&mut self.connection, &query).await.unwrap();
        page.items.iter().rev().map(|(one, _)| (one.proof, one.verdict, one.gateway, one.ledger)).collect()
    }

    async fn treat(&mut self, change: TreatFinding) -> Result<Answer<Finding>, ChangeRefused> {
        let (reply, _) = ractor::concurrency::oneshot();
        let answers = self.work(vec![Work::Treat { change: Box::new(change), reply: reply.into() }]).await;
        match answers.into_iter().next() {
            Some(Reply::Treated { answer, .. }) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn treatment(&self, finding: FindingId, treatment: Treatment, adjustment: Option<Adjustment>) -> TreatFinding {
        let idempotency = Some(Idempotency { key: format!("key {treatment:?}"), body_hash: [1; 32] });
        let request = Request { actor: "platform".into(), request_id: "r-9".into(), idempotency };
        let render = |finding: &Finding| finding.status.name().to_owned();
        TreatFinding { finding, treatment, reason: "because".into(), adjustment, request, now: self.now, render }
    }

    async fn actions(&mut self) -> Vec<String> {
        let sql = "SELECT action FROM audit_record WHERE action LIKE 'finding.%' ORDER BY seq";
        let rows = self.connection.fetch(sql, &[]).await.unwrap();
        rows.iter().map(|row| row.text(0).unwrap()).collect()
    }

    /// L1: the sums over the ledger are those in the books and in the rollups.
    async fn assert_sums(&mut self) {
        for table in ["usage_ledger", "usage_rollup"] {
            let sql = if table == "usage_ledger" {
                "SELECT CAST(SUM(requests) AS BIGINT), CAST(SUM(prompt_tokens) AS BIGINT),
                    CAST(SUM(cost_nano_usd) AS BIGINT) FROM usage_ledger"
            } else {
                "SELECT CAST(SUM(requests) AS BIGINT), CAST(SUM(prompt_tokens) AS BIGINT),
                    CAST(SUM(cost_nano_usd) AS BIGINT) FROM usage_rollup"
            };
            let rows = self.connection.fetch(sql, &[]).await.unwrap();
            let amounts = &self.books.lifetime.amounts;
            let sums = [0, 1, 2].map(|at| rows[0].int(at).unwrap());
            assert_eq!(sums, [amounts.requests, amounts.prompt_tokens, amounts.cost.0], "{table}");
        }
    }
}

fn request(id: &str, at: Timestamp) -> GatewayRequest {
    GatewayRequest {
        request_id: format!("request-{id}"),
        call_id: format!("call-{id}"),
        started_at: at,
        duration_micros: MICROS_PER_SECOND,
        role: Role::Own,
        route: "chat".into(),
        status: 200,
        served_by: ServedBy::Upstream,
        authenticated: true,
        limited: true,
        claims_other: false,
        counted: None,
    }
}

fn call(id: &str, at: Timestamp) -> UsageEvent {
    let details = serde_json::json!({ "callId": format!("call-{id}"), "correlationId": format!("request-{id}") });
    UsageEvent { details: details.to_string(), flags: Default::default(), ..event(id, "ada", at, 10) }
}

async fn a_clean_tenant_stays_clean(house: &House) {
    let mut side = Side::of(house).await;
    let ids = ["a", "b", "c"];
    let at = side.at(0, 10);
    side.pass_on(&ids, at).await;
    side.count(&ids, at).await;
    side.compare(0, 4).await;
    assert_eq!(side.verdicts().await, [(Proof::Requests, Verdict::Matched, 3, 3)]);
    assert_eq!(side.told().await, []);
    let progress = side.books.comparison.progress.unwrap();
    assert_eq!((progress.settled_until, progress.proven(Proof::Requests)), (side.at(1, 0), Some(side.at(1, 0))));
    assert_eq!(progress.proven(Proof::Attempts), None);
    let overview = reconcile::overview(&mut side.connection, Some(progress), side.now).await.unwrap();
    assert_eq!((overview.last.len(), overview.open.len()), (1, 0));
}

async fn too_many_to_be_joined_are_compared_by_their_counts(house: &House) {
    let mut side = Side::of(house).await;
    side.limits = Limits { joined: 30, counted: 60 };
    let ids = |window: usize, count: usize| (0..count).map(|number| format!("{window}-{number}")).collect::<Vec<_>>();
    side.read_meter(0, side.at(-1, 290)).await;
    let mut value = 0;
    // Of these windows the gateway passed on 40, 60, 20 and 80; the ledger lacks 20 of the second.
    for (window, passed_on, counted) in [(0, 40, 40), (1, 60, 40), (2, 20, 20), (3, 80, 80)] {
        let (at, ids) = (side.at(window, 150), ids(window as usize, passed_on));
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        side.pass_on(&ids, at).await;
        side.count(&ids[..counted], at).await;
        value += passed_on as i64;
        side.read_meter(value, side.at(window, 290)).await;
    }
    side.compare(3, 4).await;
    let verdicts = side.verdicts().await;
    let of = |proof: Proof| -> Vec<Verdict> { verdicts.iter().filter(|one| one.0 == proof).map(|one| one.1).collect() };
    use Verdict::{Drift, Matched, Unproven};
    assert_eq!(of(Proof::Requests), [Unproven, Unproven, Matched, Unproven], "{verdicts:?}");
    // The last one is more than is counted.
    assert_eq!(of(Proof::Cumulative), [Matched, Drift, Matched, Unproven], "{verdicts:?}");
    assert_eq!(side.told().await, [(Cause::LostInLedger, Status::Open, 20)]);
    let query = WindowQuery { window: EVERYTHING, proof: None, verdict: Some(Unproven), after: None, limit: 100 };
    let unproven = reconciliation::windows(&mut side.connection, &query).await.unwrap().items;
    assert!(unproven.iter().all(|(judged, _)| judged.reasons == [InterruptionReason::TooMany]), "{unproven:?}");
}

async fn a_source_that_nobody_listens_to_any_more_proves_nothing(house: &House) {
    let mut side = Side::of(house).await;
    side.read_meter(0, side.at(-1, 290)).await;
    let mut books = Books::clone(&side.books);
    books.comparison.terms.listened_to = [true, false, false];
    side.books = Arc::new(books);
    let (ids, at) = (["a", "b", "c", "d", "e"], side.at(0, 10));
    side.pass_on(&ids, at).await;
    side.count(&ids, at).await;
    side.compare(0, 4).await;
    assert_eq!(side.verdicts().await, [(Proof::Requests, Verdict::Matched, 5, 5)]);
    assert_eq!(side.told().await, []);
}

async fn what_is_missing_on_either_side_is_found_and_resolved_when_it_comes(house: &House) {
    let mut side = Side::of(house).await;
    let at = side.at(0, 100);
    side.pass_on(&["a", "b", "lost"], at).await;
    side.count(&["a", "b"], at).await;
    side.pass_on(&["d"], side.at(1, 100)).await;
    let later = side.at(1, 100);
    side.count(&["d", "past"], later).await;
    side.compare(1, 4).await;
    let told = side.told().await;
    assert_eq!(told, [(Cause::BypassedGateway, Status::Open, 1), (Cause::LostInLedger, Status::Open, 1)]);
    let found = side.findings().await;
    assert_eq!(found[1].found.evidence.request_ids, ["request-lost"]);
    assert_eq!(found[0].found.evidence.call_ids, ["call-past"]);
    assert_eq!(side.actions().await, ["finding.opened", "finding.opened"]);
    let open = reconciliation::count_open(&mut side.connection, side.now).await.unwrap();
    assert_eq!(open[&Cause::LostInLedger], [0, 1, 2, 3].map(|at| (Age::ALL[at], i64::from(at == 0))));
    let old = side.now.plus_micros(8 * MICROS_PER_DAY);
    let open = reconciliation::count_open(&mut side.connection, old).await.unwrap();
    assert_eq!(open[&Cause::LostInLedger][2], (Age::UnderAMonth, 1));

    // Both come late. Their windows are compared again, without anybody asking.
    side.count(&["lost"], at).await;
    side.pass_on(&["past"], later).await;
    let again = side.books.comparison.progress.unwrap().again_at.unwrap();
    assert!(again <= side.now.plus_micros(side.books.comparison.terms.settle_micros), "{again}");
    side.compare(2, 4).await;
    let statuses: Vec<Status> = side.told().await.iter().map(|(_, status, _)| *status).collect();
    assert_eq!(statuses, [Status::Resolved, Status::Resolved]);
    assert_eq!(side.books.comparison.progress.unwrap().again_at, None);
    assert_eq!(side.actions().await[2..], ["finding.resolved", "finding.resolved"]);
}

async fn what_a_pass_finds_is_counted(house: &House) {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let mut side = Side::of(house).await;
    let at = side.at(0, 100);
    side.pass_on(&["a", "lost"], at).await;
    side.count(&["a"], at).await;
    side.compare(0, 4).await;
    side.count(&["lost"], at).await;
    side.compare(1, 4).await;
    let text = recorder.handle().render();
    for line in [
        "platform_api_reconcile_windows_total{proof=\"requests\",verdict=\"drift\"} 1",
        "platform_api_reconcile_windows_total{proof=\"requests\",verdict=\"matched\"} 1",
        "platform_api_reconcile_findings_total{cause=\"lostInLedger\",status=\"open\"} 1",
        "platform_api_reconcile_findings_total{cause=\"lostInLedger\",status=\"resolved\"} 1",
    ] {
        assert!(text.lines().any(|told| told == line), "{line}\n{text}");
    }
}

async fn a_pass_that_is_taken_twice_changes_nothing_twice(house: &House) {
    let mut side = Side::of(house).await;
    let at = side.at(0, 100);
    side.pass_on(&["a", "lost"], at).await;
    side.count(&["a"], at).await;
    side.now = side.at(1, 240);
    let pass = reconcile::pass(&mut side.connection, &side.books, side.now).await.unwrap();
    // The process died before the commit: nothing has changed, and the same pass comes out again.
    let again = reconcile::pass(&mut side.connection, &side.books, side.now).await.unwrap();
    assert_eq!(pass, again);
    for one in [pass, again] {
        side.work(vec![Work::Reconcile { pass: one, now: side.now }]).await;
    }
    assert_eq!(side.told().await, [(Cause::LostInLedger, Status::Open, 1)]);
    assert_eq!(side.actions().await, ["finding.opened"]);
}

/// The second window is found first, because what shows the first one comes late.
async fn a_drift_that_is_found_in_the_wrong_order_alerts_all_the_same(house: &House) {
    found_in_the_wrong_order(house, 1).await;
}

async fn a_drift_that_is_found_in_the_wrong_order_alerts_however_idle_the_time_between_was(house: &House) {
    found_in_the_wrong_order(house, 12).await;
}

/// Windows with requests are so far `apart`.
async fn found_in_the_wrong_order(house: &House, apart: i64) {
    let mut side = Side::of(house).await;
    for (window, lost) in [(0, false), (apart, true), (2 * apart, false)] {
        let at = side.at(window, 100);
        let id = format!("a-{window}");
        side.pass_on(&[&id], at).await;
        side.count(&[&id], at).await;
        if lost {
            side.pass_on(&["lost-1"], at).await;
        }
        side.compare(window, 4).await;
        assert_eq!(side.books.firing, []);
    }
    let late = side.at(0, 200);
    side.pass_on(&["lost-0"], late).await;
    side.compare(2 * apart + 1, 4).await;
    let AlertSubject::ReconciliationDrift(drift) = side.books.firing[0].subject.clone() else { panic!("no drift") };
    assert_eq!((drift.cause.as_str(), drift.window_start, drift.windows), ("lostInLedger", side.at(0, 0), 2));
}

async fn a_person_settles_a_finding_with_an_adjusting_entry(house: &House) {
    let mut side = Side::of(house).await;
    let daily = quota_of(Scope::Tenant, Metric::PromptTokens, PeriodKind::Day, 30);
    side.books = Arc::new(set_quotas(&mut side.connection, &side.books, vec![daily], side.now).await);
    let at = side.at(0, 100);
    side.pass_on(&["a"], at).await;
    side.count(&["a", "again", "past"], at).await;
    assert_eq!(side.books.firing.len(), 3, "thirty tokens of thirty");
    side.compare(0, 4).await;
    let finding = side.findings().await[0].clone();
    assert_eq!(finding.found.count, 2);

    let answer = side.treat(side.treatment(finding.id, Treatment::Acknowledge, None)).await.unwrap();
    assert!(matches!(answer, Answer::Fresh(finding) if finding.status == Status::Acknowledged));
    let twice = side.treatment(finding.id, Treatment::Acknowledge, None);
    assert_eq!(side.treat(twice.clone()).await, Ok(Answer::Replayed("acknowledged".into())));
    let other = Idempotency { key: "another".into(), body_hash: [2; 32] };
    let request = Request { idempotency: Some(other), ..twice.request.clone() };
    let refused = side.treat(TreatFinding { request, ..twice }).await;
    assert_eq!(refused, Err(ChangeRefused::FindingClosed { status: Status::Acknowledged }));

    let amounts = Amounts { requests: -2, prompt_tokens: -20, cost: NanoUsd(-30_000), ..Amounts::default() };
    let subject = Subject { user: "ada".into(), ..Subject::default() };
    let adjustment = Adjustment { amounts, occurred_at: at, subject };
    let position = side.books.next_position;
    let settle = side.treatment(finding.id, Treatment::Settle, Some(adjustment));
    let Ok(Answer::Fresh(settled)) = side.treat(settle.clone()).await else { panic!("not settled") };
    assert_eq!((settled.status, settled.adjustment), (Status::Settled, position));
    assert_eq!((settled.changed_by.as_str(), settled.reason.as_str()), ("platform", "because"));
    assert_eq!(side.treat(settle).await, Ok(Answer::Replayed("settled".into())), "booked once");
    assert_eq!(side.books.lifetime.amounts.prompt_tokens, 10);
    assert_eq!(side.books.standings(side.now)[0].used, 10);
    assert_eq!(side.books.firing, [], "the counter fell below every threshold");
    side.assert_sums().await;
    let query =
        crate::domain::report::LedgerQuery { before: None, limit: 1, window: None, subject: Subject::default() };
    let row = usage::page(&mut side.connection, &query).await.unwrap().items.remove(0);
    assert_eq!((row.event.kind, row.event.amounts), (Kind::Adjustment, amounts));
    assert_eq!(row.event.event_id, format!("adjustment:{}:{position}", finding.id));
    assert!(row.event.details.contains("because") && row.event.details.contains("platform"));

    // The window is compared as it was: an adjusting entry is no call.
    let before = side.verdicts().await;
    side.now = side.at(1, 3_600);
    let pass = reconcile::pass(&mut side.connection, &side.books, side.now).await.unwrap();
    side.work(vec![Work::Reconcile { pass, now: side.now }]).await;
    assert_eq!(side.verdicts().await, before);
    assert_eq!(side.told().await[0].1, Status::Settled);
    assert_eq!(side.actions().await, ["finding.opened", "finding.acknowledged", "finding.settled"]);
    // And a new owner finds the same sums.
    let stored = load::read_books(&mut side.connection, side.books.tenant).await.unwrap();
    assert_eq!(stored.standings(side.now), side.books.standings(side.now));
}

async fn an_adjusting_entry_takes_no_sum_below_zero(house: &House) {
    let mut side = Side::of(house).await;
    let of_bob = quota_of(Scope::User("bob".into()), Metric::PromptTokens, PeriodKind::Total, 30);
    side.books = Arc::new(set_quotas(&mut side.connection, &side.books, vec![of_bob], side.now).await);
    let at = side.at(0, 100);
    side.pass_on(&["a"], at).await;
    side.count(&["a", "past"], at).await;
    side.compare(0, 4).await;
    let finding = side.findings().await[0].clone();
    let entry = |prompt_tokens: i64, user: &str, occurred_at| Adjustment {
        amounts: Amounts { prompt_tokens, ..Amounts::default() },
        occurred_at,
        subject: Subject { user: user.into(), ..Subject::default() },
    };
    let (head, ancient) = (side.books.head, side.now.plus_micros(-500 * MICROS_PER_DAY));
    for (adjustment, refused) in [
        (entry(-21, "ada", at), ChangeRefused::BelowZero),
        // The tenant has twenty, but Bob has none of them.
        (entry(-1, "bob", at), ChangeRefused::BelowZero),
        (entry(1, "ada", ancient), ChangeRefused::AdjustmentRefused(crate::domain::usage::Refusal::TooOld)),
        (entry(i64::MAX, "ada", at), ChangeRefused::AdjustmentRefused(crate::domain::usage::Refusal::AmountOverflow)),
    ] {
        let settle = side.treatment(finding.id, Treatment::Settle, Some(adjustment));
        assert_eq!(side.treat(settle).await, Err(refused));
    }
    assert_eq!(side.books.head, head, "nothing was written");
    let unknown = FindingId(uuid::Uuid::nil());
    let settle = side.treatment(unknown, Treatment::Settle, None);
    assert_eq!(side.treat(settle).await, Err(ChangeRefused::UnknownFinding));
    let settle = side.treatment(finding.id, Treatment::Settle, Some(entry(-20, "ada", at)));
    assert!(side.treat(settle).await.is_ok(), "to nothing, and not below");
    side.assert_sums().await;
}

async fn meters_that_count_more_than_the_ledger_are_told(house: &House) {
    let mut side = Side::of(house).await;
    side.read_meter(0, side.at(-1, 290)).await;
    let many: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    let ids: Vec<&str> = many.iter().map(String::as_str).collect();
    let at = side.at(0, 100);
    side.pass_on(&ids, at).await;
    side.count(&ids, at).await;
    side.read_meter(40, side.at(0, 200)).await;
    // In the next window the gateway passes on much more than its log and the ledger have.
    side.read_meter(40, side.at(0, 290)).await;
    side.read_meter(140, side.at(1, 200)).await;
    side.compare(1, 4).await;
    let verdicts = side.verdicts().await;
    let of = |proof: Proof| -> Vec<Verdict> { verdicts.iter().filter(|one| one.0 == proof).map(|one| one.1).collect() };
    assert_eq!(of(Proof::Cumulative), [Verdict::Matched, Verdict::Drift], "{verdicts:?}");
    assert!(side.told().await.iter().any(|one| one.0 == Cause::LostInLedger), "{:?}", side.told().await);
    let last = reconciliation::last_judged(&mut side.connection).await.unwrap();
    assert_eq!(last.len(), 2);
}

async fn what_the_limiter_lost_is_resolved_when_it_counts_again(house: &House) {
    let mut side = Side::of(house).await;
    let limiter = |value: i64, at: Timestamp| MeterReading {
        source: Source::Limiter,
        series: "*/acme/day".into(),
        epoch: "1795132800000".into(),
        value,
        at,
        from_zero: true,
        lower_bound: false,
    };
    let ids = ["a", "b", "c"];
    side.read_meters(vec![limiter(0, side.at(-1, 290))], Vec::new()).await;
    for window in 0..3 {
        let of_window = ids.map(|id| format!("{id}-{window}"));
        let of_window: Vec<&str> = of_window.iter().map(String::as_str).collect();
        let at = side.at(window, 100);
        side.pass_on(&of_window, at).await;
        side.count(&of_window, at).await;
        let reset = Interruption {
            source: Source::Limiter,
            from: side.at(0, 90),
            until: side.at(0, 120),
            reason: InterruptionReason::LimiterReset,
        };
        let interruptions = if window == 0 { vec![reset] } else { Vec::new() };
        side.read_meters(vec![limiter(3 * window + 3, side.at(window, 290))], interruptions).await;
        side.compare(window, 4).await;
        let status = if window == 0 { Status::Open } else { Status::Resolved };
        assert_eq!(side.told().await, [(Cause::LimiterReset, status, 3)], "{window}");
    }
    // Its own window is looked at again, and is as unproven as it was: that is no news.
    side.compare(20, 4).await;
    assert_eq!(side.told().await, [(Cause::LimiterReset, Status::Resolved, 3)]);
    assert_eq!(side.actions().await, ["finding.opened", "finding.resolved"]);
}

async fn a_meter_that_is_told_late_has_its_window_judged_again(house: &House) {
    let mut side = Side::of(house).await;
    side.read_meter(0, side.at(-1, 290)).await;
    let many: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    let ids: Vec<&str> = many.iter().map(String::as_str).collect();
    let at = side.at(0, 100);
    side.count(&ids, at).await;
    side.pass_on(&ids, at).await;
    side.compare(0, 4).await;
    // Its log says more than its counts.
    assert_eq!(side.verdicts().await[1], (Proof::Cumulative, Verdict::Unproven, 0, 40));
    // The tenant could not be reached when it was read.
    side.read_meter(40, side.at(0, 290)).await;
    side.compare(1, 4).await;
    assert_eq!(side.verdicts().await[1], (Proof::Cumulative, Verdict::Matched, 40, 40));
    // So it is when a time in which nothing could be known is told too late.
    let gap = Interruption {
        source: Source::Metrics,
        from: side.at(-1, 290),
        until: side.at(1, 10),
        reason: InterruptionReason::Gap,
    };
    side.read_meters(Vec::new(), vec![gap]).await;
    side.compare(2, 4).await;
    assert_eq!(side.verdicts().await[1], (Proof::Cumulative, Verdict::Unproven, 40, 40));
}

async fn a_long_request_is_joined_where_it_ended(house: &House) {
    let mut side = Side::of(house).await;
    let (began, ended) = (side.at(0, 100), side.at(3, 100));
    let long = GatewayRequest { duration_micros: ended.0 - began.0, ..request("long", began) };
    side.now = ended;
    side.keep(vec![long]).await;
    side.count(&["long"], ended).await;
    side.compare(3, 4).await;
    assert_eq!(side.told().await, []);
    assert!(side.verdicts().await.iter().all(|one| one.1 != Verdict::Drift), "{:?}", side.verdicts().await);
}

async fn lists_of_findings_and_windows_are_complete(house: &House) {
    let mut side = Side::of(house).await;
    for window in 0..5 {
        let at = side.at(window, 100);
        side.pass_on(&[&format!("lost-{window}"), &format!("a-{window}")], at).await;
        side.count(&[&format!("a-{window}"), &format!("past-{window}")], at).await;
    }
    side.compare(4, 4).await;
    let all = side.findings().await;
    assert_eq!(all.len(), 10);
    let mut query = FindingQuery { status: Some(Status::Open), cause: None, after: None, limit: 3 };
    let mut found = Vec::new();
    loop {
        let page = reconciliation::findings(&mut side.connection, &query).await.unwrap();
        found.extend(page.items);
        match page.next {
            Some(next) => query.after = Some(next),
            None => break,
        }
    }
    assert_eq!(found, all);
    let query = FindingQuery { status: None, cause: Some(Cause::LostInLedger), after: None, limit: 100 };
    assert_eq!(reconciliation::findings(&mut side.connection, &query).await.unwrap().items.len(), 5);
    let query = FindingQuery { status: Some(Status::Settled), ..query };
    assert_eq!(reconciliation::findings(&mut side.connection, &query).await.unwrap().items, []);
    for finding in &all {
        assert_eq!(reconciliation::finding(&mut side.connection, finding.id).await.unwrap().as_ref(), Some(finding));
    }
    let window = Window { start: side.at(1, 0), end: side.at(4, 0) };
    let (proof, verdict) = (Some(Proof::Requests), Some(Verdict::Drift));
    let mut query = WindowQuery { window, proof, verdict, after: None, limit: 2 };
    let mut starts = Vec::new();
    loop {
        let page = reconciliation::windows(&mut side.connection, &query).await.unwrap();
        starts.extend(page.items.iter().map(|(judged, _)| judged.window.start));
        match page.next {
            Some(next) => query.after = Some(next),
            None => break,
        }
    }
    assert_eq!(starts, [side.at(3, 0), side.at(2, 0), side.at(1, 0)]);
    let since = side.at(2, 0);
    let open = reconciliation::open_findings(&mut side.connection, Cause::LostInLedger, since, 10).await;
    assert_eq!(open.unwrap().len(), 3);
    let alert = crate::domain::ids::AlertId(uuid::Uuid::nil());
    assert!(!reconciliation::has_fired(&mut side.connection, alert).await.unwrap());
}

async fn what_is_old_is_forgotten(house: &House) {
    let mut side = Side::of(house).await;
    let at = side.at(0, 100);
    side.pass_on(&["a", "b"], at).await;
    side.count(&["a"], at).await;
    side.compare(0, 4).await;
    // Ten weeks later something happens again.
    let weeks = 70 * 24 * 12;
    let at = side.at(weeks, 100);
    side.now = at;
    side.pass_on(&["z"], at).await;
    side.count(&["z"], at).await;
    side.compare(weeks, 4).await;
    let rows = side.connection.fetch("SELECT request_id FROM gateway_request", &[]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.text(0).unwrap()).collect::<Vec<_>>(), ["request-z"]);
    assert_eq!(side.verdicts().await, [(Proof::Requests, Verdict::Matched, 1, 1)]);
    assert_eq!(side.told().await, [(Cause::LostInLedger, Status::Open, 1)], "a finding stays");
}

async fn time_in_which_nothing_happened_is_skipped(house: &House) {
    let mut side = Side::of(house).await;
    let at = side.at(200, 100);
    side.now = at;
    assert_eq!(side.books.comparison.next(side.books.latest_event_at), None, "nothing to compare");
    side.pass_on(&["a"], at).await;
    side.count(&["a"], at).await;
    assert!(side.books.comparison.next(side.books.latest_event_at).is_some());
    side.compare(200, 4).await;
    assert_eq!(side.verdicts().await, [(Proof::Requests, Verdict::Matched, 1, 1)]);
    let progress = side.books.comparison.progress.unwrap();
    assert_eq!((progress.settled_until, progress.proven(Proof::Requests)), (side.at(201, 0), Some(side.at(201, 0))));
    assert_eq!(side.books.comparison.next(side.books.latest_event_at), None);
}

async fn a_drift_that_persists_alerts_once_and_is_over_when_it_is_dealt_with(house: &House) {
    let mut side = Side::of(house).await;
    for window in 0..4 {
        let at = side.at(window, 100);
        side.pass_on(&[&format!("lost-{window}"), &format!("a-{window}")], at).await;
        side.count(&[&format!("a-{window}")], at).await;
        side.compare(window, 4).await;
        // The second window in a row alerts, and the others are told by the same alert.
        assert_eq!(side.books.firing.len(), usize::from(window > 0), "{window}");
    }
    let AlertSubject::ReconciliationDrift(drift) = side.books.firing[0].subject.clone() else { panic!("no drift") };
    let told = (drift.cause.as_str(), drift.window_start, drift.windows, drift.difference);
    assert_eq!(told, ("lostInLedger", side.at(0, 0), 2, 2));
    let (first, findings) = (side.books.firing[0].id, side.findings().await);
    for (at, finding) in findings.iter().enumerate() {
        let idempotency = Idempotency { key: format!("key {at}"), body_hash: [1; 32] };
        let mut explain = side.treatment(finding.id, Treatment::Explain, None);
        explain.request.idempotency = Some(idempotency);
        side.treat(explain).await.unwrap();
        assert_eq!(side.books.firing.len(), usize::from(at < 3));
    }
    let due = crate::store::notice::due(&mut side.connection, side.now, 10).await.unwrap();
    assert!(due.len() >= 2 && due.iter().all(|one| one.alert.id == first), "{due:?}");

    // The same cause again is another alert.
    for window in 4..6 {
        let at = side.at(window, 100);
        side.pass_on(&[&format!("lost-{window}")], at).await;
        side.compare(window, 4).await;
    }
    assert_eq!(side.books.firing.len(), 1);
    assert_ne!(side.books.firing[0].id, first);
    // What was missing comes: all is well.
    for window in 4..6 {
        let at = side.at(window, 100);
        side.count(&[&format!("lost-{window}")], at).await;
    }
    side.compare(7, 4).await;
    assert_eq!(side.books.firing, []);
}
