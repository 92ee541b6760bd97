//! What a flag says to whom, now.
//!
//! **Who falls where.** A subject's bucket is a number from 0 to 9,999: the first eight bytes, as a big-endian integer, of
//! SHA-256 over the flag's key, a zero byte, its salt, a zero byte and the targeting key, all in UTF-8; that integer modulo
//! 10,000. Shares take the buckets from 0 on in their order, so whoever is in the first share stays in it when it grows, and
//! a key and salt that stay deal out the same on every machine and after every restart.

use std::borrow::Cow;

use aws_lc_rs::digest;
use serde_json::{Map, Value};

use super::{Flag, Layers, Serve, Split, WHOLE};
use crate::domain::time::Timestamp;

/// The attribute that is the subject itself.
pub const TARGETING_KEY: &str = "targetingKey";

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Context {
    /// Whom shares are dealt to; empty is as good as none.
    pub targeting_key: Option<String>,
    pub attributes: Map<String, Value>,
}

impl Context {
    #[must_use]
    pub fn of(targeting_key: Option<String>, attributes: Map<String, Value>) -> Context {
        Context { targeting_key: targeting_key.filter(|key| !key.is_empty()), attributes }
    }

    /// One attribute; the targeting key is one.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<Cow<'_, Value>> {
        match (&self.targeting_key, name) {
            (Some(key), TARGETING_KEY) => Some(Cow::Owned(Value::String(key.clone()))),
            _ => self.attributes.get(name).map(Cow::Borrowed),
        }
    }
}

/// Why a flag said what it said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It says the same to everybody.
    Static,
    TargetingMatch,
    Split,
    /// Off, by hand or by its schedule.
    Disabled,
    /// No rule held.
    Default,
}

impl Reason {
    /// As OpenFeature calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Reason::Static => "STATIC",
            Reason::TargetingMatch => "TARGETING_MATCH",
            Reason::Split => "SPLIT",
            Reason::Disabled => "DISABLED",
            Reason::Default => "DEFAULT",
        }
    }
}

/// What a flag said.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation<'a> {
    pub flag: &'a Flag,
    /// `None`: whatever the caller's code has as its default.
    pub value: Option<&'a Value>,
    pub variant: &'a str,
    pub reason: Reason,
}

/// Why a flag said nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    #[error("there is no such flag")]
    FlagNotFound,
    /// A share is to be dealt, and nobody is there to get it.
    #[error("the flag is split by subject, and the context has no targetingKey")]
    TargetingKeyMissing,
}

/// What the flag with this key says.
///
/// # Errors
/// [`Unanswered`].
pub fn evaluate<'a>(
    layers: Layers<'a>,
    key: &str,
    context: &Context,
    now: Timestamp,
) -> Result<Evaluation<'a>, Unanswered> {
    layers.get(key).ok_or(Unanswered::FlagNotFound)?.evaluate(context, now)
}

impl Flag {
    /// Is it on at `now`?
    #[must_use]
    pub fn is_on(&self, now: Timestamp) -> bool {
        self.enabled && self.from.is_none_or(|from| from <= now) && self.until.is_none_or(|until| now < until)
    }

    /// What it says.
    ///
    /// # Errors
    /// [`Unanswered::TargetingKeyMissing`].
    pub fn evaluate(&self, context: &Context, now: Timestamp) -> Result<Evaluation<'_>, Unanswered> {
        if !self.is_on(now) {
            return Ok(self.say(&self.off_variant, Reason::Disabled));
        }
        for rule in &self.rules {
            let holds = rule.conditions.iter().all(|condition| condition.holds(context))
                && rule.segment.as_ref().is_none_or(|segment| segment.holds(context));
            if !holds {
                continue;
            }
            return match &rule.serve {
                Serve::Variant(variant) => Ok(self.say(variant, Reason::TargetingMatch)),
                Serve::Split(split) => self.deal(split, context),
            };
        }
        match &self.split {
            Some(split) => self.deal(split, context),
            None if self.rules.is_empty() => Ok(self.say(&self.default_variant, Reason::Static)),
            None => Ok(self.say(&self.default_variant, Reason::Default)),
        }
    }

    fn deal<'a>(&'a self, split: &'a Split, context: &Context) -> Result<Evaluation<'a>, Unanswered> {
        let Some(key) = context.targeting_key.as_deref() else {
            return match split.feature_state {
                // Flagsmith serves what it has for nobody in particular.
                Some(_) => Ok(self.say(&self.default_variant, Reason::Default)),
                None => Err(Unanswered::TargetingKeyMissing),
            };
        };
        let is_below: Box<dyn Fn(u32) -> bool> = match &split.feature_state {
            None => {
                let bucket = bucket(&self.key, &self.salt, key);
                Box::new(move |end| bucket < end)
            }
            Some(feature_state) => {
                let percent = feature_state.percent(key);
                Box::new(move |end| percent < f64::from(end) / 100.0)
            }
        };
        let mut end = 0_u32;
        for share in &split.shares {
            end = end.saturating_add(share.basis_points);
            if is_below(end) {
                return Ok(self.say(&share.variant, Reason::Split));
            }
        }
        Ok(self.say(&self.default_variant, Reason::Split))
    }

    fn say<'a>(&'a self, variant: &'a str, reason: Reason) -> Evaluation<'a> {
        Evaluation { flag: self, value: self.variants.get(variant), variant, reason }
    }
}

/// A subject's bucket, from 0 to 9,999.
#[must_use]
pub fn bucket(flag: &str, salt: &str, targeting_key: &str) -> u32 {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [flag.as_bytes(), &[0], salt.as_bytes(), &[0], targeting_key.as_bytes()] {
        context.update(part);
    }
    let mut first = [0; 8];
    first.copy_from_slice(&context.finish().as_ref()[..8]);
    u32::try_from(u64::from_be_bytes(first) % u64::from(WHOLE)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::condition::{Condition, Operator};
    use super::super::draft::boolean;
    use super::super::{Rule, Share};
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const NOW: Timestamp = Timestamp(1_795_189_032_000_000);

    fn split(basis_points: u32) -> Split {
        Split::of(vec![Share { variant: "on".into(), basis_points }])
    }

    fn rolled(basis_points: u32) -> Flag {
        Flag { default_variant: "off".into(), split: Some(split(basis_points)), ..boolean("checkout") }
    }

    fn who(key: &str) -> Context {
        Context::of(Some(key.to_owned()), Map::new())
    }

    fn said(flag: &Flag, context: &Context) -> (Option<Value>, &'static str) {
        let evaluation = flag.evaluate(context, NOW).unwrap();
        (evaluation.value.cloned(), evaluation.reason.name())
    }

    /// Written down once: these must never change, or everybody is dealt out anew.
    #[test]
    fn buckets_are_what_the_documentation_says() {
        for (flag, salt, key, expected) in [
            ("checkout", "", "ada", EXPECTED[0]),
            ("checkout", "2", "ada", EXPECTED[1]),
            ("a", "b", "Zoë", EXPECTED[2]),
        ] {
            assert_eq!(bucket(flag, salt, key), expected, "{flag} {salt} {key}");
        }
    }
    const EXPECTED: [u32; 3] = [3_307, 5_964, 4_429];

    #[test]
    fn a_hundred_thousand_subjects_are_dealt_out_evenly() {
        let mut tenths = [0_i64; 10];
        for number in 0..100_000 {
            let bucket = bucket("checkout", "", &format!("user-{number}"));
            tenths[usize::try_from(bucket / 1_000).unwrap()] += 1;
        }
        // Five standard deviations of a fair draw are 474.
        assert!(tenths.iter().all(|count| (count - 10_000).abs() < 475), "{tenths:?}");
        for (basis_points, expected) in [(100, 1_000_i64), (2_500, 25_000), (9_900, 99_000)] {
            let flag = rolled(basis_points);
            let on = (0..100_000).filter(|number| said(&flag, &who(&format!("user-{number}"))).0 == Some(json!(true)));
            let off_by = (i64::try_from(on.count()).unwrap() - expected).abs();
            assert!(off_by < 700, "{basis_points}: off by {off_by}");
        }
    }

    proptest! {
        #[test]
        fn a_subject_stays_where_it_is_and_a_larger_share_only_adds(
            key in ".{1,40}", smaller in 0_u32..=10_000, larger in 0_u32..=10_000,
        ) {
            let (smaller, larger) = (smaller.min(larger), smaller.max(larger));
            let on = |basis_points| said(&rolled(basis_points), &who(&key)).0 == Some(json!(true));
            prop_assert_eq!(on(smaller), on(smaller));
            prop_assert!(!on(smaller) || on(larger));
            prop_assert!(on(10_000) && !on(0));
        }
    }

    #[test]
    fn the_first_rule_that_holds_decides() {
        let plan = |value: &str, serve| Rule {
            conditions: vec![Condition {
                attribute: "plan".into(),
                operator: Operator::Equals,
                values: vec![json!(value)],
            }],
            serve,
            segment: None,
        };
        let rules = vec![
            plan("pro", Serve::Variant("on".into())),
            plan("pro", Serve::Variant("off".into())),
            plan("trial", Serve::Split(split(10_000))),
        ];
        let flag = Flag { rules, default_variant: "off".into(), ..boolean("checkout") };
        let on_plan = |plan: &str| Context::of(Some("ada".into()), json!({"plan": plan}).as_object().unwrap().clone());
        assert_eq!(said(&flag, &on_plan("pro")), (Some(json!(true)), "TARGETING_MATCH"));
        assert_eq!(said(&flag, &on_plan("trial")), (Some(json!(true)), "SPLIT"));
        assert_eq!(said(&flag, &on_plan("free")), (Some(json!(false)), "DEFAULT"));
        let nobody = Context::of(Some(String::new()), json!({"plan": "trial"}).as_object().unwrap().clone());
        assert_eq!(flag.evaluate(&nobody, NOW), Err(Unanswered::TargetingKeyMissing));
        assert_eq!(said(&boolean("checkout"), &Context::default()), (Some(json!(true)), "STATIC"));
    }

    #[test]
    fn a_schedule_is_half_open() {
        let between = |from: i64, until: i64| Flag {
            from: Some(NOW.plus_micros(from)),
            until: Some(NOW.plus_micros(until)),
            ..boolean("sale")
        };
        for (flag, on) in [(between(0, 1), true), (between(1, 2), false), (between(-1, 0), false)] {
            let expected = if on { (Some(json!(true)), "STATIC") } else { (Some(json!(false)), "DISABLED") };
            assert_eq!(said(&flag, &Context::default()), expected);
        }
        let off = Flag { enabled: false, off_variant: "nothing".into(), ..boolean("sale") };
        assert_eq!(said(&off, &Context::default()), (None, "DISABLED"));
    }

    #[test]
    fn a_flag_that_is_not_there_is_told_apart() {
        let platform = super::super::FlagSet::default();
        let layers = Layers { platform: &platform, tenant: None };
        assert_eq!(evaluate(layers, "nowhere", &Context::default(), NOW), Err(Unanswered::FlagNotFound));
    }
}
