//! `[kong]`: tenants as Kong's consumers.

use std::path::PathBuf;

use secrecy::SecretString;
use serde::Deserialize;

/// Kong's Admin API: tenants are written there as consumers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KongAdmin {
    /// Base URL of the Admin API; off without it.
    pub admin_url: Option<String>,
    /// Sent as `Kong-Admin-Token`, for an Admin API behind something that asks for it.
    pub admin_token: Option<SecretString>,
    /// How often everything is compared, besides after each change of a tenant.
    pub sync_interval_ms: u64,
    /// Where Kong keeps its configuration.
    pub mode: KongMode,
    /// For Kong without a database: the declarative document, in JSON, to which the tenants are added.
    pub base_file: Option<PathBuf>,
}

/// Where Kong keeps its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KongMode {
    /// As `configuration.database` of its Admin API says.
    Auto,
    /// Entity by entity in its database.
    Database,
    /// In memory, one document replaced as a whole.
    Declarative,
}

impl Default for KongAdmin {
    fn default() -> KongAdmin {
        KongAdmin {
            admin_url: None,
            admin_token: None,
            sync_interval_ms: 60_000,
            mode: KongMode::Auto,
            base_file: None,
        }
    }
}

impl KongAdmin {
    /// What is wrong, by key.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(url) = &self.admin_url {
            let url = reqwest::Url::parse(url).ok();
            let plain = |url: &reqwest::Url| url.username().is_empty() && url.password().is_none();
            if !url.is_some_and(|url| ["http", "https"].contains(&url.scheme()) && plain(&url)) {
                problems.push("kong.admin_url: must be an http:// or https:// URL without credentials".to_owned());
            }
        }
        if self.sync_interval_ms < 1_000 {
            problems.push("kong.sync_interval_ms: must be at least 1000".to_owned());
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_problem_is_named_by_its_key_and_without_its_value() {
        for url in ["kong:8001", "ftp://kong", "http://admin:s3cret@kong:8001", ""] {
            let wrong =
                KongAdmin { admin_url: Some(url.into()), sync_interval_ms: 999, ..KongAdmin::default() }.problems();
            assert_eq!(wrong.len(), 2, "{url}");
            assert!(wrong[0].starts_with("kong.admin_url:") && !wrong[0].contains("s3cret"), "{wrong:?}");
        }
        let right = KongAdmin { admin_url: Some("http://kong:8001".into()), ..KongAdmin::default() };
        assert!(right.problems().is_empty());
    }
}
