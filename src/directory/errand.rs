//! One try of one job: what does it, what it knows, and who keeps its lease alive and settles it.
//!
//! Whoever holds a job holds it through [`Holder`]: the runner's hands ([`crate::jobs`]), and who has just made a change and
//! goes on with the rest of it.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::handle::Handle;
use super::jobs::JobRefused;
use super::task::Declined;
use crate::domain::ids::JobId;
use crate::domain::job::{Ending, Job, Kind, Progress};
use crate::fault;

/// Signs of life per lease.
const SIGNS_A_LEASE: u32 = 3;
/// How long work may take to stop once it is asked to; then it is dropped where it stands.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How often an ending is told to a control database that does not answer.
const SETTLE_TRIES: u32 = 5;

/// What does a kind of work.
pub trait Work: Send + Sync {
    fn kind(&self) -> Kind;

    /// Does the job, or goes on from its checkpoint. Looks now and then at [`Errand::stop`], and says how far it is.
    ///
    /// # Errors
    /// [`Failure`]; the words are kept and shown, so they hold no secret.
    fn run<'a>(&'a self, errand: &'a Errand) -> BoxFuture<'a, Result<Value, Failure>>;

    /// Does its success stand in the database by the time it is told?
    fn settles_itself(&self) -> bool {
        false
    }
}

/// Why a try did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Another try may succeed.
    Retryable(String),
    /// No other try would.
    Hopeless(String),
    /// It was asked to stop, and has stopped at its last checkpoint.
    Stopped,
}

/// One try of one job, as its work sees it.
pub struct Errand {
    pub job: Job,
    pub directory: Handle,
    /// The job is to be canceled, or the daemon is leaving.
    pub stop: CancellationToken,
    pub desk: Arc<Desk>,
}

impl Errand {
    /// Where the last try has come to; `None` for the first, or when it cannot be read.
    #[must_use]
    pub fn checkpoint<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_str(&self.job.checkpoint).ok()
    }

    /// Says how far the work is, and where another try would go on. It is kept with the next sign of life.
    pub fn progress(&self, done: i64, total: Option<i64>, note: &str, checkpoint: Option<&Value>) {
        self.desk.write(done, total, note, checkpoint);
    }
}

/// Where work writes how far it is, and its lease reads it.
#[derive(Debug, Default)]
pub struct Desk(Mutex<Written>);

#[derive(Debug, Default, Clone)]
struct Written {
    progress: Progress,
    checkpoint: Option<String>,
}

impl Desk {
    fn of(job: &Job) -> Desk {
        Desk(Mutex::new(Written { progress: job.progress.clone(), checkpoint: None }))
    }

    pub fn write(&self, done: i64, total: Option<i64>, note: &str, checkpoint: Option<&Value>) {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        written.progress = Progress { done, total, note: note.to_owned() };
        if let Some(checkpoint) = checkpoint {
            written.checkpoint = Some(checkpoint.to_string());
        }
    }

    /// Where another try would go on, if this one has said so.
    #[cfg(test)]
    pub fn checkpoint(&self) -> Option<String> {
        self.read().checkpoint
    }

    fn read(&self) -> Written {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Who holds one job.
pub struct Holder {
    directory: Handle,
    lease_micros: i64,
    sign_every: Duration,
}

/// How a try ended.
enum Tried {
    /// This is still to be written.
    Ended(Ending),
    /// It succeeded, and that is written.
    Settled,
    /// The job is somebody else's by now.
    Lost,
}

/// Why the work was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Canceled,
    Leaving,
    Lost,
}

impl Holder {
    #[must_use]
    pub fn new(directory: Handle, lease_micros: i64) -> Holder {
        let lease = Duration::from_micros(u64::try_from(lease_micros).unwrap_or(0));
        // A pause of nothing is no pause.
        Holder { directory, lease_micros, sign_every: (lease / SIGNS_A_LEASE).max(Duration::from_millis(1)) }
    }

    /// One try of one job, from its lease to its settlement; true when the job has succeeded.
    pub async fn hold(self, job: Job, work: Option<Arc<dyn Work>>, leaving: CancellationToken) -> bool {
        let known = job.clone();
        let _hold = self.directory.parts().held.hold(job.id);
        tracing::debug!(job = %job.id, kind = job.draft.kind, attempt = job.attempts, "a job begins");
        fault::point("job.begun");
        let tried = match work {
            Some(work) => self.work(job, work, leaving).await,
            None => Tried::Ended(Ending::Hopeless("this program does not know the kind".into())),
        };
        let succeeded = match tried {
            Tried::Settled => {
                metrics::counter!("platform_api_job_tries_total", "outcome" => "succeeded").increment(1);
                return true;
            }
            Tried::Ended(ending) => self.settle(&known, ending).await,
            Tried::Lost => false,
        };
        self.directory.job_bell().notify_one();
        succeeded
    }

    /// Runs the work and keeps its lease.
    async fn work(&self, job: Job, kind: Arc<dyn Work>, leaving: CancellationToken) -> Tried {
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
        if kind.settles_itself() && matches!(done, Ok(Ok(_))) {
            return Tried::Settled;
        }
        if why == Some(Why::Lost) {
            return Tried::Lost;
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
            return Tried::Lost;
        }
        Tried::Ended(ending)
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

    /// Writes how the try ended; true when the job has succeeded with it.
    async fn settle(&self, held: &Job, ending: Ending) -> bool {
        let (id, kind) = (held.id, held.draft.kind.as_str());
        let (told, succeeded) = match &ending {
            Ending::Succeeded(_) => ("succeeded", true),
            Ending::Failed(_) | Ending::Hopeless(_) => ("failed", false),
            Ending::Canceled => ("canceled", false),
            Ending::Released => ("released", false),
        };
        for attempt in 1..=SETTLE_TRIES {
            match self.directory.settle_job(id, held.lease, ending.clone()).await {
                Ok(job) => {
                    metrics::counter!("platform_api_job_tries_total", "outcome" => told).increment(1);
                    if !job.error.is_empty() {
                        let (state, error) = (job.state.name(), job.error.as_str());
                        let tenant = job.draft.tenant.map(tracing::field::display);
                        tracing::warn!(job = %id, kind, tenant, state, attempt = job.attempts, error, "a job's try has failed");
                    }
                    return succeeded;
                }
                // It will be begun again by whoever holds it now.
                Err(Declined::Refused(_)) => return false,
                Err(error) => {
                    tracing::debug!(job = %id, %error, "a job's end could not be written, trying again");
                    tokio::time::sleep(Duration::from_millis(100) * attempt).await;
                }
            }
        }
        tracing::warn!(job = %id, kind, "a job's end could not be written; it is begun again when its lease is over");
        false
    }
}
