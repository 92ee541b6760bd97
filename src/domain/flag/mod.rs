//! Feature flags: what each says, and to whom.
//!
//! A [`Flag`] is data, never an expression: conditions compare one attribute with values, shares are in basis points, and a
//! subject falls into the same share for as long as the flag has its key and salt. [`evaluate`] decides, [`condition`]
//! compares, [`flagsmith`] knows how Flagsmith compares and deals out shares, so that a document of theirs says the same here
//! as it does to their own clients.

pub mod change;
pub mod condition;
pub mod draft;
pub mod evaluate;
pub mod flagsmith;
pub mod ledger;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::time::Timestamp;
use condition::Condition;

/// Flags of one tenant, or of the platform.
pub const FLAGS_MAX: usize = 500;
pub const VARIANTS_MAX: usize = 20;
pub const RULES_MAX: usize = 50;
pub const CONDITIONS_MAX: usize = 20;
pub const VALUES_MAX: usize = 1_000;
/// Longest key of a flag, name of a variant or of an attribute, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest text that a condition compares with, and longest description and salt, in bytes.
pub const TEXT_BYTES_MAX: usize = 1_024;
/// Longest variant's value, as JSON in bytes.
pub const VALUE_BYTES_MAX: usize = 8 * 1_024;
/// A whole, in basis points.
pub const WHOLE: u32 = 10_000;

/// What kind of value every variant of a flag has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    Boolean,
    String,
    Number,
    Object,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Boolean, Kind::String, Kind::Number, Kind::Object];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Boolean => "boolean",
            Kind::String => "string",
            Kind::Number => "number",
            Kind::Object => "object",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Is `value` of this kind?
    #[must_use]
    pub fn holds(self, value: &Value) -> bool {
        match self {
            Kind::Boolean => value.is_boolean(),
            Kind::String => value.is_string(),
            Kind::Number => value.is_number(),
            Kind::Object => value.is_object(),
        }
    }
}

/// One flag.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flag {
    pub key: String,
    pub description: String,
    pub kind: Kind,
    pub variants: BTreeMap<String, Value>,
    /// What is served when no rule holds and nothing is split.
    pub default_variant: String,
    /// What is served while the flag is off. A name without a variant serves no value: the caller's own default holds.
    pub off_variant: String,
    pub enabled: bool,
    /// The first that holds decides.
    pub rules: Vec<Rule>,
    /// How everybody is split for whom no rule holds.
    pub split: Option<Split>,
    /// On from here.
    pub from: Option<Timestamp>,
    /// On until before here.
    pub until: Option<Timestamp>,
    /// Another salt deals everybody out anew.
    pub salt: String,
    /// Of the platform's: may a tenant have a flag of its own with this key?
    pub overridable: bool,
    /// Counts the changes, from 1.
    pub version: i64,
    pub updated_at: Timestamp,
}

/// Whom something is served to: every condition must hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    pub conditions: Vec<Condition>,
    #[serde(flatten)]
    pub serve: Serve,
    /// Of a rule of Flagsmith's, which must hold, too.
    #[serde(skip)]
    pub segment: Option<Arc<flagsmith::Segment>>,
}

/// What a rule serves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Serve {
    Variant(String),
    Split(Split),
}

/// Shares of subjects, in order. Who falls into none gets the default variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Split {
    pub shares: Vec<Share>,
    /// How Flagsmith names what is split: its own way of dealing out holds then.
    #[serde(skip)]
    pub feature_state: Option<flagsmith::FeatureState>,
}

impl Split {
    #[must_use]
    pub fn of(shares: Vec<Share>) -> Split {
        Split { shares, feature_state: None }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    pub variant: String,
    /// Hundredths of a percent.
    pub basis_points: u32,
}

/// Flags by their keys.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FlagSet {
    flags: BTreeMap<String, Arc<Flag>>,
}

impl FlagSet {
    #[must_use]
    pub fn of(flags: impl IntoIterator<Item = Flag>) -> FlagSet {
        FlagSet { flags: flags.into_iter().map(|flag| (flag.key.clone(), Arc::new(flag))).collect() }
    }

    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Arc<Flag>> {
        self.flags.get(key)
    }

    /// In the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Flag>> {
        self.flags.values()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.flags.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flags.is_empty()
    }

    /// The same with this flag in it.
    #[must_use]
    pub fn with(&self, flag: Flag) -> FlagSet {
        let mut flags = self.flags.clone();
        flags.insert(flag.key.clone(), Arc::new(flag));
        FlagSet { flags }
    }

    /// The same without a flag of this key.
    #[must_use]
    pub fn without(&self, key: &str) -> FlagSet {
        let mut flags = self.flags.clone();
        flags.remove(key);
        FlagSet { flags }
    }
}

/// Where the platform's flags come from: its own store, or another service. Asked in a request's path, so it answers from
/// memory.
pub trait FlagSource: Send + Sync {
    /// A word for people and for metrics.
    fn name(&self) -> &'static str;

    /// The flags as they were last known.
    fn flags(&self) -> Arc<FlagSet>;
}

/// The platform's flags and over them a tenant's.
#[derive(Debug, Clone, Copy)]
pub struct Layers<'a> {
    pub platform: &'a FlagSet,
    pub tenant: Option<&'a FlagSet>,
}

impl<'a> Layers<'a> {
    /// The flag that counts: the tenant's, unless the platform has one of this key that may not be overridden.
    #[must_use]
    pub fn get(self, key: &str) -> Option<&'a Arc<Flag>> {
        let platform = self.platform.get(key);
        let own = self.tenant.and_then(|flags| flags.get(key));
        match (platform, own) {
            (Some(platform), Some(own)) if platform.overridable => Some(own),
            (Some(platform), _) => Some(platform),
            (None, own) => own,
        }
    }

    /// Every flag that counts, in the order of their keys.
    #[must_use]
    pub fn all(self) -> Vec<&'a Arc<Flag>> {
        let mut keys: Vec<&str> = self.platform.flags.keys().map(String::as_str).collect();
        keys.extend(self.tenant.into_iter().flat_map(|flags| flags.flags.keys().map(String::as_str)));
        keys.sort_unstable();
        keys.dedup();
        keys.into_iter().filter_map(|key| self.get(key)).collect()
    }
}

/// Is this a key of a flag, or a name of a variant: letters, digits, `.`, `_`, `-`?
#[must_use]
pub fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag(key: &str, overridable: bool) -> Flag {
        Flag { overridable, ..draft::boolean(key) }
    }

    #[test]
    fn a_tenant_overrides_what_the_platform_lets_it() {
        let platform = FlagSet::of([flag("free", true), flag("fixed", false), flag("only-platform", false)]);
        let own = |key| Flag { description: "own".into(), ..flag(key, false) };
        let tenant = FlagSet::of([own("free"), own("fixed"), own("only-tenant")]);
        let layers = Layers { platform: &platform, tenant: Some(&tenant) };
        let described: Vec<(&str, &str)> =
            layers.all().into_iter().map(|flag| (flag.key.as_str(), flag.description.as_str())).collect();
        assert_eq!(described, [("fixed", ""), ("free", "own"), ("only-platform", ""), ("only-tenant", "own")]);
        let alone = Layers { platform: &platform, tenant: None };
        assert_eq!((alone.all().len(), alone.get("only-tenant")), (3, None));
    }

    #[test]
    fn a_flag_is_stored_as_it_is_spoken_of() {
        let share = |variant: &str, basis_points| Share { variant: variant.into(), basis_points };
        let condition = Condition {
            attribute: "plan".into(),
            operator: condition::Operator::In,
            values: vec!["pro".into(), "team".into()],
        };
        let rules = vec![
            Rule { conditions: vec![condition], serve: Serve::Variant("on".into()), segment: None },
            Rule { conditions: vec![], serve: Serve::Split(Split::of(vec![share("on", 2_500)])), segment: None },
        ];
        let whole = Flag { rules, from: Some(Timestamp(1_000_000)), ..draft::boolean("new-checkout") };
        let text = serde_json::to_value(&whole).unwrap();
        let rules = serde_json::json!([
            {"conditions": [{"attribute": "plan", "operator": "in", "values": ["pro", "team"]}], "variant": "on"},
            {"conditions": [], "split": [{"variant": "on", "basisPoints": 2_500}]},
        ]);
        assert_eq!(text["rules"], rules);
        assert_eq!(serde_json::from_value::<Flag>(text).unwrap(), whole);
    }
}
