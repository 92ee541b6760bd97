//! Access tokens: what is read before the signature is checked, and what verified claims are worth.
//!
//! An input is a header in JSON, a line break, and claims in JSON; it is also tried as a whole token.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use platform_api::access::token::Parts;
use platform_api::config::Issuer;
use platform_api::domain::tenant::Role;
use platform_api::domain::time::{MICROS_PER_SECOND, Timestamp};
use serde_json::{Map, Value};

use super::Target;
use crate::json::{self, Json};

pub(crate) const TARGET: Target = Target {
    name: "token",
    check,
    seeds: &[],
    words: &[
        "alg",
        "RS256",
        "ES256",
        "EdDSA",
        "HS256",
        "none",
        "typ",
        "at+jwt",
        "JWT",
        "application/at+jwt",
        "kid",
        "crit",
        "jku",
        "jwk",
        "x5u",
        "b64",
        "enc",
        "zip",
        "iss",
        "sub",
        "aud",
        "exp",
        "nbf",
        "tenant",
        "roles",
        "nonce",
        "platformAdmin",
        "admin",
        "reader",
        "typ",
        "token_use",
        "id",
        "Bearer",
        "1790000600",
        "\n",
        ".",
        "6f1c9f0e-2f6b-4c0c-9d39-3f3a1c2b4d5e",
    ],
};

const NOW: i64 = 1_790_000_000;
const LEEWAY: f64 = 60.0;

fn issuer() -> Issuer {
    serde_json::from_value(serde_json::json!({"issuer": "https://id.example.com", "audience": "platform-api"}))
        .expect("an issuer's settings")
}

fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let _ = Parts::read(text);
    let (header, claims) = text.split_once('\n').unwrap_or((text, "{}"));
    let part = |json: &str| URL_SAFE_NO_PAD.encode(json);
    let token = format!("{}.{}.c2ln", part(header), part(claims));
    for broken in [token.replacen('.', "", 1), format!("{token}."), format!("{token}.x"), token.replacen('.', "=.", 1)]
    {
        assert!(Parts::read(&broken).is_err(), "{broken}");
    }
    let Ok(parts) = Parts::read(&token) else { return };
    header_is_harmless(header);
    let Ok(claims) = serde_json::from_str::<Map<String, Value>>(claims) else { return };
    claims_are_kept_to(&parts, &claims);
}

fn header_is_harmless(header: &str) {
    let Some(doc) = json::read(header.as_bytes()) else { return };
    assert!(matches!(doc, Json::Object(_)), "a header is an object: {header}");
    let text = |name: &str| doc.named(name).and_then(Json::text);
    assert!(["RS256", "ES256", "EdDSA"].contains(&text("alg").unwrap_or_default().as_str()), "{header}");
    let typ = text("typ").unwrap_or_default().to_ascii_lowercase();
    assert!(["at+jwt", "jwt", "application/at+jwt", "application/jwt"].contains(&typ.as_str()), "{header}");
    for name in ["crit", "jku", "jwk", "x5u", "x5c", "b64", "enc", "zip"] {
        assert!(doc.all(&[name]).into_iter().all(|value| *value == Json::Null), "{name} in {header}");
    }
    for name in ["alg", "typ", "kid"] {
        assert!(doc.all(&[name]).len() <= 1, "{name} is there twice: {header}");
    }
}

fn claims_are_kept_to(parts: &Parts, claims: &Map<String, Value>) {
    let Ok((identity, until)) = parts.judge(claims, &issuer(), Timestamp(NOW * MICROS_PER_SECOND)) else { return };
    let seconds = |name: &str| claims.get(name).and_then(Value::as_f64);
    let expires = seconds("exp").expect("a token expires");
    assert!(expires + LEEWAY > NOW as f64, "expired");
    assert!((until.0 / MICROS_PER_SECOND) as f64 <= expires);
    assert!(seconds("nbf").is_none_or(|from| from.floor() <= NOW as f64 + LEEWAY), "not yet valid");
    assert_eq!(claims["sub"].as_str(), Some(identity.subject.as_str()));
    assert!((1..=255).contains(&identity.subject.len()) && !identity.subject.chars().any(char::is_control));
    match identity.tenant {
        Some(tenant) => {
            assert_eq!(claims["tenant"].as_str().map(str::to_ascii_lowercase), Some(tenant.to_string()));
            assert!(!identity.roles.contains(&Role::PlatformAdmin), "a tenant's token reaches beyond it");
        }
        // Whether it is let in without a role is the catalogue's to say.
        None => assert!(identity.roles.iter().all(|role| *role == Role::PlatformAdmin), "nobody's token"),
    }
    for role in &identity.roles {
        let named = |value: &Value| value.as_str() == Some(role.name());
        let claimed = claims["roles"].as_array().is_some_and(|roles| roles.iter().any(named));
        assert!(claimed || named(&claims["roles"]), "{role:?} was not claimed");
    }
}
