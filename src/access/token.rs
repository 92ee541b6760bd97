//! JWT access tokens of the configured issuers, after RFC 8725 and RFC 9068.
//!
//! The issuer's key decides the algorithm; the token only names the key. Nothing in a token makes us ask anybody but
//! its configured issuer. A verified token is remembered by its SHA-256 until it expires or a minute has passed, and
//! verified again when its issuer's keys have changed.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::claims;
pub use super::claims::Identity;
use super::keyring::{Found, Keyring, Missing};
use crate::clock::Clock;
use crate::config;
use crate::domain::time::{MICROS_PER_SECOND, Timestamp};

/// Longest token that is looked at.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// How far an issuer's clock may be from ours.
const LEEWAY_SECONDS: i64 = 60;
const REMEMBER: Duration = Duration::from_secs(60);
const REMEMBER_MAX: u64 = 10_000;
/// Longest ID token or logout token that is looked at: these carry more about a person.
const ID_TOKEN_BYTES_MAX: usize = 32 * 1024;
const KEY_ID_MAX: usize = 256;
/// The last second of the year 9999; later expiries are milliseconds by mistake.
const SECONDS_MAX: i64 = 253_402_300_799;
/// Claims that only ID tokens and logout tokens have.
const NOT_FOR_ACCESS: [&str; 5] = ["nonce", "at_hash", "c_hash", "s_hash", "events"];

/// Why a token is not accepted, as far as a metric's label tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Too long, not three parts, not JSON.
    Form,
    /// An algorithm, type or parameter in its header that we never accept.
    Header,
    UnknownIssuer,
    UnknownKey,
    Signature,
    Audience,
    Expired,
    NotYetValid,
    /// A required claim is missing or unreadable, or it is no access token.
    Claims,
    /// The issuer knows no such token, or it is not valid any more.
    Inactive,
    /// Whether it is valid cannot be told now: the issuer's keys are out of reach.
    KeysUnavailable,
}

impl Refusal {
    pub(super) fn name(self) -> &'static str {
        match self {
            Refusal::Form => "token_form",
            Refusal::Header => "token_header",
            Refusal::UnknownIssuer => "token_issuer",
            Refusal::UnknownKey => "token_key",
            Refusal::Signature => "token_signature",
            Refusal::Audience => "token_audience",
            Refusal::Expired => "token_expired",
            Refusal::NotYetValid => "token_not_yet_valid",
            Refusal::Claims => "token_claims",
            Refusal::Inactive => "token_inactive",
            Refusal::KeysUnavailable => "keys_unavailable",
        }
    }
}

#[derive(Debug)]
struct Remembered {
    identity: Arc<Identity>,
    issuer: usize,
    generation: u64,
    until: Timestamp,
}

/// An issuer whose tokens are believed.
pub(super) struct Trusted {
    pub(super) settings: config::Issuer,
    keyring: Arc<Keyring>,
}

/// What a token is to be, besides signed by its issuer and in its time.
pub(super) struct Wanted<'a> {
    pub(super) kinds: &'a [Kind],
    pub(super) audience: &'a str,
    pub(super) claims: &'a [&'a str],
}

impl Trusted {
    /// The claims of a token that this issuer has made for a login, verified.
    pub(super) async fn claims(
        &self,
        token: &str,
        wanted: &Wanted<'_>,
        now: Timestamp,
    ) -> Result<Map<String, Value>, Refusal> {
        if token.len() > ID_TOKEN_BYTES_MAX {
            return Err(Refusal::Form);
        }
        let parts = Parts::read_as(token, wanted.kinds)?;
        if parts.issuer != self.settings.issuer {
            return Err(Refusal::UnknownIssuer);
        }
        let found = self.key(&parts).await?;
        let claims = verified_claims(token, &parts, &found, &self.settings.issuer, wanted)?;
        check_times(&claims, now)?;
        Ok(claims)
    }

    async fn key(&self, parts: &Parts) -> Result<Found, Refusal> {
        self.keyring.find(parts.header.kid.as_deref()).await.map_err(|missing| match missing {
            Missing::Unknown => Refusal::UnknownKey,
            Missing::Unavailable => Refusal::KeysUnavailable,
        })
    }
}

/// Verifies tokens and remembers them.
pub(super) struct Tokens {
    issuers: Vec<Trusted>,
    remembered: moka::sync::Cache<[u8; 32], Arc<Remembered>>,
    clock: Clock,
}

impl Tokens {
    /// # Errors
    /// When the client that asks issuers cannot be made.
    pub(super) fn new(issuers: &[config::Issuer], clock: Clock) -> Result<Tokens, reqwest::Error> {
        let mut trusted = Vec::with_capacity(issuers.len());
        if !issuers.is_empty() {
            let client = super::keyring::client()?;
            let keyring = |settings: &config::Issuer| Keyring::new(settings, client.clone());
            trusted.extend(issuers.iter().map(|issuer| Trusted { settings: issuer.clone(), keyring: keyring(issuer) }));
        }
        let remembered = moka::sync::Cache::builder().max_capacity(REMEMBER_MAX).time_to_live(REMEMBER).build();
        Ok(Tokens { issuers: trusted, remembered, clock })
    }

    /// Reads every issuer's keys, so that the first tokens need not wait.
    pub(super) async fn warm(&self) {
        futures_util::future::join_all(self.issuers.iter().map(|issuer| issuer.keyring.refresh())).await;
    }

    /// Waits only when the token's key is not at hand.
    pub(super) async fn verify(&self, token: &str) -> Result<Arc<Identity>, Refusal> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::Form);
        }
        let now = self.clock.now();
        let digest = digest_of(token);
        if let Some(identity) = self.recall(&digest, now) {
            return Ok(identity);
        }
        let parts = Parts::read(token)?;
        let (index, issuer) = self.issuer(&parts)?;
        let found = issuer.key(&parts).await?;
        let audience = issuer.settings.audience.as_str();
        let wanted = Wanted { kinds: ACCESS_KINDS, audience, claims: &["exp", "iss", "aud", "sub"] };
        let claims = verified_claims(token, &parts, &found, &issuer.settings.issuer, &wanted)?;
        let (identity, expires_at) = parts.judge(&claims, &issuer.settings, now)?;
        let identity = Arc::new(identity);
        let remember_micros = i64::try_from(REMEMBER.as_micros()).unwrap_or(i64::MAX);
        let until = now.plus_micros(remember_micros).min(expires_at);
        let remembered =
            Remembered { identity: Arc::clone(&identity), issuer: index, generation: found.generation, until };
        self.remembered.insert(digest, Arc::new(remembered));
        Ok(identity)
    }

    fn recall(&self, digest: &[u8; 32], now: Timestamp) -> Option<Arc<Identity>> {
        let remembered = self.remembered.get(digest)?;
        let keyring = &self.issuers.get(remembered.issuer)?.keyring;
        let holds = now < remembered.until && remembered.generation == keyring.generation();
        holds.then(|| Arc::clone(&remembered.identity))
    }

    /// The issuer with this `iss`.
    pub(super) fn trusted(&self, issuer: &str) -> Option<&Trusted> {
        self.issuers.iter().find(|trusted| trusted.settings.issuer == issuer)
    }

    /// Who made a token, by its own word: only to know whom to ask.
    pub(super) fn issuer_named(token: &str) -> Option<String> {
        let any = &[Kind::AccessToken, Kind::LogoutToken, Kind::Jwt, Kind::Untyped];
        let short = token.len() <= ID_TOKEN_BYTES_MAX;
        short.then(|| Parts::read_as(token, any).ok()).flatten().map(|parts| parts.issuer)
    }

    fn issuer(&self, parts: &Parts) -> Result<(usize, &Trusted), Refusal> {
        let mut issuers = self.issuers.iter().enumerate();
        issuers.find(|(_, issuer)| issuer.settings.issuer == parts.issuer).ok_or(Refusal::UnknownIssuer)
    }
}

/// A JOSE header. What could make a verifier trust the token's own word is only noticed, never read.
#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    typ: Option<String>,
    kid: Option<String>,
    crit: Option<IgnoredAny>,
    jku: Option<IgnoredAny>,
    jwk: Option<IgnoredAny>,
    x5u: Option<IgnoredAny>,
    x5c: Option<IgnoredAny>,
    b64: Option<IgnoredAny>,
    enc: Option<IgnoredAny>,
    zip: Option<IgnoredAny>,
}

/// What can be read before anything is believed.
#[derive(Debug)]
pub struct Parts {
    header: Header,
    /// `iss`: which of our issuers to ask, which then has to have signed it.
    issuer: String,
}

impl Parts {
    /// # Errors
    /// [`Refusal::Form`], [`Refusal::Header`] or [`Refusal::Claims`].
    pub fn read(token: &str) -> Result<Parts, Refusal> {
        Parts::read_as(token, ACCESS_KINDS)
    }

    fn read_as(token: &str, kinds: &[Kind]) -> Result<Parts, Refusal> {
        #[derive(Deserialize)]
        struct Unverified {
            iss: String,
        }
        let mut parts = token.split('.');
        let (Some(header), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Refusal::Form);
        };
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| Refusal::Form);
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| Refusal::Form)?;
        header.check(kinds)?;
        let Unverified { iss } = serde_json::from_slice(&decode(claims)?).map_err(|_| Refusal::Claims)?;
        Ok(Parts { header, issuer: iss })
    }

    /// Whom the claims speak for and until when, once the issuer's signature over them has been verified.
    ///
    /// # Errors
    /// [`Refusal::Expired`], [`Refusal::NotYetValid`] or [`Refusal::Claims`].
    pub fn judge(
        &self,
        claims: &Map<String, Value>,
        settings: &config::Issuer,
        now: Timestamp,
    ) -> Result<(Identity, Timestamp), Refusal> {
        let expires_at = check_times(claims, now)?;
        Ok((identity(claims, &self.header, settings)?, expires_at))
    }
}

impl Header {
    fn check(&self, kinds: &[Kind]) -> Result<(), Refusal> {
        let steers = [&self.crit, &self.jku, &self.jwk, &self.x5u, &self.x5c, &self.b64, &self.enc, &self.zip];
        let plain = steers.iter().all(|parameter| parameter.is_none());
        let known = matches!(self.alg.as_str(), "RS256" | "ES256" | "EdDSA");
        let short = self.kid.as_ref().is_none_or(|kid| kid.len() <= KEY_ID_MAX);
        let wanted = self.kind().is_some_and(|kind| kinds.contains(&kind));
        if plain && known && short && wanted { Ok(()) } else { Err(Refusal::Header) }
    }

    fn kind(&self) -> Option<Kind> {
        let Some(typ) = &self.typ else { return Some(Kind::Untyped) };
        let typ = typ.to_ascii_lowercase();
        match typ.strip_prefix("application/").unwrap_or(&typ) {
            "at+jwt" => Some(Kind::AccessToken),
            "logout+jwt" => Some(Kind::LogoutToken),
            "jwt" => Some(Kind::Jwt),
            _ => None,
        }
    }
}

/// What a token says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// RFC 9068.
    AccessToken,
    /// OpenID Connect Back-Channel Logout 1.0.
    LogoutToken,
    /// Anything: as an access token, it may be an ID token, which is not for us.
    Jwt,
    /// It does not say: never an access token.
    Untyped,
}

const ACCESS_KINDS: &[Kind] = &[Kind::AccessToken, Kind::Jwt];

fn verified_claims(
    token: &str,
    parts: &Parts,
    found: &Found,
    issuer: &str,
    wanted: &Wanted<'_>,
) -> Result<Map<String, Value>, Refusal> {
    if parts.header.alg != name_of(found.key.algorithm) {
        return Err(Refusal::Header);
    }
    let mut validation = Validation::new(found.key.algorithm);
    validation.set_required_spec_claims(wanted.claims);
    validation.set_issuer(&[issuer]);
    validation.set_audience(&[wanted.audience]);
    // Times are checked below, against our clock rather than the library's.
    validation.validate_exp = false;
    validation.validate_nbf = false;
    jsonwebtoken::decode(token, &found.key.decoding, &validation).map(|data| data.claims).map_err(|error| {
        use jsonwebtoken::errors::ErrorKind;
        match error.kind() {
            ErrorKind::InvalidAudience => Refusal::Audience,
            ErrorKind::InvalidIssuer => Refusal::UnknownIssuer,
            ErrorKind::MissingRequiredClaim(_) | ErrorKind::Json(_) | ErrorKind::InvalidClaimFormat(_) => {
                Refusal::Claims
            }
            _ => Refusal::Signature,
        }
    })
}

fn name_of(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::RS256 => "RS256",
        Algorithm::ES256 => "ES256",
        Algorithm::EdDSA => "EdDSA",
        _ => "",
    }
}

/// When the token expires, if it holds at `now`, give or take the leeway.
pub(super) fn check_times(claims: &Map<String, Value>, now: Timestamp) -> Result<Timestamp, Refusal> {
    let now_seconds = now.micros().div_euclid(MICROS_PER_SECOND);
    let expires = claims.get("exp").and_then(seconds).ok_or(Refusal::Claims)?;
    if now_seconds >= expires + LEEWAY_SECONDS {
        return Err(Refusal::Expired);
    }
    if let Some(not_before) = claims.get("nbf") {
        let not_before = seconds(not_before).ok_or(Refusal::Claims)?;
        if not_before > now_seconds + LEEWAY_SECONDS {
            return Err(Refusal::NotYetValid);
        }
    }
    Ok(Timestamp(expires * MICROS_PER_SECOND))
}

/// A NumericDate, fractions cut off.
fn seconds(value: &Value) -> Option<i64> {
    #[allow(clippy::cast_possible_truncation, reason = "out of range saturates, and is refused")]
    let whole = value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds.floor() as i64))?;
    (0..=SECONDS_MAX).contains(&whole).then_some(whole)
}

fn identity(claims: &Map<String, Value>, header: &Header, settings: &config::Issuer) -> Result<Identity, Refusal> {
    if header.kind() == Some(Kind::Jwt) && is_not_for_access(claims) {
        return Err(Refusal::Claims);
    }
    claims::identity(claims, settings)
}

/// Claims that say that it is another kind of token.
pub(super) fn is_not_for_access(claims: &Map<String, Value>) -> bool {
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    // Keycloak writes what a token is into `typ`, Cognito into `token_use`.
    NOT_FOR_ACCESS.iter().any(|name| claims.contains_key(*name))
        || text("typ").is_some_and(|typ| !typ.eq_ignore_ascii_case("Bearer"))
        || text("token_use").is_some_and(|token_use| token_use != "access")
}

pub(super) fn digest_of(token: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    bytes
}

#[cfg(test)]
#[path = "token_test.rs"]
mod tests;
