//! Kong as the second book: what it says of the requests it passed on, for the reconciliation to hold against the ledger.
//!
//! Three sources, each of them optional, each with an entry in the health report that says which proof it makes available
//! and which setting of Kong is missing for it:
//!
//! - [`log_receiver`]: its access log, posted by http-log; [`access_log`] reads it. One record per request: proof by id.
//! - [`scraper`]: its own counts, from each node's `/metrics`; [`exposition`] reads them. Proof by sums.
//! - [`counters`]: its rate limiter's counters in Redis; [`limiter_key`] reads their names, [`limiter_watch`] tells meters from
//!   what dies too soon. Proof that nothing went past it.
//!
//! [`presence`] knows when nobody was there to take the log. The last two are tasks of their own, which hand what they read to the tenants through [`readings`]; nobody waits for them.
//! The readers are pure. Nothing of a request but what [`access_log`] names is ever kept.

pub mod access_log;
pub mod counters;
pub mod exposition;
pub mod health;
pub mod limiter_key;
mod limiter_watch;
pub mod log_receiver;
pub mod presence;
pub mod readings;
mod rounds;
pub mod scraper;
