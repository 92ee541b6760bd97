//! `/v1/tenants/{id}/api-keys`: issuing, listing and revoking a tenant's keys.

use poem_openapi::param::{Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::authorize::Ask;
use super::body::Strict;
use super::document::Tag;
use super::problem::{FieldProblem, Problem};
use super::reply::Reply;
use super::view::{instant, page_limit};
use crate::access::api_key;
use crate::directory::handle::NewKey;
use crate::domain::tenant::{ApiKey, Role};

/// The word in a key that says which kind of platform it opens.
pub(super) const KEY_ENVIRONMENT: &str = "live";
/// Longest name, in characters.
const NAME_CHARACTERS_MAX: usize = 100;

pub(super) struct ApiKeys;

#[OpenApi(tag = "Tag::ApiKeys")]
impl ApiKeys {
    /// Issue an API key
    ///
    /// The key is shown in this answer and never again. An answer repeated under the same Idempotency-Key does not
    /// show it.
    #[oai(path = "/v1/tenants/:id/api-keys", method = "post", operation_id = "createApiKey")]
    async fn create(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "id")]
        _id: Path<String>,
        body: Strict<CreateApiKey>,
    ) -> Result<Reply<ApiKeyCreated, 201>, Problem> {
        let (name, role) = body.0.checked()?;
        let minted = api_key::mint(ask.api.gate.pepper(), KEY_ENVIRONMENT);
        let key = NewKey { id: minted.id, hash: minted.hash, name, role };
        let answer = ask.api.directory.issue_key(ask.tenant()?, key, ask.change(), render_without_key).await?;
        Ok(Reply::of(answer, |key: ApiKey| ApiKeyCreated::of(&key, Some(&minted.secret))))
    }

    /// List API keys
    ///
    /// Revoked ones too; the keys themselves are never shown.
    #[oai(path = "/v1/tenants/:id/api-keys", method = "get", operation_id = "listApiKeys")]
    async fn list(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "id")]
        _id: Path<String>,
        /// Items of the page, from 1 to 500; 50 when absent.
        limit: Query<Option<String>>,
        /// `nextCursor` of the page before.
        cursor: Query<Option<String>>,
    ) -> Result<Reply<ApiKeyPage>, Problem> {
        let limit = page_limit(limit.0.as_deref())?;
        let after = ask.open(cursor.0.as_deref(), |text| Some(text.to_owned()))?;
        let mut keys = ask.api.directory.api_keys(ask.row()?.id);
        keys.sort_by(|one, other| one.id.cmp(&other.id));
        let rest = keys.iter().filter(|key| after.as_ref().is_none_or(|after| key.id > *after));
        let found: Vec<&ApiKey> = rest.take(limit + 1).collect();
        let next = (found.len() > limit).then(|| ask.seal(&found[limit - 1].id));
        let items = found.into_iter().take(limit).map(ApiKeyView::of).collect();
        Ok(Reply::new(ApiKeyPage { items, next_cursor: next }))
    }

    /// Revoke an API key
    ///
    /// Refused for every request that begins after this answer. Revoking it again changes nothing.
    #[oai(path = "/v1/tenants/:id/api-keys/:keyId", method = "delete", operation_id = "revokeApiKey")]
    async fn revoke(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "id")]
        _id: Path<String>,
        /// The key's public id.
        #[oai(name = "keyId")]
        key_id: Path<String>,
    ) -> Result<Reply<ApiKeyView>, Problem> {
        let key = ask.api.directory.revoke_key(ask.tenant()?, &key_id, ask.change()).await?;
        Ok(Reply::new(ApiKeyView::of(&key)))
    }
}

/// What is stored with an idempotency key: everything but the secret.
fn render_without_key(key: &ApiKey) -> String {
    serde_json::to_string(&ApiKeyCreated::of(key, None)).unwrap_or_default()
}

/// A key to be.
#[derive(Debug, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct CreateApiKey {
    /// What it is for: 1 to 100 characters.
    name: String,
    /// `admin`, `developer`, `analyst`, `reporter` or `reader`.
    role: String,
}

impl CreateApiKey {
    fn checked(self) -> Result<(String, Role), Problem> {
        let mut problems = Vec::new();
        let mut wrong = |pointer: &str, message: &str| {
            problems.push(FieldProblem { pointer: pointer.into(), message: message.into() });
        };
        let characters = self.name.chars().count();
        let clean = self.name.trim() == self.name && !self.name.chars().any(char::is_control);
        if !clean || !(1..=NAME_CHARACTERS_MAX).contains(&characters) {
            wrong("/name", "must be 1 to 100 characters, none of them a control character, without space at the ends");
        }
        let role = Role::from_name(&self.role).filter(|role| *role != Role::PlatformAdmin);
        if role.is_none() {
            wrong("/role", "must be admin, developer, analyst, reporter or reader");
        }
        match role {
            Some(role) if problems.is_empty() => Ok((self.name, role)),
            _ => Err(Problem::fields(problems)),
        }
    }
}

/// An API key, without the key.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "ApiKey", rename_all = "camelCase", example)]
pub(super) struct ApiKeyView {
    /// The public part, which names the key in logs and rules.
    id: String,
    name: String,
    role: String,
    created_at: String,
    /// Absent while the key is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    revoked_at: Option<String>,
}

/// A page of API keys.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct ApiKeyPage {
    items: Vec<ApiKeyView>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

/// A new API key.
#[derive(Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example)]
pub(super) struct ApiKeyCreated {
    api_key: ApiKeyView,
    /// Shown once: absent when the answer is a repeated one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    key: Option<String>,
}

impl ApiKeyCreated {
    fn of(key: &ApiKey, secret: Option<&SecretString>) -> ApiKeyCreated {
        ApiKeyCreated { api_key: ApiKeyView::of(key), key: secret.map(|secret| secret.expose_secret().to_owned()) }
    }
}

impl ApiKeyView {
    fn of(key: &ApiKey) -> ApiKeyView {
        ApiKeyView {
            id: key.id.clone(),
            name: key.name.clone(),
            role: key.role.name().to_owned(),
            created_at: instant(key.created_at),
            revoked_at: key.revoked_at.map(instant),
        }
    }
}

impl Example for CreateApiKey {
    fn example() -> CreateApiKey {
        CreateApiKey { name: "kong production".into(), role: "reporter".into() }
    }
}

impl Example for ApiKeyView {
    fn example() -> ApiKeyView {
        ApiKeyView {
            id: "7Q2MXK4T".into(),
            name: "kong production".into(),
            role: "reporter".into(),
            created_at: "2026-11-20T15:37:12.345Z".into(),
            revoked_at: None,
        }
    }
}

impl Example for ApiKeyCreated {
    fn example() -> ApiKeyCreated {
        ApiKeyCreated { api_key: Example::example(), key: Some("shown here once".into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_tenant_s_key_has_the_platform_s_role() {
        for (name, role, problems) in
            [("kong", "reporter", 0), ("kong", "platformAdmin", 1), ("kong", "", 1), (" ", "root", 2), ("", "admin", 1)]
        {
            let checked = CreateApiKey { name: name.into(), role: role.into() }.checked();
            let found = checked.err().map_or(0, |problem| problem.details["fields"].as_array().unwrap().len());
            assert_eq!(found, problems, "{name:?} {role:?}");
        }
    }
}
