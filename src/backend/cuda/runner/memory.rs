//! Buffers and weights on the device.

use super::backend::{CudaBackend, lock};
use super::buffer::Buffer;
use crate::backend::cuda::element::Element;
use crate::backend::cuda::weights::{self, Matrix};
use crate::backend::driver::DeviceBuffer;
use crate::backend::{Capabilities, MatrixBytes, Memory, WeightPolicy};
use crate::error::{Error, Result};
use std::ops::Range;

impl<T: Element> Memory for CudaBackend<T> {
    type Buffer = Buffer<T>;
    type Matrix = Matrix<T>;
    type Vector = DeviceBuffer<f32>;

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: format!("{}, {}", self.device().info().name, T::CODEC),
            element: Some(T::CODEC),
            enqueues: true,
            mixed_formats: false,
        }
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        Ok(Some(self.device().memory()?.free))
    }

    fn buffer(&self, rows: usize, cols: usize) -> Result<Buffer<T>> {
        let mut buffer = Buffer::new(self.device())?;
        buffer.set_narrow(rows, cols, &self.stream)?;
        buffer.set_narrow(0, cols, &self.stream)?;
        Ok(buffer)
    }

    fn write(&self, rows: &[f32], cols: usize, to: &mut Buffer<T>) -> Result<()> {
        if cols == 0 || !rows.len().is_multiple_of(cols) {
            return Err(Error::misuse("rows", format!("{} floats, {cols} a row", rows.len())));
        }
        let mut narrow = vec![T::zeroed(); rows.len()];
        T::narrow(rows, &mut narrow);
        let to = to.set_narrow(rows.len() / cols, cols, &self.stream)?;
        to.write(0, &narrow, &self.stream)
    }

    fn read_row(&self, from: &Buffer<T>, row: usize, out: &mut [f32]) -> Result<()> {
        if row >= from.rows() || out.len() != from.cols() {
            return Err(Error::misuse("row", format!("{row} of {} floats", out.len())));
        }
        let at = row * from.cols();
        match from.wide() {
            Ok(wide) => wide.read(at, out, &self.stream),
            Err(_) => {
                let mut narrow = vec![T::zeroed(); out.len()];
                from.narrow()?.read(at, &mut narrow, &self.stream)?;
                T::widen(&narrow, out);
                Ok(())
            }
        }
    }

    fn rows(&self, from: &Buffer<T>, rows: Range<usize>, to: &mut Buffer<T>) -> Result<()> {
        // A repeated step does not tell the buffer how many rows it has written; the
        // caller knows.
        if rows.end > from.room() {
            return Err(Error::misuse("rows", format!("{rows:?} of {}", from.room())));
        }
        let cols = from.cols();
        let to = to.set_narrow(rows.len(), cols, &self.stream)?;
        to.copy_from(0, from.narrow()?, rows.start * cols, rows.len() * cols, &self.stream)
    }

    fn matrix(&self, parts: &[MatrixBytes<'_>], policy: WeightPolicy) -> Result<Matrix<T>> {
        for part in parts {
            weights::check::<T>(part, policy)?;
        }
        lock(&self.uploader).matrix(parts, &self.stream)
    }

    fn vector(&self, values: &[f32]) -> Result<DeviceBuffer<f32>> {
        self.device().upload(values, &self.stream)
    }

    fn matrix_bytes(&self, matrix: &Matrix<T>) -> u64 {
        matrix.data().bytes()
    }
}
