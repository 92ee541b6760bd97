//! `/v1/features`: what the feature flags say to whoever asks. Described by hand, as is what OpenFeature asks for.

use std::sync::Arc;

use aws_lc_rs::digest;
use poem::Response;
use poem::http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

use super::authorize::Ask;
use super::decision::is_known;
use super::problem::Problem;
use super::reply;
use crate::domain::flag::evaluate::{Context, Evaluation, Unanswered};
use crate::domain::flag::ledger::{FlagBooks, Variant};
use crate::domain::flag::{Flag, FlagSet, Layers};

/// The flags that count for one request.
pub(super) struct Seen {
    platform: Arc<FlagSet>,
    tenant: Option<Arc<FlagBooks>>,
}

impl Seen {
    pub(super) async fn by(ask: &Ask) -> Result<Seen, Problem> {
        let tenant = match ask.admitted.tenant {
            Some(_) => Some(ask.handle().await?.flags()?),
            None => None,
        };
        Ok(Seen { platform: ask.api.flags.flags(), tenant })
    }

    pub(super) fn layers(&self) -> Layers<'_> {
        Layers { platform: &self.platform, tenant: self.tenant.as_ref().map(|books| &books.flags) }
    }
}

/// What we know of the caller's tenant, whatever the caller says of it.
pub(super) fn with_own_attributes(ask: &Ask, mut attributes: Map<String, Value>) -> Map<String, Value> {
    for name in ["tenantId", "tenantTier"] {
        attributes.remove(name);
    }
    if let Some(tenant) = ask.admitted.tenant.and_then(|tenant| ask.api.directory.tenant(tenant)) {
        attributes.insert("tenantId".into(), json!(tenant.id.to_string()));
        attributes.insert("tenantTier".into(), json!(tenant.tier));
    }
    attributes
}

/// Counts what was evaluated, and for a tenant what was served.
pub(super) fn count(ask: &Ask, door: &'static str, evaluated: &[Result<Evaluation<'_>, Unanswered>]) {
    for one in evaluated {
        let reason = match one {
            Ok(evaluation) => evaluation.reason.name(),
            Err(Unanswered::FlagNotFound) => "FLAG_NOT_FOUND",
            Err(Unanswered::TargetingKeyMissing) => "TARGETING_KEY_MISSING",
        };
        metrics::counter!("platform_api_flag_evaluations_total", "door" => door, "reason" => reason).increment(1);
    }
    if let Some(tenant) = ask.admitted.tenant {
        let served = evaluated.iter().filter_map(|one| one.as_ref().ok());
        let variant = |one: &Evaluation<'_>| Variant { flag: one.flag.key.clone(), variant: one.variant.to_owned() };
        ask.api.directory.count_exposures(tenant, served.map(variant).collect());
    }
}

/// `body` with an ETag of its own bytes, or that the caller has it already; and which of the two.
pub(super) fn tagged(ask: &Ask, body: Vec<u8>) -> (Response, bool) {
    let hash = digest::digest(&digest::SHA256, &body);
    let short: String = hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let tag = format!("\"{short}\"");
    let said = ask.headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let known = said.is_some_and(|said| is_known(said, &tag));
    let mut response = match known {
        true => Response::builder().status(StatusCode::NOT_MODIFIED).finish(),
        false => reply::json(StatusCode::OK, body),
    };
    if let Ok(value) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, value);
    }
    (response, known)
}

/// Every flag that counts, with what it says.
pub(super) fn evaluate_all<'a>(
    ask: &Ask,
    layers: Layers<'a>,
    context: &Context,
) -> Vec<(&'a Flag, Result<Evaluation<'a>, Unanswered>)> {
    let now = ask.api.clock.now();
    layers.all().into_iter().map(|flag| (flag.as_ref(), flag.evaluate(context, now))).collect()
}

/// Answers what the flags say to the caller itself: its user, or its key where it has none.
pub(super) async fn answer(ask: &Ask) -> Result<Response, Problem> {
    let seen = Seen::by(ask).await?;
    let context = own_context(ask);
    let evaluated = evaluate_all(ask, seen.layers(), &context);
    let features: Vec<Value> = evaluated
        .iter()
        .filter_map(|(flag, one)| {
            let one = one.as_ref().ok()?;
            let mut feature = json!({
                "key": flag.key, "kind": flag.kind.name(), "variant": one.variant, "reason": one.reason.name()
            });
            if let Some(value) = one.value {
                feature["value"] = value.clone();
            }
            Some(feature)
        })
        .collect();
    let body = json!({ "features": features, "source": ask.api.flags.name() });
    let (response, known) = tagged(ask, body.to_string().into_bytes());
    if !known {
        count(ask, "features", &evaluated.into_iter().map(|(_, one)| one).collect::<Vec<_>>());
    }
    Ok(response)
}

fn own_context(ask: &Ask) -> Context {
    let mut attributes = Map::new();
    let mut key = None;
    if let Some(caller) = &ask.admitted.caller {
        key = Some(caller.user.clone().unwrap_or_else(|| caller.actor.clone()));
        attributes.insert("roles".into(), caller.roles.iter().map(|role| json!(role.name())).collect());
    }
    Context::of(key, with_own_attributes(ask, attributes))
}

/// The description of the operation.
pub(super) fn described() -> Value {
    json!({"get": {
        "tags": ["Features"],
        "summary": "What the feature flags say to the caller",
        "description": "Every flag that counts for the caller's tenant, evaluated for the caller: the targeting key is its user, or its API key where it names none (X-User-Id is believed from service credentials); `roles`, `tenantId` and `tenantTier` are the attributes. For other attributes ask over OFREP. A flag of the tenant's takes the place of the platform's where that lets it. What is served is counted, unless the caller has it already.",
        "operationId": "getFeatures",
        "parameters": [if_none_match()],
        "responses": {
            "200": {
                "description": "Done.",
                "headers": {"ETag": {"description": "Changes with what is said.", "schema": {"type": "string"}}},
                "content": {"application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["features", "source"],
                        "properties": {
                            "source": {"type": "string", "description": "Where the platform's flags come from: `store` or `flagsmith`."},
                            "features": {"type": "array", "items": {
                                "type": "object",
                                "required": ["key", "kind", "variant", "reason"],
                                "properties": {
                                    "key": {"type": "string"},
                                    "kind": {"type": "string", "enum": ["boolean", "string", "number", "object"]},
                                    "value": {"description": "Absent when the caller's own default holds."},
                                    "variant": {"type": "string"},
                                    "reason": {"type": "string", "enum": ["STATIC", "TARGETING_MATCH", "SPLIT", "DISABLED", "DEFAULT"]}
                                }
                            }}
                        }
                    },
                    "example": {
                        "features": [{"key": "new-checkout", "kind": "boolean", "value": true, "variant": "on", "reason": "SPLIT"}],
                        "source": "store"
                    }
                }}
            },
            "304": {"description": "The caller has it already."}
        }
    }})
}

pub(super) fn if_none_match() -> Value {
    json!({
        "name": "If-None-Match", "in": "header", "required": false, "description": "ETags the caller has.",
        "schema": {"type": "string"}
    })
}
