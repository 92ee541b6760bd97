//! LiteLLM's `StandardLoggingPayload`, as its `generic_api` callback posts it.
//!
//! - **Identity** is the tuple of `startTime` (as text), `litellm_call_id`, `id` and `status`: none of them is unique
//!   by itself, and a re-send keeps all four. The time comes first so that neighbours in time become neighbours in the
//!   ledger's index.
//! - **The tenant** comes from `metadata.user_api_key_*` alone, which LiteLLM fills from the key. Everything else
//!   (`metadata.team_id`, tags, end user, trace id) is written by the client: it labels usage and never attributes it.
//! - **The subject**: user is the key's user, group is the LiteLLM team, the API key is the key's alias or else its
//!   hash, the model is the public name the client asked for (`model_group`) or else the deployment's `model`.
//! - **No client can hide its usage.** What a client writes is shortened and cleaned, never a reason to refuse.
//! - **When** is `endTime`, or `startTime` without it. Prompts and answers are never kept.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::arrival::{Parsed, TenantClaim, Unreadable};
use super::envelope::WireStatus;
use super::text::{self, Details, malformed, number_text, shortened, units};
use crate::domain::amount::NanoUsd;
use crate::domain::tenant::ExternalId;
use crate::domain::time::Timestamp;
use crate::domain::usage::{Amounts, EVENT_ID_BYTES_MAX, Flags, Kind, LABEL_BYTES_MAX, Status, Subject, UsageEvent};
use crate::json::{LossyText, Object};

/// The source of every event read here, and of the external ids that name its tenant.
pub const SOURCE: &str = "litellm";

/// Longest text of one detail, in bytes.
const DETAIL_BYTES_MAX: usize = 256;
/// Bytes of all tags of one event together; further ones are left out.
const TAGS_BYTES_MAX: usize = 1_024;
/// LiteLLM adds two tags of its own with this beginning to each event.
const AUTOMATIC_TAG: &str = "User-Agent: ";

#[derive(Debug, Deserialize)]
pub(super) struct Payload<'a> {
    #[serde(borrow)]
    id: Option<LossyText<'a>>,
    #[serde(borrow)]
    litellm_call_id: Option<LossyText<'a>>,
    #[serde(borrow)]
    trace_id: Option<&'a RawValue>,
    #[serde(borrow)]
    call_type: Option<LossyText<'a>>,
    status: WireStatus,
    #[serde(borrow, rename = "startTime")]
    start_time: &'a RawValue,
    #[serde(borrow, rename = "endTime")]
    end_time: Option<&'a RawValue>,
    #[serde(borrow)]
    response_cost: Option<&'a RawValue>,
    prompt_tokens: Option<i64>,
    completion_tokens: Option<i64>,
    total_tokens: Option<i64>,
    #[serde(borrow)]
    model: Option<LossyText<'a>>,
    #[serde(borrow)]
    model_group: Option<LossyText<'a>>,
    #[serde(borrow)]
    custom_llm_provider: Option<LossyText<'a>>,
    #[serde(borrow)]
    cache_hit: Option<&'a RawValue>,
    #[serde(borrow)]
    request_tags: Option<&'a RawValue>,
    #[serde(borrow)]
    end_user: Option<&'a RawValue>,
    #[serde(borrow)]
    error_information: Option<&'a RawValue>,
    #[serde(borrow)]
    metadata: Option<Object<Metadata<'a>>>,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata<'a> {
    #[serde(borrow)]
    user_api_key_hash: Option<LossyText<'a>>,
    #[serde(borrow)]
    user_api_key_alias: Option<LossyText<'a>>,
    #[serde(borrow)]
    user_api_key_team_id: Option<LossyText<'a>>,
    #[serde(borrow)]
    user_api_key_org_id: Option<LossyText<'a>>,
    #[serde(borrow)]
    user_api_key_project_id: Option<LossyText<'a>>,
    #[serde(borrow)]
    user_api_key_user_id: Option<LossyText<'a>>,
    #[serde(borrow)]
    usage_object: Option<&'a RawValue>,
}

/// The provider's usage as LiteLLM passes it on. Its shape is the provider's affair, so whatever is not a number of
/// tokens is as good as absent.
#[derive(Debug, Default, Deserialize)]
struct UsageObject<'a> {
    #[serde(borrow)]
    cache_read_input_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    cache_creation_input_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt_tokens_details: Option<&'a RawValue>,
    #[serde(borrow)]
    completion_tokens_details: Option<&'a RawValue>,
}

#[derive(Debug, Default, Deserialize)]
struct TokenDetails<'a> {
    #[serde(borrow)]
    cached_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    cache_creation_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    reasoning_tokens: Option<&'a RawValue>,
}

#[derive(Debug, Default, Deserialize)]
struct ErrorInformation<'a> {
    #[serde(borrow)]
    error_code: Option<&'a RawValue>,
    #[serde(borrow)]
    error_class: Option<&'a RawValue>,
}

/// The one key that tells the legacy shape apart (`generic_api_use_v1`): each value there is a Python text, tokens
/// and tenant included, so there is nothing in it that could be counted faithfully.
#[derive(Deserialize)]
struct LegacyKeys {
    #[serde(rename = "modelParameters")]
    model_parameters: Option<serde::de::IgnoredAny>,
}

/// Reads one payload.
///
/// # Errors
/// [`Unreadable`].
pub fn read(json: &str) -> Result<Parsed, Unreadable> {
    text::object::<Payload<'_>>(json).map_err(|problem| explained(json, problem))?.parsed()
}

impl<'a> Payload<'a> {
    /// Whether it has what tells it from other objects; `startTime` it always has.
    pub(super) fn is_named(&self) -> bool {
        self.litellm_call_id.is_some()
    }

    /// # Errors
    /// [`Unreadable`].
    pub(super) fn parsed(&self) -> Result<Parsed, Unreadable> {
        let start_text = number_text(self.start_time).ok_or_else(|| malformed("startTime: not a number of seconds"))?;
        let started_at = epoch_seconds("startTime", &start_text)?;
        let ended_at = match self.end_time.map(|raw| number_text(raw).ok_or_else(|| malformed("endTime: not a number")))
        {
            Some(text) => epoch_seconds("endTime", &text?)?,
            None => started_at,
        };
        let WireStatus(status) = self.status;
        let shares = Shares::read(self.metadata().and_then(|metadata| metadata.usage_object));
        let mut details = details(self);
        let (amounts, flags) = amounts(self, status, shares, &mut details)?;
        let event = UsageEvent {
            source: SOURCE.to_owned(),
            event_id: event_id(&start_text, self)?,
            occurred_at: ended_at,
            kind: Kind::Delta,
            status,
            subject: subject(self),
            call_type: label(self.call_type.as_deref()),
            amounts,
            flags,
            details: details.finish()?,
        };
        Ok(Parsed { event, claim: TenantClaim::External(self.metadata().map(external_ids).unwrap_or_default()) })
    }

    fn metadata(&self) -> Option<&Metadata<'a>> {
        self.metadata.as_ref().map(|Object(metadata)| metadata)
    }
}

fn explained(json: &str, problem: Unreadable) -> Unreadable {
    match serde_json::from_str(json) {
        Ok(Object(LegacyKeys { model_parameters: Some(_) })) => {
            malformed("the legacy payload, in which every value is a text: remove litellm_settings.generic_api_use_v1")
        }
        _ => problem,
    }
}

/// Seconds with a fraction, read exactly: nine decimals, as money has them.
fn epoch_seconds(path: &str, text: &str) -> Result<Timestamp, Unreadable> {
    let nanos = NanoUsd::parse_decimal(text).map_err(|_| malformed(format!("{path}: not a number of seconds")))?;
    Ok(Timestamp(nanos.0.div_euclid(1_000)))
}

/// A client may choose the call id and a provider the response id, of any length: what does not fit is replaced by
/// its digest, and stays as unique.
fn event_id(start_text: &str, payload: &Payload<'_>) -> Result<String, Unreadable> {
    let call = payload.litellm_call_id.as_deref().unwrap_or_default();
    let id = payload.id.as_deref().unwrap_or_default();
    if call.is_empty() && id.is_empty() {
        return Err(malformed("litellm_call_id, id: both are missing"));
    }
    let status = match payload.status {
        WireStatus(Status::Success) => "success",
        WireStatus(Status::Failure) => "failure",
    };
    let start = shortened(start_text, 64);
    let tuple = format!("{start}|{call}|{id}|{status}");
    if tuple.len() <= EVENT_ID_BYTES_MAX && !tuple.contains('\0') {
        return Ok(tuple);
    }
    Ok(format!("{start}|sha256:{}|{status}", text::hex(&text::sha256(tuple.as_bytes()))))
}

fn subject(payload: &Payload<'_>) -> Subject {
    let nothing = Metadata::default();
    let key = payload.metadata().unwrap_or(&nothing);
    let alias = label(key.user_api_key_alias.as_deref());
    let model = [&payload.model_group, &payload.model].into_iter().flatten().find(|model| !model.is_empty());
    Subject {
        user: label(key.user_api_key_user_id.as_deref()),
        group: label(key.user_api_key_team_id.as_deref()),
        api_key: if alias.is_empty() { label(key.user_api_key_hash.as_deref()) } else { alias },
        model: label(model.map(|model| &**model)),
        provider: label(payload.custom_llm_provider.as_deref()),
    }
}

fn label(text: Option<&str>) -> String {
    text.map(|text| shortened(text, LABEL_BYTES_MAX).into_owned()).unwrap_or_default()
}

/// The ids that LiteLLM fills from the key, in the order in which the catalogue is asked.
fn external_ids(metadata: &Metadata<'_>) -> Vec<ExternalId> {
    [
        ("team", &metadata.user_api_key_team_id),
        ("organization", &metadata.user_api_key_org_id),
        ("project", &metadata.user_api_key_project_id),
        ("keyHash", &metadata.user_api_key_hash),
        ("keyAlias", &metadata.user_api_key_alias),
    ]
    .into_iter()
    .filter_map(|(kind, id)| {
        let id = id.as_deref().filter(|id| !id.is_empty())?;
        Some(ExternalId { source: SOURCE.to_owned(), kind: kind.to_owned(), id: id.to_owned() })
    })
    .collect()
}

/// Cached and reasoning tokens, as the provider reports them.
#[derive(Debug, Clone, Copy, Default)]
struct Shares {
    cache_read: i64,
    cache_write: i64,
    reasoning: i64,
}

impl Shares {
    fn read(usage_object: Option<&RawValue>) -> Shares {
        let usage: UsageObject<'_> = tolerant(usage_object);
        let prompt: TokenDetails<'_> = tolerant(usage.prompt_tokens_details);
        let completion: TokenDetails<'_> = tolerant(usage.completion_tokens_details);
        let first = |places: [Option<&RawValue>; 2]| places.into_iter().find_map(tokens).unwrap_or(0);
        Shares {
            cache_read: first([prompt.cached_tokens, usage.cache_read_input_tokens]),
            cache_write: first([prompt.cache_creation_tokens, usage.cache_creation_input_tokens]),
            reasoning: first([completion.reasoning_tokens, None]),
        }
    }
}

fn tolerant<'a, T: Deserialize<'a> + Default>(raw: Option<&'a RawValue>) -> T {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).map(|Object(value)| value).unwrap_or_default()
}

fn tokens(raw: Option<&RawValue>) -> Option<i64> {
    let tokens = raw?.get().parse::<i64>().ok()?;
    (tokens > 0).then_some(tokens)
}

fn amounts(
    payload: &Payload<'_>,
    status: Status,
    shares: Shares,
    details: &mut Details,
) -> Result<(Amounts, Flags), Unreadable> {
    let prompt = units("prompt_tokens", payload.prompt_tokens)?.unwrap_or(0);
    let completion = units("completion_tokens", payload.completion_tokens)?.unwrap_or(0);
    let total = units("total_tokens", payload.total_tokens)?;
    let cost = text::cost("response_cost", payload.response_cost)?.unwrap_or_default();
    let mut flags = Flags::default();
    let unclassified = if prompt + completion == 0 { total.unwrap_or(0) } else { 0 };
    if let Some(total) = total.filter(|total| *total != prompt + completion + unclassified) {
        flags = flags.with(Flags::TOTAL_DIFFERS);
        details.value("senderTotal", total);
    }
    let cache_hit = payload.cache_hit.is_some_and(|raw| raw.get() == "true");
    if cache_hit {
        flags = flags.with(Flags::CACHE_HIT);
    }
    let consumed = prompt + completion + unclassified > 0;
    if status == Status::Success && consumed && cost.0 == 0 && !cache_hit {
        flags = flags.with(Flags::UNPRICED);
    }
    let bounded = bounded_shares(shares, prompt, completion, details);
    let amounts = Amounts {
        requests: i64::from(status == Status::Success || consumed || cost.0 > 0),
        prompt_tokens: prompt,
        cache_read_tokens: bounded.cache_read,
        cache_write_tokens: bounded.cache_write,
        completion_tokens: completion,
        reasoning_tokens: bounded.reasoning,
        unclassified_tokens: unclassified,
        cost,
    };
    Ok((amounts, flags))
}

/// Shares never exceed what they are shares of; what the sender said is kept when they did.
fn bounded_shares(shares: Shares, prompt: i64, completion: i64, details: &mut Details) -> Shares {
    let cache_read = shares.cache_read.min(prompt);
    let bounded = Shares {
        cache_read,
        cache_write: shares.cache_write.min(prompt - cache_read),
        reasoning: shares.reasoning.min(completion),
    };
    for (key, stated, kept) in [
        ("senderCacheRead", shares.cache_read, bounded.cache_read),
        ("senderCacheWrite", shares.cache_write, bounded.cache_write),
        ("senderReasoning", shares.reasoning, bounded.reasoning),
    ] {
        if stated != kept {
            details.value(key, stated);
        }
    }
    bounded
}

/// What helps to find the call again. Bounded in itself: see [`TAGS_BYTES_MAX`] and [`DETAIL_BYTES_MAX`].
fn details<'a>(payload: &Payload<'a>) -> Details {
    let short = |text: Option<&LossyText<'a>>| text.map(|text| shortened(text, DETAIL_BYTES_MAX).into_owned());
    let loose = |raw: Option<&'a RawValue>| {
        raw.and_then(number_text).map(|text| shortened(&text, DETAIL_BYTES_MAX).into_owned())
    };
    let metadata = payload.metadata();
    let mut details = Details::default();
    details.text("callId", short(payload.litellm_call_id.as_ref()));
    details.text("traceId", loose(payload.trace_id));
    details.text("endUser", loose(payload.end_user));
    details.text("organization", short(metadata.and_then(|of| of.user_api_key_org_id.as_ref())));
    details.text("project", short(metadata.and_then(|of| of.user_api_key_project_id.as_ref())));
    if payload.model_group.as_deref().is_some_and(|group| !group.is_empty()) {
        details.text("deployment", short(payload.model.as_ref()));
    }
    let error: ErrorInformation<'_> = tolerant(payload.error_information);
    details.text("errorCode", loose(error.error_code));
    details.text("errorClass", loose(error.error_class));
    details.texts("tags", &tags(payload.request_tags));
    details
}

fn tags(raw: Option<&RawValue>) -> Vec<String> {
    let all: Vec<serde_json::Value> = raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
    let mut room = TAGS_BYTES_MAX;
    all.iter()
        .filter_map(serde_json::Value::as_str)
        .filter(|tag| !tag.starts_with(AUTOMATIC_TAG))
        .map(|tag| shortened(tag, DETAIL_BYTES_MAX).into_owned())
        .take_while(|tag| {
            let fits = tag.len() <= room;
            room = room.saturating_sub(tag.len());
            fits
        })
        .collect()
}
