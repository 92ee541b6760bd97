//! Where the usage stream has been read to, and whether the stream is still the one that was read.
//!
//! A stream may lose its tail, be made anew, or be restored from an earlier copy, and its numbers then grow past ours
//! again: a number proves nothing. So a checkpoint remembers what stood at its place, and is compared with what stands
//! there now.

use aws_lc_rs::digest;

/// Where a stream has been read to: everything up to here is committed, in quarantine, or known to be gone (L6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub stream: String,
    /// When the stream was made; another moment is another stream.
    pub created_nanos: i64,
    pub sequence: i64,
    /// The server's time of the message at `sequence`, or of the last one that was read before it.
    pub at_nanos: i64,
    /// Of the message at `sequence`; `None` when nothing stood there.
    pub hash: Option<[u8; 32]>,
}

/// Messages that were gone before anybody read them; both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    pub from: i64,
    pub to: i64,
}

/// A look at a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub created_nanos: i64,
    pub first_sequence: i64,
    pub last_sequence: i64,
    /// The hash of the message at the checkpoint's place; `None` when none stands there any more.
    pub at_checkpoint: Option<[u8; 32]>,
}

/// What a stream is to somebody who read it up to a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The same; the next message is there or still to come.
    Same,
    /// The same, without messages that nobody read.
    Lost(Gap),
    /// Not what was read: everything it may hold that is new has to be read again.
    Another(Anomaly),
}

/// How a stream that is not the one that was read gives itself away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anomaly {
    MadeAnew,
    EndedEarlier,
    ContentChanged,
    /// The consumer waits for messages past the stream's end.
    ConsumerAhead,
}

impl Anomaly {
    /// The word used in records and as the label of a metric.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Anomaly::MadeAnew => "made_anew",
            Anomaly::EndedEarlier => "ended_earlier",
            Anomaly::ContentChanged => "content_changed",
            Anomaly::ConsumerAhead => "consumer_ahead",
        }
    }

    /// For a person.
    #[must_use]
    pub fn explanation(self) -> &'static str {
        match self {
            Anomaly::MadeAnew => "the stream was made anew",
            Anomaly::EndedEarlier => "the stream ends before the place it was read to: it has lost its tail",
            Anomaly::ContentChanged => {
                "another message stands where the stream was read to, or one where there was none"
            }
            Anomaly::ConsumerAhead => "the consumer is ahead of the stream's end: the stream has lost its tail",
        }
    }
}

impl Gap {
    /// How many messages are gone.
    #[must_use]
    pub fn messages(self) -> i64 {
        self.to.saturating_sub(self.from).saturating_add(1)
    }
}

impl Checkpoint {
    #[must_use]
    pub fn judge(&self, seen: &Seen) -> Verdict {
        if seen.created_nanos != self.created_nanos {
            return Verdict::Another(Anomaly::MadeAnew);
        }
        if seen.last_sequence < self.sequence {
            return Verdict::Another(Anomaly::EndedEarlier);
        }
        // What was read may be gone by now. What was gone does not come back, except from a copy.
        if seen.at_checkpoint.is_some_and(|stands| self.hash != Some(stands)) {
            return Verdict::Another(Anomaly::ContentChanged);
        }
        let next = self.sequence.saturating_add(1);
        if seen.first_sequence > next {
            return Verdict::Lost(Gap { from: next, to: seen.first_sequence - 1 });
        }
        Verdict::Same
    }
}

/// What a message is recognised by: when the server took it, its subject and its body.
#[must_use]
pub fn hash(at_nanos: i64, subject: &str, body: &[u8]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&at_nanos.to_be_bytes());
    context.update(&(subject.len() as u64).to_be_bytes());
    context.update(subject.as_bytes());
    context.update(body);
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read() -> Checkpoint {
        let hash = Some(hash(7, "quota.updated", b"{}"));
        Checkpoint { stream: "USAGE".into(), created_nanos: 1, sequence: 1_000, at_nanos: 7, hash }
    }

    fn seen(created_nanos: i64, first_sequence: i64, last_sequence: i64) -> Seen {
        Seen { created_nanos, first_sequence, last_sequence, at_checkpoint: read().hash }
    }

    #[test]
    fn a_stream_is_recognised_by_what_it_holds() {
        use Anomaly::{ContentChanged, EndedEarlier, MadeAnew};
        let other = Some(hash(8, "quota.updated", b"{}"));
        let gone = |first, last| Seen { at_checkpoint: None, ..seen(1, first, last) };
        for (seen, verdict) in [
            (seen(1, 1, 1_000), Verdict::Same),
            (seen(1, 900, 1_500), Verdict::Same),
            (gone(1_001, 1_500), Verdict::Same),
            (gone(1_001, 1_000), Verdict::Same),
            // Deleted by itself: nothing that was not read is gone.
            (gone(1, 1_500), Verdict::Same),
            (gone(1_002, 1_500), Verdict::Lost(Gap { from: 1_001, to: 1_001 })),
            (gone(1_501, 1_500), Verdict::Lost(Gap { from: 1_001, to: 1_500 })),
            (seen(2, 1, 1_500), Verdict::Another(MadeAnew)),
            (gone(1, 601), Verdict::Another(EndedEarlier)),
            // It has lost its tail and grown past us since: only the content tells.
            (Seen { at_checkpoint: other, ..seen(1, 1, 1_301) }, Verdict::Another(ContentChanged)),
        ] {
            assert_eq!(read().judge(&seen), verdict, "{seen:?}");
        }
        // Messages that were gone, and passed, stand there again: the stream was purged, then restored from a copy.
        let passed = Checkpoint { hash: None, ..read() };
        assert_eq!(passed.judge(&gone(1_001, 1_301)), Verdict::Same);
        let restored = Seen { at_checkpoint: other, ..seen(1, 1, 1_301) };
        assert_eq!(passed.judge(&restored), Verdict::Another(ContentChanged));
    }

    #[test]
    fn a_message_is_its_time_its_subject_and_its_body() {
        let one = hash(1, "a", b"bc");
        assert_eq!(one, hash(1, "a", b"bc"));
        for other in [hash(2, "a", b"bc"), hash(1, "ab", b"c"), hash(1, "a", b"b")] {
            assert_ne!(one, other);
        }
        assert_eq!(Gap { from: 3, to: 3 }.messages(), 1);
    }

    #[test]
    fn an_anomaly_has_a_word_and_a_sentence() {
        use Anomaly::{ConsumerAhead, ContentChanged, EndedEarlier, MadeAnew};
        let all = [MadeAnew, EndedEarlier, ContentChanged, ConsumerAhead];
        assert_eq!(all.map(Anomaly::name), ["made_anew", "ended_earlier", "content_changed", "consumer_ahead"]);
        for anomaly in all {
            assert!(anomaly.explanation().contains("stream"), "{anomaly:?}");
        }
        let sentences: std::collections::BTreeSet<&str> = all.map(Anomaly::explanation).into();
        assert_eq!(sentences.len(), all.len());
    }

    /// Checkpoints outlive programs: one that is hashed in another way would see every stream as another.
    #[test]
    fn a_message_is_hashed_the_same_way_for_ever() {
        let hex: String = hash(7, "quota.updated", b"{}").iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "fd5e7ff6d609f1aad1e5d325f850fcb80867ffeb768247d5fba4fbccfc1a6e2e");
    }

    proptest! {
        /// What happens to a stream that keeps its content: it goes on, and loses messages at its beginning. Whatever of
        /// it was never read is a gap, and everything else is the same stream.
        #[test]
        fn a_stream_that_only_goes_on_is_the_same(read_to in 0_i64..50, gone in 0_i64..60, end in 0_i64..60) {
            let (first_sequence, last_sequence) = (gone + 1, end.max(gone).max(read_to));
            let checkpoint = Checkpoint { sequence: read_to, ..read() };
            let at_checkpoint = if read_to > gone { checkpoint.hash } else { None };
            let verdict = checkpoint.judge(&Seen { at_checkpoint, ..seen(1, first_sequence, last_sequence) });
            let unread: Vec<i64> = (read_to + 1..first_sequence).collect();
            match verdict {
                Verdict::Same => prop_assert!(unread.is_empty()),
                Verdict::Lost(gap) => {
                    prop_assert_eq!((gap.from..=gap.to).collect::<Vec<_>>(), unread.clone());
                    prop_assert_eq!(gap.messages(), unread.len() as i64);
                }
                Verdict::Another(anomaly) => prop_assert!(false, "{:?}", anomaly),
            }
        }
    }
}
