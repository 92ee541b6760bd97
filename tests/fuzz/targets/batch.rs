//! Bodies: one object, an array of them, or lines of them. One bad item never spoils its neighbours.

use bytes::Bytes;
use platform_api::intake::arrival::{Format, Limits, Reading, TooMany, read};

use super::{Target, event};
use crate::json::{self, Json};

pub(crate) const TARGET: Target = Target {
    name: "batch",
    check,
    seeds: &["tests/fixtures/usage"],
    words: &["\n", "\n\n", "{}\n", "[", "]", ",", "{", "}", "\u{feff}", "specversion", "litellm_call_id", "startTime"],
};

/// Few, so that bodies of too many are tried as well.
const LIMITS: Limits = Limits { events_max: 8, event_bytes_max: 4 * 1024 };

/// Deeper than the slow reader reads.
pub(crate) fn is_deep(bytes: &[u8]) -> bool {
    bytes.iter().filter(|byte| matches!(byte, b'[' | b'{')).count() > 100
}

fn check(input: &[u8]) {
    let body = Bytes::copy_from_slice(input);
    for format in Format::ALL {
        match read(&body, format, LIMITS) {
            Ok(reading) => holds(&body, format, &reading),
            Err(TooMany { events, max }) => {
                assert!(events > max && max == LIMITS.events_max);
                if let Some(Json::Array(items)) = json::read(input) {
                    assert_eq!(items.len(), events);
                }
            }
        }
    }
}

fn holds(body: &Bytes, format: Format, reading: &Reading) {
    assert!(reading.items.len() <= LIMITS.events_max);
    let inside = body.as_ptr_range();
    for item in &reading.items {
        let alone = event::read_at_most(&item.raw, format, LIMITS.event_bytes_max);
        assert_eq!(alone, item.reading, "an item by itself is read in another way");
        let range = item.raw.as_ptr_range();
        assert!(item.raw.is_empty() || (inside.start <= range.start && range.end <= inside.end), "an item was copied");
    }
    match json::read(body) {
        Some(Json::Array(elements)) => {
            assert!(!reading.not_json);
            let found: Vec<_> = reading.items.iter().map(|item| json::read(&item.raw)).collect();
            assert_eq!(found, elements.into_iter().map(Some).collect::<Vec<_>>());
            neighbours_are_spared(format, reading);
        }
        Some(_) => {
            assert!(!reading.not_json);
            assert_eq!(reading.items.len(), 1);
            assert_eq!(reading.items[0].raw, body.trim_ascii());
        }
        None if reading.not_json => {
            assert_eq!(reading.items.len(), 1);
            assert!(reading.items[0].reading.is_err());
            assert_eq!(reading.items[0].raw, *body);
        }
        // Lines, or deeper than the slow reader goes.
        None => assert!(is_deep(body) || is_lines(body, reading)),
    }
}

fn is_lines(body: &[u8], reading: &Reading) -> bool {
    let lines = body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    lines.eq(reading.items.iter().map(|item| &*item.raw))
}

/// Each element in turn is replaced by one that is no event: the others stay what they were, also as lines.
fn neighbours_are_spared(format: Format, reading: &Reading) {
    for spoiled in 0..reading.items.len() {
        let piece = |(at, item): (usize, &platform_api::intake::arrival::Item)| {
            if at == spoiled { b"7".to_vec() } else { item.raw.to_vec() }
        };
        let pieces: Vec<Vec<u8>> = reading.items.iter().enumerate().map(piece).collect();
        let body = Bytes::from([b"[".as_slice(), &pieces.join(&b','), b"]"].concat());
        let again = read(&body, format, LIMITS).expect("as many as before");
        for (at, (before, after)) in reading.items.iter().zip(&again.items).enumerate() {
            let same = if at == spoiled { after.reading.is_err() } else { before.reading == after.reading };
            assert!(same, "element {at} after element {spoiled} was spoiled: {after:?}");
        }
    }
}
