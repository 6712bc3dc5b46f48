//! Two layers that name one KV stream.

use super::*;
use crate::backend::cpu::CpuBackend;
use crate::backend::{Kv, LayerIndex, MatrixBytes, Memory};
use crate::cache::KvCache;
use crate::model::spec::LayerSpec;
use crate::model::{KvOptions, WeightType, cache_config, kv_groups};

const JSON: &str = r#"{"model_type": "llama", "vocab_size": 97, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": true}"#;

/// The layers of a Llama, of which the second reads what the first has written.
fn sharing(config: &ModelConfig) -> Vec<LayerSpec> {
    let plain = ModelConfig::from_json(JSON).unwrap();
    let mut layers = plain.arch.layers(config);
    let Mixer::Attention(attention) = &mut layers[1].mixer;
    attention.own_kv = false;
    layers[1].kv = layers[0].kv;
    layers[2].kv = LayerIndex { group: 0, layer: 1 };
    layers
}

/// Weights that a part and a layer decide, but for what layers have in common here.
struct Made<'a> {
    config: &'a ModelConfig,
}

impl Made<'_> {
    fn numbers(&self, layer: Option<usize>, part: Part) -> (Vec<usize>, Vec<f32>) {
        let spec = self.config.tensors().into_iter().find(|t| (t.layer, t.part) == (layer, part));
        let shape = spec.unwrap().shape;
        let n = shape.iter().product::<usize>();
        // Layer 0 adds nothing to the residual stream, so both layers read the same; and
        // they have the same norm, keys and values.
        let zero = layer == Some(0) && matches!(part, Part::Output | Part::Down);
        let common = matches!(part, Part::AttentionNorm | Part::Key | Part::Value);
        let mut state = part as u32 * 977 + if common { 0 } else { layer.map_or(7, |l| l as u32) };
        let mut draw = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if zero { 0.0 } else { (state >> 8) as f32 / (1 << 23) as f32 - 1.0 }
        };
        (shape, (0..n).map(|_| draw()).collect())
    }
}

impl Weights<CpuBackend> for Made<'_> {
    fn matrix(
        &mut self,
        backend: &CpuBackend,
        layer: Option<usize>,
        parts: &[Part],
    ) -> Result<<CpuBackend as Memory>::Matrix> {
        let all: Vec<_> = parts.iter().map(|part| self.numbers(layer, *part)).collect();
        let parts: Vec<_> = (all.iter())
            .map(|(shape, numbers)| MatrixBytes {
                dtype: WeightType::F32,
                rows: shape[0],
                cols: shape[1],
                bytes: bytemuck::cast_slice(numbers),
            })
            .collect();
        backend.matrix(&parts, WeightPolicy::F32)
    }

    fn vector(
        &mut self,
        backend: &CpuBackend,
        layer: Option<usize>,
        parts: &[Part],
    ) -> Result<Vec<f32>> {
        backend.vector(&parts.iter().flat_map(|p| self.numbers(layer, *p).1).collect::<Vec<_>>())
    }
}

/// Bits of the logits of prompts in chunks and of tokens after them.
fn logits(config: ModelConfig, kv: &str) -> (Vec<u32>, u64) {
    let mut backend = CpuBackend::new();
    let numbers = config.clone();
    let graph = Graph::with_weights(config, &backend, &mut Made { config: &numbers }).unwrap();
    let groups = kv_groups(graph.config(), &KvOptions::new(kv.parse().unwrap()));
    let mut cache = KvCache::new(cache_config(&groups, u64::MAX)).unwrap();
    let mut arena = backend.arena(&groups, cache.classes(), u64::MAX).unwrap();
    let mut ws = Workspace::new(&backend).unwrap();
    let (seqs, mut bits) = ([cache.create(), cache.create()], Vec::new());
    for new in [[130, 70], [90, 3], [1, 1], [1, 1]] {
        let step = cache.prepare(&[(seqs[0], new[0]), (seqs[1], new[1])]).unwrap();
        let n = new[0] + new[1];
        let tokens: Vec<_> = (0..n).map(|i| RowToken::Given((i * 31 % 97) as u32)).collect();
        let rows = [new[0] - 1, n - 1];
        let input = StepInput { step: &step, tokens: &tokens, rows: &rows, choices: &[] };
        graph.begin(&mut backend, &mut arena, &mut ws, &input).unwrap();
        let mut pass = Pass::all(3, Tail::Hidden);
        graph.forward(&mut backend, &mut arena, &mut ws, &mut pass).unwrap();
        let mut keep = |_, row: &[f32]| {
            bits.extend(row.iter().map(|x| x.to_bits()));
            Ok(())
        };
        graph.logits(&backend, &mut ws, 0..2, &mut keep).unwrap();
        cache.commit(step, &new).unwrap();
    }
    (bits, cache.held_bytes())
}

#[test]
fn a_layer_reads_what_another_has_written() {
    for kv in ["f16", "kivi2"] {
        let own = ModelConfig::from_json(JSON).unwrap();
        let arch = Box::leak(Box::new(own.arch.with_layers(sharing)));
        let shared = ModelConfig { arch, ..own.clone() };
        assert_eq!(shared.tensors().len() + 2, own.tensors().len());
        let ((want, all), (got, two)) = (logits(own, kv), logits(shared, kv));
        assert!(got == want, "{kv}");
        assert_eq!(two * 3, all * 2, "{kv}: two layers are kept of three");
    }
}
