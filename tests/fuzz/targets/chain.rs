//! The audit chain: what is written is canonical (RFC 8785), verifies, and nothing else does.
//!
//! An input is the lines of an entry: actor, action, target, request id, payload. It is also tried as a stored record.

use platform_api::domain::chain::{Entry, EntryOutcome, Hash, Head, Stored, Verifier, link};
use platform_api::domain::time::Timestamp;

use super::Target;
use crate::json::{self, Json};

pub(crate) const TARGET: Target = Target {
    name: "chain",
    check,
    seeds: &[],
    words: &[
        "action",
        "actor",
        "at",
        "dataCommit",
        "outcome",
        "prev",
        "requestId",
        "seq",
        "target",
        "tenant",
        "v",
        "\u{1}",
        "\u{8}",
        "\u{b}",
        "\u{1f}",
        "\u{7f}",
        "\u{80}",
        "\u{2028}",
        "\u{1f600}",
        "\"",
        "\\",
        "/",
        "\u{fb33}",
        "<",
        "\u{d7ff}",
    ],
};

const CHAIN: &str = "0199a8b2-5c00-7abc-8def-0123456789ab";

fn check(input: &[u8]) {
    what_verifies_is_canonical(input);
    let Ok(text) = std::str::from_utf8(input) else { return };
    what_is_written_verifies(text);
}

fn what_is_written_verifies(text: &str) {
    let mut lines = text.split('\n').map(str::to_owned);
    let mut next = || lines.next().unwrap_or_default();
    let entry = Entry {
        actor: next(),
        action: next(),
        target: next(),
        request_id: next(),
        payload: next(),
        outcome: if text.len().is_multiple_of(2) { EntryOutcome::Success } else { EntryOutcome::Denied },
    };
    let record = link(Head::EMPTY, CHAIN, entry.clone(), Timestamp(1_790_000_000_000_000), [7; 32]);
    let doc = json::read(&record.bytes).expect("a record is JSON");
    assert_eq!(canonical(&doc), String::from_utf8(record.bytes.clone()).expect("UTF-8"));
    let said = |name: &str| doc.named(name).and_then(Json::text);
    assert_eq!(said("actor"), Some(entry.actor));
    assert_eq!(said("action"), Some(entry.action));
    assert_eq!(said("target"), Some(entry.target));
    assert_eq!(said("requestId"), Some(entry.request_id));
    let stored = Stored {
        seq: record.seq,
        bytes: record.bytes,
        hash: record.hash.0,
        payload: Some(record.payload),
        salt: Some(record.salt.to_vec()),
    };
    assert_eq!(Verifier::new(CHAIN).check(&stored), Ok(said("action").unwrap_or_default()));
    let mut changed = stored.clone();
    let at = text.len() % changed.bytes.len();
    changed.bytes[at] ^= 1 << (text.len() % 8);
    assert!(Verifier::new(CHAIN).check(&changed).is_err());
    let erased = Stored { payload: None, salt: None, ..stored };
    assert!(Verifier::new(CHAIN).check(&erased).is_ok());
}

fn what_verifies_is_canonical(bytes: &[u8]) {
    let hash = Hash::of_record(bytes).0;
    let stored = Stored { seq: 1, bytes: bytes.to_vec(), hash, payload: None, salt: None };
    if Verifier::new(CHAIN).check(&stored).is_ok() {
        let doc = json::read(bytes).expect("a record that verifies is JSON");
        assert_eq!(canonical(&doc).as_bytes(), bytes, "a record that verifies is canonical");
    }
}

/// RFC 8785 for documents whose numbers are integers.
fn canonical(doc: &Json) -> String {
    match doc {
        Json::Text(_) => quoted(&doc.text().expect("it was read")),
        Json::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        Json::Object(members) => {
            let mut named: Vec<(Vec<u16>, String)> = members
                .iter()
                .map(|(raw, value)| {
                    let name = json::unescaped(raw).expect("it was read");
                    (name.encode_utf16().collect(), format!("{}:{}", quoted(&name), canonical(value)))
                })
                .collect();
            named.sort_unstable();
            format!("{{{}}}", named.into_iter().map(|(_, member)| member).collect::<Vec<_>>().join(","))
        }
        Json::Number(raw) => raw.parse::<i64>().map_or_else(|_| raw.clone(), |number| number.to_string()),
        plain => plain.write(),
    }
}

/// RFC 8785, 3.2.2.2.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\u{8}' => quoted.push_str("\\b"),
            '\t' => quoted.push_str("\\t"),
            '\n' => quoted.push_str("\\n"),
            '\u{c}' => quoted.push_str("\\f"),
            '\r' => quoted.push_str("\\r"),
            '\0'..='\u{1f}' => quoted.push_str(&format!("\\u{:04x}", letter as u32)),
            plain => quoted.push(plain),
        }
    }
    quoted.push('"');
    quoted
}
