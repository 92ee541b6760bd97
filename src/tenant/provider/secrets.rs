//! Secrets, given, taken away and lent.

use std::sync::Arc;

use serde_json::json;

use super::providers::target;
use super::{providers, record};
use crate::domain::books::Posting;
use crate::domain::ids::ProviderId;
use crate::domain::organization::Expected;
use crate::domain::provider::{Lease, Provider, Refusal};
use crate::domain::request::Request;
use crate::domain::secret::StoredSecret;
use crate::domain::time::MICROS_PER_DAY;
use crate::store::database::Connection;
use crate::store::provider as rows;
use crate::tenant::task::{Change, Halt};

/// How long a lease that has ended is kept. The chain keeps it for ever.
const LEASES_KEPT_MICROS: i64 = 90 * MICROS_PER_DAY;

/// A secret for a provider, new or over the one it has; sealed for the version it will have.
#[derive(Debug)]
pub struct PutSecret {
    pub provider: ProviderId,
    /// Its instant is made here.
    pub secret: StoredSecret,
    pub expected: Expected,
}

impl Change for PutSecret {
    type Done = Arc<Provider>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<Provider>, Halt<Refusal>> {
        let secret = StoredSecret { set_at: posting.now(), ..self.secret.clone() };
        let provider =
            providers(posting).put_secret(self.provider, secret.clone(), &self.expected).map_err(Halt::Refused)?;
        rows::put(database, &provider).await?;
        rows::put_secret(database, self.provider, &secret).await?;
        let payload = json!({
            "secret": secret.id.to_string(),
            "secretVersion": secret.version,
            "fingerprint": secret.shown.fingerprint,
        });
        record(posting, request, "providerSecret.set", target(self.provider), payload);
        Ok(provider)
    }
}

/// A provider without its secret: nobody is lent it any more.
#[derive(Debug)]
pub struct DeleteSecret {
    pub provider: ProviderId,
    pub expected: Expected,
}

impl Change for DeleteSecret {
    type Done = Arc<Provider>;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Arc<Provider>, Halt<Refusal>> {
        let now = posting.now();
        let provider = providers(posting).delete_secret(self.provider, &self.expected, now).map_err(Halt::Refused)?;
        rows::put(database, &provider).await?;
        rows::delete_secret(database, self.provider).await?;
        let payload = json!({ "version": provider.version });
        record(posting, request, "providerSecret.revoked", target(self.provider), payload);
        Ok(provider)
    }
}

/// A secret is lent: recorded before whoever asked has it.
#[derive(Debug)]
pub struct GrantLease {
    pub lease: Lease,
}

impl Change for GrantLease {
    type Done = Lease;
    type Refused = Refusal;

    async fn apply(
        &self,
        database: &mut Connection,
        posting: &mut Posting,
        request: &Request,
    ) -> Result<Lease, Halt<Refusal>> {
        let lease = &self.lease;
        posting.books.providers.lend(lease).map_err(Halt::Refused)?;
        let before = posting.now().plus_micros(-LEASES_KEPT_MICROS);
        rows::insert_lease(database, lease, before).await?;
        let payload = json!({
            "lease": lease.id.to_string(),
            "secretVersion": lease.secret_version,
            "purpose": lease.purpose,
            "model": lease.model,
            "expiresAt": lease.expires_at.to_string(),
        });
        record(posting, request, "providerSecret.leased", target(lease.provider), payload);
        Ok(lease.clone())
    }
}

/// A secret is about to be handed to a gateway that keeps it, or was taken away from there.
#[derive(Debug)]
pub struct NoteHandOver {
    pub provider: ProviderId,
    /// The value that is handed over; `None` when it was taken away.
    pub secret_version: Option<i64>,
    pub to: &'static str,
}

impl Change for NoteHandOver {
    type Done = ();
    type Refused = Refusal;

    async fn apply(&self, _: &mut Connection, posting: &mut Posting, request: &Request) -> Result<(), Halt<Refusal>> {
        let action = match self.secret_version {
            Some(_) => "providerSecret.handedOver",
            None => "providerSecret.withdrawn",
        };
        let payload = json!({ "to": self.to, "secretVersion": self.secret_version });
        record(posting, request, action, target(self.provider), payload);
        Ok(())
    }
}
