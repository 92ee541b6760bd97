//! Looks for due jobs, holds as many as it has hands for, keeps their leases alive, and settles them.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::kinds::{self, Errand, Failure, Tools, Work};
use crate::clock::Clock;
use crate::config::{self, millis};
use crate::directory::handle::Handle as Directory;
use crate::directory::jobs::{Claimed, JobRefused};
use crate::directory::task::Declined;
use crate::domain::ids::JobId;
use crate::domain::job::{Draft, Ending, Job, Kind, Progress};
use crate::domain::request::Request;
use crate::domain::time::Timestamp;
use crate::fault;

/// The longest time between two looks: another node may have been given a job.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The shortest, so that a job that cannot be claimed is not looked at without pause.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Signs of life per lease.
const SIGNS_A_LEASE: u32 = 3;
/// How long work may take to stop once it is asked to; then it is dropped where it stands.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How often an ending is told to a control database that does not answer.
const SETTLE_TRIES: u32 = 5;
/// Tries of a job that the daemon begins by itself.
const ATTEMPTS: i64 = 5;

/// Where work writes how far it is, and its lease reads it.
#[derive(Debug, Default)]
pub(super) struct Desk(Mutex<Written>);

#[derive(Debug, Default, Clone)]
struct Written {
    progress: Progress,
    checkpoint: Option<String>,
}

impl Desk {
    fn of(job: &Job) -> Desk {
        Desk(Mutex::new(Written { progress: job.progress.clone(), checkpoint: None }))
    }

    pub(super) fn write(&self, done: i64, total: Option<i64>, note: &str, checkpoint: Option<&Value>) {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        written.progress = Progress { done, total, note: note.to_owned() };
        if let Some(checkpoint) = checkpoint {
            written.checkpoint = Some(checkpoint.to_string());
        }
    }

    /// Where another try would go on, if this one has said so.
    #[cfg(test)]
    pub(super) fn checkpoint(&self) -> Option<String> {
        self.read().checkpoint
    }

    fn read(&self) -> Written {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What on-call may see of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// The last look for work failed.
    pub blind: bool,
    pub waiting: i64,
    pub running: i64,
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
        let mut running: JoinSet<()> = JoinSet::new();
        let lease_micros = i64::try_from(self.settings.lease_ms).unwrap_or(i64::MAX / 1_000) * 1_000;
        while !stop.is_cancelled() {
            while running.try_join_next().is_some() {}
            begun = begun || self.begin_series().await;
            let free = self.settings.at_once.saturating_sub(running.len());
            let pause = match self.look(free, lease_micros).await {
                Some(claimed) => {
                    for job in claimed.jobs {
                        running.spawn(self.hold(job, lease_micros, stop.clone()));
                    }
                    if free == 0 { LOOK_EVERY } else { self.pause_until(claimed.next) }
                }
                None => LOOK_EVERY,
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.directory.job_bell().notified() => {}
                () = tokio::time::sleep(pause) => {}
                // A hand is free.
                Some(_) = running.join_next(), if free == 0 => {}
            }
        }
        while running.join_next().await.is_some() {}
    }

    /// What the daemon itself wants to be done again and again; true once it is known.
    async fn begin_series(&self) -> bool {
        let housekeeping = millis(self.settings.housekeeping_every_ms);
        let begun = self.begin_one(Kind::Housekeeping, housekeeping).await;
        let begun_too = match self.litellm_every {
            Some(every) => self.begin_one(Kind::LiteLlmSync, every).await,
            None => true,
        };
        begun && begun_too
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

    async fn look(&self, free: usize, lease_micros: i64) -> Option<Claimed> {
        let looked = self.directory.claim_jobs(free, lease_micros).await;
        let claimed = looked.map_err(|error| tracing::debug!(%error, "background work could not be looked for")).ok();
        let load = match &claimed {
            Some(claimed) => Load { blind: false, waiting: claimed.waiting, running: claimed.running },
            None => Load { blind: true, ..*self.load.borrow() },
        };
        metrics::gauge!("platform_api_jobs", "state" => "waiting").set(load.waiting as f64);
        metrics::gauge!("platform_api_jobs", "state" => "running").set(load.running as f64);
        self.load.send_replace(load);
        claimed
    }

    fn pause_until(&self, next: Option<Timestamp>) -> Duration {
        let now = self.clock.now();
        let micros = next.map_or(i64::MAX, |at| at.0.saturating_sub(now.0));
        Duration::from_micros(u64::try_from(micros).unwrap_or(0)).clamp(LOOK_PAUSE, LOOK_EVERY)
    }

    /// One try of one job, from its lease to its settlement.
    fn hold(&self, job: Job, lease_micros: i64, leaving: CancellationToken) -> impl Future<Output = ()> + Send + use<> {
        let kind = Kind::from_name(&job.draft.kind).and_then(|kind| self.kinds.get(&kind)).cloned();
        let holder = Holder {
            directory: self.directory.clone(),
            lease_micros,
            sign_every: millis(self.settings.lease_ms) / SIGNS_A_LEASE,
        };
        async move { holder.hold(job, kind, leaving).await }
    }
}

/// Who holds one job.
struct Holder {
    directory: Directory,
    lease_micros: i64,
    sign_every: Duration,
}

/// Why the work was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Canceled,
    Leaving,
    Lost,
}

impl Holder {
    async fn hold(self, job: Job, kind: Option<Arc<dyn Work>>, leaving: CancellationToken) {
        let (id, lease, name) = (job.id, job.lease, job.draft.kind.clone());
        tracing::debug!(job = %id, kind = name, attempt = job.attempts, "a job begins");
        fault::point("job.begun");
        let ending = match kind {
            Some(kind) => self.work(job, kind, leaving).await,
            None => Some(Ending::Hopeless("this program does not know the kind".into())),
        };
        if let Some(ending) = ending {
            self.settle(id, lease, &name, ending).await;
        }
        self.directory.job_bell().notify_one();
    }

    /// Runs the work and keeps its lease; `None` when the job is somebody else's by now.
    async fn work(&self, job: Job, kind: Arc<dyn Work>, leaving: CancellationToken) -> Option<Ending> {
        let (id, lease) = (job.id, job.lease);
        let stop = CancellationToken::new();
        let desk = Arc::new(Desk::of(&job));
        let errand = Errand { job, directory: self.directory.clone(), stop: stop.clone(), desk: desk.clone() };
        let mut work = Box::pin(AssertUnwindSafe(kind.run(&errand)).catch_unwind());
        let mut why = None;
        let mut signs = tokio::time::interval(self.sign_every);
        signs.reset();
        let done = loop {
            tokio::select! {
                done = &mut work => break done,
                () = leaving.cancelled(), if why.is_none() => why = Some(Why::Leaving),
                _ = signs.tick() => {
                    if why.is_none() {
                        why = self.sign(id, lease, &desk).await;
                    }
                }
            }
            if why.is_some() && !stop.is_cancelled() {
                stop.cancel();
                match tokio::time::timeout(STOP_PATIENCE, &mut work).await {
                    Ok(done) => break done,
                    Err(_) => break Ok(Err(Failure::Stopped)),
                }
            }
        };
        if why == Some(Why::Lost) {
            return None;
        }
        let stopped = if why == Some(Why::Leaving) { Ending::Released } else { Ending::Canceled };
        let ending = match done {
            Ok(Ok(result)) => Ending::Succeeded(result.to_string()),
            Ok(Err(Failure::Retryable(error))) => Ending::Failed(error),
            Ok(Err(Failure::Hopeless(error))) => Ending::Hopeless(error),
            Ok(Err(Failure::Stopped)) => stopped,
            Err(_) => Ending::Failed("the work panicked".into()),
        };
        // How far it came, and what another try goes on from, is kept before this one ends.
        if self.sign(id, lease, &desk).await == Some(Why::Lost) {
            return None;
        }
        Some(ending)
    }

    /// A sign of life. A control database that does not answer is no reason to stop: the lease outlives some of them.
    async fn sign(&self, id: JobId, lease: i64, desk: &Desk) -> Option<Why> {
        let written = desk.read();
        match self.directory.renew_job(id, lease, self.lease_micros, written.progress, written.checkpoint).await {
            Ok(true) => Some(Why::Canceled),
            Ok(false) => None,
            Err(Declined::Refused(JobRefused::Lost(_) | JobRefused::Unknown)) => Some(Why::Lost),
            Err(error) => {
                tracing::debug!(job = %id, %error, "a job's lease could not be renewed");
                None
            }
        }
    }

    async fn settle(&self, id: JobId, lease: i64, kind: &str, ending: Ending) {
        let told = match &ending {
            Ending::Succeeded(_) => "succeeded",
            Ending::Failed(_) | Ending::Hopeless(_) => "failed",
            Ending::Canceled => "canceled",
            Ending::Released => "released",
        };
        for attempt in 1..=SETTLE_TRIES {
            match self.directory.settle_job(id, lease, ending.clone()).await {
                Ok(job) => {
                    metrics::counter!("platform_api_job_tries_total", "outcome" => told).increment(1);
                    if !job.error.is_empty() {
                        let (state, error) = (job.state.name(), job.error.as_str());
                        tracing::warn!(job = %id, kind, state, attempt = job.attempts, error, "a job's try has failed");
                    }
                    return;
                }
                // It will be begun again by whoever holds it now.
                Err(Declined::Refused(_)) => return,
                Err(error) => {
                    tracing::debug!(job = %id, %error, "a job's end could not be written, trying again");
                    tokio::time::sleep(Duration::from_millis(100) * attempt).await;
                }
            }
        }
        tracing::warn!(job = %id, kind, "a job's end could not be written; it is begun again when its lease is over");
    }
}
