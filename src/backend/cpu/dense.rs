//! Weight matrices, on candle's quantised products.
//!
//! candle packs Q8_0, Q4_K and Q6_K weights for AVX-512 VNNI (and other sets)
//! if the inner dimension is a multiple of 256 and the outer one of 16, so both
//! are padded with zeros. Types without a packed path (Q4_0, Q4_1, f16, …) are
//! repacked to Q8_0 at load.

use super::pool::{Shared, parallel_for};
use super::tensor::{Buffer, PAD};
use crate::backend::{MatrixBytes, WeightPolicy};
use crate::error::{Error, Result};
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{CpuStorage, CustomOp1, Device, Layout};
use std::borrow::Cow;

/// Rows are padded to a multiple of this.
const ROW_PAD: usize = 16;

/// A weight matrix `[rows, cols]`.
pub struct Matrix {
    tensor: QTensor,
    rows: usize,
    cols: usize,
    padded_cols: usize,
}

/// The type in which a matrix is kept.
fn resident(dtype: GgmlDType, policy: WeightPolicy) -> GgmlDType {
    match (policy, dtype) {
        (WeightPolicy::F32, _) => GgmlDType::F32,
        (WeightPolicy::Keep, _) | (_, GgmlDType::F32 | GgmlDType::Q4K | GgmlDType::Q6K) => dtype,
        (WeightPolicy::Auto, _) => GgmlDType::Q8_0,
    }
}

/// Whether candle has a packed product for the type.
fn packs(dtype: GgmlDType) -> bool {
    matches!(dtype, GgmlDType::Q8_0 | GgmlDType::Q4K | GgmlDType::Q6K)
}

impl Matrix {
    /// Loads parts with equal columns, stacked by rows.
    pub(super) fn new(parts: &[MatrixBytes<'_>], policy: WeightPolicy) -> Result<Self> {
        let first = parts.first().ok_or_else(|| Error::config("matrix", "has no parts"))?;
        let (cols, rows) = (first.cols, parts.iter().map(|p| p.rows).sum::<usize>());
        // One type for all parts: the first one's, if every part has it.
        let mut dtype = resident(first.dtype, policy);
        if parts.iter().any(|p| resident(p.dtype, policy) != dtype) {
            dtype = if policy == WeightPolicy::Auto { GgmlDType::Q8_0 } else { GgmlDType::F32 };
        }
        // Weights as f32 stay exact; there is nothing to gain from Q8_0.
        let padded_cols = if packs(dtype) { cols.next_multiple_of(PAD) } else { cols };
        if !padded_cols.is_multiple_of(dtype.block_size()) {
            dtype = GgmlDType::F32;
        }
        let padded_cols = if packs(dtype) { padded_cols } else { cols };
        let padded_rows = if packs(dtype) { rows.next_multiple_of(ROW_PAD) } else { rows };

        let row_bytes = padded_cols / dtype.block_size() * dtype.type_size();
        let mut bytes = vec![0u8; padded_rows * row_bytes];
        let mut at = 0;
        for part in parts {
            if part.cols != cols {
                return Err(Error::config("matrix", "parts have different columns"));
            }
            let to = &mut bytes[at * row_bytes..(at + part.rows) * row_bytes];
            fill(part, dtype, padded_cols, to)?;
            at += part.rows;
        }
        let storage = QStorage::from_data(Cow::Owned(bytes), &Device::Cpu, dtype)?;
        let tensor = QTensor::new(storage, (padded_rows, padded_cols))?;
        Ok(Self { tensor, rows, cols, padded_cols })
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes kept resident: the weights, and candle's packed copy of them.
    pub(super) fn bytes(&self) -> u64 {
        let once = self.tensor.storage_size_in_bytes() as u64;
        once * if packs(self.tensor.dtype()) { 2 } else { 1 }
    }

    /// `y = x · selfᵀ`.
    pub(super) fn matmul(&self, x: &mut Buffer, y: &mut Buffer) -> Result<()> {
        let (m, k) = (x.rows(), self.padded_cols);
        if x.cols() != self.cols {
            return Err(Error::config(
                "matmul",
                format!("{} columns meet a matrix of {}", x.cols(), self.cols),
            ));
        }
        let (rows, cols, stride) = (x.rows(), x.cols(), x.stride());
        let fits = stride == k;
        let input = if fits { x.take() } else { repad(x, k) };
        let input = CpuStorage::F32(input);
        let result = self.tensor.cpu_fwd(&input, &Layout::contiguous((m, k)));
        if let (true, CpuStorage::F32(data)) = (fits, input) {
            x.replace(data, rows, cols, stride);
        }
        match result? {
            (CpuStorage::F32(data), _) => {
                let n = data.len() / m.max(1);
                y.replace(data, m, self.rows, n);
                Ok(())
            }
            _ => Err(Error::config("matmul", "the product is not f32")),
        }
    }

    /// Rows `ids`, as f32.
    pub(super) fn embed(&self, ids: &[u32], to: &mut Buffer) -> Result<()> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.rows) {
            return Err(Error::config("ids", format!("token {id} is not below {}", self.rows)));
        }
        let ids = candle_core::Tensor::new(ids, &Device::Cpu)?;
        let rows = self.tensor.embedding(&ids)?.to_vec2::<f32>()?;
        to.resize(rows.len(), self.cols);
        for (i, row) in rows.iter().enumerate() {
            to.row_mut(i).copy_from_slice(&row[..self.cols]);
        }
        Ok(())
    }
}

/// The rows of `x` with stride `k`.
fn repad(x: &Buffer, k: usize) -> Vec<f32> {
    let mut out = vec![0f32; x.rows() * k];
    for (row, to) in out.chunks_exact_mut(k).enumerate() {
        to[..x.cols()].copy_from_slice(x.row(row));
    }
    out
}

/// Writes a part's rows in `dtype`, padded to `padded_cols`.
fn fill(part: &MatrixBytes<'_>, dtype: GgmlDType, padded_cols: usize, to: &mut [u8]) -> Result<()> {
    let from_row = part.cols / part.dtype.block_size() * part.dtype.type_size();
    if !part.cols.is_multiple_of(part.dtype.block_size())
        || part.bytes.len() != part.rows * from_row
    {
        return Err(Error::config(
            "matrix",
            format!("{}×{} {:?} in {} bytes", part.rows, part.cols, part.dtype, part.bytes.len()),
        ));
    }
    let to_row = padded_cols / dtype.block_size() * dtype.type_size();
    if part.dtype == dtype {
        // Padding blocks of zeros are zero bytes in every packed type.
        for (from, to) in part.bytes.chunks_exact(from_row).zip(to.chunks_exact_mut(to_row)) {
            to[..from_row].copy_from_slice(from);
        }
        return Ok(());
    }

    const STRIPE: usize = 64;
    let out = Shared::new(to);
    let failed = std::sync::Mutex::new(None);
    parallel_for(part.rows.div_ceil(STRIPE), |stripe| {
        let first = stripe * STRIPE;
        let n = STRIPE.min(part.rows - first);
        let convert = || -> Result<()> {
            let bytes = &part.bytes[first * from_row..(first + n) * from_row];
            let floats = dequantize(part.dtype, bytes, n * part.cols)?;
            let mut padded = vec![0f32; n * padded_cols];
            for (from, to) in
                floats.chunks_exact(part.cols).zip(padded.chunks_exact_mut(padded_cols))
            {
                to[..part.cols].copy_from_slice(from);
            }
            // SAFETY: stripes do not overlap.
            let to = unsafe { out.slice(first * to_row, n * to_row) };
            if dtype == GgmlDType::F32 {
                to.copy_from_slice(bytemuck::cast_slice(&padded));
                return Ok(());
            }
            let mut blocks = dtype.cpu_zeros(padded.len());
            blocks.from_float(&padded);
            // SAFETY: the blocks own storage_size_in_bytes() bytes from as_ptr() on.
            let bytes = unsafe {
                std::slice::from_raw_parts(blocks.as_ptr(), blocks.storage_size_in_bytes())
            };
            to.copy_from_slice(bytes);
            Ok(())
        };
        if let Err(error) = convert() {
            failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
        }
    });
    failed.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
}

/// Blocks to f32. The bytes of a mapped file need not be aligned for candle.
fn dequantize(dtype: GgmlDType, bytes: &[u8], elements: usize) -> Result<Vec<f32>> {
    let mut aligned = vec![0u64; bytes.len().div_ceil(8)];
    let aligned = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut aligned)[..bytes.len()];
    aligned.copy_from_slice(bytes);
    match dtype.from_data(Cow::Borrowed(aligned)).dequantize(elements)? {
        CpuStorage::F32(floats) => Ok(floats),
        _ => Err(Error::config("matrix", "dequantised weights are not f32")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32)
            .map(|i| ((i.wrapping_mul(2_654_435_761) ^ seed) >> 16) as f32 / 65536.0 - 0.5)
            .collect()
    }

    fn product(w: &[f32], x: &[f32], k: usize) -> Vec<f64> {
        let mut y = Vec::new();
        for row in x.chunks_exact(k) {
            for w in w.chunks_exact(k) {
                y.push(row.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum());
            }
        }
        y
    }

    /// Shapes that need padding in both directions, in two stacked parts.
    #[test]
    fn products_agree_with_float64() {
        let (n, k) = (40, 96);
        let w = floats(n * k, 1);
        for (m, policy, tolerance) in [
            (1, WeightPolicy::F32, 1e-5),
            (5, WeightPolicy::F32, 1e-5),
            (1, WeightPolicy::Keep, 1e-5),
        ] {
            let bytes: &[u8] = bytemuck::cast_slice(&w);
            let (a, b) = bytes.split_at(24 * k * 4);
            let part = |rows, bytes| MatrixBytes { dtype: GgmlDType::F32, rows, cols: k, bytes };
            let matrix = Matrix::new(&[part(24, a), part(16, b)], policy).unwrap();
            check(&matrix, &w, m, n, k, tolerance);
        }
    }

    #[test]
    fn repacked_weights_stay_close_and_padding_adds_nothing() {
        let (n, k) = (24, 96);
        let w = floats(n * k, 7);
        let half: Vec<half::f16> = w.iter().map(|x| half::f16::from_f32(*x)).collect();
        let bytes = bytemuck::cast_slice(&half);
        let part = MatrixBytes { dtype: GgmlDType::F16, rows: n, cols: k, bytes };
        let matrix = Matrix::new(&[part], WeightPolicy::Auto).unwrap();
        assert_eq!((matrix.padded_cols, matrix.rows()), (256, n));
        // Q8_0 weights and 8-bit activations: about 1 % of the operands' scale.
        check(&matrix, &w, 1, n, k, 0.03);
        check(&matrix, &w, 33, n, k, 0.03);
        let mut rows = Buffer::default();
        matrix.embed(&[3, 0, 3], &mut rows).unwrap();
        assert!(rows.row(0).iter().zip(&w[3 * k..]).all(|(a, b)| (a - b).abs() < 4e-3));
        assert_eq!(rows.row(0), rows.row(2));
        let error = matrix.embed(&[n as u32], &mut rows).unwrap_err().to_string();
        assert!(error.contains("24"), "{error}");
    }

    fn check(matrix: &Matrix, w: &[f32], m: usize, n: usize, k: usize, tolerance: f64) {
        let xs = floats(m * k, 3);
        let mut x = Buffer::with_capacity(m, k);
        x.resize(m, k);
        for (i, row) in xs.chunks_exact(k).enumerate() {
            x.row_mut(i).copy_from_slice(row);
        }
        let mut y = Buffer::default();
        matrix.matmul(&mut x, &mut y).unwrap();
        assert_eq!((y.rows(), y.cols(), x.rows(), x.row(0)), (m, n, m, &xs[..k]));
        for (i, want) in product(w, &xs, k).into_iter().enumerate() {
            let got = f64::from(y.row(i / n)[i % n]);
            assert!((got - want).abs() < tolerance * (k as f64).sqrt() / 4.0, "{i}: {got} {want}");
        }
    }
}
