//! Where a low-bit code lies in a tile: the map of a tensor-core fragment.
//!
//! Sealed codes are stored in the order in which one warp's `mma.sync`
//! m16n8k16 wants them as its A operand, so a CUDA kernel needs no shuffle
//! after loading, and a CPU vector of consecutive words is just as regular.
//!
//! The A operand is a 16 × 16 matrix (PTX ISA, "Matrix fragments for
//! mma.m16n8k16"). Thread `T = 4·g + t` (`g` = 0..8, `t` = 0..4) holds four
//! registers of two elements:
//!
//! ```text
//!                 k = 2t, 2t+1      k = 2t+8, 2t+9
//!               +----------------+----------------+
//!   row g       |  register 0    |  register 2    |
//!               +----------------+----------------+
//!   row g + 8   |  register 1    |  register 3    |
//!               +----------------+----------------+
//! ```
//!
//! A 32-bit word packs the registers of one thread for one (4 bits) or two
//! (2 bits) consecutive 16 × 16 matrices along k. Register `r` of the word has
//! its two elements at bit `bits·r` and at bit `bits·r + 16`: one shift and one
//! `lop3` turn a register into two f16 mantissas.
//!
//! ```text
//!  2 bits   31           16 15            0        4 bits  31       16 15        0
//!          +--+--+ … +--+--+--+--+ … +--+--+              +----+ … +--+----+ … +--+
//!          |r7|r6|   |r1|r0|r7|r6|   |r1|r0|              | r3 |   |r0| r3 |   |r0|
//!          +--+--+ … +--+--+--+--+ … +--+--+              +----+ … +--+----+ … +--+
//!           odd elements    even elements                  odd         even
//!          r4…r7 belong to the second matrix along k
//! ```
//!
//! | | rows (16) | k | order of the 32-word fragments in a tile |
//! |---|---|---|---|
//! | keys, `S^T = K·Q^T` | tokens | channels | token block of 16, then channel span |
//! | values, `O^T = V^T·P^T` | channels | tokens | token span, then channel block of 16 |
//!
//! A *span* is `64 / bits` elements along k. Both orders are token-major, so
//! half a tile is contiguous. The 32 words of a fragment stand in thread order:
//! sixteen consecutive words are four rows `g` × four `t`.

use super::{Side, TILE_TOKENS};

/// Elements along k that one fragment of 32 words covers.
pub const fn span(bits: usize) -> usize {
    64 / bits
}

/// Words of one tile of codes.
pub const fn tile_words(bits: usize, head_dim: usize) -> usize {
    TILE_TOKENS * head_dim * bits / 32
}

/// The (word, bit) of the code of `(token, channel)`.
///
/// `head_dim` is a multiple of 32; `bits` is 2 or 4.
pub const fn place(
    side: Side,
    bits: usize,
    head_dim: usize,
    token: usize,
    channel: usize,
) -> (usize, usize) {
    let span = span(bits);
    let (row, k, fragment) = match side {
        Side::Key => {
            (token % 16, channel % span, (token / 16) * (head_dim / span) + channel / span)
        }
        Side::Value => {
            (channel % 16, token % span, (token / span) * (head_dim / 16) + channel / 16)
        }
    };
    let register = (row / 8) + 2 * ((k % 16) / 8) + 4 * (k / 16);
    let thread = 4 * (row % 8) + (k % 8) / 2;
    (fragment * 32 + thread, bits * register + 16 * (k % 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code has a place of its own, and the places fill the tile.
    #[test]
    fn places_are_a_bijection() {
        for side in [Side::Key, Side::Value] {
            for bits in [2, 4] {
                for d in [64, 128, 256] {
                    let mut seen = vec![0u32; tile_words(bits, d)];
                    for token in 0..TILE_TOKENS {
                        for channel in 0..d {
                            let (word, bit) = place(side, bits, d, token, channel);
                            let mask = ((1u32 << bits) - 1) << bit;
                            assert_eq!(seen[word] & mask, 0, "{side:?} {bits} {d}");
                            seen[word] |= mask;
                        }
                    }
                    assert!(seen.iter().all(|&w| w == u32::MAX));
                }
            }
        }
    }

    /// The map of PTX's m16n8k16 A fragment, written the other way round:
    /// from (thread, element a0..a7) to (row, column).
    #[test]
    fn places_agree_with_the_ptx_fragment() {
        for thread in 0..32 {
            for a in 0..8 {
                let row = thread / 4 + if (2..4).contains(&a) || a >= 6 { 8 } else { 0 };
                let col = (thread % 4) * 2 + (a & 1) + if a >= 4 { 8 } else { 0 };
                let (word, bit) = place(Side::Key, 2, 64, row, col);
                assert_eq!((word, bit), (thread, 2 * (a / 2) + 16 * (a & 1)));
            }
        }
    }
}
