//! Where readings go: to the tenants, each as it can take them.
//!
//! A tenant that is starting or saturated does not hold up the others. What it could not take is owed to it, up to a bound:
//! meters run on, so that of readings that are dropped only the window is lost, and the tenant's own books notice that.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt;

use crate::directory::handle::Handle as Directory;
use crate::domain::ids::TenantId;
use crate::domain::reconcile::reading::{Interruption, MeterReading};
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
/// Readings, and interruptions, that are owed to one tenant.
const OWED_MAX: usize = 1_000;

/// Whose a gateway's ids are, and who takes its readings.
pub trait Readings: Clone + Send + Sync + 'static {
    /// The tenant with this id, if there is one.
    fn tenant(&self, id: TenantId) -> Option<TenantId>;

    /// The tenant that owns the first of these ids that anybody owns.
    fn owner(&self, ids: &[ExternalId]) -> Option<TenantId>;

    /// Usernames of consumers that belong to tenants.
    fn usernames(&self) -> Vec<(String, TenantId)>;

    /// Takes readings; false when they are to be brought again.
    fn take(
        &self,
        tenant: TenantId,
        readings: Vec<MeterReading>,
        interruptions: Vec<Interruption>,
    ) -> impl Future<Output = bool> + Send;
}

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

    async fn take(&self, tenant: TenantId, readings: Vec<MeterReading>, interruptions: Vec<Interruption>) -> bool {
        match self.find(tenant).await {
            Ok(handle) => handle.gateway_readings(readings, interruptions).await.is_ok(),
            Err(_) => false,
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

/// What was told of a meter last.
#[derive(Debug, Default)]
pub(super) struct LastTold(Option<MeterReading>);

impl LastTold {
    pub(super) fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Is `reading` of an older period than what was told?
    pub(super) fn is_past(&self, reading: &MeterReading) -> bool {
        self.0.as_ref().is_some_and(|told| told.epoch != reading.epoch && reading.at < told.at)
    }

    /// Tells a reading if it says something new, after the last look, `looked_at`, at which the meter had not moved.
    pub(super) fn tell(
        &mut self,
        reading: MeterReading,
        looked_at: Option<Timestamp>,
        mut tell: impl FnMut(MeterReading),
    ) {
        if let Some(told) = &self.0 {
            if told.epoch == reading.epoch && told.value == reading.value {
                return;
            }
            let still = looked_at.filter(|at| at.0.saturating_sub(told.at.0) >= STILL_MICROS && *at < reading.at);
            if let Some(at) = still {
                tell(MeterReading { at, ..told.clone() });
            }
        }
        self.0 = Some(reading.clone());
        tell(reading);
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
    }

    #[tokio::test]
    async fn what_one_tenant_cannot_take_is_owed_to_it_alone() {
        use crate::domain::reconcile::reading::Source;
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
