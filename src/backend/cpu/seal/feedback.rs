//! Keys with error feedback ([`crate::codec::feedback`]): channels in order, tokens along
//! the lanes.

use super::fit::{Groups, limit, squared_error};
use super::job::Seal;
use crate::backend::cpu::simd::Simd;
use crate::codec::TILE_TOKENS;
use crate::codec::clip::{LIMIT, RATIOS};
use crate::codec::feedback::Feedback;
use half::f16;

/// One channel of a tile.
type Channel = [f32; TILE_TOKENS];

impl Seal<'_> {
    /// Replaces rotated keys, `[channel][token]`, by what is to be encoded, and fits them.
    #[inline(always)]
    pub(super) fn aim<S: Simd>(&self, s: S, columns: &mut [f32], feedback: &Feedback) -> Groups {
        let d = self.head_dim;
        let columns = columns.as_chunks_mut::<TILE_TOKENS>().0;
        assert!(columns.len() == d && self.codec.group == TILE_TOKENS && feedback.head_dim() == d);
        let mut errors = vec![[0f32; TILE_TOKENS]; d];
        let mut groups = Groups { scales: vec![0.0; d], zeros: vec![0.0; d] };
        for (channel, x) in columns.iter_mut().enumerate() {
            let (before, error) = errors.split_at_mut(channel);
            let mut aims = [0f32; TILE_TOKENS];
            for at in (0..TILE_TOKENS).step_by(S::LANES) {
                // SAFETY: TILE_TOKENS is a multiple of LANES.
                unsafe {
                    let mut aim = s.load(x[at..].as_ptr());
                    for (weight, error) in feedback.row(channel).iter().zip(&*before) {
                        aim = s.sub(aim, s.mul(s.splat(*weight), s.load(error[at..].as_ptr())));
                    }
                    s.store(aims[at..].as_mut_ptr(), limit(s, s.add(aim, s.splat(0.0))));
                }
            }
            let [scale, zero] = self.search_channel(s, &aims);
            (groups.scales[channel], groups.zeros[channel]) = (scale, zero);
            let (scale, zero) = (s.splat(scale), s.splat(zero));
            for at in (0..TILE_TOKENS).step_by(S::LANES) {
                // SAFETY: as above.
                unsafe {
                    let code = self.codes(s, s.load(aims[at..].as_ptr()), scale, zero);
                    let decoded = s.add(s.mul(code, scale), zero);
                    let off = s.sub(decoded, s.load(x[at..].as_ptr()));
                    s.store(error[0][at..].as_mut_ptr(), off);
                }
            }
            *x = aims;
        }
        groups
    }

    /// [`crate::codec::clip::clip`] of one group.
    #[inline(always)]
    fn search_channel<S: Simd>(&self, s: S, x: &Channel) -> [f32; 2] {
        let (mut low, mut high) = (s.splat(LIMIT), s.splat(-LIMIT));
        for at in (0..TILE_TOKENS).step_by(S::LANES) {
            // SAFETY: TILE_TOKENS is a multiple of LANES.
            let x = unsafe { s.load(x[at..].as_ptr()) };
            (low, high) = (s.select_le(x, low, x, low), s.max(x, high));
        }
        let min = -s.horizontal_max(s.sub(s.splat(0.0), low));
        let max = s.horizontal_max(high);
        let (middle, half) = ((min + max) * 0.5 + 0.0, (max - min) * 0.5);
        let levels = self.codec.levels();
        let ranges = RATIOS.map(|ratio| {
            let reach = half * ratio;
            let scale = f16::from_f32((reach + reach) / levels);
            [scale.to_f32(), f16::from_f32(middle - reach).to_f32()]
        });
        let mut squares = [[0f32; TILE_TOKENS]; RATIOS.len()];
        for ([scale, zero], squares) in ranges.into_iter().zip(&mut squares) {
            let inverse = s.splat(if scale == 0.0 { 0.0 } else { 1.0 / scale });
            let (scale, zero, levels) = (s.splat(scale), s.splat(zero), s.splat(levels));
            for at in (0..TILE_TOKENS).step_by(S::LANES) {
                // SAFETY: as above.
                unsafe {
                    let x = s.load(x[at..].as_ptr());
                    let square = squared_error(s, x, [scale, zero, inverse], levels);
                    s.store(squares[at..].as_mut_ptr(), square);
                }
            }
        }
        // Each sum in the order of the tokens, all sums side by side.
        let mut errors = [0f32; RATIOS.len()];
        for token in 0..TILE_TOKENS {
            errors.iter_mut().zip(&squares).for_each(|(error, x)| *error += x[token]);
        }
        let mut best = (f32::INFINITY, [0.0; 2]);
        for (error, range) in errors.into_iter().zip(ranges) {
            if error < best.0 {
                best = (error, range);
            }
        }
        best.1
    }
}
