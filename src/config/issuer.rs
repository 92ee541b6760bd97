//! Trusted OpenID issuers: whose tokens are believed, how their claims read, and how browsers log in there.

use std::collections::{BTreeMap, BTreeSet};

use secrecy::SecretString;
use serde::Deserialize;

use super::is_trusted_url;
use crate::domain::ids::TenantId;
use crate::domain::tenant::Role;

/// A trusted OpenID issuer, and how its claims read.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// `iss`, exactly.
    pub issuer: String,
    /// `aud` must contain it.
    pub audience: String,
    /// What a login calls it: `?provider=<name>`.
    pub name: Option<String>,
    /// Where the keys are; from the issuer's discovery document when absent.
    pub jwks_url: Option<String>,
    /// Claim with the tenant's id; `/`-separated for a nested claim.
    #[serde(default = "tenant_claim")]
    pub tenant_claim: String,
    /// The issuer's names of tenants → our ids; our own ids are not read from the claim then.
    #[serde(default)]
    pub tenant_ids: BTreeMap<String, String>,
    /// The tenant of all its tokens, whatever they claim: an issuer of one tenant's own.
    pub tenant: Option<String>,
    /// The tenants it may speak for; all, and the platform, when empty.
    #[serde(default)]
    pub tenants: Vec<String>,
    #[serde(default = "user_claim")]
    pub user_claim: String,
    /// Claim with a role name or a list of them.
    #[serde(default = "roles_claim")]
    pub roles_claim: String,
    /// The issuer's role names → ours (`platformAdmin`, `admin`, `reporter`, `reader`).
    #[serde(default)]
    pub roles: BTreeMap<String, String>,
    /// Claim with a group name or a list of them.
    #[serde(default = "groups_claim")]
    pub groups_claim: String,
    /// The issuer's group names → the display names of ours. Membership in these follows the claim.
    #[serde(default)]
    pub groups: BTreeMap<String, String>,
    /// Our attributes' names → the claims they are read from.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
    #[serde(default = "user_name_claim")]
    pub user_name_claim: String,
    #[serde(default = "display_name_claim")]
    pub display_name_claim: String,
    #[serde(default = "email_claim")]
    pub email_claim: String,
    /// Whoever comes with a token of this issuer and is not known to its tenant is added to its users.
    #[serde(default)]
    pub provision: bool,
    /// Tokens that are no JWT are shown to the issuer, which says whose they are.
    pub introspection: Option<Introspection>,
    /// Browsers may log in there.
    pub login: Option<LoginClient>,
}

/// RFC 7662.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Introspection {
    /// From the discovery document when absent.
    pub url: Option<String>,
    pub client_id: String,
    pub client_secret: SecretString,
    /// How its tokens begin: others are not shown to it. Needed when tokens are looked up at more than one issuer.
    #[serde(default)]
    pub token_prefix: String,
    /// How long an answer is used at most; never beyond the token's own end.
    #[serde(default = "cache_ms")]
    pub cache_ms: u64,
}

/// What the issuer knows this daemon as when browsers log in.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginClient {
    pub client_id: String,
    /// A public client has none; PKCE is used in any case.
    pub client_secret: Option<SecretString>,
    #[serde(default = "scopes")]
    pub scopes: Vec<String>,
    /// Claims that the ID token lacks are asked for at the issuer's userinfo endpoint.
    #[serde(default)]
    pub userinfo: bool,
    /// RFC 8707: the API the tokens are to be for. Logto gives none for itself without it.
    pub resource: Option<String>,
}

fn tenant_claim() -> String {
    "tenant".into()
}
fn user_claim() -> String {
    "sub".into()
}
fn roles_claim() -> String {
    "roles".into()
}
fn groups_claim() -> String {
    "groups".into()
}
fn user_name_claim() -> String {
    "preferred_username".into()
}
fn display_name_claim() -> String {
    "name".into()
}
fn email_claim() -> String {
    "email".into()
}
fn cache_ms() -> u64 {
    30_000
}
fn scopes() -> Vec<String> {
    vec!["openid".into(), "profile".into(), "email".into()]
}

/// Everything that is wrong with them, by key.
pub(super) fn problems(issuers: &[Issuer]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut names = BTreeSet::new();
    let mut known = BTreeSet::new();
    for (at, issuer) in issuers.iter().enumerate() {
        let mut check = |holds: bool, problem: &str| {
            if !holds {
                problems.push(format!("auth.issuers[{at}].{problem}"));
            }
        };
        check(is_trusted_url(&issuer.issuer), "issuer: must be an https:// URL (http:// only for this machine)");
        check(known.insert(&issuer.issuer), "issuer: is there twice");
        check(!issuer.audience.is_empty(), "audience: must not be empty");
        check(
            issuer.jwks_url.as_deref().is_none_or(is_trusted_url),
            "jwks_url: must be an https:// URL (http:// only for this machine)",
        );
        for role in issuer.roles.values() {
            let known = Role::from_name(role).is_some();
            check(known, &format!("roles: {role} is none of platformAdmin, admin, reporter, reader"));
        }
        for id in issuer.tenant_ids.values().chain(&issuer.tenants).chain(&issuer.tenant) {
            check(id.parse::<TenantId>().is_ok(), &format!("tenant, tenants and tenant_ids: {id} is no tenant's id"));
        }
        let plain = |name: &String| {
            (1..=64).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        check(issuer.name.as_ref().is_none_or(plain), "name: must be 1 to 64 letters, digits, - or _");
        check(issuer.name.as_ref().is_none_or(|name| names.insert(name)), "name: is used twice");
        if let Some(introspection) = &issuer.introspection {
            check(
                introspection.url.as_deref().is_none_or(is_trusted_url),
                "introspection.url: must be an https:// URL (http:// only for this machine)",
            );
            check(!introspection.client_id.is_empty(), "introspection.client_id: must not be empty");
            check(introspection.cache_ms <= 300_000, "introspection.cache_ms: must not be above 300000");
        }
        if let Some(login) = &issuer.login {
            check(issuer.name.is_some(), "name: is needed for login");
            check(!login.client_id.is_empty(), "login.client_id: must not be empty");
            check(login.scopes.iter().any(|scope| scope == "openid"), "login.scopes: must contain openid");
        }
    }
    // An issuer that is shown another's token could use it.
    let prefixes: Vec<(usize, &str)> = issuers
        .iter()
        .enumerate()
        .filter_map(|(at, issuer)| Some((at, issuer.introspection.as_ref()?.token_prefix.as_str())))
        .collect();
    for (at, prefix) in &prefixes {
        let is_shared = prefixes.iter().any(|(other, theirs)| other != at && theirs.starts_with(prefix));
        if is_shared {
            problems.push(format!(
                "auth.issuers[{at}].introspection.token_prefix: must tell its tokens from those of every other issuer with \
                 introspection"
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn issuers_with_introspection_are_told_apart_by_their_tokens() {
        let flawed = |prefixes: &[&str]| {
            let issuer = |(at, prefix): (usize, &&str)| -> Issuer {
                let introspection = json!({"client_id": "c", "client_secret": "s", "token_prefix": prefix});
                let issuer = format!("https://{at}.example.com");
                serde_json::from_value(json!({"issuer": issuer, "audience": "a", "introspection": introspection}))
                    .unwrap()
            };
            let issuers: Vec<Issuer> = prefixes.iter().enumerate().map(issuer).collect();
            problems(&issuers).iter().filter(|problem| problem.contains("token_prefix")).count()
        };
        for (prefixes, expected) in
            [(&[""] as &[&str], 0), (&["a_", "b_"], 0), (&["", ""], 2), (&["", "b_"], 1), (&["a_", "a_b"], 1)]
        {
            assert_eq!(flawed(prefixes), expected, "{prefixes:?}");
        }
    }
}
