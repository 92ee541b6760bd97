//! Two nodes on the same databases. One is frozen in the middle of its work, the other takes its tenants over, the first
//! wakes up and goes on: what it had in its hands is refused by the epoch, nothing is lost or counted twice, and the
//! pager knows each alert by one key.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use crate::harness::events::Envelope;
use crate::harness::fire::{self, Fire, Target, between};
use crate::harness::receiver::Receiver;
use crate::harness::{Daemon, Engine, PATIENCE, Setup, eventually};

/// Where a node freezes: with events in its hands, in a transaction before and after the books are locked, with a commit
/// that nobody knows of, with an alert that nobody or somebody has been told of.
const FREEZINGS: [&str; 6] =
    ["intake.received", "commit.filled", "commit.before", "commit.after", "outbox.before", "outbox.accepted"];
const TENANTS: [&str; 4] = ["Acme", "Globex", "Initech", "Umbrella"];
/// What a node says that learns of its heir.
const DEPOSED: &str = "another node has taken the tenant over";
/// How long a caller of a node that may be frozen waits, and how long one waits of a node that wakes up.
const CALL: Duration = Duration::from_millis(400);
const WAKING_CALL: Duration = Duration::from_secs(8);
/// How long a node that woke up may take to learn of its heir.
const LEARNING: Duration = Duration::from_secs(60);

/// Batches whose senders do not know whether they were counted.
type Unsure = Vec<(usize, Vec<Envelope>)>;

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_node_that_wakes_up_adds_nothing_to_what_its_heir_has_counted() {
    let pager = Receiver::start().await;
    let setup = fire::setup(Setup::on(Engine::Postgres), &pager);
    let fire = Box::pin(takeovers(setup, &pager, &FREEZINGS)).await;
    let times = FREEZINGS.len() * TENANTS.len();
    println!("postgres: {times} takeovers from frozen nodes, {:?} events, 0 violations", fire.events());
}

/// Takes all tenants over from a node that freezes at each of the points, and lets it wake up.
pub async fn takeovers(setup: Setup, pager: &Receiver, points: &[&str]) -> Fire {
    let mut zombie = setup.start().await;
    let mut heir = zombie.peer();
    let fire = Fire::laid(&zombie, pager, &TENANTS).await;
    zombie.kill().await;
    for point in points {
        // Late enough that the node has opened most of its tenants; alerts are rarer than commits.
        let passed = if point.starts_with("outbox") { between(3, 9) } else { between(24, 48) };
        zombie.spawn_armed(&format!("{point}={passed}*off->1*return(STOP)"));
        let mut unsure = work_until_frozen(&zombie, &fire, point).await;
        heir.restart().await;
        count(&heir, &fire, &unsure).await;
        let deposed = zombie.log().matches(DEPOSED).count();
        zombie.signal("CONT").await;
        unsure = poke(&zombie, &fire).await;
        // Refused or not, it is given the time to find out.
        let woke = Instant::now();
        while !unsure.is_empty() && zombie.log().matches(DEPOSED).count() == deposed && woke.elapsed() < LEARNING {
            sleep(Duration::from_millis(50)).await;
        }
        count(&heir, &fire, &unsure).await;
        let kept_aside = heir.platform.pages("/v1/quarantine", 50).await;
        // What a node could not take for long may wait there; none of it is malformed.
        let refused: Vec<&Value> = kept_aside.iter().filter(|row| row["reason"] == "MALFORMED_EVENT").collect();
        assert!(refused.is_empty(), "L3: {point}: events that a deposed node refused: {refused:?}");
        zombie.kill().await;
        // It woke up as the reader of the stream, which it was for as long as its last pull waited, and took tenants back: who
        // has lost one may answer from older books for two seconds.
        count(&heir, &fire, &Unsure::new()).await;
        fire.check(&heir).await;
        heir.kill().await;
    }
    assert!(zombie.log().matches(DEPOSED).count() >= points.len(), "fence: nodes that woke up went on as owners");
    heir.restart().await;
    heir.terminate().await;
    fire
}

/// Events for every tenant, over NATS and HTTP, until the node stops at its point.
async fn work_until_frozen(node: &Daemon, fire: &Fire, point: &str) -> Unsure {
    let began = Instant::now();
    let mut unsure = Unsure::new();
    while !node.is_frozen() {
        assert!(began.elapsed() < PATIENCE, "{point} was never reached");
        for target in &fire.targets {
            fire.publish_to(target).await;
        }
        unsure.extend(offer(node, fire, CALL).await);
        sleep(Duration::from_millis(10)).await;
    }
    unsure
}

/// One batch for every tenant, at a node that believes to be the owner of all.
async fn poke(node: &Daemon, fire: &Fire) -> Unsure {
    offer(node, fire, WAKING_CALL).await
}

/// Offers a batch of every tenant once; returns those that were not acknowledged.
async fn offer(node: &Daemon, fire: &Fire, patience: Duration) -> Unsure {
    let offered = fire.targets.iter().enumerate().map(|(at, target)| async move {
        let batch: Vec<Envelope> = (0..between(1, 6)).map(|_| fire::an_event(&target.tenant.id)).collect();
        batch.iter().for_each(|event| target.oracle.sends(event));
        let body = fire::body(&batch);
        let api = target.tenant.at(node).api;
        let headers = [("content-type", "application/json")];
        let asked = api.try_raw(Method::POST, "/v1/usage/events", &headers, body);
        match timeout(patience, asked).await {
            Ok(Ok(answer)) if answer.status == 200 => {
                target.oracle.acknowledged(&batch);
                None
            }
            _ => Some((at, batch)),
        }
    });
    join_all(offered).await.into_iter().flatten().collect()
}

/// Has a node count what somebody is unsure of, and something of every tenant, which makes it the owner of all.
async fn count(node: &Daemon, fire: &Fire, unsure: &Unsure) {
    for (at, target) in fire.targets.iter().enumerate() {
        let Target { tenant, oracle } = target;
        let mut batch: Vec<Envelope> = vec![fire::an_event(&tenant.id)];
        oracle.sends(&batch[0]);
        batch.extend(unsure.iter().filter(|(of, _)| *of == at).flat_map(|(_, events)| events.clone()));
        eventually("the heir to count", || async {
            let api = tenant.at(node).api;
            timeout(WAKING_CALL, fire::post_until_counted(&api, &batch)).await.ok()
        })
        .await;
        oracle.acknowledged(&batch);
    }
}
