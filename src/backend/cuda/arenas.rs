//! The arenas of a device: memory, and the table by which kernels find pages.

use super::params::{CODEC_BF16, CODEC_F16, CODEC_FP8, CODEC_KIVI2, CODEC_KIVI4, KvArena};
use crate::backend::driver::{Device, DeviceBuffer, Stream};
pub use crate::backend::layout::PageLayout;
use crate::backend::{KvGroup, LayerIndex};
use crate::cache::{BlockRef, ClassDesc, ClassId};
use crate::codec::Codec;
use crate::error::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};

/// The widest head that the kernels take.
pub const MAX_HEAD_DIM: usize = 256;

/// What kernels know of an arena that begins at `base`.
fn entry(layout: &PageLayout, base: u64) -> KvArena {
    KvArena {
        base,
        block_bytes: layout.block_bytes() as u64,
        page_bytes: layout.page_bytes as u32,
        key_bytes: layout.key_bytes as u32,
        page_tokens: layout.page_tokens as u32,
        ragged: u32::from(layout.ragged),
        key_codec: number(layout.key),
        value_codec: number(layout.value),
    }
}

/// A codec as `KvCodec` numbers it.
fn number(codec: Codec) -> u32 {
    match codec {
        Codec::F16 => CODEC_F16,
        Codec::Bf16 => CODEC_BF16,
        Codec::Fp8 => CODEC_FP8,
        Codec::Kivi4 => CODEC_KIVI4,
        Codec::Kivi2 => CODEC_KIVI2,
    }
}

/// All arenas of a device, one a class of blocks.
///
/// Whoever drops it answers for launched kernels that still use it.
pub struct Arenas {
    id: u64,
    groups: Vec<KvGroup>,
    layouts: Vec<PageLayout>,
    blocks: Vec<u32>,
    memory: Vec<DeviceBuffer<u8>>,
    table: DeviceBuffer<KvArena>,
}

impl Arenas {
    /// Arenas of `blocks[i]` blocks of class i, of unspecified content.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a head dim that the kernels lack;
    /// [`Error::Config`] if the classes do not fit the groups;
    /// [`Error::DeviceOutOfMemory`].
    pub fn new(
        device: &Device,
        groups: &[KvGroup],
        classes: &[ClassDesc],
        blocks: &[u32],
        stream: &Stream,
    ) -> Result<Self> {
        groups.iter().try_for_each(|group| check_head_dim(group.head_dim))?;
        if blocks.len() != classes.len() {
            let what = format!("{} numbers for {} classes", blocks.len(), classes.len());
            return Err(Error::config("blocks", what));
        }
        let mut layouts = Vec::with_capacity(classes.len());
        let mut memory = Vec::with_capacity(classes.len());
        for (class, n) in classes.iter().zip(blocks) {
            let layout = PageLayout::new(groups, class)?;
            memory.push(device.alloc::<u8>(layout.block_bytes() * *n as usize)?);
            layouts.push(layout);
        }
        let entries: Vec<_> =
            layouts.iter().zip(&memory).map(|(layout, m)| entry(layout, m.address())).collect();
        let table = device.upload(&entries, stream)?;
        static COUNT: AtomicU64 = AtomicU64::new(1);
        let id = COUNT.fetch_add(1, Ordering::Relaxed);
        Ok(Self { id, groups: groups.to_vec(), layouts, blocks: blocks.to_vec(), memory, table })
    }

    /// What tells these arenas from all others; never 0.
    pub(super) fn id(&self) -> u64 {
        self.id
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

    /// The layout of a block that exists.
    pub(super) fn block(&self, block: BlockRef) -> Result<&PageLayout> {
        let layout = self.layout(block.class)?;
        match self.blocks[usize::from(block.class.0)] {
            n if block.index < n => Ok(layout),
            _ => Err(Error::NotFound {
                what: format!("KV block {} of class {}", block.index, block.class.0),
            }),
        }
    }

    /// The bytes of a class, block after block.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn memory(&mut self, class: ClassId) -> Result<&mut DeviceBuffer<u8>> {
        self.layout(class)?;
        Ok(&mut self.memory[usize::from(class.0)])
    }
}

fn check_head_dim(head_dim: usize) -> Result<()> {
    if head_dim.is_multiple_of(32) && (32..=MAX_HEAD_DIM).contains(&head_dim) {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: format!("head_dim {head_dim}"),
        remedy: format!("it must be a multiple of 32, at most {MAX_HEAD_DIM}"),
    })
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
