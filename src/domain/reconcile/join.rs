//! Which request is which call.
//!
//! Each request of the gateway's access log is joined with its call in the ledger: by the gateway's own request id, which
//! is unique and trusted, then by call id, which is neither. A client may choose a call id, so one id may stand for many
//! requests and many calls; they are matched as multisets, those first that were under way at the same time. Retries and
//! fallbacks of one call share its ids: a failure beside a match is an attempt, and no finding.
//!
//! | row | joins |
//! |---|---|
//! | a request that the upstream answered with 2xx | must have a call |
//! | any other request that was passed on | may have one: a failure, or a success that nobody waited for |
//! | a hit of the gateway's cache | none: the call id that it shows is another request's |
//! | a success, or a failure that consumed something | must have a request |
//! | a failure that consumed nothing | may have one |

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use super::Terms;
use super::reading::{GatewayRequest, Role, ServedBy};
use super::window::{Books, LedgerCall};
use crate::domain::period::Window;
use crate::domain::time::Timestamp;
use crate::domain::usage::Status;

type Map<K, V> = HashMap<K, V, ahash::RandomState>;
type Set<K> = HashSet<K, ahash::RandomState>;

/// One request and its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pair<'a> {
    pub(super) request: &'a GatewayRequest,
    pub(super) call: &'a LedgerCall,
    /// It is this call and no other: by the gateway's id, or by a call id that stands for one request and one call. Of an
    /// id that is shared, only how many there are is known.
    pub(super) is_sure: bool,
}

impl Pair<'_> {
    /// Does it count on both sides? A refused request beside its failure does on neither.
    pub(super) fn counts(&self) -> bool {
        is_due(self.request) || consumed(self.call)
    }
}

/// Why a call has no request of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Surplus {
    /// Its request has a call already.
    Duplicate,
    /// Its request was made with another tenant's credential.
    Mismatch,
    /// No request of it is known.
    Unknown,
}

/// The two books of a window and its surroundings, joined. All of it in the order of time, then of ids.
#[derive(Debug, Default)]
pub(super) struct Join<'a> {
    /// The tenant's own requests, each once.
    pub(super) own: Vec<&'a GatewayRequest>,
    pub(super) pairs: Vec<Pair<'a>>,
    /// Requests that must have a call, and have none.
    pub(super) lost: Vec<&'a GatewayRequest>,
    /// Calls that must have a request of their own, and have none.
    pub(super) surplus: Vec<(&'a LedgerCall, Surplus)>,
    /// A request and a call that may be the same, but share no id by which that could be known.
    pub(super) unjoinable: Vec<Pair<'a>>,
    /// How far the gateway's clock is ahead of the ledger's, in the middle of all pairs.
    pub(super) offset_micros: i64,
}

/// Must the ledger know of this request?
pub(super) fn is_due(request: &GatewayRequest) -> bool {
    request.served_by == ServedBy::Upstream && (200..300).contains(&request.status)
}

/// Did the call cost anything? A failure that did is no mere attempt: a stream that broke has been paid for.
pub(super) fn consumed(call: &LedgerCall) -> bool {
    call.status == Status::Success || call.amounts.requests > 0
}

/// When the last byte was sent.
pub(super) fn ended_micros(request: &GatewayRequest) -> i64 {
    request.started_at.0.saturating_add(request.duration_micros.max(0))
}

/// How far the request's time is ahead of the call's: 0 while the call occurred during the request.
fn offset_micros(pair: &Pair<'_>) -> i64 {
    let (started, ended, occurred) = (pair.request.started_at.0, ended_micros(pair.request), pair.call.occurred_at.0);
    occurred.clamp(started, ended).saturating_sub(occurred)
}

/// The middle of the offsets of sure pairs; the lower one of two.
pub(super) fn median_offset<'a>(pairs: impl Iterator<Item = &'a Pair<'a>>) -> Option<i64> {
    let mut offsets: Vec<i64> = pairs.filter(|pair| pair.is_sure).map(offset_micros).collect();
    let middle = offsets.len().checked_sub(1)? / 2;
    Some(*offsets.select_nth_unstable(middle).1)
}

/// Joins the two books.
pub(super) fn join<'a>(books: &Books<'a>, terms: &Terms) -> Join<'a> {
    let mut joining = Joining::of(books, terms);
    joining.by_request_id();
    joining.by_call_id();
    joining.without_ids();
    joining.finish(books)
}

/// What has been joined so far. Rows are known by where they stand in `requests` and `calls`.
struct Joining<'a> {
    requests: Vec<&'a GatewayRequest>,
    calls: Vec<&'a LedgerCall>,
    /// For each request: its call.
    call_of: Vec<Option<usize>>,
    /// For each request: whether its call can be no other.
    sure: Vec<bool>,
    /// For each call: whether it is accounted for, by a request of its own or as an attempt beside one.
    explained: Vec<bool>,
    unjoinable: Vec<(usize, usize)>,
    window: Window,
    offset_micros: i64,
    skew_micros: i64,
    slack_micros: i64,
}

/// Requests and calls that share a call id.
#[derive(Default)]
struct Group {
    due: Vec<usize>,
    other: Vec<usize>,
    successes: Vec<usize>,
    /// Failures that consumed something.
    broken: Vec<usize>,
    /// Failures that consumed nothing.
    empty: Vec<usize>,
    /// A request of this id has been joined.
    matched: bool,
}

impl<'a> Joining<'a> {
    fn of(books: &Books<'a>, terms: &Terms) -> Joining<'a> {
        let mut requests: Vec<&GatewayRequest> =
            books.requests.iter().filter(|request| request.role == Role::Own).collect();
        requests.sort_by(|one, other| {
            (one.started_at, &one.request_id, ended_micros(one)).cmp(&(
                other.started_at,
                &other.request_id,
                ended_micros(other),
            ))
        });
        // A record that was sent again says nothing new.
        let mut known = Set::default();
        requests.retain(|request| request.request_id.is_empty() || known.insert(request.request_id.as_str()));
        let mut calls: Vec<&LedgerCall> = books.calls.iter().collect();
        calls.sort_by_key(|call| (call.occurred_at, call.position));
        Joining {
            call_of: vec![None; requests.len()],
            sure: vec![false; requests.len()],
            explained: vec![false; calls.len()],
            requests,
            calls,
            unjoinable: Vec::new(),
            window: books.window,
            offset_micros: 0,
            skew_micros: terms.skew_micros.max(0),
            slack_micros: terms.slack_micros.max(0),
        }
    }

    fn pair(&mut self, request: usize, call: usize) {
        self.call_of[request] = Some(call);
        self.explained[call] = true;
    }

    /// The gateway's own id says it exactly. Of several calls the first success is the request's own.
    fn by_request_id(&mut self) {
        let at: Map<&str, usize> = (self.requests.iter().enumerate())
            .filter(|(_, request)| !request.request_id.is_empty())
            .map(|(at, request)| (request.request_id.as_str(), at))
            .collect();
        let mut best: Map<usize, usize> = Map::default();
        let mut failures = Vec::new();
        for (call, row) in self.calls.iter().enumerate() {
            let Some(request) = at.get(row.request_id.as_str()) else { continue };
            let worth = |call: usize| (self.calls[call].status == Status::Success, consumed(self.calls[call]));
            let kept = best.entry(*request).or_insert(call);
            if worth(call) > worth(*kept) {
                *kept = call;
            }
            if row.status == Status::Failure {
                failures.push(call);
            }
        }
        for (request, call) in best {
            self.pair(request, call);
            self.sure[request] = true;
        }
        for attempt in failures {
            self.explained[attempt] = true;
        }
    }

    /// Requests and calls that the first step left, by call id.
    fn by_call_id(&mut self) {
        let mut groups = self.groups();
        for request in groups.iter().filter_map(Group::only_request) {
            self.sure[request] = true;
        }
        let alone = groups.iter().filter_map(Group::alone).chain(self.joined());
        let pairs: Vec<Pair<'a>> = alone.map(|(request, call)| self.as_pair(request, call)).collect();
        self.offset_micros = median_offset(pairs.iter()).unwrap_or(0);
        for group in &mut groups {
            self.match_group(group);
        }
    }

    /// In the order in which their ids first appear, so that nothing depends on the hasher.
    fn groups(&self) -> Vec<Group> {
        let mut at: Map<&str, usize> = Map::default();
        let mut groups: Vec<Group> = Vec::new();
        for (request, row) in self.requests.iter().enumerate() {
            let known_only_to_the_cache = row.served_by == ServedBy::Gateway;
            if row.call_id.is_empty() || known_only_to_the_cache {
                continue;
            }
            let group = group_of(&mut at, &mut groups, &row.call_id);
            match (self.call_of[request], is_due(row)) {
                (Some(_), _) => group.matched = true,
                (None, true) => group.due.push(request),
                (None, false) => group.other.push(request),
            }
        }
        for (call, row) in self.calls.iter().enumerate() {
            if row.call_id.is_empty() {
                continue;
            }
            let group = group_of(&mut at, &mut groups, &row.call_id);
            match row.status {
                _ if self.explained[call] => group.matched = true,
                Status::Success => group.successes.push(call),
                Status::Failure if consumed(row) => group.broken.push(call),
                Status::Failure => group.empty.push(call),
            }
        }
        groups
    }

    fn match_group(&mut self, group: &mut Group) {
        // A duplicate must not take the place of a call that the request id may still bring to its own request.
        self.match_rows(&group.due, &group.other, &group.successes);
        self.match_rows(&group.due, &group.other, &group.broken);
        let has_call = |request: &usize| self.call_of[*request].is_some();
        if group.matched || group.due.iter().chain(&group.other).any(has_call) {
            // Attempts of a call that has its request.
            self.explain(&group.broken);
        } else {
            // Nothing else is known of these: a stream that broke before its first token is a failure without tokens.
            self.match_rows(&group.due, &group.other, &group.empty);
        }
        self.explain(&group.empty);
    }

    fn explain(&mut self, calls: &[usize]) {
        for call in calls {
            self.explained[*call] = true;
        }
    }

    /// Those that were under way at the same time first, and requests that must have a call before those that may.
    /// Where an id is shared, what an edge of the looked-at time cuts off is left over at that edge, not in the window.
    fn match_rows(&mut self, due: &[usize], other: &[usize], calls: &[usize]) {
        if calls.is_empty() {
            return;
        }
        let inside = |rows: &[usize], at: &dyn Fn(usize) -> Timestamp| -> Vec<usize> {
            rows.iter().copied().filter(|row| self.window.contains(at(*row))).collect()
        };
        let calls_inside = inside(calls, &|call| self.calls[call].occurred_at);
        let steps: Vec<Vec<usize>> =
            [due, other].map(|rows| inside(rows, &|request| self.requests[request].started_at)).into();
        for (requests, requests_inside) in [due, other].into_iter().zip(steps) {
            self.pair_all(|joining| joining.at_the_same_time(&requests_inside, &calls_inside));
            self.pair_all(|joining| joining.at_the_same_time(requests, calls));
        }
        for requests in [due, other] {
            self.pair_all(|joining| joining.in_order(requests, calls));
        }
    }

    fn pair_all(&mut self, pairs: impl Fn(&Joining<'a>) -> Vec<(usize, usize)>) {
        for (request, call) in pairs(self) {
            self.pair(request, call);
        }
    }

    /// When the call occurred, by the gateway's clock.
    fn occurred(&self, call: usize) -> i64 {
        self.calls[call].occurred_at.0.saturating_add(self.offset_micros)
    }

    /// Free requests and calls that occurred during them: as many pairs as there can be, since of the requests under
    /// way the one that ends first is taken first.
    fn at_the_same_time(&self, requests: &[usize], calls: &[usize]) -> Vec<(usize, usize)> {
        let mut waiting = requests.iter().filter(|request| self.call_of[**request].is_none()).peekable();
        let mut under_way: BinaryHeap<Reverse<(i64, usize)>> = BinaryHeap::new();
        let mut pairs = Vec::new();
        for call in calls.iter().filter(|call| !self.explained[**call]) {
            let occurred = self.occurred(*call);
            let has_begun =
                |request: &&usize| self.requests[**request].started_at.0.saturating_sub(self.skew_micros) <= occurred;
            while let Some(request) = waiting.next_if(has_begun) {
                let until = ended_micros(self.requests[*request]).saturating_add(self.skew_micros);
                under_way.push(Reverse((until, *request)));
            }
            while let Some(Reverse((until, request))) = under_way.pop() {
                if until >= occurred {
                    pairs.push((request, *call));
                    break;
                }
            }
        }
        pairs
    }

    /// Free requests and calls one after the other, as far as they are no further apart than the slack.
    fn in_order(&self, requests: &[usize], calls: &[usize]) -> Vec<(usize, usize)> {
        let mut requests = requests.iter().filter(|request| self.call_of[**request].is_none()).peekable();
        let mut calls = calls.iter().filter(|call| !self.explained[**call]).peekable();
        let mut pairs = Vec::new();
        while let (Some(request), Some(call)) = (requests.peek(), calls.peek()) {
            let (row, occurred) = (self.requests[**request], self.occurred(**call));
            if occurred < row.started_at.0.saturating_sub(self.slack_micros) {
                calls.next();
            } else if occurred > ended_micros(row).saturating_add(self.slack_micros) {
                requests.next();
            } else {
                pairs.push((**request, **call));
                requests.next();
                calls.next();
            }
        }
        pairs
    }

    /// A request without a call id cannot be found by a call without a request id, and a call with neither by no
    /// request. Where the two were under way at the same time they may be the same: that is no finding, and no proof.
    fn without_ids(&mut self) {
        let free = |request: &usize| self.call_of[*request].is_none();
        let nameless = |request: &usize| self.requests[*request].call_id.is_empty();
        let all: Vec<usize> = (0..self.requests.len()).filter(free).collect();
        let due: Vec<usize> = all.iter().copied().filter(|request| is_due(self.requests[*request])).collect();
        let due_nameless: Vec<usize> = due.iter().copied().filter(nameless).collect();
        let cut_off = |request: &usize| was_cut_off(self.requests[*request]);
        let cut_off: Vec<usize> = all.iter().copied().filter(nameless).filter(cut_off).collect();
        let open = |call: &usize| {
            let row = self.calls[*call];
            !self.explained[*call] && consumed(row) && row.request_id.is_empty()
        };
        let calls: Vec<usize> = (0..self.calls.len()).filter(open).collect();
        let anonymous: Vec<usize> = calls.iter().copied().filter(|call| self.calls[*call].call_id.is_empty()).collect();
        for (requests, calls) in [(&due_nameless, &calls), (&due, &anonymous), (&cut_off, &calls)] {
            for (request, call) in self.at_the_same_time(requests, calls) {
                self.pair(request, call);
                self.unjoinable.push((request, call));
            }
        }
    }

    fn as_pair(&self, request: usize, call: usize) -> Pair<'a> {
        Pair { request: self.requests[request], call: self.calls[call], is_sure: self.sure[request] }
    }

    fn joined(&self) -> impl Iterator<Item = (usize, usize)> {
        self.call_of.iter().enumerate().filter_map(|(request, call)| Some((request, (*call)?)))
    }

    fn finish(self, books: &Books<'a>) -> Join<'a> {
        let unjoinable: Set<usize> = self.unjoinable.iter().map(|(request, _)| *request).collect();
        let pairs: Vec<Pair<'a>> = (self.joined())
            .filter(|(request, _)| !unjoinable.contains(request))
            .map(|(request, call)| self.as_pair(request, call))
            .collect();
        let lost = (self.requests.iter().enumerate())
            .filter(|(at, request)| self.call_of[*at].is_none() && is_due(request))
            .map(|(_, request)| *request)
            .collect();
        let open: Vec<&LedgerCall> = (self.calls.iter().zip(&self.explained))
            .filter(|(call, explained)| !**explained && consumed(call))
            .map(|(call, _)| *call)
            .collect();
        Join {
            surplus: classify(&open, &pairs, books.requests),
            lost,
            unjoinable: self.unjoinable.iter().map(|(request, call)| self.as_pair(*request, *call)).collect(),
            offset_micros: median_offset(pairs.iter()).unwrap_or(0),
            pairs,
            own: self.requests,
        }
    }
}

impl Group {
    /// The one request of an id that no more than one success has.
    fn only_request(&self) -> Option<usize> {
        match (self.due.as_slice(), self.other.as_slice()) {
            ([request], []) | ([], [request]) if !self.matched && self.successes.len() <= 1 => Some(*request),
            _ => None,
        }
    }

    /// That request and its success.
    fn alone(&self) -> Option<(usize, usize)> {
        Some((self.only_request()?, *self.successes.first()?))
    }
}

fn group_of<'g, 'k>(at: &mut Map<&'k str, usize>, groups: &'g mut Vec<Group>, key: &'k str) -> &'g mut Group {
    let index = *at.entry(key).or_insert_with(|| {
        groups.push(Group::default());
        groups.len() - 1
    });
    &mut groups[index]
}

/// Was the request passed on, and its answer lost or refused on the way back? Then its call may have succeeded.
fn was_cut_off(request: &GatewayRequest) -> bool {
    /// The client went away before the answer; from here on the gateway speaks of failures that are not the client's.
    const CLIENT_CLOSED: i64 = 499;
    match request.served_by {
        ServedBy::Upstream => !is_due(request),
        ServedBy::Gateway => request.status >= CLIENT_CLOSED,
    }
}

/// Says of each call without a request why that may be. Another tenant's request that claimed to be this tenant's
/// explains one call.
fn classify<'a>(
    open: &[&'a LedgerCall],
    pairs: &[Pair<'a>],
    requests: &'a [GatewayRequest],
) -> Vec<(&'a LedgerCall, Surplus)> {
    if open.is_empty() {
        return Vec::new();
    }
    let request_ids: Set<&str> = pairs.iter().map(|pair| pair.request.request_id.as_str()).collect();
    let call_ids: Set<&str> = pairs.iter().map(|pair| pair.call.call_id.as_str()).collect();
    let ids: Set<(&str, &str)> =
        pairs.iter().map(|pair| (pair.call.call_id.as_str(), pair.call.request_id.as_str())).collect();
    let mut claimed_ids: Set<&str> = Set::default();
    let mut claimed_calls: Map<&str, usize> = Map::default();
    for request in requests.iter().filter(|request| request.role == Role::Claimed) {
        if request.served_by == ServedBy::Upstream && claimed_ids.insert(request.request_id.as_str()) {
            *claimed_calls.entry(request.call_id.as_str()).or_insert(0) += 1;
        }
    }
    let why = |call: &LedgerCall| {
        let (call_id, request_id) = (call.call_id.as_str(), call.request_id.as_str());
        if !request_id.is_empty() && claimed_ids.remove(request_id) {
            return Surplus::Mismatch;
        }
        if !request_id.is_empty() && request_ids.contains(request_id) {
            return Surplus::Duplicate;
        }
        // A call id that a client chose may be shared by a call that came another way and says so.
        let same_call =
            if request_id.is_empty() { call_ids.contains(call_id) } else { ids.contains(&(call_id, request_id)) };
        if !call_id.is_empty() && same_call {
            return Surplus::Duplicate;
        }
        match claimed_calls.get_mut(call_id) {
            Some(left) if !call_id.is_empty() && *left > 0 => {
                *left -= 1;
                Surplus::Mismatch
            }
            _ => Surplus::Unknown,
        }
    };
    let mut why = why;
    open.iter().map(|call| (*call, why(call))).collect()
}
