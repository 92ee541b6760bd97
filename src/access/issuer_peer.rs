//! For tests: keys that sign tokens, and a local issuer that can be made to misbehave as no real one will on request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use aws_lc_rs::{hmac, rsa};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::config;

pub(super) const AUDIENCE: &str = "urn:platform-api";

/// A signing key with its id.
pub(super) struct Signer {
    pub(super) id: String,
    kind: Kind,
}

enum Kind {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl Signer {
    pub(super) fn rsa(id: &str) -> Signer {
        Signer { id: id.into(), kind: Kind::Rsa(RsaKeyPair::generate(rsa::KeySize::Rsa2048).unwrap()) }
    }

    pub(super) fn p256(id: &str) -> Signer {
        let pair = EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Signer { id: id.into(), kind: Kind::P256(pair) }
    }

    pub(super) fn ed25519(id: &str) -> Signer {
        Signer { id: id.into(), kind: Kind::Ed25519(Ed25519KeyPair::generate().unwrap()) }
    }

    pub(super) fn algorithm(&self) -> &'static str {
        match self.kind {
            Kind::Rsa(_) => "RS256",
            Kind::P256(_) => "ES256",
            Kind::Ed25519(_) => "EdDSA",
        }
    }

    /// The public key as its issuer's verifiers hold it: what an attacker would use as an HMAC secret.
    pub(super) fn public_bytes(&self) -> Vec<u8> {
        match &self.kind {
            Kind::Rsa(pair) => pair.public_key().as_ref().to_vec(),
            Kind::P256(pair) => pair.public_key().as_ref().to_vec(),
            Kind::Ed25519(pair) => pair.public_key().as_ref().to_vec(),
        }
    }

    pub(super) fn jwk(&self) -> Value {
        let public = self.public_bytes();
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match self.kind {
            // RFC 8017's RSAPublicKey of 2048 bits: header, a zero, the modulus, and 65537.
            Kind::Rsa(_) => json!({"kty": "RSA", "kid": self.id, "use": "sig", "alg": "RS256",
                "n": text(&public[9..265]), "e": "AQAB"}),
            Kind::P256(_) => json!({"kty": "EC", "crv": "P-256", "kid": self.id, "alg": "ES256",
                "x": text(&public[1..33]), "y": text(&public[33..])}),
            Kind::Ed25519(_) => json!({"kty": "OKP", "crv": "Ed25519", "kid": self.id, "x": text(&public)}),
        }
    }

    pub(super) fn header(&self) -> Value {
        json!({"alg": self.algorithm(), "typ": "at+jwt", "kid": self.id})
    }

    pub(super) fn sign(&self, header: &Value, claims: &Value) -> String {
        let message = message(header, claims);
        let random = SystemRandom::new();
        let signature = match &self.kind {
            Kind::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).unwrap();
                signature
            }
            Kind::P256(pair) => pair.sign(&random, message.as_bytes()).unwrap().as_ref().to_vec(),
            Kind::Ed25519(pair) => pair.sign(message.as_bytes()).as_ref().to_vec(),
        };
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// A token whose signature is an HMAC under `secret`.
pub(super) fn hmac_token(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let message = message(header, claims);
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// `header.claims`, unsigned.
pub(super) fn message(header: &Value, claims: &Value) -> String {
    let text = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", text(header), text(claims))
}

/// How the issuer answers.
#[derive(Clone)]
pub(super) struct Behaviour {
    pub(super) status: u16,
    pub(super) keys: Value,
    /// The `issuer` of its discovery document, when it is not its own.
    pub(super) claims_to_be: Option<String>,
    /// Its discovery document says the keys are at another origin, which has them.
    pub(super) keys_elsewhere: bool,
    pub(super) delay: Duration,
    /// Its own address.
    pub(super) own: String,
    /// More of its discovery document.
    pub(super) offers: Value,
    /// Status and body by path, for what it is posted and asked.
    pub(super) answers: BTreeMap<String, (u16, Value)>,
}

/// An issuer on this machine. Stops with its runtime.
pub(super) struct IssuerPeer {
    pub(super) url: String,
    behaviour: Arc<Mutex<Behaviour>>,
    asked: Arc<Mutex<Vec<String>>>,
    posted: Arc<Mutex<Vec<String>>>,
}

impl IssuerPeer {
    pub(super) async fn start(signers: &[&Signer]) -> IssuerPeer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let keys = jwks(signers);
        let behaviour = Behaviour {
            status: 200,
            keys,
            claims_to_be: None,
            keys_elsewhere: false,
            delay: Duration::ZERO,
            own: url.clone(),
            offers: json!({}),
            answers: BTreeMap::new(),
        };
        let behaviour = Arc::new(Mutex::new(behaviour));
        let peer = IssuerPeer { url, behaviour, asked: Arc::default(), posted: Arc::default() };
        let (own, behaviour, asked) = (peer.url.clone(), Arc::clone(&peer.behaviour), Arc::clone(&peer.asked));
        let posted = Arc::clone(&peer.posted);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (own, behaviour, asked) = (own.clone(), Arc::clone(&behaviour), Arc::clone(&asked));
                let posted = Arc::clone(&posted);
                tokio::spawn(async move {
                    let request = received(&mut stream).await;
                    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                    asked.lock().unwrap().push(path.clone());
                    posted.lock().unwrap().push(request);
                    let behaviour = behaviour.lock().unwrap().clone();
                    tokio::time::sleep(behaviour.delay).await;
                    let _ = stream.write_all(answer(&own, &path, &behaviour).as_bytes()).await;
                });
            }
        });
        peer
    }

    pub(super) fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    /// How often its keys were asked for.
    pub(super) fn key_fetches(&self) -> usize {
        self.asked("/jwks")
    }

    /// How often this path was asked for.
    pub(super) fn asked(&self, path: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == path).count()
    }

    /// The last request for this path, headers and body.
    pub(super) fn last(&self, path: &str) -> String {
        let posted = self.posted.lock().unwrap();
        posted.iter().rfind(|request| request.contains(&format!(" {path} "))).cloned().unwrap_or_default()
    }

    /// Answers `path` like this from now on.
    pub(super) fn answers(&self, path: &str, status: u16, body: Value) {
        self.behave(|issuer| drop(issuer.answers.insert(path.to_owned(), (status, body))));
    }

    pub(super) fn settings(&self) -> config::Issuer {
        settings(&self.url)
    }
}

/// What a configuration file would say about this issuer.
pub(super) fn settings(issuer: &str) -> config::Issuer {
    serde_json::from_value(json!({"issuer": issuer, "audience": AUDIENCE})).unwrap()
}

pub(super) fn jwks(signers: &[&Signer]) -> Value {
    json!({"keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>()})
}

/// A whole request, as text.
async fn received(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    let mut chunk = vec![0; 8_192];
    loop {
        let read = stream.read(&mut chunk).await.unwrap_or(0);
        request.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let whole = text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
            let length =
                head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            body.len() >= length.unwrap_or(0)
        });
        if read == 0 || whole {
            return text;
        }
    }
}

fn answer(own: &str, path: &str, behaviour: &Behaviour) -> String {
    // A redirect leads to the right answer, for those who follow it.
    let (status, path) = path.strip_prefix("/moved").map_or((behaviour.status, path), |path| (200, path));
    let elsewhere = own.replace("127.0.0.1", "localhost");
    let keys_at = if behaviour.keys_elsewhere { elsewhere.as_str() } else { own };
    let (status, body) = match path {
        "/.well-known/openid-configuration" => {
            let mut described = json!({
                "issuer": behaviour.claims_to_be.as_deref().unwrap_or(own),
                "jwks_uri": format!("{keys_at}/jwks"),
            });
            let more = behaviour.offers.as_object().cloned().unwrap_or_default();
            described.as_object_mut().unwrap().extend(more);
            (status, described)
        }
        _ => behaviour.answers.get(path).cloned().unwrap_or_else(|| (status, behaviour.keys.clone())),
    };
    let body = body.to_string();
    let length = body.len();
    format!(
        "HTTP/1.1 {status} Status\r\nlocation: {own}/moved{path}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}
