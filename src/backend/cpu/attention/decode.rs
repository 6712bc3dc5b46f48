//! A few queries over some pages: low-bit pages are read in place, codes never become a
//! tile.
//!
//! A *column* is a query in one head. Those of a pass read the same pages, whose codes are
//! extracted once for all; and each has, bit for bit, what it has alone.

use super::affine::{AffineTile, MAX_BIASES, MAX_FOLD, MAX_HEAD_DIM};
use super::codes::even_odd;
use super::pages::{PageView, Tile};
use super::prefetch::prefetch;
use super::softmax::{Softmax, rescale};
use super::turn::Turn;
use crate::backend::Rope;
use crate::backend::cpu::simd::{Kernel, Simd};
use crate::codec::{TILE_TOKENS, hadamard};
use std::cell::RefCell;
use std::ops::Range;

/// Columns that one pass handles at most. With six, low-bit formats were slower by 5 %
/// and f16 faster by as much.
pub(super) const MAX_COLUMNS: usize = 4;

/// Partial attention of up to [`MAX_COLUMNS`] columns.
pub(super) struct Decode<'a> {
    /// The pages, all of one head's stream, in the form that each column reads them.
    pub pages: &'a [PageView<'a>],
    /// The page that this thread will probably read after them.
    pub following: Option<&'a PageView<'a>>,
    /// Queries `[columns][head_dim]`, scaled for base-2 logits.
    pub q: &'a [f32],
    /// Channels of a head.
    pub head_dim: usize,
    /// Kept indices that each column sees.
    pub visible: &'a [Range<usize>],
    /// Whether codes are multiplied where they are, as subnormal numbers.
    pub in_place: bool,
    /// For runs with a shift.
    pub rope: Option<&'a Rope>,
    /// Output rows `[columns][head_dim]`, normalised.
    pub out: &'a mut [f32],
    /// Base-2 log-sum-exp of each column.
    pub lse: &'a mut [f32],
}

/// The state of one pass; kept between calls because it is large. Aligned so that no
/// vector lies in two cache lines.
#[repr(align(64))]
struct State {
    q: [[f32; MAX_HEAD_DIM]; MAX_COLUMNS],
    q_even_odd: [[f32; MAX_HEAD_DIM]; MAX_COLUMNS],
    rows: [[f32; MAX_HEAD_DIM]; MAX_COLUMNS],
    fragments: [[f32; 4 * MAX_HEAD_DIM]; MAX_COLUMNS],
    biases: [[f32; MAX_BIASES]; MAX_COLUMNS],
    scores: [[f32; TILE_TOKENS]; MAX_COLUMNS],
    key_fold: [[f32; MAX_FOLD]; MAX_COLUMNS],
    key_biases: [[f32; MAX_BIASES]; MAX_COLUMNS],
    value_fold: [[f32; MAX_FOLD]; MAX_COLUMNS],
}

thread_local! {
    static STATE: RefCell<Box<State>> = RefCell::new(Box::new(State {
        q: [[0.0; MAX_HEAD_DIM]; MAX_COLUMNS],
        q_even_odd: [[0.0; MAX_HEAD_DIM]; MAX_COLUMNS],
        rows: [[0.0; MAX_HEAD_DIM]; MAX_COLUMNS],
        fragments: [[0.0; 4 * MAX_HEAD_DIM]; MAX_COLUMNS],
        biases: [[0.0; MAX_BIASES]; MAX_COLUMNS],
        scores: [[0.0; TILE_TOKENS]; MAX_COLUMNS],
        key_fold: [[0.0; MAX_FOLD]; MAX_COLUMNS],
        key_biases: [[0.0; MAX_BIASES]; MAX_COLUMNS],
        value_fold: [[0.0; MAX_FOLD]; MAX_COLUMNS],
    }));
}

impl Kernel for Decode<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let key = STATE.with(std::ptr::from_ref);
        // SAFETY: the thread-local lives as long as its thread, which is running
        // this; the pointer only keeps the kernel out of a closure, which would
        // not be compiled with the kernel's target features.
        let mut state = unsafe { &*key }.borrow_mut();
        match (self.q.len() / self.head_dim, self.in_place) {
            (1, false) => self.run_columns::<S, 1, false>(s, &mut state),
            (2, false) => self.run_columns::<S, 2, false>(s, &mut state),
            (3, false) => self.run_columns::<S, 3, false>(s, &mut state),
            (_, false) => self.run_columns::<S, MAX_COLUMNS, false>(s, &mut state),
            (1, true) => self.run_columns::<S, 1, true>(s, &mut state),
            (2, true) => self.run_columns::<S, 2, true>(s, &mut state),
            (3, true) => self.run_columns::<S, 3, true>(s, &mut state),
            (_, true) => self.run_columns::<S, MAX_COLUMNS, true>(s, &mut state),
        }
    }
}

/// The order in which a tile's scores stand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Natural,
    EvenOdd,
}

impl Order {
    #[inline(always)]
    fn at(self, token: usize) -> usize {
        if self == Order::Natural { token } else { even_odd(token) }
    }
}

impl Decode<'_> {
    #[inline(always)]
    fn run_columns<S: Simd, const G: usize, const IN_PLACE: bool>(self, s: S, state: &mut State) {
        let d = self.head_dim;
        assert!(self.q.len() == G * d && self.out.len() == G * d && self.lse.len() == G);
        assert!(self.visible.len() == G);
        let seen_by_all = self.seen_by_all();
        let State {
            q,
            q_even_odd,
            rows,
            fragments,
            biases,
            scores,
            key_fold,
            key_biases,
            value_fold,
        } = state;
        let (
            Some(q),
            Some(q_even_odd),
            Some(rows),
            Some(fragments),
            Some(biases),
            Some(scores),
            Some(key_fold),
            Some(key_biases),
            Some(value_fold),
        ) = (
            q.first_chunk_mut::<G>(),
            q_even_odd.first_chunk_mut::<G>(),
            rows.first_chunk_mut::<G>(),
            fragments.first_chunk_mut::<G>(),
            biases.first_chunk_mut::<G>(),
            scores.first_chunk_mut::<G>(),
            key_fold.first_chunk_mut::<G>(),
            key_biases.first_chunk_mut::<G>(),
            value_fold.first_chunk_mut::<G>(),
        )
        else {
            return;
        };
        for g in 0..G {
            rows[g][..d].fill(0.0);
            fragments[g][..4 * d].fill(0.0);
            biases[g][..d / 32 * S::LANES].fill(0.0);
        }
        let mut softmax = Softmax::<S, G>::new(s);
        // What the fragments were summed from.
        let mut codec = None;

        if let Some(page) = self.pages.first() {
            self.place_queries(Turn::of(page), q, q_even_odd);
            fold_keys::<S, G, IN_PLACE>(s, page, d, q_even_odd, key_fold, key_biases);
        }
        for (i, page) in self.pages.iter().enumerate() {
            let next = self.pages.get(i + 1);
            let asked = next.or(self.following);
            let ahead = asked.map_or(&[][..], |page| page.key);
            let mut order = match page.key_tile(d) {
                Tile::Affine(tile) => {
                    tile.rows_product::<S, G, IN_PLACE>(s, key_fold, key_biases, scores, ahead);
                    Order::EvenOdd
                }
                Tile::Rows(tile) => {
                    prefetch(ahead);
                    tile.scores(s, refs(q), scores);
                    Order::Natural
                }
            };
            let filled = self.mask(page, &seen_by_all, order, scores);

            if let Some(factors) = softmax.step(s, scores, filled) {
                for g in (0..G).filter(|g| factors[*g] != 1.0) {
                    rescale(s, &mut rows[g][..d], factors[g]);
                    rescale(s, &mut fragments[g][..4 * d], factors[g]);
                    rescale(s, &mut biases[g][..d / 32 * S::LANES], factors[g]);
                }
            }

            // The next page's share of work that needs no weights fills the wait for
            // them.
            if let Some(next) = next {
                if Turn::of(next) != Turn::of(page) {
                    self.place_queries(Turn::of(next), q, q_even_odd);
                }
                fold_keys::<S, G, IN_PLACE>(s, next, d, q_even_odd, key_fold, key_biases);
            }

            let wanted =
                if page.value_codec.affine().is_some() { Order::EvenOdd } else { Order::Natural };
            if order != wanted {
                reorder(scores, order, wanted);
                order = wanted;
            }
            debug_assert!(order == wanted);
            let ahead = asked.map_or(&[][..], |page| page.value);
            match page.value_tile(d) {
                Tile::Affine(tile) => {
                    codec = page.value_codec.affine();
                    tile.fold::<S, G, TILE_TOKENS, IN_PLACE>(s, refs(scores), value_fold, biases);
                    tile.accumulate_product::<S, G, IN_PLACE>(s, value_fold, fragments, ahead);
                }
                Tile::Rows(tile) => {
                    prefetch(ahead);
                    tile.accumulate(s, scores, rows);
                }
            }
        }

        for g in 0..G {
            if let Some(codec) = codec {
                let mut sealed = [0f32; MAX_HEAD_DIM];
                let (fragments, biases, sealed) = (&fragments[g], &biases[g], &mut sealed[..d]);
                AffineTile::reduce_accumulators::<S, IN_PLACE>(s, codec, fragments, biases, sealed);
                if codec.rotated {
                    hadamard::rotate(sealed);
                }
                rows[g].iter_mut().zip(sealed).for_each(|(row, x)| *row += *x);
            }
            let (base, sum) = (softmax.base[g], s.horizontal_sum(softmax.sum[g]));
            let norm = if sum > 0.0 { 1.0 / sum } else { 0.0 };
            for (o, x) in self.out[g * d..][..d].iter_mut().zip(&rows[g][..d]) {
                *o = x * norm;
            }
            self.lse[g] = if sum > 0.0 { base + sum.log2() } else { f32::NEG_INFINITY };
        }
    }

    /// Sets the queries, turned.
    #[inline(always)]
    fn place_queries<const G: usize>(
        &self,
        turn: Turn,
        q: &mut [[f32; MAX_HEAD_DIM]; G],
        q_even_odd: &mut [[f32; MAX_HEAD_DIM]; G],
    ) {
        let d = self.head_dim;
        for g in 0..G {
            q[g][..d].copy_from_slice(&self.q[g * d..][..d]);
            turn.apply(&mut q[g][..d], self.rope);
            for (to, from) in q_even_odd[g].chunks_exact_mut(32).zip(q[g][..d].chunks_exact(32)) {
                for i in 0..16 {
                    (to[i], to[16 + i]) = (from[2 * i], from[2 * i + 1]);
                }
            }
        }
    }

    /// The kept indices that every column sees.
    fn seen_by_all(&self) -> Range<usize> {
        let start = self.visible.iter().map(|seen| seen.start).max().unwrap_or(0);
        start..self.visible.iter().map(|seen| seen.end).min().unwrap_or(0)
    }

    /// Gives tokens that a column does not see a score of −∞; the number of scores in use.
    /// That may be more than a column alone would have, but a score of −∞ changes no bit:
    /// it is never the largest, and its weight is 0.
    #[inline(always)]
    fn mask<const G: usize>(
        &self,
        page: &PageView<'_>,
        seen_by_all: &Range<usize>,
        order: Order,
        scores: &mut [[f32; TILE_TOKENS]; G],
    ) -> usize {
        let whole = page.first >= seen_by_all.start
            && page.first + page.tokens <= seen_by_all.end
            && page.live == u64::MAX;
        // Even-odd tiles are always whole; rows end with the page.
        let filled = if order == Order::EvenOdd { TILE_TOKENS } else { page.tokens };
        if !whole {
            for (scores, seen) in scores.iter_mut().zip(self.visible) {
                for token in 0..page.tokens {
                    if !seen.contains(&(page.first + token)) || page.live >> token & 1 == 0 {
                        scores[order.at(token)] = f32::NEG_INFINITY;
                    }
                }
            }
        }
        filled
    }
}

/// Folds the queries into the parameters of a page's keys, if they have any.
#[inline(always)]
fn fold_keys<S: Simd, const G: usize, const IN_PLACE: bool>(
    s: S,
    page: &PageView<'_>,
    head_dim: usize,
    q_even_odd: &[[f32; MAX_HEAD_DIM]; G],
    fold: &mut [[f32; MAX_FOLD]; G],
    biases: &mut [[f32; MAX_BIASES]; G],
) {
    if let Tile::Affine(tile) = page.key_tile(head_dim) {
        for b in biases.iter_mut() {
            for row_group in b[..2 * S::LANES].chunks_exact_mut(S::LANES) {
                // SAFETY: a chunk is one vector.
                unsafe { s.store(row_group.as_mut_ptr(), s.splat(0.0)) }
            }
        }
        tile.fold::<S, G, MAX_HEAD_DIM, IN_PLACE>(s, refs(q_even_odd), fold, biases);
    }
}

#[inline(always)]
fn refs<const N: usize, const G: usize>(rows: &[[f32; N]; G]) -> [&[f32; N]; G] {
    std::array::from_fn(|g| &rows[g])
}

fn reorder<const G: usize>(scores: &mut [[f32; TILE_TOKENS]; G], from: Order, to: Order) {
    for row in scores {
        let old = *row;
        for token in 0..TILE_TOKENS {
            row[to.at(token)] = old[from.at(token)];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::simd::{Level, dispatch};
    use crate::codec::{Codec, Side};

    fn random(seed: u32, n: usize, size: f32) -> Vec<f32> {
        let mut s = seed;
        let mut uniform = || {
            s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (s >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..n).map(|_| (uniform() + uniform() + uniform()) * size).collect()
    }

    /// Softmax over decoded tiles in float64.
    fn oracle(k: &[Vec<f32>], v: &[Vec<f32>], q: &[f32]) -> (Vec<f64>, f64) {
        let d = q.len();
        let rows = |tiles: &[Vec<f32>]| -> Vec<Vec<f64>> {
            let widen = |row: &[f32]| row.iter().map(|&x| f64::from(x)).collect();
            tiles.iter().flat_map(|t| t.chunks_exact(d)).map(widen).collect()
        };
        let dot =
            |row: &Vec<f64>| -> f64 { row.iter().zip(q).map(|(a, b)| a * f64::from(*b)).sum() };
        let scores: Vec<f64> = rows(k).iter().map(dot).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - max).exp2()).sum();
        let mut out = vec![0f64; d];
        for (row, s) in rows(v).iter().zip(&scores) {
            out.iter_mut().zip(row).for_each(|(o, x)| *o += (s - max).exp2() / sum * x);
        }
        (out, max + sum.log2())
    }

    /// Codes in place give what shifted codes give, which is what the oracle gives;
    /// scales of every size that f16 has.
    #[test]
    fn both_ways_of_extracting_codes_agree_with_the_oracle() {
        let cases = [
            (Codec::Kivi2, Codec::Kivi2, 64, 3, 1.0, 1.0),
            (Codec::Kivi4, Codec::Kivi2, 32, 1, 1e4, 1e-6),
            (Codec::Kivi2, Codec::Kivi4, 96, 2, 1e-5, 3e4),
            (Codec::Kivi4, Codec::Kivi4, 256, 4, 1e-2, 1.0),
            (Codec::Kf2, Codec::Kf2, 64, 3, 1.0, 1.0),
            (Codec::Kf3, Codec::Kf2, 128, 2, 1e3, 1e-5),
            (Codec::Kf3, Codec::Kf3, 256, 1, 1e-4, 1e3),
            (Codec::Kf4, Codec::Kf3, 64, 4, 1.0, 1.0),
        ];
        for (key_codec, value_codec, d, heads, key_size, value_size) in cases {
            let tiles = |codec: Codec, side, size, seed| -> (Vec<_>, Vec<_>) {
                let tile = codec.tile();
                (0..3u32)
                    .map(|i| {
                        let mut bytes = vec![0u8; tile.tile_bytes(d)];
                        let mut rows = vec![0f32; TILE_TOKENS * d];
                        tile.encode(side, &random(seed + i, rows.len(), size), d, &mut bytes);
                        tile.decode(side, &bytes, d, &mut rows);
                        (bytes, rows)
                    })
                    .unzip()
            };
            let (key_bytes, keys) = tiles(key_codec, Side::Key, key_size, 1);
            let (value_bytes, values) = tiles(value_codec, Side::Value, value_size, 50);
            let q = random(99, heads * d, 6.0 / key_size / (d as f32).sqrt());
            let pages: Vec<PageView<'_>> = (0..3)
                .map(|i| PageView {
                    key: &key_bytes[i],
                    value: &value_bytes[i],
                    key_codec,
                    value_codec,
                    first: TILE_TOKENS * i,
                    tokens: TILE_TOKENS,
                    live: u64::MAX,
                    shift: 0,
                })
                .collect();
            for level in Level::ALL.into_iter().filter(|l| l.available()) {
                let run = |in_place| {
                    let (mut out, mut lse) = (vec![0f32; heads * d], vec![0f32; heads]);
                    let decode = Decode {
                        pages: &pages,
                        following: None,
                        q: &q,
                        head_dim: d,
                        visible: &vec![0..3 * TILE_TOKENS; heads],
                        in_place,
                        rope: None,
                        out: &mut out,
                        lse: &mut lse,
                    };
                    dispatch(level, decode);
                    (out, lse)
                };
                let (out, lse) = run(false);
                let what = format!("{key_codec}/{value_codec} {d} {}", level.name());
                assert!((&out, &lse) == (&run(true).0, &run(true).1), "{what}");
                for h in 0..heads {
                    let (want, want_lse) = oracle(&keys, &values, &q[h * d..][..d]);
                    let norm: f64 = want.iter().map(|x| x * x).sum();
                    let error = |(a, b): (&f32, &f64)| (f64::from(*a) - b).powi(2);
                    let error: f64 = out[h * d..][..d].iter().zip(&want).map(error).sum();
                    assert!((error / norm).sqrt() < 1e-5, "{what}: {}", (error / norm).sqrt());
                    assert!((f64::from(lse[h]) - want_lse).abs() < 1e-4, "{what}: {}", lse[h]);
                }
            }
        }
    }
}
