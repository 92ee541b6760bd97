//! What a seed has in store: how large its world is, and how often each fault strikes. Every seed draws its own
//! probabilities, most of them zero: some worlds are calm, some know one fault only, some are hell. Faults that are
//! always there drown each other's traces.

use std::collections::BTreeMap;

use platform_api::domain::time::MICROS_PER_HOUR;

use super::dice::Dice;

/// Everything that can go wrong around the code under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    // The databases.
    ConnectionLost,
    CommitReplyLost,
    CommitLost,
    Serialization,
    DiskFull,
    DatabaseCrash,
    DatabaseRestored,
    QuarantineFails,
    // The nodes.
    NodeCrash,
    NodeFreeze,
    Failover,
    Drain,
    ClockJump,
    // The stream.
    AckLost,
    BrokerCrash,
    Purge,
    Truncate,
    Recreate,
    StreamRestored,
    ConsumerGone,
    PublishReplyLost,
    // The clients.
    HttpReplyLost,
    // The receivers of notices.
    ReceiverHangs,
    ReceiverFails,
    ReceiverReplyLost,
    ReceiverRefuses,
}

impl Fault {
    pub const ALL: [Fault; 26] = [
        Fault::ConnectionLost,
        Fault::CommitReplyLost,
        Fault::CommitLost,
        Fault::Serialization,
        Fault::DiskFull,
        Fault::DatabaseCrash,
        Fault::DatabaseRestored,
        Fault::QuarantineFails,
        Fault::NodeCrash,
        Fault::NodeFreeze,
        Fault::Failover,
        Fault::Drain,
        Fault::ClockJump,
        Fault::AckLost,
        Fault::BrokerCrash,
        Fault::Purge,
        Fault::Truncate,
        Fault::Recreate,
        Fault::StreamRestored,
        Fault::ConsumerGone,
        Fault::PublishReplyLost,
        Fault::HttpReplyLost,
        Fault::ReceiverHangs,
        Fault::ReceiverFails,
        Fault::ReceiverReplyLost,
        Fault::ReceiverRefuses,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Fault::ConnectionLost => "fault: connection lost in a transaction",
            Fault::CommitReplyLost => "fault: commit done, reply lost",
            Fault::CommitLost => "fault: commit not done, reply lost",
            Fault::Serialization => "fault: serialization failure",
            Fault::DiskFull => "fault: disk full",
            Fault::DatabaseCrash => "fault: database crash",
            Fault::DatabaseRestored => "fault: database restored to an earlier state",
            Fault::QuarantineFails => "fault: quarantine cannot be written",
            Fault::NodeCrash => "fault: node crash",
            Fault::NodeFreeze => "fault: node frozen, and waking later",
            Fault::Failover => "fault: another node takes over",
            Fault::Drain => "fault: tenant closed under load",
            Fault::ClockJump => "fault: clock jump",
            Fault::AckLost => "fault: acknowledgement lost",
            Fault::BrokerCrash => "fault: broker forgets acknowledgements",
            Fault::Purge => "fault: stream purged",
            Fault::Truncate => "fault: stream lost its tail",
            Fault::Recreate => "fault: stream made anew",
            Fault::StreamRestored => "fault: stream restored to an earlier state",
            Fault::ConsumerGone => "fault: consumer deleted",
            Fault::PublishReplyLost => "fault: publisher's reply lost",
            Fault::HttpReplyLost => "fault: HTTP reply lost",
            Fault::ReceiverHangs => "fault: receiver hangs",
            Fault::ReceiverFails => "fault: receiver fails",
            Fault::ReceiverReplyLost => "fault: receiver accepts, reply lost",
            Fault::ReceiverRefuses => "fault: receiver refuses for good",
        }
    }

    /// How often the fault strikes at most, each time it could.
    fn rate_max(self) -> f64 {
        match self {
            // Asked at every statement.
            Fault::ConnectionLost | Fault::Serialization | Fault::DiskFull => 0.10,
            Fault::CommitReplyLost | Fault::CommitLost | Fault::QuarantineFails => 0.4,
            Fault::AckLost | Fault::PublishReplyLost | Fault::HttpReplyLost => 0.5,
            Fault::ReceiverHangs | Fault::ReceiverFails | Fault::ReceiverReplyLost => 0.7,
            Fault::ReceiverRefuses => 0.1,
            // Asked at every step of the world.
            Fault::DatabaseRestored => 0.002,
            Fault::DatabaseCrash => 0.02,
            Fault::NodeCrash | Fault::NodeFreeze | Fault::Failover => 0.1,
            Fault::ClockJump => 0.2,
            _ => 0.01,
        }
    }
}

/// One seed's world.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Steps before the faults stop.
    pub steps: usize,
    pub tenants: usize,
    pub receivers: usize,
    /// Does a second writer wait for the first already when it begins, as on SQLite?
    pub locks_early: bool,
    pub permits_events: usize,
    pub unit_events_max: usize,
    pub ack_pending_max: usize,
    /// Share of events whose id was used before.
    pub repeats: f64,
    /// Share of repeats that bring another body.
    pub conflicts: f64,
    /// Share of events that are odd in time: late, too old, from the future, at a boundary.
    pub odd_times: f64,
    /// Share of events that are no events, cannot be written, or name another tenant.
    pub poison: f64,
    /// How long a step takes, at most, in microseconds; now and then time leaps.
    pub step_micros: i64,
    pub leaps: f64,
    /// Share of steps in which somebody changes quotas or the calendar.
    pub changes: f64,
    /// A budget that lasts a shorter time than this fires an alert; 0 for no such alert.
    pub burn_span_micros: i64,
    /// Does nobody come for some hours once the storm is over?
    pub sleeps: bool,
    /// Does the storm end with the death of the node that has the tenants?
    pub owner_dies: bool,
    /// Do two nodes live on once the storm is over? Otherwise the operator leaves one.
    pub leaves_two: bool,
    rates: BTreeMap<Fault, f64>,
}

impl Plan {
    pub fn draw(dice: &mut Dice) -> Plan {
        // One seed in ten is calm; in the others most faults are absent and a few are frequent.
        let weather = if dice.chance(0.1) { 0.0 } else { [0.15, 0.3, 0.6][dice.below(3)] };
        let rates = Fault::ALL.iter().filter_map(|fault| {
            let strength = [0.05, 0.3, 1.0][dice.below(3)];
            dice.chance(weather).then(|| (*fault, fault.rate_max() * strength))
        });
        let rates = rates.collect();
        let mut share = |most: f64| if dice.chance(0.4) { 0.0 } else { most * [0.1, 0.4, 1.0][dice.below(3)] };
        let (repeats, conflicts, odd_times, poison, leaps, changes) =
            (share(0.6), share(0.8), share(0.5), share(0.3), share(0.02), share(0.05));
        Plan {
            steps: 150 + dice.below(350),
            tenants: 1 + dice.below(3),
            receivers: dice.below(3),
            locks_early: dice.chance(0.5),
            permits_events: [8, 40, 1_000][dice.below(3)],
            unit_events_max: [3, 12, 1_000][dice.below(3)],
            ack_pending_max: [4, 16, 64][dice.below(3)],
            repeats,
            conflicts,
            odd_times,
            poison,
            step_micros: [20_000, 400_000, 5_000_000][dice.below(3)],
            leaps,
            changes,
            burn_span_micros: if dice.chance(0.5) { [1, 12, 72][dice.below(3)] * MICROS_PER_HOUR } else { 0 },
            sleeps: dice.chance(0.2),
            owner_dies: dice.chance(0.3),
            leaves_two: dice.chance(0.4),
            rates,
        }
    }

    pub fn rate(&self, fault: Fault) -> f64 {
        self.rates.get(&fault).copied().unwrap_or(0.0)
    }
}
