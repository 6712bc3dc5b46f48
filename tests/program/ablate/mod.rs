//! Ablations: specs and their errors, runs that are interrupted and resumed, the page
//! that results become.

mod cli;
mod report;
mod runner;
mod spec;

use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder with a text and a model that is only looked at from outside.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.write("text.txt", "The quick brown fox jumps over the lazy dog. ".repeat(40));
        place.write("model.gguf", "weights");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

/// A small model with random weights and a context of 512 tokens.
fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smollm2/model.gguf")
}
