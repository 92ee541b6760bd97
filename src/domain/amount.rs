//! Money and tokens are integers; floats end at the parser.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Nano-dollars in one dollar.
pub const NANO_USD_PER_USD: i64 = 1_000_000_000;

/// The largest cost one event may state: 100,000 USD.
pub const EVENT_COST_MAX: NanoUsd = NanoUsd(100_000 * NANO_USD_PER_USD);

/// The most tokens (of one class), requests or other units one event may state.
pub const EVENT_UNITS_MAX: i64 = 1_000_000_000_000;

/// Money in 1e-9 US dollars. Written as a decimal string in JSON (`"0.000135"`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NanoUsd(pub i64);

/// Why a text is not an amount of money.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotMoney {
    #[error("not a decimal number")]
    Malformed,
    #[error("out of range: at most 9223372036 US dollars")]
    OutOfRange,
}

impl NanoUsd {
    /// Parses decimal text (sign, digits, fraction, exponent: everything JSON's number grammar allows) exactly,
    /// rounding half to even at 1e-9. No float is involved, so `9.099999999999999e-05` becomes 91,000 nano-dollars.
    ///
    /// # Errors
    /// [`NotMoney`] when the text is no decimal number or does not fit.
    pub fn parse_decimal(text: &str) -> Result<NanoUsd, NotMoney> {
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
            Some(at) => (&unsigned[..at], parse_exponent(&unsigned[at + 1..])?),
            None => (unsigned, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits_only = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits_only(whole) || !digits_only(fraction) || mantissa.ends_with('.') {
            return Err(NotMoney::Malformed);
        }
        let digits = || whole.bytes().chain(fraction.bytes());
        let leading_zeros = digits().take_while(|digit| *digit == b'0').count();
        if leading_zeros == whole.len() + fraction.len() {
            return Ok(NanoUsd(0));
        }
        // value = 0.significant * 10^magnitude USD; keep `kept` digits to have whole nano-dollars.
        let magnitude = (whole.len() as i64 - leading_zeros as i64).saturating_add(exponent);
        let kept = magnitude.saturating_add(9);
        if kept > 19 {
            return Err(NotMoney::OutOfRange);
        }
        let nanos = round_half_even(digits().skip(leading_zeros), kept)?;
        Ok(NanoUsd(if negative { -nanos } else { nanos }))
    }

    #[must_use]
    pub fn nanos(self) -> i64 {
        self.0
    }
}

fn parse_exponent(text: &str) -> Result<i64, NotMoney> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(NotMoney::Malformed);
    }
    // No mantissa is long enough to bring an exponent beyond i64 back into range.
    let size = digits.parse::<i64>().unwrap_or(i64::MAX);
    Ok(if text.starts_with('-') { -size } else { size })
}

/// The first `kept` digits as an integer (padded with zeros), rounded half to even on the rest.
fn round_half_even(mut digits: impl Iterator<Item = u8>, kept: i64) -> Result<i64, NotMoney> {
    if kept < 0 {
        return Ok(0);
    }
    let mut value: i128 = 0;
    for _ in 0..kept {
        value = value * 10 + i128::from(digits.next().unwrap_or(b'0') - b'0');
    }
    let round_up = match digits.next() {
        None | Some(b'0'..=b'4') => false,
        Some(b'5') if digits.all(|digit| digit == b'0') => value % 2 == 1,
        Some(_) => true,
    };
    i64::try_from(value + i128::from(round_up)).map_err(|_| NotMoney::OutOfRange)
}

impl FromStr for NanoUsd {
    type Err = NotMoney;

    fn from_str(text: &str) -> Result<NanoUsd, NotMoney> {
        NanoUsd::parse_decimal(text)
    }
}

impl fmt::Display for NanoUsd {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let nanos = self.0.unsigned_abs();
        let per_usd = NANO_USD_PER_USD as u64;
        let fraction = format!("{:09}", nanos % per_usd);
        match fraction.trim_end_matches('0') {
            "" => write!(formatter, "{sign}{}", nanos / per_usd),
            fraction => write!(formatter, "{sign}{}.{fraction}", nanos / per_usd),
        }
    }
}

impl Serialize for NanoUsd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NanoUsd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NanoUsd, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parses_what_litellm_writes() {
        for (text, nanos) in [
            ("0", 0),
            ("0.0", 0),
            ("0.00031250000000000006", 312_500),
            ("9.099999999999999e-05", 91_000),
            ("4.800000000000001e-07", 480),
            ("1e-9", 1),
            ("5e-10", 0),
            ("1.5e-9", 2),
            ("2.5e-9", 2),
            ("2.5000000001e-9", 3),
            ("4e-10", 0),
            ("6e-10", 1),
            ("12", 12_000_000_000),
            ("-0.5", -500_000_000),
            ("9223372036.854775807", i64::MAX),
            ("1e-99999999999999999999", 0),
            ("1E+2", 100_000_000_000),
            ("-1e-9", -1),
            ("-0", 0),
            ("-9223372036.854775807", -i64::MAX),
        ] {
            assert_eq!(NanoUsd::parse_decimal(text), Ok(NanoUsd(nanos)), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_money() {
        for text in [
            "", "-", ".", "1.", ".5", "NaN", "inf", "1e", "1e+", "1,5", "0x1", " 1", "1 ", "+1", "--1", "1.2.3", "1.x",
            "x.1", "1e2e3", "1e1.5", "1e+-1", "e1", "1.e1",
        ] {
            assert_eq!(NanoUsd::parse_decimal(text), Err(NotMoney::Malformed), "{text:?}");
        }
        for text in ["9223372036.854775808", "1e400", "1e99999999999999999999"] {
            assert_eq!(NanoUsd::parse_decimal(text), Err(NotMoney::OutOfRange), "{text:?}");
        }
    }

    #[test]
    fn the_largest_cost_of_an_event_is_what_the_documents_say() {
        assert_eq!(EVENT_COST_MAX.to_string(), "100000");
        assert_eq!(NanoUsd(-135_000).nanos(), -135_000);
        assert_eq!(NanoUsd(0).to_string(), "0");
    }

    /// `digits * 10^-places`, written without an exponent.
    fn plain(digits: u64, places: usize) -> String {
        let padded = format!("{digits:0width$}", width = places + 1);
        let (whole, fraction) = padded.split_at(padded.len() - places);
        if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") }
    }

    /// `digits * 10^-places` US dollars in nano-dollars, by integer division.
    fn nearest(digits: u64, places: u32) -> Result<NanoUsd, NotMoney> {
        let (nanos, unit) = (i128::from(digits) * i128::from(NANO_USD_PER_USD), 10_i128.pow(places));
        let (below, rest) = (nanos / unit, nanos % unit);
        let up = 2 * rest > unit || (2 * rest == unit && below % 2 == 1);
        i64::try_from(below + i128::from(up)).map(NanoUsd).map_err(|_| NotMoney::OutOfRange)
    }

    /// Digits of any length, and those that end in what rounding has to decide about.
    fn digits() -> impl Strategy<Value = u64> {
        let ending = prop::sample::select(vec![0_u64, 1, 4, 5, 6, 49, 50, 51, 500]);
        prop_oneof![
            (0_u64..1_000_000_000_000_000_000, 0_u32..18).prop_map(|(digits, cut)| digits / 10_u64.pow(cut)),
            (0_u64..1_000_000, ending).prop_map(|(head, ending)| head * 1_000 + ending),
            (0_u64..1_000_000, 0_u32..12).prop_map(|(head, zeros)| head * 10_u64.pow(zeros)),
        ]
    }

    proptest! {
        #[test]
        fn survives_a_round_trip(nanos in -i64::MAX..=i64::MAX) {
            prop_assert_eq!(NanoUsd(nanos).to_string().parse(), Ok(NanoUsd(nanos)));
            let json = serde_json::to_string(&NanoUsd(nanos)).unwrap();
            prop_assert_eq!(&json, &format!("\"{}\"", NanoUsd(nanos)));
            prop_assert_eq!(serde_json::from_str::<NanoUsd>(&json).unwrap(), NanoUsd(nanos));
        }

        /// Printing is canonical: digits, no exponent, no zeros at the end, the sign in front.
        #[test]
        fn prints_the_shortest_decimal(nanos in any::<i64>(), cut in 0_u32..19) {
            let printed = NanoUsd(nanos / 10_i64.pow(cut)).to_string();
            let (whole, fraction) = printed.split_once('.').unwrap_or((&printed, "1"));
            prop_assert!(!fraction.ends_with('0') && fraction.len() <= 9, "{}", printed);
            prop_assert!(whole.trim_start_matches('-').parse::<u64>().is_ok(), "{}", printed);
            prop_assert!(whole == "0" || whole == "-0" || !whole.trim_start_matches('-').starts_with('0'));
        }

        /// Every amount is the nearest whole number of nano-dollars; a tie goes to the even one.
        #[test]
        fn rounds_half_to_even(digits in digits(), places in 0_usize..28) {
            let expected = nearest(digits, places as u32);
            let text = plain(digits, places);
            prop_assert_eq!(NanoUsd::parse_decimal(&text), expected.clone(), "{}", text);
            prop_assert_eq!(NanoUsd::parse_decimal(&format!("-{text}")), expected.map(|amount| NanoUsd(-amount.0)));
        }

        /// An exponent moves the point and does nothing else.
        #[test]
        fn an_exponent_moves_the_point(digits in digits(), places in 0_usize..28, moved in 0_usize..28) {
            let expected = nearest(digits, places as u32);
            let shift = moved as i64 - places as i64;
            for exponent in [format!("e{shift}"), format!("E{shift:+}"), format!("e{}00{}", if shift < 0 { "-" } else { "" }, shift.abs())] {
                let text = format!("{}{exponent}", plain(digits, moved));
                prop_assert_eq!(NanoUsd::parse_decimal(&text), expected.clone(), "{}", text);
            }
        }

        /// However long the digits are, the exponent is taken at its word.
        #[test]
        fn no_length_of_digits_outruns_the_exponent(zeros in 0_usize..25_000) {
            let many = "0".repeat(zeros);
            prop_assert_eq!(NanoUsd::parse_decimal(&format!("1{many}e-{zeros}")), Ok(NanoUsd(NANO_USD_PER_USD)));
            prop_assert_eq!(NanoUsd::parse_decimal(&format!("0.{many}1e{}", zeros + 1)), Ok(NanoUsd(NANO_USD_PER_USD)));
        }

        #[test]
        fn never_panics(text in "[-+0-9.eE]{0,40}") {
            let _ = NanoUsd::parse_decimal(&text);
        }
    }
}
