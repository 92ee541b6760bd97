//! OpenMeter's door: what its SDKs and LiteLLM's callback send is counted once, to the right tenant, and told in the words
//! that they understand.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::api::{Answer, Api};
use crate::harness::database::Database;
use crate::harness::events::now;
use crate::harness::{Daemon, Setup, Tenant, on_both};

const PATH: &str = "/api/v1/events";
const SINGLE: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

async fn sent(api: &Api, media: &str, body: &Value) -> Answer {
    api.raw(Method::POST, PATH, &[("content-type", media)], body.to_string().into_bytes()).await
}

/// As the quickstart of OpenMeter has it.
fn prompt(id: &str, subject: &str, data: Value) -> Value {
    json!({"specversion": "1.0", "type": "prompt", "id": id, "time": now().to_string(), "source": "chat-app",
           "subject": subject, "data": data})
}

async fn with_a_customer(daemon: &Daemon, customer: &str) -> Tenant {
    let ids = json!({"externalIds": [{"source": "openmeter", "kind": "subject", "id": customer}]});
    daemon.onboard_as(ids, "Acme").await
}

/// Durable, and nothing more to say.
#[track_caller]
fn taken(answer: &Answer) {
    assert_eq!((answer.status, answer.text.as_str()), (204, ""));
    assert_eq!(answer.header("x-rejected-events"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_openmeter_s_senders_send_is_counted_once() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let tenant = with_a_customer(&daemon, "customer-1").await;
        let callback = json!({"specversion": "1.0", "type": "litellm_tokens", "id": "chatcmpl-1", "source": "litellm-proxy",
            "time": now().to_string(), "subject": tenant.id,
            "data": {"model": "gpt-4o", "cost": 0.00031250000000000006, "prompt_tokens": 57, "completion_tokens": 17,
                     "total_tokens": 74}});
        let halves = json!([
            prompt("1-in", "customer-1", json!({"tokens": "100", "type": "input", "model": "gpt4-turbo"})),
            prompt("1-out", "customer-1", json!({"tokens": 20, "type": "output", "model": "gpt4-turbo"})),
            prompt("2", "customer-1", json!({"tokens": 3, "model": "gpt4-turbo"})),
        ]);
        for _ in 0..2 {
            taken(&sent(&daemon.platform, SINGLE, &callback).await);
            taken(&sent(&daemon.platform, BATCH, &halves).await);
            taken(&sent(&daemon.platform, "application/json", &halves[0]).await);
            taken(&sent(&daemon.platform, "application/json", &halves).await);
        }
        let mut database = Database::of_tenant(&daemon, &tenant.id).await;
        let columns = "SELECT requests, prompt_tokens, completion_tokens, unclassified_tokens, cost_nano_usd \
                       FROM usage_ledger ORDER BY position";
        let rows = [[1, 57, 17, 0, 312_500], [0, 100, 0, 0, 0], [1, 0, 20, 0, 0], [1, 0, 0, 3, 0]];
        assert_eq!(database.numbers(columns).await, rows);
        assert_eq!(database.number("SELECT COUNT(*) FROM usage_conflict").await, 0);
        let users: Vec<Vec<String>> = database.words("SELECT user_id FROM usage_ledger ORDER BY position").await;
        assert_eq!(users, [[""], ["customer-1"], ["customer-1"], ["customer-1"]]);
    })
    .await;
}

/// Whichever door it comes through first.
#[tokio::test(flavor = "multi_thread")]
async fn one_event_through_both_doors_is_one_event() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let tenant = daemon.onboard("Acme").await;
        let datas = [
            json!({"tokens": "100", "type": "output", "model": "gpt-4o", "provider": "openai"}),
            json!({"usage": {"promptTokens": 3, "completionTokens": 4}, "costUsd": "0.01", "actor": {"userId": "ada"}}),
            json!({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 9, "cost": 1e-5}),
        ];
        for (at, data) in datas.iter().enumerate() {
            let event = prompt(&format!("event-{at}"), &tenant.id, data.clone());
            let ours = async || {
                let body = event.to_string().into_bytes();
                daemon.platform.raw(Method::POST, "/v1/usage/events", &[("content-type", SINGLE)], body).await.ok()
            };
            if at == 0 {
                taken(&sent(&daemon.platform, SINGLE, &event).await);
                assert_eq!(ours().await["duplicates"], 1);
            } else {
                assert_eq!(ours().await["accepted"], 1);
            }
            taken(&sent(&tenant.api, SINGLE, &event).await);
        }
        assert_eq!(tenant.ledger().await.len(), datas.len());
        let mut database = Database::of_tenant(&daemon, &tenant.id).await;
        assert_eq!(database.number("SELECT COUNT(*) FROM usage_conflict").await, 0);
    })
    .await;
}

/// LiteLLM names whoever the call was made for; the credential says whose it is.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_tenant_s_credential_a_subject_is_a_user_and_a_missing_time_is_the_arrival() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let (acme, globex) = (with_a_customer(&daemon, "customer-1").await, daemon.onboard("Globex").await);
        let (_, reporter) = globex.issue_key("reporter").await;
        for subject in ["alice", "customer-1", acme.id.as_str(), "7c9e6679-7425-40de-944b-e07fc1f90ae7"] {
            let mut undated = prompt(&format!("of-{subject}"), subject, json!({"tokens": 5}));
            undated.as_object_mut().unwrap().remove("time");
            taken(&sent(&reporter, SINGLE, &undated).await);
            // Another arrival is no other event.
            taken(&sent(&reporter, SINGLE, &undated).await);
            let row = globex.ledger().await.into_iter().find(|row| row["eventId"] == format!("of-{subject}")).unwrap();
            assert_eq!(row["subject"]["userId"], subject, "{row}");
            assert!(row["flags"].as_array().unwrap().contains(&json!("undated")), "{row}");
        }
        assert_eq!(acme.ledger().await, [] as [Value; 0]);
        let mut database = Database::of_tenant(&daemon, &globex.id).await;
        assert_eq!(database.number("SELECT COUNT(*) FROM usage_conflict").await, 0);
        let elsewhere = prompt("e", "alice", json!({"tokens": 5}));
        let mut elsewhere = elsewhere.as_object().unwrap().clone();
        elsewhere.insert("tenantid".into(), json!(acme.id));
        sent(&reporter, SINGLE, &Value::Object(elsewhere)).await.refused(422, "NO_EVENT_ACCEPTED");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_counted_is_kept_told_and_counted_later() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let tenant = with_a_customer(&daemon, "customer-1").await;
        let mut late = prompt("late", "customer-2", json!({"tokens": 7}));
        late.as_object_mut().unwrap().remove("time");
        let refused = sent(&daemon.platform, SINGLE, &late).await;
        refused.refused(422, "NO_EVENT_ACCEPTED");
        assert_eq!(refused.header("content-type"), "application/problem+json");
        assert_eq!((&refused.body["status"], &refused.body["title"]), (&json!(422), &json!("Unprocessable Entity")));
        let detail = refused.body["detail"].as_str().unwrap();
        assert!(detail.contains("UNKNOWN_TENANT") && detail.contains("customer-2"), "{detail}");
        // A bad neighbour spoils nothing.
        let mixed = json!([prompt("ok", "customer-1", json!({"tokens": 1})), {"specversion": "1.0"},
                           prompt("nothing", "customer-1", json!({"method": "GET"}))]);
        let mixed = sent(&daemon.platform, BATCH, &mixed).await;
        assert_eq!((mixed.status, mixed.header("x-rejected-events")), (204, "2"));
        let kept = daemon.platform.pages("/v1/quarantine", 10).await;
        let mut reasons: Vec<&str> = kept.iter().map(|row| row["reason"].as_str().unwrap()).collect();
        reasons.sort_unstable();
        assert_eq!(reasons, ["MALFORMED_EVENT", "MALFORMED_EVENT", "UNKNOWN_TENANT"]);

        let unknown = kept.iter().find(|row| row["reason"] == "UNKNOWN_TENANT").unwrap();
        let ids = json!({"externalIds": [{"source": "openmeter", "kind": "subject", "id": "customer-1"},
                                         {"source": "openmeter", "kind": "subject", "id": "customer-2"}]});
        daemon.platform.patch(&format!("/v1/tenants/{}", tenant.id), &ids).await.ok();
        let replay = format!("/v1/quarantine/{}/replay", unknown["id"].as_str().unwrap());
        daemon.platform.raw(Method::POST, &replay, &[], Vec::new()).await.ok();
        let rows = tenant.ledger().await;
        let row = rows.iter().find(|row| row["eventId"] == "late").unwrap();
        assert_eq!(row["amounts"]["totalTokens"], 7, "{row}");
        // It occurred when it arrived first, and is known if it comes again.
        assert_eq!(row["occurredAt"], unknown["receivedAt"], "{row} {unknown}");
        taken(&sent(&daemon.platform, SINGLE, &late).await);
        assert_eq!(tenant.ledger().await.len(), rows.len());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_errors_are_problems_around_the_envelope() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let tenant = daemon.onboard("Acme").await;
        let (_, reader) = tenant.issue_key("reader").await;
        let event = prompt("e", &tenant.id, json!({"tokens": 5}));
        let many = Value::Array(vec![json!({}); 5_001]);
        let broken = tenant.api.raw(Method::POST, PATH, &[("content-type", SINGLE)], b"{\"id\":".to_vec()).await;
        for (answer, status, code) in [
            (sent(&tenant.api.anonymous(), SINGLE, &event).await, 401, "AUTHENTICATION_REQUIRED"),
            (sent(&tenant.api.with("pak_live_nobody"), SINGLE, &event).await, 401, "INVALID_CREDENTIALS"),
            (sent(&reader, SINGLE, &event).await, 403, "FORBIDDEN"),
            (sent(&tenant.api, "text/plain", &event).await, 415, "UNSUPPORTED_MEDIA_TYPE"),
            (sent(&tenant.api, BATCH, &many).await, 413, "TOO_MANY_EVENTS"),
            (broken, 400, "MALFORMED_JSON"),
        ] {
            answer.refused(status, code);
            assert_eq!(answer.header("content-type"), "application/problem+json", "{code}");
            assert_eq!(answer.body["status"], status, "{}", answer.text);
            assert_eq!(answer.body["detail"], answer.body["error"]["message"], "{}", answer.text);
        }
        assert_eq!(tenant.ledger().await, [] as [Value; 0]);
    })
    .await;
}
