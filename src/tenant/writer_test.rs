//! What a unit of work comes to, whichever way it is written.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::Semaphore;

use super::guess::Guess;
use super::message::{Batch, Permits};
use super::work::{Reply, Unit, Work};
use super::writer::{self, Standstill, Turn};
use crate::domain::books::Books;
use crate::domain::period::PeriodKind;
use crate::domain::quota::{Metric, Scope};
use crate::domain::time::{MICROS_PER_MINUTE, Timestamp};
use crate::domain::usage::{Outcome, UsageEvent};
use crate::store::database::Connection;
use crate::store::load::{self, Opening};
use crate::store::posting::Expecting;
use crate::store::tests::harness::{House, NOW, event, opening, quota_of, set_quotas};

crate::store::tests::conformance!(
    a_guess_changes_nothing_but_the_cost,
    a_batch_is_recorded_when_it_brings_something,
    a_record_names_the_request_of_its_only_batch,
    a_roll_reads_what_runs_again_and_writes_nothing,
);

/// Everything a tenant's tables say that does not name the tenant or an alert by its derived id.
const TABLES: [&str; 6] = [
    "SELECT position || ' ' || source || ' ' || event_id || ' ' || prompt_tokens || ' ' || recorded_at
        FROM usage_ledger ORDER BY position",
    "SELECT source || ' ' || event_id || ' ' || body FROM usage_conflict ORDER BY event_id, body",
    "SELECT start_at || ' ' || user_id || ' ' || model || ' ' || events || ' ' || prompt_tokens || ' ' || cost_nano_usd
        FROM usage_rollup ORDER BY start_at, user_id, model",
    "SELECT period_start || ' ' || used FROM counter ORDER BY period_start, used",
    "SELECT threshold || ' ' || used || ' ' || fired_at FROM alert ORDER BY threshold, used",
    "SELECT seq || ' ' || action || ' ' || CASE WHEN action = 'usage.committed' THEN payload ELSE '' END
        FROM audit_record ORDER BY seq",
];

/// One tenant under test: one guesses, the other always asks.
struct Side {
    connection: Connection,
    books: Arc<Books>,
    guess: Guess,
}

impl Side {
    async fn of(house: &House) -> Side {
        let (_, mut connection, books) = house.owner().await;
        let quotas = vec![
            quota_of(Scope::Tenant, Metric::Tokens, PeriodKind::Day, 400_000),
            quota_of(Scope::User("ada".into()), Metric::Requests, PeriodKind::Minute, 900),
        ];
        let books = Arc::new(set_quotas(&mut connection, &books, quotas, NOW).await);
        Side { connection, books, guess: Guess::default() }
    }

    async fn write(&mut self, batches: &[Vec<UsageEvent>]) -> Vec<Vec<Outcome>> {
        self.work(batches.iter().map(|events| record(events.clone(), "")).collect()).await
    }

    async fn work(&mut self, work: Vec<Work>) -> Vec<Vec<Outcome>> {
        let unit = Unit { books: self.books.clone(), work };
        let written = writer::write(&mut self.connection, &mut self.guess, unit).await.unwrap();
        self.books = written.books;
        let outcomes = |reply| match reply {
            Reply::Record { outcomes, .. } => outcomes,
            other => panic!("nobody asked for {other:?}"),
        };
        written.answers.into_iter().map(outcomes).collect()
    }

    /// The request and the payload of the chain's last record.
    async fn last_record(&mut self) -> (Value, Value) {
        let sql = "SELECT bytes, payload FROM audit_record ORDER BY seq DESC LIMIT 1";
        let rows = self.connection.fetch(sql, &[]).await.unwrap();
        let record: Value = serde_json::from_slice(&rows[0].optional_bytes(0).unwrap().unwrap()).unwrap();
        (record["requestId"].clone(), serde_json::from_str(&rows[0].text(1).unwrap()).unwrap())
    }

    async fn tables(&mut self) -> Vec<Vec<String>> {
        let mut tables = Vec::new();
        for sql in TABLES {
            let rows = self.connection.fetch(sql, &[]).await.unwrap();
            tables.push(rows.iter().map(|row| row.text(0).unwrap()).collect());
        }
        tables
    }
}

/// Work that records `events` at `now`.
pub(super) fn record_at(events: Vec<UsageEvent>, now: Timestamp) -> Work {
    match record(events, "") {
        Work::Record { batch, reply } => Work::Record { batch: Batch { now, ..batch }, reply },
        other => other,
    }
}

impl Permits {
    /// Of nobody's semaphores.
    pub(super) fn none() -> Permits {
        let permit = || Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        Permits { _events: permit(), _kibibytes: permit() }
    }
}

pub(super) fn record(events: Vec<UsageEvent>, request_id: &str) -> Work {
    let identities = events.iter().map(UsageEvent::identity).collect();
    let permits = Permits::none();
    let batch = Batch {
        events,
        identities,
        cursor: None,
        request_id: request_id.into(),
        now: NOW,
        permits,
        span: tracing::Span::none(),
    };
    let (reply, _) = ractor::concurrency::oneshot();
    Work::Record { batch, reply: reply.into() }
}

/// Numbers that look like chance and are the same in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// A unit of new events, into which `known` in a hundred come that may have been there before, some with another body.
fn unit(chance: &mut Chance, next: &mut u64, known: u64) -> Vec<Vec<UsageEvent>> {
    (0..2).map(|_| (0..chance.below(150)).map(|_| one(chance, next, known)).collect()).collect()
}

fn one(chance: &mut Chance, next: &mut u64, known: u64) -> UsageEvent {
    let again = chance.below(100) < known;
    let number = if again { chance.below(*next + 1) } else { *next };
    *next += u64::from(!again);
    let tokens = if again && chance.below(4) == 0 { 77 } else { 10 + number as i64 % 3 };
    event(&format!("event-{number}"), ["ada", "bob", "eve"][number as usize % 3], NOW, tokens)
}

async fn a_guess_changes_nothing_but_the_cost(house: &House) {
    let (mut guessing, mut asking) = (Side::of(house).await, Side::of(house).await);
    let (mut chance, mut next) = (Chance(0x9e37_79b9_7f4a_7c15), 0);
    let (mut guesses, mut wrong) = (0, 0);
    // Runs of clean units, after which events are taken for new again, and of units with more and more that are known.
    for round in 0..72 {
        let known = [0, 0, 1, 0, 30, 0, 95, 0][round / 9];
        let batches = unit(&mut chance, &mut next, known);
        let guessed = guessing.guess.expecting() == Expecting::New;
        asking.guess.was_wrong();
        let (one, other) = (guessing.write(&batches).await, asking.write(&batches).await);
        assert_eq!(one, other, "round {round}");
        guesses += usize::from(guessed);
        wrong += usize::from(guessed && guessing.guess.expecting() == Expecting::Any);
    }
    assert!(wrong > 2 && guesses > 4 * wrong, "{guesses} guesses, {wrong} of them wrong");
    assert_eq!(guessing.tables().await, asking.tables().await);
    assert_eq!(guessing.books.lifetime, asking.books.lifetime);
    assert_eq!(guessing.books.next_position, asking.books.next_position);
    assert!(guessing.books.lifetime.events > 1_000);
}

async fn a_batch_is_recorded_when_it_brings_something(house: &House) {
    use Outcome::{Accepted, Conflict, Duplicate};
    let mut side = Side::of(house).await;
    let one = |id: &str, tokens| event(id, "ada", NOW, tokens);
    let begun = side.books.head.seq;
    // What arrives, what becomes of it, and the counts in the record it leaves: events, duplicates, conflicts.
    let batches = [
        (vec![one("a", 10), one("b", 20)], vec![Accepted, Accepted], Some((2, 0, 0))),
        // Nothing has changed, so there is nothing to prove.
        (vec![one("a", 10), one("b", 20)], vec![Duplicate, Duplicate], None),
        // Counts nothing, and is never silent.
        (vec![one("a", 11)], vec![Conflict], Some((0, 0, 1))),
        (vec![one("c", 5), one("a", 10), one("b", 21)], vec![Accepted, Duplicate, Conflict], Some((1, 1, 1))),
        (vec![one("d", 5)], vec![Accepted], Some((1, 0, 0))),
    ];
    let mut records = 0;
    for (events, expected, counts) in batches {
        let position = side.books.next_position;
        assert_eq!(side.write(std::slice::from_ref(&events)).await, std::slice::from_ref(&expected));
        let counted = expected.contains(&Accepted);
        let positions = if counted { events.len() as i64 } else { 0 };
        assert_eq!(side.books.next_position, position + positions);
        records += i64::from(counts.is_some());
        assert_eq!(side.books.head.seq, begun + records);
        if let Some((events, duplicates, conflicts)) = counts {
            let (_, payload) = side.last_record().await;
            let stated = ["events", "duplicates", "conflicts"].map(|name| payload[name].as_i64().unwrap());
            assert_eq!(stated, [events, duplicates, conflicts]);
        }
    }
    assert_eq!((side.books.lifetime.events, side.books.lifetime.amounts.prompt_tokens), (4, 40));
}

async fn a_record_names_the_request_of_its_only_batch(house: &House) {
    let mut side = Side::of(house).await;
    let one = |id: &str| vec![event(id, "ada", NOW, 10)];
    side.work(vec![record(one("a"), "request-7")]).await;
    assert_eq!(side.last_record().await.0, "request-7");
    side.work(vec![record(one("b"), "request-8"), record(one("c"), "request-9")]).await;
    assert_eq!(side.last_record().await.0, "");
}

/// The clock is set back, after others have opened the tenant, into a minute that they took for over.
async fn a_roll_reads_what_runs_again_and_writes_nothing(house: &House) {
    let mut side = Side::of(house).await;
    side.write(&[["a", "b", "c"].map(|id| event(id, "ada", NOW, 10)).to_vec()]).await;
    let later = NOW.plus_micros(2 * MICROS_PER_MINUTE);
    let opening = Opening { now: later, ..opening(side.books.tenant, side.books.head) };
    side.books = Arc::new(load::take_over(&mut side.connection, opening).await.unwrap());
    assert!(side.books.knows_running(later) && !side.books.knows_running(NOW));
    let (version, head) = (side.books.version, side.books.head);
    side.work(vec![Work::Roll { now: NOW }]).await;
    assert!(side.books.knows_running(NOW));
    let used: Vec<i64> = side.books.standings(NOW).iter().map(|standing| standing.used).collect();
    assert_eq!(used, [93, 3]);
    assert_eq!((side.books.version, side.books.head), (version, head));
    // What was read is what is added to.
    side.write(&[vec![event("d", "ada", NOW, 10)]]).await;
    assert_eq!(side.books.standings(NOW)[1].used, 4);
}

#[test]
fn a_standstill_is_told_once_and_is_over_with_the_next_commit() {
    let (rolled_back, committed, idle) = ((true, false), (false, true), (false, false));
    let units = [committed, rolled_back, rolled_back, idle, committed, committed, rolled_back];
    let mut standstill = Standstill::default();
    let told = units.map(|(rolled_back, committed)| standstill.after(rolled_back, committed));
    assert_eq!(told, [None, Some(Turn::Stuck), None, None, Some(Turn::Freed), None, Some(Turn::Stuck)]);
}
