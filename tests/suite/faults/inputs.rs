//! Matrix 2b through the whole daemon: what comes twice, late, in any order, or broken.

use std::collections::BTreeMap;

use platform_api::domain::time::{MICROS_PER_DAY, MICROS_PER_SECOND};
use serde_json::{Value, json};

use crate::harness::database::Database;
use crate::harness::events::{Envelope, now};
use crate::harness::load::{Target, between};
use crate::harness::{Daemon, Setup, eventually, on_both};

const EVENTS: usize = 240;
const RETENTION_DAYS: i64 = 45;

/// The same events, once in order and once each up to ten times in any order over both doors, leave the same books.
#[tokio::test(flavor = "multi_thread")]
async fn the_books_do_not_depend_on_order_or_copies() {
    on_both(|engine| async move {
        let setup = Setup::on(engine).with_nats().with("INTAKE__RETENTION_DAYS", RETENTION_DAYS);
        let daemon = setup.start().await;
        let bus = daemon.bus().await;
        let [orderly, shuffled] =
            [Target::onboard(&daemon, "Orderly").await, Target::onboard(&daemon, "Shuffled").await];
        let events = events(&orderly);
        for part in events.chunks(40) {
            orderly.tenant.post_events(part).await;
        }
        let mut copies = copies(&events, &shuffled);
        copies.iter().for_each(|event| shuffled.oracle.sends(event));
        while !copies.is_empty() {
            let part: Vec<Envelope> = copies.drain(..copies.len().min(between(1, 60) as usize)).collect();
            if between(0, 2) == 0 {
                shuffled.tenant.post_events(&part).await;
            } else {
                for event in &part {
                    let sequence = bus.publish(&event.json()).await;
                    shuffled.oracle.published(sequence, event);
                }
            }
        }
        daemon.drained(&bus).await;
        events.iter().for_each(|event| orderly.oracle.sends(event));
        orderly.check(&daemon, None).await;
        shuffled.check(&daemon, None).await;
        assert_eq!(books(&daemon, &orderly).await, books(&daemon, &shuffled).await);
    })
    .await;
}

/// From now back to the edge of retention.
fn events(target: &Target) -> Vec<Envelope> {
    let mut events: Vec<Envelope> = (0..EVENTS)
        .map(|at| {
            let mut event = target.tenant.event().tokens(between(0, 200) as i64, between(0, 30) as i64);
            let age = between(0, (RETENTION_DAYS * MICROS_PER_DAY - 600 * MICROS_PER_SECOND) as u64) as i64;
            event.occurred_at = event.occurred_at.plus_micros(-age / 1_000 * 1_000);
            event.user = format!("user-{}", at % 4);
            event.cost = between(0, 9_000_000) as i64;
            event
        })
        .collect();
    events.sort_by_key(|event| event.occurred_at);
    events
}

/// Each event of another tenant one to ten times, as this tenant's, in any order.
fn copies(events: &[Envelope], target: &Target) -> Vec<Envelope> {
    let ours = |event: &Envelope| Envelope { tenant: target.tenant.id.clone(), ..event.clone() };
    let mut copies: Vec<Envelope> =
        events.iter().flat_map(|event| vec![ours(event); between(1, 11) as usize]).collect();
    for at in (1..copies.len()).rev() {
        copies.swap(at, between(0, at as u64 + 1) as usize);
    }
    copies
}

/// Everything in the books that is not an id of ours, a position, or an instant of counting.
async fn books(daemon: &Daemon, target: &Target) -> BTreeMap<&'static str, Vec<Vec<String>>> {
    let questions = [
        (
            "ledger",
            "SELECT event_id, CAST(occurred_at AS TEXT), user_id, group_id, model, provider, CAST(prompt_tokens AS TEXT), \
             CAST(completion_tokens AS TEXT), CAST(cost_nano_usd AS TEXT) FROM usage_ledger ORDER BY event_id",
        ),
        (
            "rollups",
            "SELECT CAST(start_at AS TEXT), user_id, group_id, model, provider, CAST(events AS TEXT), \
             CAST(prompt_tokens AS TEXT), CAST(completion_tokens AS TEXT), CAST(cost_nano_usd AS TEXT) FROM usage_rollup \
             ORDER BY start_at, user_id, group_id, model, provider",
        ),
        (
            "counters",
            "SELECT CAST(ordinal AS TEXT), CAST(period_start AS TEXT), CAST(used AS TEXT) FROM counter \
             JOIN quota ON quota.id = counter.quota_id WHERE used <> 0 ORDER BY ordinal, period_start",
        ),
        (
            "alerts",
            "SELECT CAST(ordinal AS TEXT), CAST(period_start AS TEXT), CAST(threshold AS TEXT) FROM alert \
             JOIN quota ON quota.id = alert.quota_id ORDER BY ordinal, period_start, threshold",
        ),
        (
            "lifetime",
            "SELECT CAST(events AS TEXT), CAST(requests AS TEXT), CAST(prompt_tokens AS TEXT), \
             CAST(completion_tokens AS TEXT), CAST(cost_nano_usd AS TEXT) FROM books",
        ),
    ];
    let mut database = Database::of_tenant(daemon, &target.tenant.id).await;
    let mut answers = BTreeMap::new();
    for (name, question) in questions {
        answers.insert(name, database.words(question).await);
    }
    answers
}

/// A little inside and a little outside of what is still, or already, believed.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_at_the_edge_of_time_is_counted_or_kept_aside() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).with("INTAKE__RETENTION_DAYS", RETENTION_DAYS).start().await;
        let target = Target::onboard(&daemon, "Acme").await;
        let second = MICROS_PER_SECOND;
        let horizon = RETENTION_DAYS * MICROS_PER_DAY;
        // What is inside stays inside while the test runs, and what is outside outside.
        for (offset, refusal) in [
            (-horizon - second, "EVENT_TOO_OLD"),
            (-horizon + 60 * second, ""),
            (-horizon - 3_650 * MICROS_PER_DAY, "EVENT_TOO_OLD"),
            (300 * second - 2 * second, ""),
            (300 * second + 60 * second, "EVENT_FROM_THE_FUTURE"),
            (400 * MICROS_PER_DAY, "EVENT_FROM_THE_FUTURE"),
        ] {
            let event = target.tenant.event().at(now().plus_micros(offset));
            let receipt = target.tenant.post_events(std::slice::from_ref(&event)).await;
            if refusal.is_empty() {
                assert_eq!((receipt.accepted, receipt.rejected.len()), (1, 0), "{offset}: {receipt:?}");
                target.oracle.sends(&event);
            } else {
                assert_eq!(receipt.rejected, [(0, refusal.to_owned())], "{offset}");
            }
        }
        assert_eq!(target.tenant.quarantine().await.len(), 4);
        target.check(&daemon, None).await;
    })
    .await;
}

/// Each poison is one row of quarantine; what comes after it is counted; nobody is restarted.
#[tokio::test(flavor = "multi_thread")]
async fn no_poison_stops_the_pipeline() {
    on_both(|engine| async move {
        let daemon = Setup::on(engine).with_nats().start().await;
        let bus = daemon.bus().await;
        let target = Target::onboard(&daemon, "Acme").await;
        let process = daemon.process();
        let poison = poison(&target);
        for bytes in &poison {
            bus.publish_bytes(&bus.subject, bytes.clone()).await;
            let event = target.tenant.event();
            target.oracle.sends(&event);
            target.oracle.published(bus.publish(&event.json()).await, &event);
        }
        daemon.drained(&bus).await;
        let rows = eventually("the quarantine to fill", || async {
            let rows = daemon.platform.pages("/v1/quarantine", 100).await;
            (rows.len() >= poison.len()).then_some(rows)
        })
        .await;
        assert_eq!(rows.len(), poison.len(), "{rows:#?}");
        assert!(rows.iter().all(|row| row["arrivals"] == 1), "{rows:#?}");
        target.check(&daemon, None).await;
        let metrics = daemon.platform.anonymous().get("/metrics").await.text;
        let restarts = metrics.lines().find(|line| line.starts_with("platform_api_tenant_restarts_total "));
        assert!(restarts.is_none_or(|line| line.ends_with(" 0")), "{restarts:?}");
        assert_eq!(daemon.process(), process);
    })
    .await;
}

/// Bytes that are no event, each for a reason of its own.
fn poison(target: &Target) -> Vec<Vec<u8>> {
    let event = || target.tenant.event().json();
    let with = |pointer: &str, value: Value| {
        let mut event = event();
        *event.pointer_mut(pointer).expect("a field of ours") = value;
        event.to_string().into_bytes()
    };
    // What serde_json would not write.
    let raw = |pointer: &str, text: &str| {
        let marked = with(pointer, json!("POISON"));
        String::from_utf8(marked).expect("JSON").replace("\"POISON\"", text).into_bytes()
    };
    let tokens = "/payload/usage/promptTokens";
    let mut poison = vec![
        b"\xff\xfe\xfd".to_vec(),
        [b"{\"eventId\":\"\xc3\x28\",".as_slice(), &event().to_string().as_bytes()[1..]].concat(),
        with("/eventId", json!("nul \u{0}")),
        with("/actor/userId", json!("nul \u{0}")),
        with(tokens, json!(-1)),
        with(tokens, json!(1.5)),
        raw(tokens, "18446744073709551616"),
        raw(tokens, "9223372036854775808"),
        raw(tokens, "1e400"),
        raw(tokens, "NaN"),
        raw("/payload/costUsd", "1e400"),
        raw("/payload/costUsd", "-Infinity"),
        with("/payload/costUsd", json!("-0.1")),
        with("/payload/costUsd", json!("99999999999999999999")),
        with("/occurredAt", json!("0000-00-00T00:00:00Z")),
        with("/occurredAt", json!("9999-12-31T23:59:59Z")),
        with("/occurredAt", json!("yesterday")),
        with("/tenantId", json!("01a1fcbd-0000-7000-8000-000000000000")),
        with("/tenantId", json!("../../etc/passwd")),
        with("/eventId", json!("x".repeat(2_000))),
        with("/eventId", json!("")),
        with("/payload", json!([])),
    ];
    let twice = event().to_string().replacen('{', "{\"eventId\":\"first\",", 1);
    poison.push(twice.into_bytes());
    poison.push([b"[".repeat(10_000), b"]".repeat(10_000)].concat());
    poison.push([b"{\"a\":".repeat(10_000), b"1".to_vec(), b"}".repeat(10_000)].concat());
    poison.push(event().to_string()[1..].to_owned().into_bytes());
    poison
}
