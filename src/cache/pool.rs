//! The block pool: indices, reference counts and the byte budget.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::class::{BlockRef, ClassDesc, ClassId};
use crate::error::{Error, Result};

/// The blocks of one class.
#[derive(Clone, Debug, Default)]
struct Arena {
    /// References to each block; 0: free.
    refs: Vec<u32>,
    /// Free indices below `refs.len()`, lowest first.
    free: BinaryHeap<Reverse<u32>>,
}

/// All arenas under one budget. A block counts once, however many share it.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    classes: Vec<ClassDesc>,
    arenas: Vec<Arena>,
    held: u64,
    peak: u64,
    budget: u64,
    /// Blocks whose last reference was dropped since [`drain_freed`](Self::drain_freed).
    freed: Vec<BlockRef>,
}

impl Pool {
    pub(super) fn new(classes: Vec<ClassDesc>, budget: u64) -> Self {
        let arenas = vec![Arena::default(); classes.len()];
        Self { classes, arenas, held: 0, peak: 0, budget, freed: Vec::new() }
    }

    pub(super) fn classes(&self) -> &[ClassDesc] {
        &self.classes
    }

    pub(super) fn held(&self) -> u64 {
        self.held
    }

    pub(super) fn peak(&self) -> u64 {
        self.peak
    }

    pub(super) fn budget(&self) -> u64 {
        self.budget
    }

    pub(super) fn block_bytes(&self, class: ClassId) -> u64 {
        self.classes[usize::from(class.0)].block_bytes
    }

    /// Blocks of the class that are held.
    pub(super) fn blocks(&self, class: usize) -> usize {
        self.arenas[class].refs.len() - self.arenas[class].free.len()
    }

    pub(super) fn refs(&self, class: ClassId, index: u32) -> u32 {
        self.arenas[usize::from(class.0)].refs[index as usize]
    }

    /// References to every block of the class, free ones included as 0.
    pub(super) fn all_refs(&self, class: usize) -> &[u32] {
        &self.arenas[class].refs
    }

    /// Checks that `bytes` more may be held. Every allocation is checked
    /// before the first one is made, so that a refusal changes nothing.
    pub(super) fn check(&self, bytes: u64) -> Result<()> {
        let needed = self.held.saturating_add(bytes);
        if needed > self.budget {
            return Err(Error::KvBudget { needed, held: self.held, budget: self.budget });
        }
        Ok(())
    }

    /// Takes the lowest free block of the class, with one reference.
    pub(super) fn take(&mut self, class: ClassId) -> u32 {
        self.held += self.block_bytes(class);
        self.peak = self.peak.max(self.held);
        debug_assert!(self.held <= self.budget, "allocation without a check");
        let arena = &mut self.arenas[usize::from(class.0)];
        if let Some(Reverse(index)) = arena.free.pop() {
            arena.refs[index as usize] = 1;
            index
        } else {
            arena.refs.push(1);
            (arena.refs.len() - 1) as u32
        }
    }

    /// Adds a reference to a held block.
    pub(super) fn retain(&mut self, class: ClassId, index: u32) {
        self.arenas[usize::from(class.0)].refs[index as usize] += 1;
    }

    /// Drops a reference; with the last one the block is free.
    pub(super) fn release(&mut self, class: ClassId, index: u32) {
        let arena = &mut self.arenas[usize::from(class.0)];
        let refs = &mut arena.refs[index as usize];
        debug_assert!(*refs > 0, "double free of {class:?} {index}");
        *refs -= 1;
        if *refs == 0 {
            arena.free.push(Reverse(index));
            self.held -= self.block_bytes(class);
            self.freed.push(BlockRef { class, index });
        }
    }

    /// The blocks that were freed since the last time and are free still, in order.
    pub(super) fn drain_freed(&mut self) -> Vec<BlockRef> {
        let mut freed = std::mem::take(&mut self.freed);
        freed.retain(|block| self.refs(block.class, block.index) == 0);
        freed.sort_unstable();
        freed.dedup();
        freed
    }

    /// Takes back what [`drain_freed`](Self::drain_freed) gave, since it was of no use.
    pub(super) fn return_freed(&mut self, freed: Vec<BlockRef>) {
        self.freed.extend(freed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::class::ClassKind;
    use super::*;

    #[test]
    fn lowest_index_first_and_bytes_counted_once() {
        let desc = ClassDesc { kind: ClassKind::Hot, group: 0, page_tokens: 64, block_bytes: 10 };
        let mut pool = Pool::new(vec![desc], 35);
        let class = ClassId(0);
        assert_eq!([pool.take(class), pool.take(class), pool.take(class)], [0, 1, 2]);
        assert!(matches!(
            pool.check(10),
            Err(Error::KvBudget { needed: 40, held: 30, budget: 35 })
        ));
        pool.retain(class, 1);
        assert_eq!((pool.held(), pool.refs(class, 1)), (30, 2));
        pool.release(class, 1);
        assert!(pool.drain_freed().is_empty());
        pool.release(class, 2);
        pool.release(class, 1);
        let block = |index| BlockRef { class, index };
        let freed = pool.drain_freed();
        assert_eq!(freed, [block(1), block(2)]);
        assert_eq!((pool.held(), pool.peak(), pool.blocks(0)), (10, 30, 1));
        // What was of no use comes again, but not a block that is in use by then.
        pool.return_freed(freed);
        assert_eq!(pool.take(class), 1);
        assert_eq!(pool.drain_freed(), [block(2)]);
        assert_eq!(pool.take(class), 2);
        assert!(pool.drain_freed().is_empty());
    }
}
