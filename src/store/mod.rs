//! SQL, and nothing but SQL.
//!
//! Two kinds of database: the control database (catalogue, keys, background work, quarantine, the platform's chain) and
//! one database per tenant (ledger, rollups, counters, quotas, alerts, outbox, chain). One body of portable SQL serves
//! Postgres and SQLite through [`database::Connection`], a thin enum over the two native drivers; only the bulk insert
//! differs. Values, ids, hashes and instants are computed by the caller: nothing here decides, and nothing in a schema
//! has a default, a sequence or a clock.
//!
//! - [`database`]: where the databases are: open, create, lend a reader. `connection` runs statements, `copy`
//!   fills a table the fast way, `migration` brings a schema up to date, `failure` sorts what the drivers report into [`StoreError`].
//! - [`load`]: a tenant's books, read by a new owner. [`posting`]: the hot transaction. [`quota`]: a counter that is
//!   not in memory.
//! - [`organization`]: who the tenant's people are. [`policy`]: its own roles and policies. [`platform_admin`]: who administers the platform.
//! - [`flag`]: feature flags, the same table in the control database and in each tenant's.
//! - [`provider`]: LLM providers, their sealed secrets, wrapped data keys.
//! - [`gateway`]: what gateways say. [`reconciliation`]: how it compares.
//! - [`usage`], [`audit`], [`notice`]: questions about the past. [`request`]: answers kept for idempotency keys.
//! - [`catalogue`], [`api_key`], [`quarantine`], [`stream`], [`job`], [`session`], [`node`]: the control
//!   database.

pub mod api_key;
pub mod audit;
pub mod catalogue;
mod connection;
mod copy;
pub mod database;
mod failure;
pub mod flag;
pub mod gateway;
pub mod job;
pub mod load;
mod migration;
pub mod news;
pub mod node;
pub mod notice;
pub mod organization;
mod place;
pub mod platform_admin;
pub mod policy;
pub mod posting;
pub mod provider;
pub mod quarantine;
pub mod quota;
pub mod reconciliation;
pub mod request;
pub mod session;
pub mod stream;
#[cfg(test)]
pub(crate) mod tests;
pub mod usage;

/// Why the store could not do what was asked, by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Rolled back for sure: the same work may be tried again.
    #[error("rolled back, try again: {0}")]
    Retryable(String),
    /// The outcome of a commit is unknown.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// The database is not there.
    #[error("the database is missing: {0}")]
    Missing(String),
    /// It is not the database it should be: swapped, behind, corrupt, or from a newer program.
    #[error("the database cannot be trusted: {0}")]
    Untrusted(String),
    /// Another owner has taken over.
    #[error("another owner has taken over")]
    Fenced,
    /// An event that was taken for new is known: rolled back for sure, and to be tried again without that guess.
    #[error("an event that was taken for new is known")]
    Known,
    /// What was to be written cannot be, and only that: a value that no column takes, or one that contradicts what is
    /// there. Rolled back for sure; everything else can be written without it.
    #[error("it cannot be written: {0}")]
    Unwritable(String),
    /// The statement fails whatever it is given: a missing right, a wrong schema, a bug, of ours or of the server's. Only a
    /// person mends it.
    #[error("the statement is wrong: {0}")]
    Wrong(String),
}
