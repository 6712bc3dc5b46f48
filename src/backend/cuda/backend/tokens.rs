//! The tokens that steps draw, on their way to the host.

use crate::backend::driver::{Device, DeviceBuffer, Event, HostBuffer, Stream};
use crate::error::{Error, Result};
use std::collections::VecDeque;

/// The tokens drawn last, and those of earlier steps that have been sent.
pub(super) struct Tokens {
    drawn: DeviceBuffer<u32>,
    /// How many were drawn by the step before.
    n_drawn: usize,
    sent: VecDeque<Sent>,
    /// Memory of those received, to be used again.
    spare: Vec<Sent>,
}

/// The tokens of one step.
struct Sent {
    n: usize,
    host: HostBuffer<u32>,
    arrived: Event,
}

impl Tokens {
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self { drawn: device.alloc(0)?, n_drawn: 0, sent: VecDeque::new(), spare: Vec::new() })
    }

    /// Makes room for the tokens of a step that begins.
    pub fn begin(&mut self, rows: usize, stream: &Stream) -> Result<()> {
        self.n_drawn = 0;
        if rows > self.drawn.len() {
            // Kernels may still use the old memory.
            stream.synchronize()?;
            self.drawn = stream.device().alloc(rows.next_power_of_two())?;
        }
        Ok(())
    }

    /// The tokens that the step before drew, and their number.
    pub fn drawn(&self) -> (&DeviceBuffer<u32>, usize) {
        (&self.drawn, self.n_drawn)
    }

    /// Where the step in hand draws to.
    pub fn drawn_mut(&mut self) -> &mut DeviceBuffer<u32> {
        &mut self.drawn
    }

    /// Starts the copy of the first `n` to the host.
    pub fn send(&mut self, n: usize, stream: &Stream) -> Result<()> {
        let mut sent = match self.spare.pop().filter(|spare| spare.host.len() >= n) {
            Some(spare) => spare,
            None => {
                let device = stream.device();
                let host = device.host_buffer(n.next_power_of_two())?;
                Sent { n, host, arrived: device.event()? }
            }
        };
        sent.n = n;
        // SAFETY: the memory is not touched before `arrived` was waited for, in `receive`
        // or when it is dropped.
        unsafe { self.drawn.read_pinned(0, &mut sent.host, 0..n, stream)? };
        stream.record(&sent.arrived)?;
        self.sent.push_back(sent);
        self.n_drawn = n;
        Ok(())
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.n_drawn = 0;
        self.sent.clear();
    }

    /// The tokens that were sent first; waits for them.
    pub fn receive(&mut self) -> Result<Vec<u32>> {
        let none = || Error::config("tokens", "none were sent");
        let sent = self.sent.pop_front().ok_or_else(none)?;
        sent.arrived.wait()?;
        let tokens = sent.host.as_slice()[..sent.n].to_vec();
        self.spare.push(sent);
        Ok(tokens)
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        // A lost device copies nothing any more.
        let _ = self.arrived.wait();
    }
}
