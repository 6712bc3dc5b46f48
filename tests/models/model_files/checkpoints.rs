//! Copies of tensors that are stale, output layers that are said to be none, split files,
//! integers that are written as floats.

use super::assert_names;
use crate::tiny_model::{self, Gguf};
use kvfold::model::Checkpoint;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

fn folder(files: &HashMap<&'static str, Vec<u8>>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    tiny_model::write_folder(folder.path(), files);
    folder
}

fn error(path: &Path) -> String {
    Checkpoint::open(path).map(|_| ()).unwrap_err().to_string()
}

fn edit(
    files: &mut HashMap<&'static str, Vec<u8>>,
    name: &'static str,
    edit: impl FnOnce(&mut Value),
) {
    let mut json = serde_json::from_slice(&files[name]).unwrap();
    edit(&mut json);
    files.insert(name, json.to_string().into_bytes());
}

/// Shape and bytes.
type Raw = (Vec<usize>, Vec<u8>);

/// The numbers of a tensor, each 7 too many.
fn stale(name: &str) -> Raw {
    let all = tiny_model::tensors();
    let (i, (_, _, shape)) = all.iter().enumerate().find(|(_, t)| t.0 == name).unwrap();
    let bytes = tiny_model::numbers(i, shape);
    let bytes =
        bytes.as_chunks::<4>().0.iter().flat_map(|x| (f32::from_le_bytes(*x) + 7.0).to_le_bytes());
    (shape.iter().map(|d| *d as usize).collect(), bytes.collect())
}

/// Shard `shard` with other tensors added.
fn with_more(shard: &[u8], more: &[(&str, Raw)]) -> Vec<u8> {
    let own = safetensors::SafeTensors::deserialize(shard).unwrap();
    let mut all: Vec<(String, TensorView<'_>)> = own.tensors();
    for (name, (shape, bytes)) in more {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
        all.push(((*name).to_owned(), view));
    }
    safetensors::serialize(all, None).unwrap()
}

#[test]
fn of_copies_of_a_tensor_the_index_names_the_one() {
    let files = tiny_model::hf_files();
    let exact = folder(&files);
    let exact = Checkpoint::open(exact.path()).unwrap();
    let names: Vec<&str> = tiny_model::tensors().iter().map(|t| t.0).collect();
    // A shard before and one behind the right one.
    for (name, shard) in [(names[1], "one.safetensors"), (names[4], "two.safetensors")] {
        let mut files = files.clone();
        let changed = with_more(&files[shard], &[(name, stale(name))]);
        files.insert(shard, changed);
        let folder = folder(&files);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        for name in &names {
            let (got, want) = (checkpoint.tensor(name).unwrap(), exact.tensor(name).unwrap());
            assert!(got.bytes == want.bytes, "{name}, a copy in {shard}");
        }
    }
}

#[test]
fn an_index_that_is_wrong_is_named() {
    let names: Vec<&str> = tiny_model::tensors().iter().map(|t| t.0).collect();
    let mut files = tiny_model::hf_files();
    edit(&mut files, "model.safetensors.index.json", |json| {
        json["weight_map"][names[0]] = json!("two.safetensors");
    });
    assert_names(&error(folder(&files).path()), &["two.safetensors", names[0], "is not in it"]);
    // Two copies, and the index knows of none.
    let mut files = tiny_model::hf_files();
    let changed = with_more(&files["two.safetensors"], &[(names[0], stale(names[0]))]);
    files.insert("two.safetensors", changed);
    edit(&mut files, "model.safetensors.index.json", |json| {
        json["weight_map"].as_object_mut().unwrap().remove(names[0]);
    });
    assert_names(&error(folder(&files).path()), &[names[0], "several shards"]);
    for bad in ["a\nb.safetensors", "\u{1b}[31m.safetensors", "../one.safetensors", ""] {
        let mut files = tiny_model::hf_files();
        edit(&mut files, "model.safetensors.index.json", |json| {
            json["weight_map"][names[0]] = json!(bad);
        });
        assert_names(&error(folder(&files).path()), &["index.json", "no file name"]);
    }
}

#[test]
fn the_output_layer_of_a_file_counts_whatever_the_configuration_says() {
    let (head, embedding) = ("lm_head.weight", "model.embed_tokens.weight");
    let tie = |files: &mut HashMap<&'static str, Vec<u8>>| {
        edit(files, "config.json", |json| json["tie_word_embeddings"] = json!(true));
    };
    let mut files = tiny_model::hf_files();
    tie(&mut files);
    let other = folder(&files);
    let other = Checkpoint::open(other.path()).unwrap();
    assert!(!other.config().tied && other.has(head));
    assert_eq!(other.warnings().len(), 1);
    assert_names(&other.warnings()[0], &["tie_word_embeddings", head, "used"]);

    // The head is in shard "one", as is the embedding.
    let all: Vec<_> = tiny_model::tensors();
    let shard = safetensors::SafeTensors::deserialize(&files["one.safetensors"]).unwrap();
    let with_head = |shape: Vec<usize>, bytes: &[u8]| {
        let mut tensors: Vec<_> = shard.tensors();
        tensors.retain(|(name, _)| name != head);
        tensors.push((head.to_owned(), TensorView::new(Dtype::F32, shape, bytes).unwrap()));
        safetensors::serialize(tensors, None).unwrap()
    };
    let same = tiny_model::numbers(0, &all[0].2);
    assert_eq!(all[0].0, embedding);
    for (shape, bytes, warnings) in [(vec![16, 8], &same[..], 0), (vec![15, 8], &same[..480], 1)] {
        let mut files = files.clone();
        files.insert("one.safetensors", with_head(shape, bytes));
        let folder = folder(&files);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert!(checkpoint.config().tied);
        assert_eq!(checkpoint.warnings().len(), warnings);
    }
}

#[test]
fn whole_floats_in_a_configuration_are_integers() {
    let exact = folder(&tiny_model::hf_files());
    let exact = Checkpoint::open(exact.path()).unwrap();
    let keys = ["max_position_embeddings", "vocab_size", "hidden_size", "num_hidden_layers"];
    for key in keys.into_iter().chain(["bos_token_id", "num_key_value_heads"]) {
        let mut files = tiny_model::hf_files();
        edit(&mut files, "config.json", |json| {
            json[key] = json!(json[key].as_f64().unwrap());
            assert!(json[key].to_string().contains('.'));
        });
        let floats = folder(&files);
        let floats = Checkpoint::open(floats.path()).unwrap();
        assert_eq!(floats.config(), exact.config(), "{key}");
        for bad in [json!(8.5), json!(-8.0), json!(1e30), json!("8"), json!([8])] {
            edit(&mut files, "config.json", |json| json[key] = bad.clone());
            if key == "bos_token_id" && bad == json!([8]) {
                continue; // a list of one
            }
            assert_names(&error(folder(&files).path()), &[key, &bad.to_string()]);
        }
    }
    let mut file = Gguf::model();
    file.f32("llama.context_length", 64.0);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    assert_eq!(Checkpoint::open(&path).unwrap().config().context, 64);
    file.f32("llama.context_length", 64.5);
    std::fs::write(&path, file.bytes()).unwrap();
    assert_names(&error(&path), &["llama.context_length", "not an integer"]);
}

/// The tiny model in three parts: metadata, then tensors, as gguf-split writes them.
fn parts() -> [Gguf; 3] {
    let whole = Gguf::model();
    let mut parts = [whole.clone(), Gguf::empty(), Gguf::empty()];
    parts[0].tensors.clear();
    parts[1].tensors = whole.tensors[..5].to_vec();
    parts[2].tensors = whole.tensors[5..].to_vec();
    for (number, part) in parts.iter_mut().enumerate() {
        part.set("split.no", 2, &(number as u16).to_le_bytes());
        part.set("split.count", 2, &3u16.to_le_bytes());
        part.set("split.tensors.count", 5, &(whole.tensors.len() as i32).to_le_bytes());
    }
    parts
}

fn write(parts: &[Gguf; 3]) -> (tempfile::TempDir, [PathBuf; 3]) {
    let folder = tempfile::tempdir().unwrap();
    let path = |n: usize| folder.path().join(format!("tiny-{:05}-of-00003.gguf", n + 1));
    let paths = [0, 1, 2].map(path);
    for (part, path) in parts.iter().zip(&paths) {
        std::fs::write(path, part.bytes()).unwrap();
    }
    (folder, paths)
}

#[test]
fn all_parts_of_a_split_file_are_read() {
    let (folder, paths) = write(&parts());
    let whole = folder.path().join("whole");
    std::fs::create_dir(&whole).unwrap();
    let whole = whole.join("tiny.gguf");
    std::fs::write(&whole, Gguf::model().bytes()).unwrap();
    let exact = Checkpoint::open(&whole).unwrap();
    for path in [&paths[0], folder.path()] {
        let split = Checkpoint::open(path).unwrap();
        assert_eq!(split.config(), exact.config());
        for (name, _, _) in tiny_model::tensors() {
            assert_eq!(split.tensor(name).unwrap().bytes, exact.tensor(name).unwrap().bytes);
        }
        let text = |c: &Checkpoint| c.fingerprint().unwrap().text().unwrap();
        assert_eq!(text(&split), text(&exact));
        split.tokenizer().unwrap();
        assert!(split.file_bytes() > exact.file_bytes());
    }
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let (_folder, paths) = write(&parts());
    assert_names(&error(&paths[1]), &["part 2 of 3", "give the first part", "tiny-00001-of-00003"]);
    std::fs::remove_file(&paths[2]).unwrap();
    assert_names(&error(&paths[0]), &["tiny-00003-of-00003.gguf", "missing", "all parts"]);

    let fault = |change: &dyn Fn(&mut [Gguf; 3])| {
        let mut all = parts();
        change(&mut all);
        let (_folder, paths) = write(&all);
        error(&paths[0])
    };
    let text = fault(&|all| all.swap(1, 2));
    assert_names(&text, &["tiny-00002-of-00003.gguf", "part 2 of 3"]);
    let text = fault(&|all| all[1].remove("split.count"));
    assert_names(&text, &["tiny-00002-of-00003.gguf", "does not say"]);
    let text = fault(&|all| {
        let again = all[1].tensors[0].clone();
        all[2].tensors.push(again);
    });
    assert_names(&text, &["tiny-00003-of-00003.gguf", "earlier part"]);
    let text = fault(&|all| all[0].u32("split.tensors.count", 13));
    assert_names(&text, &["12 tensors", "13"]);
    let text = fault(&|all| all[0].set("split.count", 2, &4u16.to_le_bytes()));
    assert_names(&text, &["1 of 4", "1 of 3"]);
    let text = fault(&|all| all[1].version = 1);
    assert_names(&text, &["tiny-00002-of-00003.gguf", "GGUF version 1"]);
}

/// Without the name of a part the others cannot be found; a file that was joined may still
/// say that it is one.
#[test]
fn a_part_by_another_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let [mut first, ..] = parts();
    std::fs::write(&path, first.bytes()).unwrap();
    assert_names(&error(&path), &["first of 3 parts", "-00001-of-00003.gguf"]);
    first.remove("split.tensors.count");
    std::fs::write(&path, first.bytes()).unwrap();
    assert_names(&error(&path), &["token_embd.weight"]);
    let mut joined = Gguf::model();
    joined.u32("split.count", 3);
    joined.u32("split.no", 0);
    std::fs::write(&path, joined.bytes()).unwrap();
    Checkpoint::open(&path).unwrap();
    joined.tensors.retain(|t| t.0 != "blk.0.ffn_up.weight");
    std::fs::write(&path, joined.bytes()).unwrap();
    assert_names(&error(&path), &["up_proj.weight", "missing", "first of 3 parts"]);
    joined.u32("split.no", 1);
    std::fs::write(&path, joined.bytes()).unwrap();
    assert_names(&error(&path), &["part 2 of 3", "give the first part"]);
}
