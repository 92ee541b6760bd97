//! Decisions over kept-alive connections, as gateways ask for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::figures::{Cpu, Group, Latencies, Table, per_second};
use crate::link::{Link, request};
use crate::nginx::Nginx;
use crate::plant::{Plant, Tenant, call};
use crate::{Decide, Ids, Payload, Surroundings, events};

/// Events of one request of the flood beside.
const FLOOD_BATCH: u64 = 500;
/// Connections that flood.
const FLOOD_CONNECTIONS: usize = 2;

pub(crate) async fn run(decide: &Decide, surroundings: &Surroundings) -> anyhow::Result<()> {
    let mut plant = Plant::start(decide.store, false, surroundings).await?;
    let outcome = measured(&mut plant, decide).await;
    if outcome.is_err() {
        eprintln!("the daemon's log:\n{}", plant.log());
    }
    let ended = plant.end().await;
    outcome?.print();
    ended
}

/// One server under the same questions.
struct Asked {
    name: &'static str,
    address: String,
    request: Arc<Vec<u8>>,
    processes: Group,
    rounds: Vec<Round>,
}

struct Round {
    per_second: f64,
    latencies: Latencies,
    cpu: String,
    flood: u64,
}

async fn measured(plant: &mut Plant, decide: &Decide) -> anyhow::Result<Table> {
    plant.onboard(1).await?;
    let tenant = plant.tenants.first().context("a tenant")?.clone();
    let mut link = Link::to(&plant.address).await?;
    let keys = format!("/v1/tenants/{}/api-keys", tenant.id);
    let body = json!({"name": "gateway", "role": "reporter"});
    let issued = call(&mut link, "POST", &keys, &tenant.key, Some(&body)).await?;
    let key = issued["key"].as_str().context("a key")?.to_owned();
    let path = format!("/v1/quotas/{}/decision?userId=alice&model=gpt-4o", tenant.id);
    let (answer, tag) = sample(&mut link, &request("GET", &path, &key, None)).await?;

    let mut table = Table::default();
    table.row("run", format!("{decide:?}"));
    table.row("answer", format!("{} bytes", answer.len()));
    let mut question = request("GET", &path, &key, None);
    if decide.conditional {
        question.truncate(question.len() - 2);
        question.extend_from_slice(format!("If-None-Match: {tag}\r\n\r\n").as_bytes());
    }
    let ours = plant.daemon();
    let mut asked = vec![asked("platform-api", &plant.address, question, ours)];
    let nginx = if decide.alone { None } else { Nginx::start(plant.folder(), &answer).await? };
    match &nginx {
        Some(nginx) => {
            let processes = Group::Named(vec!["nginx: worker".into()]);
            asked.push(self::asked("nginx", &nginx.address, request("GET", &path, &key, None), processes));
        }
        None => eprintln!("without nginx"),
    }
    for round in 1..=decide.rounds {
        for server in &mut asked {
            eprintln!("round {round} of {}: {}", decide.rounds, server.name);
            let flooded = (decide.while_ingesting && server.name == "platform-api").then_some(&tenant);
            let done = ask(plant, server, decide, flooded).await?;
            server.rounds.push(done);
        }
    }
    report(asked, decide, &mut table);
    Ok(table)
}

fn asked(name: &'static str, address: &str, request: Vec<u8>, processes: Group) -> Asked {
    Asked { name, address: address.to_owned(), request: Arc::new(request), processes, rounds: Vec::new() }
}

/// The answer's body and its ETag.
async fn sample(link: &mut Link, request: &[u8]) -> anyhow::Result<(Vec<u8>, String)> {
    let answer = link.send(request).await?;
    ensure!(answer.status == 200, "a decision was answered {}", answer.status);
    Ok((answer.body.to_vec(), answer.header("etag").context("an ETag")?.to_owned()))
}

/// One round: every connection asks until the time is over.
async fn ask(plant: &Plant, server: &Asked, decide: &Decide, flooded: Option<&Tenant>) -> anyhow::Result<Round> {
    let over = Arc::new(AtomicBool::new(false));
    let flood = match flooded {
        Some(tenant) => Some(Flood::start(plant, tenant, over.clone())?),
        None => None,
    };
    let cpu = Cpu::start(vec![("server", server.processes.clone()), ("client", Group::Process(std::process::id()))]);
    let began = Instant::now();
    let end = began + Duration::from_secs(decide.seconds);
    let mut asking = JoinSet::new();
    let mut turns = Vec::new();
    for _ in 0..decide.connections {
        let due = decide.rate.0.map(|_| {
            let (turn, due) = mpsc::unbounded_channel();
            turns.push(turn);
            due
        });
        asking.spawn(connection(server.address.clone(), server.request.clone(), due, end));
    }
    if let Some(rate) = decide.rate.0 {
        std::thread::spawn(move || keep_time(&turns, Duration::from_secs_f64(1.0 / rate), end));
    }
    let mut micros = Vec::new();
    while let Some(ended) = asking.join_next().await {
        micros.extend(ended??);
    }
    let took = began.elapsed();
    let count = micros.len() as u64;
    let cpu = cpu.text(count);
    over.store(true, Ordering::Relaxed);
    let flood = match flood {
        Some(flood) => per_second(flood.end()?, took) as u64,
        None => 0,
    };
    Ok(Round { per_second: per_second(count, took), latencies: Latencies::of(micros), cpu, flood })
}

/// Asks on one connection, whenever it is its turn or at once; latencies in microseconds, from the moment a question
/// was due.
async fn connection(
    address: String,
    request: Arc<Vec<u8>>,
    mut turns: Option<mpsc::UnboundedReceiver<Instant>>,
    end: Instant,
) -> anyhow::Result<Vec<u32>> {
    let mut link = Link::to(&address).await?;
    let mut micros = Vec::with_capacity(64 * 1024);
    loop {
        let due = match &mut turns {
            Some(turns) => turns.recv().await,
            None => Some(Instant::now()).filter(|now| *now < end),
        };
        let Some(due) = due else { return Ok(micros) };
        let answer = link.send(&request).await?;
        ensure!(matches!(answer.status, 200 | 304), "answered {}", answer.status);
        micros.push(u32::try_from(due.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
}

/// Gives the connections their turns, from a thread that sleeps to the tens of microseconds: the runtime's own timer
/// is a millisecond coarse, and that would be counted as the server's.
fn keep_time(turns: &[mpsc::UnboundedSender<Instant>], every: Duration, end: Instant) {
    let mut due = Instant::now();
    for turn in turns.iter().cycle() {
        if due >= end {
            return;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        // A connection that has failed tells so by itself.
        let _ = turn.send(due);
        due += every;
    }
}

/// Events for the same tenant, as fast as they are taken. On a thread of its own, so that making them does not delay
/// the questions, whose latency would then be ours and not the daemon's.
struct Flood {
    sending: std::thread::JoinHandle<anyhow::Result<u64>>,
}

impl Flood {
    fn start(plant: &Plant, tenant: &Tenant, over: Arc<AtomicBool>) -> anyhow::Result<Flood> {
        let (tenant, address) = (tenant.clone(), plant.address.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sending = std::thread::spawn(move || {
            let both = (0..FLOOD_CONNECTIONS).map(|_| flood(&address, &tenant, &over));
            let taken = runtime.block_on(futures_util::future::try_join_all(both))?;
            Ok(taken.iter().sum())
        });
        Ok(Flood { sending })
    }

    /// How many events were taken.
    fn end(self) -> anyhow::Result<u64> {
        self.sending.join().map_err(|_| anyhow::anyhow!("the flood panicked"))?
    }
}

async fn flood(address: &str, tenant: &Tenant, over: &AtomicBool) -> anyhow::Result<u64> {
    let mut link = Link::to(address).await?;
    let mut taken = 0;
    while !over.load(Ordering::Relaxed) {
        let batch = events::make(Payload::Compact, Ids::V7, std::slice::from_ref(tenant), FLOOD_BATCH)?;
        let body = events::body(&batch);
        let answer = link.send(&request("POST", "/v1/usage/events", &tenant.key, Some(&body))).await?;
        if answer.status == 200 {
            taken += FLOOD_BATCH;
        }
    }
    Ok(taken)
}

fn report(mut asked: Vec<Asked>, decide: &Decide, table: &mut Table) {
    let mut medians = Vec::new();
    for server in &mut asked {
        server.rounds.sort_by(|one, other| one.per_second.total_cmp(&other.per_second));
        let Some(median) = server.rounds.get(server.rounds.len() / 2) else { continue };
        table.row(server.name, format!("{:.0} requests/s, {}", median.per_second, median.latencies.text()));
        table.row("", format!("{} answers; {}", median.latencies.count(), median.cpu));
        if median.flood > 0 {
            table.row("", format!("beside {} events/s", median.flood));
        }
        medians.push(median.per_second);
    }
    if let ([ours, theirs], None) = (medians.as_slice(), decide.rate.0) {
        table.row("ratio", format!("{:.0} % of nginx's requests a second", ours / theirs * 100.0));
    }
}
