//! One tenant, two actors.
//!
//! The **keeper** holds the tenant's committed [`Books`](crate::domain::books::Books), publishes each version, and never
//! awaits IO: a gateway asks in its request path while usage arrives at full rate, and must not wait behind a commit.
//! Standings and decisions are judged by the published books in the caller's own task (measured, the mailbox cost a
//! tenth of a request); everything else is a message. The **writer** owns the single write connection. It takes one unit of work at a time (an open batch
//! of usage events and queued changes, with the books they apply to), runs one transaction, and hands back the books as
//! they are now. Only then does the keeper adopt them, and only then are callers answered. While a commit is in flight
//! the next unit gathers: group commit without timers, small when idle, large under load.
//!
//! A domain refusal is a reply; a definite rollback is tried again; a commit whose outcome is unknown ends the pair,
//! and the [directory](crate::directory) opens it again from the database. Callers then see "come back soon", never a
//! false answer.
//!
//! - [`message`]: the whole protocol, on one page.
//! - [`handle`]: the typed doorbell, with the permits that bound what may wait.
//! - [`keeper`], [`writer`]: the two actors. [`queue`]: what waits between them. [`work`]: what travels from one to the
//!   other and back. [`ledger`]: what the writer asks of the database, which the simulator answers in its stead.
//! - [`guess`]: whether events are taken for new before the ledger is asked.
//! - [`task`]: a change that a resource brings whole. [`organization`]: those to the tenant's people. [`policy`]: those to
//!   its own roles and policies; [`grant`]: whether whoever asks has what they hand out. [`flag`]: feature flags. [`provider`]: LLM providers and their sealed secrets.
//! - [`housekeeping`]: what need not be kept for ever.
//! - [`change`], [`gateway`]: how each queued change, and what a gateway says, becomes part of a posting. [`read`]: slow reads, in tasks of their own.
//! - [`reconcile`]: the books against a gateway's. [`drift`]: the alerts that come of it.
//! - [`pulse`]: what the directory may see without asking.

pub mod acknowledge;
mod change;
#[cfg(test)]
mod change_test;
mod drift;
pub mod flag;
mod gateway;
pub mod grant;
pub mod guess;
pub mod handle;
pub mod housekeeping;
pub(crate) mod keeper;
pub mod ledger;
pub mod message;
pub mod organization;
pub mod policy;
pub mod provider;
pub mod pulse;
pub mod queue;
#[cfg(test)]
mod queue_test;
mod read;
mod reconcile;
#[cfg(test)]
mod reconcile_test;
mod record;
#[cfg(test)]
mod retry_test;
#[cfg(test)]
mod seen_test;
pub mod task;
#[cfg(test)]
mod task_test;
pub mod work;
pub mod writer;
#[cfg(test)]
mod writer_test;
