//! The block pool: indices, reference counts and the byte budget.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::class::{BlockRef, ClassDesc, ClassId};
use crate::error::{Error, Result};

/// The blocks of one class.
#[derive(Clone, Debug, Default)]
struct Arena {
    /// References to each block; 0: free or idle.
    refs: Vec<u32>,
    /// Free indices below `refs.len()`, lowest first.
    free: BinaryHeap<Reverse<u32>>,
    /// Of blocks with a content that may be wanted again: its name.
    names: BTreeMap<u32, Name>,
}

/// The name of a block's content, and whether nobody holds the block: since when then.
#[derive(Clone, Copy, Debug)]
struct Name {
    name: u64,
    idle_since: Option<u64>,
}

/// All arenas under one budget. A block counts once, however many share it.
///
/// A block is held, idle or free. An idle one is held by nobody, but has a name; it keeps
/// its content until its memory is needed, that of the longest idle one first.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    classes: Vec<ClassDesc>,
    arenas: Vec<Arena>,
    held: u64,
    peak: u64,
    budget: u64,
    /// Idle blocks by the time since when they are.
    idle: BTreeMap<u64, BlockRef>,
    idle_bytes: u64,
    /// Counts names, and times since when blocks are idle.
    clock: u64,
    /// Blocks that became free since [`drain_freed`](Self::drain_freed).
    freed: Vec<BlockRef>,
}

impl Pool {
    pub(super) fn new(classes: Vec<ClassDesc>, budget: u64) -> Self {
        let arenas = vec![Arena::default(); classes.len()];
        let (idle, freed) = (BTreeMap::new(), Vec::new());
        Self { classes, arenas, held: 0, peak: 0, budget, idle, idle_bytes: 0, clock: 0, freed }
    }

    fn arena(&mut self, class: ClassId) -> &mut Arena {
        &mut self.arenas[usize::from(class.0)]
    }

    pub(super) fn classes(&self) -> &[ClassDesc] {
        &self.classes
    }

    pub(super) fn held(&self) -> u64 {
        self.held
    }

    /// Bytes of idle blocks.
    pub(super) fn idle(&self) -> u64 {
        self.idle_bytes
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
        self.arenas[class].refs.iter().filter(|&&refs| refs > 0).count()
    }

    /// Whether the block must stay as it is: others hold it, or its content has a name.
    pub(super) fn is_shared(&self, class: ClassId, index: u32) -> bool {
        let arena = &self.arenas[usize::from(class.0)];
        arena.refs[index as usize] > 1 || arena.names.contains_key(&index)
    }

    /// References to every block of the class, those that are not held included as 0.
    pub(super) fn all_refs(&self, class: usize) -> &[u32] {
        &self.arenas[class].refs
    }

    /// Checks that `bytes` more may be held, and has idle blocks make room for them. Every
    /// allocation is checked before the first one is made, so that a refusal changes nothing.
    pub(super) fn check(&mut self, bytes: u64) -> Result<()> {
        let needed = self.held.saturating_add(bytes);
        if needed > self.budget {
            return Err(Error::KvBudget { needed, held: self.held, budget: self.budget });
        }
        while needed + self.idle_bytes > self.budget
            && let Some((_, block)) = self.idle.first_key_value()
        {
            self.forget(*block);
        }
        Ok(())
    }

    /// Takes the lowest free block of the class, with one reference.
    pub(super) fn take(&mut self, class: ClassId) -> u32 {
        self.hold(class);
        let arena = self.arena(class);
        if let Some(Reverse(index)) = arena.free.pop() {
            arena.refs[index as usize] = 1;
            index
        } else {
            arena.refs.push(1);
            (arena.refs.len() - 1) as u32
        }
    }

    fn hold(&mut self, class: ClassId) {
        self.held += self.block_bytes(class);
        self.peak = self.peak.max(self.held);
        debug_assert!(self.held + self.idle_bytes <= self.budget, "allocation without a check");
    }

    /// Adds a reference to a held block.
    pub(super) fn retain(&mut self, class: ClassId, index: u32) {
        self.arena(class).refs[index as usize] += 1;
    }

    /// Drops a reference; with the last one the block is idle if it has a name, else free.
    pub(super) fn release(&mut self, class: ClassId, index: u32) {
        let (bytes, clock) = (self.block_bytes(class), self.clock);
        let arena = self.arena(class);
        let refs = &mut arena.refs[index as usize];
        debug_assert!(*refs > 0, "double free of {class:?} {index}");
        *refs -= 1;
        if *refs > 0 {
            return;
        }
        self.held -= bytes;
        match self.arena(class).names.get_mut(&index) {
            Some(name) => {
                name.idle_since = Some(clock);
                self.idle.insert(clock, BlockRef { class, index });
                self.clock += 1;
                self.idle_bytes += bytes;
            }
            None => self.free(BlockRef { class, index }),
        }
    }

    fn free(&mut self, block: BlockRef) {
        self.arena(block.class).free.push(Reverse(block.index));
        self.freed.push(block);
    }

    /// The name of the content of a held block; it stays in memory when nobody holds it any
    /// more.
    pub(super) fn name(&mut self, block: BlockRef) -> u64 {
        let name = Name { name: self.clock, idle_since: None };
        self.clock += 1;
        self.arena(block.class).names.entry(block.index).or_insert(name).name
    }

    /// Whether the block still has the content of that name.
    pub(super) fn has(&self, block: BlockRef, name: u64) -> bool {
        let names = &self.arenas[usize::from(block.class.0)].names;
        names.get(&block.index).is_some_and(|known| known.name == name)
    }

    /// Adds a reference to a block with a name, be it held or idle.
    pub(super) fn revive(&mut self, block: BlockRef) {
        let bytes = self.block_bytes(block.class);
        let name = self.arena(block.class).names.get_mut(&block.index);
        if let Some(since) = name.and_then(|name| name.idle_since.take()) {
            self.idle.remove(&since);
            self.idle_bytes -= bytes;
            self.hold(block.class);
        }
        self.retain(block.class, block.index);
    }

    /// Takes a block's name away; if it is idle, it is free.
    pub(super) fn forget(&mut self, block: BlockRef) {
        let name = self.arena(block.class).names.remove(&block.index);
        if let Some(since) = name.and_then(|name| name.idle_since) {
            self.idle.remove(&since);
            self.idle_bytes -= self.block_bytes(block.class);
            self.free(block);
        }
    }

    /// Counts idle bytes anew.
    pub(super) fn audit_idle(&self) -> std::result::Result<(), String> {
        let mut bytes = 0;
        for (arena, desc) in self.arenas.iter().zip(&self.classes) {
            for (&index, name) in &arena.names {
                if name.idle_since.is_some() != (arena.refs[index as usize] == 0) {
                    return Err(format!("{:?} {index}: idle though held, or not", desc.kind));
                }
                bytes += if name.idle_since.is_some() { desc.block_bytes } else { 0 };
            }
        }
        match bytes == self.idle_bytes {
            true => Ok(()),
            false => Err(format!("{} idle bytes, {bytes} found", self.idle_bytes)),
        }
    }

    /// The blocks that became free since the last time and are free still, in order.
    pub(super) fn drain_freed(&mut self) -> Vec<BlockRef> {
        let mut freed = std::mem::take(&mut self.freed);
        freed.retain(|block| {
            let arena = &self.arenas[usize::from(block.class.0)];
            arena.refs[block.index as usize] == 0 && !arena.names.contains_key(&block.index)
        });
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
        assert_eq!((pool.held(), pool.all_refs(0)[1]), (30, 2));
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

    #[test]
    fn idle_blocks_come_back_or_make_room() {
        let desc = ClassDesc { kind: ClassKind::Hot, group: 0, page_tokens: 64, block_bytes: 10 };
        let mut pool = Pool::new(vec![desc], 35);
        let class = ClassId(0);
        let [a, b] = [pool.take(class), pool.take(class)].map(|index| BlockRef { class, index });
        let names = [pool.name(a), pool.name(b)];
        assert_eq!(pool.name(a), names[0]);
        pool.release(class, a.index);
        pool.release(class, b.index);
        assert_eq!((pool.held(), pool.idle(), pool.blocks(0)), (0, 20, 0));
        assert!(pool.drain_freed().is_empty());
        // Idle ones count to no refusal; the longest idle one makes room.
        assert!(pool.check(36).is_err());
        assert!(pool.has(a, names[0]) && pool.has(b, names[1]));
        pool.check(20).unwrap();
        assert!(!pool.has(a, names[0]) && pool.has(b, names[1]));
        assert_eq!(pool.drain_freed(), [a]);
        pool.revive(b);
        assert_eq!((pool.held(), pool.idle(), pool.all_refs(0)[1]), (10, 0, 1));
        pool.forget(b);
        pool.release(class, b.index);
        assert_eq!((pool.held(), pool.idle(), pool.drain_freed()), (0, 0, vec![b]));
    }
}
