//! Tenants' LLM providers: secrets that are given and lent and never seen, and where a tenant may go with them.

use std::path::Path;
use std::sync::{Arc, Mutex};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::api::{Answer, Api};
use crate::harness::{Daemon, Engine, Setup, Tenant, eventually, on_both};

const CANARY: &str = "sk-canary-7f3b9c1d5e8a2046-x7Qk";

async fn call(api: &Api, method: Method, path: &str, headers: &[(&str, &str)], body: Value) -> Answer {
    let headers = [&[("content-type", "application/json"), ("if-match", "*")], headers].concat();
    let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    api.raw(method, path, &headers, bytes).await
}

async fn provider(tenant: &Tenant, body: Value) -> String {
    let answer = tenant.api.patiently(Method::POST, "/v1/providers", Some(&body)).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    answer.body["id"].as_str().unwrap().to_owned()
}

async fn keep(tenant: &Tenant, id: &str, secret: &str) -> Answer {
    call(&tenant.api, Method::PUT, &format!("/v1/providers/{id}/secret"), &[], json!({"secret": secret})).await
}

async fn lease(api: &Api, id: &str) -> Answer {
    let body = json!({"purpose": "inference, node 3", "ttlSeconds": 60});
    call(api, Method::POST, &format!("/v1/providers/{id}/leases"), &[], body).await
}

/// A daemon whose work is soon taken up by another one.
fn setup(engine: Engine) -> Setup {
    Setup::on(engine).with("JOBS__LEASE_MS", 1_000)
}

fn holds(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|part| part == needle.as_bytes())
}

/// Looks through every file below `folder`.
fn files_that_hold(folder: &Path, needle: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if std::fs::read(&path).is_ok_and(|bytes| holds(&bytes, needle)) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

async fn actions(tenant: &Tenant) -> Vec<(String, Value)> {
    let records = tenant.api.pages("/v1/audit", 100).await;
    let of = |record: &Value| (record["record"]["action"].as_str().unwrap().to_owned(), record.clone());
    records.iter().map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_given_lent_on_the_record_and_seen_nowhere_else() {
    on_both(|engine| async move {
        let mut daemon = setup(engine).start().await;
        let (acme, globex) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
        let id = provider(&acme, json!({"name": "OpenAI", "kind": "openai"})).await;
        let (path, secret_path) = (format!("/v1/providers/{id}"), format!("/v1/providers/{id}/secret"));
        let service = acme.issue_key("reporter").await.1;
        lease(&service, &id).await.refused(404, "PROVIDER_SECRET_NOT_FOUND");
        let mut told = Vec::new();

        // Given once per key, and shown by its end.
        let (key, body) = ([("idempotency-key", "k")], json!({"secret": CANARY}));
        let given = call(&acme.api, Method::PUT, &secret_path, &key, body.clone()).await;
        assert_eq!((given.status, given.header("etag")), (200, "\"2\""), "{}", given.text);
        assert_eq!((&given.body["secret"]["lastFour"], &given.body["secret"]["version"]), (&json!("x7Qk"), &json!(1)));
        let again = call(&acme.api, Method::PUT, &secret_path, &key, body).await;
        assert_eq!((again.header("idempotent-replayed"), &again.body), ("true", &given.body));
        let other = json!({"secret": "sk-another-0123456789"});
        call(&acme.api, Method::PUT, &secret_path, &key, other).await.refused(422, "IDEMPOTENCY_KEY_REUSED");
        let shown = acme.api.get(&path).await;
        assert_eq!((&shown.body["secret"], shown.header("etag")), (&given.body["secret"], "\"2\""));
        let stale = [("if-match", "\"1\"")];
        let stale = acme.api.raw(Method::DELETE, &secret_path, &stale, Vec::new()).await;
        stale.refused(412, "PRECONDITION_FAILED");
        acme.api.delete(&secret_path).await.refused(428, "PRECONDITION_REQUIRED");
        told.extend([given, again, shown, acme.api.get("/v1/providers").await]);

        // Lent to a service, on the record; not to an administrator, not to a reader, not to another tenant.
        let once = [("idempotency-key", "l")];
        let asked = json!({"purpose": "inference, node 3", "ttlSeconds": 60, "model": "gpt-4o"});
        let leases = format!("{path}/leases");
        let lent = call(&service, Method::POST, &leases, &once, asked.clone()).await;
        assert_eq!((lent.status, &lent.body["secret"]), (201, &json!(CANARY)), "{}", lent.text);
        assert_eq!(lent.header("cache-control"), "no-store");
        let repeated = call(&service, Method::POST, &leases, &once, asked).await;
        assert_eq!((&repeated.body["id"], &repeated.body["secret"]), (&lent.body["id"], &Value::Null));
        for role in ["admin", "reader", "developer", "analyst"] {
            lease(&acme.issue_key(role).await.1, &id).await.refused(403, "FORBIDDEN");
        }
        let stranger = globex.issue_key("reporter").await.1;
        for answer in [
            lease(&stranger, &id).await,
            globex.api.get(&path).await,
            keep(&globex, &id, "sk-of-a-stranger-0123").await,
            call(&globex.api, Method::DELETE, &secret_path, &[], Value::Null).await,
            call(&globex.api, Method::DELETE, &path, &[], Value::Null).await,
            globex.api.post(&format!("{path}/test"), &Value::Null).await,
        ] {
            answer.refused(404, "PROVIDER_NOT_FOUND");
            told.push(answer);
        }
        service.get(&format!("{path}?tenantId={}", globex.id)).await.refused(404, "TENANT_NOT_FOUND");
        let records = actions(&acme).await;
        let leased: Vec<&Value> =
            records.iter().filter(|(action, _)| action == "providerSecret.leased").map(|(_, record)| record).collect();
        assert_eq!(leased.len(), 1, "one lease, one record");
        let payload = leased[0].to_string();
        assert!(
            payload.contains("inference, node 3") && payload.contains(lent.body["id"].as_str().unwrap()),
            "{payload}"
        );

        // What is refused says nothing of it either.
        for body in [
            json!({"secret": format!("{CANARY} ")}),
            json!({"secret": [CANARY]}),
            json!({"secret": {"value": CANARY}}),
            json!({"secret": "short"}),
            json!({}),
        ] {
            let refused = call(&acme.api, Method::PUT, &secret_path, &[], body).await;
            assert_eq!(refused.status, 422, "{}", refused.text);
            told.push(refused);
        }
        told.extend([
            acme.api.get("/v1/audit?limit=500").await,
            repeated,
            daemon.platform.anonymous().get("/metrics").await,
        ]);

        // Read again by another process, rotated, replaced, revoked.
        daemon.kill().await;
        daemon.restart().await;
        assert_eq!(lease(&service, &id).await.body["secret"], CANARY);
        for (api, kind) in [(&acme.api, "vault.rotateDataKey"), (&daemon.platform, "vault.rewrap")] {
            let job = api.post("/v1/jobs", &json!({"kind": kind})).await;
            assert_eq!(job.status, 201, "{}", job.text);
            let path = format!("/v1/jobs/{}", job.body["id"].as_str().unwrap());
            eventually("keys are rotated", async || (api.get(&path).await.body["state"] == "succeeded").then_some(()))
                .await;
        }
        daemon
            .platform
            .post("/v1/jobs", &json!({"kind": "vault.rotateDataKey"}))
            .await
            .refused(422, "VALIDATION_FAILED");
        acme.api.post("/v1/jobs", &json!({"kind": "vault.rewrap"})).await.refused(422, "VALIDATION_FAILED");
        assert_eq!(lease(&service, &id).await.body["secret"], CANARY);
        for answer in &told {
            assert!(
                !answer.text.contains(CANARY) && !format!("{:?}", answer.headers).contains(CANARY),
                "{}",
                answer.text
            );
        }
        daemon.terminate().await;
        assert_eq!(files_that_hold(daemon.folder.path(), CANARY), Vec::<String>::new(), "log and databases");
        assert!(!daemon.log().is_empty());
        daemon.restart().await;
        let revoked = call(&acme.api, Method::DELETE, &secret_path, &[], Value::Null).await.ok();
        assert_eq!(revoked["secret"], Value::Null);
        lease(&service, &id).await.refused(404, "PROVIDER_SECRET_NOT_FOUND");
        assert_eq!(keep(&acme, &id, CANARY).await.ok()["secret"]["version"], 2);
        for verb in ["suspend", "archive"] {
            assert_eq!(daemon.platform.post(&format!("/v1/tenants/{}/{verb}", acme.id), &json!({})).await.status, 200);
        }
        lease(&daemon.platform, &id).await.refused(400, "INVALID_PARAMETER");
        Tenant::holds(&globex.verify().await);
    })
    .await;
}

/// A provider on this machine: `/v1/models` knows one key, `/moved/models` leads elsewhere.
async fn model_server() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let heads = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = Vec::new();
            while !holds(&bytes, "\r\n\r\n") {
                if !matches!(stream.read_buf(&mut bytes).await, Ok(read) if read > 0) {
                    break;
                }
            }
            let head = String::from_utf8_lossy(&bytes).into_owned();
            let status = match () {
                () if head.starts_with("GET /moved") => "302 Found\r\nlocation: /v1/models",
                () if head.contains(&format!("authorization: Bearer {CANARY}\r\n")) => "200 OK",
                () => "401 Unauthorized",
            };
            heads.lock().unwrap().push(head);
            let body = "echo-of-the-provider";
            let answer =
                format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (port, seen)
}

async fn policy(tenant: &Tenant, hosts: &[String], models: &[&str]) -> Answer {
    let failover = json!({"providers": [], "on": [], "attemptsMax": 0});
    let body = json!({"egressHosts": hosts, "models": models, "failover": failover});
    call(&tenant.api, Method::PUT, "/v1/provider-policy", &[], body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_tried_where_the_policy_allows_and_tells_one_word() {
    let daemon = setup(Engine::Sqlite).with("VAULT__ALLOW_PRIVATE_ADDRESSES", true).start().await;
    let acme = daemon.onboard("Acme").await;
    let (port, seen) = model_server().await;
    let own = |path: &str| json!({"name": path, "kind": "openaiCompatible", "baseUrl": format!("http://127.0.0.1:{port}{path}")});
    acme.api.post("/v1/providers", &own("/v1")).await.refused(422, "VALIDATION_FAILED");
    assert_eq!(acme.api.get("/v1/provider-policy").await.header("etag"), "\"0\"");
    let host = format!("127.0.0.1:{port}");
    assert_eq!(policy(&acme, std::slice::from_ref(&host), &["gpt-4o", "o3*"]).await.ok()["egressHosts"], json!([host]));
    let outcome = async |id: &str| {
        let answer = acme.api.post(&format!("/v1/providers/{id}/test"), &Value::Null).await;
        assert!(!answer.text.contains("echo") && !answer.text.contains(CANARY), "{}", answer.text);
        answer
    };
    let mut made = Vec::new();
    for (path, secret, word) in
        [("/v1", CANARY, "connected"), ("/v2", "sk-0123456789-wrong", "keyRefused"), ("/moved", CANARY, "redirected")]
    {
        let id = provider(&acme, own(path)).await;
        outcome(&id).await.refused(404, "PROVIDER_SECRET_NOT_FOUND");
        keep(&acme, &id, secret).await.ok();
        let answer = outcome(&id).await.ok();
        assert_eq!((&answer["outcome"], &answer["ok"]), (&json!(word), &json!(word == "connected")), "{answer}");
        assert!(answer["durationMs"].is_i64());
        // On a slow machine the pause may be over before the next one comes.
        let refused = eventually("a test too many", async || {
            let answer = outcome(&id).await;
            (answer.status != 200).then_some(answer)
        });
        refused.await.refused(429, "TESTED_TOO_OFTEN");
        made.push(id);
    }
    let records = actions(&acme).await;
    let tested = records.iter().filter(|(action, _)| action == "provider.tested").count();
    assert!(tested >= 3, "{tested}");
    assert_eq!(seen.lock().unwrap().len(), tested, "no redirect is followed");

    // A model that the policy does not have, and a host that it has no more.
    let service = acme.issue_key("reporter").await.1;
    for (model, status) in [("gpt-4o", 201), ("o3-mini", 201), ("gpt-5", 409)] {
        let body = json!({"purpose": "p", "ttlSeconds": 1, "model": model});
        let answer = call(&service, Method::POST, &format!("/v1/providers/{}/leases", made[0]), &[], body).await;
        assert_eq!(answer.status, status, "{model}: {}", answer.text);
    }
    policy(&acme, &[], &[]).await.ok();
    lease(&service, &made[0]).await.refused(409, "EGRESS_REFUSED");
    outcome(&made[1]).await.refused(409, "EGRESS_REFUSED");
    policy(&acme, &["*.com".into()], &[]).await.refused(422, "VALIDATION_FAILED");
    policy(&acme, &[], &["a b"]).await.refused(422, "VALIDATION_FAILED");
    // A key does not follow its provider to another address.
    policy(&acme, &[host], &[]).await.ok();
    let path = format!("/v1/providers/{}", made[0]);
    let mut elsewhere = own("/v9");
    elsewhere["active"] = json!(true);
    let moved = call(&acme.api, Method::PUT, &path, &[], elsewhere.clone()).await.ok();
    assert_eq!((&moved["baseUrl"], &moved["secret"]), (&elsewhere["baseUrl"], &Value::Null));
    keep(&acme, &made[0], CANARY).await.ok();
    elsewhere["active"] = json!(false);
    call(&acme.api, Method::PUT, &path, &[], elsewhere).await.ok();
    lease(&service, &made[0]).await.refused(409, "PROVIDER_INACTIVE");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_told_which_models_the_policy_does_not_have() {
    on_both(|engine| async move {
        let mut daemon = setup(engine).start().await;
        let (acme, globex) = (daemon.onboard("Acme").await, daemon.onboard("Globex").await);
        let told = async |tenant: &Tenant, query: &str| {
            let decision = tenant.decision(query).await;
            (decision["decision"].clone(), decision["reasons"][0]["code"].clone())
        };
        let (allowed, denied) = ((json!("allow"), Value::Null), (json!("deny"), json!("MODEL_NOT_ALLOWED")));
        assert_eq!(told(&acme, "?model=gpt-5").await, allowed, "an empty list has every model");
        let path = format!("/v1/quotas/{}/decision?model=gpt-5", acme.id);
        let before = acme.api.get(&path).await.header("etag").to_owned();
        policy(&acme, &[], &["gpt-4o", "o3*", "claude-*"]).await.ok();
        // What a gateway holds does not hold any more, from the next question on.
        let again = acme.api.raw(Method::GET, &path, &[("if-none-match", before.as_str())], Vec::new()).await;
        assert_eq!((again.status, &again.body["decision"]), (200, &json!("deny")), "{}", again.text);
        for round in ["as it was written", "as it was read again"] {
            for (query, expected) in [
                ("?model=gpt-4o", &allowed),
                ("?model=o3-mini&userId=ada", &allowed),
                ("?model=claude-", &allowed),
                ("?model=", &allowed),
                ("", &allowed),
                ("?model=gpt-4o-mini", &denied),
                ("?model=GPT-4o", &denied),
                ("?model=o2", &denied),
                ("?model=gpt-5&userId=ada", &denied),
            ] {
                assert_eq!(told(&acme, query).await, *expected, "{round}: {query}");
            }
            assert_eq!(told(&globex, "?model=gpt-5").await, allowed, "the neighbour's list is its own");
            daemon.kill().await;
            daemon.restart().await;
            eventually("the tenant is open", async || (acme.api.get(&path).await.status == 200).then_some(())).await;
        }
        policy(&acme, &[], &["*"]).await.ok();
        assert_eq!(told(&acme, "?model=gpt-5").await, allowed);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_access_key_of_aws_is_given_and_lent_as_one_secret() {
    let mut daemon = setup(Engine::Sqlite).start().await;
    let acme = daemon.onboard("Acme").await;
    let service = acme.issue_key("reporter").await.1;
    let bedrock = provider(&acme, json!({"name": "Bedrock", "kind": "bedrock", "region": "eu-central-1"})).await;
    let openai = provider(&acme, json!({"name": "OpenAI", "kind": "openai"})).await;
    let give = async |id: &str, body: Value| {
        call(&acme.api, Method::PUT, &format!("/v1/providers/{id}/secret"), &[], body).await
    };
    let (id, secret, token) = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG+canary", "canary-of-a-session-0123");
    let pair = |id: &str| json!({"accessKeyId": id, "secretAccessKey": secret});
    let session = json!({"accessKeyId": "ASIAIOSFODNN7EXAMPLX", "secretAccessKey": secret, "sessionToken": token});
    for (to, body, pointer) in [
        (&bedrock, json!({"awsCredentials": secret}), "/awsCredentials"),
        (&bedrock, json!({"awsCredentials": [id, secret]}), "/awsCredentials"),
        (&bedrock, json!({"awsCredentials": null}), "/awsCredentials"),
        (&bedrock, json!({"awsCredentials": pair("akiaiosfodnn7example")}), "/awsCredentials/accessKeyId"),
        (&bedrock, json!({"awsCredentials": pair("ASIAIOSFODNN7EXAMPLE")}), "/awsCredentials/sessionToken"),
        (&bedrock, json!({"awsCredentials": pair(id), "secret": CANARY}), "/awsCredentials"),
        (&bedrock, json!({"secret": pair(id).to_string()}), "/secret"),
        (&openai, json!({"awsCredentials": pair(id)}), "/awsCredentials"),
    ] {
        let refused = give(to, body).await;
        refused.refused(422, "VALIDATION_FAILED");
        let fields = &refused.body["error"]["details"]["fields"];
        assert_eq!(fields[0]["pointer"], pointer, "{}", refused.text);
        assert!(!refused.text.contains("canary"), "{}", refused.text);
    }
    let given = give(&bedrock, json!({"awsCredentials": pair(id)})).await.ok();
    assert_eq!((&given["secret"]["lastFour"], &given["secret"]["version"]), (&json!("MPLE"), &json!(1)));
    let lent = lease(&service, &bedrock).await;
    assert_eq!((&lent.body["awsCredentials"], &lent.body["secret"]), (&pair(id), &Value::Null), "{}", lent.text);
    let given = give(&bedrock, json!({"awsCredentials": session})).await.ok();
    assert_eq!(given["secret"]["lastFour"], "MPLX");
    daemon.kill().await;
    daemon.restart().await;
    let lent = eventually("the tenant is open", async || {
        let answer = lease(&service, &bedrock).await;
        (answer.status == 201).then_some(answer)
    });
    assert_eq!(lent.await.body["awsCredentials"], session);
    // A key of Bedrock's own may take its place.
    assert_eq!(give(&bedrock, json!({"secret": CANARY})).await.ok()["secret"]["version"], 3);
    let lent = lease(&service, &bedrock).await;
    assert_eq!((&lent.body["awsCredentials"], &lent.body["secret"]), (&Value::Null, &json!(CANARY)));
    daemon.terminate().await;
    for needle in [secret, token, CANARY] {
        assert_eq!(files_that_hold(daemon.folder.path(), needle), Vec::<String>::new(), "log and databases");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_an_inner_address_is_a_provider() {
    let daemon = setup(Engine::Sqlite).start().await;
    let acme = daemon.onboard("Acme").await;
    // The policy may name what it likes; the address is judged beside it.
    let hosts = ["127.0.0.1", "localhost", "169.254.169.254", "*.internal.example", "10.0.0.1:8080"].map(String::from);
    policy(&acme, &hosts, &[]).await.ok();
    for url in [
        "https://127.0.0.1/v1",
        "https://2130706433/v1",
        "https://0x7f000001/v1",
        "https://0177.0.0.1/v1",
        "https://127.1/v1",
        "https://[::1]/v1",
        "https://[::ffff:127.0.0.1]/v1",
        "https://[64:ff9b::7f00:1]/v1",
        "https://169.254.169.254/latest/meta-data",
        "https://localhost/v1",
        "https://LOCALHOST./v1",
        "https://10.0.0.1:8080/v1",
        "http://api.openai.com/v1",
        "https://api.openai.com@127.0.0.1/v1",
        "https://api.openai.com:8443/v1",
        "https://api.openai.com.evil.example/v1",
        "https://llm.example.com/v1?key=x",
        "https://llm.example.com/v1",
        "file:///etc/passwd",
    ] {
        for kind in ["openai", "openaiCompatible", "azureOpenai"] {
            let body = json!({"name": "n", "kind": kind, "baseUrl": url});
            let refused = acme.api.post("/v1/providers", &body).await;
            refused.refused(422, "VALIDATION_FAILED");
            assert_eq!(refused.body["error"]["details"]["fields"][0]["pointer"], "/baseUrl", "{url} {}", refused.text);
        }
    }
    for (pointer, body) in [
        ("/kind", json!({"name": "n", "kind": "sk-not-a-kind"})),
        ("/region", json!({"name": "n", "kind": "bedrock", "region": "x.evil.example"})),
        ("/baseUrl", json!({"name": "n", "kind": "litellm", "baseUrl": "https://llm.example.com"})),
        ("/name", json!({"name": "", "kind": "openai"})),
        ("/secret", json!({"name": "n", "kind": "openai", "secret": CANARY})),
    ] {
        let refused = acme.api.post("/v1/providers", &body).await;
        refused.refused(422, "VALIDATION_FAILED");
        assert_eq!(refused.body["error"]["details"]["fields"][0]["pointer"], pointer, "{}", refused.text);
    }
    // The platform makes the key of its own gateway.
    let gateway = provider(&acme, json!({"name": "gateway", "kind": "litellm"})).await;
    keep(&acme, &gateway, CANARY).await.refused(409, "SECRET_MADE_HERE");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_whose_daemon_is_killed_goes_on_and_loses_nothing() {
    let mut daemon = setup(Engine::Sqlite).start().await;
    let acme = daemon.onboard("Acme").await;
    let service = acme.issue_key("reporter").await.1;
    let mut kept = Vec::new();
    for number in 0..3 {
        let id = provider(&acme, json!({"name": number.to_string(), "kind": "openai"})).await;
        let secret = format!("sk-0123456789-{number:04}");
        keep(&acme, &id, &secret).await.ok();
        kept.push((id, secret));
    }
    for point in ["rotation.key", "rotation.secret"] {
        daemon.stop().await;
        daemon.spawn_armed(&format!("{point}=return(KILL)"));
        daemon.ready().await;
        let headers = [("content-type", "application/json")];
        let body = json!({"kind": "vault.rotateDataKey"}).to_string().into_bytes();
        // The daemon may be gone before it answers.
        let _ = acme.api.try_raw(Method::POST, "/v1/jobs", &headers, body).await;
        daemon.dies_at(point).await;
        daemon.restart().await;
        for (id, secret) in &kept {
            let lent = eventually("the tenant is open", async || {
                let answer = lease(&service, id).await;
                (answer.status == 201).then_some(answer)
            });
            assert_eq!(lent.await.body["secret"], json!(secret), "{point}");
        }
        eventually("the rotation is over", async || {
            let jobs = acme.api.get("/v1/jobs?kind=vault.rotateDataKey").await.ok();
            let done = |job: &Value| job["state"] == "succeeded";
            jobs["items"].as_array().unwrap().iter().all(done).then_some(())
        })
        .await;
    }
    for (id, secret) in &kept {
        assert_eq!(lease(&service, id).await.body["secret"], json!(secret));
    }
    let records = actions(&acme).await;
    let count = |wanted: &str| records.iter().filter(|(action, _)| action == wanted).count();
    assert_eq!((count("dataKey.created"), count("dataKey.retired")), (3, 2), "each rotation made one key");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_vault_there_are_no_providers() {
    let daemon: Daemon = Setup::on(Engine::Sqlite).with("VAULT__KEK", "off").start().await;
    let acme = daemon.onboard("Acme").await;
    let (id, secret) = (&acme.id, json!({"secret": CANARY}));
    acme.api.get("/v1/providers").await.refused(409, "VAULT_OFF");
    acme.api.post("/v1/providers", &json!({"name": "n", "kind": "openai"})).await.refused(409, "VAULT_OFF");
    let path = format!("/v1/providers/{id}/secret");
    call(&acme.api, Method::PUT, &path, &[], secret).await.refused(409, "VAULT_OFF");
    acme.api.get("/v1/provider-policy").await.refused(409, "VAULT_OFF");
}
