//! Tokens that say nothing themselves: their issuer is asked whose they are (RFC 7662).
//!
//! An answer is used for a while, never beyond the token's own end, so a token that is revoked at its issuer may hold here for
//! as long as `cache_ms`. That a token is unknown is remembered too, for less. Who cannot be asked in time has not said yes:
//! the caller is told to come back, and nothing is remembered. Only so many questions are under way at once.

use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use super::claims;
use super::keyring::FetchError;
use super::provider::{Client, Provider};
use super::token::{Identity, Refusal, TOKEN_BYTES_MAX, check_times, digest_of, is_not_for_access};
use crate::clock::Clock;
use crate::config;
use crate::domain::time::Timestamp;

const REMEMBER_MAX: u64 = 10_000;
/// How long it is remembered that nobody knows a token.
const UNKNOWN_FOR: Duration = Duration::from_secs(10);
/// Questions under way at once, of all callers.
const QUESTIONS_MAX: usize = 32;
/// How long a caller waits for its turn to ask.
const TURN_TIMEOUT: Duration = Duration::from_secs(2);

struct Remembered {
    identity: std::sync::Arc<Identity>,
    until: Timestamp,
}

struct Asked {
    settings: config::Issuer,
    introspection: config::Introspection,
    provider: Provider,
}

/// Asks issuers about tokens, and remembers what they said.
pub(super) struct Introspector {
    issuers: Vec<Asked>,
    remembered: moka::sync::Cache<[u8; 32], std::sync::Arc<Remembered>>,
    unknown: moka::sync::Cache<[u8; 32], ()>,
    turns: Semaphore,
    clock: Clock,
}

impl Introspector {
    pub(super) fn new(issuers: &[config::Issuer], client: Option<&reqwest::Client>, clock: Clock) -> Introspector {
        let asked = |settings: &config::Issuer| {
            let introspection = settings.introspection.clone()?;
            let provider = Provider::new(&settings.issuer, client?.clone());
            Some(Asked { settings: settings.clone(), introspection, provider })
        };
        Introspector {
            issuers: issuers.iter().filter_map(asked).collect(),
            remembered: moka::sync::Cache::new(REMEMBER_MAX),
            unknown: moka::sync::Cache::builder().max_capacity(REMEMBER_MAX).time_to_live(UNKNOWN_FOR).build(),
            turns: Semaphore::new(QUESTIONS_MAX),
            clock,
        }
    }

    /// Is there anybody to ask?
    pub(super) fn is_configured(&self) -> bool {
        !self.issuers.is_empty()
    }

    /// Whose token it is. Waits when it was not asked about lately.
    pub(super) async fn verify(&self, token: &str) -> Result<std::sync::Arc<Identity>, Refusal> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::Form);
        }
        let digest = digest_of(token);
        if let Some(known) = self.remembered.get(&digest) {
            if self.clock.now() < known.until {
                return Ok(known.identity.clone());
            }
            self.remembered.invalidate(&digest);
        }
        // A token is shown to nobody but whoever may have made it.
        let mut makers: Vec<&Asked> = Vec::new();
        makers.extend(self.issuers.iter().filter(|one| token.starts_with(&one.introspection.token_prefix)));
        if makers.is_empty() || self.unknown.contains_key(&digest) {
            return Err(Refusal::Inactive);
        }
        let Ok(Ok(_turn)) = tokio::time::timeout(TURN_TIMEOUT, self.turns.acquire()).await else {
            return Err(Refusal::KeysUnavailable);
        };
        let mut unanswered = false;
        for issuer in makers {
            match issuer.ask(token).await {
                Ok(Some(claims)) => return self.adopt(digest, &claims, issuer),
                Ok(None) => {}
                Err(error) => {
                    unanswered = true;
                    tracing::warn!(issuer = issuer.settings.issuer, %error, "a token could not be looked up");
                }
            }
        }
        if unanswered {
            return Err(Refusal::KeysUnavailable);
        }
        self.unknown.insert(digest, ());
        Err(Refusal::Inactive)
    }

    fn adopt(
        &self,
        digest: [u8; 32],
        claims: &Map<String, Value>,
        issuer: &Asked,
    ) -> Result<std::sync::Arc<Identity>, Refusal> {
        let now = self.clock.now();
        let (identity, ends_at) = judge(claims, &issuer.settings, now)?;
        let identity = std::sync::Arc::new(identity);
        let micros = i64::try_from(issuer.introspection.cache_ms).unwrap_or(i64::MAX).saturating_mul(1_000);
        let until = ends_at.min(now.plus_micros(micros));
        self.remembered.insert(digest, std::sync::Arc::new(Remembered { identity: identity.clone(), until }));
        Ok(identity)
    }
}

impl Asked {
    /// What the issuer says of an active token.
    async fn ask(&self, token: &str) -> Result<Option<Map<String, Value>>, FetchError> {
        let config::Introspection { url, client_id, client_secret, .. } = &self.introspection;
        let url = match url {
            Some(url) => url.clone(),
            None => self.provider.metadata().await?.introspection_endpoint.clone().ok_or(FetchError::WrongPlace)?,
        };
        let client = Client { id: client_id, secret: Some(client_secret) };
        let form = [("token", token), ("token_type_hint", "access_token")];
        let answer: Map<String, Value> = self.provider.post(&url, &form, client).await?;
        let outcome = answer.get("active").and_then(Value::as_bool);
        let word = match outcome {
            Some(true) => "active",
            Some(false) => "inactive",
            None => "unreadable",
        };
        metrics::counter!("platform_api_token_introspections_total", "issuer" => self.settings.issuer.clone(), "outcome" => word)
            .increment(1);
        match outcome {
            Some(true) => Ok(Some(answer)),
            Some(false) => Ok(None),
            None => Err(FetchError::Json),
        }
    }
}

/// Whom an active token speaks for, and until when: it is to be an access token of this issuer's, for us.
fn judge(
    claims: &Map<String, Value>,
    settings: &config::Issuer,
    now: Timestamp,
) -> Result<(Identity, Timestamp), Refusal> {
    if claims.get("iss").is_some_and(|issuer| issuer.as_str() != Some(&settings.issuer)) {
        return Err(Refusal::UnknownIssuer);
    }
    let audience = settings.audience.as_str();
    let is_ours = match claims.get("aud") {
        Some(Value::String(one)) => one == audience,
        Some(Value::Array(all)) => all.iter().any(|one| one.as_str() == Some(audience)),
        _ => false,
    };
    if !is_ours {
        return Err(Refusal::Audience);
    }
    let kind = claims.get("token_type").and_then(Value::as_str);
    let is_access =
        kind.is_none_or(|kind| kind.eq_ignore_ascii_case("Bearer") || kind.eq_ignore_ascii_case("access_token"));
    // A token that is bound to its sender's key is none without that key.
    if !is_access || claims.contains_key("cnf") || is_not_for_access(claims) {
        return Err(Refusal::Claims);
    }
    // No end is told: then the answer holds for this once.
    let ends_at = if claims.contains_key("exp") { check_times(claims, now)? } else { now };
    let mut claims = claims.clone();
    if let Some(client) = claims.get("client_id").cloned() {
        // RFC 9068, 2.2: a token without a person behind it is its client's.
        claims.entry("sub").or_insert(client);
    }
    Ok((claims::identity(&claims, settings)?, ends_at))
}

#[cfg(test)]
mod tests {
    use super::super::issuer_peer::{AUDIENCE, IssuerPeer, Signer, settings};
    use super::super::keyring;
    use super::*;
    use crate::domain::time::MICROS_PER_SECOND;
    use serde_json::json;

    const TENANT: &str = "018f3a5e-0000-7000-8000-00000000000a";
    const NOW_SECONDS: i64 = 1_790_000_000;

    fn clock() -> Clock {
        Clock::held_at(Timestamp(NOW_SECONDS * MICROS_PER_SECOND))
    }

    async fn peer() -> IssuerPeer {
        let peer = IssuerPeer::start(&[&Signer::ed25519("d")]).await;
        peer.behave(|issuer| {
            issuer.offers = json!({"introspection_endpoint": format!("{}/introspect", issuer.own)});
        });
        peer
    }

    fn introspector(peers: &[&IssuerPeer], clock: &Clock) -> Introspector {
        let asked = |peer: &&IssuerPeer| {
            let introspection = json!({"client_id": "p:api", "client_secret": "s&cret"});
            let introspection = Some(serde_json::from_value(introspection).unwrap());
            config::Issuer { introspection, ..settings(&peer.url) }
        };
        let issuers: Vec<config::Issuer> = peers.iter().map(asked).collect();
        Introspector::new(&issuers, Some(&keyring::client().unwrap()), clock.clone())
    }

    fn active(peer: &IssuerPeer) -> Value {
        json!({"active": true, "iss": peer.url, "aud": AUDIENCE, "sub": "u-1", "exp": NOW_SECONDS + 600,
            "token_type": "Bearer", "tenant": TENANT, "roles": ["admin"]})
    }

    #[tokio::test]
    async fn an_opaque_token_is_its_issuer_s_to_explain_and_the_answer_is_used_for_a_while() {
        let (peer, clock) = (peer().await, clock());
        peer.answers("/introspect", 200, active(&peer));
        let introspector = introspector(&[&peer], &clock);
        for _ in 0..3 {
            let identity = introspector.verify("opaque").await.unwrap();
            assert_eq!((identity.subject.as_str(), identity.tenant), ("u-1", Some(TENANT.parse().unwrap())));
        }
        assert_eq!(peer.asked("/introspect"), 1);
        let request = peer.last("/introspect");
        assert!(request.ends_with("token=opaque&token_type_hint=access_token"), "{request}");
        // base64 of `p%3Aapi:s%26cret`.
        assert!(request.to_ascii_lowercase().contains("authorization: basic"), "{request}");
        assert!(request.contains("cCUzQWFwaTpzJTI2Y3JldA=="), "{request}");

        peer.answers("/introspect", 200, json!({"active": false}));
        clock.set(Timestamp((NOW_SECONDS + 30) * MICROS_PER_SECOND));
        assert_eq!(introspector.verify("opaque").await, Err(Refusal::Inactive), "revoked, after the cache's time");
        assert_eq!(introspector.verify("opaque").await, Err(Refusal::Inactive));
        assert_eq!(peer.asked("/introspect"), 2, "that nobody knows it is remembered");
    }

    #[tokio::test]
    async fn an_answer_is_never_used_beyond_the_token_s_end() {
        let (peer, clock) = (peer().await, clock());
        let mut short = active(&peer);
        short["exp"] = json!(NOW_SECONDS + 5);
        peer.answers("/introspect", 200, short.clone());
        let introspector = introspector(&[&peer], &clock);
        introspector.verify("short").await.unwrap();
        clock.set(Timestamp((NOW_SECONDS + 5) * MICROS_PER_SECOND));
        introspector.verify("short").await.unwrap();
        assert_eq!(peer.asked("/introspect"), 2, "within the leeway, and asked again");
        short.as_object_mut().unwrap().retain(|name, _| name != "exp" && name != "sub");
        short["client_id"] = json!("batch");
        peer.answers("/introspect", 200, short);
        for asked in 3..5 {
            assert_eq!(introspector.verify("endless").await.unwrap().subject, "batch", "nobody is behind it");
            assert_eq!(peer.asked("/introspect"), asked);
        }
    }

    #[tokio::test]
    async fn what_is_active_and_not_for_us_is_refused() {
        let (peer, clock) = (peer().await, clock());
        let introspector = introspector(&[&peer], &clock);
        let past = json!(NOW_SECONDS - 61);
        for (at, (name, value, expected)) in [
            ("aud", json!("urn:another"), Refusal::Audience),
            ("aud", Value::Null, Refusal::Audience),
            ("iss", json!("https://another.example"), Refusal::UnknownIssuer),
            ("exp", past, Refusal::Expired),
            ("nbf", json!(NOW_SECONDS + 61), Refusal::NotYetValid),
            ("sub", Value::Null, Refusal::Claims),
            ("token_type", json!("refresh_token"), Refusal::Claims),
            ("typ", json!("Refresh"), Refusal::Claims),
            ("token_use", json!("id"), Refusal::Claims),
            ("cnf", json!({"jkt": "x"}), Refusal::Claims),
            ("tenant", json!("acme"), Refusal::Claims),
        ]
        .into_iter()
        .enumerate()
        {
            let mut claims = active(&peer);
            claims[name] = value;
            peer.answers("/introspect", 200, claims);
            assert_eq!(introspector.verify(&format!("token-{at}")).await, Err(expected), "{name}");
        }
        let long = "x".repeat(TOKEN_BYTES_MAX + 1);
        assert_eq!(introspector.verify(&long).await, Err(Refusal::Form));
    }

    #[tokio::test]
    async fn a_token_is_shown_to_its_own_issuer_alone() {
        let (one, other, clock) = (peer().await, peer().await, clock());
        let asked = |peer: &IssuerPeer, prefix: &str| {
            let introspection = json!({"client_id": "c", "client_secret": "s", "token_prefix": prefix});
            let introspection = Some(serde_json::from_value(introspection).unwrap());
            config::Issuer { introspection, ..settings(&peer.url) }
        };
        let issuers = [asked(&one, "one_"), asked(&other, "other_")];
        let introspector = Introspector::new(&issuers, Some(&keyring::client().unwrap()), clock.clone());
        one.answers("/introspect", 200, active(&one));
        other.answers("/introspect", 200, active(&other));
        assert_eq!(introspector.verify("other_1").await.unwrap().issuer, other.url);
        assert_eq!((one.asked("/introspect"), other.asked("/introspect")), (0, 1));
        assert_eq!(introspector.verify("nobody_s").await, Err(Refusal::Inactive));
        assert_eq!((one.asked("/introspect"), other.asked("/introspect")), (0, 1));
    }

    #[tokio::test]
    async fn who_does_not_answer_has_not_said_yes_and_nothing_is_remembered() {
        let (silent, other, clock) = (peer().await, peer().await, clock());
        silent.answers("/introspect", 500, json!({}));
        other.answers("/introspect", 200, json!({"active": false}));
        let introspector = introspector(&[&silent, &other], &clock);
        assert_eq!(introspector.verify("opaque").await, Err(Refusal::KeysUnavailable));
        silent.answers("/introspect", 200, json!({"active": "true"}));
        assert_eq!(introspector.verify("opaque").await, Err(Refusal::KeysUnavailable), "not a yes");
        other.answers("/introspect", 200, active(&other));
        assert_eq!(introspector.verify("opaque").await.unwrap().issuer, other.url);
    }
}
