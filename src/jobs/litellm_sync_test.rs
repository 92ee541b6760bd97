//! The sync with a LiteLLM on this machine that answers as the real one does: what is there, what is in its way, what is
//! revoked. What the real one's own code makes of it is in `tests/litellm/credentials_test.py`.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use secrecy::SecretString;
use serde_json::{Value, json};

use super::data_keys_test::Node;
use super::kinds::Tools;
use super::litellm_sync::same;
use crate::config;
use crate::domain::ids::{ProviderId, TenantId};
use crate::domain::job::Kind;
use crate::domain::organization::Expected;
use crate::domain::provider::policy::Policy;
use crate::domain::provider::{Profile, ProviderBooks, ProviderKind};
use crate::domain::request::Request;
use crate::domain::tenant::Lifecycle;
use crate::outlet::litellm::{LiteLlm, Name};
use crate::tenant::provider::{CreateProvider, DeleteSecret, ReplacePolicy};
use crate::tenant::task::untold;
use crate::vault::Vault;
use crate::vault::transit_peer::{Asked, serve};

const MASTER_KEY: &str = "sk-master-canary";

#[derive(Default)]
struct Proxy {
    credentials: BTreeMap<String, Value>,
    /// By alias: the key, and its models.
    keys: BTreeMap<String, (String, Value)>,
    made: usize,
    /// Answers to further changes, before they are made.
    failing: bool,
    /// No key is made.
    barren: bool,
    changes: usize,
}

impl Proxy {
    fn answer(&mut self, asked: &Asked) -> (u16, Value) {
        let told =
            |status: u16, what: &str| (status, json!({ "error": { "message": what, "code": status.to_string() } }));
        if asked.headers.get("authorization") != Some(&format!("Bearer {MASTER_KEY}")) {
            return told(401, "Authentication Error");
        }
        if asked.method != "GET" {
            self.changes += 1;
            if self.failing {
                return told(500, "DB not connected");
            }
        }
        let body = &asked.body;
        let alias = || body["key_alias"].as_str().unwrap_or_default().to_owned();
        let named = asked.path.strip_prefix("/credentials/").map(str::to_owned);
        match (asked.method.as_str(), asked.path.split('?').next().unwrap_or_default()) {
            ("GET", "/credentials") => {
                let view = |one: &Value| {
                    let mut one = one.clone();
                    one["credential_values"]["api_key"] = json!("sk****");
                    one
                };
                let all: Vec<Value> = self.credentials.values().map(view).collect();
                (200, json!({ "success": true, "credentials": all }))
            }
            ("POST", "/credentials") => {
                let name = body["credential_name"].as_str().unwrap().to_owned();
                if self.credentials.contains_key(&name) {
                    return told(409, "already exists");
                }
                self.credentials.insert(name, body.clone());
                (200, json!({ "success": true }))
            }
            ("PATCH", _) if named.is_some() => match self.credentials.get_mut(&named.unwrap()) {
                None => told(404, "Credential not found in DB."),
                Some(one) => {
                    *one = body.clone();
                    (200, json!({ "success": true }))
                }
            },
            ("DELETE", _) if named.is_some() => match self.credentials.remove(&named.unwrap()) {
                None => told(404, "Credential not found"),
                Some(_) => (200, json!({ "success": true })),
            },
            ("GET", "/key/aliases") => {
                let aliases: Vec<&String> = self.keys.keys().collect();
                (200, json!({ "aliases": aliases, "total_pages": 1 }))
            }
            ("POST", "/key/generate") if self.barren => told(500, "DB not connected"),
            ("POST", "/key/generate") => {
                if self.keys.contains_key(&alias()) {
                    return told(400, "Unique key aliases across all keys are required.");
                }
                self.made += 1;
                let key = format!("sk-virtual-canary-{:06}", self.made);
                self.keys.insert(alias(), (key.clone(), body["models"].clone()));
                (200, json!({ "key": key, "key_alias": alias() }))
            }
            ("POST", "/key/update") => match self.keys.get_mut(&alias()) {
                None => told(404, "Key not found"),
                Some(one) => {
                    one.1 = body["models"].clone();
                    (200, json!({ "key_alias": alias() }))
                }
            },
            ("POST", "/key/delete") => {
                for alias in body["key_aliases"].as_array().unwrap() {
                    self.keys.remove(alias.as_str().unwrap());
                }
                (200, json!({ "deleted_keys": body["key_aliases"] }))
            }
            _ => told(404, "Not Found"),
        }
    }
}

/// The proxy, and what brings tenants to it.
struct Scene {
    node: Node,
    proxy: Arc<Mutex<Proxy>>,
    tools: Tools,
}

impl Scene {
    async fn open() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let settings = config::Vault { kek_file: Some(folder.keep().join("kek")), ..config::Vault::default() };
        let vault = crate::vault::Vault::open(&settings, &config::Store::default(), [7; 32]).unwrap().unwrap();
        let mut node = Node::open(Box::new(super::data_keys_test::Kek::default())).await;
        node.vault = vault;
        let proxy: Arc<Mutex<Proxy>> = Arc::default();
        let asked = proxy.clone();
        let url = serve(move |request| asked.lock().unwrap().answer(&request)).await;
        let master_key = Some(SecretString::from(MASTER_KEY));
        let settings = config::LiteLlm { url: Some(url), master_key, ..config::LiteLlm::default() };
        let litellm = LiteLlm::open(&settings).unwrap().unwrap();
        let tools = Tools { vault: Some(node.vault.clone()), litellm: Some((litellm, Duration::from_secs(3_600))) };
        Scene { node, proxy, tools }
    }

    async fn sync(&self, tenant: Option<TenantId>) -> Value {
        let job = self.node.submit(Kind::LiteLlmSync, tenant).await;
        self.node.succeeded(job).await
    }

    fn credential(&self, name: &Name) -> Value {
        self.proxy.lock().unwrap().credentials.get(&name.to_string()).cloned().unwrap_or_default()
    }

    fn proxy<T>(&self, look: impl FnOnce(&mut Proxy) -> T) -> T {
        look(&mut self.proxy.lock().unwrap())
    }
}

#[tokio::test]
async fn what_a_tenant_has_is_there_and_what_it_revokes_is_gone() {
    let scene = Scene::open().await;
    let (stop, runner) = scene.node.run(&scene.tools);
    let (acme, beta) = (scene.node.tenant("acme").await, scene.node.tenant("beta").await);
    let openai = scene.node.provider(acme, "openai", ProviderKind::OpenAi).await;
    let other = scene.node.provider(beta, "groq", ProviderKind::Groq).await;
    scene.node.keep(acme, openai, "sk-canary-of-acme-1").await;
    scene.node.keep(beta, other, "sk-canary-of-beta-1").await;
    scene.proxy(|proxy| proxy.credentials.insert("the operator's own".into(), json!({ "credential_values": {} })));
    let name = Name { tenant: acme, provider: openai };
    assert_eq!(scene.sync(Some(acme)).await, json!({ "written": 1, "removed": 0 }));
    assert_eq!(scene.credential(&name)["credential_values"]["api_key"], "sk-canary-of-acme-1");
    assert_eq!(scene.credential(&Name { tenant: beta, provider: other }), Value::Null, "nobody has asked for beta");
    // Nothing has changed, so nothing is handed over.
    let before = scene.proxy(|proxy| proxy.changes);
    assert_eq!(scene.sync(Some(acme)).await, json!({ "written": 0, "removed": 0 }));
    assert_eq!(scene.proxy(|proxy| proxy.changes), before);
    assert_eq!(scene.sync(None).await, json!({ "written": 1, "removed": 0 }));
    // Another value is written over the one there is.
    scene.node.keep(acme, openai, "sk-canary-of-acme-2").await;
    scene.sync(Some(acme)).await;
    assert_eq!(scene.credential(&name)["credential_values"]["api_key"], "sk-canary-of-acme-2");
    // A revocation that LiteLLM does not take is asked for again, until it does.
    let revoke = DeleteSecret { provider: openai, expected: Expected::Any };
    scene.node.home(acme).await.change(revoke, Request::system(), untold).await.unwrap().unwrap();
    scene.proxy(|proxy| proxy.failing = true);
    let job = scene.node.submit(Kind::LiteLlmSync, Some(acme)).await;
    let failed = scene.node.until(job, |job| !job.error.is_empty()).await;
    assert!(!failed.error.contains("canary") && failed.error.contains("500"), "{}", failed.error);
    assert_ne!(scene.credential(&name), Value::Null);
    scene.proxy(|proxy| proxy.failing = false);
    assert_eq!(scene.node.succeeded(job).await, json!({ "written": 0, "removed": 1 }));
    assert_eq!(scene.credential(&name), Value::Null);
    // A tenant that is suspended or gone has nothing there; what is not ours stays.
    for (to, left) in
        [(Lifecycle::Suspended, 1), (Lifecycle::Active, 2), (Lifecycle::Suspended, 1), (Lifecycle::Archived, 1)]
    {
        scene.node.directory.shift(beta, to, Request::system()).await.unwrap();
        scene.sync(if to == Lifecycle::Archived { None } else { Some(beta) }).await;
        assert_eq!(scene.proxy(|proxy| proxy.credentials.len()), left, "{to:?}");
    }
    stop.cancel();
    runner.await.unwrap();
}

#[tokio::test]
async fn a_key_is_not_handed_over_for_a_host_that_the_policy_does_not_allow() {
    let scene = Scene::open().await;
    let (stop, runner) = scene.node.run(&scene.tools);
    let acme = scene.node.tenant("acme").await;
    let own = ProviderId(crate::clock::new_id());
    let profile = Profile {
        name: "own".into(),
        kind: ProviderKind::OpenAiCompatible,
        base_url: Some("https://llm.example.com/v1".into()),
        region: None,
        api_version: None,
        active: true,
    };
    let create = CreateProvider { id: own, profile };
    scene.node.home(acme).await.change(create, Request::system(), untold).await.unwrap().unwrap();
    scene.node.keep(acme, own, "sk-canary-of-acme-1").await;
    let name = Name { tenant: acme, provider: own };
    let egress = async |hosts: Vec<&str>| {
        let egress = hosts.into_iter().map(|host| host.parse().unwrap()).collect();
        let policy = Policy { egress, ..Policy::default() };
        let change = ReplacePolicy { policy, expected: Expected::Any };
        scene.node.home(acme).await.change(change, Request::system(), untold).await.unwrap().unwrap();
        scene.sync(Some(acme)).await
    };
    assert_eq!(scene.sync(Some(acme)).await, json!({ "written": 0, "removed": 0 }));
    assert_eq!(egress(vec!["llm.example.com"]).await, json!({ "written": 1, "removed": 0 }));
    assert_eq!(scene.credential(&name)["credential_values"]["api_key"], "sk-canary-of-acme-1");
    assert_eq!(egress(vec!["other.example.com"]).await, json!({ "written": 0, "removed": 1 }));
    assert_eq!(scene.credential(&name), Value::Null);
    stop.cancel();
    runner.await.unwrap();
}

#[test]
fn another_egress_policy_is_compared_again() {
    let books = |hosts: &[&str]| {
        let egress = hosts.iter().map(|host| host.parse().unwrap()).collect();
        ProviderBooks::of(Vec::new(), Vec::new(), Policy { egress, ..Policy::default() }, false)
    };
    assert!(same(&books(&["llm.example.com"]), &books(&["llm.example.com"])));
    assert!(!same(&books(&["llm.example.com"]), &books(&[])));
}

#[tokio::test]
async fn what_is_there_of_a_tenant_that_nobody_here_knows_stays() {
    let scene = Scene::open().await;
    let (stop, runner) = scene.node.run(&scene.tools);
    scene.node.tenant("acme").await;
    let stranger = Name { tenant: TenantId(crate::clock::new_id()), provider: ProviderId(crate::clock::new_id()) };
    let theirs = json!({ "credential_name": stranger.to_string(), "credential_values": {}, "credential_info": {} });
    scene.proxy(|proxy| {
        proxy.credentials.insert(stranger.to_string(), theirs);
        proxy.keys.insert(stranger.to_string(), ("sk-virtual-canary".into(), json!([])));
    });
    assert_eq!(scene.sync(None).await, json!({ "written": 0, "removed": 0 }));
    assert_eq!(scene.proxy(|proxy| (proxy.credentials.len(), proxy.keys.len())), (1, 1));
    stop.cancel();
    runner.await.unwrap();
}

#[tokio::test]
async fn a_virtual_key_that_is_not_kept_is_not_left_and_a_dead_one_is_not_kept() {
    let mut scene = Scene::open().await;
    let acme = scene.node.tenant("acme").await;
    let gateway = scene.node.provider(acme, "gateway", ProviderKind::LiteLlm).await;
    // The vault takes nothing.
    let kek = super::data_keys_test::Kek::default();
    kek.break_after(0);
    let sound = scene.tools.vault.replace(Vault::with(Box::new(kek), [7; 32]));
    let (stop, runner) = scene.node.run(&scene.tools);
    let job = scene.node.submit(Kind::LiteLlmSync, Some(acme)).await;
    scene.node.until(job, |job| !job.error.is_empty()).await;
    stop.cancel();
    runner.await.unwrap();
    assert!(scene.proxy(|proxy| proxy.made > 0 && proxy.keys.is_empty()));
    scene.tools.vault = sound;
    let (stop, runner) = scene.node.run(&scene.tools);
    scene.node.succeeded(job).await;
    let has_secret = async || {
        let books = scene.node.home(acme).await.providers().unwrap();
        books.get(gateway).unwrap().secret.is_some()
    };
    assert!(has_secret().await);
    // LiteLLM has lost it and makes no other: what we have opens nothing, and whoever makes one must find a newer version.
    scene.proxy(|proxy| {
        proxy.keys.clear();
        proxy.barren = true;
    });
    let job = scene.node.submit(Kind::LiteLlmSync, Some(acme)).await;
    scene.node.until(job, |job| !job.error.is_empty()).await;
    assert!(!has_secret().await);
    scene.proxy(|proxy| proxy.barren = false);
    scene.node.succeeded(job).await;
    assert!(has_secret().await && scene.proxy(|proxy| proxy.keys.len() == 1));
    stop.cancel();
    runner.await.unwrap();
}

#[tokio::test]
async fn a_virtual_key_is_made_kept_narrowed_and_taken_away() {
    let scene = Scene::open().await;
    let (stop, runner) = scene.node.run(&scene.tools);
    let acme = scene.node.tenant("acme").await;
    let gateway = scene.node.provider(acme, "gateway", ProviderKind::LiteLlm).await;
    let alias = Name { tenant: acme, provider: gateway }.to_string();
    scene.sync(Some(acme)).await;
    assert_eq!(scene.node.reveal(&scene.node.vault, acme, gateway).await, "sk-virtual-canary-000001");
    let models = async |models: Value| {
        let policy = Policy { models: serde_json::from_value(models).unwrap(), ..Policy::default() };
        let change = ReplacePolicy { policy, expected: Expected::Any };
        scene.node.home(acme).await.change(change, Request::system(), untold).await.unwrap().unwrap();
        scene.sync(Some(acme)).await;
    };
    models(json!(["gpt-4o"])).await;
    assert_eq!(scene.proxy(|proxy| proxy.keys[&alias].clone()), ("sk-virtual-canary-000001".into(), json!(["gpt-4o"])));
    // Revoked, it is another one; so it is when LiteLLM has lost it.
    let revoke = DeleteSecret { provider: gateway, expected: Expected::Any };
    scene.node.home(acme).await.change(revoke, Request::system(), untold).await.unwrap().unwrap();
    scene.sync(Some(acme)).await;
    assert_eq!(scene.node.reveal(&scene.node.vault, acme, gateway).await, "sk-virtual-canary-000002");
    scene.proxy(|proxy| proxy.keys.clear());
    scene.sync(Some(acme)).await;
    assert_eq!(scene.node.reveal(&scene.node.vault, acme, gateway).await, "sk-virtual-canary-000003");
    scene.node.directory.shift(acme, Lifecycle::Suspended, Request::system()).await.unwrap();
    scene.sync(Some(acme)).await;
    assert!(scene.proxy(|proxy| proxy.keys.is_empty()));
    stop.cancel();
    runner.await.unwrap();
}
