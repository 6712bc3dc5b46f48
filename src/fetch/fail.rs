//! Why one source did not deliver.

use crate::error::Error;

/// Why one source did not deliver.
pub(super) enum Fail {
    /// This source cannot; the next one may.
    Source(String),
    /// This source was not tried at all, for want of a setting.
    Skipped(String),
    /// No source can: cancelled, the disk is full, the cache is not writable.
    Fatal(Error),
}

impl From<Error> for Fail {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}
