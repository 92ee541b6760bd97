//! Flagsmith as the source of the platform's feature flags.
//!
//! Its environment document is fetched again and again and evaluated here, so that no request waits for Flagsmith. The last
//! good document is kept, in memory and in the control database: when Flagsmith cannot be reached, what it last said holds,
//! also after a restart, and health and a metric say how old it is.

pub mod environment;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::BytesMut;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config;
use crate::directory::handle::Handle as Directory;
use crate::domain::flag::{FlagSet, FlagSource};
use crate::domain::time::{MICROS_PER_SECOND, Timestamp};
use crate::intake::kong::health::{Health, Standing};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest document that is read.
const DOCUMENT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What its document is kept as.
const SOURCE: &str = "flagsmith";

/// The flags as Flagsmith last said them.
#[derive(Debug, Default)]
pub struct Published(ArcSwap<FlagSet>);

impl FlagSource for Published {
    fn name(&self) -> &'static str {
        SOURCE
    }

    fn flags(&self) -> Arc<FlagSet> {
        self.0.load_full()
    }
}

/// Fetches the document, again and again.
pub struct Flagsmith {
    client: reqwest::Client,
    url: String,
    key: SecretString,
    every: Duration,
    clock: Clock,
    directory: Directory,
    published: Arc<Published>,
    health: watch::Sender<Health>,
    /// The document that is served, and when it was fetched.
    document: Option<(String, Timestamp)>,
}

impl Flagsmith {
    /// `None` when it is not configured. Begins with the document of the last run, if there is one.
    ///
    /// # Errors
    /// When there can be no client.
    pub async fn open(
        settings: &config::Flagsmith,
        directory: Directory,
        clock: Clock,
    ) -> Result<Option<Flagsmith>, String> {
        let (Some(url), Some(key)) = (&settings.url, &settings.environment_key) else { return Ok(None) };
        // Fails when a provider is installed already, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = reqwest::Client::builder()
            .user_agent(concat!("platform-api/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .build()
            .map_err(|error| format!("no HTTP client: {}", error.without_url()))?;
        let mut flagsmith = Flagsmith {
            client,
            url: format!("{}/api/v1/environment-document/", url.trim_end_matches('/')),
            key: key.clone(),
            every: config::millis(settings.poll_ms),
            clock,
            directory,
            published: Arc::default(),
            health: watch::channel(Health::unknown("not asked yet")).0,
            document: None,
        };
        flagsmith.recall().await;
        Ok(Some(flagsmith))
    }

    #[must_use]
    pub fn source(&self) -> Arc<Published> {
        self.published.clone()
    }

    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Works until asked to stop.
    pub async fn run(mut self, stopping: CancellationToken) {
        let mut turns = tokio::time::interval(self.every);
        turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while stopping.run_until_cancelled(turns.tick()).await.is_some() {
            if stopping.run_until_cancelled(self.look()).await.is_none() {
                return;
            }
        }
    }

    /// The document of the last run.
    async fn recall(&mut self) {
        match self.directory.flag_document(SOURCE).await {
            Ok(Some((document, at))) => match environment::read(&document, at) {
                Ok(flags) => {
                    self.published.0.store(Arc::new(flags));
                    self.document = Some((document, at));
                }
                Err(problem) => tracing::warn!(problem, "the kept document of flagsmith is of no use"),
            },
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the kept document of flagsmith could not be read"),
        }
    }

    async fn look(&mut self) {
        let now = self.clock.now();
        let fetched = match self.fetch().await {
            Ok(document) => self.take(document, now).await,
            Err(problem) => Err(("failed", problem)),
        };
        let result = fetched.as_ref().map_or_else(|(result, _)| *result, |()| "ok");
        metrics::counter!("platform_api_flag_source_fetches_total", "result" => result).increment(1);
        self.tell(fetched.err().map(|(_, problem)| problem));
    }

    /// Serves a document. One that cannot be read changes nothing.
    async fn take(&mut self, document: String, now: Timestamp) -> Result<(), (&'static str, &'static str)> {
        let is_new = self.document.as_ref().is_none_or(|(known, _)| *known != document);
        if is_new {
            let flags = environment::read(&document, now).map_err(|problem| ("unreadable", problem))?;
            tracing::info!(flags = flags.len(), "flagsmith has new flags");
            self.published.0.store(Arc::new(flags));
            // Of use to the next start alone, so its failure is no failure of this one.
            if let Err(error) = self.directory.keep_flag_document(SOURCE, document.clone()).await {
                tracing::warn!(%error, "flagsmith's document could not be kept");
            }
        }
        self.document = Some((document, now));
        Ok(())
    }

    fn tell(&self, problem: Option<&'static str>) {
        let age = self.document.as_ref().map(|(_, at)| (self.clock.now().0 - at.0).max(0) / MICROS_PER_SECOND);
        if let Some(seconds) = age {
            metrics::gauge!("platform_api_flag_source_age_seconds").set(seconds as f64);
        }
        let (standing, detail) = match (problem, age) {
            (None, _) => (Standing::Up, "the flags are as flagsmith has them".to_owned()),
            (Some(problem), Some(seconds)) => {
                (Standing::Degraded, format!("{problem}; serving what it said {seconds} s ago"))
            }
            (Some(problem), None) => (Standing::Down, format!("{problem}; there are no flags of the platform's")),
        };
        if let Some(problem) = problem {
            tracing::warn!(problem, "flagsmith's flags could not be fetched");
        }
        self.health.send_replace(Health { standing, detail });
    }

    async fn fetch(&self) -> Result<String, &'static str> {
        let request = self.client.get(&self.url).header("X-Environment-Key", self.key.expose_secret());
        // What the client says of a failure quotes the address.
        let mut response = request.send().await.map_err(|error| match error.is_timeout() {
            true => "it does not answer in time",
            false => "it cannot be reached",
        })?;
        match response.status().as_u16() {
            200 => {}
            401 | 403 => return Err("it refuses the environment key"),
            _ => return Err("it does not answer with its document"),
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|_| "its answer breaks off")? {
            if body.len() + chunk.len() > DOCUMENT_BYTES_MAX {
                return Err("its document is too long");
            }
            body.extend_from_slice(&chunk);
        }
        String::from_utf8(body.to_vec()).map_err(|_| "its document is not UTF-8")
    }
}
