//! Lists that the host writes again and again and kernels read.

use super::parcel::Parcel;
use crate::backend::driver::{Device, DeviceBuffer, DeviceStream};
use crate::error::Result;
use bytemuck::Pod;
use std::ops::Range;

/// Elements that there is room for at the least: growing costs captured steps.
const LEAST: usize = 64;
/// Bytes that the kernel which unpacks parcels copies at a time.
const VECTOR: usize = 16;

/// A list in device memory that grows and is never given back. Use it on one
/// stream: the order of its work is what keeps a list until it has been read.
///
/// What has changed of it travels in a [`Parcel`], in a step a few entries of many.
pub(super) struct DeviceList<T> {
    buffer: DeviceBuffer<T>,
    len: usize,
    /// What the device has or will have.
    content: Vec<T>,
    parcel: Parcel,
    /// The parcel that the last change is in.
    packed_in: Option<u64>,
    /// As [`Packed::lost`] was then: if it has changed, so may have `content`.
    lost: u64,
}

impl<T: Pod> DeviceList<T> {
    /// An empty list whose changes travel at once.
    pub fn new(device: &Device) -> Result<Self> {
        Self::within(device, &Parcel::at_once(device)?)
    }

    /// An empty list whose changes travel in a parcel: what is enqueued before it was sent
    /// must not use the list.
    pub fn within(device: &Device, parcel: &Parcel) -> Result<Self> {
        Ok(Self {
            buffer: device.alloc(0)?,
            len: 0,
            content: Vec::new(),
            parcel: parcel.clone(),
            packed_in: None,
            lost: 0,
        })
    }

    /// Replaces the content.
    pub fn set(&mut self, items: &[T], stream: &DeviceStream) -> Result<()> {
        let parcel = self.parcel.clone();
        let mut packed = parcel.lock();
        if self.packed_in == Some(packed.number()) {
            // No two pieces of a parcel are of one list.
            packed.send(stream)?;
        }
        if std::mem::replace(&mut self.lost, packed.lost()) != packed.lost() {
            self.content.clear();
        }
        if items.len() > self.buffer.len() {
            self.grow(items.len(), stream)?;
        }
        self.len = items.len();
        let changed = difference(&self.content, items);
        if changed.is_empty() {
            self.content.truncate(items.len());
            return Ok(());
        }
        self.content.clear();
        self.content.extend_from_slice(items);
        let (at, bytes) = self.vectors(changed);
        // SAFETY: the range is this buffer's, which lives until `drop`, or `grow` after the
        // parcel was sent; users of the list promise to use one stream.
        unsafe { packed.put(self.buffer.address() + at, bytes) };
        self.packed_in = Some(packed.number());
        if self.parcel.travels_at_once() {
            packed.send(stream)?;
        }
        Ok(())
    }

    /// The bytes of a range of the content, widened to multiples of 16, and where they begin.
    /// What follows the list's end is nothing.
    fn vectors(&self, range: Range<usize>) -> (u64, impl Iterator<Item = u8>) {
        let all: &[u8] = bytemuck::cast_slice(&self.content);
        let first = range.start * size_of::<T>() / VECTOR * VECTOR;
        let end = (range.end * size_of::<T>()).next_multiple_of(VECTOR);
        let listed = &all[first..end.min(all.len())];
        let nothing = end - first - listed.len();
        (first as u64, listed.iter().copied().chain(std::iter::repeat_n(0, nothing)))
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
        self.buffer = stream.device().alloc(len.next_power_of_two().max(LEAST))?;
        self.content.clear();
        Ok(())
    }
}

impl<T> Drop for DeviceList<T> {
    fn drop(&mut self) {
        let mut packed = self.parcel.lock();
        if self.packed_in == Some(packed.number()) {
            packed.unpack();
        }
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

/// Items that concern every layer of a KV group, then items that concern one
/// stream, ordered by layer.
pub(super) struct LayerList<T> {
    list: DeviceList<T>,
    /// The first item of each layer, and the end.
    starts: Vec<usize>,
}

impl<T: Pod> LayerList<T> {
    pub fn within(device: &Device, parcel: &Parcel) -> Result<Self> {
        Ok(Self { list: DeviceList::within(device, parcel)?, starts: vec![0] })
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
