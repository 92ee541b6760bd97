//! More tenants than places: who makes room, and for whom.

use ractor::RpcReplyPort;

use super::handle::Absent;
use super::slot::Slot;
use super::supervisor::{State, drain_all};
use crate::domain::ids::TenantId;
use crate::domain::time::{MICROS_PER_SECOND, Timestamp};
use crate::tenant::handle::Handle as Home;
use crate::tenant::message::{Life, Message as TenantMessage};

/// Tenants asked to rest when a place is needed; the first that can, will.
const ASKED_TO_REST: usize = 4;
/// A tenant heard of more recently than this is not asked to make room: somebody may be about to ask it again.
const MADE_ROOM_IDLE_MICROS: i64 = 100_000;
/// How long who is asked for waits for a place before the one that has been open longest has to leave, however busy it is.
const PLACE_PATIENCE_MICROS: i64 = MICROS_PER_SECOND;

/// Waits for a tenant's doorbell.
#[derive(Debug)]
pub(super) struct Caller {
    reply: RpcReplyPort<Result<Home, Absent>>,
    /// Needs it at this very node, which has the tenant by that, whoever else may hold it.
    pub(super) is_guest: bool,
}

impl Caller {
    pub(super) fn guest(reply: RpcReplyPort<Result<Home, Absent>>) -> Caller {
        Caller { reply, is_guest: true }
    }

    /// Comes for what this node is to do there, as long as the tenant is its own.
    pub(super) fn resident(reply: RpcReplyPort<Result<Home, Absent>>) -> Caller {
        Caller { reply, is_guest: false }
    }

    pub(super) fn answer(self, answer: Result<Home, Absent>) {
        let _ = self.reply.send(answer);
    }

    fn waits(&self) -> bool {
        !self.reply.is_closed()
    }
}

/// Adds a caller to those who wait, and forgets those who gave up: a tenant may be on its way for long.
pub(super) fn queue_up(waiting: &mut Vec<Caller>, caller: Option<Caller>) {
    waiting.retain(Caller::waits);
    waiting.extend(caller);
}

impl State {
    /// Asks those that were not heard of for longest to rest. Owing something keeps nobody in: as long as a receiver is down,
    /// every tenant may owe, and then they take turns.
    ///
    /// Where all are busy, and somebody waits, one after the other commits what it has and leaves: nobody is kept out for ever.
    pub(super) fn make_room(&mut self) {
        let now = self.birth.clock.now();
        if !self.queue.iter().any(|tenant| self.is_asked_for(tenant)) {
            self.crowded_since = None;
        } else if !(0..PLACE_PATIENCE_MICROS).contains(&(now.0 - self.crowded_since.get_or_insert(now).0)) {
            self.crowded_since = Some(now);
            self.turn_out();
            return;
        }
        let is_idle = |home: &Home| home.pulse().waiting_events() == 0 && !home.pulse().committing();
        let mut idle: Vec<Home> = self.birth.homes.all().into_iter().filter(is_idle).collect();
        idle.sort_by_key(|home| home.pulse().heard_at());
        for home in idle.into_iter().take(ASKED_TO_REST) {
            let _ = home.actor().cast(TenantMessage::Life(Life::MakeRoom { now, idle_micros: MADE_ROOM_IDLE_MICROS }));
        }
    }

    pub(super) fn is_asked_for(&self, tenant: &TenantId) -> bool {
        self.waiting.get(tenant).is_some_and(|waiting| waiting.iter().any(Caller::waits))
    }

    /// The tenant that has been open longest leaves. It comes back in its turn.
    fn turn_out(&mut self) {
        let opened = |home: &Home| match self.slots.get(&home.tenant()) {
            Some(Slot::Open { since, .. }) => *since,
            _ => Timestamp::MAX,
        };
        let stays = |home: &Home| !self.leaving.contains(&home.tenant());
        let Some(home) = self.birth.homes.all().into_iter().filter(stays).min_by_key(opened) else { return };
        tracing::info!(tenant = %home.tenant(), "leaves to make room for others; raise tenants.open_max if that is often so");
        metrics::counter!("platform_api_tenants_turned_out_total").increment(1);
        self.leaving.insert(home.tenant());
        drain_all(vec![home]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_gave_up_is_forgotten_when_somebody_comes() {
        let mut waiting = Vec::new();
        let (patient, _hears) = ractor::concurrency::oneshot();
        queue_up(&mut waiting, Some(Caller::guest(patient.into())));
        for _ in 0..1_000 {
            let (impatient, gone) = ractor::concurrency::oneshot();
            queue_up(&mut waiting, Some(Caller::guest(impatient.into())));
            drop(gone);
        }
        queue_up(&mut waiting, None);
        assert_eq!(waiting.len(), 1, "only one of a thousand still waits");
    }
}
