//! Looks for due jobs, holds as many as it has hands for, keeps their leases alive, and settles them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::kinds::{self, Tools, Work};
use crate::clock::Clock;
use crate::config::{self, millis};
use crate::directory::errand::Holder;
use crate::directory::handle::Handle as Directory;
use crate::directory::jobs::{Claimed, Hands};
use crate::directory::workflow::CHANGES_AT_ONCE;
use crate::domain::job::{Draft, Job, Kind};
use crate::domain::request::Request;
use crate::domain::time::Timestamp;

/// The longest time between two looks: another node may have been given a job.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The shortest, so that a job that cannot be claimed is not looked at without pause.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Tries of a job that the daemon begins by itself.
const ATTEMPTS: i64 = 5;

/// What on-call may see of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// The last look for work failed.
    pub blind: bool,
    pub waiting: i64,
    pub running: i64,
    /// Changes that were made and wait for another try to be finished; among those that wait.
    pub unfinished_changes: i64,
}

/// The one runner of a daemon.
pub struct Runner {
    directory: Directory,
    clock: Clock,
    settings: config::Jobs,
    kinds: HashMap<Kind, Arc<dyn Work>>,
    load: watch::Sender<Load>,
    /// How often LiteLLM is compared with everything, if there is one.
    litellm_every: Option<Duration>,
}

impl Runner {
    #[must_use]
    pub fn new(directory: Directory, clock: Clock, settings: config::Jobs, tools: &Tools) -> Runner {
        let kinds = kinds::all(&settings, tools);
        let litellm_every = tools.litellm.as_ref().map(|(_, every)| *every);
        Runner { litellm_every, ..Runner::with(directory, clock, settings, kinds) }
    }

    /// A runner that can do these kinds of work alone.
    pub(super) fn with(
        directory: Directory,
        clock: Clock,
        settings: config::Jobs,
        kinds: Vec<Arc<dyn Work>>,
    ) -> Runner {
        let kinds = kinds.into_iter().map(|work| (work.kind(), work)).collect();
        Runner { directory, clock, settings, kinds, load: watch::channel(Load::default()).0, litellm_every: None }
    }

    /// Follows how much there is to do.
    #[must_use]
    pub fn load(&self) -> watch::Receiver<Load> {
        self.load.subscribe()
    }

    /// Runs jobs until `stop`; then what runs is stopped and given back.
    pub async fn run(self, stop: CancellationToken) {
        let mut begun = false;
        // A change that somebody waits for does not queue behind what takes long.
        let (mut running, mut finishing) = (JoinSet::new(), JoinSet::new());
        let lease_micros = self.settings.lease_micros();
        while !stop.is_cancelled() {
            while running.try_join_next().is_some() {}
            while finishing.try_join_next().is_some() {}
            begun = begun || self.begin_series().await;
            let free = Hands {
                jobs: self.settings.at_once.saturating_sub(running.len()),
                changes: CHANGES_AT_ONCE.saturating_sub(finishing.len()),
            };
            let pause = match self.look(free, lease_micros).await {
                Some(claimed) => {
                    for job in claimed.jobs {
                        let hands = if job.finishes_a_change() { &mut finishing } else { &mut running };
                        hands.spawn(self.hold(job, lease_micros, stop.clone()));
                    }
                    self.pause_until(claimed.next)
                }
                None => LOOK_EVERY,
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.directory.job_bell().notified() => {}
                () = tokio::time::sleep(pause) => {}
                // A hand is free.
                Some(_) = running.join_next(), if free.jobs == 0 => {}
                Some(_) = finishing.join_next(), if free.changes == 0 => {}
            }
        }
        while running.join_next().await.is_some() {}
        while finishing.join_next().await.is_some() {}
    }

    /// What the daemon itself wants to be done again and again; true once it is known.
    async fn begin_series(&self) -> bool {
        let mut series = vec![
            (Kind::Housekeeping, millis(self.settings.housekeeping_every_ms)),
            (Kind::AuditSweep, millis(self.settings.verify_every_ms)),
        ];
        series.extend(self.litellm_every.map(|every| (Kind::LiteLlmSync, every)));
        let mut begun = true;
        for (kind, every) in series {
            begun &= self.begin_one(kind, every).await;
        }
        begun
    }

    async fn begin_one(&self, kind: Kind, every: Duration) -> bool {
        let every_micros = i64::try_from(every.as_micros()).unwrap_or(i64::MAX);
        let draft = Draft {
            kind: kind.name().into(),
            tenant: None,
            key: Some(kind.name().into()),
            arguments: "{}".into(),
            run_at: self.clock.now().plus_micros(every_micros),
            every_micros,
            attempts_max: ATTEMPTS,
            actor: "system".into(),
            request_id: String::new(),
        };
        self.directory.submit_job(draft, Request::system(), |_| String::new()).await.is_ok()
    }

    async fn look(&self, free: Hands, lease_micros: i64) -> Option<Claimed> {
        let looked = self.directory.claim_jobs(free, lease_micros).await;
        let claimed = looked.map_err(|error| tracing::debug!(%error, "background work could not be looked for")).ok();
        let load = match &claimed {
            Some(claimed) => Load {
                blind: false,
                waiting: claimed.waiting,
                running: claimed.running,
                unfinished_changes: claimed.unfinished_changes,
            },
            None => Load { blind: true, ..*self.load.borrow() },
        };
        metrics::gauge!("platform_api_jobs", "state" => "waiting").set(load.waiting as f64);
        metrics::gauge!("platform_api_jobs", "state" => "running").set(load.running as f64);
        metrics::gauge!("platform_api_unfinished_changes").set(load.unfinished_changes as f64);
        self.load.send_replace(load);
        claimed
    }

    fn pause_until(&self, next: Option<Timestamp>) -> Duration {
        let now = self.clock.now();
        let micros = next.map_or(i64::MAX, |at| at.0.saturating_sub(now.0));
        Duration::from_micros(u64::try_from(micros).unwrap_or(0)).clamp(LOOK_PAUSE, LOOK_EVERY)
    }

    /// One try of one job, from its lease to its settlement.
    fn hold(
        &self,
        job: Job,
        lease_micros: i64,
        leaving: CancellationToken,
    ) -> impl Future<Output = bool> + Send + use<> {
        let work = Kind::from_name(&job.draft.kind).and_then(|kind| self.kinds.get(&kind)).cloned();
        let holder = Holder::new(self.directory.clone(), lease_micros);
        async move { holder.hold(job, work, leaving).await }
    }
}
