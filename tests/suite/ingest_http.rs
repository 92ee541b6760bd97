//! Usage over HTTP: what LiteLLM really posts, envelopes, CloudEvents; each counted once and to the right tenant.

use std::collections::BTreeMap;

use platform_api::domain::time::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::daemon::project;
use crate::harness::database::Database;
use crate::harness::events::now;
use crate::harness::tenant::Receipt;
use crate::harness::{Daemon, Engine, Setup, Tenant, eventually, on_both};

const JSON: (&str, &str) = ("content-type", "application/json");

/// One line of `tests/fixtures/litellm/expected.txt`.
#[derive(Debug, Clone, PartialEq)]
struct Expected {
    file: String,
    status: String,
    /// Requests, prompt, cache read, cache write, completion, reasoning, cost in nano-dollars.
    amounts: Vec<i64>,
    model: String,
    owner: String,
}

fn expected() -> Vec<Expected> {
    let text = std::fs::read_to_string(project().join("tests/fixtures/litellm/expected.txt")).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            Expected {
                file: cells[0].into(),
                status: cells[1].into(),
                amounts: cells[2..9].iter().map(|cell| cell.parse().unwrap()).collect(),
                model: cells[10].into(),
                owner: cells[11].into(),
            }
        })
        .collect()
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(project().join("tests/fixtures/litellm").join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The tenants whose keys made the captured calls.
async fn the_captured_tenants(daemon: &Daemon) -> (Tenant, Tenant) {
    let ids = |team: &str, organization: &str| {
        json!({"externalIds": [{"source": "litellm", "kind": "team", "id": team},
                               {"source": "litellm", "kind": "organization", "id": organization}]})
    };
    let acme = daemon.onboard_as(ids("team-acme-eng", "org-acme"), "Acme").await;
    let globex = daemon.onboard_as(ids("team-globex", "org-globex"), "Globex").await;
    (acme, globex)
}

fn owner_of<'a>(row: &Expected, acme: &'a Tenant, globex: &'a Tenant) -> Option<&'a Tenant> {
    if row.owner == "acme" || row.owner.contains("team:team-acme-eng") {
        Some(acme)
    } else if row.owner.contains("team:team-globex") {
        Some(globex)
    } else {
        None
    }
}

/// Every captured payload, posted as it was captured, becomes exactly the row that the table names; sent again, it
/// changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn each_captured_litellm_payload_becomes_the_row_that_the_table_names() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).with("INTAKE__RETENTION_DAYS", 3_650).start().await;
        let (acme, globex) = the_captured_tenants(&daemon).await;
        let rows = expected();
        assert!(rows.len() >= 60, "{} rows", rows.len());
        let mut wanted: BTreeMap<String, Vec<(String, String, Vec<i64>)>> = BTreeMap::new();
        let mut strangers = 0;
        for row in &rows {
            let body = fixture(&format!("{}.json", row.file));
            let post = async || daemon.platform.raw(Method::POST, "/v1/usage/litellm", &[JSON], body.clone()).await;
            let Some(owner) = owner_of(row, &acme, &globex) else {
                let refused = post().await;
                refused.refused(422, "NO_EVENT_ACCEPTED");
                assert!(refused.text.contains("UNKNOWN_TENANT"), "{}: {}", row.file, refused.text);
                strangers += 1;
                continue;
            };
            assert_eq!(Receipt::read(&post().await.ok()), Receipt::accepted(1), "{}", row.file);
            assert_eq!(Receipt::read(&post().await.ok()), Receipt::duplicates(1), "{} again", row.file);
            let line = (row.model.clone(), row.status.clone(), row.amounts.clone());
            wanted.entry(owner.id.clone()).or_default().push(line);
        }
        for (tenant, mut lines) in wanted {
            let mut database = Database::of_tenant(&daemon, &tenant).await;
            let words = database.words("SELECT model, status FROM usage_ledger ORDER BY position").await;
            let numbers = database
                .numbers(
                    "SELECT requests, prompt_tokens, cache_read_tokens, cache_write_tokens, completion_tokens, \
                     reasoning_tokens, cost_nano_usd FROM usage_ledger ORDER BY position",
                )
                .await;
            let found = words.into_iter().zip(numbers);
            let mut found: Vec<_> =
                found.map(|(words, numbers)| (words[0].clone(), words[1].clone(), numbers)).collect();
            found.sort();
            lines.sort();
            assert_eq!(found, lines, "the ledger of {tenant}");
        }
        let quarantined = daemon.platform.pages("/v1/quarantine?reason=UNKNOWN_TENANT", 10).await;
        assert_eq!(quarantined.len(), strangers, "each stranger is kept once");
        assert!(strangers >= 4);
    })
    .await;
}

/// The raw requests as LiteLLM sent them: an array, lines, one object.
#[tokio::test(flavor = "multi_thread")]
async fn the_three_forms_that_litellm_posts_are_all_understood() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).with("INTAKE__RETENTION_DAYS", 3_650).start().await;
        let (acme, globex) = the_captured_tenants(&daemon).await;
        let mut accepted = 0;
        for (file, events) in [
            ("http_generic_api_json_array.http", 2),
            ("http_generic_api_ndjson.http", 3),
            ("http_generic_api_single.http", 1),
        ] {
            let request = fixture(file);
            let at = request.windows(4).position(|four| four == b"\r\n\r\n").expect("a blank line");
            let body = request[at + 4..].to_vec();
            let post = async || {
                let answer = daemon.platform.raw(Method::POST, "/v1/usage/litellm", &[JSON], body.clone()).await;
                Receipt::read(&answer.ok())
            };
            let (first, again) = (post().await, post().await);
            assert!(first.rejected.is_empty(), "{file}: {:?}", first.rejected);
            // A file may repeat what another one had.
            assert_eq!(first.accepted + first.duplicates, events, "{file}");
            assert_eq!((again.accepted, again.duplicates), (0, events), "{file} again");
            accepted += first.accepted;
        }
        let counted = acme.ledger().await.len() + globex.ledger().await.len();
        assert!(accepted > 0 && counted == accepted as usize, "{accepted} accepted, {counted} counted");
    })
    .await;
}

/// What a client writes into its request labels usage and never moves it to another tenant.
#[tokio::test(flavor = "multi_thread")]
async fn spoofed_metadata_moves_nothing_to_another_tenant() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).with("INTAKE__RETENTION_DAYS", 3_650).start().await;
        let (acme, globex) = the_captured_tenants(&daemon).await;
        let mut payload: Value = serde_json::from_slice(&fixture("chat_client_spoofed_metadata_team_id.json")).unwrap();
        payload["metadata"]["team_id"] = json!("team-globex");
        payload["metadata"]["requester_metadata"] = json!({"user_api_key_team_id": "team-globex"});
        payload["request_tags"] = json!(["tenant:team-globex"]);
        payload["end_user"] = json!("team-globex");
        let answer = daemon.platform.post("/v1/usage/litellm", &payload).await;
        assert_eq!(Receipt::read(&answer.ok()), Receipt::accepted(1));
        assert_eq!((acme.ledger().await.len(), globex.ledger().await.len()), (1, 0));
        // And Globex cannot report Acme's usage with its own key.
        let mut stolen = payload.clone();
        stolen["litellm_call_id"] = json!("another-call");
        globex.api.post("/v1/usage/litellm", &stolen).await.refused(422, "NO_EVENT_ACCEPTED");
        assert!(globex.ledger().await.is_empty());
    })
    .await;
}

/// LiteLLM's own sender delivers copies of whole batches: what arrives is counted once.
#[tokio::test(flavor = "multi_thread")]
async fn the_captured_delivery_with_fifteen_copies_is_counted_once() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).with("INTAKE__RETENTION_DAYS", 3_650).start().await;
        let (acme, _) = the_captured_tenants(&daemon).await;
        let trace: Value = serde_json::from_slice(&fixture("delivery_trace_batch50.json")).unwrap();
        let template: Value = serde_json::from_slice(&fixture("chat_openai_nonstream_minimal.json")).unwrap();
        let posts = trace["posts"].as_array().or_else(|| trace["deliveries"].as_array()).expect("posts").clone();
        let mut ids = std::collections::BTreeSet::new();
        let (mut accepted, mut duplicates) = (0, 0);
        for post in posts {
            let events: Vec<Value> = post["event_ids"]
                .as_array()
                .expect("ids")
                .iter()
                .map(|id| {
                    ids.insert(id.to_string());
                    let mut event = template.clone();
                    (event["id"], event["litellm_call_id"]) = (id.clone(), id.clone());
                    for heavy in ["messages", "response", "model_map_information"] {
                        event.as_object_mut().unwrap().remove(heavy);
                    }
                    event
                })
                .collect();
            let receipt = Receipt::read(&daemon.platform.post("/v1/usage/litellm", &Value::Array(events)).await.ok());
            accepted += receipt.accepted;
            duplicates += receipt.duplicates;
        }
        assert_eq!(accepted, ids.len() as i64);
        assert!(duplicates > accepted, "{duplicates} copies");
        let mut database = Database::of_tenant(&daemon, &acme.id).await;
        assert_eq!(database.number("SELECT COUNT(*) FROM usage_ledger").await, ids.len() as i64);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_event_does_not_spoil_its_batch() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let tenant = daemon.onboard("Acme").await;
        let other = daemon.onboard("Globex").await;
        let day = 86_400_000_000;
        let events = [
            tenant.event().json(),
            json!({"eventId": "x", "payload": {}}),
            json!("not an event"),
            tenant.event().at(now().plus_micros(-401 * day)).json(),
            tenant.event().at(now().plus_micros(600_000_000)).json(),
            other.event().json(),
            tenant.event().json(),
        ];
        let answer = tenant.api.post("/v1/usage/events", &json!(events)).await;
        let receipt = Receipt::read(&answer.ok());
        let codes: Vec<(i64, &str)> = receipt.rejected.iter().map(|(at, code)| (*at, code.as_str())).collect();
        assert_eq!(
            codes,
            [
                (1, "MALFORMED_EVENT"),
                (2, "MALFORMED_EVENT"),
                (3, "EVENT_TOO_OLD"),
                (4, "EVENT_FROM_THE_FUTURE"),
                (5, "TENANT_MISMATCH"),
            ]
        );
        assert_eq!(receipt.accepted, 2);
        assert_eq!(tenant.ledger().await.len(), 2);
        assert!(other.ledger().await.is_empty());
        // All five are kept with their reasons, and what is not beyond doubt its own is not shown to the tenant.
        let all = daemon.platform.pages("/v1/quarantine", 2).await;
        assert_eq!(all.len(), 5, "{all:?}");
        assert!(all.iter().all(|row| row["origin"] == "http:/v1/usage/events"));
        assert!(other.quarantine().await.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_for_a_reason_that_went_away_can_be_replayed_once() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).with("INTAKE__RETENTION_DAYS", 3_650).start().await;
        let body = fixture("chat_second_tenant_globex.json");
        let answer = daemon.platform.raw(Method::POST, "/v1/usage/litellm", &[JSON], body).await;
        answer.refused(422, "NO_EVENT_ACCEPTED");
        let row = daemon.platform.pages("/v1/quarantine", 5).await.remove(0);
        assert_eq!(row["reason"], "UNKNOWN_TENANT");
        let replay = format!("/v1/quarantine/{}/replay", row["id"].as_str().unwrap());
        let post = async || daemon.platform.raw(Method::POST, &replay, &[], Vec::new()).await;
        post().await.refused(422, "STILL_REFUSED");
        let (_, globex) = the_captured_tenants(&daemon).await;
        let counted = eventually("the replay", || async {
            let answer = post().await;
            (answer.status != 503).then_some(answer)
        })
        .await;
        assert_eq!(counted.ok()["outcome"], "counted");
        assert_eq!(globex.ledger().await.len(), 1);
        post().await.refused(409, "ALREADY_REPLAYED");
        assert_eq!(globex.ledger().await.len(), 1);
        assert!(daemon.platform.pages("/v1/quarantine", 5).await[0]["replayedAt"].is_string());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_with_another_body_is_kept_as_a_conflict_and_counts_once() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let tenant = daemon.onboard("Acme").await;
        let first = tenant.event().tokens(10, 0);
        assert_eq!(tenant.post_events(std::slice::from_ref(&first)).await, Receipt::accepted(1));
        let mut second = first.clone();
        second.prompt_tokens = 1_000_000;
        assert_eq!(tenant.post_events(&[second.clone()]).await, Receipt::conflicts(1));
        assert_eq!(tenant.post_events(&[second]).await, Receipt::conflicts(1));
        assert_eq!(tenant.post_events(&[first]).await, Receipt::duplicates(1));
        let ledger = tenant.ledger().await;
        assert_eq!((ledger.len(), &ledger[0]["amounts"]["promptTokens"]), (1, &json!(10)));
        let mut database = Database::of_tenant(&daemon, &tenant.id).await;
        assert_eq!(database.number("SELECT COUNT(*) FROM usage_conflict").await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cloudevents_are_understood_structured_batched_and_binary() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let tenant = daemon.onboard("Acme").await;
        let at = now().to_string();
        let data = json!({"model": "o3", "usage": {"promptTokens": 7, "completionTokens": 3}, "costUsd": "0.01"});
        let event = |id: &str| {
            json!({"specversion": "1.0", "id": id, "source": "/gateways/1", "type": "usage", "time": at,
                   "subject": tenant.id, "datacontenttype": "application/json", "data": data})
        };
        let post = async |content_type: &str, body: Value| {
            let headers = [("content-type", content_type)];
            let body = body.to_string().into_bytes();
            Receipt::read(&daemon.platform.raw(Method::POST, "/v1/usage/events", &headers, body).await.ok())
        };
        assert_eq!(post("application/cloudevents+json", event("a")).await, Receipt::accepted(1));
        let batch = json!([event("a"), event("b"), event("c")]);
        let receipt = post("application/cloudevents-batch+json", batch).await;
        assert_eq!((receipt.accepted, receipt.duplicates), (2, 1));
        let headers = [
            JSON,
            ("ce-specversion", "1.0"),
            ("ce-id", "d"),
            ("ce-source", "/gateways/1"),
            ("ce-type", "usage"),
            ("ce-time", &at),
            ("ce-subject", &tenant.id),
        ];
        let body = data.to_string().into_bytes();
        let binary = daemon.platform.raw(Method::POST, "/v1/usage/events", &headers, body.clone()).await;
        assert_eq!(Receipt::read(&binary.ok()), Receipt::accepted(1));
        // The same identity in another mode is the same event.
        assert_eq!(post("application/cloudevents+json", event("d")).await, Receipt::duplicates(1));
        let ledger = tenant.ledger().await;
        assert_eq!(ledger.len(), 4);
        assert!(ledger.iter().all(|row| row["amounts"]["totalTokens"] == 10 && row["source"] == "/gateways/1"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_spellings_and_statements_of_running_counters_are_understood() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let tenant = daemon.onboard("Acme").await;
        let at = now().to_string();
        let snake = json!({"event_id": "snake", "occurred_at": at, "tenant_id": tenant.id, "actor": {"user_id": "ada"},
            "payload": {"usage": {"prompt_tokens": 3, "completion_tokens": 4}, "cost_usd": 0.25}});
        let total = json!({"eventId": "total", "occurredAt": at, "payload": {"usage": {"tokens": 100}}});
        let statement = json!({"eventId": "statement", "occurredAt": at,
            "payload": {"kind": "cumulative", "usage": {"totalTokens": 1_000_000}}});
        let answer = tenant.api.post("/v1/usage/events", &json!([snake, total, statement])).await;
        assert_eq!(Receipt::read(&answer.ok()), Receipt::accepted(3));
        let mut database = Database::of_tenant(&daemon, &tenant.id).await;
        let sums = database
            .numbers("SELECT prompt_tokens, completion_tokens, unclassified_tokens, cost_nano_usd, events FROM books")
            .await;
        assert_eq!(sums, [[3, 4, 100, 250_000_000, 3]], "a statement is evidence and adds nothing");
    })
    .await;
}

/// What a sender gets wrong by float arithmetic, and what it writes with an exponent, is exact to the nano-dollar.
#[tokio::test(flavor = "multi_thread")]
async fn money_is_exact() {
    let daemon = Setup::on(Engine::Sqlite).start().await;
    let tenant = daemon.onboard("Acme").await;
    let costs = ["9.099999999999999e-05", "0.00031250000000000006", "1e-9", "\"0.1\"", "0.2", "4.5e-10"];
    let events: Vec<String> = costs
        .iter()
        .enumerate()
        .map(|(number, cost)| {
            let at: Timestamp = now();
            format!(
                r#"{{"eventId":"cost-{number}","occurredAt":"{at}","payload":{{"usage":{{"promptTokens":1}},"costUsd":{cost}}}}}"#
            )
        })
        .collect();
    let body = format!("[{}]", events.join(",")).into_bytes();
    let answer = tenant.api.raw(Method::POST, "/v1/usage/events", &[JSON], body).await;
    assert_eq!(Receipt::read(&answer.ok()), Receipt::accepted(6));
    let mut database = Database::of_tenant(&daemon, &tenant.id).await;
    let mut found = database.numbers("SELECT cost_nano_usd FROM usage_ledger").await.concat();
    found.sort_unstable();
    assert_eq!(found, [0, 1, 91_000, 312_500, 100_000_000, 200_000_000]);
}

/// Two senders of the same thousand events, at the same time and in different orders.
#[tokio::test(flavor = "multi_thread")]
async fn two_senders_of_the_same_events_count_them_once() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).start().await;
        let tenant = daemon.onboard("Acme").await;
        let events: Vec<_> = (0..1_000).map(|_| tenant.event()).collect();
        let backwards: Vec<_> = events.iter().rev().cloned().collect();
        let send = |events: Vec<crate::harness::events::Envelope>| {
            let tenant = &tenant;
            async move {
                let mut accepted = 0;
                for chunk in events.chunks(37) {
                    accepted += tenant.post_events(chunk).await.accepted;
                }
                accepted
            }
        };
        let (first, second) = tokio::join!(send(events), send(backwards));
        assert_eq!(first + second, 1_000);
        let mut database = Database::of_tenant(&daemon, &tenant.id).await;
        assert_eq!(database.number("SELECT COUNT(*) FROM usage_ledger").await, 1_000);
        Tenant::holds(&tenant.verify().await);
    })
    .await;
}
