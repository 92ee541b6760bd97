//! Background work, as changes to the control database: asked for, held, kept alive, settled, canceled.
//!
//! Whoever runs it is elsewhere ([`crate::jobs`]); here is what is durable about it. A job may be looked at by several
//! nodes at once: each change is written only if the job still stands as it was read.

use std::collections::{HashMap, HashSet, hash_map};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::handle::{Handle, Refused};
use super::task::{Change, Declined, Halt, untold};
use crate::clock;
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::ids::JobId;
use crate::domain::job::{Draft, Ending, Finished, Job, JobFilter, Kind, Lost, Progress, State};
use crate::domain::report::Page;
use crate::domain::request::{Answer, Request};
use crate::domain::time::Timestamp;
use crate::store::database::Connection;
use crate::store::{StoreError, job, quarantine, request};

/// Unfinished jobs there may be; who asks for another one is told to come back. Changes that were made and are being
/// finished are not counted: there is no choice about them.
pub const JOBS_MAX: i64 = 10_000;
/// Rows that are forgotten in one piece.
const FORGOTTEN_A_PIECE: i64 = 1_000;

/// Why a job is not there for what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobRefused {
    #[error("no such job")]
    Unknown,
    #[error(transparent)]
    Finished(#[from] Finished),
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error("there are as many unfinished jobs as there may be")]
    TooMany,
    /// The change it belongs to was made already.
    #[error("a change that was made is finished")]
    NotCancelable,
}

/// How many jobs somebody can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hands {
    /// Of any kind but the rests of changes.
    pub jobs: usize,
    /// Rests of changes.
    pub changes: usize,
}

/// The jobs that workers of this process hold.
#[derive(Debug, Default)]
pub(super) struct Held(Mutex<HashMap<JobId, usize>>);

impl Held {
    /// Until what is answered is dropped.
    pub(super) fn hold(self: &Arc<Held>, id: JobId) -> Hold {
        *self.jobs().entry(id).or_default() += 1;
        Hold { held: self.clone(), id }
    }

    fn all(&self) -> HashSet<JobId> {
        self.jobs().keys().copied().collect()
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<JobId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker of this process holds a job.
#[derive(Debug)]
pub(super) struct Hold {
    held: Arc<Held>,
    id: JobId,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let hash_map::Entry::Occupied(mut workers) = self.held.jobs().entry(self.id) {
            *workers.get_mut() -= 1;
            if *workers.get() == 0 {
                workers.remove();
            }
        }
    }
}

/// What a look for work has brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claimed {
    /// Held now, by whoever asked.
    pub jobs: Vec<Job>,
    /// When another one is due that there is a hand for.
    pub next: Option<Timestamp>,
    /// How many wait, and how many run.
    pub waiting: i64,
    pub running: i64,
    /// Of those that wait, the rests of changes.
    pub unfinished_changes: i64,
}

impl Handle {
    /// Asks for work; of a key, the unfinished job that has it is answered. `render` makes the answer that is kept for the
    /// idempotency key.
    ///
    /// # Errors
    /// [`Declined`].
    pub async fn submit_job(
        &self,
        draft: Draft,
        request: Request,
        render: fn(&Job) -> String,
    ) -> Result<Answer<Job>, Declined<JobRefused>> {
        let told = self.change(Submit { draft }, request, render).await;
        self.job_bell().notify_one();
        told
    }

    /// Leases due jobs to the caller, as many as it has hands for.
    ///
    /// # Errors
    /// [`Declined::Unavailable`].
    pub async fn claim_jobs(&self, hands: Hands, lease_micros: i64) -> Result<Claimed, Declined<JobRefused>> {
        let held = self.parts().held.all();
        fresh(self.change(Claim { hands, lease_micros, held }, Request::system(), untold).await)
    }

    /// A worker's sign of life; answers whether it should stop.
    ///
    /// # Errors
    /// [`JobRefused::Lost`] when the job is not the caller's any more.
    pub async fn renew_job(
        &self,
        id: JobId,
        lease: i64,
        lease_micros: i64,
        progress: Progress,
        checkpoint: Option<String>,
    ) -> Result<bool, Declined<JobRefused>> {
        fresh(self.change(Renew { id, lease, lease_micros, progress, checkpoint }, Request::system(), untold).await)
    }

    /// Settles a job that the caller holds.
    ///
    /// # Errors
    /// [`JobRefused::Lost`] when the job is not the caller's any more.
    pub async fn settle_job(&self, id: JobId, lease: i64, ending: Ending) -> Result<Job, Declined<JobRefused>> {
        fresh(self.change(Settle { id, lease, ending }, Request::system(), untold).await)
    }

    /// Asks a job to end.
    ///
    /// # Errors
    /// [`JobRefused::Finished`] when it has ended already, [`JobRefused::NotCancelable`] when it must be finished.
    pub async fn cancel_job(
        &self,
        id: JobId,
        request: Request,
        render: fn(&Job) -> String,
    ) -> Result<Answer<Job>, Declined<JobRefused>> {
        let told = self.change(Cancel { id }, request, render).await;
        self.job_bell().notify_one();
        told
    }

    /// Forgets a piece of the jobs that ended before `before`; answers how many.
    ///
    /// # Errors
    /// [`Declined::Unavailable`].
    pub async fn forget_jobs(&self, before: Timestamp) -> Result<u64, Declined<JobRefused>> {
        fresh(self.change(Forget { what: Old::Jobs, before }, Request::system(), untold).await)
    }

    /// Forgets a piece of the answers that were kept for idempotency keys before `before`; answers how many.
    ///
    /// # Errors
    /// [`Declined::Unavailable`].
    pub async fn forget_answers(&self, before: Timestamp) -> Result<u64, Declined<JobRefused>> {
        fresh(self.change(Forget { what: Old::Answers, before }, Request::system(), untold).await)
    }

    /// Forgets a piece of what came to the quarantine last before `before` and waits for no tenant; answers how much. It is in
    /// the platform's chain.
    ///
    /// # Errors
    /// [`Declined::Unavailable`].
    pub async fn forget_quarantined(&self, before: Timestamp) -> Result<u64, Declined<JobRefused>> {
        fresh(self.change(Forget { what: Old::Quarantined, before }, Request::system(), untold).await)
    }

    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn job(&self, id: JobId) -> Result<Option<Job>, Refused> {
        let mut reader = self.control_reader().await?;
        job::one(&mut reader, id).await.map_err(super::handle::unavailable)
    }

    /// Newest first, before `before`.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn jobs(
        &self,
        filter: JobFilter,
        before: Option<JobId>,
        limit: usize,
    ) -> Result<Page<Job, JobId>, Refused> {
        let mut reader = self.control_reader().await?;
        job::page(&mut reader, &filter, before, limit).await.map_err(super::handle::unavailable)
    }
}

/// A change without an idempotency key is never a repeated one.
fn fresh<T>(told: Result<Answer<T>, Declined<JobRefused>>) -> Result<T, Declined<JobRefused>> {
    match told? {
        Answer::Fresh(done) => Ok(done),
        Answer::Replayed(_) => Err(Declined::IdempotencyMismatch),
    }
}

#[derive(Debug)]
struct Submit {
    draft: Draft,
}

impl Change for Submit {
    type Done = Job;
    type Refused = JobRefused;

    async fn apply(
        &self,
        connection: &mut Connection,
        entries: &mut Vec<Entry>,
        request: &Request,
        now: Timestamp,
    ) -> Result<Job, Halt<JobRefused>> {
        if let Some(key) = &self.draft.key
            && let Some(before) = job::by_key(connection, key).await?
        {
            let mut job = before.clone();
            let is_written = !job.follow(&self.draft) || job::update(connection, &before, &job).await?;
            return Ok(if is_written { job } else { before });
        }
        let census = job::census(connection).await?;
        let counted = census.iter().filter(|tally| tally.kind != Kind::FinishChange.name());
        let unfinished: i64 = counted.map(|tally| tally.count).sum();
        if unfinished >= JOBS_MAX {
            return Err(Halt::Refused(JobRefused::TooMany));
        }
        let job = Job::new(JobId(clock::new_id()), self.draft.clone(), now);
        job::insert(connection, &job).await?;
        entries.push(record(&job, "job.submitted", request));
        Ok(job)
    }
}

#[derive(Debug)]
struct Claim {
    hands: Hands,
    lease_micros: i64,
    held: HashSet<JobId>,
}

impl Change for Claim {
    type Done = Claimed;
    type Refused = JobRefused;

    async fn apply(
        &self,
        connection: &mut Connection,
        entries: &mut Vec<Entry>,
        request: &Request,
        now: Timestamp,
    ) -> Result<Claimed, Halt<JobRefused>> {
        let mut claimed = Claimed::default();
        for (changes, limit) in [(false, self.hands.jobs), (true, self.hands.changes)] {
            if limit == 0 {
                continue;
            }
            for before in job::due(connection, now, changes, limit).await? {
                // Its worker is alive, and about to renew a lease that a clock has leapt over.
                if self.held.contains(&before.id) {
                    continue;
                }
                let mut job = before.clone();
                let held = job.claim(now, self.lease_micros);
                if !job::update(connection, &before, &job).await? {
                    continue;
                }
                if held {
                    claimed.jobs.push(job);
                } else {
                    ended(connection, &job, entries, request, now).await?;
                }
            }
            let next = job::next_due(connection, changes).await?;
            claimed.next = [claimed.next, next].into_iter().flatten().min();
        }
        for tally in job::census(connection).await? {
            match tally.state {
                State::Waiting => {
                    claimed.waiting += tally.count;
                    if tally.kind == Kind::FinishChange.name() {
                        claimed.unfinished_changes = tally.count;
                    }
                }
                State::Running => claimed.running += tally.count,
                State::Succeeded | State::Failed | State::Canceled => {}
            }
        }
        Ok(claimed)
    }
}

#[derive(Debug)]
struct Renew {
    id: JobId,
    lease: i64,
    lease_micros: i64,
    progress: Progress,
    checkpoint: Option<String>,
}

impl Change for Renew {
    type Done = bool;
    type Refused = JobRefused;

    async fn apply(
        &self,
        connection: &mut Connection,
        _entries: &mut Vec<Entry>,
        _request: &Request,
        now: Timestamp,
    ) -> Result<bool, Halt<JobRefused>> {
        let Some(before) = job::one(connection, self.id).await? else { return Err(Halt::Refused(JobRefused::Unknown)) };
        let mut job = before.clone();
        let (progress, checkpoint) = (self.progress.clone(), self.checkpoint.clone());
        match job.renew(self.lease, now, self.lease_micros, progress, checkpoint) {
            Err(lost) => Err(Halt::Refused(lost.into())),
            Ok(_) if !job::update(connection, &before, &job).await? => Err(Halt::Refused(Lost.into())),
            Ok(stop) => Ok(stop),
        }
    }
}

#[derive(Debug)]
struct Settle {
    id: JobId,
    lease: i64,
    ending: Ending,
}

impl Change for Settle {
    type Done = Job;
    type Refused = JobRefused;

    async fn apply(
        &self,
        connection: &mut Connection,
        entries: &mut Vec<Entry>,
        request: &Request,
        now: Timestamp,
    ) -> Result<Job, Halt<JobRefused>> {
        let Some(before) = job::one(connection, self.id).await? else { return Err(Halt::Refused(JobRefused::Unknown)) };
        let mut job = before.clone();
        if let Err(lost) = job.settle(self.lease, self.ending.clone(), now) {
            return Err(Halt::Refused(lost.into()));
        }
        if !job::update(connection, &before, &job).await? {
            return Err(Halt::Refused(Lost.into()));
        }
        ended(connection, &job, entries, request, now).await?;
        Ok(job)
    }
}

#[derive(Debug)]
struct Cancel {
    id: JobId,
}

impl Change for Cancel {
    type Done = Job;
    type Refused = JobRefused;

    async fn apply(
        &self,
        connection: &mut Connection,
        entries: &mut Vec<Entry>,
        request: &Request,
        now: Timestamp,
    ) -> Result<Job, Halt<JobRefused>> {
        let Some(before) = job::one(connection, self.id).await? else { return Err(Halt::Refused(JobRefused::Unknown)) };
        let mut job = before.clone();
        if let Err(finished) = job.cancel(now) {
            return Err(Halt::Refused(finished.into()));
        }
        if job.finishes_a_change() {
            return Err(Halt::Refused(JobRefused::NotCancelable));
        }
        if !job::update(connection, &before, &job).await? {
            return Err(StoreError::Retryable("the job has changed in between".into()).into());
        }
        entries.push(record(&job, "job.cancelRequested", request));
        ended(connection, &job, entries, request, now).await?;
        Ok(job)
    }
}

/// What need not be kept for ever.
#[derive(Debug, Clone, Copy)]
enum Old {
    /// That have ended.
    Jobs,
    /// Kept for idempotency keys.
    Answers,
    /// In quarantine, and not waiting.
    Quarantined,
}

#[derive(Debug)]
struct Forget {
    what: Old,
    before: Timestamp,
}

impl Change for Forget {
    type Done = u64;
    type Refused = JobRefused;

    async fn apply(
        &self,
        connection: &mut Connection,
        entries: &mut Vec<Entry>,
        request: &Request,
        _now: Timestamp,
    ) -> Result<u64, Halt<JobRefused>> {
        Ok(match self.what {
            Old::Jobs => job::forget(connection, self.before, FORGOTTEN_A_PIECE).await?,
            Old::Answers => request::forget(connection, self.before, FORGOTTEN_A_PIECE).await?,
            Old::Quarantined => {
                let rows = quarantine::forget(connection, self.before, FORGOTTEN_A_PIECE).await?;
                if rows > 0 {
                    entries.push(forgotten(rows, self.before, request));
                }
                rows
            }
        })
    }
}

/// What follows when a job is finished: its record, and the next one of its series.
async fn ended(
    connection: &mut Connection,
    job: &Job,
    entries: &mut Vec<Entry>,
    request: &Request,
    now: Timestamp,
) -> Result<(), StoreError> {
    let action = match job.state {
        State::Succeeded => "job.succeeded",
        State::Failed => "job.failed",
        State::Canceled => "job.canceled",
        State::Waiting | State::Running => return Ok(()),
    };
    entries.push(record(job, action, request));
    if let Some(next) = job.successor(JobId(clock::new_id()), now) {
        job::insert(connection, &next).await?;
    }
    Ok(())
}

fn forgotten(rows: u64, before: Timestamp, request: &Request) -> Entry {
    Entry {
        actor: request.actor.clone(),
        action: "quarantine.forgotten".to_owned(),
        target: "quarantine".to_owned(),
        outcome: EntryOutcome::Success,
        request_id: request.request_id.clone(),
        payload: serde_json::json!({ "rows": rows, "before": before.to_string() }).to_string(),
    }
}

fn record(job: &Job, action: &str, request: &Request) -> Entry {
    Entry {
        actor: request.actor.clone(),
        action: action.to_owned(),
        target: format!("job:{}", job.id),
        outcome: EntryOutcome::Success,
        request_id: request.request_id.clone(),
        payload: serde_json::json!({
            "kind": job.draft.kind,
            "tenant": job.draft.tenant.map(|tenant| tenant.to_string()),
            "attempts": job.attempts,
            "error": job.error,
        })
        .to_string(),
    }
}
