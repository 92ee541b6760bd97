//! A message that ends each session before anybody has it: looked for when sessions end one after the other without coming
//! on, and put aside in quarantine, so that what is behind it is read.

use async_nats::Subject;
use async_nats::jetstream::Context;

use super::Ended;
use super::reading::Reader;
use super::resume::{self, Progress, number};
use super::stored::{self, Stored, Unread};
use crate::domain::stream::{Checkpoint, hash};
use crate::intake::quarantine;
use crate::intake::record::Rejection;
use crate::intake::tally::Tally;
use crate::intake::text;

/// Sessions that ended without coming on, before the messages themselves are looked at.
pub(super) const SESSIONS: u32 = 2;
/// Messages that are looked at: more than a session can have had in hand without coming on.
const LOOKED_AT_MAX: usize = 10_000;

/// The first message behind `sequence` that cannot be handed on, and how many readable ones stand before it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) message: Stored,
    pub(super) before: usize,
}

/// How many sessions have ended one after the other without coming on.
#[derive(Debug, Default)]
pub(super) struct Standstill {
    sessions: u32,
    at: Option<i64>,
}

impl Standstill {
    /// A session that had begun has ended, with everything settled up to `position`.
    pub(super) fn ended(&mut self, position: Option<i64>) {
        self.sessions = if self.at == position { self.sessions.saturating_add(1) } else { 1 };
        self.at = position;
    }

    pub(super) fn is_suspicious(&self) -> bool {
        self.sessions >= SESSIONS
    }
}

/// Looks for it.
pub(super) async fn find(context: &Context, stream: &str, sequence: u64) -> Result<Option<Found>, Ended> {
    let mut next = sequence.saturating_add(1);
    for before in 0..LOOKED_AT_MAX {
        match stored::from(context, stream, next).await {
            Ok(message) if message.is_readable() => next = message.sequence.saturating_add(1),
            Ok(message) => return Ok(Some(Found { message, before })),
            Err(Unread::Absent) => return Ok(None),
            Err(error) => return Err(Ended::Broken(format!("a message that ends sessions: {error}"))),
        }
    }
    Ok(None)
}

/// Keeps a message in quarantine that is next to be read, and goes on behind it.
pub(super) async fn put_aside(message: Stored, reader: &Reader, progress: &mut Progress) -> Result<(), Ended> {
    let Some(position) = progress.position.clone() else { return Ok(()) };
    let Stored { sequence, subject, payload, at_nanos, .. } = message;
    let subject = Subject::from(subject);
    let problem = text::malformed("its headers cannot be read; its body is kept without them");
    let recorder = &reader.recorder;
    let row = reader.row(&subject, &payload, &Rejection { problem, tenant: None }, recorder.now());
    for write in quarantine::writes(vec![row]) {
        recorder.keep_these(write).await.map_err(|error| Ended::Broken(error.to_string()))?;
    }
    Tally { refused: 1, ..Tally::default() }.tell("nats");
    tracing::warn!(sequence, subject = %text::printable(&subject, 256), "a message whose headers nobody can read is in quarantine");
    let hash = Some(hash(at_nanos, &subject, &payload));
    let behind = Checkpoint { sequence: number(sequence), at_nanos, hash, ..position };
    resume::keep(recorder.directory(), &behind, &progress.gaps).await?;
    progress.gaps.clear();
    (progress.position, progress.kept) = (Some(behind.clone()), Some(behind));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_that_come_on_are_no_reason_to_look() {
        let mut standstill = Standstill::default();
        for position in [None, Some(0), Some(1), Some(2)] {
            standstill.ended(position);
            assert!(!standstill.is_suspicious(), "{position:?}");
        }
        standstill.ended(Some(2));
        assert!(standstill.is_suspicious());
        standstill.ended(Some(3));
        assert!(!standstill.is_suspicious());
    }
}
