//! The tenants in a declarative document, for a Kong without a database. Pure.

use serde_json::{Map, Value, json};

use super::plan::{SUSPENDED_GROUP, TAG, body, is_ours};
use crate::domain::tenant::{Lifecycle, Tenant};

/// `base` with the tenants among its consumers, which keep what the operator wrote there, credentials above all. The same
/// tenants make the same text.
///
/// # Errors
/// What is wrong with the base; it holds nothing of its text.
pub(super) fn render(base: &str, tenants: &[Tenant]) -> Result<String, &'static str> {
    let mut document: Map<String, Value> = if base.trim().is_empty() {
        Map::new()
    } else {
        serde_json::from_str(base)
            .map_err(|_| "is no JSON object; YAML has to be turned into JSON first, which Kong reads as well")?
    };
    document.entry("_format_version").or_insert_with(|| json!("3.0"));
    let consumers = document.entry("consumers").or_insert_with(|| json!([]));
    let Value::Array(consumers) = consumers else { return Err("has consumers that are no list") };
    for tenant in tenants {
        let id = tenant.id.to_string();
        let at = consumers.iter().position(|consumer| consumer["custom_id"] == id.as_str());
        match (tenant.lifecycle, at) {
            (Lifecycle::Pending, _) | (Lifecycle::Archived, None) => {}
            (Lifecycle::Archived, Some(at)) => {
                if is_ours(&consumers[at]) {
                    consumers.remove(at);
                }
            }
            (lifecycle, at) => {
                let at = at.unwrap_or_else(|| {
                    let mut made = body(tenant, &std::collections::BTreeSet::new());
                    made["id"] = json!(id);
                    consumers.push(made);
                    consumers.len() - 1
                });
                let suspended = lifecycle == Lifecycle::Suspended;
                if let Some(consumer) = consumers[at].as_object_mut() {
                    set_group(consumer, suspended);
                }
            }
        }
    }
    serde_json::to_string_pretty(&document).map_err(|_| "cannot be written")
}

/// In the group or not; memberships without our tag are the operator's.
fn set_group(consumer: &mut Map<String, Value>, suspended: bool) {
    let groups = consumer.entry("acls").or_insert_with(|| json!([]));
    let Value::Array(groups) = groups else { return };
    groups.retain(|membership| membership["group"] != SUSPENDED_GROUP || !is_ours(membership));
    let is_there = groups.iter().any(|membership| membership["group"] == SUSPENDED_GROUP);
    if suspended && !is_there {
        groups.push(json!({"group": SUSPENDED_GROUP, "tags": [TAG]}));
    }
    if groups.is_empty() {
        consumer.remove("acls");
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::tenant;
    use super::*;

    #[test]
    fn the_operator_s_words_stay_and_the_tenants_are_among_them() {
        let (acme, globex) = (tenant(7, Lifecycle::Suspended), tenant(8, Lifecycle::Active));
        let base = json!({
            "services": [{"name": "litellm", "url": "http://litellm:4000"}],
            "consumers": [{"username": "acme", "custom_id": acme.id.to_string(),
                           "keyauth_credentials": [{"key": "k-1"}]}, {"username": "somebody"}]
        });
        let rendered = render(&base.to_string(), &[acme.clone(), globex.clone()]).unwrap();
        let read: Value = serde_json::from_str(&rendered).unwrap();
        assert_eq!((&read["services"], &read["_format_version"]), (&base["services"], &json!("3.0")));
        let consumers = read["consumers"].as_array().unwrap();
        assert_eq!(consumers[0]["keyauth_credentials"], json!([{"key": "k-1"}]));
        assert_eq!(consumers[0]["acls"], json!([{"group": "suspended", "tags": ["platform-api"]}]));
        assert_eq!(consumers[1], json!({"username": "somebody"}));
        assert_eq!(
            consumers[2],
            json!({"id": globex.id.to_string(), "username": "acme-8", "custom_id": globex.id.to_string(),
                   "tags": ["platform-api"]})
        );
        // What was rendered is a base as good, and says the same.
        assert_eq!(render(&rendered, &[acme.clone(), globex]).unwrap(), rendered);
        let reinstated = render(&rendered, &[Tenant { lifecycle: Lifecycle::Active, ..acme }]).unwrap();
        assert!(!reinstated.contains("suspended"), "{reinstated}");
    }

    #[test]
    fn an_archived_tenant_is_gone_and_an_operator_s_consumer_is_not() {
        let gone = tenant(7, Lifecycle::Archived);
        let consumers = |tags: Value| json!({"consumers": [{"custom_id": gone.id.to_string(), "tags": tags}]});
        let left = |tags| {
            let rendered = render(&consumers(tags).to_string(), std::slice::from_ref(&gone)).unwrap();
            serde_json::from_str::<Value>(&rendered).unwrap()["consumers"].as_array().unwrap().len()
        };
        assert_eq!((left(json!(["platform-api"])), left(Value::Null)), (0, 1));
    }

    #[test]
    fn a_base_that_is_no_document_is_refused_without_its_text() {
        for base in ["services: []\nkey: s3cret", "[]", "{\"consumers\": \"s3cret\"}"] {
            let refused = render(base, &[tenant(7, Lifecycle::Active)]).unwrap_err();
            assert!(!refused.contains("s3cret"), "{refused}");
        }
    }
}
