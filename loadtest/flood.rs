//! Events for one tenant over HTTP as fast as they are taken, beside something else. They are made before, and sent by
//! threads of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use anyhow::ensure;

use crate::events::{self, Ids, Payload};
use crate::link::{Wire, request};
use crate::plant::{Plant, Tenant};

/// Events of one request.
const BATCH: usize = 500;
const CONNECTIONS: usize = 2;

pub(crate) struct Flood {
    over: Arc<AtomicBool>,
    sending: Vec<JoinHandle<anyhow::Result<u64>>>,
}

/// Requests that are ready to be sent.
pub(crate) struct Ready {
    address: String,
    requests: Arc<Vec<Vec<u8>>>,
}

impl Ready {
    pub(crate) fn make(plant: &Plant, tenant: &Tenant, count: u64) -> anyhow::Result<Ready> {
        let events = events::make(Payload::Compact, Ids::V7, std::slice::from_ref(tenant), count)?;
        let whole = |batch| request("POST", "/v1/usage/events", &tenant.key, Some(&events::body(batch)));
        Ok(Ready { address: plant.address.clone(), requests: Arc::new(events.chunks(BATCH).map(whole).collect()) })
    }

    pub(crate) fn start(self) -> Flood {
        let (over, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let sending = (0..CONNECTIONS).map(|_| {
            let (address, requests) = (self.address.clone(), self.requests.clone());
            let (over, next) = (over.clone(), next.clone());
            std::thread::spawn(move || send(&address, &requests, &next, &over))
        });
        Flood { sending: sending.collect(), over }
    }
}

impl Flood {
    /// How many events were taken.
    pub(crate) fn end(self) -> anyhow::Result<u64> {
        self.over.store(true, Ordering::Relaxed);
        let joined = self.sending.into_iter().map(JoinHandle::join);
        joined.map(|taken| taken.map_err(|_| anyhow::anyhow!("the flood panicked"))?).sum()
    }
}

fn send(address: &str, requests: &[Vec<u8>], next: &AtomicUsize, over: &AtomicBool) -> anyhow::Result<u64> {
    let mut wire = Wire::to(address)?;
    let mut taken = 0;
    while !over.load(Ordering::Relaxed) {
        let request = requests.get(next.fetch_add(1, Ordering::Relaxed));
        ensure!(request.is_some(), "the flood ran dry: it was faster than expected");
        let Some(request) = request else { break };
        // What a saturated tenant does not take is not counted, and not sent again.
        taken += wire.send(request)?.json().ok().and_then(|told| told["accepted"].as_u64()).unwrap_or(0);
    }
    Ok(taken)
}
