//! The progress of several files as one.

use std::path::Path;

use super::progress::Progress;

/// Counts the bytes of one file after those of the files before it.
pub(super) struct Whole<'a> {
    /// Who is told.
    pub(super) inner: &'a mut dyn Progress,
    /// Bytes of the files before this one.
    pub(super) before: u64,
    /// Bytes of all files.
    pub(super) total: u64,
    /// The bytes that are told of are being hashed, not transferred.
    hashing: bool,
}

impl<'a> Whole<'a> {
    /// The file at `path` is begun, after `before` of `total` bytes.
    pub(super) fn new(inner: &'a mut dyn Progress, path: &Path, before: u64, total: u64) -> Self {
        inner.file(path);
        inner.bytes(before, total);
        Self { inner, before, total, hashing: false }
    }
}

impl Progress for Whole<'_> {
    fn bytes(&mut self, done: u64, _total: u64) {
        if self.hashing {
            return;
        }
        self.inner.bytes(self.before.saturating_add(done).min(self.total), self.total);
    }

    fn verifying(&mut self, path: &Path) {
        self.hashing = true;
        self.inner.verifying(path);
    }

    fn transferring(&mut self) {
        self.hashing = false;
    }

    fn failed(&mut self, what: &str, reason: &str) {
        self.inner.failed(what, reason);
    }

    fn waiting(&mut self, lock: &Path) {
        self.inner.waiting(lock);
    }
}
