//! What has to be done so that Kong's consumers are our tenants. Pure.
//!
//! A tenant's consumer has the tenant's id as `custom_id`, and as its own id when we made it, so that a PUT is the same
//! consumer however often it is sent. Only objects with our tag are looked at: what somebody else made is theirs.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::domain::ids::TenantId;
use crate::domain::tenant::{Lifecycle, Tenant};

/// Marks what is ours.
pub(super) const TAG: &str = "platform-api";
/// The group of a suspended tenant's consumer; Kong's `acl` plugin denies it.
pub(super) const SUSPENDED_GROUP: &str = "suspended";

/// A consumer with our tag, as Kong has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Consumer {
    pub(super) id: String,
    username: String,
    custom_id: String,
    tags: BTreeSet<String>,
}

impl Consumer {
    /// `None` for what is not ours, or no consumer.
    pub(super) fn read(value: &Value) -> Option<Consumer> {
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        is_ours(value).then(|| Consumer {
            id: text("id"),
            username: text("username"),
            custom_id: text("custom_id"),
            tags: tags(value).map(str::to_owned).collect(),
        })
    }
}

/// Has it our tag?
pub(super) fn is_ours(value: &Value) -> bool {
    tags(value).any(|tag| tag == TAG)
}

fn tags(value: &Value) -> impl Iterator<Item = &str> {
    value["tags"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// The consumer of a membership in the group, if the membership is ours.
pub(super) fn suspended(membership: &Value) -> Option<String> {
    let ours = membership["group"] == SUSPENDED_GROUP && is_ours(membership);
    membership["consumer"]["id"].as_str().filter(|_| ours).map(str::to_owned)
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) tenant: TenantId,
    /// The consumer's id.
    pub(super) consumer: String,
    pub(super) act: Act,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// There is none; whether its place is free is to be asked first.
    Create(Value),
    Correct(Value),
    Suspend,
    Reinstate,
    /// With its credentials: Kong takes them along.
    Remove,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    /// Consumers with our tag and no tenant of ours: another platform's, perhaps.
    pub(super) strangers: usize,
}

/// The steps from what was found to what `tenants` are. `is_known` tells of every tenant, these and others.
pub(super) fn plan(
    tenants: &[Tenant],
    consumers: &[Consumer],
    suspended: &BTreeSet<String>,
    is_known: impl Fn(TenantId) -> bool,
) -> Plan {
    let mut by_tenant: BTreeMap<TenantId, &Consumer> = BTreeMap::new();
    let mut plan = Plan::default();
    for consumer in consumers {
        match consumer.custom_id.parse() {
            Ok(tenant) if is_known(tenant) => drop(by_tenant.insert(tenant, consumer)),
            _ => plan.strangers += 1,
        }
    }
    for tenant in tenants {
        let found = by_tenant.get(&tenant.id).copied();
        plan.steps.extend(steps(tenant, found, suspended));
    }
    plan
}

/// A suspension comes first: whatever fails after it, the tenant is denied.
fn steps(tenant: &Tenant, found: Option<&Consumer>, suspended: &BTreeSet<String>) -> Vec<Step> {
    let consumer = found.map_or_else(|| tenant.id.to_string(), |consumer| consumer.id.clone());
    let is_suspended = found.is_some() && suspended.contains(&consumer);
    let acts = match (tenant.lifecycle, found) {
        (Lifecycle::Pending, _) | (Lifecycle::Archived, None) => vec![],
        (Lifecycle::Archived, Some(_)) => vec![Act::Remove],
        (lifecycle, found) => {
            let put = match found {
                None => Some(Act::Create(body(tenant, &BTreeSet::new()))),
                // Its name is Kong's key for people, and stays as long as it is one.
                Some(found) if found.username.is_empty() => Some(Act::Correct(body(tenant, &found.tags))),
                Some(_) => None,
            };
            let group = match (lifecycle == Lifecycle::Suspended, is_suspended) {
                (true, false) => Some(Act::Suspend),
                (false, true) => Some(Act::Reinstate),
                _ => None,
            };
            put.into_iter().chain(group).collect()
        }
    };
    acts.into_iter().map(|act| Step { tenant: tenant.id, consumer: consumer.clone(), act }).collect()
}

/// A consumer in full: a PUT leaves nothing of what it does not name.
pub(super) fn body(tenant: &Tenant, tags: &BTreeSet<String>) -> Value {
    let mut tags = tags.clone();
    tags.insert(TAG.to_owned());
    json!({"username": tenant.slug, "custom_id": tenant.id.to_string(), "tags": tags})
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::time::Timestamp;

    pub(in super::super) fn tenant(number: u128, lifecycle: Lifecycle) -> Tenant {
        Tenant {
            id: TenantId(uuid::Uuid::from_u128(number)),
            name: "Acme".into(),
            slug: format!("acme-{number}"),
            tier: "gold".into(),
            time_zone: "UTC".into(),
            lifecycle,
            external_ids: Vec::new(),
            settings: "{}".into(),
            created_at: Timestamp(0),
            updated_at: Timestamp(0),
        }
    }

    fn found(id: &str, tenant: &Tenant) -> Consumer {
        let value = json!({"id": id, "username": "acme", "custom_id": tenant.id.to_string(), "tags": ["gold", TAG]});
        Consumer::read(&value).unwrap()
    }

    fn acts(tenant: &Tenant, consumers: &[Consumer], suspended: &[&str]) -> Vec<(String, &'static str)> {
        let suspended = suspended.iter().map(|id| (*id).to_owned()).collect();
        let plan = plan(std::slice::from_ref(tenant), consumers, &suspended, |_| true);
        let word = |act: &Act| match act {
            Act::Create(_) => "create",
            Act::Correct(_) => "correct",
            Act::Suspend => "suspend",
            Act::Reinstate => "reinstate",
            Act::Remove => "remove",
        };
        plan.steps.iter().map(|step| (step.consumer.clone(), word(&step.act))).collect()
    }

    #[test]
    fn a_tenant_leads_to_what_is_missing_and_to_nothing_else() {
        use Lifecycle::{Active, Archived, Pending, Suspended};
        let ours = TenantId(uuid::Uuid::from_u128(7)).to_string();
        let adopted = |lifecycle| found("c-1", &tenant(7, lifecycle));
        for (lifecycle, consumers, suspended, expected) in [
            (Active, vec![], &[][..], vec![(ours.as_str(), "create")]),
            (Suspended, vec![], &[], vec![(ours.as_str(), "create"), (&ours, "suspend")]),
            (Archived, vec![], &[], vec![]),
            (Pending, vec![], &[], vec![]),
            (Active, vec![adopted(Active)], &[], vec![]),
            (Active, vec![adopted(Active)], &["c-1"], vec![("c-1", "reinstate")]),
            (Suspended, vec![adopted(Active)], &[], vec![("c-1", "suspend")]),
            (Suspended, vec![adopted(Active)], &["c-1"], vec![]),
            (Archived, vec![adopted(Active)], &["c-1"], vec![("c-1", "remove")]),
        ] {
            let done = acts(&tenant(7, lifecycle), &consumers, suspended);
            let expected: Vec<(String, &str)> = expected.into_iter().map(|(id, act)| (id.to_owned(), act)).collect();
            assert_eq!(done, expected, "{lifecycle:?} {suspended:?}");
        }
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let untagged = json!({"id": "c-2", "custom_id": tenant(7, Lifecycle::Active).id.to_string(), "tags": null});
        assert_eq!(Consumer::read(&untagged), None);
        let stranger = found("c-3", &tenant(9, Lifecycle::Active));
        let known = tenant(7, Lifecycle::Archived);
        let plan = plan(std::slice::from_ref(&known), &[stranger], &BTreeSet::new(), |id| id == known.id);
        assert_eq!(plan, Plan { steps: vec![], strangers: 1 });
        for (membership, expected) in [
            (json!({"group": "suspended", "tags": [TAG], "consumer": {"id": "c"}}), Some("c".to_owned())),
            (json!({"group": "suspended", "tags": null, "consumer": {"id": "c"}}), None),
            (json!({"group": "gold", "tags": [TAG], "consumer": {"id": "c"}}), None),
        ] {
            assert_eq!(suspended(&membership), expected);
        }
    }

    #[test]
    fn captured_pages_are_read() {
        let page = r#"{"updated_at":1795220166,"created_at":1795220166,"username":"tenant-acme","id":"988e8a78-f63d-4ff9-b914-44cdb49830ed","custom_id":"11111111-1111-4111-8111-111111111111","tags":["platform-api","tier-gold"]}"#;
        let read = Consumer::read(&serde_json::from_str(page).unwrap()).unwrap();
        assert_eq!((read.id.as_str(), read.username.as_str()), ("988e8a78-f63d-4ff9-b914-44cdb49830ed", "tenant-acme"));
        assert_eq!(read.custom_id, "11111111-1111-4111-8111-111111111111");
    }
}
