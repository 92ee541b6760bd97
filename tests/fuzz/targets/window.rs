//! Calendar windows tile time. An input is a period, a time zone and microseconds: `day Europe/Berlin 1790000000000000`.

use platform_api::domain::period::{PeriodKind, Window, rollup_start, time_zone, window};
use platform_api::domain::time::{MICROS_PER_DAY, Timestamp};

use super::Target;

pub(crate) const TARGET: Target = Target {
    name: "window",
    check,
    seeds: &[],
    words: &[
        "minute",
        "hour",
        "day",
        "week",
        "month",
        "total",
        "Europe/Berlin",
        "America/Santiago",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
        "Pacific/Apia",
        "Africa/Monrovia",
        "Africa/Casablanca",
        "Asia/Gaza",
        "America/Nuuk",
        "Antarctica/Troll",
        "Etc/GMT+12",
        "Atlantic/Azores",
        "America/Scoresbysund",
        "UTC",
        "Europe/Dublin",
        "/",
        "..",
        "253402214399999999",
        "1774746000000000",
        "1790000000000000",
    ],
};

/// From here on every zone's offset is a multiple of a quarter of an hour.
const QUARTERS_SINCE: i64 = 946_684_800_000_000;

fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut words = text.split_whitespace();
    let (Some(kind), Some(zone), Some(micros)) = (words.next(), words.next(), words.next()) else { return };
    let Some(zone) = time_zone(zone) else { return };
    let plain = text.split_whitespace().nth(1).is_some_and(|name| !name.contains("..") && name.len() <= 64);
    assert!(plain, "{text:?} is no name of a time zone");
    let (Some(kind), Ok(micros)) = (PeriodKind::from_name(kind), micros.parse::<i64>()) else { return };
    let at = Timestamp(micros);
    let here = window(kind, at, &zone);
    if !(0..Timestamp::MAX.0 - 400 * MICROS_PER_DAY).contains(&micros) {
        return;
    }
    assert!(here.contains(at), "{text}: {here:?}");
    if kind == PeriodKind::Total {
        return assert_eq!(here, Window::TOTAL);
    }
    assert_ne!(here, Window::TOTAL, "{text}");
    let middle = Timestamp(here.start.0 + (here.end.0 - here.start.0) / 2);
    for inside in [here.start, middle, here.end.plus_micros(-1)] {
        assert_eq!(window(kind, inside, &zone), here, "{text}: {inside} belongs to it");
    }
    assert_eq!(window(kind, here.end, &zone).start, here.end, "{text}: the next one touches it");
    assert_eq!(window(kind, here.start.plus_micros(-1), &zone).end, here.start, "{text}: the one before touches it");
    if kind != PeriodKind::Minute && here.start.0 >= QUARTERS_SINCE {
        assert_eq!(
            (rollup_start(here.start), rollup_start(here.end)),
            (here.start, here.end),
            "{text}: a rollup is cut"
        );
    }
}
