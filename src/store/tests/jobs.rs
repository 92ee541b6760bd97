//! Background work in the control database.

use uuid::Uuid;

use super::harness::{House, NOW};
use crate::domain::ids::JobId;
use crate::domain::job::{Draft, Ending, Job, JobFilter, Kind, Progress, State};
use crate::domain::time::{MICROS_PER_SECOND, Timestamp};
use crate::store::job::{self, Tally};
use crate::store::migration::{self, CONTROL};

super::conformance!(
    a_job_comes_back_as_it_was_written,
    whoever_read_a_job_before_another_changed_it_writes_nothing,
    what_was_asked_to_end_stays_asked,
    jobs_are_due_in_order_and_forgotten_by_age,
    the_rests_of_changes_are_looked_for_by_themselves,
    what_is_let_go_is_due_at_once_and_nothing_else_is,
    changes_of_an_older_program_become_jobs,
);

const LEASE: i64 = 30 * MICROS_PER_SECOND;

fn draft(key: Option<&str>, run_at: Timestamp) -> Draft {
    Draft {
        kind: "auditVerification".into(),
        tenant: None,
        key: key.map(str::to_owned),
        arguments: "{}".into(),
        run_at,
        every_micros: 0,
        attempts_max: 3,
        actor: "platform".into(),
        request_id: "r".into(),
    }
}

fn waiting(number: u128, run_at: Timestamp) -> Job {
    Job::new(JobId(Uuid::from_u128(number)), draft(None, run_at), NOW)
}

async fn a_job_comes_back_as_it_was_written(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let fresh = Job::new(JobId(Uuid::from_u128(1)), draft(Some("key"), NOW), NOW);
    job::insert(&mut connection, &fresh).await.unwrap();
    assert_eq!(job::by_key(&mut connection, "key").await.unwrap(), Some(fresh.clone()));
    let mut held = fresh.clone();
    assert!(held.claim(NOW, LEASE));
    assert!(job::update(&mut connection, &fresh, &held).await.unwrap());
    let renewed = held.clone();
    let progress = Progress { done: 3, total: Some(7), note: "tenants".into() };
    held.renew(1, NOW, LEASE, progress, Some("[3]".into())).unwrap();
    assert!(job::update(&mut connection, &renewed, &held).await.unwrap());
    assert_eq!(job::one(&mut connection, held.id).await.unwrap(), Some(held.clone()));
    let running = held.clone();
    held.settle(1, Ending::Succeeded("{\"rows\":1}".into()), NOW).unwrap();
    assert!(job::update(&mut connection, &running, &held).await.unwrap());
    let filter = JobFilter { state: Some(State::Succeeded), ..JobFilter::default() };
    assert_eq!(job::page(&mut connection, &filter, None, 10).await.unwrap().items, [held]);
    // Its key is free again.
    assert_eq!(job::by_key(&mut connection, "key").await.unwrap(), None);
}

async fn whoever_read_a_job_before_another_changed_it_writes_nothing(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let read = waiting(1, NOW);
    job::insert(&mut connection, &read).await.unwrap();
    let (mut one, mut other) = (read.clone(), read.clone());
    assert!(one.claim(NOW, LEASE) && other.claim(NOW, LEASE));
    assert!(job::update(&mut connection, &read, &one).await.unwrap());
    assert!(!job::update(&mut connection, &read, &other).await.unwrap());
}

/// A worker's sign of life and a request to cancel, at two nodes, that have read the same row.
async fn what_was_asked_to_end_stays_asked(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let fresh = waiting(1, NOW);
    job::insert(&mut connection, &fresh).await.unwrap();
    let mut read = fresh.clone();
    assert!(read.claim(NOW, LEASE));
    assert!(job::update(&mut connection, &fresh, &read).await.unwrap());
    let (mut canceled, mut alive) = (read.clone(), read.clone());
    canceled.cancel(NOW).unwrap();
    assert_eq!(alive.renew(1, NOW, LEASE, Progress::default(), None), Ok(false));
    assert!(job::update(&mut connection, &read, &canceled).await.unwrap());
    assert!(job::update(&mut connection, &read, &alive).await.unwrap());
    assert!(job::one(&mut connection, read.id).await.unwrap().unwrap().cancel_requested);
}

fn tally(kind: &str, count: i64) -> Tally {
    Tally { state: State::Waiting, kind: kind.into(), count }
}

async fn jobs_are_due_in_order_and_forgotten_by_age(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let at = |seconds: i64| NOW.plus_micros(seconds * MICROS_PER_SECOND);
    for (number, seconds) in [(1, 20), (2, 10), (3, 30)] {
        job::insert(&mut connection, &waiting(number, at(seconds))).await.unwrap();
    }
    let numbers = |jobs: Vec<Job>| jobs.iter().map(|job| job.id.0.as_u128()).collect::<Vec<_>>();
    assert_eq!(numbers(job::due(&mut connection, at(20), false, 10).await.unwrap()), [2, 1]);
    assert_eq!(numbers(job::due(&mut connection, at(20), false, 1).await.unwrap()), [2]);
    assert_eq!(job::next_due(&mut connection, false).await.unwrap(), Some(at(10)));
    let fresh = waiting(2, at(10));
    let mut canceled = fresh.clone();
    canceled.cancel(at(11)).unwrap();
    assert!(job::update(&mut connection, &fresh, &canceled).await.unwrap());
    assert_eq!(job::census(&mut connection).await.unwrap(), [tally("auditVerification", 2)]);
    assert_eq!(job::forget(&mut connection, at(11), 10).await.unwrap(), 0);
    assert_eq!(job::forget(&mut connection, at(12), 10).await.unwrap(), 1);
    assert_eq!(job::one(&mut connection, fresh.id).await.unwrap(), None);
}

async fn the_rests_of_changes_are_looked_for_by_themselves(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let at = |seconds: i64| NOW.plus_micros(seconds * MICROS_PER_SECOND);
    let mut rest = waiting(2, at(10));
    rest.draft.kind = Kind::FinishChange.name().into();
    for job in [&waiting(1, at(5)), &rest] {
        job::insert(&mut connection, job).await.unwrap();
    }
    for (changes, number, seconds) in [(false, 1, 5), (true, 2, 10)] {
        let due = job::due(&mut connection, at(10), changes, 10).await.unwrap();
        assert_eq!(due.iter().map(|job| job.id.0.as_u128()).collect::<Vec<_>>(), [number]);
        assert_eq!(job::next_due(&mut connection, changes).await.unwrap(), Some(at(seconds)));
    }
    let census = job::census(&mut connection).await.unwrap();
    assert_eq!(census, [tally("auditVerification", 1), tally("tenant.finishChange", 1)]);
    // One whose worker is lost, too.
    let mut held = rest.clone();
    assert!(held.claim(at(10), LEASE));
    assert!(job::update(&mut connection, &rest, &held).await.unwrap());
    let lost_at = at(10).plus_micros(LEASE);
    assert_eq!(job::due(&mut connection, lost_at, true, 10).await.unwrap(), [held]);
    assert_eq!(job::due(&mut connection, lost_at, false, 10).await.unwrap(), [waiting(1, at(5))]);
}

async fn what_is_let_go_is_due_at_once_and_nothing_else_is(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let soon = NOW.plus_micros(LEASE);
    let (fresh, waits, ended) = (waiting(1, NOW), waiting(2, soon), waiting(3, NOW));
    for job in [&fresh, &waits, &ended] {
        job::insert(&mut connection, job).await.unwrap();
    }
    let (mut held, mut canceled) = (fresh.clone(), ended.clone());
    assert!(held.claim(NOW, LEASE));
    canceled.cancel(NOW).unwrap();
    for (before, job) in [(&fresh, &held), (&ended, &canceled)] {
        assert!(job::update(&mut connection, before, job).await.unwrap());
    }
    assert_eq!(job::due(&mut connection, NOW, false, 10).await.unwrap(), []);
    assert_eq!(job::let_go(&mut connection).await.unwrap(), 1);
    assert_eq!(job::let_go(&mut connection).await.unwrap(), 0);
    let let_go = Job { lease_until: Timestamp(0), ..held };
    // Also on a clock that was set back meanwhile.
    let earlier = NOW.plus_micros(-3_600 * MICROS_PER_SECOND);
    assert_eq!(job::due(&mut connection, earlier, false, 10).await.unwrap(), std::slice::from_ref(&let_go));
    let mut next = let_go.clone();
    assert!(next.claim(earlier, LEASE));
    assert_eq!((next.attempts, next.lease, next.error.as_str()), (2, 2, "the worker was lost"));
    for job in [waits, canceled] {
        assert_eq!(job::one(&mut connection, job.id).await.unwrap(), Some(job));
    }
}

/// What an older program has left to do, under the same ids; of those of one idempotency key the oldest has it.
async fn changes_of_an_older_program_become_jobs(house: &House) {
    let store = house.store().await;
    let mut connection = store.control().await.unwrap();
    for sql in [
        "DELETE FROM schema_version WHERE version = 10",
        "CREATE TABLE work (id TEXT PRIMARY KEY, tenant_id TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL,
            created_at BIGINT NOT NULL)",
    ] {
        connection.execute(sql, &[]).await.unwrap();
    }
    let tenant = house.tenant_id();
    let keyed =
        r#"{"create":"UTC","time_zone":null,"records":[],"answer":{"key":"a \"key\"","body_hash":[],"answer":"{}"}}"#;
    let unkeyed = r#"{"create":null,"time_zone":null,"records":[],"answer":null,"destroy_keys":true}"#;
    for (number, body) in [(1_u128, keyed), (2, keyed), (3, unkeyed), (4, "")] {
        let values = [
            Uuid::from_u128(number).to_string().into(),
            tenant.to_string().into(),
            "plan/v1".into(),
            body.into(),
            NOW.plus_micros(i64::try_from(number).unwrap()).into(),
        ];
        let sql = "INSERT INTO work (id, tenant_id, kind, body, created_at) VALUES ($1, $2, $3, $4, $5)";
        connection.execute(sql, &values).await.unwrap();
    }
    migration::create(&mut connection, &CONTROL).await.unwrap();
    let jobs = job::due(&mut connection, NOW.plus_micros(9), true, 10).await.unwrap();
    let key = || Some("request:a \"key\"".to_owned());
    for ((number, job), (body, key)) in
        (1_u128..).zip(&jobs).zip([(keyed, key()), (keyed, None), (unkeyed, None), ("", None)])
    {
        let created = NOW.plus_micros(i64::try_from(number).unwrap());
        let draft = Draft {
            kind: Kind::FinishChange.name().into(),
            tenant: Some(tenant),
            key,
            arguments: format!("{{\"version\":1,\"plan\":{body}}}"),
            run_at: created,
            every_micros: 0,
            attempts_max: 0,
            actor: "system".into(),
            request_id: String::new(),
        };
        assert_eq!(job, &Job::new(JobId(Uuid::from_u128(number)), draft, created));
    }
    assert_eq!(jobs.len(), 4);
    assert!(connection.fetch("SELECT id FROM work", &[]).await.is_err(), "the table is gone");
}
