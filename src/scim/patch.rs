//! PATCH (RFC 7644, 3.5.2), in the shapes that clients send it.
//!
//! What the standard leaves open or clients do otherwise: operations in whatever case; no path and dotted keys; an item that
//! a filter does not find is made from what the filter says (Entra ID); members taken away by a list of values (Entra ID);
//! attributes that are not kept, and those that are ours to say when they come along without a path (Okta), are forgotten.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::filter::{AttributePath, Filter};
use super::{Document, Kind, Resource, Values, Wrong, member, part, truth};

/// Operations of one request.
pub const OPERATIONS_MAX: usize = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Add,
    Replace,
    Remove,
}

/// What an operation is about.
struct Target {
    path: AttributePath,
    filter: Option<Filter>,
}

/// Applies every operation of a request, in their order.
///
/// # Errors
/// [`Wrong`]; the document is then of no use.
pub fn apply(document: &mut Document, body: &Document, resource: Resource) -> Result<(), Wrong> {
    let syntax = |detail: &str| Wrong::new(Kind::InvalidSyntax, detail);
    let Some(Value::Array(operations)) = member(body, "Operations") else {
        return Err(syntax("Operations must be a list"));
    };
    if operations.is_empty() || operations.len() > OPERATIONS_MAX {
        return Err(syntax("there must be 1 to 1000 operations"));
    }
    for operation in operations {
        let operation = operation.as_object().ok_or_else(|| syntax("an operation must be an object"))?;
        let verb = match member(operation, "op").and_then(Value::as_str).map(str::to_ascii_lowercase).as_deref() {
            Some("add") => Verb::Add,
            Some("replace") => Verb::Replace,
            Some("remove") => Verb::Remove,
            _ => return Err(syntax("op must be add, replace or remove")),
        };
        let value = member(operation, "value");
        match member(operation, "path") {
            None | Some(Value::Null) => whole(document, verb, value, resource)?,
            Some(Value::String(path)) => one(document, verb, &target(path)?, value, resource, true)?,
            Some(_) => return Err(Wrong::new(Kind::InvalidPath, "a path must be a text")),
        }
    }
    Ok(())
}

/// Without a path: each key of the value is one.
fn whole(document: &mut Document, verb: Verb, value: Option<&Value>, resource: Resource) -> Result<(), Wrong> {
    if verb == Verb::Remove {
        return Err(Wrong::new(Kind::NoTarget, "remove needs a path"));
    }
    let Some(Value::Object(values)) = value else {
        return Err(Wrong::new(Kind::InvalidValue, "without a path the value must be an object"));
    };
    for (key, value) in values {
        one(document, verb, &target(key)?, Some(value), resource, false)?;
    }
    Ok(())
}

fn target(text: &str) -> Result<Target, Wrong> {
    let invalid = |detail: &str| Wrong::new(Kind::InvalidPath, detail);
    let Some((attribute, rest)) = text.split_once('[') else {
        let is_name = |letter: char| letter.is_ascii_alphanumeric() || "_-$:.".contains(letter);
        if text.is_empty() || !text.chars().all(is_name) {
            return Err(invalid("a path is attribute, attribute.part, attribute[filter] or attribute[filter].part"));
        }
        return Ok(Target { path: AttributePath::read(text), filter: None });
    };
    let (filter, after) = rest.rsplit_once(']').ok_or_else(|| invalid("] is missing"))?;
    let sub = match after {
        "" => None,
        after => {
            Some(after.strip_prefix('.').filter(|sub| !sub.is_empty()).ok_or_else(|| invalid("after ] comes .part"))?)
        }
    };
    let mut path = AttributePath::read(attribute);
    if path.sub.is_some() || path.attribute.is_empty() {
        return Err(invalid("a filter follows an attribute"));
    }
    path.sub = sub.map(str::to_owned);
    let filter = Filter::parse(filter).map_err(|wrong| Wrong { kind: Kind::InvalidPath, ..wrong })?;
    Ok(Target { path, filter: Some(filter) })
}

fn one(
    document: &mut Document,
    verb: Verb,
    target: &Target,
    value: Option<&Value>,
    resource: Resource,
    is_named: bool,
) -> Result<(), Wrong> {
    let Some((name, values)) = resource.attribute(&target.path.attribute) else { return Ok(()) };
    let value = match (verb, value) {
        (Verb::Remove, value) => value,
        (_, Some(value)) => Some(value),
        (_, None) => return Err(Wrong::new(Kind::InvalidValue, "add and replace need a value")),
    };
    match values {
        Values::ReadOnly if is_named => {
            Err(Wrong::new(Kind::Mutability, format!("{name} is not the client's to change")))
        }
        Values::ReadOnly => Ok(()),
        Values::Many => many(document, name, verb, target, value),
        Values::One | Values::Complex if target.filter.is_some() => {
            Err(Wrong::new(Kind::InvalidPath, format!("{name} is no list")))
        }
        Values::One if target.path.sub.is_some() => Err(Wrong::new(Kind::InvalidPath, format!("{name} has no parts"))),
        Values::One => {
            match value.filter(|value| verb != Verb::Remove && !value.is_null()) {
                Some(value) => document.insert(name.to_owned(), value.clone()),
                None => document.remove(name),
            };
            Ok(())
        }
        Values::Complex => complex(document, name, verb, target.path.sub.as_deref(), value),
    }
}

fn complex(
    document: &mut Document,
    name: &str,
    verb: Verb,
    sub: Option<&str>,
    value: Option<&Value>,
) -> Result<(), Wrong> {
    let Some(value) = value.filter(|value| verb != Verb::Remove && !value.is_null()) else {
        match (sub, document.get_mut(name)) {
            (Some(sub), Some(Value::Object(object))) => drop(object.remove(part(sub))),
            (Some(_), _) => {}
            (None, _) => drop(document.remove(name)),
        }
        return Ok(());
    };
    let object = document.entry(name).or_insert_with(|| json!({}));
    let Value::Object(object) = object else { return Ok(()) };
    match (sub, value) {
        (Some(sub), value) => drop(object.insert(part(sub).to_owned(), value.clone())),
        (None, Value::Object(given)) => {
            object.extend(given.iter().map(|(key, value)| (part(key).to_owned(), value.clone())));
        }
        (None, _) => return Err(Wrong::new(Kind::InvalidValue, format!("{name} must be an object"))),
    }
    Ok(())
}

fn many(document: &mut Document, name: &str, verb: Verb, target: &Target, value: Option<&Value>) -> Result<(), Wrong> {
    let mut items = match document.remove(name) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    };
    match (&target.filter, target.path.sub.as_deref(), verb) {
        (None, None, Verb::Replace) => items = list(value.unwrap_or(&Value::Null), name)?,
        (None, None, Verb::Add) => join(&mut items, list(value.unwrap_or(&Value::Null), name)?),
        (None, None, Verb::Remove) => match value.filter(|value| !value.is_null()) {
            Some(gone) => {
                let gone: HashSet<String> = list(gone, name)?.iter().filter_map(value_of).map(str::to_owned).collect();
                items.retain(|item| value_of(item).is_none_or(|value| !gone.contains(value)));
            }
            None => items.clear(),
        },
        (filter, sub, verb) => {
            let passes = |item: &Value| match (filter, item) {
                (Some(filter), Value::Object(item)) => filter.holds(item),
                (filter, _) => filter.is_none(),
            };
            if verb == Verb::Remove && sub.is_none() {
                items.retain(|item| !passes(item));
            } else {
                if verb != Verb::Remove && !items.iter().any(passes) {
                    let item = filter.as_ref().map_or(Some(Document::new()), Filter::item);
                    let none = || Wrong::new(Kind::NoTarget, format!("no item of {name} passes the filter"));
                    items.push(Value::Object(item.ok_or_else(none)?));
                }
                let found = items.iter_mut().filter(|item| passes(item)).filter_map(Value::as_object_mut);
                found.for_each(|item| change(item, sub, value));
            }
        }
    }
    one_primary(&mut items);
    if !items.is_empty() {
        document.insert(name.to_owned(), Value::Array(items));
    }
    Ok(())
}

/// Sets or takes away a part of an item, or several.
fn change(item: &mut Document, sub: Option<&str>, value: Option<&Value>) {
    match (sub, value) {
        (Some(sub), Some(value)) if !value.is_null() => drop(item.insert(part(sub).to_owned(), value.clone())),
        (Some(sub), _) => drop(item.remove(part(sub))),
        (None, Some(Value::Object(given))) => {
            item.extend(given.iter().map(|(key, value)| (part(key).to_owned(), value.clone())));
        }
        (None, _) => {}
    }
}

/// Items more; one whose value is there already takes its place.
fn join(items: &mut Vec<Value>, new: Vec<Value>) {
    // What comes last is the primary one.
    if new.iter().any(is_primary) {
        items.iter_mut().filter_map(Value::as_object_mut).for_each(|item| drop(item.remove("primary")));
    }
    let values: HashSet<String> = new.iter().filter_map(value_of).map(str::to_owned).collect();
    items.retain(|item| value_of(item).is_none_or(|value| !values.contains(value)));
    items.extend(new);
}

fn is_primary(item: &Value) -> bool {
    item.get("primary").and_then(truth) == Some(true)
}

/// Of several primary items the last one said so last.
fn one_primary(items: &mut [Value]) {
    let last = items.iter().rposition(is_primary);
    for (at, item) in items.iter_mut().enumerate() {
        if Some(at) != last
            && is_primary(item)
            && let Some(item) = item.as_object_mut()
        {
            item.insert("primary".into(), Value::Bool(false));
        }
    }
}

fn value_of(item: &Value) -> Option<&str> {
    item.get("value")?.as_str()
}

/// A list of objects; one object, or a bare text, is a list of one.
fn list(value: &Value, name: &str) -> Result<Vec<Value>, Wrong> {
    let items = match value {
        Value::Array(items) => items.as_slice(),
        Value::Null => &[],
        one => std::slice::from_ref(one),
    };
    let item = |item: &Value| match item {
        Value::Object(_) => Ok(tidy(item, Values::Complex)),
        Value::String(text) => Ok(json!({ "value": text })),
        _ => Err(Wrong::new(Kind::InvalidValue, format!("{name} must be a list of objects"))),
    };
    items.iter().map(item).collect()
}

/// A value with the names of its parts as they are written here.
pub(super) fn tidy(value: &Value, values: Values) -> Value {
    match (value, values) {
        (Value::Object(object), Values::Complex | Values::Many) => {
            Value::Object(object.iter().map(|(key, value)| (part(key).to_owned(), value.clone())).collect())
        }
        (Value::Array(items), Values::Many) => items.iter().map(|item| tidy(item, Values::Complex)).collect(),
        (other, _) => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patched(before: Value, operations: Value, resource: Resource) -> Result<Value, Kind> {
        let (Value::Object(mut document), Value::Object(body)) = (before, json!({ "Operations": operations })) else {
            panic!("objects")
        };
        apply(&mut document, &body, resource).map_err(|wrong| wrong.kind)?;
        Ok(Value::Object(document))
    }

    fn jane() -> Value {
        json!({"userName": "jane", "active": true, "name": {"givenName": "Jane"},
            "emails": [{"value": "a@b.c", "type": "work", "primary": true}]})
    }

    #[test]
    fn the_shapes_of_entra_id_are_understood() {
        let operations = json!([
            {"op": "Replace", "path": "active", "value": "False"},
            {"op": "Add", "path": "emails[type eq \"work\"].value", "value": "new@b.c"},
            {"op": "Add", "path": "emails[type eq \"home\"].value", "value": "home@b.c"},
            {"op": "Replace", "path": "name.familyName", "value": "Doe"},
            {"op": "Add", "path": "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:department", "value": "x"},
            {"op": "replace", "value": {"displayName": "Jane D", "name.givenName": "J", "externalId": "e",
                "emails[type eq \"work\"].primary": true}},
        ]);
        let expected = json!({"userName": "jane", "active": "False", "displayName": "Jane D", "externalId": "e",
            "name": {"givenName": "J", "familyName": "Doe"},
            "emails": [{"value": "new@b.c", "type": "work", "primary": true}, {"type": "home", "value": "home@b.c"}]});
        assert_eq!(patched(jane(), operations, Resource::User), Ok(expected));
        let group = json!({"displayName": "g", "members": [{"value": "1"}, {"value": "2"}, {"value": "3"}]});
        let operations = json!([
            {"op": "Remove", "path": "members", "value": [{"value": "1"}]},
            {"op": "Remove", "path": "members[value eq \"2\"]"},
            {"op": "Add", "path": "members", "value": [{"value": "4"}, {"value": "3"}]},
        ]);
        let expected = json!({"displayName": "g", "members": [{"value": "4"}, {"value": "3"}]});
        assert_eq!(patched(group, operations, Resource::Group), Ok(expected));
    }

    #[test]
    fn the_shapes_of_okta_are_understood() {
        let operations = json!([{"op": "replace", "value": {"active": false}}]);
        assert_eq!(patched(jane(), operations, Resource::User).unwrap()["active"], false);
        let group = json!({"displayName": "g", "members": [{"value": "1"}]});
        let operations = json!([
            {"op": "replace", "value": {"id": "abc", "displayName": "renamed"}},
            {"op": "replace", "path": "members", "value": [{"value": "2", "display": "jane"}]},
        ]);
        let expected = json!({"displayName": "renamed", "members": [{"value": "2", "display": "jane"}]});
        assert_eq!(patched(group.clone(), operations, Resource::Group), Ok(expected));
        let operations = json!([{"op": "remove", "path": "members"}]);
        assert_eq!(patched(group, operations, Resource::Group), Ok(json!({"displayName": "g"})));
    }

    #[test]
    fn one_address_is_the_primary_one() {
        let operations = json!([{"op": "add", "path": "emails", "value": {"Value": "x@y.z", "primary": true}}]);
        let emails = patched(jane(), operations, Resource::User).unwrap()["emails"].clone();
        assert_eq!(emails, json!([{"value": "a@b.c", "type": "work"}, {"value": "x@y.z", "primary": true}]));
        let operations =
            json!([{"op": "remove", "path": "emails[type eq \"work\"]"}, {"op": "remove", "path": "name"}]);
        assert_eq!(patched(jane(), operations, Resource::User), Ok(json!({"userName": "jane", "active": true})));
    }

    #[test]
    fn what_is_no_patch_is_refused_in_the_protocol_s_words() {
        for (operations, kind) in [
            (json!([]), Kind::InvalidSyntax),
            (json!({}), Kind::InvalidSyntax),
            (json!(["x"]), Kind::InvalidSyntax),
            (json!([{"op": "move", "path": "active"}]), Kind::InvalidSyntax),
            (json!([{"op": "remove"}]), Kind::NoTarget),
            (json!([{"op": "add", "value": 1}]), Kind::InvalidValue),
            (json!([{"op": "add", "path": "active"}]), Kind::InvalidValue),
            (json!([{"op": "add", "path": 1, "value": 1}]), Kind::InvalidPath),
            (json!([{"op": "add", "path": "", "value": 1}]), Kind::InvalidPath),
            (json!([{"op": "add", "path": "emails[type eq", "value": 1}]), Kind::InvalidPath),
            (json!([{"op": "add", "path": "emails[]", "value": 1}]), Kind::InvalidPath),
            (json!([{"op": "add", "path": "emails[a pr]x", "value": 1}]), Kind::InvalidPath),
            (json!([{"op": "add", "path": "active.x", "value": 1}]), Kind::InvalidPath),
            (json!([{"op": "replace", "path": "emails[type ne \"work\"].value", "value": "x"}]), Kind::NoTarget),
            (json!([{"op": "replace", "path": "id", "value": "x"}]), Kind::Mutability),
            (json!([{"op": "add", "path": "emails", "value": 7}]), Kind::InvalidValue),
            (json!([{"op": "add", "path": "name", "value": "x"}]), Kind::InvalidValue),
        ] {
            assert_eq!(patched(jane(), operations.clone(), Resource::User), Err(kind), "{operations}");
        }
        let many = vec![json!({"op": "remove", "path": "emails"}); OPERATIONS_MAX + 1];
        assert_eq!(patched(jane(), Value::Array(many), Resource::User), Err(Kind::InvalidSyntax));
    }
}
