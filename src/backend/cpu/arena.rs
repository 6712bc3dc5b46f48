//! The bytes of the KV cache: one arena a class.
//!
//! A block is taken from its class's slabs when it is first written and given
//! back when the cache says so, so memory in use follows the cache's books to
//! within the last slab of each class.

use super::slab::Slabs;
use crate::backend::KvGroup;
use crate::cache::{BlockRef, ClassDesc, ClassId, ClassKind, CopyBlock};
use crate::codec::{Codec, TILE_TOKENS};
use crate::error::{Error, Result};

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

    /// Bytes of a block.
    fn block_bytes(&self) -> usize {
        self.page_bytes * self.pages
    }

    /// Bytes of one row of the key half; float codecs only.
    pub(super) fn key_row_bytes(&self) -> usize {
        self.key_bytes / self.page_tokens
    }
}

/// All arenas of a backend.
#[derive(Default)]
pub(super) struct Arenas {
    layouts: Vec<ClassLayout>,
    arenas: Vec<Slabs>,
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
        let arenas = layouts.iter().map(|layout| Slabs::new(layout.block_bytes())).collect();
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
        let bytes = self.arenas[usize::from(block.class.0)]
            .get(block.index as usize)
            .ok_or_else(|| missing(block))?;
        let at = if layout.pages == 1 { 0 } else { stream * layout.page_bytes };
        Ok(bytes[at..at + layout.page_bytes].split_at(layout.key_bytes))
    }

    /// As [`page`](Self::page), to write; the block is allocated if it is new.
    pub(super) fn page_mut(&mut self, block: BlockRef, stream: usize) -> (&mut [u8], &mut [u8]) {
        let layout = self.layouts[usize::from(block.class.0)];
        let at = if layout.pages == 1 { 0 } else { stream * layout.page_bytes };
        let bytes = &mut self.block_mut(block)[at..at + layout.page_bytes];
        bytes.split_at_mut(layout.key_bytes)
    }

    fn block_mut(&mut self, block: BlockRef) -> &mut [u8] {
        let (bytes, new) = self.arenas[usize::from(block.class.0)].take(block.index as usize);
        if new {
            self.bytes += bytes.len() as u64;
        }
        bytes
    }

    /// Copies a whole block.
    pub(super) fn copy(&mut self, copy: &CopyBlock) -> Result<()> {
        let from = self.arenas[usize::from(copy.from.class.0)]
            .get(copy.from.index as usize)
            .ok_or_else(|| missing(copy.from))?
            .to_vec();
        self.block_mut(copy.to).copy_from_slice(&from);
        Ok(())
    }

    /// Releases a block; one that was never written is nothing.
    pub(super) fn free(&mut self, block: BlockRef) {
        let class = usize::from(block.class.0);
        if self.arenas[class].give_back(block.index as usize) {
            self.bytes -= self.layouts[class].block_bytes() as u64;
        }
    }
}

fn missing(block: BlockRef) -> Error {
    Error::NotFound { what: format!("KV block {} of class {}", block.index, block.class.0) }
}
