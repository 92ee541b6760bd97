//! The vault: tenants' secrets under envelope encryption.
//!
//! Three layers. A key of the platform's ([`KeyEncryption`], the KEK: in a [file](local_file), the
//! [environment](environment), or the [transit engine](transit) of OpenBao or HashiCorp Vault) wraps one data key per
//! tenant; the data key encrypts the tenant's secrets with AES-256-GCM. Each encryption authenticates where its bytes
//! belong ([`crate::domain::secret`]), so none can be moved to another row, tenant or version. What is stored is of no use
//! without the KEK, and nothing of a tenant can be read once its wrapped data keys are gone.
//!
//! Keys and plain texts live in memory that is wiped when it is given back, and have no `Debug` that shows them. Unwrapped
//! data keys are kept for [`KEPT`], so that a lease does not cost a question to the KEK's keeper. This room stores nothing:
//! rows are the tenant's; the [`desk`] brings both together.

pub mod desk;
mod environment;
mod local_file;
mod ring;
#[cfg(test)]
mod tests;
mod transit;
#[cfg(test)]
pub(crate) mod transit_peer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, TryFutureExt};
use secrecy::{ExposeSecret, SecretString};
use zeroize::{Zeroize, Zeroizing};

use crate::clock;
use crate::config::{self, KekKind};
use crate::domain::ids::TenantId;
use crate::domain::secret::{Binding, Sealed, Shown, WrappedKey, data_key_context};
use crate::domain::time::Timestamp;

/// Bytes of every key here.
pub(crate) const KEY_BYTES: usize = 32;
/// How long an unwrapped data key is kept.
const KEPT: Duration = Duration::from_secs(60);
/// Unwrapped data keys that are kept.
const KEPT_MAX: u64 = 1_000;

/// A data key in the clear.
pub struct DataKey(Zeroizing<[u8; KEY_BYTES]>);

impl DataKey {
    fn random() -> DataKey {
        DataKey(Zeroizing::new(clock::random_bytes::<KEY_BYTES>()))
    }

    /// Of exactly as many bytes as a key has; takes them away from `bytes` in any case.
    pub(crate) fn of(mut bytes: Zeroizing<Vec<u8>>) -> Option<DataKey> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        let fits = bytes.len() == KEY_BYTES;
        if fits {
            key.copy_from_slice(&bytes);
        }
        bytes.zeroize();
        fits.then_some(DataKey(key))
    }

    pub(crate) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl std::fmt::Debug for DataKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("DataKey")
    }
}

/// Why the KEK's keeper did not do what it was asked. No word of it tells anything of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KekError {
    /// It may answer later.
    #[error("the key encryption key cannot be used now: {0}")]
    Unavailable(String),
    /// The key that this was wrapped with is not there.
    #[error("the key encryption key {0} is not there")]
    UnknownKey(String),
    /// The bytes are not what was wrapped, or belong elsewhere.
    #[error("the wrapped data key does not belong here, or was changed")]
    Refused,
}

/// A data key, wrapped, and by which of the keeper's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapped {
    pub kek: String,
    pub bytes: Vec<u8>,
}

/// Who keeps the KEK. One suite of tests holds for all of them (`vault/tests.rs`).
pub trait KeyEncryption: Send + Sync {
    /// The name of the key that wraps now; another one after a rotation.
    fn current(&self) -> BoxFuture<'_, Result<String, KekError>>;

    /// Could it be used now? Changes nothing.
    fn check(&self) -> BoxFuture<'_, Result<(), KekError>> {
        self.current().map_ok(drop).boxed()
    }

    /// Wraps a data key, so that it can be unwrapped with the same context alone.
    fn wrap<'a>(&'a self, key: &'a DataKey, context: &'a [u8]) -> BoxFuture<'a, Result<Wrapped, KekError>>;

    /// Unwraps what the key of this name has wrapped, also after rotations.
    fn unwrap<'a>(&'a self, wrapped: &'a Wrapped, context: &'a [u8]) -> BoxFuture<'a, Result<DataKey, KekError>>;
}

/// Why the vault did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    #[error(transparent)]
    Kek(#[from] KekError),
    /// The data key that this was sealed under is not there.
    #[error("the data key is not there")]
    NoDataKey,
    /// The ciphertext is not what was sealed, or belongs elsewhere.
    #[error("the ciphertext does not belong here, or was changed")]
    Refused,
}

/// A data key of one tenant, and the bytes it was unwrapped from: another tenant's is never found here.
type Kept = (TenantId, i64, Vec<u8>);

/// Seals and unseals. Cheap to clone.
#[derive(Clone)]
pub struct Vault(Arc<Inner>);

struct Inner {
    kek: Box<dyn KeyEncryption>,
    kept: moka::sync::Cache<Kept, Arc<DataKey>>,
    fingerprints: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Vault")
    }
}

impl Vault {
    /// The vault of the configuration; `None` when it is off, or when nothing is configured and the store has no folder
    /// to keep a key in. `fingerprints` keys what is shown of secrets.
    ///
    /// # Errors
    /// When it is configured and cannot be used: a key file that others can read, keys that cannot be read.
    pub fn open(
        settings: &config::Vault,
        store: &config::Store,
        fingerprints: [u8; 32],
    ) -> Result<Option<Vault>, String> {
        let folder = store.url.expose_secret().strip_prefix("sqlite:").map(Path::new);
        let kek: Box<dyn KeyEncryption> = match settings.kek {
            KekKind::Off => return Ok(None),
            KekKind::File => {
                let Some(path) = settings.place(folder) else {
                    tracing::info!("there is no vault: vault.kek_file is not set, and the store has no folder for one");
                    return Ok(None);
                };
                Box::new(local_file::LocalFile::open(path)?)
            }
            KekKind::Environment => Box::new(environment::Environment::open(settings)?),
            KekKind::Transit => Box::new(transit::Transit::open(settings)?),
        };
        Ok(Some(Vault::with(kek, fingerprints)))
    }

    /// A vault whose KEK is kept by this keeper.
    #[must_use]
    pub fn with(kek: Box<dyn KeyEncryption>, fingerprints: [u8; 32]) -> Vault {
        let kept = moka::sync::Cache::builder().max_capacity(KEPT_MAX).time_to_live(KEPT).build();
        Vault(Arc::new(Inner { kek, kept, fingerprints: Zeroizing::new(fingerprints) }))
    }

    /// Could its key be used now?
    ///
    /// # Errors
    /// [`KekError`].
    pub async fn check(&self) -> Result<(), KekError> {
        self.0.kek.check().await
    }

    /// What is shown of a tenant's secret.
    #[must_use]
    pub fn shown(&self, tenant: TenantId, secret: &SecretString) -> Shown {
        Shown::of(secret.expose_secret(), &self.0.fingerprints, tenant)
    }

    /// A data key for a tenant, to be stored.
    ///
    /// # Errors
    /// [`VaultError::Kek`].
    pub async fn new_data_key(&self, tenant: TenantId, version: i64, now: Timestamp) -> Result<WrappedKey, VaultError> {
        self.wrap(tenant, version, now, &DataKey::random()).await
    }

    /// The same data key, wrapped by the KEK of now; `None` when it is.
    ///
    /// # Errors
    /// [`VaultError::Kek`].
    pub async fn rewrap(&self, tenant: TenantId, key: &WrappedKey) -> Result<Option<WrappedKey>, VaultError> {
        if self.0.kek.current().await? == key.kek {
            return Ok(None);
        }
        // Not from what is kept: what is written anew was read from what is stored.
        let plain = self.unwrap(tenant, key).await?;
        self.wrap(tenant, key.version, key.created_at, &plain).await.map(Some)
    }

    async fn wrap(
        &self,
        tenant: TenantId,
        version: i64,
        at: Timestamp,
        key: &DataKey,
    ) -> Result<WrappedKey, VaultError> {
        let Wrapped { kek, bytes } = self.0.kek.wrap(key, &data_key_context(tenant, version)).await?;
        Ok(WrappedKey { version, kek, wrapped: bytes, created_at: at })
    }

    async fn unwrap(&self, tenant: TenantId, key: &WrappedKey) -> Result<DataKey, VaultError> {
        let wrapped = Wrapped { kek: key.kek.clone(), bytes: key.wrapped.clone() };
        Ok(self.0.kek.unwrap(&wrapped, &data_key_context(tenant, key.version)).await?)
    }

    async fn data_key(&self, tenant: TenantId, key: &WrappedKey) -> Result<Arc<DataKey>, VaultError> {
        let name: Kept = (tenant, key.version, key.wrapped.clone());
        if let Some(kept) = self.0.kept.get(&name) {
            return Ok(kept);
        }
        let plain = Arc::new(self.unwrap(tenant, key).await?);
        self.0.kept.insert(name, plain.clone());
        Ok(plain)
    }

    /// Seals a secret for its place, under this data key of its tenant.
    ///
    /// # Errors
    /// [`VaultError`].
    pub async fn seal(&self, key: &WrappedKey, place: &Binding, secret: &SecretString) -> Result<Sealed, VaultError> {
        let plain = self.data_key(place.tenant, key).await?;
        let mut bytes = Zeroizing::new(secret.expose_secret().as_bytes().to_vec());
        let nonce = seal_in_place(plain.bytes(), &place.context(key.version), &mut bytes).ok_or(VaultError::Refused)?;
        Ok(Sealed { data_key: key.version, nonce, ciphertext: std::mem::take(&mut *bytes) })
    }

    /// Unseals what was sealed for this place; `keys` are the data keys that its tenant has.
    ///
    /// # Errors
    /// [`VaultError`].
    pub async fn unseal(
        &self,
        keys: &[WrappedKey],
        place: &Binding,
        sealed: &Sealed,
    ) -> Result<SecretString, VaultError> {
        let key = keys.iter().find(|key| key.version == sealed.data_key).ok_or(VaultError::NoDataKey)?;
        let plain = self.data_key(place.tenant, key).await?;
        let context = place.context(key.version);
        let mut bytes = open(plain.bytes(), &context, sealed.nonce, &sealed.ciphertext).ok_or(VaultError::Refused)?;
        match String::from_utf8(std::mem::take(&mut *bytes)) {
            Ok(text) => Ok(SecretString::from(text)),
            Err(error) => {
                error.into_bytes().zeroize();
                Err(VaultError::Refused)
            }
        }
    }
}

/// Encrypts `bytes` where they are and appends the tag; answers the nonce, which is new. A key is used for some thousand
/// secrets at most, so random nonces do not meet.
fn seal_in_place(key: &[u8; KEY_BYTES], context: &[u8], bytes: &mut Vec<u8>) -> Option<[u8; NONCE_LEN]> {
    let nonce = clock::random_bytes::<NONCE_LEN>();
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?);
    // Grown here, so that no plain text stays behind in memory that is given back.
    let mut whole = Zeroizing::new(Vec::with_capacity(bytes.len() + AES_256_GCM.tag_len()));
    whole.extend_from_slice(bytes);
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), &mut *whole).ok()?;
    bytes.zeroize();
    *bytes = std::mem::take(&mut *whole);
    Some(nonce)
}

fn open(
    key: &[u8; KEY_BYTES],
    context: &[u8],
    nonce: [u8; NONCE_LEN],
    ciphertext: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?);
    let mut bytes = Zeroizing::new(ciphertext.to_vec());
    let length = key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(context), &mut bytes).ok()?.len();
    // What follows the plain text is its tag.
    bytes.truncate(length);
    Some(bytes)
}
