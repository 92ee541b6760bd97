//! A tenant's API keys: answered from memory, and changed with a record in the tenant's chain.

use super::handle::{Handle, Refused, record};
use super::registrar::{Change, What, Written};
use super::workflow::{self, Plan, PlannedRecord};
use crate::domain::api_key::{ApiKey, Edit, Ended, Terms};
use crate::domain::ids::TenantId;
use crate::domain::organization::{Expected, Revoked};
use crate::domain::request::{Answer, Request};
use crate::domain::tenant::Role;
use crate::domain::time::Timestamp;

/// Live API keys one tenant may have.
pub const API_KEYS_MAX: usize = 100;

/// A key that the http door has made. The secret itself never comes past that door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    pub id: String,
    /// HMAC-SHA-256 of the whole key under the platform's pepper.
    pub hash: [u8; 32],
    pub name: String,
    pub role: Role,
}

impl NewKey {
    pub(super) fn into_key(self, tenant: TenantId, terms: Terms, now: Timestamp) -> ApiKey {
        ApiKey {
            id: self.id,
            tenant,
            name: self.name,
            role: self.role,
            hash: self.hash,
            terms,
            previous: None,
            version: 1,
            created_at: now,
            revoked_at: None,
        }
    }
}

impl Handle {
    /// The API key with this public id; one that has ended too.
    #[must_use]
    pub fn api_key(&self, id: &str) -> Option<ApiKey> {
        self.index().key(id)
    }

    /// The tenant's keys, oldest first.
    #[must_use]
    pub fn api_keys(&self, tenant: TenantId) -> Vec<ApiKey> {
        self.index().keys_of(tenant)
    }

    /// Is this a key of the tenant's that opens nothing any more? A label that names no key of ours is none.
    #[must_use]
    pub fn key_ended(&self, tenant: TenantId, id: &str) -> Option<Revoked> {
        self.index().key_ended(tenant, id, self.parts().clock.now()).map(|ended| match ended {
            Ended::Revoked => Revoked::ApiKey,
            Ended::Expired => Revoked::ApiKeyExpired,
        })
    }

    /// Gives a tenant another key. `render` makes the answer that is kept for the idempotency key, without the secret.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn issue_key(
        &self,
        tenant: TenantId,
        key: NewKey,
        terms: Terms,
        request: Request,
        render: fn(&ApiKey) -> String,
    ) -> Result<Answer<ApiKey>, Refused> {
        let key = key.into_key(tenant, terms, self.parts().clock.now());
        self.change_key(What::IssueKey { key }, "apiKey.created", request, render).await
    }

    /// Changes what narrows a key, or exchanges its secret; from the next request on.
    ///
    /// # Errors
    /// [`Refused`]; [`Refused::Key`] for what the key itself does not allow.
    pub async fn edit_key(
        &self,
        tenant: TenantId,
        id: &str,
        edit: Edit,
        expected: Expected,
        request: Request,
        render: fn(&ApiKey) -> String,
    ) -> Result<Answer<ApiKey>, Refused> {
        let action = match edit {
            Edit::Rotate { .. } => "apiKey.rotated",
            Edit::Patch(_) => "apiKey.changed",
        };
        let what = What::EditKey { tenant, id: id.to_owned(), edit, expected };
        self.change_key(what, action, request, render).await
    }

    async fn change_key(
        &self,
        what: What,
        action: &'static str,
        request: Request,
        render: fn(&ApiKey) -> String,
    ) -> Result<Answer<ApiKey>, Refused> {
        let idempotency = request.idempotency.clone();
        let plan = Box::new(move |written: &Written| {
            let records = written.key.iter().map(|key| key_record(&request, action, key)).collect();
            let answer = || written.key.as_ref().map(render).unwrap_or_default();
            Plan { records, ..Plan::default() }.answering(request.idempotency.as_ref(), answer)
        });
        match workflow::run(self, Change { what, plan, idempotency }).await? {
            Answer::Fresh(written) => written.key.map(Answer::Fresh).ok_or(Refused::UnknownKey),
            Answer::Replayed(answer) => Ok(Answer::Replayed(answer)),
        }
    }

    /// Revokes a key for every request that begins after the catalogue has the change, which is before this returns.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn revoke_key(&self, tenant: TenantId, id: &str, request: Request) -> Result<ApiKey, Refused> {
        let plan = Box::new(move |written: &Written| {
            let records = written.key.iter().map(|key| key_record(&request, "apiKey.revoked", key)).collect();
            Plan { records, ..Plan::default() }
        });
        let what = What::RevokeKey { tenant, id: id.to_owned() };
        match workflow::run(self, Change { what, plan, idempotency: None }).await? {
            Answer::Fresh(Written { key: Some(key), .. }) => Ok(key),
            _ => Err(Refused::UnknownKey),
        }
    }
}

/// What a record says of a key: what it may do and until when, and until when an exchanged secret opens it.
pub(super) fn key_record(request: &Request, action: &str, key: &ApiKey) -> PlannedRecord {
    let mut payload = serde_json::json!({ "name": key.name, "role": key.role.name() });
    let terms = &key.terms;
    if !terms.scopes.is_empty() {
        payload["scopes"] = terms.scopes.iter().map(ToString::to_string).collect();
    }
    if let Some(at) = terms.expires_at {
        payload["expiresAt"] = at.to_string().into();
    }
    if !terms.limits.is_empty() {
        payload["limitedClasses"] = terms.limits.iter().map(|(class, _)| class.name()).collect();
    }
    if let Some(previous) = key.previous.filter(|_| action == "apiKey.rotated") {
        payload["previousUntil"] = previous.until.to_string().into();
    }
    record(request, action, format!("apiKey:{}", key.id), payload.to_string())
}
