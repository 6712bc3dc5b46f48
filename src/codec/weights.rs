//! How weights are stored: types and their blocks.

/// The types that can be read, for error messages.
pub(crate) const SUPPORTED_TYPES: &str =
    "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K";

/// Storage type of a weight tensor. A row is a whole number of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[allow(non_camel_case_types)]
pub enum WeightType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
    /// 32 × 4 bit, one f16 scale.
    Q4_0,
    /// 32 × 4 bit, f16 scale and minimum.
    Q4_1,
    /// 32 × 5 bit, one f16 scale.
    Q5_0,
    /// 32 × 5 bit, f16 scale and minimum.
    Q5_1,
    /// 32 × 8 bit, one f16 scale.
    Q8_0,
    /// 256 × 2 bit in a superblock.
    Q2K,
    /// 256 × 3 bit in a superblock.
    Q3K,
    /// 256 × 4 bit in a superblock.
    Q4K,
    /// 256 × 5 bit in a superblock.
    Q5K,
    /// 256 × 6 bit in a superblock.
    Q6K,
}

impl WeightType {
    /// Number of elements in one block.
    pub const fn block_size(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// The name that the GGUF world prints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// From the number in a GGUF tensor header; `None` if it is not supported.
    pub(crate) const fn from_gguf(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::BF16,
            _ => return None,
        })
    }

    /// Bytes of a tensor of `shape` (row-major, the last dimension contiguous).
    /// `None` if a row is not a whole number of blocks or the size overflows.
    pub fn tensor_bytes(self, shape: &[usize]) -> Option<usize> {
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(self.block_size()) {
            return None;
        }
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        (elements / self.block_size()).checked_mul(self.block_bytes())
    }
}

impl std::fmt::Display for WeightType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_whole_blocks_and_sizes_do_not_overflow() {
        assert_eq!(WeightType::Q4_1.tensor_bytes(&[3, 64]), Some(3 * 2 * 20));
        assert_eq!(WeightType::Q4_1.tensor_bytes(&[32, 3]), None);
        assert_eq!(WeightType::F32.tensor_bytes(&[usize::MAX, 2]), None);
        assert_eq!(WeightType::F32.tensor_bytes(&[]), Some(4));
    }
}
