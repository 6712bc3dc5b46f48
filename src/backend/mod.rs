//! Owns the bytes and does the arithmetic (floor 3).
//!
//! A [`Backend`] holds the KV arenas whose blocks [`crate::cache`] hands out,
//! the weights, and typed buffers that are allocated once and reused. Models
//! and the engine are written against the trait; it knows neither.

pub mod cpu;
pub mod cuda;
pub(crate) mod dequantize;
pub mod draw;
pub mod driver;
mod layout;
pub mod score;

use crate::cache::{ClassDesc, CopyBlock, Gather, GroupView, SeqStep};
use crate::codec::feedback::Feedback;
use crate::codec::{Codec, KvFormat};
use crate::error::{Error, Result};
use candle_core::quantized::GgmlDType;
use draw::Choice;
use score::{Score, Scores, Top, TopHeads};
use std::ops::Range;
use std::sync::Arc;

/// One matrix as it lies in a model file: `[rows, cols]`, row-major, each row a
/// whole number of blocks of `dtype`.
#[derive(Clone, Copy, Debug)]
pub struct MatrixBytes<'a> {
    /// Storage type.
    pub dtype: GgmlDType,
    /// Rows: output features.
    pub rows: usize,
    /// Columns: input features.
    pub cols: usize,
    /// The bytes.
    pub bytes: &'a [u8],
}

/// What to do with a weight's storage type at load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightPolicy {
    /// Types for which the backend has no fast path become one that it has: Q8_0 on the
    /// CPU, f16 or bf16 on a GPU.
    #[default]
    Auto,
    /// Keep the file's types; an error where the backend has no product of one.
    Keep,
    /// Everything as f32: slow, for comparisons.
    F32,
}

/// The KV geometry of one group of layers.
#[derive(Clone, Debug)]
pub struct KvGroup {
    /// Layers of the group.
    pub layers: usize,
    /// KV heads of each layer.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// How sealed pages are stored.
    pub format: KvFormat,
    /// How those of each stream (layer · kv_heads + head) are, where formats differ or keys
    /// have feedback. All are written in the 16-bit form of `format`.
    pub streams: Option<Arc<[StreamFormat]>>,
    /// S: tokens at the start that stay in 16 bits.
    pub sinks: usize,
    /// R: tokens that every query sees in 16 bits, a multiple of 64.
    pub hot_window: usize,
}

/// How sealed pages of one stream are stored.
#[derive(Clone, Debug)]
pub struct StreamFormat {
    /// The codecs.
    pub format: KvFormat,
    /// What keys of a kf codec are encoded with.
    pub feedback: Option<Arc<Feedback>>,
}

impl KvGroup {
    /// How sealed pages of a stream are stored.
    pub fn format_of(&self, stream: usize) -> KvFormat {
        self.sealing_of(stream).0
    }

    /// The same, and what its keys are encoded with.
    pub fn sealing_of(&self, stream: usize) -> (KvFormat, Option<&Feedback>) {
        match &self.streams {
            Some(streams) => (streams[stream].format, streams[stream].feedback.as_deref()),
            None => (self.format, None),
        }
    }

    /// Bytes of a sealed page of each stream, the largest and all together.
    pub fn sealed_bytes(&self) -> (u64, u64) {
        let bytes = |stream| self.format_of(stream).page_bytes(self.head_dim) as u64;
        let all = (0..self.layers * self.kv_heads).map(bytes);
        (all.clone().max().unwrap_or(0), all.sum())
    }
}

/// Which layer a KV operation concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerIndex {
    /// The KV group.
    pub group: usize,
    /// The layer within the group.
    pub layer: usize,
}

/// Rotary embedding: `cos` and `sin` of `position · inv_freq`, half-split
/// convention (channel i rotates with channel i + dim/2).
#[derive(Clone, Debug)]
pub struct Rope {
    /// Radians a position of each pair, `dim / 2` long.
    pub inv_freq: Vec<f64>,
}

/// All of a step that comes from the host.
#[derive(Clone, Copy, Debug)]
pub struct StepInput<'a> {
    /// The sequences.
    pub seqs: &'a [SeqStep],
    /// Their new tokens, one sequence after the other: the rows of the step.
    pub ids: Ids<'a>,
    /// The rows whose hidden states are wanted.
    pub rows: &'a [usize],
    /// How the next token of each of these is chosen; or empty.
    pub choices: &'a [Choice],
    /// The model's rotation.
    pub rope: &'a Rope,
}

/// The tokens of a step.
#[derive(Clone, Copy, Debug)]
pub enum Ids<'a> {
    /// These, one a row.
    Given(&'a [u32]),
    /// Those that the step before has drawn, this many, one a row: they need not have
    /// come to the host yet.
    Drawn(usize),
}

impl Ids<'_> {
    /// Rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Given(ids) => ids.len(),
            Self::Drawn(n) => *n,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a row is. It picks the arithmetic of attention, and how many rows a call has does
/// not: so a token has the same bits whether it was decoded, verified among others or
/// computed anew, and a prompt's however it was cut into chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKind {
    /// A token of a prompt.
    Prompt,
    /// A token that was drawn, or a draft that may be.
    Generated,
}

/// One sequence's share of an attention call.
#[derive(Clone, Copy, Debug)]
pub struct AttendSeq<'a> {
    /// First row of its queries.
    pub first_row: usize,
    /// Its queries: the last `q_len` tokens of the stream.
    pub q_len: usize,
    /// What they all are.
    pub kind: RowKind,
    /// What they read.
    pub view: &'a GroupView,
}

/// An attention call over one layer.
#[derive(Clone, Copy, Debug)]
pub struct Attend<'a> {
    /// The layer.
    pub at: LayerIndex,
    /// Query heads; a multiple of the group's KV heads.
    pub heads: usize,
    /// Factor on q·k, usually `head_dim^-1/2`.
    pub scale: f32,
    /// Whether a query sees no token behind its own. Otherwise it sees every token that
    /// its stream keeps, those of its own chunk included; its own place still decides
    /// which of them it reads sealed.
    pub causal: bool,
    /// Sliding window W: the query at position i sees keys j with i − W < j ≤ i. Only
    /// with `causal`.
    pub window: Option<usize>,
    /// Rotation of the queries for relocated runs; needed if a run has a shift.
    pub rope: Option<&'a Rope>,
    /// The sequences.
    pub seqs: &'a [AttendSeq<'a>],
}

/// A window is counted back from the query: it says nothing of what lies behind.
fn check_mask(causal: bool, window: Option<usize>) -> Result<()> {
    match window {
        Some(w) if !causal => Err(Error::config(
            "window",
            format!("a window of {w} tokens needs causal attention: set causal, or no window"),
        )),
        _ => Ok(()),
    }
}

/// A device with its memory and its arithmetic.
///
/// Buffers are `[rows, cols]`, row-major, in a type that their last writer chose;
/// operations set the number of rows of what they write.
///
/// A step goes so: [`begin`](Self::begin) brings what the host has to say; everything
/// until the next `begin` concerns that step, needs nothing more from the host, and
/// may be enqueued rather than done; reading waits for it.
pub trait Backend {
    /// Activations.
    type Buffer: Send;
    /// A weight matrix in the backend's own form.
    type Matrix: Send + Sync;
    /// A norm's weight or a bias.
    type Vector: Send + Sync;

    /// The device in words.
    fn name(&self) -> String;
    /// The one 16-bit type in which the device computes and writes pages; none if it
    /// takes any.
    fn element(&self) -> Option<Codec> {
        None
    }
    /// Bytes of memory that could still be allocated, where that is a limit of its own.
    fn free_memory(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// An empty buffer with room for `rows` rows of `cols`.
    fn buffer(&self, rows: usize, cols: usize) -> Result<Self::Buffer>;
    /// Uploads `rows.len() / cols` rows.
    fn write(&self, rows: &[f32], cols: usize, to: &mut Self::Buffer) -> Result<()>;
    /// Downloads row `row` to `out`.
    fn read_row(&self, from: &Self::Buffer, row: usize, out: &mut [f32]) -> Result<()>;
    /// Copies adjacent rows; the caller knows that they were written.
    fn rows(&self, from: &Self::Buffer, rows: Range<usize>, to: &mut Self::Buffer) -> Result<()>;

    /// Loads a matrix; several parts with equal columns are stacked by rows.
    fn matrix(&self, parts: &[MatrixBytes<'_>], policy: WeightPolicy) -> Result<Self::Matrix>;
    /// Loads a vector.
    fn vector(&self, values: &[f32]) -> Result<Self::Vector>;
    /// Bytes that a matrix keeps resident.
    fn matrix_bytes(&self, matrix: &Self::Matrix) -> u64;

    /// Begins a step.
    fn begin(&mut self, step: &StepInput<'_>) -> Result<()>;
    /// Does `work`, which enqueues operations of the step and does nothing else, or
    /// has the device repeat what it enqueued for an earlier step of the same shape.
    /// Then the buffers do not learn how many rows they have. Works that differ, in their
    /// operations or in the buffers that they use, have different keys.
    fn repeat(&mut self, key: u64, work: impl FnMut(&mut Self) -> Result<()>) -> Result<()>
    where
        Self: Sized;

    /// The step's rows of an embedding table.
    fn embed(&self, table: &Self::Matrix, to: &mut Self::Buffer) -> Result<()>;
    /// The wanted rows.
    fn select(&self, from: &Self::Buffer, to: &mut Self::Buffer) -> Result<()>;
    /// `y = x · matrixᵀ`.
    fn matmul(
        &self,
        matrix: &Self::Matrix,
        x: &mut Self::Buffer,
        y: &mut Self::Buffer,
    ) -> Result<()>;
    /// `y = x · matrixᵀ` in f32.
    fn logits(
        &self,
        matrix: &Self::Matrix,
        x: &mut Self::Buffer,
        y: &mut Self::Buffer,
    ) -> Result<()>;
    /// Draws a token from each row of logits as the step says; the logits are changed.
    fn sample(&mut self, logits: &mut Self::Buffer) -> Result<()>;
    /// Lets the tokens drawn last come to the host.
    fn send_tokens(&mut self) -> Result<()>;
    /// The tokens of the earliest step whose tokens were sent and not yet received; none
    /// where no logit was above −∞. Waits for that step alone.
    fn receive_tokens(&mut self) -> Result<Vec<Option<u32>>>;
    /// `x += bias` on every row.
    fn add_bias(&self, x: &mut Self::Buffer, bias: &Self::Vector) -> Result<()>;
    /// `x += delta`, if there is one; then `y = x / rms(x) · weight`, in f32.
    fn rms_norm(
        &self,
        x: &mut Self::Buffer,
        delta: Option<&Self::Buffer>,
        weight: &Self::Vector,
        eps: f32,
        y: &mut Self::Buffer,
    ) -> Result<()>;
    /// RMS norm of `heads` consecutive heads of `head_dim` from column `first_col` on.
    fn head_norm(
        &self,
        x: &mut Self::Buffer,
        first_col: usize,
        heads: usize,
        weight: &Self::Vector,
        eps: f32,
    ) -> Result<()>;
    /// `y = silu(gate) · up` with `x = [gate | up]`.
    fn silu_mul(&self, x: &Self::Buffer, y: &mut Self::Buffer) -> Result<()>;

    /// Prepares empty arenas for the groups and the cache's classes, which never hold
    /// more than `budget` bytes together.
    fn configure_kv(
        &mut self,
        groups: &[KvGroup],
        classes: &[ClassDesc],
        budget: u64,
    ) -> Result<()>;
    /// Copies whole blocks.
    fn copy_blocks(&mut self, copies: &[CopyBlock]) -> Result<()>;
    /// Copies rows into ragged blocks.
    fn gather(&mut self, gathers: &[Gather]) -> Result<()>;
    /// Releases blocks.
    fn free_blocks(&mut self, blocks: &[crate::cache::BlockRef]);
    /// Bytes of arena memory in use.
    fn kv_bytes(&self) -> u64;

    /// Rotates the queries and keys of one layer by `rope`, if there is one, and writes
    /// the new keys and values to its 16-bit pages. `qkv` has
    /// `[q heads | k heads | v heads]` in its columns; the rows of each sequence follow
    /// those of the one before it.
    fn append(
        &mut self,
        at: LayerIndex,
        heads: usize,
        rope: Option<&Rope>,
        qkv: &mut Self::Buffer,
        seqs: &[SeqStep],
    ) -> Result<()>;
    /// Encodes the pages of layers of a KV group that the step seals. Their rows must
    /// have been written: those of a step of single tokens were, by earlier ones.
    fn seal(&mut self, group: usize, layers: Range<usize>, seqs: &[SeqStep]) -> Result<()>;
    /// Attention of the queries in the first columns of `q` over all runs in one
    /// softmax. `out` takes `[rows, heads · head_dim]`; `lse`, if given,
    /// `[rows, heads]` base-2 log-sum-exp. A row that sees nothing gives 0 and −∞.
    fn attend(
        &mut self,
        call: &Attend<'_>,
        q: &Self::Buffer,
        out: &mut Self::Buffer,
        lse: Option<&mut Self::Buffer>,
    ) -> Result<()>;

    /// A score pass over what `call` attended to: `q` is that call's, `lse` what it
    /// gave. [`score`] defines the passes.
    fn score(
        &mut self,
        call: &Attend<'_>,
        pass: Score,
        q: &Self::Buffer,
        lse: &Self::Buffer,
        out: &mut Scores,
    ) -> Result<()>;
    /// The most probable token of every query of the call: `[rows][kv_heads]`, or
    /// `[rows][heads]` of each head. Rows of no sequence give [`Top::NONE`].
    fn score_top(
        &mut self,
        call: &Attend<'_>,
        of: TopHeads,
        q: &Self::Buffer,
        lse: &Self::Buffer,
        out: &mut Vec<Top>,
    ) -> Result<()>;
}
