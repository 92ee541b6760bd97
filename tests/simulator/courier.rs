//! One node's outlets: the real desk, schedule and circuit breakers, with simulated lanes and receivers.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use platform_api::directory::handle::Absent;
use platform_api::domain::ids::TenantId;
use platform_api::domain::notice::{Attempt, AttemptResult};
use platform_api::domain::time::Timestamp;
use platform_api::outlet::breaker::Breaker;
use platform_api::outlet::desk::{Desk, Found, Missed, Offered, Visit};
use platform_api::outlet::parcel::Parcel;
use platform_api::outlet::schedule;
use tokio::time::Instant;

use super::ground::Ground;
use super::plan::Fault;

/// Messages that may wait for one channel.
const QUEUE_MAX: usize = 4;
/// How long a send may take.
const SEND_TIMEOUT_MICROS: i64 = 10_000_000;

/// A send under way.
struct Send {
    parcel: Parcel,
    ends_at: i64,
    result: Result<(), Failure>,
}

#[derive(Clone, Copy)]
enum Failure {
    Passing,
    Final,
}

struct Lane {
    channel: String,
    queue: VecDeque<Parcel>,
    sends: Vec<Send>,
    breaker: Breaker,
}

pub struct Courier {
    pub desk: Desk,
    lanes: BTreeMap<String, Lane>,
    /// Visits on their way back.
    visits: Vec<Visit>,
    /// A monotonic clock's zero.
    zero: Instant,
}

pub fn channels(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("channel-{number}")).collect()
}

impl Courier {
    pub fn new(receivers: usize) -> Courier {
        let lane = |channel: String| {
            let lane = Lane {
                channel: channel.clone(),
                queue: VecDeque::new(),
                sends: Vec::new(),
                breaker: Breaker::default(),
            };
            (channel, lane)
        };
        Courier {
            desk: Desk::default(),
            lanes: channels(receivers).into_iter().map(lane).collect(),
            visits: Vec::new(),
            zero: Instant::now(),
        }
    }

    /// Somebody read the tenant's outbox, or could not.
    pub fn visited(&mut self, tenant: TenantId, found: Result<Found, Absent>) {
        self.visits.push(Visit { tenant, found: found.map_err(Missed::Absent) });
    }

    /// A visitor arrives; not the first that left, necessarily.
    pub fn welcome(&mut self, ground: &mut Ground, now: Timestamp) -> Option<TenantId> {
        if self.visits.is_empty() {
            return None;
        }
        let visit = self.visits.swap_remove(ground.dice.below(self.visits.len()));
        let tenant = visit.tenant;
        let lanes = &mut self.lanes;
        self.desk.welcome(visit, now, |parcel| match lanes.get_mut(&parcel.delivery.channel) {
            None => Offered::NoLane,
            Some(lane) if lane.queue.len() >= QUEUE_MAX => Offered::NoRoom,
            Some(lane) => {
                lane.queue.push_back(parcel);
                Offered::Taken
            }
        });
        Some(tenant)
    }

    pub fn is_idle(&self) -> bool {
        self.lanes.values().all(|lane| lane.queue.is_empty() && lane.sends.is_empty())
    }

    /// Begins sends, and ends those whose time has come; whose attempts are to be recorded.
    pub fn work(&mut self, ground: &mut Ground, now: Timestamp) -> Vec<TenantId> {
        let mut settled = Vec::new();
        let monotonic = self.zero + Duration::from_micros(ground.now as u64);
        for lane in self.lanes.values_mut() {
            let (over, under_way) = lane.sends.drain(..).partition(|send| send.ends_at <= ground.now);
            lane.sends = under_way;
            for Send { parcel, result, .. } in over {
                match result {
                    Ok(()) | Err(Failure::Final) => lane.breaker.succeeded(),
                    Err(Failure::Passing) => lane.breaker.failed(monotonic),
                }
                settled.push(settle(ground, parcel, now, result, Duration::ZERO));
            }
            while lane.sends.len() < 2 {
                let Some(parcel) = lane.queue.pop_front() else { break };
                match lane.breaker.admit(monotonic) {
                    Ok(()) => lane.sends.push(send(ground, parcel)),
                    Err(wait) => {
                        ground.coverage.saw("notice: held back by the circuit");
                        settled.push(settle(ground, parcel, now, Err(Failure::Passing), wait));
                    }
                }
            }
            debug_assert!(!lane.channel.is_empty());
        }
        let tenants = settled.iter().map(|(tenant, _)| *tenant).collect();
        for (tenant, attempt) in settled {
            self.desk.settle(tenant, attempt);
        }
        tenants
    }
}

/// The receiver hears it, or not, and answers, or not.
fn send(ground: &mut Ground, parcel: Parcel) -> Send {
    let delivery = &parcel.delivery;
    let (heard, takes, result) = if ground.strikes(Fault::ReceiverHangs) {
        (false, SEND_TIMEOUT_MICROS, Err(Failure::Passing))
    } else if ground.silence || ground.strikes(Fault::ReceiverFails) {
        (false, 10_000, Err(Failure::Passing))
    } else if ground.strikes(Fault::ReceiverRefuses) {
        (false, 10_000, Err(Failure::Final))
    } else if ground.strikes(Fault::ReceiverReplyLost) {
        (true, SEND_TIMEOUT_MICROS, Err(Failure::Passing))
    } else {
        (true, 10_000, Ok(()))
    };
    if heard {
        let id = (delivery.alert.id, delivery.event.name(), delivery.channel.clone());
        let alerts = ground.alerts.get(&parcel.tenant);
        let known = alerts.zip(delivery.alert.mark()).is_some_and(|(alerts, mark)| alerts.contains(&mark));
        ground.require(known, "Q3", || "a receiver was told of an alert that is not in the books".into());
        ground.coverage.saw("notice: delivered");
        if !ground.received.insert(id) {
            ground.coverage.saw("notice: delivered twice");
        }
    }
    ground.tell(format_args!("sent {} to {}: heard {heard}", delivery.id(), delivery.channel));
    Send { ends_at: ground.now + takes, parcel, result }
}

fn settle(
    ground: &mut Ground,
    parcel: Parcel,
    now: Timestamp,
    result: Result<(), Failure>,
    at_least: Duration,
) -> (TenantId, Attempt) {
    let result = match result {
        Ok(()) => AttemptResult::Delivered,
        Err(Failure::Final) => AttemptResult::GaveUp { reason: "refused".into() },
        Err(Failure::Passing) => schedule::after_failure(&parcel, now, "no answer".into(), at_least),
    };
    match &result {
        AttemptResult::Retry { .. } => ground.coverage.saw("notice: tried again"),
        AttemptResult::GaveUp { .. } => ground.coverage.saw("notice: given up"),
        AttemptResult::Withdrawn => {}
        AttemptResult::Delivered => {}
    }
    let delivery = parcel.delivery;
    let attempt =
        Attempt { alert: delivery.alert.id, event: delivery.event, channel: delivery.channel, at: now, result };
    (parcel.tenant, attempt)
}
