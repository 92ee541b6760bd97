//! Answers: serialized straight from their view, described in the document by the view's schema.

use poem::http::{HeaderName, HeaderValue, StatusCode, header};
use poem::{Body, IntoResponse, Response};
use poem_openapi::ApiResponse;
use poem_openapi::registry::{MetaMediaType, MetaResponse, MetaResponses, Registry};
use poem_openapi::types::Type;
use serde::Serialize;

use super::problem::{Code, Problem};
use crate::domain::request::Answer;

/// Says that this answer is the stored one of an earlier request with the same `Idempotency-Key`.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// A JSON answer with the status `STATUS`.
pub(super) struct Reply<T, const STATUS: u16 = 200> {
    content: Content<T>,
    tag: Option<HeaderValue>,
}

enum Content<T> {
    Fresh(T),
    /// JSON as it was stored with its idempotency key.
    Stored(String),
}

impl<T, const STATUS: u16> Reply<T, STATUS> {
    pub(super) fn new(view: T) -> Self {
        Reply { content: Content::Fresh(view), tag: None }
    }

    /// The stored answer, or a view of the fresh one.
    pub(super) fn of<D>(answer: Answer<D>, view: impl FnOnce(D) -> T) -> Self {
        match answer {
            Answer::Fresh(done) => Reply::new(view(done)),
            Answer::Replayed(json) => Reply { content: Content::Stored(json), tag: None },
        }
    }

    /// With the ETag of this version.
    pub(super) fn tagged(self, version: i64) -> Self {
        Reply { tag: HeaderValue::from_str(&super::precondition::tag(version)).ok(), ..self }
    }
}

/// JSON bytes as a response.
pub(super) fn json(status: StatusCode, bytes: Vec<u8>) -> Response {
    Response::builder().status(status).content_type("application/json").body(Body::from_vec(bytes))
}

impl<T: Serialize + Send, const STATUS: u16> IntoResponse for Reply<T, STATUS> {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(STATUS).unwrap_or(StatusCode::OK);
        let mut response = match self.content {
            Content::Stored(text) => {
                let mut response = json(status, text.into_bytes());
                response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
                response
            }
            Content::Fresh(view) => match serde_json::to_vec(&view) {
                Ok(bytes) => json(status, bytes),
                Err(error) => {
                    tracing::error!(%error, "an answer could not be written");
                    poem::Error::from(Problem::new(Code::Internal)).into_response()
                }
            },
        };
        if let Some(tag) = self.tag {
            response.headers_mut().insert(header::ETAG, tag);
        }
        response
    }
}

impl<T: Type, const STATUS: u16> ApiResponse for Reply<T, STATUS> {
    fn meta() -> MetaResponses {
        let content = vec![MetaMediaType { content_type: "application/json", schema: T::schema_ref() }];
        let description = if STATUS == 201 { "Created." } else { "Done." };
        let response =
            MetaResponse { description, status: Some(STATUS), status_range: None, content, headers: Vec::new() };
        MetaResponses { responses: vec![response] }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}
