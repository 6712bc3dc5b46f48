//! Lists that the host writes again and again and kernels read.

use super::parcel::{Parcel, VECTOR};
use crate::backend::driver::{Device, DeviceBuffer, DeviceStream};
use crate::error::Result;
use bytemuck::Pod;
use std::ops::Range;

/// Elements that there is room for at the least: growing costs captured steps.
const LEAST: usize = 64;

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
        // Whole vectors, but for the last of the list, behind which there is nothing.
        let all: &[u8] = bytemuck::cast_slice(&self.content);
        let first = changed.start * size_of::<T>() / VECTOR * VECTOR;
        let end = (changed.end * size_of::<T>()).next_multiple_of(VECTOR).min(all.len());
        // SAFETY: the range is this buffer's, which lives until `drop`, or `grow` after the
        // parcel was sent; users of the list promise to use one stream.
        unsafe { packed.put(self.buffer.address() + first as u64, &all[first..end]) };
        self.packed_in = Some(packed.number());
        if self.parcel.travels_at_once() {
            packed.send(stream)?;
        }
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

    #[cfg(feature = "emulator")]
    mod on_a_device {
        use super::super::{DeviceList, Parcel};
        use crate::backend::driver::{Device, DeviceStream};
        use bytemuck::Pod;

        fn device() -> (Device, DeviceStream) {
            let device = Device::emulated(Default::default());
            let stream = device.stream().unwrap();
            (device, stream)
        }

        #[track_caller]
        fn holds<T: Pod + PartialEq + std::fmt::Debug>(
            list: &DeviceList<T>,
            want: &[T],
            stream: &DeviceStream,
        ) {
            let mut got = vec![T::zeroed(); list.len()];
            list.buffer().read(0, &mut got, stream).unwrap();
            assert_eq!(got, want);
        }

        /// Lists of elements of several sizes, some of which change, shrink, grow.
        #[test]
        fn lists_travel_together() {
            let (device, stream) = device();
            let parcel = Parcel::new(&device).unwrap();
            let mut words = DeviceList::<u32>::within(&device, &parcel).unwrap();
            let mut triples = DeviceList::<[u64; 3]>::within(&device, &parcel).unwrap();
            let mut longs = DeviceList::<u64>::within(&device, &parcel).unwrap();
            for step in 0..12u32 {
                let n = [5, 5, 200, 3, 70, 70][step as usize % 6];
                let at = |i: u32| i * 1000 + if i % 7 == 3 { step } else { 0 };
                let some: Vec<u32> = (0..n).map(at).collect();
                let more: Vec<[u64; 3]> = (0..n / 2).map(|i| [at(i).into(), 1, 2]).collect();
                let few: Vec<u64> = (0..step / 4).map(u64::from).collect();
                words.set(&some, &stream).unwrap();
                triples.set(&more, &stream).unwrap();
                longs.set(&few, &stream).unwrap();
                parcel.lock().send(&stream).unwrap();
                holds(&words, &some, &stream);
                holds(&triples, &more, &stream);
                holds(&longs, &few, &stream);
            }
        }

        #[test]
        fn a_list_that_changes_twice_has_the_last_content() {
            let (device, stream) = device();
            let parcel = Parcel::new(&device).unwrap();
            let mut list = DeviceList::<u32>::within(&device, &parcel).unwrap();
            for items in [&[1, 2, 3][..], &[1, 5, 3], &[9; 100], &[9, 8]] {
                list.set(items, &stream).unwrap();
            }
            parcel.lock().send(&stream).unwrap();
            holds(&list, &[9, 8], &stream);
        }

        /// What a step that could not begin had put in is sent anew.
        #[test]
        fn what_was_thrown_away_travels_again() {
            let (device, stream) = device();
            let parcel = Parcel::new(&device).unwrap();
            let mut list = DeviceList::<u32>::within(&device, &parcel).unwrap();
            let mut other = DeviceList::<u32>::within(&device, &parcel).unwrap();
            list.set(&[1, 2, 3], &stream).unwrap();
            parcel.lock().send(&stream).unwrap();
            list.set(&[1, 7, 3], &stream).unwrap();
            parcel.lock().unpack();
            list.set(&[1, 7, 3], &stream).unwrap();
            other.set(&[4], &stream).unwrap();
            parcel.lock().send(&stream).unwrap();
            holds(&list, &[1, 7, 3], &stream);
            // A list that is gone takes what it had put in along.
            list.set(&[6], &stream).unwrap();
            other.set(&[5], &stream).unwrap();
            drop(list);
            parcel.lock().send(&stream).unwrap();
            other.set(&[5], &stream).unwrap();
            parcel.lock().send(&stream).unwrap();
            holds(&other, &[5], &stream);
        }
    }
}
