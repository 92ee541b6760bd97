//! Other nodes on the same databases: which of our tenants they have taken. Whoever opens a tenant writes to its chain, and
//! notes that in the catalogue.

use ractor::ActorRef;

use super::registrar;
use super::supervisor::{Message, State, TAKEN};
use crate::domain::ids::TenantId;
use crate::fault;

/// Sweeps between two looks.
const SWEEPS_PER_LOOK: u32 = 4;

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

    pub(super) fn taken(&mut self, tenants: &[(TenantId, i64)]) {
        self.looking = false;
        for (tenant, seq) in tenants {
            // What we have noted ourselves meanwhile, we have written.
            if let Some(home) = self.birth.homes.get(*tenant) {
                if home.pulse().books().head.seq < *seq {
                    home.actor().stop(Some(TAKEN.to_owned()));
                }
            } else if self.resting.get(tenant).is_some_and(|known| known < seq) {
                self.resting.remove(tenant);
                self.owing.remove(tenant);
                self.unsettled.remove(tenant);
                self.birth.homes.leave_to_another(*tenant);
            }
        }
    }
}
