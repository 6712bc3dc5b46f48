//! Doing work on a stream of the emulated device, or recording it.

use super::work::{Capture, StreamOp};
use super::{EmulatedDriver, State};
use crate::backend::driver::RawStream;
use crate::error::{Error, Result};
use std::sync::Arc;

impl State {
    /// An error, and the end of the capture's hopes, if the stream captures.
    pub(super) fn not_captured(&mut self, stream: RawStream, doing: &str) -> Result<()> {
        match self.captures.get_mut(&stream.0) {
            Some(capture) => Err(capture.spoil(doing)),
            None => Ok(()),
        }
    }

    /// The same if this thread captures anything.
    pub(super) fn not_capturing(&mut self, doing: &str) -> Result<()> {
        let thread = std::thread::current().id();
        match self.captures.values_mut().find(|capture| capture.thread == thread) {
            Some(capture) => Err(capture.spoil(doing)),
            None => Ok(()),
        }
    }

    pub(super) fn begin_capture(&mut self, stream: RawStream) -> Result<()> {
        const DOING: &str = "begin a capture";
        self.not_captured(stream, DOING)?;
        if stream.0 == 0 {
            return Err(Error::device(DOING, "the default stream cannot be captured"));
        }
        let thread = std::thread::current().id();
        let capture = Capture { thread, work: Vec::new(), spoiled: None };
        self.captures.insert(stream.0, capture);
        Ok(())
    }

    pub(super) fn end_capture(&mut self, stream: RawStream) -> Result<Arc<Vec<StreamOp>>> {
        const DOING: &str = "end a capture";
        let capture = self.captures.remove(&stream.0);
        let capture = capture.ok_or_else(|| Error::device(DOING, "the stream captures nothing"))?;
        match capture.spoiled {
            Some(doing) => Err(Error::device(DOING, format!("it was spoiled: {doing}"))),
            None => Ok(Arc::new(capture.work)),
        }
    }
}

impl EmulatedDriver {
    /// Does work at once, or records it if the stream captures.
    ///
    /// # Safety
    /// That of the driver.
    pub(super) unsafe fn submit(&self, work: StreamOp, stream: RawStream) -> Result<()> {
        if let Some(capture) = self.state().captures.get_mut(&stream.0) {
            capture.work.push(work);
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.run(&work, stream) }
    }

    /// Does work at once.
    ///
    /// # Safety
    /// That of the driver.
    pub(super) unsafe fn run(&self, work: &StreamOp, stream: RawStream) -> Result<()> {
        // Pinned memory is read as late as can be.
        self.state().pinned.land_writes();
        match *work {
            // SAFETY: the caller's promise.
            StreamOp::Launch { ref kernel, shape, ref params } => unsafe {
                self.run_kernel(kernel, shape, params)
            },
            // SAFETY: the caller's promise.
            StreamOp::Copy { from, to, bytes } => unsafe { self.emulator.copy(from, to, bytes) },
            // SAFETY: the caller's promise.
            StreamOp::Fill { at, value, bytes } => unsafe { self.emulator.fill(at, value, bytes) },
            StreamOp::WritePinned { to, from, bytes } => {
                self.state().pinned.write(to, from, bytes);
                Ok(())
            }
            // SAFETY: the caller's promise.
            StreamOp::ReadPinned { from, to, bytes } => unsafe {
                self.state().pinned.read(stream, from, to, bytes)
            },
        }
    }
}
