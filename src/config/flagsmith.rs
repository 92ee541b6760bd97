//! `[flagsmith]`: another source of the platform's feature flags than its own store.

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

/// Flagsmith's environment, evaluated here.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flagsmith {
    /// Base URL, as `https://edge.api.flagsmith.com`; off without it.
    pub url: Option<String>,
    /// The environment's server-side key, `ser.…`.
    pub environment_key: Option<SecretString>,
    /// How often the document is fetched.
    pub poll_ms: u64,
}

impl Default for Flagsmith {
    fn default() -> Flagsmith {
        Flagsmith { url: None, environment_key: None, poll_ms: 60_000 }
    }
}

impl Flagsmith {
    /// What is wrong, by key.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        if let Some(url) = &self.url {
            let url = reqwest::Url::parse(url).ok();
            let plain = |url: &reqwest::Url| url.username().is_empty() && url.password().is_none();
            let fits = url.is_some_and(|url| ["http", "https"].contains(&url.scheme()) && plain(&url));
            check(fits, "flagsmith.url: must be an http:// or https:// URL without credentials");
            check(self.environment_key.is_some(), "flagsmith.environment_key: must be set with flagsmith.url");
        }
        if let Some(key) = &self.environment_key {
            let key = key.expose_secret();
            let fits = key.starts_with("ser.") && key.bytes().all(|byte| byte.is_ascii_graphic());
            check(fits, "flagsmith.environment_key: must be a server-side key, which begins with ser.");
        }
        check(self.poll_ms >= 1_000, "flagsmith.poll_ms: must be at least 1000");
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_problem_is_named_by_its_key_and_without_its_value() {
        let wrong = Flagsmith {
            url: Some("https://ada:s3cret@flags".into()),
            environment_key: Some(SecretString::from("s3cret")),
            poll_ms: 1,
        };
        let problems = wrong.problems();
        let named: Vec<&str> = problems.iter().filter_map(|problem| problem.split(':').next()).collect();
        assert_eq!(named, ["flagsmith.url", "flagsmith.environment_key", "flagsmith.poll_ms"]);
        assert!(!problems.concat().contains("s3cret"), "{problems:?}");
        let alone = Flagsmith { url: Some("http://flags:8000".into()), ..Flagsmith::default() };
        assert_eq!(alone.problems().len(), 1);
        assert!(Flagsmith::default().problems().is_empty());
    }
}
