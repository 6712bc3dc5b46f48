//! Gemma 3, text (Gemma Team 2025): five sliding layers to one that sees all, each kind with
//! its own rope; norms before and after attention and MLP, and on each query and key head;
//! a GELU gate; embedded tokens times √hidden.

use super::decoder::{layers, unchanged};
use super::names::Names;
use crate::backend::Activation;
use crate::error::Result;
use crate::model::config::{Arch, ModelConfig};
use crate::model::files::complaint;
use crate::model::files::gguf::Gguf;
use crate::model::files::gguf_config;
use crate::model::files::hf_config::{JsonDefaults, Sliding, decoder, read_rope};
use crate::model::files::json::Fields;
use crate::model::files::tensor::Change;
use crate::model::part::Part;
use crate::model::rope::{RopeConfig, RopeScaling};
use std::path::Path;

pub(super) static GEMMA3: Arch = Arch {
    name: "gemma3_text",
    gguf: Some("gemma3"),
    from_json,
    from_gguf,
    layers,
    names: &NAMES,
    gguf_change: unchanged,
    json_change: plus_one,
};

/// A layer that sees all follows on so many less one that slide.
const PATTERN: usize = 6;
/// Bases of the rotations where a file does not say.
const FULL_THETA: f32 = 1_000_000.0;
const SLIDING_THETA: f32 = 10_000.0;

static NAMES: Names = Names(&[
    (Part::Embedding, "model.embed_tokens.weight", "token_embd.weight"),
    (Part::FinalNorm, "model.norm.weight", "output_norm.weight"),
    (Part::Head, "lm_head.weight", "output.weight"),
    (Part::AttentionNorm, "input_layernorm.weight", "attn_norm.weight"),
    (Part::Query, "self_attn.q_proj.weight", "attn_q.weight"),
    (Part::Key, "self_attn.k_proj.weight", "attn_k.weight"),
    (Part::Value, "self_attn.v_proj.weight", "attn_v.weight"),
    (Part::QueryNorm, "self_attn.q_norm.weight", "attn_q_norm.weight"),
    (Part::KeyNorm, "self_attn.k_norm.weight", "attn_k_norm.weight"),
    (Part::Output, "self_attn.o_proj.weight", "attn_output.weight"),
    (Part::AttentionPostNorm, "post_attention_layernorm.weight", "post_attention_norm.weight"),
    (Part::MlpNorm, "pre_feedforward_layernorm.weight", "ffn_norm.weight"),
    (Part::Gate, "mlp.gate_proj.weight", "ffn_gate.weight"),
    (Part::Up, "mlp.up_proj.weight", "ffn_up.weight"),
    (Part::Down, "mlp.down_proj.weight", "ffn_down.weight"),
    (Part::MlpPostNorm, "post_feedforward_layernorm.weight", "post_ffw_norm.weight"),
]);

/// Hugging Face's files hold norms less 1.
fn plus_one(part: Part) -> Change {
    if part.is_norm() { Change::PlusOne } else { Change::None }
}

fn from_json(fields: &Fields<'_>) -> Result<ModelConfig> {
    for cap in ["final_logit_softcapping", "attn_logit_softcapping"] {
        if fields.float(cap)?.is_some() {
            return Err(fields.unsupported(&format!("{cap}, which Gemma 2 has")));
        }
    }
    if fields.bool("use_bidirectional_attention")? == Some(true) {
        return Err(fields.unsupported("attention without a causal mask"));
    }
    let defaults = JsonDefaults {
        head_dim: Some(256),
        kv_heads: Some(4),
        context: 131_072,
        sliding: Sliding::AllBut(PATTERN),
        full_rope: Some("full_attention"),
    };
    let config = decoder(fields, &GEMMA3, &defaults)?;
    let (d, context) = (config.head_dim, config.context);
    // As transformers had it before it had rope_parameters.
    let older = fields.float("rope_local_base_freq")?;
    let sliding_rope = match fields.get("rope_parameters") {
        Some(_) => read_rope(fields, Some("sliding_attention"), d, context)?,
        None => plain_rope(older.unwrap_or(SLIDING_THETA), d),
    };
    refuse_yarn(fields.path, &config.rope)?;
    let mut rope = config.rope.clone();
    if fields.get("rope_parameters").is_none() && fields.get("rope_theta").is_none() {
        rope.theta = FULL_THETA;
    }
    let scale = fields.float("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5);
    Ok(completed(ModelConfig { attention_scale: scale, rope, ..config }, sliding_rope))
}

fn from_gguf(gguf: &Gguf) -> Result<ModelConfig> {
    let config = gguf_config::decoder(gguf, &GEMMA3, "gemma3")?;
    refuse_yarn(gguf.path(), &config.rope)?;
    let theta = |key: &str| Ok::<_, crate::Error>(gguf.float(key)?.map(|x| x as f32));
    let full = theta("gemma3.rope.freq_base")?.unwrap_or(FULL_THETA);
    let sliding = theta("gemma3.rope.freq_base_swa")?.unwrap_or(SLIDING_THETA);
    let rope = RopeConfig { theta: full, ..config.rope.clone() };
    let pattern = gguf.uint("gemma3.attention.sliding_window_pattern")?;
    let pattern = pattern.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    let slides = |i: usize| !(i + 1).is_multiple_of(pattern.unwrap_or(PATTERN));
    let sliding_layers = (0..config.layers).map(slides).collect();
    if gguf.float("gemma3.final_logit_softcapping")?.is_some_and(|cap| cap != 0.0) {
        return Err(complaint::unsupported(gguf.path(), "soft caps of logits"));
    }
    // No key says it; llama.cpp knows the one model that differs by its depth.
    let scale = match config.layers {
        62 => (config.hidden as f32 / config.heads as f32).powf(-0.5),
        _ => (config.head_dim as f32).powf(-0.5),
    };
    let d = config.head_dim;
    let config = ModelConfig { attention_scale: scale, rope, sliding_layers, ..config };
    Ok(completed(config, plain_rope(sliding, d)))
}

/// It would sharpen the attention of full layers alone, and there is one factor for all.
fn refuse_yarn(path: &Path, rope: &RopeConfig) -> Result<()> {
    match rope.scaling {
        RopeScaling::Yarn(_) => Err(complaint::unsupported(path, "the RoPE scaling \"yarn\"")),
        _ => Ok(()),
    }
}

fn plain_rope(theta: f32, dim: usize) -> RopeConfig {
    RopeConfig { theta, scaling: RopeScaling::None, dim }
}

/// What no file says.
fn completed(config: ModelConfig, sliding_rope: RopeConfig) -> ModelConfig {
    ModelConfig {
        activation: Activation::GeluTanh,
        sliding_rope: Some(sliding_rope),
        embedding_scale: (config.hidden as f32).sqrt(),
        qk_norm: true,
        post_norms: true,
        ..config
    }
}
