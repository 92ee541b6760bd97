//! Up to where everything is settled: what may be acknowledged at once, and what a checkpoint may claim (L6).
//!
//! The consumer acknowledges everything up to a message, so nothing may be acknowledged that has an unsettled message
//! before it. Pulls settle in any order; the floor is the end of the settled ones that have no unsettled one before them.

use std::collections::VecDeque;

/// The pulls that are not below the floor yet, oldest first; `M` is what is known of the end of each.
#[derive(Debug)]
pub(super) struct Floor<M> {
    /// The number of the oldest open pull.
    base: u64,
    open: VecDeque<Open<M>>,
    messages: usize,
}

#[derive(Debug)]
struct Open<M> {
    messages: usize,
    /// Items that are not settled; `None` until the pull has been read.
    waiting: Option<usize>,
    end: M,
}

impl<M> Default for Floor<M> {
    fn default() -> Floor<M> {
        Floor { base: 0, open: VecDeque::new(), messages: 0 }
    }
}

impl<M> Floor<M> {
    /// A pull has arrived; answers its number.
    pub(super) fn open(&mut self, messages: usize, end: M) -> u64 {
        self.messages += messages;
        self.open.push_back(Open { messages, waiting: None, end });
        self.base + self.open.len() as u64 - 1
    }

    /// A pull has been read: so many items of it have to be settled.
    pub(super) fn read(&mut self, pull: u64, items: usize) {
        if let Some(open) = self.at(pull) {
            open.waiting = Some(items);
        }
    }

    /// So many items of a pull are committed, or durable in quarantine.
    pub(super) fn settle(&mut self, pull: u64, items: usize) {
        if let Some(Open { waiting: Some(waiting), .. }) = self.at(pull) {
            *waiting = waiting.saturating_sub(items);
        }
    }

    /// Moves up over what is settled; answers the ends that were passed, oldest first.
    pub(super) fn rise(&mut self) -> Vec<M> {
        let mut passed = Vec::new();
        while self.open.front().is_some_and(|open| open.waiting == Some(0)) {
            let Some(open) = self.open.pop_front() else { break };
            self.base += 1;
            self.messages -= open.messages;
            passed.push(open.end);
        }
        passed
    }

    /// Messages above the floor: those the server waits for.
    pub(super) fn messages(&self) -> usize {
        self.messages
    }

    fn at(&mut self, pull: u64) -> Option<&mut Open<M>> {
        let index = usize::try_from(pull.checked_sub(self.base)?).ok()?;
        self.open.get_mut(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_rises_over_what_is_settled_and_no_further() {
        let mut floor = Floor::default();
        let (a, b, c) = (floor.open(2, 'a'), floor.open(1, 'b'), floor.open(1, 'c'));
        // Not read yet is not settled, not even without items.
        assert!(floor.rise().is_empty());
        for (pull, items) in [(b, 1), (a, 3), (c, 0)] {
            floor.read(pull, items);
        }
        floor.settle(b, 1);
        floor.settle(a, 2);
        assert!(floor.rise().is_empty());
        floor.settle(a, 1);
        assert_eq!(floor.rise(), ['a', 'b', 'c']);
        assert_eq!(floor.messages(), 0);
        // What comes late for a pull below the floor changes nothing.
        floor.settle(a, 1);
        let d = floor.open(1, 'd');
        floor.settle(d, 1);
        assert!(floor.rise().is_empty());
        assert_eq!(floor.messages(), 1);
    }

    proptest! {
        /// Whatever the order: an end is passed exactly when everything up to it is settled.
        #[test]
        fn an_end_is_passed_when_all_before_it_is_settled(
            items in proptest::collection::vec(0_usize..4, 1..40),
            seed in any::<u64>(),
        ) {
            let mut floor = Floor::default();
            let mut steps = Vec::new();
            for (at, items) in items.iter().enumerate() {
                let pull = floor.open(1, at);
                floor.read(pull, *items);
                steps.extend(std::iter::repeat_n(at, *items));
            }
            let mut left = items.clone();
            let mut passed = floor.rise();
            let mut random = seed;
            while !steps.is_empty() {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = steps.swap_remove((random >> 33) as usize % steps.len());
                floor.settle(at as u64, 1);
                left[at] -= 1;
                passed.extend(floor.rise());
                let settled = left.iter().take_while(|left| **left == 0).count();
                prop_assert_eq!(passed.len(), settled);
            }
            prop_assert_eq!(passed, (0..items.len()).collect::<Vec<_>>());
        }
    }
}
