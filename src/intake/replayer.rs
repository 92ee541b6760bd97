//! Brings back what was parked: events in quarantine that wait for nothing but their tenant.
//!
//! A row is counted, then marked. A crash in between counts it again, which its tenant's ledger recognises. A tenant that
//! still cannot take anything is left alone for a while, and holds up nobody else.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::record::Recorder;
use crate::directory::handle::Refused;
use crate::domain::ids::TenantId;
use crate::domain::report::Fate;

/// How often we look while something is waiting, and while nothing is known to be.
const ROUND_EVERY: Duration = Duration::from_secs(1);
const IDLE_ROUND_EVERY: Duration = Duration::from_secs(15);
/// Tenants that are helped at once.
const TENANTS_AT_ONCE: usize = 4;
/// Rows of one try, and their bytes.
const ROWS_MAX: usize = 500;
const BYTES_MAX: i64 = 8 * 1024 * 1024;
/// Tries for one tenant in one round, so that a long backlog does not keep others waiting.
const TRIES_MAX: usize = 20;
/// How long a tenant is left alone that could not take its rows; doubles.
const DELAY_MIN: Duration = Duration::from_millis(500);
const DELAY_MAX: Duration = Duration::from_secs(30);

/// Brings parked events back.
pub struct Replayer {
    recorder: Recorder,
    absent: HashMap<TenantId, Absent>,
}

/// A tenant that could not take its rows.
#[derive(Debug, Clone, Copy)]
struct Absent {
    until: Instant,
    delay: Duration,
}

impl Replayer {
    #[must_use]
    pub fn new(recorder: Recorder) -> Replayer {
        Replayer { recorder, absent: HashMap::new() }
    }

    /// Brings back what can be, until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let parked = self.recorder.parked_events();
        let mut blind = false;
        while !stop.is_cancelled() {
            let looked = self.round(&stop).await;
            match &looked {
                Ok(()) if blind => tracing::info!("parked events can be looked for again"),
                Err(error) if !blind => tracing::warn!(%error, "parked events cannot be looked for"),
                Err(error) => tracing::debug!(%error, "parked events still cannot be looked for"),
                Ok(()) => {}
            }
            blind = looked.is_err();
            let pause =
                if parked.borrow().events.is_none_or(|events| events > 0) { ROUND_EVERY } else { IDLE_ROUND_EVERY };
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.recorder.parked() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn round(&mut self, stop: &CancellationToken) -> Result<(), Refused> {
        let census = self.recorder.count_parked().await?;
        let now = Instant::now();
        self.absent.retain(|tenant, _| census.iter().any(|(waiting, _)| waiting == tenant));
        let due = census.into_iter().map(|(tenant, _)| tenant);
        let due = due.filter(|tenant| self.absent.get(tenant).is_none_or(|absent| absent.until <= now));
        let recorder = &self.recorder;
        let helped: Vec<(TenantId, bool)> = futures_util::stream::iter(due)
            .map(|tenant| async move { (tenant, bring_back(recorder, tenant, stop).await) })
            .buffer_unordered(TENANTS_AT_ONCE)
            .collect()
            .await;
        for (tenant, took_all) in &helped {
            if *took_all {
                self.absent.remove(tenant);
            } else {
                let delay = self.absent.get(tenant).map_or(DELAY_MIN, |absent| (absent.delay * 2).min(DELAY_MAX));
                self.absent.insert(*tenant, Absent { until: Instant::now() + delay, delay });
            }
        }
        if !helped.is_empty() {
            self.recorder.count_parked().await?;
        }
        Ok(())
    }
}

/// Counts a tenant's oldest rows; true when it took what it was given.
async fn bring_back(recorder: &Recorder, tenant: TenantId, stop: &CancellationToken) -> bool {
    for _ in 0..TRIES_MAX {
        if stop.is_cancelled() {
            break;
        }
        let rows = match recorder.directory().waiting(tenant, ROWS_MAX, BYTES_MAX).await {
            Ok(rows) if rows.is_empty() => break,
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(%error, %tenant, "parked events could not be read");
                return false;
            }
        };
        let (retried, later) = recorder.retry(rows).await;
        let counted = retried.iter().filter(|row| row.fate == Fate::Counted).count();
        if !retried.is_empty()
            && let Err(error) = recorder.directory().retried(tenant, retried).await
        {
            // They are counted again, and recognised.
            tracing::warn!(%error, %tenant, events = counted, "parked events were counted, and could not be marked");
            return false;
        }
        if counted > 0 {
            tracing::info!(%tenant, events = counted, "parked events were counted");
        }
        if later.is_some() {
            return false;
        }
    }
    true
}
