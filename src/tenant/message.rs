//! The whole protocol of a tenant, on one page.
//!
//! Everything with an answer carries a reply port; nothing returns bare bool. `now` travels in the message: no actor
//! reads a clock. Answers come from committed books, never from the open batch.

use std::sync::Arc;

use ractor::RpcReplyPort;
use tokio::sync::OwnedSemaphorePermit;

use crate::domain::books::{Books, Cursor};
use crate::domain::chain::Entry;
use crate::domain::notice::{Attempt, Delivery, Firing};
use crate::domain::quota::{Decision, Quota, Standing};
use crate::domain::report::{
    AlertPage, AlertQuery, ChainQuery, ChainReport, LedgerQuery, LedgerRow, Page, UsageQuery, UsageRow,
};
use crate::domain::request::{Answer, Request};
use crate::domain::time::Timestamp;
use crate::domain::usage::{Identity, Outcome, UsageEvent};
use crate::store::StoreError;
use crate::store::audit::StoredRecord;

/// What the keeper hears. How quotas stand is not asked here: `handle` answers it from the books the keeper published.
#[derive(Debug)]
pub enum Message {
    Usage(Usage),
    Quota(QuotaMessage),
    Audit(Audit),
    Notice(Notice),
    Life(Life),
    /// From the writer: how the unit of work ended.
    Written(super::work::Written),
}

#[derive(Debug)]
pub enum Usage {
    /// Count these; answered after the commit, one outcome per event, in order.
    Record {
        batch: Batch,
        reply: RpcReplyPort<Vec<Outcome>>,
    },
    Report {
        query: UsageQuery,
        reply: RpcReplyPort<Result<Vec<UsageRow>, ReadFailure>>,
    },
    Page {
        query: LedgerQuery,
        reply: RpcReplyPort<Result<Page<LedgerRow>, ReadFailure>>,
    },
}

#[derive(Debug)]
pub enum QuotaMessage {
    Replace { change: ReplaceQuotas, reply: RpcReplyPort<Result<Answer<Vec<Standing>>, ChangeRefused>> },
}

#[derive(Debug)]
pub enum Audit {
    /// Append a record that stands for itself. With a `once` key, at most one record is ever made for that key.
    Append {
        entry: Entry,
        once: Option<String>,
        now: Timestamp,
        reply: RpcReplyPort<()>,
    },
    Page {
        query: ChainQuery,
        reply: RpcReplyPort<Result<Page<StoredRecord>, ReadFailure>>,
    },
    Verify {
        reply: RpcReplyPort<Result<ChainReport, ReadFailure>>,
    },
}

#[derive(Debug)]
pub enum Notice {
    Alerts {
        query: AlertQuery,
        reply: RpcReplyPort<Result<AlertPage, ReadFailure>>,
    },
    /// Deliveries that are due at `now`, oldest first.
    Due {
        now: Timestamp,
        limit: usize,
        reply: RpcReplyPort<Result<Vec<Delivery>, ReadFailure>>,
    },
    /// Alerts that fire now, and who was told, for channels that forget.
    Firing {
        reply: RpcReplyPort<Vec<Firing>>,
    },
    Settle {
        attempts: Vec<Attempt>,
        now: Timestamp,
        reply: RpcReplyPort<()>,
    },
}

#[derive(Debug)]
pub enum Life {
    Describe {
        now: Timestamp,
        reply: RpcReplyPort<Description>,
    },
    /// The tenant's calendar has changed in the catalogue. With its record, once.
    ChangeTimeZone {
        name: String,
        entry: Entry,
        once: String,
        now: Timestamp,
        reply: RpcReplyPort<Result<(), ChangeRefused>>,
    },
    /// A period boundary may have passed.
    Roll {
        now: Timestamp,
    },
    /// Leave if nothing is waiting and nothing is owed.
    Rest {
        now: Timestamp,
        idle_micros: i64,
    },
    /// Commit what is waiting, then leave. No new work is taken.
    Drain {
        reply: RpcReplyPort<()>,
    },
}

/// Usage events with the permits that admitted them; the permits drop after the commit.
#[derive(Debug)]
pub struct Batch {
    pub events: Vec<UsageEvent>,
    /// Of each of the events, made by the caller's task, so that the writer need not.
    pub identities: Vec<Identity>,
    pub cursor: Option<Cursor>,
    pub request_id: String,
    pub now: Timestamp,
    pub permits: Permits,
    /// Where the batch comes from, for traces: the commit is a part of it.
    pub span: tracing::Span,
}

/// Room that a batch takes up in the tenant, in events and in KiB.
#[derive(Debug)]
pub struct Permits {
    pub _events: OwnedSemaphorePermit,
    pub _kibibytes: OwnedSemaphorePermit,
}

/// A new set of quotas. The ids of known quotas stay; the door has validated everything but ids.
#[derive(Debug, Clone)]
pub struct ReplaceQuotas {
    pub quotas: Vec<QuotaDraft>,
    pub request: Request,
    pub now: Timestamp,
    /// Renders the answer that is stored with an idempotency key, in the transaction of the change.
    pub render: fn(&[Standing]) -> String,
}

/// A quota as asked for: without an id it keeps the id of the quota with the same scope, metric and period, if any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaDraft {
    /// `quota.id` is a fresh id the door made, used when `named` is false and no quota matches.
    pub quota: Quota,
    /// The caller named the id, so it must exist.
    pub named: bool,
}

/// A decision, and the epoch that makes its version unique across restarts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    pub decision: Decision,
    pub epoch: i64,
}

/// What on-call wants to know of an open tenant.
#[derive(Debug, Clone)]
pub struct Description {
    pub books: Arc<Books>,
    pub waiting_events: usize,
    pub committing: bool,
    pub oldest_waiting_micros: i64,
}

/// Why a change was not made. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    /// The quota at this index names an id the tenant does not have.
    #[error("the tenant has no quota with this id")]
    UnknownQuota { index: usize },
    /// Two quotas count the same scope, metric and period.
    #[error("two quotas have the same scope, metric and period")]
    SameQuotaTwice { index: usize },
    /// The idempotency key was used with another body.
    #[error("the idempotency key was used with another body")]
    IdempotencyMismatch,
    #[error("not an IANA time zone")]
    UnknownTimeZone,
    /// The transaction was rolled back, surely; the same request may be tried again.
    #[error("the change was rolled back")]
    RolledBack,
}

/// Why a slow read gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadFailure {
    #[error(transparent)]
    TooManyRows(#[from] crate::domain::report::TooManyRows),
    #[error("the read failed: {0}")]
    Store(#[from] StoreError),
}
