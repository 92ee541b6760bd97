//! What a gateway states: requests, meters, and the times in which it could not be heard.

use crate::domain::amount::NanoUsd;
use crate::domain::period::Window;
use crate::domain::time::Timestamp;

/// Longest request id, call id, route or series name that is kept, in bytes.
pub const READING_TEXT_BYTES_MAX: usize = 256;

/// Name of the route that stands for all: a limiter that counts on every route counts each call. Its series begin so.
pub const EVERY_ROUTE: &str = "*";

/// Where readings come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// The gateway's access log, one record per finished request (Kong: http-log, file-log).
    AccessLog,
    /// The gateway's own running counts (Kong: `kong_http_requests_total`).
    Metrics,
    /// The counters of the gateway's rate limiter, in Redis (Kong: `ratelimit:*`). They count attempts.
    Limiter,
}

impl Source {
    pub const ALL: [Source; 3] = [Source::AccessLog, Source::Metrics, Source::Limiter];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Source::AccessLog => "accessLog",
            Source::Metrics => "metrics",
            Source::Limiter => "limiter",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<Source> {
        Source::ALL.into_iter().find(|source| source.name() == name)
    }
}

/// Who answered a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServedBy {
    /// The service behind the gateway (Kong: `source` is `upstream`): the ledger should know of it.
    Upstream,
    /// The gateway itself: a denial, a termination, a hit of its cache.
    Gateway,
}

/// In whose name a request was made, seen from the tenant in whose books it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The tenant's own, by the authenticated consumer, or by its header where nothing authenticates.
    Own,
    /// Somebody else's, who named this tenant in a header. It explains usage that is attributed to this tenant; nothing
    /// else of it is kept.
    Claimed,
}

/// One finished request, as the gateway's access log tells it. Times are the gateway's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayRequest {
    /// The gateway's own id, unique and trusted (Kong: `request.id`, 3.5 and newer). Re-sent records have the same one.
    pub request_id: String,
    /// `x-litellm-call-id` of the response, or empty. A hit of the gateway's cache replays another call's.
    pub call_id: String,
    /// When the request began.
    pub started_at: Timestamp,
    /// Until the last byte of the answer.
    pub duration_micros: i64,
    pub role: Role,
    /// Name of the route, or empty.
    pub route: String,
    /// HTTP status that the client got.
    pub status: i64,
    pub served_by: ServedBy,
    /// A consumer was identified: the request got as far as the limiter.
    pub authenticated: bool,
    /// The answer carried what only a limiter at work says (Kong: `X-RateLimit-Remaining-*`; a hit of its cache replays
    /// `X-RateLimit-Limit-*`). Without it, on a route that has a limiter, the limiter was passed by.
    pub limited: bool,
    /// It named another tenant than the one whose credential it used.
    pub claims_other: bool,
    /// What the gateway itself counted (Kong: `ai.proxy.usage`), if it did. Its total is never used.
    pub counted: Option<GatewayCount>,
}

impl GatewayRequest {
    /// Did it begin within `window`, or was it still under way?
    #[must_use]
    pub fn is_under_way(&self, window: Window) -> bool {
        let ended = self.started_at.plus_micros(self.duration_micros.max(0));
        self.started_at < window.end && ended >= window.start
    }
}

/// Tokens and cost as a gateway counted them, each of them if stated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GatewayCount {
    pub prompt_tokens: Option<i64>,
    pub completion_tokens: Option<i64>,
    pub cached_tokens: Option<i64>,
    pub reasoning_tokens: Option<i64>,
    pub cost: Option<NanoUsd>,
}

/// What a running meter shows at an instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterReading {
    pub source: Source,
    /// Which meter of that source: one for each thing that counts by itself (a node's consumer, a limiter's route and
    /// period). Never a tenant's secret. A limiter's that counts on every route begins with [`EVERY_ROUTE`].
    pub series: String,
    /// A value that is smaller than before, or another epoch, means that the meter has started again at zero. Of a meter
    /// that dies with its period it is the start of that period, in digits alone, so that the counter of an older period
    /// that is read beside its successor is known to be the older one.
    pub epoch: String,
    pub value: i64,
    /// When it was read, by our clock; of a period that was over by then, its last instant. A meter that does not change
    /// must still be told once within each window, or the time since counts as a gap.
    pub at: Timestamp,
    /// The source was being watched in this epoch when the meter did not exist yet, so all of `value` is new.
    pub from_zero: bool,
    /// The meter dies with its window (a limiter's minute), so what is read last is a lower bound.
    pub lower_bound: bool,
}

/// A time in which a source could not be heard, or what it said cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interruption {
    pub source: Source,
    /// The last good look, or the best that is known.
    pub from: Timestamp,
    /// The first good look after it.
    pub until: Timestamp,
    pub reason: InterruptionReason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InterruptionReason {
    /// The gateway was started again: its metrics began anew, and its log queue may be lost.
    GatewayRestarted,
    /// The limiter's store was started again or emptied, or one of its counters fell.
    LimiterReset,
    /// The source did not answer, or we were not there to ask.
    Gap,
    /// The gateway's clock and ours are too far apart.
    ClockSkew,
    /// The meter died before it could be read to its end: it can only say "enough".
    LowerBound,
    /// Requests and calls share no id by which they could be joined.
    NoCommonId,
    /// Without a whole access log it is not known which calls went over a route that has a limiter.
    RoutesUnknown,
    /// There are more requests, or calls, than this proof can look at.
    TooMany,
}

impl InterruptionReason {
    pub const ALL: [InterruptionReason; 8] = [
        InterruptionReason::GatewayRestarted,
        InterruptionReason::LimiterReset,
        InterruptionReason::Gap,
        InterruptionReason::ClockSkew,
        InterruptionReason::LowerBound,
        InterruptionReason::NoCommonId,
        InterruptionReason::RoutesUnknown,
        InterruptionReason::TooMany,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            InterruptionReason::GatewayRestarted => "gatewayRestarted",
            InterruptionReason::LimiterReset => "limiterReset",
            InterruptionReason::Gap => "gap",
            InterruptionReason::ClockSkew => "clockSkew",
            InterruptionReason::LowerBound => "lowerBound",
            InterruptionReason::NoCommonId => "noCommonId",
            InterruptionReason::RoutesUnknown => "routesUnknown",
            InterruptionReason::TooMany => "tooMany",
        }
    }

    #[must_use]
    pub fn from_name(name: &str) -> Option<InterruptionReason> {
        InterruptionReason::ALL.into_iter().find(|reason| reason.name() == name)
    }
}
