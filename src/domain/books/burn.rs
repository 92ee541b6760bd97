//! Budgets that burn too fast: when they would be used up, and the alert that they will be too soon.

use super::{Books, Counter, CounterKey, Posting};
use crate::domain::burn::{Burning, Recent};
use crate::domain::notice::{Alert, AlertSubject, BURN_MARK, BudgetBurn};
use crate::domain::period::{self, PeriodKind, Window};
use crate::domain::quota::Quota;
use crate::domain::time::Timestamp;

impl Counter {
    /// Of a quota that has used nothing.
    #[must_use]
    pub fn new(window: Window) -> Counter {
        Counter { window, used: 0, fired: Vec::new(), recent: Recent::default() }
    }

    fn burning(&self, limit: i64) -> Burning<'_> {
        Burning { window: self.window, limit, used: self.used, recent: &self.recent }
    }
}

impl Books {
    /// When a quota is exhausted at the rate of the last hour, if that is in the period that runs at `now`. Quotas by the
    /// minute have no rate.
    #[must_use]
    pub fn exhausts_at(&self, quota: &Quota, now: Timestamp) -> Option<Timestamp> {
        if quota.period == PeriodKind::Minute {
            return None;
        }
        let window = period::window(quota.period, now, &self.time_zone);
        let counter = self.counters.get(&CounterKey { quota: quota.id, period_start: window.start })?;
        counter.burning(quota.limit).exhausts_at(now)
    }

    /// What a burn that fires is about, as it stands now; `None` when the quota counts other periods, or its counter is not
    /// in memory.
    fn burning(&self, burn: &BudgetBurn) -> Option<Burning<'_>> {
        let quota = self.quotas.iter().find(|quota| quota.id == burn.quota.id)?;
        let key = CounterKey { quota: quota.id, period_start: burn.period_start };
        self.counters.get(&key).map(|counter| counter.burning(quota.limit))
    }

    /// Is what the alert foresaw no longer to be expected? `None` when that cannot be told.
    pub(super) fn burn_is_over(&self, burn: &BudgetBurn, now: Timestamp) -> Option<bool> {
        self.burning(burn).map(|burning| burning.is_over(self.routing.burn_span_micros, now))
    }

    /// When time alone resolves each burn that fires.
    pub(super) fn burns_over(&self) -> impl Iterator<Item = Timestamp> {
        self.firing.iter().filter_map(|alert| match &alert.subject {
            AlertSubject::BudgetBurn(burn) => {
                Some(self.burning(burn)?.over_from(self.routing.burn_span_micros, alert.fired_at))
            }
            _ => None,
        })
    }
}

impl Posting {
    /// Fires the alert that a counter's quota will be exhausted too soon, once, or resolves it.
    pub(super) fn judge_burn(&mut self, key: CounterKey) {
        let span = self.books.routing.burn_span_micros;
        let Some(quota) = self.books.quotas.iter().find(|quota| quota.id == key.quota) else { return };
        let Some(counter) = self.books.counters.get_mut(&key) else { return };
        if counter.fired.contains(&BURN_MARK) {
            if counter.burning(quota.limit).is_over(span, self.now) {
                self.resolve_alert(Alert::id_for(self.books.tenant, quota, key.period_start, BURN_MARK));
            }
            return;
        }
        let found = counter.burning(quota.limit).alerts(span, self.now);
        let Some(exhausted_at) = found.filter(|_| counter.window.contains(self.now)) else { return };
        counter.fired.push(BURN_MARK);
        let burn = BudgetBurn {
            quota: quota.clone(),
            period_start: key.period_start,
            period_end: counter.window.reset_at(),
            used: counter.used,
            exhausted_at,
        };
        self.counters.insert(key, counter.clone());
        self.fire_alert(Alert::burn(self.books.tenant, burn, self.now));
    }
}
