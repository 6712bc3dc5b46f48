//! The options that choose a model, shared by the subcommands.

use crate::fetch::fetch_named;
use crate::size;
use crate::terminal::{note, say};
use anyhow::{Result, anyhow, bail};
use clap::builder::RangedI64ValueParser;
use clap::{Args, ValueEnum};
use kvfold::backend::WeightPolicy;
use kvfold::backend::cpu::THREADS;
use kvfold::backend::driver::Device;
use kvfold::codec::Codec;
use kvfold::engine::{DeviceChoice, EngineConfig, LoadOptions, LoadedModel, MemoryPlan};
use kvfold::fetch::{DEFAULT_MODEL, FetchOptions, Repository};
use kvfold::model::{Checkpoint, ContextOptions, RopeStretch};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Which model, and how its weights are kept.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// A GGUF file, a Hugging Face folder, OWNER/NAME of the hub, a name from `kvfold models`, or a manifest (.toml)
    #[arg(short, long, default_value = DEFAULT_MODEL)]
    pub model: String,

    /// Where to compute: auto, cpu, cuda or cuda:N; auto takes the first GPU with driver, kernels and cuBLASLt
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,

    /// 16-bit type of weights and activations on a GPU [default: bf16 if the file is, else f16]
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,

    /// Storage of the weights in memory
    #[arg(long, value_enum, default_value_t = WeightsArg::Auto)]
    pub weights: WeightsArg,

    /// Threads to use [default: all cores]
    #[arg(short, long, value_parser = thread_counts())]
    pub threads: Option<u16>,

    #[command(flatten)]
    pub rope: RopeArgs,
}

/// How rope is stretched beyond the context that a model was trained for.
#[derive(Debug, Args)]
pub struct RopeArgs {
    /// Stretch the model's rope: none, linear or yarn [default: as the model's file says]
    #[arg(long, value_name = "KIND")]
    pub rope_scaling: Option<RopeStretch>,

    /// How many times the original context the model is to hold
    #[arg(long, visible_alias = "rope-scale", value_name = "FACTOR")]
    pub rope_factor: Option<f32>,

    /// Tokens that the model was trained for [default: as the model's file says]
    #[arg(long, value_name = "TOKENS")]
    pub rope_original_context: Option<usize>,
}

/// The option `--context` of subcommands that have no other of this name.
#[derive(Debug, Args)]
pub struct ContextArgs {
    /// Tokens that prompt and answer may have together [default: all that the model holds]
    #[arg(short, long, visible_alias = "ctx-size", value_name = "TOKENS")]
    pub context: Option<usize>,
}

/// What `--threads` may be.
pub fn thread_counts() -> RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(*THREADS.start() as i64..=*THREADS.end() as i64)
}

/// The names of [`WeightPolicy`].
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum WeightsArg {
    /// On the CPU types without a fast product become Q8_0, on a GPU all become 16-bit
    Auto,
    /// The file's own types, which a GPU must have
    Keep,
    /// f32: slow, for comparisons
    F32,
}

/// The 16-bit types of a GPU.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Dtype {
    /// IEEE half precision
    F16,
    /// bfloat16
    Bf16,
}

impl From<Dtype> for Codec {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F16 => Codec::F16,
            Dtype::Bf16 => Codec::Bf16,
        }
    }
}

impl From<WeightsArg> for WeightPolicy {
    fn from(weights: WeightsArg) -> Self {
        match weights {
            WeightsArg::Auto => WeightPolicy::Auto,
            WeightsArg::Keep => WeightPolicy::Keep,
            WeightsArg::F32 => WeightPolicy::F32,
        }
    }
}

impl ModelArgs {
    /// The model's file or folder, fetched if it is known by name.
    pub fn path(&self, cancel: &Arc<AtomicBool>) -> Result<PathBuf> {
        model_path(&self.model, cancel)
    }

    /// Finds, fetches and opens the model, for `context` tokens if that is said. What a user
    /// should know of its files is said on stderr.
    pub fn checkpoint(
        &self,
        context: Option<usize>,
        cancel: &Arc<AtomicBool>,
    ) -> Result<Checkpoint> {
        let mut options = ContextOptions::default();
        options.context = context;
        options.stretch = self.rope.rope_scaling;
        options.factor = self.rope.rope_factor;
        options.original = self.rope.rope_original_context;
        let checkpoint = Checkpoint::open(self.path(cancel)?)?.with_context(&options)?;
        for warning in checkpoint.warnings() {
            say(format_args!("warning: {warning}"));
        }
        Ok(checkpoint)
    }

    /// As [`load_for`](Self::load_for) all the context that the model holds.
    pub fn load(&self, config: &EngineConfig, cancel: &Arc<AtomicBool>) -> Result<LoadedModel> {
        self.load_for(None, config, cancel)
    }

    /// Finds, fetches and loads the model. What it and the cache of `config` take of a
    /// GPU is said on stderr first.
    pub fn load_for(
        &self,
        context: Option<usize>,
        config: &EngineConfig,
        cancel: &Arc<AtomicBool>,
    ) -> Result<LoadedModel> {
        let options = LoadOptions::default()
            .with_weights(self.weights.into())
            .with_element(self.dtype.map(Codec::from));
        // What is wrong with the device is said before anything is fetched.
        let device = self.device.open()?;
        let checkpoint = self.checkpoint(context, cancel)?;
        if let Some(device) = &device {
            let element = options.element_of(&checkpoint);
            let plan = MemoryPlan::new(&checkpoint, device, element, config)?;
            say(describe(&plan, device));
        } else if self.dtype.is_some() {
            note("--dtype is without effect: it is of a GPU, and this is the CPU");
        }
        Ok(LoadedModel::load(&checkpoint, device.as_ref(), &options)?)
    }
}

/// Says once on stderr what the first of these configurations, of which there is something to
/// say, costs with this model.
pub fn warn_of_outliers<'a>(
    model: &LoadedModel,
    configs: impl IntoIterator<Item = &'a EngineConfig>,
) -> Result<()> {
    for config in configs {
        if let Some(warning) = model.kv_warning(config)? {
            say(format_args!("warning: {warning}"));
            break;
        }
    }
    Ok(())
}

/// The file or folder of a model, fetched if it is known by name.
pub fn model_path(model: &str, cancel: &Arc<AtomicBool>) -> Result<PathBuf> {
    let path = PathBuf::from(model);
    let is_manifest = path.extension().is_some_and(|e| e == "toml");
    if path.exists() && !is_manifest {
        return Ok(path);
    }
    let named = Repository::parse(model);
    let looks_like_path = model.contains(std::path::MAIN_SEPARATOR)
        || path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    let is_name = named.is_some() || is_manifest || model.starts_with("ollama:");
    if looks_like_path && !is_name {
        bail!(
            "{model}: no such file or folder; give a GGUF file, a Hugging Face folder, OWNER/NAME of the hub, or a name from `kvfold models`"
        );
    }
    let mut options = FetchOptions::from_env()?;
    options.cancel = cancel.clone();
    fetch_named(model, &options).map_err(|error| match (&named, error.downcast_ref()) {
        // It may have been meant as a path.
        (Some(_), Some(kvfold::Error::Fetch { .. })) => {
            anyhow!("{model}: no such file or folder here; {error}")
        }
        _ => error,
    })
}

fn describe(plan: &MemoryPlan, device: &Device) -> String {
    let part = match plan.kv_budget < plan.kv_whole {
        true => format!(" of {} for the whole context", size::show(plan.kv_whole)),
        false => String::new(),
    };
    format!(
        "{}: {} of weights, up to {} of KV{part}; {} are free",
        device.info().name,
        size::show(plan.weights),
        size::show(plan.kv_budget),
        size::show(plan.free)
    )
}
