//! Background work in the control database.

use uuid::Uuid;

use super::harness::{House, NOW};
use crate::domain::ids::JobId;
use crate::domain::job::{Draft, Ending, Job, JobFilter, Progress, State};
use crate::domain::time::{MICROS_PER_SECOND, Timestamp};
use crate::store::job;

super::conformance!(
    a_job_comes_back_as_it_was_written,
    whoever_read_a_job_before_another_changed_it_writes_nothing,
    what_was_asked_to_end_stays_asked,
    jobs_are_due_in_order_and_forgotten_by_age,
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

async fn jobs_are_due_in_order_and_forgotten_by_age(house: &House) {
    let mut connection = house.store().await.control().await.unwrap();
    let at = |seconds: i64| NOW.plus_micros(seconds * MICROS_PER_SECOND);
    for (number, seconds) in [(1, 20), (2, 10), (3, 30)] {
        job::insert(&mut connection, &waiting(number, at(seconds))).await.unwrap();
    }
    let numbers = |jobs: Vec<Job>| jobs.iter().map(|job| job.id.0.as_u128()).collect::<Vec<_>>();
    assert_eq!(numbers(job::due(&mut connection, at(20), 10).await.unwrap()), [2, 1]);
    assert_eq!(numbers(job::due(&mut connection, at(20), 1).await.unwrap()), [2]);
    assert_eq!(job::next_due(&mut connection).await.unwrap(), Some(at(10)));
    let fresh = waiting(2, at(10));
    let mut canceled = fresh.clone();
    canceled.cancel(at(11)).unwrap();
    assert!(job::update(&mut connection, &fresh, &canceled).await.unwrap());
    assert_eq!(job::census(&mut connection).await.unwrap(), [(State::Waiting, 2)]);
    assert_eq!(job::forget(&mut connection, at(11), 10).await.unwrap(), 0);
    assert_eq!(job::forget(&mut connection, at(12), 10).await.unwrap(), 1);
    assert_eq!(job::one(&mut connection, fresh.id).await.unwrap(), None);
}
