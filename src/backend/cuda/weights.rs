//! Weight matrices in device memory: what a model file holds, as a 16-bit type.

use super::element::Element;
use crate::backend::cpu::pool::{Shared, parallel_for};
use crate::backend::dequantize::{dequantize, row_bytes};
use crate::backend::driver::{DeviceBuffer, DeviceStream};
use crate::backend::{MatrixBytes, WeightPolicy};
use crate::codec::{Codec, WeightType};
use crate::error::{Error, Result};
use std::sync::Mutex;

/// Columns are padded to a multiple of this: vectors of 16 bytes.
const PAD: usize = 8;
/// Elements that the host prepares at a time, about.
const STAGED: usize = 16 << 20;
/// Rows that a thread converts at a time.
const STRIPE: usize = 16;

/// A matrix `[rows][cols]`, row-major.
pub struct Matrix<T> {
    rows: usize,
    cols: usize,
    data: DeviceBuffer<T>,
}

impl<T: Element> Matrix<T> {
    /// A matrix that is on the device already: `T [rows][cols]`.
    ///
    /// # Errors
    /// [`Error::Misuse`] if there are not as many elements, or the columns are no
    /// multiple of 8.
    pub fn new(rows: usize, cols: usize, data: DeviceBuffer<T>) -> Result<Self> {
        if rows.checked_mul(cols) != Some(data.len()) || !cols.is_multiple_of(PAD) {
            let what = format!("{} elements are not [{rows}, {cols}]", data.len());
            return Err(Error::misuse("matrix", what));
        }
        Ok(Self { rows, cols, data })
    }

    /// Rows: output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: input features, with zeros after them up to a multiple of 8. What is
    /// multiplied by it has as many columns, finite ones beside the zeros.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// `T [rows][cols]`.
    pub fn data(&self) -> &DeviceBuffer<T> {
        &self.data
    }
}

/// Brings matrices to a device through one buffer of the host's, which is reused.
pub struct Uploader<T> {
    staging: Vec<T>,
}

impl<T: Element> Default for Uploader<T> {
    fn default() -> Self {
        Self { staging: Vec::new() }
    }
}

impl<T: Element> Uploader<T> {
    /// Dequantises a matrix, on all cores, and uploads it; several parts with equal
    /// columns are stacked by rows.
    ///
    /// # Errors
    /// [`Error::Misuse`] if parts or bytes do not fit together; [`Error::Unsupported`]
    /// for a weight that exceeds the range of `T`; [`Error::Dense`] for a type that
    /// cannot be dequantised; [`Error::DeviceOutOfMemory`].
    pub fn matrix(
        &mut self,
        parts: &[MatrixBytes<'_>],
        stream: &DeviceStream,
    ) -> Result<Matrix<T>> {
        let first = parts.first().ok_or_else(|| Error::misuse("matrix", "has no parts"))?;
        if parts.iter().any(|part| part.cols != first.cols) {
            return Err(Error::misuse("matrix", "parts have different columns"));
        }
        for part in parts {
            row_bytes(part)?;
        }
        let rows = parts.iter().map(|part| part.rows).sum::<usize>();
        let cols = first.cols.next_multiple_of(PAD);
        let elements = rows.checked_mul(cols);
        let elements = elements.ok_or_else(|| Error::misuse("matrix", "it is too large"))?;
        let mut data = stream.device().alloc(elements)?;
        let mut at = 0;
        for part in parts.iter().filter(|part| part.cols > 0) {
            let most = (STAGED / cols).max(1);
            for first_row in (0..part.rows).step_by(most) {
                let n = most.min(part.rows - first_row);
                self.stage(part, first_row, n, cols)?;
                data.write(at, &self.staging[..n * cols], stream)?;
                at += n * cols;
            }
        }
        Ok(Matrix { rows, cols, data })
    }

    /// Writes `n` rows of a part to the front of the staging buffer.
    fn stage(
        &mut self,
        part: &MatrixBytes<'_>,
        first_row: usize,
        n: usize,
        cols: usize,
    ) -> Result<()> {
        if self.staging.len() < n * cols {
            self.staging.resize(n * cols, T::zeroed());
        }
        let from_row = row_bytes(part)?;
        let staging = Shared::new(&mut self.staging[..n * cols]);
        let failed = Mutex::new(None);
        parallel_for(n.div_ceil(STRIPE), |stripe| {
            let first = stripe * STRIPE;
            let count = STRIPE.min(n - first);
            let at = (first_row + first) * from_row;
            let bytes = &part.bytes[at..at + count * from_row];
            // SAFETY: stripes do not overlap.
            let to = unsafe { staging.slice(first * cols, count * cols) };
            if let Err(error) = convert(part, bytes, to, cols) {
                failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
            }
        });
        failed.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
    }
}

/// Dequantises whole rows, and pads them with zeros to `cols`.
fn convert<T: Element>(
    part: &MatrixBytes<'_>,
    bytes: &[u8],
    to: &mut [T],
    cols: usize,
) -> Result<()> {
    let floats = dequantize(part.dtype, bytes, to.len() / cols * part.cols)?;
    let largest = T::LARGEST;
    if let Some(x) = floats.iter().find(|x| x.is_finite() && x.abs() > largest) {
        return Err(Error::Unsupported {
            what: format!("a weight of {x:e} as {}", T::CODEC),
            remedy: format!("the largest is {largest:e}; use bf16"),
        });
    }
    for (from, to) in floats.chunks_exact(part.cols).zip(to.chunks_exact_mut(cols)) {
        let (numbers, padding) = to.split_at_mut(part.cols);
        T::narrow(from, numbers);
        padding.fill(T::zeroed());
    }
    Ok(())
}

/// An error unless a part of a matrix can be on the device as the policy says.
pub(super) fn check<T: Element>(part: &MatrixBytes<'_>, policy: WeightPolicy) -> Result<()> {
    let own = if T::CODEC == Codec::Bf16 { WeightType::BF16 } else { WeightType::F16 };
    let keeps = match policy {
        WeightPolicy::Auto => true,
        WeightPolicy::Keep => part.dtype == own,
        WeightPolicy::F32 => false,
    };
    if !keeps {
        let kept = if policy == WeightPolicy::F32 { WeightType::F32 } else { part.dtype };
        return Err(Error::Unsupported {
            what: format!("{kept} weights on this device"),
            remedy: format!("use --weights auto, which makes them {}", T::CODEC),
        });
    }
    if !part.cols.is_multiple_of(8) {
        return Err(Error::Unsupported {
            what: format!("a matrix of {} columns on this device", part.cols),
            remedy: "multiples of 8 are; the CPU takes others".into(),
        });
    }
    Ok(())
}
