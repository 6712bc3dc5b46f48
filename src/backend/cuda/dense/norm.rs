//! Launches `kernels/dense/norm.cu`: RMS norms of rows and of heads.

use super::shapes::Shapes;
use crate::backend::cuda::element::Element;
use crate::backend::cuda::params::{HeadNormParams, NormParams};
use crate::backend::driver::{DeviceBuffer, DeviceStream, Launch};
use crate::error::Result;

const THREADS: u32 = 256;
const WARPS: u32 = THREADS / 32;
/// What the registers of a block and of a warp hold.
const MAX_COLS: usize = 16_384;
const MAX_HEAD_DIM: usize = 512;

/// A norm of rows.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm<'a> {
    /// Rows.
    pub rows: usize,
    /// `[cols]`; their number is a multiple of 8, at most 16384.
    pub weight: &'a DeviceBuffer<f32>,
    /// What is added to the mean square.
    pub eps: f32,
}

/// `x += delta`, if there is one; then `out = x / rms(x) · weight`. `x` is
/// `[rows][cols]`, like `delta` and `out`.
///
/// # Errors
/// [`Error::Misuse`](crate::Error::Misuse) if a shape does not fit.
pub fn rms_norm<T: Element>(
    call: RmsNorm<'_>,
    x: &mut DeviceBuffer<f32>,
    delta: Option<&DeviceBuffer<T>>,
    out: &mut DeviceBuffer<T>,
    stream: &DeviceStream,
) -> Result<()> {
    let shapes = Shapes("rms_norm");
    let (rows, cols) = (call.rows, call.weight.len());
    let params = NormParams {
        cols: shapes.multiple("columns", cols, 8, MAX_COLS)?,
        x: shapes.address("x", x, rows, cols)?,
        delta: delta.map_or(Ok(0), |d| shapes.address("delta", d, rows, cols))?,
        weight: shapes.address("weight", call.weight, 1, cols)?,
        out: shapes.address("out", out, rows, cols)?,
        eps: call.eps,
    };
    let shape = shapes.by_rows(rows, THREADS)?.shared(4 * WARPS);
    // SAFETY: all buffers hold the rows; `x` and `out` are exclusive here.
    unsafe { stream.launch(&format!("rms_norm_{}", T::CODEC), shape, &params) }
}

/// A norm of heads that lie side by side in rows.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorm<'a> {
    /// Rows.
    pub rows: usize,
    /// Elements from a row to the next: a multiple of 8.
    pub stride: usize,
    /// First column of the first head: a multiple of 8.
    pub first_col: usize,
    /// Heads.
    pub heads: usize,
    /// `[head_dim]`, of all heads; a multiple of 8, at most 512.
    pub weight: &'a DeviceBuffer<f32>,
    /// What is added to the mean square.
    pub eps: f32,
}

/// Each head of `x`, `[rows][stride]`, divided by its root mean square and multiplied
/// with the weight, in place.
///
/// # Errors
/// [`Error::Misuse`](crate::Error::Misuse) if a shape does not fit.
pub fn head_norm<T: Element>(
    call: HeadNorm<'_>,
    x: &mut DeviceBuffer<T>,
    stream: &DeviceStream,
) -> Result<()> {
    let shapes = Shapes("head_norm");
    let HeadNorm { rows, stride, first_col, heads, weight, eps } = call;
    let head_dim = weight.len();
    let params = HeadNormParams {
        head_dim: shapes.multiple("channels of a head", head_dim, 8, MAX_HEAD_DIM)?,
        stride: shapes.multiple("elements of a row", stride, 8, usize::MAX)?,
        first_col: shapes.word("columns", first_col)?,
        heads: shapes.word("heads", heads)?,
        rows: shapes.word("rows", rows)?,
        x: shapes.address("x", x, rows, stride)?,
        weight: shapes.address("weight", weight, 1, head_dim)?,
        eps,
    };
    if !first_col.is_multiple_of(8) || first_col.saturating_add(heads * head_dim) > stride {
        let what = format!("{heads} heads of {head_dim} from column {first_col} on");
        return Err(shapes.wrong(format!("{what} do not fit rows of {stride}, at a multiple of 8")));
    }
    let all = shapes.word("heads of all rows", rows * heads)?;
    let shape = Launch::new(all.div_ceil(WARPS), THREADS);
    // SAFETY: the heads lie in rows of `x`, which is exclusive here.
    unsafe { stream.launch(&format!("head_norm_{}", T::CODEC), shape, &params) }
}
