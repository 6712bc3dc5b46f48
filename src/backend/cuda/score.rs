//! Launches `kernels/attention/score*.cu`: the score passes of
//! [`crate::backend::score_pass`], over what an attention call has attended to.
//!
//! Like [`Attention`], [`Scorer`] is the layer alone: device addresses in, nothing else
//! of kvfold involved. A pass wants the same tables and queries as the call, and the
//! log-sum-exps that it wrote.

use super::attend::{Attention, AttentionCall, AttentionShape};
use super::forms::form_of;
use super::list::DeviceList;
use super::params::{SCORE_MAX, SCORE_SUM_MAX, SCORE_SUM_MEAN, ScoreParams, ScoreTop};
use super::tables::Sizes;
use crate::backend::driver::{Device, DeviceBuffer, DeviceStream, Launch};
use crate::backend::score_pass::{Heads, Score, Spans, TopHeads};
use crate::error::{Error, Result};

/// Most shares of a stream's pages that [`Scorer::top`] hands out.
const MAX_CHUNKS: usize = 64;

/// Threads of a block, its `ScoreContext`, and the shared memory of one head's sums:
/// kernels/attention/score.cuh has these numbers.
const THREADS: u32 = 128;
const CONTEXT: usize = 256;
const SUMS: usize = 4 * 64 * 4;

/// Where the scores of each stream of a pass lie, in device memory.
pub struct ScoreStarts {
    starts: DeviceList<u64>,
}

impl ScoreStarts {
    /// Those of nothing.
    ///
    /// # Errors
    /// [`Error::DeviceOutOfMemory`].
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self { starts: DeviceList::new(device)? })
    }

    /// Uploads the spans of one layer.
    ///
    /// # Errors
    /// [`Error::DeviceOutOfMemory`].
    pub fn set(&mut self, spans: &Spans, stream: &DeviceStream) -> Result<()> {
        let starts: Vec<u64> = spans.starts().iter().map(|&s| s as u64).collect();
        self.starts.set(&starts, stream)
    }

    /// `u64[n_seqs][kv_heads]`.
    pub fn address(&self) -> u64 {
        self.starts.address_of(0)
    }
}

/// One pass, by device addresses.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScoreCall {
    /// The attention call: its queries, tables and layer, and the `lse` that it wrote,
    /// which is read. `out` is not used.
    pub attention: AttentionCall,
    /// What its tables ask for, or more.
    pub sizes: Sizes,
}

/// Score passes over attention of one shape on one device.
pub struct Scorer {
    attention: Attention,
    score: String,
    top: String,
}

impl Scorer {
    /// Passes over attention of a shape.
    ///
    /// # Errors
    /// As [`Attention::new`].
    pub fn new(device: &Device, shape: AttentionShape) -> Result<Self> {
        let attention = Attention::new(device, shape)?;
        let shape = attention.shape();
        let (format, d) = (shape.format, shape.head_dim);
        let (form, element) = (form_of(format)?.key_stem(), format.hot());
        Ok(Self {
            score: format!("score_{form}_{element}_d{d}"),
            top: format!("top_{form}_{element}_d{d}"),
            attention,
        })
    }

    /// The shape.
    pub fn shape(&self) -> &AttentionShape {
        self.attention.shape()
    }

    /// Reduces to one score a kept token and KV head. Those of stream `starts[seq][head]`
    /// go to `scores + starts[seq][head]`, by kept index. Enqueues work and returns.
    ///
    /// # Errors
    /// [`Error::Misuse`] for a pass over no queries, a call without log-sum-exps and a
    /// stride that does not fit; [`Error::NoKernelForArch`] and the like.
    ///
    /// # Safety
    /// As [`Attention::attend`]; `lse` is complete, `starts` is `u64[n_seqs][kv_heads]`,
    /// and `scores` is f32 with room for all streams, which no other work uses meanwhile.
    pub unsafe fn score(
        &self,
        call: &ScoreCall,
        pass: Score,
        starts: u64,
        scores: u64,
        stream: &DeviceStream,
    ) -> Result<()> {
        let last = pass.last()?;
        let reduce = match pass {
            Score::Sum { heads: Heads::Mean, .. } => SCORE_SUM_MEAN,
            Score::Sum { heads: Heads::Max, .. } => SCORE_SUM_MAX,
            Score::Max { .. } => SCORE_MAX,
        };
        let Some(params) = self.params(call)? else { return Ok(()) };
        let last = u32::try_from(last).unwrap_or(u32::MAX);
        let params = ScoreParams { starts, scores, reduce, last, ..params };
        // Pages of the longest stream, and its sinks.
        let entries = call.sizes.tokens.div_ceil(64) + 1;
        let shape = self.launch(call, entries);
        // SAFETY: the caller's promise.
        unsafe { stream.launch(&self.score, shape, &params) }
    }

    /// Memory for [`top`](Self::top) of calls with up to `rows` rows: `chunks` parts for
    /// each. With more, up to 64, more blocks share the pages of a stream, which is worth
    /// it for few rows; results do not depend on it.
    ///
    /// # Errors
    /// [`Error::DeviceOutOfMemory`].
    pub fn top_scratch(&self, rows: usize, of: TopHeads, chunks: usize) -> Result<TopScratch> {
        let per_chunk = rows * self.columns(of);
        let chunks = chunks.clamp(1, MAX_CHUNKS);
        Ok(TopScratch { parts: self.attention.device().alloc(per_chunk * chunks)?, chunks })
    }

    /// Makes a scratch serve such calls. Its memory only grows; no work may use it.
    ///
    /// # Errors
    /// As [`top_scratch`](Self::top_scratch).
    pub fn reserve_top(
        &self,
        scratch: &mut TopScratch,
        rows: usize,
        of: TopHeads,
        chunks: usize,
    ) -> Result<()> {
        let chunks = chunks.clamp(1, MAX_CHUNKS);
        if rows * self.columns(of) * chunks > scratch.parts.len() {
            *scratch = self.top_scratch(rows.next_power_of_two(), of, chunks)?;
        }
        scratch.chunks = chunks;
        Ok(())
    }

    /// The most probable token of each query: `tops` is [`ScoreTop`]`[rows][kv_heads]`,
    /// `[rows][heads]` if of each head. Rows of no sequence are left as they are. Enqueues
    /// work and returns.
    ///
    /// # Errors
    /// As [`score`](Self::score), and [`Error::Misuse`] for more rows than the scratch
    /// was made for.
    ///
    /// # Safety
    /// As [`Attention::attend`]; `lse` is complete, and `tops` has room for all rows and
    /// is not used by other work meanwhile.
    pub unsafe fn top(
        &self,
        call: &ScoreCall,
        of: TopHeads,
        tops: u64,
        scratch: &mut TopScratch,
        stream: &DeviceStream,
    ) -> Result<()> {
        let Some(params) = self.params(call)? else { return Ok(()) };
        let columns = self.columns(of);
        let per_chunk = call.sizes.rows * columns;
        if per_chunk == 0 {
            return Ok(());
        }
        let chunks = (scratch.parts.len() / per_chunk).min(scratch.chunks);
        if chunks == 0 {
            let what = format!("{per_chunk} parts, {} are there", scratch.parts.len());
            return Err(Error::misuse("scratch", what));
        }
        let params = ScoreParams {
            parts: scratch.parts.address(),
            tops,
            last: u32::MAX,
            chunks: chunks as u32,
            per_head: u32::from(of == TopHeads::Each),
            ..params
        };
        let merge = (call.sizes.max_q_len() * columns).div_ceil(THREADS as usize);
        let grid = [merge as u32, call.attention.n_seqs as u32, 1];
        // SAFETY: the caller's promise; the parts are the scratch's.
        unsafe {
            stream.launch(&self.top, self.launch(call, chunks), &params)?;
            stream.launch("score_top", Launch::grid(grid, THREADS), &params)
        }
    }

    /// Results of a query.
    fn columns(&self, of: TopHeads) -> usize {
        match of {
            TopHeads::Group => self.shape().kv_heads,
            TopHeads::Each => self.shape().heads,
        }
    }

    /// What all passes have in common; none if there is nothing to do.
    fn params(&self, call: &ScoreCall) -> Result<Option<ScoreParams>> {
        self.attention.check_stride(&call.attention)?;
        if call.attention.lse == 0 {
            return Err(Error::misuse("lse", "score passes need the call's log-sum-exps"));
        }
        if call.attention.n_seqs == 0 {
            return Ok(None);
        }
        let attend = self.attention.call_params(&call.attention);
        let rows = u32::try_from(call.sizes.rows)
            .map_err(|_| Error::misuse("rows", format!("{} exceed 32 bits", call.sizes.rows)))?;
        Ok(Some(ScoreParams { attend, rows, ..ScoreParams::default() }))
    }

    /// A block for each share of the pages of each (sequence, KV head).
    fn launch(&self, call: &ScoreCall, shares: usize) -> Launch {
        let AttentionShape { heads, kv_heads, head_dim, .. } = *self.shape();
        let shared = CONTEXT + 2 * 64 * 2 * head_dim + heads / kv_heads * SUMS;
        let grid = [shares as u32, kv_heads as u32, call.attention.n_seqs as u32];
        Launch::grid(grid, THREADS).shared(shared as u32)
    }
}

/// Memory for the best tokens of parts of streams. Calls that share one must be on one
/// stream.
pub struct TopScratch {
    parts: DeviceBuffer<ScoreTop>,
    /// Shares of a stream's pages, at most.
    chunks: usize,
}

impl TopScratch {
    /// For calls without rows.
    ///
    /// # Errors
    /// [`Error::DeviceOutOfMemory`].
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self { parts: device.alloc(0)?, chunks: 1 })
    }
}
