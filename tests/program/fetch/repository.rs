//! Models of a hub: what is fetched of a repository, how it is checked, what is left of an
//! interruption.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use kvfold::Error;
use kvfold::fetch::{Repository, Silent, fetch_repository};
use kvfold::model::Checkpoint;
use safetensors::SafeTensors;

use super::Steps;
use super::made_up_hub::{COMMIT, Fault, Hub};
use crate::tiny_model::Gguf;

/// A repository by its name.
pub fn named(name: &str) -> Repository {
    Repository::parse(name).expect(name)
}

/// A GGUF file of several transfer chunks.
pub fn large_gguf() -> Vec<u8> {
    let mut file = Gguf::model();
    file.str("general.description", &"x".repeat(600_000));
    file.bytes()
}

/// A repository with three quantizations.
pub fn gguf_hub() -> Hub {
    let mut other = Gguf::model();
    other.str("general.name", "Other");
    Hub::start([
        ("README.md", b"# n".to_vec()),
        ("m-Q8_0.gguf", other.bytes()),
        ("m-Q4_K_M.gguf", large_gguf()),
        ("mmproj-m-F16.gguf", b"a picture tower".to_vec()),
        ("sub dir/m #1 100%-Q2_K.gguf", other.bytes()),
    ])
}

/// A small model that can be run, as the files of a folder with two shards.
pub fn folder_files() -> HashMap<&'static str, Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smollm2");
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    let names =
        ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];
    let mut files: HashMap<_, _> = names.map(|name| (name, read(name))).into();
    let bytes = read("model.safetensors");
    let whole = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = whole.tensors();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let map: serde_json::Map<_, _> = (tensors.iter().enumerate())
        .map(|(i, (name, _))| (name.clone(), ["one.safetensors", "two.safetensors"][i % 2].into()))
        .collect();
    let shard = |rest: usize| {
        let views = tensors.iter().enumerate().filter(|(i, _)| i % 2 == rest).map(|(_, t)| t);
        safetensors::serialize(views.map(|(name, view)| (name, view)), None).unwrap()
    };
    files.insert("one.safetensors", shard(0));
    files.insert("two.safetensors", shard(1));
    let index = serde_json::json!({"weight_map": map}).to_string();
    files.insert("model.safetensors.index.json", index.into_bytes());
    files
}

/// A repository with a folder of transformers, and what must not be fetched of it.
pub fn folder_hub() -> Hub {
    let mut files: Vec<(&str, Vec<u8>)> = folder_files().into_iter().collect();
    files.push(("chat_template.jinja", b"{{ messages[0]['content'] }}".to_vec()));
    for other in ["pytorch_model.bin", "original/consolidated.00.pth", "consolidated.safetensors"] {
        files.push((other, vec![7; 1000]));
    }
    Hub::start(files)
}

fn with<'a>(requests: &'a [String], part: &str) -> Vec<&'a String> {
    requests.iter().filter(|head| head.contains(part)).collect()
}

#[test]
fn a_gguf_file_is_chosen_fetched_checked_and_kept() {
    let (cache, hub) = (tempfile::tempdir().unwrap(), gguf_hub());
    let mut options = hub.options(&cache);
    options.hub_token = Some("secret".into());
    let path = fetch_repository(&named("o/n"), &options, &mut Silent).unwrap();
    let expected = cache.path().join("hub/o/n").join(COMMIT).join("m-Q4_K_M.gguf");
    assert_eq!(path, expected);
    assert_eq!(fs::read(&path).unwrap(), large_gguf());
    Checkpoint::open(&path).unwrap();
    let requests = hub.requests();
    assert!(requests[0].contains("/api/models/o/n/revision/main?blobs=true"), "{}", requests[0]);
    assert!(with(&requests, "hub ").iter().all(|head| head.contains("bearer secret")));
    assert!(!with(&requests, "cdn ").is_empty());
    assert!(with(&requests, "cdn ").iter().all(|head| !head.contains("secret")), "{requests:?}");
    assert!(with(&requests, "q8_0").is_empty() && with(&requests, "mmproj").is_empty());

    // It is here: nobody is asked.
    let mut steps = Steps::default();
    assert_eq!(fetch_repository(&named("o/n"), &options, &mut steps).unwrap(), path);
    assert_eq!(steps.0, [format!("done {}", path.display())]);
    assert!(hub.requests().is_empty());
    // Unless for something newer, of which the files are here.
    options.refresh = true;
    assert_eq!(fetch_repository(&named("o/n"), &options, &mut Silent).unwrap(), path);
    let requests = hub.requests();
    assert!(requests.iter().all(|head| !head.contains("cdn") || head.contains("bytes=0-65535")));

    // By name; a URL's special characters; a revision with slashes.
    for (name, file) in [
        ("o/n:q8_0", "m-Q8_0.gguf"),
        ("o/n:m-Q8_0.gguf", "m-Q8_0.gguf"),
        ("o/n@refs/pr/7:m #1 100%-Q2_K.gguf", "sub dir/m #1 100%-Q2_K.gguf"),
        ("https://huggingface.co/o/n/blob/main/m-Q8_0.gguf", "m-Q8_0.gguf"),
    ] {
        let path = fetch_repository(&named(name), &options, &mut Silent).unwrap();
        assert!(path.ends_with(file), "{name}: {}", path.display());
        Checkpoint::open(&path).unwrap();
    }
    assert!(hub.requests().iter().any(|head| head.contains("/revision/refs%2fpr%2f7?")));
}

#[test]
fn a_folder_is_fetched_whole_and_nothing_besides() {
    let (cache, hub) = (tempfile::tempdir().unwrap(), folder_hub());
    let mut steps = Steps::default();
    let path = fetch_repository(&named("o/n"), &hub.options(&cache), &mut steps).unwrap();
    assert_eq!(path, cache.path().join("hub/o/n").join(COMMIT));
    let checkpoint = Checkpoint::open(&path).unwrap();
    checkpoint.tokenizer().unwrap();
    for name in ["chat_template.jinja", "generation_config.json", "tokenizer_config.json"] {
        assert!(path.join(name).is_file(), "{name}");
    }
    let requests = hub.requests();
    for other in [".bin", "original", "consolidated"] {
        assert!(with(&requests, other).is_empty(), "{other}");
    }
    // The file that makes it a model comes last.
    assert!(requests.last().unwrap().contains("/config.json "), "{requests:?}");
    // One progress for all files, which never goes back.
    let bytes: Vec<u64> =
        steps.0.iter().filter_map(|step| step.strip_prefix("bytes ")?.parse().ok()).collect();
    assert!(bytes.is_sorted() && bytes.len() > 8, "{bytes:?}");
    assert_eq!(steps.count("source"), 1);
}

#[test]
fn all_parts_of_a_gguf_file_are_fetched_the_first_one_last() {
    let (cache, bytes) = (tempfile::tempdir().unwrap(), Gguf::model().bytes());
    let names = ["BF16/m-BF16-00001-of-00002.gguf", "BF16/m-BF16-00002-of-00002.gguf"];
    let hub = Hub::start(names.map(|name| (name, bytes.clone())));
    let path = fetch_repository(&named("o/n"), &hub.options(&cache), &mut Silent).unwrap();
    assert!(path.ends_with(names[0]), "{}", path.display());
    assert!(path.with_file_name("m-BF16-00002-of-00002.gguf").is_file());
    assert!(hub.requests().last().unwrap().contains("00001-of-00002"));
}

#[test]
fn what_breaks_off_is_resumed_and_a_busy_hub_is_waited_for() {
    let (cache, hub) = (tempfile::tempdir().unwrap(), gguf_hub());
    hub.fail("/api/", 1, Fault::Status(503, "Retry-After: 1"))
        .fail("/api/", 1, Fault::Status(429, ""))
        .fail("/api/", 1, Fault::Cut(20));
    let cdn = "/cdn/m-Q4_K_M";
    // The first is the look at its head.
    hub.fail(cdn, 1, Fault::Cut(10)).fail(cdn, 1, Fault::Status(502, ""));
    let options = hub.options(&cache);
    let path = fetch_repository(&named("o/n"), &options, &mut Silent).unwrap();
    assert_eq!(fs::read(&path).unwrap(), large_gguf());
    assert_eq!(with(&hub.requests(), "/api/").len(), 4);

    // Within the transfer itself.
    let cache = tempfile::tempdir().unwrap();
    let mut options = hub.options(&cache);
    options.retries = 3;
    hub.say(|info| info["gguf"] = serde_json::json!({"architecture": "llama"}));
    hub.fail(cdn, 1, Fault::Cut(300_000)).fail(cdn, 1, Fault::Status(503, "Retry-After: 0"));
    let path = fetch_repository(&named("o/n"), &options, &mut Silent).unwrap();
    assert_eq!(fs::read(&path).unwrap(), large_gguf());
    let requests = hub.requests();
    assert_eq!(with(&requests, "range: bytes=300000-").len(), 4, "two, each redirected");
}

#[test]
fn an_interrupted_folder_is_no_model_and_goes_on_without_asking_again() {
    let (cache, hub) = (tempfile::tempdir().unwrap(), folder_hub());
    let mut options = hub.options(&cache);
    options.retries = 0;
    hub.fail("/cdn/two.safetensors", 9, Fault::Cut(100));
    let message = fetch_repository(&named("o/n"), &options, &mut Silent).unwrap_err().to_string();
    assert!(message.contains("after 100 of"), "{message}");
    assert!(message.contains("goes on where it was") && !message.contains('\n'), "{message}");
    let folder = cache.path().join("hub/o/n").join(COMMIT);
    assert!(folder.join("one.safetensors").is_file() && !folder.join("config.json").exists());
    assert!(Checkpoint::open(&folder).is_err());
    // Offline it is said that files lack.
    options.offline = true;
    let message = fetch_repository(&named("o/n"), &options, &mut Silent).unwrap_err().to_string();
    assert!(message.contains("HF_HUB_OFFLINE"), "{message}");
    options.offline = false;
    hub.heal();
    hub.requests();
    let path = fetch_repository(&named("o/n"), &options, &mut Silent).unwrap();
    Checkpoint::open(&path).unwrap();
    let requests = hub.requests();
    assert!(with(&requests, "/api/").is_empty() && with(&requests, "one.safe").is_empty());
    assert!(requests[0].contains("range: bytes=100-"), "{}", requests[0]);
}

#[test]
fn other_bytes_than_the_hub_says_are_not_kept() {
    for (file, fault, expected) in [
        ("/cdn/m-Q4_K_M", Fault::Flip, "its SHA-256 is"),
        ("/cdn/m-Q4_K_M", Fault::Short, "the hub says"),
        ("/cdn/m-Q4_K_M", Fault::Body("text/html", b"<p>Log in".to_vec()), "a web page came"),
        ("/cdn/m-Q4_K_M", Fault::Body("text/plain", vec![b'x'; 900_000]), "the hub says"),
    ] {
        let (cache, hub) = (tempfile::tempdir().unwrap(), gguf_hub());
        hub.say(|info| info["gguf"] = serde_json::json!({"architecture": "llama"}));
        let mut options = hub.options(&cache);
        options.retries = 0;
        hub.fail(file, 9, fault);
        let error = fetch_repository(&named("o/n"), &options, &mut Silent).unwrap_err();
        assert!(matches!(error, Error::Fetch { .. }));
        let message = error.to_string();
        assert!(message.contains(expected) && !message.contains('\n'), "{expected}: {message}");
        let folder = cache.path().join("hub/o/n").join(COMMIT);
        assert!(!folder.join("m-Q4_K_M.gguf").exists());
    }
    // Small files, of which the hub has Git's sum: in the look before, and in the transfer.
    for times in [1, 9] {
        let (cache, hub) = (tempfile::tempdir().unwrap(), folder_hub());
        hub.fail(if times == 1 { "/config.json" } else { "/tokenizer.json" }, times, Fault::Flip);
        let error = fetch_repository(&named("o/n"), &hub.options(&cache), &mut Silent);
        let message = error.unwrap_err().to_string();
        assert!(message.contains("Git blob sum"), "{message}");
    }
}

#[test]
fn what_was_changed_on_the_disk_is_fetched_again() {
    let (cache, hub) = (tempfile::tempdir().unwrap(), folder_hub());
    let mut options = hub.options(&cache);
    let path = fetch_repository(&named("o/n"), &options, &mut Silent).unwrap();
    fs::remove_file(path.join("one.safetensors")).unwrap();
    fs::write(path.join("tokenizer.json"), "{}").unwrap();
    hub.requests();
    fetch_repository(&named("o/n"), &options, &mut Silent).unwrap();
    Checkpoint::open(&path).unwrap().tokenizer().unwrap();
    assert_eq!(hub.requests().len(), 3, "a redirect and two files");
    // Same size and time: only a check of all sums can see it.
    let file = path.join("config.json");
    let (mut bytes, time) = (fs::read(&file).unwrap(), fs::metadata(&file).unwrap().modified());
    bytes[0] = b' ';
    fs::write(&file, bytes).unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_modified(time.unwrap()).unwrap();
    options.verify = true;
    fetch_repository(&named("o/n"), &options, &mut Silent).unwrap();
    Checkpoint::open(&path).unwrap();
}

#[test]
fn fetches_of_one_repository_at_the_same_time_share_the_work() {
    let (cache, hub) = (tempfile::tempdir().unwrap(), folder_hub());
    let (options, barrier) = (hub.options(&cache), Barrier::new(4));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                barrier.wait();
                let path = fetch_repository(&named("o/n"), &options, &mut Silent).unwrap();
                Checkpoint::open(path).unwrap();
            });
        }
    });
    let requests = hub.requests();
    for file in ["cdn get /cdn/one.safetensors", "cdn get /cdn/two.safetensors"] {
        assert_eq!(with(&requests, file).len(), 1, "{file}");
    }
}

#[test]
fn a_newer_commit_is_taken_when_asked_for_and_missing_it_is_no_harm() {
    let (cache, hub) = (tempfile::tempdir().unwrap(), gguf_hub());
    let mut options = hub.options(&cache);
    let old = fetch_repository(&named("o/n"), &options, &mut Silent).unwrap();
    options.refresh = true;
    // The hub is not to be reached: what is here is used, and that is said.
    hub.fail("/api/", 99, Fault::Status(404, ""));
    let mut steps = Steps::default();
    assert_eq!(fetch_repository(&named("o/n"), &options, &mut steps).unwrap(), old);
    assert_eq!(steps.count("failed the hub"), 1, "{:?}", steps.0);
    hub.heal();
    let mut newer = Gguf::model();
    newer.str("general.name", "Newer");
    hub.put("m-Q4_K_M.gguf", newer.bytes());
    // The same commit with other bytes stands for a new one here.
    let path = fetch_repository(&named("o/n"), &options, &mut Silent).unwrap();
    assert_eq!(fs::read(path).unwrap(), newer.bytes());
}

#[test]
fn a_renamed_repository_is_followed_with_its_name() {
    let (cache, hub) = (tempfile::tempdir().unwrap(), gguf_hub());
    hub.fail("/api/models/old/name/", 9, Fault::Moved("/api/models/o/n/revision/main")).fail(
        "/old/name/resolve/",
        9,
        Fault::Moved("/o/n/resolve/0123456789abcdef0123456789abcdef01234567/m-Q8_0.gguf"),
    );
    let path =
        fetch_repository(&named("old/name:Q8_0"), &hub.options(&cache), &mut Silent).unwrap();
    assert!(path.ends_with(format!("hub/old/name/{COMMIT}/m-Q8_0.gguf")));
    Checkpoint::open(path).unwrap();
}
