//! The emulated device, with its calls recorded in a file, so that a program built
//! under sanitizers can make them again (`kernels/emulator/replay/`). For tests.
//!
//! With `KVFOLD_EMULATOR_RECORD=FOLDER` in the environment, every device of
//! [`Device::emulated`](super::Device::emulated) leaves a trace in that folder. A
//! launch that fails is not in it: it was refused, or its test has failed.

use super::emulated::EmulatedDriver;
use super::trace::Trace;
use super::{DeviceInfo, Driver, Launch, MemoryInfo, RawEvent, RawStream};
use crate::error::Result;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const FOLDER: &str = "KVFOLD_EMULATOR_RECORD";

/// What addresses are multiples of, and the gap behind each allocation at least.
const PLACE: u64 = 64 << 10;

/// Where the next allocation of this process goes. Parameters and tables hold
/// addresses, so a replay needs the same ones: none is used twice, and they start
/// where neither programs nor sanitizers keep anything.
static NEXT: AtomicU64 = AtomicU64::new(0x3000_0000_0000);

/// The folder for traces, if the environment names one.
pub(super) fn folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).filter(|f| !f.is_empty()).map(PathBuf::from)
}

/// An emulated device that records.
pub struct RecordingDriver {
    device: EmulatedDriver,
    /// Locked while a call is made and recorded, so that both have one order.
    trace: Mutex<Trace>,
}

impl RecordingDriver {
    /// Records in a file of `folder`, named after the program and the thread: in
    /// tests, the test.
    pub fn new(device: EmulatedDriver, folder: &Path) -> Self {
        static DEVICES: AtomicU64 = AtomicU64::new(0);
        let program = std::env::current_exe().unwrap_or_default();
        let program = program.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let program = program.rsplit_once('-').map_or(&*program, |(name, _)| name);
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("thread").replace(|c: char| !c.is_alphanumeric(), "_");
        let (process, number) = (std::process::id(), DEVICES.fetch_add(1, Ordering::Relaxed));
        let path = folder.join(format!("{program}-{thread}-{process}-{number}.trace"));
        Self { device, trace: Mutex::new(Trace::new(path)) }
    }

    fn trace(&self) -> MutexGuard<'_, Trace> {
        self.trace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RecordingDriver {
    fn drop(&mut self) {
        // A trace that does not end well is refused by its readers.
        let _ = self.trace().end();
    }
}

impl Driver for RecordingDriver {
    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    fn memory(&self) -> Result<MemoryInfo> {
        self.device.memory()
    }

    fn alloc(&self, bytes: u64) -> Result<u64> {
        let mut trace = self.trace();
        let place = bytes.checked_next_multiple_of(PLACE).unwrap_or(0).saturating_add(PLACE);
        let address = self.device.alloc_at(NEXT.fetch_add(place, Ordering::Relaxed), bytes)?;
        // SAFETY: it is this call's own, and nobody knows it.
        trace.alloc(address, bytes).inspect_err(|_| unsafe { self.device.free(address) })?;
        Ok(address)
    }

    unsafe fn free(&self, address: u64) {
        // If it cannot be recorded, the trace is broken, and says so from now on.
        let _ = self.trace().free(address);
        // SAFETY: the caller's promise.
        unsafe { self.device.free(address) }
    }

    unsafe fn write(&self, to: u64, from: &[u8], stream: RawStream) -> Result<()> {
        let mut trace = self.trace();
        // SAFETY: the caller's promise.
        unsafe { self.device.write(to, from, stream)? };
        trace.write(to, from)
    }

    unsafe fn read(&self, from: u64, to: &mut [u8], stream: RawStream) -> Result<()> {
        let mut trace = self.trace();
        // SAFETY: the caller's promise.
        unsafe { self.device.read(from, to, stream)? };
        trace.read(from, to)
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: u64, stream: RawStream) -> Result<()> {
        let mut trace = self.trace();
        // SAFETY: the caller's promise.
        unsafe { self.device.copy(from, to, bytes, stream)? };
        trace.copy(from, to, bytes)
    }

    unsafe fn fill(&self, at: u64, value: u8, bytes: u64, stream: RawStream) -> Result<()> {
        let mut trace = self.trace();
        // SAFETY: the caller's promise.
        unsafe { self.device.fill(at, value, bytes, stream)? };
        trace.fill(at, value, bytes)
    }

    unsafe fn launch(
        &self,
        kernel: &str,
        shape: Launch,
        params: &[u8],
        _stream: RawStream,
    ) -> Result<()> {
        let mut trace = self.trace();
        // SAFETY: the caller's promise.
        let seed = unsafe { self.device.launch_seeded(kernel, shape, params)? };
        trace.launch(kernel, shape, params, seed)
    }

    fn create_stream(&self) -> Result<RawStream> {
        self.device.create_stream()
    }

    unsafe fn destroy_stream(&self, stream: RawStream) {
        // SAFETY: the caller's promise.
        unsafe { self.device.destroy_stream(stream) }
    }

    unsafe fn synchronize(&self, stream: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.device.synchronize(stream) }
    }

    fn create_event(&self) -> Result<RawEvent> {
        self.device.create_event()
    }

    unsafe fn destroy_event(&self, event: RawEvent) {
        // SAFETY: the caller's promise.
        unsafe { self.device.destroy_event(event) }
    }

    unsafe fn record(&self, event: RawEvent, stream: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.device.record(event, stream) }
    }

    unsafe fn wait(&self, stream: RawStream, event: RawEvent) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.device.wait(stream, event) }
    }

    unsafe fn elapsed(&self, start: RawEvent, end: RawEvent) -> Result<Duration> {
        // SAFETY: the caller's promise.
        unsafe { self.device.elapsed(start, end) }
    }
}
