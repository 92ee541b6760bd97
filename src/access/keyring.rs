//! An issuer's signing keys: fetched from its JWKS, kept while it is away, asked for again at a bounded pace.
//!
//! A known key is found without waiting. The set is read again in the background when it is older than
//! [`REFRESH_AFTER`]; a key id that is not in it is worth one fetch, but there is at most one per [`FETCH_EVERY`] and
//! one at a time, however many tokens with invented key ids arrive. When the issuer does not answer, the last good set
//! holds for [`KEEP_FOR`]; after that "we cannot tell" is the answer, never "your token is wrong".

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config;

/// A set older than this is read again in the background by whoever uses it next.
pub(super) const REFRESH_AFTER: Duration = Duration::from_secs(300);
/// An issuer is asked at most this often.
pub(super) const FETCH_EVERY: Duration = Duration::from_secs(30);
/// How long the last good set is used when the issuer does not answer.
pub(super) const KEEP_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a key id is remembered that a fetch did not bring.
const UNKNOWN_FOR: Duration = Duration::from_secs(60);
const UNKNOWN_MAX: u64 = 1_000;
/// One request to the issuer, body included.
const FETCH_TIMEOUT: Duration = Duration::from_secs(3);
const BODY_BYTES_MAX: usize = 256 * 1024;
const KEYS_MAX: usize = 100;
/// Shorter RSA keys are no longer safe, and longer ones only slow.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=8_192;

/// One public key and the only algorithm it is used with.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) algorithm: Algorithm,
    pub(super) decoding: DecodingKey,
}

/// A key with the generation of the set it was found in.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) key: Arc<Key>,
    pub(super) generation: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// The issuer has no such key.
    Unknown,
    /// The issuer does not answer, and nothing we still trust has the key.
    Unavailable,
}

/// Why an issuer's answer is of no use. For logs: texts of ours, none of the issuer's.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("the request failed: {0}")]
    Request(#[source] reqwest::Error),
    #[error("the answer's status is {0}")]
    Status(u16),
    #[error("the answer is longer than {BODY_BYTES_MAX} bytes")]
    TooLong,
    #[error("the answer is not the JSON it should be")]
    Json,
    #[error("the discovery document is another issuer's")]
    WrongIssuer,
    #[error("an address in the discovery document is neither https nor the issuer's own")]
    WrongPlace,
    #[error("the issuer did not answer a moment ago")]
    Lately,
    #[error("the key set holds no key we can use")]
    NoKeys,
}

/// The keys of a JWKS that we can use.
#[derive(Debug, Default)]
struct Keys {
    by_id: HashMap<String, Arc<Key>>,
    /// What the keys are made of, to notice a change.
    material: BTreeMap<String, String>,
}

#[derive(Debug)]
struct KeySet {
    keys: Keys,
    generation: u64,
    fetched_at: Instant,
}

#[derive(Debug, Default)]
struct Attempt {
    at: Option<Instant>,
    succeeded: bool,
}

/// The keys of one issuer.
#[derive(Debug)]
pub(super) struct Keyring {
    issuer: String,
    jwks_url: Option<String>,
    client: reqwest::Client,
    current: ArcSwapOption<KeySet>,
    /// Counts changes of the keys; what was verified under another generation is verified again.
    generation: AtomicU64,
    attempt: Arc<Mutex<Attempt>>,
    unknown: moka::sync::Cache<String, ()>,
}

impl Keyring {
    pub(super) fn new(issuer: &config::Issuer, client: reqwest::Client) -> Arc<Keyring> {
        Arc::new(Keyring {
            issuer: issuer.issuer.clone(),
            jwks_url: issuer.jwks_url.clone(),
            client,
            current: ArcSwapOption::empty(),
            generation: AtomicU64::new(0),
            attempt: Arc::default(),
            unknown: moka::sync::Cache::builder().max_capacity(UNKNOWN_MAX).time_to_live(UNKNOWN_FOR).build(),
        })
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The key with this id; without an id, the only key there is. Waits only when the key is not at hand.
    pub(super) async fn find(self: &Arc<Self>, id: Option<&str>) -> Result<Found, Missing> {
        let now = Instant::now();
        if let Some(set) = self.trusted(now) {
            if now.duration_since(set.fetched_at) > REFRESH_AFTER {
                self.refresh_in_background(now);
            }
            if let Some(found) = set.find(id) {
                return Ok(found);
            }
            if self.unknown.contains_key(id.unwrap_or_default()) {
                return Err(Missing::Unknown);
            }
        }
        let fetched = self.refresh().await;
        if let Some(found) = self.trusted(Instant::now()).and_then(|set| set.find(id)) {
            return Ok(found);
        }
        match fetched {
            Fetched::Now => {
                self.unknown.insert(id.unwrap_or_default().to_owned(), ());
                Err(Missing::Unknown)
            }
            Fetched::Lately => Err(Missing::Unknown),
            Fetched::Failed => Err(Missing::Unavailable),
        }
    }

    /// Reads the keys unless that was done or tried just now. Whoever arrives meanwhile waits for the same fetch; the
    /// fetch goes on when its caller leaves.
    pub(super) async fn refresh(self: &Arc<Self>) -> Fetched {
        let attempt = Arc::clone(&self.attempt).lock_owned().await;
        if !attempt.is_due(Instant::now()) {
            return if attempt.succeeded { Fetched::Lately } else { Fetched::Failed };
        }
        match self.start(attempt).await {
            Ok(true) => Fetched::Now,
            Ok(false) | Err(_) => Fetched::Failed,
        }
    }

    fn refresh_in_background(self: &Arc<Self>, now: Instant) {
        if let Ok(attempt) = Arc::clone(&self.attempt).try_lock_owned()
            && attempt.is_due(now)
        {
            drop(self.start(attempt));
        }
    }

    fn start(self: &Arc<Self>, mut attempt: OwnedMutexGuard<Attempt>) -> JoinHandle<bool> {
        let keyring = Arc::clone(self);
        tokio::spawn(async move {
            *attempt = Attempt { at: Some(Instant::now()), succeeded: false };
            let fetched = keyring.fetch().await;
            attempt.succeeded = fetched.is_ok();
            let outcome = if fetched.is_ok() { "ok" } else { "failed" };
            metrics::counter!("platform_api_issuer_key_fetches_total", "issuer" => keyring.issuer.clone(), "outcome" => outcome)
                .increment(1);
            match fetched {
                Ok(keys) => keyring.adopt(keys),
                Err(error) => tracing::warn!(issuer = keyring.issuer, %error, "issuer's keys could not be read"),
            }
            attempt.succeeded
        })
    }

    fn trusted(&self, now: Instant) -> Option<Arc<KeySet>> {
        self.current.load_full().filter(|set| now.duration_since(set.fetched_at) <= KEEP_FOR)
    }

    /// Only called with `attempt` locked, so there is one writer.
    fn adopt(&self, keys: Keys) {
        let changed = self.current.load().as_ref().is_none_or(|set| set.keys.material != keys.material);
        let generation = self.generation() + u64::from(changed);
        let count = keys.by_id.len();
        self.current.store(Some(Arc::new(KeySet { keys, generation, fetched_at: Instant::now() })));
        self.generation.store(generation, Ordering::Release);
        if changed {
            self.unknown.invalidate_all();
            tracing::info!(issuer = self.issuer, keys = count, "issuer's keys are new");
        }
    }

    async fn fetch(&self) -> Result<Keys, FetchError> {
        let url = match &self.jwks_url {
            Some(url) => url.clone(),
            None => self.discover().await?,
        };
        usable_keys(&get(&self.client, &url).await?)
    }

    async fn discover(&self) -> Result<String, FetchError> {
        #[derive(Deserialize)]
        struct Discovery {
            issuer: String,
            jwks_uri: String,
        }
        let url = discovery_url(&self.issuer);
        let document: Discovery =
            serde_json::from_slice(&get(&self.client, &url).await?).map_err(|_| FetchError::Json)?;
        if document.issuer != self.issuer {
            return Err(FetchError::WrongIssuer);
        }
        if is_allowed(&document.jwks_uri, &self.issuer) { Ok(document.jwks_uri) } else { Err(FetchError::WrongPlace) }
    }
}

/// Where an issuer describes itself.
pub(super) fn discovery_url(issuer: &str) -> String {
    format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'))
}

async fn get(client: &reqwest::Client, url: &str) -> Result<Vec<u8>, FetchError> {
    read(client.get(url)).await
}

/// What an issuer answers with 200, as long as it is not too long.
///
/// # Errors
/// [`FetchError`]; another status is one.
pub(super) async fn read(request: reqwest::RequestBuilder) -> Result<Vec<u8>, FetchError> {
    let mut response = request.send().await.map_err(FetchError::Request)?;
    if response.status().as_u16() != 200 {
        return Err(FetchError::Status(response.status().as_u16()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(FetchError::Request)? {
        if body.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(FetchError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// How recent the answer is that a refresh stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetched {
    /// The issuer was asked for this call, and answered.
    Now,
    /// It answered less than [`FETCH_EVERY`] ago.
    Lately,
    /// It did not answer, now or less than [`FETCH_EVERY`] ago.
    Failed,
}

impl Attempt {
    fn is_due(&self, now: Instant) -> bool {
        self.at.is_none_or(|at| now.duration_since(at) >= FETCH_EVERY)
    }
}

impl KeySet {
    fn find(&self, id: Option<&str>) -> Option<Found> {
        let key = match id {
            Some(id) => self.keys.by_id.get(id),
            None if self.keys.by_id.len() == 1 => self.keys.by_id.values().next(),
            None => None,
        };
        key.map(|key| Found { key: Arc::clone(key), generation: self.generation })
    }
}

/// Keys come over https. An issuer on this machine may be asked in the clear, as the configuration allows, and then
/// has its keys at its own address.
pub(super) fn is_allowed(address: &str, issuer: &str) -> bool {
    let (Ok(keys), Ok(issuer)) = (address.parse::<reqwest::Url>(), issuer.parse::<reqwest::Url>()) else {
        return false;
    };
    keys.scheme() == "https" || (issuer.scheme() == "http" && keys.origin() == issuer.origin())
}

/// The client issuers are asked with: no redirects, no proxies, short deadlines.
///
/// # Errors
/// When the system's certificates cannot be loaded.
pub(super) fn client() -> Result<reqwest::Client, reqwest::Error> {
    // The daemon has installed it already; installing it twice is refused and harmless.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .connect_timeout(FETCH_TIMEOUT)
        .timeout(FETCH_TIMEOUT)
        .user_agent("platform-api")
        .build()
}

/// A JWK, as much of it as matters. The algorithm comes from here, never from a token.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// The keys we can use by their ids. Others (encryption, symmetric, other curves, malformed) are passed over: an
/// issuer may publish what it likes next to them.
fn usable_keys(body: &[u8]) -> Result<Keys, FetchError> {
    #[derive(Deserialize)]
    struct Jwks {
        keys: Vec<serde_json::Value>,
    }
    let set: Jwks = serde_json::from_slice(body).map_err(|_| FetchError::Json)?;
    let mut usable_keys = Keys::default();
    for value in set.keys.into_iter().take(KEYS_MAX) {
        let text = value.to_string();
        let Ok(jwk) = serde_json::from_value::<Jwk>(value) else { continue };
        let id = jwk.kid.clone().unwrap_or_default();
        // Two keys of one id would make it a matter of order which of them counts; the first does.
        if let Some(key) = usable(&jwk).filter(|_| !usable_keys.by_id.contains_key(&id)) {
            usable_keys.by_id.insert(id.clone(), Arc::new(key));
            usable_keys.material.insert(id, text);
        }
    }
    if usable_keys.by_id.is_empty() { Err(FetchError::NoKeys) } else { Ok(usable_keys) }
}

fn usable(jwk: &Jwk) -> Option<Key> {
    let signs = jwk.purpose.as_deref().is_none_or(|purpose| purpose == "sig")
        && jwk.key_ops.as_ref().is_none_or(|operations| operations.iter().any(|operation| operation == "verify"));
    let (algorithm, name, decoding) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => (Algorithm::RS256, "RS256", rsa(jwk)?),
        ("EC", Some("P-256")) => (Algorithm::ES256, "ES256", p256(jwk)?),
        ("OKP", Some("Ed25519")) => (Algorithm::EdDSA, "EdDSA", ed25519(jwk)?),
        _ => return None,
    };
    // RFC 9864 calls the same algorithm Ed25519.
    let named = jwk.alg.as_deref().is_none_or(|alg| alg == name || (name == "EdDSA" && alg == "Ed25519"));
    (signs && named).then_some(Key { algorithm, decoding })
}

fn rsa(jwk: &Jwk) -> Option<DecodingKey> {
    let modulus = URL_SAFE_NO_PAD.decode(jwk.n.as_ref()?).ok()?;
    let exponent = URL_SAFE_NO_PAD.decode(jwk.e.as_ref()?).ok()?;
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let bits = (modulus.len() - zeros) * 8 - modulus.get(zeros).map_or(0, |byte| byte.leading_zeros() as usize);
    let usable = RSA_BITS.contains(&bits) && !exponent.is_empty();
    usable.then(|| DecodingKey::from_rsa_raw_components(&modulus[zeros..], &exponent))
}

fn p256(jwk: &Jwk) -> Option<DecodingKey> {
    let (x, y) = (jwk.x.as_ref()?, jwk.y.as_ref()?);
    let full = |text: &str| URL_SAFE_NO_PAD.decode(text).is_ok_and(|bytes| bytes.len() == 32);
    if full(x) && full(y) { DecodingKey::from_ec_components(x, y).ok() } else { None }
}

fn ed25519(jwk: &Jwk) -> Option<DecodingKey> {
    let x = jwk.x.as_ref()?;
    let full = URL_SAFE_NO_PAD.decode(x).is_ok_and(|bytes| bytes.len() == 32);
    if full { DecodingKey::from_ed_components(x).ok() } else { None }
}
