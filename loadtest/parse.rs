//! What reading a body costs, by turns with what any reader would have to do with the same bytes.

use std::hint::black_box;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use platform_api::intake::arrival::{self, Format, Limits};
use tokio::time::Instant;

use crate::figures::Table;
use crate::plant::Tenant;
use crate::{Ids, Parse, Payload, events};

/// Readings of one turn.
const TURN: usize = 50;
const LIMITS: Limits = Limits { events_max: 5_000, event_bytes_max: 8 * 1024 * 1024 };
const CLOUD_EVENT: &str = include_str!("../tests/fixtures/usage/cloudevent.json");

/// One kind of body.
struct Case {
    name: &'static str,
    body: Bytes,
    format: Format,
    events: usize,
}

pub(crate) fn run(parse: Parse) -> anyhow::Result<()> {
    let mut table = Table::default();
    for case in cases()? {
        let read = arrival::read(&case.body, case.format, LIMITS)?;
        ensure!(read.items.len() == case.events && read.items.iter().all(|item| item.reading.is_ok()), "{}", case.name);
        let [ours, value, look] = case.measured(Duration::from_secs(parse.seconds))?;
        let each = format!(
            "{:>5} bytes each: {ours:.2} µs; serde_json::Value {value:.2} µs ({:.2} of it); UTF-8 and a copy {look:.2} µs",
            case.body.len() / case.events,
            ours / value
        );
        table.row(case.name, each);
    }
    table.print();
    Ok(())
}

fn cases() -> anyhow::Result<Vec<Case>> {
    let id = "6f1c9f0e-2f6b-4c0c-9d39-3f3a1c2b4d5e".to_owned();
    let tenants = [Tenant { id, team: "team-load".into(), key: String::new() }];
    let compact = events::make(Payload::Compact, Ids::V7, &tenants, 500)?;
    let litellm = events::make(Payload::Litellm, Ids::V7, &tenants, 50)?;
    let first = |events: &[Bytes]| events.first().cloned().context("no events");
    let case = |name, body, format, events| Case { name, body, format, events };
    Ok(vec![
        case("compact, one", first(&compact)?, Format::Events, 1),
        case("compact, array of 500", events::body(&compact).into(), Format::Events, 500),
        case("CloudEvent, one", Bytes::from_static(CLOUD_EVENT.as_bytes()), Format::Events, 1),
        case("LiteLLM, one from the stream", first(&litellm)?, Format::Events, 1),
        case("LiteLLM, array of 50", events::body(&litellm).into(), Format::Litellm, 50),
    ])
}

impl Case {
    /// Microseconds of CPU for each event: ours, a general reader's, and a look at every byte.
    fn measured(&self, lasting: Duration) -> anyhow::Result<[f64; 3]> {
        let mut sums = [0_u64; 3];
        let mut turns = 0_u64;
        let until = Instant::now() + lasting;
        while Instant::now() < until {
            sums[0] += cpu_of(|| drop(black_box(arrival::read(&self.body, self.format, LIMITS))))?;
            sums[1] += cpu_of(|| drop(black_box(serde_json::from_slice::<serde_json::Value>(&self.body))))?;
            sums[2] += cpu_of(|| drop(black_box(std::str::from_utf8(&self.body).map(str::to_owned))))?;
            turns += 1;
        }
        let readings = (turns * TURN as u64 * self.events as u64) as f64;
        Ok(sums.map(|nanos| nanos as f64 / 1_000.0 / readings))
    }
}

/// Nanoseconds of CPU that one turn of `work` takes on this thread.
fn cpu_of(work: impl Fn()) -> anyhow::Result<u64> {
    let before = cpu_nanos()?;
    (0..TURN).for_each(|_| work());
    Ok(cpu_nanos()? - before)
}

fn cpu_nanos() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    text.split_whitespace().next().context("no CPU time")?.parse().context("CPU time")
}
