//! Where a request came from: whoever is connected, or whom a proxy of ours speaks for.
//!
//! Only a peer that is configured is believed, and only the one header that it is configured to write. Proxies add at the
//! right, so that is where reading begins: the first address that is none of ours is the client's, and what stands to the
//! left of it is its own story. A word that is no address ends the reading, and the peer it is.

use std::net::{IpAddr, SocketAddr};

use poem::Request;
use poem::http::HeaderMap;

use crate::config::{self, ProxyHeader};
use crate::domain::policy::network::Network;

/// Proxies whose word is taken.
pub(super) struct Proxies {
    networks: Vec<Network>,
    header: ProxyHeader,
}

impl Proxies {
    pub(super) fn new(limits: &config::Http) -> Proxies {
        Proxies { networks: limits.proxies(), header: limits.proxy_header }
    }

    /// Where a request came from.
    pub(super) fn client(&self, request: &Request) -> Option<IpAddr> {
        let peer = request.remote_addr().as_socket_addr().map(SocketAddr::ip)?;
        Some(self.behind(peer, request.headers()))
    }

    fn behind(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.are_ours(peer) {
            return peer;
        }
        let (name, read): (&str, fn(&str) -> Option<IpAddr>) = match self.header {
            ProxyHeader::XForwardedFor => ("x-forwarded-for", address),
            ProxyHeader::Forwarded => ("forwarded", forwarded_for),
        };
        let mut client = peer;
        let lines: Vec<_> = headers.get_all(name).iter().collect();
        for line in lines.iter().rev() {
            // Each element is read by itself: what somebody has left open at the left does not swallow what follows.
            for element in line.as_bytes().rsplit(|byte| *byte == b',') {
                let Some(found) = std::str::from_utf8(element).ok().and_then(|text| read(text.trim())) else {
                    return peer;
                };
                client = found;
                if !self.are_ours(client) {
                    return client;
                }
            }
        }
        client
    }

    fn are_ours(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.holds(address))
    }
}

/// An address, with or without a port; an IPv6 address in brackets or bare.
fn address(text: &str) -> Option<IpAddr> {
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    let with_port = || text.parse().ok().map(|address: SocketAddr| address.ip());
    text.parse().ok().or_else(bare).or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

/// The `for` of one element of RFC 7239; none of a node that is not told.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut node = None;
    for pair in element.split(';').map(str::trim).filter(|pair| !pair.is_empty()) {
        // What is no pair is the middle of a value that a client has written, such as its Host: nothing in it is believed.
        let (name, value) = pair.split_once('=').filter(|(name, _)| is_token(name))?;
        let value = unquoted(value)?;
        if name.eq_ignore_ascii_case("for") && node.replace(value).is_some() {
            return None;
        }
    }
    address(node?)
}

/// A token as it is, or what is between quotes if nothing in there is quoted again.
fn unquoted(value: &str) -> Option<&str> {
    match value.strip_prefix('"').and_then(|value| value.strip_suffix('"')) {
        Some(quoted) => (!quoted.contains(['"', '\\'])).then_some(quoted),
        None => is_token(value).then_some(value),
    }
}

/// RFC 9110, section 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: &str = "10.0.0.7";

    fn behind(header: ProxyHeader, peer: &str, lines: &[(&'static str, &str)]) -> String {
        let networks = ["10.0.0.0/8", "2001:db8::/32"].map(|text| text.parse().unwrap()).to_vec();
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        Proxies { networks, header }.behind(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn a_stranger_is_not_believed() {
        for header in [ProxyHeader::XForwardedFor, ProxyHeader::Forwarded] {
            let lines = [("x-forwarded-for", "203.0.113.1"), ("forwarded", "for=203.0.113.1")];
            assert_eq!(behind(header, "192.0.2.1", &lines), "192.0.2.1");
            assert_eq!(behind(header, PROXY, &lines), "203.0.113.1");
        }
        let nobody = Proxies::new(&config::Http::default());
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", "203.0.113.1".parse().unwrap());
        assert_eq!(nobody.behind("127.0.0.1".parse().unwrap(), &headers).to_string(), "127.0.0.1");
    }

    #[test]
    fn the_right_most_address_that_is_not_ours_is_the_client_s() {
        for (lines, client) in [
            (&[][..], PROXY),
            (&["203.0.113.1"], "203.0.113.1"),
            (&["198.51.100.9, 203.0.113.1"], "203.0.113.1"),
            (&["203.0.113.1, 10.1.1.1,10.2.2.2"], "203.0.113.1"),
            (&["198.51.100.9", "203.0.113.1", "10.1.1.1"], "203.0.113.1"),
            (&["10.3.3.3, 10.1.1.1"], "10.3.3.3"),
            (&["garbage, 203.0.113.1"], "203.0.113.1"),
            (&["203.0.113.1:4711"], "203.0.113.1"),
            (&["[2001:db9::1]:4711, 2001:db8::5"], "2001:db9::1"),
            (&["[2001:db9::1]"], "2001:db9::1"),
            (&["::ffff:203.0.113.1"], "203.0.113.1"),
        ] {
            let lines: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
            assert_eq!(behind(ProxyHeader::XForwardedFor, PROXY, &lines), client, "{lines:?}");
        }
    }

    #[test]
    fn the_standard_s_header_is_read_as_it_is_written() {
        for (line, client) in [
            ("for=203.0.113.1", "203.0.113.1"),
            ("For=203.0.113.1;proto=https;by=10.0.0.7", "203.0.113.1"),
            ("for=198.51.100.9, for=203.0.113.1; host=x", "203.0.113.1"),
            ("for=\"203.0.113.1:4711\"", "203.0.113.1"),
            ("for=\"[2001:db9::1]:4711\"", "2001:db9::1"),
            ("for=\"[2001:db9::1]\"", "2001:db9::1"),
            ("for=\"open, for=203.0.113.1", "203.0.113.1"),
            ("for=203.0.113.1, for=10.1.1.1", "203.0.113.1"),
            ("for=203.0.113.1;host=\"a:1\";", "203.0.113.1"),
        ] {
            assert_eq!(behind(ProxyHeader::Forwarded, PROXY, &[("forwarded", line)]), client, "{line}");
        }
    }

    #[test]
    fn what_is_malformed_is_the_peer_s() {
        for line in ["", "unknown", "203.0.113.1, ", "203.0.113.256", "203.0.113.1 198.51.100.9", "[203.0.113.1]"] {
            assert_eq!(behind(ProxyHeader::XForwardedFor, PROXY, &[("x-forwarded-for", line)]), PROXY, "{line}");
        }
        for line in [
            "",
            "203.0.113.1",
            "for=unknown",
            "for=_hidden",
            "by=203.0.113.1",
            "for=203.0.113.1:4711",
            "for=\"203.0.113.1",
            "for=203.0.113.1;for=198.51.100.9",
            "for=198.51.100.9, by=203.0.113.1",
            // What a client can bring into a value that its proxy quotes.
            "for=198.51.100.9;host=\"a,for=203.0.113.1;x\";proto=https",
            "for=198.51.100.9;host=\"a,for=203.0.113.1;x=b\"",
            "for=198.51.100.9;host=\"a,for=203.0.113.1\"",
            "for=198.51.100.9;host=\"a\\\",for=203.0.113.1;x=\\\"b\";proto=https",
            "host=\"a,for=203.0.113.1;x=y\";for=198.51.100.9",
        ] {
            assert_eq!(behind(ProxyHeader::Forwarded, PROXY, &[("forwarded", line)]), PROXY, "{line}");
        }
        // Nor is the other header looked at.
        assert_eq!(behind(ProxyHeader::Forwarded, PROXY, &[("x-forwarded-for", "203.0.113.1")]), PROXY);
        assert_eq!(behind(ProxyHeader::XForwardedFor, PROXY, &[("forwarded", "for=203.0.113.1")]), PROXY);
    }
}
