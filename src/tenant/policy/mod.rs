//! Changes to a tenant's own roles and policies: judged by the books in memory, then written as rows, as new memory and as
//! a record. A record holds the whole definition: it is what was in force, and the chain is its history.

mod policies;
mod roles;
#[cfg(test)]
mod tests;

pub use policies::{CreatePolicy, DeletePolicy, ReplacePolicy};
pub use roles::{CreateRole, DeleteRole, ReplaceRole};

use std::sync::Arc;

use serde::Serialize;

use crate::domain::books::Posting;
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::policy::books::PolicyBooks;
use crate::domain::request::Request;

/// The roles and policies as the posting will leave them.
fn books(posting: &mut Posting) -> &mut PolicyBooks {
    Arc::make_mut(&mut posting.books.policies)
}

fn record(posting: &mut Posting, request: &Request, action: &str, target: String, definition: &impl Serialize) {
    posting.records_entry(Entry {
        actor: request.actor.clone(),
        action: action.into(),
        target,
        outcome: EntryOutcome::Success,
        request_id: request.request_id.clone(),
        payload: serde_json::to_string(definition).unwrap_or_default(),
    });
}
