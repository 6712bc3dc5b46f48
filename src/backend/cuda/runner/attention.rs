//! The attention layers that a model has used, and the memory that they share.

use crate::backend::cuda::attend::{AttendScratch, Attention, AttentionShape, Limits};
use crate::backend::cuda::tables::Sizes;
use crate::backend::driver::DeviceStream;
use crate::backend::{Attend, KvGroup};
use crate::error::Result;

/// Attention by shape. A model has one shape, or one for each kind of layer.
#[derive(Default)]
pub(super) struct Layers {
    layers: Vec<Layer>,
}

pub(super) struct Layer {
    pub attention: Attention,
    pub scratch: AttendScratch,
    /// The KV group of the step in hand for whose tables the scratch holds a plan.
    pub planned: Option<usize>,
}

impl Layers {
    /// The attention of a call, with memory for `needed`.
    pub fn get(
        &mut self,
        shape: AttentionShape,
        needed: Limits,
        stream: &DeviceStream,
    ) -> Result<&mut Layer> {
        let known = self.layers.iter().position(|layer| *layer.attention.shape() == shape);
        let at = match known {
            Some(at) => at,
            None => {
                let attention = Attention::new(stream.device(), shape)?;
                let scratch = attention.scratch(rounded(needed))?;
                self.layers.push(Layer { attention, scratch, planned: None });
                self.layers.len() - 1
            }
        };
        self.layers[at].reserve(needed, stream)?;
        Ok(&mut self.layers[at])
    }

    /// Makes room in all layers for a step that begins, so that no call of it has to.
    pub fn reserve(&mut self, needed: Limits, stream: &DeviceStream) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| layer.reserve(needed, stream))
    }

    /// Lets every layer plan anew.
    pub fn forget_plans(&mut self) {
        self.layers.iter_mut().for_each(|layer| layer.planned = None);
    }
}

impl Layer {
    fn reserve(&mut self, needed: Limits, stream: &DeviceStream) -> Result<()> {
        let has = self.scratch.limits();
        let enough = needed.seqs <= has.seqs
            && needed.generated_rows <= has.generated_rows
            && needed.tokens <= has.tokens;
        if !enough {
            // Kernels may still use the old one.
            stream.synchronize()?;
            let most = Limits {
                seqs: needed.seqs.max(has.seqs),
                generated_rows: needed.generated_rows.max(has.generated_rows),
                tokens: needed.tokens.max(has.tokens),
            };
            // If that fails, the old one stays, with its limits.
            self.scratch = self.attention.scratch(rounded(most))?;
            self.planned = None;
        }
        Ok(())
    }
}

/// What a call over tables of these sizes asks of its scratch.
pub(super) fn limits(sizes: &Sizes) -> Limits {
    Limits { seqs: sizes.seqs, generated_rows: sizes.generated_rows, tokens: sizes.tokens }
}

/// Up to powers of two, so that it grows seldom.
fn rounded(limits: Limits) -> Limits {
    Limits {
        seqs: limits.seqs.next_power_of_two(),
        generated_rows: limits.generated_rows.next_power_of_two(),
        tokens: limits.tokens.next_power_of_two(),
    }
}

/// The shape of a call.
pub(super) fn shape(call: &Attend, group: &KvGroup) -> AttentionShape {
    AttentionShape {
        head_dim: group.head_dim(),
        heads: call.heads,
        kv_heads: group.kv_heads,
        format: group.format,
        sinks: group.sinks,
        hot_window: group.hot_window,
        causal: call.causal,
        window: call.window,
        scale: call.scale,
    }
}
