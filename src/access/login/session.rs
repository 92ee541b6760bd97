//! A session's life: begun by a login, found with each request, refreshed, ended.

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::cookies::Cookie;
use super::exchange::{Failure, LoginProvider, Vouched};
use super::secret::Secret;
use super::{Login, LoginRefused, Provenance};
use crate::access::claims::Identity;
use crate::access::provision::Coming;
use crate::access::{Caller, Gate, Refusal, Shared};
use crate::clock;
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::ids::{SessionId, TenantId};
use crate::domain::session::{Session, Standing, Whose};
use crate::domain::tenant::Role;
use crate::domain::time::{MICROS_PER_SECOND, Timestamp};

/// How often what an issuer said anew is written over a session that changes meanwhile.
const TRIES: usize = 3;

/// What is to become a session.
pub(super) struct Begin {
    pub(super) identity: Identity,
    pub(super) name: String,
    pub(super) provider: String,
    pub(super) provider_session: String,
    pub(super) refresh_token: Option<SecretString>,
    pub(super) return_to: String,
}

/// Who a session is of, as it is sealed into it. Not printable: it has a refresh token.
#[derive(Clone, Serialize, Deserialize)]
pub(in crate::access) struct Document {
    provider: String,
    name: String,
    user: Option<String>,
    tenant: Option<TenantId>,
    roles: Vec<String>,
    refresh_token: Option<String>,
}

/// A session that goes on.
pub(in crate::access) struct Live {
    pub(in crate::access) session: Session,
    document: Document,
}

/// A session as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionView {
    pub name: String,
    pub provider: String,
    /// For `X-CSRF-Token`.
    pub csrf_token: String,
    /// It ends then unless it is refreshed.
    pub refresh_by: Timestamp,
    /// It ends then in any case.
    pub ends_at: Timestamp,
}

/// A browser that has a session.
pub struct Entered {
    pub(super) id: SessionId,
    /// `Set-Cookie` lines.
    pub cookies: Vec<String>,
    pub return_to: String,
    pub view: SessionView,
}

impl Document {
    fn of(begin: &Begin) -> Document {
        let Begin { identity, name, provider, refresh_token, .. } = begin;
        Document {
            provider: provider.clone(),
            name: name.clone(),
            user: identity.user.clone(),
            tenant: identity.tenant,
            roles: identity.roles.iter().map(|role| role.name().to_owned()).collect(),
            refresh_token: refresh_token.as_ref().map(|token| token.expose_secret().to_owned()),
        }
    }

    /// As the issuer says now.
    fn renewed(self, vouched: Option<&Vouched>, refresh_token: Option<&SecretString>) -> Document {
        let refresh_token = refresh_token.map(|token| token.expose_secret().to_owned()).or(self.refresh_token);
        match vouched {
            None => Document { refresh_token, ..self },
            Some(Vouched { identity, name, .. }) => Document {
                provider: self.provider,
                name: name.clone(),
                user: identity.user.clone(),
                tenant: identity.tenant,
                roles: identity.roles.iter().map(|role| role.name().to_owned()).collect(),
                refresh_token,
            },
        }
    }
}

impl Live {
    /// Whom it speaks for.
    pub(in crate::access) fn identity(&self) -> Identity {
        let Document { user, tenant, roles, .. } = &self.document;
        Identity {
            issuer: self.session.issuer.clone(),
            subject: self.session.subject.clone(),
            user: user.clone(),
            tenant: *tenant,
            roles: roles.iter().filter_map(|name| Role::from_name(name)).collect(),
            person: None,
        }
    }
}

impl Login {
    fn grace_micros(&self) -> i64 {
        micros(self.settings.grace_ms)
    }

    fn view(&self, live: &Live) -> SessionView {
        let Live { session, document } = live;
        SessionView {
            name: document.name.clone(),
            provider: document.provider.clone(),
            csrf_token: self.cookies.token(session.id),
            refresh_by: session.idle_until,
            ends_at: session.ends_at,
        }
    }

    fn entered(&self, live: &Live, secret: &Secret, return_to: String) -> Entered {
        let view = self.view(live);
        let left = live.session.ends_at.0.saturating_sub(self.clock.now().0).div_euclid(MICROS_PER_SECOND).max(1);
        let cookies = vec![
            self.cookies.set(Cookie::Session, &self.mint.write(secret), left),
            self.cookies.set(Cookie::Csrf, &view.csrf_token, left),
        ];
        Entered { id: live.session.id, cookies, return_to, view }
    }

    fn sealed(&self, id: SessionId, document: &Document) -> String {
        // Texts always serialize.
        self.seal.close(&purpose(id), &serde_json::to_vec(document).unwrap_or_default())
    }

    fn opened(&self, session: Session) -> Option<Live> {
        let plain = self.seal.open(&purpose(session.id), &session.document)?;
        let document = serde_json::from_slice(&plain).ok()?;
        Some(Live { session, document })
    }

    /// The session of a cookie, as of a moment ago.
    ///
    /// # Errors
    /// [`Refusal::Session`], [`Refusal::SessionCopied`] or [`Refusal::SessionsAway`].
    pub(in crate::access) async fn live(&self, cookie: &str) -> Result<Live, Refusal> {
        let secret = self.mint.read(cookie).ok_or(Refusal::Session)?.hash();
        let found = self.keep.find(&secret).await.map_err(|_| Refusal::SessionsAway)?;
        let session = found.ok_or(Refusal::Session)?;
        match session.standing(&secret, self.clock.now(), self.grace_micros()) {
            Standing::Current | Standing::Replaced => self.opened(session.as_ref().clone()).ok_or(Refusal::Session),
            Standing::Over => Err(Refusal::Session),
            Standing::Reused => {
                self.end_copied(session.as_ref()).await?;
                Err(Refusal::SessionCopied)
            }
        }
    }

    /// Somebody has an old secret: the session ends for whoever has a newer one too.
    async fn end_copied(&self, session: &Session) -> Result<(), Refusal> {
        tracing::warn!(session = %session.id, "an old secret of a session came back; the session ends");
        metrics::counter!("platform_api_sessions_copied_total").increment(1);
        self.keep.end(Whose::One(session.id)).await.map_err(|_| Refusal::SessionsAway)?;
        let tenant = self.opened(session.clone()).and_then(|live| live.document.tenant);
        self.record(tenant, &session.subject, session.id, ("session.copied", EntryOutcome::Denied), "").await;
        Ok(())
    }

    /// One record in the tenant's chain, or the platform's. A chain that cannot take it holds nobody up.
    async fn record(
        &self,
        tenant: Option<TenantId>,
        subject: &str,
        id: SessionId,
        (action, outcome): (&str, EntryOutcome),
        request_id: &str,
    ) {
        let entry = Entry {
            actor: format!("user:{subject}"),
            action: action.into(),
            target: format!("session:{id}"),
            outcome,
            request_id: request_id.to_owned(),
            payload: json!({}).to_string(),
        };
        let recorded = match tenant {
            Some(tenant) => match self.directory.find(tenant).await {
                Ok(home) => home.append(entry, None).await.map_err(|error| error.to_string()),
                Err(absent) => Err(absent.to_string()),
            },
            None => self.directory.append_platform(entry).await.map_err(|error| error.to_string()),
        };
        if let Err(reason) = recorded {
            tracing::error!(reason, action, "a session could not be recorded");
        }
    }
}

impl Shared {
    /// Who comes with a session's cookie.
    pub(in crate::access) async fn by_session(
        &self,
        cookie: &str,
        changes: bool,
        said: &Provenance<'_>,
    ) -> Result<Caller, Refusal> {
        let live = self.login.live(cookie).await?;
        if changes && !self.login.cookies.is_proven(live.session.id, said) {
            return Err(Refusal::Unproven);
        }
        self.is_still_trusted(&live.session.issuer)?;
        self.by_identity(&live.identity(), Coming::WithToken).await
    }

    /// A session ends with the trust in whoever vouched for it.
    fn is_still_trusted(&self, issuer: &str) -> Result<(), Refusal> {
        let local = issuer == crate::access::standing::LOCAL_ISSUER && self.login.passwords.is_some();
        if local || self.tokens.trusted(issuer).is_some() { Ok(()) } else { Err(Refusal::Session) }
    }
}

impl Gate {
    /// Begins a session for somebody who is somebody here.
    pub(super) async fn enter(
        &self,
        begin: Begin,
        old: Option<&str>,
        request_id: &str,
    ) -> Result<Entered, LoginRefused> {
        let login = &self.shared.login;
        let caller = self.shared.by_identity(&begin.identity, Coming::ByLogin).await?;
        if caller.suspended {
            return Err(LoginRefused::Nobody);
        }
        if let Some(old) = old.and_then(|cookie| login.mint.read(cookie))
            && let Some(session) = login.keep.find_now(&old.hash()).await?
        {
            login.keep.end(Whose::One(session.id)).await?;
        }
        let (now, secret, id) = (login.clock.now(), login.mint.fresh(), SessionId(clock::new_id()));
        let ends_at = now.plus_micros(micros(login.settings.session_ms));
        let document = Document::of(&begin);
        let session = Session {
            id,
            issuer: begin.identity.issuer,
            subject: begin.identity.subject,
            provider_session: begin.provider_session,
            secret: secret.hash(),
            previous: [0; 32],
            rotated_at: now,
            rotations: 0,
            created_at: now,
            idle_until: now.plus_micros(micros(login.settings.idle_ms)).min(ends_at),
            ends_at,
            document: login.sealed(id, &document),
        };
        login.keep.open(session.clone()).await?;
        let tenant = document.tenant;
        let (opened, subject) = (("session.opened", EntryOutcome::Success), session.subject.clone());
        login.record(tenant, &subject, id, opened, request_id).await;
        Ok(login.entered(&Live { session, document }, &secret, begin.return_to))
    }

    /// Gives a session its next secret, and asks its issuer whether the person is still who it was.
    ///
    /// The secret changes first: of two that come with the same one, the second is given what the first has made, and the
    /// issuer's refresh token is used once. A secret that is new itself is not changed again before requests with the one
    /// before have had their time.
    ///
    /// # Errors
    /// [`LoginRefused`]; [`LoginRefused::Session`] also when the issuer says that it is over.
    pub async fn refresh_session(&self, cookie: &str, said: Provenance<'_>) -> Result<Entered, LoginRefused> {
        let login = &self.shared.login;
        let secret = login.mint.read(cookie).ok_or(LoginRefused::Session)?;
        let (hash, next) = (secret.hash(), login.mint.after(&secret));
        let session = login.keep.find_now(&hash).await?.ok_or(LoginRefused::Session)?;
        if !login.cookies.is_proven(session.id, &said) {
            return Err(LoginRefused::Unproven);
        }
        let now = login.clock.now();
        match session.standing(&hash, now, login.grace_micros()) {
            Standing::Current if !session.is_just_rotated(now, login.grace_micros()) => {}
            // Another secret now would betray requests that are still under way with the one before.
            Standing::Current => {
                self.shared.is_still_trusted(&session.issuer).map_err(|_| LoginRefused::Session)?;
                let live = login.opened(session).ok_or(LoginRefused::Session)?;
                self.is_still_let_in(&live).await?;
                return Ok(login.entered(&live, &secret, String::new()));
            }
            Standing::Replaced => {
                let live = login.opened(session).ok_or(LoginRefused::Session)?;
                return Ok(login.entered(&live, &next, String::new()));
            }
            Standing::Over => return Err(LoginRefused::Session),
            Standing::Reused => {
                return match login.end_copied(&session).await {
                    Err(Refusal::SessionsAway) => Err(LoginRefused::SessionsAway),
                    _ => Err(LoginRefused::Session),
                };
            }
        }
        self.shared.is_still_trusted(&session.issuer).map_err(|_| LoginRefused::Session)?;
        let Some(rotated) = session.rotated(next.hash(), now, micros(login.settings.idle_ms)) else {
            login.keep.end(Whose::One(session.id)).await?;
            return Err(LoginRefused::Session);
        };
        let won = login.keep.replace(&session, rotated.clone()).await?;
        let live = login.opened(rotated).ok_or(LoginRefused::Session)?;
        let live = if won { Box::pin(self.renew(live)).await? } else { live };
        self.is_still_let_in(&live).await?;
        Ok(login.entered(&live, &next, String::new()))
    }

    /// Who was deactivated meanwhile is told now.
    async fn is_still_let_in(&self, live: &Live) -> Result<(), LoginRefused> {
        let caller = self.shared.by_identity(&live.identity(), Coming::WithToken).await;
        caller.map(drop).map_err(|refusal| match refusal {
            Refusal::TenantAway(absent) => LoginRefused::TenantAway(absent),
            _ => LoginRefused::Session,
        })
    }

    /// Asks the issuer anew. One that does not answer has said nothing: the session goes on as it is, to its end at most.
    async fn renew(&self, live: Live) -> Result<Live, LoginRefused> {
        let login = &self.shared.login;
        let (Some(token), Some(provider)) = (&live.document.refresh_token, login.provider_of(&live.session.issuer))
        else {
            return Ok(live);
        };
        let trusted = self.shared.tokens.trusted(&live.session.issuer).ok_or(LoginRefused::Session)?;
        let token = SecretString::from(token.clone());
        let asked = provider.refresh(trusted, &token, &live.session.subject, login.clock.now()).await;
        let outcome = match &asked {
            Ok(_) => "ok",
            Err(Failure::Away) => "away",
            Err(_) => "refused",
        };
        metrics::counter!("platform_api_session_renewals_total", "outcome" => outcome).increment(1);
        match asked {
            Ok(refreshed) => {
                if let Some(Vouched { identity, .. }) = &refreshed.vouched {
                    // Takes over groups and attributes too.
                    let caller = self.shared.by_identity(identity, Coming::ByLogin).await;
                    if let Err(Refusal::TenantAway(absent)) = caller {
                        tracing::warn!(%absent, "a tenant could not be asked about a session that is renewed");
                    }
                }
                let (vouched, token) = (refreshed.vouched.as_ref(), refreshed.refresh_token.as_ref());
                self.write_over(live, |document| document.renewed(vouched, token)).await
            }
            Err(Failure::Away) => Ok(live),
            Err(Failure::Refused | Failure::Unsound(_)) => {
                login.keep.end(Whose::One(live.session.id)).await?;
                Err(LoginRefused::Session)
            }
        }
    }

    /// Writes what is new about the person, whatever secret the session has got meanwhile.
    async fn write_over(&self, live: Live, renewed: impl Fn(Document) -> Document) -> Result<Live, LoginRefused> {
        let login = &self.shared.login;
        let (secret, document) = (live.session.secret, renewed(live.document));
        let mut before = live.session;
        for _ in 0..TRIES {
            let session = Session { document: login.sealed(before.id, &document), ..before.clone() };
            if login.keep.replace(&before, session.clone()).await? {
                return Ok(Live { session, document });
            }
            before = login.keep.find_now(&secret).await?.ok_or(LoginRefused::Session)?;
        }
        Err(LoginRefused::SessionsAway)
    }

    /// Ends the session of a cookie; answers where the browser may also end the issuer's. A session that is over already is
    /// ended again without complaint.
    ///
    /// # Errors
    /// [`LoginRefused`].
    pub async fn end_session(
        &self,
        cookie: Option<&str>,
        said: Provenance<'_>,
        request_id: &str,
    ) -> Result<Option<String>, LoginRefused> {
        let login = &self.shared.login;
        // A form of another site's comes without the session's cookie, and its answer would take the cookie away.
        if !login.cookies.is_from_us(&said) {
            return Err(LoginRefused::Unproven);
        }
        let Some(secret) = cookie.and_then(|cookie| login.mint.read(cookie)) else { return Ok(None) };
        let Some(session) = login.keep.find_now(&secret.hash()).await? else { return Ok(None) };
        if !login.cookies.is_proven(session.id, &said) {
            return Err(LoginRefused::Unproven);
        }
        login.keep.end(Whose::One(session.id)).await?;
        let (id, subject, issuer) = (session.id, session.subject.clone(), session.issuer.clone());
        let tenant = login.opened(session).and_then(|live| live.document.tenant);
        login.record(tenant, &subject, id, ("session.ended", EntryOutcome::Success), request_id).await;
        let Some(provider) = login.provider_of(&issuer) else { return Ok(None) };
        Ok(LoginProvider::end_session(provider, &login.base).await)
    }

    /// The session of a cookie, as its owner sees it.
    ///
    /// # Errors
    /// [`LoginRefused`].
    pub async fn session_view(&self, cookie: &str) -> Result<SessionView, LoginRefused> {
        let login = &self.shared.login;
        match login.live(cookie).await {
            Ok(live) => Ok(login.view(&live)),
            Err(Refusal::SessionsAway) => Err(LoginRefused::SessionsAway),
            Err(_) => Err(LoginRefused::Session),
        }
    }
}

/// A session's document opens for this session alone.
fn purpose(id: SessionId) -> String {
    format!("session {id}")
}

fn micros(millis: u64) -> i64 {
    i64::try_from(millis).unwrap_or(i64::MAX).saturating_mul(1_000)
}
