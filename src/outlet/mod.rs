//! What leaves the house, and only after the commit that made it true.
//!
//! The outbox rows in each tenant's database are the truth; everything here is a courier. The [`dispatcher`] learns from
//! hints (a tenant has committed) and from a slow round that something may be due, asks the tenant's handle for it, and
//! hands each [`parcel::Parcel`] to the [`lane`] of its channel; what it decides is decided at its [`desk`]. A lane owns one channel: its queue, how many sends it
//! may have under way, its circuit [`breaker`]; so a receiver that hangs delays nobody but itself. How a send ended goes
//! back to the tenant's outbox, with the time of the next try if one is needed ([`schedule`]).
//!
//! A send may happen twice (we may die between the receiver's answer and our commit); it has the same id both times.
//! The channels are [`alertmanager`], [`webhook`], [`nats`], [`pagerduty`], [`slack`] and [`email`]; what they may connect
//! to is guarded by [`egress`]; the [`bench`] shows and tries them. The [`mirror`] writes committed standings to Redis, [`kong`] the tenants to Kong,
//! [`litellm`] tenants' providers to LiteLLM; [`provider_probe`] tries a provider. Nothing
//! here decides anything about usage, quotas or alerts, and no
//! failure here reaches further than its own entry in the health report.

mod agenda;
mod alertmanager;
mod aws_signature;
pub mod bench;
pub mod breaker;
mod channel;
pub mod desk;
mod dispatcher;
mod egress;
mod email;
pub mod kong;
mod lane;
pub mod litellm;
mod mirror;
mod nats;
mod pagerduty;
pub mod parcel;
pub mod provider_probe;
#[cfg(test)]
mod receiver;
pub mod schedule;
mod slack;
#[cfg(test)]
mod tests;
mod webhook;

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::Config;
use crate::directory::handle::Handle as Directory;
use crate::domain::ids::TenantId;
use crate::domain::sync::SyncStatus;

/// Hints that wait for the dispatcher or the mirror; more are dropped, the slow rounds find what they meant.
const HINTS_MAX: usize = 4_096;

/// How something outside answers, as far as we know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not needed yet, so not asked yet.
    Unknown,
    Up,
    /// The reason is ours and holds no secret.
    Down {
        reason: String,
    },
}

/// Something outside that we depend on, for the health report: `channel:<name>` or `redis`.
#[derive(Debug, Clone)]
pub struct Dependency {
    pub name: String,
    pub state: watch::Receiver<State>,
}

/// Why the channels cannot be used as configured: every reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the outlets cannot be used:\n  - {}", problems.join("\n  - "))]
pub struct Unusable {
    pub problems: Vec<String>,
}

/// Everything that leaves, running.
#[derive(Debug)]
pub struct Outlets {
    /// One entry per channel, and one for Redis if it is configured.
    pub health: Vec<Dependency>,
    /// The channels, to be seen and tried.
    pub bench: bench::Bench,
    /// How the tenants stand in Kong, if it is configured.
    pub kong: Option<watch::Receiver<SyncStatus>>,
    stopping: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

/// What is wrong with the configured channels and the mirror, by key. Resolves no name and connects to nothing.
#[must_use]
pub fn problems(config: &Config) -> Vec<String> {
    let channels = config.notify.channels.iter().enumerate();
    channels
        .filter_map(|(at, channel)| channel::problem(channel).map(|problem| format!("notify.channels[{at}].{problem}")))
        .chain(mirror::problem(&config.redis).map(|problem| format!("redis.url: {problem}")))
        .chain(nats::problem(&config.nats).map(|problem| format!("nats.url: {problem}")))
        .collect()
}

impl Outlets {
    /// Starts the dispatcher, one lane per channel, and the mirror. `committed` names tenants that have committed; hints
    /// may be lost. Must be called within the runtime; connects in the background, so a receiver that is down is no error.
    ///
    /// # Errors
    /// [`Unusable`], see [`problems`].
    pub fn start(
        config: &Config,
        directory: Directory,
        clock: Clock,
        committed: mpsc::Receiver<TenantId>,
    ) -> Result<Outlets, Unusable> {
        let problems = problems(config);
        if !problems.is_empty() {
            return Err(Unusable { problems });
        }
        let unusable = |problem: String| Unusable { problems: vec![problem] };
        let stopping = CancellationToken::new();
        let mut health = Vec::new();
        let mut tasks = Vec::new();
        let mut listeners = Vec::new();

        let (settled_sender, settled) = mpsc::channel(lane::QUEUE_MAX);
        let mut lanes = Vec::new();
        for configured in &config.notify.channels {
            let channel = channel::Channel::open(configured, config).map_err(unusable)?;
            let (lane, driver, state) = lane::build(channel, settled_sender.clone(), clock.clone(), stopping.clone());
            health.push(Dependency { name: format!("channel:{}", lane.name), state });
            lanes.push(lane);
            tasks.push(tokio::spawn(driver.run()));
        }
        drop(settled_sender);
        let described = config.notify.channels.iter().map(channel::described);
        let bench = bench::Bench::new(lanes.iter().zip(described), clock.clone());
        let (hints_sender, hints) = mpsc::channel(HINTS_MAX);
        listeners.push(hints_sender);
        let dispatcher = dispatcher::Dispatcher::new(directory.clone(), clock.clone(), lanes, settled);
        tasks.push(tokio::spawn(dispatcher.run(hints, stopping.clone())));

        let mut status = None;
        if let Some(kong) =
            kong::Sync::open(&config.gateway.kong.admin, directory.clone(), clock.clone()).map_err(unusable)?
        {
            let (hints_sender, hints) = mpsc::channel(HINTS_MAX);
            listeners.push(hints_sender);
            health.push(Dependency { name: "kong".into(), state: kong.health() });
            status = Some(kong.status());
            tasks.push(tokio::spawn(kong.run(hints, stopping.clone())));
        }
        if let Some(mirror) = mirror::Mirror::open(&config.redis, directory, clock).map_err(unusable)? {
            let (hints_sender, hints) = mpsc::channel(HINTS_MAX);
            listeners.push(hints_sender);
            health.push(Dependency { name: "redis".into(), state: mirror.health() });
            tasks.push(tokio::spawn(mirror.run(hints, stopping.clone())));
        }
        tasks.push(tokio::spawn(pass_on(committed, listeners, stopping.clone())));
        Ok(Outlets { health, bench, kong: status, stopping, tasks })
    }

    /// Takes no new work, finishes the sends that are under way, records how they ended, and returns. What is not
    /// finished after `deadline` is abandoned; it is still owed, and leaves after the next start. Stop the outlets before
    /// the directory: they need the tenants to record what they did.
    pub async fn stop(self, deadline: Duration) {
        self.stopping.cancel();
        let until = tokio::time::Instant::now() + deadline;
        for mut task in self.tasks {
            if tokio::time::timeout_at(until, &mut task).await.is_err() {
                tracing::warn!("an outlet did not finish in time; what it was sending is still owed");
                task.abort();
            }
        }
    }
}

/// Passes each hint on to every listener that has room.
async fn pass_on(
    mut committed: mpsc::Receiver<TenantId>,
    listeners: Vec<mpsc::Sender<TenantId>>,
    stopping: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            hint = committed.recv() => {
                let Some(tenant) = hint else { return };
                for listener in &listeners {
                    // A full listener has a round of its own.
                    let _ = listener.try_send(tenant);
                }
            }
        }
    }
}
