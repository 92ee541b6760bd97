//! `/v1/providers/{id}/secret`, `…/leases` and `…/test`: secrets that are given, taken away, lent and tried, and never read.

use std::borrow::Cow;

use poem_openapi::param::{Header, Path, Query};
use poem_openapi::registry::{MetaSchema, MetaSchemaRef};
use poem_openapi::types::{Example, ParseError, ParseFromJSON, ParseResult, ToJSON, Type};
use poem_openapi::{Object, OpenApi};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::authorize::Ask;
use super::body::{Strict, present};
use super::document::Tag;
use super::people::{home, id};
use super::precondition;
use super::problem::{Code, Problem};
use super::providers::{ProviderView, check_egress, render, reply, tell_litellm, vault};
use super::reply::Reply;
use super::view::instant;
use crate::clock;
use crate::domain::aws_credentials::AwsCredentials;
use crate::domain::ids::LeaseId;
use crate::domain::organization::Flaw;
use crate::domain::provider::{Lease, PURPOSE_CHARACTERS_MAX, ProviderKind, Refusal, is_line};
use crate::domain::request::Request;
use crate::domain::secret;
use crate::domain::time::MICROS_PER_SECOND;
use crate::json;
use crate::outlet::provider_probe::{Outcome, Tried};
use crate::tenant::provider::{DeleteSecret, GrantLease, NoteTest};
use crate::vault::desk;

/// How often a lease is tried while the secret is being replaced.
const TRIES: usize = 3;
const MODEL_BYTES_MAX: usize = 128;

pub(super) struct ProviderSecrets;

#[OpenApi(tag = "Tag::Providers")]
impl ProviderSecrets {
    /// Give a provider its secret
    ///
    /// Over the one it has. Kept encrypted and never shown again: answers show the last four characters and a fingerprint; of
    /// AWS credentials, the last four of the access key's id. A request repeated under its Idempotency-Key keeps nothing anew.
    #[oai(path = "/v1/providers/:id/secret", method = "put", operation_id = "putProviderSecret")]
    async fn put(
        &self,
        ask: Ask,
        /// The provider's id.
        #[oai(name = "id")]
        provider: Path<String>,
        /// The provider's ETag that was read, or `*`.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<SecretInput>,
    ) -> Result<Reply<ProviderView>, Problem> {
        let vault = vault(&ask)?;
        let expected = precondition::required(&ask)?;
        let (secret, is_of_aws) = body.0.checked()?;
        let provider = id(&provider, Code::ProviderNotFound)?;
        let home = home(&ask).await?;
        let kind = home.providers()?.get(provider).map(|found| found.profile.kind);
        if is_of_aws && kind.is_some_and(|kind| kind != ProviderKind::Bedrock) {
            return Err(Problem::field("/awsCredentials", "must be absent for this kind"));
        }
        if kind.is_some_and(ProviderKind::is_made_here) {
            return Err(Problem::new(Code::SecretMadeHere));
        }
        let request = unguessable(&ask);
        let answer = desk::keep(vault, &home, (provider, &secret), &expected, &request, |done| render(done)).await?;
        tell_litellm(&ask, &answer).await;
        Ok(reply(answer))
    }

    /// Revoke a provider's secret
    ///
    /// It is lent to nobody any more, and taken away from LiteLLM; whoever has borrowed it has it until its lease ends. For
    /// the kind `litellm` another virtual key is made. Revoke it at the provider as well.
    #[oai(path = "/v1/providers/:id/secret", method = "delete", operation_id = "deleteProviderSecret")]
    async fn delete(
        &self,
        ask: Ask,
        /// The provider's id.
        #[oai(name = "id")]
        provider: Path<String>,
        /// The provider's ETag that was read, or `*`.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<ProviderView>, Problem> {
        vault(&ask)?;
        let expected = precondition::required(&ask)?;
        let change = DeleteSecret { provider: id(&provider, Code::ProviderNotFound)?, expected };
        let answer = home(&ask).await?.change(change, ask.change(), |done| render(done)).await??;
        tell_litellm(&ask, &answer).await;
        Ok(reply(answer))
    }

    /// Borrow a provider's secret
    ///
    /// For a service that calls the provider itself. Purpose and end are in the tenant's audit chain before the secret is
    /// answered; at the end the borrower must have forgotten it. An answer repeated under the same Idempotency-Key does not
    /// show the secret.
    #[oai(path = "/v1/providers/:id/leases", method = "post", operation_id = "leaseProviderSecret")]
    async fn lease(
        &self,
        ask: Ask,
        /// The provider's id.
        #[oai(name = "id")]
        provider: Path<String>,
        /// Whose, for a service of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<LeaseInput>,
    ) -> Result<Reply<LeaseView, 201>, Problem> {
        let vault = vault(&ask)?;
        let LeaseInput { purpose, ttl_seconds, model } = body.0.checked(ask.api.lease_seconds_max)?;
        let provider = id(&provider, Code::ProviderNotFound)?;
        let home = home(&ask).await?;
        for _ in 0..TRIES {
            let books = home.providers()?;
            let found = books.get(provider).ok_or_else(|| Problem::new(Code::ProviderNotFound))?;
            check_egress(&books, &found.profile)?;
            let (secret, secret_version) = desk::reveal(vault, home.tenant(), &books, found).await?;
            let now = ask.api.clock.now();
            let lease = Lease {
                id: LeaseId(clock::new_id()),
                provider,
                secret_version,
                actor: ask.change().actor,
                purpose: purpose.clone(),
                model: model.clone(),
                granted_at: now,
                expires_at: now.plus_micros(i64::from(ttl_seconds) * MICROS_PER_SECOND),
            };
            let change = GrantLease { lease };
            match home.change(change, ask.change(), render_without_secret).await? {
                Err(declined) if desk::is_outdated(&declined) => {}
                told => {
                    return Ok(Reply::of(told?, |lease| {
                        metrics::counter!("platform_api_provider_leases_total").increment(1);
                        LeaseView::of(&lease, Some(secret))
                    }));
                }
            }
        }
        Err(Refusal::KeyChanged.into())
    }

    /// Try a provider with its secret
    ///
    /// Asks for its models, which costs nothing. Tells one word and how long it took; no part of the provider's answer. Only
    /// public addresses are connected to, redirects are not followed. One provider is tried at most every two seconds.
    #[oai(path = "/v1/providers/:id/test", method = "post", operation_id = "testProvider")]
    async fn test(
        &self,
        ask: Ask,
        /// The provider's id.
        #[oai(name = "id")]
        provider: Path<String>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<ProviderTest>, Problem> {
        let vault = vault(&ask)?;
        let provider = id(&provider, Code::ProviderNotFound)?;
        let home = home(&ask).await?;
        let books = home.providers()?;
        let found = books.get(provider).ok_or_else(|| Problem::new(Code::ProviderNotFound))?;
        check_egress(&books, &found.profile)?;
        let (secret, _) = desk::reveal(vault, home.tenant(), &books, found).await?;
        let tried = ask.api.probe.test(provider, &found.profile, &secret).await?;
        drop(secret);
        let view = ProviderTest::of(&tried);
        let answer = serde_json::to_string(&view).unwrap_or_default();
        let note = NoteTest { id: provider, outcome: tried.outcome.name(), answer };
        Ok(Reply::of(home.change(note, ask.change(), String::clone).await??, |_| view))
    }
}

/// The request, with a body hash that nobody can guess secrets by: it is kept with the idempotency key.
fn unguessable(ask: &Ask) -> Request {
    let mut request = ask.change();
    if let Some(idempotency) = &mut request.idempotency {
        let hex: String = idempotency.body_hash.iter().map(|byte| format!("{byte:02x}")).collect();
        idempotency.body_hash = ask.api.gate.pepper().hash(&format!("secret body {hex}"));
    }
    request
}

/// What is stored with an idempotency key: everything but the secret.
fn render_without_secret(lease: &Lease) -> String {
    serde_json::to_string(&LeaseView::of(lease, None)).unwrap_or_default()
}

/// A secret in a body or an answer: a string there, and shown nowhere else.
#[derive(Debug, Clone)]
pub(super) struct SecretText(SecretString);

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SecretText, D::Error> {
        SecretString::deserialize(deserializer).map(SecretText)
    }
}

impl Serialize for SecretText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose_secret())
    }
}

impl Type for SecretText {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        "string_password".into()
    }

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Inline(Box::new(MetaSchema::new_with_format("string", "password")))
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(std::iter::once(self))
    }
}

impl ToJSON for SecretText {
    fn to_json(&self) -> Option<Value> {
        Some(Value::String(self.0.expose_secret().to_owned()))
    }
}

impl ParseFromJSON for SecretText {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        match value {
            Some(Value::String(text)) => Ok(SecretText(SecretString::from(text))),
            _ => Err(ParseError::expected_input()),
        }
    }
}

/// A secret to keep: an API key or, of `bedrock`, AWS credentials. One of the two.
#[derive(Debug, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "ProviderSecretInput", rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct SecretInput {
    /// The provider's API key: 16 to 4096 visible ASCII characters. Of `bedrock`, a Bedrock API key.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    secret: Option<SecretText>,
    /// Of `bedrock`, instead of an API key; the region is the provider's.
    #[serde(default, deserialize_with = "present_credentials", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    aws_credentials: Option<AwsCredentialsView>,
}

impl SecretInput {
    /// The secret as it is kept, and whether it is of AWS.
    fn checked(self) -> Result<(SecretString, bool), Problem> {
        match (self.secret, self.aws_credentials) {
            (Some(SecretText(secret)), None) => match secret::problem(secret.expose_secret()) {
                Some(problem) => Err(Problem::field("/secret", problem)),
                None if AwsCredentials::read(secret.expose_secret()).is_some() => {
                    Err(Problem::field("/secret", "must be an API key; AWS credentials are given as awsCredentials"))
                }
                None => Ok((secret, false)),
            },
            (None, Some(view)) => {
                let credentials = view.credentials();
                let flaws = credentials.flaws();
                if flaws.is_empty() { Ok((credentials.to_secret(), true)) } else { Err(Problem::flaws(flaws)) }
            }
            (Some(_), Some(_)) => Err(Problem::field("/awsCredentials", "must be absent where secret is given")),
            (None, None) => Err(Problem::field("/secret", "is required, or awsCredentials")),
        }
    }
}

/// As [`present`], for credentials: what is wrong is told without any of it.
fn present_credentials<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<AwsCredentialsView>, D::Error> {
    let told = "must be an object of accessKeyId, secretAccessKey and, of a temporary key, sessionToken";
    json::object(deserializer).map(Some).map_err(|_| serde::de::Error::custom(told))
}

/// An access key of AWS.
#[derive(Debug, Clone, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename = "AwsCredentials", rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AwsCredentialsView {
    /// 16 to 128 upper-case letters and digits.
    access_key_id: String,
    /// 16 to 128 letters, digits, or `+ / =`.
    secret_access_key: SecretText,
    /// Required for a temporary key, whose id begins with `ASIA`.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    session_token: Option<SecretText>,
}

impl AwsCredentialsView {
    fn of(credentials: AwsCredentials) -> AwsCredentialsView {
        let AwsCredentials { access_key_id, secret_access_key, session_token } = credentials;
        let (secret_access_key, session_token) = (SecretText(secret_access_key), session_token.map(SecretText));
        AwsCredentialsView { access_key_id, secret_access_key, session_token }
    }

    fn credentials(self) -> AwsCredentials {
        AwsCredentials {
            access_key_id: self.access_key_id,
            secret_access_key: self.secret_access_key.0,
            session_token: self.session_token.map(|token| token.0),
        }
    }
}

/// What a secret is borrowed for.
#[derive(Debug, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct LeaseInput {
    /// For people who read the audit chain: 1 to 200 characters.
    purpose: String,
    /// From 1 to `vault.lease_seconds_max`, 3600 unless configured.
    ttl_seconds: u32,
    /// Refused when the tenant's policy does not have it.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    model: Option<String>,
}

impl LeaseInput {
    fn checked(self, seconds_max: u32) -> Result<LeaseInput, Problem> {
        let mut flaws = Vec::new();
        if !is_line(&self.purpose, PURPOSE_CHARACTERS_MAX) {
            let message = "must be 1 to 200 characters, none of them a control character, without space at the ends";
            flaws.push(Flaw::new("/purpose", message));
        }
        if !(1..=seconds_max).contains(&self.ttl_seconds) {
            flaws.push(Flaw::new("/ttlSeconds", format!("must be from 1 to {seconds_max}")));
        }
        if self.model.as_ref().is_some_and(|model| model.is_empty() || model.len() > MODEL_BYTES_MAX) {
            flaws.push(Flaw::new("/model", "must be 1 to 128 bytes"));
        }
        if flaws.is_empty() { Ok(self) } else { Err(Problem::flaws(flaws)) }
    }
}

/// A secret that was lent.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "ProviderLease", rename_all = "camelCase", example)]
pub(super) struct LeaseView {
    id: String,
    provider_id: String,
    secret_version: i64,
    purpose: String,
    granted_at: String,
    /// When the borrower must have forgotten it.
    expires_at: String,
    /// Shown once: absent when the answer is a repeated one, and when `awsCredentials` are lent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    secret: Option<SecretText>,
    /// Of a `bedrock` provider that has them instead of an API key. Shown once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    aws_credentials: Option<AwsCredentialsView>,
}

impl LeaseView {
    fn of(lease: &Lease, secret: Option<SecretString>) -> LeaseView {
        let aws_credentials = secret.as_ref().and_then(|secret| AwsCredentials::read(secret.expose_secret()));
        let secret = secret.filter(|_| aws_credentials.is_none());
        LeaseView {
            id: lease.id.to_string(),
            provider_id: lease.provider.to_string(),
            secret_version: lease.secret_version,
            purpose: lease.purpose.clone(),
            granted_at: instant(lease.granted_at),
            expires_at: instant(lease.expires_at),
            secret: secret.map(SecretText),
            aws_credentials: aws_credentials.map(AwsCredentialsView::of),
        }
    }
}

/// What came of a try.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example)]
pub(super) struct ProviderTest {
    /// It knows the key.
    ok: bool,
    /// `connected`, `keyRefused`, `unexpected`, `rateLimited`, `serverError`, `redirected`, `addressRefused`, `timedOut` or
    /// `unreachable`.
    outcome: String,
    duration_ms: i64,
}

impl ProviderTest {
    fn of(tried: &Tried) -> ProviderTest {
        ProviderTest {
            ok: tried.outcome == Outcome::Connected,
            outcome: tried.outcome.name().to_owned(),
            duration_ms: i64::try_from(tried.took.as_millis()).unwrap_or(i64::MAX),
        }
    }
}

impl Example for SecretInput {
    fn example() -> SecretInput {
        let secret = Some(SecretText(SecretString::from("the provider's API key")));
        SecretInput { secret, aws_credentials: None }
    }
}

impl Example for LeaseInput {
    fn example() -> LeaseInput {
        LeaseInput { purpose: "inference gateway, node 3".into(), ttl_seconds: 300, model: Some("gpt-4o".into()) }
    }
}

impl Example for LeaseView {
    fn example() -> LeaseView {
        LeaseView {
            id: "0199a8b2-5c00-7abc-8def-0123456789ab".into(),
            provider_id: "0199a8b2-5c00-7abc-8def-0123456789ac".into(),
            secret_version: 1,
            purpose: "inference gateway, node 3".into(),
            granted_at: "2026-11-20T15:37:12.345Z".into(),
            expires_at: "2026-11-20T15:42:12.345Z".into(),
            secret: Some(SecretText(SecretString::from("shown here once"))),
            aws_credentials: None,
        }
    }
}

impl Example for ProviderTest {
    fn example() -> ProviderTest {
        ProviderTest { ok: true, outcome: "connected".into(), duration_ms: 212 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_shown_by_nothing_but_its_answer() {
        let view = LeaseView { secret: Some(SecretText(SecretString::from("sk-canary"))), ..LeaseView::example() };
        assert!(!format!("{view:?}").contains("canary"));
        assert!(serde_json::to_string(&view).unwrap().contains("canary"));
        let input: SecretInput = serde_json::from_str(r#"{"secret": "sk-canary"}"#).unwrap();
        assert!(!format!("{input:?}").contains("canary"));
        let pair = r#"{"accessKeyId":"AKIAIOSFODNN7EXAMPLE","secretAccessKey":"wJalrXUtnFEMI/K7MDENG+canary"}"#;
        let input: SecretInput = serde_json::from_str(&format!(r#"{{"awsCredentials": {pair}}}"#)).unwrap();
        assert!(!format!("{input:?}").contains("canary"));
        let (kept, is_of_aws) = input.checked().unwrap();
        assert!(is_of_aws && AwsCredentials::read(kept.expose_secret()).is_some());
        for body in [r#"{"awsCredentials": "canary"}"#, r#"{"awsCredentials": ["AKIAIOSFODNN7EXAMPLE", "canary"]}"#] {
            let refused = serde_json::from_str::<SecretInput>(body).unwrap_err().to_string();
            assert!(!refused.contains("canary"), "{refused}");
        }
    }

    #[test]
    fn a_lease_says_what_for_and_how_long() {
        let lease = |purpose: &str, ttl_seconds, model: Option<&str>| {
            let input = LeaseInput { purpose: purpose.into(), ttl_seconds, model: model.map(str::to_owned) };
            input.checked(60).err().map_or(0, |problem| problem.details["fields"].as_array().unwrap().len())
        };
        assert_eq!(lease("inference", 60, Some("gpt-4o")), 0);
        assert_eq!(lease("inference", 1, None), 0);
        assert_eq!(lease(" inference", 61, Some("")), 3);
        assert_eq!(lease("", 0, None), 2);
        assert_eq!(lease(&"x".repeat(201), 1, None), 1);
    }
}
