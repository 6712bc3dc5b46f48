//! Copies to and from pinned memory, as late as a device may make them: what is
//! written is read from the host when the device next does something, and what is
//! read is poison until the host has waited for it.

use super::emulator::Emulator;
use crate::backend::driver::{RawEvent, RawStream};
use crate::error::Result;
use std::collections::HashMap;
use std::sync::Arc;

/// Copies that are under way, and what events mark.
pub(super) struct Pinned {
    emulator: Arc<Emulator>,
    writes: Vec<Write>,
    reads: Vec<Read>,
    /// Reads so far; a read's number is its place among them.
    started: u64,
    /// The reads of a stream below this number have been waited for.
    awaited: HashMap<u64, u64>,
    marks: HashMap<u64, Mark>,
}

struct Write {
    to: u64,
    from: u64,
    bytes: u64,
}

struct Read {
    stream: u64,
    number: u64,
    to: u64,
    data: Vec<u8>,
}

/// What an event marks: reads of the stream below a number.
struct Mark {
    stream: u64,
    before: u64,
    asked: bool,
}

impl Pinned {
    pub(super) fn new(emulator: Arc<Emulator>) -> Self {
        Self {
            emulator,
            writes: Vec::new(),
            reads: Vec::new(),
            started: 0,
            awaited: HashMap::new(),
            marks: HashMap::new(),
        }
    }

    pub(super) fn write(&mut self, to: u64, from: u64, bytes: u64) {
        self.writes.push(Write { to, from, bytes });
    }

    /// # Safety
    /// Both ranges are live, the host's until the read was waited for.
    pub(super) unsafe fn read(
        &mut self,
        stream: RawStream,
        from: u64,
        to: u64,
        bytes: u64,
    ) -> Result<()> {
        let mut data = vec![0; bytes as usize];
        // SAFETY: the caller's promise.
        unsafe {
            std::ptr::write_bytes(to as *mut u8, 0xff, bytes as usize);
            self.emulator.read(from, &mut data)?;
        }
        self.reads.push(Read { stream: stream.0, number: self.started, to, data });
        self.started += 1;
        Ok(())
    }

    /// Makes all copies to the device.
    pub(super) fn land_writes(&mut self) {
        for Write { to, from, bytes } in self.writes.drain(..) {
            // SAFETY: whoever asked for it promised that both ranges are live until now,
            // and the host's is not written.
            unsafe {
                let from = std::slice::from_raw_parts(from as *const u8, bytes as usize);
                // A trace that lacks it is broken, and the next caller learns of it.
                let _ = self.emulator.write(to, from);
            }
        }
    }

    /// The host has waited for a stream.
    pub(super) fn land_stream(&mut self, stream: RawStream) {
        self.land(stream.0, self.started);
    }

    /// The host has waited for everything.
    pub(super) fn land_all(&mut self) {
        let streams = self.reads.iter().map(|read| read.stream);
        let marked = self.marks.values().map(|mark| mark.stream);
        let streams: Vec<u64> = streams.chain(marked).collect();
        streams.into_iter().for_each(|stream| self.land(stream, self.started));
        self.land_writes();
    }

    pub(super) fn record(&mut self, event: RawEvent, stream: RawStream) {
        let mark = Mark { stream: stream.0, before: self.started, asked: false };
        self.marks.insert(event.0, mark);
    }

    pub(super) fn forget(&mut self, event: RawEvent) {
        self.marks.remove(&event.0);
    }

    /// The host has waited for an event.
    pub(super) fn land_event(&mut self, event: RawEvent) {
        if let Some(Mark { stream, before, .. }) = self.marks.get(&event.0) {
            let (stream, before) = (*stream, *before);
            self.land(stream, before);
        }
    }

    /// Asks for an event. It is done when it is asked for the second time, or if the
    /// host has waited for what it marks.
    pub(super) fn is_done(&mut self, event: RawEvent) -> bool {
        let Some(mark) = self.marks.get_mut(&event.0) else { return true };
        let awaited = self.awaited.get(&mark.stream).copied().unwrap_or(0);
        if std::mem::replace(&mut mark.asked, true) || awaited >= mark.before {
            self.land_event(event);
            return true;
        }
        false
    }

    /// Makes the reads of a stream below a number.
    fn land(&mut self, stream: u64, before: u64) {
        self.land_writes();
        let awaited = self.awaited.entry(stream).or_default();
        *awaited = before.max(*awaited);
        let done = |read: &mut Read| read.stream == stream && read.number < before;
        for read in self.reads.extract_if(.., done) {
            // SAFETY: whoever asked for it promised that the range is live until now.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    read.data.as_ptr(),
                    read.to as *mut u8,
                    read.data.len(),
                );
            }
        }
    }
}
