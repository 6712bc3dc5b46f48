//! Products, norms and activations on the device.

use super::backend::CudaBackend;
use super::buffer::Buffer;
use crate::backend::cuda::dense::{self, HeadNorm, RmsNorm};
use crate::backend::cuda::element::Element;
use crate::backend::cuda::weights::Matrix;
use crate::backend::driver::DeviceBuffer;
use crate::backend::{Activation, Dense};
use crate::error::{Error, Result};

impl<T: Element> Dense for CudaBackend<T> {
    fn matmul(&self, matrix: &Matrix<T>, x: &mut Buffer<T>, y: &mut Buffer<T>) -> Result<()> {
        let y = y.set_narrow(x.rows(), matrix.rows(), &self.stream)?;
        self.multiply(matrix, x, y)
    }

    fn matmul_f32(&self, matrix: &Matrix<T>, x: &mut Buffer<T>, y: &mut Buffer<T>) -> Result<()> {
        let y = y.set_wide(x.rows(), matrix.rows(), &self.stream)?;
        self.multiply(matrix, x, y)
    }

    fn add_bias(&self, x: &mut Buffer<T>, bias: &DeviceBuffer<f32>) -> Result<()> {
        let rows = x.rows();
        if bias.len() != x.cols() {
            return Err(Error::misuse("bias", format!("{} for {}", bias.len(), x.cols())));
        }
        dense::add_bias(x.narrow_mut()?, rows, bias, &self.stream)
    }

    fn rms_norm(
        &self,
        x: &mut Buffer<T>,
        delta: Option<&Buffer<T>>,
        weight: &DeviceBuffer<f32>,
        eps: f32,
        y: &mut Buffer<T>,
    ) -> Result<()> {
        let (rows, cols) = (x.rows(), x.cols());
        if weight.len() != cols || delta.is_some_and(|d| (d.rows(), d.cols()) != (rows, cols)) {
            return Err(Error::misuse("rms_norm", format!("weight or delta is not {cols} wide")));
        }
        let delta = delta.map(Buffer::narrow).transpose()?;
        let y = y.set_narrow(rows, cols, &self.stream)?;
        let call = RmsNorm { rows, weight, eps };
        dense::rms_norm(call, x.wide_mut()?, delta, y, &self.stream)
    }

    fn head_norm(
        &self,
        x: &mut Buffer<T>,
        first_col: usize,
        heads: usize,
        weight: &DeviceBuffer<f32>,
        eps: f32,
    ) -> Result<()> {
        let (rows, stride) = (x.rows(), x.cols());
        let call = HeadNorm { rows, stride, first_col, heads, weight, eps };
        dense::head_norm(call, x.narrow_mut()?, &self.stream)
    }

    fn gate(&self, f: Activation, x: &Buffer<T>, y: &mut Buffer<T>) -> Result<()> {
        let (rows, cols) = (x.rows(), x.cols() / 2);
        let y = y.set_narrow(rows, cols, &self.stream)?;
        match f {
            Activation::Silu => dense::silu_mul(x.narrow()?, rows, cols, y, &self.stream),
            Activation::GeluTanh => dense::gelu_mul(x.narrow()?, rows, cols, y, &self.stream),
        }
    }
}
