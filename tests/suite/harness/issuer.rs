//! An identity provider: its keys, served, and tokens that they have signed.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use platform_api::clock::Clock;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const AUDIENCE: &str = "urn:suite";
/// How long a token is good: longer than any test.
const SECONDS: i64 = 3_600;

pub struct Issuer {
    pub url: String,
    pair: Ed25519KeyPair,
}

impl Issuer {
    /// Serves its keys for as long as the test runs.
    pub async fn start() -> Issuer {
        let pair = Ed25519KeyPair::generate().expect("a key");
        let public = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let keys = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "suite", "x": public}]}).to_string();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{keys}",
                    keys.len()
                );
                tokio::spawn(async move {
                    let mut request = [0; 4_096];
                    let _ = stream.read(&mut request).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        Issuer { url, pair }
    }

    /// What the daemon's configuration says about it.
    pub fn section(&self) -> String {
        let url = &self.url;
        format!("[[auth.issuers]]\nissuer = \"{url}\"\naudience = \"{AUDIENCE}\"\njwks_url = \"{url}/jwks\"\n")
    }

    /// A token of `subject`, with more claims.
    pub fn token(&self, subject: &str, more: Value) -> String {
        let now = Clock::system().now().0 / 1_000_000;
        let header = json!({"alg": "EdDSA", "typ": "at+jwt", "kid": "suite"});
        let mut claims = json!({"iss": self.url, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + SECONDS});
        for (name, value) in more.as_object().expect("claims") {
            claims[name] = value.clone();
        }
        let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", text(&header), text(&claims));
        let signature = self.pair.sign(message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}
