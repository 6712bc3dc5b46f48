//! The bytes of the KV cache: one arena a class.
//!
//! A block is taken from its class's slabs when it is first written and given
//! back when the cache says so, so memory in use follows the cache's books to
//! within the last slab of each class.

use super::slab::Slabs;
use crate::backend::KvGroup;
use crate::backend::layout::PageLayout;
use crate::cache::{BlockRef, ClassDesc, ClassId, CopyBlock, PageMove};
use crate::error::{Error, Result};

/// All arenas of a backend.
#[derive(Default)]
pub(super) struct ClassArenas {
    layouts: Vec<PageLayout>,
    arenas: Vec<Slabs>,
    bytes: u64,
}

impl ClassArenas {
    /// Empty arenas for the classes.
    pub(super) fn new(groups: &[KvGroup], classes: &[ClassDesc]) -> Result<Self> {
        let layouts = classes
            .iter()
            .map(|class| PageLayout::new(groups, class))
            .collect::<Result<Vec<_>>>()?;
        let arenas = layouts.iter().map(|layout| Slabs::new(layout.block_bytes())).collect();
        Ok(Self { layouts, arenas, bytes: 0 })
    }

    /// Bytes of all blocks that are allocated.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The layout of a class's pages.
    pub(super) fn layout(&self, class: ClassId) -> &PageLayout {
        &self.layouts[usize::from(class.0)]
    }

    /// The page of `stream` in a block: key half and value half.
    pub(super) fn page(&self, block: BlockRef, stream: usize) -> Result<(&[u8], &[u8])> {
        let layout = self.layout(block.class);
        let bytes = self.arenas[usize::from(block.class.0)]
            .get(block.index as usize)
            .ok_or_else(|| missing(block))?;
        let page = layout.page(stream);
        Ok(bytes[page.bytes].split_at(page.key_bytes))
    }

    /// As [`page`](Self::page), to write; the block is allocated if it is new.
    pub(super) fn page_mut(&mut self, block: BlockRef, stream: usize) -> (&mut [u8], &mut [u8]) {
        let page = self.layout(block.class).page(stream);
        self.block_mut(block)[page.bytes].split_at_mut(page.key_bytes)
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

    /// Copies a stream's page to a ragged block.
    pub(super) fn move_page(&mut self, moved: &PageMove) -> Result<()> {
        let (key, value) = self.page(moved.from, moved.stream)?;
        let page = [key, value].concat();
        let (to_key, to_value) = self.page_mut(moved.to, moved.stream);
        let (key, value) = page.split_at(to_key.len());
        to_key.copy_from_slice(key);
        to_value.copy_from_slice(value);
        Ok(())
    }

    /// All bytes of a block.
    pub(super) fn read(&self, block: BlockRef) -> Result<&[u8]> {
        let arena = self.arenas.get(usize::from(block.class.0)).ok_or_else(|| missing(block))?;
        arena.get(block.index as usize).ok_or_else(|| missing(block))
    }

    /// Fills a block; it is allocated if it is new.
    pub(super) fn write(&mut self, block: BlockRef, bytes: &[u8]) -> Result<()> {
        let layout = self.layouts.get(usize::from(block.class.0)).ok_or_else(|| missing(block))?;
        let needed = layout.block_bytes();
        if bytes.len() != needed {
            let what = format!("{} bytes for a block of {needed}", bytes.len());
            return Err(Error::misuse("restore", what));
        }
        self.block_mut(block).copy_from_slice(bytes);
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
