//! What a caller may show while a model is fetched.

use std::path::Path;

/// Receives the steps of a fetch; every method has an empty default.
///
/// The calls come from the thread that called [`fetch`](super::fetch), in the
/// order of the work; [`bytes`](Self::bytes) after each chunk of up to 1 MiB.
pub trait Progress {
    /// A source is being tried; `what` names it.
    fn source(&mut self, what: &str) {
        let _ = what;
    }

    /// `done` of `total` bytes have been transferred, or hashed after
    /// [`verifying`](Self::verifying).
    fn bytes(&mut self, done: u64, total: u64) {
        let _ = (done, total);
    }

    /// The SHA-256 of `path` is being computed.
    fn verifying(&mut self, path: &Path) {
        let _ = path;
    }

    /// Bytes of `path`, one of several files, follow; [`bytes`](Self::bytes) counts those
    /// of all.
    fn file(&mut self, path: &Path) {
        let _ = path;
    }

    /// Bytes are transferred again, after a [`verifying`](Self::verifying).
    fn transferring(&mut self) {}

    /// `what` (a source, or the cached copy) cannot be used, for `reason`.
    fn failed(&mut self, what: &str, reason: &str) {
        let _ = (what, reason);
    }

    /// Another process is fetching the same model and holds `lock`.
    fn waiting(&mut self, lock: &Path) {
        let _ = lock;
    }

    /// The checked file is at `path`.
    fn done(&mut self, path: &Path) {
        let _ = path;
    }
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {}
