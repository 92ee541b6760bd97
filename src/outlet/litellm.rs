//! LiteLLM's management API, as far as we need it: credentials, and virtual keys.
//!
//! Both are kept under a stable name of ours, `platform-api.<tenant>.<provider>`; whatever has another name is the
//! operator's, and never touched. LiteLLM must have a database: without one it answers 500. Its answers may echo what was
//! sent: what is kept of one that refuses is its status, never its text.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::config;
use crate::domain::aws_credentials::AwsCredentials;
use crate::domain::ids::{ProviderId, TenantId};
use crate::domain::provider::{AZURE_API_VERSION, Profile, ProviderKind};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Every name of ours begins so.
const PREFIX: &str = "platform-api.";
/// Values that one credential has and another has not: where its key goes, and which kind of key it is.
const VALUES: [&str; 7] = [
    "api_base",
    "api_version",
    "aws_region_name",
    "api_key",
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
];
const ALIASES_A_PAGE: u32 = 100;
const PAGES_MAX: u32 = 10_000;

/// Why LiteLLM did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LiteLlmError {
    #[error("LiteLLM does not answer: {0}")]
    Unreachable(&'static str),
    #[error("LiteLLM refused to {action}: status {status}")]
    Refused { action: &'static str, status: u16 },
    #[error("LiteLLM's answer cannot be read")]
    Unreadable,
}

/// What is there under a name of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    pub tenant: TenantId,
    pub provider: ProviderId,
}

impl std::fmt::Display for Name {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{PREFIX}{}.{}", self.tenant, self.provider)
    }
}

impl Name {
    /// `None` when it is none of ours.
    #[must_use]
    pub fn read(text: &str) -> Option<Name> {
        let (tenant, provider) = text.strip_prefix(PREFIX)?.split_once('.')?;
        Some(Name { tenant: tenant.parse().ok()?, provider: provider.parse().ok()? })
    }
}

/// Which value of a provider's a credential has: whatever changes what LiteLLM would do with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Edition {
    pub secret_version: i64,
    pub fingerprint: String,
    /// Of the provider, because its profile is written beside the secret.
    pub version: i64,
}

/// What LiteLLM has under names of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    pub credentials: BTreeMap<Name, Edition>,
    pub keys: BTreeSet<Name>,
}

/// The client. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LiteLlm {
    http: reqwest::Client,
    /// Without the slash at its end.
    base: String,
    authorization: HeaderValue,
}

impl LiteLlm {
    /// `None` when no address is configured.
    ///
    /// # Errors
    /// When there can be no client.
    pub fn open(settings: &config::LiteLlm) -> Result<Option<LiteLlm>, String> {
        let (Some(url), Some(key)) = (&settings.url, &settings.master_key) else { return Ok(None) };
        let text = Zeroizing::new(format!("Bearer {}", key.expose_secret()));
        let mut authorization =
            HeaderValue::from_str(&text).map_err(|_| "litellm.master_key: must be plain text".to_owned())?;
        authorization.set_sensitive(true);
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
        Ok(Some(LiteLlm { http, base: url.trim_end_matches('/').to_owned(), authorization }))
    }

    /// Everything under names of ours.
    ///
    /// # Errors
    /// [`LiteLlmError`].
    pub async fn kept(&self) -> Result<Kept, LiteLlmError> {
        let mut kept = Kept::default();
        let body = self.expect(Method::GET, "/credentials", None, "list credentials").await?;
        for one in body["credentials"].as_array().ok_or(LiteLlmError::Unreadable)? {
            let Some(name) = one["credential_name"].as_str().and_then(Name::read) else { continue };
            let edition = serde_json::from_value(one["credential_info"]["platform_api"].clone()).unwrap_or_default();
            kept.credentials.insert(name, edition);
        }
        for page in 1..=PAGES_MAX {
            let path = format!("/key/aliases?search={PREFIX}&size={ALIASES_A_PAGE}&page={page}");
            let body = self.expect(Method::GET, &path, None, "list keys").await?;
            let aliases = body["aliases"].as_array().ok_or(LiteLlmError::Unreadable)?;
            kept.keys.extend(aliases.iter().filter_map(|alias| Name::read(alias.as_str()?)));
            if body["total_pages"].as_u64().unwrap_or(0) <= u64::from(page) {
                return Ok(kept);
            }
        }
        Err(LiteLlmError::Unreadable)
    }

    /// Writes a credential over the one there is.
    ///
    /// # Errors
    /// [`LiteLlmError`].
    pub async fn put_credential(
        &self,
        name: &Name,
        profile: &Profile,
        edition: &Edition,
        secret: &SecretString,
    ) -> Result<(), LiteLlmError> {
        let body = credential(name, profile, edition, secret);
        let action = "write a credential";
        let (status, _) = self.send(Method::POST, "/credentials", Some(&body)).await?;
        if status != StatusCode::CONFLICT {
            return done(status, action);
        }
        let body = patched(body);
        let (status, _) = self.send(Method::PATCH, &format!("/credentials/{name}"), Some(&body)).await?;
        done(status, action)
    }

    /// # Errors
    /// [`LiteLlmError`]; none when it was not there.
    pub async fn delete_credential(&self, name: &Name) -> Result<(), LiteLlmError> {
        let (status, _) = self.send(Method::DELETE, &format!("/credentials/{name}"), None).await?;
        if status == StatusCode::NOT_FOUND { Ok(()) } else { done(status, "delete a credential") }
    }

    /// Makes a virtual key for these models, every model when there are none. The only time that it is told.
    ///
    /// # Errors
    /// [`LiteLlmError`].
    pub async fn generate_key(&self, name: &Name, models: &[String]) -> Result<SecretString, LiteLlmError> {
        let metadata = json!({ "platform_api": { "tenant": name.tenant, "provider": name.provider } });
        let body = json!({ "key_alias": name.to_string(), "models": models, "metadata": metadata });
        let mut body = self.expect(Method::POST, "/key/generate", Some(&body), "make a key").await?;
        match body["key"].take() {
            Value::String(key) if !key.is_empty() => Ok(SecretString::from(key)),
            _ => Err(LiteLlmError::Unreadable),
        }
    }

    /// Narrows or widens a virtual key to these models.
    ///
    /// # Errors
    /// [`LiteLlmError`].
    pub async fn update_key(&self, name: &Name, models: &[String]) -> Result<(), LiteLlmError> {
        let body = json!({ "key_alias": name.to_string(), "models": models });
        self.expect(Method::POST, "/key/update", Some(&body), "change a key").await.map(drop)
    }

    /// # Errors
    /// [`LiteLlmError`]; none when it was not there.
    pub async fn delete_key(&self, name: &Name) -> Result<(), LiteLlmError> {
        let body = json!({ "key_aliases": [name.to_string()] });
        let (status, _) = self.send(Method::POST, "/key/delete", Some(&body)).await?;
        if status == StatusCode::NOT_FOUND { Ok(()) } else { done(status, "delete a key") }
    }

    async fn expect(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        action: &'static str,
    ) -> Result<Value, LiteLlmError> {
        let (status, body) = self.send(method, path, body).await?;
        done(status, action)?;
        body.ok_or(LiteLlmError::Unreadable)
    }

    /// The status, and the body when it is JSON.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Option<Value>), LiteLlmError> {
        let url = format!("{}{path}", self.base);
        let mut request = self.http.request(method, url).header(AUTHORIZATION, self.authorization.clone());
        if let Some(body) = body {
            request = request.json(body);
        }
        let away = |error: reqwest::Error| {
            LiteLlmError::Unreachable(match () {
                () if error.is_timeout() => "timed out",
                () if error.is_connect() => "could not connect",
                () => "the request failed",
            })
        };
        let mut answer = request.send().await.map_err(away)?;
        let status = answer.status();
        let mut bytes = Zeroizing::new(Vec::new());
        while let Some(chunk) = answer.chunk().await.map_err(away)? {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(LiteLlmError::Unreadable);
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok((status, serde_json::from_slice(&bytes).ok()))
    }
}

fn done(status: StatusCode, action: &'static str) -> Result<(), LiteLlmError> {
    if status.is_success() { Ok(()) } else { Err(LiteLlmError::Refused { action, status: status.as_u16() }) }
}

/// Values are merged: what a credential has not any more must be named, or the key would go where it went before, or go on
/// being used.
fn patched(mut credential: Value) -> Value {
    let mut gone = VALUES.to_vec();
    gone.retain(|value| credential["credential_values"].get(value).is_none());
    credential["credential_values_to_delete"] = json!(gone);
    credential
}

/// A credential as LiteLLM's models refer to it by `litellm_credential_name`.
fn credential(name: &Name, profile: &Profile, edition: &Edition, secret: &SecretString) -> Value {
    let aws = AwsCredentials::read(secret.expose_secret()).filter(|_| profile.kind == ProviderKind::Bedrock);
    let mut values = match &aws {
        None => json!({ "api_key": secret.expose_secret() }),
        Some(pair) => {
            let secret = pair.secret_access_key.expose_secret();
            json!({ "aws_access_key_id": pair.access_key_id, "aws_secret_access_key": secret })
        }
    };
    if let Some(token) = aws.as_ref().and_then(|pair| pair.session_token.as_ref()) {
        values["aws_session_token"] = json!(token.expose_secret());
    }
    if let Some(base_url) = &profile.base_url {
        values["api_base"] = json!(base_url);
    }
    let provider = match profile.kind {
        ProviderKind::OpenAi | ProviderKind::OpenAiCompatible | ProviderKind::LiteLlm => "openai",
        ProviderKind::Anthropic => "anthropic",
        ProviderKind::Google => "gemini",
        ProviderKind::Groq => "groq",
        ProviderKind::AzureOpenAi => {
            values["api_version"] = json!(profile.api_version.as_deref().unwrap_or(AZURE_API_VERSION));
            "azure"
        }
        ProviderKind::Bedrock => {
            values["aws_region_name"] = json!(profile.region);
            "bedrock"
        }
    };
    json!({
        "credential_name": name.to_string(),
        "credential_values": values,
        "credential_info": {
            "custom_llm_provider": provider,
            "platform_api": {
                "secretVersion": edition.secret_version,
                "fingerprint": edition.fingerprint,
                "version": edition.version,
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Name {
        Name { tenant: TenantId(uuid::Uuid::from_u128(1)), provider: ProviderId(uuid::Uuid::from_u128(2)) }
    }

    #[test]
    fn only_names_of_ours_are_ours() {
        let text = name().to_string();
        assert_eq!(text, "platform-api.00000000-0000-0000-0000-000000000001.00000000-0000-0000-0000-000000000002");
        assert_eq!(Name::read(&text), Some(name()));
        for text in ["", "openai", "platform-api.", "platform-api.x.y", &text[1..], &format!("{text}.z")] {
            assert_eq!(Name::read(text), None, "{text}");
        }
    }

    #[test]
    fn each_kind_is_written_in_litellm_s_words() {
        let edition = Edition { secret_version: 3, fingerprint: "f".into(), version: 5 };
        for (kind, provider) in [
            (ProviderKind::OpenAi, "openai"),
            (ProviderKind::Anthropic, "anthropic"),
            (ProviderKind::Google, "gemini"),
            (ProviderKind::Groq, "groq"),
            (ProviderKind::AzureOpenAi, "azure"),
            (ProviderKind::Bedrock, "bedrock"),
            (ProviderKind::OpenAiCompatible, "openai"),
        ] {
            let profile = Profile {
                name: "one".into(),
                kind,
                base_url: Some("https://x.example".into()),
                region: Some("eu".into()),
                api_version: None,
                active: true,
            };
            let written = credential(&name(), &profile, &edition, &SecretString::from("sk-canary"));
            assert_eq!(written["credential_info"]["custom_llm_provider"], provider);
            assert_eq!(written["credential_values"]["api_key"], "sk-canary");
            assert_eq!(written["credential_values"]["api_base"], "https://x.example");
            let read: Edition = serde_json::from_value(written["credential_info"]["platform_api"].clone()).unwrap();
            assert_eq!(read, edition);
            let patched = patched(written.clone());
            let gone = patched["credential_values_to_delete"].as_array().unwrap();
            let values = written["credential_values"].as_object().unwrap();
            assert!(
                VALUES.iter().all(|value| values.contains_key(*value) != gone.contains(&json!(value))),
                "{patched}"
            );
        }
    }

    #[test]
    fn an_access_key_is_written_in_the_place_of_an_api_key() {
        let profile = Profile {
            name: "one".into(),
            kind: ProviderKind::Bedrock,
            base_url: None,
            region: Some("eu-central-1".into()),
            api_version: None,
            active: true,
        };
        let (id, secret) = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
        for token in [None, Some("a-token-of-a-session")] {
            let pair = AwsCredentials {
                access_key_id: id.into(),
                secret_access_key: SecretString::from(secret),
                session_token: token.map(SecretString::from),
            };
            let written = credential(&name(), &profile, &Edition::default(), &pair.to_secret());
            let mut values = json!({
                "aws_access_key_id": id, "aws_secret_access_key": secret, "aws_region_name": "eu-central-1"
            });
            let mut gone = vec!["api_base", "api_version", "api_key"];
            match token {
                Some(token) => values["aws_session_token"] = json!(token),
                None => gone.push("aws_session_token"),
            }
            assert_eq!(written["credential_values"], values);
            assert_eq!(written["credential_info"]["custom_llm_provider"], "bedrock");
            assert_eq!(patched(written)["credential_values_to_delete"], json!(gone), "the key before is forgotten");
        }
    }
}
