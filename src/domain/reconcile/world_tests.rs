//! A random world with its truth: whatever traffic surrounds them, the faults that were planted are found, and no others.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::finding::{Cause, Found};
use super::meter::{self, Series, window_start};
use super::reading::{
    EVERY_ROUTE, GatewayCount, GatewayRequest, Interruption, InterruptionReason, MeterReading, Role, ServedBy, Source,
};
use super::tolerance::REQUEST_MICROS_ASSUMED;
use super::window::{Books, Judged, LedgerCall, Metered, compare, compare_after};
use super::{Proof, Terms, Verdict};
use crate::domain::amount::NanoUsd;
use crate::domain::period::Window;
use crate::domain::properties_tests::config;
use crate::domain::time::{MICROS_PER_SECOND, Timestamp};
use crate::domain::usage::{Amounts, Flags, Status};

const WINDOWS: i64 = 4;
const ROUTE: &str = "chat";
const UNLIMITED_ROUTE: &str = "batch";

/// What happens once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Served,
    /// By a call id that a client chose and uses again and again.
    ServedByChosenId,
    ServedOnAnotherRoute,
    ServedFromTheModelsCache,
    /// Two failures of providers, then a success, all of one call.
    Retried,
    /// A stream that broke: the client saw a 200, the ledger has a failure that cost something, or one that cost nothing.
    BrokenPaid,
    BrokenEarly,
    Failed,
    FailedUnheard,
    /// A failure that never came through a gateway, and cost nothing.
    FailedElsewhere,
    Denied,
    DeniedByQuota,
    Unauthenticated,
    FromTheGatewaysCache,
    LoggedTwice,
    // Faults.
    Lost,
    Bypassed,
    Duplicated,
    InAnothersName,
    ByAnother,
    Mispriced,
    PastTheLimiter,
}

impl Act {
    const CLEAN: [Act; 15] = [
        Act::Served,
        Act::ServedByChosenId,
        Act::ServedOnAnotherRoute,
        Act::ServedFromTheModelsCache,
        Act::Retried,
        Act::BrokenPaid,
        Act::BrokenEarly,
        Act::Failed,
        Act::FailedUnheard,
        Act::FailedElsewhere,
        Act::Denied,
        Act::DeniedByQuota,
        Act::Unauthenticated,
        Act::FromTheGatewaysCache,
        Act::LoggedTwice,
    ];
    const FAULTS: [Act; 7] = [
        Act::Lost,
        Act::Bypassed,
        Act::Duplicated,
        Act::InAnothersName,
        Act::ByAnother,
        Act::Mispriced,
        Act::PastTheLimiter,
    ];
}

#[derive(Debug, Clone, Copy)]
struct Happening {
    act: Act,
    /// From the start of the first window.
    at: i64,
    duration: i64,
    /// When in the course of the request the call is dated, in thousandths.
    dated: i64,
    /// The gateway's request id reached the ledger.
    passed_on_id: bool,
    counted: bool,
}

fn happening(acts: &'static [Act]) -> impl Strategy<Value = Happening> {
    let span = WINDOWS * Terms::default().window_micros;
    (
        prop::sample::select(acts),
        0..span,
        prop_oneof![Just(0_i64), 1_000..MICROS_PER_SECOND, MICROS_PER_SECOND..20 * MICROS_PER_SECOND],
        0_i64..=1_000,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(act, at, duration, dated, passed_on_id, counted)| Happening {
            act,
            at,
            duration,
            dated,
            passed_on_id,
            counted,
        })
}

fn clean() -> impl Strategy<Value = Vec<Happening>> {
    prop::collection::vec(happening(&Act::CLEAN), 0..120)
}

fn faulty() -> impl Strategy<Value = Vec<Happening>> {
    (clean(), prop::collection::vec(happening(&Act::FAULTS), 0..12)).prop_map(|(mut happenings, faults)| {
        happenings.extend(faults);
        happenings
    })
}

/// How far the gateway's clock is ahead of the ledger's: not worth telling, or well beyond it.
fn offsets() -> impl Strategy<Value = i64> {
    prop::sample::select(vec![0, -1, 1, -45, 45]).prop_map(|seconds| seconds * MICROS_PER_SECOND)
}

fn start() -> Timestamp {
    "2026-11-20T12:00:00Z".parse().unwrap()
}

#[derive(Debug, Default)]
struct World {
    requests: Vec<GatewayRequest>,
    calls: Vec<LedgerCall>,
    /// Requests or calls that a finding must be about.
    truth: BTreeMap<(Timestamp, Cause), Vec<String>>,
    /// Pairs that can be no other, per window.
    pairs: BTreeMap<Timestamp, usize>,
    offset: i64,
}

impl World {
    fn of(happenings: &[Happening], offset: i64) -> World {
        let mut world = World { offset, ..World::default() };
        for (number, happening) in happenings.iter().enumerate() {
            world.add(number, *happening);
        }
        for ids in world.truth.values_mut() {
            ids.sort();
        }
        let skewed = offset.abs() > Terms::default().skew_micros;
        let told = world.pairs.iter().filter(|(_, pairs)| skewed && **pairs >= super::evidence::SKEW_PAIRS_MIN);
        for (window, _) in told {
            world.truth.insert((*window, Cause::ClockSkew), Vec::new());
        }
        world
    }

    fn add(&mut self, number: usize, happening: Happening) {
        let Happening { act, at, duration, dated, counted, .. } = happening;
        let started_at = start().plus_micros(at);
        let id = format!("request-{number:03}");
        let ended = duration * dated / 1_000;
        let amounts = Amounts {
            requests: 1,
            prompt_tokens: number as i64 + 10,
            cache_read_tokens: 3,
            completion_tokens: 20,
            reasoning_tokens: 5,
            cost: NanoUsd(1_000 + number as i64),
            ..Amounts::default()
        };
        // Ids that a client chose can only be told apart by clocks that agree, or by the gateway's own.
        let skewed = self.offset.abs() > MICROS_PER_SECOND;
        let passed_on_id = happening.passed_on_id || (skewed && act == Act::ServedByChosenId);
        let request = GatewayRequest {
            request_id: id.clone(),
            call_id: format!("call-{number:03}"),
            started_at,
            duration_micros: duration,
            role: Role::Own,
            route: ROUTE.to_owned(),
            status: 200,
            served_by: ServedBy::Upstream,
            authenticated: true,
            limited: true,
            claims_other: false,
            counted: counted.then_some(GatewayCount {
                prompt_tokens: Some(amounts.prompt_tokens),
                completion_tokens: Some(amounts.completion_tokens),
                cached_tokens: Some(amounts.cache_read_tokens),
                reasoning_tokens: None,
                cost: Some(NanoUsd(amounts.cost.0 + 1)),
            }),
        };
        let call = LedgerCall {
            position: 10 * number as i64 + 1,
            call_id: request.call_id.clone(),
            request_id: if passed_on_id { id.clone() } else { String::new() },
            occurred_at: started_at.plus_micros(ended - self.offset),
            status: Status::Success,
            flags: Flags::default(),
            amounts,
        };
        let failure = |position: i64, amounts: Amounts| LedgerCall {
            position: call.position + position,
            status: Status::Failure,
            amounts,
            ..call.clone()
        };
        let refused = |status: i64, limited: bool| GatewayRequest {
            served_by: ServedBy::Gateway,
            status,
            limited,
            call_id: String::new(),
            counted: None,
            ..request.clone()
        };
        let (window, window_of_call) = (self.window(started_at), self.window(call.occurred_at));
        let mut joined = 1;
        match act {
            Act::Served | Act::ServedFromTheModelsCache => {
                self.requests.push(request);
                self.calls.push(call);
            }
            Act::ServedByChosenId => {
                self.requests.push(GatewayRequest { call_id: "mine".to_owned(), ..request });
                self.calls.push(LedgerCall { call_id: "mine".to_owned(), ..call });
            }
            Act::ServedOnAnotherRoute => {
                self.requests.push(GatewayRequest { route: UNLIMITED_ROUTE.to_owned(), limited: false, ..request });
                self.calls.push(call);
            }
            Act::LoggedTwice => {
                self.requests.push(request.clone());
                self.requests.push(request);
                self.calls.push(call);
            }
            Act::Retried => {
                self.requests.push(request);
                self.calls.push(failure(1, Amounts::default()));
                self.calls.push(failure(2, amounts));
                self.calls.push(call);
            }
            Act::BrokenPaid => {
                self.requests.push(request);
                self.calls.push(failure(0, amounts));
            }
            Act::BrokenEarly => {
                self.requests.push(request);
                self.calls.push(failure(0, Amounts::default()));
            }
            Act::Failed => {
                self.requests.push(GatewayRequest { status: 503, counted: None, ..request });
                self.calls.push(failure(0, Amounts::default()));
            }
            Act::FailedUnheard => {
                joined = 0;
                self.requests.push(GatewayRequest { status: 503, counted: None, ..request });
            }
            Act::FailedElsewhere => {
                joined = 0;
                self.calls.push(failure(0, Amounts::default()));
            }
            Act::Denied => {
                joined = 0;
                self.requests.push(refused(429, true));
            }
            Act::DeniedByQuota => {
                joined = 0;
                self.requests.push(refused(403, false));
            }
            Act::Unauthenticated => {
                joined = 0;
                self.requests.push(GatewayRequest { authenticated: false, ..refused(401, false) });
            }
            Act::FromTheGatewaysCache => {
                joined = 0;
                let another = format!("call-{:03}", number / 2);
                self.requests.push(GatewayRequest { call_id: another, ..refused(200, true) });
            }
            Act::Lost => {
                joined = 0;
                self.requests.push(request);
                self.plant(window, Cause::LostInLedger, id);
            }
            Act::Bypassed => {
                joined = 0;
                self.plant(window_of_call, Cause::BypassedGateway, call.call_id.clone());
                self.calls.push(call);
            }
            Act::Duplicated => {
                // Of two calls of one id, the gateway's id alone says which is its own.
                joined = usize::from(passed_on_id);
                self.requests.push(request);
                self.plant(window_of_call, Cause::Duplicate, call.call_id.clone());
                self.calls.push(LedgerCall { position: call.position + 1, ..call.clone() });
                self.calls.push(call);
            }
            Act::InAnothersName => {
                joined = 0;
                self.requests.push(GatewayRequest { claims_other: true, ..request });
                self.plant(window, Cause::TenantMismatch, id);
            }
            Act::ByAnother => {
                joined = 0;
                self.requests.push(GatewayRequest { role: Role::Claimed, ..request });
                self.plant(window_of_call, Cause::TenantMismatch, call.call_id.clone());
                self.calls.push(call);
            }
            Act::Mispriced => {
                let stated = GatewayCount { completion_tokens: Some(21), ..GatewayCount::default() };
                self.requests.push(GatewayRequest { counted: Some(stated), ..request });
                self.calls.push(call);
                self.plant(window, Cause::Mispriced, id);
            }
            Act::PastTheLimiter => {
                self.requests.push(GatewayRequest { limited: false, ..request });
                self.calls.push(call);
                self.plant(window, Cause::FailOpen, id);
            }
        }
        *self.pairs.entry(window).or_default() += joined;
    }

    fn window(&self, at: Timestamp) -> Timestamp {
        window_start(at, &Terms::default())
    }

    fn plant(&mut self, window: Timestamp, cause: Cause, id: String) {
        self.truth.entry((window, cause)).or_default().push(id);
    }

    fn is_clean(&self) -> bool {
        self.truth.keys().all(|(_, cause)| !cause.is_drift())
    }

    /// Every window of the world and its neighbours, as they are seen around it.
    fn each_window(&self, mut look: impl FnMut(Window, &[GatewayRequest], &[LedgerCall])) {
        let terms = Terms::default();
        for number in -1..=WINDOWS {
            let start = start().plus_micros(number * terms.window_micros);
            let window = Window { start, end: start.plus_micros(terms.window_micros) };
            let near = |at: Timestamp| {
                window.start.plus_micros(-terms.slack_micros) <= at && at < window.end.plus_micros(terms.slack_micros)
            };
            let requests: Vec<_> = self.requests.iter().filter(|one| near(one.started_at)).cloned().collect();
            let calls: Vec<_> = self.calls.iter().filter(|one| near(one.occurred_at)).cloned().collect();
            look(window, &requests, &calls);
        }
    }
}

/// Meters of the world, read at each poll, and what was missed.
#[derive(Debug, Default)]
struct Meters {
    counted: BTreeMap<(Timestamp, Source), i64>,
    interruptions: Vec<Interruption>,
}

impl Meters {
    /// Reads a meter that counts at `counted`, each `poll` from `phase` on; it is lost at `lost`.
    fn read(&mut self, source: Source, mut counted: Vec<Timestamp>, phase: i64, lost: Option<Timestamp>) {
        let terms = Terms::default();
        counted.sort();
        let mut series: Option<Series> = None;
        let from = start().plus_micros(-terms.window_micros + phase);
        let mut last = from;
        for number in 0..(WINDOWS + 2) * terms.window_micros / terms.poll_micros {
            let at = from.plus_micros(number * terms.poll_micros);
            let anew = lost.filter(|lost| *lost <= at);
            let value = counted.iter().filter(|one| **one <= at && anew.is_none_or(|anew| **one > anew)).count();
            if anew.is_some_and(|anew| last < anew) {
                let reason = match source {
                    Source::Limiter => InterruptionReason::LimiterReset,
                    Source::Metrics | Source::AccessLog => InterruptionReason::GatewayRestarted,
                };
                self.interruptions.push(Interruption { source, from: last, until: at, reason });
            }
            let reading = MeterReading {
                source,
                series: "all".to_owned(),
                epoch: if anew.is_some() { "second" } else { "first" }.to_owned(),
                value: value as i64,
                at,
                from_zero: true,
                lower_bound: false,
            };
            let (now, increase, interruption) = meter::advance(series.as_ref(), &reading, &terms);
            series = Some(now);
            self.interruptions.extend(interruption);
            if let Some(increase) = increase {
                *self.counted.entry((increase.window_start, source)).or_default() += increase.amount;
            }
            last = at;
        }
    }

    fn of_window(&self, window: Window) -> Vec<Metered> {
        let of_window = self.counted.iter().filter(|((start, _), _)| *start == window.start);
        of_window
            .map(|((_, source), amount)| Metered { source: *source, amount: *amount, lower_bound: false })
            .collect()
    }

    fn touch(&self, source: Source, window: Window) -> bool {
        let of_source = self.interruptions.iter().filter(|one| one.source == source);
        of_source.into_iter().any(|one| one.from < window.end && one.until > window.start)
    }
}

fn check_found(
    world: &World,
    window: Window,
    found: &[Found],
    mut skipped: impl FnMut(Cause) -> bool,
) -> Result<(), TestCaseError> {
    let planted = world.truth.iter().filter(|((start, cause), _)| *start == window.start && !skipped(*cause));
    let planted: Vec<(Cause, Vec<String>)> = planted.map(|((_, cause), ids)| (*cause, ids.clone())).collect();
    let told: Vec<(Cause, Vec<String>)> = found
        .iter()
        .filter(|one| one.cause != Cause::LimiterReset)
        .map(|one| {
            let by_call = [Cause::BypassedGateway, Cause::Duplicate];
            let mut ids = match one.cause {
                // Requests in another's name by their own id, calls by another by their call's.
                Cause::TenantMismatch => {
                    let all = world.truth.get(&(window.start, one.cause)).cloned().unwrap_or_default();
                    let known =
                        |id: &String| one.evidence.request_ids.contains(id) || one.evidence.call_ids.contains(id);
                    all.into_iter().filter(known).collect()
                }
                Cause::ClockSkew => Vec::new(),
                cause if by_call.contains(&cause) => one.evidence.call_ids.clone(),
                _ => one.evidence.request_ids.clone(),
            };
            ids.sort();
            (one.cause, ids)
        })
        .collect();
    prop_assert_eq!(told, planted, "window {}", window.start);
    for one in found.iter().filter(|one| !matches!(one.cause, Cause::LimiterReset | Cause::ClockSkew)) {
        let ids = world.truth.get(&(window.start, one.cause)).map_or(0, Vec::len);
        prop_assert_eq!(one.count, ids as i64, "{:?}", one);
    }
    Ok(())
}

proptest! {
    #![proptest_config(config(192))]

    /// What was planted is found in its window, under its cause, with its ids; a clean tenant is clean.
    #[test]
    fn what_was_planted_is_found_and_nothing_else(
        happenings in prop_oneof![clean(), faulty()],
        offset in offsets(),
        order in any::<u64>(),
    ) {
        let world = World::of(&happenings, offset);
        let limited_routes = [ROUTE.to_owned()];
        let mut outcome = Ok(());
        world.each_window(|window, requests, calls| {
            let books = Books {
                window,
                requests,
                calls,
                metered: &[],
                interruptions: &[],
                sources: &[Source::AccessLog],
                limited_routes: &limited_routes,
            };
            let (judged, found) = compare(&books, &Terms::default());
            let check = || {
                check_found(&world, window, &found, |_| false)?;
                prop_assert_eq!(judged.len(), 1);
                let drift = found.iter().any(|one| one.cause.is_drift() && one.cause != Cause::FailOpen);
                prop_assert_eq!(judged[0].verdict, if drift { Verdict::Drift } else { Verdict::Matched });
                if !drift {
                    prop_assert_eq!(judged[0].gateway, judged[0].ledger);
                }
                // The order in which rows come says nothing.
                let (mut requests, mut calls) = (requests.to_vec(), calls.to_vec());
                shuffle(&mut requests, order);
                shuffle(&mut calls, order);
                let shuffled = Books { requests: &requests, calls: &calls, ..books };
                prop_assert_eq!(compare(&shuffled, &Terms::default()), (judged.clone(), found.clone()));
                Ok(())
            };
            if outcome.is_ok() {
                outcome = check();
            }
        });
        outcome?;
    }

    /// With all three proofs: counts and attempts add no finding of their own, whatever is lost or begun anew, and a
    /// clean tenant has no drift in any of them.
    #[test]
    fn counts_and_attempts_accuse_nobody_whom_the_log_clears(
        happenings in prop_oneof![clean(), faulty()],
        offset in offsets(),
        phases in (0..15 * MICROS_PER_SECOND, 0..15 * MICROS_PER_SECOND),
        restarted in prop::option::of(0..WINDOWS * Terms::default().window_micros),
        emptied in prop::option::of(0..WINDOWS * Terms::default().window_micros),
    ) {
        let world = World::of(&happenings, offset);
        let limited_routes = [ROUTE.to_owned()];
        let at = |offset: Option<i64>| offset.map(|offset| start().plus_micros(offset));
        let mut once = world.requests.clone();
        once.retain(|request| request.role == Role::Own);
        once.dedup();
        let passed_on = once.iter().filter(|one| super::join::is_due(one));
        let passed_on = passed_on.map(|one| one.started_at.plus_micros(one.duration_micros)).collect();
        let attempts = once.iter().filter(|one| one.limited).map(|one| one.started_at).collect();
        let mut meters = Meters::default();
        meters.read(Source::Metrics, passed_on, phases.0, at(restarted));
        meters.read(Source::Limiter, attempts, phases.1, at(emptied));
        let mut outcome = Ok(());
        let mut earlier: Vec<Judged> = Vec::new();
        world.each_window(|window, requests, calls| {
            let metered = meters.of_window(window);
            let books = Books {
                window,
                requests,
                calls,
                metered: &metered,
                interruptions: &meters.interruptions,
                sources: &Source::ALL,
                limited_routes: &limited_routes,
            };
            let (judged, found) = compare_after(&earlier, &books, &Terms::default());
            let (restarted, emptied) = (meters.touch(Source::Metrics, window), meters.touch(Source::Limiter, window));
            let check = || {
                // A refusal without the limiter's headers may have been let through while the limiter was away.
                let doubtful = |cause| emptied && cause == Cause::FailOpen;
                // Where the log may have lost records, the limiter still says that something went past it.
                let by_attempts = |one: &Found| restarted && one.proof == Proof::Attempts;
                let bypassed = world.truth.get(&(window.start, Cause::BypassedGateway)).map_or(0, Vec::len);
                for one in found.iter().filter(|one| by_attempts(one) && one.cause == Cause::BypassedGateway) {
                    prop_assert!(bypassed > 0, "{:?}", one);
                }
                let left_out =
                    |one: &Found| doubtful(one.cause) || (by_attempts(one) && one.cause == Cause::BypassedGateway);
                let found: Vec<_> = found.iter().filter(|one| !left_out(one)).cloned().collect();
                // Records may be lost with the gateway, so what has none is not said to have come another way.
                let unproven = |cause| restarted && cause == Cause::BypassedGateway;
                check_found(&world, window, &found, |cause| doubtful(cause) || unproven(cause))?;
                let reset = found.iter().any(|one| one.cause == Cause::LimiterReset);
                prop_assert!(emptied || !reset, "{:?}", found);
                if world.is_clean() {
                    prop_assert!(judged.iter().all(|one| one.verdict != Verdict::Drift), "{:?}", judged);
                }
                let verdict = |proof| judged.iter().find(|one| one.proof == proof).map(|one| one.verdict);
                prop_assert_eq!(verdict(Proof::Cumulative) == Some(Verdict::Unproven), restarted, "{:?}", judged);
                Ok(())
            };
            if outcome.is_ok() {
                outcome = check();
            }
            earlier.splice(0..0, judged);
        });
        outcome?;
    }

    /// Without an access log: a clean tenant has no drift by counts, over any number of windows, whose requests take no longer
    /// than is assumed of those that nobody has logged.
    #[test]
    fn a_clean_tenant_is_clean_by_counts_alone(
        happenings in prop::collection::vec(happening(&[Act::Served, Act::Retried, Act::Denied, Act::Failed]), 0..400),
        phases in (0..15 * MICROS_PER_SECOND, 0..15 * MICROS_PER_SECOND),
    ) {
        let short = |one: &Happening| Happening { duration: one.duration.min(REQUEST_MICROS_ASSUMED), ..*one };
        let world = World::of(&happenings.iter().map(short).collect::<Vec<_>>(), 0);
        let passed_on = world.requests.iter().filter(|one| super::join::is_due(one));
        let passed_on = passed_on.map(|one| one.started_at.plus_micros(one.duration_micros)).collect();
        let attempts = world.requests.iter().map(|one| one.started_at).collect();
        let mut meters = Meters::default();
        meters.read(Source::Metrics, passed_on, phases.0, None);
        meters.read(Source::Limiter, attempts, phases.1, None);
        let mut earlier: Vec<Judged> = Vec::new();
        world.each_window(|window, _, calls| {
            let metered = meters.of_window(window);
            let books = Books {
                window,
                requests: &[],
                calls,
                metered: &metered,
                interruptions: &[],
                sources: &[Source::Metrics, Source::Limiter],
                limited_routes: &[EVERY_ROUTE.to_owned()],
            };
            let (judged, _) = compare_after(&earlier, &books, &Terms::default());
            earlier.splice(0..0, judged);
        });
        let drift: Vec<&Judged> = earlier.iter().filter(|one| one.verdict != Verdict::Matched).collect();
        prop_assert!(drift.is_empty(), "{:?}", drift);
    }
}

/// A fixed shuffle: each row changes places with one that the seed picks.
fn shuffle<T>(rows: &mut [T], mut seed: u64) {
    for at in (1..rows.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        rows.swap(at, (seed >> 33) as usize % (at + 1));
    }
}
