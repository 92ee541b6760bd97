//! One seed's world, from its first step to the day after the storm.

use platform_api::domain::ids::TenantId;
use platform_api::domain::time::{MICROS_PER_HOUR, MICROS_PER_MINUTE, MICROS_PER_SECOND};
use platform_api::domain::usage::Subject;

use super::change::Change;
use super::checks;
use super::consignment::{Consignment, Parcel, Via};
use super::coverage::Coverage;
use super::ground::{Ground, Shared, lock, share};
use super::node::Node;
use super::oracle;
use super::plan::{Fault, Plan};
use super::planted::Planted;
use super::sender::{self, Draft, tenant_id};
use super::stream::Message;
use super::town::Town;

/// Rounds after the storm in which everything has to come to rest.
const CALM_ROUNDS: usize = 6_000;
/// Rounds in which the owner may come to owe nothing but notices, before it dies.
const OWING_ROUNDS: usize = 1_000;
/// How often a node sweeps.
const QUICK_MICROS: i64 = MICROS_PER_SECOND / 4;
const PULL_MAX: usize = 8;
/// How long a client waits for its answer.
const PATIENCE_MICROS: i64 = 25 * MICROS_PER_SECOND;

/// How one seed ended.
pub struct Report {
    pub broken: Option<String>,
    pub hash: u64,
    pub lines: Vec<String>,
    pub coverage: Coverage,
    pub events: usize,
}

/// Someone who sends over HTTP, and sends again until it is answered.
struct Client {
    /// What it is about to send, or has sent and not been answered for.
    drafts: Vec<usize>,
    waits: Option<(usize, i64)>,
    attempt: u64,
    not_before: i64,
}

pub struct World {
    ground: Shared<Ground>,
    plan: Plan,
    town: Town,
    nodes: Vec<Node>,
    /// The node that should own the tenants.
    active: usize,
    clients: Vec<Client>,
    changes: Vec<Change>,
}

/// Runs one seed.
pub fn run(seed: u64, planted: Option<Planted>, told: bool) -> Report {
    let mut world = World::new(seed, planted, told);
    for _ in 0..world.plan.steps {
        if world.is_broken() {
            break;
        }
        world.step();
    }
    world.calm_down();
    world.report()
}

impl World {
    fn new(seed: u64, planted: Option<Planted>, told: bool) -> World {
        let ground = share(Ground::new(seed, planted, told));
        let plan = lock(&ground).plan.clone();
        let mut town = Town::new(plan.tenants);
        let mut nodes = vec![Node::new(0, 0, &ground)];
        nodes[0].start(&mut town);
        let clients = (0..2).map(|_| Client { drafts: Vec::new(), waits: None, attempt: 0, not_before: 0 });
        let mut world = World {
            plan,
            town,
            nodes,
            active: 0,
            clients: clients.collect(),
            changes: Vec::new(),
            ground: ground.clone(),
        };
        for number in 0..world.plan.tenants {
            let first = Change::first(&mut lock(&ground).dice, tenant_id(number), number);
            world.changes.push(first);
        }
        world
    }

    fn is_broken(&self) -> bool {
        lock(&self.ground).broken.is_some()
    }

    fn ground(&self) -> std::sync::MutexGuard<'_, Ground> {
        lock(&self.ground)
    }

    fn report(self) -> Report {
        let ground = self.ground();
        Report {
            broken: ground.broken.clone(),
            hash: ground.trace.hash(),
            lines: ground.trace.lines().to_vec(),
            coverage: ground.coverage.clone(),
            events: ground.sent.len(),
        }
    }

    // ---- the storm ----

    fn step(&mut self) {
        self.pass_time();
        let choice = self.ground().dice.below(100);
        match choice {
            0..8 => self.publish(),
            8..16 => self.send_http(),
            16..22 => self.ask_for_changes(),
            22..26 => self.look_up(),
            26..32 => self.disturb(),
            _ => self.let_a_node_work(),
        }
    }

    fn pass_time(&mut self) {
        let mut ground = self.ground();
        let (most, leaps) = (self.plan.step_micros, self.plan.leaps);
        let mut passed = ground.dice.between(0, most);
        if ground.dice.chance(leaps) {
            passed += ground.dice.between(0, 3 * MICROS_PER_HOUR);
        }
        ground.now += passed;
    }

    /// A new event, or an old one again; its place among everything sent.
    fn draft(&mut self) -> usize {
        let mut ground = lock(&self.ground);
        let ground = &mut *ground;
        let draft = sender::draft(&mut ground.dice, &self.plan, &ground.sent, ground.now);
        // The very same event again has the place it had.
        if let Some(known) = ground.sent.iter().position(|known| *known == draft) {
            return known;
        }
        ground.sent.push(draft);
        ground.sent.len() - 1
    }

    fn message(&self, drafts: Vec<usize>) -> Message {
        let mut ground = self.ground();
        let sent: Vec<&Draft> = drafts.iter().map(|at| &ground.sent[*at]).collect();
        let body = sender::body(&sent);
        let tenant = sent[0].tenant;
        let one_tenant = sent.iter().all(|draft| draft.tenant == tenant);
        let subject = (one_tenant && ground.dice.chance(0.5)).then_some(tenant);
        Message { body, drafts, subject }
    }

    fn publish(&mut self) {
        let count = 1 + self.ground().dice.below(3);
        let drafts: Vec<usize> = (0..count).map(|_| self.draft()).collect();
        let message = self.message(drafts);
        // A publisher that gets no reply publishes again.
        let times = 1 + usize::from(self.ground().strikes(Fault::PublishReplyLost));
        for _ in 0..times {
            let sequence = self.town.stream.publish(message.clone());
            let mut ground = self.ground();
            ground.published.entry(sequence as i64).or_default().extend(&message.drafts);
            ground.tell(format_args!("published {} events as {sequence}", message.drafts.len()));
        }
    }

    fn send_http(&mut self) {
        let at = self.ground().dice.below(self.clients.len());
        if self.clients[at].drafts.is_empty() && self.ground().storm {
            let count = 1 + self.ground().dice.below(6);
            let drafts = (0..count).map(|_| self.draft()).collect();
            self.clients[at].drafts = drafts;
        }
        self.send_again(at);
    }

    fn send_again(&mut self, at: usize) {
        let (now, storm) = {
            let ground = self.ground();
            (ground.now, ground.storm)
        };
        let client = &mut self.clients[at];
        client.waits = client.waits.filter(|(_, until)| *until > now);
        if client.drafts.is_empty() || client.waits.is_some() || client.not_before > now {
            return;
        }
        // Some clients have not heard yet that another node owns the tenants now.
        let misled = storm && lock(&self.ground).dice.chance(0.2);
        let number = if misled { lock(&self.ground).dice.below(self.nodes.len()) } else { self.active };
        client.attempt += 1;
        client.waits = Some((number, now + PATIENCE_MICROS));
        let (drafts, attempt) = (client.drafts.clone(), client.attempt);
        if !self.nodes[number].believes || self.is_frozen(number) {
            return;
        }
        let body = self.message(drafts).body;
        let via = Via::Http { client: at, attempt };
        let parcel = Parcel { body, subject: None, sequence: None };
        let consignment = Consignment::submit(&mut self.nodes[number], &mut self.town, &self.ground, via, &[parcel]);
        self.nodes[number].consignments.push(consignment);
    }

    fn is_frozen(&self, number: usize) -> bool {
        self.nodes[number].frozen_until > self.ground().now
    }

    fn ask_for_changes(&mut self) {
        let (more, tenants) = (self.plan.changes, self.plan.tenants);
        let wanted = {
            let mut ground = self.ground();
            ground.storm && ground.dice.chance(more * 4.0)
        };
        if wanted {
            let tenant = tenant_id(self.ground().dice.below(tenants));
            let known = lock(&self.town.vaults[&tenant]).database.tables.quotas.clone();
            let number = self.changes.len();
            let change = Change::draw(&mut self.ground().dice, tenant, number, &known);
            self.changes.push(change);
        }
        let now = self.ground().now;
        let active = self.active;
        for change in &mut self.changes {
            change.hear(&mut lock(&self.ground));
            let due = !change.over && !change.is_waiting() && change.not_before <= now;
            if due && self.nodes[active].believes {
                let clock = self.nodes[active].now();
                match self.nodes[active].find(change.tenant, &mut self.town) {
                    Ok(home) => change.ask(home, clock, now),
                    Err(_) => change.not_before = now + MICROS_PER_SECOND,
                }
            }
        }
    }

    /// L8 and Q1: an answer from memory is what the database says, or says no more than an older version of it.
    fn look_up(&mut self) {
        let number = self.ground().dice.below(self.nodes.len());
        let node = &mut self.nodes[number];
        let now = node.now();
        for (tenant, home) in &mut node.homes {
            let mut ground = lock(&self.ground);
            let vault = lock(&self.town.vaults[tenant]);
            let tables = &vault.database.tables;
            let leaked = ground.leaked.remove(tenant);
            let books = leaked.as_ref().unwrap_or(&home.books);
            if books.epoch != tables.epoch || vault.restored {
                continue;
            }
            ground.require(books.version <= tables.version, "L8", || {
                format!("version {} is shown, {} is committed", books.version, tables.version)
            });
            if books.version != tables.version {
                continue;
            }
            if !books.knows_running(now) && !ground.plants(Planted::UnknownForUnused) {
                ground.coverage.saw("decision: not now, the clock was set back");
                continue;
            }
            let naive = &vault.naive;
            let used_by = |quota| naive.used(quota);
            let standings = books.standings(now);
            let mut expected = Vec::new();
            for (quota, standing) in tables.quotas.iter().zip(&standings) {
                let label = naive.label(quota.period, now.0);
                let used = used_by(quota).get(&label).copied().unwrap_or(0);
                ground.require(standing.used == used && standing.quota == *quota, "L8", || {
                    format!("{:?} {:?}: {} is shown, {used} is in the ledger", quota.scope, quota.period, standing.used)
                });
                expected.push((quota, used));
            }
            let subject =
                Subject { user: "ada".into(), group: "red".into(), model: "large".into(), ..Subject::default() };
            let found = books.decide(&subject, now).verdict;
            let verdict = oracle::verdict(expected.into_iter().filter(|(quota, _)| quota.scope.covers(&subject)));
            ground.require(found == verdict, "Q1", || format!("decided {found:?}, should be {verdict:?}"));
            ground.coverage.saw(match found {
                platform_api::domain::quota::Verdict::Allow => "decision: allow",
                platform_api::domain::quota::Verdict::Warn => "decision: warn",
                platform_api::domain::quota::Verdict::Deny => "decision: deny",
            });
        }
    }

    // ---- what a node does ----

    fn let_a_node_work(&mut self) {
        let number = self.ground().dice.below(self.nodes.len());
        if !self.is_frozen(number) && self.nodes[number].believes {
            let choice = self.ground().dice.below(16);
            match choice {
                0 => self.nodes[number].sweep(&mut self.town),
                1 | 2 => self.pull(number),
                3 | 4 => self.answer(number),
                5..8 => self.nodes[number].step_courier(&mut self.town),
                _ => self.step_tenants(number),
            }
        }
    }

    /// A few steps of a few tenants, so that commits are more than begun.
    fn step_tenants(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let tenants: Vec<TenantId> = node.opening().chain(node.homes.keys().copied()).collect();
        if tenants.is_empty() {
            return;
        }
        let (tenant, steps) = {
            let mut ground = lock(&self.ground);
            (ground.dice.pick(&tenants), 1 + ground.dice.below(4))
        };
        for _ in 0..steps {
            node.step_opening(tenant, &mut self.town);
            node.step_home(tenant, &mut self.town);
        }
    }

    fn pull(&mut self, number: usize) {
        let pending_max = self.plan.ack_pending_max;
        let deliveries = {
            let mut ground = lock(&self.ground);
            // Every node looks at the stream before it reads on, and every ten seconds.
            if self.town.stream.is_another() && !ground.plants(Planted::NoResumeCheck) {
                ground.coverage.saw("stream: read again from the start");
                ground.tell(format_args!("the stream is another: it is read again"));
                self.town.stream.read_again();
            }
            if self.town.stream.is_full(pending_max) {
                ground.coverage.saw("stream: full of unacknowledged messages");
            }
            let now = ground.now;
            let deliveries = self.town.stream.pull(PULL_MAX, now, pending_max, &mut ground.dice);
            if deliveries.iter().any(|delivery| delivery.times > 1) {
                ground.coverage.saw("stream: delivered again");
            }
            deliveries
        };
        if deliveries.is_empty() {
            return;
        }
        let (known, deliveries): (Vec<_>, Vec<_>) =
            deliveries.into_iter().partition(|delivery| self.counts_as_known(delivery.sequence, &delivery.message));
        for delivery in &known {
            self.town.stream.ack(delivery);
            self.acknowledged(&delivery.message.drafts);
        }
        let parcel = |delivery: &super::stream::Delivery| Parcel {
            body: delivery.message.body.clone(),
            subject: delivery.message.subject,
            sequence: Some(delivery.sequence),
        };
        let parcels: Vec<Parcel> = deliveries.iter().map(parcel).collect();
        let node = &mut self.nodes[number];
        let consignment =
            Consignment::submit(node, &mut self.town, &self.ground, Via::Stream(deliveries.clone()), &parcels);
        node.consignments.push(consignment);
        if self.ground().plants(Planted::AckBeforeCommit) {
            for delivery in &deliveries {
                self.town.stream.ack(delivery);
                self.acknowledged(&delivery.message.drafts);
            }
        }
    }

    /// Planted: numbers decide what is known.
    fn counts_as_known(&self, sequence: u64, message: &Message) -> bool {
        let ground = self.ground();
        ground.plants(Planted::DedupeBySequence)
            && message.drafts.iter().all(|at| {
                let tenant = tenant_id(ground.sent[*at].tenant);
                let cursor = lock(&self.town.vaults[&tenant]).database.tables.cursors.get("USAGE").copied();
                cursor.is_some_and(|cursor| sequence as i64 <= cursor)
            })
    }

    fn answer(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let Some(at) = node.consignments.iter_mut().position(Consignment::is_ready) else { return };
        let mut consignment = node.consignments.remove(at);
        let settled = consignment.settle(&mut self.town, &mut lock(&self.ground));
        match consignment.via {
            Via::Http { client, attempt } => self.reply(client, attempt, settled.iter().all(|settled| *settled)),
            Via::Stream(deliveries) => {
                for (delivery, settled) in deliveries.iter().zip(settled) {
                    self.acknowledge(delivery, settled);
                }
            }
        }
    }

    fn reply(&mut self, at: usize, attempt: u64, settled: bool) {
        let now = self.ground().now;
        if settled {
            let drafts = if self.clients[at].attempt == attempt { self.clients[at].drafts.clone() } else { Vec::new() };
            self.acknowledged(&drafts);
        }
        let lost = self.ground().strikes(Fault::HttpReplyLost);
        let client = &mut self.clients[at];
        if client.attempt != attempt || lost {
            return;
        }
        client.waits = None;
        client.not_before = now + MICROS_PER_SECOND;
        if settled {
            client.drafts.clear();
        }
    }

    fn acknowledge(&mut self, delivery: &super::stream::Delivery, settled: bool) {
        let mut ground = lock(&self.ground);
        if !settled {
            ground.coverage.saw("stream: sent back");
            let now = ground.now;
            self.town.stream.nak(delivery, now, delivery.times.clamp(1, 30) * MICROS_PER_SECOND);
        } else if !ground.strikes(Fault::AckLost) {
            if self.town.stream.ack(delivery) {
                ground.coverage.saw("stream: late acknowledgement");
            }
            drop(ground);
            self.acknowledged(&delivery.message.drafts);
        }
    }

    /// L3: whoever brought these may forget them now.
    fn acknowledged(&self, drafts: &[usize]) {
        let mut ground = self.ground();
        for at in drafts {
            let draft = ground.sent[*at].clone();
            let kept = self.town.keeps(&draft);
            ground.require(kept, "L3", || format!("{} was acknowledged and is nowhere", draft.id));
        }
    }

    // ---- what goes wrong ----

    fn disturb(&mut self) {
        let strikes = |world: &World, fault| world.ground().strikes(fault);
        let victim = self.ground().dice.below(self.nodes.len());
        if strikes(self, Fault::NodeCrash) {
            self.crash(victim);
        }
        if strikes(self, Fault::NodeFreeze) {
            let mut ground = lock(&self.ground);
            let until = ground.now + ground.dice.between(1, 90) * MICROS_PER_SECOND;
            self.nodes[victim].frozen_until = until;
        }
        if strikes(self, Fault::Failover) {
            self.fail_over();
        }
        if strikes(self, Fault::Drain) {
            self.nodes[victim].drain(&mut self.town);
        }
        if strikes(self, Fault::ClockJump) {
            let (second, minute, hour) = (MICROS_PER_SECOND, MICROS_PER_MINUTE, MICROS_PER_HOUR);
            let offsets = [-24 * hour, -hour, -10 * minute, -minute / 2, -second, 0, second, minute / 2, hour];
            let ahead = self.ground().dice.pick(&offsets);
            self.nodes[victim].clock_ahead = ahead;
        }
        self.disturb_databases();
        self.disturb_stream();
    }

    /// Everything in memory is gone; it starts again at once, with the clock it had.
    fn crash(&mut self, number: usize) {
        let ahead = self.nodes[number].clock_ahead;
        let believes = number == self.active;
        self.nodes[number] = Node::new(number, ahead, &self.ground);
        self.nodes[number].believes = believes;
        if believes {
            self.nodes[number].start(&mut self.town);
        }
        for client in &mut self.clients {
            client.waits = client.waits.filter(|(at, _)| *at != number);
        }
    }

    /// Another node becomes the owner; the old one is dead, or frozen, or does not know.
    fn fail_over(&mut self) {
        let old = self.elect();
        let (fate, until) = {
            let mut ground = lock(&self.ground);
            let until = ground.now + ground.dice.between(1, 60) * MICROS_PER_SECOND;
            (ground.dice.below(3), until)
        };
        match fate {
            0 => self.crash(old),
            1 => self.nodes[old].frozen_until = until,
            _ => {}
        }
        // A node that has owned before starts anew.
        self.crash(self.active);
    }

    /// Everybody was answered, no receiver listens, and the owner dies: nobody asks the next one for anything.
    fn die_owing(&mut self) {
        self.ground().silence = true;
        for _ in 0..OWING_ROUNDS {
            if self.is_broken() || self.restless().iter().all(|what| ["an outbox", "a node"].contains(what)) {
                break;
            }
            self.calm_round(QUICK_MICROS);
        }
        self.ground().silence = false;
        let old = self.elect();
        self.crash(old);
        self.crash(self.active);
    }

    /// From now on another node is asked; answers which was before.
    fn elect(&mut self) -> usize {
        if self.nodes.len() < 2 {
            let node = Node::new(1, 0, &self.ground);
            self.nodes.push(node);
        }
        let old = self.active;
        self.active = 1 - old;
        old
    }

    fn disturb_databases(&mut self) {
        for vault in self.town.vaults.values() {
            let (mut vault, mut ground) = (lock(vault), lock(&self.ground));
            if ground.dice.chance(0.02) {
                vault.database.backup = Some(Box::new(vault.database.tables.clone()));
            }
            if ground.strikes(Fault::DatabaseCrash) {
                vault.database.crash();
            }
            let witnessed = self.town_witness(vault.tenant);
            let earlier = vault.database.backup.as_ref().is_some_and(|backup| backup.head.seq < witnessed);
            if earlier
                && ground.strikes(Fault::DatabaseRestored)
                && let Some(backup) = vault.database.backup.take()
            {
                vault.database.crash();
                vault.database.tables = *backup;
                vault.restored = true;
            }
        }
    }

    fn town_witness(&self, tenant: TenantId) -> i64 {
        self.town.witnessed(tenant).seq
    }

    fn disturb_stream(&mut self) {
        let mut ground = lock(&self.ground);
        let stream = &mut self.town.stream;
        let now = ground.now;
        if ground.dice.chance(0.3) {
            stream.save_acks();
        }
        if ground.dice.chance(0.1) {
            stream.back_up();
        }
        if ground.strikes(Fault::BrokerCrash) {
            stream.forget_acks(now);
        }
        if ground.strikes(Fault::Purge) {
            stream.purge();
        }
        if ground.strikes(Fault::Truncate) {
            let lost = 1 + ground.dice.below(12) as u64;
            stream.truncate(lost);
        }
        if ground.strikes(Fault::Recreate) {
            stream.recreate();
        }
        if ground.strikes(Fault::ConsumerGone) {
            stream.lose_consumer();
        }
        if ground.strikes(Fault::StreamRestored) {
            stream.restore();
        }
    }

    // ---- the day after ----

    /// V1: the faults stop, clocks are right, and everything comes to rest by itself.
    fn calm_down(&mut self) {
        {
            let mut ground = self.ground();
            ground.storm = false;
            ground.tell(format_args!("the storm is over"));
        }
        for number in 0..self.nodes.len() {
            (self.nodes[number].clock_ahead, self.nodes[number].frozen_until) = (0, 0);
        }
        if self.plan.owner_dies {
            self.die_owing();
        }
        if self.plan.leaves_two && self.nodes.len() > 1 {
            self.restart_all();
        } else {
            self.end_zombies();
        }
        let mut sleeps = self.plan.sleeps;
        for round in 0..CALM_ROUNDS {
            if self.is_broken() {
                return;
            }
            if self.is_at_rest() {
                if !std::mem::take(&mut sleeps) {
                    return self.check_the_end();
                }
                self.sleep();
            }
            // Quick steps at first; then larger ones, because some things are to be tried again only after a quarter of an
            // hour, and by a clock that was an hour ahead.
            self.calm_round(if round < 1_000 { QUICK_MICROS } else { 5 * MICROS_PER_SECOND });
        }
        let what = self.restless().join(", ");
        self.ground().violated("V1", format_args!("the backlog does not drain: {what}"));
    }

    /// The operator ends every node but the owner; a restart thaws what was frozen because another node had it.
    fn end_zombies(&mut self) {
        let healthy = |world: &World, tenant: &TenantId| !world.town.is_restored(*tenant);
        let fenced =
            self.town.vaults.keys().any(|tenant| self.nodes[self.active].is_frozen(*tenant) && healthy(self, tenant));
        for number in (0..self.nodes.len()).filter(|number| *number != self.active || fenced).collect::<Vec<_>>() {
            self.crash(number);
        }
    }

    /// Every node lives, and none has the other's tenants: whoever was frozen, or does not know, finds out.
    fn restart_all(&mut self) {
        self.ground().coverage.saw("calm: two nodes live on");
        for number in 0..self.nodes.len() {
            let is_stuck = self.town.vaults.keys().any(|tenant| self.nodes[number].is_frozen(*tenant));
            if !self.nodes[number].believes || is_stuck {
                self.crash(number);
                self.nodes[number].believes = true;
                self.nodes[number].start(&mut self.town);
            }
        }
    }

    /// Nobody comes for some hours: tenants rest, and what time alone changes in their books is changed all the same.
    fn sleep(&mut self) {
        self.ground().tell(format_args!("nobody comes for some hours"));
        for micros in [[90 * MICROS_PER_SECOND; 100].as_slice(), &[QUICK_MICROS; 60]].concat() {
            self.calm_round(micros);
        }
    }

    fn calm_round(&mut self, micros: i64) {
        self.ground().now += micros;
        for at in 0..self.clients.len() {
            self.drop_what_waits_for_a_person(at);
            self.send_again(at);
        }
        self.ask_for_changes();
        for number in 0..self.nodes.len() {
            if !self.nodes[number].believes {
                continue;
            }
            self.nodes[number].sweep(&mut self.town);
            // Of several nodes one reads.
            if number == self.active {
                self.pull(number);
            }
            for tenant in self.town.vaults.keys().copied().collect::<Vec<_>>() {
                for _ in 0..12 {
                    self.nodes[number].step_opening(tenant, &mut self.town);
                    self.nodes[number].step_home(tenant, &mut self.town);
                }
            }
            for _ in 0..8 {
                self.answer(number);
                self.nodes[number].step_courier(&mut self.town);
            }
        }
        self.look_up();
    }

    /// Nobody can wait for a tenant whose database was set back.
    fn drop_what_waits_for_a_person(&mut self, at: usize) {
        let ground = lock(&self.ground);
        let town = &self.town;
        self.clients[at].drafts.retain(|draft| !town.is_restored(tenant_id(ground.sent[*draft].tenant)));
        for change in &mut self.changes {
            change.over |= town.is_restored(change.tenant);
        }
    }

    fn is_at_rest(&self) -> bool {
        self.restless().is_empty()
    }

    /// What is still on its way.
    fn restless(&self) -> Vec<&'static str> {
        let mut what = Vec::new();
        if !self.town.stream.is_drained() {
            what.push("the stream");
        }
        if self.clients.iter().any(|client| !client.drafts.is_empty()) {
            what.push("a client");
        }
        if self.changes.iter().any(|change| !change.over) {
            what.push("a change");
        }
        if self.nodes.iter().any(|node| node.believes && !node.is_idle()) {
            what.push("a node");
        }
        let now = self.ground().now;
        for vault in self.town.vaults.values().map(lock).filter(|vault| !vault.restored) {
            let tables = &vault.database.tables;
            if tables.owed_count() > 0 {
                what.push("an outbox");
            }
            let ended = |end: platform_api::domain::time::Timestamp| end.0 <= now;
            if tables.alerts.values().any(|alert| alert.resolved_at.is_none() && alert.period_end().is_some_and(ended))
            {
                what.push("an alert whose period is over");
            }
        }
        what
    }

    fn check_the_end(&mut self) {
        self.look_up();
        for message in self.town.stream.messages() {
            self.acknowledged(&message.drafts);
        }
        let mut ground = lock(&self.ground);
        for vault in self.town.vaults.values().map(lock).filter(|vault| !vault.restored) {
            checks::at_the_end(&mut ground, &vault);
            for change in self.changes.iter().filter(|change| change.tenant == vault.tenant) {
                checks::change(&mut ground, &vault, change);
            }
        }
    }
}
