//! Changes to a tenant's providers, their secrets, its data keys and its policy: judged by the books in memory, then written
//! as rows, as new memory and as a record.
//!
//! Secrets arrive sealed and leave sealed: nothing here could read one. Records name ids, versions and fingerprints.

mod keys;
mod providers;
mod secrets;
#[cfg(test)]
mod tests;

pub use keys::{AddDataKey, DestroyKeys, Reseal, RetireDataKeys, RewrapDataKey};
pub use providers::{CreateProvider, DeleteProvider, NoteTest, ReplacePolicy, ReplaceProvider};
pub use secrets::{DeleteSecret, GrantLease, NoteHandOver, PutSecret};

use std::sync::Arc;

use serde_json::Value;

use super::handle::{Handle, Unavailable};
use crate::domain::books::Posting;
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::provider::ProviderBooks;
use crate::domain::request::Request;

impl Handle {
    /// The tenant's providers, as of the last commit. Waits for nobody.
    ///
    /// # Errors
    /// [`Unavailable::ComeBack`].
    pub fn providers(&self) -> Result<Arc<ProviderBooks>, Unavailable> {
        Ok(self.books_in_use()?.providers.clone())
    }
}

/// The providers as the posting will leave them.
fn providers(posting: &mut Posting) -> &mut ProviderBooks {
    Arc::make_mut(&mut posting.books.providers)
}

fn record(posting: &mut Posting, request: &Request, action: &str, target: String, payload: Value) {
    posting.records_entry(Entry {
        actor: request.actor.clone(),
        action: action.into(),
        target,
        outcome: EntryOutcome::Success,
        request_id: request.request_id.clone(),
        payload: payload.to_string(),
    });
}
