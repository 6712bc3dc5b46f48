//! Error feedback between the channels of a key: what rounding one channel does to its
//! products with queries is made good by the next channels.
//!
//! With queries q, an error e of a key costs `E⟨q, e⟩² = eᵀHe`, `H = E[qqᵀ]`. Let
//! `H = UUᵀ` with U upper triangular; then it is `Σⱼ uⱼⱼ² (eⱼ + Σ_{i<j} m_ji e_i)²`,
//! `m_ji = u_ij / u_jj`. So channels are encoded one after the other, and channel j not as
//! `x_j` but as what makes its term small:
//!
//! ```text
//! aim_j = limit(x_j − m_j0·e_0 − m_j1·e_1 − … + 0)      e_j = decoded_j − x_j
//! ```
//!
//! (Chee et al. 2023, "QuIP", §3, of weights; with the range of each channel searched on
//! its aims). f32, in this order, without contraction, so every backend gets the same
//! codes. The bytes of a page look the same, and are read the same.

use super::clip;
use super::tile::TILE_TOKENS;
use half::f16;

/// What is added to the diagonal of H, as a part of its mean.
const DAMPING: f64 = 0.01;

/// The greatest weight that is taken from a file.
const MOST: f32 = 256.0;

/// The weights `m` of one KV head, for keys that are rotated.
#[derive(Clone, Debug, PartialEq)]
pub struct Feedback {
    head_dim: usize,
    /// Row j has `j` weights, that of channel 0 first; f16 numbers.
    weights: Vec<f32>,
}

impl Feedback {
    /// From the second moment `[head_dim][head_dim]` of rotated queries; what lies below
    /// the diagonal does not count.
    ///
    /// # Panics
    /// If `moment` is not square.
    pub fn new(moment: &[f64], head_dim: usize) -> Self {
        let d = head_dim;
        assert_eq!(moment.len(), d * d, "a square matrix");
        let mean = (0..d).map(|i| moment[i * d + i]).sum::<f64>() / d as f64;
        let mut u = moment.to_vec();
        (0..d).for_each(|i| u[i * d + i] += DAMPING * mean);
        // Cholesky from the last column on.
        for j in (0..d).rev() {
            for i in (0..=j).rev() {
                let known: f64 = (j + 1..d).map(|k| u[i * d + k] * u[j * d + k]).sum();
                let rest = u[i * d + j] - known;
                u[i * d + j] = if i == j { rest.sqrt() } else { rest / u[j * d + j] };
            }
        }
        let weight = |i: usize, j: usize| {
            let weight = u[i * d + j] / u[j * d + j];
            // Nothing is known of queries that are 0.
            if weight.is_finite() { f16::from_f64(weight).to_f32() } else { 0.0 }
        };
        let weights = (0..d).flat_map(|j| (0..j).map(move |i| (i, j)));
        Self { head_dim, weights: weights.map(|(i, j)| weight(i, j)).collect() }
    }

    /// The weights, row by row, f16, little-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.weights.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()
    }

    /// What [`to_bytes`](Self::to_bytes) wrote; `None` if these are not all weights of
    /// some `head_dim`, or one is no number, or beyond ±256.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        // d·(d − 1) bytes.
        let head_dim = bytes.len().isqrt() + 1;
        if bytes.len() != head_dim * (head_dim - 1) {
            return None;
        }
        let numbers = bytes.as_chunks::<2>().0.iter();
        let weights: Vec<f32> = numbers.map(|b| f16::from_le_bytes(*b).to_f32()).collect();
        weights.iter().all(|x| x.abs() <= MOST).then_some(Self { head_dim, weights })
    }

    /// Channels of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// The weights of all channels, row by row.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// The weights of the channels before `channel`.
    pub fn row(&self, channel: usize) -> &[f32] {
        &self.weights[channel * channel.saturating_sub(1) / 2..][..channel]
    }

    /// Replaces the rotated rows of a tile, `[token][channel]`, by what is to be encoded
    /// with codes from 0 to `levels`, a channel a group.
    pub(super) fn aim(&self, levels: f32, rows: &mut [f32]) {
        let d = self.head_dim;
        assert_eq!(rows.len(), TILE_TOKENS * d, "a tile");
        let mut errors = vec![[0f32; TILE_TOKENS]; d];
        for channel in 0..d {
            let (before, error) = errors.split_at_mut(channel);
            let aims: [f32; TILE_TOKENS] = std::array::from_fn(|token| {
                let mut aim = rows[token * d + channel];
                for (weight, error) in self.row(channel).iter().zip(&*before) {
                    aim -= weight * error[token];
                }
                // −0 becomes +0: it must not show which of them was the least.
                clip::limit(aim + 0.0)
            });
            let (scale, zero) = clip::clip(aims.iter().copied(), levels);
            let (scale, zero) = (scale.to_f32(), zero.to_f32());
            for (token, aim) in aims.into_iter().enumerate() {
                let x = &mut rows[token * d + channel];
                error[0][token] = clip::code(aim, scale, zero, levels) * scale + zero - *x;
                *x = aim;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::codec::affine::{KF2, KF3};
    use crate::codec::{Side, TileCodec, hadamard};

    pub(crate) fn noise(seed: u32) -> impl FnMut() -> f32 {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        }
    }

    /// Queries that mostly lie in a few directions, rotated.
    fn queries(d: usize, count: usize) -> Vec<Vec<f32>> {
        let mut next = noise(3);
        let directions: Vec<Vec<f32>> = (0..4).map(|_| (0..d).map(|_| next()).collect()).collect();
        let mut query = || {
            let mut q: Vec<f32> = (0..d).map(|_| 0.3 * next()).collect();
            for direction in &directions {
                let size = next();
                q.iter_mut().zip(direction).for_each(|(q, x)| *q += size * x);
            }
            hadamard::rotate(&mut q);
            q
        };
        (0..count).map(|_| query()).collect()
    }

    /// The feedback of such queries.
    pub(crate) fn example(d: usize) -> Feedback {
        let queries = queries(d, 500);
        let moment = |i: usize| -> f64 {
            queries.iter().map(|q| f64::from(q[i / d]) * f64::from(q[i % d])).sum()
        };
        Feedback::new(&(0..d * d).map(moment).collect::<Vec<_>>(), d)
    }

    /// `Σⱼ uⱼⱼ² (eⱼ + Σ m_ji e_i)²` is `eᵀHe` for a diagonal that fits.
    #[test]
    fn weights_factor_the_moment() {
        let d = 8;
        let mut next = noise(1);
        let a: Vec<f64> = (0..d * d).map(|_| f64::from(next())).collect();
        let product = |i: usize| (0..d).map(|k| a[i / d * d + k] * a[i % d * d + k]).sum::<f64>();
        let h: Vec<f64> = (0..d * d).map(product).collect();
        let feedback = Feedback::new(&h, d);
        let mean = (0..d).map(|i| h[i * d + i]).sum::<f64>() / d as f64;
        let damped = |i: usize, j: usize| h[i * d + j] + if i == j { 0.01 * mean } else { 0.0 };
        // H = M'DM with the unit lower triangular M: D follows from the last row up.
        let m = |j: usize, i: usize| match i.cmp(&j) {
            std::cmp::Ordering::Less => f64::from(feedback.row(j)[i]),
            std::cmp::Ordering::Equal => 1.0,
            std::cmp::Ordering::Greater => 0.0,
        };
        let mut diagonal = vec![0.0; d];
        for j in (0..d).rev() {
            let behind = |k: usize| m(k, j) * m(k, j) * diagonal[k];
            diagonal[j] = damped(j, j) - (j + 1..d).map(behind).sum::<f64>();
        }
        for (i, j) in (0..d).flat_map(|i| (0..d).map(move |j| (i, j))) {
            let got: f64 = (0..d).map(|k| m(k, i) * diagonal[k] * m(k, j)).sum();
            assert!((got - damped(i, j)).abs() < 5e-3 * mean, "{i} {j} {got} {}", damped(i, j));
        }
    }

    /// What it is for: products with such queries err less at the same bytes.
    #[test]
    fn products_with_queries_err_less() {
        for (d, codec) in [(64, &KF2), (64, &KF3), (128, &KF2)] {
            let feedback = example(d);
            let mut next = noise(9);
            let keys: Vec<f32> = (0..TILE_TOKENS * d).map(|_| next()).collect();
            let error = |feedback: Option<&Feedback>| {
                let mut bytes = vec![0; codec.tile_bytes(d)];
                codec.encode_with(feedback, Side::Key, &keys, d, &mut bytes);
                let mut back = vec![0f32; keys.len()];
                codec.decode(Side::Key, &bytes, d, &mut back);
                let mut sum = 0.0;
                for mut q in queries(d, 50) {
                    hadamard::rotate(&mut q);
                    for (a, b) in keys.chunks_exact(d).zip(back.chunks_exact(d)) {
                        let off = a.iter().zip(b).zip(&q).map(|((a, b), q)| (b - a) * q);
                        sum += f64::from(off.sum::<f32>()).powi(2);
                    }
                }
                sum
            };
            let (plain, fed) = (error(None), error(Some(&feedback)));
            assert!(fed < 0.5 * plain, "{d}: {fed} {plain}");
        }
    }

    #[test]
    fn bytes_are_read_again_and_others_refused() {
        let feedback = example(64);
        let bytes = feedback.to_bytes();
        assert_eq!(bytes.len(), 64 * 63);
        assert_eq!(Feedback::from_bytes(&bytes), Some(feedback));
        assert_eq!(Feedback::from_bytes(&bytes[2..]), None);
        for wrong in [f16::NAN, f16::INFINITY, f16::from_f32(300.0)] {
            let mut bytes = bytes.clone();
            bytes[100..102].copy_from_slice(&wrong.to_le_bytes());
            assert_eq!(Feedback::from_bytes(&bytes), None, "{wrong}");
        }
    }

    /// Without queries there is nothing to feed back.
    #[test]
    fn no_queries_give_the_plain_codes() {
        let d = 64;
        let feedback = Feedback::new(&vec![0.0; d * d], d);
        let mut next = noise(5);
        let keys: Vec<f32> = (0..TILE_TOKENS * d).map(|_| next()).collect();
        let encoded = |feedback: Option<&Feedback>| {
            let mut bytes = vec![0; KF2.tile_bytes(d)];
            KF2.encode_with(feedback, Side::Key, &keys, d, &mut bytes);
            bytes
        };
        assert_eq!(encoded(Some(&feedback)), encoded(None));
    }
}
