//! Requests in, token events out (floor 6).
//!
//! An [`Engine`] owns a thread on which one model runs. Handles are cheap to
//! clone and can be sent anywhere; [`Engine::submit`] gives a stream of
//! [`Event`]s, and dropping the stream cancels its request at the next chunk or
//! token. Requests run side by side, as many as the KV budget holds, the most urgent first.
//!
//! | file | what |
//! |---|---|
//! | `runner.rs` | a batch on a model |
//! | `demand.rs`, `queue.rs` | what is known of a request; those that wait, by urgency |
//! | `scheduler.rs` | queue and books in, batch out |
//! | `tempo.rs` | how many rows a step may have |
//! | `generation.rs` | one request's state |
//! | `service.rs` | the three together; [`generate`] drives one request by hand |
//! | `request.rs`, `text.rs` | what is asked and answered; text from token bytes |
//! | `config.rs`, `device.rs`, `memory.rs`, `loaded.rs` | options, devices, bytes, a model ready to run |

mod config;
mod demand;
mod device;
mod generation;
mod loaded;
mod memory;
mod queue;
mod request;
mod runner;
mod scheduler;
mod service;
#[cfg(test)]
mod simulation;
mod tempo;
pub mod text;

pub use config::{AUTO, EngineConfig};
pub use demand::{Demand, RequestId};
pub use device::DeviceChoice;
pub use loaded::{LoadOptions, LoadedModel};
pub use memory::{MemoryPlan, cache_bytes, resident_weights};
pub use request::{Event, FinishReason, Generated, Request, RequestStream, Stats};
pub use runner::{Runner, Share, Want};
pub use scheduler::{Admission, BatchLimits, Scheduler, Work};

use crate::error::{Error, Result};
use service::Service;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

/// Requests that may wait before `submit` blocks.
const QUEUE: usize = 64;

/// A handle to a running engine. The last one to be dropped ends its thread.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// A request with its way back.
struct Job {
    request: Request,
    /// Holds no more than the request's tokens and the parts of its prompt.
    events: Sender<Event>,
    cancel: Arc<AtomicBool>,
}

impl Engine {
    /// Starts the engine's thread.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration does not suit the model.
    pub fn start(model: LoadedModel, config: EngineConfig) -> Result<Self> {
        let runner = Runner::new(model, config)?;
        let (jobs, queue) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("kvfold-engine".into())
            .spawn(move || serve(runner, &queue))
            .map_err(|e| Error::EngineStopped(format!("its thread could not start: {e}")))?;
        Ok(Self { inner: Arc::new(Inner { jobs: Some(jobs), thread: Some(thread) }) })
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`Error::Config`] for parameters out of range; what depends on the model
    /// (a prompt too long, a budget too small) arrives as [`Event::Failed`].
    pub fn submit(&self, request: Request) -> Result<RequestStream> {
        request.validate()?;
        let (events, receiver) = channel();
        let cancel = Arc::new(AtomicBool::new(false));
        let job = Job { request, events, cancel: cancel.clone() };
        let stopped = || Error::EngineStopped("its thread has ended".into());
        let jobs = self.inner.jobs.as_ref().ok_or_else(stopped)?;
        jobs.send(job).map_err(|_| stopped())?;
        Ok(RequestStream::new(receiver, cancel))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has already been reported by its message.
            let _ = thread.join();
        }
    }
}

/// Runs requests until every handle is gone.
fn serve(mut runner: Runner, queue: &Receiver<Job>) {
    let mut service = Service::new(&runner);
    loop {
        let waited = match service.is_idle() {
            true => match queue.recv() {
                Ok(job) => Some(job),
                Err(_) => return,
            },
            false => None,
        };
        for Job { request, events, cancel } in waited.into_iter().chain(queue.try_iter()) {
            let sink = Box::new(move |event| events.send(event).map_err(|_| ()));
            service.push(request, sink, cancel, &runner);
        }
        service.turn(&mut runner);
    }
}

/// Runs one request on a runner, alone.
///
/// # Errors
/// [`Error::Config`] for parameters out of range; [`Error::Cancelled`] when `cancel` is
/// set; what [`Event::Failed`] would say.
pub fn generate(runner: &mut Runner, request: Request, cancel: &AtomicBool) -> Result<Generated> {
    request.validate()?;
    let (events, receiver) = channel();
    let gone = Arc::new(AtomicBool::new(false));
    let mut service = Service::new(runner);
    let sink = Box::new(move |event| events.send(event).map_err(|_| ()));
    service.push(request, sink, gone.clone(), runner);
    while !service.is_idle() {
        if cancel.load(Ordering::Relaxed) {
            gone.store(true, Ordering::Relaxed);
        }
        service.turn(runner);
    }
    Generated::collect(receiver.into_iter())
}
