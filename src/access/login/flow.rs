//! A login that is under way: begun here, gone on at the issuer, and finished here by the same browser.
//!
//! All of it is in a sealed cookie of that browser, so a login that is begun costs nothing to remember: the issuer, the state
//! that its answer must bring back, the nonce that its ID token must have, the verifier of its code (PKCE, S256), and where to
//! go on. The state is used once.

use aws_lc_rs::{constant_time, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::cookies::Cookies;
use super::secret::Seal;
use crate::clock;
use crate::domain::time::Timestamp;

const PURPOSE: &str = "login";
/// Longest address to return to.
const RETURN_BYTES_MAX: usize = 1_024;
/// Longest cookie that is looked at.
const COOKIE_BYTES_MAX: usize = 4_096;

/// Not printable.
#[derive(Serialize, Deserialize)]
pub(super) struct Flow {
    pub(super) issuer: String,
    pub(super) state: String,
    pub(super) nonce: String,
    pub(super) verifier: String,
    pub(super) return_to: String,
    /// Microseconds since 1970.
    pub(super) until: i64,
}

impl Flow {
    pub(super) fn new(issuer: &str, return_to: String, until: Timestamp) -> Flow {
        let random = || URL_SAFE_NO_PAD.encode(clock::random_bytes::<32>());
        Flow {
            issuer: issuer.to_owned(),
            state: random(),
            nonce: random(),
            verifier: random(),
            return_to,
            until: until.0,
        }
    }

    /// RFC 7636, 4.2: S256.
    pub(super) fn challenge(&self) -> String {
        URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, self.verifier.as_bytes()))
    }

    pub(super) fn close(&self, seal: &Seal) -> String {
        // Texts and a number always serialize.
        let plain = Zeroizing::new(serde_json::to_vec(self).unwrap_or_default());
        seal.close(PURPOSE, &plain)
    }

    /// The login that this cookie is of, if it is not too late.
    pub(super) fn open(seal: &Seal, cookie: &str, now: Timestamp) -> Option<Flow> {
        if cookie.len() > COOKIE_BYTES_MAX {
            return None;
        }
        let flow: Flow = serde_json::from_slice(&seal.open(PURPOSE, cookie)?).ok()?;
        (now.0 < flow.until).then_some(flow)
    }

    pub(super) fn is_answered_by(&self, state: &str) -> bool {
        constant_time::verify_slices_are_equal(self.state.as_bytes(), state.as_bytes()).is_ok()
    }
}

/// Where a login may go on: a path of ours, or an address of an allowed origin. Whatever two parsers could read in two ways
/// is none.
pub(super) fn return_to(asked: &str, cookies: &Cookies) -> Option<String> {
    let plain = asked.len() <= RETURN_BYTES_MAX && asked.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if !plain {
        return None;
    }
    if let Some(rest) = asked.strip_prefix('/') {
        return (!rest.starts_with('/')).then(|| asked.to_owned());
    }
    let url = reqwest::Url::parse(asked).ok()?;
    let bare = url.username().is_empty() && url.password().is_none();
    (bare && cookies.is_ours(&url.origin().ascii_serialization())).then(|| url.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn flow(until: i64) -> Flow {
        Flow::new("https://id.example.com", "/console".into(), Timestamp(until))
    }

    #[test]
    fn a_login_is_finished_by_the_browser_that_began_it_and_in_time() {
        let seal = Seal::new(&[1; 32]);
        let begun = flow(1_000);
        let cookie = begun.close(&seal);
        let opened = Flow::open(&seal, &cookie, Timestamp(999)).unwrap();
        assert!(opened.is_answered_by(&begun.state));
        assert!(!opened.is_answered_by(&flow(1_000).state) && !opened.is_answered_by(""));
        assert_eq!(opened.verifier, begun.verifier);
        assert!(Flow::open(&seal, &cookie, Timestamp(1_000)).is_none());
        assert!(Flow::open(&Seal::new(&[2; 32]), &cookie, Timestamp(0)).is_none());
        assert!(!cookie.contains(&begun.state));
    }

    #[test]
    fn the_challenge_is_the_one_of_rfc_7636() {
        let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".to_owned();
        let flow = Flow { verifier, ..flow(0) };
        assert_eq!(flow.challenge(), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
        assert_eq!(self::flow(0).verifier.len(), 43);
    }

    #[test]
    fn a_login_returns_only_where_it_may() {
        let login = config::Login { origins: vec!["https://console.example.com".into()], ..config::Login::default() };
        let cookies = Cookies::new("https://platform.example.com", &login, &[1; 32]);
        for good in [
            "/",
            "/console?tab=1#x",
            "https://console.example.com/a?b=c",
            "https://platform.example.com/x",
            "https://console.example.com:443/",
        ] {
            assert!(return_to(good, &cookies).is_some(), "{good}");
        }
        for bad in [
            "",
            "//evil.example.com",
            "/\\evil.example.com",
            "\\/evil.example.com",
            "https://evil.example.com/",
            "https://console.example.com.evil.example/",
            "https://console.example.com@evil.example/",
            "https://user@console.example.com/",
            "http://console.example.com/",
            "https://console.example.com:8443/",
            "javascript:alert(1)",
            "data:text/html,x",
            "console",
            "/a\r\nset-cookie: x=y",
            "/\u{e9}",
            "/\t/evil.example.com",
        ] {
            assert_eq!(return_to(bad, &cookies), None, "{bad:?}");
        }
        assert!(return_to(&format!("/{}", "x".repeat(RETURN_BYTES_MAX)), &cookies).is_none());
    }
}
