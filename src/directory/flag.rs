//! The platform's feature flags, and the counts of what was served on their way to the tenants.
//!
//! Counts are gathered in memory, and every [`FLUSH_EVERY`] each tenant's go through its writer in one change. What was
//! counted since the last time is lost with the process when it is killed; a drain brings it home first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::handle::{Handle, Parts, Refused};
use super::index::Index;
use super::task::{Change, Declined, Halt, untold};
use crate::domain::chain::Entry;
use crate::domain::flag::change::{Expected, NotMade, Refusal, Render};
use crate::domain::flag::ledger::Variant;
use crate::domain::flag::{Flag, FlagSet, FlagSource, change};
use crate::domain::ids::TenantId;
use crate::domain::request::{Answer, Request};
use crate::domain::time::Timestamp;
use crate::store::database::Connection;
use crate::store::{StoreError, flag, news};
use crate::tenant::flag::{CountExposures, deleted_record, put_record};

/// How often counts are brought to their tenants.
const FLUSH_EVERY: Duration = Duration::from_secs(10);
/// Pairs of tenant and variant that wait; further ones are counted in the metric alone.
const WAITING_MAX: usize = 100_000;

/// Counts on their way to their tenants.
#[derive(Debug, Default)]
pub(super) struct Exposures(Mutex<HashMap<TenantId, HashMap<Variant, i64>>>);

impl Exposures {
    fn count(&self, tenant: TenantId, variants: Vec<Variant>) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = waiting.values().map(HashMap::len).sum::<usize>() >= WAITING_MAX;
        let mut dropped = 0;
        let of_tenant = waiting.entry(tenant).or_default();
        for variant in variants {
            match of_tenant.get_mut(&variant) {
                Some(count) => *count += 1,
                None if full => dropped += 1,
                None => {
                    of_tenant.insert(variant, 1);
                }
            }
        }
        metrics::counter!("platform_api_flag_exposures_dropped_total").increment(dropped);
    }

    fn take(&self) -> HashMap<TenantId, HashMap<Variant, i64>> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Brings counts home for as long as there is a directory.
pub(super) fn keep_flushing(parts: Weak<Parts>) {
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(FLUSH_EVERY).await;
            let Some(parts) = parts.upgrade() else { return };
            Handle::of(parts).flush_exposures().await;
        }
    });
}

/// The platform's own store as a source of flags.
pub struct Stored(Arc<Index>);

impl FlagSource for Stored {
    fn name(&self) -> &'static str {
        "store"
    }

    fn flags(&self) -> Arc<FlagSet> {
        self.0.flags()
    }
}

impl Handle {
    /// The platform's flags as its own store has them.
    #[must_use]
    pub fn stored_flags(&self) -> Stored {
        Stored(self.parts().index.clone())
    }

    /// Counts variants that were served to a tenant.
    pub fn count_exposures(&self, tenant: TenantId, variants: Vec<Variant>) {
        self.parts().exposures.count(tenant, variants);
    }

    /// Brings the counts so far to their tenants. What a tenant does not take is counted no more: these are figures, and a
    /// tenant that cannot commit has other worries.
    pub(super) async fn flush_exposures(&self) {
        for (tenant, counts) in self.parts().exposures.take() {
            let mut counts: Vec<(Variant, i64)> = counts.into_iter().collect();
            counts.sort_unstable();
            let lost = u64::try_from(counts.iter().map(|(_, count)| *count).sum::<i64>()).unwrap_or_default();
            let counted = match self.find(tenant).await {
                Ok(home) => {
                    home.change(CountExposures(counts), Request::system(), untold).await.is_ok_and(|told| told.is_ok())
                }
                Err(_) => false,
            };
            if !counted {
                metrics::counter!("platform_api_flag_exposures_dropped_total").increment(lost);
                tracing::warn!(%tenant, lost, "what was served of feature flags could not be counted");
            }
        }
    }

    /// Writes a flag of the platform's.
    ///
    /// # Errors
    /// Why not, or that nothing is known of it.
    pub async fn put_flag(
        &self,
        flag: Flag,
        expected: Expected,
        request: Request,
        render: Render,
    ) -> Result<Answer<Flag>, NotMade> {
        let index = self.parts().index.clone();
        Ok(self.change(PutPlatformFlag { flag, expected, index }, request, render).await?)
    }

    /// Deletes a flag of the platform's.
    ///
    /// # Errors
    /// As [`put_flag`](Handle::put_flag).
    pub async fn delete_flag(
        &self,
        key: String,
        expected: Expected,
        request: Request,
        render: Render,
    ) -> Result<Answer<Flag>, NotMade> {
        let index = self.parts().index.clone();
        Ok(self.change(DeletePlatformFlag { key, expected, index }, request, render).await?)
    }

    /// What another service last said the flags are, and when.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn flag_document(&self, source: &str) -> Result<Option<(String, Timestamp)>, Refused> {
        let unavailable = |error: StoreError| Refused::Unavailable(error.to_string());
        let mut reader = self.parts().store.control_reader().await.map_err(unavailable)?;
        flag::document(&mut reader, source).await.map_err(unavailable)
    }

    /// Keeps what another service says.
    ///
    /// # Errors
    /// That it may not be kept.
    pub async fn keep_flag_document(&self, source: &'static str, body: String) -> Result<(), Refused> {
        let told = self.change(KeepDocument { source, body }, Request::system(), untold).await;
        told.map(drop).map_err(|declined| Refused::Unavailable(declined.to_string()))
    }
}

impl From<Declined<Refusal>> for NotMade {
    fn from(declined: Declined<Refusal>) -> NotMade {
        match declined {
            Declined::Refused(refusal) => NotMade::Refused(refusal),
            Declined::IdempotencyMismatch => NotMade::IdempotencyMismatch,
            Declined::Unavailable(reason) => NotMade::Unavailable(reason),
        }
    }
}

/// A flag of the platform's that is written.
#[derive(Debug)]
pub struct PutPlatformFlag {
    flag: Flag,
    expected: Expected,
    index: Arc<Index>,
}

impl Change for PutPlatformFlag {
    type Done = Flag;
    type Refused = Refusal;

    async fn apply(
        &self,
        connection: &mut Connection,
        entries: &mut Vec<Entry>,
        request: &Request,
        _: Timestamp,
    ) -> Result<Flag, Halt<Refusal>> {
        let written = change::put(&self.index.flags(), &self.flag, &self.expected).map_err(Halt::Refused)?;
        flag::put(connection, &written).await?;
        news::note(connection, news::Kind::Flag, &written.key).await?;
        entries.push(put_record(&written, request));
        Ok(written)
    }

    fn publish(&self, done: &Flag) {
        self.index.put_flags(self.index.flags().with(done.clone()));
    }
}

/// A flag of the platform's that is deleted.
#[derive(Debug)]
pub struct DeletePlatformFlag {
    key: String,
    expected: Expected,
    index: Arc<Index>,
}

impl Change for DeletePlatformFlag {
    type Done = Flag;
    type Refused = Refusal;

    async fn apply(
        &self,
        connection: &mut Connection,
        entries: &mut Vec<Entry>,
        request: &Request,
        _: Timestamp,
    ) -> Result<Flag, Halt<Refusal>> {
        let flag = change::delete(&self.index.flags(), &self.key, &self.expected).map_err(Halt::Refused)?;
        flag::delete(connection, &self.key).await?;
        news::note(connection, news::Kind::Flag, &self.key).await?;
        entries.push(deleted_record(&self.key, request));
        Ok(flag)
    }

    fn publish(&self, _: &Flag) {
        self.index.put_flags(self.index.flags().without(&self.key));
    }
}

/// What another service says, for the next start.
#[derive(Debug)]
pub struct KeepDocument {
    source: &'static str,
    body: String,
}

impl Change for KeepDocument {
    type Done = ();
    type Refused = std::convert::Infallible;

    async fn apply(
        &self,
        connection: &mut Connection,
        _: &mut Vec<Entry>,
        _: &Request,
        now: Timestamp,
    ) -> Result<(), Halt<Self::Refused>> {
        flag::put_document(connection, self.source, &self.body, now).await?;
        Ok(())
    }
}
