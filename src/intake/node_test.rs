//! From bytes to the ledger and the quarantine, with a real directory, real tenants and a real JetStream.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use secrecy::SecretString;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::arrival::{self, Arrival, Format};
use super::record::{
    BodyShape, Consignment, ItemOutcome, RecordError, Recorder, ReplayError, ReplayOutcome, Reporter, Settled,
};
use super::usage_stream::{StreamHealth, UsageStream};
use crate::clock::{self, Clock};
use crate::config;
use crate::directory::handle::{Amendment, Handle, NewKey, NewTenant};
use crate::directory::{self, Settings};
use crate::domain::books::Cursor;
use crate::domain::ids::TenantId;
use crate::domain::report::Quarantined;
use crate::domain::request::{Answer, Request};
use crate::domain::tenant::{ExternalId, Lifecycle, Role};
use crate::domain::time::{MICROS_PER_DAY, Timestamp};
use crate::domain::usage::{Refusal, Totals};
use crate::store::database::Store;

/// A day after the captured payloads.
const NOW: &str = "2026-11-22T00:00:00Z";
const PATIENCE: Duration = Duration::from_secs(20);

/// A node on an embedded database, with acme (LiteLLM's `team-acme-eng`) and globex.
struct Node {
    directory: Handle,
    recorder: Recorder,
    clock: Clock,
    acme: TenantId,
    globex: TenantId,
    _data: tempfile::TempDir,
}

impl Node {
    async fn open() -> Node {
        let data = tempfile::tempdir().unwrap();
        let url = SecretString::from(format!("sqlite:{}", data.path().join("data").display()));
        let store = Store::open(&config::Store { url, ..config::Store::default() }).await.unwrap();
        let clock = Clock::held_at(NOW.parse().unwrap());
        let settings = Settings {
            tenants: config::Tenants { idle_ms: 600_000, ..config::Tenants::default() },
            retention_micros: 400 * MICROS_PER_DAY,
            channels: Vec::new(),
        };
        let (hints, mut committed) = mpsc::channel(16);
        tokio::spawn(async move { while committed.recv().await.is_some() {} });
        let directory = directory::open(store, settings, clock.clone(), hints).await.unwrap();
        let acme = onboard(&directory, "acme", &["team-acme-eng"]).await;
        let globex = onboard(&directory, "globex", &[]).await;
        let recorder = Recorder::new(directory.clone(), clock.clone(), config::Intake::default());
        Node { directory, recorder, clock, acme, globex, _data: data }
    }

    async fn totals(&self, tenant: TenantId) -> Totals {
        self.directory.find(tenant).await.unwrap().describe().await.unwrap().books.lifetime
    }

    async fn quarantined(&self, tenant: Option<TenantId>) -> Vec<Quarantined> {
        self.directory.quarantined(tenant, None, None, 100).await.unwrap().items
    }

    async fn record(&self, body: impl Into<Bytes>, reporter: Reporter) -> Result<Vec<ItemOutcome>, RecordError> {
        let shape = BodyShape::Events { content_type: "application/json".into(), ce_headers: Vec::new() };
        self.recorder.record_body(body.into(), shape, reporter, "r-1").await
    }
}

fn external_ids(teams: &[&str]) -> Vec<ExternalId> {
    let id = |team: &&str| ExternalId { source: "litellm".into(), kind: "team".into(), id: (*team).into() };
    teams.iter().map(id).collect()
}

fn request() -> Request {
    Request { actor: "platform".into(), request_id: "r-1".into(), idempotency: None }
}

async fn onboard(directory: &Handle, name: &str, teams: &[&str]) -> TenantId {
    let tenant = NewTenant {
        name: name.into(),
        slug: None,
        tier: "standard".into(),
        time_zone: "UTC".into(),
        external_ids: external_ids(teams),
        settings: "{}".into(),
    };
    let key = NewKey { id: format!("key-{name}"), hash: [7; 32], name: "admin".into(), role: Role::Admin };
    match directory.onboard(tenant, key, request(), |_| String::new()).await.unwrap() {
        Answer::Fresh(onboarded) => onboarded.tenant.id,
        Answer::Replayed(answer) => panic!("replayed {answer}"),
    }
}

fn fixture(name: &str) -> Bytes {
    Bytes::from(fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/litellm").join(name)).unwrap())
}

fn event(id: &str, tenant: Option<TenantId>, tokens: i64) -> String {
    let tenant = tenant.map(|tenant| format!("\"tenantId\":\"{tenant}\",")).unwrap_or_default();
    format!(
        r#"{{"eventId":"{id}","occurredAt":"2026-11-21T10:00:00Z",{tenant}"payload":{{"usage":{{"tokens":{tokens}}}}}}}"#
    )
}

fn code(outcome: &ItemOutcome) -> &'static str {
    match outcome {
        ItemOutcome::Accepted => "accepted",
        ItemOutcome::Duplicate => "duplicate",
        ItemOutcome::Conflict => "conflict",
        ItemOutcome::Rejected { code, .. } => code,
    }
}

fn codes(outcomes: &[ItemOutcome]) -> Vec<&'static str> {
    outcomes.iter().map(code).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_answered_item_by_item_after_the_commit() {
    let node = Node::open().await;
    let (acme, globex) = (node.acme, node.globex);
    let body = [
        event("1", Some(acme), 5),
        event("1", Some(acme), 5),
        event("1", Some(acme), 6),
        event("1", Some(globex), 7),
        event("2", None, 1),
        event("3", Some(TenantId(uuid::Uuid::from_u128(9))), 1),
        event("4", Some(acme), -1),
        event("old", Some(acme), 1).replace("2026-11-21", "2020-01-01"),
        event("new", Some(acme), 1).replace("2026-11-21", "2027-01-01"),
        "7".to_owned(),
    ];
    let outcomes = node.record(format!("[{}]", body.join(",")), Reporter::Platform).await.unwrap();
    let expected = [
        "accepted",
        "duplicate",
        "conflict",
        "accepted",
        "UNKNOWN_TENANT",
        "UNKNOWN_TENANT",
        "MALFORMED_EVENT",
        "EVENT_TOO_OLD",
        "EVENT_FROM_THE_FUTURE",
        "MALFORMED_EVENT",
    ];
    assert_eq!(codes(&outcomes), expected);
    assert_eq!(node.totals(acme).await.amounts.unclassified_tokens, 5);
    assert_eq!(node.totals(globex).await.amounts.unclassified_tokens, 7);
    let kept = node.quarantined(None).await;
    assert_eq!(kept.len(), 6);
    assert!(kept.iter().all(|row| row.origin == "http:/v1/usage/events" && row.format == "events"));
    // What is the tenant's beyond doubt is the tenant's to see, and nothing else is.
    let mut reasons: Vec<Refusal> = node.quarantined(Some(acme)).await.into_iter().map(|row| row.reason).collect();
    reasons.sort_by_key(|reason| reason.code());
    assert_eq!(reasons, [Refusal::FromTheFuture, Refusal::TooOld]);
    assert!(node.quarantined(Some(globex)).await.is_empty());

    // The same body again changes nothing, the quarantine included.
    let again = node.record(format!("[{}]", body.join(",")), Reporter::Platform).await.unwrap();
    assert_eq!(codes(&again)[..4], ["duplicate", "duplicate", "conflict", "duplicate"]);
    assert_eq!(node.quarantined(None).await.len(), 6);
    assert_eq!(node.totals(acme).await.events, 1);

    assert!(matches!(node.record("tokens=5", Reporter::Platform).await, Err(RecordError::NotJson(_))));
    let many = format!("[{}0]", "0,".repeat(5_000));
    assert_eq!(node.record(many, Reporter::Platform).await, Err(RecordError::TooManyItems { limit: 5_000 }));
    assert_eq!(node.record("[]", Reporter::Platform).await, Ok(Vec::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_credential_reports_for_itself_alone_even_when_replayed() {
    let node = Node::open().await;
    let (acme, globex) = (node.acme, node.globex);
    let reporter = Reporter::Tenant(globex);
    let body = format!("[{},{}]", event("1", None, 5), event("2", Some(acme), 5));
    let outcomes = node.record(body, reporter).await.unwrap();
    assert_eq!(codes(&outcomes), ["accepted", "TENANT_MISMATCH"]);
    let payload = fixture("chat_openai_nonstream_minimal.json");
    let outcomes = node.recorder.record_body(payload, BodyShape::LiteLlm, reporter, "").await.unwrap();
    assert_eq!(codes(&outcomes), ["TENANT_MISMATCH"]);
    for row in node.quarantined(None).await {
        let replayed = node.recorder.replay(row.id, request()).await.unwrap();
        assert!(matches!(replayed, ReplayOutcome::StillRefused { code: "TENANT_MISMATCH", .. }), "{replayed:?}");
    }
    assert_eq!(node.totals(acme).await.events, 0);
    assert_eq!(node.totals(globex).await.events, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quarantined_event_is_counted_once_its_tenant_is_known() {
    let node = Node::open().await;
    let payload = fixture("chat_second_tenant_globex.json");
    let record = || node.recorder.record_body(payload.clone(), BodyShape::LiteLlm, Reporter::Platform, "");
    assert_eq!(codes(&record().await.unwrap()), ["UNKNOWN_TENANT"]);
    let row = node.quarantined(None).await.remove(0);
    assert_eq!(row.format, "litellm");
    assert!(row.body == payload.trim_ascii(), "the bytes are kept as they came");

    let amendment = Amendment { external_ids: Some(external_ids(&["team-globex"])), ..Amendment::default() };
    node.directory.amend(node.globex, amendment, request()).await.unwrap();
    assert_eq!(node.recorder.replay(row.id, request()).await, Ok(ReplayOutcome::Counted));
    assert_eq!(node.recorder.replay(row.id, request()).await, Err(ReplayError::AlreadyReplayed));
    assert_eq!(node.recorder.replay(clock::new_id(), request()).await, Err(ReplayError::Unknown));
    // A suspended tenant's usage is still counted, and so still recognised.
    node.directory.shift(node.globex, Lifecycle::Suspended, request()).await.unwrap();
    assert_eq!(codes(&record().await.unwrap()), ["duplicate"]);
    let totals = node.totals(node.globex).await;
    assert_eq!((totals.events, totals.amounts.prompt_tokens, totals.amounts.cost.0), (1, 57, 312_500));
}

/// A JetStream of the test's own, deleted with it.
struct Bus {
    context: jetstream::Context,
    nats: config::Nats,
}

impl Bus {
    async fn open() -> Bus {
        Bus::on(std::env::var("TEST_NATS_URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".into())).await
    }

    async fn on(url: String) -> Bus {
        let word = clock::new_id().simple().to_string();
        let context = jetstream::new(async_nats::connect(&url).await.unwrap());
        let nats = config::Nats {
            url: Some(SecretString::from(url)),
            stream: format!("INTAKE_{word}"),
            consumer: "intake-test".into(),
            subject: format!("intake.{word}.updated"),
            nak_delay_ms: 100,
            ack_wait_ms: 2_000,
            ..config::Nats::default()
        };
        Bus { context, nats }
    }

    async fn publish(&self, suffix: &str, body: impl Into<Bytes>) {
        self.publish_with(suffix, HeaderMap::new(), body).await;
    }

    async fn publish_with(&self, suffix: &str, headers: HeaderMap, body: impl Into<Bytes>) {
        let subject = format!("{}{suffix}", self.nats.subject);
        self.context.publish_with_headers(subject, headers, body.into()).await.unwrap().await.unwrap();
    }

    /// Waits until everything published is acknowledged.
    async fn settled(&self) {
        let settled = async {
            loop {
                if let Ok(stream) = self.context.get_stream(&self.nats.stream).await
                    && let Ok(consumer) = stream.consumer_info(&self.nats.consumer).await
                    && consumer.ack_floor.stream_sequence == stream.cached_info().state.last_sequence
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, settled).await.expect("every message is acknowledged");
    }

    async fn close(self) {
        self.context.delete_stream(&self.nats.stream).await.unwrap();
    }
}

struct Reading {
    stop: CancellationToken,
    health: watch::Receiver<StreamHealth>,
    task: JoinHandle<()>,
}

impl Reading {
    fn begin(node: &Node, bus: &Bus) -> Reading {
        let stream = UsageStream::new(bus.nats.clone(), node.recorder.clone(), node.clock.clone());
        let (stop, health) = (CancellationToken::new(), stream.health());
        let task = tokio::spawn(stream.run(stop.clone()));
        Reading { stop, health, task }
    }

    async fn until(&mut self, wanted: impl FnMut(&StreamHealth) -> bool) {
        tokio::time::timeout(PATIENCE, self.health.wait_for(wanted)).await.expect("the health changes").unwrap();
    }

    async fn connected(&mut self) {
        self.until(|health| *health == StreamHealth::Connected).await;
    }

    async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("it stops").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_counted_once_and_garbage_does_not_hold_it_up() {
    let node = Node::open().await;
    let bus = Bus::open().await;
    let mut reading = Reading::begin(&node, &bus);
    reading.connected().await;
    let (acme, globex) = (node.acme, node.globex);
    for number in 0..300 {
        bus.publish("", event(&format!("a{number}"), Some(acme), 1)).await;
    }
    bus.publish("", event("a0", Some(acme), 1)).await;
    bus.publish(&format!(".{globex}"), event("g", None, 10)).await;
    bus.publish("", format!("[{},{}]", event("g2", Some(globex), 20), event("b", Some(acme), 3))).await;
    bus.publish("", fixture("chat_openai_nonstream_minimal.json")).await;
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-id", "c"),
        ("ce-source", "/gateway"),
        ("ce-type", "usage"),
        ("ce-time", "2026-11-21T10:00:00Z"),
        ("ce-tenantid", &globex.to_string()),
    ] {
        headers.insert(name, value);
    }
    bus.publish_with("", headers, r#"{"usage":{"tokens":40}}"#).await;
    // None of these counts, and none of them comes again.
    bus.publish("", "garbage").await;
    bus.publish("", "").await;
    bus.publish("", vec![0xff; 10]).await;
    bus.publish("", event("x", None, 1)).await;
    bus.publish(".acme", event("x", None, 1)).await;
    bus.publish(&format!(".{globex}"), event("x", Some(acme), 1)).await;
    bus.settled().await;

    let of_acme = node.totals(acme).await;
    assert_eq!((of_acme.events, of_acme.amounts.unclassified_tokens, of_acme.amounts.prompt_tokens), (302, 303, 57));
    let of_globex = node.totals(globex).await;
    assert_eq!((of_globex.events, of_globex.amounts.unclassified_tokens), (3, 70));
    let mut reasons: Vec<&str> = node.quarantined(None).await.iter().map(|row| row.reason.code()).collect();
    reasons.sort_unstable();
    assert_eq!(
        reasons,
        [
            "MALFORMED_EVENT",
            "MALFORMED_EVENT",
            "MALFORMED_EVENT",
            "TENANT_MISMATCH",
            "UNKNOWN_TENANT",
            "UNKNOWN_TENANT"
        ]
    );
    reading.end().await;

    // The acknowledgements had arrived when it ended: a second daemon finds nothing to do.
    let stream = bus.context.get_stream(&bus.nats.stream).await.unwrap();
    let info = stream.consumer_info(&bus.nats.consumer).await.unwrap();
    assert_eq!((info.num_pending, info.num_ack_pending), (0, 0));
    bus.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_made_anew_is_read_again_and_counted_once() {
    let node = Node::open().await;
    let bus = Bus::open().await;
    let mut reading = Reading::begin(&node, &bus);
    reading.connected().await;
    for number in 0..50 {
        bus.publish("", event(&format!("e{number}"), Some(node.acme), 1)).await;
    }
    bus.settled().await;
    bus.context.delete_stream(&bus.nats.stream).await.unwrap();
    reading.until(|health| *health != StreamHealth::Connected).await;
    reading.connected().await;
    for number in 40..60 {
        bus.publish("", event(&format!("e{number}"), Some(node.acme), 1)).await;
    }
    bus.settled().await;
    assert_eq!(node.totals(node.acme).await.events, 60);
    reading.end().await;
    bus.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_would_lose_events_is_refused_until_it_is_repaired() {
    let node = Node::open().await;
    let bus = Bus::open().await;
    let subjects = vec![bus.nats.subject.clone(), format!("{}.*", bus.nats.subject)];
    let retention = stream::RetentionPolicy::WorkQueue;
    let queue = stream::Config { name: bus.nats.stream.clone(), subjects, retention, ..stream::Config::default() };
    bus.context.create_stream(queue).await.unwrap();
    let mut reading = Reading::begin(&node, &bus);
    let names_retention = |health: &StreamHealth| matches!(health, StreamHealth::Disconnected { reason, .. } if reason.contains("WorkQueue"));
    reading.until(names_retention).await;
    bus.context.delete_stream(&bus.nats.stream).await.unwrap();
    reading.connected().await;
    bus.publish("", event("1", Some(node.acme), 1)).await;
    bus.settled().await;
    assert_eq!(node.totals(node.acme).await.events, 1);
    reading.end().await;
    bus.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_nats_it_says_so_and_stops_when_told() {
    let node = Node::open().await;
    let nats = config::Nats {
        url: Some(SecretString::from("nats://user:hunter2@127.0.0.1:1".to_owned())),
        ..config::Nats::default()
    };
    let stream = UsageStream::new(nats, node.recorder.clone(), node.clock.clone());
    let (stop, mut health) = (CancellationToken::new(), stream.health());
    let task = tokio::spawn(stream.run(stop.clone()));
    let unreachable = |health: &StreamHealth| matches!(health, StreamHealth::Disconnected { reason, .. } if reason.contains("reached"));
    let seen = tokio::time::timeout(PATIENCE, health.wait_for(unreachable)).await.unwrap().unwrap().clone();
    assert!(!format!("{seen:?}").contains("hunter2"));
    let StreamHealth::Disconnected { since, .. } = seen else { unreachable!() };
    assert_eq!(since, NOW.parse::<Timestamp>().unwrap());
    stop.cancel();
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
}

/// A NATS server of the test's own, which may be killed.
struct Server {
    port: u16,
    data: tempfile::TempDir,
    process: tokio::process::Child,
}

impl Server {
    async fn start() -> Server {
        let data = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Server::spawn(port, &data);
        let server = Server { port, data, process };
        server.answers().await;
        server
    }

    fn spawn(port: u16, data: &tempfile::TempDir) -> tokio::process::Child {
        // Debian installs it where only an administrator's PATH looks.
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        tokio::process::Command::new("nats-server")
            .env("PATH", path)
            .args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
            .arg(data.path())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("nats-server is installed")
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    async fn answers(&self) {
        let answers = async {
            while async_nats::connect(self.url()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, answers).await.expect("the server answers");
    }

    async fn kill(&mut self) {
        self.process.kill().await.unwrap();
    }

    async fn restart(&mut self) {
        self.process = Server::spawn(self.port, &self.data);
        self.answers().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_degrades_health_and_loses_nothing_it_kept() {
    let node = Node::open().await;
    let mut server = Server::start().await;
    let bus = Bus::on(server.url()).await;
    let mut reading = Reading::begin(&node, &bus);
    reading.connected().await;
    for round in 0..3 {
        for number in 0..100 {
            bus.publish("", event(&format!("{round}-{number}"), Some(node.acme), 1)).await;
        }
        server.kill().await;
        reading.until(|health| *health != StreamHealth::Connected).await;
        // HTTP goes on meanwhile.
        let outcomes = node.record(event(&format!("http-{round}"), Some(node.acme), 1), Reporter::Platform).await;
        assert_eq!(codes(&outcomes.unwrap()), ["accepted"]);
        server.restart().await;
        reading.connected().await;
    }
    bus.settled().await;
    assert_eq!(node.totals(node.acme).await.events, 303);
    reading.end().await;
}

/// A tenant that waits for a person: what a stream brings for it is kept aside, and holds up nobody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_tenant_does_not_hold_up_the_stream() {
    let Node { directory, recorder, clock, acme, globex, _data: data } = Node::open().await;
    directory.drain(PATIENCE).await;
    drop((directory, recorder));
    let tenants = data.path().join("data/tenants");
    for entry in fs::read_dir(&tenants).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with(&acme.to_string()) {
            fs::remove_file(path).unwrap();
        }
    }
    let url = SecretString::from(format!("sqlite:{}", data.path().join("data").display()));
    let store = Store::open(&config::Store { url, ..config::Store::default() }).await.unwrap();
    let settings =
        Settings { tenants: config::Tenants::default(), retention_micros: 400 * MICROS_PER_DAY, channels: Vec::new() };
    let directory = directory::open(store, settings, clock.clone(), mpsc::channel(16).0).await.unwrap();
    let recorder = Recorder::new(directory.clone(), clock, config::Intake::default());

    let format = Format::Events;
    let arrival =
        Arrival { origin: "nats:quota.updated".into(), format, request_id: String::new(), patience: PATIENCE };
    let consignment = |number: i64, tenant| Consignment {
        items: arrival::read(&event("1", Some(tenant), 5).into(), format, recorder.limits(format)).unwrap().items,
        reporter: Reporter::Platform,
        arrival: Arc::new(arrival.clone()),
        cursor: Some(Cursor { stream: "USAGE".into(), sequence: number }),
    };
    let settled = recorder.settle(vec![consignment(1, acme), consignment(2, globex)]).await;
    let done: Vec<&'static str> = settled
        .iter()
        .flatten()
        .map(|settled| match settled {
            Settled::Done(outcome) => code(outcome),
            Settled::Later(_) => "later",
        })
        .collect();
    assert_eq!(done, ["TENANT_FROZEN", "accepted"]);
    // Over HTTP the sender is there to come back, and is told to.
    let shape = BodyShape::Events { content_type: "application/json".into(), ce_headers: Vec::new() };
    let asked = recorder.record_body(event("2", Some(acme), 5).into(), shape, Reporter::Platform, "r-1").await;
    assert!(matches!(asked, Err(RecordError::NotNow(_))), "{asked:?}");
    let kept = directory.quarantined(Some(acme), Some(Refusal::TenantFrozen), None, 10).await.unwrap().items;
    assert_eq!(kept.len(), 1);
    directory.drain(PATIENCE).await;
}
