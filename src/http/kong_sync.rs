//! `/v1/gateway/kong/sync`: whether Kong knows of our tenants what we do.

use poem_openapi::{Object, OpenApi};
use serde::{Deserialize, Serialize};

use super::authorize::Ask;
use super::document::Tag;
use super::problem::Problem;
use super::reply::Reply;
use super::view::instant;
use crate::domain::sync::{NodeStatus, Reached, SyncStatus};

pub(super) struct KongSync;

#[OpenApi(tag = "Tag::Operations")]
impl KongSync {
    /// How the tenants stand in Kong
    ///
    /// The last comparison of Kong's consumers with the tenants, what it left, and how long the last change of a tenant took
    /// until Kong had it. `enabled` is false when no Admin API is configured.
    #[oai(path = "/v1/gateway/kong/sync", method = "get", operation_id = "getKongSync")]
    async fn show(&self, ask: Ask) -> Result<Reply<KongSyncView>, Problem> {
        let status = ask.api.kong_sync.as_ref().map(|kong| kong.borrow().clone());
        Ok(Reply::new(KongSyncView::of(status)))
    }
}

/// The last comparison with Kong.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "KongSync", rename_all = "camelCase")]
struct KongSyncView {
    enabled: bool,
    /// `database` or `declarative`; absent while Kong has not been asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    last_run_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    last_success_at: Option<String>,
    /// Why the last run failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    error: Option<String>,
    /// Consumers of ours in Kong.
    consumers: u64,
    /// Those of them that Kong denies.
    suspended: u64,
    /// Consumers with our tag that belong to no tenant we know. They are left alone.
    strangers: u64,
    /// Tenants whose consumer is somebody else's, or whose name is taken; the first 20.
    conflicts: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    last_change: Option<KongChangeView>,
    /// The nodes of a Kong without a database, each loaded by itself; empty for one with a database. `consumers`, `suspended`
    /// and `lastChange` tell of what all of them have.
    nodes: Vec<KongNodeView>,
}

/// A node of a Kong without a database.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "KongNode", rename_all = "camelCase")]
struct KongNodeView {
    /// Its Admin API, as configured.
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    last_run_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    last_success_at: Option<String>,
    /// Why its last load failed; it is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    error: Option<String>,
    /// `configuration_hash` of its own status: nodes that say the same have the same document.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    configuration_hash: Option<String>,
}

/// A change of a tenant that has reached Kong.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "KongChange", rename_all = "camelCase")]
struct KongChangeView {
    tenant_id: String,
    /// `suspended`, `reinstated` or `removed`.
    change: String,
    at: String,
    /// Milliseconds from the change of the tenant to Kong's answer.
    lag_ms: i64,
}

impl KongSyncView {
    fn of(status: Option<SyncStatus>) -> KongSyncView {
        let enabled = status.is_some();
        let status = status.unwrap_or_default();
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        KongSyncView {
            enabled,
            mode: status.mode.map(str::to_owned),
            last_run_at: status.last_run_at.map(instant),
            last_success_at: status.last_success_at.map(instant),
            error: status.error,
            consumers: count(status.consumers),
            suspended: count(status.suspended),
            strangers: count(status.strangers),
            conflicts: status.conflicts.iter().map(ToString::to_string).collect(),
            last_change: status.last_change.as_ref().map(KongChangeView::of),
            nodes: status.nodes.into_iter().map(KongNodeView::of).collect(),
        }
    }
}

impl KongNodeView {
    fn of(node: NodeStatus) -> KongNodeView {
        KongNodeView {
            url: node.url,
            last_run_at: node.last_run_at.map(instant),
            last_success_at: node.last_success_at.map(instant),
            error: node.error,
            configuration_hash: node.configuration_hash,
        }
    }
}

impl KongChangeView {
    fn of(reached: &Reached) -> KongChangeView {
        KongChangeView {
            tenant_id: reached.tenant.to_string(),
            change: reached.change.name().into(),
            at: instant(reached.at),
            lag_ms: reached.lag_ms,
        }
    }
}
