//! Which requests run, and what each adds to the next step: queue and books in, batch out.
//!
//! Pure: it knows numbers of tokens and bytes, no model and no clock.
//!
//! ```text
//! push ─▶ waits, in order of urgency ─admit─▶ runs: prompt, drawn tokens anew, one by one
//!                  ▲                                      │
//!                  └──── makes room for one of higher ────┘
//!                        priority that came before
//! ```
//!
//! - A request is admitted when what it may come to hold fits the budget beside what was
//!   promised to others. Nobody passes the one that is next.
//! - A step takes one row of every request that generates, and fills up to a number of rows
//!   with prompts, of higher priority first.
//! - One that had to make room is computed anew: its prompt, then the tokens drawn so far as
//!   generated rows, so that the rest of its answer has the bits that it would have had
//!   (ARCHITECTURE, rule 7).

use super::demand::{Demand, RequestId};
use super::queue::{Place, Queue, Waiting};
use crate::cache::KvCache;
use crate::error::Error;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

/// What becomes of a request.
#[derive(Debug)]
pub enum Admission {
    /// It runs from now on.
    Run(RequestId),
    /// It never can.
    Refuse(RequestId, Error),
    /// It ran, and makes room for another: its memory is to be freed. It waits again.
    Preempt(RequestId),
}

/// A request's part of the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// These tokens of the prompt.
    Prompt(Range<usize>),
    /// These of the tokens drawn before the request had to make room.
    Again(Range<usize>),
    /// The token that was drawn last.
    Next,
}

impl Work {
    /// Rows that are not the one of a request that generates.
    pub fn rows_of_prompts(&self) -> usize {
        match self {
            Self::Prompt(range) | Self::Again(range) => range.len(),
            Self::Next => 0,
        }
    }
}

/// The limits of a scheduler.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Rows of a step at most, those of requests that generate excepted: each has its own.
    pub rows: usize,
    /// Requests that run at once.
    pub running: usize,
    /// Steps whose tokens need not have come to the host when the next one begins.
    pub ahead: usize,
    /// What a level of priority is worth: who waits so long comes before new ones of the next.
    pub ageing: Duration,
}

/// Rows of a step in which drawn tokens are computed anew: as many as verifying drafts has.
const AGAIN: usize = 16;

/// A request that runs.
#[derive(Clone, Debug)]
struct Running {
    place: Place,
    demand: Demand,
    /// Bytes promised.
    bytes: u64,
    /// Tokens of the prompt in steps so far.
    prompt: usize,
    /// Tokens drawn before it ran, and of these those in steps so far.
    before: usize,
    again: usize,
    /// Tokens drawn by steps so far, those before included.
    drawn: usize,
    /// Tokens that came to the host.
    received: usize,
}

impl Running {
    /// Tokens that would have to be computed anew: those drawn before it ran would be, again.
    fn computed(&self) -> usize {
        self.prompt + self.drawn
    }

    /// Whether its next step is that of its last token.
    fn generates(&self, ahead: usize) -> bool {
        let on_way = self.drawn - self.received;
        // Nothing runs ahead of a first token, so that it comes as soon as it can.
        let may = on_way == 0 || (self.received > 0 && on_way <= ahead);
        let prefilled = self.prompt == self.demand.prompt && self.again == self.before;
        prefilled && self.drawn > 0 && self.drawn < self.demand.max_tokens && may
    }
}

/// Continuous batches.
#[derive(Clone, Debug)]
pub struct Scheduler {
    limits: BatchLimits,
    queue: Queue,
    places: BTreeMap<RequestId, Place>,
    running: BTreeMap<RequestId, Running>,
    next: u64,
}

impl Scheduler {
    /// Nothing to do.
    pub fn new(limits: BatchLimits) -> Self {
        let queue = Queue::new(limits.ageing);
        Self { limits, queue, places: BTreeMap::new(), running: BTreeMap::new(), next: 0 }
    }

    /// Queues a request that came at `now`, on any clock.
    pub fn push(&mut self, demand: Demand, now: Duration) -> RequestId {
        let id = RequestId(self.next);
        self.next += 1;
        let place = self.queue.place(id, &demand, now);
        self.places.insert(id, place);
        self.queue.insert(place, Waiting { id, demand, drawn: 0 });
        id
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Requests that run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Whether there is neither a request that waits nor one that runs.
    pub fn is_idle(&self) -> bool {
        self.places.is_empty()
    }

    /// What becomes of the request that is next, or of one that must make room for it; none if
    /// there is nothing to do but to wait. `cost`: what computing so many tokens anew takes,
    /// in any unit. Tokens of a request that is preempted may still be on their way, and are
    /// to be received before the next call.
    pub fn admit(&mut self, books: &KvCache, cost: impl Fn(usize) -> f64) -> Option<Admission> {
        let (place, next) = self.queue.first()?;
        let (bytes, budget) = (self.bytes_of(&next.demand, books), books.budget());
        if bytes > budget {
            self.queue.remove(&place);
            self.places.remove(&next.id);
            let error = Error::KvBudget { needed: bytes, held: 0, budget };
            return Some(Admission::Refuse(next.id, error));
        }
        if !self.fits(bytes, books, 0, 0) {
            return self.preempt(&place, &next, bytes, books, cost).map(Admission::Preempt);
        }
        self.queue.remove(&place);
        let Waiting { id, demand, drawn } = next;
        let (before, received) = (drawn, drawn);
        let running =
            Running { place, demand, bytes, prompt: 0, before, again: 0, drawn, received };
        self.running.insert(id, running);
        Some(Admission::Run(id))
    }

    fn bytes_of(&self, demand: &Demand, books: &KvCache) -> u64 {
        books.bytes_within(demand.prompt + demand.max_tokens, self.limits.rows)
    }

    /// Whether one more has room, once some that run have given up what they were promised.
    fn fits(&self, bytes: u64, books: &KvCache, gone: usize, given_up: u64) -> bool {
        let held = self.running.values().map(|running| running.bytes).sum::<u64>() - given_up;
        self.running.len() - gone < self.limits.running && held + bytes <= books.budget()
    }

    /// Takes the room of the next one from those of lower priority that came after it: the
    /// cheapest to compute anew that are enough, the dearest of them first. None if all of
    /// them are not enough.
    fn preempt(
        &mut self,
        place: &Place,
        next: &Waiting,
        bytes: u64,
        books: &KvCache,
        cost: impl Fn(usize) -> f64,
    ) -> Option<RequestId> {
        // Those that came before are never asked: so nobody makes room again and again.
        let may = |running: &Running| {
            running.demand.priority < next.demand.priority && running.place > *place
        };
        let mut costs: Vec<_> = (self.running.iter())
            .filter(|(_, running)| may(running))
            .map(|(id, running)| (cost(running.computed()), *id, running.bytes))
            .collect();
        costs.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        let mut given_up = 0;
        for (gone, &(_, id, its)) in costs.iter().enumerate() {
            given_up += its;
            if self.fits(bytes, books, gone + 1, given_up) {
                self.give_up(id);
                return Some(id);
            }
        }
        None
    }

    fn give_up(&mut self, id: RequestId) {
        if let Some(Running { place, demand, drawn, .. }) = self.running.remove(&id) {
            self.queue.insert(place, Waiting { id, demand, drawn });
        }
    }

    /// Tokens of a prompt that need not be computed, since the cache has them: at least one is
    /// left. For a request that was just admitted.
    pub fn cached(&mut self, id: RequestId, tokens: usize) {
        if let Some(running) = self.running.get_mut(&id) {
            running.prompt = tokens.min(running.demand.prompt.saturating_sub(1));
        }
    }

    /// Whether a request generates in the next step.
    pub fn generates(&self) -> bool {
        self.running.values().any(|running| running.generates(self.limits.ahead))
    }

    /// The next step of at most `rows` rows, and no more than the limits allow: what each
    /// request adds, those that came first in front. Its tokens count as drawn from now on.
    /// Empty: nothing can go on before a token was received.
    pub fn plan(&mut self, rows: usize) -> Vec<(RequestId, Work)> {
        let mut works = Vec::new();
        let mut rows = rows.min(self.limits.rows);
        for (&id, running) in &mut self.running {
            if running.generates(self.limits.ahead) {
                works.push((id, Work::Next));
                running.drawn += 1;
                rows = rows.saturating_sub(1);
            }
        }
        let mut order: Vec<_> = self.running.iter_mut().collect();
        order.sort_by_key(|(_, running)| running.place);
        for (&id, running) in order {
            let Running { demand, before, .. } = *running;
            if running.prompt < demand.prompt {
                let n = rows.min(demand.prompt - running.prompt);
                if n > 0 {
                    works.push((id, Work::Prompt(running.prompt..running.prompt + n)));
                }
                running.prompt += n;
                running.drawn += usize::from(running.prompt == demand.prompt && before == 0);
                rows -= n;
            } else if running.again < before {
                let n = rows.min(before - running.again).min(AGAIN);
                if n > 0 {
                    works.push((id, Work::Again(running.again..running.again + n)));
                }
                running.again += n;
                running.drawn += usize::from(running.again == before);
                rows -= n;
            }
        }
        works.sort_by_key(|(id, _)| *id);
        works
    }

    /// A token of a request came to the host.
    pub fn received(&mut self, id: RequestId) {
        if let Some(running) = self.running.get_mut(&id) {
            running.received += 1;
        }
    }

    /// A request has ended, wherever it stood.
    pub fn remove(&mut self, id: RequestId) {
        if let Some(place) = self.places.remove(&id) {
            self.queue.remove(&place);
            self.running.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{CacheConfig, GroupSpec};

    const NOW: Duration = Duration::ZERO;

    /// 16-bit pages of 64 · 64 bytes for one stream.
    fn books(pages: u64) -> KvCache {
        let group = GroupSpec {
            layers: 1,
            kv_heads: 1,
            hot_page_bytes: 4096,
            sealed: None,
            sinks: 0,
            hot_window: 0,
            window: None,
        };
        KvCache::new(CacheConfig { groups: vec![group], budget_bytes: pages * 4096 }).unwrap()
    }

    fn scheduler(rows: usize, running: usize, ahead: usize) -> Scheduler {
        let ageing = Duration::from_secs(10);
        Scheduler::new(BatchLimits { rows, running, ahead, ageing })
    }

    fn demand(prompt: usize, max_tokens: usize) -> Demand {
        Demand::new(prompt, max_tokens)
    }

    fn admitted(scheduler: &mut Scheduler, books: &KvCache) -> Vec<u64> {
        let admit = || match scheduler.admit(books, |tokens| tokens as f64)? {
            Admission::Run(id) => Some(id.0),
            other => panic!("{other:?}"),
        };
        std::iter::from_fn(admit).collect()
    }

    #[test]
    fn chunks_fill_what_single_rows_leave() {
        let books = books(100);
        let mut s = scheduler(100, 8, 0);
        let [a, b, c] = [demand(10, 5), demand(250, 5), demand(60, 5)].map(|d| s.push(d, NOW));
        assert_eq!(admitted(&mut s, &books), [0, 1, 2]);
        let prompt = |range| Work::Prompt(range);
        assert_eq!(s.plan(100), [(a, prompt(0..10)), (b, prompt(0..90))]);
        // The first token of a has not come yet.
        assert_eq!(s.plan(100), [(b, prompt(90..190))]);
        s.received(a);
        assert_eq!(s.plan(100), [(a, Work::Next), (b, prompt(190..250)), (c, prompt(0..39))]);
        s.received(a);
        s.received(b);
        assert_eq!(s.plan(100), [(a, Work::Next), (b, Work::Next), (c, prompt(39..60))]);
        s.remove(b);
        s.received(a);
        s.received(c);
        assert_eq!(s.plan(100), [(a, Work::Next), (c, Work::Next)]);
    }

    #[test]
    fn steps_run_ahead_but_not_of_a_first_token_nor_past_the_last() {
        let books = books(100);
        let mut s = scheduler(100, 8, 1);
        let a = s.push(demand(10, 4), NOW);
        admitted(&mut s, &books);
        assert_eq!(s.plan(100).len(), 1);
        assert!(s.plan(100).is_empty());
        s.received(a);
        assert_eq!(s.plan(100), [(a, Work::Next)]);
        assert_eq!(s.plan(100), [(a, Work::Next)]);
        assert!(s.plan(100).is_empty(), "two are under way");
        s.received(a);
        assert_eq!(s.plan(100), [(a, Work::Next)]);
        s.received(a);
        assert!(s.plan(100).is_empty(), "four were drawn");
    }

    #[test]
    fn bytes_are_promised_before_a_request_runs() {
        let books = books(5);
        let mut s = scheduler(512, 8, 0);
        let demands = [demand(100, 28), demand(500, 1), demand(190, 2), demand(1, 1)];
        let [a, _, c, d] = demands.map(|d| s.push(d, NOW));
        let admit = |s: &mut Scheduler| s.admit(&books, |_| 1.0);
        assert!(matches!(admit(&mut s), Some(Admission::Run(id)) if id == a));
        // It could never run; the next one cannot yet, and nobody passes it.
        let Some(Admission::Refuse(RequestId(1), Error::KvBudget { needed, .. })) = admit(&mut s)
        else {
            panic!("not refused")
        };
        assert_eq!(needed, 8 * 4096);
        assert!(matches!(admit(&mut s), Some(Admission::Run(id)) if id == c));
        assert!(admit(&mut s).is_none(), "5 pages are promised");
        s.remove(a);
        assert!(matches!(admit(&mut s), Some(Admission::Run(id)) if id == d));
        s.remove(c);
        s.remove(d);
        assert!(s.is_idle());
    }

    #[test]
    fn so_many_run_at_once() {
        let books = books(100);
        let mut s = scheduler(512, 2, 0);
        for _ in 0..3 {
            s.push(demand(10, 10), NOW);
        }
        assert_eq!(admitted(&mut s, &books), [0, 1]);
        s.remove(RequestId(0));
        assert_eq!(admitted(&mut s, &books), [2]);
    }

    #[test]
    fn higher_priorities_come_first_and_who_waits_gets_nearer() {
        let books = books(100);
        let mut s = scheduler(512, 1, 0);
        let at = Duration::from_secs;
        let running = s.push(demand(10, 10), at(0));
        assert_eq!(admitted(&mut s, &books), [0]);
        // Ten seconds are worth a level.
        s.push(demand(10, 10), at(1));
        s.push(demand(10, 10).with_priority(1), at(5));
        s.push(demand(10, 10).with_priority(1), at(12));
        s.push(demand(10, 10).with_priority(-1), at(0));
        let mut order = Vec::new();
        let mut last = running;
        for _ in 0..4 {
            s.remove(last);
            order.extend(admitted(&mut s, &books));
            last = RequestId(order[order.len() - 1]);
        }
        assert_eq!(order, [2, 1, 3, 4]);
    }

    /// Runs steps until a request has so many tokens.
    fn run_until(s: &mut Scheduler, id: RequestId, tokens: usize) {
        while s.running[&id].received < tokens {
            for (other, work) in s.plan(100) {
                let draws = match work {
                    Work::Next => true,
                    Work::Prompt(range) => {
                        let its = &s.running[&other];
                        range.end == its.demand.prompt && its.before == 0
                    }
                    Work::Again(range) => range.end == s.running[&other].before,
                };
                if draws {
                    s.received(other);
                }
            }
        }
    }

    #[test]
    fn the_cheapest_that_is_enough_makes_room_and_goes_on_where_it_was() {
        let books = books(5);
        let mut s = scheduler(100, 8, 0);
        let [a, b, c] = [demand(100, 28), demand(70, 58), demand(60, 4)].map(|d| s.push(d, NOW));
        assert_eq!(admitted(&mut s, &books), [0, 1, 2]);
        run_until(&mut s, b, 20);
        // c is the cheapest, but its page is not enough; b is the next.
        let urgent = s.push(demand(100, 28).with_priority(1), NOW);

        let first = s.admit(&books, |tokens| tokens as f64);
        assert!(matches!(first, Some(Admission::Preempt(id)) if id == b), "{first:?}");
        assert_eq!(admitted(&mut s, &books), [urgent.0]);
        // It is no more urgent than those that run, and so does not come back by force.
        assert!(!s.is_idle() && s.waiting() == 1);
        s.remove(a);
        s.remove(urgent);
        assert_eq!(admitted(&mut s, &books), [b.0]);
        s.remove(c);
        assert_eq!(s.plan(64), [(b, Work::Prompt(0..64))]);
        s.cached(b, 68);
        assert_eq!(s.plan(64), [(b, Work::Prompt(68..70))]);
        assert_eq!(s.plan(64), [(b, Work::Again(0..16))]);
        assert_eq!(s.plan(64), [(b, Work::Again(16..20))]);
        assert!(s.plan(64).is_empty());
        s.received(b);
        assert_eq!(s.plan(64), [(b, Work::Next)]);
        run_until(&mut s, b, 20);
        s.remove(b);
        assert!(s.is_idle());
    }

    #[test]
    fn nobody_makes_room_in_vain_or_for_one_that_came_later_and_waited_less() {
        let books = books(6);
        let mut s = scheduler(100, 8, 0);
        let at = Duration::from_secs;
        let (big, old) = (demand(300, 20).with_priority(2), demand(60, 4));
        s.push(big, at(0));
        let old = s.push(old, at(0));
        assert_eq!(admitted(&mut s, &books), [0, 1]);
        // Five pages are of a higher priority, the sixth alone is not enough.
        s.push(demand(100, 28).with_priority(1), at(5));
        assert!(s.admit(&books, |_| 1.0).is_none());
        s.remove(RequestId(2));
        // The old one has come more than ten seconds before.
        let new = s.push(demand(60, 4).with_priority(1), at(11));
        assert!(s.admit(&books, |_| 1.0).is_none());
        s.remove(new);
        s.push(demand(60, 4).with_priority(1), at(9));
        let made = s.admit(&books, |_| 1.0);
        assert!(matches!(made, Some(Admission::Preempt(id)) if id == old), "{made:?}");
    }
}
