//! Buffers and weights.

use super::Capabilities;
use crate::codec::WeightType;
use crate::error::Result;
use std::ops::Range;

/// One matrix as it lies in a model file: `[rows, cols]`, row-major, each row a
/// whole number of blocks of `dtype`.
#[derive(Clone, Copy, Debug)]
pub struct MatrixBytes<'a> {
    /// Storage type.
    pub dtype: WeightType,
    /// Rows: output features.
    pub rows: usize,
    /// Columns: input features.
    pub cols: usize,
    /// The bytes.
    pub bytes: &'a [u8],
}

/// What to do with a weight's storage type at load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightPolicy {
    /// Types for which the backend has no fast path become one that it has: Q8_0 on the
    /// CPU, f16 or bf16 on a GPU.
    #[default]
    Auto,
    /// Keep the file's types; an error where the backend has no product of one.
    Keep,
    /// Everything as f32: slow, for comparisons.
    F32,
}

/// A device's memory besides the KV cache.
///
/// Buffers are `[rows, cols]`, row-major, in a type that their last writer chose;
/// operations set the number of rows of what they write.
pub trait Memory {
    /// Activations.
    type Buffer: Send;
    /// A weight matrix in the device's own form.
    type Matrix: Send + Sync;
    /// A norm's weight or a bias.
    type Vector: Send + Sync;

    /// What the device can do.
    fn capabilities(&self) -> Capabilities;
    /// Bytes that could still be allocated, where that is a limit of its own.
    fn free_memory(&self) -> Result<Option<u64>>;

    /// An empty buffer with room for `rows` rows of `cols`.
    fn buffer(&self, rows: usize, cols: usize) -> Result<Self::Buffer>;
    /// Uploads `rows.len() / cols` rows.
    fn write(&self, rows: &[f32], cols: usize, to: &mut Self::Buffer) -> Result<()>;
    /// Downloads row `row` to `out`; waits for what writes it.
    fn read_row(&self, from: &Self::Buffer, row: usize, out: &mut [f32]) -> Result<()>;
    /// Copies adjacent rows; the caller knows that they were written.
    fn rows(&self, from: &Self::Buffer, rows: Range<usize>, to: &mut Self::Buffer) -> Result<()>;

    /// Loads a matrix; several parts with equal columns are stacked by rows.
    fn matrix(&self, parts: &[MatrixBytes<'_>], policy: WeightPolicy) -> Result<Self::Matrix>;
    /// Loads a vector.
    fn vector(&self, values: &[f32]) -> Result<Self::Vector>;
    /// Bytes that a matrix keeps resident.
    fn matrix_bytes(&self, matrix: &Self::Matrix) -> u64;
}
