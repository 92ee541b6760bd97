//! What the writer does with a database that cannot be written for a while.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use ractor::concurrency::oneshot;
use uuid::Uuid;

use super::guess::Guess;
use super::ledger::Ledger;
use super::message::{ChangeRefused, QuotaDraft, ReplaceQuotas, TreatFinding};
use super::task::{Declined, Task, untold};
use super::work::{Reply, Unit, Work, Written};
use super::writer::{self, TRIES_MAX};
use super::writer_test::{record, record_at};
use crate::domain::books::{Books, Counter, Missing, Posting};
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::ids::{AlertId, FindingId};
use crate::domain::notice::{Attempt, AttemptResult, Delivery};
use crate::domain::period::PeriodKind;
use crate::domain::quota::{Metric, Quota, Scope};
use crate::domain::reconcile::pass::Treatment;
use crate::domain::request::{Answer, Request};
use crate::domain::routing::{QuietHours, Route, Routing};
use crate::domain::sorting::Inserted;
use crate::domain::time::{MICROS_PER_MINUTE, Timestamp};
use crate::domain::usage::{Identity, Outcome, Refusal, UsageEvent};
use crate::store::database::Connection;
use crate::store::posting::Expecting;
use crate::store::tests::harness::{House, NOW, event, quota_of, set_quotas};
use crate::store::{StoreError, load, notice};
use crate::tenant::acknowledge::Acknowledge;

crate::store::tests::conformance!(
    a_unit_is_tried_until_it_is_written,
    whoever_asked_is_told_when_a_unit_is_given_up,
    every_piece_of_a_unit_is_answered,
    what_cannot_be_written_holds_up_nothing_else,
    no_event_is_refused_for_what_is_not_its_fault,
    a_piece_that_meets_a_busy_database_is_tried_again,
    a_piece_that_is_given_up_is_told_and_seen,
    an_event_that_meets_a_busy_database_is_tried_again_and_not_for_ever,
    what_is_owed_is_what_came_less_what_was_settled,
    what_is_withdrawn_is_owed_no_more,
);

/// The event that the database refuses.
const POISON: &str = "poison";

/// A real database that is busy for the next `busy` transactions, and refuses one event for ever. Its first refusal, but for
/// those that are `spared`, leaves it busy for `busy_after` transactions.
struct Busy {
    connection: Connection,
    busy: u32,
    busy_after: u32,
    spared: u32,
    pauses: Vec<Duration>,
}

impl Ledger for Busy {
    async fn begin(&mut self) -> Result<(), StoreError> {
        if self.busy > 0 {
            self.busy -= 1;
            return Err(StoreError::Retryable("busy".into()));
        }
        self.connection.begin().await
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        self.connection.commit().await
    }

    async fn rollback(&mut self) -> Result<(), StoreError> {
        self.connection.rollback().await
    }

    async fn insert_events(
        &mut self,
        first_position: i64,
        recorded_at: Timestamp,
        events: &[&UsageEvent],
        keys: &[Identity],
        expecting: Expecting,
    ) -> Result<Vec<Inserted>, StoreError> {
        if events.iter().any(|event| event.event_id == POISON) {
            match self.spared.checked_sub(1) {
                Some(left) => self.spared = left,
                None => self.busy = std::mem::take(&mut self.busy_after),
            }
            return Err(StoreError::Unwritable("a value that no column takes".into()));
        }
        self.connection.insert_events(first_position, recorded_at, events, keys, expecting).await
    }

    async fn keep_conflicts(
        &mut self,
        recorded_at: Timestamp,
        conflicts: &[(&UsageEvent, Identity)],
    ) -> Result<(), StoreError> {
        self.connection.keep_conflicts(recorded_at, conflicts).await
    }

    async fn counter(&mut self, books: &Books, missing: &Missing, before_position: i64) -> Result<Counter, StoreError> {
        self.connection.counter(books, missing, before_position).await
    }

    async fn find_request(&mut self, key: &str) -> Result<Option<([u8; 32], String)>, StoreError> {
        self.connection.find_request(key).await
    }

    async fn keep_request(
        &mut self,
        key: &str,
        body_hash: &[u8; 32],
        answer: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.connection.keep_request(key, body_hash, answer, now).await
    }

    fn database(&mut self) -> Option<&mut Connection> {
        Some(&mut self.connection)
    }

    async fn write(&mut self, before: &Books, posting: &Posting) -> Result<i64, StoreError> {
        Ledger::write(&mut self.connection, before, posting).await
    }

    async fn check_owner(&mut self, before: &Books) -> Result<(), StoreError> {
        self.connection.check_owner(before).await
    }

    /// Time is told, and not spent.
    async fn pause(&mut self, delay: Duration) {
        self.pauses.push(delay);
    }

    fn salt_seed(&mut self) -> [u8; 32] {
        self.connection.salt_seed()
    }
}

impl Busy {
    async fn write(&mut self, books: Arc<Books>, work: Vec<Work>) -> Written {
        writer::write(self, &mut Guess::default(), Unit { books, work }).await.unwrap()
    }

    async fn owed(&mut self) -> Vec<Delivery> {
        notice::due(&mut self.connection, NOW, 100).await.unwrap()
    }
}

async fn write(house: &House, busy: u32, work: Vec<Work>) -> (Written, Busy) {
    let (_, connection, books) = house.owner().await;
    let mut ledger = Busy { connection, busy, busy_after: 0, spared: 0, pauses: Vec::new() };
    (ledger.write(Arc::new(books), work).await, ledger)
}

fn replace(quotas: Vec<Quota>) -> ReplaceQuotas {
    let quotas = quotas.into_iter().map(|quota| QuotaDraft { quota, named: false }).collect();
    ReplaceQuotas { quotas, request: Request::system(), now: NOW, render: |_| String::new() }
}

fn hundred_a_day() -> Quota {
    quota_of(Scope::Tenant, Metric::PromptTokens, PeriodKind::Day, 100)
}

pub(super) fn entry() -> Entry {
    Entry {
        actor: "system".into(),
        action: "tenant.amended".into(),
        target: "tenant".into(),
        outcome: EntryOutcome::Success,
        request_id: String::new(),
        payload: "{}".into(),
    }
}

async fn a_unit_is_tried_until_it_is_written(house: &House) {
    let work = vec![record(vec![event("a", "ada", NOW, 10)], "")];
    let (written, mut ledger) = write(house, TRIES_MAX - 1, work).await;
    assert_eq!((written.committed, written.rolled_back), (true, None));
    let milliseconds: Vec<u128> = ledger.pauses.iter().map(Duration::as_millis).collect();
    assert_eq!(milliseconds, [10, 20, 40, 80]);
    let rows = ledger.connection.fetch("SELECT COUNT(*) FROM usage_ledger", &[]).await.unwrap();
    assert_eq!(rows[0].int(0).unwrap(), 1);
}

async fn whoever_asked_is_told_when_a_unit_is_given_up(house: &House) {
    let request = Request::system();
    let (reply, replaced) = oneshot();
    let (shift, shifted) = oneshot();
    let (treat, treated) = oneshot();
    let (task, tasked) = oneshot();
    let finding = TreatFinding {
        finding: FindingId(Uuid::from_u128(1)),
        treatment: Treatment::Acknowledge,
        reason: String::new(),
        adjustment: None,
        request: request.clone(),
        now: NOW,
        render: |_| String::new(),
    };
    let acknowledge = Acknowledge { alert: AlertId(Uuid::from_u128(2)) };
    let work = vec![
        Work::Replace { change: replace(Vec::new()), reply: reply.into() },
        Work::ChangeTimeZone { name: "UTC".into(), entry: entry(), once: "1".into(), now: NOW, reply: shift.into() },
        Work::Treat { change: Box::new(finding), reply: treat.into() },
        Work::Task(Task::new(acknowledge, request, untold, NOW, task.into())),
        record(vec![event("a", "ada", NOW, 10)], ""),
    ];
    let (written, ledger) = write(house, TRIES_MAX, work).await;
    assert_eq!((written.committed, written.rolled_back.as_deref()), (false, Some("busy")));
    assert_eq!((ledger.busy, ledger.pauses.len()), (0, 4));
    written.answers.into_iter().for_each(Reply::send);
    assert_eq!(replaced.await.unwrap(), Err(ChangeRefused::RolledBack));
    assert_eq!(shifted.await.unwrap(), Err(ChangeRefused::RolledBack));
    assert_eq!(treated.await.unwrap(), Err(ChangeRefused::RolledBack));
    assert_eq!(tasked.await.unwrap(), Err(Declined::RolledBack));
}

async fn every_piece_of_a_unit_is_answered(house: &House) {
    let (reply, replaced) = oneshot();
    let (shift, shifted) = oneshot();
    let (append, appended) = oneshot();
    let work = vec![
        Work::Replace { change: replace(vec![hundred_a_day()]), reply: reply.into() },
        Work::ChangeTimeZone {
            name: "Asia/Tokyo".into(),
            entry: entry(),
            once: "1".into(),
            now: NOW,
            reply: shift.into(),
        },
        Work::Append { entry: entry(), once: None, now: NOW, reply: append.into() },
    ];
    let (written, _) = write(house, 0, work).await;
    assert_eq!((written.books.time_zone.iana_name(), written.books.quotas.len()), (Some("Asia/Tokyo"), 1));
    written.answers.into_iter().for_each(Reply::send);
    assert!(matches!(replaced.await.unwrap(), Ok(Answer::Fresh(standings)) if standings.len() == 1));
    assert_eq!(shifted.await.unwrap(), Ok(()));
    appended.await.unwrap();
}

async fn what_cannot_be_written_holds_up_nothing_else(house: &House) {
    let of = |ids: &[&str]| ids.iter().map(|id| event(id, "ada", NOW, 40)).collect::<Vec<_>>();
    let (reply, _) = oneshot();
    let work = vec![
        Work::Replace { change: replace(vec![hundred_a_day()]), reply: reply.into() },
        record(of(&["a", POISON, "b"]), ""),
        record(of(&["c"]), ""),
    ];
    let (written, mut ledger) = write(house, 0, work).await;
    let outcomes: Vec<Vec<Outcome>> = (written.answers.iter())
        .filter_map(|reply| match reply {
            Reply::Record { outcomes, .. } => Some(outcomes.clone()),
            _ => None,
        })
        .collect();
    let refused = Outcome::Refused(Refusal::Malformed);
    assert_eq!(outcomes, [vec![Outcome::Accepted, refused, Outcome::Accepted], vec![Outcome::Accepted]]);
    assert_eq!((written.committed, written.books.lifetime.events, written.answers.len()), (true, 3, 3));
    // Half by "b", four fifths too; all of it by "c".
    assert_eq!((written.owed_more, ledger.owed().await.len()), (6, 6));

    // When nothing of it can be written, nothing is.
    let written = ledger.write(written.books, vec![record(of(&[POISON]), "")]).await;
    assert_eq!((written.committed, written.owed_more), (false, 0));
    // What is written afterwards counts all the same.
    let written = ledger.write(written.books, vec![record(of(&[POISON]), ""), record(of(&["d"]), "")]).await;
    assert_eq!((written.committed, written.books.lifetime.events), (true, 4));
}

/// An alert that is over before the quiet hours are is not told any more, whichever way the unit is written.
async fn what_is_withdrawn_is_owed_no_more(house: &House) {
    let (_, connection, mut books) = house.owner().await;
    let quiet = QuietHours::read("UTC", "00:00", "23:59", &[]).unwrap();
    let mail = Route { channels: vec!["mail".into()], quiet_hours: Some(quiet), ..Route::default() };
    books.routing = Arc::new(Routing { routes: vec![mail], ..Routing::all(vec!["mail".into()]) });
    let mut ledger = Busy { connection, busy: 0, busy_after: 0, spared: 0, pauses: Vec::new() };
    let minute = quota_of(Scope::Tenant, Metric::PromptTokens, PeriodKind::Minute, 100);
    let books = set_quotas(&mut ledger.connection, &books, vec![minute], NOW).await;
    let written = ledger.write(Arc::new(books), vec![record(vec![event("a", "ada", NOW, 60)], "")]).await;
    assert_eq!((written.owed_more, notice::owed(&mut ledger.connection).await.unwrap().count), (1, 1));
    let later = NOW.plus_micros(MICROS_PER_MINUTE);
    let late = vec![event(POISON, "ada", later, 10), event("b", "ada", later, 10)];
    let written = ledger.write(written.books, vec![record_at(late, later)]).await;
    assert_eq!((written.books.lifetime.events, written.books.firing.len()), (2, 0));
    assert_eq!((written.owed_more, notice::owed(&mut ledger.connection).await.unwrap().count), (-1, 0));
}

/// The codes of a missing right or table, of a file that cannot be read, of a server with a bug of its own, of a plan or a
/// statement that is gone, of somebody's trigger.
const NO_FAULT_OF_AN_EVENT: [&str; 8] = ["42501", "42P01", "58P01", "58000", "XX000", "0A000", "26000", "P0001"];

async fn no_event_is_refused_for_what_is_not_its_fault(house: &House) {
    let (_, mut connection, books) = house.owner().await;
    let tenant = books.tenant;
    let books = Arc::new(books);
    // Few enough to be inserted, and enough to be copied.
    let units = |round: &str| {
        let many =
            |from: usize, to: usize| (from..to).map(|at| event(&format!("{round}-{at}"), "ada", NOW, 1)).collect();
        [vec![record(many(0, 2), "")], vec![record(many(2, 202), "")]]
    };
    let mut ends = Vec::new();
    let mut fail = async |connection: &mut Connection, round: &str| {
        for work in units(round) {
            let unit = Unit { books: books.clone(), work };
            let ended = writer::write(connection, &mut Guess::default(), unit).await;
            ends.push((round.to_owned(), ended.map(|written| written.answers)));
        }
    };
    house.tamper(tenant, "ALTER TABLE usage_ledger RENAME TO elsewhere").await;
    let recorder = PrometheusBuilder::new().build_recorder();
    let guard = metrics::set_default_local_recorder(&recorder);
    fail(&mut connection, "renamed").await;
    drop(guard);
    let counted = recorder.handle().render();
    assert!(counted.contains("platform_api_commits_total{outcome=\"refused\"} 2"), "{counted}");
    house.tamper(tenant, "ALTER TABLE elsewhere RENAME TO usage_ledger").await;
    if !house.is_sqlite() {
        for code in NO_FAULT_OF_AN_EVENT {
            let refuse = format!(
                "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{code}'; END $$"
            );
            house.tamper(tenant, &refuse).await;
            let trigger = "CREATE TRIGGER refusing BEFORE INSERT ON usage_ledger EXECUTE FUNCTION refuse()";
            house.tamper(tenant, trigger).await;
            fail(&mut connection, code).await;
            house.tamper(tenant, "DROP TRIGGER refusing ON usage_ledger").await;
        }
    }
    for (round, ended) in ends {
        assert!(matches!(ended, Err(StoreError::Wrong(_))), "{round}: {ended:?}");
    }
    // Nothing has changed, and what comes back is counted.
    for work in units("renamed") {
        let events: usize = work.iter().map(Work::events).sum();
        let books = Arc::new(load::read_books(&mut connection, tenant).await.unwrap());
        let written = writer::write(&mut connection, &mut Guess::default(), Unit { books, work }).await.unwrap();
        let counted = written.answers.iter().all(
            |reply| matches!(reply, Reply::Record { outcomes, .. } if *outcomes == vec![Outcome::Accepted; events]),
        );
        assert!(counted, "{written:?}");
    }
}

async fn a_piece_that_meets_a_busy_database_is_tried_again(house: &House) {
    let of = |ids: &[&str]| ids.iter().map(|id| event(id, "ada", NOW, 40)).collect::<Vec<_>>();
    let (_, connection, books) = house.owner().await;
    // Busy as soon as the unit was refused whole, and again as soon as the batch was.
    let mut ledger = Busy { connection, busy: 0, busy_after: 2, spared: 0, pauses: Vec::new() };
    let work = vec![record(of(&["c"]), ""), record(of(&["a", POISON, "b"]), "")];
    let written = ledger.write(Arc::new(books), work).await;
    let outcomes: Vec<Vec<Outcome>> = (written.answers.iter())
        .filter_map(|reply| match reply {
            Reply::Record { outcomes, .. } => Some(outcomes.clone()),
            _ => None,
        })
        .collect();
    let refused = Outcome::Refused(Refusal::Malformed);
    assert_eq!(outcomes, [vec![Outcome::Accepted], vec![Outcome::Accepted, refused, Outcome::Accepted]]);
    assert_eq!((written.books.lifetime.events, written.rolled_back), (3, None));
    assert_eq!(ledger.pauses.len(), 2);
}

/// The unit was refused, and the batch; the event that nobody can write leaves the database busy for those behind it.
async fn an_event_that_meets_a_busy_database_is_tried_again_and_not_for_ever(house: &House) {
    let batch = || vec![record(["a", POISON, "b"].map(|id| event(id, "ada", NOW, 40)).into(), "")];
    let (_, connection, books) = house.owner().await;
    let books = Arc::new(books);
    let mut ledger = Busy { connection, busy: 0, busy_after: 2, spared: 2, pauses: Vec::new() };
    let written = ledger.write(books.clone(), batch()).await;
    let expected = [Outcome::Accepted, Outcome::Refused(Refusal::Malformed), Outcome::Accepted];
    assert!(matches!(&written.answers[..], [Reply::Record { outcomes, .. }] if *outcomes == expected));
    assert_eq!((written.books.lifetime.events, ledger.pauses.len()), (2, 2));

    let (recorder, unit) = (PrometheusBuilder::new().build_recorder(), Unit { books: written.books, work: batch() });
    let guard = metrics::set_default_local_recorder(&recorder);
    (ledger.busy_after, ledger.spared) = (TRIES_MAX, 2);
    let ended = writer::write(&mut ledger, &mut Guess::default(), unit).await;
    drop(guard);
    // Its sender is told nothing, and comes back with all of it.
    assert!(matches!(ended, Err(StoreError::Retryable(_))), "{ended:?}");
    let counted = recorder.handle().render();
    assert!(counted.contains("platform_api_commits_total{outcome=\"rolled_back\"} 1"), "{counted}");
    assert!(!counted.contains("outcome=\"unknown\""), "nothing is in doubt: {counted}");
}

async fn a_piece_that_is_given_up_is_told_and_seen(house: &House) {
    let (reply, replaced) = oneshot();
    let (_, connection, books) = house.owner().await;
    let mut ledger = Busy { connection, busy: 0, busy_after: TRIES_MAX, spared: 0, pauses: Vec::new() };
    let work = vec![
        Work::Replace { change: replace(vec![hundred_a_day()]), reply: reply.into() },
        record(vec![event(POISON, "ada", NOW, 1)], ""),
        record(vec![event("a", "ada", NOW, 1)], ""),
    ];
    let written = ledger.write(Arc::new(books), work).await;
    assert_eq!((written.committed, written.rolled_back.as_deref()), (true, Some("busy")));
    assert_eq!(written.books.lifetime.events, 1);
    written.answers.into_iter().for_each(Reply::send);
    assert_eq!(replaced.await.unwrap(), Err(ChangeRefused::RolledBack));
}

async fn what_is_owed_is_what_came_less_what_was_settled(house: &House) {
    let (reply, _) = oneshot();
    let work = vec![
        Work::Replace { change: replace(vec![hundred_a_day()]), reply: reply.into() },
        record(vec![event("a", "ada", NOW, 60)], ""),
    ];
    let (written, mut ledger) = write(house, 0, work).await;
    let owed = ledger.owed().await;
    assert_eq!((written.owed_more, owed.len()), (2, 2));
    let delivered = |one: &Delivery| Attempt {
        alert: one.alert.id,
        event: one.event,
        channel: one.channel.clone(),
        at: NOW,
        result: AttemptResult::Delivered,
    };
    let (reply, settled) = oneshot();
    let work = vec![
        Work::Settle { attempts: vec![delivered(&owed[0])], now: NOW, reply: reply.into() },
        record(vec![event("b", "ada", NOW, 20)], ""),
    ];
    let written = ledger.write(written.books, work).await;
    assert_eq!((written.owed_more, ledger.owed().await.len()), (1, 3));
    written.answers.into_iter().for_each(Reply::send);
    settled.await.unwrap();
}
