//! Fused attention over all runs of a stream in one softmax.
//!
//! | file | what |
//! |---|---|
//! | `pages.rs` | which pages a query reads, and which of their rows |
//! | `prefetch.rs` | asking for bytes before they are read |
//! | `affine.rs`, `codes.rs` | products with low-bit tiles, read in place; their codes |
//! | `turn.rs` | queries and outputs of rotated codecs and relocated runs |
//! | `rows.rs` | products with f16, bf16 and fp8 tiles |
//! | `decode.rs` | generated rows: each K and V byte is read once for a few columns |
//! | `softmax.rs` | their weights |
//! | `prefill.rs` | rows of prompts, a tile at a time |
//! | `score.rs` | what became of each token: score passes |
//!
//! The float64 oracle is in `tests/kernels/common/oracle.rs`.
//!
//! Work items depend on one stream only (ARCHITECTURE, rule 4): a decode item is
//! [`SPLIT_PAGES`] grid pages of one head, and partial results merge in page
//! order; a prefill item is the queries of one grid page. So results are
//! bitwise independent of the batch and of the number of threads.
//!
//! Nor does a row's result depend on the other rows of its call (rule 7): its kind alone
//! says whether decode or prefill takes it, and in both every (query, head) is a column
//! with a softmax and sums of its own. All columns of an item are of one grid page, so they
//! read the same pages in the same forms.

// Register blocks are written by index: heads, vectors and rows are numbers.
#![allow(clippy::needless_range_loop)]

mod affine;
mod codes;
mod decode;
mod pages;
mod prefetch;
mod prefill;
mod rows;
pub(super) mod score;
mod softmax;
mod turn;

use super::arena::ClassArenas;
use super::pool::{Shared, parallel_for, parallel_items, threads};
use super::simd::{Level, dispatch, fast_subnormals};
use super::tensor::CpuBuffer;
use crate::backend::kv::check_mask;
use crate::backend::{AttendSeq, KvGroup, LayerIndex, Rope};
use crate::cache::{GroupView, PAGE_TOKENS, RowKind};
use crate::error::{Error, Result};

use affine::MAX_HEAD_DIM;
use decode::{Decode, MAX_COLUMNS};
use pages::{PageView, StreamPages};
use prefill::{Prefill, visible};
use std::ops::Range;
use std::sync::Mutex;
pub(super) use turn::rotate_columns;

/// Grid pages of one decode work item.
const SPLIT_PAGES: usize = 16;

/// Columns of one decode work item, unless a query group alone has more: enough that the
/// item's pages are read from memory once for several passes, few enough that the threads
/// share the work of a draft.
const ITEM_COLUMNS: usize = 12;

/// Heads of a prefill work item.
const PREFILL_HEADS: usize = 4;

/// An [`Attend`](crate::backend::Attend) with what the step and the KV group say of it.
pub(super) struct Asked<'a> {
    pub at: LayerIndex,
    pub heads: usize,
    pub scale: f32,
    pub causal: bool,
    pub window: Option<usize>,
    /// Rotation of the queries for relocated runs.
    pub rope: Option<&'a Rope>,
    pub seqs: &'a [AttendSeq<'a>],
}

/// One attention call with everything that it reads.
struct Call<'a> {
    level: Level,
    arenas: &'a ClassArenas,
    group: &'a KvGroup,
    call: &'a Asked<'a>,
    q: &'a CpuBuffer,
    out: Shared<f32>,
    out_stride: usize,
    /// With its stride.
    lse: Option<(Shared<f32>, usize)>,
}

/// A share of the work that one thread does at a time.
enum Item {
    /// Pages `SPLIT_PAGES · split ..` of one KV head, for columns `[first, first + n)`:
    /// query `column / group`, head `column % group`, of one grid page. Their results go
    /// to parts from `part` on.
    Decode { seq: usize, kv_head: usize, split: usize, first: usize, n: usize, part: usize },
    /// Queries `[first, first + n)` of a sequence, heads `[head, head + heads)`
    /// of the group.
    Prefill { seq: usize, kv_head: usize, first: usize, n: usize, head: usize, heads: usize },
}

/// Columns `[first, first + n)` of one KV head, of which `splits` items have a part each:
/// that of split s and column c is `part + s · n + c − first`.
struct Parts {
    seq: usize,
    kv_head: usize,
    first: usize,
    n: usize,
    splits: usize,
    part: usize,
}

/// The work of a call.
#[derive(Default)]
struct Plan {
    items: Vec<Item>,
    parts: Vec<Parts>,
    /// Parts in all.
    n_parts: usize,
}

/// Attention as [`Kv::attend`](crate::backend::Kv::attend) defines it.
pub(super) fn attend(
    level: Level,
    arenas: &ClassArenas,
    group: &KvGroup,
    call: &Asked<'_>,
    q: &CpuBuffer,
    out: &mut CpuBuffer,
    lse: Option<&mut CpuBuffer>,
) -> Result<()> {
    check_call(arenas, group, call, q)?;
    let d = group.head_dim();
    out.resize(q.rows(), call.heads * d);
    let out_stride = out.stride();
    let lse = lse.map(|lse| {
        lse.resize(q.rows(), call.heads);
        let stride = lse.stride();
        (Shared::new(lse.as_mut_slice()), stride)
    });
    let out = Shared::new(out.as_mut_slice());
    let call = Call { level, arenas, group, call, q, out, out_stride, lse };
    call.run()
}

/// What attention and score passes take for granted of a call.
fn check_call(
    arenas: &ClassArenas,
    group: &KvGroup,
    call: &Asked<'_>,
    q: &CpuBuffer,
) -> Result<()> {
    check_mask(call.causal, call.window)?;
    if !call.heads.is_multiple_of(group.kv_heads) || q.cols() < call.heads * group.head_dim() {
        return Err(Error::misuse("heads", format!("{} do not fit the KV heads", call.heads)));
    }
    let half = group.head_dim() / 2;
    if call.rope.is_some_and(|rope| (1..=half).contains(&rope.inv_freq.len())) {
        return Ok(());
    }
    for seq in 0..call.seqs.len() {
        for kv_head in 0..group.kv_heads {
            let runs = &stream_of(arenas, group, call, seq, kv_head).view.runs;
            if let Some(run) = runs.iter().find(|run| run.shift != 0) {
                let shift = run.shift;
                let what = format!("a run is relocated by {shift}, which needs {half} frequencies");
                return Err(Error::misuse("rope", what));
            }
        }
    }
    Ok(())
}

/// What a KV head of a sequence reads.
fn stream_of<'a>(
    arenas: &'a ClassArenas,
    group: &KvGroup,
    call: &Asked<'a>,
    seq: usize,
    kv_head: usize,
) -> StreamPages<'a> {
    let index = call.at.layer * group.kv_heads + kv_head;
    let view = match call.seqs[seq].view {
        GroupView::Uniform(view) => view,
        GroupView::Ragged(views) => &views[index],
    };
    let seals = group.format.seals();
    StreamPages {
        arenas,
        view,
        index,
        sinks: if seals { group.sinks } else { 0 },
        hot_window: seals.then_some(group.hot_window),
    }
}

impl<'a> Call<'a> {
    fn group_size(&self) -> usize {
        self.call.heads / self.group.kv_heads
    }

    fn stream(&self, seq: usize, kv_head: usize) -> StreamPages<'a> {
        stream_of(self.arenas, self.group, self.call, seq, kv_head)
    }

    fn run(&self) -> Result<()> {
        let mut plan = Plan::default();
        for (seq, share) in self.call.seqs.iter().enumerate() {
            for kv_head in 0..self.group.kv_heads {
                self.plan(seq, share, kv_head, &mut plan)?;
            }
        }
        let Plan { mut items, parts, n_parts } = plan;
        // The longest items first: the last ones then fill the gaps.
        items.reverse();

        let d = self.group.head_dim();
        let (mut outs, mut lses) = (vec![0f32; n_parts * d], vec![0f32; n_parts]);
        let shared = (Shared::new(&mut outs), Shared::new(&mut lses));
        let failed = Mutex::new(None);
        parallel_items(items.len(), |i| {
            // What this thread will probably do next.
            let following = items.get(i + threads());
            if let Err(error) = self.execute(&items[i], following, shared) {
                failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
            }
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
            return Err(error);
        }
        let merge = |i: usize| self.merge(&parts[i], &outs, &lses);
        // Few are merged sooner than threads are woken.
        if n_parts <= 256 {
            (0..parts.len()).for_each(merge)
        } else {
            parallel_for(parts.len(), merge)
        }
        Ok(())
    }

    fn plan(
        &self,
        seq: usize,
        share: &AttendSeq<'_>,
        kv_head: usize,
        plan: &mut Plan,
    ) -> Result<()> {
        let stream = self.stream(seq, kv_head);
        let kept = stream.view.kept as usize;
        if share.q_len > kept || share.first_row + share.q_len > self.q.rows() {
            return Err(Error::misuse(
                "seqs",
                format!("{} queries of sequence {seq}, but {kept} tokens are kept", share.q_len),
            ));
        }
        let mut at = kept - share.q_len;
        while at < kept {
            let end = ((stream.grid_page(at) + 1) * PAGE_TOKENS + stream.sinks).min(kept);
            let (first, n) = (at + share.q_len - kept, end - at);
            match share.kind {
                RowKind::Generated => {
                    let splits = self.last_page(&stream, at) / SPLIT_PAGES + 1;
                    self.plan_decode(seq, kv_head, first..first + n, splits, plan);
                }
                RowKind::Prompt => {
                    for head in (0..self.group_size()).step_by(PREFILL_HEADS) {
                        let heads = (self.group_size() - head).min(PREFILL_HEADS);
                        plan.items.push(Item::Prefill { seq, kv_head, first, n, head, heads });
                    }
                }
            }
            at = end;
        }
        Ok(())
    }

    /// Adds items of generated rows, those of one split side by side.
    fn plan_decode(
        &self,
        seq: usize,
        kv_head: usize,
        rows: Range<usize>,
        splits: usize,
        plan: &mut Plan,
    ) {
        let group = self.group_size();
        let (first, n) = (rows.start * group, rows.len() * group);
        let shares = n.div_ceil(ITEM_COLUMNS.max(group));
        for split in 0..splits {
            for share in 0..shares {
                let (from, to) = (n * share / shares, n * (share + 1) / shares);
                plan.items.push(Item::Decode {
                    seq,
                    kv_head,
                    split,
                    first: first + from,
                    n: to - from,
                    part: plan.n_parts + split * n + from,
                });
            }
        }
        plan.parts.push(Parts { seq, kv_head, first, n, splits, part: plan.n_parts });
        plan.n_parts += splits * n;
    }

    /// The last grid page that the query at kept index `query` sees.
    fn last_page(&self, stream: &StreamPages<'_>, query: usize) -> usize {
        stream.grid_page(if self.call.causal { query } else { stream.view.kept as usize - 1 })
    }

    fn execute(
        &self,
        item: &Item,
        following: Option<&Item>,
        (outs, lses): (Shared<f32>, Shared<f32>),
    ) -> Result<()> {
        match *item {
            Item::Decode { n, part, .. } => {
                let d = self.group.head_dim();
                // SAFETY: each item has parts of its own.
                let (out, lse) = unsafe { (outs.slice(part * d, n * d), lses.slice(part, n)) };
                self.decode(item, following, out, lse)
            }
            Item::Prefill { seq, kv_head, first, n, head, heads } => {
                let head = kv_head * self.group_size() + head;
                self.prefill(seq, kv_head, first..first + n, head, heads)
            }
        }
    }

    /// Appends what a decode item reads of the first `n_pages` pages of its split; gives the
    /// kept index of its first query.
    fn decode_pages(
        &self,
        item: &Item,
        n_pages: usize,
        pages: &mut Vec<PageView<'a>>,
    ) -> Result<usize> {
        let Item::Decode { seq, kv_head, split, first, .. } = *item else { return Ok(0) };
        let stream = self.stream(seq, kv_head);
        let rows = self.call.seqs[seq].q_len - first / self.group_size();
        let query = stream.view.kept as usize - rows;
        let start = split * SPLIT_PAGES;
        let end = (start + n_pages).min(self.last_page(&stream, query) + 1);
        stream.pages(query, start..end, pages)?;
        Ok(query)
    }

    fn decode(
        &self,
        item: &Item,
        following: Option<&Item>,
        out: &mut [f32],
        lse: &mut [f32],
    ) -> Result<()> {
        let Item::Decode { seq, kv_head, first, n, .. } = *item else { return Ok(()) };
        let d = self.group.head_dim();
        let mut pages = Vec::with_capacity(SPLIT_PAGES + 3);
        let query = self.decode_pages(item, SPLIT_PAGES, &mut pages)?;
        let own = pages.len();
        if let Some(following) = following {
            self.decode_pages(following, 1, &mut pages)?;
        }
        let (pages, following) = pages.split_at(own);

        let group = self.group_size();
        let share = &self.call.seqs[seq];
        let base2 = self.call.scale * std::f32::consts::LOG2_E;
        let least = self.least(seq, kv_head);
        let (mut q, mut seen) = (Vec::with_capacity(n * d), Vec::with_capacity(n));
        for column in first..first + n {
            let (row, head) = (column / group, kv_head * group + column % group);
            q.extend(self.q.row(share.first_row + row)[head * d..][..d].iter().map(|x| x * base2));
            seen.push(visible(query + row - first / group, least, self.call.window));
        }
        for at in (0..n).step_by(MAX_COLUMNS) {
            let end = (at + MAX_COLUMNS).min(n);
            // Later passes read the same pages again, out of this core's cache.
            let following = if end < n { pages.first() } else { following.first() };
            dispatch(
                self.level,
                Decode {
                    pages,
                    following,
                    in_place: fast_subnormals(self.level),
                    q: &q[at * d..end * d],
                    head_dim: d,
                    visible: &seen[at..end],
                    rope: self.call.rope,
                    out: &mut out[at * d..end * d],
                    lse: &mut lse[at..end],
                },
            );
        }
        Ok(())
    }

    /// Tokens that every query of a stream sees, wherever it is.
    fn least(&self, seq: usize, kv_head: usize) -> usize {
        if self.call.causal { 0 } else { self.stream(seq, kv_head).view.kept as usize }
    }

    fn prefill(
        &self,
        seq: usize,
        kv_head: usize,
        queries: Range<usize>,
        head: usize,
        heads: usize,
    ) -> Result<()> {
        let d = self.group.head_dim();
        let share = &self.call.seqs[seq];
        let stream = self.stream(seq, kv_head);
        let first = stream.view.kept as usize - share.q_len + queries.start;
        let mut pages = Vec::new();
        stream.pages(first, 0..self.last_page(&stream, first) + 1, &mut pages)?;
        // Pages that end before the first query's window hold nothing for it.
        let start = self.call.window.map_or(0, |w| (first + 1).saturating_sub(w));
        pages.retain(|page| page.first + page.tokens > start);

        let row0 = share.first_row + queries.start;
        dispatch(
            self.level,
            Prefill {
                pages: &pages,
                q: &self.q.as_slice()[row0 * self.q.stride() + head * d..],
                q_stride: self.q.stride(),
                queries: queries.len(),
                heads,
                head_dim: d,
                scale: self.call.scale * std::f32::consts::LOG2_E,
                first,
                least: self.least(seq, kv_head),
                window: self.call.window,
                rope: self.call.rope,
                write: &|i, g, o, l| self.write(row0 + i, head + g, o, l),
            },
        );
        Ok(())
    }

    /// Writes one head of one output row.
    fn write(&self, row: usize, head: usize, values: &[f32], lse: f32) {
        let d = self.group.head_dim();
        // SAFETY: every (row, head) is written by one item or merged once.
        unsafe {
            self.out.slice(row * self.out_stride + head * d, d).copy_from_slice(values);
            if let Some((lses, stride)) = &self.lse {
                lses.slice(row * stride + head, 1)[0] = lse;
            }
        }
    }

    /// Merges the parts of each column in page order.
    fn merge(&self, parts: &Parts, outs: &[f32], lses: &[f32]) {
        let (d, group) = (self.group.head_dim(), self.group_size());
        let mut values = [0f32; MAX_HEAD_DIM];
        for i in 0..parts.n {
            let places = || (0..parts.splits).map(|split| parts.part + split * parts.n + i);
            let max = places().map(|at| lses[at]).fold(f32::NEG_INFINITY, f32::max);
            let mut total = 0.0;
            values[..d].fill(0.0);
            for at in places().filter(|&at| lses[at] != f32::NEG_INFINITY) {
                let weight = (lses[at] - max).exp2();
                total += weight;
                let part = &outs[at * d..][..d];
                values[..d].iter_mut().zip(part).for_each(|(v, p)| *v += weight * p);
            }
            if total > 0.0 {
                values[..d].iter_mut().for_each(|v| *v /= total);
            }
            let lse = if total > 0.0 { max + total.log2() } else { f32::NEG_INFINITY };
            let column = parts.first + i;
            let row = self.call.seqs[parts.seq].first_row + column / group;
            self.write(row, parts.kv_head * group + column % group, &values[..d], lse);
        }
    }
}
