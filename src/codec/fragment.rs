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
//! A *unit* is what one thread keeps of consecutive 16 × 16 matrices along k, in as few
//! whole words as hold it: one matrix in a word (4 bits), two in a word (2 bits), four
//! in three words (3 bits). Registers are counted through a unit, `r` = 0, 1, …, four to
//! a matrix. Each has its two elements at some bit `p` and at bit `p + 16` of a word: one
//! shift and one `lop3` turn a register into two f16 mantissas.
//!
//! ```text
//!  2 bits   31           16 15            0        4 bits  31       16 15        0
//!          +--+--+ … +--+--+--+--+ … +--+--+              +----+ … +--+----+ … +--+
//!          |r7|r6|   |r1|r0|r7|r6|   |r1|r0|              | r3 |   |r0| r3 |   |r0|
//!          +--+--+ … +--+--+--+--+ … +--+--+              +----+ … +--+----+ … +--+
//!           odd elements    even elements                  odd         even
//!          r4…r7 belong to the second matrix along k
//!
//!  3 bits, each half a word, the even elements' in bits 15…0:
//!          +-+---+---+---+---+---+
//!  word 0  |a|r4 |r3 |r2 |r1 |r0 |     Five registers to a word; r15 is cba, its lowest
//!  word 1  |b|r9 |r8 |r7 |r6 |r5 |     bit in the first word and its highest in the
//!  word 2  |c|r14|r13|r12|r11|r10|     last.
//!          +-+---+---+---+---+---+
//! ```
//!
//! | | rows (16) | k | order of the units in a tile |
//! |---|---|---|---|
//! | keys, `S^T = K·Q^T` | tokens | channels | token block of 16, then channel span |
//! | values, `O^T = V^T·P^T` | channels | tokens | token span, then channel block of 16 |
//!
//! A *span* is the elements along k of a unit: 16, 32 or 64. A fragment is one word of
//! 32 threads, in thread order: sixteen consecutive words are four rows `g` × four `t`. The three
//! fragments of a unit of 3 bits follow each other.

use super::tile::{Side, TILE_TOKENS};

/// Elements along k of a unit.
///
/// # Panics
/// For other bits than 2, 3 or 4.
pub const fn span(bits: usize) -> usize {
    match bits {
        2 => 32,
        3 => 64,
        4 => 16,
        _ => panic!("codes have 2, 3 or 4 bits"),
    }
}

/// Words of a unit of one thread, and so fragments of a unit.
pub const fn unit_words(bits: usize) -> usize {
    span(bits) * bits / 64
}

/// Words of one tile of codes.
pub const fn tile_words(bits: usize, head_dim: usize) -> usize {
    TILE_TOKENS * head_dim * bits / 32
}

/// Where a code lies in its tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodePlace {
    /// The word of its lowest bit.
    pub word: usize,
    /// Its lowest bit.
    pub bit: usize,
    /// Whether the bits of the code stand one to a fragment, in three fragments on end,
    /// rather than side by side.
    pub split: bool,
}

impl CodePlace {
    /// The (word, bit) of bit `i` of the code.
    pub const fn of_bit(self, i: usize) -> (usize, usize) {
        if self.split { (self.word + 32 * i, self.bit) } else { (self.word, self.bit + i) }
    }
}

/// Where a register of a unit lies: which of its words, at which bit, and whether it is
/// [split](CodePlace::split).
pub(crate) const fn register_place(bits: usize, register: usize) -> (usize, usize, bool) {
    match (bits, register) {
        (3, 15) => (0, 15, true),
        (3, _) => (register / 5, register % 5 * 3, false),
        _ => (0, bits * register, false),
    }
}

/// The place of the code of `(token, channel)`.
///
/// `head_dim` is a multiple of 32, of 64 for 3 bits.
pub const fn place(
    side: Side,
    bits: usize,
    head_dim: usize,
    token: usize,
    channel: usize,
) -> CodePlace {
    let span = span(bits);
    let (row, k, unit) = match side {
        Side::Key => {
            (token % 16, channel % span, (token / 16) * (head_dim / span) + channel / span)
        }
        Side::Value => {
            (channel % 16, token % span, (token / span) * (head_dim / 16) + channel / 16)
        }
    };
    let register = (row / 8) + 2 * ((k % 16) / 8) + 4 * (k / 16);
    let thread = 4 * (row % 8) + (k % 8) / 2;
    let (word, bit, split) = register_place(bits, register);
    let word = (unit * unit_words(bits) + word) * 32 + thread;
    CodePlace { word, bit: bit + 16 * (k % 2), split }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code has a place of its own, and the places fill the tile.
    #[test]
    fn places_are_a_bijection() {
        for side in [Side::Key, Side::Value] {
            for bits in [2, 3, 4] {
                for d in [64, 128, 256] {
                    let mut seen = vec![0u32; tile_words(bits, d)];
                    for token in 0..TILE_TOKENS {
                        for channel in 0..d {
                            for i in 0..bits {
                                let place = place(side, bits, d, token, channel);
                                let (word, bit) = place.of_bit(i);
                                assert_eq!(seen[word] >> bit & 1, 0, "{side:?} {bits} {d}");
                                seen[word] |= 1 << bit;
                            }
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
                let two = place(Side::Key, 2, 64, row, col);
                assert_eq!((two.word, two.bit), (thread, 2 * (a / 2) + 16 * (a & 1)));
                // The second matrix of a unit of 3 bits: registers 4 to 7.
                let (three, register) = (place(Side::Key, 3, 64, row, 16 + col), 4 + a / 2);
                let word = 32 * (register / 5) + thread;
                assert_eq!((three.word, three.bit), (word, 3 * (register % 5) + 16 * (a & 1)));
            }
        }
    }
}
