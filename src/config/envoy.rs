//! `[envoy]`: the gRPC door.

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

/// Envoy's rate limit service, over gRPC.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Envoy {
    /// `address:port`; off without it.
    pub listen: Option<String>,
    /// Callers must send `authorization: Bearer <token>`; nobody is asked without it.
    pub token: Option<SecretString>,
    /// Questions of another domain are refused; every domain is answered without it.
    pub domain: Option<String>,
    /// What a descriptor gets that names no tenant of ours.
    pub on_unknown: OnUnknown,
    /// Open connections; further ones wait in the accept queue.
    pub connections_max: usize,
    /// Our own deadline for one question.
    pub request_timeout_ms: u64,
    /// What the entries of a descriptor are called.
    pub keys: EnvoyKeys,
}

/// The answer about a tenant that is not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnknown {
    Allow,
    Deny,
}

/// Keys of a descriptor's entries, by what their values mean to us.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EnvoyKeys {
    pub tenant: String,
    pub user: String,
    pub group: String,
    pub api_key: String,
    pub model: String,
    pub provider: String,
}

impl Default for Envoy {
    fn default() -> Envoy {
        Envoy {
            listen: None,
            token: None,
            domain: None,
            on_unknown: OnUnknown::Allow,
            connections_max: 1_000,
            request_timeout_ms: 1_000,
            keys: EnvoyKeys::default(),
        }
    }
}

impl Default for EnvoyKeys {
    fn default() -> EnvoyKeys {
        EnvoyKeys {
            tenant: "tenant_id".into(),
            user: "user_id".into(),
            group: "group_id".into(),
            api_key: "api_key_id".into(),
            model: "model".into(),
            provider: "provider".into(),
        }
    }
}

impl Envoy {
    /// What is wrong, by key.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        if let Some(listen) = &self.listen {
            let parsed = listen.parse::<std::net::SocketAddr>();
            check(parsed.is_ok(), "envoy.listen: not an address and port, such as 127.0.0.1:8083");
        }
        check(self.connections_max > 0, "envoy.connections_max: must be above zero");
        check(self.request_timeout_ms > 0, "envoy.request_timeout_ms: must be above zero");
        if let Some(token) = &self.token {
            check(token.expose_secret().len() >= 16, "envoy.token: must have at least 16 characters");
        }
        let EnvoyKeys { tenant, user, group, api_key, model, provider } = &self.keys;
        let keys = [tenant, user, group, api_key, model, provider];
        let distinct: std::collections::BTreeSet<&String> = keys.into_iter().filter(|key| !key.is_empty()).collect();
        check(distinct.len() == keys.len(), "envoy.keys: must be distinct and not empty");
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_problem_is_named_by_its_key() {
        let keys = EnvoyKeys { user: "tenant_id".into(), ..EnvoyKeys::default() };
        let wrong = Envoy {
            listen: Some("8083".into()),
            token: Some(SecretString::from("short")),
            connections_max: 0,
            request_timeout_ms: 0,
            keys,
            ..Envoy::default()
        };
        let problems = wrong.problems();
        let named: Vec<&str> = problems.iter().filter_map(|problem| problem.split(':').next()).collect();
        let expected =
            ["envoy.listen", "envoy.connections_max", "envoy.request_timeout_ms", "envoy.token", "envoy.keys"];
        assert_eq!(named, expected);
        assert!(Envoy::default().problems().is_empty());
    }
}
