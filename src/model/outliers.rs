//! Key biases that an uncalibrated kf format cannot hold.
//!
//! A key at position p is `R(p)(Wx + b)`: RoPE turns the bias b too. The part of b in channel
//! pair i becomes a wave of amplitude `|bᵢ| = √(b²ᵢ + b²ᵢ₊d⸝₂)` and ωᵢ radians a token. Some
//! models (Qwen2.5's smaller ones) have pairs of hundreds. KIVI groups each channel over 32
//! tokens, so a wave costs its own two channels alone. A kf codec turns keys by the Hadamard
//! matrix first: then *every* channel of the head carries the wave, the range of 64 tokens
//! grows with it, and all else is rounded in its steps.
//!
//! What counts is how far the waves swing within a page, against the length of what the key
//! says otherwise:
//!
//! ```text
//! ratio = √ Σᵢ (sᵢ |bᵢ|)²  /  ‖W diag(g)‖        sᵢ = sin(min(63 ωᵢ, π) / 2)
//! ```
//!
//! sᵢ is half of what a cosine changes by within 64 tokens, at the phase where it changes most.
//! g is the weight of the norm before attention: of a normalised x with uncorrelated entries
//! a key has the mean square `‖W diag(g)‖²` (Frobenius' norm, of the head's rows).
//!
//! The mean of this ratio over all KV heads tells what a format costs, whether a few heads have
//! large biases or all have moderate ones: docs/notes/kv-formats.md has the measurements.

use super::files::Checkpoint;
use super::kv::KvOptions;
use super::part::Part;
use super::spec::Mixer;
use crate::backend::dequantize::dequantize;
use crate::codec::{Codec, TILE_TOKENS};
use crate::error::Result;
use std::fmt;

/// Rows of a head's weights whose length is measured, evenly spaced: enough for an estimate,
/// and a load takes no longer for it.
const SAMPLED_ROWS: usize = 16;

/// How far the key biases of a model turn within a page, and where they do most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KeyOutlier {
    /// The layer of the worst head.
    pub layer: usize,
    /// The worst KV head.
    pub head: usize,
    /// Its pair of channels, `pair` and `pair + d/2`, that has most part in it.
    pub pair: usize,
    /// The worst head's ratio: how far its bias swings, against the length of its keys.
    pub ratio: f64,
    /// The mean of all heads' ratios.
    pub mean: f64,
}

impl KeyOutlier {
    /// Looks at the weights of a model; `None` if none of its key biases turns.
    ///
    /// # Errors
    /// What reading the tensors reports.
    pub fn find(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        let config = checkpoint.config();
        let mut worst: Option<Self> = None;
        let (mut sum, mut heads) = (0.0, 0usize);
        for (layer, spec) in config.specs().into_iter().enumerate() {
            let Mixer::Attention(spec) = spec.mixer;
            if !spec.own_kv {
                continue;
            }
            heads += spec.kv_heads;
            // Keys that are normalised per head have no large bias any more.
            if !spec.bias || spec.head_norm {
                continue;
            }
            let tensor = |part| {
                let name = config.arch.names.hf(part, Some(layer)).unwrap_or_default();
                checkpoint.tensor(&name)
            };
            let floats = |part| -> Result<Vec<f32>> {
                let tensor = tensor(part)?;
                dequantize(tensor.dtype, &tensor.bytes, tensor.shape.iter().product())
            };
            let (bias, norm) = (floats(Part::KeyBias)?, floats(Part::AttentionNorm)?);
            let swings: Vec<f64> = spec.rope.inv_freq().into_iter().map(swing).collect();
            let keys = tensor(Part::Key)?;
            let row_bytes = keys.bytes.len() / (spec.kv_heads * spec.head_dim);
            let step = spec.head_dim.div_ceil(SAMPLED_ROWS);
            for (head, bias) in bias.chunks_exact(spec.head_dim).enumerate() {
                let (pair, turning) = turning(bias, &swings);
                let mut squares = 0.0;
                for row in (0..spec.head_dim).step_by(step) {
                    let start = (head * spec.head_dim + row) * row_bytes;
                    let bytes = &keys.bytes[start..start + row_bytes];
                    squares += scaled_square(&dequantize(keys.dtype, bytes, norm.len())?, &norm);
                }
                let sampled = spec.head_dim.div_ceil(step) as f64;
                let length = (squares * spec.head_dim as f64 / sampled).sqrt();
                let ratio = turning / length;
                // Weights that are 0 or no numbers are not this file's to judge.
                if !ratio.is_finite() {
                    continue;
                }
                sum += ratio;
                if ratio > worst.map_or(0.0, |worst| worst.ratio) {
                    worst = Some(Self { layer, head, pair, ratio, mean: 0.0 });
                }
            }
        }
        Ok(worst.map(|worst| Self { mean: sum / heads.max(1) as f64, ..worst }))
    }

    /// What a user should know who stores the model's keys so; `None` for formats that hold
    /// them.
    pub fn warning(&self, options: &KvOptions) -> Option<String> {
        let format = options.format;
        let limit = limit(format.key).filter(|_| options.calibration.is_none())?;
        (self.mean > limit).then(|| {
            format!(
                "{self}; {format} rounds all of a key in steps of that size, kivi4/kivi2 does not"
            )
        })
    }
}

/// The mean ratio from which on a codec of keys costs clearly more than without biases.
fn limit(key: Codec) -> Option<f64> {
    match key {
        Codec::Kf2 => Some(0.5),
        Codec::Kf3 => Some(1.0),
        Codec::Kf4 => Some(2.0),
        _ => None,
    }
}

impl fmt::Display for KeyOutlier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layer, head, pair, ratio, mean } = self;
        write!(
            f,
            "key biases turn within a page and are {mean:.1} times as large as all else in the \
             keys ({ratio:.0} times in layer {layer}, KV head {head}, by its channel pair {pair})"
        )
    }
}

/// Half of what a wave of `frequency` radians a token changes by within a page, 0 to 1.
fn swing(frequency: f64) -> f64 {
    let span = (frequency * (TILE_TOKENS - 1) as f64).min(std::f64::consts::PI);
    (span / 2.0).sin()
}

/// The pair that swings furthest, and how far all of a head's do together.
fn turning(bias: &[f32], swings: &[f64]) -> (usize, f64) {
    let half = bias.len() / 2;
    let mut most = (0, 0.0);
    let mut squares = 0.0;
    for (pair, swing) in swings.iter().enumerate().take(half) {
        let (a, b) = (f64::from(bias[pair]), f64::from(bias[pair + half]));
        let square = (a * a + b * b) * swing * swing;
        squares += square;
        if square > most.1 {
            most = (pair, square);
        }
    }
    (most.0, squares.sqrt())
}

/// The squared length of a row of weights behind a norm.
fn scaled_square(row: &[f32], norm: &[f32]) -> f64 {
    row.iter().zip(norm).map(|(w, g)| f64::from(w * g).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_waves_swing_little_in_a_page() {
        assert_eq!(swing(1.0), 1.0);
        assert_eq!(swing(0.0), 0.0);
        // As the definition says, at the worst of all phases.
        for frequency in [0.05, 0.02, 0.003] {
            let range = |phase: f64| {
                let wave = (0..64).map(|p| (frequency * f64::from(p) + phase).cos());
                let (low, high) = wave.fold((2.0f64, -2.0f64), |(l, h), x| (l.min(x), h.max(x)));
                (high - low) / 2.0
            };
            let most = (0..1000).map(|i| range(f64::from(i) / 100.0)).fold(0.0, f64::max);
            assert!((swing(frequency) - most).abs() < 1e-3, "{frequency}");
        }
    }

    #[test]
    fn pairs_are_halves_apart_and_add_up_as_squares() {
        let bias = [3.0, 0.0, 1.0, 4.0, 0.0, 2.0];
        assert_eq!(turning(&bias, &[1.0, 1.0, 0.0]), (0, 5.0));
        assert_eq!(turning(&bias, &[0.0, 1.0, 1.0]), (2, 5f64.sqrt()));
        assert_eq!(turning(&[0.0; 6], &[1.0; 3]), (0, 0.0));
        assert_eq!(scaled_square(&[1.0, 2.0], &[3.0, 0.5]), 10.0);
    }
}
