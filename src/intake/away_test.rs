//! What LiteLLM posts for a tenant that is away: its callback does not come back, so nothing may be turned away.

use std::time::Duration;

use sqlx::{Connection as _, SqliteConnection};

use super::node_test::{Node, codes, event, fixture};
use super::record::{BodyShape, ItemOutcome, RecordError, Recorder, Reporter};
use super::stream_test::replayed;
use crate::config;
use crate::domain::usage::Refusal;

const PAYLOAD: &str = "chat_openai_nonstream_tags_enduser.json";

async fn post(recorder: &Recorder) -> Result<Vec<ItemOutcome>, RecordError> {
    recorder.record_body(fixture(PAYLOAD), BodyShape::LiteLlm, Reporter::Platform, "r-1").await
}

/// As the node's, with these settings.
fn recorder_with(node: &Node, intake: config::Intake) -> Recorder {
    Recorder::new(node.directory.clone(), node.clock.clone(), intake)
}

/// A node whose acme waits for a person.
async fn frozen() -> Node {
    let aside =
        |node: &Node| std::fs::rename(node.file_of(node.acme), node.file_of(node.acme).with_extension("away")).unwrap();
    Node::open().await.reopened(aside).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_litellm_posts_for_a_frozen_tenant_is_kept_and_counted_once_it_is_back() {
    let node = frozen().await;
    for _ in 0..2 {
        assert_eq!(codes(&post(&node.recorder).await.unwrap()), ["TENANT_FROZEN"]);
    }
    let kept = node.quarantined(Some(node.acme)).await;
    assert!(kept.len() == 1 && kept[0].reason == Refusal::TenantFrozen && kept[0].format == "litellm", "{kept:?}");
    // Other senders come back, and are told to.
    let refused = node.record(event("h", Some(node.acme), 1), Reporter::Platform).await;
    assert!(matches!(refused, Err(RecordError::NotNow(_))), "{refused:?}");
    assert_eq!(node.quarantined(Some(node.acme)).await.len(), 1);

    let back =
        |node: &Node| std::fs::rename(node.file_of(node.acme).with_extension("away"), node.file_of(node.acme)).unwrap();
    let node = node.reopened(back).await;
    replayed(&node).await;
    assert_eq!(node.totals(node.acme).await.events, 1);
    assert_eq!(codes(&post(&node.recorder).await.unwrap()), ["duplicate"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_litellm_posts_for_a_tenant_that_does_not_answer_is_kept_and_counted_once() {
    let node = Node::open().await;
    let mut lock = SqliteConnection::connect(&format!("sqlite:{}", node.file_of(node.acme).display())).await.unwrap();
    let impatient = recorder_with(&node, config::Intake { litellm_patience_ms: 300, ..config::Intake::default() });
    node.totals(node.acme).await;
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut lock).await.unwrap();
    let payload = String::from_utf8(fixture(PAYLOAD).to_vec()).unwrap();
    let body = format!("[{}]", [payload.as_str(); 3].join(","));
    let answered = tokio::time::timeout(
        Duration::from_secs(60),
        impatient.record_body(body.into(), BodyShape::LiteLlm, Reporter::Platform, "r-1"),
    );
    let answered = answered.await.expect("an answer while the lock is held").unwrap();
    assert_eq!(codes(&answered), ["TENANT_UNAVAILABLE"; 3]);
    sqlx::raw_sql("ROLLBACK").execute(&mut lock).await.unwrap();
    replayed(&node).await;
    assert_eq!(node.totals(node.acme).await.events, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn litellm_is_turned_away_only_when_no_more_can_be_kept() {
    let node = frozen().await;
    let small = recorder_with(&node, config::Intake { parked_events_max: 1, ..config::Intake::default() });
    assert_eq!(codes(&post(&small).await.unwrap()), ["TENANT_FROZEN"]);
    let refused = post(&small).await;
    assert!(matches!(refused, Err(RecordError::NotNow(_))), "{refused:?}");
    assert_eq!(node.quarantined(None).await.len(), 1);
}
