//! How much memory a model and its cache take, known before anything is loaded.

use super::config::EngineConfig;
use crate::backend::driver::Device;
use crate::backend::{KvGroup, WeightPolicy};
use crate::cache::KvCache;
use crate::codec::Codec;
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Fingerprint, KvOptions, ModelConfig, cache_config, kv_groups};

/// Which model a cache is for.
pub(super) struct Identity<'a> {
    pub config: &'a ModelConfig,
    pub name: &'a str,
    pub fingerprint: &'a Fingerprint,
}

/// The KV cache that a configuration asks for.
pub(super) struct KvPlan {
    pub options: KvOptions,
    pub groups: Vec<KvGroup>,
    /// Bytes that it may hold.
    pub budget: u64,
    /// Bytes that the model's whole context takes.
    pub whole: u64,
}

impl KvPlan {
    /// For a model on a device that computes in `element` and has `free` bytes, if that
    /// is so; `mixed`: it takes a format of each head.
    pub fn new(
        of: Identity<'_>,
        config: &EngineConfig,
        element: Option<Codec>,
        mixed: bool,
        free: Option<u64>,
    ) -> Result<Self> {
        config.validate()?;
        let model = of.config;
        let options = fit(config.kv_options_of(of.fingerprint, mixed)?, element)?;
        if let Some(calibration) = &options.calibration {
            calibration.check(of.name, of.fingerprint, model.layers, model.kv_heads)?;
        }
        let groups = kv_groups(model, &options);
        let unlimited = KvCache::new(cache_config(&groups, u64::MAX))?;
        let whole = unlimited.bytes_within(model.context, config.prefill_chunk);
        // Activations need a share, too.
        let room = free.map(|free| free - free.div_ceil(10));
        let budget = match (config.kv_budget, room.zip(free)) {
            (Some(bytes), Some((room, free))) if bytes > room => {
                let needed = bytes.saturating_add(free - room);
                return Err(Error::DeviceOutOfMemory { needed, free });
            }
            (Some(bytes), _) => bytes,
            (None, Some((room, _))) => whole.min(room),
            (None, None) => whole,
        };
        Ok(Self { options, groups, budget, whole })
    }
}

/// The options with pages in the one 16-bit type of a device, if it has one.
fn fit(options: KvOptions, element: Option<Codec>) -> Result<KvOptions> {
    let format = options.format;
    match element {
        Some(element) if element != format.hot() => {
            if [format.key, format.value].iter().any(|codec| codec.is_16_bit()) {
                let what = format!(
                    "{format} on a device that computes in {element}; use {element} or fewer bits"
                );
                return Err(Error::config("kv", what));
            }
            Ok(KvOptions { format: format.with_hot(element)?, ..options })
        }
        _ => Ok(options),
    }
}

/// What a model and its cache will take of a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// Bytes of the weights.
    pub weights: u64,
    /// Bytes that the KV cache may hold.
    pub kv_budget: u64,
    /// Bytes of KV that the model's whole context takes.
    pub kv_whole: u64,
    /// Bytes that are free now.
    pub free: u64,
}

impl MemoryPlan {
    /// Plans weights of 16-bit type `element` ([`element_of`](super::LoadOptions::element_of))
    /// and a cache.
    ///
    /// # Errors
    /// [`Error::DeviceOutOfMemory`] if the weights, or weights and budget, exceed what is
    /// free; [`Error::Config`].
    pub fn new(
        checkpoint: &Checkpoint,
        device: &Device,
        element: Codec,
        config: &EngineConfig,
    ) -> Result<Self> {
        let free = device.memory()?.free;
        let weights = weight_bytes(checkpoint);
        let left = free.checked_sub(weights);
        let left = left.ok_or(Error::DeviceOutOfMemory { needed: weights, free })?;
        let (name, fingerprint) = (checkpoint.name(), &checkpoint.fingerprint()?);
        let of = Identity { config: checkpoint.config(), name, fingerprint };
        let plan = match KvPlan::new(of, config, Some(element), false, Some(left)) {
            Err(Error::DeviceOutOfMemory { needed, .. }) => {
                let needed = needed.saturating_add(weights);
                return Err(Error::DeviceOutOfMemory { needed, free });
            }
            other => other?,
        };
        Ok(Self { weights, kv_budget: plan.budget, kv_whole: plan.whole, free })
    }
}

/// Bytes of all tensors in a 16-bit type.
pub(super) fn weight_bytes(checkpoint: &Checkpoint) -> u64 {
    let types = checkpoint.dtypes();
    let blocks = |t: &crate::model::DtypeCount| t.bytes / t.dtype.block_bytes() as u64;
    types.iter().map(|t| blocks(t) * t.dtype.block_size() as u64 * 2).sum()
}

/// Bytes that the KV cache of `config` holds for one sequence of `tokens`.
///
/// # Errors
/// [`Error::Config`].
pub fn cache_bytes(model: &ModelConfig, config: &EngineConfig, tokens: usize) -> Result<u64> {
    let options = config.kv_options()?;
    if options.calibration.as_ref().is_some_and(|c| !c.covers(model.layers, model.kv_heads)) {
        return Err(Error::config("kv", "the calibration was made for another model"));
    }
    let groups = kv_groups(model, &options);
    let cache = KvCache::new(cache_config(&groups, u64::MAX))?;
    Ok(cache.bytes_within(tokens, config.prefill_chunk))
}

/// An estimate from above of the bytes that a checkpoint's weights keep resident on the
/// CPU: each in its own type or as Q8_0 with padded rows, whichever is larger.
pub fn resident_weights(checkpoint: &Checkpoint, policy: WeightPolicy) -> u64 {
    let numbers = weight_bytes(checkpoint) / 2;
    let stored = checkpoint.file_bytes();
    match policy {
        WeightPolicy::F32 => numbers * 4,
        WeightPolicy::Keep => stored + stored / 3,
        WeightPolicy::Auto => stored.max(numbers * 34 / 32) * 4 / 3,
    }
}
