//! What deserves an alert, once.

use aws_lc_rs::digest;
use uuid::Uuid;

use super::ids::{AlertId, TenantId};
use super::quota::Quota;
use super::time::{MICROS_PER_MINUTE, Timestamp};

/// The longest delay between two attempts to deliver one message.
pub const RETRY_DELAY_MICROS_MAX: i64 = 15 * MICROS_PER_MINUTE;

/// One threshold of one quota reached in one period. There is at most one, ever (invariant Q2): its id is derived from
/// exactly those three, and the table has them as its unique key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    pub id: AlertId,
    /// The quota as it was when the threshold was reached.
    pub quota: Quota,
    pub period_start: Timestamp,
    /// When the period ends and the alert with it; `None` for a quota over all time.
    pub period_end: Option<Timestamp>,
    /// Percent of the limit.
    pub threshold: u16,
    /// Usage when the threshold was reached, in the metric's unit.
    pub used: i64,
    pub fired_at: Timestamp,
    /// When the period was reset or the limit raised; `None` while it fires.
    pub resolved_at: Option<Timestamp>,
}

impl Alert {
    /// The id of the alert for this quota, period and threshold: the same in every retry and on every node.
    #[must_use]
    pub fn id_for(tenant: TenantId, quota: &Quota, period_start: Timestamp, threshold: u16) -> AlertId {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"platform-api/alert/v1");
        context.update(tenant.0.as_bytes());
        context.update(quota.id.0.as_bytes());
        context.update(&period_start.0.to_be_bytes());
        context.update(&threshold.to_be_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&context.finish().as_ref()[..16]);
        // RFC 9562, version 8: the layout is ours.
        AlertId(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }

    #[must_use]
    pub fn severity(&self) -> Severity {
        if self.threshold >= 100 { Severity::Critical } else { Severity::Warning }
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
}

/// What a delivery tells its channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    Fired,
    Resolved,
}

impl Event {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Event::Fired => "fired",
            Event::Resolved => "resolved",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Event> {
        [Event::Fired, Event::Resolved].into_iter().find(|event| event.name() == name)
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
    /// The stable id a receiver can deduplicate by.
    #[must_use]
    pub fn id(&self) -> String {
        let suffix = self.event.name();
        format!("{}-{suffix}", Uuid::as_hyphenated(&self.alert.id.0))
    }
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::QuotaId;
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
        let (tenant, quota) = (TenantId(Uuid::from_u128(1)), quota(2));
        Alert {
            id: Alert::id_for(tenant, &quota, Timestamp(0), threshold),
            quota,
            period_start: Timestamp(0),
            period_end: None,
            threshold,
            used: 100,
            fired_at: Timestamp(0),
            resolved_at: None,
        }
    }

    #[test]
    fn an_alert_is_critical_from_the_limit_on() {
        for (threshold, severity) in [(1, "warning"), (99, "warning"), (100, "critical"), (101, "critical")] {
            assert_eq!(alert(threshold).severity().name(), severity, "{threshold}");
        }
    }

    #[test]
    fn a_delivery_is_named_by_its_alert_and_its_event() {
        for event in [Event::Fired, Event::Resolved] {
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
    }

    /// The id is written down by receivers, so it may never change: not even when this code does.
    #[test]
    fn an_alert_s_id_is_the_same_for_ever() {
        assert_eq!(alert(50).id.to_string(), "772beee1-6b40-8d21-811b-cf9ed0fa695d");
        assert_eq!(alert(50).id.0.get_version_num(), 8);
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
