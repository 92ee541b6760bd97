//! What all nodes share: the databases, the stream, and the control database's part in this story.

use std::collections::{BTreeMap, BTreeSet};

use platform_api::domain::chain::Head;
use platform_api::domain::ids::TenantId;
use platform_api::domain::usage::Refusal;

use super::checks;
use super::ground::{Shared, lock, share};
use super::sender::{Draft, tenant_id};
use super::stream::Stream;
use super::vault::Vault;

pub struct Town {
    pub vaults: BTreeMap<TenantId, Shared<Vault>>,
    pub stream: Stream,
    /// Raw bytes, and why they were not counted.
    pub quarantine: BTreeMap<Vec<u8>, Refusal>,
    /// Tenants to wake when a node starts: those that were open, or owe or fire something.
    pub awake: BTreeSet<TenantId>,
    /// How long each chain is, as the catalogue remembers.
    witnessed: BTreeMap<TenantId, Head>,
}

impl Town {
    pub fn new(tenants: usize) -> Town {
        let vaults = (0..tenants).map(|number| (tenant_id(number), share(Vault::new(tenant_id(number)))));
        Town {
            vaults: vaults.collect(),
            stream: Stream::default(),
            quarantine: BTreeMap::new(),
            awake: BTreeSet::new(),
            witnessed: BTreeMap::new(),
        }
    }

    pub fn witnessed(&self, tenant: TenantId) -> Head {
        self.witnessed.get(&tenant).copied().unwrap_or(Head::EMPTY)
    }

    /// The catalogue never forgets a longer chain for a shorter one.
    pub fn witness(&mut self, tenant: TenantId, head: Head) {
        let known = self.witnessed.entry(tenant).or_insert(head);
        if head.seq > known.seq {
            *known = head;
        }
    }

    /// L3: is the event durable somewhere: in the ledger, among the conflicts, in quarantine?
    pub fn keeps(&self, draft: &Draft) -> bool {
        if self.quarantine.contains_key(draft.json().as_bytes()) {
            return true;
        }
        let Some(vault) = self.vaults.get(&tenant_id(draft.tenant)).map(lock) else { return false };
        vault.restored
            || vault.naive.events().any(|known| known == draft)
            || vault.database.tables.conflicts.values().any(|event| checks::is(event, draft))
    }

    pub fn is_restored(&self, tenant: TenantId) -> bool {
        self.vaults.get(&tenant).is_some_and(|vault| lock(vault).restored)
    }
}
