//! What is decided, and nothing else.
//!
//! Everything here is a pure function of its arguments: no async, no IO, no clock, no randomness, no logging.
//! `now` and new ids are arguments. The same inputs give the same answer on every machine, which is what lets
//! property tests, the crash tests' oracle and a recount of the ledger share this code with the running daemon.
//!
//! - [`ids`], [`time`], [`amount`]: the small words. Parsed once at a door, trusted afterwards.
//! - [`usage`]: one usage event, its identity, and sums of events.
//! - [`period`]: calendar windows in a tenant's time zone; they tile time.
//! - [`quota`]: limits, standings and decisions.
//! - [`organization`]: a tenant's users and groups, who is in which, and who has which role.
//! - [`notice`]: what deserves an alert, once.
//! - [`chain`]: the audit chain: canonical bytes, link, verify.
//! - [`ledger_proof`], [`rollup_proof`]: whether the ledger holds what the chain says was counted, and the rollups its sums.
//! - [`books`]: a tenant's [`books::Books`], and the [`books::Posting`] that moves them from one commit to the next.
//! - [`burn`]: how fast a budget burns.
//! - `grouping`: how a batch is taken apart before it is counted.
//! - [`session`]: a browser's session, and what its secrets are worth.
//! - [`sorting`]: one unit's events: refused, offered to the ledger, or a repetition.
//! - [`adjustment`]: entries that a person makes.
//! - [`job`]: background work that survives its worker. [`backoff`]: how long to wait between tries.
//! - [`request`]: who asks for a change, and how often the same change may be asked for.
//! - [`rate_limit`]: how often is too often: token buckets.
//! - [`reconcile`]: the ledger against what a gateway says: readings, windows, verdicts, findings.
//! - [`report`]: questions about the past, and their answers.
//! - [`flag`]: feature flags: what each says to whom.
//! - [`comparison`]: values of attributes, as conditions of flags and policies compare them.
//! - [`stream`]: where the usage stream has been read to, and whether it is still the same.
//! - [`permission`]: what may be done to what, as patterns.
//! - [`policy`]: roles and policies of a tenant's own, and which of them apply to a question.
//! - [`provider`]: a tenant's LLM providers, and where it may go with them. [`secret`]: what binds a ciphertext to its row.
//! - [`platform_admin`]: people who administer the platform.
//! - [`tenant`]: what the catalogue knows of a tenant, and its lifecycle. [`api_key`]: a tenant's keys.

pub mod adjustment;
pub mod amount;
pub mod api_key;
pub mod aws_credentials;
pub mod backoff;
pub mod books;
#[cfg(test)]
mod books_tests;
pub mod burn;
#[cfg(test)]
mod burn_tests;
pub mod chain;
pub mod comparison;
pub mod flag;
mod grouping;
pub mod ids;
pub mod job;
pub mod ledger_proof;
pub mod notice;
pub mod organization;
pub mod period;
pub mod permission;
pub mod platform_admin;
pub mod policy;
#[cfg(test)]
mod posting_tests;
#[cfg(test)]
mod properties_tests;
pub mod provider;
pub mod quota;
pub mod rate_limit;
pub mod reconcile;
pub mod report;
pub mod request;
pub mod rollup_proof;
pub mod routing;
pub mod secret;
pub mod session;
pub mod sorting;
pub mod stream;
pub mod sync;
pub mod tenant;
pub mod time;
pub mod usage;
