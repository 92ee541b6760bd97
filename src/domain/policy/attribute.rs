//! Attributes as conditions name and see them.

use std::fmt;

use crate::domain::comparison::{Atom, Number, Seen};
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

impl<'a> From<&'a Scalar> for Atom<'a> {
    fn from(scalar: &'a Scalar) -> Atom<'a> {
        match scalar {
            Scalar::Truth(truth) => Atom::Truth(*truth),
            Scalar::Whole(whole) => Atom::Number(Number::Whole(*whole)),
            Scalar::Text(text) => Atom::Text(text),
        }
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
