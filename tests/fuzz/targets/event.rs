//! What holds for every event that a reader accepts.

use platform_api::domain::amount::{EVENT_COST_MAX, EVENT_UNITS_MAX};
use platform_api::domain::usage::{
    Amounts, DETAILS_BYTES_MAX, EVENT_ID_BYTES_MAX, Flags, Kind, LABEL_BYTES_MAX, UsageEvent,
};
use platform_api::intake::arrival::{Format, Parsed, Unreadable, read_item};
use serde_json::Value;

use crate::json::Json;

/// As configured by default.
const EVENT_BYTES_MAX: usize = 1024 * 1024;
/// The longest explanation, in bytes; see `intake::text`.
const EXPLANATION_BYTES_MAX: usize = 400;

/// Reads one item and checks what holds for every reading.
pub(crate) fn read(bytes: &[u8], format: Format) -> Result<Parsed, Unreadable> {
    read_at_most(bytes, format, EVENT_BYTES_MAX)
}

pub(crate) fn read_at_most(bytes: &[u8], format: Format, bytes_max: usize) -> Result<Parsed, Unreadable> {
    let reading = read_item(bytes, format, bytes_max);
    assert!(reading.is_err() || bytes.len() <= bytes_max);
    match &reading {
        Ok(parsed) => is_bounded(&parsed.event),
        Err(problem) => {
            assert!(!problem.detail.is_empty() && problem.detail.len() <= EXPLANATION_BYTES_MAX, "{problem:?}");
            assert!(!problem.detail.chars().any(char::is_control), "{problem:?}");
        }
    }
    reading
}

/// The same document in another order says the same, to the hash.
pub(crate) fn is_the_same_in_any_order(doc: &Json, format: Format, reading: &Result<Parsed, Unreadable>) {
    let reversed = read(doc.reversed().write().as_bytes(), format);
    match (reading, reversed) {
        (Ok(one), Ok(other)) => {
            assert_eq!(*one, other, "the order of members matters");
            assert_eq!((one.event.key(), one.event.body_hash()), (other.event.key(), other.event.body_hash()));
        }
        (Err(_), Err(_)) => {}
        (one, other) => panic!("the order of members decides: {one:?}, {other:?}"),
    }
}

/// Every documented limit.
fn is_bounded(event: &UsageEvent) {
    assert!((1..=LABEL_BYTES_MAX).contains(&event.source.len()));
    assert!((1..=EVENT_ID_BYTES_MAX).contains(&event.event_id.len()));
    let subject = &event.subject;
    let labels = [&subject.user, &subject.group, &subject.api_key, &subject.model, &subject.provider, &event.call_type];
    for label in labels {
        assert!(label.len() <= LABEL_BYTES_MAX, "{label}");
    }
    for text in labels.into_iter().chain([&event.source, &event.event_id, &event.details]) {
        assert!(!text.contains('\0'), "Postgres keeps no NUL: {text:?}");
    }
    let amounts = &event.amounts;
    let Amounts { requests, prompt_tokens, completion_tokens, unclassified_tokens, .. } = *amounts;
    for units in amounts.to_array().into_iter().take(7) {
        assert!((0..=EVENT_UNITS_MAX).contains(&units), "{amounts:?}");
    }
    assert!(amounts.cost.0 >= 0 && amounts.cost <= EVENT_COST_MAX, "{amounts:?}");
    assert!(amounts.cache_read_tokens + amounts.cache_write_tokens <= prompt_tokens, "{amounts:?}");
    assert!(amounts.reasoning_tokens <= completion_tokens, "{amounts:?}");
    assert!(unclassified_tokens == 0 || prompt_tokens + completion_tokens == 0, "{amounts:?}");
    assert!(event.kind == Kind::Delta || (*amounts == Amounts::default() && requests == 0));
    let every = Flags::UNPRICED.with(Flags::CACHE_HIT).with(Flags::TOTAL_DIFFERS).with(Flags::UNDATED);
    assert!(every.has(event.flags), "{:?}", event.flags);
    details_are_an_object(&event.details);
}

/// Empty, or one compact object with sorted keys.
fn details_are_an_object(details: &str) {
    assert!(details.len() <= DETAILS_BYTES_MAX);
    if !details.is_empty() {
        let value: Value = serde_json::from_str(details).expect("details are JSON");
        assert!(value.as_object().is_some_and(|object| !object.is_empty()), "{details}");
        assert_eq!(value.to_string(), details, "compact, sorted, nothing twice");
    }
}
