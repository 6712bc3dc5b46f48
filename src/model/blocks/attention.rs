//! Grouped-query attention.

use super::residual::contribute;
use crate::backend::{Attend, Backend, LayerIndex};
use crate::error::Result;
use crate::model::observe::{Observer, Seen};
use crate::model::spec::AttentionSpec;
use crate::model::workspace::Workspace;
use crate::model::{Part, Weights};

/// Projections, norms and what the KV cache does between them.
pub(crate) struct AttentionBlock<B: Backend> {
    spec: AttentionSpec,
    /// Layer of the model.
    layer: usize,
    kv: LayerIndex,
    hidden: usize,
    pub norm: B::Vector,
    /// q, k and v stacked by rows; q alone where keys and values are another layer's.
    pub qkv: B::Matrix,
    bias: Option<B::Vector>,
    q_norm: Option<B::Vector>,
    k_norm: Option<B::Vector>,
    pub output: B::Matrix,
    post_norm: Option<B::Vector>,
}

impl<B: Backend> AttentionBlock<B> {
    pub fn load(
        spec: &AttentionSpec,
        (layer, kv, hidden): (usize, LayerIndex, usize),
        backend: &B,
        weights: &mut dyn Weights<B>,
    ) -> Result<Self> {
        let at = Some(layer);
        let own = if spec.own_kv { 3 } else { 1 };
        let qkv = weights.matrix(backend, at, &[Part::Query, Part::Key, Part::Value][..own])?;
        let output = weights.matrix(backend, at, &[Part::Output])?;
        let mut vector = |there: bool, parts: &[Part]| match there {
            true => weights.vector(backend, at, parts).map(Some),
            false => Ok(None),
        };
        let biases = &[Part::QueryBias, Part::KeyBias, Part::ValueBias][..own];
        let bias = vector(spec.bias, biases)?;
        let q_norm = vector(spec.head_norm, &[Part::QueryNorm])?;
        let k_norm = vector(spec.head_norm && spec.own_kv, &[Part::KeyNorm])?;
        let post_norm = vector(spec.post_norm, &[Part::AttentionPostNorm])?;
        let norm = weights.vector(backend, at, &[Part::AttentionNorm])?;
        let spec = spec.clone();
        Ok(Self { spec, layer, kv, hidden, norm, qkv, bias, q_norm, k_norm, output, post_norm })
    }

    /// From the residual stream to queries, keys and values in `ws.qkv` and in the cache.
    /// `pending`: the last block's contribution is still to be added.
    pub fn write(
        &self,
        backend: &mut B,
        arena: &mut B::Arena,
        ws: &mut Workspace<B>,
        eps: f32,
        pending: bool,
    ) -> Result<()> {
        let AttentionSpec { heads, kv_heads, head_dim, own_kv, .. } = self.spec;
        let delta = pending.then_some(&ws.delta);
        backend.rms_norm(&mut ws.x, delta, &self.norm, eps, &mut ws.normed)?;
        backend.matmul(&self.qkv, &mut ws.normed, &mut ws.qkv)?;
        if let Some(bias) = &self.bias {
            backend.add_bias(&mut ws.qkv, bias)?;
        }
        if let Some(norm) = &self.q_norm {
            backend.head_norm(&mut ws.qkv, 0, heads, norm, eps)?;
        }
        if let Some(norm) = &self.k_norm {
            backend.head_norm(&mut ws.qkv, heads * head_dim, kv_heads, norm, eps)?;
        }
        if !own_kv {
            return backend.rotate(arena, self.kv, heads, &mut ws.qkv);
        }
        backend.append(arena, self.kv, heads, false, &mut ws.qkv)?;
        // Single tokens seal only pages that earlier steps have filled: see `Graph`.
        if ws.progress.single {
            return Ok(());
        }
        backend.seal(arena, self.kv.group, self.kv.layer..self.kv.layer + 1)
    }

    /// From `ws.qkv` to its contribution in `ws.delta`.
    pub fn attend(
        &self,
        backend: &mut B,
        arena: &mut B::Arena,
        ws: &mut Workspace<B>,
        eps: f32,
        observer: Option<&mut (dyn Observer + '_)>,
    ) -> Result<()> {
        let AttentionSpec { heads, head_dim, scale, window, .. } = self.spec;
        let call = Attend { at: self.kv, heads, scale, causal: true, window };
        let scores = observer.as_ref().is_some_and(|observer| observer.scores(self.layer));
        let lse = scores.then_some(&mut ws.lse);
        backend.attend(arena, &call, &ws.qkv, &mut ws.attended, lse)?;
        let norm = self.post_norm.as_ref();
        let Workspace { attended, wide, delta, .. } = ws;
        contribute(backend, &self.output, norm, eps, attended, wide, delta)?;
        if let Some(observer) = observer {
            observer.attended(&mut Seen {
                layer: self.layer,
                hidden: self.hidden,
                call: &call,
                backend: &mut *backend,
                arena,
                qkv: &ws.qkv,
                lse: scores.then_some(&ws.lse),
                residual: &ws.x,
                output: &self.output,
                scratch: &mut ws.scratch,
                width: heads * head_dim,
            })?;
        }
        Ok(())
    }
}
