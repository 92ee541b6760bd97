//! Identifiers: parsed once at the door, never validated again.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID in its hyphenated form")]
pub struct NotAnId;

/// The lower-case form of a text that is a UUID, as identifiers are printed; `None` for any other text.
#[must_use]
pub fn lower_case_uuid(text: &str) -> Option<String> {
    let is_uuid = text.len() == 36 && Uuid::try_parse(text).is_ok();
    is_uuid.then(|| text.to_ascii_lowercase())
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(formatter)
            }
        }

        impl FromStr for $name {
            type Err = NotAnId;

            /// Accepts the 36-character hyphenated form in either case; prints lower case.
            fn from_str(text: &str) -> Result<Self, NotAnId> {
                if text.len() != 36 {
                    return Err(NotAnId);
                }
                Uuid::try_parse(text).map(Self).map_err(|_| NotAnId)
            }
        }
    };
}

uuid_id! {
    /// A tenant: the unit of isolation. One database, one chain, one pair of actors.
    TenantId
}
uuid_id! {
    /// One process of the daemon, from its start to its end.
    NodeId
}
uuid_id! {
    /// A quota of one tenant; stays the same while the quota is edited.
    QuotaId
}
uuid_id! {
    /// An alert: one quota, one period, one threshold. Derived, so that a retry makes the same one.
    AlertId
}
uuid_id! {
    /// A finding of the reconciliation: one cause, one window. Derived, so that a second look makes the same one.
    FindingId
}
uuid_id! {
    /// A piece of background work.
    JobId
}

uuid_id! {
    /// A browser's session.
    SessionId
}
uuid_id! {
    /// A person of one tenant.
    UserId
}
uuid_id! {
    /// A group of one tenant.
    GroupId
}
uuid_id! {
    /// A role that was given to somebody of one tenant.
    RoleAssignmentId
}
uuid_id! {
    /// A policy of one tenant.
    PolicyId
}
uuid_id! {
    /// An LLM provider of one tenant.
    ProviderId
}
uuid_id! {
    /// A provider's secret; stays the same while its value is replaced.
    SecretId
}
uuid_id! {
    /// A secret that was lent to a service.
    LeaseId
}
uuid_id! {
    /// A person who administers the platform.
    PlatformAdminId
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_hyphenated_form_is_an_id() {
        for text in [
            "",
            "0199a8b25c007abc8def0123456789ab",
            "{0199a8b2-5c00-7abc-8def-0123456789ab}",
            "urn:uuid:0199a8b2-5c00-7abc-8def-0123456789ab",
            "0199a8b2-5c00-7abc-8def-0123456789ag",
            "0199a8b2-5c00-7abc-8def-0123456789ab ",
        ] {
            assert_eq!(text.parse::<TenantId>(), Err(NotAnId), "{text:?}");
        }
    }

    proptest! {
        /// Either case is read, lower case is printed, and JSON has the printed form.
        #[test]
        fn an_id_survives_a_round_trip(number in any::<u128>()) {
            let id = QuotaId(Uuid::from_u128(number));
            let printed = id.to_string();
            prop_assert_eq!(&printed, &printed.to_lowercase());
            prop_assert_eq!(printed.parse(), Ok(id));
            prop_assert_eq!(printed.to_uppercase().parse(), Ok(id));
            prop_assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{printed}\""));
        }
    }
}
