//! Kong's Admin API with a memory, which answers as a real one was heard to; `kong_sync` holds it against what was captured
//! (`tests/fixtures/kong`). Consumers, group memberships, and the one document of a Kong without a database.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use poem::http::{Method, StatusCode};
use poem::listener::TcpListener;
use poem::{Body, IntoResponse, Request, Response, Server};
use serde_json::{Value, json};

use super::services;

/// In every answer that may echo a secret: it must appear nowhere else.
pub const SECRET: &str = "kong-echoes-this-secret";

#[derive(Debug, Default)]
struct Memory {
    has_database: bool,
    /// By id, which is the order of the pages.
    consumers: BTreeMap<String, Value>,
    memberships: BTreeMap<String, Value>,
    document: String,
    loads: usize,
    plugins: Vec<Value>,
    /// Method and path of everything asked.
    asked: Vec<String>,
}

/// Cheap to clone; the listener lives as long as the test's runtime.
#[derive(Debug, Clone)]
pub struct Kong {
    pub url: String,
    memory: Arc<Mutex<Memory>>,
}

/// Items of a page, whatever is asked for: fewer than a real one gives, so that there are pages.
const PAGE: usize = 40;

impl Kong {
    pub async fn with_database() -> Kong {
        Kong::start(services::free_port(), true).await
    }

    pub async fn without_database() -> Kong {
        Kong::start(services::free_port(), false).await
    }

    pub async fn start(port: u16, has_database: bool) -> Kong {
        // Fails when one is installed already, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let memory = Arc::new(Mutex::new(Memory { has_database, ..Memory::default() }));
        let ours = memory.clone();
        let endpoint = poem::endpoint::make(move |mut request: Request| {
            let memory = ours.clone();
            async move {
                let body = request.take_body().into_vec().await.unwrap_or_default();
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                memory.lock().unwrap().answer(&request, &body)
            }
        });
        tokio::spawn(Server::new(TcpListener::bind(format!("127.0.0.1:{port}"))).run(endpoint));
        let kong = Kong { url: format!("http://127.0.0.1:{port}"), memory };
        super::eventually("the Admin API", || async { reqwest::get(&kong.url).await.ok() }).await;
        kong.memory.lock().unwrap().asked.clear();
        kong
    }

    /// What a page of a captured list holds is there.
    pub fn remember(&self, page: &Value) {
        let mut memory = self.memory.lock().unwrap();
        for consumer in page["data"].as_array().expect("a page") {
            memory.consumers.insert(consumer["id"].as_str().unwrap().to_owned(), consumer.clone());
        }
    }

    pub fn install(&self, plugins: Vec<Value>) {
        self.memory.lock().unwrap().plugins = plugins;
    }

    pub fn consumer(&self, id: &str) -> Option<Value> {
        self.memory.lock().unwrap().consumers.get(id).cloned()
    }

    pub fn consumers(&self) -> usize {
        self.memory.lock().unwrap().consumers.len()
    }

    /// The groups of a consumer.
    pub fn groups(&self, consumer: &str) -> Vec<String> {
        let memory = self.memory.lock().unwrap();
        let of = memory.memberships.values().filter(|membership| membership["consumer"]["id"] == consumer);
        of.map(|membership| membership["group"].as_str().unwrap().to_owned()).collect()
    }

    pub fn document(&self) -> Value {
        serde_json::from_str(&self.memory.lock().unwrap().document).unwrap_or_default()
    }

    /// As a node without a database after a restart, which went back to a file without anything.
    pub fn forget(&self) {
        self.memory.lock().unwrap().document.clear();
    }

    pub fn loads(&self) -> usize {
        self.memory.lock().unwrap().loads
    }

    /// Requests that began with this since the start.
    pub fn asked(&self, prefix: &str) -> usize {
        self.memory.lock().unwrap().asked.iter().filter(|asked| asked.starts_with(prefix)).count()
    }
}

fn answer(status: u16, body: &Value) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    if body.is_null() {
        return status.into_response();
    }
    Response::builder()
        .status(status)
        .content_type("application/json; charset=utf-8")
        .body(Body::from_json(body).unwrap())
}

fn unique(fields: Value, what: &str) -> Response {
    let message = format!("UNIQUE violation detected on '{{{what}}}'");
    answer(409, &json!({"fields": fields, "name": "unique constraint violation", "message": message, "code": 5}))
}

impl Memory {
    fn answer(&mut self, request: &Request, body: &Value) -> Response {
        let uri = request.uri();
        self.asked.push(format!("{} {uri}", request.method()));
        let query: BTreeMap<String, String> = request.params().unwrap_or_default();
        let segments: Vec<&str> = uri.path().split('/').filter(|segment| !segment.is_empty()).collect();
        let is_read = request.method() == Method::GET;
        if !is_read && !self.has_database && segments != ["config"] {
            let message = format!("cannot create or update '{}' entities when not using a database", segments[0]);
            return answer(405, &json!({"message": message, "code": 12, "name": "operation unsupported"}));
        }
        match (request.method().as_str(), &segments[..]) {
            ("GET", []) => {
                let database = if self.has_database { "postgres" } else { "off" };
                answer(
                    200,
                    &json!({"version": "3.9.1", "edition": "community", "configuration": {"database": database}}),
                )
            }
            // A digest of the document, as long as a real one's; zeros where there is none.
            ("GET", ["status"]) if !self.has_database => {
                let hash = match self.document.as_str() {
                    "" => 0,
                    text => {
                        text.bytes().fold(7_u128, |hash, byte| hash.wrapping_mul(0x0001_0000_01b3) ^ u128::from(byte))
                    }
                };
                answer(200, &json!({"configuration_hash": format!("{hash:032x}"), "server": {"connections_active": 3}}))
            }
            ("GET", ["plugins"]) => answer(200, &json!({"data": self.plugins, "next": null})),
            ("GET", ["routes"]) => answer(200, &json!({"data": [], "next": null})),
            ("POST", ["config"]) => self.load(body, query.contains_key("check_hash")),
            ("GET", ["consumers"]) => page("consumers", &self.consumers, &query),
            ("GET", ["acls"]) => page("acls", &self.memberships, &query),
            ("POST", ["consumers"]) => self.put_consumer(services::uuid(), body, 201),
            ("PUT", ["consumers", name]) => {
                let known = self.find(name);
                let mut body = body.clone();
                if uuid::Uuid::try_parse(name).is_err() {
                    body["username"] = json!(name);
                }
                let id = known.unwrap_or_else(|| {
                    if uuid::Uuid::try_parse(name).is_ok() { (*name).to_owned() } else { services::uuid() }
                });
                self.put_consumer(id, &body, 200)
            }
            ("PATCH", ["consumers", name]) => {
                let Some(id) = self.find(name) else { return missing() };
                let mut merged = self.consumers[&id].clone();
                merged.as_object_mut().unwrap().extend(body.as_object().cloned().unwrap_or_default());
                self.put_consumer(id, &merged, 200)
            }
            ("GET", ["consumers", name]) => match self.find(name) {
                Some(id) => answer(200, &self.consumers[&id]),
                None => missing(),
            },
            ("DELETE", ["consumers", name]) => {
                if let Some(id) = self.find(name) {
                    self.consumers.remove(&id);
                    self.memberships.retain(|_, membership| membership["consumer"]["id"] != id.as_str());
                }
                answer(204, &Value::Null)
            }
            (method, ["consumers", name, "acls", rest @ ..]) => {
                let Some(consumer) = self.find(name) else { return missing() };
                self.membership(method, &consumer, rest, body)
            }
            _ => missing(),
        }
    }

    fn find(&self, name: &str) -> Option<String> {
        let by_name = |(_, consumer): &(&String, &Value)| consumer["username"] == name;
        let found = self.consumers.get_key_value(name).or_else(|| self.consumers.iter().find(by_name));
        found.map(|(id, _)| id.clone())
    }

    fn put_consumer(&mut self, id: String, body: &Value, status: u16) -> Response {
        if body["username"].is_null() && body["custom_id"].is_null() {
            let what = "at least one of these fields must be non-empty: 'custom_id', 'username'";
            let message = format!("schema violation ({what})");
            let fields = json!({"@entity": [what]});
            return answer(400, &json!({"fields": fields, "name": "schema violation", "message": message, "code": 2}));
        }
        for field in ["username", "custom_id"] {
            let taken = |(other, consumer): (&String, &Value)| *other != id && consumer[field] == body[field];
            if !body[field].is_null() && self.consumers.iter().any(taken) {
                return unique(json!({ field: body[field] }), &format!("{field}={}", body[field]));
            }
        }
        let consumer = json!({"id": id, "username": body["username"], "custom_id": body["custom_id"],
            "tags": body["tags"], "created_at": 1_795_220_166, "updated_at": 1_795_220_166});
        self.consumers.insert(id, consumer.clone());
        answer(status, &consumer)
    }

    fn membership(&mut self, method: &str, consumer: &str, rest: &[&str], body: &Value) -> Response {
        let of_group = |memory: &Memory, group: &Value| {
            let same = |membership: &&Value| membership["consumer"]["id"] == consumer && membership["group"] == *group;
            memory.memberships.values().find(same).map(|membership| membership["id"].as_str().unwrap().to_owned())
        };
        let keep = |memory: &mut Memory, id: String, group: &Value, status| {
            let membership = json!({"id": id, "group": group, "consumer": {"id": consumer}, "tags": body["tags"],
                "created_at": 1_795_220_166});
            memory.memberships.insert(id, membership.clone());
            answer(status, &membership)
        };
        let taken = |group: &Value| {
            let fields = json!({"consumer": {"id": consumer}, "group": group});
            unique(fields, &format!("consumer={{id=\"{consumer}\"}},group={group}"))
        };
        match (method, rest) {
            ("GET", []) => {
                let of = |(_, membership): &(&String, &Value)| membership["consumer"]["id"] == consumer;
                let memberships = self.memberships.iter().filter(of);
                let memberships = memberships.map(|(id, membership)| (id.clone(), membership.clone())).collect();
                page(&format!("consumers/{consumer}/acls"), &memberships, &BTreeMap::new())
            }
            ("POST", []) if of_group(self, &body["group"]).is_some() => taken(&body["group"]),
            ("POST", []) => keep(self, services::uuid(), &body["group"], 201),
            ("PUT", [id]) if uuid::Uuid::try_parse(id).is_ok() => match of_group(self, &body["group"]) {
                Some(other) if other != *id => taken(&body["group"]),
                _ => keep(self, (*id).to_owned(), &body["group"], 200),
            },
            ("PUT", [group]) => {
                let id = of_group(self, &json!(group)).unwrap_or_else(services::uuid);
                keep(self, id, &json!(group), 200)
            }
            ("DELETE", [group]) => {
                let id = of_group(self, &json!(group)).unwrap_or_else(|| (*group).to_owned());
                self.memberships.remove(&id);
                answer(204, &Value::Null)
            }
            _ => missing(),
        }
    }

    fn load(&mut self, body: &Value, check_hash: bool) -> Response {
        let text = body["config"].as_str().unwrap_or_default();
        let Ok(document) = serde_json::from_str::<Value>(text) else {
            let message = format!("declarative config is invalid: {SECRET}");
            return answer(
                400,
                &json!({"message": message, "fields": {}, "code": 14,
                "name": "invalid declarative configuration"}),
            );
        };
        if check_hash && text == self.document {
            return answer(304, &Value::Null);
        }
        text.clone_into(&mut self.document);
        self.loads += 1;
        answer(201, &json!({"keyauth_credentials": {"k": {"key": SECRET}}, "consumers": document["consumers"]}))
    }
}

fn missing() -> Response {
    answer(404, &json!({"message": "Not found", "secret": SECRET}))
}

fn page(path: &str, objects: &BTreeMap<String, Value>, query: &BTreeMap<String, String>) -> Response {
    let has =
        |object: &Value, tag: &str| object["tags"].as_array().is_some_and(|tags| tags.iter().any(|known| known == tag));
    let matching = |(id, object): &(&String, &Value)| {
        let after = query.get("offset").is_none_or(|offset| *id > offset);
        let tags = query.get("tags").is_none_or(|tags| tags.split(',').all(|tag| has(object, tag)));
        let custom = query.get("custom_id").is_none_or(|custom| object["custom_id"] == custom.as_str());
        after && tags && custom
    };
    let size = query.get("size").and_then(|size| size.parse().ok()).unwrap_or(100).min(PAGE);
    let found: Vec<&Value> = objects.iter().filter(matching).map(|(_, object)| object).take(size + 1).collect();
    let mut body = json!({"data": found[..found.len().min(size)], "next": null});
    if found.len() > size {
        let offset = found[size - 1]["id"].as_str().unwrap();
        let tags = query.get("tags").map(|tags| format!("&tags={tags}")).unwrap_or_default();
        body["next"] = json!(format!("/{path}?offset={offset}{tags}&size={size}"));
        body["offset"] = json!(offset);
    }
    answer(200, &body)
}
