//! `/v1/users/{id}/password`: passwords of people who log in here rather than at an identity provider.

use poem_openapi::param::{Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::authorize::Ask;
use super::body::Strict;
use super::document::Tag;
use super::people::{id, people};
use super::problem::{Code, Problem};
use super::reply::Reply;
use crate::access::login::password_flaw;
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
}

/// A password to be. Not printable.
#[derive(Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct SetPassword {
    password: String,
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
