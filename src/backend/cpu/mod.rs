//! The CPU backend: the embedded default.
//!
//! Attention reads compressed pages in place with the widest instruction set
//! that the processor has; dense layers run on products of our own in the file's blocks,
//! and on candle's where there are none.

mod arena;
mod attention;
mod cpu_backend;
mod dense;
mod drawn;
mod kv;
mod matrix;
mod memory;
mod ops;
pub(crate) mod pool;
mod seal;
mod simd;
mod slab;
mod tensor;
mod tokens;
#[cfg(target_arch = "x86_64")]
mod vnni;
#[cfg(target_arch = "x86_64")]
mod vnni_k;

pub use cpu_backend::CpuBackend;
pub use kv::CpuArena;
pub use matrix::CpuMatrix;
pub use pool::{THREADS, set_threads, threads};
pub use simd::Level;
pub use tensor::CpuBuffer;
