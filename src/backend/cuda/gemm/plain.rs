//! Launches `kernels/dense/gemm.cu`: a plain loop.

use super::problem::{GemmShape, Operands, Problem};
use crate::backend::cuda::params::GemmParams;
use crate::backend::driver::{DeviceStream, Launch};
use crate::error::{Error, Result};

const THREADS: u32 = 32;
/// Rows and columns of `y` that a block makes.
const TILE: [u32; 2] = [4, 4 * THREADS];
/// Blocks that a grid can have in y.
const MOST: u32 = 65_535;

/// Multiplies matrices whose sizes and alignment have been checked.
pub(super) fn multiply(problem: &Problem, at: Operands, stream: &DeviceStream) -> Result<()> {
    let GemmShape { rows, n, k } = problem.shape;
    let [rows, n, k] = [rows as u32, n as u32, k as u32]; // below 2^31
    let grid = [rows.div_ceil(TILE[0]), n.div_ceil(TILE[1]), 1];
    if grid[1] > MOST {
        return Err(Error::misuse("gemm", format!("n = {n} exceeds the plain loop's grid")));
    }
    let kernel = format!("gemm_{}{}", problem.element, if problem.wide { "_f32" } else { "" });
    let Operands { x, w, y } = at;
    let params = GemmParams { x, w, y, rows, n, k, reserved: 0 };
    // SAFETY: the matrices lie within their buffers, and `y` is exclusive.
    unsafe { stream.launch(&kernel, Launch::grid(grid, THREADS), &params) }
}
