//! Work on a stream of the emulated device, and captures of it.

use crate::backend::driver::Launch;
use crate::error::Error;
use std::thread::ThreadId;

/// What can be captured. Addresses are numbers, on the host too.
#[derive(Clone)]
pub(super) enum Work {
    Launch { kernel: String, shape: Launch, params: Vec<u8> },
    Copy { from: u64, to: u64, bytes: u64 },
    Fill { at: u64, value: u8, bytes: u64 },
    WritePinned { to: u64, from: u64, bytes: u64 },
    ReadPinned { from: u64, to: u64, bytes: u64 },
}

/// What a stream captures.
pub(super) struct Capture {
    pub thread: ThreadId,
    pub work: Vec<Work>,
    /// What must not have been done while it captured.
    pub spoiled: Option<String>,
}

impl Capture {
    /// Ends its hopes.
    pub fn spoil(&mut self, doing: &str) -> Error {
        self.spoiled.get_or_insert_with(|| doing.to_owned());
        Error::device(doing, "not permitted during a capture")
    }
}
