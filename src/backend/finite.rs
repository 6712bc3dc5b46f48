//! Whether all numbers of a tensor are finite, from its bytes as they lie in a file.
//!
//! Blocks hold integers but for their f16 scales and minima; a number is finite if
//! those are. So of a quantised tensor a few bytes of each block are looked at.

use crate::codec::WeightType;

/// Blocks that are looked at before it is asked whether one of them was bad.
const RUN: usize = 512;

/// The first block of whole blocks that holds NaN or an infinity.
pub(crate) fn first_not_finite(dtype: WeightType, bytes: &[u8]) -> Option<usize> {
    match dtype {
        WeightType::F32 => first(bytes.as_chunks().0, |x| ones(u32::from_le_bytes(*x), 0xff << 23)),
        WeightType::F16 => first(bytes.as_chunks().0, |x| half(*x)),
        WeightType::BF16 => {
            first(bytes.as_chunks().0, |x| ones(u16::from_le_bytes(*x).into(), 0xff << 7))
        }
        // How long a block is, and where its scales and minima are.
        WeightType::Q4_0 => scaled::<18, 1>(bytes, [0]),
        WeightType::Q4_1 => scaled::<20, 2>(bytes, [0, 2]),
        WeightType::Q5_0 => scaled::<22, 1>(bytes, [0]),
        WeightType::Q5_1 => scaled::<24, 2>(bytes, [0, 2]),
        WeightType::Q8_0 => scaled::<34, 1>(bytes, [0]),
        WeightType::Q2K => scaled::<84, 2>(bytes, [80, 82]),
        WeightType::Q3K => scaled::<110, 1>(bytes, [108]),
        WeightType::Q4K => scaled::<144, 2>(bytes, [0, 2]),
        WeightType::Q5K => scaled::<176, 2>(bytes, [0, 2]),
        WeightType::Q6K => scaled::<210, 1>(bytes, [208]),
    }
}

fn scaled<const BYTES: usize, const N: usize>(bytes: &[u8], scales: [usize; N]) -> Option<usize> {
    let bad = |block: &[u8; BYTES], at: usize| half([block[at], block[at + 1]]);
    first(bytes.as_chunks().0, |block| scales.iter().fold(false, |any, at| any | bad(block, *at)))
}

/// The first of blocks that is bad; without a branch for each.
fn first<const BYTES: usize>(
    blocks: &[[u8; BYTES]],
    bad: impl Fn(&[u8; BYTES]) -> bool,
) -> Option<usize> {
    blocks.chunks(RUN).enumerate().find_map(|(run, blocks)| {
        let any = blocks.iter().fold(false, |any, block| any | bad(block));
        any.then(|| Some(run * RUN + blocks.iter().position(&bad)?)).flatten()
    })
}

/// Whether an f16 is NaN or an infinity.
fn half(bytes: [u8; 2]) -> bool {
    ones(u16::from_le_bytes(bytes).into(), 0x1f << 10)
}

/// Whether all bits of the exponent are 1, as in NaN and infinities only.
const fn ones(bits: u32, exponent: u32) -> bool {
    bits & exponent == exponent
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::dequantize::dequantize;

    const ALL: [WeightType; 13] = [
        WeightType::F32,
        WeightType::F16,
        WeightType::BF16,
        WeightType::Q4_0,
        WeightType::Q4_1,
        WeightType::Q5_0,
        WeightType::Q5_1,
        WeightType::Q8_0,
        WeightType::Q2K,
        WeightType::Q3K,
        WeightType::Q4K,
        WeightType::Q5K,
        WeightType::Q6K,
    ];

    /// Whatever two bytes of a block become NaN or an infinity of f16, it is found exactly if
    /// what candle makes of the block is not finite.
    #[test]
    fn what_does_not_dequantise_to_finite_numbers_is_found() {
        for dtype in ALL {
            let (size, mut found) = (dtype.block_bytes(), 0);
            let clean: Vec<u8> = (0..3 * size).map(|i| (i % 7) as u8).collect();
            assert_eq!(first_not_finite(dtype, &clean), None, "{dtype}");
            for bits in [0x7e00u16, 0x7c00, 0xfc00, 0xffff, 0x7f80, 0xff81] {
                for at in 0..size.max(2) - 1 {
                    let mut bytes = clean.clone();
                    bytes[size + at..][..2].copy_from_slice(&bits.to_le_bytes());
                    let numbers = dequantize(dtype, &bytes, 3 * dtype.block_size()).unwrap();
                    // What exceeds f32 in candle's product was finite in the file.
                    let bad = numbers.iter().position(|x| !x.is_finite());
                    let bad = bad.map(|i| i / dtype.block_size());
                    assert_eq!(first_not_finite(dtype, &bytes), bad, "{dtype} {bits:x} at {at}");
                    found += usize::from(bad.is_some());
                }
            }
            assert!(found > 0, "{dtype}");
        }
    }

    #[test]
    fn the_block_is_told_across_runs() {
        for block in [0, RUN - 1, RUN, 3 * RUN + 5] {
            let mut bytes = vec![0; 4 * RUN * 34];
            bytes[block * 34..][..2].copy_from_slice(&0x7e00u16.to_le_bytes());
            assert_eq!(first_not_finite(WeightType::Q8_0, &bytes), Some(block));
        }
        assert_eq!(first_not_finite(WeightType::F32, &[]), None);
    }
}
