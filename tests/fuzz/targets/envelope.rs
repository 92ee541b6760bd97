//! The platform's envelope, against the contract written down a second time, slowly.

use platform_api::domain::amount::{EVENT_COST_MAX, EVENT_UNITS_MAX, NanoUsd};
use platform_api::domain::usage::{
    Amounts, DETAILS_BYTES_MAX, EVENT_ID_BYTES_MAX, Flags, Kind, LABEL_BYTES_MAX, Status, Subject, UsageEvent,
};
use platform_api::intake::arrival::{Format, Parsed, TenantClaim};
use serde_json::{Map, Value};

use super::Target;
use super::event;
use super::money::slow_nanos;
use crate::json::{self, Json};

pub(crate) const TARGET: Target = Target {
    name: "envelope",
    check,
    seeds: &["tests/fixtures/usage"],
    words: &[
        "eventId",
        "event_id",
        "occurredAt",
        "occurred_at",
        "tenantId",
        "tenant_id",
        "platformId",
        "correlationId",
        "actor",
        "userId",
        "groupId",
        "apiKeyId",
        "payload",
        "source",
        "kind",
        "delta",
        "cumulative",
        "model",
        "provider",
        "callType",
        "call_type",
        "status",
        "success",
        "failure",
        "requestId",
        "usage",
        "tokens",
        "totalTokens",
        "promptTokens",
        "completionTokens",
        "cacheReadTokens",
        "cacheWriteTokens",
        "reasoningTokens",
        "requests",
        "costUsd",
        "cost_usd",
        "tags",
        "6f1c9f0e-2f6b-4c0c-9d39-3f3a1c2b4d5e",
    ],
};

fn check(input: &[u8]) {
    let reading = event::read(input, Format::Events);
    let Some(doc) = json::read(input) else {
        return assert!(reading.is_err() || super::batch::is_deep(input), "this is no JSON: {reading:?}");
    };
    if !doc.all(&["specversion", "litellm_call_id"]).is_empty() {
        return;
    }
    event::is_the_same_in_any_order(&doc, Format::Events, &reading);
    match (&reading, expected(&doc)) {
        (Ok(Parsed { event, claim }), Some((expected, tenant))) => {
            assert_eq!(*event, expected);
            assert_eq!(claim_of(claim), tenant.map(|text| text.parse().map_err(|_| ())));
        }
        (Err(_), None) => {}
        (reading, expected) => panic!("{reading:?}, expected {expected:?}"),
    }
}

type Named = Result<platform_api::domain::ids::TenantId, ()>;

fn claim_of(claim: &TenantClaim) -> Option<Named> {
    match claim {
        TenantClaim::Named(tenant) => Some(Ok(*tenant)),
        TenantClaim::NamedUnknown(_) => Some(Err(())),
        TenantClaim::Absent => None,
        other => panic!("an envelope cannot claim {other:?}"),
    }
}

/// The member with one of these names: `Err` for two of them, `null` as good as none.
fn member<'a>(of: &'a Json, names: &[&str]) -> Result<Option<&'a Json>, ()> {
    let found = of.all(names);
    match found.as_slice() {
        [] | [Json::Null] => Ok(None),
        [one] => Ok(Some(one)),
        _ => Err(()),
    }
}

fn text(of: &Json, names: &[&str]) -> Result<Option<String>, ()> {
    member(of, names)?.map(|value| value.text().ok_or(())).transpose()
}

fn object<'a>(of: &'a Json, name: &str) -> Result<Option<&'a Json>, ()> {
    match member(of, &[name])? {
        None => Ok(None),
        Some(found @ Json::Object(_)) if found.has_unicode_names() => Ok(Some(found)),
        Some(_) => Err(()),
    }
}

fn units(of: &Json, names: &[&str]) -> Result<Option<i64>, ()> {
    let Some(value) = member(of, names)? else { return Ok(None) };
    value.integer().filter(|units| (0..=EVENT_UNITS_MAX).contains(units)).map(Some).ok_or(())
}

fn short(text: Option<String>, bytes_max: usize) -> Result<String, ()> {
    let text = text.unwrap_or_default();
    if text.len() > bytes_max || text.contains('\0') { Err(()) } else { Ok(text) }
}

/// The event an envelope means and the tenant it names; `None` when it has to be refused.
fn expected(doc: &Json) -> Option<(UsageEvent, Option<String>)> {
    slowly(doc).ok()
}

fn slowly(doc: &Json) -> Result<(UsageEvent, Option<String>), ()> {
    if !matches!(doc, Json::Object(_)) || !doc.has_unicode_names() {
        return Err(());
    }
    let payload = object(doc, "payload")?.ok_or(())?;
    let nobody = Json::Object(Vec::new());
    let actor = object(doc, "actor")?.unwrap_or(&nobody);
    let subject = subject(actor, payload)?;
    // It counts in a CloudEvent only, and is read in both.
    self::subject(object(payload, "actor")?.unwrap_or(&nobody), &nobody)?;
    let kind = match text(payload, &["kind"])?.as_deref() {
        None | Some("delta") => Kind::Delta,
        Some("cumulative") => Kind::Cumulative,
        _ => return Err(()),
    };
    let status = match text(payload, &["status"])?.as_deref() {
        None | Some("success") => Status::Success,
        Some("failure") => Status::Failure,
        _ => return Err(()),
    };
    let mut details = Map::new();
    let (amounts, flags) = amounts(payload, kind, status, &mut details)?;
    for (key, of, names) in [
        ("correlationId", doc, ["correlationId", "correlation_id"]),
        ("platformId", doc, ["platformId", "platform_id"]),
        ("requestId", payload, ["requestId", "request_id"]),
    ] {
        if let Some(text) = text(of, &names)?.filter(|text| !text.is_empty()) {
            details.insert(key.into(), text.into());
        }
    }
    if let Some(tags) = tags(payload)? {
        details.insert("tags".into(), tags);
    }
    let details = if details.is_empty() { String::new() } else { Value::Object(details).to_string() };
    if details.len() > DETAILS_BYTES_MAX || details.contains("\\u0000") {
        return Err(());
    }
    let source = short(text(payload, &["source"])?.or(Some("platform".into())), LABEL_BYTES_MAX)?;
    if source == "platform-api" {
        return Err(());
    }
    let event_id = short(text(doc, &["eventId", "event_id"])?, EVENT_ID_BYTES_MAX)?;
    let occurred_at = text(doc, &["occurredAt", "occurred_at"])?.ok_or(())?.parse().map_err(|_| ())?;
    if source.is_empty() || event_id.is_empty() {
        return Err(());
    }
    let call_type = short(text(payload, &["callType", "call_type"])?, LABEL_BYTES_MAX)?;
    let tenant = text(doc, &["tenantId", "tenant_id"])?;
    Ok((
        UsageEvent { source, event_id, occurred_at, kind, status, subject, call_type, amounts, flags, details },
        tenant,
    ))
}

fn subject(actor: &Json, payload: &Json) -> Result<Subject, ()> {
    let label = |of, names: &[&str]| short(text(of, names)?, LABEL_BYTES_MAX);
    Ok(Subject {
        user: label(actor, &["userId", "user_id"])?,
        group: label(actor, &["groupId", "group_id"])?,
        api_key: label(actor, &["apiKeyId", "api_key_id"])?,
        model: label(payload, &["model"])?,
        provider: label(payload, &["provider"])?,
    })
}

fn tags(payload: &Json) -> Result<Option<Value>, ()> {
    match member(payload, &["tags"])? {
        None => Ok(None),
        Some(Json::Array(tags)) if tags.is_empty() => Ok(None),
        Some(Json::Array(tags)) => tags
            .iter()
            .map(|tag| tag.text().map(Value::from).ok_or(()))
            .collect::<Result<Vec<_>, ()>>()
            .map(|tags| Some(tags.into())),
        Some(Json::Object(members)) => {
            let mut named = Map::new();
            for (raw, value) in members {
                let twice = named.insert(json::unescaped(raw).ok_or(())?, value.text().ok_or(())?.into());
                if twice.is_some() {
                    return Err(());
                }
            }
            Ok(Some(Value::Object(named)))
        }
        Some(_) => Err(()),
    }
}

fn cost(payload: &Json) -> Result<Option<NanoUsd>, ()> {
    let digits = match member(payload, &["costUsd", "cost_usd"])? {
        None => return Ok(None),
        Some(Json::Number(raw)) => raw.clone(),
        Some(text @ Json::Text(_)) => text.text().ok_or(())?,
        Some(_) => return Err(()),
    };
    let nanos = slow_nanos(&digits).ok_or(())?;
    (0..=EVENT_COST_MAX.0).contains(&nanos).then_some(Some(NanoUsd(nanos))).ok_or(())
}

fn amounts(
    payload: &Json,
    kind: Kind,
    status: Status,
    details: &mut Map<String, Value>,
) -> Result<(Amounts, Flags), ()> {
    let nothing = Json::Object(Vec::new());
    let usage = object(payload, "usage")?.unwrap_or(&nothing);
    let cost = cost(payload)?;
    let tokens = units(usage, &["tokens"])?;
    let total = units(usage, &["totalTokens", "total_tokens"])?;
    if tokens.is_some() && total.is_some() && tokens != total {
        return Err(());
    }
    let total = total.or(tokens);
    let stated_prompt = units(usage, &["promptTokens", "prompt_tokens"])?;
    let stated_completion = units(usage, &["completionTokens", "completion_tokens"])?;
    let rest = |part: Option<i64>| Some(total? - part?).filter(|rest| *rest >= 0);
    let prompt = stated_prompt.or_else(|| rest(stated_completion));
    let completion = stated_completion.or_else(|| rest(stated_prompt));
    let share = |names: [&str; 2]| units(usage, &names).map(|units| units.unwrap_or(0));
    let cache_read = share(["cacheReadTokens", "cache_read_tokens"])?;
    let cache_write = share(["cacheWriteTokens", "cache_write_tokens"])?;
    let reasoning = share(["reasoningTokens", "reasoning_tokens"])?;
    let requests = units(usage, &["requests"])?;
    if cache_read + cache_write > prompt.unwrap_or(0) || reasoning > completion.unwrap_or(0) {
        return Err(());
    }
    let says_something = [requests, prompt, completion, total].iter().any(Option::is_some) || cost.is_some();
    if status == Status::Success && !says_something {
        return Err(());
    }
    if kind == Kind::Cumulative {
        let some = |units: i64| Some(units).filter(|units| *units > 0);
        let mut statement = Map::new();
        for (name, number) in [
            ("promptTokens", prompt),
            ("completionTokens", completion),
            ("totalTokens", total),
            ("requests", requests),
            ("cacheReadTokens", some(cache_read)),
            ("cacheWriteTokens", some(cache_write)),
            ("reasoningTokens", some(reasoning)),
        ] {
            statement.extend(number.map(|number| (name.to_owned(), number.into())));
        }
        statement.extend(cost.map(|cost| ("costUsd".to_owned(), cost.to_string().into())));
        details.insert("statement".into(), Value::Object(statement));
        return Ok((Amounts::default(), Flags::default()));
    }
    let unclassified = if prompt.is_some() || completion.is_some() { 0 } else { total.unwrap_or(0) };
    let sum = prompt.unwrap_or(0) + completion.unwrap_or(0) + unclassified;
    let consumed = status == Status::Success || sum > 0 || cost.unwrap_or_default().0 > 0;
    let mut flags = Flags::default();
    if status == Status::Success && sum > 0 && cost.is_none() {
        flags = flags.with(Flags::UNPRICED);
    }
    if let Some(total) = total.filter(|total| *total != sum) {
        flags = flags.with(Flags::TOTAL_DIFFERS);
        details.insert("senderTotal".into(), total.into());
    }
    let amounts = Amounts {
        requests: requests.unwrap_or(i64::from(consumed)),
        prompt_tokens: prompt.unwrap_or(0),
        cache_read_tokens: cache_read,
        cache_write_tokens: cache_write,
        completion_tokens: completion.unwrap_or(0),
        reasoning_tokens: reasoning,
        unclassified_tokens: unclassified,
        cost: cost.unwrap_or_default(),
    };
    Ok((amounts, flags))
}
