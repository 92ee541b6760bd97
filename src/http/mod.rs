//! The HTTP door: it converts, authorizes, asks and converts.
//!
//! No rule of the business lives here, and no state but what a request brings. A request passes, from the outside in:
//!
//! 1. [`server`]: the socket, its deadlines and the cap on connections; [`framing`]: where a request ends, read strictly
//! 2. [`door`]: its id, its address in the table of [`operation`]s, our deadline, panics, and the one envelope of
//!    [`problem`]s; around it [`cors`]: whose pages may read the answer
//! 3. [`authorize`]: who calls and from where ([`client`]), not too often ([`rate_limits`]), about which tenant, and whether
//!    a rule allows it
//! 4. [`body`]: the bytes, measured, and read strictly
//! 5. one handler: [`tenants`], [`api_keys`], [`users`], [`groups`], [`role_assignments`], [`roles`], [`policies`],
//!    [`explain`], [`authzen`], [`authzen_search`], [`platform_admins`],
//!    [`ingestion`], [`openmeter`], [`gateway`], [`usage`], [`quotas`], [`alerts`], [`channels`], [`decision`],
//!    [`reconciliation`], [`audit`], [`quarantine`], [`kong_sync`], [`rate_limits`], [`jobs`], [`flags`], [`features`],
//!    [`providers`], [`provider_secrets`], [`provider_policy`], [`ofrep`], [`auth`], [`passwords`], [`scim`], [`probes`];
//!    [`view`]s and [`reply`] are what they speak
//!
//! [`people`] has what the resources of an organization share; [`precondition`] reads `If-Match`.
//! [`document`] describes all of it; [`cursor`] seals where a list goes on; [`request`] reads the common headers;
//! [`reading`] has the parsers among all this without the door around them.

mod alerts;
mod api_key_view;
mod api_keys;
mod audit;
mod auth;
mod authorize;
mod authzen;
mod authzen_search;
mod body;
mod channels;
mod client;
mod cors;
mod cursor;
mod decision;
mod document;
mod door;
mod explain;
mod features;
mod flags;
pub mod framing;
mod gateway;
mod groups;
mod ingestion;
mod jobs;
mod kong_sync;
mod ofrep;
mod openmeter;
mod operation;
mod passwords;
mod people;
mod platform_admins;
mod policies;
mod precondition;
mod probes;
mod problem;
mod provider_policy;
mod provider_secrets;
mod providers;
mod quarantine;
mod quotas;
mod rate_limits;
pub mod reading;
mod reconciliation;
mod reply;
mod request;
mod role_assignments;
mod roles;
mod scim;
mod scim_description;
mod server;
mod settlement;
mod tenants;
mod usage;
mod users;
mod view;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use metrics_exporter_prometheus::PrometheusHandle;
use poem::endpoint::BoxEndpoint;
use poem::http::Method;
use poem::{Endpoint, IntoEndpoint, Request, Response};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use document::openapi_document;
pub use gateway::KongDoor;
pub use operation::{BodyKind, OPERATIONS, Operation, Scope};
pub use probes::{Dependency, Health, State};
pub use problem::Code;

use crate::access::Gate;
use crate::clock::Clock;
use crate::config::{self, millis};
use crate::directory;
use crate::domain::flag::FlagSource;
use crate::domain::organization::Limits;
use crate::domain::sync::SyncStatus;
use crate::intake::record::Recorder;
use crate::outlet::bench::Bench;
use crate::outlet::provider_probe::Probe;
use crate::rate_limit::Limiter;
use crate::threads;
use crate::vault::Vault;
use authorize::{Admitted, Ask};
use client::Proxies;
use cors::Cors;
use cursor::Sealer;
use door::Passage;
use problem::Problem;

/// What the door asks, and whom.
pub struct Api {
    directory: directory::handle::Handle,
    gate: Gate,
    recorder: Recorder,
    kong: KongDoor,
    rate_limits: Limiter,
    clock: Clock,
    limits: config::Http,
    proxies: Proxies,
    cors: Cors,
    health: Health,
    metrics: PrometheusHandle,
    sealer: Sealer,
    /// Where the platform's feature flags come from.
    flags: Arc<dyn FlagSource>,
    /// How the tenants stand in Kong, if somebody keeps them there.
    kong_sync: Option<watch::Receiver<SyncStatus>>,
    /// How many people a tenant may have.
    people: Limits,
    channels: Bench,
    /// Under which address gateways reach us.
    public_url: Option<String>,
    /// What they know users by.
    subject_ids: config::SubjectIds,
    /// What keeps tenants' secrets; `None` when it is off.
    vault: Option<Vault>,
    /// What tries providers.
    probe: Probe,
    /// The longest that a secret is lent for.
    lease_seconds_max: u32,
    /// Is LiteLLM told of changes?
    syncs_litellm: bool,
    /// Where everything is done but answering.
    work: Handle,
}

/// Whom the door asks.
pub struct Rooms {
    pub directory: directory::handle::Handle,
    pub gate: Gate,
    pub recorder: Recorder,
    /// Where Kong's access log goes.
    pub kong: KongDoor,
    /// Where the platform's feature flags come from.
    pub flags: Arc<dyn FlagSource>,
    /// How often is too often.
    pub rate_limits: Limiter,
    /// How the tenants stand in Kong, if somebody keeps them there.
    pub kong_sync: Option<watch::Receiver<SyncStatus>>,
    /// How many people a tenant may have.
    pub people: Limits,
    /// Where alerts go to.
    pub channels: Bench,
    /// Under which address gateways reach us.
    pub public_url: Option<String>,
    /// What they know users by.
    pub subject_ids: config::SubjectIds,
    /// What keeps tenants' secrets, and what tries providers with them.
    pub providers: ProviderTools,
}

/// What the providers of tenants need.
pub struct ProviderTools {
    /// `None` when it is off.
    pub vault: Option<Vault>,
    pub probe: Probe,
    /// The longest that a secret is lent for.
    pub lease_seconds_max: u32,
    /// Is LiteLLM told of changes?
    pub syncs_litellm: bool,
}

impl Api {
    /// To be called within the runtime where the rooms below live; requests are served by whichever calls [`serve`].
    #[must_use]
    pub fn new(rooms: Rooms, clock: Clock, limits: config::Http, health: Health, metrics: PrometheusHandle) -> Api {
        let Rooms {
            directory,
            gate,
            recorder,
            kong,
            flags,
            rate_limits,
            kong_sync,
            people,
            channels,
            public_url,
            subject_ids,
            providers,
        } = rooms;
        let ProviderTools { vault, probe, lease_seconds_max, syncs_litellm } = providers;
        let sealer = Sealer::new(&gate.pepper().derive("cursor"));
        let work = Handle::current();
        let (proxies, cors) = (Proxies::new(&limits), Cors::new(&limits));
        Api {
            directory,
            gate,
            recorder,
            kong,
            flags,
            rate_limits,
            clock,
            limits,
            proxies,
            cors,
            health,
            metrics,
            sealer,
            kong_sync,
            people,
            channels,
            public_url,
            subject_ids,
            vault,
            probe,
            lease_seconds_max,
            syncs_litellm,
            work,
        }
    }
}

/// Serves until `stop` is cancelled, and then for as long as running requests take, at most `drain`. Connections are dealt
/// out to the runtimes of `answering`.
///
/// # Errors
/// When a server ends before it is told to.
pub async fn serve(
    api: Api,
    listener: TcpListener,
    answering: &[Handle],
    stop: CancellationToken,
    drain: Duration,
) -> io::Result<()> {
    let (porter, doors) = server::open(listener, &api.limits, answering.len());
    let routes = Arc::new(routes(api));
    let mut serving = JoinSet::new();
    for (door, runtime) in doors.into_iter().zip(answering) {
        let server = poem::Server::new_with_acceptor(door);
        let stopped = stop.clone().cancelled_owned();
        serving.spawn_on(server.run_with_graceful_shutdown(routes.clone(), stopped, Some(drain)), runtime);
    }
    stop.run_until_cancelled(porter.work()).await;
    while let Some(served) = serving.join_next().await {
        served??;
    }
    Ok(())
}

/// Every address, behind the whole stack.
pub fn routes(api: Api) -> impl Endpoint<Output = Response> + 'static {
    Stack { api: Arc::new(api), handlers: Arc::new(document::service().into_endpoint()) }
}

struct Stack {
    api: Arc<Api>,
    handlers: Arc<BoxEndpoint<'static>>,
}

impl Endpoint for Stack {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let (deadline, cors) = (millis(self.api.limits.request_timeout_ms), &self.api.cors);
        if let Some(told) = cors.preflight(&request) {
            return Ok(told);
        }
        let origin = cors.origin(request.headers());
        let mut response = door::pass(request, deadline, |passage| self.enter(passage)).await;
        cors.write(origin, response.headers_mut());
        Ok(response)
    }
}

impl Stack {
    async fn enter(&self, passage: Passage) -> Result<Response, Problem> {
        let admitted = authorize::admit(&self.api, &passage).await?;
        if passage.operation.id == "decide" {
            let (ask, _) = Ask::new(self.api.clone(), passage, admitted, Bytes::new());
            return decision::answer(&ask).await;
        }
        // Apart, so that a decision does not carry its size about.
        Box::pin(self.work_on(passage, admitted)).await
    }

    /// What may take longer than a decision must not be in a decision's way.
    async fn work_on(&self, mut passage: Passage, admitted: Admitted) -> Result<Response, Problem> {
        let body = passage.request.take_body();
        let headers = passage.request.headers();
        let received = body::receive(passage.operation.body, headers, body, &self.api.limits).await;
        let body = received.map_err(|problem| match passage.operation.body {
            operation::BodyKind::Authzen => authzen::as_bad_request(problem),
            _ => problem,
        })?;
        let (ask, request) = Ask::new(self.api.clone(), passage, admitted, body);
        let answered = threads::elsewhere(&self.api.work, hand_over(self.handlers.clone(), ask, request)).await;
        answered.ok_or_else(|| Problem::new(Code::Internal))
    }
}

async fn hand_over(handlers: Arc<BoxEndpoint<'static>>, ask: Ask, mut request: Request) -> Response {
    match ask.operation.id {
        "getDocument" => document::serve_document(),
        "getDocumentation" => document::serve_documentation(),
        "getFeatures" => or_problem(features::answer(&ask).await),
        "evaluateAccess"
        | "evaluateAccesses"
        | "searchSubjects"
        | "searchResources"
        | "searchActions"
        | "getAuthzenConfiguration" => or_problem(authzen::answer(&ask).await),
        "evaluateFlag" | "evaluateFlags" => or_problem(ofrep::answer(&ask, request.uri().path()).await),
        id if id.starts_with("scim") => or_problem(scim::answer(&ask, request.uri().path()).await),
        _ => {
            if *request.method() == Method::HEAD {
                request.set_method(Method::GET);
            }
            request.set_data(ask);
            handlers.get_response(request).await
        }
    }
}

/// Carries a problem as the framework would: the door writes it.
fn or_problem(answered: Result<Response, Problem>) -> Response {
    answered.unwrap_or_else(|problem| poem::Error::from(problem).into_response())
}
