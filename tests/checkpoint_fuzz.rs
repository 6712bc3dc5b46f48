//! Damaged model files: the readers must answer with an error that names the
//! file and the fault, and must neither panic nor allocate absurdly.

mod tiny_model;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use kvfold::Error;
use kvfold::model::{Checkpoint, Message};
use proptest::prelude::*;
use tiny_model::Gguf;

/// The system's allocator, which remembers the largest request.
struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// No file here is larger than 20 kB.
const ABSURD: usize = 16 << 20;

/// Uses everything that a checkpoint offers; the first error, if any.
fn use_all(path: &Path) -> Result<(), Error> {
    let checkpoint = Checkpoint::open(path)?;
    for (name, _, shape) in tiny_model::tensors() {
        if !checkpoint.has(name) {
            continue;
        }
        let tensor = checkpoint.tensor(name)?;
        assert_eq!(tensor.dtype.tensor_bytes(&tensor.shape), Some(tensor.bytes.len()));
        assert_eq!(tensor.shape.len(), shape.len());
    }
    let frequencies = checkpoint.config().rope.inv_freq();
    assert!(frequencies.iter().all(|f| f.is_finite()), "{:?}", checkpoint.config().rope);
    assert!(!checkpoint.dtypes().is_empty() && checkpoint.file_bytes() > 0);
    let tokenizer = checkpoint.tokenizer()?;
    let text = "abc he<|im_end|> ü 12\n";
    let plain = tokenizer.encode_plain(text)?;
    assert!(plain.iter().all(|&id| (id as usize) < checkpoint.config().vocab));
    let _ = tokenizer.decode(&plain);
    tokenizer.encode(text, true)?;
    if let Some(template) = checkpoint.chat_template()? {
        let rendered = template.render(&[Message::new("user", tokenizer.guard(text))], true)?;
        tokenizer.encode_chat(&rendered)?;
    }
    Ok(())
}

#[test]
fn the_undamaged_models_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiny.gguf");
    std::fs::write(&file, Gguf::model().bytes()).unwrap();
    use_all(&file).unwrap();
    // A folder that holds one GGUF file is as good as the file.
    use_all(folder.path()).unwrap();
    let hf = tempfile::tempdir().unwrap();
    tiny_model::write_folder(hf.path(), &tiny_model::hf_files());
    use_all(hf.path()).unwrap();

    let (a, b) = (Checkpoint::open(&file).unwrap(), Checkpoint::open(hf.path()).unwrap());
    assert_eq!(a.config(), b.config());
    assert_eq!((a.name(), a.dtypes()), ("Tiny", b.dtypes()));
    for (name, _, _) in tiny_model::tensors() {
        let (a, b) = (a.tensor(name).unwrap(), b.tensor(name).unwrap());
        assert_eq!(a.shape, b.shape, "{name}");
        let permuted = name.contains("q_proj") || name.contains("k_proj");
        assert_eq!(a.bytes == b.bytes, !permuted, "{name}");
        if permuted {
            // Row 1 of a head of 4 rows is row 2 of the file.
            assert_eq!(a.bytes[32..64], b.bytes[64..96], "{name}");
        }
    }
    let (a, b) = (a.tokenizer().unwrap(), b.tokenizer().unwrap());
    for text in ["abc he", "abcab<|im_start|>a a", ""] {
        assert_eq!(a.encode(text, false).unwrap(), b.encode(text, false).unwrap());
    }
    assert_eq!(a.encode("abc", true).unwrap(), [11]);
    assert_eq!(b.encode("abc", true).unwrap(), [14, 11]);
}

/// One change to a file, at a place given as a fraction of its length.
#[derive(Debug, Clone)]
enum Damage {
    Flip(f64, u8),
    Overwrite(f64, [u8; 8]),
    Insert(f64, Vec<u8>),
    Remove(f64, usize),
    Truncate(f64),
}

fn damage() -> impl Strategy<Value = Damage> {
    // Most of what can go wrong is in the first part of a file.
    let place = || prop_oneof![0.0..1.0, (0.0..1.0f64).prop_map(|x| x * x * 0.5)];
    let extreme = prop_oneof![
        Just(u64::MAX),
        Just(u64::MAX / 2 + 1),
        Just(1 << 40),
        Just(u64::from(u32::MAX)),
        Just(1 << 31),
        Just(0),
        any::<u64>(),
    ];
    prop_oneof![
        4 => (place(), 1u8..).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        3 => (place(), extreme).prop_map(|(at, n)| Damage::Overwrite(at, n.to_le_bytes())),
        1 => (place(), prop::collection::vec(any::<u8>(), 1..16))
            .prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        1 => (place(), 1usize..64).prop_map(|(at, n)| Damage::Remove(at, n)),
        1 => (0.0..1.0).prop_map(Damage::Truncate),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    let place = |at: f64| ((bytes.len() as f64 * at) as usize).min(bytes.len().saturating_sub(1));
    if bytes.is_empty() {
        return;
    }
    match damage {
        Damage::Flip(at, bits) => {
            let at = place(*at);
            bytes[at] ^= bits;
        }
        Damage::Overwrite(at, with) => {
            let at = place(*at);
            let n = with.len().min(bytes.len() - at);
            bytes[at..at + n].copy_from_slice(&with[..n]);
        }
        Damage::Insert(at, more) => {
            let at = place(*at);
            bytes.splice(at..at, more.iter().copied());
        }
        Damage::Remove(at, n) => {
            let at = place(*at);
            let end = (at + n).min(bytes.len());
            bytes.drain(at..end);
        }
        Damage::Truncate(at) => {
            let at = place(*at);
            bytes.truncate(at);
        }
    }
}

/// An error is one line; success is fine too: not every bit matters.
fn check(path: &Path) {
    LARGEST.store(0, Ordering::Relaxed);
    if let Err(error) = use_all(path) {
        let text = error.to_string();
        assert!(!text.is_empty() && !text.contains('\n'), "{text}");
    }
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest < ABSURD, "{largest} bytes were asked for at once");
}

/// Damaged files of each kind: `scripts/long-tests fuzz` asks for more.
fn cases() -> u32 {
    std::env::var("KVFOLD_FUZZ_CASES").map_or(600, |cases| cases.parse().expect("a number"))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn damaged_gguf(damages in prop::collection::vec(damage(), 1..4)) {
        let mut bytes = Gguf::model().bytes();
        damages.iter().for_each(|d| apply(&mut bytes, d));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tiny.gguf");
        std::fs::write(&file, bytes).unwrap();
        check(&file);
    }

    #[test]
    fn damaged_folder(victim in 0usize..7, damages in prop::collection::vec(damage(), 1..3)) {
        let mut files = tiny_model::hf_files();
        let mut names: Vec<&str> = files.keys().copied().collect();
        names.sort_unstable();
        let bytes = files.get_mut(names[victim]).unwrap();
        damages.iter().for_each(|d| apply(bytes, d));
        let folder = tempfile::tempdir().unwrap();
        tiny_model::write_folder(folder.path(), &files);
        check(folder.path());
    }
}

/// The message for a GGUF file changed by `change`.
fn gguf_error(change: impl FnOnce(&mut Gguf)) -> String {
    let mut file = Gguf::model();
    change(&mut file);
    bytes_error(&file.bytes())
}

fn bytes_error(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    std::fs::write(&path, bytes).unwrap();
    let text = use_all(&path).expect_err("the file is damaged").to_string();
    assert!(text.contains("tiny.gguf"), "names the file: {text}");
    text
}

fn assert_names(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "\"{part}\" is not in: {text}");
    }
}

#[test]
fn gguf_faults_are_named() {
    let whole = Gguf::model().bytes();
    let fetch = "download it again";
    assert_names(&bytes_error(b""), &["an empty file", fetch]);
    assert_names(&bytes_error(b"PK\x03\x04 a zip archive"), &["a zip archive", "unpack"]);
    assert_names(&bytes_error(b"\x7fELF\x02\x01\x01\x00"), &["not a GGUF file", fetch]);
    assert_names(&bytes_error(&whole[..4]), &["header is truncated", fetch]);
    assert_names(&bytes_error(&whole[..200]), &["header is truncated", fetch]);
    let tail = bytes_error(&whole[..whole.len() - 64]);
    assert_names(&tail, &["blk.0.ffn_down.weight", "beyond the end of the file", fetch]);

    assert_names(&gguf_error(|f| f.version = 1), &["GGUF version 1"]);
    assert_names(&gguf_error(|f| f.version = 4), &["GGUF version 4"]);
    assert_names(&gguf_error(|f| f.version = 3u32.swap_bytes()), &["big-endian"]);
    let text = gguf_error(|f| f.str("general.architecture", "mamba"));
    assert_names(&text, &["architecture \"mamba\"", "qwen3"]);
    let text = gguf_error(|f| f.tensor("blk.0.attn_k.weight").2 = 20);
    assert_names(&text, &["blk.0.attn_k.weight", "unsupported type IQ", "Q4_1"]);
    let text = gguf_error(|f| f.tensors.retain(|t| t.0 != "blk.0.ffn_up.weight"));
    assert_names(&text, &["model.layers.0.mlp.up_proj.weight", "missing", fetch]);
    let text = gguf_error(|f| f.tensor("blk.0.attn_k.weight").1 = vec![2, 16]);
    assert_names(&text, &["k_proj.weight", "[2, 16]", "[4, 8]"]);
    let text = gguf_error(|f| f.tensor("blk.0.attn_q.weight").2 = 2);
    assert_names(&text, &["blk.0.attn_q.weight", "Q4_0 blocks"]);
    let text = gguf_error(|f| f.remove("llama.block_count"));
    assert_names(&text, &["llama.block_count is missing"]);
    let text = gguf_error(|f| f.u32("llama.block_count", u32::MAX));
    assert_names(&text, &["number of layers", "4294967295"]);
    let text = gguf_error(|f| f.u32("llama.attention.head_count_kv", 3));
    assert_names(&text, &["2 heads", "3 KV heads"]);
    let text = gguf_error(|f| f.str("llama.rope.scaling.type", "longrope"));
    assert_names(&text, &["longrope", "not supported"]);
    let text = gguf_error(|f| f.u32("llama.expert_count", 8));
    assert_names(&text, &["mixture of experts"]);
    let text = gguf_error(|f| f.u32("tokenizer.ggml.eos_token_id", 99));
    assert_names(&text, &["token id 99", "16"]);
    let text = gguf_error(|f| f.remove("tokenizer.ggml.model"));
    assert_names(&text, &["no tokenizer"]);
    let text = gguf_error(|f| f.str("tokenizer.ggml.model", "bert"));
    assert_names(&text, &["tokenizer \"bert\"", "not supported"]);
    let text = gguf_error(|f| f.str("tokenizer.ggml.pre", "klingon"));
    assert_names(&text, &["pre-tokenizer \"klingon\"", "tokenizer.ggml.pre"]);
    let text = gguf_error(|f| f.strs("tokenizer.ggml.merges", &["a b", "b zz"]));
    assert_names(&text, &["merge 1", "\"zz\""]);
}

#[test]
fn a_claimed_length_is_not_believed() {
    // An array of 2^61 strings, and one nested without end.
    let strings = [&8u32.to_le_bytes()[..], &(1u64 << 61).to_le_bytes()].concat();
    let text = gguf_error(|f| f.set("tokenizer.ggml.tokens", 9, &strings));
    assert_names(&text, &["tokenizer.ggml.tokens"]);
    let level = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
    let text = gguf_error(|f| f.set("deep", 9, &level.repeat(1000)));
    assert_names(&text, &["deep is nested too deeply"]);
}

/// The message for a folder changed by `change`.
fn folder_error(change: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    tiny_model::write_folder(folder.path(), &tiny_model::hf_files());
    change(folder.path());
    use_all(folder.path()).expect_err("the folder is damaged").to_string()
}

fn edit(folder: &Path, name: &str, from: &str, to: &str) {
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(folder.join(name), text.replace(from, to)).unwrap();
}

#[test]
fn folder_faults_are_named() {
    let remove =
        |name: &'static str| folder_error(move |f| std::fs::remove_file(f.join(name)).unwrap());
    assert_names(&remove("config.json"), &["neither config.json nor a .gguf"]);
    assert_names(&remove("two.safetensors"), &["two.safetensors", "shard is missing"]);
    assert_names(&remove("model.safetensors.index.json"), &["model.safetensors.index.json"]);
    assert_names(&remove("tokenizer.json"), &["tokenizer.json is missing"]);

    let text = folder_error(|f| {
        let shard = f.join("one.safetensors");
        let bytes = std::fs::read(&shard).unwrap();
        std::fs::write(&shard, &bytes[..bytes.len() - 9]).unwrap();
    });
    assert_names(&text, &["one.safetensors", "bytes, but its header says", "download it again"]);
    let text = folder_error(|f| edit(f, "config.json", "\"llama\"", "\"gpt_neox\""));
    assert_names(&text, &["config.json", "architecture \"gpt_neox\"", "mistral"]);
    let text = folder_error(|f| edit(f, "config.json", "\"intermediate_size\":12", "\"x\":12"));
    assert_names(&text, &["config.json", "intermediate_size is missing"]);
    let text = folder_error(|f| {
        edit(f, "config.json", "\"intermediate_size\":12", "\"intermediate_size\":16")
    });
    assert_names(&text, &["gate_proj.weight", "[12, 8]", "[16, 8]"]);
    let text = folder_error(|f| edit(f, "config.json", ",", ";"));
    assert_names(&text, &["config.json", "not valid JSON"]);
    let text = folder_error(|f| {
        edit(f, "model.safetensors.index.json", "one.safetensors", "../one.safetensors")
    });
    assert_names(&text, &["index.json", "../one.safetensors", "no file name"]);
    let text = folder_error(|f| {
        // The header's length stays the same.
        let shard = f.join("one.safetensors");
        let bytes = std::fs::read(&shard).unwrap();
        let text = bytes.escape_ascii().to_string();
        assert!(text.contains("F32"));
        let changed: Vec<u8> = bytes
            .windows(5)
            .position(|w| w == b"\"F32\"")
            .map(|at| [&bytes[..at], b"\"I32\"", &bytes[at + 5..]].concat())
            .unwrap();
        std::fs::write(&shard, changed).unwrap();
    });
    assert_names(&text, &["unsupported type I32", "BF16"]);
    let text = folder_error(|f| edit(f, "tokenizer.json", "\"BPE\"", "\"Unigram\""));
    assert_names(&text, &["tokenizer.json", "\"Unigram\"", "not supported"]);
}

#[test]
fn paths_that_are_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Checkpoint::open(folder.path().join("none.gguf")).unwrap_err();
    assert!(matches!(missing, Error::Io { .. }) && missing.to_string().contains("none.gguf"));
    for name in ["a.gguf", "b.gguf"] {
        std::fs::write(folder.path().join(name), b"").unwrap();
    }
    let several = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert_names(&several, &["several .gguf files"]);
}
