//! Events from the sender to the commit, counted exactly, and the yardsticks beside it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::jetstream;
use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

use crate::events::{self, TOKENS};
use crate::figures::{Cpu, Group, Table, per_second};
use crate::link::{Link, request};
use crate::plant::{Plant, call};
use crate::yardstick::{self, Ledger};
use crate::{Ingest, Payload, StoreKind, Surroundings, Via};

/// How long nothing may be committed before the run is given up.
const STALL: Duration = Duration::from_secs(60);
/// How often the daemon is asked how far it is: rarely enough to cost nothing.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(crate) async fn run(ingest: &Ingest, surroundings: &Surroundings) -> anyhow::Result<()> {
    ensure!(!ingest.backlog || ingest.via == Via::Nats, "only a stream keeps a backlog");
    let mut plant = Plant::start(ingest.store, ingest.via == Via::Nats, surroundings).await?;
    let outcome = measured(&mut plant, ingest).await;
    if outcome.is_err() {
        eprintln!("the daemon's log:\n{}", plant.log());
    }
    let ended = plant.end().await;
    outcome?.print();
    ended
}

async fn measured(plant: &mut Plant, ingest: &Ingest) -> anyhow::Result<Table> {
    plant.onboard(ingest.tenants).await?;
    eprintln!("making {} events", ingest.events);
    let events = events::make(ingest.payload, ingest.ids, &plant.tenants, ingest.events)?;
    let mut table = Table::default();
    table.row("run", format!("{ingest:?}"));
    table.row("event", format!("{} bytes", events::mean_bytes(&events)?));
    if ingest.store == StoreKind::Postgres {
        plant.administer("CHECKPOINT").await?;
    }

    if ingest.backlog {
        plant.halt().await?;
        publish(plant, &events, ingest.in_flight).await?;
    }
    let cpu = Cpu::start(vec![
        ("daemon", plant.daemon()),
        ("postgres", plant.backends()),
        ("nats", Group::Named(vec!["nats-server".into()])),
        ("sender", Group::Process(std::process::id())),
    ]);
    let began = Instant::now();
    let cpu = if ingest.backlog {
        plant.launch().await?;
        Cpu::start(vec![
            ("daemon", plant.daemon()),
            ("postgres", plant.backends()),
            ("nats", Group::Named(vec!["nats-server".into()])),
        ])
    } else {
        match ingest.via {
            Via::Nats => publish(plant, &events, ingest.in_flight).await?,
            Via::Http => post(plant, ingest, &events).await?,
        }
        cpu
    };
    let sent = began.elapsed();
    let took = committed(plant, ingest.events, began).await?;
    let spent = cpu.text(ingest.events);
    let ours = per_second(ingest.events, took);
    table.row("counted", format!("{ours:.0} events/s ({:.2} s, {})", took.as_secs_f64(), commits(plant).await?));
    if !ingest.backlog {
        table.row("sent", format!("{:.0} events/s", per_second(ingest.events, sent)));
    }
    table.row("CPU", spent);
    verify(plant, ingest, &mut table).await?;
    compare(plant, ingest, ours, &mut table).await?;
    Ok(table)
}

/// Publishes all of them, each to its tenant's subject; returns when the stream has confirmed every one.
async fn publish(plant: &Plant, events: &[Bytes], in_flight: u32) -> anyhow::Result<()> {
    eprintln!("publishing");
    let client = async_nats::connect(&plant.surroundings.nats).await.context("connecting to NATS")?;
    let window = in_flight as usize * 1_000;
    let context = jetstream::ContextBuilder::new().max_ack_inflight(window + 1).build(client);
    let subjects: Vec<String> =
        plant.tenants.iter().map(|tenant| format!("{}.{}", plant.subject(), tenant.id)).collect();
    let mut waiting = VecDeque::with_capacity(window);
    for (event, subject) in events.iter().zip(subjects.iter().cycle()) {
        if waiting.len() >= window
            && let Some(oldest) = waiting.pop_front()
        {
            confirmed(oldest).await?;
        }
        waiting.push_back(context.publish(subject.clone(), event.clone()).await?);
    }
    for publish in waiting {
        confirmed(publish).await?;
    }
    Ok(())
}

async fn confirmed(publish: jetstream::context::PublishAckFuture) -> anyhow::Result<()> {
    publish.await.context("the stream did not take an event")?;
    Ok(())
}

/// Posts all of them, a batch for one tenant at a time, over `in_flight` connections.
async fn post(plant: &Plant, ingest: &Ingest, events: &[Bytes]) -> anyhow::Result<()> {
    eprintln!("posting");
    let path = match ingest.payload {
        Payload::Compact => "/v1/usage/events",
        Payload::Litellm => "/v1/usage/litellm",
    };
    let tenants = plant.tenants.len();
    let mut requests = Vec::new();
    for (at, tenant) in plant.tenants.iter().enumerate() {
        let theirs: Vec<Bytes> = events.iter().skip(at).step_by(tenants).cloned().collect();
        for batch in theirs.chunks(ingest.batch as usize) {
            requests.push((request("POST", path, &tenant.key, Some(&events::body(batch))), batch.len()));
        }
    }
    let requests = Arc::new(requests);
    let next = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut posting = tokio::task::JoinSet::new();
    for _ in 0..ingest.in_flight {
        let (requests, next, address) = (requests.clone(), next.clone(), plant.address.clone());
        posting.spawn(async move {
            let mut link = Link::to(&address).await?;
            while let Some((request, count)) = requests.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                post_one(&mut link, request, *count).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = posting.join_next().await {
        ended??;
    }
    Ok(())
}

/// One batch, again and again while the tenant says that it is saturated.
async fn post_one(link: &mut Link, request: &[u8], count: usize) -> anyhow::Result<()> {
    loop {
        let answer = link.send(request).await?;
        if matches!(answer.status, 429 | 503) {
            sleep(LOOK_EVERY).await;
            continue;
        }
        let told = answer.json()?;
        let taken = told["accepted"].as_u64().unwrap_or(0) + told["duplicates"].as_u64().unwrap_or(0);
        ensure!(taken == count as u64, "{count} events were posted: {told}");
        return Ok(());
    }
}

/// Waits until every event is committed; how long that took since `began`.
async fn committed(plant: &Plant, events: u64, began: Instant) -> anyhow::Result<Duration> {
    let mut link = Link::to(&plant.address).await?;
    let (mut best, mut progress, mut told) = (-1, Instant::now(), Instant::now());
    loop {
        // A tenant that is being opened answers 503.
        let (counted, _) = plant.counted(&mut link).await.unwrap_or((0, 0));
        ensure!(counted <= events as i64, "{counted} were counted of {events}");
        if counted == events as i64 {
            return Ok(began.elapsed());
        }
        if counted > best {
            (best, progress) = (counted, Instant::now());
        }
        if told.elapsed() > Duration::from_secs(2) {
            eprintln!("{counted} of {events}");
            told = Instant::now();
        }
        ensure!(progress.elapsed() < STALL, "nothing was committed for {STALL:?} after {counted} of {events}");
        sleep(LOOK_EVERY).await;
    }
}

/// How many commits the daemon made, and how long they took, from its own metrics.
async fn commits(plant: &Plant) -> anyhow::Result<String> {
    let mut link = Link::to(&plant.address).await?;
    let question = request("GET", "/metrics", "", None);
    let answer = timeout(STALL, link.send(&question)).await??;
    let text = String::from_utf8_lossy(answer.body).into_owned();
    let sum = |name: &str| -> f64 {
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    let (count, seconds) = (sum("platform_api_commit_seconds_count"), sum("platform_api_commit_seconds_sum"));
    let events = sum("platform_api_commit_events_sum");
    Ok(format!("{count:.0} commits of {:.0} events and {:.1} ms", events / count, seconds * 1e3 / count))
}

/// Every event is in the ledger once, the sums agree, and the chains hold.
async fn verify(plant: &Plant, ingest: &Ingest, table: &mut Table) -> anyhow::Result<()> {
    eprintln!("verifying");
    let mut link = Link::to(&plant.address).await?;
    let (counted, tokens) = plant.counted(&mut link).await?;
    let (mut rows, mut sum) = (0, 0);
    for tenant in &plant.tenants {
        let mut ledger = Ledger::open(plant, tenant).await?;
        let (theirs, tokens) = ledger.sums().await?;
        (rows, sum) = (rows + theirs, sum + tokens);
        let verdict = call(&mut link, "GET", "/v1/audit/verify", &tenant.key, None).await?;
        ensure!(verdict["holds"] == true, "a chain does not hold: {verdict}");
    }
    let sent = ingest.events as i64;
    ensure!(counted == sent && rows == sent, "{sent} were sent, quotas say {counted}, the ledgers {rows}");
    ensure!(tokens == sent * TOKENS && sum == tokens, "{} tokens sent, quotas {tokens}, ledgers {sum}", sent * TOKENS);
    table
        .row("exact", format!("sent = quotas = ledgers = {sent} events, {sum} tokens; {} chains hold", ingest.tenants));
    Ok(())
}

async fn compare(plant: &Plant, ingest: &Ingest, ours: f64, table: &mut Table) -> anyhow::Result<()> {
    let mut yardstick = |name: &str, took: Duration| {
        let theirs = per_second(ingest.events, took);
        table.row(name, format!("{theirs:.0} events/s; ours is {:.0} % of it", ours / theirs * 100.0));
    };
    eprintln!("measuring plain SQL");
    match ingest.store {
        StoreKind::Postgres => yardstick("COPY, same rows and keys", yardstick::copy(plant).await?),
        StoreKind::Sqlite => yardstick("INSERT, same rows and keys", yardstick::insert(plant).await?),
    }
    if ingest.via == Via::Nats {
        eprintln!("measuring bare consumers");
        yardstick("JetStream drain, each acked", yardstick::drain(plant, ingest.events, false).await?);
        yardstick("JetStream drain, acked in groups", yardstick::drain(plant, ingest.events, true).await?);
    }
    Ok(())
}
