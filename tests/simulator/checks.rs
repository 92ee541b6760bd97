//! The invariants. Most are looked at after each commit, for what the commit touched; the rest when the storm is over.

use std::collections::BTreeSet;

use platform_api::domain::books::{CounterKey, Posting, RollupKey};
use platform_api::domain::notice::{AlertSubject, BURN_MARK};
use platform_api::domain::period;
use platform_api::domain::quota::Quota;
use platform_api::domain::time::{MICROS_PER_MINUTE, Timestamp};
use platform_api::domain::usage::{Subject, UsageEvent};

use super::database::{Row, Settled, Transaction};
use super::ground::Ground;
use super::oracle::{self, Label, Naive};
use super::sender::{Draft, DraftKind, RETENTION_MICROS, tenant_id};
use super::vault::Vault;

/// Below this part of its limit a quota alerts of no burn.
const BURN_PERCENT_MIN: u16 = 5;

/// Is this row what the sender sent?
pub fn is(event: &UsageEvent, draft: &Draft) -> bool {
    let amounts = &event.amounts;
    event.event_id == draft.id
        && event.occurred_at.0 == draft.occurred_at
        && (event.subject.user.as_str(), event.subject.group.as_str()) == (draft.user, draft.group)
        && event.subject.model == draft.model
        && (amounts.prompt_tokens, amounts.completion_tokens) == (draft.prompt, draft.completion)
        && amounts.cost.0 == draft.cost
}

/// Everything a commit must leave true.
pub fn after_commit(ground: &mut Ground, vault: &mut Vault, done: &Transaction, epoch_before: i64) {
    ground.require(!vault.restored, "L4", || "a database that lost commits was written to".into());
    owner(ground, vault, done, epoch_before);
    let touched = ledger(ground, vault, done);
    for zone in done.postings.iter().filter_map(|posting| posting.time_zone.as_deref()) {
        vault.naive.change_zone(period::time_zone(zone).expect("the change was accepted"));
    }
    sums(ground, vault);
    rollups(ground, vault, done, &touched);
    counters_and_alerts(ground, vault, done, &touched);
    chain(ground, vault, done);
    for posting in &done.postings {
        cursors(ground, vault, posting);
    }
}

/// O1 and O2: epochs rise one by one, and nobody writes under an old one.
fn owner(ground: &mut Ground, vault: &Vault, done: &Transaction, before: i64) {
    let tables = &vault.database.tables;
    let after = before + i64::from(done.next_epoch);
    ground.require(tables.epoch == after, "O1", || format!("epoch {before} became {}", tables.epoch));
    let stale = done.rows.iter().find(|(_, row)| row.epoch != before);
    ground.require(stale.is_none(), "O2", || format!("a row written under another epoch than {before}"));
    let stale = done.postings.iter().find(|posting| posting.books.epoch != tables.epoch);
    ground.require(stale.is_none(), "O2", || format!("a commit of another epoch than {}", tables.epoch));
}

/// L2, L3, L5: new rows are events somebody sent, each identity once, in time.
fn ledger(ground: &mut Ground, vault: &mut Vault, done: &Transaction) -> Vec<Draft> {
    let mut touched = Vec::new();
    for (_, row) in &done.rows {
        let Some(draft) = ground.sent_as(vault.tenant, &row.event) else {
            ground.violated("L3", format_args!("{} was never sent like this", row.event.event_id));
            continue;
        };
        let twice = vault.naive.events().any(|known| known.id == draft.id);
        ground.require(!twice, "L2", || format!("{} is in the ledger twice", draft.id));
        in_time(ground, row);
        vault.naive.add(draft.clone());
        touched.push(draft);
    }
    for (key, _, event) in &done.conflicts {
        let tables = &vault.database.tables;
        let known = tables.keys.get(key).and_then(|position| tables.ledger.get(position));
        let sent = ground.sent_as(vault.tenant, event).is_some();
        ground.require(sent && known.is_some(), "L3", || format!("{} is no conflict", event.event_id));
    }
    touched
}

fn in_time(ground: &mut Ground, row: &Row) {
    let age = row.recorded_at.0 - row.event.occurred_at.0;
    let fits = (-5 * MICROS_PER_MINUTE..=RETENTION_MICROS).contains(&age);
    ground.require(fits, "L5", || format!("{} was counted {age} us after it occurred", row.event.event_id));
    if age > 60 * MICROS_PER_MINUTE {
        ground.coverage.saw("event: late, into a period that is over");
    }
}

/// L1 over everything.
fn sums(ground: &mut Ground, vault: &Vault) {
    let lifetime = &vault.database.tables.lifetime;
    let found =
        [lifetime.events, lifetime.amounts.prompt_tokens, lifetime.amounts.completion_tokens, lifetime.amounts.cost.0];
    let expected = Naive::totals(vault.naive.events());
    ground.require(found == expected, "L1", || format!("lifetime {found:?}, ledger {expected:?}"));
}

/// L1 and L5 for the rollups that the commit touched.
fn rollups(ground: &mut Ground, vault: &Vault, done: &Transaction, touched: &[Draft]) {
    let quarter = |micros: i64| micros.div_euclid(15 * MICROS_PER_MINUTE);
    let place = |draft: &Draft| (quarter(draft.occurred_at), draft.user, draft.group, draft.model);
    let places: BTreeSet<_> = touched.iter().map(place).collect();
    for at in places {
        let expected = Naive::totals(vault.naive.events().filter(|draft| place(draft) == at));
        let key = RollupKey {
            start: Timestamp(at.0 * 15 * MICROS_PER_MINUTE),
            subject: Subject { user: at.1.into(), group: at.2.into(), model: at.3.into(), ..Subject::default() },
        };
        let found = vault.database.tables.rollups.get(&key).map(|totals| {
            [totals.events, totals.amounts.prompt_tokens, totals.amounts.completion_tokens, totals.amounts.cost.0]
        });
        ground.require(found == Some(expected), "L1", || format!("rollup {at:?} is {found:?}, ledger {expected:?}"));
    }
    let rows: i64 = vault.database.tables.rollups.values().map(|totals| totals.events).sum();
    let events = vault.naive.events().count() as i64;
    ground.require(rows == events || done.rows.is_empty(), "L1", || format!("rollups have {rows} of {events} events"));
}

/// L1 for counters; Q2: exactly the alerts that are due, each once.
fn counters_and_alerts(ground: &mut Ground, vault: &Vault, done: &Transaction, touched: &[Draft]) {
    let tables = &vault.database.tables;
    let naive = &vault.naive;
    let changed = done.postings.iter().any(|posting| posting.quotas.is_some() || posting.time_zone.is_some());
    let now = done.postings.last().map_or(0, |posting| posting.now().0);
    for quota in &tables.quotas {
        let used = naive.used(quota);
        let of = |label: &Label| used.get(label).copied().unwrap_or(0);
        for (key, (_, counted)) in tables.counters.iter().filter(|(key, _)| key.quota == quota.id) {
            let label = naive.label(quota.period, key.period_start.0);
            ground.require(*counted == of(&label), "L1", || {
                format!(
                    "counter of {:?} {:?} at {}: {counted}, ledger {}",
                    quota.scope,
                    quota.period,
                    key.period_start,
                    of(&label)
                )
            });
        }
        let covered = touched.iter().filter(|draft| oracle::covers(&quota.scope, draft));
        let mut labels: BTreeSet<Label> = covered.map(|draft| naive.label(quota.period, draft.occurred_at)).collect();
        if changed {
            labels.insert(naive.label(quota.period, now));
        }
        if let [posting] = done.postings.as_slice() {
            burn(ground, vault, posting, quota, &labels);
        }
        for label in labels {
            for percent in quota.thresholds.iter().filter(|percent| oracle::reaches(of(&label), quota, **percent)) {
                let alert = oracle::alert_for(naive, tables.alerts.values(), quota, label, *percent);
                ground.require(alert.is_some(), "Q2", || {
                    format!(
                        "no alert at {percent} % of {:?} {:?}: {} of {}",
                        quota.scope,
                        quota.period,
                        of(&label),
                        quota.limit
                    )
                });
            }
        }
    }
    for posting in &done.postings {
        for alert in &posting.fired {
            // Quotas and then the calendar changed in one unit: what fired in between was true by the calendar of that moment.
            let in_passing = posting.time_zone.is_some() && posting.resolved.iter().any(|gone| gone.id == alert.id);
            fired(ground, vault, alert, in_passing);
        }
        for alert in &posting.resolved {
            let by_time = alert.period_end().is_some_and(|end| end <= posting.now());
            if matches!(alert.subject, AlertSubject::BudgetBurn(_)) && !by_time && posting.quotas.is_none() {
                ground.coverage.saw("alert: resolved because a budget lasts again");
            }
            ground.coverage.saw(if by_time { "alert: resolved by time" } else { "alert: resolved by a change" });
            if posting.fired.iter().any(|fired| fired.id == alert.id) {
                ground.coverage.saw("alert: fired and resolved in one commit");
            }
        }
    }
}

/// Q2: the alert is true, unless it fired `in_passing`, and the only one.
fn fired(ground: &mut Ground, vault: &Vault, alert: &platform_api::domain::notice::Alert, in_passing: bool) {
    ground.coverage.saw("alert: fired");
    if let Some(mark) = alert.mark() {
        let first = ground.alerts.entry(vault.tenant).or_default().insert(mark);
        ground.require(first, "Q2", || format!("the alert at {} % fired twice", mark.2));
    }
    if let AlertSubject::BudgetBurn(burn) = &alert.subject {
        ground.coverage.saw("alert: fired for a budget that burns");
        let label = vault.naive.label(burn.quota.period, burn.period_start.0);
        let used = vault.naive.used(&burn.quota).get(&label).copied().unwrap_or(0);
        let lasts = vault.naive.lasts(&burn.quota, burn.period_start.0, alert.fired_at.0);
        // What the same transaction has counted besides may have used up the rest.
        let is_short = used >= burn.quota.limit || lasts.is_some_and(|lasts| lasts < ground.plan.burn_span_micros);
        ground.require(in_passing || oracle::reaches(used, &burn.quota, BURN_PERCENT_MIN) && is_short, "Q2", || {
            format!("a budget of {} burns: {} used, {used} by the oracle, lasts {lasts:?}", burn.quota.limit, burn.used)
        });
    }
    let Some(reached) = alert.reached() else { return };
    let label = vault.naive.label(reached.quota.period, reached.period_start.0);
    let used = vault.naive.used(&reached.quota).get(&label).copied().unwrap_or(0);
    ground.require(in_passing || oracle::reaches(used, &reached.quota, reached.threshold), "Q2", || {
        let (quota, start) = (&reached.quota, reached.period_start);
        let place = format!("{:?} {:?} {:?} at {start}", quota.scope, quota.metric, quota.period);
        format!(
            "alert at {} % of {} of {place}: {} used, and {used} by the oracle",
            reached.threshold, quota.limit, reached.used
        )
    });
}

/// Q2: a budget that burns, by the ledger, has its alert, be it over by now. A commit that counted for the quota judges it, and
/// so does a change of quotas or of the calendar.
fn burn(ground: &mut Ground, vault: &Vault, posting: &Posting, quota: &Quota, judged: &BTreeSet<Label>) {
    let (span, now, tables) = (ground.plan.burn_span_micros, posting.now(), &vault.database.tables);
    let label = vault.naive.label(quota.period, now.0);
    // After a clock that was set back further than that, quarters of the last hour may be forgotten.
    let is_rate_known = tables.latest_event_at.0 <= now.0 + 5 * MICROS_PER_MINUTE;
    if span == 0 || !judged.contains(&label) || !is_rate_known {
        return;
    }
    let is_running =
        |key: &&CounterKey| key.quota == quota.id && vault.naive.label(quota.period, key.period_start.0) == label;
    let Some(key) = tables.counters.keys().find(is_running) else { return };
    let used = vault.naive.used(quota).get(&label).copied().unwrap_or(0);
    let lasts = vault.naive.lasts(quota, key.period_start.0, now.0);
    if oracle::reaches(used, quota, BURN_PERCENT_MIN) && lasts.is_some_and(|lasts| lasts < span) {
        let mark = Some((quota.id, key.period_start, BURN_MARK));
        let told = tables.alerts.values().any(|alert| alert.mark() == mark);
        ground.require(told, "Q2", || {
            format!(
                "{:?} {:?} lasts {lasts:?} us, and nobody was told: {used} of {}",
                quota.scope, quota.period, quota.limit
            )
        });
    }
}

/// A1 and A3: the chain goes on, and says what was done.
fn chain(ground: &mut Ground, vault: &mut Vault, done: &Transaction) {
    let known = vault.verifier.head().seq;
    for stored in vault.database.tables.records.iter().skip(known as usize) {
        if let Err(broken) = vault.verifier.check(stored) {
            ground.violated("A1", format_args!("record {}: {}", broken.seq, broken.reason));
        }
    }
    let head = vault.database.tables.head;
    ground.require(vault.verifier.head() == head, "A1", || "the head is not the chain's last record".into());
    let records = || done.postings.iter().flat_map(|posting| &posting.records);
    let count = |action: &str| records().filter(|record| record.action == action).count();
    let fired: usize = done.postings.iter().map(|posting| posting.fired.len()).sum();
    ground.require(count("alert.fired") == fired, "A3", || "alerts and their records differ".into());
    let said: i64 = records().filter(|record| record.action == "usage.committed").map(counted).sum();
    ground.require(said == done.rows.len() as i64, "A3", || format!("{said} of {} rows are recorded", done.rows.len()));
    ground.require(count("owner.changed") == usize::from(done.next_epoch), "A3", || "an owner without a record".into());
}

fn counted(record: &platform_api::domain::chain::Record) -> i64 {
    let payload: serde_json::Value = serde_json::from_str(&record.payload).expect("payloads are JSON");
    payload["events"].as_i64().expect("a count")
}

/// L6: what a cursor names is in the books, unless it could not be counted when the cursor was written.
pub fn cursors(ground: &mut Ground, vault: &Vault, posting: &Posting) {
    let now = posting.now().0;
    let countable = |draft: &Draft| {
        let age = now - draft.occurred_at;
        draft.kind == DraftKind::Good && (-5 * MICROS_PER_MINUTE..=RETENTION_MICROS).contains(&age)
    };
    for sequence in posting.cursors.values() {
        // A number that was used more than once carried several messages; one of them moved the cursor.
        let carried = ground.published.get(sequence).cloned().unwrap_or_default();
        let own = carried.iter().map(|at| &ground.sent[*at]).filter(|draft| tenant_id(draft.tenant) == vault.tenant);
        let known = |draft: &Draft| vault.naive.events().any(|known| known.id == draft.id);
        let mut own = own.peekable();
        let holds = own.peek().is_none() || own.any(|draft| !countable(draft) || known(draft));
        ground.require(holds, "L6", || format!("the cursor is at {sequence}, whose event is not counted"));
    }
}

/// What must hold of a tenant when nothing is on its way any more.
pub fn at_the_end(ground: &mut Ground, vault: &Vault) {
    let tables = &vault.database.tables;
    let now = Timestamp(ground.now);
    for alert in tables.alerts.values().filter(|alert| alert.resolved_at.is_none()) {
        if let AlertSubject::BudgetBurn(burn) = &alert.subject {
            // A moment ago, for it takes one to resolve; but not before it fired: a period may have begun so shortly before
            // that there was no rate yet.
            let (start, before) = (burn.period_start.0, alert.fired_at.0.max(now.0 - 10_000_000));
            let span = ground.plan.burn_span_micros;
            let quota = tables.quotas.iter().find(|quota| quota.id == burn.quota.id);
            let lasts = quota.and_then(|quota| vault.naive.lasts(quota, start, before));
            let burns = lasts.is_some_and(|lasts| lasts <= span + span / 2);
            ground.require(burns, "V1", || format!("a budget burns no more, and its alert fires on: lasts {lasts:?}"));
        }
        let Some(reached) = alert.reached() else { continue };
        let over = alert.period_end().is_some_and(|end| end < now.plus_micros(-10_000_000));
        ground.require(!over, "V1", || format!("an alert fires on after its period, {}", reached.period_start));
        let quota = tables.quotas.iter().find(|quota| quota.id == reached.quota.id);
        let holds = quota.is_some_and(|quota| {
            let label = vault.naive.label(quota.period, reached.period_start.0);
            let used = vault.naive.used(quota).get(&label).copied().unwrap_or(0);
            quota.thresholds.contains(&reached.threshold) && oracle::reaches(used, quota, reached.threshold)
        });
        ground.require(holds, "Q2", || "an alert fires that is not true any more".into());
    }
    for ((alert, event, channel), owed) in &tables.outbox {
        ground.require(owed.settled.is_some(), "V1", || format!("{event} of {alert} is still owed to {channel}"));
        let received = ground.received.contains(&(*alert, *event, channel.clone()));
        let told = received || owed.settled == Some(Settled::GaveUp);
        ground.require(told, "Q3", || format!("{event} of {alert} is settled, and {channel} never got it"));
    }
    let expected = tables.alerts.values().map(|alert| 1 + usize::from(alert.resolved_at.is_some())).sum::<usize>();
    let channels = ground.plan.receivers;
    ground.require(tables.outbox.len() == expected * channels, "Q3", || {
        format!("{} rows in the outbox, {expected} things to tell {channels} channels", tables.outbox.len())
    });
    let rolled = tables.counters.values().any(|(window, _)| window.end < now && window.start.0 > 0);
    if rolled {
        ground.coverage.saw("period: rolled");
    }
}

/// A3: a change that was made is in the chain once, however often it was asked for.
pub fn change(ground: &mut Ground, vault: &Vault, change: &super::change::Change) {
    let mark = format!("\"requestId\":\"{}\"", change.key);
    let says = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(&mark);
    let records = vault.database.tables.records.iter().filter(|record| says(&record.bytes)).count();
    let expected = usize::from(change.made);
    ground.require(records == expected, "A3", || format!("{} has {records} records, not {expected}", change.key));
}
