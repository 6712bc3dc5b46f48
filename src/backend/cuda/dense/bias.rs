//! Launches `kernels/dense/bias.cu`.

use super::shapes::Shapes;
use crate::backend::cuda::element::Element;
use crate::backend::cuda::params::BiasParams;
use crate::backend::driver::{DeviceBuffer, DeviceStream};
use crate::error::Result;

/// `x += bias` on each of the first `rows` rows; their length is the bias's, a multiple
/// of 8.
///
/// # Errors
/// [`Error::Misuse`](crate::Error::Misuse) if a shape does not fit.
pub fn add_bias<T: Element>(
    x: &mut DeviceBuffer<T>,
    rows: usize,
    bias: &DeviceBuffer<f32>,
    stream: &DeviceStream,
) -> Result<()> {
    let shapes = Shapes("add_bias");
    let cols = bias.len();
    let params = BiasParams {
        cols: shapes.multiple("columns", cols, 8, usize::MAX)?,
        rows: shapes.word("rows", rows)?,
        x: shapes.address("x", x, rows, cols)?,
        bias: shapes.address("bias", bias, 1, cols)?,
    };
    let shape = shapes.by_eights(rows, cols)?;
    // SAFETY: both buffers hold the columns; `x` is exclusive here.
    unsafe { stream.launch(&format!("add_bias_{}", T::CODEC), shape, &params) }
}
