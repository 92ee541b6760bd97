//! Bounded pieces of an event: text, units and money, each with the path it was read from.

use std::borrow::Cow;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::arrival::Unreadable;
use crate::domain::amount::{EVENT_COST_MAX, EVENT_UNITS_MAX, NanoUsd, NotMoney};
use crate::domain::usage::{DETAILS_BYTES_MAX, LABEL_BYTES_MAX, Refusal};
use crate::json::{LossyText, Object, Text};

/// Longest explanation that is kept with an event that could not be read, in bytes.
const EXPLANATION_BYTES_MAX: usize = 400;
/// Hexadecimal digits of the digest that ends a shortened text.
const SHORTENED_DIGEST_HEX: usize = 12;

/// Reads a JSON object into `T`.
///
/// # Errors
/// [`Refusal::Malformed`], with the path to what is wrong.
pub(super) fn object<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, Unreadable> {
    match serde_json::from_str(json) {
        Ok(Object(value)) => Ok(value),
        // Reading with an eye on the path costs a copy of each name, and most objects are as they should be.
        Err(error) => Err(misshapen::<T>(json, &error)),
    }
}

/// Reads the JSON object that `json` begins with, and how long it is. `None` when it is not as it should be.
pub(super) fn leading_object<'a, T: Deserialize<'a>>(json: &'a str) -> Option<(T, usize)> {
    let mut values = serde_json::Deserializer::from_str(json).into_iter::<Object<T>>();
    let Object(value) = values.next()?.ok()?;
    Some((value, values.byte_offset()))
}

fn misshapen<'a, T: Deserialize<'a>>(json: &'a str, error: &serde_json::Error) -> Unreadable {
    let mut reader = serde_json::Deserializer::from_str(json);
    match serde_path_to_error::deserialize::<_, Object<T>>(&mut reader) {
        Ok(_) => malformed(error.to_string()),
        Err(error) => {
            let path = error.path().to_string();
            let at = if path == "." { String::new() } else { format!("{path}: ") };
            malformed(format!("{at}{}", error.into_inner()))
        }
    }
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
pub(super) fn label(path: &str, text: Option<Text<'_>>) -> Result<String, Unreadable> {
    text.map_or(Ok(String::new()), |text| bounded(path, text.into_owned(), LABEL_BYTES_MAX))
}

/// # Errors
/// As [`label`].
pub(super) fn bounded(path: &str, text: String, bytes_max: usize) -> Result<String, Unreadable> {
    if text.as_bytes().contains(&0) {
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
pub(super) fn shortened(text: &str, bytes_max: usize) -> Cow<'_, str> {
    let clean: Cow<'_, str> = if text.chars().any(char::is_control) {
        Cow::Owned(text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect())
    } else {
        Cow::Borrowed(text)
    };
    if clean.len() <= bytes_max {
        return clean;
    }
    let digest = hex(&sha256(text.as_bytes())[..SHORTENED_DIGEST_HEX / 2]);
    format!("{}~{digest}", head(&clean, bytes_max.saturating_sub(SHORTENED_DIGEST_HEX + 1))).into()
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

/// The digits of a JSON number or what a JSON string says.
pub(super) fn number_text(raw: &RawValue) -> Option<Cow<'_, str>> {
    let text = raw.get();
    if text.starts_with('"') {
        return LossyText::of(raw).map(|text| text.0);
    }
    text.starts_with(|first: char| first == '-' || first.is_ascii_digit()).then_some(Cow::Borrowed(text))
}

/// What is worth keeping of an event and never summed: present fields only, sorted, compact. Each key is given once.
#[derive(Debug, Default)]
pub(super) struct Details {
    /// Values in JSON, one behind the other.
    written: Vec<u8>,
    /// Keys, and where their values stand.
    members: Vec<(&'static str, Range<usize>)>,
}

impl Details {
    pub(super) fn text(&mut self, key: &'static str, text: Option<impl AsRef<str>>) {
        if let Some(text) = text.as_ref().map(AsRef::as_ref).filter(|text| !text.is_empty()) {
            self.value(key, text);
        }
    }

    pub(super) fn texts<T: Serialize>(&mut self, key: &'static str, texts: &[T]) {
        if !texts.is_empty() {
            self.value(key, texts);
        }
    }

    pub(super) fn value(&mut self, key: &'static str, value: impl Serialize) {
        let start = self.written.len();
        // Texts, numbers and what is made of them can always be written.
        if serde_json::to_writer(&mut self.written, &value).is_ok() {
            self.members.push((key, start..self.written.len()));
        }
    }

    /// JSON text, empty when there is nothing to keep.
    ///
    /// # Errors
    /// [`Refusal::Oversized`] above [`DETAILS_BYTES_MAX`]; [`Refusal::Malformed`] for a NUL character.
    pub(super) fn finish(mut self) -> Result<String, Unreadable> {
        if self.members.is_empty() {
            return Ok(String::new());
        }
        self.members.sort_unstable_by_key(|(key, _)| *key);
        let keys: usize = self.members.iter().map(|(key, _)| key.len() + "\"\":,".len()).sum();
        let mut text = String::with_capacity(self.written.len() + keys + "{}".len());
        let written = std::str::from_utf8(&self.written).map_err(|error| malformed(error.to_string()))?;
        for (key, place) in &self.members {
            text.push_str(if text.is_empty() { "{\"" } else { ",\"" });
            text.push_str(key);
            text.push_str("\":");
            text.push_str(&written[place.clone()]);
        }
        text.push('}');
        // JSON writes a NUL as an escape, which Postgres' jsonb refuses in the views that read this text.
        if text.contains("\\u0000") {
            return Err(malformed("the details contain a NUL character"));
        }
        bounded("details", text, DETAILS_BYTES_MAX)
    }
}
