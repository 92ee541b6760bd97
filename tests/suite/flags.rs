//! Feature flags: who keeps them, what they say, and that OpenFeature's own SDK reads them.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use poem::listener::{Acceptor, Listener, TcpListener};
use poem::{Request, Response, Server, endpoint::make_sync};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::api::{Answer, Api};
use crate::harness::{Daemon, Engine, Setup, eventually, on_both};

const DOCUMENT: &str = include_str!("../fixtures/flagsmith/environment.json");
const ENVIRONMENT_KEY: &str = "ser.suite-0123456789";

fn boolean() -> Value {
    json!({"kind": "boolean", "variants": {"on": true, "off": false}, "defaultVariant": "off", "offVariant": "off",
        "enabled": true})
}

fn with(mut flag: Value, member: &str, value: Value) -> Value {
    flag[member] = value;
    flag
}

async fn put(api: &Api, key: &str, flag: &Value, if_match: Option<&str>) -> Answer {
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(if_match.map(|tag| ("if-match", tag)));
    api.raw(Method::PUT, &format!("/v1/flags/{key}"), &headers, flag.to_string().into_bytes()).await
}

async fn evaluate(api: &Api, key: &str, context: Value) -> Answer {
    api.patiently(Method::POST, &format!("/ofrep/v1/evaluate/flags/{key}"), Some(&json!({ "context": context }))).await
}

/// What one feature says to the caller itself.
async fn feature(api: &Api, key: &str) -> Value {
    let features = api.patiently(Method::GET, "/v1/features", None).await.ok();
    let features = features["features"].as_array().unwrap();
    features.iter().find(|feature| feature["key"] == key).cloned().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flag_is_kept_changed_by_who_has_seen_it_and_audited() {
    on_both(|engine| async move {
        let mut daemon = Setup::on(engine).start().await;
        let acme = daemon.onboard("Acme").await;
        let created = put(&acme.api, "checkout", &boolean(), None).await;
        assert_eq!((created.status, created.header("etag")), (200, "\"1\""), "{}", created.text);
        put(&acme.api, "checkout", &boolean(), None).await.refused(428, "PRECONDITION_REQUIRED");
        put(&acme.api, "checkout", &boolean(), Some("\"7\"")).await.refused(412, "PRECONDITION_FAILED");
        put(&acme.api, "checkout", &boolean(), Some("1")).await.refused(400, "INVALID_HEADER");
        let on = with(boolean(), "defaultVariant", json!("on"));
        let replaced = put(&acme.api, "checkout", &on, Some("\"1\"")).await;
        assert_eq!(replaced.header("etag"), "\"2\"", "{}", replaced.text);
        put(&acme.api, "a b", &boolean(), None).await.refused(422, "VALIDATION_FAILED");
        put(&acme.api, "wrong", &with(boolean(), "offVariant", json!("x")), None)
            .await
            .refused(422, "VALIDATION_FAILED");
        put(&acme.api, "wrong", &with(boolean(), "unknown", json!(1)), None).await.refused(422, "VALIDATION_FAILED");
        put(&acme.api, "other", &boolean(), None).await.ok();

        // It is there after a restart, with its version.
        daemon.terminate().await;
        daemon.restart().await;
        let read = acme.api.patiently(Method::GET, "/v1/flags/checkout", None).await;
        assert_eq!((read.header("etag"), &read.body["defaultVariant"]), ("\"2\"", &json!("on")), "{}", read.text);
        assert_eq!(feature(&acme.api, "checkout").await["value"], true);
        let keys: Vec<Value> = acme.api.pages("/v1/flags", 1).await.iter().map(|flag| flag["key"].clone()).collect();
        assert_eq!(keys, ["checkout", "other"]);

        let headers = [("if-match", "\"2\"")];
        let deleted = acme.api.raw(Method::DELETE, "/v1/flags/checkout", &headers, Vec::new()).await.ok();
        assert_eq!(deleted["key"], "checkout");
        acme.api.get("/v1/flags/checkout").await.refused(404, "FLAG_NOT_FOUND");
        let records = acme.api.pages("/v1/audit", 100).await;
        let told: Vec<&str> = records.iter().filter_map(|record| record["record"]["action"].as_str()).collect();
        for (action, count) in [("flag.created", 2), ("flag.replaced", 1), ("flag.deleted", 1)] {
            assert_eq!(told.iter().filter(|told| **told == action).count(), count, "{action} in {told:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_overrides_only_what_the_platform_lets_it_and_nobody_else_s() {
    on_both(|engine| async move {
        let mut daemon = Setup::on(engine).start().await;
        let (acme, globex) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
        put(&daemon.platform, "fixed", &boolean(), None).await.ok();
        put(&daemon.platform, "free", &with(boolean(), "overridable", json!(true)), None).await.ok();
        let only_acme = json!([{"conditions": [{"attribute": "tenantId", "operator": "equals", "values": [acme.id]}],
            "variant": "on"}]);
        put(&daemon.platform, "for-acme", &with(boolean(), "rules", only_acme), None).await.ok();
        let on = with(boolean(), "defaultVariant", json!("on"));
        put(&acme.api, "fixed", &on, None).await.refused(409, "FLAG_NOT_OVERRIDABLE");
        put(&acme.api, "free", &on, None).await.ok();
        put(&acme.api, "acme-only", &on, None).await.ok();
        for (key, acme_s, globex_s) in [
            ("fixed", json!(false), json!(false)),
            ("free", json!(true), json!(false)),
            ("for-acme", json!(true), json!(false)),
            ("acme-only", json!(true), Value::Null),
        ] {
            assert_eq!(feature(&acme.api, key).await["value"], acme_s, "{key}");
            assert_eq!(feature(&globex.api, key).await["value"], globex_s, "{key}");
        }
        // What a client says of its tenant is not believed.
        let lied = evaluate(&globex.api, "for-acme", json!({"tenantId": acme.id})).await.ok();
        assert_eq!(lied["value"], false);
        globex.api.get("/v1/flags/acme-only").await.refused(404, "FLAG_NOT_FOUND");
        // The platform's own are there after a restart, and in its own chain.
        daemon.terminate().await;
        daemon.restart().await;
        assert_eq!(daemon.platform.get("/v1/flags").await.ok()["items"].as_array().unwrap().len(), 3);
        let records = daemon.platform.pages("/v1/audit", 100).await;
        assert_eq!(records.iter().filter(|record| record["record"]["action"] == "flag.created").count(), 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ofrep_answers_in_its_own_words() {
    let daemon = Setup::on(Engine::Sqlite).start().await;
    let acme = daemon.onboard("Acme").await;
    let half = with(boolean(), "split", json!([{"variant": "on", "basisPoints": 5_000}]));
    put(&acme.api, "half", &half, None).await.ok();
    let said = evaluate(&acme.api, "half", json!({"targetingKey": "ada"})).await.ok();
    assert_eq!((&said["reason"], said["value"].is_boolean()), (&json!("SPLIT"), true), "{said}");
    let missing = evaluate(&acme.api, "nowhere", json!({})).await;
    assert_eq!((missing.status, &missing.body["errorCode"]), (404, &json!("FLAG_NOT_FOUND")), "{}", missing.text);
    assert_eq!(missing.body["key"], "nowhere");
    let nobody = evaluate(&acme.api, "half", json!({})).await;
    assert_eq!((nobody.status, &nobody.body["errorCode"]), (400, &json!("TARGETING_KEY_MISSING")), "{}", nobody.text);
    let broken = |body: &'static str| {
        let api = acme.api.clone();
        async move {
            let headers = [("content-type", "application/json")];
            api.raw(Method::POST, "/ofrep/v1/evaluate/flags/half", &headers, body.into()).await
        }
    };
    for (body, code) in [("{", "PARSE_ERROR"), ("{}", "INVALID_CONTEXT"), ("{\"context\":7}", "INVALID_CONTEXT")] {
        let answer = broken(body).await;
        assert_eq!((answer.status, &answer.body["errorCode"]), (400, &json!(code)), "{}", answer.text);
    }
    let anonymous = evaluate(&daemon.platform.anonymous(), "half", json!({})).await;
    anonymous.refused(401, "AUTHENTICATION_REQUIRED");

    // All at once, with an ETag; one flag that cannot be answered spoils no other.
    put(&acme.api, "all", &with(boolean(), "defaultVariant", json!("on")), None).await.ok();
    let body = json!({"context": {}});
    let bulk = acme.api.post("/ofrep/v1/evaluate/flags", &body).await;
    let flags = bulk.body["flags"].as_array().unwrap();
    assert_eq!((flags[0]["key"].as_str(), &flags[0]["value"]), (Some("all"), &json!(true)), "{}", bulk.text);
    assert_eq!(flags[1]["errorCode"], "TARGETING_KEY_MISSING", "{}", bulk.text);
    let tag = bulk.header("etag").to_owned();
    let again = async |tag: &str| {
        let headers = [("content-type", "application/json"), ("if-none-match", tag)];
        acme.api.raw(Method::POST, "/ofrep/v1/evaluate/flags", &headers, body.to_string().into_bytes()).await
    };
    let known = again(&tag).await;
    assert_eq!((known.status, known.text.as_str(), known.header("etag")), (304, "", tag.as_str()));
    put(&acme.api, "all", &boolean(), Some("*")).await.ok();
    assert_eq!(again(&tag).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_served_is_counted_by_variant() {
    on_both(|engine| async move {
        let mut daemon = Setup::on(engine).start().await;
        let acme = daemon.onboard("Acme").await;
        let half = with(boolean(), "split", json!([{"variant": "on", "basisPoints": 5_000}]));
        put(&acme.api, "experiment", &half, None).await.ok();
        let mut expected = [0_i64; 2];
        for number in 0..20 {
            let said = evaluate(&acme.api, "experiment", json!({"targetingKey": format!("user-{number}")})).await.ok();
            expected[usize::from(said["variant"] == "on")] += 1;
        }
        assert!(expected[0] > 0 && expected[1] > 0, "{expected:?}");
        // A drain brings home what was counted since the last time.
        daemon.terminate().await;
        daemon.restart().await;
        let counted = eventually("the counts", || async {
            let counted = acme.api.patiently(Method::GET, "/v1/flags/experiment/exposures", None).await.ok();
            let count = |name: &str| {
                let variants = counted["variants"].as_array().unwrap();
                variants.iter().find(|one| one["variant"] == name).and_then(|one| one["count"].as_i64()).unwrap_or(0)
            };
            (count("on") + count("off") == 20).then(|| [count("off"), count("on")])
        });
        assert_eq!(counted.await, expected);
    })
    .await;
}

/// The real SDK for Node with the real provider, from npm.
async fn asked_by_the_sdk(api: &Api, questions: &Value) -> Vec<Value> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/openfeature");
    let folder = std::env::var_os("TEST_OPENFEATURE_DIR").map_or(here, PathBuf::from);
    assert!(folder.join("node_modules").exists(), "run `npm ci` in {}", folder.display());
    let output = Command::new("node")
        .args(["client.mjs", api.base(), api.credential(), &questions.to_string()])
        .current_dir(folder)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("node starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn openfeature_s_sdk_for_node_reads_the_flags() {
    let daemon = Setup::on(Engine::Sqlite).start().await;
    let acme = daemon.onboard("Acme").await;
    let pro = json!([{"conditions": [{"attribute": "plan", "operator": "in", "values": ["pro"]}], "variant": "on"}]);
    put(&acme.api, "checkout", &with(boolean(), "rules", pro), None).await.ok();
    let everybody = with(boolean(), "split", json!([{"variant": "on", "basisPoints": 10_000}]));
    put(&acme.api, "split", &everybody, None).await.ok();
    let of_kind = |kind: &str, value: Value| json!({"kind": kind, "variants": {"a": value}, "defaultVariant": "a", "offVariant": "a", "enabled": true});
    put(&acme.api, "colour", &of_kind("string", json!("green")), None).await.ok();
    put(&acme.api, "items", &of_kind("number", json!(12.5)), None).await.ok();
    put(&acme.api, "theme", &of_kind("object", json!({"dark": {"ink": "#fff"}})), None).await.ok();
    let off = with(with(boolean(), "enabled", json!(false)), "defaultVariant", json!("on"));
    put(&acme.api, "off", &off, None).await.ok();

    let questions = json!([
        {"kind": "boolean", "flag": "checkout", "default": false, "context": {"targetingKey": "ada", "plan": "pro"}},
        {"kind": "boolean", "flag": "checkout", "default": true, "context": {"targetingKey": "ada", "plan": "free"}},
        {"kind": "boolean", "flag": "split", "default": false, "context": {"targetingKey": "ada"}},
        {"kind": "string", "flag": "colour", "default": "grey"},
        {"kind": "number", "flag": "items", "default": 1},
        {"kind": "object", "flag": "theme", "default": {}},
        {"kind": "boolean", "flag": "off", "default": true},
        {"kind": "boolean", "flag": "nowhere", "default": true},
        {"kind": "boolean", "flag": "split", "default": true},
        {"kind": "boolean", "flag": "colour", "default": true},
    ]);
    let told = asked_by_the_sdk(&acme.api, &questions).await;
    let expected = [
        (json!(true), "TARGETING_MATCH", ""),
        (json!(false), "UNKNOWN", ""),
        (json!(true), "SPLIT", ""),
        (json!("green"), "STATIC", ""),
        (json!(12.5), "STATIC", ""),
        (json!({"dark": {"ink": "#fff"}}), "STATIC", ""),
        (json!(false), "DISABLED", ""),
        (json!(true), "ERROR", "FLAG_NOT_FOUND"),
        (json!(true), "ERROR", "TARGETING_KEY_MISSING"),
        (json!(true), "ERROR", "TYPE_MISMATCH"),
    ];
    for ((told, question), (value, reason, error)) in told.iter().zip(questions.as_array().unwrap()).zip(expected) {
        let got = (&told["value"], told["reason"].as_str().unwrap(), told["errorCode"].as_str().unwrap_or_default());
        assert_eq!(got, (&value, reason, error), "{question}: {told}");
    }
    assert_eq!(told[0]["flagMetadata"]["version"], 1, "{}", told[0]);
    // A credential that is not good leaves an application its defaults.
    let stranger = acme.api.with("pk_live_nobody");
    let told = asked_by_the_sdk(&stranger, &json!([{"kind": "string", "flag": "colour", "default": "grey"}])).await;
    assert_eq!((&told[0]["value"], &told[0]["reason"]), (&json!("grey"), &json!("ERROR")));
}

/// Stands in for Flagsmith's API: the document, to whoever has the key, with the status that it is told to have.
async fn flagsmith(status: Arc<AtomicU16>) -> String {
    let acceptor = TcpListener::bind("127.0.0.1:0").into_acceptor().await.expect("a free port");
    let address = acceptor.local_addr()[0].to_string();
    let served = make_sync(move |request: Request| {
        let asked_well = request.uri().path() == "/api/v1/environment-document/"
            && request.header("x-environment-key") == Some(ENVIRONMENT_KEY);
        match (asked_well, status.load(Ordering::SeqCst)) {
            (true, 200) => Response::builder().content_type("application/json").body(DOCUMENT),
            (true, status) => Response::builder().status(status.try_into().unwrap()).finish(),
            (false, _) => Response::builder().status(poem::http::StatusCode::FORBIDDEN).finish(),
        }
    });
    tokio::spawn(Server::new_with_acceptor(acceptor).run(served));
    address.trim_start_matches("socket://").to_owned()
}

async fn flagsmith_state(daemon: &Daemon) -> String {
    let health = daemon.platform.anonymous().get("/health").await;
    health.body["dependencies"]["flagsmith"]["status"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn flagsmith_s_flags_are_served_and_outlive_it() {
    on_both(|engine| async move {
        let status = Arc::new(AtomicU16::new(200));
        let address = flagsmith(status.clone()).await;
        let setup = Setup::on(engine)
            .with("FLAGSMITH__URL", format!("http://{address}"))
            .with("FLAGSMITH__ENVIRONMENT_KEY", ENVIRONMENT_KEY)
            .with("FLAGSMITH__POLL_MS", 1_000);
        let mut daemon = setup.start().await;
        let acme = daemon.onboard("Acme").await;
        let said = eventually("flagsmith's flags", || async {
            let said = evaluate(&acme.api, "checkout_colour", json!({"targetingKey": "user-7"})).await;
            (said.status == 200).then_some(said.body)
        })
        .await;
        assert_eq!((&said["value"], &said["reason"]), (&json!("gold"), &json!("TARGETING_MATCH")), "{said}");
        eventually("health", || async { (flagsmith_state(&daemon).await == "up").then_some(()) }).await;
        // The platform's flags are changed over there; the tenant's own are its own.
        put(&daemon.platform, "mine", &boolean(), None).await.refused(409, "FLAGS_KEPT_ELSEWHERE");
        put(&acme.api, "checkout_colour", &boolean(), None).await.refused(409, "FLAG_NOT_OVERRIDABLE");
        put(&acme.api, "mine", &with(boolean(), "defaultVariant", json!("on")), None).await.ok();
        assert_eq!(feature(&acme.api, "mine").await["value"], true);

        status.store(503, Ordering::SeqCst);
        eventually("health", || async { (flagsmith_state(&daemon).await == "degraded").then_some(()) }).await;
        daemon.terminate().await;
        daemon.restart().await;
        let kept = evaluate(&acme.api, "checkout_colour", json!({"targetingKey": "user-7"})).await.ok();
        assert_eq!(kept["value"], "gold", "{kept}");
    })
    .await;
}
