//! Fused attention over all runs of a stream in one softmax.
//!
//! | file | what |
//! |---|---|
//! | `pages.rs` | which pages a query reads, and which of their rows |
//! | `prefetch.rs` | asking for bytes before they are read |
//! | `affine.rs`, `codes.rs` | products with low-bit tiles, read in place; their codes |
//! | `turn.rs` | queries and outputs of rotated codecs and relocated runs |
//! | `rows.rs` | products with f16, bf16 and fp8 tiles |
//! | `decode.rs` | one query: each K and V byte is read once a query group |
//! | `softmax.rs` | its weights |
//! | `prefill.rs` | a tile of queries |
//! | `score.rs` | what became of each token: score passes |
//!
//! The float64 oracle is in `tests/common/oracle.rs`.
//!
//! Work items depend on one stream only (ARCHITECTURE, rule 4): a decode item is
//! [`SPLIT_PAGES`] grid pages of one head, and partial results merge in page
//! order; a prefill item is the queries of one grid page. So results are
//! bitwise independent of the batch and of the number of threads.

// Register blocks are written by index: heads, vectors and rows are numbers.
#![allow(clippy::needless_range_loop)]

mod affine;
mod codes;
mod decode;
mod pages;
mod prefetch;
mod prefill;
mod rows;
mod score;
mod softmax;
mod turn;

use super::arena::Arenas;
use super::pool::{Shared, parallel_items, threads};
use super::simd::{Level, dispatch, fast_subnormals};
use super::tensor::Buffer;
use crate::backend::kv::check_mask;
use crate::backend::{AttendSeq, KvGroup, LayerIndex, Rope};
use crate::cache::{GroupView, PAGE_TOKENS};
use crate::error::{Error, Result};
pub(super) use score::Pass;

use affine::MAX_HEAD_DIM;
use decode::{Decode, MAX_HEADS};
use pages::Stream;
use prefill::Prefill;
use std::sync::Mutex;
pub(super) use turn::rotate_columns;

/// Grid pages of one decode work item.
const SPLIT_PAGES: usize = 16;

/// Head dimensions that the kernels can take.
pub(super) fn check_head_dim(head_dim: usize) -> Result<()> {
    if head_dim.is_multiple_of(32) && (32..=MAX_HEAD_DIM).contains(&head_dim) {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: format!("head_dim {head_dim}"),
        remedy: format!("it must be a multiple of 32, at most {MAX_HEAD_DIM}"),
    })
}

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
    arenas: &'a Arenas,
    group: &'a KvGroup,
    call: &'a Asked<'a>,
    q: &'a Buffer,
    out: Shared<f32>,
    out_stride: usize,
    /// With its stride.
    lse: Option<(Shared<f32>, usize)>,
}

/// A share of the work that one thread does at a time.
enum Item {
    /// Pages `SPLIT_PAGES · split ..` of one KV head, for one query.
    Decode { seq: usize, kv_head: usize, split: usize },
    /// Queries `[first, first + n)` of a sequence, heads `[head, head + heads)`
    /// of the group.
    Prefill { seq: usize, kv_head: usize, first: usize, n: usize, head: usize, heads: usize },
}

/// Attention as [`Kv::attend`](crate::backend::Kv::attend) defines it.
pub(super) fn attend(
    level: Level,
    arenas: &Arenas,
    group: &KvGroup,
    call: &Asked<'_>,
    q: &Buffer,
    out: &mut Buffer,
    lse: Option<&mut Buffer>,
) -> Result<()> {
    check_call(arenas, group, call, q)?;
    let d = group.head_dim;
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
fn check_call(arenas: &Arenas, group: &KvGroup, call: &Asked<'_>, q: &Buffer) -> Result<()> {
    check_mask(call.causal, call.window)?;
    if !call.heads.is_multiple_of(group.kv_heads) || q.cols() < call.heads * group.head_dim {
        return Err(Error::config("heads", format!("{} do not fit the KV heads", call.heads)));
    }
    let half = group.head_dim / 2;
    if call.rope.is_some_and(|rope| (1..=half).contains(&rope.inv_freq.len())) {
        return Ok(());
    }
    for seq in 0..call.seqs.len() {
        for kv_head in 0..group.kv_heads {
            let runs = &stream_of(arenas, group, call, seq, kv_head).view.runs;
            if let Some(run) = runs.iter().find(|run| run.shift != 0) {
                let shift = run.shift;
                let what = format!("a run is relocated by {shift}, which needs {half} frequencies");
                return Err(Error::config("rope", what));
            }
        }
    }
    Ok(())
}

/// What a KV head of a sequence reads.
fn stream_of<'a>(
    arenas: &'a Arenas,
    group: &KvGroup,
    call: &Asked<'a>,
    seq: usize,
    kv_head: usize,
) -> Stream<'a> {
    let index = call.at.layer * group.kv_heads + kv_head;
    let view = match call.seqs[seq].view {
        GroupView::Uniform(view) => view,
        GroupView::Ragged(views) => &views[index],
    };
    let seals = group.format.seals();
    Stream {
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

    fn stream(&self, seq: usize, kv_head: usize) -> Stream<'a> {
        stream_of(self.arenas, self.group, self.call, seq, kv_head)
    }

    fn run(&self) -> Result<()> {
        let mut items = Vec::new();
        for (seq, share) in self.call.seqs.iter().enumerate() {
            for kv_head in 0..self.group.kv_heads {
                self.plan(seq, share, kv_head, &mut items)?;
            }
        }
        // The longest items first: the last ones then fill the gaps.
        items.reverse();

        let d = self.group.head_dim;
        let row = self.group_size() * (d + 1);
        let mut partial = vec![0f32; items.len() * row];
        let parts = Shared::new(&mut partial);
        let failed = Mutex::new(None);
        parallel_items(items.len(), |i| {
            // SAFETY: each item has a part of its own.
            let part = unsafe { parts.slice(i * row, row) };
            // What this thread will probably do next.
            let following = items.get(i + threads());
            if let Err(error) = self.execute(&items[i], following, part) {
                failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
            }
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
            return Err(error);
        }
        self.merge(&items, &partial);
        Ok(())
    }

    fn plan(
        &self,
        seq: usize,
        share: &AttendSeq<'_>,
        kv_head: usize,
        items: &mut Vec<Item>,
    ) -> Result<()> {
        let stream = self.stream(seq, kv_head);
        let kept = stream.view.kept as usize;
        if share.q_len > kept || share.first_row + share.q_len > self.q.rows() {
            return Err(Error::config(
                "seqs",
                format!("{} queries of sequence {seq}, but {kept} tokens are kept", share.q_len),
            ));
        }
        if share.q_len == 1 {
            let splits = stream.grid_page(kept - 1) / SPLIT_PAGES + 1;
            items.extend((0..splits).map(|split| Item::Decode { seq, kv_head, split }));
            return Ok(());
        }
        let mut at = kept - share.q_len;
        while at < kept {
            let end = ((stream.grid_page(at) + 1) * PAGE_TOKENS + stream.sinks).min(kept);
            let first = at + share.q_len - kept;
            for head in (0..self.group_size()).step_by(MAX_HEADS) {
                let heads = (self.group_size() - head).min(MAX_HEADS);
                items.push(Item::Prefill { seq, kv_head, first, n: end - at, head, heads });
            }
            at = end;
        }
        Ok(())
    }

    fn execute(&self, item: &Item, following: Option<&Item>, part: &mut [f32]) -> Result<()> {
        match *item {
            Item::Decode { seq, kv_head, split } => {
                self.decode(seq, kv_head, split, following, part)
            }
            Item::Prefill { seq, kv_head, first, n, head, heads } => {
                let head = kv_head * self.group_size() + head;
                self.prefill(seq, kv_head, first..first + n, head, heads)
            }
        }
    }

    fn decode(
        &self,
        seq: usize,
        kv_head: usize,
        split: usize,
        following: Option<&Item>,
        part: &mut [f32],
    ) -> Result<()> {
        let d = self.group.head_dim;
        let share = &self.call.seqs[seq];
        let stream = self.stream(seq, kv_head);
        let query = stream.view.kept as usize - 1;
        let mut pages = Vec::with_capacity(SPLIT_PAGES + 3);
        let grid = split * SPLIT_PAGES..(split + 1) * SPLIT_PAGES;
        stream.pages(query, grid, &mut pages)?;
        let own = pages.len();
        if let Some(&Item::Decode { seq, kv_head, split }) = following {
            let stream = self.stream(seq, kv_head);
            let first = split * SPLIT_PAGES;
            stream.pages(stream.view.kept as usize - 1, first..first + 1, &mut pages)?;
        }
        let (pages, following) = pages.split_at(own);

        let group = self.group_size();
        let base2 = self.call.scale * std::f32::consts::LOG2_E;
        let heads = &self.q.row(share.first_row)[kv_head * group * d..][..group * d];
        let q: Vec<f32> = heads.iter().map(|x| x * base2).collect();
        let start = self.call.window.map_or(0, |w| (query + 1).saturating_sub(w));
        let (out, lse) = part.split_at_mut(group * d);
        for head in (0..group).step_by(MAX_HEADS) {
            let end = (head + MAX_HEADS).min(group);
            dispatch(
                self.level,
                Decode {
                    pages,
                    following: following.first(),
                    in_place: fast_subnormals(self.level),
                    q: &q[head * d..end * d],
                    head_dim: d,
                    visible: start..query + 1,
                    rope: self.call.rope,
                    out: &mut out[head * d..end * d],
                    lse: &mut lse[head..end],
                },
            );
        }
        Ok(())
    }

    fn prefill(
        &self,
        seq: usize,
        kv_head: usize,
        queries: std::ops::Range<usize>,
        head: usize,
        heads: usize,
    ) -> Result<()> {
        let d = self.group.head_dim;
        let share = &self.call.seqs[seq];
        let stream = self.stream(seq, kv_head);
        let first = stream.view.kept as usize - share.q_len + queries.start;
        let last = if self.call.causal { first } else { stream.view.kept as usize - 1 };
        let mut pages = Vec::new();
        stream.pages(first, 0..stream.grid_page(last) + 1, &mut pages)?;
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
                least: if self.call.causal { 0 } else { stream.view.kept as usize },
                window: self.call.window,
                rope: self.call.rope,
                write: &|i, g, o, l| self.write(row0 + i, head + g, o, l),
            },
        );
        Ok(())
    }

    /// Writes one head of one output row.
    fn write(&self, row: usize, head: usize, values: &[f32], lse: f32) {
        let d = self.group.head_dim;
        // SAFETY: every (row, head) is written by one item or merged once.
        unsafe {
            self.out.slice(row * self.out_stride + head * d, d).copy_from_slice(values);
            if let Some((lses, stride)) = &self.lse {
                lses.slice(row * stride + head, 1)[0] = lse;
            }
        }
    }

    /// Merges the decode items of each head in page order.
    fn merge(&self, items: &[Item], partial: &[f32]) {
        let (d, group) = (self.group.head_dim, self.group_size());
        let row = group * (d + 1);
        let mut values = [0f32; MAX_HEAD_DIM];
        // Items stand in reverse, so a head's splits run from the last to 0.
        let mut end = items.len();
        while end > 0 {
            let Item::Decode { seq, kv_head, .. } = items[end - 1] else {
                end -= 1;
                continue;
            };
            let same = |item: &&Item| matches!(item, Item::Decode { seq: s, kv_head: k, .. } if (*s, *k) == (seq, kv_head));
            let splits = items[..end].iter().rev().take_while(same).count();
            for g in 0..group {
                let lse_of = |i: usize| partial[(end - 1 - i) * row + group * d + g];
                let max = (0..splits).map(lse_of).fold(f32::NEG_INFINITY, f32::max);
                let mut total = 0.0;
                values[..d].fill(0.0);
                for split in 0..splits {
                    let lse = lse_of(split);
                    if lse == f32::NEG_INFINITY {
                        continue;
                    }
                    let weight = (lse - max).exp2();
                    total += weight;
                    let part = &partial[(end - 1 - split) * row + g * d..][..d];
                    values[..d].iter_mut().zip(part).for_each(|(v, p)| *v += weight * p);
                }
                if total > 0.0 {
                    values[..d].iter_mut().for_each(|v| *v /= total);
                }
                let lse = if total > 0.0 { max + total.log2() } else { f32::NEG_INFINITY };
                let head = kv_head * group + g;
                self.write(self.call.seqs[seq].first_row, head, &values[..d], lse);
            }
            end -= splits;
        }
    }
}
