//! Models that other programs keep: found, used in place, never changed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use kvfold::fetch::{FetchOptions, Silent, Store, fetch_repository, find_ollama, here};
use kvfold::model::Checkpoint;
use serde_json::json;
use tempfile::TempDir;

use super::Steps;
use super::repository::{gguf_hub, named};
use crate::tiny_model::{Gguf, hf_files};

const COMMIT: &str = "fedcba9876543210fedcba9876543210fedcba98";

pub fn write(root: &Path, path: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let file = root.join(path);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, bytes).unwrap();
    file
}

/// A repository in Hugging Face's cache: files are links to blobs, by number here.
pub fn hf_repository(cache: &Path, id: &str, files: &[(&str, Vec<u8>)]) -> PathBuf {
    let home = cache.join(format!("models--{}", id.replace('/', "--")));
    write(&home, "refs/main", COMMIT);
    for (i, (name, bytes)) in files.iter().enumerate() {
        write(&home, &format!("blobs/{i}"), bytes);
        let link = home.join("snapshots").join(COMMIT).join(name);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(home.join(format!("blobs/{i}")), link).unwrap();
    }
    home
}

/// A model in Ollama's store, by `HOST/NAMESPACE/MODEL/TAG`.
pub fn ollama_model(store: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let digits = super::digest(bytes);
    let blob = write(store, &format!("blobs/sha256-{digits}"), bytes);
    let layer = |kind: &str| {
        json!({"mediaType": format!("application/vnd.ollama.image.{kind}"),
            "digest": format!("sha256:{digits}"), "size": bytes.len()})
    };
    let layers = [layer("license"), layer("model"), layer("template"), layer("projector")];
    let manifest = json!({"schemaVersion": 2, "layers": layers});
    write(store, &format!("manifests/{name}"), manifest.to_string());
    blob
}

/// Options that know of stores in a folder, and of no hub.
fn options(root: &TempDir) -> FetchOptions {
    let mut options = FetchOptions::new(root.path().join("own"));
    options.offline = true;
    options.model_dir = Some(root.path().join("dir"));
    options.hf_caches = vec![root.path().join("hf")];
    options.llama_caches = vec![root.path().join("llama")];
    options.ollama_stores = vec![root.path().join("none"), root.path().join("ollama")];
    options
}

fn whole_folder() -> Vec<(&'static str, Vec<u8>)> {
    hf_files().into_iter().collect()
}

/// Every file below a folder, with its content.
fn content(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => all.extend(content(&path)),
            path => all.push((path.clone(), fs::read(path).unwrap_or_default())),
        }
    }
    all.sort();
    all
}

#[test]
fn every_store_is_searched_and_none_is_changed() {
    let root = tempfile::tempdir().unwrap();
    let (hf, llama) = (root.path().join("hf"), root.path().join("llama"));
    let (bytes, options) = (Gguf::model().bytes(), options(&root));
    hf_repository(&hf, "a/folder", &whole_folder());
    hf_repository(
        &hf,
        "a/gguf",
        &[("m-Q8_0.gguf", bytes.clone()), ("d/m-F16.gguf", bytes.clone())],
    );
    write(&llama, "b_c_m-Q4_0.gguf", &bytes);
    write(&llama, "manifest=b=c=latest.json", "{}");
    write(&llama, "d_e_x.gguf", &bytes);
    write(
        &llama,
        "d_e_x.gguf.json",
        r#"{"url": "https://huggingface.co/d/e/resolve/main/x.gguf"}"#,
    );
    write(&llama, "f_g_Q_m-Q8_0.gguf", &bytes);
    write(root.path(), "dir/mine/n/m.gguf", &bytes);
    write(root.path(), "dir/short/x-Q4_K_M.gguf", &bytes);
    ollama_model(&root.path().join("ollama"), "hf.co/h/i/Q4_K_M", &bytes);
    let before = content(root.path());
    for (name, expected) in [
        ("a/folder", format!("hf/models--a--folder/snapshots/{COMMIT}")),
        ("a/gguf", format!("hf/models--a--gguf/snapshots/{COMMIT}/m-Q8_0.gguf")),
        ("a/gguf:F16", format!("hf/models--a--gguf/snapshots/{COMMIT}/d/m-F16.gguf")),
        (&format!("a/gguf@{COMMIT}"), format!("hf/models--a--gguf/snapshots/{COMMIT}/m-Q8_0.gguf")),
        ("b/c", "llama/b_c_m-Q4_0.gguf".to_owned()),
        ("b/c:q4_0", "llama/b_c_m-Q4_0.gguf".to_owned()),
        ("d/e", "llama/d_e_x.gguf".to_owned()),
        ("f/g:Q/m-Q8_0.gguf", "llama/f_g_Q_m-Q8_0.gguf".to_owned()),
        ("mine/n", "dir/mine/n/m.gguf".to_owned()),
        ("any/short", "dir/short/x-Q4_K_M.gguf".to_owned()),
    ] {
        let path = fetch_repository(&named(name), &options, &mut Silent).expect(name);
        assert_eq!(path, root.path().join(expected), "{name}");
        Checkpoint::open(&path).expect(name);
    }
    let blob = fetch_repository(&named("h/i:q4_k_m"), &options, &mut Silent).unwrap();
    assert!(blob.starts_with(root.path().join("ollama/blobs")));
    Checkpoint::open(blob).unwrap();
    // f_g_Q may be the repository g_Q: without a note only the whole name is enough. Nor is
    // what lies here of another revision.
    for name in ["f/g", "f/g_Q", "a/gguf@v2", "b/c@v2", "mine/n@v2", "a/other", "a/gguf:Q2_K"] {
        assert!(fetch_repository(&named(name), &options, &mut Silent).is_err(), "{name}");
    }
    assert_eq!(content(root.path()), before);
    // A cache in one layout is not searched in the other.
    assert_eq!(here(&options).len(), 3 + 3 + 2 + 1);
}

#[test]
fn what_another_program_has_begun_is_fetched_from_the_hub() {
    let root = tempfile::tempdir().unwrap();
    let hub = gguf_hub();
    let mut options = options(&root);
    (options.offline, options.hub_endpoint) = (false, hub.endpoint.clone());
    // A link to a blob that did not come.
    let home = hf_repository(&root.path().join("hf"), "o/n", &[("m-Q4_K_M.gguf", vec![1])]);
    fs::rename(home.join("blobs/0"), home.join("blobs/0.incomplete")).unwrap();
    let mut steps = Steps::default();
    let path = fetch_repository(&named("o/n"), &options, &mut steps).unwrap();
    assert!(path.starts_with(root.path().join("own")), "{}", path.display());
    let said = "failed Hugging Face's cache: its files are missing";
    assert_eq!(steps.count(said), 1, "{:?}", steps.0);

    options.offline = true;
    let mut files = whole_folder();
    files.retain(|(name, _)| *name != "two.safetensors");
    hf_repository(&root.path().join("hf"), "o/folder", &files);
    let part = ("m-00001-of-00002.gguf", Gguf::model().bytes());
    hf_repository(&root.path().join("hf"), "o/parts", &[part]);
    hf_repository(&root.path().join("hf"), "o/empty", &[("m.gguf", Vec::new())]);
    for (name, missing) in [
        ("o/folder", "two.safetensors is missing"),
        ("o/parts", "m-00002-of-00002.gguf is missing"),
        ("o/empty", "its files are missing"),
    ] {
        let message =
            fetch_repository(&named(name), &options, &mut Silent).unwrap_err().to_string();
        let expected = format!("Hugging Face's cache: {missing}");
        assert!(message.contains(&expected) && message.contains("OFFLINE"), "{message}");
    }
    let broken: Vec<_> =
        here(&options).into_iter().filter(|found| found.incomplete.is_some()).collect();
    assert_eq!(broken.len(), 2, "{broken:?}");
}

#[test]
fn ollama_s_names_are_found_in_its_store() {
    let root = tempfile::tempdir().unwrap();
    let (store, options) = (root.path().join("ollama"), options(&root));
    let bytes = Gguf::model().bytes();
    let blob = ollama_model(&store, "registry.ollama.ai/library/llama3.2/1b", &bytes);
    for name in ["library/M/latest", "me/mine/v1"] {
        ollama_model(&store, &format!("registry.ollama.ai/{name}"), &bytes);
    }
    for name in [
        "llama3.2:1b",
        "LLAMA3.2:1B",
        "m",
        "m:latest",
        "me/mine:v1",
        "registry.ollama.ai/library/llama3.2:1b",
    ] {
        let found = find_ollama(name, &options).unwrap();
        assert_eq!(found.as_ref(), Some(&blob), "{name}");
    }
    // It has no ending, and is read by what it holds.
    assert_eq!(Checkpoint::open(&blob).unwrap().name(), "Tiny");
    for name in ["llama3.2", "llama3.2:3b", "", ":", "a/b/c/d:e", "../x:y", "m:..", "m:../latest"] {
        assert_eq!(find_ollama(name, &options).unwrap(), None, "{name}");
    }

    let manifest = |name: &str, text: String| {
        write(&store, &format!("manifests/registry.ollama.ai/library/{name}/latest"), text);
    };
    let layer = |kind: &str, digest: &str, size: u64| {
        format!(
            r#"{{"mediaType": "application/vnd.ollama.image.{kind}", "digest": "{digest}", "size": {size}}}"#
        )
    };
    let digest = format!("sha256:{}", super::digest(&bytes));
    let size = bytes.len() as u64;
    let model = layer("model", &digest, size);
    manifest(
        "absent",
        format!("{{\"layers\": [{}]}}", layer("model", &format!("sha256:{}", "0".repeat(64)), 5)),
    );
    manifest("short", format!("{{\"layers\": [{}]}}", layer("model", &digest, size + 1)));
    manifest(
        "climbs",
        format!("{{\"layers\": [{}]}}", layer("model", "sha256:../../../etc/passwd", 5)),
    );
    manifest("adapted", format!("{{\"layers\": [{model}, {}]}}", layer("adapter", &digest, size)));
    manifest("twice", format!("{{\"layers\": [{model}, {model}]}}"));
    manifest("cloud", "{\"layers\": []}".to_owned());
    manifest("tensors", format!("{{\"layers\": [{}]}}", layer("tensor; name=x", &digest, size)));
    manifest("text", "once upon a time".to_owned());
    manifest("nothing", "{}".to_owned());
    for (name, reason) in [
        ("absent", "is missing"),
        ("short", &format!("has {size} of {} bytes", size + 1)),
        ("climbs", "its digest is none"),
        ("adapted", "an adapter"),
        ("twice", "several layers"),
        ("cloud", "no GGUF layer"),
        ("tensors", "no GGUF layer"),
        ("text", "not JSON"),
        ("nothing", "it has no layers"),
    ] {
        let message = find_ollama(name, &options).unwrap_err().to_string();
        assert!(message.contains(reason) && message.contains("ollama pull"), "{name}: {message}");
    }
    let listed = here(&options);
    assert_eq!(listed.iter().filter(|found| found.incomplete.is_some()).count(), 9);
    assert!(listed.iter().all(|found| found.store == Store::Ollama));
    let names: Vec<_> = listed.iter().map(|found| found.name.as_str()).collect();
    // The same blob under three names is listed once.
    assert_eq!(names.iter().filter(|name| name.starts_with("ollama:llama3.2:1b")).count(), 1);
}
