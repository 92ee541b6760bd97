//! `/v1/jobs`: background work: asked for, watched, canceled.

use poem_openapi::param::{Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::authorize::Ask;
use super::body::{Strict, present};
use super::document::Tag;
use super::problem::{Code, FieldProblem, Problem};
use super::reply::Reply;
use super::view::{instant, page_limit};
use crate::directory::jobs::JobRefused;
use crate::directory::task::Declined;
use crate::domain::ids::{JobId, TenantId};
use crate::domain::job::{Draft, Job, JobFilter, Kind, State};
use crate::domain::time::Timestamp;

/// How often a job is begun that somebody asked for.
const ATTEMPTS: i64 = 5;

pub(super) struct Jobs;

#[OpenApi(tag = "Tag::Jobs")]
impl Jobs {
    /// Ask for background work
    ///
    /// `auditVerification` recomputes the chain of the tenant, or the platform's own when no tenant is named.
    /// `auditSweep` does that with every chain, and `housekeeping` forgets what need not be kept for ever; only the platform
    /// may ask for these. `vault.rotateDataKey` gives a
    /// tenant another data key and encrypts its secrets under that; `vault.rewrap`, the platform's, wraps every tenant's data
    /// keys with the key encryption key of now; `litellm.sync` compares one tenant's providers, or everybody's, with LiteLLM.
    /// The job runs as soon as a hand is free; GET it to see how far it is. `tenant.finishChange`, what a change to a tenant has
    /// left to do in the tenant's database, begins with the change itself and cannot be asked for.
    #[oai(path = "/v1/jobs", method = "post", operation_id = "submitJob")]
    async fn submit(
        &self,
        ask: Ask,
        /// Whose data it works on.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<SubmitJob>,
    ) -> Result<Reply<JobView, 201>, Problem> {
        let tenant = ask.admitted.tenant;
        if tenant.is_some() {
            ask.row()?;
        }
        let draft = body.0.checked(tenant, &ask)?;
        let answer = ask.api.directory.submit_job(draft, ask.change(), render).await?;
        Ok(Reply::of(answer, |job| JobView::of(&job)))
    }

    /// Page through jobs, newest first
    ///
    /// A tenant sees its own; a platform administrator sees all, or one tenant's. Jobs that have ended are shown for
    /// `jobs.keep_days`.
    #[oai(path = "/v1/jobs", method = "get", operation_id = "listJobs")]
    async fn list(
        &self,
        ask: Ask,
        /// Items of the page, from 1 to 500; 50 when absent.
        limit: Query<Option<String>>,
        /// `nextCursor` of the page before.
        cursor: Query<Option<String>>,
        /// Whose jobs.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        /// Only jobs in this state: `waiting`, `running`, `succeeded`, `failed` or `canceled`.
        state: Query<Option<String>>,
        /// Only jobs of this kind.
        kind: Query<Option<String>>,
    ) -> Result<Reply<JobPage>, Problem> {
        let limit = page_limit(limit.0.as_deref())?;
        let known =
            |name: &str, found: bool| if found { Ok(()) } else { Err(Problem::parameter(name, "is not known")) };
        let wanted = state.0.as_deref().map(State::from_name);
        known("state", wanted != Some(None))?;
        known("kind", kind.0.as_deref().is_none_or(|kind| Kind::from_name(kind).is_some()))?;
        let before = ask.open(cursor.0.as_deref(), |text| text.parse::<JobId>().ok())?;
        if ask.is_platform() && ask.admitted.tenant.is_some() {
            ask.row()?;
        }
        let filter = JobFilter { tenant: ask.admitted.tenant, state: wanted.flatten(), kind: kind.0 };
        let page = ask.api.directory.jobs(filter, before, limit).await?;
        Ok(Reply::new(JobPage {
            items: page.items.iter().map(JobView::of).collect(),
            next_cursor: page.next.map(|next| ask.seal(&next.to_string())),
        }))
    }

    /// Read a job
    #[oai(path = "/v1/jobs/:jobId", method = "get", operation_id = "getJob")]
    async fn read(
        &self,
        ask: Ask,
        /// The job's id.
        #[oai(name = "jobId")]
        job_id: Path<String>,
    ) -> Result<Reply<JobView>, Problem> {
        Ok(Reply::new(JobView::of(&job(&ask, &job_id).await?)))
    }

    /// Cancel a job
    ///
    /// One that waits ends at once; one that runs ends when its worker hears of it, within a third of `jobs.lease_ms`. What
    /// it has done so far stays done. Canceling a repeating job ends its series until the daemon starts again. A
    /// `tenant.finishChange` cannot be canceled (`JOB_NOT_CANCELABLE`): its change was made, and is finished.
    #[oai(path = "/v1/jobs/:jobId/cancel", method = "post", operation_id = "cancelJob")]
    async fn cancel(
        &self,
        ask: Ask,
        /// The job's id.
        #[oai(name = "jobId")]
        job_id: Path<String>,
    ) -> Result<Reply<JobView>, Problem> {
        let job = job(&ask, &job_id).await?;
        let answer = ask.api.directory.cancel_job(job.id, ask.change(), render).await?;
        Ok(Reply::of(answer, |job| JobView::of(&job)))
    }
}

/// The job with this id, if it is one that the caller may know of. Another tenant's is answered as one that does not exist.
async fn job(ask: &Ask, id: &str) -> Result<Job, Problem> {
    let missing = || Problem::new(Code::JobNotFound);
    let id: JobId = id.parse().map_err(|_| missing())?;
    let job = ask.api.directory.job(id).await?.ok_or_else(missing)?;
    let of_caller = ask.admitted.tenant.is_none() || job.draft.tenant == ask.admitted.tenant;
    if of_caller { Ok(job) } else { Err(missing()) }
}

/// What is stored with an idempotency key.
fn render(job: &Job) -> String {
    serde_json::to_string(&JobView::of(job)).unwrap_or_default()
}

impl From<Declined<JobRefused>> for Problem {
    fn from(declined: Declined<JobRefused>) -> Problem {
        match declined {
            Declined::Refused(JobRefused::Unknown) => Problem::new(Code::JobNotFound),
            Declined::Refused(JobRefused::Finished(finished)) => {
                Problem::new(Code::JobFinished).with("state", json!(finished.0.name()))
            }
            Declined::Refused(JobRefused::NotCancelable) => Problem::new(Code::JobNotCancelable),
            Declined::Refused(JobRefused::TooMany) => Problem::new(Code::TooManyJobs),
            Declined::IdempotencyMismatch => Problem::new(Code::IdempotencyKeyReused),
            Declined::Refused(JobRefused::Lost(_)) | Declined::Unavailable(_) => Problem::new(Code::StoreUnavailable),
        }
    }
}

/// Background work to be done.
#[derive(Debug, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct SubmitJob {
    /// `auditVerification`, `auditSweep`, `housekeeping`, `vault.rotateDataKey`, `vault.rewrap` or `litellm.sync`.
    kind: String,
    /// Not before; at once when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    run_at: Option<String>,
}

impl SubmitJob {
    fn checked(self, tenant: Option<TenantId>, ask: &Ask) -> Result<Draft, Problem> {
        let mut problems = Vec::new();
        let mut wrong = |pointer: &str, message: &str| {
            problems.push(FieldProblem { pointer: pointer.into(), message: message.into() });
        };
        let now = ask.api.clock.now();
        let kind = Kind::from_name(&self.kind).filter(|kind| kind.is_for_callers());
        match kind {
            None => {
                let known: Vec<&str> =
                    Kind::ALL.into_iter().filter(|kind| kind.is_for_callers()).map(Kind::name).collect();
                wrong("/kind", &format!("must be one of {}", known.join(", ")));
            }
            Some(kind) if tenant.is_none() && kind.needs_a_tenant() => wrong("/kind", "is about one tenant"),
            Some(kind) if tenant.is_some() && !kind.is_of_a_tenant() => wrong("/kind", "is not about one tenant"),
            Some(_) => {}
        }
        let run_at = match self.run_at.as_deref().map(str::parse::<Timestamp>) {
            None => now,
            Some(Ok(at)) if at <= Timestamp::MAX => at.max(now),
            Some(_) => {
                wrong("/runAt", "must be an RFC 3339 date-time before the year 10000");
                now
            }
        };
        match kind {
            Some(kind) if problems.is_empty() => Ok(Draft {
                kind: kind.name().into(),
                tenant,
                key: None,
                arguments: "{}".into(),
                run_at,
                every_micros: 0,
                attempts_max: ATTEMPTS,
                actor: ask.change().actor,
                request_id: ask.request_id.clone(),
            }),
            _ => Err(Problem::fields(problems)),
        }
    }
}

/// A piece of background work.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "Job", rename_all = "camelCase", example)]
pub(super) struct JobView {
    id: String,
    kind: String,
    /// Absent for the platform's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    tenant_id: Option<String>,
    /// `waiting`, `running`, `succeeded`, `failed` or `canceled`.
    state: String,
    /// How often it was begun.
    attempts: i64,
    /// How often it may be; 0 for as often as it takes.
    attempts_max: i64,
    /// When it is begun, or was to be begun, next.
    run_at: String,
    /// It repeats at multiples of this span.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    every_seconds: Option<i64>,
    /// Its worker has been asked to stop.
    cancel_requested: bool,
    progress: ProgressView,
    /// What came of it: an object of its kind's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    result: Option<Value>,
    /// Why the last try failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    error: Option<String>,
    /// Who asked for it.
    actor: String,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    finished_at: Option<String>,
}

/// How far a job is, in units of its kind.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "JobProgress", rename_all = "camelCase")]
pub(super) struct ProgressView {
    done: i64,
    /// Absent when nobody knows how much there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    total: Option<i64>,
    /// What is counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    note: Option<String>,
}

/// A page of jobs.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct JobPage {
    items: Vec<JobView>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

impl JobView {
    fn of(job: &Job) -> JobView {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let happened = |at: Timestamp| (at > Timestamp(0)).then(|| instant(at));
        let draft = &job.draft;
        JobView {
            id: job.id.to_string(),
            kind: draft.kind.clone(),
            tenant_id: draft.tenant.map(|tenant| tenant.to_string()),
            state: job.state.name().to_owned(),
            attempts: job.attempts,
            attempts_max: draft.attempts_max,
            run_at: instant(draft.run_at),
            every_seconds: (draft.every_micros > 0).then_some(draft.every_micros / 1_000_000),
            cancel_requested: job.cancel_requested,
            progress: ProgressView {
                done: job.progress.done,
                total: job.progress.total,
                note: some(&job.progress.note),
            },
            result: serde_json::from_str(&job.result).ok(),
            // What a database says of itself is for the log, and not for a tenant.
            error: match Kind::from_name(&draft.kind) {
                Some(Kind::FinishChange) if !job.error.is_empty() => Some("not finished yet, tried again".into()),
                _ => some(&job.error),
            },
            actor: draft.actor.clone(),
            created_at: instant(job.created_at),
            started_at: happened(job.started_at),
            finished_at: happened(job.finished_at),
        }
    }
}

impl Example for SubmitJob {
    fn example() -> SubmitJob {
        SubmitJob { kind: "auditVerification".into(), run_at: None }
    }
}

impl Example for JobView {
    fn example() -> JobView {
        JobView {
            id: "0199a8b2-5c00-7abc-8def-0123456789ab".into(),
            kind: "auditVerification".into(),
            tenant_id: Some("0199a8b2-5c00-7abc-8def-0123456789ac".into()),
            state: "succeeded".into(),
            attempts: 1,
            attempts_max: 5,
            run_at: "2026-11-20T15:37:12.345Z".into(),
            every_seconds: None,
            cancel_requested: false,
            progress: ProgressView { done: 0, total: None, note: None },
            result: Some(json!({ "records": 4711 })),
            error: None,
            actor: "platform".into(),
            created_at: "2026-11-20T15:37:12.345Z".into(),
            started_at: Some("2026-11-20T15:37:12.351Z".into()),
            finished_at: Some("2026-11-20T15:37:12.702Z".into()),
        }
    }
}
