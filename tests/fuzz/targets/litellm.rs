//! LiteLLM's payload: what may be refused at all, whose it is, and that no client can hide its usage.

use platform_api::domain::amount::{EVENT_COST_MAX, EVENT_UNITS_MAX};
use platform_api::domain::usage::{Kind, Status, UsageEvent};
use platform_api::intake::arrival::{Format, Parsed, TenantClaim};

use super::money::slow_nanos;
use super::{Target, event};
use crate::json::{self, Json};

pub(crate) const TARGET: Target = Target {
    name: "litellm",
    check,
    seeds: &["tests/fixtures/litellm"],
    words: &[
        "id",
        "litellm_call_id",
        "trace_id",
        "call_type",
        "status",
        "success",
        "failure",
        "startTime",
        "endTime",
        "response_cost",
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "model",
        "model_group",
        "custom_llm_provider",
        "cache_hit",
        "request_tags",
        "end_user",
        "error_information",
        "error_code",
        "error_class",
        "metadata",
        "user_api_key_hash",
        "user_api_key_alias",
        "user_api_key_team_id",
        "user_api_key_org_id",
        "user_api_key_project_id",
        "user_api_key_user_id",
        "usage_object",
        "prompt_tokens_details",
        "completion_tokens_details",
        "cached_tokens",
        "cache_creation_tokens",
        "reasoning_tokens",
        "cache_read_input_tokens",
        "User-Agent: x",
        "modelParameters",
    ],
};

/// What the client writes, or its provider: it labels usage.
const LABELS: [&str; 4] = ["end_user", "request_tags", "error_information", "trace_id"];
const TEXTS: [&str; 6] = ["id", "litellm_call_id", "call_type", "model", "model_group", "custom_llm_provider"];
const KEY_TEXTS: [(&str, Option<&str>); 6] = [
    ("user_api_key_team_id", Some("team")),
    ("user_api_key_org_id", Some("organization")),
    ("user_api_key_project_id", Some("project")),
    ("user_api_key_hash", Some("keyHash")),
    ("user_api_key_alias", Some("keyAlias")),
    ("user_api_key_user_id", None),
];

fn check(input: &[u8]) {
    let reading = event::read(input, Format::Litellm);
    let Some(doc) = json::read(input) else {
        return assert!(reading.is_err() || super::batch::is_deep(input), "this is no JSON: {reading:?}");
    };
    event::is_the_same_in_any_order(&doc, Format::Litellm, &reading);
    assert_eq!(reading.is_ok(), slowly(&doc).is_some(), "{reading:?}");
    let Ok(Parsed { event, claim }) = reading else { return };
    is_faithful(&doc, &event);
    assert_eq!(ids_of(&claim), slow_ids(&doc));
    as_an_event(input, &doc, &event);
    let labels_only = without_labels(&doc);
    let bare = event::read(labels_only.write().as_bytes(), Format::Litellm).expect("labels decide nothing").event;
    assert_eq!((bare.key(), bare.amounts, bare.subject), (event.key(), event.amounts, event.subject));
}

/// The one member with this name: `Err` for two, `null` as good as none.
fn member<'a>(of: &'a Json, name: &str) -> Option<Option<&'a Json>> {
    let found = of.all(&[name]);
    match found.as_slice() {
        [] | [Json::Null] => Some(None),
        [one] => Some(Some(one)),
        _ => None,
    }
}

fn is_object(value: &Json) -> Option<()> {
    (matches!(value, Json::Object(_)) && value.has_unicode_names()).then_some(())
}

fn digits(value: &Json) -> Option<String> {
    match value {
        Json::Number(raw) => Some(raw.clone()),
        Json::Text(_) => value.lossy_text(),
        _ => None,
    }
}

/// Everything a payload can be refused for.
fn slowly(doc: &Json) -> Option<()> {
    is_object(doc)?;
    for name in TEXTS {
        member(doc, name)?.map_or(Some(()), |value| value.lossy_text().map(|_| ()))?;
    }
    let named =
        |name: &str| member(doc, name).flatten().and_then(Json::lossy_text).is_some_and(|text| !text.is_empty());
    if !named("id") && !named("litellm_call_id") {
        return None;
    }
    member(doc, "status")??.text().filter(|status| status == "success" || status == "failure")?;
    slow_nanos(&digits(doc.named("startTime")?)?)?;
    for name in ["startTime", "endTime", "response_cost", "cache_hit"].into_iter().chain(LABELS) {
        member(doc, name)?;
    }
    if let Some(end) = member(doc, "endTime")? {
        slow_nanos(&digits(end)?)?;
    }
    if let Some(cost) = member(doc, "response_cost")? {
        slow_nanos(&digits(cost)?).filter(|nanos| (0..=EVENT_COST_MAX.0).contains(nanos))?;
    }
    for name in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        if let Some(units) = member(doc, name)? {
            units.integer().filter(|units| (0..=EVENT_UNITS_MAX).contains(units))?;
        }
    }
    if let Some(metadata) = member(doc, "metadata")? {
        is_object(metadata)?;
        for (name, _) in KEY_TEXTS {
            member(metadata, name)?.map_or(Some(()), |value| value.lossy_text().map(|_| ()))?;
        }
        member(metadata, "usage_object")?;
    }
    Some(())
}

/// What must be counted as it was stated.
fn is_faithful(doc: &Json, event: &UsageEvent) {
    let stated = |name: &str| doc.all(&[name]).into_iter().find_map(Json::integer).unwrap_or(0);
    assert_eq!(event.source, "litellm");
    assert_eq!(event.kind, Kind::Delta);
    let failed = doc.all(&["status"]).into_iter().any(|status| status.text().as_deref() == Some("failure"));
    assert_eq!(event.status == Status::Failure, failed);
    assert_eq!(event.amounts.prompt_tokens, stated("prompt_tokens"));
    assert_eq!(event.amounts.completion_tokens, stated("completion_tokens"));
    let cost = doc.all(&["response_cost"]).into_iter().find_map(digits).map_or(Some(0), |text| slow_nanos(&text));
    assert_eq!(Some(event.amounts.cost.0), cost);
}

fn slow_ids(doc: &Json) -> Vec<(String, String)> {
    let Some(metadata) = doc.named("metadata") else { return Vec::new() };
    let named = |(name, kind): (&'static str, Option<&str>)| {
        let id = metadata.named(name)?.lossy_text().filter(|id| !id.is_empty())?;
        Some((kind?.to_owned(), id))
    };
    KEY_TEXTS.into_iter().filter_map(named).collect()
}

fn ids_of(claim: &TenantClaim) -> Vec<(String, String)> {
    match claim {
        TenantClaim::External(ids) => ids.iter().map(|id| (id.kind.clone(), id.id.clone())).collect(),
        other => panic!("only the key says whose it is: {other:?}"),
    }
}

/// Where anything may come, its telling keys make it what it is.
fn as_an_event(input: &[u8], doc: &Json, event: &UsageEvent) {
    let tells = |name: &str| doc.named(name).is_some();
    if tells("litellm_call_id") && !tells("specversion") && doc.all(&["litellm_call_id"]).len() == 1 {
        let found = event::read(input, Format::Events).map(|parsed| parsed.event);
        assert_eq!(found.as_ref(), Ok(event));
    }
}

fn without_labels(doc: &Json) -> Json {
    let is_label = |raw: &str| json::unescaped(raw).is_some_and(|name| LABELS.contains(&name.as_str()));
    Json::Object(doc.members().iter().filter(|(raw, _)| !is_label(raw)).cloned().collect())
}
