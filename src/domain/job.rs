//! Background work that survives its worker: what is to be done, who holds it, how far it is, how it ended.
//!
//! A job waits until its time, is leased to a worker, and ends as succeeded, failed or canceled. A worker that falls silent
//! loses its lease, and the job is begun again from its last checkpoint; so every kind of work must bear being begun again.
//! Each lease has a number that only grows, by which a worker that wakes too late is recognised. Pure: time and ids are
//! arguments.

use super::backoff::Backoff;
use super::ids::{JobId, TenantId};
use super::time::{CLOCK_STEP_MICROS, MICROS_PER_HOUR, MICROS_PER_SECOND, Timestamp};

/// First delay between tries, and the longest.
const BACKOFF: Backoff = Backoff { first_micros: MICROS_PER_SECOND, longest_micros: 600 * MICROS_PER_SECOND };
/// As [`BACKOFF`], of what somebody waits for.
const BACKOFF_OF_CHANGES: Backoff =
    Backoff { first_micros: MICROS_PER_SECOND / 10, longest_micros: 30 * MICROS_PER_SECOND };
/// The longest lease that a node may give.
pub const LEASE_MICROS_MAX: i64 = MICROS_PER_HOUR;
/// Characters of a failure's words, of a note, and bytes of a checkpoint, of arguments and of a result.
pub const TEXT_CHARACTERS_MAX: usize = 500;
pub const DOCUMENT_BYTES_MAX: usize = 16 * 1024;

/// Where a job is: waiting → running → succeeded, failed or canceled, or back to waiting for another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    Waiting,
    Running,
    Succeeded,
    Failed,
    Canceled,
}

impl State {
    pub const ALL: [State; 5] = [State::Waiting, State::Running, State::Succeeded, State::Failed, State::Canceled];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Waiting => "waiting",
            State::Running => "running",
            State::Succeeded => "succeeded",
            State::Failed => "failed",
            State::Canceled => "canceled",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<State> {
        State::ALL.into_iter().find(|state| state.name() == name)
    }

    #[must_use]
    pub fn is_finished(self) -> bool {
        !matches!(self, State::Waiting | State::Running)
    }
}

/// What can be done in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Recomputes a chain: a tenant's, or the platform's.
    AuditVerification,
    /// Recomputes every chain, one after the other.
    AuditSweep,
    /// Forgets what need not be kept for ever.
    Housekeeping,
    /// Gives a tenant another data key, and encrypts its secrets under that.
    RotateDataKey,
    /// Wraps every tenant's data keys with the key encryption key of now.
    Rewrap,
    /// Brings providers and virtual keys to LiteLLM, and takes away what is revoked.
    LiteLlmSync,
    /// Does in a tenant's database what a change to the catalogue has left to do there.
    FinishChange,
}

impl Kind {
    pub const ALL: [Kind; 7] = [
        Kind::AuditVerification,
        Kind::AuditSweep,
        Kind::Housekeeping,
        Kind::RotateDataKey,
        Kind::Rewrap,
        Kind::LiteLlmSync,
        Kind::FinishChange,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::AuditVerification => "auditVerification",
            Kind::AuditSweep => "auditSweep",
            Kind::Housekeeping => "housekeeping",
            Kind::RotateDataKey => "vault.rotateDataKey",
            Kind::Rewrap => "vault.rewrap",
            Kind::LiteLlmSync => "litellm.sync",
            Kind::FinishChange => "tenant.finishChange",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// May a job of this kind be about one tenant? The others are the platform's own.
    #[must_use]
    pub fn is_of_a_tenant(self) -> bool {
        matches!(self, Kind::AuditVerification | Kind::RotateDataKey | Kind::LiteLlmSync | Kind::FinishChange)
    }

    /// Must a job of this kind be about one tenant?
    #[must_use]
    pub fn needs_a_tenant(self) -> bool {
        matches!(self, Kind::RotateDataKey | Kind::FinishChange)
    }

    /// May a caller ask for it, and ask it to end? The rest of a change that was made is neither begun nor stopped by
    /// itself.
    #[must_use]
    pub fn is_for_callers(self) -> bool {
        self != Kind::FinishChange
    }

    fn backoff(self) -> Backoff {
        if self == Kind::FinishChange { BACKOFF_OF_CHANGES } else { BACKOFF }
    }
}

/// How far a job is, in units of its own kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    pub done: i64,
    /// `None` when nobody knows how much there is.
    pub total: Option<i64>,
    /// For people.
    pub note: String,
}

/// What a job is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// A [`Kind`] by its name: one that a newer program wrote may be unknown to us.
    pub kind: String,
    /// Whose data it works on; `None` for the platform's own.
    pub tenant: Option<TenantId>,
    /// Of unfinished jobs, one at most has this key.
    pub key: Option<String>,
    /// A JSON object.
    pub arguments: String,
    pub run_at: Timestamp,
    /// Repeats after it ended, at multiples of this span since the epoch; 0 for once.
    pub every_micros: i64,
    /// How often it is begun, at most; 0 for as often as it takes.
    pub attempts_max: i64,
    /// Who asked for it.
    pub actor: String,
    pub request_id: String,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub id: JobId,
    pub draft: Draft,
    pub state: State,
    /// How often it was begun.
    pub attempts: i64,
    /// Of the last time it was leased; grows with each.
    pub lease: i64,
    /// Until when the worker must be heard of; 0 while nobody holds it.
    pub lease_until: Timestamp,
    /// Somebody wants it to end; its worker is told with its next sign of life.
    pub cancel_requested: bool,
    pub progress: Progress,
    /// Where another worker goes on: a JSON value, or empty.
    pub checkpoint: String,
    /// What came of it: a JSON value, or empty.
    pub result: String,
    /// Why the last try failed, or empty.
    pub error: String,
    pub created_at: Timestamp,
    /// When it was begun for the first time; 0 before.
    pub started_at: Timestamp,
    /// 0 while it is not finished.
    pub finished_at: Timestamp,
}

/// Which jobs a list shows; `None` filters nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFilter {
    pub tenant: Option<TenantId>,
    pub state: Option<State>,
    pub kind: Option<String>,
}

/// The lease a worker speaks of is not the job's any more: another worker has it, or it is finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the job is held by nobody, or by another worker")]
pub struct Lost;

/// The job is finished, so nothing more can be asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the job is {} already", .0.name())]
pub struct Finished(pub State);

/// How a worker's try ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// With a JSON value, or empty.
    Succeeded(String),
    /// In words without secrets; another try may succeed.
    Failed(String),
    /// As `Failed`, and no other try would succeed.
    Hopeless(String),
    /// The worker has heard that it should stop, and has.
    Canceled,
    /// The worker is leaving; another one goes on from the checkpoint. Does not count as a try.
    Released,
}

impl Job {
    #[must_use]
    pub fn new(id: JobId, draft: Draft, now: Timestamp) -> Job {
        Job {
            id,
            draft,
            state: State::Waiting,
            attempts: 0,
            lease: 0,
            lease_until: Timestamp(0),
            cancel_requested: false,
            progress: Progress::default(),
            checkpoint: String::new(),
            result: String::new(),
            error: String::new(),
            created_at: now,
            started_at: Timestamp(0),
            finished_at: Timestamp(0),
        }
    }

    /// When somebody should look at it next; `None` once it is finished.
    #[must_use]
    pub fn due_at(&self) -> Option<Timestamp> {
        match self.state {
            State::Waiting => Some(self.draft.run_at),
            State::Running => Some(self.lease_until),
            State::Succeeded | State::Failed | State::Canceled => None,
        }
    }

    /// Is its worker to be taken for lost?
    fn lease_is_over(&self, now: Timestamp) -> bool {
        self.lease_until <= now || self.lease_until > no_lease_beyond(now)
    }

    /// A series that was begun before goes on as it is wanted now; true when that changes something. What waits for a time
    /// further away than the next of the series waits for a clock that ran ahead.
    pub fn follow(&mut self, wanted: &Draft) -> bool {
        if self.state != State::Waiting || self.draft.every_micros == 0 || wanted.every_micros == 0 {
            return false;
        }
        let run_at = self.draft.run_at.min(wanted.run_at);
        let changed = (self.draft.every_micros, self.draft.run_at) != (wanted.every_micros, run_at);
        (self.draft.every_micros, self.draft.run_at) = (wanted.every_micros, run_at);
        changed
    }

    /// Leases it to a worker, if it is due. One whose worker was lost on its last try has failed; one that was to be
    /// canceled is. True when the worker has it.
    pub fn claim(&mut self, now: Timestamp, lease_micros: i64) -> bool {
        let is_due = match self.state {
            State::Waiting => self.draft.run_at <= now,
            State::Running => self.lease_is_over(now),
            State::Succeeded | State::Failed | State::Canceled => false,
        };
        if !is_due {
            return false;
        }
        if self.state == State::Running {
            if self.cancel_requested {
                self.finish(State::Canceled, now);
                return false;
            }
            "the worker was lost".clone_into(&mut self.error);
            if self.was_last_try() {
                self.finish(State::Failed, now);
                return false;
            }
        }
        self.state = State::Running;
        self.attempts += 1;
        self.lease += 1;
        self.lease_until = now.plus_micros(lease_micros);
        if self.started_at == Timestamp(0) {
            self.started_at = now;
        }
        true
    }

    fn held(&self, lease: i64) -> Result<(), Lost> {
        if self.state == State::Running && self.lease == lease { Ok(()) } else { Err(Lost) }
    }

    /// A sign of life; answers whether the worker should stop.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn renew(
        &mut self,
        lease: i64,
        now: Timestamp,
        lease_micros: i64,
        progress: Progress,
        checkpoint: Option<String>,
    ) -> Result<bool, Lost> {
        self.held(lease)?;
        // Also to an earlier time: the clock may have been set back.
        self.lease_until = now.plus_micros(lease_micros);
        self.progress = Progress { note: clipped(&progress.note), ..progress };
        if let Some(checkpoint) = checkpoint.filter(|text| text.len() <= DOCUMENT_BYTES_MAX) {
            self.checkpoint = checkpoint;
        }
        Ok(self.cancel_requested)
    }

    /// Takes a worker's word for how its try ended.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn settle(&mut self, lease: i64, ending: Ending, now: Timestamp) -> Result<(), Lost> {
        self.held(lease)?;
        match ending {
            Ending::Succeeded(result) => {
                self.error.clear();
                self.result = if result.len() <= DOCUMENT_BYTES_MAX { result } else { String::new() };
                self.finish(State::Succeeded, now);
            }
            Ending::Canceled => self.finish(State::Canceled, now),
            Ending::Hopeless(error) => {
                self.error = clipped(&error);
                self.finish(State::Failed, now);
            }
            Ending::Failed(error) => {
                self.error = clipped(&error);
                if self.cancel_requested {
                    self.finish(State::Canceled, now);
                } else if self.was_last_try() {
                    self.finish(State::Failed, now);
                } else {
                    self.wait_until(now.plus_micros(self.backoff().micros(self.attempts, self.salt())));
                }
            }
            Ending::Released => {
                if self.cancel_requested {
                    self.finish(State::Canceled, now);
                } else {
                    self.attempts -= 1;
                    self.wait_until(now);
                }
            }
        }
        Ok(())
    }

    /// Asks for its end: at once while it waits, with its worker's next sign of life while it runs. Asking again changes
    /// nothing.
    ///
    /// # Errors
    /// [`Finished`].
    pub fn cancel(&mut self, now: Timestamp) -> Result<(), Finished> {
        match self.state {
            State::Waiting => self.finish(State::Canceled, now),
            State::Running => self.cancel_requested = true,
            State::Succeeded | State::Failed | State::Canceled => return Err(Finished(self.state)),
        }
        Ok(())
    }

    /// The next one of a series, once this one has ended by itself.
    #[must_use]
    pub fn successor(&self, id: JobId, now: Timestamp) -> Option<Job> {
        let every = self.draft.every_micros;
        let ended = matches!(self.state, State::Succeeded | State::Failed);
        (ended && every > 0).then(|| {
            let run_at = Timestamp((now.0.div_euclid(every) + 1).saturating_mul(every));
            Job::new(id, Draft { run_at, ..self.draft.clone() }, now)
        })
    }

    /// Is it what a change to the catalogue has left to do?
    #[must_use]
    pub fn finishes_a_change(&self) -> bool {
        self.draft.kind == Kind::FinishChange.name()
    }

    fn was_last_try(&self) -> bool {
        self.draft.attempts_max > 0 && self.attempts >= self.draft.attempts_max
    }

    fn backoff(&self) -> Backoff {
        Kind::from_name(&self.draft.kind).map_or(BACKOFF, Kind::backoff)
    }

    /// What failed together is not tried again together.
    fn salt(&self) -> u8 {
        self.id.0.as_bytes()[15]
    }

    fn wait_until(&mut self, at: Timestamp) {
        self.state = State::Waiting;
        self.lease_until = Timestamp(0);
        self.draft.run_at = at;
    }

    fn finish(&mut self, state: State, now: Timestamp) {
        self.state = state;
        self.lease_until = Timestamp(0);
        self.finished_at = now;
    }
}

/// No lease that is given now lasts beyond this, whichever node gives it. One that does was given by a clock that ran far
/// ahead, and nobody waits for that time to come.
#[must_use]
pub fn no_lease_beyond(now: Timestamp) -> Timestamp {
    now.plus_micros(LEASE_MICROS_MAX + CLOCK_STEP_MICROS)
}

fn clipped(text: &str) -> String {
    text.chars().take(TEXT_CHARACTERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    const LEASE: i64 = 30 * MICROS_PER_SECOND;

    fn id(number: u128) -> JobId {
        JobId(Uuid::from_u128(number))
    }

    fn draft(attempts_max: i64) -> Draft {
        Draft {
            kind: "count".into(),
            tenant: None,
            key: None,
            arguments: "{}".into(),
            run_at: Timestamp(1_000),
            every_micros: 0,
            attempts_max,
            actor: "platform".into(),
            request_id: "r".into(),
        }
    }

    fn job(attempts_max: i64) -> Job {
        Job::new(id(7), draft(attempts_max), Timestamp(0))
    }

    #[test]
    fn words_of_a_job_are_those_of_its_documents() {
        assert_eq!(State::ALL.map(State::name), ["waiting", "running", "succeeded", "failed", "canceled"]);
        assert_eq!(
            Kind::ALL.map(Kind::name),
            [
                "auditVerification",
                "auditSweep",
                "housekeeping",
                "vault.rotateDataKey",
                "vault.rewrap",
                "litellm.sync",
                "tenant.finishChange"
            ]
        );
        assert!(State::ALL.into_iter().all(|state| State::from_name(state.name()) == Some(state)));
        assert!(Kind::ALL.into_iter().all(|kind| Kind::from_name(kind.name()) == Some(kind)));
        assert_eq!((State::from_name("Waiting"), Kind::from_name("")), (None, None));
    }

    #[test]
    fn a_job_waits_for_its_time_and_is_held_by_one() {
        let mut job = job(3);
        assert!(!job.claim(Timestamp(999), LEASE));
        assert!(job.claim(Timestamp(1_000), LEASE));
        assert_eq!((job.state, job.attempts, job.lease, job.started_at), (State::Running, 1, 1, Timestamp(1_000)));
        assert!(!job.claim(Timestamp(1_001), LEASE));
        job.settle(1, Ending::Succeeded("{\"rows\":3}".into()), Timestamp(2_000)).unwrap();
        assert_eq!((job.state, job.result.as_str(), job.due_at()), (State::Succeeded, "{\"rows\":3}", None));
        assert_eq!(job.settle(1, Ending::Canceled, Timestamp(2_001)), Err(Lost));
        assert_eq!(job.cancel(Timestamp(2_001)), Err(Finished(State::Succeeded)));
    }

    #[test]
    fn a_worker_that_fell_silent_has_lost_its_lease_and_cannot_settle_it() {
        let mut job = job(2);
        assert!(job.claim(Timestamp(1_000), LEASE));
        let progress = Progress { done: 5, total: Some(9), note: "half".into() };
        assert_eq!(job.renew(1, Timestamp(2_000), LEASE, progress.clone(), Some("[5]".into())), Ok(false));
        let lost_at = Timestamp(2_000 + LEASE);
        assert!(job.claim(lost_at, LEASE));
        assert_eq!((job.lease, job.attempts, job.checkpoint.as_str(), &job.progress), (2, 2, "[5]", &progress));
        assert_eq!(job.settle(1, Ending::Succeeded(String::new()), lost_at), Err(Lost));
        assert_eq!(job.renew(1, lost_at, LEASE, Progress::default(), None), Err(Lost));
        // The second was its last try.
        assert!(!job.claim(lost_at.plus_micros(LEASE), LEASE));
        assert_eq!((job.state, job.error.as_str()), (State::Failed, "the worker was lost"));
    }

    /// The clock ran a day ahead when the lease was given.
    #[test]
    fn a_lease_of_a_time_that_is_not_to_come_keeps_nobody_waiting() {
        let (now, day) = (Timestamp(1_000_000), 24 * MICROS_PER_HOUR);
        let ahead = now.plus_micros(day);
        let leased = || {
            let mut job = job(3);
            assert!(job.claim(ahead, LEASE));
            job
        };
        let mut lost = leased();
        assert!(lost.claim(now, LEASE));
        assert_eq!((lost.lease, lost.lease_until), (2, now.plus_micros(LEASE)));
        let mut alive = leased();
        alive.renew(1, now, LEASE, Progress::default(), None).unwrap();
        assert_eq!(alive.lease_until, now.plus_micros(LEASE));
        assert!(!alive.claim(now, LEASE));
        // The longest lease of a node whose clock is a little ahead.
        let mut long = job(3);
        assert!(long.claim(now.plus_micros(CLOCK_STEP_MICROS), LEASE_MICROS_MAX));
        assert!(!long.claim(now, LEASE));
    }

    #[test]
    fn a_series_that_waits_follows_what_is_wanted_now() {
        let hour = MICROS_PER_HOUR;
        let series = |every_micros, run_at| Draft { every_micros, run_at: Timestamp(run_at), ..draft(3) };
        for (stands, wanted, every, run_at) in [
            (series(hour, hour), series(hour, 2 * hour), hour, hour),
            (series(hour, hour), series(60, 70), 60, 70),
            (series(60, 70), series(hour, 2 * hour), hour, 70),
            (series(hour, 30 * hour), series(hour, 2 * hour), hour, 2 * hour),
            (series(0, hour), series(60, 70), 0, hour),
            (series(hour, hour), series(0, 70), hour, hour),
        ] {
            let mut job = Job::new(id(1), stands.clone(), Timestamp(0));
            let changed = job.follow(&wanted);
            assert_eq!((job.draft.every_micros, job.draft.run_at), (every, Timestamp(run_at)), "{wanted:?}");
            assert_eq!(changed, job.draft != stands);
        }
        let mut running = Job::new(id(1), series(hour, 0), Timestamp(0));
        running.claim(Timestamp(1), LEASE);
        assert!(!running.follow(&series(60, 70)));
    }

    #[test]
    fn a_failure_is_tried_again_later_and_later_and_a_hopeless_one_is_not() {
        let mut job = job(3);
        let mut now = Timestamp(1_000);
        for (attempt, least) in [(1, 1), (2, 2)] {
            assert!(job.claim(now, LEASE));
            job.settle(attempt, Ending::Failed("no".into()), now).unwrap();
            let delay = job.draft.run_at.0 - now.0;
            assert!((least * MICROS_PER_SECOND..=least * MICROS_PER_SECOND * 5 / 4).contains(&delay), "{delay}");
            assert!(!job.claim(now, LEASE));
            now = job.draft.run_at;
        }
        assert!(job.claim(now, LEASE));
        job.settle(3, Ending::Failed("no".into()), now).unwrap();
        assert_eq!((job.state, job.error.as_str()), (State::Failed, "no"));

        let mut hopeless = self::job(3);
        hopeless.claim(Timestamp(1_000), LEASE);
        hopeless.settle(1, Ending::Hopeless("never".into()), Timestamp(1_001)).unwrap();
        assert_eq!(hopeless.state, State::Failed);
    }

    /// The rest of a change is tried until it succeeds, soon at first, and whoever is lost on the way.
    #[test]
    fn what_must_be_finished_is_tried_for_ever() {
        let mut job = job(0);
        job.draft.kind = Kind::FinishChange.name().into();
        let mut now = Timestamp(1_000);
        for attempt in 1..100 {
            assert!(job.claim(now, LEASE));
            if attempt % 3 == 0 {
                now = job.lease_until;
                continue;
            }
            job.settle(attempt, Ending::Failed("no".into()), now).unwrap();
            let delay = job.draft.run_at.0 - now.0;
            assert!(delay < BACKOFF_OF_CHANGES.longest_micros * 5 / 4, "{delay}");
            assert!(attempt > 1 || delay < MICROS_PER_SECOND, "{delay}");
            now = job.draft.run_at;
        }
        assert_eq!((job.attempts, job.state), (99, State::Running));
    }

    #[test]
    fn a_worker_that_leaves_costs_no_try() {
        let mut job = job(1);
        for lease in 1..5 {
            assert!(job.claim(Timestamp(1_000 + lease), LEASE));
            job.settle(lease, Ending::Released, Timestamp(1_000 + lease)).unwrap();
            assert_eq!((job.state, job.attempts), (State::Waiting, 0));
        }
    }

    #[test]
    fn canceling_ends_a_waiting_job_at_once_and_a_running_one_with_its_worker() {
        let mut waiting = job(3);
        waiting.cancel(Timestamp(5)).unwrap();
        assert_eq!((waiting.state, waiting.finished_at), (State::Canceled, Timestamp(5)));

        for ending in [Ending::Canceled, Ending::Failed("stopped".into()), Ending::Released] {
            let mut running = job(3);
            running.claim(Timestamp(1_000), LEASE);
            running.cancel(Timestamp(1_001)).unwrap();
            running.cancel(Timestamp(1_002)).unwrap();
            assert_eq!(running.renew(1, Timestamp(1_003), LEASE, Progress::default(), None), Ok(true));
            running.settle(1, ending, Timestamp(1_004)).unwrap();
            assert_eq!(running.state, State::Canceled);
        }
        // Whose worker is lost is canceled by whoever looks next.
        let mut lost = job(3);
        lost.claim(Timestamp(1_000), LEASE);
        lost.cancel(Timestamp(1_001)).unwrap();
        assert!(!lost.claim(Timestamp(1_000 + LEASE), LEASE));
        assert_eq!(lost.state, State::Canceled);
    }

    #[test]
    fn a_series_goes_on_after_success_and_failure_and_ends_when_it_is_canceled() {
        let hour = 3_600 * MICROS_PER_SECOND;
        let ended = |ending| {
            let mut job = Job::new(id(1), Draft { every_micros: hour, ..draft(1) }, Timestamp(0));
            job.claim(Timestamp(1_000), LEASE);
            job.settle(1, ending, Timestamp(hour + 5)).unwrap();
            job.successor(id(2), Timestamp(hour + 5))
        };
        for ending in [Ending::Succeeded(String::new()), Ending::Failed("no".into())] {
            let next = ended(ending).unwrap();
            assert_eq!((next.id, next.state, next.draft.run_at), (id(2), State::Waiting, Timestamp(2 * hour)));
            assert_eq!((next.attempts, next.lease), (0, 0));
        }
        assert_eq!(ended(Ending::Canceled), None);
        assert_eq!(ended(Ending::Released), None);
        assert_eq!(job(1).successor(id(2), Timestamp(0)), None);
    }

    #[test]
    fn what_a_worker_says_is_clipped() {
        let mut job = job(1);
        job.claim(Timestamp(1_000), LEASE);
        let note = "é".repeat(TEXT_CHARACTERS_MAX + 1);
        let progress = Progress { done: 1, total: None, note: note.clone() };
        job.renew(1, Timestamp(1_001), LEASE, progress, Some("x".repeat(DOCUMENT_BYTES_MAX + 1))).unwrap();
        assert_eq!((job.progress.note.chars().count(), job.checkpoint.as_str()), (TEXT_CHARACTERS_MAX, ""));
        job.settle(1, Ending::Hopeless(note), Timestamp(1_002)).unwrap();
        assert_eq!(job.error.chars().count(), TEXT_CHARACTERS_MAX);
    }

    proptest! {
        /// Whatever workers do, in whatever order: a lease is settled once, by its holder; tries stay below their limit;
        /// what is finished stays as it is.
        #[test]
        fn no_lease_is_settled_twice(steps in proptest::collection::vec((0_u8..6, 0_i64..4, 0_i64..40), 1..80)) {
            let mut job = job(3);
            let mut now = Timestamp(1_000);
            let mut settled = std::collections::BTreeSet::new();
            for (what, back, seconds) in steps {
                now = now.plus_micros(seconds * MICROS_PER_SECOND);
                let before = job.clone();
                let lease = job.lease - back;
                match what {
                    0 | 1 => { job.claim(now, LEASE); }
                    2 => { let _ = job.renew(lease, now, LEASE, Progress::default(), None); }
                    3 => { let _ = job.cancel(now); }
                    _ => {
                        let ending = [Ending::Succeeded(String::new()), Ending::Failed("no".into())][usize::from(what - 4)].clone();
                        if job.settle(lease, ending, now).is_ok() {
                            prop_assert!(settled.insert(lease));
                            prop_assert_eq!(lease, before.lease);
                        }
                    }
                }
                prop_assert!(job.attempts <= job.draft.attempts_max);
                prop_assert!(job.lease >= before.lease);
                if before.state.is_finished() {
                    prop_assert_eq!(&job, &before);
                }
                prop_assert_eq!(job.state.is_finished(), job.finished_at != Timestamp(0));
            }
        }
    }
}
