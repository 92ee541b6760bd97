//! What the numbers of a delivery tell: whether it is the next one, whether one was lost on its way, and whether
//! messages are gone from the stream.
//!
//! To acknowledge a message is to acknowledge everything before it. That is safe as long as every delivery has reached
//! us, so they are counted: the server numbers them without gaps, whatever the messages' own numbers are.

use crate::domain::stream::Gap;

/// The deliveries of one consumer, from its first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deliveries {
    count: u64,
    /// The highest message delivered so far.
    read_to: u64,
}

/// What a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivered {
    New {
        gap: Option<Gap>,
    },
    /// A message that was delivered before; it is settled, or about to be.
    Again,
}

/// Deliveries are missing: another reader has them, or they were dropped on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a delivery did not reach us; does another reader use this consumer?")]
pub(super) struct Missing;

impl Deliveries {
    /// Before the first delivery of a new consumer that begins after `read_to`.
    pub(super) fn after(read_to: u64) -> Deliveries {
        Deliveries { count: 0, read_to }
    }

    /// # Errors
    /// [`Missing`].
    pub(super) fn next(&mut self, delivery: u64, message: u64) -> Result<Delivered, Missing> {
        if delivery != self.count + 1 {
            return Err(Missing);
        }
        self.count = delivery;
        if message <= self.read_to {
            return Ok(Delivered::Again);
        }
        let gap = self.up_to(message - 1);
        self.read_to = message;
        Ok(Delivered::New { gap })
    }

    /// The stream now begins at `first`. When everything delivered has reached us, what lies between is gone.
    pub(super) fn begins(&mut self, first: u64, delivered: u64) -> Option<Gap> {
        if delivered != self.count {
            return None;
        }
        let gap = self.up_to(first.saturating_sub(1))?;
        self.read_to = first - 1;
        Some(gap)
    }

    /// Messages up to `to` that were not delivered.
    fn up_to(&self, to: u64) -> Option<Gap> {
        let number = super::resume::number;
        (to > self.read_to).then(|| Gap { from: number(self.read_to + 1), to: number(to) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_tell_what_is_missing() {
        let new = |gap| Ok(Delivered::New { gap });
        let mut deliveries = Deliveries::after(10);
        assert_eq!(deliveries.next(1, 11), new(None));
        assert_eq!(deliveries.next(2, 14), new(Some(Gap { from: 12, to: 13 })));
        assert_eq!(deliveries.next(3, 11), Ok(Delivered::Again));
        assert_eq!(deliveries.next(5, 16), Err(Missing));
        assert_eq!(deliveries.next(4, 15), new(None));

        // On its way: not gone.
        assert_eq!(deliveries.begins(20, 5), None);
        assert_eq!(deliveries.begins(16, 4), None);
        assert_eq!(deliveries.begins(20, 4), Some(Gap { from: 16, to: 19 }));
        assert_eq!(deliveries.begins(20, 4), None);
        assert_eq!(deliveries.next(5, 20), new(None));
        // A stream that is empty begins at 0.
        assert_eq!(Deliveries::after(0).begins(0, 0), None);
    }
}
