//! The arenas of a device: memory, and the table by which kernels find pages.
//!
//! All classes share one budget. Each has addresses for the most blocks that it could
//! have, so that kernels and captured graphs find it where it always was; memory is
//! put behind a block when it is first taken, a chunk at a time, and taken away from
//! chunks without blocks in use when another class needs it.

mod canaries;
#[cfg(all(test, feature = "emulator"))]
mod tests;

use super::class_memory::ClassMemory;
use super::params::KvArena;
use crate::backend::driver::{Device, DeviceBuffer, DeviceStream};
pub use crate::backend::layout::PageLayout;
use crate::backend::{Kernels, KvGroup, LayerIndex};
use crate::cache::{BlockRef, ClassDesc, ClassId};
use crate::error::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};

/// A chunk of memory is a 256th of the budget, but at most this.
const MOST_CHUNK_BYTES: u64 = 16 << 20;

/// The feedback of a group's streams, `[stream][d][d]`: at `[i][j]` what the errors of
/// channel i weigh in channel j. None of a stream counts as none fed back.
fn upload_feedback(
    device: &Device,
    group: &KvGroup,
    stream: &DeviceStream,
) -> Result<Option<DeviceBuffer<f32>>> {
    let d = group.head_dim();
    let all = || (0..group.layers * group.kv_heads).map(|stream| group.sealing_of(stream).1);
    if all().all(|feedback| feedback.is_none()) {
        return Ok(None);
    }
    let mut weights = vec![0.0; group.layers * group.kv_heads * d * d];
    for (of, feedback) in weights.chunks_exact_mut(d * d).zip(all()) {
        let Some(feedback) = feedback else { continue };
        for channel in 0..d {
            for (i, weight) in feedback.row(channel).iter().enumerate() {
                of[i * d + channel] = *weight;
            }
        }
    }
    device.upload(&weights, stream).map(Some)
}

/// What kernels know of an arena that begins at `base`, with `gap` bytes behind a block.
fn entry(layout: &PageLayout, base: u64, gap: u64) -> KvArena {
    KvArena {
        base,
        block_bytes: layout.block_bytes() as u64 + gap,
        page_bytes: layout.page_bytes as u32,
        key_bytes: layout.key_bytes as u32,
        page_tokens: layout.page_tokens as u32,
        ragged: u32::from(layout.ragged),
        key_codec: layout.key.number(),
        value_codec: layout.value.number(),
    }
}

/// All arenas of a device, one a class of blocks.
///
/// Dropping it waits for all work of the device.
pub struct Arenas {
    id: u64,
    groups: Vec<KvGroup>,
    layouts: Vec<PageLayout>,
    memory: Vec<ClassMemory>,
    table: DeviceBuffer<KvArena>,
    /// Of each group, if its keys are sealed with it: `[stream][d][d]`.
    feedback: Vec<Option<DeviceBuffer<f32>>>,
    budget: u64,
    /// Bytes of all blocks in use.
    bytes: u64,
    /// Bytes behind each block that are nobody's.
    gap: u64,
}

impl Arenas {
    /// Empty arenas of at most `budget` bytes of blocks in all.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a geometry that the kernels lack, and for a device
    /// without virtual memory management; [`Error::Misuse`] if the classes do not fit
    /// the groups; [`Error::DeviceOutOfMemory`].
    pub fn new(
        device: &Device,
        groups: &[KvGroup],
        classes: &[ClassDesc],
        budget: u64,
        stream: &DeviceStream,
    ) -> Result<Self> {
        Self::with_gap(device, groups, classes, budget, 0, stream)
    }

    fn with_gap(
        device: &Device,
        groups: &[KvGroup],
        classes: &[ClassDesc],
        budget: u64,
        gap: u64,
        stream: &DeviceStream,
    ) -> Result<Self> {
        groups.iter().try_for_each(|group| group.geometry.check(Kernels::CudaPages))?;
        // No class can have more than the device.
        let room = budget.min(device.info().memory);
        let chunk_bytes = (budget / 256).min(MOST_CHUNK_BYTES);
        let mut layouts = Vec::with_capacity(classes.len());
        let mut memory = Vec::with_capacity(classes.len());
        for class in classes {
            let layout = PageLayout::new(groups, class)?;
            if layout.is_mixed() {
                return Err(Error::Unsupported {
                    what: "a KV format of each head on this device".into(),
                    remedy: "run it on the CPU, or `kvfold calibrate --kv` for one format".into(),
                });
            }
            let block_bytes = layout.block_bytes() as u64;
            let most = (room / block_bytes.max(1)).min(u32::MAX.into()) as u32;
            memory.push(ClassMemory::new(device, block_bytes + gap, most, chunk_bytes)?);
            layouts.push(layout);
        }
        let entry = |(layout, m): (&PageLayout, &ClassMemory)| entry(layout, m.address(), gap);
        let entries: Vec<_> = layouts.iter().zip(&memory).map(entry).collect();
        let table = device.upload(&entries, stream)?;
        let fed = |group| upload_feedback(device, group, stream);
        let feedback = groups.iter().map(fed).collect::<Result<_>>()?;
        static COUNT: AtomicU64 = AtomicU64::new(1);
        let id = COUNT.fetch_add(1, Ordering::Relaxed);
        let groups = groups.to_vec();
        Ok(Self { id, groups, layouts, memory, table, feedback, budget, bytes: 0, gap })
    }

    /// Arenas with blocks 0 to `blocks[i]` of class i in use, and room for no more.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Error::Misuse`] if there is not one number a class.
    pub fn with_blocks(
        device: &Device,
        groups: &[KvGroup],
        classes: &[ClassDesc],
        blocks: &[u32],
        stream: &DeviceStream,
    ) -> Result<Self> {
        if blocks.len() != classes.len() {
            let what = format!("{} numbers for {} classes", blocks.len(), classes.len());
            return Err(Error::misuse("blocks", what));
        }
        let bytes = |(class, n): (&ClassDesc, &u32)| class.block_bytes.saturating_mul((*n).into());
        let budget = classes.iter().zip(blocks).map(bytes).fold(0, u64::saturating_add);
        let mut arenas = Self::new(device, groups, classes, budget, stream)?;
        for (class, n) in blocks.iter().enumerate() {
            let class = ClassId(class as u16);
            let all: Vec<_> = (0..*n).map(|index| BlockRef { class, index }).collect();
            arenas.take(&all, stream)?;
        }
        Ok(arenas)
    }

    /// Puts the blocks in use; those that are already stay as they are. The content of
    /// new ones is unspecified. Planning what is written to blocks takes them: this is
    /// for those who write by other means.
    ///
    /// If chunks must be taken from other classes, it waits for `stream` first, on which
    /// all work on the arenas goes.
    ///
    /// # Errors
    /// Nothing is taken then. [`Error::NotFound`] for a class that does not exist, and
    /// for blocks that no budget's worth of blocks has; [`Error::KvBudget`];
    /// [`Error::DeviceOutOfMemory`].
    pub fn take(&mut self, blocks: &[BlockRef], stream: &DeviceStream) -> Result<()> {
        for block in blocks {
            self.writable(*block)?;
        }
        let mut new = Vec::new();
        for &block in blocks {
            if self.memory[usize::from(block.class.0)].mark(block.index) {
                self.bytes += self.block_bytes(block.class);
                new.push(block);
            }
        }
        let taken = self.provide(&new, stream).and_then(|()| self.fill_canaries(&new, stream));
        if taken.is_err() {
            self.free(&new);
        }
        taken
    }

    /// Memory for blocks that were just marked.
    fn provide(&mut self, blocks: &[BlockRef], stream: &DeviceStream) -> Result<()> {
        let (needed, budget) = (self.bytes, self.budget);
        if needed > budget {
            let new: u64 = blocks.iter().map(|block| self.block_bytes(block.class)).sum();
            return Err(Error::KvBudget { needed, held: needed - new, budget });
        }
        for block in blocks {
            let class = usize::from(block.class.0);
            let lacks = self.memory[class].lacks(block.index);
            if lacks == 0 {
                continue;
            }
            let over = (self.committed_bytes() + lacks).saturating_sub(self.limit());
            self.reclaim(over, stream)?;
            match self.memory[class].commit(block.index) {
                // Somebody else has the memory: all that is idle may help.
                Err(Error::DeviceOutOfMemory { .. }) => {
                    self.reclaim(u64::MAX, stream)?;
                    self.memory[class].commit(block.index)?;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Bytes of memory above which idle chunks are given back: the budget, and the last
    /// chunk of each class, which may hold less than it could.
    fn limit(&self) -> u64 {
        let chunks: u64 = self.memory.iter().map(ClassMemory::chunk_bytes).sum();
        self.budget.saturating_add(chunks)
    }

    /// Gives back at least `bytes` bytes of chunks without blocks in use, if there are.
    fn reclaim(&mut self, bytes: u64, stream: &DeviceStream) -> Result<()> {
        let mut missing = bytes;
        let mut waited = false;
        for memory in &mut self.memory {
            while missing > 0
                && let Some(chunk) = memory.idle_chunk()
            {
                if !std::mem::replace(&mut waited, true) {
                    stream.synchronize()?;
                }
                // SAFETY: no block in use lies in it, and all work on it is done.
                unsafe { memory.decommit(chunk) };
                missing = missing.saturating_sub(memory.chunk_bytes());
            }
        }
        Ok(())
    }

    /// Puts the blocks out of use; those that are not in use are nothing. Work that was
    /// enqueued before may still use them.
    pub fn free(&mut self, blocks: &[BlockRef]) {
        for block in blocks {
            let memory = self.memory.get_mut(usize::from(block.class.0));
            if memory.is_some_and(|memory| memory.unmark(block.index)) {
                self.bytes -= self.block_bytes(block.class);
            }
        }
    }

    /// Bytes behind each block that are nobody's.
    pub(super) fn gap(&self) -> u64 {
        self.gap
    }

    fn address_of(&self, block: BlockRef) -> u64 {
        let stride = self.block_bytes(block.class) + self.gap;
        self.memory[usize::from(block.class.0)].address() + u64::from(block.index) * stride
    }

    /// Bytes of all blocks in use.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of device memory behind them: at most the budget and a chunk of each class,
    /// unless the blocks in use lie scattered over more chunks than they would fill.
    pub fn committed_bytes(&self) -> u64 {
        self.memory.iter().map(ClassMemory::committed).sum()
    }

    /// Bytes of blocks that may be in use.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    fn block_bytes(&self, class: ClassId) -> u64 {
        self.layouts[usize::from(class.0)].block_bytes() as u64
    }

    /// What tells these arenas from all others; never 0.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The device address of a group's feedback of keys ([`Feedback`](crate::codec::feedback)), by stream, or 0.
    pub fn feedback(&self, group: usize) -> u64 {
        self.feedback.get(group).and_then(Option::as_ref).map_or(0, DeviceBuffer::address)
    }

    /// The device address of the table: `KvArena []`, by class.
    pub fn table(&self) -> u64 {
        self.table.address()
    }

    /// A KV group.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn group(&self, group: usize) -> Result<&KvGroup> {
        let missing = || Error::NotFound { what: format!("KV group {group}") };
        self.groups.get(group).ok_or_else(missing)
    }

    /// The group of a layer that exists.
    pub(super) fn group_of(&self, at: LayerIndex) -> Result<&KvGroup> {
        match self.group(at.group)? {
            group if at.layer < group.layers => Ok(group),
            _ => Err(Error::NotFound {
                what: format!("KV layer {} of group {}", at.layer, at.group),
            }),
        }
    }

    /// How pages lie in blocks of a class.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn layout(&self, class: ClassId) -> Result<&PageLayout> {
        let missing = || Error::NotFound { what: format!("KV class {}", class.0) };
        self.layouts.get(usize::from(class.0)).ok_or_else(missing)
    }

    /// The layout of a block in use.
    pub(super) fn block(&self, block: BlockRef) -> Result<&PageLayout> {
        let layout = self.layout(block.class)?;
        match self.memory[usize::from(block.class.0)].is_taken(block.index) {
            true => Ok(layout),
            false => Err(missing(block)),
        }
    }

    /// The layout of a block that is in use or could be.
    pub(super) fn writable(&self, block: BlockRef) -> Result<&PageLayout> {
        let layout = self.layout(block.class)?;
        if block.index < self.memory[usize::from(block.class.0)].most() {
            return Ok(layout);
        }
        match (u64::from(block.index) + 1) * layout.block_bytes() as u64 {
            // The budget is more than the device has.
            needed if needed <= self.budget => {
                let free = self.table.device().info().memory;
                Err(Error::DeviceOutOfMemory { needed, free })
            }
            _ => Err(missing(block)),
        }
    }

    /// Takes a block and fills it.
    ///
    /// # Errors
    /// [`Error::Misuse`] for bytes that are not a block's; what [`take`](Self::take) refuses.
    pub fn write(&mut self, block: BlockRef, bytes: &[u8], stream: &DeviceStream) -> Result<()> {
        let needed = self.layout(block.class)?.block_bytes();
        if bytes.len() != needed {
            let what = format!("{} bytes for a block of {needed}", bytes.len());
            return Err(Error::misuse("restore", what));
        }
        self.take(&[block], stream)?;
        self.bytes_of(block)?.write(0, bytes, stream)
    }

    /// All bytes of a block in use, once the stream's earlier work is done.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn read(&self, block: BlockRef, stream: &DeviceStream) -> Result<Vec<u8>> {
        self.bytes_of(block)?.to_vec(stream)
    }

    /// The memory of a block in use.
    fn bytes_of(&self, block: BlockRef) -> Result<DeviceBuffer<u8>> {
        let (bytes, address) = (self.block(block)?.block_bytes(), self.address_of(block));
        // SAFETY: a block in use has memory, which stays as long as it is in use; those who
        // write to it borrow the arenas exclusively.
        Ok(unsafe { DeviceBuffer::borrow(self.table.device(), address, bytes) })
    }

    /// The bytes of a class, block after block (and what lies behind each), before the
    /// first that is not in use.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn memory(&mut self, class: ClassId) -> Result<&mut DeviceBuffer<u8>> {
        self.layout(class)?;
        Ok(self.memory[usize::from(class.0)].blocks())
    }
}

fn missing(block: BlockRef) -> Error {
    Error::NotFound { what: format!("KV block {} of class {}", block.index, block.class.0) }
}

/// The layer of a stream of a group, which must exist.
pub(super) fn layer_of(group: &KvGroup, stream: Option<usize>) -> Result<Option<usize>> {
    match stream {
        Some(s) if s >= group.layers * group.kv_heads => {
            Err(Error::NotFound { what: format!("KV stream {s}") })
        }
        _ => Ok(stream.map(|s| s / group.kv_heads)),
    }
}
