//! Where the weights of a model come from.

use super::{Checkpoint, RawTensor};
use crate::backend::dequantize::dequantize;
use crate::backend::{Backend, MatrixBytes, WeightPolicy};
use crate::error::Result;

/// A giver of weights, asked by Hugging Face's names: a file, or a generator for tests
/// and benches.
pub trait Weights<B: Backend> {
    /// The matrices of these names on the backend, stacked by rows.
    ///
    /// # Errors
    /// [`Error::NotFound`](crate::Error::NotFound) or
    /// [`Error::BadFile`](crate::Error::BadFile) for what it lacks; what the backend
    /// refuses.
    fn matrix(&mut self, backend: &B, names: &[String]) -> Result<B::Matrix>;

    /// The vectors of these names on the backend, one after the other.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix).
    fn vector(&mut self, backend: &B, names: &[String]) -> Result<B::Vector>;
}

/// The weights of a file.
pub(super) struct FromCheckpoint<'a> {
    pub checkpoint: &'a Checkpoint,
    pub policy: WeightPolicy,
}

impl<B: Backend> Weights<B> for FromCheckpoint<'_> {
    fn matrix(&mut self, backend: &B, names: &[String]) -> Result<B::Matrix> {
        let tensor = |name: &String| self.checkpoint.tensor(name);
        let tensors = names.iter().map(tensor).collect::<Result<Vec<_>>>()?;
        let parts: Vec<_> = (tensors.iter())
            .map(|t| MatrixBytes {
                dtype: t.dtype,
                rows: t.shape[0],
                cols: t.shape[1],
                bytes: &t.bytes,
            })
            .collect();
        backend.matrix(&parts, self.policy)
    }

    fn vector(&mut self, backend: &B, names: &[String]) -> Result<B::Vector> {
        let mut all = Vec::new();
        for name in names {
            all.extend(floats(self.checkpoint, name)?);
        }
        backend.vector(&all)
    }
}

/// Reads one tensor as f32.
fn floats(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>> {
    let RawTensor { dtype, bytes, .. } = checkpoint.tensor(name)?;
    let elements = bytes.len() / dtype.block_bytes() * dtype.block_size();
    dequantize(dtype, &bytes, elements)
}
