//! Norms, rotations and activations, row by row over all threads.

use super::pool::{Shared, parallel_for};
use super::simd::{Kernel, Level, Simd, dispatch};
use super::tensor::CpuBuffer;
use crate::backend::{Activation, Rope};

/// Rows that one thread takes at a time.
const STRIPE: usize = 4;

/// Calls `f` with each row index and that row of `to`.
fn for_rows(to: &mut CpuBuffer, f: impl Fn(usize, &mut [f32]) + Sync) {
    let (rows, cols, stride) = (to.rows(), to.cols(), to.stride());
    let shared = Shared::new(to.as_mut_slice());
    parallel_for(rows.div_ceil(STRIPE), |stripe| {
        for row in stripe * STRIPE..((stripe + 1) * STRIPE).min(rows) {
            // SAFETY: rows do not overlap.
            f(row, unsafe { shared.slice(row * stride, cols) });
        }
    });
}

/// `x / rms(x) · weight` of one row, in f32.
fn norm_row(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let factor = 1.0 / ((squares / x.len() as f64) as f32 + eps).sqrt();
    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
        *y = x * factor * w;
    }
}

/// RMS norm of every row.
pub(super) fn rms_norm(x: &CpuBuffer, weight: &[f32], eps: f32, y: &mut CpuBuffer) {
    y.resize(x.rows(), x.cols());
    for_rows(y, |i, y| norm_row(x.row(i), weight, eps, y));
}

/// RMS norm of each head from column `first_col` on.
pub(super) fn head_norm(
    x: &mut CpuBuffer,
    first_col: usize,
    heads: usize,
    weight: &[f32],
    eps: f32,
) {
    let d = weight.len();
    for_rows(x, |_, row| {
        for head in row[first_col..][..heads * d].chunks_exact_mut(d) {
            let old: Vec<f32> = head.to_vec();
            norm_row(&old, weight, eps, head);
        }
    });
}

/// `x += bias` on every row.
pub(super) fn add_bias(x: &mut CpuBuffer, bias: &[f32]) {
    for_rows(x, |_, row| row.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
}

/// `x += y`.
pub(super) fn add(x: &mut CpuBuffer, y: &CpuBuffer) {
    for_rows(x, |i, row| row.iter_mut().zip(y.row(i)).for_each(|(x, y)| *x += y));
}

/// Rotates one head by `position` (half-split convention).
pub(super) fn rotate(head: &mut [f32], rope: &Rope, position: f64) {
    let (low, high) = head.split_at_mut(rope.inv_freq.len());
    for ((a, b), freq) in low.iter_mut().zip(high).zip(&rope.inv_freq) {
        let (sin, cos) = (position * freq).sin_cos();
        let (sin, cos) = (sin as f32, cos as f32);
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// Sines and cosines of the last positions asked for: every layer of a step asks
/// for the same ones.
#[derive(Default)]
pub(super) struct Angles {
    positions: Vec<usize>,
    inv_freq: Vec<f64>,
    table: Vec<(f32, f32)>,
}

impl Angles {
    pub(super) fn update(&mut self, rope: &Rope, positions: Vec<usize>) {
        if self.positions == positions && self.inv_freq == rope.inv_freq {
            return;
        }
        self.positions = positions;
        self.inv_freq.clone_from(&rope.inv_freq);
        self.table.clear();
        for &position in &self.positions {
            let angles = rope.inv_freq.iter().map(|freq| (position as f64 * freq).sin_cos());
            self.table.extend(angles.map(|(sin, cos)| (sin as f32, cos as f32)));
        }
    }
}

/// Rotates the first `heads` heads of every row.
pub(super) fn rope(x: &mut CpuBuffer, heads: usize, angles: &Angles) {
    let half = angles.inv_freq.len();
    for_rows(x, |i, row| {
        let angles = &angles.table[i * half..][..half];
        for head in row[..heads * 2 * half].chunks_exact_mut(2 * half) {
            let (low, high) = head.split_at_mut(half);
            for ((a, b), (sin, cos)) in low.iter_mut().zip(high).zip(angles) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    });
}

/// `y = f(gate) · up` with `x = [gate | up]`.
pub(super) fn gate(level: Level, f: Activation, x: &CpuBuffer, y: &mut CpuBuffer) {
    let n = x.cols() / 2;
    y.resize(x.rows(), n);
    for_rows(y, |i, y| {
        let (gate, up) = x.row(i).split_at(n);
        dispatch(level, Gate { f, gate, up, y });
    });
}

struct Gate<'a> {
    f: Activation,
    gate: &'a [f32],
    up: &'a [f32],
    y: &'a mut [f32],
}

/// √(2/π) and its cubic term, of GELU's tanh approximation.
const GELU: (f32, f32) = (0.797_884_6, 0.797_884_6 * 0.044_715);

impl Kernel for Gate<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.f {
            Activation::Silu => {
                self.apply(s, |s, x| s.mul(x, s.splat(-std::f32::consts::LOG2_E)), |x| -x)
            }
            // (1 + tanh z) / 2 = sigmoid(2z)
            Activation::GeluTanh => self.apply(
                s,
                |s, x| {
                    let k = -2.0 * std::f32::consts::LOG2_E;
                    let cubic = s.mul(s.mul(x, x), s.splat(k * GELU.1));
                    s.mul(x, s.add(cubic, s.splat(k * GELU.0)))
                },
                |x| -2.0 * x * (GELU.0 + GELU.1 * x * x),
            ),
        }
    }
}

impl Gate<'_> {
    /// `gate / (1 + e^z) · up`, where `wide` gives z · log2(e) and `narrow` z.
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, wide: impl Fn(S, S::F) -> S::F, narrow: impl Fn(f32) -> f32) {
        let n = self.y.len() / S::LANES * S::LANES;
        let one = s.splat(1.0);
        for i in (0..n).step_by(S::LANES) {
            // SAFETY: the three slices have the same length, checked by `zip` below
            // for the rest and by construction here.
            unsafe {
                let g = s.load(self.gate.as_ptr().add(i));
                let e = s.add(one, s.exp2(wide(s, g)));
                let gu = s.mul(g, s.load(self.up.as_ptr().add(i)));
                s.store(self.y.as_mut_ptr().add(i), s.div(gu, e));
            }
        }
        for ((y, g), u) in self.y.iter_mut().zip(self.gate).zip(self.up).skip(n) {
            *y = g / (1.0 + narrow(*g).exp()) * u;
        }
    }
}
