//! A range of device addresses that memory is put behind, and taken away from, in parts.

use super::device::Device;
use crate::error::{Error, Result};
use std::ops::Range;

/// Device addresses that never change, divided into chunks, some of which have memory.
///
/// Dropping it gives all of it back, once all work of the device is done.
#[derive(Debug)]
pub struct Reservation {
    device: Device,
    address: u64,
    chunk_bytes: u64,
    /// Whether each chunk has memory.
    has_memory: Vec<bool>,
    committed: u64,
}

impl Reservation {
    /// Addresses for at least `bytes` bytes in chunks of at least `chunk_bytes`, both
    /// rounded up to what the device takes. No chunk has memory yet.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the device has no virtual memory management;
    /// [`Error::Device`] if so many addresses are not to be had.
    pub fn new(device: &Device, bytes: u64, chunk_bytes: u64) -> Result<Self> {
        let many = || Error::misuse("bytes", format!("{bytes} bytes exceed all addresses"));
        let granularity = device.driver().granularity()?.max(1);
        let chunk_bytes =
            chunk_bytes.max(1).checked_next_multiple_of(granularity).ok_or_else(many)?;
        let chunks = bytes.div_ceil(chunk_bytes);
        let reserved = chunks.checked_mul(chunk_bytes).ok_or_else(many)?;
        let address = if reserved == 0 { 0 } else { device.driver().reserve(reserved)? };
        let has_memory = vec![false; chunks as usize];
        Ok(Self { device: device.clone(), address, chunk_bytes, has_memory, committed: 0 })
    }

    /// Its device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The first address; 0 if it has none.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Bytes of addresses.
    pub fn bytes(&self) -> u64 {
        self.has_memory.len() as u64 * self.chunk_bytes
    }

    /// Bytes of a chunk.
    pub fn chunk_bytes(&self) -> u64 {
        self.chunk_bytes
    }

    /// Chunks.
    pub fn chunks(&self) -> usize {
        self.has_memory.len()
    }

    /// Bytes that have memory.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// Whether a chunk has memory.
    pub fn is_committed(&self, chunk: usize) -> bool {
        self.has_memory.get(chunk).is_some_and(|has| *has)
    }

    /// The chunks that hold bytes of a range.
    pub fn chunks_of(&self, bytes: Range<u64>) -> Range<usize> {
        let first = bytes.start / self.chunk_bytes;
        first as usize..bytes.end.div_ceil(self.chunk_bytes).max(first) as usize
    }

    /// Gives memory of unspecified content to those of the chunks that have none.
    ///
    /// # Errors
    /// [`Error::NotFound`] for chunks that it does not have; [`Error::DeviceOutOfMemory`]
    /// with what all missing chunks need. After an error it has the memory it had before.
    pub fn commit(&mut self, chunks: Range<usize>) -> Result<()> {
        let Some(has) = self.has_memory.get(chunks.clone()) else {
            return Err(Error::NotFound { what: format!("chunks {chunks:?} of device memory") });
        };
        let missing: Vec<usize> =
            chunks.clone().zip(has).filter(|(_, has)| !**has).map(|(chunk, _)| chunk).collect();
        for (done, &chunk) in missing.iter().enumerate() {
            // SAFETY: the chunk lies in the range and has no memory.
            let status = unsafe { self.device.driver().commit(self.at(chunk), self.chunk_bytes) };
            if let Err(error) = status {
                // SAFETY: nobody has been told of these yet.
                missing[..done].iter().for_each(|&chunk| unsafe { self.decommit(chunk) });
                let all = missing.len() as u64 * self.chunk_bytes;
                return Err(match error {
                    Error::DeviceOutOfMemory { free, .. } => {
                        let free = free + done as u64 * self.chunk_bytes;
                        Error::DeviceOutOfMemory { needed: all, free }
                    }
                    other => other,
                });
            }
            self.has_memory[chunk] = true;
            self.committed += self.chunk_bytes;
        }
        Ok(())
    }

    /// Takes the memory of a chunk away, if it has any.
    ///
    /// # Safety
    /// All work that uses the chunk is done.
    pub unsafe fn decommit(&mut self, chunk: usize) {
        if self.is_committed(chunk) {
            self.has_memory[chunk] = false;
            self.committed -= self.chunk_bytes;
            // SAFETY: `commit` gave memory to this chunk; the caller's promise.
            unsafe { self.device.driver().decommit(self.at(chunk), self.chunk_bytes) }
        }
    }

    fn at(&self, chunk: usize) -> u64 {
        self.address + chunk as u64 * self.chunk_bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.has_memory.is_empty() {
            return;
        }
        if let Err(error) = self.device.driver().synchronize_all() {
            tracing::warn!("{error}");
        }
        // SAFETY: all work is done, or the device is lost; the range is gone after this.
        unsafe {
            (0..self.chunks()).for_each(|chunk| self.decommit(chunk));
            self.device.driver().release(self.address, self.bytes());
        }
    }
}
