//! A token issuer on this machine: its keys, and tokens that they have signed.

use anyhow::Context;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use platform_api::clock::Clock;
use serde_json::{Value, json};

use crate::served;

const AUDIENCE: &str = "urn:loadtest";
/// How long a token is good: longer than any run.
const SECONDS: i64 = 6 * 3600;

pub(crate) struct Issuer {
    url: String,
    pair: RsaKeyPair,
}

impl Issuer {
    /// Serves its keys for as long as the runtime lives.
    pub(crate) async fn start() -> anyhow::Result<Issuer> {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).context("making a signing key")?;
        // RFC 8017's RSAPublicKey of 2048 bits: a header and a zero, the modulus, and 65537.
        let modulus = pair.public_key().as_ref().get(9..265).context("a public key of 2048 bits")?.to_vec();
        let keys = json!({"keys": [{"kty": "RSA", "kid": "load", "use": "sig", "alg": "RS256",
            "n": URL_SAFE_NO_PAD.encode(modulus), "e": "AQAB"}]});
        let address = served::each(move |_| keys.to_string()).await?;
        Ok(Issuer { url: format!("http://{address}"), pair })
    }

    /// What the daemon's configuration says about it.
    pub(crate) fn settings(&self) -> String {
        let url = &self.url;
        format!("[[auth.issuers]]\nissuer = \"{url}\"\naudience = \"{AUDIENCE}\"\njwks_url = \"{url}/jwks\"\n")
    }

    /// A token of a program that reports usage of `tenant`.
    pub(crate) fn token(&self, tenant: &str) -> anyhow::Result<String> {
        let now = Clock::system().now().0 / 1_000_000;
        let header = json!({"alg": "RS256", "typ": "at+jwt", "kid": "load"});
        let claims = json!({"iss": self.url, "aud": AUDIENCE, "sub": "gateway", "iat": now, "exp": now + SECONDS,
            "tenant": tenant, "roles": ["reporter"]});
        let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", text(&header), text(&claims));
        let mut signature = vec![0; self.pair.public_modulus_len()];
        let random = SystemRandom::new();
        self.pair.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).context("signing a token")?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}
