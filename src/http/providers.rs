//! `/v1/providers`: a tenant's LLM providers.

use std::sync::Arc;

use poem_openapi::param::{Header, Path, Query};
use poem_openapi::types::Example;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::authorize::Ask;
use super::body::{Strict, present};
use super::document::Tag;
use super::people::{home, id, page};
use super::precondition;
use super::problem::{Code, Problem};
use super::reply::Reply;
use super::view::{instant, page_limit};
use crate::clock;
use crate::directory::task::Declined as PlatformDeclined;
use crate::domain::ids::{ProviderId, TenantId};
use crate::domain::job::{Draft, Kind};
use crate::domain::organization::Flaw;
use crate::domain::provider::{Profile, Provider, ProviderBooks, ProviderKind, Refusal};
use crate::domain::request::{Answer, Request};
use crate::outlet::provider_probe::{self, TooSoon};
use crate::tenant::provider::{CreateProvider, DeleteProvider, ReplaceProvider};
use crate::vault::desk::DeskError;
use crate::vault::{KekError, Vault, VaultError};

/// How often a sync is begun that a change asked for.
const SYNC_ATTEMPTS: i64 = 20;

pub(super) struct Providers;

#[OpenApi(tag = "Tag::Providers")]
impl Providers {
    /// Add a provider
    ///
    /// Without a secret, which is given by `PUT …/secret`. Its host must be its kind's own or one of the policy's
    /// `egressHosts`. The answer's ETag is the provider's version.
    #[oai(path = "/v1/providers", method = "post", operation_id = "createProvider")]
    async fn create(
        &self,
        ask: Ask,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<ProviderInput>,
    ) -> Result<Reply<ProviderView, 201>, Problem> {
        vault(&ask)?;
        let home = home(&ask).await?;
        let profile = body.0.profile(&ask, &*home.providers()?)?;
        let change = CreateProvider { id: ProviderId(clock::new_id()), profile };
        let answer = home.change(change, ask.change(), |done| render(done)).await??;
        tell_litellm(&ask, &answer).await;
        Ok(reply(answer))
    }

    /// Page through the providers, oldest first
    #[oai(path = "/v1/providers", method = "get", operation_id = "listProviders")]
    async fn list(
        &self,
        ask: Ask,
        /// Items of the page, from 1 to 500; 50 when absent.
        limit: Query<Option<String>>,
        /// `nextCursor` of the page before.
        cursor: Query<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<ProviderPage>, Problem> {
        vault(&ask)?;
        let limit = page_limit(limit.0.as_deref())?;
        let after = ask.open(cursor.0.as_deref(), |text| text.parse().ok())?;
        let books = home(&ask).await?.providers()?;
        let (found, more) = page(books.after(after), limit);
        let next_cursor = found.last().filter(|_| more).map(|provider| ask.seal(&provider.id.to_string()));
        let items = found.into_iter().map(|provider| ProviderView::of(provider)).collect();
        Ok(Reply::new(ProviderPage { items, next_cursor }))
    }

    /// Read a provider
    ///
    /// The answer's ETag is what `If-Match` of a change takes. Of its secret no more is shown than its last four characters
    /// and a fingerprint, by which two can be told apart.
    #[oai(path = "/v1/providers/:id", method = "get", operation_id = "getProvider")]
    async fn get(
        &self,
        ask: Ask,
        /// The provider's id.
        #[oai(name = "id")]
        provider: Path<String>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<ProviderView>, Problem> {
        vault(&ask)?;
        let provider = id(&provider, Code::ProviderNotFound)?;
        let books = home(&ask).await?.providers()?;
        let provider = books.get(provider).ok_or_else(|| Problem::new(Code::ProviderNotFound))?;
        Ok(Reply::new(ProviderView::of(provider)).tagged(provider.version))
    }

    /// Replace a provider's profile
    ///
    /// What the body does not have is gone; `active` must be said. The kind cannot be changed. A provider that leads elsewhere
    /// from now on loses its secret: a key is sent to nobody it was not given for.
    #[oai(path = "/v1/providers/:id", method = "put", operation_id = "replaceProvider")]
    async fn replace(
        &self,
        ask: Ask,
        /// The provider's id.
        #[oai(name = "id")]
        provider: Path<String>,
        /// The ETag that was read, or `*`.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
        body: Strict<ProviderInput>,
    ) -> Result<Reply<ProviderView>, Problem> {
        vault(&ask)?;
        let expected = precondition::required(&ask)?;
        if body.0.active.is_none() {
            return Err(Problem::field("/active", "is required"));
        }
        let home = home(&ask).await?;
        let profile = body.0.profile(&ask, &*home.providers()?)?;
        let change = ReplaceProvider { id: id(&provider, Code::ProviderNotFound)?, profile, expected };
        let answer = home.change(change, ask.change(), |done| render(done)).await??;
        tell_litellm(&ask, &answer).await;
        Ok(reply(answer))
    }

    /// Delete a provider
    ///
    /// With its secret, and out of the fail-over order. Answers the provider as it was.
    #[oai(path = "/v1/providers/:id", method = "delete", operation_id = "deleteProvider")]
    async fn delete(
        &self,
        ask: Ask,
        /// The provider's id.
        #[oai(name = "id")]
        provider: Path<String>,
        /// The ETag that was read, or `*`.
        #[oai(name = "If-Match")]
        _if_match: Header<Option<String>>,
        /// Whose, for an administrator of the platform.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<ProviderView>, Problem> {
        vault(&ask)?;
        let expected = precondition::required(&ask)?;
        let change = DeleteProvider { id: id(&provider, Code::ProviderNotFound)?, expected };
        let answer = home(&ask).await?.change(change, ask.change(), |done| render(done)).await??;
        tell_litellm(&ask, &answer).await;
        Ok(Reply::of(answer, |done| ProviderView::of(&done)))
    }
}

/// The vault, without which nothing here is done.
///
/// # Errors
/// [`Code::VaultOff`].
pub(super) fn vault(ask: &Ask) -> Result<&Vault, Problem> {
    ask.api.vault.as_ref().ok_or_else(|| Problem::new(Code::VaultOff))
}

/// May the tenant's keys be sent to this provider's host, by its policy of now?
///
/// # Errors
/// [`Code::EgressRefused`].
pub(super) fn check_egress(books: &ProviderBooks, profile: &Profile) -> Result<(), Problem> {
    if provider_probe::host_is_allowed(&books.policy, profile) {
        Ok(())
    } else {
        Err(Problem::new(Code::EgressRefused))
    }
}

/// Has LiteLLM told what a change of the tenant's providers means for it. The change is made, whatever becomes of this: what
/// is missed is found by the next comparison of everything.
pub(super) async fn tell_litellm(ask: &Ask, answer: &Answer<Arc<Provider>>) {
    if let (Answer::Fresh(provider), Ok(tenant)) = (answer, ask.tenant()) {
        ask_for_sync(ask, tenant, &format!("{}:{}", provider.id, provider.version)).await;
    }
}

/// As [`tell_litellm`], for another change; `what` names it.
pub(super) async fn ask_for_sync(ask: &Ask, tenant: TenantId, what: &str) {
    if !ask.api.syncs_litellm {
        return;
    }
    let kind = Kind::LiteLlmSync.name();
    let Request { actor, request_id, .. } = ask.change();
    let draft = Draft {
        kind: kind.into(),
        tenant: Some(tenant),
        key: Some(format!("{kind}:{tenant}:{what}")),
        arguments: "{}".into(),
        run_at: ask.api.clock.now(),
        every_micros: 0,
        attempts_max: SYNC_ATTEMPTS,
        actor: actor.clone(),
        request_id: request_id.clone(),
    };
    let request = Request { actor, request_id, idempotency: None };
    if let Err(error) = ask.api.directory.submit_job(draft, request, |_| String::new()).await {
        let reason = match error {
            PlatformDeclined::Unavailable(reason) => reason,
            other => other.to_string(),
        };
        tracing::warn!(%tenant, reason, "LiteLLM could not be told of a change; the next comparison will");
    }
}

pub(super) fn reply<const STATUS: u16>(answer: Answer<Arc<Provider>>) -> Reply<ProviderView, STATUS> {
    let version = match &answer {
        Answer::Fresh(done) => Some(done.version),
        Answer::Replayed(_) => None,
    };
    let reply = Reply::of(answer, |done| ProviderView::of(&done));
    match version {
        Some(version) => reply.tagged(version),
        None => reply,
    }
}

/// What is kept for an idempotency key; what is shown of a secret is all there is of it.
pub(super) fn render(provider: &Provider) -> String {
    serde_json::to_string(&ProviderView::of(provider)).unwrap_or_default()
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        match refusal {
            Refusal::Unknown => Problem::new(Code::ProviderNotFound),
            Refusal::NoSecret => Problem::new(Code::ProviderSecretNotFound),
            Refusal::Stale => Problem::new(Code::PreconditionFailed),
            Refusal::Flawed(flaws) => Problem::flaws(flaws),
            Refusal::NameTaken => Problem::new(Code::IdentityTaken).with("pointer", "/name".into()),
            Refusal::Full => Problem::new(Code::TooManyProviders),
            Refusal::Inactive => Problem::new(Code::ProviderInactive),
            Refusal::ModelNotAllowed => Problem::new(Code::ModelNotAllowed),
            Refusal::KeyChanged => Problem::new(Code::StoreUnavailable),
        }
    }
}

impl From<VaultError> for Problem {
    fn from(error: VaultError) -> Problem {
        match &error {
            VaultError::Kek(KekError::Unavailable(_)) => tracing::warn!(%error, "the vault cannot be used"),
            _ => tracing::error!(%error, "a secret cannot be read"),
        }
        Problem::new(Code::VaultUnavailable)
    }
}

impl From<DeskError> for Problem {
    fn from(error: DeskError) -> Problem {
        match error {
            DeskError::Vault(error) => error.into(),
            DeskError::Away(unavailable) => unavailable.into(),
            DeskError::Declined(declined) => declined.into(),
        }
    }
}

impl From<TooSoon> for Problem {
    fn from(too_soon: TooSoon) -> Problem {
        Problem::new(Code::TestedTooOften)
            .saying("The provider was tested just now; try again after Retry-After.")
            .after_ms(u64::try_from(too_soon.again_after.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Everything about a provider that may be set, but for its secret.
#[derive(Debug, Default, Deserialize, Serialize, Object)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[oai(rename_all = "camelCase", deny_unknown_fields, example)]
pub(super) struct ProviderInput {
    /// Unique in the tenant: 1 to 100 characters.
    name: String,
    /// `openai`, `anthropic`, `google`, `groq`, `azureOpenai`, `bedrock`, `openaiCompatible`, or `litellm`: the platform's own
    /// LiteLLM, whose virtual key the platform makes itself.
    kind: String,
    /// Required for `azureOpenai` and `openaiCompatible`; the kind's own when absent. Without a slash at its end.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    base_url: Option<String>,
    /// Of `bedrock`, as `eu-central-1`.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    region: Option<String>,
    /// Of `azureOpenai`; `2024-10-21` when absent.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    api_version: Option<String>,
    /// `true` when absent from a new provider; required when one is replaced.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    active: Option<bool>,
}

impl ProviderInput {
    /// Every problem of every field at once.
    fn profile(self, ask: &Ask, books: &ProviderBooks) -> Result<Profile, Problem> {
        let Some(kind) = ProviderKind::from_name(&self.kind) else {
            let names = ProviderKind::ALL.map(ProviderKind::name).join(", ");
            return Err(Problem::field("/kind", format!("must be one of {names}")));
        };
        let ProviderInput { name, base_url, region, api_version, active, .. } = self;
        let profile = Profile { name, kind, base_url, region, api_version, active: active.unwrap_or(true) };
        let mut flaws = profile.flaws();
        if let Some(url) = &profile.base_url {
            match provider_probe::url_problem(url, ask.api.probe.allows_private()) {
                Some(problem) => flaws.push(Flaw::new("/baseUrl", problem)),
                None if flaws.is_empty() && !provider_probe::host_is_allowed(&books.policy, &profile) => {
                    flaws.push(Flaw::new("/baseUrl", "names a host that is not one of the policy's egressHosts"));
                }
                None => {}
            }
        }
        if flaws.is_empty() { Ok(profile) } else { Err(Problem::flaws(flaws)) }
    }
}

/// A provider.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "Provider", rename_all = "camelCase", example)]
pub(super) struct ProviderView {
    id: String,
    name: String,
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    base_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    region: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    api_version: Option<String>,
    active: bool,
    /// Absent while it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    secret: Option<SecretView>,
    /// Its ETag, between quotation marks.
    version: i64,
    created_at: String,
    updated_at: String,
}

/// What is shown of a secret.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "ProviderSecret", rename_all = "camelCase")]
pub(super) struct SecretView {
    /// One more for each value it has had.
    version: i64,
    last_four: String,
    /// The same for the same secret of the same tenant.
    fingerprint: String,
    set_at: String,
}

impl ProviderView {
    pub(super) fn of(provider: &Provider) -> ProviderView {
        let Provider { id, profile, version, created_at, updated_at, secret, .. } = provider;
        ProviderView {
            id: id.to_string(),
            name: profile.name.clone(),
            kind: profile.kind.name().to_owned(),
            base_url: profile.base_url.clone(),
            region: profile.region.clone(),
            api_version: profile.api_version.clone(),
            active: profile.active,
            secret: secret.as_ref().map(|secret| SecretView {
                version: secret.version,
                last_four: secret.shown.last_four.clone(),
                fingerprint: secret.shown.fingerprint.clone(),
                set_at: instant(secret.set_at),
            }),
            version: *version,
            created_at: instant(*created_at),
            updated_at: instant(*updated_at),
        }
    }
}

/// A page of providers.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase")]
pub(super) struct ProviderPage {
    items: Vec<ProviderView>,
    /// Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    next_cursor: Option<String>,
}

impl Example for ProviderInput {
    fn example() -> ProviderInput {
        ProviderInput { name: "OpenAI production".into(), kind: "openai".into(), ..ProviderInput::default() }
    }
}

impl Example for ProviderView {
    fn example() -> ProviderView {
        let at = "2026-11-20T15:37:12.345Z".to_owned();
        ProviderView {
            id: "0199a8b2-5c00-7abc-8def-0123456789ab".into(),
            name: "OpenAI production".into(),
            kind: "openai".into(),
            base_url: None,
            region: None,
            api_version: None,
            active: true,
            secret: Some(SecretView {
                version: 1,
                last_four: "x7Qk".into(),
                fingerprint: "9f86d081884c7d65".into(),
                set_at: at.clone(),
            }),
            version: 2,
            created_at: at.clone(),
            updated_at: at,
        }
    }
}
