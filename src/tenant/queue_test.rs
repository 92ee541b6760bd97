//! Which work makes the next unit, and what is told of the rest.

#![allow(clippy::unwrap_used, reason = "a test may")]

use ractor::concurrency::oneshot;
use uuid::Uuid;

use super::message::{GatewayBatch, Permits, TreatFinding};
use super::queue::Queue;
use super::work::Work;
use super::writer_test::record_at;
use crate::domain::ids::FindingId;
use crate::domain::reconcile::pass::{Pass, Treatment};
use crate::domain::reconcile::reading::{GatewayRequest, Role, ServedBy};
use crate::domain::request::Request;
use crate::domain::time::{MICROS_PER_MINUTE, Timestamp};
use crate::store::tests::harness::{NOW, event};

const EVENTS_MAX: usize = 5;
const LATER: Timestamp = Timestamp(NOW.0 + MICROS_PER_MINUTE);

fn usage(events: usize) -> Work {
    record_at((0..events).map(|number| event(&number.to_string(), "ada", NOW, 10)).collect(), NOW)
}

fn requests(count: usize) -> Work {
    let request = GatewayRequest {
        request_id: "a".into(),
        call_id: "a".into(),
        started_at: NOW,
        duration_micros: 1,
        role: Role::Own,
        route: "chat".into(),
        status: 200,
        served_by: ServedBy::Upstream,
        authenticated: true,
        limited: true,
        claims_other: false,
        counted: None,
    };
    let permits = Permits::none();
    let batch = GatewayBatch { requests: vec![request; count], request_id: String::new(), now: NOW, permits };
    Work::GatewayRequests { batch, reply: oneshot().0.into() }
}

fn treatment() -> Work {
    let change = TreatFinding {
        finding: FindingId(Uuid::from_u128(1)),
        treatment: Treatment::Acknowledge,
        reason: String::new(),
        adjustment: None,
        request: Request::system(),
        now: NOW,
        render: |_| String::new(),
    };
    Work::Treat { change: Box::new(change), reply: oneshot().0.into() }
}

fn pass() -> Work {
    Work::Reconcile { pass: Pass { from: NOW, settled_until: NOW, compared: Vec::new(), requests: 0 }, now: NOW }
}

fn queue(work: Vec<Work>) -> Queue {
    let mut queue = Queue::new(EVENTS_MAX);
    work.into_iter().for_each(|piece| queue.push(piece));
    queue
}

/// What the next unit holds, when the writer has ended the one before.
fn next(queue: &mut Queue) -> Vec<String> {
    queue.returned();
    let named = |piece: &Work| match piece {
        Work::Record { .. } => format!("{} events", piece.events()),
        Work::GatewayRequests { .. } => format!("{} requests", piece.events()),
        Work::Treat { .. } => "treatment".into(),
        Work::Reconcile { .. } => "pass".into(),
        Work::Roll { now } => format!("roll {}", (now.0 - NOW.0) / MICROS_PER_MINUTE),
        other => format!("{other:?}"),
    };
    queue.next_unit().iter().flatten().map(named).collect()
}

#[test]
fn a_unit_is_the_oldest_work_up_to_the_most_events() {
    let mut queue = queue(vec![usage(2), pass(), requests(3), usage(1), usage(4), usage(2)]);
    assert_eq!(queue.events(), 12);
    assert_eq!(next(&mut queue), ["2 events", "pass", "3 requests"]);
    assert_eq!(queue.events(), 7);
    assert_eq!(next(&mut queue), ["1 events", "4 events"]);
    assert_eq!(next(&mut queue), ["2 events"]);
    assert_eq!((queue.events(), next(&mut queue).len()), (0, 0));
}

#[test]
fn a_piece_that_is_larger_than_a_unit_is_one() {
    let mut queue = queue(vec![usage(9), usage(1), usage(9)]);
    assert_eq!(next(&mut queue), ["9 events"]);
    assert_eq!(next(&mut queue), ["1 events"]);
    assert_eq!(next(&mut queue), ["9 events"]);
}

#[test]
fn what_must_be_alone_is() {
    let mut queue = queue(vec![treatment(), usage(1), pass(), treatment(), treatment(), usage(1)]);
    assert_eq!(next(&mut queue), ["treatment"]);
    assert_eq!(next(&mut queue), ["1 events", "pass"]);
    assert_eq!(next(&mut queue), ["treatment"]);
    assert_eq!(next(&mut queue), ["treatment"]);
    assert_eq!(next(&mut queue), ["1 events"]);
}

#[test]
fn the_writer_has_one_unit_at_a_time() {
    let mut queue = queue(Vec::new());
    assert!(queue.is_idle() && queue.next_unit().is_none() && !queue.in_flight());
    queue.push(usage(1));
    assert!(!queue.is_idle() && !queue.in_flight());
    assert_eq!(queue.next_unit().unwrap().len(), 1);
    assert!(!queue.is_idle() && queue.in_flight());
    queue.push(usage(1));
    assert!(queue.next_unit().is_none() && queue.in_flight());
    queue.returned();
    assert!(!queue.is_idle() && !queue.in_flight());
    assert_eq!(queue.next_unit().unwrap().len(), 1);
    queue.returned();
    assert!(queue.is_idle() && queue.next_unit().is_none());
}

#[test]
fn one_look_at_the_clock_is_enough() {
    let mut queue = queue(vec![usage(1)]);
    queue.roll(NOW);
    queue.roll(LATER);
    assert_eq!(next(&mut queue), ["1 events", "roll 0"]);
    queue.roll(LATER);
    assert_eq!(next(&mut queue), ["roll 1"]);
}

#[tokio::test]
async fn who_is_leaving_ends_what_waits_and_takes_nothing_more() {
    let mut queue = queue(vec![usage(1)]);
    queue.leave();
    let (reply, told) = oneshot();
    queue.push(Work::Append { entry: super::retry_test::entry(), once: None, now: NOW, reply: reply.into() });
    queue.push(usage(2));
    queue.roll(NOW);
    assert_eq!(queue.events(), 1);
    assert_eq!(next(&mut queue), ["1 events"]);
    assert!(next(&mut queue).is_empty() && queue.is_idle());
    assert!(told.await.is_err(), "its caller is told to come back");
}

#[test]
fn what_waits_is_told() {
    let mut queue = queue(Vec::new());
    assert_eq!((queue.oldest(), queue.holds_pass()), (None, false));
    queue.roll(LATER);
    queue.push(usage(1));
    assert_eq!((queue.oldest(), queue.holds_pass()), (Some(LATER), false));
    queue.push(pass());
    assert!(queue.holds_pass());
    assert_eq!(next(&mut queue).len(), 3);
    assert_eq!((queue.oldest(), queue.holds_pass()), (None, false));
}
