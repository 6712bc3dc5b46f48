//! How a block joins the residual stream.

use crate::backend::Backend;
use crate::error::Result;

/// What a block adds to the residual stream: `x` through its last projection, and through
/// the norm behind that, if it has one. Before a norm numbers may be large, so they stay in
/// f32 in `wide`.
pub(super) fn contribute<B: Backend>(
    backend: &B,
    projection: &B::Matrix,
    norm: Option<&B::Vector>,
    eps: f32,
    x: &mut B::Buffer,
    wide: &mut B::Buffer,
    delta: &mut B::Buffer,
) -> Result<()> {
    let Some(norm) = norm else { return backend.matmul(projection, x, delta) };
    backend.matmul_f32(projection, x, wide)?;
    backend.rms_norm(wide, None, norm, eps, delta)
}
