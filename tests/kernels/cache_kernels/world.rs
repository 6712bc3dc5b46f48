//! A device with arenas, and a host copy of what their bytes must be.

use crate::common::random::Random;
use half::{bf16, f16};
use kvfold::backend::cuda::arenas::Arenas;
use kvfold::backend::driver::emulated::EmulatorOptions;
use kvfold::backend::driver::{Device, DeviceStream};
use kvfold::backend::{Geometry, KvGroup, Rope};
use kvfold::cache::{
    BlockRef, CacheConfig, ClassDesc, ClassId, ClassKind, GroupSpec, KvCache, SealedBytes,
};
use kvfold::codec::{Codec, KvFormat, Side, TILE_TOKENS};
use std::ops::Range;

/// The emulated device, and CUDA device 0 if the build and the machine have one.
pub fn devices(seed: u64) -> Vec<Device> {
    // Of few multiprocessors, so that blocks have more than one thing to do.
    let multiprocessors = 1 + seed as u32 % 3;
    let options =
        EmulatorOptions { seed, host_threads: 2, multiprocessors, ..EmulatorOptions::default() };
    [Device::emulated(options)].into_iter().chain(Device::cuda(0).ok()).collect()
}

pub fn group(format: &str, head_dim: usize, layers: usize, kv_heads: usize) -> KvGroup {
    let format = format.parse().unwrap();
    KvGroup {
        layers,
        kv_heads,
        geometry: Geometry::gqa(head_dim),
        format,
        streams: None,
        sinks: 4,
        hot_window: 128,
        rope: None,
        window: None,
    }
}

pub fn rope(head_dim: usize) -> Rope {
    let half = head_dim / 2;
    Rope { inv_freq: (0..half).map(|i| 500_000f64.powf(-(i as f64) / half as f64)).collect() }
}

pub fn narrow(codec: Codec, x: f32) -> u16 {
    if codec == Codec::Bf16 { bf16::from_f32(x).to_bits() } else { f16::from_f32(x).to_bits() }
}

pub fn widen(codec: Codec, bits: u16) -> f32 {
    if codec == Codec::Bf16 {
        bf16::from_bits(bits).to_f32()
    } else {
        f16::from_bits(bits).to_f32()
    }
}

/// The books of groups, with more budget than any test needs.
pub fn cache_of(groups: &[KvGroup]) -> KvCache {
    let spec = |g: &KvGroup| GroupSpec {
        layers: g.layers,
        kv_heads: g.kv_heads,
        hot_page_bytes: g.geometry.page_bytes(KvFormat::uniform(g.format.hot())) as u64,
        sealed: (g.format.seals()).then(|| {
            SealedBytes::equal(g.geometry.page_bytes(g.format) as u64, g.layers * g.kv_heads)
        }),
        sinks: g.sinks,
        hot_window: g.hot_window,
        window: g.window,
    };
    let specs = groups.iter().map(spec).collect();
    KvCache::new(CacheConfig { groups: specs, budget_bytes: 1 << 32 }).unwrap()
}

pub struct World {
    pub device: Device,
    pub stream: DeviceStream,
    pub groups: Vec<KvGroup>,
    pub cache: KvCache,
    pub classes: Vec<ClassDesc>,
    pub arenas: Arenas,
    /// What the arenas must hold, by class.
    pub bytes: Vec<Vec<u8>>,
    pub random: Random,
}

impl World {
    /// Arenas of `blocks` uniform blocks a class and as many ragged ones a stream, with
    /// canaries, filled with a pattern.
    pub fn new(device: &Device, groups: Vec<KvGroup>, blocks: u32, seed: u64) -> Self {
        let cache = cache_of(&groups);
        let classes = cache.classes().to_vec();
        let counts: Vec<u32> = classes
            .iter()
            .map(|c| match is_ragged(c) {
                true => blocks * (groups[c.group].layers * groups[c.group].kv_heads) as u32,
                false => blocks,
            })
            .collect();
        let stream = device.stream().unwrap();
        let n_bytes = |(class, n): (&ClassDesc, &u32)| class.block_bytes * u64::from(*n);
        let budget = classes.iter().zip(&counts).map(n_bytes).sum();
        let mut arenas = Arenas::with_canaries(device, &groups, &classes, budget, &stream).unwrap();
        let bytes = (classes.iter().zip(&counts))
            .map(|(class, n)| vec![0xa5u8; class.block_bytes as usize * *n as usize])
            .collect();
        for (class, n) in counts.iter().enumerate() {
            arenas.take(&blocks_of(class, *n as usize), &stream).unwrap();
        }
        let (device, random) = (device.clone(), Random::new(seed));
        let mut world = Self { device, stream, groups, cache, classes, arenas, bytes, random };
        world.upload();
        world
    }

    /// The class of this kind of group 0.
    pub fn class(&self, kind: ClassKind) -> ClassId {
        ClassId(self.classes.iter().position(|c| c.group == 0 && c.kind == kind).unwrap() as u16)
    }

    /// Codec and bytes (within a class) of one half of a stream's page.
    pub fn half(&self, block: BlockRef, stream: usize, side: Side) -> (Codec, Range<usize>) {
        let class = &self.classes[usize::from(block.class.0)];
        let group = &self.groups[class.group];
        let sealed = matches!(class.kind, ClassKind::Sealed | ClassKind::RaggedSealed);
        let hot = KvFormat::uniform(group.format.hot());
        let format = if sealed { group.format } else { hot };
        let size =
            |c: Codec| c.tile().tile_bytes(group.head_dim()) * class.page_tokens / TILE_TOKENS;
        let (key, value) = (size(format.key), size(format.value));
        let page = if is_ragged(class) { 0 } else { stream * (key + value) };
        let first = class.block_bytes as usize * block.index as usize + page;
        match side {
            Side::Key => (format.key, first..first + key),
            Side::Value => (format.value, first + key..first + key + value),
        }
    }

    /// As [`half`](Self::half), one row of it.
    pub fn row(&self, block: BlockRef, stream: usize, side: Side, slot: usize) -> Range<usize> {
        let (_, half) = self.half(block, stream, side);
        let class = &self.classes[usize::from(block.class.0)];
        let bytes = half.len() / class.page_tokens;
        half.start + slot * bytes..half.start + (slot + 1) * bytes
    }

    /// Writes to the device what the host expects it to hold.
    pub fn upload(&mut self) {
        for (i, class) in self.classes.iter().enumerate() {
            let blocks = self.bytes[i].chunks_exact(class.block_bytes as usize);
            for (bytes, block) in blocks.clone().zip(blocks_of(i, blocks.len())) {
                self.arenas.write(block, bytes, &self.stream).unwrap();
            }
        }
    }

    /// Every byte of every block, and that nothing was written behind any.
    #[track_caller]
    pub fn check(&self) {
        for (i, class) in self.classes.iter().enumerate() {
            let blocks = self.bytes[i].chunks_exact(class.block_bytes as usize);
            for (want, block) in blocks.clone().zip(blocks_of(i, blocks.len())) {
                let got = self.arenas.read(block, &self.stream).unwrap();
                let Some(at) = got.iter().zip(want).position(|(g, w)| g != w) else { continue };
                panic!(
                    "{:?}, {}: byte {at} of block {} is {:#x}, not {:#x}",
                    class.kind, self.groups[class.group].format, block.index, got[at], want[at]
                );
            }
        }
        self.arenas.check_canaries(&self.stream).unwrap();
    }
}

/// The first `n` blocks of a class.
fn blocks_of(class: usize, n: usize) -> Vec<BlockRef> {
    (0..n as u32).map(|index| BlockRef { class: ClassId(class as u16), index }).collect()
}

fn is_ragged(class: &ClassDesc) -> bool {
    use ClassKind::{RaggedHot, RaggedSealed, RaggedSink};
    matches!(class.kind, RaggedHot | RaggedSealed | RaggedSink)
}
