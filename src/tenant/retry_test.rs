//! What the writer does with a database that cannot be written for a while.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::sync::Arc;
use std::time::Duration;

use ractor::concurrency::oneshot;
use uuid::Uuid;

use super::guess::Guess;
use super::ledger::Ledger;
use super::message::{ChangeRefused, ReplaceQuotas, TreatFinding};
use super::task::{Declined, Task, untold};
use super::work::{Reply, Unit, Work, Written};
use super::writer::{self, TRIES_MAX};
use super::writer_test::record;
use crate::domain::books::{Books, Counter, Missing, Posting};
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::ids::{AlertId, FindingId};
use crate::domain::reconcile::pass::Treatment;
use crate::domain::request::Request;
use crate::domain::sorting::Inserted;
use crate::domain::time::Timestamp;
use crate::domain::usage::{Identity, UsageEvent};
use crate::store::StoreError;
use crate::store::database::Connection;
use crate::store::posting::Expecting;
use crate::store::tests::harness::{House, NOW, event};
use crate::tenant::acknowledge::Acknowledge;

crate::store::tests::conformance!(a_unit_is_tried_until_it_is_written, whoever_asked_is_told_when_a_unit_is_given_up,);

/// A real database that is busy for the next `busy` transactions.
struct Busy {
    connection: Connection,
    busy: u32,
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

async fn write(house: &House, busy: u32, work: Vec<Work>) -> (Written, Busy) {
    let (_, connection, books) = house.owner().await;
    let mut ledger = Busy { connection, busy, pauses: Vec::new() };
    let unit = Unit { books: Arc::new(books), work };
    (writer::write(&mut ledger, &mut Guess::default(), unit).await.unwrap(), ledger)
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
    let (replace, replaced) = oneshot();
    let (shift, shifted) = oneshot();
    let (treat, treated) = oneshot();
    let (task, tasked) = oneshot();
    let quotas = ReplaceQuotas { quotas: Vec::new(), request: request.clone(), now: NOW, render: |_| String::new() };
    let finding = TreatFinding {
        finding: FindingId(Uuid::from_u128(1)),
        treatment: Treatment::Acknowledge,
        reason: String::new(),
        adjustment: None,
        request: request.clone(),
        now: NOW,
        render: |_| String::new(),
    };
    let entry = Entry {
        actor: "system".into(),
        action: "tenant.amended".into(),
        target: "tenant".into(),
        outcome: EntryOutcome::Success,
        request_id: String::new(),
        payload: "{}".into(),
    };
    let acknowledge = Acknowledge { alert: AlertId(Uuid::from_u128(2)) };
    let work = vec![
        Work::Replace { change: quotas, reply: replace.into() },
        Work::ChangeTimeZone { name: "UTC".into(), entry, once: "1".into(), now: NOW, reply: shift.into() },
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
