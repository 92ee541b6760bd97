//! What waits for which tenant, and who is called, put off or parked next. Decides only; nothing here waits or calls.
//!
//! Each tenant has a lane of its own, so that nobody waits behind another tenant's commit. A lane has at most
//! [`CALLS_MAX`] calls under way: what arrives meanwhile gathers, and the next call takes all of it, so that commits grow
//! with the load. All lanes together have [`AT_ONCE_MAX`], in the order in which something arrived: where more tenants are
//! busy than a database serves at once, each commits less often and more, instead of all of them one event at a time. Calls
//! that take long do not count, so that tenants that hang keep nobody waiting. A lane whose tenant cannot take anything is tried again after a delay. What has waited too long is
//! parked, by whoever owns the lanes: kept in quarantine, so that it holds up neither the floor nor the room.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::part::Part;
use crate::domain::ids::TenantId;

/// Calls of one lane under way: one that is committed, and one that gathers meanwhile at the tenant.
const CALLS_MAX: usize = 2;
/// Calls of all lanes under way, but for those that take longer than [`SLOW_AFTER`]. More than a server of a hundred
/// cores does at once, and twice what the usual number of open tenants (`tenants.open_max`) needs.
const AT_ONCE_MAX: usize = 128;
/// A call that takes longer waits for something else than its turn.
const SLOW_AFTER: Duration = Duration::from_secs(1);
/// Events of one call, unless a single part has more.
const CALL_EVENTS_MAX: usize = 5_000;
/// First delay before a tenant that could not take a call is called again; doubles up to [`DELAY_MAX`].
const DELAY_MIN: Duration = Duration::from_millis(50);
const DELAY_MAX: Duration = Duration::from_secs(1);
/// How long what arrives for a tenant waits while earlier events of that tenant are parked.
const AWAY_PATIENCE: Duration = Duration::from_secs(1);
/// How long a call may wait for room at its tenant at least, however long its events have waited.
const ADMISSION_MIN: Duration = Duration::from_millis(500);
/// What waits in a lane of which nothing was taken for this long is copied out of what was read with it.
const COPIED_AFTER: Duration = Duration::from_secs(1);
/// A lane that has nothing to do is forgotten after this long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

/// All tenants' lanes.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: HashMap<TenantId, Lane, ahash::RandomState>,
    /// Lanes that may have a call to start.
    awake: VecDeque<TenantId>,
    quick: Quick,
    bounds: Bounds,
    may_park: bool,
    /// Nothing more comes, and what is stuck has to go soon.
    runs_out: bool,
    closed: bool,
}

/// How much may wait, for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Events that a stuck lane may hold.
    pub(super) share_events: usize,
    pub(super) park_after: Duration,
}

impl Bounds {
    /// A lane is stuck when nothing of it was taken for this long: long enough for a slow commit.
    fn stuck_after(self) -> Duration {
        self.park_after / 2
    }
}

/// Calls under way that are not slow yet, by when they began.
#[derive(Debug, Default)]
struct Quick {
    began: BTreeMap<Instant, usize>,
    calls: usize,
}

impl Quick {
    fn has_room(&mut self, now: Instant) -> bool {
        while let Some(oldest) = self.began.first_entry().filter(|oldest| now - *oldest.key() >= SLOW_AFTER) {
            self.calls -= oldest.remove();
        }
        self.calls < AT_ONCE_MAX
    }

    fn begin(&mut self, now: Instant) {
        *self.began.entry(now).or_default() += 1;
        self.calls += 1;
    }

    /// One that began then is over. It may have been slow.
    fn end(&mut self, began: Instant) {
        let Some(calls) = self.began.get_mut(&began) else { return };
        *calls -= 1;
        if *calls == 0 {
            self.began.remove(&began);
        }
        self.calls -= 1;
    }
}

/// One tenant's.
#[derive(Debug)]
struct Lane {
    queue: VecDeque<Part>,
    queued: usize,
    calling: usize,
    /// When each call under way began; a tenant answers them in their order.
    calls: VecDeque<Instant>,
    /// Ends the calls under way early.
    hurry: CancellationToken,
    /// When something was last taken, or the lane began to wait.
    progress_at: Instant,
    /// When it may be called again, after it could not take something.
    retry_at: Option<Instant>,
    delay: Duration,
    /// Events of it are parked, and it has taken nothing since.
    away: bool,
}

/// A call to make.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) tenant: TenantId,
    pub(super) parts: Vec<Part>,
    /// Until when its tenant may admit it. Once admitted it is waited for: it is committed sooner or later.
    pub(super) admit_by: Instant,
    pub(super) hurry: CancellationToken,
}

impl Lanes {
    pub(super) fn new(bounds: Bounds) -> Lanes {
        let (lanes, awake, quick) = (HashMap::default(), VecDeque::new(), Quick::default());
        Lanes { lanes, awake, quick, bounds, may_park: true, runs_out: false, closed: false }
    }

    /// Something has arrived for a tenant.
    pub(super) fn offer(&mut self, tenant: TenantId, part: Part) {
        let since = part.since;
        let lane = self.lanes.entry(tenant).or_insert_with(|| Lane::new(since));
        if lane.is_idle() {
            lane.progress_at = since;
        }
        lane.queued += part.pieces.len();
        lane.queue.push_back(part);
        self.awake.push_back(tenant);
    }

    /// The next call that can be made.
    pub(super) fn next(&mut self, now: Instant) -> Option<Call> {
        while self.quick.has_room(now) {
            let tenant = self.awake.pop_front()?;
            let Some(lane) = self.lanes.get_mut(&tenant) else { continue };
            let Some(parts) = lane.take(now) else { continue };
            self.quick.begin(now);
            let bound = lane.patience(self.bounds.park_after);
            let oldest = parts.iter().map(|part| part.since).min().unwrap_or(now);
            let admit_by = (oldest + bound).max(now + ADMISSION_MIN);
            return Some(Call { tenant, parts, admit_by, hurry: lane.hurry.clone() });
        }
        None
    }

    /// A call has ended; `back` is what its tenant did not take.
    pub(super) fn ended(&mut self, tenant: TenantId, taken: usize, back: Vec<Part>, now: Instant) {
        let Some(lane) = self.lanes.get_mut(&tenant) else { return };
        let returned: usize = back.iter().map(|part| part.pieces.len()).sum();
        if let Some(began) = lane.calls.pop_front() {
            self.quick.end(began);
        }
        lane.calling -= taken + returned;
        if !self.closed {
            lane.put_back(back);
        }
        if returned == 0 {
            lane.progress_at = now;
            lane.retry_at = None;
            lane.delay = DELAY_MIN;
            lane.away = false;
        } else {
            lane.retry_at = Some(now + lane.delay);
            lane.delay = (lane.delay * 2).min(DELAY_MAX);
        }
        self.awake.push_back(tenant);
    }

    /// While nothing may be parked, what is stuck stays where it is.
    pub(super) fn may_park(&mut self, may_park: bool) {
        self.may_park = may_park;
    }

    /// What was to be parked, and could not be.
    pub(super) fn take_back(&mut self, tenant: TenantId, back: Vec<Part>, now: Instant) {
        if self.closed || back.is_empty() {
            return;
        }
        let lane = self.lanes.entry(tenant).or_insert_with(|| Lane::new(now));
        lane.put_back(back);
        self.awake.push_back(tenant);
    }

    /// Time has passed: wakes what is to be tried again, and answers what has to be parked. Under `pressure`, when nothing
    /// more can be read, whatever is stuck has to go.
    pub(super) fn sweep(&mut self, pressure: bool, now: Instant) -> Vec<(TenantId, Vec<Part>)> {
        let mut overdue = Vec::new();
        let (bounds, pressure) = (self.bounds, pressure || self.runs_out);
        let stuck_after = if self.runs_out { AWAY_PATIENCE } else { bounds.stuck_after() };
        self.lanes.retain(|_, lane| !(lane.is_idle() && now - lane.progress_at >= FORGOTTEN_AFTER));
        for (tenant, lane) in &mut self.lanes {
            let stuck = !lane.is_idle() && now - lane.progress_at >= stuck_after;
            let crowding = self.may_park && stuck && (pressure || lane.queued + lane.calling > bounds.share_events);
            if crowding {
                lane.hurry();
            }
            if self.may_park {
                let parts = lane.overdue(if crowding { Duration::ZERO } else { bounds.park_after }, now);
                if !parts.is_empty() {
                    overdue.push((*tenant, parts));
                }
            }
            if now - lane.progress_at >= COPIED_AFTER {
                lane.copy();
            }
            if lane.retry_at.is_some_and(|at| at <= now) && !lane.queue.is_empty() {
                self.awake.push_back(*tenant);
            }
        }
        overdue
    }

    /// Nothing more comes before what is there has gone, and another node must not take us for dead meanwhile.
    pub(super) fn run_out(&mut self) {
        self.runs_out = true;
    }

    /// We are leaving: what a tenant does not take at once is dropped, and comes again.
    pub(super) fn close(&mut self) {
        self.closed = true;
        for lane in self.lanes.values_mut().filter(|lane| lane.retry_at.is_some()) {
            lane.queue.clear();
            lane.queued = 0;
        }
    }
}

impl Lane {
    fn new(now: Instant) -> Lane {
        Lane {
            queue: VecDeque::new(),
            queued: 0,
            calling: 0,
            calls: VecDeque::new(),
            hurry: CancellationToken::new(),
            progress_at: now,
            retry_at: None,
            delay: DELAY_MIN,
            away: false,
        }
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.calls.is_empty()
    }

    fn patience(&self, park_after: Duration) -> Duration {
        if self.away { AWAY_PATIENCE.min(park_after) } else { park_after }
    }

    fn may_call(&self, now: Instant) -> bool {
        match self.retry_at {
            None => self.calls.len() < CALLS_MAX,
            // In trouble one call at a time tells enough.
            Some(at) => at <= now && self.calls.is_empty(),
        }
    }

    /// What the next call takes, if there may be one.
    fn take(&mut self, now: Instant) -> Option<Vec<Part>> {
        if self.queue.is_empty() || !self.may_call(now) {
            return None;
        }
        let mut parts = Vec::new();
        let mut events = 0;
        while let Some(next) = self.queue.front() {
            if !parts.is_empty() && events + next.pieces.len() > CALL_EVENTS_MAX {
                break;
            }
            events += next.pieces.len();
            parts.extend(self.queue.pop_front());
        }
        self.queued -= events;
        self.calling += events;
        self.calls.push_back(now);
        Some(parts)
    }

    fn put_back(&mut self, back: Vec<Part>) {
        self.queued += back.iter().map(|part| part.pieces.len()).sum::<usize>();
        for mut part in back.into_iter().rev() {
            // It may stay long.
            part.copy();
            self.queue.push_front(part);
        }
    }

    /// What waits and is not copied is behind what is.
    fn copy(&mut self) {
        self.queue.iter_mut().rev().take_while(|part| !part.copied).for_each(Part::copy);
    }

    fn hurry(&mut self) {
        std::mem::take(&mut self.hurry).cancel();
    }

    /// What has waited longer than `patience` (less, while the tenant is away), out of the queue. Nothing that can be
    /// called for right now.
    fn overdue(&mut self, patience: Duration, now: Instant) -> Vec<Part> {
        let patience = self.patience(patience);
        if self.may_call(now) || self.queue.front().is_none_or(|part| now - part.since < patience) {
            return Vec::new();
        }
        let (overdue, rest): (Vec<Part>, Vec<Part>) =
            self.queue.drain(..).partition(|part| now - part.since >= patience);
        self.queue = rest.into();
        self.queued -= overdue.iter().map(|part| part.pieces.len()).sum::<usize>();
        self.away = true;
        overdue
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_nats::Subject;
    use bytes::Bytes;
    use uuid::Uuid;

    use super::super::part::Piece;
    use super::*;

    const LOUD: TenantId = TenantId(Uuid::from_u128(1));
    const QUIET: TenantId = TenantId(Uuid::from_u128(2));
    const PARK_AFTER: Duration = Duration::from_secs(10);

    fn lanes() -> Lanes {
        Lanes::new(Bounds { share_events: 100, park_after: PARK_AFTER })
    }

    fn part(pull: u64, events: usize, since: Instant) -> Part {
        let piece = Piece { raw: Bytes::new(), subject: Subject::from("s"), sequence: pull, from_litellm: false };
        let pieces = vec![piece; events];
        Part { pull, since, span: tracing::Span::none(), pieces, events: Vec::new(), copied: false }
    }

    fn events(parts: &[Part]) -> usize {
        parts.iter().map(|part| part.pieces.len()).sum()
    }

    fn pulls(parts: &[Part]) -> Vec<u64> {
        parts.iter().map(|part| part.pull).collect()
    }

    fn tenant(number: usize) -> TenantId {
        TenantId(Uuid::from_u128(number as u128))
    }

    #[test]
    fn of_many_tenants_so_many_are_called_at_once_and_the_others_gather_until_it_is_their_turn() {
        let now = Instant::now();
        let mut lanes = lanes();
        let called = |lanes: &mut Lanes, now| -> Vec<(TenantId, usize)> {
            std::iter::from_fn(|| lanes.next(now).map(|call| (call.tenant, events(&call.parts)))).collect()
        };
        for round in 0..3 {
            for number in 0..2 * AT_ONCE_MAX {
                lanes.offer(tenant(number), part(round, 1, now));
            }
            let first: Vec<_> = (0..AT_ONCE_MAX).map(|number| (tenant(number), 1)).collect();
            assert_eq!(called(&mut lanes, now), if round == 0 { first } else { Vec::new() });
        }
        // Those that waited first, with all of theirs; what has ended makes room once.
        lanes.ended(tenant(0), 1, Vec::new(), now);
        lanes.ended(tenant(1), 0, vec![part(0, 1, now)], now);
        assert_eq!(called(&mut lanes, now), [(tenant(AT_ONCE_MAX), 3), (tenant(AT_ONCE_MAX + 1), 3)]);
        // Those that hang keep nobody waiting, and make no room when they end at last.
        let later = now + SLOW_AFTER;
        let rest: Vec<_> = (AT_ONCE_MAX + 2..2 * AT_ONCE_MAX).map(|number| (tenant(number), 3)).collect();
        let (waited, again) = (called(&mut lanes, later), [(tenant(0), 2)]);
        assert_eq!(waited[..rest.len()], rest);
        assert_eq!(waited[rest.len()..][..1], again);
        (2..AT_ONCE_MAX).for_each(|number| lanes.ended(tenant(number), 1, Vec::new(), later));
        called(&mut lanes, later);
        assert!(!lanes.quick.has_room(later));
        assert_eq!(lanes.quick.calls, AT_ONCE_MAX);
        assert_eq!(lanes.quick.began.values().sum::<usize>(), AT_ONCE_MAX);
    }

    #[test]
    fn what_arrives_during_a_call_gathers_and_goes_with_the_next() {
        let now = Instant::now();
        let mut lanes = lanes();
        for pull in 0..5 {
            lanes.offer(LOUD, part(pull, 10, now));
            if pull < CALLS_MAX as u64 {
                assert_eq!(pulls(&lanes.next(now).expect("a call for what came first").parts), [pull]);
            }
        }
        // Nobody waits behind that tenant.
        lanes.offer(QUIET, part(4, 1, now));
        let call = lanes.next(now).expect("a call for the other tenant");
        assert_eq!((call.tenant, call.admit_by), (QUIET, now + PARK_AFTER));
        assert!(lanes.next(now).is_none());
        lanes.ended(LOUD, 10, Vec::new(), now);
        assert_eq!(pulls(&lanes.next(now).expect("a call for all that gathered").parts), [2, 3, 4]);
        assert!(lanes.next(now).is_none());
        assert!(lanes.sweep(false, now).is_empty());
    }

    #[test]
    fn what_may_not_be_parked_stays_and_is_offered_to_its_tenant_again() {
        let start = Instant::now();
        let mut lanes = lanes();
        lanes.offer(LOUD, part(0, 200, start));
        let call = lanes.next(start).expect("a call for what came");
        lanes.ended(LOUD, 0, call.parts, start);
        lanes.may_park(false);
        let later = start + 2 * PARK_AFTER;
        let hurried = lanes.lanes[&LOUD].hurry.clone();
        assert!(lanes.sweep(true, start + DELAY_MIN / 2).is_empty() && lanes.sweep(true, later).is_empty());
        assert!(!hurried.is_cancelled());
        let call = lanes.next(later).expect("its tenant is asked again");
        lanes.ended(LOUD, 0, call.parts, later);
        lanes.may_park(true);
        let (tenant, parts) = lanes.sweep(false, later).pop().expect("what is overdue");
        lanes.take_back(tenant, parts, later);
        assert_eq!(lanes.lanes[&LOUD].queued, 200);
        let call = lanes.next(later + DELAY_MAX).expect("a call for what came back");
        lanes.ended(LOUD, events(&call.parts), Vec::new(), later);
        assert!(lanes.lanes[&LOUD].is_idle() && lanes.lanes[&LOUD].queued == 0);
    }

    #[test]
    fn a_call_has_a_limit_and_a_single_part_may_exceed_it() {
        let now = Instant::now();
        let mut lanes = lanes();
        for (pull, events) in [(0, CALL_EVENTS_MAX - 1), (1, 2), (2, CALL_EVENTS_MAX + 1)] {
            lanes.offer(LOUD, part(pull, events, now));
        }
        let taken: Vec<Vec<u64>> = (0..CALLS_MAX).map(|_| pulls(&lanes.next(now).unwrap().parts)).collect();
        assert_eq!(taken, [vec![0], vec![1]]);
        lanes.ended(LOUD, 2, Vec::new(), now);
        assert_eq!(pulls(&lanes.next(now).unwrap().parts), [2]);
    }

    #[test]
    fn a_tenant_that_takes_nothing_is_tried_less_and_less_and_parked_in_the_end() {
        let start = Instant::now();
        let mut lanes = lanes();
        lanes.offer(LOUD, part(0, 1, start));
        let (mut now, mut calls) = (start, 0);
        let parked = loop {
            while let Some(call) = lanes.next(now) {
                calls += 1;
                lanes.ended(LOUD, 0, call.parts, now);
            }
            now += Duration::from_millis(100);
            let mut overdue = lanes.sweep(false, now);
            if let Some((tenant, parts)) = overdue.pop() {
                break (tenant, pulls(&parts));
            }
            assert!(now - start < 2 * PARK_AFTER, "it is parked at last");
        };
        assert_eq!(parked, (LOUD, vec![0]));
        assert!(now - start >= PARK_AFTER && (8..30).contains(&calls), "{calls} calls in {:?}", now - start);

        // What comes now waits less; and once something is taken, as long as ever.
        lanes.offer(LOUD, part(1, 1, now));
        assert_eq!(lanes.sweep(false, now + AWAY_PATIENCE / 2).len(), 0);
        now += 2 * DELAY_MAX;
        lanes.sweep(false, now);
        let call = lanes.next(now).expect("another try");
        assert_eq!(call.admit_by, now + ADMISSION_MIN);
        lanes.ended(LOUD, 1, Vec::new(), now);
        lanes.offer(LOUD, part(2, 1, now));
        assert_eq!(lanes.next(now).unwrap().admit_by, now + PARK_AFTER);
    }

    #[test]
    fn a_stuck_tenant_gives_up_its_place_when_it_takes_too_much_or_others_need_it() {
        let start = Instant::now();
        let stuck = |held: usize, pressure: bool| {
            let mut lanes = lanes();
            let calls: Vec<Call> = (0..=CALLS_MAX as u64)
                .filter_map(|pull| {
                    lanes.offer(LOUD, part(pull, held, start));
                    lanes.next(start)
                })
                .collect();
            let hurried = |calls: &[Call]| calls.iter().all(|call| call.hurry.is_cancelled());
            assert!(lanes.sweep(pressure, start + PARK_AFTER / 4).is_empty() && !hurried(&calls));
            let parked: usize =
                lanes.sweep(pressure, start + PARK_AFTER / 2).iter().map(|(_, parts)| events(parts)).sum();
            (parked, hurried(&calls))
        };
        assert_eq!(stuck(10, false), (0, false));
        assert_eq!(stuck(50, false), (50, true));
        assert_eq!(stuck(10, true), (10, true));
    }

    /// Its bytes are a part of what was read from the connection at once, whoever the rest of that was for.
    #[test]
    fn what_its_tenant_does_not_take_keeps_nothing_alive_but_itself() {
        struct ReadBuffer {
            bytes: Vec<u8>,
            _alive: Arc<()>,
        }
        impl AsRef<[u8]> for ReadBuffer {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        let start = Instant::now();
        let alive = Arc::new(());
        let read = || {
            let mut part = part(0, 1, start);
            let buffer = ReadBuffer { bytes: vec![7; 65_536], _alive: alive.clone() };
            part.pieces[0].raw = Bytes::from_owner(buffer).slice(10..20);
            part
        };
        let mut lanes = lanes();
        lanes.offer(LOUD, read());
        let call = lanes.next(start).expect("a call for what came");
        lanes.ended(LOUD, 0, call.parts, start);
        assert_eq!(Arc::strong_count(&alive), 1, "what came back");
        let call = lanes.next(start + DELAY_MAX).expect("another try");
        lanes.offer(LOUD, read());
        assert_eq!(Arc::strong_count(&alive), 2, "nothing is copied that may be taken at once");
        lanes.sweep(false, start + COPIED_AFTER);
        assert_eq!(Arc::strong_count(&alive), 1, "what waits behind it");
        assert_eq!(call.parts[0].pieces[0].raw, [7; 10].as_slice());
        assert_eq!(lanes.lanes[&LOUD].queue[0].pieces[0].raw, [7; 10].as_slice());
    }

    #[test]
    fn nothing_is_tried_again_once_we_leave() {
        let now = Instant::now();
        let mut lanes = lanes();
        for (pull, tenant) in [(0, LOUD), (1, QUIET)] {
            lanes.offer(tenant, part(pull, 1, now));
        }
        let (loud, quiet) = (lanes.next(now).unwrap(), lanes.next(now).unwrap());
        lanes.ended(loud.tenant, 0, loud.parts, now);
        lanes.close();
        lanes.ended(quiet.tenant, 0, quiet.parts, now);
        lanes.sweep(false, now + DELAY_MAX);
        assert!(lanes.next(now + DELAY_MAX).is_none());
    }
}
