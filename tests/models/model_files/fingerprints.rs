//! Models whose queries, keys or values differ have other fingerprints; others need not.

use super::{copy, golden, places, set};
use crate::tiny_model::{self, Gguf};
use kvfold::fetch::{DEFAULT_MODEL, FetchOptions, find};
use kvfold::model::{Calibration, Checkpoint, ContextOptions, RopeStretch};
use serde_json::json;
use std::path::Path;

fn fingerprint(path: &Path) -> String {
    Checkpoint::open(path).unwrap().fingerprint().unwrap().text().unwrap()
}

/// What lies behind the last layer's keys and values.
fn is_behind(name: &str, last: &str) -> bool {
    let rest = ["self_attn.o_proj", "mlp.", "post_attention_layernorm"];
    let rest = rest.iter().any(|part| name.starts_with(&format!("{last}.{part}")));
    rest || name == "model.norm.weight" || name == "lm_head.weight"
}

/// One bit somewhere in each tensor, far from where it begins.
#[test]
fn each_tensor_before_the_last_keys_and_values_counts() {
    for folder in ["smollm2", "qwen2", "qwen3"] {
        let model = copy(folder);
        let file = model.path().join("model.safetensors");
        let bytes = std::fs::read(&file).unwrap();
        let whole = fingerprint(model.path());
        let mut counted = 0;
        for (name, place) in places(&bytes) {
            let mut changed = bytes.clone();
            changed[place.start + (place.len() * 3 / 4)] ^= 1;
            std::fs::write(&file, changed).unwrap();
            let (counts, other) = (!is_behind(&name, "model.layers.1"), fingerprint(model.path()));
            assert_eq!(other != whole, counts, "{folder}: {name}");
            assert_eq!(other[..16], whole[..16], "the shape is the same");
            counted += usize::from(counts);
        }
        assert!(counted > 10);
    }
}

#[test]
fn of_gguf_files_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let of = |file: &Gguf| {
        std::fs::write(&path, file.bytes()).unwrap();
        fingerprint(&path)
    };
    let whole = of(&Gguf::model());
    for (name, gguf, _) in tiny_model::tensors() {
        let mut file = Gguf::model();
        *file.tensor(gguf).3.last_mut().unwrap() ^= 1;
        assert_eq!(of(&file) != whole, !is_behind(name, "model.layers.0"), "{name}");
    }
    // Rows in another order: the same numbers.
    let mut file = Gguf::model();
    file.tensor("blk.0.attn_v.weight").3.rotate_left(32);
    assert_ne!(of(&file), whole);
    for (key, value) in [("llama.rope.freq_base", 1e6), ("llama.rope.scaling.factor", 2.0)] {
        let mut file = Gguf::model();
        file.f32(key, value);
        assert_ne!(of(&file), whole, "{key}");
    }
}

#[test]
fn numbers_count_that_change_keys() {
    let whole = fingerprint(copy("smollm2").path());
    for (key, value, counts) in [
        ("rms_norm_eps", json!(1e-6), true),
        ("rope_parameters", json!({"rope_theta": 1e6, "rope_type": "default"}), true),
        ("rope_parameters", json!({"rope_theta": 1e5, "rope_type": "linear", "factor": 2}), true),
        ("rope_parameters", json!({"rope_theta": 1e5, "rope_type": "yarn", "factor": 2}), true),
        ("model_type", json!("mistral"), true),
        ("max_position_embeddings", json!(256), false),
        ("bos_token_id", json!(2), false),
        ("eos_token_id", json!([0, 2]), false),
    ] {
        let model = copy("smollm2");
        set(model.path(), "config.json", key, value.clone());
        let other = fingerprint(model.path());
        assert_eq!(other != whole, counts, "{key}: {value}");
        assert_eq!(other[17..], whole[17..], "the weights are the same");
    }
    // The same weights as another container's bytes mean other rows.
    assert_ne!(fingerprint(&golden("smollm2/model.gguf")), whole);
}

#[test]
fn options_of_rope_count_and_a_shorter_context_does_not() {
    let open = || Checkpoint::open(golden("smollm2")).unwrap();
    let whole = open().fingerprint().unwrap().text().unwrap();
    let of = |options: &ContextOptions| {
        let checkpoint = open().with_context(options).unwrap();
        checkpoint.fingerprint().unwrap().text().unwrap()
    };
    let mut options = ContextOptions::default();
    options.context = Some(100);
    assert_eq!(of(&options), whole);
    options.factor = Some(2.0);
    for stretch in [RopeStretch::Linear, RopeStretch::Yarn] {
        options.stretch = Some(stretch);
        assert_ne!(of(&options), whole, "{stretch:?}");
    }
}

/// The weights are read when the shape agrees, and from the file that was opened.
#[test]
fn the_weights_are_read_only_if_the_shape_agrees() {
    let model = copy("smollm2");
    let file = model.path().join("model.safetensors");
    let fingerprint = Checkpoint::open(model.path()).unwrap().fingerprint().unwrap();
    std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(9).unwrap();
    assert!(!fingerprint.is("0123456789abcdef-0123456789abcdef").unwrap());
    assert!(!fingerprint.is("a54928f460510a85").unwrap());
    let error = fingerprint.is(&format!("{}-0", fingerprint.shape())).unwrap_err();
    assert!(error.to_string().contains("model.safetensors"), "{error}");
}

#[test]
fn the_default_model_is_the_one_that_kvfold_has_a_calibration_of() {
    let options = FetchOptions::from_env().unwrap();
    let path = options.model_path(find(DEFAULT_MODEL).unwrap());
    if !path.is_file() {
        eprintln!("skipped: run `kvfold fetch` first");
        return;
    }
    let fingerprint = Checkpoint::open(path).unwrap().fingerprint().unwrap();
    let found = Calibration::shipped(&fingerprint).unwrap();
    assert!(found.is_some(), "its fingerprint is {}", fingerprint.text().unwrap());
}
