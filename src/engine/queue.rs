//! Requests that wait, the most urgent first and none for ever.
//!
//! A level of priority is worth a time: a request of priority p stands where one of priority 0
//! would that had come p · `ageing` earlier. So whoever waits gets nearer to the front of all
//! that come later, whatever their priority, and the order is fixed when a request comes.

use super::demand::{Demand, RequestId};
use std::collections::BTreeMap;
use std::time::Duration;

/// A request's place: nanoseconds, and the order of arrival where they are equal. Smaller
/// ones come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(i128, RequestId);

/// A request that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub id: RequestId,
    pub demand: Demand,
    /// Tokens that were drawn before it had to make room.
    pub drawn: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Queue {
    ageing: Duration,
    waiting: BTreeMap<Place, Waiting>,
}

impl Queue {
    /// `ageing`: what a level of priority is worth.
    pub fn new(ageing: Duration) -> Self {
        Self { ageing, waiting: BTreeMap::new() }
    }

    /// The place of a request that came at `now`.
    pub fn place(&self, id: RequestId, demand: &Demand, now: Duration) -> Place {
        let earlier = i128::from(demand.priority) * self.ageing.as_nanos() as i128;
        Place(now.as_nanos() as i128 - earlier, id)
    }

    pub fn insert(&mut self, place: Place, waiting: Waiting) {
        self.waiting.insert(place, waiting);
    }

    pub fn first(&self) -> Option<(Place, Waiting)> {
        self.waiting.first_key_value().map(|(place, waiting)| (*place, *waiting))
    }

    pub fn remove(&mut self, place: &Place) -> Option<Waiting> {
        self.waiting.remove(place)
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }
}
