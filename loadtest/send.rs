//! Events to the daemon, over the stream or over HTTP: all that there are as fast as they are taken.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::jetstream;
use bytes::Bytes;
use tokio::time::sleep;

use crate::events::{self, Payload};
use crate::link::{Link, request};
use crate::plant::Plant;
use crate::progress::Progress;

/// How long a sender waits that was told that a tenant is saturated.
const PAUSE: Duration = Duration::from_millis(20);

/// Publishes all of them, by turns to each tenant's subject; returns when the stream has confirmed every one.
pub(crate) async fn publish(plant: &Plant, events: &[Bytes], in_flight: u32) -> anyhow::Result<()> {
    let subjects = plant.tenants.iter().map(|tenant| format!("{}.{}", plant.subject(), tenant.id));
    publish_to(plant, events, &subjects.collect::<Vec<_>>(), in_flight).await
}

/// As [`publish`], to these subjects.
pub(crate) async fn publish_to(
    plant: &Plant,
    events: &[Bytes],
    subjects: &[String],
    in_flight: u32,
) -> anyhow::Result<()> {
    let client = async_nats::connect(&plant.surroundings.nats).await.context("connecting to NATS")?;
    let window = in_flight as usize * 1_000;
    let context = jetstream::ContextBuilder::new().max_ack_inflight(window + 1).build(client);
    let mut waiting = VecDeque::with_capacity(window);
    let mut progress = Progress::of("publishing", events.len() as u64);
    for (at, (event, subject)) in events.iter().zip(subjects.iter().cycle()).enumerate() {
        if waiting.len() >= window
            && let Some(oldest) = waiting.pop_front()
        {
            confirmed(oldest).await?;
        }
        waiting.push_back(context.publish(subject.clone(), event.clone()).await?);
        if at % 1_000 == 0 {
            progress.at(at as u64);
        }
    }
    for publish in waiting {
        confirmed(publish).await?;
    }
    Ok(())
}

async fn confirmed(publish: jetstream::context::PublishAckFuture) -> anyhow::Result<()> {
    publish.await.context("the stream did not take an event")?;
    Ok(())
}

/// Requests that together hold all events, a batch for one tenant in each.
pub(crate) struct Requests(Vec<(Vec<u8>, usize)>);

impl Requests {
    /// `events` as [`events::make`] made them: by turns for each of the plant's tenants.
    pub(crate) fn of(plant: &Plant, payload: Payload, events: &[Bytes], batch: u64) -> Requests {
        let path = match payload {
            Payload::Compact => "/v1/usage/events",
            Payload::Litellm => "/v1/usage/litellm",
        };
        let tenants = plant.tenants.len();
        let mut requests = Vec::new();
        for (at, tenant) in plant.tenants.iter().enumerate() {
            let theirs: Vec<Bytes> = events.iter().skip(at).step_by(tenants).cloned().collect();
            for batch in theirs.chunks(batch as usize) {
                requests.push((request("POST", path, &tenant.key, Some(&events::body(batch))), batch.len()));
            }
        }
        Requests(requests)
    }

    /// Posts all of them over `in_flight` connections; returns when each was counted.
    pub(crate) async fn post(self, plant: &Plant, in_flight: u32) -> anyhow::Result<()> {
        let (requests, next) = (Arc::new(self.0), Arc::new(AtomicUsize::new(0)));
        let mut posting = tokio::task::JoinSet::new();
        for _ in 0..in_flight {
            let (requests, next, address) = (requests.clone(), next.clone(), plant.address.clone());
            posting.spawn(async move {
                let mut link = Link::to(&address).await?;
                while let Some((request, count)) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    post_one(&mut link, request, *count).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(ended) = posting.join_next().await {
            ended??;
        }
        Ok(())
    }
}

/// One batch, again and again while the tenant says that it is saturated or starting.
async fn post_one(link: &mut Link, request: &[u8], count: usize) -> anyhow::Result<()> {
    loop {
        let answer = link.send(request).await?;
        if matches!(answer.status, 429 | 503) {
            sleep(PAUSE).await;
            continue;
        }
        let told = answer.json()?;
        let taken = told["accepted"].as_u64().unwrap_or(0) + told["duplicates"].as_u64().unwrap_or(0);
        ensure!(taken == count as u64, "{count} events were posted: {told}");
        return Ok(());
    }
}
