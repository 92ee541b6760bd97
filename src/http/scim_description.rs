//! `/scim/v2` in the OpenAPI document, written from the operation table: the documents themselves are described by the
//! protocol's own `/Schemas`.

use serde_json::{Map, Value, json};

use super::operation::{BodyKind, OPERATIONS, Operation};
use super::problem::Form;
use crate::scim::Resource;

/// The path items of the document.
pub(super) fn described() -> Map<String, Value> {
    let mut paths = Map::new();
    for operation in OPERATIONS.iter().filter(|operation| operation.id.starts_with("scim")) {
        let item = paths.entry(operation.path).or_insert_with(|| json!({}));
        item[operation.method.as_str().to_lowercase()] = one(operation);
    }
    paths
}

fn one(operation: &Operation) -> Value {
    let mut parameters = Vec::new();
    if operation.path.ends_with("{id}") {
        let id = json!({"name": "id", "in": "path", "required": true, "description": "Its id.", "schema": {"type": "string"}});
        parameters.push(id);
    }
    parameters.extend(operation.query.iter().map(|name| parameter(name)));
    let is_change = matches!(operation.method.as_str(), "PUT" | "PATCH" | "DELETE");
    if is_change {
        parameters.push(json!({"name": "If-Match", "in": "header", "required": false,
            "description": "The ETag that was read, or `*`; may be absent.", "schema": {"type": "string"}}));
    }
    let (summary, description) = words(operation.id);
    let mut described = json!({
        "tags": ["Organization"],
        "summary": summary,
        "description": description,
        "operationId": operation.id,
        "parameters": parameters,
        "responses": responses(operation),
    });
    if operation.body == BodyKind::Scim {
        let media = json!({"schema": {"type": "object"}, "example": example(operation.id)});
        described["requestBody"] =
            json!({"required": true, "content": {Form::Scim.media(): media, "application/json": media}});
    }
    described
}

fn parameter(name: &str) -> Value {
    let description = match name {
        "filter" => "RFC 7644, 3.4.2.2: `userName eq \"jane@example.com\"`. At most 2 KiB and 50 comparisons.",
        "startIndex" => "The first resource of the page, from 1.",
        "count" => "Resources of the page, at most 200; 100 when absent.",
        "attributes" => "Only these, between commas.",
        "excludedAttributes" => "All but these, between commas.",
        _ => "Taken, and of no consequence: resources come oldest first.",
    };
    json!({"name": name, "in": "query", "required": false, "description": description, "schema": {"type": "string"}})
}

fn responses(operation: &Operation) -> Value {
    if operation.method.as_str() == "DELETE" {
        return json!({"204": {"description": "It is gone."}});
    }
    let status = if operation.id.starts_with("scimCreate") { "201" } else { "200" };
    let schema = json!({"type": "object", "required": ["schemas"],
        "properties": {"schemas": {"type": "array", "items": {"type": "string"}}}});
    let mut response = json!({"description": "Done.", "content": {Form::Scim.media(): {"schema": schema}}});
    if operation.id.ends_with("User") || operation.id.ends_with("Group") {
        response["headers"]["ETag"] = json!({"description": "`meta.version`.", "schema": {"type": "string"}});
    }
    let mut responses = json!({ status: response });
    if status == "201" {
        // A request that is repeated under its Idempotency-Key is answered with what there is now.
        responses["200"] = responses["201"].clone();
        let location = json!({"description": "Its address.", "schema": {"type": "string"}});
        responses["201"]["headers"]["Location"] = location;
    }
    responses
}

fn words(id: &str) -> (&'static str, &'static str) {
    match id {
        "scimGetServiceProviderConfig" => ("SCIM: what the service can do", "RFC 7643, 5."),
        "scimListResourceTypes" => ("SCIM: which resources there are", "RFC 7643, 6."),
        "scimGetResourceType" => ("SCIM: one kind of resource", "RFC 7643, 6."),
        "scimListSchemas" => {
            ("SCIM: the attributes that are kept", "RFC 7643, 7. Other attributes are taken and forgotten.")
        }
        "scimGetSchema" => ("SCIM: the attributes of one schema", "RFC 7643, 7."),
        "scimSearch" => ("SCIM: find users and groups", "RFC 7644, 3.4.3: a query in a body; users first."),
        "scimListUsers" => ("SCIM: find users", "RFC 7644, 3.4.2."),
        "scimGetUser" => ("SCIM: read a user", "RFC 7644, 3.4.1."),
        "scimCreateUser" => {
            ("SCIM: add a user", "RFC 7644, 3.3. A taken `userName` or `externalId` is 409 `uniqueness`.")
        }
        "scimReplaceUser" => {
            ("SCIM: replace a user", "RFC 7644, 3.5.1. What only `/v1/users` knows of the user stays.")
        }
        "scimPatchUser" => (
            "SCIM: change a user",
            "RFC 7644, 3.5.2, in the shapes of Entra ID and Okta too. `active: false` deactivates, from the next request on.",
        ),
        "scimDeleteUser" => ("SCIM: delete a user", "RFC 7644, 3.6."),
        "scimListGroups" => ("SCIM: find groups", "RFC 7644, 3.4.2."),
        "scimGetGroup" => ("SCIM: read a group with its members", "RFC 7644, 3.4.1."),
        "scimCreateGroup" => ("SCIM: add a group with its members", "RFC 7644, 3.3."),
        "scimReplaceGroup" => ("SCIM: replace a group and its members", "RFC 7644, 3.5.1."),
        "scimPatchGroup" => ("SCIM: change a group or its members", "RFC 7644, 3.5.2, in one change."),
        _ => ("SCIM: delete a group", "RFC 7644, 3.6. Its members stay."),
    }
}

fn example(id: &str) -> Value {
    let operations = |operation: Value| json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"], "Operations": [operation]});
    match id {
        "scimPatchUser" => operations(json!({"op": "replace", "path": "active", "value": false})),
        "scimPatchGroup" => operations(
            json!({"op": "add", "path": "members", "value": [{"value": "0199a8b2-5c00-7abc-8def-0123456789ab"}]}),
        ),
        "scimSearch" => json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:SearchRequest"],
            "filter": "displayName sw \"j\"", "count": 10}),
        id if id.ends_with("User") => json!({"schemas": [Resource::User.urn()], "userName": "jane@example.com",
            "name": {"givenName": "Jane", "familyName": "Doe"}, "active": true,
            "emails": [{"value": "jane@example.com", "type": "work", "primary": true}]}),
        _ => json!({"schemas": [Resource::Group.urn()], "displayName": "Engineering"}),
    }
}

/// The schema of the protocol's errors.
pub(super) fn error_schema() -> Value {
    json!({
        "type": "object",
        "description": "RFC 7644, 3.12. `detail` begins with the code.",
        "required": ["schemas", "status", "detail"],
        "properties": {
            "schemas": {"type": "array", "items": {"type": "string"}},
            "status": {"type": "string"},
            "scimType": {"type": "string"},
            "detail": {"type": "string"}
        }
    })
}
