//! What a posting says about alerts: that they fire, that they are over, and to whom that is owed.

use super::{Books, CounterKey, Posting};
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::ids::AlertId;
use crate::domain::notice::{Alert, AlertSubject, Delivery, Event};

impl Posting {
    /// Fires an alert that never fired before: it is owed to the channels, and recorded. One that fires already fires on.
    pub fn fire_alert(&mut self, alert: Alert) {
        if self.books.firing.iter().any(|known| known.id == alert.id) {
            return;
        }
        self.owe(&alert, Event::Fired);
        self.record_alert("alert.fired", &alert);
        self.books.firing.push(alert.clone());
        self.fired.push(alert);
    }

    /// Says that an alert is over, if it fires: that is owed to the channels, and recorded.
    pub fn resolve_alert(&mut self, id: AlertId) {
        self.resolve_where(|_, alert| alert.id == id);
    }

    fn owe(&mut self, alert: &Alert, event: Event) {
        for channel in &self.books.channels {
            self.owed.push(Delivery {
                alert: alert.clone(),
                event,
                channel: channel.clone(),
                attempts: 0,
                next_attempt_at: self.now,
            });
        }
    }

    /// Resolves alerts whose period is over at this posting's instant.
    pub fn roll(&mut self) {
        let now = self.now;
        self.resolve_where(|_, alert| alert.period_end().is_some_and(|end| end <= now));
    }

    pub(super) fn resolve_where(&mut self, over: impl Fn(&Books, &Alert) -> bool) {
        let (resolved, firing): (Vec<Alert>, Vec<Alert>) =
            std::mem::take(&mut self.books.firing).into_iter().partition(|alert| over(&self.books, alert));
        self.books.firing = firing;
        for mut alert in resolved {
            alert.resolved_at = Some(self.now);
            self.owe(&alert, Event::Resolved);
            self.record_alert("alert.resolved", &alert);
            self.resolved.push(alert);
        }
    }

    /// Resolves alerts whose counter has fallen below their threshold, as an adjusting entry lets it.
    pub fn resolve_fallen(&mut self) {
        self.resolve_where(|books, alert| match &alert.subject {
            AlertSubject::QuotaThreshold(reached) => {
                let key = CounterKey { quota: reached.quota.id, period_start: reached.period_start };
                let quota = books.quotas.iter().find(|quota| quota.id == key.quota);
                let counter = books.counters.get(&key);
                quota
                    .zip(counter)
                    .is_some_and(|(quota, counter)| counter.used < quota.threshold_amount(reached.threshold))
            }
            AlertSubject::BudgetBurn(_) | AlertSubject::ReconciliationDrift(_) => false,
        });
    }

    fn record_alert(&mut self, action: &str, alert: &Alert) {
        let payload = match &alert.subject {
            AlertSubject::QuotaThreshold(reached) => serde_json::json!({
                "quotaId": reached.quota.id,
                "periodStart": reached.period_start,
                "threshold": reached.threshold,
                "limit": reached.quota.limit,
                "used": reached.used,
            }),
            AlertSubject::BudgetBurn(burn) => serde_json::json!({
                "kind": alert.kind().name(),
                "quotaId": burn.quota.id,
                "periodStart": burn.period_start,
                "limit": burn.quota.limit,
                "used": burn.used,
                "exhaustedAt": burn.exhausted_at,
            }),
            AlertSubject::ReconciliationDrift(drift) => serde_json::json!({
                "kind": alert.kind().name(),
                "cause": drift.cause,
                "windowStart": drift.window_start,
                "windows": drift.windows,
                "difference": drift.difference,
            }),
        };
        self.records_entry(Entry {
            actor: "system".into(),
            action: action.into(),
            target: format!("alert:{}", alert.id),
            outcome: EntryOutcome::Success,
            request_id: String::new(),
            payload: payload.to_string(),
        });
    }
}
