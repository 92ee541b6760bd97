//! Flagsmith's environment document as our flags: bytes in, flags out.
//!
//! A feature without a value is a boolean flag: whether it is enabled. One with a value is a flag of that value; while it is
//! disabled it has none, so that the caller's own default holds. Overrides of identities come first, then those of segments
//! by their priority. A variant is named after where it comes from: `control`, `variant-<id>`, `segment-<id>`, `identity`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use crate::domain::flag::condition::{Condition, Operator};
use crate::domain::flag::evaluate::TARGETING_KEY;
use crate::domain::flag::flagsmith::{self, Combination, FeatureState, Test};
use crate::domain::flag::{Flag, FlagSet, Kind, Rule, Serve, Share, Split, WHOLE};
use crate::domain::time::Timestamp;

/// Deepest nesting of a segment's rules.
const DEPTH_MAX: usize = 8;

#[derive(Deserialize)]
struct Environment {
    api_key: String,
    project: Project,
    feature_states: Vec<State>,
    #[serde(default)]
    identity_overrides: Vec<Identity>,
}

#[derive(Deserialize)]
struct Project {
    #[serde(default)]
    segments: Vec<Segment>,
}

#[derive(Deserialize)]
struct Segment {
    id: u64,
    #[serde(default)]
    rules: Vec<SegmentRule>,
    #[serde(default)]
    feature_states: Vec<State>,
}

#[derive(Deserialize)]
struct SegmentRule {
    #[serde(rename = "type")]
    combination: String,
    #[serde(default)]
    conditions: Vec<SegmentCondition>,
    #[serde(default)]
    rules: Vec<SegmentRule>,
}

#[derive(Deserialize)]
struct SegmentCondition {
    operator: String,
    #[serde(default)]
    property_: Option<String>,
    #[serde(default)]
    value: Value,
}

#[derive(Deserialize)]
struct Identity {
    identifier: String,
    #[serde(default)]
    identity_features: Vec<State>,
}

#[derive(Deserialize)]
struct State {
    feature: Feature,
    enabled: bool,
    #[serde(default)]
    feature_state_value: Value,
    #[serde(default)]
    django_id: Option<u64>,
    #[serde(default)]
    featurestate_uuid: Option<String>,
    #[serde(default)]
    feature_segment: Option<FeatureSegment>,
    #[serde(default)]
    multivariate_feature_state_values: Vec<Multivariate>,
}

#[derive(Deserialize)]
struct Feature {
    name: String,
}

#[derive(Deserialize)]
struct FeatureSegment {
    #[serde(default)]
    priority: Option<i64>,
}

#[derive(Deserialize)]
struct Multivariate {
    #[serde(default)]
    id: Option<u64>,
    #[serde(default)]
    mv_fs_value_uuid: Option<String>,
    percentage_allocation: f64,
    multivariate_feature_option: MultivariateOption,
}

#[derive(Deserialize)]
struct MultivariateOption {
    value: Value,
}

/// The flags of a document.
///
/// # Errors
/// What is wrong with it, without anything it says.
pub fn read(document: &str, now: Timestamp) -> Result<FlagSet, &'static str> {
    let environment: Environment = serde_json::from_str(document).map_err(|_| "not an environment document")?;
    let segments = environment.project.segments.iter().map(|one| Ok((one.id, segment(one, &environment)?)));
    let segments: Vec<(u64, Arc<flagsmith::Segment>)> = segments.collect::<Result<_, &'static str>>()?;
    let flags = environment.feature_states.iter().map(|state| flag(state, &environment, &segments, now));
    Ok(FlagSet::of(flags))
}

fn segment(segment: &Segment, environment: &Environment) -> Result<Arc<flagsmith::Segment>, &'static str> {
    let rules = segment.rules.iter().map(|one| rule(one, 0)).collect::<Result<_, _>>()?;
    let key = segment.id.to_string();
    Ok(Arc::new(flagsmith::Segment { key, environment: environment.api_key.clone(), rules }))
}

fn rule(one: &SegmentRule, depth: usize) -> Result<flagsmith::Rule, &'static str> {
    if depth >= DEPTH_MAX {
        return Err("a segment's rules are nested too deeply");
    }
    let combination = match one.combination.as_str() {
        "ALL" => Combination::All,
        "ANY" => Combination::Any,
        "NONE" => Combination::None,
        _ => return Err("a rule of a segment is of a type that is not known"),
    };
    let conditions = one.conditions.iter().map(|condition| flagsmith::Condition {
        property: condition.property_.clone().unwrap_or_default(),
        test: Test::from_name(&condition.operator),
        value: condition.value.as_str().map_or_else(|| condition.value.to_string(), str::to_owned),
    });
    let rules = one.rules.iter().map(|inner| rule(inner, depth + 1)).collect::<Result<_, _>>()?;
    Ok(flagsmith::Rule { combination, conditions: conditions.collect(), rules })
}

/// One feature, while its flag is put together.
struct Making<'a> {
    environment: &'a Environment,
    is_boolean: bool,
    variants: BTreeMap<String, Value>,
}

const OFF: &str = "off";
const ON: &str = "on";

fn flag(state: &State, environment: &Environment, segments: &[(u64, Arc<flagsmith::Segment>)], now: Timestamp) -> Flag {
    let is_boolean = is_without_value(&state.feature_state_value) && state.multivariate_feature_state_values.is_empty();
    let mut making = Making { environment, is_boolean, variants: BTreeMap::new() };
    let (default_variant, split) = match making.serve(state, "control") {
        Serve::Variant(variant) => (variant, None),
        Serve::Split(split) => ("control".to_owned(), Some(split)),
    };
    let name = state.feature.name.as_str();
    let mut rules = making.identities(name);
    rules.extend(making.segments(name, segments));
    let kind = match &state.feature_state_value {
        _ if is_boolean => Kind::Boolean,
        Value::Bool(_) => Kind::Boolean,
        Value::Number(_) => Kind::Number,
        _ => Kind::String,
    };
    Flag {
        key: name.to_owned(),
        description: String::new(),
        kind,
        variants: making.variants,
        default_variant,
        off_variant: OFF.into(),
        enabled: true,
        rules,
        split,
        from: None,
        until: None,
        salt: String::new(),
        overridable: false,
        version: 1,
        updated_at: now,
    }
}

fn is_without_value(value: &Value) -> bool {
    value.is_null() || value.as_str() == Some("")
}

impl Making<'_> {
    /// What a state serves; its variants begin with `name`.
    fn serve(&mut self, state: &State, name: &str) -> Serve {
        if self.is_boolean {
            let variant = if state.enabled { ON } else { OFF };
            self.variants.insert(variant.into(), Value::Bool(state.enabled));
            return Serve::Variant(variant.into());
        }
        if !state.enabled {
            return Serve::Variant(OFF.into());
        }
        if !is_without_value(&state.feature_state_value) {
            self.variants.insert(name.to_owned(), state.feature_state_value.clone());
        }
        if state.multivariate_feature_state_values.is_empty() {
            return Serve::Variant(name.to_owned());
        }
        let mut options: Vec<&Multivariate> = state.multivariate_feature_state_values.iter().collect();
        options.sort_by_key(|option| option.order());
        let mut shares = Vec::with_capacity(options.len() + 1);
        let mut left = WHOLE;
        for option in options {
            let prefix = if name == "control" { String::new() } else { format!("{name}-") };
            let variant = format!("{prefix}variant-{}", option.order());
            self.variants.insert(variant.clone(), option.multivariate_feature_option.value.clone());
            let basis_points = basis_points(option.percentage_allocation).min(left);
            left -= basis_points;
            shares.push(Share { variant, basis_points });
        }
        shares.push(Share { variant: name.to_owned(), basis_points: left });
        let key = state.django_id.map(|id| id.to_string()).or_else(|| state.featurestate_uuid.clone());
        let environment = self.environment.api_key.clone();
        let feature_state = Some(FeatureState { key: key.unwrap_or_default(), environment });
        Serve::Split(Split { shares, feature_state })
    }

    fn identities(&mut self, feature: &str) -> Vec<Rule> {
        let environment = self.environment;
        let mut rules = Vec::new();
        for identity in &environment.identity_overrides {
            for state in identity.identity_features.iter().filter(|state| state.feature.name == feature) {
                let serve = self.serve(state, &format!("identity-{}", rules.len() + 1));
                let values = vec![Value::String(identity.identifier.clone())];
                let condition = Condition { attribute: TARGETING_KEY.into(), operator: Operator::Equals, values };
                rules.push(Rule { conditions: vec![condition], serve, segment: None });
            }
        }
        rules
    }

    fn segments(&mut self, feature: &str, known: &[(u64, Arc<flagsmith::Segment>)]) -> Vec<Rule> {
        let environment = self.environment;
        let mut overrides: Vec<(i64, u64, &State)> = Vec::new();
        for segment in &environment.project.segments {
            for state in segment.feature_states.iter().filter(|state| state.feature.name == feature) {
                let priority = state.feature_segment.as_ref().and_then(|segment| segment.priority);
                overrides.push((priority.unwrap_or(i64::MAX), segment.id, state));
            }
        }
        overrides.sort_by_key(|(priority, id, _)| (*priority, *id));
        let rule = |(_, id, state): (i64, u64, &State)| {
            let segment = known.iter().find(|(known, _)| *known == id).map(|(_, segment)| segment.clone());
            Rule { conditions: Vec::new(), serve: self.serve(state, &format!("segment-{id}")), segment }
        };
        overrides.into_iter().map(rule).collect()
    }
}

impl Multivariate {
    /// Shares are dealt out in the order of their ids.
    fn order(&self) -> u128 {
        let uuid = || self.mv_fs_value_uuid.as_ref().and_then(|text| text.parse::<uuid::Uuid>().ok());
        self.id.map(u128::from).or_else(|| uuid().map(|uuid| uuid.as_u128())).unwrap_or(u128::MAX)
    }
}

/// Percent as hundredths of them; what is beyond either end is the end.
fn basis_points(percent: f64) -> u32 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 0 and 10000")]
    let points = (percent.clamp(0.0, 100.0) * 100.0).round() as u32;
    points.min(WHOLE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::flag::Layers;
    use crate::domain::flag::evaluate::{Context, evaluate};
    use serde_json::json;

    const DOCUMENT: &str = include_str!("../../../tests/fixtures/flagsmith/environment.json");
    /// What Flagsmith's own engine says of the document: per identity, per feature `[enabled, value]`.
    const EXPECTED: &str = include_str!("../../../tests/fixtures/flagsmith/expected.json");

    /// As their clients tell a feature: whether it is enabled, and its value while it is.
    fn told(flags: &FlagSet, feature: &str, context: &Context) -> (bool, Value) {
        let layers = Layers { platform: flags, tenant: None };
        let said = evaluate(layers, feature, context, Timestamp(0)).unwrap();
        match (said.flag.variants.contains_key(ON) || said.flag.variants.contains_key(OFF), said.value) {
            (true, value) => (value == Some(&Value::Bool(true)), Value::Null),
            (false, Some(value)) => (true, value.clone()),
            (false, None) => (said.variant != OFF, Value::Null),
        }
    }

    #[test]
    fn every_identity_gets_what_flagsmith_s_own_engine_gives_it() {
        let flags = read(DOCUMENT, Timestamp(0)).unwrap();
        let expected: Vec<Value> = serde_json::from_str(EXPECTED).unwrap();
        assert!(expected.len() >= 200, "{}", expected.len());
        let mut seen = std::collections::BTreeSet::new();
        for row in &expected {
            let identifier = row["identifier"].as_str().unwrap();
            let context = Context::of(Some(identifier.into()), row["traits"].as_object().unwrap().clone());
            for (feature, theirs) in row["flags"].as_object().unwrap() {
                let enabled = theirs[0].as_bool().unwrap();
                let value = if enabled { theirs[1].clone() } else { Value::Null };
                assert_eq!(told(&flags, feature, &context), (enabled, value.clone()), "{identifier} {feature}");
                seen.insert(format!("{feature} {enabled} {value}"));
            }
        }
        // The document is of use only where its features come out in more than one way.
        assert!(seen.len() >= 12, "{seen:?}");
    }

    #[test]
    fn whoever_is_nobody_gets_the_environment_s_own() {
        let flags = read(DOCUMENT, Timestamp(0)).unwrap();
        let nobody = Context::of(None, json!({"plan": "pro"}).as_object().unwrap().clone());
        assert_eq!(told(&flags, "checkout_colour", &nobody), (true, json!("grey")));
        assert_eq!(told(&flags, "beta_banner", &nobody), (false, Value::Null));
    }

    #[test]
    fn what_is_no_document_is_refused() {
        for text in ["", "{}", "[]", "{\"api_key\":\"x\",\"project\":{},\"feature_states\":{}}"] {
            assert!(read(text, Timestamp(0)).is_err(), "{text}");
        }
        let other = DOCUMENT.replace("\"ANY\"", "\"SOME\"");
        assert_eq!(read(&other, Timestamp(0)).unwrap_err(), "a rule of a segment is of a type that is not known");
    }
}
