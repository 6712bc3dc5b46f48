//! The bytes of the KV cache: one arena a class, one allocation a block.
//!
//! A block is allocated when it is first written and released when the cache
//! says so, so memory in use follows the cache's books.

use crate::backend::KvGroup;
use crate::cache::{BlockRef, ClassDesc, ClassId, ClassKind, CopyBlock};
use crate::codec::{Codec, TILE_TOKENS};
use crate::error::{Error, Result};

/// A cache line; blocks are aligned to it.
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// How the pages of a class lie in its blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClassLayout {
    /// Codec of the key half of a page.
    pub key: Codec,
    /// Codec of the value half.
    pub value: Codec,
    /// Channels of a head.
    pub head_dim: usize,
    /// Rows of a page.
    pub page_tokens: usize,
    /// Bytes of the key half.
    pub key_bytes: usize,
    /// Bytes of the page.
    pub page_bytes: usize,
    /// Pages of a block: one for each stream, or a single one in ragged classes.
    pub pages: usize,
}

impl ClassLayout {
    fn new(group: &KvGroup, class: &ClassDesc) -> Result<Self> {
        let sealed = matches!(class.kind, ClassKind::Sealed | ClassKind::RaggedSealed);
        let ragged = matches!(
            class.kind,
            ClassKind::RaggedSink | ClassKind::RaggedHot | ClassKind::RaggedSealed
        );
        let hot = group.format.hot();
        let (key, value) = if sealed { (group.format.key, group.format.value) } else { (hot, hot) };
        let rows = |codec: Codec| {
            codec.tile().tile_bytes(group.head_dim) * class.page_tokens / TILE_TOKENS
        };
        let key_bytes = rows(key);
        let page_bytes = key_bytes + rows(value);
        let pages = if ragged { 1 } else { group.layers * group.kv_heads };
        if (page_bytes * pages) as u64 != class.block_bytes {
            return Err(Error::config(
                "classes",
                format!(
                    "{:?} blocks have {} bytes, the format {} needs {}",
                    class.kind,
                    class.block_bytes,
                    group.format,
                    page_bytes * pages
                ),
            ));
        }
        let page_tokens = class.page_tokens;
        let head_dim = group.head_dim;
        Ok(Self { key, value, head_dim, page_tokens, key_bytes, page_bytes, pages })
    }

    /// Bytes of one row of the key half; float codecs only.
    pub(super) fn key_row_bytes(&self) -> usize {
        self.key_bytes / self.page_tokens
    }
}

#[derive(Default)]
struct Arena {
    blocks: Vec<Option<Box<[Line]>>>,
}

/// All arenas of a backend.
#[derive(Default)]
pub(super) struct Arenas {
    layouts: Vec<ClassLayout>,
    arenas: Vec<Arena>,
    bytes: u64,
}

impl Arenas {
    /// Empty arenas for the classes.
    pub(super) fn new(groups: &[KvGroup], classes: &[ClassDesc]) -> Result<Self> {
        let layouts = classes
            .iter()
            .map(|class| match groups.get(class.group) {
                Some(group) => ClassLayout::new(group, class),
                None => Err(Error::config("classes", format!("no KV group {}", class.group))),
            })
            .collect::<Result<Vec<_>>>()?;
        let arenas = classes.iter().map(|_| Arena::default()).collect();
        Ok(Self { layouts, arenas, bytes: 0 })
    }

    /// Bytes of all blocks that are allocated.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The layout of a class's pages.
    pub(super) fn layout(&self, class: ClassId) -> &ClassLayout {
        &self.layouts[usize::from(class.0)]
    }

    /// The page of `stream` in a block: key half and value half.
    pub(super) fn page(&self, block: BlockRef, stream: usize) -> Result<(&[u8], &[u8])> {
        let layout = self.layout(block.class);
        let lines = self.arenas[usize::from(block.class.0)]
            .blocks
            .get(block.index as usize)
            .and_then(Option::as_ref)
            .ok_or_else(|| missing(block))?;
        let at = if layout.pages == 1 { 0 } else { stream * layout.page_bytes };
        let page = &bytemuck::cast_slice::<Line, u8>(lines)[at..at + layout.page_bytes];
        Ok(page.split_at(layout.key_bytes))
    }

    /// As [`page`](Self::page), to write; the block is allocated if it is new.
    pub(super) fn page_mut(&mut self, block: BlockRef, stream: usize) -> (&mut [u8], &mut [u8]) {
        let layout = self.layouts[usize::from(block.class.0)];
        let at = if layout.pages == 1 { 0 } else { stream * layout.page_bytes };
        let bytes = &mut self.block_mut(block)[at..at + layout.page_bytes];
        bytes.split_at_mut(layout.key_bytes)
    }

    fn block_mut(&mut self, block: BlockRef) -> &mut [u8] {
        let layout = &self.layouts[usize::from(block.class.0)];
        let size = layout.page_bytes * layout.pages;
        let blocks = &mut self.arenas[usize::from(block.class.0)].blocks;
        let index = block.index as usize;
        if blocks.len() <= index {
            blocks.resize_with(index + 1, || None);
        }
        let bytes = &mut self.bytes;
        let lines = blocks[index].get_or_insert_with(|| {
            *bytes += size as u64;
            vec![Line([0; 64]); size.div_ceil(size_of::<Line>())].into_boxed_slice()
        });
        &mut bytemuck::cast_slice_mut(lines)[..size]
    }

    /// Copies a whole block.
    pub(super) fn copy(&mut self, copy: &CopyBlock) -> Result<()> {
        let from = self.arenas[usize::from(copy.from.class.0)]
            .blocks
            .get(copy.from.index as usize)
            .and_then(Option::as_ref)
            .ok_or_else(|| missing(copy.from))?
            .clone();
        self.block_mut(copy.to);
        self.arenas[usize::from(copy.to.class.0)].blocks[copy.to.index as usize] = Some(from);
        Ok(())
    }

    /// Releases a block; one that was never written is nothing.
    pub(super) fn free(&mut self, block: BlockRef) {
        let layout = &self.layouts[usize::from(block.class.0)];
        let size = (layout.page_bytes * layout.pages) as u64;
        let slot = self.arenas[usize::from(block.class.0)].blocks.get_mut(block.index as usize);
        if slot.and_then(Option::take).is_some() {
            self.bytes -= size;
        }
    }
}

fn missing(block: BlockRef) -> Error {
    Error::NotFound { what: format!("KV block {} of class {}", block.index, block.class.0) }
}
