//! `/v1/quotas/{tenantId}/decision`: what a gateway should do with a request.
//!
//! This is asked in the gateway's own request path, so it is answered without the framework's JSON document model and
//! is described by hand; `document` puts the description where it belongs.
//!
//! Where the tenant's traffic is limited, an answer is about one request: it may not be kept, and a refusal only until a
//! request passes again; see [`crate::rate_limit`].

use std::hash::{BuildHasher, Hash, Hasher};

use poem::Response;
use poem::http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json};

use super::authorize::Ask;
use super::problem::{FieldProblem, Problem};
use super::rate_limits::tier_of;
use super::reply;
use super::view::{Amount, ScopeView, instant};
use crate::access::count_revoked;
use crate::config;
use crate::domain::organization::Revoked;
use crate::domain::provider::policy::MODEL_NOT_ALLOWED;
use crate::domain::quota::{Decision, Level, Standing, Verdict};
use crate::domain::tenant::Lifecycle;
use crate::domain::time::{MICROS_PER_SECOND, Timestamp};
use crate::domain::usage::{LABEL_BYTES_MAX, Subject};
use crate::rate_limit::{Refusal, Traffic};

/// Answers with a decision, or that the one the gateway has still holds.
pub(super) async fn answer(ask: &Ask) -> Result<Response, Problem> {
    let subject = subject(&ask.query)?;
    // A tenant's own credential was refused at the door if it is suspended; the platform's was not.
    let suspended = ask.is_platform() && ask.row()?.lifecycle == Lifecycle::Suspended;
    let decided = ask.handle().await?.decide(&subject)?;
    let key_ended = || ask.api.directory.key_ended(ask.tenant().ok()?, &subject.api_key);
    let revoked = suspended.then_some(Revoked::Tenant).or(decided.revoked).or_else(key_ended);
    if let Some(revoked) = revoked {
        count_revoked(revoked);
    }
    let barred = revoked.map(Revoked::code).or((!decided.model_is_allowed).then_some(MODEL_NOT_ALLOWED));
    let hash = hash_of(&subject, barred);
    let denied = barred.is_some() || decided.decision.verdict == Verdict::Deny;
    // What is denied anyway costs no token.
    let traffic = if denied { Traffic::Unlimited } else { judge_traffic(ask, &subject) };
    let freshness = Freshness::of(&ask.api.limits, traffic, ask.api.clock.now());
    let refused = freshness.refusal.is_some();
    let tag = etag(decided.epoch, &decided.decision, hash ^ u64::from(refused));
    let known = ask.headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    // A refusal says until when, and that is another moment each time.
    let mut response = if !refused && known.is_some_and(|known| is_known(known, &tag)) {
        Response::builder().status(StatusCode::NOT_MODIFIED).finish()
    } else {
        let view = DecisionView::of(&decided.decision, barred, freshness);
        reply::json(StatusCode::OK, serde_json::to_vec(&view).unwrap_or_default())
    };
    let headers = response.headers_mut();
    let max_age = format!("private, max-age={}", freshness.refresh_ms / 1_000);
    for (name, value) in [(header::ETAG, &tag), (header::CACHE_CONTROL, &max_age)] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    Ok(response)
}

/// One request of the tenant's, as this question stands for one.
fn judge_traffic(ask: &Ask, subject: &Subject) -> Traffic {
    if !ask.api.rate_limits.limits_traffic() {
        return Traffic::Unlimited;
    }
    let limits = ask.admitted.tenant.and_then(|tenant| Some((tenant, tier_of(&ask.api, tenant)?)));
    limits.map_or(Traffic::Unlimited, |(tenant, tier)| {
        ask.api.rate_limits.judge_traffic(tenant, tier, &[&subject.api_key])
    })
}

fn subject(query: &[(String, String)]) -> Result<Subject, Problem> {
    let mut subject = Subject::default();
    let mut problems = Vec::new();
    for (name, value) in query {
        if value.len() > LABEL_BYTES_MAX {
            let message = format!("must be at most {LABEL_BYTES_MAX} bytes");
            problems.push(FieldProblem { pointer: format!("?{name}"), message });
            continue;
        }
        let field = match name.as_str() {
            "userId" => &mut subject.user,
            "groupId" => &mut subject.group,
            "apiKeyId" => &mut subject.api_key,
            "model" => &mut subject.model,
            _ => &mut subject.provider,
        };
        field.clone_from(value);
    }
    if problems.is_empty() { Ok(subject) } else { Err(Problem::fields(problems)) }
}

/// Tells answers to different questions apart. Fixed keys, so that a tag survives a restart; a machine that hashes
/// differently costs one answer in full.
fn hash_of(subject: &Subject, barred: Option<&str>) -> u64 {
    ahash::RandomState::with_seeds(1, 2, 3, 4).hash_one((subject, barred))
}

/// Changes with the books, the question, and the period of the quotas that shaped the answer.
fn etag(epoch: i64, decision: &Decision, question: u64) -> String {
    let mut hasher = ahash::RandomState::with_seeds(5, 6, 7, 8).build_hasher();
    question.hash(&mut hasher);
    for standing in decision.tightest.iter().chain(&decision.reasons) {
        (standing.quota.id, standing.period_start, standing.used).hash(&mut hasher);
    }
    format!("\"{epoch}-{}-{:016x}\"", decision.version, hasher.finish())
}

/// `If-None-Match` is a list of tags, weak ones included, or `*`.
pub(super) fn is_known(header: &str, tag: &str) -> bool {
    header.split(',').map(str::trim).any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

#[derive(Debug, Clone, Copy)]
struct Freshness {
    now: Timestamp,
    refresh_ms: u64,
    valid_ms: u64,
    /// Why the traffic's limit refuses, and when a request passes again.
    refusal: Option<(Refusal, Timestamp)>,
}

impl Freshness {
    fn of(limits: &config::Http, traffic: Traffic, now: Timestamp) -> Freshness {
        let valid_ms = limits.decision_valid_ms;
        match traffic {
            Traffic::Unlimited => Freshness { now, refresh_ms: limits.decision_refresh_ms, valid_ms, refusal: None },
            // The next request takes a token of its own.
            Traffic::Admitted => Freshness { now, refresh_ms: 0, valid_ms, refusal: None },
            Traffic::Refused(refusal) => {
                let wait_micros = refusal.wait.saturating_add(999) / 1_000;
                // As it is written: in milliseconds, and not before a request passes.
                let passes = Timestamp(now.plus_micros(wait_micros.saturating_add(999)).0 / 1_000 * 1_000);
                // Whole seconds, as `max-age` can say them: to be asked again early does no harm.
                let refresh_ms = u64::try_from(wait_micros / MICROS_PER_SECOND).unwrap_or_default() * 1_000;
                Freshness { now, refresh_ms, valid_ms, refusal: Some((refusal, passes)) }
            }
        }
    }

    /// No answer outlives the period that it judged.
    fn until(self, milliseconds: u64, reset_at: Option<Timestamp>) -> Timestamp {
        let micros = i64::try_from(milliseconds).unwrap_or(i64::MAX).saturating_mul(1_000);
        let end = self.now.plus_micros(micros);
        reset_at.filter(|reset| *reset > self.now).map_or(end, |reset| end.min(reset))
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DecisionView {
    decision: &'static str,
    reasons: Vec<Reason>,
    /// Of the tightest matching quota.
    remaining: Option<Amount>,
    reset_at: Option<String>,
    refresh_after: String,
    valid_until: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Reason {
    code: &'static str,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    quota: Option<QuotaReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_limit: Option<RateLimitReason>,
}

/// The limit that traffic is over.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RateLimitReason {
    class: &'static str,
    quota: u32,
    window_seconds: u32,
    burst: u32,
    /// When a request passes again.
    reset_at: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct QuotaReason {
    quota_id: String,
    scope: ScopeView,
    metric: &'static str,
    period: &'static str,
    enforcement: &'static str,
    limit: Amount,
    used: Amount,
    remaining: Amount,
    reset_at: Option<String>,
}

const RATE_LIMITED: &str = "RATE_LIMITED";
const LIMIT_REACHED: &str = "LIMIT_REACHED";
const THRESHOLD_REACHED: &str = "THRESHOLD_REACHED";

impl DecisionView {
    /// `barred` is why it is denied whatever the quotas say.
    fn of(decision: &Decision, barred: Option<&'static str>, freshness: Freshness) -> DecisionView {
        let tightest = decision.tightest.as_ref();
        let passes = freshness.refusal.map(|(_, passes)| passes);
        let reset_at = passes.or(tightest.and_then(|standing| standing.reset_at));
        let bar = barred.map(|code| Reason { code, quota: None, rate_limit: None });
        let refusal = freshness.refusal.map(|(refusal, passes)| Reason::of_refusal(refusal, passes));
        let reasons = bar.into_iter().chain(refusal).chain(decision.reasons.iter().map(Reason::of));
        let denied = barred.is_some() || passes.is_some();
        DecisionView {
            decision: if denied { Verdict::Deny.name() } else { decision.verdict.name() },
            reasons: reasons.collect(),
            remaining: tightest.map(|standing| Amount::new(standing.quota.metric, standing.remaining)),
            reset_at: reset_at.map(instant),
            refresh_after: instant(freshness.until(freshness.refresh_ms, reset_at)),
            valid_until: instant(passes.unwrap_or_else(|| freshness.until(freshness.valid_ms, reset_at))),
        }
    }
}

impl Reason {
    fn of(standing: &Standing) -> Reason {
        let quota = &standing.quota;
        Reason {
            code: if standing.level == Level::Exceeded { LIMIT_REACHED } else { THRESHOLD_REACHED },
            quota: Some(QuotaReason {
                quota_id: quota.id.to_string(),
                scope: ScopeView::of(&quota.scope),
                metric: quota.metric.name(),
                period: quota.period.name(),
                enforcement: quota.enforcement.name(),
                limit: Amount::new(quota.metric, quota.limit),
                used: Amount::new(quota.metric, standing.used),
                remaining: Amount::new(quota.metric, standing.remaining),
                reset_at: standing.reset_at.map(instant),
            }),
            rate_limit: None,
        }
    }

    fn of_refusal(refusal: Refusal, passes: Timestamp) -> Reason {
        let rate_limit = RateLimitReason {
            class: refusal.class.name(),
            quota: refusal.policy.quota(),
            window_seconds: refusal.policy.window_seconds(),
            burst: refusal.policy.burst(),
            reset_at: instant(passes),
        };
        Reason { code: RATE_LIMITED, quota: None, rate_limit: Some(rate_limit) }
    }
}

/// The path item of the document.
pub(super) fn described() -> Value {
    let parameter = |name: &str, place: &str, description: &str| {
        json!({
            "name": name, "in": place, "required": place == "path", "description": description,
            "schema": {"type": "string"}
        })
    };
    json!({"get": {
        "tags": ["Quotas"],
        "summary": "Ask for a decision",
        "description": "For gateways: what to do with a request attributed like this. Always 200 for a known tenant; the caller chooses what to do when it gets no answer. All matching quotas apply at once and the tightest decides; a model that is named and that the tenant's policy (`/v1/provider-policy`) does not have is denied whatever they say. Ask again after `refreshAfter`, with the ETag in If-None-Match; without an answer the decision may be used until `validUntil`. Where the tier limits the tenant's traffic, a question stands for one request: an answer is not to be kept (`refreshAfter` is now), and one over the limit is denied until `resetAt`.",
        "operationId": "decide",
        "parameters": [
            parameter("tenantId", "path", "The tenant's id."),
            parameter("userId", "query", "The user the request is for."),
            parameter("groupId", "query", "The group the request is for."),
            parameter("apiKeyId", "query", "The gateway's API key the request came with."),
            parameter("model", "query", "The model that is asked for; without it the policy's models are not looked at."),
            parameter("provider", "query", "The provider that will answer."),
            parameter("If-None-Match", "header", "ETags the caller has."),
        ],
        "responses": {
            "200": {
                "description": "The decision.",
                "headers": {
                    "ETag": {"description": "Changes with the decision's grounds.", "schema": {"type": "string"}},
                    "Cache-Control": {"schema": {"type": "string", "example": "private, max-age=1"}}
                },
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Decision"}}}
            },
            "304": {"description": "The decision the caller has still holds."}
        }
    }})
}

/// The schema of the answer.
pub(super) fn schema() -> Value {
    let amount = json!({
        "description": "An integer for tokens and requests; for `cost` a decimal string of US dollars.",
        "oneOf": [{"type": "integer", "format": "int64"}, {"type": "string"}],
        "nullable": true
    });
    let instant = json!({"type": "string", "format": "date-time"});
    let maybe_instant = json!({"type": "string", "format": "date-time", "nullable": true});
    let revoked =
        [Revoked::Tenant, Revoked::User, Revoked::Group, Revoked::ApiKey, Revoked::ApiKeyExpired].map(Revoked::code);
    let codes: Vec<&str> =
        revoked.into_iter().chain([MODEL_NOT_ALLOWED, RATE_LIMITED, LIMIT_REACHED, THRESHOLD_REACHED]).collect();
    json!({
        "type": "object",
        "title": "Decision",
        "required": ["decision", "reasons", "remaining", "resetAt", "refreshAfter", "validUntil"],
        "properties": {
            "decision": {"type": "string", "enum": ["allow", "warn", "deny"]},
            "reasons": {
                "description": "The matching quotas that are not ok, tightest first; before them who or what is no longer admitted, that the policy does not have the model, or the limit that the traffic is over.",
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["code"],
                    "properties": {
                        "code": {"type": "string", "enum": codes},
                        "quotaId": {"type": "string"},
                        "scope": {"$ref": "#/components/schemas/Scope"},
                        "metric": {"type": "string"},
                        "period": {"type": "string"},
                        "enforcement": {"type": "string"},
                        "limit": amount, "used": amount, "remaining": amount,
                        "resetAt": maybe_instant,
                        "rateLimit": {
                            "description": "Of RATE_LIMITED: the limit, and when a request passes again.",
                            "type": "object",
                            "required": ["class", "quota", "windowSeconds", "burst", "resetAt"],
                            "properties": {
                                "class": {"type": "string", "enum": ["tenantTraffic", "apiKeyTraffic"]},
                                "quota": {"type": "integer"}, "windowSeconds": {"type": "integer"},
                                "burst": {"type": "integer"}, "resetAt": instant
                            }
                        }
                    }
                }
            },
            "remaining": amount,
            "resetAt": maybe_instant,
            "refreshAfter": instant,
            "validUntil": instant
        },
        "example": {
            "decision": "warn",
            "reasons": [{
                "code": THRESHOLD_REACHED, "quotaId": "0199a8b2-5c00-7abc-8def-0123456789ad",
                "scope": {"type": "user", "id": "ada"}, "metric": "tokens", "period": "day", "enforcement": "block",
                "limit": 1_000_000, "used": 812_004, "remaining": 187_996, "resetAt": "2026-11-21T23:00:00.000Z"
            }],
            "remaining": 187_996,
            "resetAt": "2026-11-21T23:00:00.000Z",
            "refreshAfter": "2026-11-21T15:37:13.345Z",
            "validUntil": "2026-11-21T15:37:17.345Z"
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::QuotaId;
    use crate::domain::period::PeriodKind;
    use crate::domain::quota::{Enforcement, Metric, Quota, Scope, judge, level};
    use crate::domain::rate_limit::{Class, Policy};

    fn standing(used: i64) -> Standing {
        let quota = Quota {
            id: QuotaId(uuid::Uuid::from_u128(7)),
            scope: Scope::User("ada".into()),
            metric: Metric::Cost,
            period: PeriodKind::Day,
            limit: 1_000_000_000,
            thresholds: vec![50, 100],
            enforcement: Enforcement::Block,
        };
        let level = level(&quota, used);
        let remaining = (quota.limit - used).max(0);
        let (period_start, reset_at) = (Timestamp(0), Some(Timestamp(3_000_000)));
        Standing { quota, used, remaining, level, period_start, reset_at, exhausts_at: None }
    }

    fn told(decision: &Decision, barred: Option<&'static str>) -> Value {
        limited(decision, barred, Traffic::Unlimited)
    }

    fn limited(decision: &Decision, barred: Option<&'static str>, traffic: Traffic) -> Value {
        let freshness = Freshness::of(&config::Http::default(), traffic, Timestamp(1_000_000));
        serde_json::to_value(DecisionView::of(decision, barred, freshness)).unwrap()
    }

    #[test]
    fn limited_traffic_is_answered_for_one_request() {
        let free = judge(Vec::new(), 3);
        let told = limited(&free, None, Traffic::Admitted);
        assert_eq!((&told["decision"], &told["reasons"]), (&json!("allow"), &json!([])));
        assert_eq!(told["refreshAfter"], "1970-01-01T00:00:01.000Z");
        assert_eq!(told["validUntil"], "1970-01-01T00:00:06.000Z");

        let policy = Policy::new(30, 60, 5).unwrap();
        let refusal = Refusal { class: Class::ApiKeyTraffic, policy, wait: 1_500_000_001 };
        let told = limited(&judge(vec![standing(600_000_000)], 3), None, Traffic::Refused(refusal));
        assert_eq!(told["decision"], "deny");
        let reason = json!({"code": "RATE_LIMITED", "rateLimit": {
            "class": "apiKeyTraffic", "quota": 30, "windowSeconds": 60, "burst": 5,
            "resetAt": "1970-01-01T00:00:02.501Z"
        }});
        assert_eq!((&told["reasons"][0], &told["reasons"][1]["code"]), (&reason, &json!(THRESHOLD_REACHED)));
        assert_eq!(told["resetAt"], "1970-01-01T00:00:02.501Z");
        assert_eq!(told["refreshAfter"], "1970-01-01T00:00:02.000Z");
        assert_eq!(told["validUntil"], "1970-01-01T00:00:02.501Z");
    }

    #[test]
    fn a_decision_says_why_and_never_outlives_its_period() {
        let told = told(&judge(vec![standing(600_000_000)], 3), None);
        assert_eq!(told["decision"], "warn");
        assert_eq!(told["remaining"], "0.4");
        assert_eq!(told["reasons"][0]["code"], THRESHOLD_REACHED);
        assert_eq!(told["reasons"][0]["scope"], json!({"type": "user", "id": "ada"}));
        assert_eq!(told["refreshAfter"], "1970-01-01T00:00:02.000Z");
        assert_eq!(told["validUntil"], "1970-01-01T00:00:03.000Z");
    }

    #[test]
    fn without_quotas_everything_is_allowed_and_a_suspension_denies_all_the_same() {
        let free = judge(Vec::new(), 3);
        let open = told(&free, None);
        assert_eq!(
            (&open["decision"], &open["remaining"], &open["resetAt"]),
            (&json!("allow"), &Value::Null, &Value::Null)
        );
        assert_eq!(open["validUntil"], "1970-01-01T00:00:06.000Z");
        let suspended = told(&free, Some(Revoked::Tenant.code()));
        assert_eq!(
            (&suspended["decision"], &suspended["reasons"]),
            (&json!("deny"), &json!([{"code": "TENANT_SUSPENDED"}]))
        );
    }

    #[test]
    fn a_model_that_the_policy_does_not_have_is_denied_before_its_quotas_are_told() {
        let told = told(&judge(vec![standing(600_000_000)], 3), Some(MODEL_NOT_ALLOWED));
        let codes = [&told["reasons"][0]["code"], &told["reasons"][1]["code"]];
        assert_eq!(
            (&told["decision"], codes),
            (&json!("deny"), [&json!(MODEL_NOT_ALLOWED), &json!(THRESHOLD_REACHED)])
        );
    }

    #[test]
    fn the_tag_changes_with_whatever_the_answer_depends_on() {
        let question = hash_of(&Subject::default(), None);
        let tag = |used, version, question| etag(9, &judge(vec![standing(used)], version), question);
        let base = tag(1, 3, question);
        assert!(base.starts_with("\"9-3-"));
        assert_eq!(base, tag(1, 3, question));
        let user = Subject { user: "ada".into(), ..Subject::default() };
        let model = Subject { model: "ada".into(), ..Subject::default() };
        for other in [
            tag(2, 3, question),
            tag(1, 4, question),
            tag(1, 3, hash_of(&user, None)),
            tag(1, 3, hash_of(&model, None)),
            tag(1, 3, hash_of(&Subject::default(), Some(Revoked::Tenant.code()))),
            tag(1, 3, hash_of(&Subject::default(), Some(MODEL_NOT_ALLOWED))),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn if_none_match_is_a_list() {
        for (header, known) in
            [("\"a\"", true), ("W/\"a\"", true), ("\"b\", \"a\"", true), ("*", true), ("\"b\"", false), ("", false)]
        {
            assert_eq!(is_known(header, "\"a\""), known, "{header}");
        }
    }

    #[test]
    fn the_question_is_bounded() {
        let query = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        assert_eq!(subject(&query("apiKeyId", "k")).unwrap().api_key, "k");
        assert!(subject(&query("model", &"m".repeat(257))).is_err());
    }
}
