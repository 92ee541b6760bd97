//! What a posting says about alerts: that they fire, that they are over, and to whom that is owed.

use super::{Books, CounterKey, Posting};
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::ids::AlertId;
use crate::domain::notice::{
    Acknowledgement, Alert, AlertSubject, Attempt, AttemptResult, Delivery, Event, QuotaThreshold,
};
use crate::domain::request::Request;
use crate::domain::routing::Told;
use crate::domain::time::Timestamp;

impl Posting {
    /// Fires the alerts that a counter has reached and does not have yet.
    pub(super) fn fire(&mut self, key: CounterKey) {
        let Some(quota) = self.books.quotas.iter().find(|quota| quota.id == key.quota) else { return };
        let Some(counter) = self.books.counters.get_mut(&key) else { return };
        let reached = |percent: &&u16| counter.used >= quota.threshold_amount(**percent);
        let new: Vec<u16> = quota
            .thresholds
            .iter()
            .filter(reached)
            .filter(|percent| !counter.fired.contains(percent))
            .copied()
            .collect();
        if new.is_empty() {
            return;
        }
        counter.fired.extend(&new);
        self.counters.insert(key, counter.clone());
        let alerts: Vec<Alert> = new
            .into_iter()
            .map(|threshold| QuotaThreshold {
                quota: quota.clone(),
                period_start: key.period_start,
                period_end: counter.window.reset_at(),
                threshold,
                used: counter.used,
            })
            .map(|reached| Alert::threshold(self.books.tenant, reached, self.now))
            .collect();
        for alert in alerts {
            self.fire_alert(alert);
        }
        // A late event may cross a threshold of a period that is over: on-call is told, and told that it is over.
        self.roll();
    }

    /// Fires an alert that never fired before: it is owed to the channels, and recorded. One that fires already fires on.
    pub fn fire_alert(&mut self, alert: Alert) {
        if self.books.firing.iter().any(|known| known.id == alert.id) {
            return;
        }
        let told = self.books.routing.told(self.books.tenant, &alert, self.now);
        for one in &told {
            self.owe(&alert, Event::Fired, &one.channel, one.held_until.max(self.now));
        }
        self.books.told.insert(alert.id, told);
        self.record_alert("alert.fired", &alert);
        self.books.firing.push(alert.clone());
        self.fired.push(alert);
    }

    /// Says that an alert is over, if it fires: that is owed to the channels, and recorded.
    pub fn resolve_alert(&mut self, id: AlertId) {
        self.resolve_where(|_, alert| alert.id == id);
    }

    /// Says that somebody looks at an alert, if it fires: that is owed to those who were told of it, and recorded. Only the
    /// first acknowledgement counts. Answers the alert as it stands then.
    pub fn acknowledge_alert(&mut self, id: AlertId, request: &Request) -> Option<Alert> {
        let now = self.now;
        let alert = self.books.firing.iter_mut().find(|alert| alert.id == id)?;
        if alert.acknowledged.is_some() {
            return Some(alert.clone());
        }
        alert.acknowledged = Some(Acknowledgement { by: request.actor.clone(), at: now });
        let alert = alert.clone();
        let told = self.books.told.get(&id).map_or(&[][..], Vec::as_slice);
        let heard: Vec<String> = told.iter().filter(|one| one.has_heard(now)).map(|one| one.channel.clone()).collect();
        for channel in heard {
            self.owe(&alert, Event::Acknowledged, &channel, now);
        }
        self.records_entry(Entry {
            actor: request.actor.clone(),
            action: "alert.acknowledged".into(),
            target: format!("alert:{id}"),
            outcome: EntryOutcome::Success,
            request_id: request.request_id.clone(),
            payload: serde_json::json!({ "kind": alert.kind().name(), "firedAt": alert.fired_at }).to_string(),
        });
        self.acknowledged.push(alert.clone());
        Some(alert)
    }

    fn owe(&mut self, alert: &Alert, event: Event, channel: &str, due_at: Timestamp) {
        self.owed.push(Delivery {
            alert: alert.clone(),
            event,
            channel: channel.to_owned(),
            attempts: 0,
            next_attempt_at: due_at,
        });
    }

    /// What time alone brings by this posting's instant: alerts whose period is over, and burns whose rate has
    /// fallen, are resolved; those that did not
    /// reach their first channel in time are owed to the second.
    pub fn roll(&mut self) {
        let now = self.now;
        self.resolve_where(|books, alert| {
            let is_over = match &alert.subject {
                AlertSubject::BudgetBurn(burn) => books.burn_is_over(burn, now) == Some(true),
                _ => false,
            };
            is_over || alert.period_end().is_some_and(|end| end <= now)
        });
        let due = self.books.escalations().filter(|(_, _, at)| *at <= now);
        let due: Vec<(Alert, String)> = due.map(|(alert, channel, _)| (alert.clone(), channel.to_owned())).collect();
        for (alert, channel) in due {
            self.owe(&alert, Event::Fired, &channel, now);
            self.record_about(&alert, "alert.escalated", serde_json::json!({ "channel": channel }));
            self.books.told.entry(alert.id).or_default().push(Told::new(&channel, Timestamp(0)));
        }
    }

    pub(super) fn resolve_where(&mut self, over: impl Fn(&Books, &Alert) -> bool) {
        let (resolved, firing): (Vec<Alert>, Vec<Alert>) =
            std::mem::take(&mut self.books.firing).into_iter().partition(|alert| over(&self.books, alert));
        self.books.firing = firing;
        for mut alert in resolved {
            alert.resolved_at = Some(self.now);
            self.owe_resolution(&alert);
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
            AlertSubject::BudgetBurn(_) | AlertSubject::ReconciliationDrift(_) | AlertSubject::Test(_) => false,
        });
    }

    /// Owes it to those who were told that the alert fired. Who still waits for the end of the quiet hours hears neither.
    fn owe_resolution(&mut self, alert: &Alert) {
        for told in self.books.told.remove(&alert.id).unwrap_or_default() {
            if told.has_heard(self.now) {
                self.owe(alert, Event::Resolved, &told.channel, self.now);
            } else {
                let (channel, result) = (told.channel, AttemptResult::Withdrawn);
                self.attempts.push(Attempt { alert: alert.id, event: Event::Fired, channel, at: self.now, result });
            }
        }
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
            AlertSubject::Test(channel) => serde_json::json!({ "kind": alert.kind().name(), "channel": channel }),
            AlertSubject::ReconciliationDrift(drift) => serde_json::json!({
                "kind": alert.kind().name(),
                "cause": drift.cause,
                "windowStart": drift.window_start,
                "windows": drift.windows,
                "difference": drift.difference,
            }),
        };
        self.record_about(alert, action, payload);
    }

    fn record_about(&mut self, alert: &Alert, action: &str, payload: serde_json::Value) {
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

/// Is the threshold still one of its quota's, and reached in the period that the quota still counts?
pub(super) fn holds(books: &Books, reached: &QuotaThreshold) -> bool {
    let Some(quota) = books.quotas.iter().find(|quota| quota.id == reached.quota.id) else { return false };
    let key = CounterKey { quota: quota.id, period_start: reached.period_start };
    let Some(counter) = books.counters.get(&key) else { return false };
    quota.thresholds.contains(&reached.threshold) && counter.used >= quota.threshold_amount(reached.threshold)
}
