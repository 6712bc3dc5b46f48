//! Activations on the device.

use super::room::reserve;
use crate::backend::cuda::element::Element;
use crate::backend::driver::{Device, DeviceBuffer, DeviceStream};
use crate::error::{Error, Result};

/// A row-major matrix `[rows][cols]` of f32 or of `T`, whichever its last writer chose.
///
/// Its memory only grows, so that its address stays once the largest shape was seen.
pub struct Buffer<T> {
    rows: usize,
    cols: usize,
    wide: DeviceBuffer<f32>,
    narrow: DeviceBuffer<T>,
    is_wide: bool,
}

impl<T: Element> Buffer<T> {
    /// An empty buffer.
    pub(super) fn new(device: &Device) -> Result<Self> {
        let (wide, narrow) = (device.alloc(0)?, device.alloc(0)?);
        Ok(Self { rows: 0, cols: 0, wide, narrow, is_wide: false })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Rows of the present width for which there is memory.
    pub(super) fn room(&self) -> usize {
        let len = if self.is_wide { self.wide.len() } else { self.narrow.len() };
        len / self.cols.max(1)
    }

    /// An error unless it holds the rows of a step.
    pub(super) fn check(&self, name: &'static str, rows: usize, cols: usize) -> Result<()> {
        if self.rows >= rows && self.cols >= cols {
            return Ok(());
        }
        let has = format!("[{}, {}]", self.rows, self.cols);
        Err(Error::misuse(name, format!("{has} does not hold the step's [{rows}, {cols}]")))
    }

    /// Makes it a matrix of f32 of unspecified content.
    pub(super) fn set_wide(
        &mut self,
        rows: usize,
        cols: usize,
        stream: &DeviceStream,
    ) -> Result<&mut DeviceBuffer<f32>> {
        (self.rows, self.cols, self.is_wide) = (rows, cols, true);
        reserve(&mut self.wide, rows, cols, stream)?;
        Ok(&mut self.wide)
    }

    /// Makes it a matrix of `T` of unspecified content.
    pub(super) fn set_narrow(
        &mut self,
        rows: usize,
        cols: usize,
        stream: &DeviceStream,
    ) -> Result<&mut DeviceBuffer<T>> {
        (self.rows, self.cols, self.is_wide) = (rows, cols, false);
        reserve(&mut self.narrow, rows, cols, stream)?;
        Ok(&mut self.narrow)
    }

    /// Its f32.
    pub(super) fn wide(&self) -> Result<&DeviceBuffer<f32>> {
        if self.is_wide { Ok(&self.wide) } else { Err(wrong("f32", T::CODEC.name())) }
    }

    /// Its f32, to write.
    pub(super) fn wide_mut(&mut self) -> Result<&mut DeviceBuffer<f32>> {
        if self.is_wide { Ok(&mut self.wide) } else { Err(wrong("f32", T::CODEC.name())) }
    }

    /// Its `T`.
    pub(super) fn narrow(&self) -> Result<&DeviceBuffer<T>> {
        if self.is_wide { Err(wrong(T::CODEC.name(), "f32")) } else { Ok(&self.narrow) }
    }

    /// Its `T`, to write.
    pub(super) fn narrow_mut(&mut self) -> Result<&mut DeviceBuffer<T>> {
        if self.is_wide { Err(wrong(T::CODEC.name(), "f32")) } else { Ok(&mut self.narrow) }
    }
}

fn wrong(wanted: &str, held: &str) -> Error {
    Error::misuse("buffer", format!("it holds {held}, the operation takes {wanted}"))
}
