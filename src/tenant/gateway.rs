//! How what a gateway says becomes part of a posting.

use std::collections::BTreeSet;

use super::ledger::Ledger;
use super::message::{GatewayBatch, GatewayReadings};
use crate::domain::books::Posting;
use crate::domain::reconcile::reading::GatewayRequest;
use crate::store::{StoreError, gateway};

/// Keeps the requests of a batch; answers which of them are new.
///
/// # Errors
/// [`StoreError`]; the transaction is then of no use.
pub(crate) async fn requests(
    ledger: &mut impl Ledger,
    posting: &mut Posting,
    batch: &GatewayBatch,
) -> Result<Vec<bool>, StoreError> {
    let Some(database) = ledger.database() else { return Ok(vec![false; batch.requests.len()]) };
    let new = gateway::insert_requests(database, posting.now(), &batch.requests).await?;
    let kept: Vec<&GatewayRequest> =
        batch.requests.iter().zip(&new).filter(|(_, new)| **new).map(|(request, _)| request).collect();
    posting.gateway_requests(&kept, batch.requests.len(), &batch.request_id);
    Ok(new)
}

/// Reads meters.
///
/// # Errors
/// [`StoreError`]; the transaction is then of no use.
pub(crate) async fn readings(
    ledger: &mut impl Ledger,
    posting: &mut Posting,
    given: &GatewayReadings,
) -> Result<(), StoreError> {
    let Some(database) = ledger.database() else { return Ok(()) };
    let names: BTreeSet<&str> = given.readings.iter().map(|reading| reading.series.as_str()).collect();
    let known = gateway::series(database, &names).await?;
    posting.gateway_readings(&known, &given.readings, &given.interruptions);
    Ok(())
}
