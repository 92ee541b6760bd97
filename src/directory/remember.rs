//! What the catalogue remembers of each tenant: how long its chain is, and whether it is open.

use super::handle::Refused;
use super::registrar::State;
use crate::domain::chain::Head;
use crate::domain::ids::TenantId;
use crate::store::catalogue;

impl State {
    /// What cannot be remembered now is remembered later: until then a restored database is not noticed, and a start does not
    /// open a tenant that owes something.
    pub(super) async fn remember(&mut self, tenant: TenantId, head: Head, awake: bool) {
        self.unremembered.insert(tenant, (head, awake));
        if let Err(refused) = self.remember_all().await {
            let tenants = self.unremembered.len();
            tracing::warn!(%tenant, tenants, %refused, "the catalogue cannot remember a tenant's chain now");
        }
    }

    /// Which of these tenants have a longer chain than this; none of those that cannot be looked up now.
    pub(super) async fn longer(&mut self, heads: &[(TenantId, i64)]) -> Vec<(TenantId, i64)> {
        // An outage is told by the look at the catalogue.
        let Ok(connection) = self.connection().await else { return Vec::new() };
        match catalogue::longer(connection, heads).await {
            Ok(longer) => longer,
            Err(error) => {
                self.doubt(&error);
                Vec::new()
            }
        }
    }

    pub(super) async fn remember_all(&mut self) -> Result<(), Refused> {
        while let Some((tenant, (head, awake))) =
            self.unremembered.iter().next().map(|(tenant, noted)| (*tenant, *noted))
        {
            let connection = self.connection().await?;
            catalogue::remember_head(connection, tenant, head, awake).await.map_err(|error| self.doubt(&error))?;
            self.unremembered.remove(&tenant);
            self.birth.index.put_head(tenant, head);
        }
        Ok(())
    }
}
