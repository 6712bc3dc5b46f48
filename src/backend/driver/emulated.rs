//! The emulated device: the same kernel sources, compiled by the host's C++
//! compiler and run thread by thread (`kernels/emulator/`). A test instrument.
//!
//! Streams are immediate: every call has done its work on return, but copies to and
//! from pinned memory (`pinned.rs`). Memory of unspecified content is poisoned by the
//! emulator, the order of threads is drawn from a seed, and misuse that a real device
//! would let pass is an error. With `KVFOLD_EMULATOR_RECORD=FOLDER` in the environment,
//! every device leaves a trace of what it did in that folder (`trace.rs`).

mod emulator;
mod pinned;
mod submit;
#[cfg(test)]
mod tests;
mod trace;
mod work;

use super::raw::{DeviceInfo, Driver, Launch, MemoryInfo, RawEvent, RawGraph, RawStream};
use crate::error::{Error, Result};
use emulator::Emulator;
use pinned::Pinned;
use std::alloc::Layout;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use work::{Capture, StreamOp};

/// What sizes and addresses of virtual memory are multiples of; also a page of the host.
const GRANULARITY: u64 = 4096;

/// How the device behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmulatorOptions {
    /// The first launch draws its order of threads from this seed, each later one
    /// from the next.
    pub seed: u64,
    /// Blocks that run at once.
    pub host_threads: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// What the device says that it has; plans depend on it, results do not.
    pub multiprocessors: u32,
    /// After so many launches the device is lost: later ones do nothing, and whatever
    /// waits for it fails.
    pub lost_after: Option<u64>,
    /// Whether captures succeed.
    pub captures: bool,
    /// Whether products of f16 matrices take subnormal elements as 0, as a device might.
    pub flush_subnormals: bool,
}

impl Default for EmulatorOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            host_threads: 1,
            memory: 1 << 30,
            multiprocessors: 4,
            lost_after: None,
            captures: true,
            flush_subnormals: false,
        }
    }
}

/// The emulated device.
pub struct EmulatedDriver {
    options: EmulatorOptions,
    info: DeviceInfo,
    launches: AtomicU64,
    handles: AtomicU64,
    emulator: Arc<Emulator>,
    state: Mutex<State>,
}

struct State {
    /// Allocations: bytes by address.
    memory: HashMap<u64, u64>,
    used: u64,
    /// Launches at the time of recording, by event.
    events: HashMap<u64, Option<u64>>,
    /// Those that measure.
    timed: HashSet<u64>,
    /// By stream.
    captures: HashMap<u64, Capture>,
    graphs: HashMap<u64, Arc<Vec<StreamOp>>>,
    pinned: Pinned,
}

impl State {
    fn new(emulator: Arc<Emulator>) -> Self {
        Self {
            memory: HashMap::new(),
            used: 0,
            events: HashMap::new(),
            timed: HashSet::new(),
            captures: HashMap::new(),
            graphs: HashMap::new(),
            pinned: Pinned::new(emulator),
        }
    }

    /// Counts `bytes` of memory as used, if they are free.
    fn claim(&mut self, bytes: u64, total: u64) -> Result<()> {
        let free = total - self.used;
        if bytes > free {
            return Err(Error::DeviceOutOfMemory { needed: bytes, free });
        }
        self.used += bytes;
        Ok(())
    }
}

impl EmulatedDriver {
    /// A device of its own, which records if the environment says so.
    pub fn new(options: EmulatorOptions) -> Self {
        let folder = trace::folder();
        Self::with(options, Emulator::new(folder.as_deref(), options.flush_subnormals))
    }

    /// A device of its own, which records in a file of `folder`.
    pub fn recording(options: EmulatorOptions, folder: &Path) -> Self {
        Self::with(options, Emulator::new(Some(folder), options.flush_subnormals))
    }

    fn with(options: EmulatorOptions, emulator: Emulator) -> Self {
        let info = DeviceInfo {
            name: format!("emulated, seed {}", options.seed),
            // What the kernels are written for at least, and its limits.
            arch: 80,
            memory: options.memory,
            multiprocessors: options.multiprocessors,
            shared_bytes: 163 << 10,
            l2_bytes: 40 << 20,
        };
        let emulator = Arc::new(emulator);
        let state = State::new(emulator.clone());
        Self {
            options,
            info,
            launches: AtomicU64::new(0),
            handles: AtomicU64::new(1),
            emulator,
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self) -> u64 {
        self.handles.fetch_add(1, Ordering::Relaxed)
    }

    fn is_lost(&self) -> bool {
        let launches = self.launches.load(Ordering::Relaxed);
        self.options.lost_after.is_some_and(|most| launches >= most)
    }

    /// An error once the device is lost, for whatever waits for it.
    fn alive(&self, operation: &str) -> Result<()> {
        match self.is_lost() {
            true => Err(Error::device(operation, "the device was lost")),
            false => Ok(()),
        }
    }

    /// # Safety
    /// That of [`Driver::launch`].
    unsafe fn run_kernel(&self, kernel: &str, shape: Launch, params: &[u8]) -> Result<()> {
        if shape.shared_bytes > self.info.shared_bytes {
            let what = format!("the device has {} bytes of shared memory", self.info.shared_bytes);
            return Err(Error::device(format!("launch {kernel} as {shape:?}"), what));
        }
        if self.is_lost() {
            return Ok(());
        }
        let launch = self.launches.fetch_add(1, Ordering::Relaxed);
        let seed = self.options.seed.wrapping_add(launch);
        // SAFETY: the caller's promise.
        unsafe { self.emulator.launch(kernel, shape, params, seed, self.options.host_threads) }
    }
}

impl Driver for EmulatedDriver {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn memory(&self) -> Result<MemoryInfo> {
        let total = self.options.memory;
        Ok(MemoryInfo { free: total - self.state().used, total })
    }

    fn alloc(&self, bytes: u64) -> Result<u64> {
        let mut state = self.state();
        state.not_capturing("allocate memory")?;
        state.claim(bytes, self.options.memory)?;
        let address = self.emulator.alloc(bytes).inspect_err(|_| state.used -= bytes)?;
        state.memory.insert(address, bytes);
        Ok(address)
    }

    unsafe fn free(&self, address: u64) {
        let mut state = self.state();
        // It spoils a capture, but there is nobody to tell.
        let _ = state.not_capturing("free memory");
        state.pinned.land_writes();
        if let Some(bytes) = state.memory.remove(&address) {
            state.used -= bytes;
            // SAFETY: `alloc` gave it, and it is freed once.
            unsafe { self.emulator.free(address) };
        }
    }

    unsafe fn write(&self, to: u64, from: &[u8], stream: RawStream) -> Result<()> {
        let mut state = self.state();
        state.not_captured(stream, "copy to the device")?;
        state.pinned.land_writes();
        // SAFETY: the caller's promise.
        unsafe { self.emulator.write(to, from) }
    }

    unsafe fn read(&self, from: u64, to: &mut [u8], stream: RawStream) -> Result<()> {
        self.alive("copy from the device")?;
        let mut state = self.state();
        state.not_captured(stream, "copy from the device")?;
        state.pinned.land_stream(stream);
        // SAFETY: the caller's promise.
        unsafe { self.emulator.read(from, to) }
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: u64, stream: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.submit(StreamOp::Copy { from, to, bytes }, stream) }
    }

    unsafe fn fill(&self, at: u64, value: u8, bytes: u64, stream: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.submit(StreamOp::Fill { at, value, bytes }, stream) }
    }

    unsafe fn launch(
        &self,
        kernel: &str,
        shape: Launch,
        params: &[u8],
        stream: RawStream,
    ) -> Result<()> {
        let (kernel, params) = (kernel.to_owned(), params.to_vec());
        // SAFETY: the caller's promise.
        unsafe { self.submit(StreamOp::Launch { kernel, shape, params }, stream) }
    }

    /// As many as the kernel's launch bounds promise, and as fit the shared memory: registers
    /// are nobody's here.
    fn resident_blocks(&self, kernel: &str, threads: u32, shared_bytes: u32) -> Result<u32> {
        let doing = || format!("count the blocks of {kernel} that fit a multiprocessor");
        let declared = emulator::declared(kernel);
        let declared = declared.ok_or_else(|| Error::device(doing(), "no such kernel"))?;
        if threads != declared.threads || shared_bytes > self.info.shared_bytes {
            let what = format!(
                "none with {threads} threads, of {}, and {shared_bytes} shared bytes, of {}",
                declared.threads, self.info.shared_bytes
            );
            return Err(Error::device(doing(), what));
        }
        // A block takes one kilobyte more than it asks for, as on real devices.
        let fit = (self.info.shared_bytes + (1 << 10)) / (shared_bytes + (1 << 10));
        Ok(declared.blocks.min(fit))
    }

    fn create_stream(&self) -> Result<RawStream> {
        Ok(RawStream(self.handle()))
    }

    unsafe fn destroy_stream(&self, stream: RawStream) {
        let mut state = self.state();
        state.captures.remove(&stream.0);
        state.pinned.land_stream(stream);
    }

    unsafe fn synchronize(&self, stream: RawStream) -> Result<()> {
        self.alive("synchronize")?;
        let mut state = self.state();
        state.not_captured(stream, "wait for the device")?;
        state.pinned.land_stream(stream);
        Ok(())
    }

    fn synchronize_all(&self) -> Result<()> {
        let mut state = self.state();
        state.not_capturing("wait for the device")?;
        state.pinned.land_all();
        Ok(())
    }

    fn create_event(&self, timed: bool) -> Result<RawEvent> {
        let event = self.handle();
        let mut state = self.state();
        state.events.insert(event, None);
        if timed {
            state.timed.insert(event);
        }
        Ok(RawEvent(event))
    }

    unsafe fn destroy_event(&self, event: RawEvent) {
        let mut state = self.state();
        state.events.remove(&event.0);
        state.timed.remove(&event.0);
        state.pinned.forget(event);
    }

    unsafe fn record(&self, event: RawEvent, stream: RawStream) -> Result<()> {
        let now = self.launches.load(Ordering::Relaxed);
        let mut state = self.state();
        state.not_captured(stream, "record an event")?;
        state.events.insert(event.0, Some(now));
        state.pinned.record(event, stream);
        Ok(())
    }

    unsafe fn wait(&self, stream: RawStream, event: RawEvent) -> Result<()> {
        let mut state = self.state();
        state.not_captured(stream, "wait for an event")?;
        // Whoever waits for this stream will have waited for the event.
        state.pinned.land_event(event);
        Ok(())
    }

    unsafe fn elapsed(&self, start: RawEvent, end: RawEvent) -> Result<Duration> {
        let mut state = self.state();
        state.not_capturing("measure time")?;
        state.pinned.land_event(end);
        if ![start, end].iter().all(|event| state.timed.contains(&event.0)) {
            return Err(Error::device("measure time", "an event is not timed"));
        }
        let at = |event: RawEvent| {
            let recorded = state.events.get(&event.0).copied().flatten();
            recorded.ok_or_else(|| Error::device("measure time", "an event was never recorded"))
        };
        Ok(Duration::from_nanos(at(end)?.saturating_sub(at(start)?)))
    }

    unsafe fn is_done(&self, event: RawEvent) -> Result<bool> {
        self.alive("ask for an event")?;
        let mut state = self.state();
        state.not_capturing("ask for an event")?;
        Ok(state.pinned.is_done(event))
    }

    unsafe fn await_event(&self, event: RawEvent) -> Result<()> {
        self.alive("wait for an event")?;
        let mut state = self.state();
        state.not_capturing("wait for an event")?;
        state.pinned.land_event(event);
        Ok(())
    }

    unsafe fn begin_capture(&self, stream: RawStream) -> Result<()> {
        self.state().begin_capture(stream)
    }

    unsafe fn end_capture(&self, stream: RawStream) -> Result<RawGraph> {
        let graph = self.handle();
        let mut state = self.state();
        let work = state.end_capture(stream)?;
        if !self.options.captures {
            return Err(Error::device("end a capture", "captures fail, as was asked for"));
        }
        state.graphs.insert(graph, work);
        Ok(RawGraph(graph))
    }

    unsafe fn launch_graph(&self, graph: RawGraph, stream: RawStream) -> Result<()> {
        const DOING: &str = "launch a graph";
        let mut state = self.state();
        state.not_captured(stream, DOING)?;
        let work = state.graphs.get(&graph.0).cloned();
        drop(state);
        let work = work.ok_or_else(|| Error::device(DOING, "there is no such graph"))?;
        // SAFETY: the caller's promise.
        work.iter().try_for_each(|work| unsafe { self.run(work, stream) })
    }

    unsafe fn destroy_graph(&self, graph: RawGraph) {
        self.state().graphs.remove(&graph.0);
    }

    fn alloc_host(&self, bytes: u64) -> Result<NonNull<u8>> {
        const DOING: &str = "allocate pinned host memory";
        self.state().not_capturing(DOING)?;
        let short = || Error::device(DOING, format!("the host lacks {bytes} bytes"));
        let layout = host_layout(bytes).ok_or_else(short)?;
        // SAFETY: the layout has a size.
        NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).ok_or_else(short)
    }

    unsafe fn free_host(&self, memory: NonNull<u8>, bytes: u64) {
        if let Some(layout) = host_layout(bytes) {
            self.state().pinned.land_all();
            // SAFETY: the caller's promise.
            unsafe { std::alloc::dealloc(memory.as_ptr(), layout) }
        }
    }

    unsafe fn write_pinned(
        &self,
        to: u64,
        from: *const u8,
        bytes: u64,
        stream: RawStream,
    ) -> Result<()> {
        let from = from.expose_provenance() as u64;
        // SAFETY: the caller's promise.
        unsafe { self.submit(StreamOp::WritePinned { to, from, bytes }, stream) }
    }

    unsafe fn read_pinned(
        &self,
        from: u64,
        to: *mut u8,
        bytes: u64,
        stream: RawStream,
    ) -> Result<()> {
        let to = to.expose_provenance() as u64;
        // SAFETY: the caller's promise.
        unsafe { self.submit(StreamOp::ReadPinned { from, to, bytes }, stream) }
    }

    fn granularity(&self) -> Result<u64> {
        Ok(GRANULARITY)
    }

    fn reserve(&self, bytes: u64) -> Result<u64> {
        self.state().not_capturing("reserve addresses")?;
        self.emulator.reserve(bytes)
    }

    unsafe fn commit(&self, address: u64, bytes: u64) -> Result<()> {
        let mut state = self.state();
        state.not_capturing("commit memory")?;
        state.claim(bytes, self.options.memory)?;
        // SAFETY: the caller's promise.
        let committed = unsafe { self.emulator.commit(address, bytes) };
        committed.inspect_err(|_| state.used -= bytes)
    }

    unsafe fn decommit(&self, address: u64, bytes: u64) {
        let mut state = self.state();
        // It spoils a capture, but there is nobody to tell.
        let _ = state.not_capturing("decommit memory");
        state.pinned.land_writes();
        state.used -= bytes;
        // SAFETY: the caller's promise.
        unsafe { self.emulator.decommit(address, bytes) }
    }

    unsafe fn release(&self, address: u64, bytes: u64) {
        // SAFETY: the caller's promise.
        unsafe { self.emulator.release(address, bytes) }
    }
}

/// Pinned memory is aligned to pages.
fn host_layout(bytes: u64) -> Option<Layout> {
    Layout::from_size_align(usize::try_from(bytes).ok()?, GRANULARITY as usize).ok()
}
