//! Bugs that are put in on purpose, each in a simulated part: a checker that has never caught anything may be blind.

/// One bug that somebody could write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// Messages are acknowledged, and requests answered, when their events are queued.
    AckBeforeCommit,
    /// Counters are written outside the transaction, so a rollback leaves them.
    CounterOutside,
    /// Messages at or below the newest counted sequence count as known.
    DedupeBySequence,
    /// A commit does not ask whether it is still the owner's.
    MissingEpochCheck,
    /// Nothing remembers which thresholds have fired, and the table has no unique key.
    AlertWithoutKey,
    /// Outbox rows are written after the commit.
    OutboxOutside,
    /// The books are shown before they are committed.
    AdoptedBeforeCommit,
    /// An event adds to the rollup of the moment it arrives.
    PeriodOfArrival,
    /// The second body of a known event is counted, too.
    ConflictCounted,
    /// A commit whose outcome is unknown is tried again without asking what is known already.
    RetriedBlindly,
    /// What cannot be quarantined is acknowledged all the same.
    QuarantineSkipped,
    /// The stream's cursor is written outside the transaction.
    CursorOutside,
    /// A stream that went backwards is read on as if nothing had happened.
    NoResumeCheck,
    /// What is not in memory after the clock was set back passes for a quota that nobody has used.
    UnknownForUnused,
    /// A new owner knows the counters, and not how fast they have risen.
    RateForgotten,
    /// Nobody comes back to what a node owed that is gone.
    OrphansForgotten,
}

impl Planted {
    pub const ALL: [Planted; 16] = [
        Planted::AckBeforeCommit,
        Planted::CounterOutside,
        Planted::DedupeBySequence,
        Planted::MissingEpochCheck,
        Planted::AlertWithoutKey,
        Planted::OutboxOutside,
        Planted::AdoptedBeforeCommit,
        Planted::PeriodOfArrival,
        Planted::ConflictCounted,
        Planted::RetriedBlindly,
        Planted::QuarantineSkipped,
        Planted::CursorOutside,
        Planted::NoResumeCheck,
        Planted::UnknownForUnused,
        Planted::RateForgotten,
        Planted::OrphansForgotten,
    ];
}
