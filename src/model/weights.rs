//! One tensor as it lies in its file.

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
