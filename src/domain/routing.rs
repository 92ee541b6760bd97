//! Who is told of an alert, when, and who is told next when they do not answer. Pure: the time is an argument.

use jiff::ToSpan;
use jiff::civil::{Date, DateTime, Time, Weekday};
use jiff::tz::TimeZone;

use super::ids::TenantId;
use super::notice::{Alert, AlertKind, AttemptResult, Severity};
use super::period::{self, Window};
use super::time::Timestamp;

/// Days of quiet hours that may follow one another without a break.
const QUIET_DAYS_MAX: usize = 7;

/// The configured channels, the routes that lead to them, and how early a burn is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routing {
    /// Every channel, by its configured name.
    pub channels: Vec<String>,
    /// In the order of the configuration; all that match an alert count.
    pub routes: Vec<Route>,
    /// A budget that lasts a shorter time than this, at its present rate, fires an alert; never when 0.
    pub burn_span_micros: i64,
}

/// Which alerts go to which channels. An empty list of tenants, severities or kinds means all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Route {
    pub tenants: Vec<TenantId>,
    pub severities: Vec<Severity>,
    pub kinds: Vec<AlertKind>,
    pub channels: Vec<String>,
    pub escalation: Option<Escalation>,
    pub quiet_hours: Option<QuietHours>,
}

/// A second channel, for when one of a route's channels was not reached in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Escalation {
    pub to: String,
    /// How long the first channel has, from the moment the message was due.
    pub after_micros: i64,
}

/// A part of the day in which a warning waits. What is critical does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuietHours {
    pub zone: TimeZone,
    pub from: Time,
    /// On the next day unless it is after `from`.
    pub to: Time,
    /// The days on which they begin; every day when empty.
    pub days: Vec<Weekday>,
}

/// A channel that an alert was owed to when it fired, and what became of the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub channel: String,
    /// The end of the quiet hours that the message waits for; 0 when it waits for none.
    pub held_until: Timestamp,
    pub reached: Reached,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reached {
    /// Still owed.
    NotYet,
    Delivered,
    /// It will never be.
    GivenUp,
}

impl Reached {
    /// What a settled attempt means; `None` while there will be another.
    #[must_use]
    pub fn by(result: &AttemptResult) -> Option<Reached> {
        match result {
            AttemptResult::Delivered => Some(Reached::Delivered),
            AttemptResult::GaveUp { .. } | AttemptResult::Withdrawn => Some(Reached::GivenUp),
            AttemptResult::Retry { .. } => None,
        }
    }
}

impl Told {
    /// Was it told, or is it about to be? Who waits for the end of the quiet hours has not heard of it; who was reached
    /// has, wherever the clock stands.
    #[must_use]
    pub fn has_heard(&self, now: Timestamp) -> bool {
        self.held_until <= now || self.reached == Reached::Delivered
    }

    #[must_use]
    pub fn new(channel: &str, held_until: Timestamp) -> Told {
        Told { channel: channel.to_owned(), held_until, reached: Reached::NotYet }
    }
}

impl Routing {
    /// Every alert to every channel at once.
    #[must_use]
    pub fn all(channels: Vec<String>) -> Routing {
        Routing { channels, routes: Vec::new(), burn_span_micros: 0 }
    }

    /// Whom an alert that fires at `now` is owed to. An alert that no route matches goes to every channel: a gap between
    /// the routes must not swallow it.
    #[must_use]
    pub fn told(&self, tenant: TenantId, alert: &Alert, now: Timestamp) -> Vec<Told> {
        let mut told: Vec<Told> = Vec::new();
        for route in self.routes.iter().filter(|route| route.matches(tenant, alert)) {
            let held_until = route.held_until(alert.severity(), now);
            for channel in &route.channels {
                match told.iter_mut().find(|one| one.channel == *channel) {
                    // Two routes lead there: the one that does not wait, or not as long.
                    Some(known) => known.held_until = known.held_until.min(held_until),
                    None => told.push(Told::new(channel, held_until)),
                }
            }
        }
        if told.is_empty() {
            told.extend(self.channels.iter().map(|channel| Told::new(channel, Timestamp(0))));
        }
        told
    }

    /// Can an alert ever be escalated?
    #[must_use]
    pub fn escalates(&self) -> bool {
        self.routes.iter().any(|route| route.escalation.is_some())
    }

    /// The channels that a firing alert is to be escalated to, and when: at the end of the first channel's time, counted
    /// from when its message was due, or at once if it was given up. Whoever was told already is not told again.
    #[must_use]
    pub fn escalations(&self, tenant: TenantId, alert: &Alert, told: &[Told]) -> Vec<(&str, Timestamp)> {
        let mut next: Vec<(&str, Timestamp)> = Vec::new();
        for first in told.iter().filter(|one| one.reached != Reached::Delivered) {
            let due_at = alert.fired_at.max(first.held_until);
            for route in self.routes.iter().filter(|route| route.matches(tenant, alert)) {
                let Some(escalation) = &route.escalation else { continue };
                let is_known = told.iter().any(|one| one.channel == escalation.to);
                if is_known || !route.channels.contains(&first.channel) {
                    continue;
                }
                let at = match first.reached {
                    Reached::GivenUp => alert.fired_at,
                    Reached::NotYet | Reached::Delivered => due_at.plus_micros(escalation.after_micros),
                };
                match next.iter_mut().find(|(channel, _)| *channel == escalation.to) {
                    Some((_, earlier)) => *earlier = (*earlier).min(at),
                    None => next.push((&escalation.to, at)),
                }
            }
        }
        next
    }
}

impl Route {
    fn matches(&self, tenant: TenantId, alert: &Alert) -> bool {
        (self.tenants.is_empty() || self.tenants.contains(&tenant))
            && (self.severities.is_empty() || self.severities.contains(&alert.severity()))
            && (self.kinds.is_empty() || self.kinds.contains(&alert.kind()))
    }

    fn held_until(&self, severity: Severity, now: Timestamp) -> Timestamp {
        match (severity, &self.quiet_hours) {
            (Severity::Warning, Some(quiet)) => quiet.end_after(now).unwrap_or(Timestamp(0)),
            (Severity::Warning | Severity::Critical, _) => Timestamp(0),
        }
    }
}

impl QuietHours {
    /// When the quiet hours that `at` falls in are over, together with those that follow without a break; `None` outside.
    #[must_use]
    pub fn end_after(&self, at: Timestamp) -> Option<Timestamp> {
        let mut end = self.window_at(at)?.end;
        for _ in 1..QUIET_DAYS_MAX {
            match self.window_at(end) {
                Some(next) => end = next.end,
                None => break,
            }
        }
        Some(end)
    }

    /// Those of the local day, or of the day before, that `at` falls in.
    fn window_at(&self, at: Timestamp) -> Option<Window> {
        let today = at.to_jiff()?.to_zoned(self.zone.clone()).date();
        let yesterday = today.checked_sub(1.day()).ok();
        let begun = [yesterday, Some(today)].into_iter().flatten().filter_map(|day| self.window_of(day));
        begun.filter(|window| window.contains(at)).max_by_key(|window| window.end)
    }

    /// Those that begin on a local date. A time that a clock change skips is the first one after it.
    fn window_of(&self, day: Date) -> Option<Window> {
        if !self.days.is_empty() && !self.days.contains(&day.weekday()) {
            return None;
        }
        let last = if self.to > self.from { day } else { day.checked_add(1.day()).ok()? };
        let instant = |date: Date, time: Time| {
            let local = self.zone.to_ambiguous_timestamp(DateTime::from_parts(date, time));
            local.compatible().ok().map(Timestamp::from)
        };
        Some(Window { start: instant(day, self.from)?, end: instant(last, self.to)? })
    }

    /// Reads quiet hours as they are configured: an IANA zone, `HH:MM` twice, and days as `mon`.
    ///
    /// # Errors
    /// What is wrong, as `<key>: <problem>`.
    pub fn read(zone: &str, from: &str, to: &str, days: &[String]) -> Result<QuietHours, String> {
        let time = |key: &str, text: &str| {
            Time::strptime("%H:%M", text).map_err(|_| format!("{key}: must be a time of day, such as 22:00"))
        };
        let day = |text: &String| {
            weekday(text).ok_or_else(|| "days: must be of mon, tue, wed, thu, fri, sat, sun".to_owned())
        };
        let quiet = QuietHours {
            zone: period::time_zone(zone).ok_or("time_zone: not an IANA time zone")?,
            from: time("from", from)?,
            to: time("to", to)?,
            days: days.iter().map(day).collect::<Result<_, _>>()?,
        };
        let every_day = quiet.days.is_empty() || WEEK.iter().all(|(_, day)| quiet.days.contains(day));
        if quiet.from == quiet.to && every_day {
            return Err("to: they would never end".into());
        }
        Ok(quiet)
    }
}

const WEEK: [(&str, Weekday); 7] = [
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];

fn weekday(text: &str) -> Option<Weekday> {
    WEEK.iter().find(|(name, _)| *name == text).map(|(_, day)| *day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::QuotaId;
    use crate::domain::notice::QuotaThreshold;
    use crate::domain::period::PeriodKind;
    use crate::domain::properties_tests::config;
    use crate::domain::quota::{Enforcement, Metric, Quota, Scope};
    use crate::domain::time::{MICROS_PER_DAY, MICROS_PER_HOUR, MICROS_PER_MINUTE};
    use proptest::prelude::*;
    use uuid::Uuid;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn tenant(number: u128) -> TenantId {
        TenantId(Uuid::from_u128(number))
    }

    fn alert(threshold: u16, fired_at: Timestamp) -> Alert {
        let quota = Quota {
            id: QuotaId(Uuid::from_u128(9)),
            scope: Scope::Tenant,
            metric: Metric::Tokens,
            period: PeriodKind::Total,
            limit: 100,
            thresholds: vec![threshold],
            enforcement: Enforcement::Alert,
        };
        let reached = QuotaThreshold { quota, period_start: Timestamp(0), period_end: None, threshold, used: 100 };
        Alert::threshold(tenant(1), reached, fired_at)
    }

    fn route(channels: &[&str]) -> Route {
        Route { channels: channels.iter().map(|name| (*name).to_owned()).collect(), ..Route::default() }
    }

    fn routing(routes: Vec<Route>) -> Routing {
        Routing { routes, ..Routing::all(["pager", "chat", "mail"].map(String::from).to_vec()) }
    }

    fn nights(days: &[&str]) -> QuietHours {
        let days: Vec<String> = days.iter().map(|day| (*day).to_owned()).collect();
        QuietHours::read("Europe/Berlin", "22:00", "07:00", &days).unwrap()
    }

    fn names(told: &[Told]) -> Vec<&str> {
        told.iter().map(|one| one.channel.as_str()).collect()
    }

    #[test]
    fn every_route_that_matches_counts_and_a_gap_swallows_nothing() {
        let now = at("2026-11-20T12:00:00Z");
        let told = |routes: Vec<Route>, tenant, threshold| {
            let told = routing(routes).told(tenant, &alert(threshold, now), now);
            names(&told).join(" ")
        };
        assert_eq!(told(vec![], tenant(1), 80), "pager chat mail");
        let critical = Route { severities: vec![Severity::Critical], ..route(&["pager", "chat"]) };
        let one_tenant = Route { tenants: vec![tenant(2)], ..route(&["chat", "mail"]) };
        let drifts = Route { kinds: vec![AlertKind::ReconciliationDrift], ..route(&["mail"]) };
        let routes = vec![critical, one_tenant, drifts];
        assert_eq!(told(routes.clone(), tenant(1), 100), "pager chat");
        assert_eq!(told(routes.clone(), tenant(2), 100), "pager chat mail");
        assert_eq!(told(routes.clone(), tenant(2), 80), "chat mail");
        assert_eq!(told(routes, tenant(1), 80), "pager chat mail", "no route matches");
    }

    #[test]
    fn a_warning_waits_for_the_end_of_the_quiet_hours_and_nothing_critical_does() {
        let night = at("2026-11-20T22:30:00Z");
        let quiet = Route { quiet_hours: Some(nights(&[])), ..route(&["chat", "mail"]) };
        let loud = route(&["chat"]);
        let held = |routes: &[Route], threshold, now| {
            let told = routing(routes.to_vec()).told(tenant(1), &alert(threshold, now), now);
            told.iter().map(|one| one.held_until).collect::<Vec<_>>()
        };
        let morning = at("2026-11-21T06:00:00Z");
        assert_eq!(held(std::slice::from_ref(&quiet), 80, night), [morning, morning]);
        assert_eq!(held(std::slice::from_ref(&quiet), 100, night), [Timestamp(0); 2]);
        assert_eq!(held(std::slice::from_ref(&quiet), 80, morning), [Timestamp(0); 2]);
        assert_eq!(held(&[quiet, loud], 80, night), [Timestamp(0), morning], "another route leads to chat at once");
    }

    #[test]
    fn quiet_hours_follow_the_local_clock_and_their_days() {
        let ends = |quiet: &QuietHours, now: &str| quiet.end_after(at(now)).map(|end| end.to_string());
        let every_night = nights(&[]);
        assert_eq!(ends(&every_night, "2026-11-20T20:59:59Z"), None);
        assert_eq!(ends(&every_night, "2026-11-20T21:00:00Z").as_deref(), Some("2026-11-21T06:00:00.000Z"));
        assert_eq!(ends(&every_night, "2026-11-21T05:59:59Z").as_deref(), Some("2026-11-21T06:00:00.000Z"));
        // The clocks go forward in this night: the morning comes an hour earlier.
        assert_eq!(ends(&every_night, "2026-03-28T22:00:00Z").as_deref(), Some("2026-03-29T05:00:00.000Z"));
        // Friday's night only: it is over on Saturday.
        let friday = nights(&["fri"]);
        assert_eq!(ends(&friday, "2026-11-21T03:00:00Z").as_deref(), Some("2026-11-21T06:00:00.000Z"));
        assert_eq!(ends(&friday, "2026-11-22T03:00:00Z"), None);
        let weekend = QuietHours::read("UTC", "00:00", "00:00", &["sat".into(), "sun".into()]).unwrap();
        assert_eq!(ends(&weekend, "2026-11-21T03:00:00Z").as_deref(), Some("2026-11-23T00:00:00.000Z"));
        assert_eq!(ends(&weekend, "2026-11-23T00:00:00Z"), None);
    }

    #[test]
    fn quiet_hours_that_cannot_be_are_refused_by_key() {
        let read = |zone, from, to, days: &[&str]| {
            let days: Vec<String> = days.iter().map(|day| (*day).to_owned()).collect();
            QuietHours::read(zone, from, to, &days).unwrap_err()
        };
        assert!(read("Mars/Olympus", "22:00", "07:00", &[]).starts_with("time_zone:"));
        assert!(read("UTC", "25:00", "07:00", &[]).starts_with("from:"));
        assert!(read("UTC", "22:00", "seven", &[]).starts_with("to:"));
        assert!(read("UTC", "22:00", "07:00", &["monday"]).starts_with("days:"));
        assert!(read("UTC", "00:00", "00:00", &[]).starts_with("to:"));
    }

    #[test]
    fn a_channel_that_is_not_reached_in_time_is_followed_by_the_next_once() {
        let fired_at = at("2026-11-20T12:00:00Z");
        let escalation = Escalation { to: "chat".into(), after_micros: 5 * MICROS_PER_MINUTE };
        let routing = routing(vec![Route { escalation: Some(escalation), ..route(&["pager"]) }]);
        let alert = alert(100, fired_at);
        let late = fired_at.plus_micros(5 * MICROS_PER_MINUTE);
        let next = |reached, others: &[&str]| {
            let mut told = vec![Told { reached, ..Told::new("pager", Timestamp(0)) }];
            told.extend(others.iter().map(|channel| Told::new(channel, Timestamp(0))));
            let next = routing.escalations(tenant(1), &alert, &told);
            next.iter().map(|(channel, at)| ((*channel).to_owned(), *at)).collect::<Vec<_>>()
        };
        assert!(routing.escalates() && !Routing::default().escalates());
        assert_eq!(next(Reached::NotYet, &[]), [("chat".to_owned(), late)]);
        assert_eq!(next(Reached::NotYet, &["mail"]), [("chat".to_owned(), late)], "mail is in no route");
        assert_eq!(next(Reached::GivenUp, &[]), [("chat".to_owned(), fired_at)]);
        assert_eq!(next(Reached::Delivered, &[]), []);
        assert_eq!(next(Reached::NotYet, &["chat"]), [], "once");
    }

    #[test]
    fn a_message_that_was_held_has_its_time_from_the_morning_on() {
        let fired_at = at("2026-11-20T23:00:00Z");
        let escalation = Escalation { to: "mail".into(), after_micros: MICROS_PER_MINUTE };
        let quiet = Route { quiet_hours: Some(nights(&[])), escalation: Some(escalation), ..route(&["chat"]) };
        let routing = routing(vec![quiet]);
        let alert = alert(80, fired_at);
        let told = routing.told(tenant(1), &alert, fired_at);
        assert_eq!(routing.escalations(tenant(1), &alert, &told), [("mail", at("2026-11-21T06:01:00Z"))]);
    }

    proptest! {
        #![proptest_config(config(256))]

        /// Whoever is told is configured, each once; what is critical waits for nothing, and no warning longer than the
        /// days that can follow one another.
        #[test]
        fn whoever_is_told_is_told_once_and_not_too_late(
            now in 1_700_000_000_000_000_i64..1_900_000_000_000_000,
            critical in any::<bool>(),
            from in 0_i8..24,
            to in 0_i8..24,
            days in prop::collection::btree_set(0_usize..7, 0..6),
            lists in prop::collection::vec(prop::collection::btree_set(0_usize..3, 1..4), 0..4),
        ) {
            let now = Timestamp(now);
            let channels = ["pager", "chat", "mail"];
            let days: Vec<String> = days.iter().map(|day| WEEK[*day].0.to_owned()).collect();
            let quiet = QuietHours::read("America/New_York", &format!("{from:02}:00"), &format!("{to:02}:30"), &days);
            let routes = lists.iter().map(|list| {
                let channels: Vec<&str> = list.iter().map(|at| channels[*at]).collect();
                Route { quiet_hours: Some(quiet.clone().unwrap()), ..route(&channels) }
            });
            let told = routing(routes.collect()).told(tenant(1), &alert(if critical { 100 } else { 80 }, now), now);
            let mut distinct = names(&told);
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(distinct.len(), told.len());
            prop_assert!(!told.is_empty() && told.iter().all(|one| channels.contains(&one.channel.as_str())));
            for one in &told {
                prop_assert!(one.held_until.0 == 0 || (!critical && one.held_until > now));
                prop_assert!(one.held_until <= now.plus_micros(8 * MICROS_PER_DAY + MICROS_PER_HOUR));
                if one.held_until.0 > 0 && days.len() < 6 {
                    prop_assert_eq!(quiet.as_ref().unwrap().end_after(one.held_until), None, "the quiet hours are over");
                }
            }
        }
    }
}
