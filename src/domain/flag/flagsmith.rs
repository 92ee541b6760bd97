//! How Flagsmith compares and deals out, by its engine's rules: the same identity gets the same here as from their clients.
//!
//! Stated differences: a regular expression and a JSON path into anything but the identity and its traits hold for nobody.

use md5::{Digest, Md5};
use serde_json::Value;

use super::condition::Operator;
use super::evaluate::Context;

/// Times the ids are repeated before a hash that keeps coming out as a whole is taken as it is.
const REPEATS_MAX: usize = 8;

/// From 0 up to 100, for these ids in their order.
#[must_use]
pub fn percent(ids: &[&str]) -> f64 {
    for repeats in 1..=REPEATS_MAX {
        let digest: [u8; 16] = Md5::digest(vec![ids.join(","); repeats].join(",").as_bytes()).into();
        let rest = u32::try_from(u128::from_be_bytes(digest) % 9_999).unwrap_or_default();
        if rest != 9_998 {
            return f64::from(rest) / 9_998.0 * 100.0;
        }
    }
    0.0
}

/// Which of a rule's parts must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combination {
    All,
    Any,
    None,
}

impl Combination {
    fn of(self, mut parts: impl ExactSizeIterator<Item = bool>) -> bool {
        if parts.len() == 0 {
            return true;
        }
        match self {
            Combination::All => parts.all(|holds| holds),
            Combination::Any => parts.any(|holds| holds),
            Combination::None => !parts.any(|holds| holds),
        }
    }
}

/// Identities that are alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// Its id, which shares are dealt by.
    pub key: String,
    /// The environment's key, of which an identity's key is made.
    pub environment: String,
    /// All must hold; a segment without rules has nobody in it.
    pub rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub combination: Combination,
    pub conditions: Vec<Condition>,
    pub rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// A trait, or `$.identity.…`; empty for a share of all identities.
    pub property: String,
    pub test: Test,
    pub value: String,
}

/// Flagsmith's operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    Equal,
    NotEqual,
    Greater,
    GreaterInclusive,
    Less,
    LessInclusive,
    Contains,
    NotContains,
    In,
    IsSet,
    IsNotSet,
    Modulo,
    PercentageSplit,
    /// One that we do not evaluate.
    Unknown,
}

impl Test {
    #[must_use]
    pub fn from_name(name: &str) -> Test {
        match name {
            "EQUAL" => Test::Equal,
            "NOT_EQUAL" => Test::NotEqual,
            "GREATER_THAN" => Test::Greater,
            "GREATER_THAN_INCLUSIVE" => Test::GreaterInclusive,
            "LESS_THAN" => Test::Less,
            "LESS_THAN_INCLUSIVE" => Test::LessInclusive,
            "CONTAINS" => Test::Contains,
            "NOT_CONTAINS" => Test::NotContains,
            "IN" => Test::In,
            "IS_SET" => Test::IsSet,
            "IS_NOT_SET" => Test::IsNotSet,
            "MODULO" => Test::Modulo,
            "PERCENTAGE_SPLIT" => Test::PercentageSplit,
            _ => Test::Unknown,
        }
    }
}

/// What shares are dealt by: a feature's state, in an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureState {
    pub key: String,
    /// The environment's key.
    pub environment: String,
}

impl FeatureState {
    /// Where an identity falls, from 0 up to 100.
    #[must_use]
    pub fn percent(&self, identifier: &str) -> f64 {
        percent(&[&self.key, &identity_key(&self.environment, identifier)])
    }
}

/// What Flagsmith calls an identity's key, where it has given none itself.
#[must_use]
pub fn identity_key(environment: &str, identifier: &str) -> String {
    format!("{environment}_{identifier}")
}

impl Segment {
    /// Is whoever asks in it?
    #[must_use]
    pub fn holds(&self, context: &Context) -> bool {
        let known = context.targeting_key.is_some() && !self.rules.is_empty();
        known && self.rules.iter().all(|rule| self.rule_holds(rule, context))
    }

    fn rule_holds(&self, rule: &Rule, context: &Context) -> bool {
        let conditions = rule.conditions.iter().map(|condition| self.condition_holds(condition, context));
        let rules = rule.rules.iter().map(|rule| self.rule_holds(rule, context));
        rule.combination.of(conditions) && rule.combination.of(rules)
    }

    fn condition_holds(&self, condition: &Condition, context: &Context) -> bool {
        let found = self.property(&condition.property, context);
        let found = found.filter(|value| !value.is_null());
        match condition.test {
            Test::PercentageSplit => {
                let key = match condition.property.as_str() {
                    "" => self.property("$.identity.key", context),
                    _ => found,
                };
                let limit = condition.value.parse::<f64>().ok();
                let key = key.as_ref().map(text_of).filter(|key| !key.is_empty());
                matches!((key, limit), (Some(key), Some(limit)) if percent(&[&self.key, &key]) <= limit)
            }
            Test::IsSet => found.is_some(),
            Test::IsNotSet => found.is_none(),
            _ => found.is_some_and(|value| matches(condition.test, &condition.value, &value)),
        }
    }

    fn property(&self, name: &str, context: &Context) -> Option<Value> {
        let trait_of = |name: &str| context.attributes.get(name).cloned();
        let identifier = || context.targeting_key.clone();
        match name {
            "$.identity.identifier" => identifier().map(Value::String),
            "$.identity.key" => identifier().map(|own| Value::String(identity_key(&self.environment, &own))),
            "$.environment.key" => Some(Value::String(self.environment.clone())),
            _ => match name.strip_prefix("$.identity.traits.") {
                Some(name) => trait_of(name),
                None => trait_of(name),
            },
        }
    }
}

/// A trait against a condition's text, which is read as what the trait is.
fn matches(test: Test, text: &str, value: &Value) -> bool {
    if let Some(version) = text.strip_suffix(":semver") {
        return compares_versions(test, version, value);
    }
    match test {
        Test::Contains => value.as_str().is_some_and(|whole| !whole.is_empty() && whole.contains(text)),
        Test::NotContains => value.as_str().is_some_and(|whole| !text.is_empty() && !whole.contains(text)),
        Test::In => is_in(text, value),
        Test::Modulo => has_rest(text, value),
        _ => compares(test, text, value),
    }
}

fn compares(test: Test, text: &str, value: &Value) -> bool {
    let order = match value {
        Value::Bool(own) => own.partial_cmp(&!["False", "false"].contains(&text)),
        Value::Number(own) => match (own.as_f64(), text.trim().parse::<f64>()) {
            (Some(own), Ok(other)) => own.partial_cmp(&other),
            _ => None,
        },
        Value::String(own) => Some(own.as_str().cmp(text)),
        _ => None,
    };
    match (test, order) {
        (Test::NotEqual, order) => order.is_none_or(std::cmp::Ordering::is_ne),
        (_, None) => false,
        (Test::Equal, Some(order)) => order.is_eq(),
        (Test::Greater, Some(order)) => order.is_gt(),
        (Test::GreaterInclusive, Some(order)) => order.is_ge(),
        (Test::Less, Some(order)) => order.is_lt(),
        (Test::LessInclusive, Some(order)) => order.is_le(),
        _ => false,
    }
}

fn compares_versions(test: Test, version: &str, value: &Value) -> bool {
    let operator = match test {
        Test::Equal => Operator::SemverEquals,
        Test::Greater => Operator::SemverGreaterThan,
        Test::GreaterInclusive => Operator::SemverGreaterOrEqual,
        Test::Less => Operator::SemverLessThan,
        Test::LessInclusive => Operator::SemverLessOrEqual,
        // Their engine compares the texts here.
        Test::NotEqual => return value.as_str() != Some(version),
        _ => return false,
    };
    let attributes = serde_json::Map::from_iter([("value".to_owned(), value.clone())]);
    let condition = super::condition::Condition {
        attribute: "value".into(),
        operator,
        values: vec![Value::String(version.to_owned())],
    };
    condition.holds(&Context::of(None, attributes))
}

/// The values stand between commas, or are a JSON list.
fn is_in(text: &str, value: &Value) -> bool {
    let own = match value {
        Value::Number(_) => text_of(value),
        Value::String(own) if !own.is_empty() => own.clone(),
        _ => return false,
    };
    match serde_json::from_str::<Vec<Value>>(text) {
        Ok(listed) => listed.iter().any(|one| text_of(one) == own),
        Err(_) => text.split(',').any(|one| one == own),
    }
}

/// `divisor|remainder`.
fn has_rest(text: &str, value: &Value) -> bool {
    let Some((divisor, rest)) = text.split_once('|') else { return false };
    let own = value.as_f64().or_else(|| value.as_str().and_then(|own| own.trim().parse().ok()));
    match (own, divisor.parse::<f64>(), rest.parse::<f64>()) {
        #[allow(clippy::float_cmp, reason = "their engine compares exactly")]
        (Some(own), Ok(divisor), Ok(rest)) if divisor != 0.0 => own % divisor == rest,
        _ => false,
    }
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
