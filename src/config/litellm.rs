//! `[litellm]`: tenants' providers as LiteLLM's credentials.

use secrecy::SecretString;
use serde::Deserialize;

/// LiteLLM's management API: tenants' secrets are written there as credentials, and taken away again.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LiteLlm {
    /// Base URL of the proxy; off without it.
    pub url: Option<String>,
    pub master_key: Option<SecretString>,
    /// How often everything is compared, besides after each change.
    pub sync_interval_ms: u64,
}

impl Default for LiteLlm {
    fn default() -> LiteLlm {
        LiteLlm { url: None, master_key: None, sync_interval_ms: 3_600_000 }
    }
}

impl LiteLlm {
    /// What is wrong, by key.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(url) = &self.url {
            let url = reqwest::Url::parse(url).ok();
            let plain = |url: &reqwest::Url| url.username().is_empty() && url.password().is_none();
            if !url.is_some_and(|url| ["http", "https"].contains(&url.scheme()) && plain(&url)) {
                problems.push("litellm.url: must be an http:// or https:// URL without credentials".to_owned());
            }
            if self.master_key.is_none() {
                problems.push("litellm.master_key: must be set with litellm.url".to_owned());
            }
        }
        if self.sync_interval_ms < 1_000 {
            problems.push("litellm.sync_interval_ms: must be at least 1000".to_owned());
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_problem_is_named_by_its_key_and_without_its_value() {
        assert!(LiteLlm::default().problems().is_empty());
        let wrong = LiteLlm { url: Some("http://a:s3cret@litellm".into()), sync_interval_ms: 1, master_key: None };
        let problems = wrong.problems();
        let named: Vec<&str> = problems.iter().filter_map(|problem| problem.split(':').next()).collect();
        assert_eq!(named, ["litellm.url", "litellm.master_key", "litellm.sync_interval_ms"]);
        assert!(!problems.concat().contains("s3cret"));
        let key = Some(SecretString::from("sk-1"));
        let right = LiteLlm { url: Some("http://litellm:4000".into()), master_key: key, ..LiteLlm::default() };
        assert!(right.problems().is_empty());
    }
}
