//! `/v1/tenants/{id}/api-keys`: issuing, listing, changing, rotating and revoking a tenant's keys.

use poem_openapi::OpenApi;
use poem_openapi::param::{Header, Path, Query};

use super::api_key_view::{ApiKeyCreated, ApiKeyPage, ApiKeyPatch, ApiKeyView, CreateApiKey, RotateApiKey};
use super::authorize::Ask;
use super::body::Strict;
use super::document::Tag;
use super::precondition;
use super::problem::{Code, Problem};
use super::reply::Reply;
use super::view::page_limit;
use crate::access::api_key;
use crate::directory::handle::NewKey;
use crate::domain::api_key::{ApiKey, Edit, Terms};
use crate::domain::policy::giver::{Gift, Giver, World};
use crate::domain::request::Answer;
use crate::domain::tenant::Role;

/// The word in a key that says which kind of platform it opens.
pub(super) const KEY_ENVIRONMENT: &str = "live";

pub(super) struct ApiKeys;

#[OpenApi(tag = "Tag::ApiKeys")]
impl ApiKeys {
    /// Issue an API key
    ///
    /// The key is shown in this answer and never again. An answer repeated under the same Idempotency-Key does not
    /// show it. A key holds what its role allows, less what its scopes do not cover; a caller whose own key has scopes
    /// issues only keys that hold no more, one whose own key expires only keys that expire no later, and one whose own key
    /// has rate limits only keys that have them as well, and no higher. The key's role, and what policies allow it, is handed
    /// out with it.
    #[oai(path = "/v1/tenants/:id/api-keys", method = "post", operation_id = "createApiKey")]
    async fn create(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "id")]
        _id: Path<String>,
        body: Strict<CreateApiKey>,
    ) -> Result<Reply<ApiKeyCreated, 201>, Problem> {
        let (name, role, terms) = body.0.checked(ask.api.clock.now())?;
        check(&ask, &[&terms]).await?;
        gives(&ask, None, role, &[&terms]).await?;
        let minted = api_key::mint(ask.api.gate.pepper(), KEY_ENVIRONMENT);
        let key = NewKey { id: minted.id, hash: minted.hash, name, role };
        let answer = ask.api.directory.issue_key(ask.tenant()?, key, terms, ask.change(), render_created).await?;
        Ok(Reply::of(answer, |key| ApiKeyCreated::of(&key, None, Some(&minted.secret))))
    }

    /// List API keys
    ///
    /// Revoked and expired ones too; the keys themselves are never shown.
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
        let items = found.into_iter().take(limit).map(|key| view(&ask, key)).collect();
        Ok(Reply::new(ApiKeyPage { items, next_cursor: next }))
    }

    /// Read an API key
    ///
    /// The key itself is never shown. The answer's ETag is what `If-Match` of a change takes.
    #[oai(path = "/v1/tenants/:id/api-keys/:keyId", method = "get", operation_id = "getApiKey")]
    async fn get(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "id")]
        _id: Path<String>,
        /// The key's public id.
        #[oai(name = "keyId")]
        key_id: Path<String>,
    ) -> Result<Reply<ApiKeyView>, Problem> {
        let key = found(&ask, &key_id)?;
        Ok(Reply::new(view(&ask, &key)).tagged(key.version))
    }

    /// Change an API key
    ///
    /// A merge patch (RFC 7396): what is absent stays, lists are replaced whole, `expiresAt: null` lets the key hold until
    /// it is revoked. Its role stays; issue another key for another one. It holds from the next request on. A key changes
    /// neither its own limits nor a key that holds longer, or is limited less, than itself.
    #[oai(path = "/v1/tenants/:id/api-keys/:keyId", method = "patch", operation_id = "patchApiKey")]
    async fn patch(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "id")]
        _id: Path<String>,
        /// The key's public id.
        #[oai(name = "keyId")]
        key_id: Path<String>,
        /// The ETag that was read, or `*`.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        body: Strict<ApiKeyPatch>,
    ) -> Result<Reply<ApiKeyView>, Problem> {
        let expected = precondition::required(&ask)?;
        let patch = body.0.checked(ask.api.clock.now())?;
        let key = found(&ask, &key_id)?;
        let terms = patch.terms_after(&key.terms);
        check(&ask, &[&key.terms, &terms]).await?;
        // Another name hands nothing out.
        if terms != key.terms {
            gives(&ask, Some(&key.id), key.role, &[&key.terms, &terms]).await?;
        }
        if is_own(&ask, &key) && terms.limits != key.terms.limits {
            return Err(ask.deny("A key does not change its own limits.").await);
        }
        let (directory, edit) = (&ask.api.directory, Edit::Patch(patch));
        let answer = directory.edit_key(ask.tenant()?, &key_id, edit, expected, ask.change(), render).await?;
        Ok(reply(answer, |key| view(&ask, key)))
    }

    /// Exchange an API key's secret
    ///
    /// The new key is shown in this answer and never again; an answer repeated under the same Idempotency-Key does not
    /// show it. The key's id stays, and with it its quotas, roles and limits. The old secret goes on opening the key for
    /// `overlapSeconds`, and ends by itself; both are good until then. While two are, another rotation is refused, unless
    /// it says `overlapSeconds: 0`, which ends every secret but the new one at once: what to do when a key has leaked.
    #[oai(path = "/v1/tenants/:id/api-keys/:keyId/rotate", method = "post", operation_id = "rotateApiKey")]
    async fn rotate(
        &self,
        ask: Ask,
        /// The tenant's id.
        #[oai(name = "id")]
        _id: Path<String>,
        /// The key's public id.
        #[oai(name = "keyId")]
        key_id: Path<String>,
        /// The ETag that was read, or `*`; may be absent.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        body: Strict<RotateApiKey>,
    ) -> Result<Reply<ApiKeyCreated>, Problem> {
        let expected = precondition::optional(&ask)?;
        let overlap_micros = body.0.checked()?;
        let key = found(&ask, &key_id)?;
        check(&ask, &[&key.terms]).await?;
        // Nobody is given more than it has by a new secret of its own.
        if !is_own(&ask, &key) {
            gives(&ask, Some(&key.id), key.role, &[&key.terms]).await?;
        }
        let minted = api_key::mint_again(ask.api.gate.pepper(), KEY_ENVIRONMENT, &key.id);
        let (directory, edit) = (&ask.api.directory, Edit::Rotate { hash: minted.hash, overlap_micros });
        let answer = directory.edit_key(ask.tenant()?, &key_id, edit, expected, ask.change(), render_created).await?;
        let used = directory.key_last_used(&key.id);
        Ok(reply(answer, |key| ApiKeyCreated::of(key, used, Some(&minted.secret))))
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
        Ok(Reply::new(view(&ask, &key)))
    }
}

/// A key of the tenant in question.
fn found(ask: &Ask, id: &str) -> Result<ApiKey, Problem> {
    let tenant = ask.row()?.id;
    let key = ask.api.directory.api_key(id).filter(|key| key.tenant == tenant);
    key.ok_or_else(|| Problem::new(Code::ApiKeyNotFound))
}

/// Is it the one that the caller asks with?
fn is_own(ask: &Ask, key: &ApiKey) -> bool {
    ask.admitted.caller.as_ref().is_some_and(|caller| caller.api_key.as_ref() == Some(&key.id))
}

/// Nobody lends out more than it has: a caller with scopes makes and opens only keys whose scopes its own cover, one that
/// ends only keys that end no later, one with limits only keys that are limited as much.
async fn check(ask: &Ask, terms: &[&Terms]) -> Result<(), Problem> {
    let caller = ask.admitted.caller.as_ref();
    let all = |holds: &dyn Fn(&Terms, &Terms) -> bool| {
        caller.is_some_and(|caller| terms.iter().all(|terms| holds(&caller.terms, terms)))
    };
    if !all(&|own, terms| own.leave_all_of(&terms.scopes)) {
        return Err(ask.deny("The caller's own scopes do not cover those of the key.").await);
    }
    if !all(&|own, terms| terms.end_by(own.expires_at)) {
        return Err(ask.deny("The caller's own key expires before that.").await);
    }
    if !all(&|own, terms| terms.are_limited_as(&own.limits)) {
        return Err(ask.deny("The caller's own key is limited more than that.").await);
    }
    Ok(())
}

/// Whoever may not give what it has not makes and opens only keys that may do no more than itself.
async fn gives(ask: &Ask, id: Option<&str>, role: Role, terms: &[&Terms]) -> Result<(), Problem> {
    let giver = ask.giver();
    if let Giver::Free = giver {
        return Ok(());
    }
    let (people, policies) = ask.handle().await?.policies()?;
    let world = World { people: &people, policies: &policies };
    let lacks = |terms: &&Terms| giver.lacks(&Gift::of_key(world, id, role, terms), world);
    match terms.iter().find_map(lacks) {
        Some(permission) => Err(ask.does_not_hold(permission).await),
        None => Ok(()),
    }
}

fn view(ask: &Ask, key: &ApiKey) -> ApiKeyView {
    ApiKeyView::of(key, ask.api.directory.key_last_used(&key.id))
}

fn reply<T>(answer: Answer<ApiKey>, view: impl FnOnce(&ApiKey) -> T) -> Reply<T> {
    match answer {
        Answer::Fresh(key) => Reply::new(view(&key)).tagged(key.version),
        stored @ Answer::Replayed(_) => Reply::of(stored, |key| view(&key)),
    }
}

fn render(key: &ApiKey) -> String {
    serde_json::to_string(&ApiKeyView::of(key, None)).unwrap_or_default()
}

/// What is stored with an idempotency key: everything but the secret.
fn render_created(key: &ApiKey) -> String {
    serde_json::to_string(&ApiKeyCreated::of(key, None, None)).unwrap_or_default()
}
