//! Key biases that turn within a page are found, and only those.

use crate::tiny_model::{self, Gguf};
use kvfold::model::{Checkpoint, KeyOutlier, KvOptions};
use std::path::Path;

/// The tiny model with weights of 1/8 in its keys and these biases there: `‖W diag(g)‖` is
/// `√(4 · 8 · (1/8)²) = √½` with a norm of ones. Rows of the file are interleaved.
fn outlier(folder: &Path, bias: [f32; 4]) -> Option<KeyOutlier> {
    let mut file = Gguf::model();
    let bytes = |all: &[f32]| all.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let hidden = tiny_model::HIDDEN as usize;
    file.tensor("blk.0.attn_k.weight").3 = bytes(&vec![0.125; 4 * hidden]);
    file.tensor("blk.0.attn_norm.weight").3 = bytes(&vec![1.0; hidden]);
    for (name, bias) in [("q", &[0.0; 8][..]), ("k", &bias), ("v", &[0.0; 4])] {
        let name = format!("blk.0.attn_{name}.bias");
        file.tensors.push((name, vec![bias.len() as u64], 0, bytes(bias)));
    }
    let path = folder.join("tiny.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    KeyOutlier::find(&Checkpoint::open(&path).unwrap()).unwrap()
}

#[test]
fn the_worst_pair_is_named_with_its_ratio() {
    let folder = tempfile::tempdir().unwrap();
    let find = |bias| outlier(folder.path(), bias);
    assert_eq!(find([0.0; 4]), None);
    // Pair 0 turns a radian a token, so it swings whole; 3 and 4 are its two halves.
    let found = find([3.0, 4.0, 0.0, 0.0]).unwrap();
    assert_eq!((found.layer, found.head, found.pair), (0, 0, 0));
    assert!((found.ratio - 5.0 * 2f64.sqrt()).abs() < 1e-6, "{found:?}");
    assert_eq!(found.ratio, found.mean);
    // Pair 1 turns 1/100 a token: sin(0.315) of it swings.
    let slow = find([0.0, 0.0, 3.0, 4.0]).unwrap();
    assert_eq!(slow.pair, 1);
    assert!((slow.ratio - 5.0 * 2f64.sqrt() * 0.315f64.sin()).abs() < 1e-6, "{slow:?}");
    for broken in [f32::NAN, f32::INFINITY] {
        assert_eq!(find([broken, 0.0, 0.0, 0.0]), None);
    }
}

#[test]
fn formats_warn_by_what_they_hold() {
    let folder = tempfile::tempdir().unwrap();
    let warning = |ratio: f32, format: &str| {
        let found = outlier(folder.path(), [ratio * 0.5f32.sqrt(), 0.0, 0.0, 0.0]).unwrap();
        found.warning(&KvOptions::new(format.parse().unwrap()))
    };
    for (format, limit) in [("kf2", 0.5), ("kf3.2", 1.0), ("kf3", 1.0), ("kf4/kf2", 2.0)] {
        assert_eq!(warning(limit * 0.9, format), None, "{format}");
        let text = warning(limit * 1.1, format).unwrap();
        for part in [format, "layer 0, KV head 0", "channel pair 0", "kivi4/kivi2"] {
            assert!(text.contains(part) && !text.contains('\n'), "{text}");
        }
    }
    for format in ["f16", "bf16", "fp8", "kivi4", "kivi2", "kivi4/kivi2", "kivi4/kf2"] {
        assert_eq!(warning(1e6, format), None, "{format}");
    }
}

#[test]
fn plain_models_have_none() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for family in ["smollm2", "llama3", "mistral", "qwen3", "gemma3"] {
        let found = KeyOutlier::find(&Checkpoint::open(golden.join(family)).unwrap()).unwrap();
        assert_eq!(found, None, "{family}");
    }
    // Its biases are small ones.
    let qwen2 = KeyOutlier::find(&Checkpoint::open(golden.join("qwen2")).unwrap()).unwrap();
    if let Some(found) = qwen2 {
        assert_eq!(found.warning(&KvOptions::new("kf2".parse().unwrap())), None, "{found}");
    }
}
