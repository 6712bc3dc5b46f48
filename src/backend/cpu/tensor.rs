//! Activations on the CPU: `[rows, cols]` of f32.

/// Columns are padded with zeros to a multiple of this, because candle's packed
/// matrix products need it of the inner dimension.
pub(super) const PAD: usize = 256;

/// A row-major matrix of f32 whose rows start `stride` floats apart. Floats
/// between `cols` and `stride` are 0 in buffers that feed a matrix product.
#[derive(Clone, Debug, Default)]
pub struct CpuBuffer {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl CpuBuffer {
    /// An empty buffer with room for `rows` rows of `cols`.
    pub fn with_capacity(rows: usize, cols: usize) -> Self {
        let stride = cols.next_multiple_of(PAD);
        Self { data: Vec::with_capacity(rows * stride), rows: 0, cols, stride }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns in use.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Floats from one row to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Sets the shape; contents are unspecified but the padding is 0.
    pub fn resize(&mut self, rows: usize, cols: usize) {
        let stride = cols.next_multiple_of(PAD);
        if (self.cols, self.stride) != (cols, stride) {
            self.data.clear();
        }
        self.data.resize(rows * stride, 0.0);
        (self.rows, self.cols, self.stride) = (rows, cols, stride);
    }

    /// Takes over a vector of `rows` rows, `stride` floats each.
    pub(super) fn replace(&mut self, data: Vec<f32>, rows: usize, cols: usize, stride: usize) {
        debug_assert!(data.len() == rows * stride && cols <= stride);
        *self = Self { data, rows, cols, stride };
    }

    /// Gives the vector away, to be put back with [`replace`](Self::replace).
    pub(super) fn take(&mut self) -> Vec<f32> {
        std::mem::take(&mut self.data)
    }

    /// All floats, padding included.
    pub fn as_slice(&self) -> &[f32] {
        &self.data
    }

    /// All floats, padding included.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// One row, without its padding.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.stride..][..self.cols]
    }

    /// One row, without its padding.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.stride..][..self.cols]
    }
}
