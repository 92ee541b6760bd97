//! Is it alive, is it ready, how is everything it needs: without credentials, and without detail.

use std::collections::BTreeMap;

use metrics_exporter_prometheus::PrometheusHandle;
use poem::http::StatusCode;
use poem::{IntoResponse, Response};
use poem_openapi::payload::PlainText;
use poem_openapi::registry::{MetaMediaType, MetaResponse, MetaResponses, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiResponse, Object, OpenApi};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::authorize::Ask;
use super::document::Tag;
use super::problem::{Code, Problem};
use super::reply;
use crate::directory::handle::Census;

/// How a dependency is. The reason goes to the log of the room that watches it, not to an answer without credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nobody has asked yet.
    Unknown,
    Up,
    /// It works, with less than it should.
    Degraded,
    Down,
    /// Not configured.
    Off,
}

impl State {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Unknown => "unknown",
            State::Up => "up",
            State::Degraded => "degraded",
            State::Down => "down",
            State::Off => "off",
        }
    }
}

/// One dependency, as the room that uses it sees it.
#[derive(Debug, Clone)]
pub struct Dependency {
    pub name: String,
    /// Without it the service is not ready; otherwise it is merely degraded.
    pub required: bool,
    pub state: watch::Receiver<State>,
    /// What it makes possible and what is missing for more, where there is something to say; never a secret or an address.
    pub detail: Option<watch::Receiver<String>>,
}

/// Everything the daemon knows about being well.
#[derive(Debug, Clone)]
pub struct Health {
    pub dependencies: Vec<Dependency>,
    /// True from the moment a stop is asked for.
    pub stopping: watch::Receiver<bool>,
}

impl Health {
    /// The worst that matters: `down` when a required dependency is, or a stop was asked for.
    #[must_use]
    pub fn overall(&self) -> State {
        if *self.stopping.borrow() {
            return State::Down;
        }
        let judged = self.dependencies.iter().map(|dependency| match *dependency.state.borrow() {
            State::Up | State::Off => State::Up,
            State::Down | State::Unknown if dependency.required => State::Down,
            // A channel that had nothing to deliver yet is no reason to worry.
            State::Unknown => State::Up,
            _ => State::Degraded,
        });
        judged.fold(State::Up, |worst, state| match (worst, state) {
            (State::Down, _) | (_, State::Down) => State::Down,
            (State::Degraded, _) | (_, State::Degraded) => State::Degraded,
            _ => State::Up,
        })
    }
}

pub(super) struct Probes;

#[OpenApi(tag = "Tag::Operations")]
impl Probes {
    /// How everything is
    ///
    /// Names each dependency's state. 503 when a required one is down.
    #[oai(path = "/health", method = "get", operation_id = "getHealth")]
    async fn health(&self, ask: Ask) -> HealthReply {
        HealthReply(HealthView::of(&ask.api.health, ask.api.directory.census()))
    }

    /// Is the process alive
    ///
    /// Depends on nothing else.
    #[oai(path = "/health/live", method = "get", operation_id = "getLiveness")]
    async fn live(&self) -> reply::Reply<Alive> {
        reply::Reply::new(Alive { status: "up".into() })
    }

    /// May requests be sent here
    #[oai(path = "/health/ready", method = "get", operation_id = "getReadiness")]
    async fn ready(&self, ask: Ask) -> Result<reply::Reply<Alive>, Problem> {
        match ask.api.health.overall() {
            State::Down => Err(Problem::new(Code::NotReady)),
            state => Ok(reply::Reply::new(Alive { status: state.name().into() })),
        }
    }

    /// Metrics in Prometheus' text format
    #[oai(path = "/metrics", method = "get", operation_id = "getMetrics")]
    async fn metrics(&self, ask: Ask) -> PlainText<String> {
        PlainText(render(&ask.api.metrics))
    }
}

fn render(handle: &PrometheusHandle) -> String {
    handle.run_upkeep();
    handle.render()
}

/// Alive.
#[derive(Debug, Serialize, Deserialize, Object)]
pub(super) struct Alive {
    /// `up` or `degraded`.
    status: String,
}

/// How everything is.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "Health", rename_all = "camelCase")]
pub(super) struct HealthView {
    /// `up`, `degraded` or `down`.
    status: String,
    version: String,
    dependencies: BTreeMap<String, DependencyView>,
    tenants: CensusView,
}

/// How one dependency is.
#[derive(Debug, Serialize, Deserialize, Object)]
#[oai(rename = "Dependency")]
pub(super) struct DependencyView {
    /// `up`, `degraded`, `down`, `unknown`, or `off` when it is not configured.
    status: String,
    required: bool,
    /// Of a gateway's source: which proof it makes available, and which setting is missing. Of parked usage: how much it is,
    /// of how much it may be. Of NATS: which node reads the usage stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    detail: Option<String>,
}

/// How many tenants are in which state.
#[derive(Debug, Serialize, Deserialize, Object)]
#[serde(rename_all = "camelCase")]
#[oai(rename = "Census", rename_all = "camelCase")]
pub(super) struct CensusView {
    registered: u64,
    open: u64,
    starting: u64,
    backing_off: u64,
    /// Their databases need a person's attention.
    frozen: u64,
}

impl HealthView {
    fn of(health: &Health, census: Census) -> HealthView {
        let dependency = |dependency: &Dependency| {
            let status = dependency.state.borrow().name().to_owned();
            let detail = dependency.detail.as_ref().map(|detail| detail.borrow().clone());
            (dependency.name.to_owned(), DependencyView { status, required: dependency.required, detail })
        };
        let overall = match health.overall() {
            State::Up if census.frozen > 0 => State::Degraded,
            state => state,
        };
        HealthView {
            status: overall.name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            dependencies: health.dependencies.iter().map(dependency).collect(),
            tenants: CensusView {
                registered: census.registered as u64,
                open: census.open as u64,
                starting: census.starting as u64,
                backing_off: census.backing_off as u64,
                frozen: census.frozen as u64,
            },
        }
    }
}

/// 200, or 503 with the same body.
pub(super) struct HealthReply(HealthView);

impl IntoResponse for HealthReply {
    fn into_response(self) -> Response {
        let down = self.0.status == State::Down.name();
        let status = if down { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        reply::json(status, serde_json::to_vec(&self.0).unwrap_or_default())
    }
}

impl ApiResponse for HealthReply {
    fn meta() -> MetaResponses {
        let response = |status, description| MetaResponse {
            description,
            status: Some(status),
            status_range: None,
            content: vec![MetaMediaType { content_type: "application/json", schema: HealthView::schema_ref() }],
            headers: Vec::new(),
        };
        MetaResponses { responses: vec![response(200, "Up or degraded."), response(503, "Down, with the same body.")] }
    }

    fn register(registry: &mut Registry) {
        HealthView::register(registry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(dependencies: &[(bool, State)], stopping: bool) -> Health {
        let dependency = |(required, state): &(bool, State)| Dependency {
            name: "one".into(),
            required: *required,
            state: watch::channel(*state).1,
            detail: None,
        };
        Health { dependencies: dependencies.iter().map(dependency).collect(), stopping: watch::channel(stopping).1 }
    }

    #[test]
    fn only_what_is_required_takes_the_service_down() {
        use State::{Degraded, Down, Off, Unknown, Up};
        for (dependencies, stopping, overall) in [
            (&[] as &[(bool, State)], false, Up),
            (&[(true, Up), (false, Off)], false, Up),
            (&[(true, Up), (false, Down)], false, Degraded),
            (&[(true, Up), (false, Unknown)], false, Up),
            (&[(true, Degraded)], false, Degraded),
            (&[(false, Down), (true, Down)], false, Down),
            (&[(true, Unknown)], false, Down),
            (&[(true, Up)], true, Down),
        ] {
            assert_eq!(health(dependencies, stopping).overall(), overall, "{dependencies:?} {stopping}");
        }
    }

    #[tokio::test]
    async fn down_is_503_with_the_body_and_a_frozen_tenant_only_degrades() {
        let census = Census { frozen: 1, ..Census::default() };
        let well = HealthView::of(&health(&[(true, State::Up)], false), census);
        assert_eq!(well.status, "degraded");
        assert_eq!(HealthReply(well).into_response().status(), StatusCode::OK);
        let ill = HealthView::of(&health(&[(true, State::Down)], false), Census::default());
        let mut response = HealthReply(ill).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let body: serde_json::Value = serde_json::from_slice(&response.take_body().into_vec().await.unwrap()).unwrap();
        assert_eq!(body["dependencies"]["one"]["status"], "down");
    }
}
