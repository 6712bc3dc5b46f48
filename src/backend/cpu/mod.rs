//! The CPU backend: the embedded default.
//!
//! Attention reads compressed pages in place with the widest instruction set
//! that the processor has; dense layers run on products of our own in the file's blocks,
//! and on candle's where there are none.

mod arena;
mod attention;
mod dense;
mod kv;
mod matrix;
mod memory;
mod ops;
pub(super) mod pool;
mod seal;
mod simd;
mod slab;
mod slots;
mod tensor;
mod tokens;
#[cfg(target_arch = "x86_64")]
mod vnni;
#[cfg(target_arch = "x86_64")]
mod vnni_k;

use slots::Slots;

pub use kv::Arena;
pub use matrix::Matrix;
pub use pool::{THREADS, set_threads};
pub use simd::Level;
pub use tensor::Buffer;

/// Threads that the CPU backend uses, the calling one included.
pub fn threads() -> usize {
    pool::threads()
}

/// An instruction set, and the tokens drawn.
pub struct CpuBackend {
    level: Level,
    slots: Slots,
}

impl CpuBackend {
    /// A backend at the processor's best level.
    pub fn new() -> Self {
        Self::with_level(Level::best())
    }

    /// A backend at a given level; one that the processor lacks runs portably.
    pub fn with_level(level: Level) -> Self {
        Self { level, slots: Slots::default() }
    }
}

impl Default for CpuBackend {
    fn default() -> Self {
        Self::new()
    }
}
