//! Requests through a runner: admission, batches, tokens to whoever waits for them.

use super::generation::Generation;
use super::request::{Event, Request};
use super::runner::{Runner, Share, Want};
use super::scheduler::{BatchLimits, Demand, RequestId, Scheduler, Work};
use crate::backend::RowToken;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where the events of a request go; an error says that nobody listens any more.
pub(super) type Sink = Box<dyn FnMut(Event) -> std::result::Result<(), ()> + Send>;

/// A request on its way through.
struct Client {
    request: Option<Request>,
    generation: Option<Generation>,
    sink: Sink,
    cancel: Arc<AtomicBool>,
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
}

impl Service {
    /// No requests.
    pub fn new(runner: &Runner) -> Self {
        let ahead = usize::from(runner.capabilities().enqueues);
        let config = runner.config();
        let limits = BatchLimits { rows: config.prefill_chunk, running: config.max_batch, ahead };
        Self {
            scheduler: Scheduler::new(limits),
            clients: BTreeMap::new(),
            flights: VecDeque::new(),
            slots: Vec::new(),
            n_slots: 0,
            ahead,
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
        let demand = Demand { prompt: request.prompt.len(), max_tokens: request.max_tokens };
        let id = self.scheduler.push(demand);
        let client = Client { request: Some(request), generation: None, sink, cancel };
        self.clients.insert(id, client);
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.clients.is_empty() && self.flights.is_empty()
    }

    /// Goes on by a step, at most: admits, computes, hands out tokens.
    pub fn turn(&mut self, runner: &mut Runner) {
        self.drop_cancelled(runner);
        self.admit(runner);
        let works = self.scheduler.plan();
        let planned = !works.is_empty();
        if planned {
            self.compute(works, runner);
        }
        if self.flights.len() > if planned { self.ahead } else { 0 } {
            self.receive(runner);
        }
        if self.is_idle() {
            // An error of the device is the next request's to meet.
            let _ = runner.release();
        }
    }

    fn drop_cancelled(&mut self, runner: &mut Runner) {
        let gone = |client: &Client| client.cancel.load(Ordering::Relaxed);
        let gone: Vec<_> =
            self.clients.iter().filter(|(_, c)| gone(c)).map(|(id, _)| *id).collect();
        for id in gone {
            self.end(id, Event::Failed(Error::Cancelled), runner);
        }
    }

    fn admit(&mut self, runner: &mut Runner) {
        while let Some((id, may)) = self.scheduler.admit(runner.cache()) {
            let begun = may.and_then(|()| self.begin(id, runner));
            if let Err(error) = begun {
                self.end(id, Event::Failed(error), runner);
            }
        }
    }

    fn begin(&mut self, id: RequestId, runner: &mut Runner) -> Result<()> {
        let slot = self.slots.pop().unwrap_or_else(|| {
            self.n_slots += 1;
            self.n_slots - 1
        });
        let Some(client) = self.clients.get_mut(&id) else { return Ok(()) };
        let Some(request) = client.request.take() else { return Ok(()) };
        client.generation = Some(Generation::new(request, slot, runner)?);
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
                    Share::generated(seq, tokens, Want::Token(generation.choose()))
                }
                Work::Prompt(range) => {
                    let last = range.end == generation.prompt().len();
                    let want = match last {
                        true => Want::Token(generation.choose()),
                        false => Want::Nothing,
                    };
                    draws.extend(last.then_some(*id));
                    Share::prompt(seq, &generation.prompt()[range.clone()], want)
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
            if let Work::Prompt(range) = work {
                let event = Event::Prefill { done: range.end, total: generation.prompt().len() };
                // Who does not listen any more is met at the first token.
                let _ = (client.sink)(event);
            }
        }
    }

    fn receive(&mut self, runner: &mut Runner) {
        let Some(ids) = self.flights.pop_front() else { return };
        let tokens = match runner.receive() {
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
        if let Some(generation) = client.generation.take() {
            self.slots.push(generation.slot);
            // Its sequence exists and no step of it is in the books' hands.
            let _ = runner.free(generation.seq);
        }
        // Nobody listens to a request whose stream was dropped.
        let _ = (client.sink)(last);
    }
}
