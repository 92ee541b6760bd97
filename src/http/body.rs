//! Bodies, strictly: measured while they arrive, and read twice.
//!
//! The first reading asks whether the bytes are one JSON document in UTF-8 with unique keys, not too deep and without
//! NUL characters; the second whether the document has the shape that was asked for, unknown fields included. What is
//! no JSON is 400; what is JSON and wrong is 422, with a pointer to the field.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use poem::http::HeaderMap;
use poem::{Body, RequestBody};
use poem_openapi::registry::{MetaMediaType, MetaRequest, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions};
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::authorize::Ask;
use super::operation::BodyKind;
use super::problem::{Code, Problem};
use crate::config;
use crate::json;

/// Deepest nesting of a document.
pub(super) const DEPTH_MAX: usize = 32;

/// Reads the whole body of a request, as long as its kind allows; nothing for an operation without one.
///
/// # Errors
/// 408, 413 or 415 as a [`Problem`]; 400 when the connection breaks.
pub(super) async fn receive(
    kind: BodyKind,
    headers: &HeaderMap,
    body: Body,
    limits: &config::Http,
) -> Result<Bytes, Problem> {
    let (bytes_max, media) = match kind {
        BodyKind::None => return Ok(Bytes::new()),
        BodyKind::Json | BodyKind::Evaluation | BodyKind::Authzen => (limits.body_bytes_max, JSON),
        BodyKind::Patch => (limits.body_bytes_max, PATCH),
        BodyKind::Scim => (limits.body_bytes_max, SCIM),
        BodyKind::Events | BodyKind::OpenMeter => (limits.events_body_bytes_max, EVENTS),
        BodyKind::LiteLlm => (limits.litellm_body_bytes_max, LINES),
        BodyKind::KongLog => (limits.gateway_log_body_bytes_max, LINES),
        BodyKind::Form => (limits.body_bytes_max, FORM),
    };
    check_media(headers, media)?;
    // Half of the request's own deadline, so that a body that trickles is told apart from work that is slow.
    let patience = Duration::from_millis(limits.request_timeout_ms / 2);
    match tokio::time::timeout(patience, gather(headers, body, bytes_max)).await {
        Ok(gathered) => gathered,
        Err(_) => Err(Problem::new(Code::RequestTimeout)),
    }
}

const JSON: &[&str] = &["application/json"];
const FORM: &[&str] = &["application/x-www-form-urlencoded"];
const PATCH: &[&str] = &["application/merge-patch+json", "application/json"];
const SCIM: &[&str] = &["application/scim+json", "application/json"];
const EVENTS: &[&str] = &["application/json", "application/cloudevents+json", "application/cloudevents-batch+json"];
const LINES: &[&str] = &["application/json", "application/x-ndjson", "application/ndjson", "application/jsonl"];

/// The media type without its parameters, in lower case.
#[must_use]
pub(super) fn media_type(headers: &HeaderMap) -> String {
    let given = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn check_media(headers: &HeaderMap, known: &[&str]) -> Result<(), Problem> {
    let media = media_type(headers);
    if !known.contains(&media.as_str()) || headers.get_all("content-type").iter().count() > 1 {
        let message = format!("Content-Type must be {}.", known.join(" or "));
        return Err(Problem::new(Code::UnsupportedMediaType).saying(message));
    }
    let plain =
        headers.get_all("content-encoding").iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"identity"));
    let message = "Content-Encoding must be absent or identity.";
    plain.then_some(()).ok_or_else(|| Problem::new(Code::UnsupportedMediaType).saying(message))
}

async fn gather(headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Bytes, Problem> {
    let too_large = || Problem::new(Code::PayloadTooLarge).with("bytesMax", bytes_max.into());
    let announced = headers.get("content-length").and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > bytes_max) {
        return Err(too_large());
    }
    let mut chunks = std::pin::pin!(body.into_bytes_stream());
    let broken = |_| Problem::new(Code::BadRequest).saying("The body broke off.");
    let Some(first) = chunks.try_next().await.map_err(broken)? else { return Ok(Bytes::new()) };
    let Some(second) = chunks.try_next().await.map_err(broken)? else {
        return if first.len() > bytes_max { Err(too_large()) } else { Ok(first) };
    };
    let mut whole = BytesMut::with_capacity(announced.unwrap_or(first.len() + second.len()));
    let mut next = Some(first);
    let mut after = Some(second);
    while let Some(chunk) = next {
        if whole.len() + chunk.len() > bytes_max {
            return Err(too_large());
        }
        whole.extend_from_slice(&chunk);
        next = match after.take() {
            Some(chunk) => Some(chunk),
            None => chunks.try_next().await.map_err(broken)?,
        };
    }
    Ok(whole.freeze())
}

/// A body of exactly the shape of `T`.
pub(super) struct Strict<T>(pub(super) T);

/// Reads `bytes` as a `T`, strictly.
///
/// # Errors
/// 400 [`Code::MalformedJson`] or 422 [`Code::ValidationFailed`].
pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let malformed = |message: String| Problem::new(Code::MalformedJson).with("reason", message.into());
    let text = std::str::from_utf8(bytes).map_err(|error| malformed(error.to_string()))?;
    let mut document = serde_json::Deserializer::from_str(text);
    let mut walk = Walk::default();
    Node { walk: &mut walk, depth: 0 }
        .deserialize(&mut document)
        .and_then(|()| document.end())
        .map_err(|error| malformed(error.to_string()))?;
    if let Some(pointer) = walk.nul {
        return Err(Problem::field(pointer, "must not contain the NUL character"));
    }
    if !text.trim_start().starts_with('{') {
        return Err(Problem::field("", "must be an object"));
    }
    let mut document = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut document).map_err(|error| misshapen(&error))
}

/// Points at the field that the second reading did not like.
fn misshapen(error: &serde_path_to_error::Error<serde_json::Error>) -> Problem {
    use serde_path_to_error::Segment;
    let message = error.inner().to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    let mut pointer = String::new();
    for segment in error.path() {
        match segment {
            Segment::Seq { index } => pointer.push_str(&format!("/{index}")),
            Segment::Map { key } => push_key(&mut pointer, key),
            Segment::Enum { variant } => push_key(&mut pointer, variant),
            Segment::Unknown => {}
        }
    }
    // The object is to blame by its path, the field by the message.
    let named = ["missing field `", "unknown field `"].iter().find_map(|start| message.strip_prefix(start));
    let Some(field) = named.and_then(|rest| rest.split('`').next()) else {
        return Problem::field(pointer, message);
    };
    if !pointer.ends_with(&format!("/{}", escaped(field))) {
        push_key(&mut pointer, field);
    }
    let words = if message.starts_with("missing") { "is required" } else { "is not a known field" };
    Problem::field(pointer, words)
}

fn push_key(pointer: &mut String, key: &str) {
    pointer.push('/');
    pointer.push_str(&escaped(key));
}

fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// What the first reading remembers: where it is, and where it met a NUL.
#[derive(Default)]
struct Walk {
    path: Vec<String>,
    nul: Option<String>,
}

impl Walk {
    fn look(&mut self, text: &str) {
        if self.nul.is_none() && text.contains('\0') {
            let mut pointer = String::new();
            self.path.iter().for_each(|key| push_key(&mut pointer, key));
            self.nul = Some(pointer);
        }
    }
}

struct Node<'a> {
    walk: &'a mut Walk,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.walk.look(text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.deeper::<A::Error>()?;
        for index in 0_usize.. {
            self.walk.path.push(index.to_string());
            let found = items.next_element_seed(Node { walk: self.walk, depth: self.depth + 1 })?;
            self.walk.path.pop();
            if found.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        self.deeper::<A::Error>()?;
        let mut keys = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            self.walk.look(&key);
            if !keys.insert(key.clone()) {
                return Err(de::Error::custom(format_args!("the key {key:?} is there twice")));
            }
            self.walk.path.push(key);
            entries.next_value_seed(Node { walk: self.walk, depth: self.depth + 1 })?;
            self.walk.path.pop();
        }
        Ok(())
    }
}

impl Node<'_> {
    fn deeper<E: de::Error>(&self) -> Result<(), E> {
        if self.depth >= DEPTH_MAX { Err(E::custom("nested too deeply")) } else { Ok(()) }
    }
}

/// For optional fields: absent is `None`, `null` is refused.
pub(super) fn present<'de, D: Deserializer<'de>, T: de::Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// For fields of a merge patch (RFC 7396): absent is `None`, `null` takes the field away.
pub(super) fn nullable<'de, D: Deserializer<'de>, T: de::Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    <Option<T> as de::Deserialize>::deserialize(deserializer).map(Some)
}

/// As [`present`], for an array of objects.
pub(super) fn present_objects<'de, D: Deserializer<'de>, T: de::Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    json::objects(deserializer).map(Some)
}

impl<'a, T: DeserializeOwned + Type> ApiExtractor<'a> for Strict<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        let content = vec![MetaMediaType { content_type: "application/json", schema: T::schema_ref() }];
        Some(MetaRequest { description: None, content, required: true })
    }

    async fn from_request(
        request: &'a poem::Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let ask = Ask::of(request)?;
        Ok(Strict(read(&ask.body)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::{Value, json};

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Outer {
        name: String,
        #[serde(default, deserialize_with = "present")]
        count: Option<i64>,
        #[serde(default, deserialize_with = "json::objects")]
        items: Vec<Inner>,
        #[serde(default)]
        settings: serde_json::Map<String, Value>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        id: String,
    }

    fn status_of(bytes: &[u8]) -> (u16, String) {
        match read::<Outer>(bytes) {
            Ok(_) => (200, String::new()),
            Err(problem) => {
                let pointer = problem.details.get("fields").map(|fields| fields[0]["pointer"].as_str().unwrap().into());
                (problem.code.status(), pointer.unwrap_or_default())
            }
        }
    }

    #[test]
    fn what_is_no_json_is_400() {
        let deep = format!("{{\"name\":\"x\",\"settings\":{{\"a\":{}{}}}}}", "[".repeat(40), "]".repeat(40));
        let abyss = "[".repeat(100_000);
        for bytes in [
            b"".as_slice(),
            b"{",
            b"{\"name\":\"x\"} x",
            b"{\"name\":\"x\"}{}",
            b"{\"name\":\"x\",\"name\":\"y\"}",
            b"{\"name\":\"x\",\"settings\":{\"a\":1,\"a\":2}}",
            b"{\"name\":\"x\",\"settings\":{\"a\":1,\"\\u0061\":2}}",
            b"{\"name\":\"\xff\"}",
            b"\xef\xbb\xbf{\"name\":\"x\"}",
            b"{\"name\":\"\\ud800\"}",
            b"{\"name\":NaN}",
            b"{\"name\":\"x\",}",
            b"{name:\"x\"}",
            b"{\"name\":\"a\nb\"}",
            b"{\"name\":\"x\",\"count\":01}",
            b"{\"name\":\"x\",\"count\":1e999}",
            deep.as_bytes(),
            abyss.as_bytes(),
        ] {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
            assert_eq!(status_of(bytes).0, 400, "{shown}");
        }
    }

    #[test]
    fn what_is_json_and_wrong_is_422_with_a_pointer() {
        for (text, pointer) in [
            (r#"{}"#, "/name"),
            (r#"{"name":1}"#, "/name"),
            (r#"{"name":null}"#, "/name"),
            (r#"{"name":"x","other":1}"#, "/other"),
            (r#"{"name":"x","a/b~c":1}"#, "/a~1b~0c"),
            (r#"{"name":"x","count":null}"#, "/count"),
            (r#"{"name":"x","count":1.5}"#, "/count"),
            (r#"{"name":"x","count":99999999999999999999}"#, "/count"),
            (r#"{"name":"x","items":[{"id":"a"},{}]}"#, "/items/1/id"),
            (r#"{"name":"x","items":[{"id":"a","zip":2}]}"#, "/items/0/zip"),
            (r#"{"name":"x","items":{}}"#, "/items"),
            (r#"{"name":"x","items":[["a"]]}"#, "/items/0"),
            (r#"{"name":"a\u0000b"}"#, "/name"),
            (r#"{"name":"x","settings":{"deep":["\u0000"]}}"#, "/settings/deep/0"),
            (r#"["x"]"#, ""),
            (r#""x""#, ""),
            (r#"null"#, ""),
        ] {
            assert_eq!(status_of(text.as_bytes()), (422, pointer.into()), "{text}");
        }
    }

    #[test]
    fn the_right_shape_is_read() {
        let read = read::<Outer>(
            br#" {"name":"\u00e4","count":3,"items":[{"id":"a"}],"settings":{"a":{"b":[1,2.5,true,null]}}} "#,
        );
        let read = read.unwrap();
        assert_eq!((read.name.as_str(), read.count, read.items.len()), ("ä", Some(3), 1));
        assert_eq!(Value::Object(read.settings), json!({"a": {"b": [1, 2.5, true, null]}}));
    }

    fn limits(bytes_max: usize) -> config::Http {
        config::Http { body_bytes_max: bytes_max, request_timeout_ms: 200, ..config::Http::default() }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (poem::http::HeaderName::from_static(name), poem::http::HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    fn chunked(chunks: &[&'static str]) -> Body {
        let chunks: Vec<_> =
            chunks.iter().map(|chunk| Ok::<_, std::io::Error>(Bytes::from_static(chunk.as_bytes()))).collect();
        Body::from_bytes_stream(futures_util::stream::iter(chunks))
    }

    #[tokio::test]
    async fn length_is_measured_on_the_bytes_that_arrive() {
        let json = headers(&[("content-type", "application/json; charset=utf-8")]);
        for (chunks, fits) in [
            (&["12345"] as &[&str], true),
            (&["123456"], false),
            (&["123", "45"], true),
            (&["1", "2", "3", "4", "5", "6"], false),
            (&[], true),
        ] {
            let received = receive(BodyKind::Json, &json, chunked(chunks), &limits(5)).await;
            match received {
                Ok(bytes) => assert!(fits && bytes == chunks.concat().as_bytes(), "{chunks:?}"),
                Err(problem) => assert!(!fits && problem.code == Code::PayloadTooLarge, "{chunks:?}"),
            }
        }
        let announced = headers(&[("content-type", "application/json"), ("content-length", "6")]);
        let problem = receive(BodyKind::Json, &announced, chunked(&[]), &limits(5)).await.unwrap_err();
        assert_eq!(problem.code, Code::PayloadTooLarge);
    }

    #[tokio::test]
    async fn other_media_and_encodings_are_refused() {
        for pairs in [
            &[] as &[(&str, &str)],
            &[("content-type", "text/plain")],
            &[("content-type", "application/x-www-form-urlencoded")],
            &[("content-type", "application/cloudevents+json")],
            &[("content-type", "application/json"), ("content-encoding", "gzip")],
        ] {
            let problem = receive(BodyKind::Json, &headers(pairs), chunked(&["{}"]), &limits(5)).await.unwrap_err();
            assert_eq!(problem.code, Code::UnsupportedMediaType, "{pairs:?}");
        }
        for (kind, media) in
            [(BodyKind::Events, "application/cloudevents-batch+json"), (BodyKind::LiteLlm, "Application/X-NDJSON")]
        {
            let given = headers(&[("content-type", media)]);
            assert!(receive(kind, &given, chunked(&["{}"]), &limits(5)).await.is_ok(), "{media}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_is_408() {
        let endless = Body::from_bytes_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        let json = headers(&[("content-type", "application/json")]);
        let problem = receive(BodyKind::Json, &json, endless, &limits(5)).await.unwrap_err();
        assert_eq!(problem.code, Code::RequestTimeout);
    }
}
