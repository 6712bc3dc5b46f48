//! The KV cache of a model: which layers form a group, and what the books must know.

use super::{Calibration, ModelConfig};
use crate::backend::{KvGroup, LayerIndex, StreamFormat};
use crate::cache::{CacheConfig, GroupSpec, SealedBytes};
use crate::codec::KvFormat;
use crate::codec::feedback::Feedback;
use std::sync::Arc;

/// How the KV cache of a model is stored.
#[derive(Clone, Debug)]
pub struct KvOptions {
    /// Format of sealed pages, for every layer.
    pub format: KvFormat,
    /// Formats of the heads, where each has its own; for this model.
    pub calibration: Option<Arc<Calibration>>,
    /// S: tokens at the start that stay in 16 bits.
    pub sinks: usize,
    /// R: tokens that every query sees in 16 bits, a multiple of 64.
    pub hot_window: usize,
}

impl KvOptions {
    /// S = 4, R = 128.
    pub fn new(format: KvFormat) -> Self {
        let hot_window = GroupSpec::DEFAULT_HOT_WINDOW;
        Self { format, calibration: None, sinks: 4, hot_window }
    }

    /// Mean stored bits an element of sealed pages.
    pub fn bits(&self) -> f64 {
        self.calibration.as_ref().map_or(self.format.bits(), |calibration| calibration.bits)
    }
}

/// Where each layer's keys and values are kept: full and sliding layers in groups of
/// their own where a model has both.
pub(super) fn kv_layers(config: &ModelConfig) -> Vec<LayerIndex> {
    let sliding = &config.sliding_layers;
    let mixed = sliding.iter().any(|slides| *slides != sliding[0]);
    let mut sizes = [0, 0];
    let place = |slides: &bool| {
        let group = usize::from(mixed && *slides);
        sizes[group] += 1;
        LayerIndex { group, layer: sizes[group] - 1 }
    };
    sliding.iter().map(place).collect()
}

/// Layers of each KV group.
pub(super) fn group_sizes(config: &ModelConfig) -> Vec<usize> {
    let mut sizes = Vec::new();
    for at in kv_layers(config) {
        sizes.resize(sizes.len().max(at.group + 1), 0);
        sizes[at.group] += 1;
    }
    sizes
}

/// The KV groups of a model.
pub fn kv_groups(config: &ModelConfig, options: &KvOptions) -> Vec<KvGroup> {
    let group = |(index, layers)| KvGroup {
        layers,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        format: options.format,
        streams: options.calibration.as_ref().map(|all| streams(config, all, index)),
        sinks: options.sinks,
        hot_window: options.hot_window,
    };
    group_sizes(config).into_iter().enumerate().map(group).collect()
}

/// The formats of a KV group's streams.
fn streams(config: &ModelConfig, calibration: &Calibration, group: usize) -> Arc<[StreamFormat]> {
    let layers = calibration.layers.iter().zip(&calibration.key_feedback);
    let layers = kv_layers(config).into_iter().zip(layers).filter(|(at, _)| at.group == group);
    let heads = layers.flat_map(|(_, (formats, feedback))| formats.iter().zip(feedback));
    let stream = |(format, feedback): (&KvFormat, &Arc<Feedback>)| StreamFormat {
        format: *format,
        feedback: Some(feedback.clone()),
    };
    heads.map(stream).collect()
}

/// What the cache must know about the groups.
pub fn cache_config(groups: &[KvGroup], budget_bytes: u64) -> CacheConfig {
    let spec = |group: &KvGroup| GroupSpec {
        layers: group.layers,
        kv_heads: group.kv_heads,
        hot_page_bytes: KvFormat::uniform(group.format.hot()).page_bytes(group.head_dim) as u64,
        sealed: group.format.seals().then(|| {
            let (page_bytes, block_bytes) = group.sealed_bytes();
            SealedBytes { page: page_bytes, block: block_bytes }
        }),
        sinks: group.sinks,
        hot_window: group.hot_window,
    };
    CacheConfig { groups: groups.iter().map(spec).collect(), budget_bytes }
}
