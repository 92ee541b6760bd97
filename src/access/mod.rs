//! May this caller do this?
//!
//! The lock on the http door. [`Gate::authenticate`] turns a request's credentials into a [`Caller`]: the platform's
//! bootstrap key, a tenant's API key ([`api_key`]) or an issuer's access token. [`Gate::allows`] asks the [`policy`].
//! Whether the thing asked for belongs to the caller's tenant is the door's own question, because only the door has
//! the path.
//!
//! Nothing here is told to the caller beyond "no": every reason is a label of one counter. No secret and no token is
//! ever printed, and none leaves this room.

pub mod api_key;
mod failures;
#[cfg(test)]
mod gate_test;
#[cfg(test)]
mod issuer_peer;
mod keyring;
#[cfg(test)]
mod openid_test;
pub mod pepper;
pub mod policy;
pub mod token;

use std::net::IpAddr;
use std::sync::Arc;

use secrecy::ExposeSecret;

pub use failures::FAILURES_WINDOW;
pub use pepper::Pepper;
pub use token::TOKEN_BYTES_MAX;

use failures::Failures;

use crate::clock::Clock;
use crate::config;
use crate::directory;
use crate::domain::ids::TenantId;
use crate::domain::tenant::{ApiKey, Lifecycle, Role};

/// Whoever is behind a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// `platform`, `apiKey:<id>` or `user:<subject>`: what the audit chain calls it.
    pub actor: String,
    /// None that we know means: authenticated, and allowed nothing.
    pub roles: Vec<Role>,
    /// The tenant it belongs to; `None` is the whole platform.
    pub tenant: Option<TenantId>,
    /// The person, when a token names one.
    pub user: Option<String>,
    /// A program rather than a person: an API key or the bootstrap key. Its `X-User-Id` may be believed.
    pub service: bool,
    /// Its tenant is suspended: the door decides what may still be done.
    pub suspended: bool,
}

/// The credentials of one request, as they came. Never printed.
#[derive(Clone, Default)]
pub struct Credentials<'a> {
    /// Every `Authorization` line.
    pub authorization: Vec<&'a str>,
    /// `X-API-Key`.
    pub api_key: Option<&'a str>,
    /// Where they came from, to count failures by.
    pub source: Option<IpAddr>,
}

/// Why a request has no caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    #[error("no credentials")]
    Missing,
    /// Two credentials, or a header line that is none.
    #[error("the credentials are malformed")]
    Malformed,
    #[error("the credentials are not valid")]
    Invalid,
    /// Invalid, and one failure too many within [`FAILURES_WINDOW`].
    #[error("the credentials are not valid, and too many were tried")]
    TooOften,
    /// The issuer's keys are out of reach: the token may be valid.
    #[error("the credentials cannot be checked now")]
    KeysUnavailable,
}

/// Why there is no gate. The daemon does not start without one.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error(transparent)]
    Policy(#[from] policy::Unusable),
    #[error("the client that asks the issuers for their keys cannot be made: {0}")]
    Client(#[from] reqwest::Error),
}

/// The lock on the http door. Cheap to clone.
#[derive(Clone)]
pub struct Gate {
    shared: Arc<Shared>,
}

struct Shared {
    /// The bootstrap key's hash under the pepper.
    bootstrap: Option<[u8; 32]>,
    pepper: Pepper,
    policy: policy::Policy,
    tokens: token::Tokens,
    failures: Failures,
    directory: directory::handle::Handle,
}

impl Gate {
    /// # Errors
    /// [`Unusable`].
    pub fn new(
        auth: &config::Auth,
        pepper: Pepper,
        directory: directory::handle::Handle,
        clock: Clock,
    ) -> Result<Gate, Unusable> {
        let bootstrap = auth.bootstrap_key.as_ref().map(|key| pepper.hash(key.expose_secret()));
        let policy = policy::Policy::built_in()?;
        let tokens = token::Tokens::new(&auth.issuers, clock)?;
        let failures = Failures::new(auth);
        Ok(Gate { shared: Arc::new(Shared { bootstrap, pepper, policy, tokens, failures, directory }) })
    }

    /// Reads the issuers' keys ahead of the first token. An issuer that does not answer is asked again later.
    pub async fn warm(&self) {
        self.shared.tokens.warm().await;
    }

    /// Who is asking. Waits only for an issuer's keys that are not at hand.
    ///
    /// # Errors
    /// [`Unauthenticated`]; the reason is counted, not told.
    pub async fn authenticate(&self, credentials: Credentials<'_>) -> Result<Caller, Unauthenticated> {
        self.shared.authenticate(&credentials).await.map_err(|refusal| {
            metrics::counter!("platform_api_authentication_failures_total", "kind" => refusal.name()).increment(1);
            tracing::debug!(kind = refusal.name(), "caller not authenticated");
            match refusal.into() {
                Unauthenticated::Invalid if self.shared.is_tried_too_often(&credentials) => Unauthenticated::TooOften,
                told => told,
            }
        })
    }

    /// Counts a credential of a door's own that did not hold; is it one too many?
    #[must_use]
    pub fn is_one_too_many(&self, source: Option<IpAddr>, credential: &str) -> bool {
        source.is_some_and(|source| self.shared.failures.is_one_too_many(source, credential))
    }

    /// May this caller do `action` to `object`? Nobody may what the policy does not name.
    #[must_use]
    pub fn allows(&self, caller: &Caller, object: &str, action: &str) -> bool {
        !caller.actor.is_empty() && caller.roles.iter().any(|role| self.shared.policy.allows(*role, object, action))
    }

    /// Every rule of the policy.
    #[must_use]
    pub fn policy_rows(&self) -> &[policy::Rule] {
        self.shared.policy.rules()
    }

    /// The pepper, to mint keys with and to derive other keys from.
    #[must_use]
    pub fn pepper(&self) -> &Pepper {
        &self.shared.pepper
    }
}

/// Why a caller was not authenticated: for the counter, not for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Missing,
    Malformed,
    /// A scheme other than Bearer.
    Scheme,
    KeyForm,
    KeyWrong,
    KeyRevoked,
    /// The tenant is not served: unknown, pending or archived.
    Tenant,
    Token(token::Refusal),
}

impl Refusal {
    fn name(self) -> &'static str {
        match self {
            Refusal::Missing => "missing",
            Refusal::Malformed => "malformed",
            Refusal::Scheme => "scheme",
            Refusal::KeyForm => "key_form",
            Refusal::KeyWrong => "key_wrong",
            Refusal::KeyRevoked => "key_revoked",
            Refusal::Tenant => "tenant",
            Refusal::Token(refusal) => refusal.name(),
        }
    }
}

impl From<Refusal> for Unauthenticated {
    fn from(refusal: Refusal) -> Unauthenticated {
        match refusal {
            Refusal::Missing => Unauthenticated::Missing,
            Refusal::Malformed => Unauthenticated::Malformed,
            Refusal::Token(token::Refusal::KeysUnavailable) => Unauthenticated::KeysUnavailable,
            _ => Unauthenticated::Invalid,
        }
    }
}

/// A request's one credential.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Credential<'a> {
    /// A token or a key.
    Bearer(&'a str),
    /// A key.
    Key(&'a str),
}

impl Shared {
    async fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Caller, Refusal> {
        let credential = only_credential(credentials)?;
        let (Credential::Bearer(text) | Credential::Key(text)) = credential;
        if text.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::KeyForm);
        }
        let is_key = text.starts_with(api_key::PREFIX) || matches!(credential, Credential::Key(_));
        let is_token = !is_key && text.bytes().filter(|byte| *byte == b'.').count() == 2;
        if is_token && !self.is_bootstrap(text) {
            return self.by_token(text).await;
        }
        self.by_key(text)
    }

    /// Counts a failure of these credentials.
    fn is_tried_too_often(&self, credentials: &Credentials<'_>) -> bool {
        let text = match only_credential(credentials) {
            Ok(Credential::Bearer(text) | Credential::Key(text)) => text,
            // A scheme that is not ours.
            Err(_) => "",
        };
        credentials.source.is_some_and(|source| self.failures.is_one_too_many(source, text))
    }

    fn is_bootstrap(&self, text: &str) -> bool {
        self.bootstrap.is_some_and(|expected| pepper::same(&self.pepper.hash(text), &expected))
    }

    /// The same work whether the key exists or not: one hash, one comparison.
    fn by_key(&self, text: &str) -> Result<Caller, Refusal> {
        let hash = self.pepper.hash(text);
        if self.bootstrap.is_some_and(|expected| pepper::same(&hash, &expected)) {
            return Ok(platform());
        }
        let parsed = api_key::parse(text).map_err(|_| Refusal::KeyForm)?;
        let known = self.directory.api_key(parsed.id);
        let expected = known.as_ref().map_or([0; 32], |key| key.hash);
        let matches = pepper::same(&hash, &expected);
        let key = known.filter(|_| matches).ok_or(Refusal::KeyWrong)?;
        if key.revoked_at.is_some() {
            return Err(Refusal::KeyRevoked);
        }
        let suspended = self.is_suspended(key.tenant)?;
        Ok(of_key(key, suspended))
    }

    async fn by_token(&self, text: &str) -> Result<Caller, Refusal> {
        let identity = self.tokens.verify(text).await.map_err(Refusal::Token)?;
        let suspended = identity.tenant.map_or(Ok(false), |tenant| self.is_suspended(tenant))?;
        Ok(Caller {
            actor: format!("user:{}", identity.subject),
            roles: identity.roles.clone(),
            tenant: identity.tenant,
            user: identity.user.clone(),
            service: false,
            suspended,
        })
    }

    /// Whether a served tenant is suspended; a tenant that is not served has no callers.
    fn is_suspended(&self, tenant: TenantId) -> Result<bool, Refusal> {
        match self.directory.lifecycle(tenant) {
            Some(Lifecycle::Active) => Ok(false),
            Some(Lifecycle::Suspended) => Ok(true),
            Some(Lifecycle::Pending | Lifecycle::Archived) | None => Err(Refusal::Tenant),
        }
    }
}

/// More than one credential is refused rather than ranked: whoever checks another one than we do would be fooled.
fn only_credential<'a>(credentials: &Credentials<'a>) -> Result<Credential<'a>, Refusal> {
    match (credentials.authorization.as_slice(), credentials.api_key) {
        ([], None) => Err(Refusal::Missing),
        ([], Some(key)) => visible(key.trim_matches([' ', '\t'])).map(Credential::Key),
        ([line], None) => bearer(line).map(Credential::Bearer),
        _ => Err(Refusal::Malformed),
    }
}

fn bearer(line: &str) -> Result<&str, Refusal> {
    let (scheme, text) = line.trim_matches([' ', '\t']).split_once(' ').ok_or(Refusal::Malformed)?;
    if !scheme.eq_ignore_ascii_case("Bearer") {
        return if scheme.is_empty() { Err(Refusal::Malformed) } else { Err(Refusal::Scheme) };
    }
    visible(text.trim_start_matches(' '))
}

/// One word of visible ASCII.
fn visible(text: &str) -> Result<&str, Refusal> {
    let is_word = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_word { Ok(text) } else { Err(Refusal::Malformed) }
}

fn platform() -> Caller {
    Caller {
        actor: "platform".into(),
        roles: vec![Role::PlatformAdmin],
        tenant: None,
        user: None,
        service: true,
        suspended: false,
    }
}

/// A key belongs to a tenant, so no key is a platform administrator, whatever the catalogue's row says.
fn of_key(key: ApiKey, suspended: bool) -> Caller {
    let roles = if key.role == Role::PlatformAdmin { Vec::new() } else { vec![key.role] };
    Caller {
        actor: format!("apiKey:{}", key.id),
        roles,
        tenant: Some(key.tenant),
        user: None,
        service: true,
        suspended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only<'a>(authorization: &[&'a str], api_key: Option<&'a str>) -> Result<&'a str, Refusal> {
        let credentials = Credentials { authorization: authorization.to_vec(), api_key, source: None };
        only_credential(&credentials).map(|credential| match credential {
            Credential::Bearer(text) | Credential::Key(text) => text,
        })
    }

    #[test]
    fn a_request_has_exactly_one_credential() {
        assert_eq!(only(&[], None), Err(Refusal::Missing));
        assert_eq!(only(&["Bearer abc"], None), Ok("abc"));
        assert_eq!(only(&["bEARER  abc "], None), Ok("abc"));
        assert_eq!(only(&[], Some("abc")), Ok("abc"));
        assert_eq!(only(&["Bearer abc", "Bearer abc"], None), Err(Refusal::Malformed));
        assert_eq!(only(&["Bearer abc", ""], None), Err(Refusal::Malformed));
        assert_eq!(only(&["Bearer abc"], Some("abc")), Err(Refusal::Malformed));
        assert_eq!(only(&["Basic YTpi"], None), Err(Refusal::Scheme));
        for line in ["", " ", "Bearer", "Bearer ", "Bearer a b", "Bearer a,Bearer b c", "Bearer \u{e9}", "Bearer a\tb"]
        {
            assert_eq!(only(&[line], None), Err(Refusal::Malformed), "{line:?}");
        }
        for key in ["", " ", "a b", "\u{e9}"] {
            assert_eq!(only(&[], Some(key)), Err(Refusal::Malformed), "{key:?}");
        }
    }

    #[test]
    fn a_caller_learns_only_what_it_may() {
        let told = |refusal: Refusal| Unauthenticated::from(refusal);
        assert_eq!(told(Refusal::KeyRevoked), told(Refusal::KeyWrong));
        assert_eq!(told(Refusal::Tenant), told(Refusal::KeyForm));
        assert_eq!(told(Refusal::Token(token::Refusal::Expired)), Unauthenticated::Invalid);
        assert_eq!(told(Refusal::Token(token::Refusal::KeysUnavailable)), Unauthenticated::KeysUnavailable);
    }
}
