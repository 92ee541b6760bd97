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
        let Call { tenant, mut parts, deadline, hurry } = call;
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
                    None => return CallEnded { tenant, settled: Settled::default(), back: parts },
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
        let patience = deadline.saturating_duration_since(Instant::now());
        // Whatever is not waited for may be committed all the same: it is a duplicate when it comes again.
        let too_long = Counted::Later(NotNow { after: Duration::ZERO, why: Cause::TimedOut });
        let counted = tokio::select! {
            counted = self.reader.recorder.count(tenant, events, origin, patience) => counted,
            () = tokio::time::sleep_until(deadline) => too_long,
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
            Counted::Outcomes(_) => put_off(tenant, parts, Cause::TimedOut),
            Counted::Later(not_now) => put_off(tenant, parts, not_now.why),
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

fn put_off(tenant: TenantId, parts: Vec<Part>, why: Cause) -> CallEnded {
    metrics::counter!("platform_api_stream_put_off_total", "cause" => why.name()).increment(1);
    CallEnded { tenant, settled: Settled::default(), back: parts }
}
