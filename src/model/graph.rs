//! A model's layers on a backend: one forward pass for every architecture.

use super::blocks::{AttentionBlock, GatedMlp};
use super::files::{Checkpoint, FromCheckpoint, Weights};
use super::kv::group_sizes;
use super::pass::{Pass, Tail};
use super::spec::{Mixer, Mlp};
use super::workspace::{PassProgress, Workspace};
use super::{ModelConfig, Part};
use crate::backend::{Backend, GraphKey, RowToken, StepInput, WeightPolicy};
use crate::error::{Error, Result};
use std::ops::Range;

struct Layer<B: Backend> {
    attention: AttentionBlock<B>,
    mlp: GatedMlp<B>,
}

/// The weights of a model, and the order in which they are used.
pub struct Graph<B: Backend> {
    config: ModelConfig,
    embedding: B::Matrix,
    layers: Vec<Layer<B>>,
    norm: B::Vector,
    /// `None`: the embedding serves as the output layer.
    head: Option<B::Matrix>,
    /// Layers of each KV group.
    group_sizes: Vec<usize>,
}

impl<B: Backend> Graph<B> {
    /// Loads the weights of a checkpoint.
    ///
    /// # Errors
    /// What the file or the backend refuses.
    pub fn load(checkpoint: &Checkpoint, backend: &B, policy: WeightPolicy) -> Result<Self> {
        let config = checkpoint.config().clone();
        Self::with_weights(config, backend, &mut FromCheckpoint { checkpoint, policy })
    }

    /// A model of `config` with weights from anywhere: the parts and shapes that
    /// [`ModelConfig::tensors`] lists.
    ///
    /// # Errors
    /// What `weights` or the backend refuses.
    pub fn with_weights(
        config: ModelConfig,
        backend: &B,
        weights: &mut dyn Weights<B>,
    ) -> Result<Self> {
        let mut layers = Vec::with_capacity(config.layers);
        for (i, spec) in config.specs().iter().enumerate() {
            let Mixer::Attention(attention) = &spec.mixer;
            let Mlp::Gated(mlp) = &spec.mlp;
            let place = (i, spec.kv, config.hidden);
            let attention = AttentionBlock::load(attention, place, backend, weights)?;
            layers.push(Layer { attention, mlp: GatedMlp::load(mlp, i, backend, weights)? });
        }
        let head = match config.tied {
            true => None,
            false => Some(weights.matrix(backend, None, &[Part::Head])?),
        };
        Ok(Self {
            embedding: weights.matrix(backend, None, &[Part::Embedding])?,
            layers,
            norm: weights.vector(backend, None, &[Part::FinalNorm])?,
            head,
            group_sizes: group_sizes(&config),
            config,
        })
    }

    /// The model's numbers.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Bytes that the weight matrices keep resident.
    pub fn weight_bytes(&self, backend: &B) -> u64 {
        let of = |l: &'_ Layer<B>| {
            let Layer { attention, mlp } = l;
            [&attention.qkv, &attention.output, &mlp.gate_up, &mlp.down]
                .map(|matrix| backend.matrix_bytes(matrix))
                .iter()
                .sum::<u64>()
        };
        let ends = [&self.embedding].into_iter().chain(&self.head);
        self.layers.iter().map(of).sum::<u64>()
            + ends.map(|matrix| backend.matrix_bytes(matrix)).sum::<u64>()
    }

    /// Begins a step, whose rows passes compute.
    ///
    /// # Errors
    /// [`Error::Misuse`] for tokens that do not fit the step or the vocabulary; what the
    /// backend refuses.
    pub fn begin(
        &self,
        backend: &mut B,
        arena: &mut B::Arena,
        ws: &mut Workspace<B>,
        input: &StepInput<'_>,
    ) -> Result<()> {
        ws.hidden_rows = 0;
        ws.progress = PassProgress::default();
        let seqs = &input.step.seqs;
        let rows = seqs.iter().map(|s| s.new_tokens).sum::<usize>();
        if rows != input.tokens.len() {
            let what = format!("{} for a step of {rows} rows", input.tokens.len());
            return Err(Error::misuse("tokens", what));
        }
        let vocab = self.config.vocab;
        let unknown = input.tokens.iter().find_map(|token| match *token {
            RowToken::Given(id) if id as usize >= vocab => Some(id),
            _ => None,
        });
        if let Some(id) = unknown {
            return Err(Error::misuse("tokens", format!("token {id} is not below {vocab}")));
        }
        backend.begin(arena, input)?;
        let single = seqs.iter().all(|seq| seq.new_tokens == 1);
        ws.progress = PassProgress { wanted: input.rows.len(), single, ..PassProgress::default() };
        Ok(())
    }

    /// Runs the step in hand through layers.
    ///
    /// # Errors
    /// [`Error::Misuse`] for layers that do not follow those of the last pass; what the
    /// backend or the observer refuses.
    pub fn forward(
        &self,
        backend: &mut B,
        arena: &mut B::Arena,
        ws: &mut Workspace<B>,
        pass: &mut Pass<'_>,
    ) -> Result<()> {
        let Pass { layers, tail, .. } = pass;
        let (layers, tail) = (layers.clone(), *tail);
        let PassProgress { wanted, next, pending, .. } = ws.progress;
        if layers.start != next || layers.end < next || layers.end > self.layers.len() {
            let n = self.layers.len();
            let what = format!("{layers:?}; the next pass begins at {next}, of {n} layers");
            return Err(Error::misuse("layers", what));
        }
        match &mut pass.observer {
            Some(observer) => self.run(backend, arena, ws, &layers, Some(*observer), tail)?,
            None => {
                let key =
                    GraphKey { owner: ws.id, layers: layers.clone(), pending, tail: tail.name() };
                backend.repeat(arena, &key, |backend, arena| {
                    self.run(backend, arena, ws, &layers, None, tail)
                })?;
            }
        }
        // A repeated work does not come by here on the host, so what it leaves is said now.
        ws.progress.next = layers.end;
        ws.progress.pending = tail == Tail::Nothing && (pending || !layers.is_empty());
        ws.hidden_rows = if tail == Tail::Hidden { wanted } else { 0 };
        match tail {
            Tail::Draw => backend.send(arena),
            _ => Ok(()),
        }
    }

    fn run(
        &self,
        backend: &mut B,
        arena: &mut B::Arena,
        ws: &mut Workspace<B>,
        layers: &Range<usize>,
        mut observer: Option<&mut (dyn super::Observer + '_)>,
        tail: Tail,
    ) -> Result<()> {
        let eps = self.config.norm_eps;
        let mut pending = ws.progress.pending;
        if layers.start == 0 {
            backend.embed(arena, &self.embedding, self.config.embedding_scale, &mut ws.x)?;
            if ws.progress.single {
                for (group, &layers) in self.group_sizes.iter().enumerate() {
                    backend.seal(arena, group, 0..layers)?;
                }
            }
        }
        for layer in &self.layers[layers.clone()] {
            layer.attention.write(backend, arena, ws, eps, pending)?;
            let observer = observer.as_deref_mut();
            layer.attention.attend(backend, arena, ws, eps, observer)?;
            layer.mlp.forward(backend, ws, eps)?;
            pending = true;
        }
        match tail {
            Tail::Nothing => Ok(()),
            Tail::KvOnly => {
                for layer in &self.layers[layers.end..] {
                    layer.attention.write(backend, arena, ws, eps, pending)?;
                    pending = false;
                }
                Ok(())
            }
            Tail::Hidden | Tail::Draw => {
                let delta = pending.then_some(&ws.delta);
                backend.rms_norm(&mut ws.x, delta, &self.norm, eps, &mut ws.normed)?;
                backend.select(arena, &ws.normed, &mut ws.hidden)?;
                if tail == Tail::Hidden {
                    return Ok(());
                }
                backend.matmul_f32(self.head(), &mut ws.hidden, &mut ws.logits)?;
                backend.sample(arena, &mut ws.logits)
            }
        }
    }

    /// Logits of the hidden states that the last pass left ([`Tail::Hidden`]), rows
    /// `range` of them: calls `f(row, logits)` with `vocab` logits each.
    ///
    /// # Errors
    /// [`Error::Misuse`] for rows that it did not leave; what `f` returns.
    pub fn logits(
        &self,
        backend: &B,
        ws: &mut Workspace<B>,
        range: Range<usize>,
        f: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        if range.end > ws.hidden_rows {
            let what = format!("{range:?} of {} hidden states", ws.hidden_rows);
            return Err(Error::misuse("rows", what));
        }
        backend.rows(&ws.hidden, range.clone(), &mut ws.wanted)?;
        backend.matmul_f32(self.head(), &mut ws.wanted, &mut ws.logits)?;
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

#[cfg(test)]
#[path = "graph_tests.rs"]
mod tests;
