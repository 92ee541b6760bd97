//! The KEK in the configuration, which is to say in the environment: for platforms that hand secrets to a process so.
//!
//! To rotate, append a key to `vault.keys`, start again, and ask for the job `vault.rewrap`.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use secrecy::ExposeSecret;

use super::ring::Ring;
use super::{DataKey, KekError, KeyEncryption, Wrapped};
use crate::config;

pub(super) struct Environment(Ring);

impl Environment {
    /// # Errors
    /// When there are no keys, or one of them is none.
    pub(super) fn open(settings: &config::Vault) -> Result<Environment, String> {
        let keys = settings.keys.as_ref().ok_or("vault.keys: must be set with vault.kek = \"environment\"")?;
        Ring::read(keys.expose_secret()).map(Environment).map_err(|problem| format!("vault.keys: {problem}"))
    }
}

impl KeyEncryption for Environment {
    fn current(&self) -> BoxFuture<'_, Result<String, KekError>> {
        std::future::ready(Ok(self.0.newest().to_owned())).boxed()
    }

    fn wrap<'a>(&'a self, key: &'a DataKey, context: &'a [u8]) -> BoxFuture<'a, Result<Wrapped, KekError>> {
        std::future::ready(self.0.wrap(key, context)).boxed()
    }

    fn unwrap<'a>(&'a self, wrapped: &'a Wrapped, context: &'a [u8]) -> BoxFuture<'a, Result<DataKey, KekError>> {
        std::future::ready(self.0.unwrap(wrapped, context)).boxed()
    }
}
