//! Attention as the kernels of a device do it: float64, rounded to 16 bits wherever a kernel
//! rounds. What it gives is far nearer to a kernel's outputs than exact attention is, so a
//! drift shows that would be lost among the roundings.
//!
//! Nothing here depends on the order in which a kernel meets its pages: weights are relative
//! to an integer (`base_of` in `kernels/attention/softmax.cuh`), so one that is rounded has
//! the same bits relative to any other.

use super::oracle::{Query, Stream, rotate};
use super::sealed_half::Element;
use half::{bf16, f16};
use kvfold::cache::RowKind;
use kvfold::codec::{Codec, Side};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// Relative rms by which outputs of a device may differ.
pub fn tolerance(element: Codec) -> f64 {
    if element == Codec::Bf16 { 1.5e-3 } else { 2e-4 }
}

/// The output row of a query, of which a kernel for rows of this kind is asked. `element` is
/// the type of activations and of pages that are not sealed.
pub fn attend(stream: &Stream, query: &Query<'_>, element: Codec, rows: RowKind) -> Vec<f64> {
    let decode = rows == RowKind::Generated;
    let kernel = Kernel { stream, query, element, decode, turned: RefCell::default() };
    let scores: Vec<(usize, f64)> = stream.seen(query).map(|t| (t, kernel.score(t))).collect();
    if scores.is_empty() {
        return vec![0.0; query.group.head_dim()];
    }
    let base = scores.iter().map(|score| score.1).fold(f64::NEG_INFINITY, f64::max).floor();
    let d = query.group.head_dim();
    let (mut sum, mut plain, mut rotated) = (0f64, vec![0f64; d], vec![0f64; d]);
    for (t, score) in scores {
        let weight = (score - base).exp2();
        sum += weight; // before it is rounded: softmax_step, softmax_rows
        kernel.add_value(t, weight, &mut plain, &mut rotated);
    }
    hadamard(&mut rotated); // finish_rotated, rotate_outputs
    let normed = plain.iter().zip(&rotated).map(|(a, b)| (a + b) / sum);
    normed.map(|x| to(element, x)).collect() // write, write_rows
}

/// What a query is turned for: a shift, and whether the page is sealed.
type Page = (i32, bool);

struct Kernel<'a> {
    stream: &'a Stream,
    query: &'a Query<'a>,
    element: Codec,
    decode: bool,
    /// The query as pages with a shift want it, sealed ones or others.
    turned: RefCell<HashMap<Page, Rc<[f64]>>>,
}

impl Kernel<'_> {
    /// The query as the page of a token wants it: turned and rotated, rounded after each to
    /// the type of the page's products.
    fn query_for(&self, t: usize, sealed: Option<Codec>) -> Rc<[f64]> {
        let query = self.query;
        let shift = self.stream.shift_of(t, query);
        let turn = || {
            let to_type = if sealed.is_some() { Codec::F16 } else { self.element };
            let mut q: Vec<f64> = query.q.iter().map(|&x| f64::from(x)).collect();
            if shift != 0 {
                rotate(&mut q, query.rope, -f64::from(shift));
            }
            q.iter_mut().for_each(|x| *x = to(to_type, *x)); // load_queries, load_rows
            if sealed.is_some_and(Codec::rotated) {
                hadamard(&mut q);
                q.iter_mut().for_each(|x| *x = to(Codec::F16, *x)); // rotate_words, rotate_chunks
            }
            q.into()
        };
        self.turned.borrow_mut().entry((shift, sealed.is_some())).or_insert_with(turn).clone()
    }

    /// The base-2 logit of a token.
    fn score(&self, t: usize) -> f64 {
        let Self { stream, query, .. } = *self;
        let scale = f64::from(query.scale) * std::f64::consts::LOG2_E;
        let Some(first) = stream.sealed_page(t, query) else {
            let key = stream.rows(Side::Key)[t].iter().map(|&k| f64::from(k));
            return dot(&self.query_for(t, None), key) * scale;
        };
        let (half, row) = (stream.sealed_half(Side::Key, first, query), t - first);
        let q = self.query_for(t, Some(half.codec));
        let Some(elements) = half.elements(row) else {
            let d = q.len();
            return dot(&q, half.rows[row * d..][..d].iter().map(|&k| f64::from(k))) * scale;
        };
        let product = |(q, x): (&f64, &Element)| match self.decode {
            // `fold` of KiviKeys and RotatedLayout; zeros are multiplied by themselves.
            true => x.code * to(Codec::F16, q * x.scale) + x.zero * q,
            false => q * unpacked(x),
        };
        q.iter().zip(elements).map(product).sum::<f64>() * scale
    }

    /// Adds a weighted value to the sum of those that are not stored rotated, or of those
    /// that are.
    fn add_value(&self, t: usize, weight: f64, plain: &mut [f64], rotated: &mut [f64]) {
        let Self { stream, query, element, .. } = *self;
        let Some(first) = stream.sealed_page(t, query) else {
            let p = weight_to(element, weight); // weights_operand<T>; prefill's accumulate<T>
            let row = &stream.rows(Side::Value)[t];
            return plain.iter_mut().zip(row).for_each(|(o, v)| *o += p * f64::from(*v));
        };
        let p = weight_to(Codec::F16, weight); // weights_operand<F16>; accumulate<F16>
        let half = stream.sealed_half(Side::Value, first, query);
        let to_sum = if half.codec.rotated() { rotated } else { plain };
        let Some(elements) = half.elements(t - first) else {
            let row = half.rows[(t - first) * to_sum.len()..].iter();
            return to_sum.iter_mut().zip(row).for_each(|(o, v)| *o += p * f64::from(*v));
        };
        for (o, x) in to_sum.iter_mut().zip(elements) {
            *o += match self.decode {
                // `fold` of KiviValues and RotatedLayout.
                true => x.code * weight_to(Codec::F16, p * x.scale) + x.zero * p,
                false => p * unpacked(x),
            };
        }
    }
}

fn dot(q: &[f64], keys: impl Iterator<Item = f64>) -> f64 {
    q.iter().zip(keys).map(|(q, k)| q * k).sum()
}

/// An element of a page that becomes a tile of f16: unpack_part of page_affine.cuh.
fn unpacked(x: &Element) -> f64 {
    to(Codec::F16, x.code * x.scale + x.zero)
}

/// The nearest number of a 16-bit type.
fn to(codec: Codec, x: f64) -> f64 {
    if codec == Codec::Bf16 { bf16::from_f64(x).to_f64() } else { f16::from_f64(x).to_f64() }
}

/// A weight, or its product with a scale, to the bits of a 16-bit type. Kernels have them
/// times some power of two, with which they lie in the type's range.
fn weight_to(codec: Codec, x: f64) -> f64 {
    let dropped = if codec == Codec::Bf16 { 53 - 8 } else { 53 - 11 };
    let (bits, even) = (x.to_bits(), x.to_bits() >> dropped & 1);
    f64::from_bits((bits + (1 << (dropped - 1)) - 1 + even) >> dropped << dropped)
}

/// The transform of pages that are stored rotated, in float64.
fn hadamard(row: &mut [f64]) {
    let mut distance = 1;
    while distance < row.len() {
        for i in (0..row.len()).filter(|i| i & distance == 0) {
            (row[i], row[i + distance]) = (row[i] + row[i + distance], row[i] - row[i + distance]);
        }
        distance *= 2;
    }
    let norm = 1.0 / (row.len() as f64).sqrt();
    row.iter_mut().for_each(|x| *x *= norm);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::plan::{group, rope, round};
    use crate::common::random::Random;

    const D: usize = 64;

    /// A stream of 1,000 tokens of an f16 device.
    fn stream() -> Stream {
        let mut random = Random::new(12);
        let mut rows = || -> Vec<Vec<f32>> {
            let mut row = || (0..D).map(|_| round(Codec::F16, random.float())).collect();
            (0..1000).map(|_| row()).collect()
        };
        let mut stream = Stream::default();
        (stream.keys, stream.values) = (rows(), rows());
        stream
    }

    /// Outputs of 16 queries, one behind the other, of a device that computes as `attend` says.
    fn outputs(format: &str, mut attend: impl FnMut(&Query<'_>) -> Vec<f64>) -> Vec<f64> {
        let (group, rope) = (group(format, D, 1), rope(D));
        let mut random = Random::new(13);
        let mut output = |_| {
            let q: Vec<f32> = (0..D).map(|_| round(Codec::F16, random.float())).collect();
            attend(&Query {
                group: &group,
                format: group.format,
                feedback: None,
                q: &q,
                index: 999,
                scale: 0.125,
                causal: true,
                window: None,
                shift: 0,
                rope: &rope,
            })
        };
        (0..16).flat_map(&mut output).collect()
    }

    fn relative_rms(got: &[f64], want: &[f64]) -> f64 {
        let error: f64 = got.iter().zip(want).map(|(a, b)| (a - b).powi(2)).sum();
        (error / want.iter().map(|x| x * x).sum::<f64>()).sqrt()
    }

    /// What this is for: drifts that the bound against exact attention, 1e-3, lets pass.
    #[test]
    fn drifts_show_beside_it_alone() {
        for rows in [RowKind::Generated, RowKind::Prompt] {
            for format in ["f16", "fp8", "kivi4", "kivi2", "kf4", "kf3", "kf2"] {
                let (right, off) = (stream(), stream());
                let kernel =
                    |stream: &Stream, query: &Query<'_>| attend(stream, query, Codec::F16, rows);
                let want = outputs(format, |query| kernel(&right, query));
                let exact = outputs(format, |query| right.attend(query).0);
                let alike = relative_rms(&want, &exact);
                assert!(alike < 1e-3, "{format} {rows:?}: {alike:e}");

                // A kernel that rounds nothing but its outputs; for 16-bit pages, no weights.
                let more = outputs(format, |query| {
                    right.attend(query).0.into_iter().map(|x| to(Codec::F16, x)).collect()
                });
                // One that reads the keys of a page with scales that are 1.001 times theirs.
                let mut first = true;
                let scaled = outputs(format, |query| {
                    if std::mem::take(&mut first) {
                        off.scale_page(Side::Key, 4 + 64, query, 1.001);
                    }
                    kernel(&off, query)
                });
                let affine = group(format, D, 1).format.key.affine().is_some();
                for (drift, got, there) in
                    [("no rounding", more, true), ("a page's scale", scaled, affine)]
                {
                    if !there {
                        continue;
                    }
                    let (old, new) = (relative_rms(&got, &exact), relative_rms(&got, &want));
                    assert!(old < 1e-3, "{format} {rows:?}, {drift}: {old:e}");
                    assert!(new > tolerance(Codec::F16), "{format} {rows:?}, {drift}: {new:e}");
                }
            }
        }
    }
}
