//! Events at a steady rate beside something else, whatever becomes of them.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;

use crate::events::{self, Ids, Payload};
use crate::link::{Wire, request};
use crate::pace::Pace;
use crate::plant::{Plant, Tenant};

/// How often the stream gets what is due by then.
const EVERY: Duration = Duration::from_millis(2);
/// Events of one request, and requests that may be under way at once.
const BATCH: usize = 100;
const CONNECTIONS: u32 = 4;

pub(crate) struct Steady(Vec<JoinHandle<anyhow::Result<u64>>>);

impl Steady {
    /// Over the stream, at `rate` events a second for `took`.
    pub(crate) fn publish(plant: &Plant, tenant: &Tenant, rate: f64, took: Duration) -> anyhow::Result<Steady> {
        let events = made(tenant, rate, took)?;
        let (nats, subject) = (plant.surroundings.nats.clone(), format!("{}.{}", plant.subject(), tenant.id));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sending = std::thread::spawn(move || runtime.block_on(publish(&nats, &subject, &events, rate, took)));
        Ok(Steady(vec![sending]))
    }

    /// Over HTTP, as [`Steady::publish`].
    pub(crate) fn post(plant: &Plant, tenant: &Tenant, rate: f64, took: Duration) -> anyhow::Result<Steady> {
        let events = made(tenant, rate, took)?;
        let whole = |batch| request("POST", "/v1/usage/events", &tenant.key, Some(&events::body(batch)));
        let requests: Vec<Vec<u8>> = events.chunks(BATCH).map(whole).collect();
        let began = Instant::now();
        let sending = (0..CONNECTIONS).map(|at| {
            let pace = Pace::share(rate / BATCH as f64, CONNECTIONS, at, began, took);
            let theirs: Vec<Vec<u8>> =
                requests.iter().skip(at as usize).step_by(CONNECTIONS as usize).cloned().collect();
            let address = plant.address.clone();
            std::thread::spawn(move || post(&address, pace, &theirs))
        });
        Ok(Steady(sending.collect()))
    }

    /// How many were sent.
    pub(crate) fn end(self) -> anyhow::Result<u64> {
        let joined = self.0.into_iter().map(JoinHandle::join);
        joined.map(|sent| sent.map_err(|_| anyhow::anyhow!("a sender panicked"))?).sum()
    }
}

fn made(tenant: &Tenant, rate: f64, took: Duration) -> anyhow::Result<Vec<Bytes>> {
    let count = (rate * took.as_secs_f64()).ceil() as u64;
    events::make(Payload::Compact, Ids::V7, std::slice::from_ref(tenant), count)
}

async fn publish(nats: &str, subject: &str, events: &[Bytes], rate: f64, took: Duration) -> anyhow::Result<u64> {
    let client = async_nats::connect(nats).await.context("connecting to NATS")?;
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed() < took {
        let due = events.len().min((began.elapsed().as_secs_f64() * rate) as usize);
        for event in &events[sent..due] {
            client.publish(subject.to_owned(), event.clone()).await?;
        }
        sent = due;
        tokio::time::sleep(EVERY).await;
    }
    client.flush().await?;
    Ok(sent as u64)
}

fn post(address: &str, pace: Pace, requests: &[Vec<u8>]) -> anyhow::Result<u64> {
    let mut wire = Wire::to(address)?;
    let mut sent = 0;
    for (request, _) in requests.iter().zip(pace.moments()) {
        // What a saturated tenant does not take is not counted, and not sent again.
        sent += wire.send(request)?.json().ok().and_then(|told| told["accepted"].as_u64()).unwrap_or(0);
    }
    Ok(sent)
}
