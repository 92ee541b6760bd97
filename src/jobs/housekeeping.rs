//! Forgets, once an hour, what need not be kept for ever: answers kept for idempotency keys, jobs that have
//! ended, and what waits for nothing in quarantine.
//!
//! Tenants that rest are left alone: nothing has come to them since they were open, and they are visited when they are open
//! again. The ledger, the chain and alerts are never touched.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::kinds::{Errand, Failure, Work};
use crate::config;
use crate::domain::ids::TenantId;
use crate::domain::job::Kind;
use crate::domain::request::{Answer, Request};
use crate::domain::time::{MICROS_PER_DAY, Timestamp};
use crate::tenant::handle::Handle as Home;
use crate::tenant::housekeeping::ForgetAnswers;
use crate::tenant::task::untold;

pub(super) struct Housekeeping {
    keep_jobs_micros: i64,
    keep_answers_micros: i64,
    keep_quarantine_micros: i64,
}

impl Housekeeping {
    pub(super) fn new(settings: &config::Jobs) -> Housekeeping {
        let days = |days: u32| i64::from(days) * MICROS_PER_DAY;
        Housekeeping {
            keep_jobs_micros: days(settings.keep_days),
            keep_answers_micros: days(settings.keep_answers_days),
            keep_quarantine_micros: days(settings.keep_quarantine_days),
        }
    }

    async fn work(&self, errand: &Errand) -> Result<Value, Failure> {
        // Measured from the job's first try, so that one that goes on forgets what the first would have.
        let began = errand.job.started_at;
        let before = |span: i64| began.plus_micros(-span);
        let mut jobs = 0;
        let mut answers = 0;
        let mut quarantined = 0;
        loop {
            let directory = &errand.directory;
            let piece = directory.forget_jobs(before(self.keep_jobs_micros)).await.map_err(|error| later(&error))?;
            let more =
                directory.forget_answers(before(self.keep_answers_micros)).await.map_err(|error| later(&error))?;
            let rows = directory
                .forget_quarantined(before(self.keep_quarantine_micros))
                .await
                .map_err(|error| later(&error))?;
            jobs += piece;
            answers += more;
            quarantined += rows;
            if piece == 0 && more == 0 && rows == 0 {
                break;
            }
            stop_if_asked(errand)?;
        }
        let after: Option<TenantId> = errand.checkpoint::<String>().and_then(|text| text.parse().ok());
        let mut homes = errand.directory.open_tenants();
        homes.sort_by_key(Home::tenant);
        homes.retain(|home| after.is_none_or(|after| home.tenant() > after));
        let total = i64::try_from(homes.len()).ok();
        for (done, home) in (1_i64..).zip(&homes) {
            answers += forget_answers(home, before(self.keep_answers_micros)).await?;
            errand.progress(done, total, "tenants", Some(&json!(home.tenant().to_string())));
            stop_if_asked(errand)?;
        }
        Ok(json!({ "jobs": jobs, "answers": answers, "quarantined": quarantined, "tenants": homes.len() }))
    }
}

impl Work for Housekeeping {
    fn kind(&self) -> Kind {
        Kind::Housekeeping
    }

    fn run<'a>(&'a self, errand: &'a Errand) -> BoxFuture<'a, Result<Value, Failure>> {
        self.work(errand).boxed()
    }
}

/// All of one tenant's that is old enough. A tenant that is leaving is visited when it is open again.
async fn forget_answers(home: &Home, before: Timestamp) -> Result<u64, Failure> {
    let mut forgotten = 0;
    loop {
        match home.change(ForgetAnswers { before }, Request::system(), untold).await {
            Ok(Ok(Answer::Fresh(piece))) if piece > 0 => forgotten += piece,
            _ => return Ok(forgotten),
        }
    }
}

fn later(error: &impl std::fmt::Display) -> Failure {
    Failure::Retryable(error.to_string())
}

fn stop_if_asked(errand: &Errand) -> Result<(), Failure> {
    if errand.stop.is_cancelled() { Err(Failure::Stopped) } else { Ok(()) }
}
