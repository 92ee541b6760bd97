//! A body as it arrived, and the items in it.

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use memchr::memmem::Finder;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::cloudevents::{self, CloudEvent};
use super::envelope::{self, Envelope};
use super::{litellm, text};
use crate::config;
use crate::domain::ids::TenantId;
use crate::domain::tenant::ExternalId;
use crate::domain::usage::{Refusal, UsageEvent};
use crate::json::Text;

/// Events of one body that LiteLLM's callback posts: its queue has no bound of its own, and it cannot split.
pub const LITELLM_BATCH_EVENTS_MAX: usize = 50_000;
/// Bodies up to this size are read where they arrive; longer ones on a thread that may block.
pub(super) const READ_INLINE_BYTES_MAX: usize = 64 * 1024;

/// How bytes are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Each item says what it is: a CloudEvent has `specversion`, LiteLLM's payload `litellm_call_id` and
    /// `startTime`, and everything else is a platform envelope.
    Events,
    /// LiteLLM's `StandardLoggingPayload`, and nothing else.
    Litellm,
    /// CloudEvents as OpenMeter takes them, and nothing else.
    OpenMeter,
}

impl Format {
    pub const ALL: [Format; 3] = [Format::Events, Format::Litellm, Format::OpenMeter];
}

/// Who brings the events, and what it may say about whose they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The platform's own gateways: they may name any tenant.
    Platform,
    /// One tenant's credential, or the tenant in a subject: events of any other tenant are refused.
    Tenant(TenantId),
}

/// Where and how a body arrived; what its items have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// `http:/v1/usage/events`, `http:/v1/usage/litellm`, `http:/api/v1/events`, `nats:<subject>`.
    pub origin: String,
    pub format: Format,
    /// `X-Request-Id` of the request, or empty.
    pub request_id: String,
    /// How long a saturated tenant is waited for.
    pub patience: Duration,
}

/// How much one body may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub events_max: usize,
    pub event_bytes_max: usize,
}

impl Limits {
    #[must_use]
    pub fn of(format: Format, intake: &config::Intake) -> Limits {
        let events_max = match format {
            Format::Events | Format::OpenMeter => intake.batch_events_max,
            Format::Litellm => LITELLM_BATCH_EVENTS_MAX,
        };
        Limits { events_max, event_bytes_max: intake.event_bytes_max }
    }
}

/// One event, or what was meant to be one, with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub raw: Bytes,
    pub reading: Result<Parsed, Unreadable>,
}

/// An event and what its sender says about whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    pub event: UsageEvent,
    pub claim: TenantClaim,
}

/// What an event says about its tenant. Whether that is believed is decided in [`super::attribution`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TenantClaim {
    Named(TenantId),
    /// It names one, and that is not an id of ours.
    NamedUnknown(String),
    /// It names two.
    Contradictory,
    /// Ids in another system, the most telling first.
    External(Vec<ExternalId>),
    /// OpenMeter's subject: whoever consumed, as its sender calls them.
    Subject(String),
    /// It leaves that to whoever brings it.
    Absent,
}

/// Why an item is no event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    pub reason: Refusal,
    /// For a person; begins with the path to what is wrong.
    pub detail: String,
}

/// A body's items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    pub items: Vec<Item>,
    /// The body is not JSON (nor lines of it): its one item is the whole body.
    pub not_json: bool,
}

/// The body holds more events than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{events} events, at most {max} are allowed")]
pub struct TooMany {
    pub events: usize,
    pub max: usize,
}

/// Reads a body: one object, an array of them, or lines of them.
///
/// # Errors
/// [`TooMany`] events; nothing was read then.
pub fn read(body: &Bytes, format: Format, limits: Limits) -> Result<Reading, TooMany> {
    let mut items = Vec::new();
    let not_json = read_into(&mut items, body, format, limits)?;
    Ok(Reading { items, not_json })
}

/// As [`read`], to the end of `items`; answers whether the body is no JSON. Most messages of a stream hold one event, and
/// a vector for each of them would cost more than it holds.
///
/// # Errors
/// [`TooMany`] events; `items` are as they were then.
pub(super) fn read_into(items: &mut Vec<Item>, body: &Bytes, format: Format, limits: Limits) -> Result<bool, TooMany> {
    let before = items.len();
    if read_at_once(items, body, format, limits).is_some() {
        return Ok(false);
    }
    items.truncate(before);
    let Split { pieces, not_json } = split(body, limits.events_max)?;
    let read = |piece| Item { raw: body.slice_ref(piece), reading: read_item(piece, format, limits.event_bytes_max) };
    items.extend(pieces.into_iter().map(read));
    Ok(not_json)
}

/// Reads a body in one walk: each object is read where it stands. `None` unless every object is of the shape that is
/// likely, as nearly all are; the longer way then finds out what they are.
fn read_at_once(items: &mut Vec<Item>, body: &Bytes, format: Format, limits: Limits) -> Option<()> {
    let text = std::str::from_utf8(body).ok()?.trim_matches(SPACE);
    let kin = Kin::likely(text, format)?;
    let (mut rest, end) = match text.strip_prefix('[') {
        Some(inside) => (inside.trim_start_matches(SPACE), "]"),
        None => (text, ""),
    };
    let most = items.len() + limits.events_max;
    loop {
        let (reading, length) = kin.read_leading(rest, format)?;
        if length > limits.event_bytes_max || items.len() >= most {
            return None;
        }
        items.push(Item { raw: body.slice_ref(&rest.as_bytes()[..length]), reading });
        rest = rest[length..].trim_start_matches(SPACE);
        match rest.strip_prefix(',') {
            Some(next) if end == "]" => rest = next.trim_start_matches(SPACE),
            _ => return (rest == end).then_some(()),
        }
    }
}

/// What JSON calls white space.
const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// As [`read`], on a thread that may block when the body is long.
///
/// # Errors
/// [`TooMany`].
pub async fn read_body(body: Bytes, format: Format, limits: Limits) -> Result<Reading, TooMany> {
    let started = tokio::time::Instant::now();
    let reading = if body.len() <= READ_INLINE_BYTES_MAX {
        read(&body, format, limits)
    } else {
        let copy = body.clone();
        match tokio::task::spawn_blocking(move || read(&copy, format, limits)).await {
            Ok(reading) => reading,
            // The runtime is shutting down; the readers themselves do not panic.
            Err(_) => read(&body, format, limits),
        }
    };
    metrics::histogram!("platform_api_usage_parse_seconds").record(started.elapsed().as_secs_f64());
    reading
}

/// Reads one item.
///
/// # Errors
/// [`Unreadable`], with the reason it goes to quarantine for.
pub fn read_item(piece: &[u8], format: Format, event_bytes_max: usize) -> Result<Parsed, Unreadable> {
    if piece.len() > event_bytes_max {
        let problem = format!("{} bytes, at most {event_bytes_max} are allowed", piece.len());
        return Err(text::unreadable(Refusal::Oversized, problem));
    }
    let Some(json) = std::str::from_utf8(piece).ok().filter(|json| json.trim_ascii_start().starts_with('{')) else {
        return Err(text::malformed("not a JSON object"));
    };
    match Kin::of(json, format) {
        Kin::CloudEvent => cloudevents::read(json, format),
        Kin::Litellm => litellm::read(json),
        Kin::Envelope => envelope::read(json),
    }
}

/// Which of the three shapes an object has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kin {
    Envelope,
    CloudEvent,
    Litellm,
}

/// Searches that are prepared once: preparing one costs more than looking through an event.
static SPEC_VERSION: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"specversion\""));
static LITELLM_CALL_ID: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"litellm_call_id\""));

/// Which of the keys that tell are there, however often: refusing what is there twice is the reader's affair.
#[derive(Debug, Default)]
struct TellingKeys {
    specversion: bool,
    litellm_call_id: bool,
    start_time: bool,
}

struct TellingKeysVisitor;

impl<'de> Visitor<'de> for TellingKeysVisitor {
    type Value = TellingKeys;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<TellingKeys, A::Error> {
        let mut keys = TellingKeys::default();
        while let Some((Text(name), IgnoredAny)) = members.next_entry()? {
            match &*name {
                "specversion" => keys.specversion = true,
                "litellm_call_id" => keys.litellm_call_id = true,
                "startTime" => keys.start_time = true,
                _ => {}
            }
        }
        Ok(keys)
    }
}

impl Kin {
    fn of(json: &str, format: Format) -> Kin {
        match Kin::likely(json, format) {
            Some(Kin::Envelope) => Kin::Envelope,
            // Where one shape is taken, everything is meant to be of it.
            Some(kin) if format != Format::Events => kin,
            _ => match serde_json::Deserializer::from_str(json).deserialize_map(TellingKeysVisitor) {
                Ok(TellingKeys { specversion: true, .. }) => Kin::CloudEvent,
                Ok(TellingKeys { litellm_call_id: true, start_time: true, .. }) => Kin::Litellm,
                _ => Kin::Envelope,
            },
        }
    }

    /// Reads the object that `json` begins with, and how long it is. `None` when it is not of this kind.
    fn read_leading(self, json: &str, format: Format) -> Option<(Result<Parsed, Unreadable>, usize)> {
        Some(match self {
            Kin::Envelope => {
                let (envelope, length) = text::leading_object::<Envelope<'_>>(json)?;
                (envelope.parsed(), length)
            }
            Kin::CloudEvent => {
                let (event, length) = text::leading_object::<CloudEvent<'_>>(json)?;
                (event.parsed(format), length)
            }
            Kin::Litellm => {
                let (payload, length) = text::leading_object::<litellm::Payload<'_>>(json)?;
                (payload.is_named().then(|| payload.parsed())?, length)
            }
        })
    }

    /// What the objects in `json` are if they are alike. A search for bytes is much cheaper than a reading, and the
    /// reading then tells whether the word was a key. `None` when they may be of several kinds.
    fn likely(json: &str, format: Format) -> Option<Kin> {
        match format {
            Format::Events => {}
            Format::Litellm => return Some(Kin::Litellm),
            Format::OpenMeter => return Some(Kin::CloudEvent),
        }
        let mentions = |word: &Finder<'_>| word.find(json.as_bytes()).is_some();
        match (mentions(&SPEC_VERSION), mentions(&LITELLM_CALL_ID)) {
            (false, false) => Some(Kin::Envelope),
            (true, false) => Some(Kin::CloudEvent),
            (false, true) => Some(Kin::Litellm),
            (true, true) => None,
        }
    }
}

/// A body's pieces, each of them what is meant to be one item.
pub(super) struct Split<'a> {
    pub(super) pieces: Vec<&'a [u8]>,
    /// The body is not JSON (nor lines of it): its one piece is the whole body.
    pub(super) not_json: bool,
}

/// # Errors
/// [`TooMany`] pieces.
pub(super) fn split(body: &[u8], events_max: usize) -> Result<Split<'_>, TooMany> {
    let whole = |not_json| Split { pieces: vec![if not_json { body } else { body.trim_ascii() }], not_json };
    let found = match body.trim_ascii_start().first() {
        Some(b'[') => match elements(body, events_max) {
            Some(Elements { count, .. }) if count > events_max => {
                return Err(TooMany { events: count, max: events_max });
            }
            Some(Elements { kept, .. }) => Split { pieces: kept, not_json: false },
            None => whole(true),
        },
        _ if is_one_value(body) => whole(false),
        Some(b'{') => match lines(body) {
            Some(pieces) => Split { pieces, not_json: false },
            None => whole(true),
        },
        _ => whole(true),
    };
    match found.pieces.len() {
        events if events > events_max => Err(TooMany { events, max: events_max }),
        _ => Ok(found),
    }
}

fn is_one_value(body: &[u8]) -> bool {
    serde_json::from_slice::<&RawValue>(body).is_ok()
}

/// The lines of a body that is JSON line by line. One bad line does not spoil the others, so it is enough that the
/// first or the last one is an object by itself; in a broken object that was written over several lines neither is.
fn lines(body: &[u8]) -> Option<Vec<&[u8]>> {
    let lines: Vec<&[u8]> =
        body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty()).collect();
    let (first, last) = (lines.first()?, lines.last()?);
    let is_object = |line: &[u8]| line.starts_with(b"{") && is_one_value(line);
    (lines.len() > 1 && (is_object(first) || is_object(last))).then_some(lines)
}

/// The elements of an array: all are counted, and no more than `max` are kept.
#[derive(Default)]
struct Elements<'a> {
    kept: Vec<&'a [u8]>,
    count: usize,
}

struct ElementsVisitor {
    max: usize,
}

impl<'de> Visitor<'de> for ElementsVisitor {
    type Value = Elements<'de>;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Elements<'de>, A::Error> {
        let mut elements = Elements::default();
        while elements.count < self.max {
            let Some(raw) = sequence.next_element::<&'de RawValue>()? else { return Ok(elements) };
            elements.kept.push(raw.get().as_bytes());
            elements.count += 1;
        }
        while sequence.next_element::<IgnoredAny>()?.is_some() {
            elements.count += 1;
        }
        Ok(elements)
    }
}

fn elements(body: &[u8], max: usize) -> Option<Elements<'_>> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let elements = reader.deserialize_seq(ElementsVisitor { max }).ok()?;
    reader.end().ok()?;
    Some(elements)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { events_max: 4, event_bytes_max: 200 };

    fn pieces(body: &str) -> (Vec<String>, bool) {
        let reading = read(&Bytes::copy_from_slice(body.as_bytes()), Format::Events, LIMITS).unwrap();
        let raw = |item: &Item| String::from_utf8(item.raw.to_vec()).unwrap();
        (reading.items.iter().map(raw).collect(), reading.not_json)
    }

    #[test]
    fn splits_objects_arrays_and_lines() {
        let strings = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
        for (body, parts, not_json) in [
            (r#"{"a":1}"#, &[r#"{"a":1}"#][..], false),
            (r#" [ {"a":1} , 7,[{}] ] "#, &[r#"{"a":1}"#, "7", "[{}]"], false),
            ("[]", &[], false),
            ("{\"a\":1}\n\n{\"b\":2}\r\n", &[r#"{"a":1}"#, r#"{"b":2}"#], false),
            ("{\"a\":1}\n{\"b\":\n{\"c\":3}", &[r#"{"a":1}"#, r#"{"b":"#, r#"{"c":3}"#], false),
            ("{\"a\":\n{\"b\":2}", &[r#"{"a":"#, r#"{"b":2}"#], false),
            ("{\n\"a\": 1,\n}", &["{\n\"a\": 1,\n}"], true),
            ("[{},", &["[{},"], true),
            ("", &[""], true),
            ("tokens=5", &["tokens=5"], true),
            ("\"text\"", &["\"text\""], false),
        ] {
            assert_eq!(pieces(body), (strings(parts), not_json), "{body:?}");
        }
    }

    #[test]
    fn counts_what_it_does_not_keep() {
        let read = |body: &str| read(&Bytes::copy_from_slice(body.as_bytes()), Format::Events, LIMITS);
        assert_eq!(read("[1,2,3,4,5,6]"), Err(TooMany { events: 6, max: 4 }));
        assert_eq!(read("{}\n{}\n{}\n{}\n{}"), Err(TooMany { events: 5, max: 4 }));
        assert_eq!(read("[1,2,3,4]").unwrap().items.len(), 4);
    }

    #[test]
    fn a_long_event_is_refused_by_itself() {
        let body = format!("[{{\"pad\":\"{}\"}},{{}}]", "x".repeat(300));
        let reading = read(&Bytes::from(body), Format::Events, LIMITS).unwrap();
        let reasons: Vec<_> = reading.items.iter().map(|item| item.reading.clone().unwrap_err().reason).collect();
        assert_eq!(reasons, [Refusal::Oversized, Refusal::Malformed]);
    }

    #[test]
    fn depth_is_no_stack() {
        let deep = format!("{{\"eventId\":{}", "[".repeat(100_000));
        assert!(pieces(&format!("{}{}}}", deep, "]".repeat(100_000))).0.len() == 1);
        assert!(pieces(&deep).1);
    }
}
