//! Changes that touch the control database and a tenant's.
//!
//! Two databases have no common transaction, so such a change is: one transaction in the control database that makes the
//! change and writes down what is left (a row of work), then the steps, then one that forgets the row. Each step may be
//! done again without harm: databases are created if absent, records are appended once per key. A crash between any two
//! leaves the row, and the row is worked off at the next start.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::handle::{Handle, Refused};
use super::registrar::{Begun, Change, Message, Written};
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::ids::TenantId;
use crate::domain::request::{Answer, Idempotency, Request};
use crate::domain::time::Timestamp;
use crate::fault;
use crate::store::catalogue::Work;
use crate::tenant::message::ChangeRefused;
use crate::tenant::provider::DestroyKeys;
use crate::tenant::task::untold;

/// `kind` of the rows of work we write.
const KIND: &str = "plan/v1";
/// First and longest delay between tries of an unfinished change.
const RETRY_DELAY: Duration = Duration::from_millis(100);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(30);
/// How long a caller waits for a change to be finished. The change goes on without the caller.
const PATIENCE: Duration = Duration::from_secs(20);

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

impl Plan {
    pub(super) fn to_work(&self, id: Uuid, tenant: TenantId, now: Timestamp) -> Work {
        // A plan of strings always serializes; an empty body would be reported as unreadable at the next start.
        let body = serde_json::to_string(self).unwrap_or_default();
        Work { id, tenant, kind: KIND.to_owned(), body, created_at: now }
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

/// The idempotency key of the request that an unfinished change belongs to.
pub(super) fn idempotency_key(work: &Work) -> Option<String> {
    serde_json::from_str::<Plan>(&work.body).ok()?.answer.map(|answer| answer.key)
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
    match handle.register(|reply| Message::Begin { change: Box::new(change), reply }).await? {
        Begun::Before(answer) => Ok(Answer::Replayed(answer)),
        Begun::Now { written, work, plan } => {
            let handle = handle.clone();
            let tenant = written.tenant.id;
            let finishing = tokio::spawn(async move { finish(&handle, work, tenant, &plan).await });
            match tokio::time::timeout(PATIENCE, finishing).await {
                Ok(Ok(())) => Ok(Answer::Fresh(*written)),
                _ => Err(Refused::Unavailable("the change is being finished in the background".into())),
            }
        }
    }
}

/// Takes up whatever a crash left unfinished, in the background, oldest first.
pub(super) async fn resume(handle: &Handle) {
    let unfinished = match handle.register(|reply| Message::Unfinished { reply }).await {
        Ok(unfinished) => unfinished,
        Err(error) => {
            tracing::error!(%error, "unfinished changes cannot be read");
            return;
        }
    };
    for work in unfinished {
        match serde_json::from_str::<Plan>(&work.body) {
            Ok(plan) if work.kind == KIND => {
                tracing::info!(tenant = %work.tenant, work = %work.id, "finishing a change that was interrupted");
                let handle = handle.clone();
                tokio::spawn(async move { finish(&handle, work.id, work.tenant, &plan).await });
            }
            _ => tracing::error!(work = %work.id, kind = work.kind, "an unfinished change cannot be read; it stays"),
        }
    }
}

/// Tries until it is done.
async fn finish(handle: &Handle, work: Uuid, tenant: TenantId, plan: &Plan) {
    let mut delay = RETRY_DELAY;
    while let Err(reason) = steps(handle, work, tenant, plan).await {
        tracing::warn!(%tenant, %work, reason, "a change is not finished yet, trying again");
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RETRY_DELAY_MAX);
    }
}

async fn steps(handle: &Handle, work: Uuid, tenant: TenantId, plan: &Plan) -> Result<(), String> {
    if let Some(time_zone) = &plan.create {
        handle.create_database(tenant, time_zone).await.map_err(|error| error.to_string())?;
        fault::point("change.database");
    }
    if !plan.records.is_empty() {
        let home = handle.open(tenant).await.map_err(|error| error.to_string())?;
        for (number, record) in plan.records.iter().cloned().enumerate() {
            let once = format!("{work}-{number}");
            match &plan.time_zone {
                Some(name) if number == 0 => {
                    match home
                        .change_time_zone(name.clone(), record.into(), once)
                        .await
                        .map_err(|error| error.to_string())?
                    {
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
    let activate = plan.create.as_ref().map(|_| tenant);
    let answer =
        plan.answer.clone().map(|kept| (Idempotency { key: kept.key, body_hash: kept.body_hash }, kept.answer));
    let finished = handle.register(|reply| Message::Finish { work, activate, answer, reply }).await;
    finished.map_err(|error| error.to_string())
}
