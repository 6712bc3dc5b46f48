//! Weight matrices.
//!
//! Q4_0, Q4_1, Q8_0, Q4_K and Q6_K run on our own products where the processor has
//! AVX-512 VNNI ([`super::vnni`], [`super::vnni_k`]); everything else runs on candle's,
//! and on its pool of threads, while ours sleep. candle packs Q8_0, Q4_K and Q6_K if the
//! inner dimension is a multiple of 256 and the outer one of 16, so both are padded with
//! zeros; types without a packed product are repacked to Q8_0 at load.

use super::pool::{Shared, parallel_for, rest};
use super::tensor::{CpuBuffer, PAD};
#[cfg(target_arch = "x86_64")]
use super::{vnni, vnni_k};
use crate::backend::dequantize::{dequantize, ggml, row_bytes, told};
use crate::backend::finite::first_not_finite;
use crate::backend::{MatrixBytes, WeightPolicy};
use crate::codec::WeightType;
use crate::error::{Error, Result};
use candle_core::quantized::{QStorage, QTensor};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Tensor};
use std::borrow::Cow;
use std::sync::Mutex;

/// Rows are padded to a multiple of this for candle's packed products.
const ROW_PAD: usize = 16;

/// A weight matrix `[rows, cols]`.
pub struct CpuMatrix {
    rows: usize,
    cols: usize,
    form: Form,
}

enum Form {
    /// candle's; with its columns after padding, and how many copies candle keeps.
    Candle(QTensor, usize, u64),
    #[cfg(target_arch = "x86_64")]
    Vnni(vnni::PackedBlocks),
    #[cfg(target_arch = "x86_64")]
    VnniK(vnni_k::PackedSuperblocks),
}

/// Whether candle has a packed product for the type.
fn packs(dtype: WeightType) -> bool {
    matches!(dtype, WeightType::Q8_0 | WeightType::Q4K | WeightType::Q6K)
}

/// Whether our own product takes the type.
fn own(dtype: WeightType) -> bool {
    #[cfg(target_arch = "x86_64")]
    let own = vnni::supports(dtype) || vnni_k::supports(dtype);
    #[cfg(not(target_arch = "x86_64"))]
    let own = false;
    own
}

/// The type in which a matrix is kept.
fn resident(dtype: WeightType, policy: WeightPolicy) -> WeightType {
    match policy {
        WeightPolicy::F32 => WeightType::F32,
        WeightPolicy::Keep => dtype,
        WeightPolicy::Auto if dtype == WeightType::F32 || packs(dtype) || own(dtype) => dtype,
        WeightPolicy::Auto => WeightType::Q8_0,
    }
}

impl CpuMatrix {
    /// Loads parts with equal columns, stacked by rows.
    pub(super) fn new(parts: &[MatrixBytes<'_>], policy: WeightPolicy) -> Result<Self> {
        let first = parts.first().ok_or_else(|| Error::misuse("matrix", "has no parts"))?;
        let (cols, rows) = (first.cols, parts.iter().map(|p| p.rows).sum::<usize>());
        if parts.iter().any(|p| p.cols != cols) {
            return Err(Error::misuse("matrix", "parts have different columns"));
        }
        // One type for all parts: their own, if they agree.
        let mut dtype = resident(first.dtype, policy);
        if parts.iter().any(|p| resident(p.dtype, policy) != dtype) {
            dtype = if policy == WeightPolicy::Auto { WeightType::Q8_0 } else { WeightType::F32 };
        }
        #[cfg(target_arch = "x86_64")]
        if own(dtype) && cols.is_multiple_of(dtype.block_size()) {
            let bytes = stack(parts, dtype, rows, cols)?;
            let form = if vnni::supports(dtype) {
                Form::Vnni(vnni::PackedBlocks::new(dtype, rows, cols, &bytes)?)
            } else {
                Form::VnniK(vnni_k::PackedSuperblocks::new(dtype, rows, cols, &bytes)?)
            };
            return Ok(Self { rows, cols, form });
        }
        let pads = packs(dtype);
        let padded_cols = if pads { cols.next_multiple_of(PAD) } else { cols };
        let padded_rows = if pads { rows.next_multiple_of(ROW_PAD) } else { rows };
        let bytes = stack(parts, dtype, padded_rows, padded_cols)?;
        let storage =
            QStorage::from_data(Cow::Owned(bytes), &Device::Cpu, ggml(dtype)).map_err(told)?;
        let tensor = QTensor::new(storage, (padded_rows, padded_cols)).map_err(told)?;
        Ok(Self { rows, cols, form: Form::Candle(tensor, padded_cols, if pads { 2 } else { 1 }) })
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes kept resident: the weights, and candle's packed copy of them.
    pub(super) fn bytes(&self) -> u64 {
        match &self.form {
            Form::Candle(tensor, _, copies) => tensor.storage_size_in_bytes() as u64 * copies,
            #[cfg(target_arch = "x86_64")]
            Form::Vnni(packed) => packed.bytes(),
            #[cfg(target_arch = "x86_64")]
            Form::VnniK(packed) => packed.bytes(),
        }
    }

    /// `y = x · selfᵀ`.
    pub(super) fn matmul(&self, x: &mut CpuBuffer, y: &mut CpuBuffer) -> Result<()> {
        if x.cols() != self.cols {
            return Err(Error::misuse(
                "matmul",
                format!("{} columns meet a matrix of {}", x.cols(), self.cols),
            ));
        }
        match &self.form {
            Form::Candle(tensor, k, _) => candle_matmul(tensor, *k, self.rows, x, y),
            #[cfg(target_arch = "x86_64")]
            Form::Vnni(packed) => {
                packed.matmul(x, y);
                Ok(())
            }
            #[cfg(target_arch = "x86_64")]
            Form::VnniK(packed) => {
                packed.matmul(x, y);
                Ok(())
            }
        }
    }

    /// Rows `ids`, as f32.
    pub(super) fn embed(&self, ids: &[u32], to: &mut CpuBuffer) -> Result<()> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.rows) {
            return Err(Error::misuse("ids", format!("token {id} is not below {}", self.rows)));
        }
        to.resize(ids.len(), self.cols);
        match &self.form {
            Form::Candle(tensor, ..) => {
                let rows = Tensor::new(ids, &Device::Cpu)
                    .and_then(|ids| tensor.embedding(&ids)?.to_vec2::<f32>())
                    .map_err(told)?;
                for (i, row) in rows.iter().enumerate() {
                    to.row_mut(i).copy_from_slice(&row[..self.cols]);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Form::Vnni(packed) => {
                for (i, &id) in ids.iter().enumerate() {
                    packed.row(id as usize, to.row_mut(i));
                }
            }
            #[cfg(target_arch = "x86_64")]
            Form::VnniK(packed) => {
                for (i, &id) in ids.iter().enumerate() {
                    packed.row(id as usize, to.row_mut(i));
                }
            }
        }
        Ok(())
    }
}

/// Whether all numbers are finite: 0 · x is 0 then. Eight sums, so that they are vectors.
fn is_finite(row: &[f32]) -> bool {
    let mut sums = [0f32; 8];
    let parts = row.chunks_exact(8);
    let rest: f32 = parts.remainder().iter().map(|x| 0.0 * x).sum();
    for part in parts {
        for (sum, x) in sums.iter_mut().zip(part) {
            *sum += 0.0 * x;
        }
    }
    sums.iter().sum::<f32>() + rest == 0.0
}

/// The product on candle, with the buffers' vectors lent to it and taken back.
fn candle_matmul(
    tensor: &QTensor,
    k: usize,
    n: usize,
    x: &mut CpuBuffer,
    y: &mut CpuBuffer,
) -> Result<()> {
    let (rows, cols, stride) = (x.rows(), x.cols(), x.stride());
    // candle rounds x to 8 bits, and would make a number of what is none.
    let bad: Vec<usize> = (0..rows).filter(|&row| !is_finite(x.row(row))).collect();
    let fits = stride == k;
    let input = CpuStorage::F32(if fits { x.take() } else { repad(x, k) });
    // candle shares the product on its own pool, whose threads need the cores.
    rest();
    let result = tensor.cpu_fwd(&input, &Layout::contiguous((rows, k)));
    if let (true, CpuStorage::F32(data)) = (fits, input) {
        x.replace(data, rows, cols, stride);
    }
    match result.map_err(told)? {
        (CpuStorage::F32(data), _) => {
            let stride = data.len() / rows.max(1);
            y.replace(data, rows, n, stride);
            bad.iter().for_each(|&row| y.row_mut(row).fill(f32::NAN));
            Ok(())
        }
        _ => Err(Error::misuse("matmul", "the product is not f32")),
    }
}

/// The rows of `x` with stride `k`.
fn repad(x: &CpuBuffer, k: usize) -> Vec<f32> {
    let mut out = vec![0f32; x.rows() * k];
    for (row, to) in out.chunks_exact_mut(k).enumerate() {
        to[..x.cols()].copy_from_slice(x.row(row));
    }
    out
}

/// The parts' rows in one type, padded with zeros to `rows × cols`.
fn stack(
    parts: &[MatrixBytes<'_>],
    dtype: WeightType,
    rows: usize,
    cols: usize,
) -> Result<Vec<u8>> {
    let row_bytes = cols / dtype.block_size() * dtype.block_bytes();
    let mut bytes = vec![0u8; rows * row_bytes];
    let mut rest = &mut bytes[..];
    for part in parts {
        let (to, after) = rest.split_at_mut(part.rows * row_bytes);
        fill(part, dtype, cols, to)?;
        rest = after;
    }
    Ok(bytes)
}

/// Writes a part's rows in `dtype`, padded to `padded_cols`.
fn fill(
    part: &MatrixBytes<'_>,
    dtype: WeightType,
    padded_cols: usize,
    to: &mut [u8],
) -> Result<()> {
    let from_row = row_bytes(part)?;
    let to_row = padded_cols / dtype.block_size() * dtype.block_bytes();
    if part.dtype == dtype {
        // Padding blocks of zeros are zero bytes in every packed type.
        for (from, to) in part.bytes.chunks_exact(from_row).zip(to.chunks_exact_mut(to_row)) {
            to[..from_row].copy_from_slice(from);
        }
        return Ok(());
    }

    const STRIPE: usize = 64;
    let out = Shared::new(to);
    let failed = Mutex::new(None);
    parallel_for(part.rows.div_ceil(STRIPE), |stripe| {
        let first = stripe * STRIPE;
        let n = STRIPE.min(part.rows - first);
        let bytes = &part.bytes[first * from_row..(first + n) * from_row];
        // SAFETY: stripes do not overlap.
        let to = unsafe { out.slice(first * to_row, n * to_row) };
        if let Err(error) = convert(part, bytes, n, dtype, padded_cols, to) {
            failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
        }
    });
    failed.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
}

/// Converts `n` rows to `dtype` through f32.
fn convert(
    part: &MatrixBytes<'_>,
    bytes: &[u8],
    n: usize,
    dtype: WeightType,
    padded_cols: usize,
    to: &mut [u8],
) -> Result<()> {
    let floats = dequantize(part.dtype, bytes, n * part.cols)?;
    let mut padded = vec![0f32; n * padded_cols];
    for (from, to) in floats.chunks_exact(part.cols).zip(padded.chunks_exact_mut(padded_cols)) {
        to[..part.cols].copy_from_slice(from);
    }
    if dtype == WeightType::F32 {
        to.copy_from_slice(bytemuck::cast_slice(&padded));
        return Ok(());
    }
    let mut blocks = ggml(dtype).cpu_zeros(padded.len());
    blocks.from_float(&padded);
    // SAFETY: the blocks own storage_size_in_bytes() bytes from as_ptr() on.
    let bytes =
        unsafe { std::slice::from_raw_parts(blocks.as_ptr(), blocks.storage_size_in_bytes()) };
    if first_not_finite(dtype, bytes).is_some() {
        return Err(Error::Unsupported {
            what: format!("a weight beyond the range of {dtype}"),
            remedy: "use --weights keep or --weights f32".into(),
        });
    }
    to.copy_from_slice(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32)
            .map(|i| ((i.wrapping_mul(2_654_435_761) ^ seed) >> 16) as f32 / 65536.0 - 0.5)
            .collect()
    }

    /// Largest error of `matrix · x` against the float64 product with `w`,
    /// relative to the products' own size.
    fn error(matrix: &CpuMatrix, w: &[f32], m: usize) -> f64 {
        let (n, k) = (matrix.rows, matrix.cols);
        let xs = floats(m * k, 3);
        let mut x = CpuBuffer::with_capacity(m, k);
        x.resize(m, k);
        for (i, row) in xs.chunks_exact(k).enumerate() {
            x.row_mut(i).copy_from_slice(row);
        }
        let mut y = CpuBuffer::default();
        matrix.matmul(&mut x, &mut y).unwrap();
        assert_eq!((y.rows(), y.cols(), x.rows(), x.row(0)), (m, n, m, &xs[..k]));
        let (mut worst, mut size) = (0f64, 0f64);
        for (i, x) in xs.chunks_exact(k).enumerate() {
            for (j, w) in w.chunks_exact(k).enumerate() {
                let want: f64 = x.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                worst = worst.max((f64::from(y.row(i)[j]) - want).abs());
                size = size.max(want.abs());
            }
        }
        worst / size
    }

    /// Shapes that need padding in both directions, in two stacked parts.
    #[test]
    fn f32_products_agree_with_float64() {
        let (n, k) = (40, 96);
        let w = floats(n * k, 1);
        let bytes: &[u8] = bytemuck::cast_slice(&w);
        let (a, b) = bytes.split_at(24 * k * 4);
        let part = |rows, bytes| MatrixBytes { dtype: WeightType::F32, rows, cols: k, bytes };
        for policy in [WeightPolicy::F32, WeightPolicy::Keep, WeightPolicy::Auto] {
            let matrix = CpuMatrix::new(&[part(24, a), part(16, b)], policy).unwrap();
            assert!(error(&matrix, &w, 1) < 1e-5 && error(&matrix, &w, 5) < 1e-5);
        }
    }

    /// Against the dequantised weights only the activations' 8 bits are lost; the
    /// embedding rows are the dequantised weights, bit for bit.
    #[test]
    fn block_types_agree_with_their_dequantised_weights() {
        let (n, k) = (40, 96);
        for dtype in [
            WeightType::Q4_0,
            WeightType::Q4_1,
            WeightType::Q8_0,
            WeightType::Q5_0,
            WeightType::F16,
        ] {
            let mut blocks = ggml(dtype).cpu_zeros(n * k);
            blocks.from_float(&floats(n * k, 7));
            // SAFETY: the blocks own that many bytes.
            let bytes = unsafe {
                std::slice::from_raw_parts(blocks.as_ptr(), blocks.storage_size_in_bytes())
            };
            let w = dequantize(dtype, bytes, n * k).unwrap();
            let part = MatrixBytes { dtype, rows: n, cols: k, bytes };
            for policy in [WeightPolicy::Auto, WeightPolicy::Keep] {
                let matrix = CpuMatrix::new(&[part], policy).unwrap();
                for m in [1, 3, 8, 21, 300] {
                    let error = error(&matrix, &w, m);
                    assert!(error < 0.02, "{dtype} {policy:?} {m}: {error}");
                }
                let mut rows = CpuBuffer::default();
                matrix.embed(&[37, 0, 37], &mut rows).unwrap();
                assert_eq!(rows.row(0), rows.row(2));
                let exact = policy == WeightPolicy::Keep || matches!(dtype, WeightType::Q8_0);
                let tolerance = if exact { 0.0 } else { 4e-3 };
                let near = |(a, b): (&f32, &f32)| (a - b).abs() <= tolerance;
                assert!(rows.row(0).iter().zip(&w[37 * k..]).all(near), "{dtype:?}");
                let error = matrix.embed(&[n as u32], &mut rows).unwrap_err().to_string();
                assert!(error.contains("40"), "{error}");
            }
        }
    }

    fn quantized(dtype: WeightType, floats: &[f32]) -> Vec<u8> {
        let mut blocks = ggml(dtype).cpu_zeros(floats.len());
        blocks.from_float(floats);
        // SAFETY: the blocks own that many bytes.
        let bytes =
            unsafe { std::slice::from_raw_parts(blocks.as_ptr(), blocks.storage_size_in_bytes()) };
        bytes.to_vec()
    }

    fn product(matrix: &CpuMatrix, rows: &[f32]) -> Vec<Vec<f32>> {
        let k = matrix.cols;
        let mut x = CpuBuffer::default();
        x.resize(rows.len() / k, k);
        for (i, row) in rows.chunks_exact(k).enumerate() {
            x.row_mut(i).copy_from_slice(row);
        }
        let mut y = CpuBuffer::default();
        matrix.matmul(&mut x, &mut y).unwrap();
        (0..y.rows()).map(|i| y.row(i).to_vec()).collect()
    }

    /// Superblocks: against float64, and bit for bit what candle says, which on a processor
    /// without our product is itself.
    #[test]
    fn superblocks_have_the_bits_of_candle() {
        let (n, k) = (40, 768);
        for dtype in [WeightType::Q4K, WeightType::Q6K] {
            let bytes = quantized(dtype, &floats(n * k, 7));
            let w = dequantize(dtype, &bytes, n * k).unwrap();
            let part = MatrixBytes { dtype, rows: n, cols: k, bytes: &bytes };
            let matrix = CpuMatrix::new(&[part], WeightPolicy::Auto).unwrap();
            for m in [1, 7, 8, 300] {
                let error = error(&matrix, &w, m);
                assert!(error < 0.02, "{dtype} {m}: {error}");
            }
            let mut rows = CpuBuffer::default();
            matrix.embed(&[0, 37], &mut rows).unwrap();
            assert!((rows.row(0), rows.row(1)) == (&w[..k], &w[37 * k..38 * k]), "{dtype}");

            let padded = stack(&[part], dtype, 48, k).unwrap();
            let storage = QStorage::from_data(Cow::Owned(padded), &Device::Cpu, ggml(dtype));
            let tensor = QTensor::new(storage.unwrap(), (48, k)).unwrap();
            let mut xs = floats(19 * k, 11);
            // Ties between both sides of 0, halves between two codes, and a block of zeros.
            xs[..4].copy_from_slice(&[4.0, -4.0, 1.5 * 4.0 / 127.0, -2.5 * 4.0 / 127.0]);
            xs[k..k + 256].fill(0.0);
            let input = CpuStorage::F32(xs.clone());
            let (output, _) = tensor.cpu_fwd(&input, &Layout::contiguous((19, k))).unwrap();
            let CpuStorage::F32(want) = output else { panic!("not f32") };
            for (i, (ours, want)) in product(&matrix, &xs).iter().zip(want.chunks(48)).enumerate() {
                assert_eq!(ours, &want[..n], "{dtype}, row {i}");
            }
        }
    }

    /// A row of x with NaN or an infinity gives no numbers, in every type; others are as ever.
    #[test]
    fn rows_that_are_no_numbers_give_none() {
        use WeightType::*;
        let (n, k) = (48, 512);
        for dtype in [Q4_0, Q4_1, Q8_0, Q5_0, Q5_1, Q2K, Q3K, Q4K, Q5K, Q6K, F16, BF16, F32] {
            let bytes = quantized(dtype, &floats(n * k, 5));
            let part = MatrixBytes { dtype, rows: n, cols: k, bytes: &bytes };
            for policy in [WeightPolicy::Auto, WeightPolicy::Keep] {
                let matrix = CpuMatrix::new(&[part], policy).unwrap();
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut xs = floats(3 * k, 11);
                    xs[k + 300] = bad;
                    let ys = product(&matrix, &xs);
                    assert!(ys[1].iter().all(|y| y.is_nan()), "{policy:?} {dtype} {bad}");
                    assert!(ys[0].iter().chain(&ys[2]).all(|y| y.is_finite()), "{dtype}");
                }
            }
        }
    }

    /// Each row's result is its own, whatever else is in the batch: of our products always,
    /// and of candle's where it was tried, but for Q6_K.
    #[test]
    fn products_do_not_depend_on_the_batch() {
        use WeightType::*;
        for policy in [WeightPolicy::Auto, WeightPolicy::Keep, WeightPolicy::F32] {
            for dtype in [Q4_0, Q4_1, Q8_0, Q5_0, Q5_1, Q2K, Q3K, Q4K, Q5K, Q6K, F16, BF16, F32] {
                let kept = resident(dtype, policy);
                if !own(kept) && (kept == Q6K || !own(Q8_0)) {
                    continue;
                }
                let (n, k) = (48, 512);
                let bytes = quantized(dtype, &floats(n * k, 5));
                let part = MatrixBytes { dtype, rows: n, cols: k, bytes: &bytes };
                let matrix = CpuMatrix::new(&[part], policy).unwrap();
                let xs = floats(19 * k, 11);
                for m in [2, 7, 8, 16, 19] {
                    let some = product(&matrix, &xs[..m * k]);
                    for (i, row) in xs[..m * k].chunks_exact(k).enumerate() {
                        let alone = &product(&matrix, row)[0];
                        assert!(*alone == some[i], "{policy:?} {dtype}: row {i} of {m}");
                    }
                }
            }
        }
    }
}
