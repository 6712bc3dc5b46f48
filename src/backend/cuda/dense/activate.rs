//! Launches `kernels/dense/activate.cu`: gated activations.

use super::shapes::Shapes;
use crate::backend::cuda::element::Element;
use crate::backend::cuda::params::ActivateParams;
use crate::backend::driver::{DeviceBuffer, DeviceStream};
use crate::error::Result;

/// `y = silu(gate) · up` with `x = [gate | up]`: `x` is `[rows][2 · cols]`, `y` is
/// `[rows][cols]`, `cols` a multiple of 8.
///
/// # Errors
/// [`Error::Misuse`](crate::Error::Misuse) if a shape does not fit.
pub fn silu_mul<T: Element>(
    x: &DeviceBuffer<T>,
    rows: usize,
    cols: usize,
    y: &mut DeviceBuffer<T>,
    stream: &DeviceStream,
) -> Result<()> {
    activate("silu_mul", x, rows, cols, y, stream)
}

/// `y = gelu(gate) · up`, the tanh form; shapes as of [`silu_mul`].
///
/// # Errors
/// As [`silu_mul`].
pub fn gelu_mul<T: Element>(
    x: &DeviceBuffer<T>,
    rows: usize,
    cols: usize,
    y: &mut DeviceBuffer<T>,
    stream: &DeviceStream,
) -> Result<()> {
    activate("gelu_mul", x, rows, cols, y, stream)
}

fn activate<T: Element>(
    name: &'static str,
    x: &DeviceBuffer<T>,
    rows: usize,
    cols: usize,
    y: &mut DeviceBuffer<T>,
    stream: &DeviceStream,
) -> Result<()> {
    let shapes = Shapes(name);
    let params = ActivateParams {
        cols: shapes.multiple("columns", cols, 8, usize::MAX / 2)?,
        rows: shapes.word("rows", rows)?,
        x: shapes.address("x", x, rows, 2 * cols)?,
        y: shapes.address("y", y, rows, cols)?,
    };
    let shape = shapes.by_eights(rows, cols)?;
    // SAFETY: both buffers hold the rows; `y` is exclusive here.
    unsafe { stream.launch(&format!("{name}_{}", T::CODEC), shape, &params) }
}
