//! How much may be parked, so that the control database does not grow without end while a tenant is away.
//!
//! Whoever parks asks for room first, and is given what is free: rows that are being written count from that moment on. A
//! census of the control database corrects the number, at the start too, unless something was written meanwhile. Where
//! the two differ the number is too high, never too low: the limit holds.

use tokio::sync::watch;

/// What is parked, and how much may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parked {
    pub events_max: u64,
    /// Rows that wait, and rows that are being written. `None` until they were counted once.
    pub events: Option<u64>,
    /// Nothing more is parked: not before a tenth of the room is free again.
    pub full: bool,
    /// Writes under way, and writes ever begun.
    writing: u64,
    begun: u64,
}

/// Keeps count of what is parked.
#[derive(Debug)]
pub(super) struct Parking(watch::Sender<Parked>);

/// Room for rows that are about to be written; they count from now on.
#[derive(Debug)]
#[must_use]
pub(super) struct Room<'a> {
    parking: &'a Parking,
    pub(super) events: usize,
}

/// How things stood when a census began; `None` when it can correct nothing, because rows were being written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before(Option<u64>);

impl Parking {
    pub(super) fn new(events_max: u64) -> Parking {
        metrics::gauge!("platform_api_parked_events_max").set(events_max as f64);
        Parking(watch::channel(Parked { events_max, events: None, full: false, writing: 0, begun: 0 }).0)
    }

    pub(super) fn follow(&self) -> watch::Receiver<Parked> {
        self.0.subscribe()
    }

    pub(super) fn is_counted(&self) -> bool {
        self.0.borrow().events.is_some()
    }

    pub(super) fn is_full(&self) -> bool {
        self.0.borrow().full
    }

    /// Room for as many of `asked` as may be parked now; none before a first census.
    pub(super) fn room(&self, asked: usize) -> Room<'_> {
        let mut granted = 0;
        self.change(|parked| {
            granted = parked.free().min(asked as u64);
            // Who is given nothing writes nothing: a census under way stays right.
            if granted > 0 {
                parked.events = parked.events.map(|events| events + granted);
                parked.writing += 1;
                parked.begun += 1;
            }
        });
        // Not more than was asked for.
        Room { parking: self, events: usize::try_from(granted).unwrap_or(asked) }
    }

    /// A census begins.
    pub(super) fn before(&self) -> Before {
        let parked = *self.0.borrow();
        Before((parked.writing == 0).then_some(parked.begun))
    }

    /// A census has ended.
    pub(super) fn counted(&self, before: Before, events: u64) {
        self.change(|parked| {
            if before.0 == Some(parked.begun) || parked.events.is_none_or(|known| known < events) {
                parked.events = Some(events);
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Parked)) {
        self.0.send_modify(|parked| {
            change(parked);
            parked.judge();
            metrics::gauge!("platform_api_parked_events").set(parked.events.unwrap_or(0) as f64);
        });
    }
}

impl Parked {
    fn free(&self) -> u64 {
        match self.events {
            Some(events) if !self.full => self.events_max.saturating_sub(events),
            _ => 0,
        }
    }

    /// Notices that the limit is reached, and that there is room again.
    fn judge(&mut self) {
        let Some(events) = self.events else { return };
        let events_max = self.events_max;
        if !self.full && events >= events_max {
            self.full = true;
            tracing::error!(
                events,
                events_max,
                "as many events are parked as may be (intake.parked_events_max); what the stream brings for tenants \
                 that cannot take it stays there, and LiteLLM's callback is turned away"
            );
        } else if self.full && events <= events_max - events_max.div_ceil(10) {
            self.full = false;
            tracing::info!(events, events_max, "events can be parked again");
        }
    }
}

impl Drop for Room<'_> {
    /// Whether they were written or not they count, until a census knows better.
    fn drop(&mut self) {
        if self.events > 0 {
            self.parking.change(|parked| parked.writing -= 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parking(events_max: u64, events: u64) -> Parking {
        let parking = Parking::new(events_max);
        parking.counted(parking.before(), events);
        parking
    }

    #[test]
    fn nothing_is_parked_before_what_is_there_was_counted() {
        let parking = Parking::new(10);
        assert!(!parking.is_counted());
        assert_eq!(parking.room(3).events, 0);
        parking.counted(parking.before(), 8);
        assert_eq!(parking.room(3).events, 2);
    }

    #[test]
    fn what_is_being_written_counts_and_the_limit_is_never_passed() {
        let parking = parking(10, 0);
        let (first, second) = (parking.room(6), parking.room(6));
        assert_eq!((first.events, second.events), (6, 4));
        assert!(parking.is_full());
        drop((first, second));
        assert_eq!(parking.room(1).events, 0);
        assert_eq!(parking.follow().borrow().events, Some(10));
    }

    #[test]
    fn a_full_parking_opens_when_a_tenth_is_free() {
        let parking = parking(100, 100);
        assert!(parking.is_full());
        parking.counted(parking.before(), 91);
        assert_eq!((parking.is_full(), parking.room(1).events), (true, 0));
        parking.counted(parking.before(), 90);
        assert_eq!((parking.is_full(), parking.room(20).events), (false, 10));
        assert!(parking.is_full());
        let smallest = super::tests::parking(1, 1);
        smallest.counted(smallest.before(), 0);
        assert_eq!(smallest.room(5).events, 1);
    }

    #[test]
    fn a_census_does_not_forget_what_was_written_while_it_was_taken() {
        let parking = parking(10, 4);
        let room = parking.room(2);
        let during = parking.before();
        drop(room);
        parking.counted(during, 4);
        assert_eq!(parking.follow().borrow().events, Some(6));
        let before = parking.before();
        drop(parking.room(1));
        parking.counted(before, 6);
        assert_eq!(parking.follow().borrow().events, Some(7));
        // More than we knew of is believed at once; less once nothing was written meanwhile.
        parking.counted(during, 9);
        assert_eq!(parking.follow().borrow().events, Some(9));
        parking.counted(parking.before(), 0);
        assert_eq!(parking.follow().borrow().events, Some(0));
    }

    /// Whoever is stuck asks again and again; its tenant is back meanwhile, and what was parked was counted.
    #[test]
    fn asking_in_vain_keeps_nobody_from_seeing_that_there_is_room_again() {
        let parking = parking(10, 10);
        let before = parking.before();
        let in_vain = parking.room(3);
        assert_eq!(in_vain.events, 0);
        parking.counted(before, 4);
        assert_eq!((parking.follow().borrow().events, parking.is_full()), (Some(4), false));
        parking.counted(parking.before(), 2);
        assert_eq!(parking.follow().borrow().events, Some(2));
        drop(in_vain);
        assert_eq!(parking.room(20).events, 8);
    }
}
