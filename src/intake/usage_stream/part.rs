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
    /// Its bytes are its own.
    pub(super) copied: bool,
}

impl Part {
    /// Copies its bytes out of what was read from the connection at once: everybody's messages, which live as long as any
    /// slice of them.
    pub(super) fn copy(&mut self) {
        if self.copied {
            return;
        }
        for piece in &mut self.pieces {
            piece.raw = Bytes::copy_from_slice(&piece.raw);
        }
        self.copied = true;
    }

    /// Its first `count` pieces, which it has; the rest stays.
    pub(super) fn split(&mut self, count: usize) -> Part {
        let rest = self.pieces.split_off(count.min(self.pieces.len()));
        let pieces = std::mem::replace(&mut self.pieces, rest);
        let rest = self.events.split_off(count.min(self.events.len()));
        let events = std::mem::replace(&mut self.events, rest);
        Part { pull: self.pull, since: self.since, span: self.span.clone(), pieces, events, copied: self.copied }
    }
}

/// The first `room` events of parts, and what is left of the parts.
pub(super) fn divide(parts: Vec<Part>, room: usize) -> (Vec<Part>, Vec<Part>) {
    let (mut taken, mut left, mut free) = (Vec::new(), Vec::new(), room);
    for mut part in parts {
        if part.pieces.len() <= free {
            free -= part.pieces.len();
            taken.push(part);
        } else {
            if free > 0 {
                taken.push(part.split(free));
                free = 0;
            }
            left.push(part);
        }
    }
    (taken, left)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn part(pull: u64, events: usize) -> Part {
        let piece = |sequence| Piece {
            raw: Bytes::new(),
            subject: Subject::from("s"),
            sequence: pull * 100 + sequence as u64,
            from_litellm: false,
        };
        let pieces = (0..events).map(piece).collect();
        Part { pull, since: Instant::now(), span: Span::none(), pieces, events: Vec::new(), copied: false }
    }

    fn sequences(parts: &[Part]) -> Vec<u64> {
        parts.iter().flat_map(|part| &part.pieces).map(|piece| piece.sequence).collect()
    }

    #[test]
    fn parts_are_divided_where_the_room_ends_and_nothing_is_lost() {
        let whole = || vec![part(1, 3), part(2, 2), part(3, 2)];
        for room in 0..=8 {
            let (taken, left) = divide(whole(), room);
            assert_eq!(sequences(&taken).len(), room.min(7));
            assert_eq!([sequences(&taken), sequences(&left)].concat(), sequences(&whole()), "room for {room}");
            assert_eq!(Settled::of(&taken).items + Settled::of(&left).items, 7);
            assert!(taken.iter().chain(&left).all(|part| !part.pieces.is_empty()));
        }
    }
}
