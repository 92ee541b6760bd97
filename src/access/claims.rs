//! What an issuer's claims mean here, by its configuration: whom they speak of, in which tenant, with which roles; and what
//! its people are called, for those who are added when they first come.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::token::Refusal;
use crate::config;
use crate::domain::ids::TenantId;
use crate::domain::organization::attributes::Attributes;
use crate::domain::organization::user::{Email, IssuedSubject, Profile};
use crate::domain::tenant::Role;

/// OpenID Connect Core 2: a subject has at most 255 characters.
pub(super) const SUBJECT_MAX: usize = 255;
const ROLES_MAX: usize = 100;
const GROUPS_MAX: usize = 500;

/// Who a verified token speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub issuer: String,
    pub subject: String,
    pub user: Option<String>,
    /// `None`: to be let in only as a platform administrator.
    pub tenant: Option<TenantId>,
    pub roles: Vec<Role>,
    /// Who it is, where the issuer's people are added when they first come.
    pub person: Option<Person>,
}

/// A person as the claims describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    pub profile: Profile,
    /// Of the groups that the configuration maps to, those it is in; `None` when the claims say nothing about groups.
    pub groups: Option<BTreeSet<String>>,
    /// All the groups that the configuration maps to.
    pub mapped: BTreeSet<String>,
    /// All the attributes that the configuration maps to; those that the profile lacks are not the person's any more.
    pub mapped_attributes: BTreeSet<String>,
}

/// Whom the claims speak for.
///
/// # Errors
/// [`Refusal::Claims`]: one that is needed is missing or unreadable, or the issuer may not speak for this tenant.
pub(super) fn identity(claims: &Map<String, Value>, settings: &config::Issuer) -> Result<Identity, Refusal> {
    let subject = claims.get("sub").and_then(name).ok_or(Refusal::Claims)?;
    let user = match claim(claims, &settings.user_claim) {
        None | Some(Value::Null) => None,
        Some(user) => Some(name(user).ok_or(Refusal::Claims)?.to_owned()),
    };
    let tenant = tenant(claims, settings)?;
    let mut roles = roles(claims, settings);
    match tenant {
        // A token that names a tenant is confined to it, whatever role its issuer lets the tenant's people have.
        Some(_) => roles.retain(|role| *role != Role::PlatformAdmin),
        // Without a tenant there is only the platform.
        None => roles.retain(|role| *role == Role::PlatformAdmin),
    }
    let person = (settings.provision && tenant.is_some()).then(|| person(claims, subject, settings));
    Ok(Identity { issuer: settings.issuer.clone(), subject: subject.to_owned(), user, tenant, roles, person })
}

/// The tenant that the claims name, among those that the issuer may speak for.
fn tenant(claims: &Map<String, Value>, settings: &config::Issuer) -> Result<Option<TenantId>, Refusal> {
    let parse = |text: &str| text.parse::<TenantId>().map_err(|_| Refusal::Claims);
    let named = match (&settings.tenant, claim(claims, &settings.tenant_claim)) {
        (Some(fixed), _) => Some(parse(fixed)?),
        (None, None | Some(Value::Null)) => None,
        (None, Some(value)) => {
            let id = match settings.tenant_ids.is_empty() {
                true => value.as_str(),
                false => only_text(value).and_then(|name| settings.tenant_ids.get(name)).map(String::as_str),
            };
            Some(parse(id.ok_or(Refusal::Claims)?)?)
        }
    };
    // Compared as ids: they may be written in either case.
    let may = |tenant: TenantId| settings.tenants.iter().any(|one| one.parse() == Ok(tenant));
    let confined = !settings.tenants.is_empty();
    if confined && !named.is_some_and(may) { Err(Refusal::Claims) } else { Ok(named) }
}

/// A text, or the only one of a list: some issuers list the organizations of a person.
fn only_text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        Value::Array(items) if items.len() == 1 => items[0].as_str(),
        _ => None,
    }
}

/// A name that can stand in a log and in the audit chain.
fn name(value: &Value) -> Option<&str> {
    let fits = |text: &&str| !text.is_empty() && text.len() <= SUBJECT_MAX && !text.chars().any(char::is_control);
    value.as_str().filter(fits)
}

/// The claim of this very name (some issuers use URLs), or the one its `/`-separated path leads to.
fn claim<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    let (first, rest) = path.split_once('/')?;
    rest.split('/').try_fold(claims.get(first)?, |value, part| value.get(part))
}

/// A name or a list of them.
fn names(value: Option<&Value>, most: usize) -> Vec<&str> {
    match value {
        Some(Value::String(name)) => vec![name.as_str()],
        Some(Value::Array(names)) => names.iter().take(most).filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// The issuer's roles as ours: by the configured map, or by our own names when there is none. Other names mean nothing.
fn roles(claims: &Map<String, Value>, settings: &config::Issuer) -> Vec<Role> {
    let ours = |name: &str| match settings.roles.is_empty() {
        true => Role::from_name(name),
        false => settings.roles.get(name).and_then(|role| Role::from_name(role)),
    };
    let named = names(claim(claims, &settings.roles_claim), ROLES_MAX);
    let mut roles = named.into_iter().filter_map(ours).collect::<Vec<_>>();
    roles.sort_unstable();
    roles.dedup();
    roles
}

/// The person behind the claims. What cannot be kept of it is left out: a login does not fail for an odd address.
pub(super) fn person(claims: &Map<String, Value>, subject: &str, settings: &config::Issuer) -> Person {
    let text = |path: &str| claim(claims, path).and_then(name).map(str::to_owned);
    let email = text(&settings.email_claim);
    let user_name = text(&settings.user_name_claim).or_else(|| email.clone()).unwrap_or_else(|| subject.to_owned());
    let mut attributes = Map::new();
    for (ours, path) in &settings.attributes {
        if let Some(value) = claim(claims, path).filter(|value| !value.is_null()) {
            attributes.insert(ours.clone(), value.clone());
        }
    }
    let readable = |attributes: &Map<String, Value>| {
        Attributes::read(attributes).ok().filter(|attributes| attributes.flaws().is_empty())
    };
    // One by one: what does not fit must not take the others with it.
    attributes.retain(|ours, value| readable(&Map::from_iter([(ours.clone(), value.clone())])).is_some());
    let named = Profile {
        display_name: text(&settings.display_name_claim).unwrap_or_else(|| user_name.clone()),
        given_name: text("given_name"),
        family_name: text("family_name"),
        subjects: vec![IssuedSubject { issuer: settings.issuer.as_str().into(), subject: subject.into() }],
        attributes: readable(&attributes).unwrap_or_default(),
        ..Profile::named(&user_name)
    };
    let emails = email.map(|value| Email { value, kind: None, primary: true }).into_iter().collect();
    let with_email = Profile { emails, ..named.clone() };
    let profile = if with_email.flaws().is_empty() { with_email } else { named };
    let claimed = claim(claims, &settings.groups_claim);
    let groups = claimed.filter(|_| !settings.groups.is_empty()).map(|value| {
        let theirs = names(Some(value), GROUPS_MAX);
        theirs.into_iter().filter_map(|name| settings.groups.get(name).cloned()).collect()
    });
    let mapped_attributes = settings.attributes.keys().cloned().collect();
    Person { profile, groups, mapped: settings.groups.values().cloned().collect(), mapped_attributes }
}

#[cfg(test)]
mod tests {
    use super::super::issuer_peer::settings;
    use super::*;
    use serde_json::json;

    const TENANT: &str = "018f3a5e-0000-7000-8000-00000000000a";
    const OTHER: &str = "018f3a5e-0000-7000-8000-00000000000b";

    fn tenant_of(claims: &Value, issuer: &config::Issuer) -> Result<Option<String>, Refusal> {
        identity(claims.as_object().unwrap(), issuer).map(|found| found.tenant.map(|tenant| tenant.to_string()))
    }

    #[test]
    fn an_issuer_speaks_for_its_tenants_and_no_other() {
        let confined = config::Issuer { tenants: vec![TENANT.to_uppercase()], ..settings("https://issuer.example") };
        assert_eq!(tenant_of(&json!({"sub": "u", "tenant": TENANT}), &confined), Ok(Some(TENANT.into())));
        for claims in [
            json!({"sub": "u", "tenant": OTHER}),
            // Nor for the platform.
            json!({"sub": "u"}),
            json!({"sub": "u", "roles": ["platformAdmin"]}),
        ] {
            assert_eq!(tenant_of(&claims, &confined), Err(Refusal::Claims), "{claims}");
        }
        let fixed = config::Issuer { tenant: Some(TENANT.into()), ..settings("https://issuer.example") };
        for claims in [json!({"sub": "u"}), json!({"sub": "u", "tenant": OTHER}), json!({"sub": "u", "tenant": 7})] {
            assert_eq!(tenant_of(&claims, &fixed), Ok(Some(TENANT.into())), "{claims}");
        }
    }

    #[test]
    fn an_issuer_s_names_of_tenants_are_mapped() {
        let tenant_ids = [("acme".to_owned(), TENANT.to_owned())].into();
        let mapped = config::Issuer { tenant_ids, ..settings("https://issuer.example") };
        for (claimed, expected) in [
            (json!("acme"), Ok(Some(TENANT.to_owned()))),
            (json!(["acme"]), Ok(Some(TENANT.to_owned()))),
            (json!(["acme", "globex"]), Err(Refusal::Claims)),
            (json!("globex"), Err(Refusal::Claims)),
            (json!(TENANT), Err(Refusal::Claims)),
            (json!([]), Err(Refusal::Claims)),
        ] {
            assert_eq!(tenant_of(&json!({"sub": "u", "tenant": claimed}), &mapped), expected, "{claimed}");
        }
    }

    #[test]
    fn a_person_is_what_the_claims_say_as_far_as_it_can_be_kept() {
        let issuer: config::Issuer = serde_json::from_value(json!({
            "issuer": "https://issuer.example", "audience": "a", "provision": true,
            "groups": {"theirs": "Ours", "others": "Others"},
            "attributes": {"department": "org/unit", "level": "level", "odd": "odd"},
        }))
        .unwrap();
        let claims = json!({
            "sub": "00u1", "tenant": TENANT, "preferred_username": "jane", "name": "Jane Doe", "email": "jane@example.com",
            "groups": ["theirs", "unknown"], "org": {"unit": "sales"}, "level": 3, "odd": {"deep": true},
        });
        let person = identity(claims.as_object().unwrap(), &issuer).unwrap().person.unwrap();
        let Profile { user_name, display_name, emails, attributes, subjects, .. } = person.profile;
        assert_eq!((user_name.as_str(), display_name.as_str()), ("jane", "Jane Doe"));
        assert_eq!(emails[0].value, "jane@example.com");
        assert_eq!(Value::Object(attributes.object()), json!({"department": "sales", "level": 3}));
        assert_eq!((&*subjects[0].issuer, &*subjects[0].subject), ("https://issuer.example", "00u1"));
        assert_eq!(person.groups, Some(["Ours".to_owned()].into()));

        let bare = json!({"sub": "00u1", "tenant": TENANT, "email": "not an address", "name": "a\u{7}b"});
        let person = identity(bare.as_object().unwrap(), &issuer).unwrap().person.unwrap();
        assert_eq!(person.profile.user_name, "not an address");
        assert!(person.profile.emails.is_empty() && person.profile.flaws().is_empty());
        assert_eq!(person.groups, None, "nothing was said about groups");
        let of_the_platform = json!({"sub": "root", "roles": "platformAdmin"});
        assert_eq!(identity(of_the_platform.as_object().unwrap(), &issuer).unwrap().person, None);
    }
}
