//! The catalogue in memory: what request paths look up. Written by the registrar alone, after its commits.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::key_use::KeyUses;
use crate::domain::api_key::{ApiKey, Ended};
use crate::domain::chain::Head;
use crate::domain::flag::FlagSet;
use crate::domain::ids::{PlatformAdminId, TenantId};
use crate::domain::platform_admin::PlatformAdmin;
use crate::domain::report::Page;
use crate::domain::tenant::{ExternalId, Lifecycle, Tenant};
use crate::domain::time::Timestamp;

#[derive(Debug, Default)]
pub(super) struct Index {
    tables: RwLock<Tables>,
    /// Beside the tables: a request that leaves a word here holds up nobody who reads there.
    pub(super) uses: KeyUses,
}

#[derive(Debug, Default)]
struct Tables {
    tenants: BTreeMap<TenantId, Tenant>,
    heads: HashMap<TenantId, Head>,
    slugs: HashMap<String, TenantId>,
    external_ids: HashMap<ExternalId, TenantId>,
    keys: HashMap<String, ApiKey>,
    keys_of: HashMap<TenantId, Vec<String>>,
    platform_admins: BTreeMap<PlatformAdminId, PlatformAdmin>,
    flags: Arc<FlagSet>,
}

impl Index {
    /// A panic while writing cannot leave the tables half-written in a way a reload would not mend; go on reading.
    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces everything by what the control database holds.
    pub(super) fn load(&self, tenants: Vec<(Tenant, Head)>, keys: Vec<ApiKey>, admins: Vec<PlatformAdmin>) {
        let mut tables = Tables { flags: self.flags(), ..Tables::default() };
        for (tenant, head) in tenants {
            tables.heads.insert(tenant.id, head);
            tables.put(tenant);
        }
        keys.into_iter().for_each(|key| tables.put_key(key));
        tables.platform_admins = admins.into_iter().map(|admin| (admin.id, admin)).collect();
        *self.write() = tables;
    }

    /// The platform's feature flags.
    pub(super) fn flags(&self) -> Arc<FlagSet> {
        self.read().flags.clone()
    }

    pub(super) fn put_flags(&self, flags: FlagSet) {
        self.write().flags = Arc::new(flags);
    }

    pub(super) fn put(&self, tenant: Tenant) {
        self.write().put(tenant);
    }

    pub(super) fn put_key(&self, key: ApiKey) {
        self.write().put_key(key);
    }

    pub(super) fn put_head(&self, tenant: TenantId, head: Head) {
        self.write().heads.insert(tenant, head);
    }

    pub(super) fn tenant(&self, tenant: TenantId) -> Option<Tenant> {
        self.read().tenants.get(&tenant).cloned()
    }

    pub(super) fn lifecycle(&self, tenant: TenantId) -> Option<Lifecycle> {
        self.read().tenants.get(&tenant).map(|tenant| tenant.lifecycle)
    }

    pub(super) fn tier<T>(&self, tenant: TenantId, read: impl FnOnce(&str) -> T) -> Option<T> {
        self.read().tenants.get(&tenant).map(|tenant| read(&tenant.tier))
    }

    pub(super) fn head(&self, tenant: TenantId) -> Head {
        self.read().heads.get(&tenant).copied().unwrap_or(Head::EMPTY)
    }

    pub(super) fn count(&self) -> usize {
        self.read().tenants.len()
    }

    pub(super) fn slug_owner(&self, slug: &str) -> Option<TenantId> {
        self.read().slugs.get(slug).copied()
    }

    pub(super) fn external_id_owner(&self, id: &ExternalId) -> Option<TenantId> {
        self.read().external_ids.get(id).copied()
    }

    /// The owner of the first of `candidates` that anybody owns.
    pub(super) fn attribute(&self, candidates: &[ExternalId]) -> Option<TenantId> {
        let tables = self.read();
        candidates.iter().find_map(|id| tables.external_ids.get(id)).copied()
    }

    pub(super) fn key(&self, id: &str) -> Option<ApiKey> {
        self.read().keys.get(id).cloned()
    }

    /// Why a key of the tenant's opens nothing any more.
    pub(super) fn key_ended(&self, tenant: TenantId, id: &str, now: Timestamp) -> Option<Ended> {
        let tables = self.read();
        tables.keys.get(id).filter(|key| key.tenant == tenant)?.ended(now)
    }

    pub(super) fn put_platform_admin(&self, admin: PlatformAdmin) {
        self.write().platform_admins.insert(admin.id, admin);
    }

    pub(super) fn remove_platform_admin(&self, id: PlatformAdminId) {
        self.write().platform_admins.remove(&id);
    }

    pub(super) fn platform_admin(&self, id: PlatformAdminId) -> Option<PlatformAdmin> {
        self.read().platform_admins.get(&id).cloned()
    }

    /// The one whom an issuer's tokens call `subject`. They are few, so they are looked through.
    pub(super) fn platform_admin_of(&self, issuer: &str, subject: &str) -> Option<PlatformAdminId> {
        let tables = self.read();
        let mut all = tables.platform_admins.values();
        all.find(|admin| admin.issuer == issuer && admin.subject == subject).map(|admin| admin.id)
    }

    pub(super) fn platform_admin_count(&self) -> usize {
        self.read().platform_admins.len()
    }

    /// In the order of their ids, after `after`.
    pub(super) fn platform_admins(&self, after: Option<PlatformAdminId>, limit: usize) -> Vec<PlatformAdmin> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let tables = self.read();
        tables.platform_admins.range((from, Bound::Unbounded)).take(limit).map(|(_, admin)| admin.clone()).collect()
    }

    /// The tenant's keys, oldest first.
    pub(super) fn keys_of(&self, tenant: TenantId) -> Vec<ApiKey> {
        let tables = self.read();
        let ids = tables.keys_of.get(&tenant).map(Vec::as_slice).unwrap_or_default();
        let mut keys: Vec<ApiKey> = ids.iter().filter_map(|id| tables.keys.get(id)).cloned().collect();
        keys.sort_by(|one, other| (one.created_at, &one.id).cmp(&(other.created_at, &other.id)));
        keys
    }

    pub(super) fn page(&self, after: Option<TenantId>, limit: usize) -> Page<Tenant, TenantId> {
        let tables = self.read();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = tables.tenants.range((from, Bound::Unbounded));
        let items: Vec<Tenant> = rest.by_ref().take(limit).map(|(_, tenant)| tenant.clone()).collect();
        let next = rest.next().and(items.last()).map(|tenant| tenant.id);
        Page { items, next }
    }
}

impl Tables {
    fn put(&mut self, tenant: Tenant) {
        // What another tenant has taken over is its own by now: what other nodes have changed comes in the order of the last
        // change of each tenant, not of every change.
        if let Some(before) = self.tenants.remove(&tenant.id) {
            if self.slugs.get(&before.slug) == Some(&tenant.id) {
                self.slugs.remove(&before.slug);
            }
            for id in &before.external_ids {
                if self.external_ids.get(id) == Some(&tenant.id) {
                    self.external_ids.remove(id);
                }
            }
        }
        self.slugs.insert(tenant.slug.clone(), tenant.id);
        self.external_ids.extend(tenant.external_ids.iter().map(|id| (id.clone(), tenant.id)));
        self.tenants.insert(tenant.id, tenant);
    }

    fn put_key(&mut self, key: ApiKey) {
        if !self.keys.contains_key(&key.id) {
            self.keys_of.entry(key.tenant).or_default().push(key.id.clone());
        }
        self.keys.insert(key.id.clone(), key);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn tenant(number: u128, slug: &str, external: &[&str]) -> Tenant {
        let id = |id: &&str| ExternalId { source: "litellm".into(), kind: "team".into(), id: (*id).into() };
        Tenant {
            id: TenantId(Uuid::from_u128(number)),
            slug: slug.into(),
            name: slug.into(),
            tier: String::new(),
            time_zone: "UTC".into(),
            settings: "{}".into(),
            lifecycle: Lifecycle::Active,
            external_ids: external.iter().map(id).collect(),
            created_at: Timestamp(0),
            updated_at: Timestamp(0),
        }
    }

    /// Two tenants have exchanged ids by way of a third state that was never seen here.
    #[test]
    fn what_a_tenant_has_taken_over_stays_its_own_when_the_giver_is_read_after_it() {
        let mut tables = Tables::default();
        tables.put(tenant(1, "acme", &["x"]));
        tables.put(tenant(2, "globex", &["y"]));
        tables.put(tenant(2, "acme", &["x"]));
        tables.put(tenant(1, "globex", &["y"]));
        let owner = |number| Some(TenantId(Uuid::from_u128(number)));
        let of = |id: &str| tables.external_ids.iter().find(|(known, _)| known.id == id).map(|(_, tenant)| *tenant);
        assert_eq!((of("x"), of("y")), (owner(2), owner(1)));
        assert_eq!((tables.slugs.get("acme").copied(), tables.slugs.get("globex").copied()), (owner(2), owner(1)));
    }
}
