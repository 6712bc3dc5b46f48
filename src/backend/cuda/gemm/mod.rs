//! Matrix products: `y = x · wᵀ`, in f32, of 16-bit matrices.
//!
//! CUDA devices multiply by cuBLASLt, which is loaded at run time: the linker's way, or
//! from the file or folder that `KVFOLD_CUBLASLT` names. Devices that are not CUDA, of
//! which there is the emulated one, run a plain loop, `kernels/dense/gemm.cu`. Neither
//! ever stands in for the other.
//!
//! What is promised of cuBLASLt: a product is computed by one algorithm for as long as
//! its [`Gemm`] lives, chosen by the shape and the types; split sums are added up in f32
//! in a step of their own, not through atomics or in 16 bits; so the same call gives the
//! same bits on devices of one kind with one version of the library. The bits of a row
//! may change with the number of rows. Those of the plain loop do not.

#[cfg(feature = "cuda")]
mod cublaslt;
#[cfg(feature = "cuda")]
mod library;
mod plain;
mod problem;

#[cfg(feature = "cuda")]
pub use library::describe as describe_cublaslt;
pub use problem::GemmShape;

use super::element::{Element, Output};
use crate::backend::driver::{Device, DeviceBuffer, DeviceStream, RawStream};
use crate::error::{Error, Result};
use bytemuck::Pod;
use problem::{ALIGNMENT, Operands, Problem};

/// Multiplies matrices on one device and one stream, since products share a workspace.
pub struct Gemm {
    device: Device,
    stream: Option<RawStream>,
    provider: Provider,
}

enum Provider {
    Plain,
    #[cfg(feature = "cuda")]
    CublasLt(Box<cublaslt::CublasLt>),
}

impl Gemm {
    /// The device's way of multiplying. cuBLASLt's workspace is allocated here, once.
    ///
    /// # Errors
    /// [`Error::NoCublasLt`] on a CUDA device without the library;
    /// [`Error::DeviceOutOfMemory`].
    pub fn new(device: &Device) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if device.driver().cuda_context().is_some() {
            let provider = Provider::CublasLt(Box::new(cublaslt::CublasLt::new(device)?));
            return Ok(Self { device: device.clone(), stream: None, provider });
        }
        Ok(Self::plain(device))
    }

    /// The plain loop, on any device: slow, to compare with.
    pub fn plain(device: &Device) -> Self {
        Self { device: device.clone(), stream: None, provider: Provider::Plain }
    }

    /// How it multiplies, in words.
    pub fn name(&self) -> String {
        match &self.provider {
            Provider::Plain => "a plain loop".into(),
            #[cfg(feature = "cuda")]
            Provider::CublasLt(cublaslt) => format!("cuBLASLt {}", cublaslt.name()),
        }
    }

    /// Chooses the algorithm of a shape, which the first product of it does otherwise.
    /// Products of prepared shapes only enqueue work, so that a stream can be captured;
    /// one product of each should have run before, since CUDA loads kernels when they
    /// are first launched.
    ///
    /// # Errors
    /// [`Error::Misuse`] for a shape that does not exist; [`Error::Device`] if the
    /// library has no algorithm for it.
    pub fn prepare<T: Element, Out: Output<T>>(&mut self, shape: GemmShape) -> Result<()> {
        let problem = Problem::new::<T, Out>(shape)?;
        if problem.is_empty() {
            return Ok(());
        }
        match &mut self.provider {
            Provider::Plain => Ok(()),
            #[cfg(feature = "cuda")]
            Provider::CublasLt(cublaslt) => cublaslt.prepare(problem),
        }
    }

    /// Enqueues `y = x · wᵀ`: `x [rows][k]`, `w [n][k]` and `y [rows][n]` at the front of
    /// their buffers. Nothing else of the buffers is read or written.
    ///
    /// # Errors
    /// [`Error::Misuse`] if a buffer is too short, begins at no multiple of 16 bytes, or
    /// is of another device, or if the stream is not that of the first product;
    /// [`Error::Device`] if the library refuses.
    pub fn matmul<T: Element, Out: Output<T>>(
        &mut self,
        x: &DeviceBuffer<T>,
        w: &DeviceBuffer<T>,
        y: &mut DeviceBuffer<Out>,
        shape: GemmShape,
        stream: &DeviceStream,
    ) -> Result<()> {
        let problem = Problem::new::<T, Out>(shape)?;
        if problem.is_empty() {
            return Ok(());
        }
        let GemmShape { rows, n, k } = shape;
        self.check("x", x, rows, k)?;
        self.check("w", w, n, k)?;
        self.check("y", y, rows, n)?;
        if !self.device.is(stream.device()) {
            return Err(Error::misuse("gemm", "the stream is of another device"));
        }
        if *self.stream.get_or_insert(stream.raw()) != stream.raw() {
            let what = "products share a workspace and stay on the stream of the first one";
            return Err(Error::misuse("gemm", what));
        }
        let at = Operands { x: x.address(), w: w.address(), y: y.address() };
        match &mut self.provider {
            Provider::Plain => plain::multiply(&problem, at, stream),
            #[cfg(feature = "cuda")]
            Provider::CublasLt(cublaslt) => cublaslt.multiply(problem, at, stream),
        }
    }

    /// An error unless a buffer of the device begins with `rows × cols` elements.
    fn check<E: Pod>(
        &self,
        name: &str,
        buffer: &DeviceBuffer<E>,
        rows: usize,
        cols: usize,
    ) -> Result<()> {
        let wrong = if !self.device.is(buffer.device()) {
            format!("{name} is of another device")
        } else if rows.checked_mul(cols).is_none_or(|needed| needed > buffer.len()) {
            format!("{name} has {} elements, not {rows}×{cols}", buffer.len())
        } else if !buffer.address().is_multiple_of(ALIGNMENT as u64) {
            format!("{name} begins at {:#x}, no multiple of {ALIGNMENT}", buffer.address())
        } else {
            return Ok(());
        };
        Err(Error::misuse("gemm", wrong))
    }
}
