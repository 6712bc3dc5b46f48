//! Which requests run, and what each adds to the next step: queue and books in, batch out.
//!
//! Pure: it knows numbers of tokens and bytes, no model. First come, first served: requests
//! are admitted in order as long as what they may come to hold fits the budget beside what
//! was promised to others. A step takes one row of every request that generates, and fills
//! up to a budget of rows with the prompts of those that came first.

use crate::cache::KvCache;
use crate::error::{Error, Result};
use std::collections::VecDeque;
use std::ops::Range;

/// A request of a [`Scheduler`], in the order of arrival.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens of the answer, at most.
    pub max_tokens: usize,
}

/// A request's part of the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// These tokens of the prompt.
    Prompt(Range<usize>),
    /// The token that was drawn last.
    Next,
}

/// The limits of a scheduler.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Rows of a step. Every request that generates has its row, whatever their number.
    pub rows: usize,
    /// Requests that run at once.
    pub running: usize,
    /// Steps whose tokens need not have come to the host when the next one begins.
    pub ahead: usize,
}

/// A request that runs.
#[derive(Clone, Debug)]
struct Running {
    id: RequestId,
    demand: Demand,
    /// Bytes promised.
    bytes: u64,
    /// Tokens of the prompt in steps so far.
    prompt: usize,
    /// Tokens drawn by steps so far.
    drawn: usize,
    /// Tokens that came to the host.
    received: usize,
}

/// First-come batches.
#[derive(Clone, Debug)]
pub struct Scheduler {
    limits: BatchLimits,
    waiting: VecDeque<(RequestId, Demand)>,
    running: Vec<Running>,
    next: u64,
}

impl Scheduler {
    /// Nothing to do.
    pub fn new(limits: BatchLimits) -> Self {
        Self { limits, waiting: VecDeque::new(), running: Vec::new(), next: 0 }
    }

    /// Queues a request.
    pub fn push(&mut self, demand: Demand) -> RequestId {
        let id = RequestId(self.next);
        self.next += 1;
        self.waiting.push_back((id, demand));
        id
    }

    /// Whether there is neither a request that waits nor one that runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// The next request, if it may run now: or why it never can.
    pub fn admit(&mut self, books: &KvCache) -> Option<(RequestId, Result<()>)> {
        let &(id, demand) = self.waiting.front()?;
        if self.running.len() >= self.limits.running {
            return None;
        }
        let tokens = demand.prompt + demand.max_tokens;
        let (bytes, budget) = (books.bytes_within(tokens, self.limits.rows), books.budget());
        let held = self.running.iter().map(|running| running.bytes).sum::<u64>();
        if bytes > budget {
            self.waiting.pop_front();
            return Some((id, Err(Error::KvBudget { needed: bytes, held: 0, budget })));
        }
        if held + bytes > budget {
            return None;
        }
        self.waiting.pop_front();
        let running = Running { id, demand, bytes, prompt: 0, drawn: 0, received: 0 };
        self.running.push(running);
        Some((id, Ok(())))
    }

    /// The next step: what each request adds, those that came first in front. Its tokens
    /// count as drawn from now on. Empty: nothing can go on before a token was received.
    pub fn plan(&mut self) -> Vec<(RequestId, Work)> {
        let mut works = Vec::new();
        let mut rows = self.limits.rows;
        for running in &mut self.running {
            let Running { demand, .. } = *running;
            let ahead = running.drawn - running.received;
            // Nothing runs ahead of a first token, so that it comes as soon as it can.
            let may = ahead == 0 || (running.received > 0 && ahead <= self.limits.ahead);
            if running.prompt == demand.prompt && running.drawn < demand.max_tokens && may {
                works.push((running.id, Work::Next));
                running.drawn += 1;
                rows = rows.saturating_sub(1);
            }
        }
        for running in &mut self.running {
            let n = rows.min(running.demand.prompt - running.prompt);
            if n > 0 {
                works.push((running.id, Work::Prompt(running.prompt..running.prompt + n)));
                running.prompt += n;
                running.drawn += usize::from(running.prompt == running.demand.prompt);
                rows -= n;
            }
        }
        works.sort_by_key(|(id, _)| *id);
        works
    }

    /// A token of a request came to the host.
    pub fn received(&mut self, id: RequestId) {
        if let Some(running) = self.running.iter_mut().find(|running| running.id == id) {
            running.received += 1;
        }
    }

    /// A request has ended, wherever it stood.
    pub fn remove(&mut self, id: RequestId) {
        self.waiting.retain(|(other, _)| *other != id);
        self.running.retain(|running| running.id != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{CacheConfig, GroupSpec};

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
        Scheduler::new(BatchLimits { rows, running, ahead })
    }

    fn demand(prompt: usize, max_tokens: usize) -> Demand {
        Demand { prompt, max_tokens }
    }

    fn admitted(scheduler: &mut Scheduler, books: &KvCache) -> Vec<u64> {
        std::iter::from_fn(|| scheduler.admit(books)).map(|(id, _)| id.0).collect()
    }

    #[test]
    fn chunks_fill_what_single_rows_leave() {
        let books = books(100);
        let mut s = scheduler(100, 8, 0);
        let [a, b, c] = [demand(10, 5), demand(250, 5), demand(60, 5)].map(|d| s.push(d));
        assert_eq!(admitted(&mut s, &books), [0, 1, 2]);
        let prompt = |range| Work::Prompt(range);
        assert_eq!(s.plan(), [(a, prompt(0..10)), (b, prompt(0..90))]);
        // The first token of a has not come yet.
        assert_eq!(s.plan(), [(b, prompt(90..190))]);
        s.received(a);
        assert_eq!(s.plan(), [(a, Work::Next), (b, prompt(190..250)), (c, prompt(0..39))]);
        s.received(a);
        s.received(b);
        assert_eq!(s.plan(), [(a, Work::Next), (b, Work::Next), (c, prompt(39..60))]);
        s.remove(b);
        s.received(a);
        s.received(c);
        assert_eq!(s.plan(), [(a, Work::Next), (c, Work::Next)]);
    }

    #[test]
    fn steps_run_ahead_but_not_of_a_first_token_nor_past_the_last() {
        let books = books(100);
        let mut s = scheduler(100, 8, 1);
        let a = s.push(demand(10, 4));
        admitted(&mut s, &books);
        assert_eq!(s.plan().len(), 1);
        assert!(s.plan().is_empty());
        s.received(a);
        assert_eq!(s.plan(), [(a, Work::Next)]);
        assert_eq!(s.plan(), [(a, Work::Next)]);
        assert!(s.plan().is_empty(), "two are under way");
        s.received(a);
        assert_eq!(s.plan(), [(a, Work::Next)]);
        s.received(a);
        assert!(s.plan().is_empty(), "four were drawn");
    }

    #[test]
    fn bytes_are_promised_before_a_request_runs() {
        let books = books(5);
        let mut s = scheduler(512, 8, 0);
        let demands = [demand(100, 28), demand(500, 1), demand(190, 2), demand(1, 1)];
        let [a, _, c, d] = demands.map(|d| s.push(d));
        assert!(matches!(s.admit(&books), Some((id, Ok(()))) if id == a));
        // It could never run; the next one cannot yet, and nobody passes it.
        let refused = s.admit(&books).unwrap();
        assert!(
            matches!(refused, (RequestId(1), Err(Error::KvBudget { needed, .. })) if needed == 8 * 4096)
        );
        assert!(matches!(s.admit(&books), Some((id, Ok(()))) if id == c));
        assert!(s.admit(&books).is_none(), "5 pages are promised");
        s.remove(a);
        assert!(matches!(s.admit(&books), Some((id, Ok(()))) if id == d));
        s.remove(c);
        s.remove(d);
        assert!(s.is_idle());
    }

    #[test]
    fn so_many_run_at_once() {
        let books = books(100);
        let mut s = scheduler(512, 2, 0);
        for _ in 0..3 {
            s.push(demand(10, 10));
        }
        assert_eq!(admitted(&mut s, &books), [0, 1]);
        s.remove(RequestId(0));
        assert_eq!(admitted(&mut s, &books), [2]);
    }
}
