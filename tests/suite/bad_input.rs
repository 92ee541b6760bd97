//! Everything a caller can get wrong, and the one answer it gets: the right status, a stable code, one envelope, and
//! never a word about our insides.
//!
//! | class of bad input | answer | shown by |
//! |---|---|---|
//! | no credentials | 401 `AUTHENTICATION_REQUIRED`, `WWW-Authenticate` | `credentials_that_are_none`, `access_matrix` |
//! | a key that is unknown, revoked or mistyped | 401 `INVALID_CREDENTIALS`, one body for all | `credentials_that_are_none`, `access_matrix` |
//! | a key in the query | 400 `INVALID_PARAMETER`, not echoed | `credentials_that_are_none` |
//! | two credentials, a header line that is none | 400 `MALFORMED_CREDENTIALS` | `credentials_that_are_none` |
//! | a JWT that is none, too long, of another issuer, audience, type or time, with `crit`, `jku`, `jwk`, `zip` … | 401 `INVALID_CREDENTIALS` | `access/token_test`, `access/openid_test`, fuzz `token` |
//! | credentials tried too often | 429 `TOO_MANY_FAILURES`, `Retry-After` | `credentials_that_are_tried_too_often` |
//! | the issuer's keys out of reach | 503 `IDENTITY_PROVIDER_UNAVAILABLE` | `access/token_test` |
//! | a role that may not | 403 `FORBIDDEN`, audited | `access_matrix` |
//! | another tenant's id, in path, query, body or cursor | 404 `TENANT_NOT_FOUND`, as if there were none | `access_matrix`, `http/authorize`, fuzz `query` |
//! | path and `X-Tenant-Id` of two tenants | 403 `TENANT_MISMATCH` | `http/authorize` |
//! | unknown or read-only fields | 422 `VALIDATION_FAILED`, a pointer each | `bodies_that_are_no_json_are_400_and_bodies_that_are_wrong_are_422`, `tenants_that_cannot_be` |
//! | malformed JSON, a key twice, trailing bytes, bad UTF-8, depth above 32 | 400 `MALFORMED_JSON` | `bodies_that_are_no_json_are_400_and_bodies_that_are_wrong_are_422`, fuzz `quotas` |
//! | well-formed and wrong: units, names, time zones, money as a float, NUL | 422 `VALIDATION_FAILED` | `tenants_that_cannot_be`, `bodies_that_are_no_json_are_400_and_bodies_that_are_wrong_are_422` |
//! | an array in the place of an object | 422, and for an event its refusal | `arrays_in_the_place_of_objects`, fuzz `envelope` |
//! | wrong address, method, `Accept`, `Content-Type`, `Content-Encoding` (a gzip bomb too) | 404, 405 with `Allow`, 406, 415 | `requests_at_the_wrong_door` |
//! | a body too long, a batch of too many | 413 `PAYLOAD_TOO_LARGE`, `TOO_MANY_EVENTS` | `bodies_that_are_too_large` |
//! | an address too long; a head too long, too many headers | 414 `URI_TOO_LONG`; 431 `HEADERS_TOO_LARGE` | `requests_at_the_wrong_door`; `bytes_on_the_wire_that_are_no_request` |
//! | a head that does not end; a body that does not | 408 `REQUEST_TIMEOUT`, closed | `a_request_that_never_ends`; `http/body` |
//! | two ways to tell the length, a folded header, `Host` missing or twice, bare LF or CR, no HTTP | 400 `BAD_REQUEST`, closed | `bytes_on_the_wire_that_are_no_request`, `http/framing`, fuzz `framing` |
//! | `X-Consumer-*` and their like | not believed, by nobody read | `headers_that_anybody_can_write` |
//! | `X-Forwarded-For`, `Forwarded` of somebody who is no proxy of ours, or malformed | not believed | `addresses_that_are_made_up`, `http/client` |
//! | an origin that is not listed | answered as any, without a word of CORS; a preflight 405 | `pages_of_other_origins`, `http/cors` |
//! | a change meant for another version, or for none that is named | 412 `PRECONDITION_FAILED`, 428 `PRECONDITION_REQUIRED` | `organization`, `http/precondition` |
//! | groups in a circle, nested too deep; a name that is taken | 409, with the reason or the pointer | `organization`, `domain/organization` |
//! | a token that speaks of somebody who was deactivated | 401 `INVALID_CREDENTIALS`, as a revoked key | `organization` |
//! | `Idempotency-Key` malformed; used with another body | 400 `INVALID_HEADER`; 422 `IDEMPOTENCY_KEY_REUSED` | `an_idempotency_key_means_one_change` |
//! | a cursor that was not made here, for this list and tenant; `limit` out of range; unknown parameters | 400 `INVALID_CURSOR`, `INVALID_PARAMETER` | `pages_and_reports_that_cannot_be`, `http/cursor`, fuzz `query` |
//! | a batch with bad events | 200 and each one named; 422 `NO_EVENT_ACCEPTED` when none is good | `ingest_http`, `events_that_cannot_be_counted_say_why` |
//! | poison: numbers beyond integers, NUL, no time, year 0, no id | refused, quarantined, the next one is served | `events_that_cannot_be_counted_say_why`, fuzz `envelope`, `litellm`, `batch` |
//! | a tenant that starts, is saturated or frozen; a database away | 503, `Retry-After` | `ingest_http`, `operations`, `http/problem` |
//! | our own deadline | 503 `TIMEOUT` | `http/door` |
//! | a panic | 500 `INTERNAL_ERROR`, told like any other | `http/door`, `nothing_that_arrives_ends_the_daemon` |
//! | answers that a cache could keep | `Cache-Control: no-store` | `every_answer_carries_a_request_id_and_no_advice_to_keep_it` |
//!
//! No part of this program yet: tokens without a signature to check (introspection), tenants' own webhook addresses and
//! policies, downloads as CSV.

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::api::{Answer, Api};
use crate::harness::events::{now, token_quota};
use crate::harness::{Daemon, Engine, PATIENCE, Setup, Tenant};

const JSON: (&str, &str) = ("content-type", "application/json");

async fn a_tenant() -> (Daemon, Tenant) {
    let daemon = Setup::on(Engine::Sqlite).with("HTTP__HEADER_TIMEOUT_MS", 1_500).start().await;
    let tenant = daemon.onboard("Acme").await;
    (daemon, tenant)
}

async fn send(api: &Api, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Answer {
    let answer = api.raw(method, path, headers, body.into()).await;
    assert!(answer.status < 500, "{path}: {} {}", answer.status, answer.text);
    for inside in ["panicked", "src/", "sqlx", "SELECT ", "stack backtrace", ".rs:"] {
        assert!(!answer.text.contains(inside), "{path} tells of our insides: {}", answer.text);
    }
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_are_none() {
    let (daemon, tenant) = a_tenant().await;
    let path = "/v1/audit";
    let get = async |headers: &[(&str, &str)]| {
        send(&daemon.platform.anonymous(), Method::GET, path, headers, Vec::new()).await
    };
    let none = get(&[]).await;
    none.refused(401, "AUTHENTICATION_REQUIRED");
    assert!(none.header("www-authenticate").starts_with("Bearer"));

    let key = tenant.api.credential();
    let mut wrong_secret = key.to_owned().into_bytes();
    let at = wrong_secret.len() - 8;
    wrong_secret[at] = if wrong_secret[at] == b'a' { b'b' } else { b'a' };
    let wrong_secret = String::from_utf8(wrong_secret).unwrap();
    let alg_none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4IiwidGVuYW50IjoieCJ9.";
    let mut bodies = Vec::new();
    for bad in [wrong_secret.as_str(), alg_none, &key[..key.len() - 1], "a.b.c"] {
        let bearer = format!("Bearer {bad}");
        let answer = get(&[("authorization", &bearer)]).await;
        answer.refused(401, "INVALID_CREDENTIALS");
        assert!(answer.header("www-authenticate").contains("invalid_token"));
        let mut body = answer.body;
        body["error"]["requestId"] = Value::Null;
        bodies.push(body);
    }
    assert!(bodies.windows(2).all(|pair| pair[0] == pair[1]), "one answer for all of them: {bodies:?}");
    for malformed in ["Basic dXNlcjpwYXNz", "Bearer", "Bearer ", "Bearer a b", "bearer\tx"] {
        let answer = get(&[("authorization", malformed)]).await;
        assert!([400, 401].contains(&answer.status), "{malformed:?}: {}", answer.text);
        answer.in_the_envelope();
    }
    let bearer = format!("Bearer {key}");
    get(&[("authorization", &bearer), ("authorization", &bearer)]).await.refused(400, "MALFORMED_CREDENTIALS");
    get(&[("authorization", &bearer), ("x-api-key", key)]).await.refused(400, "MALFORMED_CREDENTIALS");
    assert_eq!(get(&[("x-api-key", key)]).await.status, 200, "a gateway's plain header");
    let in_query = send(&daemon.platform.anonymous(), Method::GET, &format!("{path}?apiKey={key}"), &[], "").await;
    assert!([400, 401].contains(&in_query.status), "{}", in_query.text);
    assert!(!in_query.text.contains(key));
    let huge = format!("Bearer {}", "a".repeat(9_000));
    let answer = get(&[("authorization", &huge)]).await;
    assert!([400, 401, 431].contains(&answer.status), "{}", answer.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_no_json_are_400_and_bodies_that_are_wrong_are_422() {
    let (_daemon, tenant) = a_tenant().await;
    let path = format!("/v1/quotas/{}", tenant.id);
    let put = async |body: Vec<u8>| send(&tenant.api, Method::PUT, &path, &[JSON], body).await;
    let deep = format!("{{\"quotas\":{}{}}}", "[".repeat(40), "]".repeat(40));
    for malformed in [
        b"".to_vec(),
        b"{".to_vec(),
        b"{} {}".to_vec(),
        b"{\"quotas\":[],}".to_vec(),
        b"{\"quotas\":[],\"quotas\":[]}".to_vec(),
        b"{\"quotas\":[NaN]}".to_vec(),
        b"{\"quotas\":[1e999]}".to_vec(),
        b"\xff\xfe".to_vec(),
        b"{\"\xc3\x28\":1}".to_vec(),
        deep.into_bytes(),
        vec![b'['; 200_000],
    ] {
        let shown = String::from_utf8_lossy(&malformed[..malformed.len().min(60)]).into_owned();
        let answer = put(malformed).await;
        assert_eq!((answer.status, answer.code()), (400, "MALFORMED_JSON"), "{shown}: {}", answer.text);
        answer.in_the_envelope();
    }
    for (wrong, pointer) in [
        ("[]", ""),
        ("\"text\"", ""),
        ("{}", ""),
        ("{\"quotas\":null}", "/quotas"),
        ("{\"quotas\":{}}", "/quotas"),
        ("{\"quotas\":[],\"createdBy\":\"me\"}", "/createdBy"),
        ("{\"quotas\":[{\"scope\":{\"type\":\"tenant\\u0000\"}}]}", "/quotas/0/scope/type"),
    ] {
        let answer = put(wrong.into()).await;
        assert_eq!((answer.status, answer.code()), (422, "VALIDATION_FAILED"), "{wrong}: {}", answer.text);
        let fields = answer.body["error"]["details"]["fields"].as_array().expect("pointers");
        assert!(fields.iter().any(|field| field["pointer"].as_str().unwrap().starts_with(pointer)), "{}", answer.text);
    }
    assert!(tenant.quotas().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_that_cannot_be() {
    let (daemon, _) = a_tenant().await;
    let post = async |body: Value| send(&daemon.platform, Method::POST, "/v1/tenants", &[JSON], body.to_string()).await;
    for (body, pointer) in [
        (json!({"name": ""}), "/name"),
        (json!({"name": 1}), "/name"),
        (json!({"name": "x".repeat(300)}), "/name"),
        (json!({"name": "A", "timeZone": "Mars/Olympus"}), "/timeZone"),
        (json!({"name": "A", "slug": "Not A Slug"}), "/slug"),
        (json!({"name": "A", "settings": []}), "/settings"),
        (json!({"name": "A", "externalIds": [{"source": "litellm", "kind": "planet", "id": "x"}]}), "/externalIds/0"),
        (json!({"name": "A", "id": "0199a8b2-5c00-7abc-8def-0123456789ab"}), "/id"),
        (json!({"name": "A", "createdBy": "me"}), "/createdBy"),
    ] {
        let answer = post(body.clone()).await;
        assert_eq!((answer.status, answer.code()), (422, "VALIDATION_FAILED"), "{body}: {}", answer.text);
        let fields = answer.body["error"]["details"]["fields"].as_array().expect("pointers");
        assert!(fields.iter().any(|field| field["pointer"].as_str().unwrap().starts_with(pointer)), "{}", answer.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_at_the_wrong_door() {
    let (daemon, tenant) = a_tenant().await;
    let quotas = format!("/v1/quotas/{}", tenant.id);
    let api = &tenant.api;
    send(api, Method::GET, "/v2/tenants", &[], "").await.refused(404, "NOT_FOUND");
    send(api, Method::GET, "/v1/quotas/not-a-uuid", &[], "").await.refused(404, "TENANT_NOT_FOUND");
    send(api, Method::GET, "/v1/tenants/../../etc/passwd", &[], "").await.refused(404, "NOT_FOUND");
    let patched = send(api, Method::PATCH, &quotas, &[JSON], "{}").await;
    patched.refused(405, "METHOD_NOT_ALLOWED");
    assert!(patched.header("allow").contains("GET") && patched.header("allow").contains("PUT"));
    for method in [Method::TRACE, Method::OPTIONS] {
        assert_eq!(send(api, method, &quotas, &[], "").await.status, 405);
    }
    let body = json!({"quotas": []}).to_string();
    send(api, Method::PUT, &quotas, &[("content-type", "text/plain")], body.clone())
        .await
        .refused(415, "UNSUPPORTED_MEDIA_TYPE");
    send(api, Method::PUT, &quotas, &[], body.clone()).await.refused(415, "UNSUPPORTED_MEDIA_TYPE");
    send(api, Method::PUT, &quotas, &[JSON, ("content-encoding", "gzip")], body)
        .await
        .refused(415, "UNSUPPORTED_MEDIA_TYPE");
    send(api, Method::GET, &quotas, &[("accept", "text/html")], "").await.refused(406, "NOT_ACCEPTABLE");
    let long = format!("{quotas}?x={}", "a".repeat(9_000));
    send(api, Method::GET, &long, &[], "").await.refused(414, "URI_TOO_LONG");
    for query in ["?unknown=1", "?limit=1&limit=2"] {
        let answer = send(&daemon.platform, Method::GET, &format!("/v1/tenants{query}"), &[], "").await;
        answer.refused(400, "INVALID_PARAMETER");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_and_reports_that_cannot_be() {
    let (_daemon, tenant) = a_tenant().await;
    let events = format!("/v1/tenants/{}/usage/events", tenant.id);
    let report = format!("/v1/tenants/{}/usage", tenant.id);
    for query in ["?limit=0", "?limit=1000000000", "?limit=-1", "?limit=ten", "?limit="] {
        send(&tenant.api, Method::GET, &format!("{events}{query}"), &[], "").await.refused(400, "INVALID_PARAMETER");
    }
    for cursor in ["x", "AAAA", "%C3%A9", "....", "a".repeat(3_000).as_str()] {
        let answer = send(&tenant.api, Method::GET, &format!("{events}?cursor={cursor}"), &[], "").await;
        answer.refused(400, "INVALID_CURSOR");
    }
    let (from, to) = (now().plus_micros(-3_600_000_000), now());
    for query in [
        String::new(),
        format!("?from={from}"),
        format!("?from=yesterday&to={to}"),
        format!("?from={to}&to={from}"),
        format!("?from={from}&to={to}&granularity=fortnight"),
        format!("?from={from}&to={to}&groupBy=shoeSize"),
        format!("?from={from}&to={to}&sort=up"),
        "?from=0000-01-01T00:00:00Z&to=9999-12-31T00:00:00Z&granularity=hour".to_owned(),
    ] {
        let answer = send(&tenant.api, Method::GET, &format!("{report}{query}"), &[], "").await;
        assert!([400, 422].contains(&answer.status), "{query}: {} {}", answer.status, answer.text);
        answer.in_the_envelope();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_too_large() {
    let (_daemon, tenant) = a_tenant().await;
    let quotas = format!("/v1/quotas/{}", tenant.id);
    let padded = format!("{{\"quotas\":[],\"pad\":\"{}\"}}", "x".repeat(300_000));
    send(&tenant.api, Method::PUT, &quotas, &[JSON], padded).await.refused(413, "PAYLOAD_TOO_LARGE");
    let events = Value::Array((0..5_001).map(|_| json!({})).collect()).to_string();
    send(&tenant.api, Method::POST, "/v1/usage/events", &[JSON], events).await.refused(413, "TOO_MANY_EVENTS");
    let large = vec![b' '; 17 * 1024 * 1024];
    let answer = tenant.api.try_raw(Method::POST, "/v1/usage/events", &[JSON], large).await;
    // The answer may be cut off by the connection that is closed on an overlong body.
    if let Ok(answer) = answer {
        answer.refused(413, "PAYLOAD_TOO_LARGE");
    }
    assert_eq!(tenant.post_events(&[tenant.event()]).await.accepted, 1, "the next request is served");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_cannot_be_counted_say_why() {
    let (_daemon, tenant) = a_tenant().await;
    let at = now();
    let event = |payload: Value| json!({"eventId": "e", "occurredAt": at.to_string(), "payload": payload});
    let usage = |usage: Value| event(json!({"usage": usage}));
    let body = |name: &str| -> Value {
        match name {
            "negative" => usage(json!({"promptTokens": -1})),
            "fraction" => usage(json!({"promptTokens": 1.5})),
            "text" => usage(json!({"promptTokens": "1"})),
            "overflow" => usage(json!({"promptTokens": 18_446_744_073_709_551_615_u64})),
            "absurd" => usage(json!({"promptTokens": 9_000_000_000_000_000_000_i64})),
            "silent" => event(json!({})),
            "no-time" => json!({"eventId": "e", "payload": {"usage": {"tokens": 1}}}),
            "no-zone" => {
                json!({"eventId": "e", "occurredAt": "2026-11-20T15:37:12", "payload": {"usage": {"tokens": 1}}})
            }
            "year-0" => {
                json!({"eventId": "e", "occurredAt": "0000-01-01T00:00:00Z", "payload": {"usage": {"tokens": 1}}})
            }
            "no-id" => json!({"occurredAt": at.to_string(), "payload": {"usage": {"tokens": 1}}}),
            "empty-id" => json!({"eventId": "", "occurredAt": at.to_string(), "payload": {"usage": {"tokens": 1}}}),
            "cost" => event(json!({"usage": {"tokens": 1}, "costUsd": -0.5})),
            _ => unreachable!(),
        }
    };
    for name in [
        "negative", "fraction", "text", "overflow", "absurd", "silent", "no-time", "no-zone", "year-0", "no-id",
        "empty-id", "cost",
    ] {
        let answer = send(&tenant.api, Method::POST, "/v1/usage/events", &[JSON], body(name).to_string()).await;
        answer.refused(422, "NO_EVENT_ACCEPTED");
        let rejected = &answer.body["error"]["details"]["rejected"];
        assert_eq!(rejected.as_array().map(Vec::len), Some(1), "{name}: {}", answer.text);
        assert!(rejected[0]["code"].is_string() && !rejected[0]["message"].as_str().unwrap().is_empty());
    }
    // Numbers that no integer can hold, and NULs, in raw bytes.
    for raw in [
        r#"{"eventId":"e","occurredAt":"AT","payload":{"usage":{"tokens":1e400}}}"#,
        r#"{"eventId":"e","occurredAt":"AT","payload":{"usage":{"tokens":1},"costUsd":1e30}}"#,
        r#"{"eventId":"e\u0000","occurredAt":"AT","payload":{"usage":{"tokens":1}}}"#,
        r#"{"eventId":"e","occurredAt":"AT","payload":{"model":"\u0000","usage":{"tokens":1}}}"#,
    ] {
        let raw = raw.replace("AT", &at.to_string());
        let answer = send(&tenant.api, Method::POST, "/v1/usage/events", &[JSON], raw.clone()).await;
        assert!([400, 422].contains(&answer.status), "{raw}: {} {}", answer.status, answer.text);
    }
    assert!(tenant.ledger().await.is_empty());
    assert!(!tenant.quarantine().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_means_one_change() {
    let (_daemon, tenant) = a_tenant().await;
    let path = format!("/v1/quotas/{}", tenant.id);
    let put = async |key: &str, limit: i64| {
        let body = json!({"quotas": [token_quota(limit, "day")]}).to_string();
        send(&tenant.api, Method::PUT, &path, &[JSON, ("idempotency-key", key)], body).await
    };
    let first = put("k1", 100).await.ok();
    put("k2", 200).await.ok();
    // The answer of then, and no change now.
    assert_eq!(put("k1", 100).await.ok(), first);
    assert_eq!(tenant.quotas().await[0]["limit"], 200);
    put("k1", 300).await.refused(422, "IDEMPOTENCY_KEY_REUSED");
    for bad in ["", "with space", "ü", "k".repeat(256).as_str()] {
        let body = json!({"quotas": []}).to_string().into_bytes();
        let headers = [JSON, ("idempotency-key", bad)];
        if let Ok(answer) = tenant.api.try_raw(Method::PUT, &path, &headers, body).await {
            answer.refused(400, "INVALID_HEADER");
        }
    }
    let records = tenant.audit().await;
    let changes = records.iter().filter(|record| record["record"]["action"] == "quotas.replaced").count();
    assert_eq!(changes, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_carries_a_request_id_and_no_advice_to_keep_it() {
    let (daemon, tenant) = a_tenant().await;
    let echoed = send(&tenant.api, Method::GET, "/v1/audit", &[("x-request-id", "mine-1")], "").await;
    assert_eq!(echoed.header("x-request-id"), "mine-1");
    for bad in ["x".repeat(129).as_str(), "a\tb"] {
        let made = send(&tenant.api, Method::GET, "/v1/audit", &[("x-request-id", bad)], "").await;
        assert!(!made.header("x-request-id").is_empty() && made.header("x-request-id") != bad);
    }
    let refused = send(&daemon.platform.anonymous(), Method::GET, "/v1/audit", &[], "").await;
    assert_eq!(refused.header("cache-control"), "no-store");
    assert_eq!(refused.body["error"]["requestId"], refused.header("x-request-id"));
}

/// What the server says to these bytes before it closes.
async fn on_the_wire(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Asserts one answer in the envelope, and that the connection was closed behind it.
#[track_caller]
fn refused_on_the_wire(answer: &str, status: u16, code: &str, shown: &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{shown}: {answer:?}"));
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{shown}: {head}");
    assert!(head.to_ascii_lowercase().contains("connection: close"), "{shown}: {head}");
    let body: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{shown}: {body}"));
    assert_eq!(body["error"]["code"], code, "{shown}");
    let id = body["error"]["requestId"].as_str().unwrap();
    assert!(head.contains(&format!("x-request-id: {id}")), "{shown}: {head}");
}

/// What no client library sends: the bytes on the wire.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_on_the_wire_that_are_no_request() {
    let (daemon, _) = a_tenant().await;
    let address = daemon.platform.base().trim_start_matches("http://").to_owned();
    let post = "POST /v1/usage/events HTTP/1.1\r\nHost: a\r\n";
    for raw in [
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        "GET /health/live HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into(),
        "GET /health/live HTTP/1.1\nHost: a\n\n".into(),
        "GET /health/live HTTP/1.1\r\nHost: a\nX: b\r\n\r\n".into(),
        "GET /health/live HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n".into(),
        "GET /health/live HTTP/1.1\r\nHost: a\r\nX-Folded: a\r\n b\r\n\r\n".into(),
        "GET /health/live HTTP/1.1\r\nHost: a\r\nX : a\r\n\r\n".into(),
        "GET /health/live HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n".into(),
        "GET /health/live HTTP/9.9\r\nHost: a\r\n\r\n".into(),
        "GET /health/live HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n".into(),
        "G<T /health/live HTTP/1.1\r\nHost: a\r\n\r\n".into(),
        "nonsense\r\n\r\n".into(),
        format!("{post}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
        format!("{post}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
        format!("{post}Content-Length: -5\r\n\r\nhello"),
        format!("{post}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ] {
        refused_on_the_wire(&on_the_wire(&address, raw.as_bytes()).await, 400, "BAD_REQUEST", &format!("{raw:?}"));
    }
    let many = "X: y\r\n".repeat(200);
    let long = format!("X: {}\r\n", "y".repeat(40_000));
    for headers in [many, long] {
        let raw = format!("GET /health/live HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
        refused_on_the_wire(&on_the_wire(&address, raw.as_bytes()).await, 431, "HEADERS_TOO_LARGE", &raw[..60]);
    }
    // A second request behind a good one is read as strictly.
    let second = "GET /health/live HTTP/1.1\r\nHost: a\r\n\r\nGET /health/live HTTP/1.1\r\n\r\n";
    let answers = on_the_wire(&address, second.as_bytes()).await;
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 0, "neither is answered when they come as one: {answers}");
    // And what is unusual and good is served.
    for good in [
        "\r\nGET /health/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        "GET /health/live HTTP/1.0\r\n\r\n",
        "GET http://a/health/live HTTP/1.1\r\nHost:a\r\nX:\r\nConnection:  close \r\n\r\n",
    ] {
        let answer = on_the_wire(&address, good.as_bytes()).await;
        assert!(answer.contains(" 200 OK"), "{good:?}: {answer}");
    }
}

/// A client that never finishes its headers is told so and cut off, and others are served meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_never_ends() {
    let (daemon, _) = a_tenant().await;
    let address = daemon.platform.base().trim_start_matches("http://").to_owned();
    let slow = tokio::spawn(async move { on_the_wire(&address, b"GET /health/live HTTP/1.1\r\nHost: a\r\nX:").await });
    assert_eq!(daemon.platform.anonymous().get("/health/live").await.status, 200);
    refused_on_the_wire(&slow.await.unwrap(), 408, "REQUEST_TIMEOUT", "a slow head");
}

/// What serde alone would take for an object with its fields in order.
#[tokio::test(flavor = "multi_thread")]
async fn arrays_in_the_place_of_objects() {
    let (daemon, tenant) = a_tenant().await;
    let quotas = format!("/v1/quotas/{}", tenant.id);
    for (body, pointer) in [
        (r#"{"quotas":[[null,["tenant"],"tokens","day",5]]}"#, "/quotas/0"),
        (r#"{"quotas":[{"scope":["tenant"],"metric":"tokens","period":"day","limit":5}]}"#, "/quotas/0/scope"),
    ] {
        let answer = send(&tenant.api, Method::PUT, &quotas, &[JSON], body).await;
        answer.refused(422, "VALIDATION_FAILED");
        assert_eq!(answer.body["error"]["details"]["fields"][0]["pointer"], pointer);
    }
    let tenant_body = r#"{"name":"A","externalIds":[["litellm","team","t"]]}"#;
    send(&daemon.platform, Method::POST, "/v1/tenants", &[JSON], tenant_body).await.refused(422, "VALIDATION_FAILED");
    let event =
        format!(r#"{{"eventId":"e","occurredAt":"{}","actor":["u"],"payload":{{"usage":{{"tokens":1}}}}}}"#, now());
    let answer = send(&tenant.api, Method::POST, "/v1/usage/events", &[JSON], event).await;
    answer.refused(422, "NO_EVENT_ACCEPTED");
    assert!(tenant.ledger().await.is_empty());
}

/// Who calls is told by the credential alone, and from where by the socket, or by a proxy of ours.
#[tokio::test(flavor = "multi_thread")]
async fn headers_that_anybody_can_write() {
    let daemon = Setup::on(Engine::Sqlite).with("AUTH__FAILURES_PER_SOURCE_MAX", 2).start().await;
    let tenant = daemon.onboard("Acme").await;
    let anonymous = daemon.platform.anonymous();
    for name in ["x-consumer-id", "x-consumer-custom-id", "x-authenticated-userid", "x-forwarded-user", "x-tenant-id"] {
        let answer = send(&anonymous, Method::GET, "/v1/audit", &[(name, tenant.id.as_str())], "").await;
        answer.refused(401, "AUTHENTICATION_REQUIRED");
    }
    for (number, status) in [(1, 401), (2, 401), (3, 429)] {
        let from = format!("203.0.113.{number}");
        let token = format!("Bearer a.b.{number}");
        let headers = [("x-forwarded-for", from.as_str()), ("authorization", token.as_str())];
        assert_eq!(send(&anonymous, Method::GET, "/v1/audit", &headers, "").await.status, status, "{from}");
    }
}

/// Whoever guesses is slowed down, and nobody else behind the same address.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_are_tried_too_often() {
    let limits = Setup::on(Engine::Sqlite).with("AUTH__FAILURES_PER_CREDENTIAL_MAX", 3);
    let daemon = limits.with("AUTH__FAILURES_PER_SOURCE_MAX", 8).start().await;
    let tenant = daemon.onboard("Acme").await;
    let key = tenant.api.credential();
    let (public, secret) = key.rsplit_once('_').unwrap();
    let guess = |number: usize| format!("{public}_{number:0>width$}", width = secret.len());
    for number in 0..3 {
        tenant.api.with(&guess(number)).get("/v1/audit").await.refused(401, "INVALID_CREDENTIALS");
    }
    let answer = tenant.api.with(&guess(3)).get("/v1/audit").await;
    answer.refused(429, "TOO_MANY_FAILURES");
    assert_eq!(answer.header("retry-after"), "60");
    // The key's owner, whose public id was tried, is not locked out; nor does its success forgive the guesses.
    assert_eq!(tenant.api.get("/v1/audit").await.status, 200);
    tenant.api.with(&guess(4)).get("/v1/audit").await.refused(429, "TOO_MANY_FAILURES");
    // Many different ones are too many together.
    for (number, status) in [(1, 401), (2, 401), (3, 401), (4, 429)] {
        let token = format!("a.b.{number}");
        assert_eq!(tenant.api.with(&token).get("/v1/audit").await.status, status, "{token}");
    }
    daemon.platform.get("/v1/tenants").await.ok();
}

/// Only a proxy of ours says from where a request came; whoever says so itself is counted by where it is.
#[tokio::test(flavor = "multi_thread")]
async fn addresses_that_are_made_up() {
    let limited = |setup: Setup| setup.with("AUTH__FAILURES_PER_SOURCE_MAX", 2);
    let behind = "trusted_proxies = [\"127.0.0.0/8\"]\n";
    for (setup, is_believed) in [
        (Setup::on(Engine::Sqlite), false),
        (Setup::on(Engine::Sqlite).with_http("trusted_proxies = [\"192.0.2.0/24\"]\n"), false),
        (Setup::on(Engine::Sqlite).with_http(behind), true),
    ] {
        let daemon = limited(setup).start().await;
        let anonymous = daemon.platform.anonymous();
        for number in 1..=4 {
            let (from, token) = (format!("198.51.100.9, 203.0.113.{number}"), format!("Bearer a.b.{number}"));
            let headers = [("x-forwarded-for", from.as_str()), ("authorization", token.as_str())];
            let expected = if is_believed || number <= 2 { 401 } else { 429 };
            assert_eq!(send(&anonymous, Method::GET, "/v1/audit", &headers, "").await.status, expected, "{from}");
        }
        // What the proxy passes on of a client's own story makes no difference.
        for (number, status) in [(1, 401), (2, 429), (3, 429)] {
            let (from, token) = (format!("192.0.2.{number}, 203.0.113.1"), format!("Bearer c.d.{number}"));
            let headers = [("x-forwarded-for", from.as_str()), ("authorization", token.as_str())];
            let expected = if is_believed { status } else { 429 };
            assert_eq!(send(&anonymous, Method::GET, "/v1/audit", &headers, "").await.status, expected, "{from}");
        }
    }
}

/// A page elsewhere reads our answers only if its origin is listed.
#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins() {
    let console = "https://console.example.com";
    let listed = format!("[http.cors]\norigins = [\"{console}\"]\ncredentials = true");
    for is_listed in [true, false] {
        let setup = Setup::on(Engine::Sqlite);
        let daemon = if is_listed { setup.with_section(&listed) } else { setup }.start().await;
        for (origin, expected) in [(console, is_listed), ("https://evil.example.com", false), ("null", false)] {
            let headers = [("origin", origin), ("access-control-request-method", "GET")];
            let asked = send(&daemon.platform, Method::OPTIONS, "/v1/tenants", &headers, "").await;
            let answered = send(&daemon.platform, Method::GET, "/v1/tenants", &headers[..1], "").await;
            let refused = send(&daemon.platform.anonymous(), Method::GET, "/v1/tenants", &headers[..1], "").await;
            assert_eq!(asked.status, if expected { 204 } else { 405 }, "{origin}");
            assert_eq!((answered.status, refused.status), (200, 401));
            for answer in [&asked, &answered, &refused] {
                let allowed = answer.headers.get("access-control-allow-origin").map(|value| value.to_str().unwrap());
                assert_eq!(allowed, expected.then_some(origin), "{origin}");
                assert_eq!(answer.headers.contains_key("access-control-allow-credentials"), expected, "{origin}");
            }
        }
    }
}

/// Ten thousand deep, megabytes wide, every byte value: whatever arrives, the daemon is there for the next one.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_arrives_ends_the_daemon() {
    let (daemon, tenant) = a_tenant().await;
    let mut seed = 0x2545_F491_4F6C_DD1D_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let valid = tenant.event().json().to_string().into_bytes();
    for round in 0..400 {
        let mut bytes = valid.clone();
        for _ in 0..1 + random() % 8 {
            let at = (random() % bytes.len() as u64) as usize;
            match random() % 3 {
                0 => bytes[at] = random() as u8,
                1 => drop(bytes.drain(at..(at + 3).min(bytes.len()))),
                _ => bytes.insert(at, random() as u8),
            }
        }
        let path = ["/v1/usage/events", "/v1/usage/litellm", "/v1/tenants"][round % 3];
        send(&daemon.platform, Method::POST, path, &[JSON], bytes).await;
    }
    let log = daemon.log();
    assert!(!log.contains("panicked"), "something panicked");
    assert_eq!(tenant.post_events(&[tenant.event()]).await.accepted, 1);
}
