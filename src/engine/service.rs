//! Requests through a runner: admission, batches, tokens to whoever waits for them.

use super::demand::{Demand, RequestId};
use super::generation::Generation;
use super::request::{Event, Request};
use super::runner::{Runner, Share};
use super::scheduler::{Admission, BatchLimits, Scheduler, Work};
use super::tempo::Tempo;
use crate::backend::RowToken;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a request waits until it comes before new ones of the next higher priority.
const AGEING: Duration = Duration::from_secs(10);

/// Where the events of a request go; an error says that nobody listens any more.
pub(super) type Sink = Box<dyn FnMut(Event) -> std::result::Result<(), ()> + Send>;

/// A request on its way through.
struct Client {
    request: Option<Request>,
    generation: Option<Generation>,
    sink: Sink,
    cancel: Arc<AtomicBool>,
    came: Instant,
    deadline: Option<Duration>,
}

/// Runs requests side by side on one runner.
pub(super) struct Service {
    scheduler: Scheduler,
    clients: BTreeMap<RequestId, Client>,
    /// Whose tokens each step under way draws.
    flights: VecDeque<Vec<RequestId>>,
    /// Slots that nobody has.
    slots: Vec<u32>,
    n_slots: u32,
    ahead: usize,
    tempo: Tempo,
    /// Since when steps have begun whose time was not told to `tempo`.
    since: Option<Instant>,
    start: Instant,
}

impl Service {
    /// No requests.
    pub fn new(runner: &Runner) -> Self {
        let ahead = usize::from(runner.capabilities().enqueues);
        let config = runner.config();
        let (rows, running) = (config.prefill_chunk, config.max_batch);
        let target = (config.step_ms > 0).then(|| Duration::from_millis(config.step_ms));
        let limits = BatchLimits { rows, running, ahead, ageing: AGEING };
        Self {
            scheduler: Scheduler::new(limits),
            clients: BTreeMap::new(),
            flights: VecDeque::new(),
            slots: Vec::new(),
            n_slots: 0,
            ahead,
            tempo: Tempo::new(target, rows),
            since: None,
            start: Instant::now(),
        }
    }

    /// Queues a request; one that the model cannot take has failed by then.
    pub fn push(
        &mut self,
        request: Request,
        mut sink: Sink,
        cancel: Arc<AtomicBool>,
        runner: &Runner,
    ) {
        if let Err(error) = runner.model().check(&request.prompt, request.max_tokens) {
            let _ = sink(Event::Failed(error));
            return;
        }
        let came = Instant::now();
        let demand =
            Demand::new(request.prompt.len(), request.max_tokens).with_priority(request.priority);
        let id = self.scheduler.push(demand, came - self.start);
        let deadline = request.deadline;
        let client =
            Client { request: Some(request), generation: None, sink, cancel, came, deadline };
        self.clients.insert(id, client);
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.clients.is_empty() && self.flights.is_empty()
    }

    /// Goes on by a step, at most: admits, computes, hands out tokens.
    pub fn turn(&mut self, runner: &mut Runner) {
        self.drop_late(runner);
        self.admit(runner);
        let works = self.scheduler.plan(self.tempo.rows(self.scheduler.generates()));
        let planned = !works.is_empty();
        if planned {
            self.since.get_or_insert_with(Instant::now);
            self.tempo.began(works.iter().map(|(_, work)| work.rows_of_prompts()).sum());
            self.compute(works, runner);
        }
        if self.flights.len() > if planned { self.ahead } else { 0 } {
            self.receive(runner);
        }
        if self.is_idle() {
            self.since = None;
            self.tempo.forget();
            // An error of the device is the next request's to meet.
            let _ = runner.release();
        }
    }

    /// Ends those that were cancelled, or are late.
    fn drop_late(&mut self, runner: &mut Runner) {
        let error = |client: &Client| match client.deadline {
            _ if client.cancel.load(Ordering::Relaxed) => Some(Error::Cancelled),
            Some(deadline) if client.came.elapsed() > deadline => {
                Some(Error::DeadlineExceeded { deadline })
            }
            _ => None,
        };
        let late: Vec<_> =
            self.clients.iter().filter_map(|(id, client)| Some((*id, error(client)?))).collect();
        for (id, error) in late {
            self.end(id, Event::Failed(error), runner);
        }
    }

    fn admit(&mut self, runner: &mut Runner) {
        loop {
            let cost = |tokens| self.tempo.recompute(tokens);
            let (id, begun) = match self.scheduler.admit(runner.cache(), cost) {
                None => return,
                Some(Admission::Preempt(id)) => {
                    self.suspend(id, runner);
                    continue;
                }
                Some(Admission::Refuse(id, error)) => (id, Err(error)),
                Some(Admission::Run(id)) => (id, self.begin(id, runner)),
            };
            if let Err(error) = begun {
                self.end(id, Event::Failed(error), runner);
            }
        }
    }

    /// Takes a request's memory. Its tokens that are on their way come first; one may be its
    /// last.
    fn suspend(&mut self, id: RequestId, runner: &mut Runner) {
        while !self.flights.is_empty() {
            self.receive(runner);
        }
        let generation = self.clients.get_mut(&id).and_then(|client| client.generation.as_mut());
        if let Some(generation) = generation {
            self.slots.extend(generation.leave(runner));
        }
    }

    fn begin(&mut self, id: RequestId, runner: &mut Runner) -> Result<()> {
        let slot = self.slots.pop().unwrap_or_else(|| {
            self.n_slots += 1;
            self.n_slots - 1
        });
        let Some(client) = self.clients.get_mut(&id) else { return Ok(()) };
        let Some(request) = client.request.take() else {
            if let Some(generation) = &mut client.generation {
                generation.resume(slot, runner);
            }
            return Ok(());
        };
        client.generation = Some(Generation::new(request, client.came, slot, runner)?);
        (client.sink)(Event::Admitted { cached_tokens: 0 }).map_err(|()| Error::Cancelled)
    }

    fn compute(&mut self, works: Vec<(RequestId, Work)>, runner: &mut Runner) {
        let (mut batch, mut draws) = (Vec::new(), Vec::new());
        for (id, work) in &works {
            let client = self.clients.get_mut(id);
            let Some(generation) = client.and_then(|c| c.generation.as_mut()) else { continue };
            let seq = generation.seq;
            batch.push(match work {
                Work::Next => {
                    let tokens = vec![RowToken::Drawn(generation.slot)];
                    draws.push(*id);
                    Share::generated(seq, tokens, generation.want(true))
                }
                Work::Prompt(range) => {
                    let first = !generation.has_begun();
                    let last = first && range.end == generation.prompt().len();
                    draws.extend(last.then_some(*id));
                    let want = generation.want(last);
                    Share::prompt(seq, &generation.prompt()[range.clone()], want)
                }
                Work::Again(range) => {
                    let given = &generation.answer()[range.clone()];
                    let tokens = given.iter().map(|id| RowToken::Given(*id)).collect();
                    let last = range.end == generation.answer().len();
                    draws.extend(last.then_some(*id));
                    Share::generated(seq, tokens, generation.want(last))
                }
            });
        }
        match runner.submit(&batch) {
            Ok(()) if draws.is_empty() => {}
            Ok(()) => self.flights.push_back(draws),
            Err(error) => self.fail(works.iter().map(|(id, _)| *id).collect(), error, runner),
        }
        for (id, work) in works {
            // Those that have failed are gone.
            let Some(client) = self.clients.get_mut(&id) else { continue };
            let Some(generation) = client.generation.as_mut() else { continue };
            generation.measure(runner.peak_of(generation.seq));
            if let (Work::Prompt(range), None) = (work, generation.answer().first()) {
                let event = Event::Prefill { done: range.end, total: generation.prompt().len() };
                // Who does not listen any more is met at the first token.
                let _ = (client.sink)(event);
            }
        }
    }

    fn receive(&mut self, runner: &mut Runner) {
        let Some(ids) = self.flights.pop_front() else { return };
        let received = runner.receive();
        if let Some(since) = self.since.take() {
            self.tempo.took(since.elapsed());
            // The next step is under way.
            self.since = (!self.flights.is_empty()).then(Instant::now);
        }
        let tokens = match received {
            Ok(tokens) => tokens,
            Err(error) => return self.fail(ids, error, runner),
        };
        for (id, token) in ids.into_iter().zip(tokens) {
            self.scheduler.received(id);
            // Those that have ended meanwhile had a step in vain.
            let Some(client) = self.clients.get_mut(&id) else { continue };
            let Some(generation) = client.generation.as_mut() else { continue };
            let (event, end) = generation.take(token, runner);
            let heard = event.is_none_or(|event| (client.sink)(event).is_ok());
            match end {
                Some(end) => self.end(id, end, runner),
                None if !heard => self.end(id, Event::Failed(Error::Cancelled), runner),
                None => {}
            }
        }
    }

    /// Ends requests whose step failed, each with the error.
    fn fail(&mut self, ids: Vec<RequestId>, error: Error, runner: &mut Runner) {
        if let [id] = ids[..] {
            return self.end(id, Event::Failed(error), runner);
        }
        let error = Arc::new(error);
        for id in ids {
            self.end(id, Event::Failed(Error::Shared(error.clone())), runner);
        }
    }

    /// Ends a request and releases its memory, however it ends.
    fn end(&mut self, id: RequestId, last: Event, runner: &mut Runner) {
        self.scheduler.remove(id);
        let Some(mut client) = self.clients.remove(&id) else { return };
        if let Some(mut generation) = client.generation.take() {
            self.slots.extend(generation.leave(runner));
        }
        // Nobody listens to a request whose stream was dropped.
        let _ = (client.sink)(last);
    }
}
