//! The ledger against what a gateway says, through the real binary: what is planted is found, and nothing else; it is told,
//! settled, and survives the process.

use std::collections::BTreeSet;

use platform_api::clock::Clock;
use platform_api::config;
use platform_api::directory::{self, Settings};
use platform_api::domain::ids::TenantId;
use platform_api::domain::reconcile::Terms;
use platform_api::domain::reconcile::reading::{GatewayCount, GatewayRequest, Role, ServedBy};
use platform_api::domain::time::Timestamp;
use platform_api::store::database::Store;
use reqwest::Method;
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::harness::database::Database;
use crate::harness::events::{now, token_quota};
use crate::harness::receiver::{Receiver, actions};
use crate::harness::{Daemon, Engine, Setup, Tenant, eventually, on_both};

const MINUTE: i64 = 60_000_000;

/// Windows of a minute that are judged at once, so that nobody waits.
fn setup(engine: Engine) -> Setup {
    let window = ("RECONCILE__WINDOW_MS", 60_000);
    [window, ("RECONCILE__SETTLE_MS", 1_000), ("RECONCILE__SLACK_MS", 10_000)]
        .into_iter()
        .fold(Setup::on(engine), |setup, (name, value)| setup.with(name, value))
}

fn terms() -> Terms {
    Terms { window_micros: MINUTE, settle_micros: 1_000_000, slack_micros: 10_000_000, ..Terms::default() }
}

/// The middle of the minute so many minutes ago.
fn minutes_ago(minutes: i64) -> Timestamp {
    Timestamp((now().0 / MINUTE - minutes) * MINUTE + MINUTE / 2)
}

/// In the minute before: a gateway begins to speak in a window that is not whole, and the next one is the first.
fn before(at: Timestamp) -> Timestamp {
    at.plus_micros(-MINUTE)
}

fn request(id: &str, at: Timestamp) -> GatewayRequest {
    GatewayRequest {
        request_id: format!("request-{id}"),
        call_id: format!("call-{id}"),
        started_at: at,
        duration_micros: 900_000,
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

/// What the gateway says, brought in while the daemon is away: it opens the tenant by itself, because it is unsettled.
async fn say(daemon: &mut Daemon, tenant: &Tenant, requests: Vec<GatewayRequest>) {
    say_while_away(daemon, tenant, requests).await;
    daemon.restart().await;
}

async fn say_while_away(daemon: &mut Daemon, tenant: &Tenant, requests: Vec<GatewayRequest>) {
    daemon.terminate().await;
    let store = config::Store { url: SecretString::from(daemon.store_url()), ..config::Store::default() };
    let store = Store::open(&store).await.expect("nobody else has it");
    let settings = Settings {
        tenants: config::Tenants::default(),
        retention_micros: config::Config::default().retention_micros(),
        routing: std::sync::Arc::default(),
        reconcile: Terms { settle_micros: 3_600 * 1_000_000, ..terms() },
        lease_micros: config::Jobs::default().lease_micros(),
    };
    let (hints, mut heard) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move { while heard.recv().await.is_some() {} });
    let directory = directory::open(store, settings, Clock::system(), hints).await.expect("it opens");
    let id: TenantId = tenant.id.parse().expect("an id");
    let handle = eventually("the tenant", || async { directory.find(id).await.ok() }).await;
    let patience = crate::harness::PATIENCE;
    let count = requests.len();
    let new = handle.gateway_requests(requests.clone(), "r-1".into(), patience).await.expect("kept");
    assert_eq!(new, vec![true; count]);
    let again = handle.gateway_requests(requests, "r-2".into(), patience).await.expect("known");
    assert_eq!(again, vec![false; count]);
    drop(handle);
    directory.drain(crate::harness::PATIENCE).await;
    drop(directory);
}

impl Tenant {
    /// An event of this request, in the ledger.
    async fn calls(&self, calls: &[(&str, Timestamp)]) {
        self.calls_of(calls, 10).await;
    }

    async fn calls_of(&self, calls: &[(&str, Timestamp)], tokens: i64) {
        let event = |(id, at): &(&str, Timestamp)| {
            let id = id.to_owned();
            json!({"eventId": format!("event-{id}-{tokens}"), "occurredAt": at.to_string(), "tenantId": self.id,
                "correlationId": format!("request-{}", id.trim_end_matches('+')),
                "actor": {"userId": "ada"},
                "payload": {"source": "test", "requestId": format!("call-{}", id.trim_end_matches('+')),
                    "usage": {"promptTokens": tokens, "completionTokens": 5}, "costUsd": "0.001"}})
        };
        let body = Value::Array(calls.iter().map(event).collect());
        let answer = self.api.patiently(Method::POST, "/v1/usage/events", Some(&body)).await.ok();
        assert_eq!(answer["accepted"], calls.len(), "{answer}");
    }

    fn reconciliation(&self, path: &str) -> String {
        format!("/v1/reconciliation/{}{path}", self.id)
    }

    async fn findings(&self) -> Vec<Value> {
        self.api.pages(&self.reconciliation("/findings"), 2).await
    }

    /// Waits until everything before `until` is judged; answers the overview.
    async fn settled(&self, until: Timestamp) -> Value {
        let path = self.reconciliation("");
        eventually("the windows to be judged", || async {
            let overview = self.api.patiently(Method::GET, &path, None).await.ok();
            let settled: Option<Timestamp> = overview["settledUntil"].as_str().map(|text| text.parse().unwrap());
            settled.is_some_and(|at| at >= until).then_some(overview)
        })
        .await
    }
}

/// (cause, count, status) of each, sorted.
fn told(findings: &[Value]) -> Vec<(String, i64, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let one = |finding: &Value| (text(&finding["cause"]), finding["count"].as_i64().unwrap(), text(&finding["status"]));
    let mut told: Vec<_> = findings.iter().map(one).collect();
    told.sort();
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_planted_is_found_and_nothing_else() {
    on_both(|engine| async move {
        let mut daemon = setup(engine).start().await;
        let (tenant, clean) = (daemon.onboard("Acme").await, daemon.onboard("Clean").await);
        let first = minutes_ago(6);
        let [second, third, fourth] = [1, 2, 3].map(|minutes| first.plus_micros(minutes * MINUTE));
        tenant.calls(&[("a", first), ("b", first), ("c", second), ("past", second), ("d", third), ("d+", third)]).await;
        tenant.calls_of(&[("e", fourth)], 1_000).await;
        let mut requests: Vec<GatewayRequest> = [("early", before(first)), ("a", first), ("b", first), ("lost", first)]
            .into_iter()
            .chain([("c", second), ("d", third)])
            .map(|(id, at)| request(id, at))
            .collect();
        let counted = GatewayCount { prompt_tokens: Some(10), completion_tokens: Some(5), ..GatewayCount::default() };
        requests.push(GatewayRequest { counted: Some(counted), ..request("e", fourth) });
        say(&mut daemon, &tenant, requests).await;
        let ids = ["f", "g", "h"];
        clean.calls(&ids.map(|id| (id, first))).await;
        let mut requests: Vec<GatewayRequest> = ids.iter().map(|id| request(id, first)).collect();
        requests.insert(0, request("early", before(first)));
        say(&mut daemon, &clean, requests).await;

        let overview = tenant.settled(Timestamp((fourth.0 / MINUTE + 1) * MINUTE)).await;
        let found = tenant.findings().await;
        let expected = [("bypassedGateway", 1), ("duplicate", 1), ("lostInLedger", 1), ("mispriced", 1)];
        let expected: Vec<_> =
            expected.iter().map(|(cause, count)| ((*cause).to_owned(), *count, "open".to_owned())).collect();
        assert_eq!(told(&found), expected, "{found:?}");
        let lost = found.iter().find(|one| one["cause"] == "lostInLedger").unwrap();
        assert_eq!(lost["evidence"]["requestIds"], json!(["request-lost"]));
        let proof = &overview["proofs"][0];
        assert_eq!((&proof["proof"], &proof["source"]), (&json!("requests"), &json!("accessLog")));
        assert!(proof["provenUntil"].is_string() && proof["sourceSince"].is_string(), "{overview}");
        assert!(overview["proofs"][1].get("sourceSince").is_none(), "nobody reads metrics: {overview}");
        let open: i64 =
            overview["openFindings"].as_array().unwrap().iter().map(|one| one["underADay"].as_i64().unwrap()).sum();
        assert_eq!(open, 4, "{overview}");
        let path = tenant.reconciliation(&format!("/findings/{}", lost["id"].as_str().unwrap()));
        assert_eq!(&tenant.api.get(&path).await.ok(), lost);
        let windows = tenant.api.pages(&tenant.reconciliation("/windows?verdict=drift&proof=requests"), 2).await;
        assert_eq!(windows.len(), 4, "{windows:?}");

        clean.settled(Timestamp((first.0 / MINUTE + 1) * MINUTE)).await;
        assert_eq!(clean.findings().await, [] as [Value; 0]);
        let windows = clean.api.pages(&clean.reconciliation("/windows"), 2).await;
        assert!(windows.iter().any(|one| one["verdict"] == "matched" && one["gateway"] == 3), "{windows:?}");
        assert!(windows.iter().all(|one| one["verdict"] == "matched"), "{windows:?}");
        Tenant::holds(&tenant.verify().await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drift_is_told_once_and_over_when_it_is_settled() {
    on_both(|engine| async move {
        let receiver = Receiver::start().await;
        let incidents = Receiver::start().await;
        let sections = format!("{}{}", receiver.channel("pager"), incidents.pagerduty("incidents"));
        let mut daemon = setup(engine).with_section(&sections).start().await;
        let tenant = daemon.onboard("Acme").await;
        tenant.put_quotas(json!([token_quota(1_000, "total")])).await;
        let first = minutes_ago(5);
        let second = first.plus_micros(MINUTE);
        tenant.calls(&[("a", first), ("past", first), ("b", second), ("past-2", second)]).await;
        let requests = vec![request("early", before(first)), request("a", first), request("b", second)];
        say(&mut daemon, &tenant, requests).await;
        tenant.settled(Timestamp((second.0 / MINUTE + 1) * MINUTE)).await;
        // A delivery whose answer died with the process comes again, under the same id.
        let of = |kind: &str| -> BTreeSet<String> {
            let received = receiver.received();
            let of_kind = received.iter().filter(|one| one.body["type"] == kind);
            of_kind.map(|one| one.header("webhook-id").to_owned()).collect()
        };
        let kinds = || receiver.received().iter().map(|one| one.body["type"].to_string()).collect::<Vec<_>>();
        eventually("the drift to be told", || async { (!receiver.received().is_empty()).then_some(()) }).await;
        assert_eq!(receiver.ids().len(), 1, "{:?}", kinds());
        let fired = receiver.received()[0].body["type"].as_str().unwrap().to_owned();
        assert!(fired.ends_with(".fired"), "{fired}");

        // Killed, it tells nothing twice and judges nothing twice.
        daemon.kill().await;
        daemon.restart().await;
        let findings = tenant.findings().await;
        assert_eq!(findings.len(), 2, "{findings:?}");
        let used = |quotas: Vec<Value>| quotas[0]["used"].as_i64().unwrap();
        assert_eq!(used(tenant.quotas().await), 60);
        // Whoever looks at a finding has seen its alert: the incident hears of it, once for both findings.
        for finding in &findings {
            let path = tenant.reconciliation(&format!("/findings/{}/acknowledge", finding["id"].as_str().unwrap()));
            tenant.api.post(&path, &json!({"reason": "We look at it."})).await.ok();
        }
        let told = || actions(&incidents);
        eventually("the acknowledgement", || async { (told().len() >= 2).then_some(()) }).await;
        for (at, finding) in findings.iter().enumerate() {
            let path = tenant.reconciliation(&format!("/findings/{}/settle", finding["id"].as_str().unwrap()));
            let body = json!({"reason": "Booked twice by hand.", "adjustment": {"requests": -1, "promptTokens": -10,
                "completionTokens": -5, "costUsd": "-0.001", "userId": "ada"}});
            let key = [("idempotency-key", "settle-1"), ("content-type", "application/json")];
            let bytes = serde_json::to_vec(&body).unwrap();
            let settled = daemon.platform.raw(Method::POST, &path, &key, bytes.clone()).await.ok();
            assert_eq!(settled["status"], "settled");
            assert!(settled["adjustmentEventId"].as_str().unwrap().starts_with("adjustment:"), "{settled}");
            let again = daemon.platform.raw(Method::POST, &path, &key, bytes).await;
            assert_eq!(again.body, settled, "the stored answer");
            assert_eq!(used(tenant.quotas().await), 60 - 15 * (at as i64 + 1));
        }
        let resolved = fired.replace(".fired", ".resolved");
        eventually("the end of it to be told", || async { (!of(&resolved).is_empty()).then_some(()) }).await;
        assert_eq!((of(&fired).len(), of(&resolved).len()), (1, 1), "{:?}", kinds());
        eventually("the incident to be resolved", || async { (told().len() >= 3).then_some(()) }).await;
        let (words, keys): (Vec<String>, BTreeSet<String>) = told().into_iter().unzip();
        assert_eq!((words, keys.len()), (["trigger", "acknowledge", "resolve"].map(String::from).to_vec(), 1));
        let ledger = tenant.ledger().await;
        let adjustments: Vec<&Value> = ledger.iter().filter(|row| row["kind"] == "adjustment").collect();
        assert_eq!(adjustments.len(), 2);
        assert_eq!(adjustments[0]["amounts"]["costUsd"], "-0.001");
        assert_eq!(adjustments[0]["details"]["reason"], "Booked twice by hand.");
        // L1, by plain SQL.
        let mut database = Database::of_tenant(&daemon, &tenant.id).await;
        let sums = |table: &str| {
            format!("SELECT CAST(SUM(requests) AS BIGINT), CAST(SUM(prompt_tokens) AS BIGINT) FROM {table}")
        };
        let ledger: &'static str = Box::leak(sums("usage_ledger").into_boxed_str());
        let rollups: &'static str = Box::leak(sums("usage_rollup").into_boxed_str());
        let books = database.numbers("SELECT requests, prompt_tokens FROM books").await;
        assert_eq!(books, [[2, 20]]);
        assert_eq!((database.numbers(ledger).await, database.numbers(rollups).await), (books.clone(), books));
        let audit = tenant.audit().await;
        let settled = audit.iter().filter(|one| one["record"]["action"] == "finding.settled");
        assert_eq!(settled.count(), 2);
        Tenant::holds(&tenant.verify().await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_in_a_pass_judges_nothing_twice() {
    on_both(|engine| async move {
        let receiver = Receiver::start().await;
        let mut daemon = setup(engine).with_section(&receiver.channel("pager")).start().await;
        let tenant = daemon.onboard("Acme").await;
        let first = minutes_ago(5);
        let second = first.plus_micros(MINUTE);
        tenant.calls(&[("a", first), ("past", first), ("b", second), ("past-2", second)]).await;
        let requests = vec![request("early", before(first)), request("a", first), request("b", second)];
        say_while_away(&mut daemon, &tenant, requests).await;
        // Compared, and nothing written; written, and not committed; committed, and nobody knows.
        for point in ["reconcile.compared", "commit.filled", "commit.before", "commit.after"] {
            daemon.spawn_armed(&format!("{point}=return(KILL)"));
            daemon.dies_at(point).await;
        }
        daemon.restart().await;
        tenant.settled(Timestamp((second.0 / MINUTE + 1) * MINUTE)).await;
        assert_eq!(tenant.findings().await.len(), 2);
        eventually("the drift to be told", || async { (!receiver.received().is_empty()).then_some(()) }).await;
        let audit = tenant.audit().await;
        let count = |action: &str| audit.iter().filter(|one| one["record"]["action"] == action).count();
        assert_eq!((count("finding.opened"), count("alert.fired")), (2, 1));
        Tenant::holds(&tenant.verify().await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_do_what_with_a_finding() {
    let mut daemon = setup(Engine::Sqlite).start().await;
    let (tenant, other) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
    let at = minutes_ago(4);
    tenant.calls(&[("past", at)]).await;
    say(&mut daemon, &tenant, vec![request("early", before(at)), request("lost", at)]).await;
    tenant.settled(Timestamp((at.0 / MINUTE + 1) * MINUTE)).await;
    let findings = tenant.findings().await;
    let ids: Vec<&str> = findings.iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 2, "{findings:?}");
    let path = |id: &str, verb: &str| tenant.reconciliation(&format!("/findings/{id}{verb}"));
    let why = json!({"reason": "We look at it."});

    // Another tenant learns nothing, not even that there is such a finding.
    other.api.get(&path(ids[0], "")).await.refused(404, "TENANT_NOT_FOUND");
    let own = format!("/v1/reconciliation/{}/findings/{}", other.id, ids[0]);
    other.api.get(&own).await.refused(404, "FINDING_NOT_FOUND");
    other.api.post(&format!("{own}/acknowledge"), &why).await.refused(404, "FINDING_NOT_FOUND");
    tenant.api.get(&path("nonsense", "")).await.refused(404, "FINDING_NOT_FOUND");

    // The tenant may say that it looks; the word that it is so, or is settled, is not its own.
    let seen = tenant.api.post(&path(ids[0], "/acknowledge"), &why).await.ok();
    assert_eq!((&seen["status"], &seen["reason"]), (&json!("acknowledged"), &why["reason"]));
    assert!(seen["changedBy"].as_str().unwrap().starts_with("apiKey:"), "{seen}");
    tenant.api.post(&path(ids[0], "/acknowledge"), &why).await.refused(409, "FINDING_CLOSED");
    tenant.api.post(&path(ids[0], "/explain"), &why).await.refused(403, "FORBIDDEN");
    tenant.api.post(&path(ids[0], "/settle"), &why).await.refused(403, "FORBIDDEN");
    let explained = daemon.platform.post(&path(ids[0], "/explain"), &why).await.ok();
    assert_eq!((&explained["status"], &explained["changedBy"]), (&json!("explained"), &json!("platform")));
    daemon.platform.post(&path(ids[0], "/explain"), &why).await.refused(409, "FINDING_CLOSED");

    for (body, status, code) in [
        (json!({}), 422, "VALIDATION_FAILED"),
        (json!({"reason": ""}), 422, "VALIDATION_FAILED"),
        (json!({"reason": "r", "extra": 1}), 422, "VALIDATION_FAILED"),
        (json!({"reason": "r", "adjustment": null}), 422, "VALIDATION_FAILED"),
        (json!({"reason": "r", "adjustment": {}}), 422, "VALIDATION_FAILED"),
        (json!({"reason": "r", "adjustment": {"requests": 1.5}}), 422, "VALIDATION_FAILED"),
        (json!({"reason": "r", "adjustment": {"promptTokens": -1_000_000}}), 422, "ADJUSTMENT_BELOW_ZERO"),
        (
            json!({"reason": "r", "adjustment": {"requests": 1, "occurredAt": "1999-01-01T00:00:00Z"}}),
            422,
            "ADJUSTMENT_REFUSED",
        ),
        (
            json!({"reason": "r", "adjustment": {"requests": 1, "occurredAt": "2999-01-01T00:00:00Z"}}),
            422,
            "ADJUSTMENT_REFUSED",
        ),
    ] {
        daemon.platform.post(&path(ids[1], "/settle"), &body).await.refused(status, code);
    }
    daemon.platform.post(&path(ids[1], "/settle"), &json!({"reason": "Agreed by mail."})).await.ok();
    for query in ["?status=lost", "?cause=magic", "?limit=0", "?cursor=x", "?from=now"] {
        assert_eq!(tenant.api.get(&tenant.reconciliation(&format!("/findings{query}"))).await.status, 400, "{query}");
    }
    for query in ["?proof=luck", "?verdict=guilty", "?from=now", "?to=1", "?cursor=AAAA"] {
        assert_eq!(tenant.api.get(&tenant.reconciliation(&format!("/windows{query}"))).await.status, 400, "{query}");
    }
    let turned = tenant.reconciliation("/windows?from=2026-11-02T00:00:00Z&to=2026-11-01T00:00:00Z");
    tenant.api.get(&turned).await.refused(422, "VALIDATION_FAILED");
    // No sender can make an adjusting entry, or take its source.
    for payload in [json!({"kind": "adjustment"}), json!({"source": "platform-api"})] {
        let mut event = tenant.event().json();
        event["payload"].as_object_mut().unwrap().extend(payload.as_object().unwrap().clone());
        let answer = tenant.api.post("/v1/usage/events", &json!([event])).await;
        assert_eq!(answer.status, 422, "{}", answer.text);
    }
}
