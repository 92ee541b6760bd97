//! Kong's own words: its log over HTTP, its limiter in a real Redis; to whom they go, and what of them is never said again.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::api::Answer;
use crate::harness::daemon::project;
use crate::harness::servers::Server;
use crate::harness::{Daemon, Setup, Tenant, eventually, on_both};

const LOGS: &str = "/v1/gateway/kong/logs";
const TOKEN: &str = "kong-ingest-token-0123456789";
const JSON: (&str, &str) = ("content-type", "application/json");
/// What the captured records quote of requests, and nobody may ever read again.
const SECRETS: [&str; 4] = ["acme-key-1", "globex-key-1", "REDACTED", TOKEN];

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(project().join("tests/fixtures/kong").join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The tenants whose consumers made the captured calls.
async fn the_captured_tenants(daemon: &Daemon) -> (Tenant, Tenant) {
    let ids = |kind: &str, id: &str| json!({"externalIds": [{"source": "kong", "kind": kind, "id": id}]});
    let acme = daemon.onboard_as(ids("username", "tenant-acme"), "Acme").await;
    let globex = daemon.onboard_as(ids("customId", "22222222-2222-4222-8222-222222222222"), "Globex").await;
    (acme, globex)
}

async fn posted(daemon: &Daemon, token: &str, body: Vec<u8>) -> Answer {
    daemon.platform.anonymous().raw(Method::POST, LOGS, &[JSON, ("x-ingest-token", token)], body).await
}

fn counts(answer: Answer) -> (u64, u64, u64, usize) {
    let body = answer.ok();
    let number = |name: &str| body[name].as_u64().unwrap_or_else(|| panic!("{name}: {body}"));
    (number("accepted"), number("duplicates"), number("unattributed"), body["rejected"].as_array().unwrap().len())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_captured_log_is_kept_once_and_with_its_consumers_tenants() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).with("GATEWAY__KONG__ACCESS_LOG__TOKEN", TOKEN).start().await;
        let (acme, globex) = the_captured_tenants(&daemon).await;
        let batch = counts(posted(&daemon, TOKEN, fixture("http-log-batch.json")).await);
        assert!(batch.0 > 0 && batch.2 >= 2 && batch.3 == 0, "{batch:?}");
        let again = counts(posted(&daemon, TOKEN, fixture("http-log-batch.json")).await);
        assert_eq!(again, (0, batch.0, batch.2, 0));
        for name in ["http-log-single.json", "http-log-cache-hit.json"] {
            assert_eq!(counts(posted(&daemon, TOKEN, fixture(name)).await), (1, 0, 0, 0), "{name}");
        }
        // One bad record spoils no other, and is named.
        let single: Value = serde_json::from_slice(&fixture("http-log-single.json")).unwrap();
        let mixed = json!([single, {"request": {}}, 7]);
        assert_eq!(counts(posted(&daemon, TOKEN, mixed.to_string().into_bytes()).await), (0, 1, 0, 2));

        // Nothing that a request brought is in any answer, metric, log or record.
        let mut said = daemon.platform.anonymous().get("/metrics").await.text;
        said.push_str(&daemon.platform.anonymous().get("/health").await.text);
        said.push_str(&daemon.log());
        for tenant in [&acme, &globex] {
            said.push_str(&tenant.audit().await.iter().map(Value::to_string).collect::<String>());
        }
        for secret in SECRETS {
            assert!(!said.contains(secret), "{secret}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_s_door_opens_to_its_token_and_to_reporters_of_their_own() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).with("GATEWAY__KONG__ACCESS_LOG__TOKEN", TOKEN).start().await;
        let (acme, globex) = the_captured_tenants(&daemon).await;
        let body = fixture("http-log-single.json");
        posted(&daemon, "kong-ingest-token-9876543210", body.clone()).await.refused(401, "INVALID_CREDENTIALS");
        let nobody = daemon.platform.anonymous().raw(Method::POST, LOGS, &[JSON], body.clone()).await;
        nobody.refused(401, "AUTHENTICATION_REQUIRED");
        let (_, reporter) = acme.issue_key("reporter").await;
        let (_, other) = globex.issue_key("reporter").await;
        let (_, reader) = acme.issue_key("reader").await;
        reader.raw(Method::POST, LOGS, &[JSON], body.clone()).await.refused(403, "FORBIDDEN");
        let strange = other.raw(Method::POST, LOGS, &[JSON], body.clone()).await.ok();
        assert_eq!(strange["rejected"][0]["code"], "TENANT_MISMATCH", "{strange}");
        assert_eq!(counts(reporter.raw(Method::POST, LOGS, &[JSON], body.clone()).await), (1, 0, 0, 0));
        assert_eq!(counts(daemon.platform.raw(Method::POST, LOGS, &[JSON], body).await), (0, 1, 0, 0));
        posted(&daemon, TOKEN, b"{\"request\":".to_vec()).await.refused(400, "MALFORMED_JSON");
        let text = ("content-type", "text/plain");
        let headers = [text, ("x-ingest-token", TOKEN)];
        let plain = daemon.platform.anonymous().raw(Method::POST, LOGS, &headers, b"{}".to_vec()).await;
        plain.refused(415, "UNSUPPORTED_MEDIA_TYPE");
        let many = format!("[{}]", vec!["{}"; 10_001].join(","));
        posted(&daemon, TOKEN, many.into_bytes()).await.refused(413, "TOO_MANY_EVENTS");
    })
    .await;
}

/// A slow or dead Kong slows nothing, and the health report says what is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_redis_of_kong_s_is_named_and_slows_nothing() {
    on_both(|engine| async move {
        let mut redis = Server::redis().await;
        let url = redis.url("redis");
        let setup =
            Setup::on(engine).with("GATEWAY__KONG__REDIS__URL", &url).with("GATEWAY__KONG__REDIS__POLL_MS", 1_000);
        let daemon = setup.start().await;
        let tenant = daemon.onboard("Acme").await;
        let limiter = async |status: &str| {
            eventually("the limiter's health", || async {
                let health = daemon.platform.anonymous().get("/health").await;
                let found = health.body["dependencies"]["kong-limiter"].clone();
                (found["status"] == status).then_some(found)
            })
            .await
        };
        let missing = limiter("degraded").await;
        assert!(missing["detail"].as_str().unwrap().contains("there are no counters"), "{missing}");
        redis.freeze().await;
        limiter("down").await;
        tenant.post_events(&[tenant.event().tokens(60, 40)]).await;
        eventually("it to be ready", || async {
            (daemon.platform.anonymous().get("/health/ready").await.status == 200).then_some(())
        })
        .await;
        redis.thaw().await;
        limiter("degraded").await;
        redis.kill().await;
        limiter("down").await;
        let off = daemon.platform.anonymous().get("/health").await.body;
        assert_eq!(off["dependencies"]["kong-metrics"]["status"], "off");
        assert!(off["dependencies"]["kong-metrics"]["detail"].as_str().unwrap().contains("gateway.kong.metrics.nodes"));
    })
    .await;
}
