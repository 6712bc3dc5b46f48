//! Typed device memory.

use super::{Device, HostBuffer, Stream};
use crate::error::{Error, Result};
use bytemuck::Pod;
use std::marker::PhantomData;
use std::ops::Range;

/// `len` elements of `T` in a device's memory, freed on drop.
///
/// Whoever drops a buffer answers for launched kernels that still use it: see
/// [`Stream::launch`].
#[derive(Debug)]
pub struct DeviceBuffer<T> {
    device: Device,
    address: u64,
    len: usize,
    owned: bool,
    element: PhantomData<T>,
}

impl Device {
    /// A buffer of `len` elements of unspecified content.
    ///
    /// # Errors
    /// [`Error::DeviceOutOfMemory`].
    pub fn alloc<T: Pod>(&self, len: usize) -> Result<DeviceBuffer<T>> {
        DeviceBuffer::new(self, len)
    }

    /// A buffer of `len` elements, all bits 0.
    ///
    /// # Errors
    /// [`Error::DeviceOutOfMemory`].
    pub fn zeroed<T: Pod>(&self, len: usize, stream: &Stream) -> Result<DeviceBuffer<T>> {
        let mut buffer = self.alloc(len)?;
        buffer.fill(0, stream)?;
        Ok(buffer)
    }

    /// A buffer with a copy of `from`.
    ///
    /// # Errors
    /// [`Error::DeviceOutOfMemory`].
    pub fn upload<T: Pod>(&self, from: &[T], stream: &Stream) -> Result<DeviceBuffer<T>> {
        let mut buffer = self.alloc(from.len())?;
        buffer.write(0, from, stream)?;
        Ok(buffer)
    }
}

impl<T: Pod> DeviceBuffer<T> {
    fn new(device: &Device, len: usize) -> Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| {
            Error::misuse("len", format!("{len} elements are more than memory can hold"))
        })? as u64;
        let address = if bytes == 0 { 0 } else { device.allocate(bytes)? };
        let owned = bytes > 0;
        Ok(Self { device: device.clone(), address, len, owned, element: PhantomData })
    }

    /// A buffer in memory that somebody else owns; dropping it frees nothing.
    ///
    /// # Safety
    /// `len` elements at `address` belong to the device's context, are aligned for
    /// `T`, outlive the result, and are not used behind its back.
    pub unsafe fn borrow(device: &Device, address: u64, len: usize) -> Self {
        Self { device: device.clone(), address, len, owned: false, element: PhantomData }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes.
    pub fn bytes(&self) -> u64 {
        (self.len * size_of::<T>()) as u64
    }

    /// Its device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The device address of its first element; 0 if it is empty.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The device address of element `at <= len`.
    ///
    /// # Panics
    /// If `at` exceeds the length.
    pub fn address_of(&self, at: usize) -> u64 {
        assert!(at <= self.len, "element {at} of {}", self.len);
        self.address + (at * size_of::<T>()) as u64
    }

    /// Copies `from` to the elements from `at` on, in stream order; `from` may be
    /// reused on return.
    pub fn write(&mut self, at: usize, from: &[T], stream: &Stream) -> Result<()> {
        let Some(to) = self.range(at, from.len(), stream, "write")? else { return Ok(()) };
        let from = bytemuck::cast_slice(from);
        // SAFETY: the range is this buffer's, exclusive here.
        unsafe { self.device.driver().write(to, from, stream.raw()) }
    }

    /// Copies the elements from `at` on to `to`, once the stream's earlier work is
    /// done, and waits for it.
    pub fn read(&self, at: usize, to: &mut [T], stream: &Stream) -> Result<()> {
        let Some(from) = self.range(at, to.len(), stream, "read")? else { return Ok(()) };
        let to = bytemuck::cast_slice_mut(to);
        // SAFETY: the range is this buffer's.
        unsafe { self.device.driver().read(from, to, stream.raw()) }
    }

    /// All elements: see [`read`](Self::read).
    pub fn to_vec(&self, stream: &Stream) -> Result<Vec<T>> {
        let mut all = vec![T::zeroed(); self.len];
        self.read(0, &mut all, stream)?;
        Ok(all)
    }

    /// Copies elements `range` of `from` to those from `at` on, in stream order, and
    /// does not wait for it. In a [`capture`](Stream::capture) the copy is made anew at
    /// every launch.
    ///
    /// # Safety
    /// `from` is neither written nor dropped before the copy is done: before an
    /// [`Event`](super::Event) recorded after it, or the stream, was waited for.
    pub unsafe fn write_pinned(
        &mut self,
        at: usize,
        from: &HostBuffer<T>,
        range: Range<usize>,
        stream: &Stream,
    ) -> Result<()> {
        let Some(host) = from.range(&range, stream, "write")? else { return Ok(()) };
        let Some(to) = self.range(at, range.len(), stream, "write")? else { return Ok(()) };
        let bytes = (range.len() * size_of::<T>()) as u64;
        // SAFETY: the range is this buffer's, exclusive here; the host's is the caller's
        // promise.
        unsafe { self.device.driver().write_pinned(to, host, bytes, stream.raw()) }
    }

    /// Copies the elements from `at` on to elements `range` of `to`, in stream order,
    /// and does not wait for it. In a [`capture`](Stream::capture) the copy is made anew
    /// at every launch.
    ///
    /// # Safety
    /// `to` is neither read, written nor dropped before the copy is done: before an
    /// [`Event`](super::Event) recorded after it, or the stream, was waited for.
    pub unsafe fn read_pinned(
        &self,
        at: usize,
        to: &mut HostBuffer<T>,
        range: Range<usize>,
        stream: &Stream,
    ) -> Result<()> {
        let Some(host) = to.range(&range, stream, "read")? else { return Ok(()) };
        let Some(from) = self.range(at, range.len(), stream, "read")? else { return Ok(()) };
        let bytes = (range.len() * size_of::<T>()) as u64;
        // SAFETY: the range is this buffer's; the host's is the caller's promise.
        unsafe { self.device.driver().read_pinned(from, host, bytes, stream.raw()) }
    }

    /// Copies `len` elements of `from`, from `from_at` on, to those from `at` on, in
    /// stream order.
    pub fn copy_from(
        &mut self,
        at: usize,
        from: &Self,
        from_at: usize,
        len: usize,
        stream: &Stream,
    ) -> Result<()> {
        let to = self.range(at, len, stream, "copy")?;
        let from = from.range(from_at, len, stream, "copy")?;
        let (Some(to), Some(from)) = (to, from) else { return Ok(()) };
        let bytes = (len * size_of::<T>()) as u64;
        // SAFETY: both ranges are in live buffers, distinct because `self` is
        // borrowed exclusively.
        unsafe { self.device.driver().copy(from, to, bytes, stream.raw()) }
    }

    /// Sets every byte, in stream order.
    pub fn fill(&mut self, value: u8, stream: &Stream) -> Result<()> {
        let Some(at) = self.range(0, self.len, stream, "fill")? else { return Ok(()) };
        // SAFETY: the range is this buffer's, exclusive here.
        unsafe { self.device.driver().fill(at, value, self.bytes(), stream.raw()) }
    }

    /// The address of a range that lies in the buffer, or none if it is empty.
    fn range(&self, at: usize, len: usize, stream: &Stream, doing: &str) -> Result<Option<u64>> {
        self.device.expect(stream.device(), doing)?;
        match at.checked_add(len) {
            Some(end) if end <= self.len => {
                Ok((len * size_of::<T>() > 0).then(|| self.address_of(at)))
            }
            _ => Err(Error::device(
                doing,
                format!("{len} elements from {at} on exceed the buffer of {}", self.len),
            )),
        }
    }
}

impl<T> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: `new` allocated it; copies in flight are waited for by `free`,
            // and kernels by the promise to `Stream::launch`.
            unsafe { self.device.release(self.address) }
        }
    }
}
