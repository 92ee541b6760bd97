//! One body of Kong's access log, from its bytes to the tenants' books.
//!
//! A request belongs to the tenant of its consumer; where nothing authenticated it and it was let through, to the tenant
//! that its header names. A consumer's request that names another tenant in its header is noted twice: in full with the
//! consumer's tenant, and with the named one only that there was such a request, because usage may have been attributed
//! there. What belongs to nobody (a 401, a route of somebody else), and what went to a service that serves no models, is
//! counted and dropped.
//!
//! Kong sends again what was not answered with 2xx, so all or nothing is answered, after the tenants' commits; `request.id`
//! is what makes the second time harmless.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use super::access_log::{self, Log, LogRecord, RECORDS_MAX};
use super::readings::{CONSUMER, CUSTOM_ID, USERNAME, owner_of};
use crate::directory::handle::{Absent, Handle as Directory};
use crate::domain::ids::TenantId;
use crate::domain::reconcile::reading::{GatewayRequest, Role};
use crate::intake::arrival::{READ_INLINE_BYTES_MAX, Reporter};
use crate::intake::record::{Cause, NotNow, RecordError};
use crate::tenant::handle::Unavailable;

/// When a tenant that is starting or saturated may be asked again.
const COME_BACK: Duration = Duration::from_secs(1);
/// When a frozen tenant may be asked again: it waits for a person.
const COME_BACK_FROZEN: Duration = Duration::from_secs(30);

/// Statuses with which Kong itself turns away whom it does not know.
const UNAUTHORIZED: [i64; 2] = [401, 403];

/// What became of a body, after the commits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Received {
    pub accepted: u64,
    pub duplicates: u64,
    /// Records of nobody that we know.
    pub unattributed: u64,
    pub rejected: Vec<Rejected>,
}

/// A record that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    pub index: usize,
    pub code: &'static str,
    pub message: String,
}

/// Takes bodies. Cheap to clone.
#[derive(Clone)]
pub struct LogReceiver {
    directory: Directory,
    patience: Duration,
    /// The services whose requests the ledger should know of; all, if none is named.
    services: Arc<[String]>,
}

impl LogReceiver {
    #[must_use]
    pub fn new(directory: Directory, patience: Duration) -> LogReceiver {
        LogReceiver { directory, patience, services: Arc::default() }
    }

    /// Only requests that went to one of these services are kept, if any is named: the ledger knows nothing of others.
    #[must_use]
    pub fn of_services(self, services: &[String]) -> LogReceiver {
        LogReceiver { services: services.into(), ..self }
    }

    /// Reads a body and hands it over; each record that is accepted is durable when this returns.
    ///
    /// # Errors
    /// [`RecordError`]; sending all of it again is safe.
    pub async fn receive(&self, body: Bytes, reporter: Reporter, request_id: &str) -> Result<Received, RecordError> {
        let log = read(body).await?;
        let mut received = Received::default();
        let mut groups: HashMap<TenantId, Vec<GatewayRequest>, ahash::RandomState> = HashMap::default();
        for (index, record) in log.records.into_iter().enumerate() {
            let record = match record {
                Ok(record) => record,
                Err(problem) => {
                    let (code, message) = (problem.reason.code(), problem.detail);
                    received.rejected.push(Rejected { index, code, message });
                    continue;
                }
            };
            match self.attribute(&record) {
                Some(whose) if !may_report(reporter, whose.own) => {
                    let message = "the record is of another tenant than the one it came for".into();
                    received.rejected.push(Rejected { index, code: "TENANT_MISMATCH", message });
                }
                Some(whose) => {
                    let mut request = record.request;
                    if let Some(named) = whose.named {
                        groups.entry(named).or_default().push(claimed(&request));
                        request.claims_other = true;
                    }
                    groups.entry(whose.own).or_default().push(request);
                }
                None => received.unattributed += 1,
            }
        }
        let handing = groups.into_iter().map(|(tenant, requests)| self.hand_over(tenant, requests, request_id));
        let mut not_now = None;
        for handed in join_all(handing).await {
            match handed {
                Ok(handed) => {
                    received.accepted += handed.new;
                    received.duplicates += handed.known;
                    received.unattributed += handed.nobodys;
                }
                Err(later) => not_now = not_now.or(Some(later)),
            }
        }
        let count = |outcome: &'static str, count: u64| {
            metrics::counter!("platform_api_kong_log_records_total", "outcome" => outcome).increment(count);
        };
        if let Some(later) = not_now {
            count("unavailable", 1);
            return Err(RecordError::NotNow(later));
        }
        count("accepted", received.accepted);
        count("duplicate", received.duplicates);
        count("unattributed", received.unattributed);
        count("rejected", received.rejected.len() as u64);
        Ok(received)
    }

    fn attribute(&self, record: &LogRecord) -> Option<Whose> {
        let is_one = |service: &String| self.services.contains(service);
        if !self.services.is_empty() && !record.service.as_ref().is_some_and(is_one) {
            return None;
        }
        let claimed = record.claimed.as_deref();
        let named = claimed.and_then(|claimed| owner_of(&self.directory, &[(CUSTOM_ID, Some(claimed))]));
        let Some(consumer) = &record.consumer else {
            // Whoever was turned away may have written any name.
            let turned_away = UNAUTHORIZED.contains(&record.request.status);
            return named.filter(|_| !turned_away).map(|own| Whose { own, named: None });
        };
        let names = [
            (CONSUMER, consumer.id.as_deref()),
            (CUSTOM_ID, consumer.custom_id.as_deref()),
            (USERNAME, consumer.username.as_deref()),
        ];
        let own = owner_of(&self.directory, &names)?;
        Some(Whose { own, named: named.filter(|named| *named != own) })
    }

    /// What became of a tenant's own; those that somebody else only claimed are not counted.
    async fn hand_over(
        &self,
        tenant: TenantId,
        requests: Vec<GatewayRequest>,
        request_id: &str,
    ) -> Result<Handed, NotNow> {
        let own: Vec<bool> = requests.iter().map(|request| request.role == Role::Own).collect();
        let handle = match self.directory.find(tenant).await {
            Ok(handle) => handle,
            // It is not served any more, and never will take what was its own.
            Err(Absent::Unknown) => {
                return Ok(Handed { nobodys: own.iter().filter(|own| **own).count() as u64, ..Handed::default() });
            }
            Err(Absent::Frozen) => return Err(NotNow { after: COME_BACK_FROZEN, why: Cause::Frozen }),
            Err(_) => return Err(NotNow { after: COME_BACK, why: Cause::Starting }),
        };
        let new = handle.gateway_requests(requests, request_id.to_owned(), self.patience).await.map_err(|error| {
            let why = match error {
                Unavailable::ComeBack => Cause::Starting,
                Unavailable::Saturated => Cause::Saturated,
                Unavailable::TimedOut => Cause::TimedOut,
            };
            NotNow { after: COME_BACK, why }
        })?;
        let counted = own.iter().zip(&new).filter(|(own, _)| **own);
        let (fresh, known): (Vec<bool>, Vec<bool>) = counted.map(|(_, new)| *new).partition(|new| *new);
        Ok(Handed { new: fresh.len() as u64, known: known.len() as u64, nobodys: 0 })
    }
}

/// What became of one tenant's records.
#[derive(Debug, Default)]
struct Handed {
    new: u64,
    known: u64,
    nobodys: u64,
}

/// In whose books a request stands.
struct Whose {
    own: TenantId,
    /// The other tenant that it named.
    named: Option<TenantId>,
}

fn may_report(reporter: Reporter, tenant: TenantId) -> bool {
    match reporter {
        Reporter::Platform => true,
        Reporter::Tenant(own) => own == tenant,
    }
}

/// What the named tenant may know of somebody else's request: that there was one.
fn claimed(request: &GatewayRequest) -> GatewayRequest {
    GatewayRequest {
        request_id: request.request_id.clone(),
        call_id: request.call_id.clone(),
        started_at: request.started_at,
        duration_micros: request.duration_micros,
        role: Role::Claimed,
        route: String::new(),
        status: request.status,
        served_by: request.served_by,
        authenticated: false,
        limited: false,
        claims_other: false,
        counted: None,
    }
}

/// A short body is read where it arrives, a longer one on a thread that may block.
async fn read(body: Bytes) -> Result<Log, RecordError> {
    let reading = if body.len() <= READ_INLINE_BYTES_MAX {
        access_log::read(&body)
    } else {
        let copy = body.clone();
        match tokio::task::spawn_blocking(move || access_log::read(&copy)).await {
            Ok(reading) => reading,
            // The runtime is shutting down; the reader itself does not panic.
            Err(_) => access_log::read(&body),
        }
    };
    match reading {
        Ok(log) if log.not_json => Err(RecordError::NotJson("neither an object, nor an array or lines of them".into())),
        Ok(log) => Ok(log),
        Err(_) => Err(RecordError::TooManyItems { limit: RECORDS_MAX }),
    }
}
