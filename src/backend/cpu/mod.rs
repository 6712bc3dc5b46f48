//! The CPU backend: the embedded default.
//!
//! Attention reads compressed pages in place with the widest instruction set
//! that the processor has; dense layers run on products of our own in the file's blocks,
//! and on candle's where there are none.

mod arena;
mod attention;
mod dense;
mod ops;
pub(super) mod pool;
mod seal;
mod simd;
mod slab;
mod tensor;
#[cfg(target_arch = "x86_64")]
mod vnni;
#[cfg(target_arch = "x86_64")]
mod vnni_k;

use super::draw::Choice;
use super::score::{Score, Scores, Top, TopHeads};
use super::{
    Attend, Backend, Ids, KvGroup, LayerIndex, MatrixBytes, Rope, StepInput, WeightPolicy,
};
use crate::cache::{BlockRef, ClassDesc, CopyBlock, Gather, SeqStep};
use crate::codec::{Codec, Side};
use crate::error::{Error, Result};
use arena::Arenas;
use attention::Pass;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use pool::{Shared, parallel_for};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Mutex;

pub use dense::Matrix;
pub use pool::{THREADS, set_threads};
pub use simd::Level;
pub use tensor::Buffer;

/// Threads that the CPU backend uses, the calling one included.
pub fn threads() -> usize {
    pool::threads()
}

/// Arenas, instruction set and layouts.
pub struct CpuBackend {
    level: Level,
    groups: Vec<KvGroup>,
    arenas: Arenas,
    angles: ops::Angles,
    begun: Begun,
    drawn: Vec<Option<u32>>,
    sent: VecDeque<Vec<Option<u32>>>,
}

/// What the step in hand has said.
#[derive(Default)]
struct Begun {
    ids: Vec<u32>,
    rows: Vec<usize>,
    choices: Vec<Choice>,
}

impl CpuBackend {
    /// A backend at the processor's best level.
    pub fn new() -> Self {
        Self::with_level(Level::best())
    }

    /// A backend at a given level; one that the processor lacks runs portably.
    pub fn with_level(level: Level) -> Self {
        Self {
            level,
            groups: Vec::new(),
            arenas: Arenas::default(),
            angles: ops::Angles::default(),
            begun: Begun::default(),
            drawn: Vec::new(),
            sent: VecDeque::new(),
        }
    }

    fn pass<'a>(
        &'a self,
        call: &'a Attend<'a>,
        q: &'a Buffer,
        lse: &'a Buffer,
    ) -> Result<Pass<'a>> {
        let group = self.group(call.at)?;
        Ok(Pass { level: self.level, arenas: &self.arenas, group, call, q, lse })
    }

    fn group(&self, at: LayerIndex) -> Result<&KvGroup> {
        match self.groups.get(at.group) {
            Some(group) if at.layer < group.layers => Ok(group),
            _ => Err(Error::NotFound {
                what: format!("KV layer {} of group {}", at.layer, at.group),
            }),
        }
    }
}

impl Default for CpuBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for CpuBackend {
    type Buffer = Buffer;
    type Matrix = Matrix;
    type Vector = Vec<f32>;

    fn name(&self) -> String {
        format!("cpu, {} threads, {}", threads(), self.level.name())
    }

    fn buffer(&self, rows: usize, cols: usize) -> Result<Buffer> {
        Ok(Buffer::with_capacity(rows, cols))
    }

    fn write(&self, rows: &[f32], cols: usize, to: &mut Buffer) -> Result<()> {
        if cols == 0 || !rows.len().is_multiple_of(cols) {
            return Err(Error::config("rows", format!("{} floats, {cols} a row", rows.len())));
        }
        to.resize(rows.len() / cols, cols);
        for (i, row) in rows.chunks_exact(cols).enumerate() {
            to.row_mut(i).copy_from_slice(row);
        }
        Ok(())
    }

    fn read_row(&self, from: &Buffer, row: usize, out: &mut [f32]) -> Result<()> {
        if row >= from.rows() || out.len() != from.cols() {
            return Err(Error::config("row", format!("{row} of {} floats", out.len())));
        }
        out.copy_from_slice(from.row(row));
        Ok(())
    }

    fn rows(&self, from: &Buffer, rows: Range<usize>, to: &mut Buffer) -> Result<()> {
        select(from, rows, to)
    }

    fn matrix(&self, parts: &[MatrixBytes<'_>], policy: WeightPolicy) -> Result<Matrix> {
        Matrix::new(parts, policy)
    }

    fn vector(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn matrix_bytes(&self, matrix: &Matrix) -> u64 {
        matrix.bytes()
    }

    fn begin(&mut self, step: &StepInput<'_>) -> Result<()> {
        let ids = match step.ids {
            Ids::Given(ids) => Some(ids.to_vec()),
            Ids::Drawn(_) => self.drawn.iter().copied().collect(),
        };
        self.drawn.clear();
        let ids = ids.filter(|ids| ids.len() == step.ids.len()).ok_or_else(|| {
            Error::config("ids", "the step before has not drawn a token for each row")
        })?;
        let (rows, choices) = (step.rows.to_vec(), step.choices.to_vec());
        self.begun = Begun { ids, rows, choices };
        Ok(())
    }

    fn repeat(&mut self, _key: u64, mut work: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        work(self)
    }

    fn embed(&self, table: &Matrix, to: &mut Buffer) -> Result<()> {
        table.embed(&self.begun.ids, to)
    }

    fn select(&self, from: &Buffer, to: &mut Buffer) -> Result<()> {
        select(from, self.begun.rows.iter().copied(), to)
    }

    fn matmul(&self, matrix: &Matrix, x: &mut Buffer, y: &mut Buffer) -> Result<()> {
        matrix.matmul(x, y)
    }

    fn logits(&self, matrix: &Matrix, x: &mut Buffer, y: &mut Buffer) -> Result<()> {
        matrix.matmul(x, y)
    }

    fn sample(&mut self, logits: &mut Buffer) -> Result<()> {
        let Begun { ids, rows, choices } = &self.begun;
        if choices.len() != logits.rows() || choices.len() != rows.len() {
            let what = format!("{} for {} rows of logits", choices.len(), logits.rows());
            return Err(Error::config("choices", what));
        }
        self.drawn.clear();
        for (i, (choice, row)) in choices.iter().zip(rows).enumerate() {
            let logits = logits.row_mut(i);
            choice.penalty.apply(logits, ids[*row]);
            self.drawn.push(choice.draw.token(logits)?);
        }
        Ok(())
    }

    fn send_tokens(&mut self) -> Result<()> {
        self.sent.push_back(self.drawn.clone());
        Ok(())
    }

    fn receive_tokens(&mut self) -> Result<Vec<Option<u32>>> {
        self.sent.pop_front().ok_or_else(|| Error::config("tokens", "none were sent"))
    }

    fn add_bias(&self, x: &mut Buffer, bias: &Vec<f32>) -> Result<()> {
        ops::add_bias(x, bias);
        Ok(())
    }

    fn rms_norm(
        &self,
        x: &mut Buffer,
        delta: Option<&Buffer>,
        weight: &Vec<f32>,
        eps: f32,
        y: &mut Buffer,
    ) -> Result<()> {
        if let Some(delta) = delta {
            ops::add(x, delta);
        }
        ops::rms_norm(x, weight, eps, y);
        Ok(())
    }

    fn head_norm(
        &self,
        x: &mut Buffer,
        first_col: usize,
        heads: usize,
        weight: &Vec<f32>,
        eps: f32,
    ) -> Result<()> {
        ops::head_norm(x, first_col, heads, weight, eps);
        Ok(())
    }

    fn silu_mul(&self, x: &Buffer, y: &mut Buffer) -> Result<()> {
        ops::silu_mul(self.level, x, y);
        Ok(())
    }

    fn configure_kv(
        &mut self,
        groups: &[KvGroup],
        classes: &[ClassDesc],
        _budget: u64,
    ) -> Result<()> {
        groups.iter().try_for_each(|g| attention::check_head_dim(g.head_dim))?;
        self.arenas = Arenas::new(groups, classes)?;
        self.drawn.clear();
        self.sent.clear();
        self.groups = groups.to_vec();
        Ok(())
    }

    fn copy_blocks(&mut self, copies: &[CopyBlock]) -> Result<()> {
        copies.iter().try_for_each(|copy| self.arenas.copy(copy))
    }

    fn gather(&mut self, gathers: &[Gather]) -> Result<()> {
        for gather in gathers {
            let row = self.arenas.layout(gather.to.class).key_row_bytes();
            for (i, &(from, slot)) in gather.rows.iter().enumerate() {
                let (key, value) = self.arenas.page(from, gather.stream)?;
                let at = usize::from(slot) * row;
                let (key, value) = (key[at..at + row].to_vec(), value[at..at + row].to_vec());
                let (to_key, to_value) = self.arenas.page_mut(gather.to, gather.stream);
                to_key[i * row..][..row].copy_from_slice(&key);
                to_value[i * row..][..row].copy_from_slice(&value);
            }
        }
        Ok(())
    }

    fn free_blocks(&mut self, blocks: &[BlockRef]) {
        blocks.iter().for_each(|&block| self.arenas.free(block));
    }

    fn kv_bytes(&self) -> u64 {
        self.arenas.bytes()
    }

    fn append(
        &mut self,
        at: LayerIndex,
        heads: usize,
        rope: Option<&Rope>,
        qkv: &mut Buffer,
        seqs: &[SeqStep],
    ) -> Result<()> {
        let group = self.group(at)?.clone();
        let (d, n) = (group.head_dim, group.kv_heads);
        if let Some(rope) = rope {
            // Keys follow queries in the columns, so both rotate at once.
            let positions = seqs.iter().flat_map(|s| s.position..s.position + s.new_tokens);
            self.angles.update(rope, positions.collect());
            ops::rope(qkv, heads + n, &self.angles);
        }
        let streams = at.layer * n..(at.layer + 1) * n;
        let mut first_row = 0;
        for seq in seqs {
            for a in seq.appends.iter().filter(|a| a.group == at.group) {
                let layout = self.arenas.layout(a.block.class);
                let (hot, row_bytes) = (layout.key, layout.key_row_bytes());
                let all = a.stream.map_or(streams.clone(), |s| s..s + 1);
                for stream in all.filter(|s| streams.contains(s)) {
                    let head = stream - streams.start;
                    let (key, value) = self.arenas.page_mut(a.block, stream);
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

    fn seal(&mut self, group: usize, layers: Range<usize>, seqs: &[SeqStep]) -> Result<()> {
        let Some(last) = layers.end.checked_sub(1) else { return Ok(()) };
        let at = LayerIndex { group, layer: last };
        let group = self.group(at)?.clone();
        let (d, n) = (group.head_dim, group.kv_heads);
        let streams = layers.start * n..layers.end * n;
        let mut pages = Vec::new();
        for seal in seqs.iter().flat_map(|s| &s.seals).filter(|s| s.group == at.group) {
            let all = seal.stream.map_or(streams.clone(), |s| s..s + 1);
            for stream in all.filter(|s| streams.contains(s)) {
                // Allocates the block, so that the threads only fill it.
                self.arenas.page_mut(seal.to, stream);
                pages.push((seal, stream));
            }
        }
        let mut outputs = Vec::with_capacity(pages.len());
        for (seal, stream) in &pages {
            let (key, value) = self.arenas.page_mut(seal.to, *stream);
            outputs.push((Shared::new(key), key.len(), Shared::new(value), value.len()));
        }
        let (arenas, level) = (&self.arenas, self.level);
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
                    let tile = seal::Tile { hot, bytes, side, head_dim: d, feedback };
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
        call: &Attend<'_>,
        q: &Buffer,
        out: &mut Buffer,
        lse: Option<&mut Buffer>,
    ) -> Result<()> {
        let group = self.group(call.at)?;
        attention::attend(self.level, &self.arenas, group, call, q, out, lse)
    }

    fn score(
        &mut self,
        call: &Attend<'_>,
        pass: Score,
        q: &Buffer,
        lse: &Buffer,
        out: &mut Scores,
    ) -> Result<()> {
        self.pass(call, q, lse)?.score(pass, out)
    }

    fn score_top(
        &mut self,
        call: &Attend<'_>,
        of: TopHeads,
        q: &Buffer,
        lse: &Buffer,
        out: &mut Vec<Top>,
    ) -> Result<()> {
        self.pass(call, q, lse)?.score_top(of, out)
    }
}

/// Copies rows by number.
fn select(
    from: &Buffer,
    rows: impl ExactSizeIterator<Item = usize>,
    to: &mut Buffer,
) -> Result<()> {
    to.resize(rows.len(), from.cols());
    for (i, row) in rows.enumerate() {
        if row >= from.rows() {
            return Err(Error::config("rows", format!("{row} is not below {}", from.rows())));
        }
        to.row_mut(i).copy_from_slice(from.row(row));
    }
    Ok(())
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
