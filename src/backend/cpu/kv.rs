//! The KV cache on the CPU: blocks, and the step that is under way.

use super::arena::ClassArenas;
use super::attention::score::ScorePass;
use super::attention::{self, Asked};
use super::cpu_backend::CpuBackend;
use super::pool::{Shared, parallel_for};
use super::tensor::CpuBuffer;
use super::{ops, seal};
use crate::backend::draw::Choice;
use crate::backend::score_pass::{Score, Scores, Top, TopHeads};
use crate::backend::{
    Attend, AttendSeq, GraphKey, Kernels, Kv, KvGroup, LayerIndex, StepInput, attend_seqs,
};
use crate::cache::{BlockRef, ClassDesc, Compaction, SeqStep};
use crate::codec::{Codec, Side};
use crate::error::{Error, Result};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::ops::Range;
use std::sync::Mutex;

/// The blocks of a model and its step under way.
pub struct CpuArena {
    groups: Vec<KvGroup>,
    blocks: ClassArenas,
    /// Of each group.
    angles: Vec<ops::Angles>,
    pub(super) begun: CpuStep,
}

/// What the step under way has said.
#[derive(Default)]
pub(super) struct CpuStep {
    pub ids: Vec<u32>,
    pub rows: Vec<usize>,
    pub choices: Vec<Choice>,
    seqs: Vec<SeqStep>,
}

impl CpuArena {
    fn group(&self, at: LayerIndex) -> Result<&KvGroup> {
        match self.groups.get(at.group) {
            Some(group) if at.layer < group.layers => Ok(group),
            _ => Err(Error::NotFound {
                what: format!("KV layer {} of group {}", at.layer, at.group),
            }),
        }
    }

    /// The call with what the step says of it.
    fn asked<'a>(&'a self, call: &Attend, seqs: &'a [AttendSeq<'a>]) -> Result<Asked<'a>> {
        let Attend { at, heads, scale, causal, window } = *call;
        let rope = self.group(at)?.rope.as_deref();
        Ok(Asked { at, heads, scale, causal, window, rope, seqs })
    }

    fn seqs(&self, at: LayerIndex) -> Result<Vec<AttendSeq<'_>>> {
        self.group(at)?;
        attend_seqs(&self.begun.seqs, at.group)
    }

    /// Rotates the first heads of rows by the positions of the step.
    fn turn(&mut self, at: LayerIndex, heads: usize, x: &mut CpuBuffer) {
        if let Some(rope) = &self.groups[at.group].rope {
            let positions =
                self.begun.seqs.iter().flat_map(|s| s.position..s.position + s.new_tokens);
            let angles = &mut self.angles[at.group];
            angles.update(rope, positions.collect());
            ops::rope(x, heads, angles);
        }
    }
}

impl Kv for CpuBackend {
    type Arena = CpuArena;

    fn arena(
        &mut self,
        groups: &[KvGroup],
        classes: &[ClassDesc],
        _budget: u64,
    ) -> Result<CpuArena> {
        groups.iter().try_for_each(|group| group.geometry.check(Kernels::Cpu))?;
        let angles = groups.iter().map(|_| ops::Angles::default()).collect();
        let blocks = ClassArenas::new(groups, classes)?;
        Ok(CpuArena { groups: groups.to_vec(), blocks, angles, begun: CpuStep::default() })
    }

    fn kv_bytes(&self, arena: &CpuArena) -> u64 {
        arena.blocks.bytes()
    }

    fn arena_memory(&self, arena: &CpuArena) -> u64 {
        arena.blocks.bytes()
    }

    fn begin(&mut self, arena: &mut CpuArena, input: &StepInput<'_>) -> Result<()> {
        let step = input.step;
        step.frees.iter().for_each(|&block| arena.blocks.free(block));
        step.copies.iter().try_for_each(|copy| arena.blocks.copy(copy))?;
        for restore in &step.restores {
            arena.blocks.write(restore.to, &restore.bytes)?;
        }
        let begun = &mut arena.begun;
        begun.ids = self.drawn.resolve(input.tokens)?;
        begun.rows = input.rows.to_vec();
        begun.choices = input.choices.to_vec();
        begun.seqs.clone_from(&step.seqs);
        Ok(())
    }

    fn repeat(
        &mut self,
        arena: &mut CpuArena,
        _key: &GraphKey,
        mut work: impl FnMut(&mut Self, &mut CpuArena) -> Result<()>,
    ) -> Result<()> {
        work(self, arena)
    }

    fn compact(&mut self, arena: &mut CpuArena, compaction: &Compaction) -> Result<()> {
        compaction.frees.iter().for_each(|&block| arena.blocks.free(block));
        for moved in &compaction.moves {
            arena.blocks.move_page(moved)?;
        }
        for gather in &compaction.gathers {
            let row = arena.blocks.layout(gather.to.class).key_row_bytes();
            for (i, &(from, slot)) in gather.rows.iter().enumerate() {
                let (key, value) = arena.blocks.page(from, gather.stream)?;
                let at = usize::from(slot) * row;
                let (key, value) = (key[at..at + row].to_vec(), value[at..at + row].to_vec());
                let (to_key, to_value) = arena.blocks.page_mut(gather.to, gather.stream);
                to_key[i * row..][..row].copy_from_slice(&key);
                to_value[i * row..][..row].copy_from_slice(&value);
            }
        }
        Ok(())
    }

    fn read_block(&mut self, arena: &CpuArena, block: BlockRef) -> Result<Vec<u8>> {
        arena.blocks.read(block).map(<[u8]>::to_vec)
    }

    fn append(
        &mut self,
        arena: &mut CpuArena,
        at: LayerIndex,
        heads: usize,
        rotated: bool,
        qkv: &mut CpuBuffer,
    ) -> Result<()> {
        let group = arena.group(at)?;
        let (d, n) = (group.head_dim(), group.kv_heads);
        if !rotated {
            // Keys follow queries in the columns, so both rotate at once.
            arena.turn(at, heads + n, qkv);
        }
        let streams = at.layer * n..(at.layer + 1) * n;
        let mut first_row = 0;
        for seq in &arena.begun.seqs {
            for a in seq.appends.iter().filter(|a| a.group == at.group) {
                let layout = arena.blocks.layout(a.block.class);
                let (hot, row_bytes) = (layout.key, layout.key_row_bytes());
                let all = a.stream.map_or(streams.clone(), |s| s..s + 1);
                for stream in all.filter(|s| streams.contains(s)) {
                    let head = stream - streams.start;
                    let (key, value) = arena.blocks.page_mut(a.block, stream);
                    for i in 0..a.n {
                        let row = qkv.row(first_row + a.token + i);
                        let (k, v) = row[heads * d..].split_at(n * d);
                        let at = (a.slot + i) * row_bytes;
                        for (from, to) in [(k, &mut *key), (v, &mut *value)] {
                            narrow(hot, &from[head * d..][..d], &mut to[at..][..row_bytes]);
                        }
                    }
                }
            }
            first_row += seq.new_tokens;
        }
        Ok(())
    }

    fn rotate(
        &mut self,
        arena: &mut CpuArena,
        at: LayerIndex,
        heads: usize,
        q: &mut CpuBuffer,
    ) -> Result<()> {
        arena.group(at)?;
        arena.turn(at, heads, q);
        Ok(())
    }

    fn seal(&mut self, arena: &mut CpuArena, group: usize, layers: Range<usize>) -> Result<()> {
        let Some(last) = layers.end.checked_sub(1) else { return Ok(()) };
        let at = LayerIndex { group, layer: last };
        let group = arena.group(at)?.clone();
        let (d, n) = (group.head_dim(), group.kv_heads);
        let streams = layers.start * n..layers.end * n;
        let mut pages = Vec::new();
        let seals = arena.begun.seqs.iter().flat_map(|s| &s.seals);
        for seal in seals.filter(|s| s.group == at.group) {
            let all = seal.stream.map_or(streams.clone(), |s| s..s + 1);
            for stream in all.filter(|s| streams.contains(s)) {
                // Allocates the block, so that the threads only fill it.
                arena.blocks.page_mut(seal.to, stream);
                pages.push((*seal, stream));
            }
        }
        let mut outputs = Vec::with_capacity(pages.len());
        for (seal, stream) in &pages {
            let (key, value) = arena.blocks.page_mut(seal.to, *stream);
            outputs.push((Shared::new(key), key.len(), Shared::new(value), value.len()));
        }
        let (arenas, level) = (&arena.blocks, self.level);
        let hot = group.format.hot();
        let missing = Mutex::new(None);
        parallel_for(2 * pages.len(), |i| {
            let (seal, stream) = pages[i / 2];
            let (key, key_len, value, value_len) = &outputs[i / 2];
            let (format, feedback) = group.sealing_of(stream);
            let (side, codec, out, len) = match i % 2 {
                0 => (Side::Key, format.key, key, *key_len),
                _ => (Side::Value, format.value, value, *value_len),
            };
            match arenas.page(seal.from, stream) {
                Ok((k, v)) => {
                    let bytes = if side == Side::Key { k } else { v };
                    // SAFETY: each half of each sealed page is written by one
                    // iteration; sealed and hot pages are different blocks.
                    let out = unsafe { out.slice(0, len) };
                    let tile = seal::HotTile { hot, bytes, side, head_dim: d, feedback };
                    seal::seal(level, tile, codec, out);
                }
                Err(error) => {
                    missing.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
                }
            }
        });
        missing.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
    }

    fn attend(
        &mut self,
        arena: &mut CpuArena,
        call: &Attend,
        q: &CpuBuffer,
        out: &mut CpuBuffer,
        lse: Option<&mut CpuBuffer>,
    ) -> Result<()> {
        let seqs = arena.seqs(call.at)?;
        let (asked, group) = (arena.asked(call, &seqs)?, arena.group(call.at)?);
        attention::attend(self.level, &arena.blocks, group, &asked, q, out, lse)
    }

    fn score(
        &mut self,
        arena: &mut CpuArena,
        call: &Attend,
        pass: Score,
        q: &CpuBuffer,
        lse: &CpuBuffer,
        out: &mut Scores,
    ) -> Result<()> {
        let seqs = arena.seqs(call.at)?;
        let (asked, group) = (arena.asked(call, &seqs)?, arena.group(call.at)?);
        let (level, arenas) = (self.level, &arena.blocks);
        ScorePass { level, arenas, group, call: &asked, q, lse }.score(pass, out)
    }

    fn score_top(
        &mut self,
        arena: &mut CpuArena,
        call: &Attend,
        of: TopHeads,
        q: &CpuBuffer,
        lse: &CpuBuffer,
        out: &mut Vec<Top>,
    ) -> Result<()> {
        let seqs = arena.seqs(call.at)?;
        let (asked, group) = (arena.asked(call, &seqs)?, arena.group(call.at)?);
        let (level, arenas) = (self.level, &arena.blocks);
        ScorePass { level, arenas, group, call: &asked, q, lse }.score_top(of, out)
    }
}

/// Rounds floats to a 16-bit type.
fn narrow(codec: Codec, from: &[f32], to: &mut [u8]) {
    // Pages are aligned and their rows have an even number of bytes.
    if codec == Codec::Bf16 {
        bytemuck::cast_slice_mut::<u8, bf16>(to).convert_from_f32_slice(from);
    } else {
        bytemuck::cast_slice_mut::<u8, f16>(to).convert_from_f32_slice(from);
    }
}
