//! Score passes: the probabilities of a page's tokens, from saved log-sum-exps, and
//! what they are reduced to ([`crate::backend::score_pass`]).
//!
//! A page is read as prefill reads it: it becomes an f32 tile, `S^T = K·Q^T` for the
//! queries of one grid page, and then `P^T = 2^(S^T − lse)`, so a token's probabilities
//! lie side by side. Values are not read. A work item of sums and maxima owns
//! [`SPLIT_PAGES`] grid pages of one KV head, which all queries pass in order; an item
//! of tops owns its queries. So results depend neither on the batch nor on the threads.

use super::affine::MAX_HEAD_DIM;
use super::pages::{PageView, StreamPages};
use super::prefill::{Left, Prefill, decode_tile, mask, tile_product, visible};
use super::turn::Turn;
use super::{Asked, SPLIT_PAGES, check_call, stream_of};
use crate::backend::KvGroup;
use crate::backend::cpu::arena::ClassArenas;
use crate::backend::cpu::pool::{Shared, parallel_items};
use crate::backend::cpu::simd::{Kernel, Level, Simd, dispatch};
use crate::backend::cpu::tensor::CpuBuffer;
use crate::backend::score_pass::{Heads, Score, Scores, Spans, Top, TopHeads};
use crate::cache::PAGE_TOKENS;
use crate::codec::TILE_TOKENS;
use crate::error::{Error, Result};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Mutex;

/// A pass with everything that it reads.
pub(in crate::backend::cpu) struct ScorePass<'a> {
    /// The instruction set.
    pub level: Level,
    /// The blocks' bytes.
    pub arenas: &'a ClassArenas,
    /// The geometry.
    pub group: &'a KvGroup,
    /// What was attended to.
    pub call: &'a Asked<'a>,
    /// Its queries.
    pub q: &'a CpuBuffer,
    /// Its base-2 log-sum-exps, `[rows][heads]`.
    pub lse: &'a CpuBuffer,
}

/// A share of the work that one thread does at a time: queries of a sequence, and the
/// grid pages of one KV head that they pass; the sinks come with page 0.
struct Item {
    seq: usize,
    kv_head: usize,
    queries: Range<usize>,
    grid: Range<usize>,
}

impl ScorePass<'_> {
    /// [`Kv::score`](crate::backend::Kv::score).
    pub fn score(&self, pass: Score, out: &mut Scores) -> Result<()> {
        let last = pass.last()?;
        self.check()?;
        out.spans = self.spans()?;
        out.values.clear();
        out.values.resize(out.spans.total(), 0.0);
        let mut items = Vec::new();
        for (seq, share) in self.call.seqs.iter().enumerate() {
            let queries = share.q_len.saturating_sub(last)..share.q_len;
            for kv_head in 0..self.group.kv_heads {
                for grid in chunks(&self.stream(seq, kv_head)) {
                    items.push(Item { seq, kv_head, queries: queries.clone(), grid });
                }
            }
        }
        let values = Shared::new(&mut out.values);
        self.run(&items, |item, _| {
            let start = out.spans.of(item.seq, item.kv_head).start;
            let owned = owned_tokens(&self.stream(item.seq, item.kv_head), &item.grid);
            // SAFETY: a stream's tokens are shared out among its items.
            let scores = unsafe { values.slice(start + owned.start, owned.len()) };
            self.reduce(pass, item, owned.start, scores)
        })
    }

    /// [`Kv::score_top`](crate::backend::Kv::score_top).
    pub fn score_top(&self, of: TopHeads, out: &mut Vec<Top>) -> Result<()> {
        self.check()?;
        let (mut items, mut ends) = (Vec::new(), vec![0]);
        let width = if of == TopHeads::Group { 1 } else { self.group_size() };
        for (seq, share) in self.call.seqs.iter().enumerate() {
            for kv_head in 0..self.group.kv_heads {
                let stream = self.stream(seq, kv_head);
                // A single query shares its pages among threads, many share themselves.
                let mut add = |queries: Range<usize>, grid| {
                    ends.push(ends[items.len()] + queries.len() * width);
                    items.push(Item { seq, kv_head, queries, grid });
                };
                match share.q_len {
                    1 => chunks(&stream).for_each(|grid| add(0..1, grid)),
                    n => by_page(&stream, n, 0..n).for_each(|queries| {
                        add(queries, 0..stream.grid_page(stream.view.kept as usize) + 1)
                    }),
                }
            }
        }
        let mut found = vec![Top::NONE; ends[items.len()]];
        let parts = Shared::new(&mut found);
        self.run(&items, |item, i| {
            // SAFETY: each item has a part of its own.
            let part = unsafe { parts.slice(ends[i], ends[i + 1] - ends[i]) };
            self.top(of, item, part)
        })?;

        let columns = self.group.kv_heads * width;
        out.clear();
        out.resize(self.q.rows() * columns, Top::NONE);
        for (item, end) in items.iter().zip(&ends) {
            let first = self.call.seqs[item.seq].first_row;
            for (i, query) in item.queries.clone().enumerate() {
                for w in 0..width {
                    let best = &mut out[(first + query) * columns + item.kv_head * width + w];
                    *best = best.or(found[end + i * width + w]);
                }
            }
        }
        if of == TopHeads::Group {
            out.iter_mut().for_each(|top| top.value /= self.group_size() as f32);
        }
        Ok(())
    }

    fn group_size(&self) -> usize {
        self.call.heads / self.group.kv_heads
    }

    fn stream(&self, seq: usize, kv_head: usize) -> StreamPages<'_> {
        stream_of(self.arenas, self.group, self.call, seq, kv_head)
    }

    fn spans(&self) -> Result<Spans> {
        let kept: Vec<_> = self.call.seqs.iter().map(|seq| seq.view.kept()).collect();
        let kept = kept.iter().map(Vec::as_slice);
        Spans::new(kept, self.group.kv_heads, self.call.at.layer)
    }

    fn check(&self) -> Result<()> {
        let (call, rows) = (self.call, self.q.rows());
        check_call(self.arenas, self.group, call, self.q)?;
        if (self.lse.rows(), self.lse.cols()) != (rows, call.heads) {
            let what = format!("[{}, {}]", self.lse.rows(), self.lse.cols());
            return Err(Error::misuse("lse", format!("{what}, not [{rows}, {}]", call.heads)));
        }
        let spans = self.spans()?;
        for (seq, share) in call.seqs.iter().enumerate() {
            let kept = (0..self.group.kv_heads).map(|k| spans.of(seq, k).len()).min().unwrap_or(0);
            if share.q_len > kept || share.first_row + share.q_len > rows {
                let what = format!("{} queries of sequence {seq}, {kept} tokens", share.q_len);
                return Err(Error::misuse("seqs", format!("{what} and {rows} rows")));
            }
        }
        Ok(())
    }

    /// Executes all items, with their numbers.
    fn run(
        &self,
        items: &[Item],
        execute: impl Fn(&Item, usize) -> Result<()> + Sync,
    ) -> Result<()> {
        let failed = Mutex::new(None);
        parallel_items(items.len(), |i| {
            if let Err(error) = execute(&items[i], i) {
                failed.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(error);
            }
        });
        failed.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
    }

    /// The scores of an item's tokens, the first of which has kept index `first`.
    fn reduce(&self, pass: Score, item: &Item, first: usize, scores: &mut [f32]) -> Result<()> {
        let group = self.group_size();
        let mut of_heads = vec![0f32; scores.len() * group];
        self.probabilities(item, |queries, page, p, columns| {
            for (token, row) in p.chunks_exact(columns).enumerate() {
                let of_token = &mut of_heads[(page.first + token - first) * group..][..group];
                for (x, p) in of_token.iter_mut().zip(row.chunks_exact(queries.len())) {
                    match pass {
                        Score::Sum { .. } => *x += p.iter().sum::<f32>(),
                        Score::Max { .. } => *x = p.iter().copied().fold(*x, f32::max),
                    }
                }
            }
        })?;
        for (score, of_token) in scores.iter_mut().zip(of_heads.chunks_exact(group)) {
            *score = match pass {
                Score::Sum { heads: Heads::Mean, .. } => {
                    of_token.iter().sum::<f32>() / group as f32
                }
                _ => of_token.iter().copied().fold(0.0, f32::max),
            };
        }
        Ok(())
    }

    /// The best tokens of an item's queries: `[queries]` by the sum over the heads, or
    /// `[queries][group]`.
    fn top(&self, of: TopHeads, item: &Item, best: &mut [Top]) -> Result<()> {
        let group = self.group_size();
        let first = item.queries.start;
        self.probabilities(item, |queries, page, p, columns| {
            let n = queries.len();
            for (token, row) in p.chunks_exact(columns).enumerate() {
                let index = (page.first + token) as u32;
                let mut offer = |at: usize, value: f32| {
                    if value > 0.0 {
                        best[at] = best[at].or(Top { value, index });
                    }
                };
                for (i, query) in queries.clone().enumerate() {
                    let of_heads = (0..group).map(|g| row[g * n + i]);
                    match of {
                        TopHeads::Group => offer(query - first, of_heads.sum()),
                        TopHeads::Each => of_heads
                            .enumerate()
                            .for_each(|(g, p)| offer((query - first) * group + g, p)),
                    }
                }
            }
        })
    }

    /// Gives `take` the probabilities of an item, page by page for the queries of one
    /// grid page at a time: `(queries, page, p, columns)`, `p[token · columns + g · n + i]`
    /// being that of the page's token for head g of the i-th of n queries.
    fn probabilities(
        &self,
        item: &Item,
        mut take: impl FnMut(&Range<usize>, &PageView<'_>, &[f32], usize),
    ) -> Result<()> {
        let (d, group) = (self.group.head_dim(), self.group_size());
        let share = &self.call.seqs[item.seq];
        let stream = self.stream(item.seq, item.kv_head);
        let head = item.kv_head * group;
        let mut pages = Vec::new();
        for queries in by_page(&stream, share.q_len, item.queries.clone()) {
            let first = stream.view.kept as usize - share.q_len + queries.start;
            pages.clear();
            stream.pages(first, item.grid.clone(), &mut pages)?;
            // Pages before the first query's window or behind the last query hold nothing.
            let least = if self.call.causal { 0 } else { stream.view.kept as usize };
            let start = visible(first, least, self.call.window).start;
            let end = visible(first + queries.len() - 1, least, self.call.window).end;
            pages.retain(|page| page.first + page.tokens > start && page.first < end);
            let row0 = share.first_row + queries.start;
            let lse = (0..group)
                .flat_map(|g| (0..queries.len()).map(move |i| (g, i)))
                .map(|(g, i)| self.lse.row(row0 + i)[head + g])
                // A row that sees nothing: 2^−∞.
                .map(|lse| if lse == f32::NEG_INFINITY { f32::INFINITY } else { lse })
                .collect();
            let tile = Prefill {
                pages: &pages,
                q: &self.q.as_slice()[row0 * self.q.stride() + head * d..],
                q_stride: self.q.stride(),
                queries: queries.len(),
                heads: group,
                head_dim: d,
                scale: self.call.scale * std::f32::consts::LOG2_E,
                first,
                least,
                window: self.call.window,
                rope: self.call.rope,
                write: &|_, _, _, _| {},
            };
            let mut take =
                |page: &PageView<'_>, p: &[f32], columns| take(&queries, page, p, columns);
            dispatch(self.level, Probabilities { tile, lse, take: &mut take });
        }
        Ok(())
    }
}

/// The grid pages of a stream, some at a time.
fn chunks(stream: &StreamPages<'_>) -> impl Iterator<Item = Range<usize>> + use<> {
    let kept = stream.view.kept as usize;
    let pages = if kept == 0 { 0 } else { stream.grid_page(kept - 1) + 1 };
    (0..pages).step_by(SPLIT_PAGES).map(move |at| at..(at + SPLIT_PAGES).min(pages))
}

/// The kept indices of grid pages, the sinks with page 0.
fn owned_tokens(stream: &StreamPages<'_>, grid: &Range<usize>) -> Range<usize> {
    let first = |page: usize| if page == 0 { 0 } else { stream.sinks + page * PAGE_TOKENS };
    first(grid.start)..first(grid.end).min(stream.view.kept as usize)
}

/// Queries of a sequence, those of one grid page at a time: they see the same pages
/// sealed.
fn by_page(
    stream: &StreamPages<'_>,
    q_len: usize,
    queries: Range<usize>,
) -> impl Iterator<Item = Range<usize>> + use<> {
    let (sinks, before) = (stream.sinks, stream.view.kept as usize - q_len);
    let mut at = queries.start;
    std::iter::from_fn(move || {
        let page = (before + at).saturating_sub(sinks) / PAGE_TOKENS;
        let end = (sinks + (page + 1) * PAGE_TOKENS - before).min(queries.end);
        let share = at..end;
        at = end;
        (!share.is_empty()).then_some(share)
    })
}

/// The probabilities of a tile of queries, page by page.
struct Probabilities<'a> {
    /// The queries and the pages, as prefill takes them.
    tile: Prefill<'a>,
    /// Base-2 log-sum-exps `[heads][queries]`.
    lse: Vec<f32>,
    /// Takes `(page, p, columns)`.
    take: &'a mut dyn FnMut(&PageView<'_>, &[f32], usize),
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Kernel for Probabilities<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let key = SCRATCH.with(std::ptr::from_ref);
        // SAFETY: the thread-local lives as long as its thread, which is running
        // this; the pointer only keeps the kernel out of a closure, which would
        // not be compiled with the kernel's target features.
        let mut scratch = unsafe { &*key }.borrow_mut();
        let Self { tile: Prefill { pages, queries, heads, head_dim: d, .. }, .. } = self;
        let used = queries * heads;
        let columns = used.next_multiple_of(S::LANES);
        let sizes = [d * columns, TILE_TOKENS * columns, MAX_HEAD_DIM * TILE_TOKENS];
        scratch.clear();
        scratch.resize(sizes.iter().sum::<usize>() + 3 * columns, 0.0);
        let (q, rest) = scratch.split_at_mut(sizes[0]);
        let (p, rest) = rest.split_at_mut(sizes[1]);
        let (keys, rest) = rest.split_at_mut(sizes[2]);
        let (low, rest) = rest.split_at_mut(columns);
        let (high, lse) = rest.split_at_mut(columns);
        lse[..used].copy_from_slice(&self.lse);
        for column in 0..used {
            let seen = self.tile.visible(column % queries);
            (low[column], high[column]) = (seen.start as f32, seen.end as f32);
        }
        let seen_by_all = self.tile.visible(queries - 1).start..self.tile.visible(0).end;

        let mut turn = None;
        for page in pages {
            if turn != Some(Turn::of(page)) {
                self.tile.place_queries(Turn::of(page), q, columns);
                turn = Some(Turn::of(page));
            }
            let n = page.tokens;
            let even_odd = decode_tile(s, page.key_tile(d), keys);
            let left = Left { a: keys, row: d, k: 1 };
            tile_product(s, left, n, d, even_odd, q, p, columns, false);
            let whole = seen_by_all.start <= page.first
                && page.first + n <= seen_by_all.end
                && page.live == u64::MAX;
            if !whole {
                mask(s, page, low, high, p, columns);
            }
            for row in p[..n * columns].chunks_exact_mut(columns) {
                for at in (0..columns).step_by(S::LANES) {
                    // SAFETY: columns is a multiple of LANES; both have that length.
                    unsafe {
                        let x = row.as_mut_ptr().add(at);
                        s.store(x, s.exp2(s.sub(s.load(x), s.load(lse.as_ptr().add(at)))));
                    }
                }
            }
            (self.take)(page, &p[..n * columns], columns);
        }
    }
}
