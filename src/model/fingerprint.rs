//! What tells models apart whose queries, keys and values differ, so that what was measured
//! of one is not used for another.

use super::config::ModelConfig;
use super::files::Checkpoint;
use super::files::mapped::{Stretch, digest};
use super::part::Part;
use super::rope::{RopeConfig, RopeScaling, Yarn};
use super::spec::{AttentionSpec, GatedSpec, LayerSpec, Mixer, Mlp};
use crate::backend::Activation;
use crate::error::Result;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::sync::OnceLock;

/// Two hashes of sixteen hexadecimal digits, "shape-weights": of everything that shapes
/// queries, keys and values.
///
/// The shape is the architecture's numbers, rope included, and the names, types and shapes
/// of tensors; it costs nothing. The weights are the bytes of those tensors: all but those
/// behind the last layer's keys and values. They are read only when it is asked for them.
#[derive(Debug)]
pub struct Fingerprint {
    shape: String,
    stretches: Vec<Stretch>,
    weights: OnceLock<String>,
}

impl Fingerprint {
    /// One whose weights need not be read.
    #[cfg(test)]
    pub(super) fn known(shape: &str, weights: &str) -> Self {
        let weights = OnceLock::from(weights.to_owned());
        Self { shape: shape.into(), stretches: Vec::new(), weights }
    }

    /// The first half.
    pub fn shape(&self) -> &str {
        &self.shape
    }

    /// The second half. The first call reads the weights.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io).
    pub fn weights(&self) -> Result<&str> {
        match self.weights.get() {
            Some(weights) => Ok(weights),
            None => {
                let weights = half(&digest(&self.stretches)?);
                Ok(self.weights.get_or_init(|| weights))
            }
        }
    }

    /// Both halves.
    ///
    /// # Errors
    /// As [`weights`](Self::weights).
    pub fn text(&self) -> Result<String> {
        Ok(format!("{}-{}", self.shape, self.weights()?))
    }

    /// Whether a text is this fingerprint. The weights are read only if the shape agrees.
    ///
    /// # Errors
    /// As [`weights`](Self::weights).
    pub fn is(&self, text: &str) -> Result<bool> {
        match text.split_once('-') {
            Some((shape, weights)) if shape == self.shape => Ok(weights == self.weights()?),
            _ => Ok(false),
        }
    }
}

impl Checkpoint {
    /// What tells this model from others.
    ///
    /// # Errors
    /// [`Error::BadFile`](crate::Error::BadFile) if a tensor cannot be read.
    pub fn fingerprint(&self) -> Result<Fingerprint> {
        let config = self.config();
        let mut shape = describe(config);
        let mut stretches = Vec::new();
        for tensor in config.tensors() {
            if !shapes_kv(tensor.part, tensor.layer, config.layers) {
                continue;
            }
            let (dtype, dims, stretch) = self.place(&tensor.name)?;
            line(&mut shape, format_args!("{} {dtype} {dims:?}", tensor.name));
            stretches.push(stretch);
        }
        line(&mut shape, format_args!("{}", self.format()));
        let shape = half(&Sha256::digest(shape.as_bytes()).into());
        Ok(Fingerprint { shape, stretches, weights: OnceLock::new() })
    }
}

/// Whether queries, keys and values of any layer depend on a tensor.
fn shapes_kv(part: Part, layer: Option<usize>, layers: usize) -> bool {
    use Part::{
        AttentionNorm, Embedding, Key, KeyBias, KeyNorm, Query, QueryBias, QueryNorm, Value,
        ValueBias,
    };
    match layer {
        None => part == Embedding,
        Some(layer) if layer + 1 < layers => true,
        Some(_) => matches!(
            part,
            AttentionNorm
                | Query
                | Key
                | Value
                | QueryBias
                | KeyBias
                | ValueBias
                | QueryNorm
                | KeyNorm
        ),
    }
}

/// All numbers that queries, keys and values depend on. Whoever adds a field to one of
/// these types is asked here whether they do.
fn describe(config: &ModelConfig) -> String {
    let ModelConfig {
        arch,
        hidden,
        norm_eps,
        embedding_scale,
        // In `specs`, or in the shapes of tensors.
        vocab: _,
        layers: _,
        heads: _,
        kv_heads: _,
        head_dim: _,
        intermediate: _,
        activation: _,
        rope: _,
        sliding_rope: _,
        attention_scale: _,
        sliding_window: _,
        sliding_layers: _,
        qkv_bias: _,
        qk_norm: _,
        post_norms: _,
        // Behind the last layer, or about texts.
        context: _,
        tied: _,
        bos: _,
        eos: _,
    } = config;
    let mut text = String::new();
    let numbers = [*norm_eps, *embedding_scale].map(f32::to_bits);
    line(&mut text, format_args!("{} {hidden} {numbers:x?}", arch.name));
    for LayerSpec { mixer, mlp, kv } in config.specs() {
        let Mixer::Attention(AttentionSpec {
            heads,
            kv_heads,
            head_dim,
            own_kv,
            bias,
            head_norm,
            post_norm,
            window,
            scale,
            rope,
        }) = mixer;
        let Mlp::Gated(GatedSpec { width, activation, post_norm: mlp_post_norm }) = mlp;
        let activation = match activation {
            Activation::Silu => "silu",
            Activation::GeluTanh => "gelu_tanh",
        };
        let flags = [own_kv, bias, head_norm, post_norm, mlp_post_norm].map(u8::from);
        let at = (kv.group, kv.layer);
        line(
            &mut text,
            format_args!(
                "{at:?} {heads} {kv_heads} {head_dim} {flags:?} {window:?} {} {width} {activation}",
                computed(scale)
            ),
        );
        describe_rope(&mut text, &rope);
    }
    text
}

fn describe_rope(text: &mut String, rope: &RopeConfig) {
    let RopeConfig { theta, scaling, dim } = rope;
    line(text, format_args!("rope {:x} {dim}", theta.to_bits()));
    let (kind, floats, context) = match scaling {
        RopeScaling::None => return,
        RopeScaling::Linear { factor } => ("linear", vec![*factor], 0),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            ("llama3", vec![*factor, *low_freq_factor, *high_freq_factor], *original_context)
        }
        RopeScaling::Yarn(yarn) => {
            let Yarn { factor, original_context, beta_fast, beta_slow, truncate, attention_factor } =
                yarn;
            line(text, format_args!("{truncate} {}", computed(*attention_factor)));
            let floats = vec![*factor, *beta_fast, *beta_slow];
            ("yarn", floats, *original_context)
        }
        RopeScaling::Factors(factors) => ("factors", factors.clone(), 0),
    };
    let bits: Vec<u32> = floats.into_iter().map(f32::to_bits).collect();
    line(text, format_args!("{kind} {bits:x?} {context}"));
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // A string takes everything.
    let _ = writeln!(text, "{line}");
}

/// A number whose last bits may differ between machines.
fn computed(x: f32) -> String {
    format!("{x:.5e}")
}

/// Half of a fingerprint: the first eight bytes of a hash.
fn half(hash: &[u8; 32]) -> String {
    hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}
