//! Who tests the tests? Mistakes are planted in the daemon (`src/fault.rs`), and the same fire, kills and oracle that find
//! nothing in `crash.rs` must find each of them, by the invariant that it breaks.

use std::time::Duration;

use tokio::time::sleep;

use crate::crash::{Death, die};
use crate::harness::fire::{self, Fire};
use crate::harness::receiver::Receiver;
use crate::harness::{Engine, Setup};
use crate::takeover::takeovers;

/// Lives after which every mistake has shown.
const DEATHS: [Death; 5] = [
    Death::At("intake.received"),
    Death::At("commit.filled"),
    Death::At("commit.before"),
    Death::At("commit.before"),
    Death::At("outbox.accepted"),
];

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_before_the_commit_is_found_out() {
    assert_eq!(found("ack-before-commit").await, "L3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_outside_the_transaction_is_found_out() {
    assert_eq!(found("counter-outside-transaction").await, "L1");
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_that_are_counted_are_found_out() {
    assert_eq!(found("duplicates-counted").await, "L1");
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_by_stream_sequence_is_found_out() {
    assert_eq!(found("dedupe-by-sequence").await, "L2");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_that_is_not_owed_is_found_out() {
    assert_eq!(found("outbox-not-written").await, "Q3");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_without_a_stable_key_is_found_out() {
    assert_eq!(found("alert-without-key").await, "Q3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deposed_owner_that_does_not_look_at_the_epoch_is_found_out() {
    let story = async {
        let pager = Receiver::start().await;
        let setup = fire::setup(Setup::on(Engine::Postgres).planting("epoch-unchecked"), &pager);
        Box::pin(takeovers(setup, &pager, &["intake.received", "commit.after"])).await;
    };
    // Two owners write: which invariant is looked at first when both are broken depends on who wrote last.
    let broken = invariant_broken_by("epoch-unchecked", story).await;
    assert!(matches!(broken.as_str(), "L1" | "L3"), "{broken}");
}

/// The invariant by which a short fire finds the mistake; nothing when it does not.
async fn found(mistake: &'static str) -> String {
    invariant_broken_by(mistake, a_short_fire(mistake)).await
}

/// The invariant whose check ends a story; nothing when none does.
pub async fn invariant_broken_by(mistake: &str, story: impl Future<Output = ()> + Send + 'static) -> String {
    let Err(failed) = tokio::spawn(story).await else { return String::new() };
    let panic = failed.into_panic();
    let said = panic.downcast_ref::<String>().expect("an assertion that says what is wrong");
    println!("{mistake}: {}", said.lines().next().unwrap_or_default());
    let said = said.trim_start_matches("assertion `left == right` failed: ");
    said.split(':').next().unwrap_or_default().to_owned()
}

async fn a_short_fire(mistake: &'static str) {
    let pager = Receiver::start().await;
    let mut daemon = fire::setup(Setup::on(Engine::Sqlite).planting(mistake), &pager).start().await;
    let mut fire = Fire::on(&daemon, &pager, &["Acme"]).await;
    sleep(Duration::from_secs(1)).await;
    daemon.kill().await;
    for death in DEATHS {
        // Without an outbox nothing is ever told.
        if mistake == "outbox-not-written" && matches!(death, Death::At("outbox.accepted")) {
            continue;
        }
        die(&mut daemon, death).await;
        fire.check_remains(&daemon).await;
    }
    daemon.restart().await;
    fire.quench(&daemon).await;
}
