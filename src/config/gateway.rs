//! `[gateway.kong]`: one gateway, whose word is held against the ledger and who is told of the tenants.
//!
//! A table for each of its interfaces: [`admin`](KongAdmin) (tenants are written there), `redis` (its rate limiter's
//! counters), `metrics` (its nodes' counters) and `access_log` (what http-log posts to us). Each is off until it is
//! configured.

use std::collections::BTreeSet;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::KongAdmin;

/// The gateways beside us.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    pub kong: Kong,
}

/// Kong: what is written there, and what is read of it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kong {
    /// Kong's services that lead to the models' proxy: what goes to any other one is not held against the ledger. All of them
    /// do, while none is named.
    pub llm_services: Vec<String>,
    pub admin: KongAdmin,
    pub redis: KongRedis,
    pub metrics: KongMetrics,
    pub access_log: KongAccessLog,
}

/// Where its rate limiter counts. Only read: SCAN, MGET, PTTL, INFO.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KongRedis {
    /// `redis://…`; off without it.
    pub url: Option<SecretString>,
    /// Time between two polls.
    pub poll_ms: u64,
    /// Names that Redis looks through in one poll; a limiter with more takes several.
    pub poll_keys_max: usize,
    /// What the limiter counts by.
    pub limit_by: LimitBy,
}

impl Default for KongRedis {
    fn default() -> KongRedis {
        KongRedis { url: None, poll_ms: 5_000, poll_keys_max: 20_000, limit_by: LimitBy::Header }
    }
}

/// The counters of its prometheus plugin.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KongMetrics {
    /// Time between two scrapes.
    pub scrape_ms: u64,
    /// Each of its nodes: a node counts only its own traffic. Off without any.
    pub nodes: Vec<KongNode>,
}

impl Default for KongMetrics {
    fn default() -> KongMetrics {
        KongMetrics { scrape_ms: 15_000, nodes: Vec::new() }
    }
}

/// What its http-log plugin posts to us.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KongAccessLog {
    /// What the plugin's header must hold; without it the log needs a key of ours.
    pub token: Option<SecretString>,
    /// The name of that header.
    pub token_header: String,
}

impl Default for KongAccessLog {
    fn default() -> KongAccessLog {
        KongAccessLog { token: None, token_header: "X-Ingest-Token".into() }
    }
}

/// What settings were called before, and what they are called now.
pub(super) const MOVED: [(&str, &str); 14] = [
    ("kong.admin_url", "gateway.kong.admin.urls"),
    ("kong.admin_token", "gateway.kong.admin.token"),
    ("kong.sync_interval_ms", "gateway.kong.admin.sync_interval_ms"),
    ("kong.mode", "gateway.kong.admin.mode"),
    ("kong.base_file", "gateway.kong.admin.base_file"),
    ("kong", "gateway.kong.admin"),
    ("gateway.kong.redis_url", "gateway.kong.redis.url"),
    ("gateway.kong.poll_ms", "gateway.kong.redis.poll_ms"),
    ("gateway.kong.poll_keys_max", "gateway.kong.redis.poll_keys_max"),
    ("gateway.kong.limit_by", "gateway.kong.redis.limit_by"),
    ("gateway.kong.scrape_ms", "gateway.kong.metrics.scrape_ms"),
    ("gateway.kong.nodes", "gateway.kong.metrics.nodes (url instead of metrics_url)"),
    ("gateway.kong.log_token", "gateway.kong.access_log.token"),
    ("gateway.kong.log_token_header", "gateway.kong.access_log.token_header"),
];

impl Kong {
    /// The longest time between two looks at a meter of any source that is configured, in microseconds; 0 without one.
    #[must_use]
    pub fn look_micros(&self) -> i64 {
        let scrape = if self.metrics.nodes.is_empty() { 0 } else { self.metrics.scrape_ms };
        let poll = if self.redis.url.is_some() { self.redis.poll_ms } else { 0 };
        i64::try_from(scrape.max(poll)).unwrap_or(i64::MAX).saturating_mul(1_000)
    }

    pub(super) fn check(&self, check: &mut impl FnMut(bool, &str)) {
        check(
            self.llm_services.iter().all(|service| !service.trim().is_empty()),
            "gateway.kong.llm_services: must be names of services",
        );
        self.admin.check(check);
        self.redis.check(check);
        self.metrics.check(check);
        self.access_log.check(check);
    }
}

/// Is it a sensible time between two looks?
fn is_sensible(millis: u64) -> bool {
    (1_000..=3_600_000).contains(&millis)
}

/// Is it a short word of ASCII letters, digits and what is in `others`?
fn is_plain(text: &str, others: &[u8]) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || others.contains(&byte))
}

impl KongRedis {
    fn check(&self, check: &mut impl FnMut(bool, &str)) {
        check(is_sensible(self.poll_ms), "gateway.kong.redis.poll_ms: must be from 1000 to 3600000");
        check(self.poll_keys_max > 0, "gateway.kong.redis.poll_keys_max: must be above zero");
        if let Some(url) = &self.url {
            let known = ["redis://", "rediss://"].iter().any(|scheme| url.expose_secret().starts_with(scheme));
            check(known, "gateway.kong.redis.url: must begin with redis:// or rediss://");
        }
    }
}

impl KongMetrics {
    fn check(&self, check: &mut impl FnMut(bool, &str)) {
        check(is_sensible(self.scrape_ms), "gateway.kong.metrics.scrape_ms: must be from 1000 to 3600000");
        let mut names = BTreeSet::new();
        for (at, node) in self.nodes.iter().enumerate() {
            let place = format!("gateway.kong.metrics.nodes[{at}]");
            check(is_plain(&node.name, b"-_."), &format!("{place}.name: must be 1 to 64 letters, digits, -, _ or ."));
            check(names.insert(&node.name), &format!("{place}.name: {} is used twice", node.name));
            let web = reqwest::Url::parse(&node.url).is_ok_and(|url| ["http", "https"].contains(&url.scheme()));
            check(web, &format!("{place}.url: must be an http:// or https:// URL"));
        }
    }
}

impl KongAccessLog {
    fn check(&self, check: &mut impl FnMut(bool, &str)) {
        if let Some(token) = &self.token {
            check(token.expose_secret().len() >= 24, "gateway.kong.access_log.token: must have at least 24 characters");
        }
        check(
            is_plain(&self.token_header, b"-_"),
            "gateway.kong.access_log.token_header: must be 1 to 64 letters, digits, - or _",
        );
    }
}

/// What tells the limiter's callers apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LimitBy {
    /// A header with the tenant's id, or with an external id of it.
    Header,
    /// The consumer's id.
    Consumer,
}

/// One node of Kong.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KongNode {
    /// Stays the same when the node is started again.
    pub name: String,
    /// `http://…:8100/metrics` of its Status API.
    pub url: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_slowest_source_that_is_configured_says_how_far_apart_looks_are() {
        let mut kong = Kong::default();
        (kong.metrics.scrape_ms, kong.redis.poll_ms) = (60_000, 5_000);
        assert_eq!(kong.look_micros(), 0);
        kong.redis.url = Some(SecretString::from("redis://127.0.0.1/"));
        assert_eq!(kong.look_micros(), 5_000_000);
        kong.metrics.nodes.push(KongNode { name: "one".into(), url: "http://127.0.0.1:8100/metrics".into() });
        assert_eq!(kong.look_micros(), 60_000_000);
    }

    #[test]
    fn each_problem_is_named_by_its_key() {
        let wrong = r#"
            [gateway.kong]
            llm_services = [" "]
            [gateway.kong.admin]
            urls = ["kong"]
            [gateway.kong.redis]
            url = "http://s3cret"
            poll_ms = 1
            [gateway.kong.metrics]
            scrape_ms = 1
            nodes = [{ name = "a b", url = "kong" }, { name = "a b", url = "http://kong" }]
            [gateway.kong.access_log]
            token = "s3cret"
            token_header = ""
        "#;
        let problems = Config::read(wrong, None).unwrap_err().problems;
        for key in [
            "llm_services:",
            "admin.urls[0]:",
            "redis.url:",
            "redis.poll_ms:",
            "metrics.scrape_ms:",
            "metrics.nodes[0].name:",
            "metrics.nodes[0].url:",
            "metrics.nodes[1].name: a b is used twice",
            "access_log.token:",
            "access_log.token_header:",
        ] {
            let key = format!("gateway.kong.{key}");
            assert!(problems.iter().any(|problem| problem.starts_with(&key)), "{key}: {problems:?}");
        }
        assert!(!problems.iter().any(|problem| problem.contains("s3cret")), "{problems:?}");
    }

    #[test]
    fn a_name_of_before_is_refused_with_that_of_now() {
        let before = r#"
            [kong]
            admin_url = "http://kong:8001"
            [gateway.kong]
            redis_url = "redis://:s3cret@kong"
            log_token = "s3cret"
            [[gateway.kong.nodes]]
            name = "one"
            metrics_url = "http://kong/metrics"
        "#;
        let problems = Config::read(before, None).unwrap_err().problems;
        assert_eq!(
            problems,
            [
                "kong.admin_url: is called gateway.kong.admin.urls now",
                "gateway.kong.redis_url: is called gateway.kong.redis.url now",
                "gateway.kong.nodes: is called gateway.kong.metrics.nodes (url instead of metrics_url) now",
                "gateway.kong.log_token: is called gateway.kong.access_log.token now",
            ]
        );
        let bare = Config::read("[kong]\n", None).unwrap_err().problems;
        assert_eq!(bare, ["kong: is called gateway.kong.admin now"]);
    }
}
