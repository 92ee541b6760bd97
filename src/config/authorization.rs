//! `[authorization]`: decisions by tenants' own roles and policies.

use secrecy::SecretString;
use serde::Deserialize;

/// How access is decided beyond the built-in roles.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Authorization {
    /// Under which address gateways reach us, as `https://platform.example.com`: what the AuthZEN configuration says. It is
    /// not published without it; a request's Host header is nobody's word.
    pub public_url: Option<String>,
    /// What a search for subjects calls a user. Questions may call one by any of these.
    pub subject_ids: SubjectIds,
    pub openfga: OpenFga,
}

/// What gateways know users by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SubjectIds {
    #[default]
    Id,
    UserName,
    /// The id where there is none.
    ExternalId,
}

/// OpenFGA, which keeps relations that conditions may ask for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OpenFga {
    /// Base URL of its HTTP API; off without it.
    pub api_url: Option<String>,
    pub store_id: Option<String>,
    /// The store's latest model when absent.
    pub authorization_model_id: Option<String>,
    /// Sent as a bearer token.
    pub token: Option<SecretString>,
    /// One question; what takes longer is a denial.
    pub timeout_ms: u64,
    /// How long an answer may be used again; 0, the default, for never.
    pub keep_ms: u64,
}

impl Default for OpenFga {
    fn default() -> OpenFga {
        OpenFga {
            api_url: None,
            store_id: None,
            authorization_model_id: None,
            token: None,
            timeout_ms: 300,
            keep_ms: 0,
        }
    }
}

impl OpenFga {
    /// Where it is asked; `None` when it is off.
    #[must_use]
    pub fn check_url(&self) -> Option<reqwest::Url> {
        let (base, store) = (self.api_url.as_ref()?, self.store_id.as_ref()?);
        reqwest::Url::parse(&format!("{}/stores/{store}/check", base.trim_end_matches('/'))).ok()
    }
}

impl Authorization {
    /// What is wrong, by key.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        let is_web = |text: &str| {
            let url = reqwest::Url::parse(text).ok();
            url.is_some_and(|url| {
                let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
                ["http", "https"].contains(&url.scheme()) && plain && url.fragment().is_none()
            })
        };
        if let Some(url) = &self.public_url {
            check(is_web(url), "authorization.public_url: must be an http:// or https:// URL without credentials");
        }
        let OpenFga { api_url, store_id, authorization_model_id, timeout_ms, keep_ms, .. } = &self.openfga;
        if let Some(url) = api_url {
            check(is_web(url), "authorization.openfga.api_url: must be an http:// or https:// URL without credentials");
            check(store_id.is_some(), "authorization.openfga.store_id: must be set with authorization.openfga.api_url");
        }
        let plain = |id: &Option<String>| {
            let fits = |id: &String| {
                (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            };
            id.as_ref().is_none_or(fits)
        };
        check(plain(store_id), "authorization.openfga.store_id: must be 1 to 64 letters, digits or -");
        let key = "authorization.openfga.authorization_model_id: must be 1 to 64 letters, digits or -";
        check(plain(authorization_model_id), key);
        let key = "authorization.openfga.timeout_ms: must be from 1 to 5000";
        check((1..=5_000).contains(timeout_ms), key);
        check(*keep_ms <= 60_000, "authorization.openfga.keep_ms: must be at most 60000");
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_problem_is_named_by_its_key_and_without_its_value() {
        let wrong = Authorization {
            public_url: Some("https://ada:s3cret@platform".into()),
            openfga: OpenFga {
                api_url: Some("ftp://fga?s3cret".into()),
                store_id: Some("a/../b".into()),
                authorization_model_id: Some(String::new()),
                timeout_ms: 0,
                keep_ms: 60_001,
                ..OpenFga::default()
            },
            ..Authorization::default()
        };
        let problems = wrong.problems();
        let named: Vec<&str> = problems.iter().filter_map(|problem| problem.split(": ").next()).collect();
        let keys = ["api_url", "store_id", "authorization_model_id", "timeout_ms", "keep_ms"];
        let keys: Vec<String> = keys.iter().map(|key| format!("authorization.openfga.{key}")).collect();
        assert_eq!(named[0], "authorization.public_url");
        assert_eq!(named[1..], keys);
        assert!(!problems.concat().contains("s3cret"), "{problems:?}");
        assert!(Authorization::default().problems().is_empty());
        let alone = OpenFga { api_url: Some("http://fga:8080".into()), ..OpenFga::default() };
        assert_eq!(Authorization { openfga: alone, ..Authorization::default() }.problems().len(), 1);
    }

    #[test]
    fn openfga_is_asked_in_its_store_and_off_without_an_address() {
        assert_eq!(OpenFga::default().check_url(), None);
        let on = OpenFga {
            api_url: Some("http://fga:8080/base/".into()),
            store_id: Some("01HV".into()),
            ..OpenFga::default()
        };
        assert_eq!(on.check_url().map(String::from).as_deref(), Some("http://fga:8080/base/stores/01HV/check"));
    }
}
