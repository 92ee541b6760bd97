//! A recorded run of a real gateway, with its truth (`tests/fixtures/kong/recon`): what the comparison must say of it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::finding::{Cause, EVIDENCE_IDS_MAX, Found};
use super::meter::{self, Series};
use super::reading::{
    EVERY_ROUTE, GatewayRequest, Interruption, InterruptionReason, MeterReading, Role, ServedBy, Source,
};
use super::window::{Books, Judged, LedgerCall, Metered, compare_after};
use super::{Proof, Terms, Verdict};
use crate::domain::period::Window;
use crate::domain::time::{MICROS_PER_MINUTE, MICROS_PER_SECOND, Timestamp};
use crate::domain::usage::{Amounts, Flags, Status};

const HTTP_LOG: &str = include_str!("../../../tests/fixtures/kong/recon/http-log.tsv");
const LEDGER: &str = include_str!("../../../tests/fixtures/kong/recon/upstream-ledger.jsonl");
const POLLS: &str = include_str!("../../../tests/fixtures/kong/recon/redis-polls.tsv");
const SCRAPES: &str = include_str!("../../../tests/fixtures/kong/recon/metrics-scrapes.jsonl");
const SUMMARY: &str = include_str!("../../../tests/fixtures/kong/recon/summary.tsv");

/// Name of the consumer, and the tenant it stands for.
const TENANTS: [(&str, &str); 3] = [
    ("tenant-acme", "11111111-1111-4111-8111-111111111111"),
    ("tenant-globex", "22222222-2222-4222-8222-222222222222"),
    ("tenant-initech", "33333333-3333-4333-8333-333333333333"),
];
const GPT: &str = "ebf0e26f-46e3-5b76-a219-86cc80fb573d";
const FIRST: i64 = 1_795_220_880;
const OUTAGE: i64 = 1_795_221_000;
const RESTART: i64 = 1_795_221_060;
const WINDOWS: i64 = 5;

fn terms() -> Terms {
    Terms { window_micros: MICROS_PER_MINUTE, ..Terms::default() }
}

/// Seconds with a fraction, as written in the recording.
fn instant(seconds: &str) -> Timestamp {
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
    let micros: i64 = format!("{fraction:0<6}")[..6].parse().unwrap();
    Timestamp(whole.parse::<i64>().unwrap() * MICROS_PER_SECOND + micros)
}

fn rows(text: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split('\t').collect())
}

fn requests(tenant: &str) -> Vec<GatewayRequest> {
    let of_tenant = rows(HTTP_LOG).filter(|row| row[7] == tenant);
    of_tenant
        .map(|row| GatewayRequest {
            request_id: row[2].to_owned(),
            call_id: row[13].to_owned(),
            started_at: Timestamp::from_millis(row[3].parse().unwrap()),
            duration_micros: row[4].parse::<i64>().unwrap() * 1_000,
            role: Role::Own,
            route: row[5].to_owned(),
            status: row[9].parse().unwrap(),
            served_by: if row[10] == "upstream" { ServedBy::Upstream } else { ServedBy::Gateway },
            authenticated: true,
            limited: !row[16].is_empty(),
            claims_other: row[8] != tenant,
            counted: None,
        })
        .collect()
}

fn calls(tenant: &str) -> Vec<LedgerCall> {
    let rows = LEDGER.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).enumerate();
    rows.filter(|(_, row)| row["tenant"] == tenant)
        .map(|(position, row)| {
            let success = row["status"] == 200;
            let tokens = |name: &str| row["usage"][name].as_i64().unwrap_or(0);
            LedgerCall {
                position: position as i64 + 1,
                call_id: row["call_id"].as_str().unwrap().to_owned(),
                request_id: row["kong_request_id"].as_str().unwrap().to_owned(),
                occurred_at: instant(&row["received_at"].to_string()),
                status: if success { Status::Success } else { Status::Failure },
                flags: Flags::default(),
                amounts: Amounts {
                    requests: i64::from(success),
                    prompt_tokens: tokens("prompt_tokens"),
                    completion_tokens: tokens("completion_tokens"),
                    ..Amounts::default()
                },
            }
        })
        .collect()
}

/// What the meters said of one tenant: what each counted in each window, and when nothing could be known.
#[derive(Default)]
struct Meters {
    known: BTreeMap<(Source, String), Series>,
    counted: BTreeMap<(i64, Source), (i64, bool)>,
    interruptions: Vec<Interruption>,
}

impl Meters {
    fn read(&mut self, reading: &MeterReading) {
        let key = (reading.source, reading.series.clone());
        let (series, increase, interruption) = meter::advance(self.known.get(&key), reading, &terms());
        self.known.insert(key, series);
        self.interruptions.extend(interruption);
        if let Some(increase) = increase {
            let counted = self.counted.entry((increase.window_start.0, increase.source)).or_default();
            counted.0 += increase.amount;
            counted.1 |= increase.lower_bound;
        }
    }

    fn total(&self, source: Source) -> i64 {
        self.counted.iter().filter(|((_, of), _)| *of == source).map(|(_, (amount, _))| amount).sum()
    }

    fn of_window(&self, start: i64) -> Vec<Metered> {
        let of_window = self.counted.iter().filter(|((window, _), _)| *window == start);
        of_window
            .map(|((_, source), (amount, lower_bound))| Metered {
                source: *source,
                amount: *amount,
                lower_bound: *lower_bound,
            })
            .collect()
    }
}

/// Reads `/metrics` as the gateway's reader does: proxied successes of one consumer.
fn scrape(meters: &mut Meters, consumer: &str) {
    let mut node = String::new();
    let mut last_good: Option<Timestamp> = None;
    let mut failed = false;
    for line in SCRAPES.lines() {
        let scrape: Value = serde_json::from_str(line).unwrap();
        let at = instant(&scrape["scrape_at"].to_string());
        let Some(lines) = scrape["lines"].as_array() else {
            failed = true;
            continue;
        };
        let lines: Vec<&str> = lines.iter().map(|line| line.as_str().unwrap()).collect();
        let label = |line: &str, name: &str| {
            line.split(&format!("{name}=\"")).nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("").to_owned()
        };
        let of_node = lines.iter().find(|line| line.starts_with("kong_node_info")).unwrap();
        let epoch = label(of_node, "node_id");
        let unheard = last_good.is_some_and(|last: Timestamp| at.0 - last.0 > terms().window_micros);
        if failed || unheard {
            let from = last_good.unwrap_or(at);
            let reason = InterruptionReason::Gap;
            meters.interruptions.push(Interruption { source: Source::Metrics, from, until: at, reason });
        }
        if !node.is_empty() && node != epoch {
            // Also for a tenant none of whose series has come back.
            let from = last_good.unwrap_or(at);
            let reason = InterruptionReason::GatewayRestarted;
            meters.interruptions.push(Interruption { source: Source::Metrics, from, until: at, reason });
        }
        let passed_on = lines.iter().filter(|line| line.starts_with("kong_http_requests_total{"));
        for line in passed_on.filter(|line| {
            label(line, "source") == "service"
                && label(line, "code").starts_with('2')
                && label(line, "consumer") == consumer
        }) {
            meters.read(&MeterReading {
                source: Source::Metrics,
                series: label(line, "route"),
                epoch: epoch.clone(),
                value: line.rsplit(' ').next().unwrap().parse().unwrap(),
                at,
                from_zero: node == epoch,
                lower_bound: false,
            });
        }
        (node, last_good, failed) = (epoch, Some(at), false);
    }
}

/// Reads the limiter's counters as the gateway's reader does, at every `step`-th poll from the `phase`-th on. With
/// `day`, the route that has a meter for the day is read by that one.
fn poll(meters: &mut Meters, tenant: &str, day: bool, step: usize, phase: usize) {
    let mut polls: BTreeMap<Timestamp, Vec<Vec<&str>>> = BTreeMap::new();
    for row in rows(POLLS) {
        polls.entry(instant(row[0])).or_default().push(row);
    }
    let mut last_good = None;
    let mut failed = false;
    for (at, keys) in polls.into_iter().skip(phase).step_by(step) {
        if keys.iter().any(|row| row[1] == "ERROR") {
            failed = true;
            continue;
        }
        if failed {
            meters.interruptions.push(Interruption {
                source: Source::Limiter,
                from: last_good.unwrap_or(at),
                until: at,
                reason: InterruptionReason::Gap,
            });
        }
        let mut readings: Vec<MeterReading> = Vec::new();
        for row in keys.iter().filter(|row| row[1] != "EMPTY") {
            let parts: Vec<&str> = row[1].split(':').collect();
            let [_, route, _, identifier, date, period] = parts[..] else { panic!("{row:?}") };
            let by_day = day && route == GPT;
            if identifier != tenant || by_day != (period == "day") {
                continue;
            }
            let start: i64 = date.parse::<i64>().unwrap() * 1_000;
            let over = start + MICROS_PER_MINUTE - 1;
            readings.push(MeterReading {
                source: Source::Limiter,
                series: format!("{route}/{period}"),
                epoch: date.to_owned(),
                value: row[2].parse().unwrap(),
                at: if period == "minute" { Timestamp(at.0.min(over)) } else { at },
                // Redis was watched before any of these keys was made.
                from_zero: true,
                lower_bound: period == "minute",
            });
        }
        readings.sort_by(|one, other| one.epoch.cmp(&other.epoch));
        readings.iter().for_each(|reading| meters.read(reading));
        (last_good, failed) = (Some(at), false);
    }
}

/// The books of one tenant.
struct Tenant {
    requests: Vec<GatewayRequest>,
    calls: Vec<LedgerCall>,
    meters: Meters,
    sources: Vec<Source>,
    limited_routes: Vec<String>,
}

impl Tenant {
    fn recorded(number: usize) -> Tenant {
        let (consumer, tenant) = TENANTS[number];
        let requests = requests(tenant);
        let mut meters = Meters::default();
        scrape(&mut meters, consumer);
        poll(&mut meters, tenant, true, 1, 0);
        let limited = requests.iter().filter(|request| request.limited).map(|request| request.route.clone());
        let limited_routes = limited.collect::<BTreeSet<_>>().into_iter().collect();
        Tenant { requests, calls: calls(tenant), meters, sources: Source::ALL.to_vec(), limited_routes }
    }

    /// Compares all windows in turn.
    fn compare(&self) -> (Vec<Judged>, Vec<Found>) {
        let terms = terms();
        let (mut judged, mut found): (Vec<Judged>, Vec<Found>) = Default::default();
        for start in (0..WINDOWS).map(|number| (FIRST + 60 * number) * MICROS_PER_SECOND) {
            let window = Window { start: Timestamp(start), end: Timestamp(start + terms.window_micros) };
            let near =
                |at: Timestamp| window.start.0 - terms.slack_micros <= at.0 && at.0 < window.end.0 + terms.slack_micros;
            let requests: Vec<_> = self.requests.iter().filter(|request| near(request.started_at)).cloned().collect();
            let calls: Vec<_> = self.calls.iter().filter(|call| near(call.occurred_at)).cloned().collect();
            let earlier: Vec<Judged> = judged.iter().rev().cloned().collect();
            let (verdicts, findings) = compare_after(
                &earlier,
                &Books {
                    window,
                    requests: &requests,
                    calls: &calls,
                    metered: &self.meters.of_window(start),
                    interruptions: &self.meters.interruptions,
                    sources: &self.sources,
                    limited_routes: &self.limited_routes,
                },
                &terms,
            );
            judged.extend(verdicts);
            found.extend(findings);
        }
        (judged, found)
    }
}

fn seconds(window: Window) -> i64 {
    window.start.0 / MICROS_PER_SECOND
}

fn told(found: &[Found]) -> Vec<(i64, Cause, i64)> {
    found.iter().map(|one| (seconds(one.window), one.cause, one.count)).collect()
}

fn verdicts(judged: &[Judged], proof: Proof) -> Vec<Verdict> {
    judged.iter().filter(|one| one.proof == proof).map(|one| one.verdict).collect()
}

#[test]
fn every_success_has_its_call() {
    let tenants: Vec<_> = (0..3).map(|number| Tenant::recorded(number).compare().0).collect();
    for judged in &tenants {
        assert_eq!(verdicts(judged, Proof::Requests), [Verdict::Matched; 5]);
    }
    let of_requests = || tenants.iter().flatten().filter(|one| one.proof == Proof::Requests);
    let both = (of_requests().map(|one| one.gateway).sum::<i64>(), of_requests().map(|one| one.ledger).sum::<i64>());
    assert_eq!(both, (562, 562));
}

#[test]
fn the_outage_of_the_limiter_is_found_and_nothing_else() {
    use Cause::{FailOpen, LimiterReset};
    let found: Vec<_> = (0..3).map(|number| Tenant::recorded(number).compare().1).collect();
    let expected = |fail_open: i64, all: i64| vec![(OUTAGE, FailOpen, fail_open), (OUTAGE, LimiterReset, all)];
    // 52 in all. The counters of the window, after what was counted twice over the flush has been read anew.
    let all = |found: &[Found]| found.iter().find(|one| one.cause == LimiterReset).map_or(0, |one| one.count);
    assert_eq!(told(&found[0]), expected(39, all(&found[0])));
    assert_eq!(told(&found[1]), expected(8, all(&found[1])));
    assert_eq!(told(&found[2]), expected(5, all(&found[2])));
    let fail_open = found.iter().flatten().filter(|one| one.cause == FailOpen);
    assert_eq!(fail_open.map(|one| one.count).sum::<i64>(), 52);
    assert_eq!(found[0][0].evidence.request_ids.len(), 39.min(EVIDENCE_IDS_MAX));
}

#[test]
fn what_the_gateway_passed_on_is_unproven_around_its_restart_and_never_a_drift() {
    for number in 0..3 {
        let (judged, _) = Tenant::recorded(number).compare();
        let verdicts = verdicts(&judged, Proof::Cumulative);
        let restarted = |one: &&Judged| one.reasons.contains(&InterruptionReason::GatewayRestarted);
        let windows: Vec<i64> = judged.iter().filter(restarted).map(|one| seconds(one.window)).collect();
        assert!(windows.contains(&RESTART), "{windows:?}");
        assert_eq!(verdicts[..3], [Verdict::Matched; 3], "tenant {number}");
        // The last scrape came more than a window after the one before.
        assert_eq!(verdicts[3..], [Verdict::Unproven; 2], "tenant {number}");
    }
}

#[test]
fn what_the_gateway_counted_is_counted_once_over_both_its_lives() {
    let total = (0..3).map(|number| Tenant::recorded(number).meters.total(Source::Metrics)).sum::<i64>();
    // 457 before the restart and 83 after it; 22 of the 562 were never read.
    assert_eq!(total, 457 + 83);
}

#[test]
fn attempts_are_enough_in_quiet_windows_and_unproven_where_the_counters_were_lost() {
    for number in 0..3 {
        let (judged, _) = Tenant::recorded(number).compare();
        let outage = judged.iter().find(|one| one.proof == Proof::Attempts && seconds(one.window) == OUTAGE).unwrap();
        assert_eq!(outage.verdict, Verdict::Unproven);
        assert!(outage.reasons.contains(&InterruptionReason::LimiterReset), "{:?}", outage.reasons);
        let others = judged.iter().filter(|one| one.proof == Proof::Attempts && seconds(one.window) != OUTAGE);
        for one in others {
            assert_eq!(one.verdict, Verdict::Matched, "{one:?}");
        }
    }
}

/// A minute's counter dies before its last increments are read. However slowly it is polled, that is no drift.
#[test]
fn a_slow_poller_of_minutes_never_accuses_anybody() {
    let mut enough = BTreeMap::new();
    for (number, step) in [(0, 1), (0, 2), (1, 1), (1, 2), (1, 4), (1, 8), (1, 12), (2, 12)] {
        for phase in 0..step {
            for sources in [vec![Source::Limiter], Source::ALL.to_vec()] {
                let mut tenant = Tenant::recorded(number);
                tenant.meters = Meters::default();
                poll(&mut tenant.meters, TENANTS[number].1, false, step, phase);
                // Both routes have a limiter.
                tenant.limited_routes.push(EVERY_ROUTE.to_owned());
                let without_log = !sources.contains(&Source::AccessLog);
                tenant.sources = sources;
                let (judged, found) = tenant.compare();
                let attempts = verdicts(&judged, Proof::Attempts);
                assert!(!attempts.contains(&Verdict::Drift), "tenant {number}, every {step} from {phase}: {judged:?}");
                let accused = found.iter().find(|one| one.cause.is_drift() && one.proof == Proof::Attempts);
                assert_eq!(accused, None);
                if without_log {
                    *enough.entry(attempts.contains(&Verdict::Unproven)).or_insert(0) += 1;
                }
            }
        }
    }
    assert!(enough[&true] > 0, "some polls were too slow to prove it: {enough:?}");
}

/// The truth of the recording itself, so that the figures above do not stand alone.
#[test]
fn the_recording_says_what_its_summary_says() {
    let mut sums = [0_i64; 2];
    for row in rows(SUMMARY).filter(|row| row.len() > 11) {
        sums[0] += row[7].parse::<i64>().unwrap();
        sums[1] += row[11].parse::<i64>().unwrap();
    }
    assert_eq!(sums, [562, 52]);
    let ids: BTreeSet<&str> = rows(HTTP_LOG).map(|row| row[2]).collect();
    assert_eq!((ids.len(), rows(HTTP_LOG).count()), (1_580, 1_580));
}

/// Faults planted into the recorded run are found where they were planted, one by one.
#[test]
fn planted_faults_are_found_in_the_recorded_run() {
    let clean = told(&Tenant::recorded(1).compare().1);
    let with = |fault: &dyn Fn(&mut Tenant)| {
        let mut tenant = Tenant::recorded(1);
        fault(&mut tenant);
        let mut told = told(&tenant.compare().1);
        told.retain(|one| !clean.contains(one));
        told
    };
    let in_window = |at: Timestamp| (at.0 / MICROS_PER_MINUTE * 60) == FIRST + 60;
    let success = |call: &LedgerCall| call.status == Status::Success && in_window(call.occurred_at);

    let lost = with(&|tenant| {
        let first: Vec<i64> =
            tenant.calls.iter().filter(|call| success(call)).take(3).map(|call| call.position).collect();
        tenant.calls.retain(|call| !first.contains(&call.position));
    });
    assert_eq!(lost, [(FIRST + 60, Cause::LostInLedger, 3)]);

    let twice = with(&|tenant| {
        let again: Vec<LedgerCall> = tenant.calls.iter().filter(|call| success(call)).take(2).cloned().collect();
        tenant.calls.extend(again.into_iter().map(|call| LedgerCall { position: call.position + 10_000, ..call }));
    });
    assert_eq!(twice, [(FIRST + 60, Cause::Duplicate, 2)]);

    let direct = with(&|tenant| {
        let one = tenant.calls.iter().find(|call| success(call)).cloned().unwrap();
        tenant.calls.extend((0..4).map(|number| LedgerCall {
            position: 20_000 + number,
            call_id: format!("direct-{number}"),
            request_id: String::new(),
            ..one.clone()
        }));
    });
    assert_eq!(direct, [(FIRST + 60, Cause::BypassedGateway, 4)]);

    let in_anothers_name = with(&|tenant| {
        let one = tenant.calls.iter().find(|call| success(call)).cloned().unwrap();
        tenant.calls.retain(|call| call.position != one.position);
        let request = tenant.requests.iter_mut().find(|request| request.request_id == one.request_id).unwrap();
        request.claims_other = true;
    });
    assert_eq!(in_anothers_name, [(FIRST + 60, Cause::TenantMismatch, 1)]);
}
