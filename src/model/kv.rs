//! The KV cache of a model: which layers form a group, and what the books must know.

use super::spec::LayerSpec;
use super::{Calibration, ModelConfig};
use crate::backend::{Geometry, KvGroup, LayerIndex, Rope, StreamFormat};
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

/// Layers of each KV group.
pub(super) fn group_sizes(config: &ModelConfig) -> Vec<usize> {
    let mut sizes = Vec::new();
    for LayerIndex { group, layer } in config.specs().iter().map(|spec| spec.kv) {
        sizes.resize(sizes.len().max(group + 1), 0);
        sizes[group] = sizes[group].max(layer + 1);
    }
    sizes
}

/// The KV groups of a model.
pub fn kv_groups(config: &ModelConfig, options: &KvOptions) -> Vec<KvGroup> {
    let specs = config.specs();
    let group = |(index, layers): (usize, usize)| {
        let attention = specs.iter().find(|spec| spec.kv.group == index)?.attention();
        Some(KvGroup {
            layers,
            kv_heads: attention.kv_heads,
            geometry: Geometry::gqa(attention.head_dim),
            format: options.format,
            streams: options.calibration.as_ref().map(|all| streams(&specs, all, index)),
            sinks: options.sinks,
            hot_window: options.hot_window,
            rope: Some(Arc::new(Rope { inv_freq: attention.rope.inv_freq() })),
            window: attention.window,
        })
    };
    group_sizes(config).into_iter().enumerate().filter_map(group).collect()
}

/// The formats of a KV group's streams.
fn streams(specs: &[LayerSpec], calibration: &Calibration, group: usize) -> Arc<[StreamFormat]> {
    let layers = calibration.layers.iter().zip(&calibration.key_feedback);
    // A layer that reads what another has written has no streams of its own.
    let own = |spec: &LayerSpec| spec.kv.group == group && spec.attention().own_kv;
    let layers = specs.iter().zip(layers).filter(|(spec, _)| own(spec));
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
        hot_page_bytes: group.geometry.page_bytes(KvFormat::uniform(group.format.hot())) as u64,
        sealed: group.format.seals().then(|| {
            let (page_bytes, block_bytes) = group.sealed_bytes();
            SealedBytes { page: page_bytes, block: block_bytes }
        }),
        sinks: group.sinks,
        hot_window: group.hot_window,
        window: group.window,
    };
    CacheConfig { groups: groups.iter().map(spec).collect(), budget_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Codec;

    #[test]
    fn a_stream_has_the_formats_of_the_layer_that_writes_it() {
        let json = r#"{"model_type": "llama", "vocab_size": 97, "hidden_size": 64,
            "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 64}"#;
        let mut specs = ModelConfig::from_json(json).unwrap().specs();
        let crate::model::Mixer::Attention(second) = &mut specs[1].mixer;
        second.own_kv = false;
        specs[1].kv = specs[0].kv;
        specs[2].kv = LayerIndex { group: 0, layer: 1 };
        let codecs = [[Codec::Kf4, Codec::Kf3], [Codec::Kf2; 2], [Codec::Kf3, Codec::Kf2]];
        let layers = codecs.map(|layer| layer.map(KvFormat::uniform).to_vec()).to_vec();
        let feedback = vec![vec![Arc::new(Feedback::new(&vec![0.0; 64 * 64], 64)); 2]; 3];
        let calibration = Calibration::new("A model", "0", layers, feedback);
        let keys: Vec<Codec> =
            streams(&specs, &calibration, 0).iter().map(|stream| stream.format.key).collect();
        assert_eq!(keys, [codecs[0], codecs[2]].concat());
    }
}
