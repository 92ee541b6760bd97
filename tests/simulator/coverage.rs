//! Did it really happen? A simulator that never meets a fault proves nothing about it, so every fault and every outcome
//! is counted by seed, and over the suite's seeds each must have happened ("sometimes" assertions).

use std::collections::{BTreeMap, BTreeSet};

use super::plan::Fault;

/// What can become of things besides the faults themselves.
pub const OUTCOMES: &[&str] = &[
    "event: accepted",
    "event: duplicate",
    "event: conflict",
    "event: quarantined as malformed",
    "event: quarantined as too old",
    "event: quarantined as from the future",
    "event: quarantined as unwritable",
    "event: quarantined as another tenant's",
    "event: quarantined because its tenant is frozen",
    "event: not now, the tenant is starting",
    "event: not now, the tenant is saturated",
    "event: not now, no quarantine",
    "event: late, into a period that is over",
    "writer: tried again",
    "writer: tried for the last time",
    "writer: took a unit apart",
    "writer: guessed that known events were new",
    "writer: outcome unknown",
    "writer: fenced",
    "writer: several batches in one commit",
    "owner: taken over",
    "owner: taken over while a transaction of the old one was open",
    "owner: taking over failed",
    "owner: rested",
    "owner: woken by time",
    "owner: drained",
    "owner: given up without a commit",
    "owner: left to the node that holds it",
    "owner: taken up from a node that is gone",
    "owner: taken up, and open here as it was before",
    "tenant: frozen",
    "tenant: yielded to another node",
    "crash: in the middle of a transaction",
    "crash: between the commit and the answer",
    "calm: two nodes live on",
    "stream: delivered again",
    "stream: sent back",
    "stream: read again from the start",
    "stream: full of unacknowledged messages",
    "stream: late acknowledgement",
    "alert: fired",
    "alert: fired for a budget that burns",
    "alert: resolved because a budget lasts again",
    "alert: resolved by time",
    "alert: resolved by a change",
    "alert: fired and resolved in one commit",
    "notice: delivered",
    "notice: delivered twice",
    "notice: tried again",
    "notice: given up",
    "notice: held back by the circuit",
    "change: quotas replaced",
    "change: quotas asked for twice under one key",
    "change: time zone",
    "change: record appended",
    "change: rolled back",
    "decision: allow",
    "decision: warn",
    "decision: deny",
    "decision: not now, the clock was set back",
    "period: rolled",
];

/// What one seed met, or many.
#[derive(Debug, Default, Clone)]
pub struct Coverage {
    met: BTreeSet<&'static str>,
    seeds: BTreeMap<&'static str, u64>,
}

impl Coverage {
    pub fn saw(&mut self, what: &'static str) {
        self.met.insert(what);
    }

    /// Counts one seed's story.
    pub fn add(&mut self, seed: &Coverage) {
        for what in &seed.met {
            *self.seeds.entry(what).or_default() += 1;
        }
    }

    /// Takes in another thread's counts.
    pub fn merge(&mut self, other: &Coverage) {
        for (what, seeds) in &other.seeds {
            *self.seeds.entry(what).or_default() += seeds;
        }
    }

    /// Everything that can happen, with the number of seeds in which it did.
    pub fn table(&self) -> Vec<(&'static str, u64)> {
        let faults = Fault::ALL.iter().map(|fault| fault.name());
        faults.chain(OUTCOMES.iter().copied()).map(|what| (what, self.seeds.get(what).copied().unwrap_or(0))).collect()
    }

    /// Things that happened and are in no list: a misspelt word would make an assertion vacuous.
    pub fn unlisted(&self) -> Vec<&'static str> {
        let listed: BTreeSet<&str> = self.table().into_iter().map(|(what, _)| what).collect();
        self.seeds.keys().filter(|what| !listed.contains(*what)).copied().collect()
    }
}
