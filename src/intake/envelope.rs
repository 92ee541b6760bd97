//! The platform's own envelope: `{eventId, occurredAt, tenantId, …, payload: {source, model, usage, costUsd, …}}`.
//!
//! Every name is accepted in camelCase and in snake_case; naming a field both ways is an error. Unknown fields are
//! ignored, because producers are upgraded before we are; a known field of the wrong type is an error.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::arrival::{Parsed, TenantClaim, Unreadable};
use super::text::{self, Details, bounded, label, malformed, units};
use crate::domain::amount::NanoUsd;
use crate::domain::time::Timestamp;
use crate::domain::usage::{
    Amounts, EVENT_ID_BYTES_MAX, Flags, Kind, LABEL_BYTES_MAX, OWN_SOURCE, Status, Subject, UsageEvent,
};
use crate::json::{Object, Text};

/// What `source` is when an envelope does not say.
pub const DEFAULT_SOURCE: &str = "platform";

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Envelope<'a> {
    #[serde(borrow, alias = "event_id")]
    event_id: Text<'a>,
    #[serde(borrow, alias = "occurred_at")]
    occurred_at: Text<'a>,
    #[serde(borrow, alias = "tenant_id")]
    tenant_id: Option<Text<'a>>,
    #[serde(borrow, alias = "platform_id")]
    platform_id: Option<Text<'a>>,
    #[serde(borrow, alias = "correlation_id")]
    correlation_id: Option<Text<'a>>,
    #[serde(borrow)]
    actor: Option<Object<Actor<'a>>>,
    #[serde(borrow)]
    payload: Object<Payload<'a>>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Actor<'a> {
    #[serde(borrow, alias = "user_id")]
    user_id: Option<Text<'a>>,
    #[serde(borrow, alias = "group_id")]
    group_id: Option<Text<'a>>,
    #[serde(borrow, alias = "api_key_id")]
    api_key_id: Option<Text<'a>>,
}

/// What was used; also the `data` of a CloudEvent.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Payload<'a> {
    #[serde(borrow)]
    pub(super) source: Option<Text<'a>>,
    kind: Option<WireKind>,
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    provider: Option<Text<'a>>,
    #[serde(borrow, alias = "call_type")]
    call_type: Option<Text<'a>>,
    status: Option<WireStatus>,
    #[serde(borrow, alias = "request_id")]
    request_id: Option<Text<'a>>,
    usage: Option<Object<Usage>>,
    #[serde(borrow, alias = "cost_usd")]
    cost_usd: Option<&'a RawValue>,
    #[serde(borrow)]
    tags: Option<Tags<'a>>,
    /// A CloudEvent has no other place for it.
    #[serde(borrow)]
    pub(super) actor: Option<Object<Actor<'a>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "Text<'_>")]
enum WireKind {
    Delta,
    Cumulative,
}

impl TryFrom<Text<'_>> for WireKind {
    type Error = &'static str;

    fn try_from(text: Text<'_>) -> Result<WireKind, &'static str> {
        match &*text {
            "delta" => Ok(WireKind::Delta),
            "cumulative" => Ok(WireKind::Cumulative),
            _ => Err("neither delta nor cumulative"),
        }
    }
}

/// How a call ended, in the words of the envelope and of LiteLLM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "Text<'_>")]
pub(super) struct WireStatus(pub(super) Status);

impl TryFrom<Text<'_>> for WireStatus {
    type Error = &'static str;

    fn try_from(text: Text<'_>) -> Result<WireStatus, &'static str> {
        match &*text {
            "success" => Ok(WireStatus(Status::Success)),
            "failure" => Ok(WireStatus(Status::Failure)),
            _ => Err("neither success nor failure"),
        }
    }
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Usage {
    pub(super) tokens: Option<i64>,
    #[serde(alias = "total_tokens")]
    pub(super) total_tokens: Option<i64>,
    #[serde(alias = "prompt_tokens")]
    pub(super) prompt_tokens: Option<i64>,
    #[serde(alias = "completion_tokens")]
    pub(super) completion_tokens: Option<i64>,
    #[serde(alias = "cache_read_tokens")]
    pub(super) cache_read_tokens: Option<i64>,
    #[serde(alias = "cache_write_tokens")]
    pub(super) cache_write_tokens: Option<i64>,
    #[serde(alias = "reasoning_tokens")]
    pub(super) reasoning_tokens: Option<i64>,
    pub(super) requests: Option<i64>,
}

impl<'a> Payload<'a> {
    /// What was read in other words than the envelope's.
    pub(super) fn counted(
        usage: Usage,
        cost_usd: Option<&'a RawValue>,
        status: Status,
        model: Option<Text<'a>>,
        provider: Option<Text<'a>>,
    ) -> Payload<'a> {
        Payload {
            source: None,
            kind: None,
            model,
            provider,
            call_type: None,
            status: Some(WireStatus(status)),
            request_id: None,
            usage: Some(Object(usage)),
            cost_usd,
            tags: None,
            actor: None,
        }
    }

    /// Does it state any amount?
    pub(super) fn states_amounts(&self) -> bool {
        self.usage.is_some() || self.cost_usd.is_some()
    }
}

/// Labels a sender likes to give: a list, or names with values.
#[derive(Debug)]
enum Tags<'a> {
    List(Vec<Text<'a>>),
    Named(BTreeMap<Cow<'a, str>, Cow<'a, str>>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Tags<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Tags<'a>, D::Error> {
        deserializer.deserialize_any(TagsVisitor)
    }
}

struct TagsVisitor;

impl<'de> Visitor<'de> for TagsVisitor {
    type Value = Tags<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of strings, or an object of strings")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Tags<'de>, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(Tags::List)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Tags<'de>, A::Error> {
        let mut named = BTreeMap::new();
        while let Some((Text(name), Text(value))) = members.next_entry()? {
            if named.insert(name, value).is_some() {
                return Err(de::Error::custom("a name is there twice"));
            }
        }
        Ok(Tags::Named(named))
    }
}

/// Who vouches for an event, and what it is called there.
pub(super) struct Identity {
    pub(super) source: String,
    pub(super) event_id: String,
    pub(super) occurred_at: Timestamp,
}

/// Reads one envelope.
///
/// # Errors
/// [`Unreadable`].
pub fn read(json: &str) -> Result<Parsed, Unreadable> {
    text::object::<Envelope<'_>>(json)?.parsed()
}

impl Envelope<'_> {
    /// # Errors
    /// [`Unreadable`].
    pub(super) fn parsed(self) -> Result<Parsed, Unreadable> {
        let Object(mut payload) = self.payload;
        let source = payload.source.take().map_or_else(|| DEFAULT_SOURCE.to_owned(), Text::into_owned);
        let identity = Identity {
            source: source_name("payload.source", source)?,
            event_id: event_id("eventId", self.event_id.into_owned())?,
            occurred_at: instant("occurredAt", &self.occurred_at)?,
        };
        let mut details = Details::default();
        details.text("correlationId", self.correlation_id.as_deref());
        details.text("platformId", self.platform_id.as_deref());
        let claim = self.tenant_id.map_or(TenantClaim::Absent, |id| tenant_claim(&id));
        let actor = self.actor.map(|Object(actor)| actor).unwrap_or_default();
        let event = event(identity, actor, payload, details)?;
        Ok(Parsed { event, claim })
    }
}

/// # Errors
/// [`Refusal::Malformed`] when it is empty or our own, otherwise as [`label`].
pub(super) fn source_name(path: &str, source: String) -> Result<String, Unreadable> {
    if source.is_empty() {
        return Err(malformed(format!("{path}: empty")));
    }
    if source == OWN_SOURCE {
        return Err(malformed(format!("{path}: {OWN_SOURCE} is ours alone")));
    }
    bounded(path, source, LABEL_BYTES_MAX)
}

/// # Errors
/// [`Refusal::Malformed`] when it is empty or contains a NUL, [`Refusal::Oversized`] above [`EVENT_ID_BYTES_MAX`].
pub(super) fn event_id(path: &str, id: String) -> Result<String, Unreadable> {
    if id.is_empty() {
        return Err(malformed(format!("{path}: empty")));
    }
    bounded(path, id, EVENT_ID_BYTES_MAX)
}

/// # Errors
/// [`Refusal::Malformed`].
pub(super) fn instant(path: &str, text: &str) -> Result<Timestamp, Unreadable> {
    text.parse().map_err(|error| malformed(format!("{path}: {error}")))
}

pub(super) fn tenant_claim(id: &str) -> TenantClaim {
    match id.parse() {
        Ok(tenant) => TenantClaim::Named(tenant),
        Err(_) => TenantClaim::NamedUnknown(text::shortened(id, 64).into_owned()),
    }
}

/// # Errors
/// [`Unreadable`], with the path within `payload`.
pub(super) fn event(
    identity: Identity,
    actor: Actor<'_>,
    payload: Payload<'_>,
    mut details: Details,
) -> Result<UsageEvent, Unreadable> {
    let kind = match payload.kind {
        None | Some(WireKind::Delta) => Kind::Delta,
        Some(WireKind::Cumulative) => Kind::Cumulative,
    };
    let status = payload.status.map_or(Status::Success, |WireStatus(status)| status);
    let cost = text::cost("payload.costUsd", payload.cost_usd)?;
    let stated = Stated::read(payload.usage.map(|Object(usage)| usage).unwrap_or_default(), cost)?;
    if stated.is_silent() && status == Status::Success {
        return Err(malformed("payload.usage: states no tokens, no requests, and there is no payload.costUsd"));
    }
    details.text("requestId", payload.request_id.as_deref());
    match payload.tags {
        Some(Tags::List(tags)) => details.texts("tags", &tags),
        Some(Tags::Named(tags)) => details.value("tags", tags),
        None => {}
    }
    let (amounts, flags) = if kind == Kind::Delta {
        stated.counted(status, &mut details)
    } else {
        stated.as_statement(&mut details);
        (Amounts::default(), Flags::default())
    };
    Ok(UsageEvent {
        source: identity.source,
        event_id: identity.event_id,
        occurred_at: identity.occurred_at,
        kind,
        status,
        subject: Subject {
            user: label("actor.userId", actor.user_id)?,
            group: label("actor.groupId", actor.group_id)?,
            api_key: label("actor.apiKeyId", actor.api_key_id)?,
            model: label("payload.model", payload.model)?,
            provider: label("payload.provider", payload.provider)?,
        },
        call_type: label("payload.callType", payload.call_type)?,
        amounts,
        flags,
        details: details.finish()?,
    })
}

/// What a sender states, every number checked by itself and against the others.
struct Stated {
    requests: Option<i64>,
    prompt: Option<i64>,
    completion: Option<i64>,
    cache_read: i64,
    cache_write: i64,
    reasoning: i64,
    /// The sender's total.
    total: Option<i64>,
    cost: Option<NanoUsd>,
}

impl Stated {
    fn read(usage: Usage, cost: Option<NanoUsd>) -> Result<Stated, Unreadable> {
        let tokens = units("payload.usage.tokens", usage.tokens)?;
        let total = units("payload.usage.totalTokens", usage.total_tokens)?;
        if tokens.is_some() && total.is_some() && tokens != total {
            return Err(malformed("payload.usage: tokens and totalTokens are two names of one number, and differ"));
        }
        let total = total.or(tokens);
        let prompt = units("payload.usage.promptTokens", usage.prompt_tokens)?;
        let completion = units("payload.usage.completionTokens", usage.completion_tokens)?;
        let stated = Stated {
            requests: units("payload.usage.requests", usage.requests)?,
            // A total and one part state the other part.
            prompt: prompt.or_else(|| rest_of(total, completion)),
            completion: completion.or_else(|| rest_of(total, prompt)),
            cache_read: units("payload.usage.cacheReadTokens", usage.cache_read_tokens)?.unwrap_or(0),
            cache_write: units("payload.usage.cacheWriteTokens", usage.cache_write_tokens)?.unwrap_or(0),
            reasoning: units("payload.usage.reasoningTokens", usage.reasoning_tokens)?.unwrap_or(0),
            total,
            cost,
        };
        if stated.cache_read + stated.cache_write > stated.prompt.unwrap_or(0) {
            return Err(malformed("payload.usage: cache tokens are a share of promptTokens, and exceed them"));
        }
        if stated.reasoning > stated.completion.unwrap_or(0) {
            return Err(malformed("payload.usage.reasoningTokens: a share of completionTokens, and exceeds them"));
        }
        Ok(stated)
    }

    fn is_silent(&self) -> bool {
        [self.requests, self.prompt, self.completion, self.total].iter().all(Option::is_none) && self.cost.is_none()
    }

    fn has_classes(&self) -> bool {
        self.prompt.is_some() || self.completion.is_some()
    }

    fn counted(&self, status: Status, details: &mut Details) -> (Amounts, Flags) {
        let mut amounts = Amounts {
            requests: 0,
            prompt_tokens: self.prompt.unwrap_or(0),
            cache_read_tokens: self.cache_read,
            cache_write_tokens: self.cache_write,
            completion_tokens: self.completion.unwrap_or(0),
            reasoning_tokens: self.reasoning,
            unclassified_tokens: if self.has_classes() { 0 } else { self.total.unwrap_or(0) },
            cost: self.cost.unwrap_or_default(),
        };
        let consumed = status == Status::Success || amounts.total_tokens() > 0 || amounts.cost.0 > 0;
        amounts.requests = self.requests.unwrap_or(i64::from(consumed));
        let mut flags = Flags::default();
        // A cost of zero that is stated is a price; a missing one is a missing price.
        if status == Status::Success && amounts.total_tokens() > 0 && self.cost.is_none() {
            flags = flags.with(Flags::UNPRICED);
        }
        if let Some(total) = self.total.filter(|total| *total != amounts.total_tokens()) {
            flags = flags.with(Flags::TOTAL_DIFFERS);
            details.value("senderTotal", total);
        }
        (amounts, flags)
    }

    fn as_statement(&self, details: &mut Details) {
        let numbers = [
            ("cacheReadTokens", Some(self.cache_read).filter(|tokens| *tokens > 0)),
            ("cacheWriteTokens", Some(self.cache_write).filter(|tokens| *tokens > 0)),
            ("completionTokens", self.completion),
            ("promptTokens", self.prompt),
            ("reasoningTokens", Some(self.reasoning).filter(|tokens| *tokens > 0)),
            ("requests", self.requests),
            ("totalTokens", self.total),
        ];
        let mut statement: BTreeMap<&str, Value> =
            numbers.into_iter().filter_map(|(name, number)| Some((name, Value::from(number?)))).collect();
        if let Some(cost) = self.cost {
            statement.insert("costUsd", Value::String(cost.to_string()));
        }
        details.value("statement", statement);
    }
}

fn rest_of(total: Option<i64>, part: Option<i64>) -> Option<i64> {
    total?.checked_sub(part?).filter(|rest| *rest >= 0)
}
