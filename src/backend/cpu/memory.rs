//! Buffers and weights on the CPU.

use super::cpu_backend::CpuBackend;
use super::matrix::CpuMatrix;
use super::pool::threads;
use super::tensor::CpuBuffer;
use crate::backend::{Capabilities, MatrixBytes, Memory, WeightPolicy};
use crate::error::{Error, Result};
use std::ops::Range;

impl Memory for CpuBackend {
    type Buffer = CpuBuffer;
    type Matrix = CpuMatrix;
    type Vector = Vec<f32>;

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: format!("cpu, {} threads, {}", threads(), self.level.name()),
            element: None,
            enqueues: false,
            mixed_formats: true,
        }
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn buffer(&self, rows: usize, cols: usize) -> Result<CpuBuffer> {
        Ok(CpuBuffer::with_capacity(rows, cols))
    }

    fn write(&self, rows: &[f32], cols: usize, to: &mut CpuBuffer) -> Result<()> {
        if cols == 0 || !rows.len().is_multiple_of(cols) {
            return Err(Error::misuse("rows", format!("{} floats, {cols} a row", rows.len())));
        }
        to.resize(rows.len() / cols, cols);
        for (i, row) in rows.chunks_exact(cols).enumerate() {
            to.row_mut(i).copy_from_slice(row);
        }
        Ok(())
    }

    fn read_row(&self, from: &CpuBuffer, row: usize, out: &mut [f32]) -> Result<()> {
        if row >= from.rows() || out.len() != from.cols() {
            return Err(Error::misuse("row", format!("{row} of {} floats", out.len())));
        }
        out.copy_from_slice(from.row(row));
        Ok(())
    }

    fn rows(&self, from: &CpuBuffer, rows: Range<usize>, to: &mut CpuBuffer) -> Result<()> {
        select(from, rows, to)
    }

    fn matrix(&self, parts: &[MatrixBytes<'_>], policy: WeightPolicy) -> Result<CpuMatrix> {
        CpuMatrix::new(parts, policy)
    }

    fn vector(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn matrix_bytes(&self, matrix: &CpuMatrix) -> u64 {
        matrix.bytes()
    }
}

/// Copies rows by number.
pub(super) fn select(
    from: &CpuBuffer,
    rows: impl ExactSizeIterator<Item = usize>,
    to: &mut CpuBuffer,
) -> Result<()> {
    to.resize(rows.len(), from.cols());
    for (i, row) in rows.enumerate() {
        if row >= from.rows() {
            return Err(Error::misuse("rows", format!("{row} is not below {}", from.rows())));
        }
        to.row_mut(i).copy_from_slice(from.row(row));
    }
    Ok(())
}
