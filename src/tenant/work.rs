//! What travels from the keeper to the writer and back.

use std::sync::Arc;

use ractor::RpcReplyPort;

use super::message::{Batch, ChangeRefused, GatewayBatch, GatewayReadings, ReplaceQuotas, TreatFinding};
use super::task::Task;
use crate::domain::books::Books;
use crate::domain::chain::Entry;
use crate::domain::notice::Attempt;
use crate::domain::quota::Standing;
use crate::domain::reconcile::finding::Finding;
use crate::domain::reconcile::pass::Pass;
use crate::domain::request::Answer;
use crate::domain::time::Timestamp;
use crate::domain::usage::Outcome;

/// One piece of queued work, with whom to answer.
#[derive(Debug)]
pub enum Work {
    Record {
        batch: Batch,
        reply: RpcReplyPort<Vec<Outcome>>,
    },
    Replace {
        change: ReplaceQuotas,
        reply: RpcReplyPort<Result<Answer<Vec<Standing>>, ChangeRefused>>,
    },
    ChangeTimeZone {
        name: String,
        entry: Entry,
        once: String,
        now: Timestamp,
        reply: RpcReplyPort<Result<(), ChangeRefused>>,
    },
    Append {
        entry: Entry,
        once: Option<String>,
        now: Timestamp,
        reply: RpcReplyPort<()>,
    },
    Settle {
        attempts: Vec<Attempt>,
        now: Timestamp,
        reply: RpcReplyPort<()>,
    },
    GatewayRequests {
        batch: GatewayBatch,
        reply: RpcReplyPort<Vec<bool>>,
    },
    GatewayReadings {
        readings: GatewayReadings,
        reply: RpcReplyPort<()>,
    },
    Reconcile {
        pass: Pass,
        now: Timestamp,
    },
    Treat {
        change: Box<TreatFinding>,
        reply: RpcReplyPort<Result<Answer<Finding>, ChangeRefused>>,
    },
    /// What a resource brings whole.
    Task(Task),
    Roll {
        now: Timestamp,
    },
}

impl Work {
    /// When the work was asked for.
    pub fn now(&self) -> Timestamp {
        match self {
            Work::Record { batch, .. } => batch.now,
            Work::Replace { change, .. } => change.now,
            Work::GatewayRequests { batch, .. } => batch.now,
            Work::GatewayReadings { readings, .. } => readings.now,
            Work::Treat { change, .. } => change.now,
            Work::Task(task) => task.now(),
            Work::ChangeTimeZone { now, .. }
            | Work::Append { now, .. }
            | Work::Settle { now, .. }
            | Work::Reconcile { now, .. }
            | Work::Roll { now } => *now,
        }
    }

    /// Must it be a unit of its own? An adjusting entry stands in the ledger before anything else of its unit is counted.
    pub fn is_alone(&self) -> bool {
        matches!(self, Work::Treat { .. })
    }

    /// Is it a pass of the reconciliation?
    pub fn is_pass(&self) -> bool {
        matches!(self, Work::Reconcile { .. })
    }

    /// Usage events it brings, or requests of a gateway.
    pub fn events(&self) -> usize {
        match self {
            Work::Record { batch, .. } => batch.events.len(),
            Work::GatewayRequests { batch, .. } => batch.requests.len(),
            _ => 0,
        }
    }
}

/// One transaction's worth of work, and the books it applies to.
#[derive(Debug)]
pub struct Unit {
    pub books: Arc<Books>,
    pub work: Vec<Work>,
}

/// How a unit ended: committed, and what to tell whom. Everybody is told after the keeper has adopted the books.
#[derive(Debug)]
pub struct Written {
    /// The books after the commit; the same as before when there was nothing to write or it was rolled back.
    pub books: Arc<Books>,
    pub answers: Vec<Reply>,
    /// Outbox rows that came minus those that were settled.
    pub owed_more: i64,
    pub committed: bool,
    /// A pass of the reconciliation was among it, whatever became of it.
    pub settled: bool,
    /// Why it was rolled back, again and again until it was given up.
    pub rolled_back: Option<String>,
}

/// An answer that waits for the adoption. Dropping one tells its caller to come back.
#[derive(Debug)]
pub enum Reply {
    Record {
        batch: Batch,
        reply: RpcReplyPort<Vec<Outcome>>,
        outcomes: Vec<Outcome>,
    },
    Replace {
        reply: RpcReplyPort<Result<Answer<Vec<Standing>>, ChangeRefused>>,
        answer: Result<Answer<Vec<Standing>>, ChangeRefused>,
    },
    ChangeTimeZone {
        reply: RpcReplyPort<Result<(), ChangeRefused>>,
        answer: Result<(), ChangeRefused>,
    },
    Requests {
        batch: GatewayBatch,
        reply: RpcReplyPort<Vec<bool>>,
        new: Vec<bool>,
    },
    Readings {
        readings: GatewayReadings,
        reply: RpcReplyPort<()>,
    },
    Treated {
        reply: RpcReplyPort<Result<Answer<Finding>, ChangeRefused>>,
        answer: Result<Answer<Finding>, ChangeRefused>,
    },
    Task(Task),
    Done {
        reply: RpcReplyPort<()>,
    },
}

impl Reply {
    /// Sends the answer. A caller that is gone has given up, and its work is done all the same.
    pub fn send(self) {
        match self {
            Reply::Record { batch, reply, outcomes } => {
                // The permits go first: whoever is answered finds the room that the answer made.
                drop(batch);
                let _ = reply.send(outcomes);
            }
            Reply::Replace { reply, answer } => {
                let _ = reply.send(answer);
            }
            Reply::ChangeTimeZone { reply, answer } => {
                let _ = reply.send(answer);
            }
            Reply::Requests { batch, reply, new } => {
                drop(batch);
                let _ = reply.send(new);
            }
            Reply::Readings { readings, reply } => {
                drop(readings);
                let _ = reply.send(());
            }
            Reply::Treated { reply, answer } => {
                let _ = reply.send(answer);
            }
            Reply::Task(task) => task.answer(),
            Reply::Done { reply } => {
                let _ = reply.send(());
            }
        }
    }
}
