//! `/v1/gateway/kong/logs`: the gateway's access log coming in. The intake reads it; this answers.

use std::net::IpAddr;

use poem::RequestBody;
use poem::http::HeaderMap;
use poem_openapi::registry::{MetaMediaType, MetaRequest, MetaSchema, MetaSchemaRef, Registry};
use poem_openapi::types::Example;
use poem_openapi::{ApiExtractor, ApiExtractorType, ExtractParamOptions, Object, OpenApi};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::authorize::{Ask, too_many_failures};
use super::document::Tag;
use super::ingestion::{REJECTED_SHOWN_MAX, RejectedView};
use super::operation::BodyKind;
use super::problem::{Code, Problem};
use super::reply::Reply;
use crate::access::{Caller, Gate};
use crate::config;
use crate::domain::api_key::Terms;
use crate::domain::tenant::Role;
use crate::fault;
use crate::intake::kong::log_receiver::{LogReceiver, Received};
use crate::intake::record::Reporter;

/// The operation that the gateway's own token opens.
pub(super) const LOGS: &str = "recordKongLogs";

/// Where Kong's log is taken, and what opens that door besides our own keys.
#[derive(Clone)]
pub struct KongDoor {
    receiver: LogReceiver,
    header: String,
    token: Option<SecretString>,
}

impl KongDoor {
    #[must_use]
    pub fn new(log: &config::KongAccessLog, receiver: LogReceiver) -> KongDoor {
        KongDoor { receiver, header: log.token_header.to_ascii_lowercase(), token: log.token.clone() }
    }

    /// The gateway, if it says its token; `None` when it says none, and other credentials are to be looked at.
    ///
    /// # Errors
    /// [`Code::InvalidCredentials`] for another token, and [`Code::TooManyFailures`] for one too many from `source`.
    pub(super) fn admit(
        &self,
        gate: &Gate,
        headers: &HeaderMap,
        source: Option<IpAddr>,
    ) -> Result<Option<Caller>, Problem> {
        let Some(token) = &self.token else { return Ok(None) };
        let mut said = headers.get_all(self.header.as_str()).iter();
        let Some(said_first) = said.next() else { return Ok(None) };
        let holds =
            aws_lc_rs::constant_time::verify_slices_are_equal(said_first.as_bytes(), token.expose_secret().as_bytes());
        if holds.is_err() || said.next().is_some() {
            metrics::counter!("platform_api_authentication_failures_total", "kind" => "gateway_token").increment(1);
            let is_one_too_many = gate.is_one_too_many(source, &String::from_utf8_lossy(said_first.as_bytes()));
            return Err(if is_one_too_many { too_many_failures() } else { Problem::new(Code::InvalidCredentials) });
        }
        Ok(Some(Caller {
            actor: "gateway:kong".into(),
            roles: vec![Role::Reporter],
            tenant: None,
            user: None,
            service: false,
            suspended: false,
            api_key: None,
            withheld: Vec::new(),
            person: None,
            terms: Terms::default(),
        }))
    }
}

pub(super) struct Gateway;

#[OpenApi(tag = "Tag::Usage")]
impl Gateway {
    /// Record Kong's access log
    ///
    /// What Kong's http-log plugin posts: an object, or an array of them; lines of objects too, as file-log writes them.
    /// Opened by the token of `gateway.kong.access_log.token` in its header, or by a reporter's key. Answered after the commit;
    /// a record that comes again, by its `request.id`, changes nothing. Of a record only its id, time, route, status,
    /// consumer and counts are read: no other header, and nothing of the query, the client or the bodies.
    #[oai(path = "/v1/gateway/kong/logs", method = "post", operation_id = "recordKongLogs")]
    async fn record_logs(&self, ask: Ask, _body: LogBody) -> Result<Reply<Logged>, Problem> {
        let reporter = match ask.admitted.tenant {
            Some(_) if ask.is_platform() => Reporter::Tenant(ask.row()?.id),
            Some(tenant) => Reporter::Tenant(tenant),
            None => Reporter::Platform,
        };
        let received = ask.api.kong.receiver.receive(ask.body.clone(), reporter, &ask.request_id).await;
        fault::point("answer.before");
        Ok(Reply::new(Logged::of(received?)))
    }
}

/// What became of a body of the log, after the commit.
#[derive(Debug, PartialEq, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename_all = "camelCase", example)]
pub(super) struct Logged {
    /// New, and kept.
    accepted: u64,
    /// Known already.
    duplicates: u64,
    /// Of no tenant: requests that were turned away, and those of others.
    unattributed: u64,
    /// No records, or not the caller's to report. The first thousand are listed.
    rejected: Vec<RejectedView>,
}

impl Logged {
    fn of(received: Received) -> Logged {
        let shown = received.rejected.into_iter().take(REJECTED_SHOWN_MAX);
        Logged {
            accepted: received.accepted,
            duplicates: received.duplicates,
            unattributed: received.unattributed,
            rejected: shown.map(|one| RejectedView::new(one.index, one.code, one.message)).collect(),
        }
    }
}

impl Example for Logged {
    fn example() -> Logged {
        let rejected = vec![RejectedView::new(3, "MALFORMED_EVENT", "request.id: missing".into())];
        Logged { accepted: 8, duplicates: 1, unattributed: 2, rejected }
    }
}

/// The body of `POST /v1/gateway/kong/logs`, for the document; the intake reads it.
pub(super) struct LogBody;

impl<'a> ApiExtractor<'a> for LogBody {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(_: &mut Registry) {}

    fn request_meta() -> Option<MetaRequest> {
        let description = "One record of Kong's http-log or file-log plugin.";
        let record = || {
            MetaSchemaRef::Inline(Box::new(MetaSchema { description: Some(description), ..MetaSchema::new("object") }))
        };
        let many =
            MetaSchemaRef::Inline(Box::new(MetaSchema { items: Some(Box::new(record())), ..MetaSchema::new("array") }));
        let either = MetaSchemaRef::Inline(Box::new(MetaSchema { any_of: vec![record(), many], ..MetaSchema::ANY }));
        let content = vec![
            MetaMediaType { content_type: "application/json", schema: either },
            MetaMediaType { content_type: "application/x-ndjson", schema: record() },
        ];
        Some(MetaRequest { description: None, content, required: true })
    }

    async fn from_request(
        request: &'a poem::Request,
        _body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        // The stack has read the body by the operation's kind.
        debug_assert!(Ask::of(request).is_ok_and(|ask| ask.operation.body == BodyKind::KongLog));
        Ok(Self)
    }
}
