//! Kong's access log: one record per finished request, as http-log posts it (an object, or an array of them) and file-log
//! writes it (one a line).
//!
//! A record quotes the request: its headers with keys and cookies in them, its query, its client's address. Here it is read
//! field by field, and what is not named below is passed over and never copied. Kong writes the same field in several types
//! (`upstream_status` as a number or a text, numbers in scientific form), and clients choose some of the values, so that a
//! record is refused only for want of what identifies it: its id and its time.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::domain::amount::{EVENT_COST_MAX, EVENT_UNITS_MAX, NanoUsd};
use crate::domain::reconcile::reading::{GatewayCount, GatewayRequest, READING_TEXT_BYTES_MAX, Role, ServedBy};
use crate::domain::time::Timestamp;
use crate::domain::usage::Refusal;
use crate::intake::arrival::{self, TooMany, Unreadable};
use crate::intake::text::{self, malformed};
use crate::json::{Object, Text};

/// Records of one body; Kong's own default is one, and its queue holds ten thousand.
pub const RECORDS_MAX: usize = 10_000;
/// Longest single record, in bytes of JSON.
pub const RECORD_BYTES_MAX: usize = 1024 * 1024;
/// Longest time a request may have taken; what says more is taken for this.
const DURATION_MILLIS_MAX: i64 = 24 * 60 * 60 * 1_000;
/// Latest instant a record may name, in milliseconds: far away, and far from an overflow.
const STARTED_AT_MILLIS_MAX: i64 = 253_402_300_799_999;
/// Most tokens that are believed.
const TOKENS_MAX: i64 = EVENT_UNITS_MAX;

/// One record, without anything that is nobody's business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    pub consumer: Option<Consumer>,
    /// `X-Tenant-Id` of the request. Whoever called wrote it.
    pub claimed: Option<String>,
    /// Name of the service it went to, or its id.
    pub service: Option<String>,
    /// As it stands in the books of the tenant whose request it is.
    pub request: GatewayRequest,
}

/// Whom Kong's authentication found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Consumer {
    pub id: Option<String>,
    pub custom_id: Option<String>,
    pub username: Option<String>,
}

/// A body's records, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub records: Vec<Result<LogRecord, Unreadable>>,
    /// The body is not JSON, nor lines of it.
    pub not_json: bool,
}

/// Reads a body: one object, an array of them, or lines of them.
///
/// # Errors
/// [`TooMany`] records; nothing was read then.
pub fn read(body: &[u8]) -> Result<Log, TooMany> {
    let pieces = arrival::split(body, RECORDS_MAX)?;
    Ok(Log { records: pieces.pieces.into_iter().map(read_record).collect(), not_json: pieces.not_json })
}

/// Reads one record.
///
/// # Errors
/// [`Unreadable`], when it cannot be told which request it is.
pub fn read_record(piece: &[u8]) -> Result<LogRecord, Unreadable> {
    if piece.len() > RECORD_BYTES_MAX {
        let problem = format!("{} bytes, at most {RECORD_BYTES_MAX} are allowed", piece.len());
        return Err(text::unreadable(Refusal::Oversized, problem));
    }
    let json = std::str::from_utf8(piece).map_err(|_| malformed("not UTF-8"))?;
    // What serde says of a field quotes it, and it may be a secret.
    let Ok(Object(record)) = serde_json::from_str::<Object<Record<'_>>>(json) else {
        return Err(malformed("not an object with each field once"));
    };
    record.parsed()
}

/// A record as Kong writes it: what is needed of it.
#[derive(Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    request: Option<&'a RawValue>,
    #[serde(borrow)]
    response: Option<&'a RawValue>,
    #[serde(borrow)]
    latencies: Option<&'a RawValue>,
    #[serde(borrow)]
    route: Option<&'a RawValue>,
    #[serde(borrow)]
    service: Option<&'a RawValue>,
    #[serde(borrow)]
    consumer: Option<&'a RawValue>,
    #[serde(borrow)]
    authenticated_entity: Option<&'a RawValue>,
    #[serde(borrow)]
    started_at: Option<&'a RawValue>,
    #[serde(borrow)]
    source: Option<&'a RawValue>,
    #[serde(borrow)]
    ai: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RequestPart<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    headers: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ResponsePart<'a> {
    #[serde(borrow)]
    status: Option<&'a RawValue>,
    #[serde(borrow)]
    headers: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct LatenciesPart<'a> {
    #[serde(borrow)]
    request: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NamedPart<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    username: Option<&'a RawValue>,
    #[serde(borrow)]
    custom_id: Option<&'a RawValue>,
}

impl Record<'_> {
    fn parsed(&self) -> Result<LogRecord, Unreadable> {
        let request: RequestPart<'_> = part(self.request);
        let response: ResponsePart<'_> = part(self.response);
        let (said, answered) = (Headers::of(request.headers), Headers::of(response.headers));
        let request_id = said_text(request.id).ok_or_else(|| malformed("request.id: missing"))?;
        // It is kept as it is, so that a record that comes again is the same one: what no store takes is no id.
        if request_id.len() > READING_TEXT_BYTES_MAX || request_id.chars().any(char::is_control) {
            return Err(malformed("request.id: longer than 256 bytes, or with control characters"));
        }
        let started_at = whole(self.started_at).filter(|millis| (0..=STARTED_AT_MILLIS_MAX).contains(millis));
        let started_at = started_at.ok_or_else(|| malformed("started_at: not a time in milliseconds"))?;
        let status = whole(response.status).filter(|status| (0..=999).contains(status));
        let status = status.ok_or_else(|| malformed("response.status: not a status"))?;
        let took = whole(part::<LatenciesPart<'_>>(self.latencies).request).unwrap_or(0);
        let consumer = self.consumer();
        let served_by = match said_text(self.source).as_deref() {
            Some("upstream") => ServedBy::Upstream,
            _ => ServedBy::Gateway,
        };
        let route: NamedPart<'_> = part(self.route);
        let service: NamedPart<'_> = part(self.service);
        Ok(LogRecord {
            request: GatewayRequest {
                request_id: request_id.into_owned(),
                call_id: answered.call_id.map_or_else(String::new, |id| short(&id)),
                started_at: Timestamp(started_at * 1_000),
                duration_micros: took.clamp(0, DURATION_MILLIS_MAX) * 1_000,
                role: Role::Own,
                route: said_text(route.name).or(said_text(route.id)).map_or_else(String::new, |name| short(&name)),
                status,
                served_by,
                authenticated: consumer.is_some() || is_object(self.authenticated_entity),
                limited: answered.limited,
                claims_other: false,
                counted: self.ai.and_then(counted),
            },
            claimed: said.tenant.map(|tenant| short(&tenant)),
            service: said_text(service.name).or(said_text(service.id)).map(|name| short(&name)),
            consumer,
        })
    }

    fn consumer(&self) -> Option<Consumer> {
        let found: NamedPart<'_> = part(Some(self.consumer.filter(|raw| is_object(Some(*raw)))?));
        let kept = |raw| said_text(raw).filter(|text| text.len() <= READING_TEXT_BYTES_MAX).map(Cow::into_owned);
        Some(Consumer { id: kept(found.id), custom_id: kept(found.custom_id), username: kept(found.username) })
    }
}

/// The headers that are read: no other is ever copied.
#[derive(Debug, Default)]
struct Headers<'a> {
    /// `x-tenant-id`.
    tenant: Option<Cow<'a, str>>,
    /// `x-litellm-call-id`.
    call_id: Option<Cow<'a, str>>,
    /// Any `x-ratelimit-remaining-*`.
    limited: bool,
}

impl<'a> Headers<'a> {
    fn of(raw: Option<&'a RawValue>) -> Headers<'a> {
        let read =
            |raw: &'a RawValue| serde_json::Deserializer::from_str(raw.get()).deserialize_map(HeadersVisitor).ok();
        raw.and_then(read).unwrap_or_default()
    }
}

struct HeadersVisitor;

impl<'de> Visitor<'de> for HeadersVisitor {
    type Value = Headers<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("headers")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Headers<'de>, A::Error> {
        let mut headers = Headers::default();
        while let Some(Text(name)) = members.next_key::<Text<'de>>()? {
            match &*name.to_ascii_lowercase() {
                "x-tenant-id" => headers.tenant = first_text(members.next_value()?),
                "x-litellm-call-id" => headers.call_id = first_text(members.next_value()?),
                other => {
                    headers.limited |= other.starts_with("x-ratelimit-remaining-");
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(headers)
    }
}

/// What Kong itself counted. Where it is found changed with its versions: under the plugin's name, or at the top.
fn counted(ai: &RawValue) -> Option<GatewayCount> {
    let members = members(ai)?;
    let named = |name: &str| members.iter().find(|(key, _)| key == name).map(|(_, value)| *value);
    named("usage")
        .and_then(count)
        .or_else(|| named("proxy").and_then(usage_of))
        .or_else(|| members.iter().find_map(|(_, value)| usage_of(value)))
}

fn usage_of(plugin: &RawValue) -> Option<GatewayCount> {
    members(plugin)?.iter().find(|(key, _)| key == "usage").and_then(|(_, usage)| count(usage))
}

fn count(usage: &RawValue) -> Option<GatewayCount> {
    let members = members(usage)?;
    let named = |names: &[&str]| members.iter().find(|(key, _)| names.contains(&&**key)).map(|(_, value)| *value);
    let tokens = |names: &[&str]| whole(named(names)).filter(|tokens| (0..=TOKENS_MAX).contains(tokens));
    let cost = named(&["cost"]).and_then(text::number_text);
    let cost = cost.and_then(|text| NanoUsd::parse_decimal(&text).ok());
    let count = GatewayCount {
        prompt_tokens: tokens(&["prompt_tokens", "prompt_token"]),
        completion_tokens: tokens(&["completion_tokens", "completion_token"]),
        cached_tokens: tokens(&["cached_tokens", "cache_read_tokens"]),
        reasoning_tokens: tokens(&["reasoning_tokens"]),
        cost: cost.filter(|cost| (0..=EVENT_COST_MAX.0).contains(&cost.0)),
    };
    (count != GatewayCount::default()).then_some(count)
}

/// Members of an object, in order; `None` when it is none.
fn members(raw: &RawValue) -> Option<Vec<(Cow<'_, str>, &RawValue)>> {
    struct Members;
    impl<'de> Visitor<'de> for Members {
        type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
            let mut found = Vec::new();
            while let Some((Text(name), value)) = members.next_entry()? {
                found.push((name, value));
            }
            Ok(found)
        }
    }
    serde_json::Deserializer::from_str(raw.get()).deserialize_map(Members).ok()
}

/// A part of a record, or an empty one when it is not as it should be.
fn part<'a, T: Deserialize<'a> + Default>(raw: Option<&'a RawValue>) -> T {
    raw.and_then(|raw| serde_json::from_str::<Object<T>>(raw.get()).ok()).map_or_else(T::default, |Object(part)| part)
}

fn is_object(raw: Option<&RawValue>) -> bool {
    raw.is_some_and(|raw| raw.get().starts_with('{'))
}

/// What a text or a number says; `None` for nothing at all.
fn said_text(raw: Option<&RawValue>) -> Option<Cow<'_, str>> {
    text::number_text(raw?).filter(|text| !text.is_empty())
}

/// The first of a header's values: one that came twice is an array.
fn first_text(raw: &RawValue) -> Option<Cow<'_, str>> {
    match raw.get().starts_with('[') {
        true => said_text(serde_json::from_str::<Vec<&RawValue>>(raw.get()).ok()?.first().copied()),
        false => said_text(Some(raw)),
    }
}

/// A whole number, also when it is written in scientific form or as a text. `502, 200` is the last of them.
fn whole(raw: Option<&RawValue>) -> Option<i64> {
    let text = said_text(raw)?;
    let last = text.rsplit(',').next()?.trim();
    if let Ok(whole) = last.parse() {
        return Some(whole);
    }
    // Exact below 2^53, which is far above any count or time here.
    let number: f64 = last.parse().ok()?;
    (number.is_finite() && number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64)
}

fn short(text: &str) -> String {
    text::shortened(text, READING_TEXT_BYTES_MAX).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH: &str = include_str!("../../../tests/fixtures/kong/http-log-batch.json");
    const SINGLE: &str = include_str!("../../../tests/fixtures/kong/http-log-single.json");
    const DENIED: &str = include_str!("../../../tests/fixtures/kong/http-log-denied-429.json");
    const CACHED: &str = include_str!("../../../tests/fixtures/kong/http-log-cache-hit.json");
    const RECON: &str = include_str!("../../../tests/fixtures/kong/recon/http-log-raw-sample.jsonl");

    fn records(body: &str) -> Vec<LogRecord> {
        let log = read(body.as_bytes()).unwrap();
        assert!(!log.not_json);
        log.records.into_iter().map(Result::unwrap).collect()
    }

    #[test]
    fn a_batch_of_kong_s_own_proxy_says_who_what_and_how_much() {
        let records = records(BATCH);
        assert_eq!(records.len(), 8);
        let first = &records[0];
        assert_eq!(first.request.request_id, "78ea6a60a4e9d73bde79e53fe6eea129");
        assert_eq!(first.request.started_at, Timestamp(1_795_220_331_583_000));
        assert_eq!((first.request.duration_micros, first.request.status), (2_000, 200));
        assert_eq!((first.request.route.as_str(), first.request.served_by), ("ai-chat", ServedBy::Upstream));
        assert!(first.request.authenticated);
        assert_eq!(first.claimed.as_deref(), Some("11111111-1111-4111-8111-111111111111"));
        let consumer = first.consumer.clone().unwrap();
        assert_eq!(consumer.username.as_deref(), Some("tenant-acme"));
        assert_eq!(consumer.custom_id.as_deref(), Some("11111111-1111-4111-8111-111111111111"));
        let counted = first.request.counted.unwrap();
        assert_eq!((counted.prompt_tokens, counted.completion_tokens), (Some(103), Some(23)));
        assert_eq!(counted.cost, Some(NanoUsd(29_250)));
        let by_status = |status: i64| records.iter().filter(|record| record.request.status == status).count();
        assert_eq!((by_status(200), by_status(403), by_status(401), by_status(404)), (5, 1, 1, 1));
        let refused = records.iter().find(|record| record.request.status == 401).unwrap();
        assert!(refused.consumer.is_none() && !refused.request.authenticated);
        let lost = records.iter().find(|record| record.request.status == 404).unwrap();
        assert_eq!(lost.request.route, "");
    }

    #[test]
    fn one_object_a_denial_and_a_hit_of_the_cache() {
        let spoofed = records(SINGLE).remove(0);
        assert_eq!(spoofed.claimed.as_deref(), Some("22222222-2222-4222-8222-222222222222"));
        assert_eq!(spoofed.consumer.unwrap().custom_id.as_deref(), Some("11111111-1111-4111-8111-111111111111"));
        assert_eq!((spoofed.request.call_id.as_str(), spoofed.request.limited), ("call-1", true));
        let denied = records(DENIED).remove(0).request;
        assert_eq!((denied.status, denied.served_by, denied.limited), (429, ServedBy::Gateway, true));
        let cached = records(CACHED).remove(0).request;
        assert_eq!((cached.status, cached.served_by), (200, ServedBy::Gateway));
    }

    #[test]
    fn each_captured_body_is_read_and_lines_are_records_too() {
        let mut lines = Vec::new();
        for body in RECON.lines() {
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            // Each line of the recording holds a body, or an object around one.
            let rows = body.as_array().or_else(|| body["body"].as_array()).cloned().unwrap_or_else(|| vec![body]);
            lines.extend(rows.iter().map(ToString::to_string));
        }
        let found = records(&lines.join("\n"));
        assert!(found.len() > 10, "{}", found.len());
        let mut ids: Vec<&str> = found.iter().map(|record| record.request.request_id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), found.len());
    }

    #[test]
    fn nothing_else_of_a_record_is_kept() {
        for body in [BATCH, SINGLE, DENIED, CACHED] {
            let kept = format!("{:?}", read(body.as_bytes()).unwrap());
            for secret in ["acme-key", "globex-key", "REDACTED", "127.0.0.1", "curl/", "evil-1", "evil-2"] {
                assert!(!kept.contains(secret), "{secret}: {kept}");
            }
        }
        let torn = SINGLE.replace("\"apikey\"", "\"apikey\" acme-key-1");
        assert!(!format!("{:?}", read(torn.as_bytes()).unwrap()).contains("acme-key-1"));
    }

    #[test]
    fn types_vary_and_a_bad_record_spoils_no_other() {
        let record = |id: &str, rest: &str| format!(r#"{{"request":{{"id":{id}}},"response":{{"status":200}}{rest}}}"#);
        let good = record(
            "\"a\"",
            r#","started_at":1.795220331583e12,"route":{"name":7},"consumer":null,"ai":[],"latencies":{"request":-1}"#,
        );
        let retried =
            record("\"b\"", r#","started_at":"1795220331583","upstream_status":"502, 200","source":"upstream""#);
        let bodies = [
            record("null", r#","started_at":1"#),
            record("\"c\"", ""),
            record("\"c\"", r#","started_at":1e300"#),
            record(&format!("\"{}\"", "x".repeat(257)), r#","started_at":1"#),
            "7".into(),
            r#"{"request":{"id":"d"},"request":{"id":"e"},"started_at":1}"#.into(),
        ];
        let body = format!("[{good},{},{retried}]", bodies.join(","));
        let log = read(body.as_bytes()).unwrap();
        let read: Vec<bool> = log.records.iter().map(Result::is_ok).collect();
        assert_eq!(read, [true, false, false, false, false, false, false, true]);
        let first = log.records[0].as_ref().unwrap();
        assert_eq!(first.request.started_at, Timestamp(1_795_220_331_583_000));
        assert_eq!(
            (first.request.route.as_str(), first.consumer.as_ref(), first.request.duration_micros),
            ("7", None, 0)
        );
    }

    #[test]
    fn older_versions_count_elsewhere() {
        for ai in [
            r#"{"ai-proxy":{"meta":{},"usage":{"prompt_tokens":3,"completion_tokens":4}}}"#,
            r#"{"ai-proxy":{"usage":{"prompt_token":3,"completion_token":4}}}"#,
            r#"{"usage":{"prompt_tokens":3.0,"completion_tokens":"4"}}"#,
        ] {
            let raw: &RawValue = serde_json::from_str(ai).unwrap();
            let counted = counted(raw).unwrap();
            assert_eq!(
                (counted.prompt_tokens, counted.completion_tokens, counted.cost),
                (Some(3), Some(4), None),
                "{ai}"
            );
        }
        for ai in ["{}", "7", r#"{"proxy":{"usage":{"prompt_tokens":-1,"cost":-1}}}"#] {
            assert_eq!(counted(serde_json::from_str::<&RawValue>(ai).unwrap()), None, "{ai}");
        }
    }
}
