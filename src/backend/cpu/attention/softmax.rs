//! Decode's softmax: weights relative to a base that rarely moves.

use crate::backend::cpu::simd::Simd;
use crate::codec::TILE_TOKENS;

/// How far, in base 2, a score may exceed its head's base. Weights up to 2^8 cost
/// no precision, and sums of them do not overflow.
const HEADROOM: f32 = 8.0;

/// The softmax over the pages seen so far.
pub(super) struct Softmax<S: Simd, const G: usize> {
    /// What each head's weights are relative to: the largest score, give or take
    /// the headroom.
    pub base: [f32; G],
    /// The sum of each head's weights, lane by lane.
    pub sum: [S::F; G],
}

impl<S: Simd, const G: usize> Softmax<S, G> {
    #[inline(always)]
    pub fn new(s: S) -> Self {
        Self { base: [f32::NEG_INFINITY; G], sum: [s.splat(0.0); G] }
    }

    /// Turns the first `filled` scores of each head into weights; the factors by
    /// which everything summed so far must shrink, if any does.
    ///
    /// That is rare after the first page, so as a rule no vector is reduced to one
    /// number, and nothing is multiplied.
    #[inline(always)]
    pub fn step(
        &mut self,
        s: S,
        scores: &mut [[f32; TILE_TOKENS]; G],
        filled: usize,
    ) -> Option<[f32; G]> {
        let end = filled.next_multiple_of(S::LANES);
        let mut top = [s.splat(f32::NEG_INFINITY); G];
        let mut grown = false;
        for g in 0..G {
            if filled < end {
                scores[g][filled..end].fill(f32::NEG_INFINITY);
            }
            for x in scores[g][..end].chunks_exact(S::LANES) {
                // SAFETY: a chunk is one vector.
                top[g] = s.max(top[g], unsafe { s.load(x.as_ptr()) });
            }
            grown |= s.any_gt(top[g], s.splat(self.base[g] + HEADROOM));
        }
        let factors = if grown { Some(self.grow(s, top)) } else { None };
        let mut base = [s.splat(0.0); G];
        for g in 0..G {
            // Nothing seen yet: any finite base gives weights of 0.
            if self.base[g] != f32::NEG_INFINITY {
                base[g] = s.splat(self.base[g]);
            }
        }
        for at in (0..end).step_by(S::LANES) {
            for g in 0..G {
                let x = &mut scores[g][at..][..S::LANES];
                // SAFETY: the slice is one vector.
                unsafe {
                    let p = s.exp2(s.sub(s.load(x.as_ptr()), base[g]));
                    s.store(x.as_mut_ptr(), p);
                    self.sum[g] = s.add(self.sum[g], p);
                }
            }
        }
        factors
    }

    /// Takes up new bases; see [`step`](Self::step).
    #[inline(always)]
    fn grow(&mut self, s: S, top: [S::F; G]) -> [f32; G] {
        let mut factors = [1.0; G];
        for g in 0..G {
            let top = s.horizontal_max(top[g]);
            if top > self.base[g] + HEADROOM {
                factors[g] = (self.base[g] - top).exp2();
                self.sum[g] = s.mul(self.sum[g], s.splat(factors[g]));
                self.base[g] = top;
            }
        }
        factors
    }
}

/// Multiplies vectors with a factor that [`Softmax::step`] gave.
#[inline(always)]
pub(super) fn rescale<S: Simd>(s: S, xs: &mut [f32], scale: f32) {
    let factor = s.splat(scale);
    for x in xs.chunks_exact_mut(S::LANES) {
        // SAFETY: a chunk is one vector; lengths are multiples of 32.
        unsafe { s.store(x.as_mut_ptr(), s.mul(s.load(x.as_ptr()), factor)) }
    }
}
