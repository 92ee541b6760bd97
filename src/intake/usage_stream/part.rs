//! What a message becomes on its way to its tenant.

use async_nats::Subject;
use bytes::Bytes;
use tokio::time::Instant;
use tracing::Span;

use crate::domain::usage::UsageEvent;

/// One event as it came: enough to read it again, or to keep it in quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) raw: Bytes,
    pub(super) subject: Subject,
    pub(super) sequence: u64,
    pub(super) from_litellm: bool,
}

/// One tenant's events of one pull.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) pull: u64,
    /// When the pull arrived.
    pub(super) since: Instant,
    /// The pull's, for traces: the commit is a part of it.
    pub(super) span: Span,
    pub(super) pieces: Vec<Piece>,
    /// One for each piece, or none: they were given away, and have to be read again.
    pub(super) events: Vec<UsageEvent>,
}

/// What is settled: by pull, and the room it leaves.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) pulls: Vec<(u64, usize)>,
    pub(super) items: usize,
    pub(super) bytes: usize,
}

impl Settled {
    pub(super) fn of(parts: &[Part]) -> Settled {
        let mut settled = Settled::default();
        for part in parts {
            settled.pulls.push((part.pull, part.pieces.len()));
            settled.items += part.pieces.len();
            settled.bytes += part.pieces.iter().map(|piece| piece.raw.len()).sum::<usize>();
        }
        settled
    }
}
