//! Verifies every chain in its turn, the platform's and each tenant's with everything that it says was counted, so that what
//! was changed behind our back does not wait for somebody to ask.
//!
//! One at a time, and without opening tenants: those that rest go on resting.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::audit_verification::count;
use super::kinds::{Errand, Failure, Work};
use crate::directory::handle::Refused;
use crate::domain::ids::TenantId;
use crate::domain::job::Kind;
use crate::domain::report::ChainReport;
use crate::domain::tenant::Lifecycle;

/// Tenants of one page of the catalogue.
const PAGE: usize = 1_000;

pub(super) struct AuditSweep;

/// How far a sweep has come.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Swept {
    /// The tenant that was looked at last, by its id; none before the first.
    after: Option<String>,
    whole: i64,
    broken: i64,
    /// Chains that could not be read; the next sweep reads them.
    unread: i64,
}

impl Swept {
    /// One more chain: a tenant's, or the platform's.
    fn add(&mut self, tenant: Option<TenantId>, verified: Result<ChainReport, Refused>) {
        let tenant = tenant.map(|tenant| tenant.to_string());
        match verified {
            Ok(report) => match count(tenant.as_deref(), &report) {
                true => self.whole += 1,
                false => self.broken += 1,
            },
            Err(reason) => {
                metrics::counter!("platform_api_audit_verifications_total", "result" => "unread").increment(1);
                tracing::warn!(?tenant, %reason, "an audit chain could not be read to be verified");
                self.unread += 1;
            }
        }
        self.after = tenant;
    }

    fn done(&self) -> i64 {
        self.whole + self.broken + self.unread
    }
}

impl AuditSweep {
    async fn sweep(&self, errand: &Errand) -> Result<Value, Failure> {
        let directory = &errand.directory;
        let mut swept: Swept = errand.checkpoint().unwrap_or_default();
        if swept.done() == 0 {
            swept.add(None, directory.platform_audit_verify().await);
        }
        loop {
            let after = swept.after.as_ref().and_then(|text| text.parse().ok());
            let page = directory.tenants(after, PAGE);
            // One that is pending has no database yet.
            for tenant in page.items.iter().filter(|tenant| tenant.lifecycle != Lifecycle::Pending) {
                let verified = directory.audit_verify_unopened(tenant.id, &errand.stop).await;
                if errand.stop.is_cancelled() {
                    return Err(Failure::Stopped);
                }
                swept.add(Some(tenant.id), verified);
                // What is made of numbers and a text always serializes.
                let checkpoint = serde_json::to_value(&swept).unwrap_or_default();
                errand.progress(swept.done(), None, "chains", Some(&checkpoint));
            }
            match page.next {
                Some(next) => swept.after = Some(next.to_string()),
                None => break,
            }
        }
        let Swept { whole, broken, unread, .. } = swept;
        match broken {
            0 => Ok(json!({ "whole": whole, "unread": unread })),
            _ => Err(Failure::Hopeless(format!("broken chains: {broken}; whole: {whole}; not read: {unread}"))),
        }
    }
}

impl Work for AuditSweep {
    fn kind(&self) -> Kind {
        Kind::AuditSweep
    }

    fn run<'a>(&'a self, errand: &'a Errand) -> BoxFuture<'a, Result<Value, Failure>> {
        self.sweep(errand).boxed()
    }
}
