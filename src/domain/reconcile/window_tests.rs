//! Each rule of the comparison by itself.

use super::finding::{Cause, Difference, EVIDENCE_IDS_MAX, Evidence, Found};
use super::reading::{
    EVERY_ROUTE, GatewayCount, GatewayRequest, Interruption, InterruptionReason, Role, ServedBy, Source,
};
use super::window::{Books, Judged, LedgerCall, Metered, compare, compare_after};
use super::{Proof, Terms, Verdict};
use crate::domain::amount::NanoUsd;
use crate::domain::period::Window;
use crate::domain::time::{MICROS_PER_MINUTE, MICROS_PER_SECOND, Timestamp};
use crate::domain::usage::{Amounts, Flags, Status};

/// A window of five minutes at noon, and what is in it. Times are seconds from its start.
struct Scene {
    requests: Vec<GatewayRequest>,
    calls: Vec<LedgerCall>,
    metered: Vec<Metered>,
    interruptions: Vec<Interruption>,
    sources: Vec<Source>,
    limited_routes: Vec<String>,
}

fn noon() -> Timestamp {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

fn window() -> Window {
    Window { start: noon(), end: noon().plus_micros(Terms::default().window_micros) }
}

fn at(second: i64) -> Timestamp {
    noon().plus_micros(second * MICROS_PER_SECOND)
}

/// A request of two seconds that the upstream answered.
fn request(id: &str, second: i64) -> GatewayRequest {
    GatewayRequest {
        request_id: format!("r-{id}"),
        call_id: format!("c-{id}"),
        started_at: at(second),
        duration_micros: 2 * MICROS_PER_SECOND,
        role: Role::Own,
        route: "chat".to_owned(),
        status: 200,
        served_by: ServedBy::Upstream,
        authenticated: true,
        limited: true,
        claims_other: false,
        counted: None,
    }
}

/// The gateway answers by itself.
fn refused(id: &str, second: i64, status: i64) -> GatewayRequest {
    GatewayRequest { call_id: String::new(), status, served_by: ServedBy::Gateway, ..request(id, second) }
}

/// The call of a [`request`] that began a second before, by the id of the call alone.
fn call(id: &str, second: i64) -> LedgerCall {
    LedgerCall {
        position: second.rem_euclid(100_000) * 100 + id.len() as i64,
        call_id: format!("c-{id}"),
        request_id: String::new(),
        occurred_at: at(second),
        status: Status::Success,
        flags: Flags::default(),
        amounts: Amounts {
            requests: 1,
            prompt_tokens: 100,
            cache_read_tokens: 40,
            completion_tokens: 20,
            cost: NanoUsd(1_000),
            ..Amounts::default()
        },
    }
}

fn failed(call: LedgerCall) -> LedgerCall {
    LedgerCall { position: call.position + 50, status: Status::Failure, amounts: Amounts::default(), ..call }
}

fn interruption(source: Source, from: i64, until: i64, reason: InterruptionReason) -> Interruption {
    Interruption { source, from: at(from), until: at(until), reason }
}

impl Scene {
    fn of(requests: Vec<GatewayRequest>, calls: Vec<LedgerCall>) -> Scene {
        Scene {
            requests,
            calls,
            metered: Vec::new(),
            interruptions: Vec::new(),
            sources: vec![Source::AccessLog],
            limited_routes: vec!["chat".to_owned()],
        }
    }

    /// `passed_on` by the gateway's own count and `ledger` calls, a second apart, without an access log.
    fn counted(passed_on: i64, ledger: i64) -> Scene {
        let calls = (0..ledger).map(|number| call(&format!("n{number}"), 60 + number % 180)).collect();
        let metered = vec![Metered { source: Source::Metrics, amount: passed_on, lower_bound: false }];
        Scene { metered, sources: vec![Source::Metrics], ..Scene::of(Vec::new(), calls) }
    }

    fn attempts(attempts: i64, ledger: i64) -> Scene {
        let metered = vec![Metered { source: Source::Limiter, amount: attempts, lower_bound: false }];
        Scene { metered, sources: vec![Source::Limiter], ..Scene::counted(0, ledger) }
    }

    fn interrupted(mut self, by: Interruption) -> Scene {
        self.interruptions.push(by);
        self
    }

    fn compare_after(&self, earlier: &[Judged]) -> (Vec<Judged>, Vec<Found>) {
        let books = Books {
            window: window(),
            requests: &self.requests,
            calls: &self.calls,
            metered: &self.metered,
            interruptions: &self.interruptions,
            sources: &self.sources,
            limited_routes: &self.limited_routes,
        };
        compare_after(earlier, &books, &Terms::default())
    }

    fn verdict(&self, proof: Proof) -> Verdict {
        self.compare_after(&[]).0.iter().find(|one| one.proof == proof).unwrap().verdict
    }

    fn reasons(&self, proof: Proof) -> Vec<InterruptionReason> {
        self.compare_after(&[]).0.into_iter().find(|one| one.proof == proof).unwrap().reasons
    }

    fn found(&self) -> Vec<Found> {
        self.compare_after(&[]).1
    }

    fn told(&self) -> Vec<(Cause, i64)> {
        self.found().iter().map(|one| (one.cause, one.count)).collect()
    }
}

#[test]
fn a_proof_without_its_source_is_not_given() {
    let scene = |sources: &[Source]| Scene { sources: sources.to_vec(), ..Scene::of(Vec::new(), Vec::new()) };
    assert_eq!(scene(&[]).compare_after(&[]), (Vec::new(), Vec::new()));
    for (source, proof) in Source::ALL.into_iter().zip(Proof::ALL) {
        let (judged, found) = scene(&[source]).compare_after(&[]);
        // Nothing on either side, and everybody was heard.
        let [Judged { proof: given, verdict: Verdict::Matched, gateway: 0, ledger: 0, .. }] = judged[..] else {
            panic!("{judged:?}")
        };
        assert_eq!((given, found), (proof, Vec::new()));
    }
}

#[test]
fn rows_around_the_window_help_to_match_and_are_nobodys_findings() {
    // Each began in one window and is dated in another; a neighbour's loss and a neighbour's bypass are not ours.
    let scene = Scene::of(
        vec![request("early", -1), request("late", 299), request("before", -60), request("after", 330)],
        vec![call("early", 0), call("late", 300), call("elsewhere", -90), call("elsewhere too", 400)],
    );
    assert_eq!(scene.told(), []);
    let (judged, _) = scene.compare_after(&[]);
    assert_eq!((judged[0].verdict, judged[0].gateway, judged[0].ledger), (Verdict::Matched, 1, 1));
}

#[test]
fn the_gateways_own_id_is_believed_before_the_call_id() {
    let mut one = call("swapped", 11);
    one.request_id = "r-one".to_owned();
    assert_eq!(Scene::of(vec![request("one", 10)], vec![one.clone()]).told(), []);
    // A correlation id that is not the gateway's says nothing, and the call id does.
    let mut other = call("one", 11);
    other.request_id = "somebody's own".to_owned();
    assert_eq!(Scene::of(vec![request("one", 10)], vec![other]).told(), []);
}

#[test]
fn a_request_that_the_ledger_never_heard_of_is_lost() {
    let counted = GatewayCount { prompt_tokens: Some(7), cost: Some(NanoUsd(70)), ..GatewayCount::default() };
    let lost = GatewayRequest { counted: Some(counted), ..request("b", 20) };
    let found = Scene::of(vec![request("a", 10), lost.clone(), lost], vec![call("a", 11)]).found();
    let [Found { cause: Cause::LostInLedger, gateway: 1, ledger: 0, count: 1, evidence, .. }] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(evidence.request_ids, ["r-b"]);
    assert_eq!(evidence.call_ids, ["c-b"]);
    let stated = |class: &str, gateway| Difference { class: class.to_owned(), gateway, ledger: 0 };
    assert_eq!(evidence.differences, [stated("promptTokens", 7), stated("costNanoUsd", 70)]);
}

#[test]
fn what_the_gateway_answered_itself_need_not_be_in_the_ledger() {
    let hit = GatewayRequest { call_id: "c-a".to_owned(), ..refused("hit", 12, 200) };
    let refusals = [401, 403, 404, 429, 500].map(|status| refused(&status.to_string(), 30, status));
    let mut requests = vec![request("a", 10), hit];
    requests.extend(refusals);
    let scene = Scene::of(requests, vec![call("a", 11)]);
    assert_eq!((scene.verdict(Proof::Requests), scene.told()), (Verdict::Matched, Vec::new()));
    // The hit shows the id of a call that it did not make: a second row of that call is a duplicate all the same.
    let twice = Scene::of(
        vec![request("a", 10), GatewayRequest { call_id: "c-a".to_owned(), ..refused("hit", 12, 200) }],
        vec![call("a", 11), LedgerCall { position: 9_999, ..call("a", 11) }],
    );
    assert_eq!(twice.told(), [(Cause::Duplicate, 1)]);
}

#[test]
fn attempts_of_one_call_are_no_bypass() {
    let paid = |call: LedgerCall| LedgerCall { position: call.position + 1, status: Status::Failure, ..call };
    let one = call("a", 11);
    let calls = vec![failed(one.clone()), paid(one.clone()), one.clone()];
    assert_eq!(Scene::of(vec![request("a", 10)], calls.clone()).told(), []);
    // The same by the gateway's id.
    let named = calls.into_iter().map(|call| LedgerCall { request_id: "r-a".to_owned(), ..call }).collect();
    assert_eq!(Scene::of(vec![request("a", 10)], named).told(), []);
    // Without any request: a failure that cost nothing is nothing, what cost something went past the gateway, once.
    assert_eq!(Scene::of(Vec::new(), vec![failed(one.clone())]).told(), []);
    assert_eq!(Scene::of(Vec::new(), vec![paid(one.clone())]).told(), [(Cause::BypassedGateway, 1)]);
    // A stream that broke is not lost, whether or not it cost anything.
    assert_eq!(Scene::of(vec![request("a", 10)], vec![failed(one.clone())]).told(), []);
    assert_eq!(Scene::of(vec![request("a", 10)], vec![paid(one)]).told(), []);
}

#[test]
fn a_call_id_that_a_client_chose_stands_for_many() {
    let chosen = |id: &str, second| GatewayRequest { call_id: "c-mine".to_owned(), ..request(id, second) };
    let calls = |seconds: &[i64]| seconds.iter().map(|second| call("mine", *second)).collect::<Vec<_>>();
    let requests = vec![chosen("one", 10), chosen("two", 50), chosen("three", 90)];
    assert_eq!(Scene::of(requests.clone(), calls(&[11, 51, 91])).told(), []);
    let found = Scene::of(requests.clone(), calls(&[11, 91])).found();
    assert_eq!(found[0].evidence.request_ids, ["r-two"]);
    assert_eq!(Scene::of(requests.clone(), calls(&[11, 51, 91, 92])).told(), [(Cause::Duplicate, 1)]);
    // A call that says which request it was, and was none of these, came another way.
    let mut other = call("mine", 70);
    other.request_id = "r-direct".to_owned();
    let mut with_other = calls(&[11, 51, 91]);
    with_other.push(other);
    assert_eq!(Scene::of(requests, with_other).told(), [(Cause::BypassedGateway, 1)]);
}

#[test]
fn one_tenants_key_in_anothers_name_is_seen_on_both_sides() {
    let claims = GatewayRequest { claims_other: true, ..request("a", 10) };
    let found = Scene::of(vec![claims.clone()], Vec::new()).found();
    let [Found { cause: Cause::TenantMismatch, gateway: 1, ledger: 0, count: 1, .. }] = found[..] else {
        panic!("{found:?}")
    };
    // The ledger attributes by the credential after all: nothing is wrong.
    assert_eq!(Scene::of(vec![claims], vec![call("a", 11)]).told(), []);

    let claimed = GatewayRequest { role: Role::Claimed, ..request("a", 10) };
    let found = Scene::of(vec![claimed.clone()], vec![call("a", 11)]).found();
    let [Found { cause: Cause::TenantMismatch, gateway: 0, ledger: 1, count: 1, .. }] = found[..] else {
        panic!("{found:?}")
    };
    // It explains one call, and another tenant's request need not be in this ledger.
    let twice = vec![call("a", 11), LedgerCall { position: 9_999, ..call("a", 12) }];
    assert_eq!(
        Scene::of(vec![claimed.clone()], twice).told(),
        [(Cause::BypassedGateway, 1), (Cause::TenantMismatch, 1)]
    );
    assert_eq!(Scene::of(vec![claimed], Vec::new()).told(), []);
}

#[test]
fn an_interrupted_log_proves_no_bypass_and_still_proves_a_loss() {
    let gap = || interruption(Source::AccessLog, 20, 40, InterruptionReason::Gap);
    let restart = || interruption(Source::Metrics, 20, 40, InterruptionReason::GatewayRestarted);
    let direct = || Scene::of(Vec::new(), vec![call("a", 30)]);
    for by in [gap(), restart()] {
        let scene = direct().interrupted(by.clone());
        assert_eq!((scene.verdict(Proof::Requests), scene.told()), (Verdict::Unproven, Vec::new()));
        assert_eq!(scene.reasons(Proof::Requests), [by.reason]);
        let lost = Scene::of(vec![request("a", 30)], Vec::new()).interrupted(by);
        assert_eq!((lost.verdict(Proof::Requests), lost.told()), (Verdict::Drift, vec![(Cause::LostInLedger, 1)]));
    }
    // One that is over before the window, or begins after it, does not touch it.
    for (from, until) in [(-50, 0), (300, 350)] {
        let scene = direct().interrupted(interruption(Source::AccessLog, from, until, InterruptionReason::Gap));
        assert_eq!(scene.told(), [(Cause::BypassedGateway, 1)]);
    }
    // A gateway that was started again and lost nothing has lost nothing.
    let matched = Scene::of(vec![request("a", 30)], vec![call("a", 31)]);
    assert_eq!(matched.interrupted(restart()).verdict(Proof::Requests), Verdict::Matched);
    let matched = Scene::of(vec![request("a", 30)], vec![call("a", 31)]);
    assert_eq!(matched.interrupted(gap()).verdict(Proof::Requests), Verdict::Unproven);
}

#[test]
fn records_that_the_log_lost_are_told_from_calls_that_went_past_the_gateway() {
    let scene = |passed_on: i64| {
        let logged: Vec<GatewayRequest> = (0..40).map(|number| request(&format!("n{number}"), 60 + number)).collect();
        Scene { requests: logged, sources: vec![Source::AccessLog, Source::Metrics], ..Scene::counted(passed_on, 80) }
    };
    // The gateway says that it passed on all eighty.
    let lost_records = scene(80);
    assert_eq!(lost_records.told(), []);
    assert_eq!(lost_records.verdict(Proof::Requests), Verdict::Unproven);
    assert_eq!(lost_records.verdict(Proof::Cumulative), Verdict::Matched);
    // It says that it passed on the forty of its log.
    let bypassed = scene(40);
    assert_eq!(bypassed.told(), [(Cause::BypassedGateway, 40)]);
    assert_eq!(bypassed.found()[0].proof, Proof::Requests);
    assert_eq!(bypassed.verdict(Proof::Cumulative), Verdict::Drift);
}

#[test]
fn requests_and_calls_without_a_common_id_are_neither_matched_nor_accused() {
    let nameless = || GatewayRequest { call_id: String::new(), ..request("a", 10) };
    let scene = Scene::of(vec![nameless()], vec![call("a", 11)]);
    assert_eq!((scene.verdict(Proof::Requests), scene.told()), (Verdict::Unproven, Vec::new()));
    assert_eq!(scene.reasons(Proof::Requests), [InterruptionReason::NoCommonId]);
    // A client that went away: the gateway has no call id for it, and the ledger an estimate.
    let cut_off = GatewayRequest { status: 499, served_by: ServedBy::Gateway, ..nameless() };
    assert_eq!(Scene::of(vec![cut_off.clone()], vec![call("a", 11)]).told(), []);
    // Not at another time, and not a refusal.
    assert_eq!(Scene::of(vec![cut_off], vec![call("a", 60)]).told(), [(Cause::BypassedGateway, 1)]);
    assert_eq!(Scene::of(vec![refused("a", 10, 429)], vec![call("a", 11)]).told(), [(Cause::BypassedGateway, 1)]);
    // A call without any id may be a request whose id is known.
    let anonymous = LedgerCall { call_id: String::new(), ..call("a", 11) };
    assert_eq!(Scene::of(vec![request("a", 10)], vec![anonymous]).told(), []);
}

#[test]
fn classes_are_compared_one_by_one_and_never_a_total() {
    let counted = |prompt, completion, cached, cost: i64| {
        let counted = GatewayCount {
            prompt_tokens: prompt,
            completion_tokens: completion,
            cached_tokens: cached,
            reasoning_tokens: None,
            cost: Some(NanoUsd(cost)),
        };
        Scene::of(vec![GatewayRequest { counted: Some(counted), ..request("a", 10) }], vec![call("a", 11)])
    };
    for agreed in [
        counted(Some(100), Some(20), Some(40), 1_000),
        // Not counted, no price, and rounded otherwise.
        counted(None, None, None, 0),
        counted(Some(100), Some(20), None, 1_002),
    ] {
        assert_eq!(agreed.told(), []);
    }
    // Both sum up to 120.
    let found = counted(Some(90), Some(30), Some(40), 1_003).found();
    let [Found { cause: Cause::Mispriced, gateway: 1, ledger: 1, count: 1, evidence, .. }] = &found[..] else {
        panic!("{found:?}")
    };
    let differs = |class: &str, gateway, ledger| Difference { class: class.to_owned(), gateway, ledger };
    assert_eq!(
        evidence.differences,
        [differs("promptTokens", 90, 100), differs("completionTokens", 30, 20), differs("costNanoUsd", 1_003, 1_000)]
    );
    // A ledger without a price is told where the gateway has one.
    let unpriced = |cost| {
        let mut scene = counted(None, None, None, cost);
        scene.calls[0].flags = Flags::UNPRICED;
        scene.calls[0].amounts.cost = NanoUsd(0);
        scene.told()
    };
    assert_eq!((unpriced(0), unpriced(500)), (Vec::new(), vec![(Cause::Mispriced, 1)]));
    // A sender that states only a total has no classes.
    let mut total = counted(Some(100), Some(20), Some(40), 1_000);
    total.calls[0].amounts =
        Amounts { requests: 1, unclassified_tokens: 120, cost: NanoUsd(1_000), ..Amounts::default() };
    assert_eq!(total.told(), []);
}

#[test]
fn clocks_that_are_apart_are_told_and_still_match() {
    let scene = |apart: i64, pairs: i64| {
        let requests = (0..pairs).map(|number| request(&format!("n{number}"), 50 + 10 * number)).collect();
        let calls = (0..pairs).map(|number| call(&format!("n{number}"), 51 + 10 * number - apart)).collect();
        Scene::of(requests, calls)
    };
    for apart in [-100, -4, 4, 100] {
        let scene = scene(apart, 3);
        assert_eq!(scene.verdict(Proof::Requests), Verdict::Matched);
        let found = scene.found();
        let [Found { cause: Cause::ClockSkew, count: 3, evidence, .. }] = &found[..] else { panic!("{found:?}") };
        // The call is dated in the middle of two seconds.
        assert_eq!(evidence.skew_millis, Some((apart - apart.signum()) * 1_000));
    }
    assert_eq!(scene(3, 3).told(), []);
    assert_eq!(scene(-100, 2).told(), [], "two pairs say nothing about clocks");
    // Further apart than what is seen around a window: its edges cannot be joined, and nobody is accused.
    let mut apart = scene(200, 20);
    apart.calls.retain(|call| at(-120) <= call.occurred_at);
    assert_eq!(apart.verdict(Proof::Requests), Verdict::Unproven);
    assert_eq!(apart.told(), [(Cause::ClockSkew, 17)]);
}

#[test]
fn whoever_passed_the_limiter_by_is_told() {
    let unseen = |request: GatewayRequest| GatewayRequest { limited: false, ..request };
    let hit = unseen(GatewayRequest { call_id: "c-a".to_owned(), ..refused("hit", 20, 200) });
    let nobody = GatewayRequest { authenticated: false, ..unseen(refused("nobody", 21, 401)) };
    let requests = vec![unseen(request("a", 10)), hit, nobody, unseen(refused("acl", 22, 403))];
    let scene = Scene::of(requests.clone(), vec![call("a", 11)]);
    let found = scene.found();
    assert_eq!(scene.told(), [(Cause::FailOpen, 2)]);
    assert_eq!((found[0].gateway, found[0].ledger), (2, 1));
    assert_eq!(found[0].evidence.request_ids, ["r-a", "r-hit"]);
    // The two books agree about it.
    assert_eq!(scene.verdict(Proof::Requests), Verdict::Matched);
    // Whether a refusal came before the limiter or after it is only known while the limiter is away.
    let away = Scene::of(requests.clone(), vec![call("a", 11)]);
    let away = away.interrupted(interruption(Source::Limiter, 5, 40, InterruptionReason::Gap));
    assert_eq!(away.told(), [(Cause::FailOpen, 3)]);
    let skewed = Scene::of(requests.clone(), vec![call("a", 11)]);
    let skewed = skewed.interrupted(interruption(Source::Limiter, 5, 40, InterruptionReason::ClockSkew));
    assert_eq!(skewed.told(), [(Cause::FailOpen, 2)]);
    // On a route that has no limiter there is none to pass by.
    let unlimited = Scene { limited_routes: Vec::new(), ..Scene::of(requests, vec![call("a", 11)]) };
    assert_eq!(unlimited.told(), []);
}

#[test]
fn evidence_is_bounded_and_counts_are_whole() {
    let many = (0..200).map(|number| request(&format!("n{number:03}"), number)).rev().collect();
    let found = Scene::of(many, Vec::new()).found();
    assert_eq!(found[0].count, 200);
    assert_eq!(found[0].evidence.request_ids.len(), EVIDENCE_IDS_MAX);
    assert_eq!((&*found[0].evidence.request_ids[0], &*found[0].evidence.request_ids[49]), ("r-n000", "r-n049"));
}

#[test]
fn a_request_that_ended_beyond_what_is_seen_is_not_called_lost() {
    let long = GatewayRequest { duration_micros: 3 * MICROS_PER_MINUTE, ..request("a", 290) };
    let scene = Scene::of(vec![long], Vec::new());
    assert_eq!((scene.verdict(Proof::Requests), scene.told()), (Verdict::Unproven, Vec::new()));
    assert_eq!(scene.reasons(Proof::Requests), [InterruptionReason::Gap]);
}

#[test]
fn counts_may_differ_by_what_their_edges_can_move() {
    use Verdict::{Drift, Matched};
    // 60 calls in five minutes, dated at most 28 seconds apart on either side: 11.2, and nothing close to an edge.
    for (passed_on, verdict) in [(47, Drift), (48, Matched), (60, Matched), (74, Matched), (75, Drift)] {
        assert_eq!(Scene::counted(passed_on, 60).verdict(Proof::Cumulative), verdict, "{passed_on}");
    }
    // A small tenant has three.
    for (passed_on, ledger, verdict) in [(3, 0, Matched), (4, 0, Drift), (0, 3, Matched), (0, 4, Drift)] {
        assert_eq!(Scene::counted(passed_on, ledger).verdict(Proof::Cumulative), verdict, "{passed_on} {ledger}");
    }
    assert_eq!(Scene::counted(80, 60).told(), [(Cause::LostInLedger, 20)]);
    // They came another way, or stand in the ledger twice: counts do not say.
    assert_eq!(Scene::counted(40, 60).told(), [(Cause::Unaccounted, 20)]);
    // A burst at the edge may be counted on the other side of it.
    let mut burst = Scene::counted(0, 0);
    burst.calls = (0..50).map(|number| call(&format!("n{number}"), 290 + number % 9)).collect();
    assert_eq!(burst.verdict(Proof::Cumulative), Matched);
    let mut burst = Scene::counted(0, 0);
    burst.calls = (0..50).map(|number| call(&format!("n{number}"), 150 + number % 9)).collect();
    assert_eq!(burst.verdict(Proof::Cumulative), Drift);
}

#[test]
fn counts_over_an_interruption_prove_nothing() {
    for reason in [InterruptionReason::GatewayRestarted, InterruptionReason::Gap] {
        let scene = Scene::counted(0, 60).interrupted(interruption(Source::Metrics, 20, 40, reason));
        assert_eq!((scene.verdict(Proof::Cumulative), scene.told()), (Verdict::Unproven, Vec::new()));
        assert_eq!(scene.reasons(Proof::Cumulative), [reason]);
    }
    // Another source's interruption does not matter.
    let scene = Scene::counted(60, 60).interrupted(interruption(Source::Limiter, 20, 40, InterruptionReason::Gap));
    assert_eq!(scene.verdict(Proof::Cumulative), Verdict::Matched);
}

#[test]
fn a_loss_below_the_tolerance_of_each_window_adds_up() {
    let earlier = |windows: i64, missing: i64| -> Vec<Judged> {
        let back = |number: i64| -number * Terms::default().window_micros;
        (1..=windows)
            .map(|number| Judged {
                proof: Proof::Cumulative,
                window: Window { start: noon().plus_micros(back(number)), end: noon().plus_micros(back(number - 1)) },
                verdict: Verdict::Matched,
                gateway: 10,
                ledger: 10 - missing,
                tolerance: 3,
                reasons: Vec::new(),
            })
            .collect()
    };
    let scene = Scene::counted(10, 9);
    assert_eq!(scene.compare_after(&earlier(1, 1)).1, []);
    let (judged, found) = scene.compare_after(&earlier(4, 1));
    assert_eq!(judged[0].verdict, Verdict::Drift);
    let [Found { cause: Cause::LostInLedger, gateway: 50, ledger: 45, count: 5, evidence, .. }] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(evidence.windows, Some(5), "it is in all of them");
    // What shows in one window is in one window.
    assert_eq!(Scene::counted(80, 60).compare_after(&earlier(4, 0)).1[0].evidence.windows, None);
    // What moved over an edge comes back, and what was unproven or told is not told again.
    assert_eq!(Scene::counted(10, 13).compare_after(&earlier(3, 1)).1, []);
    for verdict in [Verdict::Unproven, Verdict::Drift] {
        let mut told = earlier(4, 1);
        told[0].verdict = verdict;
        assert_eq!(scene.compare_after(&told).1, []);
    }
    // Windows of which each request is known hide nothing.
    let mut known = earlier(4, 1);
    known.push(Judged { proof: Proof::Requests, ..known[0].clone() });
    assert_eq!(scene.compare_after(&known).1, []);
}

#[test]
fn the_limiter_must_have_seen_as_many_as_the_ledger() {
    let on_every_route =
        |attempts, ledger| Scene { limited_routes: vec![EVERY_ROUTE.to_owned()], ..Scene::attempts(attempts, ledger) };
    assert_eq!(on_every_route(500, 60).verdict(Proof::Attempts), Verdict::Matched);
    assert_eq!(on_every_route(50, 60).verdict(Proof::Attempts), Verdict::Matched);
    let short = on_every_route(20, 60);
    assert_eq!((short.verdict(Proof::Attempts), short.told()), (Verdict::Drift, vec![(Cause::Unaccounted, 40)]));
    // Where the gateway says that it passed them on, it was the limiter that did not see them.
    let mut passed_on = on_every_route(20, 60);
    passed_on.sources.push(Source::Metrics);
    passed_on.metered.push(Metered { source: Source::Metrics, amount: 60, lower_bound: false });
    assert_eq!(passed_on.told(), [(Cause::FailOpen, 40)]);
    // Both say it: one finding.
    passed_on.metered[1].amount = 20;
    assert_eq!(passed_on.told(), [(Cause::Unaccounted, 40)]);
    assert_eq!(passed_on.found()[0].proof, Proof::Cumulative);
    // A lower bound can say "enough", never "too few".
    let mut bound = on_every_route(20, 60);
    bound.metered[0].lower_bound = true;
    assert_eq!((bound.verdict(Proof::Attempts), bound.told()), (Verdict::Unproven, Vec::new()));
    assert_eq!(bound.reasons(Proof::Attempts), [InterruptionReason::LowerBound]);
    bound.metered[0].amount = 60;
    assert_eq!(bound.verdict(Proof::Attempts), Verdict::Matched);
}

/// A tenant's calls may go over routes that have no limiter: that is no bypass, and no proof.
#[test]
fn which_calls_a_limiter_should_have_seen_is_not_known_without_a_log() {
    assert_eq!(Scene::attempts(50, 60).verdict(Proof::Attempts), Verdict::Matched);
    let mut short = Scene::attempts(20, 60);
    assert_eq!((short.verdict(Proof::Attempts), short.told()), (Verdict::Unproven, Vec::new()));
    assert_eq!(short.reasons(Proof::Attempts), [InterruptionReason::RoutesUnknown]);
    // Neither does it help that the gateway has passed them on.
    short.sources.push(Source::Metrics);
    short.metered.push(Metered { source: Source::Metrics, amount: 60, lower_bound: false });
    assert_eq!((short.verdict(Proof::Attempts), short.told()), (Verdict::Unproven, Vec::new()));
    // A log that was interrupted does not say it of each call.
    let logged: Vec<GatewayRequest> = (0..20).map(|number| request(&format!("n{number}"), 59 + number)).collect();
    let broken =
        Scene { requests: logged, sources: vec![Source::AccessLog, Source::Limiter], ..Scene::attempts(20, 60) };
    let broken = broken.interrupted(interruption(Source::AccessLog, 20, 40, InterruptionReason::Gap));
    assert_eq!((broken.verdict(Proof::Attempts), broken.told()), (Verdict::Unproven, Vec::new()));
}

/// A request that began long before the window, and ended in it: so did its call.
#[test]
fn a_call_of_a_request_that_was_long_under_way_is_its_own() {
    let long = GatewayRequest { duration_micros: 1_000 * MICROS_PER_SECOND, ..request("a", -900) };
    assert!(long.is_under_way(window()) && !request("a", -900).is_under_way(window()));
    let scene = Scene::of(vec![long], vec![call("a", 100)]);
    assert_eq!((scene.verdict(Proof::Requests), scene.told()), (Verdict::Matched, Vec::new()));
}

#[test]
fn attempts_are_explained_by_the_log() {
    let scene = |logged: i64, attempts: i64| {
        let requests = (0..logged).map(|number| request(&format!("n{number}"), 59 + number % 180)).collect();
        Scene { requests, sources: vec![Source::AccessLog, Source::Limiter], ..Scene::attempts(attempts, 60) }
    };
    // Forty calls went past the gateway and so past its limiter: one finding.
    let bypassed = scene(20, 20);
    assert_eq!(bypassed.told(), [(Cause::BypassedGateway, 40)]);
    assert_eq!(bypassed.verdict(Proof::Attempts), Verdict::Drift);
    // All came through it and none went past its limiter: the limiter's counters are gone.
    let lost = scene(60, 20);
    assert_eq!(lost.told(), [(Cause::LimiterReset, 60)]);
    assert_eq!(lost.verdict(Proof::Attempts), Verdict::Unproven);
    assert_eq!(lost.verdict(Proof::Requests), Verdict::Matched);
    // A route without a limiter counts no attempts.
    let mut unlimited = scene(60, 0);
    unlimited.limited_routes.clear();
    unlimited.requests.iter_mut().for_each(|request| request.limited = false);
    assert_eq!((unlimited.verdict(Proof::Attempts), unlimited.told()), (Verdict::Matched, Vec::new()));
}

#[test]
fn a_limiter_that_began_anew_is_unproven_and_told_where_it_mattered() {
    let reset = || interruption(Source::Limiter, 20, 40, InterruptionReason::LimiterReset);
    let scene = Scene::attempts(20, 60).interrupted(reset());
    assert_eq!((scene.verdict(Proof::Attempts), scene.told()), (Verdict::Unproven, vec![(Cause::LimiterReset, 60)]));
    let idle = Scene::attempts(0, 0).interrupted(reset());
    assert_eq!((idle.verdict(Proof::Attempts), idle.told()), (Verdict::Unproven, Vec::new()));
    let gap = Scene::attempts(20, 60).interrupted(interruption(Source::Limiter, 20, 40, InterruptionReason::Gap));
    assert_eq!((gap.verdict(Proof::Attempts), gap.told()), (Verdict::Unproven, Vec::new()));
}

#[test]
fn a_lower_bound_reading_of_nothing_changes_nothing() {
    assert_eq!(Evidence::default(), serde_json::from_str("{}").unwrap());
    assert_eq!(serde_json::to_string(&Evidence::default()).unwrap(), "{}");
    let books = Books {
        window: window(),
        requests: &[],
        calls: &[],
        metered: &[Metered { source: Source::Limiter, amount: 0, lower_bound: true }],
        interruptions: &[],
        sources: &Source::ALL,
        limited_routes: &[],
    };
    let (judged, found) = compare(&books, &Terms::default());
    assert!(judged.iter().all(|one| one.verdict == Verdict::Matched) && found.is_empty());
}
