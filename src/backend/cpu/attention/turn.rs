//! Queries as a page's keys want them, and outputs as its values make them.

use super::affine::MAX_HEAD_DIM;
use super::pages::PageView;
use crate::backend::Rope;
use crate::backend::cpu::ops;
use crate::backend::cpu::simd::Simd;
use crate::codec::hadamard;

/// What a query goes through before it meets the keys of a page (ARCHITECTURE,
/// rule 6): RoPE by −Δ, then the rotation of the codec.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    shift: i32,
    rotated: bool,
}

impl Turn {
    /// What the keys of `page` want.
    #[inline(always)]
    pub(super) fn of(page: &PageView<'_>) -> Self {
        Self { shift: page.shift, rotated: page.key_codec.rotated() }
    }

    /// Turns one head of a query.
    #[inline(always)]
    pub(super) fn apply(self, query: &mut [f32], rope: Option<&Rope>) {
        if let (Some(rope), true) = (rope, self.shift != 0) {
            ops::rotate(query, rope, -f64::from(self.shift));
        }
        if self.rotated {
            hadamard::rotate(query);
        }
    }
}

/// Rotates the columns of `[head_dim][columns]`, a multiple of `LANES`, as
/// [`hadamard::rotate`] does rows; it is its own inverse.
#[inline(always)]
pub(in crate::backend::cpu) fn rotate_columns<S: Simd>(s: S, x: &mut [f32], columns: usize) {
    let d = x.len() / columns;
    assert!(columns.is_multiple_of(S::LANES) && hadamard::fits(d) && d <= MAX_HEAD_DIM);
    let norm = s.splat(hadamard::norm(d));
    let base = x.as_mut_ptr();
    for column in (0..columns).step_by(S::LANES) {
        // SAFETY: d rows of whole vectors.
        unsafe {
            let at = |row: usize| base.add(row * columns + column);
            let mut distance = 1;
            while distance < d {
                for row in (0..d).filter(|row| row & distance == 0) {
                    let (a, b) = (s.load(at(row)), s.load(at(row + distance)));
                    s.store(at(row), s.add(a, b));
                    s.store(at(row + distance), s.sub(a, b));
                }
                distance *= 2;
            }
            (0..d).for_each(|row| s.store(at(row), s.mul(s.load(at(row)), norm)));
        }
    }
}
