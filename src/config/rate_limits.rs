//! `[rate_limits]`: how often our own API may be called, and how much traffic a tenant may bring.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::domain::rate_limit::{Class, NoPolicy, Policy};

/// Limits by tier, and how nodes share them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimits {
    pub enabled: bool,
    /// Whether nodes count together in the Redis of `redis.url`; without that URL each node counts for itself.
    pub shared: bool,
    /// Prefix of the keys in Redis: `<prefix><class>:<tenantId>:<digest of the principal>`.
    pub key_prefix: String,
    /// How often a node tells Redis what it has admitted, and learns what the others have.
    pub settle_ms: u64,
    /// Buckets a node keeps at once; those that are full again are dropped first.
    pub buckets_max: usize,
    /// For tenants whose tier is not among `tiers`, and for callers without a tenant.
    pub default: TierLimits,
    /// By a tenant's tier. A class that a tier does not name is limited as in `default`.
    pub tiers: BTreeMap<String, TierLimits>,
}

/// The limits of one tier; absent is as in the default tier, and there it is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TierLimits {
    pub read: Option<Limit>,
    pub write: Option<Limit>,
    pub admin: Option<Limit>,
    pub ingest: Option<Limit>,
    pub lookup: Option<Limit>,
    pub tenant_traffic: Option<Limit>,
    pub api_key_traffic: Option<Limit>,
}

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Requests in a window; 0 is no limit.
    pub quota: u32,
    #[serde(default = "window_seconds")]
    pub window_seconds: u32,
    /// Requests at once; the quota when absent.
    pub burst: Option<u32>,
}

fn window_seconds() -> u32 {
    60
}

const fn a_minute(quota: u32, burst: u32) -> Option<Limit> {
    Some(Limit { quota, window_seconds: 60, burst: Some(burst) })
}

impl Default for RateLimits {
    fn default() -> RateLimits {
        RateLimits {
            enabled: true,
            shared: true,
            key_prefix: "platform-api:rate-limits:".into(),
            settle_ms: 50,
            buckets_max: 100_000,
            default: TierLimits {
                read: a_minute(12_000, 2_000),
                write: a_minute(6_000, 1_000),
                admin: a_minute(12_000, 2_000),
                ingest: a_minute(600_000, 20_000),
                ..TierLimits::default()
            },
            tiers: BTreeMap::new(),
        }
    }
}

impl Limit {
    /// `None` where there is no limit.
    ///
    /// # Errors
    /// [`NoPolicy`].
    pub fn policy(self) -> Result<Option<Policy>, NoPolicy> {
        if self.quota == 0 {
            return Ok(None);
        }
        Policy::new(self.quota, self.window_seconds, self.burst.unwrap_or(self.quota)).map(Some)
    }
}

impl TierLimits {
    #[must_use]
    pub fn of(&self, class: Class) -> Option<Limit> {
        match class {
            Class::Read => self.read,
            Class::Write => self.write,
            Class::Admin => self.admin,
            Class::Ingest => self.ingest,
            Class::Lookup => self.lookup,
            Class::TenantTraffic => self.tenant_traffic,
            Class::ApiKeyTraffic => self.api_key_traffic,
        }
    }
}

/// What the settings call a class.
fn key(class: Class) -> &'static str {
    match class {
        Class::TenantTraffic => "tenant_traffic",
        Class::ApiKeyTraffic => "api_key_traffic",
        _ => class.name(),
    }
}

impl RateLimits {
    /// What is wrong, by key.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |holds: bool, problem: String| {
            if !holds {
                problems.push(problem);
            }
        };
        check((10..=10_000).contains(&self.settle_ms), "rate_limits.settle_ms: must be from 10 to 10000".into());
        check(
            (1_000..=10_000_000).contains(&self.buckets_max),
            "rate_limits.buckets_max: must be from 1000 to 10000000".into(),
        );
        check(!self.key_prefix.is_empty(), "rate_limits.key_prefix: must not be empty".into());
        let named = self.tiers.iter().map(|(name, tier)| (format!("tiers.{name}"), tier));
        for (place, tier) in std::iter::once(("default".to_owned(), &self.default)).chain(named) {
            for class in Class::ALL {
                if let Some(Err(reason)) = tier.of(class).map(Limit::policy) {
                    check(false, format!("rate_limits.{place}.{}: {reason}", key(class)));
                }
            }
        }
        for name in self.tiers.keys() {
            let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
            let fits = plain && (1..=64).contains(&name.len());
            check(fits, format!("rate_limits.tiers.{name}: a tier is 1 to 64 letters, digits, - or _"));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    #[test]
    fn every_problem_is_named_by_its_key_at_once() {
        let problems = Config::read(
            "[rate_limits]\nsettle_ms = 1\nbuckets_max = 0\nkey_prefix = \"\"\n\
             [rate_limits.default]\nread = { quota = 10, burst = 11 }\n\
             [rate_limits.tiers.gold]\nlookup = { quota = 1, window_seconds = 0 }\napi_key_traffic = { quota = 4000000000 }\n\
             [rate_limits.tiers.\"a b\"]\n",
            None,
        )
        .unwrap_err()
        .problems;
        for expected in [
            "rate_limits.settle_ms: ",
            "rate_limits.buckets_max: ",
            "rate_limits.key_prefix: ",
            "rate_limits.default.read: burst ",
            "rate_limits.tiers.gold.lookup: window_seconds ",
            "rate_limits.tiers.gold.api_key_traffic: quota ",
            "rate_limits.tiers.a b: ",
        ] {
            assert!(problems.iter().any(|problem| problem.starts_with(expected)), "{expected}: {problems:?}");
        }
        assert_eq!(problems.len(), 7, "{problems:?}");
    }

    #[test]
    fn a_limit_is_as_short_as_its_quota() {
        let config =
            Config::read("[rate_limits.tiers.free]\ntenant_traffic = { quota = 60 }\nread = { quota = 0 }\n", None);
        let free = config.unwrap().rate_limits.tiers["free"].clone();
        let policy = free.tenant_traffic.unwrap().policy().unwrap().unwrap();
        assert_eq!((policy.quota(), policy.window_seconds(), policy.burst()), (60, 60, 60));
        assert_eq!(free.read.unwrap().policy(), Ok(None));
        assert_eq!(free.write, None);
        assert!(Config::read("[rate_limits.tiers.free]\nreads = { quota = 60 }\n", None).is_err());
    }
}
