//! The emulated device: the same kernel sources, compiled by the host's C++
//! compiler and run thread by thread (`kernels/emulator/`). A test instrument.
//!
//! Streams are immediate: every call has done its work on return. Memory of
//! unspecified content is poisoned by the emulator, the order of threads is drawn
//! from a seed, and misuse that a real device would let pass is an error.

use super::{DeviceInfo, Driver, Launch, MemoryInfo, RawEvent, RawStream};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

// SAFETY: the declarations are those of kernels/emulator/emulator.h.
unsafe extern "C" {
    fn kvfold_emulator_launch(
        kernel: *const c_char,
        grid: *const u32,
        threads: u32,
        shared_bytes: u32,
        params: *const c_void,
        params_bytes: u64,
        seed: u64,
        host_threads: u32,
        error: *mut c_char,
        error_bytes: u64,
    ) -> c_int;
    fn kvfold_emulator_alloc(bytes: u64) -> *mut c_void;
    fn kvfold_emulator_alloc_at(address: u64, bytes: u64) -> *mut c_void;
    fn kvfold_emulator_free(memory: *mut c_void) -> c_int;
}

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
}

impl Default for EmulatorOptions {
    fn default() -> Self {
        Self { seed: 0, host_threads: 1, memory: 1 << 30, multiprocessors: 4 }
    }
}

/// The emulated device.
pub struct EmulatedDriver {
    options: EmulatorOptions,
    info: DeviceInfo,
    launches: AtomicU64,
    handles: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Allocations: bytes by address.
    memory: HashMap<u64, u64>,
    used: u64,
    /// Launches at the time of recording, by event.
    events: HashMap<u64, Option<u64>>,
}

impl EmulatedDriver {
    /// A device of its own.
    pub fn new(options: EmulatorOptions) -> Self {
        let info = DeviceInfo {
            name: format!("emulated, seed {}", options.seed),
            // What the kernels are written for at least, and its limits.
            arch: 80,
            memory: options.memory,
            multiprocessors: options.multiprocessors,
            shared_bytes: 163 << 10,
            l2_bytes: 40 << 20,
        };
        Self {
            options,
            info,
            launches: AtomicU64::new(0),
            handles: AtomicU64::new(1),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self) -> u64 {
        self.handles.fetch_add(1, Ordering::Relaxed)
    }

    /// As [`alloc`](Driver::alloc), at this address, a multiple of 64 KiB, if it and
    /// 64 KiB behind the allocation are free.
    pub(super) fn alloc_at(&self, address: u64, bytes: u64) -> Result<u64> {
        // SAFETY: it takes any address and size.
        self.enter(bytes, || unsafe { kvfold_emulator_alloc_at(address, bytes) })
    }

    fn enter(&self, bytes: u64, allocate: impl FnOnce() -> *mut c_void) -> Result<u64> {
        let mut state = self.state();
        let free = self.options.memory - state.used;
        let full = Error::DeviceOutOfMemory { needed: bytes, free };
        if bytes > free {
            return Err(full);
        }
        let address = allocate() as u64;
        if address == 0 {
            return Err(full);
        }
        state.memory.insert(address, bytes);
        state.used += bytes;
        Ok(address)
    }

    /// As [`launch`](Driver::launch); the seed that the order of threads was drawn from.
    ///
    /// # Safety
    /// As there.
    pub(super) unsafe fn launch_seeded(
        &self,
        kernel: &str,
        shape: Launch,
        params: &[u8],
    ) -> Result<u64> {
        let doing = || format!("launch {kernel} as {shape:?}");
        let name = CString::new(kernel).map_err(|_| Error::device(doing(), "no such kernel"))?;
        if shape.shared_bytes > self.info.shared_bytes {
            let what = format!("the device has {} bytes of shared memory", self.info.shared_bytes);
            return Err(Error::device(doing(), what));
        }
        let launch = self.launches.fetch_add(1, Ordering::Relaxed);
        let seed = self.options.seed.wrapping_add(launch);
        let mut text = [0u8; 1024];
        // SAFETY: all pointers live through the call, the text with its size; the
        // caller answers for what the parameters name.
        let status = unsafe {
            kvfold_emulator_launch(
                name.as_ptr(),
                shape.grid.as_ptr(),
                shape.threads,
                shape.shared_bytes,
                params.as_ptr().cast(),
                params.len() as u64,
                seed,
                self.options.host_threads,
                text.as_mut_ptr().cast(),
                text.len() as u64,
            )
        };
        if status == 0 {
            return Ok(seed);
        }
        let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
        let text = String::from_utf8_lossy(&text[..end]);
        Err(Error::device(doing(), format!("{text} (seed {seed})")))
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
        // SAFETY: it takes any size.
        self.enter(bytes, || unsafe { kvfold_emulator_alloc(bytes) })
    }

    unsafe fn free(&self, address: u64) {
        let mut state = self.state();
        if let Some(bytes) = state.memory.remove(&address) {
            state.used -= bytes;
            // SAFETY: `alloc` gave it, and it is freed once.
            let status = unsafe { kvfold_emulator_free(address as *mut c_void) };
            debug_assert_eq!(status, 0, "the emulator knows its allocations");
        }
    }

    unsafe fn write(&self, to: u64, from: &[u8], _stream: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn read(&self, from: u64, to: &mut [u8], _stream: RawStream) -> Result<()> {
        // SAFETY: the caller's promise; the emulator gave the memory some content.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: u64, _stream: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes as usize);
        }
        Ok(())
    }

    unsafe fn fill(&self, at: u64, value: u8, bytes: u64, _stream: RawStream) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::write_bytes(at as *mut u8, value, bytes as usize) };
        Ok(())
    }

    unsafe fn launch(
        &self,
        kernel: &str,
        shape: Launch,
        params: &[u8],
        _stream: RawStream,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_seeded(kernel, shape, params) }.map(drop)
    }

    fn create_stream(&self) -> Result<RawStream> {
        Ok(RawStream(self.handle()))
    }

    unsafe fn destroy_stream(&self, _stream: RawStream) {}

    unsafe fn synchronize(&self, _stream: RawStream) -> Result<()> {
        Ok(())
    }

    fn create_event(&self) -> Result<RawEvent> {
        let event = self.handle();
        self.state().events.insert(event, None);
        Ok(RawEvent(event))
    }

    unsafe fn destroy_event(&self, event: RawEvent) {
        self.state().events.remove(&event.0);
    }

    unsafe fn record(&self, event: RawEvent, _stream: RawStream) -> Result<()> {
        let now = self.launches.load(Ordering::Relaxed);
        self.state().events.insert(event.0, Some(now));
        Ok(())
    }

    unsafe fn wait(&self, _stream: RawStream, _event: RawEvent) -> Result<()> {
        Ok(())
    }

    unsafe fn elapsed(&self, start: RawEvent, end: RawEvent) -> Result<Duration> {
        let state = self.state();
        let at = |event: RawEvent| {
            let recorded = state.events.get(&event.0).copied().flatten();
            recorded.ok_or_else(|| Error::device("measure time", "an event was never recorded"))
        };
        Ok(Duration::from_nanos(at(end)?.saturating_sub(at(start)?)))
    }
}
