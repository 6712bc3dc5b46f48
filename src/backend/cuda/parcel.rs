//! Small changes of device memory that travel together: one copy from page-locked memory,
//! and a kernel that puts each piece in its place (`kernels/cache/scatter.cu`).
//!
//! ```text
//! | where, from, bytes | … of every piece | pieces, 16 bytes aligned |     one copy
//!                                   │
//!                                scatter ─▶ list a, list b, …               one launch
//! ```
//!
//! A step changes a dozen lists by some bytes each; a copy and an event for each would cost
//! more than all their bytes.

use super::params::{ScatterParams, ScatterPiece};
use crate::backend::driver::{Device, DeviceBuffer, DeviceEvent, DeviceStream, HostBuffer, Launch};
use crate::error::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Parcels that can be in flight before the next waits for the oldest one's copy.
const DEPTH: usize = 3;
/// Bytes that there is room for at the least: growing costs captured steps.
const LEAST: usize = 64 << 10;
/// Bytes that the kernel copies at a time.
pub(super) const VECTOR: usize = 16;
const THREADS: u32 = 128;
/// Bytes of a piece that a block of threads copies, about.
const SHARE: u32 = 16 << 10;

/// A parcel that lists put their changes in: a handle, shared by them. For one stream.
#[derive(Clone)]
pub(super) struct Parcel {
    packed: Arc<Mutex<Packed>>,
    at_once: bool,
}

impl Parcel {
    /// One that travels when its owner says so.
    pub fn new(device: &Device) -> Result<Self> {
        let packed = Packed {
            pieces: Vec::new(),
            bytes: Vec::new(),
            number: 0,
            lost: 0,
            device: device.alloc(0)?,
            staged: Vec::new(),
            turn: 0,
        };
        Ok(Self { packed: Arc::new(Mutex::new(packed)), at_once: false })
    }

    /// One that travels with every change.
    pub fn at_once(device: &Device) -> Result<Self> {
        Ok(Self { at_once: true, ..Self::new(device)? })
    }

    /// Whether it travels with every change.
    pub fn travels_at_once(&self) -> bool {
        self.at_once
    }

    pub fn lock(&self) -> MutexGuard<'_, Packed> {
        self.packed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a parcel holds.
pub(super) struct Packed {
    pieces: Vec<ScatterPiece>,
    bytes: Vec<u8>,
    /// Parcels that went before.
    number: u64,
    /// How many of them, or of their pieces, did not arrive.
    lost: u64,
    device: DeviceBuffer<u8>,
    staged: Vec<Staged>,
    turn: usize,
}

/// Memory that a copy reads, and what tells that it is done.
struct Staged {
    host: HostBuffer<u8>,
    copied: DeviceEvent,
}

impl Packed {
    /// What tells this parcel from those before it.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Changes whenever something that was put in did not arrive: what devices have is not
    /// known any more.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Puts bytes in that belong at a device address, a multiple of [`VECTOR`]; they are
    /// filled up to one with zeros. No two pieces of a parcel overlap.
    ///
    /// # Safety
    /// The memory at `to` is a buffer's of the parcel's device, not used by anybody else on
    /// other streams; it lives until the parcel was sent and has arrived, or was unpacked.
    pub unsafe fn put(&mut self, to: u64, bytes: &[u8]) {
        let from = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(VECTOR), 0);
        let bytes = (self.bytes.len() - from) as u32;
        self.pieces.push(ScatterPiece { to, from: from as u32, bytes });
    }

    /// Throws away what has not been sent.
    pub fn unpack(&mut self) {
        if !self.pieces.is_empty() {
            self.lost += 1;
        }
        self.close();
    }

    /// Sends what was put in, if anything was: work that follows on the stream sees it.
    /// A parcel of several pieces outlives that.
    pub fn send(&mut self, stream: &DeviceStream) -> Result<()> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        let sent = self.try_send(stream);
        if sent.is_err() {
            self.lost += 1;
        }
        self.close();
        sent
    }

    fn close(&mut self) {
        self.pieces.clear();
        self.bytes.clear();
        self.number += 1;
    }

    fn try_send(&mut self, stream: &DeviceStream) -> Result<()> {
        let head = self.pieces.len() * size_of::<ScatterPiece>();
        let len = head + self.bytes.len();
        if u32::try_from(len).is_err() {
            return Err(Error::misuse("step", format!("{len} bytes of lists in one step")));
        }
        self.reserve(len, stream)?;
        self.pieces.iter_mut().for_each(|piece| piece.from += head as u32);
        self.turn = (self.turn + 1) % DEPTH;
        let Staged { host, copied } = &mut self.staged[self.turn];
        copied.wait()?;
        let (to_head, to_bytes) = host.as_mut_slice()[..len].split_at_mut(head);
        to_head.copy_from_slice(bytemuck::cast_slice(&self.pieces));
        to_bytes.copy_from_slice(&self.bytes);
        // SAFETY: this memory is not touched again before `copied` was waited for, here
        // or when it is dropped; a piece's place is the promise to `put`.
        unsafe {
            match *self.pieces {
                // It needs no kernel to find its place.
                [ScatterPiece { to, bytes, .. }] => {
                    let mut to = DeviceBuffer::borrow(stream.device(), to, bytes as usize);
                    to.write_pinned(0, host, head..len, stream)?;
                }
                _ => self.device.write_pinned(0, host, 0..len, stream)?,
            }
        }
        stream.record(copied)?;
        if self.pieces.len() == 1 {
            return Ok(());
        }
        let largest = self.pieces.iter().map(|piece| piece.bytes).max().unwrap_or(0);
        let params = ScatterParams { parcel: self.device.address() };
        let grid = [self.pieces.len() as u32, largest.div_ceil(SHARE), 1];
        // SAFETY: the pieces lie in the parcel, the last copy's order on the stream keeps it
        // until they have been read; their places are the promise to `put`.
        unsafe { stream.launch("scatter", Launch::grid(grid, THREADS), &params) }
    }

    /// Makes room, once nothing uses the old memory any more.
    fn reserve(&mut self, len: usize, stream: &DeviceStream) -> Result<()> {
        let (device, room) = (stream.device(), len.next_power_of_two().max(LEAST));
        if self.staged.first().is_none_or(|staged| len > staged.host.len()) {
            let staged = || Ok(Staged { host: device.host_buffer(room)?, copied: device.event()? });
            let staged: Result<Vec<_>> = std::iter::repeat_with(staged).take(DEPTH).collect();
            self.staged = staged?;
        }
        if self.pieces.len() > 1 && len > self.device.len() {
            stream.synchronize()?;
            self.device = device.alloc(room)?;
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // A lost device copies nothing any more.
        let _ = self.copied.wait();
    }
}
