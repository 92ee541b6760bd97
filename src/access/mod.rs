//! May this caller do this?
//!
//! The lock on the http door. [`Gate::authenticate`] turns a request's credentials into a [`Caller`]: the platform's
//! bootstrap key, a tenant's API key ([`api_key`]), an issuer's access token, or a browser's session ([`login`]).
//! [`Gate::judge`] asks the built-in [`policy`] and what the caller's tenant has laid down itself: the [`authorizer`] with
//! its [`engine`]s, and relations in [`openfga`].
//! Whether the thing asked for belongs to the caller's tenant is the door's own question, because only the door has
//! the path.
//!
//! Nothing here is told to the caller beyond "no": every reason is a label of one counter. No secret and no token is
//! ever printed, and none leaves this room.

pub mod api_key;
pub mod authorizer;
#[cfg(test)]
mod authorizer_test;
mod claims;
pub mod engine;
#[cfg(test)]
mod engine_test;
mod failures;
#[cfg(test)]
mod gate_test;
mod introspection;
#[cfg(test)]
mod issuer_peer;
mod keyring;
pub mod login;
pub mod openfga;
#[cfg(test)]
mod openfga_peer;
#[cfg(test)]
mod openid_test;
pub mod pepper;
pub mod policy;
mod provider;
mod provision;
mod standing;
pub mod token;

use std::net::IpAddr;
use std::sync::Arc;

use secrecy::ExposeSecret;

pub use failures::FAILURES_WINDOW;
pub use pepper::Pepper;
pub use provider::form;
pub use token::TOKEN_BYTES_MAX;

use authorizer::{Authority, Authorizer};
use failures::Failures;
use introspection::Introspector;
use login::{Login, Provenance};
use openfga::OpenFga;
use provision::{Coming, Provisioner};
use standing::Standing;

use crate::clock::Clock;
use crate::config;
use crate::directory;
use crate::directory::handle::Absent;
use crate::domain::api_key::{ApiKey, Ended, Terms};
use crate::domain::ids::{TenantId, UserId};
use crate::domain::organization::Revoked;
use crate::domain::organization::role::Holder;
use crate::domain::policy::question::{Question, Said, Subject, Surroundings, Texts};
use crate::domain::tenant::{Lifecycle, Role};

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
    /// The key it came with, by its public id.
    pub api_key: Option<String>,
    /// Roles it would have if no group of its were deactivated.
    pub withheld: Vec<Role>,
    /// The user of the tenant's books that a token means.
    pub person: Option<UserId>,
    /// What its key takes away from all of that.
    pub terms: Terms,
}

/// What a caller wants to do.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    pub object: &'a str,
    pub action: &'a str,
    /// Which one, if it is about one.
    pub id: Option<&'a str>,
    /// Where the request came from.
    pub source: Option<IpAddr>,
}

/// Whether it may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    pub allowed: bool,
    /// The id of the tenant's policy that denies it.
    pub denied_by: Option<String>,
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
    /// A browser's session, believed only when there is nothing else.
    pub session: Option<SessionCookie<'a>>,
}

/// A session's cookie, with what the browser says of the request that it came with.
#[derive(Clone, Copy)]
pub struct SessionCookie<'a> {
    pub cookie: &'a str,
    /// The request is to change something, so it must be proven to come from a page of ours.
    pub changes: bool,
    pub said: Provenance<'a>,
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
    /// A session's cookie alone does not prove that its owner wants this.
    #[error("the request is not proven to come from a page of the session's")]
    Unproven,
    /// Whoever keeps the sessions does not answer.
    #[error("the session cannot be checked now")]
    SessionsAway,
    /// Whether its tenant still knows the caller cannot be told now.
    #[error("the caller's tenant cannot be asked now: {0}")]
    TenantAway(Absent),
}

/// Why there is no gate. The daemon does not start without one.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error(transparent)]
    Policy(#[from] policy::Unusable),
    #[error("the client that asks the issuers for their keys cannot be made: {0}")]
    Client(#[from] reqwest::Error),
    #[error("logging in cannot be prepared: {0}")]
    Login(String),
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
    opaque: Introspector,
    provisioner: Provisioner,
    login: Login,
    failures: Failures,
    directory: directory::handle::Handle,
    authorizer: Authorizer,
    clock: Clock,
}

impl Gate {
    /// # Errors
    /// [`Unusable`].
    pub fn new(
        config: &config::Config,
        pepper: Pepper,
        directory: directory::handle::Handle,
        clock: Clock,
    ) -> Result<Gate, Unusable> {
        let auth = &config.auth;
        let bootstrap = auth.bootstrap_key.as_ref().map(|key| pepper.hash(key.expose_secret()));
        let policy = policy::Policy::built_in()?;
        let tokens = token::Tokens::new(&auth.issuers, clock.clone())?;
        let openfga = OpenFga::new(&config.authorization.openfga, clock.clone())?;
        let authorizer = Authorizer::new(&policy, openfga, directory.clone(), clock.clone())?;
        let client = if auth.issuers.is_empty() { None } else { Some(keyring::client()?) };
        let opaque = Introspector::new(&auth.issuers, client.as_ref(), clock.clone());
        let provisioner = Provisioner::new(directory.clone(), config.organization.limits());
        let login = Login::new(config, client.as_ref(), &pepper, directory.clone(), clock.clone())?;
        let failures = Failures::new(auth);
        let shared = Shared {
            bootstrap,
            pepper,
            policy,
            tokens,
            opaque,
            provisioner,
            login,
            failures,
            directory,
            authorizer,
            clock,
        };
        Ok(Gate { shared: Arc::new(shared) })
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

    /// Do the caller's built-in roles let it do `action` to `object`? Nobody may what the policy does not name.
    #[must_use]
    pub fn allows(&self, caller: &Caller, object: &str, action: &str) -> bool {
        is_left(caller, object, action)
            && caller.roles.iter().any(|role| self.shared.policy.allows(*role, object, action))
    }

    /// May this caller do what it wishes, by its built-in roles and by what its tenant has laid down? The platform's own
    /// callers are bound by no tenant's policies. Waits only for a tenant that is not open, and for relations.
    ///
    /// # Errors
    /// [`Unauthenticated::TenantAway`]: whether a policy denies it cannot be told.
    pub async fn judge(&self, caller: &mut Caller, wish: &Wish<'_>) -> Result<Judged, Unauthenticated> {
        let Some(tenant) = caller.tenant else {
            return Ok(Judged { allowed: self.allows(caller, wish.object, wish.action), denied_by: None });
        };
        let authority = self.shared.authorizer.of(tenant).await.map_err(Unauthenticated::TenantAway)?;
        if let Some(key) = &caller.api_key {
            let given = Standing::of_key(&authority.people, key).roles;
            caller.roles.extend(given.into_iter().filter(|role| !caller.roles.contains(role)).collect::<Vec<_>>());
        }
        if authority.policies.is_empty() {
            return Ok(Judged { allowed: self.allows(caller, wish.object, wish.action), denied_by: None });
        }
        Ok(Box::pin(self.judge_by(&authority, caller, wish)).await)
    }

    async fn judge_by(&self, authority: &Authority, caller: &Caller, wish: &Wish<'_>) -> Judged {
        if !is_left(caller, wish.object, wish.action) {
            return Judged { allowed: false, denied_by: None };
        }
        let surroundings = Surroundings {
            ip: wish.source,
            on_behalf_of: caller.user.clone().filter(|_| caller.service),
            time: self.shared.clock.now().to_string(),
        };
        let (texts, said) = (Texts::from(surroundings), Said::default());
        let holder = caller.api_key.clone().map(Holder::ApiKey);
        let question = Question {
            subject: subject_of(authority, caller, holder.as_ref()),
            object: wish.object,
            action: wish.action,
            resource_id: wish.id,
            said: &said,
            surroundings: &texts,
        };
        let decided = self.shared.authorizer.judge(authority, &question).await;
        Judged { allowed: decided.allowed, denied_by: authorizer::denying(&decided) }
    }

    /// Who decides by tenants' own policies.
    #[must_use]
    pub fn authorizer(&self) -> &Authorizer {
        &self.shared.authorizer
    }

    /// Is a denial of this caller what the deactivation of a group has brought about?
    #[must_use]
    pub fn is_withheld(&self, caller: &Caller, object: &str, action: &str) -> bool {
        caller.withheld.iter().any(|role| self.shared.policy.allows(*role, object, action))
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
    KeyExpired,
    /// The secret was exchanged for another one, and its time is over.
    KeySuperseded,
    /// The tenant is not served: unknown, pending or archived.
    Tenant,
    /// The tenant's books know the person, who was deactivated.
    UserDeactivated,
    TenantAway(Absent),
    Token(token::Refusal),
    /// No session of ours, or one that is over.
    Session,
    /// An old secret of a session, which has ended it.
    SessionCopied,
    SessionsAway,
    /// No page of ours has sent it.
    Unproven,
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
            Refusal::KeyExpired => "key_expired",
            Refusal::KeySuperseded => "key_superseded",
            Refusal::Tenant => "tenant",
            Refusal::UserDeactivated => "user_deactivated",
            Refusal::TenantAway(_) => "tenant_away",
            Refusal::Token(refusal) => refusal.name(),
            Refusal::Session => "session",
            Refusal::SessionCopied => "session_copied",
            Refusal::SessionsAway => "sessions_away",
            Refusal::Unproven => "session_unproven",
        }
    }
}

impl From<Refusal> for Unauthenticated {
    fn from(refusal: Refusal) -> Unauthenticated {
        match refusal {
            Refusal::Missing => Unauthenticated::Missing,
            Refusal::Malformed => Unauthenticated::Malformed,
            Refusal::Token(token::Refusal::KeysUnavailable) => Unauthenticated::KeysUnavailable,
            Refusal::TenantAway(absent) => Unauthenticated::TenantAway(absent),
            Refusal::SessionsAway => Unauthenticated::SessionsAway,
            Refusal::Unproven => Unauthenticated::Unproven,
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
        if let Some(SessionCookie { cookie, changes, said }) = &credentials.session
            && credentials.authorization.is_empty()
            && credentials.api_key.is_none()
        {
            return Box::pin(self.by_session(cookie, *changes, said)).await;
        }
        let credential = only_credential(credentials)?;
        let (Credential::Bearer(text) | Credential::Key(text)) = credential;
        if text.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::KeyForm);
        }
        let is_key = text.starts_with(api_key::PREFIX) || matches!(credential, Credential::Key(_));
        let is_token = !is_key && text.bytes().filter(|byte| *byte == b'.').count() == 2;
        if is_token && !self.is_bootstrap(text) {
            let identity = self.tokens.verify(text).await.map_err(Refusal::Token)?;
            return self.by_identity(&identity, Coming::WithToken).await;
        }
        if !is_key && self.opaque.is_configured() && !self.is_bootstrap(text) {
            let identity = Box::pin(self.opaque.verify(text)).await.map_err(Refusal::Token)?;
            return self.by_identity(&identity, Coming::WithToken).await;
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

    /// The same work whether the key exists or not: one hash, two comparisons.
    fn by_key(&self, text: &str) -> Result<Caller, Refusal> {
        let hash = self.pepper.hash(text);
        if self.bootstrap.is_some_and(|expected| pepper::same(&hash, &expected)) {
            return Ok(platform());
        }
        let parsed = api_key::parse(text).map_err(|_| Refusal::KeyForm)?;
        let known = self.directory.api_key(parsed.id);
        let expected = known.as_ref().map_or([0; 32], |key| key.hash);
        let before = known.as_ref().and_then(|key| key.previous).map_or([0; 32], |previous| previous.hash);
        let (is_current, is_previous) = (pepper::same(&hash, &expected), pepper::same(&hash, &before));
        let key = known.filter(|_| is_current || is_previous).ok_or(Refusal::KeyWrong)?;
        let now = self.clock.now();
        let ended = match key.ended(now) {
            Some(Ended::Revoked) => Some((Revoked::ApiKey, Refusal::KeyRevoked)),
            Some(Ended::Expired) => Some((Revoked::ApiKeyExpired, Refusal::KeyExpired)),
            None if is_current || key.overlap(now).is_some() => None,
            None => Some((Revoked::ApiKeyExpired, Refusal::KeySuperseded)),
        };
        if let Some((revoked, refusal)) = ended {
            count_revoked(revoked);
            return Err(refusal);
        }
        self.directory.note_key_use(&key.id);
        let suspended = self.is_suspended(key.tenant)?;
        Ok(of_key(key, suspended))
    }

    /// The caller that somebody is whom an issuer has vouched for.
    async fn by_identity(&self, identity: &token::Identity, coming: Coming) -> Result<Caller, Refusal> {
        let mut roles = identity.roles.clone();
        let (mut suspended, mut withheld, mut person) = (false, Vec::new(), None);
        match identity.tenant {
            None if roles.is_empty() && !self.directory.is_platform_admin(&identity.issuer, &identity.subject) => {
                return Err(Refusal::Token(token::Refusal::Claims));
            }
            None => roles = vec![Role::PlatformAdmin],
            Some(tenant) => {
                suspended = self.is_suspended(tenant)?;
                let standing =
                    if suspended { Standing::default() } else { self.standing(tenant, identity, coming).await? };
                roles.extend(standing.roles);
                withheld = standing.withheld;
                person = standing.person;
            }
        }
        Ok(Caller {
            actor: format!("user:{}", identity.subject),
            roles,
            tenant: identity.tenant,
            user: identity.user.clone(),
            service: false,
            suspended,
            api_key: None,
            withheld,
            person,
            terms: Terms::default(),
        })
    }

    /// What the tenant's books say of whom a token speaks of. They know nobody who is deactivated.
    async fn standing(
        &self,
        tenant: TenantId,
        identity: &token::Identity,
        coming: Coming,
    ) -> Result<Standing, Refusal> {
        let mut people = standing::people_of(&self.directory, tenant).await.map_err(|absent| match absent {
            Absent::Unknown => Refusal::Tenant,
            away => Refusal::TenantAway(away),
        })?;
        if let Some(person) = &identity.person {
            people = Box::pin(self.provisioner.arrange(tenant, people, identity, person, coming)).await;
        }
        let standing = Standing::of_subject(&people, &identity.issuer, &identity.subject);
        if standing.is_deactivated {
            count_revoked(Revoked::User);
            return Err(Refusal::UserDeactivated);
        }
        Ok(standing)
    }

    /// Whether a served tenant is suspended; a tenant that is not served has no callers.
    fn is_suspended(&self, tenant: TenantId) -> Result<bool, Refusal> {
        match self.directory.lifecycle(tenant) {
            Some(Lifecycle::Active) => Ok(false),
            Some(Lifecycle::Suspended) => Ok(true),
            Some(Lifecycle::Archived) => {
                count_revoked(Revoked::Tenant);
                Err(Refusal::Tenant)
            }
            Some(Lifecycle::Pending) | None => Err(Refusal::Tenant),
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

/// Counts a request that is refused because somebody or something is no longer admitted.
pub fn count_revoked(revoked: Revoked) {
    metrics::counter!("platform_api_refused_after_revocation_total", "kind" => revoked.name()).increment(1);
}

/// Does its credential leave this to a caller, whichever role or policy gives it?
fn is_left(caller: &Caller, object: &str, action: &str) -> bool {
    !caller.actor.is_empty() && caller.terms.leave(object, action)
}

/// A caller as its tenant's books know it, with the built-in roles that its credential brings.
fn subject_of<'a>(authority: &'a Authority, caller: &'a Caller, holder: Option<&'a Holder>) -> Subject<'a> {
    let people = &authority.people;
    let mut subject = match (&caller.api_key, holder, caller.person.and_then(|id| people.user(id))) {
        (Some(key), Some(holder), _) => Subject::of_key(people, key, holder, None),
        (_, _, Some(user)) => Subject::of_user(people, user),
        // Somebody whom an issuer vouches for and the books do not know.
        _ => Subject {
            kind: "user",
            id: unknown_id(caller.user.as_deref()).into(),
            is_known: true,
            ..Subject::default()
        },
    };
    let own = caller.roles.iter().map(|role| role.name());
    let more: Vec<&str> = own.filter(|role| !subject.roles.contains(role)).collect();
    subject.roles.extend(more);
    subject
}

/// What somebody whom the books do not know is called where conditions ask for an id. A name that reads as a user's id is
/// none: what an issuer lets people call themselves must not make them that user.
fn unknown_id(name: Option<&str>) -> &str {
    name.filter(|name| name.parse::<UserId>().is_err()).unwrap_or_default()
}

fn platform() -> Caller {
    Caller {
        actor: "platform".into(),
        roles: vec![Role::PlatformAdmin],
        tenant: None,
        user: None,
        service: true,
        suspended: false,
        api_key: None,
        withheld: Vec::new(),
        person: None,
        terms: Terms::default(),
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
        api_key: Some(key.id),
        withheld: Vec::new(),
        person: None,
        terms: key.terms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only<'a>(authorization: &[&'a str], api_key: Option<&'a str>) -> Result<&'a str, Refusal> {
        let credentials = Credentials { authorization: authorization.to_vec(), api_key, ..Credentials::default() };
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
    fn nobody_names_themselves_a_user_of_the_books() {
        let id = "0199a8b2-5c00-7abc-8def-0123456789ab";
        for (name, expected) in [(Some("jane"), "jane"), (None, ""), (Some(id), ""), (Some(&id.to_uppercase()), "")] {
            let caller = Caller { user: name.map(str::to_owned), ..platform() };
            assert_eq!(unknown_id(caller.user.as_deref()), expected, "{name:?}");
        }
    }

    #[test]
    fn a_caller_learns_only_what_it_may() {
        let told = |refusal: Refusal| Unauthenticated::from(refusal);
        for ended in [Refusal::KeyRevoked, Refusal::KeyExpired, Refusal::KeySuperseded] {
            assert_eq!(told(ended), told(Refusal::KeyWrong));
        }
        assert_eq!(told(Refusal::Tenant), told(Refusal::KeyForm));
        assert_eq!(told(Refusal::Token(token::Refusal::Expired)), Unauthenticated::Invalid);
        assert_eq!(told(Refusal::Token(token::Refusal::KeysUnavailable)), Unauthenticated::KeysUnavailable);
    }
}
