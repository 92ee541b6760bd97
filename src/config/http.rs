//! The HTTP door: where it listens, how long it waits, whom it believes.

use serde::Deserialize;

use super::is_trusted_url;
use crate::domain::policy::network::Network;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// `address:port`; port 0 lets the system choose and is logged.
    pub listen: String,
    /// Open connections; further ones wait in the accept queue.
    pub connections_max: usize,
    /// A request's headers must be complete after this long.
    pub header_timeout_ms: u64,
    /// An idle kept-alive connection is closed after this long.
    pub idle_timeout_ms: u64,
    /// Our own deadline for one request.
    pub request_timeout_ms: u64,
    /// Longest body of a request other than ingestion.
    pub body_bytes_max: usize,
    /// Longest body of `POST /v1/usage/events`.
    pub events_body_bytes_max: usize,
    /// Longest body of `POST /v1/usage/litellm`, whose sender cannot split.
    pub litellm_body_bytes_max: usize,
    /// Longest body of a gateway's log.
    pub gateway_log_body_bytes_max: usize,
    /// How long a gateway may use a decision before it should ask again.
    pub decision_refresh_ms: u64,
    /// How long a gateway may use a decision when we do not answer.
    pub decision_valid_ms: u64,
    /// Proxies of ours, by address or network, as `10.0.0.0/8`: what they say of where a request came from is believed.
    pub trusted_proxies: Vec<String>,
    /// The header in which they say it; the other one is not looked at.
    pub proxy_header: ProxyHeader,
    pub cors: Cors,
}

/// Where a proxy writes whom it speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum ProxyHeader {
    #[serde(rename = "X-Forwarded-For")]
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
}

/// Pages of other origins that may read our answers.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cors {
    /// Exactly these, as `https://console.example.com`; nobody's when there is none.
    pub origins: Vec<String>,
    /// May their pages send cookies along?
    pub credentials: bool,
}

impl Default for Http {
    fn default() -> Http {
        Http {
            listen: "127.0.0.1:8082".into(),
            connections_max: 10_000,
            header_timeout_ms: 10_000,
            idle_timeout_ms: 75_000,
            request_timeout_ms: 30_000,
            body_bytes_max: 256 * 1024,
            events_body_bytes_max: 16 * 1024 * 1024,
            litellm_body_bytes_max: 64 * 1024 * 1024,
            gateway_log_body_bytes_max: 16 * 1024 * 1024,
            decision_refresh_ms: 1_000,
            decision_valid_ms: 5_000,
            trusted_proxies: Vec::new(),
            proxy_header: ProxyHeader::XForwardedFor,
            cors: Cors::default(),
        }
    }
}

impl Http {
    /// The networks of the proxies whose word is taken.
    #[must_use]
    pub fn proxies(&self) -> Vec<Network> {
        self.trusted_proxies.iter().filter_map(|text| text.parse().ok()).collect()
    }

    /// Everything that is wrong with it, by key.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |holds: bool, problem: &str| {
            if !holds {
                problems.push(problem.to_owned());
            }
        };
        check(
            self.listen.parse::<std::net::SocketAddr>().is_ok(),
            "http.listen: not an address and port, such as 127.0.0.1:8082",
        );
        check(self.connections_max > 0, "http.connections_max: must be above zero");
        check(
            self.decision_valid_ms >= self.decision_refresh_ms,
            "http.decision_valid_ms: must not be below http.decision_refresh_ms",
        );
        check(
            self.trusted_proxies.iter().all(|text| text.parse::<Network>().is_ok()),
            "http.trusted_proxies: must be addresses or networks, such as 10.0.0.0/8",
        );
        let is_origin = |text: &String| {
            let url = reqwest::Url::parse(text).ok();
            // An asterisk in a name is no wildcard to a browser, and whoever writes one means one.
            is_trusted_url(text)
                && !text.contains('*')
                && url.is_some_and(|url| url.origin().ascii_serialization() == *text)
        };
        check(
            self.cors.origins.iter().all(is_origin),
            "http.cors.origins: must be origins, such as https://console.example.com (http:// only for this machine), and never *",
        );
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    #[test]
    fn whom_the_door_believes_is_said_exactly() {
        for (toml, key) in [
            ("trusted_proxies = [\"10.0.0.0/33\"]", "http.trusted_proxies"),
            ("trusted_proxies = [\"proxy.example.com\"]", "http.trusted_proxies"),
            ("[http.cors]\norigins = [\"*\"]", "http.cors.origins"),
            ("[http.cors]\norigins = [\"https://*.example.com\"]", "http.cors.origins"),
            ("[http.cors]\norigins = [\"https://a.example.com/\"]", "http.cors.origins"),
            ("[http.cors]\norigins = [\"http://a.example.com\"]", "http.cors.origins"),
            ("[http.cors]\norigins = [\"null\"]", "http.cors.origins"),
        ] {
            let found = Config::read(&format!("[http]\n{toml}"), None).unwrap_err().problems;
            assert!(found.iter().any(|problem| problem.starts_with(key)), "{toml}: {found:?}");
        }
        let good = "[http]\ntrusted_proxies = [\"10.0.0.0/8\", \"::1\"]\nproxy_header = \"Forwarded\"\n[http.cors]\norigins = [\"https://a.example.com\"]";
        assert_eq!(Config::read(good, None).unwrap().http.proxies().len(), 2);
        assert!(Config::read("[http]\nproxy_header = \"X-Real-IP\"", None).is_err());
    }
}
