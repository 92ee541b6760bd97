//! A tenant, spoken to with its first admin key.

use reqwest::Method;
use serde_json::{Value, json};

use super::api::{Answer, Api};
use super::events::Envelope;

#[derive(Debug, Clone)]
pub struct Tenant {
    pub id: String,
    pub api: Api,
    pub key_id: String,
    /// What onboarding answered about it.
    pub document: Value,
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Receipt {
    pub accepted: i64,
    pub duplicates: i64,
    pub conflicts: i64,
    /// The codes of what was refused, in order.
    pub rejected: Vec<(i64, String)>,
}

impl Receipt {
    pub fn read(body: &Value) -> Receipt {
        let number = |name: &str| body[name].as_i64().unwrap_or_else(|| panic!("no {name} in {body}"));
        let one = |item: &Value| (item["index"].as_i64().unwrap(), item["code"].as_str().unwrap().to_owned());
        let rejected = body["rejected"].as_array().unwrap_or_else(|| panic!("no list in {body}")).iter().map(one);
        Receipt {
            accepted: number("accepted"),
            duplicates: number("duplicates"),
            conflicts: number("conflicts"),
            rejected: rejected.collect(),
        }
    }

    pub fn accepted(count: i64) -> Receipt {
        Receipt { accepted: count, ..Receipt::default() }
    }

    pub fn duplicates(count: i64) -> Receipt {
        Receipt { duplicates: count, ..Receipt::default() }
    }

    pub fn conflicts(count: i64) -> Receipt {
        Receipt { conflicts: count, ..Receipt::default() }
    }
}

impl Tenant {
    /// From the answer to onboarding.
    pub fn of(platform: &Api, body: &Value) -> Tenant {
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("not onboarded: {body}")).to_owned();
        Tenant {
            id: text(&body["tenant"]["id"]),
            key_id: text(&body["adminApiKey"]["id"]),
            api: platform.with(&text(&body["adminApiKey"]["key"])),
            document: body["tenant"].clone(),
        }
    }

    /// The same tenant, spoken to at another node.
    pub fn at(&self, node: &super::Daemon) -> Tenant {
        Tenant { api: node.platform.with(self.api.credential()), ..self.clone() }
    }

    pub fn event(&self) -> Envelope {
        Envelope::new(&self.id)
    }

    // ---- what it does ----

    pub async fn post_events(&self, events: &[Envelope]) -> Receipt {
        let body = Value::Array(events.iter().map(Envelope::json).collect());
        Receipt::read(&self.api.patiently(Method::POST, "/v1/usage/events", Some(&body)).await.ok())
    }

    pub async fn put_quotas(&self, quotas: Value) -> Vec<Value> {
        let answer = self.try_put_quotas(quotas).await.ok();
        answer["quotas"].as_array().expect("a list").clone()
    }

    pub async fn try_put_quotas(&self, quotas: Value) -> Answer {
        let body = json!({"quotas": quotas});
        self.api.patiently(Method::PUT, &format!("/v1/quotas/{}", self.id), Some(&body)).await
    }

    /// A key of its own with this role: its public id, and the caller it makes.
    pub async fn issue_key(&self, role: &str) -> (String, Api) {
        let body = json!({"name": format!("{role} key"), "role": role});
        let answer = self.api.patiently(Method::POST, &format!("/v1/tenants/{}/api-keys", self.id), Some(&body)).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{}", answer.text)).to_owned();
        (text(&answer.body["apiKey"]["id"]), self.api.with(&text(&answer.body["key"])))
    }

    // ---- what it sees ----

    pub async fn quotas(&self) -> Vec<Value> {
        let answer = self.read(&format!("/v1/quotas/{}", self.id)).await;
        answer["quotas"].as_array().expect("a list").clone()
    }

    pub async fn decision(&self, query: &str) -> Value {
        self.read(&format!("/v1/quotas/{}/decision{query}", self.id)).await
    }

    pub async fn alerts(&self) -> Vec<Value> {
        self.api.pages(&format!("/v1/quotas/{}/alerts", self.id), 50).await
    }

    pub async fn report(&self, query: &str) -> Vec<Value> {
        let answer = self.read(&format!("/v1/tenants/{}/usage{query}", self.id)).await;
        answer["rows"].as_array().unwrap_or_else(|| panic!("no rows in {answer}")).clone()
    }

    pub async fn ledger(&self) -> Vec<Value> {
        self.api.pages(&format!("/v1/tenants/{}/usage/events", self.id), 500).await
    }

    pub async fn audit(&self) -> Vec<Value> {
        self.api.pages("/v1/audit", 200).await
    }

    pub async fn verify(&self) -> Value {
        self.read("/v1/audit/verify").await
    }

    /// The chain recomputes from its first record.
    #[track_caller]
    pub fn holds(verdict: &Value) {
        assert!(verdict["holds"] == true && verdict["firstBroken"].is_null(), "A1: {verdict}");
    }

    pub async fn quarantine(&self) -> Vec<Value> {
        self.api.pages("/v1/quarantine", 100).await
    }

    async fn read(&self, path: &str) -> Value {
        self.api.patiently(Method::GET, path, None).await.ok()
    }
}
