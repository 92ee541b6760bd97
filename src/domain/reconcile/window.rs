//! One settled window: the two books side by side.

use super::finding::Found;
use super::reading::{GatewayRequest, Interruption, InterruptionReason, Source};
use super::{Proof, Terms, Verdict};
use crate::domain::period::Window;
use crate::domain::time::Timestamp;
use crate::domain::usage::{Amounts, Flags, Status};

/// One row of the ledger, as far as the comparison needs it. Adjusting entries and cumulative statements are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerCall {
    pub position: i64,
    /// LiteLLM's `litellm_call_id`, or the sender's `requestId`; empty if it stated none. Retries and fallbacks of one
    /// call share it; a client may choose it, so several calls may, too.
    pub call_id: String,
    /// The gateway's request id, if the sender passed it on (`correlationId`); empty if not.
    pub request_id: String,
    pub occurred_at: Timestamp,
    pub status: Status,
    pub flags: Flags,
    pub amounts: Amounts,
}

/// What a source's meters counted in a window, summed over its series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metered {
    pub source: Source,
    pub amount: i64,
    /// At least one of the meters states a lower bound only.
    pub lower_bound: bool,
}

/// Everything the comparison of one window looks at.
#[derive(Debug, Clone, Copy)]
pub struct Books<'a> {
    pub window: Window,
    /// Requests that began in the window, or within `slack` of it, in any order.
    pub requests: &'a [GatewayRequest],
    /// Calls that occurred in the window, or within `slack` of it, in any order.
    pub calls: &'a [LedgerCall],
    /// At most one for each source; none for a source that counted nothing.
    pub metered: &'a [Metered],
    /// Those that touch the window.
    pub interruptions: &'a [Interruption],
    /// Sources that speak about this tenant at all: a proof without its source is not given.
    pub sources: &'a [Source],
    /// Routes on which the limiter has ever been seen to work.
    pub limited_routes: &'a [String],
}

/// The verdict of one proof on one window; a row of the tenant's database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    pub proof: Proof,
    pub window: Window,
    pub verdict: Verdict,
    /// What the gateway says: requests passed on, or attempts.
    pub gateway: i64,
    /// What the ledger says: calls.
    pub ledger: i64,
    /// By how much they may differ.
    pub tolerance: i64,
    /// Why it is unproven; empty otherwise.
    pub reasons: Vec<InterruptionReason>,
}

/// Compares: at most one verdict for each proof whose source speaks, and at most one finding for each cause.
#[must_use]
pub fn compare(books: &Books<'_>, terms: &Terms) -> (Vec<Judged>, Vec<Found>) {
    let _ = (books, terms);
    (Vec::new(), Vec::new())
}
