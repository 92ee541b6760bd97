//! One tenant's database together with those who watch it: the naive sums, and somebody who recomputes the chain.

use platform_api::domain::chain::Verifier;
use platform_api::domain::ids::TenantId;
use platform_api::store::StoreError;

use super::database::Database;
use super::oracle::Naive;

pub struct Vault {
    pub tenant: TenantId,
    pub database: Database,
    /// The ledger again, as the senders would write it.
    pub naive: Naive,
    pub verifier: Verifier,
    /// The database was set back to an earlier state: from now on nobody may write.
    pub restored: bool,
}

impl Vault {
    pub fn new(tenant: TenantId) -> Vault {
        Vault {
            tenant,
            database: Database::new(tenant, "UTC"),
            naive: Naive::new(),
            verifier: Verifier::new(&tenant.to_string()),
            restored: false,
        }
    }

    pub fn writable(&self, now: i64) -> Result<(), StoreError> {
        if now < self.database.full_until {
            return Err(StoreError::Retryable("53100 could not extend file: no space left on device".into()));
        }
        Ok(())
    }
}
