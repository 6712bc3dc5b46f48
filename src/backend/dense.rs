//! What a decoder does between embedding and logits, besides attention.

use super::Memory;
use crate::error::Result;

/// The function of a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)` by the tanh approximation (Hendrycks and Gimpel 2016).
    GeluTanh,
}

/// Products, norms and activations. A row's result depends on that row alone.
pub trait Dense: Memory {
    /// `y = x · matrixᵀ`.
    fn matmul(
        &self,
        matrix: &Self::Matrix,
        x: &mut Self::Buffer,
        y: &mut Self::Buffer,
    ) -> Result<()>;
    /// `y = x · matrixᵀ` in f32.
    fn matmul_f32(
        &self,
        matrix: &Self::Matrix,
        x: &mut Self::Buffer,
        y: &mut Self::Buffer,
    ) -> Result<()>;
    /// `x += bias` on every row.
    fn add_bias(&self, x: &mut Self::Buffer, bias: &Self::Vector) -> Result<()>;
    /// `x += delta`, if there is one; then `y = x / rms(x) · weight`, in f32.
    fn rms_norm(
        &self,
        x: &mut Self::Buffer,
        delta: Option<&Self::Buffer>,
        weight: &Self::Vector,
        eps: f32,
        y: &mut Self::Buffer,
    ) -> Result<()>;
    /// RMS norm of `heads` consecutive heads from column `first_col` on, each as wide as
    /// the weight.
    fn head_norm(
        &self,
        x: &mut Self::Buffer,
        first_col: usize,
        heads: usize,
        weight: &Self::Vector,
        eps: f32,
    ) -> Result<()>;
    /// `y = f(gate) · up` with `x = [gate | up]`.
    fn gate(&self, f: Activation, x: &Self::Buffer, y: &mut Self::Buffer) -> Result<()>;
}
