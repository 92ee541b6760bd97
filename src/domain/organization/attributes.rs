//! What else is known of a person or a group: a bounded object of scalars and lists of scalars, for conditions to look at.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Flaw;

/// Attributes of one person or group.
pub const ATTRIBUTES_MAX: usize = 50;
/// Bytes of an attribute's name.
pub const NAME_BYTES_MAX: usize = 64;
/// Bytes of a text.
pub const TEXT_BYTES_MAX: usize = 256;
/// Items of a list.
pub const ITEMS_MAX: usize = 50;

/// A value without parts. Numbers are whole: a comparison of fractions is nobody's access rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    Truth(bool),
    Whole(i64),
    Text(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Attribute {
    One(Scalar),
    Many(Vec<Scalar>),
}

/// Named values, at most [`ATTRIBUTES_MAX`], sorted by name. A list: most people have few, and a tree takes room for many.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, Attribute>", into = "BTreeMap<String, Attribute>")]
pub struct Attributes(Vec<(String, Attribute)>);

impl From<BTreeMap<String, Attribute>> for Attributes {
    fn from(named: BTreeMap<String, Attribute>) -> Attributes {
        Attributes(named.into_iter().collect())
    }
}

impl From<Attributes> for BTreeMap<String, Attribute> {
    fn from(attributes: Attributes) -> BTreeMap<String, Attribute> {
        attributes.0.into_iter().collect()
    }
}

/// An RFC 7396 merge patch of attributes: `None` takes one away.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AttributesPatch(pub BTreeMap<String, Option<Attribute>>);

impl Attributes {
    /// Reads a JSON object.
    ///
    /// # Errors
    /// Every value that is no scalar and no list of scalars. How much there may be is for [`flaws`](Attributes::flaws).
    pub fn read(object: &Map<String, Value>) -> Result<Attributes, Vec<Flaw>> {
        let patch = AttributesPatch::read(object)?;
        let mut flaws = Vec::new();
        let mut attributes = BTreeMap::new();
        for (name, attribute) in patch.0 {
            match attribute {
                Some(attribute) => drop(attributes.insert(name, attribute)),
                None => flaws.push(flaw(&name, "must be a scalar or a list of scalars, not null")),
            }
        }
        if flaws.is_empty() { Ok(attributes.into()) } else { Err(flaws) }
    }

    /// What is too much of it.
    #[must_use]
    pub fn flaws(&self) -> Vec<Flaw> {
        let mut flaws = Vec::new();
        if self.0.len() > ATTRIBUTES_MAX {
            flaws.push(Flaw::new("/attributes", format!("must be at most {ATTRIBUTES_MAX}")));
        }
        for (name, attribute) in &self.0 {
            if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
                flaws.push(flaw(
                    name,
                    &format!("a name must be 1 to {NAME_BYTES_MAX} bytes without control characters"),
                ));
            }
            let scalars = match attribute {
                Attribute::One(scalar) => std::slice::from_ref(scalar),
                Attribute::Many(scalars) => scalars.as_slice(),
            };
            if scalars.len() > ITEMS_MAX {
                flaws.push(flaw(name, &format!("must have at most {ITEMS_MAX} items")));
            }
            if scalars.iter().any(|scalar| matches!(scalar, Scalar::Text(text) if text.len() > TEXT_BYTES_MAX)) {
                flaws.push(flaw(name, &format!("a text must be at most {TEXT_BYTES_MAX} bytes")));
            }
        }
        flaws
    }

    #[must_use]
    pub fn patched(&self, patch: &AttributesPatch) -> Attributes {
        let mut attributes = BTreeMap::from(self.clone());
        for (name, attribute) in &patch.0 {
            match attribute {
                Some(attribute) => drop(attributes.insert(name.clone(), attribute.clone())),
                None => drop(attributes.remove(name)),
            }
        }
        attributes.into()
    }

    /// The value of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Attribute> {
        let found = self.0.binary_search_by(|(known, _)| known.as_str().cmp(name)).ok()?;
        self.0.get(found).map(|(_, attribute)| attribute)
    }

    /// As a JSON object.
    #[must_use]
    pub fn object(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(object)) => object,
            _ => Map::new(),
        }
    }
}

impl AttributesPatch {
    /// # Errors
    /// As [`Attributes::read`], but `null` is a value.
    pub fn read(object: &Map<String, Value>) -> Result<AttributesPatch, Vec<Flaw>> {
        let mut flaws = Vec::new();
        let mut patch = BTreeMap::new();
        for (name, value) in object {
            match Attribute::read(value) {
                _ if value.is_null() => drop(patch.insert(name.clone(), None)),
                Some(attribute) => drop(patch.insert(name.clone(), Some(attribute))),
                None => flaws.push(flaw(name, "must be a text, a whole number, a boolean, or a list of these")),
            }
        }
        if flaws.is_empty() { Ok(AttributesPatch(patch)) } else { Err(flaws) }
    }
}

impl Attribute {
    fn read(value: &Value) -> Option<Attribute> {
        match value {
            Value::Array(items) => items.iter().map(Scalar::read).collect::<Option<_>>().map(Attribute::Many),
            _ => Scalar::read(value).map(Attribute::One),
        }
    }
}

impl Scalar {
    fn read(value: &Value) -> Option<Scalar> {
        match value {
            Value::Bool(truth) => Some(Scalar::Truth(*truth)),
            Value::Number(number) => number.as_i64().map(Scalar::Whole),
            Value::String(text) => Some(Scalar::Text(text.clone())),
            _ => None,
        }
    }
}

fn flaw(name: &str, message: &str) -> Flaw {
    Flaw::new(format!("/attributes/{}", name.replace('~', "~0").replace('/', "~1")), message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Attributes, Vec<String>> {
        let object = value.as_object().unwrap();
        Attributes::read(object).map_err(|flaws| flaws.into_iter().map(|flaw| flaw.pointer).collect())
    }

    #[test]
    fn scalars_and_lists_of_scalars_are_attributes_and_survive_storage() {
        let object = json!({"level": 3, "cleared": true, "site": "Köln", "teams": ["a", 7, false], "none": []});
        let attributes = read(object.clone()).unwrap();
        assert_eq!(Value::Object(attributes.object()), object);
        let stored = serde_json::to_string(&attributes).unwrap();
        assert_eq!(serde_json::from_str::<Attributes>(&stored).unwrap(), attributes);
        assert_eq!(attributes.get("level"), Some(&Attribute::One(Scalar::Whole(3))));
        assert_eq!(attributes.get("leve"), None);
        assert!(attributes.flaws().is_empty());
    }

    #[test]
    fn anything_deeper_is_refused_by_its_pointer() {
        for (value, pointer) in [
            (json!({"a": {"b": 1}}), "/attributes/a"),
            (json!({"a": [[1]]}), "/attributes/a"),
            (json!({"a": null}), "/attributes/a"),
            (json!({"a/b~": 1.5}), "/attributes/a~1b~0"),
            (json!({"a": 99_999_999_999_999_999_999.0}), "/attributes/a"),
            (json!({"a": ["x", null]}), "/attributes/a"),
        ] {
            assert_eq!(read(value.clone()), Err(vec![pointer.to_owned()]), "{value}");
        }
    }

    #[test]
    fn every_bound_is_named() {
        let text = |bytes: usize| "x".repeat(bytes);
        let many = |count: usize| (0..count).map(|at| (at.to_string(), json!(at))).collect::<Map<_, _>>();
        for (value, flaws) in [
            (json!({"a": text(TEXT_BYTES_MAX)}), 0),
            (json!({"a": text(TEXT_BYTES_MAX + 1)}), 1),
            (json!({"a": vec![1; ITEMS_MAX]}), 0),
            (json!({"a": vec![1; ITEMS_MAX + 1]}), 1),
            (json!({text(NAME_BYTES_MAX): 1}), 0),
            (json!({text(NAME_BYTES_MAX + 1): 1}), 1),
            (json!({"": 1}), 1),
            (Value::Object(many(ATTRIBUTES_MAX)), 0),
            (Value::Object(many(ATTRIBUTES_MAX + 1)), 1),
        ] {
            assert_eq!(read(value.clone()).unwrap().flaws().len(), flaws, "{value}");
        }
    }

    #[test]
    fn a_patch_sets_keeps_and_takes_away() {
        let before = read(json!({"kept": 1, "changed": 2, "gone": 3})).unwrap();
        let patch = json!({"changed": "two", "gone": null, "new": [1]});
        let after = before.patched(&AttributesPatch::read(patch.as_object().unwrap()).unwrap());
        assert_eq!(Value::Object(after.object()), json!({"kept": 1, "changed": "two", "new": [1]}));
    }
}
