//! OpenFeature's remote evaluation protocol (OFREP 0.3): `/ofrep/v1/evaluate/flags`, for the SDKs of OpenFeature.
//!
//! What concerns a flag or its context is told in the protocol's own words; everything that comes before (credentials, media
//! types, a tenant that is starting) in our envelope, of which the SDKs read the status alone.

use poem::Response;
use poem::http::StatusCode;
use serde_json::{Map, Value, json};

use super::authorize::Ask;
use super::body;
use super::features::{Seen, count, evaluate_all, if_none_match, tagged, with_own_attributes};
use super::problem::Problem;
use super::reply;
use crate::domain::flag::TEXT_BYTES_MAX;
use crate::domain::flag::evaluate::{Context, Evaluation, Reason, TARGETING_KEY, Unanswered, evaluate};

/// Attributes of one context.
const ATTRIBUTES_MAX: usize = 200;

const ONE: &str = "/ofrep/v1/evaluate/flags/{key}";
const ALL: &str = "/ofrep/v1/evaluate/flags";

/// What is wrong with a request, in the protocol's words.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    code: &'static str,
    details: String,
}

/// Answers one flag, or all of them.
pub(super) async fn answer(ask: &Ask, path: &str) -> Result<Response, Problem> {
    let key = path.strip_prefix(ALL).and_then(|rest| rest.strip_prefix('/'));
    let context = match context(&ask.body) {
        Ok(context) => Context { attributes: with_own_attributes(ask, context.attributes), ..context },
        Err(failure) => return Ok(failed(StatusCode::BAD_REQUEST, key, failure.code, &failure.details)),
    };
    match key {
        Some(key) => one(ask, key, &context).await,
        None => all(ask, &context).await,
    }
}

async fn one(ask: &Ask, key: &str, context: &Context) -> Result<Response, Problem> {
    let seen = Seen::by(ask).await?;
    let evaluated = evaluate(seen.layers(), key, context, ask.api.clock.now());
    let response = match &evaluated {
        Ok(evaluation) => reply::json(StatusCode::OK, success(evaluation).to_string().into_bytes()),
        Err(unanswered) => {
            let (status, code) = word(*unanswered);
            failed(status, Some(key), code, &unanswered.to_string())
        }
    };
    count(ask, "ofrep", &[evaluated]);
    Ok(response)
}

async fn all(ask: &Ask, context: &Context) -> Result<Response, Problem> {
    let seen = Seen::by(ask).await?;
    let evaluated = evaluate_all(ask, seen.layers(), context);
    let flags: Vec<Value> = evaluated
        .iter()
        .map(|(flag, one)| match one {
            Ok(evaluation) => success(evaluation),
            Err(unanswered) => failure(Some(&flag.key), word(*unanswered).1, &unanswered.to_string()),
        })
        .collect();
    let body = json!({ "flags": flags, "metadata": { "source": ask.api.flags.name() } });
    let (response, known) = tagged(ask, body.to_string().into_bytes());
    if !known {
        count(ask, "ofrep", &evaluated.into_iter().map(|(_, one)| one).collect::<Vec<_>>());
    }
    Ok(response)
}

/// The context of a request. Members beside it are the protocol's to add.
fn context(bytes: &[u8]) -> Result<Context, Failure> {
    let failure = |code, details: &str| Failure { code, details: details.to_owned() };
    let body = body::read::<Map<String, Value>>(bytes)
        .map_err(|_| failure("PARSE_ERROR", "the body is not one JSON object in UTF-8 with unique keys"))?;
    let invalid = |details: &str| failure("INVALID_CONTEXT", details);
    let Some(Value::Object(context)) = body.get("context") else {
        return Err(invalid("context must be an object"));
    };
    if context.len() > ATTRIBUTES_MAX {
        return Err(invalid("context has too many attributes"));
    }
    let mut attributes = context.clone();
    let key = match attributes.remove(TARGETING_KEY) {
        None | Some(Value::Null) => None,
        Some(Value::String(key)) if key.len() <= TEXT_BYTES_MAX => Some(key),
        Some(_) => return Err(invalid("targetingKey must be a string of at most 1024 bytes")),
    };
    Ok(Context::of(key, attributes))
}

fn word(unanswered: Unanswered) -> (StatusCode, &'static str) {
    match unanswered {
        Unanswered::FlagNotFound => (StatusCode::NOT_FOUND, "FLAG_NOT_FOUND"),
        Unanswered::TargetingKeyMissing => (StatusCode::BAD_REQUEST, "TARGETING_KEY_MISSING"),
    }
}

fn success(evaluation: &Evaluation<'_>) -> Value {
    // The protocol has no word for the default.
    let reason = if evaluation.reason == Reason::Default { "UNKNOWN" } else { evaluation.reason.name() };
    let mut said = json!({
        "key": evaluation.flag.key,
        "reason": reason,
        "variant": evaluation.variant,
        "metadata": { "version": evaluation.flag.version },
    });
    // Without a value the caller's own default holds.
    if let Some(value) = evaluation.value {
        said["value"] = value.clone();
    }
    said
}

fn failure(key: Option<&str>, code: &str, details: &str) -> Value {
    let mut said = json!({ "errorCode": code, "errorDetails": details });
    if let Some(key) = key {
        said["key"] = json!(key);
    }
    said
}

fn failed(status: StatusCode, key: Option<&str>, code: &str, details: &str) -> Response {
    reply::json(status, failure(key, code, details).to_string().into_bytes())
}

/// The descriptions of the operations, by path.
pub(super) fn described() -> [(&'static str, Value); 2] {
    let header = |description: &str| json!({"description": description, "schema": {"type": "string"}});
    let query = |name: &str| {
        json!({
            "name": name, "in": "query", "required": false, "schema": {"type": "string"},
            "description": "What an event stream said of the flags. Taken, and of no consequence: answers are always current."
        })
    };
    let content = |schema: Value, example: Value| json!({"application/json": {"schema": schema, "example": example}});
    let single =
        json!({"key": "new-checkout", "value": true, "reason": "SPLIT", "variant": "on", "metadata": {"version": 3}});
    let one = json!({"post": {
        "tags": ["Features"],
        "summary": "Evaluate one feature flag (OFREP)",
        "description": "For OpenFeature's server SDKs. A context without targetingKey is refused only by a flag that is split by subject. What is served is counted.",
        "operationId": "evaluateFlag",
        "parameters": [{"name": "key", "in": "path", "required": true, "schema": {"type": "string"}, "description": "The flag's key."}],
        "requestBody": request_body(),
        "responses": {"200": {"description": "Done.", "content": content(success_schema(), single.clone())}}
    }});
    let missing = failure(Some("experiment"), "TARGETING_KEY_MISSING", &Unanswered::TargetingKeyMissing.to_string());
    let bulk_schema = json!({
        "type": "object",
        "required": ["flags"],
        "properties": {
            "flags": {"type": "array", "items": {"anyOf": [success_schema(), failure_schema()]}},
            "metadata": {"type": "object"}
        }
    });
    let bulk = json!({"flags": [single, missing], "metadata": {"source": "store"}});
    let all = json!({"post": {
        "tags": ["Features"],
        "summary": "Evaluate every feature flag (OFREP)",
        "description": "For OpenFeature's web SDKs, which keep the answer and ask again with its ETag. What is served is counted, unless the caller has it already.",
        "operationId": "evaluateFlags",
        "parameters": [if_none_match(), query("flagConfigEtag"), query("flagConfigLastModified")],
        "requestBody": request_body(),
        "responses": {
            "200": {"description": "Done.", "headers": {"ETag": header("Changes with what is said.")}, "content": content(bulk_schema, bulk)},
            "304": {"description": "The caller has it already."}
        }
    }});
    [(ONE, one), (ALL, all)]
}

fn request_body() -> Value {
    json!({"required": true, "content": {"application/json": {
        "schema": {
            "type": "object",
            "required": ["context"],
            "properties": {"context": {
                "type": "object",
                "description": "At most 200 attributes. `tenantId` and `tenantTier` are replaced by what we know ourselves.",
                "properties": {"targetingKey": {"type": "string", "maxLength": TEXT_BYTES_MAX}}
            }}
        },
        "example": {"context": {"targetingKey": "user-123", "plan": "pro"}}
    }}})
}

fn success_schema() -> Value {
    json!({
        "type": "object",
        "required": ["key", "reason"],
        "properties": {
            "key": {"type": "string"},
            "value": {"description": "Absent when the caller's own default holds."},
            "reason": {"type": "string", "enum": ["STATIC", "TARGETING_MATCH", "SPLIT", "DISABLED", "UNKNOWN"]},
            "variant": {"type": "string"},
            "metadata": {"type": "object"}
        }
    })
}

fn failure_schema() -> Value {
    json!({
        "type": "object",
        "required": ["errorCode"],
        "properties": {
            "key": {"type": "string"},
            "errorCode": {"type": "string", "enum": ["FLAG_NOT_FOUND", "PARSE_ERROR", "TARGETING_KEY_MISSING", "INVALID_CONTEXT", "GENERAL"]},
            "errorDetails": {"type": "string"}
        }
    })
}

/// 400 and 404 may come in the protocol's words beside our own.
pub(super) fn describe_failures(document: &mut Value) {
    for path in [ONE, ALL] {
        for status in ["400", "404"] {
            let schema =
                &mut document["paths"][path]["post"]["responses"][status]["content"]["application/json"]["schema"];
            let ours = schema.take();
            *schema = json!({"anyOf": [ours, failure_schema()]});
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_read_and_what_is_wrong_with_it_has_its_word() {
        let read = context(br#"{"context":{"targetingKey":"ada","plan":"pro"},"later":1}"#).unwrap();
        assert_eq!((read.targeting_key.as_deref(), read.attributes.len()), (Some("ada"), 1));
        assert_eq!(context(br#"{"context":{}}"#).unwrap(), Context::default());
        let long = format!(r#"{{"context":{{"targetingKey":"{}"}}}}"#, "x".repeat(TEXT_BYTES_MAX + 1));
        let many: Map<String, Value> = (0..=ATTRIBUTES_MAX).map(|n| (n.to_string(), json!(n))).collect();
        let many = json!({ "context": many }).to_string();
        for (body, code) in [
            ("", "PARSE_ERROR"),
            ("{", "PARSE_ERROR"),
            ("[]", "PARSE_ERROR"),
            (r#"{"context":{"a":1,"a":2}}"#, "PARSE_ERROR"),
            ("{}", "INVALID_CONTEXT"),
            (r#"{"context":null}"#, "INVALID_CONTEXT"),
            (r#"{"context":"ada"}"#, "INVALID_CONTEXT"),
            (r#"{"context":{"targetingKey":7}}"#, "INVALID_CONTEXT"),
            (&long, "INVALID_CONTEXT"),
            (&many, "INVALID_CONTEXT"),
        ] {
            assert_eq!(context(body.as_bytes()).unwrap_err().code, code, "{body}");
        }
    }
}
