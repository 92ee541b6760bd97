//! Matrix 2b and 2e: more connections than files, more messages than room. What is in hand is served, the rest waits.

use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::sleep;

use super::World;
use crate::harness::bus::Bus;
use crate::harness::database::Database;
use crate::harness::load::Target;
use crate::harness::process::Holdings;
use crate::harness::{Daemon, Engine, Setup, eventually};

/// Messages for a tenant that takes none.
const FLOOD: usize = 10_000;
/// Events that may be parked in a test of that, and what is said when they are.
const PARKED_MAX: usize = 10;
const FULL: &str = "as many events are parked as may be";
/// What a daemon may grow by while they wait. Built for tests it is several times as large as it will be.
const GROWTH_KIB_MAX: u64 = 200 * 1_024;

#[tokio::test(flavor = "multi_thread")]
async fn without_a_file_to_open_it_waits_and_goes_on() {
    let mut world = World::on(Engine::Sqlite, |setup| setup.with("TENANTS__IDLE_MS", 500)).await;
    world.suffers("2e: no file descriptors", |world| Box::pin(out_of_files(world))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_for_a_tenant_that_takes_nothing_stays_with_the_stream() {
    let mut world = World::on(Engine::Postgres, |setup| setup).await;
    world.suffers("2b: flood of one tenant", |world| Box::pin(flood(world))).await;
}

/// Its events are parked as far as may be, and stay in the stream beyond that; a restart changes neither. When its
/// database is back each of them is counted once.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_parked_stays_in_the_stream_until_its_tenant_is_back() {
    let setup = Setup::on(Engine::Sqlite).with_nats().with("INTAKE__PARKED_EVENTS_MAX", PARKED_MAX);
    let mut daemon = setup.with("NATS__ACK_WAIT_MS", 3_000).start().await;
    let bus = daemon.bus().await;
    let (away, quiet) = (Target::onboard(&daemon, "Away").await, Target::onboard(&daemon, "Quiet").await);
    away.is_served().await;
    daemon.terminate().await;
    let file = daemon.tenant_file(&away.tenant.id);
    let aside = file.with_extension("aside");
    std::fs::rename(&file, &aside).expect("it is there");
    daemon.restart().await;
    publish_to(&bus, &away, PARKED_MAX * 4).await;
    is_full(&daemon).await;
    quiet.is_served().await;
    publish_to(&bus, &quiet, 5).await;
    eventually("the neighbour's events", || async { (quiet.tenant.ledger().await.len() == 6).then_some(()) }).await;
    let answer = away.tenant.api.post("/v1/usage/events", &Value::Array(vec![away.tenant.event().json()])).await;
    assert_eq!((answer.status, answer.code()), (503, "TENANT_FROZEN"));
    assert_eq!(daemon.log().matches(FULL).count(), 1, "on-call is told once");
    assert!(bus.backlog().await >= (PARKED_MAX * 3) as u64, "what is not kept is not acknowledged");

    daemon.terminate().await;
    daemon.restart().await;
    publish_to(&bus, &away, PARKED_MAX).await;
    is_full(&daemon).await;
    assert_eq!(daemon.log().matches(FULL).count(), 2, "once by each process");

    daemon.terminate().await;
    std::fs::rename(&aside, &file).expect("it is there");
    daemon.restart().await;
    daemon.drained(&bus).await;
    eventually("nothing to be parked", || async { (standing(&daemon).await == "up").then_some(()) }).await;
    for target in [&away, &quiet] {
        target.check(&daemon, None).await;
    }
    assert_eq!(daemon.log().matches("events can be parked again").count(), 1);
}

/// The parking is full, and the health says so.
async fn is_full(daemon: &Daemon) {
    eventually("a full parking", || async { (standing(daemon).await == "down").then_some(()) }).await;
    // They count before they are written.
    eventually("what is parked", || async { (parked(daemon).await == PARKED_MAX).then_some(()) }).await;
    let metrics = daemon.platform.anonymous().get("/metrics").await.text;
    for name in ["platform_api_parked_events", "platform_api_parked_events_max"] {
        assert!(metrics.lines().any(|line| line == format!("{name} {PARKED_MAX}")), "{name}");
    }
}

async fn standing(daemon: &Daemon) -> String {
    let health = daemon.platform.anonymous().get("/health").await;
    health.body["dependencies"]["parked-usage"]["status"].as_str().expect("a word").to_owned()
}

/// Rows that wait.
async fn parked(daemon: &Daemon) -> usize {
    let rows = daemon.platform.pages("/v1/quarantine", 50).await;
    rows.iter().filter(|row| row["reason"] == "TENANT_FROZEN" || row["reason"] == "TENANT_UNAVAILABLE").count()
}

async fn publish_to(bus: &Bus, target: &Target, events: usize) {
    for _ in 0..events {
        let event = target.tenant.event().tokens(1, 0);
        target.oracle.sends(&event);
        let sequence = bus.publish(&event.json()).await;
        target.oracle.published(sequence, &event);
    }
}

/// As many connections as it can take and more, while tenants rest and want to be opened.
pub async fn out_of_files(world: &mut World) {
    let resting = world.daemon.onboard("Resting").await;
    let process = world.daemon.process();
    let under_load = world.targets.len();
    eventually("it to rest", || async { (open_tenants(world).await <= under_load).then_some(()) }).await;
    let (before, most) = (files_limit(process), Holdings::of(process).files + 8);
    limit_files(process, most).await;
    let mut crowd = Vec::new();
    for _ in 0..most {
        crowd.push(TcpStream::connect(world.daemon.platform.base().trim_start_matches("http://")).await);
    }
    let pauses = || async { world.daemon.log().contains("accepting connections pauses").then_some(()) };
    eventually("the door to notice", pauses).await;
    sleep(Duration::from_secs(2)).await;
    drop(crowd);
    limit_files(process, before).await;
    let wakes = || async {
        let answer = resting.api.get(&format!("/v1/quotas/{}", resting.id)).await;
        assert_ne!(answer.code(), "TENANT_FROZEN", "for want of a file to open");
        (answer.status == 200).then_some(())
    };
    eventually("the resting tenant to wake", wakes).await;
    assert_eq!(world.daemon.process(), process);
}

/// Tenants that are open.
async fn open_tenants(world: &World) -> usize {
    let metrics = world.daemon.platform.anonymous().get("/metrics").await.text;
    let count = metrics.lines().find_map(|line| line.strip_prefix("platform_api_tenants{state=\"open\"} "));
    count.and_then(|count| count.parse().ok()).expect("a gauge of ours")
}

/// How many files a process may have open.
fn files_limit(process: u32) -> usize {
    let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).expect("the process runs");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    line.split_whitespace().nth(3).and_then(|word| word.parse().ok()).expect("a number")
}

async fn limit_files(process: u32, soft: usize) {
    let limit = ["--pid", &process.to_string(), &format!("--nofile={soft}:")].map(str::to_owned);
    let limited = Command::new("prlimit").args(limit).status().await.expect("prlimit is there");
    assert!(limited.success());
}

/// Somebody else holds the row that every commit of a tenant needs, and its messages come by the thousand.
pub async fn flood(world: &mut World) {
    let (loud, quiet) = (&world.targets[0], &world.targets[1]);
    let process = world.daemon.process();
    let before = Holdings::of(process);
    let mut holder = Database::of_tenant(&world.daemon, &loud.tenant.id).await;
    let lock = match world.daemon.engine {
        Engine::Postgres => "BEGIN; SELECT 1 FROM books FOR UPDATE",
        Engine::Sqlite => "PRAGMA busy_timeout = 10000; BEGIN IMMEDIATE",
    };
    holder.script(lock.into()).await.expect("the lock");
    publish_many(world, loud).await;
    let mut most = before.resident_kib;
    for _ in 0..10 {
        quiet.is_served().await;
        most = most.max(Holdings::of(process).resident_kib);
        sleep(Duration::from_millis(300)).await;
    }
    holder.script("ROLLBACK".into()).await.expect("the lock is ours");
    world.load().holds_the_stream(true).await;
    world.daemon.drained(&world.bus).await;
    world.load().holds_the_stream(false).await;
    most = most.max(Holdings::of(process).resident_kib);
    println!("{FLOOD} messages waited; resident {} KiB before, {most} KiB at most", before.resident_kib);
    assert!(most < before.resident_kib + GROWTH_KIB_MAX, "{} KiB grew to {most} KiB", before.resident_kib);
}

/// As fast as the stream takes them.
async fn publish_many(world: &World, target: &Target) {
    for _ in 0..FLOOD / 500 {
        let mut answers = Vec::new();
        for _ in 0..500 {
            let event = target.tenant.event().tokens(1, 0);
            target.oracle.sends(&event);
            let bytes = Value::to_string(&event.json());
            answers.push((world.bus.jetstream.publish(world.bus.subject.clone(), bytes.into()).await, event));
        }
        for (answer, event) in answers {
            let sequence = answer.expect("connected").await.expect("the stream takes it").sequence;
            target.oracle.published(sequence, &event);
        }
    }
}
