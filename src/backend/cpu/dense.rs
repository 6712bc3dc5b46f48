//! Products, norms and activations on the CPU.

use super::cpu_backend::CpuBackend;
use super::matrix::CpuMatrix;
use super::ops;
use super::tensor::CpuBuffer;
use crate::backend::{Activation, Dense};
use crate::error::Result;

impl Dense for CpuBackend {
    fn matmul(&self, matrix: &CpuMatrix, x: &mut CpuBuffer, y: &mut CpuBuffer) -> Result<()> {
        matrix.matmul(x, y)
    }

    fn matmul_f32(&self, matrix: &CpuMatrix, x: &mut CpuBuffer, y: &mut CpuBuffer) -> Result<()> {
        matrix.matmul(x, y)
    }

    fn add_bias(&self, x: &mut CpuBuffer, bias: &Vec<f32>) -> Result<()> {
        ops::add_bias(x, bias);
        Ok(())
    }

    fn rms_norm(
        &self,
        x: &mut CpuBuffer,
        delta: Option<&CpuBuffer>,
        weight: &Vec<f32>,
        eps: f32,
        y: &mut CpuBuffer,
    ) -> Result<()> {
        if let Some(delta) = delta {
            ops::add(x, delta);
        }
        ops::rms_norm(x, weight, eps, y);
        Ok(())
    }

    fn head_norm(
        &self,
        x: &mut CpuBuffer,
        first_col: usize,
        heads: usize,
        weight: &Vec<f32>,
        eps: f32,
    ) -> Result<()> {
        ops::head_norm(x, first_col, heads, weight, eps);
        Ok(())
    }

    fn gate(&self, f: Activation, x: &CpuBuffer, y: &mut CpuBuffer) -> Result<()> {
        ops::gate(self.level, f, x, y);
        Ok(())
    }
}
