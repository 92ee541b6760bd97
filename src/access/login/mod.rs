//! Browsers: they log in at an issuer or with a password, and come back with a cookie.
//!
//! 1. [`flow`]: a login that is under way, in a sealed cookie; [`exchange`]: the issuer's side of it
//! 2. [`secret`]: what speaks for a session, and how the next one is made of it; [`keep`]: where sessions are, in [`redis`] or
//!    the control database
//! 3. [`cookies`]: how browsers carry all that, and what proves that a page of ours sends it
//! 4. [`backchannel`]: an issuer ends a session; [`local`]: passwords that are kept here, and how guessing is slowed down;
//!    [`password`]: how its owner changes one
//!
//! A session is who its issuer said when it was begun or last refreshed. What the tenant's books say of the person is asked
//! with each request, as for a token: whoever is deactivated is refused from the next request on.

mod backchannel;
mod cookies;
mod exchange;
mod flow;
mod keep;
mod local;
#[cfg(test)]
mod login_test;
mod password;
mod redis;
mod secret;
mod session;

use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::Semaphore;
use zeroize::Zeroizing;

pub use cookies::{Cookie, Provenance};
pub use local::{PASSWORD_BYTES_MAX, PASSWORD_CHARACTERS_MIN, password_flaw};
pub use password::{NotChanged, PasswordChange};
pub use session::{Entered, SessionView};

use cookies::Cookies;
use exchange::{Failure, LoginProvider};
use flow::Flow;
use keep::{Keep, Place};
use local::{Passwords, Throttle};
use secret::{Mint, Seal};

use super::claims::Identity;
use super::standing::{LOCAL_ISSUER, people_of};
use super::token::Tokens;
use super::{Gate, Pepper, Refusal, Unusable};
use crate::clock::Clock;
use crate::config::{self, millis};
use crate::directory;
use crate::directory::handle::Absent;
use crate::domain::ids::{TenantId, UserId};
use crate::domain::organization::folded;
use crate::domain::organization::user::User;
use crate::domain::request::Request;
use crate::domain::session::Whose;
use crate::domain::tenant::Lifecycle;
use crate::domain::time::Timestamp;

/// Where an issuer sends the browser back to.
pub const CALLBACK: &str = "/v1/auth/callback";
/// What local accounts are called where providers are named.
pub const LOCAL: &str = "local";
/// Logins that are being finished at once: each asks an issuer and writes, and anybody may begin one.
const FINISHING_MAX: usize = 32;
/// How long a login waits for its turn to be finished.
const TURN_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest code, state or issuer of an answer that is looked at.
const ANSWER_BYTES_MAX: usize = 4_096;

/// Why nobody has logged in, or a session does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LoginRefused {
    #[error("there is no such way to log in")]
    Off,
    #[error("a login may not return there")]
    ReturnTo,
    /// Not begun by this browser, begun too long ago, finished already, or refused or answered unsoundly by the issuer.
    #[error("the login cannot be finished")]
    Failed,
    /// The issuer vouches for somebody who is nobody here.
    #[error("the person is not known here")]
    Nobody,
    #[error("the user name or the password is wrong")]
    Credentials,
    #[error("too many attempts are under way")]
    TooMany,
    /// No page of ours has sent it.
    #[error("the request is not proven to come from a page of ours")]
    Unproven,
    #[error("there is no such session")]
    Session,
    #[error("the logout token is not one")]
    LogoutToken,
    /// The issuer does not answer.
    #[error("the issuer cannot be asked now")]
    IssuerAway,
    /// Whoever keeps the sessions does not answer.
    #[error("the sessions are out of reach")]
    SessionsAway,
    #[error("the tenant cannot be asked now")]
    TenantAway(Absent),
}

impl LoginRefused {
    /// For a metric's label.
    fn name(self) -> &'static str {
        match self {
            LoginRefused::Off => "off",
            LoginRefused::ReturnTo => "return_to",
            LoginRefused::Failed => "failed",
            LoginRefused::Nobody => "nobody",
            LoginRefused::Credentials => "credentials",
            LoginRefused::TooMany => "too_many",
            LoginRefused::Unproven => "unproven",
            LoginRefused::Session => "session",
            LoginRefused::LogoutToken => "logout_token",
            LoginRefused::IssuerAway => "issuer_away",
            LoginRefused::SessionsAway => "sessions_away",
            LoginRefused::TenantAway(_) => "tenant_away",
        }
    }
}

impl From<keep::Away> for LoginRefused {
    fn from(_: keep::Away) -> LoginRefused {
        LoginRefused::SessionsAway
    }
}

impl From<Failure> for LoginRefused {
    fn from(failure: Failure) -> LoginRefused {
        match failure {
            Failure::Away => LoginRefused::IssuerAway,
            Failure::Refused => LoginRefused::Failed,
            Failure::Unsound(refusal) => {
                tracing::warn!(kind = refusal.name(), "an issuer's answer to a login is not to be believed");
                LoginRefused::Failed
            }
        }
    }
}

impl From<Refusal> for LoginRefused {
    fn from(refusal: Refusal) -> LoginRefused {
        match refusal {
            Refusal::TenantAway(absent) => LoginRefused::TenantAway(absent),
            _ => LoginRefused::Nobody,
        }
    }
}

/// A login that was begun.
pub struct Begun {
    /// Where to send the browser.
    pub location: String,
    /// A `Set-Cookie` line.
    pub cookie: String,
}

/// What an issuer has sent the browser back with.
#[derive(Clone, Copy, Default)]
pub struct LoginAnswer<'a> {
    pub code: Option<&'a str>,
    pub state: Option<&'a str>,
    pub issuer: Option<&'a str>,
    pub error: Option<&'a str>,
}

/// Somebody who says who they are.
pub struct LocalAttempt {
    /// When absent: the only tenant there is.
    pub tenant: Option<TenantId>,
    pub user_name: String,
    pub password: Zeroizing<String>,
    pub source: Option<IpAddr>,
}

/// Everything about browsers.
pub(super) struct Login {
    settings: config::Login,
    base: String,
    cookies: Cookies,
    mint: Mint,
    seal: Seal,
    keep: Keep,
    providers: Vec<LoginProvider>,
    passwords: Option<Passwords>,
    throttle: Throttle,
    finishing: Semaphore,
    directory: directory::handle::Handle,
    clock: Clock,
}

impl Login {
    /// # Errors
    /// [`Unusable::Login`].
    pub(super) fn new(
        config: &config::Config,
        client: Option<&reqwest::Client>,
        pepper: &Pepper,
        directory: directory::handle::Handle,
        clock: Clock,
    ) -> Result<Login, Unusable> {
        use secrecy::ExposeSecret;
        let settings = config.auth.login.clone();
        let base = settings.public_url.clone().unwrap_or_else(|| format!("http://{}", config.http.listen));
        let place = match &config.redis.url {
            Some(url) => Place::Redis(redis::Redis::open_at(url, &settings.key_prefix).map_err(Unusable::Login)?),
            None => Place::Database(directory.clone()),
        };
        let is_embedded = config.store.url.expose_secret().starts_with("sqlite:");
        let passwords = match config.auth.has_local_accounts(is_embedded) {
            true => Some(Passwords::new(&config.auth.local, pepper.derive("password")).map_err(Unusable::Login)?),
            false => None,
        };
        let providers = |client: &reqwest::Client| {
            config.auth.issuers.iter().filter_map(|one| LoginProvider::new(one, client)).collect()
        };
        Ok(Login {
            cookies: Cookies::new(&base, &settings, &pepper.derive("csrf")),
            mint: Mint::new(&pepper.derive("session-next"), &pepper.derive("session-tag")),
            seal: Seal::new(&pepper.derive("session-seal")),
            keep: Keep::new(place, millis(settings.stale_ms)),
            providers: client.map_or_else(Vec::new, providers),
            passwords,
            throttle: Throttle::new(),
            finishing: Semaphore::new(FINISHING_MAX),
            directory,
            clock,
            base,
            settings,
        })
    }

    fn redirect_uri(&self) -> String {
        format!("{}{CALLBACK}", self.base)
    }

    /// The provider of this name; the only one when none is named.
    fn provider(&self, name: Option<&str>) -> Result<&LoginProvider, LoginRefused> {
        match (name, self.providers.as_slice()) {
            (None, [only]) => Ok(only),
            (None, _) => Err(LoginRefused::Off),
            (Some(name), all) => all.iter().find(|one| one.name == name).ok_or(LoginRefused::Off),
        }
    }

    /// Waits for the turn of an attempt to prove that one is this user.
    async fn attempt(
        &self,
        source: Option<IpAddr>,
        tenant: Option<TenantId>,
        user_name: &str,
    ) -> Result<local::Attempt, LoginRefused> {
        let account = format!("{} {}", tenant.map(|id| id.to_string()).unwrap_or_default(), folded(user_name));
        let source = source.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
        self.throttle.admit(source, &account).await.map_err(|_| LoginRefused::TooMany)
    }

    fn provider_of(&self, issuer: &str) -> Option<&LoginProvider> {
        self.providers.iter().find(|one| one.settings.issuer == issuer)
    }

    /// The first tenant, if there is no second.
    fn only_tenant(&self) -> Option<TenantId> {
        let page = self.directory.tenants(None, 2);
        match page.items.as_slice() {
            [only] if only.lifecycle == Lifecycle::Active => Some(only.id),
            _ => None,
        }
    }
}

impl Gate {
    /// Where to log in: names of providers, and whether passwords are kept here.
    #[must_use]
    pub fn login_providers(&self) -> Vec<&str> {
        let login = &self.shared.login;
        let local = login.passwords.is_some().then_some(LOCAL);
        login.providers.iter().map(|provider| provider.name.as_str()).chain(local).collect()
    }

    /// Sends a browser to log in at a provider, and back to `return_to` afterwards.
    ///
    /// # Errors
    /// [`LoginRefused`].
    pub async fn begin_login(&self, provider: Option<&str>, return_to: Option<&str>) -> Result<Begun, LoginRefused> {
        let login = &self.shared.login;
        let provider = login.provider(provider)?;
        let asked = return_to.unwrap_or(&login.settings.return_to);
        let return_to = flow::return_to(asked, &login.cookies).ok_or(LoginRefused::ReturnTo)?;
        let micros = i64::try_from(login.settings.flow_ms).unwrap_or(i64::MAX).saturating_mul(1_000);
        let flow = Flow::new(&provider.settings.issuer, return_to, login.clock.now().plus_micros(micros));
        let location = provider.authorization(&flow, &login.redirect_uri()).await?;
        let seconds = i64::try_from(login.settings.flow_ms / 1_000).unwrap_or(i64::MAX);
        Ok(Begun { location, cookie: login.cookies.set(Cookie::Login, &flow.close(&login.seal), seconds) })
    }

    /// Finishes a login with what the issuer has sent the browser back with. A session that the browser came with ends: the
    /// new one has nothing in common with it.
    ///
    /// # Errors
    /// [`LoginRefused`].
    pub async fn finish_login(
        &self,
        answer: LoginAnswer<'_>,
        flow: Option<&str>,
        session: Option<&str>,
        request_id: &str,
    ) -> Result<Entered, LoginRefused> {
        let finished = self.finish(answer, flow, session, request_id).await;
        let name = finished.as_ref().map_or("none", |(provider, _)| provider);
        count(name, finished.as_ref().map(drop).map_err(|refused| *refused));
        finished.map(|(_, entered)| entered)
    }

    async fn finish(
        &self,
        answer: LoginAnswer<'_>,
        flow: Option<&str>,
        session: Option<&str>,
        request_id: &str,
    ) -> Result<(&str, Entered), LoginRefused> {
        let login = &self.shared.login;
        let now = login.clock.now();
        let fits = |text: &Option<&str>| text.is_none_or(|text| text.len() <= ANSWER_BYTES_MAX);
        if ![answer.code, answer.state, answer.issuer].iter().all(fits) {
            return Err(LoginRefused::Failed);
        }
        let flow = flow.and_then(|cookie| Flow::open(&login.seal, cookie, now)).ok_or(LoginRefused::Failed)?;
        if !answer.state.is_some_and(|state| flow.is_answered_by(state)) {
            return Err(LoginRefused::Failed);
        }
        let Ok(Ok(_turn)) = tokio::time::timeout(TURN_TIMEOUT, login.finishing.acquire()).await else {
            return Err(LoginRefused::TooMany);
        };
        if !login.keep.use_once(&format!("login:{}", flow.state), Timestamp(flow.until)).await? {
            return Err(LoginRefused::Failed);
        }
        let provider = login.provider_of(&flow.issuer).ok_or(LoginRefused::Failed)?;
        let trusted = self.shared.tokens.trusted(&flow.issuer).ok_or(LoginRefused::Failed)?;
        if !provider.is_from_here(answer.issuer).await? {
            return Err(LoginRefused::Failed);
        }
        let (None, Some(code)) = (answer.error, answer.code) else { return Err(LoginRefused::Failed) };
        let redeemed = Box::pin(provider.redeem(trusted, &flow, code, &login.redirect_uri(), now)).await?;
        let (vouched, refresh_token) = redeemed;
        let begin = session::Begin {
            identity: vouched.identity,
            name: vouched.name,
            provider: provider.name.clone(),
            provider_session: vouched.provider_session.unwrap_or_default(),
            refresh_token,
            return_to: flow.return_to,
        };
        let entered = Box::pin(self.enter(begin, session, request_id)).await?;
        Ok((&provider.name, entered))
    }

    /// Lets in whoever knows the password of an account that is kept here.
    ///
    /// # Errors
    /// [`LoginRefused`]; the same, after as much work, for a wrong password, a user that does not exist and one that was
    /// deactivated.
    pub async fn local_login(
        &self,
        attempt: LocalAttempt,
        said: Provenance<'_>,
        session: Option<&str>,
        request_id: &str,
    ) -> Result<Entered, LoginRefused> {
        let entered = Box::pin(self.enter_by_password(attempt, said, session, request_id)).await;
        count(LOCAL, entered.as_ref().map(drop).map_err(|refused| *refused));
        entered
    }

    async fn enter_by_password(
        &self,
        attempt: LocalAttempt,
        said: Provenance<'_>,
        session: Option<&str>,
        request_id: &str,
    ) -> Result<Entered, LoginRefused> {
        let login = &self.shared.login;
        let passwords = login.passwords.as_ref().ok_or(LoginRefused::Off)?;
        if !login.cookies.is_from_us(&said) {
            return Err(LoginRefused::Unproven);
        }
        let tenant = attempt.tenant.or_else(|| login.only_tenant());
        let turn = login.attempt(attempt.source, tenant, &attempt.user_name).await?;
        let people = match tenant {
            None => None,
            Some(tenant) => match people_of(&login.directory, tenant).await {
                Ok(people) => Some(people),
                Err(Absent::Unknown) => None,
                Err(away) => return Err(LoginRefused::TenantAway(away)),
            },
        };
        let user = people.and_then(|people| people.user_named(&attempt.user_name).cloned());
        let nobody = (TenantId(uuid::Uuid::nil()), UserId(uuid::Uuid::nil()));
        let (home, id) = tenant.zip(user.as_ref().map(|user| user.id)).unwrap_or(nobody);
        let hash = login.directory.password(home, id).await.map_err(|_| LoginRefused::SessionsAway)?;
        let password = attempt.password;
        let knows = passwords.is(password.clone(), hash.as_deref()).await.map_err(|_| LoginRefused::TooMany)?;
        let user = user.filter(|user| knows && user.profile.active);
        let Some(user) = user else {
            login.throttle.failed(&turn);
            return Err(LoginRefused::Credentials);
        };
        login.throttle.succeeded(&turn);
        // A password that was right holds nobody else of this address up.
        drop(turn);
        let hash = self.rehashed((home, id), &password, hash).await;
        Box::pin(self.enter_known((home, &user), (hash, &password), session, request_id)).await
    }

    /// Begins a session for a user whose password was found to be that of the hash. If the password has changed meanwhile,
    /// the session ends at once: the change ended those of the old password, and may have missed this one. Another hash of
    /// the same password is no change.
    async fn enter_known(
        &self,
        (tenant, user): (TenantId, &User),
        (hash, password): (Option<String>, &Zeroizing<String>),
        session: Option<&str>,
        request_id: &str,
    ) -> Result<Entered, LoginRefused> {
        let login = &self.shared.login;
        let passwords = login.passwords.as_ref().ok_or(LoginRefused::Off)?;
        let identity = Identity {
            issuer: LOCAL_ISSUER.to_owned(),
            subject: user.id.to_string(),
            user: Some(user.profile.user_name.clone()),
            tenant: Some(tenant),
            roles: Vec::new(),
            person: None,
        };
        let begin = session::Begin {
            identity,
            name: user.profile.display_name.clone(),
            provider: LOCAL.to_owned(),
            provider_session: String::new(),
            refresh_token: None,
            return_to: login.settings.return_to.clone(),
        };
        let entered = Box::pin(self.enter(begin, session, request_id)).await?;
        let kept = login.directory.password(tenant, user.id).await.map_err(|_| LoginRefused::SessionsAway)?;
        let told = if kept == hash { Ok(true) } else { passwords.is(password.clone(), kept.as_deref()).await };
        let Ok(is_same) = told else {
            // Nobody has the time to say whether it has changed: only what has just begun ends.
            login.keep.end(Whose::One(entered.id)).await?;
            return Err(LoginRefused::TooMany);
        };
        if !is_same {
            self.end_local_sessions(user.id).await?;
            return Err(LoginRefused::Credentials);
        }
        Ok(entered)
    }

    /// Gives a person a password, whose sessions of the old one end.
    ///
    /// # Errors
    /// [`LoginRefused`].
    pub async fn set_password(
        &self,
        tenant: TenantId,
        user: UserId,
        password: Zeroizing<String>,
        request: Request,
    ) -> Result<(), LoginRefused> {
        let login = &self.shared.login;
        let passwords = login.passwords.as_ref().ok_or(LoginRefused::Off)?;
        let hash = passwords.hash(password).await.map_err(|_| LoginRefused::TooMany)?;
        login.directory.put_password(tenant, user, hash, request).await.map_err(|_| LoginRefused::SessionsAway)?;
        self.end_local_sessions(user).await
    }

    /// Takes a person's password away, and ends the sessions that were begun with it; false when there was none.
    ///
    /// # Errors
    /// [`LoginRefused`].
    pub async fn drop_password(&self, tenant: TenantId, user: UserId, request: Request) -> Result<bool, LoginRefused> {
        let login = &self.shared.login;
        let dropped = login.directory.drop_password(tenant, user, request).await;
        let dropped = dropped.map_err(|_| LoginRefused::SessionsAway)?;
        self.end_local_sessions(user).await?;
        Ok(dropped)
    }

    async fn end_local_sessions(&self, user: UserId) -> Result<(), LoginRefused> {
        let whose = Whose::Subject { issuer: LOCAL_ISSUER.to_owned(), subject: user.to_string() };
        self.shared.login.keep.end(whose).await?;
        Ok(())
    }

    /// Ends what an issuer says is over. A token that says so a second time changes nothing.
    ///
    /// # Errors
    /// [`LoginRefused::LogoutToken`], or that somebody cannot be asked.
    pub async fn back_channel_logout(&self, token: &str) -> Result<(), LoginRefused> {
        let ended = Box::pin(self.end_for_issuer(token)).await;
        let outcome = ended.as_ref().map_or_else(|refused| refused.name(), |()| "ok");
        metrics::counter!("platform_api_back_channel_logouts_total", "outcome" => outcome).increment(1);
        ended
    }

    async fn end_for_issuer(&self, token: &str) -> Result<(), LoginRefused> {
        let login = &self.shared.login;
        let issuer = Tokens::issuer_named(token).ok_or(LoginRefused::LogoutToken)?;
        let provider = login.provider_of(&issuer).ok_or(LoginRefused::LogoutToken)?;
        let trusted = self.shared.tokens.trusted(&issuer).ok_or(LoginRefused::LogoutToken)?;
        let read = backchannel::read(trusted, &provider.client.client_id, token, login.clock.now()).await;
        let notice = read.map_err(|refusal| match refusal {
            super::token::Refusal::KeysUnavailable => LoginRefused::IssuerAway,
            refusal => {
                tracing::warn!(kind = refusal.name(), "a logout token was refused");
                LoginRefused::LogoutToken
            }
        })?;
        let name = format!("logout:{issuer} {}", notice.id);
        if login.keep.is_used(&name).await? {
            return Err(LoginRefused::LogoutToken);
        }
        // It counts as said only when everything has ended: what could not be done is done when the issuer says it again.
        login.keep.end(notice.whose).await?;
        login.keep.use_once(&name, notice.until).await?;
        Ok(())
    }

    /// The page for a login that failed, when one is configured.
    #[must_use]
    pub fn login_error_url(&self) -> Option<&str> {
        self.shared.login.settings.error_url.as_deref()
    }

    /// A cookie of a request, by its `Cookie` lines.
    pub fn cookie<'a>(&self, cookie: Cookie, lines: impl Iterator<Item = &'a str>) -> Option<&'a str> {
        self.shared.login.cookies.find(cookie, lines)
    }

    /// A `Set-Cookie` line that takes a cookie away.
    #[must_use]
    pub fn clear_cookie(&self, cookie: Cookie) -> String {
        self.shared.login.cookies.clear(cookie)
    }
}

fn count(provider: &str, outcome: Result<(), LoginRefused>) {
    let outcome = outcome.map_or_else(LoginRefused::name, |()| "ok");
    metrics::counter!("platform_api_logins_total", "provider" => provider.to_owned(), "outcome" => outcome)
        .increment(1);
}
