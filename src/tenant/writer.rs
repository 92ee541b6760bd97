//! The writer: owns the tenant's write connection, and runs one transaction for each unit of work.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;
use tracing::{Instrument, Span};

use super::guess::Guess;
use super::ledger::Ledger;
use super::message::{Batch, ChangeRefused, Message};
use super::record::{self, Offered};
use super::work::{Reply, Unit, Work, Written};
use super::{change, gateway, reconcile};
use crate::domain::books::{Books, Posting};
use crate::domain::quota::Standing;
use crate::domain::reconcile::finding::Finding;
use crate::domain::request::Answer;
use crate::domain::time::Timestamp;
use crate::domain::usage::{Outcome, Refusal};
use crate::fault;
use crate::store::StoreError;
use crate::store::database::Connection;
use crate::store::posting::Expecting;

/// How often a unit that was surely rolled back is tried before its callers are told to come back.
pub(super) const TRIES_MAX: u32 = 5;
/// First delay between tries; doubles.
const RETRY_DELAY: Duration = Duration::from_millis(10);

pub(crate) struct Birth {
    pub(crate) connection: Connection,
    pub(crate) keeper: ActorRef<Message>,
}

pub(crate) struct Writer;

pub(crate) struct State {
    connection: Connection,
    keeper: ActorRef<Message>,
    guess: Guess,
    standstill: Standstill,
}

/// Whether the last unit was rolled back too often, and nothing was committed since. On-call hears once that nothing can be
/// written, and once that something can again; the metrics count what is between.
#[derive(Debug, Default)]
pub(super) struct Standstill(bool);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Stuck,
    Freed,
}

impl Standstill {
    /// Tells on-call what a unit has changed about it.
    pub(super) fn tell(&mut self, written: &Written) {
        let (tenant, reason) = (written.books.tenant, written.rolled_back.as_deref());
        match self.after(reason.is_some(), written.committed) {
            Some(Turn::Stuck) => {
                tracing::error!(%tenant, reason, "commits are rolled back, callers must come back");
            }
            Some(Turn::Freed) => tracing::info!(%tenant, "commits succeed again"),
            None => {}
        }
    }

    /// What a unit has changed about it. One that had nothing to commit says nothing.
    pub(super) fn after(&mut self, was_rolled_back: bool, was_committed: bool) -> Option<Turn> {
        let turn = match (self.0, was_rolled_back) {
            (false, true) => Turn::Stuck,
            (true, false) if was_committed => Turn::Freed,
            _ => return None,
        };
        self.0 = turn == Turn::Stuck;
        Some(turn)
    }
}

impl Actor for Writer {
    type Msg = Unit;
    type State = State;
    type Arguments = Birth;

    async fn pre_start(&self, _: ActorRef<Unit>, birth: Birth) -> Result<State, ActorProcessingErr> {
        Ok(State {
            connection: birth.connection,
            keeper: birth.keeper,
            guess: Guess::default(),
            standstill: Standstill::default(),
        })
    }

    /// Doubt is a restart: an error that leaves the outcome of a commit unknown ends the pair.
    async fn handle(&self, _: ActorRef<Unit>, unit: Unit, state: &mut State) -> Result<(), ActorProcessingErr> {
        let span = commit_span(&unit);
        let written = Box::pin(write(&mut state.connection, &mut state.guess, unit).instrument(span)).await?;
        state.standstill.tell(&written);
        state.keeper.cast(Message::Written(written))?;
        Ok(())
    }
}

/// The commit's span: a part of the first batch's trace, linked to those of the others.
fn commit_span(unit: &Unit) -> Span {
    let mut sources = unit.work.iter().filter_map(|piece| match piece {
        Work::Record { batch, .. } => Some(&batch.span),
        _ => None,
    });
    let parent = sources.next().cloned().unwrap_or_else(Span::none);
    let events: usize = unit.work.iter().map(Work::events).sum();
    let span = tracing::info_span!(parent: &parent, "commit", tenant = %unit.books.tenant, events);
    sources.for_each(|source| {
        span.follows_from(source);
    });
    span
}

/// Writes a unit; tries again what was surely rolled back, and takes apart a unit that holds something unwritable.
///
/// # Errors
/// [`StoreError`] when the outcome of a commit is unknown, or the database refuses whatever it is given: the pair then ends,
/// and no event is refused for it.
pub async fn write(ledger: &mut impl Ledger, guess: &mut Guess, mut unit: Unit) -> Result<Written, StoreError> {
    let mut patience = Patience::new();
    loop {
        match transact(ledger, &unit.books, &mut unit.work, guess.expecting()).await {
            Ok(done) => {
                guess.learn(&done.outcomes);
                return Ok(done.into_written(unit));
            }
            Err(StoreError::Known) => {
                metrics::counter!("platform_api_commits_total", "outcome" => "known_events").increment(1);
                guess.was_wrong();
            }
            Err(StoreError::Retryable(reason)) => {
                if !patience.waits(ledger, &unit.books, &reason).await {
                    return Ok(given_up(unit, reason));
                }
            }
            Err(StoreError::Unwritable(reason)) => {
                ledger.check_owner(&unit.books).await?;
                tracing::error!(tenant = %unit.books.tenant, reason, "a unit cannot be written, taking it apart");
                return Box::pin(take_apart(ledger, unit)).await;
            }
            Err(error) => return Err(ending(error)),
        }
    }
}

/// Counts what ends the pair. That nobody knows what became of a commit is one thing; that the database refuses whatever it
/// is given is another, and no fault of what was to be written.
fn ending(error: StoreError) -> StoreError {
    let outcome = match &error {
        StoreError::Wrong(_) => "refused",
        // Counted when patience was lost.
        StoreError::Retryable(_) => return error,
        _ => "unknown",
    };
    metrics::counter!("platform_api_commits_total", "outcome" => outcome).increment(1);
    error
}

/// How often more what was surely rolled back is tried, and how long is waited before.
struct Patience {
    attempt: u32,
    delay: Duration,
}

impl Patience {
    fn new() -> Patience {
        Patience { attempt: 1, delay: RETRY_DELAY }
    }

    /// Waits before another try; `false` when it was tried often enough.
    async fn waits(&mut self, ledger: &mut impl Ledger, books: &Books, reason: &str) -> bool {
        if self.attempt >= TRIES_MAX {
            metrics::counter!("platform_api_commits_total", "outcome" => "rolled_back").increment(1);
            return false;
        }
        tracing::debug!(tenant = %books.tenant, attempt = self.attempt, reason, "commit was rolled back, trying again");
        metrics::counter!("platform_api_commits_total", "outcome" => "tried_again").increment(1);
        ledger.pause(self.delay).await;
        self.delay *= 2;
        self.attempt += 1;
        true
    }
}

/// Nothing was written. Who asked for a change is told so; who brought events is told to come back, by a port that closes.
fn given_up(unit: Unit, reason: String) -> Written {
    let settled = unit.work.iter().any(Work::is_pass);
    let answers = unit.work.into_iter().filter_map(|piece| match piece {
        Work::Replace { reply, .. } => Some(Reply::Replace { reply, answer: Err(ChangeRefused::RolledBack) }),
        Work::ChangeTimeZone { reply, .. } => {
            Some(Reply::ChangeTimeZone { reply, answer: Err(ChangeRefused::RolledBack) })
        }
        Work::Treat { reply, .. } => Some(Reply::Treated { reply, answer: Err(ChangeRefused::RolledBack) }),
        Work::Task(mut task) => {
            task.rolled_back();
            Some(Reply::Task(task))
        }
        _ => None,
    });
    let rolled_back = Some(reason);
    Written { answers: answers.collect(), books: unit.books, owed_more: 0, committed: false, settled, rolled_back }
}

/// What a committed transaction leaves to be told.
struct Done {
    books: Arc<Books>,
    outcomes: Vec<Vec<Outcome>>,
    changes: Vec<Changed>,
    owed_more: i64,
    committed: bool,
}

/// The result of a piece of work that is not usage, in the unit's order.
enum Changed {
    Replaced(Result<Answer<Vec<Standing>>, ChangeRefused>),
    TimeZone(Result<(), ChangeRefused>),
    Requests(Vec<bool>),
    Treated(Box<Result<Answer<Finding>, ChangeRefused>>),
    Done,
}

/// One transaction for all the work.
async fn transact(
    ledger: &mut impl Ledger,
    before: &Arc<Books>,
    work: &mut [Work],
    expecting: Expecting,
) -> Result<Done, StoreError> {
    let started = Instant::now();
    let now = work.iter().map(Work::now).max().unwrap_or(Timestamp(0));
    let mut posting = Posting::open(before, now, ledger.salt_seed());
    ledger.begin().await?;
    let result = fill(ledger, before, &mut posting, work, expecting).await;
    let (outcomes, changes) = match result {
        Ok(filled) => filled,
        Err(error) => {
            ledger.rollback().await?;
            return Err(error);
        }
    };
    if posting.is_empty() {
        ledger.rollback().await?;
        let books = if posting.books.known == before.known {
            before.clone()
        } else {
            // What was read is the owner's to show.
            ledger.check_owner(before).await?;
            Arc::new(posting.books)
        };
        return Ok(Done { books, outcomes, changes, owed_more: 0, committed: false });
    }
    posting.close();
    fault::point("commit.filled");
    let settled = match ledger.write(before, &posting).await {
        Ok(settled) => settled,
        Err(error) => {
            ledger.rollback().await?;
            return Err(error);
        }
    };
    fault::point("commit.before");
    ledger.commit().await?;
    if fault::is_planted("commit.reply-lost") {
        return Err(StoreError::Unknown("the reply was lost".into()));
    }
    fault::point("commit.after");
    observe(&posting, &outcomes, started);
    let owed_more = posting.owed.len() as i64 - settled;
    Ok(Done { books: Arc::new(posting.books), outcomes, changes, owed_more, committed: true })
}

/// What the clock makes run again first, then changes, then usage, then whatever time alone has changed.
async fn fill(
    ledger: &mut impl Ledger,
    before: &Books,
    posting: &mut Posting,
    work: &mut [Work],
    expecting: Expecting,
) -> Result<(Vec<Vec<Outcome>>, Vec<Changed>), StoreError> {
    change::look(ledger, posting).await?;
    let mut changes = Vec::new();
    let mut batches: Vec<&Batch> = Vec::new();
    for piece in work {
        match piece {
            Work::Record { batch, .. } => batches.push(batch),
            Work::Task(task) => {
                let database = ledger.database().ok_or_else(no_database)?;
                task.run(database, posting).await?;
                changes.push(Changed::Done);
            }
            Work::Replace { change, .. } => {
                changes.push(Changed::Replaced(change::replace_quotas(ledger, posting, change).await?));
            }
            Work::ChangeTimeZone { name, entry, once, .. } => {
                changes.push(Changed::TimeZone(change::change_time_zone(ledger, posting, name, entry, once).await?));
            }
            Work::Append { entry, once, .. } => {
                change::append(ledger, posting, entry, once.as_deref()).await?;
                changes.push(Changed::Done);
            }
            Work::Settle { attempts, .. } => {
                attempts.iter().cloned().for_each(|attempt| posting.attempt(attempt));
                changes.push(Changed::Done);
            }
            Work::GatewayRequests { batch, .. } => {
                changes.push(Changed::Requests(gateway::requests(ledger, posting, batch).await?));
            }
            Work::GatewayReadings { readings, .. } => {
                gateway::readings(ledger, posting, readings).await?;
                changes.push(Changed::Done);
            }
            Work::Reconcile { pass, .. } => {
                reconcile::settle(ledger, posting, pass).await?;
                changes.push(Changed::Done);
            }
            Work::Treat { change, .. } => {
                changes.push(Changed::Treated(Box::new(reconcile::treat(ledger, posting, change).await?)));
            }
            Work::Roll { .. } => changes.push(Changed::Done),
        }
    }
    let outcomes = if batches.is_empty() {
        Vec::new()
    } else {
        record::record(ledger, before, posting, &batches, expecting).await?
    };
    posting.roll();
    Ok((outcomes, changes))
}

/// A resource's change where there is no database for it, which only a simulated day is without.
fn no_database() -> StoreError {
    StoreError::Unwritable("there is no database for this change".into())
}

impl Done {
    /// Pairs every piece of work with its result.
    fn into_written(self, unit: Unit) -> Written {
        let settled = unit.work.iter().any(Work::is_pass);
        let Done { books, outcomes, changes, owed_more, committed } = self;
        let (mut outcomes, mut changes) = (outcomes.into_iter(), changes.into_iter());
        let answers = unit.work.into_iter().filter_map(|piece| match piece {
            Work::Record { batch, reply } => outcomes.next().map(|outcomes| Reply::Record { batch, reply, outcomes }),
            Work::Replace { reply, .. } => match changes.next() {
                Some(Changed::Replaced(answer)) => Some(Reply::Replace { reply, answer }),
                _ => None,
            },
            Work::ChangeTimeZone { reply, .. } => match changes.next() {
                Some(Changed::TimeZone(answer)) => Some(Reply::ChangeTimeZone { reply, answer }),
                _ => None,
            },
            Work::GatewayRequests { batch, reply } => match changes.next() {
                Some(Changed::Requests(new)) => Some(Reply::Requests { batch, reply, new }),
                _ => None,
            },
            Work::GatewayReadings { readings, reply } => changes.next().map(|_| Reply::Readings { readings, reply }),
            Work::Treat { reply, .. } => match changes.next() {
                Some(Changed::Treated(answer)) => Some(Reply::Treated { reply, answer: *answer }),
                _ => None,
            },
            Work::Task(task) => changes.next().map(|_| Reply::Task(task)),
            Work::Append { reply, .. } | Work::Settle { reply, .. } => changes.next().map(|_| Reply::Done { reply }),
            Work::Roll { .. } | Work::Reconcile { .. } => changes.next().and(None),
        });
        Written { answers: answers.collect(), books, owed_more, committed, settled, rolled_back: None }
    }
}

/// A unit that holds something unwritable is written piece by piece, and a batch event by event, so that one unwritable
/// event is refused (and quarantined by whoever sent it) and everything else is counted.
async fn take_apart(ledger: &mut impl Ledger, unit: Unit) -> Result<Written, StoreError> {
    let settled = unit.work.iter().any(Work::is_pass);
    let mut written =
        Written { books: unit.books, answers: Vec::new(), owed_more: 0, committed: false, settled, rolled_back: None };
    for piece in unit.work {
        let mut one = Unit { books: written.books.clone(), work: vec![piece] };
        match transact_patiently(ledger, &mut one).await {
            Ok(done) => merge(&mut written, done.into_written(one)),
            Err(StoreError::Unwritable(reason)) => {
                tracing::error!(tenant = %written.books.tenant, reason, "a piece of work cannot be written");
                if let Some(Work::Record { batch, reply }) = one.work.pop() {
                    let outcomes = event_by_event(ledger, &mut written, &batch).await?;
                    written.answers.push(Reply::Record { batch, reply, outcomes });
                }
            }
            Err(StoreError::Retryable(reason)) => merge(&mut written, given_up(one, reason)),
            Err(error) => return Err(ending(error)),
        }
    }
    Ok(written)
}

/// One transaction for a piece of work, tried again as long as it is surely rolled back and there is patience.
async fn transact_patiently(ledger: &mut impl Ledger, one: &mut Unit) -> Result<Done, StoreError> {
    let mut patience = Patience::new();
    loop {
        match transact(ledger, &one.books, &mut one.work, Expecting::Any).await {
            Err(StoreError::Retryable(reason)) if patience.waits(ledger, &one.books, &reason).await => {}
            ended => return ended,
        }
    }
}

fn merge(written: &mut Written, one: Written) {
    written.books = one.books;
    written.answers.extend(one.answers);
    written.owed_more += one.owed_more;
    written.committed |= one.committed;
    written.rolled_back = one.rolled_back.or(written.rolled_back.take());
}

async fn event_by_event(
    ledger: &mut impl Ledger,
    written: &mut Written,
    batch: &Batch,
) -> Result<Vec<Outcome>, StoreError> {
    let mut outcomes = Vec::with_capacity(batch.events.len());
    for (event, identity) in batch.events.iter().zip(&batch.identities) {
        let offered = Offered { events: &[event], identities: &[*identity], expecting: Expecting::Any };
        let mut patience = Patience::new();
        let outcome = loop {
            match one_event(ledger, written, &offered, batch).await {
                Err(StoreError::Unwritable(_)) => {
                    // It may have met what another owner has written since.
                    ledger.check_owner(&written.books).await?;
                    break Outcome::Refused(Refusal::Malformed);
                }
                Err(StoreError::Retryable(reason)) if patience.waits(ledger, &written.books, &reason).await => {}
                // Those before it are counted, which its sender cannot be told: the batch comes back whole.
                ended => break ended.map_err(ending)?,
            }
        };
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// One transaction for an event; what became of it.
async fn one_event(
    ledger: &mut impl Ledger,
    written: &mut Written,
    offered: &Offered<'_>,
    batch: &Batch,
) -> Result<Outcome, StoreError> {
    let mut posting = Posting::open(&written.books, batch.now, ledger.salt_seed());
    ledger.begin().await?;
    match fill_one(ledger, &written.books, &mut posting, offered, &batch.request_id).await {
        Ok((outcome, settled)) => {
            ledger.commit().await?;
            written.owed_more += posting.owed.len() as i64 - settled;
            written.books = Arc::new(posting.books);
            written.committed = true;
            Ok(outcome)
        }
        Err(error) => {
            ledger.rollback().await?;
            Err(error)
        }
    }
}

/// What became of it, and how many deliveries were settled with it.
async fn fill_one(
    ledger: &mut impl Ledger,
    before: &Books,
    posting: &mut Posting,
    offered: &Offered<'_>,
    request_id: &str,
) -> Result<(Outcome, i64), StoreError> {
    let outcomes = record::record_events(ledger, before, posting, offered, request_id).await?;
    posting.roll();
    posting.close();
    let settled = ledger.write(before, posting).await?;
    Ok((outcomes.first().copied().unwrap_or(Outcome::Refused(Refusal::Malformed)), settled))
}

/// Once per commit: one line, and the figures.
fn observe(posting: &Posting, outcomes: &[Vec<Outcome>], started: Instant) {
    let events: usize = outcomes.iter().map(Vec::len).sum();
    let seconds = started.elapsed().as_secs_f64();
    metrics::counter!("platform_api_commits_total", "outcome" => "committed").increment(1);
    metrics::histogram!("platform_api_commit_seconds").record(seconds);
    metrics::histogram!("platform_api_commit_events").record(events as f64);
    metrics::counter!("platform_api_audit_records_total").increment(posting.records.len() as u64);
    observe_reconciliation(posting);
    tracing::debug!(
        tenant = %posting.books.tenant,
        version = posting.books.version,
        events,
        alerts = posting.fired.len(),
        commit_ms = seconds * 1_000.0,
        "committed"
    );
}

fn observe_reconciliation(posting: &Posting) {
    for judged in &posting.gateway.judged {
        let (proof, verdict) = (judged.proof.name(), judged.verdict.name());
        metrics::counter!("platform_api_reconcile_windows_total", "proof" => proof, "verdict" => verdict).increment(1);
    }
    for finding in posting.gateway.findings.values() {
        let (cause, status) = (finding.found.cause.name(), finding.status.name());
        if finding.changed_at == posting.now() {
            let counter =
                metrics::counter!("platform_api_reconcile_findings_total", "cause" => cause, "status" => status);
            counter.increment(1);
        }
    }
}
