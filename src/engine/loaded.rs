//! A model, its tokenizer and its template, ready for an engine.

use crate::backend::WeightPolicy;
use crate::backend::cpu::CpuBackend;
use crate::error::Result;
use crate::model::{ChatTemplate, Checkpoint, Llama, Tokenizer};
use std::path::Path;
use std::sync::Arc;

/// Weights on the CPU, the tokenizer and the chat template of a checkpoint.
pub struct LoadedModel {
    /// Where the arithmetic happens.
    pub(super) backend: CpuBackend,
    /// The weights.
    pub(super) model: Llama<CpuBackend>,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// How a conversation becomes one prompt; `None` for base models.
    pub template: Option<Arc<ChatTemplate>>,
    /// The checkpoint's own name.
    pub name: String,
}

impl LoadedModel {
    /// Opens and loads a GGUF file or a Hugging Face folder.
    ///
    /// # Errors
    /// Whatever [`Checkpoint::open`] and its readers report.
    pub fn open(path: impl AsRef<Path>, policy: WeightPolicy) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let tokenizer = Arc::new(checkpoint.tokenizer()?);
        let template = checkpoint.chat_template()?.map(Arc::new);
        let backend = CpuBackend::new();
        let model = Llama::load(&checkpoint, &backend, policy)?;
        Ok(Self { backend, model, tokenizer, template, name: checkpoint.name().to_owned() })
    }

    /// Tokens that the model was trained to hold.
    pub fn context(&self) -> usize {
        self.model.config().context
    }

    /// Bytes that the weights keep resident.
    pub fn weight_bytes(&self) -> u64 {
        self.model.weight_bytes(&self.backend)
    }
}
