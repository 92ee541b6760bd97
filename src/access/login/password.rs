//! A person's own password: changed by whoever knows the old one, and hashed anew when what a hash costs has changed.

use std::net::IpAddr;

use zeroize::Zeroizing;

use super::session::Entered;
use super::{LoginRefused, password_flaw};
use crate::access::Gate;
use crate::access::standing::{LOCAL_ISSUER, people_of};
use crate::domain::ids::{TenantId, UserId};
use crate::domain::organization::user::User;
use crate::domain::request::Request;
use crate::domain::session::Whose;

/// A password that is to take the place of another.
pub struct PasswordChange {
    pub tenant: TenantId,
    pub user: UserId,
    pub current: Zeroizing<String>,
    pub new: Zeroizing<String>,
    pub source: Option<IpAddr>,
    /// Of the browser that asks.
    pub session: String,
}

/// Why a password stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotChanged {
    /// What is wrong with the new one.
    Flawed(&'static str),
    /// [`LoginRefused::Credentials`]: the current one is another, or there is none.
    Refused(LoginRefused),
}

impl From<LoginRefused> for NotChanged {
    fn from(refused: LoginRefused) -> NotChanged {
        NotChanged::Refused(refused)
    }
}

impl Gate {
    /// Gives a person who knows the password another one. Every session of the person ends, and the browser that asked is
    /// given a new one. Whoever guesses is slowed down as at a login, and with it.
    ///
    /// # Errors
    /// [`NotChanged`].
    pub async fn change_own_password(&self, change: PasswordChange, request: Request) -> Result<Entered, NotChanged> {
        let PasswordChange { tenant, user, current, new, source, session } = change;
        let login = &self.shared.login;
        let passwords = login.passwords.as_ref().ok_or(LoginRefused::Off)?;
        let people = people_of(&login.directory, tenant).await.map_err(LoginRefused::TenantAway)?;
        let user = people.user(user).filter(|user| user.profile.active).ok_or(LoginRefused::Nobody)?;
        if let Some(flaw) = password_flaw(&new, &user.profile.user_name) {
            return Err(NotChanged::Flawed(flaw));
        }
        if *new == *current {
            return Err(NotChanged::Flawed("must not be the current one"));
        }
        let turn = login.attempt(source, Some(tenant), &user.profile.user_name).await?;
        let hash = login.directory.password(tenant, user.id).await.map_err(|_| LoginRefused::SessionsAway)?;
        if !passwords.is(current, hash.as_deref()).await.map_err(|_| LoginRefused::TooMany)? {
            login.throttle.failed(&turn);
            return Err(LoginRefused::Credentials.into());
        }
        login.throttle.succeeded(&turn);
        drop(turn);
        let request_id = request.request_id.clone();
        let kept = passwords.hash(new.clone()).await.map_err(|_| LoginRefused::TooMany)?;
        // Before, so that whoever cannot end them has changed nothing and may try again; and after, for those of between.
        self.end_sessions_of(user).await?;
        let hashes = (hash.unwrap_or_default(), kept.clone());
        let changed = login.directory.change_password(tenant, user.id, hashes, request).await;
        if !changed.map_err(|_| LoginRefused::SessionsAway)? {
            return Err(LoginRefused::Credentials.into());
        }
        self.end_sessions_of(user).await?;
        let entered = self.enter_known((tenant, user), (Some(kept), &new), Some(&session), &request_id);
        Ok(Box::pin(entered).await?)
    }

    /// Whoever vouches for the person.
    async fn end_sessions_of(&self, user: &User) -> Result<(), LoginRefused> {
        let own = (LOCAL_ISSUER.to_owned(), user.id.to_string());
        let issued = user.profile.subjects.iter();
        let others = issued.map(|one| (one.issuer.to_string(), one.subject.to_string()));
        for (issuer, subject) in std::iter::once(own).chain(others) {
            self.shared.login.keep.end(Whose::Subject { issuer, subject }).await?;
        }
        Ok(())
    }

    /// The hash of a password that was right: another one, if a hash costs something else now. A password that has changed
    /// meanwhile stays as it is.
    pub(super) async fn rehashed(
        &self,
        (tenant, user): (TenantId, UserId),
        password: &Zeroizing<String>,
        hash: Option<String>,
    ) -> Option<String> {
        let login = &self.shared.login;
        let (passwords, old) = (login.passwords.as_ref()?, hash?);
        if !passwords.is_outdated(&old) {
            return Some(old);
        }
        // Whoever is busy does it at the next login.
        let Ok(new) = passwords.hash(password.clone()).await else { return Some(old) };
        match login.directory.rehash_password(tenant, user, old.clone(), new.clone()).await {
            Ok(true) => {
                metrics::counter!("platform_api_passwords_rehashed_total").increment(1);
                Some(new)
            }
            Ok(false) => Some(old),
            Err(error) => {
                tracing::warn!(%error, "a password could not be hashed anew");
                Some(old)
            }
        }
    }
}
