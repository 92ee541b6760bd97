//! Calendar windows in a tenant's time zone: half-open, and tiling time. Each instant is in exactly one.

use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{ToSpan, Zoned};
use serde::{Deserialize, Serialize};

use super::time::{MICROS_PER_HOUR, MICROS_PER_MINUTE, Timestamp};

/// Width of a usage rollup: a quarter of an hour divides the hours and days of every zone in use (offsets are
/// multiples of 15 minutes), so reports by hour, day and month in any time zone are exact sums of rollups.
pub const ROLLUP_MICROS: i64 = 15 * MICROS_PER_MINUTE;

/// Start of the rollup that `at` falls in.
#[must_use]
pub fn rollup_start(at: Timestamp) -> Timestamp {
    Timestamp(at.0.div_euclid(ROLLUP_MICROS) * ROLLUP_MICROS)
}

/// How long a quota counts before it starts again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PeriodKind {
    Minute,
    Hour,
    Day,
    /// Monday to Sunday.
    Week,
    Month,
    /// All time; never resets.
    Total,
}

impl PeriodKind {
    pub const ALL: [PeriodKind; 6] =
        [PeriodKind::Minute, PeriodKind::Hour, PeriodKind::Day, PeriodKind::Week, PeriodKind::Month, PeriodKind::Total];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            PeriodKind::Minute => "minute",
            PeriodKind::Hour => "hour",
            PeriodKind::Day => "day",
            PeriodKind::Week => "week",
            PeriodKind::Month => "month",
            PeriodKind::Total => "total",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<PeriodKind> {
        PeriodKind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A half-open stretch of time: `start` belongs to it, `end` does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Window {
    pub start: Timestamp,
    pub end: Timestamp,
}

impl Window {
    /// The only window of [`PeriodKind::Total`].
    pub const TOTAL: Window = Window { start: Timestamp(0), end: Timestamp::MAX };

    /// Holds no instant, and meets no other window.
    pub const NEVER: Window = Window { start: Timestamp::MAX, end: Timestamp(i64::MIN) };

    #[must_use]
    pub fn contains(&self, at: Timestamp) -> bool {
        self.start <= at && at < self.end
    }

    /// What both hold; a window that ends before it starts when they do not meet.
    #[must_use]
    pub fn intersection(&self, other: &Window) -> Window {
        Window { start: self.start.max(other.start), end: self.end.min(other.end) }
    }

    /// When the window ends; `None` for the window over all time.
    #[must_use]
    pub fn reset_at(&self) -> Option<Timestamp> {
        (self.end != Timestamp::MAX).then_some(self.end)
    }
}

/// The time zone with this IANA name, from the database compiled into the program.
#[must_use]
pub fn time_zone(name: &str) -> Option<TimeZone> {
    // The calendar library answers to `Etc/Unknown`, too, which is no place.
    TimeZone::get(name).ok().filter(|zone| !zone.is_unknown())
}

/// The window of `kind` that `at` falls in, by the calendar of `zone`.
#[must_use]
pub fn window(kind: PeriodKind, at: Timestamp, zone: &TimeZone) -> Window {
    // Instants outside the calendar library's years cannot pass the doors; they would share one window.
    let Some(instant) = at.to_jiff() else { return Window::TOTAL };
    let found = match kind {
        PeriodKind::Total => return Window::TOTAL,
        PeriodKind::Minute => Some(within_offset(MICROS_PER_MINUTE, at, instant, zone)),
        PeriodKind::Hour => Some(within_offset(MICROS_PER_HOUR, at, instant, zone)),
        PeriodKind::Day => calendar_window(instant, zone, |day| Some((day, day.checked_add(1.day()).ok()?))),
        PeriodKind::Week => calendar_window(instant, zone, |day| {
            let monday = day.checked_sub(i64::from(day.weekday().to_monday_zero_offset()).days()).ok()?;
            Some((monday, monday.checked_add(7.days()).ok()?))
        }),
        PeriodKind::Month => calendar_window(instant, zone, |day| {
            let first = day.first_of_month();
            Some((first, first.checked_add(1.month()).ok()?))
        }),
    };
    found.unwrap_or(Window::TOTAL)
}

/// A window of fixed width on the local clock, cut where the zone changes its offset: Lord Howe Island moves its clocks
/// by half an hour, and an hour there may last thirty minutes.
fn within_offset(width: i64, at: Timestamp, instant: jiff::Timestamp, zone: &TimeZone) -> Window {
    let offset = i64::from(zone.to_offset(instant).seconds()) * super::time::MICROS_PER_SECOND;
    let start = (at.0 + offset).div_euclid(width) * width - offset;
    let mut window = Window { start: Timestamp(start), end: Timestamp(start + width) };
    // `preceding` yields transitions strictly before its argument, so ask from the next instant on.
    let after = instant.checked_add(1.microsecond()).unwrap_or(instant);
    if let Some(change) = zone.preceding(after).next() {
        window.start = window.start.max(change.timestamp().into());
    }
    if let Some(change) = zone.following(instant).next() {
        window.end = window.end.min(change.timestamp().into());
    }
    window
}

/// A window from the first instant of one local date to the first instant of another.
fn calendar_window(
    instant: jiff::Timestamp,
    zone: &TimeZone,
    bounds: impl Fn(jiff::civil::Date) -> Option<(jiff::civil::Date, jiff::civil::Date)>,
) -> Option<Window> {
    let (first, next) = bounds(Zoned::new(instant, zone.clone()).date())?;
    Some(Window { start: first_instant(first, zone)?, end: first_instant(next, zone)? })
}

/// The first instant of a local date: midnight, or the end of the gap that swallowed it.
fn first_instant(date: jiff::civil::Date, zone: &TimeZone) -> Option<Timestamp> {
    let midnight = DateTime::from_parts(date, Time::midnight());
    let ambiguous = zone.to_ambiguous_timestamp(midnight);
    if let jiff::tz::AmbiguousOffset::Gap { .. } = ambiguous.offset() {
        // The instant of the transition is the first one that exists; `later` would overshoot by the gap.
        let inside = ambiguous.later().ok()?;
        return zone
            .preceding(inside.checked_add(1.microsecond()).ok()?)
            .next()
            .map(|change| change.timestamp().into());
    }
    // In a fold midnight happens twice; the earlier one begins the date.
    ambiguous.earlier().ok().map(Timestamp::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::properties_tests::config;
    use crate::domain::time::MICROS_PER_DAY;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn check(kind: PeriodKind, zone: &str, instant: &str, start: &str, end: &str) {
        let found = window(kind, at(instant), &time_zone(zone).unwrap());
        assert_eq!(
            found,
            Window { start: at(start), end: at(end) },
            "{kind:?} {zone} {instant}: {} {}",
            found.start,
            found.end
        );
    }

    #[test]
    fn days_of_23_and_25_hours() {
        let zone = "Europe/Berlin";
        check(PeriodKind::Day, zone, "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z");
        check(PeriodKind::Day, zone, "2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z");
        check(PeriodKind::Month, zone, "2026-10-31T23:30:00Z", "2026-10-31T23:00:00Z", "2026-11-30T23:00:00Z");
        check(PeriodKind::Week, zone, "2026-11-22T22:59:59Z", "2026-11-15T23:00:00Z", "2026-11-22T23:00:00Z");
    }

    #[test]
    fn a_day_whose_midnight_does_not_exist() {
        // Santiago springs forward at midnight: 2026-09-06 begins at 01:00 local.
        check(
            PeriodKind::Day,
            "America/Santiago",
            "2026-09-06T12:00:00Z",
            "2026-09-06T04:00:00Z",
            "2026-09-07T03:00:00Z",
        );
    }

    #[test]
    fn hours_of_half_an_hour_and_of_odd_offsets() {
        check(
            PeriodKind::Hour,
            "Asia/Kathmandu",
            "2026-05-01T00:20:00Z",
            "2026-05-01T00:15:00Z",
            "2026-05-01T01:15:00Z",
        );
        // Lord Howe goes back by 30 minutes at 02:00 on 2026-04-05 (15:00Z the day before).
        check(
            PeriodKind::Hour,
            "Australia/Lord_Howe",
            "2026-04-04T15:10:00Z",
            "2026-04-04T15:00:00Z",
            "2026-04-04T15:30:00Z",
        );
    }

    #[test]
    fn only_iana_names_are_zones() {
        for name in ["Europe/Berlin", "UTC", "Etc/GMT+12", "America/Argentina/Buenos_Aires"] {
            assert!(time_zone(name).is_some(), "{name}");
        }
        for name in [
            "",
            "Mars/Olympus",
            "Etc/Unknown",
            "EST5EDT,M3.2.0,M11.1.0",
            "../../etc/passwd",
            "Europe/Berlin\0",
            &"a".repeat(100_000),
        ] {
            assert!(time_zone(name).is_none(), "{name:?}");
        }
    }

    #[test]
    fn words_of_a_period_are_those_of_the_documents() {
        assert_eq!(PeriodKind::ALL.map(PeriodKind::name), ["minute", "hour", "day", "week", "month", "total"]);
        for kind in PeriodKind::ALL {
            assert_eq!(PeriodKind::from_name(kind.name()), Some(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        assert_eq!(PeriodKind::from_name("year"), None);
    }

    #[test]
    fn only_the_window_over_all_time_never_resets() {
        let day = window(PeriodKind::Day, at("2026-11-20T12:00:00Z"), &TimeZone::UTC);
        assert_eq!(day.reset_at(), Some(at("2026-11-21T00:00:00Z")));
        assert_eq!(Window::TOTAL.reset_at(), None);
        assert!(Window::TOTAL.contains(Timestamp(0)) && !Window::TOTAL.contains(Timestamp::MAX));
        // No calendar has a word for such an instant.
        assert_eq!(window(PeriodKind::Day, Timestamp(i64::MAX), &TimeZone::UTC), Window::TOTAL);
    }

    #[test]
    fn a_rollup_is_a_quarter_of_an_hour() {
        assert_eq!(rollup_start(at("2026-11-20T15:44:59.999999Z")), at("2026-11-20T15:30:00Z"));
        assert_eq!(rollup_start(at("2026-11-20T15:45:00Z")), at("2026-11-20T15:45:00Z"));
        assert_eq!(rollup_start(Timestamp(-1)), Timestamp(-ROLLUP_MICROS));
    }

    #[test]
    fn the_hour_after_a_change_begins_with_it() {
        // Berlin, 2026-10-25: 02:30 happens twice, an hour apart.
        let zone = "Europe/Berlin";
        check(PeriodKind::Hour, zone, "2026-10-25T00:30:00Z", "2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z");
        check(PeriodKind::Hour, zone, "2026-10-25T01:00:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z");
        // Lord Howe, 2026-04-05: 01:30 to 02:00 happens twice; the second time is an hour of its own.
        let zone = "Australia/Lord_Howe";
        check(PeriodKind::Hour, zone, "2026-04-04T14:59:59.999999Z", "2026-04-04T14:00:00Z", "2026-04-04T15:00:00Z");
        check(PeriodKind::Hour, zone, "2026-04-04T15:00:00Z", "2026-04-04T15:00:00Z", "2026-04-04T15:30:00Z");
        check(PeriodKind::Minute, zone, "2026-04-04T15:00:30Z", "2026-04-04T15:00:00Z", "2026-04-04T15:01:00Z");
    }

    #[test]
    fn a_day_that_begins_twice_begins_once() {
        // Asuncion went back at midnight on 2024-03-24: 23:00 to 24:00 of the 23rd happened twice.
        let zone = "America/Asuncion";
        check(PeriodKind::Day, zone, "2024-03-24T12:00:00Z", "2024-03-24T04:00:00Z", "2024-03-25T04:00:00Z");
        check(PeriodKind::Day, zone, "2024-03-24T03:30:00Z", "2024-03-23T03:00:00Z", "2024-03-24T04:00:00Z");
        // Havana goes back at 01:00 to midnight: 2026-11-01 begins at the first of its two midnights.
        let zone = "America/Havana";
        check(PeriodKind::Day, zone, "2026-11-01T05:30:00Z", "2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z");
    }

    fn zones() -> &'static [(String, TimeZone)] {
        static ZONES: std::sync::OnceLock<Vec<(String, TimeZone)>> = std::sync::OnceLock::new();
        ZONES.get_or_init(|| {
            let names = jiff::tz::db().available().map(|name| name.to_string());
            names.filter_map(|name| time_zone(&name).map(|zone| (name, zone))).collect()
        })
    }

    fn a_zone() -> impl Strategy<Value = &'static (String, TimeZone)> {
        any::<prop::sample::Index>().prop_map(|pick| pick.get(zones()))
    }

    /// From 1970 to 2100.
    fn an_instant() -> impl Strategy<Value = Timestamp> {
        (0_i64..4_102_444_800_000_000).prop_map(Timestamp)
    }

    /// 1970-01-05 was a Monday.
    fn days_since_a_monday(date: jiff::civil::Date) -> i32 {
        date.since(jiff::civil::date(1970, 1, 5)).unwrap().get_days()
    }

    fn local(at: Timestamp, zone: &TimeZone) -> Zoned {
        Zoned::new(at.to_jiff().unwrap(), zone.clone())
    }

    #[test]
    fn every_zone_of_the_database_is_known() {
        assert!(zones().len() > 400, "{}", zones().len());
    }

    proptest! {
        #![proptest_config(config(4_000))]

        /// Each instant is in its window; the windows before and after touch it; any instant inside agrees.
        #[test]
        fn windows_tile_time_in_every_zone(
            (name, zone) in a_zone(),
            instant in an_instant(),
            share in 0.0_f64..1.0,
            kind in prop::sample::select(PeriodKind::ALL.to_vec()),
        ) {
            let here = window(kind, instant, zone);
            prop_assert!(here.contains(instant), "{name} {instant} {here:?}");
            if kind == PeriodKind::Total {
                return Ok(());
            }
            prop_assert_eq!(window(kind, here.start, zone), here);
            prop_assert_eq!(window(kind, here.end.plus_micros(-1), zone), here);
            let inside = Timestamp(here.start.0 + ((here.end.0 - here.start.0 - 1) as f64 * share) as i64);
            prop_assert_eq!(window(kind, inside, zone), here);
            prop_assert_eq!(window(kind, here.end, zone).start, here.end);
            prop_assert_eq!(window(kind, here.start.plus_micros(-1), zone).end, here.start);
        }

        /// What lets reports be sums of rollups: no window of an hour or longer cuts a quarter of an hour.
        #[test]
        fn no_window_cuts_a_rollup(
            (_, zone) in a_zone(),
            // From 2000 on; offsets in seconds and minutes ended with 1972's Liberia.
            micros in 946_684_800_000_000_i64..4_102_444_800_000_000,
            kind in prop::sample::select(vec![PeriodKind::Hour, PeriodKind::Day, PeriodKind::Week, PeriodKind::Month]),
        ) {
            let here = window(kind, Timestamp(micros), zone);
            prop_assert_eq!(rollup_start(here.start), here.start);
            prop_assert_eq!(rollup_start(here.end), here.end);
            prop_assert!(here.end.0 - here.start.0 <= 32 * MICROS_PER_DAY);
        }

        /// A wall calendar agrees: a period begins where the local clock says so, and not an instant earlier.
        #[test]
        fn a_window_begins_where_the_local_calendar_turns(
            (name, zone) in a_zone(),
            instant in an_instant(),
            kind in prop::sample::select(vec![PeriodKind::Day, PeriodKind::Week, PeriodKind::Month]),
        ) {
            let here = window(kind, instant, zone);
            // Which day, week or month of the calendar a local date is in, as a number that grows with time.
            let number = |at: Timestamp| {
                let date = local(at, zone).date();
                match kind {
                    PeriodKind::Month => i64::from(date.year()) * 12 + i64::from(date.month()),
                    PeriodKind::Week => (i64::from(days_since_a_monday(date))).div_euclid(7),
                    _ => i64::from(days_since_a_monday(date)),
                }
            };
            prop_assert_eq!(number(here.start), number(instant), "{} {}", name, instant);
            prop_assert_eq!(number(here.end.plus_micros(-1)), number(instant), "{} {}", name, instant);
            prop_assert!(number(here.start.plus_micros(-1)) < number(instant), "{} {}", name, instant);
            prop_assert!(number(here.end) > number(instant), "{} {}", name, instant);
        }

        /// A minute and an hour keep one offset, begin on the local clock or with the offset, and are never longer than
        /// their names say.
        #[test]
        fn an_hour_has_one_offset((name, zone) in a_zone(), instant in an_instant(), minutes in any::<bool>()) {
            let (kind, width) =
                if minutes { (PeriodKind::Minute, MICROS_PER_MINUTE) } else { (PeriodKind::Hour, MICROS_PER_HOUR) };
            let here = window(kind, instant, zone);
            let offset = |at: Timestamp| i64::from(local(at, zone).offset().seconds());
            prop_assert_eq!(offset(here.start), offset(here.end.plus_micros(-1)), "{} {}", name, instant);
            let round = |at: Timestamp| (at.0 + offset(instant) * crate::domain::time::MICROS_PER_SECOND) % width == 0;
            let changes = |at: Timestamp| zone.preceding(at.plus_micros(1).to_jiff().unwrap()).next()
                .is_some_and(|change| Timestamp::from(change.timestamp()) == at);
            prop_assert!(round(here.start) || changes(here.start), "{} {}", name, instant);
            prop_assert!(round(here.end) || changes(here.end), "{} {}", name, instant);
            prop_assert!(here.end.0 - here.start.0 <= width);
        }

        /// What a short period holds, each longer one around it holds too: hours within days, days within weeks and
        /// months. A rollup is within all of them.
        #[test]
        fn longer_windows_hold_shorter_ones((name, zone) in a_zone(), instant in an_instant()) {
            use PeriodKind::{Day, Hour, Minute, Month, Total, Week};
            for (short, long) in [(Minute, Hour), (Hour, Day), (Day, Week), (Day, Month), (Month, Total)] {
                let (inner, outer) = (window(short, instant, zone), window(long, instant, zone));
                // The first month and week of 1970 began before time did.
                let begins = inner.start.max(Timestamp(0));
                prop_assert!(outer.start <= begins && inner.end <= outer.end, "{} {} {:?}", name, instant, short);
            }
            let start = rollup_start(instant);
            prop_assert!(start <= instant && instant.0 - start.0 < ROLLUP_MICROS && start.0 % ROLLUP_MICROS == 0);
        }
    }
}
