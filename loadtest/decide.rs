//! Decisions over kept-alive connections, as gateways ask for them, by turns with nginx and a static answer.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::asker::{Answered, Question};
use crate::cpu::{Cpu, Group};
use crate::figures::{Grid, per_second};
use crate::flood::{Flood, Ready};
use crate::issuer::Issuer;
use crate::link::Link;
use crate::nginx::Nginx;
use crate::plant::{Plant, Setup, StoreKind, Tenant, call};
use crate::{Rate, Surroundings};

const OURS: &str = "platform-api";
const LIMITED: &str = "platform-api, limited";
/// Limits that no run reaches.
const LIMITS: &str = "[rate_limits.tiers.limited]
lookup = { quota = 100000000, burst = 10000000 }
tenant_traffic = { quota = 100000000, burst = 10000000 }
api_key_traffic = { quota = 100000000, burst = 10000000 }
";
/// More events a second than any flood has reached.
const FLOOD_PER_SECOND_MAX: u64 = 150_000;
/// All of its events are made before, and kept in memory.
const FLOOD_SECONDS_MAX: u64 = 15;

#[derive(Debug, Clone, Args)]
pub(crate) struct Decide {
    /// `max`, or requests a second, sent on schedule whatever the answers do.
    #[arg(long, default_value = "max")]
    rate: Rate,
    /// First at `max`, then at half of what the daemon has reached; each server gets the same rate.
    #[arg(long, conflicts_with = "rate")]
    half: bool,
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    connections: u32,
    /// Seconds of each round.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=300))]
    seconds: u64,
    /// Rounds of ours and of nginx, by turns; the median is told.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    #[arg(long, value_enum, default_value_t = StoreKind::Sqlite)]
    store: StoreKind,
    #[arg(long, value_enum, default_value_t = Credential::ApiKey)]
    key: Credential,
    /// Send If-None-Match with the last ETag, as a gateway that caches does.
    #[arg(long)]
    conditional: bool,
    /// Beside a flood of events for the same tenant over HTTP, nginx's turns too.
    #[arg(long)]
    while_ingesting: bool,
    /// By turns with a tenant whose traffic, keys and look-ups are limited, at a rate that is never reached.
    #[arg(long)]
    limited: bool,
    /// Leave nginx out.
    #[arg(long)]
    alone: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Credential {
    ApiKey,
    /// An access token (RS256) of an issuer that this run plays.
    Jwt,
}

pub(crate) async fn run(decide: &Decide, surroundings: &Surroundings) -> anyhow::Result<()> {
    ensure!(
        !decide.while_ingesting || decide.seconds <= FLOOD_SECONDS_MAX,
        "a flood lasts {FLOOD_SECONDS_MAX} s at most"
    );
    let issuer = Issuer::start().await?;
    let setup = Setup { toml: issuer.settings() + LIMITS, ..Setup::of(decide.store) };
    let mut plant = Plant::start(setup, surroundings).await?;
    let outcome = measured(&mut plant, decide, &issuer).await;
    plant.finish(outcome).await?.print();
    Ok(())
}

/// One server under the same questions.
struct Server {
    name: &'static str,
    address: String,
    request: Arc<Vec<u8>>,
    processes: Group,
}

struct Round {
    answered: Answered,
    server_cpu: f64,
    flood: u64,
}

impl Round {
    fn per_second(&self) -> f64 {
        per_second(self.answered.latencies.count(), self.answered.took)
    }
}

async fn measured(plant: &mut Plant, decide: &Decide, issuer: &Issuer) -> anyhow::Result<Grid> {
    plant.onboard(1).await?;
    let tenant = plant.tenants.first().context("a tenant")?.clone();
    let (question, answer) = question(plant, decide, issuer, &tenant).await?;
    let limited = if decide.limited { Some(limited(plant, decide, issuer).await?) } else { None };
    let ours =
        Server { name: OURS, address: plant.address.clone(), request: Arc::new(question), processes: plant.daemon() };
    let nginx = if decide.alone { None } else { Nginx::start(plant.folder(), &answer).await? };
    let theirs = nginx.as_ref().map(|nginx| Server {
        name: "nginx",
        address: nginx.address.clone(),
        request: ours.request.clone(),
        processes: Group::Named(vec!["nginx: worker".into()]),
    });
    let servers: Vec<Server> = [ours].into_iter().chain(limited).chain(theirs).collect();

    eprintln!("{decide:?}; an answer has {} bytes", answer.len());
    let mut grid = Grid::new(&[
        "server",
        "rate",
        "answers/s",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "max µs",
        "server CPU µs",
        "client CPU µs",
        "events/s beside",
        "% of nginx",
    ]);
    let rate = if decide.half { Rate(None) } else { decide.rate };
    let reached = rounds(plant, &servers, decide, rate, &tenant, &mut grid).await?;
    if decide.half {
        rounds(plant, &servers, decide, Rate(Some((reached / 2.0).round())), &tenant, &mut grid).await?;
    }
    Ok(grid)
}

/// The same daemon, asked about a second tenant, which has limits.
async fn limited(plant: &mut Plant, decide: &Decide, issuer: &Issuer) -> anyhow::Result<Server> {
    plant.onboard(1).await?;
    let tenant = plant.tenants.last().context("a tenant")?.clone();
    let mut link = Link::to(&plant.address).await?;
    let address = format!("/v1/tenants/{}", tenant.id);
    call(&mut link, "PATCH", &address, &plant.key, Some(&json!({"tier": "limited"}))).await?;
    let (question, _) = question(plant, decide, issuer, &tenant).await?;
    Ok(Server { name: LIMITED, address: plant.address.clone(), request: Arc::new(question), processes: plant.daemon() })
}

/// What every connection sends, and the answer that nginx is to give.
async fn question(
    plant: &Plant,
    decide: &Decide,
    issuer: &Issuer,
    tenant: &Tenant,
) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let mut link = Link::to(&plant.address).await?;
    let keys = format!("/v1/tenants/{}/api-keys", tenant.id);
    let body = json!({"name": "gateway", "role": "reporter"});
    let issued = call(&mut link, "POST", &keys, &tenant.key, Some(&body)).await?;
    let path = format!("/v1/quotas/{}/decision?userId=alice&apiKeyId=k1&model=gpt-4o", tenant.id);
    let credential = match decide.key {
        Credential::ApiKey => format!("X-API-Key: {}", issued["key"].as_str().context("a key")?),
        Credential::Jwt => format!("Authorization: Bearer {}", issuer.token(&tenant.id)?),
    };
    let mut question = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{credential}\r\n").into_bytes();
    let answer = link.send(&[question.as_slice(), b"\r\n"].concat()).await?;
    ensure!(answer.status == 200, "a decision was answered {}", answer.status);
    if decide.conditional {
        let tag = answer.header("etag").context("an ETag")?;
        question.extend_from_slice(format!("If-None-Match: {tag}\r\n").as_bytes());
    }
    question.extend_from_slice(b"\r\n");
    Ok((question, answer.body.to_vec()))
}

/// Rounds by turns at one rate; a row for each server's median, and answers a second of the first.
async fn rounds(
    plant: &Plant,
    servers: &[Server],
    decide: &Decide,
    rate: Rate,
    tenant: &Tenant,
    grid: &mut Grid,
) -> anyhow::Result<f64> {
    let mut done: Vec<Vec<Round>> = servers.iter().map(|_| Vec::new()).collect();
    for number in 1..=decide.rounds {
        for (server, done) in servers.iter().zip(&mut done) {
            eprintln!("round {number} of {} at {rate}: {}", decide.rounds, server.name);
            done.push(round(plant, server, decide, rate, tenant).await?);
        }
    }
    for rounds in &mut done {
        // Paced rounds all reach their rate; what tells them apart is how long an answer took.
        rounds.sort_by(|one, other| match rate.0 {
            None => one.per_second().total_cmp(&other.per_second()),
            Some(_) => one.answered.latencies.at(0.99).cmp(&other.answered.latencies.at(0.99)),
        });
    }
    let medians: Vec<&Round> = done.iter().filter_map(|rounds| rounds.get(rounds.len() / 2)).collect();
    let last = medians.last().map_or(0.0, |round| round.per_second());
    for (server, median) in servers.iter().zip(&medians) {
        grid.row(row(server.name, rate, median, last));
    }
    Ok(medians.first().map_or(0.0, |round| round.per_second()))
}

async fn round(plant: &Plant, server: &Server, decide: &Decide, rate: Rate, tenant: &Tenant) -> anyhow::Result<Round> {
    let flood = match decide.while_ingesting {
        true => Some(Ready::make(plant, tenant, FLOOD_PER_SECOND_MAX * (decide.seconds + 1))?),
        false => None,
    };
    let question = Question {
        address: server.address.clone(),
        request: server.request.clone(),
        connections: decide.connections,
        rate: rate.0,
        took: Duration::from_secs(decide.seconds),
    };
    let flood = flood.map(Ready::start);
    let cpu = Cpu::start(vec![("server", server.processes.clone())]);
    let answered = tokio::task::spawn_blocking(move || question.ask()).await??;
    let server_cpu = cpu.used().first().map_or(0.0, |(_, seconds)| *seconds);
    let taken = flood.map(Flood::end).transpose()?.unwrap_or(0);
    Ok(Round { server_cpu, flood: per_second(taken, answered.took) as u64, answered })
}

fn row(name: &str, rate: Rate, round: &Round, nginx: f64) -> Vec<String> {
    let latencies = &round.answered.latencies;
    let each = |seconds: f64| format!("{:.1}", seconds * 1e6 / latencies.count().max(1) as f64);
    // Beside a flood the daemon's CPU is the flood's too.
    let server = if round.flood > 0 && name.starts_with(OURS) { "-".into() } else { each(round.server_cpu) };
    let mut cells = vec![name.to_owned(), rate.to_string(), format!("{:.0}", round.per_second())];
    cells.extend([0.5, 0.99, 0.999, 1.0].map(|share| latencies.at(share).to_string()));
    cells.extend([server, each(round.answered.cpu), round.flood.to_string()]);
    cells.push(if rate.0.is_none() { format!("{:.0}", round.per_second() / nginx * 100.0) } else { "-".into() });
    cells
}
