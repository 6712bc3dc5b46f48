//! Lists that the host writes again and again and kernels read.

use crate::backend::driver::{Device, DeviceBuffer, DeviceEvent, DeviceStream, HostBuffer};
use crate::error::Result;
use bytemuck::Pod;
use std::ops::Range;

/// Steps that can be in flight before a list waits for the oldest one's copy.
const DEPTH: usize = 3;
/// Elements that there is room for at the least: growing costs captured steps.
const LEAST: usize = 64;

/// A list in device memory that grows and is never given back. Use it on one
/// stream: the order of its work is what keeps a list until it has been read.
///
/// It is copied from page-locked memory, so that the host need not wait, and only
/// when it has changed.
pub(super) struct DeviceList<T> {
    buffer: DeviceBuffer<T>,
    len: usize,
    /// What the device has or will have.
    content: Vec<T>,
    staged: Vec<Staged<T>>,
    turn: usize,
}

/// Memory that a copy reads, and what tells that it is done.
struct Staged<T> {
    host: HostBuffer<T>,
    copied: DeviceEvent,
}

impl<T: Pod> DeviceList<T> {
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self {
            buffer: device.alloc(0)?,
            len: 0,
            content: Vec::new(),
            staged: Vec::new(),
            turn: 0,
        })
    }

    /// Replaces the content.
    pub fn set(&mut self, items: &[T], stream: &DeviceStream) -> Result<()> {
        if items.len() > self.buffer.len() {
            self.grow(items.len(), stream)?;
        }
        self.len = items.len();
        let has = self.content.get(..items.len()).unwrap_or_default();
        if bytemuck::cast_slice::<T, u8>(has) == bytemuck::cast_slice::<T, u8>(items) {
            return Ok(());
        }
        self.content.clear();
        self.turn = (self.turn + 1) % DEPTH;
        let Staged { host, copied } = &mut self.staged[self.turn];
        copied.wait()?;
        host.as_mut_slice()[..items.len()].copy_from_slice(items);
        // SAFETY: this memory is not touched again before `copied` was waited for, here
        // or in `grow` or `drop`.
        unsafe { self.buffer.write_pinned(0, host, 0..items.len(), stream)? };
        stream.record(copied)?;
        self.content.extend_from_slice(items);
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// The memory, of which the first [`len`](Self::len) elements are the list.
    pub fn buffer(&self) -> &DeviceBuffer<T> {
        &self.buffer
    }

    pub fn address_of(&self, at: usize) -> u64 {
        self.buffer.address_of(at)
    }

    /// Makes room, once nothing uses the old memory any more. If that fails, the old list
    /// stays.
    fn grow(&mut self, len: usize, stream: &DeviceStream) -> Result<()> {
        stream.synchronize()?;
        let (device, room) = (stream.device(), len.next_power_of_two().max(LEAST));
        let buffer = device.alloc(room)?;
        let staged = || Ok(Staged { host: device.host_buffer(room)?, copied: device.event()? });
        let staged: Result<Vec<_>> = std::iter::repeat_with(staged).take(DEPTH).collect();
        (self.staged, self.buffer) = (staged?, buffer);
        self.content.clear();
        Ok(())
    }
}

impl<T> Drop for Staged<T> {
    fn drop(&mut self) {
        // A lost device copies nothing any more.
        let _ = self.copied.wait();
    }
}

/// Items that concern every layer of a KV group, then items that concern one
/// stream, ordered by layer.
pub(super) struct LayerList<T> {
    list: DeviceList<T>,
    /// The first item of each layer, and the end.
    starts: Vec<usize>,
}

impl<T: Pod> LayerList<T> {
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self { list: DeviceList::new(device)?, starts: vec![0] })
    }

    /// Replaces the content: items with the layer that they concern, if only one.
    pub fn set(
        &mut self,
        layers: usize,
        mut items: Vec<(Option<usize>, T)>,
        stream: &DeviceStream,
    ) -> Result<()> {
        self.starts = vec![0];
        items.sort_by_key(|(layer, _)| *layer);
        let start = |layer: usize| items.partition_point(|(of, _)| of.is_none_or(|of| of < layer));
        let starts = (0..=layers).map(start).collect();
        let items: Vec<T> = items.into_iter().map(|(_, item)| item).collect();
        self.list.set(&items, stream)?;
        self.starts = starts;
        Ok(())
    }

    /// The two parts that concern these layers, those that are empty left out: address,
    /// items, and streams that an item stands for (`all`, or 1).
    pub fn parts(&self, layers: Range<usize>, all: u32) -> impl Iterator<Item = (u64, u32, u32)> {
        let start = |layer: usize| self.starts.get(layer).copied().unwrap_or(self.list.len());
        let part = |range: Range<usize>, streams| {
            (self.list.address_of(range.start), range.len() as u32, streams)
        };
        [part(0..start(0), all), part(start(layers.start)..start(layers.end), 1)]
            .into_iter()
            .filter(|(_, n, _)| *n > 0)
    }
}
