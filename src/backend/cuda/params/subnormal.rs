//! What asks a device for f16 subnormals.

use bytemuck::{Pod, Zeroable};

mirror! {
    /// Products of f16 matrices, one a warp, and of f16 numbers, a pair a thread.
    SubnormalParams, 40 bytes {
        /// `u32`: A `[n_matrices][32 lanes][4]`, then B `[n_matrices][32 lanes][2]`.
        0 operands: u64,
        /// `f32 [n_matrices][32 lanes][4]`: read, and A · B added.
        8 sums: u64,
        /// `u32 [n_pairs][2]`: pairs of f16.
        16 factors: u64,
        /// `u32 [n_pairs]`.
        24 products: u64,
        /// Products of matrices.
        32 n_matrices: u32,
        /// Products of pairs.
        36 n_pairs: u32,
    }
}
