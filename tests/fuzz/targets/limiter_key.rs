//! Names of the rate limiter's counters: what is read is what stands there, and the identifier may be anything.

use platform_api::intake::kong::limiter_key::{Counts, LimiterKey, Period};

use super::Target;

pub(crate) const TARGET: Target = Target {
    name: "limiter_key",
    check,
    seeds: &[],
    words: &[
        "ratelimit:",
        "response-ratelimit:",
        "00000000-0000-0000-0000-000000000000",
        ":1795220220000:",
        ":tokens:",
        ":second",
        ":minute",
        ":hour",
        ":day",
        ":month",
        ":year",
        "::",
        "2001:db8::1",
    ],
};

fn check(input: &[u8]) {
    let Ok(name) = std::str::from_utf8(input) else { return };
    match LimiterKey::parse(name) {
        Some(key) => is_what_stands_there(name, &key),
        None => assert!(slow(name).is_none(), "{name:?}"),
    }
    // Any text is an identifier.
    let around = format!("ratelimit:r:s:{name}:1795220220000:day");
    let key = LimiterKey::parse(&around).expect("a name around any identifier");
    assert_eq!((key.identifier, key.route, key.service, key.period), (name, "r", "s", Period::Day));
}

fn is_what_stands_there(name: &str, key: &LimiterKey<'_>) {
    let (kind, route, service, identifier, start, limit, period) = slow(name).expect("somebody else reads it, too");
    assert_eq!((key.route, key.service, key.identifier), (route, service, identifier));
    assert_eq!(key.start.0, start * 1_000);
    assert_eq!(key.epoch(), start.to_string());
    assert_eq!(key.period.name(), period);
    assert!(key.start < key.end());
    match key.counts {
        Counts::Requests => assert_eq!((kind, limit), ("ratelimit", None)),
        Counts::Responses { limit: named } => assert_eq!((kind, limit), ("response-ratelimit", Some(named))),
    }
}

type Parts<'a> = (&'a str, &'a str, &'a str, &'a str, i64, Option<&'a str>, &'a str);

/// By its pieces between colons.
fn slow(name: &str) -> Option<Parts<'_>> {
    let pieces: Vec<&str> = name.split(':').collect();
    let after = match *pieces.first()? {
        "ratelimit" => 2,
        "response-ratelimit" => 3,
        _ => return None,
    };
    // Kind, route and service; at least one piece of an identifier; the start and what comes after it.
    if pieces.len() < 4 + after {
        return None;
    }
    let last = pieces.len() - 1;
    let at = last + 1 - after;
    let start = pieces[at];
    let plain = (1..=15).contains(&start.len()) && start.chars().all(|digit| digit.is_ascii_digit());
    let known = Period::ALL.iter().any(|period| period.name() == pieces[last]);
    if !plain || !known {
        return None;
    }
    let skipped: usize = pieces[..3].iter().map(|piece| piece.len() + 1).sum();
    let dropped: usize = pieces[at..].iter().map(|piece| piece.len() + 1).sum();
    let identifier = &name[skipped..name.len() - dropped];
    let limit = (after == 3).then(|| pieces[last - 1]);
    Some((pieces[0], pieces[1], pieces[2], identifier, start.parse().ok()?, limit, pieces[last]))
}
