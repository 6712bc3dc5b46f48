//! What a layer is made of: the recipe from which blocks are built.

use super::part::Part;
use super::rope::RopeConfig;
use crate::backend::{Activation, LayerIndex};

/// One layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// What mixes tokens.
    pub mixer: Mixer,
    /// What follows.
    pub mlp: Mlp,
    /// Where its keys and values are. Two layers may name the same: then only the first of
    /// them writes there.
    pub kv: LayerIndex,
}

/// What mixes the tokens of a sequence.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Mixer {
    /// Attention of query heads over KV heads.
    Attention(AttentionSpec),
}

/// Grouped-query attention with RoPE (Ainslie et al. 2023).
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// KV heads; a divisor of the query heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Whether it has keys and values of its own, or reads those of another layer.
    pub own_kv: bool,
    /// Whether projections have biases.
    pub bias: bool,
    /// Whether each query and key head is normalised before RoPE.
    pub head_norm: bool,
    /// Whether its output is normalised before it joins the residual stream.
    pub post_norm: bool,
    /// The query at position i sees keys j with i − W < j ≤ i.
    pub window: Option<usize>,
    /// Factor on q·k.
    pub scale: f32,
    /// The rotation; of all layers of a KV group the same.
    pub rope: RopeConfig,
}

/// What transforms each token.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Mlp {
    /// `down(f(gate(x)) · up(x))` (Shazeer 2020).
    Gated(GatedSpec),
}

/// A gated MLP.
#[derive(Clone, Debug, PartialEq)]
pub struct GatedSpec {
    /// Rows of gate and up.
    pub width: usize,
    /// f.
    pub activation: Activation,
    /// Whether its output is normalised before it joins the residual stream.
    pub post_norm: bool,
}

impl LayerSpec {
    /// Its attention, if that is its mixer.
    pub fn attention(&self) -> &AttentionSpec {
        let Mixer::Attention(attention) = &self.mixer;
        attention
    }

    /// Its tensors and their shapes in a model of this width.
    pub fn parts(&self, hidden: usize) -> Vec<(Part, Vec<usize>)> {
        let Mixer::Attention(attention) = &self.mixer;
        let Mlp::Gated(mlp) = &self.mlp;
        let mut parts = attention.parts(hidden);
        parts.extend(mlp.parts(hidden));
        parts
    }
}

impl AttentionSpec {
    fn parts(&self, hidden: usize) -> Vec<(Part, Vec<usize>)> {
        let (d, q, kv) = (self.head_dim, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut parts = vec![
            (Part::AttentionNorm, vec![hidden]),
            (Part::Query, vec![q, hidden]),
            (Part::Output, vec![hidden, q]),
        ];
        let mut add = |there: bool, part, shape: &[usize]| {
            if there {
                parts.push((part, shape.to_vec()));
            }
        };
        add(self.own_kv, Part::Key, &[kv, hidden]);
        add(self.own_kv, Part::Value, &[kv, hidden]);
        add(self.bias, Part::QueryBias, &[q]);
        add(self.bias && self.own_kv, Part::KeyBias, &[kv]);
        add(self.bias && self.own_kv, Part::ValueBias, &[kv]);
        add(self.head_norm, Part::QueryNorm, &[d]);
        add(self.head_norm && self.own_kv, Part::KeyNorm, &[d]);
        add(self.post_norm, Part::AttentionPostNorm, &[hidden]);
        parts
    }
}

impl GatedSpec {
    fn parts(&self, hidden: usize) -> Vec<(Part, Vec<usize>)> {
        let mut parts = vec![
            (Part::MlpNorm, vec![hidden]),
            (Part::Gate, vec![self.width, hidden]),
            (Part::Up, vec![self.width, hidden]),
            (Part::Down, vec![hidden, self.width]),
        ];
        if self.post_norm {
            parts.push((Part::MlpPostNorm, vec![hidden]));
        }
        parts
    }
}
