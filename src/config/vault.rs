//! `[vault]`: where the key is kept that keeps tenants' secrets.

use std::path::{Path, PathBuf};

use secrecy::SecretString;
use serde::Deserialize;

/// Beside the tenants' databases.
const FILE_NAME: &str = "kek";

/// Where tenants' secrets are kept, and how they are lent.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vault {
    /// Who keeps the key that data keys are encrypted under.
    pub kek: KekKind,
    /// Of `file`: where it is; beside the embedded store when absent. Without either there is no vault.
    pub kek_file: Option<PathBuf>,
    /// Of `environment`: base64 of 32 bytes each, between commas; the last one encrypts, all of them decrypt.
    pub keys: Option<SecretString>,
    /// Of `transit`: the address of OpenBao or HashiCorp Vault.
    pub transit_url: Option<String>,
    pub transit_mount: String,
    pub transit_key: String,
    pub transit_token: Option<SecretString>,
    /// Read each time a token is needed; an agent renews it there.
    pub transit_token_file: Option<PathBuf>,
    pub transit_namespace: Option<String>,
    /// The longest that a secret is lent for.
    pub lease_seconds_max: u32,
    /// Providers may be at private addresses, and speak plain HTTP.
    pub allow_private_addresses: bool,
}

/// Who keeps the key encryption key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KekKind {
    File,
    Environment,
    Transit,
    /// Nobody: there is no vault.
    Off,
}

impl Default for Vault {
    fn default() -> Vault {
        Vault {
            kek: KekKind::File,
            kek_file: None,
            keys: None,
            transit_url: None,
            transit_mount: "transit".into(),
            transit_key: "platform-api".into(),
            transit_token: None,
            transit_token_file: None,
            transit_namespace: None,
            lease_seconds_max: 3_600,
            allow_private_addresses: false,
        }
    }
}

impl Vault {
    /// Where the file is, if there is a place for it; `folder` is the embedded store's.
    #[must_use]
    pub fn place(&self, folder: Option<&Path>) -> Option<PathBuf> {
        self.kek_file.clone().or_else(|| folder.map(|folder| folder.join(FILE_NAME)))
    }

    /// What is wrong, by key.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        if self.kek == KekKind::Environment {
            check(self.keys.is_some(), "vault.keys: must be set with vault.kek = \"environment\"");
        }
        if self.kek == KekKind::Transit {
            let fits = self.transit_url.as_deref().is_some_and(super::is_trusted_url);
            check(fits, "vault.transit_url: must be an https:// URL, or an http:// one of this machine");
            let token = self.transit_token.is_some() || self.transit_token_file.is_some();
            check(token, "vault.transit_token: must be set, or vault.transit_token_file");
            let plain = |text: &str, more: &[u8]| {
                !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
            };
            check(plain(&self.transit_mount, b"-_/"), "vault.transit_mount: must be letters, digits, -, _ or /");
            check(plain(&self.transit_key, b"-_."), "vault.transit_key: must be letters, digits, -, _ or .");
        }
        let range = (1..=86_400).contains(&self.lease_seconds_max);
        check(range, "vault.lease_seconds_max: must be from 1 to 86400");
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(vault: Vault) -> Vec<String> {
        vault.problems().iter().filter_map(|problem| problem.split(':').next()).map(str::to_owned).collect()
    }

    #[test]
    fn each_keeper_needs_what_it_needs() {
        assert!(Vault::default().problems().is_empty());
        assert_eq!(keys(Vault { kek: KekKind::Environment, ..Vault::default() }), ["vault.keys"]);
        let transit = Vault { kek: KekKind::Transit, ..Vault::default() };
        assert_eq!(keys(transit.clone()), ["vault.transit_url", "vault.transit_token"]);
        let wrong = Vault {
            transit_url: Some("http://vault.example.com".into()),
            transit_token: Some(SecretString::from("s3cret")),
            transit_mount: "a?b".into(),
            transit_key: "a/b".into(),
            lease_seconds_max: 0,
            ..transit.clone()
        };
        let named = ["vault.transit_url", "vault.transit_mount", "vault.transit_key", "vault.lease_seconds_max"];
        assert_eq!(keys(wrong.clone()), named);
        assert!(!wrong.problems().concat().contains("s3cret"));
        let right = Vault {
            transit_url: Some("https://vault.example.com:8200".into()),
            transit_token_file: Some("/run/token".into()),
            ..transit
        };
        assert!(right.problems().is_empty());
    }

    #[test]
    fn a_file_is_beside_the_embedded_store_unless_it_is_elsewhere() {
        let (here, there) = (Path::new("data"), PathBuf::from("/etc/kek"));
        assert_eq!(Vault::default().place(Some(here)), Some(PathBuf::from("data/kek")));
        assert_eq!(Vault::default().place(None), None);
        let elsewhere = Vault { kek_file: Some(there.clone()), ..Vault::default() };
        assert_eq!((elsewhere.place(Some(here)), elsewhere.place(None)), (Some(there.clone()), Some(there)));
    }
}
