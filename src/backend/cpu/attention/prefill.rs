//! Many queries at once: each page becomes a small f32 tile in the cache of one
//! core and is used for all rows of the query tile.
//!
//! Rows (queries × heads) lie along the vector lanes, tokens or channels along
//! the other axis: `S^T = K·Q^T`, then a softmax down the columns, then
//! `O^T += V^T·P^T`. K and V elements are broadcast, so neither is transposed.

use super::affine::MAX_HEAD_DIM;
use super::codes::even_odd;
use super::pages::{PageView, Tile};
use super::turn::{Turn, rotate_columns};
use crate::backend::Rope;
use crate::backend::cpu::simd::{Kernel, Simd};
use crate::codec::TILE_TOKENS;
use std::cell::RefCell;
use std::ops::Range;

/// Attention of a tile of consecutive queries that see the same pages sealed.
pub(super) struct Prefill<'a> {
    /// The pages, all of one head's stream.
    pub pages: &'a [PageView<'a>],
    /// Query rows: query `i`, head `g` at `q[i · q_stride + g · head_dim]`.
    pub q: &'a [f32],
    /// Floats from one query to the next.
    pub q_stride: usize,
    /// Queries of the tile.
    pub queries: usize,
    /// Heads of the group that this item handles.
    pub heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Factor on the queries, for base-2 logits.
    pub scale: f32,
    /// Kept index of the first query.
    pub first: usize,
    /// Tokens that every query sees, wherever it is: all without a causal mask, else 0.
    pub least: usize,
    /// Sliding window.
    pub window: Option<usize>,
    /// For runs with a shift.
    pub rope: Option<&'a Rope>,
    /// Takes `(query, head, output row, base-2 log-sum-exp)`.
    pub write: &'a WriteRow<'a>,
}

/// Where finished rows go.
pub(super) type WriteRow<'a> = dyn Fn(usize, usize, &[f32], f32) + Sync + 'a;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The kept indices that a query sees; `least` and `window` as in [`Prefill`].
#[inline(always)]
pub(super) fn visible(query: usize, least: usize, window: Option<usize>) -> Range<usize> {
    let end = query + 1;
    window.map_or(0, |w| end.saturating_sub(w))..end.max(least)
}

impl Kernel for Prefill<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let key = SCRATCH.with(std::ptr::from_ref);
        // SAFETY: the thread-local lives as long as its thread, which is running
        // this; the pointer only keeps the kernel out of a closure, which would
        // not be compiled with the kernel's target features.
        let mut scratch = unsafe { &*key }.borrow_mut();
        let d = self.head_dim;
        let columns = (self.queries * self.heads).next_multiple_of(S::LANES);
        let sizes = [d * columns, d * columns, TILE_TOKENS * columns, MAX_HEAD_DIM * TILE_TOKENS];
        scratch.resize(sizes.iter().sum::<usize>() + 6 * columns, 0.0);
        let (q, rest) = scratch.split_at_mut(sizes[0]);
        let (o, rest) = rest.split_at_mut(sizes[1]);
        let (p, rest) = rest.split_at_mut(sizes[2]);
        let (tile, rest) = rest.split_at_mut(sizes[3]);
        let mut per_column = rest.chunks_exact_mut(columns);
        let mut next = || per_column.next().unwrap_or_default();
        let (max, sum, low, high) = (next(), next(), next(), next());
        o.fill(0.0);
        max.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        for column in 0..columns {
            let i = column % self.queries;
            let used = column < self.queries * self.heads;
            let seen = if used { self.visible(i) } else { 0..0 };
            (low[column], high[column]) = (seen.start as f32, seen.end as f32);
        }
        let seen_by_all = self.visible(self.queries - 1).start..self.visible(0).end;

        let (mut turn, mut rotated) = (None, false);
        for page in self.pages {
            if turn != Some(Turn::of(page)) {
                self.place_queries(Turn::of(page), q, columns);
                turn = Some(Turn::of(page));
            }
            let n = page.tokens;
            let sealed = decode_tile(s, page.key_tile(d), tile);
            tile_product(s, Left { a: tile, row: d, k: 1 }, n, d, sealed, q, p, columns, false);

            let whole = seen_by_all.start <= page.first
                && page.first + n <= seen_by_all.end
                && page.live == u64::MAX;
            if !whole {
                mask(s, page, low, high, p, columns);
            }
            softmax_step(s, &mut p[..n * columns], o, max, sum, columns);

            if rotated != page.value_codec.rotated() {
                rotate_columns(s, o, columns);
                rotated = !rotated;
            }
            let sealed = decode_tile(s, page.value_tile(d), tile);
            let left = match page.value_codec.affine() {
                Some(_) => Left { a: tile, row: TILE_TOKENS, k: 1 },
                None => Left { a: tile, row: 1, k: d },
            };
            tile_product(s, left, d, n, sealed, p, o, columns, true);
        }

        if rotated {
            rotate_columns(s, o, columns);
        }
        let mut row = [0f32; MAX_HEAD_DIM];
        for g in 0..self.heads {
            for i in 0..self.queries {
                let column = g * self.queries + i;
                let norm = if sum[column] > 0.0 { 1.0 / sum[column] } else { 0.0 };
                for (c, x) in row[..d].iter_mut().enumerate() {
                    *x = o[c * columns + column] * norm;
                }
                let lse = match sum[column] > 0.0 {
                    true => max[column] + sum[column].log2(),
                    false => f32::NEG_INFINITY,
                };
                (self.write)(i, g, &row[..d], lse);
            }
        }
    }
}

impl Prefill<'_> {
    /// The kept indices that query `i` sees.
    #[inline(always)]
    pub(super) fn visible(&self, i: usize) -> Range<usize> {
        visible(self.first + i, self.least, self.window)
    }

    /// Writes `q^T`, turned; padding columns are 0.
    pub(super) fn place_queries(&self, turn: Turn, q: &mut [f32], columns: usize) {
        let d = self.head_dim;
        let mut row = [0f32; MAX_HEAD_DIM];
        q.fill(0.0);
        for g in 0..self.heads {
            for i in 0..self.queries {
                row[..d].copy_from_slice(&self.q[i * self.q_stride + g * d..][..d]);
                turn.apply(&mut row[..d], self.rope);
                for (c, x) in row[..d].iter().enumerate() {
                    q[c * columns + g * self.queries + i] = x * self.scale;
                }
            }
        }
    }
}

/// Decodes a tile to f32; whether its k axis is in even-odd order.
#[inline(always)]
pub(super) fn decode_tile<S: Simd>(s: S, tile: Tile<'_>, out: &mut [f32]) -> bool {
    match tile {
        Tile::Affine(tile) => {
            tile.decode(s, out);
            true
        }
        Tile::Rows(tile) => {
            tile.decode(s, out);
            false
        }
    }
}

/// The left operand of a tile product: element `(m, k)` at `a[m · row + k · self.k]`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub a: &'a [f32],
    pub row: usize,
    pub k: usize,
}

/// `c[m][·] (+)= Σ_k left[m, k]·b[k'][·]`, where `k'` undoes the even-odd order
/// if `left` has it. `b` and `c` have rows of `columns` floats.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) fn tile_product<S: Simd>(
    s: S,
    left: Left<'_>,
    m: usize,
    k: usize,
    even_odd_order: bool,
    b: &[f32],
    c: &mut [f32],
    columns: usize,
    accumulate: bool,
) {
    assert!(b.len() >= k * columns && c.len() >= m * columns && k <= MAX_HEAD_DIM && m > 0);
    assert!(left.a.len() > (m - 1) * left.row + (k - 1) * left.k);
    // Row of b for the k-th element of left.
    let mut order = [0u32; MAX_HEAD_DIM];
    for i in 0..k {
        order[if even_odd_order { even_odd(i) } else { i }] = (i * columns) as u32;
    }
    let vectors = columns / S::LANES;
    let mut v = 0;
    while v < vectors {
        let wide = vectors - v >= S::TILE_COLUMNS;
        let mut row = 0;
        while row < m {
            let four = m - row >= 4;
            // SAFETY: rows and columns of the block lie within the operands,
            // whose sizes were checked above.
            unsafe {
                let a = left.a.as_ptr().add(row * left.row);
                let b = b.as_ptr().add(v * S::LANES);
                let c = c.as_mut_ptr().add(row * columns + v * S::LANES);
                let block = Block { a, a_row: left.row, a_k: left.k, b, c, columns, accumulate };
                let order = &order[..k];
                match (four, wide, S::TILE_COLUMNS) {
                    (true, true, 6) => block.run::<S, 4, 6>(s, order),
                    (true, true, _) => block.run::<S, 4, 2>(s, order),
                    (false, true, 6) => block.run::<S, 1, 6>(s, order),
                    (false, true, _) => block.run::<S, 1, 2>(s, order),
                    (true, false, _) => block.run::<S, 4, 1>(s, order),
                    (false, false, _) => block.run::<S, 1, 1>(s, order),
                }
            }
            row += if four { 4 } else { 1 };
        }
        v += if wide { S::TILE_COLUMNS } else { 1 };
    }
}

/// A register block of a tile product.
struct Block {
    a: *const f32,
    a_row: usize,
    a_k: usize,
    b: *const f32,
    c: *mut f32,
    columns: usize,
    accumulate: bool,
}

impl Block {
    /// # Safety
    /// `M` rows of a and c, `N` vectors of b and c, and the rows of b that
    /// `order` names are in range.
    #[inline(always)]
    unsafe fn run<S: Simd, const M: usize, const N: usize>(self, s: S, order: &[u32]) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut acc = [[s.splat(0.0); N]; M];
            for (k, &b_row) in order.iter().enumerate() {
                let mut b = [s.splat(0.0); N];
                for (j, b) in b.iter_mut().enumerate() {
                    *b = s.load(self.b.add(b_row as usize + j * S::LANES));
                }
                for (i, acc) in acc.iter_mut().enumerate() {
                    let a = s.splat(*self.a.add(i * self.a_row + k * self.a_k));
                    for j in 0..N {
                        acc[j] = s.fma(a, b[j], acc[j]);
                    }
                }
            }
            for (i, acc) in acc.iter().enumerate() {
                for (j, &x) in acc.iter().enumerate() {
                    let c = self.c.add(i * self.columns + j * S::LANES);
                    s.store(c, if self.accumulate { s.add(s.load(c), x) } else { x });
                }
            }
        }
    }
}

/// Gives tokens that a column does not see a score of −∞.
#[inline(always)]
pub(super) fn mask<S: Simd>(
    s: S,
    page: &PageView<'_>,
    low: &[f32],
    high: &[f32],
    p: &mut [f32],
    columns: usize,
) {
    let never = s.splat(f32::NEG_INFINITY);
    for (token, row) in p[..page.tokens * columns].chunks_exact_mut(columns).enumerate() {
        if page.live >> token & 1 == 0 {
            row.fill(f32::NEG_INFINITY);
            continue;
        }
        let at = s.splat((page.first + token) as f32);
        let next = s.splat((page.first + token + 1) as f32);
        for v in (0..columns).step_by(S::LANES) {
            // SAFETY: columns is a multiple of LANES; all slices have that length.
            unsafe {
                let x = row.as_mut_ptr().add(v);
                let y = s.select_le(s.load(low.as_ptr().add(v)), at, s.load(x), never);
                s.store(x, s.select_le(next, s.load(high.as_ptr().add(v)), y, never));
            }
        }
    }
}

/// Turns scores into weights relative to each column's running maximum and
/// shrinks what was summed so far.
#[inline(always)]
fn softmax_step<S: Simd>(
    s: S,
    p: &mut [f32],
    o: &mut [f32],
    max: &mut [f32],
    sum: &mut [f32],
    columns: usize,
) {
    assert!(max.len() == columns && sum.len() == columns && columns.is_multiple_of(S::LANES));
    let finite = s.splat(-1e30);
    for v in (0..columns).step_by(S::LANES) {
        // SAFETY: columns is a multiple of LANES; p and o have whole rows of it.
        unsafe {
            let old = s.load(max.as_ptr().add(v));
            let mut top = old;
            for row in p.chunks_exact(columns) {
                top = s.max(top, s.load(row.as_ptr().add(v)));
            }
            // A column that has seen nothing keeps a finite base: weights 0.
            let base = s.max(top, finite);
            let mut total = s.splat(0.0);
            for row in p.chunks_exact_mut(columns) {
                let x = row.as_mut_ptr().add(v);
                let w = s.exp2(s.sub(s.load(x), base));
                s.store(x, w);
                total = s.add(total, w);
            }
            let grown = s.horizontal_max(s.sub(base, s.max(old, finite))) > 0.0;
            let scale = s.exp2(s.sub(old, base));
            let total = s.fma(s.load(sum.as_ptr().add(v)), scale, total);
            s.store(sum.as_mut_ptr().add(v), total);
            s.store(max.as_mut_ptr().add(v), top);
            if grown {
                for row in o.chunks_exact_mut(columns) {
                    let x = row.as_mut_ptr().add(v);
                    s.store(x, s.mul(s.load(x), scale));
                }
            }
        }
    }
}
