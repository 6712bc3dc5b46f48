//! One query of each head of a group over some pages: low-bit pages are read in
//! place, codes never become a tile.

use super::affine::{AffineTile, MAX_HEAD_DIM, even_odd};
use super::pages::{Page, Tile, affine};
use crate::backend::Rope;
use crate::backend::cpu::ops::rotate;
use crate::backend::cpu::simd::{Kernel, Simd};
use crate::codec::TILE_TOKENS;
use std::cell::RefCell;

/// Heads of a group that one pass handles.
pub(super) const MAX_HEADS: usize = 4;

/// Partial attention of up to [`MAX_HEADS`] heads.
pub(super) struct Decode<'a> {
    /// The pages, all of one head's stream.
    pub pages: &'a [Page<'a>],
    /// Queries `[heads][head_dim]`, scaled for base-2 logits.
    pub q: &'a [f32],
    /// Channels of a head.
    pub head_dim: usize,
    /// Kept indices that the query sees.
    pub visible: std::ops::Range<usize>,
    /// For runs with a shift.
    pub rope: Option<&'a Rope>,
    /// Output rows `[heads][head_dim]`, normalised.
    pub out: &'a mut [f32],
    /// Base-2 log-sum-exp of each head.
    pub lse: &'a mut [f32],
}

/// The state of one pass; kept between calls because it is large.
struct State {
    q: [[f32; MAX_HEAD_DIM]; MAX_HEADS],
    q_even_odd: [[f32; MAX_HEAD_DIM]; MAX_HEADS],
    rows: [[f32; MAX_HEAD_DIM]; MAX_HEADS],
    fragments: [[f32; 4 * MAX_HEAD_DIM]; MAX_HEADS],
    biases: [[f32; MAX_HEAD_DIM / 32]; MAX_HEADS],
    scores: [[f32; TILE_TOKENS]; MAX_HEADS],
    fold: [[f32; MAX_HEAD_DIM]; MAX_HEADS],
}

thread_local! {
    static STATE: RefCell<Box<State>> = RefCell::new(Box::new(State {
        q: [[0.0; MAX_HEAD_DIM]; MAX_HEADS],
        q_even_odd: [[0.0; MAX_HEAD_DIM]; MAX_HEADS],
        rows: [[0.0; MAX_HEAD_DIM]; MAX_HEADS],
        fragments: [[0.0; 4 * MAX_HEAD_DIM]; MAX_HEADS],
        biases: [[0.0; MAX_HEAD_DIM / 32]; MAX_HEADS],
        scores: [[0.0; TILE_TOKENS]; MAX_HEADS],
        fold: [[0.0; MAX_HEAD_DIM]; MAX_HEADS],
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
        match self.q.len() / self.head_dim {
            1 => self.run_heads::<S, 1>(s, &mut state),
            2 => self.run_heads::<S, 2>(s, &mut state),
            3 => self.run_heads::<S, 3>(s, &mut state),
            _ => self.run_heads::<S, MAX_HEADS>(s, &mut state),
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
    fn run_heads<S: Simd, const G: usize>(self, s: S, state: &mut State) {
        let d = self.head_dim;
        assert!(self.q.len() == G * d && self.out.len() == G * d && self.lse.len() == G);
        let State { q, q_even_odd, rows, fragments, biases, scores, fold } = state;
        let (
            Some(q),
            Some(q_even_odd),
            Some(rows),
            Some(fragments),
            Some(biases),
            Some(scores),
            Some(fold),
        ) = (
            q.first_chunk_mut::<G>(),
            q_even_odd.first_chunk_mut::<G>(),
            rows.first_chunk_mut::<G>(),
            fragments.first_chunk_mut::<G>(),
            biases.first_chunk_mut::<G>(),
            scores.first_chunk_mut::<G>(),
            fold.first_chunk_mut::<G>(),
        )
        else {
            return;
        };
        for g in 0..G {
            rows[g][..d].fill(0.0);
            fragments[g][..4 * d].fill(0.0);
            biases[g].fill(0.0);
        }
        let mut max = [f32::NEG_INFINITY; G];
        let mut sum = [0f32; G];
        let mut shift = None;
        let mut group = 32;

        for (i, page) in self.pages.iter().enumerate() {
            let next = self.pages.get(i + 1);
            prefetch(next.map_or(&[], |page| page.key));
            if shift != Some(page.shift) {
                self.place_queries(page.shift, q, q_even_odd);
                shift = Some(page.shift);
            }
            let mut order = match page.key_tile(d) {
                Tile::Affine(tile) => {
                    tile.rows_product(s, refs(q_even_odd), fold, scores);
                    Order::EvenOdd
                }
                Tile::Rows(tile) => {
                    tile.scores(s, refs(q), scores);
                    Order::Natural
                }
            };
            prefetch(next.map_or(&[], |page| page.value));
            let filled = self.mask(page, order, scores);

            for g in 0..G {
                let scale = softmax_step(s, &mut scores[g][..filled], &mut max[g], &mut sum[g]);
                if scale != 1.0 {
                    rescale(s, &mut rows[g][..d], scale);
                    rescale(s, &mut fragments[g][..4 * d], scale);
                    biases[g].iter_mut().for_each(|b| *b *= scale);
                }
            }

            let wanted =
                if affine(page.value_codec).is_some() { Order::EvenOdd } else { Order::Natural };
            if order != wanted {
                reorder(scores, order, wanted);
                order = wanted;
            }
            debug_assert!(order == wanted);
            match page.value_tile(d) {
                Tile::Affine(tile) => {
                    group = affine(page.value_codec).map_or(32, |a| a.group);
                    tile.accumulate_product(s, refs(scores), fold, fragments, biases);
                }
                Tile::Rows(tile) => tile.accumulate(s, scores, rows),
            }
        }

        for g in 0..G {
            AffineTile::reduce_accumulators(s, group, &fragments[g], &biases[g], &mut rows[g][..d]);
            let norm = if sum[g] > 0.0 { 1.0 / sum[g] } else { 0.0 };
            for (o, x) in self.out[g * d..][..d].iter_mut().zip(&rows[g][..d]) {
                *o = x * norm;
            }
            self.lse[g] = if sum[g] > 0.0 { max[g] + sum[g].log2() } else { f32::NEG_INFINITY };
        }
    }

    /// Sets the queries as a run relocated by `shift` sees them.
    fn place_queries<const G: usize>(
        &self,
        shift: i32,
        q: &mut [[f32; MAX_HEAD_DIM]; G],
        q_even_odd: &mut [[f32; MAX_HEAD_DIM]; G],
    ) {
        let d = self.head_dim;
        for g in 0..G {
            q[g][..d].copy_from_slice(&self.q[g * d..][..d]);
            if let (Some(rope), true) = (self.rope, shift != 0) {
                rotate(&mut q[g][..d], rope, -f64::from(shift));
            }
            for c in 0..d {
                q_even_odd[g][even_odd(c)] = q[g][c];
            }
        }
    }

    /// Gives invisible tokens a score of −∞; the number of scores in use.
    #[inline(always)]
    fn mask<const G: usize>(
        &self,
        page: &Page<'_>,
        order: Order,
        scores: &mut [[f32; TILE_TOKENS]; G],
    ) -> usize {
        let whole = page.first >= self.visible.start
            && page.first + page.tokens <= self.visible.end
            && page.live == u64::MAX;
        // Even-odd tiles are always whole; rows end with the page.
        let filled = if order == Order::EvenOdd { TILE_TOKENS } else { page.tokens };
        if !whole {
            for token in 0..page.tokens {
                let seen = self.visible.contains(&(page.first + token));
                if !seen || page.live >> token & 1 == 0 {
                    scores.iter_mut().for_each(|s| s[order.at(token)] = f32::NEG_INFINITY);
                }
            }
        }
        filled
    }
}

/// Asks for bytes that are read soon. A stream's pages lie far apart, so the
/// hardware does not guess them.
#[inline(always)]
fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        // SAFETY: a prefetch of valid memory; SSE is part of the architecture.
        unsafe {
            use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

#[inline(always)]
fn refs<const N: usize, const G: usize>(rows: &[[f32; N]; G]) -> [&[f32; N]; G] {
    std::array::from_fn(|g| &rows[g])
}

/// Turns scores into weights relative to the running maximum; the factor by
/// which everything summed so far must shrink.
#[inline(always)]
fn softmax_step<S: Simd>(s: S, scores: &mut [f32], max: &mut f32, sum: &mut f32) -> f32 {
    let whole = scores.len() / S::LANES * S::LANES;
    let (head, tail) = scores.split_at_mut(whole);
    let mut top = s.splat(f32::NEG_INFINITY);
    for x in head.chunks_exact(S::LANES) {
        // SAFETY: a chunk is one vector.
        top = s.max(top, unsafe { s.load(x.as_ptr()) });
    }
    let top = tail.iter().fold(s.horizontal_max(top), |a, &b| a.max(b));
    let new_max = max.max(top);
    // Nothing seen yet: any finite base gives weights of 0.
    let base = if new_max == f32::NEG_INFINITY { 0.0 } else { new_max };
    let (shift, mut total) = (s.splat(base), s.splat(0.0));
    for x in head.chunks_exact_mut(S::LANES) {
        // SAFETY: a chunk is one vector.
        unsafe {
            let p = s.exp2(s.sub(s.load(x.as_ptr()), shift));
            s.store(x.as_mut_ptr(), p);
            total = s.add(total, p);
        }
    }
    let mut added = s.horizontal_sum(total);
    for x in tail {
        *x = (*x - base).exp2();
        added += *x;
    }
    let scale = if *max == new_max { 1.0 } else { (*max - base).exp2() };
    *sum = *sum * scale + added;
    *max = new_max;
    scale
}

#[inline(always)]
fn rescale<S: Simd>(s: S, xs: &mut [f32], scale: f32) {
    let factor = s.splat(scale);
    for x in xs.chunks_exact_mut(S::LANES) {
        // SAFETY: a chunk is one vector; lengths are multiples of 32.
        unsafe { s.store(x.as_mut_ptr(), s.mul(s.load(x.as_ptr()), factor)) }
    }
}

fn reorder<const G: usize>(scores: &mut [[f32; TILE_TOKENS]; G], from: Order, to: Order) {
    for row in scores {
        let old = *row;
        for token in 0..TILE_TOKENS {
            row[to.at(token)] = old[from.at(token)];
        }
    }
}
