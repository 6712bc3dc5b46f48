//! One budget, many classes, on the emulated device with its small chunks.

use super::*;
use crate::backend::cuda::append::AppendPlan;
use crate::backend::cuda::copy::Copier;
use crate::backend::cuda::seal::SealPlan;
use crate::backend::cuda::tables::AttendTables;
use crate::backend::driver::emulated::EmulatorOptions;
use crate::backend::{AttendSeq, Geometry};
use crate::cache::{
    CacheConfig, ClassKind, CopyBlock, GroupSpec, KvCache, RowKind, Seal, SealedBytes,
};
use crate::codec::KvFormat;
use std::collections::HashSet;

const BUDGET: u64 = 1 << 20;
/// The emulated device's.
const CHUNK: u64 = 4096;

struct World {
    device: Device,
    stream: DeviceStream,
    cache: KvCache,
    arenas: Arenas,
}

fn world(memory: u64) -> World {
    let format: KvFormat = "kivi2".parse().unwrap();
    let group = KvGroup {
        layers: 1,
        kv_heads: 2,
        geometry: Geometry::gqa(64),
        format,
        streams: None,
        sinks: 4,
        hot_window: 128,
        rope: None,
        window: None,
    };
    let page = |format: KvFormat| format.page_bytes([64; 2]) as u64;
    let spec = GroupSpec {
        layers: 1,
        kv_heads: 2,
        hot_page_bytes: page(KvFormat::uniform(format.hot())),
        sealed: Some(SealedBytes::equal(page(format), 2)),
        sinks: 4,
        hot_window: 128,
        window: None,
    };
    let cache = KvCache::new(CacheConfig { groups: vec![spec], budget_bytes: BUDGET }).unwrap();
    let device = Device::emulated(EmulatorOptions { memory, ..Default::default() });
    let stream = device.stream().unwrap();
    let arenas = Arenas::new(&device, &[group], cache.classes(), BUDGET, &stream).unwrap();
    World { device, stream, cache, arenas }
}

impl World {
    fn class(&self, kind: ClassKind) -> ClassId {
        ClassId(self.cache.classes().iter().position(|c| c.kind == kind).unwrap() as u16)
    }

    fn blocks(&self, kind: ClassKind, range: std::ops::Range<u32>) -> Vec<BlockRef> {
        let class = self.class(kind);
        range.map(|index| BlockRef { class, index }).collect()
    }

    /// Blocks of a class that fill the budget.
    fn all(&self, kind: ClassKind) -> Vec<BlockRef> {
        let most = BUDGET / self.arenas.block_bytes(self.class(kind));
        self.blocks(kind, 0..most as u32)
    }

    fn take(&mut self, blocks: &[BlockRef]) -> Result<()> {
        self.arenas.take(blocks, &self.stream)
    }

    fn limit(&self) -> u64 {
        BUDGET + CHUNK * self.cache.classes().len() as u64
    }
}

#[test]
fn growth_keeps_addresses_and_content() {
    let mut w = world(1 << 30);
    let addresses = |w: &World| w.arenas.memory.iter().map(|m| m.address()).collect::<Vec<_>>();
    let before = addresses(&w);
    assert!(before.iter().all(|address| *address > 0));
    assert_eq!((w.arenas.bytes(), w.arenas.committed_bytes()), (0, 0));
    let (hot, sealed) = (w.class(ClassKind::Hot), w.class(ClassKind::Sealed));
    // A sealed block is one and a half chunks.
    assert_eq!((w.arenas.block_bytes(hot), w.arenas.block_bytes(sealed)), (8 * CHUNK, 6144));
    let mut both = w.blocks(ClassKind::Hot, 0..1);
    both.extend(w.blocks(ClassKind::Sealed, 0..1));
    w.take(&both).unwrap();
    assert_eq!((w.arenas.bytes(), w.arenas.committed_bytes()), (8 * CHUNK + 6144, 10 * CHUNK));
    for class in [hot, sealed] {
        let bytes = w.arenas.memory(class).unwrap();
        bytes.fill(class.0 as u8 + 1, &w.stream).unwrap();
    }
    let mut more = w.blocks(ClassKind::Hot, 0..20);
    more.extend(w.blocks(ClassKind::Sealed, 0..50));
    w.take(&more).unwrap();
    assert_eq!(addresses(&w), before);
    for (class, blocks) in [(hot, 20), (sealed, 50)] {
        let size = w.arenas.block_bytes(class) as usize;
        let bytes = w.arenas.memory(class).unwrap().to_vec(&w.stream).unwrap();
        assert_eq!(bytes.len(), blocks * size);
        assert!(bytes[..size].iter().all(|b| *b == class.0 as u8 + 1));
        assert!(bytes[size + CHUNK as usize..].iter().all(|b| *b == 0xff), "poison");
    }
    // What the kernels see.
    let entries = w.arenas.table.to_vec(&w.stream).unwrap();
    assert_eq!(entries.iter().map(|e| e.base).collect::<Vec<_>>(), before);
}

#[test]
fn classes_exchange_memory() {
    let mut w = world(1 << 30);
    let free = w.device.memory().unwrap().free;
    let kinds = [ClassKind::Hot, ClassKind::Sealed, ClassKind::RaggedHot, ClassKind::Hot];
    for kind in kinds {
        let all = w.all(kind);
        w.take(&all).unwrap();
        let (held, committed) = (w.arenas.bytes(), w.arenas.committed_bytes());
        assert!(held <= BUDGET && held + w.arenas.block_bytes(w.class(kind)) > BUDGET);
        assert!((held..=w.limit()).contains(&committed), "{kind:?}: {committed}");
        assert_eq!(free - w.device.memory().unwrap().free, committed);
        match w.take(&w.blocks(ClassKind::RaggedSealed, 0..9)) {
            Err(Error::KvBudget { needed, held: h, budget: BUDGET }) => {
                assert!(h == held && needed > BUDGET);
            }
            other => panic!("{other:?}"),
        }
        w.arenas.free(&all);
        assert_eq!((w.arenas.bytes(), w.arenas.committed_bytes()), (0, committed), "kept");
    }
    drop(w.arenas);
    assert!(w.device.memory().unwrap().free >= free);
}

#[test]
fn memory_that_others_have_is_missed_by_the_byte() {
    let mut w = world(BUDGET);
    let free = |w: &World| w.device.memory().unwrap().free;
    let others = w.device.alloc::<u8>(BUDGET as usize / 2).unwrap();
    let (ragged, hot) = (w.blocks(ClassKind::RaggedHot, 0..1), w.blocks(ClassKind::Hot, 0..20));
    w.take(&ragged).unwrap();
    let before = w.arenas.committed_bytes();
    // 20 hot blocks are 640 KB.
    match w.take(&hot) {
        Err(Error::DeviceOutOfMemory { needed, free }) => {
            assert_eq!(needed, 8 * CHUNK);
            assert!(free < needed);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(w.arenas.bytes(), w.arenas.block_bytes(ragged[0].class));
    assert!(w.arenas.block(ragged[0]).is_ok() && w.arenas.block(hot[0]).is_err());
    // Chunks that the attempt left behind serve whoever comes next, of any class.
    assert!(w.arenas.committed_bytes() > before && free(&w) < 8 * CHUNK);
    let sealed = w.blocks(ClassKind::Sealed, 0..60);
    w.take(&sealed).unwrap();
    assert!(w.arenas.bytes() + free(&w) <= BUDGET / 2);
    w.take(&hot[..2]).unwrap();
    drop(others);
    w.take(&hot).unwrap();

    // A budget of more than the device has.
    let mut w = world(BUDGET / 2);
    let all = w.all(ClassKind::Hot);
    match w.take(&all) {
        Err(Error::DeviceOutOfMemory { needed, free }) => {
            assert_eq!((needed, free), (BUDGET / 2 + 8 * CHUNK, BUDGET / 2));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_block_that_was_never_taken_is_not_found() {
    let mut w = world(1 << 30);
    let seq = w.cache.create();
    let step = w.cache.prepare(&[(seq, 70)]).unwrap();
    let mut tables = AttendTables::new(&w.device).unwrap();
    let attend =
        AttendSeq { first_row: 0, q_len: 70, kind: RowKind::Prompt, view: &step.seqs[0].views[0] };
    let told = |r: Result<()>| match r {
        Err(Error::NotFound { what }) => what,
        other => panic!("{other:?}"),
    };
    let mut set = |w: &World| tables.set(&w.arenas, 0, &[attend], 0, None, &w.stream);
    assert!(told(set(&w)).contains("KV block 0 of class"));
    let mut plan = AppendPlan::new(&w.device).unwrap();
    plan.set(&mut w.arenas, 0, &step.seqs, 0, &w.stream).unwrap();
    set(&w).unwrap();
    assert_eq!(w.arenas.bytes(), w.cache.held_bytes());

    let hot = w.blocks(ClassKind::Hot, 0..10);
    let to = w.blocks(ClassKind::Sealed, 0..1)[0];
    let mut seqs = step.seqs.clone();
    seqs[0].seals = vec![Seal { group: 0, stream: None, from: hot[9], to }];
    let mut seals = SealPlan::new(&w.device).unwrap();
    assert!(told(seals.set(&mut w.arenas, 0, &seqs, 0, &w.stream)).contains("block 9"));
    let mut copier = Copier::new(&w.device).unwrap();
    let copy = CopyBlock { from: hot[8], to: hot[9] };
    assert!(told(copier.copy(&mut w.arenas, &[copy], &w.stream)).contains("block 8"));
    // Whatever was refused has taken nothing; whatever is written is taken.
    assert_eq!(w.arenas.bytes(), w.cache.held_bytes());
    copier.copy(&mut w.arenas, &[CopyBlock { from: hot[0], to: hot[9] }], &w.stream).unwrap();
    assert!(w.arenas.block(hot[9]).is_ok());
    // More than the budget could hold, and classes that there are not.
    let beyond = BlockRef { index: u32::MAX, ..hot[0] };
    assert!(told(w.take(&[beyond])).contains("KV block 4294967295"));
    assert!(told(w.take(&[BlockRef { class: ClassId(99), index: 0 }])).contains("class 99"));
    w.arenas.free(&[beyond, BlockRef { class: ClassId(99), index: 0 }, hot[9], hot[9]]);
    w.cache.abort(step);
    w.arenas.free(&w.cache.release().frees);
    assert_eq!((w.arenas.bytes(), w.cache.held_bytes()), (0, 0));
}

/// xorshift64.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn accounts_equal_the_books_under_random_takes_and_frees() {
    for seed in 1..4 {
        let mut state = seed * 0x9e37_79b9_7f4a_7c15;
        let mut w = world(2 * BUDGET);
        let free = w.device.memory().unwrap().free;
        let mut held: Vec<BlockRef> = Vec::new();
        for _ in 0..400 {
            let class = ClassId((random(&mut state) % w.cache.classes().len() as u64) as u16);
            let size = w.arenas.block_bytes(class);
            if random(&mut state) % 5 < 3 {
                let most = (BUDGET / size).min(60);
                let n = random(&mut state) % 4;
                let blocks: Vec<_> = (0..n)
                    .map(|_| BlockRef { class, index: (random(&mut state) % most) as u32 })
                    .collect();
                let new: HashSet<_> = blocks.iter().filter(|b| !held.contains(b)).collect();
                let fits = w.arenas.bytes() + new.len() as u64 * size <= BUDGET;
                let taken = w.arenas.take(&blocks, &w.stream);
                assert_eq!(taken.is_ok(), fits, "{taken:?}");
                if fits {
                    held.extend(new);
                }
            } else {
                let n = (random(&mut state) % 6) as usize;
                let freed: Vec<_> = (0..n.min(held.len()))
                    .map(|_| held.swap_remove((random(&mut state) % held.len() as u64) as usize))
                    .collect();
                w.arenas.free(&freed);
            }
            let books: u64 = held.iter().map(|block| w.arenas.block_bytes(block.class)).sum();
            assert_eq!(w.arenas.bytes(), books);
            let committed = w.arenas.committed_bytes();
            assert_eq!(free - w.device.memory().unwrap().free, committed);
            // Chunks that hold blocks in use have memory; idle ones within the limit.
            let chunks = |&block: &BlockRef| {
                let size = w.arenas.block_bytes(block.class);
                let first = u64::from(block.index) * size;
                (first / CHUNK..(first + size).div_ceil(CHUNK)).map(move |c| (block.class, c))
            };
            let needed = held.iter().flat_map(chunks).collect::<HashSet<_>>().len() as u64 * CHUNK;
            assert!(needed <= committed && committed <= w.limit().max(needed));
            for block in &held {
                let layout = w.arenas.block(*block).unwrap();
                let memory = &w.arenas.memory[usize::from(block.class.0)];
                let at = memory.address() + u64::from(block.index) * layout.block_bytes() as u64;
                // SAFETY: the block is in use; it would fault if it had no memory.
                let mut bytes =
                    unsafe { DeviceBuffer::<u8>::borrow(&w.device, at, layout.block_bytes()) };
                bytes.fill(block.index as u8, &w.stream).unwrap();
            }
        }
    }
}
