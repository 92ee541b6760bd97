//! The gateways whose word is held against the ledger, and where it is heard.

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

/// The gateways whose word is held against the ledger.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    pub kong: Kong,
}

/// What is read of Kong; each source is off until it is configured.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kong {
    /// `redis://…`, where its rate limiter counts. Only read: SCAN, MGET, PTTL, INFO.
    pub redis_url: Option<SecretString>,
    /// Time between two polls.
    pub poll_ms: u64,
    /// Names that Redis looks through in one poll; a limiter with more takes several.
    pub poll_keys_max: usize,
    /// What the limiter counts by.
    pub limit_by: LimitBy,
    /// Each of its nodes: a node counts only its own traffic.
    pub nodes: Vec<KongNode>,
    /// Time between two scrapes.
    pub scrape_ms: u64,
    /// Kong's services that lead to the models' proxy: what goes to any other one is not held against the ledger. All of them
    /// do, while none is named.
    pub llm_services: Vec<String>,
    /// What http-log's header must hold; without it the log needs a key of ours.
    pub log_token: Option<SecretString>,
    /// The name of that header.
    pub log_token_header: String,
}

impl Default for Kong {
    fn default() -> Kong {
        Kong {
            redis_url: None,
            poll_ms: 5_000,
            poll_keys_max: 20_000,
            limit_by: LimitBy::Header,
            nodes: Vec::new(),
            scrape_ms: 15_000,
            llm_services: Vec::new(),
            log_token: None,
            log_token_header: "X-Ingest-Token".into(),
        }
    }
}

impl Kong {
    /// The longest time between two looks at a meter of any source that is configured, in microseconds; 0 without one.
    #[must_use]
    pub fn look_micros(&self) -> i64 {
        let scrape = if self.nodes.is_empty() { 0 } else { self.scrape_ms };
        let poll = if self.redis_url.is_some() { self.poll_ms } else { 0 };
        i64::try_from(scrape.max(poll)).unwrap_or(i64::MAX).saturating_mul(1_000)
    }

    pub(super) fn check(&self, check: &mut impl FnMut(bool, &str)) {
        let sensible = |millis: u64| (1_000..=3_600_000).contains(&millis);
        check(sensible(self.poll_ms), "gateway.kong.poll_ms: must be from 1000 to 3600000");
        check(sensible(self.scrape_ms), "gateway.kong.scrape_ms: must be from 1000 to 3600000");
        check(self.poll_keys_max > 0, "gateway.kong.poll_keys_max: must be above zero");
        check(
            self.llm_services.iter().all(|service| !service.trim().is_empty()),
            "gateway.kong.llm_services: must be names of services",
        );
        if let Some(url) = &self.redis_url {
            let known = ["redis://", "rediss://"].iter().any(|scheme| url.expose_secret().starts_with(scheme));
            check(known, "gateway.kong.redis_url: must begin with redis:// or rediss://");
        }
        if let Some(token) = &self.log_token {
            check(token.expose_secret().len() >= 24, "gateway.kong.log_token: must have at least 24 characters");
        }
        let header = &self.log_token_header;
        let plain = !header.is_empty()
            && header.len() <= 64
            && header.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        check(plain, "gateway.kong.log_token_header: must be 1 to 64 letters, digits, - or _");
        let mut names = std::collections::BTreeSet::new();
        for (at, node) in self.nodes.iter().enumerate() {
            let plain = !node.name.is_empty()
                && node.name.len() <= 64
                && node.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            check(plain, &format!("gateway.kong.nodes[{at}].name: must be 1 to 64 letters, digits, -, _ or ."));
            check(names.insert(&node.name), &format!("gateway.kong.nodes[{at}].name: {} is used twice", node.name));
            let web = reqwest::Url::parse(&node.metrics_url).is_ok_and(|url| ["http", "https"].contains(&url.scheme()));
            check(web, &format!("gateway.kong.nodes[{at}].metrics_url: must be an http:// or https:// URL"));
        }
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
    pub metrics_url: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_source_that_is_configured_says_how_far_apart_looks_are() {
        let mut kong = Kong { scrape_ms: 60_000, poll_ms: 5_000, ..Kong::default() };
        assert_eq!(kong.look_micros(), 0);
        kong.redis_url = Some(SecretString::from("redis://127.0.0.1/"));
        assert_eq!(kong.look_micros(), 5_000_000);
        kong.nodes.push(KongNode { name: "one".into(), metrics_url: "http://127.0.0.1:8100/metrics".into() });
        assert_eq!(kong.look_micros(), 60_000_000);
    }
}
