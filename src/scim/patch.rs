//! PATCH (RFC 7644, 3.5.2), in the shapes that clients send it.
//!
//! What the standard leaves open or clients do otherwise: operations in whatever case; no path and dotted keys; an item that
//! a filter does not find is made from what the filter says (Entra ID); members taken away by a list of values (Entra ID);
//! attributes that are not kept, and those that are ours to say when they come along without a path (Okta), are forgotten.
//!
//! An operation may look at every item of a list and copy its value into each, so what all of a request's operations cost is
//! counted, and a request that would cost too much is refused.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::filter::{AttributePath, Filter};
use super::{Document, Kind, PARTS, Resource, Values, Wrong, member, part, truth};

/// Operations of one request.
pub const OPERATIONS_MAX: usize = 1_000;
/// What the operations of one request may cost: an item that is looked at, a comparison that is made of it, and some bytes
/// that are copied cost one each. A few dozen operations on the largest group there can be.
const WORK_MAX: usize = 10_000_000;
/// Bytes of text that cost as much as one item when they are copied.
const COPIED_BYTES: usize = 16;
/// The same when they are compared.
const COMPARED_BYTES: usize = 128;
/// Items of a user's lists while they are patched. What is kept is much less.
const USER_ITEMS_MAX: usize = 1_000;

/// What is left to spend on a request.
struct Work {
    left: usize,
}

impl Work {
    fn spend(&mut self, times: usize, each: usize) -> Result<(), Wrong> {
        let left = times.checked_mul(each).and_then(|cost| self.left.checked_sub(cost));
        self.left = left
            .ok_or_else(|| Wrong::new(Kind::InvalidValue, "this is too much for one request: send fewer operations"))?;
        Ok(())
    }
}

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

/// A target, and whether it is the operation's path or a key of its value.
struct Aim {
    target: Target,
    is_named: bool,
}

/// Applies every operation of a request, in their order.
///
/// # Errors
/// [`Wrong`]; the document is then of no use.
pub fn apply(document: &mut Document, body: &Document, resource: Resource) -> Result<(), Wrong> {
    within(document, body, resource, Work { left: WORK_MAX })
}

fn within(document: &mut Document, body: &Document, resource: Resource, mut work: Work) -> Result<(), Wrong> {
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
            None | Some(Value::Null) => whole(document, verb, value, resource, &mut work)?,
            Some(Value::String(path)) => {
                let target = Aim { target: target(path)?, is_named: true };
                one(document, verb, &target, value, resource, &mut work)?;
            }
            Some(_) => return Err(Wrong::new(Kind::InvalidPath, "a path must be a text")),
        }
    }
    Ok(())
}

/// Without a path: each key of the value is one.
fn whole(
    document: &mut Document,
    verb: Verb,
    value: Option<&Value>,
    resource: Resource,
    work: &mut Work,
) -> Result<(), Wrong> {
    if verb == Verb::Remove {
        return Err(Wrong::new(Kind::NoTarget, "remove needs a path"));
    }
    let Some(Value::Object(values)) = value else {
        return Err(Wrong::new(Kind::InvalidValue, "without a path the value must be an object"));
    };
    for (key, value) in values {
        one(document, verb, &Aim { target: target(key)?, is_named: false }, Some(value), resource, work)?;
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
    Aim { target, is_named }: &Aim,
    value: Option<&Value>,
    resource: Resource,
    work: &mut Work,
) -> Result<(), Wrong> {
    let Some((name, values)) = resource.attribute(&target.path.attribute) else { return Ok(()) };
    let value = match (verb, value) {
        (Verb::Remove, value) => value,
        (_, Some(value)) => Some(value),
        (_, None) => return Err(Wrong::new(Kind::InvalidValue, "add and replace need a value")),
    };
    match values {
        Values::ReadOnly if *is_named => {
            Err(Wrong::new(Kind::Mutability, format!("{name} is not the client's to change")))
        }
        Values::ReadOnly => Ok(()),
        Values::Many => {
            let most = if resource == Resource::User { USER_ITEMS_MAX } else { usize::MAX };
            many(document, List { name, most }, verb, target, value, work)
        }
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

/// A list that is patched.
#[derive(Clone, Copy)]
struct List {
    name: &'static str,
    /// Items it may have.
    most: usize,
}

fn many(
    document: &mut Document,
    list: List,
    verb: Verb,
    target: &Target,
    value: Option<&Value>,
    work: &mut Work,
) -> Result<(), Wrong> {
    let name = list.name;
    let mut items = match document.remove(name) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    };
    let comparisons = target.filter.as_ref().map_or(0, Filter::comparisons);
    // Comparing costs by how long the texts are.
    let weight = if comparisons > 0 { items.iter().map(weight).sum() } else { items.len() };
    work.spend(weight, 1 + comparisons)?;
    let given = |work: &mut Work| given(value.unwrap_or(&Value::Null), list, work);
    match (&target.filter, target.path.sub.as_deref(), verb) {
        (None, None, Verb::Replace) => items = given(work)?,
        (None, None, Verb::Add) => {
            join(&mut items, given(work)?);
            work.spend(items.len(), 1)?;
        }
        (None, None, Verb::Remove) => match value.filter(|value| !value.is_null()) {
            Some(_) => {
                let gone: HashSet<String> = given(work)?.iter().filter_map(value_of).map(str::to_owned).collect();
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
                let parts = parts(name, sub, value.filter(|_| verb != Verb::Remove))?;
                let each = parts.iter().map(|(_, value)| value.map_or(1, cost)).sum();
                for item in items.iter_mut().filter(|item| passes(item)).filter_map(Value::as_object_mut) {
                    work.spend(1, each)?;
                    change(item, &parts);
                }
            }
        }
    }
    if items.len() > list.most {
        return Err(too_many(list));
    }
    one_primary(&mut items);
    if !items.is_empty() {
        document.insert(name.to_owned(), Value::Array(items));
    }
    Ok(())
}

fn too_many(list: List) -> Wrong {
    Wrong::new(Kind::InvalidValue, format!("{} must be at most {} items", list.name, list.most))
}

/// What one comparison of an item costs.
fn weight(item: &Value) -> usize {
    let texts = item.as_object().into_iter().flat_map(Document::values).filter_map(Value::as_str);
    1 + texts.map(str::len).sum::<usize>() / COMPARED_BYTES
}

/// What it costs to copy a value: an item, or a part of one.
fn cost(value: &Value) -> usize {
    match value {
        Value::Object(item) => 1 + item.values().map(cost).sum::<usize>(),
        Value::String(text) => 1 + text.len() / COPIED_BYTES,
        _ => 1,
    }
}

/// The parts of items that an operation sets, or takes away where there is no value. What is not kept of an item is
/// forgotten, so that an item is never larger than what it is made of.
fn parts<'a>(
    name: &str,
    sub: Option<&'a str>,
    value: Option<&'a Value>,
) -> Result<Vec<(&'a str, Option<&'a Value>)>, Wrong> {
    let parts: Vec<(&str, Option<&Value>)> = match (sub, value) {
        (Some(sub), value) => vec![(part(sub), value.filter(|value| !value.is_null()))],
        (None, Some(Value::Object(given))) => given.iter().map(|(key, value)| (part(key), Some(value))).collect(),
        (None, _) => Vec::new(),
    };
    let kept: Vec<_> = parts.into_iter().filter(|(part, _)| PARTS.contains(part)).collect();
    match kept.iter().find(|(_, value)| value.is_some_and(|value| value.is_array() || value.is_object())) {
        Some((part, _)) => Err(Wrong::new(Kind::InvalidValue, format!("{name}.{part} has no parts"))),
        None => Ok(kept),
    }
}

/// Sets or takes away parts of an item.
fn change(item: &mut Document, parts: &[(&str, Option<&Value>)]) {
    for (part, value) in parts {
        match value {
            Some(value) => drop(item.insert((*part).to_owned(), (*value).clone())),
            None => drop(item.remove(*part)),
        }
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
fn given(value: &Value, list: List, work: &mut Work) -> Result<Vec<Value>, Wrong> {
    let name = list.name;
    let items = match value {
        Value::Array(items) => items.as_slice(),
        Value::Null => &[],
        one => std::slice::from_ref(one),
    };
    if items.len() > list.most {
        return Err(too_many(list));
    }
    let item = |item: &Value| match item {
        Value::Object(_) => {
            let mut new = Document::new();
            change(&mut new, &parts(name, None, Some(item))?);
            Ok(Value::Object(new))
        }
        Value::String(text) => Ok(json!({ "value": text })),
        _ => Err(Wrong::new(Kind::InvalidValue, format!("{name} must be a list of objects"))),
    };
    let items: Vec<Value> = items.iter().map(item).collect::<Result<_, Wrong>>()?;
    work.spend(items.iter().map(cost).sum(), 1)?;
    Ok(items)
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

    /// A group of so many members.
    fn crowd(size: usize) -> Value {
        let member = |at: usize| json!({"value": format!("00000000-0000-7000-8000-{at:012}"), "type": "User"});
        json!({"displayName": "everybody", "members": (0..size).map(member).collect::<Vec<Value>>()})
    }

    #[test]
    fn a_request_that_would_cost_too_much_is_refused() {
        // A hundredth of everything.
        let try_with = |group: Value, operations: &[Value]| {
            let (Value::Object(mut group), Value::Object(body)) = (group, json!({"Operations": operations})) else {
                panic!("objects")
            };
            let work = Work { left: WORK_MAX / 100 };
            within(&mut group, &body, Resource::Group, work).map_err(|wrong| wrong.kind)
        };
        let set = |value: &str| json!({"op": "replace", "path": "members.display", "value": value});
        let look = json!({"op": "remove", "path": "members[value eq \"x\" or display sw \"y\"]"});
        for operations in [
            // A text into every item; looking at every item again and again; adding one by one to what is many.
            vec![set(&"x".repeat(10_000))],
            vec![look; 100],
            vec![json!({"op": "add", "path": "members", "value": "new"}); 100],
        ] {
            assert_eq!(try_with(crowd(1_000), &operations), Err(Kind::InvalidValue), "{}", operations[0]);
            let few = if operations.len() == 1 { vec![set("short")] } else { operations[..20].to_vec() };
            assert_eq!(try_with(crowd(1_000), &few), Ok(()));
        }
        // Long texts cost when they are compared.
        let long = |bytes: usize| json!({"displayName": "g", "members": [{"value": "x".repeat(bytes)}]});
        let find = json!({"op": "remove", "path": format!("members[{}]", ["value eq \"a\""; 50].join(" or "))});
        assert_eq!(try_with(long(100_000), &vec![find.clone(); 20]), Err(Kind::InvalidValue));
        assert_eq!(try_with(long(1_000), &vec![find; 20]), Ok(()));
    }

    #[test]
    fn the_largest_group_can_be_patched() {
        let operations = json!([
            {"op": "add", "path": "members", "value": [{"value": "a"}, {"value": "b"}]},
            {"op": "remove", "path": "members[value eq \"00000000-0000-7000-8000-000000000007\"]"},
            {"op": "remove", "path": "members", "value": [{"value": "00000000-0000-7000-8000-000000000008"}]},
        ]);
        let group = patched(crowd(100_000), operations, Resource::Group).unwrap();
        assert_eq!(group["members"].as_array().map(Vec::len), Some(100_000));
    }

    #[test]
    fn an_item_keeps_its_own_parts_and_a_user_s_lists_are_short() {
        let operations = json!([
            {"op": "add", "path": "emails", "value": {"value": "x@y.z", "color": ["red"]}},
            {"op": "replace", "path": "emails.size", "value": "large"},
        ]);
        let emails = patched(jane(), operations, Resource::User).unwrap()["emails"].clone();
        assert_eq!(emails[1], json!({"value": "x@y.z"}));
        let addresses = |count: usize| {
            let emails: Vec<Value> = (0..count).map(|at| json!({"value": format!("{at}@b.c")})).collect();
            json!([{"op": "replace", "path": "emails", "value": emails}])
        };
        assert!(patched(jane(), addresses(USER_ITEMS_MAX), Resource::User).is_ok());
        for wrong in [
            addresses(USER_ITEMS_MAX + 1),
            json!([{"op": "add", "path": "emails", "value": [{"value": ["a@b.c"]}]}]),
            json!([{"op": "replace", "path": "emails.value", "value": {"a": 1}}]),
            json!([{"op": "replace", "path": "emails[type eq \"work\"]", "value": {"display": []}}]),
        ] {
            assert_eq!(patched(jane(), wrong, Resource::User), Err(Kind::InvalidValue));
        }
    }
}
