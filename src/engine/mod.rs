//! Requests in, token events out (floor 6).
//!
//! An [`Engine`] owns a thread on which one model runs. Handles are cheap to
//! clone and can be sent anywhere; [`Engine::submit`] gives a stream of
//! [`Event`]s, and dropping the stream cancels its request at the next chunk or
//! token. Requests run one after the other, in the order of submission.

mod config;
mod device;
mod executor;
mod loaded;
mod memory;
mod request;
mod session;
pub mod text;
mod tokens;
mod worker;

pub use config::{AUTO, EngineConfig};
pub use device::DeviceChoice;
pub use loaded::{LoadOptions, LoadedModel};
pub use memory::{MemoryPlan, cache_bytes, resident_weights};
pub use request::{Event, FinishReason, Request, RequestStream, Stats};
pub use session::Session;

use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use worker::Job;

/// Requests that may wait before `submit` blocks.
const QUEUE: usize = 64;
/// Events of one request that may wait before the engine does.
const EVENTS: usize = 1024;

/// A handle to a running engine. The last one to be dropped ends its thread.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the engine's thread.
    ///
    /// # Errors
    /// [`Error::Config`] if the configuration does not suit the model.
    pub fn start(model: LoadedModel, config: EngineConfig) -> Result<Self> {
        let session = Session::new(model, config)?;
        let (jobs, queue) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("kvfold-engine".into())
            .spawn(move || worker::run(session, queue))
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
        let (events, receiver) = sync_channel(EVENTS);
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
