//! One caller of the REST API: an address, and a credential or none.

use std::sync::Once;

use reqwest::{Client, Method, StatusCode, header};
use serde_json::Value;

use super::{PATIENCE, eventually};

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: header::HeaderMap,
    pub text: String,
    /// `Null` when the body is not JSON.
    pub body: Value,
}

impl Answer {
    /// `error.code`, or nothing.
    pub fn code(&self) -> &str {
        if self.is_scim_error() {
            return self.body["detail"].as_str().and_then(|detail| detail.split(':').next()).unwrap_or_default();
        }
        self.body["error"]["code"].as_str().unwrap_or_default()
    }

    /// An error in the one form that has no room for the envelope.
    fn is_scim_error(&self) -> bool {
        self.body["schemas"][0] == "urn:ietf:params:scim:api:messages:2.0:Error"
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body of an answer that has to be a success.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!((200..300).contains(&self.status), "not a success: {} {}", self.status, self.text);
        self.body
    }

    /// Asserts a refusal, its code and its envelope.
    #[track_caller]
    pub fn refused(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.code()), (status, code), "{}", self.text);
        self.in_the_envelope();
    }

    /// Every refusal looks the same, and names the request it answers.
    #[track_caller]
    pub fn in_the_envelope(&self) {
        if self.is_scim_error() {
            assert_eq!(self.body["status"], self.status.to_string(), "{}", self.text);
            assert_eq!(self.header("content-type"), "application/scim+json");
            return;
        }
        let error = self.body["error"].as_object().unwrap_or_else(|| panic!("not our envelope: {}", self.text));
        let fields: Vec<&str> = error.keys().map(String::as_str).collect();
        assert_eq!(fields, ["code", "details", "message", "requestId"], "{}", self.text);
        assert_eq!(error["requestId"], self.header("x-request-id"), "{}", self.text);
    }
}

#[derive(Debug, Clone)]
pub struct Api {
    http: Client,
    base: String,
    credential: Option<String>,
}

impl Api {
    pub fn at(base: &str) -> Api {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // Another part of this process may have been quicker.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        });
        let http = Client::builder().timeout(PATIENCE).no_proxy().build().expect("a plain client");
        Api { http, base: base.to_owned(), credential: None }
    }

    /// The same address, called by somebody else.
    pub fn with(&self, credential: &str) -> Api {
        Api { credential: Some(credential.to_owned()), ..self.clone() }
    }

    /// The same address, without a credential.
    pub fn anonymous(&self) -> Api {
        Api { credential: None, ..self.clone() }
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    pub fn credential(&self) -> &str {
        self.credential.as_deref().unwrap_or_default()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::POST, path, Some(body)).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::PUT, path, Some(body)).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::PATCH, path, Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, None).await
    }

    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let bytes = body.map(|body| body.to_string().into_bytes());
        let headers: &[(&str, &str)] = if body.is_some() { &[("content-type", "application/json")] } else { &[] };
        self.raw(method, path, headers, bytes.unwrap_or_default()).await
    }

    /// A request exactly as given, and given again while its tenant is being opened: nothing has been done then, and on a
    /// machine that has much to do it takes longer than an answer is kept waiting.
    pub async fn raw(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        eventually(path, || async {
            let answer = self.once(method.clone(), path, headers, body.clone()).await;
            (answer.code() != "TENANT_STARTING").then_some(answer)
        })
        .await
    }

    /// A request exactly as given, and its first answer.
    pub async fn once(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        self.try_raw(method, path, headers, body).await.unwrap_or_else(|error| panic!("{path}: {error:?}"))
    }

    /// The same, for a daemon that may be dead.
    pub async fn try_raw(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> reqwest::Result<Answer> {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).body(body);
        if let Some(credential) = &self.credential {
            request = request.header(header::AUTHORIZATION, format!("Bearer {credential}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Ok(Answer { status, headers, text, body })
    }

    /// Repeats a call while the tenant is starting, as a client is told to.
    pub async fn patiently(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        eventually(path, || async {
            let answer = self.call(method.clone(), path, body).await;
            (answer.status != StatusCode::SERVICE_UNAVAILABLE.as_u16()).then_some(answer)
        })
        .await
    }

    /// All items of a list, page by page.
    pub async fn pages(&self, path: &str, limit: usize) -> Vec<Value> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        let glue = if path.contains('?') { '&' } else { '?' };
        loop {
            let next = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
            let page = self.patiently(Method::GET, &format!("{path}{glue}limit={limit}{next}"), None).await.ok();
            let page_items = page["items"].as_array().unwrap_or_else(|| panic!("{path}: no items in {page}"));
            assert!(page_items.len() <= limit, "{path}: a page longer than asked for");
            items.extend(page_items.iter().cloned());
            match page["nextCursor"].as_str() {
                Some(next) => cursor = Some(next.to_owned()),
                None => return items,
            }
        }
    }
}
