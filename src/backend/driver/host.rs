//! Page-locked host memory, which devices copy to and from by themselves.

use super::{Device, Stream};
use crate::error::{Error, Result};
use bytemuck::Pod;
use std::ops::Range;
use std::ptr::NonNull;

/// `len` elements of `T` in page-locked host memory, freed on drop. Copies are
/// [`DeviceBuffer::write_pinned`](super::DeviceBuffer::write_pinned) and
/// [`read_pinned`](super::DeviceBuffer::read_pinned).
#[derive(Debug)]
pub struct HostBuffer<T> {
    device: Device,
    first: NonNull<T>,
    len: usize,
}

// SAFETY: it owns its elements, as a Vec does.
unsafe impl<T: Send> Send for HostBuffer<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for HostBuffer<T> {}

impl Device {
    /// Page-locked host memory of `len` elements, all bits 0.
    ///
    /// # Errors
    /// [`Error::Device`] if the host has no memory left to lock.
    pub fn host_buffer<T: Pod>(&self, len: usize) -> Result<HostBuffer<T>> {
        HostBuffer::new(self, len)
    }
}

impl<T: Pod> HostBuffer<T> {
    fn new(device: &Device, len: usize) -> Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).filter(|b| *b <= isize::MAX as usize);
        let first = match bytes {
            Some(0) => NonNull::dangling(),
            // Pages are aligned for every `T`, and all bits 0 is one of its values.
            Some(bytes) => device.driver().alloc_host(bytes as u64)?.cast(),
            None => {
                let what = format!("{len} elements are more than memory can hold");
                return Err(Error::misuse("len", what));
            }
        };
        Ok(Self { device: device.clone(), first, len })
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its elements.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `len` elements, all of them set, borrowed with `self`; whoever started
        // a copy to them promised not to look before it is done.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }

    /// Its elements, to write.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and exclusive here.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }

    /// The address of a range that lies in the buffer, or none if it is empty.
    pub(super) fn range(
        &self,
        range: &Range<usize>,
        stream: &Stream,
        doing: &str,
    ) -> Result<Option<*mut u8>> {
        self.device.expect(stream.device(), doing)?;
        if range.start > range.end || range.end > self.len {
            let what = format!("elements {range:?} exceed the host buffer of {}", self.len);
            return Err(Error::device(doing, what));
        }
        // SAFETY: the range starts within the elements, or at their end.
        let first = unsafe { self.first.as_ptr().add(range.start) };
        Ok((range.len() * size_of::<T>() > 0).then_some(first.cast()))
    }
}

impl<T> Drop for HostBuffer<T> {
    fn drop(&mut self) {
        let bytes = (self.len * size_of::<T>()) as u64;
        if bytes > 0 {
            // SAFETY: `new` allocated it; whoever started a copy promised that it is done.
            unsafe { self.device.driver().free_host(self.first.cast(), bytes) }
        }
    }
}
