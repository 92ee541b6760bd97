//! CloudEvents 1.0, whose `data` is the envelope's payload, or flat as OpenMeter's senders write it ([`openmeter`]).
//!
//! The two doors for them differ in two things. At OpenMeter's, `time` may be missing: then it is that of the arrival, and
//! no part of what the event says. And there the `subject` is a name in the sender's world, which need not be a tenant's id.
//!
//! Structured and batched events are read as they are. A binary one (attributes in `ce-*` headers, over HTTP or NATS)
//! is written down in structured form first, so that there is one reader, and so that its bytes in quarantine say
//! everything that arrived.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::arrival::{Format, Parsed, TenantClaim, Unreadable};
use super::envelope::{self, Identity};
use super::openmeter;
use super::text::{self, Details, malformed};
use crate::domain::time::Timestamp;
use crate::domain::usage::Flags;
use crate::json::{Object, Text};

const SPEC_VERSION: &str = "1.0";
const HEADER_PREFIX: &str = "ce-";

#[derive(Debug, Deserialize)]
pub(super) struct CloudEvent<'a> {
    #[serde(borrow)]
    specversion: Text<'a>,
    #[serde(borrow)]
    id: Text<'a>,
    #[serde(borrow)]
    source: Text<'a>,
    #[serde(borrow, rename = "type")]
    kind: Option<Text<'a>>,
    #[serde(borrow)]
    time: Option<Text<'a>>,
    #[serde(borrow)]
    subject: Option<Text<'a>>,
    #[serde(borrow)]
    tenantid: Option<Text<'a>>,
    #[serde(borrow)]
    correlationid: Option<Text<'a>>,
    #[serde(borrow)]
    platformid: Option<Text<'a>>,
    #[serde(borrow)]
    datacontenttype: Option<Text<'a>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

/// Reads one structured event. Its identity is `source` + `id`; the tenant is in `subject` or the extension
/// `tenantid`.
///
/// # Errors
/// [`Unreadable`].
pub fn read(json: &str, format: Format) -> Result<Parsed, Unreadable> {
    text::object::<CloudEvent<'_>>(json)?.parsed(format)
}

impl CloudEvent<'_> {
    /// # Errors
    /// [`Unreadable`].
    pub(super) fn parsed(self, format: Format) -> Result<Parsed, Unreadable> {
        if &*self.specversion != SPEC_VERSION {
            return Err(malformed("specversion: only 1.0 is understood"));
        }
        if self.datacontenttype.as_deref().is_some_and(|kind| !is_json(kind)) {
            return Err(malformed("datacontenttype: only JSON is understood"));
        }
        let data = self.data.ok_or_else(|| malformed("data: missing, or not JSON"))?;
        if self.time.is_none() && format != Format::OpenMeter {
            return Err(malformed("time: missing"));
        }
        let mut payload = payload(data.get())
            .map_err(|problem| text::unreadable(problem.reason, format!("data: {}", problem.detail)))?;
        let time = self.time.as_deref().map(|time| envelope::instant("time", time)).transpose()?;
        let identity = Identity {
            source: envelope::source_name("source", self.source.into_owned())?,
            event_id: envelope::event_id("id", self.id.into_owned())?,
            // Whoever knows when it arrived says so.
            occurred_at: time.unwrap_or(Timestamp(0)),
        };
        let mut details = Details::default();
        details.text("type", self.kind.as_deref());
        details.text("correlationId", self.correlationid.as_deref());
        details.text("platformId", self.platformid.as_deref());
        // The identity's source counts; the payload's own is kept.
        details.text("payloadSource", payload.source.take().as_deref());
        let actor = payload.actor.take().map(|Object(actor)| actor).unwrap_or_default();
        let mut event = envelope::event(identity, actor, payload, details)?;
        if time.is_none() {
            event.flags = event.flags.with(Flags::UNDATED);
        }
        Ok(Parsed { event, claim: claim(format, self.tenantid.as_deref(), self.subject.as_deref()) })
    }
}

/// What was used, in the envelope's words or in OpenMeter's.
fn payload(data: &str) -> Result<envelope::Payload<'_>, Unreadable> {
    let own = text::object::<envelope::Payload<'_>>(data);
    if own.as_ref().is_ok_and(envelope::Payload::states_amounts) {
        return own;
    }
    openmeter::payload(data)?.map_or(own, Ok)
}

fn claim(format: Format, extension: Option<&str>, subject: Option<&str>) -> TenantClaim {
    if format == Format::OpenMeter && extension.is_none() {
        let subject = subject.filter(|subject| !subject.is_empty());
        return subject.map_or(TenantClaim::Absent, |subject| TenantClaim::Subject(subject.to_owned()));
    }
    let named = |text: Option<&str>| match text.map(envelope::tenant_claim) {
        Some(TenantClaim::Named(tenant)) => Some(tenant),
        _ => None,
    };
    match (named(extension), named(subject)) {
        (Some(one), Some(other)) if one != other => TenantClaim::Contradictory,
        (Some(tenant), _) => TenantClaim::Named(tenant),
        (None, Some(tenant)) if extension.is_none() => TenantClaim::Named(tenant),
        _ => extension.or(subject).map_or(TenantClaim::Absent, envelope::tenant_claim),
    }
}

/// The body in structured form when `headers` carry a binary event, the body itself otherwise. Names of headers may
/// have any case; values are percent-decoded, as the HTTP and NATS bindings say.
pub fn structured<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>, body: Bytes) -> Bytes {
    let mut attributes = serde_json::Map::new();
    let mut content_type = None;
    for (name, value) in headers {
        let name = name.to_ascii_lowercase();
        if let Some(attribute) = name.strip_prefix(HEADER_PREFIX) {
            attributes.insert(attribute.to_owned(), Value::String(percent_decoded(value)));
        } else if name == "content-type" {
            content_type = Some(value);
        }
    }
    if !attributes.contains_key("specversion") {
        return body;
    }
    if let Some(kind) = content_type {
        attributes.insert("datacontenttype".to_owned(), Value::String(kind.to_owned()));
    }
    // The data goes in as it is: reading it here and writing it again could change a number's text.
    let Ok(mut text) = serde_json::to_string(&attributes) else { return body };
    if let Some(data) = serde_json::from_slice::<&RawValue>(&body).ok().map(RawValue::get) {
        text.truncate(text.len() - 1);
        text.push_str(",\"data\":");
        text.push_str(data);
        text.push('}');
    } else if let Ok(data) = serde_json::to_string(&String::from_utf8_lossy(&body)) {
        text.truncate(text.len() - 1);
        text.push_str(",\"data_text\":");
        text.push_str(&data);
        text.push('}');
    }
    Bytes::from(text)
}

fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || essence == "text/json" || essence.ends_with("+json")
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match escape.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
