//! A message that ends each session before anybody has it: looked for when sessions end one after the other without coming
//! on, and put aside in quarantine, so that what is behind it is read.

use std::time::Duration;

use async_nats::Subject;
use async_nats::jetstream::Context;
use tokio::time::Instant;

use super::Ended;
use super::reading::Reader;
use super::resume::{self, Progress, number};
use super::stored::{self, Stored, Unread};
use crate::domain::stream::{Checkpoint, Gap, hash};
use crate::intake::quarantine;
use crate::intake::record::Rejection;
use crate::intake::tally::Tally;
use crate::intake::text;

/// Sessions that ended without coming on, before the messages themselves are looked at.
const SESSIONS: u32 = 2;
/// How long they are looked at: another node must not take us for gone.
const LOOK_TIMEOUT: Duration = Duration::from_secs(3);

/// How many sessions have ended one after the other without coming on, though there was something to read.
#[derive(Debug, Default)]
pub(super) struct Standstill {
    sessions: u32,
    at: Option<i64>,
    /// Of the session that runs.
    has_something: bool,
}

impl Standstill {
    /// A session begins, and finds so many messages to read.
    pub(super) fn begins(&mut self, pending: u64) {
        self.has_something = pending > 0;
    }

    /// Something was delivered, or should have been.
    pub(super) fn sees_something(&mut self) {
        self.has_something = true;
    }

    /// A session that had begun has ended, with everything settled up to `position`.
    pub(super) fn ended(&mut self, position: Option<i64>) {
        if self.at != position {
            self.sessions = 0;
        }
        self.sessions = self.sessions.saturating_add(u32::from(self.has_something));
        self.at = position;
    }

    /// What was put aside was not read: the next one may stand right behind it.
    fn passed(&mut self, position: i64) {
        self.at = Some(position);
    }

    fn is_suspicious(&self) -> bool {
        self.sessions >= SESSIONS
    }
}

/// What was found where sessions stand still.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// What was next to be read is in quarantine, and reading goes on behind it.
    pub(super) put_aside: bool,
    /// So many messages stand before one that ends sessions.
    pub(super) before: Option<usize>,
}

/// Looks at the messages behind the position, if sessions stand still there, and puts aside what is next to be read and ends
/// them. The stream is the same that was read up to there.
pub(super) async fn search(
    context: &Context,
    standstill: &mut Standstill,
    reader: &Reader,
    progress: &mut Progress,
    most: usize,
) -> Result<Found, Ended> {
    let until = Instant::now() + LOOK_TIMEOUT;
    let mut found = Found::default();
    while let Some(position) =
        progress.position.clone().filter(|_| standstill.is_suspicious() && Instant::now() < until)
    {
        match look(context, &position, most, until).await? {
            Seen::End => break,
            Seen::Poison { before: 0, message } => {
                put_aside(message, &position, reader, progress).await?;
                standstill.passed(progress.position.as_ref().map_or(0, |position| position.sequence));
                found.put_aside = true;
            }
            // They are counted first.
            Seen::Poison { before, .. } | Seen::Readable { before } => {
                found.before = Some(before).filter(|before| *before > 0);
                break;
            }
        }
    }
    Ok(found)
}

/// What stands behind a position.
enum Seen {
    /// Nothing that cannot be handed on.
    End,
    /// So many messages that can be, and nobody has looked further.
    Readable { before: usize },
    /// One that cannot be, behind so many that can.
    Poison { before: usize, message: Stored },
}

/// Looks at the messages behind `position`, at most so many.
async fn look(context: &Context, position: &Checkpoint, most: usize, until: Instant) -> Result<Seen, Ended> {
    let mut next = resume::sequence(position.sequence).saturating_add(1);
    let mut before = 0;
    while before < most && Instant::now() < until {
        match stored::from(context, &position.stream, next).await {
            Ok(message) if message.is_readable() => next = message.sequence.saturating_add(1),
            Ok(message) => return Ok(Seen::Poison { before, message }),
            Err(Unread::Absent) => return Ok(Seen::End),
            Err(error) => return Err(Ended::Broken(format!("a message that ends sessions: {error}"))),
        }
        before += 1;
    }
    Ok(Seen::Readable { before })
}

/// Keeps a message in quarantine that is next to be read, and goes on behind it.
async fn put_aside(
    message: Stored,
    position: &Checkpoint,
    reader: &Reader,
    progress: &mut Progress,
) -> Result<(), Ended> {
    let subject = Subject::from(message.subject());
    let Stored { sequence, payload, at_nanos, .. } = message;
    let problem = text::malformed("its headers cannot be read; its body is kept without them");
    let recorder = &reader.recorder;
    let row = reader.row(&subject, &payload, &Rejection { problem, tenant: None }, recorder.now());
    for write in quarantine::writes(vec![row]) {
        recorder.keep_these(write).await.map_err(|error| Ended::Broken(error.to_string()))?;
    }
    Tally { refused: 1, ..Tally::default() }.tell("nats");
    tracing::warn!(sequence, subject = %text::printable(&subject, 256), "a message whose headers nobody can read is in quarantine");
    let before = number(sequence).saturating_sub(1);
    let gap = (before > position.sequence).then_some(Gap { from: position.sequence + 1, to: before });
    let gaps = [&progress.gaps[..], gap.as_slice()].concat();
    let hash = Some(hash(at_nanos, &subject, &payload));
    let behind = Checkpoint { sequence: number(sequence), at_nanos, hash, ..position.clone() };
    resume::keep(recorder.directory(), &behind, &gaps).await?;
    resume::note_gaps(&behind.stream, gap.as_slice());
    progress.gaps.clear();
    (progress.position, progress.kept) = (Some(behind.clone()), Some(behind));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_that_come_on_or_have_nothing_to_read_are_no_reason_to_look() {
        let mut standstill = Standstill::default();
        let mut session = |pending: u64, position: Option<i64>| {
            standstill.begins(pending);
            standstill.ended(position);
            standstill.is_suspicious()
        };
        assert_eq!([None, Some(0), Some(1), Some(2)].map(|position| session(1, position)), [false; 4]);
        // A connection that is lost in a quiet night.
        assert!(!session(0, Some(2)) && !session(0, Some(2)));
        assert!(session(1, Some(2)));
        assert!(!session(1, Some(3)));
        assert!(session(1, Some(3)));
        standstill.passed(4);
        assert!(standstill.is_suspicious(), "the next may stand right behind it");
        standstill.ended(Some(4));
        assert!(standstill.is_suspicious());
    }
}
