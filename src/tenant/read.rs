//! Slow reads: each takes a read connection in a task of its own, and occupies neither mailbox.

use std::future::Future;
use std::sync::Arc;

use ractor::RpcReplyPort;
use tokio_util::sync::CancellationToken;

use super::message::ReadFailure;
use super::reconcile;
use crate::domain::books::Books;
use crate::domain::ids::{FindingId, TenantId};
use crate::domain::notice::Delivery;
use crate::domain::reconcile::finding::Finding;
use crate::domain::reconcile::report::{FindingPage, FindingQuery, Overview, WindowPage, WindowQuery};
use crate::domain::report::{
    self, AlertPage, AlertQuery, ChainQuery, ChainReport, LedgerQuery, LedgerRow, MessagePage, MessageQuery, Page,
    UsageQuery, UsageRow,
};
use crate::domain::time::Timestamp;
use crate::store::audit::StoredRecord;
use crate::store::database::{Reader, Store};
use crate::store::{audit, notice, reconciliation, usage};

type Port<T> = RpcReplyPort<Result<T, ReadFailure>>;

pub(crate) fn report(store: &Store, books: &Arc<Books>, query: UsageQuery, reply: Port<Vec<UsageRow>>) {
    let zone = books.time_zone.clone();
    spawn(store, books.tenant, reply, move |mut reader| async move {
        let rollups = usage::rollups(&mut reader, &query).await?;
        Ok(report::fold(rollups, query.granularity, &zone)?)
    });
}

pub(crate) fn ledger(store: &Store, books: &Arc<Books>, query: LedgerQuery, reply: Port<Page<LedgerRow>>) {
    spawn(store, books.tenant, reply, move |mut reader| async move { Ok(usage::page(&mut reader, &query).await?) });
}

pub(crate) fn alerts(store: &Store, books: &Arc<Books>, query: AlertQuery, reply: Port<AlertPage>) {
    spawn(store, books.tenant, reply, move |mut reader| async move { Ok(notice::alerts(&mut reader, &query).await?) });
}

pub(crate) fn messages(store: &Store, books: &Arc<Books>, query: MessageQuery, reply: Port<MessagePage>) {
    spawn(
        store,
        books.tenant,
        reply,
        move |mut reader| async move { Ok(notice::messages(&mut reader, &query).await?) },
    );
}

pub(crate) fn due(store: &Store, books: &Arc<Books>, now: Timestamp, limit: usize, reply: Port<Vec<Delivery>>) {
    spawn(store, books.tenant, reply, move |mut reader| async move { Ok(notice::due(&mut reader, now, limit).await?) });
}

pub(crate) fn chain(store: &Store, books: &Arc<Books>, query: ChainQuery, reply: Port<Page<StoredRecord>>) {
    spawn(store, books.tenant, reply, move |mut reader| async move { Ok(audit::page(&mut reader, query).await?) });
}

/// Ends early when `stop` says that nobody waits any more.
pub(crate) fn verify(store: &Store, books: &Arc<Books>, stop: CancellationToken, reply: Port<ChainReport>) {
    // These books were published after their commit, so the database holds at least as much.
    let (tenant, witness) = (books.tenant, books.head);
    spawn(store, tenant, reply, move |mut reader| async move {
        Ok(audit::verify_books(&mut reader, audit::Books { tenant, witness, stop: &stop }).await?)
    });
}

pub(crate) fn overview(store: &Store, books: &Arc<Books>, now: Timestamp, reply: Port<Overview>) {
    let progress = books.comparison.progress;
    spawn(store, books.tenant, reply, move |mut reader| async move {
        reconcile::overview(&mut reader, progress, now).await
    });
}

pub(crate) fn findings(store: &Store, books: &Arc<Books>, query: FindingQuery, reply: Port<FindingPage>) {
    spawn(store, books.tenant, reply, move |mut reader| async move {
        Ok(reconciliation::findings(&mut reader, &query).await?)
    });
}

pub(crate) fn finding(store: &Store, books: &Arc<Books>, id: FindingId, reply: Port<Option<Finding>>) {
    spawn(
        store,
        books.tenant,
        reply,
        move |mut reader| async move { Ok(reconciliation::finding(&mut reader, id).await?) },
    );
}

pub(crate) fn windows(store: &Store, books: &Arc<Books>, query: WindowQuery, reply: Port<WindowPage>) {
    spawn(store, books.tenant, reply, move |mut reader| async move {
        Ok(reconciliation::windows(&mut reader, &query).await?)
    });
}

fn spawn<T, Reading>(
    store: &Store,
    tenant: TenantId,
    reply: Port<T>,
    read: impl FnOnce(Reader) -> Reading + Send + 'static,
) where
    T: Send + 'static,
    Reading: Future<Output = Result<T, ReadFailure>> + Send + 'static,
{
    let store = store.clone();
    tokio::spawn(async move {
        // The caller may have given up while this waited for its turn: do not read for nobody.
        if reply.is_closed() {
            return;
        }
        let answer = match store.reader(tenant).await {
            Ok(reader) => read(reader).await,
            Err(error) => Err(error.into()),
        };
        let _ = reply.send(answer);
    });
}
