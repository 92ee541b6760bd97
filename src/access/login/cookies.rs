//! Cookies, and what proves that a request with one was sent by a page of ours.
//!
//! A session's cookie comes along with whatever a browser sends here, wanted or not. So a request that changes something must
//! also carry what only our pages can read: a token that is bound to the session, in `X-CSRF-Token`; and a browser must not
//! say that another origin's page has sent it.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::config;
use crate::domain::ids::SessionId;

/// Bytes of a CSRF token.
const TOKEN_BYTES: usize = 32;

/// Which cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cookie {
    /// The session's secret.
    Session,
    /// The CSRF token, for scripts to read.
    Csrf,
    /// A login that is under way.
    Login,
}

pub(super) struct Cookies {
    is_secure: bool,
    origins: Vec<String>,
    key: hmac::Key,
}

/// What a browser says of where a request comes from, besides its cookies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Provenance<'a> {
    /// `Origin`.
    pub origin: Option<&'a str>,
    /// `Sec-Fetch-Site`.
    pub fetch_site: Option<&'a str>,
    /// `X-CSRF-Token`.
    pub token: Option<&'a str>,
}

impl Cookies {
    /// For browsers that reach this API at `base` and its frontends at the configured origins.
    pub(super) fn new(base: &str, login: &config::Login, key: &[u8; 32]) -> Cookies {
        let mut origins = login.origins.clone();
        origins.push(base.to_owned());
        if login.public_url.is_none() {
            // One machine by either of its names.
            let named =
                [("//127.0.0.1:", "//localhost:"), ("//0.0.0.0:", "//localhost:"), ("//[::1]:", "//localhost:")];
            origins
                .extend(named.iter().filter(|(from, _)| base.contains(from)).map(|(from, to)| base.replace(from, to)));
        }
        Cookies { is_secure: base.starts_with("https://"), origins, key: hmac::Key::new(hmac::HMAC_SHA256, key) }
    }

    /// May a login return to a page of this origin, and may its pages use a session?
    pub(super) fn is_ours(&self, origin: &str) -> bool {
        self.origins.iter().any(|ours| ours == origin)
    }

    pub(super) fn name(&self, cookie: Cookie) -> &'static str {
        match (self.is_secure, cookie) {
            (true, Cookie::Session) => "__Host-platform-session",
            (true, Cookie::Csrf) => "__Host-platform-csrf",
            (true, Cookie::Login) => "__Host-platform-login",
            (false, Cookie::Session) => "platform-session",
            (false, Cookie::Csrf) => "platform-csrf",
            (false, Cookie::Login) => "platform-login",
        }
    }

    /// A `Set-Cookie` line; `value` is of characters that may stand there.
    pub(super) fn set(&self, cookie: Cookie, value: &str, seconds: i64) -> String {
        let name = self.name(cookie);
        let hidden = if cookie == Cookie::Csrf { "" } else { "; HttpOnly" };
        let secure = if self.is_secure { "; Secure" } else { "" };
        format!("{name}={value}; Path=/; Max-Age={seconds}; SameSite=Lax{hidden}{secure}")
    }

    /// Takes a cookie away.
    pub(super) fn clear(&self, cookie: Cookie) -> String {
        self.set(cookie, "", 0)
    }

    /// The cookie's value in the `Cookie` lines of a request; nothing when it is there twice, because then somebody else has
    /// set one of them.
    pub(super) fn find<'a>(&self, cookie: Cookie, lines: impl Iterator<Item = &'a str>) -> Option<&'a str> {
        let name = self.name(cookie);
        let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let mut found = pairs.filter(|(given, _)| *given == name).map(|(_, value)| value);
        match (found.next(), found.next()) {
            (Some(value), None) if !value.is_empty() => Some(value),
            _ => None,
        }
    }

    /// The token that proves that its sender can read the session's pages.
    pub(super) fn token(&self, session: SessionId) -> String {
        URL_SAFE_NO_PAD.encode(hmac::sign(&self.key, session.0.as_bytes()))
    }

    /// Was this sent by a page of ours, in this session?
    pub(super) fn is_proven(&self, session: SessionId, said: &Provenance<'_>) -> bool {
        let token = said.token.and_then(|token| URL_SAFE_NO_PAD.decode(token).ok());
        let is_bound = token.is_some_and(|token| {
            token.len() == TOKEN_BYTES && hmac::verify(&self.key, session.0.as_bytes(), &token).is_ok()
        });
        is_bound && self.is_from_us(said)
    }

    /// Does a browser say that a page of another origin has sent it? Who is no browser says nothing.
    pub(super) fn is_from_us(&self, said: &Provenance<'_>) -> bool {
        match (said.origin, said.fetch_site) {
            (Some(origin), _) => self.is_ours(origin),
            (None, Some(site)) => matches!(site, "same-origin" | "none"),
            (None, None) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn cookies(base: &str, public: bool) -> Cookies {
        let login = config::Login {
            public_url: public.then(|| base.to_owned()),
            origins: vec!["https://console.example.com".into()],
            ..config::Login::default()
        };
        Cookies::new(base, &login, &[7; 32])
    }

    #[test]
    fn a_cookie_over_tls_is_bound_to_its_host() {
        let safe = cookies("https://platform.example.com", true);
        assert_eq!(
            safe.set(Cookie::Session, "x", 60),
            "__Host-platform-session=x; Path=/; Max-Age=60; SameSite=Lax; HttpOnly; Secure"
        );
        assert_eq!(
            safe.set(Cookie::Csrf, "x", 60),
            "__Host-platform-csrf=x; Path=/; Max-Age=60; SameSite=Lax; Secure",
            "scripts read it"
        );
        let plain = cookies("http://127.0.0.1:8082", true);
        assert_eq!(plain.clear(Cookie::Login), "platform-login=; Path=/; Max-Age=0; SameSite=Lax; HttpOnly");
    }

    #[test]
    fn a_cookie_that_is_there_twice_is_nobody_s() {
        let cookies = cookies("https://platform.example.com", true);
        let find = |lines: &[&'static str]| cookies.find(Cookie::Session, lines.iter().copied());
        assert_eq!(find(&["a=b; __Host-platform-session=x;c=d"]), Some("x"));
        assert_eq!(find(&["__Host-platform-session=x; __Host-platform-session=y"]), None);
        assert_eq!(find(&["__Host-platform-session=x", "__Host-platform-session=x"]), None);
        assert_eq!(find(&["platform-session=x", "__Host-platform-session="]), None);
    }

    #[test]
    fn only_a_page_of_ours_that_knows_the_session_s_token_is_believed() {
        let cookies = cookies("https://platform.example.com", true);
        let (session, other) = (SessionId(Uuid::from_u128(1)), SessionId(Uuid::from_u128(2)));
        let (token, foreign) = (cookies.token(session), cookies.token(other));
        let said = |origin, fetch_site, token| Provenance { origin, fetch_site, token };
        let (ours, theirs) = (Some("https://platform.example.com"), Some("https://evil.example.com"));
        let token = Some(token.as_str());
        for (said, proven) in [
            (said(ours, None, token), true),
            (said(Some("https://console.example.com"), Some("same-site"), token), true),
            (said(None, None, token), true),
            (said(None, Some("same-origin"), token), true),
            (said(theirs, None, token), false),
            (said(Some("null"), None, token), false),
            (said(Some("https://platform.example.com.evil.example"), None, token), false),
            (said(Some("http://platform.example.com"), None, token), false),
            (said(None, Some("cross-site"), token), false),
            (said(None, Some("same-site"), token), false),
            (said(ours, None, None), false),
            (said(ours, None, Some(foreign.as_str())), false),
            (said(ours, None, Some("")), false),
            (said(ours, None, Some("AAAA")), false),
        ] {
            assert_eq!(cookies.is_proven(session, &said), proven, "{said:?}");
        }
    }

    #[test]
    fn without_a_public_address_this_machine_has_two_names() {
        let cookies = cookies("http://127.0.0.1:8082", false);
        assert!(cookies.is_ours("http://localhost:8082") && cookies.is_ours("http://127.0.0.1:8082"));
        assert!(!cookies.is_ours("http://localhost:8083") && !cookies.is_ours("https://localhost:8082"));
    }
}
