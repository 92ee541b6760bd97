//! `[gateway.kong.admin]`: tenants as Kong's consumers.

use std::path::PathBuf;

use secrecy::SecretString;
use serde::{Deserialize, Deserializer};

/// Kong's Admin API: tenants are written there as consumers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KongAdmin {
    /// Base URLs of the Admin API; off without any. Nodes without a database are loaded one by one, so each is named; of
    /// those with a database, which they share, the first that answers is written.
    #[serde(deserialize_with = "one_or_several")]
    pub urls: Vec<String>,
    /// Sent as `Kong-Admin-Token`, for an Admin API behind something that asks for it.
    pub token: Option<SecretString>,
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
        KongAdmin { urls: Vec::new(), token: None, sync_interval_ms: 60_000, mode: KongMode::Auto, base_file: None }
    }
}

impl KongAdmin {
    pub(super) fn check(&self, check: &mut impl FnMut(bool, &str)) {
        let plain = |url: &reqwest::Url| url.username().is_empty() && url.password().is_none();
        let mut seen = std::collections::BTreeSet::new();
        for (at, url) in self.urls.iter().enumerate() {
            let read = reqwest::Url::parse(url).ok();
            check(
                read.is_some_and(|url| ["http", "https"].contains(&url.scheme()) && plain(&url)),
                &format!("gateway.kong.admin.urls[{at}]: must be an http:// or https:// URL without credentials"),
            );
            check(
                seen.insert(url.trim_end_matches('/')),
                &format!("gateway.kong.admin.urls[{at}]: the same node is named twice"),
            );
        }
        check(self.sync_interval_ms >= 1_000, "gateway.kong.admin.sync_interval_ms: must be at least 1000");
    }
}

/// A list, or one text with commas between, which is all that the environment can say.
fn one_or_several<'de, D: Deserializer<'de>>(read: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Urls {
        One(String),
        Several(Vec<String>),
    }
    Ok(match Urls::deserialize(read)? {
        Urls::One(text) => text.split(',').map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned).collect(),
        Urls::Several(urls) => urls,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(admin: &KongAdmin) -> Vec<String> {
        let mut problems = Vec::new();
        admin.check(&mut |holds, problem| {
            if !holds {
                problems.push(problem.to_owned());
            }
        });
        problems
    }

    #[test]
    fn each_problem_is_named_by_its_key_and_without_its_value() {
        for url in ["kong:8001", "ftp://kong", "http://admin:s3cret@kong:8001", ""] {
            let wrong = KongAdmin { urls: vec![url.into()], sync_interval_ms: 999, ..KongAdmin::default() };
            let wrong = problems(&wrong);
            assert_eq!(wrong.len(), 2, "{url}");
            assert!(wrong[0].starts_with("gateway.kong.admin.urls[0]:") && !wrong[0].contains("s3cret"), "{wrong:?}");
        }
        let twice = vec!["http://kong:8001".into(), "http://kong:8001/".into()];
        assert_eq!(problems(&KongAdmin { urls: twice, ..KongAdmin::default() }).len(), 1);
        let right = vec!["http://kong-1:8001".into(), "http://kong-2:8001".into()];
        assert!(problems(&KongAdmin { urls: right, ..KongAdmin::default() }).is_empty());
    }

    #[test]
    fn the_environment_names_several_nodes_with_commas() {
        let read = |text: &str| crate::config::Config::read(text, None).unwrap().gateway.kong.admin.urls;
        let two = ["http://kong-1:8001", "http://kong-2:8001"];
        assert_eq!(read("[gateway.kong.admin]\nurls = [\"http://kong-1:8001\", \"http://kong-2:8001\"]"), two);
        assert_eq!(read("[gateway.kong.admin]\nurls = \"http://kong-1:8001, http://kong-2:8001\""), two);
        assert!(read("[gateway.kong.admin]\nurls = \"\"").is_empty());
    }
}
