//! Values of attributes as conditions see and compare them, those of flags and those of policies alike.

use std::cmp::Ordering;

use serde_json::Value;

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

    /// The same text, truth or number; 1 and 1.0 are the same number.
    #[must_use]
    pub fn same(self, other: Atom<'_>) -> bool {
        self == other || self.order(other).is_some_and(Ordering::is_eq)
    }

    /// Of two numbers.
    #[must_use]
    pub fn order(self, other: Atom<'_>) -> Option<Ordering> {
        self.number()?.partial_cmp(&other.number()?)
    }

    /// Two texts.
    #[must_use]
    pub fn texts<'b>(self, other: Atom<'b>) -> Option<(&'a str, &'b str)> {
        Some((self.text()?, other.text()?))
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

    /// What has no parts.
    #[must_use]
    pub fn one(&self) -> Option<Atom<'a>> {
        match self {
            Seen::One(atom) => Some(*atom),
            Seen::Many(_) | Seen::Other => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whole_numbers_are_compared_exactly_and_kinds_are_not_mixed() {
        for (one, other, same, order) in [
            (json!(1), json!(1.0), true, Some(Ordering::Equal)),
            (json!(9_007_199_254_740_993_i64), json!(9_007_199_254_740_992_i64), false, Some(Ordering::Greater)),
            (json!(1), json!("1"), false, None),
            (json!(1), json!(true), false, None),
            (json!("a"), json!("a"), true, None),
            (json!(true), json!(false), false, None),
        ] {
            let (left, right) = (Atom::of(&one).unwrap(), Atom::of(&other).unwrap());
            assert_eq!((left.same(right), left.order(right)), (same, order), "{one} {other}");
            assert_eq!(right.same(left), same, "{other} {one}");
        }
        assert_eq!(Atom::of(&json!([1])), None);
        assert_eq!(Seen::of(&json!(null)), None);
        assert_eq!(
            Seen::of(&json!(["a", {}, 1])).unwrap(),
            Seen::Many(vec![Atom::Text("a"), Atom::Number(Number::Whole(1)),])
        );
    }
}
