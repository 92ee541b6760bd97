//! Envoy's door: the rate limit service v3 over gRPC, answered from the same books as every other question.
//!
//! `envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit` is what Envoy, and Envoy AI Gateway with it, asks before
//! it lets a request pass. One call may carry several descriptors; each is a [`question`], the strongest answer decides.
//! No usage is counted here: `hits_addend` is not read, usage arrives as events. A call is one request of the tenant's
//! traffic where that is limited by rate. A tenant that is starting or frozen is
//! answered with UNAVAILABLE, so that Envoy's `failure_mode_deny` decides, unless another descriptor denies already.
//!
//! [`wire`] has the messages, [`question`] what they mean to us, [`server`] the socket. There is no TLS: Envoy is a
//! neighbour on the same host or behind a mesh.

mod question;
mod server;
mod wire;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use crate::clock::Clock;
use crate::config::{self, millis};
use crate::directory::handle::{Absent, Handle as Directory};
use crate::domain::ids::TenantId;
use crate::domain::organization::Revoked;
use crate::domain::provider::policy::MODEL_NOT_ALLOWED;
use crate::domain::tenant::Lifecycle;
use crate::rate_limit::{Limiter, Traffic};
use question::{Answer, Question};
use wire::{RateLimitRequest, RateLimitResponse};

pub use server::serve;

/// Descriptors of one call.
const DESCRIPTORS_MAX: usize = 64;
/// Longest call.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// What the door asks, and whom. Cheap to clone.
#[derive(Clone)]
pub struct Service(Arc<Parts>);

struct Parts {
    directory: Directory,
    clock: Clock,
    settings: config::Envoy,
    rate_limits: Limiter,
    deadline: Duration,
}

impl Service {
    #[must_use]
    pub fn new(directory: Directory, clock: Clock, settings: config::Envoy, rate_limits: Limiter) -> Service {
        let deadline = millis(settings.request_timeout_ms);
        Service(Arc::new(Parts { directory, clock, settings, rate_limits, deadline }))
    }
}

impl Parts {
    async fn answer(&self, request: Request<RateLimitRequest>) -> Result<Response<RateLimitResponse>, Status> {
        let began = self.clock.now();
        let answered = match tokio::time::timeout(self.deadline, self.judge(request)).await {
            Ok(answered) => answered,
            Err(_) => Err(Status::deadline_exceeded("no answer in time")),
        };
        let result = match &answered {
            Ok((word, _)) => *word,
            Err(status) => word_of(status.code()),
        };
        metrics::counter!("platform_api_envoy_requests_total", "result" => result).increment(1);
        let micros = Duration::from_micros(u64::try_from(self.clock.now().0 - began.0).unwrap_or_default());
        metrics::histogram!("platform_api_envoy_request_seconds").record(micros.as_secs_f64());
        answered.map(|(_, response)| Response::new(response))
    }

    /// The word for the call, and what is said.
    async fn judge(&self, request: Request<RateLimitRequest>) -> Result<(&'static str, RateLimitResponse), Status> {
        self.admit(request.metadata())?;
        let request = request.into_inner();
        if self.settings.domain.as_ref().is_some_and(|domain| *domain != request.domain) {
            return Err(Status::invalid_argument("questions of this domain are not answered here"));
        }
        if request.descriptors.is_empty() || request.descriptors.len() > DESCRIPTORS_MAX {
            return Err(Status::invalid_argument(format!("1 to {DESCRIPTORS_MAX} descriptors are answered")));
        }
        let of = |descriptor| question::of(descriptor, &self.settings.keys);
        let questions: Vec<Option<Question>> = request.descriptors.iter().map(of).collect();
        let mut answers = Vec::with_capacity(questions.len());
        for question in &questions {
            answers.push(match question {
                Some(question) => self.ask(question).await,
                None => Answer::Unknown,
            });
        }
        // What is denied anyway, or not answered, costs no token.
        if self.rate_limits.limits_traffic() && answers.iter().all(|answer| answer.passes(self.settings.on_unknown)) {
            self.judge_traffic(&questions, &mut answers);
        }
        question::response(&answers, self.settings.on_unknown, self.clock.now())
            .ok_or_else(|| Status::unavailable("the tenant cannot be asked now"))
    }

    /// Callers know the shared token, if there is one.
    fn admit(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let Some(token) = &self.settings.token else { return Ok(()) };
        let said = metadata.get("authorization").map_or(&b""[..], |value| value.as_bytes());
        let scheme = b"bearer ";
        let secret = said.split_at_checked(scheme.len()).filter(|(word, _)| word.eq_ignore_ascii_case(scheme));
        let known = secret.is_some_and(|(_, secret)| {
            aws_lc_rs::constant_time::verify_slices_are_equal(secret, token.expose_secret().as_bytes()).is_ok()
        });
        if known { Ok(()) } else { Err(Status::unauthenticated("a bearer token is needed")) }
    }

    /// A call is one request of each tenant that it names, and of each of its API keys, in however many descriptors.
    fn judge_traffic(&self, questions: &[Option<Question>], answers: &mut [Answer]) {
        let mut tenants: Vec<TenantId> = questions.iter().flatten().map(|question| question.tenant).collect();
        tenants.sort_unstable();
        tenants.dedup();
        for tenant in tenants {
            let of_tenant = |question: &&Question| question.tenant == tenant;
            let asked = questions.iter().flatten().filter(of_tenant);
            let mut keys: Vec<&str> = asked.map(|question| question.subject.api_key.as_str()).collect();
            keys.sort_unstable();
            keys.dedup();
            let Some(tier) = self.directory.tier(tenant, |name| self.rate_limits.tier(Some(name))) else { continue };
            let Traffic::Refused(refusal) = self.rate_limits.judge_traffic(tenant, tier, &keys) else { continue };
            for (question, answer) in questions.iter().zip(answers.iter_mut()) {
                if question.as_ref().is_some_and(|question| question.tenant == tenant) {
                    answer.refuse(refusal);
                }
            }
        }
    }

    async fn ask(&self, question: &Question) -> Answer {
        let suspended = self.directory.lifecycle(question.tenant) == Some(Lifecycle::Suspended);
        let suspended = suspended.then_some(Revoked::Tenant);
        match self.directory.find(question.tenant).await {
            Ok(handle) => match handle.decide(&question.subject) {
                Ok(decided) => {
                    let key = || self.directory.key_ended(question.tenant, &question.subject.api_key);
                    let revoked = suspended.or(decided.revoked).or_else(key);
                    if let Some(revoked) = revoked {
                        let counted = "platform_api_refused_after_revocation_total";
                        metrics::counter!(counted, "kind" => revoked.name()).increment(1);
                    }
                    let policy_has =
                        |model: &String| handle.providers().is_ok_and(|ours| ours.policy.allows_model(model));
                    let allowed = decided.model_is_allowed && question.further_models.iter().all(policy_has);
                    let barred = revoked.map(Revoked::code).or((!allowed).then_some(MODEL_NOT_ALLOWED));
                    Answer::Judged { decision: Box::new(decided.decision), barred, refusal: None }
                }
                Err(_) => Answer::Unavailable,
            },
            Err(Absent::Unknown) => Answer::Unknown,
            Err(Absent::ComeBack { .. } | Absent::Elsewhere { .. } | Absent::Frozen) => Answer::Unavailable,
        }
    }
}

impl tonic::server::UnaryService<RateLimitRequest> for Service {
    type Response = RateLimitResponse;
    type Future = Pin<Box<dyn Future<Output = Result<Response<RateLimitResponse>, Status>> + Send>>;

    fn call(&mut self, request: Request<RateLimitRequest>) -> Self::Future {
        let parts = self.0.clone();
        Box::pin(async move { parts.answer(request).await })
    }
}

/// A status as a label: few and bounded.
fn word_of(code: Code) -> &'static str {
    match code {
        Code::Unavailable => "unavailable",
        Code::Unauthenticated => "unauthenticated",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        _ => "failed",
    }
}
