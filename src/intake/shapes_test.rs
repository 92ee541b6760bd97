//! Envelopes, CloudEvents, and everything that is neither.

use std::fs;
use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;

use super::arrival::{Format, Item, Limits, Parsed, TenantClaim, Unreadable, read, read_item};
use super::cloudevents;
use crate::domain::amount::NanoUsd;
use crate::domain::ids::TenantId;
use crate::domain::usage::{Amounts, DETAILS_BYTES_MAX, Flags, Kind, Refusal, Status};

const LIMITS: Limits = Limits { events_max: 1_000, event_bytes_max: 64 * 1024 };
const TENANT: &str = "6f1c9f0e-2f6b-4c0c-9d39-3f3a1c2b4d5e";

fn fixture(name: &str) -> Bytes {
    Bytes::from(fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap())
}

fn items(body: &Bytes) -> Vec<Item> {
    read(body, Format::Events, LIMITS).unwrap().items
}

fn parse(json: &str) -> Result<Parsed, Unreadable> {
    read_item(json.as_bytes(), Format::Events, LIMITS.event_bytes_max)
}

fn one(name: &str) -> Parsed {
    let mut items = items(&fixture(name));
    assert_eq!(items.len(), 1);
    items.remove(0).reading.unwrap()
}

fn tenant() -> TenantClaim {
    TenantClaim::Named(TENANT.parse::<TenantId>().unwrap())
}

/// An envelope with this payload.
fn envelope(payload: &str) -> String {
    format!(r#"{{"eventId":"e","occurredAt":"2026-11-20T15:37:12Z","payload":{payload}}}"#)
}

fn usage(usage: &str) -> Result<Parsed, Unreadable> {
    parse(&envelope(&format!(r#"{{"usage":{usage}}}"#)))
}

#[test]
fn an_envelope_in_full() {
    let Parsed { event, claim } = one("usage/envelope.json");
    assert_eq!(claim, tenant());
    assert_eq!((event.source.as_str(), event.event_id.as_str()), ("kong", "0199a8b2-5c00-7abc-8def-0123456789ab"));
    assert_eq!(event.occurred_at.to_string(), "2026-11-20T15:37:12.345Z");
    assert_eq!((event.kind, event.status, event.flags), (Kind::Delta, Status::Success, Flags::default()));
    let amounts = Amounts {
        requests: 2,
        prompt_tokens: 100,
        cache_read_tokens: 40,
        cache_write_tokens: 10,
        completion_tokens: 20,
        reasoning_tokens: 5,
        unclassified_tokens: 0,
        cost: NanoUsd(135_000),
    };
    assert_eq!(event.amounts, amounts);
    let subject = &event.subject;
    assert_eq!(
        [&subject.user, &subject.group, &subject.api_key, &subject.model, &subject.provider],
        ["alice", "engineering", "key-1", "gpt-4o", "openai"]
    );
    assert_eq!(
        event.details,
        r#"{"correlationId":"corr-7","platformId":"eu-central","requestId":"req-9","tags":["prod","search"]}"#
    );
}

#[test]
fn snake_case_in_another_order_is_the_same_event() {
    let (camel, snake) = (one("usage/envelope.json"), one("usage/envelope_snake_case.json"));
    assert_eq!(camel, snake);
    assert_eq!(camel.event.body_hash(), snake.event.body_hash());
}

#[test]
fn a_cumulative_statement_is_kept_and_never_added() {
    let event = one("usage/envelope_cumulative.json").event;
    assert_eq!((event.kind, event.amounts, event.flags), (Kind::Cumulative, Amounts::default(), Flags::default()));
    assert_eq!(
        event.details,
        r#"{"statement":{"completionTokens":100,"costUsd":"0.5","promptTokens":900,"requests":12}}"#
    );
}

#[test]
fn token_classes_and_totals() {
    let row = |text: &str| {
        let event = usage(text).unwrap_or_else(|why| panic!("{text}: {why:?}")).event;
        let of = event.amounts;
        (
            of.requests,
            of.prompt_tokens,
            of.completion_tokens,
            of.unclassified_tokens,
            event.flags.has(Flags::TOTAL_DIFFERS),
        )
    };
    for (text, expected) in [
        (r#"{"tokens":74}"#, (1, 0, 0, 74, false)),
        (r#"{"totalTokens":74}"#, (1, 0, 0, 74, false)),
        (r#"{"tokens":74,"totalTokens":74}"#, (1, 0, 0, 74, false)),
        (r#"{"promptTokens":57,"completionTokens":17}"#, (1, 57, 17, 0, false)),
        (r#"{"promptTokens":57,"completionTokens":17,"totalTokens":80}"#, (1, 57, 17, 0, true)),
        // A total and one part state the other part, unless they contradict each other.
        (r#"{"promptTokens":57,"totalTokens":74}"#, (1, 57, 17, 0, false)),
        (r#"{"completionTokens":17,"totalTokens":74}"#, (1, 57, 17, 0, false)),
        (r#"{"promptTokens":57,"totalTokens":50}"#, (1, 57, 0, 0, true)),
        (r#"{"promptTokens":57,"completionTokens":null}"#, (1, 57, 0, 0, false)),
        (r#"{"requests":3}"#, (3, 0, 0, 0, false)),
    ] {
        assert_eq!(row(text), expected, "{text}");
    }
    let kept = usage(r#"{"promptTokens":57,"completionTokens":17,"totalTokens":80}"#).unwrap().event.details;
    assert_eq!(kept, r#"{"senderTotal":80}"#);
}

#[test]
fn a_request_counts_when_it_consumed_something() {
    for (payload, requests, unpriced) in [
        (r#"{"status":"failure"}"#, 0, false),
        (r#"{"status":"failure","usage":{"tokens":5}}"#, 1, false),
        (r#"{"status":"failure","costUsd":0.1}"#, 1, false),
        (r#"{"usage":{"tokens":0}}"#, 1, false),
        (r#"{"usage":{"tokens":5}}"#, 1, true),
        (r#"{"usage":{"tokens":5},"costUsd":0}"#, 1, false),
        (r#"{"costUsd":"7"}"#, 1, false),
    ] {
        let event = parse(&envelope(payload)).unwrap_or_else(|why| panic!("{payload}: {why:?}")).event;
        assert_eq!((event.amounts.requests, event.flags.has(Flags::UNPRICED)), (requests, unpriced), "{payload}");
    }
}

#[test]
fn what_is_wrong_is_named_with_its_path() {
    use Refusal::{AmountOverflow, Malformed, Oversized};
    let long = "x".repeat(257);
    let huge = format!(r#"{{"eventId":"{}","occurredAt":"2026-11-20T15:37:12Z","payload":{{}}}}"#, "x".repeat(1_025));
    let tags = format!(r#"{{"usage":{{"tokens":1}},"tags":["{}"]}}"#, "x".repeat(DETAILS_BYTES_MAX));
    let label = format!(r#"{{"usage":{{"tokens":1}},"model":"{long}"}}"#);
    for (json, reason, detail) in [
        (envelope(r#"{"usage":{"tokens":-1}}"#), Malformed, "payload.usage.tokens: below zero"),
        (envelope(r#"{"usage":{"tokens":"5"}}"#), Malformed, "payload.usage.tokens: invalid type"),
        (envelope(r#"{"usage":{"tokens":1.5}}"#), Malformed, "payload.usage.tokens: invalid type"),
        (envelope(r#"{"usage":{"tokens":1e400}}"#), Malformed, "payload.usage.tokens: "),
        (envelope(r#"{"usage":{"tokens":18446744073709551616}}"#), Malformed, "payload.usage.tokens: "),
        (envelope(r#"{"usage":{"tokens":1000000000001}}"#), AmountOverflow, "payload.usage.tokens: above"),
        (envelope(r#"{"usage":{"promptTokens":5,"cacheReadTokens":6}}"#), Malformed, "payload.usage: cache tokens"),
        (envelope(r#"{"usage":{"tokens":5,"reasoningTokens":6}}"#), Malformed, "payload.usage.reasoningTokens: "),
        (envelope(r#"{"usage":{"tokens":5,"totalTokens":6}}"#), Malformed, "payload.usage: tokens and totalTokens"),
        (envelope(r#"{"usage":{"inputTokens":5}}"#), Malformed, "payload.usage: states no tokens"),
        (envelope("{}"), Malformed, "payload.usage: states no tokens"),
        (envelope(r#"{"usage":{"tokens":1},"costUsd":-1}"#), Malformed, "payload.costUsd: below zero"),
        (envelope(r#"{"usage":{"tokens":1},"costUsd":"NaN"}"#), Malformed, "payload.costUsd: not a decimal"),
        (envelope(r#"{"usage":{"tokens":1},"costUsd":true}"#), Malformed, "payload.costUsd: not a decimal"),
        (envelope(r#"{"usage":{"tokens":1},"costUsd":1e400}"#), AmountOverflow, "payload.costUsd: above"),
        (envelope(r#"{"usage":{"tokens":1},"costUsd":100001}"#), AmountOverflow, "payload.costUsd: above"),
        (envelope(r#"{"usage":{"tokens":1},"kind":"gauge"}"#), Malformed, "payload.kind: neither delta"),
        (envelope(r#"{"usage":{"tokens":1},"costUsd":1,"cost_usd":2}"#), Malformed, "duplicate field"),
        (envelope(r#"{"usage":{"tokens":1},"model":"a\u0000b"}"#), Malformed, "payload.model: contains a NUL"),
        (envelope(r#"{"usage":{"tokens":1},"tags":["a\u0000b"]}"#), Malformed, "NUL"),
        (envelope(r#"{"usage":{"tokens":1},"tags":[1]}"#), Malformed, "payload.tags[0]: "),
        (envelope(&label), Oversized, "payload.model: 257 bytes"),
        (envelope(&tags), Oversized, "details: "),
        (huge, Oversized, "eventId: 1025 bytes"),
        (r#"{"eventId":"e","payload":{}}"#.into(), Malformed, "missing field `occurredAt`"),
        (r#"{"eventId":"","occurredAt":"2026-11-20T15:37:12Z","payload":{}}"#.into(), Malformed, "eventId: empty"),
        (r#"{"eventId":"e","occurredAt":"2026-11-20","payload":{}}"#.into(), Malformed, "occurredAt: not an RFC 3339"),
        ("[]".into(), Malformed, "not a JSON object"),
        (r#"{"eventId":"e"} x"#.into(), Malformed, ""),
    ] {
        let shown: String = json.chars().take(200).collect();
        let problem = parse(&json).expect_err(&shown);
        assert_eq!(problem.reason, reason, "{shown}: {problem:?}");
        assert!(problem.detail.contains(detail), "{shown}: {problem:?}");
    }
}

#[test]
fn a_tenant_is_a_uuid_or_nobody() {
    let named = |text: &str| {
        let json = format!(
            r#"{{"eventId":"e","occurredAt":"2026-11-20T15:37:12Z","tenantId":{text},"payload":{{"costUsd":1}}}}"#
        );
        parse(&json).unwrap().claim
    };
    assert_eq!(named(&format!("\"{TENANT}\"")), tenant());
    assert_eq!(named("\"acme\""), TenantClaim::NamedUnknown("acme".into()));
    assert_eq!(named("null"), TenantClaim::Absent);
}

#[test]
fn a_structured_cloudevent() {
    let Parsed { event, claim } = one("usage/cloudevent.json");
    assert_eq!(claim, tenant());
    assert_eq!((event.source.as_str(), event.event_id.as_str()), ("/gateways/eu-1", "A234-1234-1234"));
    assert_eq!((event.amounts.unclassified_tokens, event.amounts.cost), (74, NanoUsd(312_500)));
    assert_eq!(event.subject.user, "bob");
    assert_eq!(event.details, r#"{"correlationId":"corr-8","type":"com.example.usage.v1"}"#);
}

#[test]
fn a_batch_of_cloudevents_is_read_one_by_one() {
    let readings: Vec<_> =
        items(&fixture("usage/cloudevents_batch.json")).into_iter().map(|item| item.reading).collect();
    assert_eq!(readings[0].as_ref().unwrap().claim, tenant());
    assert_eq!(readings[1].as_ref().unwrap_err().detail, "specversion: only 1.0 is understood");
    assert_eq!(readings[2].as_ref().unwrap().claim, TenantClaim::Contradictory);
}

#[test]
fn a_binary_cloudevent_is_the_structured_one() {
    let data = r#"{"model": "gpt-4o", "usage": {"tokens": 74}, "costUsd": 0.00031250000000000006, "actor": {"userId": "bob"}}"#;
    let headers = [
        ("Content-Type", "application/json; charset=utf-8"),
        ("CE-specversion", "1.0"),
        ("ce-type", "com.example.usage.v1"),
        ("Ce-Source", "/gateways/eu%2D1"),
        ("ce-id", "A234-1234-1234"),
        ("ce-time", "2026-11-20T15:37:12Z"),
        ("ce-subject", TENANT),
        ("ce-correlationid", "corr-8"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ];
    let body = cloudevents::structured(headers, Bytes::from_static(data.as_bytes()));
    assert_eq!(items(&body).remove(0).reading, Ok(one("usage/cloudevent.json")));
    // Without the attributes it is what it is.
    let plain = Bytes::from_static(data.as_bytes());
    assert_eq!(cloudevents::structured([("content-type", "application/json")], plain.clone()), plain);
    // Data that is no JSON is one bad event, and its bytes are still there.
    let broken = cloudevents::structured(headers, Bytes::from_static(b"tokens=5"));
    let item = items(&broken).remove(0);
    assert_eq!(item.reading.unwrap_err().detail, "data: missing, or not JSON");
    assert!(String::from_utf8_lossy(&item.raw).contains("tokens=5"));
}

#[test]
fn a_client_of_litellm_cannot_hide_its_usage() {
    let template = String::from_utf8(fixture("litellm/chat_openai_nonstream_tags_enduser.json").to_vec()).unwrap();
    let reread = |from: &str, to: &str| {
        assert!(template.contains(from));
        read_item(template.replace(from, to).as_bytes(), Format::Litellm, LIMITS.event_bytes_max).unwrap().event
    };
    let original = reread("end-user-77", "end-user-77");
    let long = "é".repeat(3_000);
    let call = "36d5f5b3-43c2-4b57-86fa-cea3c3a6db3e";
    for (from, to) in [
        ("end-user-77", long.as_str()),
        ("end-user-77", r"a\u0000b"),
        ("feature:search", long.as_str()),
        ("feature:search", r"\u0000"),
        ("acompletion", long.as_str()),
        ("\"gpt-4o\"", &format!("\"{long}\"")),
        (call, &long),
        (call, r"\u0000"),
        ("\"end_user\": \"end-user-77\"", "\"end_user\": {\"a\": [1]}"),
    ] {
        let event = reread(from, to);
        assert_eq!(event.amounts, original.amounts, "{from}");
        assert!(event.event_id.len() <= 1_024 && event.details.len() <= DETAILS_BYTES_MAX, "{from}");
        assert!(!event.event_id.contains('\0') && event.subject.model.len() <= 256, "{from}");
    }
    // Two long texts that begin alike stay two.
    let (first, second) = (format!("{long}1"), format!("{long}2"));
    assert_ne!(reread(call, &first).key(), reread(call, &second).key());
    assert_ne!(
        reread("\"gpt-4o\"", &format!("\"{first}\"")).subject.model,
        reread("\"gpt-4o\"", &format!("\"{second}\"")).subject.model
    );
}

#[test]
fn shares_of_litellm_never_exceed_their_whole() {
    let template = String::from_utf8(fixture("litellm/chat_openai_nonstream_minimal.json").to_vec()).unwrap();
    let changed = template.replace("\"cached_tokens\": 0", "\"cached_tokens\": 58");
    let event = read_item(changed.as_bytes(), Format::Litellm, LIMITS.event_bytes_max).unwrap().event;
    assert_eq!(event.amounts.cache_read_tokens, 57);
    assert!(event.details.contains(r#""senderCacheRead":58"#), "{}", event.details);
}

fn samples() -> Vec<Bytes> {
    [
        "usage/envelope.json",
        "usage/envelope_cumulative.json",
        "usage/cloudevents_batch.json",
        "litellm/variant_excluded_fields.json",
        "litellm/failure_unknown_model.json",
    ]
    .map(fixture)
    .to_vec()
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for format in Format::ALL {
            let _ = read(&Bytes::from(bytes.clone()), format, LIMITS);
        }
    }

    #[test]
    fn a_damaged_body_never_panics_and_nothing_of_it_disappears(
        sample in proptest::sample::select(samples()),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = sample.to_vec();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for length in [bytes.len(), cut.index(bytes.len())] {
            let body = Bytes::copy_from_slice(&bytes[..length]);
            for format in Format::ALL {
                let reading = read(&body, format, LIMITS).unwrap();
                prop_assert!(!reading.not_json || reading.items.len() == 1 && reading.items[0].raw == body);
                for item in reading.items {
                    if let Ok(parsed) = item.reading {
                        let numbers = parsed.event.amounts.to_array();
                        prop_assert!(numbers.iter().all(|number| *number >= 0));
                        prop_assert!(parsed.event.details.len() <= DETAILS_BYTES_MAX);
                        let texts = [&parsed.event.event_id, &parsed.event.source, &parsed.event.subject.user];
                        prop_assert!(texts.iter().all(|text| !text.contains('\0')));
                    }
                }
            }
        }
    }

    #[test]
    fn structured_headers_never_panic(headers in proptest::collection::vec(("(ce-)?[a-z]{1,12}", "\\PC{0,20}"), 0..6)) {
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let body = cloudevents::structured(headers, Bytes::from_static(b"{}"));
        let _ = read(&body, Format::Events, LIMITS);
    }
}
