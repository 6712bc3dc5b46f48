//! The gated MLP.

use super::residual::contribute;
use crate::backend::Backend;
use crate::error::Result;
use crate::model::spec::GatedSpec;
use crate::model::workspace::Workspace;
use crate::model::{Part, Weights};

/// `down(f(gate(x)) · up(x))`, between its norms.
pub(crate) struct GatedMlp<B: Backend> {
    spec: GatedSpec,
    pub norm: B::Vector,
    /// gate and up stacked by rows.
    pub gate_up: B::Matrix,
    pub down: B::Matrix,
    post_norm: Option<B::Vector>,
}

impl<B: Backend> GatedMlp<B> {
    pub fn load(
        spec: &GatedSpec,
        layer: usize,
        backend: &B,
        weights: &mut dyn Weights<B>,
    ) -> Result<Self> {
        let at = Some(layer);
        let post_norm = match spec.post_norm {
            true => Some(weights.vector(backend, at, &[Part::MlpPostNorm])?),
            false => None,
        };
        Ok(Self {
            norm: weights.vector(backend, at, &[Part::MlpNorm])?,
            gate_up: weights.matrix(backend, at, &[Part::Gate, Part::Up])?,
            down: weights.matrix(backend, at, &[Part::Down])?,
            post_norm,
            spec: spec.clone(),
        })
    }

    /// From the residual stream, to which the last block's contribution is still to be
    /// added, to its own contribution in `ws.delta`.
    pub fn forward(&self, backend: &mut B, ws: &mut Workspace<B>, eps: f32) -> Result<()> {
        backend.rms_norm(&mut ws.x, Some(&ws.delta), &self.norm, eps, &mut ws.normed)?;
        backend.matmul(&self.gate_up, &mut ws.normed, &mut ws.gate_up)?;
        backend.gate(self.spec.activation, &ws.gate_up, &mut ws.activated)?;
        let norm = self.post_norm.as_ref();
        let Workspace { activated, wide, delta, .. } = ws;
        contribute(backend, &self.down, norm, eps, activated, wide, delta)
    }
}
