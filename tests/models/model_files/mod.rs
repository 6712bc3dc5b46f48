//! What real model files broke: which of two models a calibration is for, numbers that are
//! none, files that are not what they are called, contexts as model cards write them.

mod checkpoints;
mod contexts;
mod fingerprints;
mod numbers;
mod stand_ins;

use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn golden(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder)
}

/// A copy of a golden model's folder, without its results.
fn copy(folder: &str) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden(folder)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if name != "golden.safetensors" && name != "model.gguf" {
            std::fs::copy(&path, to.path().join(name)).unwrap();
        }
    }
    to
}

fn set(folder: &Path, file: &str, key: &str, value: Value) {
    let path = folder.join(file);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json[key] = value;
    std::fs::write(path, json.to_string()).unwrap();
}

/// Where in a safetensors file each tensor's bytes are.
fn places(bytes: &[u8]) -> Vec<(String, std::ops::Range<usize>)> {
    let (header, metadata) = SafeTensors::read_metadata(bytes).unwrap();
    let place = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        (name, 8 + header + info.data_offsets.0..8 + header + info.data_offsets.1)
    };
    metadata.tensors().into_iter().map(place).collect()
}

fn assert_names(text: &str, parts: &[&str]) {
    assert!(!text.contains('\n'), "{text}");
    for part in parts {
        assert!(text.contains(part), "\"{part}\" is not in: {text}");
    }
}
