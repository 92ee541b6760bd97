//! Sums by somebody who knows nothing of counters, rollups and windows: every question is answered by going through all
//! events of the ledger. Two instants are in the same period when a wall clock in the tenant's zone shows the same
//! minute, hour, day, week or month; no window is ever computed.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use platform_api::domain::notice::Alert;
use platform_api::domain::period::PeriodKind;
use platform_api::domain::quota::{Enforcement, Metric, Quota, Scope, Verdict};
use platform_api::domain::time::{MICROS_PER_HOUR, Timestamp};

use super::sender::Draft;

/// What a wall clock shows of the period, and its distance from UTC where an hour may happen twice.
pub type Label = (i64, i64);

/// The ledger as the senders would write it.
#[derive(Debug, Clone)]
pub struct Naive {
    zone: TimeZone,
    events: Vec<(Draft, [Label; 6])>,
}

impl Naive {
    pub fn new() -> Naive {
        Naive { zone: TimeZone::UTC, events: Vec::new() }
    }

    pub fn add(&mut self, draft: Draft) {
        let labels = self.labels(draft.occurred_at);
        self.events.push((draft, labels));
    }

    pub fn change_zone(&mut self, zone: TimeZone) {
        self.zone = zone;
        let relabelled = self.events.iter().map(|(draft, _)| self.labels(draft.occurred_at)).collect::<Vec<_>>();
        for (event, labels) in self.events.iter_mut().zip(relabelled) {
            event.1 = labels;
        }
    }

    pub fn events(&self) -> impl Iterator<Item = &Draft> {
        self.events.iter().map(|(draft, _)| draft)
    }

    /// What the wall clock shows at `micros`.
    pub fn label(&self, kind: PeriodKind, micros: i64) -> Label {
        self.labels(micros)[kind as usize]
    }

    /// In the order of [`PeriodKind`].
    fn labels(&self, micros: i64) -> [Label; 6] {
        let instant = Timestamp(micros).to_jiff().expect("the simulated years are near ours");
        let local = instant.to_zoned(self.zone.clone());
        let offset = i64::from(local.offset().seconds());
        let (year, month, day) = (i64::from(local.year()), i64::from(local.month()), i64::from(local.day()));
        let date = (year * 100 + month) * 100 + day;
        let hour = date * 100 + i64::from(local.hour());
        let week = local.date().iso_week_date();
        [
            (hour * 100 + i64::from(local.minute()), offset),
            (hour, offset),
            (date, 0),
            (i64::from(week.year()) * 100 + i64::from(week.week()), 0),
            (year * 100 + month, 0),
            (0, 0),
        ]
    }

    /// What the quota has used, by period.
    pub fn used(&self, quota: &Quota) -> BTreeMap<Label, i64> {
        let mut used = BTreeMap::new();
        for (draft, labels) in self.events.iter().filter(|(draft, _)| covers(&quota.scope, draft)) {
            *used.entry(labels[quota.period as usize]).or_default() += amount(quota.metric, draft);
        }
        used
    }

    /// How long the quota lasts from `now` on, in microseconds, at the rate of its last hour, or of its period since `start`
    /// when that is younger. An event counts with the part of its quarter of an hour that is within the last hour. `None` when
    /// the period is younger than a quarter, without usage in that hour, and when the quota outlasts the period.
    pub fn lasts(&self, quota: &Quota, start: i64, now: i64) -> Option<i64> {
        let quarter = MICROS_PER_HOUR / 4;
        let label = self.label(quota.period, start);
        let (mut used, mut recent) = (0_i128, 0_i128);
        for (draft, labels) in &self.events {
            if labels[quota.period as usize] == label && covers(&quota.scope, draft) {
                let amount = i128::from(amount(quota.metric, draft));
                let over_at = (draft.occurred_at.div_euclid(quarter) + 1) * quarter;
                let within = (over_at - (now - MICROS_PER_HOUR)).clamp(0, quarter);
                used += amount;
                recent += amount * i128::from(within);
            }
        }
        let watched = (now - start).min(MICROS_PER_HOUR);
        let left = i128::from(quota.limit) - used;
        if watched < quarter || recent == 0 || left <= 0 {
            return None;
        }
        // What was used in the hour, per microsecond, is recent / quarter / watched.
        let lasts = (left * i128::from(quarter) * i128::from(watched) + recent - 1) / recent;
        // The simulated years are near ours: what lasts for centuries outlasts every period but that of all time.
        let lasts = i64::try_from(lasts).ok().filter(|lasts| *lasts < 400 * 365 * 24 * MICROS_PER_HOUR)?;
        (self.label(quota.period, now + lasts) == label).then_some(lasts)
    }

    /// Events, requests, prompt tokens, completion tokens and cost of everything.
    pub fn totals<'a>(events: impl Iterator<Item = &'a Draft>) -> [i64; 4] {
        events.fold([0; 4], |sum, draft| {
            [sum[0] + 1, sum[1] + draft.prompt, sum[2] + draft.completion, sum[3] + draft.cost]
        })
    }
}

pub fn covers(scope: &Scope, draft: &Draft) -> bool {
    match scope {
        Scope::Tenant => true,
        Scope::User(user) => user == draft.user,
        Scope::Group(group) => group == draft.group,
        Scope::Model(model) => model == draft.model,
        Scope::ApiKey(_) | Scope::Provider(_) => false,
    }
}

fn amount(metric: Metric, draft: &Draft) -> i64 {
    match metric {
        Metric::Tokens => draft.prompt + draft.completion,
        Metric::PromptTokens => draft.prompt,
        Metric::CompletionTokens => draft.completion,
        Metric::Cost => draft.cost,
        Metric::Requests => 1,
    }
}

/// Is `percent` of the limit reached? Multiplied out, so that nothing is rounded.
pub fn reaches(used: i64, quota: &Quota, percent: u16) -> bool {
    i128::from(used) * 100 >= i128::from(quota.limit) * i128::from(percent)
}

/// What a gateway should be told, given what each quota that matters has used.
pub fn verdict<'a>(standings: impl Iterator<Item = (&'a Quota, i64)>) -> Verdict {
    let mut worst = Verdict::Allow;
    for (quota, used) in standings {
        let over = used >= quota.limit;
        let near = quota.thresholds.iter().min().is_some_and(|percent| reaches(used, quota, *percent));
        let one = match (over, quota.enforcement) {
            (true, Enforcement::Block) => Verdict::Deny,
            (true, Enforcement::Alert) => Verdict::Warn,
            (false, _) if near => Verdict::Warn,
            (false, _) => Verdict::Allow,
        };
        worst = worst.max(one);
    }
    worst
}

/// Which of the alerts is about this threshold in the period that the wall clock shows.
pub fn alert_for<'a>(
    naive: &Naive,
    mut alerts: impl Iterator<Item = &'a Alert>,
    quota: &Quota,
    label: Label,
    percent: u16,
) -> Option<&'a Alert> {
    alerts.find(|alert| {
        alert.reached().is_some_and(|reached| {
            reached.quota.id == quota.id
                && reached.threshold == percent
                && naive.label(quota.period, reached.period_start.0) == label
        })
    })
}
