//! What the decoders of this family tree have in common: a token embedding, layers of
//! attention and a gated MLP between RMS norms, an output layer.

use super::names::Names;
use crate::backend::LayerIndex;
use crate::model::config::ModelConfig;
use crate::model::files::tensor::Change;
use crate::model::part::Part;
use crate::model::spec::{AttentionSpec, GatedSpec, LayerSpec, Mixer, Mlp};

/// The names of Llama and its closest relatives.
pub(super) static NAMES: Names = Names(&[
    (Part::Embedding, "model.embed_tokens.weight", "token_embd.weight"),
    (Part::FinalNorm, "model.norm.weight", "output_norm.weight"),
    (Part::Head, "lm_head.weight", "output.weight"),
    (Part::AttentionNorm, "input_layernorm.weight", "attn_norm.weight"),
    (Part::Query, "self_attn.q_proj.weight", "attn_q.weight"),
    (Part::Key, "self_attn.k_proj.weight", "attn_k.weight"),
    (Part::Value, "self_attn.v_proj.weight", "attn_v.weight"),
    (Part::QueryBias, "self_attn.q_proj.bias", "attn_q.bias"),
    (Part::KeyBias, "self_attn.k_proj.bias", "attn_k.bias"),
    (Part::ValueBias, "self_attn.v_proj.bias", "attn_v.bias"),
    (Part::QueryNorm, "self_attn.q_norm.weight", "attn_q_norm.weight"),
    (Part::KeyNorm, "self_attn.k_norm.weight", "attn_k_norm.weight"),
    (Part::Output, "self_attn.o_proj.weight", "attn_output.weight"),
    (Part::MlpNorm, "post_attention_layernorm.weight", "ffn_norm.weight"),
    (Part::Gate, "mlp.gate_proj.weight", "ffn_gate.weight"),
    (Part::Up, "mlp.up_proj.weight", "ffn_up.weight"),
    (Part::Down, "mlp.down_proj.weight", "ffn_down.weight"),
]);

/// Layers of which some may slide. Full and sliding layers form KV groups of their own
/// where a model has both.
pub(super) fn layers(config: &ModelConfig) -> Vec<LayerSpec> {
    let sliding = &config.sliding_layers;
    let mixed = sliding.iter().any(|slides| *slides != sliding[0]);
    let mut sizes = [0, 0];
    let layer = |slides: &bool| {
        let group = usize::from(mixed && *slides);
        sizes[group] += 1;
        let kv = LayerIndex { group, layer: sizes[group] - 1 };
        let sliding_rope = config.sliding_rope.as_ref().filter(|_| *slides);
        let attention = AttentionSpec {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            own_kv: true,
            bias: config.qkv_bias,
            head_norm: config.qk_norm,
            post_norm: config.post_norms,
            window: config.sliding_window.filter(|_| *slides),
            scale: config.attention_scale,
            rope: sliding_rope.unwrap_or(&config.rope).clone(),
        };
        let mlp = GatedSpec {
            width: config.intermediate,
            activation: config.activation,
            post_norm: config.post_norms,
        };
        LayerSpec { mixer: Mixer::Attention(attention), mlp: Mlp::Gated(mlp), kv }
    };
    sliding.iter().map(layer).collect()
}

/// Files that hold tensors as the model has them.
pub(super) fn unchanged(_: &ModelConfig, _: Part) -> Change {
    Change::None
}

/// Folders of Hugging Face that do.
pub(super) fn plain(_: Part) -> Change {
    Change::None
}

/// llama.cpp rotates neighbouring channels (2i, 2i + 1) for the architecture "llama" and
/// therefore stores the rows of its Q and K projections permuted per head.
pub(super) fn interleaved(config: &ModelConfig, part: Part) -> Change {
    match part {
        Part::Query | Part::QueryBias => Change::Interleaved { heads: config.heads },
        Part::Key | Part::KeyBias => Change::Interleaved { heads: config.kv_heads },
        _ => Change::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let name = |n| NAMES.to_gguf(n).map_or_else(String::new, |(_, name)| name);
        assert_eq!(name("model.layers.12.self_attn.q_proj.bias"), "blk.12.attn_q.bias");
        assert_eq!(name("model.layers.0.input_layernorm.weight"), "blk.0.attn_norm.weight");
        assert_eq!(name("lm_head.weight"), "output.weight");
        assert_eq!(NAMES.to_gguf("model.layers.0.self_attn.rotary.weight"), None);
        assert_eq!(NAMES.to_gguf("model.layers.0.lm_head.weight"), None);
        let hf = NAMES.hf(Part::Query, Some(3));
        assert_eq!(hf.as_deref(), Some("model.layers.3.self_attn.q_proj.weight"));
    }
}
