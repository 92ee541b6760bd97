//! What the payloads captured from a real LiteLLM become; `tests/fixtures/litellm/README.md` tells how each was made.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::arrival::{Format, Limits, Parsed, Reading, TenantClaim, read};
use crate::domain::amount::NanoUsd;
use crate::domain::usage::{Amounts, Flags, Refusal, Status};

const LIMITS: Limits = Limits { events_max: 1_000, event_bytes_max: 8 * 1024 * 1024 };
const ACME: &str =
    "team:team-acme-eng,organization:org-acme,project:proj-assistant,keyHash:d5002616,keyAlias:acme-chat-prod";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/litellm")
}

fn bytes(name: &str) -> Bytes {
    Bytes::from(fs::read(folder().join(name)).unwrap())
}

fn reading(body: &Bytes, format: Format) -> Reading {
    read(body, format, LIMITS).unwrap()
}

fn one(name: &str) -> Parsed {
    let mut items = reading(&bytes(name), Format::Litellm).items;
    assert_eq!(items.len(), 1, "{name}");
    items.remove(0).reading.unwrap_or_else(|problem| panic!("{name}: {problem:?}"))
}

/// The body of a captured request.
fn http_body(name: &str) -> Bytes {
    let request = bytes(name);
    let at = request.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    request.slice(at + 4..)
}

struct Expected {
    name: String,
    status: Status,
    amounts: Amounts,
    flags: Flags,
    model: String,
    external_ids: String,
}

fn expectations() -> Vec<Expected> {
    let table = fs::read_to_string(folder().join("expected.txt")).unwrap();
    table.lines().filter(|line| !line.starts_with('#')).map(expectation).collect()
}

fn expectation(line: &str) -> Expected {
    let cells: Vec<&str> = line.split(" | ").collect();
    let number = |at: usize| cells[at].parse::<i64>().unwrap();
    let flags = cells[9].split('+').fold(Flags::default(), |flags, flag| match flag {
        "-" => flags,
        "hit" => flags.with(Flags::CACHE_HIT),
        "unpriced" => flags.with(Flags::UNPRICED),
        unknown => panic!("no flag {unknown}"),
    });
    Expected {
        name: format!("{}.json", cells[0]),
        status: if cells[1] == "success" { Status::Success } else { Status::Failure },
        amounts: Amounts {
            requests: number(2),
            prompt_tokens: number(3),
            cache_read_tokens: number(4),
            cache_write_tokens: number(5),
            completion_tokens: number(6),
            reasoning_tokens: number(7),
            unclassified_tokens: 0,
            cost: NanoUsd(number(8)),
        },
        flags,
        model: cells[10].to_owned(),
        external_ids: if cells[11] == "acme" { ACME.to_owned() } else { cells[11].to_owned() },
    }
}

fn external_ids(claim: &TenantClaim) -> String {
    let TenantClaim::External(ids) = claim else { panic!("{claim:?}") };
    let shown = |kind: &str, id: &str| if kind == "keyHash" { id[..8].to_owned() } else { id.to_owned() };
    let ids: Vec<String> = ids
        .iter()
        .map(|id| {
            assert_eq!(id.source, "litellm");
            format!("{}:{}", id.kind, shown(&id.kind, &id.id))
        })
        .collect();
    ids.join(",")
}

#[test]
fn every_captured_payload_becomes_its_row() {
    for expected in expectations() {
        let Parsed { event, claim } = one(&expected.name);
        assert_eq!(event.amounts, expected.amounts, "{}", expected.name);
        assert_eq!((event.status, event.flags), (expected.status, expected.flags), "{}", expected.name);
        assert_eq!(event.subject.model, expected.model, "{}", expected.name);
        assert_eq!(external_ids(&claim), expected.external_ids, "{}", expected.name);
        assert_eq!(event.source, "litellm");
        assert!(event.key().0[..6] != [0; 6], "{}: its key begins with its time", expected.name);
    }
}

#[test]
fn no_captured_payload_is_without_expectation() {
    let expected: BTreeSet<String> = expectations().into_iter().map(|expected| expected.name).collect();
    let elsewhere = ["budget_alert_webhooks.json", "variant_generic_api_v1_legacy.json"];
    for file in fs::read_dir(folder()).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let known =
            expected.contains(&name) || elsewhere.contains(&name.as_str()) || name.starts_with("delivery_trace_");
        assert!(known || !name.ends_with(".json"), "{name} is not in expected.txt");
    }
}

#[test]
fn the_normal_case_in_full() {
    let Parsed { event, .. } = one("chat_openai_nonstream_tags_enduser.json");
    assert_eq!(
        event.event_id,
        "1795220656.637243|36d5f5b3-43c2-4b57-86fa-cea3c3a6db3e|chatcmpl-e36161aa13b9472c9f649b99c0623|success"
    );
    assert_eq!(event.occurred_at.micros(), 1_795_220_656_657_743);
    assert_eq!(event.call_type, "acompletion");
    let subject = [&event.subject.user, &event.subject.group, &event.subject.api_key, &event.subject.provider];
    assert_eq!(subject, ["alice@acme.example", "team-acme-eng", "acme-chat-prod", "openai"]);
    assert_eq!(
        event.details,
        concat!(
            r#"{"callId":"36d5f5b3-43c2-4b57-86fa-cea3c3a6db3e","deployment":"openai/gpt-4o","#,
            r#""endUser":"end-user-77","organization":"org-acme","project":"proj-assistant","#,
            r#""tags":["prod","feature:search"],"traceId":"b2224d7d-9160-45c6-aac5-162a6f51a0c5"}"#
        )
    );
}

#[test]
fn no_prompt_and_no_answer_is_kept() {
    for expected in expectations() {
        let kept = format!("{:?}", one(&expected.name).event);
        for content in ["Explain rate limits", "Rate limits cap", "traceback", "Traceback"] {
            assert!(!kept.contains(content), "{}: {content}", expected.name);
        }
    }
}

#[test]
fn forged_metadata_attributes_nothing() {
    let text = String::from_utf8(bytes("chat_client_spoofed_metadata_team_id.json").to_vec()).unwrap();
    assert!(text.contains("SPOOF3"));
    assert!(!format!("{:?}", one("chat_client_spoofed_metadata_team_id.json")).contains("SPOOF3"));
}

#[test]
fn the_legacy_shape_is_quarantined_with_a_way_out() {
    let items = reading(&bytes("variant_generic_api_v1_legacy.json"), Format::Litellm).items;
    let problem = items[0].reading.clone().unwrap_err();
    assert_eq!(problem.reason, Refusal::Malformed);
    assert!(problem.detail.contains("generic_api_use_v1"), "{}", problem.detail);
}

#[test]
fn budget_webhooks_are_no_usage() {
    let webhooks = reading(&bytes("budget_alert_webhooks.json"), Format::Litellm).items;
    assert_eq!(webhooks.len(), 6);
    let posted = reading(&http_body("http_budget_webhook_threshold_crossed.http"), Format::Litellm).items;
    for item in webhooks.into_iter().chain(posted) {
        let problem = item.reading.unwrap_err();
        assert_eq!((problem.reason, problem.detail.contains("missing field")), (Refusal::Malformed, true));
    }
}

#[test]
fn all_three_formats_of_the_callback_are_read() {
    for (name, statuses) in [
        ("http_generic_api_json_array.http", &[Status::Success, Status::Failure][..]),
        ("http_generic_api_ndjson.http", &[Status::Success, Status::Success, Status::Failure]),
        ("http_generic_api_single.http", &[Status::Success]),
    ] {
        for format in [Format::Litellm, Format::Events] {
            let items = reading(&http_body(name), format).items;
            let found: Vec<Status> = items
                .into_iter()
                .map(|item| item.reading.unwrap_or_else(|why| panic!("{name}: {why:?}")).event.status)
                .collect();
            assert_eq!(found, statuses, "{name}");
        }
    }
}

#[test]
fn distinct_calls_have_distinct_keys() {
    let mut keys = HashSet::new();
    for expected in expectations() {
        assert!(keys.insert(one(&expected.name).event.key()), "{}", expected.name);
    }
}

#[test]
fn a_resend_is_the_same_event_whatever_its_key_order() {
    for expected in expectations() {
        let first = one(&expected.name).event;
        // Written again by another library: sorted keys, no spaces, and the texts of numbers kept.
        let text = String::from_utf8(bytes(&expected.name).to_vec()).unwrap();
        let object: std::collections::BTreeMap<String, Box<serde_json::value::RawValue>> =
            serde_json::from_str(&text).unwrap();
        let again = Bytes::from(serde_json::to_vec(&object).unwrap());
        let item = reading(&again, Format::Litellm).items.remove(0);
        let second = item.reading.unwrap().event;
        assert_eq!((first.key(), first.body_hash()), (second.key(), second.body_hash()), "{}", expected.name);
    }
}

#[derive(serde::Deserialize)]
struct Trace {
    client_completed_ids: Vec<String>,
    posts: Vec<Post>,
}

#[derive(serde::Deserialize)]
struct Post {
    event_ids: Vec<String>,
}

/// LiteLLM's own sender, replayed as it was seen: surplus copies are duplicates, and nothing else is lost by us.
#[test]
fn replayed_deliveries_count_each_call_once() {
    let template = String::from_utf8(bytes("chat_openai_nonstream_minimal.json").to_vec()).unwrap();
    let id = one("chat_openai_nonstream_minimal.json").event.event_id.split('|').nth(2).unwrap().to_owned();
    for (name, copies, lost) in [
        ("delivery_trace_batch50.json", true, 35),
        ("delivery_trace_default_slow.json", false, 57),
        ("delivery_trace_retry_timeouts.json", true, 0),
    ] {
        let trace: Trace = serde_json::from_slice(&bytes(name)).unwrap();
        let mut ledger = HashMap::new();
        let mut received = 0;
        for post in &trace.posts {
            let events: Vec<String> = post.event_ids.iter().map(|of| template.replace(&id, of)).collect();
            let body = Bytes::from(format!("[{}]", events.join(",")));
            for item in reading(&body, Format::Litellm).items {
                let event = item.reading.unwrap().event;
                received += 1;
                let known = ledger.insert(event.key(), event.body_hash());
                assert!(known.is_none_or(|hash| hash == event.body_hash()), "{name}: a copy is no conflict");
            }
        }
        let sent: HashSet<&String> = trace.posts.iter().flat_map(|post| &post.event_ids).collect();
        assert_eq!(ledger.len(), sent.len(), "{name}");
        assert_eq!(received > ledger.len(), copies, "{name}");
        let missing = trace.client_completed_ids.iter().filter(|id| !sent.contains(id)).count();
        assert_eq!(missing, lost, "{name}");
    }
}
