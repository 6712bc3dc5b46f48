//! Gather and copy.

use super::world::{World, devices, group};
use kvfold::backend::cuda::copy::Copier;
use kvfold::backend::cuda::gather::Gatherer;
use kvfold::cache::{BlockRef, ClassId, CopyBlock, SeqId};
use kvfold::codec::Side;

impl World {
    /// Compacts group 0 of a sequence on the device and in the host's copy.
    pub fn compact(&mut self, seq: SeqId, keep: &[Vec<u32>]) {
        let compaction = self.cache.compact(seq, 0, keep).unwrap();
        let mut copier = Copier::new(&self.device).unwrap();
        copier.move_pages(&mut self.arenas, &compaction.moves, &self.stream).unwrap();
        for moved in &compaction.moves {
            let [from, to] = [moved.from, moved.to].map(|block| usize::from(block.class.0));
            let [size, page] = [from, to].map(|class| self.classes[class].block_bytes as usize);
            let at = moved.from.index as usize * size + moved.stream * page;
            let page_bytes = self.bytes[from][at..at + page].to_vec();
            self.bytes[to][moved.to.index as usize * page..][..page].copy_from_slice(&page_bytes);
        }
        let mut gatherer = Gatherer::new(&self.device).unwrap();
        gatherer.gather(&mut self.arenas, &compaction.gathers, &self.stream).unwrap();
        for gather in &compaction.gathers {
            for (i, (from, slot)) in gather.rows.iter().enumerate() {
                for side in [Side::Key, Side::Value] {
                    let row = self.row(*from, gather.stream, side, usize::from(*slot));
                    let row = self.bytes[usize::from(from.class.0)][row].to_vec();
                    let to = self.row(gather.to, gather.stream, side, i);
                    self.bytes[usize::from(gather.to.class.0)][to].copy_from_slice(&row);
                }
            }
        }
        self.check();
    }

    /// Numbers every 16-bit word, so that no two rows are alike.
    fn fill(&mut self) {
        for bytes in &mut self.bytes {
            bytes.iter_mut().for_each(|b| *b = self.random.next() as u8);
        }
        self.upload();
    }
}

#[test]
fn kept_rows_move_to_ragged_blocks() {
    for (seed, (format, d)) in
        [("f16", 64), ("bf16", 128), ("kivi2", 256), ("f16", 96)].into_iter().enumerate()
    {
        for device in devices(seed as u64) {
            let mut world = World::new(&device, vec![group(format, d, 2, 2)], 12, seed as u64);
            world.fill();
            let seqs = [world.cache.create(), world.cache.create()];
            for n in [50, 100] {
                let step = world.cache.prepare(&seqs.map(|s| (s, n))).unwrap();
                world.cache.commit(step, &[n, n]).unwrap();
            }
            // Unequal streams, one of them empty; then a ragged sequence again.
            let keep = |kept: &[usize], world: &mut World| -> Vec<Vec<u32>> {
                let pick = |n: &usize| {
                    (0..*n as u32).filter(|_| world.random.below(3) > 0).collect::<Vec<_>>()
                };
                kept.iter().map(pick).collect()
            };
            let mut first = keep(&[150, 150, 150, 150], &mut world);
            first[1].clear();
            first[2] = (0..150).collect();
            world.compact(seqs[1], &first);
            let kept: Vec<usize> = first.iter().map(Vec::len).collect();
            let second = keep(&kept, &mut world);
            world.compact(seqs[1], &second);
            // Sealed pages move whole.
            if group(format, d, 2, 2).format.seals() {
                for n in [200, 130] {
                    let step = world.cache.prepare(&[(seqs[0], n)]).unwrap();
                    world.cache.commit(step, &[n]).unwrap();
                }
                let mut third = keep(&[480; 4], &mut world);
                third[3].retain(|index| !(68..132).contains(index));
                world.compact(seqs[0], &third);
            }
        }
    }
}

#[test]
fn blocks_are_copied_whole() {
    for (seed, format) in [(0, "kivi2"), (1, "bf16/fp8"), (2, "f16")] {
        for device in devices(seed) {
            let groups = vec![group(format, 64, 3, 2), group("kivi4", 32, 1, 1)];
            let mut world = World::new(&device, groups, 6, seed);
            world.fill();
            let mut copies = Vec::new();
            for class in 0..world.classes.len() {
                let at = world.random.permutation(6);
                for pair in at.chunks_exact(2).take(2) {
                    let block = |index| BlockRef { class: ClassId(class as u16), index };
                    copies.push(CopyBlock { from: block(pair[0]), to: block(pair[1]) });
                }
            }
            let mut copier = Copier::new(&device).unwrap();
            copier.copy(&mut world.arenas, &[], &world.stream).unwrap();
            world.check();
            copier.copy(&mut world.arenas, &copies, &world.stream).unwrap();
            for copy in &copies {
                let class = usize::from(copy.from.class.0);
                let size = world.classes[class].block_bytes as usize;
                let from = copy.from.index as usize * size;
                world.bytes[class].copy_within(from..from + size, copy.to.index as usize * size);
            }
            world.check();
        }
    }
}
