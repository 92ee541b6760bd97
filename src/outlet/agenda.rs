//! Which tenants to visit, now and later. Each is in the list once, however often it was named.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use crate::domain::ids::TenantId;
use crate::domain::time::Timestamp;

/// The dispatcher's list of visits. Its size is bounded by the number of tenants.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    soon: VecDeque<TenantId>,
    listed: HashSet<TenantId>,
    visiting: HashSet<TenantId>,
    /// Named while being visited: what is new may have come after the visitor looked.
    again: HashSet<TenantId>,
    later: BTreeSet<(Timestamp, TenantId)>,
    later_at: HashMap<TenantId, Timestamp>,
}

impl Agenda {
    /// Visit as soon as possible.
    pub(super) fn soon(&mut self, tenant: TenantId) {
        if self.visiting.contains(&tenant) {
            self.again.insert(tenant);
        } else if self.listed.insert(tenant) {
            self.soon.push_back(tenant);
        }
    }

    /// Is somebody reading this tenant's outbox now?
    pub(super) fn is_visiting(&self, tenant: TenantId) -> bool {
        self.visiting.contains(&tenant)
    }

    /// Visit at that time; the earliest of several counts.
    pub(super) fn at(&mut self, tenant: TenantId, when: Timestamp) {
        match self.later_at.get(&tenant) {
            Some(earlier) if *earlier <= when => return,
            Some(later) => self.later.remove(&(*later, tenant)),
            None => false,
        };
        self.later.insert((when, tenant));
        self.later_at.insert(tenant, when);
    }

    /// Moves what is due by `now` to the front list.
    pub(super) fn advance(&mut self, now: Timestamp) {
        while let Some((when, tenant)) = self.later.first().copied() {
            if when > now {
                return;
            }
            self.later.pop_first();
            self.later_at.remove(&tenant);
            self.soon(tenant);
        }
    }

    /// The next tenant to visit; it counts as being visited until [`finished`](Agenda::finished).
    pub(super) fn next(&mut self) -> Option<TenantId> {
        let tenant = self.soon.pop_front()?;
        self.listed.remove(&tenant);
        self.visiting.insert(tenant);
        Some(tenant)
    }

    pub(super) fn finished(&mut self, tenant: TenantId) {
        self.visiting.remove(&tenant);
        if self.again.remove(&tenant) {
            self.soon(tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_is_listed_once_and_visited_again_when_named_meanwhile() {
        let [one, two] = [1, 2].map(|number| TenantId(uuid::Uuid::from_u128(number)));
        let mut agenda = Agenda::default();
        agenda.soon(one);
        agenda.soon(two);
        agenda.soon(one);
        assert_eq!((agenda.next(), agenda.next(), agenda.next()), (Some(one), Some(two), None));
        agenda.soon(one);
        assert_eq!(agenda.next(), None, "one visit at a time");
        agenda.finished(one);
        agenda.finished(two);
        assert_eq!((agenda.next(), agenda.next()), (Some(one), None));
    }

    #[test]
    fn the_earliest_time_counts() {
        let tenant = TenantId(uuid::Uuid::from_u128(1));
        let mut agenda = Agenda::default();
        agenda.at(tenant, Timestamp(20));
        agenda.at(tenant, Timestamp(10));
        agenda.at(tenant, Timestamp(30));
        agenda.advance(Timestamp(9));
        assert_eq!(agenda.next(), None);
        agenda.advance(Timestamp(10));
        assert_eq!(agenda.next(), Some(tenant));
        agenda.finished(tenant);
        agenda.advance(Timestamp(100));
        assert_eq!(agenda.next(), None);
    }
}
