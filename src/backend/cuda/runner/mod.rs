//! The CUDA backend: whole models on one device and one stream.
//!
//! Weights, activations and new KV rows are `T` (f16 or bf16); the residual stream,
//! norms' weights, biases and logits are f32. What comes from the host goes up when a
//! step begins; everything else of a step is enqueued, and a step of single tokens is
//! captured once for each number of sequences and repeated from then on.

mod arena;
mod attention;
mod begun;
mod buffer;
mod dense;
mod kv;
mod memory;
mod repeat;
mod score;
mod slots;
mod tokens;

pub use arena::Arena;
pub use buffer::Buffer;

use super::append::Element;
use super::gemm::{Gemm, GemmShape, Output};
use super::weights::{Matrix, Uploader};
use crate::backend::driver::{Device, DeviceBuffer, DeviceStream};
use crate::error::{Error, Result};
use repeat::Repeats;
use slots::Slots;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device, its stream, and what its models share.
pub struct CudaBackend<T> {
    stream: Arc<DeviceStream>,
    gemm: Mutex<Gemm>,
    uploader: Mutex<Uploader<T>>,
    slots: Slots,
    repeats: Repeats,
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

    /// The device.
    pub fn device(&self) -> &Device {
        self.stream.device()
    }

    fn multiply<Out: Output<T>>(
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

fn check_rows<T: Element>(
    name: &'static str,
    x: &Buffer<T>,
    rows: usize,
    cols: usize,
) -> Result<()> {
    if x.rows() >= rows && x.cols() >= cols {
        return Ok(());
    }
    let has = format!("[{}, {}]", x.rows(), x.cols());
    Err(Error::misuse(name, format!("{has} does not hold the step's [{rows}, {cols}]")))
}

fn lock<X>(mutex: &Mutex<X>) -> MutexGuard<'_, X> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
