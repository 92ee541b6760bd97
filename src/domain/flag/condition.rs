//! One attribute compared with values. There are no regular expressions: each comparison costs what its texts are long.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::evaluate::Context;
use crate::domain::comparison::{Atom, Seen};

/// How an attribute is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Operator {
    Equals,
    NotEquals,
    In,
    NotIn,
    /// A text holds the text, or a list the element.
    Contains,
    StartsWith,
    EndsWith,
    GreaterThan,
    GreaterOrEqual,
    LessThan,
    LessOrEqual,
    SemverEquals,
    SemverGreaterThan,
    SemverGreaterOrEqual,
    SemverLessThan,
    SemverLessOrEqual,
    Exists,
    NotExists,
}

/// How many values an operator compares with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arity {
    None,
    One,
    Some,
}

impl Operator {
    pub const ALL: [(Operator, &'static str); 18] = [
        (Operator::Equals, "equals"),
        (Operator::NotEquals, "notEquals"),
        (Operator::In, "in"),
        (Operator::NotIn, "notIn"),
        (Operator::Contains, "contains"),
        (Operator::StartsWith, "startsWith"),
        (Operator::EndsWith, "endsWith"),
        (Operator::GreaterThan, "greaterThan"),
        (Operator::GreaterOrEqual, "greaterOrEqual"),
        (Operator::LessThan, "lessThan"),
        (Operator::LessOrEqual, "lessOrEqual"),
        (Operator::SemverEquals, "semverEquals"),
        (Operator::SemverGreaterThan, "semverGreaterThan"),
        (Operator::SemverGreaterOrEqual, "semverGreaterOrEqual"),
        (Operator::SemverLessThan, "semverLessThan"),
        (Operator::SemverLessOrEqual, "semverLessOrEqual"),
        (Operator::Exists, "exists"),
        (Operator::NotExists, "notExists"),
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        Operator::ALL.iter().find(|(operator, _)| *operator == self).map_or("", |(_, name)| name)
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Operator> {
        Operator::ALL.iter().find(|(_, known)| *known == name).map(|(operator, _)| *operator)
    }

    #[must_use]
    pub fn arity(self) -> Arity {
        match self {
            Operator::Exists | Operator::NotExists => Arity::None,
            Operator::In | Operator::NotIn => Arity::Some,
            _ => Arity::One,
        }
    }

    /// Can it compare with this value?
    #[must_use]
    pub fn takes(self, value: &Value) -> bool {
        match self {
            Operator::StartsWith | Operator::EndsWith => value.is_string(),
            Operator::GreaterThan | Operator::GreaterOrEqual | Operator::LessThan | Operator::LessOrEqual => {
                value.is_number()
            }
            Operator::SemverEquals
            | Operator::SemverGreaterThan
            | Operator::SemverGreaterOrEqual
            | Operator::SemverLessThan
            | Operator::SemverLessOrEqual => value.as_str().is_some_and(|text| version(text).is_some()),
            _ => value.is_string() || value.is_number() || value.is_boolean(),
        }
    }
}

/// A condition of a rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Its name in the context; `targetingKey` is the subject.
    pub attribute: String,
    pub operator: Operator,
    pub values: Vec<Value>,
}

impl Condition {
    /// Does it hold? Of an attribute that is absent, or of a kind that cannot be compared, nothing holds but that it is not
    /// there: not even that it differs.
    #[must_use]
    pub fn holds(&self, context: &Context) -> bool {
        let attribute = context.attribute(&self.attribute);
        let Some(seen) = attribute.as_deref().and_then(Seen::of) else {
            return self.operator == Operator::NotExists;
        };
        self.compare(&seen).unwrap_or(false)
    }

    /// `None` when the attribute is of a kind that this operator does not compare.
    fn compare(&self, seen: &Seen<'_>) -> Option<bool> {
        let one = || seen.one();
        let value = || Atom::of(self.values.first()?);
        let any = |atom: Atom<'_>| self.values.iter().filter_map(Atom::of).any(|value| value.same(atom));
        let ordered = |holds: fn(Ordering) -> bool| one()?.order(value()?).map(holds);
        let text = |holds: fn(&str, &str) -> bool| one()?.texts(value()?).map(|(whole, part)| holds(whole, part));
        let versions = |holds: fn(Ordering) -> bool| {
            let (one, other) = one()?.texts(value()?)?;
            Some(holds(version(one)?.cmp_precedence(&version(other)?)))
        };
        match self.operator {
            Operator::Exists => Some(true),
            Operator::NotExists => Some(false),
            Operator::Equals | Operator::In => one().map(any),
            Operator::NotEquals | Operator::NotIn => one().map(|atom| !any(atom)),
            Operator::Contains => match seen {
                Seen::Many(atoms) => Some(atoms.iter().any(|atom| any(*atom))),
                _ => text(|whole, part| whole.contains(part)),
            },
            Operator::StartsWith => text(|whole, part| whole.starts_with(part)),
            Operator::EndsWith => text(|whole, part| whole.ends_with(part)),
            Operator::GreaterThan => ordered(Ordering::is_gt),
            Operator::GreaterOrEqual => ordered(Ordering::is_ge),
            Operator::LessThan => ordered(Ordering::is_lt),
            Operator::LessOrEqual => ordered(Ordering::is_le),
            Operator::SemverEquals => versions(Ordering::is_eq),
            Operator::SemverGreaterThan => versions(Ordering::is_gt),
            Operator::SemverGreaterOrEqual => versions(Ordering::is_ge),
            Operator::SemverLessThan => versions(Ordering::is_lt),
            Operator::SemverLessOrEqual => versions(Ordering::is_le),
        }
    }
}

/// Compared by precedence: what is built differently is no other version.
fn version(text: &str) -> Option<semver::Version> {
    semver::Version::parse(text.strip_prefix('v').unwrap_or(text)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_operator_holds_where_it_should() {
        for (operator, attribute, values, holds) in [
            ("equals", json!("pro"), json!(["pro"]), true),
            ("equals", json!(1), json!([1.0]), true),
            ("equals", json!("1"), json!([1]), false),
            ("equals", json!(true), json!([true]), true),
            ("notEquals", json!("pro"), json!(["free"]), true),
            ("notEquals", json!("pro"), json!(["pro"]), false),
            ("notEquals", json!(["pro"]), json!(["free"]), false),
            ("in", json!("b"), json!(["a", "b"]), true),
            ("in", json!("c"), json!(["a", "b"]), false),
            ("notIn", json!("c"), json!(["a", "b"]), true),
            ("notIn", json!("a"), json!(["a", "b"]), false),
            ("contains", json!("ada@example.com"), json!(["@example"]), true),
            ("contains", json!(["admin", "reader"]), json!(["reader"]), true),
            ("contains", json!(["admins"]), json!(["admin"]), false),
            ("startsWith", json!("ada"), json!(["ad"]), true),
            ("endsWith", json!("ada"), json!(["da"]), true),
            ("endsWith", json!("ada"), json!(["ad"]), false),
            ("greaterThan", json!(3), json!([2.5]), true),
            ("greaterThan", json!("3"), json!([2]), false),
            ("greaterOrEqual", json!(2), json!([2]), true),
            ("lessThan", json!(9_007_199_254_740_992_i64), json!([9_007_199_254_740_993_i64]), true),
            ("lessOrEqual", json!(3), json!([2]), false),
            ("semverEquals", json!("v1.2.3+a"), json!(["1.2.3+b"]), true),
            ("semverGreaterThan", json!("1.10.0"), json!(["1.9.0"]), true),
            ("semverGreaterThan", json!("1.10.0-rc.1"), json!(["1.10.0"]), false),
            ("semverGreaterOrEqual", json!("1.10"), json!(["1.9.0"]), false),
            ("semverLessThan", json!("1.2.3-alpha"), json!(["1.2.3"]), true),
            ("semverLessOrEqual", json!("2.0.0"), json!(["1.2.3"]), false),
            ("exists", json!(false), json!([]), true),
            ("exists", json!(null), json!([]), false),
            ("notExists", json!(null), json!([]), true),
            ("notExists", json!(0), json!([]), false),
        ] {
            let condition = Condition {
                attribute: "a".into(),
                operator: Operator::from_name(operator).unwrap(),
                values: values.as_array().unwrap().clone(),
            };
            let context = Context::of(None, json!({ "a": attribute }).as_object().unwrap().clone());
            assert_eq!(condition.holds(&context), holds, "{attribute} {operator} {values}");
        }
    }

    #[test]
    fn of_what_is_absent_nothing_holds_but_that_it_is() {
        let context = Context::of(Some("ada".into()), serde_json::Map::new());
        for (operator, name) in Operator::ALL {
            let condition = Condition { attribute: "nowhere".into(), operator, values: vec![json!("x")] };
            assert_eq!(condition.holds(&context), operator == Operator::NotExists, "{name}");
            assert_eq!((operator.name(), Operator::from_name(name)), (name, Some(operator)));
            assert_eq!(serde_json::to_value(operator).unwrap(), name);
        }
        let subject =
            Condition { attribute: "targetingKey".into(), operator: Operator::Equals, values: vec![json!("ada")] };
        assert!(subject.holds(&context));
    }
}
