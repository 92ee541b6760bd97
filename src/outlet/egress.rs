//! What we may connect to. A URL is checked when it is configured, and every address again when it is connected to:
//! the resolver below hands out only addresses that passed, so the checked address is the connected one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// How long one send may take, from connecting to the end of the answer.
pub(super) const SEND_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// As much of an answer as we read, and forget.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// The longest a receiver may ask us to wait.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(15 * 60);

/// Why a send failed. The reason is ours: never a byte of the answer, never a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// May go better later, not before `after`.
    Passing { reason: String, after: Duration },
    /// The receiver will never take it.
    Final { reason: String },
}

impl Failure {
    pub(super) fn passing(reason: impl Into<String>) -> Failure {
        Failure::Passing { reason: reason.into(), after: Duration::ZERO }
    }
}

/// The name resolves to an address that is not on the public internet.
#[derive(Debug, thiserror::Error)]
#[error("the address is not a public one")]
struct NotPublic;

/// What is wrong with a receiver's URL, if anything. A private receiver must be allowed explicitly; so must plain HTTP,
/// which is only for such networks, and addresses written as numbers, in any spelling.
pub(super) fn problem(url: &str, allow_private: bool) -> Option<String> {
    let Ok(url) = Url::parse(url) else { return Some("not a URL".into()) };
    if !["http", "https"].contains(&url.scheme()) {
        return Some("must be an http:// or https:// URL".into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Some("must not hold a user or a password".into());
    }
    if url.fragment().is_some() {
        return Some("must not have a fragment".into());
    }
    let Some(host) = url.host_str().filter(|host| !host.is_empty()) else { return Some("names no host".into()) };
    if !allow_private && url.scheme() != "https" {
        return Some("must be https:// (unless allow_private_addresses is set)".into());
    }
    // The parser has already turned every spelling of an IPv4 address (decimal, octal, hex) into dots.
    host_problem(host, allow_private)
}

/// What is wrong with a receiver's host as a URL would name it, if anything.
pub(super) fn host_problem(host: &str, allow_private: bool) -> Option<String> {
    if allow_private {
        return None;
    }
    let literal = host.starts_with('[') || host.parse::<IpAddr>().is_ok();
    let name = host.trim_end_matches('.');
    let last = name.rsplit('.').next().unwrap_or(name);
    if literal || ["localhost", "internal", "local", "localdomain", "arpa"].contains(&last) || last == name {
        return Some("must name a public host (unless allow_private_addresses is set)".into());
    }
    None
}

/// A client for one channel: no redirects, no proxy from the environment, bounded in time, and guarded in addresses.
pub(super) fn client(allow_private: bool) -> Result<reqwest::Client, String> {
    // Fails when a provider is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("platform-api/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .https_only(!allow_private)
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(SEND_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .dns_resolver(Arc::new(Guarded { allow_private }))
        .build()
        .map_err(|error| format!("no HTTP client: {}", error.without_url()))
}

/// Sends, and judges the answer by its status alone.
pub(super) async fn send(request: reqwest::RequestBuilder) -> Result<(), Failure> {
    send_unless(request, |status| status == reqwest::StatusCode::GONE).await
}

/// Sends to a service whose 4xx mean that it will never take this message, except those that ask for patience.
pub(super) async fn send_strictly(request: reqwest::RequestBuilder) -> Result<(), Failure> {
    use reqwest::StatusCode;
    let patience = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
    send_unless(request, |status| status.is_client_error() && !patience.contains(&status)).await
}

async fn send_unless(
    request: reqwest::RequestBuilder,
    is_final: impl Fn(reqwest::StatusCode) -> bool,
) -> Result<(), Failure> {
    let answer = request.send().await.map_err(|error| Failure::passing(reason(&error)))?;
    let status = answer.status();
    let after = retry_after(&answer);
    forget(answer).await;
    if status.is_success() {
        Ok(())
    } else if status.is_redirection() {
        Err(Failure::passing(format!("answered {}; redirects are not followed", status.as_u16())))
    } else if is_final(status) {
        Err(Failure::Final { reason: format!("answered {}: it will never take this", status.as_u16()) })
    } else {
        Err(Failure::Passing { reason: format!("answered {}", status.as_u16()), after })
    }
}

fn retry_after(answer: &reqwest::Response) -> Duration {
    let seconds =
        answer.headers().get(reqwest::header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    seconds.map_or(Duration::ZERO, |seconds: u64| Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// Reads a short answer to its end, so that the connection can be used again; drops the connection of a long one.
pub(super) async fn forget(mut answer: reqwest::Response) {
    let mut read = 0;
    while let Ok(Some(chunk)) = answer.chunk().await {
        read += chunk.len();
        if read > ANSWER_BYTES_MAX {
            return;
        }
    }
}

/// Did the name lead to an address that may not be connected to?
pub(super) fn is_not_public(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if inner.is::<NotPublic>() {
            return true;
        }
        cause = inner.source();
    }
    false
}

fn reason(error: &reqwest::Error) -> String {
    if is_not_public(error) {
        return NotPublic.to_string();
    }
    let words = match () {
        () if error.is_timeout() => "timed out",
        () if error.is_connect() => "could not connect",
        () if error.is_request() => "the connection broke",
        () => "the request failed",
    };
    words.into()
}

/// The addresses of a name that may be connected to.
///
/// # Errors
/// When the name cannot be resolved.
pub(super) async fn addresses(name: &str, port: u16, allow_private: bool) -> std::io::Result<Vec<SocketAddr>> {
    let found = tokio::net::lookup_host((name, port)).await?;
    Ok(found.filter(|address| allow_private || is_public(address.ip())).collect())
}

/// Resolves names, and keeps only addresses that may be connected to.
#[derive(Debug)]
struct Guarded {
    allow_private: bool,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let allowed = addresses(name.as_str(), 0, allow_private).await?;
            if allowed.is_empty() {
                return Err(NotPublic.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// Not in the IANA registry of special-purpose IPv4 addresses, and no multicast.
fn is_public_v4(address: Ipv4Addr) -> bool {
    const SPECIAL: [(Ipv4Addr, u32); 15] = [
        (Ipv4Addr::new(0, 0, 0, 0), 8),
        (Ipv4Addr::new(10, 0, 0, 0), 8),
        (Ipv4Addr::new(100, 64, 0, 0), 10),
        (Ipv4Addr::new(127, 0, 0, 0), 8),
        (Ipv4Addr::new(169, 254, 0, 0), 16),
        (Ipv4Addr::new(172, 16, 0, 0), 12),
        (Ipv4Addr::new(192, 0, 0, 0), 24),
        (Ipv4Addr::new(192, 0, 2, 0), 24),
        (Ipv4Addr::new(192, 88, 99, 0), 24),
        (Ipv4Addr::new(192, 168, 0, 0), 16),
        (Ipv4Addr::new(198, 18, 0, 0), 15),
        (Ipv4Addr::new(198, 51, 100, 0), 24),
        (Ipv4Addr::new(203, 0, 113, 0), 24),
        (Ipv4Addr::new(224, 0, 0, 0), 4),
        (Ipv4Addr::new(240, 0, 0, 0), 4),
    ];
    SPECIAL.iter().all(|(network, bits)| (address.to_bits() ^ network.to_bits()) >> (32 - bits) != 0)
}

/// Global unicast (2000::/3) without the parts that carry or stand for other addresses: mapped, NAT64, unique local,
/// link-local and the rest are outside of it.
fn is_public_v6(address: Ipv6Addr) -> bool {
    const SPECIAL: [(Ipv6Addr, u32); 4] = [
        (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
        (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
        (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
        (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
    ];
    let global = address.to_bits() >> 125 == 0b001;
    global && SPECIAL.iter().all(|(network, bits)| (address.to_bits() ^ network.to_bits()) >> (128 - bits) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_receivers_are_refused_in_every_spelling() {
        for url in [
            "https://127.0.0.1/hook",
            "https://2130706433/hook",
            "https://0x7f000001/hook",
            "https://0177.0.0.1/hook",
            "https://127.1/hook",
            "https://１２７.0.0.1/hook",
            "https://[::1]/hook",
            "https://[::ffff:10.0.0.1]/hook",
            "https://[64:ff9b::a00:1]/hook",
            "https://8.8.8.8/hook",
            "https://localhost/hook",
            "https://LOCALHOST./hook",
            "https://a.localhost/hook",
            "https://metadata.google.internal/hook",
            "https://redis/hook",
            "http://hooks.example.com/hook",
        ] {
            assert!(problem(url, false).is_some(), "{url}");
        }
        for url in ["ftp://hooks.example.com/", "https://user:secret@hooks.example.com/", "https://", "nonsense"] {
            assert!(problem(url, false).is_some(), "{url}");
            assert!(problem(url, true).is_some(), "{url}");
        }
        assert_eq!(problem("https://hooks.example.com:8443/a?b=c", false), None);
        assert_eq!(problem("http://127.0.0.1:9093", true), None);
    }

    #[test]
    fn only_public_addresses_may_be_connected_to() {
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:a00:1::1",
            "fc00::1",
            "fd00::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in ["8.8.8.8", "100.63.255.255", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "2a00::1"] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[tokio::test]
    async fn a_public_name_with_a_private_address_is_refused_at_connect() {
        let answer = Guarded { allow_private: false }.resolve("localhost".parse().unwrap()).await;
        assert!(answer.err().unwrap().is::<NotPublic>());
        let answer = Guarded { allow_private: true }.resolve("localhost".parse().unwrap()).await;
        assert!(answer.unwrap().next().is_some());

        // The whole way through the client, with a name that only the resolver can judge.
        let sent = send(client(false).unwrap().post("https://localhost:1/").body("")).await;
        assert_eq!(sent, Err(Failure::passing("the address is not a public one")));
    }
}
