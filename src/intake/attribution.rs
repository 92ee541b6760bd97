//! Whose event it is: what it says of itself, against who brings it.

use super::arrival::{Reporter, TenantClaim, Unreadable};
use super::text::{self, unreadable};
use crate::domain::ids::TenantId;
use crate::domain::tenant::ExternalId;
use crate::domain::usage::{LABEL_BYTES_MAX, Refusal, UsageEvent};

/// The tenant an event is counted for. `owner_of` answers which tenant owns the first of some external ids that
/// anybody owns.
///
/// A tenant's own credential, and a subject with a tenant's id, may only speak for that tenant: an event that is
/// attributed elsewhere is counted for nobody. The platform may name any tenant, and must name one.
///
/// # Errors
/// [`Refusal::TenantMismatch`] or [`Refusal::UnknownTenant`].
pub fn attribute(
    claim: &TenantClaim,
    reporter: Reporter,
    owner_of: impl FnOnce(&[ExternalId]) -> Option<TenantId>,
) -> Result<TenantId, Unreadable> {
    let mismatch = || unreadable(Refusal::TenantMismatch, "the event names another tenant than the one it came for");
    let claimed = match claim {
        TenantClaim::Named(tenant) => Some(*tenant),
        TenantClaim::NamedUnknown(text) => match reporter {
            Reporter::Tenant(_) => return Err(mismatch()),
            Reporter::Platform => {
                return Err(unreadable(Refusal::UnknownTenant, format!("{text}: not the id of a tenant")));
            }
        },
        TenantClaim::Contradictory => {
            return Err(unreadable(Refusal::TenantMismatch, "the event names two tenants"));
        }
        TenantClaim::External(ids) => owner_of(ids),
        // Only the platform chooses a tenant by it: to a tenant's own sender it is the name of a user.
        TenantClaim::Subject(subject) => match reporter {
            Reporter::Tenant(own) => Some(own),
            Reporter::Platform => owner_of(&[of_subject(subject)]).or_else(|| subject.parse().ok()),
        },
        TenantClaim::Absent => None,
    };
    match (reporter, claimed) {
        (Reporter::Tenant(own), Some(other)) if own != other => Err(mismatch()),
        (Reporter::Tenant(own), _) => Ok(own),
        (Reporter::Platform, Some(tenant)) => Ok(tenant),
        (Reporter::Platform, None) => Err(unreadable(Refusal::UnknownTenant, unnamed(claim))),
    }
}

/// What the catalogue calls OpenMeter's subject.
fn of_subject(subject: &str) -> ExternalId {
    ExternalId { source: "openmeter".into(), kind: "subject".into(), id: subject.to_owned() }
}

/// Names the user of an event whose sender named only a subject, when that is another name than the tenant's.
pub(super) fn name_user(event: &mut UsageEvent, claim: &TenantClaim, tenant: TenantId) {
    let TenantClaim::Subject(subject) = claim else { return };
    if event.subject.user.is_empty() && subject.parse() != Ok(tenant) {
        event.subject.user = text::shortened(subject, LABEL_BYTES_MAX).into_owned();
    }
}

fn unnamed(claim: &TenantClaim) -> String {
    match claim {
        TenantClaim::External(ids) if !ids.is_empty() => {
            let ids: Vec<String> = ids.iter().map(|id| format!("{} {}", id.kind, id.id)).collect();
            format!("no tenant has any of these external ids: {}", ids.join(", "))
        }
        TenantClaim::Subject(subject) => {
            format!("subject: {} is no tenant's id, and no tenant's external id", text::shortened(subject, 64))
        }
        TenantClaim::External(_) => "the event carries no identity of a key".to_owned(),
        _ => "the event names no tenant".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const ACME: TenantId = TenantId(Uuid::from_u128(1));
    const GLOBEX: TenantId = TenantId(Uuid::from_u128(2));

    fn acme_team(ids: &[ExternalId]) -> Option<TenantId> {
        ids.iter().any(|id| id.kind == "team" && id.id == "acme").then_some(ACME)
    }

    fn team(id: &str) -> TenantClaim {
        TenantClaim::External(vec![ExternalId { source: "litellm".into(), kind: "team".into(), id: id.into() }])
    }

    #[test]
    fn a_subject_chooses_the_tenant_for_the_platform_alone() {
        let owner_of = |ids: &[ExternalId]| {
            let known = ExternalId { source: "openmeter".into(), kind: "subject".into(), id: "customer-1".into() };
            ids.contains(&known).then_some(ACME)
        };
        for (subject, reporter, expected) in [
            ("customer-1", Reporter::Platform, Ok(ACME)),
            (&GLOBEX.to_string(), Reporter::Platform, Ok(GLOBEX)),
            ("customer-2", Reporter::Platform, Err(Refusal::UnknownTenant)),
            ("alice", Reporter::Tenant(GLOBEX), Ok(GLOBEX)),
            ("customer-1", Reporter::Tenant(GLOBEX), Ok(GLOBEX)),
            (&ACME.to_string(), Reporter::Tenant(GLOBEX), Ok(GLOBEX)),
        ] {
            let claim = TenantClaim::Subject(subject.to_owned());
            let found = attribute(&claim, reporter, owner_of).map_err(|problem| problem.reason);
            assert_eq!(found, expected, "{subject} from {reporter:?}");
        }
    }

    #[test]
    fn nobody_reports_for_another_tenant() {
        use Refusal::{TenantMismatch, UnknownTenant};
        let platform = Reporter::Platform;
        let globex = Reporter::Tenant(GLOBEX);
        for (claim, reporter, expected) in [
            (TenantClaim::Named(ACME), platform, Ok(ACME)),
            (TenantClaim::Named(ACME), Reporter::Tenant(ACME), Ok(ACME)),
            (TenantClaim::Named(ACME), globex, Err(TenantMismatch)),
            (TenantClaim::NamedUnknown("acme".into()), platform, Err(UnknownTenant)),
            (TenantClaim::NamedUnknown("acme".into()), globex, Err(TenantMismatch)),
            (TenantClaim::Contradictory, platform, Err(TenantMismatch)),
            (TenantClaim::Absent, platform, Err(UnknownTenant)),
            (TenantClaim::Absent, globex, Ok(GLOBEX)),
            (team("acme"), platform, Ok(ACME)),
            (team("acme"), globex, Err(TenantMismatch)),
            (team("nobody"), platform, Err(UnknownTenant)),
            // A tenant's own LiteLLM may use teams that the platform has never heard of.
            (team("nobody"), globex, Ok(GLOBEX)),
        ] {
            let found = attribute(&claim, reporter, acme_team).map_err(|problem| problem.reason);
            assert_eq!(found, expected, "{claim:?} from {reporter:?}");
        }
    }
}
