//! A tenant's LLM providers: what each is, which key it has, and where the tenant may go with them.
//!
//! [`ProviderBooks`] is a part of the tenant's books: providers with their sealed secrets, the wrapped data keys those are
//! sealed under, and the tenant's [`policy`]. Judged and changed here, purely; what is sealed stays sealed.

pub mod policy;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use policy::{HostRule, Policy};
use serde::{Deserialize, Serialize};

use super::ids::{LeaseId, ProviderId};
use super::organization::{Expected, Flaw};
use super::secret::{StoredSecret, WrappedKey};
use super::time::Timestamp;

/// Providers of one tenant.
pub const PROVIDERS_MAX: usize = 100;
/// Characters of a provider's name, and of what a secret is borrowed for.
pub const NAME_CHARACTERS_MAX: usize = 100;
pub const PURPOSE_CHARACTERS_MAX: usize = 200;
/// Bytes of a base URL.
const URL_BYTES_MAX: usize = 512;
/// Azure OpenAI's, when a provider names none.
pub const AZURE_API_VERSION: &str = "2024-10-21";

/// Whose API a provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProviderKind {
    #[serde(rename = "openai")]
    OpenAi,
    Anthropic,
    Google,
    Groq,
    #[serde(rename = "azureOpenai")]
    AzureOpenAi,
    Bedrock,
    /// Anything that speaks OpenAI's API at an address of its own.
    #[serde(rename = "openaiCompatible")]
    OpenAiCompatible,
    /// The platform's own LiteLLM: its secret is a virtual key, which the platform makes there and takes away again.
    #[serde(rename = "litellm")]
    LiteLlm,
}

impl ProviderKind {
    pub const ALL: [ProviderKind; 8] = [
        ProviderKind::OpenAi,
        ProviderKind::Anthropic,
        ProviderKind::Google,
        ProviderKind::Groq,
        ProviderKind::AzureOpenAi,
        ProviderKind::Bedrock,
        ProviderKind::OpenAiCompatible,
        ProviderKind::LiteLlm,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ProviderKind::OpenAi => "openai",
            ProviderKind::Anthropic => "anthropic",
            ProviderKind::Google => "google",
            ProviderKind::Groq => "groq",
            ProviderKind::AzureOpenAi => "azureOpenai",
            ProviderKind::Bedrock => "bedrock",
            ProviderKind::OpenAiCompatible => "openaiCompatible",
            ProviderKind::LiteLlm => "litellm",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<ProviderKind> {
        ProviderKind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The host, or `*.` and the domain of the hosts, that a key of this kind may always be sent to.
    #[must_use]
    pub fn homes(self) -> &'static [&'static str] {
        match self {
            ProviderKind::OpenAi => &["api.openai.com"],
            ProviderKind::Anthropic => &["api.anthropic.com"],
            ProviderKind::Google => &["generativelanguage.googleapis.com"],
            ProviderKind::Groq => &["api.groq.com"],
            ProviderKind::AzureOpenAi => {
                &["*.openai.azure.com", "*.cognitiveservices.azure.com", "*.services.ai.azure.com"]
            }
            // The host is made of the region, which is no more than letters, digits and hyphens.
            ProviderKind::Bedrock => &["*.amazonaws.com"],
            ProviderKind::OpenAiCompatible | ProviderKind::LiteLlm => &[],
        }
    }

    /// The address without which the kind cannot be asked, unless the provider has one of its own.
    #[must_use]
    pub fn base_url(self) -> Option<&'static str> {
        match self {
            ProviderKind::OpenAi => Some("https://api.openai.com/v1"),
            ProviderKind::Anthropic => Some("https://api.anthropic.com"),
            ProviderKind::Google => Some("https://generativelanguage.googleapis.com"),
            ProviderKind::Groq => Some("https://api.groq.com/openai/v1"),
            ProviderKind::AzureOpenAi
            | ProviderKind::Bedrock
            | ProviderKind::OpenAiCompatible
            | ProviderKind::LiteLlm => None,
        }
    }

    /// Does the platform make the secret of such a provider itself?
    #[must_use]
    pub fn is_made_here(self) -> bool {
        self == ProviderKind::LiteLlm
    }

    /// May a key of this kind be sent to this host and port, whatever the tenant's policy says?
    #[must_use]
    pub fn is_home(self, host: &str, port: u16) -> bool {
        self.homes().iter().filter_map(|home| home.parse::<HostRule>().ok()).any(|home| home.covers(host, port))
    }
}

/// Everything about a provider that may be set, but for its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Unique in the tenant.
    pub name: String,
    pub kind: ProviderKind,
    /// Without a slash at its end; `None` for the kind's own.
    pub base_url: Option<String>,
    /// Of Bedrock, as `eu-central-1`.
    pub region: Option<String>,
    /// Of Azure OpenAI; [`AZURE_API_VERSION`] when absent.
    pub api_version: Option<String>,
    /// One that is not active is lent to nobody and known to no gateway.
    pub active: bool,
}

impl Profile {
    /// Everything that is wrong with it, but for where the URL leads.
    #[must_use]
    pub fn flaws(&self) -> Vec<Flaw> {
        let mut flaws = Vec::new();
        let mut check = |holds: bool, pointer: &str, message: &str| {
            if !holds {
                flaws.push(Flaw::new(pointer, message));
            }
        };
        check(
            is_line(&self.name, NAME_CHARACTERS_MAX),
            "/name",
            "must be 1 to 100 characters, none of them a control character, without space at the ends",
        );
        let plain = |text: &str, more: &[u8]| {
            let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || more.contains(&byte);
            (1..=32).contains(&text.len()) && text.bytes().all(letters)
        };
        let is = |kind| self.kind == kind;
        match &self.base_url {
            None => {
                let needs = is(ProviderKind::AzureOpenAi) || is(ProviderKind::OpenAiCompatible);
                check(!needs, "/baseUrl", "is required for this kind");
            }
            Some(url) => {
                let elsewhere = is(ProviderKind::Bedrock) || is(ProviderKind::LiteLlm);
                check(!elsewhere, "/baseUrl", "must be absent for this kind, whose address is known");
                check(url.len() <= URL_BYTES_MAX, "/baseUrl", "must be at most 512 bytes");
            }
        }
        match &self.region {
            None => check(!is(ProviderKind::Bedrock), "/region", "is required for this kind"),
            Some(region) => {
                check(is(ProviderKind::Bedrock), "/region", "must be absent for this kind");
                check(plain(region, b"-"), "/region", "must be 1 to 32 lower-case letters, digits or hyphens");
            }
        }
        if let Some(version) = &self.api_version {
            check(is(ProviderKind::AzureOpenAi), "/apiVersion", "must be absent for this kind");
            check(plain(version, b"-."), "/apiVersion", "must be 1 to 32 lower-case letters, digits, hyphens or dots");
        }
        flaws
    }

    /// Would a key that was given for this one be sent elsewhere with `other`?
    #[must_use]
    pub fn leads_elsewhere(&self, other: &Profile) -> bool {
        (self.kind, &self.base_url, &self.region) != (other.kind, &other.base_url, &other.region)
    }
}

/// One line for people: some characters, none of them a control character, without space at the ends.
#[must_use]
pub fn is_line(text: &str, characters_max: usize) -> bool {
    let clean = text.trim() == text && !text.chars().any(char::is_control);
    clean && (1..=characters_max).contains(&text.chars().count())
}

/// A provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    pub id: ProviderId,
    pub profile: Profile,
    /// Grows with each change, of its secret too.
    pub version: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub secret: Option<StoredSecret>,
    /// How many values its secret has had: the next one's version is one more, also after the secret was taken away.
    pub secret_versions: i64,
}

/// A secret that was lent: for what, and until when whoever has it must have forgotten it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub id: LeaseId,
    pub provider: ProviderId,
    pub secret_version: i64,
    pub actor: String,
    pub purpose: String,
    /// The model it was borrowed for, if one was named.
    pub model: Option<String>,
    pub granted_at: Timestamp,
    pub expires_at: Timestamp,
}

/// Why a change is not made. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    Unknown,
    /// The provider has no secret.
    NoSecret,
    /// It has changed since the caller saw it.
    Stale,
    Flawed(Vec<Flaw>),
    /// Another provider has this name.
    NameTaken,
    /// There are as many as there may be.
    Full,
    Inactive,
    /// The policy does not have the model.
    ModelNotAllowed,
    /// The data key is not there any more, or another one is newer.
    KeyChanged,
}

/// A tenant's providers, its data keys and its policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProviderBooks {
    providers: BTreeMap<ProviderId, Arc<Provider>>,
    /// By version, oldest first. The newest encrypts, all of them decrypt.
    keys: Vec<WrappedKey>,
    pub policy: Arc<Policy>,
    /// The tenant has left: whoever was let in before keeps nothing here any more, however often these books are read again.
    is_destroyed: bool,
}

impl ProviderBooks {
    /// As it was stored.
    #[must_use]
    pub fn of(
        providers: Vec<Provider>,
        mut keys: Vec<WrappedKey>,
        policy: Policy,
        is_destroyed: bool,
    ) -> ProviderBooks {
        keys.sort_by_key(|key| key.version);
        let providers = providers.into_iter().map(|provider| (provider.id, Arc::new(provider))).collect();
        ProviderBooks { providers, keys, policy: Arc::new(policy), is_destroyed }
    }

    #[must_use]
    pub fn get(&self, id: ProviderId) -> Option<&Arc<Provider>> {
        self.providers.get(&id)
    }

    /// In the order of their ids, which is that of their age, after `after`.
    pub fn after(&self, after: Option<ProviderId>) -> impl Iterator<Item = &Arc<Provider>> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        self.providers.range((from, std::ops::Bound::Unbounded)).map(|(_, provider)| provider)
    }

    #[must_use]
    pub fn keys(&self) -> &[WrappedKey] {
        &self.keys
    }

    /// The data key that encrypts now.
    #[must_use]
    pub fn newest_key(&self) -> Option<&WrappedKey> {
        self.keys.last()
    }

    #[must_use]
    pub fn key(&self, version: i64) -> Option<&WrappedKey> {
        self.keys.iter().find(|key| key.version == version)
    }

    /// Versions of data keys that nothing is encrypted under, but for the newest.
    #[must_use]
    pub fn idle_keys(&self) -> Vec<i64> {
        let newest = self.newest_key().map(|key| key.version);
        let in_use = |version: i64| self.providers.values().any(|one| key_of(one) == Some(version));
        let versions = self.keys.iter().map(|key| key.version);
        versions.filter(|version| Some(*version) != newest && !in_use(*version)).collect()
    }

    fn expect(&self, id: ProviderId, expected: &Expected) -> Result<Arc<Provider>, Refusal> {
        let provider = self.providers.get(&id).ok_or(Refusal::Unknown)?;
        if expected.is(provider.version) { Ok(provider.clone()) } else { Err(Refusal::Stale) }
    }

    /// A request that was let in before the tenant left must not bring anything back.
    fn expect_tenant(&self) -> Result<(), Refusal> {
        if self.is_destroyed { Err(Refusal::Unknown) } else { Ok(()) }
    }

    /// Has the tenant left?
    #[must_use]
    pub fn is_destroyed(&self) -> bool {
        self.is_destroyed
    }

    fn name_is_free(&self, id: ProviderId, name: &str) -> Result<(), Refusal> {
        let taken = self.providers.values().any(|one| one.id != id && one.profile.name == name);
        if taken { Err(Refusal::NameTaken) } else { Ok(()) }
    }

    fn put(&mut self, provider: Provider) -> Arc<Provider> {
        let provider = Arc::new(provider);
        self.providers.insert(provider.id, provider.clone());
        provider
    }

    /// # Errors
    /// [`Refusal`].
    pub fn create(&mut self, id: ProviderId, profile: Profile, now: Timestamp) -> Result<Arc<Provider>, Refusal> {
        self.name_is_free(id, &profile.name)?;
        if self.providers.len() >= PROVIDERS_MAX {
            return Err(Refusal::Full);
        }
        let (version, secret, secret_versions) = (1, None, 0);
        Ok(self.put(Provider { id, profile, version, created_at: now, updated_at: now, secret, secret_versions }))
    }

    /// A key is sent to nobody it was not given for: a provider that leads elsewhere from now on loses its secret. The kind
    /// stays what it was.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn replace(
        &mut self,
        id: ProviderId,
        profile: Profile,
        expected: &Expected,
        now: Timestamp,
    ) -> Result<Arc<Provider>, Refusal> {
        let before = self.expect(id, expected)?;
        if profile.kind != before.profile.kind {
            return Err(Refusal::Flawed(vec![Flaw::new("/kind", "cannot be changed; make another provider")]));
        }
        self.name_is_free(id, &profile.name)?;
        if profile == before.profile {
            return Ok(before);
        }
        let secret = before.secret.clone().filter(|_| !before.profile.leads_elsewhere(&profile));
        let version = before.version + 1;
        Ok(self.put(Provider { profile, version, updated_at: now, secret, ..before.as_ref().clone() }))
    }

    /// With its secret, and out of the fail-over order. Answers the provider as it was.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn delete(
        &mut self,
        id: ProviderId,
        expected: &Expected,
        now: Timestamp,
    ) -> Result<(Arc<Provider>, Option<Arc<Policy>>), Refusal> {
        let provider = self.expect(id, expected)?;
        self.providers.remove(&id);
        let policy = self.policy.without(id, now).map(Arc::new);
        if let Some(policy) = &policy {
            self.policy = policy.clone();
        }
        Ok((provider, policy))
    }

    /// Gives a provider a secret, sealed for `secret.version` under the newest data key.
    ///
    /// # Errors
    /// [`Refusal`]; [`Refusal::KeyChanged`] when it was sealed for what is not the case any more: seal it again.
    pub fn put_secret(
        &mut self,
        id: ProviderId,
        secret: StoredSecret,
        expected: &Expected,
    ) -> Result<Arc<Provider>, Refusal> {
        self.expect_tenant()?;
        let before = self.expect(id, expected)?;
        let key_is_newest = self.newest_key().is_some_and(|key| key.version == secret.sealed.data_key);
        let same = before.secret.as_ref().is_none_or(|old| old.id == secret.id);
        if !key_is_newest || !same || secret.version != before.secret_versions + 1 {
            return Err(Refusal::KeyChanged);
        }
        let (version, updated_at, secret_versions) = (before.version + 1, secret.set_at, secret.version);
        let secret = Some(secret);
        Ok(self.put(Provider { version, updated_at, secret, secret_versions, ..before.as_ref().clone() }))
    }

    /// # Errors
    /// [`Refusal`].
    pub fn delete_secret(
        &mut self,
        id: ProviderId,
        expected: &Expected,
        now: Timestamp,
    ) -> Result<Arc<Provider>, Refusal> {
        let before = self.expect(id, expected)?;
        if before.secret.is_none() {
            return Err(Refusal::NoSecret);
        }
        let version = before.version + 1;
        Ok(self.put(Provider { version, updated_at: now, secret: None, ..before.as_ref().clone() }))
    }

    /// Judges a lease of the provider's secret; `version` is the value that the caller is about to be given.
    ///
    /// # Errors
    /// [`Refusal`]; [`Refusal::KeyChanged`] when the secret has another value by now.
    pub fn lend(&self, lease: &Lease) -> Result<(), Refusal> {
        let provider = self.get(lease.provider).ok_or(Refusal::Unknown)?;
        let secret = provider.secret.as_ref().ok_or(Refusal::NoSecret)?;
        if !provider.profile.active {
            return Err(Refusal::Inactive);
        }
        if lease.model.as_deref().is_some_and(|model| !self.policy.allows_model(model)) {
            return Err(Refusal::ModelNotAllowed);
        }
        if secret.version == lease.secret_version { Ok(()) } else { Err(Refusal::KeyChanged) }
    }

    /// A new data key, from now on the one that encrypts.
    ///
    /// # Errors
    /// [`Refusal::KeyChanged`] when somebody else has made it; [`Refusal::Unknown`] when the tenant has left.
    pub fn add_key(&mut self, key: WrappedKey) -> Result<(), Refusal> {
        self.expect_tenant()?;
        if key.version != self.newest_key().map_or(0, |newest| newest.version) + 1 {
            return Err(Refusal::KeyChanged);
        }
        self.keys.push(key);
        Ok(())
    }

    /// The same data key, wrapped anew.
    ///
    /// # Errors
    /// [`Refusal::KeyChanged`] when it is not wrapped by `old` any more.
    pub fn rewrap(&mut self, old: &WrappedKey, new: WrappedKey) -> Result<(), Refusal> {
        let key = self.keys.iter_mut().find(|key| **key == *old).ok_or(Refusal::KeyChanged)?;
        *key = new;
        Ok(())
    }

    /// The same secret, sealed under a newer data key: nothing that anybody can see has changed.
    ///
    /// # Errors
    /// [`Refusal::KeyChanged`] when the secret is another one by now.
    pub fn reseal(&mut self, id: ProviderId, old: &StoredSecret, new: StoredSecret) -> Result<(), Refusal> {
        let before = self.providers.get(&id).ok_or(Refusal::KeyChanged)?.clone();
        let there = before.secret.as_ref() == Some(old) && self.key(new.sealed.data_key).is_some();
        if !there || (new.id, new.version) != (old.id, old.version) {
            return Err(Refusal::KeyChanged);
        }
        self.put(Provider { secret: Some(new), ..before.as_ref().clone() });
        Ok(())
    }

    /// Forgets data keys that nothing is encrypted under; answers which.
    pub fn retire_keys(&mut self) -> Vec<i64> {
        let idle = self.idle_keys();
        self.keys.retain(|key| !idle.contains(&key.version));
        idle
    }

    /// Forgets every data key and every ciphertext, for ever, and takes no other. Answers how many there were of each.
    pub fn destroy(&mut self) -> (usize, usize) {
        self.is_destroyed = true;
        let keys = std::mem::take(&mut self.keys).len();
        let holders: Vec<Arc<Provider>> =
            self.providers.values().filter(|provider| provider.secret.is_some()).cloned().collect();
        for provider in &holders {
            self.put(Provider { secret: None, version: provider.version + 1, ..provider.as_ref().clone() });
        }
        (keys, holders.len())
    }
}

fn key_of(provider: &Provider) -> Option<i64> {
    provider.secret.as_ref().map(|secret| secret.sealed.data_key)
}
