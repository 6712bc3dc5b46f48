//! Where the weights of a model come from.

use super::checkpoint::Checkpoint;
use super::tensor::RawTensor;
use crate::backend::cpu::pool::parallel_for;
use crate::backend::dequantize::dequantize;
use crate::backend::finite::first_not_finite;
use crate::backend::{Backend, MatrixBytes, WeightPolicy};
use crate::error::{Error, Result};
use crate::model::part::Part;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Bytes of a tensor that a thread looks through at a time, about.
const STRIPE: usize = 1 << 18;

impl FromCheckpoint<'_> {
    /// The tensors of parts, and their names.
    ///
    /// # Errors
    /// Also for a number that is not finite: a repack would make 0 of it, or of its block, and
    /// the answer would look clean.
    fn tensors(
        &self,
        layer: Option<usize>,
        parts: &[Part],
    ) -> Result<Vec<(String, RawTensor<'_>)>> {
        let names = self.checkpoint.config().arch.names;
        let tensor = |part: &Part| {
            let name = names.hf(*part, layer);
            let name =
                name.ok_or_else(|| Error::NotFound { what: format!("a name of {part:?}") })?;
            let tensor = self.checkpoint.tensor(&name)?;
            let own = self.checkpoint.own_name(&name);
            match is_finite(&tensor) {
                true => Ok((own, tensor)),
                false => Err(self.checkpoint.bad(format!(
                    "tensor \"{own}\" holds NaN or an infinity: the file is damaged, or the \
                     model broke in training or conversion"
                ))),
            }
        };
        parts.iter().map(tensor).collect()
    }
}

/// Whether all numbers of a tensor are finite.
fn is_finite(tensor: &RawTensor<'_>) -> bool {
    let stripe = STRIPE / tensor.dtype.block_bytes() * tensor.dtype.block_bytes();
    let stripes: Vec<_> = tensor.bytes.chunks(stripe).collect();
    let bad = AtomicBool::new(false);
    parallel_for(stripes.len(), |i| {
        if first_not_finite(tensor.dtype, stripes[i]).is_some() {
            bad.store(true, Ordering::Relaxed);
        }
    });
    !bad.into_inner()
}

impl<B: Backend> Weights<B> for FromCheckpoint<'_> {
    fn matrix(&mut self, backend: &B, layer: Option<usize>, parts: &[Part]) -> Result<B::Matrix> {
        let tensors = self.tensors(layer, parts)?;
        let parts: Vec<_> = (tensors.iter())
            .map(|(_, t)| MatrixBytes {
                dtype: t.dtype,
                rows: t.shape[0],
                cols: t.shape[1],
                bytes: &t.bytes,
            })
            .collect();
        backend.matrix(&parts, self.policy).map_err(|error| match error {
            Error::Unsupported { what, remedy } => {
                let names: Vec<_> = tensors.iter().map(|(name, _)| name.as_str()).collect();
                let what = format!("tensor \"{}\": {what}", names.join("\", \""));
                Error::Unsupported { what, remedy }
            }
            other => other,
        })
    }

    fn vector(&mut self, backend: &B, layer: Option<usize>, parts: &[Part]) -> Result<B::Vector> {
        let mut all = Vec::new();
        for (_, tensor) in self.tensors(layer, parts)? {
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
