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
/// It is copied from page-locked memory, so that the host need not wait, and only what
/// has changed of it: in a step, a few entries of many.
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
        let changed = difference(&self.content, items);
        if changed.is_empty() {
            self.content.truncate(items.len());
            return Ok(());
        }
        self.turn = (self.turn + 1) % DEPTH;
        let Staged { host, copied } = &mut self.staged[self.turn];
        copied.wait()?;
        host.as_mut_slice()[changed.clone()].copy_from_slice(&items[changed.clone()]);
        // What the device will have is not known until the copy is under way.
        self.content.truncate(changed.start);
        // SAFETY: this memory is not touched again before `copied` was waited for, here
        // or in `grow` or `drop`.
        unsafe { self.buffer.write_pinned(changed.start, host, changed, stream)? };
        stream.record(copied)?;
        self.content.extend_from_slice(&items[self.content.len()..]);
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

/// The items of `new` that `old` has not at their places: from the first of them to the last.
fn difference<T: Pod>(old: &[T], new: &[T]) -> Range<usize> {
    let differ = |(a, b): (&T, &T)| bytemuck::bytes_of(a) != bytemuck::bytes_of(b);
    let both = old.len().min(new.len());
    let first = old.iter().zip(new).position(differ).unwrap_or(both);
    let last = match new.len() > old.len() {
        true => new.len(),
        false => old[..both].iter().zip(new).rposition(differ).map_or(first, |last| last + 1),
    };
    first..last
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

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn only_what_differs_is_copied() {
        let cases: [(&[u32], &[u32], std::ops::Range<usize>); 7] = [
            (&[], &[], 0..0),
            (&[], &[1, 2], 0..2),
            (&[1, 2], &[1, 2], 2..2),
            (&[1, 2], &[1, 2, 3], 2..3),
            (&[1, 2, 3], &[1, 2], 2..2),
            (&[1, 2, 3, 4, 5], &[1, 9, 3, 8, 5], 1..4),
            (&[1, 2, 3, 4], &[0, 2], 0..1),
        ];
        for (old, new, range) in cases {
            assert_eq!(difference(old, new), range, "{old:?} {new:?}");
        }
    }
}
