//! The OpenAPI document: the framework's description of the handlers, completed from the operation table.
//!
//! The framework describes parameters, bodies and good answers; this adds what it cannot know: the operations that are
//! served without it, credentials, common headers, and every error that the table names.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use poem::Response;
use poem::http::{HeaderValue, StatusCode, header};
use poem_openapi::{OpenApiService, Tags};
use serde_json::{Map, Value, json};

use super::operation::{BodyKind, OPERATIONS, Operation, Scope};
use super::problem::{Code, Form, Problem};
use super::{
    alerts, api_keys, audit, auth, authzen, channels, decision, explain, features, flags, gateway, groups, ingestion,
    jobs, kong_sync, ofrep, openmeter, passwords, platform_admins, policies, probes, provider_policy, provider_secrets,
    providers, quarantine, quotas, rate_limits, reconciliation, reply, role_assignments, roles, scim_description,
    tenants, usage, users,
};

/// The chapters of the document.
#[derive(Tags)]
pub(super) enum Tag {
    /// Onboarding, amending and suspending tenants.
    Tenants,
    /// A tenant's credentials.
    ApiKeys,
    /// A tenant's people, the groups they are in, and the roles they have.
    Organization,
    /// What a tenant's roles and policies allow, why, and decisions for whoever enforces them (AuthZEN).
    Access,
    /// Logging in with a browser: sessions, and passwords that are kept here.
    Login,
    /// Events coming in; reports and the ledger going out.
    Usage,
    /// Limits, how they stand, decisions for gateways, alerts.
    Quotas,
    /// The ledger against what gateways say.
    Reconciliation,
    /// The chain of everything that was done or denied.
    Audit,
    /// Feature flags: what each says to whom, and OpenFeature's remote evaluation.
    Features,
    /// Tenants' LLM providers, and their secrets, which are never shown.
    Providers,
    /// What was not counted, why, and another try.
    Quarantine,
    /// Background work.
    Jobs,
    /// Health, metrics and this document.
    Operations,
}

type Handlers = (
    tenants::Tenants,
    // A longer tuple than this one must be made of others: who may come.
    (
        api_keys::ApiKeys,
        users::Users,
        groups::Groups,
        role_assignments::RoleAssignments,
        (roles::Roles, policies::Policies, explain::Explain),
        platform_admins::PlatformAdmins,
        (auth::Auth, passwords::Passwords),
    ),
    ingestion::Ingestion,
    openmeter::OpenMeter,
    gateway::Gateway,
    usage::Usage,
    quotas::Quotas,
    alerts::Alerts,
    channels::Channels,
    reconciliation::Reconciliation,
    audit::Audit,
    quarantine::Quarantine,
    // A tuple of the framework's has sixteen places at most.
    (
        flags::Flags,
        kong_sync::KongSync,
        providers::Providers,
        provider_secrets::ProviderSecrets,
        provider_policy::ProviderPolicies,
    ),
    jobs::Jobs,
    rate_limits::RateLimits,
    probes::Probes,
);

/// Every handler that the framework serves.
pub(super) fn service() -> OpenApiService<Handlers, ()> {
    let handlers = (
        tenants::Tenants,
        (
            api_keys::ApiKeys,
            users::Users,
            groups::Groups,
            role_assignments::RoleAssignments,
            (roles::Roles, policies::Policies, explain::Explain),
            platform_admins::PlatformAdmins,
            (auth::Auth, passwords::Passwords),
        ),
        ingestion::Ingestion,
        openmeter::OpenMeter,
        gateway::Gateway,
        usage::Usage,
        quotas::Quotas,
        alerts::Alerts,
        channels::Channels,
        reconciliation::Reconciliation,
        audit::Audit,
        quarantine::Quarantine,
        (
            flags::Flags,
            kong_sync::KongSync,
            providers::Providers,
            provider_secrets::ProviderSecrets,
            provider_policy::ProviderPolicies,
        ),
        jobs::Jobs,
        rate_limits::RateLimits,
        probes::Probes,
    );
    OpenApiService::new(handlers, "platform-api", env!("CARGO_PKG_VERSION")).description(
        "The governance plane of a multi-tenant LLM platform: counts every token once, judges quotas, answers gateways, and can prove all of it.\n\nTimes are RFC 3339 in UTC, money is a decimal string of US dollars, lists are `{items, nextCursor}`. Every error is `{\"error\": {\"code\", \"message\", \"details\", \"requestId\"}}` with a stable code.",
    )
}

/// Fields of merge patches that `null` takes away, which the framework cannot tell from those that may be absent.
const NULLABLE: &[(&str, &[&str])] = &[
    ("UserPatch", &["displayName", "givenName", "familyName", "externalId", "attributes"]),
    ("ApiKeyPatch", &["expiresAt"]),
    ("GroupPatch", &["externalId", "description", "attributes"]),
];

/// Operations that browsers come to, whose refusals are pages as well.
const PAGES: &[&str] = &["finishLogin"];

/// Operations whose answer has an ETag.
const TAGGED: &[&str] = &[
    "getApiKey",
    "patchApiKey",
    "rotateApiKey",
    "createUser",
    "getUser",
    "replaceUser",
    "patchUser",
    "createGroup",
    "getGroup",
    "replaceGroup",
    "patchGroup",
    "listGroupMembers",
    "addGroupMembers",
    "removeGroupMember",
    "createRole",
    "getRole",
    "replaceRole",
    "createPolicy",
    "getPolicy",
    "replacePolicy",
    "createProvider",
    "getProvider",
    "replaceProvider",
    "putProviderSecret",
    "deleteProviderSecret",
    "getProviderPolicy",
    "replaceProviderPolicy",
];

/// Said of each operation that may hand something out.
const HANDING_OUT_RULE: &str = "Nobody hands out a permission that its own credential does not have: that is 403 \
    `PERMISSION_NOT_HELD`, unless the caller may `permissions:grant`.";

/// The whole document, pretty and the same in every build.
#[must_use]
pub fn openapi_document() -> String {
    let mut document: Value = serde_json::from_str(&service().spec()).unwrap_or_default();
    document["paths"]["/v1/quotas/{tenantId}/decision"] = decision::described();
    document["paths"]["/v1/features"] = features::described();
    for (path, described) in ofrep::described().into_iter().chain(authzen::described()) {
        document["paths"][path] = described;
    }
    for (path, described) in scim_description::described() {
        document["paths"][path] = described;
    }
    document["paths"]["/openapi.json"] = page("getDocument", "This document", "application/json", "object");
    document["paths"]["/docs"] = page("getDocumentation", "This document, for people", "text/html", "string");
    document["components"]["schemas"]["Decision"] = decision::schema();
    document["components"]["schemas"]["Error"] = error_schema();
    document["components"]["schemas"]["Problem"] = problem_schema();
    document["components"]["schemas"]["ScimError"] = scim_description::error_schema();
    document["components"]["securitySchemes"] = json!({
        "bearer": {
            "type": "http", "scheme": "bearer",
            "description": "An API key, or a JWT of a configured issuer."
        },
        "apiKey": {
            "type": "apiKey", "in": "header", "name": "X-API-Key",
            "description": "An API key, for gateways that can only set a plain header."
        },
        "session": {
            "type": "apiKey", "in": "cookie", "name": "__Host-platform-session",
            "description": "A browser's session; without TLS the cookie's name is platform-session. A request that is no GET also needs the session's token in X-CSRF-Token."
        }
    });
    document["components"]["parameters"] = common_parameters();
    document["components"]["headers"] = rate_limits::described();
    for operation in OPERATIONS {
        complete(&mut document["paths"][operation.path][operation.method.as_str().to_lowercase()], operation);
    }
    ofrep::describe_failures(&mut document);
    close_bodies(&mut document);
    for (schema, fields) in NULLABLE {
        for field in *fields {
            document["components"]["schemas"][schema]["properties"][field]["nullable"] = Value::Bool(true);
        }
    }
    serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"
}

fn page(id: &str, summary: &str, media: &str, kind: &str) -> Value {
    json!({"get": {
        "tags": ["Operations"], "summary": summary, "operationId": id,
        "responses": {"200": {"description": "Done.", "content": {media: {"schema": {"type": kind}}}}}
    }})
}

fn common_parameters() -> Value {
    let header = |name: &str, description: &str, length: usize| {
        json!({
            "name": name, "in": "header", "required": false, "description": description,
            "schema": {"type": "string", "maxLength": length}
        })
    };
    json!({
        "RequestId": {
            "name": "X-Request-Id", "in": "header", "required": false,
            "description": "Echoed, and made when absent, longer than 128 characters or not of printable ASCII; errors, logs and audit records carry it.",
            "schema": {"type": "string"}
        },
        "TenantId": header("X-Tenant-Id", "Must agree with the path; chooses a tenant for a platform administrator.", 36),
        "UserId": header("X-User-Id", "Whom a gateway acts for; believed only from service credentials.", 256),
        "IdempotencyKey": header("Idempotency-Key", "A repeated request with the same key and body gets the stored answer.", 255)
    })
}

fn error_schema() -> Value {
    let names: Vec<&str> = Code::ALL.iter().map(|code| code.name()).collect();
    json!({
        "type": "object",
        "required": ["error"],
        "properties": {"error": {
            "type": "object",
            "required": ["code", "message", "details", "requestId"],
            "properties": {
                "code": {"type": "string", "enum": names},
                "message": {"type": "string"},
                "details": {
                    "type": "object",
                    "description": "Depends on the code. VALIDATION_FAILED: `fields`, a list of `{pointer, message}`."
                },
                "requestId": {"type": "string"}
            }
        }}
    })
}

fn problem_schema() -> Value {
    json!({
        "type": "object",
        "description": "RFC 9457, with the envelope of every other address in `error`.",
        "required": ["type", "title", "status", "detail", "error"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "error": {"$ref": "#/components/schemas/Error/properties/error"}
        }
    })
}

/// Bodies that are read strictly have the fields that are described, and no others.
fn close_bodies(document: &mut Value) {
    let strict = OPERATIONS.iter().filter(|operation| matches!(operation.body, BodyKind::Json | BodyKind::Patch));
    let mut open: Vec<String> = strict
        .flat_map(|operation| {
            let path = &document["paths"][operation.path];
            references(&path[operation.method.as_str().to_lowercase()]["requestBody"])
        })
        .collect();
    while let Some(name) = open.pop() {
        let schema = &mut document["components"]["schemas"][&name];
        if schema["type"] == "object" && schema["additionalProperties"].is_null() {
            schema["additionalProperties"] = Value::Bool(false);
            open.extend(references(schema));
        }
    }
}

/// Names of the schemas that a description refers to.
fn references(described: &Value) -> Vec<String> {
    match described {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(key, value)| match value.as_str() {
                Some(target) if key == "$ref" => target.rsplit('/').next().map(str::to_owned).into_iter().collect(),
                _ => references(value),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

/// What the table knows of an operation.
fn complete(described: &mut Value, operation: &Operation) {
    if operation.scope != Scope::Open {
        described["security"] = json!([{ "bearer": [] }, { "apiKey": [] }, { "session": [] }]);
    }
    let mut parameters = vec!["RequestId"];
    if operation.scope != Scope::Open {
        parameters.extend(["TenantId", "UserId"]);
    }
    let reads_keys = matches!(operation.body, BodyKind::None | BodyKind::Json | BodyKind::Patch);
    if operation.method != poem::http::Method::GET && reads_keys && operation.scope != Scope::Open {
        parameters.push("IdempotencyKey");
    }
    let mut all = described["parameters"].as_array().cloned().unwrap_or_default();
    all.extend(parameters.iter().map(|name| json!({"$ref": format!("#/components/parameters/{name}")})));
    described["parameters"] = Value::Array(all);
    if operation.body == BodyKind::Patch {
        let content = &mut described["requestBody"]["content"];
        content["application/merge-patch+json"] = content["application/json"].clone();
    }
    if TAGGED.contains(&operation.id) {
        let tag = json!({"description": "What `If-Match` of a change takes.", "schema": {"type": "string"}});
        for status in ["200", "201"] {
            if described["responses"][status].is_object() {
                described["responses"][status]["headers"]["ETag"] = tag.clone();
            }
        }
    }
    let codes = operation.all_codes();
    if codes.contains(&Code::PermissionNotHeld) {
        let said = described["description"].as_str().unwrap_or_default();
        described["description"] = Value::String([said, HANDING_OUT_RULE].join("\n\n").trim_start().to_owned());
    }
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in codes {
        by_status.entry(code.status()).or_default().push(code);
    }
    for (status, codes) in by_status {
        let known = &mut described["responses"][status.to_string()];
        if known.is_null() {
            *known = error_response(status, &codes, operation.problem_form());
        }
    }
    if PAGES.contains(&operation.id) {
        for (_, response) in described["responses"].as_object_mut().into_iter().flatten() {
            if response["content"].is_object() {
                response["content"]["text/html"] = json!({"schema": {"type": "string"}});
            }
        }
    }
    if operation.class().is_some() {
        tell_limits(&mut described["responses"]);
    }
}

/// Good answers and refusals of a limited operation tell how the caller stands.
fn tell_limits(responses: &mut Value) {
    let told = responses.as_object_mut().into_iter().flatten();
    for (_, response) in told.filter(|(status, _)| status.starts_with(['2', '3']) || *status == "429") {
        for name in ["RateLimit-Policy", "RateLimit"] {
            response["headers"][name] = json!({"$ref": format!("#/components/headers/{name}")});
        }
    }
}

fn error_response(status: u16, codes: &[Code], form: Form) -> Value {
    let described: Vec<String> = codes.iter().map(|code| format!("`{}`: {}", code.name(), code.title())).collect();
    let examples: Map<String, Value> = codes
        .iter()
        .map(|code| {
            let problem = Problem::new(*code);
            let example = json!({"value": problem.body("0199a8b2-5c00-7abc-8def-0123456789ab", form)});
            (code.name().to_owned(), example)
        })
        .collect();
    let mut response = json!({
        "description": described.join("\n\n"),
        "content": {form.media(): {
            "schema": {"$ref": format!("#/components/schemas/{}", form.schema())},
            "examples": examples
        }}
    });
    let text = json!({"schema": {"type": "string"}});
    match status {
        401 => response["headers"] = json!({"WWW-Authenticate": text}),
        429 | 503 => response["headers"] = json!({"Retry-After": {"schema": {"type": "integer"}}}),
        _ => {}
    }
    response
}

/// `GET /openapi.json`.
pub(super) fn serve_document() -> Response {
    static DOCUMENT: OnceLock<String> = OnceLock::new();
    reply::json(StatusCode::OK, DOCUMENT.get_or_init(openapi_document).clone().into_bytes())
}

/// `GET /docs`: the framework's copy of Swagger UI, with our document in it. Nothing is fetched from elsewhere.
pub(super) fn serve_documentation() -> Response {
    static PAGE: OnceLock<bytes::Bytes> = OnceLock::new();
    let page = PAGE.get_or_init(|| documentation().into());
    let mut response = Response::builder().content_type("text/html; charset=utf-8").body(page.clone());
    let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'";
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    response
}

fn documentation() -> String {
    let service = service();
    // `</` would end the script that the document is put into.
    let document = openapi_document().replace("</", "<\\/");
    service.swagger_ui_html().replacen(&service.spec(), &document, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn document() -> Value {
        serde_json::from_str(&openapi_document()).unwrap()
    }

    /// `(method, path, operation)` of the document.
    fn described() -> Vec<(String, String, Value)> {
        let document = document();
        let paths = document["paths"].as_object().unwrap();
        let of_path = |(path, item): (&String, &Value)| {
            let methods = item.as_object().unwrap().clone();
            let path = path.clone();
            methods.into_iter().map(move |(method, operation)| (method.to_uppercase(), path.clone(), operation))
        };
        paths.iter().flat_map(of_path).collect()
    }

    /// `UPDATE_OPENAPI=1 cargo test openapi` writes the document anew.
    #[test]
    fn the_committed_document_is_the_one_this_code_makes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        let made = openapi_document();
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(path, &made).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == made,
            "openapi.json is not what the code makes: run `UPDATE_OPENAPI=1 cargo test openapi`"
        );
    }

    #[test]
    fn the_table_and_the_openapi_document_have_the_same_operations() {
        let in_document: BTreeSet<(String, String, String)> = described()
            .into_iter()
            .map(|(method, path, operation)| (method, path, operation["operationId"].as_str().unwrap().to_owned()))
            .collect();
        let in_table: BTreeSet<(String, String, String)> = OPERATIONS
            .iter()
            .map(|operation| (operation.method.to_string(), operation.path.to_owned(), operation.id.to_owned()))
            .collect();
        assert_eq!(in_document, in_table);
        assert_eq!(in_table.len(), OPERATIONS.len());
    }

    #[test]
    fn whoever_may_hand_something_out_is_told_the_rule() {
        let mut told = 0;
        for (method, path, operation) in described() {
            let refused = operation["responses"]["403"]["description"].as_str().unwrap_or_default();
            let is_told = operation["description"].as_str().is_some_and(|text| text.ends_with(HANDING_OUT_RULE));
            assert_eq!(is_told, refused.contains("PERMISSION_NOT_HELD"), "{method} {path}");
            told += usize::from(is_told);
        }
        assert!(told > 20, "{told}");
    }

    #[test]
    fn each_operation_documents_the_query_parameters_it_takes_and_no_others() {
        for (_, path, described) in described() {
            let operation = OPERATIONS.iter().find(|operation| described["operationId"] == operation.id).unwrap();
            let parameters = described["parameters"].as_array().unwrap();
            let of = |place: &str| -> BTreeSet<&str> {
                let there = parameters.iter().filter(|parameter| parameter["in"] == place);
                there.map(|parameter| parameter["name"].as_str().unwrap()).collect()
            };
            assert_eq!(of("query"), operation.query.iter().copied().collect(), "{}", operation.id);
            let named: BTreeSet<&str> = path.split(['{', '}']).skip(1).step_by(2).collect();
            assert_eq!(of("path"), named, "{}", operation.id);
            assert_eq!(described["requestBody"].is_object(), operation.body != BodyKind::None, "{}", operation.id);
            assert_eq!(described["security"].is_array(), operation.scope != Scope::Open, "{}", operation.id);
            assert!(described["summary"].is_string(), "{}", operation.id);
        }
    }

    #[test]
    fn each_error_of_the_table_is_in_the_document() {
        for (_, _, described) in described() {
            let operation = OPERATIONS.iter().find(|operation| described["operationId"] == operation.id).unwrap();
            for code in operation.all_codes() {
                let response = &described["responses"][code.status().to_string()];
                let media = operation.problem_form().media();
                let named = response["content"][media]["examples"][code.name()].is_object();
                // Health answers 503 with its own body.
                assert!(named || (operation.id == "getHealth" && code.status() == 503), "{} {code:?}", operation.id);
            }
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references(value: &Value, found: &mut BTreeSet<String>) {
            match value {
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                    map.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = document();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        assert!(found.len() > 20);
        for reference in found {
            let target = document.pointer(reference.strip_prefix('#').unwrap());
            assert!(target.is_some(), "{reference}");
        }
    }

    /// The framework describes and serde writes; each example proves that they mean the same names.
    #[test]
    fn examples_read_as_they_are_written() {
        use super::super::{api_key_view, settlement};
        use poem_openapi::types::{Example, ToJSON};
        fn check<T: Example + ToJSON + serde::Serialize>() {
            let (described, written) = (T::example().to_json().unwrap(), serde_json::to_value(T::example()).unwrap());
            assert_eq!(described, written, "{}", std::any::type_name::<T>());
        }
        check::<tenants::CreateTenant>();
        check::<tenants::AmendTenant>();
        check::<tenants::TenantCreated>();
        check::<api_key_view::CreateApiKey>();
        check::<api_key_view::ApiKeyPatch>();
        check::<api_key_view::RotateApiKey>();
        check::<api_key_view::ApiKeyCreated>();
        check::<quotas::ReplaceQuotas>();
        check::<quotas::QuotaList>();
        check::<settlement::TreatFindingBody>();
        check::<settlement::SettleFinding>();
        check::<reconciliation::FindingView>();
        check::<reconciliation::ReconciliationView>();
        check::<ingestion::Recorded>();
        check::<ingestion::UsageEventEnvelope>();
        check::<roles::CreateRoleBody>();
        check::<roles::RoleView>();
        check::<policies::PolicyBody>();
        check::<policies::PolicyView>();
        check::<explain::QuestionBody>();
        check::<explain::DryRunBody>();
        check::<flags::FlagBody>();
        check::<flags::FlagView>();
        check::<audit::AuditReport>();
        check::<quarantine::Replayed>();
        check::<jobs::SubmitJob>();
        check::<jobs::JobView>();
    }

    #[test]
    fn examples_have_the_fields_of_their_schemas() {
        let document = document();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let mut examples = 0;
        for (name, schema) in schemas {
            let Some(example) = schema["example"].as_object() else { continue };
            examples += 1;
            let known = schema["properties"].as_object().unwrap();
            for field in example.keys() {
                assert!(known.contains_key(field), "{name}.{field}");
            }
            for required in schema["required"].as_array().into_iter().flatten() {
                assert!(example.contains_key(required.as_str().unwrap()), "{name} lacks {required}");
            }
        }
        assert!(examples >= 10, "{examples}");
    }

    #[test]
    fn the_documentation_page_needs_nothing_from_elsewhere() {
        let page = documentation();
        assert!(page.contains("\"operationId\": \"decide\""), "the page has the framework's document, not ours");
        for source in ["<script src=", "<link rel=\"stylesheet\" href=\"http", "@import"] {
            assert!(!page.contains(source), "{source}");
        }
    }
}
