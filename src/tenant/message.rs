//! The whole protocol of a tenant, on one page.
//!
//! Everything with an answer carries a reply port; nothing returns bare bool. `now` travels in the message: no actor
//! reads a clock. Answers come from committed books, never from the open batch.

use std::sync::Arc;

use ractor::RpcReplyPort;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::domain::adjustment::Adjustment;
use crate::domain::books::{Books, Cursor};
use crate::domain::chain::Entry;
use crate::domain::ids::FindingId;
use crate::domain::notice::{Attempt, Delivery, Firing};
use crate::domain::organization::Revoked;
use crate::domain::quota::{Decision, Quota, Standing};
use crate::domain::reconcile::finding::{Finding, Status};
use crate::domain::reconcile::pass::{Pass, Treatment};
use crate::domain::reconcile::reading::{GatewayRequest, Interruption, MeterReading};
use crate::domain::reconcile::report::{FindingPage, FindingQuery, Overview, WindowPage, WindowQuery};
use crate::domain::report::{
    AlertPage, AlertQuery, ChainQuery, ChainReport, LedgerQuery, LedgerRow, MessagePage, MessageQuery, Page,
    UsageQuery, UsageRow,
};
use crate::domain::request::{Answer, Request};
use crate::domain::time::Timestamp;
use crate::domain::usage::{Identity, Outcome, Refusal, UsageEvent};
use crate::store::StoreError;
use crate::store::audit::StoredRecord;

/// What the keeper hears. How quotas stand is not asked here: `handle` answers it from the books the keeper published.
#[derive(Debug)]
pub enum Message {
    Usage(Usage),
    Quota(QuotaMessage),
    Audit(Audit),
    Notice(Notice),
    Gateway(Gateway),
    Reconciliation(Reconciliation),
    Life(Life),
    /// A resource changes; see [`super::task`].
    Change(super::task::Task),
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
        /// The caller has given up.
        stop: CancellationToken,
        reply: RpcReplyPort<Result<ChainReport, ReadFailure>>,
    },
}

#[derive(Debug)]
pub enum Notice {
    Alerts {
        query: AlertQuery,
        reply: RpcReplyPort<Result<AlertPage, ReadFailure>>,
    },
    /// The outbox's history.
    Messages {
        query: MessageQuery,
        reply: RpcReplyPort<Result<MessagePage, ReadFailure>>,
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

/// What a gateway says about this tenant.
#[derive(Debug)]
pub enum Gateway {
    /// Keep these; answered after the commit, for each, in order, whether it is new.
    Requests { batch: GatewayBatch, reply: RpcReplyPort<Vec<bool>> },
    /// Read these meters; answered after the commit.
    Readings { readings: GatewayReadings, reply: RpcReplyPort<()> },
}

/// How the books compare with what gateways say.
#[derive(Debug)]
pub enum Reconciliation {
    /// Something may be due to be compared.
    Tick {
        now: Timestamp,
    },
    /// From the task that compared.
    Compared {
        result: Result<Pass, StoreError>,
        now: Timestamp,
    },
    Overview {
        now: Timestamp,
        reply: RpcReplyPort<Result<Overview, ReadFailure>>,
    },
    Findings {
        query: FindingQuery,
        reply: RpcReplyPort<Result<FindingPage, ReadFailure>>,
    },
    Finding {
        id: FindingId,
        reply: RpcReplyPort<Result<Option<Finding>, ReadFailure>>,
    },
    Windows {
        query: WindowQuery,
        reply: RpcReplyPort<Result<WindowPage, ReadFailure>>,
    },
    Treat {
        change: Box<TreatFinding>,
        reply: RpcReplyPort<Result<Answer<Finding>, ChangeRefused>>,
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
    /// A period boundary may have passed, or come back with a clock that was set back.
    Roll {
        now: Timestamp,
    },
    /// Leave if nothing is waiting and nothing is owed.
    Rest {
        now: Timestamp,
        idle_micros: i64,
    },
    /// Leave if nothing is waiting, for others need the place. What is owed is owed on.
    MakeRoom {
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

/// Requests of a gateway with the permits that admitted them; the permits drop after the commit.
#[derive(Debug)]
pub struct GatewayBatch {
    pub requests: Vec<GatewayRequest>,
    pub request_id: String,
    pub now: Timestamp,
    pub permits: Permits,
}

/// What a gateway's meters show, and when they could not be seen.
#[derive(Debug)]
pub struct GatewayReadings {
    pub readings: Vec<MeterReading>,
    pub interruptions: Vec<Interruption>,
    pub now: Timestamp,
    pub permits: Permits,
}

/// Room that a batch takes up in the tenant, in events (or requests, or readings) and in KiB.
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

/// What a person does with a finding.
#[derive(Debug, Clone)]
pub struct TreatFinding {
    pub finding: FindingId,
    pub treatment: Treatment,
    /// In that person's words.
    pub reason: String,
    /// An adjusting entry that settles it.
    pub adjustment: Option<Adjustment>,
    pub request: Request,
    pub now: Timestamp,
    /// Renders the answer that is stored with an idempotency key, in the transaction of the change.
    pub render: fn(&Finding) -> String,
}

/// A decision, and the epoch that makes its version unique across restarts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    pub decision: Decision,
    /// The user or the group was deactivated: to be denied, whatever the quotas say.
    pub revoked: Option<Revoked>,
    /// The tenant's policy has the model, or none was named: otherwise to be denied as well.
    pub model_is_allowed: bool,
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
    #[error("there is no such finding")]
    UnknownFinding,
    /// Somebody has dealt with the finding, or it has resolved itself.
    #[error("the finding is {} already", status.name())]
    FindingClosed { status: Status },
    /// The adjusting entry cannot be counted.
    #[error("the adjusting entry cannot be counted: {}", .0.code())]
    AdjustmentRefused(Refusal),
    /// A sum would fall below zero by the adjusting entry.
    #[error("a sum would fall below zero")]
    BelowZero,
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
