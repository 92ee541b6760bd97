//! `/v1/usage/events` and `/v1/usage/litellm`: events coming in. The intake reads them; this answers.

use poem::RequestBody;
use poem_openapi::registry::{MetaMediaType, MetaRequest, MetaSchema, MetaSchemaRef, Registry};
use poem_openapi::types::{Example, Type};
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions, Object, OpenApi};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::authorize::Ask;
use super::body::media_type;
use super::document::Tag;
use super::operation::BodyKind;
use super::problem::{Code, Problem};
use super::reply::Reply;
use super::view::JsonObject;
use crate::fault;
use crate::intake::record::{BodyShape, Cause, ItemOutcome, NotNow, RecordError, Reporter};

/// Most rejected events that one answer names.
pub(super) const REJECTED_SHOWN_MAX: usize = 1_000;

pub(super) struct Ingestion;

#[OpenApi(tag = "Tag::Usage")]
impl Ingestion {
    /// Record usage events
    ///
    /// The platform envelope, one or an array, or CloudEvents 1.0, structured, batch or binary. Answered after the
    /// commit: what is accepted is durable and counted once, however often it is sent. Events that cannot be counted
    /// are kept in quarantine and named in the answer.
    #[oai(path = "/v1/usage/events", method = "post", operation_id = "recordUsageEvents")]
    async fn record_events(&self, ask: Ask, _body: EventsBody) -> Result<Reply<Recorded>, Problem> {
        let headers = ask.headers.iter().filter(|(name, _)| name.as_str().starts_with("ce-"));
        let ce_headers = headers
            .map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| Problem::new(Code::InvalidHeader).saying("A ce- header is not text."))?;
        record(&ask, BodyShape::Events { content_type: media_type(&ask.headers), ce_headers }).await
    }

    /// Record usage from LiteLLM
    ///
    /// `StandardLoggingPayload` as LiteLLM's `generic_api` callback posts it: an object, an array or NDJSON. The tenant
    /// is found through the external ids of the tenants. That callback does not come back with what it was refused, so
    /// events of a tenant that cannot take them now are `parked`: durable, and counted by themselves once it can. It is 503
    /// only when no more can be parked, or nothing can be kept.
    #[oai(path = "/v1/usage/litellm", method = "post", operation_id = "recordLiteLlmUsage")]
    async fn record_litellm(&self, ask: Ask, _body: LiteLlmBody) -> Result<Reply<Recorded>, Problem> {
        record(&ask, BodyShape::LiteLlm).await
    }
}

async fn record(ask: &Ask, shape: BodyShape) -> Result<Reply<Recorded>, Problem> {
    Recorded::of(outcomes(ask, shape).await?).map(Reply::new)
}

/// What became of the body's events, in order.
pub(super) async fn outcomes(ask: &Ask, shape: BodyShape) -> Result<Vec<ItemOutcome>, Problem> {
    let reporter = match ask.admitted.tenant {
        // A platform's reporter may name a tenant, which must then be one.
        Some(_) if ask.is_platform() => Reporter::Tenant(ask.row()?.id),
        Some(tenant) => Reporter::Tenant(tenant),
        None => Reporter::Platform,
    };
    let recorded = ask.api.recorder.record_body(ask.body.clone(), shape, reporter, &ask.request_id).await;
    fault::point("answer.before");
    Ok(recorded?)
}

impl From<RecordError> for Problem {
    fn from(error: RecordError) -> Problem {
        match error {
            RecordError::NotJson(reason) => Problem::new(Code::MalformedJson).with("reason", json!(reason)),
            RecordError::TooManyItems { limit } => Problem::new(Code::TooManyEvents).with("eventsMax", json!(limit)),
            RecordError::NotNow(not_now) => not_now.into(),
        }
    }
}

impl From<NotNow> for Problem {
    fn from(not_now: NotNow) -> Problem {
        let code = match not_now.why {
            Cause::Starting => Code::TenantStarting,
            Cause::Saturated => Code::TenantSaturated,
            Cause::Frozen => Code::TenantFrozen,
            Cause::TimedOut => Code::Timeout,
            Cause::Quarantine => Code::StoreUnavailable,
        };
        Problem::new(code).after_ms(u64::try_from(not_now.after.as_millis()).unwrap_or(u64::MAX))
    }
}

/// What became of a batch, after the commit.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example)]
pub(super) struct Recorded {
    /// New, and counted.
    accepted: u64,
    /// Known already, with the same body.
    duplicates: u64,
    /// Known already, with another body: the first stays, this one is kept as a conflict.
    conflicts: u64,
    /// Not countable; each is in quarantine, or only counted there when its tenant's share is full. The first thousand are
    /// listed.
    rejected: Vec<RejectedView>,
    /// Of tenants that cannot take them now: each is in quarantine, and counted by itself once its tenant can. Only of
    /// LiteLLM's events; the first thousand are listed.
    parked: Vec<RejectedView>,
}

/// One event that was not counted.
#[derive(Debug, PartialEq, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "RejectedEvent", rename_all = "camelCase")]
pub(super) struct RejectedView {
    /// Its place in the batch, from 0.
    index: u64,
    code: String,
    message: String,
}

impl RejectedView {
    pub(super) fn new(index: usize, code: &str, message: String) -> RejectedView {
        RejectedView { index: index as u64, code: code.to_owned(), message }
    }
}

impl Recorded {
    /// # Errors
    /// 422 when there were events and each was rejected.
    pub(super) fn of(outcomes: Vec<ItemOutcome>) -> Result<Recorded, Problem> {
        let mut recorded = Recorded::default();
        let list = |listed: &mut Vec<RejectedView>, index, code, message| {
            if listed.len() < REJECTED_SHOWN_MAX {
                listed.push(RejectedView::new(index, code, message));
            }
        };
        for (index, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                ItemOutcome::Accepted => recorded.accepted += 1,
                ItemOutcome::Duplicate => recorded.duplicates += 1,
                ItemOutcome::Conflict => recorded.conflicts += 1,
                ItemOutcome::Rejected { code, message } => list(&mut recorded.rejected, index, code, message),
                ItemOutcome::Parked { code, message } => list(&mut recorded.parked, index, code, message),
            }
        }
        let known = recorded.accepted + recorded.duplicates + recorded.conflicts;
        if known == 0 && recorded.parked.is_empty() && !recorded.rejected.is_empty() {
            return Err(Problem::new(Code::NothingAccepted).with("rejected", json!(recorded.rejected)));
        }
        Ok(recorded)
    }
}

/// One usage event in the platform's envelope; snake_case twins of the fields are accepted.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example)]
pub(super) struct UsageEventEnvelope {
    /// Unique within the source. Sending it again is safe.
    event_id: String,
    occurred_at: String,
    /// May be absent when the credential belongs to a tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    tenant_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    platform_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    correlation_id: Option<String>,
    /// `userId`, `groupId`, `apiKeyId`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    actor: Option<JsonObject>,
    /// `source`, `kind` (`delta` or `cumulative`), `model`, `provider`, `callType`, `status`, `requestId`, `usage`
    /// (`tokens` or `totalTokens` or `promptTokens` and `completionTokens`, `cacheReadTokens`, `cacheWriteTokens`,
    /// `reasoningTokens`, `requests`), `costUsd`, `tags`.
    payload: JsonObject,
}

/// The body of `POST /v1/usage/events`, for the document; the intake reads it.
pub(super) struct EventsBody;

/// The body of `POST /v1/usage/litellm`, for the document; the intake reads it.
pub(super) struct LiteLlmBody;

/// Describes a body that the intake reads.
macro_rules! described_body {
    ($body:ty, $kind:expr, $register:expr, $content:expr) => {
        impl<'a> ApiExtractor<'a> for $body {
            const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
            type ParamType = ();
            type ParamRawType = ();

            fn register(registry: &mut Registry) {
                let register: fn(&mut Registry) = $register;
                register(registry);
            }

            fn request_meta() -> Option<MetaRequest> {
                Some(MetaRequest { description: None, content: $content, required: true })
            }

            async fn from_request(
                request: &'a poem::Request,
                _body: &mut RequestBody,
                _options: ExtractParamOptions<()>,
            ) -> poem::Result<Self> {
                // The stack has read the body by the operation's kind.
                debug_assert!(Ask::of(request).is_ok_and(|ask| ask.operation.body == $kind));
                Ok(Self)
            }
        }
    };
}

described_body!(
    EventsBody,
    BodyKind::Events,
    UsageEventEnvelope::register,
    vec![
        media("application/json", one_or_many(UsageEventEnvelope::schema_ref())),
        media("application/cloudevents+json", cloud_event()),
        media("application/cloudevents-batch+json", many(cloud_event())),
    ]
);
described_body!(
    LiteLlmBody,
    BodyKind::LiteLlm,
    |_| {},
    vec![media("application/json", one_or_many(litellm_payload())), media("application/x-ndjson", litellm_payload()),]
);

pub(super) use described_body;

pub(super) fn media(content_type: &'static str, schema: MetaSchemaRef) -> MetaMediaType {
    MetaMediaType { content_type, schema }
}

pub(super) fn many(item: MetaSchemaRef) -> MetaSchemaRef {
    MetaSchemaRef::Inline(Box::new(MetaSchema { items: Some(Box::new(item)), ..MetaSchema::new("array") }))
}

pub(super) fn one_or_many(item: MetaSchemaRef) -> MetaSchemaRef {
    MetaSchemaRef::Inline(Box::new(MetaSchema { any_of: vec![item.clone(), many(item)], ..MetaSchema::ANY }))
}

fn cloud_event() -> MetaSchemaRef {
    let description = "A CloudEvent 1.0: identity is `source` and `id`, the tenant is in `subject` or the extension `tenantid`, `data` is the envelope's payload.";
    MetaSchemaRef::Inline(Box::new(MetaSchema { description: Some(description), ..MetaSchema::new("object") }))
}

fn litellm_payload() -> MetaSchemaRef {
    let description = "LiteLLM's StandardLoggingPayload.";
    MetaSchemaRef::Inline(Box::new(MetaSchema { description: Some(description), ..MetaSchema::new("object") }))
}

impl Example for Recorded {
    fn example() -> Recorded {
        let message = "it occurred more than 400 days ago".to_owned();
        let rejected = vec![RejectedView { index: 2, code: "EVENT_TOO_OLD".into(), message }];
        Recorded { accepted: 2, duplicates: 0, conflicts: 0, rejected, parked: Vec::new() }
    }
}

impl Example for UsageEventEnvelope {
    fn example() -> UsageEventEnvelope {
        let object = |value: serde_json::Value| JsonObject(value.as_object().cloned().unwrap_or_default());
        UsageEventEnvelope {
            event_id: "0199a8b2-5c00-7abc-8def-0123456789ab".into(),
            occurred_at: "2026-11-20T15:37:12.345Z".into(),
            tenant_id: Some("0199a8b2-5c00-7abc-8def-0123456789aa".into()),
            platform_id: None,
            correlation_id: None,
            actor: Some(object(json!({"userId": "ada", "groupId": "research"}))),
            payload: object(json!({
                "source": "kong", "model": "gpt-4o-mini", "provider": "openai",
                "usage": {"promptTokens": 812, "completionTokens": 96}, "costUsd": "0.000179"
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected() -> ItemOutcome {
        ItemOutcome::Rejected { code: "EVENT_TOO_OLD", message: "old".into() }
    }

    #[test]
    fn a_batch_is_refused_only_when_nothing_of_it_is_known() {
        let all = vec![ItemOutcome::Accepted, ItemOutcome::Duplicate, rejected(), ItemOutcome::Conflict];
        let recorded = Recorded::of(all).unwrap();
        assert_eq!((recorded.accepted, recorded.duplicates, recorded.conflicts), (1, 1, 1));
        assert_eq!(recorded.rejected[0].index, 2);
        assert!(Recorded::of(vec![ItemOutcome::Duplicate, rejected()]).is_ok());
        let parked = ItemOutcome::Parked { code: "TENANT_FROZEN", message: "away".into() };
        let recorded = Recorded::of(vec![rejected(), parked]).unwrap();
        assert_eq!((recorded.accepted, recorded.rejected.len(), recorded.parked[0].index), (0, 1, 1));
        assert_eq!(Recorded::of(Vec::new()).unwrap(), Recorded::default());
        let problem = Recorded::of(vec![rejected(), rejected()]).unwrap_err();
        assert_eq!(problem.code, Code::NothingAccepted);
        assert_eq!(problem.details["rejected"].as_array().unwrap().len(), 2);
    }
}
