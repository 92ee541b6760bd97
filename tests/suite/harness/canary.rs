//! Secrets that are recognised wherever they turn up, in whatever form, and everything in which to look for them.

use std::collections::BTreeSet;
use std::path::Path;

use async_nats::jetstream;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use futures_util::TryStreamExt;
use memchr::memmem;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde_json::Value;

use super::bus;
use super::database::Database;

/// Shorter ones would be found by chance.
const SHORTEST: usize = 12;

/// Something that was kept or said, and where.
#[derive(Debug)]
pub struct Kept {
    pub place: String,
    pub bytes: Vec<u8>,
}

impl Kept {
    pub fn new(place: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Kept {
        Kept { place: place.into(), bytes: bytes.into() }
    }
}

#[derive(Debug)]
struct Canary {
    what: String,
    /// What the form is called, and how it reads.
    forms: Vec<(&'static str, Vec<u8>)>,
}

/// The secrets that are looked for.
#[derive(Debug, Default)]
pub struct Canaries {
    known: Vec<Canary>,
}

impl Canaries {
    /// `what` is what a finding calls it: never the secret itself.
    pub fn add(&mut self, what: &str, secret: &str) {
        self.add_bytes(what, secret.as_bytes());
    }

    /// A secret that is no text.
    pub fn add_bytes(&mut self, what: &str, secret: &[u8]) {
        assert!(secret.len() >= SHORTEST, "{what}: too short to be looked for");
        self.known.push(Canary { what: what.to_owned(), forms: forms(secret) });
    }

    pub fn count(&self) -> usize {
        self.known.len()
    }

    /// What is found, as `place: what, form`.
    pub fn found_in(&self, kept: &[Kept]) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for Canary { what, forms } in &self.known {
            for (form, needle) in forms {
                let finder = memmem::Finder::new(needle);
                let places = kept.iter().filter(|one| finder.find(&one.bytes).is_some());
                found.extend(places.map(|one| format!("{}: {what}, {form}", one.place)));
            }
        }
        found
    }
}

/// How a secret may read: as it is, or as what carries it writes it.
fn forms(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut forms: Vec<(&'static str, Vec<u8>)> = vec![("plain", secret.to_vec())];
    let mut also = |name, form: String| {
        if forms.iter().all(|(_, known)| known != form.as_bytes()) {
            forms.push((name, form.into_bytes()));
        }
    };
    if let Ok(text) = std::str::from_utf8(secret) {
        let quoted = Value::from(text).to_string();
        let json = &quoted[1..quoted.len() - 1];
        also("JSON", json.to_owned());
        also("JSON with its slashes escaped", json.replace('/', "\\/"));
        also("JSON within JSON", json.replace('\\', "\\\\").replace('"', "\\\""));
    }
    let encoded = percent_encode(secret, NON_ALPHANUMERIC).to_string();
    let unreserved = [("%2D", "-"), ("%2E", "."), ("%5F", "_"), ("%7E", "~")];
    also("URL-encoded", unreserved.iter().fold(encoded.clone(), |text, (code, sign)| text.replace(code, sign)));
    also("URL-encoded throughout", encoded);
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    also("hex in upper case", hex.to_uppercase());
    also("hex", hex);
    // Wherever it begins in what was encoded: the characters that its neighbours have no part in.
    for (shift, from) in [(0, 0), (1, 2), (2, 3)] {
        let shifted = [&vec![0; shift], secret].concat();
        let whole = shifted.len() * 8 / 6;
        also("base64", STANDARD_NO_PAD.encode(&shifted)[from..whole].to_owned());
        also("base64 for URLs", URL_SAFE_NO_PAD.encode(&shifted)[from..whole].to_owned());
    }
    forms
}

/// Every value of every table of a database.
pub async fn database(name: &str, database: &mut Database) -> Vec<Kept> {
    let mut kept = Vec::new();
    for column in database.columns().await {
        let place = format!("{name} {}.{}", column.table, column.name);
        kept.extend(database.bytes_of(&column).await.into_iter().map(|value| Kept::new(&place, value)));
    }
    kept
}

/// Every stream of a NATS server, what it says of itself and each of its messages.
pub async fn streams(url: &str) -> Vec<Kept> {
    let client = bus::connect(url).await.expect("NATS runs");
    let jetstream = jetstream::new(client);
    let names: Vec<String> = jetstream.stream_names().try_collect().await.expect("the names of the streams");
    let mut kept = Vec::new();
    for name in names {
        let mut stream = jetstream.get_stream(&name).await.expect("it was named");
        let info = stream.info().await.expect("what it says of itself").clone();
        kept.push(Kept::new(format!("stream {name}"), format!("{info:?}")));
        let consumers: Vec<jetstream::consumer::Info> = stream.consumers().try_collect().await.expect("its consumers");
        kept.push(Kept::new(format!("consumers of {name}"), format!("{consumers:?}")));
        for sequence in info.state.first_sequence..=info.state.last_sequence {
            let Ok(message) = stream.get_raw_message(sequence).await else { continue };
            let place = format!("message of {name}");
            kept.push(Kept::new(&place, format!("{} {:?}", message.subject, message.headers)));
            kept.push(Kept::new(place, message.payload.to_vec()));
        }
    }
    kept
}

/// Every key of a Redis, and all that it leads to.
pub async fn redis(url: &str) -> Vec<Kept> {
    let mut connection = super::services::redis_at(url).await;
    let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.expect("its keys");
    let mut kept = Vec::new();
    for key in keys {
        let kind: String = redis::cmd("TYPE").arg(&key).query_async(&mut connection).await.expect("a type");
        let mut command = match kind.as_str() {
            "string" => redis::cmd("GET"),
            "hash" => redis::cmd("HGETALL"),
            "set" => redis::cmd("SMEMBERS"),
            "list" => redis::cmd("LRANGE"),
            "zset" => redis::cmd("ZRANGE"),
            "stream" => redis::cmd("XRANGE"),
            // It went away.
            "none" => continue,
            other => panic!("Redis keeps a {other}"),
        };
        command.arg(&key);
        match kind.as_str() {
            "list" => drop(command.arg(0).arg(-1)),
            "zset" => drop(command.arg(0).arg(-1).arg("WITHSCORES")),
            "stream" => drop(command.arg("-").arg("+")),
            _ => (),
        }
        let place = format!("Redis {}", String::from_utf8_lossy(&key).split(':').next().unwrap_or_default());
        let value: redis::Value = command.query_async(&mut connection).await.expect("its value");
        kept.push(Kept::new(&place, key));
        parts(&place, value, &mut kept);
    }
    kept
}

fn parts(place: &str, value: redis::Value, kept: &mut Vec<Kept>) {
    match value {
        redis::Value::BulkString(bytes) => kept.push(Kept::new(place, bytes)),
        redis::Value::Array(values) | redis::Value::Set(values) => {
            values.into_iter().for_each(|value| parts(place, value, kept));
        }
        redis::Value::Map(pairs) => pairs.into_iter().for_each(|(name, value)| {
            parts(place, name, kept);
            parts(place, value, kept);
        }),
        other => kept.push(Kept::new(place, format!("{other:?}"))),
    }
}

/// Every file below a folder, except those of these names.
pub fn files(folder: &Path, except: &[&str]) -> Vec<Kept> {
    let mut kept = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder of ours") {
            let path = entry.expect("a readable folder").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() {
                folders.push(path);
            } else if !except.contains(&name) {
                let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                kept.push(Kept::new(format!("file {name}"), bytes));
            }
        }
    }
    kept
}

#[test]
fn a_secret_is_found_in_each_of_its_forms_and_nothing_else_is() {
    let secret = "c4n/ry\"+\\7-äz-0123";
    let mut canaries = Canaries::default();
    canaries.add("the secret", secret);
    let text = Value::from(secret).to_string();
    let doubled = Value::from(text.as_str()).to_string();
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut written = vec![
        secret.to_owned(),
        format!("{:?}", Some(secret)),
        text.clone(),
        doubled,
        text.replace('/', "\\/"),
        format!("\\x{hex}"),
        hex.to_uppercase(),
        percent_encode(secret.as_bytes(), NON_ALPHANUMERIC).to_string(),
        "c4n%2Fry%22%2B%5C7-%C3%A4z-0123".to_owned(),
    ];
    for (before, after) in [("", ""), ("u:", "!"), ("user", "é"), ("Basic", "")] {
        let all = format!("{before}{secret}{after}");
        written.extend([STANDARD_NO_PAD.encode(&all), URL_SAFE_NO_PAD.encode(&all)]);
    }
    for one in &written {
        let kept = Kept::new("here", format!("before {one} after"));
        assert!(!canaries.found_in(&[kept]).is_empty(), "{one}");
    }
    let innocent = Kept::new("here", "c4n/ry and the like, 0123");
    assert_eq!(canaries.found_in(&[innocent]), BTreeSet::new());
}
