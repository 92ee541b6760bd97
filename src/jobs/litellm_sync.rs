//! Brings tenants' providers to LiteLLM: a credential per provider that has a secret, a virtual key per provider of the kind
//! `litellm`; and takes away what is not to be there any more.
//!
//! What is there is read first, so a job that was killed in the middle, or whose news came twice, does no harm; what was
//! done by hand under names of ours is undone. A tenant that is not active has nothing there; what is there of a tenant that
//! this process does not know stays. Each hand-over is in the tenant's chain before the secret leaves.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::data_keys::{absent, as_asked, away, change, no_vault, stop_if_asked, unsealed};
use super::kinds::{Errand, Failure, Tools, Work};
use crate::directory::handle::Absent;
use crate::domain::ids::{ProviderId, TenantId};
use crate::domain::job::Kind;
use crate::domain::organization::Expected;
use crate::domain::provider::policy::Policy;
use crate::domain::provider::{Provider, ProviderBooks};
use crate::domain::request::Request;
use crate::domain::tenant::Lifecycle;
use crate::outlet::litellm::{Edition, Kept, LiteLlm, LiteLlmError, Name};
use crate::outlet::provider_probe;
use crate::tenant::handle::Handle as Home;
use crate::tenant::provider::{DeleteSecret, NoteHandOver};
use crate::tenant::task::untold;
use crate::vault::Vault;
use crate::vault::desk::{self, DeskError};

/// Who is handed the secrets, in the chain's words.
const TO: &str = "litellm";
/// How often a tenant whose providers change meanwhile is compared in one job; each change has a job of its own, too.
const ROUNDS_MAX: usize = 5;

pub(super) struct LiteLlmSync(pub(super) Tools);

impl Work for LiteLlmSync {
    fn kind(&self) -> Kind {
        Kind::LiteLlmSync
    }

    fn run<'a>(&'a self, errand: &'a Errand) -> BoxFuture<'a, Result<Value, Failure>> {
        async move {
            if self.0.litellm.is_none() && errand.job.draft.every_micros > 0 {
                // Begun when there was one: nothing is to be compared, and nothing is wrong.
                return Ok(json!({ "skipped": "there is no LiteLLM" }));
            }
            let vault = self.0.vault.as_ref().ok_or_else(no_vault)?;
            let (litellm, _) =
                self.0.litellm.as_ref().ok_or_else(|| Failure::Hopeless("there is no LiteLLM".into()))?;
            let mut sync = Sync { vault, litellm, errand, counts: Counts::default() };
            let kept = litellm.kept().await.map_err(refused)?;
            match errand.job.draft.tenant {
                Some(tenant) => sync.tenant(tenant, kept).await?,
                None => sync.everybody(kept).await?,
            }
            let Counts { written, removed } = sync.counts;
            Ok(json!({ "written": written, "removed": removed }))
        }
        .boxed()
    }
}

#[derive(Debug, Default)]
struct Counts {
    written: i64,
    removed: i64,
}

struct Sync<'a> {
    vault: &'a Vault,
    litellm: &'a LiteLlm,
    errand: &'a Errand,
    counts: Counts,
}

impl Sync<'_> {
    /// Tenants that are open, and those that have something there: one that rests and has nothing there has not changed since
    /// its own job ran.
    async fn everybody(&mut self, kept: Kept) -> Result<(), Failure> {
        let named = kept.credentials.keys().chain(&kept.keys).map(|name| name.tenant);
        let open = self.errand.directory.open_tenants();
        let mut tenants: BTreeSet<TenantId> = named.chain(open.iter().map(Home::tenant)).collect();
        let after = self.errand.checkpoint::<TenantId>();
        tenants.retain(|tenant| after.is_none_or(|after| *tenant > after));
        let (total, mut missed) = (i64::try_from(tenants.len()).ok(), None);
        for (number, tenant) in (1..).zip(tenants) {
            if let Err(failure) = self.tenant(tenant, kept.clone()).await {
                // The others need not wait for it.
                missed = Some(failure);
            }
            // Never past one that was missed.
            let here = json!(tenant);
            self.errand.progress(number, total, "tenants", missed.is_none().then_some(&here));
            stop_if_asked(self.errand)?;
        }
        let Some(failure) = missed else { return Ok(()) };
        self.errand.progress(0, None, "tenants", Some(&Value::Null));
        Err(failure)
    }

    /// Compares one tenant until its providers stay what they were meanwhile.
    async fn tenant(&mut self, tenant: TenantId, mut kept: Kept) -> Result<(), Failure> {
        for _ in 0..ROUNDS_MAX {
            let lifecycle = self.errand.directory.lifecycle(tenant);
            if lifecycle.is_none() {
                // Another deployment's, or one that this process has not heard of yet: not ours to judge.
                return Ok(());
            }
            let is_active = lifecycle == Some(Lifecycle::Active);
            let home = match self.errand.directory.find(tenant).await {
                Ok(home) => Some(home),
                Err(Absent::Unknown) => None,
                // What it may have is not known, and what is there stays; unless it may have nothing.
                Err(other) if is_active => return Err(absent(other)),
                Err(_) => None,
            };
            let Some(home) = home else {
                self.remove(tenant, None, &ProviderBooks::default(), &kept).await?;
                return Ok(());
            };
            let books = home.providers().map_err(away)?;
            let wanted = if is_active { books.clone() } else { Arc::default() };
            self.remove(tenant, Some(&home), &wanted, &kept).await?;
            if is_active {
                self.write(&home, &books, &kept).await?;
            }
            let still_active = self.errand.directory.lifecycle(tenant) == Some(Lifecycle::Active);
            if is_active == still_active && same(&books, &*home.providers().map_err(away)?) {
                return Ok(());
            }
            kept = self.litellm.kept().await.map_err(refused)?;
        }
        Err(Failure::Retryable("the providers changed while they were compared".into()))
    }

    /// Takes away what nobody wants there.
    async fn remove(
        &mut self,
        tenant: TenantId,
        home: Option<&Home>,
        wanted: &ProviderBooks,
        kept: &Kept,
    ) -> Result<(), Failure> {
        for name in kept.credentials.keys().filter(|name| name.tenant == tenant) {
            if wanted.get(name.provider).is_some_and(|provider| has_credential(&wanted.policy, provider)) {
                continue;
            }
            self.litellm.delete_credential(name).await.map_err(refused)?;
            self.withdrawn(home, name.provider).await?;
        }
        for name in kept.keys.iter().filter(|name| name.tenant == tenant) {
            let has_key = |provider: &Arc<Provider>| wants_key(provider) && provider.secret.is_some();
            if wanted.get(name.provider).is_some_and(has_key) {
                continue;
            }
            self.litellm.delete_key(name).await.map_err(refused)?;
            self.withdrawn(home, name.provider).await?;
        }
        Ok(())
    }

    /// A tenant that is not served any more is told no more.
    async fn withdrawn(&mut self, home: Option<&Home>, provider: ProviderId) -> Result<(), Failure> {
        self.counts.removed += 1;
        if let Some(home) = home {
            let note = NoteHandOver { provider, secret_version: None, to: TO };
            change(home, note, as_asked(self.errand)).await?;
        }
        Ok(())
    }

    /// Writes what is not there, or is there as it was before.
    async fn write(&mut self, home: &Home, books: &ProviderBooks, kept: &Kept) -> Result<(), Failure> {
        for provider in books.after(None) {
            let name = Name { tenant: home.tenant(), provider: provider.id };
            if wants_key(provider) {
                self.write_key(home, books, provider, &name, kept.keys.contains(&name)).await?;
            } else if has_credential(&books.policy, provider) {
                let edition = edition(provider);
                if kept.credentials.get(&name) == Some(&edition) {
                    continue;
                }
                let revealed = desk::reveal(self.vault, home.tenant(), books, provider).await;
                let (secret, version) = revealed.map_err(not_kept)?;
                let note = NoteHandOver { provider: provider.id, secret_version: Some(version), to: TO };
                change(home, note, as_asked(self.errand)).await?;
                let put = self.litellm.put_credential(&name, &provider.profile, &edition, &secret);
                put.await.map_err(refused)?;
                self.counts.written += 1;
            }
            stop_if_asked(self.errand)?;
        }
        Ok(())
    }

    /// LiteLLM tells a virtual key once. One that we do not have is of no use to anybody: it has been removed, and another is
    /// made.
    ///
    /// Of two that make one at the same time, one alone keeps what it has made. The value of a key that is gone there is
    /// dropped before: the version which that takes is what the other one fails over. A key that is not kept is taken away
    /// again, or the next comparison would take it for the one we have.
    async fn write_key(
        &mut self,
        home: &Home,
        books: &ProviderBooks,
        provider: &Provider,
        name: &Name,
        is_there: bool,
    ) -> Result<(), Failure> {
        let models = &books.policy.models;
        if provider.secret.is_some() && is_there {
            return self.litellm.update_key(name, models).await.map_err(refused);
        }
        let mut version = provider.version;
        if provider.secret.is_some() {
            let expected = Expected::OneOf(vec![version]);
            let drop = DeleteSecret { provider: provider.id, expected };
            let dropped = change(home, drop, as_asked(self.errand)).await?;
            version = dropped.ok_or_else(|| Failure::Retryable("the provider has changed meanwhile".into()))?.version;
        }
        let key = self.litellm.generate_key(name, models).await.map_err(refused)?;
        let request = Request { idempotency: None, ..as_asked(self.errand) };
        let expected = Expected::OneOf(vec![version]);
        let kept = desk::keep(self.vault, home, (provider.id, &key), &expected, &request, untold).await;
        if let Err(error) = kept {
            self.litellm.delete_key(name).await.map_err(refused)?;
            return Err(not_kept(error));
        }
        self.counts.written += 1;
        Ok(())
    }
}

fn wants_key(provider: &Provider) -> bool {
    provider.profile.active && provider.profile.kind.is_made_here()
}

/// A key is handed over only to be sent where the tenant's policy of now lets it go.
fn has_credential(policy: &Policy, provider: &Provider) -> bool {
    let profile = &provider.profile;
    let has_secret = profile.active && !profile.kind.is_made_here() && provider.secret.is_some();
    has_secret && provider_probe::host_is_allowed(policy, profile)
}

fn edition(provider: &Provider) -> Edition {
    let (secret_version, fingerprint) =
        provider.secret.as_ref().map(|secret| (secret.version, secret.shown.fingerprint.clone())).unwrap_or_default();
    Edition { secret_version, fingerprint, version: provider.version }
}

/// Would another round write anything else? A virtual key that was just kept is no news.
pub(super) fn same(one: &ProviderBooks, other: &ProviderBooks) -> bool {
    let editions = |books: &ProviderBooks| {
        let of = |provider: &Arc<Provider>| {
            let made_here = provider.profile.kind.is_made_here();
            (provider.id, provider.profile.clone(), (!made_here).then(|| edition(provider)))
        };
        books.after(None).map(of).collect::<Vec<_>>()
    };
    let reach = |books: &ProviderBooks| (books.policy.models.clone(), books.policy.egress.clone());
    reach(one) == reach(other) && editions(one) == editions(other)
}

fn refused(error: LiteLlmError) -> Failure {
    Failure::Retryable(error.to_string())
}

fn not_kept(error: DeskError) -> Failure {
    match error {
        DeskError::Vault(error) => unsealed(error),
        DeskError::Away(unavailable) => away(unavailable),
        DeskError::Declined(declined) => Failure::Retryable(declined.to_string()),
    }
}
