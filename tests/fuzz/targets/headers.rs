//! Headers: `traceparent`, `X-Trace-Id`, `X-Tenant-Id`, `Accept` and their like. An input is lines of `name: value`.

use platform_api::http::reading;
use poem::http::{HeaderMap, HeaderName, HeaderValue};

use super::Target;

pub(crate) const TARGET: Target = Target {
    name: "headers",
    check,
    seeds: &[],
    words: &[
        "traceparent: ",
        "x-trace-id: ",
        "x-tenant-id: ",
        "x-user-id: ",
        "x-platform-id: ",
        "idempotency-key: ",
        "accept: ",
        "\n",
        "00-",
        "-01",
        "-00",
        "ff-",
        "4bf92f3577b34da6a3ce929d0e0e4736",
        "00f067aa0ba902b7",
        "0000000000000000",
        "6f1c9f0e-2f6b-4c0c-9d39-3f3a1c2b4d5e",
        "application/json",
        "*/*",
        ";q=0",
        ",",
        "text/html",
    ],
};

fn check(input: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii())) {
            headers.append(name, value);
        }
    }
    let once = |name: &str| match headers.get_all(name).iter().collect::<Vec<_>>().as_slice() {
        [one] => one.to_str().ok(),
        _ => None,
    };
    let parent = once("traceparent").and_then(slow_parent);
    let alone = once("x-trace-id").and_then(|id| hex(id, 32)).filter(|id| *id != 0).map(|id| (id, 0, true));
    assert_eq!(reading::trace(&headers), parent.or(alone));
    match reading::named_tenant(&headers) {
        Ok(Some(tenant)) => assert_eq!(once("x-tenant-id").map(str::to_ascii_lowercase), Some(tenant.to_string())),
        Ok(None) => assert!(!headers.contains_key("x-tenant-id")),
        Err(refused) => assert_eq!(refused.status(), 400),
    }
    let said: Vec<&str> = headers.get_all("accept").iter().filter_map(|value| value.to_str().ok()).collect();
    let may = said.is_empty()
        || said.iter().any(|said| ["*/*", "application/"].iter().any(|word| said.to_ascii_lowercase().contains(word)));
    assert!(may || !reading::accepts_json(&headers), "{said:?}");
    assert!(!said.is_empty() || reading::accepts_json(&headers));
}

/// W3C Trace Context, section 3.2, by length and place.
fn slow_parent(text: &str) -> Option<(u128, u64, bool)> {
    let part = |from: usize, length: usize| hex(text.get(from..from + length)?, length);
    let dashes = [2, 35, 52].iter().all(|at| text.as_bytes().get(*at) == Some(&b'-'));
    let (version, trace, span, flags) = (part(0, 2)?, part(3, 32)?, part(36, 16)?, part(53, 2)?);
    let ends = text.len() == 55 || (version != 0 && text.as_bytes().get(55) == Some(&b'-'));
    let good = dashes && ends && version != 255 && trace != 0 && span != 0;
    good.then_some((trace, span as u64, flags % 2 == 1))
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let value = |digit: u8| b"0123456789abcdef".iter().position(|known| *known == digit).map(|value| value as u128);
    (text.len() == digits).then_some(())?;
    text.bytes().try_fold(0, |sum: u128, digit| Some(sum << 4 | value(digit)?))
}
