//! What was saved in place of a model's files is named for what it is.

use super::{assert_names, copy};
use kvfold::model::Checkpoint;
use std::path::Path;

const POINTER: &[u8] =
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n";
const PAGE: &[u8] = b"<!doctype html>\n<html><body>Sign in</body></html>\n";

fn error(path: &Path) -> String {
    let checkpoint = match Checkpoint::open(path) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return error.to_string(),
    };
    let used = checkpoint.tokenizer().and_then(|_| checkpoint.chat_template());
    used.err().map_or_else(|| panic!("{} was read", path.display()), |error| error.to_string())
}

#[test]
fn in_a_folder() {
    for name in ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"] {
        for (bytes, parts) in [
            (POINTER, ["Git LFS pointer", "git lfs pull"]),
            (PAGE, ["HTML page", "log in"]),
            (&b"PK\x03\x04\x00\x00archive/data.pkl"[..], ["PyTorch", "safetensors"]),
            (&b"\x1f\x8b\x08\x00\x00\x00\x00\x00"[..], ["gzip", "unpack"]),
            (&b"Entry not found"[..], ["short text", "download it again"]),
            (&b""[..], ["empty file", "download it again"]),
        ] {
            if name == "tokenizer.json" && bytes != POINTER && bytes != PAGE {
                continue;
            }
            let model = copy("smollm2");
            std::fs::write(model.path().join(name), bytes).unwrap();
            let text = error(model.path());
            assert_names(&text, &[name, parts[0], parts[1]]);
            assert!(!text.contains("kvfold fetch"), "fetch does not know it: {text}");
        }
    }
    let model = copy("smollm2");
    std::fs::write(model.path().join("chat_template.jinja"), POINTER).unwrap();
    assert_names(&error(model.path()), &["chat_template.jinja", "Git LFS pointer"]);
}

#[test]
fn as_a_gguf_file() {
    let folder = tempfile::tempdir().unwrap();
    let safetensors = std::fs::read(super::golden("smollm2/model.safetensors")).unwrap();
    for (bytes, part) in [
        (POINTER, "Git LFS pointer"),
        (PAGE, "HTML page"),
        (&safetensors[..], "a safetensors file, not a GGUF file"),
        (&[0; 4096][..], "zeros"),
        (b"tjgg\x01\x00\x00\x00", "before GGUF"),
        (b"\x08\x07\x12\x07pytorch\x1a\x03", "ONNX"),
        (b"{\"error\": \"Repository not found\"}", "JSON text"),
        (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "XML"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01", "not a GGUF file"),
    ] {
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, bytes).unwrap();
        assert_names(&error(&path), &["model.gguf", part]);
    }
}

/// What is there of a download that broke off, and what was appended to one.
#[test]
fn files_of_another_length_say_both_lengths() {
    let bytes = std::fs::read(super::golden("smollm2/model.safetensors")).unwrap();
    let whole = bytes.len().to_string();
    for length in [bytes.len() - 1, bytes.len() / 2, bytes.len() + 9] {
        let model = copy("smollm2");
        let mut bytes = bytes.clone();
        bytes.resize(length, 0);
        std::fs::write(model.path().join("model.safetensors"), bytes).unwrap();
        let parts = ["model.safetensors", &whole, &length.to_string()];
        assert_names(&error(model.path()), &parts);
    }
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap());
    let model = copy("smollm2");
    std::fs::write(model.path().join("model.safetensors"), &bytes[..20]).unwrap();
    assert_names(&error(model.path()), &["20 bytes", &header.to_string()]);
}

#[cfg(unix)]
#[test]
fn links_to_nothing_and_pipes_are_named() {
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let model = copy("smollm2");
        std::fs::remove_file(model.path().join(name)).unwrap();
        let blob = model.path().join("no-such-blob");
        std::os::unix::fs::symlink(blob, model.path().join(name)).unwrap();
        assert_names(&error(model.path()), &[name, "a link to", "no-such-blob"]);
    }
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.gguf");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    assert_names(&error(&pipe), &["pipe.gguf", "a pipe or a device"]);
    assert_names(&error(Path::new("/dev/null")), &["/dev/null", "a pipe or a device"]);
}

#[test]
fn folders_with_other_weights_say_so() {
    for (name, part) in [
        ("pytorch_model.bin", "pickle"),
        ("adapter_model.safetensors", "LoRA"),
        ("tf_model.h5", "TensorFlow"),
    ] {
        let model = copy("smollm2");
        let weights = model.path().join("model.safetensors");
        std::fs::rename(weights, model.path().join(name)).unwrap();
        assert_names(&error(model.path()), &[name, part, "save_pretrained"]);
    }
}

/// A mark at the start of JSON files, as some editors write it, is no fault.
#[test]
fn a_mark_of_utf_8_is_passed_over() {
    let model = copy("smollm2");
    let path = model.path().join("config.json");
    let text = std::fs::read(&path).unwrap();
    std::fs::write(&path, [b"\xef\xbb\xbf", &text[..]].concat()).unwrap();
    Checkpoint::open(model.path()).unwrap();
}
