//! How streams are split among blocks: `split_ends` of the kernels' parameters.
//!
//! An item costs a block some microseconds and about a thousand instructions a warp,
//! whatever its pages weigh, so splits of light pages are longer: until one has [`BYTES`].
//! But one sequence alone should fill a device, so splits double only where shorter ones of
//! all KV heads would be more than [`ITEMS`]: about the multiprocessors of the largest
//! devices. Each has an item then, and a second one beside it would halve what it has alone.
//! The longest streams have longer splits in any case ([`ENDS`]), so that no more than 64
//! parts are joined up to 262,144 tokens.
//!
//! The most pages of streams whose splits have 8, 16 and 32 pages:
//!
//! | KV heads | pages of 10 KB and more | KIVI-2, d128 (6 KB) | KIVI-2, d64 (3 KB) |
//! |---|---|---|---|
//! | 2 | 256, 1024, 2048 | 256, 1024, 2048 | 256, 1024, 2048 |
//! | 8 | 256, 1024, 2048 | 128, 1024, 2048 | 128, 256, 2048 |
//! | 32 | 256, 1024, 2048 | 32, 1024, 2048 | 32, 64, 2048 |

use crate::codec::{Codec, KvFormat};

/// Bytes of a split that make the cost of an item bearable.
const BYTES: usize = 80 << 10;

/// Splits of all KV heads that fill a device.
const ITEMS: usize = 128;

/// Pages of the shortest splits.
const SHORTEST: usize = 8;

/// The ends if pages are heavy.
const ENDS: [usize; 3] = [256, 1024, 2048];

/// The most pages of streams whose splits have 8, 16 and 32 pages; those of longer ones
/// have 64.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct SplitEnds([usize; 3]);

impl SplitEnds {
    /// Those of a shape: nothing else counts, so that a stream's length says all.
    pub(super) fn of(head_dim: usize, kv_heads: usize, format: KvFormat) -> Self {
        let tile = |codec: Codec| codec.tile().tile_bytes(head_dim);
        let page = tile(format.key) + tile(format.value);
        let mut ends = ENDS;
        for (k, end) in ends.iter_mut().enumerate() {
            let split = SHORTEST << k;
            if split * page < BYTES {
                *end = (*end).min(split * ITEMS.div_ceil(kv_heads));
            }
        }
        Self(ends)
    }

    /// As kernels take them.
    pub(super) fn as_params(self) -> [u32; 3] {
        self.0.map(|end| end as u32)
    }

    /// Lengths of splits that streams of so many tokens may have.
    pub(super) fn lengths(self, tokens: usize) -> usize {
        self.0.into_iter().filter(|&end| end < pages(tokens)).count() + 1
    }

    /// The most splits of a stream of at most so many tokens: `splits_of` of
    /// kernels/attention/plan.cuh.
    pub(super) fn most(self, tokens: usize) -> usize {
        let pages = pages(tokens);
        let splits = |pages: usize| {
            pages.div_ceil(SHORTEST << self.0.into_iter().filter(|&end| end < pages).count())
        };
        // A shorter stream may have more of them.
        self.0.into_iter().filter(|&p| p < pages).chain([pages]).map(splits).max().unwrap_or(1)
    }
}

/// Pages of a stream, at the most.
fn pages(tokens: usize) -> usize {
    tokens.div_ceil(64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(format: &str, head_dim: usize, kv_heads: usize) -> [usize; 3] {
        SplitEnds::of(head_dim, kv_heads, format.parse().unwrap()).0
    }

    /// Pages of the splits of a stream of so many pages.
    fn length(ends: [usize; 3], pages: usize) -> usize {
        (0..3).find(|&k| pages <= ends[k]).map_or(64, |k| 8 << k)
    }

    #[test]
    fn light_pages_have_long_splits() {
        for heads in [1, 2, 8, 32] {
            for (format, d) in [("f16", 64), ("f16", 128), ("fp8", 128), ("kivi2", 256)] {
                assert_eq!(ends(format, d, heads), ENDS, "{format} {d} {heads}");
            }
        }
        assert_eq!(ends("kivi2", 128, 8), [128, 1024, 2048]);
        assert_eq!(ends("kf2", 64, 8), [128, 256, 2048]);
        assert_eq!(ends("kivi2", 64, 32), [32, 64, 2048]);
        assert_eq!(ends("kivi2", 64, 2), [256, 1024, 2048]);
        assert_eq!(ends("kivi2", 64, 3), [256, 688, 2048]);
    }

    /// Counted page by page.
    #[test]
    fn room_is_made_for_the_most_splits() {
        let shapes = [("f16", 64, 8), ("kivi2", 64, 8), ("kivi2", 64, 32), ("kf2", 128, 3)];
        for (format, d, heads) in shapes {
            let ends = ends(format, d, heads);
            let mut most = 1;
            for pages in 1..5000 {
                most = most.max(usize::div_ceil(pages, length(ends, pages)));
                let said = SplitEnds(ends).most(64 * pages);
                assert_eq!(said, most, "{format} {d} {heads}: {pages} pages");
                assert!(pages > 4096 || most <= 64);
            }
        }
    }

    /// Batch 1 with 8 KV heads: the shortest splits up to 8,192 tokens; behind that half of
    /// 128 multiprocessors have an item, at least, and all where splits are full.
    #[test]
    fn one_sequence_fills_a_device() {
        for (format, d) in [("kivi2", 64), ("kivi2", 128), ("kf2", 64)] {
            let ends = ends(format, d, 8);
            for pages in 1..=4096 {
                let length = length(ends, pages);
                let items = 8 * usize::div_ceil(pages, length);
                let good = if pages <= 128 { length == 8 } else { items >= 64 };
                assert!(good, "{format} {d}: {pages} pages, {items} items");
                assert!(pages % 256 != 0 || items >= 128, "{format} {d}: {pages} pages");
            }
        }
    }
}
