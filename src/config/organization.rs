//! How many people a tenant may have.

use serde::Deserialize;

use crate::domain::organization::Limits;

/// What one tenant's organization may hold. All of it is in memory while the tenant is open: measured, 2.2 kB a user with
/// two addresses, two subjects and three attributes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Organization {
    pub users_max: usize,
    pub groups_max: usize,
    /// Memberships of all groups together.
    pub members_max: usize,
    pub role_assignments_max: usize,
}

impl Default for Organization {
    fn default() -> Organization {
        Organization { users_max: 100_000, groups_max: 10_000, members_max: 500_000, role_assignments_max: 50_000 }
    }
}

impl Organization {
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            users: self.users_max,
            groups: self.groups_max,
            members: self.members_max,
            role_assignments: self.role_assignments_max,
        }
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let settings = [
            ("users_max", self.users_max, 1_000_000),
            ("groups_max", self.groups_max, 100_000),
            ("members_max", self.members_max, 5_000_000),
            ("role_assignments_max", self.role_assignments_max, 500_000),
        ];
        let wrong = settings.into_iter().filter(|(_, value, most)| !(1..=*most).contains(value));
        wrong.map(|(name, _, most)| format!("organization.{name}: must be from 1 to {most}")).collect()
    }
}
