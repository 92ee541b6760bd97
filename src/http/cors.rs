//! Pages of other origins that may read our answers (the fetch standard's CORS): those that are listed, and nobody else.
//!
//! An origin that is not listed is answered as if there were no such thing, and its browser keeps the answer to itself. What
//! a page may send is the same for all of them; what it may change is still for [`super::authorize`] to say, and for the
//! token that a session's cookie needs beside it.

use poem::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use poem::http::{Method, StatusCode};
use poem::{Request, Response};

use super::operation::{self, Missed};
use super::request::Identity;
use crate::config;

/// How long a browser may remember what it was told, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");
/// What pages may send.
const ALLOWED: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, idempotency-key, if-match, if-none-match, traceparent, x-api-key, x-csrf-token, \
     x-request-id, x-tenant-id, x-user-id",
);
/// What pages may read.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "etag, idempotent-replayed, location, ratelimit, ratelimit-policy, retry-after, x-request-id",
);

/// Whose pages may read our answers.
pub(super) struct Cors {
    origins: Vec<String>,
    credentials: bool,
}

impl Cors {
    pub(super) fn new(limits: &config::Http) -> Cors {
        let config::Cors { origins, credentials } = limits.cors.clone();
        Cors { origins, credentials }
    }

    /// The origin that a request comes from, if it is listed.
    pub(super) fn origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let (Some(origin), None) = (origins.next(), origins.next()) else { return None };
        self.origins.iter().any(|listed| listed.as_bytes() == origin.as_bytes()).then(|| origin.clone())
    }

    /// Answers whether a page of a listed origin may send what it is about to.
    pub(super) fn preflight(&self, request: &Request) -> Option<Response> {
        let asks = request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        let origin = self.origin(request.headers()).filter(|_| *request.method() == Method::OPTIONS && asks)?;
        let Err(Missed::Method { allow }) = operation::find(&Method::OPTIONS, request.uri().path()) else {
            return None;
        };
        let mut response = Response::builder().status(StatusCode::NO_CONTENT).finish();
        let headers = response.headers_mut();
        for (name, value) in [
            (header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_str(&allow).ok()),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, Some(ALLOWED)),
            (header::ACCESS_CONTROL_MAX_AGE, Some(MAX_AGE)),
            (HeaderName::from_static("x-request-id"), HeaderValue::from_str(&Identity::of(request).request_id).ok()),
        ] {
            headers.extend(value.map(|value| (name, value)));
        }
        self.write(Some(origin), headers);
        Some(response)
    }

    /// Lets the pages of an origin that is listed read an answer.
    pub(super) fn write(&self, origin: Option<HeaderValue>, headers: &mut HeaderMap) {
        if self.origins.is_empty() {
            return;
        }
        // Also where there is no origin: a cache must not give one what was meant for another.
        headers.append(header::VARY, HeaderValue::from_static("origin"));
        if let Some(origin) = origin {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
            if self.credentials {
                headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "https://console.example.com";

    fn cors(credentials: bool) -> Cors {
        Cors { origins: vec![CONSOLE.into()], credentials }
    }

    fn asking(path: &str, origin: &str) -> Request {
        let builder = Request::builder().method(Method::OPTIONS).uri(path.parse().unwrap());
        builder.header("origin", origin).header("access-control-request-method", "PUT").finish()
    }

    #[test]
    fn only_what_is_listed_is_allowed_and_exactly_that() {
        let written = |cors: &Cors, origin: &str| {
            let mut headers = HeaderMap::new();
            cors.write(cors.origin(asking("/v1/audit", origin).headers()), &mut headers);
            let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            ["access-control-allow-origin", "access-control-allow-credentials", "vary"].map(text)
        };
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(written(&cors(false), CONSOLE), [text(CONSOLE), None, text("origin")]);
        assert_eq!(written(&cors(true), CONSOLE), [text(CONSOLE), text("true"), text("origin")]);
        for other in [
            "null",
            "*",
            "",
            "https://evil.example.com",
            "http://console.example.com",
            "https://console.example.com:8443",
            "https://CONSOLE.example.com",
            "https://console.example.com.evil.com",
            "https://console.example.com/",
        ] {
            assert_eq!(written(&cors(true), other), [None, None, text("origin")], "{other}");
            assert!(cors(true).preflight(&asking("/v1/audit", other)).is_none(), "{other}");
        }
        assert_eq!(written(&Cors::new(&config::Http::default()), CONSOLE), [None, None, None]);
    }

    #[test]
    fn a_page_is_told_what_it_may_send_where_there_is_something() {
        let told = cors(true).preflight(&asking("/v1/users/7", CONSOLE)).unwrap();
        assert_eq!(told.status(), StatusCode::NO_CONTENT);
        assert_eq!(told.header("access-control-allow-origin"), Some(CONSOLE));
        assert_eq!(told.header("access-control-allow-methods"), Some("GET, HEAD, PUT, PATCH, DELETE"));
        assert!(told.header("access-control-allow-headers").unwrap().contains("x-csrf-token"));
        assert!(cors(true).preflight(&asking("/nowhere", CONSOLE)).is_none());
        let plain = Request::builder().method(Method::OPTIONS).uri("/v1/audit".parse().unwrap());
        assert!(cors(true).preflight(&plain.header("origin", CONSOLE).finish()).is_none(), "it asks nothing");
        let twice = asking("/v1/audit", CONSOLE);
        let mut headers = twice.headers().clone();
        headers.append("origin", CONSOLE.parse().unwrap());
        assert!(cors(true).origin(&headers).is_none(), "who has two origins has none");
    }
}
