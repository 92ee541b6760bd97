//! Logging in with a browser: sessions, where people are sent afterwards, and accounts of this daemon's own.

use serde::Deserialize;

use super::{Auth, is_trusted_url};

/// Sessions of browsers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Login {
    /// Where browsers reach this API, as `https://platform.example.com`; from `http.listen` when absent. With https,
    /// cookies are `Secure` and have the prefix `__Host-`.
    pub public_url: Option<String>,
    /// Origins of frontends besides it, as `https://console.example.com`: where a login may return to, and whose pages
    /// may use the session's cookie.
    pub origins: Vec<String>,
    /// Where a login returns to that does not say.
    pub return_to: String,
    /// Where a login goes that failed, with `?error=<CODE>`; a plain page of ours when absent.
    pub error_url: Option<String>,
    /// A session that is not refreshed for this long ends.
    pub idle_ms: u64,
    /// A session ends after this long.
    pub session_ms: u64,
    /// A secret that was replaced is good for this much longer.
    pub grace_ms: u64,
    /// A login must be finished this long after it was begun.
    pub flow_ms: u64,
    /// How old what is known of a session may be: after this long a session that was ended elsewhere is refused here.
    pub stale_ms: u64,
    /// Prefix of the sessions' keys, where Redis keeps them.
    pub key_prefix: String,
}

impl Default for Login {
    fn default() -> Login {
        Login {
            public_url: None,
            origins: Vec::new(),
            return_to: "/".into(),
            error_url: None,
            idle_ms: 1_800_000,
            session_ms: 43_200_000,
            grace_ms: 10_000,
            flow_ms: 600_000,
            stale_ms: 500,
            key_prefix: "platform-api:sessions:".into(),
        }
    }
}

/// Accounts with a password that is kept here.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Local {
    /// When absent: only on the embedded database.
    pub enabled: Option<bool>,
    /// argon2id: memory of one hash, in KiB.
    pub memory_kib: u32,
    /// argon2id: passes over it.
    pub passes: u32,
    /// Hashes that are computed at once; others wait.
    pub hashes_at_once: usize,
}

impl Default for Local {
    fn default() -> Local {
        Local { enabled: None, memory_kib: 19_456, passes: 2, hashes_at_once: 2 }
    }
}

impl Auth {
    /// May people log in with a password that is kept here?
    #[must_use]
    pub fn has_local_accounts(&self, is_embedded: bool) -> bool {
        self.local.enabled.unwrap_or(is_embedded)
    }

    /// Everything that is wrong with logging in, by key.
    pub(super) fn login_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        let login = &self.login;
        let is_origin = |text: &str| {
            let url = reqwest::Url::parse(text).ok();
            is_trusted_url(text) && url.is_some_and(|url| url.origin().ascii_serialization() == text)
        };
        check(
            login.public_url.as_deref().is_none_or(is_origin),
            "auth.login.public_url: must be an origin, such as https://platform.example.com (http:// only for this machine)",
        );
        check(
            login.public_url.is_some() || self.issuers.iter().all(|issuer| issuer.login.is_none()),
            "auth.login.public_url: must be set when browsers log in at an issuer",
        );
        check(
            login.origins.iter().all(|origin| is_origin(origin)),
            "auth.login.origins: must be origins, such as https://console.example.com",
        );
        let returns = |text: &str| {
            text.starts_with('/') && !text.starts_with("//")
                || reqwest::Url::parse(text)
                    .is_ok_and(|url| login.origins.contains(&url.origin().ascii_serialization()))
        };
        check(returns(&login.return_to), "auth.login.return_to: must be a path, or an address of auth.login.origins");
        check(
            login.error_url.as_deref().is_none_or(returns),
            "auth.login.error_url: must be a path, or an address of auth.login.origins",
        );
        let hour = 3_600_000;
        check(
            login.idle_ms >= 1_000 && login.idle_ms <= login.session_ms && login.session_ms <= 720 * hour,
            "auth.login.idle_ms: must be at least 1000 and not above auth.login.session_ms, which is at most 30 days",
        );
        check(
            login.grace_ms <= 60_000 && login.grace_ms < login.idle_ms,
            "auth.login.grace_ms: must not be above 60000, and below auth.login.idle_ms",
        );
        check((10_000..=hour).contains(&login.flow_ms), "auth.login.flow_ms: must be from 10000 to 3600000");
        check(login.stale_ms <= 1_000, "auth.login.stale_ms: must not be above 1000");
        let local = &self.local;
        check((7_168..=1_048_576).contains(&local.memory_kib), "auth.local.memory_kib: must be from 7168 to 1048576");
        check((1..=16).contains(&local.passes), "auth.local.passes: must be from 1 to 16");
        check(
            local.memory_kib >= 19_456 || u64::from(local.memory_kib) * u64::from(local.passes) >= 35_000,
            "auth.local.passes: less memory needs more passes, such as 7168 KiB and 5",
        );
        check((1..=64).contains(&local.hashes_at_once), "auth.local.hashes_at_once: must be from 1 to 64");
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(toml: &str) -> Vec<String> {
        super::super::Config::read(toml, None).map_or_else(|invalid| invalid.problems, |_| Vec::new())
    }

    #[test]
    fn a_login_that_would_be_unsafe_does_not_start() {
        let issuer = "[[auth.issuers]]\nissuer = \"https://id.example.com\"\naudience = \"a\"\nname = \"id\"\n";
        let client = "login = { client_id = \"platform\" }\n";
        for (toml, key) in [
            (format!("{issuer}{client}"), "auth.login.public_url"),
            ("[auth.login]\npublic_url = \"http://platform.example.com\"".into(), "auth.login.public_url"),
            ("[auth.login]\npublic_url = \"https://platform.example.com/\"".into(), "auth.login.public_url"),
            ("[auth.login]\norigins = [\"https://a.example.com/x\"]".into(), "auth.login.origins"),
            ("[auth.login]\nreturn_to = \"https://evil.example.com/\"".into(), "auth.login.return_to"),
            ("[auth.login]\nerror_url = \"//evil.example.com\"".into(), "auth.login.error_url"),
            ("[auth.login]\nidle_ms = 1".into(), "auth.login.idle_ms"),
            ("[auth.login]\nstale_ms = 5000".into(), "auth.login.stale_ms"),
            ("[auth.local]\nmemory_kib = 1024".into(), "auth.local.memory_kib"),
            ("[auth.local]\nmemory_kib = 7168\npasses = 1".into(), "auth.local.passes"),
            (format!("{issuer}login = {{ client_id = \"p\", scopes = [\"email\"] }}"), "auth.issuers[0].login.scopes"),
            (format!("{issuer}tenants = [\"acme\"]"), "auth.issuers[0].tenant"),
            (format!("{issuer}{issuer}"), "auth.issuers[1].issuer"),
        ] {
            let found = problems(&toml);
            assert!(found.iter().any(|problem| problem.starts_with(key)), "{toml}: {found:?}");
        }
        let good = format!("{issuer}{client}[auth.login]\npublic_url = \"https://platform.example.com\"\n");
        assert_eq!(problems(&good), Vec::<String>::new());
    }

    #[test]
    fn local_accounts_are_for_the_embedded_database_unless_they_are_asked_for() {
        let auth = Auth::default();
        assert!(auth.has_local_accounts(true) && !auth.has_local_accounts(false));
        let off = Auth { local: Local { enabled: Some(false), ..Local::default() }, ..Auth::default() };
        assert!(!off.has_local_accounts(true));
    }
}
