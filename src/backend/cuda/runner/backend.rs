//! The device and the stream that all traits work on.

use super::arena::Arena;
use super::buffer::Buffer;
use super::repeat::Repeats;
use super::slots::Slots;
use crate::backend::cuda::element::{Element, Output};
use crate::backend::cuda::gemm::{Gemm, GemmShape};
use crate::backend::cuda::weights::{Matrix, Uploader};
use crate::backend::driver::{Device, DeviceBuffer, DeviceStream};
use crate::error::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device, its stream, and what its models share.
pub struct CudaBackend<T> {
    pub(super) stream: Arc<DeviceStream>,
    pub(super) gemm: Mutex<Gemm>,
    pub(super) uploader: Mutex<Uploader<T>>,
    pub(super) slots: Slots,
    pub(super) repeats: Repeats,
    pub(super) canaries: bool,
}

impl<T: Element> CudaBackend<T> {
    /// A backend on a device.
    ///
    /// # Errors
    /// [`Error::NoCublasLt`] on a CUDA device without the library;
    /// [`Error::DeviceOutOfMemory`].
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            stream: Arc::new(device.stream()?),
            gemm: Mutex::new(Gemm::new(device)?),
            uploader: Mutex::default(),
            slots: Slots::new(device)?,
            repeats: Repeats::default(),
            canaries: false,
        })
    }

    /// Steps that were done by launching a captured one.
    pub fn repeated(&self) -> u64 {
        self.repeats.repeated
    }

    /// Whether steps of single tokens are captured and repeated, as they are unless this
    /// says otherwise; without, the host launches each kernel of each step. Results are
    /// the same: this is for measuring what capturing saves, and for debuggers.
    ///
    /// # Errors
    /// Of a device that was lost.
    pub fn set_capturing(&mut self, capturing: bool) -> Result<()> {
        self.repeats.captures = capturing;
        self.repeats.forget(&self.stream)
    }

    /// Lets arenas that are made from now on have canaries, for tests:
    /// [`Arenas::with_canaries`](crate::backend::cuda::arenas::Arenas::with_canaries).
    #[doc(hidden)]
    pub fn set_canaries(&mut self) {
        self.canaries = true;
    }

    /// Whether nothing was written behind any block in use.
    ///
    /// # Errors
    /// [`Error::Device`] that names the first byte that was written.
    #[doc(hidden)]
    pub fn check_canaries(&self, arena: &Arena) -> Result<()> {
        arena.arenas.check_canaries(&self.stream)
    }

    /// The device.
    pub fn device(&self) -> &Device {
        self.stream.device()
    }

    pub(super) fn multiply<Out: Output<T>>(
        &self,
        matrix: &Matrix<T>,
        x: &Buffer<T>,
        y: &mut DeviceBuffer<Out>,
    ) -> Result<()> {
        let (n, k) = (matrix.rows(), matrix.cols());
        if x.cols() != k {
            return Err(Error::misuse("matmul", format!("rows of {}, not {k}", x.cols())));
        }
        let shape = GemmShape { rows: x.rows(), n, k };
        lock(&self.gemm).matmul(x.narrow()?, matrix.data(), y, shape, &self.stream)
    }
}

impl<T> Drop for CudaBackend<T> {
    fn drop(&mut self) {
        // Kernels may still use what is freed next. If the device is lost, nothing does.
        let _ = self.stream.synchronize();
    }
}

pub(super) fn lock<X>(mutex: &Mutex<X>) -> MutexGuard<'_, X> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
