//! What a drift consists of: one finding for each cause and window, with its evidence, ageing like an open invoice.

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use super::Proof;
use crate::domain::ids::{FindingId, TenantId};
use crate::domain::period::Window;
use crate::domain::time::Timestamp;

/// Ids that one finding keeps as evidence; the counts are always whole.
pub const EVIDENCE_IDS_MAX: usize = 50;

/// What is suspected. Each has its own remedy, which is why they are not one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// The gateway passed it on and got a success; the ledger never heard of it.
    LostInLedger,
    /// The ledger counted it; it did not come through the gateway.
    BypassedGateway,
    /// The ledger has more calls than the gateway counted requests: they came another way, or stand in the ledger twice.
    /// Only a whole access log could say which.
    Unaccounted,
    /// Asked for with one tenant's credential, in another tenant's name.
    TenantMismatch,
    /// The ledger counted one request more than once.
    Duplicate,
    /// The same request, with other amounts on both sides, or tokens without a price.
    Mispriced,
    /// The limiter let it through unseen, because its store was down.
    FailOpen,
    /// The limiter's counters were lost or began anew. Unproven, not a drift.
    LimiterReset,
    /// The two date the same requests too far apart.
    ClockSkew,
}

impl Cause {
    pub const ALL: [Cause; 9] = [
        Cause::LostInLedger,
        Cause::BypassedGateway,
        Cause::Unaccounted,
        Cause::TenantMismatch,
        Cause::Duplicate,
        Cause::Mispriced,
        Cause::FailOpen,
        Cause::LimiterReset,
        Cause::ClockSkew,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Cause::LostInLedger => "lostInLedger",
            Cause::BypassedGateway => "bypassedGateway",
            Cause::Unaccounted => "unaccounted",
            Cause::TenantMismatch => "tenantMismatch",
            Cause::Duplicate => "duplicate",
            Cause::Mispriced => "mispriced",
            Cause::FailOpen => "failOpen",
            Cause::LimiterReset => "limiterReset",
            Cause::ClockSkew => "clockSkew",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Cause> {
        Cause::ALL.into_iter().find(|cause| cause.name() == name)
    }

    /// Does it say of calls that no limiter counted them?
    #[must_use]
    pub fn is_past_the_limiter(self) -> bool {
        matches!(self, Cause::BypassedGateway | Cause::FailOpen | Cause::Duplicate | Cause::TenantMismatch)
    }

    /// Do the books disagree, so that it alerts when it persists?
    #[must_use]
    pub fn is_drift(self) -> bool {
        !matches!(self, Cause::LimiterReset | Cause::ClockSkew)
    }
}

/// Where a finding stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    Open,
    /// Somebody is looking at it. Still counts as open.
    Acknowledged,
    /// The books agree by now: what was missing has come.
    Resolved,
    /// A person says why it is as it is.
    Explained,
    /// An adjusting entry has been made.
    Settled,
}

impl Status {
    pub const ALL: [Status; 5] =
        [Status::Open, Status::Acknowledged, Status::Resolved, Status::Explained, Status::Settled];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Status::Open => "open",
            Status::Acknowledged => "acknowledged",
            Status::Resolved => "resolved",
            Status::Explained => "explained",
            Status::Settled => "settled",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Status> {
        Status::ALL.into_iter().find(|status| status.name() == name)
    }

    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Status::Open | Status::Acknowledged)
    }
}

/// What the comparison of a window found, for one cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub cause: Cause,
    pub proof: Proof,
    pub window: Window,
    /// What the gateway says of what the finding is about, in requests (or attempts, for [`Proof::Attempts`]).
    pub gateway: i64,
    /// What the ledger says of it, in calls.
    pub ledger: i64,
    /// Requests that the finding is about; never negative.
    pub count: i64,
    pub evidence: Evidence,
}

/// What a person needs to follow a finding up; a JSON document in the database.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Evidence {
    /// The gateway's request ids, at most [`EVIDENCE_IDS_MAX`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub request_ids: Vec<String>,
    /// Call ids, at most [`EVIDENCE_IDS_MAX`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub call_ids: Vec<String>,
    /// Positions in the ledger, at most [`EVIDENCE_IDS_MAX`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ledger_positions: Vec<i64>,
    /// By how much the ledger is above the gateway (below, if negative), class by class; only classes that differ.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
    /// So many windows, up to and with this one, were added up: what each of them hides below its tolerance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub windows: Option<i64>,
    /// How far the clocks are apart in the middle of all pairs, in milliseconds; gateway minus ledger.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skew_millis: Option<i64>,
}

/// One class of tokens, or the cost in nano-dollars, on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// One of [`super::class::NAMES`].
    pub class: String,
    pub gateway: i64,
    pub ledger: i64,
}

/// A finding as it stands; a row of the tenant's database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub id: FindingId,
    pub found: Found,
    pub status: Status,
    pub opened_at: Timestamp,
    pub changed_at: Timestamp,
    /// Who changed the status last; empty for the reconciler itself.
    pub changed_by: String,
    /// Why, in that person's words.
    pub reason: String,
    /// Ledger position of the adjusting entry, or 0.
    pub adjustment: i64,
}

impl Finding {
    /// The id of the one finding there can be for this cause and window: the same in every run of the comparison.
    #[must_use]
    pub fn id_for(tenant: TenantId, cause: Cause, window: Window) -> FindingId {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"platform-api/finding/v1");
        context.update(tenant.0.as_bytes());
        context.update(cause.name().as_bytes());
        context.update(&window.start.0.to_be_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&context.finish().as_ref()[..16]);
        // RFC 9562, version 8: the layout is ours.
        FindingId(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }

    /// How long it has been open, in microseconds.
    #[must_use]
    pub fn age_micros(&self, now: Timestamp) -> i64 {
        now.0.saturating_sub(self.opened_at.0).max(0)
    }
}
