//! Keys change while everything stays readable: a tenant's data key, and the key that wraps all data keys.
//!
//! Both go in small steps that each leave a whole, and both bear being begun again: a rotation knows by the newest key's age
//! whether it has made that key, secrets know what they are encrypted under, data keys what they are wrapped with.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::kinds::{Errand, Failure, Work};
use crate::directory::handle::Absent;
use crate::domain::ids::{ProviderId, TenantId};
use crate::domain::job::Kind;
use crate::domain::provider::{Provider, ProviderBooks, Refusal};
use crate::domain::request::Request;
use crate::domain::secret::StoredSecret;
use crate::domain::tenant::Lifecycle;
use crate::fault;
use crate::tenant::handle::{Handle as Home, Unavailable};
use crate::tenant::provider::{AddDataKey, Reseal, RetireDataKeys, RewrapDataKey};
use crate::tenant::task::{Change, Declined, untold};
use crate::vault::{KekError, Vault, VaultError, desk};

/// Tenants that are read from the catalogue at once.
const TENANTS_A_PAGE: usize = 500;

/// Gives a tenant another data key.
pub(super) struct Rotation(pub(super) Option<Vault>);

impl Work for Rotation {
    fn kind(&self) -> Kind {
        Kind::RotateDataKey
    }

    fn run<'a>(&'a self, errand: &'a Errand) -> BoxFuture<'a, Result<Value, Failure>> {
        async move {
            let vault = self.0.as_ref().ok_or_else(no_vault)?;
            let tenant =
                errand.job.draft.tenant.ok_or_else(|| Failure::Hopeless("the job is about no tenant".into()))?;
            let home = errand.directory.find(tenant).await.map_err(absent)?;
            rotate(vault, &home, errand).await
        }
        .boxed()
    }
}

async fn rotate(vault: &Vault, home: &Home, errand: &Errand) -> Result<Value, Failure> {
    let request = as_asked(errand);
    let books = home.providers().map_err(away)?;
    let newest = books.newest_key().map_or(0, |key| key.version);
    // A try before this one may have made it.
    let made = books.newest_key().is_some_and(|key| key.created_at >= errand.job.started_at);
    if newest > 0 && !made {
        let now = crate::clock::Clock::system().now();
        let key = vault.new_data_key(home.tenant(), newest + 1, now).await.map_err(unsealed)?;
        change(home, AddDataKey(key), request.clone()).await?;
        fault::point("rotation.key");
    }
    let (mut done, mut after) = (0, errand.checkpoint::<ProviderId>());
    loop {
        let books = home.providers().map_err(away)?;
        let Some(provider) = books.after(after).next().cloned() else { break };
        if reseal(vault, home, &books, &provider).await? {
            done += 1;
            fault::point("rotation.secret");
        }
        after = Some(provider.id);
        errand.progress(done, None, "secrets", Some(&json!(provider.id)));
        stop_if_asked(errand)?;
    }
    // What was set meanwhile is under the newest key already; whatever is not keeps its key.
    let retired = change(home, RetireDataKeys, request).await?.unwrap_or(0);
    Ok(json!({ "secrets": done, "retiredDataKeys": retired }))
}

/// Encrypts a provider's secret under the newest data key; false when it is, or is another one by now.
async fn reseal(vault: &Vault, home: &Home, books: &ProviderBooks, provider: &Provider) -> Result<bool, Failure> {
    let Some(old) = &provider.secret else { return Ok(false) };
    let Some(key) = books.newest_key().filter(|key| key.version != old.sealed.data_key) else { return Ok(false) };
    let place = desk::place(home.tenant(), provider, old);
    let plain = vault.unseal(books.keys(), &place, &old.sealed).await.map_err(unsealed)?;
    let sealed = vault.seal(key, &place, &plain).await.map_err(unsealed)?;
    let new = StoredSecret { sealed, ..old.clone() };
    let resealing = Reseal { provider: provider.id, old: old.clone(), new };
    Ok(change(home, resealing, Request::system()).await?.is_some())
}

/// Wraps every tenant's data keys with the key encryption key of now.
pub(super) struct Rewrapping(pub(super) Option<Vault>);

impl Work for Rewrapping {
    fn kind(&self) -> Kind {
        Kind::Rewrap
    }

    fn run<'a>(&'a self, errand: &'a Errand) -> BoxFuture<'a, Result<Value, Failure>> {
        async move {
            let vault = self.0.as_ref().ok_or_else(no_vault)?;
            let mut after = errand.checkpoint::<TenantId>();
            let (mut looked_at, mut rewrapped, mut missed) = (errand.job.progress.done, 0, None);
            loop {
                // As stored: one that another process has made has data keys as well.
                let page = errand.directory.stored_tenants(after, TENANTS_A_PAGE).await;
                let page = page.map_err(|refused| Failure::Retryable(refused.to_string()))?;
                if page.is_empty() {
                    break;
                }
                for (tenant, lifecycle) in page {
                    match rewrap(vault, errand, tenant, lifecycle).await {
                        Ok(keys) => rewrapped += keys,
                        // The others need not wait for it.
                        Err(failure) => missed = Some(failure),
                    }
                    (looked_at, after) = (looked_at + 1, Some(tenant));
                    // Never past one that was missed: another try would begin behind it, and succeed without it.
                    let here = json!(tenant);
                    errand.progress(looked_at, None, "tenants", missed.is_none().then_some(&here));
                    stop_if_asked(errand)?;
                }
            }
            match missed {
                None => Ok(json!({ "dataKeys": rewrapped })),
                Some(failure) => {
                    // From the beginning; what is done is known by what it is wrapped with.
                    errand.progress(0, None, "tenants", Some(&Value::Null));
                    Err(failure)
                }
            }
        }
        .boxed()
    }
}

async fn rewrap(vault: &Vault, errand: &Errand, tenant: TenantId, lifecycle: Lifecycle) -> Result<usize, Failure> {
    let home = match errand.directory.find(tenant).await {
        Ok(home) => home,
        // Archived, or not yet made: it has no data keys.
        Err(Absent::Unknown) if matches!(lifecycle, Lifecycle::Pending | Lifecycle::Archived) => return Ok(0),
        Err(Absent::Unknown) => {
            return Err(Failure::Retryable(format!("the tenant {tenant} is not known to this process yet")));
        }
        Err(other) => return Err(absent(other)),
    };
    let mut rewrapped = 0;
    for old in home.providers().map_err(away)?.keys() {
        let Some(new) = vault.rewrap(tenant, old).await.map_err(unsealed)? else { continue };
        let rewrapping = RewrapDataKey { old: old.clone(), new };
        rewrapped += usize::from(change(&home, rewrapping, as_asked(errand)).await?.is_some());
        fault::point("rewrap.key");
    }
    Ok(rewrapped)
}

/// Makes a change; `None` when what it is about has changed by now, which is as good.
pub(super) async fn change<C: Change<Refused = Refusal>>(
    home: &Home,
    change: C,
    request: Request,
) -> Result<Option<C::Done>, Failure> {
    use crate::domain::request::Answer;
    match home.change(change, request, untold).await.map_err(away)? {
        Ok(Answer::Fresh(done)) => Ok(Some(done)),
        Ok(Answer::Replayed(_)) | Err(Declined::Refused(_)) => Ok(None),
        Err(declined) => Err(Failure::Retryable(declined.to_string())),
    }
}

/// In the name of whoever asked for the job.
pub(super) fn as_asked(errand: &Errand) -> Request {
    let draft = &errand.job.draft;
    Request { actor: draft.actor.clone(), request_id: draft.request_id.clone(), idempotency: None }
}

pub(super) fn away(unavailable: Unavailable) -> Failure {
    Failure::Retryable(unavailable.to_string())
}

pub(super) fn absent(absent: Absent) -> Failure {
    match absent {
        Absent::Unknown => Failure::Hopeless(absent.to_string()),
        other => Failure::Retryable(other.to_string()),
    }
}

pub(super) fn unsealed(error: VaultError) -> Failure {
    match error {
        VaultError::Kek(KekError::Unavailable(_) | KekError::UnknownKey(_)) => Failure::Retryable(error.to_string()),
        other => Failure::Hopeless(other.to_string()),
    }
}

pub(super) fn no_vault() -> Failure {
    Failure::Hopeless("there is no vault".into())
}

pub(super) fn stop_if_asked(errand: &Errand) -> Result<(), Failure> {
    if errand.stop.is_cancelled() { Err(Failure::Stopped) } else { Ok(()) }
}
