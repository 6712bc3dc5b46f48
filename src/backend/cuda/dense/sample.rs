//! Launches `kernels/dense/sample.cu`: from logits to tokens.

use super::shapes::Shapes;
use crate::backend::cuda::params::{SampleDraw, SampleParams};
use crate::backend::draw::{Draw, MAX_VOCAB};
use crate::backend::driver::{DeviceBuffer, DeviceStream};
use crate::error::Result;

const THREADS: u32 = 1024;
const WARPS: u32 = THREADS / 32;
/// Of `SampleShared` in kernels/dense/cut.cuh: a digit's bins, totals of warps, what was
/// found.
const SHARED: u32 = 3 * 4 * 2048 + (4 + 8) * WARPS + 32;

/// Logits on the device.
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a> {
    /// `[rows][stride]`, `vocab` in the first columns. Read fastest if `stride` is a
    /// multiple of 4.
    pub values: &'a DeviceBuffer<f32>,
    /// Rows.
    pub rows: usize,
    /// Tokens, at most [`MAX_VOCAB`].
    pub vocab: usize,
    /// Elements from a row to the next.
    pub stride: usize,
}

/// What the kernel needs to know of a draw to element `slot`; upload one a row.
///
/// # Errors
/// [`Error::Config`](crate::Error::Config) naming the field that is out of range.
pub fn draw_to(slot: u32, draw: &Draw) -> Result<SampleDraw> {
    let fixed = draw.fixed()?;
    Ok(SampleDraw {
        top_p: fixed.top_p.into(),
        min_weight: fixed.min_weight,
        scale: fixed.scale,
        top_k: fixed.top_k,
        uniform: draw.uniform,
        slot,
    })
}

/// The largest logit of each row to `ids`, the lowest token of equal ones. NaN never
/// wins; a row without a logit above −∞ gives [`NONE`](super::super::params::NONE).
///
/// # Errors
/// [`Error::Misuse`](crate::Error::Misuse) if a shape does not fit.
pub fn argmax(
    logits: Logits<'_>,
    ids: &mut DeviceBuffer<u32>,
    stream: &DeviceStream,
) -> Result<()> {
    let shapes = Shapes("argmax");
    let params = params(&shapes, logits, None, ids)?;
    let shape = shapes.by_rows(logits.rows, THREADS)?.shared(8 * WARPS);
    // SAFETY: the buffers hold the rows; `ids` is exclusive here.
    unsafe { stream.launch("argmax", shape, &params) }
}

/// Draws a token of each row as its draw says, which [`Draw::token`] does on the host, and
/// puts it where the draw says; no token is [`NONE`](super::super::params::NONE).
///
/// # Errors
/// As [`argmax`].
///
/// # Safety
/// The slots of the draws are elements of `ids`, and those of rows whose token is
/// wanted differ: they are on the
/// device and cannot be checked here.
pub unsafe fn sample(
    logits: Logits<'_>,
    draws: &DeviceBuffer<SampleDraw>,
    ids: &mut DeviceBuffer<u32>,
    stream: &DeviceStream,
) -> Result<()> {
    let shapes = Shapes("sample");
    let params = params(&shapes, logits, Some(draws), ids)?;
    let shape = shapes.by_rows(logits.rows, THREADS)?.shared(SHARED);
    // SAFETY: the buffers hold the rows; any bits of a draw but its slot are a draw, and
    // the caller answers for that; `ids` is exclusive here.
    unsafe { stream.launch("sample", shape, &params) }
}

fn params(
    shapes: &Shapes,
    logits: Logits<'_>,
    draws: Option<&DeviceBuffer<SampleDraw>>,
    ids: &DeviceBuffer<u32>,
) -> Result<SampleParams> {
    let Logits { values, rows, vocab, stride } = logits;
    if stride < vocab {
        return Err(shapes.wrong(format!("rows of {stride} do not hold {vocab} logits")));
    }
    Ok(SampleParams {
        vocab: shapes.multiple("logits", vocab, 1, MAX_VOCAB)?,
        stride: shapes.word("elements of a row", stride)?,
        logits: shapes.address("logits", values, rows, stride)?,
        draws: draws.map_or(Ok(0), |d| shapes.address("draws", d, rows, 1))?,
        ids: shapes.address("ids", ids, rows, 1)?,
    })
}
