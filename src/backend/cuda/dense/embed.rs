//! Launches `kernels/dense/embed.cu`: rows of an embedding table.

use super::shapes::Shapes;
use crate::backend::cuda::element::Element;
use crate::backend::cuda::params::EmbedParams;
use crate::backend::driver::{DeviceBuffer, DeviceStream};
use crate::error::Result;

const THREADS: u32 = 128;

/// The tokens of rows.
pub struct Rows<'a> {
    /// How many.
    pub n: usize,
    /// `[n]`: ids, or [`TOKEN_DRAWN`](super::super::params::TOKEN_DRAWN) and a slot.
    pub tokens: &'a DeviceBuffer<u32>,
    /// Ids by slot.
    pub slots: &'a DeviceBuffer<u32>,
    /// `[n]`: takes the ids.
    pub ids: &'a mut DeviceBuffer<u32>,
}

/// `x[i] = scale · table[id of row i]`; `table` is `[vocab][cols]`, `x` is `[rows][cols]`,
/// `cols` a multiple of 8. The row of an id that the table does not have is NaN: ids are on
/// the device, so check those that you upload.
///
/// # Errors
/// [`Error::Misuse`](crate::Error::Misuse) if a shape does not fit.
pub fn embed<T: Element>(
    table: &DeviceBuffer<T>,
    scale: f32,
    rows: Rows<'_>,
    cols: usize,
    x: &mut DeviceBuffer<f32>,
    stream: &DeviceStream,
) -> Result<()> {
    let shapes = Shapes("embed");
    let from = shapes.table("table", table, cols, 8)?;
    let Rows { n, tokens, slots, ids } = rows;
    let params = EmbedParams {
        table: from.address,
        vocab: from.rows,
        cols: from.cols,
        tokens: shapes.address("tokens", tokens, n, 1)?,
        slots: slots.address(),
        n_slots: shapes.word("slots", slots.len())?,
        ids: shapes.address("ids", ids, n, 1)?,
        out: shapes.address("x", x, n, cols)?,
        scale,
    };
    let shape = shapes.by_rows(n, THREADS)?;
    // SAFETY: the buffers hold the rows, ids and slots are checked on the device; `x` and
    // `ids` are exclusive here.
    unsafe { stream.launch(&format!("embed_{}", T::CODEC), shape, &params) }
}
