//! Providers, and the policy of their tenant.

use std::sync::Arc;

use serde_json::json;

use super::{providers, record};
use crate::domain::books::Posting;
use crate::domain::ids::ProviderId;
use crate::domain::organization::Expected;
use crate::domain::provider::policy::Policy;
use crate::domain::provider::{Profile, Provider, Refusal};
use crate::domain::request::Request;
use crate::store::database::Connection;
use crate::store::provider as rows;
use crate::tenant::task::{Change, Halt};

/// A new provider, without a secret.
#[derive(Debug)]
pub struct CreateProvider {
    pub id: ProviderId,
    pub profile: Profile,
}

impl Change for CreateProvider {
    type Done = Arc<Provider>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<Provider>, Halt<Refusal>> {
        let now = posting.now();
        let provider = providers(posting).create(self.id, self.profile.clone(), now).map_err(Halt::Refused)?;
        rows::put(database, &provider).await?;
        let payload = json!({ "kind": provider.profile.kind.name(), "baseUrl": provider.profile.base_url });
        record(posting, request, "provider.created", target(provider.id), payload);
        Ok(provider)
    }
}

/// A provider with another profile. One that stays as it was is left alone; one that leads elsewhere loses its secret.
#[derive(Debug)]
pub struct ReplaceProvider {
    pub id: ProviderId,
    pub profile: Profile,
    pub expected: Expected,
}

impl Change for ReplaceProvider {
    type Done = Arc<Provider>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<Provider>, Halt<Refusal>> {
        let before = posting.books.providers.get(self.id).cloned();
        let now = posting.now();
        let provider =
            providers(posting).replace(self.id, self.profile.clone(), &self.expected, now).map_err(Halt::Refused)?;
        if before.as_ref().is_some_and(|before| before.version == provider.version) {
            return Ok(provider);
        }
        rows::put(database, &provider).await?;
        let dropped = provider.secret.is_none() && before.is_some_and(|before| before.secret.is_some());
        if dropped {
            rows::delete_secret(database, self.id).await?;
        }
        let payload = json!({
            "version": provider.version,
            "baseUrl": provider.profile.base_url,
            "active": provider.profile.active,
            "secretRemoved": dropped,
        });
        record(posting, request, "provider.changed", target(provider.id), payload);
        Ok(provider)
    }
}

/// A provider less, with its secret.
#[derive(Debug)]
pub struct DeleteProvider {
    pub id: ProviderId,
    pub expected: Expected,
}

impl Change for DeleteProvider {
    type Done = Arc<Provider>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<Provider>, Halt<Refusal>> {
        let now = posting.now();
        let (provider, policy) = match providers(posting).delete(self.id, &self.expected, now) {
            Ok(gone) => gone,
            Err(refusal) => return Err(Halt::Refused(refusal)),
        };
        rows::delete(database, self.id).await?;
        if let Some(policy) = policy {
            rows::put_policy(database, &policy).await?;
        }
        let payload = json!({ "version": provider.version });
        record(posting, request, "provider.deleted", target(self.id), payload);
        Ok(provider)
    }
}

/// Another policy. What it says is judged here, because it names providers.
#[derive(Debug)]
pub struct ReplacePolicy {
    /// Its version and its instant are made here.
    pub policy: Policy,
    pub expected: Expected,
}

impl Change for ReplacePolicy {
    type Done = Arc<Policy>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<Policy>, Halt<Refusal>> {
        let books = &posting.books.providers;
        let version = books.policy.version;
        if !self.expected.is(version) {
            return Err(Halt::Refused(Refusal::Stale));
        }
        let flaws = self.policy.flaws(|id| books.get(id).is_some());
        if !flaws.is_empty() {
            return Err(Halt::Refused(Refusal::Flawed(flaws)));
        }
        let policy = Policy { version: version + 1, updated_at: posting.now(), ..self.policy.clone() };
        rows::put_policy(database, &policy).await?;
        let policy = Arc::new(policy);
        providers(posting).policy = policy.clone();
        let payload = json!({
            "version": policy.version,
            "egressHosts": policy.egress,
            "models": policy.models,
            "failover": policy.failover,
        });
        record(posting, request, "providerPolicy.replaced", "providerPolicy".into(), payload);
        Ok(policy)
    }
}

/// That a connection was tried, and what came of it.
#[derive(Debug)]
pub struct NoteTest {
    pub id: ProviderId,
    pub outcome: &'static str,
    /// The answer, as it is kept for an idempotency key.
    pub answer: String,
}

impl Change for NoteTest {
    type Done = String;
    type Refused = Refusal;

    async fn apply(
        &self,
        _: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<String, Halt<Refusal>> {
        record(posting, request, "provider.tested", target(self.id), json!({ "outcome": self.outcome }));
        Ok(self.answer.clone())
    }
}

pub(super) fn target(id: ProviderId) -> String {
    format!("provider:{id}")
}
