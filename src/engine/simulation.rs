//! A scheduler driven by made-up traffic, with real books and a clock of its own, without a
//! model: whoever asks gets all of it, in time, and never more memory than there is.

use super::demand::{Demand, RequestId};
use super::scheduler::{Admission, BatchLimits, Scheduler, Work};
use crate::cache::{CacheConfig, GroupSpec, KvCache, NewTokens, SealedBytes, SeqId};
use std::collections::BTreeMap;
use std::time::Duration;

const ROWS: usize = 128;
const AGEING: Duration = Duration::from_secs(10);
/// Seconds of a step, and of each of its rows.
const STEP: f64 = 0.005;
const ROW: f64 = 0.0005;

/// A request as the simulation sees it.
struct Served {
    demand: Demand,
    came: f64,
    began: Option<f64>,
    ended: Option<f64>,
    seq: Option<SeqId>,
    tokens: usize,
    preemptions: usize,
}

struct Simulation {
    books: KvCache,
    scheduler: Scheduler,
    served: BTreeMap<RequestId, Served>,
    now: f64,
}

impl Simulation {
    /// Two layers that seal their pages, with a window and sinks; `pages` of 16 bits fit.
    fn new(pages: u64, running: usize) -> Self {
        let group = GroupSpec {
            layers: 2,
            kv_heads: 1,
            hot_page_bytes: 1024,
            sealed: Some(SealedBytes { page: 192, block: 384 }),
            sinks: 4,
            hot_window: 64,
            window: None,
        };
        let config = CacheConfig { groups: vec![group], budget_bytes: pages * 2048 };
        let limits = BatchLimits { rows: ROWS, running, ahead: 0, ageing: AGEING };
        Self {
            books: KvCache::new(config).unwrap(),
            scheduler: Scheduler::new(limits),
            served: BTreeMap::new(),
            now: 0.0,
        }
    }

    fn push(&mut self, demand: Demand) -> RequestId {
        let id = self.scheduler.push(demand, Duration::from_secs_f64(self.now));
        let (came, began, ended, seq) = (self.now, None, None, None);
        let served = Served { demand, came, began, ended, seq, tokens: 0, preemptions: 0 };
        self.served.insert(id, served);
        id
    }

    fn end(&mut self, id: RequestId) {
        self.scheduler.remove(id);
        let served = self.served.get_mut(&id).unwrap();
        served.ended = Some(self.now);
        if let Some(seq) = served.seq.take() {
            self.books.free(seq).unwrap();
        }
    }

    /// A step, if there is anything to do.
    fn step(&mut self) {
        while let Some(admission) = self.scheduler.admit(&self.books, |tokens| tokens as f64) {
            match admission {
                Admission::Run(id) => {
                    let seq = self.books.create();
                    let served = self.served.get_mut(&id).unwrap();
                    served.began.get_or_insert(self.now);
                    served.seq = Some(seq);
                }
                Admission::Preempt(id) => {
                    let served = self.served.get_mut(&id).unwrap();
                    served.preemptions += 1;
                    self.books.free(served.seq.take().unwrap()).unwrap();
                }
                Admission::Refuse(id, _) => panic!("{id:?} could have run"),
            }
        }
        let works = self.scheduler.plan(ROWS);
        let mut rows = 0;
        let mut new = Vec::new();
        let mut draws = Vec::new();
        for (id, work) in works {
            let served = &self.served[&id];
            let seq = served.seq.unwrap();
            let has = self.books.len(seq).unwrap();
            let prompt = served.demand.prompt;
            // Each token comes when the ones before it are there, and once.
            let (range, draw) = match work {
                Work::Prompt(range) => {
                    let last = range.end == prompt && served.tokens == 0;
                    (range, last)
                }
                Work::Again(range) => {
                    let last = range.end == served.tokens;
                    (prompt + range.start..prompt + range.end, last)
                }
                Work::Next => (prompt + served.tokens - 1..prompt + served.tokens, true),
            };
            assert_eq!(range.start, has, "{id:?}");
            assert!(!range.is_empty());
            rows += range.len();
            new.push(NewTokens::prompt(seq, range.len()));
            draws.extend(draw.then_some(id));
        }
        assert!(rows <= ROWS + new.len());
        self.now += STEP + ROW * rows as f64;
        if !new.is_empty() {
            // What was promised is there.
            let step = self.books.prepare(&new).unwrap();
            let accepted: Vec<_> = new.iter().map(|new| new.n).collect();
            self.books.commit(step, &accepted).unwrap();
        }
        self.books.audit().unwrap();
        for id in draws {
            self.scheduler.received(id);
            let served = self.served.get_mut(&id).unwrap();
            served.tokens += 1;
            if served.tokens == served.demand.max_tokens {
                self.end(id);
            }
        }
    }

    fn run(&mut self) {
        let mut steps = 0;
        while !self.scheduler.is_idle() {
            self.step();
            steps += 1;
            assert!(steps < 200_000, "{} wait for ever", self.scheduler.waiting());
        }
        assert_eq!(self.books.held_bytes(), 0);
    }

    /// Times from coming to the first step of requests, sorted.
    fn waits(&self) -> Vec<f64> {
        let wait = |served: &Served| served.began.unwrap() - served.came;
        let mut waits: Vec<_> = self.served.values().map(wait).collect();
        waits.sort_by(f64::total_cmp);
        waits
    }
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

#[test]
fn random_traffic_gets_all_it_asked_for() {
    let mut preempted = 0;
    for seed in 1..=20 {
        let mut random = Random(seed * 0x9e37_79b9);
        let mut simulation = Simulation::new(24, 6);
        let mut cancelled = Vec::new();
        for _ in 0..60 {
            let demand = Demand::new(1 + random.below(500), 1 + random.below(80))
                .with_priority(random.below(3) as i32 - 1);
            let id = simulation.push(demand);
            for _ in 0..random.below(30) {
                simulation.step();
            }
            let id = RequestId(id.0 - random.below(3).min(id.0 as usize) as u64);
            if random.below(6) == 0 && simulation.served[&id].ended.is_none() {
                simulation.end(id);
                cancelled.push(id);
            }
        }
        simulation.run();
        for (id, served) in &simulation.served {
            let whole = served.tokens == served.demand.max_tokens;
            assert!(whole || cancelled.contains(id), "{id:?}");
            preempted += served.preemptions;
        }
    }
    assert!(preempted > 20, "{preempted}");
}

/// Of equal requests nobody waits much longer than others that came at the same time.
#[test]
fn an_overload_is_worked_off_in_order() {
    let mut simulation = Simulation::new(8 * 10, 8);
    for _ in 0..500 {
        simulation.push(Demand::new(300, 40));
    }
    simulation.run();
    let waits = simulation.waits();
    let (median, p99) = (waits[250], waits[495]);
    assert!(p99 <= 2.0 * median, "{p99} {median}");
}

/// More of a higher priority come than can be served: one of lower priority runs all the
/// same, when it has waited for what a level is worth, and is not thrown out again.
#[test]
fn nobody_starves() {
    let mut simulation = Simulation::new(30, 2);
    let low = simulation.push(Demand::new(200, 60));
    while simulation.served[&low].ended.is_none() {
        if simulation.scheduler.waiting() < 4 {
            simulation.push(Demand::new(200, 60).with_priority(1));
        }
        simulation.step();
        assert!(simulation.now < 60.0, "it starves");
    }
    let served = &simulation.served[&low];
    assert!(simulation.now > AGEING.as_secs_f64(), "those of higher priority came first");
    assert!(served.preemptions >= 1, "it made room at first");
}

/// While one generates, prompts beside it go on in chunks, and it has its row in each step.
#[test]
fn a_long_prompt_holds_nobody_up() {
    let mut simulation = Simulation::new(200, 8);
    let short = simulation.push(Demand::new(10, 100));
    simulation.step();
    let long = simulation.push(Demand::new(6_000, 5));
    let mut steps = 0;
    while simulation.served[&short].ended.is_none() {
        let before = simulation.served[&short].tokens;
        simulation.step();
        assert_eq!(simulation.served[&short].tokens, before + 1);
        steps += usize::from(simulation.served[&long].tokens == 0);
    }
    assert!(steps >= 6_000 / ROWS);
}
