//! What an issuer offers besides keys: where people log in, where codes become tokens, where tokens are looked up.
//!
//! Read from its discovery document when it is needed first, and again after an hour; while the issuer does not answer, what
//! was read last holds. An address that is neither https nor the issuer's own is none.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::keyring::{FetchError, discovery_url, is_allowed, read};

/// A document older than this is read again.
const REFRESH_AFTER: Duration = Duration::from_secs(3_600);
/// An issuer that did not answer is asked again after this long.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Pairs of a form that somebody sends.
const PAIRS_MAX: usize = 64;

/// Addresses of an issuer's, each checked.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Metadata {
    issuer: String,
    pub(super) authorization_endpoint: Option<String>,
    pub(super) token_endpoint: Option<String>,
    pub(super) userinfo_endpoint: Option<String>,
    pub(super) introspection_endpoint: Option<String>,
    pub(super) end_session_endpoint: Option<String>,
    /// RFC 9207: its answers to logins say who they are from.
    #[serde(default)]
    pub(super) authorization_response_iss_parameter_supported: bool,
}

/// An issuer that can be asked for more than keys.
#[derive(Debug)]
pub(super) struct Provider {
    issuer: String,
    pub(super) client: reqwest::Client,
    known: ArcSwapOption<(Instant, Arc<Metadata>)>,
    /// When it was last asked, or rather not.
    asked: Mutex<Option<Instant>>,
}

/// How this daemon shows an issuer who it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client<'a> {
    pub(super) id: &'a str,
    /// `None` for a public client, which has nothing to show.
    pub(super) secret: Option<&'a SecretString>,
}

impl Provider {
    pub(super) fn new(issuer: &str, client: reqwest::Client) -> Provider {
        let (known, asked) = (ArcSwapOption::empty(), Mutex::default());
        Provider { issuer: issuer.to_owned(), client, known, asked }
    }

    /// What the issuer says of itself. Waits only when nothing is known yet or it is old.
    ///
    /// # Errors
    /// [`FetchError`], when nothing was ever read.
    pub(super) async fn metadata(&self) -> Result<Arc<Metadata>, FetchError> {
        if let Some(known) = self.fresh() {
            return Ok(known);
        }
        let mut asked = self.asked.lock().await;
        if let Some(known) = self.fresh() {
            return Ok(known);
        }
        let old = self.known.load().as_ref().map(|known| known.1.clone());
        if asked.is_some_and(|at| at.elapsed() < RETRY_AFTER) {
            return old.ok_or(FetchError::Lately);
        }
        *asked = Some(Instant::now());
        match self.fetch().await {
            Ok(metadata) => {
                let metadata = Arc::new(metadata);
                self.known.store(Some(Arc::new((Instant::now(), metadata.clone()))));
                *asked = None;
                Ok(metadata)
            }
            Err(error) => {
                tracing::warn!(issuer = self.issuer, %error, "issuer's description could not be read");
                old.ok_or(error)
            }
        }
    }

    fn fresh(&self) -> Option<Arc<Metadata>> {
        let known = self.known.load();
        known.as_ref().filter(|known| known.0.elapsed() < REFRESH_AFTER).map(|known| known.1.clone())
    }

    async fn fetch(&self) -> Result<Metadata, FetchError> {
        let body = read(self.client.get(discovery_url(&self.issuer))).await?;
        let mut metadata: Metadata = serde_json::from_slice(&body).map_err(|_| FetchError::Json)?;
        if metadata.issuer != self.issuer {
            return Err(FetchError::WrongIssuer);
        }
        let Metadata {
            authorization_endpoint,
            token_endpoint,
            userinfo_endpoint,
            introspection_endpoint,
            end_session_endpoint,
            ..
        } = &mut metadata;
        let all =
            [authorization_endpoint, token_endpoint, userinfo_endpoint, introspection_endpoint, end_session_endpoint];
        for address in all {
            if address.as_ref().is_some_and(|address| !is_allowed(address, &self.issuer)) {
                *address = None;
            }
        }
        Ok(metadata)
    }

    /// Posts a form and reads a JSON answer.
    ///
    /// # Errors
    /// [`FetchError`].
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        url: &str,
        form: &[(&str, &str)],
        client: Client<'_>,
    ) -> Result<T, FetchError> {
        let mut form = form.to_vec();
        let mut request = self.client.post(url).header("accept", "application/json");
        match client.secret {
            Some(secret) => request = request.header("authorization", basic(client.id, secret)),
            None => form.push(("client_id", client.id)),
        }
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(encoded(&form));
        serde_json::from_slice(&read(request).await?).map_err(|_| FetchError::Json)
    }

    /// Asks with an access token of the issuer's.
    ///
    /// # Errors
    /// [`FetchError`].
    pub(super) async fn get<T: DeserializeOwned>(&self, url: &str, token: &str) -> Result<T, FetchError> {
        let request = self.client.get(url).header("accept", "application/json").bearer_auth(token);
        serde_json::from_slice(&read(request).await?).map_err(|_| FetchError::Json)
    }
}

/// RFC 6749, 2.3.1: both are encoded as in a form first.
fn basic(id: &str, secret: &SecretString) -> reqwest::header::HeaderValue {
    let plain = format!("{}:{}", encoded_word(id), encoded_word(secret.expose_secret()));
    let text = format!("Basic {}", STANDARD.encode(plain));
    let mut value =
        reqwest::header::HeaderValue::from_str(&text).unwrap_or(reqwest::header::HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

fn encoded_word(word: &str) -> String {
    encoded(&[("", word)]).split_once('=').map(|(_, word)| word.to_owned()).unwrap_or_default()
}

/// `application/x-www-form-urlencoded`.
pub(super) fn encoded(pairs: &[(&str, &str)]) -> String {
    // The address is only the place where the library writes a query.
    let Ok(mut url) = reqwest::Url::parse("http://localhost/") else { return String::new() };
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

/// The pairs of a form, each name at most once; `None` when it cannot be read, says a thing twice, or says more than
/// [`PAIRS_MAX`] things.
#[must_use]
pub fn form(body: &[u8]) -> Option<Vec<(String, String)>> {
    let text = std::str::from_utf8(body).ok()?;
    let mut url = reqwest::Url::parse("http://localhost/").ok()?;
    url.set_query(Some(text));
    // One more than may be, so that more are noticed: anybody may send a form.
    let read = url.query_pairs().take(PAIRS_MAX + 1).map(|(name, value)| (name.into_owned(), value.into_owned()));
    let pairs: Vec<(String, String)> = read.collect();
    let names: HashSet<&str> = pairs.iter().map(|(name, _)| name.as_str()).collect();
    let is_sound = pairs.len() <= PAIRS_MAX && names.len() == pairs.len();
    is_sound.then_some(pairs)
}

#[cfg(test)]
mod tests {
    use super::super::issuer_peer::{IssuerPeer, Signer};
    use super::super::keyring;
    use super::*;

    #[tokio::test]
    async fn an_address_that_is_not_the_issuer_s_own_is_none() {
        let signer = Signer::ed25519("d");
        let peer = IssuerPeer::start(&[&signer]).await;
        peer.behave(|issuer| {
            issuer.offers = serde_json::json!({
                "token_endpoint": format!("{}/token", issuer.own),
                "authorization_endpoint": "http://elsewhere.example/auth",
                "end_session_endpoint": "https://elsewhere.example/end",
                "userinfo_endpoint": "javascript:alert(1)",
            });
        });
        let provider = Provider::new(&peer.url, keyring::client().unwrap());
        let metadata = provider.metadata().await.unwrap();
        assert_eq!(metadata.token_endpoint, Some(format!("{}/token", peer.url)));
        assert_eq!((&metadata.authorization_endpoint, &metadata.userinfo_endpoint), (&None, &None));
        assert!(metadata.end_session_endpoint.is_some());
    }

    #[tokio::test]
    async fn what_was_read_holds_while_the_issuer_is_away_and_it_is_not_pestered() {
        let signer = Signer::ed25519("d");
        let peer = IssuerPeer::start(&[&signer]).await;
        peer.behave(|issuer| issuer.status = 503);
        let provider = Provider::new(&peer.url, keyring::client().unwrap());
        assert!(provider.metadata().await.is_err());
        peer.behave(|issuer| issuer.status = 200);
        assert!(matches!(provider.metadata().await, Err(FetchError::Lately)));
        assert_eq!(peer.asked("/.well-known/openid-configuration"), 1);
        tokio::time::pause();
        tokio::time::advance(RETRY_AFTER).await;
        tokio::time::resume();
        provider.metadata().await.unwrap();
        peer.behave(|issuer| issuer.status = 503);
        tokio::time::pause();
        tokio::time::advance(REFRESH_AFTER).await;
        tokio::time::resume();
        assert!(provider.metadata().await.is_ok(), "what was read last holds");
        assert_eq!(peer.asked("/.well-known/openid-configuration"), 3);
    }

    #[test]
    fn a_form_says_everything_once() {
        assert_eq!(encoded(&[("a", "b c&d"), ("e", "é")]), "a=b+c%26d&e=%C3%A9");
        assert_eq!(encoded_word("p:w d"), "p%3Aw+d");
        assert_eq!(form(b"a=b+c%26d").unwrap(), [("a".to_owned(), "b c&d".to_owned())]);
        assert_eq!(form(b"a=1&a=2"), None);
        let of = |count: usize| (0..count).map(|at| format!("n{at}=v")).collect::<Vec<_>>().join("&");
        assert_eq!(form(of(PAIRS_MAX).as_bytes()).map(|pairs| pairs.len()), Some(PAIRS_MAX));
        assert_eq!(form(of(PAIRS_MAX + 1).as_bytes()), None);
        assert_eq!(form(b"\xff"), None);
    }
}
