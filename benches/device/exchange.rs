//! `--exchange FILE`: queries, keys and values, and what the attention layer makes of
//! them, in a safetensors file. scripts/gpu-peers computes the same anew from KIVI's
//! paper in PyTorch and compares.
//!
//! All tokens but the last are appended, sealed and attended to as one chunk, then the
//! last by itself, so that both attention kernels, and pages in both forms, are in it.

use crate::kv::{HOT_WINDOW, SINKS};
use crate::random::Random;
use anyhow::Result;
use half::f16;
use kvfold::backend::cuda::runner::CudaBackend;
use kvfold::backend::driver::Device;
use kvfold::backend::{Attend, Geometry, Kv, KvGroup, LayerIndex, Memory, RowToken, StepInput};
use kvfold::cache::{KvCache, NewTokens, RowKind};
use kvfold::codec::{Codec, KvFormat};
use kvfold::model::cache_config;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::collections::HashMap;
use std::path::Path;

const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 128;
const FORMATS: [Codec; 3] = [Codec::F16, Codec::Kivi4, Codec::Kivi2];

/// Writes `qkv` `[tokens, (heads + 2 kv_heads) · head_dim]`, f16, and for each format
/// `out.FORMAT` `[tokens, heads · head_dim]`, f32.
pub fn write(device: &Device, tokens: usize, file: &Path) -> Result<()> {
    let width = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
    let mut random = Random::new(3);
    let qkv: Vec<f16> = (0..tokens * width).map(|_| f16::from_f32(random.float())).collect();
    let rows: Vec<f32> = qkv.iter().map(|x| x.to_f32()).collect();
    let mut outputs = Vec::new();
    for codec in FORMATS {
        let out = attend(device, KvFormat::uniform(codec), &rows, width)?;
        outputs.push((format!("out.{codec}"), out));
    }
    let mut tensors = vec![(
        "qkv".to_owned(),
        TensorView::new(Dtype::F16, vec![tokens, width], bytemuck::cast_slice(&qkv))?,
    )];
    for (name, out) in &outputs {
        let shape = vec![tokens, HEADS * HEAD_DIM];
        tensors
            .push((name.clone(), TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(out))?));
    }
    let about = [
        ("device", device.info().name.clone()),
        ("heads", HEADS.to_string()),
        ("kv_heads", KV_HEADS.to_string()),
        ("head_dim", HEAD_DIM.to_string()),
        ("sinks", SINKS.to_string()),
        ("hot_window", HOT_WINDOW.to_string()),
    ];
    let about: HashMap<_, _> = about.map(|(key, value)| (key.to_owned(), value)).into();
    safetensors::serialize_to_file(tensors, Some(about), file)?;
    Ok(())
}

/// Outputs of all tokens.
fn attend(device: &Device, format: KvFormat, rows: &[f32], width: usize) -> Result<Vec<f32>> {
    let group = KvGroup {
        layers: 1,
        kv_heads: KV_HEADS,
        geometry: Geometry::gqa(HEAD_DIM),
        format,
        streams: None,
        sinks: SINKS,
        hot_window: HOT_WINDOW,
        rope: None,
        window: None,
    };
    let tokens = rows.len() / width;
    let unlimited = KvCache::new(cache_config(std::slice::from_ref(&group), u64::MAX))?;
    let budget = 2 * unlimited.bytes_for(tokens, tokens);
    let mut cache = KvCache::new(cache_config(std::slice::from_ref(&group), budget))?;
    let mut backend = CudaBackend::<f16>::new(device)?;
    let mut arena = backend.arena(&[group], cache.classes(), budget)?;
    let (mut qkv, mut out) = (backend.buffer(tokens, width)?, backend.buffer(tokens, width)?);
    let at = LayerIndex { group: 0, layer: 0 };
    let seq = cache.create();
    let mut all = Vec::new();
    let mut row = [0f32; HEADS * HEAD_DIM];
    for part in [&rows[..rows.len() - width], &rows[rows.len() - width..]] {
        let n = part.len() / width;
        let kind = if n == 1 { RowKind::Generated } else { RowKind::Prompt };
        let step = cache.prepare(&[NewTokens { seq, n, kind }])?;
        let tokens = vec![RowToken::Given(0); n];
        let input = StepInput { step: &step, tokens: &tokens, rows: &[], choices: &[] };
        backend.begin(&mut arena, &input)?;
        backend.write(part, width, &mut qkv)?;
        backend.append(&mut arena, at, HEADS, true, &mut qkv)?;
        backend.seal(&mut arena, 0, 0..1)?;
        let scale = (HEAD_DIM as f32).powf(-0.5);
        let call = Attend { at, heads: HEADS, scale, causal: true, window: None };
        backend.attend(&mut arena, &call, &qkv, &mut out, None)?;
        for i in 0..n {
            backend.read_row(&out, i, &mut row)?;
            all.extend_from_slice(&row);
        }
        cache.commit(step, &[n])?;
    }
    Ok(all)
}
