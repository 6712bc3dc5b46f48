//! Launches `kernels/dense/select.cu`: copies of rows by number.

use super::Shapes;
use crate::backend::cuda::params::SelectParams;
use crate::backend::driver::{DeviceBuffer, Launch, Stream};
use crate::error::Result;

const THREADS: u32 = 128;

/// `to[i] = from[rows[i]]` for the first `n` numbers; rows have `cols` elements, a multiple
/// of 4. The copy of a row that `from` does not have is NaN.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config) if a shape does not fit.
pub fn select_rows(
    from: &DeviceBuffer<f32>,
    rows: &DeviceBuffer<u32>,
    n: usize,
    cols: usize,
    to: &mut DeviceBuffer<f32>,
    stream: &Stream,
) -> Result<()> {
    let shapes = Shapes("select_rows");
    let cols_word = shapes.multiple("columns", cols, 4, usize::MAX)?;
    let n_from = from.len() / cols;
    let params = SelectParams {
        cols: cols_word,
        n_from: shapes.word("rows to select from", n_from)?,
        from: shapes.address("the rows to select from", from, n_from, cols)?,
        rows: shapes.address("row numbers", rows, n, 1)?,
        to: shapes.address("the rows selected", to, n, cols)?,
    };
    let shape = Launch::new(shapes.word("rows", n)?, THREADS);
    // SAFETY: the buffers hold the rows, numbers are checked on the device; `to` is
    // exclusive here.
    unsafe { stream.launch("select_rows", shape, &params) }
}
