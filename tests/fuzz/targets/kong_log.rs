//! Kong's access log: what is kept is bounded and can be written, whatever a client has put into its request; and of a
//! request nothing is kept but what is named.

use platform_api::domain::reconcile::reading::{READING_TEXT_BYTES_MAX, Role};
use platform_api::intake::kong::access_log::{self, LogRecord};

use super::Target;
use crate::json::{self, Json};

pub(crate) const TARGET: Target = Target {
    name: "kong_log",
    check,
    seeds: &["tests/fixtures/kong"],
    words: &[
        "request",
        "response",
        "headers",
        "id",
        "status",
        "latencies",
        "started_at",
        "1795220331583",
        "1.795220331583e12",
        "consumer",
        "custom_id",
        "username",
        "authenticated_entity",
        "route",
        "name",
        "source",
        "upstream",
        "x-tenant-id",
        "x-litellm-call-id",
        "x-ratelimit-remaining-day",
        "ai",
        "proxy",
        "usage",
        "prompt_tokens",
        "completion_tokens",
        "cost",
        "authorization",
        "502, 200",
        "\\u0000",
        "\\ud800",
        "\n",
    ],
};

fn check(input: &[u8]) {
    let Ok(log) = access_log::read(input) else { return };
    if log.not_json {
        return assert!(log.records.iter().all(Result::is_err));
    }
    for record in log.records.iter().flatten() {
        is_bounded(record);
    }
    if let Some(Json::Array(elements)) = json::read(input) {
        assert_eq!(log.records.len(), elements.len());
        neighbours_are_spared(&elements, &log.records);
    }
}

fn is_bounded(record: &LogRecord) {
    let request = &record.request;
    for text in [&request.request_id, &request.call_id, &request.route] {
        assert!(text.len() <= READING_TEXT_BYTES_MAX && !text.chars().any(char::is_control), "{text:?}");
    }
    assert!(!request.request_id.is_empty());
    assert!((0..=999).contains(&request.status) && request.started_at.0 >= 0);
    assert!((0..=86_400_000_000).contains(&request.duration_micros));
    assert_eq!(request.role, Role::Own);
    if let Some(counted) = request.counted {
        let tokens =
            [counted.prompt_tokens, counted.completion_tokens, counted.cached_tokens, counted.reasoning_tokens];
        assert!(tokens.iter().flatten().all(|tokens| *tokens >= 0) && counted.cost.is_none_or(|cost| cost.0 >= 0));
    }
    if let Some(consumer) = &record.consumer {
        let names = [&consumer.id, &consumer.custom_id, &consumer.username];
        assert!(names.into_iter().flatten().all(|name| name.len() <= READING_TEXT_BYTES_MAX));
    }
}

/// Each record alone says what it says among others.
fn neighbours_are_spared(elements: &[Json], records: &[Result<LogRecord, platform_api::intake::arrival::Unreadable>]) {
    for (element, record) in elements.iter().zip(records) {
        let alone = access_log::read_record(element.write().as_bytes());
        assert_eq!(alone.is_ok(), record.is_ok(), "{}", element.write());
        assert_eq!(alone.as_ref().ok(), record.as_ref().ok());
    }
}
