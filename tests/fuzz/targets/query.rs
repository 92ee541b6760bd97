//! Addresses with their parameters, and what the parameters mean: limits, cursors and reports.
//!
//! An input is `METHOD /path?query`.

use platform_api::domain::time::MICROS_PER_DAY;
use platform_api::http::{Code, reading};
use poem::http::{Method, Uri};

use super::Target;

pub(crate) const TARGET: Target = Target {
    name: "query",
    check,
    seeds: &[],
    words: &[
        "GET ",
        "/v1/tenants",
        "/v1/audit",
        "/v1/quotas/",
        "6f1c9f0e-2f6b-4c0c-9d39-3f3a1c2b4d5e",
        "/usage",
        "/events",
        "/alerts",
        "/decision",
        "?",
        "&",
        "=",
        "limit=",
        "cursor=",
        "from=",
        "to=",
        "granularity=hour",
        "groupBy=",
        "user,model",
        "apiKey",
        "tenantId=",
        "%00",
        "%ff",
        "%",
        "+",
        "%2B",
        "2026-11-20T15:37:12Z",
        "500",
        "501",
        "-1",
    ],
};

/// What a list's positions look like: times, numbers and ids.
const POSITION_BYTES_MAX: usize = 64;

fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    cursors(text);
    let Some((method, target)) = text.split_once(' ') else { return };
    let (Ok(method), Ok(uri)) = (method.parse::<Method>(), target.parse::<Uri>()) else { return };
    let Ok(found) = reading::parameters(&method, &uri) else { return };
    assert_eq!(found, slow_pairs(uri.query().unwrap_or_default()));
    let value = |name: &str| found.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
    for (at, (name, value)) in found.iter().enumerate() {
        assert!(!found[..at].iter().any(|(other, _)| other == name), "{name} is there twice");
        assert!(!value.contains('\0'));
    }
    if let Some(limit) = value("limit") {
        let slow = limit.bytes().all(|byte| byte.is_ascii_digit()).then(|| limit.trim_start_matches('0').parse().ok());
        let slow = slow.flatten().filter(|limit: &usize| (1..=500).contains(limit));
        assert_eq!(reading::page_limit(limit).ok(), slow, "{limit}");
    }
    if let (Some(from), Some(to)) = (value("from"), value("to")) {
        reports(from, to, value("granularity"), value("groupBy"));
    }
}

fn reports(from: &str, to: &str, granularity: Option<&str>, group_by: Option<&str>) {
    match reading::report(from, to, granularity, group_by) {
        Ok(query) => {
            let days = (query.window.end.0 - query.window.start.0) / MICROS_PER_DAY;
            assert!(query.window.start < query.window.end && (0..=4_000).contains(&days));
            let named = query.group_by.iter().map(|dimension| dimension.name()).collect::<Vec<_>>().join(",");
            assert_eq!(named, group_by.unwrap_or_default());
        }
        Err(refused) => assert!([Code::InvalidParameter, Code::ValidationFailed].contains(&refused)),
    }
}

/// What was not sealed for this list and owner is no cursor.
fn cursors(text: &str) {
    let sealer = reading::Sealer::new(&[7; 32]);
    assert!(sealer.open("list", "owner", text).is_err());
    let mut end = text.len().min(POSITION_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let (position, rest) = text.split_at(end);
    let cursor = sealer.seal("list", "owner", position);
    assert_eq!(sealer.open("list", "owner", &cursor).ok().as_deref(), Some(position));
    assert!(sealer.open("list", "other", &cursor).is_err() && sealer.open("lists", "owner", &cursor).is_err());
    let mut changed = cursor.clone().into_bytes();
    let at = rest.len() % changed.len();
    changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
    assert!(sealer.open("list", "owner", &String::from_utf8(changed).expect("ASCII")).is_err(), "{cursor}");
}

/// `application/x-www-form-urlencoded`, as the URL standard reads it.
fn slow_pairs(query: &str) -> Vec<(String, String)> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decoded(name), decoded(value))
        })
        .collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escape = after.get(..2).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        let digits = after.get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        match (first, escape.filter(|_| digits)) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            (plain, _) => bytes.push(*plain),
        }
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
