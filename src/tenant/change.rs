//! How each queued change becomes part of a posting. Changes come before the unit's usage: what they recount is then
//! what the database holds.

use super::ledger::Ledger;
use super::message::{ChangeRefused, QuotaDraft, ReplaceQuotas};
use crate::domain::books::{Counter, CounterKey, Missing, Posting};
use crate::domain::chain::{Entry, EntryOutcome};
use crate::domain::period;
use crate::domain::quota::{Quota, Standing};
use crate::domain::request::{Answer, Idempotency};
use crate::store::StoreError;

/// Replaces the set of quotas, unless the same request was answered before.
///
/// # Errors
/// [`StoreError`]; the transaction is then of no use. The inner error is the reply.
pub(crate) async fn replace_quotas(
    ledger: &mut impl Ledger,
    posting: &mut Posting,
    change: &ReplaceQuotas,
) -> Result<Result<Answer<Vec<Standing>>, ChangeRefused>, StoreError> {
    if let Some(idempotency) = &change.request.idempotency
        && let Some(answer) = replayed(ledger, idempotency).await?
    {
        return Ok(answer);
    }
    let quotas = match identify(&posting.books.quotas, &change.quotas) {
        Ok(quotas) => quotas,
        Err(refused) => return Ok(Err(refused)),
    };
    let recounted = read(ledger, posting, posting.missing_for_quotas(&quotas)).await?;
    let entry = Entry {
        actor: change.request.actor.clone(),
        action: "quotas.replaced".into(),
        target: format!("tenant:{}", posting.books.tenant),
        outcome: EntryOutcome::Success,
        request_id: change.request.request_id.clone(),
        payload: quotas_payload(&quotas),
    };
    posting.replace_quotas(quotas, recounted, entry);
    let standings = posting.books.standings(posting.now());
    if let Some(idempotency) = &change.request.idempotency {
        let answer = (change.render)(&standings);
        ledger.keep_request(&idempotency.key, &idempotency.body_hash, &answer, posting.now()).await?;
    }
    Ok(Ok(Answer::Fresh(standings)))
}

/// Moves the tenant to another calendar, once per `once` key.
///
/// # Errors
/// [`StoreError`]; the transaction is then of no use. The inner error is the reply.
pub(crate) async fn change_time_zone(
    ledger: &mut impl Ledger,
    posting: &mut Posting,
    name: &str,
    entry: &Entry,
    once: &str,
) -> Result<Result<(), ChangeRefused>, StoreError> {
    let Some(zone) = period::time_zone(name) else { return Ok(Err(ChangeRefused::UnknownTimeZone)) };
    if !first_time(ledger, posting, once).await? {
        return Ok(Ok(()));
    }
    let recounted = read(ledger, posting, posting.missing_for_time_zone(&zone)).await?;
    posting.change_time_zone(name, zone, recounted, entry.clone());
    Ok(Ok(()))
}

/// Appends a record; with a `once` key, only the first time.
///
/// # Errors
/// [`StoreError`]; the transaction is then of no use.
pub(crate) async fn append(
    ledger: &mut impl Ledger,
    posting: &mut Posting,
    entry: &Entry,
    once: Option<&str>,
) -> Result<(), StoreError> {
    let due = match once {
        Some(once) => first_time(ledger, posting, once).await?,
        None => true,
    };
    if due {
        posting.records_entry(entry.clone());
    }
    Ok(())
}

async fn first_time(ledger: &mut impl Ledger, posting: &Posting, once: &str) -> Result<bool, StoreError> {
    let key = format!("once {once}");
    if ledger.find_request(&key).await?.is_some() {
        return Ok(false);
    }
    ledger.keep_request(&key, &[0; 32], "", posting.now()).await?;
    Ok(true)
}

/// What was answered before under the same key, if anything.
///
/// # Errors
/// [`StoreError`]; the transaction is then of no use.
pub(crate) async fn replayed<T>(
    ledger: &mut impl Ledger,
    idempotency: &Idempotency,
) -> Result<Option<Result<Answer<T>, ChangeRefused>>, StoreError> {
    let known = ledger.find_request(&idempotency.key).await?;
    Ok(known.map(|(body_hash, answer)| {
        if body_hash == idempotency.body_hash {
            Ok(Answer::Replayed(answer))
        } else {
            Err(ChangeRefused::IdempotencyMismatch)
        }
    }))
}

/// Reads the counters of the periods that run now, unless the books know them.
///
/// # Errors
/// [`StoreError`]; the transaction is then of no use.
pub(crate) async fn look(ledger: &mut impl Ledger, posting: &mut Posting) -> Result<(), StoreError> {
    if !posting.books.knows_running(posting.now()) {
        let counters = read(ledger, posting, posting.books.missing_now(posting.now())).await?;
        posting.learn(counters);
    }
    Ok(())
}

async fn read(
    ledger: &mut impl Ledger,
    posting: &Posting,
    missing: Vec<Missing>,
) -> Result<Vec<(CounterKey, Counter)>, StoreError> {
    let mut counters = Vec::with_capacity(missing.len());
    for one in missing {
        let counter = ledger.counter(&posting.books, &one, posting.books.next_position).await?;
        counters.push((one.key(), counter));
    }
    Ok(counters)
}

/// Gives every draft its id: the one it names, the one of the quota it is a new form of, or a fresh one.
fn identify(known: &[Quota], drafts: &[QuotaDraft]) -> Result<Vec<Quota>, ChangeRefused> {
    let mut quotas: Vec<Quota> = Vec::with_capacity(drafts.len());
    for (index, draft) in drafts.iter().enumerate() {
        let mut quota = draft.quota.clone();
        let counts = |quota: &Quota| (quota.scope.clone(), quota.metric, quota.period);
        if quotas.iter().any(|other| counts(other) == counts(&quota) || (draft.named && other.id == quota.id)) {
            return Err(ChangeRefused::SameQuotaTwice { index });
        }
        if draft.named {
            if !known.iter().any(|other| other.id == quota.id) {
                return Err(ChangeRefused::UnknownQuota { index });
            }
        } else if let Some(same) = known.iter().find(|other| counts(other) == counts(&quota)) {
            let taken = |id| drafts.iter().any(|other| other.named && other.quota.id == id);
            if !taken(same.id) {
                quota.id = same.id;
            }
        }
        quotas.push(quota);
    }
    Ok(quotas)
}

fn quotas_payload(quotas: &[Quota]) -> String {
    let rows: Vec<serde_json::Value> = quotas
        .iter()
        .map(|quota| {
            serde_json::json!({
                "id": quota.id,
                "scope": quota.scope.kind(),
                "scopeId": quota.scope.id(),
                "metric": quota.metric.name(),
                "period": quota.period.name(),
                "limit": quota.limit,
                "thresholds": quota.thresholds,
                "enforcement": quota.enforcement.name(),
            })
        })
        .collect();
    serde_json::json!({ "quotas": rows }).to_string()
}
