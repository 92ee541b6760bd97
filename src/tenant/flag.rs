//! Changes to a tenant's feature flags, and the counts of what was served.

use std::sync::Arc;

use super::handle::{Handle, Unavailable};
use super::task::{Change, Declined, Halt};
use crate::domain::books::Posting;
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::flag::change::{Expected, NotMade, Refusal, Render};
use crate::domain::flag::ledger::{FlagBooks, Variant};
use crate::domain::flag::{Flag, FlagSet, change};
use crate::domain::request::{Answer, Request};
use crate::store::database::Connection;
use crate::store::flag;

impl Handle {
    /// Writes a flag of the tenant's. `platform` are the platform's flags: some of their keys are not the tenant's to use.
    ///
    /// # Errors
    /// [`Unavailable`], and inside it [`NotMade`].
    pub async fn put_flag(
        &self,
        flag: Flag,
        expected: Expected,
        platform: Arc<FlagSet>,
        request: Request,
        render: Render,
    ) -> Result<Result<Answer<Flag>, NotMade>, Unavailable> {
        let told = self.change(PutFlag { flag, expected, platform }, request, render).await?;
        Ok(told.map_err(NotMade::from))
    }

    /// Deletes a flag of the tenant's, and what was counted of it.
    ///
    /// # Errors
    /// [`Unavailable`], and inside it [`NotMade`].
    pub async fn delete_flag(
        &self,
        key: String,
        expected: Expected,
        request: Request,
        render: Render,
    ) -> Result<Result<Answer<Flag>, NotMade>, Unavailable> {
        let told = self.change(DeleteFlag { key, expected }, request, render).await?;
        Ok(told.map_err(NotMade::from))
    }
}

impl From<Declined<Refusal>> for NotMade {
    fn from(declined: Declined<Refusal>) -> NotMade {
        match declined {
            Declined::Refused(refusal) => NotMade::Refused(refusal),
            Declined::IdempotencyMismatch => NotMade::IdempotencyMismatch,
            Declined::RolledBack => NotMade::Unavailable("the change was rolled back".into()),
        }
    }
}

/// Writes a flag, new or over the one that has its key.
#[derive(Debug)]
pub struct PutFlag {
    pub flag: Flag,
    pub expected: Expected,
    /// The platform's flags: some of their keys are not the tenant's to use.
    pub platform: Arc<FlagSet>,
}

impl Change for PutFlag {
    type Done = Flag;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Flag, Halt<Refusal>> {
        if self.platform.get(&self.flag.key).is_some_and(|flag| !flag.overridable) {
            return Err(Halt::Refused(Refusal::NotOverridable));
        }
        let books = posting.books.flags.clone();
        let written = change::put(&books.flags, &self.flag, &self.expected).map_err(Halt::Refused)?;
        flag::put(database, &written).await?;
        let flags = books.flags.with(written.clone());
        posting.books.flags = Arc::new(FlagBooks { flags, exposures: books.exposures.clone() });
        posting.records_entry(put_record(&written, request));
        Ok(written)
    }
}

/// Deletes a flag, and what was counted of it.
#[derive(Debug)]
pub struct DeleteFlag {
    pub key: String,
    pub expected: Expected,
}

impl Change for DeleteFlag {
    type Done = Flag;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Flag, Halt<Refusal>> {
        let books = posting.books.flags.clone();
        let flag = change::delete(&books.flags, &self.key, &self.expected).map_err(Halt::Refused)?;
        flag::delete(database, &self.key).await?;
        flag::delete_exposures(database, &self.key).await?;
        let mut exposures = books.exposures.clone();
        exposures.retain(|variant, _| variant.flag != self.key);
        posting.books.flags = Arc::new(FlagBooks { flags: books.flags.without(&self.key), exposures });
        posting.records_entry(deleted_record(&self.key, request));
        Ok(flag)
    }
}

/// Adds to the counts of what was served. No record of the chain stands for it: these are figures about the tenant's own
/// experiments, not what anybody did.
#[derive(Debug)]
pub struct CountExposures(pub Vec<(Variant, i64)>);

impl Change for CountExposures {
    type Done = ();
    type Refused = std::convert::Infallible;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        _: &Request,
    ) -> Result<(), Halt<Self::Refused>> {
        let mut books = FlagBooks::clone(&posting.books.flags);
        let changed = books.count(&self.0, posting.now());
        flag::put_exposures(database, &changed).await?;
        posting.has_other_rows |= !changed.is_empty();
        posting.books.flags = Arc::new(books);
        Ok(())
    }
}

/// What the chain says of a flag that was written.
#[must_use]
pub fn put_record(flag: &Flag, request: &Request) -> Entry {
    let action = if flag.version == 1 { "flag.created" } else { "flag.replaced" };
    entry(action, &flag.key, serde_json::to_string(flag).unwrap_or_default(), request)
}

/// What the chain says of a flag that was deleted.
#[must_use]
pub fn deleted_record(key: &str, request: &Request) -> Entry {
    entry("flag.deleted", key, "{}".into(), request)
}

fn entry(action: &str, key: &str, payload: String, request: &Request) -> Entry {
    Entry {
        actor: request.actor.clone(),
        action: action.into(),
        target: format!("flag:{key}"),
        outcome: EntryOutcome::Success,
        request_id: request.request_id.clone(),
        payload,
    }
}
