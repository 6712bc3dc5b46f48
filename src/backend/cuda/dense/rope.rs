//! Launches `kernels/dense/rope.cu`. [`append`](fn@crate::backend::cuda::append::append)
//! can do the same on its way.

use super::shapes::Shapes;
use crate::backend::cuda::element::Element;
use crate::backend::cuda::params::RopeParams;
use crate::backend::driver::{DeviceBuffer, DeviceStream};
use crate::error::Result;

const THREADS: u32 = 128;
/// What 48 KiB of shared memory hold.
const MAX_HEAD_DIM: usize = 12_288;

/// What is rotated.
#[derive(Clone, Copy, Debug)]
pub struct RopeCall<'a> {
    /// Rows.
    pub rows: usize,
    /// Elements from a row to the next: a multiple of 8.
    pub stride: usize,
    /// Heads, from the first column on.
    pub heads: usize,
    /// One a row.
    pub positions: &'a DeviceBuffer<u32>,
    /// [`inv_turns`](crate::backend::cuda::append::inv_turns), `head_dim / 2` long; head
    /// dims are multiples of 16.
    pub inv_turns: &'a DeviceBuffer<f64>,
}

/// Rotates heads of `x`, `[rows][stride]`, in place.
///
/// # Errors
/// [`Error::Misuse`](crate::Error::Misuse) if a shape does not fit.
pub fn rope<T: Element>(
    call: RopeCall<'_>,
    x: &mut DeviceBuffer<T>,
    stream: &DeviceStream,
) -> Result<()> {
    let shapes = Shapes("rope");
    let RopeCall { rows, stride, heads, positions, inv_turns } = call;
    let head_dim = 2 * inv_turns.len();
    let params = RopeParams {
        head_dim: shapes.multiple("channels of a head", head_dim, 16, MAX_HEAD_DIM)?,
        stride: shapes.multiple("elements of a row", stride, 8, usize::MAX)?,
        heads: shapes.word("heads", heads)?,
        x: shapes.address("x", x, rows, stride)?,
        positions: shapes.address("positions", positions, rows, 1)?,
        inv_turns: inv_turns.address(),
        reserved: 0,
    };
    if heads.saturating_mul(head_dim) > stride {
        return Err(shapes.wrong(format!("{heads} heads of {head_dim} exceed rows of {stride}")));
    }
    let shape = shapes.by_rows(rows, THREADS)?.shared(4 * params.head_dim);
    // SAFETY: the heads lie in rows of `x`, which is exclusive here.
    unsafe { stream.launch(&format!("rope_{}", T::CODEC), shape, &params) }
}
