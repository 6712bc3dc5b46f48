//! Launches `kernels/attention/`: attention over paged KV, and nothing else.
//!
//! [`Attention`] is the layer alone. Everything that it reads and writes is named
//! by device address, on a context and stream that the caller may own: it is what
//! another server links (`examples/02_attention_layer.rs`). kvfold's own tables are
//! made by [`tables`](super::tables).
//!
//! Three kernels and a choice. `attend_plan` shares the pages of each stream among
//! blocks, on the device, so that nothing of a step has to come from the host;
//! `decode_*` attends, `attend_merge` joins split streams. That is for generated rows;
//! those of prompts go to `prefill_*`. What a sequence's rows are stands in its entry
//! ([`SEQ_PROMPT`]), and how many there are chooses nothing: a token
//! that is verified has the bits of one that is decoded. How a stream is split depends on
//! its length alone, up to the row that reads it, and on the shape, so a result does not
//! depend on the batch either.
//!
//! [`SEQ_PROMPT`]: super::params::SEQ_PROMPT

mod launch;
mod splits;
#[cfg(test)]
mod tests;

use super::forms::{decode_stem, form_of};
use super::params::{AttendEntry, AttendItem, AttendParams, AttendPlan, NONE};
use super::subnormal::{self, Number};
use crate::backend::driver::{Device, DeviceBuffer, DeviceStream, Launch};
use crate::backend::kv::check_mask;
use crate::backend::{Geometry, Kernels};
use crate::codec::KvFormat;
use crate::error::{Error, Result};
use splits::SplitEnds;

/// What does not change from call to call.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionShape {
    /// Channels of a head: 64, 128 or 256.
    pub head_dim: usize,
    /// Query heads: 1 to 16 a KV head.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// How pages are stored. Its 16-bit type is that of queries and outputs too.
    pub format: KvFormat,
    /// S: tokens at the start that are never sealed, at most 64.
    pub sinks: usize,
    /// R: tokens that every query sees in 16 bits, a multiple of 64.
    pub hot_window: usize,
    /// Whether a query sees no token behind its own. Otherwise it sees every token that
    /// its stream keeps; its own place still decides which of them it reads sealed.
    pub causal: bool,
    /// Sliding window W: the query at position i sees keys j with i − W < j ≤ i. Only
    /// with `causal`.
    pub window: Option<usize>,
    /// Factor on q·k, usually `head_dim^-1/2`.
    pub scale: f32,
}

/// The most that calls with one [`AttendScratch`] may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sequences of a call.
    pub seqs: usize,
    /// Generated rows, over all sequences.
    pub generated_rows: usize,
    /// Tokens that a stream keeps.
    pub tokens: usize,
}

/// Memory for plans and partial results. Calls that share one must be on one
/// stream.
pub struct AttendScratch {
    limits: Limits,
    /// Whether the plan was ever made.
    planned: bool,
    plan: DeviceBuffer<AttendPlan>,
    items: DeviceBuffer<AttendItem>,
    entries: DeviceBuffer<AttendEntry>,
    part_out: DeviceBuffer<f32>,
    part_lse: DeviceBuffer<f32>,
}

impl AttendScratch {
    /// What it was made for.
    pub fn limits(&self) -> Limits {
        self.limits
    }
}

/// One call, by device addresses. All arrays are the caller's; the kernels only
/// read them, except `out` and `lse`.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionCall {
    /// Queries: 16-bit `[rows][q_stride]`, `heads · head_dim` in the first columns.
    /// Like `out`, aligned to 16 bytes.
    pub q: u64,
    /// Elements from a row of `q` to the next: a multiple of 8.
    pub q_stride: usize,
    /// Outputs: 16-bit `[rows][heads · head_dim]`. A row that sees nothing is 0.
    pub out: u64,
    /// Base-2 log-sum-exp: f32 `[rows][heads]`, −∞ for a row that sees nothing; or 0.
    pub lse: u64,
    /// [`KvSeq`](super::params::KvSeq)`[n_seqs]`.
    pub seqs: u64,
    /// Sequences.
    pub n_seqs: usize,
    /// The most queries that a sequence of generated rows has; 0 if there is none, and
    /// then nothing is launched for them.
    pub max_generated: usize,
    /// Likewise of a prompt's.
    pub max_prompt: usize,
    /// [`KvStream`](super::params::KvStream)`[]`.
    pub streams: u64,
    /// [`KvRun`](super::params::KvRun)`[]`, those of a stream side by side.
    pub runs: u64,
    /// Block numbers: `u32[]`.
    pub table: u64,
    /// Live masks: `u64[]`, one word a page; 0 if no run has one.
    pub masks: u64,
    /// [`KvArena`](super::params::KvArena)`[]`.
    pub arenas: u64,
    /// Cosines and sines of −Δ · inv_freq: f32 `[n][head_dim/2][2]`; 0 if no run has
    /// a rotation.
    pub rotations: u64,
    /// The layer within its KV group: pages of stream `layer · kv_heads + head` are
    /// read.
    pub layer: usize,
}

/// Which kernels of a call to launch: a bench times them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// `attend_plan`. Without it, the last plan on this scratch counts.
    pub plan: bool,
    /// `decode_*`, and `prefill_*` for rows of prompts.
    pub attend: bool,
    /// `attend_merge`.
    pub merge: bool,
}

/// Attention of one shape on one device.
pub struct Attention {
    device: Device,
    shape: AttentionShape,
    number: Number,
    decode: String,
    prefill: String,
    merge: String,
    tile_columns: usize,
    splits: SplitEnds,
    /// Of as many blocks as the device holds at once.
    decode_launch: Launch,
}

impl Attention {
    /// Attention of a shape. The first with sealed pages on a device asks it what its
    /// tensor cores take ([`subnormal`]): that allocates, and waits for the answer.
    ///
    /// # Errors
    /// [`Error::Unsupported`] that names a head dim, group or format for which there
    /// is no kernel; [`Error::Config`] for a field out of range; [`Error::Device`] if the
    /// device cannot hold a block of its kernels, and what else it reports.
    pub fn new(device: &Device, shape: AttentionShape) -> Result<Self> {
        let mut attention = Self::with_number(device, shape, Number::Subnormal)?;
        if attention.shape.format.seals() && subnormal::number(device)? == Number::Normal {
            attention = Self::with_number(device, attention.shape, Number::Normal)?;
        }
        Ok(attention)
    }

    /// As [`new`](Self::new), by the kernels whose codes are such numbers: for tests, which
    /// try both on any device.
    ///
    /// # Errors
    /// As there.
    pub fn with_number(device: &Device, shape: AttentionShape, number: Number) -> Result<Self> {
        let AttentionShape { head_dim, heads, kv_heads, ref format, .. } = shape;
        Geometry::gqa(head_dim).check(Kernels::CudaAttention)?;
        if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(Error::misuse("heads", format!("{heads} do not fit {kv_heads} KV heads")));
        }
        let group = heads / kv_heads;
        if group > 16 {
            return Err(Error::Unsupported {
                what: format!("{group} query heads a KV head on this device"),
                remedy: "at most 16 are".into(),
            });
        }
        if shape.sinks > 64 || !shape.hot_window.is_multiple_of(64) {
            let what = format!("{} sinks, hot window {}", shape.sinks, shape.hot_window);
            return Err(Error::config("sinks, hot_window", what));
        }
        if !(shape.scale.is_finite() && shape.scale > 0.0) || shape.window == Some(0) {
            let what = format!("{}, window {:?}", shape.scale, shape.window);
            return Err(Error::config("scale, window", what));
        }
        check_mask(shape.causal, shape.window)?;
        let form = form_of(*format)?;
        let (stem, form) = (decode_stem(form, number), form.stem);
        let element = format.hot();
        // A wider tile serves two columns of 8 with one read of the pages; at 256
        // channels its accumulators would not fit the registers.
        let tile_columns = if group > 8 && head_dim < 256 { 16 } else { 8 };
        let decode = format!("decode_{stem}_{element}_d{head_dim}_n{tile_columns}");
        let block = launch::decode(head_dim, shape.format, tile_columns);
        let blocks = device.resident_blocks(&decode, block)?;
        Ok(Self {
            device: device.clone(),
            number,
            decode,
            decode_launch: Launch { grid: [blocks, 1, 1], ..block },
            splits: SplitEnds::of(head_dim, shape.kv_heads, shape.format),
            prefill: format!("prefill_{form}_{element}_d{head_dim}"),
            merge: format!("attend_merge_{element}_d{head_dim}"),
            shape,
            tile_columns,
        })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The shape.
    pub fn shape(&self) -> &AttentionShape {
        &self.shape
    }

    /// What codes of sealed pages are to its kernels.
    pub fn number(&self) -> Number {
        self.number
    }

    /// Memory for calls within `limits`.
    ///
    /// # Errors
    /// [`Error::DeviceOutOfMemory`]; [`Error::Misuse`] for limits beyond 32 bits.
    pub fn scratch(&self, limits: Limits) -> Result<AttendScratch> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let splits = self.splits.most(limits.tokens);
        // Each length of splits that rows of a sequence have adds at most one tile that is
        // not full, and no tile is empty.
        let columns = limits.generated_rows * (heads / kv_heads);
        let lengths = self.splits.lengths(limits.tokens);
        let tiles = (columns.div_ceil(self.tile_columns) + limits.seqs * lengths).min(columns);
        let items = tiles * kv_heads * splits;
        let parts = limits.generated_rows * heads * splits;
        if u32::try_from(items.max(parts)).is_err() {
            return Err(Error::misuse("limits", format!("{limits:?} exceed 32 bits")));
        }
        Ok(AttendScratch {
            limits,
            planned: false,
            plan: self.device.alloc(1)?,
            items: self.device.alloc(items)?,
            entries: self.device.alloc(limits.seqs * kv_heads)?,
            part_out: self.device.alloc(parts * head_dim)?,
            part_lse: self.device.alloc(parts)?,
        })
    }

    /// Attention of one layer. Enqueues work and returns.
    ///
    /// # Errors
    /// [`Error::Misuse`] for more sequences than the scratch was made for and for
    /// a stride that does not fit; [`Error::NoKernelForArch`] and the like.
    ///
    /// # Safety
    /// The arrays are as [`AttentionCall`] says, consistent with each other and with
    /// the shape, within the limits of the scratch, and live until the work is
    /// done; `out` and `lse` are not used by other work meanwhile.
    pub unsafe fn attend(
        &self,
        call: &AttentionCall,
        scratch: &mut AttendScratch,
        stream: &DeviceStream,
    ) -> Result<()> {
        let parts = Parts { plan: true, attend: true, merge: true };
        // SAFETY: the caller's promise.
        unsafe { self.attend_parts(call, parts, scratch, stream) }
    }

    /// As [`attend`](Self::attend), by the plan that the last such call on this scratch
    /// made, if it had generated rows: for another layer of the same step, if no sequence is
    /// ragged.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As there; and that call had the same tables and sequences.
    pub unsafe fn attend_as_planned(
        &self,
        call: &AttentionCall,
        scratch: &mut AttendScratch,
        stream: &DeviceStream,
    ) -> Result<()> {
        let parts = Parts { plan: false, attend: true, merge: true };
        // SAFETY: the caller's promise.
        unsafe { self.attend_parts(call, parts, scratch, stream) }
    }

    /// Some kernels of a call: outputs are right only if all were launched.
    ///
    /// # Errors
    /// Those of [`attend`](Self::attend).
    ///
    /// # Safety
    /// That of [`attend`](Self::attend), and without `plan` that of
    /// [`attend_as_planned`](Self::attend_as_planned); without `attend`, the partial results
    /// of such a call are still in the scratch.
    pub unsafe fn attend_parts(
        &self,
        call: &AttentionCall,
        parts: Parts,
        scratch: &mut AttendScratch,
        stream: &DeviceStream,
    ) -> Result<()> {
        let shape = &self.shape;
        let group = shape.heads / shape.kv_heads;
        if call.n_seqs > scratch.limits.seqs {
            let what = format!("{} in a scratch for {}", call.n_seqs, scratch.limits.seqs);
            return Err(Error::misuse("n_seqs", what));
        }
        self.check_stride(call)?;
        if call.n_seqs == 0 {
            return Ok(());
        }
        let params = self.params(call, scratch);
        let entries = (call.n_seqs * shape.kv_heads) as u32;
        let columns = call.max_generated * group;
        // SAFETY: the caller's promise; plans and parts are the scratch's, whose
        // capacity the plan kernel respects.
        unsafe {
            if call.max_generated > 0 {
                if parts.plan {
                    scratch.planned = true;
                    stream.launch("attend_plan", launch::plan(entries), &params)?;
                }
                if parts.attend {
                    let blocks = self.decode_launch.grid[0].min(params.max_items).max(1);
                    let decode = Launch { grid: [blocks, 1, 1], ..self.decode_launch };
                    stream.launch(&self.decode, decode, &params)?;
                }
                if parts.merge {
                    let merge = Launch::grid([entries, columns.div_ceil(4) as u32, 1], 128);
                    stream.launch(&self.merge, merge, &params)?;
                }
            }
            if call.max_prompt > 0 && parts.attend {
                let tiles = launch::prefill_tiles(shape.head_dim, call.max_prompt * group);
                let grid = [tiles as u32, shape.kv_heads as u32, call.n_seqs as u32];
                let prefill = Launch { grid, ..launch::prefill(shape.head_dim) };
                stream.launch(&self.prefill, prefill, &params)?;
            }
        }
        Ok(())
    }

    /// Whether the queries lie as the kernels take for granted.
    pub(super) fn check_stride(&self, call: &AttentionCall) -> Result<()> {
        let columns = self.shape.heads * self.shape.head_dim;
        if call.q_stride.is_multiple_of(8) && call.q_stride >= columns {
            return Ok(());
        }
        let what = format!("{}; a multiple of 8 of at least {columns} is needed", call.q_stride);
        Err(Error::misuse("q_stride", what))
    }

    /// Whether the last call with generated rows needed more than its scratch holds, in
    /// which case it has written none of them. Waits for the stream. Cannot happen within
    /// the limits.
    ///
    /// # Errors
    /// What went wrong in the stream's work.
    pub fn overflowed(&self, scratch: &AttendScratch, stream: &DeviceStream) -> Result<bool> {
        Ok(scratch.planned && scratch.plan.to_vec(stream)?[0].overflow != 0)
    }

    fn params(&self, call: &AttentionCall, scratch: &AttendScratch) -> AttendParams {
        AttendParams {
            plan: scratch.plan.address(),
            items: scratch.items.address(),
            entries: scratch.entries.address(),
            part_out: scratch.part_out.address(),
            part_lse: scratch.part_lse.address(),
            max_items: scratch.items.len() as u32,
            max_parts: scratch.part_lse.len() as u32,
            ..self.call_params(call)
        }
    }

    /// What a call says, without a scratch.
    pub(super) fn call_params(&self, call: &AttentionCall) -> AttendParams {
        let shape = &self.shape;
        let seals = shape.format.seals();
        AttendParams {
            q: call.q,
            out: call.out,
            lse: call.lse,
            seqs: call.seqs,
            streams: call.streams,
            runs: call.runs,
            table: call.table,
            masks: call.masks,
            arenas: call.arenas,
            rotations: call.rotations,
            n_seqs: call.n_seqs as u32,
            q_stride: call.q_stride as u32,
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            layer: call.layer as u32,
            sinks: if seals { shape.sinks as u32 } else { 0 },
            hot_pages: if seals { (shape.hot_window / 64) as u32 } else { NONE },
            window: shape.window.map_or(NONE, |w| w.min(NONE as usize - 1) as u32),
            tile_columns: self.tile_columns as u32,
            scale: shape.scale * std::f32::consts::LOG2_E,
            causal: shape.causal.into(),
            split_ends: self.splits.as_params(),
            ..AttendParams::default()
        }
    }
}
