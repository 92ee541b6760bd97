//! SCIM's filters and patches: nothing panics, what is parsed holds the same of the same document, and what a patch leaves
//! can be read or is refused.

use platform_api::scim::filter::Filter;
use platform_api::scim::{Document, Resource, kept, patch, projected, user};
use serde_json::{Value, json};

use super::Target;

pub(crate) const TARGET: Target = Target {
    name: "scim",
    check,
    seeds: &[],
    words: &[
        "userName eq \"jane\"",
        " and ",
        " or ",
        "not (",
        "emails[type eq \"work\"]",
        ".value",
        " pr",
        " co ",
        " ge ",
        "{\"Operations\":[",
        "{\"op\":\"Add\",",
        "\"path\":\"members\",",
        "\"path\":\"name.givenName\",",
        "\"value\":",
        "\"False\"",
        "[{\"value\":\"1\"}]",
        "}]}",
        "urn:ietf:params:scim:schemas:core:2.0:User:",
        "null",
        "true",
    ],
};

fn jane() -> Document {
    let Value::Object(document) = json!({"id": "1", "userName": "jane", "active": true, "name": {"givenName": "J"},
        "emails": [{"value": "a@b.c", "type": "work", "primary": true}], "members": [{"value": "1"}]})
    else {
        unreachable!("an object")
    };
    document
}

fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let document = jane();
    if let Ok(filter) = Filter::parse(text) {
        let holds = filter.holds(&document);
        let inverse = Filter::Not(Box::new(filter.clone()));
        assert_eq!(inverse.holds(&document), !holds, "{text}");
        assert_eq!(
            Filter::parse(&format!("({text}) or not (id pr)")).map(|both| both.holds(&document)).unwrap_or(holds),
            holds
        );
    }
    let left = projected(document.clone(), Some(text), None);
    assert!(left.contains_key("id") && left.keys().all(|key| document.contains_key(key)));
    if let Ok(Value::Object(body)) = serde_json::from_str::<Value>(text) {
        for resource in [Resource::User, Resource::Group] {
            let mut changed = document.clone();
            if patch::apply(&mut changed, &body, resource).is_ok() {
                assert_eq!(changed.get("id"), document.get("id"), "an id is never a client's");
                let primary = |item: &&Value| item["primary"] == true;
                let emails =
                    changed.get("emails").and_then(Value::as_array).map_or(0, |all| all.iter().filter(primary).count());
                assert!(emails <= 1, "{changed:?}");
            }
            if let Ok(profile) = user::profile(&kept(&body, resource), None) {
                assert!(profile.flaws().is_empty());
            }
        }
    }
}
