use serde_json::json;
use tokio::time::Instant;

use super::super::claims::SUBJECT_MAX;
use super::super::issuer_peer::{AUDIENCE, IssuerPeer, Signer, hmac_token, jwks, message, settings};
use super::super::keyring::{FETCH_EVERY, KEEP_FOR, REFRESH_AFTER};
use super::*;
use crate::domain::tenant::Role;

const TENANT: &str = "018f3a5e-0000-7000-8000-00000000000a";
const NOW_SECONDS: i64 = 1_790_000_000;

fn clock() -> Clock {
    Clock::held_at(Timestamp(NOW_SECONDS * MICROS_PER_SECOND))
}

fn claims(issuer: &str) -> Value {
    json!({
        "iss": issuer, "aud": AUDIENCE, "sub": "u-1", "exp": NOW_SECONDS + 600, "iat": NOW_SECONDS,
        "tenant": TENANT, "roles": ["admin"],
    })
}

fn tokens(peer: &IssuerPeer) -> Tokens {
    Tokens::new(&[peer.settings()], clock()).unwrap()
}

async fn advance(duration: Duration) {
    tokio::time::pause();
    tokio::time::advance(duration).await;
    tokio::time::resume();
}

#[tokio::test]
async fn tokens_of_every_algorithm_are_verified() {
    let signers = [Signer::rsa("r"), Signer::p256("e"), Signer::ed25519("d")];
    let peer = IssuerPeer::start(&signers.each_ref()).await;
    let tokens = tokens(&peer);
    for signer in &signers {
        let identity = tokens.verify(&signer.sign(&signer.header(), &claims(&peer.url))).await.unwrap();
        assert_eq!(identity.subject, "u-1");
        assert_eq!(identity.user.as_deref(), Some("u-1"));
        assert_eq!(identity.tenant, Some(TENANT.parse().unwrap()));
        assert_eq!(identity.roles, [Role::Admin]);
    }
    assert_eq!(peer.key_fetches(), 1);
}

#[tokio::test]
async fn a_header_can_choose_neither_algorithm_nor_key() {
    let (rsa, p256) = (Signer::rsa("r"), Signer::p256("e"));
    let peer = IssuerPeer::start(&[&rsa, &p256]).await;
    let tokens = tokens(&peer);
    let claims = claims(&peer.url);
    let with = |key: &str, value: Value| {
        let mut header = rsa.header();
        header[key] = value;
        header
    };

    let signed_well = [
        ("crit", with("crit", json!(["exp"]))),
        ("crit, empty", with("crit", json!([]))),
        ("jku", with("jku", json!("https://attacker.example/jwks"))),
        ("x5u", with("x5u", json!("https://attacker.example/cert"))),
        ("x5c", with("x5c", json!(["AAAA"]))),
        ("jwk", with("jwk", rsa.jwk())),
        ("b64", with("b64", json!(false))),
        ("zip", with("zip", json!("DEF"))),
        ("alg PS256", with("alg", json!("PS256"))),
        ("alg RS512", with("alg", json!("RS512"))),
        ("another key's algorithm", with("alg", json!("ES256"))),
        ("long kid", with("kid", json!("k".repeat(KEY_ID_MAX + 1)))),
        ("no typ", with("typ", Value::Null)),
        ("typ of a logout token", with("typ", json!("logout+jwt"))),
        ("typ dpop", with("typ", json!("dpop+jwt"))),
    ];
    for (what, header) in signed_well {
        assert_eq!(tokens.verify(&rsa.sign(&header, &claims)).await, Err(Refusal::Header), "{what}");
    }

    for alg in ["none", "None", "NONE", ""] {
        let unsigned = format!("{}.", message(&with("alg", json!(alg)), &claims));
        assert_eq!(tokens.verify(&unsigned).await, Err(Refusal::Header), "alg {alg:?}");
    }
    let modulus = rsa.jwk()["n"].as_str().unwrap().as_bytes().to_vec();
    let jwk = rsa.jwk().to_string().into_bytes();
    for secret in [rsa.public_bytes(), modulus, jwk, Vec::new()] {
        let forged = hmac_token(&with("alg", json!("HS256")), &claims, &secret);
        assert_eq!(tokens.verify(&forged).await, Err(Refusal::Header));
        // The same, under the name of the right algorithm.
        let forged = hmac_token(&rsa.header(), &claims, &secret);
        assert_eq!(tokens.verify(&forged).await, Err(Refusal::Signature));
    }
    let wrong_key = rsa.sign(&with("kid", json!("e")), &claims);
    assert_eq!(tokens.verify(&wrong_key).await, Err(Refusal::Header));
    for kid in ["../../etc/passwd", "' OR 1=1 --", "", "R"] {
        let stranger = rsa.sign(&with("kid", json!(kid)), &claims);
        assert_eq!(tokens.verify(&stranger).await, Err(Refusal::UnknownKey), "kid {kid:?}");
    }
    // Several keys, and none named.
    assert_eq!(tokens.verify(&rsa.sign(&with("kid", Value::Null), &claims)).await, Err(Refusal::UnknownKey));
    assert_eq!(tokens.verify(&rsa.sign(&rsa.header(), &claims)).await.map(|_| ()), Ok(()));
}

#[tokio::test]
async fn a_stranger_with_the_right_key_id_is_refused() {
    let (ours, theirs) = (Signer::p256("k"), Signer::p256("k"));
    let peer = IssuerPeer::start(&[&ours]).await;
    let tokens = tokens(&peer);
    let forged = theirs.sign(&theirs.header(), &claims(&peer.url));
    assert_eq!(tokens.verify(&forged).await, Err(Refusal::Signature));
    let good = ours.sign(&ours.header(), &claims(&peer.url));
    let (message, signature) = good.rsplit_once('.').unwrap();
    let other = ours.sign(&ours.header(), &json!({"iss": peer.url, "sub": "other"}));
    let (other_message, _) = other.rsplit_once('.').unwrap();
    assert_eq!(tokens.verify(&format!("{other_message}.{signature}")).await, Err(Refusal::Signature));
    assert_eq!(tokens.verify(&format!("{message}.")).await, Err(Refusal::Signature));
}

#[tokio::test]
async fn claims_that_are_missing_wrong_or_out_of_time_are_refused() {
    let signer = Signer::ed25519("d");
    let peer = IssuerPeer::start(&[&signer]).await;
    let tokens = tokens(&peer);
    let now = NOW_SECONDS;
    let table = [
        ("iss", Value::Null, Refusal::Claims),
        ("iss", json!("https://attacker.example"), Refusal::UnknownIssuer),
        ("iss", json!(format!("{}/", peer.url)), Refusal::UnknownIssuer),
        ("iss", json!([peer.url, "https://attacker.example"]), Refusal::Claims),
        ("aud", Value::Null, Refusal::Claims),
        ("aud", json!("urn:other"), Refusal::Audience),
        ("aud", json!([]), Refusal::Audience),
        ("aud", json!(["urn:other", "urn:platform-api/"]), Refusal::Audience),
        ("aud", json!(7), Refusal::Claims),
        ("exp", Value::Null, Refusal::Claims),
        ("exp", json!("1890000000"), Refusal::Claims),
        ("exp", json!(-1), Refusal::Claims),
        ("exp", json!(now * 1_000), Refusal::Claims),
        ("exp", json!(1e300), Refusal::Claims),
        ("exp", json!(now - LEEWAY_SECONDS), Refusal::Expired),
        ("exp", json!(0), Refusal::Expired),
        ("nbf", json!(now + LEEWAY_SECONDS + 1), Refusal::NotYetValid),
        ("nbf", json!("soon"), Refusal::Claims),
        ("sub", Value::Null, Refusal::Claims),
        ("sub", json!(""), Refusal::Claims),
        ("sub", json!(7), Refusal::Claims),
        ("sub", json!("a\nb"), Refusal::Claims),
        ("sub", json!("s".repeat(SUBJECT_MAX + 1)), Refusal::Claims),
        ("tenant", json!("acme"), Refusal::Claims),
        ("tenant", json!(""), Refusal::Claims),
        ("tenant", json!([TENANT]), Refusal::Claims),
    ];
    for (name, value, refusal) in table {
        let mut claims = claims(&peer.url);
        let what = format!("{name} {value}");
        claims[name] = value;
        assert_eq!(tokens.verify(&signer.sign(&signer.header(), &claims)).await, Err(refusal), "{what}");
    }
    let fine = [
        ("exp", json!(now - LEEWAY_SECONDS + 1)),
        ("exp", json!(now as f64 + 10.5)),
        ("nbf", json!(now + LEEWAY_SECONDS)),
        ("aud", json!(["urn:other", AUDIENCE])),
    ];
    for (name, value) in fine {
        let mut claims = claims(&peer.url);
        let what = format!("{name} {value}");
        claims[name] = value;
        let verdict = tokens.verify(&signer.sign(&signer.header(), &claims)).await;
        assert_eq!(verdict.map(|_| ()), Ok(()), "{what}");
    }
}

#[tokio::test]
async fn an_id_token_is_not_an_access_token() {
    let signer = Signer::ed25519("d");
    let peer = IssuerPeer::start(&[&signer]).await;
    let tokens = tokens(&peer);
    let jwt = json!({"alg": "EdDSA", "typ": "JWT", "kid": "d"});
    assert_eq!(tokens.verify(&signer.sign(&jwt, &claims(&peer.url))).await.map(|_| ()), Ok(()));
    let telltales = [
        ("nonce", json!("n")),
        ("at_hash", json!("h")),
        ("events", json!({})),
        ("typ", json!("ID")),
        ("typ", json!("Refresh")),
        ("token_use", json!("id")),
    ];
    for (name, value) in telltales {
        let mut claims = claims(&peer.url);
        claims[name] = value;
        assert_eq!(tokens.verify(&signer.sign(&jwt, &claims)).await, Err(Refusal::Claims), "{name}");
    }
    let mut bearer = claims(&peer.url);
    bearer["typ"] = json!("Bearer");
    assert_eq!(tokens.verify(&signer.sign(&jwt, &bearer)).await.map(|_| ()), Ok(()));
}

#[tokio::test]
async fn what_is_no_token_is_refused_without_asking_anybody() {
    let signer = Signer::ed25519("d");
    let peer = IssuerPeer::start(&[&signer]).await;
    let tokens = tokens(&peer);
    let mut large = claims(&peer.url);
    large["padding"] = json!("x".repeat(TOKEN_BYTES_MAX));
    let oversized = signer.sign(&signer.header(), &large);
    let good = signer.sign(&signer.header(), &claims(&peer.url));
    let padded = good.replacen('.', "=.", 1);
    let texts = [
        "",
        ".",
        "..",
        "...",
        "a.b",
        "a.b.c",
        "a.b.c.d.e",
        "e30.e30.",
        "bnVsbA.e30.AA",
        &good[1..],
        &padded,
        &oversized,
    ];
    for text in texts {
        assert_eq!(tokens.verify(text).await, Err(Refusal::Form), "{}", &text[..text.len().min(40)]);
    }
    let twice = URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA","alg":"none","typ":"JWT"}"#);
    assert_eq!(tokens.verify(&format!("{twice}.e30.AA")).await, Err(Refusal::Form));
    assert_eq!(peer.key_fetches(), 0);
}

#[test]
fn claims_are_mapped_as_configured() {
    let mut issuer = settings("https://issuer.example");
    let header = |typ: &str| serde_json::from_value::<Header>(json!({"alg": "RS256", "typ": typ})).unwrap();
    let read =
        |claims: Value, issuer: &config::Issuer| identity(claims.as_object().unwrap(), &header("at+jwt"), issuer);
    let of_tenant = |roles: Value| json!({"sub": "u", "tenant": TENANT, "roles": roles});

    let ours = [
        (json!("reader"), vec![Role::Reader]),
        (json!(["reader", "admin", "reader"]), vec![Role::Admin, Role::Reader]),
        (json!(["owner", "Admin", "", " admin", 7, null]), vec![]),
        (json!({"admin": true}), vec![]),
        (json!(""), vec![]),
        (Value::Null, vec![]),
        // Confined to its tenant.
        (json!(["platformAdmin"]), vec![]),
        (json!(["platformAdmin", "reporter"]), vec![Role::Reporter]),
    ];
    for (roles, expected) in ours {
        assert_eq!(read(of_tenant(roles.clone()), &issuer).unwrap().roles, expected, "{roles}");
    }
    let platform = read(json!({"sub": "root", "roles": "platformAdmin"}), &issuer).unwrap();
    assert_eq!((platform.tenant, platform.roles), (None, vec![Role::PlatformAdmin]));
    // Without a tenant, a tenant's role is none.
    let of_nobody = read(json!({"sub": "u", "roles": ["admin"]}), &issuer).unwrap();
    assert_eq!((of_nobody.tenant, of_nobody.roles), (None, vec![]));

    issuer.roles = [("gov-admin".to_owned(), "admin".to_owned())].into();
    issuer.tenant_claim = "org/id".into();
    issuer.user_claim = "https://example.com/user".into();
    issuer.roles_claim = "realm_access/roles".into();
    let claims = json!({
        "sub": "u", "org": {"id": TENANT}, "https://example.com/user": "jane",
        "realm_access": {"roles": ["gov-admin", "reporter", "platformAdmin"]},
    });
    let mapped = read(claims, &issuer).unwrap();
    assert_eq!(mapped.tenant, Some(TENANT.parse().unwrap()));
    assert_eq!(mapped.user.as_deref(), Some("jane"));
    assert_eq!(mapped.roles, [Role::Admin], "with a map, our own names mean nothing");
    let nowhere = json!({"sub": "u", "org": TENANT, "realm_access": {"roles": ["gov-admin"]}});
    let nowhere = read(nowhere, &issuer).unwrap();
    assert_eq!((nowhere.tenant, nowhere.roles), (None, vec![]));
}

#[tokio::test]
async fn a_remembered_token_is_forgotten_at_its_expiry_and_when_the_keys_change() {
    let (old, new) = (Signer::ed25519("old"), Signer::ed25519("new"));
    let peer = IssuerPeer::start(&[&old]).await;
    let clock = clock();
    let tokens = Tokens::new(&[peer.settings()], clock.clone()).unwrap();
    let mut short = claims(&peer.url);
    short["exp"] = json!(NOW_SECONDS + 20);
    let token = old.sign(&old.header(), &short);
    let first = tokens.verify(&token).await.unwrap();
    assert!(Arc::ptr_eq(&first, &tokens.verify(&token).await.unwrap()), "remembered");
    clock.set(Timestamp((NOW_SECONDS + 80) * MICROS_PER_SECOND));
    assert_eq!(tokens.verify(&token).await, Err(Refusal::Expired));

    let token = old.sign(&old.header(), &claims(&peer.url));
    tokens.verify(&token).await.unwrap();
    peer.behave(|issuer| issuer.keys = jwks(&[&new]));
    advance(FETCH_EVERY).await;
    tokens.verify(&new.sign(&new.header(), &claims(&peer.url))).await.unwrap();
    assert_eq!(tokens.verify(&token).await, Err(Refusal::UnknownKey), "its key was withdrawn");
}

#[tokio::test]
async fn a_storm_of_unknown_key_ids_costs_the_issuer_one_fetch() {
    let signer = Signer::ed25519("d");
    let peer = IssuerPeer::start(&[&signer]).await;
    let tokens = tokens(&peer);
    tokens.verify(&signer.sign(&signer.header(), &claims(&peer.url))).await.unwrap();
    assert_eq!(peer.key_fetches(), 1);
    advance(FETCH_EVERY).await;
    let storm = (0..2_000).map(|number| {
        let mut header = signer.header();
        header["kid"] = json!(format!("invented-{number}"));
        signer.sign(&header, &claims(&peer.url))
    });
    let storm = storm.collect::<Vec<_>>();
    let verdicts = futures_util::future::join_all(storm.iter().map(|token| tokens.verify(token))).await;
    assert!(verdicts.iter().all(|verdict| *verdict == Err(Refusal::UnknownKey)));
    assert_eq!(peer.key_fetches(), 2);
    // The one that was looked for is known not to exist; it is not worth another fetch, even when one is due.
    advance(FETCH_EVERY).await;
    assert_eq!(tokens.verify(&storm[0]).await, Err(Refusal::UnknownKey));
    assert_eq!(peer.key_fetches(), 2);
}

#[tokio::test]
async fn known_keys_outlive_their_issuer_by_a_day() {
    let signer = Signer::ed25519("d");
    let peer = IssuerPeer::start(&[&signer]).await;
    let token = signer.sign(&signer.header(), &claims(&peer.url));
    let tokens = tokens(&peer);
    tokens.verify(&token).await.unwrap();
    peer.behave(|issuer| issuer.status = 500);

    advance(KEEP_FOR - FETCH_EVERY).await;
    let mut other = claims(&peer.url);
    other["sub"] = json!("u-2");
    let started = Instant::now();
    tokens.verify(&signer.sign(&signer.header(), &other)).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(30), "a known key does not wait for the issuer");

    // A key nobody knows cannot be judged now.
    advance(FETCH_EVERY).await;
    let stranger = Signer::ed25519("new");
    let unjudged = stranger.sign(&stranger.header(), &claims(&peer.url));
    assert_eq!(tokens.verify(&unjudged).await, Err(Refusal::KeysUnavailable));
    advance(FETCH_EVERY * 2).await;
    other["sub"] = json!("u-3");
    let later = signer.sign(&signer.header(), &other);
    assert_eq!(tokens.verify(&later).await, Err(Refusal::KeysUnavailable));
    peer.behave(|issuer| issuer.status = 200);
    advance(FETCH_EVERY).await;
    assert_eq!(tokens.verify(&later).await.map(|_| ()), Ok(()));
}

#[tokio::test]
async fn keys_in_use_are_read_again_in_the_background() {
    let (old, new) = (Signer::ed25519("old"), Signer::ed25519("new"));
    let peer = IssuerPeer::start(&[&old]).await;
    let tokens = tokens(&peer);
    let token = old.sign(&old.header(), &claims(&peer.url));
    tokens.verify(&token).await.unwrap();
    peer.behave(|issuer| issuer.keys = jwks(&[&new]));
    advance(REFRESH_AFTER + Duration::from_secs(1)).await;
    let mut other = claims(&peer.url);
    other["sub"] = json!("u-2");
    tokens.verify(&old.sign(&old.header(), &other)).await.unwrap();
    let patience = Instant::now() + Duration::from_secs(90);
    while tokens.verify(&token).await.is_ok() && Instant::now() < patience {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(tokens.verify(&token).await, Err(Refusal::UnknownKey), "the withdrawn key is gone");
}

#[tokio::test]
async fn an_issuer_that_misbehaves_has_no_keys() {
    let signer = Signer::ed25519("d");
    let small = json!({"keys": [{"kty": "oct", "kid": "d", "k": "AAAA"}, {"kty": "RSA", "kid": "d", "n": "AQAB", "e": "AQAB"}]});
    let mut huge = jwks(&[&signer]);
    huge["padding"] = json!("x".repeat(5 * 1024 * 1024));
    let encrypting = {
        let mut jwk = signer.jwk();
        jwk["use"] = json!("enc");
        json!({"keys": [jwk]})
    };
    type Change = Box<dyn Fn(&mut super::super::issuer_peer::Behaviour)>;
    let misbehaviours: Vec<(&str, Change)> = vec![
        ("another issuer's document", Box::new(|issuer| issuer.claims_to_be = Some("https://other.example".into()))),
        ("keys elsewhere", Box::new(|issuer| issuer.keys_elsewhere = true)),
        ("redirect", Box::new(|issuer| issuer.status = 302)),
        ("refusal", Box::new(|issuer| issuer.status = 404)),
        ("five megabytes", Box::new(move |issuer| issuer.keys = huge.clone())),
        ("no set", Box::new(|issuer| issuer.keys = json!([]))),
        ("empty set", Box::new(|issuer| issuer.keys = json!({"keys": []}))),
        ("symmetric and short keys", Box::new(move |issuer| issuer.keys = small.clone())),
        ("keys for encryption", Box::new(move |issuer| issuer.keys = encrypting.clone())),
        ("silence", Box::new(|issuer| issuer.delay = Duration::from_secs(60))),
    ];
    for (what, change) in misbehaviours {
        let peer = IssuerPeer::start(&[&signer]).await;
        peer.behave(change);
        let tokens = tokens(&peer);
        let started = Instant::now();
        let verdict = tokens.verify(&signer.sign(&signer.header(), &claims(&peer.url))).await;
        assert_eq!(verdict, Err(Refusal::KeysUnavailable), "{what}");
        assert!(started.elapsed() < Duration::from_secs(30), "{what}");
    }
}

#[tokio::test]
async fn one_issuer_cannot_speak_for_another() {
    let (one, two) = (Signer::ed25519("k"), Signer::ed25519("k"));
    let (first, second) = (IssuerPeer::start(&[&one]).await, IssuerPeer::start(&[&two]).await);
    let tokens = Tokens::new(&[first.settings(), second.settings()], clock()).unwrap();
    tokens.warm().await;
    assert_eq!(tokens.verify(&one.sign(&one.header(), &claims(&first.url))).await.map(|_| ()), Ok(()));
    assert_eq!(tokens.verify(&two.sign(&two.header(), &claims(&second.url))).await.map(|_| ()), Ok(()));
    assert_eq!(tokens.verify(&one.sign(&one.header(), &claims(&second.url))).await, Err(Refusal::Signature));
    assert_eq!((first.key_fetches(), second.key_fetches()), (1, 1));
}
