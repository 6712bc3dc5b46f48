//! From the blocks of a model file to numbers, for every backend.

use super::MatrixBytes;
use crate::codec::WeightType;
use crate::error::{Error, Result};
use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;
use std::borrow::Cow;

/// Bytes of a row of a matrix.
///
/// # Errors
/// [`Error::Misuse`] if a row is no whole number of blocks, or the bytes are not those
/// of the rows.
pub(super) fn row_bytes(part: &MatrixBytes<'_>) -> Result<usize> {
    let row_bytes = part.cols / part.dtype.block_size() * part.dtype.block_bytes();
    if !part.cols.is_multiple_of(part.dtype.block_size())
        || part.rows.checked_mul(row_bytes) != Some(part.bytes.len())
    {
        return Err(Error::misuse(
            "matrix",
            format!("{}×{} {} in {} bytes", part.rows, part.cols, part.dtype, part.bytes.len()),
        ));
    }
    Ok(row_bytes)
}

/// Blocks to f32. The bytes of a mapped file need not be aligned for candle.
pub(crate) fn dequantize(dtype: WeightType, bytes: &[u8], elements: usize) -> Result<Vec<f32>> {
    let mut aligned = vec![0u64; bytes.len().div_ceil(8)];
    let aligned = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut aligned)[..bytes.len()];
    aligned.copy_from_slice(bytes);
    match ggml(dtype).from_data(Cow::Borrowed(aligned)).dequantize(elements).map_err(told)? {
        CpuStorage::F32(floats) => Ok(floats),
        _ => Err(Error::misuse("matrix", format!("{dtype} is not dequantised to f32"))),
    }
}

/// candle's error as ours.
pub(super) fn told(error: candle_core::Error) -> Error {
    Error::Dense(Box::new(error))
}

/// A type in candle's words.
pub(super) const fn ggml(dtype: WeightType) -> GgmlDType {
    match dtype {
        WeightType::F32 => GgmlDType::F32,
        WeightType::F16 => GgmlDType::F16,
        WeightType::BF16 => GgmlDType::BF16,
        WeightType::Q4_0 => GgmlDType::Q4_0,
        WeightType::Q4_1 => GgmlDType::Q4_1,
        WeightType::Q5_0 => GgmlDType::Q5_0,
        WeightType::Q5_1 => GgmlDType::Q5_1,
        WeightType::Q8_0 => GgmlDType::Q8_0,
        WeightType::Q2K => GgmlDType::Q2K,
        WeightType::Q3K => GgmlDType::Q3K,
        WeightType::Q4K => GgmlDType::Q4K,
        WeightType::Q5K => GgmlDType::Q5K,
        WeightType::Q6K => GgmlDType::Q6K,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_agree_with_candle() {
        for number in 0..64 {
            let Some(t) = WeightType::from_gguf(number) else { continue };
            assert_eq!(t.block_size(), ggml(t).block_size(), "{t}");
            assert_eq!(t.block_bytes(), ggml(t).type_size(), "{t}");
        }
    }
}
