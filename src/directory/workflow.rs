//! Changes that touch the control database and a tenant's.
//!
//! Two databases have no common transaction, so such a change is: one transaction in the control database that makes the
//! change and writes down what is left as a job, then the steps, then one that settles the job. Each step may be done again
//! without harm: databases are created if absent, records are appended once per key.
//!
//! The job is written as one that this node holds already, and is begun at once, by a hand of its own: nobody who makes a
//! change waits for a look at the queue, or behind what takes long. From there on it is a job like any other: a try that fails
//! is tried again by the runner, and when the node dies, any node's runner takes it up once the lease is over; where databases
//! have one owner, its next life does at once. It is tried until it succeeds, and nobody may cancel it. Its success is not told to the platform's chain: the change itself is in the
//! tenant's, once.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::errand::{Errand, Failure, Holder, Work};
use super::handle::{Handle, Refused};
use super::registrar::{Begun, Change, Message, Written};
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::ids::{JobId, TenantId};
use crate::domain::job::{Draft, Job, Kind, State};
use crate::domain::request::{Answer, Idempotency, Request};
use crate::domain::tenant::Lifecycle;
use crate::domain::time::Timestamp;
use crate::fault;
use crate::tenant::message::ChangeRefused;
use crate::tenant::provider::DestroyKeys;
use crate::tenant::task::untold;

/// Changes that a node is finishing at once for those who have just made them, and again as many that its runner tries anew.
pub const CHANGES_AT_ONCE: usize = 64;
/// Of the arguments that we write.
const VERSION: i64 = 1;
/// How long a caller waits for a change to be finished. The change goes on without the caller.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often such a caller looks, once the first try has failed: at first, and at last.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LOOK_EVERY_MAX: Duration = Duration::from_secs(1);

/// The hands of a node for changes that are being made.
pub(super) struct Changes {
    hands: Arc<Semaphore>,
    leaving: CancellationToken,
    lease_micros: i64,
}

impl Changes {
    pub(super) fn new(lease_micros: i64) -> Changes {
        Changes { hands: Arc::new(Semaphore::new(CHANGES_AT_ONCE)), leaving: CancellationToken::new(), lease_micros }
    }

    /// A free hand; waits for one.
    async fn hand(&self) -> Result<OwnedSemaphorePermit, Refused> {
        match tokio::time::timeout(PATIENCE, self.hands.clone().acquire_owned()).await {
            Ok(Ok(hand)) => Ok(hand),
            _ => Err(Refused::Unavailable("as many changes are being made as may be".into())),
        }
    }

    /// What is being tried ends, or is given back for another node, or this one's next life, to go on with.
    pub(super) async fn drain(&self) {
        self.leaving.cancel();
        let all = u32::try_from(CHANGES_AT_ONCE).unwrap_or(u32::MAX);
        let _ = self.hands.acquire_many(all).await;
    }
}

/// What is left to do after a change to the catalogue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Plan {
    /// The tenant is new: create its database, and activate it at the end. Holds its time zone.
    pub(super) create: Option<String>,
    /// The tenant's calendar changes to this one, with the first of the records.
    pub(super) time_zone: Option<String>,
    /// Records for the tenant's chain, each appended once.
    pub(super) records: Vec<PlannedRecord>,
    /// The answer to keep for an idempotency key.
    pub(super) answer: Option<PlannedAnswer>,
    /// The tenant leaves: what its secrets are encrypted under is destroyed.
    #[serde(default)]
    pub(super) destroy_keys: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlannedRecord {
    pub(super) actor: String,
    pub(super) action: String,
    pub(super) target: String,
    pub(super) request_id: String,
    pub(super) payload: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlannedAnswer {
    pub(super) key: String,
    pub(super) body_hash: [u8; 32],
    pub(super) answer: String,
}

/// A plan, as a job has it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    version: i64,
    plan: Plan,
}

impl Plan {
    /// The job that this is, held by this node from its first moment.
    pub(super) fn into_job(
        self,
        id: JobId,
        tenant: TenantId,
        idempotency: Option<&Idempotency>,
        now: Timestamp,
        lease_micros: i64,
    ) -> Job {
        let (actor, request_id) = match self.records.first() {
            Some(record) => (record.actor.clone(), record.request_id.clone()),
            None => (Request::system().actor, String::new()),
        };
        // A plan of strings always serializes; empty arguments would be reported as unreadable.
        let arguments = serde_json::to_string(&Arguments { version: VERSION, plan: self }).unwrap_or_default();
        let draft = Draft {
            kind: Kind::FinishChange.name().into(),
            tenant: Some(tenant),
            key: idempotency.map(|idempotency| job_key(&idempotency.key)),
            arguments,
            run_at: now,
            every_micros: 0,
            attempts_max: 0,
            actor,
            request_id,
        };
        let mut job = Job::new(id, draft, now);
        job.claim(now, lease_micros);
        job
    }

    fn of(job: &Job) -> Option<Plan> {
        let arguments: Arguments = serde_json::from_str(&job.draft.arguments).ok()?;
        (arguments.version == VERSION).then_some(arguments.plan)
    }

    /// Keeps `answer` for the idempotency key, if there is one.
    pub(super) fn answering(mut self, idempotency: Option<&Idempotency>, answer: impl FnOnce() -> String) -> Plan {
        self.answer = idempotency.map(|idempotency| PlannedAnswer {
            key: idempotency.key.clone(),
            body_hash: idempotency.body_hash,
            answer: answer(),
        });
        self
    }
}

/// The key of the job that finishes what a request with this idempotency key has begun; the migration that made jobs of
/// older changes writes it too.
pub(super) fn job_key(idempotency_key: &str) -> String {
    format!("request:{idempotency_key}")
}

impl From<PlannedRecord> for Entry {
    fn from(record: PlannedRecord) -> Entry {
        Entry {
            actor: record.actor,
            action: record.action,
            target: record.target,
            outcome: EntryOutcome::Success,
            request_id: record.request_id,
            payload: record.payload,
        }
    }
}

/// Makes a change and finishes it. A caller that loses patience, or is gone, does not stop it.
///
/// # Errors
/// [`Refused`]; after `Unavailable` the change may still be finished.
pub(super) async fn run(handle: &Handle, change: Change) -> Result<Answer<Written>, Refused> {
    let hand = handle.parts().changes.hand().await?;
    match handle.register(|reply| Message::Begin { change: Box::new(change), reply }).await? {
        Begun::Before(answer) => Ok(Answer::Replayed(answer)),
        Begun::Now { written, job } => {
            let (id, tenant) = (job.id, written.tenant.id);
            let trying = tokio::spawn(first_try(handle.clone(), *job, hand));
            let finishing = async {
                if !matches!(trying.await, Ok(true)) {
                    until_finished(handle, id, tenant).await;
                }
            };
            match tokio::time::timeout(PATIENCE, finishing).await {
                Ok(()) => Ok(Answer::Fresh(*written)),
                Err(_) => Err(Refused::Unavailable("the change is being finished in the background".into())),
            }
        }
    }
}

/// The first try of the job that a change has begun; true when that was enough.
async fn first_try(handle: Handle, job: Job, hand: OwnedSemaphorePermit) -> bool {
    let changes = &handle.parts().changes;
    let holder = Holder::new(handle.clone(), changes.lease_micros);
    let succeeded = holder.hold(job, Some(Arc::new(FinishChange)), changes.leaving.clone()).await;
    drop(hand);
    succeeded
}

/// Waits for whoever goes on with the job.
async fn until_finished(handle: &Handle, id: JobId, tenant: TenantId) {
    let mut pause = LOOK_EVERY;
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK_EVERY_MAX);
        if let Ok(Some(job)) = handle.job(id).await
            && job.state == State::Succeeded
        {
            break;
        }
    }
    // Another node has finished it; what that has written is not in our memory yet.
    if handle.lifecycle(tenant) == Some(Lifecycle::Pending)
        && let Err(error) = handle.register(|reply| Message::Reload { reply }).await
    {
        tracing::warn!(%tenant, %error, "a tenant that another node has finished is not known yet");
    }
}

/// Does what a change to the catalogue has left to do in the tenant's database.
pub struct FinishChange;

impl Work for FinishChange {
    fn kind(&self) -> Kind {
        Kind::FinishChange
    }

    fn run<'a>(&'a self, errand: &'a Errand) -> BoxFuture<'a, Result<Value, Failure>> {
        async move {
            // A newer program may have begun it, and will finish it: it is no lost cause.
            let unreadable = || Failure::Retryable("what is left to do cannot be read by this program".into());
            let (Some(plan), Some(tenant)) = (Plan::of(&errand.job), errand.job.draft.tenant) else {
                return Err(unreadable());
            };
            steps(&errand.directory, &errand.job, tenant, plan).await.map_err(Failure::Retryable)
        }
        .boxed()
    }

    /// With the last step, in one transaction.
    fn settles_itself(&self) -> bool {
        true
    }
}

async fn steps(handle: &Handle, job: &Job, tenant: TenantId, plan: Plan) -> Result<Value, String> {
    if handle.tenant(tenant).is_none() {
        // Made by another node, after this one has read the catalogue.
        handle.register(|reply| Message::Reload { reply }).await.map_err(|error| error.to_string())?;
    }
    if let Some(time_zone) = &plan.create {
        handle.create_database(tenant, time_zone).await.map_err(|error| error.to_string())?;
        fault::point("change.database");
    }
    if !plan.records.is_empty() {
        let home = handle.open(tenant).await.map_err(|error| error.to_string())?;
        for (number, record) in plan.records.iter().cloned().enumerate() {
            let once = format!("{}-{number}", job.id);
            match &plan.time_zone {
                Some(planned) if number == 0 => {
                    // As the catalogue has it now: a change that is finished late does not undo one that came after it.
                    let name = handle.tenant(tenant).map_or_else(|| planned.clone(), |tenant| tenant.time_zone);
                    match home.change_time_zone(name, record.into(), once).await.map_err(|error| error.to_string())? {
                        // The name was checked when the change was made; an older database of zones must not stop it all.
                        Ok(()) | Err(ChangeRefused::UnknownTimeZone) => {}
                        Err(refused) => return Err(refused.to_string()),
                    }
                }
                _ => home.append(record.into(), Some(once)).await.map_err(|error| error.to_string())?,
            }
            fault::point("change.recorded");
        }
    }
    if plan.destroy_keys {
        let home = handle.open(tenant).await.map_err(|error| error.to_string())?;
        let destroyed = home.change(DestroyKeys, Request::system(), untold).await.map_err(|error| error.to_string())?;
        destroyed.map_err(|declined| declined.to_string())?;
        fault::point("change.destroyed");
    }
    let done = json!({ "records": plan.records.len() });
    let finish = Finish {
        job: job.clone(),
        result: done.to_string(),
        activate: plan.create.map(|_| tenant),
        answer: plan.answer.map(|kept| (Idempotency { key: kept.key, body_hash: kept.body_hash }, kept.answer)),
    };
    match handle.register(|reply| Message::Finish { finish: Box::new(finish), reply }).await {
        Ok(true) => Ok(done),
        Ok(false) => Err("another node has taken the change up".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// The last step of a change: everything is done but this.
#[derive(Debug)]
pub(super) struct Finish {
    /// As it is held.
    pub(super) job: Job,
    pub(super) result: String,
    pub(super) activate: Option<TenantId>,
    /// To be kept for the idempotency key.
    pub(super) answer: Option<(Idempotency, String)>,
}
