//! The composition root: builds every room, opens the doors, and closes them in the order that loses nothing.
//!
//! Opening: store → directory → outlets → access → intake → http. Closing: readiness goes false, the stream stops pulling
//! and acknowledges its tail, HTTP finishes its requests, the outlets finish what they are sending (they need the tenants
//! to note it), the tenants commit what is waiting and leave, telemetry flushes. One deadline holds for the whole.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::access::{Gate, Pepper};
use crate::clock::Clock;
use crate::config::{Config, millis};
use crate::directory::{self, Settings, handle::Handle as Directory};
use crate::domain::flag::FlagSource;
use crate::domain::reconcile::Terms;
use crate::domain::reconcile::reading::Source;
use crate::envoy;
use crate::fault;
use crate::http::{self, Api, Dependency, Health, KongDoor, ProviderTools, Rooms, State};
use crate::intake::flagsmith::Flagsmith;
use crate::intake::kong::counters::Counters;
use crate::intake::kong::health::{Health as SourceHealth, Standing};
use crate::intake::kong::log_receiver::LogReceiver;
use crate::intake::kong::presence::Presence;
use crate::intake::kong::scraper::Scraper;
use crate::intake::record::Recorder;
use crate::intake::replayer::Replayer;
use crate::intake::usage_stream::{StreamHealth, UsageStream};
use crate::jobs::kinds::Tools;
use crate::jobs::runner::Runner;
use crate::outlet::litellm::LiteLlm;
use crate::outlet::provider_probe::Probe;
use crate::outlet::{self, Outlets};
use crate::rate_limit::{Limiter, Settlement, Sharing};
use crate::store::database::Store;
use crate::telemetry::{self, Telemetry};
use crate::vault::Vault;

/// Hints that something was committed; more are dropped, and the outlets' slow rounds find what they meant.
const HINTS_MAX: usize = 4_096;
/// How often the control database is asked whether it is there.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// How often the keeper of the vault's key is asked the same.
const VAULT_PROBE_EVERY: Duration = Duration::from_secs(30);
/// Parts of the closing that share the time there is.
const STEPS: u32 = 4;

/// Runs the daemon until it is told to stop; connections are served by the threads of `answering`.
///
/// # Errors
/// When it cannot start: a store that cannot be opened, an address in use, a channel that cannot be used.
pub async fn serve(config: Config, answering: Vec<Handle>) -> anyhow::Result<()> {
    let daemon = Daemon::start(config, &answering).await?;
    tracing::info!(address = %daemon.address(), version = env!("CARGO_PKG_VERSION"), "serving");
    let reason = stop_signal().await?;
    tracing::info!(reason, "stopping");
    daemon.stop().await;
    Ok(())
}

/// Waits for SIGTERM or SIGINT; answers which.
///
/// # Errors
/// When the system does not let us listen for them.
pub async fn stop_signal() -> anyhow::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

/// Every room, running.
pub struct Daemon {
    address: SocketAddr,
    patience: Duration,
    leaving: watch::Sender<bool>,
    directory: Directory,
    outlets: Outlets,
    stream: Option<Task>,
    sources: Vec<Task>,
    settlement: Task,
    replayer: Task,
    jobs: Task,
    doors: Task,
    /// The gRPC door, if it is configured.
    envoy: Option<Task>,
    telemetry: Telemetry,
}

/// A task, and how to tell it to end.
struct Task {
    stop: CancellationToken,
    handle: JoinHandle<()>,
}

impl Daemon {
    /// Builds and opens everything; connections are served by the threads of `answering`.
    ///
    /// # Errors
    /// See [`serve`].
    pub async fn start(config: Config, answering: &[Handle]) -> anyhow::Result<Daemon> {
        let telemetry = telemetry::init(&config.telemetry).context("starting telemetry")?;
        let clock = Clock::system();
        let store = Store::open(&config.store).await.context("opening the store")?;
        let (hints, committed) = mpsc::channel(HINTS_MAX);
        let directory = directory::open(store.clone(), settings(&config), clock.clone(), hints)
            .await
            .context("opening the control database")?;
        let outlets = Outlets::start(&config, directory.clone(), clock.clone(), committed)?;

        let pepper = Pepper::open(&config.auth, &config.store).context("reading the key pepper")?;
        let gate = Gate::new(&config, pepper, directory.clone(), clock.clone()).context("reading the access policy")?;
        let vault = Vault::open(&config.vault, &config.store, gate.pepper().derive("secret fingerprints"));
        let vault = vault.map_err(anyhow::Error::msg).context("opening the vault")?;
        let litellm = LiteLlm::open(&config.litellm).map_err(anyhow::Error::msg)?;
        let providers = ProviderTools {
            vault: vault.clone(),
            probe: Probe::open(config.vault.allow_private_addresses, config.litellm.url.as_deref())
                .map_err(anyhow::Error::msg)?,
            lease_seconds_max: config.vault.lease_seconds_max,
            syncs_litellm: litellm.is_some() && vault.is_some(),
        };
        let every = millis(config.litellm.sync_interval_ms);
        let tools = Tools { vault: vault.clone(), litellm: litellm.map(|litellm| (litellm, every)) };
        let warming = gate.clone();
        tokio::spawn(async move { warming.warm().await });

        let recorder = Recorder::new(directory.clone(), clock.clone(), config.intake.clone());
        let (stream, nats) = open_stream(&config, &recorder, &clock, store.has_one_owner());
        let (jobs, jobs_state) = start_jobs(&config, &directory, &clock, &tools);
        let (replayer, parked, parked_detail) = start_replayer(&recorder);
        let (leaving, stopping) = watch::channel(false);
        let mut dependencies = vec![
            Dependency {
                name: "database".into(),
                required: true,
                state: watch_database(directory.clone()),
                detail: None,
            },
            nats,
            Dependency { name: "vault".into(), required: false, state: watch_vault(vault).await, detail: None },
            Dependency { name: "jobs".into(), required: false, state: jobs_state, detail: None },
            Dependency { name: "parked-usage".into(), required: false, state: parked, detail: Some(parked_detail) },
        ];
        dependencies.extend(outlets.health.iter().map(|outlet| Dependency {
            name: outlet.name.clone(),
            required: false,
            state: relay(outlet.state.clone(), outlet_state),
            detail: None,
        }));
        let (mut sources, source_health) = open_sources(&config, &directory, &clock)?;
        dependencies.extend(source_health);
        let (flags, fetching) = open_flags(&config, &directory, &clock, &mut dependencies).await?;
        sources.extend(fetching);
        let (rate_limits, settlement, sharing) = open_rate_limits(&config)?;
        dependencies.push(sharing);
        let kong = &config.gateway.kong;
        let receiver = LogReceiver::new(directory.clone(), millis(config.intake.litellm_patience_ms))
            .of_services(&kong.llm_services);
        let kong = KongDoor::new(&kong.access_log, receiver);

        let listener = TcpListener::bind(&config.http.listen)
            .await
            .with_context(|| format!("listening on {}", config.http.listen))?;
        let address = listener.local_addr()?;
        let patience = millis(config.telemetry.shutdown_ms);
        let health = Health { dependencies, stopping };
        let envoy = open_envoy(&config, &directory, &clock, &rate_limits, answering, patience / STEPS).await?;
        let (kong_sync, channels) = (outlets.kong.clone(), outlets.bench.clone());
        let people = config.organization.limits();
        let rooms = Rooms {
            directory: directory.clone(),
            gate,
            recorder,
            kong,
            flags,
            rate_limits,
            kong_sync,
            people,
            channels,
            public_url: config.authorization.public_url.clone(),
            subject_ids: config.authorization.subject_ids,
            providers,
        };
        let api = Api::new(rooms, clock, config.http.clone(), health, telemetry.metrics());
        let stop = CancellationToken::new();
        let (answering, stopped) = (answering.to_vec(), stop.clone());
        let handle = tokio::spawn(async move {
            if let Err(error) = http::serve(api, listener, &answering, stopped, patience / STEPS).await {
                tracing::error!(%error, "the HTTP door failed");
            }
        });
        let doors = Task { stop, handle };
        Ok(Daemon {
            address,
            patience,
            leaving,
            directory,
            outlets,
            stream,
            sources,
            settlement,
            replayer,
            jobs,
            doors,
            envoy,
            telemetry,
        })
    }

    /// Where HTTP is served.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the doors in order. What is not finished in time comes back: it was not acknowledged.
    pub async fn stop(self) {
        let step = self.patience / STEPS;
        self.leaving.send_replace(true);
        fault::point("drain.begun");
        let stream = async {
            if let Some(stream) = self.stream {
                stream.end(step, "the usage stream").await;
            }
        };
        let sources = self.sources.into_iter().map(|source| source.end(step, "a source of the gateway's"));
        let jobs = self.jobs.end(step, "background work");
        let sources = futures_util::future::join_all(sources);
        tokio::join!(stream, self.replayer.end(step, "the replayer"), sources, jobs);
        fault::point("drain.stream");
        let envoy = async {
            if let Some(envoy) = self.envoy {
                envoy.end(step, "the gRPC door").await;
            }
        };
        tokio::join!(self.doors.end(step, "the HTTP door"), envoy);
        self.settlement.end(step, "the rate limits").await;
        fault::point("drain.doors");
        self.outlets.stop(step).await;
        fault::point("drain.outlets");
        self.directory.drain(step).await;
        fault::point("drain.tenants");
        tracing::info!("stopped");
        self.telemetry.flush().await;
    }
}

impl Task {
    async fn end(self, patience: Duration, what: &str) {
        self.stop.cancel();
        let abort = self.handle.abort_handle();
        if tokio::time::timeout(patience, self.handle).await.is_err() {
            tracing::warn!(what, "did not finish in time");
            abort.abort();
        }
    }
}

fn settings(config: &Config) -> Settings {
    Settings {
        tenants: config.tenants.clone(),
        retention_micros: config.retention_micros(),
        routing: Arc::new(config.notify.routing()),
        reconcile: terms(config),
        lease_micros: config.jobs.lease_micros(),
    }
}

/// The gRPC door, if it is configured.
async fn open_envoy(
    config: &Config,
    directory: &Directory,
    clock: &Clock,
    rate_limits: &Limiter,
    answering: &[Handle],
    drain: Duration,
) -> anyhow::Result<Option<Task>> {
    let Some(listen) = &config.envoy.listen else { return Ok(None) };
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
    tracing::info!(address = %listener.local_addr()?, "answering Envoy");
    let service = envoy::Service::new(directory.clone(), clock.clone(), config.envoy.clone(), rate_limits.clone());
    let stop = CancellationToken::new();
    let (answering, stopped) = (answering.to_vec(), stop.clone());
    let handle = tokio::spawn(async move { envoy::serve(service, listener, &answering, stopped, drain).await });
    Ok(Some(Task { stop, handle }))
}

/// How often is too often, who keeps the buckets, and how nodes count together.
fn open_rate_limits(config: &Config) -> anyhow::Result<(Limiter, Task, Dependency)> {
    let limiter = Limiter::new(&config.rate_limits, config.redis.url.is_some());
    let settlement = Settlement::open(&config.rate_limits, &config.redis, limiter.clone());
    let settlement = settlement.map_err(anyhow::Error::msg)?;
    let stop = CancellationToken::new();
    let task = Task { stop: stop.clone(), handle: tokio::spawn(settlement.run(stop)) };
    let state = relay(limiter.sharing(), |sharing| match sharing {
        Sharing::Local => State::Off,
        Sharing::Unknown => State::Unknown,
        Sharing::Shared => State::Up,
        Sharing::Fallback => State::Down,
    });
    let detail = relay(limiter.sharing(), |sharing| match sharing {
        Sharing::Local => "each node counts for itself".to_owned(),
        Sharing::Unknown | Sharing::Shared => "nodes count together in Redis".to_owned(),
        Sharing::Fallback => "each node counts for itself until Redis answers".to_owned(),
    });
    let sharing = Dependency { name: "rate-limits".into(), required: false, state, detail: Some(detail) };
    Ok((limiter, task, sharing))
}

/// The usage stream, if NATS is configured, and how it is.
fn open_stream(config: &Config, recorder: &Recorder, clock: &Clock, alone: bool) -> (Option<Task>, Dependency) {
    let dependency = |state, detail| Dependency { name: "nats".into(), required: false, state, detail };
    if config.nats.url.is_none() {
        return (None, dependency(watch::channel(State::Off).1, None));
    }
    let stream = UsageStream::new(config.nats.clone(), recorder.clone(), clock.clone(), alone);
    let state = relay(stream.health(), |health| match health {
        StreamHealth::Connected | StreamHealth::StandingBy { .. } => State::Up,
        StreamHealth::Disconnected { .. } => State::Down,
    });
    let detail = relay(stream.health(), |health| match health {
        StreamHealth::Connected => "this node reads the usage stream".to_owned(),
        StreamHealth::StandingBy { reader: Some(reader) } => format!("another node reads the usage stream: {reader}"),
        StreamHealth::StandingBy { reader: None } => "another node reads the usage stream".to_owned(),
        StreamHealth::Disconnected { .. } => "this node does not read the usage stream; its log says why".to_owned(),
    });
    let stop = CancellationToken::new();
    let handle = tokio::spawn(stream.run(stop.clone()));
    (Some(Task { stop, handle }), dependency(state, Some(detail)))
}

/// How books are compared: what a meter says is no more exact than the time between two looks at it.
fn terms(config: &Config) -> Terms {
    let (terms, kong) = (config.reconcile.terms(), &config.gateway.kong);
    let listened_to = Source::ALL.map(|source| match source {
        // It may come with a reporter's key, too.
        Source::AccessLog => true,
        Source::Metrics => !kong.metrics.nodes.is_empty(),
        Source::Limiter => kong.redis.url.is_some(),
    });
    Terms { poll_micros: terms.poll_micros.max(kong.look_micros()), listened_to, ..terms }
}

/// What is read of the gateway, as far as it is configured, and how each source is.
fn open_sources(config: &Config, directory: &Directory, clock: &Clock) -> anyhow::Result<(Vec<Task>, Vec<Dependency>)> {
    let kong = &config.gateway.kong;
    let (mut tasks, mut dependencies) = (Vec::new(), Vec::new());
    let mut source = |name: &str, health: watch::Receiver<SourceHealth>| {
        tracing::info!(source = name, detail = health.borrow().detail, "a source of the gateway's");
        let detail = Some(relay(health.clone(), |health| health.detail.clone()));
        let state = relay(health, source_state);
        dependencies.push(Dependency { name: name.into(), required: false, state, detail });
    };
    let mut start = |stop: CancellationToken, handle| tasks.push(Task { stop, handle });
    let counters = Counters::open(&kong.redis, &config.reconcile, clock.clone(), directory.clone());
    let counters = counters.map_err(anyhow::Error::msg)?;
    if let Some(counters) = counters {
        source("kong-limiter", counters.health());
        let stop = CancellationToken::new();
        start(stop.clone(), tokio::spawn(counters.run(stop)));
    } else {
        source("kong-limiter", off("proof: none, would be attempts; missing: gateway.kong.redis.url"));
    }
    if kong.metrics.nodes.is_empty() {
        source("kong-metrics", off("proof: none, would be cumulative; missing: gateway.kong.metrics.nodes"));
    } else {
        let scraper = Scraper::new(kong, &config.reconcile, clock.clone(), directory.clone());
        let scraper = scraper.context("making a client for kong's metrics")?;
        source("kong-metrics", scraper.health());
        let stop = CancellationToken::new();
        start(stop.clone(), tokio::spawn(scraper.run(stop)));
    }
    if kong.access_log.token.is_some() {
        let detail = format!("proof: requests, as http-log posts them with {}", kong.access_log.token_header);
        source("kong-log", watch::channel(SourceHealth { standing: Standing::Up, detail }).1);
        let stop = CancellationToken::new();
        start(stop.clone(), tokio::spawn(Presence::new(clock.clone(), directory.clone()).run(stop)));
    } else {
        source("kong-log", off("proof: requests, with a reporter's key; missing: gateway.kong.access_log.token"));
    }
    Ok((tasks, dependencies))
}

/// Where the platform's feature flags come from, and what fetches them, if anything must.
async fn open_flags(
    config: &Config,
    directory: &Directory,
    clock: &Clock,
    dependencies: &mut Vec<Dependency>,
) -> anyhow::Result<(Arc<dyn FlagSource>, Option<Task>)> {
    let opened = Flagsmith::open(&config.flagsmith, directory.clone(), clock.clone()).await;
    let Some(flagsmith) = opened.map_err(anyhow::Error::msg)? else {
        return Ok((Arc::new(directory.stored_flags()), None));
    };
    let health = flagsmith.health();
    let detail = Some(relay(health.clone(), |health| health.detail.clone()));
    let state = relay(health, source_state);
    dependencies.push(Dependency { name: "flagsmith".into(), required: false, state, detail });
    let source = flagsmith.source();
    let stop = CancellationToken::new();
    let handle = tokio::spawn(flagsmith.run(stop.clone()));
    Ok((source, Some(Task { stop, handle })))
}

/// A source that is not configured.
fn off(detail: &str) -> watch::Receiver<SourceHealth> {
    watch::channel(SourceHealth { standing: Standing::Off, detail: detail.into() }).1
}

fn source_state(health: &SourceHealth) -> State {
    match health.standing {
        Standing::Off => State::Off,
        Standing::Unknown => State::Unknown,
        Standing::Up => State::Up,
        Standing::Degraded => State::Degraded,
        Standing::Down => State::Down,
    }
}

/// Brings parked events back; degraded while some are waiting, down while no more can be parked.
fn start_replayer(recorder: &Recorder) -> (Task, watch::Receiver<State>, watch::Receiver<String>) {
    let replayer = Replayer::new(recorder.clone());
    let state = relay(recorder.parked_events(), |parked| match parked.events {
        _ if parked.full => State::Down,
        Some(0) | None => State::Up,
        Some(_) => State::Degraded,
    });
    let detail = relay(recorder.parked_events(), |parked| {
        let (events, events_max) = (parked.events.unwrap_or(0), parked.events_max);
        let word =
            if parked.full { "no more is parked, the stream holds what comes" } else { "there is room for more" };
        format!("{events} events of at most {events_max} (intake.parked_events_max); {word}")
    });
    let stop = CancellationToken::new();
    let handle = tokio::spawn(replayer.run(stop.clone()));
    (Task { stop, handle }, state, detail)
}

/// Runs what is done in the background; degraded while it cannot be looked for.
fn start_jobs(config: &Config, directory: &Directory, clock: &Clock, tools: &Tools) -> (Task, watch::Receiver<State>) {
    let runner = Runner::new(directory.clone(), clock.clone(), config.jobs.clone(), tools);
    let state = relay(runner.load(), |load| if load.blind { State::Degraded } else { State::Up });
    let stop = CancellationToken::new();
    let handle = tokio::spawn(runner.run(stop.clone()));
    (Task { stop, handle }, state)
}

/// Asks the control database again and again; tells when it does not answer.
fn watch_database(directory: Directory) -> watch::Receiver<State> {
    let (sender, receiver) = watch::channel(State::Up);
    tokio::spawn(async move {
        while !sender.is_closed() {
            tokio::time::sleep(PROBE_EVERY).await;
            let state = match directory.probe().await {
                Ok(()) => State::Up,
                Err(reason) => {
                    tracing::error!(reason, "the control database does not answer");
                    State::Down
                }
            };
            sender.send_replace(state);
        }
    });
    receiver
}

/// Asks the keeper of the vault's key, and then again and again; tells when it cannot be used.
async fn watch_vault(vault: Option<Vault>) -> watch::Receiver<State> {
    let Some(vault) = vault else { return watch::channel(State::Off).1 };
    let (sender, receiver) = watch::channel(vault_state(&vault).await);
    tokio::spawn(async move {
        while !sender.is_closed() {
            tokio::time::sleep(VAULT_PROBE_EVERY).await;
            sender.send_replace(vault_state(&vault).await);
        }
    });
    receiver
}

async fn vault_state(vault: &Vault) -> State {
    match vault.check().await {
        Ok(()) => State::Up,
        Err(error) => {
            tracing::error!(%error, "the vault cannot be used");
            State::Down
        }
    }
}

/// A room's own view of its dependency, in the words of the health report.
fn relay<T, W>(mut from: watch::Receiver<T>, word: fn(&T) -> W) -> watch::Receiver<W>
where
    T: Send + Sync + 'static,
    W: Send + Sync + 'static,
{
    let (sender, receiver) = watch::channel(word(&from.borrow()));
    tokio::spawn(async move {
        while from.changed().await.is_ok() {
            let state = word(&from.borrow_and_update());
            sender.send_replace(state);
        }
    });
    receiver
}

fn outlet_state(state: &outlet::State) -> State {
    match state {
        outlet::State::Unknown => State::Unknown,
        outlet::State::Up => State::Up,
        outlet::State::Down { .. } => State::Down,
    }
}
