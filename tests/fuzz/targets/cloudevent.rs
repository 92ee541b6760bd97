//! CloudEvents: structured, and binary over headers.
//!
//! An input is one structured event; or, when it begins with a line `name: value`, headers, an empty line and the data
//! of a binary one.

use bytes::Bytes;
use platform_api::domain::usage::{Amounts, LABEL_BYTES_MAX};
use platform_api::intake::arrival::{Format, Parsed};
use platform_api::intake::cloudevents;

use super::{Target, event};
use crate::json::{self, Json};

pub(crate) const TARGET: Target = Target {
    name: "cloudevent",
    check,
    seeds: &["tests/fixtures/usage"],
    words: &[
        "specversion",
        "1.0",
        "id",
        "source",
        "type",
        "time",
        "subject",
        "tenantid",
        "correlationid",
        "platformid",
        "datacontenttype",
        "application/json",
        "data",
        "data_base64",
        "ce-specversion: 1.0\n",
        "ce-id: 1\n",
        "ce-source: /s\n",
        "ce-time: 2026-11-20T15:37:12Z\n",
        "content-type: application/json\n",
        "ce-",
        "%20",
        "%",
        "%zz",
        "6f1c9f0e-2f6b-4c0c-9d39-3f3a1c2b4d5e",
        "payload",
        "usage",
        "tokens",
    ],
};

fn check(input: &[u8]) {
    match input.first() {
        Some(b'{') => structured(input),
        _ => binary(input),
    }
}

fn structured(input: &[u8]) {
    let reading = event::read(input, Format::Events);
    let Some(doc) = json::read(input) else { return };
    if doc.named("specversion").is_none() {
        return;
    }
    event::is_the_same_in_any_order(&doc, Format::Events, &reading);
    let Ok(Parsed { event, .. }) = reading else { return };
    let text = |name: &str| doc.named(name).and_then(Json::text);
    assert_eq!(text("specversion").as_deref(), Some("1.0"));
    assert_eq!(text("id").as_deref(), Some(event.event_id.as_str()));
    assert_eq!(text("source").as_deref(), Some(event.source.as_str()));
    assert_eq!(text("time").and_then(|time| time.parse().ok()), Some(event.occurred_at));
    for name in ["specversion", "id", "source", "time", "data", "subject", "tenantid", "datacontenttype"] {
        assert!(doc.all(&[name]).len() <= 1, "{name} is there twice");
    }
    let data = doc.named("data").expect("an event has data");
    // What is stated in OpenMeter's words is its own target's.
    let in_our_words = ["usage", "costUsd", "cost_usd"].iter().any(|name| data.named(name).is_some());
    if !in_our_words && event.amounts != Amounts::default() {
        return;
    }
    is_what_the_envelope_says(&event, data);
}

/// The same payload in an envelope gives the same amounts, subject and details, but for what only a CloudEvent has.
fn is_what_the_envelope_says(event: &platform_api::domain::usage::UsageEvent, data: &Json) {
    let actor = data.named("actor").cloned().unwrap_or(Json::Null);
    let unnamed: Vec<_> =
        data.members().iter().filter(|(name, _)| json::unescaped(name).as_deref() != Some("source")).cloned().collect();
    let envelope = format!(
        r#"{{"eventId":"e","occurredAt":"2026-11-20T15:37:12Z","actor":{},"payload":{}}}"#,
        actor.write(),
        Json::Object(unnamed).write()
    );
    let twin = event::read(envelope.as_bytes(), Format::Events).expect("the payload of an accepted event").event;
    assert_eq!(
        (event.amounts, event.flags, event.kind, event.status),
        (twin.amounts, twin.flags, twin.kind, twin.status)
    );
    assert_eq!((&event.subject, &event.call_type), (&twin.subject, &twin.call_type));
}

fn binary(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (head, data) = text.split_once("\n\n").unwrap_or((text, ""));
    let headers: Vec<(&str, &str)> = head.lines().filter_map(|line| line.split_once(": ")).collect();
    let body = Bytes::copy_from_slice(data.as_bytes());
    let made = cloudevents::structured(headers.iter().copied(), body.clone());
    let is_event = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("ce-specversion"));
    if !is_event {
        return assert_eq!(made, body, "without ce-specversion it is no event");
    }
    let doc = json::read(&made);
    let Some(doc) = doc else { return assert!(super::batch::is_deep(&made), "what is made of a binary event is JSON") };
    assert!(!doc.members().is_empty());
    if json::read(data.as_bytes()).is_some() {
        let written = doc.all(&["data"]).last().map(|data| data.write());
        assert_eq!(written, json::read(data.as_bytes()).map(|data| data.write()), "the data is what was sent");
    }
    if let Ok(parsed) = event::read(&made, Format::Events) {
        assert!(parsed.event.source.len() <= LABEL_BYTES_MAX);
        structured(&made);
    }
}
