//! The reconciliation: a pass compares what is due on a read connection, in a task of its own; the writer takes what it
//! came to into the books, if they still are where the pass began.

use std::sync::Arc;

use ractor::ActorRef;
use tokio::time::Instant;

use super::change::replayed;
use super::ledger::Ledger;
use super::message::{ChangeRefused, Message, ReadFailure, Reconciliation, TreatFinding};
use crate::domain::books::{BatchCounts, Books, Posting};
use crate::domain::period::Window;
use crate::domain::reconcile::finding::{Finding, Found};
use crate::domain::reconcile::lifecycle::{self, Change};
use crate::domain::reconcile::pass::{Compared, Pass, Treatment};
use crate::domain::reconcile::progress::Progress;
use crate::domain::reconcile::reading::{GatewayRequest, Interruption, Source};
use crate::domain::reconcile::report::Overview;
use crate::domain::reconcile::tally::Tally;
use crate::domain::reconcile::window::{self, Judged, LedgerCall, Metered};
use crate::domain::reconcile::{Proof, Terms, schedule};
use crate::domain::request::Answer;
use crate::domain::sorting::Inserted;
use crate::domain::time::Timestamp;
use crate::domain::usage::Totals;
use crate::fault;
use crate::store::database::{Connection, Store};
use crate::store::posting::Expecting;
use crate::store::reconciliation::Again;
use crate::store::{StoreError, gateway, reconciliation};

/// How much of one window is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Requests, and calls, that are joined at most. Where there are more, they are compared by their counts alone.
    pub(super) joined: usize,
    /// Calls that are counted at most. Beyond that a window is unproven, which is not wrong.
    pub(super) counted: usize,
}
pub(super) const LIMITS: Limits = Limits { joined: 50_000, counted: 2_000_000 };
/// Calls that are read together to be counted.
const COUNTED_PAGE: usize = 10_000;
/// Windows that one pass compares again at most.
const AGAIN_MAX: usize = 12;
/// Verdicts of earlier windows that a comparison counts together with its own: a day of five-minute windows.
const EARLIER_MAX: usize = 3 * 288;
/// Findings of a cause that is over which one pass resolves.
const PASSED_MAX: usize = 100;
/// Old requests that a pass forgets for each that it has read, and those that it forgets in any case.
const FORGOTTEN_PER_READ: usize = 2;
const FORGOTTEN_MIN: usize = 1_000;

/// Compares what is due at `now`, and tells the keeper.
pub(crate) fn start(store: &Store, books: &Arc<Books>, now: Timestamp, keeper: ActorRef<Message>) {
    let (store, books) = (store.clone(), books.clone());
    tokio::spawn(async move {
        let started = Instant::now();
        let result = match store.reader(books.tenant).await {
            Ok(mut reader) => pass(&mut reader, &books, now).await,
            Err(error) => Err(error),
        };
        metrics::histogram!("platform_api_reconcile_pass_seconds").record(started.elapsed().as_secs_f64());
        // A keeper that has left meanwhile compares again when it is opened.
        let _ = keeper.cast(Message::Reconciliation(Reconciliation::Compared { result, now }));
    });
}

/// How the comparison stands.
///
/// # Errors
/// [`ReadFailure`].
pub(crate) async fn overview(
    connection: &mut Connection,
    progress: Option<Progress>,
    now: Timestamp,
) -> Result<Overview, ReadFailure> {
    let last = reconciliation::last_judged(connection).await?;
    let open = reconciliation::count_open(connection, now).await?;
    Ok(Overview { progress, last, open })
}

/// Both books of some time, each request and each call.
struct Rows {
    requests: Vec<GatewayRequest>,
    calls: Vec<LedgerCall>,
}

/// What one window is compared by.
enum Side {
    Rows(Rows),
    /// When the calls occurred that the gateway should have counted, of more than can be joined.
    Counted(Vec<Timestamp>),
    /// Nothing: there are too many even to be counted.
    Nothing,
}

impl Side {
    /// Requests that were read for it.
    fn requests(&self, limits: Limits) -> usize {
        match self {
            Side::Rows(rows) => rows.requests.len(),
            Side::Counted(calls_at) => calls_at.len().max(limits.joined),
            Side::Nothing => limits.counted,
        }
    }
}

/// What a pass knows beside the two books.
struct Around<'a> {
    terms: &'a Terms,
    progress: &'a Progress,
    metered: Vec<(Timestamp, Metered)>,
    interruptions: Vec<Interruption>,
    routes: &'a [String],
}

/// Compares the windows that are due.
///
/// # Errors
/// [`StoreError`].
pub(crate) async fn pass(connection: &mut Connection, books: &Books, now: Timestamp) -> Result<Pass, StoreError> {
    pass_within(LIMITS, connection, books, now).await
}

/// Compares the windows that are due, within `limits`.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn pass_within(
    limits: Limits,
    connection: &mut Connection,
    books: &Books,
    now: Timestamp,
) -> Result<Pass, StoreError> {
    let (terms, progress) = (&books.comparison.terms, books.comparison.progress.unwrap_or_default());
    let from = progress.settled_until;
    let due = schedule::next_windows(from, now, next_activity(connection, from).await?, terms);
    let again = reconciliation::due_again(connection, now, AGAIN_MAX).await?;
    let again: Vec<Again> = again.into_iter().filter(|one| one.start < from).collect();
    let routes = gateway::routes(connection).await?;
    let mut pass = Pass { from, settled_until: due.settled_until, compared: Vec::new(), requests: 0 };
    for one in again {
        let window = Window { start: one.start, end: one.start.plus_micros(terms.window_micros) };
        if one.start < now.plus_micros(-terms.keep_micros) {
            // What the gateway said then is forgotten: there is nothing to compare with, now or later.
            let (judged, found) = (Vec::new(), Vec::new());
            pass.compared.push(Compared { window, judged, found, times: u32::MAX, due: Some(one.due) });
            continue;
        }
        let side = side(connection, window, terms, limits).await?;
        let around = around(connection, window, terms, &progress, &routes).await?;
        let earlier = earlier(connection, window.start, &progress).await?;
        let (judged, found) = compare(window, &side, &around, &earlier);
        pass.requests += side.requests(limits);
        pass.compared.push(Compared { window, judged, found, times: one.times.saturating_add(1), due: Some(one.due) });
    }
    if let (Some(first), Some(last)) = (due.windows.first(), due.windows.last()) {
        let whole = Window { start: first.start, end: last.end };
        // Too much for all of them may be little enough for each.
        let all = rows(connection, whole, terms, limits).await?.map(Side::Rows);
        let around = around(connection, whole, terms, &progress, &routes).await?;
        let mut earlier = earlier(connection, first.start, &progress).await?;
        for window in due.windows {
            let (judged, found) = match &all {
                Some(all) => compare(window, all, &around, &earlier),
                None => {
                    let alone = side(connection, window, terms, limits).await?;
                    pass.requests += alone.requests(limits);
                    compare(window, &alone, &around, &earlier)
                }
            };
            earlier.splice(0..0, judged.iter().cloned());
            pass.compared.push(Compared { window, judged, found, times: 1, due: None });
            // A window of a busy tenant takes some milliseconds, and others want their turns.
            tokio::task::yield_now().await;
        }
        pass.requests += all.map_or(0, |all| all.requests(limits));
    }
    fault::point("reconcile.compared");
    Ok(pass)
}

/// When something happened next at `since` or later, on either side.
async fn next_activity(connection: &mut Connection, since: Timestamp) -> Result<Option<Timestamp>, StoreError> {
    let request = gateway::first_request(connection, since).await?;
    let meter = gateway::first_meter(connection, since).await?;
    let call = reconciliation::first_call(connection, since).await?;
    Ok([request, meter, call].into_iter().flatten().min())
}

/// What a window is compared by.
async fn side(connection: &mut Connection, window: Window, terms: &Terms, limits: Limits) -> Result<Side, StoreError> {
    if let Some(rows) = rows(connection, window, terms, limits).await? {
        return Ok(Side::Rows(rows));
    }
    let tally = tally(connection, widened(window, terms), limits.counted).await?;
    Ok(tally.map_or(Side::Nothing, |tally| Side::Counted(tally.counted())))
}

/// The calls of a window, page by page; `None` when there are too many.
async fn tally(connection: &mut Connection, window: Window, most: usize) -> Result<Option<Tally>, StoreError> {
    let (mut tally, mut after) = (Tally::default(), 0);
    while tally.calls() <= most {
        let page = reconciliation::calls_after(connection, window, after, COUNTED_PAGE).await?;
        page.iter().for_each(|call| tally.add(call));
        match page.last() {
            Some(last) if page.len() == COUNTED_PAGE => after = last.position,
            _ => return Ok((tally.calls() <= most).then_some(tally)),
        }
        tokio::task::yield_now().await;
    }
    Ok(None)
}

/// Both books of a window and of the time around it in which they may date the same request; `None` when it is too much.
async fn rows(
    connection: &mut Connection,
    window: Window,
    terms: &Terms,
    limits: Limits,
) -> Result<Option<Rows>, StoreError> {
    let wide = widened(window, terms);
    let requests = gateway::requests(connection, wide, limits.joined).await?;
    let calls = match requests {
        Some(_) => reconciliation::calls(connection, wide, limits.joined).await?,
        None => None,
    };
    Ok(requests.zip(calls).map(|(requests, calls)| Rows { requests, calls }))
}

async fn around<'a>(
    connection: &mut Connection,
    window: Window,
    terms: &'a Terms,
    progress: &'a Progress,
    routes: &'a [String],
) -> Result<Around<'a>, StoreError> {
    let metered = gateway::meters(connection, window).await?;
    let interruptions = gateway::interruptions(connection, widened(window, terms)).await?;
    Ok(Around { terms, progress, metered, interruptions, routes })
}

async fn earlier(
    connection: &mut Connection,
    before: Timestamp,
    progress: &Progress,
) -> Result<Vec<Judged>, StoreError> {
    match progress.since(Source::Metrics) {
        Some(_) => reconciliation::judged(connection, before, EARLIER_MAX).await,
        None => Ok(Vec::new()),
    }
}

fn widened(window: Window, terms: &Terms) -> Window {
    Window { start: window.start.plus_micros(-terms.slack_micros), end: window.end.plus_micros(terms.slack_micros) }
}

fn compare(window: Window, side: &Side, around: &Around<'_>, earlier: &[Judged]) -> (Vec<Judged>, Vec<Found>) {
    let mut sources = around.progress.sources_at(window.start);
    sources.retain(|source| around.terms.listens_to(*source));
    let wide = widened(window, around.terms);
    let metered: Vec<Metered> =
        around.metered.iter().filter(|(start, _)| window.contains(*start)).map(|(_, metered)| *metered).collect();
    let books = window::Books {
        window,
        requests: &[],
        calls: &[],
        metered: &metered,
        interruptions: &around.interruptions,
        sources: &sources,
        limited_routes: around.routes,
    };
    match side {
        Side::Rows(rows) => {
            let under_way = rows.requests.iter().filter(|request| request.is_under_way(wide));
            let requests: Vec<GatewayRequest> = under_way.cloned().collect();
            let occurred = rows.calls.iter().filter(|call| wide.contains(call.occurred_at));
            let calls: Vec<LedgerCall> = occurred.cloned().collect();
            let books = window::Books { requests: &requests, calls: &calls, ..books };
            window::compare_after(earlier, &books, around.terms)
        }
        Side::Counted(calls_at) => window::compare_counts(earlier, &books, calls_at, around.terms),
        Side::Nothing => {
            let given = Proof::ALL.into_iter().filter(|proof| sources.contains(&proof.source()));
            (given.map(|proof| window::too_many(proof, window)).collect(), Vec::new())
        }
    }
}

/// Takes a pass into the books. One that began before another one had ended changes nothing.
///
/// # Errors
/// [`StoreError`]; the transaction is then of no use.
pub(crate) async fn settle(ledger: &mut impl Ledger, posting: &mut Posting, pass: &Pass) -> Result<(), StoreError> {
    let Some(database) = ledger.database() else { return Ok(()) };
    if posting.books.comparison.progress.is_none_or(|progress| progress.settled_until != pass.from) {
        return Ok(());
    }
    let mut closed = false;
    for one in &pass.compared {
        let known = reconciliation::findings_in(database, one.window).await?;
        let (changes, again) = posting.judge_window(one, &known);
        if let Some(due) = one.due {
            reconciliation::done_again(database, one.window.start, due).await?;
        }
        if let Some(due) = again {
            let again = Again { start: one.window.start, due, times: one.times };
            reconciliation::look_again(database, again).await?;
        }
        closed |= changes.iter().any(|change| matches!(change, Change::Resolved(_)));
        super::drift::fire(database, posting, one.window, &changes).await?;
    }
    resolve_passed(database, posting, pass).await?;
    if closed {
        super::drift::resolve(database, posting).await?;
    }
    let now = posting.now();
    posting.settle_windows(pass);
    let next = reconciliation::next_again(database).await?;
    posting.look_again_only_at(next);
    let horizon = now.plus_micros(-posting.books.comparison.terms.keep_micros);
    let forgotten = pass.requests.saturating_mul(FORGOTTEN_PER_READ).saturating_add(FORGOTTEN_MIN);
    gateway::forget(database, horizon, forgotten).await
}

/// Resolves what was unproven in earlier windows, once a window shows that its cause is over.
async fn resolve_passed(database: &mut Connection, posting: &mut Posting, pass: &Pass) -> Result<(), StoreError> {
    for cause in lifecycle::PASSING {
        let mut fresh = pass.compared.iter().rev().filter(|one| one.due.is_none());
        let Some(end) = fresh.find(|one| lifecycle::shows_the_end(cause, &one.judged, &one.found)) else { continue };
        for finding in reconciliation::open_before(database, cause, end.window.start, PASSED_MAX).await? {
            posting.resolve_passed(&finding);
        }
        // Those that this pass has opened itself are not in the database yet.
        for finding in posting.as_they_stand(&[]) {
            if finding.found.cause == cause && finding.found.window < end.window {
                posting.resolve_passed(&finding);
            }
        }
    }
    Ok(())
}

/// Does with a finding what a person asks for, unless the same request was answered before.
///
/// # Errors
/// [`StoreError`]; the transaction is then of no use. The inner error is the reply.
pub(crate) async fn treat(
    ledger: &mut impl Ledger,
    posting: &mut Posting,
    change: &TreatFinding,
) -> Result<Result<Answer<Finding>, ChangeRefused>, StoreError> {
    if let Some(idempotency) = &change.request.idempotency
        && let Some(answer) = replayed(ledger, idempotency).await?
    {
        return Ok(answer);
    }
    let Some(database) = ledger.database() else { return Ok(Err(ChangeRefused::UnknownFinding)) };
    let Some(finding) = reconciliation::finding(database, change.finding).await? else {
        return Ok(Err(ChangeRefused::UnknownFinding));
    };
    if !change.treatment.applies_to(finding.status) {
        return Ok(Err(ChangeRefused::FindingClosed { status: finding.status }));
    }
    let adjustment = match adjust(ledger, posting, &finding, change).await? {
        Ok(position) => position,
        Err(refused) => return Ok(Err(refused)),
    };
    let treated = posting.treat_finding(&finding, change.treatment, &change.reason, adjustment, &change.request);
    if change.treatment == Treatment::Acknowledge {
        super::drift::acknowledge(posting, &treated, &change.request);
    }
    if let (false, Some(database)) = (treated.status.is_open(), ledger.database()) {
        super::drift::resolve(database, posting).await?;
    }
    if let Some(idempotency) = &change.request.idempotency {
        let answer = (change.render)(&treated);
        ledger.keep_request(&idempotency.key, &idempotency.body_hash, &answer, posting.now()).await?;
    }
    Ok(Ok(Answer::Fresh(treated)))
}

/// Books the adjusting entry, if one is asked for; answers its position in the ledger, or 0.
async fn adjust(
    ledger: &mut impl Ledger,
    posting: &mut Posting,
    finding: &Finding,
    change: &TreatFinding,
) -> Result<Result<i64, ChangeRefused>, StoreError> {
    let Some(adjustment) = &change.adjustment else { return Ok(Ok(0)) };
    let position = posting.books.next_position;
    let event = adjustment.event(finding.id, position, &change.request.actor, &change.reason);
    if let Err(refusal) = posting.books.admit(&event, &Totals::default(), posting.now()) {
        return Ok(Err(ChangeRefused::AdjustmentRefused(refusal)));
    }
    for missing in posting.missing_for_usage(&[&event]) {
        let counter = ledger.counter(&posting.books, &missing, position).await?;
        posting.supply(missing.key(), counter);
    }
    if posting.sinks_below_zero(&event) {
        return Ok(Err(ChangeRefused::BelowZero));
    }
    let identity = event.identity();
    let inserted = ledger.insert_events(position, posting.now(), &[&event], &[identity], Expecting::Any).await?;
    if inserted != [Inserted::New] {
        return Err(StoreError::Unwritable("an adjusting entry has the identity of another event".into()));
    }
    let counts = BatchCounts { attempted: 1, ..BatchCounts::default() };
    posting.usage(&[&event], &[identity], counts, &change.request.request_id);
    posting.resolve_fallen();
    Ok(Ok(position))
}
