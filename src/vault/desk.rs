//! What whoever keeps or needs a tenant's secret has to do, in order: the vault on one side, the tenant on the other.
//!
//! Sealing takes a question to the KEK's keeper and cannot be done within the tenant's transaction, so it is done before, for
//! what the tenant's books say then. The tenant takes it only if they still say so; otherwise it is done again.

use std::sync::Arc;

use secrecy::SecretString;

use super::{Vault, VaultError};
use crate::clock;
use crate::domain::ids::{ProviderId, SecretId, TenantId};
use crate::domain::organization::Expected;
use crate::domain::provider::{Provider, ProviderBooks, Refusal};
use crate::domain::request::{Answer, Request};
use crate::domain::secret::{Binding, StoredSecret, WrappedKey};
use crate::domain::time::Timestamp;
use crate::tenant::handle::{Handle, Unavailable};
use crate::tenant::provider::{AddDataKey, PutSecret};
use crate::tenant::task::{Declined, untold};

/// How often it is done again before the caller is told to come back.
const TRIES: usize = 5;

/// Why a secret was not kept, or not found.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeskError {
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error(transparent)]
    Away(#[from] Unavailable),
    #[error("the secret is not kept: {0}")]
    Declined(Declined<Refusal>),
}

impl From<Refusal> for DeskError {
    fn from(refusal: Refusal) -> DeskError {
        DeskError::Declined(Declined::Refused(refusal))
    }
}

/// Is it worth another try with what the books say by now?
#[must_use]
pub fn is_outdated(declined: &Declined<Refusal>) -> bool {
    matches!(declined, Declined::Refused(Refusal::KeyChanged))
}

/// Where the provider's next secret belongs.
fn next_place(tenant: TenantId, provider: &Provider) -> Binding {
    let secret = provider.secret.as_ref().map_or_else(|| SecretId(clock::new_id()), |secret| secret.id);
    Binding { tenant, provider: provider.id, secret, version: provider.secret_versions + 1 }
}

/// Where the provider's secret is.
#[must_use]
pub fn place(tenant: TenantId, provider: &Provider, secret: &StoredSecret) -> Binding {
    Binding { tenant, provider: provider.id, secret: secret.id, version: secret.version }
}

/// Keeps a secret for a provider: sealed under the tenant's newest data key, which is made when there is none.
///
/// # Errors
/// [`DeskError`]; nothing was kept.
pub async fn keep(
    vault: &Vault,
    home: &Handle,
    (provider, secret): (ProviderId, &SecretString),
    expected: &Expected,
    request: &Request,
    render: fn(&Arc<Provider>) -> String,
) -> Result<Answer<Arc<Provider>>, DeskError> {
    for _ in 0..TRIES {
        let books = home.providers()?;
        let found = books.get(provider).ok_or(Refusal::Unknown)?;
        let Some(key) = newest_key(vault, home, &books, request).await? else { continue };
        let place = next_place(home.tenant(), found);
        let sealed = vault.seal(&key, &place, secret).await?;
        let shown = vault.shown(place.tenant, secret);
        let secret = StoredSecret { id: place.secret, version: place.version, sealed, shown, set_at: Timestamp(0) };
        let change = PutSecret { provider, secret, expected: expected.clone() };
        match home.change(change, request.clone(), render).await? {
            Err(declined) if is_outdated(&declined) => {}
            told => return told.map_err(DeskError::Declined),
        }
    }
    Err(DeskError::Declined(Declined::RolledBack))
}

/// The data key that encrypts now; `None` when somebody else has just made the first one.
async fn newest_key(
    vault: &Vault,
    home: &Handle,
    books: &ProviderBooks,
    request: &Request,
) -> Result<Option<WrappedKey>, DeskError> {
    if let Some(key) = books.newest_key() {
        return Ok(Some(key.clone()));
    }
    let key = vault.new_data_key(home.tenant(), 1, clock::Clock::system().now()).await?;
    // Not under the idempotency key of what is being kept.
    let request = Request { idempotency: None, ..request.clone() };
    match home.change(AddDataKey(key.clone()), request, untold).await? {
        Ok(_) => Ok(Some(key)),
        Err(declined) if is_outdated(&declined) => Ok(None),
        Err(declined) => Err(DeskError::Declined(declined)),
    }
}

/// The secret of a provider, in the clear, and which value it is.
///
/// # Errors
/// [`DeskError`].
pub async fn reveal(
    vault: &Vault,
    tenant: TenantId,
    books: &ProviderBooks,
    provider: &Provider,
) -> Result<(SecretString, i64), DeskError> {
    let secret = provider.secret.as_ref().ok_or(Refusal::NoSecret)?;
    let plain = vault.unseal(books.keys(), &place(tenant, provider, secret), &secret.sealed).await?;
    Ok((plain, secret.version))
}
