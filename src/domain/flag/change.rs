//! Whether a flag may be written over, by what its author has seen of it.

use super::{FLAGS_MAX, Flag, FlagSet};

/// Writes a flag for people.
pub type Render = fn(&Flag) -> String;

/// Which version a change is meant for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// None was named: right for a flag that is new.
    Unnamed,
    Any,
    OneOf(Vec<i64>),
}

/// Why a flag was not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("there is no such flag")]
    Unknown,
    #[error("there are as many flags as there may be")]
    TooMany,
    /// The flag is another version than the one that was named.
    #[error("the flag has changed")]
    Changed,
    /// The flag exists, and no version was named.
    #[error("a version must be named")]
    VersionRequired,
    /// The platform has a flag of this key that tenants may not override.
    #[error("the platform's flag may not be overridden")]
    NotOverridable,
}

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotMade {
    #[error("{0}")]
    Refused(Refusal),
    #[error("the idempotency key was used with another body")]
    IdempotencyMismatch,
    /// Asking again is safe.
    #[error("the change could not be made: {0}")]
    Unavailable(String),
}

/// Judges a flag that is to be written; gives it its version.
///
/// # Errors
/// [`Refusal`].
pub fn put(known: &FlagSet, flag: &Flag, expected: &Expected) -> Result<Flag, Refusal> {
    let version = match known.get(&flag.key) {
        Some(known) => {
            check(known, expected)?;
            known.version + 1
        }
        None if matches!(expected, Expected::OneOf(_) | Expected::Any) => return Err(Refusal::Changed),
        None if known.len() >= FLAGS_MAX => return Err(Refusal::TooMany),
        None => 1,
    };
    Ok(Flag { version, ..flag.clone() })
}

/// Judges a flag that is to be deleted.
///
/// # Errors
/// [`Refusal`].
pub fn delete(known: &FlagSet, key: &str, expected: &Expected) -> Result<Flag, Refusal> {
    let flag = known.get(key).ok_or(Refusal::Unknown)?;
    check(flag, expected)?;
    Ok(Flag::clone(flag))
}

fn check(known: &Flag, expected: &Expected) -> Result<(), Refusal> {
    match expected {
        Expected::Any => Ok(()),
        Expected::OneOf(versions) if versions.contains(&known.version) => Ok(()),
        Expected::OneOf(_) => Err(Refusal::Changed),
        Expected::Unnamed => Err(Refusal::VersionRequired),
    }
}

#[cfg(test)]
mod tests {
    use super::super::draft::boolean;
    use super::*;

    #[test]
    fn a_flag_is_written_over_only_by_who_has_seen_it() {
        let known = FlagSet::of([Flag { version: 3, ..boolean("known") }]);
        let one_of = |version| Expected::OneOf(vec![version]);
        for (key, expected, result) in [
            ("new", Expected::Unnamed, Ok(1)),
            ("new", Expected::Any, Err(Refusal::Changed)),
            ("new", one_of(1), Err(Refusal::Changed)),
            ("known", Expected::Unnamed, Err(Refusal::VersionRequired)),
            ("known", Expected::Any, Ok(4)),
            ("known", one_of(3), Ok(4)),
            ("known", one_of(2), Err(Refusal::Changed)),
        ] {
            let written = put(&known, &boolean(key), &expected).map(|flag| flag.version);
            assert_eq!(written, result, "{key} {expected:?}");
        }
        assert_eq!(delete(&known, "known", &Expected::Any).map(|flag| flag.version), Ok(3));
        assert_eq!(delete(&known, "new", &Expected::Any).err(), Some(Refusal::Unknown));
        let full = FlagSet::of((0..FLAGS_MAX).map(|number| boolean(&number.to_string())));
        assert_eq!(put(&full, &boolean("new"), &Expected::Unnamed).err(), Some(Refusal::TooMany));
        assert_eq!(put(&full, &boolean("7"), &Expected::Any).map(|flag| flag.version), Ok(2));
    }
}
