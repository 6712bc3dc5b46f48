//! A product without its matrices.

use crate::backend::cuda::element::{Element, Output};
use crate::codec::Codec;
use crate::error::{Error, Result};
use std::fmt;

/// Addresses are multiples of this, and rows of `x` and `w` are.
pub(super) const ALIGNMENT: usize = 16;

/// The sizes of a product: `x [rows][k]`, `w [n][k]`, `y [rows][n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemmShape {
    /// Rows of `x` and `y`: tokens.
    pub rows: usize,
    /// Rows of `w`: output features.
    pub n: usize,
    /// Columns of `x` and `w`, input features: a multiple of 8.
    pub k: usize,
}

/// A product without its matrices: what an algorithm is chosen for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Problem {
    pub shape: GemmShape,
    /// f16 or bf16.
    pub element: Codec,
    /// Whether `y` is f32.
    pub wide: bool,
}

impl Problem {
    pub fn new<T: Element, Out: Output<T>>(shape: GemmShape) -> Result<Self> {
        let GemmShape { rows, n, k } = shape;
        if [rows, n, k].into_iter().any(|size| size > i32::MAX as usize) {
            return Err(Error::misuse("gemm", format!("{rows}×{n}×{k} exceeds 31 bits")));
        }
        if k == 0 || !(k * size_of::<T>()).is_multiple_of(ALIGNMENT) {
            return Err(Error::misuse("gemm", format!("k = {k} is no multiple of 8 above 0")));
        }
        Ok(Self { shape, element: T::CODEC, wide: Out::WIDE })
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.shape.rows == 0 || self.shape.n == 0
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GemmShape { rows, n, k } = self.shape;
        let out = if self.wide { "f32".into() } else { self.element.to_string() };
        write!(f, "multiply {rows}×{k} by {n}×{k} of {} to {out}", self.element)
    }
}

/// The addresses of `x`, `w` and `y`.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub x: u64,
    pub w: u64,
    pub y: u64,
}
