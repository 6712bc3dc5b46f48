//! A handle to a device.

use super::raw::{DeviceInfo, Driver, Launch, MemoryInfo};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A device: a cheap handle, shared by what was allocated on it.
#[derive(Clone)]
pub struct Device(Arc<Shared<dyn Driver>>);

struct Shared<D: ?Sized> {
    changes: AtomicU64,
    takes_subnormals: OnceLock<bool>,
    /// What the driver said of kernels: by name, threads and bytes of shared memory.
    resident: Mutex<HashMap<(String, u32, u32), u32>>,
    driver: D,
}

impl Device {
    /// CUDA device number `ordinal`, in its primary context.
    ///
    /// # Errors
    /// [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::NoKernelForArch`];
    /// [`Error::Unsupported`] if the build has no CUDA.
    #[cfg(feature = "cuda")]
    pub fn cuda(ordinal: usize) -> Result<Self> {
        Ok(Self::new(super::cuda::CudaDriver::open(ordinal)?))
    }

    /// CUDA device number `ordinal`, in its primary context.
    ///
    /// # Errors
    /// [`Error::Unsupported`]: this build has no CUDA.
    #[cfg(not(feature = "cuda"))]
    pub fn cuda(_ordinal: usize) -> Result<Self> {
        Err(no_cuda())
    }

    /// A CUDA context that somebody else owns, to work on their memory and on
    /// their streams ([`borrow_stream`](Self::borrow_stream)). It is made current
    /// during calls only; the thread's own current context is restored.
    ///
    /// # Errors
    /// As [`cuda`](Self::cuda).
    ///
    /// # Safety
    /// `context` is a live `CUcontext`. It outlives the device, its buffers and
    /// its streams.
    #[cfg(feature = "cuda")]
    pub unsafe fn borrow_cuda(context: *mut c_void) -> Result<Self> {
        // SAFETY: the caller's promise.
        Ok(Self::new(unsafe { super::cuda::CudaDriver::borrow(context)? }))
    }

    /// A CUDA context that somebody else owns.
    ///
    /// # Errors
    /// [`Error::Unsupported`]: this build has no CUDA.
    ///
    /// # Safety
    /// None is needed in this build.
    #[cfg(not(feature = "cuda"))]
    pub unsafe fn borrow_cuda(_context: *mut c_void) -> Result<Self> {
        Err(no_cuda())
    }

    /// The emulated device: kernels run on the host. For tests.
    #[cfg(feature = "emulator")]
    pub fn emulated(options: super::emulated::EmulatorOptions) -> Self {
        Self::new(super::emulated::EmulatedDriver::new(options))
    }

    /// A device of any driver.
    pub fn new(driver: impl Driver + 'static) -> Self {
        Self(Arc::new(Shared {
            changes: AtomicU64::new(0),
            takes_subnormals: OnceLock::new(),
            resident: Mutex::default(),
            driver,
        }))
    }

    /// What the device is.
    pub fn info(&self) -> &DeviceInfo {
        self.0.driver.info()
    }

    /// Its memory now.
    pub fn memory(&self) -> Result<MemoryInfo> {
        self.0.driver.memory()
    }

    /// How many times a buffer was allocated or freed through this handle and its clones:
    /// as long as it stays the same, addresses mean what they meant.
    pub fn changes(&self) -> u64 {
        self.0.changes.load(Ordering::Relaxed)
    }

    /// Whether its tensor cores take f16 subnormals in full, once that was asked
    /// (`backend/cuda/subnormal.rs`).
    pub(in crate::backend) fn takes_subnormals(&self) -> &OnceLock<bool> {
        &self.0.takes_subnormals
    }

    /// Blocks of a kernel that the whole device holds at once, if they are launched with this
    /// shape, whose grid counts for nothing: as the driver knows it, which is asked once.
    ///
    /// # Errors
    /// There is no such kernel, or not even one block fits.
    pub fn resident_blocks(&self, kernel: &str, shape: Launch) -> Result<u32> {
        let key = (kernel.to_owned(), shape.threads, shape.shared_bytes);
        let mut known = self.0.resident.lock().unwrap_or_else(PoisonError::into_inner);
        let blocks = match known.get(&key) {
            Some(blocks) => *blocks,
            None => {
                let (_, threads, shared) = key;
                let blocks = self.driver().resident_blocks(kernel, threads, shared)?;
                known.insert(key, blocks);
                blocks
            }
        };
        Ok(blocks * self.info().multiprocessors)
    }

    pub(super) fn allocate(&self, bytes: u64) -> Result<u64> {
        let address = self.driver().alloc(bytes)?;
        self.0.changes.fetch_add(1, Ordering::Relaxed);
        Ok(address)
    }

    /// # Safety
    /// That of [`Driver::free`].
    pub(super) unsafe fn release(&self, address: u64) {
        self.0.changes.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { self.driver().free(address) }
    }

    /// The driver beneath.
    pub fn driver(&self) -> &dyn Driver {
        &self.0.driver
    }

    /// Whether both handles are of one device.
    pub fn is(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// An error unless both handles are of one device.
    pub(super) fn expect(&self, other: &Device, operation: &str) -> Result<()> {
        match self.is(other) {
            true => Ok(()),
            false => Err(Error::device(operation, "the stream or buffer is of another device")),
        }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Device").field(self.info()).finish()
    }
}

#[cfg(not(feature = "cuda"))]
fn no_cuda() -> Error {
    Error::Unsupported {
        what: "CUDA in this build".into(),
        remedy: "build kvfold with `--features cuda`, or use the CPU".into(),
    }
}
