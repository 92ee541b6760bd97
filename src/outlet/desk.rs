//! What the dispatcher knows and decides: whom to visit, what to hand to the lanes, what to record. Pure; the dispatcher
//! walks, sends and waits.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::agenda::Agenda;
use super::parcel::Parcel;
use super::schedule;
use crate::directory::handle::Absent;
use crate::domain::ids::{AlertId, TenantId};
use crate::domain::notice::{Alert, Attempt, AttemptResult, Delivery, Event, Firing};
use crate::domain::time::{MICROS_PER_MINUTE, MICROS_PER_SECOND, Timestamp};

/// Deliveries asked for in one visit.
pub const DUE_MAX: usize = 256;
/// When a tenant that did not answer is visited again.
const PAUSE_MICROS: i64 = 2 * MICROS_PER_SECOND;
/// When a tenant is visited again that a person has to look at first.
const FROZEN_PAUSE_MICROS: i64 = MICROS_PER_MINUTE;
/// When a message is offered again to a channel that has no room for it.
const BUSY_PAUSE_MICROS: i64 = 2 * MICROS_PER_SECOND;

/// One alert's messages to one channel, of which at most one is under way. The outbox holds back that an alert is over
/// until it is settled that it fired.
type Thread = (AlertId, String);

/// What a visitor brings back.
#[derive(Debug)]
pub struct Visit {
    pub tenant: TenantId,
    pub found: Result<Found, Missed>,
}

/// What a tenant answered.
#[derive(Debug)]
pub struct Found {
    pub firing: Vec<Firing>,
    pub due: Vec<Delivery>,
}

/// Why a visit found nothing out.
#[derive(Debug)]
pub enum Missed {
    Absent(Absent),
    /// The tenant is there, and did not answer.
    Silent(String),
}

/// How a lane took a parcel that was offered to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    Taken,
    NoRoom,
    /// No channel of this name is configured.
    NoLane,
}

/// How recording a tenant's attempts ended.
#[derive(Debug)]
pub struct Recorded {
    pub tenant: TenantId,
    pub attempts: Vec<Attempt>,
    /// Recorded, or there is no tenant of ours any more.
    pub done: bool,
}

/// The courier's desk.
#[derive(Debug, Default)]
pub struct Desk {
    agenda: Agenda,
    /// Tenants whose outbox was settled while a visitor was reading it: what that visitor brings may be delivered already.
    outdated: HashSet<TenantId>,
    under_way: HashSet<Thread>,
    /// Attempts to record, by tenant; one recording per tenant at a time.
    unrecorded: HashMap<TenantId, Vec<Attempt>>,
    recording: HashSet<TenantId>,
    /// What fires, as of the last visit; a tenant that rests keeps its entry, for its alerts fire on.
    firing: HashMap<TenantId, Vec<Firing>>,
}

impl Desk {
    /// Something may be due there.
    pub fn visit(&mut self, tenant: TenantId) {
        self.agenda.soon(tenant);
    }

    /// Time has passed.
    pub fn advance(&mut self, now: Timestamp) {
        self.agenda.advance(now);
    }

    /// Whom to visit next; the visit ends with [`welcome`](Desk::welcome).
    pub fn next_visit(&mut self) -> Option<TenantId> {
        self.agenda.next()
    }

    // ---- handing out what is due ----

    /// Takes in what a visitor brought, and offers what is due to the lanes.
    pub fn welcome(&mut self, visit: Visit, now: Timestamp, offer: impl FnMut(Parcel) -> Offered) {
        let Visit { tenant, found } = visit;
        let outdated = self.outdated.remove(&tenant);
        match found {
            Ok(found) => {
                self.remember(tenant, found.firing, now);
                // An outdated list would deliver again what was settled meanwhile; the next visit is on the agenda.
                if !outdated {
                    self.hand_out(tenant, found.due, now, offer);
                }
            }
            // What another node owns, another node delivers.
            Err(Missed::Absent(Absent::Unknown | Absent::Elsewhere { .. })) => drop(self.firing.remove(&tenant)),
            Err(Missed::Absent(Absent::ComeBack { after_ms })) => {
                let after = i64::try_from(after_ms.saturating_mul(1_000)).unwrap_or(PAUSE_MICROS);
                self.agenda.at(tenant, now.plus_micros(after.max(PAUSE_MICROS)));
            }
            Err(Missed::Absent(Absent::Frozen)) => self.agenda.at(tenant, now.plus_micros(FROZEN_PAUSE_MICROS)),
            Err(Missed::Silent(reason)) => {
                tracing::debug!(%tenant, reason, "the outbox could not be read yet");
                self.agenda.at(tenant, now.plus_micros(PAUSE_MICROS));
            }
        }
        self.agenda.finished(tenant);
    }

    /// What fires in tenants of which this holds is somebody else's to repeat.
    pub fn leave(&mut self, is_elsewhere: impl Fn(TenantId) -> bool) {
        self.firing.retain(|tenant, _| !is_elsewhere(*tenant));
    }

    /// Keeps what fires, and comes back when the first of it is to end, which wakes a tenant that rests.
    fn remember(&mut self, tenant: TenantId, firing: Vec<Firing>, now: Timestamp) {
        if let Some(end) = firing.iter().filter_map(|one| one.alert.period_end()).min() {
            self.agenda.at(tenant, end.max(now).plus_micros(MICROS_PER_SECOND));
        }
        if firing.is_empty() {
            self.firing.remove(&tenant);
        } else {
            self.firing.insert(tenant, firing);
        }
    }

    fn hand_out(
        &mut self,
        tenant: TenantId,
        due: Vec<Delivery>,
        now: Timestamp,
        mut offer: impl FnMut(Parcel) -> Offered,
    ) {
        let full_page = due.len() >= DUE_MAX;
        for delivery in due {
            let thread = (delivery.alert.id, delivery.channel.clone());
            if self.under_way.contains(&thread) {
                continue;
            }
            if delivery.event == Event::Resolved {
                self.forget_firing(tenant, delivery.alert.id);
            }
            let parcel = Parcel { tenant, delivery };
            match offer(parcel.clone()) {
                Offered::Taken => drop(self.under_way.insert(thread)),
                // The next round offers it again, unless messages to a slow channel fill the page and hide the others.
                Offered::NoRoom if full_page => {
                    let (at, reason) = (now.plus_micros(BUSY_PAUSE_MICROS), "the channel is busy".into());
                    self.put_off(parcel, now, AttemptResult::Retry { at, reason });
                }
                Offered::NoRoom => self.agenda.at(tenant, now.plus_micros(BUSY_PAUSE_MICROS)),
                Offered::NoLane => {
                    let reason = "no channel of this name is configured".into();
                    let result = schedule::after_failure(&parcel, now, reason, Duration::MAX);
                    self.put_off(parcel, now, result);
                }
            }
        }
    }

    /// Notes an attempt that was not made.
    fn put_off(&mut self, parcel: Parcel, now: Timestamp, result: AttemptResult) {
        let Parcel { tenant, delivery } = parcel;
        self.under_way.insert((delivery.alert.id, delivery.channel.clone()));
        let attempt =
            Attempt { alert: delivery.alert.id, event: delivery.event, channel: delivery.channel, at: now, result };
        self.settle(tenant, attempt);
    }

    // ---- recording how it ended ----

    /// An attempt has ended, and is to be recorded.
    pub fn settle(&mut self, tenant: TenantId, attempt: Attempt) {
        self.unrecorded.entry(tenant).or_default().push(attempt);
    }

    /// The tenant's attempts to record now; ends with [`recorded`](Desk::recorded).
    pub fn next_recording(&mut self, tenant: TenantId) -> Option<Vec<Attempt>> {
        if self.recording.contains(&tenant) {
            return None;
        }
        let attempts = self.unrecorded.remove(&tenant)?;
        self.recording.insert(tenant);
        Some(attempts)
    }

    /// A recording has ended.
    pub fn recorded(&mut self, recorded: Recorded) {
        let Recorded { tenant, attempts, done } = recorded;
        self.recording.remove(&tenant);
        if done {
            for attempt in attempts {
                self.close(tenant, attempt);
            }
            if self.agenda.is_visiting(tenant) {
                self.outdated.insert(tenant);
            }
            // Something may have waited for these threads.
            self.agenda.soon(tenant);
        } else {
            // Until it is recorded the same message must not be sent again; nothing new is due before that either.
            self.unrecorded.entry(tenant).or_default().splice(..0, attempts);
        }
    }

    fn close(&mut self, tenant: TenantId, attempt: Attempt) {
        self.under_way.remove(&(attempt.alert, attempt.channel));
        if let AttemptResult::Retry { at, .. } = attempt.result {
            self.agenda.at(tenant, at);
        }
    }

    // ---- repeating what fires ----

    /// What fires at `now` and `channel` was told of, as of the last visits.
    #[must_use]
    pub fn firing(&self, channel: &str, now: Timestamp) -> VecDeque<(TenantId, Alert)> {
        let knows = |one: &&Firing| one.told.iter().any(|told| told.channel == channel && told.held_until <= now);
        let lasts = |one: &&Firing| one.alert.period_end().is_none_or(|end| end > now);
        self.firing
            .iter()
            .flat_map(|(tenant, firing)| {
                firing.iter().filter(knows).filter(lasts).map(|one| (*tenant, one.alert.clone()))
            })
            .collect()
    }

    fn forget_firing(&mut self, tenant: TenantId, alert: AlertId) {
        if let Some(firing) = self.firing.get_mut(&tenant) {
            firing.retain(|known| known.alert.id != alert);
        }
    }
}
