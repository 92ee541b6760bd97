//! A real OpenID provider (`tests/openid`), and a browser that goes between it and the daemon.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;

use reqwest::{Client, Method, StatusCode, Url};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::PATIENCE;
use super::api::Answer;
use super::daemon::project;

/// The provider, running until this is dropped.
pub struct Provider {
    pub issuer: String,
    _process: Child,
}

impl Provider {
    pub async fn start(clients: &Value) -> Provider {
        let folder = std::env::var_os("TEST_OPENID_DIR").map_or(project().join("tests/openid"), PathBuf::from);
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
        let ready = tokio::time::timeout(PATIENCE, async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some(issuer) = line.strip_prefix("ready ") {
                    return issuer.to_owned();
                }
            }
            panic!("the provider ended");
        });
        Provider { issuer: ready.await.expect("the provider is ready"), _process: process }
    }
}

/// As much of a browser as matters: it keeps cookies by place, and goes where it is sent.
pub struct Browser {
    pub http: Client,
    jars: BTreeMap<String, BTreeMap<String, String>>,
}

impl Browser {
    pub fn new() -> Browser {
        let http = Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().timeout(PATIENCE);
        Browser { http: http.build().expect("a plain client"), jars: BTreeMap::new() }
    }

    pub fn cookie(&self, base: &str, name: &str) -> String {
        self.jars.get(&place(base)).and_then(|jar| jar.get(name)).cloned().unwrap_or_default()
    }

    pub async fn send(&mut self, method: Method, url: &str, headers: &[(&str, &str)], body: String) -> Answer {
        let jar = self.jars.entry(place(url)).or_default();
        let cookies: Vec<String> = jar.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut request = self.http.request(method, url).body(body).header("accept", "*/*");
        if !cookies.is_empty() {
            request = request.header("cookie", cookies.join("; "));
        }
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let response = request.send().await.unwrap_or_else(|error| panic!("{url}: {error:?}"));
        for line in response.headers().get_all("set-cookie") {
            let line = line.to_str().unwrap();
            let (name, value) = line.split(';').next().unwrap().split_once('=').unwrap();
            match line.contains("Max-Age=0") || line.contains("1970") {
                true => drop(jar.remove(name)),
                false => drop(jar.insert(name.to_owned(), value.to_owned())),
            }
        }
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Answer { status, headers, text, body }
    }

    pub async fn get(&mut self, url: &str) -> Answer {
        self.send(Method::GET, url, &[], String::new()).await
    }

    /// What a page of ours would send: with the token that its scripts can read.
    pub async fn change(&mut self, base: &str, method: Method, path: &str, body: &Value) -> Answer {
        let token = self.cookie(base, "platform-csrf");
        let headers = [("x-csrf-token", token.as_str()), ("origin", base), ("content-type", "application/json")];
        self.send(method, &format!("{base}{path}"), &headers, body.to_string()).await
    }

    /// Follows redirects up to the one that `is_last`; answers its address.
    pub async fn follow(&mut self, from: &str, is_last: impl Fn(&str) -> bool) -> String {
        let mut url = from.to_owned();
        for _ in 0..10 {
            let answer = self.get(&url).await;
            let redirected = StatusCode::from_u16(answer.status).unwrap().is_redirection();
            assert!(redirected, "{url}: {} {}", answer.status, answer.text);
            url = Url::parse(&url).unwrap().join(answer.header("location")).unwrap().to_string();
            if is_last(&url) {
                return url;
            }
        }
        panic!("sent about for ever: {url}");
    }

    /// Goes to log in at the daemon, and comes back; the callback's answer.
    pub async fn log_in(&mut self, base: &str) -> Answer {
        let callback = self.way_back(base).await;
        self.get(&callback).await
    }

    /// The address at which the provider sends whoever has logged in there back to the daemon.
    pub async fn way_back(&mut self, base: &str) -> String {
        let begin = format!("{base}/v1/auth/login?returnTo=/console");
        self.follow(&begin, |url| url.starts_with(&format!("{base}/v1/auth/callback"))).await
    }

    /// Puts a cookie where somebody else may have put it.
    pub fn plant(&mut self, base: &str, name: &str, value: &str) {
        self.jars.entry(place(base)).or_default().insert(name.to_owned(), value.to_owned());
    }
}

fn place(url: &str) -> String {
    Url::parse(url).unwrap().origin().ascii_serialization()
}
