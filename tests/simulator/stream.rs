//! JetStream as far as we depend on it: at least once, never in order, and sometimes not the stream it was.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::dice::Dice;

/// How long the server waits for an acknowledgement.
const ACK_WAIT_MICROS: i64 = 30_000_000;

#[derive(Debug, Clone)]
pub struct Message {
    pub body: Bytes,
    /// The events it carries.
    pub drafts: Vec<usize>,
    /// The tenant whose subject it was published on; `None` for the platform's.
    pub subject: Option<usize>,
}

/// A message in somebody's hands.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub sequence: u64,
    /// Which of the stream's lives it belongs to.
    life: u64,
    pub times: i64,
    pub message: Message,
}

#[derive(Debug, Clone)]
struct Pending {
    again_at: i64,
    times: i64,
}

/// A durable pull consumer with explicit acknowledgements.
#[derive(Debug, Clone)]
struct Consumer {
    next: u64,
    pending: BTreeMap<u64, Pending>,
    /// Acknowledgements that are not on the server's disk yet.
    unsaved: Vec<u64>,
}

/// The newest message that was acknowledged: where a reader would go on, and how it tells whether it may.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    created: u64,
    sequence: u64,
    body: Bytes,
}

#[derive(Debug, Default)]
pub struct Stream {
    /// When it was made; another moment is another stream.
    created: u64,
    /// Grows with every change of the past.
    life: u64,
    messages: BTreeMap<u64, Message>,
    last: u64,
    consumer: Option<Consumer>,
    backup: Option<(BTreeMap<u64, Message>, u64)>,
    mark: Option<Mark>,
    /// Messages that were gone when the reader came to them. What stands there later comes from a copy.
    gone: BTreeSet<u64>,
}

impl Stream {
    pub fn publish(&mut self, message: Message) -> u64 {
        self.last += 1;
        self.messages.insert(self.last, message);
        self.last
    }

    /// Up to `most` messages: those that come again, then new ones, in any order.
    pub fn pull(&mut self, most: usize, now: i64, pending_max: usize, dice: &mut Dice) -> Vec<Delivery> {
        let consumer = self.consumer.get_or_insert_with(Consumer::from_the_start);
        let again: Vec<u64> =
            consumer.pending.iter().filter(|(_, one)| one.again_at <= now).map(|(sequence, _)| *sequence).collect();
        let mut taken: Vec<u64> = again.into_iter().take(most).collect();
        while taken.len() < most && consumer.pending.len() < pending_max {
            let Some((sequence, _)) = self.messages.range(consumer.next..).next() else { break };
            self.gone.extend(consumer.next.max(1)..*sequence);
            consumer.next = sequence + 1;
            consumer.pending.insert(*sequence, Pending { again_at: 0, times: 0 });
            taken.push(*sequence);
        }
        let mut deliveries = Vec::new();
        for sequence in taken {
            let Some(message) = self.messages.get(&sequence) else {
                // It was purged while it was pending.
                consumer.pending.remove(&sequence);
                self.gone.insert(sequence);
                continue;
            };
            let Some(pending) = consumer.pending.get_mut(&sequence) else { continue };
            (pending.again_at, pending.times) = (now + ACK_WAIT_MICROS, pending.times + 1);
            let (life, times, message) = (self.life, pending.times, message.clone());
            deliveries.insert(dice.below(deliveries.len() + 1), Delivery { sequence, life, times, message });
        }
        deliveries
    }

    pub fn is_full(&self, pending_max: usize) -> bool {
        self.consumer.as_ref().is_some_and(|consumer| consumer.pending.len() >= pending_max)
    }

    /// True when the message had come again meanwhile: accepted all the same.
    pub fn ack(&mut self, delivery: &Delivery) -> bool {
        if delivery.life != self.life {
            return false;
        }
        let Some(consumer) = &mut self.consumer else { return false };
        let late = consumer.pending.remove(&delivery.sequence).is_some_and(|one| one.times > delivery.times);
        consumer.unsaved.push(delivery.sequence);
        if self.mark.as_ref().is_none_or(|mark| mark.sequence < delivery.sequence) {
            let (created, body) = (self.created, delivery.message.body.clone());
            self.mark = Some(Mark { created, sequence: delivery.sequence, body });
        }
        late
    }

    pub fn nak(&mut self, delivery: &Delivery, now: i64, delay: i64) {
        let pending = self.consumer.as_mut().and_then(|consumer| consumer.pending.get_mut(&delivery.sequence));
        if let Some(pending) = pending.filter(|_| delivery.life == self.life) {
            pending.again_at = now + delay;
        }
    }

    /// Is this still the stream that was read so far? By its age, its end, and what stands where we were.
    pub fn is_another(&self) -> bool {
        let ahead = self.consumer.as_ref().is_some_and(|consumer| consumer.next > self.last + 1);
        let elsewhere = self.mark.as_ref().is_some_and(|mark| {
            let found = self.messages.get(&mark.sequence);
            mark.created != self.created
                || mark.sequence > self.last
                || found.is_some_and(|found| found.body != mark.body)
        });
        ahead || elsewhere || self.gone.iter().any(|sequence| self.messages.contains_key(sequence))
    }

    /// Forgets what was read.
    pub fn read_again(&mut self) {
        self.consumer = None;
        self.mark = None;
        self.gone.clear();
    }

    /// Everything that can be read has been read and acknowledged.
    pub fn is_drained(&self) -> bool {
        match &self.consumer {
            Some(consumer) => consumer.pending.is_empty() && self.messages.range(consumer.next..).next().is_none(),
            None => self.messages.is_empty(),
        }
    }

    pub fn messages(&self) -> impl Iterator<Item = &Message> {
        self.messages.values()
    }

    // ---- what goes wrong ----

    /// The server is killed: acknowledgements that were not saved are forgotten.
    pub fn forget_acks(&mut self, now: i64) {
        if let Some(consumer) = &mut self.consumer {
            for sequence in std::mem::take(&mut consumer.unsaved) {
                consumer.pending.entry(sequence).or_insert(Pending { again_at: now, times: 1 });
            }
        }
    }

    pub fn save_acks(&mut self) {
        if let Some(consumer) = &mut self.consumer {
            consumer.unsaved.clear();
        }
    }

    pub fn purge(&mut self) {
        self.messages.clear();
    }

    /// The newest messages are gone, and their numbers are used again.
    pub fn truncate(&mut self, lost: u64) {
        self.last = self.last.saturating_sub(lost);
        self.messages.split_off(&(self.last + 1));
        self.life += 1;
    }

    pub fn recreate(&mut self) {
        (self.created, self.life, self.last) = (self.created + 1, self.life + 1, 0);
        self.messages.clear();
        self.consumer = None;
    }

    pub fn back_up(&mut self) {
        self.backup = Some((self.messages.clone(), self.last));
    }

    pub fn restore(&mut self) -> bool {
        let Some((messages, last)) = self.backup.take().filter(|(_, last)| *last < self.last) else { return false };
        (self.messages, self.last, self.life) = (messages, last, self.life + 1);
        true
    }

    pub fn lose_consumer(&mut self) {
        self.consumer = None;
    }
}

impl Consumer {
    fn from_the_start() -> Consumer {
        Consumer { next: 0, pending: BTreeMap::new(), unsaved: Vec::new() }
    }
}
