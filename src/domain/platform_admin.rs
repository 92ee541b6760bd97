//! People who administer the platform.

use super::ids::PlatformAdminId;
use super::time::Timestamp;

/// One of them. A person is known by issuer and subject alone: user names change hands, and which ones there are is their
/// issuer's to say (OpenID Connect Core 5.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformAdmin {
    pub id: PlatformAdminId,
    pub issuer: String,
    pub subject: String,
    /// For people who read the list.
    pub name: String,
    pub created_at: Timestamp,
}
