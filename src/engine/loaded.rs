//! A model, its tokenizer and its template, ready for an engine.

use super::config::{AUTO, EngineConfig};
use super::device::DeviceChoice;
use super::memory::weight_bytes;
use crate::backend::WeightPolicy;
use crate::backend::cpu::CpuBackend;
use crate::backend::cuda::element::Element;
use crate::backend::cuda::runner::CudaBackend;
use crate::backend::driver::Device;
use crate::codec::Codec;
use crate::error::{Error, Result};
use crate::model::{
    ChatTemplate, Checkpoint, Fingerprint, KeyOutlier, KvOptions, Model, Placed, TokenTexts,
    Tokenizer, WeightType,
};
use half::{bf16, f16};
use std::path::Path;
use std::sync::Arc;

/// Where a model is loaded to, and how.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct LoadOptions {
    /// The device.
    pub device: DeviceChoice,
    /// What is done to storage types.
    pub weights: WeightPolicy,
    /// The 16-bit type of weights, activations and new pages on a GPU, [`Codec::F16`] or
    /// [`Codec::Bf16`]; `None`: bf16 if the file's matrices are, else f16.
    pub element: Option<Codec>,
}

impl LoadOptions {
    /// Sets the device.
    pub fn with_device(mut self, device: DeviceChoice) -> Self {
        self.device = device;
        self
    }

    /// Sets what is done to storage types.
    pub fn with_weights(mut self, weights: WeightPolicy) -> Self {
        self.weights = weights;
        self
    }

    /// Sets the 16-bit type on a GPU.
    pub fn with_element(mut self, element: Option<Codec>) -> Self {
        self.element = element;
        self
    }

    /// The 16-bit type in which a checkpoint is computed on a GPU.
    pub fn element_of(&self, checkpoint: &Checkpoint) -> Codec {
        self.element.unwrap_or_else(|| match checkpoint.dtypes().first() {
            Some(most) if most.dtype == WeightType::BF16 => Codec::Bf16,
            _ => Codec::F16,
        })
    }
}

/// Weights on a device, the tokenizer and the chat template of a checkpoint.
pub struct LoadedModel {
    /// The weights, and where the arithmetic happens.
    pub(super) placed: Box<dyn Model>,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// How a conversation becomes one prompt; `None` for base models. One that does not
    /// compile says so when it renders.
    pub template: Option<Arc<ChatTemplate>>,
    /// Texts of the special tokens, for another template.
    pub token_texts: TokenTexts,
    /// The checkpoint's own name.
    pub name: String,
    /// [`Checkpoint::fingerprint`].
    pub fingerprint: Fingerprint,
    /// A key bias that uncalibrated kf formats cannot hold.
    pub key_outlier: Option<KeyOutlier>,
}

impl LoadedModel {
    /// Opens and loads a GGUF file or a Hugging Face folder on the CPU.
    ///
    /// # Errors
    /// Whatever [`Checkpoint::open`] and its readers report.
    pub fn open(path: impl AsRef<Path>, policy: WeightPolicy) -> Result<Self> {
        Self::open_with(path, &LoadOptions::default().with_weights(policy))
    }

    /// Opens and loads a GGUF file or a Hugging Face folder.
    ///
    /// # Errors
    /// As [`open`](Self::open), and why the device cannot be used, or not for this model.
    pub fn open_with(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        let device = options.device.open()?;
        Self::load(&Checkpoint::open(path)?, device.as_ref(), options)
    }

    /// Loads a checkpoint to a device that is open already, or to the CPU.
    ///
    /// # Errors
    /// As [`open_with`](Self::open_with); [`Error::DeviceOutOfMemory`] before anything is
    /// loaded if the weights exceed the device.
    pub fn load(
        checkpoint: &Checkpoint,
        device: Option<&Device>,
        options: &LoadOptions,
    ) -> Result<Self> {
        let Some(device) = device else {
            let placed = Placed::load(checkpoint, CpuBackend::new(), options.weights)?;
            return Self::new(checkpoint, Box::new(placed));
        };
        let placed = match options.element_of(checkpoint) {
            Codec::F16 => on_device::<f16>(checkpoint, device, options.weights)?,
            Codec::Bf16 => on_device::<bf16>(checkpoint, device, options.weights)?,
            other => {
                let what = format!("{other}; it must be f16 or bf16");
                return Err(Error::config("element", what));
            }
        };
        Self::new(checkpoint, placed)
    }

    fn new(checkpoint: &Checkpoint, placed: Box<dyn Model>) -> Result<Self> {
        let template = checkpoint.chat_template();
        let template = template.unwrap_or_else(|e| Some(ChatTemplate::unusable(&e)));
        Ok(Self {
            placed,
            tokenizer: Arc::new(checkpoint.tokenizer()?),
            template: template.map(Arc::new),
            token_texts: checkpoint.token_texts(),
            name: checkpoint.name().to_owned(),
            fingerprint: checkpoint.fingerprint()?,
            key_outlier: KeyOutlier::find(checkpoint)?,
        })
    }

    /// Tokens that the model was trained to hold.
    pub fn context(&self) -> usize {
        self.placed.config().context
    }

    /// Checks that a prompt and its answer fit the model; gives the tokens of both.
    ///
    /// # Errors
    /// [`Error::ContextTooLong`].
    pub(super) fn check_context(&self, prompt: usize, max_tokens: usize) -> Result<usize> {
        let limit = self.context();
        match prompt.checked_add(max_tokens) {
            Some(tokens) if tokens <= limit => Ok(tokens),
            _ => Err(Error::ContextTooLong { tokens: prompt, limit, reserved: max_tokens }),
        }
    }

    /// Checks that a prompt is one of the model's and fits it with its answer.
    ///
    /// # Errors
    /// [`Error::ContextTooLong`]; [`Error::Config`] for a token outside of the vocabulary.
    pub(super) fn check(&self, prompt: &[u32], max_tokens: usize) -> Result<()> {
        self.check_context(prompt.len(), max_tokens)?;
        let vocab = self.placed.config().vocab;
        match prompt.iter().find(|&&id| id as usize >= vocab) {
            Some(id) => Err(Error::config("prompt", format!("token {id} is not below {vocab}"))),
            None => Ok(()),
        }
    }

    /// How a configuration stores this model's cache.
    ///
    /// # Errors
    /// As [`EngineConfig::kv_options`].
    pub fn kv_options(&self, config: &EngineConfig) -> Result<KvOptions> {
        let mixed = self.placed.capabilities().mixed_formats;
        config.kv_options_of(&self.fingerprint, mixed)
    }

    /// The same in a word or two.
    ///
    /// # Errors
    /// As [`EngineConfig::kv_options`].
    pub fn kv_name(&self, config: &EngineConfig) -> Result<String> {
        let options = self.kv_options(config)?;
        Ok(match (config.kv == AUTO, &options.calibration) {
            (true, Some(_)) => format!("kf at {:.1} bits, calibrated", options.bits()),
            (true, None) => options.format.to_string(),
            (false, _) => config.kv.clone(),
        })
    }

    /// What a user should know who stores this model's cache so, in one line; `None` if there
    /// is nothing to say.
    ///
    /// # Errors
    /// As [`EngineConfig::kv_options`].
    pub fn kv_warning(&self, config: &EngineConfig) -> Result<Option<String>> {
        let Some(outlier) = self.key_outlier else { return Ok(None) };
        let mixed = self.placed.capabilities().mixed_formats;
        Ok(outlier.warning(&config.kv_options_of(&self.fingerprint, mixed)?))
    }

    /// Bytes that the weights keep resident.
    pub fn weight_bytes(&self) -> u64 {
        self.placed.weight_bytes()
    }

    /// The device in words.
    pub fn device(&self) -> String {
        self.placed.capabilities().name
    }
}

fn on_device<T: Element>(
    checkpoint: &Checkpoint,
    device: &Device,
    policy: WeightPolicy,
) -> Result<Box<dyn Model>> {
    let needed = weight_bytes(checkpoint);
    let free = device.memory()?.free;
    if needed > free {
        return Err(Error::DeviceOutOfMemory { needed, free });
    }
    Ok(Box::new(Placed::load(checkpoint, CudaBackend::<T>::new(device)?, policy)?))
}
