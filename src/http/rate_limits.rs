//! How often a caller may come: the question to the limiter, the headers that tell, and `/v1/rate-limits`.
//!
//! The fields are those of draft-ietf-httpapi-ratelimit-headers-11: `RateLimit-Policy: "read";q=12000;w=60` and
//! `RateLimit: "read";r=1999;t=1`. `t` is the `Retry-After` of a refusal; otherwise the seconds until all of the burst is
//! there again. A refusal is not in the audit chain: a flood must not become one of records.

use std::sync::{Arc, OnceLock};

use poem::http::{HeaderMap, HeaderName, HeaderValue};
use poem_openapi::param::Query;
use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Api;
use super::authorize::{self, Ask};
use super::document::Tag;
use super::door::Passage;
use super::problem::{Code, Problem};
use super::reply::Reply;
use crate::access::Caller;
use crate::domain::ids::TenantId;
use crate::domain::rate_limit::{Class, Policy, Standing};
use crate::rate_limit::{Limiter, Tier};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STANDING: HeaderName = HeaderName::from_static("ratelimit");

/// How a caller stands, for the headers of whatever answer it gets; empty where no limit applies.
#[derive(Clone, Default)]
pub(super) struct Told(Arc<OnceLock<(Class, Policy, Standing)>>);

impl Told {
    /// Adds the headers, if there is anything to tell.
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        let Some((class, policy, standing)) = self.0.get() else { return };
        let name = class.name();
        let policy = format!("\"{name}\";q={};w={}", policy.quota(), policy.window_seconds());
        let standing = format!("\"{name}\";r={};t={}", standing.remaining, standing.wait_seconds());
        for (header, text) in [(POLICY, policy), (STANDING, standing)] {
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(header, value);
            }
        }
    }
}

/// Lets a caller pass as often as its tier allows. Nobody has looked yet at what it may.
///
/// # Errors
/// 429, with the time after which it passes.
pub(super) fn admit(api: &Api, passage: &Passage, caller: &Caller) -> Result<(), Problem> {
    let limiter = &api.rate_limits;
    let Some(class) = passage.operation.class() else { return Ok(()) };
    let own = caller.terms.limit(class);
    if own.is_none() && !limiter.limits(class) {
        return Ok(());
    }
    // The platform's credentials are counted by the tenant they ask about: one tenant's gateway holds up no other's.
    let about = caller.tenant.or_else(|| authorize::subject(caller, passage).ok().flatten());
    let known = about.and_then(|tenant| Some((tenant, tier_of(api, tenant)?)));
    let (tenant, tier) = known.map_or((None, limiter.tier(None)), |(tenant, tier)| (Some(tenant), tier));
    let judged = limiter.judge(class, [tier.policy(class), own], tenant, &caller.actor);
    let Some((policy, standing)) = judged else { return Ok(()) };
    // One request is judged once.
    let _ = passage.told.0.set((class, policy, standing));
    if standing.admitted { Ok(()) } else { Err(refusal(standing)) }
}

fn refusal(standing: Standing) -> Problem {
    Problem { retry_after_seconds: Some(standing.wait_seconds().max(1)), ..Problem::new(Code::RateLimited) }
}

/// The limits of a tenant's tier; `None` for a tenant that does not exist.
pub(super) fn tier_of(api: &Api, tenant: TenantId) -> Option<Tier> {
    api.directory.tier(tenant, |name| api.rate_limits.tier(Some(name)))
}

/// The document's description of the two headers.
pub(super) fn described() -> Value {
    let header = |description: &str, example: &str| json!({"description": description, "schema": {"type": "string"}, "example": example});
    json!({
        "RateLimit-Policy": header(
            "The limit that applies to the caller, in structured fields (draft-ietf-httpapi-ratelimit-headers): class, requests `q` in a window of `w` seconds. On every answer of a limited operation, errors included.",
            "\"read\";q=12000;w=60"
        ),
        "RateLimit": header(
            "How the caller stands: requests `r` that would pass now; `t` seconds until all of the burst is there again, or, after a refusal, until a request passes.",
            "\"read\";r=1999;t=1"
        )
    })
}

pub(super) struct RateLimits;

#[OpenApi(tag = "Tag::Operations")]
impl RateLimits {
    /// Show the rate limits in force
    ///
    /// An API key may be limited more tightly besides: its `rateLimits` say how. For a tenant the limits of its tier; for the platform without a tenant those of every tier, the default first. A
    /// class that is absent is not limited. `read`, `write`, `admin`, `ingest` and `lookup` hold for each credential;
    /// `tenantTraffic` and `apiKeyTraffic` for what gateways ask on a tenant's behalf.
    #[oai(path = "/v1/rate-limits", method = "get", operation_id = "getRateLimits")]
    async fn show(
        &self,
        ask: Ask,
        /// Whose limits.
        #[oai(name = "tenantId")]
        _tenant_id: Query<Option<String>>,
    ) -> Result<Reply<RateLimitsView>, Problem> {
        let limiter = &ask.api.rate_limits;
        let tiers = match ask.admitted.tenant {
            Some(_) => {
                let name = ask.row()?.tier;
                let tier = limiter.tier(Some(&name));
                vec![TierView::of(Some(name), tier, limiter)]
            }
            None => {
                let default = TierView::of(None, limiter.tier(None), limiter);
                let named = limiter.tiers().into_iter().map(|(name, tier)| TierView::of(Some(name), tier, limiter));
                std::iter::once(default).chain(named).collect()
            }
        };
        let sharing = limiter.sharing().borrow().name().to_owned();
        Ok(Reply::new(RateLimitsView { enabled: limiter.is_enabled(), sharing, tiers }))
    }
}

/// The rate limits in force.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "RateLimits", rename_all = "camelCase")]
struct RateLimitsView {
    enabled: bool,
    /// `local`: each node counts for itself. `shared`: nodes count together. `fallback`: they would, and Redis does not
    /// answer. `unknown`: it has not been asked yet.
    sharing: String,
    tiers: Vec<TierView>,
}

/// The limits of one tier.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "RateLimitTier", rename_all = "camelCase")]
struct TierView {
    /// Absent for the limits of tenants whose tier has none of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    tier: Option<String>,
    limits: Vec<LimitView>,
}

/// A token bucket.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "RateLimit", rename_all = "camelCase")]
struct LimitView {
    /// `read`, `write`, `admin`, `ingest`, `lookup`, `tenantTraffic` or `apiKeyTraffic`.
    class: String,
    /// Requests in a window.
    quota: u32,
    window_seconds: u32,
    /// Requests at once.
    burst: u32,
}

impl TierView {
    fn of(name: Option<String>, tier: Tier, limiter: &Limiter) -> TierView {
        let limits = Class::ALL.into_iter().filter(|class| limiter.limits(*class));
        let limits = limits.filter_map(|class| tier.policy(class).map(|policy| LimitView::of(class, policy)));
        TierView { tier: name, limits: limits.collect() }
    }
}

impl LimitView {
    fn of(class: Class, policy: Policy) -> LimitView {
        LimitView {
            class: class.name().into(),
            quota: policy.quota(),
            window_seconds: policy.window_seconds(),
            burst: policy.burst(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_are_structured_fields() {
        let policy = Policy::new(60, 60, 10).unwrap();
        for (standing, expected) in [
            (Standing { admitted: true, remaining: 9, wait: 999_999_999 }, "\"read\";r=9;t=1"),
            (Standing { admitted: false, remaining: 0, wait: 1_000_000_001 }, "\"read\";r=0;t=2"),
        ] {
            let (told, mut headers) = (Told::default(), HeaderMap::new());
            told.0.set((Class::Read, policy, standing)).unwrap();
            told.write(&mut headers);
            assert_eq!(headers["ratelimit-policy"], "\"read\";q=60;w=60");
            assert_eq!(headers["ratelimit"], expected);
        }
        let mut headers = HeaderMap::new();
        Told::default().write(&mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn a_refusal_says_when_to_come_back() {
        for (wait, seconds) in [(1, 1), (1_000_000_000, 1), (1_000_000_001, 2)] {
            let problem = refusal(Standing { admitted: false, remaining: 0, wait });
            assert_eq!((problem.code.status(), problem.retry_after_seconds), (429, Some(seconds)));
        }
    }
}
