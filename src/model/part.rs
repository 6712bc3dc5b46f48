//! The tensors that models are made of, by what they are for.

/// What a tensor is for. Which names it has in files is the architecture's to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Part {
    /// The embedding table.
    Embedding,
    /// The norm after the last layer.
    FinalNorm,
    /// The output layer, where it is not the embedding.
    Head,
    /// The norm before attention.
    AttentionNorm,
    /// Projection of queries.
    Query,
    /// Projection of keys.
    Key,
    /// Projection of values.
    Value,
    /// What is added to queries.
    QueryBias,
    /// What is added to keys.
    KeyBias,
    /// What is added to values.
    ValueBias,
    /// Norm of each query head.
    QueryNorm,
    /// Norm of each key head.
    KeyNorm,
    /// Output projection of attention.
    Output,
    /// The norm after attention, before it joins the residual stream.
    AttentionPostNorm,
    /// The norm before the MLP.
    MlpNorm,
    /// The MLP's gate.
    Gate,
    /// The MLP's other input projection.
    Up,
    /// The MLP's output projection.
    Down,
    /// The norm after the MLP, before it joins the residual stream.
    MlpPostNorm,
}

impl Part {
    /// Whether every layer has one.
    pub const fn of_layers(self) -> bool {
        !matches!(self, Self::Embedding | Self::FinalNorm | Self::Head)
    }

    /// Whether it is the weight of an RMS norm.
    pub const fn is_norm(self) -> bool {
        use Part::{
            AttentionNorm, AttentionPostNorm, FinalNorm, KeyNorm, MlpNorm, MlpPostNorm, QueryNorm,
        };
        matches!(
            self,
            FinalNorm
                | AttentionNorm
                | QueryNorm
                | KeyNorm
                | AttentionPostNorm
                | MlpNorm
                | MlpPostNorm
        )
    }
}

/// A tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// What it is for.
    pub part: Part,
    /// In which layer.
    pub layer: Option<usize>,
    /// Hugging Face's name.
    pub name: String,
    /// Row-major; a linear layer is `[out, in]`.
    pub shape: Vec<usize>,
}
