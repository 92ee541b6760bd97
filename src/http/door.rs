//! The way every request takes, from its first header to its last: identity, address, deadline, panic, envelope.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use poem::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use poem::{Request, Response};
use tokio::time::Instant;
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::auth;
use super::operation::{self, Missed, Operation};
use super::problem::{Code, Form, Problem};
use super::rate_limits::Told;
use super::request::{self, Identity, Said, Trace};
use crate::domain::ids::lower_case_uuid;

/// Longest path and query.
const URI_BYTES_MAX: usize = 8 * 1024;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A request that has found its operation, and nothing more: nobody has been asked who sent it.
pub(super) struct Passage {
    pub(super) request: Request,
    pub(super) operation: &'static Operation,
    /// Parameters of the path, as the handler will read them: decoded, and a UUID in lower case. A policy that names a thing
    /// is asked about the same thing, however it was written.
    pub(super) segments: [Option<String>; 2],
    pub(super) identity: Identity,
    pub(super) said: Said,
    pub(super) query: Vec<(String, String)>,
    /// What the answer is to tell of the caller's rate limit.
    pub(super) told: Told,
}

impl Passage {
    /// What the path names besides a tenant, if anything.
    pub(super) fn resource_id(&self) -> Option<&str> {
        let at = usize::from(self.operation.scope == operation::Scope::TenantInPath);
        self.segments.get(at)?.as_deref()
    }
}

/// Answers `request` with what `inner` makes of it, whatever `inner` does.
pub(super) async fn pass<F, Answer>(request: Request, deadline: Duration, inner: F) -> Response
where
    F: FnOnce(Passage) -> Answer,
    Answer: Future<Output = Result<Response, Problem>>,
{
    let started = Instant::now();
    let identity = Identity::of(&request);
    let request_id = identity.request_id.clone();
    let found = operation::find(request.method(), request.uri().path());
    let name = found.as_ref().map_or("none", |(operation, _)| operation.id);
    let form = found
        .as_ref()
        .map_or_else(|_| operation::form_beside(request.uri().path()), |(operation, _)| operation.problem_form());
    let span = tracing::info_span!(
        "request",
        otel.kind = "server",
        operation = name,
        request_id = %request_id,
        trace_id = tracing::field::Empty,
        tenant = tracing::field::Empty,
        actor = tracing::field::Empty,
        status = tracing::field::Empty,
    );
    if let Some(trace) = identity.trace {
        follow(&span, trace);
    }
    let told = Told::default();
    let entered = match found {
        Ok((operation, segments)) => {
            let segments = segments.map(|segment| segment.map(canonical));
            enter(request, operation, segments, identity, told.clone())
        }
        Err(missed) => Err(missed.into()),
    };
    let answered = async {
        match entered {
            Ok(passage) => guarded(deadline, inner(passage)).await,
            Err(problem) => Err(problem),
        }
    };
    let answered = answered.instrument(span.clone()).await;
    let mut response = finished(answered, &request_id, form);
    told.write(response.headers_mut());
    span.record("status", response.status().as_u16());
    measure(name, response.status(), started.elapsed());
    response
}

/// A segment of the path as a handler reads it.
fn canonical(segment: &str) -> String {
    let decoded = percent_encoding::percent_decode_str(segment).decode_utf8_lossy();
    lower_case_uuid(&decoded).unwrap_or_else(|| decoded.into_owned())
}

/// Everything that can be wrong before anybody is asked who is calling.
fn enter(
    request: Request,
    operation: &'static Operation,
    segments: [Option<String>; 2],
    identity: Identity,
    told: Told,
) -> Result<Passage, Problem> {
    let length = request.uri().path_and_query().map_or(0, |whole| whole.as_str().len());
    if length > URI_BYTES_MAX {
        return Err(Problem::new(Code::UriTooLong));
    }
    if operation.scope != operation::Scope::Open && !accepts(request.headers(), operation) {
        return Err(Problem::new(Code::NotAcceptable));
    }
    let said = match operation.scope {
        operation::Scope::Open => Said::default(),
        _ => Said::read(request.headers())?,
    };
    let query = parameters(&request, operation)?;
    Ok(Passage { request, operation, segments, identity, said, query, told })
}

/// Does the caller take what the operation answers?
fn accepts(headers: &HeaderMap, operation: &Operation) -> bool {
    let is_scim = operation.problem_form() == Form::Scim;
    request::accepts(headers, "application/json") || (is_scim && request::accepts(headers, Form::Scim.media()))
}

/// The query's parameters: each known to the operation and given once.
pub(super) fn parameters(request: &Request, operation: &Operation) -> Result<Vec<(String, String)>, Problem> {
    if request.uri().query().is_none_or(str::is_empty) {
        return Ok(Vec::new());
    }
    let mut pairs: Vec<(String, String)> =
        request.params().map_err(|_| Problem::new(Code::InvalidParameter).saying("The query cannot be read."))?;
    if operation.id == auth::CALLBACK_ID {
        // RFC 6749, 4.1.2: what a client does not know it ignores.
        pairs.retain(|(name, _)| operation.query.contains(&name.as_str()));
    }
    for (at, (name, value)) in pairs.iter().enumerate() {
        if !operation.query.contains(&name.as_str()) {
            // Not echoed: a credential in the query must not come back in an answer or a log.
            return Err(
                Problem::new(Code::InvalidParameter).saying("The query has a parameter that is not known here.")
            );
        }
        if pairs[..at].iter().any(|(other, _)| other == name) {
            return Err(Problem::parameter(name, "is given twice"));
        }
        if value.contains(['\0', '\u{fffd}']) {
            return Err(Problem::parameter(name, "must be UTF-8 without NUL"));
        }
    }
    Ok(pairs)
}

/// Neither a panic nor slowness gets past this.
async fn guarded(
    deadline: Duration,
    inner: impl Future<Output = Result<Response, Problem>>,
) -> Result<Response, Problem> {
    match tokio::time::timeout(deadline, AssertUnwindSafe(inner).catch_unwind()).await {
        Ok(Ok(answered)) => answered,
        Ok(Err(_panic)) => {
            // The panic hook has logged what and where.
            metrics::counter!("platform_api_http_panics_total").increment(1);
            tracing::error!("a request panicked");
            Err(Problem::new(Code::Internal))
        }
        Err(_) => Err(Problem::new(Code::Timeout)),
    }
}

/// One envelope for every error, and the headers that every answer has.
fn finished(answered: Result<Response, Problem>, request_id: &str, form: Form) -> Response {
    let mut response = match answered {
        Ok(response) => match response.data::<Problem>() {
            Some(problem) => problem.respond(request_id, form),
            None if is_foreign(&response) => Problem::of_framework(response.status()).respond(request_id, form),
            None => response,
        },
        Err(problem) => problem.respond(request_id, form),
    };
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(request_id) {
        headers.insert(REQUEST_ID, value);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// An error that the framework has written in its own words.
fn is_foreign(response: &Response) -> bool {
    let is_error = response.status().is_client_error() || response.status().is_server_error();
    is_error && response.data::<auth::ForPeople>().is_none() && response.content_type() != Some("application/json")
}

fn measure(operation: &'static str, status: StatusCode, took: Duration) {
    let status = status.as_str().to_owned();
    metrics::counter!("platform_api_http_requests_total", "operation" => operation, "status" => status).increment(1);
    metrics::histogram!("platform_api_http_request_seconds", "operation" => operation).record(took.as_secs_f64());
}

/// The caller's trace goes on in ours.
fn follow(span: &tracing::Span, trace: Trace) {
    span.record("trace_id", tracing::field::display(format_args!("{:032x}", trace.trace_id)));
    let flags = if trace.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let span_id = SpanId::from(trace.span_id);
    let parent = SpanContext::new(TraceId::from(trace.trace_id), span_id, flags, true, TraceState::default());
    if parent.is_valid() {
        // Fails only when no exporter is installed, and then there is nothing to follow.
        let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(parent));
    }
}

impl From<Missed> for Problem {
    fn from(missed: Missed) -> Problem {
        match missed {
            Missed::NotFound => Problem::new(Code::NotFound),
            Missed::Method { allow } => Problem { allow: Some(allow), ..Problem::new(Code::MethodNotAllowed) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use poem::http::Method;
    use serde_json::{Value, json};

    async fn sent<F, Answer>(method: Method, uri: &str, headers: &[(&str, &str)], inner: F) -> (Response, Value)
    where
        F: FnOnce(Passage) -> Answer,
        Answer: Future<Output = Result<Response, Problem>>,
    {
        let builder = Request::builder().method(method).uri(uri.parse().unwrap());
        let request = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value)).finish();
        let mut response = pass(request, Duration::from_millis(50), inner).await;
        let body = response.take_body().into_vec().await.unwrap();
        (response, serde_json::from_slice(&body).unwrap_or_default())
    }

    async fn fine(_passage: Passage) -> Result<Response, Problem> {
        Ok(Response::builder().content_type("application/json").body("{}"))
    }

    #[tokio::test]
    async fn an_answer_carries_the_request_s_id_and_is_not_stored() {
        let (response, _) = sent(Method::GET, "/health", &[("x-request-id", "r-1")], fine).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.header("x-request-id"), Some("r-1"));
        assert_eq!(response.header("cache-control"), Some("no-store"));
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
    }

    #[tokio::test]
    async fn what_never_reaches_a_handler_is_told_in_the_envelope() {
        let long = format!("/health?x={}", "y".repeat(URI_BYTES_MAX));
        let accept = [("accept", "text/html")];
        for (method, uri, headers, status, code) in [
            (Method::GET, "/nowhere", &[] as &[(&str, &str)], 404, "NOT_FOUND"),
            (Method::DELETE, "/v1/tenants", &[], 405, "METHOD_NOT_ALLOWED"),
            (Method::TRACE, "/health", &[], 405, "METHOD_NOT_ALLOWED"),
            (Method::GET, "/v1/tenants", &accept, 406, "NOT_ACCEPTABLE"),
            (Method::GET, long.as_str(), &[], 414, "URI_TOO_LONG"),
            (Method::GET, "/v1/tenants?sort=name", &[], 400, "INVALID_PARAMETER"),
            (Method::GET, "/v1/tenants?api_key=secret", &[], 400, "INVALID_PARAMETER"),
            (Method::GET, "/v1/tenants?limit=1&limit=2", &[], 400, "INVALID_PARAMETER"),
            (Method::GET, "/v1/tenants?cursor=%00", &[], 400, "INVALID_PARAMETER"),
            (Method::GET, "/v1/tenants?cursor=%ff", &[], 400, "INVALID_PARAMETER"),
            (Method::GET, "/v1/tenants", &[("x-tenant-id", "me")], 400, "INVALID_HEADER"),
        ] {
            let (response, body) = sent(method, uri, headers, fine).await;
            let shown = &uri[..uri.len().min(40)];
            assert_eq!(response.status().as_u16(), status, "{shown}");
            assert_eq!(body["error"]["code"], code, "{shown}");
            assert_eq!(body["error"]["requestId"], response.header("x-request-id").unwrap(), "{shown}");
            assert!(!body.to_string().contains("secret"), "{shown}");
        }
    }

    #[test]
    fn a_thing_is_the_same_however_it_is_written() {
        let id = "0199a8b2-5c00-7abc-8def-0123456789ab";
        let encoded: String = id.bytes().map(|byte| format!("%{byte:02X}")).collect();
        for written in [id, &id.to_uppercase(), &encoded, "%30199A8B2-5c00-7abc-8def-0123456789ab"] {
            assert_eq!(canonical(written), id, "{written}");
        }
        for (written, read) in [("Eng%69neers", "Engineers"), ("a%2fb", "a/b"), ("50%", "50%"), ("a+b", "a+b")] {
            assert_eq!(canonical(written), read);
        }
    }

    #[tokio::test]
    async fn what_is_judged_is_what_is_handled() {
        let found = std::sync::Mutex::new(None);
        let inner = async |passage: Passage| {
            *found.lock().unwrap() = passage.resource_id().map(str::to_owned);
            fine(passage).await
        };
        sent(Method::GET, "/v1/users/%30199A8B2-5C00-7abc-8def-0123456789ab", &[], inner).await;
        assert_eq!(found.into_inner().unwrap().as_deref(), Some("0199a8b2-5c00-7abc-8def-0123456789ab"));
    }

    #[tokio::test]
    async fn a_panic_and_slowness_look_like_any_other_error() {
        let (response, body) =
            sent(Method::GET, "/health", &[], async |_| -> Result<Response, Problem> { panic!("the secret is 42") })
                .await;
        assert_eq!((response.status().as_u16(), &body["error"]["code"]), (500, &json!("INTERNAL_ERROR")));
        assert!(!body.to_string().contains("secret"));

        let (response, body) = sent(Method::GET, "/health", &[], async |_| std::future::pending().await).await;
        assert_eq!((response.status().as_u16(), &body["error"]["code"]), (503, &json!("TIMEOUT")));
        assert_eq!(response.header("retry-after"), Some("1"));
    }

    #[tokio::test]
    async fn the_framework_s_own_errors_are_told_in_our_words() {
        for (status, code) in [(400, "INVALID_PARAMETER"), (404, "NOT_FOUND"), (415, "UNSUPPORTED_MEDIA_TYPE")] {
            let status = StatusCode::from_u16(status).unwrap();
            let (response, body) = sent(Method::GET, "/health", &[], async |_| {
                Ok(poem::Error::from_string("failed to parse param0", status).into_response())
            })
            .await;
            assert_eq!((response.status(), &body["error"]["code"]), (status, &json!(code)));
            assert!(!body.to_string().contains("param0"));
        }
        let (response, body) = sent(Method::GET, "/health", &[], async |_| {
            Ok(poem::Error::from(Problem::field("/name", "is required")).into_response())
        })
        .await;
        assert_eq!(response.status().as_u16(), 422);
        assert_eq!(body["error"]["details"]["fields"], json!([{"pointer": "/name", "message": "is required"}]));
    }
}
