//! What layers are built of, on any backend: one file a block.

mod attention;
mod mlp;
mod residual;

pub(super) use attention::AttentionBlock;
pub(super) use mlp::GatedMlp;
