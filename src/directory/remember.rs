//! What the catalogue remembers of each tenant: how long its chain is, and which node is to do what it owes.

use super::handle::Refused;
use super::registrar::{State, unavailable};
use crate::domain::chain::Head;
use crate::domain::ids::TenantId;
use crate::store::StoreError;
use crate::store::catalogue::{self, Note};

impl State {
    /// What cannot be remembered now is remembered later: until then a restored database is not noticed, and a start does not
    /// open a tenant that owes something.
    pub(super) async fn remember(&mut self, tenant: TenantId, note: Note) {
        let known = self.unremembered.entry(tenant).or_insert(note);
        *known = Note { opened: known.opened || note.opened, ..note };
        if let Err(refused) = self.remember_all().await {
            let tenants = self.unremembered.len();
            tracing::warn!(%tenant, tenants, %refused, "the catalogue cannot remember a tenant's chain now");
        }
    }

    /// That we are about to open a tenant; answers the head of its chain that any node has noted, unless another node holds it
    /// and nobody asked us.
    pub(super) async fn hold(&mut self, tenant: TenantId, asked: bool) -> Result<Option<Head>, Refused> {
        let node = self.birth.node;
        let connection = self.connection().await?;
        let held = match catalogue::hold(connection, tenant, node, asked).await {
            // Somebody changes that very tenant now.
            Err(error @ StoreError::Retryable(_)) => return Err(unavailable(&error)),
            held => held.map_err(|error| self.doubt(&error))?,
        };
        // What is still to be noted of how it was left is no longer so.
        if let Some(note) = self.unremembered.get_mut(&tenant).filter(|_| held.is_some()) {
            note.awake = true;
        }
        Ok(held)
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
        while let Some((tenant, note)) = self.unremembered.iter().next().map(|(tenant, note)| (*tenant, *note)) {
            let node = self.birth.node;
            let connection = self.connection().await?;
            let remembered = catalogue::remember_head(connection, tenant, note, node).await;
            remembered.map_err(|error| self.doubt(&error))?;
            self.unremembered.remove(&tenant);
            self.birth.index.put_head(tenant, note.head);
        }
        Ok(())
    }
}
