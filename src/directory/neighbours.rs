//! Other nodes on the same databases: which of our tenants they have taken, and which of theirs are ours to come back to.
//! Whoever opens a tenant writes to its chain, and notes that in the catalogue.

use std::time::Duration;

use ractor::ActorRef;

use super::registrar;
use super::slot::Slot;
use super::supervisor::{Birth, Message, State, TAKEN};
use crate::domain::chain::Head;
use crate::domain::ids::TenantId;
use crate::fault;
use crate::store::StoreError;
use crate::store::node::Held;

/// How long the catalogue is asked to note who opens a tenant, and for what other nodes have seen of its chain.
const HOLD_PATIENCE: Duration = Duration::from_millis(500);
/// Sweeps between two looks.
const SWEEPS_PER_LOOK: u32 = 4;

/// Notes that this node is about to have a tenant, so that another comes back to it should this one die the moment after; answers
/// the longest head of its chain that anybody has seen: this node, or, as the catalogue remembers, another one. What cannot be
/// noted and asked there now is not waited for.
///
/// # Errors
/// [`StoreError::Fenced`] when another node holds it, and nobody `asked` this one.
pub(super) async fn hold(birth: &Birth, tenant: TenantId, asked: bool) -> Result<Head, StoreError> {
    let ours = birth.index.head(tenant);
    if birth.store.followed_every().is_none() {
        return Ok(ours);
    }
    let (sender, theirs) = ractor::concurrency::oneshot();
    if birth.registrar.cast(registrar::Message::Hold { tenant, asked, reply: sender.into() }).is_err() {
        return Ok(ours);
    }
    match tokio::time::timeout(HOLD_PATIENCE, theirs).await {
        Ok(Ok(Ok(None))) if !asked => Err(StoreError::Fenced),
        Ok(Ok(Ok(Some(head)))) if head.seq > ours.seq => Ok(head),
        _ => Ok(ours),
    }
}

impl State {
    /// Looks, now and then, whether another node has one of the tenants that are open here, for their next commit may be long
    /// to come, and until then they would answer from older books; or one that rests here, and would be told about, and come
    /// back, for what is somebody else's to tell.
    pub(super) fn look(&mut self, myself: &ActorRef<Message>) {
        let store = &self.birth.store;
        if store.followed_every().is_none() || self.looking || !self.sweeps.is_multiple_of(SWEEPS_PER_LOOK) {
            return;
        }
        // Who does not look whose the books are, does not find out this way either.
        if fault::is_planted("epoch-unchecked") {
            return;
        }
        let homes = self.birth.homes.all();
        let open = homes.iter().map(|home| (home.tenant(), home.pulse().books().head.seq));
        let resting = self.resting.iter().map(|(tenant, seq)| (*tenant, *seq));
        let heads: Vec<(TenantId, i64)> = open.chain(resting).collect();
        let (sender, receiver) = ractor::concurrency::oneshot();
        if heads.is_empty()
            || self.birth.registrar.cast(registrar::Message::Longer { heads, reply: sender.into() }).is_err()
        {
            return;
        }
        self.looking = true;
        let supervisor = myself.clone();
        tokio::spawn(async move {
            let tenants = receiver.await.unwrap_or_default();
            let _ = supervisor.cast(Message::Taken { tenants });
        });
    }

    /// The catalogue says that these are ours to come back to: we have had them, or another node that is gone, or a process
    /// before this one.
    pub(super) fn take_up(&mut self, held: &[Held]) {
        let now = self.birth.clock.now();
        for Held { tenant, head_seq, is_orphan } in held {
            let home = self.birth.homes.get(*tenant);
            let known = home.as_ref().map(|home| home.pulse().books().head.seq).or(self.resting.get(tenant).copied());
            // Nobody else has had it since, unless somebody died who was about to note that he has.
            if !is_orphan && known.is_some_and(|known| known >= *head_seq) {
                continue;
            }
            match (self.slots.get(tenant), home) {
                // It is opened without us, or waits for a person.
                (Some(Slot::Starting { .. } | Slot::BackingOff { .. } | Slot::Frozen { .. }), _) => continue,
                // What is open here is older than what the other one left.
                (Some(Slot::Open { .. }), Some(home)) => home.actor().stop(Some(TAKEN.to_owned())),
                _ => {}
            }
            // Whoever had it before us is gone.
            self.birth.homes.come_home(*tenant);
            self.resting.insert(*tenant, known.unwrap_or(*head_seq).max(*head_seq));
            self.owing.insert(*tenant, now);
        }
        self.call_back(now);
    }

    pub(super) fn taken(&mut self, tenants: &[(TenantId, i64)]) {
        self.looking = false;
        for (tenant, seq) in tenants {
            // What we have noted ourselves meanwhile, we have written.
            if let Some(home) = self.birth.homes.get(*tenant) {
                if home.pulse().books().head.seq < *seq {
                    home.actor().stop(Some(TAKEN.to_owned()));
                }
            } else if self.resting.get(tenant).is_some_and(|known| known < seq) && !self.slots.contains_key(tenant) {
                self.forget(*tenant);
            }
        }
    }

    /// It is another node's to come back to.
    pub(super) fn forget(&mut self, tenant: TenantId) {
        self.resting.remove(&tenant);
        self.owing.remove(&tenant);
        self.unsettled.remove(&tenant);
        self.birth.homes.leave_to_another(tenant);
    }
}
