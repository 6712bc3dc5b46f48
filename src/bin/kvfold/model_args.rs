//! The options that choose a model, shared by the subcommands.

use crate::fetch::fetch_with_bar;
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use kvfold::backend::WeightPolicy;
use kvfold::engine::LoadedModel;
use kvfold::fetch::{DEFAULT_MODEL, FetchOptions, resolve};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Which model, and how its weights are kept.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// A GGUF file, a Hugging Face folder, a name from `fetch --list`, or a manifest (.toml)
    #[arg(short, long, default_value = DEFAULT_MODEL)]
    pub model: String,

    /// Storage of the weights in memory
    #[arg(long, value_enum, default_value_t = Weights::Auto)]
    pub weights: Weights,

    /// Threads to use [default: all cores]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
}

/// The names of [`WeightPolicy`].
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Weights {
    /// Types without a fast product become Q8_0
    Auto,
    /// The file's own types
    Keep,
    /// f32: slow, for comparisons
    F32,
}

impl From<Weights> for WeightPolicy {
    fn from(weights: Weights) -> Self {
        match weights {
            Weights::Auto => WeightPolicy::Auto,
            Weights::Keep => WeightPolicy::Keep,
            Weights::F32 => WeightPolicy::F32,
        }
    }
}

impl ModelArgs {
    /// The model's file or folder, fetched if it is known by name.
    pub fn path(&self, cancel: &Arc<AtomicBool>) -> Result<PathBuf> {
        let path = PathBuf::from(&self.model);
        let is_manifest = path.extension().is_some_and(|e| e == "toml");
        if path.exists() && !is_manifest {
            return Ok(path);
        }
        let looks_like_path = self.model.contains(std::path::MAIN_SEPARATOR)
            || path.extension().is_some_and(|e| e == "gguf");
        if looks_like_path && !path.exists() {
            bail!(
                "{}: no such file or folder; give a GGUF file, a Hugging Face folder or a name from `kvfold fetch --list`",
                self.model
            );
        }
        let mut options = FetchOptions::from_env()?;
        options.cancel = cancel.clone();
        Ok(fetch_with_bar(&resolve(&self.model)?, &options)?)
    }

    /// Finds, fetches and loads the model.
    pub fn load(&self, cancel: &Arc<AtomicBool>) -> Result<LoadedModel> {
        Ok(LoadedModel::open(self.path(cancel)?, self.weights.into())?)
    }
}
