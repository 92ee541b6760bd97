//! Instants: UTC epoch microseconds inside, RFC 3339 with milliseconds outside.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub const MICROS_PER_SECOND: i64 = 1_000_000;
pub const MICROS_PER_MINUTE: i64 = 60 * MICROS_PER_SECOND;
pub const MICROS_PER_HOUR: i64 = 60 * MICROS_PER_MINUTE;
pub const MICROS_PER_DAY: i64 = 24 * MICROS_PER_HOUR;

/// How far our clock may be set back without anything being lost from sight that was recorded before.
pub const CLOCK_STEP_MICROS: i64 = MICROS_PER_HOUR;

/// Microseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

/// Why a text is not an instant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an RFC 3339 date-time with a zone, such as 2026-11-20T15:37:12.345Z")]
pub struct NotATimestamp;

impl Timestamp {
    /// 9999-12-31T00:00:00Z: later than any instant that can be written down (the calendar library ends two hours before
    /// that day begins), and so the end of what never ends. It is stored, and stays what it is.
    pub const MAX: Timestamp = Timestamp(253_402_214_400_000_000);

    #[must_use]
    pub fn from_millis(millis: i64) -> Timestamp {
        Timestamp(millis.saturating_mul(1_000))
    }

    #[must_use]
    pub fn micros(self) -> i64 {
        self.0
    }

    #[must_use]
    pub fn plus_micros(self, micros: i64) -> Timestamp {
        Timestamp(self.0.saturating_add(micros))
    }

    /// The same instant for the calendar library; `None` outside the years -9999 to 9999.
    #[must_use]
    pub fn to_jiff(self) -> Option<jiff::Timestamp> {
        jiff::Timestamp::from_microsecond(self.0).ok()
    }
}

impl From<jiff::Timestamp> for Timestamp {
    fn from(instant: jiff::Timestamp) -> Timestamp {
        Timestamp(instant.as_microsecond())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_jiff() {
            Some(instant) => write!(formatter, "{instant:.3}"),
            None => write!(formatter, "{}us", self.0),
        }
    }
}

impl FromStr for Timestamp {
    type Err = NotATimestamp;

    fn from_str(text: &str) -> Result<Timestamp, NotATimestamp> {
        text.parse::<jiff::Timestamp>().map(Timestamp::from).map_err(|_| NotATimestamp)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MICROS_PER_MILLI: i64 = 1_000;

    #[test]
    fn prints_milliseconds_in_utc() {
        let instant: Timestamp = "2026-11-20T15:37:12.345678+02:00".parse().unwrap();
        assert_eq!(instant.to_string(), "2026-11-20T13:37:12.345Z");
        assert_eq!(instant.micros() % MICROS_PER_SECOND, 345_678);
    }

    #[test]
    fn refuses_a_date_without_a_zone() {
        assert!("2026-11-20T15:37:12".parse::<Timestamp>().is_err());
        assert!("".parse::<Timestamp>().is_err());
    }

    #[test]
    fn units_of_time_are_multiples_of_each_other() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap().0;
        let midnight = at("2026-11-20T00:00:00Z");
        assert_eq!(at("2026-11-20T00:00:01Z") - midnight, MICROS_PER_SECOND);
        assert_eq!(at("2026-11-20T00:01:00Z") - midnight, MICROS_PER_MINUTE);
        assert_eq!(at("2026-11-20T01:00:00Z") - midnight, MICROS_PER_HOUR);
        assert_eq!(at("2026-11-21T00:00:00Z") - midnight, MICROS_PER_DAY);
        let last = at("9999-12-30T22:00:00.999999Z");
        assert!(last < Timestamp::MAX.0 && Timestamp::MAX.0 - last <= 2 * MICROS_PER_HOUR);
        assert_eq!(Timestamp::MAX.to_jiff(), None);
    }

    #[test]
    fn arithmetic_stops_at_the_ends_of_time() {
        assert_eq!(Timestamp::from_millis(1_790_000_000_123), Timestamp(1_790_000_000_123_000));
        assert_eq!(Timestamp::from_millis(i64::MAX), Timestamp(i64::MAX));
        assert_eq!(Timestamp(7).plus_micros(-9), Timestamp(-2));
        assert_eq!(Timestamp(7).plus_micros(i64::MAX), Timestamp(i64::MAX));
        assert_eq!(Timestamp(i64::MAX).to_jiff(), None);
        assert_eq!(Timestamp(i64::MAX).to_string(), "9223372036854775807us");
    }

    proptest! {
        /// What is printed is read back to the millisecond, also from JSON, and sorts as time does.
        #[test]
        fn an_instant_survives_a_round_trip(
            one in 0..Timestamp::MAX.0 - MICROS_PER_DAY,
            other in 0..Timestamp::MAX.0 - MICROS_PER_DAY,
        ) {
            let printed = Timestamp(one).to_string();
            let read: Timestamp = printed.parse().unwrap();
            prop_assert_eq!(read, Timestamp(one - one % MICROS_PER_MILLI));
            let json = serde_json::to_string(&Timestamp(one)).unwrap();
            prop_assert_eq!(&json, &format!("\"{printed}\""));
            prop_assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), read);
            let millis = |micros: i64| micros / MICROS_PER_MILLI;
            prop_assert_eq!(printed.cmp(&Timestamp(other).to_string()), millis(one).cmp(&millis(other)));
        }
    }
}
