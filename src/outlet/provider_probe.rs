//! Tries a tenant's LLM provider: one request that costs nothing, past the guard of [`egress`](super::egress).
//!
//! The address is the tenant's word, so whoever asks learns one word of ours and how long it took: no status of its own
//! choosing, no header and no byte of the answer. The key is sent to the host of its provider alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::aws_signature::{Scope, sign_get};
use super::egress;
use crate::clock::Clock;
use crate::domain::aws_credentials::AwsCredentials;
use crate::domain::ids::ProviderId;
use crate::domain::provider::policy::Policy;
use crate::domain::provider::{AZURE_API_VERSION, Profile, ProviderKind};
use crate::domain::time::Timestamp;

/// Between two tests of one provider.
const TEST_PAUSE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(5);
/// The version of Anthropic's API that lists models.
const ANTHROPIC_VERSION: &str = "2023-06-01";

/// What came of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It knows the key.
    Connected,
    /// It answered, and does not take the key.
    KeyRefused,
    /// It is not what it is said to be: nothing at this address, or another refusal.
    Unexpected,
    /// It asks for patience.
    RateLimited,
    /// It has a fault of its own.
    ServerError,
    /// It sent us elsewhere, and we did not go.
    Redirected,
    /// Its name leads to an address that may not be connected to.
    AddressRefused,
    TimedOut,
    Unreachable,
}

impl Outcome {
    pub const ALL: [Outcome; 9] = [
        Outcome::Connected,
        Outcome::KeyRefused,
        Outcome::Unexpected,
        Outcome::RateLimited,
        Outcome::ServerError,
        Outcome::Redirected,
        Outcome::AddressRefused,
        Outcome::TimedOut,
        Outcome::Unreachable,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Connected => "connected",
            Outcome::KeyRefused => "keyRefused",
            Outcome::Unexpected => "unexpected",
            Outcome::RateLimited => "rateLimited",
            Outcome::ServerError => "serverError",
            Outcome::Redirected => "redirected",
            Outcome::AddressRefused => "addressRefused",
            Outcome::TimedOut => "timedOut",
            Outcome::Unreachable => "unreachable",
        }
    }

    fn of(status: StatusCode) -> Outcome {
        match status.as_u16() {
            200..=299 => Outcome::Connected,
            300..=399 => Outcome::Redirected,
            401 | 403 => Outcome::KeyRefused,
            429 => Outcome::RateLimited,
            500..=599 => Outcome::ServerError,
            _ => Outcome::Unexpected,
        }
    }
}

/// A try, over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tried {
    pub outcome: Outcome,
    pub took: Duration,
}

/// It was tried just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooSoon {
    pub again_after: Duration,
}

/// What is wrong with a provider's base URL, if anything.
#[must_use]
pub fn url_problem(url: &str, allow_private: bool) -> Option<String> {
    if let Some(problem) = egress::problem(url, allow_private) {
        return Some(problem.replace("allow_private_addresses", "vault.allow_private_addresses"));
    }
    let parsed = Url::parse(url).ok()?;
    if parsed.query().is_some() {
        return Some("must not have a query".into());
    }
    if url.ends_with('/') || url.chars().any(|letter| letter.is_whitespace() || letter.is_control()) {
        return Some("must not end with a slash, nor hold spaces".into());
    }
    (!is_plain(url)).then(|| {
        "must be written in its plain form: host in lower case, no backslash, no default port, no `.` or `..` in its path"
            .into()
    })
}

/// Does every reader of URLs take it for the same one? Whoever uses the key parses the text again, by other rules than ours:
/// to us a backslash is a slash and ends the host's name, to others it does not. What our parser writes back as it was given
/// leaves nothing to interpret.
fn is_plain(url: &str) -> bool {
    Url::parse(url).is_ok_and(|parsed| {
        let written = parsed.as_str();
        written == url || written.strip_suffix('/') == Some(url)
    })
}

/// May the tenant's keys be sent to this provider's host: a home of its kind, or one that the policy allows? A profile that
/// was stored under other rules and cannot be read in one way alone leads nowhere.
#[must_use]
pub fn host_is_allowed(policy: &Policy, profile: &Profile) -> bool {
    match address(profile) {
        Some((host, port)) => profile.kind.is_home(&host, port) || policy.allows_host(&host, port),
        None => profile.kind.is_made_here(),
    }
}

/// Host and port that a provider's key would be sent to; `None` when its URL cannot be read, and for the platform's own
/// LiteLLM.
#[must_use]
pub fn address(profile: &Profile) -> Option<(String, u16)> {
    let url = Url::parse(&base_url(profile)?).ok()?;
    Some((url.host_str()?.to_owned(), url.port_or_known_default()?))
}

/// `None` for the platform's own LiteLLM, whose address is the operator's, and for what is not plainly written.
fn base_url(profile: &Profile) -> Option<String> {
    if let ProviderKind::Bedrock = profile.kind {
        return Some(format!("https://bedrock.{}.amazonaws.com", profile.region.as_deref()?));
    }
    match &profile.base_url {
        Some(url) => is_plain(url).then(|| url.clone()),
        None => profile.kind.base_url().map(str::to_owned),
    }
}

/// Where its models are listed, and the headers that carry the key, or a signature by it at `now`; `base` when the provider
/// has no address of its own.
fn question(profile: &Profile, base: Option<&str>, secret: &SecretString, now: Timestamp) -> Option<(Url, HeaderMap)> {
    let path = match profile.kind {
        ProviderKind::OpenAi | ProviderKind::Groq | ProviderKind::OpenAiCompatible => "/models".to_owned(),
        ProviderKind::Anthropic => "/v1/models".to_owned(),
        ProviderKind::Google => "/v1beta/models".to_owned(),
        ProviderKind::AzureOpenAi => {
            format!("/openai/models?api-version={}", profile.api_version.as_deref().unwrap_or(AZURE_API_VERSION))
        }
        ProviderKind::Bedrock => "/foundation-models".to_owned(),
        ProviderKind::LiteLlm => "/v1/models".to_owned(),
    };
    let (name, scheme) = match profile.kind {
        ProviderKind::Anthropic => ("x-api-key", ""),
        ProviderKind::Google => ("x-goog-api-key", ""),
        ProviderKind::AzureOpenAi => ("api-key", ""),
        ProviderKind::OpenAi
        | ProviderKind::Groq
        | ProviderKind::OpenAiCompatible
        | ProviderKind::Bedrock
        | ProviderKind::LiteLlm => ("authorization", "Bearer "),
    };
    let base = base_url(profile).or_else(|| base.map(str::to_owned))?;
    let url = Url::parse(&format!("{}{path}", base.trim_end_matches('/'))).ok()?;
    if let (ProviderKind::Bedrock, Some(region)) = (profile.kind, &profile.region)
        && let Some(credentials) = AwsCredentials::read(secret.expose_secret())
    {
        let headers = sign_get(&url, Scope { region, service: "bedrock" }, &credentials, now)?;
        return Some((url, headers));
    }
    let text = Zeroizing::new(format!("{scheme}{}", secret.expose_secret()));
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static(name), value);
    if profile.kind == ProviderKind::Anthropic {
        headers.insert("anthropic-version", HeaderValue::from_static(ANTHROPIC_VERSION));
    }
    Some((url, headers))
}

/// Tries providers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Probe {
    http: reqwest::Client,
    allow_private: bool,
    /// The platform's own LiteLLM, and a client for it: the operator may keep it anywhere.
    litellm: Option<(String, reqwest::Client)>,
    last_tests: Arc<Mutex<HashMap<ProviderId, Instant>>>,
}

impl Probe {
    /// # Errors
    /// When there can be no client.
    pub fn open(allow_private: bool, litellm: Option<&str>) -> Result<Probe, String> {
        let litellm = litellm.map(|url| Ok::<_, String>((url.to_owned(), egress::client(true)?))).transpose()?;
        Ok(Probe { http: egress::client(allow_private)?, allow_private, litellm, last_tests: Arc::default() })
    }

    /// May providers be at private addresses?
    #[must_use]
    pub fn allows_private(&self) -> bool {
        self.allow_private
    }

    /// Asks for the provider's models with its key.
    ///
    /// # Errors
    /// [`TooSoon`]: nothing was sent.
    pub async fn test(&self, id: ProviderId, profile: &Profile, secret: &SecretString) -> Result<Tried, TooSoon> {
        self.take_turn(id)?;
        let began = Instant::now();
        let outcome = self.ask(profile, secret).await;
        Ok(Tried { outcome, took: began.elapsed() })
    }

    async fn ask(&self, profile: &Profile, secret: &SecretString) -> Outcome {
        let ours = self.litellm.as_ref().filter(|_| profile.kind == ProviderKind::LiteLlm);
        let base = ours.map(|(url, _)| url.as_str());
        let Some((url, headers)) = question(profile, base, secret, Clock::system().now()) else {
            return Outcome::Unreachable;
        };
        // The URL may have been stored under other rules.
        if ours.is_none() && egress::problem(url.as_str(), self.allow_private).is_some() {
            return Outcome::AddressRefused;
        }
        let http = ours.map_or(&self.http, |(_, http)| http);
        let asking = async {
            let answer = http.get(url).headers(headers).send().await?;
            let status = answer.status();
            egress::forget(answer).await;
            Ok::<StatusCode, reqwest::Error>(status)
        };
        match tokio::time::timeout(PATIENCE, asking).await {
            Err(_) => Outcome::TimedOut,
            Ok(Ok(status)) => Outcome::of(status),
            Ok(Err(error)) if egress::is_not_public(&error) => Outcome::AddressRefused,
            Ok(Err(error)) if error.is_timeout() => Outcome::TimedOut,
            Ok(Err(_)) => Outcome::Unreachable,
        }
    }

    fn take_turn(&self, id: ProviderId) -> Result<(), TooSoon> {
        let now = Instant::now();
        let mut last = self.last_tests.lock().unwrap_or_else(PoisonError::into_inner);
        last.retain(|_, at| now - *at < TEST_PAUSE);
        if let Some(again_after) = last.get(&id).and_then(|at| TEST_PAUSE.checked_sub(now - *at)) {
            return Err(TooSoon { again_after });
        }
        last.insert(id, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_440_938_160_000_000);

    fn profile(kind: ProviderKind, base_url: Option<&str>) -> Profile {
        let region = (kind == ProviderKind::Bedrock).then(|| "eu-central-1".to_owned());
        Profile {
            name: "one".into(),
            kind,
            base_url: base_url.map(str::to_owned),
            region,
            api_version: None,
            active: true,
        }
    }

    #[test]
    fn each_kind_is_asked_at_its_own_address_with_a_header_that_is_not_shown() {
        let azure = Some("https://acme.openai.azure.com");
        let own = Some("https://llm.example.com:8443/v1");
        for (kind, base, url, header) in [
            (ProviderKind::OpenAi, None, "https://api.openai.com/v1/models", "authorization"),
            (ProviderKind::Groq, None, "https://api.groq.com/openai/v1/models", "authorization"),
            (ProviderKind::Anthropic, None, "https://api.anthropic.com/v1/models", "x-api-key"),
            (ProviderKind::Google, None, "https://generativelanguage.googleapis.com/v1beta/models", "x-goog-api-key"),
            (
                ProviderKind::AzureOpenAi,
                azure,
                "https://acme.openai.azure.com/openai/models?api-version=2024-10-21",
                "api-key",
            ),
            (
                ProviderKind::Bedrock,
                None,
                "https://bedrock.eu-central-1.amazonaws.com/foundation-models",
                "authorization",
            ),
            (ProviderKind::OpenAiCompatible, own, "https://llm.example.com:8443/v1/models", "authorization"),
        ] {
            let profile = profile(kind, base);
            let (asked, headers) = question(&profile, None, &SecretString::from("sk-canary"), NOW).unwrap();
            assert_eq!(asked.as_str(), url);
            assert!(headers[header].to_str().unwrap().ends_with("sk-canary") && headers[header].is_sensitive());
            assert!(!format!("{headers:?}").contains("canary"), "{headers:?}");
            let (host, port) = address(&profile).unwrap();
            assert_eq!((asked.host_str(), asked.port_or_known_default()), (Some(host.as_str()), Some(port)));
            assert!(kind == ProviderKind::OpenAiCompatible || kind.is_home(&host, port), "{url}");
        }
    }

    #[test]
    fn an_access_key_signs_for_its_region_and_is_not_sent() {
        let pair = r#"{"accessKeyId":"ASIAIOSFODNN7EXAMPLE","secretAccessKey":"wJalrXUtnFEMI/K7MDENG+canary","sessionToken":"canary-0123456789"}"#;
        let bedrock = profile(ProviderKind::Bedrock, None);
        let (url, headers) = question(&bedrock, None, &SecretString::from(pair), NOW).unwrap();
        assert_eq!(url.as_str(), "https://bedrock.eu-central-1.amazonaws.com/foundation-models");
        let authorization = headers["authorization"].to_str().unwrap();
        let reach = "ASIAIOSFODNN7EXAMPLE/20150830/eu-central-1/bedrock/aws4_request";
        let signed = "host;x-amz-date;x-amz-security-token";
        let start = format!("AWS4-HMAC-SHA256 Credential={reach}, SignedHeaders={signed}, Signature=");
        assert!(authorization.starts_with(&start) && !authorization.contains("canary"), "{authorization}");
        assert!(!format!("{headers:?}").contains("canary"), "{headers:?}");
    }

    #[test]
    fn an_address_of_the_platform_s_own_network_is_refused_in_every_spelling() {
        for url in [
            "https://127.0.0.1/v1",
            "https://2130706433/v1",
            "https://0x7f.1/v1",
            "https://0177.0.0.1/v1",
            "https://[::1]/v1",
            "https://[::ffff:169.254.169.254]/v1",
            "https://[64:ff9b::a9fe:a9fe]/v1",
            "https://169.254.169.254/latest",
            "https://10.0.0.8/v1",
            "https://localhost/v1",
            "https://metadata.google.internal/v1",
            "https://redis/v1",
            "http://llm.example.com/v1",
            "https://user:pass@llm.example.com/v1",
            "https://llm.example.com/v1#x",
            "https://llm.example.com/v1?x=y",
            "https://llm.example.com/v1/",
            "file:///etc/passwd",
            "gopher://llm.example.com",
            "",
        ] {
            assert!(url_problem(url, false).is_some(), "{url}");
        }
        for url in ["https://llm.example.com/v1", "https://llm.example.com", "https://llm.example.com:8443/a/b-c_d"] {
            assert_eq!(url_problem(url, false), None, "{url}");
        }
        assert_eq!(url_problem("http://127.0.0.1:1/v1", true), None);
    }

    #[tokio::test]
    async fn a_name_that_leads_inside_is_refused_when_it_is_connected_to_and_not_asked_twice_at_once() {
        let probe = Probe::open(false, None).unwrap();
        let (id, secret) = (ProviderId(crate::clock::new_id()), SecretString::from("sk-canary"));
        // As if it had been stored under other rules.
        let inside = profile(ProviderKind::OpenAiCompatible, Some("https://localhost:1/v1"));
        assert_eq!(probe.test(id, &inside, &secret).await.unwrap().outcome, Outcome::AddressRefused);
        assert!(probe.test(id, &inside, &secret).await.is_err());
        // What only the resolver can judge.
        let sent = probe.http.get("https://localhost:1/v1/models").send().await.unwrap_err();
        assert!(egress::is_not_public(&sent));
        let lenient = Probe::open(true, None).unwrap();
        let closed = profile(ProviderKind::OpenAiCompatible, Some("http://127.0.0.1:1/v1"));
        assert_eq!(lenient.test(id, &closed, &secret).await.unwrap().outcome, Outcome::Unreachable);
    }

    #[test]
    fn an_address_that_others_may_read_differently_is_refused_and_leads_nowhere() {
        let policy = Policy::default();
        for url in [
            r"https://api.openai.com\@evil.example.com/v1",
            r"https://api.openai.com\.evil.example.com",
            "https:api.openai.com/v1",
            "https:///api.openai.com/v1",
            "https://api.openai.com/v1/../../x",
            "https://API.openai.com/v1",
            "https://api.openai.com:443/v1",
            "https://api%2eopenai.com/v1",
        ] {
            assert!(url_problem(url, false).is_some_and(|problem| problem.contains("plain form")), "{url}");
            let stored = profile(ProviderKind::OpenAi, Some(url));
            assert_eq!(address(&stored), None, "{url}");
            assert!(!host_is_allowed(&policy, &stored), "{url}");
            assert!(question(&stored, None, &SecretString::from("sk-canary"), NOW).is_none(), "{url}");
        }
        assert!(host_is_allowed(&policy, &profile(ProviderKind::OpenAi, Some("https://api.openai.com/v1"))));
        assert!(host_is_allowed(&policy, &profile(ProviderKind::LiteLlm, None)));
        assert!(!host_is_allowed(&policy, &profile(ProviderKind::OpenAi, Some("https://llm.example.com/v1"))));
    }

    #[test]
    fn a_status_is_told_as_one_of_our_words() {
        for (status, outcome) in [
            (200, Outcome::Connected),
            (302, Outcome::Redirected),
            (401, Outcome::KeyRefused),
            (403, Outcome::KeyRefused),
            (404, Outcome::Unexpected),
            (418, Outcome::Unexpected),
            (429, Outcome::RateLimited),
            (503, Outcome::ServerError),
        ] {
            assert_eq!(Outcome::of(StatusCode::from_u16(status).unwrap()), outcome, "{status}");
        }
        let names: std::collections::BTreeSet<&str> = Outcome::ALL.into_iter().map(Outcome::name).collect();
        assert_eq!(names.len(), Outcome::ALL.len());
    }
}
