//! What in a Kong makes our guarantees void. Pure.
//!
//! Each finding names what is lost, not only what is set: a missing setting silently downgrades what a comparison of the
//! books can prove.

use serde::Serialize;
use serde_json::Value;

/// The first version whose rate limiting counts attempts, and whose counters can be compared.
const VERSION_MIN: (u32, u32) = (3, 4);
/// Plugins that tell Kong who calls.
const AUTHENTICATION: [&str; 7] = ["key-auth", "jwt", "basic-auth", "hmac-auth", "oauth2", "ldap-auth", "mtls-auth"];

/// A Kong, as its Admin API shows it.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    pub version: String,
    /// `off` for one that keeps its configuration in memory.
    pub database: String,
    pub plugins: Vec<Value>,
    pub routes: Vec<Value>,
    pub consumers: usize,
}

/// How much is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// Something is harder to see.
    Warning,
    /// A guarantee does not hold.
    Void,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub severity: Severity,
    pub code: &'static str,
    /// The plugin it is about, and where it stands; empty for Kong as a whole.
    pub place: String,
    pub message: &'static str,
}

/// Everything that is wrong, the worst first. `logs_url` is where the http-log plugin has to send; any address of the
/// path when absent.
#[must_use]
pub fn judge(kong: &Observed, logs_url: Option<&str>) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    findings.version(kong);
    findings.authentication(kong);
    findings.rate_limiting(kong);
    findings.cache(kong);
    findings.log(kong, logs_url);
    findings.metrics(kong);
    findings
        .0
        .sort_by(|one, other| (other.severity, one.code, &one.place).cmp(&(one.severity, other.code, &other.place)));
    findings.0
}

impl Observed {
    fn enabled<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> {
        self.plugins.iter().filter(move |plugin| plugin["name"] == name && plugin["enabled"] != false)
    }

    /// Where a plugin stands, in names where there are some.
    fn place(&self, plugin: &Value) -> String {
        let name = plugin["name"].as_str().unwrap_or_default();
        let scope = ["route", "service", "consumer"].into_iter().find_map(|kind| {
            let id = plugin[kind]["id"].as_str()?;
            let named = self.routes.iter().find(|route| kind == "route" && route["id"] == id);
            Some(format!("{kind} {}", named.and_then(|route| route["name"].as_str()).unwrap_or(id)))
        });
        format!("{name} ({})", scope.unwrap_or_else(|| "global".into()))
    }

    /// Does an authentication plugin stand before what this plugin stands before?
    fn is_authenticated(&self, plugin: &Value) -> bool {
        let same =
            |kind: &str, other: &Value| plugin[kind]["id"].is_string() && plugin[kind]["id"] == other[kind]["id"];
        let service =
            self.routes.iter().find(|route| route["id"] == plugin["route"]["id"]).map(|route| &route["service"]["id"]);
        AUTHENTICATION.iter().flat_map(|name| self.enabled(name)).any(|other| {
            let global = ["route", "service", "consumer"].iter().all(|kind| other[*kind]["id"].is_null());
            let above = other["service"]["id"].is_string() && Some(&other["service"]["id"]) == service;
            global || above || same("route", other) || same("service", other)
        })
    }
}

struct Findings(Vec<Finding>);

impl Findings {
    fn void(&mut self, code: &'static str, place: String, message: &'static str) {
        self.0.push(Finding { severity: Severity::Void, code, place, message });
    }

    fn warn(&mut self, code: &'static str, place: String, message: &'static str) {
        self.0.push(Finding { severity: Severity::Warning, code, place, message });
    }

    fn version(&mut self, kong: &Observed) {
        let mut parts = kong.version.split(['.', '-']).map(|part| part.parse::<u32>().ok());
        match (parts.next().flatten(), parts.next().flatten()) {
            (Some(major), Some(minor)) if (major, minor) >= VERSION_MIN => {}
            (Some(_), Some(_)) => self.void(
                "VERSION_TOO_OLD",
                String::new(),
                "before 3.4 the counters hold only what was allowed, and lose some of it: they cannot be compared with the ledger",
            ),
            _ => self.warn("VERSION_UNKNOWN", String::new(), "the version cannot be read: what the counters mean is unknown"),
        }
    }

    fn authentication(&mut self, kong: &Observed) {
        if !AUTHENTICATION.iter().any(|name| kong.enabled(name).next().is_some()) {
            self.void(
                "NO_AUTHENTICATION",
                String::new(),
                "without an authentication plugin no consumer is ever known: suspending a tenant here has no effect, and a tenant is whatever the client says",
            );
            return;
        }
        let denies = |plugin: &&Value| {
            plugin["config"]["deny"].as_array().is_some_and(|groups| groups.iter().any(|group| group == "suspended"))
        };
        if !kong.enabled("acl").any(|plugin| denies(&plugin)) {
            self.void(
                "SUSPENDED_NOT_DENIED",
                String::new(),
                "no acl plugin denies the group suspended: suspending a tenant here has no effect",
            );
        }
    }

    fn rate_limiting(&mut self, kong: &Observed) {
        let mut any = false;
        for plugin in kong.enabled("rate-limiting") {
            any = true;
            let (config, place) = (&plugin["config"], kong.place(plugin));
            if config["policy"] != "redis" {
                self.void(
                    "POLICY_NOT_REDIS",
                    place.clone(),
                    "the counters of the policies local and cluster cannot be read by us: nothing to compare",
                );
            }
            if config["sync_rate"].as_f64().is_some_and(|rate| rate > 0.0) {
                self.void(
                    "SYNC_RATE",
                    place.clone(),
                    "with sync_rate above zero the counters are late, wrong or without end",
                );
            }
            if config["limit_by"] == "header" && !kong.is_authenticated(plugin) {
                self.void(
                    "HEADER_WITHOUT_AUTHENTICATION",
                    place.clone(),
                    "the tenant is counted by a header that any client may set, and nobody is authenticated",
                );
            } else if config["limit_by"] == "header" {
                self.warn(
                    "HEADER_NOT_BOUND",
                    place.clone(),
                    "the header that is counted by is the client's unless something overwrites it from the consumer; limit by consumer, or see the kit",
                );
            }
            if config["fault_tolerant"] != false && config["hide_client_headers"] == true {
                self.void(
                    "FAIL_OPEN_UNSEEN",
                    place.clone(),
                    "requests pass when Redis is down, and without the headers nothing tells which",
                );
            }
            if config["day"].is_null() {
                self.warn(
                    "NO_DAY_METER",
                    place.clone(),
                    "without a day limit (a huge one will do) the counters vanish each minute or hour, and the last requests with them",
                );
            }
            if config["limit_by"] == "credential" && kong.database == "off" {
                self.void(
                    "CREDENTIAL_IDS_CHANGE",
                    place,
                    "without a database the ids of credentials change with each load: so do the counters",
                );
            }
        }
        if !any {
            self.warn("NO_RATE_LIMITING", String::new(), "nothing is counted in Redis: one of the books is missing");
        }
    }

    fn cache(&mut self, kong: &Observed) {
        for plugin in kong.enabled("proxy-cache") {
            let methods = plugin["config"]["request_method"].as_array().into_iter().flatten();
            if methods.filter_map(Value::as_str).any(|method| method.eq_ignore_ascii_case("POST")) {
                self.void(
                    "CACHE_ON_POST",
                    kong.place(plugin),
                    "the cache's key has no request body: another prompt gets the same completion, and nobody counts it",
                );
            }
        }
    }

    fn log(&mut self, kong: &Observed, logs_url: Option<&str>) {
        let is_ours = |plugin: &&Value| {
            let endpoint = plugin["config"]["http_endpoint"].as_str().unwrap_or_default().trim_end_matches('/');
            logs_url.map_or_else(
                || endpoint.ends_with("/v1/gateway/kong/logs"),
                |url| endpoint == url.trim_end_matches('/'),
            )
        };
        let mut logs = kong.enabled("http-log").peekable();
        if logs.peek().is_none() {
            self.void("NO_LOG", String::new(), "without http-log no drift can be explained, and no fail-open is seen");
        } else {
            let ours: Vec<&Value> = kong.enabled("http-log").filter(|plugin| is_ours(plugin)).collect();
            match ours[..] {
                [] => {
                    for plugin in logs {
                        self.void(
                            "LOG_ELSEWHERE",
                            kong.place(plugin),
                            "http-log does not send to us: no drift can be explained",
                        );
                    }
                }
                _ if ours.iter().any(|plugin| kong.place(plugin).ends_with("(global)")) => {}
                _ => self.warn("LOG_NOT_GLOBAL", kong.place(ours[0]), "requests outside of it are not logged to us"),
            }
        }
    }

    fn metrics(&mut self, kong: &Observed) {
        let Some(first) = kong.enabled("prometheus").next() else {
            return self.void(
                "NO_METRICS",
                String::new(),
                "without prometheus there is no cumulative counter to compare",
            );
        };
        let on = |name: &str| kong.enabled("prometheus").any(|plugin| plugin["config"][name] == true);
        if !on("per_consumer") {
            self.void(
                "METRICS_WITHOUT_CONSUMER",
                kong.place(first),
                "without per_consumer the counters tell no tenants apart",
            );
        }
        if !on("status_code_metrics") {
            self.void(
                "METRICS_WITHOUT_STATUS",
                kong.place(first),
                "without status_code_metrics requests are not counted at all",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(kong: &Observed) -> Vec<&'static str> {
        judge(kong, None).iter().map(|finding| finding.code).collect()
    }

    /// As the kit in `config/kong` sets it.
    fn good() -> Observed {
        Observed {
            version: "3.9.1".into(),
            database: "postgres".into(),
            routes: vec![json!({"id": "r-1", "name": "llm", "service": {"id": "s-1"}})],
            consumers: 3,
            plugins: vec![
                json!({"name": "key-auth", "enabled": true, "config": {}}),
                json!({"name": "acl", "enabled": true, "config": {"deny": ["suspended"]}}),
                json!({"name": "rate-limiting", "enabled": true, "service": {"id": "s-1"}, "config": {"policy": "redis",
                    "sync_rate": -1, "limit_by": "consumer", "day": 1_000_000_000, "fault_tolerant": true,
                    "hide_client_headers": false}}),
                json!({"name": "http-log", "enabled": true,
                    "config": {"http_endpoint": "http://platform-api:8082/v1/gateway/kong/logs"}}),
                json!({"name": "prometheus", "enabled": true,
                    "config": {"per_consumer": true, "status_code_metrics": true}}),
            ],
        }
    }

    /// `good`, with one setting of one plugin changed; `null` takes the plugin away.
    fn with(name: &str, change: Value) -> Observed {
        let mut kong = good();
        let at = kong.plugins.iter().position(|plugin| plugin["name"] == name).unwrap();
        match change {
            Value::Object(settings) => {
                let config = kong.plugins[at]["config"].as_object_mut().unwrap();
                config.extend(settings);
            }
            _ => drop(kong.plugins.remove(at)),
        }
        kong
    }

    #[test]
    fn a_kong_as_the_kit_sets_it_is_content() {
        assert_eq!(judge(&good(), None), []);
        assert_eq!(judge(&good(), Some("http://platform-api:8082/v1/gateway/kong/logs")), []);
    }

    #[test]
    fn each_missing_setting_has_its_finding() {
        for (name, change, expected) in [
            ("acl", json!({"deny": ["others"]}), vec!["SUSPENDED_NOT_DENIED"]),
            ("acl", Value::Null, vec!["SUSPENDED_NOT_DENIED"]),
            ("key-auth", Value::Null, vec!["NO_AUTHENTICATION"]),
            ("rate-limiting", json!({"policy": "local"}), vec!["POLICY_NOT_REDIS"]),
            ("rate-limiting", json!({"policy": "cluster"}), vec!["POLICY_NOT_REDIS"]),
            ("rate-limiting", json!({"sync_rate": 0.5}), vec!["SYNC_RATE"]),
            ("rate-limiting", json!({"hide_client_headers": true}), vec!["FAIL_OPEN_UNSEEN"]),
            ("rate-limiting", json!({"hide_client_headers": true, "fault_tolerant": false}), vec![]),
            ("rate-limiting", json!({"limit_by": "header"}), vec!["HEADER_NOT_BOUND"]),
            ("rate-limiting", json!({"day": null}), vec!["NO_DAY_METER"]),
            ("rate-limiting", Value::Null, vec!["NO_RATE_LIMITING"]),
            ("http-log", Value::Null, vec!["NO_LOG"]),
            ("http-log", json!({"http_endpoint": "http://elk:9200"}), vec!["LOG_ELSEWHERE"]),
            ("prometheus", Value::Null, vec!["NO_METRICS"]),
            ("prometheus", json!({"per_consumer": false}), vec!["METRICS_WITHOUT_CONSUMER"]),
            ("prometheus", json!({"status_code_metrics": false}), vec!["METRICS_WITHOUT_STATUS"]),
        ] {
            assert_eq!(found(&with(name, change.clone())), expected, "{name} {change}");
        }
        let elsewhere = judge(&good(), Some("http://other:8082/v1/gateway/kong/logs"));
        assert_eq!(elsewhere[0].code, "LOG_ELSEWHERE");
    }

    #[test]
    fn a_version_before_attempts_were_counted_voids_the_comparison() {
        for (version, expected) in [
            ("3.3.1", vec!["VERSION_TOO_OLD"]),
            ("2.8.5.0-enterprise", vec!["VERSION_TOO_OLD"]),
            ("3.4.0", vec![]),
            ("3.10.0-dev", vec![]),
            ("4.0", vec![]),
            ("", vec!["VERSION_UNKNOWN"]),
        ] {
            assert_eq!(found(&Observed { version: version.into(), ..good() }), expected, "{version:?}");
        }
    }

    #[test]
    fn a_plugin_that_is_switched_off_is_none() {
        let mut kong = good();
        kong.plugins[0]["enabled"] = json!(false);
        assert_eq!(found(&kong), ["NO_AUTHENTICATION"]);
    }

    /// The captured run's configuration, as its Admin API shows it: per-route limits by a header, a cache on POST, a log
    /// that goes elsewhere.
    #[test]
    fn the_captured_configuration_has_what_was_found_in_it() {
        let limits = |route: &str, day: Value| {
            json!({"name": "rate-limiting", "enabled": true, "route": {"id": route}, "config": {"policy": "redis",
                "sync_rate": -1, "limit_by": "header", "header_name": "X-Tenant-Id", "minute": 60, "day": day,
                "fault_tolerant": true, "hide_client_headers": false}})
        };
        let keys = |route: &str| json!({"name": "key-auth", "enabled": true, "route": {"id": route}, "config": {}});
        let route = |id: &str, name: &str| json!({"id": id, "name": name, "service": {"id": "s"}});
        let kong = Observed {
            version: "3.9.1".into(),
            database: "off".into(),
            routes: vec![route("gpt", "llm.openai.gpt-5"), route("claude", "llm.anthropic.claude-sonnet-4-5")],
            consumers: 3,
            plugins: vec![
                keys("gpt"),
                keys("claude"),
                limits("gpt", json!(1_000_000_000)),
                limits("claude", Value::Null),
                json!({"name": "proxy-cache", "enabled": true, "route": {"id": "claude"},
                       "config": {"request_method": ["POST", "GET"], "vary_headers": ["X-Tenant-Id"]}}),
                json!({"name": "prometheus", "config": {"per_consumer": true, "status_code_metrics": true}}),
                json!({"name": "http-log", "config": {"http_endpoint": "http://127.0.0.1:8082/v1/ingest/kong"}}),
            ],
        };
        let told: Vec<(&str, String)> =
            judge(&kong, None).into_iter().map(|finding| (finding.code, finding.place)).collect();
        let expected = [
            ("CACHE_ON_POST", "proxy-cache (route llm.anthropic.claude-sonnet-4-5)"),
            ("LOG_ELSEWHERE", "http-log (global)"),
            ("SUSPENDED_NOT_DENIED", ""),
            ("HEADER_NOT_BOUND", "rate-limiting (route llm.anthropic.claude-sonnet-4-5)"),
            ("HEADER_NOT_BOUND", "rate-limiting (route llm.openai.gpt-5)"),
            ("NO_DAY_METER", "rate-limiting (route llm.anthropic.claude-sonnet-4-5)"),
        ];
        assert_eq!(told, expected.map(|(code, place)| (code, place.to_owned())));
        // The reference has no authentication at all: then the header is anybody's.
        let mut reference = kong;
        reference.plugins.retain(|plugin| plugin["name"] != "key-auth");
        let told = found(&reference);
        assert_eq!(told.iter().filter(|code| **code == "HEADER_WITHOUT_AUTHENTICATION").count(), 2);
        assert!(told.contains(&"NO_AUTHENTICATION") && !told.contains(&"SUSPENDED_NOT_DENIED"), "{told:?}");
    }
}
