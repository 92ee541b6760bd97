//! What a tenant may do with its providers, and what becomes of their secrets meanwhile.

#![allow(clippy::unwrap_used, reason = "a test may")]

use proptest::prelude::*;
use uuid::Uuid;

use super::policy::{Cause, Failover};
use super::*;
use crate::domain::ids::SecretId;
use crate::domain::secret::{Sealed, Shown};

const NOW: Timestamp = Timestamp(1_795_189_032_000_000);

fn id(number: u128) -> ProviderId {
    ProviderId(Uuid::from_u128(number))
}

fn profile(name: &str, kind: ProviderKind) -> Profile {
    let base_url = kind.base_url().is_none().then(|| "https://llm.example.com/v1".to_owned());
    let base_url = base_url.filter(|_| ![ProviderKind::Bedrock, ProviderKind::LiteLlm].contains(&kind));
    let region = (kind == ProviderKind::Bedrock).then(|| "eu-central-1".to_owned());
    Profile { name: name.into(), kind, base_url, region, api_version: None, active: true }
}

fn key(version: i64) -> WrappedKey {
    WrappedKey { version, kek: "k".into(), wrapped: vec![1], created_at: NOW }
}

fn secret(version: i64, data_key: i64) -> StoredSecret {
    let sealed = Sealed { data_key, nonce: [0; 12], ciphertext: vec![2] };
    let shown = Shown { last_four: "cdef".into(), fingerprint: "0".into() };
    StoredSecret { id: SecretId(Uuid::from_u128(9)), version, sealed, shown, set_at: NOW }
}

/// One provider with a secret under the first data key.
fn books() -> ProviderBooks {
    let mut books = ProviderBooks::default();
    books.create(id(1), profile("one", ProviderKind::OpenAi), NOW).unwrap();
    books.add_key(key(1)).unwrap();
    books.put_secret(id(1), secret(1, 1), &Expected::Any).unwrap();
    books
}

#[test]
fn kinds_are_found_by_their_names_and_know_their_homes() {
    for kind in ProviderKind::ALL {
        assert_eq!(ProviderKind::from_name(kind.name()), Some(kind));
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        assert!(kind.homes().iter().all(|home| home.parse::<HostRule>().is_ok()), "{}", kind.name());
    }
    assert!(ProviderKind::OpenAi.is_home("api.openai.com", 443));
    assert!(ProviderKind::AzureOpenAi.is_home("acme.openai.azure.com", 443));
    for (kind, host, port) in [
        (ProviderKind::OpenAi, "api.anthropic.com", 443),
        (ProviderKind::OpenAi, "api.openai.com", 8443),
        (ProviderKind::OpenAi, "evil-api.openai.com", 443),
        (ProviderKind::AzureOpenAi, "openai.azure.com", 443),
        (ProviderKind::AzureOpenAi, "acme.openai.azure.com.evil.example", 443),
        (ProviderKind::OpenAiCompatible, "api.openai.com", 443),
    ] {
        assert!(!kind.is_home(host, port), "{host}:{port}");
    }
}

#[test]
fn each_kind_has_what_it_needs_and_nothing_else() {
    for kind in ProviderKind::ALL {
        assert_eq!(profile("one", kind).flaws(), [], "{}", kind.name());
    }
    let pointers = |profile: Profile| profile.flaws().into_iter().map(|flaw| flaw.pointer).collect::<Vec<_>>();
    let openai = profile("one", ProviderKind::OpenAi);
    assert_eq!(pointers(Profile { name: " one".into(), ..openai.clone() }), ["/name"]);
    assert_eq!(pointers(Profile { region: Some("eu".into()), ..openai.clone() }), ["/region"]);
    assert_eq!(pointers(Profile { api_version: Some("1".into()), ..openai.clone() }), ["/apiVersion"]);
    assert_eq!(pointers(Profile { kind: ProviderKind::Bedrock, ..openai.clone() }), ["/region"]);
    assert_eq!(pointers(Profile { kind: ProviderKind::AzureOpenAi, ..openai }), ["/baseUrl"]);
    let bedrock = profile("one", ProviderKind::Bedrock);
    for region in ["", "eu-central-1.evil.example", "EU", "a/b", "a@b"] {
        assert_eq!(pointers(Profile { region: Some(region.into()), ..bedrock.clone() }), ["/region"], "{region}");
    }
    assert_eq!(pointers(Profile { base_url: Some("https://x".into()), ..bedrock }), ["/baseUrl"]);
}

#[test]
fn a_name_is_one_provider_s_and_there_is_a_limit() {
    let mut books = books();
    let openai = |name: &str| profile(name, ProviderKind::OpenAi);
    assert_eq!(books.create(id(2), openai("one"), NOW), Err(Refusal::NameTaken));
    books.create(id(2), openai("two"), NOW).unwrap();
    assert_eq!(books.replace(id(2), openai("one"), &Expected::Any, NOW), Err(Refusal::NameTaken));
    assert_eq!(books.replace(id(2), openai("two"), &Expected::OneOf(vec![2]), NOW), Err(Refusal::Stale));
    assert_eq!(books.replace(id(3), openai("three"), &Expected::Any, NOW), Err(Refusal::Unknown));
    let other_kind = books.replace(id(2), profile("two", ProviderKind::Groq), &Expected::Any, NOW);
    assert!(matches!(other_kind, Err(Refusal::Flawed(_))));
    assert_eq!(books.replace(id(2), openai("two"), &Expected::Any, NOW).unwrap().version, 1, "nothing changed");
    for number in 3..=PROVIDERS_MAX {
        books.create(id(number as u128), openai(&number.to_string()), NOW).unwrap();
    }
    assert_eq!(books.create(id(1_000), openai("more"), NOW), Err(Refusal::Full));
}

#[test]
fn a_secret_stays_with_the_address_it_was_given_for() {
    let mut books = books();
    let renamed = books.replace(id(1), profile("other", ProviderKind::OpenAi), &Expected::Any, NOW).unwrap();
    assert!(renamed.secret.is_some());
    let elsewhere = Profile { base_url: Some("https://llm.example.com".into()), ..renamed.profile.clone() };
    let moved = books.replace(id(1), elsewhere, &Expected::Any, NOW).unwrap();
    assert_eq!(moved.secret, None);
    // What was sealed for the first value does not come back as the next.
    assert_eq!(books.put_secret(id(1), secret(1, 1), &Expected::Any), Err(Refusal::KeyChanged));
    assert_eq!(books.put_secret(id(1), secret(2, 1), &Expected::Any).unwrap().secret_versions, 2);
}

#[test]
fn a_secret_is_taken_only_as_it_was_sealed_for() {
    let mut books = books();
    let sealed = |version, data_key| books.clone().put_secret(id(1), secret(version, data_key), &Expected::Any);
    assert!(sealed(2, 1).is_ok());
    for (version, data_key) in [(1, 1), (3, 1), (2, 2), (2, 0)] {
        assert_eq!(sealed(version, data_key), Err(Refusal::KeyChanged), "{version} {data_key}");
    }
    books.add_key(key(2)).unwrap();
    assert_eq!(books.put_secret(id(1), secret(2, 1), &Expected::Any), Err(Refusal::KeyChanged), "an older data key");
    let stranger = StoredSecret { id: SecretId(Uuid::from_u128(8)), ..secret(2, 2) };
    assert_eq!(books.put_secret(id(1), stranger, &Expected::Any), Err(Refusal::KeyChanged));
}

#[test]
fn a_secret_is_lent_while_its_provider_is_active_and_the_model_allowed() {
    let mut books = books();
    let lease = Lease {
        id: LeaseId(Uuid::from_u128(1)),
        provider: id(1),
        secret_version: 1,
        actor: "apiKey:k".into(),
        purpose: "inference".into(),
        model: None,
        granted_at: NOW,
        expires_at: NOW.plus_micros(1),
    };
    assert_eq!(books.lend(&lease), Ok(()));
    assert_eq!(books.lend(&Lease { provider: id(2), ..lease.clone() }), Err(Refusal::Unknown));
    assert_eq!(books.lend(&Lease { secret_version: 2, ..lease.clone() }), Err(Refusal::KeyChanged));
    books.policy = Arc::new(Policy { models: vec!["gpt-4o".into(), "o3*".into()].into(), ..Policy::default() });
    for (model, lent) in [("gpt-4o", true), ("o3-mini", true), ("gpt-4o-mini", false), ("", false)] {
        let told = books.lend(&Lease { model: Some(model.into()), ..lease.clone() });
        assert_eq!(told, if lent { Ok(()) } else { Err(Refusal::ModelNotAllowed) }, "{model}");
    }
    let inactive = Profile { active: false, ..profile("one", ProviderKind::OpenAi) };
    books.replace(id(1), inactive, &Expected::Any, NOW).unwrap();
    assert_eq!(books.lend(&lease), Err(Refusal::Inactive));
    books.delete_secret(id(1), &Expected::Any, NOW).unwrap();
    assert_eq!(books.lend(&lease), Err(Refusal::NoSecret));
    assert_eq!(books.delete_secret(id(1), &Expected::Any, NOW), Err(Refusal::NoSecret));
}

#[test]
fn a_data_key_goes_when_nothing_is_encrypted_under_it_and_never_before() {
    let mut books = books();
    assert_eq!(books.add_key(key(1)), Err(Refusal::KeyChanged));
    assert_eq!(books.add_key(key(3)), Err(Refusal::KeyChanged));
    books.add_key(key(2)).unwrap();
    assert!(books.retire_keys().is_empty());
    let before = books.get(id(1)).unwrap().clone();
    let old = before.secret.clone().unwrap();
    assert_eq!(books.reseal(id(1), &old, secret(1, 3)), Err(Refusal::KeyChanged), "no such data key");
    assert_eq!(books.reseal(id(1), &old, secret(2, 2)), Err(Refusal::KeyChanged), "another value");
    books.reseal(id(1), &old, secret(1, 2)).unwrap();
    assert_eq!(books.get(id(1)).unwrap().version, before.version, "nobody can tell");
    assert_eq!(books.reseal(id(1), &old, secret(1, 2)), Err(Refusal::KeyChanged), "not what it was");
    assert_eq!(books.retire_keys(), vec![1_i64]);
    assert_eq!(books.newest_key().unwrap().version, 2);
    let wrapped = WrappedKey { kek: "l".into(), ..key(2) };
    books.rewrap(&key(2), wrapped.clone()).unwrap();
    assert_eq!(books.rewrap(&key(2), wrapped), Err(Refusal::KeyChanged));
    assert_eq!(books.destroy(), (1, 1));
    assert!(books.keys().is_empty() && books.get(id(1)).unwrap().secret.is_none());
    assert_eq!(books.destroy(), (0, 0));
    // Whoever was let in before keeps nothing any more.
    assert_eq!(books.add_key(key(1)), Err(Refusal::Unknown));
    assert_eq!(books.put_secret(id(1), secret(3, 1), &Expected::Any), Err(Refusal::Unknown));
}

#[test]
fn whoever_is_gone_steps_in_for_nobody() {
    let mut books = books();
    let failover = Failover { providers: vec![id(1)], on: vec![Cause::Timeout], attempts_max: 2 };
    books.policy = Arc::new(Policy { failover, version: 4, ..Policy::default() });
    let (gone, policy) = books.delete(id(1), &Expected::Any, NOW).unwrap();
    assert!(gone.secret.is_some());
    assert_eq!((policy.unwrap().version, books.policy.failover.providers.len()), (5, 0));
    assert_eq!(books.delete(id(1), &Expected::Any, NOW), Err(Refusal::Unknown));
}

#[test]
fn a_policy_names_what_there_is() {
    let policy = Policy {
        models: vec!["gpt-4o".into(), "*".into(), String::new(), "a*b".into(), "a b".into()].into(),
        failover: Failover { providers: vec![id(1), id(2), id(1)], on: Vec::new(), attempts_max: 11 },
        ..Policy::default()
    };
    let pointers: Vec<String> = policy.flaws(|one| one == id(1)).into_iter().map(|flaw| flaw.pointer).collect();
    assert_eq!(
        pointers,
        [
            "/models/2",
            "/models/3",
            "/models/4",
            "/failover/providers/1",
            "/failover/providers/2",
            "/failover/attemptsMax"
        ]
    );
    for cause in Cause::ALL {
        assert_eq!(Cause::from_name(cause.name()), Some(cause));
        assert_eq!(serde_json::to_value(cause).unwrap(), cause.name());
    }
}

proptest! {
    /// However the list is laid out, it covers what one entry after the other would.
    #[test]
    fn a_list_of_models_covers_what_its_entries_say(
        listed in prop::collection::vec("[ab]{0,3}\\*?", 0..8),
        model in "[abc]{0,4}",
    ) {
        let covers = |entry: &String| match entry.strip_suffix('*') {
            Some(start) => model.starts_with(start),
            None => model == *entry,
        };
        let plainly = listed.is_empty() || listed.iter().any(covers);
        let policy = Policy { models: listed.clone().into(), ..Policy::default() };
        prop_assert_eq!(policy.allows_model(&model), plainly);
        prop_assert_eq!(policy.models.to_vec(), listed);
    }
}

#[test]
fn a_rule_about_hosts_covers_what_it_says() {
    for text in ["llm.example.com", "*.example.com", "llm.example.com:8443", "*.example.com:1"] {
        assert_eq!(text.parse::<HostRule>().unwrap().to_string(), text);
    }
    assert_eq!("a.example:443".parse::<HostRule>().unwrap().to_string(), "a.example");
    for text in [
        "",
        "*",
        "*.com",
        "*.*.example.com",
        "a..b",
        "-a.example",
        "a.example:0",
        "a.example:x",
        "A.example",
        "a/b",
        "[::1]",
    ] {
        assert!(text.parse::<HostRule>().is_err(), "{text}");
    }
    let below: HostRule = "*.example.com".parse().unwrap();
    for (host, covers) in [
        ("a.example.com", true),
        ("a.b.example.com.", true),
        ("example.com", false),
        (".example.com", false),
        ("aexample.com", false),
        ("a.example.com.evil", false),
    ] {
        assert_eq!(below.covers(host, 443), covers, "{host}");
    }
    assert!(!below.covers("a.example.com", 80));
}
