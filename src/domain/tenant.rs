//! What the catalogue knows of a tenant, and its lifecycle.

use serde::{Deserialize, Serialize};

use super::ids::TenantId;
use super::time::Timestamp;

/// Where a tenant is in its life: pending → active ⇄ suspended → archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Lifecycle {
    /// Being provisioned; never served.
    Pending,
    Active,
    /// Usage is still counted, gateways are told to deny, its credentials are refused.
    Suspended,
    /// Kept for its books and its chain; no longer served.
    Archived,
}

impl Lifecycle {
    pub const ALL: [Lifecycle; 4] = [Lifecycle::Pending, Lifecycle::Active, Lifecycle::Suspended, Lifecycle::Archived];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Lifecycle::Pending => "pending",
            Lifecycle::Active => "active",
            Lifecycle::Suspended => "suspended",
            Lifecycle::Archived => "archived",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Lifecycle> {
        Lifecycle::ALL.into_iter().find(|lifecycle| lifecycle.name() == name)
    }

    /// May a tenant go from here to `next`? Staying where it is is no move.
    #[must_use]
    pub fn may_become(self, next: Lifecycle) -> bool {
        matches!(
            (self, next),
            (Lifecycle::Pending | Lifecycle::Suspended, Lifecycle::Active)
                | (Lifecycle::Active, Lifecycle::Suspended)
                | (Lifecycle::Suspended, Lifecycle::Archived)
        )
    }
}

/// A tenant's id in another system. The pair (source, kind, id) belongs to one tenant at most.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExternalId {
    /// `litellm`, `kong` or `openmeter`.
    pub source: String,
    /// `team`, `organization`, `project`, `keyHash` or `keyAlias`: LiteLLM's `metadata.user_api_key_*` fields; `consumer`,
    /// `customId` or `username`: Kong's consumer; `subject`: that of OpenMeter's events.
    pub kind: String,
    pub id: String,
}

/// One tenant as the catalogue has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    pub id: TenantId,
    pub name: String,
    /// Unique on the platform: lower-case letters, digits and hyphens.
    pub slug: String,
    pub tier: String,
    /// IANA name; the calendar of its quotas and reports.
    pub time_zone: String,
    pub lifecycle: Lifecycle,
    pub external_ids: Vec<ExternalId>,
    /// A JSON object as text; ours to keep, the tenant's to define.
    pub settings: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// What a credential may be used for within its tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Everything on the platform.
    PlatformAdmin,
    /// Everything within one tenant: the tenant's administrator.
    Admin,
    /// Builds on the platform: reads quotas, usage and alerts, asks for decisions.
    Developer,
    /// Looks at figures: usage, alerts and reconciliation.
    Analyst,
    /// A service: reports usage, asks for decisions.
    Reporter,
    /// Reads.
    Reader,
}

impl Role {
    pub const ALL: [Role; 6] =
        [Role::PlatformAdmin, Role::Admin, Role::Developer, Role::Analyst, Role::Reporter, Role::Reader];
    /// The roles each tenant is provisioned with, and what they are for.
    pub const OF_A_TENANT: [(Role, &'static str); 5] = [
        (Role::Admin, "manages people, quotas and API keys, reads everything of the tenant"),
        (Role::Developer, "reads usage, quotas and alerts, asks for decisions"),
        (Role::Analyst, "reads usage, quotas, alerts and reconciliation"),
        (Role::Reporter, "reports usage and asks for decisions"),
        (Role::Reader, "reads usage, quotas, alerts and the audit chain"),
    ];

    /// What some of them are called elsewhere.
    pub const ALIASES: [(&'static str, Role); 2] = [("tenantAdmin", Role::Admin), ("service", Role::Reporter)];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::PlatformAdmin => "platformAdmin",
            Role::Admin => "admin",
            Role::Developer => "developer",
            Role::Analyst => "analyst",
            Role::Reporter => "reporter",
            Role::Reader => "reader",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.name() == name)
    }

    /// The role of this name, or the one that is also called so.
    #[must_use]
    pub fn from_alias(name: &str) -> Option<Role> {
        let alias = || Role::ALIASES.into_iter().find(|(alias, _)| *alias == name).map(|(_, role)| role);
        Role::from_name(name).or_else(alias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_tenant_are_those_of_its_documents() {
        assert_eq!(Lifecycle::ALL.map(Lifecycle::name), ["pending", "active", "suspended", "archived"]);
        assert_eq!(Role::ALL.map(Role::name), ["platformAdmin", "admin", "developer", "analyst", "reporter", "reader"]);
        for lifecycle in Lifecycle::ALL {
            assert_eq!(Lifecycle::from_name(lifecycle.name()), Some(lifecycle));
            assert_eq!(serde_json::to_value(lifecycle).unwrap(), lifecycle.name());
        }
        for role in Role::ALL {
            assert_eq!(Role::from_name(role.name()), Some(role));
            assert_eq!(serde_json::to_value(role).unwrap(), role.name());
        }
        assert_eq!((Lifecycle::from_name("Active"), Role::from_name("")), (None, None));
    }

    #[test]
    fn a_tenant_is_given_every_role_but_the_platform_s() {
        let given: Vec<Role> = Role::OF_A_TENANT.iter().map(|(role, _)| *role).collect();
        assert_eq!(given, Role::ALL.into_iter().filter(|role| *role != Role::PlatformAdmin).collect::<Vec<_>>());
    }

    #[test]
    fn a_lifecycle_has_four_moves() {
        use Lifecycle::{Active, Archived, Pending, Suspended};
        let moves = [(Pending, Active), (Active, Suspended), (Suspended, Active), (Suspended, Archived)];
        for from in Lifecycle::ALL {
            for to in Lifecycle::ALL {
                assert_eq!(from.may_become(to), moves.contains(&(from, to)), "{from:?} to {to:?}");
            }
        }
    }
}
