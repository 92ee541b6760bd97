//! AuthZEN's Authorization API 1.0, for gateways that enforce what is decided here: `/access/v1/…`. Described by hand: its
//! names are the standard's.
//!
//! Decisions come from the function that decides for our own door, about the caller's tenant alone. A subject that the
//! tenant does not have and one that was deactivated are denied in the same words. What whoever asks says of attributes
//! counts where we know nothing ourselves.

use poem::Response;
use poem::http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

use super::authorize::Ask;
use super::authzen_search::{self, RESULTS_MAX, results};
use super::body;
use super::explain::{NAME_BYTES_MAX, is_name};
use super::problem::{Code, Problem};
use super::reply;
use crate::access::authorizer::{Authority, Inquiry};
use crate::access::engine::Decided;
use crate::domain::policy::question::Said;

/// Questions of one request.
const EVALUATIONS_MAX: usize = 100;
/// How long whoever reads the metadata may keep it.
const CONFIGURATION_KEPT: &str = "public, max-age=300";

const EVALUATION: &str = "/access/v1/evaluation";
const EVALUATIONS: &str = "/access/v1/evaluations";
const SEARCH_SUBJECT: &str = "/access/v1/search/subject";
const SEARCH_RESOURCE: &str = "/access/v1/search/resource";
const SEARCH_ACTION: &str = "/access/v1/search/action";
const CONFIGURATION: &str = "/.well-known/authzen-configuration";

/// Which of several questions are decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Semantic {
    ExecuteAll,
    DenyOnFirstDeny,
    PermitOnFirstPermit,
}

impl Semantic {
    fn read(body: &Map<String, Value>) -> Result<Semantic, String> {
        let options = match body.get("options") {
            None | Some(Value::Null) => None,
            Some(Value::Object(options)) => Some(options),
            Some(_) => return Err("options must be an object".into()),
        };
        let said = options.and_then(|options| options.get("evaluations_semantic"));
        match said.map(Value::as_str) {
            None | Some(Some("execute_all")) => Ok(Semantic::ExecuteAll),
            Some(Some("deny_on_first_deny")) => Ok(Semantic::DenyOnFirstDeny),
            Some(Some("permit_on_first_permit")) => Ok(Semantic::PermitOnFirstPermit),
            Some(_) => Err("options.evaluations_semantic is none that is known".into()),
        }
    }

    /// Is nothing more decided after this?
    fn ends_with(self, decision: bool) -> bool {
        match self {
            Semantic::ExecuteAll => false,
            Semantic::DenyOnFirstDeny => !decision,
            Semantic::PermitOnFirstPermit => decision,
        }
    }
}

/// Answers any of the addresses.
pub(super) async fn answer(ask: &Ask) -> Result<Response, Problem> {
    if ask.operation.id == "getAuthzenConfiguration" {
        return configuration(ask);
    }
    let body = body::read::<Map<String, Value>>(&ask.body).map_err(as_bad_request)?;
    let Some(tenant) = ask.admitted.tenant else {
        let message = "x-tenant-id: is required for an administrator of the platform";
        return Err(Problem::new(Code::InvalidHeader).saying(message));
    };
    let authority = ask.api.gate.authorizer().of(tenant).await?;
    let said = match ask.operation.id {
        "evaluateAccess" => evaluation(ask, &authority, &body).await?,
        "evaluateAccesses" => evaluations(ask, &authority, &body).await?,
        "searchSubjects" => authzen_search::subjects(ask, &authority, &body).await?,
        "searchResources" => authzen_search::resources(ask, &authority, &body).await?,
        "searchActions" => authzen_search::actions(ask, &authority, &body).await?,
        _ => return Err(Problem::new(Code::Internal)),
    };
    Ok(reply::json(StatusCode::OK, said.to_string().into_bytes()))
}

/// Of what is wrong with a request the standard knows 400 alone, a body of another media type included.
pub(super) fn as_bad_request(problem: Problem) -> Problem {
    match problem.code {
        Code::ValidationFailed | Code::UnsupportedMediaType => Problem { code: Code::BadRequest, ..problem },
        _ => problem,
    }
}

pub(super) fn bad(message: String) -> Problem {
    Problem::new(Code::BadRequest).saying(message)
}

async fn evaluation(ask: &Ask, authority: &Authority, body: &Map<String, Value>) -> Result<Value, Problem> {
    let inquiry = inquiry(body, &Map::new()).map_err(bad)?;
    Ok(told(&ask.api.gate.authorizer().decide(authority, &inquiry).await))
}

async fn evaluations(ask: &Ask, authority: &Authority, body: &Map<String, Value>) -> Result<Value, Problem> {
    let semantic = Semantic::read(body).map_err(bad)?;
    let items = match body.get("evaluations") {
        None => &Vec::new(),
        Some(Value::Array(items)) if items.len() <= EVALUATIONS_MAX => items,
        Some(Value::Array(_)) => return Err(bad(format!("evaluations must be at most {EVALUATIONS_MAX}"))),
        Some(_) => return Err(bad("evaluations must be a list".into())),
    };
    if items.is_empty() {
        return evaluation(ask, authority, body).await;
    }
    // What is to stand for what an item lacks is the whole request's, and so is what is wrong with it.
    for name in ["subject", "action", "resource", "context"] {
        if body.get(name).is_some_and(|part| !part.is_object() && !part.is_null()) {
            return Err(bad(format!("{name} must be an object")));
        }
    }
    let mut answers = Vec::with_capacity(items.len());
    for item in items {
        // Each may cost a while; others have their turn between them.
        tokio::task::yield_now().await;
        let read = item.as_object().ok_or_else(|| "an evaluation must be an object".to_owned());
        let (decision, answer) = match read.and_then(|item| inquiry(item, body)) {
            Ok(inquiry) => {
                let decided = ask.api.gate.authorizer().decide(authority, &inquiry).await;
                (decided.allowed, told(&decided))
            }
            // One that cannot be read is denied, and the others are decided.
            Err(message) => {
                let error = json!({ "status": 400, "message": message });
                (false, json!({ "decision": false, "context": { "error": error } }))
            }
        };
        answers.push(answer);
        if semantic.ends_with(decision) {
            break;
        }
    }
    Ok(json!({ "evaluations": answers }))
}

fn told(decided: &Decided) -> Value {
    json!({
        "decision": decided.allowed,
        "context": { "reason": decided.reason.name(), "policyVersion": decided.version },
    })
}

/// What a search looks for. An id that it names is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sought {
    Subject,
    Resource,
    Action,
}

/// A question, each of whose parts stands whole in `item` or else in `defaults`. Members beside them are the standard's to
/// add.
fn inquiry(item: &Map<String, Value>, defaults: &Map<String, Value>) -> Result<Inquiry, String> {
    read(item, defaults, None)
}

/// The question that a search asks of each that it finds, without what is sought.
pub(super) fn searched(body: &Map<String, Value>, sought: Sought) -> Result<Inquiry, String> {
    read(body, &Map::new(), Some(sought))
}

fn read(item: &Map<String, Value>, defaults: &Map<String, Value>, sought: Option<Sought>) -> Result<Inquiry, String> {
    let part = |name: &str| item.get(name).or_else(|| defaults.get(name));
    let object = |name: &str| {
        let found = part(name).and_then(Value::as_object);
        found.ok_or_else(|| format!("{name} must be an object"))
    };
    let text = |object: &Map<String, Value>, part: &str, field: &str| {
        let found = object.get(field).and_then(Value::as_str).filter(|text| is_name(text)).map(str::to_owned);
        found.ok_or_else(|| {
            format!("{part}.{field} must be a string of 1 to {NAME_BYTES_MAX} bytes without control characters")
        })
    };
    let properties = |object: &Map<String, Value>, part: &str| match object.get("properties") {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(properties)) => Ok(properties.clone()),
        Some(_) => Err(format!("{part}.properties must be an object")),
    };
    let (subject, resource) = (object("subject")?, object("resource")?);
    let subject_id = match sought {
        Some(Sought::Subject) => String::new(),
        _ => text(subject, "subject", "id")?,
    };
    let (action, action_properties) = match sought {
        Some(Sought::Action) => (String::new(), Map::new()),
        _ => {
            let action = object("action")?;
            (text(action, "action", "name")?, properties(action, "action")?)
        }
    };
    let resource_id = match sought {
        Some(Sought::Resource) => None,
        _ => Some(text(resource, "resource", "id")?),
    };
    let context = match part("context") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(context)) => context.clone(),
        Some(_) => return Err("context must be an object".into()),
    };
    Ok(Inquiry {
        subject_type: text(subject, "subject", "type")?,
        subject_id,
        action,
        resource_type: text(resource, "resource", "type")?,
        resource_id,
        said: Said {
            subject: properties(subject, "subject")?,
            resource: properties(resource, "resource")?,
            action: action_properties,
            context,
        },
    })
}

/// Where everything is, under the address that was configured.
fn configuration(ask: &Ask) -> Result<Response, Problem> {
    let base = ask.api.public_url.as_deref().map(|base| base.trim_end_matches('/'));
    let base = base.ok_or_else(|| Problem::new(Code::NotFound).saying("authorization.public_url is not configured"))?;
    let said = described_configuration(base);
    let mut response = reply::json(StatusCode::OK, said.to_string().into_bytes());
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(CONFIGURATION_KEPT));
    Ok(response)
}

fn described_configuration(base: &str) -> Value {
    json!({
        "policy_decision_point": base,
        "access_evaluation_endpoint": format!("{base}{EVALUATION}"),
        "access_evaluations_endpoint": format!("{base}{EVALUATIONS}"),
        "search_subject_endpoint": format!("{base}{SEARCH_SUBJECT}"),
        "search_resource_endpoint": format!("{base}{SEARCH_RESOURCE}"),
        "search_action_endpoint": format!("{base}{SEARCH_ACTION}"),
    })
}

/// The descriptions of the operations, by path.
pub(super) fn described() -> [(&'static str, Value); 6] {
    let entity = |required: &[&str], description: &str| {
        json!({
            "type": "object", "description": description, "required": required,
            "properties": {"type": {"type": "string"}, "id": {"type": "string"}, "properties": {"type": "object"}}
        })
    };
    let subject = || {
        entity(
            &["type", "id"],
            "`user` (by id, user name or external id), `apiKey` (by its public id), or whatever the asker calls its own.",
        )
    };
    let resource = || entity(&["type", "id"], "Its type is the object of a permission.");
    let action = || {
        json!({
            "type": "object", "required": ["name"],
            "properties": {"name": {"type": "string"}, "properties": {"type": "object"}}
        })
    };
    let context = || json!({"type": "object", "description": "Attributes of the request, such as `ip` and `time`."});
    let page = || {
        json!({
            "type": "object",
            "properties": {
                "token": {"type": "string", "description": "`next_token` of the page before, of the same question; a limit beside it is that of the first page."},
                "limit": {"type": "integer", "minimum": 0, "description": format!("At most {RESULTS_MAX}, however many are asked for.")}
            }
        })
    };
    let decision = || {
        json!({
            "type": "object", "required": ["decision"],
            "properties": {
                "decision": {"type": "boolean"},
                "context": {
                    "type": "object",
                    "properties": {
                        "reason": {"type": "string", "enum": ["allowed", "deniedByPolicy", "nothingApplies", "failed"]},
                        "policyVersion": {"type": "integer", "format": "int64"},
                        "error": {"type": "object"}
                    }
                }
            }
        })
    };
    let listed = |items: Value| {
        json!({
            "type": "object", "required": ["results"],
            "properties": {
                "results": {"type": "array", "items": items},
                "page": {
                    "type": "object", "required": ["next_token", "count"],
                    "properties": {"next_token": {"type": "string"}, "count": {"type": "integer"}}
                }
            }
        })
    };
    let jane = json!({"type": "user", "id": "jane@example.com"});
    let model = json!({"type": "model", "id": "gpt-4.1"});
    let allowed = json!({"decision": true, "context": {"reason": "allowed", "policyVersion": 7}});
    let denied = json!({"decision": false, "context": {"reason": "nothingApplies", "policyVersion": 7}});
    let evaluation_schema = json!({
        "type": "object", "required": ["subject", "action", "resource"],
        "properties": {"subject": subject(), "action": action(), "resource": resource(), "context": context()}
    });
    let evaluations_schema = json!({
        "type": "object",
        "properties": {
            "subject": subject(), "action": action(), "resource": resource(), "context": context(),
            "evaluations": {
                "type": "array", "maxItems": EVALUATIONS_MAX,
                "description": "Each takes what it lacks from beside the list. Without any, the request is one evaluation.",
                "items": {
                    "type": "object",
                    "properties": {"subject": subject(), "action": action(), "resource": resource(), "context": context()}
                }
            },
            "options": {
                "type": "object",
                "properties": {"evaluations_semantic": {
                    "type": "string", "enum": ["execute_all", "deny_on_first_deny", "permit_on_first_permit"]
                }}
            }
        }
    });
    let subjects_schema = json!({
        "type": "object", "required": ["subject", "action", "resource"],
        "properties": {
            "subject": entity(&["type"], "`user`; nobody else is listed."),
            "action": action(), "resource": resource(), "context": context(), "page": page()
        }
    });
    let resources_schema = json!({
        "type": "object", "required": ["subject", "action", "resource"],
        "properties": {
            "subject": subject(), "action": action(), "context": context(), "page": page(),
            "resource": entity(&["type"], "A kind of ours, or one of which rules name ids.")
        }
    });
    let actions_schema = json!({
        "type": "object", "required": ["subject", "resource"],
        "properties": {"subject": subject(), "resource": resource(), "context": context(), "page": page()}
    });
    let base = "https://platform.example.com";
    [
        (
            EVALUATION,
            operation(
                "evaluateAccess",
                "Decide one question (AuthZEN)",
                "AuthZEN 1.0, by the roles and policies of the caller's tenant. A denial is an answer: 200 with `decision: false`. A subject that the tenant does not have is denied as one that may not.",
                (
                    evaluation_schema,
                    json!({"subject": jane, "action": {"name": "use"}, "resource": model, "context": {"ip": "10.1.2.3"}}),
                ),
                (decision(), allowed.clone()),
            ),
        ),
        (
            EVALUATIONS,
            operation(
                "evaluateAccesses",
                "Decide several questions (AuthZEN)",
                "AuthZEN 1.0. In the order of the questions; with `deny_on_first_deny` and `permit_on_first_permit` up to the first that ends it.",
                (
                    evaluations_schema,
                    json!({"subject": jane, "action": {"name": "use"}, "evaluations": [{"resource": model}, {"resource": {"type": "model", "id": "o3"}}]}),
                ),
                (
                    json!({"type": "object", "properties": {"evaluations": {"type": "array", "items": decision()}, "decision": {"type": "boolean"}, "context": {"type": "object"}}}),
                    json!({"evaluations": [allowed, denied]}),
                ),
            ),
        ),
        (
            SEARCH_SUBJECT,
            operation(
                "searchSubjects",
                "Which users may? (AuthZEN)",
                "AuthZEN 1.0: users of the tenant who may do the action on the resource, in the order of their making, each by what `authorization.subject_ids` says. A page may have fewer results than it could; the last one has an empty `next_token`.",
                (subjects_schema, json!({"subject": {"type": "user"}, "action": {"name": "use"}, "resource": model})),
                (
                    listed(
                        json!({"type": "object", "properties": {"type": {"type": "string"}, "id": {"type": "string"}}}),
                    ),
                    results(vec![json!({"type": "user", "id": "0199a8b2-5c00-7abc-8def-0123456789ab"})], ""),
                ),
            ),
        ),
        (
            SEARCH_RESOURCE,
            operation(
                "searchResources",
                "Which things may a subject do this to? (AuthZEN)",
                "AuthZEN 1.0: of the tenant's `users`, `groups`, `roleAssignments`, `roles`, `policies`, `apiKeys`, `providers` and `flags`, and of those whose ids a policy names in full, in the order of their ids. Other things are the asker's: what only a wildcard stands for cannot be listed. A page may have fewer results than it could; the last one has an empty `next_token`.",
                (resources_schema, json!({"subject": jane, "action": {"name": "read"}, "resource": {"type": "flags"}})),
                (
                    listed(
                        json!({"type": "object", "properties": {"type": {"type": "string"}, "id": {"type": "string"}}}),
                    ),
                    results(vec![json!({"type": "flags", "id": "new-checkout"})], ""),
                ),
            ),
        ),
        (
            SEARCH_ACTION,
            operation(
                "searchActions",
                "Which actions may a subject do? (AuthZEN)",
                "AuthZEN 1.0: of the actions that any role or policy names for this type of resource. An action that only a wildcard stands for has no name to list.",
                (actions_schema, json!({"subject": jane, "resource": model})),
                (
                    listed(json!({"type": "object", "properties": {"name": {"type": "string"}}})),
                    results(vec![json!({"name": "use"})], ""),
                ),
            ),
        ),
        (
            CONFIGURATION,
            json!({"get": {
                "tags": ["Access"],
                "summary": "Where decisions are asked for (AuthZEN)",
                "description": "AuthZEN 1.0's metadata, under `authorization.public_url`; not there without it. Without `capabilities`, of which the standard has registered none.",
                "operationId": "getAuthzenConfiguration",
                "responses": {"200": {"description": "Done.", "content": {"application/json": {
                    "schema": {"type": "object"}, "example": described_configuration(base)
                }}}}
            }}),
        ),
    ]
}

fn operation(id: &str, summary: &str, description: &str, asked: (Value, Value), said: (Value, Value)) -> Value {
    json!({"post": {
        "tags": ["Access"], "summary": summary, "description": description, "operationId": id,
        "requestBody": {"required": true, "content": {"application/json": {"schema": asked.0, "example": asked.1}}},
        "responses": {"200": {"description": "Done.", "content": {"application/json": {"schema": said.0, "example": said.1}}}}
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_question_takes_what_it_lacks_from_beside_the_list() {
        let defaults = object(json!({
            "subject": {"type": "user", "id": "ada", "properties": {"level": 3}}, "action": {"name": "read"},
            "context": {"ip": "10.0.0.1"}, "later": true,
        }));
        let item = object(json!({"resource": {"type": "file", "id": "1"}, "action": {"name": "write"}, "context": {}}));
        let read = inquiry(&item, &defaults).unwrap();
        assert_eq!((read.subject_id.as_str(), read.action.as_str()), ("ada", "write"));
        assert_eq!((read.resource_type.as_str(), read.resource_id.as_deref()), ("file", Some("1")));
        assert_eq!((read.said.subject["level"].clone(), read.said.context.len()), (json!(3), 0));
    }

    #[test]
    fn what_is_no_question_is_told_by_the_part_that_is_wrong() {
        let good = json!({
            "subject": {"type": "user", "id": "ada"}, "action": {"name": "read"}, "resource": {"type": "file", "id": "1"},
        });
        assert!(inquiry(&object(good.clone()), &Map::new()).is_ok());
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for (pointer, wrong, named) in [
            ("/subject", json!(null), "subject"),
            ("/subject", json!("ada"), "subject"),
            ("/subject/id", json!(7), "subject.id"),
            ("/subject/id", json!(""), "subject.id"),
            ("/subject/type", json!(long), "subject.type"),
            ("/action", json!({}), "action.name"),
            ("/action/name", json!("a\nb"), "action.name"),
            ("/resource/type", json!(null), "resource.type"),
            ("/resource", json!({"type": "file"}), "resource.id"),
            ("/resource/id", json!(null), "resource.id"),
        ] {
            let mut body = good.clone();
            *body.pointer_mut(pointer).unwrap() = wrong;
            let error = inquiry(&object(body.clone()), &Map::new()).unwrap_err();
            assert!(error.starts_with(named), "{body}: {error}");
        }
        for (field, wrong) in [("context", json!([])), ("subject", json!({"type": "user", "id": "a", "properties": 1}))]
        {
            let mut body = object(good.clone());
            body.insert(field.to_owned(), wrong);
            assert!(inquiry(&body, &Map::new()).unwrap_err().starts_with(field));
        }
    }

    #[test]
    fn what_ends_several_questions_is_what_was_asked_for() {
        let of = |semantic: Value| Semantic::read(&object(json!({"options": {"evaluations_semantic": semantic}})));
        assert_eq!(Semantic::read(&Map::new()), Ok(Semantic::ExecuteAll));
        for (name, on_denial, on_permit) in [
            ("execute_all", false, false),
            ("deny_on_first_deny", true, false),
            ("permit_on_first_permit", false, true),
        ] {
            let semantic = of(json!(name)).unwrap();
            assert_eq!((semantic.ends_with(false), semantic.ends_with(true)), (on_denial, on_permit), "{name}");
        }
        assert!(of(json!("whatever")).is_err() && of(json!(1)).is_err());
        assert!(Semantic::read(&object(json!({"options": []}))).is_err());
        let other = object(json!({"options": {"another_option": "value"}}));
        assert_eq!(Semantic::read(&other), Ok(Semantic::ExecuteAll), "options are the standard's to add");
    }

    #[test]
    fn a_search_ignores_the_id_of_what_it_looks_for_and_needs_every_other() {
        let whole = json!({
            "subject": {"type": "user", "id": "ada"}, "action": {"name": "read"}, "resource": {"type": "file", "id": "1"},
        });
        let read = |sought| searched(&object(whole.clone()), sought).unwrap();
        assert_eq!(read(Sought::Subject).subject_id, "");
        assert_eq!(read(Sought::Resource).resource_id, None);
        assert_eq!(read(Sought::Action).action, "");
        let open = json!({"subject": {"type": "user"}, "action": {"name": "read"}, "resource": {"type": "file"}});
        for (sought, named) in [(Sought::Subject, "resource.id"), (Sought::Resource, "subject.id")] {
            let error = searched(&object(open.clone()), sought).unwrap_err();
            assert!(error.starts_with(named), "{sought:?}: {error}");
        }
        let ids =
            json!({"subject": {"type": "user", "id": 7}, "action": {"name": "read"}, "resource": whole["resource"]});
        assert!(searched(&object(ids), Sought::Subject).is_ok(), "whatever it is");
    }
}
