//! How the tenants stand in a gateway that keeps its own list of them.

use super::ids::TenantId;
use super::time::Timestamp;

/// The last comparison, and what it left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SyncStatus {
    /// Where the gateway keeps its configuration, `database` or `declarative`; `None` while nobody has asked it.
    pub mode: Option<&'static str>,
    pub last_run_at: Option<Timestamp>,
    pub last_success_at: Option<Timestamp>,
    /// Why the last run failed; it holds nothing that the gateway said.
    pub error: Option<String>,
    /// Consumers of ours, and those of them that are told as suspended.
    pub consumers: usize,
    pub suspended: usize,
    /// Consumers with our tag that belong to no tenant we know; they are left alone.
    pub strangers: usize,
    /// Tenants whose consumer is somebody else's, or whose name is taken. The first of them.
    pub conflicts: Vec<TenantId>,
    pub last_change: Option<Reached>,
    /// Those that are loaded one by one: of a gateway without a database.
    pub nodes: Vec<NodeStatus>,
}

/// One node that keeps its configuration for itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeStatus {
    pub url: String,
    pub last_run_at: Option<Timestamp>,
    pub last_success_at: Option<Timestamp>,
    /// Why its last load failed.
    pub error: Option<String>,
    /// What it says of its configuration: nodes with the same one have the same.
    pub configuration_hash: Option<String>,
}

/// A change of a tenant that has reached the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    pub tenant: TenantId,
    pub change: Change,
    pub at: Timestamp,
    /// From the catalogue's change to the gateway's answer.
    pub lag_ms: i64,
}

/// What the gateway was told about a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Suspended,
    Reinstated,
    Removed,
}

impl Change {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Change::Suspended => "suspended",
            Change::Reinstated => "reinstated",
            Change::Removed => "removed",
        }
    }
}
