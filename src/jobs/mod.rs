//! Background work: the one runner, and the kinds of work there are.
//!
//! What is durable about a job (its state, its lease, its tries) is the [directory](crate::directory::jobs)'s and judged by
//! [`domain::job`](crate::domain::job); this room runs it. [`runner`]: looks for due jobs, holds as many as it has hands for,
//! keeps their leases alive, and settles them. [`kinds`]: what can be done. Work goes on from its last checkpoint when a
//! daemon was killed in the middle; so each kind bears being begun again.
//!
//! A new kind of background work is a file here and a line in [`kinds::all`]; there is no second mechanism. One kind stands
//! in the directory, [`workflow`](crate::directory::workflow): what a change to the catalogue has left to do is written with the
//! change, as a job whose first try begins at once; the runner goes on with those that need another.

mod audit_sweep;
mod audit_verification;
mod data_keys;
#[cfg(test)]
mod data_keys_test;
mod housekeeping;
pub mod kinds;
mod litellm_sync;
#[cfg(test)]
mod litellm_sync_test;
pub mod runner;
#[cfg(test)]
mod tests;
