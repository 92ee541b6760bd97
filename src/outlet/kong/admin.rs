//! Kong's Admin API, as far as we need it.
//!
//! Its answers may echo secrets, whole documents of them: what is kept of one that refuses is its status and Kong's own
//! number for the reason, never its text.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use crate::config;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A document of many thousand consumers takes Kong a while.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Pages of one list.
const PAGES_MAX: usize = 10_000;

/// Why Kong did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    #[error("the Admin API does not answer: {0}")]
    Unreachable(&'static str),
    /// With Kong's `code`, 0 when it gave none.
    #[error("the Admin API refused to {action}: status {status}, code {code}")]
    Refused { action: String, status: u16, code: i64 },
    #[error("the Admin API's answer cannot be read")]
    Unreadable,
}

impl AdminError {
    /// Another object stands in the way of this one.
    pub(super) fn is_conflict(&self) -> bool {
        matches!(self, AdminError::Refused { status: 409, .. })
    }

    /// It keeps no entities one by one: there is no database.
    pub(super) fn is_without_database(&self) -> bool {
        matches!(self, AdminError::Refused { status: 405, code: 12, .. })
    }
}

/// The client. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Admin {
    http: reqwest::Client,
    /// Without the slash at its end.
    base: String,
    token: Option<SecretString>,
}

impl Admin {
    /// One for each address that is configured.
    ///
    /// # Errors
    /// When there can be no client.
    pub fn open(settings: &config::KongAdmin) -> Result<Vec<Admin>, String> {
        settings.urls.iter().map(|url| Admin::at(url, settings.token.clone())).collect()
    }

    /// # Errors
    /// When there can be no client.
    pub fn at(url: &str, token: Option<SecretString>) -> Result<Admin, String> {
        // Fails when a provider is installed already, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent(concat!("platform-api/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .build()
            .map_err(|error| format!("no HTTP client: {}", error.without_url()))?;
        Ok(Admin { http, base: url.trim_end_matches('/').to_owned(), token })
    }

    /// Where it is.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// What is at `path`; `None` when nothing is.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn get(&self, path: &str) -> Result<Option<Value>, AdminError> {
        match self.send(Method::GET, path, None).await? {
            (StatusCode::OK, body) => Ok(Some(body)),
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, body) => Err(refused("read", status, &body)),
        }
    }

    /// Every object of a list: `next` is followed word for word, it knows better than we how the list goes on.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn list(&self, path: &str) -> Result<Vec<Value>, AdminError> {
        let mut objects = Vec::new();
        let mut path = path.to_owned();
        for _ in 0..PAGES_MAX {
            let Some(mut page) = self.get(&path).await? else { return Ok(objects) };
            match page["data"].take() {
                Value::Array(items) => objects.extend(items),
                // An empty list may come as an empty object.
                Value::Object(items) if items.is_empty() => {}
                _ => return Err(AdminError::Unreadable),
            }
            match page["next"].as_str() {
                None => return Ok(objects),
                Some(next) if next.starts_with('/') && next != path => next.clone_into(&mut path),
                Some(_) => return Err(AdminError::Unreadable),
            }
        }
        Err(AdminError::Unreadable)
    }

    pub(super) async fn put(&self, path: &str, body: &Value) -> Result<(), AdminError> {
        self.change(Method::PUT, "put", path, Some(body)).await
    }

    /// What is not there is removed already.
    pub(super) async fn delete(&self, path: &str) -> Result<(), AdminError> {
        self.change(Method::DELETE, "delete", path, None).await
    }

    async fn change(&self, method: Method, word: &str, path: &str, body: Option<&Value>) -> Result<(), AdminError> {
        let (status, body) = self.send(method, path, body).await?;
        if status.is_success() { Ok(()) } else { Err(refused(word, status, &body)) }
    }

    /// Replaces the whole configuration of a Kong without a database; false when it had this one already.
    pub(super) async fn load(&self, document: &str) -> Result<bool, AdminError> {
        let body = json!({ "config": document });
        match self.send(Method::POST, "/config?check_hash=1", Some(&body)).await? {
            (StatusCode::NOT_MODIFIED, _) => Ok(false),
            (status, _) if status.is_success() => Ok(true),
            (status, body) => Err(refused("load the document", status, &body)),
        }
    }

    /// What a Kong without a database says its document's hash is.
    pub(super) async fn configuration_hash(&self) -> Option<String> {
        let status = self.get("/status").await.ok()??;
        let hash = status["configuration_hash"].as_str()?;
        let is_hash = hash.len() <= 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hash.then(|| hash.to_owned())
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(StatusCode, Value), AdminError> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("kong-admin-token", token.expose_secret());
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let mut response = request.send().await.map_err(|error| unreachable(&error))?;
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&error))? {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(AdminError::Unreadable);
            }
            bytes.extend_from_slice(&chunk);
        }
        let body = if bytes.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&bytes) };
        match body {
            Ok(body) => Ok((response.status(), body)),
            // A refusal is one in whatever words.
            Err(_) if !response.status().is_success() => Ok((response.status(), Value::Null)),
            Err(_) => Err(AdminError::Unreadable),
        }
    }
}

fn refused(action: &str, status: StatusCode, body: &Value) -> AdminError {
    let code = body["code"].as_i64().unwrap_or_default();
    AdminError::Refused { action: action.to_owned(), status: status.as_u16(), code }
}

/// The kind of the error, not its text: that may quote the address with what stands in it.
fn unreachable(error: &reqwest::Error) -> AdminError {
    AdminError::Unreachable(match error {
        error if error.is_timeout() => "timed out",
        error if error.is_connect() => "cannot connect",
        _ => "the connection broke",
    })
}
