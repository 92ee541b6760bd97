//! Attributes as conditions name and see them.

use std::cmp::Ordering;
use std::fmt;

use serde_json::Value;

use crate::domain::organization::attributes::{self, Scalar};

/// Bytes of an attribute's name.
pub const NAME_BYTES_MAX: usize = 64;

/// Whose attribute it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Subject,
    Resource,
    Action,
    Context,
}

impl Source {
    const ALL: [(Source, &'static str); 4] = [
        (Source::Subject, "subject"),
        (Source::Resource, "resource"),
        (Source::Action, "action"),
        (Source::Context, "context"),
    ];
}

/// An attribute by its name, written `subject.department`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    pub source: Source,
    pub name: String,
}

impl Attribute {
    /// Reads `source.name`. A dot within the name is part of it.
    #[must_use]
    pub fn read(text: &str) -> Option<Attribute> {
        let (source, name) = text.split_once('.')?;
        let (source, _) = Source::ALL.into_iter().find(|(_, word)| *word == source)?;
        let fits = !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.chars().any(char::is_control);
        fits.then(|| Attribute { source, name: name.to_owned() })
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Source::ALL.iter().find(|(source, _)| *source == self.source).map_or("", |(_, word)| word);
        write!(out, "{word}.{}", self.name)
    }
}

/// A number as it is compared: whole ones exactly, others as doubles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    Whole(i64),
    Double(f64),
}

impl Number {
    #[must_use]
    pub fn of(number: &serde_json::Number) -> Option<Number> {
        number.as_i64().map(Number::Whole).or_else(|| number.as_f64().map(Number::Double))
    }

    #[allow(clippy::cast_precision_loss, reason = "a fraction compares as JSON's numbers do everywhere")]
    fn double(self) -> f64 {
        match self {
            Number::Whole(whole) => whole as f64,
            Number::Double(double) => double,
        }
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Number) -> Option<Ordering> {
        match (self, other) {
            (Number::Whole(one), Number::Whole(other)) => Some(one.cmp(other)),
            (one, other) => one.double().partial_cmp(&other.double()),
        }
    }
}

/// A value without parts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Atom<'a> {
    Truth(bool),
    Number(Number),
    Text(&'a str),
}

impl<'a> Atom<'a> {
    #[must_use]
    pub fn of(value: &'a Value) -> Option<Atom<'a>> {
        match value {
            Value::Bool(truth) => Some(Atom::Truth(*truth)),
            Value::Number(number) => Number::of(number).map(Atom::Number),
            Value::String(text) => Some(Atom::Text(text)),
            _ => None,
        }
    }

    #[must_use]
    pub fn text(self) -> Option<&'a str> {
        match self {
            Atom::Text(text) => Some(text),
            _ => None,
        }
    }

    #[must_use]
    pub fn number(self) -> Option<Number> {
        match self {
            Atom::Number(number) => Some(number),
            _ => None,
        }
    }
}

impl<'a> From<&'a Scalar> for Atom<'a> {
    fn from(scalar: &'a Scalar) -> Atom<'a> {
        match scalar {
            Scalar::Truth(truth) => Atom::Truth(*truth),
            Scalar::Whole(whole) => Atom::Number(Number::Whole(*whole)),
            Scalar::Text(text) => Atom::Text(text),
        }
    }
}

/// What is seen of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen<'a> {
    One(Atom<'a>),
    /// Elements without parts; others are not seen.
    Many(Vec<Atom<'a>>),
    /// It is there, and nothing that could be compared.
    Other,
}

impl<'a> Seen<'a> {
    /// `null` is nothing.
    #[must_use]
    pub fn of(value: &'a Value) -> Option<Seen<'a>> {
        match value {
            Value::Null => None,
            Value::Array(items) => Some(Seen::Many(items.iter().filter_map(Atom::of).collect())),
            Value::Object(_) => Some(Seen::Other),
            value => Atom::of(value).map(Seen::One),
        }
    }

    #[must_use]
    pub fn text(text: &'a str) -> Seen<'a> {
        Seen::One(Atom::Text(text))
    }
}

impl<'a> From<&'a attributes::Attribute> for Seen<'a> {
    fn from(attribute: &'a attributes::Attribute) -> Seen<'a> {
        match attribute {
            attributes::Attribute::One(scalar) => Seen::One(scalar.into()),
            attributes::Attribute::Many(scalars) => Seen::Many(scalars.iter().map(Atom::from).collect()),
        }
    }
}
