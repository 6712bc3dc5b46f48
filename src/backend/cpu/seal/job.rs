//! What is sealed, and where to.

use crate::codec::affine::Affine;
use crate::codec::feedback::Feedback;
use crate::codec::{Codec, Side};

/// Encodes one tile.
pub(super) struct Seal<'a> {
    pub hot: Codec,
    pub from: &'a [u8],
    pub codec: &'a Affine,
    pub side: Side,
    pub head_dim: usize,
    pub feedback: Option<&'a Feedback>,
    pub out: &'a mut [u8],
}
