//! How the service is described to its clients: what it can do, which resources there are, and their attributes.

use serde_json::{Value, json};

use super::{BASE, GROUP, Resource, USER};
use crate::domain::time::Timestamp;

/// Resources of one page at most.
pub const COUNT_MAX: usize = 200;
/// Resources of a page when the client names no number.
pub const COUNT_DEFAULT: usize = 100;

const SCHEMA: &str = "urn:ietf:params:scim:schemas:core:2.0:Schema";

/// `meta` of a resource. Its version is the ETag that `If-Match` of a change takes.
#[must_use]
pub fn meta(resource: Resource, id: &str, created: Timestamp, modified: Timestamp, version: i64) -> Value {
    json!({
        "resourceType": resource.name(),
        "created": created.to_string(),
        "lastModified": modified.to_string(),
        "location": resource.location(id),
        "version": format!("\"{version}\""),
    })
}

/// `/ServiceProviderConfig`.
#[must_use]
pub fn service_provider() -> Value {
    json!({
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:ServiceProviderConfig"],
        "patch": {"supported": true},
        "bulk": {"supported": false, "maxOperations": 0, "maxPayloadSize": 0},
        "filter": {"supported": true, "maxResults": COUNT_MAX},
        "changePassword": {"supported": false},
        "sort": {"supported": false},
        "etag": {"supported": true},
        "authenticationSchemes": [{
            "type": "oauthbearertoken",
            "name": "API key",
            "description": "An API key of the tenant as a bearer token; scopes users:* and groups:* suffice, with permissions:grant if groups have roles, if policies look at what it writes, or if it brings back or deletes people who were deactivated.",
            "primary": true,
        }],
        "meta": {"resourceType": "ServiceProviderConfig", "location": format!("{BASE}/ServiceProviderConfig")},
    })
}

/// `/ResourceTypes`.
#[must_use]
pub fn resource_types() -> Vec<Value> {
    let one = |resource: Resource, description: &str| {
        json!({
            "schemas": ["urn:ietf:params:scim:schemas:core:2.0:ResourceType"],
            "id": resource.name(),
            "name": resource.name(),
            "endpoint": format!("/{}s", resource.name()),
            "description": description,
            "schema": resource.urn(),
            "meta": {"resourceType": "ResourceType", "location": format!("{BASE}/ResourceTypes/{}", resource.name())},
        })
    };
    vec![one(Resource::User, "A person of the tenant."), one(Resource::Group, "A group of people and of groups.")]
}

/// `/Schemas`.
#[must_use]
pub fn schemas() -> Vec<Value> {
    let name = vec![text("givenName", false), text("familyName", false)];
    let primary = with(text("primary", false), &[("type", json!("boolean"))]);
    let kind = with(text("type", false), &[("canonicalValues", json!(["work", "home", "other"]))]);
    let emails = vec![text("value", false), kind, primary];
    let user = vec![
        with(text("userName", true), &[("uniqueness", json!("server"))]),
        text("displayName", false),
        complex("name", false, name),
        complex("emails", true, emails),
        with(text("active", true), &[("type", json!("boolean"))]),
    ];
    let immutable = ("mutability", json!("immutable"));
    let exact = ("caseExact", json!(true));
    let reference =
        [("type", json!("reference")), ("referenceTypes", json!(["User", "Group"])), immutable.clone(), exact.clone()];
    let members = vec![
        with(text("value", false), &[immutable.clone(), exact]),
        with(text("$ref", false), &reference),
        with(text("type", false), &[immutable, ("canonicalValues", json!(["User", "Group"]))]),
    ];
    let group =
        vec![with(text("displayName", true), &[("uniqueness", json!("server"))]), complex("members", true, members)];
    vec![schema(USER, "User", user), schema(GROUP, "Group", group)]
}

fn schema(urn: &str, name: &str, attributes: Vec<Value>) -> Value {
    json!({
        "schemas": [SCHEMA],
        "id": urn,
        "name": name,
        "description": format!("{name}, as far as it is kept here."),
        "attributes": attributes,
        "meta": {"resourceType": "Schema", "location": format!("{BASE}/Schemas/{urn}")},
    })
}

fn text(name: &str, required: bool) -> Value {
    json!({
        "name": name,
        "type": "string",
        "multiValued": false,
        "description": name,
        "required": required,
        "caseExact": false,
        "mutability": "readWrite",
        "returned": "default",
        "uniqueness": "none",
    })
}

fn complex(name: &str, is_list: bool, parts: Vec<Value>) -> Value {
    with(
        text(name, false),
        &[("type", json!("complex")), ("multiValued", json!(is_list)), ("subAttributes", json!(parts))],
    )
}

fn with(mut attribute: Value, fields: &[(&str, Value)]) -> Value {
    for (name, value) in fields {
        attribute[*name] = value.clone();
    }
    attribute
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scim::Values;

    #[test]
    fn what_is_described_is_what_is_kept() {
        for (schema, resource) in schemas().iter().zip([Resource::User, Resource::Group]) {
            let described: Vec<&str> =
                schema["attributes"].as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
            for name in &described {
                assert!(resource.attribute(name).is_some_and(|(_, values)| values != Values::ReadOnly), "{name}");
            }
            let kept = resource.attributes().iter().filter(|(_, values)| *values != Values::ReadOnly);
            let kept = kept.filter(|(name, _)| *name != "externalId").count();
            assert_eq!(described.len(), kept, "externalId is common to all of them");
        }
        assert_eq!(resource_types().len(), 2);
    }
}
