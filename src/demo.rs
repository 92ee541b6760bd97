//! `platform-api demo`: the main job on the embedded database, with payloads captured from a real LiteLLM.
//!
//! It runs the very daemon that `serve` runs, on a fresh directory, and is a client of its HTTP door like any other.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::clock::{self, Clock};
use crate::config::{Channel, Config};
use crate::daemon::Daemon;
use crate::domain::time::MICROS_PER_DAY;

/// What LiteLLM 1.106.2 posted, one file an event; the times are moved to now, nothing else is changed.
const CAPTURED: [(&str, &str); 10] = [
    ("a chat completion", include_str!("../tests/fixtures/litellm/chat_openai_nonstream_tags_enduser.json")),
    ("a streamed one", include_str!("../tests/fixtures/litellm/chat_openai_stream.json")),
    (
        "reasoning and cached tokens",
        include_str!("../tests/fixtures/litellm/chat_openai_o3_reasoning_and_cached_tokens.json"),
    ),
    (
        "prompt cache, read and write",
        include_str!("../tests/fixtures/litellm/chat_anthropic_prompt_cache_read_and_write.json"),
    ),
    ("embeddings", include_str!("../tests/fixtures/litellm/embedding_three_inputs.json")),
    ("a retry's failure", include_str!("../tests/fixtures/litellm/chat_retry_1_failure_event.json")),
    ("and its success", include_str!("../tests/fixtures/litellm/chat_retry_2_success_event.json")),
    ("a model without a price", include_str!("../tests/fixtures/litellm/chat_unpriced_model_cost_zero.json")),
    ("another tenant's call", include_str!("../tests/fixtures/litellm/chat_second_tenant_globex.json")),
    ("a refused call without identity", include_str!("../tests/fixtures/litellm/failure_auth_unknown_key.json")),
];

/// How long the alert may take to arrive.
const ALERT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest request the local receiver reads.
const RECEIVED_BYTES_MAX: usize = 64 * 1024;

/// Runs the show; with `exit` it ends after it, otherwise it keeps serving until it is stopped. Connections are served
/// by the threads of `answering`.
///
/// # Errors
/// When anything did not hold.
pub async fn run(exit: bool, listen: String, answering: Handle) -> anyhow::Result<ExitCode> {
    let directory = std::env::temp_dir().join(format!("platform-api-demo-{}", clock::new_id()));
    let result = Box::pin(show(exit, listen, &answering, &directory)).await;
    // Only what this run has made.
    if let Err(error) = std::fs::remove_dir_all(&directory)
        && directory.exists()
    {
        eprintln!("{} could not be removed: {error}", directory.display());
    }
    result.map(|()| ExitCode::SUCCESS)
}

async fn show(exit: bool, listen: String, answering: &Handle, directory: &std::path::Path) -> anyhow::Result<()> {
    let (receiver, mut alerts) = receive_alerts().await?;
    let admin_key: String = clock::random_bytes::<16>().iter().map(|byte| format!("{byte:02x}")).collect();
    let mut config = Config::default();
    config.http.listen = listen;
    config.store.url = SecretString::from(format!("sqlite:{}", directory.display()));
    config.auth.bootstrap_key = Some(SecretString::from(admin_key.clone()));
    config.telemetry.log = "warn".into();
    config.notify.channels.push(Channel::Webhook {
        name: "demo".into(),
        url: format!("http://{receiver}/alerts"),
        secret: SecretString::from("whsec_ZGVtby1kZW1vLWRlbW8tZGVtby1kZW1vLTMy"),
        allow_private_addresses: true,
    });
    let daemon = Daemon::start(config.validated()?, answering).await?;
    let client = Client::new(daemon.address(), &admin_key)?;

    say("1", "onboard two tenants, each with a database, a chain and an admin key of its own");
    let acme = onboard(&client, "Acme Corp", "Europe/Berlin", "team-acme-eng").await?;
    let globex = onboard(&client, "Globex", "America/New_York", "team-globex").await?;

    say("2", "give Acme a quota: 5,000 tokens a day, told at 50, 80 and 100 %, denied at the limit");
    let quotas = json!({ "quotas": [
        { "scope": { "type": "tenant" }, "metric": "tokens", "period": "day", "limit": 5_000, "thresholds": [50, 80, 100], "enforcement": "block" },
        { "scope": { "type": "tenant" }, "metric": "cost", "period": "month", "limit": "25", "enforcement": "alert" },
    ]});
    client.put(&format!("/v1/quotas/{acme}"), &quotas).await?;

    say("3", "ingest what LiteLLM posted; then the same bytes again, as its callback does");
    let mut answers = Vec::new();
    for (what, text) in CAPTURED {
        let event = moved_to_now(text)?;
        let first = client.post("/v1/usage/litellm", &event).await;
        let again = client.post("/v1/usage/litellm", &event).await;
        println!("   {what:34} {:42} again: {}", brief(&first), brief(&again));
        answers.extend(first.ok());
    }
    let accepted: i64 = answers.iter().filter_map(|answer| answer["accepted"].as_i64()).sum();
    ensure!(
        accepted == CAPTURED.len() as i64 - 1,
        "{accepted} events were counted, {} were expected",
        CAPTURED.len() - 1
    );

    say("4", "the alerts, as a webhook received them (signed, once each)");
    for _ in 0..3 {
        let alert = tokio::time::timeout(ALERT_TIMEOUT, alerts.recv())
            .await
            .context("no alert arrived")?
            .context("the receiver ended")?;
        println!("   {alert}");
    }

    say("5", "what a gateway is told");
    for (name, tenant) in [("Acme", &acme), ("Globex", &globex)] {
        let decision = client.get(&format!("/v1/quotas/{tenant}/decision?model=gpt-4o")).await?;
        println!("   {name:8} {}", decision["decision"].as_str().unwrap_or("?"));
    }

    say("6", "what was not counted, and why");
    let quarantine = client.get("/v1/quarantine").await?;
    for row in quarantine["items"].as_array().into_iter().flatten() {
        println!("   {}: {}", row["reason"].as_str().unwrap_or("?"), row["detail"].as_str().unwrap_or(""));
    }

    say("7", "prove it: recompute Acme's audit chain from its first record");
    let proof = client.get(&format!("/v1/audit/verify?tenantId={acme}")).await?;
    println!("   {proof}");
    ensure!(proof["holds"] == json!(true), "the chain does not hold");

    let base = &client.base;
    let now = Clock::system().now();
    let (from, to) = (now.plus_micros(-MICROS_PER_DAY), now.plus_micros(MICROS_PER_DAY));
    println!("\nExplore:\n   {base}/docs\n   {base}/health\n   {base}/metrics");
    println!("   curl -s -H 'Authorization: Bearer {admin_key}' {base}/v1/quotas/{acme}");
    println!(
        "   curl -s -H 'Authorization: Bearer {admin_key}' '{base}/v1/tenants/{acme}/usage?from={from}&to={to}&granularity=day&groupBy=model'"
    );
    if !exit {
        println!("\nServing until stopped (Ctrl-C).");
        crate::daemon::stop_signal().await?;
    }
    daemon.stop().await;
    println!("\nThe demo held: every event was counted once.");
    Ok(())
}

fn say(step: &str, what: &str) {
    println!("\n{step}. {what}");
}

async fn onboard(client: &Client, name: &str, time_zone: &str, team: &str) -> anyhow::Result<String> {
    let body = json!({ "name": name, "timeZone": time_zone, "externalIds": [{ "source": "litellm", "kind": "team", "id": team }] });
    let answer = client.post("/v1/tenants", &body.to_string()).await?;
    let id = answer["tenant"]["id"].as_str().context("the answer has no tenant id")?;
    println!("   {name}: tenant {id}, admin key {}…", answer["adminApiKey"]["id"].as_str().unwrap_or("?"));
    Ok(id.to_owned())
}

fn brief(answer: &anyhow::Result<Value>) -> String {
    match answer {
        Err(error) => error.to_string(),
        Ok(answer) => match answer["rejected"].get(0) {
            Some(rejected) => format!("quarantined: {}", rejected["code"].as_str().unwrap_or("?")),
            None => format!("accepted {}, duplicates {}", answer["accepted"], answer["duplicates"]),
        },
    }
}

/// The captured event as if it had happened now, so that it falls into today's quota period.
fn moved_to_now(captured: &str) -> anyhow::Result<String> {
    let mut event: Value = serde_json::from_str(captured)?;
    let now = Clock::system().now().micros() as f64 / 1e6;
    let shift = now - event["endTime"].as_f64().context("the payload has no endTime")?;
    for field in ["startTime", "endTime", "completionStartTime"] {
        if let Some(at) = event[field].as_f64() {
            event[field] = json!(at + shift);
        }
    }
    Ok(event.to_string())
}

/// A client of the daemon's own HTTP door.
struct Client {
    http: reqwest::Client,
    base: String,
    key: String,
}

impl Client {
    fn new(address: std::net::SocketAddr, key: &str) -> anyhow::Result<Client> {
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build()?;
        Ok(Client { http, base: format!("http://{address}"), key: key.to_owned() })
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.send(self.http.get(self.url(path)), path).await
    }

    async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.send(self.http.put(self.url(path)).json(body), path).await
    }

    async fn post(&self, path: &str, body: &str) -> anyhow::Result<Value> {
        let request = self.http.post(self.url(path)).header("content-type", "application/json");
        self.send(request.body(body.to_owned()), path).await
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// The JSON answer of a success, and of an ingestion that counted nothing, which explains itself too.
    async fn send(&self, request: reqwest::RequestBuilder, path: &str) -> anyhow::Result<Value> {
        let answer = request.bearer_auth(&self.key).send().await?;
        let status = answer.status();
        let body: Value = answer.json().await.with_context(|| format!("{path}: {status} without JSON"))?;
        let rejected = &body["error"]["details"]["rejected"];
        if status == reqwest::StatusCode::UNPROCESSABLE_ENTITY && rejected.is_array() {
            return Ok(json!({ "accepted": 0, "duplicates": 0, "rejected": rejected }));
        }
        ensure!(status.is_success(), "{path}: {status}: {}", body["error"]["message"].as_str().unwrap_or(""));
        Ok(body)
    }
}

/// A receiver of webhooks on this machine; passes on one line for each alert.
async fn receive_alerts() -> anyhow::Result<(std::net::SocketAddr, mpsc::Receiver<String>)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                if let Ok(Some(line)) = receive_one(stream).await {
                    let _ = sender.send(line).await;
                }
            });
        }
    });
    Ok((address, receiver))
}

/// Reads one request with a Content-Length, answers 204, and closes.
async fn receive_one(mut stream: TcpStream) -> anyhow::Result<Option<String>> {
    let mut bytes = Vec::new();
    while bytes.len() < RECEIVED_BYTES_MAX {
        if let Some(body) = complete_body(&bytes) {
            let message: Value = serde_json::from_slice(body)?;
            stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await?;
            let data = &message["data"];
            return Ok(Some(format!(
                "{}: {} % of {} reached, used {}",
                message["type"].as_str().unwrap_or("?"),
                data["threshold"],
                data["limit"],
                data["used"]
            )));
        }
        let mut part = [0; 4_096];
        match stream.read(&mut part).await? {
            0 => return Ok(None),
            read => bytes.extend_from_slice(&part[..read]),
        }
    }
    Ok(None)
}

fn complete_body(bytes: &[u8]) -> Option<&[u8]> {
    let head_end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..head_end]).ok()?.to_ascii_lowercase();
    let length: usize = head.lines().find_map(|line| line.strip_prefix("content-length:"))?.trim().parse().ok()?;
    bytes.get(head_end..head_end.checked_add(length)?)
}
