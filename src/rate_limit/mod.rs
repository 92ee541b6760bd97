//! How often is too often: of our own API by tenant, principal and class, and of the tenants' traffic.
//!
//! [`crate::domain::rate_limit`] says what a token bucket is; here are the buckets of this node, and how nodes count
//! together. The doors ask; nobody here knows a request.
//!
//! **Who is limited.** A caller of our API, once its credential holds, by (tenant, principal, class): the principal is the
//! credential (an API key, a token's subject), the tenant its own, and for the platform's credentials the one it asks
//! about, so that one tenant's flood through a shared gateway refuses no other. The class is the operation's (`http`):
//! `read`, `write`, `admin`, `ingest`, `lookup`. An API key may have limits of its own besides: a request takes a token of
//! both or of neither, so a key's own limit never lifts that of its tier. What cannot come back is not limited: LiteLLM's callback and Kong's log
//! lose what is refused, and tenants' permits bound them already. Credentials that do not hold are the affair of the
//! failure limit in `access`.
//!
//! **The tenants' traffic.** A question of a gateway stands for one request. When quotas do not deny it, it takes a token
//! of the tenant (`tenant_traffic`) and one of the gateway's API key, if it names one (`api_key_traffic`): both or none. A
//! gateway that kept the answer would pass requests that were never asked about, so an answer under such a limit may not
//! be kept (`refreshAfter` is now, `max-age=0`), and Kong and Envoy ask for each request. A refusal says until when, and may
//! be kept so long. What is promised: exact for a gateway that asks one node for each request. One that keeps answers all
//! the same is limited in its questions, not in its requests: LiteLLM's kit goes on with the answer it has while it asks,
//! and asks once for calls that come together, so it is an answer late and lets such calls pass as one. A limit on
//! requests as they were counted, whatever the gateway asks, is a quota of metric `requests` and period `minute`.
//!
//! **One node.** A bucket is one atomic integer behind the read lock of one of [`buckets`]' shards: no lock of the whole,
//! no allocation, exact under any number of threads. A bucket that is full again is forgotten: a new one is the same. A
//! tenant that changes its tier has new buckets. At `buckets_max` a principal without a place is counted with all others
//! of its tenant and class that have none, so that making up principals gains nothing and other tenants' buckets stay.
//!
//! **Several nodes.** Every request is judged by the node's own buckets at once, and waits for nothing. Every
//! `settle_ms` the node tells Redis what it has admitted since, by one script, and takes over what the others have
//! ([`settlement`]). Redis (5 or newer) adds up by its own clock and answers with times, so nodes' clocks need not agree.
//! What is promised for every class: on one node exactly the policy, with Redis as without. Over n nodes at any time no
//! more than n bursts, what the time brings, and what it brings the others between two settlements; over a long time
//! exactly the policy, because what was admitted too much is a debt that is waited for (at most eight bursts of it).
//!
//! **Without Redis** (it is down, slow, or not configured) each node goes on with its own buckets: n nodes let through at
//! most n times the policy. What was admitted meanwhile is not told afterwards. One line in the log when it begins and
//! one when it is over, `platform_api_rate_limit_fallback` is 1, and the health report names it; it ends by itself.

mod buckets;
mod settlement;

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::clock::ticks;
use crate::config;
use crate::domain::ids::TenantId;
use crate::domain::rate_limit::{Class, Nanos, Policy, Standing};
use buckets::{Buckets, Name};

pub use settlement::Settlement;

/// How nodes count together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Each node for itself, as configured.
    Local,
    /// Redis has not been asked yet.
    Unknown,
    Shared,
    /// Each node for itself, because Redis does not answer.
    Fallback,
}

impl Sharing {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Sharing::Local => "local",
            Sharing::Unknown => "unknown",
            Sharing::Shared => "shared",
            Sharing::Fallback => "fallback",
        }
    }
}

/// The limits of one tier, by class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tier([Option<Policy>; Class::ALL.len()]);

impl Tier {
    /// A tier of the configuration; what it does not name is as in `default`.
    fn of(limits: &config::TierLimits, default: Tier) -> Tier {
        // A limit that is no policy was refused with the configuration.
        let policy = |class| match limits.of(class) {
            Some(limit) => limit.policy().ok().flatten(),
            None => default.policy(class),
        };
        Tier(Class::ALL.map(policy))
    }

    #[must_use]
    pub fn policy(&self, class: Class) -> Option<Policy> {
        self.0[class as usize]
    }
}

/// Why traffic is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    pub class: Class,
    pub policy: Policy,
    /// How long until a request passes.
    pub wait: Nanos,
}

/// What becomes of a request of a tenant's traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// No limit applies to it.
    Unlimited,
    Admitted,
    Refused(Refusal),
}

/// The buckets of this node, and the limits of every tier. Cheap to clone.
#[derive(Clone)]
pub struct Limiter(Arc<Parts>);

struct Parts {
    enabled: bool,
    default: Tier,
    tiers: HashMap<String, Tier, ahash::RandomState>,
    /// Whether any tier limits a class.
    limited: [bool; Class::ALL.len()],
    buckets: Buckets,
    sharing: watch::Sender<Sharing>,
}

impl Limiter {
    /// `redis` is whether there is one to count together in.
    #[must_use]
    pub fn new(limits: &config::RateLimits, redis: bool) -> Limiter {
        let default = Tier::of(&limits.default, Tier::default());
        let tiers = limits.tiers.iter().map(|(name, tier)| (name.clone(), Tier::of(tier, default)));
        let tiers: HashMap<String, Tier, ahash::RandomState> = tiers.collect();
        let all = || std::iter::once(&default).chain(tiers.values());
        let limited = Class::ALL.map(|class| limits.enabled && all().any(|tier| tier.policy(class).is_some()));
        let shared = limits.enabled && limits.shared && redis;
        let buckets = Buckets::new(limits.buckets_max, shared.then_some(limits.key_prefix.as_str()));
        let sharing = watch::channel(if shared { Sharing::Unknown } else { Sharing::Local }).0;
        Limiter(Arc::new(Parts { enabled: limits.enabled, default, tiers, limited, buckets, sharing }))
    }

    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.0.enabled
    }

    /// Whether anybody is limited in this class: when not, there is nothing to ask.
    #[must_use]
    pub fn limits(&self, class: Class) -> bool {
        self.0.limited[class as usize]
    }

    /// Whether any tenant's traffic is limited.
    #[must_use]
    pub fn limits_traffic(&self) -> bool {
        self.limits(Class::TenantTraffic) || self.limits(Class::ApiKeyTraffic)
    }

    /// The limits of a tier; those of the default tier for any other name, and for callers without a tenant.
    #[must_use]
    pub fn tier(&self, name: Option<&str>) -> Tier {
        name.and_then(|name| self.0.tiers.get(name)).copied().unwrap_or(self.0.default)
    }

    /// Every tier that has limits of its own, by name.
    #[must_use]
    pub fn tiers(&self) -> Vec<(String, Tier)> {
        let mut tiers: Vec<(String, Tier)> = self.0.tiers.iter().map(|(name, tier)| (name.clone(), *tier)).collect();
        tiers.sort_by(|one, other| one.0.cmp(&other.0));
        tiers
    }

    #[must_use]
    pub fn sharing(&self) -> watch::Receiver<Sharing> {
        self.0.sharing.subscribe()
    }

    /// Judges one request of a principal by each policy that holds for it: all of the buckets or none. Answers for the one
    /// that is nearest to its end; `None` where no policy holds.
    #[must_use]
    pub fn judge(
        &self,
        class: Class,
        policies: [Option<Policy>; 2],
        tenant: Option<TenantId>,
        principal: &str,
    ) -> Option<(Policy, Standing)> {
        let [first, second] = if self.0.enabled { policies } else { [None; 2] };
        // Equal ones are one bucket, which gives one token.
        let second = second.filter(|_| first != second);
        let (name, now) = (|policy| Name { class, policy, tenant, principal }, ticks());
        let take = |policy: Policy| (policy, self.0.buckets.take(name(policy), now));
        let told = match (first.map(take), second) {
            (Some(one), Some(other)) if one.1.admitted => {
                let other = take(other);
                if !other.1.admitted {
                    self.0.buckets.put_back(name(one.0), now);
                }
                let is_nearer = !other.1.admitted || other.1.remaining < one.1.remaining;
                Some(if is_nearer { other } else { one })
            }
            (Some(one), _) => Some(one),
            (None, other) => other.map(take),
        };
        if told.is_some_and(|(_, standing)| !standing.admitted) {
            count_refusal(class);
        }
        told
    }

    /// Judges one request of a tenant's traffic, which several of the gateway's API keys may have to do with: all of the
    /// buckets or none.
    #[must_use]
    pub fn judge_traffic(&self, tenant: TenantId, tier: Tier, api_keys: &[&str]) -> Traffic {
        self.judge_traffic_at(tenant, tier, api_keys, ticks())
    }

    fn judge_traffic_at(&self, tenant: TenantId, tier: Tier, api_keys: &[&str], now: Nanos) -> Traffic {
        if !self.0.enabled {
            return Traffic::Unlimited;
        }
        // The tenant first: what it refuses makes no bucket for a key.
        let whole = tier.policy(Class::TenantTraffic).map(|policy| (Class::TenantTraffic, policy, ""));
        let keys = tier.policy(Class::ApiKeyTraffic).into_iter().flat_map(move |policy| {
            let named = api_keys.iter().filter(|key| !key.is_empty());
            named.map(move |key| (Class::ApiKeyTraffic, policy, *key))
        });
        let mut asked = 0;
        for (class, policy, principal) in whole.into_iter().chain(keys.clone()) {
            let name = |class, policy, principal| Name { class, policy, tenant: Some(tenant), principal };
            let standing = self.0.buckets.take(name(class, policy, principal), now);
            if !standing.admitted {
                let taken = whole.into_iter().chain(keys.clone()).take(asked);
                taken.for_each(|(class, policy, key)| self.0.buckets.put_back(name(class, policy, key), now));
                count_refusal(class);
                return Traffic::Refused(Refusal { class, policy, wait: standing.wait });
            }
            asked += 1;
        }
        if asked == 0 { Traffic::Unlimited } else { Traffic::Admitted }
    }
}

fn count_refusal(class: Class) {
    metrics::counter!("platform_api_rate_limited_total", "class" => class.name()).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Limit, RateLimits, TierLimits};

    fn limit(quota: u32, burst: u32) -> Option<Limit> {
        Some(Limit { quota, window_seconds: 60, burst: Some(burst) })
    }

    fn limiter(tier: TierLimits) -> Limiter {
        let default = TierLimits { read: limit(60, 2), ..TierLimits::default() };
        let tiers = [("gold".to_owned(), tier)].into();
        Limiter::new(&RateLimits { default, tiers, ..RateLimits::default() }, false)
    }

    fn tenant(number: u128) -> TenantId {
        TenantId(uuid::Uuid::from_u128(number))
    }

    #[test]
    fn a_tier_has_what_it_names_and_otherwise_the_default() {
        let limiter = limiter(TierLimits { write: limit(10, 1), ..TierLimits::default() });
        let (gold, other) = (limiter.tier(Some("gold")), limiter.tier(Some("silver")));
        let quotas = |tier: Tier| [Class::Read, Class::Write].map(|class| tier.policy(class).map(Policy::quota));
        assert_eq!((quotas(gold), quotas(other)), ([Some(60), Some(10)], [Some(60), None]));
        assert_eq!(limiter.tier(None), other);
        assert!(limiter.limits(Class::Write) && !limiter.limits(Class::Lookup));
        let lifted = self::limiter(TierLimits { read: limit(0, 1), ..TierLimits::default() });
        assert_eq!(lifted.tier(Some("gold")).policy(Class::Read), None);
    }

    #[test]
    fn switched_off_nothing_is_limited() {
        let off = RateLimits { enabled: false, ..RateLimits::default() };
        let limiter = Limiter::new(&off, true);
        assert!(Class::ALL.iter().all(|class| !limiter.limits(*class)));
        assert_eq!(*limiter.sharing().borrow(), Sharing::Local);
    }

    #[test]
    fn a_principal_at_its_limit_refuses_nobody_else() {
        let limiter = limiter(TierLimits::default());
        let policy = limiter.tier(None).policy(Class::Read).unwrap();
        let judged = |class, tenant, principal| limiter.judge(class, [Some(policy), None], tenant, principal);
        let ask = |class, tenant, principal| judged(class, tenant, principal).unwrap().1.admitted;
        let of = Some(tenant(1));
        assert_eq!([0; 3].map(|_| ask(Class::Read, of, "apiKey:a")), [true, true, false]);
        for (class, tenant, principal) in [
            (Class::Read, of, "apiKey:b"),
            (Class::Write, of, "apiKey:a"),
            (Class::Read, Some(tenant(2)), "apiKey:a"),
            (Class::Read, None, "apiKey:a"),
        ] {
            assert!(ask(class, tenant, principal), "{class:?} {tenant:?} {principal}");
        }
    }

    #[test]
    fn a_key_s_own_limit_only_narrows_that_of_its_tier() {
        let limiter = limiter(TierLimits::default());
        let policy = |quota, burst| Policy::new(quota, 3_600, burst).unwrap();
        let (wide, narrow) = (Some(policy(60, 4)), Some(policy(10, 2)));
        let ask = |policies, who| limiter.judge(Class::Read, policies, Some(tenant(1)), who);
        let quotas = |policies, who| {
            [0; 4].map(|_| ask(policies, who).map(|(policy, standing)| (policy.quota(), standing.admitted)))
        };
        let twice_then_not = [Some((10, true)), Some((10, true)), Some((10, false)), Some((10, false))];
        for (policies, who) in
            [([wide, narrow], "a"), ([narrow, wide], "b"), ([None, narrow], "c"), ([narrow, None], "d")]
        {
            assert_eq!(quotas(policies, who), twice_then_not, "{who}");
        }
        // What the narrow one refused cost the wide one nothing; equal ones are one bucket.
        assert_eq!([0; 3].map(|_| ask([wide, None], "a").unwrap().1.admitted), [true, true, false]);
        assert_eq!(quotas([narrow, narrow], "e"), twice_then_not);
        assert_eq!(ask([None, None], "f"), None);
        let off = Limiter::new(&RateLimits { enabled: false, ..RateLimits::default() }, false);
        assert_eq!(off.judge(Class::Read, [narrow, narrow], None, "a"), None);
    }

    #[test]
    fn traffic_takes_a_token_of_the_tenant_and_of_the_key_or_neither() {
        let limits =
            TierLimits { tenant_traffic: limit(60, 3), api_key_traffic: limit(60, 1), ..TierLimits::default() };
        let limiter = limiter(limits);
        let gold = limiter.tier(Some("gold"));
        let ask = |keys: &[&str]| match limiter.judge_traffic_at(tenant(1), gold, keys, 1_000) {
            Traffic::Refused(refusal) => Some(refusal.class),
            Traffic::Admitted => None,
            Traffic::Unlimited => panic!("there is a limit"),
        };
        assert_eq!(ask(&["a"]), None);
        // The key refuses, and the tenant's token is put back; again and again.
        assert_eq!([0; 9].map(|_| ask(&["a"])), [Some(Class::ApiKeyTraffic); 9]);
        assert_eq!(ask(&["b", "a"]), Some(Class::ApiKeyTraffic));
        assert_eq!(ask(&["b"]), None, "what was refused costs nothing");
        assert_eq!(ask(&[""]), None, "without a key only the tenant's");
        assert_eq!(ask(&["c"]), Some(Class::TenantTraffic));
        assert_eq!(limiter.judge_traffic_at(tenant(1), limiter.tier(None), &["c"], 1_000), Traffic::Unlimited);
    }
}
