//! OpenMeter's events: what their flat `data` is counted as, that both doors read it alike, and that the time of arrival is
//! no part of what an event says.

use platform_api::domain::amount::EVENT_UNITS_MAX;
use platform_api::domain::ids::TenantId;
use platform_api::domain::time::Timestamp;
use platform_api::domain::usage::{Amounts, Flags};
use platform_api::intake::arrival::{Format, Parsed, TenantClaim};

use super::{Target, event};
use crate::json::{self, Json};

pub(crate) const TARGET: Target = Target {
    name: "openmeter",
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
        "data",
        "tokens",
        "input",
        "output",
        "system",
        "prompt_tokens",
        "promptTokens",
        "input_tokens",
        "completion_tokens",
        "outputTokens",
        "total_tokens",
        "cached_tokens",
        "reasoning_tokens",
        "requests",
        "cost",
        "model",
        "provider",
        "status",
        "failure",
        "kind",
        "cumulative",
        "usage",
        "costUsd",
        "\"123456\"",
        "7.0",
        "customer-1",
        "6f1c9f0e-2f6b-4c0c-9d39-3f3a1c2b4d5e",
    ],
};

const PROMPT: [&str; 4] = ["prompt_tokens", "promptTokens", "input_tokens", "inputTokens"];
const COMPLETION: [&str; 4] = ["completion_tokens", "completionTokens", "output_tokens", "outputTokens"];
const TOTAL: [&str; 2] = ["total_tokens", "totalTokens"];

fn check(input: &[u8]) {
    let reading = event::read(input, Format::OpenMeter);
    let Some(doc) = json::read(input) else {
        return assert!(reading.is_err() || super::batch::is_deep(input), "this is no JSON: {reading:?}");
    };
    event::is_the_same_in_any_order(&doc, Format::OpenMeter, &reading);
    let elsewhere = event::read(input, Format::Events);
    let Ok(Parsed { event, claim }) = reading else {
        let is_cloud_event = doc.all(&["specversion"]).len() == 1;
        return assert!(!is_cloud_event || elsewhere.is_err(), "only the other door takes it: {elsewhere:?}");
    };
    let is_dated = doc.named("time").is_some_and(|time| *time != Json::Null);
    assert_eq!(event.flags.has(Flags::UNDATED), !is_dated);
    match elsewhere {
        Ok(there) => assert_eq!(there.event, event, "one event at one door, another at the other"),
        Err(problem) => assert!(!is_dated, "only this door takes it: {problem:?}"),
    }
    let mut later = event.clone();
    later.occurred_at = Timestamp(event.occurred_at.0 + 1);
    assert_eq!(later.identity() == event.identity(), !is_dated, "a stated time is a part of what is said");
    is_whose_it_says(&doc, &claim);
    let data = doc.named("data").expect("an event has data");
    if !in_the_envelope_s_words(data) && states_something(data) {
        assert_eq!(Some(tokens_of(&event.amounts)), slow_tokens(data), "{}", data.write());
    }
}

fn is_whose_it_says(doc: &Json, claim: &TenantClaim) {
    let text = |name: &str| doc.named(name).and_then(Json::text);
    match (text("tenantid"), text("subject").filter(|subject| !subject.is_empty()), claim) {
        (None, subject, TenantClaim::Subject(named)) => assert_eq!(subject.as_ref(), Some(named)),
        (None, None, TenantClaim::Absent) => {}
        (Some(id), _, TenantClaim::Named(tenant)) => assert_eq!(id.parse::<TenantId>().ok(), Some(*tenant)),
        (Some(_), _, TenantClaim::NamedUnknown(_)) | (Some(_), Some(_), TenantClaim::Contradictory) => {}
        other => panic!("{other:?}"),
    }
}

fn in_the_envelope_s_words(data: &Json) -> bool {
    let stated = |name: &str| data.all(&[name]).into_iter().any(|value| *value != Json::Null);
    let cumulative = data.all(&["kind"]).into_iter().any(|kind| kind.lossy_text().as_deref() == Some("cumulative"));
    stated("usage") || stated("costUsd") || stated("cost_usd") || cumulative
}

fn states_something(data: &Json) -> bool {
    let others = ["tokens", "cached_tokens", "cachedTokens", "reasoning_tokens", "reasoningTokens", "requests", "cost"];
    let names = [PROMPT.as_slice(), &COMPLETION, &TOTAL, &others].concat();
    data.all(&names).into_iter().any(|value| *value != Json::Null)
}

fn tokens_of(amounts: &Amounts) -> (i64, i64, i64) {
    (amounts.prompt_tokens, amounts.completion_tokens, amounts.unclassified_tokens)
}

/// Prompt, completion and unclassified tokens, by the obvious way.
fn slow_tokens(data: &Json) -> Option<(i64, i64, i64)> {
    let number = |names: &[&str]| match data.all(names).as_slice() {
        [] | [Json::Null] => Some(None),
        [value] => slow_whole(value).map(Some),
        _ => None,
    };
    let (tokens, total) = (number(&["tokens"])?, number(&TOTAL)?);
    let (prompt, completion) = (number(&PROMPT)?, number(&COMPLETION)?);
    let class = data.named("type").and_then(Json::lossy_text).unwrap_or_default();
    if let (Some(tokens), None, None) = (tokens, prompt, completion) {
        let rest = |part: i64| total.map_or(0, |total| (total - part).max(0));
        match class.as_str() {
            "input" | "prompt" | "system" => return Some((tokens, rest(tokens), 0)),
            "output" | "completion" => return Some((rest(tokens), tokens, 0)),
            _ => {}
        }
    }
    let total = total.or(tokens);
    let rest = |part: Option<i64>| Some(total? - part?).filter(|rest| *rest >= 0);
    match (prompt.or(rest(completion)), completion.or(rest(prompt))) {
        (None, None) => Some((0, 0, total.unwrap_or(0))),
        (prompt, completion) => Some((prompt.unwrap_or(0), completion.unwrap_or(0), 0)),
    }
}

fn slow_whole(value: &Json) -> Option<i64> {
    let text = match value {
        Json::Number(raw) => raw.clone(),
        Json::Text(_) => value.lossy_text()?,
        _ => return None,
    };
    let text = text.trim();
    let digits = match text.split_once('.') {
        Some((digits, zeros)) if !zeros.is_empty() && zeros.chars().all(|digit| digit == '0') => digits,
        _ => text,
    };
    digits.parse().ok().filter(|number| (0..=EVENT_UNITS_MAX).contains(number))
}
