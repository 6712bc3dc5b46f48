//! The Llama family: pre-norm decoder blocks with RoPE, grouped-query attention
//! and SwiGLU (Touvron et al. 2023), with Mistral's sliding window, Qwen2's
//! biases and Qwen3's query and key norms.

use super::kv::{group_sizes, kv_layers};
use super::{Checkpoint, ModelConfig, RawTensor};
use crate::backend::draw::Choice;
use crate::backend::{
    Attend, AttendSeq, Backend, Ids, LayerIndex, MatrixBytes, Rope, StepInput, WeightPolicy,
};
use crate::cache::{SeqStep, Step};
use crate::error::{Error, Result};
use std::ops::Range;

struct Layer<B: Backend> {
    input_norm: B::Vector,
    /// q, k and v stacked by rows.
    qkv: B::Matrix,
    qkv_bias: Option<B::Vector>,
    q_norm: Option<B::Vector>,
    k_norm: Option<B::Vector>,
    output: B::Matrix,
    post_norm: B::Vector,
    /// gate and up stacked by rows.
    gate_up: B::Matrix,
    down: B::Matrix,
    kv: LayerIndex,
    window: Option<usize>,
}

/// A model whose weights are on a backend.
pub struct Llama<B: Backend> {
    config: ModelConfig,
    embedding: B::Matrix,
    layers: Vec<Layer<B>>,
    norm: B::Vector,
    /// `None`: the embedding serves as the output layer.
    head: Option<B::Matrix>,
    rope: Rope,
}

/// Activations of a forward pass, allocated once and reused.
pub struct Workspace<B: Backend> {
    x: B::Buffer,
    normed: B::Buffer,
    qkv: B::Buffer,
    attended: B::Buffer,
    delta: B::Buffer,
    gate_up: B::Buffer,
    activated: B::Buffer,
    hidden: B::Buffer,
    logits: B::Buffer,
}

impl<B: Backend> Workspace<B> {
    /// Empty buffers; they grow with the first pass.
    pub fn new(backend: &B) -> Result<Self> {
        let empty = || backend.buffer(0, 0);
        Ok(Self {
            x: empty()?,
            normed: empty()?,
            qkv: empty()?,
            attended: empty()?,
            delta: empty()?,
            gate_up: empty()?,
            activated: empty()?,
            hidden: empty()?,
            logits: empty()?,
        })
    }
}

/// Reads one tensor as f32.
fn floats(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>> {
    let RawTensor { dtype, bytes, .. } = checkpoint.tensor(name)?;
    let elements = bytes.len() / dtype.block_bytes() * dtype.block_size();
    // candle reads aligned blocks; the bytes of a mapped file need not be.
    let mut aligned = vec![0u64; bytes.len().div_ceil(8)];
    let aligned = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut aligned)[..bytes.len()];
    aligned.copy_from_slice(&bytes);
    let tensor = dtype.to_ggml().from_data(aligned[..].into());
    match tensor.dequantize(elements)? {
        candle_core::CpuStorage::F32(floats) => Ok(floats),
        _ => Err(Error::bad_file(
            checkpoint.path(),
            format!("{name} is not numeric"),
            "convert it again",
        )),
    }
}

impl<B: Backend> Llama<B> {
    /// Loads the weights of a checkpoint.
    pub fn load(checkpoint: &Checkpoint, backend: &B, policy: WeightPolicy) -> Result<Self> {
        let config = checkpoint.config().clone();
        let matrix = |names: &[String]| -> Result<B::Matrix> {
            let tensors = names.iter().map(|n| checkpoint.tensor(n)).collect::<Result<Vec<_>>>()?;
            let parts: Vec<_> = (tensors.iter())
                .map(|t| MatrixBytes {
                    dtype: t.dtype.to_ggml(),
                    rows: t.shape[0],
                    cols: t.shape[1],
                    bytes: &t.bytes,
                })
                .collect();
            backend.matrix(&parts, policy)
        };
        let vector = |name: &str| backend.vector(&floats(checkpoint, name)?);

        let mut layers = Vec::with_capacity(config.layers);
        for (i, kv) in kv_layers(&config).into_iter().enumerate() {
            let name = |part: &str| format!("model.layers.{i}.{part}");
            let names = |parts: &[&str]| -> Vec<String> { parts.iter().map(|p| name(p)).collect() };
            let qkv_bias = match config.qkv_bias {
                false => None,
                true => {
                    let mut all = Vec::new();
                    for part in ["q_proj", "k_proj", "v_proj"] {
                        all.extend(floats(checkpoint, &name(&format!("self_attn.{part}.bias")))?);
                    }
                    Some(backend.vector(&all)?)
                }
            };
            let head_norm = |part: &str| match config.qk_norm {
                true => vector(&name(&format!("self_attn.{part}.weight"))).map(Some),
                false => Ok(None),
            };
            let slides = config.sliding_layers[i];
            layers.push(Layer {
                input_norm: vector(&name("input_layernorm.weight"))?,
                qkv: matrix(&names(&[
                    "self_attn.q_proj.weight",
                    "self_attn.k_proj.weight",
                    "self_attn.v_proj.weight",
                ]))?,
                qkv_bias,
                q_norm: head_norm("q_norm")?,
                k_norm: head_norm("k_norm")?,
                output: matrix(&names(&["self_attn.o_proj.weight"]))?,
                post_norm: vector(&name("post_attention_layernorm.weight"))?,
                gate_up: matrix(&names(&["mlp.gate_proj.weight", "mlp.up_proj.weight"]))?,
                down: matrix(&names(&["mlp.down_proj.weight"]))?,
                kv,
                window: config.sliding_window.filter(|_| slides),
            });
        }
        let head = match config.tied {
            true => None,
            false => Some(matrix(&["lm_head.weight".into()])?),
        };
        Ok(Self {
            embedding: matrix(&["model.embed_tokens.weight".into()])?,
            layers,
            norm: vector("model.norm.weight")?,
            head,
            rope: Rope { inv_freq: config.rope.inv_freq() },
            config,
        })
    }

    /// The model's numbers.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Bytes that the weight matrices keep resident.
    pub fn weight_bytes(&self, backend: &B) -> u64 {
        let layers = self.layers.iter().flat_map(|l| [&l.qkv, &l.output, &l.gate_up, &l.down]);
        (layers.chain([&self.embedding]).chain(&self.head)).map(|m| backend.matrix_bytes(m)).sum()
    }

    /// Appends the new tokens' keys and values, seals pages, and leaves the final
    /// hidden states of `rows` (indices into `ids`) in the workspace, for
    /// [`logits`](Self::logits).
    ///
    /// `ids` holds the new tokens of the step's sequences one after the other.
    pub fn forward(
        &self,
        backend: &mut B,
        ws: &mut Workspace<B>,
        step: &Step,
        ids: &[u32],
        rows: &[usize],
    ) -> Result<()> {
        self.begin(backend, step, Ids::Given(ids), rows, &[])?;
        backend.repeat(0, |backend| self.hidden(backend, ws, &step.seqs))
    }

    /// As [`forward`](Self::forward), then chooses the next token after each of `rows`
    /// and lets it come to the host: [`Backend::receive_tokens`] gives them.
    pub fn forward_and_sample(
        &self,
        backend: &mut B,
        ws: &mut Workspace<B>,
        step: &Step,
        ids: Ids<'_>,
        rows: &[usize],
        choices: &[Choice],
    ) -> Result<()> {
        self.begin(backend, step, ids, rows, choices)?;
        backend.repeat(1, |backend| {
            self.hidden(backend, ws, &step.seqs)?;
            backend.logits(self.head(), &mut ws.hidden, &mut ws.logits)?;
            backend.sample(&mut ws.logits)
        })?;
        backend.send_tokens()
    }

    fn begin(
        &self,
        backend: &mut B,
        step: &Step,
        ids: Ids<'_>,
        rows: &[usize],
        choices: &[Choice],
    ) -> Result<()> {
        let tokens = step.seqs.iter().map(|s| s.new_tokens).sum::<usize>();
        if tokens != ids.len() {
            let what = format!("{} tokens for a step of {tokens}", ids.len());
            return Err(Error::config("ids", what));
        }
        if let Ids::Given(ids) = ids
            && let Some(id) = ids.iter().find(|&&id| id as usize >= self.config.vocab)
        {
            let what = format!("token {id} is not below {}", self.config.vocab);
            return Err(Error::config("ids", what));
        }
        backend.copy_blocks(&step.copies)?;
        backend.begin(&StepInput { seqs: &step.seqs, ids, rows, choices, rope: &self.rope })
    }

    /// The layers, the last norm, and the wanted rows of it to `ws.hidden`.
    fn hidden(&self, backend: &mut B, ws: &mut Workspace<B>, seqs: &[SeqStep]) -> Result<()> {
        let eps = self.config.norm_eps;
        backend.embed(&self.embedding, &mut ws.x)?;
        // Single tokens seal only pages that earlier steps have filled.
        let decodes = seqs.iter().all(|seq| seq.new_tokens == 1);
        if decodes {
            for (group, layers) in group_sizes(&self.config).into_iter().enumerate() {
                backend.seal(group, 0..layers, seqs)?;
            }
        }
        for (i, layer) in self.layers.iter().enumerate() {
            let delta = (i > 0).then_some(&ws.delta);
            backend.rms_norm(&mut ws.x, delta, &layer.input_norm, eps, &mut ws.normed)?;
            self.attention(layer, backend, ws, seqs, !decodes)?;
            let delta = Some(&ws.delta);
            backend.rms_norm(&mut ws.x, delta, &layer.post_norm, eps, &mut ws.normed)?;
            backend.matmul(&layer.gate_up, &mut ws.normed, &mut ws.gate_up)?;
            backend.silu_mul(&ws.gate_up, &mut ws.activated)?;
            backend.matmul(&layer.down, &mut ws.activated, &mut ws.delta)?;
        }
        backend.rms_norm(&mut ws.x, Some(&ws.delta), &self.norm, eps, &mut ws.normed)?;
        backend.select(&ws.normed, &mut ws.hidden)
    }

    /// From `ws.normed` to the attention block's contribution in `ws.delta`.
    fn attention(
        &self,
        layer: &Layer<B>,
        backend: &mut B,
        ws: &mut Workspace<B>,
        seqs: &[SeqStep],
        seal: bool,
    ) -> Result<()> {
        let ModelConfig { heads, kv_heads, head_dim, norm_eps: eps, .. } = self.config;
        let LayerIndex { group, layer: index } = layer.kv;
        backend.matmul(&layer.qkv, &mut ws.normed, &mut ws.qkv)?;
        if let Some(bias) = &layer.qkv_bias {
            backend.add_bias(&mut ws.qkv, bias)?;
        }
        if let (Some(q), Some(k)) = (&layer.q_norm, &layer.k_norm) {
            backend.head_norm(&mut ws.qkv, 0, heads, q, eps)?;
            backend.head_norm(&mut ws.qkv, heads * head_dim, kv_heads, k, eps)?;
        }
        backend.append(layer.kv, heads, Some(&self.rope), &mut ws.qkv, seqs)?;
        if seal {
            backend.seal(group, index..index + 1, seqs)?;
        }

        let mut next = 0;
        let shares: Vec<_> = (seqs.iter())
            .map(|seq| {
                next += seq.new_tokens;
                let first_row = next - seq.new_tokens;
                AttendSeq { first_row, q_len: seq.new_tokens, view: &seq.views[group] }
            })
            .collect();
        let call = Attend {
            at: layer.kv,
            heads,
            scale: (head_dim as f32).powf(-0.5) * self.config.rope.attention_factor().powi(2),
            causal: true,
            window: layer.window,
            rope: Some(&self.rope),
            seqs: &shares,
        };
        backend.attend(&call, &ws.qkv, &mut ws.attended, None)?;
        backend.matmul(&layer.output, &mut ws.attended, &mut ws.delta)
    }

    /// Logits of the hidden states that [`forward`](Self::forward) left, rows
    /// `range` of them: calls `f(row, logits)` with `vocab` logits each.
    pub fn logits(
        &self,
        backend: &B,
        ws: &mut Workspace<B>,
        range: Range<usize>,
        mut f: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        backend.rows(&ws.hidden, range.clone(), &mut ws.delta)?;
        backend.logits(self.head(), &mut ws.delta, &mut ws.logits)?;
        let mut row_logits = vec![0f32; self.config.vocab];
        for (i, row) in range.enumerate() {
            backend.read_row(&ws.logits, i, &mut row_logits)?;
            f(row, &row_logits)?;
        }
        Ok(())
    }

    /// The output layer.
    fn head(&self) -> &B::Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}
