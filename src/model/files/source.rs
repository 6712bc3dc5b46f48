//! Where the weights of a model come from.

use super::checkpoint::Checkpoint;
use super::tensor::RawTensor;
use crate::backend::dequantize::dequantize;
use crate::backend::{Backend, MatrixBytes, WeightPolicy};
use crate::error::{Error, Result};
use crate::model::part::Part;

/// A giver of weights: a file, or a generator for tests and benches.
pub trait Weights<B: Backend> {
    /// The matrices of these parts of a layer on the backend, stacked by rows.
    ///
    /// # Errors
    /// [`Error::NotFound`] or [`Error::BadFile`] for what it lacks; what the backend
    /// refuses.
    fn matrix(&mut self, backend: &B, layer: Option<usize>, parts: &[Part]) -> Result<B::Matrix>;

    /// The vectors of these parts of a layer on the backend, one after the other.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix).
    fn vector(&mut self, backend: &B, layer: Option<usize>, parts: &[Part]) -> Result<B::Vector>;
}

/// The weights of a file.
pub(in crate::model) struct FromCheckpoint<'a> {
    pub checkpoint: &'a Checkpoint,
    pub policy: WeightPolicy,
}

impl FromCheckpoint<'_> {
    fn tensors(&self, layer: Option<usize>, parts: &[Part]) -> Result<Vec<RawTensor<'_>>> {
        let names = self.checkpoint.config().arch.names;
        let tensor = |part: &Part| match names.hf(*part, layer) {
            Some(name) => self.checkpoint.tensor(&name),
            None => Err(Error::NotFound { what: format!("a name of {part:?}") }),
        };
        parts.iter().map(tensor).collect()
    }
}

impl<B: Backend> Weights<B> for FromCheckpoint<'_> {
    fn matrix(&mut self, backend: &B, layer: Option<usize>, parts: &[Part]) -> Result<B::Matrix> {
        let tensors = self.tensors(layer, parts)?;
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

    fn vector(&mut self, backend: &B, layer: Option<usize>, parts: &[Part]) -> Result<B::Vector> {
        let mut all = Vec::new();
        for tensor in self.tensors(layer, parts)? {
            all.extend(floats(&tensor)?);
        }
        backend.vector(&all)
    }
}

/// A tensor as f32.
fn floats(tensor: &RawTensor<'_>) -> Result<Vec<f32>> {
    let RawTensor { dtype, bytes, .. } = tensor;
    let elements = bytes.len() / dtype.block_bytes() * dtype.block_size();
    dequantize(*dtype, bytes, elements)
}
