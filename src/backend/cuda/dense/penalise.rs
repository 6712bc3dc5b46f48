//! Launches `kernels/dense/penalise.cu`: the repetition penalty.

use super::sample::Logits;
use super::shapes::Shapes;
use crate::backend::cuda::params::PenaliseParams;
use crate::backend::driver::{DeviceBuffer, DeviceStream};
use crate::error::Result;

const THREADS: u32 = 128;

/// Penalties of rows, on the device.
#[derive(Clone, Copy, Debug)]
pub struct Penalties<'a> {
    /// `[rows + 1]`: where the tokens of each row start in `tokens`, and their end.
    pub starts: &'a DeviceBuffer<u32>,
    /// Tokens, those of a row each once; `starts` does not exceed them.
    pub tokens: &'a DeviceBuffer<u32>,
    /// `[rows]`; 1 does nothing.
    pub factors: &'a DeviceBuffer<f32>,
    /// `[rows]`: the element of `ids` that each row was computed from.
    pub rows: &'a DeviceBuffer<u32>,
    /// Input tokens.
    pub ids: &'a DeviceBuffer<u32>,
}

/// Lowers the logits of each row's tokens and of its input token, in place, as
/// [`Penalty::apply`](crate::backend::draw::Penalty::apply) does on the host.
///
/// # Errors
/// [`Error::Misuse`](crate::Error::Misuse) if a shape does not fit.
///
/// # Safety
/// `starts` do not fall and do not exceed `tokens`, and `rows` do not exceed `ids`:
/// they are on the device and cannot be checked here.
pub unsafe fn penalise(
    logits: Logits<'_>,
    penalties: Penalties<'_>,
    stream: &DeviceStream,
) -> Result<()> {
    let shapes = Shapes("penalise");
    let Logits { values, rows, vocab, stride } = logits;
    if stride < vocab {
        return Err(shapes.wrong(format!("rows of {stride} do not hold {vocab} logits")));
    }
    let params = PenaliseParams {
        logits: shapes.address("logits", values, rows, stride)?,
        starts: shapes.address("starts", penalties.starts, rows + 1, 1)?,
        tokens: penalties.tokens.address(),
        factors: shapes.address("factors", penalties.factors, rows, 1)?,
        rows: shapes.address("row numbers", penalties.rows, rows, 1)?,
        ids: penalties.ids.address(),
        vocab: shapes.word("logits", vocab)?,
        stride: shapes.word("elements of a row", stride)?,
    };
    let shape = shapes.by_rows(rows, THREADS)?;
    // SAFETY: the buffers hold the rows; the caller answers for what they say.
    unsafe { stream.launch("penalise", shape, &params) }
}
