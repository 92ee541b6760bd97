//! Who is home: finds a tenant's pair of actors, opens it, restarts it, lets it rest, and keeps the catalogue.
//!
//! - [`handle`]: the doorbell. A look-up of an open tenant is a read of a shared map; only a miss asks an actor.
//! - [`supervisor`]: the actor that owns the slots. It opens tenants in tasks of their own, so that one slow database
//!   holds up nobody, restarts failed ones with a doubling delay, asks idle ones to rest, and drains them all at the end.
//! - [`slot`]: what a tenant's place may be, as a pure state machine.
//! - [`registrar`]: the actor that owns the control database's write connection: the only writer of the catalogue.
//! - [`task`]: a change that a resource of the platform's brings whole. [`platform_admin`]: who administers the platform.
//!   [`flag`]: the platform's feature flags, and counts of what was served.
//! - [`api_key`]: a tenant's keys. `key_use`: when each was last used.
//! - `quarantine`: how much of it is whose.
//! - [`jobs`]: background work, as far as it is durable. [`session`]: sessions of browsers, and passwords.
//! - `follow`: what other nodes on the same control database change. `remember`: how long each tenant's chain is, and whose it
//!   is. `neighbours`: which tenants other nodes have taken. [`heartbeat`]: which nodes live, and who comes back to what the others
//!   owed. `crowd`: more tenants than places.
//! - [`index`]: the catalogue in memory, for look-ups in the request path.
//! - [`errand`]: one try of a job, and who holds it. [`workflow`]: changes that touch the control database and a tenant's;
//!   what is left to do is a job, each step may be done again, and whatever a crash left unfinished is taken up by whichever
//!   node sees it first.
//!
//! A tenant that is not served (pending, archived) and one that does not exist look the same from outside. A tenant whose
//! database is missing, swapped, corrupt or behind is frozen: answered with "unavailable", never created anew.

pub mod api_key;
mod crowd;
pub mod errand;
pub mod flag;
mod follow;
pub mod handle;
pub mod heartbeat;
mod index;
pub mod jobs;
mod key_use;
mod neighbours;
pub mod noted;
pub mod platform_admin;
mod platform_chain;
mod quarantine;
mod registrar;
mod remember;
pub mod session;
pub mod slot;
mod supervisor;
pub mod task;
pub mod workflow;

use std::sync::Arc;

use ractor::Actor;
use tokio::sync::{Notify, Semaphore, mpsc};

use crate::clock::{self, Clock};
use crate::config;
use crate::domain::ids::{NodeId, TenantId};
use crate::domain::reconcile::Terms;
use crate::domain::routing::Routing;
use crate::store::StoreError;
use crate::store::database::Store;

/// What the directory is given by the daemon.
#[derive(Debug, Clone)]
pub struct Settings {
    pub tenants: config::Tenants,
    pub retention_micros: i64,
    /// Which channels alerts are owed to.
    pub routing: Arc<Routing>,
    /// How tenants' books are compared with a gateway's.
    pub reconcile: Terms,
    /// How long whoever makes a change may fall silent before another node goes on with it.
    pub lease_micros: i64,
}

/// Opens the directory: loads the catalogue, and wakes the tenants that were awake and that no other node holds, so that what they
/// owe is delivered. What a crash left unfinished is taken up by the [runner](crate::jobs::runner).
///
/// # Errors
/// [`StoreError`] when the control database cannot be opened or read.
pub async fn open(
    store: Store,
    settings: Settings,
    clock: Clock,
    hints: mpsc::Sender<TenantId>,
) -> Result<handle::Handle, StoreError> {
    let index = Arc::new(index::Index::default());
    let lease_micros = settings.lease_micros;
    let node = NodeId(clock::new_id());
    let registrar =
        registrar::Birth { node, store: store.clone(), index: index.clone(), clock: clock.clone(), lease_micros };
    let awake = registrar::load(&registrar).await?;
    let (registrar, _) = Actor::spawn(None, registrar::Registrar, registrar)
        .await
        .map_err(|error| StoreError::Wrong(format!("the registrar did not start: {error}")))?;
    let homes = Arc::new(supervisor::Homes::default());
    let birth = supervisor::Birth {
        store: store.clone(),
        settings,
        clock: clock.clone(),
        hints,
        homes: homes.clone(),
        index: index.clone(),
        registrar: registrar.clone(),
    };
    let (supervisor, _) = Actor::spawn(None, supervisor::Supervisor, birth)
        .await
        .map_err(|error| StoreError::Wrong(format!("the supervisor did not start: {error}")))?;
    let pacemaker = heartbeat::Heart::start(node, store.clone(), supervisor.clone()).await?;
    let handle = handle::Handle::new(handle::Parts {
        store,
        index,
        homes,
        registrar,
        supervisor: supervisor.clone(),
        clock,
        exposures: flag::Exposures::default(),
        job_bell: Notify::new(),
        held: Arc::default(),
        changes: workflow::Changes::new(lease_micros),
        quarantine_room: Arc::new(Semaphore::new(handle::QUARANTINE_BYTES_MAX)),
        pacemaker,
    });
    let _ = supervisor.cast(supervisor::Message::TakeUp { held: awake });
    Ok(handle)
}

#[cfg(test)]
mod nodes_test;
#[cfg(test)]
mod tests;
