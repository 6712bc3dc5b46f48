//! Lists that the host writes again and again and kernels read.

use crate::backend::driver::{Device, DeviceBuffer, Stream};
use crate::error::Result;
use bytemuck::Pod;
use std::ops::Range;

/// A list in device memory that grows and is never given back. Use it on one
/// stream: the order of its work is what keeps a list until it has been read.
pub(super) struct DeviceList<T> {
    buffer: DeviceBuffer<T>,
    len: usize,
}

impl<T: Pod> DeviceList<T> {
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self { buffer: device.alloc(0)?, len: 0 })
    }

    /// Replaces the content.
    pub fn set(&mut self, items: &[T], stream: &Stream) -> Result<()> {
        self.len = 0;
        if items.len() > self.buffer.len() {
            // Kernels may still read the old one.
            stream.synchronize()?;
            self.buffer = stream.device().alloc(items.len().next_power_of_two())?;
        }
        self.buffer.write(0, items, stream)?;
        self.len = items.len();
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
        stream: &Stream,
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
