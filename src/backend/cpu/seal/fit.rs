//! Scales and zeros of a tile's groups.

use super::job::Seal;
use crate::backend::cpu::simd::Simd;
use crate::codec::affine::Affine;
use crate::codec::clip::{LIMIT, RATIOS};
use crate::codec::{Side, TILE_TOKENS};

/// Scales and zeros of each group, as they are stored.
pub(super) struct Groups {
    pub scales: Vec<f32>,
    pub zeros: Vec<f32>,
}

/// Numbers of a tile, the groups of one side along the lanes: element `i` of group `g`
/// at `[(block · group + i) · width + g]`, blocks of `group` elements.
pub(super) struct Lanes<'a> {
    pub x: &'a [f32],
    pub width: usize,
}

impl Groups {
    /// KIVI: from the extremes of each group.
    #[inline(always)]
    pub(super) fn of_extremes<S: Simd>(s: S, seal: &Seal<'_>, rows: &[f32]) -> Self {
        let [min, max] = match seal.side {
            Side::Key => seal.key_extremes(s, rows),
            Side::Value => seal.value_extremes(s, rows),
        };
        let mut groups = Self { scales: min, zeros: max };
        for (a, b) in groups.scales.iter_mut().zip(&mut groups.zeros) {
            let (scale, zero) = seal.codec.fit(*a, *b);
            (*a, *b) = (scale.to_f32(), zero.to_f32());
        }
        groups
    }

    /// kf: the range of each group that errs least, as [`crate::codec::clip`] defines it.
    #[inline(always)]
    pub(super) fn of_search<S: Simd>(s: S, codec: &Affine, lanes: &Lanes<'_>) -> Self {
        let count = lanes.x.len() / codec.group;
        let mut groups = Self { scales: vec![0.0; count], zeros: vec![0.0; count] };
        for (block, x) in lanes.x.chunks_exact(codec.group * lanes.width).enumerate() {
            for at in (0..lanes.width).step_by(S::LANES) {
                let [scale, zero] = search(s, codec, &x[at..], lanes.width);
                let to = block * lanes.width + at;
                let (scales, zeros) = (&mut groups.scales[to..], &mut groups.zeros[to..]);
                assert!(scales.len() >= S::LANES && zeros.len() >= S::LANES);
                // SAFETY: both have a vector, as was just checked.
                unsafe {
                    s.store(scales.as_mut_ptr(), scale);
                    s.store(zeros.as_mut_ptr(), zero);
                }
            }
        }
        groups
    }
}

/// [`crate::codec::clip::clip`] of `LANES` groups, whose elements are `stride` apart.
#[inline(always)]
fn search<S: Simd>(s: S, codec: &Affine, x: &[f32], stride: usize) -> [S::F; 2] {
    assert!(x.len() >= (codec.group - 1) * stride + S::LANES);
    // SAFETY: `i` is below the size of a group, as was just checked.
    let element = |i: usize| unsafe { s.load(x.as_ptr().add(i * stride)) };
    let (mut min, mut max) = (s.splat(LIMIT), s.splat(-LIMIT));
    for i in 0..codec.group {
        min = s.select_le(element(i), min, element(i), min);
        max = s.max(element(i), max);
    }
    let (none, half) = (s.splat(0.0), s.splat(0.5));
    let levels = s.splat(codec.levels());
    let middle = s.add(s.mul(s.add(min, max), half), none);
    let extent = s.mul(s.sub(max, min), half);
    let mut best = [s.splat(f32::INFINITY), none, none];
    for ratio in RATIOS {
        let reach = s.mul(extent, s.splat(ratio));
        let scale = s.round_f16(s.div(s.add(reach, reach), levels));
        let zero = s.round_f16(s.sub(middle, reach));
        let inverse = s.select_le(scale, none, none, s.div(s.splat(1.0), scale));
        let mut error = none;
        for i in 0..codec.group {
            let square = squared_error(s, element(i), [scale, zero, inverse], levels);
            error = s.add(error, square);
        }
        let [least, ..] = best;
        let keep = |old: S::F, new: S::F| s.select_le(least, error, old, new);
        best = [keep(best[0], error), keep(best[1], scale), keep(best[2], zero)];
    }
    [best[1], best[2]]
}

/// The squared error of each lane's code in a range: scale, zero and the inverse of scale.
#[inline(always)]
pub(super) fn squared_error<S: Simd>(
    s: S,
    x: S::F,
    [scale, zero, inverse]: [S::F; 3],
    levels: S::F,
) -> S::F {
    let code = s.max(s.mul(s.sub(x, zero), inverse), s.splat(0.0));
    let code = s.round(s.select_le(code, levels, code, levels));
    let off = s.sub(x, s.add(s.mul(code, scale), zero));
    s.mul(off, off)
}

/// [`crate::codec::clip::limit`].
#[inline(always)]
pub(super) fn limit<S: Simd>(s: S, x: S::F) -> S::F {
    // What is not a number takes the second operand.
    let (x, most) = (s.max(x, s.splat(-LIMIT)), s.splat(LIMIT));
    s.select_le(x, most, x, most)
}

impl Seal<'_> {
    /// Least and greatest element of each group: channels of consecutive tokens.
    #[inline(always)]
    fn key_extremes<S: Simd>(&self, s: S, rows: &[f32]) -> [Vec<f32>; 2] {
        let (d, group) = (self.head_dim, self.codec.group);
        let mut extremes = [0; 2].map(|_| vec![0f32; TILE_TOKENS / group * d]);
        for (i, tokens) in rows.chunks_exact(group * d).enumerate() {
            for channel in (0..d).step_by(S::LANES) {
                let mut ends = empty(s);
                for row in tokens.chunks_exact(d) {
                    ends = widen(s, ends, &row[channel..][..S::LANES]);
                }
                for (end, to) in ends.into_iter().zip(&mut extremes) {
                    let to = &mut to[i * d + channel..][..S::LANES];
                    // SAFETY: the slice is one vector.
                    unsafe { s.store(to.as_mut_ptr(), end) }
                }
            }
        }
        extremes
    }

    /// Least and greatest element of each group: consecutive channels of a token.
    #[inline(always)]
    fn value_extremes<S: Simd>(&self, s: S, rows: &[f32]) -> [Vec<f32>; 2] {
        let (d, group) = (self.head_dim, self.codec.group);
        let mut extremes = [0; 2].map(|_| vec![0f32; d / group * TILE_TOKENS]);
        for (token, row) in rows.chunks_exact(d).enumerate() {
            for (i, xs) in row.chunks_exact(group).enumerate() {
                let mut ends = empty(s);
                for x in xs.chunks_exact(S::LANES) {
                    ends = widen(s, ends, x);
                }
                let at = i * TILE_TOKENS + token;
                extremes[0][at] = -s.horizontal_max(s.sub(s.splat(0.0), ends[0]));
                extremes[1][at] = s.horizontal_max(ends[1]);
            }
        }
        extremes
    }
}

#[inline(always)]
fn empty<S: Simd>(s: S) -> [S::F; 2] {
    [s.splat(f32::INFINITY), s.splat(f32::NEG_INFINITY)]
}

/// Least and greatest elements with those of one more vector; what is not a number
/// does not count.
#[inline(always)]
fn widen<S: Simd>(s: S, [min, max]: [S::F; 2], x: &[f32]) -> [S::F; 2] {
    assert!(x.len() == S::LANES);
    // SAFETY: x is one vector.
    let x = unsafe { s.load(x.as_ptr()) };
    [s.select_le(x, min, x, min), s.max(x, max)]
}
