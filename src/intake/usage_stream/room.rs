//! How much may be in flight: events and bytes that were read and are not settled.

/// The room of one session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    events_max: usize,
    bytes_max: usize,
    events: usize,
    bytes: usize,
}

impl Room {
    pub(super) fn new(events_max: usize, bytes_max: usize) -> Room {
        Room { events_max, bytes_max, events: 0, bytes: 0 }
    }

    /// Events that may still come in; none when there are enough bytes.
    pub(super) fn free_events(&self) -> usize {
        if self.free_bytes() == 0 { 0 } else { self.events_max.saturating_sub(self.events) }
    }

    pub(super) fn free_bytes(&self) -> usize {
        self.bytes_max.saturating_sub(self.bytes)
    }

    /// A pull takes the room of all that it may hold until it is read; then its events take theirs.
    pub(super) fn take(&mut self, events: usize, bytes: usize) {
        self.events += events;
        self.bytes += bytes;
    }

    pub(super) fn leave(&mut self, events: usize, bytes: usize) {
        self.events = self.events.saturating_sub(events);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Tells the metrics.
    pub(super) fn tell(&self) {
        metrics::gauge!("platform_api_stream_in_flight_events").set(self.events as f64);
        metrics::gauge!("platform_api_stream_in_flight_bytes").set(self.bytes as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_full_by_events_or_by_bytes() {
        let mut room = Room::new(10, 100);
        room.take(4, 50);
        assert_eq!((room.free_events(), room.free_bytes()), (6, 50));
        // A message of many events, and a long one, may take more than there is.
        room.take(20, 10);
        assert_eq!(room.free_events(), 0);
        room.leave(20, 10);
        room.take(1, 60);
        assert_eq!((room.free_events(), room.free_bytes()), (0, 0));
        room.leave(5, 110);
        assert_eq!((room.free_events(), room.free_bytes()), (10, 100));
    }
}
