//! What deserves an alert, once.

use aws_lc_rs::digest;
use uuid::Uuid;

use super::ids::{AlertId, QuotaId, TenantId};
use super::quota::Quota;
use super::routing::Told;
use super::time::{MICROS_PER_MINUTE, Timestamp};

/// The longest delay between two attempts to deliver one message.
pub const RETRY_DELAY_MICROS_MAX: i64 = 15 * MICROS_PER_MINUTE;

/// Stands where the percent of a threshold stands for the alert that a budget burns too fast. No threshold is zero.
pub const BURN_MARK: u16 = 0;

/// Something that on-call should know. There is at most one alert for each subject, ever (invariant Q2): its id is derived
/// from what names the subject, and the table has the same as its unique key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    pub id: AlertId,
    pub subject: AlertSubject,
    pub fired_at: Timestamp,
    /// When what it tells was over; `None` while it fires.
    pub resolved_at: Option<Timestamp>,
    /// Who was the first to say that somebody looks at it.
    pub acknowledged: Option<Acknowledgement>,
}

/// Somebody looks at an alert. It fires on until what it tells is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledgement {
    /// As the chain names who asks for a change.
    pub by: String,
    pub at: Timestamp,
}

/// What an alert is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AlertSubject {
    QuotaThreshold(QuotaThreshold),
    BudgetBurn(BudgetBurn),
    ReconciliationDrift(ReconciliationDrift),
    /// Nothing: somebody asks whether the channel of this name works. No books ever hold it.
    Test(String),
}

/// One threshold of one quota reached in one period. Over when the period is reset or the limit raised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaThreshold {
    /// The quota as it was when the threshold was reached.
    pub quota: Quota,
    pub period_start: Timestamp,
    /// When the period ends and the alert with it; `None` for a quota over all time.
    pub period_end: Option<Timestamp>,
    /// Percent of the limit.
    pub threshold: u16,
    /// Usage when the threshold was reached, in the metric's unit.
    pub used: i64,
}

/// One quota that will be used up too soon in one period, at the rate of the last hour. Over when the rate has fallen or
/// the limit was raised far enough, when the quota is used up, and when the period is reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetBurn {
    /// The quota as it was when this was foreseen.
    pub quota: Quota,
    pub period_start: Timestamp,
    /// When the period ends and the alert with it; `None` for a quota over all time.
    pub period_end: Option<Timestamp>,
    /// Usage when this was foreseen, in the metric's unit.
    pub used: i64,
    /// When nothing would be left.
    pub exhausted_at: Timestamp,
}

/// The ledger and the gateway disagree for one cause, window after window. Over when the reconciliation says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReconciliationDrift {
    /// The cause's name.
    pub cause: String,
    /// The start of the first window that disagrees.
    pub window_start: Timestamp,
    /// Windows in a row that disagreed when it fired.
    pub windows: i64,
    /// By how much, in requests.
    pub difference: i64,
    /// One line for people, without the tenant's name.
    pub summary: String,
}

impl Alert {
    /// A threshold that was reached.
    #[must_use]
    pub fn threshold(tenant: TenantId, reached: QuotaThreshold, fired_at: Timestamp) -> Alert {
        let id = Alert::id_for(tenant, &reached.quota, reached.period_start, reached.threshold);
        Alert { id, subject: AlertSubject::QuotaThreshold(reached), fired_at, resolved_at: None, acknowledged: None }
    }

    /// A budget that will not last.
    #[must_use]
    pub fn burn(tenant: TenantId, burn: BudgetBurn, fired_at: Timestamp) -> Alert {
        let id = Alert::id_for(tenant, &burn.quota, burn.period_start, BURN_MARK);
        Alert { id, subject: AlertSubject::BudgetBurn(burn), fired_at, resolved_at: None, acknowledged: None }
    }

    /// Books that disagree. The same cause and first window are the same alert.
    #[must_use]
    pub fn drift(tenant: TenantId, drift: ReconciliationDrift, fired_at: Timestamp) -> Alert {
        let id = Alert::drift_id(tenant, &drift.cause, drift.window_start);
        Alert { id, subject: AlertSubject::ReconciliationDrift(drift), fired_at, resolved_at: None, acknowledged: None }
    }

    /// Asks whether the channel of this name works; over at `over_at` whatever happens.
    #[must_use]
    pub fn test(id: AlertId, channel: &str, fired_at: Timestamp, over_at: Timestamp) -> Alert {
        let subject = AlertSubject::Test(channel.to_owned());
        Alert { id, subject, fired_at, resolved_at: Some(over_at), acknowledged: None }
    }

    /// The id of the alert for this quota, period and threshold: the same in every retry and on every node.
    #[must_use]
    pub fn id_for(tenant: TenantId, quota: &Quota, period_start: Timestamp, threshold: u16) -> AlertId {
        derived_id(&[
            b"platform-api/alert/v1",
            tenant.0.as_bytes(),
            quota.id.0.as_bytes(),
            &period_start.0.to_be_bytes(),
            &threshold.to_be_bytes(),
        ])
    }

    /// The id of the alert for this cause and first window.
    #[must_use]
    pub fn drift_id(tenant: TenantId, cause: &str, window_start: Timestamp) -> AlertId {
        derived_id(&[
            b"platform-api/alert/drift/v1",
            tenant.0.as_bytes(),
            &window_start.0.to_be_bytes(),
            cause.as_bytes(),
        ])
    }

    /// The kind's name, in the database and outside.
    #[must_use]
    pub fn kind(&self) -> AlertKind {
        match self.subject {
            AlertSubject::QuotaThreshold(_) => AlertKind::QuotaThreshold,
            AlertSubject::BudgetBurn(_) => AlertKind::BudgetBurn,
            AlertSubject::ReconciliationDrift(_) => AlertKind::ReconciliationDrift,
            AlertSubject::Test(_) => AlertKind::Test,
        }
    }

    #[must_use]
    pub fn severity(&self) -> Severity {
        match &self.subject {
            AlertSubject::QuotaThreshold(reached) if reached.threshold >= 100 => Severity::Critical,
            AlertSubject::QuotaThreshold(_) | AlertSubject::BudgetBurn(_) | AlertSubject::Test(_) => Severity::Warning,
            AlertSubject::ReconciliationDrift(_) => Severity::Critical,
        }
    }

    /// When time alone ends it.
    #[must_use]
    pub fn period_end(&self) -> Option<Timestamp> {
        match &self.subject {
            AlertSubject::QuotaThreshold(reached) => reached.period_end,
            AlertSubject::BudgetBurn(burn) => burn.period_end,
            AlertSubject::ReconciliationDrift(_) | AlertSubject::Test(_) => None,
        }
    }

    /// The threshold it tells of, if it tells of one.
    #[must_use]
    pub fn reached(&self) -> Option<&QuotaThreshold> {
        match &self.subject {
            AlertSubject::QuotaThreshold(reached) => Some(reached),
            AlertSubject::BudgetBurn(_) | AlertSubject::ReconciliationDrift(_) | AlertSubject::Test(_) => None,
        }
    }

    /// The counter it marks as told, by quota and start of its period, and the mark.
    #[must_use]
    pub fn mark(&self) -> Option<(QuotaId, Timestamp, u16)> {
        match &self.subject {
            AlertSubject::QuotaThreshold(reached) => Some((reached.quota.id, reached.period_start, reached.threshold)),
            AlertSubject::BudgetBurn(burn) => Some((burn.quota.id, burn.period_start, BURN_MARK)),
            AlertSubject::ReconciliationDrift(_) | AlertSubject::Test(_) => None,
        }
    }
}

fn derived_id(parts: &[&[u8]]) -> AlertId {
    let mut context = digest::Context::new(&digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&context.finish().as_ref()[..16]);
    // RFC 9562, version 8: the layout is ours.
    AlertId(uuid::Builder::from_custom_bytes(bytes).into_uuid())
}

/// Names what an alert can be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AlertKind {
    QuotaThreshold,
    BudgetBurn,
    ReconciliationDrift,
    Test,
}

impl AlertKind {
    /// What routes can name and books can hold.
    pub const ALL: [AlertKind; 3] = [AlertKind::QuotaThreshold, AlertKind::BudgetBurn, AlertKind::ReconciliationDrift];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            AlertKind::QuotaThreshold => "quotaThreshold",
            AlertKind::BudgetBurn => "budgetBurn",
            AlertKind::ReconciliationDrift => "reconciliationDrift",
            AlertKind::Test => "test",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<AlertKind> {
        AlertKind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    Warning,
    Critical,
}

impl Severity {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Severity> {
        [Severity::Warning, Severity::Critical].into_iter().find(|severity| severity.name() == name)
    }
}

/// What a delivery tells its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    Fired,
    /// Somebody looks at it.
    Acknowledged,
    Resolved,
}

impl Event {
    pub const ALL: [Event; 3] = [Event::Fired, Event::Acknowledged, Event::Resolved];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Event::Fired => "fired",
            Event::Acknowledged => "acknowledged",
            Event::Resolved => "resolved",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Event> {
        Event::ALL.into_iter().find(|event| event.name() == name)
    }
}

/// One message owed to one channel: a row of the outbox, written in the transaction that made it due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub alert: Alert,
    pub event: Event,
    /// The configured channel's name.
    pub channel: String,
    pub attempts: i64,
    pub next_attempt_at: Timestamp,
}

impl Delivery {
    /// The end of the quiet hours that it waits for when it is owed at `now`; 0 when it waits for none.
    #[must_use]
    pub fn held_until(&self, now: Timestamp) -> Timestamp {
        if self.next_attempt_at > now { self.next_attempt_at } else { Timestamp(0) }
    }

    /// The stable id a receiver can deduplicate by.
    #[must_use]
    pub fn id(&self) -> String {
        let suffix = self.event.name();
        format!("{}-{suffix}", Uuid::as_hyphenated(&self.alert.id.0))
    }
}

/// What has become of a message so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It is still to be delivered.
    Owed,
    Delivered,
    /// The receiver would never take it, or did not for too long.
    GaveUp,
    /// It was over before the quiet hours were.
    Withdrawn,
}

impl Outcome {
    pub const ALL: [Outcome; 4] = [Outcome::Owed, Outcome::Delivered, Outcome::GaveUp, Outcome::Withdrawn];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Owed => "owed",
            Outcome::Delivered => "delivered",
            Outcome::GaveUp => "gaveUp",
            Outcome::Withdrawn => "withdrawn",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Outcome> {
        Outcome::ALL.into_iter().find(|outcome| outcome.name() == name)
    }
}

/// A row of the outbox as its history tells it, settled or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub alert: AlertId,
    pub kind: AlertKind,
    pub event: Event,
    pub channel: String,
    pub created_at: Timestamp,
    /// Attempts that were made.
    pub attempts: i64,
    pub outcome: Outcome,
    /// When it was settled; `None` while it is owed.
    pub settled_at: Option<Timestamp>,
    /// When the next attempt is due, if it is owed.
    pub next_attempt_at: Option<Timestamp>,
    /// Why the last attempt failed, in our words.
    pub reason: String,
}

/// An alert that fires, and the channels that it was owed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firing {
    pub alert: Alert,
    pub told: Vec<Told>,
}

/// How an attempt to deliver ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub alert: AlertId,
    pub event: Event,
    pub channel: String,
    pub at: Timestamp,
    pub result: AttemptResult,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptResult {
    Delivered,
    /// Try again at the given time. The reason is ours, never the receiver's body.
    Retry {
        at: Timestamp,
        reason: String,
    },
    /// The receiver will never take it.
    GaveUp {
        reason: String,
    },
    /// It was over before the quiet hours were: nobody needs to hear of it any more.
    Withdrawn,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::period::PeriodKind;
    use crate::domain::quota::{Enforcement, Metric, Scope};
    use proptest::prelude::*;

    fn quota(id: u128) -> Quota {
        Quota {
            id: QuotaId(Uuid::from_u128(id)),
            scope: Scope::Tenant,
            metric: Metric::Tokens,
            period: PeriodKind::Day,
            limit: 100,
            thresholds: vec![50, 100],
            enforcement: Enforcement::Alert,
        }
    }

    fn alert(threshold: u16) -> Alert {
        let reached =
            QuotaThreshold { quota: quota(2), period_start: Timestamp(0), period_end: None, threshold, used: 100 };
        Alert::threshold(TenantId(Uuid::from_u128(1)), reached, Timestamp(0))
    }

    fn drift(cause: &str, window_start: i64) -> Alert {
        let drift = ReconciliationDrift {
            cause: cause.into(),
            window_start: Timestamp(window_start),
            windows: 3,
            difference: 7,
            summary: "7 requests are missing".into(),
        };
        Alert::drift(TenantId(Uuid::from_u128(1)), drift, Timestamp(9))
    }

    #[test]
    fn an_alert_is_critical_from_the_limit_on() {
        for (threshold, severity) in [(1, "warning"), (99, "warning"), (100, "critical"), (101, "critical")] {
            assert_eq!(alert(threshold).severity().name(), severity, "{threshold}");
        }
        assert_eq!(drift("lostInLedger", 0).severity(), Severity::Critical);
    }

    #[test]
    fn a_delivery_is_named_by_its_alert_and_its_event() {
        for event in Event::ALL {
            assert_eq!(Event::from_name(event.name()), Some(event));
            let delivery = Delivery {
                alert: alert(50),
                event,
                channel: "pager".into(),
                attempts: 0,
                next_attempt_at: Timestamp(0),
            };
            assert_eq!(delivery.id(), format!("{}-{}", delivery.alert.id, event.name()));
        }
        assert_eq!((Event::Fired.name(), Event::Resolved.name()), ("fired", "resolved"));
        assert_eq!(Event::from_name("lost"), None);
        for outcome in Outcome::ALL {
            assert_eq!(Outcome::from_name(outcome.name()), Some(outcome));
        }
        assert_eq!(Outcome::from_name("lost"), None);
    }

    /// The id is written down by receivers, so it may never change: not even when this code does.
    #[test]
    fn an_alert_s_id_is_the_same_for_ever() {
        assert_eq!(alert(50).id.to_string(), "772beee1-6b40-8d21-811b-cf9ed0fa695d");
        assert_eq!(alert(50).id.0.get_version_num(), 8);
        assert_eq!(drift("lostInLedger", 0).id.to_string(), "34984557-61a8-8932-990a-03adf0a7777e");
    }

    #[test]
    fn a_drift_is_named_by_its_cause_and_first_window() {
        let one = drift("lostInLedger", 0);
        assert_eq!(one.id, drift("lostInLedger", 0).id);
        for other in [drift("lostInLedger", 1), drift("duplicate", 0)] {
            assert_ne!(one.id, other.id);
        }
        assert_eq!((one.kind(), one.period_end(), one.mark()), (AlertKind::ReconciliationDrift, None, None));
        for kind in AlertKind::ALL {
            assert_eq!(AlertKind::from_name(kind.name()), Some(kind));
        }
        assert_eq!(AlertKind::from_name("weather"), None);
    }

    proptest! {
        /// One id for one (tenant, quota, period, threshold), and another for any other.
        #[test]
        fn an_alert_s_id_names_its_four_parts(
            one in (0_u128..3, 0_u128..3, 0_i64..3, 0_u16..3),
            other in (0_u128..3, 0_u128..3, 0_i64..3, 0_u16..3),
        ) {
            let id = |(tenant, id, start, threshold): (u128, u128, i64, u16)| {
                Alert::id_for(TenantId(Uuid::from_u128(tenant)), &quota(id), Timestamp(start), threshold)
            };
            prop_assert_eq!(id(one) == id(other), one == other);
        }
    }
}
