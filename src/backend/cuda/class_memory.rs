//! The memory of one class of blocks: addresses for all it could ever have, memory
//! behind those parts that hold blocks in use.

use crate::backend::driver::{Device, DeviceBuffer, Reservation};
use crate::error::Result;
use std::ops::Range;

/// Blocks by index, and the chunks of memory that they lie in.
pub(super) struct ClassMemory {
    /// From a block to the next.
    block_bytes: u64,
    /// Blocks that the addresses are for.
    most: u32,
    chunks: Reservation,
    taken: Vec<bool>,
    /// Blocks in use that lie in each chunk, wholly or partly.
    users: Vec<u32>,
    /// What `blocks` lends.
    lent: DeviceBuffer<u8>,
}

impl ClassMemory {
    /// No blocks in use, addresses for `most` of them.
    pub fn new(device: &Device, block_bytes: u64, most: u32, chunk_bytes: u64) -> Result<Self> {
        let chunks = Reservation::new(device, u64::from(most) * block_bytes, chunk_bytes)?;
        let users = vec![0; chunks.chunks()];
        let lent = device.alloc(0)?;
        Ok(Self { block_bytes, most, chunks, taken: Vec::new(), users, lent })
    }

    /// The address of block 0; it never changes.
    pub fn address(&self) -> u64 {
        self.chunks.address()
    }

    /// Blocks that there are addresses for.
    pub fn most(&self) -> u32 {
        self.most
    }

    /// Whether a block is in use.
    pub fn is_taken(&self, index: u32) -> bool {
        self.taken.get(index as usize).is_some_and(|taken| *taken)
    }

    /// One more than the last block that has been in use.
    pub fn known(&self) -> u32 {
        self.taken.len() as u32
    }

    /// Bytes that have memory.
    pub fn committed(&self) -> u64 {
        self.chunks.committed()
    }

    /// Bytes of a chunk.
    pub fn chunk_bytes(&self) -> u64 {
        self.chunks.chunk_bytes()
    }

    /// Marks a block below `most` as in use; whether it was not.
    pub fn mark(&mut self, index: u32) -> bool {
        let at = index as usize;
        if self.taken.len() <= at {
            self.taken.resize(at + 1, false);
        }
        let new = !std::mem::replace(&mut self.taken[at], true);
        if new {
            self.chunks_of(index).for_each(|chunk| self.users[chunk] += 1);
        }
        new
    }

    /// Marks a block as free; whether it was not. Its memory stays until it is needed.
    pub fn unmark(&mut self, index: u32) -> bool {
        let was = self.is_taken(index);
        if was {
            self.taken[index as usize] = false;
            self.chunks_of(index).for_each(|chunk| self.users[chunk] -= 1);
        }
        was
    }

    /// Bytes of memory that a block still lacks.
    pub fn lacks(&self, index: u32) -> u64 {
        let lacking = self.chunks_of(index).filter(|chunk| !self.chunks.is_committed(*chunk));
        lacking.count() as u64 * self.chunk_bytes()
    }

    /// Puts memory behind a block.
    pub fn commit(&mut self, index: u32) -> Result<()> {
        self.chunks.commit(self.chunks_of(index))
    }

    /// The last chunk that has memory but no block in use.
    pub fn idle_chunk(&self) -> Option<usize> {
        let idle = |chunk: &usize| self.users[*chunk] == 0 && self.chunks.is_committed(*chunk);
        (0..self.users.len()).rev().find(idle)
    }

    /// Takes the memory of a chunk away.
    ///
    /// # Safety
    /// No block in use lies in it, and all work that uses it is done.
    pub unsafe fn decommit(&mut self, chunk: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.chunks.decommit(chunk) }
    }

    /// The bytes of all blocks before the first that is not in use.
    pub fn blocks(&mut self) -> &mut DeviceBuffer<u8> {
        let blocks = self.taken.iter().position(|taken| !taken).unwrap_or(self.taken.len());
        let bytes = blocks * self.block_bytes as usize;
        // SAFETY: blocks in use have memory, which stays as long as `self` is borrowed;
        // nobody else has the buffer.
        self.lent = unsafe { DeviceBuffer::borrow(self.chunks.device(), self.address(), bytes) };
        &mut self.lent
    }

    fn chunks_of(&self, index: u32) -> Range<usize> {
        let first = u64::from(index) * self.block_bytes;
        self.chunks.chunks_of(first..first + self.block_bytes)
    }
}
