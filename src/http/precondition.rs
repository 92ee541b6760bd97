//! `If-Match`: a change is meant for the version that its caller has seen.

use poem::http::header;

use super::authorize::Ask;
use super::problem::{Code, Problem};
use crate::domain::organization::Expected;

/// The ETag of a version.
#[must_use]
pub(super) fn tag(version: i64) -> String {
    format!("\"{version}\"")
}

/// The version that a change must name: without one, two administrators would undo each other's work unseen.
///
/// # Errors
/// 428 when there is none, 400 when it is no list of ETags.
pub(super) fn required(ask: &Ask) -> Result<Expected, Problem> {
    said(ask)?.ok_or_else(|| Problem::new(Code::PreconditionRequired))
}

/// The version that a change may name.
///
/// # Errors
/// 400 when it is no list of ETags.
pub(super) fn optional(ask: &Ask) -> Result<Expected, Problem> {
    Ok(said(ask)?.unwrap_or(Expected::Any))
}

fn said(ask: &Ask) -> Result<Option<Expected>, Problem> {
    let unreadable =
        || Problem::new(Code::InvalidHeader).saying("if-match: must be * or a list of ETags such as \"3\"");
    let mut lines = Vec::new();
    for line in ask.headers.get_all(header::IF_MATCH) {
        lines.push(line.to_str().map_err(|_| unreadable())?);
    }
    if lines.is_empty() {
        return Ok(None);
    }
    read(&lines.join(",")).map(Some).ok_or_else(unreadable)
}

/// `*` or ETags between commas. A weak one, and one that was never ours, matches nothing, as RFC 9110 has it.
fn read(text: &str) -> Option<Expected> {
    if text.trim() == "*" {
        return Some(Expected::Any);
    }
    let mut versions = Vec::new();
    for one in text.split(',').map(str::trim) {
        let strong = one.strip_prefix("W/").unwrap_or(one);
        let inner = strong.strip_prefix('"')?.strip_suffix('"')?;
        if inner.contains('"') {
            return None;
        }
        let version = inner.parse().ok().filter(|version| one == tag(*version));
        versions.extend(version);
    }
    Some(Expected::OneOf(versions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_etag_names_a_version_and_nothing_else_does() {
        let one_of = |versions: &[i64]| Some(Expected::OneOf(versions.to_vec()));
        for (text, expected) in [
            ("*", Some(Expected::Any)),
            (" * ", Some(Expected::Any)),
            ("\"3\"", one_of(&[3])),
            ("\"3\", \"4\"", one_of(&[3, 4])),
            ("W/\"3\"", one_of(&[])),
            ("\"abc\"", one_of(&[])),
            ("\"03\"", one_of(&[])),
            ("\"\"", one_of(&[])),
            ("3", None),
            ("\"3", None),
            ("\"", None),
            ("*, \"3\"", None),
            ("\"3\"\"4\"", None),
            ("", None),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }
}
