//! From a real JetStream to the ledger, with a real directory and real tenants.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use sqlx::{Connection as _, SqliteConnection};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::node_test::{NOW, Node, codes, event, fixture};
use super::record::{BodyShape, RecordError, Reporter};
use super::replayer::Replayer;
use super::usage_stream::{POISON, StreamHealth, UsageStream};
use crate::clock;
use crate::config;
use crate::domain::ids::TenantId;
use crate::domain::time::Timestamp;
use crate::domain::usage::Refusal;

pub(super) const PATIENCE: Duration = Duration::from_secs(90);

/// A JetStream of the test's own, deleted with it.
pub(super) struct Bus {
    pub(super) context: jetstream::Context,
    pub(super) nats: config::Nats,
}

impl Bus {
    pub(super) async fn open() -> Bus {
        Bus::on(std::env::var("TEST_NATS_URL").unwrap_or_else(|_| "nats://127.0.0.1:4222".into())).await
    }

    pub(super) async fn on(url: String) -> Bus {
        let word = clock::new_id().simple().to_string();
        let context = jetstream::new(async_nats::connect(&url).await.unwrap());
        let nats = config::Nats {
            url: Some(SecretString::from(url)),
            stream: format!("INTAKE_{word}"),
            consumer: "intake-test".into(),
            subject: format!("intake.{word}.updated"),
            ack_wait_ms: 2_000,
            park_after_ms: 500,
            ..config::Nats::default()
        };
        Bus { context, nats }
    }

    pub(super) fn url(&self) -> String {
        self.nats.url.as_ref().map(|url| url.expose_secret().to_owned()).unwrap()
    }

    /// Publishes this many events of one token each, named `<word><number>`.
    pub(super) async fn publish_events(&self, word: &str, tenant: TenantId, numbers: std::ops::Range<u32>) {
        let mut sent = Vec::new();
        for number in numbers {
            let body = event(&format!("{word}{number}"), Some(tenant), 1);
            sent.push(self.context.publish(self.nats.subject.clone(), body.into()).await.unwrap());
        }
        for sent in sent {
            sent.await.unwrap();
        }
    }

    pub(super) async fn publish(&self, suffix: &str, body: impl Into<Bytes>) {
        self.publish_with(suffix, HeaderMap::new(), body).await;
    }

    async fn publish_with(&self, suffix: &str, headers: HeaderMap, body: impl Into<Bytes>) {
        let subject = format!("{}{suffix}", self.nats.subject);
        self.context.publish_with_headers(subject, headers, body.into()).await.unwrap().await.unwrap();
    }

    /// Publishes with a header block as it is, past every client.
    async fn publish_raw(&self, headers: &[u8], body: &str) {
        let address = self.url().trim_start_matches("nats://").to_owned();
        let (reading, mut writing) = tokio::net::TcpStream::connect(address).await.unwrap().into_split();
        let mut lines = tokio::io::BufReader::new(reading).lines();
        let (length, whole) = (headers.len(), headers.len() + body.len());
        let connect = "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true}\r\n";
        let publish = format!("{connect}HPUB {} {length} {whole}\r\n", self.nats.subject);
        for bytes in [publish.as_bytes(), headers, body.as_bytes(), b"\r\nPING\r\n"] {
            writing.write_all(bytes).await.unwrap();
        }
        while lines.next_line().await.unwrap().expect("an answer") != "PONG" {}
    }

    /// Waits until everything published is acknowledged.
    pub(super) async fn settled(&self) {
        let settled = async {
            loop {
                if let Ok(stream) = self.context.get_stream(&self.nats.stream).await
                    && let Ok(consumer) = stream.consumer_info(&self.nats.consumer).await
                    && consumer.delivered.stream_sequence == stream.cached_info().state.last_sequence
                    && consumer.num_ack_pending == 0
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, settled).await.expect("every message is acknowledged");
    }

    pub(super) async fn close(self) {
        self.context.delete_stream(&self.nats.stream).await.unwrap();
    }
}

/// A stream that is being read.
pub(super) struct Reading {
    stop: CancellationToken,
    health: watch::Receiver<StreamHealth>,
    task: JoinHandle<()>,
}

impl Reading {
    pub(super) fn begin(node: &Node, bus: &Bus) -> Reading {
        let stream = UsageStream::new(bus.nats.clone(), node.recorder.clone(), node.clock.clone(), false);
        let (stop, health) = (CancellationToken::new(), stream.health());
        let task = tokio::spawn(stream.run(stop.clone()));
        Reading { stop, health, task }
    }

    pub(super) async fn until(&mut self, wanted: impl FnMut(&StreamHealth) -> bool) {
        tokio::time::timeout(PATIENCE, self.health.wait_for(wanted)).await.expect("the health changes").unwrap();
    }

    pub(super) async fn connected(&mut self) {
        self.until(|health| *health == StreamHealth::Connected).await;
    }

    pub(super) async fn end(self) {
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

/// Each of them ended every session that came to it, on every node, until somebody purged it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_with_headers_that_nobody_can_read_hold_nobody_up() {
    let node = Node::open().await;
    let bus = Bus::open().await;
    let mut reading = Reading::begin(&node, &bus);
    reading.connected().await;
    for (number, headers) in POISON.into_iter().enumerate() {
        bus.publish("", event(&format!("before{number}"), Some(node.acme), 1)).await;
        bus.publish_raw(headers, &event(&format!("poison{number}"), Some(node.acme), 1)).await;
    }
    bus.publish("", event("last", Some(node.acme), 1)).await;
    bus.settled().await;
    let events = POISON.len() as i64 + 1;
    assert_eq!(node.totals(node.acme).await.events, events);
    let rows = node.quarantined(None).await;
    assert_eq!(rows.len(), POISON.len());
    assert!(rows.iter().all(|row| row.reason == Refusal::Malformed && row.detail.starts_with("its headers")));
    reading.end().await;

    // Nor is one that stands at the checkpoint a reason to stop.
    bus.publish_raw(POISON[6], "{}").await;
    bus.publish("", event("behind", Some(node.acme), 1)).await;
    let mut reading = Reading::begin(&node, &bus);
    reading.connected().await;
    bus.settled().await;
    assert_eq!(node.totals(node.acme).await.events, events + 1);
    reading.end().await;
    bus.close().await;
}

/// What stands before such a message belongs to a tenant that cannot take it now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_nobody_can_read_behind_a_tenant_that_is_stuck_holds_nobody_up() {
    let node = Node::open().await;
    let bus = Bus::open().await;
    let mut reading = Reading::begin(&node, &bus);
    reading.connected().await;
    bus.publish("", event("first", Some(node.acme), 1)).await;
    bus.settled().await;
    let mut lock = SqliteConnection::connect(&format!("sqlite:{}", node.file_of(node.acme).display())).await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut lock).await.unwrap();
    bus.publish("", event("stuck", Some(node.acme), 1)).await;
    bus.publish_raw(POISON[6], "{}").await;
    bus.publish("", event("behind", Some(node.globex), 1)).await;
    let counted = async {
        while node.totals(node.globex).await.events == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.expect("it is counted meanwhile");
    sqlx::raw_sql("ROLLBACK").execute(&mut lock).await.unwrap();
    bus.settled().await;
    reading.end().await;
    bus.close().await;
}

/// The acknowledgements of its reader were ignored for as long as the consumer before it had lived.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_to_the_consumer_before_does_not_end_those_to_the_next() {
    let node = Node::open().await;
    let bus = Bus::open().await;
    let mut reading = Reading::begin(&node, &bus);
    reading.connected().await;
    bus.publish_events("before", node.acme, 0..5).await;
    bus.settled().await;
    // As the server names it: how often it was delivered, the message, the delivery, when, and how many wait.
    let late = format!("$JS.ACK.{}.{}.1.6.1000.0.0", bus.nats.stream, bus.nats.consumer);
    bus.context.client().publish(late, "+ACK".into()).await.unwrap();
    bus.context.client().flush().await.unwrap();
    bus.publish_events("behind", node.acme, 0..5).await;
    reading.until(|health| *health != StreamHealth::Connected).await;
    reading.connected().await;
    bus.settled().await;
    assert_eq!(node.totals(node.acme).await.events, 10);
    let stream = bus.context.get_stream(&bus.nats.stream).await.unwrap();
    assert_eq!(stream.consumer_info(&bus.nats.consumer).await.unwrap().num_ack_pending, 0);
    reading.end().await;
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
    let stream = UsageStream::new(nats, node.recorder.clone(), node.clock.clone(), false);
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
pub(super) struct Server {
    port: u16,
    data: tempfile::TempDir,
    process: tokio::process::Child,
}

impl Server {
    pub(super) async fn start() -> Server {
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

    pub(super) fn url(&self) -> String {
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

    /// Where it keeps what streams hold.
    pub(super) fn store(&self) -> PathBuf {
        self.data.path().join("jetstream")
    }

    pub(super) async fn kill(&mut self) {
        self.process.kill().await.unwrap();
    }

    pub(super) async fn restart(&mut self) {
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
    let node = Node::open().await;
    let node = node
        .reopened(|node| {
            std::fs::rename(node.file_of(node.acme), node.file_of(node.acme).with_extension("away")).unwrap()
        })
        .await;
    let bus = Bus::open().await;
    let mut reading = Reading::begin(&node, &bus);
    reading.connected().await;
    bus.publish_events("a", node.acme, 0..3).await;
    bus.publish_events("g", node.globex, 0..3).await;
    bus.settled().await;
    assert_eq!(node.totals(node.globex).await.events, 3);
    let kept = node.quarantined(Some(node.acme)).await;
    assert!(kept.len() == 3 && kept.iter().all(|row| row.reason == Refusal::TenantFrozen), "{kept:?}");
    // Over HTTP the sender is there to come back, and is told to.
    let shape = BodyShape::Events { content_type: "application/json".into(), ce_headers: Vec::new() };
    let body = event("h", Some(node.acme), 1).into();
    let asked = node.recorder.record_body(body, shape, Reporter::Platform, "r-1").await;
    assert!(matches!(asked, Err(RecordError::NotNow(_))), "{asked:?}");
    reading.end().await;

    // Its database is put back, and what was kept is counted without being asked for.
    let node = node
        .reopened(|node| {
            std::fs::rename(node.file_of(node.acme).with_extension("away"), node.file_of(node.acme)).unwrap()
        })
        .await;
    replayed(&node).await;
    assert_eq!(node.totals(node.acme).await.events, 3);
    bus.close().await;
}

/// Runs a replayer until nothing waits any more.
pub(super) async fn replayed(node: &Node) {
    let replayer = Replayer::new(node.recorder.clone());
    let (stop, mut parked) = (CancellationToken::new(), node.recorder.parked_events());
    let task = tokio::spawn(replayer.run(stop.clone()));
    tokio::time::timeout(PATIENCE, parked.wait_for(|parked| parked.events == Some(0)))
        .await
        .expect("all is brought back")
        .unwrap();
    stop.cancel();
    task.await.unwrap();
}

/// A tenant whose database does not answer: its neighbour's events are counted meanwhile, its own are parked, and each
/// is counted once in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_is_stuck_holds_up_nobody_and_loses_nothing() {
    let node = Node::open().await;
    let bus = Bus::open().await;
    let mut reading = Reading::begin(&node, &bus);
    reading.connected().await;
    bus.publish_events("before", node.acme, 0..10).await;
    bus.settled().await;

    let file = node.file_of(node.acme);
    let mut lock = SqliteConnection::connect(&format!("sqlite:{}", file.display())).await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut lock).await.unwrap();
    for round in 0..10 {
        bus.publish_events(&format!("a{round}-"), node.acme, 0..30).await;
        bus.publish_events(&format!("g{round}-"), node.globex, 0..30).await;
    }
    // Everything is acknowledged although the lock is still held.
    bus.settled().await;
    assert_eq!(node.totals(node.globex).await.events, 300);
    let parked = node.quarantined(Some(node.acme)).await;
    assert!(!parked.is_empty() && parked.iter().all(|row| row.reason == Refusal::TenantUnavailable), "{parked:?}");
    let waiting = node.directory.waiting_census().await.unwrap();
    assert_eq!(waiting, [(node.acme, 300)]);

    sqlx::raw_sql("ROLLBACK").execute(&mut lock).await.unwrap();
    replayed(&node).await;
    bus.publish_events("after", node.acme, 0..10).await;
    bus.settled().await;
    let totals = node.totals(node.acme).await;
    assert_eq!((totals.events, totals.amounts.unclassified_tokens), (320, 320));
    let counted: i64 =
        node.records("quarantine.replayed").await.iter().map(|record| record["rows"].as_i64().unwrap()).sum();
    assert_eq!(counted, 300);
    reading.end().await;
    bus.close().await;
}

/// What is stuck is bounded in bytes, and so is what the client asks for ahead of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_messages_that_nobody_takes_stay_in_the_stream() {
    const MESSAGES: i64 = 300;
    const BYTES: usize = 100_000;
    let node = Node::open().await;
    let mut bus = Bus::open().await;
    bus.nats.in_flight_bytes = 4 * BYTES;
    bus.nats.park_after_ms = 600_000;
    let mut reading = Reading::begin(&node, &bus);
    reading.connected().await;
    bus.publish_events("before", node.acme, 0..1).await;
    bus.settled().await;

    let file = node.file_of(node.acme);
    let mut lock = SqliteConnection::connect(&format!("sqlite:{}", file.display())).await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut lock).await.unwrap();
    let padding = format!("{{\"padding\":\"{}\",", "x".repeat(BYTES));
    for number in 0..MESSAGES {
        bus.publish("", event(&format!("long{number}"), Some(node.acme), 1).replacen('{', &padding, 1)).await;
    }
    let stream = bus.context.get_stream(&bus.nats.stream).await.unwrap();
    let delivered = async || stream.consumer_info(&bus.nats.consumer).await.unwrap().delivered.stream_sequence;
    let mut seen = delivered().await;
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = delivered().await;
        if now == seen && now > 4 {
            break;
        }
        seen = now;
    }
    let ahead_max = 2 * 8 * 1024 * 1024 / BYTES as u64;
    assert!(seen <= ahead_max + 10, "{seen} messages of {BYTES} bytes were delivered");

    sqlx::raw_sql("ROLLBACK").execute(&mut lock).await.unwrap();
    bus.settled().await;
    assert_eq!(node.totals(node.acme).await.events, MESSAGES + 1);
    reading.end().await;
    bus.close().await;
}
