//! From the blocks of a model file to numbers, for every backend.

use super::MatrixBytes;
use crate::error::{Error, Result};
use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;
use std::borrow::Cow;

/// Bytes of a row of a matrix.
///
/// # Errors
/// [`Error::Config`] if a row is no whole number of blocks, or the bytes are not those
/// of the rows.
pub(super) fn row_bytes(part: &MatrixBytes<'_>) -> Result<usize> {
    let row_bytes = part.cols / part.dtype.block_size() * part.dtype.type_size();
    if !part.cols.is_multiple_of(part.dtype.block_size())
        || part.rows.checked_mul(row_bytes) != Some(part.bytes.len())
    {
        return Err(Error::config(
            "matrix",
            format!("{}×{} {:?} in {} bytes", part.rows, part.cols, part.dtype, part.bytes.len()),
        ));
    }
    Ok(row_bytes)
}

/// Blocks to f32. The bytes of a mapped file need not be aligned for candle.
pub(crate) fn dequantize(dtype: GgmlDType, bytes: &[u8], elements: usize) -> Result<Vec<f32>> {
    let mut aligned = vec![0u64; bytes.len().div_ceil(8)];
    let aligned = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut aligned)[..bytes.len()];
    aligned.copy_from_slice(bytes);
    match dtype.from_data(Cow::Borrowed(aligned)).dequantize(elements)? {
        CpuStorage::F32(floats) => Ok(floats),
        _ => Err(Error::config("matrix", format!("{dtype:?} is not dequantised to f32"))),
    }
}
