//! SCIM 2.0 (RFC 7643 and 7644) as pure functions of documents: filters, patches, and what a user and a group look like.
//!
//! A resource is a JSON document here. A patch is applied to the document of what there is, and the result is read as a
//! replacement is, so that every shape that a client may send (a path, a path with a filter, no path and dotted keys) has
//! one meaning. What we do not keep of a user is taken and forgotten, as identity providers send more than anybody wants.
//!
//! - [`filter`]: `userName eq "jane"`, parsed with limits and asked of a document
//! - [`patch`]: operations on a document
//! - [`user`], [`group`]: documents of the domain's users and groups, and back
//! - [`schema`]: how all of it is described to clients

pub mod filter;
pub mod group;
pub mod patch;
pub mod schema;
pub mod user;

use serde_json::{Map, Value};

/// A resource as it is written down.
pub type Document = Map<String, Value>;

/// Where it all is.
pub const BASE: &str = "/scim/v2";
pub const USER: &str = "urn:ietf:params:scim:schemas:core:2.0:User";
pub const GROUP: &str = "urn:ietf:params:scim:schemas:core:2.0:Group";

/// What is wrong with a request, in the protocol's own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    InvalidFilter,
    InvalidPath,
    InvalidSyntax,
    InvalidValue,
    NoTarget,
    Mutability,
}

/// A request that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Wrong {
    pub kind: Kind,
    pub detail: String,
}

impl Wrong {
    #[must_use]
    pub fn new(kind: Kind, detail: impl Into<String>) -> Wrong {
        Wrong { kind, detail: detail.into() }
    }
}

/// What kind of values an attribute has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    One,
    /// An object.
    Complex,
    /// A list of objects.
    Many,
    /// Ours to say.
    ReadOnly,
}

/// A kind of resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    User,
    Group,
}

impl Resource {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Resource::User => "User",
            Resource::Group => "Group",
        }
    }

    #[must_use]
    pub fn urn(self) -> &'static str {
        match self {
            Resource::User => USER,
            Resource::Group => GROUP,
        }
    }

    /// The address of one.
    #[must_use]
    pub fn location(self, id: &str) -> String {
        format!("{BASE}/{}s/{id}", self.name())
    }

    fn attributes(self) -> &'static [(&'static str, Values)] {
        match self {
            Resource::User => &[
                ("userName", Values::One),
                ("displayName", Values::One),
                ("externalId", Values::One),
                ("active", Values::One),
                ("name", Values::Complex),
                ("emails", Values::Many),
                ("id", Values::ReadOnly),
                ("meta", Values::ReadOnly),
                ("schemas", Values::ReadOnly),
                ("groups", Values::ReadOnly),
            ],
            Resource::Group => &[
                ("displayName", Values::One),
                ("externalId", Values::One),
                ("members", Values::Many),
                ("id", Values::ReadOnly),
                ("meta", Values::ReadOnly),
                ("schemas", Values::ReadOnly),
            ],
        }
    }

    /// An attribute that is kept, by its name in whatever case.
    #[must_use]
    pub fn attribute(self, name: &str) -> Option<(&'static str, Values)> {
        self.attributes().iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).copied()
    }
}

/// Names within an object, as they are written here.
const PARTS: &[&str] = &["value", "type", "primary", "display", "$ref", "givenName", "familyName", "formatted"];

/// The name of a part in whatever case, as it is written here.
fn part(name: &str) -> &str {
    PARTS.iter().find(|known| known.eq_ignore_ascii_case(name)).copied().unwrap_or(name)
}

/// A member of an object, by its name in whatever case.
#[must_use]
pub fn member<'a>(object: &'a Document, name: &str) -> Option<&'a Value> {
    object.get(name).or_else(|| object.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
}

/// The attributes that are kept, under the names they have here.
#[must_use]
pub fn kept(given: &Document, resource: Resource) -> Document {
    let mut kept = Document::new();
    for (name, value) in given {
        if let Some((name, values)) = resource.attribute(name).filter(|(_, values)| *values != Values::ReadOnly) {
            kept.insert(name.to_owned(), patch::tidy(value, values));
        }
    }
    kept
}

/// What `attributes` and `excludedAttributes` leave of a document; `id` and `schemas` are always there.
#[must_use]
pub fn projected(document: Document, only: Option<&str>, without: Option<&str>) -> Document {
    let names = |text: &str| -> Vec<(String, Option<String>)> {
        let paths = text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(filter::AttributePath::read);
        paths.map(|path| (path.attribute.to_ascii_lowercase(), path.sub)).collect()
    };
    let always = |name: &str| matches!(name, "id" | "schemas");
    match (only.map(names), without.map(names)) {
        (Some(only), _) => {
            let mut left = Document::new();
            for (name, value) in document {
                let asked: Vec<_> = only.iter().filter(|(asked, _)| name.eq_ignore_ascii_case(asked)).collect();
                if always(&name) || asked.iter().any(|(_, sub)| sub.is_none()) {
                    left.insert(name, value);
                } else if !asked.is_empty() {
                    let subs: Vec<&str> = asked.iter().filter_map(|(_, sub)| sub.as_deref()).collect();
                    left.insert(name, parts_of(value, |part| subs.iter().any(|sub| part.eq_ignore_ascii_case(sub))));
                }
            }
            left
        }
        (None, Some(without)) => {
            let mut left = Document::new();
            for (name, value) in document {
                let hidden: Vec<_> = without.iter().filter(|(hidden, _)| name.eq_ignore_ascii_case(hidden)).collect();
                if always(&name) || hidden.is_empty() {
                    left.insert(name, value);
                } else if hidden.iter().all(|(_, sub)| sub.is_some()) {
                    let subs: Vec<&str> = hidden.iter().filter_map(|(_, sub)| sub.as_deref()).collect();
                    left.insert(name, parts_of(value, |part| !subs.iter().any(|sub| part.eq_ignore_ascii_case(sub))));
                }
            }
            left
        }
        (None, None) => document,
    }
}

/// Does [`projected`] leave anything of this attribute?
#[must_use]
pub fn is_shown(name: &str, only: Option<&str>, without: Option<&str>) -> bool {
    let paths = |text: &str| -> Vec<filter::AttributePath> {
        let names = text.split(',').map(str::trim).filter(|text| !text.is_empty());
        let paths = names.map(filter::AttributePath::read);
        paths.filter(|path| path.attribute.eq_ignore_ascii_case(name)).collect()
    };
    match (only, without) {
        (Some(only), _) => !paths(only).is_empty(),
        (None, Some(without)) => paths(without).iter().all(|path| path.sub.is_some()),
        (None, None) => true,
    }
}

fn parts_of(value: Value, stays: impl Fn(&str) -> bool + Copy) -> Value {
    match value {
        Value::Object(object) => Value::Object(object.into_iter().filter(|(name, _)| stays(name)).collect()),
        Value::Array(items) => Value::Array(items.into_iter().map(|item| parts_of(item, stays)).collect()),
        other => other,
    }
}

/// A boolean, also as Entra ID writes it.
fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(truth) => Some(*truth),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// A text that may be absent. An empty one is none: clients clear with it.
///
/// # Errors
/// [`Kind::InvalidValue`] for anything else.
fn text(document: &Document, name: &str) -> Result<Option<String>, Wrong> {
    match document.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Wrong::new(Kind::InvalidValue, format!("{name} must be a text"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_projection_leaves_what_is_asked_for_and_the_id() {
        let Value::Object(document) = json!({"id": "1", "schemas": [], "userName": "j", "meta": {},
            "name": {"givenName": "J", "familyName": "D"}, "emails": [{"value": "a@b", "type": "work"}]})
        else {
            panic!("an object")
        };
        let left = |only, without| Value::Object(projected(document.clone(), only, without));
        assert_eq!(left(Some("username"), None), json!({"id": "1", "schemas": [], "userName": "j"}));
        assert_eq!(
            left(Some("name.givenName,emails.VALUE"), None),
            json!({"id": "1", "schemas": [], "name": {"givenName": "J"}, "emails": [{"value": "a@b"}]})
        );
        let hidden = left(None, Some("id,meta,name.familyName,emails"));
        assert_eq!(hidden, json!({"id": "1", "schemas": [], "userName": "j", "name": {"givenName": "J"}}));
        assert_eq!(left(None, None), Value::Object(document.clone()));
        let lists = [Some("username"), Some("EMAILS.value,id"), Some("emails"), Some("name,emails,emails.type"), None];
        for (only, without) in lists.into_iter().flat_map(|only| lists.map(|without| (only, without))) {
            let is_left = left(only, without).get("emails").is_some_and(|emails| emails[0] != json!({}));
            assert_eq!(is_shown("emails", only, without), is_left, "{only:?} {without:?}");
        }
    }
}
