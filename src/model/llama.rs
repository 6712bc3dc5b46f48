//! The Llama family: pre-norm decoder blocks with RoPE, grouped-query attention
//! and SwiGLU (Touvron et al. 2023), with Mistral's sliding window, Qwen2's
//! biases and Qwen3's query and key norms.

use super::kv::{group_sizes, kv_layers};
use super::source::{FromCheckpoint, Weights};
use super::{Checkpoint, ModelConfig};
use crate::backend::draw::Choice;
use crate::backend::{
    Attend, AttendSeq, Backend, Ids, LayerIndex, Rope, RowKind, StepInput, WeightPolicy,
};
use crate::cache::{SeqStep, Step};
use crate::error::{Error, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// What an observer sees of one layer's attention.
pub struct Observed<'a, B: Backend> {
    /// Layer of the model.
    pub layer: usize,
    /// The call.
    pub call: &'a Attend<'a>,
    /// `[rows][q heads | k heads | v heads]`, after RoPE.
    pub qkv: &'a B::Buffer,
    /// The output projection.
    pub output: &'a B::Matrix,
    /// The residual stream before the projection is added to it.
    pub residual: &'a B::Buffer,
}

/// Looks at attention, layer by layer ([`Llama::forward_observed`]).
pub trait Observer<B: Backend> {
    /// Called after attention over a layer.
    ///
    /// # Errors
    /// What stops the pass.
    fn attended(&mut self, backend: &B, layer: &Observed<'_, B>) -> Result<()>;
}

/// Looks at nothing.
struct Blind;

impl<B: Backend> Observer<B> for Blind {
    fn attended(&mut self, _: &B, _: &Observed<'_, B>) -> Result<()> {
        Ok(())
    }
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
    /// Layers of each KV group.
    group_sizes: Vec<usize>,
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
    /// Rows of `hidden` that the last step was asked for.
    wanted: usize,
    /// Tells workspaces apart.
    id: u64,
}

impl<B: Backend> Workspace<B> {
    /// Empty buffers; they grow with the first pass.
    pub fn new(backend: &B) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let empty = || backend.buffer(0, 0);
        Ok(Self {
            wanted: 0,
            id: COUNT.fetch_add(1, Ordering::Relaxed),
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

impl<B: Backend> Llama<B> {
    /// Loads the weights of a checkpoint.
    ///
    /// # Errors
    /// What the file or the backend refuses.
    pub fn load(checkpoint: &Checkpoint, backend: &B, policy: WeightPolicy) -> Result<Self> {
        let config = checkpoint.config().clone();
        Self::with_weights(config, backend, &mut FromCheckpoint { checkpoint, policy })
    }

    /// A model of `config` with weights from anywhere: of the names and shapes that
    /// [`ModelConfig::tensors`] lists.
    ///
    /// # Errors
    /// What `weights` or the backend refuses.
    pub fn with_weights(
        config: ModelConfig,
        backend: &B,
        weights: &mut impl Weights<B>,
    ) -> Result<Self> {
        let mut layers = Vec::with_capacity(config.layers);
        for (i, kv) in kv_layers(&config).into_iter().enumerate() {
            let names = |parts: &[&str]| -> Vec<String> {
                parts.iter().map(|part| format!("model.layers.{i}.{part}")).collect()
            };
            let mut matrix = |parts: &[&str]| weights.matrix(backend, &names(parts));
            let (qkv, output, gate_up, down) = (
                matrix(&[
                    "self_attn.q_proj.weight",
                    "self_attn.k_proj.weight",
                    "self_attn.v_proj.weight",
                ])?,
                matrix(&["self_attn.o_proj.weight"])?,
                matrix(&["mlp.gate_proj.weight", "mlp.up_proj.weight"])?,
                matrix(&["mlp.down_proj.weight"])?,
            );
            let mut vector = |parts: &[&str]| weights.vector(backend, &names(parts));
            let mut vector_if = |there: bool, parts: &[&str]| match there {
                true => vector(parts).map(Some),
                false => Ok(None),
            };
            let biases =
                ["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"];
            let qkv_bias = vector_if(config.qkv_bias, &biases)?;
            let q_norm = vector_if(config.qk_norm, &["self_attn.q_norm.weight"])?;
            let k_norm = vector_if(config.qk_norm, &["self_attn.k_norm.weight"])?;
            let slides = config.sliding_layers[i];
            layers.push(Layer {
                input_norm: vector(&["input_layernorm.weight"])?,
                qkv,
                qkv_bias,
                q_norm,
                k_norm,
                output,
                post_norm: vector(&["post_attention_layernorm.weight"])?,
                gate_up,
                down,
                kv,
                window: config.sliding_window.filter(|_| slides),
            });
        }
        let head = match config.tied {
            true => None,
            false => Some(weights.matrix(backend, &["lm_head.weight".into()])?),
        };
        Ok(Self {
            embedding: weights.matrix(backend, &["model.embed_tokens.weight".into()])?,
            layers,
            norm: weights.vector(backend, &["model.norm.weight".into()])?,
            head,
            group_sizes: group_sizes(&config),
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
        self.begin(backend, ws, step, Ids::Given(ids), rows, &[])?;
        backend.repeat(2 * ws.id, |backend| self.hidden(backend, ws, &step.seqs, &mut Blind))
    }

    /// As [`forward`](Self::forward), watched.
    pub fn forward_observed(
        &self,
        backend: &mut B,
        ws: &mut Workspace<B>,
        step: &Step,
        ids: &[u32],
        observer: &mut (impl Observer<B> + ?Sized),
    ) -> Result<()> {
        self.begin(backend, ws, step, Ids::Given(ids), &[], &[])?;
        self.hidden(backend, ws, &step.seqs, observer)
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
        self.begin(backend, ws, step, ids, rows, choices)?;
        backend.repeat(2 * ws.id + 1, |backend| {
            self.hidden(backend, ws, &step.seqs, &mut Blind)?;
            backend.logits(self.head(), &mut ws.hidden, &mut ws.logits)?;
            backend.sample(&mut ws.logits)
        })?;
        backend.send_tokens()
    }

    fn begin(
        &self,
        backend: &mut B,
        ws: &mut Workspace<B>,
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
        ws.wanted = 0;
        backend.copy_blocks(&step.copies)?;
        backend.begin(&StepInput { seqs: &step.seqs, ids, rows, choices, rope: &self.rope })?;
        ws.wanted = rows.len();
        Ok(())
    }

    /// The layers, the last norm, and the wanted rows of it to `ws.hidden`.
    fn hidden(
        &self,
        backend: &mut B,
        ws: &mut Workspace<B>,
        seqs: &[SeqStep],
        observer: &mut (impl Observer<B> + ?Sized),
    ) -> Result<()> {
        let eps = self.config.norm_eps;
        backend.embed(&self.embedding, &mut ws.x)?;
        // Single tokens seal only pages that earlier steps have filled.
        let decodes = seqs.iter().all(|seq| seq.new_tokens == 1);
        if decodes {
            for (group, &layers) in self.group_sizes.iter().enumerate() {
                backend.seal(group, 0..layers, seqs)?;
            }
        }
        for (i, layer) in self.layers.iter().enumerate() {
            let delta = (i > 0).then_some(&ws.delta);
            backend.rms_norm(&mut ws.x, delta, &layer.input_norm, eps, &mut ws.normed)?;
            self.attention(i, backend, ws, seqs, !decodes, observer)?;
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
        layer: usize,
        backend: &mut B,
        ws: &mut Workspace<B>,
        seqs: &[SeqStep],
        seal: bool,
        observer: &mut (impl Observer<B> + ?Sized),
    ) -> Result<()> {
        let (number, layer) = (layer, &self.layers[layer]);
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
                let kind = match seq.new_tokens {
                    1 => RowKind::Generated,
                    _ => RowKind::Prompt,
                };
                AttendSeq { first_row, q_len: seq.new_tokens, kind, view: &seq.views[group] }
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
        backend.matmul(&layer.output, &mut ws.attended, &mut ws.delta)?;
        let (qkv, output, residual) = (&ws.qkv, &layer.output, &ws.x);
        observer.attended(backend, &Observed { layer: number, call: &call, qkv, output, residual })
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
        if range.end > ws.wanted {
            let what = format!("{range:?} of {} hidden states", ws.wanted);
            return Err(Error::config("rows", what));
        }
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
