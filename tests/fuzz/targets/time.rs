//! Instants as text, against arithmetic on days.

use platform_api::domain::time::Timestamp;

use super::Target;

pub(crate) const TARGET: Target = Target {
    name: "time",
    check,
    seeds: &[],
    words: &[
        "2026-11-20",
        "T",
        "t",
        "15:37:12",
        ".345",
        "Z",
        "z",
        "+02:00",
        "-00:00",
        "60",
        "24:00:00",
        "0000",
        "9999-12-31",
        "02-29",
        "[UTC]",
    ],
};

fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let read: Option<Timestamp> = text.parse().ok();
    if let Some(slow) = slow_micros(text) {
        assert_eq!(read.map(Timestamp::micros), Some(slow), "{text}");
    }
    let Some(at) = read else { return };
    assert!(text.contains(['Z', 'z', '+', '-']), "an instant without a zone: {text}");
    if (0..=Timestamp::MAX.0).contains(&at.0) {
        assert_eq!(at.to_string().parse(), Ok(Timestamp(at.0 - at.0.rem_euclid(1_000))), "{text}");
        assert_eq!(
            serde_json::from_str::<Timestamp>(&serde_json::to_string(&at).unwrap()).unwrap().0 / 1_000,
            at.0 / 1_000
        );
    }
}

/// RFC 3339 by the letter, `YYYY-MM-DDTHH:MM:SS[.f]Z` or with an offset, without leap seconds; years from 1.
fn slow_micros(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
    };
    let is = |at: usize, letters: &str| text.get(at..=at).is_some_and(|letter| letters.contains(letter));
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let marks = is(4, "-") && is(7, "-") && is(10, "T") && is(13, ":") && is(16, ":");
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let length = *lengths.get(usize::try_from(month).ok()?.checked_sub(1)?)?;
    if !marks || !(1..=9_998).contains(&year) || !(1..=length).contains(&day) || hour > 23 || minute > 59 || second > 59
    {
        return None;
    }
    let rest = text.get(19..)?;
    let fraction: String = rest.strip_prefix('.').unwrap_or("").chars().take_while(char::is_ascii_digit).collect();
    let zone = match rest.strip_prefix('.') {
        Some(after) => &after[fraction.len()..],
        None => rest,
    };
    if (rest.starts_with('.') && fraction.is_empty()) || fraction.len() > 9 {
        return None;
    }
    let offset = match zone.as_bytes() {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] if [h1, h2, m1, m2].iter().all(|digit| digit.is_ascii_digit()) => {
            let two = |tens: u8, ones: u8| i64::from(tens - b'0') * 10 + i64::from(ones - b'0');
            let (hours, minutes) = (two(*h1, *h2), two(*m1, *m2));
            if hours > 23 || minutes > 59 {
                return None;
            }
            (hours * 60 + minutes) * if *sign == b'-' { -60 } else { 60 }
        }
        _ => return None,
    };
    let leaps = |years: i64| years / 4 - years / 100 + years / 400;
    let before: i64 = lengths[..usize::try_from(month).ok()? - 1].iter().sum();
    let days = (year - 1) * 365 + leaps(year - 1) + before + day - 1 - 719_162;
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second - offset;
    let micros: i64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    // Before 1970 what is finer than a microsecond is rounded another way.
    (seconds >= 0).then_some(seconds * 1_000_000 + micros)
}
