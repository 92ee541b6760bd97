//! Bounded pieces of an event: text, units and money, each with the path it was read from.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::arrival::Unreadable;
use crate::domain::amount::{EVENT_COST_MAX, EVENT_UNITS_MAX, NanoUsd, NotMoney};
use crate::domain::usage::{DETAILS_BYTES_MAX, LABEL_BYTES_MAX, Refusal};

/// Longest explanation that is kept with an event that could not be read, in bytes.
const EXPLANATION_BYTES_MAX: usize = 400;
/// Hexadecimal digits of the digest that ends a shortened text.
const SHORTENED_DIGEST_HEX: usize = 12;

/// Reads a JSON object into `T`.
///
/// # Errors
/// [`Refusal::Malformed`], with the path to what is wrong.
pub(super) fn object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Unreadable> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let problem = error.into_inner();
        let at = if path == "." { String::new() } else { format!("{path}: ") };
        malformed(format!("{at}{problem}"))
    })?;
    reader.end().map_err(|error| malformed(error.to_string()))?;
    Ok(value)
}

pub(super) fn malformed(explanation: impl AsRef<str>) -> Unreadable {
    unreadable(Refusal::Malformed, explanation)
}

pub(super) fn unreadable(reason: Refusal, explanation: impl AsRef<str>) -> Unreadable {
    Unreadable { reason, detail: printable(explanation.as_ref(), EXPLANATION_BYTES_MAX) }
}

/// `text` for a person: no control characters, and not longer than `bytes_max`.
pub(super) fn printable(text: &str, bytes_max: usize) -> String {
    let clean: String = text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect();
    if clean.len() <= bytes_max { clean } else { format!("{}…", head(&clean, bytes_max.saturating_sub(3))) }
}

/// The longest beginning of `text` that has at most `bytes_max` bytes.
fn head(text: &str, bytes_max: usize) -> &str {
    let mut end = bytes_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A label as its sender wrote it, or the empty string.
///
/// # Errors
/// [`Refusal::Oversized`] above [`LABEL_BYTES_MAX`], [`Refusal::Malformed`] for a NUL character, which Postgres
/// cannot keep.
pub(super) fn label(path: &str, text: Option<String>) -> Result<String, Unreadable> {
    text.map_or(Ok(String::new()), |text| bounded(path, text, LABEL_BYTES_MAX))
}

/// # Errors
/// As [`label`].
pub(super) fn bounded(path: &str, text: String, bytes_max: usize) -> Result<String, Unreadable> {
    if text.contains('\0') {
        return Err(malformed(format!("{path}: contains a NUL character")));
    }
    if text.len() > bytes_max {
        let problem = format!("{path}: {} bytes, at most {bytes_max} are allowed", text.len());
        return Err(unreadable(Refusal::Oversized, problem));
    }
    Ok(text)
}

/// A label that a gateway's client may have written: shortened and cleaned rather than refused, because a client must
/// not be able to keep its own usage from being counted. A shortened text ends in a digest of the whole.
pub(super) fn shortened(text: &str, bytes_max: usize) -> String {
    let clean: Cow<'_, str> = if text.chars().any(char::is_control) {
        Cow::Owned(text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect())
    } else {
        Cow::Borrowed(text)
    };
    if clean.len() <= bytes_max {
        return clean.into_owned();
    }
    let digest = hex(&sha256(text.as_bytes())[..SHORTENED_DIGEST_HEX / 2]);
    format!("{}~{digest}", head(&clean, bytes_max.saturating_sub(SHORTENED_DIGEST_HEX + 1)))
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut hash = [0; 32];
    hash.copy_from_slice(digest.as_ref());
    hash
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Tokens, requests or other units: zero or more, up to [`EVENT_UNITS_MAX`].
///
/// # Errors
/// [`Refusal::Malformed`] below zero, [`Refusal::AmountOverflow`] above the limit.
pub(super) fn units(path: &str, amount: Option<i64>) -> Result<Option<i64>, Unreadable> {
    match amount {
        Some(..0) => Err(malformed(format!("{path}: below zero"))),
        Some(EVENT_UNITS_MAX_PLUS_ONE..) => {
            let problem = format!("{path}: above {EVENT_UNITS_MAX}, the most one event may state");
            Err(unreadable(Refusal::AmountOverflow, problem))
        }
        amount => Ok(amount),
    }
}

const EVENT_UNITS_MAX_PLUS_ONE: i64 = EVENT_UNITS_MAX + 1;

/// US dollars as a JSON number or a decimal string, read from the text: no float is involved.
///
/// # Errors
/// [`Refusal::Malformed`] for anything else or below zero, [`Refusal::AmountOverflow`] above [`EVENT_COST_MAX`].
pub(super) fn cost(path: &str, raw: Option<&RawValue>) -> Result<Option<NanoUsd>, Unreadable> {
    let Some(raw) = raw else { return Ok(None) };
    let text = number_text(raw).ok_or_else(|| malformed(format!("{path}: not a decimal number")))?;
    let over = || unreadable(Refusal::AmountOverflow, format!("{path}: above {EVENT_COST_MAX} US dollars"));
    match NanoUsd::parse_decimal(&text) {
        Ok(cost) if cost.0 < 0 => Err(malformed(format!("{path}: below zero"))),
        Ok(cost) if cost > EVENT_COST_MAX => Err(over()),
        Ok(cost) => Ok(Some(cost)),
        Err(NotMoney::OutOfRange) => Err(over()),
        Err(NotMoney::Malformed) => Err(malformed(format!("{path}: not a decimal number"))),
    }
}

/// The digits of a JSON number or of a JSON string, as they were written.
pub(super) fn number_text(raw: &RawValue) -> Option<Cow<'_, str>> {
    let text = raw.get();
    if text.starts_with('"') {
        return serde_json::from_str::<String>(text).ok().map(Cow::Owned);
    }
    text.starts_with(|first: char| first == '-' || first.is_ascii_digit()).then_some(Cow::Borrowed(text))
}

/// What is worth keeping of an event and never summed: present fields only, sorted, compact.
#[derive(Debug, Default)]
pub(super) struct Details(BTreeMap<&'static str, Value>);

impl Details {
    pub(super) fn text(&mut self, key: &'static str, text: Option<String>) {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            self.0.insert(key, Value::String(text));
        }
    }

    pub(super) fn number(&mut self, key: &'static str, number: i64) {
        self.0.insert(key, number.into());
    }

    pub(super) fn texts(&mut self, key: &'static str, texts: Vec<String>) {
        if !texts.is_empty() {
            self.0.insert(key, texts.into());
        }
    }

    pub(super) fn value(&mut self, key: &'static str, value: Value) {
        self.0.insert(key, value);
    }

    /// JSON text, empty when there is nothing to keep.
    ///
    /// # Errors
    /// [`Refusal::Oversized`] above [`DETAILS_BYTES_MAX`]; [`Refusal::Malformed`] for a NUL character.
    pub(super) fn finish(self) -> Result<String, Unreadable> {
        if self.0.is_empty() {
            return Ok(String::new());
        }
        let text = serde_json::to_string(&self.0).map_err(|error| malformed(error.to_string()))?;
        // JSON writes a NUL as an escape, which Postgres' jsonb refuses in the views that read this text.
        if text.contains("\\u0000") {
            return Err(malformed("the details contain a NUL character"));
        }
        bounded("details", text, DETAILS_BYTES_MAX)
    }
}
