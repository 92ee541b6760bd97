//! Calls to tenants, and what is kept in quarantine instead: each in a task of its own.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lanes::Call;
use super::part::{Part, Settled, divide};
use super::reading::Reader;
use crate::domain::books::Cursor;
use crate::domain::ids::TenantId;
use crate::domain::report::Quarantined;
use crate::domain::usage::{Outcome, Refusal};
use crate::intake::quarantine;
use crate::intake::record::{Cause, Counted, NotNow, Rejection};
use crate::intake::tally::Tally;
use crate::tenant::handle::Origin;

/// How long to wait before the quarantine is written again after it could not be.
const KEEP_AGAIN: Duration = Duration::from_millis(500);

/// Counts what lanes hand out. Cheap to clone.
#[derive(Clone)]
pub(super) struct Counter {
    pub(super) reader: Reader,
    pub(super) stream: String,
    /// Nobody waits for us any more: what is not done comes again.
    pub(super) closed: CancellationToken,
}

/// How a call ended.
#[derive(Debug)]
pub(super) struct CallEnded {
    pub(super) tenant: TenantId,
    /// Committed, or durable in quarantine.
    pub(super) settled: Settled,
    /// What the tenant did not take.
    pub(super) back: Vec<Part>,
}

impl Counter {
    /// Hands parts to their tenant, and waits until they are committed.
    pub(super) async fn call(self, call: Call) -> CallEnded {
        let Call { tenant, mut parts, admit_by, hurry } = call;
        let cursor = parts.iter().flat_map(|part| &part.pieces).map(|piece| piece.sequence).max().map(|sequence| {
            Cursor { stream: self.stream.clone(), sequence: i64::try_from(sequence).unwrap_or(i64::MAX) }
        });
        let mut events = Vec::new();
        for part in &mut parts {
            let mut theirs = std::mem::take(&mut part.events);
            if theirs.len() != part.pieces.len() {
                match self.reader.read_again(part) {
                    Some(read) => theirs = read,
                    // The same bytes were read before. Should it happen, they are parked, and a replay says why.
                    None => {
                        tracing::warn!(%tenant, "events that were read before cannot be read again; they will be parked");
                        return put_off(tenant, parts, "unreadable");
                    }
                }
            }
            if events.is_empty() {
                events = theirs;
            } else {
                events.append(&mut theirs);
            }
        }
        let count = events.len();
        let origin = Origin { cursor, request_id: String::new() };
        let patience = admit_by.saturating_duration_since(Instant::now());
        // Patience is for being admitted. What was admitted is committed, so its answer is waited for, up to the doorbell's
        // own time-out: not to wait would cost each event a commit, and a duplicate when it comes again. That is paid only
        // where others need the room, or where we leave.
        let too_long = Counted::Later(NotNow { after: Duration::ZERO, why: Cause::TimedOut });
        let counted = tokio::select! {
            counted = self.reader.recorder.count(tenant, events, origin, patience) => counted,
            () = hurry.cancelled() => too_long,
            () = self.closed.cancelled() => too_long,
        };
        match counted {
            Counted::Outcomes(outcomes) if outcomes.len() == count => self.answered(tenant, parts, &outcomes).await,
            Counted::UnknownTenant => self.kept(tenant, parts, &Rejection::unknown(tenant)).await,
            Counted::Frozen => {
                let rejection = Rejection::of(Refusal::TenantFrozen, tenant);
                self.kept(tenant, parts, &rejection).await
            }
            Counted::Outcomes(_) => put_off(tenant, parts, Cause::TimedOut.name()),
            Counted::Later(not_now) => put_off(tenant, parts, not_now.why.name()),
        }
    }

    /// Keeps what its tenant could not take for too long, as far as there is room.
    pub(super) async fn park(self, tenant: TenantId, parts: Vec<Part>) -> CallEnded {
        let ended = self.kept(tenant, parts, &Rejection::of(Refusal::TenantUnavailable, tenant)).await;
        let events = ended.settled.items;
        if events > 0 {
            tracing::warn!(%tenant, events, "the tenant cannot take its events; they are kept until it can");
        }
        ended
    }

    /// Keeps what nobody can count.
    pub(super) async fn refuse(self, pull: u64, rows: Vec<Quarantined>) -> Option<Settled> {
        let (items, bytes) = (rows.len(), rows.iter().map(|row| row.body.len()).sum());
        Tally { refused: items as u64, ..Tally::default() }.tell("nats");
        self.keep(rows).await.then(|| Settled { pulls: vec![(pull, items)], items, bytes })
    }

    async fn answered(self, tenant: TenantId, parts: Vec<Part>, outcomes: &[Outcome]) -> CallEnded {
        let mut tally = Tally::default();
        let mut rows = Vec::new();
        let now = self.reader.recorder.now();
        for (piece, outcome) in parts.iter().flat_map(|part| &part.pieces).zip(outcomes) {
            tally.outcome(*outcome, piece.from_litellm);
            if let Outcome::Refused(reason) = outcome {
                let rejection = Rejection::of(*reason, tenant);
                rows.push(self.reader.row(&piece.subject, &piece.raw, &rejection, now));
            }
        }
        tally.tell("nats");
        self.settled(tenant, parts, rows).await
    }

    /// What waits for its tenant is given back as far as there is no room to park it.
    async fn kept(self, tenant: TenantId, parts: Vec<Part>, rejection: &Rejection) -> CallEnded {
        if !rejection.is_parked() {
            return self.rejected(tenant, parts, rejection).await;
        }
        let recorder = self.reader.recorder.clone();
        let room = recorder.room_to_park(parts.iter().map(|part| part.pieces.len()).sum()).await;
        let (parts, without_room) = divide(parts, room.events);
        if !without_room.is_empty() {
            metrics::counter!("platform_api_stream_put_off_total", "cause" => "parking_full").increment(1);
        }
        let mut ended = self.rejected(tenant, parts, rejection).await;
        ended.back.extend(without_room);
        ended
    }

    async fn rejected(self, tenant: TenantId, parts: Vec<Part>, rejection: &Rejection) -> CallEnded {
        let now = self.reader.recorder.now();
        let pieces = parts.iter().flat_map(|part| &part.pieces);
        let rows: Vec<Quarantined> =
            pieces.map(|piece| self.reader.row(&piece.subject, &piece.raw, rejection, now)).collect();
        Tally { refused: rows.len() as u64, ..Tally::default() }.tell("nats");
        self.settled(tenant, parts, rows).await
    }

    async fn settled(self, tenant: TenantId, parts: Vec<Part>, rows: Vec<Quarantined>) -> CallEnded {
        if self.keep(rows).await {
            CallEnded { tenant, settled: Settled::of(&parts), back: Vec::new() }
        } else {
            CallEnded { tenant, settled: Settled::default(), back: parts }
        }
    }

    /// Writes to the quarantine, again and again until it is durable. False when we are closed before that.
    async fn keep(&self, rows: Vec<Quarantined>) -> bool {
        for write in quarantine::writes(rows) {
            while self.reader.recorder.keep_these(write.clone()).await.is_err() {
                tokio::select! {
                    () = self.closed.cancelled() => return false,
                    () = tokio::time::sleep(KEEP_AGAIN) => {}
                }
            }
        }
        true
    }
}

fn put_off(tenant: TenantId, parts: Vec<Part>, cause: &'static str) -> CallEnded {
    metrics::counter!("platform_api_stream_put_off_total", "cause" => cause).increment(1);
    CallEnded { tenant, settled: Settled::default(), back: parts }
}

#[cfg(test)]
mod tests {
    use async_nats::Subject;
    use sqlx::{Connection as _, SqliteConnection};

    use super::super::part::Piece;
    use super::*;
    use crate::intake::arrival::Format;
    use crate::intake::node_test::{Node, event};

    fn counter(node: &Node) -> Counter {
        let (recorder, subject) = (node.recorder.clone(), "s".to_owned());
        let reader = Reader { limits: recorder.limits(Format::Events), recorder, subject };
        Counter { reader, stream: "S".into(), closed: CancellationToken::new() }
    }

    fn part(body: String) -> Part {
        let piece = Piece { raw: body.into(), subject: Subject::from("s"), sequence: 1, from_litellm: false };
        let (since, span, pieces) = (Instant::now(), tracing::Span::none(), vec![piece]);
        Part { pull: 0, since, span, pieces, events: Vec::new(), copied: false }
    }

    /// Otherwise it commits all the same, is counted as not taken, and each event costs a commit, a row and a duplicate.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_tenant_that_has_admitted_a_call_and_answers_late_has_taken_it() {
        let node = Node::open().await;
        let call = |name: &str, wait: Duration| {
            let parts = vec![part(event(name, Some(node.acme), 1))];
            let admit_by = Instant::now() + wait;
            let call = Call { tenant: node.acme, parts, admit_by, hurry: CancellationToken::new() };
            counter(&node).call(call)
        };
        assert_eq!(call("first", Duration::from_secs(10)).await.settled.items, 1);

        let file = node.file_of(node.acme);
        let mut lock = SqliteConnection::connect(&format!("sqlite:{}", file.display())).await.unwrap();
        sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut lock).await.unwrap();
        let slow = tokio::spawn(call("slow", Duration::from_millis(100)));
        tokio::time::sleep(Duration::from_secs(1)).await;
        sqlx::raw_sql("ROLLBACK").execute(&mut lock).await.unwrap();
        let ended = slow.await.unwrap();
        assert_eq!((ended.settled.items, ended.back.len()), (1, 0));
        assert_eq!(node.totals(node.acme).await.events, 2);
    }
}
