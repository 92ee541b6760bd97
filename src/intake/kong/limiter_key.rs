//! The name of one of the rate limiter's counters: whose it is, and of which period.
//!
//! `ratelimit:<route>:<service>:<identifier>:<start>:<period>`, and for the meters of response-ratelimiting
//! `response-ratelimit:<route>:<service>:<identifier>:<start>:<limit>:<period>`. The identifier is whatever the limiter was
//! told to count by, as the client sent it: it may hold colons, and it may be empty. So the name is read from both ends.

use crate::domain::time::{MICROS_PER_DAY, MICROS_PER_HOUR, MICROS_PER_MINUTE, MICROS_PER_SECOND, Timestamp};

const REQUESTS: &str = "ratelimit";
const RESPONSES: &str = "response-ratelimit";
/// An epoch in milliseconds has at most so many digits.
const START_DIGITS_MAX: usize = 15;
/// What Kong writes where a plugin is not bound to a route or a service.
pub const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

/// One counter's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LimiterKey<'a> {
    pub counts: Counts<'a>,
    /// The route that the plugin is bound to, not the request's; [`NOBODY`] for none.
    pub route: &'a str,
    /// The same of the service.
    pub service: &'a str,
    pub identifier: &'a str,
    /// Start of the period, by the clock of the Kong node that counted first.
    pub start: Timestamp,
    pub period: Period,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Counts<'a> {
    /// Attempts, denied ones among them.
    Requests,
    /// Whatever the service says in `X-Kong-Limit`, under this name.
    Responses { limit: &'a str },
}

/// How long one of the limiter's counters counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Period {
    Second,
    Minute,
    Hour,
    Day,
    Month,
    Year,
}

impl Period {
    pub const ALL: [Period; 6] =
        [Period::Second, Period::Minute, Period::Hour, Period::Day, Period::Month, Period::Year];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Period::Second => "second",
            Period::Minute => "minute",
            Period::Hour => "hour",
            Period::Day => "day",
            Period::Month => "month",
            Period::Year => "year",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Period> {
        Period::ALL.into_iter().find(|period| period.name() == name)
    }

    /// How long Kong keeps a counter after its first request; for months and years less than the longest of them.
    #[must_use]
    pub fn kept_micros(self) -> i64 {
        match self {
            Period::Second => MICROS_PER_SECOND,
            Period::Minute => MICROS_PER_MINUTE,
            Period::Hour => MICROS_PER_HOUR,
            Period::Day => MICROS_PER_DAY,
            Period::Month => 30 * MICROS_PER_DAY,
            Period::Year => 365 * MICROS_PER_DAY,
        }
    }

    /// How good a meter its counter is: one that dies seldom loses least, and Kong's months and years die before their
    /// period is over.
    #[must_use]
    pub fn worth(self) -> u8 {
        match self {
            Period::Day => 5,
            Period::Month => 4,
            Period::Year => 3,
            Period::Hour => 2,
            Period::Minute => 1,
            Period::Second => 0,
        }
    }

    /// Its counter dies before anybody can be sure to have read it to the end.
    #[must_use]
    pub fn is_lower_bound(self) -> bool {
        matches!(self, Period::Second | Period::Minute)
    }
}

impl<'a> LimiterKey<'a> {
    /// `None` when it is not one of the limiter's names.
    #[must_use]
    pub fn parse(key: &'a str) -> Option<LimiterKey<'a>> {
        let mut left = key.splitn(4, ':');
        let (kind, route, service, rest) = (left.next()?, left.next()?, left.next()?, left.next()?);
        let (rest, period) = rest.rsplit_once(':')?;
        let (rest, counts) = match kind {
            REQUESTS => (rest, Counts::Requests),
            RESPONSES => {
                let (rest, limit) = rest.rsplit_once(':')?;
                (rest, Counts::Responses { limit })
            }
            _ => return None,
        };
        let (identifier, start) = rest.rsplit_once(':')?;
        let plain = start.len() <= START_DIGITS_MAX && start.bytes().all(|byte| byte.is_ascii_digit());
        let millis: i64 = start.parse().ok().filter(|_| plain)?;
        Some(LimiterKey {
            counts,
            route,
            service,
            identifier,
            start: Timestamp(millis * 1_000),
            period: Period::from_name(period)?,
        })
    }

    /// When the period is over for certain: a month may be, up to three days earlier.
    #[must_use]
    pub fn end(&self) -> Timestamp {
        let micros = match self.period {
            Period::Month => 31 * MICROS_PER_DAY,
            Period::Year => 366 * MICROS_PER_DAY,
            period => period.kept_micros(),
        };
        Timestamp(self.start.0.saturating_add(micros))
    }

    /// Start of the period in milliseconds, as the name has it.
    #[must_use]
    pub fn epoch(&self) -> String {
        (self.start.0 / 1_000).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: [&str; 5] = [
        include_str!("../../../tests/fixtures/kong/redis-limit-by-variants.tsv"),
        include_str!("../../../tests/fixtures/kong/redis-ratelimit-windows.tsv"),
        include_str!("../../../tests/fixtures/kong/redis-response-ratelimit-tokens.tsv"),
        include_str!("../../../tests/fixtures/kong/redis-sync-rate-anomalies.tsv"),
        include_str!("../../../tests/fixtures/kong/recon/redis-polls.tsv"),
    ];

    #[test]
    fn each_captured_name_is_read_and_says_what_it_said() {
        let mut read = 0;
        for cell in TABLES.iter().flat_map(|table| table.lines()).filter(|line| !line.starts_with('#')) {
            let Some(name) = cell.split('\t').find(|cell| cell.contains("ratelimit:")) else { continue };
            let key = LimiterKey::parse(name).unwrap_or_else(|| panic!("{name}"));
            let (kind, limit) = match key.counts {
                Counts::Requests => (REQUESTS, String::new()),
                Counts::Responses { limit } => (RESPONSES, format!("{limit}:")),
            };
            let LimiterKey { route, service, identifier, period, .. } = &key;
            let epoch = key.epoch();
            assert_eq!(name, format!("{kind}:{route}:{service}:{identifier}:{epoch}:{limit}{}", period.name()));
            assert!(key.start < key.end(), "{name}");
            read += 1;
        }
        assert!(read > 800, "only {read} names");
    }

    #[test]
    fn identifiers_hold_colons_or_nothing() {
        for (identifier, name) in [
            ("", "ratelimit:r:s::1795220220000:minute"),
            ("2001:db8::1", "ratelimit:r:s:2001:db8::1:1795220220000:minute"),
            (":", "ratelimit:r:s:::1795220220000:minute"),
            ("1795220220000:day", "ratelimit:r:s:1795220220000:day:1795220220000:hour"),
        ] {
            let key = LimiterKey::parse(name).unwrap();
            assert_eq!((key.identifier, key.route, key.service), (identifier, "r", "s"), "{name}");
        }
        let key = LimiterKey::parse("response-ratelimit:r:s:a:b:1795220566000:tokens:second").unwrap();
        assert_eq!((key.identifier, key.counts), ("a:b", Counts::Responses { limit: "tokens" }));
    }

    #[test]
    fn what_is_no_name_of_the_limiter_is_nothing() {
        for name in [
            "",
            "ratelimit",
            "ratelimit:r:s:i:1795220220000",
            "ratelimit:r:s:1795220220000:minute",
            "ratelimit:r:s:i:1795220220000:fortnight",
            "ratelimit:r:s:i:-5:minute",
            "ratelimit:r:s:i:9999999999999999999:minute",
            "ratelimit:r:s:i::minute",
            "throttle:r:s:i:1795220220000:minute",
            "response-ratelimit:r:s:1795220220000:minute",
        ] {
            assert_eq!(LimiterKey::parse(name), None, "{name:?}");
        }
    }
}
