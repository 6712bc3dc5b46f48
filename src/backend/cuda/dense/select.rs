//! Launches `kernels/dense/select.cu`: copies of rows by number.

use super::shapes::Shapes;
use crate::backend::cuda::params::SelectParams;
use crate::backend::driver::{DeviceBuffer, DeviceStream};
use crate::error::Result;
use bytemuck::Pod;

const THREADS: u32 = 128;

/// `to[i] = from[rows[i]]` for the first `n` numbers; rows have `cols` elements, a multiple
/// of 16 bytes. The copy of a row that `from` does not have has all bits set: NaN.
///
/// # Errors
/// [`Error::Misuse`](crate::Error::Misuse) if a shape does not fit.
pub fn select_rows<E: Pod>(
    from: &DeviceBuffer<E>,
    rows: &DeviceBuffer<u32>,
    n: usize,
    cols: usize,
    to: &mut DeviceBuffer<E>,
    stream: &DeviceStream,
) -> Result<()> {
    let shapes = Shapes("select_rows");
    let from = shapes.table("the rows to select from", from, cols, 16 / size_of::<E>())?;
    let params = SelectParams {
        from: from.address,
        n_from: from.rows,
        row_bytes: shapes.word("bytes of a row", cols * size_of::<E>())?,
        rows: shapes.address("row numbers", rows, n, 1)?,
        to: shapes.address("the rows selected", to, n, cols)?,
    };
    let shape = shapes.by_rows(n, THREADS)?;
    // SAFETY: the buffers hold the rows, numbers are checked on the device; `to` is
    // exclusive here.
    unsafe { stream.launch("select_rows", shape, &params) }
}
