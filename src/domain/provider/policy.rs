//! Where a tenant may go with its providers: hosts beside each kind's own, models, and who steps in for whom.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::domain::ids::ProviderId;
use crate::domain::organization::Flaw;
use crate::domain::time::Timestamp;

/// Entries of each list.
pub const ENTRIES_MAX: usize = 100;
/// Bytes of a model's name.
const MODEL_BYTES_MAX: usize = 128;
/// What a gateway is told of a request for a model that its tenant may not use.
pub const MODEL_NOT_ALLOWED: &str = "MODEL_NOT_ALLOWED";
/// Tries of one request, over all providers.
const ATTEMPTS_MAX: u32 = 10;
const HTTPS: u16 = 443;

/// A tenant's policy. Lists that are empty are: no further hosts, every model, no fail-over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    pub egress: Vec<HostRule>,
    pub models: Models,
    pub failover: Failover,
    /// 0 for the one that each tenant begins with.
    pub version: i64,
    pub updated_at: Timestamp,
}

/// Who steps in for whom, and when. Kept for gateways; nothing here sends requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failover {
    /// In this order.
    pub providers: Vec<ProviderId>,
    /// What makes the next one step in.
    pub on: Vec<Cause>,
    /// Tries of one request, over all providers; 0 without fail-over.
    pub attempts_max: u32,
}

/// What makes the next provider step in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Cause {
    Timeout,
    Unreachable,
    RateLimited,
    ServerError,
}

impl Cause {
    pub const ALL: [Cause; 4] = [Cause::Timeout, Cause::Unreachable, Cause::RateLimited, Cause::ServerError];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Cause::Timeout => "timeout",
            Cause::Unreachable => "unreachable",
            Cause::RateLimited => "rateLimited",
            Cause::ServerError => "serverError",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Cause> {
        Cause::ALL.into_iter().find(|cause| cause.name() == name)
    }
}

impl Policy {
    /// Everything that is wrong with it, given who the providers are.
    #[must_use]
    pub fn flaws(&self, knows: impl Fn(ProviderId) -> bool) -> Vec<Flaw> {
        let mut flaws = Vec::new();
        for (pointer, length) in [
            ("/egressHosts", self.egress.len()),
            ("/models", self.models.len()),
            ("/failover/providers", self.failover.providers.len()),
        ] {
            if length > ENTRIES_MAX {
                flaws.push(Flaw::new(pointer, "must have at most 100 entries"));
            }
        }
        for (index, model) in self.models.iter().enumerate() {
            let name = model.strip_suffix('*').unwrap_or(model);
            let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'*');
            if model.is_empty() || model.len() > MODEL_BYTES_MAX || !plain {
                let message = "must be 1 to 128 visible ASCII characters, with * at the end alone";
                flaws.push(Flaw::new(format!("/models/{index}"), message));
            }
        }
        let order = &self.failover.providers;
        for (index, provider) in order.iter().enumerate() {
            if !knows(*provider) {
                flaws.push(Flaw::new(format!("/failover/providers/{index}"), "the tenant has no such provider"));
            } else if order[..index].contains(provider) {
                flaws.push(Flaw::new(format!("/failover/providers/{index}"), "is there twice"));
            }
        }
        if self.failover.attempts_max > ATTEMPTS_MAX {
            flaws.push(Flaw::new("/failover/attemptsMax", "must be at most 10"));
        }
        flaws
    }

    /// May this model be used?
    #[must_use]
    pub fn allows_model(&self, model: &str) -> bool {
        self.models.cover(model)
    }

    /// May a key be sent to this host and port, though it is not its kind's own?
    #[must_use]
    pub fn allows_host(&self, host: &str, port: u16) -> bool {
        self.egress.iter().any(|rule| rule.covers(host, port))
    }

    /// The policy without a provider that is going; `None` when it does not know it.
    #[must_use]
    pub fn without(&self, provider: ProviderId, now: Timestamp) -> Option<Policy> {
        self.failover.providers.contains(&provider).then(|| {
            let mut policy = Policy { version: self.version + 1, updated_at: now, ..self.clone() };
            policy.failover.providers.retain(|one| *one != provider);
            policy
        })
    }
}

/// Models by name, or `start*` for all that begin so; every model when there is none. Every decision of a gateway asks, so the
/// list is laid out for it when it is made: a question is two searches, however long the list is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<String>", into = "Vec<String>")]
pub struct Models {
    /// As they were given.
    listed: Vec<String>,
    /// Sorted.
    names: Vec<String>,
    /// Sorted, none of them the beginning of another: the one that a name begins with is the last that is not after it.
    starts: Vec<String>,
}

impl Models {
    fn cover(&self, model: &str) -> bool {
        let named = || self.names.binary_search_by(|name| name.as_str().cmp(model)).is_ok();
        let last = || self.starts.partition_point(|start| start.as_str() <= model).checked_sub(1);
        self.listed.is_empty() || named() || last().is_some_and(|at| model.starts_with(&self.starts[at]))
    }
}

impl From<Vec<String>> for Models {
    fn from(listed: Vec<String>) -> Models {
        let (mut names, mut starts): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
        for model in &listed {
            match model.strip_suffix('*') {
                Some(start) => starts.push(start.to_owned()),
                None => names.push(model.clone()),
            }
        }
        names.sort_unstable();
        starts.sort_unstable();
        starts.dedup_by(|longer, start| longer.starts_with(start.as_str()));
        Models { listed, names, starts }
    }
}

impl From<Models> for Vec<String> {
    fn from(models: Models) -> Vec<String> {
        models.listed
    }
}

impl Deref for Models {
    type Target = [String];

    fn deref(&self) -> &[String] {
        &self.listed
    }
}

/// `host`, `*.domain` for every host below the domain, or either with `:port`; without one it is port 443.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostRule {
    below: bool,
    host: String,
    port: u16,
}

/// The text is no rule about hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a host such as llm.example.com, or *.example.com, in lower case, with a :port unless it is 443")]
pub struct NotAHost;

impl HostRule {
    #[must_use]
    pub fn covers(&self, host: &str, port: u16) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        let host_fits = if self.below {
            host.strip_suffix(&self.host).and_then(|rest| rest.strip_suffix('.')).is_some_and(|rest| !rest.is_empty())
        } else {
            host == self.host
        };
        host_fits && port == self.port
    }

    /// The host without what is before or after it, for whoever judges whether it is a public one.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl FromStr for HostRule {
    type Err = NotAHost;

    fn from_str(text: &str) -> Result<HostRule, NotAHost> {
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, port.parse().ok().filter(|port| *port > 0).ok_or(NotAHost)?),
            None => (text, HTTPS),
        };
        let (below, host) = match name.strip_prefix("*.") {
            Some(domain) => (true, domain),
            None => (false, name),
        };
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // A rule for everything below a top-level domain would be one for half of the internet.
        let fits = host.len() <= 253 && host.split('.').all(label) && (!below || host.contains('.'));
        if fits { Ok(HostRule { below, host: host.to_owned(), port }) } else { Err(NotAHost) }
    }
}

impl fmt::Display for HostRule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}{}", if self.below { "*." } else { "" }, self.host)?;
        if self.port == HTTPS { Ok(()) } else { write!(out, ":{}", self.port) }
    }
}

impl TryFrom<String> for HostRule {
    type Error = NotAHost;

    fn try_from(text: String) -> Result<HostRule, NotAHost> {
        text.parse()
    }
}

impl From<HostRule> for String {
    fn from(rule: HostRule) -> String {
        rule.to_string()
    }
}
