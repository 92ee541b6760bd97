//! `/api/v1/events`: whatever feeds OpenMeter feeds us, with another address and nothing else changed.
//!
//! Its SDKs know two answers: 204, and a problem (RFC 9457) with the reason in `detail`. The problem carries our own envelope
//! as a member, so that one answer serves both kinds of callers.

use poem::http::{HeaderName, HeaderValue, StatusCode};
use poem::{IntoResponse, RequestBody, Response};
use poem_openapi::registry::{
    MetaHeader, MetaRequest, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry,
};
use poem_openapi::{ApiExtractor, ApiExtractorType, ApiResponse, ExtractParamOptions, OpenApi};
use serde_json::json;

use super::authorize::Ask;
use super::document::Tag;
use super::ingestion::{Recorded, described_body, many, media, one_or_many, outcomes};
use super::operation::BodyKind;
use super::problem::{Code, Problem};
use crate::intake::body::BodyShape;
use crate::intake::record::ItemOutcome;

/// How many events of a batch were not counted, when there are any.
const REJECTED: HeaderName = HeaderName::from_static("x-rejected-events");

pub(super) struct OpenMeter;

#[OpenApi(tag = "Tag::Usage")]
impl OpenMeter {
    /// Ingest events in OpenMeter's form
    ///
    /// CloudEvents 1.0 as OpenMeter's SDKs, LiteLLM's `openmeter` callback and Kong's metering plugin send them: one, or a
    /// batch. `subject` is a tenant's id, or an external id of one (source `openmeter`, kind `subject`); with a tenant's own
    /// credential everything is that tenant's. A subject that is not the tenant's id names the user. `data` has `tokens` (a
    /// number or a text) and `type` (`input`, `output`), or `prompt_tokens`, `completion_tokens` and `total_tokens`, with
    /// `cost` in US dollars, `model` and `provider`; or the payload of `POST /v1/usage/events`, where the same event is the
    /// same event. Identity is `source` and `id`. Without `time` an event occurred when it arrived.
    ///
    /// Answered after the commit, without a body. Events that cannot be counted are kept in quarantine; the header
    /// `X-Rejected-Events` says how many, and when there was no other it is 422. Errors are `application/problem+json`, with
    /// this API's own envelope in `error`.
    #[oai(path = "/api/v1/events", method = "post", operation_id = "ingestOpenMeterEvents")]
    async fn ingest(&self, ask: Ask, _body: OpenMeterBody) -> Result<Ingested, Problem> {
        let outcomes = outcomes(&ask, BodyShape::OpenMeter).await?;
        let first = outcomes.iter().find_map(|outcome| match outcome {
            ItemOutcome::Rejected { code, message } => Some(format!("No event could be counted. {code}: {message}")),
            _ => None,
        });
        let rejected = outcomes.iter().filter(|outcome| matches!(outcome, ItemOutcome::Rejected { .. })).count();
        match (Recorded::of(outcomes), first) {
            (Ok(_), _) => Ok(Ingested { rejected }),
            // All that these senders show is one text.
            (Err(problem), Some(first)) if problem.code == Code::NothingAccepted => Err(problem.saying(first)),
            (Err(problem), _) => Err(problem),
        }
    }
}

/// Everything is durable.
struct Ingested {
    rejected: usize,
}

impl IntoResponse for Ingested {
    fn into_response(self) -> Response {
        let mut response = Response::builder().status(StatusCode::NO_CONTENT).finish();
        if self.rejected > 0 {
            response.headers_mut().insert(REJECTED, HeaderValue::from(self.rejected));
        }
        response
    }
}

impl ApiResponse for Ingested {
    fn meta() -> MetaResponses {
        let rejected = MetaHeader {
            name: "X-Rejected-Events".into(),
            description: Some("How many events are in quarantine; absent when there are none.".into()),
            required: false,
            deprecated: false,
            schema: MetaSchemaRef::Inline(Box::new(MetaSchema::new("integer"))),
        };
        let response = MetaResponse {
            description: "Everything is durable.",
            status: Some(204),
            status_range: None,
            content: Vec::new(),
            headers: vec![rejected],
        };
        MetaResponses { responses: vec![response] }
    }

    fn register(_: &mut Registry) {}
}

/// The body, for the document; the intake reads it.
pub(super) struct OpenMeterBody;

described_body!(
    OpenMeterBody,
    BodyKind::OpenMeter,
    |_| {},
    vec![
        media("application/json", one_or_many(event())),
        media("application/cloudevents+json", event()),
        media("application/cloudevents-batch+json", many(event())),
    ]
);

fn event() -> MetaSchemaRef {
    let text = |description: &'static str, example: &str| {
        let described = MetaSchema { description: Some(description), ..MetaSchema::new("string") };
        MetaSchemaRef::Inline(Box::new(MetaSchema { example: Some(json!(example)), ..described }))
    };
    let tokens = json!({"tokens": "123456", "model": "gpt-4o", "type": "output"});
    let data = MetaSchema { example: Some(tokens), ..MetaSchema::new("object") };
    MetaSchemaRef::Inline(Box::new(MetaSchema {
        description: Some("A CloudEvent as OpenMeter takes it."),
        required: vec!["specversion", "id", "source", "data"],
        properties: vec![
            ("specversion", text("`1.0`.", "1.0")),
            ("id", text("Unique within the source. Sending it again is safe.", "00001")),
            ("source", text("Who vouches for the id.", "chat-app")),
            ("type", text("Kept with the event.", "prompt")),
            ("subject", text("A tenant, or with a tenant's credential a user of it.", "customer-1")),
            ("time", text("RFC 3339; that of the arrival when absent.", "2026-11-20T15:37:12.345Z")),
            ("data", MetaSchemaRef::Inline(Box::new(data))),
        ],
        ..MetaSchema::new("object")
    }))
}
