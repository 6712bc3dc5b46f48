//! Launches `kernels/dense/embed.cu`: rows of an embedding table.

use super::Shapes;
use crate::backend::cuda::append::Element;
use crate::backend::cuda::params::EmbedParams;
use crate::backend::driver::{DeviceBuffer, Stream};
use crate::error::Result;

const THREADS: u32 = 128;

/// `x[i] = table[ids[i]]` for the first `rows` ids; `table` is `[vocab][cols]`, `x` is
/// `[rows][cols]`, `cols` a multiple of 8. The row of an id that the table does not have
/// is NaN: ids are on the device, so check those that you upload.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config) if a shape does not fit.
pub fn embed<T: Element>(
    table: &DeviceBuffer<T>,
    ids: &DeviceBuffer<u32>,
    rows: usize,
    cols: usize,
    x: &mut DeviceBuffer<f32>,
    stream: &Stream,
) -> Result<()> {
    let shapes = Shapes("embed");
    let from = shapes.table("table", table, cols, 8)?;
    let params = EmbedParams {
        table: from.address,
        vocab: from.rows,
        cols: from.cols,
        ids: shapes.address("ids", ids, rows, 1)?,
        out: shapes.address("x", x, rows, cols)?,
    };
    let shape = shapes.by_rows(rows, THREADS)?;
    // SAFETY: the buffers hold the rows, ids are checked on the device; `x` is exclusive
    // here.
    unsafe { stream.launch(&format!("embed_{}", T::CODEC), shape, &params) }
}
