//! Against a real OpenID provider, `tests/openid`. Needs Node and `npm ci` in that folder, or a folder that has both
//! in `TEST_OPENID_DIR`.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::issuer_peer::settings;
use super::keyring::FETCH_EVERY;
use super::token::{Refusal, Tokens};
use crate::clock::Clock;
use crate::domain::tenant::Role;

const TENANT: &str = "018f3a5e-0000-7000-8000-00000000000a";

/// The provider, running until this is dropped.
struct Provider {
    issuer: String,
    client: reqwest::Client,
    _process: Child,
}

impl Provider {
    async fn start(clients: &Value) -> Provider {
        let here = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/openid");
        let folder = std::env::var_os("TEST_OPENID_DIR").map_or(here, PathBuf::from);
        assert!(folder.join("node_modules").exists(), "run `npm ci` in {}", folder.display());
        let mut process = Command::new("node")
            .args(["provider.mjs", "0", &clients.to_string(), "--until-stdin-ends"])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("node starts");
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let ready = tokio::time::timeout(std::time::Duration::from_secs(30), async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some(issuer) = line.strip_prefix("ready ") {
                    return issuer.to_owned();
                }
            }
            panic!("the provider ended");
        });
        let issuer = ready.await.expect("the provider is ready within 30 s");
        Provider { issuer, client: super::keyring::client().unwrap(), _process: process }
    }

    async fn token(&self, client: &str) -> String {
        let request = self.client.post(format!("{}/token", self.issuer)).basic_auth(client, Some("secret"));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let answer = request.body("grant_type=client_credentials").send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        answer["access_token"].as_str().unwrap_or_else(|| panic!("no token: {answer}")).to_owned()
    }

    async fn rotate(&self) {
        let answer = self.client.post(format!("{}/rotate", self.issuer)).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 204);
    }
}

fn client(id: &str, alg: &str, claims: Value) -> Value {
    json!({"id": id, "secret": "secret", "alg": alg, "claims": claims})
}

#[tokio::test]
async fn tokens_of_a_real_provider_are_accepted_until_it_changes_its_keys() {
    let of_tenant = |roles: Value| json!({"tenant": TENANT, "roles": roles});
    let provider = Provider::start(&json!([
        client("rsa", "RS256", of_tenant(json!(["admin"]))),
        client("ec", "ES256", of_tenant(json!("reader"))),
        client("ed", "EdDSA", of_tenant(json!(["reporter", "unknown"]))),
        client("nobody", "ES256", of_tenant(json!([]))),
        client("platform", "ES256", json!({"roles": ["platformAdmin"]})),
        client("stray", "ES256", json!({"roles": ["admin"]})),
    ]))
    .await;
    let tokens = Tokens::new(&[settings(&provider.issuer)], Clock::system()).unwrap();

    let expected =
        [("rsa", vec![Role::Admin]), ("ec", vec![Role::Reader]), ("ed", vec![Role::Reporter]), ("nobody", vec![])];
    for (client, roles) in expected {
        let identity = tokens.verify(&provider.token(client).await).await.unwrap();
        assert_eq!(identity.subject, client);
        assert_eq!(identity.tenant, Some(TENANT.parse().unwrap()));
        assert_eq!(identity.roles, roles);
    }
    let platform = tokens.verify(&provider.token("platform").await).await.unwrap();
    assert_eq!((platform.tenant, platform.roles.as_slice()), (None, [Role::PlatformAdmin].as_slice()));
    let stray = tokens.verify(&provider.token("stray").await).await.unwrap();
    assert_eq!((stray.tenant, stray.roles.len()), (None, 0), "of no tenant, and nobody the platform knows");

    let mut elsewhere = settings(&provider.issuer);
    elsewhere.audience = "urn:another-api".into();
    let another_api = Tokens::new(&[elsewhere], Clock::system()).unwrap();
    let old = provider.token("rsa").await;
    assert_eq!(another_api.verify(&old).await, Err(Refusal::Audience));

    tokens.verify(&old).await.unwrap();
    provider.rotate().await;
    tokio::time::pause();
    tokio::time::advance(FETCH_EVERY).await;
    tokio::time::resume();
    let new = provider.token("rsa").await;
    assert_eq!(tokens.verify(&new).await.unwrap().subject, "rsa", "the new key is found with the first token");
    assert_eq!(tokens.verify(&old).await, Err(Refusal::UnknownKey), "the old one is withdrawn");
}
