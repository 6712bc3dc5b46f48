//! The command line, run in a folder of its own, and what it may answer.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// A small model with random weights and a context of 512 tokens.
pub fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smollm2/model.gguf")
}

/// A folder to work in, with a model folder of its own that must stay unused.
pub struct Place(pub TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        fs::write(self.0.path().join(name), bytes).unwrap();
        name.to_owned()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvfold"));
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null());
        command.env("KVFOLD_CACHE", self.0.path().join(".cache"));
        command.env_remove("KVFOLD_MODEL_DIR").env_remove("KVFOLD_LOG");
        // Neither the hub nor the models of other programs.
        command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", self.0.path().join(".hf"));
        command.env("LLAMA_CACHE", self.0.path().join(".llama"));
        command.env("OLLAMA_MODELS", self.0.path().join(".ollama"));
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE"] {
            command.env_remove(name);
        }
        command.env("RUST_BACKTRACE", "1");
        command
    }

    pub fn kvfold(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// `run` with the small model.
    pub fn run(&self, args: &[&str]) -> Output {
        let model = model();
        self.kvfold(&[&["run", "--model", model.to_str().unwrap()], args].concat())
    }

    /// `run` with the small model, and something piped in.
    pub fn with_input(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self
            .command(&[&["run", "--model", model().to_str().unwrap()], args].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }
}

/// The one line of an error; stdout must be empty.
#[track_caller]
pub fn error(output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty(), "{:?}", String::from_utf8_lossy(&output.stdout));
    let line = stderr.strip_suffix('\n').unwrap_or(&stderr);
    assert!(line.starts_with("error: ") && !line.contains('\n'), "{stderr}");
    line.to_owned()
}

/// The error must be one line that names all of `parts`.
#[track_caller]
pub fn refused(output: &Output, parts: &[&str]) {
    let line = error(output);
    for part in parts {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
}

/// Standard output and standard error of a success.
#[track_caller]
pub fn success(output: &Output) -> (String, String) {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    (String::from_utf8(output.stdout.clone()).expect("the answer is UTF-8"), stderr)
}
