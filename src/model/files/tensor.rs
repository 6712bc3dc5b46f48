//! One tensor as it lies in its file, and what a model makes of it.

use crate::codec::WeightType;
use std::borrow::Cow;

/// Type, row-major shape and bytes of a tensor in a mapped file.
pub(crate) type Stored<'a> = (WeightType, &'a [usize], &'a [u8]);

/// One tensor as it lies in its file.
#[derive(Debug, Clone)]
pub struct RawTensor<'a> {
    /// How the numbers are stored.
    pub dtype: WeightType,
    /// Row-major shape; a linear layer is `[out, in]`.
    pub shape: Vec<usize>,
    /// `dtype.tensor_bytes(&shape)` bytes, little-endian. No alignment is
    /// promised.
    pub bytes: Cow<'a, [u8]>,
}

/// How a tensor in a file differs from the one that a model computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Not at all.
    None,
    /// Within each of so many heads, row 2i + j of the file is row j · dim/2 + i of the
    /// model: neighbouring channels are rotated together there.
    Interleaved { heads: usize },
    /// 1 is added to each number.
    PlusOne,
}
