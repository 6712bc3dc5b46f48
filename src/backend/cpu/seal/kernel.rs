//! What the kernel that seals is told, and the range of what it seals.

use crate::backend::cpu::simd::Simd;
use crate::codec::affine::Affine;
use crate::codec::clip::LIMIT;
use crate::codec::feedback::Feedback;
use crate::codec::{Codec, Side};

/// Encodes one tile.
pub(super) struct SealKernel<'a> {
    pub hot: Codec,
    pub from: &'a [u8],
    pub codec: &'a Affine,
    pub side: Side,
    pub head_dim: usize,
    pub feedback: Option<&'a Feedback>,
    pub out: &'a mut [u8],
}

/// [`crate::codec::clip::limit`].
#[inline(always)]
pub(super) fn limit<S: Simd>(s: S, x: S::F) -> S::F {
    // What is not a number takes the second operand.
    let (x, most) = (s.max(x, s.splat(-LIMIT)), s.splat(LIMIT));
    s.select_le(x, most, x, most)
}
