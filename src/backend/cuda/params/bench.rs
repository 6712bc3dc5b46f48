//! What measures a device.

use bytemuck::{Pod, Zeroable};

mirror! {
    /// The exclusive or of all words of some memory.
    BenchReadParams, 24 bytes {
        /// `n_slabs` · 32 KiB.
        0 from: u64,
        /// `u32 [blocks · 8]`, one a warp.
        8 sums: u64,
        /// Slabs.
        16 n_slabs: u64,
    }
}

mirror! {
    /// Products of matrices in registers.
    BenchMmaParams, 24 bytes {
        /// `u32`: A `[4 tiles][32 lanes][4]`, then B `[4 tiles][32 lanes][2]`.
        0 operands: u64,
        /// `f32 [blocks · 256]`, one a thread.
        8 sums: u64,
        /// Of 4 × 4 products a warp.
        16 rounds: u32,
        /// 0.
        20 reserved: u32,
    }
}
