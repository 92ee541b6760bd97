//! Money as text, against long arithmetic on its digits.

use platform_api::domain::amount::{NanoUsd, NotMoney};

use super::Target;

pub(crate) const TARGET: Target = Target {
    name: "money",
    check,
    seeds: &[],
    words: &[
        "0",
        "5",
        "9",
        "49",
        "50",
        "51",
        ".",
        "e",
        "E",
        "-",
        "+",
        "e-9",
        "e-10",
        "00000",
        "9223372036",
        "e99999",
        "e-99999",
    ],
};

fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let read = NanoUsd::parse_decimal(text);
    assert_eq!(read.as_ref().ok().map(|money| money.0), slow_nanos(text), "{text}");
    match read {
        Ok(money) => {
            assert_eq!(money.to_string().parse(), Ok(money));
            assert_eq!(serde_json::from_str(&serde_json::to_string(&money).unwrap()).ok(), Some(money));
        }
        Err(NotMoney::OutOfRange) => assert!(decimal(text).is_some(), "{text} is no number"),
        Err(NotMoney::Malformed) => assert!(decimal(text).is_none(), "{text} is a number"),
    }
}

/// Sign, digits without a point, and the power of ten they are multiplied with.
fn decimal(text: &str) -> Option<(bool, String, i64)> {
    let (negative, rest) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        None => (rest, 0),
        Some((mantissa, exponent)) => {
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            is_digits(digits).then_some(())?;
            let size = digits.parse::<i64>().unwrap_or(i64::MAX / 4).min(i64::MAX / 4);
            (mantissa, if exponent.starts_with('-') { -size } else { size })
        }
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        None => (mantissa, ""),
        Some((whole, fraction)) => (whole, is_digits(fraction).then_some(fraction)?),
    };
    is_digits(whole).then_some(())?;
    Some((negative, format!("{whole}{fraction}"), exponent - fraction.len() as i64))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Nano-dollars, rounded half to even; `None` for what is no number or does not fit.
pub(crate) fn slow_nanos(text: &str) -> Option<i64> {
    let (negative, digits, power) = decimal(text)?;
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Some(0);
    }
    let shift = power + 9;
    let (whole, cut) = match usize::try_from(shift) {
        Ok(zeros) if digits.len() + zeros > 25 => return None,
        Ok(zeros) => (format!("{digits}{}", "0".repeat(zeros)), String::new()),
        Err(_) => {
            let cut = usize::try_from(-shift).ok()?.min(digits.len() + 1);
            let padded = format!("{}{digits}", "0".repeat(cut.saturating_sub(digits.len()) + 1));
            let (whole, cut) = padded.split_at(padded.len() - cut);
            (whole.to_owned(), cut.to_owned())
        }
    };
    let whole = whole.trim_start_matches('0');
    if whole.len() > 25 {
        return None;
    }
    let mut nanos: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let half = format!("5{}", "0".repeat(cut.len().saturating_sub(1)));
    let up = !cut.is_empty() && (cut > half || (cut == half && nanos % 2 == 1));
    nanos += i128::from(up);
    i64::try_from(nanos).ok().map(|nanos| if negative { -nanos } else { nanos })
}
