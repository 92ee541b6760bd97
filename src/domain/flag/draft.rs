//! A flag as it is asked for, and everything that is wrong with it at once.

use std::collections::BTreeMap;

use serde_json::Value;

use super::condition::{Arity, Condition, Operator};
use super::{
    CONDITIONS_MAX, Flag, Kind, NAME_BYTES_MAX, RULES_MAX, Rule, Serve, Share, Split, TEXT_BYTES_MAX, VALUE_BYTES_MAX,
    VALUES_MAX, VARIANTS_MAX, WHOLE, is_name,
};
use crate::domain::time::Timestamp;

/// A flag to be, with words that nobody has looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    pub key: String,
    pub description: String,
    pub kind: String,
    pub variants: BTreeMap<String, Value>,
    pub default_variant: String,
    pub off_variant: String,
    pub enabled: bool,
    pub rules: Vec<RuleDraft>,
    pub split: Option<Vec<ShareDraft>>,
    pub from: Option<String>,
    pub until: Option<String>,
    pub salt: String,
    pub overridable: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RuleDraft {
    pub conditions: Vec<ConditionDraft>,
    pub variant: Option<String>,
    pub split: Option<Vec<ShareDraft>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ConditionDraft {
    pub attribute: String,
    pub operator: String,
    pub values: Vec<Value>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ShareDraft {
    pub variant: String,
    pub basis_points: i64,
}

/// One thing that is wrong: a JSON pointer, and words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    pub pointer: String,
    pub message: String,
}

/// Gathers what is wrong.
#[derive(Debug, Default)]
struct Flaws(Vec<Flaw>);

impl Flaws {
    fn unless(&mut self, holds: bool, pointer: &str, message: impl FnOnce() -> String) {
        if !holds {
            self.0.push(Flaw { pointer: pointer.to_owned(), message: message() });
        }
    }

    fn push(&mut self, pointer: &str, message: &str) {
        self.unless(false, pointer, || message.to_owned());
    }
}

impl Draft {
    /// The flag, as its first version.
    ///
    /// # Errors
    /// Every flaw.
    pub fn checked(self, now: Timestamp) -> Result<Flag, Vec<Flaw>> {
        let mut flaws = Flaws::default();
        let kind = Kind::from_name(&self.kind);
        flaws.unless(kind.is_some(), "/kind", || "must be boolean, string, number or object".into());
        self.check_texts(&mut flaws);
        self.check_variants(kind, &mut flaws);
        flaws.unless(self.rules.len() <= RULES_MAX, "/rules", || format!("must be at most {RULES_MAX}"));
        let rules = self.rules.iter().take(RULES_MAX).enumerate();
        let rules: Vec<Rule> = rules.filter_map(|(at, rule)| self.rule(rule, at, &mut flaws)).collect();
        let split = self.split.as_ref().and_then(|shares| self.shares(shares, "/split", &mut flaws));
        let from = instant(self.from.as_deref(), "/schedule/from", &mut flaws);
        let until = instant(self.until.as_deref(), "/schedule/until", &mut flaws);
        if let (Some(from), Some(until)) = (from, until) {
            flaws.unless(from < until, "/schedule/until", || "must be after from".into());
        }
        let (Some(kind), true) = (kind, flaws.0.is_empty()) else { return Err(flaws.0) };
        Ok(Flag {
            key: self.key,
            description: self.description,
            kind,
            variants: self.variants,
            default_variant: self.default_variant,
            off_variant: self.off_variant,
            enabled: self.enabled,
            rules,
            split,
            from,
            until,
            salt: self.salt,
            overridable: self.overridable,
            version: 1,
            updated_at: now,
        })
    }

    fn check_texts(&self, flaws: &mut Flaws) {
        for (pointer, text) in [("/description", &self.description), ("/salt", &self.salt)] {
            flaws.unless(text.len() <= TEXT_BYTES_MAX, pointer, || format!("must be at most {TEXT_BYTES_MAX} bytes"));
        }
    }

    fn check_variants(&self, kind: Option<Kind>, flaws: &mut Flaws) {
        let fits = (1..=VARIANTS_MAX).contains(&self.variants.len());
        flaws.unless(fits, "/variants", || format!("must be 1 to {VARIANTS_MAX}"));
        for (name, value) in self.variants.iter().take(VARIANTS_MAX) {
            if !is_name(name) {
                let words =
                    format!("a name must be 1 to {NAME_BYTES_MAX} letters, digits, dots, hyphens or underscores");
                flaws.push("/variants", &words);
                continue;
            }
            let pointer = format!("/variants/{name}");
            flaws.unless(kind.is_none_or(|kind| kind.holds(value)), &pointer, || {
                format!("must be of kind {}", kind.map_or("", Kind::name))
            });
            let fits = value.to_string().len() <= VALUE_BYTES_MAX;
            flaws.unless(fits, &pointer, || format!("must be at most {VALUE_BYTES_MAX} bytes of JSON"));
        }
        self.check_variant(&self.default_variant, "/defaultVariant", flaws);
        self.check_variant(&self.off_variant, "/offVariant", flaws);
    }

    fn check_variant(&self, name: &str, pointer: &str, flaws: &mut Flaws) {
        flaws.unless(self.variants.contains_key(name), pointer, || "must be one of the variants".into());
    }

    fn rule(&self, rule: &RuleDraft, at: usize, flaws: &mut Flaws) -> Option<Rule> {
        let pointer = format!("/rules/{at}");
        let count = rule.conditions.len();
        flaws.unless(count <= CONDITIONS_MAX, &format!("{pointer}/conditions"), || {
            format!("must be at most {CONDITIONS_MAX}")
        });
        let conditions = rule.conditions.iter().take(CONDITIONS_MAX).enumerate();
        let conditions: Vec<Condition> = conditions
            .filter_map(|(at, condition)| condition.checked(&format!("{pointer}/conditions/{at}"), flaws))
            .collect();
        let serve = match (&rule.variant, &rule.split) {
            (Some(variant), None) => {
                self.check_variant(variant, &format!("{pointer}/variant"), flaws);
                Serve::Variant(variant.clone())
            }
            (None, Some(shares)) => Serve::Split(self.shares(shares, &format!("{pointer}/split"), flaws)?),
            _ => {
                flaws.push(&pointer, "must have either variant or split");
                return None;
            }
        };
        Some(Rule { conditions, serve, segment: None })
    }

    fn shares(&self, shares: &[ShareDraft], pointer: &str, flaws: &mut Flaws) -> Option<Split> {
        if !(1..=VARIANTS_MAX).contains(&shares.len()) {
            flaws.unless(false, pointer, || format!("must be 1 to {VARIANTS_MAX} shares"));
            return None;
        }
        let mut read: Vec<Share> = Vec::with_capacity(shares.len());
        for (at, share) in shares.iter().enumerate() {
            self.check_variant(&share.variant, &format!("{pointer}/{at}/variant"), flaws);
            let twice = read.iter().any(|other| other.variant == share.variant);
            flaws.unless(!twice, &format!("{pointer}/{at}/variant"), || "is there twice".into());
            let basis_points = u32::try_from(share.basis_points).ok().filter(|points| *points <= WHOLE);
            flaws.unless(basis_points.is_some(), &format!("{pointer}/{at}/basisPoints"), || {
                format!("must be from 0 to {WHOLE}")
            });
            read.push(Share { variant: share.variant.clone(), basis_points: basis_points.unwrap_or_default() });
        }
        let sum: u32 = read.iter().map(|share| share.basis_points).sum();
        flaws.unless(sum <= WHOLE, pointer, || format!("must be at most {WHOLE} basis points together"));
        Some(Split::of(read))
    }
}

impl ConditionDraft {
    fn checked(&self, pointer: &str, flaws: &mut Flaws) -> Option<Condition> {
        let named = (1..=NAME_BYTES_MAX).contains(&self.attribute.len());
        flaws.unless(named, &format!("{pointer}/attribute"), || format!("must be 1 to {NAME_BYTES_MAX} bytes"));
        let operator = Operator::from_name(&self.operator);
        let Some(operator) = operator else {
            let names: Vec<&str> = Operator::ALL.iter().map(|(_, name)| *name).collect();
            flaws.unless(false, &format!("{pointer}/operator"), || format!("must be one of {}", names.join(", ")));
            return None;
        };
        let (least, most) = match operator.arity() {
            Arity::None => (0, 0),
            Arity::One => (1, 1),
            Arity::Some => (1, VALUES_MAX),
        };
        let count = (least..=most).contains(&self.values.len());
        flaws
            .unless(count, &format!("{pointer}/values"), || format!("must be {least} to {most} for {}", self.operator));
        for (at, value) in self.values.iter().take(most).enumerate() {
            let fits = operator.takes(value) && value.as_str().is_none_or(|text| text.len() <= TEXT_BYTES_MAX);
            flaws.unless(fits, &format!("{pointer}/values/{at}"), || {
                format!("not a value that {} compares with", self.operator)
            });
        }
        Some(Condition { attribute: self.attribute.clone(), operator, values: self.values.clone() })
    }
}

fn instant(text: Option<&str>, pointer: &str, flaws: &mut Flaws) -> Option<Timestamp> {
    let parsed = text?.parse::<Timestamp>().ok();
    flaws.unless(parsed.is_some(), pointer, || "must be an RFC 3339 instant".into());
    // Stored and shown in milliseconds, so kept in them.
    parsed.map(|at| Timestamp::from_millis(at.0.div_euclid(1_000)))
}

/// On for everybody.
#[cfg(test)]
pub(crate) fn boolean(key: &str) -> Flag {
    let variants = [("on".to_owned(), Value::Bool(true)), ("off".to_owned(), Value::Bool(false))];
    Flag {
        key: key.into(),
        description: String::new(),
        kind: Kind::Boolean,
        variants: variants.into(),
        default_variant: "on".into(),
        off_variant: "off".into(),
        enabled: true,
        rules: Vec::new(),
        split: None,
        from: None,
        until: None,
        salt: String::new(),
        overridable: false,
        version: 1,
        updated_at: Timestamp(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn draft() -> Draft {
        Draft {
            key: "checkout".into(),
            description: String::new(),
            kind: "string".into(),
            variants: [("a".to_owned(), json!("A")), ("b".to_owned(), json!("B"))].into(),
            default_variant: "a".into(),
            off_variant: "b".into(),
            enabled: true,
            rules: vec![],
            split: None,
            from: None,
            until: None,
            salt: String::new(),
            overridable: false,
        }
    }

    fn share(variant: &str, basis_points: i64) -> ShareDraft {
        ShareDraft { variant: variant.into(), basis_points }
    }

    #[test]
    fn a_good_draft_is_a_flag() {
        let rule = RuleDraft {
            conditions: vec![ConditionDraft {
                attribute: "appVersion".into(),
                operator: "semverGreaterThan".into(),
                values: vec![json!("1.2.3")],
            }],
            variant: Some("b".into()),
            split: None,
        };
        let whole = Draft { rules: vec![rule], split: Some(vec![share("a", 1), share("b", 9_999)]), ..draft() };
        let flag = whole.checked(Timestamp(7)).unwrap();
        assert_eq!((flag.version, flag.updated_at, flag.rules.len()), (1, Timestamp(7), 1));
    }

    #[test]
    fn each_flaw_is_pointed_at() {
        let condition = |operator: &str, values: Vec<Value>| RuleDraft {
            conditions: vec![ConditionDraft { attribute: "a".into(), operator: operator.into(), values }],
            variant: Some("a".into()),
            split: None,
        };
        let with_rule = |rule| Draft { rules: vec![rule], ..draft() };
        let variants = |pairs: &[(&str, Value)]| Draft {
            variants: pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
            ..draft()
        };
        for (wrong, pointer) in [
            (Draft { kind: "text".into(), ..draft() }, "/kind"),
            (variants(&[("a", json!("A")), ("b", json!(1))]), "/variants/b"),
            (variants(&[("a", json!("A")), ("b", json!("B")), ("c d", json!("C"))]), "/variants"),
            (variants(&[("a", json!("A")), ("b", json!("x".repeat(VALUE_BYTES_MAX)))]), "/variants/b"),
            (Draft { default_variant: "c".into(), ..draft() }, "/defaultVariant"),
            (Draft { off_variant: String::new(), ..draft() }, "/offVariant"),
            (Draft { salt: "x".repeat(TEXT_BYTES_MAX + 1), ..draft() }, "/salt"),
            (Draft { split: Some(vec![]), ..draft() }, "/split"),
            (Draft { split: Some(vec![share("c", 1)]), ..draft() }, "/split/0/variant"),
            (Draft { split: Some(vec![share("a", 1), share("a", 1)]), ..draft() }, "/split/1/variant"),
            (Draft { split: Some(vec![share("a", -1)]), ..draft() }, "/split/0/basisPoints"),
            (Draft { split: Some(vec![share("a", 5_001), share("b", 5_000)]), ..draft() }, "/split"),
            (with_rule(RuleDraft { conditions: vec![], variant: None, split: None }), "/rules/0"),
            (with_rule(condition("matches", vec![json!("a")])), "/rules/0/conditions/0/operator"),
            (with_rule(condition("equals", vec![])), "/rules/0/conditions/0/values"),
            (with_rule(condition("exists", vec![json!(1)])), "/rules/0/conditions/0/values"),
            (with_rule(condition("greaterThan", vec![json!("1")])), "/rules/0/conditions/0/values/0"),
            (with_rule(condition("semverEquals", vec![json!("1.2")])), "/rules/0/conditions/0/values/0"),
            (Draft { from: Some("tomorrow".into()), ..draft() }, "/schedule/from"),
            (
                Draft {
                    from: Some("2026-11-20T00:00:00Z".into()),
                    until: Some("2026-11-20T00:00:00Z".into()),
                    ..draft()
                },
                "/schedule/until",
            ),
        ] {
            let flaws = wrong.checked(Timestamp(0)).unwrap_err();
            let pointers: Vec<&str> = flaws.iter().map(|flaw| flaw.pointer.as_str()).collect();
            assert_eq!(pointers, [pointer], "{flaws:?}");
        }
    }
}
