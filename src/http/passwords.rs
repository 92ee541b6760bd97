//! `/v1/users/{id}/password`, `/v1/auth/password`: passwords of people who log in here rather than at an identity provider,
//! given by an administrator and changed by themselves.

use poem_openapi::param::{Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::auth::{SessionBody, WithCookies, cookie};
use super::authorize::Ask;
use super::body::Strict;
use super::document::Tag;
use super::people::{id, people};
use super::problem::{Code, Problem};
use super::reply::Reply;
use crate::access::login::{Cookie, LoginRefused, NotChanged, PasswordChange, password_flaw};
use crate::domain::ids::UserId;

/// Whoever has a person's password is that person, without the key's scopes.
const SCOPED: &str = "A key with scopes gives and takes no passwords.";

pub(super) struct Passwords;

#[OpenApi(tag = "Tag::Login")]
impl Passwords {
    /// Give a user a password
    ///
    /// 12 characters to 256 bytes, without the user name in it. Kept as argon2id under the platform's pepper. Sessions that
    /// were begun with the password before end. A key with scopes gives and takes no passwords.
    #[oai(path = "/v1/users/:id/password", method = "put", operation_id = "setPassword")]
    async fn set(
        &self,
        ask: Ask,
        /// The user's id.
        #[oai(name = "id")]
        user: Path<String>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<SetPassword>,
    ) -> Result<Reply<PasswordView>, Problem> {
        ask.without_scopes(SCOPED).await?;
        let user = id::<UserId>(&user, Code::UserNotFound)?;
        let people = people(&ask).await?;
        let known = people.user(user).ok_or_else(|| Problem::new(Code::UserNotFound))?;
        let password = Zeroizing::new(body.0.password);
        if let Some(flaw) = password_flaw(&password, &known.profile.user_name) {
            return Err(Problem::field("/password", flaw));
        }
        ask.api.gate.set_password(ask.tenant()?, user, password, ask.change()).await?;
        Ok(Reply::new(PasswordView { user_id: user.to_string(), has_password: true }))
    }

    /// Take a user's password away
    ///
    /// Sessions that were begun with it end. Without a password this changes nothing.
    #[oai(path = "/v1/users/:id/password", method = "delete", operation_id = "removePassword")]
    async fn remove(
        &self,
        ask: Ask,
        /// The user's id.
        #[oai(name = "id")]
        user: Path<String>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<PasswordView>, Problem> {
        ask.without_scopes(SCOPED).await?;
        let user = id::<UserId>(&user, Code::UserNotFound)?;
        let people = people(&ask).await?;
        people.user(user).ok_or_else(|| Problem::new(Code::UserNotFound))?;
        ask.api.gate.drop_password(ask.tenant()?, user, ask.change()).await?;
        Ok(Reply::new(PasswordView { user_id: user.to_string(), has_password: false }))
    }

    /// Change one's own password
    ///
    /// For a person who is logged in and knows the current one. Every session of the person ends, and the answer has the
    /// cookies of a new one. Who does not know it is answered ever more slowly, as at a login. Needs `X-CSRF-Token`.
    #[oai(path = "/v1/auth/password", method = "put", operation_id = "changeOwnPassword")]
    async fn change(&self, ask: Ask, body: Strict<ChangePassword>) -> Result<WithCookies<SessionBody>, Problem> {
        let has_other = ["authorization", "x-api-key"].iter().any(|name| ask.headers.contains_key(*name));
        let session = cookie(&ask, Cookie::Session).filter(|_| !has_other);
        let whose = ask.admitted.caller.as_ref().and_then(|caller| caller.tenant.zip(caller.person));
        let (Some(session), Some((tenant, user))) = (session, whose) else {
            return Err(ask.deny("Only a user who is logged in with a session changes a password of their own.").await);
        };
        let ChangePassword { current_password, new_password } = body.0;
        let (current, new) = (Zeroizing::new(current_password), Zeroizing::new(new_password));
        let change = PasswordChange { tenant, user, current, new, source: ask.source, session: session.to_owned() };
        match ask.api.gate.change_own_password(change, ask.change()).await {
            Ok(entered) => Ok(WithCookies::of(entered)),
            Err(NotChanged::Flawed(flaw)) => Err(Problem::field("/newPassword", flaw)),
            // Not 401: the session is good.
            Err(NotChanged::Refused(LoginRefused::Credentials)) => {
                Err(Problem::field("/currentPassword", "is not the password"))
            }
            Err(NotChanged::Refused(refused)) => Err(refused.into()),
        }
    }
}

/// A password to be. Not printable.
#[derive(Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct SetPassword {
    password: String,
}

/// A password, and the one that is to take its place. Not printable.
#[derive(Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct ChangePassword {
    current_password: String,
    /// 12 characters to 256 bytes, without the user name in it, and not the current one.
    new_password: String,
}

/// Whether a user has a password.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "Password", rename_all = "camelCase")]
pub(super) struct PasswordView {
    user_id: String,
    has_password: bool,
}

impl Example for SetPassword {
    fn example() -> SetPassword {
        SetPassword { password: "correct horse battery staple".into() }
    }
}

impl Example for ChangePassword {
    fn example() -> ChangePassword {
        let current_password = "correct horse battery staple".into();
        ChangePassword { current_password, new_password: "four other random words".into() }
    }
}
