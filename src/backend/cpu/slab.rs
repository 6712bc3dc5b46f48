//! Memory for blocks of one size, a slab of several blocks at a time.
//!
//! The pages that one head reads lie a block apart, so in 4 KB pages nearly every
//! one of them would miss the TLB. Slabs are aligned to huge pages and ask for
//! them. A slab is mapped when one of its blocks is first taken and unmapped when
//! the last is given back; the cache hands out low indices first, so blocks in
//! use share slabs.

use memmap2::MmapMut;
use std::ptr::NonNull;

/// A huge page of x86-64 and of ARM with 4 KB pages.
const HUGE: usize = 2 << 20;

/// Slabs grow up to this size while that saves a good part of them.
const MAX_SLAB: usize = 32 << 20;

/// A cache line; blocks are aligned to it.
const LINE: usize = 64;

struct Slab {
    /// Owns the memory; it is only reached through `first`, since a reference to
    /// all of it would overlap those to single blocks.
    _map: MmapMut,
    /// The first block: where the first huge page begins.
    first: NonNull<u8>,
    /// Which blocks are taken.
    taken: Vec<bool>,
}

// SAFETY: `first` points into memory that the slab owns.
unsafe impl Send for Slab {}
// SAFETY: shared access only reads.
unsafe impl Sync for Slab {}

/// Blocks of `size` bytes by index.
pub(super) struct Slabs {
    size: usize,
    /// Distance of two blocks.
    stride: usize,
    blocks_per_slab: usize,
    slabs: Vec<Option<Slab>>,
}

impl Slabs {
    /// No blocks yet, of `size` > 0 bytes each.
    pub(super) fn new(size: usize) -> Self {
        let stride = size.next_multiple_of(LINE);
        // At most 1/16 of a slab is lost at its end, if the limit allows that.
        let slab = (1..=MAX_SLAB / HUGE)
            .map(|n| n * HUGE)
            .find(|slab| *slab >= stride && slab % stride * 16 <= *slab)
            .unwrap_or(stride);
        Self { size, stride, blocks_per_slab: slab / stride, slabs: Vec::new() }
    }

    /// A block that is taken.
    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&[u8]> {
        let slab = self.slabs.get(index / self.blocks_per_slab)?.as_ref()?;
        let slot = index % self.blocks_per_slab;
        // SAFETY: the slot lies in the slab's memory and is borrowed with `self`.
        slab.taken[slot].then(|| unsafe {
            std::slice::from_raw_parts(slab.first.as_ptr().add(slot * self.stride), self.size)
        })
    }

    /// A block, taken and zeroed if it was not taken yet; whether it was not.
    ///
    /// Aborts like any allocation when the system has no memory left.
    pub(super) fn take(&mut self, index: usize) -> (&mut [u8], bool) {
        let (n, slot) = (index / self.blocks_per_slab, index % self.blocks_per_slab);
        if self.slabs.len() <= n {
            self.slabs.resize_with(n + 1, || None);
        }
        let slab =
            self.slabs[n].get_or_insert_with(|| Slab::map(self.blocks_per_slab, self.stride));
        // SAFETY: as in `get`, and `self` is borrowed exclusively.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(slab.first.as_ptr().add(slot * self.stride), self.size)
        };
        let new = !std::mem::replace(&mut slab.taken[slot], true);
        if new {
            bytes.fill(0);
        }
        (bytes, new)
    }

    /// Gives a block back; whether it was taken.
    pub(super) fn give_back(&mut self, index: usize) -> bool {
        let Some(entry) = self.slabs.get_mut(index / self.blocks_per_slab) else {
            return false;
        };
        let Some(slab) = entry else { return false };
        let was = std::mem::take(&mut slab.taken[index % self.blocks_per_slab]);
        if !slab.taken.contains(&true) {
            *entry = None;
        }
        was
    }
}

impl Slab {
    fn map(blocks: usize, stride: usize) -> Self {
        // One huge page more than needed, for the alignment; memory that is never
        // touched costs nothing.
        let bytes = (blocks * stride).next_multiple_of(HUGE);
        let Ok(mut map) = MmapMut::map_anon(bytes + HUGE) else {
            let layout = std::alloc::Layout::from_size_align(bytes, LINE);
            std::alloc::handle_alloc_error(layout.unwrap_or(std::alloc::Layout::new::<u8>()))
        };
        let start = map.as_ptr().align_offset(HUGE).min(HUGE);
        // Only a hint: without huge pages everything works, more slowly.
        #[cfg(target_os = "linux")]
        let _ = map.advise_range(memmap2::Advice::HugePage, start, bytes);
        // SAFETY: `start` is at most `HUGE`, which leaves the blocks' bytes.
        let first = unsafe { NonNull::new_unchecked(map.as_mut_ptr().add(start)) };
        Self { _map: map, first, taken: vec![false; blocks] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_zeroed_aligned_and_apart() {
        for size in [64, 1000, 276_480, 1_474_560, 5 << 20] {
            let mut slabs = Slabs::new(size);
            for index in [0, 1, 40] {
                assert!(slabs.get(index).is_none());
                let (block, new) = slabs.take(index);
                assert!(new && block.len() == size && block.iter().all(|&b| b == 0));
                assert!(block.as_ptr().addr().is_multiple_of(LINE));
                block.fill(index as u8 + 1);
            }
            for index in [0, 1, 40] {
                assert!(slabs.get(index).is_some_and(|b| b.iter().all(|&b| b == index as u8 + 1)));
                assert!(!slabs.take(index).1);
            }
            assert!(slabs.give_back(1) && !slabs.give_back(1) && !slabs.give_back(7));
            assert!(slabs.get(1).is_none() && slabs.get(0).is_some());
            assert!(slabs.take(1).0.iter().all(|&b| b == 0));
        }
    }

    #[test]
    fn an_empty_slab_is_unmapped() {
        let mut slabs = Slabs::new(1 << 20);
        assert_eq!(slabs.blocks_per_slab, 2);
        for i in 0..4 {
            slabs.take(i);
        }
        slabs.give_back(2);
        assert!(slabs.slabs[1].is_some());
        slabs.give_back(3);
        assert!(slabs.slabs[1].is_none() && slabs.slabs[0].is_some());
    }

    #[test]
    fn little_of_a_slab_is_lost() {
        for size in [64, 1000, 92_160, 276_480, 552_960, 1_474_560, 7_340_033] {
            let slabs = Slabs::new(size);
            let used = slabs.blocks_per_slab * slabs.stride;
            assert!(used.next_multiple_of(HUGE) - used <= used / 15, "{size}");
        }
    }
}
