//! The tokens that steps draw: their slots, and their way to the host.

use crate::backend::driver::{Device, DeviceBuffer, DeviceEvent, DeviceStream, HostBuffer};
use crate::error::{Error, Result};
use std::collections::VecDeque;

/// Slots that there is room for at the least: growing costs captured steps.
const LEAST: usize = 64;

/// The tokens drawn, by slot, and those that have been sent.
pub(super) struct Slots {
    drawn: DeviceBuffer<u32>,
    sent: VecDeque<Sent>,
    /// Memory of those received, to be used again.
    spare: Vec<Sent>,
}

/// The tokens of one step.
struct Sent {
    /// The slot of each, counted from the first that was copied.
    places: Vec<usize>,
    host: HostBuffer<u32>,
    arrived: DeviceEvent,
}

impl Slots {
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self { drawn: device.alloc(LEAST)?, sent: VecDeque::new(), spare: Vec::new() })
    }

    /// Where a step draws to: the element of a slot.
    pub fn place(slot: u32) -> u32 {
        slot + 1
    }

    /// Where rows draw to whose token nobody wants. Several may.
    pub const NOWHERE: u32 = 0;

    /// Makes room for `n` elements.
    pub fn reserve(&mut self, n: usize, stream: &DeviceStream) -> Result<()> {
        if n > self.drawn.len() {
            let mut grown = stream.device().alloc(n.next_power_of_two())?;
            grown.copy_from(0, &self.drawn, 0, self.drawn.len(), stream)?;
            // Kernels may still use the old memory.
            stream.synchronize()?;
            self.drawn = grown;
        }
        Ok(())
    }

    /// Tokens by element.
    pub fn drawn(&self) -> &DeviceBuffer<u32> {
        &self.drawn
    }

    /// The same, to draw to.
    pub fn drawn_mut(&mut self) -> &mut DeviceBuffer<u32> {
        &mut self.drawn
    }

    /// Starts the copy of the tokens in these slots to the host.
    pub fn send(&mut self, slots: &[u32], stream: &DeviceStream) -> Result<()> {
        let elements = slots.iter().map(|slot| Self::place(*slot) as usize);
        let first = elements.clone().min().unwrap_or(0);
        let end = elements.clone().max().map_or(0, |last| last + 1);
        let places = elements.map(|element| element - first).collect();
        let n = end - first;
        let mut sent = match self.spare.pop().filter(|spare| spare.host.len() >= n) {
            Some(mut spare) => {
                spare.places = places;
                spare
            }
            None => {
                let device = stream.device();
                let host = device.host_buffer(n.next_power_of_two())?;
                Sent { places, host, arrived: device.event()? }
            }
        };
        // SAFETY: the memory is not touched before `arrived` was waited for, in `receive`
        // or when it is dropped.
        unsafe { self.drawn.read_pinned(first, &mut sent.host, 0..n, stream)? };
        stream.record(&sent.arrived)?;
        self.sent.push_back(sent);
        Ok(())
    }

    /// The tokens that were sent first; waits for them.
    pub fn receive(&mut self) -> Result<Vec<u32>> {
        let none = || Error::misuse("tokens", "none were sent");
        let sent = self.sent.pop_front().ok_or_else(none)?;
        sent.arrived.wait()?;
        let host = sent.host.as_slice();
        let tokens = sent.places.iter().map(|place| host[*place]).collect();
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
