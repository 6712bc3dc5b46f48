//! Checks of shapes, and what blocks they ask for.

use crate::backend::driver::{DeviceBuffer, Launch};
use crate::error::{Error, Result};
use bytemuck::Pod;

/// An operation whose shapes are being checked.
pub(super) struct Shapes(pub &'static str);

/// A buffer as rows: its address, how many there are, how long they are.
pub(super) struct Table {
    pub address: u64,
    pub rows: u32,
    pub cols: u32,
}

impl Shapes {
    /// A size or number as the kernels have it: 32 bits.
    pub fn word(&self, what: &str, n: usize) -> Result<u32> {
        u32::try_from(n).map_err(|_| self.wrong(format!("{n} {what} exceed 32 bits")))
    }

    /// As [`word`](Self::word), a multiple of `unit`, above 0 and at most `most`.
    pub fn multiple(&self, what: &str, n: usize, unit: usize, most: usize) -> Result<u32> {
        if n == 0 || !n.is_multiple_of(unit) || n > most {
            let least = if most < usize::MAX { format!(", at most {most}") } else { String::new() };
            return Err(self.wrong(format!("{n} {what}; a multiple of {unit}{least} is needed")));
        }
        self.word(what, n)
    }

    /// The address of a buffer that has `rows` rows of `cols`, aligned to 16 bytes.
    pub fn address<T: Pod>(
        &self,
        what: &str,
        buffer: &DeviceBuffer<T>,
        rows: usize,
        cols: usize,
    ) -> Result<u64> {
        if rows.checked_mul(cols).is_none_or(|needed| needed > buffer.len()) {
            let len = buffer.len();
            return Err(self.wrong(format!("{rows} rows of {cols} exceed {len} of {what}")));
        }
        if !buffer.address().is_multiple_of(16) {
            return Err(self.wrong(format!("{what} does not start at a multiple of 16 bytes")));
        }
        Ok(buffer.address())
    }

    /// All rows of `cols` elements, a multiple of `unit`, that a buffer has.
    pub fn table<T: Pod>(
        &self,
        what: &str,
        buffer: &DeviceBuffer<T>,
        cols: usize,
        unit: usize,
    ) -> Result<Table> {
        let cols_word = self.multiple("columns", cols, unit, usize::MAX)?;
        let rows = buffer.len() / cols;
        Ok(Table {
            address: self.address(what, buffer, rows, cols)?,
            rows: self.word("rows", rows)?,
            cols: cols_word,
        })
    }

    /// A block for each row.
    pub fn by_rows(&self, rows: usize, threads: u32) -> Result<Launch> {
        Ok(Launch::new(self.word("rows", rows)?, threads))
    }

    /// A thread for each eight elements: kernels/dense/eight.cuh.
    pub fn by_eights(&self, rows: usize, cols: usize) -> Result<Launch> {
        const THREADS: u32 = 256;
        let last = (rows * (cols / 8)).next_multiple_of(THREADS as usize);
        Ok(Launch::new(self.word("eights of elements", last)? / THREADS, THREADS))
    }

    pub fn wrong(&self, what: String) -> Error {
        Error::misuse(self.0, what)
    }
}
