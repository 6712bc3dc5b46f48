//! NaN and infinities in weights are refused by the tensor's name, in every type and file
//! format; logits that are none end a request and a measurement with an error.

use super::{assert_names, copy, places};
use crate::tiny_model::{self, Gguf};
use kvfold::Error;
use kvfold::backend::WeightPolicy;
use kvfold::backend::driver::Device;
use kvfold::backend::driver::emulated::EmulatorOptions;
use kvfold::engine::{EngineConfig, LoadOptions, LoadedModel, Request, Runner, generate};
use kvfold::eval::perplexity::{Windows, perplexity};
use kvfold::model::{Checkpoint, WeightType};
use std::path::Path;
use std::sync::atomic::AtomicBool;

static GO: AtomicBool = AtomicBool::new(false);

fn load_error(path: &Path, policy: WeightPolicy) -> String {
    match LoadedModel::open(path, policy) {
        Ok(_) => panic!("{} was loaded", path.display()),
        Err(error) => error.to_string(),
    }
}

fn emulated() -> Device {
    Device::emulated(EmulatorOptions { seed: 1, host_threads: 1, ..Default::default() })
}

/// GGUF's number of a type, bytes of a block, its elements, and where its f16 numbers are.
const TYPES: [(u32, usize, u64, &[usize]); 12] = [
    (1, 2, 1, &[0]),
    (2, 18, 32, &[0]),
    (3, 20, 32, &[0, 2]),
    (6, 22, 32, &[0]),
    (7, 24, 32, &[0, 2]),
    (8, 34, 32, &[0]),
    (10, 84, 256, &[80, 82]),
    (11, 110, 256, &[108]),
    (12, 144, 256, &[0, 2]),
    (13, 176, 256, &[0, 2]),
    (14, 210, 256, &[208]),
    (30, 2, 1, &[0]),
];

/// A model of 256 channels whose matrices are of one type and all zeros.
fn zeros(number: u32, block_bytes: usize, block: u64) -> Gguf {
    let mut file = Gguf::model();
    file.u32("llama.embedding_length", 256);
    file.u32("llama.feed_forward_length", 256);
    file.u32("llama.rope.dimension_count", 128);
    for (_, shape, kind, bytes) in &mut file.tensors {
        let rows = if shape.first() == Some(&tiny_model::VOCAB) { tiny_model::VOCAB } else { 256 };
        if shape.len() == 1 {
            (*shape, *bytes) = (vec![256], vec![0; 256 * 4]);
        } else {
            *shape = vec![if shape[0] == 4 { 128 } else { rows }, 256];
            *kind = number;
            *bytes = vec![0; (shape[0] * 256 / block) as usize * block_bytes];
        }
    }
    file
}

#[test]
fn weights_of_every_type_that_are_no_numbers_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let write = |file: &Gguf| std::fs::write(&path, file.bytes()).unwrap();
    for (number, block_bytes, block, scales) in TYPES {
        let clean = zeros(number, block_bytes, block);
        write(&clean);
        LoadedModel::open(&path, WeightPolicy::Auto).unwrap();
        let nan_and_infinity = if number == 30 { [0x7fc0u16, 0xff80] } else { [0x7e00, 0xfc00] };
        let matrices = ["token_embd.weight", "blk.0.attn_k.weight", "blk.0.ffn_down.weight"];
        for (name, bits) in matrices.iter().flat_map(|n| nan_and_infinity.map(|bits| (n, bits))) {
            for scale in scales {
                let mut file = clean.clone();
                let bytes = &mut file.tensor(name).3;
                let last = bytes.len() - block_bytes;
                bytes[last + scale..][..2].copy_from_slice(&bits.to_le_bytes());
                write(&file);
                for policy in [WeightPolicy::Auto, WeightPolicy::Keep, WeightPolicy::F32] {
                    assert_names(&load_error(&path, policy), &[name, "NaN or an infinity"]);
                }
            }
        }
    }
}

/// Norms and biases, too; on a device, too.
#[test]
fn every_tensor_of_a_folder_is_looked_at() {
    for folder in ["qwen2", "qwen3", "gemma3"] {
        let model = copy(folder);
        let file = model.path().join("model.safetensors");
        let bytes = std::fs::read(&file).unwrap();
        let device = emulated();
        for (i, (name, place)) in places(&bytes).into_iter().enumerate() {
            let dtype = Checkpoint::open(model.path()).unwrap().tensor(&name).unwrap().dtype;
            let bad: &[u8] = match (dtype, i % 2) {
                (WeightType::F16, 0) => &[0, 0x7c],
                (WeightType::F16, _) => &[1, 0xfe],
                // The last two bytes of an f32 are those of a bf16.
                (_, 0) => &[0x80, 0x7f],
                _ => &[0xc1, 0xff],
            };
            let mut changed = bytes.clone();
            changed[place.end - 2..place.end].copy_from_slice(bad);
            std::fs::write(&file, changed).unwrap();
            let error = match i % 3 {
                0 => {
                    let checkpoint = Checkpoint::open(model.path()).unwrap();
                    let options = LoadOptions::default();
                    let loaded = LoadedModel::load(&checkpoint, Some(&device), &options);
                    loaded.err().map_or_else(String::new, |error| error.to_string())
                }
                _ => load_error(model.path(), WeightPolicy::Auto),
            };
            std::fs::write(&file, &bytes).unwrap();
            assert_names(&error, &[&name, "NaN or an infinity"]);
        }
    }
}

/// A bf16 of 1e38 is a number, but no Q8_0 and no f16.
#[test]
fn a_weight_beyond_the_range_of_what_it_is_kept_in_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut file = zeros(30, 2, 1);
    file.tensor("blk.0.ffn_up.weight").3[..2].copy_from_slice(&0x7e96u16.to_le_bytes());
    std::fs::write(&path, file.bytes()).unwrap();
    let error = load_error(&path, WeightPolicy::Auto);
    assert_names(&error, &["blk.0.ffn_up.weight", "range of Q8_0", "--weights f32"]);
    LoadedModel::open(&path, WeightPolicy::F32).unwrap();
    let mut options = LoadOptions::default();
    options.element = Some(kvfold::codec::Codec::F16);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let error = LoadedModel::load(&checkpoint, Some(&emulated()), &options).err().unwrap();
    assert_names(&error.to_string(), &["blk.0.ffn_up.weight", "as f16", "bf16"]);
}

/// Finite weights whose products overflow: after the last norm, and in the middle.
fn overflowing(names: &[&str]) -> (tempfile::TempDir, Runner) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut file = zeros(0, 4, 1);
    for (name, shape, _, bytes) in &mut file.tensors {
        for (i, number) in bytes.chunks_exact_mut(4).enumerate() {
            let small = (i * 37 % 101) as f32 / 500.0 - 0.1;
            let norm = if names.contains(&name.as_str()) { 3e38 } else { 1.0 };
            let x: f32 = if shape.len() == 1 { norm } else { small };
            number.copy_from_slice(&x.to_le_bytes());
        }
    }
    std::fs::write(&path, file.bytes()).unwrap();
    let model = LoadedModel::open(&path, WeightPolicy::Auto).unwrap();
    let config = EngineConfig::default().with_kv("f16");
    (folder, Runner::new(model, config).unwrap())
}

/// The model itself has logits.
#[test]
fn without_overflow_there_is_an_answer() {
    let (_folder, mut runner) = overflowing(&[]);
    let request = Request::new(vec![1, 2, 3], 4).with_ignore_eos(true);
    assert_eq!(generate(&mut runner, request, &GO).unwrap().ids.len(), 4);
}

const PLACES: [&[&str]; 3] =
    [&["output_norm.weight"], &["blk.0.ffn_norm.weight"], &["blk.0.attn_norm.weight"]];

#[test]
fn an_answer_from_logits_that_are_no_numbers_is_an_error() {
    for names in PLACES {
        let (_folder, mut runner) = overflowing(names);
        let request = Request::new(vec![1, 2, 3], 4);
        let error = generate(&mut runner, request, &GO).err();
        let error = error.unwrap_or_else(|| panic!("{names:?} answers"));
        assert!(matches!(error, Error::NotFinite { .. }), "{names:?}: {error}");
        assert_names(&error.to_string(), &["token 1", "NaN or infinite"]);
    }
}

#[test]
fn a_perplexity_that_is_no_number_is_an_error_that_names_the_window() {
    for names in PLACES {
        let (_folder, mut runner) = overflowing(names);
        let windows = Windows::from_ids(vec![1; 32], None, 16, None).unwrap().unwrap();
        let error = perplexity(&mut runner, &windows, &GO, &mut |_| ()).unwrap_err();
        assert!(matches!(error, Error::NotFinite { .. }), "{names:?}: {error}");
        assert_names(&error.to_string(), &["window 1 of 2"]);
        assert_eq!(runner.cache().held_bytes(), 0);
    }
}
