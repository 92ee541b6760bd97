//! What all nodes share: the databases, the stream, and the control database's part in this story.

use std::collections::{BTreeMap, BTreeSet};

use platform_api::domain::chain::Head;
use platform_api::domain::ids::{NodeId, TenantId};
use platform_api::domain::usage::Refusal;
use platform_api::store::catalogue::Note;
use platform_api::store::node::{Beat, Held};

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
    /// Tenants that somebody has to come back to: those that were open, or owe or fire something.
    awake: BTreeSet<TenantId>,
    /// Those of them that were taken up from a node that is gone, and have not been open since.
    orphans: BTreeSet<TenantId>,
    /// Who is to come back to each.
    holders: BTreeMap<TenantId, NodeId>,
    /// How often each node has said that it lives.
    beats: BTreeMap<NodeId, i64>,
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
            orphans: BTreeSet::new(),
            holders: BTreeMap::new(),
            beats: BTreeMap::new(),
            witnessed: BTreeMap::new(),
        }
    }

    pub fn witnessed(&self, tenant: TenantId) -> Head {
        self.witnessed.get(&tenant).copied().unwrap_or(Head::EMPTY)
    }

    /// A node is about to open a tenant. `None` when another holds it, and nobody asked this one.
    pub fn hold(&mut self, tenant: TenantId, node: NodeId, asked: bool) -> Option<Head> {
        let holder = self.holders.get(&tenant);
        if !asked && holder.is_some_and(|holder| *holder != node && self.beats.contains_key(holder)) {
            return None;
        }
        self.awake.insert(tenant);
        self.orphans.remove(&tenant);
        self.holders.insert(tenant, node);
        Some(self.witnessed(tenant))
    }

    /// The catalogue never forgets a longer chain for a shorter one. Of what another node holds only the head is news.
    pub fn remember(&mut self, tenant: TenantId, note: Note, node: NodeId) {
        let known = self.witnessed(tenant).seq;
        if note.head.seq < known {
            return;
        }
        let is_longer = note.head.seq > known;
        self.witnessed.insert(tenant, note.head);
        let was_another_s = self.holders.get(&tenant).is_some_and(|holder| *holder != node);
        if note.opened && is_longer {
            self.holders.insert(tenant, node);
        } else if was_another_s || self.orphans.contains(&tenant) {
            return;
        }
        self.orphans.remove(&tenant);
        if note.awake || (was_another_s && self.awake.contains(&tenant)) {
            self.awake.insert(tenant);
        } else {
            self.awake.remove(&tenant);
        }
    }

    /// A node lives; what the others have said.
    pub fn beat(&mut self, node: NodeId) -> Vec<Beat> {
        *self.beats.entry(node).or_default() += 1;
        let others = self.beats.iter().filter(|(other, _)| **other != node);
        others.map(|(node, beats)| Beat { node: *node, beats: *beats }).collect()
    }

    pub fn strike_off(&mut self, last: Beat) {
        if self.beats.get(&last.node) == Some(&last.beats) {
            self.beats.remove(&last.node);
        }
    }

    /// Makes the node the holder of what nobody is left to come back to; answers what that is.
    pub fn take_up(&mut self, node: NodeId) -> Vec<Held> {
        let lives = |holder: &NodeId| self.beats.contains_key(holder);
        let left = |tenant: &&TenantId| !self.holders.get(*tenant).is_some_and(lives);
        let taken: Vec<TenantId> = self.awake.iter().filter(left).copied().collect();
        self.holders.extend(taken.iter().map(|tenant| (*tenant, node)));
        self.orphans.extend(&taken);
        let orphan = |tenant: TenantId| Held { tenant, head_seq: self.witnessed(tenant).seq, is_orphan: true };
        taken.into_iter().map(orphan).collect()
    }

    /// What a node is to come back to.
    pub fn held(&self, node: NodeId) -> Vec<Held> {
        let held = self.awake.iter().copied().filter(|tenant| self.holders.get(tenant) == Some(&node));
        held.map(|tenant| Held { tenant, head_seq: self.witnessed(tenant).seq, is_orphan: false }).collect()
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
