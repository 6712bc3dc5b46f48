//! What the emulated device keeps account of: memory, events, captures, graphs.

use super::emulator::Emulator;
use super::pinned::Pinned;
use super::work::{Capture, Work};
use crate::backend::driver::RawStream;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

pub(super) struct State {
    /// Allocations: bytes by address.
    pub memory: HashMap<u64, u64>,
    pub used: u64,
    /// Launches at the time of recording, by event.
    pub events: HashMap<u64, Option<u64>>,
    /// By stream.
    pub captures: HashMap<u64, Capture>,
    pub graphs: HashMap<u64, Arc<Vec<Work>>>,
    pub pinned: Pinned,
}

impl State {
    pub fn new(emulator: Arc<Emulator>) -> Self {
        Self {
            memory: HashMap::new(),
            used: 0,
            events: HashMap::new(),
            captures: HashMap::new(),
            graphs: HashMap::new(),
            pinned: Pinned::new(emulator),
        }
    }

    /// Counts `bytes` of memory as used, if they are free.
    pub fn claim(&mut self, bytes: u64, total: u64) -> Result<()> {
        let free = total - self.used;
        if bytes > free {
            return Err(Error::DeviceOutOfMemory { needed: bytes, free });
        }
        self.used += bytes;
        Ok(())
    }

    /// An error, and the end of the capture's hopes, if the stream captures.
    pub fn not_captured(&mut self, stream: RawStream, doing: &str) -> Result<()> {
        match self.captures.get_mut(&stream.0) {
            Some(capture) => Err(capture.spoil(doing)),
            None => Ok(()),
        }
    }

    /// The same if this thread captures anything.
    pub fn not_capturing(&mut self, doing: &str) -> Result<()> {
        let thread = std::thread::current().id();
        match self.captures.values_mut().find(|capture| capture.thread == thread) {
            Some(capture) => Err(capture.spoil(doing)),
            None => Ok(()),
        }
    }

    pub fn begin_capture(&mut self, stream: RawStream) -> Result<()> {
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

    pub fn end_capture(&mut self, stream: RawStream) -> Result<Arc<Vec<Work>>> {
        const DOING: &str = "end a capture";
        let capture = self.captures.remove(&stream.0);
        let capture = capture.ok_or_else(|| Error::device(DOING, "the stream captures nothing"))?;
        match capture.spoiled {
            Some(doing) => Err(Error::device(DOING, format!("it was spoiled: {doing}"))),
            None => Ok(Arc::new(capture.work)),
        }
    }
}
