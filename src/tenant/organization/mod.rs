//! Changes to a tenant's people: judged by the books in memory, then written as rows, as new memory and as a record.
//!
//! Records name ids and fields, never values: who somebody is stands in the tables alone, where it can be erased.

mod groups;
mod roles;
mod shape;
#[cfg(test)]
mod tests;
mod users;

pub use groups::{AddMembers, CreateGroup, DeleteGroup, EditGroup, GroupEdit, RemoveMember};
pub use roles::{AssignRole, UnassignRole};
pub use shape::ShapeGroup;
pub use users::{CreateUser, DeleteUser, EditUser, UserEdit};

use std::sync::Arc;

use serde_json::Value;

use crate::domain::books::Posting;
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::organization::Organization;
use crate::domain::request::Request;

/// The organization as the posting will leave it.
fn organization(posting: &mut Posting) -> &mut Organization {
    Arc::make_mut(&mut posting.books.organization)
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

/// The word for a change of these fields: going and coming back are worth a word of their own.
fn action_of(changed: &[&str], active: bool, kind: &'static str) -> String {
    let word = match (changed.contains(&"active"), active) {
        (true, false) => "deactivated",
        (true, true) => "reactivated",
        (false, _) => "changed",
    };
    format!("{kind}.{word}")
}
