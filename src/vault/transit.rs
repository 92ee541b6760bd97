//! The KEK in the transit engine of OpenBao or HashiCorp Vault: it never comes here, data keys go there.
//!
//! The key must be one for AES-GCM or ChaCha20-Poly1305 (`aes256-gcm96` is the engine's default), which authenticate our
//! context as `associated_data`. The policy of our token needs `update` on `<mount>/encrypt/<key>` and
//! `<mount>/decrypt/<key>`, and `read` on `<mount>/keys/<key>`. To rotate, rotate the key there and ask for the job
//! `vault.rewrap`; `min_decryption_version` may be raised once that job has succeeded.
//!
//! Answers may hold a data key: what is kept of one that refuses is its status, never its text.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::{Zeroize, Zeroizing};

use super::{DataKey, KekError, KeyEncryption, Wrapped};
use crate::config;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// What each ciphertext begins with; a version follows.
const FORM: &str = "vault:v";

pub(super) struct Transit {
    http: reqwest::Client,
    /// Without the slash at its end.
    base: String,
    mount: String,
    key: String,
    namespace: Option<HeaderValue>,
    token: Token,
}

/// Where our token comes from. A file is read each time: an agent renews it there.
enum Token {
    Given(SecretString),
    File(PathBuf),
}

#[derive(Deserialize)]
struct Plain {
    plaintext: String,
}

impl Transit {
    /// # Errors
    /// When the configuration does not suffice.
    pub(super) fn open(settings: &config::Vault) -> Result<Transit, String> {
        let url = settings.transit_url.as_ref().ok_or("vault.transit_url: must be set with vault.kek = \"transit\"")?;
        let token = match (&settings.transit_token, &settings.transit_token_file) {
            (Some(token), _) => Token::Given(token.clone()),
            (None, Some(path)) => Token::File(path.clone()),
            (None, None) => return Err("vault.transit_token: must be set, or vault.transit_token_file".into()),
        };
        let namespace = settings.transit_namespace.as_deref().map(HeaderValue::from_str).transpose();
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
        Ok(Transit {
            http,
            base: url.trim_end_matches('/').to_owned(),
            mount: settings.transit_mount.trim_matches('/').to_owned(),
            key: settings.transit_key.clone(),
            namespace: namespace.map_err(|_| "vault.transit_namespace: must be plain text")?,
            token,
        })
    }

    /// The name under which we remember a version of the key.
    fn name(&self, version: &str) -> String {
        format!("transit:{}/{}:v{version}", self.mount, self.key)
    }

    fn headers(&self) -> Result<HeaderMap, KekError> {
        let unusable = |what: String| KekError::Unavailable(format!("the token of the transit engine: {what}"));
        let token = match &self.token {
            Token::Given(token) => Zeroizing::new(token.expose_secret().to_owned()),
            Token::File(path) => {
                Zeroizing::new(std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?)
            }
        };
        let mut value = HeaderValue::from_str(token.trim()).map_err(|_| unusable("is not plain text".into()))?;
        value.set_sensitive(true);
        let mut headers = HeaderMap::new();
        headers.insert("x-vault-token", value);
        // Guards the engine against requests that a browser was made to send.
        headers.insert("x-vault-request", HeaderValue::from_static("true"));
        if let Some(namespace) = &self.namespace {
            headers.insert("x-vault-namespace", namespace.clone());
        }
        Ok(headers)
    }

    /// Asks; answers the status and the body of an answer with 200.
    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Zeroizing<Vec<u8>>, KekError> {
        let url = format!("{}/v1/{}/{path}/{}", self.base, self.mount, self.key);
        let mut request = self.http.request(method, url).headers(self.headers()?);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let away = |error: reqwest::Error| {
            let words = if error.is_timeout() { "timed out" } else { "does not answer" };
            KekError::Unavailable(format!("the transit engine {words}"))
        };
        let mut answer = request.send().await.map_err(away)?;
        match answer.status() {
            StatusCode::OK => {}
            // Of our own making, it can only mean that the ciphertext or its context is not what was encrypted, or that the
            // key's version was given up.
            StatusCode::BAD_REQUEST if path == "decrypt" => {
                let text = answer.text().await.unwrap_or_default();
                let given_up = text.contains("too old");
                return Err(if given_up { KekError::UnknownKey(self.name("")) } else { KekError::Refused });
            }
            status => {
                let reason = match status.as_u16() {
                    403 => " (the token, or its policy)",
                    404 => " (the mount, or the key)",
                    503 => " (sealed)",
                    _ => "",
                };
                return Err(KekError::Unavailable(format!("the transit engine answered {}{reason}", status.as_u16())));
            }
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(ANSWER_BYTES_MAX));
        while let Some(chunk) = answer.chunk().await.map_err(away)? {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(unreadable());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

fn unreadable() -> KekError {
    KekError::Unavailable("the transit engine's answer cannot be read".into())
}

#[derive(Deserialize)]
struct Answer<T> {
    data: T,
}

fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, KekError> {
    serde_json::from_slice::<Answer<T>>(bytes).map(|answer| answer.data).map_err(|_| unreadable())
}

impl KeyEncryption for Transit {
    fn current(&self) -> BoxFuture<'_, Result<String, KekError>> {
        async move {
            #[derive(Deserialize)]
            struct Key {
                latest_version: i64,
            }
            let key: Key = read(&self.ask(Method::GET, "keys", None).await?)?;
            Ok(self.name(&key.latest_version.to_string()))
        }
        .boxed()
    }

    fn wrap<'a>(&'a self, key: &'a DataKey, context: &'a [u8]) -> BoxFuture<'a, Result<Wrapped, KekError>> {
        async move {
            #[derive(Deserialize)]
            struct Encrypted {
                ciphertext: String,
            }
            let body =
                json!({ "plaintext": STANDARD.encode(key.bytes()), "associated_data": STANDARD.encode(context) });
            let Encrypted { ciphertext } = read(&self.ask(Method::POST, "encrypt", Some(body)).await?)?;
            let version = ciphertext.strip_prefix(FORM).and_then(|rest| rest.split_once(':')).ok_or_else(unreadable)?.0;
            Ok(Wrapped { kek: self.name(version), bytes: ciphertext.clone().into_bytes() })
        }
        .boxed()
    }

    fn unwrap<'a>(&'a self, wrapped: &'a Wrapped, context: &'a [u8]) -> BoxFuture<'a, Result<DataKey, KekError>> {
        async move {
            if !wrapped.kek.starts_with(&self.name("")) {
                return Err(KekError::UnknownKey(wrapped.kek.clone()));
            }
            let ciphertext = std::str::from_utf8(&wrapped.bytes).map_err(|_| KekError::Refused)?;
            // What the row says and what the ciphertext says must be one version.
            let version =
                ciphertext.strip_prefix(FORM).and_then(|rest| rest.split_once(':')).ok_or(KekError::Refused)?.0;
            if wrapped.kek != self.name(version) {
                return Err(KekError::Refused);
            }
            let body = json!({ "ciphertext": ciphertext, "associated_data": STANDARD.encode(context) });
            let mut plain: Plain = read(&self.ask(Method::POST, "decrypt", Some(body)).await?)?;
            let bytes = STANDARD.decode(&plain.plaintext).ok().map(Zeroizing::new);
            plain.plaintext.zeroize();
            bytes.and_then(DataKey::of).ok_or_else(unreadable)
        }
        .boxed()
    }
}
