//! The CPU's KV cache in the default model's geometry: 30 layers, 9 query and 3 KV heads
//! of 64 channels.

use kvfold::backend::cpu::{CpuArena, CpuBackend, CpuBuffer, Level};
use kvfold::backend::{
    Geometry, Kv, KvGroup, LayerIndex, Memory, RowToken, StepInput, StreamFormat,
};
use kvfold::cache::{KvCache, NewTokens, RowKind, SeqId, Step};
use kvfold::codec::KvFormat;
use kvfold::model::cache_config;
use std::sync::Arc;

pub const LAYERS: usize = 30;
pub const HEADS: usize = 9;
pub const KV_HEADS: usize = 3;
pub const HEAD_DIM: usize = 64;
pub const CHUNK: usize = 512;

/// A sequence that grows from one context to the next.
pub struct Cached {
    pub backend: CpuBackend,
    pub arena: CpuArena,
    pub cache: KvCache,
    pub seq: SeqId,
    /// `CHUNK` rows of random queries, keys and values, the same in every layer.
    pub qkv: CpuBuffer,
}

impl Cached {
    /// `streams`: formats of each, where they differ.
    pub fn new(level: Level, format: KvFormat, streams: Option<Arc<[StreamFormat]>>) -> Self {
        let group = KvGroup {
            layers: LAYERS,
            kv_heads: KV_HEADS,
            geometry: Geometry::gqa(HEAD_DIM),
            format,
            streams,
            sinks: 4,
            hot_window: 128,
            rope: None,
            window: None,
        };
        let groups = [group];
        let mut cache = KvCache::new(cache_config(&groups, u64::MAX)).unwrap();
        let mut backend = CpuBackend::with_level(level);
        let arena = backend.arena(&groups, cache.classes(), cache.budget()).unwrap();
        let seq = cache.create();
        let qkv = backend.buffer(0, 0).unwrap();
        Self { backend, arena, cache, seq, qkv }
    }

    /// Random rows for the next `rows` tokens.
    fn draw(&mut self, rows: usize) {
        let cols = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
        let mut state = 0x9e37_79b9u32 ^ rows as u32;
        let floats: Vec<f32> = (0..rows * cols)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect();
        self.backend.write(&floats, cols, &mut self.qkv).unwrap();
    }

    /// Appends `rows` tokens to every layer; the step is to be sealed and committed.
    pub fn append(&mut self, rows: usize) -> Step {
        self.draw(rows);
        // Few rows are a draft.
        let kind = if rows <= 16 { RowKind::Generated } else { RowKind::Prompt };
        let step = self.cache.prepare(&[NewTokens { seq: self.seq, n: rows, kind }]).unwrap();
        let tokens = vec![RowToken::Given(0); rows];
        let input = StepInput { step: &step, tokens: &tokens, rows: &[], choices: &[] };
        self.backend.begin(&mut self.arena, &input).unwrap();
        for layer in 0..LAYERS {
            let at = LayerIndex { group: 0, layer };
            self.backend.append(&mut self.arena, at, HEADS, true, &mut self.qkv).unwrap();
        }
        step
    }

    /// Seals, in every layer, what the last step seals.
    pub fn seal(&mut self) {
        for layer in 0..LAYERS {
            self.backend.seal(&mut self.arena, 0, layer..layer + 1).unwrap();
        }
    }

    pub fn commit(&mut self, step: Step, rows: usize) {
        self.cache.commit(step, &[rows]).unwrap();
    }

    /// Forgets all tokens.
    #[allow(dead_code)] // Of the benches that share this file, one needs it.
    pub fn clear(&mut self) {
        self.cache.free(self.seq).unwrap();
        self.seq = self.cache.create();
    }
}
