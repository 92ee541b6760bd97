//! Items on their way from a door to their answer: read, attributed, grouped by tenant, counted, quarantined. The reading
//! and the attribution are the real ones.

use std::collections::BTreeMap;

use bytes::Bytes;
use platform_api::directory::handle::Absent;
use platform_api::domain::books::Cursor;
use platform_api::domain::ids::TenantId;
use platform_api::domain::usage::{Outcome, Refusal, UsageEvent};
use platform_api::intake::arrival::{self, Format, Limits, Reporter};
use platform_api::intake::attribution::attribute;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::ground::{Ground, lock};
use super::node::Node;
use super::plan::Fault;
use super::planted::Planted;
use super::sender::{UNWRITABLE, tenant_id};
use super::stream::Delivery;
use super::town::Town;

const LIMITS: Limits = Limits { events_max: 100, event_bytes_max: 65_536 };

/// Where items come from, and who waits for the answer.
pub enum Via {
    Http { client: usize, attempt: u64 },
    Stream(Vec<Delivery>),
}

/// What became of one item.
#[derive(Debug, Clone)]
enum Verdict {
    Waits,
    Counted(Outcome),
    Refused { reason: Refusal },
    Later,
}

struct Item {
    /// Which message or request it belongs to.
    within: usize,
    raw: Bytes,
    verdict: Verdict,
}

/// One tenant's part.
struct Waiting {
    places: Vec<usize>,
    answer: oneshot::Receiver<Vec<Outcome>>,
}

pub struct Consignment {
    pub via: Via,
    items: Vec<Item>,
    waiting: Vec<Waiting>,
}

/// One message, or one request.
pub struct Parcel {
    pub body: Bytes,
    pub subject: Option<usize>,
    pub sequence: Option<u64>,
}

#[derive(Default)]
struct Group {
    places: Vec<usize>,
    events: Vec<UsageEvent>,
    sequence: Option<u64>,
}

impl Consignment {
    /// Reads everything and hands each tenant its part.
    pub fn submit(
        node: &mut Node,
        town: &mut Town,
        ground: &super::ground::Shared<Ground>,
        via: Via,
        parcels: &[Parcel],
    ) -> Consignment {
        let mut items = Vec::new();
        let mut groups: BTreeMap<TenantId, Group> = BTreeMap::new();
        for (within, parcel) in parcels.iter().enumerate() {
            let reading = arrival::read(&parcel.body, Format::Events, LIMITS).expect("bodies are short");
            for item in reading.items {
                let reporter = parcel.subject.map_or(Reporter::Platform, |number| Reporter::Tenant(tenant_id(number)));
                let read = item.reading.and_then(|parsed| {
                    let tenant = attribute(&parsed.claim, reporter, |_| None)?;
                    Ok((tenant, parsed.event))
                });
                let verdict = match read {
                    Ok((tenant, event)) if town.vaults.contains_key(&tenant) => {
                        let group = groups.entry(tenant).or_default();
                        group.places.push(items.len());
                        group.events.push(event);
                        group.sequence = group.sequence.max(parcel.sequence);
                        Verdict::Waits
                    }
                    Ok(_) => Verdict::Refused { reason: Refusal::UnknownTenant },
                    Err(problem) => Verdict::Refused { reason: problem.reason },
                };
                items.push(Item { within, raw: item.raw, verdict });
            }
        }
        let mut consignment = Consignment { via, items, waiting: Vec::new() };
        for (tenant, group) in groups {
            consignment.hand_over(node, town, ground, tenant, group);
        }
        consignment
    }

    fn hand_over(
        &mut self,
        node: &mut Node,
        town: &mut Town,
        ground: &super::ground::Shared<Ground>,
        tenant: TenantId,
        group: Group,
    ) {
        let Group { places, events, sequence } = group;
        let now = node.now();
        let over_stream = matches!(self.via, Via::Stream(_));
        let verdict = match node.find(tenant, town) {
            Ok(home) => {
                let cursor = sequence.map(|sequence| Cursor { stream: "USAGE".into(), sequence: sequence as i64 });
                match home.record(events, cursor, String::new(), now) {
                    Some(answer) => {
                        self.waiting.push(Waiting { places, answer });
                        return;
                    }
                    None => {
                        lock(ground).coverage.saw("event: not now, the tenant is saturated");
                        Verdict::Later
                    }
                }
            }
            // As the recorder does: a message that is given back for ever would in the end hold up everybody's.
            Err(Absent::Frozen) if over_stream => Verdict::Refused { reason: Refusal::TenantFrozen },
            Err(_) => {
                lock(ground).coverage.saw("event: not now, the tenant is starting");
                Verdict::Later
            }
        };
        for place in places {
            self.items[place].verdict = verdict.clone();
        }
    }

    /// Takes in answers; true when everything is known that will be.
    pub fn is_ready(&mut self) -> bool {
        let items = &mut self.items;
        self.waiting.retain_mut(|waiting| {
            let outcomes = match waiting.answer.try_recv() {
                Err(TryRecvError::Empty) => return true,
                // The tenant ended with our events in its hands: nothing is known.
                Err(TryRecvError::Closed) => vec![],
                Ok(outcomes) => outcomes,
            };
            let mut outcomes = outcomes.into_iter();
            for place in &waiting.places {
                items[*place].verdict = match outcomes.next() {
                    None => Verdict::Later,
                    Some(Outcome::Refused(reason)) => Verdict::Refused { reason },
                    Some(outcome) => Verdict::Counted(outcome),
                };
            }
            false
        });
        self.waiting.is_empty()
    }

    /// Quarantines what has to be, and says for each message whether all of it is settled.
    pub fn settle(&mut self, town: &mut Town, ground: &mut Ground) -> Vec<bool> {
        let refused = || self.items.iter().filter(|item| matches!(item.verdict, Verdict::Refused { .. }));
        let failed = refused().next().is_some() && ground.strikes(Fault::QuarantineFails);
        let messages = self.items.iter().map(|item| item.within + 1).max().unwrap_or(0);
        let mut settled = vec![true; messages];
        for item in &self.items {
            settled[item.within] &= match &item.verdict {
                Verdict::Refused { .. } if failed => {
                    ground.coverage.saw("event: not now, no quarantine");
                    ground.plants(Planted::QuarantineSkipped)
                }
                Verdict::Refused { reason } => {
                    ground.coverage.saw(quarantined(*reason, &item.raw));
                    town.quarantine.insert(item.raw.to_vec(), *reason);
                    true
                }
                Verdict::Counted(outcome) => {
                    ground.coverage.saw(counted(*outcome));
                    true
                }
                Verdict::Waits | Verdict::Later => false,
            };
        }
        settled
    }
}

fn counted(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Accepted => "event: accepted",
        Outcome::Duplicate => "event: duplicate",
        _ => "event: conflict",
    }
}

fn quarantined(reason: Refusal, raw: &[u8]) -> &'static str {
    match reason {
        Refusal::Malformed if raw.windows(UNWRITABLE.len()).any(|part| part == UNWRITABLE.as_bytes()) => {
            "event: quarantined as unwritable"
        }
        Refusal::TooOld => "event: quarantined as too old",
        Refusal::FromTheFuture => "event: quarantined as from the future",
        Refusal::TenantFrozen => "event: quarantined because its tenant is frozen",
        Refusal::TenantMismatch | Refusal::UnknownTenant => "event: quarantined as another tenant's",
        _ => "event: quarantined as malformed",
    }
}
