//! AWS Signature Version 4 for a request without a body and without a query: all that a test of Bedrock sends.

use aws_lc_rs::{digest, hmac};
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use crate::domain::aws_credentials::AwsCredentials;
use crate::domain::time::Timestamp;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const DATE: &str = "x-amz-date";
const TOKEN: &str = "x-amz-security-token";

/// Which key a signature is made with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope<'a> {
    pub(super) region: &'a str,
    pub(super) service: &'a str,
}

/// The headers that sign `GET url` at `now`; `None` when the URL has no host, or something is no header.
pub(super) fn sign_get(url: &Url, scope: Scope<'_>, credentials: &AwsCredentials, now: Timestamp) -> Option<HeaderMap> {
    let at = stamp(now);
    let day = at.get(..8)?;
    let token = credentials.session_token.as_ref().map(|token| token.expose_secret());
    let host = match url.port() {
        Some(port) => format!("{}:{port}", url.host_str()?),
        None => url.host_str()?.to_owned(),
    };
    // In the order of their names.
    let mut canonical = Zeroizing::new(format!("GET\n{}\n\nhost:{host}\n{DATE}:{at}\n", url.path()));
    let mut signed = format!("host;{DATE}");
    if let Some(token) = token {
        canonical.push_str(&format!("{TOKEN}:{token}\n"));
        signed.push_str(&format!(";{TOKEN}"));
    }
    canonical.push_str(&format!("\n{signed}\n{}", hex(digest::digest(&digest::SHA256, b"").as_ref())));
    let reach = format!("{day}/{}/{}/aws4_request", scope.region, scope.service);
    let hashed = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
    let key = signing_key(credentials, day, scope);
    let signature = hex(authenticate(&key, &format!("{ALGORITHM}\n{at}\n{reach}\n{hashed}")).as_ref());
    let id = &credentials.access_key_id;
    let authorization = format!("{ALGORITHM} Credential={id}/{reach}, SignedHeaders={signed}, Signature={signature}");
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, sensitive(&authorization)?);
    headers.insert(HeaderName::from_static(DATE), HeaderValue::from_str(&at).ok()?);
    if let Some(token) = token {
        headers.insert(HeaderName::from_static(TOKEN), sensitive(token)?);
    }
    Some(headers)
}

/// Good for one day, one region and one service.
fn signing_key(credentials: &AwsCredentials, day: &str, scope: Scope<'_>) -> Zeroizing<Vec<u8>> {
    let secret = Zeroizing::new(format!("AWS4{}", credentials.secret_access_key.expose_secret()));
    let mut key = Zeroizing::new(secret.as_bytes().to_vec());
    for part in [day, scope.region, scope.service, "aws4_request"] {
        key = Zeroizing::new(authenticate(&key, part).as_ref().to_vec());
    }
    key
}

fn authenticate(key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
}

/// `20150830T123600Z`.
fn stamp(now: Timestamp) -> String {
    let text = now.to_string();
    let seconds = text.split('.').next().unwrap_or_default();
    format!("{}Z", seconds.replace(['-', ':'], ""))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use secrecy::SecretString;

    use super::*;

    /// Of the test suite that AWS publishes: `get-vanilla`, `get-vanilla-with-session-token` and `get-unreserved`.
    #[test]
    fn a_signature_is_the_published_one() {
        let token = "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267";
        let unreserved = "/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let now = "2015-08-30T12:36:00Z".parse().unwrap();
        for (path, token, signed, signature) in [
            ("/", None, "host;x-amz-date", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
            (
                "/",
                Some(token),
                "host;x-amz-date;x-amz-security-token",
                "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8",
            ),
            (unreserved, None, "host;x-amz-date", "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f"),
        ] {
            let credentials = AwsCredentials {
                access_key_id: "AKIDEXAMPLE".into(),
                secret_access_key: SecretString::from("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
                session_token: token.map(SecretString::from),
            };
            let url = Url::parse(&format!("https://example.amazonaws.com{path}")).unwrap();
            let scope = Scope { region: "us-east-1", service: "service" };
            let headers = sign_get(&url, scope, &credentials, now).unwrap();
            let reach = "20150830/us-east-1/service/aws4_request";
            let told = format!(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/{reach}, SignedHeaders={signed}, Signature={signature}"
            );
            assert_eq!(headers["authorization"], told);
            assert_eq!(headers["x-amz-date"], "20150830T123600Z");
            assert_eq!(headers.get("x-amz-security-token").map(|value| value.to_str().unwrap()), token);
            assert!(headers["authorization"].is_sensitive(), "{headers:?}");
        }
    }
}
