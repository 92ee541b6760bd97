//! Recomputes a whole chain in the background: a tenant's, with everything that it says was counted, or the platform's.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::kinds::{Errand, Failure, Work};
use crate::domain::job::Kind;
use crate::domain::report::ChainReport;

/// How long one verification may take: some hundred million records.
const LONGEST: Duration = Duration::from_secs(6 * 60 * 60);

pub(super) struct AuditVerification;

impl Work for AuditVerification {
    fn kind(&self) -> Kind {
        Kind::AuditVerification
    }

    fn run<'a>(&'a self, errand: &'a Errand) -> BoxFuture<'a, Result<Value, Failure>> {
        async move {
            let later = |reason: String| Failure::Retryable(reason);
            let report = match errand.job.draft.tenant {
                None => errand.directory.platform_audit_verify().await.map_err(|error| later(error.to_string()))?,
                Some(tenant) => {
                    let home = errand.directory.find(tenant).await.map_err(|absent| later(absent.to_string()))?;
                    let report = home.audit_verify(LONGEST).await.map_err(|error| later(error.to_string()))?;
                    report.map_err(|error| later(error.to_string()))?
                }
            };
            judge(errand, &report)
        }
        .boxed()
    }
}

/// A broken chain is a failed job.
fn judge(errand: &Errand, report: &ChainReport) -> Result<Value, Failure> {
    let tenant = errand.job.draft.tenant.map(|tenant| tenant.to_string());
    match count(tenant.as_deref(), report) {
        true => Ok(json!({ "records": report.head.seq })),
        false => Err(Failure::Hopeless(format!("the chain is broken after record {}", report.head.seq))),
    }
}

/// Is the chain whole? It is counted, and one that is broken is a line that on-call reads.
pub(super) fn count(tenant: Option<&str>, report: &ChainReport) -> bool {
    let result = if report.broken.is_none() { "whole" } else { "broken" };
    metrics::counter!("platform_api_audit_verifications_total", "result" => result).increment(1);
    if let Some(broken) = &report.broken {
        tracing::error!(?tenant, ?broken, "the audit chain is broken");
    }
    report.broken.is_none()
}
