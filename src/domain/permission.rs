//! What may be done to what: permissions as patterns over the pairs of object and action that the operations have.
//!
//! Written `object:action`, for example `usage:read`; `*` on either side stands for every name. Roles are made of
//! patterns, and the scopes of an API key are patterns that narrow what its role allows.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes of an object's or an action's name.
pub const NAME_BYTES_MAX: usize = 64;
const ANY: &str = "*";

/// A pattern over permissions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    /// `None` is every object.
    object: Option<String>,
    /// `None` is every action.
    action: Option<String>,
}

/// The text is not `object:action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a permission is written object:action, each a name of at most {NAME_BYTES_MAX} letters that begins with one, or *"
)]
pub struct NotAPattern;

impl Pattern {
    /// Does it stand for `action` on `object`?
    #[must_use]
    pub fn covers(&self, object: &str, action: &str) -> bool {
        self.object.as_deref().is_none_or(|own| own == object) && self.action.as_deref().is_none_or(|own| own == action)
    }

    /// Does it stand for everything that `other` stands for?
    #[must_use]
    pub fn contains(&self, other: &Pattern) -> bool {
        let holds = |own: &Option<String>, others: &Option<String>| own.is_none() || own == others;
        holds(&self.object, &other.object) && holds(&self.action, &other.action)
    }

    /// What both stand for, if anything.
    #[must_use]
    pub fn meet(&self, other: &Pattern) -> Option<Pattern> {
        let side = |own: &Option<String>, others: &Option<String>| match (own, others) {
            (Some(own), Some(others)) if own != others => None,
            (Some(name), _) | (None, Some(name)) => Some(Some(name.clone())),
            (None, None) => Some(None),
        };
        Some(Pattern { object: side(&self.object, &other.object)?, action: side(&self.action, &other.action)? })
    }

    /// The object's name; `None` is every object.
    #[must_use]
    pub fn object(&self) -> Option<&str> {
        self.object.as_deref()
    }

    /// The action's name; `None` is every action.
    #[must_use]
    pub fn action(&self) -> Option<&str> {
        self.action.as_deref()
    }
}

impl FromStr for Pattern {
    type Err = NotAPattern;

    fn from_str(text: &str) -> Result<Pattern, NotAPattern> {
        let (object, action) = text.split_once(':').ok_or(NotAPattern)?;
        Ok(Pattern { object: side(object)?, action: side(action)? })
    }
}

fn side(text: &str) -> Result<Option<String>, NotAPattern> {
    if text == ANY {
        return Ok(None);
    }
    let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    let is_name = begins && text.len() <= NAME_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_name.then(|| Some(text.to_owned())).ok_or(NotAPattern)
}

impl fmt::Display for Pattern {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.object.as_deref().unwrap_or(ANY), self.action.as_deref().unwrap_or(ANY))
    }
}

impl TryFrom<String> for Pattern {
    type Error = NotAPattern;

    fn try_from(text: String) -> Result<Pattern, NotAPattern> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> String {
        pattern.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_star_stands_for_every_name_and_a_name_for_itself() {
        for (text, covers) in [("usage:read", [true, false, false]), ("usage:*", [true, true, false])] {
            let asked = [("usage", "read"), ("usage", "report"), ("quotas", "read")];
            assert_eq!(asked.map(|(object, action)| pattern(text).covers(object, action)), covers, "{text}");
        }
        assert!(pattern("*:read").covers("quotas", "read") && !pattern("*:read").covers("quotas", "replace"));
        assert!(pattern("*:*").covers("anything", "atAll"));
    }

    #[test]
    fn a_wider_pattern_contains_a_narrower_one_and_never_the_reverse() {
        for (wide, narrow) in [("*:*", "usage:*"), ("usage:*", "usage:read"), ("*:read", "usage:read")] {
            assert!(pattern(wide).contains(&pattern(narrow)) && !pattern(narrow).contains(&pattern(wide)));
        }
        assert!(!pattern("*:read").contains(&pattern("usage:*")) && !pattern("usage:*").contains(&pattern("*:read")));
        assert!(pattern("usage:read").contains(&pattern("usage:read")));
    }

    #[test]
    fn two_patterns_meet_in_what_both_stand_for() {
        for (one, other, both) in [
            ("*:*", "usage:*", Some("usage:*")),
            ("usage:*", "*:read", Some("usage:read")),
            ("usage:read", "usage:read", Some("usage:read")),
            ("usage:*", "quotas:*", None),
            ("*:read", "usage:report", None),
        ] {
            assert_eq!(pattern(one).meet(&pattern(other)), both.map(pattern), "{one} {other}");
            assert_eq!(pattern(other).meet(&pattern(one)), both.map(pattern), "{other} {one}");
        }
    }

    #[test]
    fn what_is_not_a_pattern_is_refused_and_what_is_one_is_written_as_it_came() {
        for text in ["usage:read", "*:read", "usage:*", "*:*"] {
            assert_eq!(pattern(text).to_string(), text);
        }
        let long = format!("{}:read", "a".repeat(NAME_BYTES_MAX + 1));
        for text in
            ["", ":", "usage", "usage:", ":read", "usage:read:more", "us age:read", "1usage:read", "**:read", &long]
        {
            assert_eq!(text.parse::<Pattern>(), Err(NotAPattern), "{text}");
        }
    }
}
