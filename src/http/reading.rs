//! The parsers of this door, as functions of bytes and text alone. The fuzz targets try them without a daemon.

use poem::Request;
use poem::http::{HeaderMap, Method, Uri};

use super::problem::{Code, Problem};
use super::quotas::ReplaceQuotas;
use super::request::{self, Said, Trace};
use super::tenants::CreateTenant;
use super::{body, door, operation, usage, view};
use crate::directory::handle::NewTenant;
use crate::domain::ids::{QuotaId, TenantId};
use crate::domain::report::UsageQuery;
use crate::tenant::message::QuotaDraft;

pub use super::cursor::Sealer;

fn code(problem: Problem) -> Code {
    problem.code
}

/// The body of `PUT /v1/quotas/{tenantId}`.
///
/// # Errors
/// The code it is refused with.
pub fn quotas(bytes: &[u8], new_id: impl Fn() -> QuotaId) -> Result<Vec<QuotaDraft>, Code> {
    body::read::<ReplaceQuotas>(bytes).and_then(|quotas| quotas.checked(new_id)).map_err(code)
}

/// The body of `POST /v1/tenants`.
///
/// # Errors
/// The code it is refused with.
pub fn tenant(bytes: &[u8]) -> Result<NewTenant, Code> {
    body::read::<CreateTenant>(bytes).and_then(CreateTenant::checked).map_err(code)
}

/// The parameters of a query, for the operation at this address.
///
/// # Errors
/// The code it is refused with.
pub fn parameters(method: &Method, uri: &Uri) -> Result<Vec<(String, String)>, Code> {
    let (operation, _) = operation::find(method, uri.path()).map_err(|missed| Problem::from(missed).code)?;
    let request = Request::builder().method(method.clone()).uri(uri.clone()).finish();
    door::parameters(&request, operation).map_err(code)
}

/// `limit` of a list.
///
/// # Errors
/// The code it is refused with.
pub fn page_limit(text: &str) -> Result<usize, Code> {
    view::page_limit(Some(text)).map_err(code)
}

/// What a report is asked for.
///
/// # Errors
/// The code it is refused with.
pub fn report(from: &str, to: &str, granularity: Option<&str>, group_by: Option<&str>) -> Result<UsageQuery, Code> {
    usage::report_query(from, to, granularity, group_by).map_err(code)
}

/// The caller's trace id, span id and sampling, if its headers name them.
#[must_use]
pub fn trace(headers: &HeaderMap) -> Option<(u128, u64, bool)> {
    request::trace(headers).map(|Trace { trace_id, span_id, sampled }| (trace_id, span_id, sampled))
}

/// The tenant that the headers name, when every header that is read can be read.
///
/// # Errors
/// The code they are refused with.
pub fn named_tenant(headers: &HeaderMap) -> Result<Option<TenantId>, Code> {
    Said::read(headers).map(|said| said.tenant).map_err(code)
}

/// Whether an answer in JSON is acceptable.
#[must_use]
pub fn accepts_json(headers: &HeaderMap) -> bool {
    request::accepts(headers, "application/json")
}
