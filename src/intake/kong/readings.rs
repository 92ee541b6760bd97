//! Where readings go: to the tenants, each as it can take them.
//!
//! A tenant that is starting or saturated does not hold up the others. What it could not take is owed to it, up to a bound:
//! meters run on, so that of readings that are dropped only the window is lost, and the tenant's own books notice that.
//!
//! What a tenant is told costs it a commit, and what is compared are windows. So a meter that moves is told with the last
//! look of each window, by which nothing of the window is lost, however the process ends afterwards; and at once where it
//! begins to speak, or begins anew.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt;

use crate::config;
use crate::directory::handle::Handle as Directory;
use crate::domain::ids::TenantId;
use crate::domain::reconcile::Terms;
use crate::domain::reconcile::meter::window_start;
use crate::domain::reconcile::reading::{Interruption, MeterReading, Source};
use crate::domain::stream::Checkpoint;
use crate::domain::tenant::ExternalId;
use crate::domain::time::{MICROS_PER_MINUTE, Timestamp};

/// Who owns ids of the gateway in the catalogue.
pub const SOURCE: &str = "kong";
/// Kinds of external ids: a consumer's id, its `custom_id`, its username.
pub const CONSUMER: &str = "consumer";
pub const CUSTOM_ID: &str = "customId";
pub const USERNAME: &str = "username";

/// Tenants of one page of the catalogue.
const PAGE: usize = 1_000;
/// Tenants that are told at once.
const AT_ONCE: usize = 8;
/// How long one tenant may take; what is owed to it is then owed on.
const PATIENCE: Duration = Duration::from_secs(10);
/// A meter that was told longer ago than this, and did not move until the last look, has that look told as well.
const STILL_MICROS: i64 = MICROS_PER_MINUTE / 2;
/// A look may come so many parts of the time between two looks too late.
const LATE_PARTS: i64 = 4;
/// Lives of one meter that are held back at most.
const HELD_MAX: usize = 16;
/// Readings, and interruptions, that are owed to one tenant.
const OWED_MAX: usize = 1_000;

/// Tenants, each with the usernames of its consumers.
pub type WithConsumers = Vec<(TenantId, Vec<String>)>;

/// A node of the gateway, when it was last seen by anybody of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Of the id that it has drawn at its start.
    pub node: [u8; 32],
    pub at: Timestamp,
}

/// It cannot be said now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what is remembered cannot be read now")]
pub struct Forgotten;

/// Whose a gateway's ids are, and who takes its readings.
pub trait Readings: Clone + Send + Sync + 'static {
    /// The tenant with this id, if there is one.
    fn tenant(&self, id: TenantId) -> Option<TenantId>;

    /// The tenant that owns the first of these ids that anybody owns.
    fn owner(&self, ids: &[ExternalId]) -> Option<TenantId>;

    /// Usernames of consumers that belong to tenants.
    fn usernames(&self) -> Vec<(String, TenantId)>;

    /// Tenants that are open: those whose books may be compared before long.
    fn awake(&self) -> WithConsumers;

    /// Takes readings; false when they are to be brought again.
    fn take(
        &self,
        tenant: TenantId,
        readings: Vec<MeterReading>,
        interruptions: Vec<Interruption>,
    ) -> impl Future<Output = bool> + Send;

    /// A node as it was last [remembered](Readings::remember), by its configured name; `None` when it never was.
    fn recall(&self, name: &str) -> impl Future<Output = Result<Option<Seen>, Forgotten>> + Send;

    /// Remembers a node, also for the next process. What cannot be written now is with the next look.
    fn remember(&self, name: &str, seen: Seen) -> impl Future<Output = ()> + Send;
}

/// Prefix of the names under which nodes are remembered.
const NODE_MARK: &str = "gateway.kong.node.";

impl Readings for Directory {
    fn tenant(&self, id: TenantId) -> Option<TenantId> {
        Directory::tenant(self, id).map(|tenant| tenant.id)
    }

    fn owner(&self, ids: &[ExternalId]) -> Option<TenantId> {
        self.attribute(ids)
    }

    fn usernames(&self) -> Vec<(String, TenantId)> {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page = self.tenants(after, PAGE);
            for tenant in page.items {
                let ours = tenant.external_ids.into_iter().filter(|id| id.source == SOURCE && id.kind == USERNAME);
                found.extend(ours.map(|id| (id.id, tenant.id)));
            }
            match page.next {
                Some(next) => after = Some(next),
                None => return found,
            }
        }
    }

    fn awake(&self) -> WithConsumers {
        let names = |tenant: TenantId| {
            let ids = Directory::tenant(self, tenant).map(|tenant| tenant.external_ids).unwrap_or_default();
            ids.into_iter().filter(|id| id.source == SOURCE && id.kind == USERNAME).map(|id| id.id).collect()
        };
        self.open_tenants().into_iter().map(|home| (home.tenant(), names(home.tenant()))).collect()
    }

    async fn take(&self, tenant: TenantId, readings: Vec<MeterReading>, interruptions: Vec<Interruption>) -> bool {
        // Whoever has it by now reads the same meters.
        if self.is_elsewhere(tenant) {
            return true;
        }
        match self.find(tenant).await {
            Ok(handle) => handle.gateway_readings(readings, interruptions).await.is_ok(),
            Err(_) => false,
        }
    }

    async fn recall(&self, name: &str) -> Result<Option<Seen>, Forgotten> {
        let mark = self.checkpoint(&format!("{NODE_MARK}{name}")).await.map_err(|_| Forgotten)?;
        Ok(mark.and_then(|mark| Some(Seen { node: mark.hash?, at: Timestamp(mark.at_nanos / 1_000) })))
    }

    async fn remember(&self, name: &str, Seen { node, at }: Seen) {
        let stream = format!("{NODE_MARK}{name}");
        let at_nanos = at.0.saturating_mul(1_000);
        let mark = Checkpoint { stream, created_nanos: 0, sequence: 0, at_nanos, hash: Some(node) };
        if self.keep_checkpoint(mark, Vec::new()).await.is_err() {
            tracing::debug!(node = name, "what runs cannot be remembered now");
        }
    }
}

/// The tenant that one of these names belongs to: as the id of a tenant, or in the catalogue.
pub fn owner_of(readings: &impl Readings, names: &[(&str, Option<&str>)]) -> Option<TenantId> {
    let given = || names.iter().filter_map(|(kind, name)| Some((*kind, (*name)?)));
    let itself = given().find_map(|(_, name)| readings.tenant(name.parse().ok()?));
    itself.or_else(|| {
        let external =
            |(kind, id): (&str, &str)| ExternalId { source: SOURCE.into(), kind: kind.into(), id: id.into() };
        readings.owner(&given().map(external).collect::<Vec<_>>())
    })
}

/// How often a source is looked at, and the windows in which what it says is compared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cadence {
    terms: Terms,
    every_micros: i64,
}

impl Cadence {
    pub(super) fn new(reconcile: &config::Reconcile, every_ms: u64) -> Cadence {
        Cadence { terms: reconcile.terms(), every_micros: i64::try_from(every_ms).unwrap_or(i64::MAX) * 1_000 }
    }

    pub(super) fn window(&self, at: Timestamp) -> Timestamp {
        window_start(at, &self.terms)
    }

    /// Start of the first window that nobody had judged yet at `at`, or a little before it.
    pub(super) fn not_judged_at(&self, at: Timestamp) -> Timestamp {
        self.window(at.plus_micros(-self.terms.settle_micros))
    }

    /// Is this the last look in its window? The next may come a little late.
    pub(super) fn is_last(&self, at: Timestamp) -> bool {
        let reach = self.every_micros.saturating_add(self.every_micros / LATE_PARTS);
        self.window(at.plus_micros(reach)) != self.window(at)
    }
}

/// What was told of a meter, and what was seen of it since.
#[derive(Debug, Default)]
pub(super) struct LastTold {
    told: Option<MeterReading>,
    /// Of each life and window of the meter what was seen last, oldest first.
    held: Vec<MeterReading>,
}

impl LastTold {
    pub(super) fn is_some(&self) -> bool {
        self.told.is_some()
    }

    pub(super) fn newest(&self) -> Option<&MeterReading> {
        self.held.last().or(self.told.as_ref())
    }

    /// Is `reading` of an older period than what was seen? What was seen in a future that is not to come was no period.
    pub(super) fn is_past(&self, reading: &MeterReading, now: Timestamp) -> bool {
        let newest = self.newest().filter(|known| known.at <= now);
        newest.is_some_and(|known| known.epoch != reading.epoch && reading.at < known.at)
    }

    /// Takes what a look at `now` has seen, after the last look, `looked_at`; tells what is due.
    pub(super) fn tell(
        &mut self,
        reading: MeterReading,
        now: Timestamp,
        looked_at: Option<Timestamp>,
        cadence: &Cadence,
        mut tell: impl FnMut(MeterReading),
    ) {
        let is_first = self.newest().is_none();
        let began_anew = self.newest().is_some_and(|known| begins_anew(known, &reading));
        let stands = self.newest().is_some_and(|known| known.epoch == reading.epoch && known.value == reading.value);
        match self.held.last_mut() {
            Some(last) if stands => {
                if cadence.window(last.at) == cadence.window(reading.at) {
                    last.at = reading.at.max(last.at);
                }
            }
            None if stands => {}
            Some(last)
                if !began_anew
                    && last.epoch == reading.epoch
                    && cadence.window(last.at) == cadence.window(reading.at) =>
            {
                *last = reading;
            }
            _ => {
                self.held.extend(self.stood_still(&reading, looked_at, began_anew));
                self.held.push(reading);
            }
        }
        if is_first || began_anew || self.held.len() > HELD_MAX {
            self.hand_over(&mut tell);
        }
        self.tell_due(now, cadence, tell);
    }

    /// Tells what is held, if its window is over, or will be by the next look; also of a meter that is not there any more.
    pub(super) fn tell_due(&mut self, now: Timestamp, cadence: &Cadence, tell: impl FnMut(MeterReading)) {
        let is_over = self.held.first().is_some_and(|first| cadence.window(first.at) != cadence.window(now));
        if is_over || cadence.is_last(now) {
            self.hand_over(tell);
        }
    }

    /// Tells all that has been seen.
    pub(super) fn hand_over(&mut self, mut tell: impl FnMut(MeterReading)) {
        for reading in self.held.drain(..) {
            self.told = Some(reading.clone());
            tell(reading);
        }
    }

    /// The last look at which a meter had not moved, if it was told long before, or if that is when its life ended.
    fn stood_still(
        &self,
        reading: &MeterReading,
        looked_at: Option<Timestamp>,
        began_anew: bool,
    ) -> Option<MeterReading> {
        let known = self.told.as_ref().filter(|_| self.held.is_empty())?;
        let least = if began_anew { 1 } else { STILL_MICROS };
        let at = looked_at.filter(|at| at.0.saturating_sub(known.at.0) >= least && *at < reading.at)?;
        Some(MeterReading { at, ..known.clone() })
    }
}

/// Does the meter count from zero again, other than a limiter's counter does with each period?
fn begins_anew(known: &MeterReading, reading: &MeterReading) -> bool {
    match known.epoch == reading.epoch {
        true => reading.value < known.value,
        false => reading.source != Source::Limiter || !reading.from_zero,
    }
}

/// What is owed to the tenants.
#[derive(Debug)]
pub(super) struct Owed<R> {
    readings: R,
    tenants: HashMap<TenantId, Told, ahash::RandomState>,
}

/// What one tenant is told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) readings: Vec<MeterReading>,
    pub(super) interruptions: Vec<Interruption>,
}

impl Told {
    /// The newest are kept.
    fn bound(&mut self) {
        let surplus = |length: usize| length.saturating_sub(OWED_MAX);
        self.readings.drain(..surplus(self.readings.len()));
        self.interruptions.drain(..surplus(self.interruptions.len()));
    }
}

impl<R: Readings> Owed<R> {
    pub(super) fn new(readings: R) -> Owed<R> {
        Owed { readings, tenants: HashMap::default() }
    }

    pub(super) fn readings(&self) -> &R {
        &self.readings
    }

    pub(super) fn reading(&mut self, tenant: TenantId, reading: MeterReading) {
        self.tenants.entry(tenant).or_default().readings.push(reading);
    }

    pub(super) fn interruption(&mut self, tenant: TenantId, interruption: Interruption) {
        self.tenants.entry(tenant).or_default().interruptions.push(interruption);
    }

    /// Owes an interruption to those that are `watched`, and to everybody who is awake: a source that was never heard knows
    /// nobody, and what nobody could hear is not nothing.
    pub(super) fn interrupt(&mut self, watched: impl Iterator<Item = TenantId>, interruption: Interruption) {
        let awake = self.readings.awake().into_iter().map(|(tenant, _)| tenant);
        for tenant in watched.chain(awake).collect::<HashSet<_, ahash::RandomState>>() {
            self.interruption(tenant, interruption.clone());
        }
    }

    /// Tells everybody, several at once; keeps what somebody could not take.
    pub(super) async fn settle(&mut self) {
        let told = std::mem::take(&mut self.tenants).into_iter().map(|(tenant, told)| {
            let readings = self.readings.clone();
            async move {
                let Told { readings: meters, interruptions } = told.clone();
                let taken = tokio::time::timeout(PATIENCE, readings.take(tenant, meters, interruptions)).await;
                (tenant, told, taken.unwrap_or(false))
            }
        });
        let mut told = futures_util::stream::iter(told).buffer_unordered(AT_ONCE);
        while let Some((tenant, mut told, taken)) = told.next().await {
            if !taken {
                told.bound();
                self.tenants.insert(tenant, told);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Tenants in a list, and what each was told.
    #[derive(Clone, Default)]
    pub(in crate::intake::kong) struct Listeners {
        pub(in crate::intake::kong) names: Vec<(&'static str, &'static str, TenantId)>,
        pub(in crate::intake::kong) heard: Arc<Mutex<HashMap<TenantId, Told, ahash::RandomState>>>,
        pub(in crate::intake::kong) deaf: Arc<Mutex<Vec<TenantId>>>,
        pub(in crate::intake::kong) awake: Arc<Mutex<WithConsumers>>,
        pub(in crate::intake::kong) seen: Arc<Mutex<HashMap<String, Seen>>>,
        /// Nothing that is remembered can be read.
        pub(in crate::intake::kong) forgets: Arc<Mutex<bool>>,
    }

    impl Listeners {
        pub(in crate::intake::kong) fn heard_by(&self, tenant: TenantId) -> Told {
            self.heard.lock().unwrap().get(&tenant).cloned().unwrap_or_default()
        }
    }

    impl Readings for Listeners {
        fn tenant(&self, id: TenantId) -> Option<TenantId> {
            self.names.iter().find(|(.., tenant)| *tenant == id).map(|(.., tenant)| *tenant)
        }

        fn owner(&self, ids: &[ExternalId]) -> Option<TenantId> {
            let owner = |id: &ExternalId| self.names.iter().find(|(kind, name, _)| id.kind == *kind && id.id == *name);
            ids.iter().find_map(owner).map(|(.., tenant)| *tenant)
        }

        fn usernames(&self) -> Vec<(String, TenantId)> {
            let ours = self.names.iter().filter(|(kind, ..)| *kind == USERNAME);
            ours.map(|(_, name, tenant)| ((*name).to_owned(), *tenant)).collect()
        }

        fn awake(&self) -> WithConsumers {
            self.awake.lock().unwrap().clone()
        }

        async fn take(&self, tenant: TenantId, readings: Vec<MeterReading>, interruptions: Vec<Interruption>) -> bool {
            if self.deaf.lock().unwrap().contains(&tenant) {
                return false;
            }
            let mut heard = self.heard.lock().unwrap();
            let told = heard.entry(tenant).or_default();
            told.readings.extend(readings);
            told.interruptions.extend(interruptions);
            true
        }

        async fn recall(&self, name: &str) -> Result<Option<Seen>, Forgotten> {
            if *self.forgets.lock().unwrap() {
                return Err(Forgotten);
            }
            Ok(self.seen.lock().unwrap().get(name).copied())
        }

        async fn remember(&self, name: &str, seen: Seen) {
            self.seen.lock().unwrap().insert(name.to_owned(), seen);
        }
    }

    /// Windows of five minutes; a look every ten seconds.
    pub(in crate::intake::kong) fn cadence() -> Cadence {
        Cadence::new(&config::Reconcile::default(), 10_000)
    }

    /// Looks at (second, epoch, value); answers what was told, and with which look.
    fn told_at(source: Source, looks: &[(i64, &str, i64)]) -> Vec<(i64, i64, i64)> {
        let (mut told, mut last, mut looked_at) = (Vec::new(), LastTold::default(), None);
        for (second, epoch, value) in looks {
            let at = Timestamp(second * 1_000_000);
            let reading = MeterReading {
                source,
                series: "one".into(),
                epoch: (*epoch).into(),
                value: *value,
                at,
                from_zero: true,
                lower_bound: false,
            };
            let tell = |reading: MeterReading| told.push((*second, reading.at.0 / 1_000_000, reading.value));
            last.tell(reading, at, looked_at, &cadence(), tell);
            looked_at = Some(at);
        }
        told
    }

    #[test]
    fn a_meter_that_moves_is_told_once_in_each_window_with_its_last_look() {
        let looks: Vec<(i64, &str, i64)> = (0..90).map(|look| (look * 10, "n", look)).collect();
        let told = told_at(Source::Metrics, &looks);
        assert_eq!(told, [(0, 0, 0), (290, 290, 29), (590, 590, 59), (890, 890, 89)]);
        // The looks at the end of the window did not come: it is told with the first that does, as of when it was seen.
        let told = told_at(Source::Metrics, &[(0, "n", 1), (10, "n", 2), (20, "n", 3), (310, "n", 5)]);
        assert_eq!(told[..2], [(0, 0, 1), (310, 20, 3)]);
        // It has stood since: it was seen so at the end of the window.
        let told = told_at(Source::Metrics, &[(0, "n", 1), (10, "n", 2), (270, "n", 2), (290, "n", 2)]);
        assert_eq!(told, [(0, 0, 1), (290, 290, 2)]);
    }

    #[test]
    fn a_meter_that_begins_anew_is_told_at_once_with_what_was_seen_of_its_former_life() {
        let told = told_at(Source::Metrics, &[(0, "n", 1), (10, "n", 7), (20, "m", 2), (30, "m", 3)]);
        assert_eq!(told, [(0, 0, 1), (20, 10, 7), (20, 20, 2)]);
        let told = told_at(Source::Limiter, &[(0, "0", 1), (10, "0", 7), (20, "0", 2)]);
        assert_eq!(told, [(0, 0, 1), (20, 10, 7), (20, 20, 2)]);
        // One that stood still lived until it was last seen.
        let told = told_at(Source::Limiter, &[(0, "0", 5), (10, "0", 5), (20, "0", 2)]);
        assert_eq!(told, [(0, 0, 5), (20, 10, 5), (20, 20, 2)]);
        // A limiter's counter does so by nature: its last of each period is held until the window ends.
        let looks = [(0, "0", 1), (50, "0", 7), (70, "60", 2), (110, "60", 5), (130, "120", 1), (290, "240", 4)];
        let told = told_at(Source::Limiter, &looks);
        assert_eq!(told, [(0, 0, 1), (290, 50, 7), (290, 110, 5), (290, 130, 1), (290, 290, 4)]);
    }

    #[tokio::test]
    async fn what_one_tenant_cannot_take_is_owed_to_it_alone() {
        let (acme, globex) = (TenantId(uuid::Uuid::from_u128(1)), TenantId(uuid::Uuid::from_u128(2)));
        let listeners = Listeners::default();
        let mut owed = Owed::new(listeners.clone());
        let reading = |value: i64| MeterReading {
            source: Source::Metrics,
            series: "one".into(),
            epoch: "e".into(),
            value,
            at: Timestamp(value),
            from_zero: false,
            lower_bound: false,
        };
        listeners.deaf.lock().unwrap().push(acme);
        for tenant in [acme, globex] {
            owed.reading(tenant, reading(1));
        }
        owed.settle().await;
        assert_eq!((listeners.heard_by(acme).readings.len(), listeners.heard_by(globex).readings.len()), (0, 1));
        for value in 2..=2_000 {
            owed.reading(acme, reading(value));
        }
        owed.settle().await;
        listeners.deaf.lock().unwrap().clear();
        owed.settle().await;
        owed.settle().await;
        let heard: Vec<i64> = listeners.heard_by(acme).readings.iter().map(|reading| reading.value).collect();
        assert_eq!(heard, (1_001..=2_000).collect::<Vec<i64>>());
    }
}
