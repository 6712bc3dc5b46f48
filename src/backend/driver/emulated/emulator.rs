//! The emulator itself (`kernels/emulator/`): everything is done at once, and entered
//! in a trace if there is one.
//!
//! What others may depend on was entered before its call returns, so that calls stand
//! in an order in which they can be made again.

use super::trace::Trace;
use crate::backend::driver::Launch;
use crate::error::{Error, Result};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

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
        flush_subnormals: u32,
        error: *mut c_char,
        error_bytes: u64,
    ) -> c_int;
    fn kvfold_emulator_alloc(bytes: u64) -> *mut c_void;
    fn kvfold_emulator_alloc_at(address: u64, bytes: u64) -> *mut c_void;
    fn kvfold_emulator_free(memory: *mut c_void) -> c_int;
    fn kvfold_emulator_reserve(address: u64, bytes: u64) -> *mut c_void;
    fn kvfold_emulator_commit(address: *mut c_void, bytes: u64) -> c_int;
    fn kvfold_emulator_decommit(address: *mut c_void, bytes: u64) -> c_int;
    fn kvfold_emulator_release(address: *mut c_void, bytes: u64) -> c_int;
    fn kvfold_emulator_kernel(index: u32, kernel: *mut Declared) -> c_int;
}

/// What a kernel's source says of it: `KvfoldEmulatorKernel` of kernels/emulator/emulator.h.
#[repr(C)]
pub(super) struct Declared {
    name: *const c_char,
    params_bytes: u64,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks that fit a multiprocessor at once, at least.
    pub blocks: u32,
}

/// What the source of the kernel called `name` says, if there is one.
pub(super) fn declared(name: &str) -> Option<Declared> {
    let mut kernel = Declared { name: std::ptr::null(), params_bytes: 0, threads: 0, blocks: 0 };
    // SAFETY: any index may be asked for; past the last one nothing is written.
    let more =
        |index: &u32, kernel: &mut Declared| unsafe { kvfold_emulator_kernel(*index, kernel) } == 0;
    for index in 0.. {
        if !more(&index, &mut kernel) {
            break;
        }
        // SAFETY: names are string literals.
        if unsafe { CStr::from_ptr(kernel.name) }.to_bytes() == name.as_bytes() {
            return Some(kernel);
        }
    }
    None
}

/// What addresses in traces are multiples of, and the gap behind each range at least.
const PLACE: u64 = 64 << 10;

/// Where the next range of this process goes that a trace will name. Parameters and
/// tables hold addresses, so a replay needs the same ones: none is used twice, and they
/// lie where neither programs nor sanitizers keep anything.
static NEXT: AtomicU64 = AtomicU64::new(0x3000_0000_0000);
const END: u64 = 0x5000_0000_0000;

/// Memory and kernels. Addresses are the host's.
///
/// # Safety of all unsafe functions
/// That of [`Driver`](crate::backend::driver::Driver).
pub(super) struct Emulator {
    trace: Option<Mutex<Trace>>,
    flush_subnormals: bool,
}

impl Emulator {
    /// With a trace in a file of `folder`, if there is one. With `flush_subnormals` there is
    /// none: a replay would not flush them.
    pub fn new(folder: Option<&Path>, flush_subnormals: bool) -> Self {
        let folder = folder.filter(|_| !flush_subnormals);
        Self { trace: folder.map(|folder| Mutex::new(Trace::new(folder))), flush_subnormals }
    }

    /// Enters what was done. Where nobody can be told that it failed, the next caller is:
    /// a broken trace stays broken.
    fn record(&self, enter: impl FnOnce(&mut Trace) -> Result<()>) -> Result<()> {
        let Some(trace) = &self.trace else { return Ok(()) };
        enter(&mut trace.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where a range goes; 0: anywhere.
    fn place(&self, bytes: u64) -> Result<u64> {
        if self.trace.is_none() {
            return Ok(0);
        }
        let after = |at: u64| {
            let end = at.checked_add(bytes)?.checked_next_multiple_of(PLACE)?;
            Some(end + PLACE).filter(|next| *next <= END)
        };
        let place = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after);
        place.map_err(|_| Error::device("record", format!("no addresses left for {bytes} bytes")))
    }

    /// Memory of this size, filled with 0xff.
    pub fn alloc(&self, bytes: u64) -> Result<u64> {
        // SAFETY: they take any address and size.
        let memory = unsafe {
            match self.place(bytes)? {
                0 => kvfold_emulator_alloc(bytes),
                place => kvfold_emulator_alloc_at(place, bytes),
            }
        };
        let address = memory as u64;
        if address == 0 {
            return Err(Error::DeviceOutOfMemory { needed: bytes, free: 0 });
        }
        let recorded = self.record(|trace| trace.alloc(address, bytes));
        // SAFETY: it is this call's own, and nobody knows it.
        recorded.inspect_err(|_| unsafe { self.free(address) })?;
        Ok(address)
    }

    /// Frees what [`alloc`](Self::alloc) gave.
    pub unsafe fn free(&self, address: u64) {
        let _ = self.record(|trace| trace.free(address));
        // SAFETY: `alloc` gave it, and it is freed once.
        let status = unsafe { kvfold_emulator_free(address as *mut c_void) };
        debug_assert_eq!(status, 0, "the emulator knows its allocations");
    }

    /// Copies to the device.
    pub unsafe fn write(&self, to: u64, from: &[u8]) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        self.record(|trace| trace.write(to, from))
    }

    /// Copies from the device.
    pub unsafe fn read(&self, from: u64, to: &mut [u8]) -> Result<()> {
        // SAFETY: the caller's promise; the emulator gave the memory some content.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        self.record(|trace| trace.read(from, to))
    }

    /// Copies within the device.
    pub unsafe fn copy(&self, from: u64, to: u64, bytes: u64) -> Result<()> {
        let (source, target) = (from as *const u8, to as *mut u8);
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(source, target, bytes as usize) };
        self.record(|trace| trace.copy(from, to, bytes))
    }

    /// Sets bytes.
    pub unsafe fn fill(&self, at: u64, value: u8, bytes: u64) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::write_bytes(at as *mut u8, value, bytes as usize) };
        self.record(|trace| trace.fill(at, value, bytes))
    }

    /// Runs a kernel to its end, in the order of threads that `seed` decides.
    pub unsafe fn launch(
        &self,
        kernel: &str,
        shape: Launch,
        params: &[u8],
        seed: u64,
        host_threads: u32,
    ) -> Result<()> {
        let doing = || format!("launch {kernel} as {shape:?}");
        let name = CString::new(kernel).map_err(|_| Error::device(doing(), "no such kernel"))?;
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
                host_threads,
                self.flush_subnormals.into(),
                text.as_mut_ptr().cast(),
                text.len() as u64,
            )
        };
        if status == 0 {
            return self.record(|trace| trace.launch(kernel, shape, params, seed));
        }
        let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
        let text = String::from_utf8_lossy(&text[..end]);
        Err(Error::device(doing(), format!("{text} (seed {seed})")))
    }

    /// Addresses without memory.
    pub fn reserve(&self, bytes: u64) -> Result<u64> {
        // SAFETY: it takes any address and size.
        let address = unsafe { kvfold_emulator_reserve(self.place(bytes)?, bytes) } as u64;
        if address == 0 {
            let what = format!("{bytes} bytes of them are not to be had");
            return Err(Error::device("reserve addresses", what));
        }
        let recorded = self.record(|trace| trace.reserve(address, bytes));
        // SAFETY: it is this call's own, and nobody knows it.
        recorded.inspect_err(|_| unsafe { self.release(address, bytes) })?;
        Ok(address)
    }

    /// Puts memory, filled with 0xff, behind a part of a reserved range.
    pub unsafe fn commit(&self, address: u64, bytes: u64) -> Result<()> {
        // SAFETY: the caller's promise.
        if unsafe { kvfold_emulator_commit(address as *mut c_void, bytes) } != 0 {
            let what = "the host refuses, or it was committed before";
            return Err(Error::device("commit memory", what));
        }
        let recorded = self.record(|trace| trace.commit(address, bytes));
        // SAFETY: it was given right now.
        recorded.inspect_err(|_| unsafe { self.decommit(address, bytes) })
    }

    /// Takes the memory away again.
    pub unsafe fn decommit(&self, address: u64, bytes: u64) {
        let _ = self.record(|trace| trace.decommit(address, bytes));
        // SAFETY: the caller's promise.
        let status = unsafe { kvfold_emulator_decommit(address as *mut c_void, bytes) };
        debug_assert_eq!(status, 0, "the emulator knows what is committed");
    }

    /// Gives a reserved range up.
    pub unsafe fn release(&self, address: u64, bytes: u64) {
        let _ = self.record(|trace| trace.release(address, bytes));
        // SAFETY: the caller's promise.
        let status = unsafe { kvfold_emulator_release(address as *mut c_void, bytes) };
        debug_assert_eq!(status, 0, "the host knows its addresses");
    }
}
